/**
 * @file
 * O_DIRECT (open(2)): transfers between the device and the program's memory, past the page cache.
 */
#ifndef S3DLIO_DIRECT_H
#define S3DLIO_DIRECT_H

#include "s3dlio/api.h"

S3DLIO_BEGIN_DECLS

/* cffi: begin */
/** Whether a file is read or written with O_DIRECT. */
enum s3dlio_direct {
    /** Through the page cache. */
    S3DLIO_DIRECT_OFF = 0,
    /** O_DIRECT where file system and engine take it, else through the page cache. */
    S3DLIO_DIRECT_PREFER = 1,
    /** O_DIRECT or S3DLIO_E_NO_DIRECT. */
    S3DLIO_DIRECT_REQUIRE = 2,
    /** For writers: a file that is to last and grows beyond 16 MiB goes on with O_DIRECT where that
     * is to be had, which is faster than to have fsync(2) write all of it; a shorter one, or one of
     * S3DLIO_DURABILITY_NONE, stays in the page cache.  For readers: a file of 16 MiB or more of
     * which less than half is in the page cache (cachestat(2), Linux 6.5) is read with O_DIRECT
     * where that is to be had; it is for files that are read once. */
    S3DLIO_DIRECT_AUTO = 3
};
/* cffi: end */

S3DLIO_END_DECLS

#endif /* S3DLIO_DIRECT_H */
