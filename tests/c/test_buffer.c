/* Aligned memory, and the pool that bounds it. */
#include "s3dlio/buffer.h"

#include <pthread.h>
#include <stdatomic.h>
#include <sys/mman.h>

#include "pool.h"
#include "support.h"

static size_t page;

static void
memory_is_aligned_zeroed_and_writable_to_its_end(void)
{
    const size_t sizes[] = {1,           page - 1,    page,    page + 1,   100000,
                            2 * MIB - 1, 2 * MIB + 1, 2 * MIB, 5 * MIB + 7};

    for (unsigned i = 0; i < sizeof sizes / sizeof sizes[0]; i++) {
        void *data = NULL;
        unsigned char *bytes;

        CHECK_EQ(s3dlio_buffer_alloc(&data, sizes[i]), 0);
        CHECK_EQ((uintptr_t)data % (sizes[i] >= 2 * MIB ? 2 * MIB : page), 0);
        bytes = data;
        CHECK(bytes[0] == 0 && memcmp(bytes, bytes + 1, sizes[i] - 1) == 0);
        memset(data, 0xff, sizes[i]);
        s3dlio_buffer_free(data, sizes[i]);
    }
    s3dlio_buffer_free(NULL, 0);
    s3dlio_buffer_free(NULL, 100);
}

static void
free_gives_all_of_it_back(void)
{
    void *data = NULL;
    unsigned char resident[3];

    CHECK_EQ(s3dlio_buffer_alloc(&data, 2 * page + 1), 0);
    CHECK(mincore(data, 3 * page, resident) == 0);
    s3dlio_buffer_free(data, 2 * page + 1);
    for (size_t i = 0; i < 3; i++)
        CHECK(mincore((char *)data + i * page, page, resident) != 0 && errno == ENOMEM);
}

/* Trimming what was mapped too much must leave nothing behind. */
static size_t
mapped_pages(void)
{
    FILE *file = fopen("/proc/self/statm", "re");
    unsigned long pages = 0;

    CHECK(file && fscanf(file, "%lu", &pages) == 1);
    fclose(file);
    return pages;
}

static void
aligning_leaves_no_mapping_behind(void)
{
    size_t before, grown;
    void *data = NULL;

    CHECK_EQ(s3dlio_buffer_alloc(&data, 4 * MIB + 1), 0);
    s3dlio_buffer_free(data, 4 * MIB + 1);
    before = mapped_pages();
    for (int i = 0; i < 50; i++) {
        CHECK_EQ(s3dlio_buffer_alloc(&data, 4 * MIB + 1), 0);
        s3dlio_buffer_free(data, 4 * MIB + 1);
    }
    grown = mapped_pages() - before;
    CHECK(grown < 2 * MIB / page || mapped_pages() < before);
}

static void
impossible_sizes_are_refused(void)
{
    void *data = NULL;
    struct s3dlio_pool *pool = NULL;

    CHECK_EQ(s3dlio_buffer_alloc(&data, 0), -EINVAL);
    CHECK_EQ(s3dlio_buffer_alloc(&data, SIZE_MAX), -EINVAL);
    CHECK_EQ(s3dlio_buffer_alloc(&data, SIZE_MAX - page), -EINVAL);
    CHECK_EQ(s3dlio_buffer_alloc(&data, SIZE_MAX / 4), -ENOMEM);
    CHECK(!data);
    CHECK_EQ(s3dlio_pool_new(&pool, 0, 1), -EINVAL);
    CHECK_EQ(s3dlio_pool_new(&pool, 1, 0), -EINVAL);
    CHECK_EQ(s3dlio_pool_new(&pool, 1, 65537), -EINVAL);
    CHECK_EQ(s3dlio_pool_new(&pool, SIZE_MAX, 2), -EINVAL);
    CHECK_EQ(s3dlio_pool_new(&pool, SIZE_MAX / 65536, 65536), -EINVAL);
    CHECK_EQ(s3dlio_pool_new(&pool, SIZE_MAX / 64, 8), -ENOMEM);
    CHECK(!pool);
    s3dlio_pool_free(NULL);
}

static void
advice_takes_any_memory(void)
{
    unsigned char *data = make_data(5 * MIB, 1);
    uint32_t before = slow_crc32c(0, data, 5 * MIB);

    s3dlio_buffer_advise(data + 1, 5 * MIB - 1);
    s3dlio_buffer_advise(data, 0);
    s3dlio_buffer_advise(data + 7, 1);
    s3dlio_buffer_advise(NULL, 0);
    CHECK_EQ(slow_crc32c(0, data, 5 * MIB), before);
    free(data);
}

static void
pool_lends_each_block_once(void)
{
    struct s3dlio_pool *pool = NULL;
    void *blocks[5], *more = NULL;

    CHECK_EQ(s3dlio_pool_new(&pool, page + 1, 5), 0);
    CHECK_EQ(s3dlio_pool_block_nbytes(pool), 2 * page);
    CHECK_EQ(s3dlio_pool_nblocks(pool), 5);
    for (int i = 0; i < 5; i++) {
        CHECK_EQ(s3dlio_pool_take(pool, &blocks[i], 0), 0);
        CHECK_EQ((uintptr_t)blocks[i] % page, 0);
        memset(blocks[i], i + 1, 2 * page);
        CHECK(s3dlio_pool_block(pool, s3dlio_pool_index(pool, blocks[i])) == blocks[i]);
    }
    for (int i = 0; i < 5; i++) {
        unsigned char *block = blocks[i];

        CHECK(block[0] == i + 1 && memcmp(block, block + 1, 2 * page - 1) == 0);
    }
    CHECK_EQ(s3dlio_pool_take(pool, &more, 0), -EAGAIN);
    CHECK_EQ(s3dlio_pool_take(pool, &more, 20), -EAGAIN);
    CHECK(!more);
    CHECK_EQ(s3dlio_pool_give(pool, (char *)blocks[3] + 1), -EINVAL);
    CHECK_EQ(s3dlio_pool_give(pool, (char *)s3dlio_pool_block(pool, 4) + 2 * page), -EINVAL);
    CHECK_EQ(s3dlio_pool_give(pool, (char *)s3dlio_pool_block(pool, 0) - 2 * page), -EINVAL);
    CHECK_EQ(s3dlio_pool_give(pool, NULL), -EINVAL);
    CHECK_EQ(s3dlio_pool_give(pool, blocks[3]), 0);
    CHECK_EQ(s3dlio_pool_give(pool, blocks[3]), -EINVAL);
    CHECK_EQ(s3dlio_pool_take(pool, &more, -1), 0);
    CHECK(more == blocks[3]);
    s3dlio_pool_free(pool); /* taken or not */
}

static void
pool_of_huge_blocks_is_aligned_to_huge_pages(void)
{
    struct s3dlio_pool *pool = NULL;
    void *block;

    CHECK_EQ(s3dlio_pool_new(&pool, 2 * MIB, 3), 0);
    for (int i = 0; i < 3; i++) {
        CHECK_EQ(s3dlio_pool_take(pool, &block, 0), 0);
        CHECK_EQ((uintptr_t)block % (2 * MIB), 0);
    }
    s3dlio_pool_free(pool);
}

static void
first_failure_of_a_pool_stays(void)
{
    struct s3dlio_pool *pool = NULL;
    void *block = NULL;

    CHECK_EQ(s3dlio_pool_new(&pool, 1, 2), 0);
    s3dlio_pool_fail(pool, -EIO);
    s3dlio_pool_fail(pool, -EPIPE);
    CHECK_EQ(s3dlio_pool_take(pool, &block, 0), -EIO);
    CHECK_EQ(s3dlio_pool_take(pool, &block, -1), -EIO);
    CHECK(!block);
    s3dlio_pool_free(pool);
}

/* Threads that pass few blocks around: nobody has one that another has. */

struct shared {
    struct s3dlio_pool *pool;
    atomic_int owners[2];
};

static void *
take_and_give(void *argument)
{
    struct shared *shared = argument;

    for (int i = 0; i < 2000; i++) {
        void *block;
        unsigned index;
        int status = s3dlio_pool_take(shared->pool, &block, i % 2 ? 10000 : -1);

        if (status == -ECANCELED)
            break;
        CHECK_EQ(status, 0);
        index = s3dlio_pool_index(shared->pool, block);
        CHECK_EQ(atomic_fetch_add(&shared->owners[index], 1), 0);
        *(volatile int *)block += 1;
        CHECK_EQ(atomic_fetch_sub(&shared->owners[index], 1), 1);
        CHECK_EQ(s3dlio_pool_give(shared->pool, block), 0);
    }
    return NULL;
}

static void
threads_wait_for_each_others_blocks(void)
{
    struct shared shared = {.pool = NULL};
    pthread_t threads[4];
    int sum = 0;

    CHECK_EQ(s3dlio_pool_new(&shared.pool, 1, 2), 0);
    for (int i = 0; i < 4; i++)
        CHECK(pthread_create(&threads[i], NULL, take_and_give, &shared) == 0);
    for (int i = 0; i < 4; i++)
        CHECK(pthread_join(threads[i], NULL) == 0);
    for (unsigned i = 0; i < 2; i++)
        sum += *(int *)s3dlio_pool_block(shared.pool, i);
    CHECK_EQ(sum, 4 * 2000);
    s3dlio_pool_free(shared.pool);
}

static void
failure_wakes_every_waiting_thread(void)
{
    struct shared shared = {.pool = NULL};
    pthread_t threads[4];
    void *blocks[2];

    CHECK_EQ(s3dlio_pool_new(&shared.pool, 1, 2), 0);
    CHECK_EQ(s3dlio_pool_take(shared.pool, &blocks[0], 0), 0);
    CHECK_EQ(s3dlio_pool_take(shared.pool, &blocks[1], 0), 0);
    for (int i = 0; i < 4; i++)
        CHECK(pthread_create(&threads[i], NULL, take_and_give, &shared) == 0);
    sleep_ms(20);
    s3dlio_pool_fail(shared.pool, -ECANCELED);
    for (int i = 0; i < 4; i++)
        CHECK(pthread_join(threads[i], NULL) == 0);
    s3dlio_pool_free(shared.pool);
}

static void
look_for_block(void *argument)
{
    unsigned char resident;

    CHECK(mincore(argument, page, &resident) != 0 && errno == ENOMEM);
}

static void
child_of_fork_does_not_inherit_the_blocks(void)
{
    struct s3dlio_pool *pool = NULL;
    void *block;

    CHECK_EQ(s3dlio_pool_new(&pool, page, 2), 0);
    CHECK_EQ(s3dlio_pool_take(pool, &block, 0), 0);
    memset(block, 1, page);
    in_child(look_for_block, block);
    s3dlio_pool_free(pool);
}

int
main(void)
{
    page = (size_t)sysconf(_SC_PAGESIZE);
    deadline(60);
    memory_is_aligned_zeroed_and_writable_to_its_end();
    free_gives_all_of_it_back();
    aligning_leaves_no_mapping_behind();
    impossible_sizes_are_refused();
    advice_takes_any_memory();
    pool_lends_each_block_once();
    pool_of_huge_blocks_is_aligned_to_huge_pages();
    first_failure_of_a_pool_stays();
    threads_wait_for_each_others_blocks();
    failure_wakes_every_waiting_thread();
    child_of_fork_does_not_inherit_the_blocks();
    return 0;
}
