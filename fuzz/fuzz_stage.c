/*
 * Calls of the stage in any order, with any sizes: each returns what the header says, and the
 * blocks put together are the stream.  A model beside it predicts every call of a plain stage; how
 * much a compressed block holds is libzstd's affair, and there it follows what the stage said.
 *
 * Input: one byte of options (below), then the calls, each a byte and what it needs.
 */
#include <zstd.h>

#include "fuzz.h"
#include "s3dlio/crc32c.h"
#include "s3dlio/stage.h"
#include "s3dlio/status.h"

#define BLOCK       ((size_t)4096)
#define BLOCKS_MOST 5
#define STREAM_MOST (12 * BLOCK)
/* What is stored of that, at worst: frames of noise are a little longer. */
#define STORED_MOST (2 * STREAM_MOST)

/* One in eight is compressed, as that takes ten times as long; text compresses; a stage that is
 * dropped is freed with whatever is out. */
enum { OPTION_ZSTD = 7, OPTION_TEXT = 8, OPTION_DROP = 16 };

enum call { WRITE, WRITE_BLOCKS, TAKE, RELEASE, RELEASE_WRONG, END, TOTALS, FAIL, NCALLS };

/* What may go in, the checksum of each beginning of it, and of each of its blocks: computed once.
 */
struct source {
    unsigned char *data;
    uint32_t until[STREAM_MOST + 1];
    uint32_t block[STREAM_MOST / BLOCK];
};

struct model {
    struct s3dlio_stage *stage;
    bool zstd;
    unsigned nblocks;
    const struct source *source;
    /* How much of the source went in. */
    size_t raw_nbytes;
    /* What came out in blocks. */
    unsigned char *stored;
    size_t stored_nbytes;
    uint32_t stored_crc32c;
    uint64_t ntaken;
    /* The current block: whether there is one, what is in it (plain), whether it waits. */
    bool open;
    size_t fill;
    bool full;
    bool ended;
    /* The last block of a compressed stream was taken: known from its size, or from end(). */
    bool complete;
    int error;
    struct s3dlio_block lent[BLOCKS_MOST];
    unsigned nlent;
    /* An address that was a block once. */
    void *once;
};

static void
make_source(struct source *source, unsigned char *data)
{
    source->data = data;
    for (size_t i = 0; i < STREAM_MOST; i++)
        source->until[i + 1] = slow_crc32c(source->until[i], data + i, 1);
    for (size_t i = 0; i < STREAM_MOST / BLOCK; i++)
        source->block[i] = slow_crc32c(0, data + i * BLOCK, BLOCK);
}

static bool
pool_empty(const struct model *m)
{
    return m->nlent + (m->open ? 1 : 0) == m->nblocks;
}

static bool
is_lent(const struct model *m, const void *data)
{
    for (unsigned i = 0; i < m->nlent; i++) {
        if (m->lent[i].data == data)
            return true;
    }
    return false;
}

/* What a write returns that takes nothing; 0 if it takes what there is. */
static int
predict_refusal(const struct model *m, size_t nbytes)
{
    if (m->error)
        return m->error;
    if (m->ended)
        return S3DLIO_E_CLOSED;
    if (m->full)
        return 1;
    return nbytes > 0 && !m->open && pool_empty(m) ? -EAGAIN : 0;
}

static void
write_bytes(struct model *m, size_t nbytes)
{
    size_t taken = 12345, room = BLOCK - m->fill;
    unsigned char *data;
    int status, refusal;

    if (nbytes > STREAM_MOST - m->raw_nbytes)
        nbytes = STREAM_MOST - m->raw_nbytes;
    refusal = predict_refusal(m, nbytes);
    data = copy_of(m->source->data + m->raw_nbytes, nbytes);
    status = s3dlio_stage_write(m->stage, data, nbytes, 0, &taken);
    free(data);
    if (refusal || nbytes == 0) {
        CHECK_EQ(status, refusal);
        CHECK_EQ(taken, 0);
        return;
    }
    if (m->zstd) {
        CHECK(status == 1 ? taken <= nbytes : status == 0 && taken == nbytes);
    } else {
        CHECK_EQ(status, nbytes >= room);
        CHECK_EQ(taken, nbytes < room ? nbytes : room);
        m->fill += taken;
    }
    m->open = true;
    m->full = status == 1;
    m->raw_nbytes += taken;
}

static int
end(struct model *m)
{
    int status = s3dlio_stage_end(m->stage, 0);

    if (m->error) {
        CHECK_EQ(status, m->error);
        return status;
    }
    m->ended = true;
    if (m->full) {
        CHECK_EQ(status, 1);
    } else if (m->complete) {
        CHECK_EQ(status, 0);
    } else if (m->zstd && status == 0) {
        CHECK(m->ntaken > 0 && !m->open);
        m->complete = true;
    } else if (m->zstd) {
        CHECK_EQ(status, !m->open && pool_empty(m) ? -EAGAIN : 1);
    } else {
        CHECK_EQ(status, m->fill > 0 ? 1 : 0);
    }
    if (status == 1)
        m->open = m->full = true;
    return status;
}

static void
take(struct model *m)
{
    struct s3dlio_block block;

    if (!m->full) {
        CHECK_EQ(s3dlio_stage_take(m->stage, &block), -EINVAL);
        return;
    }
    CHECK_EQ(s3dlio_stage_take(m->stage, &block), 0);
    CHECK_EQ(block.index, m->ntaken);
    CHECK_EQ(block.offset, m->stored_nbytes);
    CHECK(block.nbytes > 0 && block.nbytes <= BLOCK);
    CHECK(block.nbytes == BLOCK || m->ended);
    CHECK_EQ((uintptr_t)block.data % BLOCK, 0);
    if (m->zstd) {
        CHECK_EQ(block.crc32c, slow_crc32c(0, block.data, block.nbytes));
    } else {
        CHECK(block.offset + block.nbytes <= m->raw_nbytes);
        CHECK(memcmp(block.data, m->source->data + block.offset, block.nbytes) == 0);
        CHECK_EQ(block.crc32c, block.nbytes == BLOCK ? m->source->block[block.index]
                                                     : slow_crc32c(0, block.data, block.nbytes));
    }
    CHECK(!is_lent(m, block.data));
    CHECK(m->nlent < m->nblocks);
    CHECK(block.nbytes <= STORED_MOST - m->stored_nbytes);
    memcpy(m->stored + m->stored_nbytes, block.data, block.nbytes);
    m->stored_nbytes += block.nbytes;
    if (m->zstd)
        m->stored_crc32c = slow_crc32c(m->stored_crc32c, block.data, block.nbytes);
    m->ntaken++;
    m->lent[m->nlent++] = block;
    m->complete = m->zstd && block.nbytes < BLOCK;
    m->open = m->full = false;
    m->fill = 0;
}

/* Nobody touches a block while it is lent. */
static void
release(struct model *m, unsigned number)
{
    struct s3dlio_block *block = &m->lent[number];

    CHECK(memcmp(block->data, m->stored + block->offset, block->nbytes) == 0);
    CHECK_EQ(s3dlio_stage_release(m->stage, block->data), 0);
    m->once = block->data;
    *block = m->lent[--m->nlent];
}

/* What is not a taken block: one that was given back, its neighbours, memory of somebody else. */
static void
release_wrong(struct model *m, unsigned kind)
{
    char *near = m->nlent ? m->lent[kind % m->nlent].data : m->once;
    void *wrong[] = {m->once,  near ? near + 1 : NULL, near ? near + kind * 8 : NULL, m, NULL,
                     m->stored};
    void *data = wrong[kind % (sizeof wrong / sizeof wrong[0])];

    if (!is_lent(m, data))
        CHECK_EQ(s3dlio_stage_release(m->stage, data), -EINVAL);
}

static void
fail(struct model *m, unsigned number)
{
    static const int codes[] = {-EIO, -EPIPE, S3DLIO_E_CLOSED, 0, 1};
    int code = codes[number % (sizeof codes / sizeof codes[0])];

    s3dlio_stage_fail(m->stage, code);
    if (!m->error)
        m->error = code < 0 ? code : -EINVAL;
}

static void
check_totals(const struct model *m)
{
    struct s3dlio_stage_totals totals;

    s3dlio_stage_get_totals(m->stage, &totals, sizeof totals);
    CHECK_EQ(totals.raw_nbytes, m->raw_nbytes);
    CHECK_EQ(totals.raw_crc32c, m->source->until[m->raw_nbytes]);
    CHECK_EQ(totals.nblocks, m->ntaken);
    if (!m->zstd) {
        CHECK_EQ(totals.stored_nbytes, m->raw_nbytes);
        CHECK_EQ(totals.stored_crc32c, m->source->until[m->raw_nbytes]);
    } else if (!m->open) {
        CHECK_EQ(totals.stored_nbytes, m->stored_nbytes);
        CHECK_EQ(totals.stored_crc32c, m->stored_crc32c);
    } else {
        CHECK(totals.stored_nbytes >= m->stored_nbytes &&
              totals.stored_nbytes - m->stored_nbytes <= BLOCK);
    }
}

static void
call(struct model *m, struct input *input)
{
    unsigned byte = input_byte(input), argument = byte / NCALLS;

    switch ((enum call)(byte % NCALLS)) {
    case WRITE:
        write_bytes(m, input_size(input));
        break;
    case WRITE_BLOCKS:
        write_bytes(m, argument / 3 * BLOCK + argument % 3 - (argument >= 3 ? 1 : 0));
        break;
    case TAKE:
        take(m);
        break;
    case RELEASE:
        if (m->nlent > 0)
            release(m, argument % m->nlent);
        break;
    case RELEASE_WRONG:
        release_wrong(m, argument);
        break;
    case END:
        (void)end(m);
        break;
    case TOTALS:
        check_totals(m);
        break;
    default: /* seldom, as most calls after it only tell of it */
        if (argument > 24)
            fail(m, argument);
    }
}

/* Whatever was left undone: the sink gives its blocks back, and the stream ends. */
static void
finish(struct model *m)
{
    while (m->nlent > 0)
        release(m, 0);
    for (unsigned n = 0; end(m) == 1; n++) {
        CHECK(n <= STORED_MOST / BLOCK);
        take(m);
        release(m, 0);
    }
    check_totals(m);
}

static void
check_stream(const struct model *m)
{
    static unsigned char raw[STREAM_MOST];

    if (m->error)
        return;
    if (!m->zstd) {
        CHECK_EQ(m->stored_nbytes, m->raw_nbytes);
    } else {
        CHECK_EQ(ZSTD_decompress(raw, sizeof raw, m->stored, m->stored_nbytes), m->raw_nbytes);
        CHECK(memcmp(raw, m->source->data, m->raw_nbytes) == 0);
    }
}

int
LLVMFuzzerTestOneInput(const uint8_t *data, size_t nbytes)
{
    static unsigned char stored[STORED_MOST];
    static struct source noise, text;
    struct input input = {data, nbytes};
    unsigned options = input_byte(&input);
    struct model m = {.zstd = (options & OPTION_ZSTD) == OPTION_ZSTD,
                      .nblocks = 2 + options / 32 % 4,
                      .stored = stored};
    struct s3dlio_stage_options stage_options = {.struct_nbytes = sizeof stage_options,
                                                 .block_nbytes = BLOCK,
                                                 .nblocks = m.nblocks,
                                                 .zstd_level = m.zstd ? 1 : 0};

    if (!noise.data) {
        make_source(&noise, make_data(STREAM_MOST, 1));
        make_source(&text, make_text(STREAM_MOST, 2));
    }
    m.source = options & OPTION_TEXT ? &text : &noise;
    CHECK_EQ(s3dlio_stage_new(&m.stage, &stage_options), 0);
    while (input.nbytes > 0)
        call(&m, &input);
    if (!(options & OPTION_DROP)) {
        finish(&m);
        check_stream(&m);
    }
    s3dlio_stage_free(m.stage);
    return 0;
}
