/*
 * O_DIRECT (open(2)): transfers between the device and the program's memory, past the page cache.
 */
#ifndef S3DLIO_DIRECT_H
#define S3DLIO_DIRECT_H

#include "s3dlio/api.h"

S3DLIO_BEGIN_DECLS

/* cffi: begin */
enum s3dlio_direct {
    /* Through the page cache. */
    S3DLIO_DIRECT_OFF = 0,
    /* O_DIRECT where file system and engine take it, else through the page cache. */
    S3DLIO_DIRECT_PREFER = 1,
    /* O_DIRECT or S3DLIO_E_NO_DIRECT. */
    S3DLIO_DIRECT_REQUIRE = 2
};
/* cffi: end */

S3DLIO_END_DECLS

#endif /* S3DLIO_DIRECT_H */
