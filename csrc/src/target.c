#define _GNU_SOURCE /* O_TMPFILE, AT_EMPTY_PATH, asprintf() */

#include "target.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <unistd.h>

#include "s3dlio/crc32c.h"
#include "s3dlio/status.h"

/* Writers of one target that may stand between link and rename at the same moment, or, without
 * O_TMPFILE, that may be open at once. */
#define MAX_SLOTS 100
/* As many links in a row as path_resolution(7) follows. */
#define MAX_LINKS 40

static int
close_fd(int *fd)
{
    int result = *fd >= 0 ? close(*fd) : 0;

    *fd = -1;
    return result;
}

/*
 * Follows links at 'path' to the name that is to be replaced, which need not exist.
 * Returns 0 with a new string in '*path_ret', or -errno.
 */
static int
follow_links(const char *path, char **path_ret)
{
    char *here = strdup(path);
    char link[PATH_MAX];

    for (int i = 0; here && i <= MAX_LINKS; i++) {
        ssize_t nbytes = readlink(here, link, sizeof link - 1);
        const char *slash = strrchr(here, '/');
        char *next;

        if (nbytes < 0) { /* EINVAL: no link; ENOENT: a new file; others show when it is opened */
            *path_ret = here;
            return 0;
        }
        link[nbytes] = '\0';
        if (link[0] == '/' || !slash)
            next = strdup(link);
        else if (asprintf(&next, "%.*s/%s", (int)(slash - here), here, link) < 0)
            next = NULL;
        free(here);
        here = next;
    }
    if (!here)
        return -ENOMEM;
    free(here);
    return -ELOOP;
}

/*
 * Opens the folder of 'path', or the nearest above it that exists.  '*rest_ret' points to what of
 * 'path' lies below it.
 */
static int
open_folder(const char *path, bool no_parents, int *dirfd_ret, const char **rest_ret)
{
    char *folder = strdup(path);
    const char *rest = path + strlen(path);
    int status = -ENOENT;

    if (!folder)
        return -ENOMEM;
    while (status == -ENOENT) {
        char *slash = strrchr(folder, '/');

        rest = slash ? path + (slash - folder) + 1 : path;
        if (slash)
            *slash = '\0';
        *dirfd_ret = open(!slash    ? "."
                          : *folder ? folder
                                    : "/",
                          O_RDONLY | O_DIRECTORY | O_CLOEXEC);
        status = *dirfd_ret >= 0 ? 0 : -errno;
        if (no_parents || !slash)
            break;
    }
    free(folder);
    *rest_ret = rest;
    return status;
}

/* Names of one target: '.name.s3dlio-0', '.name.s3dlio-1', ...; a long name is cut and told apart
 * by its checksum. */
static void
hidden_name(const char *name, unsigned slot, char hidden[NAME_MAX + 1])
{
    int room = NAME_MAX + 1 - (int)sizeof ".-00000000.s3dlio-00";
    int nbytes = (int)strnlen(name, NAME_MAX + 1);

    if (nbytes <= room)
        snprintf(hidden, NAME_MAX + 1, ".%.*s.s3dlio-%u", room, name, slot % MAX_SLOTS);
    else
        snprintf(hidden, NAME_MAX + 1, ".%.*s-%08x.s3dlio-%u", room, name,
                 s3dlio_crc32c(0, name, (size_t)nbytes), slot % MAX_SLOTS);
}

/* Whether 'name' in 'dirfd' is still the file that 'fd' is. */
static bool
is_named(int fd, int dirfd, const char *name)
{
    struct stat open_file, named_file;

    return fstat(fd, &open_file) == 0 &&
           fstatat(dirfd, name, &named_file, AT_SYMLINK_NOFOLLOW) == 0 &&
           open_file.st_dev == named_file.st_dev && open_file.st_ino == named_file.st_ino;
}

/*
 * Removes the hidden name if nobody holds its lock.  Returns whether the name is free now.
 * The lock is taken before the name is removed, and the name checked after: a name that was
 * removed and made again meanwhile belongs to somebody else.
 */
static bool
sweep(int dirfd, const char *hidden)
{
    bool swept = false;
    int fd = openat(dirfd, hidden, O_RDONLY | O_NOFOLLOW | O_NONBLOCK | O_CLOEXEC);

    if (fd < 0)
        return errno == ENOENT;
    if (flock(fd, LOCK_EX | LOCK_NB) == 0 && is_named(fd, dirfd, hidden))
        swept = unlinkat(dirfd, hidden, 0) == 0;
    close(fd);
    return swept;
}

/* Removes what killed writers of this target left: from the first name on, up to two free ones. */
static void
sweep_all(int dirfd, const char *name)
{
    unsigned nfree = 0;

    for (unsigned slot = 0; slot < MAX_SLOTS && nfree < 2; slot++) {
        char hidden[NAME_MAX + 1];
        struct stat file;

        hidden_name(name, slot, hidden);
        if (fstatat(dirfd, hidden, &file, AT_SYMLINK_NOFOLLOW) != 0)
            nfree++;
        else
            (void)sweep(dirfd, hidden);
    }
}

/* Gives a file without a name a visible one.  Without /proc there is only AT_EMPTY_PATH, which
 * older kernels keep to CAP_DAC_READ_SEARCH. */
static int
link_fd(int fd, int dirfd, const char *name)
{
    char path[64];

    snprintf(path, sizeof path, "/proc/self/fd/%d", fd);
    if (linkat(AT_FDCWD, path, dirfd, name, AT_SYMLINK_FOLLOW) == 0)
        return 0;
    if (errno != ENOENT)
        return -errno;
    return linkat(fd, "", dirfd, name, AT_EMPTY_PATH) == 0 ? 0 : -errno;
}

/* Makes a hidden name in 'target->dirfd': for the open file, or with a new file of its own. */
static int
claim_hidden(struct s3dlio_target *target)
{
    bool create = target->fd < 0;
    int status = -EEXIST;

    for (unsigned slot = 0; slot < MAX_SLOTS && status == -EEXIST; slot++) {
        char hidden[NAME_MAX + 1];

        hidden_name(target->name, slot, hidden);
        for (int tries = 0; tries < 2 && status == -EEXIST; tries++) {
            if (tries > 0 && !sweep(target->dirfd, hidden))
                break;
            if (create) {
                target->fd =
                    openat(target->dirfd, hidden, O_WRONLY | O_CLOEXEC | O_CREAT | O_EXCL, 0666);
                status = target->fd >= 0 ? 0 : -errno;
            } else {
                status = link_fd(target->fd, target->dirfd, hidden);
            }
        }
        if (status)
            continue;
        if (create) {
            /* Between its making and this lock the name may have looked abandoned: whoever has the
             * lock is about to remove it, or already has. */
            if ((flock(target->fd, LOCK_EX | LOCK_NB) != 0 && errno == EWOULDBLOCK) ||
                !is_named(target->fd, target->dirfd, hidden)) {
                close_fd(&target->fd);
                status = -EEXIST;
                continue;
            }
        }
        memcpy(target->hidden, hidden, sizeof hidden);
    }
    return status == -EEXIST ? -EBUSY : status;
}

static bool
has_proc(void)
{
    return access("/proc/self/fd", X_OK) == 0;
}

static int
open_file(struct s3dlio_target *target)
{
    int status;

#ifdef O_TMPFILE
    if (has_proc()) {
        target->fd = openat(target->dirfd, ".", O_WRONLY | O_CLOEXEC | O_TMPFILE, 0666);
        if (target->fd >= 0) {
            /* Held for the moment when it gets a hidden name. */
            (void)flock(target->fd, LOCK_EX | LOCK_NB);
            return 0;
        }
        /* Without support: EOPNOTSUPP, or from a kernel before 3.11 EISDIR or ENOENT. */
        if (errno != EOPNOTSUPP && errno != EISDIR && errno != ENOENT)
            return -errno;
    }
#endif
    return claim_hidden(target);
}

/* What replaces a file should be open to the same people. */
static int
inherit_mode(int fd, const struct stat *old)
{
    struct stat new;
    mode_t mode = old->st_mode & 07777;

    if (fstat(fd, &new) != 0)
        return -errno;
    /* Programs that run as their owner must not become programs that run as this one. */
    if ((new.st_uid != old->st_uid || new.st_gid != old->st_gid) &&
        fchown(fd, old->st_uid, old->st_gid) != 0)
        mode &= 0777;
    if ((new.st_mode & 07777) != mode && fchmod(fd, mode) != 0)
        return -errno;
    return 0;
}

int
s3dlio_target_open(struct s3dlio_target *target, const char *path, bool no_parents)
{
    const char *rest;
    char *followed = NULL;
    struct stat old;
    int status;

    *target = (struct s3dlio_target){.fd = -1, .dirfd = -1};
    if (!*path)
        return -ENOENT;
    status = follow_links(path, &followed);
    if (status)
        return status;
    status = open_folder(followed, no_parents, &target->dirfd, &rest);
    if (status)
        goto out;
    target->path = strdup(rest);
    if (!target->path) {
        status = -ENOMEM;
        goto out;
    }
    rest = strrchr(target->path, '/');
    target->name = rest ? rest + 1 : target->path;
    if (!*target->name || strcmp(target->name, ".") == 0 || strcmp(target->name, "..") == 0) {
        status = -EISDIR;
        goto out;
    }
    if (fstatat(target->dirfd, target->path, &old, AT_SYMLINK_NOFOLLOW) != 0) {
        if (errno != ENOENT) {
            status = -errno;
            goto out;
        }
        old.st_mode = 0;
    } else if (!S_ISREG(old.st_mode)) {
        status = S_ISDIR(old.st_mode) ? -EISDIR : S3DLIO_E_NOT_REGULAR;
        goto out;
    }
    status = open_file(target);
    if (!status && old.st_mode)
        status = inherit_mode(target->fd, &old);
out:
    free(followed);
    if (status)
        s3dlio_target_close(target);
    return status;
}

/* Makes the folders before the name in 'path' and opens the last one; durable ones from the top
 * down, so that no folder lasts whose own name does not. */
static int
make_folders(const struct s3dlio_target *target, bool durable, int *dirfd_ret)
{
    const char *part = target->path;
    int status = 0;
    int dirfd = fcntl(target->dirfd, F_DUPFD_CLOEXEC, 0);

    if (dirfd < 0)
        return -errno;
    while (!status && part != target->name) {
        const char *slash = strchr(part, '/');
        char folder[NAME_MAX + 1];
        int next;

        if (slash == part) { /* 'a//b' */
            part++;
            continue;
        }
        if (slash - part > NAME_MAX) {
            status = -ENAMETOOLONG;
            break;
        }
        memcpy(folder, part, (size_t)(slash - part));
        folder[slash - part] = '\0';
        if (mkdirat(dirfd, folder, 0777) != 0 && errno != EEXIST)
            status = -errno;
        else if (durable && fsync(dirfd) != 0)
            status = -errno;
        if (status)
            break;
        next = openat(dirfd, folder, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
        if (next < 0) {
            status = -errno;
            break;
        }
        close(dirfd);
        dirfd = next;
        part = slash + 1;
    }
    if (status)
        close(dirfd);
    else
        *dirfd_ret = dirfd;
    return status;
}

int
s3dlio_target_publish(struct s3dlio_target *target, bool durable, bool *published_ret)
{
    int dirfd;
    int status;

    *published_ret = false;
    status = make_folders(target, durable, &dirfd);
    if (status)
        return status;
    sweep_all(dirfd, target->name);
    if (!*target->hidden) {
        status = link_fd(target->fd, dirfd, target->name);
        if (status == -EEXIST)
            status = claim_hidden(target);
        else if (!status)
            *published_ret = true;
    }
    if (!status && *target->hidden) {
        if (renameat(target->dirfd, target->hidden, dirfd, target->name) == 0)
            *published_ret = true;
        else
            status = -errno;
    }
    if (*published_ret) {
        target->hidden[0] = '\0';
        if (durable && fsync(dirfd) != 0)
            status = -errno;
    }
    close(dirfd);
    return status;
}

int
s3dlio_target_flush(const struct s3dlio_target *target)
{
    /* The file itself must stay open until it has its name; closing a copy flushes as well. */
    int copy = fcntl(target->fd, F_DUPFD_CLOEXEC, 0);

    return copy >= 0 && close(copy) == 0 ? 0 : -errno;
}

void
s3dlio_target_unlink(struct s3dlio_target *target)
{
    if (*target->hidden)
        (void)unlinkat(target->dirfd, target->hidden, 0);
    target->hidden[0] = '\0';
}

void
s3dlio_target_close(struct s3dlio_target *target)
{
    s3dlio_target_unlink(target);
    s3dlio_target_forget(target);
}

void
s3dlio_target_forget(struct s3dlio_target *target)
{
    close_fd(&target->fd);
    close_fd(&target->dirfd);
    free(target->path);
    target->path = NULL;
}
