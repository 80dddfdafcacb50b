#define _GNU_SOURCE /* MADV_HUGEPAGE, MADV_DONTFORK */

#include "s3dlio/buffer.h"

#include <errno.h>
#include <pthread.h>
#include <stdbool.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <unistd.h>

#include "clock.h"
#include "pool.h"
#include "round.h"

#define HUGE_PAGE  ((size_t)2 << 20)
#define MAX_BLOCKS 65536

static size_t
page_nbytes(void)
{
    return (size_t)sysconf(_SC_PAGESIZE);
}

/* Maps memory without advice. */
static int
map_aligned(char **data_ret, size_t nbytes)
{
    size_t align = nbytes >= HUGE_PAGE ? HUGE_PAGE : page_nbytes();
    size_t spare = align - page_nbytes();
    size_t head;
    char *map;

    if (nbytes == 0 || nbytes > SIZE_MAX / 2)
        return -EINVAL;
    nbytes = s3dlio_round_up(nbytes, page_nbytes());
    /* mmap() aligns to a page only: map more, and give back what lies before and behind. */
    map = mmap(NULL, nbytes + spare, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (map == MAP_FAILED)
        return -errno;
    head = s3dlio_round_up((size_t)(uintptr_t)map, align) - (size_t)(uintptr_t)map;
    if (head)
        munmap(map, head);
    if (spare > head)
        munmap(map + head + nbytes, spare - head);
    *data_ret = map + head;
    return 0;
}

int
s3dlio_buffer_alloc(void **data_ret, size_t nbytes)
{
    char *data;
    int status = map_aligned(&data, nbytes);

    if (status)
        return status;
    s3dlio_buffer_advise(data, nbytes);
    *data_ret = data;
    return 0;
}

void
s3dlio_buffer_free(void *data, size_t nbytes)
{
    if (data)
        munmap(data, s3dlio_round_up(nbytes, page_nbytes()));
}

void
s3dlio_buffer_advise(void *data, size_t nbytes)
{
#ifdef MADV_HUGEPAGE
    uintptr_t begin = s3dlio_round_up((uintptr_t)data, HUGE_PAGE);
    uintptr_t end = ((uintptr_t)data + nbytes) / HUGE_PAGE * HUGE_PAGE;

    if (begin < end)
        (void)madvise((void *)begin, end - begin, MADV_HUGEPAGE);
#else
    (void)data;
    (void)nbytes;
#endif
}

struct s3dlio_pool {
    pthread_mutex_t lock;
    pthread_cond_t given;
    char *blocks;
    size_t block_nbytes;
    unsigned nblocks;
    int error;
    unsigned nfree;
    /* For each block whether it is out; behind the free ones in the same memory. */
    bool *out;
    /* The free blocks; the one given last is taken first, as it may still be in the cache. */
    void *free_blocks[];
};

/* Maps the memory of so many blocks. */
static int
map_blocks(char **blocks_ret, size_t *block_nbytes, unsigned nblocks)
{
    size_t nbytes;
    char *blocks;
    int status;

    if (*block_nbytes == 0 || nblocks == 0 || nblocks > MAX_BLOCKS ||
        *block_nbytes > SIZE_MAX / 4 / nblocks)
        return -EINVAL;
    *block_nbytes = s3dlio_round_up(*block_nbytes, page_nbytes());
    nbytes = *block_nbytes * nblocks;
    status = map_aligned(&blocks, nbytes);
    if (status)
        return status;
#ifdef MADV_DONTFORK
    /* A child has no use for the blocks, and sharing them would make the parent copy each page
     * that it fills next, also under a transfer. */
    (void)madvise(blocks, nbytes, MADV_DONTFORK);
#endif
    /* To clear a huge page takes longer than to store a small object, so the first is of small
     * ones. */
    if (nbytes > HUGE_PAGE) {
#ifdef MADV_NOHUGEPAGE
        (void)madvise(blocks, HUGE_PAGE, MADV_NOHUGEPAGE);
#endif
        s3dlio_buffer_advise(blocks + HUGE_PAGE, nbytes - HUGE_PAGE);
    }
    *blocks_ret = blocks;
    return 0;
}

static void
fill(struct s3dlio_pool *pool, char *blocks, size_t block_nbytes, unsigned nblocks)
{
    pool->blocks = blocks;
    pool->block_nbytes = block_nbytes;
    pool->nblocks = pool->nfree = nblocks;
    for (unsigned i = 0; i < nblocks; i++)
        pool->free_blocks[i] = blocks + block_nbytes * (nblocks - 1 - i);
}

int
s3dlio_pool_new(struct s3dlio_pool **pool_ret, size_t block_nbytes, unsigned nblocks)
{
    struct s3dlio_pool *pool;
    pthread_condattr_t attributes;
    char *blocks;
    int status = map_blocks(&blocks, &block_nbytes, nblocks);

    if (status)
        return status;
    pool = calloc(1, sizeof *pool + nblocks * (sizeof pool->free_blocks[0] + sizeof(bool)));
    if (!pool) {
        s3dlio_buffer_free(blocks, block_nbytes * nblocks);
        return -ENOMEM;
    }
    pool->out = (bool *)&pool->free_blocks[nblocks];
    fill(pool, blocks, block_nbytes, nblocks);
    pthread_mutex_init(&pool->lock, NULL);
    pthread_condattr_init(&attributes);
    pthread_condattr_setclock(&attributes, CLOCK_MONOTONIC);
    pthread_cond_init(&pool->given, &attributes);
    pthread_condattr_destroy(&attributes);
    *pool_ret = pool;
    return 0;
}

int
s3dlio_pool_resize(struct s3dlio_pool *pool, size_t block_nbytes, unsigned nblocks)
{
    char *blocks;
    int status = nblocks <= pool->nblocks ? map_blocks(&blocks, &block_nbytes, nblocks) : -EINVAL;

    if (status)
        return status;
    /* The lock is for s3dlio_pool_give(), whose last call may not yet have returned. */
    pthread_mutex_lock(&pool->lock);
    if (pool->nfree == pool->nblocks) {
        s3dlio_buffer_free(pool->blocks, pool->block_nbytes * pool->nblocks);
        fill(pool, blocks, block_nbytes, nblocks);
    } else {
        s3dlio_buffer_free(blocks, block_nbytes * nblocks);
        status = -EBUSY;
    }
    pthread_mutex_unlock(&pool->lock);
    return status;
}

int
s3dlio_pool_take(struct s3dlio_pool *pool, void **block_ret, int wait_ms)
{
    struct timespec deadline;
    int waited = 0;
    int status = 0;

    pthread_mutex_lock(&pool->lock);
    if (wait_ms > 0)
        deadline = s3dlio_clock_in_ms(wait_ms);
    while (!pool->error && pool->nfree == 0 && waited == 0 && wait_ms != 0) {
        if (wait_ms < 0)
            waited = pthread_cond_wait(&pool->given, &pool->lock);
        else
            waited = pthread_cond_timedwait(&pool->given, &pool->lock, &deadline);
    }
    if (pool->error)
        status = pool->error;
    else if (pool->nfree == 0)
        status = -EAGAIN;
    else
        *block_ret = pool->free_blocks[--pool->nfree];
    if (!status)
        pool->out[s3dlio_pool_index(pool, *block_ret)] = true;
    pthread_mutex_unlock(&pool->lock);
    return status;
}

int
s3dlio_pool_give(struct s3dlio_pool *pool, void *block)
{
    unsigned index = s3dlio_pool_index(pool, block);
    int status = -EINVAL;

    if (index >= pool->nblocks || s3dlio_pool_block(pool, index) != block)
        return status;
    pthread_mutex_lock(&pool->lock);
    if (pool->out[index]) {
        pool->out[index] = false;
        pool->free_blocks[pool->nfree++] = block;
        pthread_cond_signal(&pool->given);
        status = 0;
    }
    pthread_mutex_unlock(&pool->lock);
    return status;
}

void
s3dlio_pool_fail(struct s3dlio_pool *pool, int code)
{
    pthread_mutex_lock(&pool->lock);
    if (!pool->error)
        pool->error = code;
    pthread_cond_broadcast(&pool->given);
    pthread_mutex_unlock(&pool->lock);
}

void
s3dlio_pool_free(struct s3dlio_pool *pool)
{
    if (!pool)
        return;
    s3dlio_buffer_free(pool->blocks, pool->block_nbytes * pool->nblocks);
    pthread_cond_destroy(&pool->given);
    pthread_mutex_destroy(&pool->lock);
    free(pool);
}

size_t
s3dlio_pool_block_nbytes(const struct s3dlio_pool *pool)
{
    return pool->block_nbytes;
}

unsigned
s3dlio_pool_nblocks(const struct s3dlio_pool *pool)
{
    return pool->nblocks;
}

void *
s3dlio_pool_block(const struct s3dlio_pool *pool, unsigned index)
{
    return pool->blocks + pool->block_nbytes * index;
}

unsigned
s3dlio_pool_index(const struct s3dlio_pool *pool, const void *block)
{
    size_t index = ((uintptr_t)block - (uintptr_t)pool->blocks) / pool->block_nbytes;

    return index < pool->nblocks ? (unsigned)index : pool->nblocks;
}
