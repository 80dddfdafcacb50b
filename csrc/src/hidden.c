#define _GNU_SOURCE /* O_CLOEXEC and the rest of fcntl.h */

#include "hidden.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <unistd.h>

#include "s3dlio/crc32c.h"

/* Free names after which no more are looked for.  Writers take the first free one: where so
 * many were at it at once, one that was killed may stand behind those that have ended. */
#define MAX_GAP 8

/* A long name is cut and told apart by its checksum. */
void
s3dlio_hidden_name(const char *name, unsigned slot, char hidden[NAME_MAX + 1])
{
    int room = NAME_MAX + 1 - (int)sizeof ".-00000000.s3dlio-00";
    int nbytes = (int)strnlen(name, NAME_MAX + 1);

    if (nbytes <= room)
        snprintf(hidden, NAME_MAX + 1, ".%.*s.s3dlio-%u", room, name, slot % S3DLIO_HIDDEN_SLOTS);
    else
        snprintf(hidden, NAME_MAX + 1, ".%.*s-%08x.s3dlio-%u", room, name,
                 s3dlio_crc32c(0, name, (size_t)nbytes), slot % S3DLIO_HIDDEN_SLOTS);
}

bool
s3dlio_hidden_is_reserved(const char *name)
{
    const char *end = name + strlen(name);
    const char *digits = end;

    while (digits > name && digits[-1] >= '0' && digits[-1] <= '9')
        digits--;
    return name[0] == '.' && end - digits >= 1 && end - digits <= 2 && digits - name > 9 &&
           strncmp(digits - 8, ".s3dlio-", 8) == 0;
}

int
s3dlio_hidden_is(int fd, int dirfd, const char *hidden)
{
    struct stat open_file, named_file;

    if (fstat(fd, &open_file) != 0)
        return -errno;
    if (fstatat(dirfd, hidden, &named_file, AT_SYMLINK_NOFOLLOW) != 0)
        return errno == ENOENT ? 0 : -errno;
    return open_file.st_dev == named_file.st_dev && open_file.st_ino == named_file.st_ino;
}

/*
 * The lock is taken before the name is removed, and the name checked after: a name that was
 * removed and made again meanwhile belongs to somebody else.
 */
bool
s3dlio_hidden_sweep(int dirfd, const char *hidden)
{
    bool swept = false;
    int fd = openat(dirfd, hidden, O_RDONLY | O_NOFOLLOW | O_NONBLOCK | O_CLOEXEC);

    if (fd < 0)
        return errno == ENOENT;
    if (flock(fd, LOCK_EX | LOCK_NB) == 0 && s3dlio_hidden_is(fd, dirfd, hidden) == 1)
        swept = unlinkat(dirfd, hidden, 0) == 0;
    close(fd);
    return swept;
}

void
s3dlio_hidden_sweep_all(int dirfd, const char *name, const char *own)
{
    unsigned nfree = 0;

    for (unsigned slot = 0; slot < S3DLIO_HIDDEN_SLOTS && nfree < MAX_GAP; slot++) {
        char hidden[NAME_MAX + 1];
        struct stat file;

        s3dlio_hidden_name(name, slot, hidden);
        if (fstatat(dirfd, hidden, &file, AT_SYMLINK_NOFOLLOW) != 0)
            nfree++;
        else if (strcmp(hidden, own) != 0)
            (void)s3dlio_hidden_sweep(dirfd, hidden);
    }
}
