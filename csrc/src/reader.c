#define _GNU_SOURCE /* O_CLOEXEC, O_NONBLOCK with the rest of fcntl.h */

#include "s3dlio/reader.h"

#include <errno.h>
#include <fcntl.h>
#include <stdbool.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "crc32c_impl.h"
#include "direct.h"
#include "engine.h"
#include "handle.h"
#include "options.h"
#include "pool.h"
#include "round.h"
#include "s3dlio/crc32c.h"
#include "s3dlio/status.h"
#include "transfer.h"

/*
 * A range is read in pieces: the blocks of the file that it touches.  Each is on its way in a slot,
 * piece number modulo the slots; they come back in any order, and their checksums are combined in
 * the order of the file.
 */
struct slot {
    struct s3dlio_io io; /* first, so that a transfer that comes back leads to its slot */
    bool done;
    /* The part of the range that this piece holds. */
    char *data;
    size_t nbytes;
    uint32_t crc32c;
    /* Where that part begins in the transfer, if this goes through a block of the pool. */
    bool bounce;
    size_t skip;
};

/* The read that is going on. */
struct range {
    bool active;
    char *data;
    size_t nbytes;
    uint64_t offset;
    bool want_crc32c;
    /* Pieces: [first, next) are sent, of these [first, head) are done and combined; 'end' is one
     * past the last. */
    uint64_t head, next, end;
    size_t ndone;
    uint32_t crc32c;
    int error;
};

struct s3dlio_reader {
    struct s3dlio_handle handle;
    struct s3dlio_reader_options options;
    int fd;
    uint64_t nbytes;
    struct s3dlio_direct_mode direct;
    bool use_engine;
    bool stuck;
    struct s3dlio_engine *engine;
    const char *engine_name;
    struct s3dlio_pool *pool; /* for pieces that O_DIRECT cannot put where they belong */
    struct slot *slots;
    struct range range;
    struct s3dlio_patience patience;
};

static int
open_regular(struct s3dlio_reader *reader, const char *path)
{
    struct stat file;
    char byte;

    /* O_NONBLOCK: a FIFO without a writer would keep open() waiting. */
    reader->fd = open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK);
    if (reader->fd < 0 || fstat(reader->fd, &file) != 0)
        return -errno;
    if (!S_ISREG(file.st_mode))
        return S_ISDIR(file.st_mode) ? -EISDIR : S3DLIO_E_NOT_REGULAR;
    /* Files of /proc have content but no size; taking them for empty would lose it in silence. */
    if (file.st_size == 0 && pread(reader->fd, &byte, 1, 0) > 0 &&
        (fstat(reader->fd, &file) != 0 || file.st_size == 0))
        return S3DLIO_E_NOT_REGULAR;
    /* Some kernels answer reads of such a file with EAGAIN instead of waiting for the device. */
    if (fcntl(reader->fd, F_SETFL, 0) != 0)
        return -errno;
    reader->nbytes = (uint64_t)file.st_size;
    return 0;
}

/* Only a direct reader bounces; the blocks' memory is not touched before one does. */
static int
start_pool(struct s3dlio_reader *reader)
{
    if (!reader->direct.on || reader->pool)
        return 0;
    return s3dlio_pool_new(&reader->pool, reader->options.block_nbytes, reader->options.in_flight);
}

static int
start_engine(struct s3dlio_reader *reader)
{
    int status;

    if (reader->engine)
        return 0;
    status = start_pool(reader);
    if (status)
        return status;
    status = s3dlio_engine_open(&reader->engine, reader->fd, reader->options.in_flight,
                                reader->direct.align, NULL);
    if (!status)
        reader->engine_name = reader->engine->ops->name;
    return status;
}

int
s3dlio_reader_open(struct s3dlio_reader **reader_ret, const char *path,
                   const struct s3dlio_reader_options *options)
{
    struct s3dlio_reader *reader;
    struct s3dlio_reader_options *o;
    int status;

    if (!path)
        return -EINVAL;
    reader = calloc(1, sizeof *reader);
    if (!reader)
        return -ENOMEM;
    s3dlio_handle_init(&reader->handle);
    reader->fd = -1;
    reader->engine_name = "pread";
    o = &reader->options;
    status = s3dlio_options_copy(o, sizeof *o, options);
    if (!status && (o->slice_ms < 0 || o->direct > S3DLIO_DIRECT_AUTO))
        status = -EINVAL;
    if (!status)
        status = s3dlio_transfer_defaults(&o->block_nbytes, &o->in_flight, &o->timeout_ms);
    if (!status)
        status = s3dlio_engine_forced(&reader->use_engine);
    if (!status)
        status = open_regular(reader, path);
    if (!status && o->direct == S3DLIO_DIRECT_AUTO)
        o->direct = s3dlio_direct_for_reading(reader->fd, reader->nbytes);
    if (!status)
        status = s3dlio_direct_start(&reader->direct, o->direct, reader->fd);
    if (!status) {
        o->block_nbytes = s3dlio_round_up(o->block_nbytes, reader->direct.align);
        reader->slots = calloc(o->in_flight, sizeof *reader->slots);
        if (!reader->slots)
            status = -ENOMEM;
    }
    if (!status && reader->use_engine)
        status = start_engine(reader);
    if (status) {
        s3dlio_reader_free(reader);
        return status;
    }
    *reader_ret = reader;
    return 0;
}

uint64_t
s3dlio_reader_nbytes(const struct s3dlio_reader *reader)
{
    return reader->nbytes;
}

int
s3dlio_reader_is_direct(const struct s3dlio_reader *reader)
{
    return reader->direct.on;
}

const char *
s3dlio_reader_engine(const struct s3dlio_reader *reader)
{
    return reader->engine_name;
}

static struct slot *
slot_of(struct s3dlio_reader *reader, uint64_t piece)
{
    return &reader->slots[piece % reader->options.in_flight];
}

/* Describes piece number 'piece' of the file in its slot. */
static void
plan(struct s3dlio_reader *reader, uint64_t piece)
{
    const struct range *range = &reader->range;
    struct slot *slot = slot_of(reader, piece);
    uint64_t block = reader->options.block_nbytes;
    uint64_t begin = piece * block > range->offset ? piece * block : range->offset;
    uint64_t range_end = range->offset + range->nbytes;
    uint64_t end = (piece + 1) * block < range_end ? (piece + 1) * block : range_end;
    uint64_t io_begin = begin - begin % reader->direct.align;
    uint64_t io_end = s3dlio_round_up(end, reader->direct.align);

    *slot = (struct slot){.data = range->data + (begin - range->offset),
                          .nbytes = (size_t)(end - begin),
                          .skip = (size_t)(begin - io_begin)};
    slot->bounce = reader->direct.align > 1 && (io_begin != begin || io_end != end ||
                                                (uintptr_t)slot->data % reader->direct.align != 0);
    slot->io = (struct s3dlio_io){
        .kind = S3DLIO_IO_READ,
        .data = slot->data,
        .nbytes = (size_t)(end - begin),
        .offset = begin,
        .needed = (size_t)(end - begin),
        .block = -1,
    };
    if (slot->bounce) {
        slot->io.data = s3dlio_pool_block(reader->pool, (unsigned)(slot - reader->slots));
        slot->io.nbytes = (size_t)(io_end - io_begin);
        slot->io.offset = io_begin;
        slot->io.needed = (size_t)(end - io_begin);
    }
}

/* Takes over what a transfer has read. */
static int
finish_piece(struct s3dlio_reader *reader, struct slot *slot)
{
    struct range *range = &reader->range;
    const char *bounced;

    /* The range was cut to the file's length when the read began. */
    if (slot->io.done < slot->io.needed)
        return S3DLIO_E_TRUNCATED;
    bounced = (char *)slot->io.data + slot->skip;
    if (slot->bounce && range->want_crc32c)
        slot->crc32c = s3dlio_crc32c_copy(0, slot->data, bounced, slot->nbytes);
    else if (slot->bounce)
        memcpy(slot->data, bounced, slot->nbytes);
    else if (range->want_crc32c)
        slot->crc32c = s3dlio_crc32c(0, slot->data, slot->nbytes);
    slot->done = true;
    while (range->head < range->next && slot_of(reader, range->head)->done) {
        slot = slot_of(reader, range->head++);
        range->crc32c = s3dlio_crc32c_combine(range->crc32c, slot->crc32c, slot->nbytes);
        range->ndone += slot->nbytes;
    }
    return 0;
}

static int
reap(struct s3dlio_reader *reader, int wait_ms)
{
    uint64_t begin_ns = s3dlio_clock_ns();
    struct s3dlio_io *io;
    int status = s3dlio_engine_wait(reader->engine, &io, wait_ms);

    reader->patience.waited_ns += s3dlio_clock_ns() - begin_ns;
    if (status < 0)
        return status;
    if (status == 0)
        return s3dlio_patience_lost(&reader->patience, (uint64_t)reader->options.timeout_ms)
                   ? -ETIMEDOUT
                   : 0;
    reader->patience.waited_ns = 0;
    status = s3dlio_direct_judge(&reader->direct, io, reader->fd);
    if (status > 0)
        return s3dlio_engine_submit(reader->engine, io);
    return status ? status : finish_piece(reader, (struct slot *)io);
}

/* A range within one block, before there is an engine: not worth one. */
static int
read_alone(struct s3dlio_reader *reader)
{
    struct slot *slot = slot_of(reader, reader->range.head);
    int status = start_pool(reader);

    if (status)
        return status;
    plan(reader, reader->range.next++);
    do {
        (void)s3dlio_io_run(&slot->io, reader->fd, reader->direct.align);
        status = s3dlio_direct_judge(&reader->direct, &slot->io, reader->fd);
    } while (status > 0);
    return status ? status : finish_piece(reader, slot);
}

/* Returns 0 when the range is read, 1 when the slice is over, or a failure. */
static int
read_some(struct s3dlio_reader *reader)
{
    struct range *range = &reader->range;
    int status;

    if (range->head == range->end)
        return 0;
    if (!reader->engine && range->end - range->head == 1)
        return read_alone(reader);
    status = start_engine(reader);
    while (!status && range->head < range->end) {
        while (!status && range->next < range->end &&
               range->next < range->head + reader->options.in_flight) {
            plan(reader, range->next);
            status = s3dlio_engine_submit(reader->engine, &slot_of(reader, range->next)->io);
            if (!status)
                range->next++;
        }
        if (!status)
            status = reap(reader, S3DLIO_WAIT_MS);
        if (!status && range->head < range->end && s3dlio_patience_slice_over(&reader->patience))
            return 1;
    }
    return status;
}

static int
begin(struct s3dlio_reader *reader, void *data, size_t nbytes, uint64_t offset, bool want_crc32c)
{
    struct range *range = &reader->range;
    uint64_t block = reader->options.block_nbytes;

    if (reader->stuck)
        return S3DLIO_E_CLOSED;
    if (offset > reader->nbytes)
        offset = reader->nbytes;
    if (nbytes > reader->nbytes - offset)
        nbytes = (size_t)(reader->nbytes - offset);
    if (range->active)
        return range->data == data && range->nbytes == nbytes && range->offset == offset &&
                       range->want_crc32c == want_crc32c
                   ? 0
                   : -EINVAL;
    *range = (struct range){.active = true,
                            .data = data,
                            .nbytes = nbytes,
                            .offset = offset,
                            .want_crc32c = want_crc32c,
                            .head = offset / block,
                            .next = offset / block};
    range->end = nbytes ? (offset + nbytes - 1) / block + 1 : range->head;
    reader->patience.waited_ns = 0;
    return 0;
}

/* Ends the read: nothing is on its way afterwards, or the reader is stuck. */
static int
quiesce(struct s3dlio_reader *reader)
{
    reader->range.active = false;
    if (!reader->engine || reader->engine->in_flight == 0)
        return 0;
    reader->stuck = s3dlio_engine_close(reader->engine) != 0;
    if (reader->stuck)
        return -ETIMEDOUT;
    reader->engine = NULL;
    return 0;
}

int64_t
s3dlio_reader_read(struct s3dlio_reader *reader, void *data, size_t nbytes, uint64_t offset,
                   uint32_t *crc32c_ret)
{
    struct range *range = &reader->range;
    int64_t result = s3dlio_handle_enter(&reader->handle);

    if (result)
        return result;
    result = begin(reader, data, nbytes, offset, crc32c_ret != NULL);
    if (!result) {
        s3dlio_patience_begin(&reader->patience, reader->options.slice_ms);
        result = read_some(reader);
        if (result == 1) {
            result = -EAGAIN;
        } else {
            if (quiesce(reader) != 0)
                result = -ETIMEDOUT;
            /* Of the kernel, as after too many tries: the caller would take it for a slice. */
            if (result == -EAGAIN)
                result = -EBUSY;
            if (!result)
                result = (int64_t)range->ndone;
            if (crc32c_ret)
                *crc32c_ret = range->crc32c;
        }
    }
    s3dlio_handle_leave(&reader->handle);
    return result;
}

int
s3dlio_reader_cancel(struct s3dlio_reader *reader)
{
    int status = s3dlio_handle_enter(&reader->handle);

    if (status)
        return status;
    status = quiesce(reader);
    s3dlio_handle_leave(&reader->handle);
    return status;
}

void
s3dlio_reader_free(struct s3dlio_reader *reader)
{
    if (!reader)
        return;
    if (s3dlio_handle_is_forked(&reader->handle)) {
        s3dlio_engine_forget(reader->engine);
    } else if (reader->stuck || s3dlio_engine_close(reader->engine) != 0) {
        return; /* the kernel still writes to this memory */
    } else {
        s3dlio_pool_free(reader->pool);
    }
    if (reader->fd >= 0)
        close(reader->fd);
    free(reader->slots);
    free(reader);
}
