/*
 * The engine over pread(2) and pwrite(2) in a few threads: for systems without io_uring, and for
 * file systems and sandboxes that forbid it.
 */
#include <errno.h>
#include <pthread.h>
#include <signal.h>
#include <stdlib.h>

#include "clock.h"
#include "engine.h"

/* More threads than this do not make one file faster. */
#define MAX_THREADS 8

struct thread_engine {
    struct s3dlio_engine base;
    pthread_mutex_t lock;
    pthread_cond_t work;
    pthread_cond_t finished;
    /* First in, first out: writes reach the file in order where they can. */
    struct s3dlio_io *todo;
    struct s3dlio_io **todo_end;
    struct s3dlio_io *done;
    bool stop;
    unsigned ntodo;
    unsigned nidle;
    unsigned nthreads;
    unsigned max_threads;
    pthread_t threads[MAX_THREADS];
};

static struct thread_engine *
of(struct s3dlio_engine *engine)
{
    return (struct thread_engine *)engine;
}

static void *
work(void *argument)
{
    struct thread_engine *pool = argument;

    pthread_mutex_lock(&pool->lock);
    for (;;) {
        struct s3dlio_io *io;

        while (!pool->todo && !pool->stop) {
            pool->nidle++;
            pthread_cond_wait(&pool->work, &pool->lock);
            pool->nidle--;
        }
        io = pool->todo;
        if (!io)
            break;
        pool->todo = io->next;
        if (!pool->todo)
            pool->todo_end = &pool->todo;
        pool->ntodo--;
        pthread_mutex_unlock(&pool->lock);
        (void)s3dlio_io_run(io, pool->base.fd, pool->base.align);
        pthread_mutex_lock(&pool->lock);
        io->next = pool->done;
        pool->done = io;
        pthread_cond_signal(&pool->finished);
    }
    pthread_mutex_unlock(&pool->lock);
    return NULL;
}

/* Signals are for the program's own threads. */
static int
start_thread(struct thread_engine *pool)
{
    sigset_t all, before;
    int status;

    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, &before);
    status = pthread_create(&pool->threads[pool->nthreads], NULL, work, pool);
    pthread_sigmask(SIG_SETMASK, &before, NULL);
    if (!status)
        pool->nthreads++;
    return -status;
}

static int
threads_open(struct s3dlio_engine **engine_ret, int fd, unsigned depth,
             const struct s3dlio_pool *blocks)
{
    struct thread_engine *pool = calloc(1, sizeof *pool);
    pthread_condattr_t attributes;

    (void)blocks;
    if (!pool)
        return -ENOMEM;
    pool->base.fd = fd;
    pool->todo_end = &pool->todo;
    pool->max_threads = depth < MAX_THREADS ? depth : MAX_THREADS;
    pthread_mutex_init(&pool->lock, NULL);
    pthread_cond_init(&pool->work, NULL);
    pthread_condattr_init(&attributes);
    pthread_condattr_setclock(&attributes, CLOCK_MONOTONIC);
    pthread_cond_init(&pool->finished, &attributes);
    pthread_condattr_destroy(&attributes);
    *engine_ret = &pool->base;
    return 0;
}

static int
threads_submit(struct s3dlio_engine *engine, struct s3dlio_io *io)
{
    struct thread_engine *pool = of(engine);
    int status = 0;

    pthread_mutex_lock(&pool->lock);
    if (pool->ntodo >= pool->nidle && pool->nthreads < pool->max_threads)
        status = start_thread(pool);
    /* One thread is enough to go on with. */
    if (!status || pool->nthreads > 0) {
        status = 0;
        io->next = NULL;
        *pool->todo_end = io;
        pool->todo_end = &io->next;
        pool->ntodo++;
        pthread_cond_signal(&pool->work);
    }
    pthread_mutex_unlock(&pool->lock);
    return status;
}

static int
threads_wait(struct s3dlio_engine *engine, struct s3dlio_io **io_ret, int wait_ms)
{
    struct thread_engine *pool = of(engine);
    struct timespec deadline = s3dlio_clock_in_ms(wait_ms);
    int waited = 0;

    pthread_mutex_lock(&pool->lock);
    while (!pool->done && waited == 0 && wait_ms > 0)
        waited = pthread_cond_timedwait(&pool->finished, &pool->lock, &deadline);
    *io_ret = pool->done;
    if (pool->done)
        pool->done = pool->done->next;
    pthread_mutex_unlock(&pool->lock);
    return *io_ret ? 1 : 0;
}

static unsigned
threads_drop(struct s3dlio_engine *engine)
{
    struct thread_engine *pool = of(engine);
    unsigned dropped;

    pthread_mutex_lock(&pool->lock);
    dropped = pool->ntodo;
    pool->ntodo = 0;
    pool->todo = NULL;
    pool->todo_end = &pool->todo;
    pthread_mutex_unlock(&pool->lock);
    return dropped;
}

static void
threads_free(struct s3dlio_engine *engine)
{
    struct thread_engine *pool = of(engine);

    pthread_mutex_lock(&pool->lock);
    pool->stop = true;
    pthread_cond_broadcast(&pool->work);
    pthread_mutex_unlock(&pool->lock);
    for (unsigned i = 0; i < pool->nthreads; i++)
        pthread_join(pool->threads[i], NULL);
    pthread_cond_destroy(&pool->finished);
    pthread_cond_destroy(&pool->work);
    pthread_mutex_destroy(&pool->lock);
    free(pool);
}

/* The child has none of the threads, and perhaps a lock that one of them held. */
static void
threads_forget(struct s3dlio_engine *engine)
{
    (void)engine;
}

const struct s3dlio_engine_ops s3dlio_engine_threads = {
    .name = "threads",
    .open = threads_open,
    .submit = threads_submit,
    .wait = threads_wait,
    .drop = threads_drop,
    .free = threads_free,
    .forget = threads_forget,
};
