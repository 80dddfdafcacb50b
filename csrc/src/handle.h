/*
 * What every handle checks at the door: that no other thread is inside, and that it was not
 * inherited through fork(2).
 */
#ifndef S3DLIO_HANDLE_H
#define S3DLIO_HANDLE_H

#include <stdatomic.h>
#include <stdbool.h>

struct s3dlio_handle {
    atomic_bool busy;
    unsigned generation;
};

void
s3dlio_handle_init(struct s3dlio_handle *handle);

/* Returns whether this process is a child of the one that made the handle. */
bool
s3dlio_handle_is_forked(const struct s3dlio_handle *handle);

/* Returns 0, S3DLIO_E_BUSY or S3DLIO_E_FORKED.  After 0, s3dlio_handle_leave() must follow. */
int
s3dlio_handle_enter(struct s3dlio_handle *handle);

void
s3dlio_handle_leave(struct s3dlio_handle *handle);

#endif /* S3DLIO_HANDLE_H */
