#define _GNU_SOURCE

#include "engine.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/vfs.h>
#include <unistd.h>

#include "clock.h"
#include "s3dlio/status.h"

/* How often in a row a transfer may come back without having moved before that is an error. */
#define MAX_STALLS 100
/* How long s3dlio_engine_close() waits for the kernel to let go of the transfers. */
#define DRAIN_MS 10000

/* Linux refuses to move more than 0x7ffff000 bytes at once (read(2)); this is aligned as well. */
#define MAX_STEP_NBYTES ((size_t)1 << 30)
/* The page cache takes pages as large as the write, and memory in pieces of 2 MiB and more is what
 * a virtual machine gives back to its host: fetching it again was seen to take ten times as long
 * as the copy. */
#define MAX_CACHED_STEP_NBYTES ((size_t)1 << 20)

static const struct s3dlio_engine_ops *const engines[] = {
#ifdef S3DLIO_HAVE_URING
    &s3dlio_engine_uring,
#endif
    &s3dlio_engine_threads,
};

#define NENGINES (sizeof engines / sizeof engines[0])

static int
find_forced(const struct s3dlio_engine_ops **forced_ret)
{
    const char *wanted = getenv("S3DLIO_IO_ENGINE");

    *forced_ret = NULL;
    if (!wanted || !*wanted)
        return 0;
    if (strcmp(wanted, "uring") == 0)
        wanted = "io_uring";
    for (size_t i = 0; i < NENGINES; i++) {
        if (strcmp(wanted, engines[i]->name) == 0) {
            *forced_ret = engines[i];
            return 0;
        }
    }
    return S3DLIO_E_BAD_ENGINE;
}

int
s3dlio_engine_forced(bool *forced_ret)
{
    const struct s3dlio_engine_ops *forced;
    int status = find_forced(&forced);

    *forced_ret = forced != NULL;
    return status;
}

/* The numbers of statfs(2). */
static unsigned long
file_system(int fd)
{
    struct statfs fs;

    return fstatfs(fd, &fs) == 0 ? (unsigned long)fs.f_type & 0xffffffffu : 0;
}

/*
 * On FUSE (seen on Linux 6.18) a short O_DIRECT write through io_uring stored shifted data, and its
 * completion reported the full length; CIFS has similar reports (nodejs/node#50717).
 */
static bool
trusts_uring(int fd)
{
    switch (file_system(fd)) {
    case 0:
    case 0x65735546: /* FUSE */
    case 0xff534d42: /* CIFS */
    case 0xfe534d42: /* SMB2 */
    case 0x6969:     /* NFS */
        return false;
    default:
        return true;
    }
}

bool
s3dlio_is_local(int fd)
{
    switch (file_system(fd)) {
    case 0xef53:     /* ext4 */
    case 0x58465342: /* xfs */
    case 0x9123683e: /* btrfs */
    case 0x01021994: /* tmpfs */
    case 0x794c7630: /* overlay */
    case 0xf2f52010: /* f2fs */
    case 0x2fc12fc1: /* zfs */
        return true;
    default:
        return false;
    }
}

int
s3dlio_engine_open(struct s3dlio_engine **engine_ret, int fd, unsigned depth, size_t align,
                   const struct s3dlio_pool *pool)
{
    const struct s3dlio_engine_ops *ops;
    int status = find_forced(&ops);

    if (status)
        return status;
    if (ops) {
        status = ops->open(engine_ret, fd, depth, pool);
    } else {
        status = -ENOSYS;
        for (size_t i = trusts_uring(fd) ? 0 : NENGINES - 1; status && i < NENGINES; i++) {
            ops = engines[i];
            status = ops->open(engine_ret, fd, depth, pool);
        }
    }
    if (status)
        return status;
    (*engine_ret)->ops = ops;
    (*engine_ret)->fd = fd;
    (*engine_ret)->depth = depth;
    (*engine_ret)->align = align;
    return 0;
}

int
s3dlio_engine_submit(struct s3dlio_engine *engine, struct s3dlio_io *io)
{
    int status;

    io->error = 0;
    io->done = 0;
    io->stalls = 0;
    io->next = NULL;
    status = engine->ops->submit(engine, io);
    if (!status)
        engine->in_flight++;
    return status;
}

int
s3dlio_engine_wait(struct s3dlio_engine *engine, struct s3dlio_io **io_ret, int wait_ms)
{
    int status = engine->ops->wait(engine, io_ret, wait_ms);

    if (status > 0)
        engine->in_flight--;
    return status;
}

int
s3dlio_engine_close(struct s3dlio_engine *engine)
{
    uint64_t deadline = s3dlio_clock_ns() + (uint64_t)DRAIN_MS * 1000000u;
    struct s3dlio_io *io;

    if (!engine)
        return 0;
    engine->in_flight -= engine->ops->drop(engine);
    while (engine->in_flight > 0) {
        (void)s3dlio_engine_wait(engine, &io, 100);
        if (engine->in_flight > 0 && s3dlio_clock_ns() > deadline)
            return -ETIMEDOUT;
    }
    engine->ops->free(engine);
    return 0;
}

void
s3dlio_engine_forget(struct s3dlio_engine *engine)
{
    if (engine)
        engine->ops->forget(engine);
}

ssize_t
s3dlio_io_step(const struct s3dlio_io *io, int fd)
{
    size_t rest = io->nbytes - io->done;
    off_t offset = (off_t)(io->offset + io->done);
    ssize_t result = -1;

    if (rest > MAX_STEP_NBYTES)
        rest = MAX_STEP_NBYTES;
    if (io->kind == S3DLIO_IO_WRITE && io->cached && rest > MAX_CACHED_STEP_NBYTES)
        rest = MAX_CACHED_STEP_NBYTES;
    switch (io->kind) {
    case S3DLIO_IO_READ:
        result = pread(fd, (char *)io->data + io->done, rest, offset);
        break;
    case S3DLIO_IO_WRITE:
        result = pwrite(fd, (char *)io->data + io->done, rest, offset);
        break;
    case S3DLIO_IO_FSYNC:
        result = fsync(fd);
        break;
    case S3DLIO_IO_FDATASYNC:
        result = fdatasync(fd);
        break;
    }
    return result < 0 ? -errno : result;
}

bool
s3dlio_io_advance(struct s3dlio_io *io, ssize_t result, size_t align)
{
    size_t before = io->done;

    if (io->kind == S3DLIO_IO_FSYNC || io->kind == S3DLIO_IO_FDATASYNC) {
        /* Never again after a failure: the kernel reports the loss once, drops the pages, and says
         * success the next time. */
        io->error = (int)result;
        return true;
    }
    if (result == -EINTR || result == -EAGAIN) {
        io->error = (int)result;
        return ++io->stalls > MAX_STALLS;
    }
    io->error = 0;
    if (result < 0) {
        io->error = (int)result;
        return true;
    }
    io->done += (size_t)result;
    if (io->done >= io->needed)
        return true;
    if (result == 0 && io->kind == S3DLIO_IO_READ)
        return true;
    /* O_DIRECT goes on from an aligned place; what lies between is written or read twice. */
    if (!io->cached)
        io->done -= io->done % align;
    if (io->done > before) {
        io->stalls = 0;
        return false;
    }
    if (++io->stalls <= MAX_STALLS)
        return false;
    /* A read that never gets past this place has met an end of the file between aligned places. */
    io->error = io->kind == S3DLIO_IO_READ ? 0 : -EIO;
    return true;
}

int
s3dlio_io_run(struct s3dlio_io *io, int fd, size_t align)
{
    io->error = 0;
    io->done = 0;
    io->stalls = 0;
    while (!s3dlio_io_advance(io, s3dlio_io_step(io, fd), align))
        ;
    return io->error;
}
