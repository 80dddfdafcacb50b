/**
 * @file
 * The file writer: a stream of chunks becomes one file that is complete and durable, or not there
 * at all.  What was under the name before stays until s3dlio_writer_close() has made the new file
 * durable and renames it into place.
 */
#ifndef S3DLIO_WRITER_H
#define S3DLIO_WRITER_H

#include "s3dlio/api.h"
#include "s3dlio/direct.h"

S3DLIO_BEGIN_DECLS

/* cffi: begin */
struct s3dlio_writer;

/** What a file survives once it is there. */
enum s3dlio_durability {
    /** fsync(2) the file, rename, fsync the folder: data and name survive a loss of power. */
    S3DLIO_DURABILITY_FULL = 0,
    /** fdatasync(2) the file, then rename: never torn, but the old file may be back. */
    S3DLIO_DURABILITY_DATA = 1,
    /** Only rename: survives the process, not a loss of power. */
    S3DLIO_DURABILITY_NONE = 2
};

/** How a file is written. */
struct s3dlio_writer_options {
    /** sizeof(struct s3dlio_writer_options); zero in any other field is the default. */
    size_t struct_nbytes;
    /** Bytes in one write to the file, 64 KiB to 1 GiB, rounded up to a multiple of what
     * O_DIRECT needs; 0 is 4 MiB. */
    size_t block_nbytes;
    /** Writes on their way at once, 1 to 1024; 0 is 8. */
    unsigned in_flight;
    /** 1 to 22 compresses with zstd; 0 stores the bytes as they come. */
    int zstd_level;
    /** Compression threads beside the caller; 0 none, negative one for each processor. */
    int zstd_workers;
    /** What the file is to survive. */
    enum s3dlio_durability durability;
    /** Past the page cache or not. */
    enum s3dlio_direct direct;
    /** Not 0: a missing folder is an error (-ENOENT); else it is created with the file. */
    int no_parents;
    /** Above 0: s3dlio_writer_write() and s3dlio_writer_close() return -EAGAIN after about so many
     * milliseconds, so that the caller can look at its own signals, and are called again.  0: they
     * run to their end. */
    int slice_ms;
    /** The device may keep the writer waiting without any progress for so many milliseconds before
     * that is -ETIMEDOUT, and ten times as long for the one fsync(2) at the end; 0 is 300000. */
    int timeout_ms;
};

/** What a writer has done so far, and how. */
struct s3dlio_writer_stats {
    /** Bytes that went in. */
    uint64_t raw_nbytes;
    /** Bytes of the file. */
    uint64_t stored_nbytes;
    /** Blocks that were handed to the engine. */
    uint64_t nblocks;
    /** Time that the caller was kept waiting for the device. */
    uint64_t wait_ns;
    /** Bytes in a full block. */
    size_t block_nbytes;
    /** "io_uring", "threads", or "pwrite" where the calling thread wrote.  Static. */
    const char *engine;
    /** Not 0: the blocks are registered with io_uring. */
    int registered;
    /** Not 0: the file is written with O_DIRECT. */
    int direct;
    /** Why it is not although it was asked for, as -errno; else 0. */
    int direct_error;
    /** Not 0: the file stands under its name. */
    int published;
    /** CRC32C of the bytes that went in. */
    uint32_t raw_crc32c;
    /** CRC32C of the file. */
    uint32_t stored_crc32c;
};

/**
 * s3dlio_writer_open() begins a file that will be 'path' and stores the writer in '*writer_ret'.
 *
 * 'path' is relative to the working folder of this moment, or absolute.  A symbolic link is
 * followed, so that the file it names is replaced.  Nothing appears under 'path' before
 * s3dlio_writer_close().  An existing file passes on its permissions (mode 0777, POSIX ACL) and,
 * where permitted, its owner; a new one gets 0666 less the umask.  'options' may be NULL for the
 * defaults.
 *
 * S3DLIO_IO_ENGINE=uring or =threads in the environment forces that engine; otherwise io_uring is
 * used where it works, and the calling thread writes a stream that fits into one block, and with
 * S3DLIO_DURABILITY_NONE what goes to the page cache of a local file system in blocks of up to
 * 16 MiB: then neither 'slice_ms' nor 'timeout_ms' breaks off a block, and 'wait_ns' leaves it out.
 *
 * Returns 0, -EINVAL for options out of range, -EISDIR, S3DLIO_E_NOT_REGULAR, S3DLIO_E_NO_DIRECT,
 * S3DLIO_E_BAD_ENGINE, S3DLIO_E_ZSTD, S3DLIO_E_RESERVED_NAME, -EACCES for a link or file of
 * somebody else in a folder like /tmp (one that is sticky and writable by all), or -errno of the
 * call that failed.
 */
S3DLIO_API int
s3dlio_writer_open(struct s3dlio_writer **writer_ret, const char *path,
                   const struct s3dlio_writer_options *options);

/**
 * s3dlio_writer_write() appends 'nbytes' bytes at 'data' to the file.
 *
 * 'data' needs no alignment and is borrowed: it may be reused once the call returns.  'nbytes' may
 * be 0.  '*taken_ret' receives how many bytes were taken; it may be NULL if 'slice_ms' is 0.  The
 * bytes are durable only after s3dlio_writer_close() returned 0.
 *
 * Returns 0 when everything was taken, -EAGAIN when 'slice_ms' passed before that (call again with
 * the rest), or a negative code.  After a failure the writer accepts only s3dlio_writer_close(),
 * which returns the first failure, s3dlio_writer_abort() and s3dlio_writer_free().
 *
 * One writer serves one thread at a time, a second one gets S3DLIO_E_BUSY; different writers are
 * independent.
 */
S3DLIO_API int
s3dlio_writer_write(struct s3dlio_writer *writer, const void *data, size_t nbytes,
                    size_t *taken_ret);

/**
 * s3dlio_writer_append() appends 'nbytes' bytes at 'data', if that is no more than a copy.  It is
 * s3dlio_writer_write() for many small pieces.
 *
 * Returns 1, or 0 with nothing taken when it would be more: call s3dlio_writer_write(), which also
 * tells a failure.
 */
S3DLIO_API int
s3dlio_writer_append(struct s3dlio_writer *writer, const void *data, size_t nbytes);

/**
 * s3dlio_writer_close() writes what is left, makes the file durable as the options say, and puts it
 * in place under its name.
 *
 * Returns 0, -EAGAIN as above (call again), or the first failure of this writer; then nothing
 * appears and nothing is left behind, except that after a failed fsync of the folder, which is the
 * last step, the new file is in place but may not survive a loss of power.  A second call returns
 * what the first one did.
 */
S3DLIO_API int
s3dlio_writer_close(struct s3dlio_writer *writer);

/**
 * s3dlio_writer_put() makes the file 'path' of the 'nbytes' bytes at 'data', in one call that does
 * what s3dlio_writer_open(), _write() and _close() do, and returns what they would.  Bytes that go
 * through the page cache as they are go there straight from 'data'.  'slice_ms' has no effect.
 */
S3DLIO_API int
s3dlio_writer_put(const char *path, const void *data, size_t nbytes,
                  const struct s3dlio_writer_options *options);

/**
 * s3dlio_writer_abort() drops the file: writes on their way are waited for, the memory is freed,
 * and nothing appears.  Does nothing after a close that returned 0.  'writer' may be NULL.
 */
S3DLIO_API void
s3dlio_writer_abort(struct s3dlio_writer *writer);

/**
 * s3dlio_writer_get_stats() fills '*stats_ret', of 'struct_nbytes' bytes as the caller knows it.
 * It may be called at any time, also after s3dlio_writer_close().
 *
 * Returns 0, S3DLIO_E_BUSY while another thread is inside a call on this writer, or
 * S3DLIO_E_FORKED.
 */
S3DLIO_API int
s3dlio_writer_get_stats(struct s3dlio_writer *writer, struct s3dlio_writer_stats *stats_ret,
                        size_t struct_nbytes);

/**
 * s3dlio_writer_free() frees the writer, after s3dlio_writer_abort() if it is not closed.
 * 'writer' may be NULL.  No other thread may be inside a call on it.  In a child of fork(2) it
 * closes the child's copies of the descriptors and leaves the parent's file alone.
 */
S3DLIO_API void
s3dlio_writer_free(struct s3dlio_writer *writer);
/* cffi: end */

S3DLIO_END_DECLS

#endif /* S3DLIO_WRITER_H */
