/* CRC32C by the crc32 instruction of SSE4.2, which computes register * x^64 + word * x^32 mod P. */
#include "crc32c_impl.h"

#include <nmmintrin.h>
#include <string.h>
#include <wmmintrin.h>

#define TARGET __attribute__((target("sse4.2,crc32,pclmul")))

static inline uint64_t
word_at(const unsigned char *data)
{
    uint64_t word;

    memcpy(&word, data, sizeof word);
    return word;
}

/* A word that leaves the register 'crc' moved up, when the crc32 instruction takes it in. */
TARGET static inline uint64_t
moved(uint64_t crc, uint32_t up)
{
    __m128i product = _mm_clmulepi64_si128(_mm_cvtsi64_si128((long long)crc),
                                           _mm_cvtsi64_si128((long long)up), 0);

    return (uint64_t)_mm_cvtsi128_si64(product);
}

TARGET static inline uint64_t
extend_by_split(uint64_t crc0, const unsigned char *data, const struct s3dlio_crc32c_split *split)
{
    size_t stream_nbytes = split->stream_nbytes;
    const unsigned char *last = data + stream_nbytes - 8;
    uint64_t crc1 = 0, crc2 = 0;

    for (; data < last; data += 8) {
        crc0 = _mm_crc32_u64(crc0, word_at(data));
        crc1 = _mm_crc32_u64(crc1, word_at(data + stream_nbytes));
        crc2 = _mm_crc32_u64(crc2, word_at(data + 2 * stream_nbytes));
    }
    crc0 = _mm_crc32_u64(crc0, word_at(data));
    crc1 = _mm_crc32_u64(crc1, word_at(data + stream_nbytes));

    /* The last word of the third stream carries the other two registers in. */
    return _mm_crc32_u64(crc2, word_at(data + 2 * stream_nbytes) ^ moved(crc0, split->up_two) ^
                                   moved(crc1, split->up_one));
}

TARGET uint32_t
s3dlio_crc32c_sse42(uint32_t crc32, const unsigned char *data, size_t nbytes)
{
    const struct s3dlio_crc32c_split *split = s3dlio_crc32c_splits;
    uint64_t crc = crc32;

    while (nbytes >= S3DLIO_CRC32C_SPLIT_MIN) {
        size_t split_nbytes = 3 * split->stream_nbytes;

        if (nbytes < split_nbytes) {
            split++;
            continue;
        }
        crc = extend_by_split(crc, data, split);
        data += split_nbytes;
        nbytes -= split_nbytes;
    }
    for (; nbytes >= 8; data += 8, nbytes -= 8)
        crc = _mm_crc32_u64(crc, word_at(data));
    for (; nbytes > 0; data++, nbytes--)
        crc = _mm_crc32_u8((uint32_t)crc, *data);
    return (uint32_t)crc;
}
