#define _GNU_SOURCE /* sched_getaffinity() */

#include "s3dlio/zstd.h"

#include <errno.h>
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <zstd.h>
#include <zstd_errors.h>

#include "handle.h"
#include "s3dlio/crc32c.h"
#include "s3dlio/status.h"

/* What the stock tool reads without --long: RFC 8878 recommends 8 MiB, libzstd's default limit is
 * 128 MiB, and level 22 asks for all of it. */
#define WINDOW_LOG_MAX 27

/* RFC 8878, 3.1.1: four bytes of magic number, and a header of at most fourteen.  Enough for a
 * seal. */
#define FRAME_HEAD_MAX 18

/* Each worker takes memory, more at higher levels, so that on a large machine not all processors
 * are taken unasked. */
#define MAX_DEFAULT_WORKERS 16

/* Bytes that one worker compresses at a time, where libzstd would take 8 MiB: that halves the
 * memory of the ordinary levels.  What a job sees of the one before is a quarter of the window (7
 * of 9) instead of an eighth, so that no more is stored.  The lower levels take less, and the
 * higher ones have windows that need more. */
#define JOB_NBYTES    (4 << 20)
#define JOB_OVERLAP   7
#define JOB_LEVEL_MIN 3
#define JOB_LEVEL_MAX 8

/* The format of zstd.h.  A frame's header is the magic number, the descriptor (RFC 8878, 3.1.1.1.1:
 * nothing but the checksum flag) and a byte of window. */
#define HEADER_NBYTES 6
#define MARK_NBYTES   6
#define SEAL_NBYTES   16

static const unsigned char header_begin[HEADER_NBYTES - 1] = {0x28, 0xb5, 0x2f, 0xfd, 0x04};
static const unsigned char mark[MARK_NBYTES];
static const unsigned char seal_begin[SEAL_NBYTES - 4] = {0x53, 0x2a, 0x4d, 0x18, 8,   0,
                                                          0,    0,    's',  '3',  'd', 'l'};

static void
make_seal(unsigned char seal[SEAL_NBYTES], uint32_t crc32c)
{
    memcpy(seal, seal_begin, sizeof seal_begin);
    for (int i = 0; i < 4; i++)
        seal[sizeof seal_begin + i] = (unsigned char)(crc32c >> 8 * i);
}

static int
encoder_status(size_t zstd_result)
{
    if (!ZSTD_isError(zstd_result))
        return 0;
    if (ZSTD_getErrorCode(zstd_result) == ZSTD_error_memory_allocation)
        return -ENOMEM;
    return S3DLIO_E_ZSTD;
}

/* All but two of the errors that a decoder can meet mean that the data is not what was written. */
static int
decoder_status(size_t zstd_result)
{
    if (!ZSTD_isError(zstd_result))
        return 0;
    switch (ZSTD_getErrorCode(zstd_result)) {
    case ZSTD_error_memory_allocation:
        return -ENOMEM;
    case ZSTD_error_frameParameter_windowTooLarge:
        return S3DLIO_E_ZSTD;
    default:
        return S3DLIO_E_CORRUPT;
    }
}

static int
processors(void)
{
#ifdef __linux__
    cpu_set_t set;

    if (sched_getaffinity(0, sizeof set, &set) == 0)
        return CPU_COUNT(&set);
#endif
    return (int)sysconf(_SC_NPROCESSORS_ONLN);
}

struct s3dlio_zstd_encoder {
    struct s3dlio_handle handle;
    ZSTD_CCtx *context;
    /* A job of its threads may last for minutes. */
    bool is_slow;
    /* The end was asked for. */
    bool ending;
    /* What is put out now: header and mark, what libzstd makes, or the seal. */
    enum { HEADER, FRAME, SEAL } part;
    /* The first or the last of these, and how many bytes at its end are still to be put out. */
    unsigned char own[SEAL_NBYTES];
    size_t own_nbytes;
    size_t own_left;
    /* Of the frame as it is stored. */
    uint32_t crc32c;
};

int
s3dlio_zstd_encoder_new(struct s3dlio_zstd_encoder **encoder_ret, int level, int nworkers)
{
    struct s3dlio_zstd_encoder *encoder;
    size_t result;

    if (level < S3DLIO_ZSTD_LEVEL_MIN || level > S3DLIO_ZSTD_LEVEL_MAX)
        return -EINVAL;
    encoder = calloc(1, sizeof *encoder);
    if (!encoder)
        return -ENOMEM;
    s3dlio_handle_init(&encoder->handle);
    encoder->context = ZSTD_createCCtx();
    if (!encoder->context) {
        free(encoder);
        return -ENOMEM;
    }
    result = ZSTD_CCtx_setParameter(encoder->context, ZSTD_c_compressionLevel, level);
    if (!ZSTD_isError(result))
        result = ZSTD_CCtx_setParameter(encoder->context, ZSTD_c_checksumFlag, 1);
    /* Else an empty frame has another header. */
    if (!ZSTD_isError(result))
        result = ZSTD_CCtx_setParameter(encoder->context, ZSTD_c_contentSizeFlag, 0);
    if (ZSTD_isError(result)) {
        s3dlio_zstd_encoder_free(encoder);
        return encoder_status(result);
    }
    if (nworkers < 0) {
        nworkers = processors();
        if (nworkers > MAX_DEFAULT_WORKERS)
            nworkers = MAX_DEFAULT_WORKERS;
    }
    /* Refused by a libzstd without threads, which then compresses in the calling thread. */
    if (nworkers > 0)
        (void)ZSTD_CCtx_setParameter(encoder->context, ZSTD_c_nbWorkers, nworkers);
    if (nworkers > 0 && level >= JOB_LEVEL_MIN && level <= JOB_LEVEL_MAX) {
        (void)ZSTD_CCtx_setParameter(encoder->context, ZSTD_c_jobSize, JOB_NBYTES);
        (void)ZSTD_CCtx_setParameter(encoder->context, ZSTD_c_overlapLog, JOB_OVERLAP);
    }
    encoder->is_slow = nworkers > 0 && level > JOB_LEVEL_MAX;
    *encoder_ret = encoder;
    return 0;
}

static int
compress(struct s3dlio_zstd_encoder *encoder, struct s3dlio_zstd_in *in,
         struct s3dlio_zstd_out *out, ZSTD_EndDirective directive, size_t *unflushed_ret)
{
    ZSTD_inBuffer input = {in->data, in->nbytes, in->pos};
    ZSTD_outBuffer output = {out->data, out->nbytes, out->pos};

    *unflushed_ret = ZSTD_compressStream2(encoder->context, &output, &input, directive);
    encoder->crc32c =
        s3dlio_crc32c(encoder->crc32c, (const char *)out->data + out->pos, output.pos - out->pos);
    in->pos = input.pos;
    out->pos = output.pos;
    return encoder_status(*unflushed_ret);
}

/* The header goes where the mark can be put behind it; for room of just that size, libzstd stops
 * there. */
static int
make_header(struct s3dlio_zstd_encoder *encoder, struct s3dlio_zstd_in *in,
            ZSTD_EndDirective directive)
{
    struct s3dlio_zstd_out header = {encoder->own, HEADER_NBYTES, encoder->own_nbytes};
    size_t unflushed;
    int status = compress(encoder, in, &header, directive, &unflushed);

    encoder->own_nbytes = header.pos;
    if (status || header.pos < HEADER_NBYTES)
        return status;
    if (memcmp(encoder->own, header_begin, sizeof header_begin) != 0)
        return S3DLIO_E_ZSTD;
    memcpy(encoder->own + HEADER_NBYTES, mark, MARK_NBYTES);
    encoder->crc32c = s3dlio_crc32c(encoder->crc32c, mark, MARK_NBYTES);
    encoder->own_nbytes = encoder->own_left = HEADER_NBYTES + MARK_NBYTES;
    encoder->part = FRAME;
    return 0;
}

static void
put_own(struct s3dlio_zstd_encoder *encoder, struct s3dlio_zstd_out *out)
{
    size_t room = out->nbytes - out->pos;
    size_t nbytes = encoder->own_left < room ? encoder->own_left : room;

    memcpy((char *)out->data + out->pos, encoder->own + encoder->own_nbytes - encoder->own_left,
           nbytes);
    out->pos += nbytes;
    encoder->own_left -= nbytes;
}

/* One step, for which there is room in 'out'. */
static int
advance(struct s3dlio_zstd_encoder *encoder, struct s3dlio_zstd_in *in, struct s3dlio_zstd_out *out,
        ZSTD_EndDirective directive)
{
    size_t unflushed;
    int status;

    if (encoder->own_left > 0) {
        put_own(encoder, out);
        return 0;
    }
    if (encoder->part == HEADER)
        return make_header(encoder, in, directive);
    status = compress(encoder, in, out, directive, &unflushed);
    if (!status && directive == ZSTD_e_end && unflushed == 0) {
        make_seal(encoder->own, encoder->crc32c);
        encoder->own_nbytes = encoder->own_left = SEAL_NBYTES;
        encoder->part = SEAL;
    }
    return status;
}

static bool
has_ended(const struct s3dlio_zstd_encoder *encoder)
{
    return encoder->part == SEAL && encoder->own_left == 0;
}

int
s3dlio_zstd_encoder_write(struct s3dlio_zstd_encoder *encoder, struct s3dlio_zstd_in *in,
                          struct s3dlio_zstd_out *out)
{
    int status = encoder->ending ? S3DLIO_E_CLOSED : 0;

    if (s3dlio_handle_is_forked(&encoder->handle))
        return S3DLIO_E_FORKED;
    while (!status && in->pos < in->nbytes && out->pos < out->nbytes)
        status = advance(encoder, in, out, ZSTD_e_continue);
    return status;
}

int
s3dlio_zstd_encoder_end(struct s3dlio_zstd_encoder *encoder, struct s3dlio_zstd_out *out)
{
    struct s3dlio_zstd_in nothing = {NULL, 0, 0};
    int status = 0;

    if (s3dlio_handle_is_forked(&encoder->handle))
        return S3DLIO_E_FORKED;
    encoder->ending = true;
    while (!status && !has_ended(encoder) && out->pos < out->nbytes)
        status = advance(encoder, &nothing, out, ZSTD_e_end);
    if (status)
        return status;
    return has_ended(encoder) ? 0 : 1;
}

/* Contexts that are being freed by threads of their own; more would pile up memory. */
#define MAX_FREEING 2

static atomic_int nfreeing;

static void *
free_context(void *context)
{
    ZSTD_freeCCtx(context);
    atomic_fetch_sub(&nfreeing, 1);
    return NULL;
}

/* Waits for the threads of the context to end their jobs, and does so behind the caller's back. */
static bool
free_later(ZSTD_CCtx *context)
{
    sigset_t all, before;
    pthread_t thread;
    int status = EAGAIN;

    if (atomic_fetch_add(&nfreeing, 1) < MAX_FREEING) {
        /* Signals are for the program's own threads. */
        sigfillset(&all);
        pthread_sigmask(SIG_SETMASK, &all, &before);
        status = pthread_create(&thread, NULL, free_context, context);
        pthread_sigmask(SIG_SETMASK, &before, NULL);
    }
    if (status != 0) {
        atomic_fetch_sub(&nfreeing, 1);
        return false;
    }
    (void)pthread_detach(thread);
    return true;
}

void
s3dlio_zstd_encoder_free(struct s3dlio_zstd_encoder *encoder)
{
    if (!encoder)
        return;
    /* Freeing the context joins its threads; in a child of fork() there are none to join. */
    if (!s3dlio_handle_is_forked(&encoder->handle) &&
        !(encoder->is_slow && !has_ended(encoder) && free_later(encoder->context)))
        ZSTD_freeCCtx(encoder->context);
    free(encoder);
}

struct s3dlio_zstd_decoder {
    ZSTD_DCtx *context;
    int error;
    /* Whether the last byte that was read ended a frame, and all of its output is out. */
    bool between_frames;
    /* Whether there may be more output without more input. */
    bool pending;
    /* Of the current frame: how it begins, how much content is out, and its checksum as stored. */
    unsigned char head[FRAME_HEAD_MAX];
    size_t head_nbytes;
    unsigned long long content_nbytes;
    uint32_t crc32c;
    /* Of the frame before: its checksum, and whether it bore the mark. */
    uint32_t before_crc32c;
    bool seal_due;
};

int
s3dlio_zstd_decoder_new(struct s3dlio_zstd_decoder **decoder_ret)
{
    struct s3dlio_zstd_decoder *decoder = calloc(1, sizeof *decoder);

    if (!decoder)
        return -ENOMEM;
    decoder->context = ZSTD_createDCtx();
    if (!decoder->context || ZSTD_isError(ZSTD_DCtx_setParameter(
                                 decoder->context, ZSTD_d_windowLogMax, WINDOW_LOG_MAX))) {
        s3dlio_zstd_decoder_free(decoder);
        return -ENOMEM;
    }
    *decoder_ret = decoder;
    return 0;
}

/* What libzstd has read of the current frame. */
static void
follow(struct s3dlio_zstd_decoder *decoder, const void *data, size_t nbytes)
{
    size_t room = sizeof decoder->head - decoder->head_nbytes;

    decoder->crc32c = s3dlio_crc32c(decoder->crc32c, data, nbytes);
    if (nbytes > room)
        nbytes = room;
    memcpy(decoder->head + decoder->head_nbytes, data, nbytes);
    decoder->head_nbytes += nbytes;
}

/*
 * Whether a frame of RFC 8878 may begin with the 'nbytes' at 'data' behind those of the head that
 * are read: zstd's, or one to be skipped (3.1.2), and behind one with the mark only its seal.  A
 * libzstd that is built for it would also read the formats of before zstd 1.0.
 */
static bool
begins_frame(const struct s3dlio_zstd_decoder *decoder, const unsigned char *data, size_t nbytes)
{
    unsigned char head[sizeof seal_begin];
    size_t room = sizeof head - decoder->head_nbytes;

    if (nbytes > room)
        nbytes = room;
    memcpy(head, decoder->head, decoder->head_nbytes);
    memcpy(head + decoder->head_nbytes, data, nbytes);
    nbytes += decoder->head_nbytes;
    if (decoder->seal_due)
        return memcmp(head, seal_begin, nbytes) == 0;
    if (nbytes > 4)
        nbytes = 4;
    if (memcmp(head, header_begin, nbytes) == 0)
        return true;
    head[0] = (head[0] & 0xf0) | (seal_begin[0] & 0x0f);
    return memcmp(head, seal_begin, nbytes) == 0;
}

/* Libzstd's streams do not miss content that the header of the frame announces if the last block is
 * empty and there is no checksum. */
static bool
misses_content(const struct s3dlio_zstd_decoder *decoder)
{
    unsigned long long announced = ZSTD_getFrameContentSize(decoder->head, decoder->head_nbytes);

    return announced != ZSTD_CONTENTSIZE_UNKNOWN && announced != decoder->content_nbytes;
}

static bool
bears_mark(const struct s3dlio_zstd_decoder *decoder)
{
    return decoder->head_nbytes >= HEADER_NBYTES + MARK_NBYTES &&
           memcmp(decoder->head, header_begin, sizeof header_begin) == 0 &&
           memcmp(decoder->head + HEADER_NBYTES, mark, MARK_NBYTES) == 0;
}

/* The seal of another frame than the one before.  Whether that bears the mark does not count: it
 * may be the mark that was damaged. */
static bool
is_wrong_seal(const struct s3dlio_zstd_decoder *decoder)
{
    unsigned char right[SEAL_NBYTES];

    make_seal(right, decoder->before_crc32c);
    return decoder->head_nbytes == SEAL_NBYTES &&
           memcmp(decoder->head, right, sizeof seal_begin) == 0 &&
           memcmp(decoder->head, right, sizeof right) != 0;
}

static int
end_frame(struct s3dlio_zstd_decoder *decoder)
{
    if (misses_content(decoder) || is_wrong_seal(decoder))
        return S3DLIO_E_CORRUPT;
    decoder->seal_due = bears_mark(decoder);
    decoder->before_crc32c = decoder->crc32c;
    decoder->crc32c = 0;
    decoder->head_nbytes = 0;
    decoder->content_nbytes = 0;
    return 0;
}

int
s3dlio_zstd_decoder_read(struct s3dlio_zstd_decoder *decoder, struct s3dlio_zstd_in *in,
                         struct s3dlio_zstd_out *out)
{
    ZSTD_inBuffer input = {in->data, in->nbytes, in->pos};
    ZSTD_outBuffer output = {out->data, out->nbytes, out->pos};

    /* Never without anything to do: libzstd takes some such calls in a row for damage. */
    while (!decoder->error && output.pos < output.size &&
           (input.pos < input.size || decoder->pending)) {
        size_t in_pos = input.pos, out_pos = output.pos;
        size_t result;

        if (decoder->head_nbytes < sizeof seal_begin && input.pos < input.size &&
            !begins_frame(decoder, (const unsigned char *)in->data + in_pos, input.size - in_pos)) {
            decoder->error = S3DLIO_E_CORRUPT;
            break;
        }
        result = ZSTD_decompressStream(decoder->context, &output, &input);
        if (input.pos > in_pos)
            follow(decoder, (const char *)in->data + in_pos, input.pos - in_pos);
        decoder->content_nbytes += output.pos - out_pos;
        decoder->error = result == 0 ? end_frame(decoder) : decoder_status(result);
        decoder->between_frames = result == 0 && !decoder->seal_due;
        decoder->pending = result != 0 && output.pos == output.size;
    }
    in->pos = input.pos;
    out->pos = output.pos;
    return decoder->error;
}

int
s3dlio_zstd_decoder_end(const struct s3dlio_zstd_decoder *decoder)
{
    if (decoder->error)
        return decoder->error;
    return decoder->between_frames ? 0 : S3DLIO_E_TRUNCATED;
}

void
s3dlio_zstd_decoder_free(struct s3dlio_zstd_decoder *decoder)
{
    if (!decoder)
        return;
    ZSTD_freeDCtx(decoder->context);
    free(decoder);
}
