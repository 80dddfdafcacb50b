/*
 * Pieces of input and room for output as the fuzz input wants them, and the decoder driven by them:
 * the promises of its calls that hold for any bytes at all are checked here.
 */
#ifndef PIECES_H
#define PIECES_H

#include "fuzz.h"
#include "s3dlio/status.h"
#include "s3dlio/zstd.h"

/* So many calls follow the pattern; the rest of a long stream then goes in large pieces. */
#define PATTERN_CALLS 2000

struct pieces {
    const uint8_t *pattern;
    size_t pattern_nbytes;
    size_t ncalls;
    /* The last call had nothing to do, or no room: this one gets some of both. */
    bool idle;
};

/* A byte that says how many bytes of pattern follow, up to 15, and those. */
HELPER struct pieces
input_pieces(struct input *input)
{
    struct pieces pieces = {.pattern_nbytes = input_byte(input) & 15};

    if (pieces.pattern_nbytes > input->nbytes)
        pieces.pattern_nbytes = input->nbytes;
    pieces.pattern = input->data;
    input->data += pieces.pattern_nbytes;
    input->nbytes -= pieces.pattern_nbytes;
    return pieces;
}

/* The next byte of the pattern: its low half is the size of a piece, its high half that of room. */
HELPER void
next_piece(struct pieces *pieces, size_t *piece_ret, size_t *room_ret)
{
    static const size_t sizes[16] = {0,  1,  2,  3,   4,   5,    7,     8,
                                     16, 17, 64, 100, 512, 4096, 20000, 70000};
    unsigned byte = 0xff;

    if (pieces->pattern_nbytes > 0 && pieces->ncalls < PATTERN_CALLS)
        byte = pieces->pattern[pieces->ncalls % pieces->pattern_nbytes];
    pieces->ncalls++;
    *piece_ret = sizes[byte & 15];
    *room_ret = sizes[byte >> 4];
    if (pieces->idle && *piece_ret == 0)
        *piece_ret = 1;
    if (pieces->idle && *room_ret == 0)
        *room_ret = 1;
    pieces->idle = *piece_ret == 0 || *room_ret == 0;
}

struct decoded {
    /* 0, or what the decoder said last. */
    int status;
    /* There was more than 'most_nbytes' of it, and it was left at that. */
    bool too_long;
    size_t nbytes;
    /* How much of the stream was read when it could have ended for the first time, and how much
     * content that was; 'end_at' is SIZE_MAX if it could not. */
    size_t end_at;
    size_t end_nbytes;
};

/* A failure sticks, and nothing moves any more. */
HELPER void
check_decoder_failed(struct s3dlio_zstd_decoder *decoder, int status)
{
    unsigned char byte = 0x28, room = 0;
    struct s3dlio_zstd_in in = {&byte, 1, 0};
    struct s3dlio_zstd_out out = {&room, 1, 0};

    CHECK(status == S3DLIO_E_CORRUPT || status == S3DLIO_E_ZSTD);
    CHECK_EQ(s3dlio_zstd_decoder_read(decoder, &in, &out), status);
    CHECK(in.pos == 0 && out.pos == 0);
    CHECK_EQ(s3dlio_zstd_decoder_end(decoder), status);
}

/* Decodes a stream into 'content', which has room for 'most_nbytes'. */
HELPER struct decoded
decode_in_pieces(struct pieces pieces, const uint8_t *stream, size_t nbytes, unsigned char *content,
                 size_t most_nbytes)
{
    struct decoded decoded = {.end_at = SIZE_MAX};
    struct s3dlio_zstd_decoder *decoder = NULL;
    size_t at = 0;
    bool drained = false;

    CHECK_EQ(s3dlio_zstd_decoder_new(&decoder), 0);
    CHECK_EQ(s3dlio_zstd_decoder_end(decoder), S3DLIO_E_TRUNCATED);
    while (!decoded.status && !decoded.too_long && !(at == nbytes && drained)) {
        struct s3dlio_zstd_in in = {0};
        struct s3dlio_zstd_out out = {0};

        next_piece(&pieces, &in.nbytes, &out.nbytes);
        if (in.nbytes > nbytes - at)
            in.nbytes = nbytes - at;
        in.data = copy_of(stream + at, in.nbytes);
        out.data = room_for(out.nbytes);
        decoded.status = s3dlio_zstd_decoder_read(decoder, &in, &out);
        CHECK(in.pos <= in.nbytes && out.pos <= out.nbytes);
        /* That it moves on: a call returns for want of input or of room. */
        CHECK(decoded.status || in.pos == in.nbytes || out.pos == out.nbytes);
        drained = out.pos < out.nbytes;
        at += in.pos;
        decoded.too_long = out.pos > most_nbytes - decoded.nbytes;
        if (!decoded.too_long && out.pos > 0)
            memcpy(content + decoded.nbytes, out.data, out.pos);
        if (!decoded.too_long)
            decoded.nbytes += out.pos;
        free((void *)in.data);
        free(out.data);
        if (drained && decoded.end_at == SIZE_MAX && s3dlio_zstd_decoder_end(decoder) == 0) {
            decoded.end_at = at;
            decoded.end_nbytes = decoded.nbytes;
        }
    }
    if (decoded.status)
        check_decoder_failed(decoder, decoded.status);
    else if (!decoded.too_long)
        decoded.status = s3dlio_zstd_decoder_end(decoder);
    s3dlio_zstd_decoder_free(decoder);
    return decoded;
}

#endif /* PIECES_H */
