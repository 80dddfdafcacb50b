/*
 * The file that a writer is making: hidden until it is complete, then put in place by one atomic
 * step.
 *
 * Preferred is a file without a name (O_TMPFILE, open(2)), which the kernel removes whatever
 * happens to this process.  Where the file system has none, it has a hidden name (hidden.h).
 * Such a name is also needed for a moment to replace an existing file, as linkat(2) does not.
 *
 * In a folder where everybody may put things (sticky and writable by all, like /tmp), a link or
 * file of somebody else is refused with -EACCES, neither followed nor replaced (owner.h).
 */
#ifndef S3DLIO_TARGET_H
#define S3DLIO_TARGET_H

#include <limits.h>
#include <stdbool.h>

struct s3dlio_target {
    /* The file being made. */
    int fd;
    /* The folder that it is made in: the target's, or the nearest that exists above it. */
    int dirfd;
    /* Where it goes, relative to 'dirfd': folders that are yet to be made, then the name. */
    char *path;
    /* The last part of 'path'. */
    const char *name;
    /* Its hidden name in 'dirfd', or empty while it has none. */
    char hidden[NAME_MAX + 1];
};

/*
 * s3dlio_target_open() begins a file for 'path', following a link.
 *
 * Returns 0; -ENOENT for a missing folder if 'no_parents'; -EISDIR, S3DLIO_E_NOT_REGULAR,
 * S3DLIO_E_RESERVED_NAME; or -errno.
 */
int
s3dlio_target_open(struct s3dlio_target *target, const char *path, bool no_parents);

/*
 * s3dlio_target_publish() puts the file in place, making missing folders, and if 'durable' makes
 * the names last.  Returns 0 or -errno; '*published_ret' tells whether the name stands.
 */
int
s3dlio_target_publish(struct s3dlio_target *target, bool durable, bool *published_ret);

/*
 * s3dlio_target_flush() has the file system report what it kept for close(2): network file systems
 * may find only there that they have no room.  Returns 0 or -errno.
 */
int
s3dlio_target_flush(const struct s3dlio_target *target);

/* s3dlio_target_unlink() removes the hidden name, if the file still has one. */
void
s3dlio_target_unlink(struct s3dlio_target *target);

/* s3dlio_target_close() closes the file, and removes its hidden name if it still has one. */
void
s3dlio_target_close(struct s3dlio_target *target);

/* For a child of fork(2): only closes its copies of the descriptors. */
void
s3dlio_target_forget(struct s3dlio_target *target);

#endif /* S3DLIO_TARGET_H */
