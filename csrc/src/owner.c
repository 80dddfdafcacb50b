#define _GNU_SOURCE /* S_ISVTX and the rest of sys/stat.h */

#include "owner.h"

#include <errno.h>
#include <limits.h>
#include <stdio.h>
#include <string.h>
#include <sys/xattr.h>
#include <unistd.h>

bool
s3dlio_owner_planted(const struct stat *folder, const struct stat *thing)
{
    return (folder->st_mode & S_ISVTX) && (folder->st_mode & S_IWOTH) &&
           thing->st_uid != geteuid() && thing->st_uid != folder->st_uid;
}

bool
s3dlio_owner_planted_link(const char *path)
{
    const char *slash = strrchr(path, '/');
    struct stat folder, link;
    char parent[PATH_MAX]; /* no link has a longer path */

    snprintf(parent, sizeof parent, "%.*s", slash ? (int)(slash - path) + 1 : 2,
             slash ? path : "./");
    return stat(parent, &folder) != 0 || lstat(path, &link) != 0 ||
           s3dlio_owner_planted(&folder, &link);
}

/*
 * Takes over the POSIX ACL (acl(5)) of the file to be replaced.  Returns whether the group bits of
 * its mode are those of its group: with an ACL they are only the bound of all its entries.
 */
static bool
inherit_acl(int fd, int dirfd, const char *file)
{
    static const char name[] = "system.posix_acl_access";
    char path[64 + PATH_MAX];
    char acl[1024];
    ssize_t nbytes;

    /* There is no getxattrat(2) before Linux 6.13. */
    snprintf(path, sizeof path, "/proc/self/fd/%d/%s", dirfd, file);
    nbytes = lgetxattr(path, name, acl, sizeof acl);
    if (nbytes < 0)
        return errno == ENODATA || errno == EOPNOTSUPP;
    return fsetxattr(fd, name, acl, (size_t)nbytes, 0) == 0;
}

int
s3dlio_owner_inherit(int fd, int dirfd, const char *path, const struct stat *old)
{
    struct stat new;
    mode_t mode = old->st_mode & 0777;

    if (fstat(fd, &new) != 0)
        return -errno;
    if (new.st_uid != old->st_uid || new.st_gid != old->st_gid)
        (void)!fchown(fd, old->st_uid, old->st_gid);
    if (!inherit_acl(fd, dirfd, path))
        mode &= 0707;
    return fchmod(fd, mode) == 0 ? 0 : -errno;
}
