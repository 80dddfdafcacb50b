/*
 * O_DIRECT (open(2)) on one file: asked for, had or not, and left again when the first transfer
 * shows that the file system does not mean it.
 */
#ifndef S3DLIO_DIRECT_MODE_H
#define S3DLIO_DIRECT_MODE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "s3dlio/direct.h"

struct s3dlio_io;

struct s3dlio_direct_mode {
    enum s3dlio_direct wanted;
    bool on;
    /* Why it is not on although it is wanted, as -errno. */
    int error;
    /* What O_DIRECT asks of offsets and memory; 1 where it will not be on. */
    size_t align;
};

/*
 * s3dlio_direct_start() sets O_DIRECT on 'fd' if it is wanted and to be had.
 * Returns 0, or S3DLIO_E_NO_DIRECT when it is required and not to be had; then 'mode->error' says
 * why: -EINVAL where the file system refuses, -EOPNOTSUPP where it would accept but go through the
 * page cache all the same.
 */
int
s3dlio_direct_start(struct s3dlio_direct_mode *mode, enum s3dlio_direct wanted, int fd);

/*
 * s3dlio_direct_switch() sets O_DIRECT under S3DLIO_DIRECT_AUTO once the file has got to 'offset'.
 * Returns whether it did so now.
 */
bool
s3dlio_direct_switch(struct s3dlio_direct_mode *mode, uint64_t offset, int fd);

/*
 * s3dlio_direct_for_reading() returns what S3DLIO_DIRECT_AUTO means for a reader of this file.
 */
enum s3dlio_direct
s3dlio_direct_for_reading(int fd, uint64_t nbytes);

/*
 * s3dlio_direct_judge() looks at a transfer that has come back.  One that was refused with EINVAL
 * although it is aligned means that O_DIRECT does not work here: the file leaves it.
 * Returns 1 if the transfer is to be sent again, 0 if it is done, or its failure.
 */
int
s3dlio_direct_judge(struct s3dlio_direct_mode *mode, struct s3dlio_io *io, int fd);

#endif /* S3DLIO_DIRECT_MODE_H */
