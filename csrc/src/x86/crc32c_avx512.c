/*
 * CRC32C by folding: the message becomes a shorter one with the same remainder, by moving
 * blocks of 64 bytes (four words of 128 bits side by side) up onto later ones.
 *
 * On the way each block can be stored elsewhere: then the checksum costs no more than a copy, and
 * is that of the stored bytes, whatever happens to the others meanwhile.  Stores past the cache
 * spare reading what they replace, and leave the cache to the rest of the program.
 *
 * Software prefetch made it slower on data that comes from memory: the hardware follows one
 * stream well by itself.
 */
#include "crc32c_impl.h"

#include <immintrin.h>
#include <stdbool.h>
#include <string.h>

#define TARGET __attribute__((target("avx512f,avx512bw,avx512vl,vpclmulqdq,sse4.2,crc32,pclmul")))

/* A copy of less stays in the first-level cache, where checksumming it takes no longer. */
#define MIN_STREAM_NBYTES 4096

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

/* Loads a block, and if 'copy' stores it at 'to', a multiple of 64. */
TARGET static inline __attribute__((always_inline)) __m512i
block_at(const unsigned char *data, unsigned char *to, bool copy)
{
    __m512i block = _mm512_loadu_si512(data);

    if (copy)
        _mm512_stream_si512((void *)to, block);
    return block;
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

/* Extends a register by 'nbytes' bytes, a multiple of 64 and at least 256. */
TARGET static inline __attribute__((always_inline)) uint32_t
extend(uint32_t crc, const unsigned char *data, unsigned char *to, size_t nbytes, bool copy)
{
    const __m512i over = OVER_256;
    __m512i a, b, c, d;
    uint64_t words[8], extended = 0;

    /* The register belongs to the first 32 bits of the message. */
    a = _mm512_xor_si512(block_at(data, to, copy),
                         _mm512_zextsi128_si512(_mm_cvtsi32_si128((int)crc)));
    b = block_at(data + 64, to + 64, copy);
    c = block_at(data + 128, to + 128, copy);
    d = block_at(data + 192, to + 192, copy);
    for (data += 256, to += 256, nbytes -= 256; nbytes >= 256;
         data += 256, to += 256, nbytes -= 256) {
        /* All products before the first sum: that is faster on a core shared by two threads. */
        __m512i a_first = move_first(a, over);
        __m512i b_first = move_first(b, over);
        __m512i c_first = move_first(c, over);
        __m512i d_first = move_first(d, over);
        __m512i a_second = move_second(a, over);
        __m512i b_second = move_second(b, over);
        __m512i c_second = move_second(c, over);
        __m512i d_second = move_second(d, over);

        a = sum(a_first, a_second, block_at(data, to, copy));
        b = sum(b_first, b_second, block_at(data + 64, to + 64, copy));
        c = sum(c_first, c_second, block_at(data + 128, to + 128, copy));
        d = sum(d_first, d_second, block_at(data + 192, to + 192, copy));
    }
    d = fold(a, OVER_192, fold(b, OVER_128, fold(c, OVER_64, d)));
    for (; nbytes >= 64; data += 64, to += 64, nbytes -= 64)
        d = fold(d, OVER_64, block_at(data, to, copy));

    memcpy(words, &d, sizeof words);
    for (int i = 0; i < 8; i++)
        extended = _mm_crc32_u64(extended, words[i]);
    return (uint32_t)extended;
}

TARGET uint32_t
s3dlio_crc32c_avx512(uint32_t crc, const unsigned char *data, size_t nbytes)
{
    size_t folded = nbytes / 64 * 64;

    if (nbytes < 256)
        return s3dlio_crc32c_sse42(crc, data, nbytes);
    crc = extend(crc, data, (unsigned char *)data, folded, false);
    return s3dlio_crc32c_sse42(crc, data + folded, nbytes - folded);
}

static uint32_t
copy_cached(uint32_t crc, unsigned char *to, const unsigned char *from, size_t nbytes)
{
    memcpy(to, from, nbytes);
    return s3dlio_crc32c_avx512(crc, to, nbytes);
}

TARGET uint32_t
s3dlio_crc32c_copy_avx512(uint32_t crc, unsigned char *to, const unsigned char *from, size_t nbytes)
{
    size_t head = -(uintptr_t)to % 64;
    size_t folded;

    if (nbytes < MIN_STREAM_NBYTES)
        return copy_cached(crc, to, from, nbytes);
    folded = (nbytes - head) / 64 * 64;
    crc = copy_cached(crc, to, from, head);
    crc = extend(crc, from + head, to + head, folded, true);
    /* Such stores may come late: whoever is told of the block must see them. */
    _mm_sfence();
    head += folded;
    return copy_cached(crc, to + head, from + head, nbytes - head);
}
