/**
 * @file
 * How the library's names are exported, and how they look from C++.
 *
 * Define S3DLIO_STATIC when the static library is linked into a program that should not
 * export these names again.
 */
#ifndef S3DLIO_API_H
#define S3DLIO_API_H

#include <stddef.h>
#include <stdint.h>

/** Marks what the library exports. */
#if defined(S3DLIO_STATIC)
#define S3DLIO_API
#else
#define S3DLIO_API __attribute__((visibility("default")))
#endif

/** @def S3DLIO_BEGIN_DECLS
 * Stands before declarations of C, and S3DLIO_END_DECLS behind them. */
/** @def S3DLIO_END_DECLS
 * See S3DLIO_BEGIN_DECLS. */
#ifdef __cplusplus
#define S3DLIO_BEGIN_DECLS extern "C" {
#define S3DLIO_END_DECLS   }
#else
#define S3DLIO_BEGIN_DECLS
#define S3DLIO_END_DECLS
#endif

#endif /* S3DLIO_API_H */
