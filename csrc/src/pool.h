/* What the writer and the reader need to know of a pool beside its public calls. */
#ifndef S3DLIO_POOL_H
#define S3DLIO_POOL_H

#include "s3dlio/buffer.h"

/* The size of each block after rounding. */
size_t
s3dlio_pool_block_nbytes(const struct s3dlio_pool *pool);

unsigned
s3dlio_pool_nblocks(const struct s3dlio_pool *pool);

/* Block number 'index', and the number of the block that 'block' lies in, or the count of blocks if
 * it lies in none. */
void *
s3dlio_pool_block(const struct s3dlio_pool *pool, unsigned index);

unsigned
s3dlio_pool_index(const struct s3dlio_pool *pool, const void *block);

/* Gives the pool other blocks, of no larger number, while none is out.  Returns 0, or -EBUSY,
 * -EINVAL or -ENOMEM with nothing changed. */
int
s3dlio_pool_resize(struct s3dlio_pool *pool, size_t block_nbytes, unsigned nblocks);

#endif /* S3DLIO_POOL_H */
