/**
 * @file
 * Memory for large transfers: aligned for O_DIRECT, and backed by huge pages where the
 * system has them, because page faults on fresh 4 KiB pages can halve the throughput.
 */
#ifndef S3DLIO_BUFFER_H
#define S3DLIO_BUFFER_H

#include "s3dlio/api.h"

S3DLIO_BEGIN_DECLS

/* cffi: begin */
/**
 * s3dlio_buffer_alloc() maps 'nbytes' (at least 1) of zeroed memory and stores its address
 * in '*data_ret'.
 *
 * The address is a multiple of 2 MiB when 'nbytes' is at least 2 MiB, else of the page size.
 * Memory of 2 MiB and more is advised for huge pages (madvise(2), MADV_HUGEPAGE; a refusal is
 * not an error).  Pages take up memory when they are first touched.
 *
 * Returns 0, -EINVAL for a size of 0 or one near SIZE_MAX, or -ENOMEM.  Free it with
 * s3dlio_buffer_free().
 */
S3DLIO_API int
s3dlio_buffer_alloc(void **data_ret, size_t nbytes);

/**
 * s3dlio_buffer_free() gives memory of s3dlio_buffer_alloc() back.  'nbytes' is the size that
 * was asked for.  'data' may be NULL.
 */
S3DLIO_API void
s3dlio_buffer_free(void *data, size_t nbytes);

/**
 * s3dlio_buffer_advise() asks for huge pages under the whole 2 MiB pages of memory that came
 * from elsewhere, before it is first written.  A refusal is not an error; 'data' may have any
 * alignment.
 */
S3DLIO_API void
s3dlio_buffer_advise(void *data, size_t nbytes);

/**
 * A pool is a fixed number of blocks of one size in one mapping.  It is a memory bound and,
 * through s3dlio_pool_take(), back-pressure.
 */
struct s3dlio_pool;

/**
 * s3dlio_pool_new() makes a pool of 'nblocks' blocks (1 to 65536) of 'block_nbytes' bytes
 * each, rounded up to a multiple of the page size, and stores it in '*pool_ret'.
 *
 * The memory is not inherited by a child of fork(2) (MADV_DONTFORK).  Returns 0, -EINVAL or
 * -ENOMEM.
 */
S3DLIO_API int
s3dlio_pool_new(struct s3dlio_pool **pool_ret, size_t block_nbytes, unsigned nblocks);

/**
 * s3dlio_pool_take() stores the address of a free block in '*block_ret'.
 *
 * 'wait_ms' bounds the wait for one: 0 does not wait, a negative value waits for ever.
 * Returns 0, -EAGAIN when no block became free in time, or the code of s3dlio_pool_fail().
 * Any thread may call it.
 */
S3DLIO_API int
s3dlio_pool_take(struct s3dlio_pool *pool, void **block_ret, int wait_ms);

/**
 * s3dlio_pool_give() returns a block to its pool and wakes one waiter.  Any thread may call it.
 *
 * Returns 0, or -EINVAL for an address that is not a block which is out: given twice, say.
 */
S3DLIO_API int
s3dlio_pool_give(struct s3dlio_pool *pool, void *block);

/**
 * s3dlio_pool_fail() makes every waiting and later s3dlio_pool_take() return 'code' (negative).
 * The first code stays.  Any thread may call it.
 */
S3DLIO_API void
s3dlio_pool_fail(struct s3dlio_pool *pool, int code);

/**
 * s3dlio_pool_free() unmaps all blocks, taken or not, and frees the pool.  'pool' may be NULL.
 * No other thread may be inside a call on it.
 */
S3DLIO_API void
s3dlio_pool_free(struct s3dlio_pool *pool);
/* cffi: end */

S3DLIO_END_DECLS

#endif /* S3DLIO_BUFFER_H */
