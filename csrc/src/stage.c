#include "s3dlio/stage.h"

#include <errno.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdlib.h>

#include "crc32c_impl.h"
#include "handle.h"
#include "options.h"
#include "pool.h"
#include "s3dlio/crc32c.h"
#include "s3dlio/status.h"
#include "s3dlio/zstd.h"
#include "stage_pool.h"

#define DEFAULT_BLOCK_NBYTES ((size_t)4 << 20)
#define DEFAULT_NBLOCKS      9

struct s3dlio_stage {
    struct s3dlio_handle handle;
    struct s3dlio_pool *pool;
    /* For each block whether the sink has it; the pool knows only that it is out. */
    atomic_bool *lent;
    struct s3dlio_zstd_encoder *encoder;
    /* The block that is being filled, or NULL. */
    char *block;
    size_t fill;
    size_t block_nbytes;
    uint32_t block_crc32c;
    /* The block is waiting to be taken. */
    bool full;
    bool ended;
    bool frame_ended;
    int error;
    /* What the sink said, from any thread. */
    atomic_int sink_error;
    /* Of the blocks that were taken; the current block comes on top. */
    struct s3dlio_stage_totals taken;
    uint32_t raw_crc32c;
    uint64_t raw_nbytes;
};

int
s3dlio_stage_new(struct s3dlio_stage **stage_ret, const struct s3dlio_stage_options *options)
{
    struct s3dlio_stage_options o;
    struct s3dlio_stage *stage;
    int status = s3dlio_options_copy(&o, sizeof o, options);

    if (status)
        return status;
    if (o.nblocks == 1 || o.zstd_level < 0 || o.zstd_level > S3DLIO_ZSTD_LEVEL_MAX)
        return -EINVAL;
    stage = calloc(1, sizeof *stage);
    if (!stage)
        return -ENOMEM;
    s3dlio_handle_init(&stage->handle);
    status = s3dlio_pool_new(&stage->pool, o.block_nbytes ? o.block_nbytes : DEFAULT_BLOCK_NBYTES,
                             o.nblocks ? o.nblocks : DEFAULT_NBLOCKS);
    if (!status) {
        stage->lent = calloc(s3dlio_pool_nblocks(stage->pool), sizeof *stage->lent);
        status = stage->lent ? 0 : -ENOMEM;
    }
    if (!status && o.zstd_level)
        status = s3dlio_zstd_encoder_new(&stage->encoder, o.zstd_level, o.zstd_workers);
    if (status) {
        s3dlio_stage_free(stage);
        return status;
    }
    stage->block_nbytes = s3dlio_pool_block_nbytes(stage->pool);
    *stage_ret = stage;
    return 0;
}

struct s3dlio_pool *
s3dlio_stage_pool(const struct s3dlio_stage *stage)
{
    return stage->pool;
}

/* Checksums what was put into the current block, up to 'fill'. */
static void
stored(struct s3dlio_stage *stage, size_t fill)
{
    stage->block_crc32c =
        s3dlio_crc32c(stage->block_crc32c, stage->block + stage->fill, fill - stage->fill);
    stage->fill = fill;
}

/* Copies into the current block, as far as there is room. */
static size_t
copy(struct s3dlio_stage *stage, const char *data, size_t nbytes)
{
    size_t room = stage->block_nbytes - stage->fill;

    if (nbytes > room)
        nbytes = room;
    stage->block_crc32c =
        s3dlio_crc32c_copy(stage->block_crc32c, stage->block + stage->fill, data, nbytes);
    stage->fill += nbytes;
    stage->raw_nbytes += nbytes;
    return nbytes;
}

/* Compresses into the current block and checksums what was read. */
static int
compress(struct s3dlio_stage *stage, const char *data, size_t nbytes, size_t *taken_ret)
{
    struct s3dlio_zstd_in in = {data, nbytes, 0};
    struct s3dlio_zstd_out out = {stage->block, stage->block_nbytes, stage->fill};
    int status = s3dlio_zstd_encoder_write(stage->encoder, &in, &out);

    stage->raw_crc32c = s3dlio_crc32c(stage->raw_crc32c, data, in.pos);
    stage->raw_nbytes += in.pos;
    stored(stage, out.pos);
    *taken_ret = in.pos;
    return status;
}

static int
need_block(struct s3dlio_stage *stage, int wait_ms)
{
    void *block;
    int status;

    if (stage->block)
        return 0;
    status = s3dlio_pool_take(stage->pool, &block, wait_ms);
    if (status)
        return status;
    stage->block = block;
    stage->fill = 0;
    stage->block_crc32c = 0;
    return 0;
}

static int
stage_write(struct s3dlio_stage *stage, const char *data, size_t nbytes, int wait_ms,
            size_t *taken_ret)
{
    int status;

    if (stage->ended)
        return S3DLIO_E_CLOSED;
    while (nbytes > 0) {
        size_t taken = 0;

        if (stage->full)
            return 1;
        status = need_block(stage, wait_ms);
        if (status)
            return status;
        if (stage->encoder)
            status = compress(stage, data, nbytes, &taken);
        else
            taken = copy(stage, data, nbytes);
        data += taken;
        nbytes -= taken;
        *taken_ret += taken;
        if (status)
            return status;
        if (stage->fill == stage->block_nbytes)
            stage->full = true;
    }
    return stage->full ? 1 : 0;
}

static int
stage_end(struct s3dlio_stage *stage, int wait_ms)
{
    int status;

    stage->ended = true;
    if (stage->full)
        return 1;
    if (stage->encoder && !stage->frame_ended) {
        struct s3dlio_zstd_out out;

        status = need_block(stage, wait_ms);
        if (status)
            return status;
        out = (struct s3dlio_zstd_out){stage->block, stage->block_nbytes, stage->fill};
        status = s3dlio_zstd_encoder_end(stage->encoder, &out);
        if (status < 0)
            return status;
        stored(stage, out.pos);
        stage->frame_ended = status == 0;
    }
    if (!stage->block)
        return 0;
    stage->full = true;
    return 1;
}

static int
enter(struct s3dlio_stage *stage)
{
    int status = s3dlio_handle_enter(&stage->handle);

    if (status)
        return status;
    if (!stage->error)
        stage->error = atomic_load_explicit(&stage->sink_error, memory_order_relaxed);
    if (stage->error)
        s3dlio_handle_leave(&stage->handle);
    return stage->error;
}

/* Remembers a failure, but not that there was nothing to do. */
static int
leave(struct s3dlio_stage *stage, int status)
{
    if (status < 0 && status != -EAGAIN && status != S3DLIO_E_CLOSED)
        stage->error = status;
    s3dlio_handle_leave(&stage->handle);
    return status;
}

int
s3dlio_stage_write(struct s3dlio_stage *stage, const void *data, size_t nbytes, int wait_ms,
                   size_t *taken_ret)
{
    int status = enter(stage);

    *taken_ret = 0;
    return status ? status : leave(stage, stage_write(stage, data, nbytes, wait_ms, taken_ret));
}

int
s3dlio_stage_append(struct s3dlio_stage *stage, const void *data, size_t nbytes)
{
    int appended = 0;

    if (enter(stage) != 0)
        return 0;
    /* A block that this fills is for s3dlio_stage_write(), which says that it is full. */
    if (stage->block && !stage->encoder && !stage->ended &&
        nbytes < stage->block_nbytes - stage->fill) {
        if (nbytes > 0)
            (void)copy(stage, data, nbytes);
        appended = 1;
    }
    return leave(stage, appended);
}

static int
stage_reserve(struct s3dlio_stage *stage, int wait_ms, void **data_ret, size_t *nbytes_ret)
{
    int status;

    if (stage->ended)
        return S3DLIO_E_CLOSED;
    if (stage->full)
        return 1;
    status = need_block(stage, wait_ms);
    if (status)
        return status;
    *data_ret = stage->block + stage->fill;
    *nbytes_ret = stage->block_nbytes - stage->fill;
    return 0;
}

int
s3dlio_stage_reserve(struct s3dlio_stage *stage, int wait_ms, void **data_ret, size_t *nbytes_ret)
{
    int status = stage->encoder ? -EINVAL : enter(stage);

    return status ? status : leave(stage, stage_reserve(stage, wait_ms, data_ret, nbytes_ret));
}

int
s3dlio_stage_commit(struct s3dlio_stage *stage, size_t nbytes)
{
    int status = enter(stage);

    if (status)
        return status;
    if (!stage->block || stage->full || stage->encoder ||
        nbytes > stage->block_nbytes - stage->fill) {
        s3dlio_handle_leave(&stage->handle);
        return -EINVAL;
    }
    stored(stage, stage->fill + nbytes);
    stage->raw_nbytes += nbytes;
    stage->full = stage->fill == stage->block_nbytes;
    return leave(stage, stage->full);
}

int
s3dlio_stage_end(struct s3dlio_stage *stage, int wait_ms)
{
    int status = enter(stage);

    return status ? status : leave(stage, stage_end(stage, wait_ms));
}

int
s3dlio_stage_take(struct s3dlio_stage *stage, struct s3dlio_block *block_ret)
{
    struct s3dlio_stage_totals *taken = &stage->taken;

    /* A child of a fork has no blocks (buffer.h). */
    if (s3dlio_handle_is_forked(&stage->handle))
        return S3DLIO_E_FORKED;
    if (!stage->full)
        return -EINVAL;
    *block_ret = (struct s3dlio_block){.data = stage->block,
                                       .nbytes = stage->fill,
                                       .index = taken->nblocks,
                                       .offset = taken->stored_nbytes,
                                       .crc32c = stage->block_crc32c};
    taken->stored_crc32c =
        s3dlio_crc32c_combine(taken->stored_crc32c, stage->block_crc32c, stage->fill);
    taken->stored_nbytes += stage->fill;
    taken->nblocks++;
    atomic_store(&stage->lent[s3dlio_pool_index(stage->pool, stage->block)], true);
    stage->block = NULL;
    stage->fill = 0;
    stage->block_crc32c = 0;
    stage->full = false;
    return 0;
}

int
s3dlio_stage_release(struct s3dlio_stage *stage, void *data)
{
    unsigned index = s3dlio_pool_index(stage->pool, data);

    /* In the child of a fork, another thread of the parent may hold the pool's lock for ever. */
    if (s3dlio_handle_is_forked(&stage->handle))
        return S3DLIO_E_FORKED;
    if (index >= s3dlio_pool_nblocks(stage->pool) ||
        s3dlio_pool_block(stage->pool, index) != data ||
        !atomic_exchange(&stage->lent[index], false))
        return -EINVAL;
    return s3dlio_pool_give(stage->pool, data);
}

int
s3dlio_stage_resize(struct s3dlio_stage *stage, size_t block_nbytes, unsigned nblocks)
{
    int status = enter(stage);

    if (status)
        return status;
    if (nblocks < 2)
        status = -EINVAL;
    else if (stage->block)
        status = -EBUSY;
    else
        status = s3dlio_pool_resize(stage->pool, block_nbytes, nblocks);
    stage->block_nbytes = s3dlio_pool_block_nbytes(stage->pool);
    s3dlio_handle_leave(&stage->handle);
    return status;
}

void
s3dlio_stage_fail(struct s3dlio_stage *stage, int code)
{
    int none = 0;

    if (s3dlio_handle_is_forked(&stage->handle))
        return;
    if (code >= 0) /* that would not be a failure */
        code = -EINVAL;
    atomic_compare_exchange_strong(&stage->sink_error, &none, code);
    s3dlio_pool_fail(stage->pool, code);
}

void
s3dlio_stage_get_totals(const struct s3dlio_stage *stage, struct s3dlio_stage_totals *totals_ret,
                        size_t struct_nbytes)
{
    struct s3dlio_stage_totals totals = stage->taken;

    totals.stored_nbytes += stage->fill;
    totals.stored_crc32c =
        s3dlio_crc32c_combine(totals.stored_crc32c, stage->block_crc32c, stage->fill);
    totals.raw_nbytes = stage->raw_nbytes;
    totals.raw_crc32c = stage->encoder ? stage->raw_crc32c : totals.stored_crc32c;
    s3dlio_options_return(totals_ret, struct_nbytes, &totals, sizeof totals);
}

void
s3dlio_stage_free(struct s3dlio_stage *stage)
{
    if (!stage)
        return;
    s3dlio_zstd_encoder_free(stage->encoder);
    /* The child of a fork has neither the blocks nor the threads that hold the pool's lock. */
    if (!s3dlio_handle_is_forked(&stage->handle))
        s3dlio_pool_free(stage->pool);
    free(stage->lent);
    free(stage);
}
