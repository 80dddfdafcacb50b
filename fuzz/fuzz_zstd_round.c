/*
 * What the encoder makes of any content, at any level and in any pieces, the decoder and libzstd
 * turn back into that content; with a bit of it flipped, the decoder refuses it.  Input: the level,
 * how often the rest is repeated, the pieces (pieces.h), then the content.
 */
#include <zstd.h>

#include "pieces.h"

/* Higher ones take the same way through our code, and seconds to set up. */
#define LEVEL_MOST 9

struct packed {
    unsigned char *data;
    size_t nbytes;
    size_t room_nbytes;
};

/* One call's output, out of memory of its own. */
static void
append(struct packed *packed, struct s3dlio_zstd_out *out)
{
    CHECK(out->pos <= out->nbytes);
    CHECK(out->pos <= packed->room_nbytes - packed->nbytes);
    if (out->pos > 0)
        memcpy(packed->data + packed->nbytes, out->data, out->pos);
    packed->nbytes += out->pos;
    free(out->data);
}

static struct packed
encode_in_pieces(struct pieces pieces, int level, const unsigned char *content, size_t nbytes)
{
    struct s3dlio_zstd_encoder *encoder = NULL;
    struct packed packed = {.room_nbytes = ZSTD_compressBound(nbytes) + 64};
    size_t at = 0;
    int status = 1;

    packed.data = room_for(packed.room_nbytes);
    CHECK_EQ(s3dlio_zstd_encoder_new(&encoder, level, 0), 0);
    while (status == 1) {
        struct s3dlio_zstd_in in = {0};
        struct s3dlio_zstd_out out = {0};

        next_piece(&pieces, &in.nbytes, &out.nbytes);
        if (in.nbytes > nbytes - at)
            in.nbytes = nbytes - at;
        out.data = room_for(out.nbytes);
        if (at < nbytes) {
            in.data = copy_of(content + at, in.nbytes);
            CHECK_EQ(s3dlio_zstd_encoder_write(encoder, &in, &out), 0);
            CHECK(in.pos <= in.nbytes);
            CHECK(in.pos == in.nbytes || out.pos == out.nbytes);
            at += in.pos;
            free((void *)in.data);
        } else {
            status = s3dlio_zstd_encoder_end(encoder, &out);
            CHECK(status == 0 || (status == 1 && out.pos == out.nbytes));
        }
        append(&packed, &out);
    }
    s3dlio_zstd_encoder_free(encoder);
    return packed;
}

int
LLVMFuzzerTestOneInput(const uint8_t *data, size_t nbytes)
{
    struct input input = {data, nbytes};
    unsigned level = input_byte(&input);
    size_t times = input_size(&input) % 100 + 1;
    struct pieces pieces = input_pieces(&input);
    size_t content_nbytes = input.nbytes * times;
    unsigned char *content = repeat(input.data, input.nbytes, content_nbytes);
    unsigned char *result = room_for(content_nbytes);
    struct packed packed =
        encode_in_pieces(pieces, 1 + (int)(level % LEVEL_MOST), content, content_nbytes);
    struct decoded ours;
    size_t bit;

    CHECK_EQ(ZSTD_decompress(result, content_nbytes, packed.data, packed.nbytes), content_nbytes);
    CHECK(content_nbytes == 0 || memcmp(result, content, content_nbytes) == 0);
    ours = decode_in_pieces(pieces, packed.data, packed.nbytes, result, content_nbytes);
    CHECK(!ours.too_long);
    CHECK_EQ(ours.status, 0);
    CHECK_EQ(ours.nbytes, content_nbytes);
    CHECK_EQ(ours.end_at, packed.nbytes);
    CHECK(content_nbytes == 0 || memcmp(result, content, content_nbytes) == 0);
    /* One that the content chooses; tests/c/test_zstd.c flips each. */
    bit = slow_crc32c(level, packed.data, packed.nbytes) % (packed.nbytes * 8);
    packed.data[bit / 8] ^= (unsigned char)(1 << bit % 8);
    ours = decode_in_pieces(pieces, packed.data, packed.nbytes, result, content_nbytes);
    CHECK(ours.status || ours.too_long);
    free(packed.data);
    free(result);
    free(content);
    return 0;
}
