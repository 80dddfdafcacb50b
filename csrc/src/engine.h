/*
 * The few things that a writer or reader needs from the kernel, as a table of functions.
 *
 * An engine belongs to one file descriptor.  Transfers are submitted without waiting, at most
 * 'depth' at a time, and come back from s3dlio_engine_wait() in any order.  What the kernel did
 * only in part, or broke off, is finished before that.
 */
#ifndef S3DLIO_ENGINE_H
#define S3DLIO_ENGINE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/types.h>

struct s3dlio_pool;

enum s3dlio_io_kind { S3DLIO_IO_READ, S3DLIO_IO_WRITE, S3DLIO_IO_FSYNC, S3DLIO_IO_FDATASYNC };

/* One transfer; the caller's until it is submitted, the engine's until it comes back. */
struct s3dlio_io {
    enum s3dlio_io_kind kind;
    void *data;
    size_t nbytes;
    uint64_t offset;
    /* At least so many of 'nbytes' must be done; fewer only for a read that meets the end of the
     * file.  What goes beyond is padding for O_DIRECT: the file may not have it, or not take it. */
    size_t needed;
    /* The block's number in the engine's pool, or -1 for memory of the caller. */
    int block;
    /* Whether it goes through the page cache, and so on from any place. */
    bool cached;
    /* Set by s3dlio_direct_judge(): whether this is its second try, without O_DIRECT. */
    bool retried;
    /* Set by the engine: 0 or -errno, and how many bytes are done. */
    int error;
    size_t done;
    /* The engine's own. */
    unsigned stalls;
    struct s3dlio_io *next;
};

struct s3dlio_engine_ops;

struct s3dlio_engine {
    const struct s3dlio_engine_ops *ops;
    int fd;
    /* What O_DIRECT needs, or 1: a transfer that was cut short goes on from a multiple of it. */
    size_t align;
    unsigned depth;
    unsigned in_flight;
    /* Whether the pool's blocks are registered with the kernel, as far as they have been sent. */
    bool registered;
};

struct s3dlio_engine_ops {
    const char *name;
    /* 'pool' may be NULL. */
    int (*open)(struct s3dlio_engine **engine_ret, int fd, unsigned depth,
                const struct s3dlio_pool *pool);
    int (*submit)(struct s3dlio_engine *engine, struct s3dlio_io *io);
    int (*wait)(struct s3dlio_engine *engine, struct s3dlio_io **io_ret, int wait_ms);
    /* Stops sending: returns how many transfers the kernel was never given.  From here on 'wait'
     * only brings back what it was given, in whatever state. */
    unsigned (*drop)(struct s3dlio_engine *engine);
    /* Frees everything; nothing is in flight. */
    void (*free)(struct s3dlio_engine *engine);
    /* In a child of fork(2): closes what the child inherited, and leaves the rest. */
    void (*forget)(struct s3dlio_engine *engine);
};

extern const struct s3dlio_engine_ops s3dlio_engine_threads;
#ifdef S3DLIO_HAVE_URING
extern const struct s3dlio_engine_ops s3dlio_engine_uring;
#endif

/*
 * s3dlio_engine_forced() says in '*forced_ret' whether S3DLIO_IO_ENGINE names an engine.
 * Returns 0, or S3DLIO_E_BAD_ENGINE when this build has no engine of that name.
 */
int
s3dlio_engine_forced(bool *forced_ret);

/*
 * s3dlio_is_local() says whether the file is on a file system that is known to keep it on this
 * machine: no process and no other machine is asked, which may be slow to answer.
 */
bool
s3dlio_is_local(int fd);

/*
 * s3dlio_engine_open() opens the engine that S3DLIO_IO_ENGINE names, else io_uring, else, where
 * the kernel refuses or the file system is not to be trusted with it, threads.
 * 'align' is what O_DIRECT needs of offsets, or 1.
 */
int
s3dlio_engine_open(struct s3dlio_engine **engine_ret, int fd, unsigned depth, size_t align,
                   const struct s3dlio_pool *pool);

/* Returns 0, or -errno, after which the transfer is still the caller's. */
int
s3dlio_engine_submit(struct s3dlio_engine *engine, struct s3dlio_io *io);

/*
 * s3dlio_engine_wait() waits up to 'wait_ms' for one transfer to finish.
 * Returns 1 with the transfer in '*io_ret', whether it failed or not; 0 when the time passed or a
 * signal came; or -errno when the engine itself failed.
 */
int
s3dlio_engine_wait(struct s3dlio_engine *engine, struct s3dlio_io **io_ret, int wait_ms);

/*
 * s3dlio_engine_close() drops what is not yet sent, waits for what is, and frees the engine.
 * 'engine' may be NULL.  Returns 0, or -ETIMEDOUT when the kernel did not let go of the transfers:
 * then their memory and their descriptor must stay, and so does the engine.
 */
int
s3dlio_engine_close(struct s3dlio_engine *engine);

/* For a child of fork(2).  'engine' may be NULL. */
void
s3dlio_engine_forget(struct s3dlio_engine *engine);

/*
 * s3dlio_io_run() does a transfer at once in the calling thread.  Returns 0 or -errno.
 */
int
s3dlio_io_run(struct s3dlio_io *io, int fd, size_t align);

/* For the engines. */

/* One system call for what is left of a transfer; returns what it did, or -errno. */
ssize_t
s3dlio_io_step(const struct s3dlio_io *io, int fd);

/*
 * s3dlio_io_advance() takes the kernel's answer to a transfer (a count or -errno) into account.
 * Returns true when it is finished, false when the rest must be sent again.
 */
bool
s3dlio_io_advance(struct s3dlio_io *io, ssize_t result, size_t align);

#endif /* S3DLIO_ENGINE_H */
