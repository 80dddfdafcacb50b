/**
 * @file
 * The stage turns a stream of chunks of any size into numbered blocks for a sink: it copies each
 * byte once into an aligned block, checksums on the way, and compresses if asked.
 *
 *      loop: s3dlio_stage_write() until everything is taken; whenever it returns 1,
 *            s3dlio_stage_take() the block and hand it to the sink
 *      then: s3dlio_stage_end() likewise, until it returns 0
 *
 * The sink calls s3dlio_stage_release() when a block is stored, from any thread, which makes room
 * for the next one: that is the back-pressure, and the bound on memory.
 */
#ifndef S3DLIO_STAGE_H
#define S3DLIO_STAGE_H

#include "s3dlio/api.h"

S3DLIO_BEGIN_DECLS

/* cffi: begin */
struct s3dlio_stage;

/** How a stage works. */
struct s3dlio_stage_options {
    /** sizeof(struct s3dlio_stage_options); the library fills in fields that it does not cover. */
    size_t struct_nbytes;
    /** Bytes in a full block, rounded up to a multiple of the page size; 0 is 4 MiB. */
    size_t block_nbytes;
    /** Blocks in the pool, at least 2; 0 is 9: eight on their way and one being filled. */
    unsigned nblocks;
    /** 1 to 22 compresses with zstd; 0 stores the bytes as they come. */
    int zstd_level;
    /** Compression threads beside the caller; 0 none, negative one for each processor. */
    int zstd_workers;
    /** 0; makes the size of this struct the same everywhere. */
    unsigned reserved;
};

/** A block as the sink gets it. */
struct s3dlio_block {
    /** The bytes to store, aligned to the page size, and to 2 MiB if the block size is. */
    void *data;
    /** How many they are. */
    size_t nbytes;
    /** Counts from 0. */
    uint64_t index;
    /** Where the block begins in the stored object. */
    uint64_t offset;
    /** CRC32C of the 'nbytes' stored bytes. */
    uint32_t crc32c;
};

/** What a stage has done so far. */
struct s3dlio_stage_totals {
    /** Bytes that went in. */
    uint64_t raw_nbytes;
    /** Bytes in blocks, also in the one that is being filled. */
    uint64_t stored_nbytes;
    /** Blocks that were taken. */
    uint64_t nblocks;
    /** CRC32C of the bytes that went in. */
    uint32_t raw_crc32c;
    /** CRC32C of the bytes in blocks. */
    uint32_t stored_crc32c;
};

/**
 * s3dlio_stage_new() stores a new stage in '*stage_ret'.  'options' may be NULL for the defaults.
 *
 * Returns 0, -EINVAL for options out of range, -ENOMEM, or S3DLIO_E_ZSTD.
 */
S3DLIO_API int
s3dlio_stage_new(struct s3dlio_stage **stage_ret, const struct s3dlio_stage_options *options);

/**
 * s3dlio_stage_write() takes bytes from 'data' and stores their count in '*taken_ret'.  'data' is
 * borrowed for the call.
 *
 * Returns 0 when all 'nbytes' are taken; 1 when a block is full: take it, then call again with the
 * rest; -EAGAIN when no block was free for 'wait_ms' (0 does not wait, negative waits for ever):
 * call again with the rest; or a failure, which sticks: the code of s3dlio_stage_fail(), -ENOMEM,
 * S3DLIO_E_ZSTD.  S3DLIO_E_CLOSED after s3dlio_stage_end() was called.
 *
 * One thread at a time: a second one gets S3DLIO_E_BUSY.
 */
S3DLIO_API int
s3dlio_stage_write(struct s3dlio_stage *stage, const void *data, size_t nbytes, int wait_ms,
                   size_t *taken_ret);

/**
 * s3dlio_stage_append() takes all 'nbytes' bytes, if that is no more than a copy into the block at
 * hand.  It is s3dlio_stage_write() for many small pieces.
 *
 * Returns 1, or 0 with nothing taken when it would be more: call s3dlio_stage_write(), which also
 * tells a failure.
 */
S3DLIO_API int
s3dlio_stage_append(struct s3dlio_stage *stage, const void *data, size_t nbytes);

/**
 * s3dlio_stage_reserve() gives out the room that is left in the block at hand, for a caller that
 * can produce its bytes there without a copy; s3dlio_stage_commit() takes them into the stream.
 * Between them the memory is the caller's; what was not committed is given out again.  For streams
 * that are not compressed.
 *
 * Returns 0 with '*data_ret' and '*nbytes_ret', at least 1; otherwise as s3dlio_stage_write(), and
 * -EINVAL for a compressed stream.
 */
S3DLIO_API int
s3dlio_stage_reserve(struct s3dlio_stage *stage, int wait_ms, void **data_ret, size_t *nbytes_ret);

/**
 * s3dlio_stage_commit() takes the first 'nbytes' of the room that s3dlio_stage_reserve() gave out.
 *
 * Returns 0 or 1 as s3dlio_stage_write(), -EINVAL for more than there is room, or a failure.
 */
S3DLIO_API int
s3dlio_stage_commit(struct s3dlio_stage *stage, size_t nbytes);

/**
 * s3dlio_stage_end() ends the stream: no more writes.
 *
 * Returns 1 while there is a block to take, then 0 when the last one was taken; -EAGAIN and
 * failures as s3dlio_stage_write().  An empty stream has no block, unless it is compressed.
 */
S3DLIO_API int
s3dlio_stage_end(struct s3dlio_stage *stage, int wait_ms);

/**
 * s3dlio_stage_take() hands the full block over to the caller in '*block_ret'.
 *
 * Returns 0, or -EINVAL when no block is ready.  The memory stays the stage's, lent until
 * s3dlio_stage_release().
 */
S3DLIO_API int
s3dlio_stage_take(struct s3dlio_stage *stage, struct s3dlio_block *block_ret);

/**
 * s3dlio_stage_release() returns the memory of a taken block.  'data' is the block's.  Any thread
 * may call it, once for each block.
 *
 * Returns 0, -EINVAL for what is not a taken block (released twice, say), or S3DLIO_E_FORKED.
 */
S3DLIO_API int
s3dlio_stage_release(struct s3dlio_stage *stage, void *data);

/**
 * s3dlio_stage_resize() goes on with 'nblocks' blocks of 'block_nbytes', at least 2 and at most as
 * many as there are, for a store that takes a limited number of blocks, which must then grow with
 * the object.  It is for the thread that writes, when it has taken a block and all that were taken
 * are released.
 *
 * Returns 0; or, with nothing changed, -EBUSY when a block is being filled or still lent, -EINVAL,
 * or -ENOMEM.
 */
S3DLIO_API int
s3dlio_stage_resize(struct s3dlio_stage *stage, size_t block_nbytes, unsigned nblocks);

/**
 * s3dlio_stage_fail() tells the writing thread that the sink has failed with 'code' (negative): a
 * waiting write wakes, and every later one returns the code.  The first code stays.  Any thread
 * may call it.
 */
S3DLIO_API void
s3dlio_stage_fail(struct s3dlio_stage *stage, int code);

/**
 * s3dlio_stage_get_totals() fills '*totals_ret', of 'struct_nbytes' bytes as the caller knows it.
 * Only the thread that writes may call it, between its calls.
 */
S3DLIO_API void
s3dlio_stage_get_totals(const struct s3dlio_stage *stage, struct s3dlio_stage_totals *totals_ret,
                        size_t struct_nbytes);

/**
 * s3dlio_stage_free() frees a stage and the memory of all its blocks, taken or not: the sink must
 * be done with them.  'stage' may be NULL.  In a child of fork(2) only the handle is freed.
 */
S3DLIO_API void
s3dlio_stage_free(struct s3dlio_stage *stage);
/* cffi: end */

S3DLIO_END_DECLS

#endif /* S3DLIO_STAGE_H */
