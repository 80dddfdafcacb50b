#include "s3dlio/writer.h"

#include <errno.h>
#include <stdbool.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "clock.h"
#include "direct.h"
#include "engine.h"
#include "handle.h"
#include "options.h"
#include "pool.h"
#include "reserve.h"
#include "round.h"
#include "s3dlio/stage.h"
#include "s3dlio/status.h"
#include "stage_pool.h"
#include "target.h"
#include "transfer.h"

/* Bytes to compress before the clock is looked at; a high level takes about 0.3 s for them. */
#define COMPRESS_NBYTES ((size_t)1 << 20)
/* The longest block that the calling thread writes, where nothing can break it off. */
#define MAX_QUICK_NBYTES ((size_t)16 << 20)
/* Bytes to copy before the clock is looked at. */
#define COPY_NBYTES ((size_t)64 << 20)

/* What is left to do, in this order.  Each step can be left with -EAGAIN and taken up again. */
enum phase { WRITING, ENDING, DRAINING, SYNCING, PUBLISHING, CLOSED };

struct s3dlio_writer {
    struct s3dlio_handle handle;
    struct s3dlio_writer_options options;
    struct s3dlio_target target;
    struct s3dlio_stage *stage;
    struct s3dlio_engine *engine;
    struct s3dlio_io *ios; /* one for each block of the pool, by its number */
    struct s3dlio_io sync;
    enum phase phase;
    int error;
    bool use_engine; /* for every block */
    bool is_quick;   /* the page cache takes blocks sooner than an engine could be asked to */
    struct s3dlio_direct_mode direct;
    /* The file's length until the end of the stream is known: with reserved or padded bytes. */
    bool oversized;
    uint64_t reserved;
    bool syncing;
    bool published;
    bool stuck; /* transfers that could not be ended still use this memory */
    struct s3dlio_patience patience;
    uint64_t wait_ns;
    /* Kept for get_stats() when the parts that know are gone. */
    const char *engine_name;
    bool registered;
    size_t block_nbytes;
    struct s3dlio_stage_totals totals;
};

static int
check_options(struct s3dlio_writer_options *o)
{
    if (o->durability > S3DLIO_DURABILITY_NONE || o->direct > S3DLIO_DIRECT_AUTO)
        return -EINVAL;
    if (o->direct == S3DLIO_DIRECT_AUTO && o->durability == S3DLIO_DURABILITY_NONE)
        o->direct = S3DLIO_DIRECT_OFF;
    if (o->slice_ms < 0)
        return -EINVAL;
    return s3dlio_transfer_defaults(&o->block_nbytes, &o->in_flight, &o->timeout_ms);
}

static int
start_engine(struct s3dlio_writer *writer)
{
    int status;

    if (writer->engine)
        return 0;
    status = s3dlio_engine_open(&writer->engine, writer->target.fd, writer->options.in_flight + 1,
                                writer->direct.align, s3dlio_stage_pool(writer->stage));
    if (!status)
        writer->engine_name = writer->engine->ops->name;
    return status;
}

/* Gives back all that the file needed while it was open.  If the kernel keeps hold of a transfer,
 * its memory and the file must stay; only the name goes. */
static void
release(struct s3dlio_writer *writer)
{
    if (writer->stage)
        s3dlio_stage_get_totals(writer->stage, &writer->totals, sizeof writer->totals);
    writer->phase = CLOSED;
    writer->stuck = s3dlio_engine_close(writer->engine) != 0;
    if (writer->stuck) {
        s3dlio_target_unlink(&writer->target);
    } else {
        s3dlio_stage_free(writer->stage);
        free(writer->ios);
        s3dlio_target_close(&writer->target);
    }
    writer->engine = NULL;
    writer->stage = NULL;
    writer->ios = NULL;
}

/* A writer that could not be begun.  Returns why. */
static int
discard(struct s3dlio_writer *writer, int status)
{
    release(writer);
    free(writer);
    return status;
}

/* All that does not need memory for blocks. */
static int
begin(struct s3dlio_writer **writer_ret, const char *path,
      const struct s3dlio_writer_options *options)
{
    struct s3dlio_writer *writer;
    int status;

    if (!path)
        return -EINVAL;
    writer = calloc(1, sizeof *writer);
    if (!writer)
        return -ENOMEM;
    s3dlio_handle_init(&writer->handle);
    writer->target = (struct s3dlio_target){.fd = -1, .dirfd = -1};
    writer->engine_name = "pwrite";
    status = s3dlio_options_copy(&writer->options, sizeof writer->options, options);
    if (!status)
        status = check_options(&writer->options);
    if (!status)
        status = s3dlio_engine_forced(&writer->use_engine);
    if (!status)
        status = s3dlio_target_open(&writer->target, path, writer->options.no_parents != 0);
    if (!status)
        writer->is_quick = writer->options.durability == S3DLIO_DURABILITY_NONE &&
                           writer->options.block_nbytes <= MAX_QUICK_NBYTES &&
                           s3dlio_is_local(writer->target.fd);
    if (!status)
        status = s3dlio_direct_start(&writer->direct, writer->options.direct, writer->target.fd);
    if (status)
        return discard(writer, status);
    *writer_ret = writer;
    return 0;
}

static int
start_stage(struct s3dlio_writer *writer)
{
    struct s3dlio_stage_options stage = {.struct_nbytes = sizeof stage};
    int status;

    stage.block_nbytes = s3dlio_round_up(writer->options.block_nbytes, writer->direct.align);
    stage.nblocks = writer->options.in_flight + 1;
    stage.zstd_level = writer->options.zstd_level;
    stage.zstd_workers = writer->options.zstd_workers;
    status = s3dlio_stage_new(&writer->stage, &stage);
    if (status)
        return status;
    writer->block_nbytes = s3dlio_pool_block_nbytes(s3dlio_stage_pool(writer->stage));
    writer->ios = calloc(stage.nblocks, sizeof *writer->ios);
    if (!writer->ios)
        return -ENOMEM;
    return writer->use_engine ? start_engine(writer) : 0;
}

int
s3dlio_writer_open(struct s3dlio_writer **writer_ret, const char *path,
                   const struct s3dlio_writer_options *options)
{
    struct s3dlio_writer *writer;
    int status = begin(&writer, path, options);

    if (status)
        return status;
    status = start_stage(writer);
    if (status)
        return discard(writer, status);
    *writer_ret = writer;
    return 0;
}

/*
 * Brings back one transfer, waiting up to 'wait_ms'.
 * Returns 1 if one came back and was good, 0 if none did, or the failure.
 */
static int
reap(struct s3dlio_writer *writer, int wait_ms)
{
    uint64_t begin_ns = wait_ms > 0 ? s3dlio_clock_ns() : 0;
    /* All that the page cache has taken may have to go to the device in one fsync(2). */
    uint64_t timeout_ms = (uint64_t)writer->options.timeout_ms * (writer->syncing ? 10 : 1);
    struct s3dlio_io *io;
    int status = s3dlio_engine_wait(writer->engine, &io, wait_ms);

    if (wait_ms > 0) {
        uint64_t waited_ns = s3dlio_clock_ns() - begin_ns;

        writer->wait_ns += waited_ns;
        writer->patience.waited_ns += waited_ns;
    }
    if (status < 0)
        return status;
    if (status == 0)
        return s3dlio_patience_lost(&writer->patience, timeout_ms) ? -ETIMEDOUT : 0;
    writer->patience.waited_ns = 0;
    if (io == &writer->sync) {
        writer->syncing = false;
        return io->error ? io->error : 1;
    }
    status = s3dlio_direct_judge(&writer->direct, io, writer->target.fd);
    if (status > 0) {
        status = s3dlio_engine_submit(writer->engine, io);
        return status ? status : 1;
    }
    if (status)
        return status;
    (void)s3dlio_stage_release(writer->stage, io->data);
    return 1;
}

/* An engine is not worth its while for the only block of a stream, which is a short one. */
static bool
needs_engine(const struct s3dlio_writer *writer, const struct s3dlio_block *block)
{
    return writer->engine ||
           (block->nbytes == writer->block_nbytes && (writer->direct.on || !writer->is_quick));
}

/* Sends the stage's full block on its way to the file. */
static int
send_block(struct s3dlio_writer *writer)
{
    struct s3dlio_block block;
    struct s3dlio_io *io;
    size_t nbytes;
    unsigned index;
    int status = s3dlio_stage_take(writer->stage, &block);

    if (status)
        return status; /* GCOVR_EXCL_LINE: the stage has just said that its block is full */
    if (s3dlio_direct_switch(&writer->direct, block.offset, writer->target.fd))
        writer->reserved = block.offset;
    index = s3dlio_pool_index(s3dlio_stage_pool(writer->stage), block.data);
    nbytes = writer->direct.on ? s3dlio_round_up(block.nbytes, writer->direct.align) : block.nbytes;
    if (nbytes > block.nbytes) {
        memset((char *)block.data + block.nbytes, 0, nbytes - block.nbytes);
        writer->oversized = true;
    }
    io = &writer->ios[index];
    *io = (struct s3dlio_io){.kind = S3DLIO_IO_WRITE,
                             .data = block.data,
                             .nbytes = nbytes,
                             .offset = block.offset,
                             .needed = block.nbytes, /* not the padding: a limit may forbid it */
                             .block = (int)index,
                             .cached = !writer->direct.on};
    if (!needs_engine(writer, &block)) {
        do {
            (void)s3dlio_io_run(io, writer->target.fd, writer->direct.align);
            status = s3dlio_direct_judge(&writer->direct, io, writer->target.fd);
        } while (status > 0);
        (void)s3dlio_stage_release(writer->stage, block.data);
        return status;
    }
    status = start_engine(writer);
    if (status)
        return status;
    if (writer->direct.on &&
        s3dlio_reserve(&writer->reserved, block.offset + nbytes, writer->target.fd))
        writer->oversized = true;
    status = s3dlio_engine_submit(writer->engine, io);
    writer->registered = writer->engine->registered;
    /* A failure is seen as early as it is known. */
    while (status >= 0) {
        status = reap(writer, 0);
        if (status == 0)
            break;
    }
    return status;
}

/* The first failure is the writer's; -EAGAIN would say that it has none. */
static int
fail(struct s3dlio_writer *writer, int status)
{
    writer->error = status == -EAGAIN ? -EBUSY : status;
    release(writer);
    return writer->error;
}

static int
write_some(struct s3dlio_writer *writer, const char *data, size_t nbytes, size_t *taken)
{
    size_t step = writer->options.zstd_level ? COMPRESS_NBYTES : COPY_NBYTES;

    while (*taken < nbytes) {
        size_t rest = nbytes - *taken;
        size_t some;
        int status =
            s3dlio_stage_write(writer->stage, data + *taken, rest < step ? rest : step, 0, &some);

        *taken += some;
        if (status == 1)
            status = send_block(writer);
        else if (status == -EAGAIN)
            status = reap(writer, S3DLIO_WAIT_MS);
        if (status < 0)
            return fail(writer, status);
        if (*taken < nbytes && s3dlio_patience_slice_over(&writer->patience))
            return -EAGAIN;
    }
    return 0;
}

int
s3dlio_writer_write(struct s3dlio_writer *writer, const void *data, size_t nbytes,
                    size_t *taken_ret)
{
    size_t taken = 0;
    int status = s3dlio_handle_enter(&writer->handle);

    if (!status) {
        if (!taken_ret && writer->options.slice_ms)
            status = -EINVAL;
        else if (writer->error)
            status = writer->error;
        else if (writer->phase != WRITING)
            status = S3DLIO_E_CLOSED;
        if (!status) {
            s3dlio_patience_begin(&writer->patience, writer->options.slice_ms);
            status = write_some(writer, data, nbytes, &taken);
        }
        s3dlio_handle_leave(&writer->handle);
    }
    if (taken_ret)
        *taken_ret = taken;
    return status;
}

int
s3dlio_writer_append(struct s3dlio_writer *writer, const void *data, size_t nbytes)
{
    int appended = 0;

    if (s3dlio_handle_enter(&writer->handle) != 0)
        return 0;
    if (!writer->error && writer->phase == WRITING)
        appended = s3dlio_stage_append(writer->stage, data, nbytes);
    s3dlio_handle_leave(&writer->handle);
    return appended;
}

/* The steps of closing.  Each returns 0 when it is done, 1 to be called again, or a failure. */

static int
end_stream(struct s3dlio_writer *writer)
{
    int status = s3dlio_stage_end(writer->stage, 0);

    if (status == 1)
        status = send_block(writer);
    else if (status == -EAGAIN)
        status = reap(writer, S3DLIO_WAIT_MS);
    else
        return status;
    return status < 0 ? status : 1;
}

static int
drain(struct s3dlio_writer *writer)
{
    int status;

    if (writer->engine && writer->engine->in_flight > 0) {
        status = reap(writer, S3DLIO_WAIT_MS);
        return status < 0 ? status : 1;
    }
    s3dlio_stage_get_totals(writer->stage, &writer->totals, sizeof writer->totals);
    if (writer->oversized && ftruncate(writer->target.fd, (off_t)writer->totals.stored_nbytes) != 0)
        return -errno;
    return 0;
}

static int
synchronize(struct s3dlio_writer *writer)
{
    struct s3dlio_io *sync = &writer->sync;
    int status;

    if (writer->options.durability == S3DLIO_DURABILITY_NONE)
        return s3dlio_target_flush(&writer->target);
    if (sync->kind == S3DLIO_IO_READ) { /* not begun */
        sync->kind = writer->options.durability == S3DLIO_DURABILITY_DATA ? S3DLIO_IO_FDATASYNC
                                                                          : S3DLIO_IO_FSYNC;
        if (!writer->engine)
            return s3dlio_io_run(sync, writer->target.fd, 1);
        writer->syncing = true;
        status = s3dlio_engine_submit(writer->engine, sync);
        if (status)
            return status;
    }
    if (!writer->syncing)
        return 0;
    status = reap(writer, S3DLIO_WAIT_MS);
    return status < 0 ? status : 1;
}

static int
publish(struct s3dlio_writer *writer)
{
    /* The kernel ends the ring of a killed process some time after the process, and what the ring
     * holds, the lock on a hidden name too, would last until then. */
    (void)s3dlio_engine_close(writer->engine);
    writer->engine = NULL;
    return s3dlio_target_publish(
        &writer->target, writer->options.durability == S3DLIO_DURABILITY_FULL, &writer->published);
}

static int
close_some(struct s3dlio_writer *writer)
{
    static int (*const steps[])(struct s3dlio_writer *) = {
        [WRITING] = NULL,        [ENDING] = end_stream,  [DRAINING] = drain,
        [SYNCING] = synchronize, [PUBLISHING] = publish,
    };

    if (writer->phase == WRITING)
        writer->phase = ENDING;
    while (writer->phase != CLOSED) {
        int status = steps[writer->phase](writer);

        if (status < 0)
            return fail(writer, status);
        if (status == 0)
            writer->phase++;
        if (writer->phase != CLOSED && s3dlio_patience_slice_over(&writer->patience))
            return -EAGAIN;
    }
    release(writer);
    return 0;
}

int
s3dlio_writer_close(struct s3dlio_writer *writer)
{
    int status = s3dlio_handle_enter(&writer->handle);

    if (status)
        return status;
    status = writer->error;
    if (!status && writer->phase != CLOSED) {
        s3dlio_patience_begin(&writer->patience, writer->options.slice_ms);
        status = close_some(writer);
    }
    s3dlio_handle_leave(&writer->handle);
    return status;
}

/* Whether a file of so many bytes needs more than to be handed to the page cache as it is. */
static bool
needs_blocks(const struct s3dlio_writer *writer, size_t nbytes)
{
    if (writer->options.zstd_level || writer->use_engine)
        return true;
    return writer->direct.wanted != S3DLIO_DIRECT_OFF &&
           (writer->direct.wanted != S3DLIO_DIRECT_AUTO || nbytes >= writer->options.block_nbytes);
}

int
s3dlio_writer_put(const char *path, const void *data, size_t nbytes,
                  const struct s3dlio_writer_options *options)
{
    struct s3dlio_writer *writer;
    int status = begin(&writer, path, options);

    if (status)
        return status;
    writer->options.slice_ms = 0;
    if (needs_blocks(writer, nbytes)) {
        status = start_stage(writer);
        if (!status)
            status = s3dlio_writer_write(writer, data, nbytes, NULL);
    } else {
        struct s3dlio_io io = {.kind = S3DLIO_IO_WRITE,
                               .data = (void *)data, /* a write only reads it */
                               .nbytes = nbytes,
                               .needed = nbytes,
                               .cached = true};

        status = s3dlio_io_run(&io, writer->target.fd, 1);
        if (status == -EAGAIN)
            status = -EBUSY;
        writer->phase = SYNCING;
    }
    if (!status)
        status = s3dlio_writer_close(writer);
    s3dlio_writer_free(writer);
    return status;
}

void
s3dlio_writer_abort(struct s3dlio_writer *writer)
{
    if (!writer || s3dlio_handle_enter(&writer->handle) != 0)
        return;
    if (writer->phase != CLOSED) {
        writer->error = S3DLIO_E_CLOSED;
        release(writer);
    }
    s3dlio_handle_leave(&writer->handle);
}

int
s3dlio_writer_get_stats(struct s3dlio_writer *writer, struct s3dlio_writer_stats *stats_ret,
                        size_t struct_nbytes)
{
    struct s3dlio_stage_totals totals;
    struct s3dlio_writer_stats stats;
    int status = s3dlio_handle_enter(&writer->handle);

    if (status)
        return status;
    totals = writer->totals;
    if (writer->stage)
        s3dlio_stage_get_totals(writer->stage, &totals, sizeof totals);
    stats = (struct s3dlio_writer_stats){
        .raw_nbytes = totals.raw_nbytes,
        .stored_nbytes = totals.stored_nbytes,
        .nblocks = totals.nblocks,
        .wait_ns = writer->wait_ns,
        .block_nbytes = writer->block_nbytes,
        .engine = writer->engine_name,
        .registered = writer->registered,
        .direct = writer->direct.on,
        .direct_error = writer->direct.error,
        .published = writer->published,
        .raw_crc32c = totals.raw_crc32c,
        .stored_crc32c = totals.stored_crc32c,
    };
    s3dlio_options_return(stats_ret, struct_nbytes, &stats, sizeof stats);
    s3dlio_handle_leave(&writer->handle);
    return 0;
}

void
s3dlio_writer_free(struct s3dlio_writer *writer)
{
    if (!writer)
        return;
    if (s3dlio_handle_is_forked(&writer->handle)) {
        s3dlio_engine_forget(writer->engine);
        s3dlio_target_forget(&writer->target);
        s3dlio_stage_free(writer->stage);
        free(writer->ios);
    } else {
        s3dlio_writer_abort(writer);
        if (writer->stuck)
            return;
    }
    free(writer);
}
