/**
 * @file
 * zstd streams (RFC 8878) over libzstd: frames that every zstd reads, and in which this one sees
 * each flipped bit and each cut.
 *
 * The checksum of a frame is that of its content, and does not see a flip of what means nothing for
 * it: unused bits, a larger window, padding.  So the encoder adds one of what is stored, by two
 * things that other readers pass over:
 *
 *     bytes
 *     6      the frame's header: 28 b5 2f fd, 04 (a content checksum and nothing else), the window
 *     6      the mark, two empty raw blocks (3.1.1.2): 00 00 00 00 00 00
 *     any    the other blocks and the content checksum, which end the frame
 *     12     the seal, a frame to be skipped (3.1.2): 53 2a 4d 18, 08 00 00 00, 's' '3' 'd' 'l'
 *     4      and its content: CRC32C (crc32c.h) of the frame from 28 b5 2f fd on, little endian
 *
 * What follows a frame with the mark is its seal, or else something is cut off or damaged.  A seal
 * is compared with the frame before it whether that has the mark or not, as the mark may be
 * damaged.
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
/** The fastest level. */
#define S3DLIO_ZSTD_LEVEL_MIN 1
/** The smallest result. */
#define S3DLIO_ZSTD_LEVEL_MAX 22
/** Most of the gain for little time. */
#define S3DLIO_ZSTD_LEVEL_DEFAULT 3

/** What is to be read. */
struct s3dlio_zstd_in {
    /** Where the bytes begin; may be NULL if there are none. */
    const void *data;
    /** How many they are. */
    size_t nbytes;
    /** How many of them are already read. */
    size_t pos;
};

/** Where to write. */
struct s3dlio_zstd_out {
    /** Where the room begins. */
    void *data;
    /** How many bytes it has. */
    size_t nbytes;
    /** How many of them are already written. */
    size_t pos;
};

struct s3dlio_zstd_encoder;

/**
 * s3dlio_zstd_encoder_new() stores a new encoder of one frame and its seal in '*encoder_ret'.
 *
 * 'level' is 1 to 22.  'nworkers' threads compress beside the caller (libzstd's own; 0 compresses
 * in the calling thread, a negative value takes one for each processor that this process may run
 * on, 16 at most).  A library without threads works without.
 *
 * Returns 0, -EINVAL for a level out of range, -ENOMEM, or S3DLIO_E_ZSTD.
 */
S3DLIO_API int
s3dlio_zstd_encoder_new(struct s3dlio_zstd_encoder **encoder_ret, int level, int nworkers);

/**
 * s3dlio_zstd_encoder_write() compresses from 'in' to 'out', moving both 'pos'.
 *
 * It returns with 'in' exhausted or 'out' full.  Input that is read may still be inside the
 * encoder.  Returns 0, -ENOMEM, S3DLIO_E_ZSTD, S3DLIO_E_CLOSED once s3dlio_zstd_encoder_end() was
 * called, or S3DLIO_E_FORKED in a child of fork(2), which has none of the threads.
 */
S3DLIO_API int
s3dlio_zstd_encoder_write(struct s3dlio_zstd_encoder *encoder, struct s3dlio_zstd_in *in,
                          struct s3dlio_zstd_out *out);

/**
 * s3dlio_zstd_encoder_end() writes the rest of the frame and its seal to 'out'.
 *
 * Returns 0 when both are complete, 1 when 'out' is full and the call must be repeated with more
 * room, -ENOMEM, S3DLIO_E_ZSTD or S3DLIO_E_FORKED.
 */
S3DLIO_API int
s3dlio_zstd_encoder_end(struct s3dlio_zstd_encoder *encoder, struct s3dlio_zstd_out *out);

/**
 * s3dlio_zstd_encoder_free() frees an encoder, finished or not.  'encoder' may be NULL.  Above
 * level 8 the threads of one that is not finished may be at work for minutes: then it returns at
 * once, and a thread frees it when they are done, two at most at a time.  In a child of fork(2) the
 * worker threads do not exist, and the memory is left as it is.
 */
S3DLIO_API void
s3dlio_zstd_encoder_free(struct s3dlio_zstd_encoder *encoder);

struct s3dlio_zstd_decoder;

/**
 * s3dlio_zstd_decoder_new() stores a new decoder in '*decoder_ret'.  It reads any number of
 * frames one after the other, by this encoder or any other, with windows of up to 128 MiB, and
 * checks content checksums and seals.
 *
 * Returns 0 or -ENOMEM.
 */
S3DLIO_API int
s3dlio_zstd_decoder_new(struct s3dlio_zstd_decoder **decoder_ret);

/**
 * s3dlio_zstd_decoder_read() decompresses from 'in' to 'out', moving both 'pos'.
 *
 * Returns 0 or a failure, which sticks: S3DLIO_E_CORRUPT for data that is no zstd frame, whose
 * checksum differs or whose seal does, -ENOMEM, or S3DLIO_E_ZSTD for a frame that needs a window
 * over 128 MiB.
 * Output of a damaged frame may have been delivered before the damage is seen: use it only once
 * s3dlio_zstd_decoder_end() returned 0.
 */
S3DLIO_API int
s3dlio_zstd_decoder_read(struct s3dlio_zstd_decoder *decoder, struct s3dlio_zstd_in *in,
                         struct s3dlio_zstd_out *out);

/**
 * s3dlio_zstd_decoder_end() tells whether the input may end here.
 *
 * Call it when there is no more input and the last read left room in 'out'.  Returns 0 after at
 * least one complete frame, S3DLIO_E_TRUNCATED in the middle of one, before the first, or where a
 * seal is missing, or the failure of an earlier read.
 */
S3DLIO_API int
s3dlio_zstd_decoder_end(const struct s3dlio_zstd_decoder *decoder);

/** s3dlio_zstd_decoder_free() frees a decoder.  'decoder' may be NULL. */
S3DLIO_API void
s3dlio_zstd_decoder_free(struct s3dlio_zstd_decoder *decoder);
/* cffi: end */

S3DLIO_END_DECLS

#endif /* S3DLIO_ZSTD_H */
