/*
 * zstd streams (RFC 8878) over libzstd: plain frames with a content checksum, which every
 * zstd reads.
 *
 * Both directions take what they can from an input buffer and put what they can into an output
 * buffer, and are called again until they say that they are done; neither keeps a pointer to
 * either buffer between calls.
 */
#ifndef S3DLIO_ZSTD_H
#define S3DLIO_ZSTD_H

#include "s3dlio/api.h"

S3DLIO_BEGIN_DECLS

/* cffi: begin */
#define S3DLIO_ZSTD_LEVEL_MIN     1
#define S3DLIO_ZSTD_LEVEL_MAX     22
#define S3DLIO_ZSTD_LEVEL_DEFAULT 3

/* Bytes from 'data' on; 'pos' of 'nbytes' are already read. */
struct s3dlio_zstd_in {
    const void *data;
    size_t nbytes;
    size_t pos;
};

/* Room from 'data' on; 'pos' of 'nbytes' are already written. */
struct s3dlio_zstd_out {
    void *data;
    size_t nbytes;
    size_t pos;
};

struct s3dlio_zstd_encoder;

/*
 * s3dlio_zstd_encoder_new() stores a new encoder of one frame in '*encoder_ret'.
 *
 * 'level' is 1 to 22.  'nworkers' threads compress beside the caller (libzstd's own; 0 compresses
 * in the calling thread, a negative value takes one for each processor that this process may run
 * on, 16 at most).  A library without threads works without.
 *
 * Returns 0, -EINVAL for a level out of range, -ENOMEM, or S3DLIO_E_ZSTD.
 */
S3DLIO_API int
s3dlio_zstd_encoder_new(struct s3dlio_zstd_encoder **encoder_ret, int level, int nworkers);

/*
 * s3dlio_zstd_encoder_write() compresses from 'in' to 'out', moving both 'pos'.
 *
 * It returns with 'in' exhausted or 'out' full.  Input that is read may still be inside the
 * encoder.  Returns 0, -ENOMEM, S3DLIO_E_ZSTD, S3DLIO_E_CLOSED once s3dlio_zstd_encoder_end() was
 * called, or S3DLIO_E_FORKED in a child of fork(2), which has none of the threads.
 */
S3DLIO_API int
s3dlio_zstd_encoder_write(struct s3dlio_zstd_encoder *encoder, struct s3dlio_zstd_in *in,
                          struct s3dlio_zstd_out *out);

/*
 * s3dlio_zstd_encoder_end() writes the rest of the frame and its checksum to 'out'.
 *
 * Returns 0 when the frame is complete, 1 when 'out' is full and the call must be repeated with
 * more room, -ENOMEM, S3DLIO_E_ZSTD or S3DLIO_E_FORKED.
 */
S3DLIO_API int
s3dlio_zstd_encoder_end(struct s3dlio_zstd_encoder *encoder, struct s3dlio_zstd_out *out);

/*
 * s3dlio_zstd_encoder_free() frees an encoder, finished or not.  'encoder' may be NULL.  Above
 * level 8 the threads of one that is not finished may be at work for minutes: then it returns at
 * once, and a thread frees it when they are done, two at most at a time.  In a child of fork(2) the
 * worker threads do not exist, and the memory is left as it is.
 */
S3DLIO_API void
s3dlio_zstd_encoder_free(struct s3dlio_zstd_encoder *encoder);

struct s3dlio_zstd_decoder;

/*
 * s3dlio_zstd_decoder_new() stores a new decoder in '*decoder_ret'.  It reads any number of
 * frames one after the other, windows of up to 128 MiB, and checks content checksums.
 *
 * Returns 0 or -ENOMEM.
 */
S3DLIO_API int
s3dlio_zstd_decoder_new(struct s3dlio_zstd_decoder **decoder_ret);

/*
 * s3dlio_zstd_decoder_read() decompresses from 'in' to 'out', moving both 'pos'.
 *
 * Returns 0 or a failure, which sticks: S3DLIO_E_CORRUPT for data that is no zstd frame or whose
 * checksum differs, -ENOMEM, or S3DLIO_E_ZSTD for a frame that needs a window over 128 MiB.
 * Output of a damaged frame may have been delivered before the damage is seen: use it only once
 * s3dlio_zstd_decoder_end() returned 0.
 */
S3DLIO_API int
s3dlio_zstd_decoder_read(struct s3dlio_zstd_decoder *decoder, struct s3dlio_zstd_in *in,
                         struct s3dlio_zstd_out *out);

/*
 * s3dlio_zstd_decoder_end() tells whether the input may end here.
 *
 * Call it when there is no more input and the last read left room in 'out'.  Returns 0 after at
 * least one complete frame, S3DLIO_E_TRUNCATED in the middle of one or before the first, or the
 * failure of an earlier read.
 */
S3DLIO_API int
s3dlio_zstd_decoder_end(const struct s3dlio_zstd_decoder *decoder);

/* s3dlio_zstd_decoder_free() frees a decoder.  'decoder' may be NULL. */
S3DLIO_API void
s3dlio_zstd_decoder_free(struct s3dlio_zstd_decoder *decoder);
/* cffi: end */

S3DLIO_END_DECLS

#endif /* S3DLIO_ZSTD_H */
