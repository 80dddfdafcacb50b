#define _GNU_SOURCE /* O_DIRECT, statx() */

#include "direct.h"

#include <errno.h>
#include <fcntl.h>
#include <stdint.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/vfs.h>
#include <unistd.h>

#include "engine.h"
#include "s3dlio/status.h"

/* Up to here AUTO leaves a file in the page cache: what is read again soon is as a rule not longer,
 * and to write so much at the end takes no time that matters. */
#define CACHED_NBYTES ((uint64_t)16 << 20)
/* What every block device of today accepts, where the kernel does not tell (before Linux 6.1). */
#define DEFAULT_ALIGN 4096

static int
set_direct(int fd, int direct)
{
    int flags = fcntl(fd, F_GETFL);

    if (flags < 0 || fcntl(fd, F_SETFL, (flags & ~O_DIRECT) | direct) != 0)
        return -errno;
    return 0;
}

/* tmpfs and ramfs are the page cache; newer kernels accept the flag there and ignore it. */
static int
lives_in_memory(int fd)
{
    struct statfs fs;

    if (fstatfs(fd, &fs) != 0)
        return 0;
    return (uint32_t)fs.f_type == 0x01021994 || (uint32_t)fs.f_type == 0x858458f6;
}

/* Returns whether O_DIRECT is worth trying, and what it asks of offsets and memory. */
static int
find_align(int fd, size_t *align_ret)
{
#ifdef STATX_DIOALIGN
    struct statx file;
#endif

    *align_ret = DEFAULT_ALIGN;
    if (lives_in_memory(fd))
        return -EOPNOTSUPP;
#ifdef STATX_DIOALIGN
    if (statx(fd, "", AT_EMPTY_PATH, STATX_DIOALIGN, &file) == 0 &&
        (file.stx_mask & STATX_DIOALIGN)) {
        if (file.stx_dio_offset_align == 0)
            return -EOPNOTSUPP;
        if (file.stx_dio_offset_align > *align_ret)
            *align_ret = file.stx_dio_offset_align;
    }
#endif
    return 0;
}

static int
turn_on(struct s3dlio_direct_mode *mode, int fd)
{
    mode->error = set_direct(fd, O_DIRECT);
    mode->on = mode->error == 0;
    return mode->error;
}

int
s3dlio_direct_start(struct s3dlio_direct_mode *mode, enum s3dlio_direct wanted, int fd)
{
    *mode = (struct s3dlio_direct_mode){.wanted = wanted, .align = 1};
    if (wanted == S3DLIO_DIRECT_OFF)
        return 0;
    mode->error = find_align(fd, &mode->align);
    if (wanted == S3DLIO_DIRECT_AUTO) {
        if (mode->error)
            *mode = (struct s3dlio_direct_mode){.wanted = S3DLIO_DIRECT_OFF, .align = 1};
        return 0;
    }
    if (!mode->error && turn_on(mode, fd) == 0)
        return 0;
    mode->align = 1;
    return wanted == S3DLIO_DIRECT_REQUIRE ? S3DLIO_E_NO_DIRECT : 0;
}

bool
s3dlio_direct_switch(struct s3dlio_direct_mode *mode, uint64_t offset, int fd)
{
    return mode->wanted == S3DLIO_DIRECT_AUTO && !mode->on && !mode->error &&
           offset >= CACHED_NBYTES && turn_on(mode, fd) == 0;
}

/* Bytes of the file that are in the page cache, or -errno.  glibc has no function for cachestat(2),
 * whose number is the same on every architecture. */
static int64_t
cached_nbytes(int fd)
{
    struct {
        uint64_t offset, nbytes; /* 0 bytes are all to the end */
    } range = {0, 0};
    struct {
        uint64_t cached, dirty, writeback, evicted, recently_evicted;
    } pages;

    if (syscall(451, fd, &range, &pages, 0) != 0)
        return -errno;
    return (int64_t)(pages.cached * (uint64_t)sysconf(_SC_PAGESIZE));
}

enum s3dlio_direct
s3dlio_direct_for_reading(int fd, uint64_t nbytes)
{
    int64_t cached = nbytes < CACHED_NBYTES ? -1 : cached_nbytes(fd);

    return cached >= 0 && (uint64_t)cached < nbytes / 2 ? S3DLIO_DIRECT_PREFER : S3DLIO_DIRECT_OFF;
}

int
s3dlio_direct_judge(struct s3dlio_direct_mode *mode, struct s3dlio_io *io, int fd)
{
    int status;

    if (io->error != -EINVAL || mode->wanted == S3DLIO_DIRECT_OFF || io->retried)
        return io->error;
    if (mode->wanted == S3DLIO_DIRECT_REQUIRE)
        return S3DLIO_E_NO_DIRECT;
    /* Others that were on their way come here too, after the first. */
    if (mode->on) {
        status = set_direct(fd, 0);
        if (status)
            return status;
        mode->on = false;
        mode->error = io->error;
    }
    io->retried = io->cached = true;
    return 1;
}
