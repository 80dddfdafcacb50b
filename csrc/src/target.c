#define _GNU_SOURCE /* O_TMPFILE, AT_EMPTY_PATH, asprintf() */

#include "target.h"

#include <errno.h>
#include <fcntl.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <unistd.h>

#include "hidden.h"
#include "owner.h"
#include "s3dlio/status.h"

/* As many links in a row as path_resolution(7) follows. */
#define MAX_LINKS 40

static void
close_fd(int *fd)
{
    if (*fd >= 0)
        close(*fd);
    *fd = -1;
}

/* Replaces '*path' by what the link of that name leads to. */
static int
follow_link(char **path)
{
    const char *slash = strrchr(*path, '/');
    char link[PATH_MAX];
    ssize_t nbytes = readlink(*path, link, sizeof link - 1);
    char *next;

    if (nbytes < 0) /* no link any more: to be looked at again */
        return errno == EINVAL || errno == ENOENT ? 0 : -errno;
    if (s3dlio_owner_planted_link(*path))
        return -EACCES;
    link[nbytes] = '\0';
    if (link[0] == '/' || !slash)
        next = strdup(link);
    else if (asprintf(&next, "%.*s/%s", (int)(slash - *path), *path, link) < 0)
        next = NULL;
    if (!next)
        return -ENOMEM;
    free(*path);
    *path = next;
    return 0;
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

/* Gives a file without a name a visible one.  AT_EMPTY_PATH is the shorter way, which kernels
 * before 6.10 keep to CAP_DAC_READ_SEARCH: they say ENOENT without it. */
static int
link_fd(int fd, int dirfd, const char *name)
{
    char path[64];

    if (linkat(fd, "", dirfd, name, AT_EMPTY_PATH) == 0)
        return 0;
    if (errno != ENOENT)
        return -errno;
    snprintf(path, sizeof path, "/proc/self/fd/%d", fd);
    return linkat(AT_FDCWD, path, dirfd, name, AT_SYMLINK_FOLLOW) == 0 ? 0 : -errno;
}

/* Makes a hidden name in 'target->dirfd': for the open file, or with a new file of its own. */
static int
claim_hidden(struct s3dlio_target *target)
{
    bool create = target->fd < 0;
    int status = -EEXIST;

    if (!create)
        (void)flock(target->fd, LOCK_EX | LOCK_NB);
    for (unsigned slot = 0; slot < S3DLIO_HIDDEN_SLOTS && status == -EEXIST; slot++) {
        char hidden[NAME_MAX + 1];

        s3dlio_hidden_name(target->name, slot, hidden);
        for (int tries = 0; tries < 2 && status == -EEXIST; tries++) {
            if (tries > 0 && !s3dlio_hidden_sweep(target->dirfd, hidden))
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
                s3dlio_hidden_is(target->fd, target->dirfd, hidden) == 0) {
                close_fd(&target->fd);
                status = -EEXIST;
                continue;
            }
        }
        memcpy(target->hidden, hidden, sizeof hidden);
    }
    return status == -EEXIST ? -EBUSY : status;
}

/* What link_fd() may need in the end, before Linux 6.10.  Asked for once, as it takes as long as to
 * make a file: where /proc goes away later, the end of a file fails there. */
static bool
has_proc(void)
{
    static atomic_bool seen;

    if (!atomic_load_explicit(&seen, memory_order_relaxed) && access("/proc/self/fd", X_OK) == 0)
        atomic_store_explicit(&seen, true, memory_order_relaxed);
    return atomic_load_explicit(&seen, memory_order_relaxed);
}

static int
open_file(struct s3dlio_target *target)
{
#ifdef O_TMPFILE
    if (has_proc()) {
        target->fd = openat(target->dirfd, ".", O_WRONLY | O_CLOEXEC | O_TMPFILE, 0666);
        if (target->fd >= 0)
            return 0;
        /* Without support: EOPNOTSUPP, or from a kernel before 3.11 EISDIR or ENOENT. */
        if (errno != EOPNOTSUPP && errno != EISDIR && errno != ENOENT)
            return -errno;
    }
#endif
    return claim_hidden(target);
}

/* Refuses what could not be put in place at the end, before anything is written. */
static int
check_path(const char *path, const char *name)
{
    if (!*name || strcmp(name, ".") == 0 || strcmp(name, "..") == 0)
        return -EISDIR;
    if (s3dlio_hidden_is_reserved(name))
        return S3DLIO_E_RESERVED_NAME;
    while (*path) {
        size_t nbytes = strcspn(path, "/");

        if (nbytes > NAME_MAX)
            return -ENAMETOOLONG;
        path += nbytes + (path[nbytes] == '/');
    }
    return 0;
}

/* Opens the folder of 'path' and looks for what it names: '*old_ret', of mode 0 if there is
 * nothing. */
static int
find_place(struct s3dlio_target *target, const char *path, bool no_parents, struct stat *old_ret)
{
    const char *rest;
    int status = open_folder(path, no_parents, &target->dirfd, &rest);

    if (status)
        return status;
    target->path = strdup(rest);
    if (!target->path)
        return -ENOMEM;
    rest = strrchr(target->path, '/');
    target->name = rest ? rest + 1 : target->path;
    status = check_path(target->path, target->name);
    if (status)
        return status;
    if (fstatat(target->dirfd, target->path, old_ret, AT_SYMLINK_NOFOLLOW) != 0) {
        if (errno != ENOENT)
            return -errno;
        old_ret->st_mode = 0;
    }
    return 0;
}

/* Whether a file may take the place of what is there. */
static int
check_old(const struct s3dlio_target *target, const struct stat *old)
{
    struct stat folder;

    if (!old->st_mode)
        return 0;
    if (!S_ISREG(old->st_mode))
        return S_ISDIR(old->st_mode) ? -EISDIR : S3DLIO_E_NOT_REGULAR;
    if (fstat(target->dirfd, &folder) != 0)
        return -errno;
    return s3dlio_owner_planted(&folder, old) ? -EACCES : 0;
}

int
s3dlio_target_open(struct s3dlio_target *target, const char *path, bool no_parents)
{
    char *here = strdup(path);
    struct stat old;
    int status = here ? 0 : -ENOMEM;

    *target = (struct s3dlio_target){.fd = -1, .dirfd = -1};
    if (!*path)
        status = -ENOENT;
    if (!status)
        status = find_place(target, here, no_parents, &old);
    for (int nlinks = 0; !status && S_ISLNK(old.st_mode); nlinks++) {
        s3dlio_target_forget(target);
        status = nlinks < MAX_LINKS ? follow_link(&here) : -ELOOP;
        if (!status)
            status = find_place(target, here, no_parents, &old);
    }
    free(here);
    if (!status)
        status = check_old(target, &old);
    if (!status)
        status = open_file(target);
    if (!status && old.st_mode)
        status = s3dlio_owner_inherit(target->fd, target->dirfd, target->path, &old);
    if (status)
        s3dlio_target_close(target);
    return status;
}

/* Removes the folders that make_folders() made, 'nbytes' of the path being older ones.  It may be
 * memory that has run out, so the path is cut where it is. */
static void
remove_folders(const struct s3dlio_target *target, size_t nbytes)
{
    for (char *end = target->path + strlen(target->path); end > target->path + nbytes; end--) {
        if (*end != '/')
            continue;
        *end = '\0';
        (void)unlinkat(target->dirfd, target->path, AT_REMOVEDIR);
        *end = '/';
    }
}

/*
 * Makes the folders before the name in 'path' and opens the last one; durable ones from the top
 * down, so that no folder lasts whose own name does not.  '*nbytes_ret' receives how much of the
 * path was there before.
 */
static int
make_folders(const struct s3dlio_target *target, bool durable, int *dirfd_ret, size_t *nbytes_ret)
{
    int dirfd = target->dirfd;
    const char *part = target->path;
    int status = 0;

    *nbytes_ret = strlen(target->path);
    while (!status && part != target->name) {
        size_t nbytes = strcspn(part, "/");
        char folder[NAME_MAX + 1];
        int next = -1;

        memcpy(folder, part, nbytes); /* check_path() has seen to its length */
        folder[nbytes] = '\0';
        if (nbytes > 0 && mkdirat(dirfd, folder, 0777) == 0) {
            if (*nbytes_ret > (size_t)(part - target->path))
                *nbytes_ret = (size_t)(part - target->path);
        } else if (nbytes > 0 && errno != EEXIST) {
            status = -errno;
        }
        if (!status && nbytes > 0 && durable && fsync(dirfd) != 0)
            status = -errno;
        if (!status && nbytes > 0) {
            next = openat(dirfd, folder, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
            if (next < 0)
                status = -errno;
        }
        if (next >= 0) {
            if (dirfd != target->dirfd)
                close(dirfd);
            dirfd = next;
        }
        part += nbytes + 1;
    }
    *dirfd_ret = dirfd;
    return status;
}

/* Gives the file its name in 'dirfd', in one step. */
static int
put_in_place(struct s3dlio_target *target, int dirfd)
{
    int status = 0;

    /* A killed writer leaves a hidden name where it needed one: to replace a file, or where the
     * file system has no O_TMPFILE.  Elsewhere there is none to look for, which takes its time. */
    if (!*target->hidden) {
        status = link_fd(target->fd, dirfd, target->name);
        if (status != -EEXIST)
            return status;
        status = claim_hidden(target);
        if (status)
            return status;
    }
    s3dlio_hidden_sweep_all(dirfd, target->name, target->hidden);
    /* Where locks do not reach other hosts, one of them may have taken the name for abandoned. */
    status = s3dlio_hidden_is(target->fd, target->dirfd, target->hidden);
    if (status < 0)
        return status;
    if (status == 0) {
        target->hidden[0] = '\0';
        return -ESTALE;
    }
    if (renameat(target->dirfd, target->hidden, dirfd, target->name) != 0)
        return -errno;
    target->hidden[0] = '\0';
    return 0;
}

int
s3dlio_target_publish(struct s3dlio_target *target, bool durable, bool *published_ret)
{
    int dirfd;
    size_t nbytes;
    int status = make_folders(target, durable, &dirfd, &nbytes);

    *published_ret = false;
    if (!status)
        status = put_in_place(target, dirfd);
    if (status)
        remove_folders(target, nbytes);
    else
        *published_ret = true;
    if (!status && durable && fsync(dirfd) != 0)
        status = -errno;
    if (dirfd != target->dirfd)
        close(dirfd);
    return status;
}

int
s3dlio_target_flush(const struct s3dlio_target *target)
{
    /* The file itself must stay open until it has its name; closing a copy flushes as well. */
    int copy = fcntl(target->fd, F_DUPFD_CLOEXEC, 0);

    /* Without a descriptor to spare the report is lost, but the file need not be. */
    return copy < 0 || close(copy) == 0 ? 0 : -errno;
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
