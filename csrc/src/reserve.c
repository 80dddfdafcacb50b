#define _GNU_SOURCE /* fallocate() */

#include "reserve.h"

#include <fcntl.h>
#include <sys/resource.h>
#include <sys/statvfs.h>
#include <sys/vfs.h>

/* The file grows by as much again as it has, within these bounds, since fallocate(2) lets all
 * writes end first. */
#define MIN_STEP_NBYTES ((uint64_t)16 << 20)
#define MAX_STEP_NBYTES ((uint64_t)1 << 30)
/* On a disk that has not this many times the step free, other writers need the space more. */
#define SHARE 16

/*
 * Whether reserved space may lengthen the file.  Beyond RLIMIT_FSIZE that would end the program
 * with SIGXFSZ, although the data fits, and a file system that cannot mark space as unwritten would
 * fill it with zeros.
 */
static int
mode_of(int fd, uint64_t end)
{
    struct rlimit limit;
    struct statfs fs;

    if (getrlimit(RLIMIT_FSIZE, &limit) != 0 || limit.rlim_cur < end || fstatfs(fd, &fs) != 0)
        return FALLOC_FL_KEEP_SIZE;
    /* ext4, xfs */
    return fs.f_type == 0xef53 || fs.f_type == 0x58465342 ? 0 : FALLOC_FL_KEEP_SIZE;
}

static bool
has_room(int fd, uint64_t step)
{
    struct statvfs fs;

    return fstatvfs(fd, &fs) == 0 && fs.f_bavail * (uint64_t)fs.f_frsize / SHARE >= step;
}

bool
s3dlio_reserve(uint64_t *reserved, uint64_t end, int fd)
{
    uint64_t step = end;

    if (end <= *reserved)
        return false;
    if (step < MIN_STEP_NBYTES)
        step = MIN_STEP_NBYTES;
    if (step > MAX_STEP_NBYTES)
        step = MAX_STEP_NBYTES;
    if (has_room(fd, step) &&
        fallocate(fd, mode_of(fd, *reserved + step), (off_t)*reserved, (off_t)step) == 0)
        *reserved += step;
    else
        *reserved = UINT64_MAX; /* not again */
    return true;
}
