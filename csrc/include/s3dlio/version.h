/**
 * @file
 * The versions.  This is their only home: CMake, the Python package and the pkg-config file
 * read them from here.
 */
#ifndef S3DLIO_VERSION_H
#define S3DLIO_VERSION_H

#include "s3dlio/api.h"

S3DLIO_BEGIN_DECLS

/* cffi: begin */
/** The version of these headers: the first of its three numbers. */
#define S3DLIO_VERSION_MAJOR 0
/** The second. */
#define S3DLIO_VERSION_MINOR 1
/** The third. */
#define S3DLIO_VERSION_PATCH 0

/**
 * The version of the binary interface, and the number in the file's name, libs3dlio.so.0.  A
 * program that was compiled with one release works with each later one of the same number.
 */
#define S3DLIO_ABI_VERSION 0

/**
 * s3dlio_version() returns the version of the library that is running, as "0.1.0".
 *
 * The text is static and never freed.  Any thread may call it.
 */
S3DLIO_API const char *
s3dlio_version(void);
/* cffi: end */

S3DLIO_END_DECLS

#endif /* S3DLIO_VERSION_H */
