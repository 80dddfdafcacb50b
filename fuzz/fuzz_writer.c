/*
 * Calls of the file writer in any order, with any sizes, on a real file system: after a close the
 * file holds what was written, after anything else what it held before, and nothing else is left.
 *
 * Input: three bytes of options, then the calls, each a byte and what it needs.
 */
#include <zstd.h>

#include "fuzz.h"
#include "s3dlio/status.h"
#include "s3dlio/writer.h"

#define BLOCK       (64 * KIB)
#define STREAM_MOST (8 * BLOCK)

static const char before[] = "what was there before";

struct model {
    struct s3dlio_writer *writer;
    const unsigned char *raw;
    size_t raw_nbytes;
    bool zstd;
    bool existed;
    bool closed;
    bool aborted;
};

static void
write_bytes(struct model *m, size_t nbytes)
{
    int status = 0;

    if (nbytes > STREAM_MOST - m->raw_nbytes)
        nbytes = STREAM_MOST - m->raw_nbytes;
    do {
        unsigned char *data = copy_of(m->raw + m->raw_nbytes, nbytes);
        size_t taken = 12345;

        status = s3dlio_writer_write(m->writer, data, nbytes, &taken);
        free(data);
        CHECK(taken <= nbytes);
        m->raw_nbytes += taken;
        nbytes -= taken;
    } while (status == -EAGAIN);
    CHECK_EQ(status, m->closed || m->aborted ? S3DLIO_E_CLOSED : 0);
    CHECK(status || nbytes == 0);
}

static void
close_file(struct model *m)
{
    int status;

    do
        status = s3dlio_writer_close(m->writer);
    while (status == -EAGAIN);
    CHECK_EQ(status, m->aborted ? S3DLIO_E_CLOSED : 0);
    m->closed = m->closed || status == 0;
}

static void
check_stats(const struct model *m)
{
    struct s3dlio_writer_stats stats;

    CHECK_EQ(s3dlio_writer_get_stats(m->writer, &stats, sizeof stats), 0);
    CHECK_EQ(stats.raw_nbytes, m->raw_nbytes);
    CHECK_EQ(stats.raw_crc32c, slow_crc32c(0, m->raw, m->raw_nbytes));
    CHECK_EQ(stats.published, m->closed);
    if (!m->zstd) {
        CHECK_EQ(stats.stored_nbytes, stats.raw_nbytes);
        CHECK_EQ(stats.stored_crc32c, stats.raw_crc32c);
    }
}

static void
check_file(const struct model *m, const char *folder, const char *path)
{
    CHECK_EQ(count_entries(folder), m->existed || m->closed);
    if (m->closed && m->zstd) {
        static unsigned char raw[STREAM_MOST];
        size_t nbytes;
        unsigned char *stored = get_file(path, &nbytes);

        CHECK_EQ(ZSTD_decompress(raw, sizeof raw, stored, nbytes), m->raw_nbytes);
        CHECK(memcmp(raw, m->raw, m->raw_nbytes) == 0);
        free(stored);
    } else if (m->closed) {
        CHECK(holds(path, m->raw, m->raw_nbytes));
    } else if (m->existed) {
        CHECK(holds(path, before, sizeof before));
    }
}

static void
call(struct model *m, struct input *input)
{
    unsigned byte = input_byte(input), argument = byte / 8;

    switch (byte % 8) {
    case 0:
    case 1:
        write_bytes(m, input_size(input));
        break;
    case 2:
    case 3:
        write_bytes(m, argument / 3 * BLOCK + argument % 3 - (argument >= 3 ? 1 : 0));
        break;
    case 4:
    case 5:
        check_stats(m);
        break;
    case 6:
        close_file(m);
        break;
    default:
        s3dlio_writer_abort(m->writer);
        m->aborted = m->aborted || !m->closed;
    }
}

static char folder[PATH_MAX];

static void
remove_own_folder(void)
{
    remove_folder(folder);
}

int
LLVMFuzzerTestOneInput(const uint8_t *data, size_t nbytes)
{
    static unsigned char *text;
    struct input input = {data, nbytes};
    unsigned options = input_byte(&input);
    struct s3dlio_writer_options writer_options = {.struct_nbytes = sizeof writer_options,
                                                   .block_nbytes = BLOCK,
                                                   .in_flight = 1 + input_byte(&input) % 4,
                                                   .zstd_level = options & 1,
                                                   .durability = options / 2 % 3,
                                                   .direct = input_byte(&input) % 2,
                                                   .slice_ms = options & 64 ? 1 : 0};
    struct model m = {.zstd = options & 1, .existed = options & 128};
    char path[PATH_MAX];

    if (!text) {
        text = make_text(STREAM_MOST, 1);
        make_folder(folder, NULL);
        atexit(remove_own_folder);
        force_engine("threads");
    }
    m.raw = text;
    join(path, folder, "file");
    if (m.existed)
        put_file(path, before, sizeof before);
    CHECK_EQ(s3dlio_writer_open(&m.writer, path, &writer_options), 0);
    while (input.nbytes > 0)
        call(&m, &input);
    check_file(&m, folder, path);
    s3dlio_writer_free(m.writer);
    check_file(&m, folder, path);
    if (m.existed || m.closed)
        CHECK(unlink(path) == 0);
    return 0;
}
