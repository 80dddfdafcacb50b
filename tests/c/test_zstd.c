/* zstd streams: what was written is read, by us and by others, and what was damaged is not. */
#include "s3dlio/zstd.h"

#include <zstd.h>

#include "s3dlio/status.h"
#include "support.h"

struct bytes {
    unsigned char *data;
    size_t nbytes;
};

/* Compresses in pieces of up to 'most_in' bytes into room of up to 'most_out' bytes at a time. */
static struct bytes
encode(const unsigned char *data, size_t nbytes, int level, int nworkers, size_t most_in,
       size_t most_out)
{
    struct bytes packed = {malloc(ZSTD_compressBound(nbytes) + 64), 0};
    size_t room_nbytes = ZSTD_compressBound(nbytes) + 64;
    struct s3dlio_zstd_encoder *encoder = NULL;
    uint64_t state = nbytes + most_in + most_out;
    struct s3dlio_zstd_in late = {"x", 1, 0};
    struct s3dlio_zstd_out out;
    size_t done = 0;
    int status;

    CHECK(packed.data);
    CHECK_EQ(s3dlio_zstd_encoder_new(&encoder, level, nworkers), 0);
    while (done < nbytes) {
        size_t chunk = random_between(&state, 0, most_in);
        struct s3dlio_zstd_in in = {data + done, chunk < nbytes - done ? chunk : nbytes - done, 0};

        do {
            size_t room = random_between(&state, 1, most_out);

            CHECK(packed.nbytes + room <= room_nbytes + most_out);
            if (room > room_nbytes - packed.nbytes)
                room = room_nbytes - packed.nbytes;
            out = (struct s3dlio_zstd_out){packed.data + packed.nbytes, room, 0};
            CHECK_EQ(s3dlio_zstd_encoder_write(encoder, &in, &out), 0);
            CHECK(in.pos == in.nbytes || out.pos == out.nbytes);
            packed.nbytes += out.pos;
        } while (in.pos < in.nbytes);
        done += in.nbytes;
    }
    do {
        size_t room = random_between(&state, 0, most_out);

        if (room > room_nbytes - packed.nbytes)
            room = room_nbytes - packed.nbytes;
        out = (struct s3dlio_zstd_out){packed.data + packed.nbytes, room, 0};
        status = s3dlio_zstd_encoder_end(encoder, &out);
        packed.nbytes += out.pos;
        CHECK(status == 0 || (status == 1 && out.pos == out.nbytes));
        if (status == 1) { /* the end has begun */
            out = (struct s3dlio_zstd_out){packed.data + packed.nbytes, 1, 0};
            CHECK_EQ(s3dlio_zstd_encoder_write(encoder, &late, &out), S3DLIO_E_CLOSED);
        }
    } while (status == 1);
    out = (struct s3dlio_zstd_out){packed.data + packed.nbytes, 1, 0};
    CHECK_EQ(s3dlio_zstd_encoder_end(encoder, &out), 0);
    CHECK_EQ(s3dlio_zstd_encoder_write(encoder, &late, &out), S3DLIO_E_CLOSED);
    CHECK(late.pos == 0 && out.pos == 0);
    s3dlio_zstd_encoder_free(encoder);
    return packed;
}

/* Returns what the decoder says at the end; the output, if it was good, is compared. */
static int
decode(const unsigned char *packed, size_t packed_nbytes, const unsigned char *data, size_t nbytes,
       size_t most_in, size_t most_out)
{
    struct s3dlio_zstd_decoder *decoder = NULL;
    unsigned char *unpacked = malloc(nbytes + most_out + 1);
    uint64_t state = packed_nbytes + most_in + most_out;
    size_t done = 0, produced = 0;
    int status = 0;

    CHECK(unpacked);
    CHECK_EQ(s3dlio_zstd_decoder_new(&decoder), 0);
    CHECK_EQ(s3dlio_zstd_decoder_end(decoder), S3DLIO_E_TRUNCATED);
    for (bool more = true; !status && more;) {
        size_t chunk = random_between(&state, 0, most_in);
        struct s3dlio_zstd_in in = {packed + done,
                                    chunk < packed_nbytes - done ? chunk : packed_nbytes - done, 0};

        for (bool full = true; !status && full;) {
            struct s3dlio_zstd_out out = {unpacked + produced, random_between(&state, 1, most_out),
                                          0};

            status = s3dlio_zstd_decoder_read(decoder, &in, &out);
            produced += out.pos;
            full = out.pos == out.nbytes;
            CHECK(status || full || in.pos == in.nbytes);
            if (produced > nbytes) { /* only of damaged data; there is no room for it */
                s3dlio_zstd_decoder_free(decoder);
                free(unpacked);
                return S3DLIO_E_CORRUPT;
            }
        }
        done += in.nbytes;
        more = done < packed_nbytes;
    }
    if (status)
        CHECK_EQ(s3dlio_zstd_decoder_end(decoder), status); /* it sticks */
    else
        status = s3dlio_zstd_decoder_end(decoder);
    if (!status)
        status = produced == nbytes && memcmp(unpacked, data, nbytes) == 0 ? 0 : 1;
    s3dlio_zstd_decoder_free(decoder);
    free(unpacked);
    return status;
}

/* The format as zstd.h tells it. */
#define MARK_AT     6
#define MARK_NBYTES 6
#define SEAL_NBYTES 16

static const unsigned char seal_begin[] = {0x53, 0x2a, 0x4d, 0x18, 8, 0, 0, 0, 's', '3', 'd', 'l'};

static void
check_sealed(const struct bytes *packed)
{
    static const unsigned char begin[] = {0x28, 0xb5, 0x2f, 0xfd, 0x04}, mark[MARK_NBYTES];
    const unsigned char *seal = packed->data + packed->nbytes - SEAL_NBYTES;
    uint32_t crc = slow_crc32c(0, packed->data, packed->nbytes - SEAL_NBYTES);

    CHECK(memcmp(packed->data, begin, sizeof begin) == 0);
    CHECK(memcmp(packed->data + MARK_AT, mark, sizeof mark) == 0);
    CHECK(memcmp(seal, seal_begin, sizeof seal_begin) == 0);
    for (int i = 0; i < 4; i++)
        CHECK_EQ(seal[12 + i], crc >> 8 * i & 0xff);
}

/* Takes mark and seal away: what libzstd made. */
static struct bytes
plain_of(const struct bytes *packed)
{
    struct bytes plain = {malloc(packed->nbytes), packed->nbytes - MARK_NBYTES - SEAL_NBYTES};

    CHECK(plain.data);
    memcpy(plain.data, packed->data, MARK_AT);
    memcpy(plain.data + MARK_AT, packed->data + MARK_AT + MARK_NBYTES, plain.nbytes - MARK_AT);
    return plain;
}

static void
check_others_read(const struct bytes *packed, const unsigned char *data, size_t nbytes)
{
    unsigned char *unpacked = malloc(nbytes + 1);

    CHECK(unpacked);
    CHECK_EQ(ZSTD_decompress(unpacked, nbytes + 1, packed->data, packed->nbytes), nbytes);
    CHECK(memcmp(unpacked, data, nbytes) == 0);
    free(unpacked);
    check_sealed(packed);
}

static void
every_level_round_trips(void)
{
    const size_t nbytes = 100000;
    unsigned char *data = make_text(nbytes, 1);

    for (int level = S3DLIO_ZSTD_LEVEL_MIN; level <= S3DLIO_ZSTD_LEVEL_MAX; level++) {
        struct bytes packed = encode(data, nbytes, level, 0, nbytes, nbytes);

        CHECK(packed.nbytes < nbytes * 2 / 3);
        check_others_read(&packed, data, nbytes);
        CHECK_EQ(decode(packed.data, packed.nbytes, data, nbytes, nbytes, nbytes), 0);
        free(packed.data);
    }
    free(data);
}

static void
levels_out_of_range_are_refused(void)
{
    static const int levels[] = {0, 23, -1, 1000000, INT_MIN, INT_MAX};
    struct s3dlio_zstd_encoder *encoder = NULL;

    for (unsigned i = 0; i < sizeof levels / sizeof levels[0]; i++)
        CHECK_EQ(s3dlio_zstd_encoder_new(&encoder, levels[i], 0), -EINVAL);
    CHECK(!encoder);
    s3dlio_zstd_encoder_free(NULL);
    s3dlio_zstd_decoder_free(NULL);
}

static void
any_pieces_round_trip(void)
{
    static const size_t sizes[] = {0, 1, 2, 1000, 130000, 300001};
    static const size_t pieces[] = {1, 3, 1000, 200000};
    unsigned char *noise = make_data(300001, 2);
    unsigned char *text = make_text(300001, 3);

    for (unsigned i = 0; i < sizeof sizes / sizeof sizes[0]; i++) {
        for (unsigned k = 0; k < 16; k++) {
            const unsigned char *data = k % 3 ? text : noise;
            size_t most_in = pieces[k % 4], most_out = pieces[k / 4];
            struct bytes packed;

            if (sizes[i] > 1000 && (most_in < 1000) != (most_out < 1000))
                continue; /* takes long and tells nothing new */
            packed = encode(data, sizes[i], 1, 0, most_in, most_out);
            check_others_read(&packed, data, sizes[i]);
            CHECK_EQ(decode(packed.data, packed.nbytes, data, sizes[i], most_in, most_out), 0);
            free(packed.data);
        }
    }
    free(noise);
    free(text);
}

static void
worker_threads_give_the_same_stream_to_readers(void)
{
    static const int nworkers[] = {0, 2, -1};
    const size_t nbytes = 3 * MIB + 5;
    unsigned char *data = make_text(nbytes, 4);

    for (int i = 0; i < 3; i++) {
        struct bytes packed = encode(data, nbytes, 1, nworkers[i], 300000, 70000);

        check_others_read(&packed, data, nbytes);
        CHECK_EQ(decode(packed.data, packed.nbytes, data, nbytes, 100000, 300000), 0);
        free(packed.data);
        packed = encode(data, 0, 1, nworkers[i], 1, 1);
        check_others_read(&packed, data, 0);
        free(packed.data);
    }
    free(data);
}

static void
frames_one_after_the_other_are_one_stream(void)
{
    static const unsigned char skippable[] = {0x50, 0x2a, 0x4d, 0x18, 3, 0, 0, 0, 'a', 'b', 'c'};
    unsigned char *data = make_text(5000, 5);
    unsigned char *all = malloc(20000);
    struct bytes first = encode(data, 2000, 3, 0, 2000, 2000);
    struct bytes second = encode(data + 2000, 3000, 3, 0, 3000, 3000);
    struct bytes empty = encode(data, 0, 3, 0, 1, 10);
    size_t nbytes = 0;

    CHECK(all);
    memcpy(all, first.data, first.nbytes);
    nbytes = first.nbytes;
    memcpy(all + nbytes, empty.data, empty.nbytes);
    nbytes += empty.nbytes;
    memcpy(all + nbytes, skippable, sizeof skippable);
    nbytes += sizeof skippable;
    memcpy(all + nbytes, second.data, second.nbytes);
    nbytes += second.nbytes;
    for (size_t most = 1; most < 20000; most *= 7) {
        CHECK_EQ(decode(all, nbytes, data, 5000, most, most), 0);
        CHECK_EQ(decode(all, nbytes - 1, data, 5000, most, most), S3DLIO_E_TRUNCATED);
    }
    free(all);
    free(first.data);
    free(second.data);
    free(empty.data);
    free(data);
}

static void
empty_input_is_truncated(void)
{
    CHECK_EQ(decode((const unsigned char *)"", 0, NULL, 0, 1, 1), S3DLIO_E_TRUNCATED);
}

/* A small stream with both kinds of blocks: text that compresses, and noise that does not. */
static struct bytes
small_stream(unsigned char **data_ret, size_t *nbytes_ret)
{
    unsigned char *noise = make_data(100, 6);
    unsigned char *data = make_text(500, 6);

    memcpy(data + 300, noise, 100);
    memset(data + 400, 'z', 100);
    free(noise);
    *data_ret = data;
    *nbytes_ret = 500;
    return encode(data, 500, 3, 0, 500, 500);
}

static void
every_cut_is_an_error(void)
{
    unsigned char *data;
    size_t nbytes;
    struct bytes packed = small_stream(&data, &nbytes);

    CHECK(packed.nbytes > 250);
    for (size_t cut = 0; cut < packed.nbytes; cut++) {
        for (size_t most = 1; most <= 1000; most *= 1000) {
            int status = decode(packed.data, cut, data, nbytes, most, most + 600);

            CHECK_EQ(status, S3DLIO_E_TRUNCATED);
        }
    }
    free(packed.data);
    free(data);
}

/* How many flips of a bit are not seen, which then say nothing of the content. */
static int
count_unseen_flips(const struct bytes *packed, const unsigned char *data, size_t nbytes)
{
    int n = 0;

    for (size_t bit = 0; bit < packed->nbytes * 8; bit++) {
        size_t most = bit % 3 ? 1000 : 1;
        int status;

        packed->data[bit / 8] ^= (unsigned char)(1 << bit % 8);
        status = decode(packed->data, packed->nbytes, data, nbytes, most, most + 1000);
        packed->data[bit / 8] ^= (unsigned char)(1 << bit % 8);
        CHECK(status <= 0); /* 1: other bytes, said to be good */
        n += status == 0;
    }
    return n;
}

/* Flips of unused bits, of the window's size and of padding were not seen, for the checksum in the
 * frame is that of the content: so it is without the seal. */
static void
every_flipped_bit_is_an_error(void)
{
    unsigned char *noise = make_data(100, 7), *zeros = calloc(1, 200000), *data;
    size_t nbytes;
    struct bytes packed[] = {small_stream(&data, &nbytes), encode(noise, 100, 3, 0, 100, 100),
                             encode(zeros, 200000, 3, 0, 200000, 200000),
                             encode(noise, 0, 3, 0, 1, 1), encode(noise, 1, 19, 0, 1, 1)};
    const unsigned char *contents[] = {data, noise, zeros, noise, noise};
    size_t sizes[] = {nbytes, 100, 200000, 0, 1};

    for (int i = 0; i < 5; i++) {
        struct bytes plain = plain_of(&packed[i]);

        CHECK_EQ(count_unseen_flips(&packed[i], contents[i], sizes[i]), 0);
        CHECK_EQ(decode(plain.data, plain.nbytes, contents[i], sizes[i], 1000, 1000), 0);
        CHECK(count_unseen_flips(&plain, contents[i], sizes[i]) > 0);
        free(plain.data);
        free(packed[i].data);
    }
    free(zeros);
    free(noise);
    free(data);
}

/* What the decoder says to the pieces one after the other, in any pieces: the content of each data
 * frame is 'data'. */
static int
decode_parts(const struct bytes *parts, int nparts, const unsigned char *data, size_t nbytes,
             int ncontents)
{
    unsigned char *all = malloc(10000), *content = malloc(10000);
    size_t all_nbytes = 0;
    int status = 1;

    CHECK(all && content);
    for (int i = 0; i < nparts; i++) {
        CHECK(all_nbytes + parts[i].nbytes <= 10000);
        memcpy(all + all_nbytes, parts[i].data, parts[i].nbytes);
        all_nbytes += parts[i].nbytes;
    }
    for (int i = 0; i < ncontents; i++)
        memcpy(content + i * nbytes, data, nbytes);
    for (size_t most = 1; most <= 10000; most *= 100) {
        int said = decode(all, all_nbytes, content, ncontents * nbytes, most, most + 100);

        CHECK(status == 1 || said == status);
        status = said;
    }
    free(content);
    free(all);
    return status;
}

static void
seal_stands_behind_its_frame_and_nowhere_else(void)
{
    unsigned char skipped_data[] = {0x53, 0x2a, 0x4d, 0x18, 4, 0, 0, 0, 's', '3', 'd', 'l'};
    unsigned char *data, wrong_data[SEAL_NBYTES];
    size_t nbytes;
    struct bytes packed = small_stream(&data, &nbytes);
    struct bytes plain = plain_of(&packed), plain_seal = {malloc(SEAL_NBYTES), SEAL_NBYTES};
    struct bytes marked = {packed.data, packed.nbytes - SEAL_NBYTES};
    struct bytes seal = {packed.data + marked.nbytes, SEAL_NBYTES};
    struct bytes wrong = {wrong_data, SEAL_NBYTES};
    struct bytes skipped = {skipped_data, sizeof skipped_data};
    uint32_t crc = slow_crc32c(0, plain.data, plain.nbytes);

    CHECK(plain_seal.data);
    memcpy(wrong.data, seal.data, SEAL_NBYTES);
    wrong.data[SEAL_NBYTES - 1] ^= 1;
    memcpy(plain_seal.data, seal_begin, sizeof seal_begin);
    for (int i = 0; i < 4; i++)
        plain_seal.data[12 + i] = (unsigned char)(crc >> 8 * i);

#define SAID(ncontents, ...)                                                                       \
    decode_parts((struct bytes[]){__VA_ARGS__},                                                    \
                 sizeof (struct bytes[]){__VA_ARGS__} / sizeof(struct bytes), data, nbytes,        \
                 ncontents)
    CHECK_EQ(SAID(1, marked, seal), 0);
    CHECK_EQ(SAID(2, packed, packed), 0);
    CHECK_EQ(SAID(4, plain, packed, plain, packed), 0);
    CHECK_EQ(SAID(2, skipped, packed, skipped, packed, skipped, skipped), 0);
    /* Without it, or with something before it. */
    CHECK_EQ(SAID(1, marked), S3DLIO_E_TRUNCATED);
    CHECK_EQ(SAID(2, packed, marked), S3DLIO_E_TRUNCATED);
    CHECK_EQ(SAID(2, marked, packed), S3DLIO_E_CORRUPT);
    CHECK_EQ(SAID(2, marked, plain), S3DLIO_E_CORRUPT);
    CHECK_EQ(SAID(1, marked, skipped), S3DLIO_E_CORRUPT);
    CHECK_EQ(SAID(1, marked, skipped, seal), S3DLIO_E_CORRUPT);
    /* With that of another frame, and without a frame. */
    CHECK_EQ(SAID(1, marked, wrong), S3DLIO_E_CORRUPT);
    CHECK_EQ(SAID(1, marked, plain_seal), S3DLIO_E_CORRUPT);
    CHECK_EQ(SAID(2, packed, marked, wrong), S3DLIO_E_CORRUPT);
    CHECK_EQ(SAID(0, seal), S3DLIO_E_CORRUPT);
    CHECK_EQ(SAID(1, packed, seal), S3DLIO_E_CORRUPT);
    CHECK_EQ(SAID(1, packed, skipped, seal), S3DLIO_E_CORRUPT);
    /* A frame without the mark needs none, but one that is there counts. */
    CHECK_EQ(SAID(1, plain), 0);
    CHECK_EQ(SAID(1, plain, plain_seal), 0);
    CHECK_EQ(SAID(2, plain, plain_seal, plain), 0);
    CHECK_EQ(SAID(1, plain, seal), S3DLIO_E_CORRUPT);
    CHECK_EQ(SAID(2, packed, plain, seal), S3DLIO_E_CORRUPT);
#undef SAID
    free(plain_seal.data);
    free(plain.data);
    free(packed.data);
    free(data);
}

/* Others may use frames to be skipped for whatever they like (RFC 8878, 3.1.2). */
static void
frames_to_be_skipped_are_those_of_others_unless_they_are_seals(void)
{
    unsigned char skipped[40] = {0, 0x2a, 0x4d, 0x18};
    unsigned char *data;
    size_t nbytes;
    struct bytes packed = small_stream(&data, &nbytes), plain = plain_of(&packed);

    for (int kind = 0; kind < 16; kind++) {
        for (size_t size = 0; size <= 32; size += 4) {
            struct bytes parts[] = {
                {skipped, size + 8}, plain, {skipped, size + 8}, packed, {skipped, size + 8}};

            skipped[0] = (unsigned char)(0x50 | kind);
            skipped[4] = (unsigned char)size;
            /* As much of a seal as there may be in another frame. */
            memcpy(skipped + 8, size == 8 && kind == 3 ? "s3dk" : "s3dl", 4);
            CHECK_EQ(decode_parts(parts, 5, data, nbytes, 2), 0);
        }
    }
    free(plain.data);
    free(packed.data);
    free(data);
}

static void
trailing_bytes_are_an_error(void)
{
    static const unsigned char magic[] = {0x28, 0xb5, 0x2f, 0xfd};
    unsigned char *data;
    size_t nbytes;
    struct bytes packed = small_stream(&data, &nbytes);
    unsigned char *longer = malloc(packed.nbytes + 20);

    CHECK(longer);
    memcpy(longer, packed.data, packed.nbytes);
    for (size_t extra = 1; extra <= 20; extra++) {
        for (int kind = 0; kind < 3; kind++) {
            if (kind == 2)
                memcpy(longer + packed.nbytes, magic, extra < 4 ? extra : 4);
            else
                memset(longer + packed.nbytes, kind ? 0xff : 0, extra);
            for (size_t most = 1; most <= 1000; most *= 1000)
                CHECK(decode(longer, packed.nbytes + extra, data, nbytes, most, most) < 0);
        }
    }
    free(longer);
    free(packed.data);
    free(data);
}

static void
what_is_no_zstd_is_corrupt(void)
{
    static const unsigned char text[] = "This is not zstd, and never was.";

    CHECK_EQ(decode(text, sizeof text, NULL, 0, 100, 100), S3DLIO_E_CORRUPT);
}

/* Libzstd took such a frame for complete, unless all of it came at once. */
static void
content_that_is_announced_and_missing_is_corrupt(void)
{
    /* A frame header that says 27 bytes, and as the only block an empty one. */
    static const unsigned char frame[] = {0x28, 0xb5, 0x2f, 0xfd, 0x20, 27, 1, 0, 0};

    for (size_t most = 1; most <= 100; most++)
        CHECK_EQ(decode(frame, sizeof frame, NULL, 0, most, most), S3DLIO_E_CORRUPT);
}

/* Libzstd may be built to read what was written before zstd 1.0, and is in Debian. */
static void
formats_before_zstd_1_are_corrupt(void)
{
    /* A complete frame of zstd 0.7, and the magic numbers of the others. */
    unsigned char frame[] = {0x27, 0xb5, 0x2f, 0xfd, 0, 0, 0xc0, 0, 0};

    for (frame[0] = 0x22; frame[0] < 0x28; frame[0]++) {
        for (size_t most = 1; most <= 100; most *= 10)
            CHECK_EQ(decode(frame, sizeof frame, NULL, 0, most, most), S3DLIO_E_CORRUPT);
    }
}

static void
window_over_the_limit_is_refused(void)
{
    /* A frame header whose window is 2 GiB: exponent 21 in the upper five bits. */
    static const unsigned char huge[] = {0x28, 0xb5, 0x2f, 0xfd, 0x04, 21 << 3, 1, 0, 0, 0, 0, 0};

    CHECK_EQ(decode(huge, sizeof huge, NULL, 0, 100, 100), S3DLIO_E_ZSTD);
}

/* Reads without input were counted as a stall, and an undamaged stream became corrupt. */
static void
reads_of_nothing_do_no_harm(void)
{
    unsigned char *data;
    size_t nbytes;
    struct bytes packed = small_stream(&data, &nbytes);
    struct s3dlio_zstd_decoder *decoder = NULL;
    unsigned char unpacked[600];
    struct s3dlio_zstd_out out = {unpacked, sizeof unpacked, 0};

    CHECK_EQ(s3dlio_zstd_decoder_new(&decoder), 0);
    for (size_t done = 0; done < packed.nbytes;) {
        size_t chunk = packed.nbytes - done < 100 ? packed.nbytes - done : 100;
        struct s3dlio_zstd_in in = {packed.data + done, chunk, 0};

        CHECK_EQ(s3dlio_zstd_decoder_read(decoder, &in, &out), 0);
        CHECK_EQ(in.pos, chunk);
        done += chunk;
        for (int i = 0; i < 50; i++) {
            struct s3dlio_zstd_in nothing = {NULL, 0, 0};

            CHECK_EQ(s3dlio_zstd_decoder_read(decoder, &nothing, &out), 0);
        }
    }
    CHECK_EQ(s3dlio_zstd_decoder_end(decoder), 0);
    CHECK_EQ(out.pos, nbytes);
    CHECK(memcmp(unpacked, data, nbytes) == 0);
    s3dlio_zstd_decoder_free(decoder);
    free(packed.data);
    free(data);
}

/* How much comes out of an unfinished stream, with room for 'most_out' bytes at a time. */
static size_t
output_of_part(const struct bytes *packed, size_t part, size_t most_out)
{
    struct s3dlio_zstd_in in = {packed->data, part, 0};
    struct s3dlio_zstd_decoder *decoder = NULL;
    unsigned char *room = malloc(most_out);
    struct s3dlio_zstd_out out;
    size_t produced = 0;

    CHECK_EQ(s3dlio_zstd_decoder_new(&decoder), 0);
    do {
        out = (struct s3dlio_zstd_out){room, most_out, 0};
        CHECK_EQ(s3dlio_zstd_decoder_read(decoder, &in, &out), 0);
        produced += out.pos;
    } while (out.pos == out.nbytes);
    CHECK_EQ(in.pos, part);
    s3dlio_zstd_decoder_free(decoder);
    free(room);
    return produced;
}

static void
output_without_room_comes_without_more_input(void)
{
    unsigned char *data = make_text(400000, 8);
    struct bytes packed = encode(data, 400000, 1, 0, 400000, 400000);

    for (size_t part = packed.nbytes / 2; part < packed.nbytes / 2 + 20; part++)
        CHECK_EQ(output_of_part(&packed, part, 1000), output_of_part(&packed, part, 400000));
    for (size_t part = packed.nbytes - 10; part < packed.nbytes; part++)
        CHECK_EQ(output_of_part(&packed, part, 7), output_of_part(&packed, part, 400001));
    free(packed.data);
    free(data);
}

static void
use_inherited_encoder(void *argument)
{
    char room[100];
    struct s3dlio_zstd_in in = {"x", 1, 0};
    struct s3dlio_zstd_out out = {room, sizeof room, 0};

    /* Its threads are the parent's: this would wait for them for ever. */
    CHECK_EQ(s3dlio_zstd_encoder_write(argument, &in, &out), S3DLIO_E_FORKED);
    CHECK_EQ(s3dlio_zstd_encoder_end(argument, &out), S3DLIO_E_FORKED);
    s3dlio_zstd_encoder_free(argument);
}

static void
forked_child_gets_forked(void)
{
    struct s3dlio_zstd_encoder *encoder = NULL;
    char room[100], unpacked[10];
    struct s3dlio_zstd_in in = {"text", 4, 0};
    struct s3dlio_zstd_out out = {room, sizeof room, 0};

    CHECK_EQ(s3dlio_zstd_encoder_new(&encoder, 3, 2), 0);
    CHECK_EQ(s3dlio_zstd_encoder_write(encoder, &in, &out), 0);
    in_child(use_inherited_encoder, encoder);
    CHECK_EQ(s3dlio_zstd_encoder_end(encoder, &out), 0);
    CHECK_EQ(ZSTD_decompress(unpacked, sizeof unpacked, room, out.pos), 4);
    CHECK(memcmp(unpacked, "text", 4) == 0);
    s3dlio_zstd_encoder_free(encoder);
}

int
main(void)
{
    deadline(120);
    every_level_round_trips();
    levels_out_of_range_are_refused();
    any_pieces_round_trip();
    worker_threads_give_the_same_stream_to_readers();
    frames_one_after_the_other_are_one_stream();
    empty_input_is_truncated();
    every_cut_is_an_error();
    every_flipped_bit_is_an_error();
    seal_stands_behind_its_frame_and_nowhere_else();
    frames_to_be_skipped_are_those_of_others_unless_they_are_seals();
    trailing_bytes_are_an_error();
    what_is_no_zstd_is_corrupt();
    content_that_is_announced_and_missing_is_corrupt();
    formats_before_zstd_1_are_corrupt();
    window_over_the_limit_is_refused();
    reads_of_nothing_do_no_harm();
    output_without_room_comes_without_more_input();
    forked_child_gets_forked();
    return 0;
}
