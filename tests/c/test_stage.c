/* The stage: whatever the chunks, the blocks are the stream, and the pool bounds them. */
#include "s3dlio/stage.h"

#include <pthread.h>
#include <stdatomic.h>
#include <zstd.h>

#include "s3dlio/status.h"
#include "support.h"

#define BLOCK (8 * KIB)

/* What came out of a stage, and what is known of it. */
struct output {
    unsigned char *data;
    size_t nbytes;
    uint64_t nblocks;
};

static struct s3dlio_stage *
new_stage(unsigned nblocks, int zstd_level)
{
    struct s3dlio_stage_options options = {.struct_nbytes = sizeof options,
                                           .block_nbytes = BLOCK,
                                           .nblocks = nblocks,
                                           .zstd_level = zstd_level};
    struct s3dlio_stage *stage = NULL;

    CHECK_EQ(s3dlio_stage_new(&stage, &options), 0);
    return stage;
}

/* s3dlio_stage_write(), which stores its count, with the counts added up. */
static int
write_more(struct s3dlio_stage *stage, const void *data, size_t nbytes, int wait_ms, size_t *total)
{
    size_t taken = 12345;
    int status = s3dlio_stage_write(stage, data, nbytes, wait_ms, &taken);

    CHECK(taken <= nbytes);
    *total += taken;
    return status;
}

/* Takes the full block, checks what it says of itself, and keeps its bytes. */
static void
take(struct s3dlio_stage *stage, struct output *output)
{
    struct s3dlio_block block;

    CHECK_EQ(s3dlio_stage_take(stage, &block), 0);
    CHECK_EQ(block.index, output->nblocks);
    CHECK_EQ(block.offset, output->nbytes);
    CHECK(block.nbytes > 0 && block.nbytes <= BLOCK);
    CHECK_EQ((uintptr_t)block.data % 4096, 0);
    CHECK_EQ(block.crc32c, slow_crc32c(0, block.data, block.nbytes));
    memcpy(output->data + output->nbytes, block.data, block.nbytes);
    output->nbytes += block.nbytes;
    output->nblocks++;
    CHECK_EQ(s3dlio_stage_release(stage, block.data), 0);
    CHECK_EQ(s3dlio_stage_release(stage, block.data), -EINVAL);
    CHECK_EQ(s3dlio_stage_take(stage, &block), -EINVAL);
}

static void
put(struct s3dlio_stage *stage, const unsigned char *data, size_t nbytes, struct output *output)
{
    size_t taken = 0;
    int status;

    while ((status = write_more(stage, data + taken, nbytes - taken, 0, &taken)) == 1)
        take(stage, output);
    CHECK_EQ(status, 0);
    CHECK_EQ(taken, nbytes);
}

static void
end(struct s3dlio_stage *stage, struct output *output)
{
    int status;

    while ((status = s3dlio_stage_end(stage, 0)) == 1)
        take(stage, output);
    CHECK_EQ(status, 0);
    CHECK_EQ(s3dlio_stage_end(stage, 0), 0);
}

static void
check_totals(const struct s3dlio_stage *stage, const unsigned char *raw, size_t raw_nbytes,
             const struct output *output)
{
    struct s3dlio_stage_totals totals;

    s3dlio_stage_get_totals(stage, &totals, sizeof totals);
    CHECK_EQ(totals.raw_nbytes, raw_nbytes);
    CHECK_EQ(totals.raw_crc32c, slow_crc32c(0, raw, raw_nbytes));
    CHECK_EQ(totals.stored_nbytes, output->nbytes);
    CHECK_EQ(totals.stored_crc32c, slow_crc32c(0, output->data, output->nbytes));
    CHECK_EQ(totals.nblocks, output->nblocks);
}

static void
check_stream(const unsigned char *data, size_t nbytes, int zstd_level, uint64_t seed)
{
    struct s3dlio_stage *stage = new_stage(3, zstd_level);
    struct output output = {.data = malloc(ZSTD_compressBound(nbytes))};
    uint64_t state = seed + 1;

    CHECK(output.data);
    for (size_t done = 0; done < nbytes;) {
        size_t most = (size_t[]){1, 7, 511, BLOCK - 1, BLOCK, BLOCK + 1, 20 * BLOCK}[seed % 7];
        size_t chunk = random_between(&state, 0, most);

        if (seed >= 7)
            chunk = most;
        if (chunk > nbytes - done)
            chunk = nbytes - done;
        put(stage, data + done, chunk, &output);
        done += chunk;
    }
    end(stage, &output);
    check_totals(stage, data, nbytes, &output);
    if (zstd_level) {
        unsigned char *raw = malloc(nbytes + 1);

        CHECK_EQ(ZSTD_decompress(raw, nbytes + 1, output.data, output.nbytes), nbytes);
        CHECK(memcmp(raw, data, nbytes) == 0);
        free(raw);
    } else {
        CHECK_EQ(output.nbytes, nbytes);
        CHECK(memcmp(output.data, data, nbytes) == 0);
        CHECK_EQ(output.nblocks, (nbytes + BLOCK - 1) / BLOCK);
    }
    s3dlio_stage_free(stage);
    free(output.data);
}

static void
any_chunks_give_the_stream_in_numbered_blocks(void)
{
    static const size_t sizes[] = {0,         1,         4096,          BLOCK - 1,
                                   BLOCK,     BLOCK + 1, 2 * BLOCK - 1, 2 * BLOCK,
                                   3 * BLOCK, 30001,     41 * BLOCK + 7};
    unsigned char *noise = make_data(50 * BLOCK, 1);
    unsigned char *text = make_text(50 * BLOCK, 1);

    for (unsigned i = 0; i < sizeof sizes / sizeof sizes[0]; i++) {
        for (uint64_t seed = 0; seed < 14; seed++) {
            check_stream(noise, sizes[i], 0, seed);
            check_stream(seed % 2 ? noise : text, sizes[i], 1 + (int)seed % 3, seed);
        }
    }
    free(noise);
    free(text);
}

static void
totals_count_the_block_that_is_being_filled(void)
{
    struct s3dlio_stage *stage = new_stage(2, 0);
    unsigned char *data = make_data(2 * BLOCK, 2);
    struct s3dlio_stage_totals totals;
    struct output output = {.data = malloc(2 * BLOCK)};
    uint64_t raw_nbytes[2] = {0, 12345};

    put(stage, data, BLOCK + 100, &output);
    s3dlio_stage_get_totals(stage, &totals, sizeof totals);
    CHECK_EQ(totals.raw_nbytes, BLOCK + 100);
    CHECK_EQ(totals.stored_nbytes, BLOCK + 100);
    CHECK_EQ(totals.nblocks, 1);
    CHECK_EQ(totals.raw_crc32c, slow_crc32c(0, data, BLOCK + 100));
    CHECK_EQ(totals.stored_crc32c, slow_crc32c(0, data, BLOCK + 100));
    s3dlio_stage_get_totals(stage, (struct s3dlio_stage_totals *)raw_nbytes, sizeof raw_nbytes[0]);
    CHECK_EQ(raw_nbytes[0], BLOCK + 100);
    CHECK_EQ(raw_nbytes[1], 12345);
    s3dlio_stage_free(stage);
    free(output.data);
    free(data);
}

static void
stream_goes_on_in_blocks_of_another_size(void)
{
    unsigned char *data = make_data(20 * BLOCK, 5);

    for (int level = 0; level < 2; level++) {
        struct s3dlio_stage *stage = new_stage(4, level);
        struct output output = {.data = malloc(21 * BLOCK)};
        struct s3dlio_block lent, block;
        size_t taken = 0, sizes = 0;
        int status;

        CHECK_EQ(write_more(stage, data, 20 * BLOCK, 0, &taken), 1);
        CHECK_EQ(s3dlio_stage_resize(stage, 4 * BLOCK, 2), -EBUSY); /* full, and not yet taken */
        CHECK_EQ(s3dlio_stage_take(stage, &lent), 0);
        CHECK_EQ(s3dlio_stage_resize(stage, 4 * BLOCK, 2), -EBUSY);
        memcpy(output.data, lent.data, lent.nbytes);
        output.nbytes = lent.nbytes;
        CHECK_EQ(s3dlio_stage_release(stage, lent.data), 0);
        CHECK_EQ(s3dlio_stage_resize(stage, 4 * BLOCK, 1), -EINVAL);
        CHECK_EQ(s3dlio_stage_resize(stage, 4 * BLOCK, 5), -EINVAL);
        CHECK_EQ(s3dlio_stage_resize(stage, 0, 2), -EINVAL);
        CHECK_EQ(s3dlio_stage_resize(stage, SIZE_MAX / 9, 2), -ENOMEM);
        CHECK_EQ(s3dlio_stage_resize(stage, 4 * BLOCK, 2), 0);
        for (;;) {
            if (taken < 20 * BLOCK)
                status = write_more(stage, data + taken, 20 * BLOCK - taken, 0, &taken);
            else if ((status = s3dlio_stage_end(stage, 0)) == 0)
                break;
            if (status == 0)
                continue;
            CHECK_EQ(status, 1);
            CHECK_EQ(s3dlio_stage_take(stage, &block), 0);
            CHECK_EQ(block.offset, output.nbytes);
            CHECK_EQ(block.crc32c, slow_crc32c(0, block.data, block.nbytes));
            memcpy(output.data + output.nbytes, block.data, block.nbytes);
            output.nbytes += block.nbytes;
            sizes += block.nbytes == 4 * BLOCK;
            CHECK_EQ(s3dlio_stage_release(stage, block.data), 0);
        }
        CHECK_EQ(sizes, 4);
        if (level == 0)
            CHECK(output.nbytes == 20 * BLOCK && memcmp(output.data, data, output.nbytes) == 0);
        s3dlio_stage_free(stage);
        free(output.data);
    }
    free(data);
}

static void
bytes_may_be_made_in_the_block_itself(void)
{
    struct s3dlio_stage *stage = new_stage(2, 0);
    unsigned char *data = make_data(3 * BLOCK, 6);
    struct output output = {.data = malloc(3 * BLOCK)};
    size_t nbytes, at = 0;
    void *room, *again;

    CHECK_EQ(s3dlio_stage_commit(stage, 1), -EINVAL); /* nothing was reserved */
    put(stage, data, 100, &output);
    at = 100;
    while (at < 2 * BLOCK + 50) {
        size_t piece = 3000;
        int status = s3dlio_stage_reserve(stage, 0, &room, &nbytes);

        CHECK_EQ(status, 0);
        CHECK_EQ(nbytes, BLOCK - at % BLOCK);
        CHECK_EQ(s3dlio_stage_reserve(stage, 0, &again, &nbytes), 0);
        CHECK(again == room);
        CHECK_EQ(s3dlio_stage_commit(stage, nbytes + 1), -EINVAL);
        if (piece > nbytes)
            piece = nbytes;
        memcpy(room, data + at, piece);
        at += piece;
        status = s3dlio_stage_commit(stage, piece);
        CHECK_EQ(status, at % BLOCK == 0);
        if (status == 1) {
            CHECK_EQ(s3dlio_stage_reserve(stage, 0, &room, &nbytes), 1);
            CHECK_EQ(s3dlio_stage_commit(stage, 0), -EINVAL);
            take(stage, &output);
        }
    }
    put(stage, data + at, 3 * BLOCK - at, &output);
    end(stage, &output);
    CHECK_EQ(s3dlio_stage_reserve(stage, 0, &room, &nbytes), S3DLIO_E_CLOSED);
    CHECK(output.nbytes == 3 * BLOCK && memcmp(output.data, data, output.nbytes) == 0);
    check_totals(stage, data, 3 * BLOCK, &output);
    s3dlio_stage_free(stage);

    stage = new_stage(2, 1);
    CHECK_EQ(s3dlio_stage_reserve(stage, 0, &room, &nbytes), -EINVAL);
    CHECK_EQ(s3dlio_stage_commit(stage, 0), -EINVAL);
    s3dlio_stage_fail(stage, -EIO);
    CHECK_EQ(s3dlio_stage_commit(stage, 0), -EIO);
    s3dlio_stage_free(stage);

    stage = new_stage(2, 0);
    for (int i = 0; i < 2; i++) {
        struct s3dlio_block block;

        CHECK_EQ(s3dlio_stage_reserve(stage, 0, &room, &nbytes), 0);
        CHECK_EQ(s3dlio_stage_commit(stage, nbytes), 1);
        CHECK_EQ(s3dlio_stage_take(stage, &block), 0);
    }
    CHECK_EQ(s3dlio_stage_reserve(stage, 0, &room, &nbytes), -EAGAIN);
    s3dlio_stage_free(stage);
    free(output.data);
    free(data);
}

static void
append_takes_all_or_nothing(void)
{
    struct s3dlio_stage *stage = new_stage(2, 0);
    unsigned char *data = make_data(BLOCK, 4);
    struct output output = {.data = malloc(BLOCK)};
    size_t taken = 0;

    CHECK_EQ(s3dlio_stage_append(stage, data, 1), 0); /* there is no block yet */
    CHECK_EQ(write_more(stage, data, 10, 0, &taken), 0);
    CHECK_EQ(s3dlio_stage_append(stage, data + 10, BLOCK - 10), 0); /* it would be full */
    CHECK_EQ(s3dlio_stage_append(stage, data + 10, 0), 1);
    CHECK_EQ(s3dlio_stage_append(stage, data + 10, BLOCK - 11), 1);
    CHECK_EQ(s3dlio_stage_append(stage, data + BLOCK - 1, 1), 0);
    CHECK_EQ(s3dlio_stage_end(stage, 0), 1);
    CHECK_EQ(s3dlio_stage_append(stage, data, 0), 0); /* the end was said */
    take(stage, &output);
    CHECK_EQ(output.nbytes, BLOCK - 1);
    CHECK(memcmp(output.data, data, BLOCK - 1) == 0);
    s3dlio_stage_free(stage);

    stage = new_stage(2, 0);
    CHECK_EQ(write_more(stage, data, 10, 0, &taken), 0);
    s3dlio_stage_fail(stage, -EIO);
    CHECK_EQ(s3dlio_stage_append(stage, data, 1), 0);
    s3dlio_stage_free(stage);
    free(output.data);
    free(data);
}

/* A chunk that ends where a block does leaves the block to be taken. */
static void
full_block_waits_to_be_taken(void)
{
    struct s3dlio_stage *stage = new_stage(2, 0);
    unsigned char *data = make_data(BLOCK, 3);
    struct s3dlio_block block;
    size_t taken = 0;

    CHECK_EQ(s3dlio_stage_take(stage, &block), -EINVAL);
    CHECK_EQ(write_more(stage, data, BLOCK, 0, &taken), 1);
    CHECK_EQ(taken, BLOCK);
    CHECK_EQ(write_more(stage, data, 1, 0, &taken), 1);
    CHECK_EQ(taken, BLOCK);
    CHECK_EQ(s3dlio_stage_end(stage, 0), 1);
    CHECK_EQ(s3dlio_stage_take(stage, &block), 0);
    CHECK_EQ(block.nbytes, BLOCK);
    CHECK_EQ(s3dlio_stage_end(stage, 0), 0);
    s3dlio_stage_free(stage); /* with the block still lent */
    free(data);
}

/* Writes until every block is lent. */
static void
lend_all(struct s3dlio_stage *stage, unsigned nblocks, void **blocks)
{
    unsigned char *data = make_data(nblocks * BLOCK, 4);
    size_t taken = 0;

    for (unsigned i = 0; i < nblocks; i++) {
        struct s3dlio_block block;

        CHECK_EQ(write_more(stage, data + taken, nblocks * BLOCK - taken, 0, &taken), 1);
        CHECK_EQ(s3dlio_stage_take(stage, &block), 0);
        blocks[i] = block.data;
    }
    CHECK_EQ(taken, nblocks * BLOCK);
    free(data);
}

static void
write_without_a_free_block_asks_to_come_again(void)
{
    struct s3dlio_stage *stage = new_stage(4, 0);
    void *blocks[4];
    size_t taken = 0;
    uint64_t begin;

    lend_all(stage, 4, blocks);
    for (unsigned i = 0; i < 4; i++) {
        for (unsigned j = 0; j < i; j++)
            CHECK(blocks[i] != blocks[j]);
    }
    CHECK_EQ(write_more(stage, "x", 1, 0, &taken), -EAGAIN);
    begin = now_ms();
    CHECK_EQ(write_more(stage, "x", 1, 50, &taken), -EAGAIN);
    CHECK(now_ms() - begin >= 49);
    CHECK_EQ(taken, 0);
    CHECK_EQ(write_more(stage, "x", 0, 0, &taken), 0);
    CHECK_EQ(s3dlio_stage_release(stage, blocks[2]), 0);
    CHECK_EQ(write_more(stage, "x", 1, 0, &taken), 0);
    CHECK_EQ(taken, 1);
    s3dlio_stage_free(stage);
}

/* A block that was released twice while the stage filled it again was given back under its hands:
 * the next block lay in the same memory. */
static void
block_that_is_filled_again_is_not_released(void)
{
    struct s3dlio_stage *stage = new_stage(2, 0);
    void *blocks[2];
    size_t taken = 0;

    lend_all(stage, 2, blocks);
    CHECK_EQ(s3dlio_stage_release(stage, blocks[0]), 0);
    CHECK_EQ(write_more(stage, "x", 1, 0, &taken), 0);
    CHECK_EQ(s3dlio_stage_release(stage, blocks[0]), -EINVAL);
    CHECK_EQ(s3dlio_stage_release(stage, blocks[1]), 0);
    CHECK_EQ(s3dlio_stage_release(stage, blocks[1]), -EINVAL);
    s3dlio_stage_free(stage);
}

static void
end_of_a_compressed_stream_waits_for_a_block_too(void)
{
    struct s3dlio_stage *stage = new_stage(2, 1);
    unsigned char *data = make_data(40 * BLOCK, 5);
    struct s3dlio_block block, last;
    size_t taken = 0;

    for (int i = 0; i < 2; i++) {
        CHECK_EQ(write_more(stage, data + taken, 40 * BLOCK - taken, 0, &taken), 1);
        CHECK_EQ(s3dlio_stage_take(stage, i ? &last : &block), 0);
    }
    CHECK_EQ(s3dlio_stage_end(stage, 0), -EAGAIN);
    CHECK_EQ(write_more(stage, data, 1, 0, &taken), S3DLIO_E_CLOSED);
    CHECK_EQ(s3dlio_stage_release(stage, block.data), 0);
    CHECK_EQ(s3dlio_stage_end(stage, 0), 1);
    CHECK_EQ(s3dlio_stage_take(stage, &last), 0);
    CHECK_EQ(last.index, 2);
    s3dlio_stage_free(stage);
    free(data);
}

struct waker {
    struct s3dlio_stage *stage;
    void *block;
    int code;
};

static void *
wake(void *argument)
{
    struct waker *waker = argument;

    sleep_ms(30);
    if (waker->block)
        CHECK_EQ(s3dlio_stage_release(waker->stage, waker->block), 0);
    else
        s3dlio_stage_fail(waker->stage, waker->code);
    return NULL;
}

static void
waiting_write_is_woken_by_release_and_by_failure(void)
{
    for (int mode = 0; mode < 4; mode++) {
        struct s3dlio_stage *stage = new_stage(2, mode / 2);
        unsigned char *data = make_data(40 * BLOCK, 6);
        struct waker waker = {stage, NULL, -EPIPE};
        struct s3dlio_block block, other;
        pthread_t thread;
        size_t taken = 0;
        int status;

        CHECK_EQ(write_more(stage, data, 40 * BLOCK, 0, &taken), 1);
        CHECK_EQ(s3dlio_stage_take(stage, &block), 0);
        CHECK_EQ(write_more(stage, data + taken, 40 * BLOCK - taken, 0, &taken), 1);
        CHECK_EQ(s3dlio_stage_take(stage, &other), 0);
        if (mode % 2 == 0)
            waker.block = block.data;
        CHECK(pthread_create(&thread, NULL, wake, &waker) == 0);
        status = write_more(stage, data + taken, 100, mode / 2 ? 20000 : -1, &taken);
        CHECK(pthread_join(thread, NULL) == 0);
        if (mode % 2) {
            CHECK_EQ(status, -EPIPE);
            CHECK_EQ(s3dlio_stage_end(stage, 0), -EPIPE);
        } else {
            CHECK(status >= 0);
        }
        s3dlio_stage_free(stage);
        free(data);
    }
}

static void
first_failure_sticks(void)
{
    struct s3dlio_stage *stage = new_stage(2, 0);
    size_t taken = 0;

    CHECK_EQ(write_more(stage, "x", 1, 0, &taken), 0);
    s3dlio_stage_fail(stage, -EIO);
    s3dlio_stage_fail(stage, -EPIPE);
    /* Also while there is room in the current block. */
    CHECK_EQ(write_more(stage, "x", 1, -1, &taken), -EIO);
    CHECK_EQ(taken, 1);
    s3dlio_stage_fail(stage, -EPIPE);
    CHECK_EQ(write_more(stage, "x", 0, -1, &taken), -EIO);
    CHECK_EQ(s3dlio_stage_end(stage, -1), -EIO);
    CHECK_EQ(s3dlio_stage_resize(stage, BLOCK, 2), -EIO);
    s3dlio_stage_free(stage);

    stage = new_stage(2, 0);
    s3dlio_stage_fail(stage, 1); /* what is no failure is one of the caller's */
    CHECK_EQ(write_more(stage, "x", 1, -1, &taken), -EINVAL);
    s3dlio_stage_free(stage);
}

static void
write_after_end_returns_closed(void)
{
    struct s3dlio_stage *stage = new_stage(2, 0);
    struct output output = {.data = malloc(BLOCK)};
    size_t taken = 0;

    put(stage, (const unsigned char *)"abc", 3, &output);
    CHECK_EQ(s3dlio_stage_end(stage, 0), 1);
    CHECK_EQ(write_more(stage, "x", 1, 0, &taken), S3DLIO_E_CLOSED);
    take(stage, &output);
    CHECK_EQ(s3dlio_stage_end(stage, 0), 0);
    CHECK_EQ(write_more(stage, "x", 1, 0, &taken), S3DLIO_E_CLOSED);
    CHECK_EQ(write_more(stage, "", 0, 0, &taken), S3DLIO_E_CLOSED);
    CHECK_EQ(s3dlio_stage_end(stage, 0), 0); /* that was no failure */
    CHECK_EQ(output.nbytes, 3);
    s3dlio_stage_free(stage);
    free(output.data);
}

static void *
wait_in_write(void *argument)
{
    size_t taken = 0;
    int status;

    while ((status = write_more(argument, "x", 1, -1, &taken)) == S3DLIO_E_BUSY)
        ;
    CHECK_EQ(status, -ECANCELED);
    return NULL;
}

static void
second_thread_gets_busy(void)
{
    struct s3dlio_stage *stage = new_stage(2, 0);
    void *blocks[2];
    pthread_t thread;
    size_t taken = 0;
    int status;

    lend_all(stage, 2, blocks);
    CHECK(pthread_create(&thread, NULL, wait_in_write, stage) == 0);
    while ((status = write_more(stage, "x", 1, 0, &taken)) == -EAGAIN)
        ;
    CHECK_EQ(status, S3DLIO_E_BUSY);
    CHECK_EQ(s3dlio_stage_end(stage, 0), S3DLIO_E_BUSY);
    s3dlio_stage_fail(stage, -ECANCELED);
    CHECK(pthread_join(thread, NULL) == 0);
    CHECK_EQ(taken, 0);
    s3dlio_stage_free(stage);
}

/* A sink in other threads: blocks come back late and in any order. */

struct sink {
    struct s3dlio_stage *stage;
    unsigned char *data;
    pthread_mutex_t lock;
    struct s3dlio_block blocks[64];
    unsigned nblocks;
    bool ended;
};

static void *
store(void *argument)
{
    struct sink *sink = argument;
    bool ended = false;

    while (!ended) {
        struct s3dlio_block block = {.data = NULL};

        pthread_mutex_lock(&sink->lock);
        if (sink->nblocks > 0)
            block = sink->blocks[--sink->nblocks];
        else
            ended = sink->ended;
        pthread_mutex_unlock(&sink->lock);
        if (block.data) {
            CHECK_EQ(slow_crc32c(0, block.data, block.nbytes), block.crc32c);
            memcpy(sink->data + block.offset, block.data, block.nbytes);
            CHECK_EQ(s3dlio_stage_release(sink->stage, block.data), 0);
        } else {
            sched_yield();
        }
    }
    return NULL;
}

static void
hand_over(struct sink *sink)
{
    struct s3dlio_block block;

    CHECK_EQ(s3dlio_stage_take(sink->stage, &block), 0);
    pthread_mutex_lock(&sink->lock);
    sink->blocks[sink->nblocks++] = block;
    pthread_mutex_unlock(&sink->lock);
}

static void
sink_in_other_threads_gets_the_stream(void)
{
    const size_t nbytes = 300 * BLOCK + 5;
    unsigned char *data = make_data(nbytes, 7);
    struct sink sink = {.stage = new_stage(4, 0), .data = malloc(nbytes)};
    pthread_t threads[3];
    size_t taken = 0;
    int status;

    pthread_mutex_init(&sink.lock, NULL);
    for (int i = 0; i < 3; i++)
        CHECK(pthread_create(&threads[i], NULL, store, &sink) == 0);
    while (taken < nbytes) {
        status = write_more(sink.stage, data + taken, nbytes - taken, -1, &taken);
        CHECK(status >= 0);
        if (status == 1)
            hand_over(&sink);
    }
    while ((status = s3dlio_stage_end(sink.stage, -1)) == 1)
        hand_over(&sink);
    CHECK_EQ(status, 0);
    pthread_mutex_lock(&sink.lock);
    sink.ended = true;
    pthread_mutex_unlock(&sink.lock);
    for (int i = 0; i < 3; i++)
        CHECK(pthread_join(threads[i], NULL) == 0);
    CHECK(memcmp(sink.data, data, nbytes) == 0);
    pthread_mutex_destroy(&sink.lock);
    s3dlio_stage_free(sink.stage);
    free(sink.data);
    free(data);
}

static void
use_inherited_stage(void *argument)
{
    struct s3dlio_stage *stage = argument;
    struct s3dlio_block block;
    size_t taken = 0;

    CHECK_EQ(write_more(stage, "x", 1, -1, &taken), S3DLIO_E_FORKED);
    CHECK_EQ(s3dlio_stage_append(stage, "x", 1), 0);
    CHECK_EQ(s3dlio_stage_end(stage, -1), S3DLIO_E_FORKED);
    CHECK_EQ(s3dlio_stage_take(stage, &block), S3DLIO_E_FORKED);
    CHECK_EQ(taken, 0);
    CHECK_EQ(s3dlio_stage_release(stage, &block), S3DLIO_E_FORKED);
    s3dlio_stage_fail(stage, -EIO);
    s3dlio_stage_free(stage);
}

/* While another thread uses the pool, so that the child may inherit its lock taken. */

struct juggler {
    struct s3dlio_stage *stage;
    atomic_bool stop;
};

static void *
juggle(void *argument)
{
    struct juggler *juggler = argument;
    size_t taken;

    while (!juggler->stop) {
        taken = 0;
        (void)write_more(juggler->stage, "x", 1, 0, &taken);
    }
    return NULL;
}

static void
forked_child_gets_forked_and_frees_without_hanging(void)
{
    for (int level = 0; level <= 1; level++) {
        struct s3dlio_stage_options options = {
            .struct_nbytes = sizeof options, .zstd_level = level, .zstd_workers = 2};
        struct s3dlio_stage *stage = NULL;
        size_t taken = 0;

        CHECK_EQ(s3dlio_stage_new(&stage, &options), 0);
        CHECK_EQ(write_more(stage, "x", 1, 0, &taken), 0);
        in_child(use_inherited_stage, stage);
        CHECK_EQ(write_more(stage, "x", 1, 0, &taken), 0);
        CHECK_EQ(taken, 2);
        s3dlio_stage_free(stage);
    }
    for (int i = 0; i < 20; i++) {
        struct juggler juggler = {.stage = new_stage(2, 0)};
        void *blocks[2];
        pthread_t thread;

        lend_all(juggler.stage, 2, blocks);
        CHECK(pthread_create(&thread, NULL, juggle, &juggler) == 0);
        in_child(use_inherited_stage, juggler.stage);
        juggler.stop = true;
        CHECK(pthread_join(thread, NULL) == 0);
        s3dlio_stage_free(juggler.stage);
    }
}

static void
options_are_checked_and_may_be_of_another_version(void)
{
    struct s3dlio_stage_options good = {.struct_nbytes = sizeof good, .block_nbytes = BLOCK};
    struct s3dlio_stage_options bad[7];
    struct {
        struct s3dlio_stage_options known;
        uint64_t unknown;
    } newer = {good, 1};
    struct s3dlio_stage *stage = NULL;
    unsigned n = 0;

    for (unsigned i = 0; i < 7; i++)
        bad[i] = good;
    bad[n++].struct_nbytes = 0;
    bad[n++].nblocks = 1;
    bad[n++].nblocks = 65537;
    bad[n++].zstd_level = 23;
    bad[n++].zstd_level = -1;
    bad[n++].block_nbytes = SIZE_MAX;
    bad[n++].block_nbytes = SIZE_MAX / 9;
    for (unsigned i = 0; i < n; i++)
        CHECK_EQ(s3dlio_stage_new(&stage, &bad[i]), -EINVAL);
    bad[0] = good;
    bad[0].block_nbytes = SIZE_MAX / 64;
    CHECK_EQ(s3dlio_stage_new(&stage, &bad[0]), -ENOMEM);
    newer.known.struct_nbytes = sizeof newer;
    CHECK_EQ(s3dlio_stage_new(&stage, &newer.known), -E2BIG);
    CHECK(!stage);
    newer.unknown = 0;
    CHECK_EQ(s3dlio_stage_new(&stage, &newer.known), 0);
    s3dlio_stage_free(stage);
    CHECK_EQ(s3dlio_stage_new(&stage, NULL), 0);
    s3dlio_stage_free(stage);
    good.struct_nbytes = sizeof good.struct_nbytes; /* an older caller's: defaults for the rest */
    good.nblocks = 1;
    CHECK_EQ(s3dlio_stage_new(&stage, &good), 0);
    s3dlio_stage_free(stage);
    s3dlio_stage_free(NULL);
}

static void
odd_block_size_is_rounded_to_pages(void)
{
    struct s3dlio_stage_options options = {
        .struct_nbytes = sizeof options, .block_nbytes = 1, .nblocks = 2};
    struct s3dlio_stage *stage = NULL;
    unsigned char *data = make_data(4096, 8);
    struct s3dlio_block block;
    size_t taken = 0;

    CHECK_EQ(s3dlio_stage_new(&stage, &options), 0);
    CHECK_EQ(write_more(stage, data, 4095, 0, &taken), 0);
    CHECK_EQ(write_more(stage, data, 1, 0, &taken), sysconf(_SC_PAGESIZE) == 4096);
    if (sysconf(_SC_PAGESIZE) == 4096) {
        CHECK_EQ(s3dlio_stage_take(stage, &block), 0);
        CHECK_EQ(block.nbytes, 4096);
    }
    s3dlio_stage_free(stage);
    free(data);
}

int
main(void)
{
    deadline(120);
    any_chunks_give_the_stream_in_numbered_blocks();
    totals_count_the_block_that_is_being_filled();
    stream_goes_on_in_blocks_of_another_size();
    bytes_may_be_made_in_the_block_itself();
    append_takes_all_or_nothing();
    full_block_waits_to_be_taken();
    write_without_a_free_block_asks_to_come_again();
    block_that_is_filled_again_is_not_released();
    end_of_a_compressed_stream_waits_for_a_block_too();
    waiting_write_is_woken_by_release_and_by_failure();
    first_failure_sticks();
    write_after_end_returns_closed();
    second_thread_gets_busy();
    sink_in_other_threads_gets_the_stream();
    forked_child_gets_forked_and_frees_without_hanging();
    options_are_checked_and_may_be_of_another_version();
    odd_block_size_is_rounded_to_pages();
    return 0;
}
