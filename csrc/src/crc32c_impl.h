/*
 * The variants of CRC32C, and the algebra they share.
 *
 * A string of n bits is a polynomial over GF(2), kept reflected: bit i of the word is the
 * coefficient of x^(n-1-i), so the first bit of the stream is the highest power.  P is the
 * Castagnoli polynomial.  The register is a polynomial below x^32; a message M of m bits turns
 * the register c into (c * x^m + M * x^32) mod P.  Every constant is a power of x:
 *
 *     def power(n):                                        # x^n mod P in Python
 *         value = 1 << 31
 *         for _ in range(n):
 *             value = value >> 1 ^ (value & 1) * 0x82f63b78
 *         return value
 *
 * To move a word n bits up (multiply it by x^n), carry-less multiplication takes power(n-33)
 * with 32 zero bits above it: as the lower half of a 64-bit word a constant counts x^32 times
 * its own value, and the product of two such words, with 127 bits in 128, counts x times.
 */
#ifndef CRC32C_IMPL_H
#define CRC32C_IMPL_H

#include <stddef.h>
#include <stdint.h>

/* Extends a register, which is the complement of a checksum, by 'nbytes' bytes at 'data'. */
typedef uint32_t
s3dlio_crc32c_fn(uint32_t crc, const unsigned char *data, size_t nbytes);

/* The same, of bytes that it copies: it reads each once, and checksums what it stores. */
typedef uint32_t
s3dlio_crc32c_copy_fn(uint32_t crc, unsigned char *to, const unsigned char *from, size_t nbytes);

s3dlio_crc32c_copy_fn s3dlio_crc32c_copy_avx512;

s3dlio_crc32c_fn s3dlio_crc32c_portable;
s3dlio_crc32c_fn s3dlio_crc32c_sse42;       /* needs SSE42 and PCLMUL */
s3dlio_crc32c_fn s3dlio_crc32c_avx512;      /* also AVX512 and VPCLMULQDQ */
s3dlio_crc32c_fn s3dlio_crc32c_armv8;       /* needs ARM_CRC32 */
s3dlio_crc32c_fn s3dlio_crc32c_armv8_pmull; /* also ARM_PMULL */

/*
 * A crc32 instruction gives its result after about three cycles and can be started in each, so
 * the variants built on it run along three neighbouring streams at once and merge them.
 */
struct s3dlio_crc32c_split {
    size_t stream_nbytes; /* n, a multiple of 8 */
    uint32_t up_two;      /* moves a register over two streams: power(16n-33) */
    uint32_t up_one;      /* moves a register over one stream: power(8n-33) */
};

/* The longest first; the last one is for S3DLIO_CRC32C_SPLIT_MIN bytes. */
extern const struct s3dlio_crc32c_split s3dlio_crc32c_splits[];

#define S3DLIO_CRC32C_SPLIT_COUNT 4
#define S3DLIO_CRC32C_SPLIT_MIN   240

/*
 * s3dlio_crc32c_copy() copies 'nbytes' bytes and returns 'crc' extended by them, as s3dlio_crc32c()
 * would for those at 'to': what is stored is what was checksummed, also if another thread changes
 * the bytes at 'from' meanwhile.
 */
uint32_t
s3dlio_crc32c_copy(uint32_t crc, void *to, const void *from, size_t nbytes);

/* Makes the next call of s3dlio_crc32c() choose again, by s3dlio_cpu_features(). */
void
s3dlio_crc32c_rebind_for_tests(void);

#endif /* CRC32C_IMPL_H */
