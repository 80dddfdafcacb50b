/**
 * @file
 * What the library's calls return.
 *
 * A call returns 0 or a count when it succeeded.  A failure is negative: either -errno
 * unchanged, as the system reported it (-ENOSPC, -EIO, ...), or one of the codes below,
 * which lie outside the range of errno (Linux ends at 4095) and never change their meaning.
 */
#ifndef S3DLIO_STATUS_H
#define S3DLIO_STATUS_H

#include "s3dlio/api.h"

S3DLIO_BEGIN_DECLS

/* cffi: begin */
/** What calls return beside 0, counts and -errno.  The numbers are never used for something else.
 */
enum s3dlio_status {
    /** The data is not what was written: a checksum differs, or it is no zstd frame. */
    S3DLIO_E_CORRUPT = -10001,
    /** The data ends too early: before its last zstd frame, or before the size the file had. */
    S3DLIO_E_TRUNCATED = -10002,
    /** The handle does not accept this call any more: it was closed or aborted. */
    S3DLIO_E_CLOSED = -10003,
    /** Another thread is inside a call on this handle. */
    S3DLIO_E_BUSY = -10004,
    /** The handle was made by the parent of this process and does not work after fork(2). */
    S3DLIO_E_FORKED = -10005,
    /** O_DIRECT was required, and the file system or the engine does not offer it. */
    S3DLIO_E_NO_DIRECT = -10006,
    /** S3DLIO_IO_ENGINE names no engine that this build knows. */
    S3DLIO_E_BAD_ENGINE = -10007,
    /** The compression library refused, for a reason other than damaged data or memory. */
    S3DLIO_E_ZSTD = -10008,
    /** The target exists and is neither a regular file nor a link to one. */
    S3DLIO_E_NOT_REGULAR = -10009,
    /** The name has the form '.name.s3dlio-0', which is kept for files in the making. */
    S3DLIO_E_RESERVED_NAME = -10010
};

/**
 * s3dlio_status_text() writes one sentence about 'code' to 'text': the codes above, or the
 * system's own text (strerror_r(3)) for -errno.
 *
 * The result always ends with a zero byte, cut to 'text_nbytes' (at least 1; 128 hold every
 * sentence of this library).  Returns 'text'.  Any thread may call it.
 */
S3DLIO_API const char *
s3dlio_status_text(int code, char *text, size_t text_nbytes);
/* cffi: end */

S3DLIO_END_DECLS

#endif /* S3DLIO_STATUS_H */
