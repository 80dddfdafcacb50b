/*
 * CRC32C by folding: the message becomes a shorter one with the same remainder, by moving
 * blocks of 64 bytes (four words of 128 bits side by side) up onto later ones.
 *
 * Software prefetch made it slower on data that comes from memory: the hardware follows one
 * stream well by itself.
 */
#include "crc32c_impl.h"

#include <immintrin.h>
#include <string.h>

#define TARGET __attribute__((target("avx512f,avx512bw,avx512vl,vpclmulqdq,sse4.2,crc32,pclmul")))

/*
 * They move every word of a block over n bytes: power(8n+64-33) for the half that comes first
 * in the stream, which is 64 bits higher than the other, and power(8n-33) for the second half.
 */
#define OVER_64  halves(0x740eef02, 0x9e4addf8)
#define OVER_128 halves(0x6992cea2, 0x0d3b6092)
#define OVER_192 halves(0xa87ab8a8, 0xab7aff2a)
#define OVER_256 halves(0xdcb17aa4, 0xb9e02b86)

TARGET static inline __m512i
halves(uint32_t first, uint32_t second)
{
    return _mm512_broadcast_i32x4(_mm_set_epi64x((long long)second, (long long)first));
}

TARGET static inline __m512i
block_at(const unsigned char *data)
{
    return _mm512_loadu_si512(data);
}

TARGET static inline __m512i
move_first(__m512i block, __m512i over)
{
    return _mm512_clmulepi64_epi128(block, over, 0x00);
}

TARGET static inline __m512i
move_second(__m512i block, __m512i over)
{
    return _mm512_clmulepi64_epi128(block, over, 0x11);
}

TARGET static inline __m512i
sum(__m512i a, __m512i b, __m512i c)
{
    return _mm512_ternarylogic_epi64(a, b, c, 0x96); /* the truth table of a ^ b ^ c */
}

TARGET static inline __m512i
fold(__m512i block, __m512i over, __m512i onto)
{
    return sum(move_first(block, over), move_second(block, over), onto);
}

TARGET uint32_t
s3dlio_crc32c_avx512(uint32_t crc, const unsigned char *data, size_t nbytes)
{
    const __m512i over = OVER_256;
    __m512i a, b, c, d;
    uint64_t words[8], extended = 0;

    if (nbytes < 256)
        return s3dlio_crc32c_sse42(crc, data, nbytes);

    /* The register belongs to the first 32 bits of the message. */
    a = _mm512_xor_si512(block_at(data), _mm512_zextsi128_si512(_mm_cvtsi32_si128((int)crc)));
    b = block_at(data + 64);
    c = block_at(data + 128);
    d = block_at(data + 192);
    for (data += 256, nbytes -= 256; nbytes >= 256; data += 256, nbytes -= 256) {
        /* All products before the first sum: that is faster on a core shared by two threads. */
        __m512i a_first = move_first(a, over);
        __m512i b_first = move_first(b, over);
        __m512i c_first = move_first(c, over);
        __m512i d_first = move_first(d, over);
        __m512i a_second = move_second(a, over);
        __m512i b_second = move_second(b, over);
        __m512i c_second = move_second(c, over);
        __m512i d_second = move_second(d, over);

        a = sum(a_first, a_second, block_at(data));
        b = sum(b_first, b_second, block_at(data + 64));
        c = sum(c_first, c_second, block_at(data + 128));
        d = sum(d_first, d_second, block_at(data + 192));
    }
    d = fold(a, OVER_192, fold(b, OVER_128, fold(c, OVER_64, d)));
    for (; nbytes >= 64; data += 64, nbytes -= 64)
        d = fold(d, OVER_64, block_at(data));

    memcpy(words, &d, sizeof words);
    for (int i = 0; i < 8; i++)
        extended = _mm_crc32_u64(extended, words[i]);
    return s3dlio_crc32c_sse42((uint32_t)extended, data, nbytes);
}
