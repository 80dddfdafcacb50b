/**
 * @file
 * The file reader: ranges of a file into the caller's memory, by several reads at once.
 */
#ifndef S3DLIO_READER_H
#define S3DLIO_READER_H

#include "s3dlio/api.h"
#include "s3dlio/direct.h"

S3DLIO_BEGIN_DECLS

/* cffi: begin */
struct s3dlio_reader;

/** How a file is read. */
struct s3dlio_reader_options {
    /** sizeof(struct s3dlio_reader_options); zero in any other field is the default. */
    size_t struct_nbytes;
    /** Bytes in one read from the file, 64 KiB to 1 GiB, rounded up to a multiple of what O_DIRECT
     * needs; 0 is 4 MiB. */
    size_t block_nbytes;
    /** Reads on their way at once, 1 to 1024; 0 is 8. */
    unsigned in_flight;
    /** Through the page cache or past it. */
    enum s3dlio_direct direct;
    /** Above 0: s3dlio_reader_read() returns -EAGAIN after about so many milliseconds, so that the
     * caller can look at its own signals, and is called again.  0: it runs to its end. */
    int slice_ms;
    /** The device may keep the reader waiting without any progress for so many milliseconds before
     * that is -ETIMEDOUT; 0 is 300000. */
    int timeout_ms;
};

/**
 * s3dlio_reader_open() opens the file at 'path' for reading and stores the reader in '*reader_ret'.
 * 'options' may be NULL for the defaults.  The reader goes on reading this file also after its name
 * was given to another one.
 *
 * Returns 0, -EINVAL, -ENOENT, -EISDIR, S3DLIO_E_NOT_REGULAR (also for a file that has content but
 * says that its size is 0, as in /proc), S3DLIO_E_NO_DIRECT,
 * S3DLIO_E_BAD_ENGINE, or -errno of the call that failed.
 */
S3DLIO_API int
s3dlio_reader_open(struct s3dlio_reader **reader_ret, const char *path,
                   const struct s3dlio_reader_options *options);

/** s3dlio_reader_nbytes() returns the size that the file had when it was opened. */
S3DLIO_API uint64_t
s3dlio_reader_nbytes(const struct s3dlio_reader *reader);

/** s3dlio_reader_is_direct() returns whether the file is read with O_DIRECT (0 or 1). */
S3DLIO_API int
s3dlio_reader_is_direct(const struct s3dlio_reader *reader);

/**
 * s3dlio_reader_engine() returns "io_uring", "threads", or "pread" as long as no read needed more
 * than one block.  The text is static.
 */
S3DLIO_API const char *
s3dlio_reader_engine(const struct s3dlio_reader *reader);

/**
 * s3dlio_reader_read() fills 'data' with the bytes of the file from 'offset' on, 'nbytes' of them
 * or as many as there are before the end of the file.
 *
 * Neither 'data' nor 'offset' needs alignment; O_DIRECT is fastest where both have the same
 * remainder modulo 4096.  If 'crc32c_ret' is not NULL, it receives the CRC32C of what was read.
 * 'data' must stay valid until the call has returned something else than -EAGAIN, or
 * s3dlio_reader_cancel() has returned 0.
 *
 * Returns the count of bytes; -EAGAIN when 'slice_ms' passed (call again with the same arguments);
 * -EINVAL when other arguments are given while a read is unfinished; or the first failure of this
 * read.  One thread at a time, a second one gets S3DLIO_E_BUSY.
 */
S3DLIO_API int64_t
s3dlio_reader_read(struct s3dlio_reader *reader, void *data, size_t nbytes, uint64_t offset,
                   uint32_t *crc32c_ret);

/**
 * s3dlio_reader_cancel() gives up a read that returned -EAGAIN.
 *
 * Returns 0 once nothing writes to its memory any more, or -ETIMEDOUT after 10 seconds without
 * that: then the memory must not be reused before another call has returned 0, and of the other
 * calls only s3dlio_reader_free() is accepted, which leaves the reader allocated.  Does nothing
 * when no read is unfinished.
 */
S3DLIO_API int
s3dlio_reader_cancel(struct s3dlio_reader *reader);

/**
 * s3dlio_reader_free() closes the file and frees the reader, after s3dlio_reader_cancel().
 * 'reader' may be NULL.  No other thread may be inside a call on it.
 */
S3DLIO_API void
s3dlio_reader_free(struct s3dlio_reader *reader);
/* cffi: end */

S3DLIO_END_DECLS

#endif /* S3DLIO_READER_H */
