/*
 * A program of the time of 0.1.0, which uses every call: program FOLDER.  It is compiled with the
 * headers beside it and run with each later library of the same ABI.
 */
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <s3dlio/s3dlio.h>

#define CHECK(condition)                                                                           \
    do {                                                                                           \
        if (!(condition)) {                                                                        \
            fprintf(stderr, "%s:%d: failed: %s\n", __FILE__, __LINE__, #condition);                \
            exit(1);                                                                               \
        }                                                                                          \
    } while (0)

enum { NBYTES = 3 << 20 };
static unsigned char data[NBYTES], back[NBYTES + 1], packed[NBYTES + 4096];
static char path[4096];
static uint32_t data_crc;

static void
check_small_things(void)
{
    char text[128];
    const char *variant = s3dlio_crc32c_variant();

    CHECK(strchr(s3dlio_version(), '.') != NULL);
    CHECK(strlen(variant) > 0);
    CHECK(s3dlio_crc32c(0, "hello world", 11) == 0xc99465aa);
    CHECK(s3dlio_crc32c_combine(s3dlio_crc32c(0, "hello", 5), s3dlio_crc32c(0, " world", 6), 6) ==
          0xc99465aa);
    CHECK(s3dlio_status_text(S3DLIO_E_CORRUPT, text, sizeof text) == text);
    CHECK(strlen(text) > 10);
    CHECK(S3DLIO_E_RESERVED_NAME == -10010);
}

static void
check_buffers(void)
{
    struct s3dlio_pool *pool;
    void *block, *other, *memory;

    CHECK(s3dlio_buffer_alloc(&memory, 4 << 20) == 0);
    s3dlio_buffer_advise(memory, 4 << 20);
    memset(memory, 1, 4 << 20);
    s3dlio_buffer_free(memory, 4 << 20);
    CHECK(s3dlio_pool_new(&pool, 65536, 1) == 0);
    CHECK(s3dlio_pool_take(pool, &block, -1) == 0);
    CHECK(s3dlio_pool_take(pool, &other, 0) == -EAGAIN);
    CHECK(s3dlio_pool_give(pool, block) == 0);
    s3dlio_pool_fail(pool, -EIO);
    CHECK(s3dlio_pool_take(pool, &other, -1) == -EIO);
    s3dlio_pool_free(pool);
}

static void
check_zstd(void)
{
    struct s3dlio_zstd_encoder *encoder;
    struct s3dlio_zstd_decoder *decoder;
    struct s3dlio_zstd_in in = {data, NBYTES, 0};
    struct s3dlio_zstd_out out = {packed, sizeof packed, 0};

    CHECK(s3dlio_zstd_encoder_new(&encoder, S3DLIO_ZSTD_LEVEL_DEFAULT, 0) == 0);
    CHECK(s3dlio_zstd_encoder_write(encoder, &in, &out) == 0);
    CHECK(in.pos == NBYTES);
    CHECK(s3dlio_zstd_encoder_end(encoder, &out) == 0);
    s3dlio_zstd_encoder_free(encoder);

    in.data = packed;
    in.nbytes = out.pos;
    in.pos = 0;
    out.data = back;
    out.nbytes = NBYTES + 1; /* room that is left tells that this was all */
    out.pos = 0;
    CHECK(s3dlio_zstd_decoder_new(&decoder) == 0);
    while (in.pos < in.nbytes)
        CHECK(s3dlio_zstd_decoder_read(decoder, &in, &out) == 0);
    CHECK(s3dlio_zstd_decoder_end(decoder) == 0);
    s3dlio_zstd_decoder_free(decoder);
    CHECK(out.pos == NBYTES && memcmp(data, back, NBYTES) == 0);
}

static void
take_block(struct s3dlio_stage *stage, uint64_t *stored)
{
    struct s3dlio_block block;

    CHECK(s3dlio_stage_take(stage, &block) == 0);
    CHECK(block.offset == *stored);
    CHECK(block.crc32c == s3dlio_crc32c(0, block.data, block.nbytes));
    memcpy(back + block.offset, block.data, block.nbytes);
    *stored += block.nbytes;
    CHECK(s3dlio_stage_release(stage, block.data) == 0);
}

static void
check_stage(void)
{
    struct s3dlio_stage_options options;
    struct s3dlio_stage_totals totals;
    struct s3dlio_stage *stage;
    size_t done = 0, taken, room_nbytes;
    uint64_t stored = 0;
    void *room;
    int status;

    memset(&options, 0, sizeof options);
    options.struct_nbytes = sizeof options;
    options.block_nbytes = 1 << 20;
    options.nblocks = 3;
    CHECK(s3dlio_stage_new(&stage, &options) == 0);
    CHECK(s3dlio_stage_reserve(stage, -1, &room, &room_nbytes) == 0);
    memcpy(room, data, 100);
    CHECK(s3dlio_stage_commit(stage, 100) == 0);
    CHECK(s3dlio_stage_append(stage, data + 100, 100) == 1);
    for (done = 200; done < NBYTES; done += taken) {
        status = s3dlio_stage_write(stage, data + done, NBYTES - done, -1, &taken);
        CHECK(status >= 0);
        if (status == 1) {
            take_block(stage, &stored);
            if (stored == 2 << 20)
                CHECK(s3dlio_stage_resize(stage, 2 << 20, 2) == 0);
        }
    }
    while (s3dlio_stage_end(stage, -1) == 1)
        take_block(stage, &stored);
    memset(&totals, 0xff, sizeof totals);
    s3dlio_stage_get_totals(stage, &totals, sizeof totals);
    CHECK(totals.raw_nbytes == NBYTES && totals.stored_nbytes == NBYTES && totals.nblocks == 3);
    CHECK(totals.raw_crc32c == data_crc && totals.stored_crc32c == data_crc);
    CHECK(memcmp(data, back, NBYTES) == 0);
    s3dlio_stage_fail(stage, -EIO);
    s3dlio_stage_free(stage);
}

static void
check_read(void)
{
    struct s3dlio_reader_options options;
    struct s3dlio_reader *reader;
    uint32_t crc;

    memset(&options, 0, sizeof options);
    options.struct_nbytes = sizeof options;
    options.block_nbytes = 1 << 20;
    options.in_flight = 2;
    options.direct = S3DLIO_DIRECT_PREFER;
    options.timeout_ms = 60000;
    CHECK(s3dlio_reader_open(&reader, path, &options) == 0);
    CHECK(s3dlio_reader_nbytes(reader) == NBYTES);
    memset(back, 0, NBYTES);
    CHECK(s3dlio_reader_read(reader, back, NBYTES, 0, &crc) == NBYTES);
    CHECK(crc == data_crc && memcmp(data, back, NBYTES) == 0);
    CHECK(s3dlio_reader_is_direct(reader) == 0 || s3dlio_reader_is_direct(reader) == 1);
    CHECK(strlen(s3dlio_reader_engine(reader)) > 0);
    CHECK(s3dlio_reader_cancel(reader) == 0);
    s3dlio_reader_free(reader);
}

static void
check_write(void)
{
    struct s3dlio_writer_options options;
    struct s3dlio_writer_stats stats;
    struct s3dlio_writer *writer;
    size_t taken;

    memset(&options, 0, sizeof options);
    options.struct_nbytes = sizeof options;
    options.block_nbytes = 1 << 20;
    options.in_flight = 2;
    options.durability = S3DLIO_DURABILITY_DATA;
    options.direct = S3DLIO_DIRECT_PREFER;
    options.timeout_ms = 60000;
    CHECK(s3dlio_writer_open(&writer, path, &options) == 0);
    CHECK(s3dlio_writer_write(writer, data, NBYTES - 1000, &taken) == 0);
    CHECK(taken == NBYTES - 1000);
    if (!s3dlio_writer_append(writer, data + NBYTES - 1000, 1000))
        CHECK(s3dlio_writer_write(writer, data + NBYTES - 1000, 1000, NULL) == 0);
    CHECK(s3dlio_writer_close(writer) == 0);
    memset(&stats, 0xff, sizeof stats);
    CHECK(s3dlio_writer_get_stats(writer, &stats, sizeof stats) == 0);
    CHECK(stats.raw_nbytes == NBYTES && stats.stored_nbytes == NBYTES && stats.nblocks == 3);
    CHECK(stats.block_nbytes == 1 << 20 && stats.published && strlen(stats.engine) > 0);
    CHECK(stats.raw_crc32c == data_crc && stats.stored_crc32c == data_crc);
    s3dlio_writer_free(writer);
    check_read();

    CHECK(s3dlio_writer_open(&writer, path, NULL) == 0);
    CHECK(s3dlio_writer_write(writer, "other", 5, NULL) == 0);
    s3dlio_writer_abort(writer);
    CHECK(s3dlio_writer_write(writer, "other", 5, NULL) == S3DLIO_E_CLOSED);
    s3dlio_writer_free(writer);
    check_read();

    CHECK(remove(path) == 0);
    CHECK(s3dlio_writer_put(path, data, NBYTES, &options) == 0);
    check_read();
}

int
main(int argc, char **argv)
{
    CHECK(argc == 2);
    snprintf(path, sizeof path, "%s/file", argv[1]);
    for (size_t i = 0; i < NBYTES; i++)
        data[i] = (unsigned char)(i * 2654435761u >> 13);
    data_crc = s3dlio_crc32c(0, data, NBYTES);
    check_small_things();
    check_buffers();
    check_zstd();
    check_stage();
    check_write();
    printf("compiled with %d.%d.%d, ran\n", S3DLIO_VERSION_MAJOR, S3DLIO_VERSION_MINOR,
           S3DLIO_VERSION_PATCH);
    return 0;
}
