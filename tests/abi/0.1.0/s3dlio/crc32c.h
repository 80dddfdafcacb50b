/**
 * @file
 * CRC32C: the Castagnoli polynomial 0x1EDC6F41, reflected, as in RFC 3720 (iSCSI), ext4,
 * Amazon S3 and Google Cloud Storage.
 */
#ifndef S3DLIO_CRC32C_H
#define S3DLIO_CRC32C_H

#include "s3dlio/api.h"

S3DLIO_BEGIN_DECLS

/* cffi: begin */
/**
 * s3dlio_crc32c() extends the checksum 'crc' by 'nbytes' bytes at 'data'.
 *
 * Start with 'crc' = 0; feeding a stream in pieces of any size gives the checksum of the
 * whole.  'data' needs no alignment and may be NULL when 'nbytes' is 0.
 *
 * The fastest variant for the processor is bound at the first call.  Never fails.  Any
 * thread may call it.
 */
S3DLIO_API uint32_t
s3dlio_crc32c(uint32_t crc, const void *data, size_t nbytes);

/**
 * s3dlio_crc32c_combine() returns the checksum of A followed by B, from 'crc1' of A, 'crc2'
 * of B and B's length 'nbytes2', without reading either.
 *
 * Takes a few dozen steps at most, whatever the length.  Never fails.  Any thread may call it.
 */
S3DLIO_API uint32_t
s3dlio_crc32c_combine(uint32_t crc1, uint32_t crc2, uint64_t nbytes2);

/**
 * s3dlio_crc32c_variant() names the variant in use: "avx512-vpclmulqdq", "sse42-pclmul",
 * "armv8-crc" or "portable".  The text is static.  Any thread may call it.
 */
S3DLIO_API const char *
s3dlio_crc32c_variant(void);
/* cffi: end */

S3DLIO_END_DECLS

#endif /* S3DLIO_CRC32C_H */
