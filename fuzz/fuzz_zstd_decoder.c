/*
 * Any bytes as a zstd stream, in any pieces: the decoder accepts of them what ZSTD_decompress()
 * accepts of the whole, and gives the same content.  Input: the pieces (pieces.h), then the stream.
 *
 * Where the two differ, ours is the stricter:
 * - No bytes at all are nothing to ZSTD_decompress(); ours misses a frame (S3DLIO_E_TRUNCATED).
 * - What libzstd's own streams refuse may be refused: a window over 128 MiB (S3DLIO_E_ZSTD), and
 *   blocks larger than RFC 8878 allows (S3DLIO_E_CORRUPT).  ZSTD_decompress() needs no window.
 * - Frames of before zstd 1.0, which many a libzstd still reads, are refused (S3DLIO_E_CORRUPT).
 * - What zstd.h says of mark and seal holds, or it is S3DLIO_E_CORRUPT or S3DLIO_E_TRUNCATED.
 * In one thing it is the laxer, as libzstd's streams are: a block of no bytes that calls itself
 * compressed counts as empty.
 */
#include <zstd.h>
#include <zstd_errors.h>

#include "pieces.h"

#define CONTENT_MAX (300 * KIB)

#define MARK              "\0\0\0\0\0\0"
#define MARK_NBYTES       6
#define SEAL_BEGIN        "\x53\x2a\x4d\x18\x08\0\0\0s3dl"
#define SEAL_BEGIN_NBYTES 12
#define SEAL_NBYTES       16

/* libzstd itself is not instrumented: what it says of the input is what there is to explore. */
#ifdef S3DLIO_FUZZ
__attribute__((section("__libfuzzer_extra_counters"), used)) static uint8_t said[128][8];
#else
static uint8_t said[128][8];
#endif

/* One for all, as making it takes longer than the rest. */
static ZSTD_DCtx *
context(void)
{
    static ZSTD_DCtx *made;

    if (!made) {
        made = ZSTD_createDCtx();
        CHECK(made && !ZSTD_isError(ZSTD_DCtx_setParameter(made, ZSTD_d_windowLogMax, 27)));
    }
    (void)ZSTD_DCtx_reset(made, ZSTD_reset_session_only);
    return made;
}

/* A byte at a time: libzstd's streams treat a frame that comes whole as ZSTD_decompress() does. */
static bool
refused_by_stream(const uint8_t *stream, size_t nbytes)
{
    static unsigned char room[4 * KIB];
    ZSTD_inBuffer in = {stream, 0, 0};
    ZSTD_outBuffer out = {room, sizeof room, 0};
    ZSTD_DCtx *decoder = context();
    size_t result = 1;

    while (!ZSTD_isError(result) && (in.pos < nbytes || out.pos == sizeof room)) {
        in.size = in.pos < nbytes ? in.pos + 1 : nbytes;
        out.pos = 0;
        result = ZSTD_decompressStream(decoder, &out, &in);
    }
    return result != 0;
}

/* Whether one of the frames that ZSTD_decompress() accepted is none of RFC 8878. */
static bool
has_old_frame(const uint8_t *stream, size_t nbytes)
{
    for (size_t at = 0; at < nbytes;) {
        size_t frame_nbytes = ZSTD_findFrameCompressedSize(stream + at, nbytes - at);

        CHECK(!ZSTD_isError(frame_nbytes) && frame_nbytes >= 8);
        if (memcmp(stream + at, "\x28\xb5\x2f\xfd", 4) != 0 &&
            ((stream[at] & 0xf0) != 0x50 || memcmp(stream + at + 1, "\x2a\x4d\x18", 3) != 0))
            return true;
        at += frame_nbytes;
    }
    return false;
}

/* Whether the seals are where zstd.h wants them and fit the frames, in a stream that
 * ZSTD_decompress() accepted. */
static bool
is_well_sealed(const uint8_t *stream, size_t nbytes)
{
    bool due = false;
    uint32_t crc = 0;

    for (size_t at = 0; at < nbytes;) {
        const uint8_t *frame = stream + at;
        size_t frame_nbytes = ZSTD_findFrameCompressedSize(frame, nbytes - at);
        bool is_seal =
            frame_nbytes == SEAL_NBYTES && memcmp(frame, SEAL_BEGIN, SEAL_BEGIN_NBYTES) == 0;

        if (due && !is_seal)
            return false;
        for (int i = 0; is_seal && i < 4; i++) {
            if (frame[SEAL_BEGIN_NBYTES + i] != (crc >> 8 * i & 0xff))
                return false;
        }
        crc = slow_crc32c(0, frame, frame_nbytes);
        due = frame_nbytes >= 12 && memcmp(frame, "\x28\xb5\x2f\xfd\x04", 5) == 0 &&
              memcmp(frame + 6, MARK, MARK_NBYTES) == 0;
        at += frame_nbytes;
    }
    return !due;
}

/* Walks along the frames of an accepted stream (RFC 8878, 3.1.1) to a compressed block of no bytes.
 */
static bool
has_empty_compressed_block(const uint8_t *stream, size_t nbytes)
{
    size_t at = 0;

    while (nbytes - at >= 9) {
        const uint8_t *frame = stream + at;
        unsigned descriptor = frame[4], single = descriptor >> 5 & 1, block = 0;

        if (frame[3] == 0x18) { /* to be skipped */
            at += 8 + (frame[4] | (size_t)frame[5] << 8 | (size_t)frame[6] << 16 |
                       (size_t)frame[7] << 24);
            continue;
        }
        at += 5 + !single + (size_t[]){0, 1, 2, 4}[descriptor & 3] +
              (size_t[]){single, 2, 4, 8}[descriptor >> 6];
        while (!(block & 1)) {
            CHECK(at + 3 <= nbytes);
            block = stream[at] | (unsigned)stream[at + 1] << 8 | (unsigned)stream[at + 2] << 16;
            if ((block & 6) == 4 && block >> 3 == 0)
                return true;
            at += 3 + ((block & 6) == 2 ? 1 : block >> 3);
        }
        at += descriptor & 4;
    }
    return false;
}

static void
check_verdict(const uint8_t *stream, size_t nbytes, const struct decoded *ours,
              const unsigned char *content)
{
    static unsigned char whole[CONTENT_MAX];
    size_t result = ZSTD_decompressDCtx(context(), whole, sizeof whole, stream, nbytes);
    ZSTD_ErrorCode error = ZSTD_getErrorCode(result);

    said[error & 127][ours->too_long ? 7 : -ours->status % 5]++;
    if (error == ZSTD_error_dstSize_tooSmall)
        CHECK(ours->status || ours->too_long);
    else if (ours->too_long)
        CHECK(ZSTD_isError(result)); /* it ended before the damage */
    else if (ours->status)
        CHECK(ZSTD_isError(result) || nbytes == 0 || refused_by_stream(stream, nbytes) ||
              (ours->status == S3DLIO_E_CORRUPT && has_old_frame(stream, nbytes)) ||
              (ours->status != S3DLIO_E_ZSTD && !is_well_sealed(stream, nbytes)));
    else if (ZSTD_isError(result))
        CHECK(!refused_by_stream(stream, nbytes) && has_empty_compressed_block(stream, nbytes));
    else {
        CHECK_EQ(ours->nbytes, result);
        CHECK(memcmp(content, whole, result) == 0);
        CHECK(is_well_sealed(stream, nbytes));
    }
}

int
LLVMFuzzerTestOneInput(const uint8_t *data, size_t nbytes)
{
    static unsigned char content[CONTENT_MAX];
    struct input input = {data, nbytes};
    struct pieces pieces = input_pieces(&input);
    struct decoded ours =
        decode_in_pieces(pieces, input.data, input.nbytes, content, sizeof content);

    check_verdict(input.data, input.nbytes, &ours, content);
    if (ours.end_at < input.nbytes) {
        /* What it held for a possible end is one. */
        struct decoded part = {.nbytes = ours.end_nbytes, .end_at = ours.end_at};

        check_verdict(input.data, ours.end_at, &part, content);
    }
    return 0;
}

#ifdef S3DLIO_FUZZ
size_t
LLVMFuzzerMutate(uint8_t *data, size_t nbytes, size_t most_nbytes);

size_t
LLVMFuzzerCustomMutator(uint8_t *data, size_t nbytes, size_t most_nbytes, unsigned seed);

/* Puts mark and seal to a frame that may have them, and returns its length then. */
static size_t
seal_frame(uint8_t *frame, size_t nbytes, size_t most_nbytes)
{
    if (frame[4] != 4 || nbytes + MARK_NBYTES + SEAL_NBYTES > most_nbytes)
        return nbytes;
    memmove(frame + 6 + MARK_NBYTES, frame + 6, nbytes - 6);
    memcpy(frame + 6, MARK, MARK_NBYTES);
    memcpy(frame + nbytes + MARK_NBYTES, SEAL_BEGIN, SEAL_BEGIN_NBYTES);
    return nbytes + MARK_NBYTES + SEAL_NBYTES;
}

/* Gives each seal the checksum of what is before it from the beginning of a frame on: no change to
 * a frame would ever hit on the right one. */
static void
mend_seals(uint8_t *data, size_t nbytes)
{
    for (size_t at = 0, begin = 0; at + SEAL_NBYTES <= nbytes; at++) {
        uint32_t crc;

        if (memcmp(data + at, "\x28\xb5\x2f\xfd", 4) == 0)
            begin = at;
        if (memcmp(data + at, SEAL_BEGIN, SEAL_BEGIN_NBYTES) != 0)
            continue;
        crc = slow_crc32c(0, data + begin, at - begin);
        for (int i = 0; i < 4; i++)
            data[at + SEAL_BEGIN_NBYTES + i] = (uint8_t)(crc >> 8 * i);
    }
}

/* Compresses changed content, with or without a checksum or a seal, in place of the stream or
 * behind it.  Returns 0 if there is no room. */
static size_t
change_content(uint8_t *data, size_t nbytes, size_t most_nbytes, uint64_t *state)
{
    static unsigned char content[4096];
    static ZSTD_CCtx *encoder;
    struct input input = {data, nbytes};
    size_t content_nbytes, head, result;

    if (!encoder)
        encoder = ZSTD_createCCtx();
    (void)input_pieces(&input);
    head = random_between(state, 0, 3) ? nbytes - input.nbytes : nbytes;
    content_nbytes =
        ZSTD_decompressDCtx(context(), content, sizeof content, input.data, input.nbytes);
    if (ZSTD_isError(content_nbytes)) {
        content_nbytes = input.nbytes < sizeof content ? input.nbytes : sizeof content;
        memcpy(content, input.data, content_nbytes);
    }
    content_nbytes = LLVMFuzzerMutate(content, content_nbytes, sizeof content);
    ZSTD_CCtx_setParameter(encoder, ZSTD_c_compressionLevel, (int)random_between(state, 1, 5));
    ZSTD_CCtx_setParameter(encoder, ZSTD_c_checksumFlag, (int)random_between(state, 0, 1));
    ZSTD_CCtx_setParameter(encoder, ZSTD_c_contentSizeFlag, (int)random_between(state, 0, 1));
    result = ZSTD_compress2(encoder, data + head, most_nbytes - head, content, content_nbytes);
    if (ZSTD_isError(result))
        return 0;
    if (random_between(state, 0, 1))
        result = seal_frame(data + head, result, most_nbytes - head);
    return head + result;
}

/* Frames that ask for a window of MiBs take milliseconds, for AddressSanitizer marks all of it. */
static void
shrink_windows(uint8_t *data, size_t nbytes)
{
    for (size_t i = 0; i + 13 < nbytes; i++) {
        bool single_segment = data[i + 4] & 0x20;

        if (memcmp(data + i, "\x28\xb5\x2f\xfd", 4) != 0)
            continue;
        if (!single_segment)
            data[i + 5] &= 0x3f;
        else if (data[i + 4] >> 6 > 1)
            data[i + 4] &= 0x7f;
    }
}

/* Every fourth time the content changes instead of the stream, since damage to a frame hardly ever
 * leaves one. */
size_t
LLVMFuzzerCustomMutator(uint8_t *data, size_t nbytes, size_t most_nbytes, unsigned seed)
{
    uint64_t state = seed + 1;
    size_t changed = 0;

    if (random_between(&state, 0, 3) == 0)
        changed = change_content(data, nbytes, most_nbytes, &state);
    if (changed == 0)
        changed = LLVMFuzzerMutate(data, nbytes, most_nbytes);
    if (random_between(&state, 0, 15) > 0)
        shrink_windows(data, changed);
    if (random_between(&state, 0, 3) > 0)
        mend_seals(data, changed);
    return changed;
}
#endif
