/* The engine over io_uring; the only file that knows liburing. */
#define _GNU_SOURCE

#include <errno.h>
#include <liburing.h>
#include <stdlib.h>
#include <unistd.h>

#include "engine.h"
#include "pool.h"

/* Registered blocks are pinned: more than this is not taken from the system without being asked. */
#define MAX_REGISTERED_NBYTES ((size_t)256 << 20)

struct uring_engine {
    struct s3dlio_engine base;
    struct io_uring ring;
    bool fixed_file;
    /* The pool whose blocks are being registered, and for each whether it is. */
    const struct s3dlio_pool *pool;
    bool *pinned;
    bool closing;
    /* Transfers that no submission entry was free for. */
    struct s3dlio_io *waiting;
};

static struct uring_engine *
of(struct s3dlio_engine *engine)
{
    return (struct uring_engine *)engine;
}

/* Makes room to register the blocks of 'pool' (Linux 5.19).  Pinned pages save the kernel the
 * look-up for each transfer. */
static bool
prepare_registration(struct uring_engine *uring, const struct s3dlio_pool *pool)
{
    unsigned nblocks = s3dlio_pool_nblocks(pool);

    if (nblocks * s3dlio_pool_block_nbytes(pool) > MAX_REGISTERED_NBYTES)
        return false;
    uring->pinned = calloc(nblocks, sizeof *uring->pinned);
    if (!uring->pinned || io_uring_register_buffers_sparse(&uring->ring, nblocks) != 0)
        return false;
    uring->pool = pool;
    return true;
}

/*
 * Whether a block is registered, which is done when it is first sent: all at once would first clear
 * memory that a short stream does not use, and let the device wait for it.  RLIMIT_MEMLOCK may
 * forbid it; plain buffers then do the same, a little slower.
 */
static bool
is_registered(struct uring_engine *uring, int block)
{
    struct iovec memory;
    __u64 tag = 0;

    if (!uring->base.registered || block < 0)
        return false;
    if (uring->pinned[block])
        return true;
    memory.iov_base = s3dlio_pool_block(uring->pool, (unsigned)block);
    memory.iov_len = s3dlio_pool_block_nbytes(uring->pool);
    uring->pinned[block] =
        io_uring_register_buffers_update_tag(&uring->ring, (unsigned)block, &memory, &tag, 1) == 1;
    uring->base.registered = uring->pinned[block];
    return uring->pinned[block];
}

static int
uring_open(struct s3dlio_engine **engine_ret, int fd, unsigned depth,
           const struct s3dlio_pool *pool)
{
    struct uring_engine *uring = calloc(1, sizeof *uring);
    int status;

    if (!uring)
        return -ENOMEM;
    status = io_uring_queue_init(depth + 1, &uring->ring, 0);
    if (status) {
        free(uring);
        return status;
    }
    /* A child that used this ring would leave the parent waiting for ever. */
    (void)io_uring_ring_dontfork(&uring->ring);
    uring->fixed_file = io_uring_register_files(&uring->ring, &fd, 1) == 0;
    uring->base.registered = pool && prepare_registration(uring, pool);
    *engine_ret = &uring->base;
    return 0;
}

static void
prepare(struct uring_engine *uring, struct io_uring_sqe *sqe, struct s3dlio_io *io)
{
    int fd = uring->fixed_file ? 0 : uring->base.fd;
    void *data = (char *)io->data + io->done;
    unsigned nbytes = (unsigned)(io->nbytes - io->done);
    uint64_t offset = io->offset + io->done;
    bool moves = io->kind == S3DLIO_IO_READ || io->kind == S3DLIO_IO_WRITE;
    bool fixed = moves && is_registered(uring, io->block);

    switch (io->kind) {
    case S3DLIO_IO_READ:
        if (fixed)
            io_uring_prep_read_fixed(sqe, fd, data, nbytes, offset, io->block);
        else
            io_uring_prep_read(sqe, fd, data, nbytes, offset);
        break;
    case S3DLIO_IO_WRITE:
        if (fixed)
            io_uring_prep_write_fixed(sqe, fd, data, nbytes, offset, io->block);
        else
            io_uring_prep_write(sqe, fd, data, nbytes, offset);
        break;
    case S3DLIO_IO_FSYNC:
        io_uring_prep_fsync(sqe, fd, 0);
        break;
    case S3DLIO_IO_FDATASYNC:
        io_uring_prep_fsync(sqe, fd, IORING_FSYNC_DATASYNC);
        break;
    }
    if (uring->fixed_file)
        sqe->flags |= IOSQE_FIXED_FILE;
    io_uring_sqe_set_data(sqe, io);
}

/*
 * Hands entries to the kernel.  What it does not take now, being interrupted or short of memory,
 * stays in the queue and is offered again with the next call.
 */
static int
flush(struct uring_engine *uring)
{
    int status = 0;

    while (uring->waiting) {
        struct io_uring_sqe *sqe = io_uring_get_sqe(&uring->ring);

        if (!sqe)
            break;
        prepare(uring, sqe, uring->waiting);
        uring->waiting = uring->waiting->next;
    }
    if (io_uring_sq_ready(&uring->ring) > 0)
        status = io_uring_submit(&uring->ring);
    if (status == -EINTR || status == -EAGAIN || status == -EBUSY)
        status = 0;
    return status < 0 ? status : 0;
}

static int
uring_submit(struct s3dlio_engine *engine, struct s3dlio_io *io)
{
    struct uring_engine *uring = of(engine);

    io->next = uring->waiting;
    uring->waiting = io;
    /* A failure shows again in the next wait, which also knows what is lost. */
    (void)flush(uring);
    return 0;
}

static int
uring_wait(struct s3dlio_engine *engine, struct s3dlio_io **io_ret, int wait_ms)
{
    struct uring_engine *uring = of(engine);
    struct __kernel_timespec timeout = {wait_ms / 1000, (long long)(wait_ms % 1000) * 1000000};

    for (;;) {
        struct io_uring_cqe *cqe;
        struct s3dlio_io *io;
        int result;
        int status = uring->closing ? 0 : flush(uring);

        if (status)
            return status;
        status = io_uring_peek_cqe(&uring->ring, &cqe);
        if (status == -EAGAIN && uring->closing)
            usleep(500); /* io_uring_enter(2) may be what failed, and would send what was dropped */
        else if (status == -EAGAIN && wait_ms > 0)
            status = io_uring_wait_cqe_timeout(&uring->ring, &cqe, &timeout);
        if (status == -ETIME || status == -EINTR || status == -EAGAIN)
            return 0;
        if (status)
            return status;
        io = io_uring_cqe_get_data(cqe);
        result = cqe->res;
        io_uring_cqe_seen(&uring->ring, cqe);
        if (s3dlio_io_advance(io, result, engine->align) || uring->closing) {
            *io_ret = io;
            return 1;
        }
        io->next = uring->waiting;
        uring->waiting = io;
    }
}

static unsigned
uring_drop(struct s3dlio_engine *engine)
{
    struct uring_engine *uring = of(engine);
    unsigned dropped = 0;

    if (uring->closing)
        return 0;
    dropped = io_uring_sq_ready(&uring->ring);
    for (const struct s3dlio_io *io = uring->waiting; io; io = io->next)
        dropped++;
    uring->closing = true;
    return dropped;
}

static void
uring_free(struct s3dlio_engine *engine)
{
    struct uring_engine *uring = of(engine);

    /* The kernel tears a ring down later, in the background; what it holds is given back now, so
     * that a deleted file's space and its mount are free when the writer is gone. */
    if (uring->fixed_file)
        (void)io_uring_unregister_files(&uring->ring);
    if (uring->pool)
        (void)io_uring_unregister_buffers(&uring->ring);
    io_uring_queue_exit(&uring->ring);
    free(uring->pinned);
    free(engine);
}

static void
uring_forget(struct s3dlio_engine *engine)
{
    close(of(engine)->ring.ring_fd);
}

const struct s3dlio_engine_ops s3dlio_engine_uring = {
    .name = "io_uring",
    .open = uring_open,
    .submit = uring_submit,
    .wait = uring_wait,
    .drop = uring_drop,
    .free = uring_free,
    .forget = uring_forget,
};
