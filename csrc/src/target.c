#define _GNU_SOURCE /* O_TMPFILE, AT_EMPTY_PATH, asprintf() */

#include "target.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <sys/xattr.h>
#include <unistd.h>

#include "s3dlio/crc32c.h"
#include "s3dlio/status.h"

/* Writers of one target that may stand between link and rename at the same moment, or, without
 * O_TMPFILE, that may be open at once. */
#define MAX_SLOTS 100
/* As many links in a row as path_resolution(7) follows. */
#define MAX_LINKS 40

static void
close_fd(int *fd)
{
    if (*fd >= 0)
        close(*fd);
    *fd = -1;
}

/*
 * Whether what somebody else has put into a folder like /tmp, where everybody may put things, must
 * be left alone: following their link, or taking over their file's owner and mode, would let them
 * choose where this program writes and who reads it.  The kernel has the same rule for open(2)
 * (fs.protected_symlinks and fs.protected_regular in proc(5)).
 */
static bool
is_planted(const struct stat *folder, const struct stat *thing)
{
    return (folder->st_mode & S_ISVTX) && (folder->st_mode & S_IWOTH) &&
           thing->st_uid != geteuid() && thing->st_uid != folder->st_uid;
}

static bool
is_planted_link(const char *path)
{
    const char *slash = strrchr(path, '/');
    struct stat folder, link;
    char *parent = slash ? strndup(path, (size_t)(slash - path) + 1) : strdup("./");
    bool planted = !parent || stat(parent, &folder) != 0 || lstat(path, &link) != 0 ||
                   is_planted(&folder, &link);

    free(parent);
    return planted;
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
        if (is_planted_link(here)) {
            free(here);
            return -EACCES;
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

/*
 * Takes over the POSIX ACL (acl(5)) of the file to be replaced.  Returns whether the group bits of
 * its mode are those of its group: with an ACL they are only the bound of all its entries.
 */
static bool
inherit_acl(const struct s3dlio_target *target)
{
    static const char name[] = "system.posix_acl_access";
    char path[64 + PATH_MAX];
    char acl[1024];
    ssize_t nbytes;

    /* There is no getxattrat(2) before Linux 6.13. */
    snprintf(path, sizeof path, "/proc/self/fd/%d/%s", target->dirfd, target->path);
    nbytes = lgetxattr(path, name, acl, sizeof acl);
    if (nbytes < 0)
        return errno == ENODATA || errno == EOPNOTSUPP;
    return fsetxattr(target->fd, name, acl, (size_t)nbytes, 0) == 0;
}

/* What replaces a file should be open to the same people; not more, where it cannot be the same. */
static int
inherit_mode(const struct s3dlio_target *target, const struct stat *old)
{
    struct stat new;
    mode_t mode = old->st_mode & 0777;

    if (fstat(target->fd, &new) != 0)
        return -errno;
    if (new.st_uid != old->st_uid || new.st_gid != old->st_gid)
        (void)!fchown(target->fd, old->st_uid, old->st_gid);
    if (!inherit_acl(target))
        mode &= 0707;
    return fchmod(target->fd, mode) == 0 ? 0 : -errno;
}

/* Names of the form that hidden_name() makes would be taken for abandoned files. */
static bool
is_reserved(const char *name)
{
    const char *end = name + strlen(name);
    const char *digits = end;

    while (digits > name && digits[-1] >= '0' && digits[-1] <= '9')
        digits--;
    return name[0] == '.' && end - digits >= 1 && end - digits <= 2 && digits - name > 9 &&
           strncmp(digits - 8, ".s3dlio-", 8) == 0;
}

/* Refuses what could not be put in place at the end, before anything is written. */
static int
check_path(const char *path, const char *name)
{
    if (!*name || strcmp(name, ".") == 0 || strcmp(name, "..") == 0)
        return -EISDIR;
    if (is_reserved(name))
        return S3DLIO_E_RESERVED_NAME;
    while (*path) {
        size_t nbytes = strcspn(path, "/");

        if (nbytes > NAME_MAX)
            return -ENAMETOOLONG;
        path += nbytes + (path[nbytes] == '/');
    }
    return 0;
}

int
s3dlio_target_open(struct s3dlio_target *target, const char *path, bool no_parents)
{
    const char *rest;
    char *followed = NULL;
    struct stat old, folder;
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
    status = check_path(target->path, target->name);
    if (status)
        goto out;
    if (fstatat(target->dirfd, target->path, &old, AT_SYMLINK_NOFOLLOW) != 0) {
        if (errno != ENOENT) {
            status = -errno;
            goto out;
        }
        old.st_mode = 0;
    } else if (!S_ISREG(old.st_mode)) {
        status = S_ISDIR(old.st_mode) ? -EISDIR : S3DLIO_E_NOT_REGULAR;
        goto out;
    } else if (fstat(target->dirfd, &folder) != 0 || is_planted(&folder, &old)) {
        status = -EACCES;
        goto out;
    }
    status = open_file(target);
    if (!status && old.st_mode)
        status = inherit_mode(target, &old);
out:
    free(followed);
    if (status)
        s3dlio_target_close(target);
    return status;
}

/* Removes the folders that make_folders() made, 'nbytes' of the path being older ones. */
static void
remove_folders(const struct s3dlio_target *target, size_t nbytes)
{
    char *path = strdup(target->path);
    char *slash;

    while (path && (slash = strrchr(path, '/')) && (size_t)(slash - path) > nbytes) {
        *slash = '\0';
        (void)unlinkat(target->dirfd, path, AT_REMOVEDIR);
    }
    free(path);
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

    sweep_all(dirfd, target->name);
    if (!*target->hidden) {
        status = link_fd(target->fd, dirfd, target->name);
        if (status != -EEXIST)
            return status;
        status = claim_hidden(target);
        if (status)
            return status;
    }
    /* Where locks do not reach other hosts, one of them may have taken the name for abandoned. */
    if (!is_named(target->fd, target->dirfd, target->hidden)) {
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
