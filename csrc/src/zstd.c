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
#include "s3dlio/status.h"

/* What the stock tool reads without --long: RFC 8878 recommends 8 MiB, libzstd's default limit is
 * 128 MiB, and level 22 asks for all of it. */
#define WINDOW_LOG_MAX 27

/* RFC 8878, 3.1.1: four bytes of magic number, and a header of at most fourteen. */
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
    /* The end was asked for, and is written. */
    bool ending;
    bool ended;
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
    in->pos = input.pos;
    out->pos = output.pos;
    return encoder_status(*unflushed_ret);
}

int
s3dlio_zstd_encoder_write(struct s3dlio_zstd_encoder *encoder, struct s3dlio_zstd_in *in,
                          struct s3dlio_zstd_out *out)
{
    size_t unflushed;
    int status = encoder->ending ? S3DLIO_E_CLOSED : 0;

    if (s3dlio_handle_is_forked(&encoder->handle))
        return S3DLIO_E_FORKED;
    while (!status && in->pos < in->nbytes && out->pos < out->nbytes)
        status = compress(encoder, in, out, ZSTD_e_continue, &unflushed);
    return status;
}

int
s3dlio_zstd_encoder_end(struct s3dlio_zstd_encoder *encoder, struct s3dlio_zstd_out *out)
{
    struct s3dlio_zstd_in nothing = {NULL, 0, 0};
    size_t unflushed = 1;
    int status = 0;

    if (s3dlio_handle_is_forked(&encoder->handle))
        return S3DLIO_E_FORKED;
    if (encoder->ended)
        return 0;
    encoder->ending = true;
    while (!status && unflushed > 0 && out->pos < out->nbytes)
        status = compress(encoder, &nothing, out, ZSTD_e_end, &unflushed);
    if (status)
        return status;
    encoder->ended = unflushed == 0;
    return encoder->ended ? 0 : 1;
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
        !(encoder->is_slow && !encoder->ended && free_later(encoder->context)))
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
    /* Of the current frame: how it begins, and how much content is out. */
    unsigned char head[FRAME_HEAD_MAX];
    size_t head_nbytes;
    unsigned long long content_nbytes;
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

static void
keep_head(struct s3dlio_zstd_decoder *decoder, const void *data, size_t nbytes)
{
    size_t room = sizeof decoder->head - decoder->head_nbytes;

    if (nbytes > room)
        nbytes = room;
    memcpy(decoder->head + decoder->head_nbytes, data, nbytes);
    decoder->head_nbytes += nbytes;
}

/*
 * Whether a frame of RFC 8878 may begin with the 'nbytes' at 'data' behind those of the head that
 * are read: zstd's, or one to be skipped (3.1.2).  A libzstd that is built for it would also read
 * the formats of before zstd 1.0.
 */
static bool
begins_frame(const struct s3dlio_zstd_decoder *decoder, const unsigned char *data, size_t nbytes)
{
    static const unsigned char frame[4] = {0x28, 0xb5, 0x2f, 0xfd};
    static const unsigned char skipped[4] = {0x50, 0x2a, 0x4d, 0x18};
    bool is_frame = true, is_skipped = true;

    for (size_t i = 0; i < 4 && i < decoder->head_nbytes + nbytes; i++) {
        unsigned char byte =
            i < decoder->head_nbytes ? decoder->head[i] : data[i - decoder->head_nbytes];

        is_frame &= byte == frame[i];
        is_skipped &= (i == 0 ? byte & 0xf0 : byte) == skipped[i];
    }
    return is_frame || is_skipped;
}

/* Libzstd's streams do not miss content that the header of the frame announces if the last block is
 * empty and there is no checksum. */
static int
end_frame(struct s3dlio_zstd_decoder *decoder)
{
    unsigned long long announced = ZSTD_getFrameContentSize(decoder->head, decoder->head_nbytes);
    bool differs = announced != ZSTD_CONTENTSIZE_UNKNOWN && announced != decoder->content_nbytes;

    decoder->head_nbytes = 0;
    decoder->content_nbytes = 0;
    return differs ? S3DLIO_E_CORRUPT : 0;
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

        if (decoder->head_nbytes < 4 && input.pos < input.size &&
            !begins_frame(decoder, (const unsigned char *)in->data + in_pos, input.size - in_pos)) {
            decoder->error = S3DLIO_E_CORRUPT;
            break;
        }
        result = ZSTD_decompressStream(decoder->context, &output, &input);
        if (input.pos > in_pos)
            keep_head(decoder, (const char *)in->data + in_pos, input.pos - in_pos);
        decoder->content_nbytes += output.pos - out_pos;
        decoder->error = result == 0 ? end_frame(decoder) : decoder_status(result);
        decoder->between_frames = result == 0;
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
