/* Whose a file is, and who may read it: what a new file takes over, and what it must not. */
#ifndef S3DLIO_OWNER_H
#define S3DLIO_OWNER_H

#include <stdbool.h>
#include <sys/stat.h>

/*
 * Whether what somebody else has put into a folder like /tmp, where everybody may put things, must
 * be left alone: following their link, or taking over their file's owner and mode, would let them
 * choose where this program writes and who reads it.  The kernel has the same rule for open(2)
 * (fs.protected_symlinks and fs.protected_regular in proc(5)).
 */
bool
s3dlio_owner_planted(const struct stat *folder, const struct stat *thing);

/* The same for the link at 'path'. */
bool
s3dlio_owner_planted_link(const char *path);

/*
 * s3dlio_owner_inherit() gives the file 'fd' the owner, mode and ACL of the file 'old' at 'path' in
 * 'dirfd', which it will replace: it should be open to the same people, and not to more where it
 * cannot be the same.  Returns 0 or -errno.
 */
int
s3dlio_owner_inherit(int fd, int dirfd, const char *path, const struct stat *old);

#endif /* S3DLIO_OWNER_H */
