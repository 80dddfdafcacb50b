#include "s3dlio/crc32c.h"

#include "cpu.h"
#include "crc32c_impl.h"

#include <stdatomic.h>
#include <string.h>

/* Bytes to copy and then checksum at a time: the copy is still in the first-level cache. */
#define PIECE_NBYTES ((size_t)16 << 10)

/*
 * after[k][b] is the register that byte b and then k bytes of zero leave behind.
 *
 * Bit i of the byte leaves power(39+8k-i) (see crc32c_impl.h) and every other entry is a sum of
 * such powers, so 128 numbers, power(32) to power(159), make the whole table.
 */
#define SUMS1(v, a)                   (v), (v) ^ (a)
#define SUMS2(v, a, b)                SUMS1(v, a), SUMS1((v) ^ (b), a)
#define SUMS3(v, a, b, c)             SUMS2(v, a, b), SUMS2((v) ^ (c), a, b)
#define SUMS4(v, a, b, c, d)          SUMS3(v, a, b, c), SUMS3((v) ^ (d), a, b, c)
#define SUMS5(v, a, b, c, d, e)       SUMS4(v, a, b, c, d), SUMS4((v) ^ (e), a, b, c, d)
#define SUMS6(v, a, b, c, d, e, f)    SUMS5(v, a, b, c, d, e), SUMS5((v) ^ (f), a, b, c, d, e)
#define SUMS7(v, a, b, c, d, e, f, g) SUMS6(v, a, b, c, d, e, f), SUMS6((v) ^ (g), a, b, c, d, e, f)
#define ROW(a, b, c, d, e, f, g, h) {SUMS7(0u, a, b, c, d, e, f, g), SUMS7(h, a, b, c, d, e, f, g)}

/* clang-format off */
static const uint32_t after[16][256] = {
    ROW(0xf26b8303, 0xe13b70f7, 0xc79a971f, 0x8ad958cf, 0x105ec76f, 0x20bd8ede, 0x417b1dbc, 0x82f63b78),
    ROW(0x13a29877, 0x274530ee, 0x4e8a61dc, 0x9d14c3b8, 0x3fc5f181, 0x7f8be302, 0xff17c604, 0xfbc3faf9),
    ROW(0xa541927e, 0x4f6f520d, 0x9edea41a, 0x38513ec5, 0x70a27d8a, 0xe144fb14, 0xc76580d9, 0x8b277743),
    ROW(0xdd45aab8, 0xbf672381, 0x7b2231f3, 0xf64463e6, 0xe964b13d, 0xd725148b, 0xaba65fe7, 0x52a0c93f),
    ROW(0x38116fac, 0x7022df58, 0xe045beb0, 0xc5670b91, 0x8f2261d3, 0x1ba8b557, 0x37516aae, 0x6ea2d55c),
    ROW(0xef306b19, 0xdb8ca0c3, 0xb2f53777, 0x6006181f, 0xc00c303e, 0x85f4168d, 0x0e045beb, 0x1c08b7d6),
    ROW(0x68032cc8, 0xd0065990, 0xa5e0c5d1, 0x4e2dfd53, 0x9c5bfaa6, 0x3d5b83bd, 0x7ab7077a, 0xf56e0ef4),
    ROW(0x493c7d27, 0x9278fa4e, 0x211d826d, 0x423b04da, 0x847609b4, 0x0d006599, 0x1a00cb32, 0x34019664),
    ROW(0xf43ed648, 0xed91da61, 0xdecfc233, 0xb873f297, 0x750b93df, 0xea1727be, 0xd1c2398d, 0xa66805eb),
    ROW(0xcb567ba5, 0x934081bb, 0x236d7587, 0x46daeb0e, 0x8db5d61c, 0x1e87dac9, 0x3d0fb592, 0x7a1f6b24),
    ROW(0x9771f7c1, 0x2b0f9973, 0x561f32e6, 0xac3e65cc, 0x5d90bd69, 0xbb217ad2, 0x73ae8355, 0xe75d06aa),
    ROW(0x3171d430, 0x62e3a860, 0xc5c750c0, 0x8e62d771, 0x1929d813, 0x3253b026, 0x64a7604c, 0xc94ec098),
    ROW(0x30d23865, 0x61a470ca, 0xc348e194, 0x837db5d9, 0x03171d43, 0x062e3a86, 0x0c5c750c, 0x18b8ea18),
    ROW(0x54075546, 0xa80eaa8c, 0x55f123e9, 0xabe247d2, 0x5228f955, 0xa451f2aa, 0x4d4f93a5, 0x9a9f274a),
    ROW(0x678efd01, 0xcf1dfa02, 0x9bd782f5, 0x3243731b, 0x6486e636, 0xc90dcc6c, 0x97f7ee29, 0x2a03aaa3),
    ROW(0xf20c0dfe, 0xe1f46d0d, 0xc604aceb, 0x89e52f27, 0x162628bf, 0x2c4c517e, 0x5898a2fc, 0xb13145f8),
};
/* clang-format on */

/* Put together from bytes, so that the order in memory does not depend on the processor. */
static inline uint32_t
word_at(const unsigned char *data)
{
    return (uint32_t)data[0] | (uint32_t)data[1] << 8 | (uint32_t)data[2] << 16 |
           (uint32_t)data[3] << 24;
}

static inline uint32_t
look_up(const uint32_t (*table)[256], uint32_t word)
{
    return table[3][word & 0xff] ^ table[2][word >> 8 & 0xff] ^ table[1][word >> 16 & 0xff] ^
           table[0][word >> 24];
}

uint32_t
s3dlio_crc32c_portable(uint32_t crc, const unsigned char *data, size_t nbytes)
{
    /* The term that waits for the previous round stands last: the others overlap with it. */
    for (; nbytes >= 16; data += 16, nbytes -= 16)
        crc = look_up(after, word_at(data + 12)) ^ look_up(after + 4, word_at(data + 8)) ^
              look_up(after + 8, word_at(data + 4)) ^ look_up(after + 12, word_at(data) ^ crc);
    for (; nbytes > 0; data++, nbytes--)
        crc = crc >> 8 ^ after[0][(crc ^ *data) & 0xff];
    return crc;
}

/*
 * 64 KiB, because the processor prefetches long streams better where the data comes from memory;
 * 1360, because three of them fit a page; the others keep the rest short.
 */
const struct s3dlio_crc32c_split s3dlio_crc32c_splits[S3DLIO_CRC32C_SPLIT_COUNT] = {
    {65536, 0xac2ac6dd, 0xc5013a36},
    {1360, 0x5aa1f3cf, 0x3f70cc6f},
    {336, 0xcec3662e, 0xa60ce07b},
    {80, 0x878a92a7, 0x39d3b296},
};

struct variant {
    const char *name;
    unsigned features;
    s3dlio_crc32c_fn *extend;
    s3dlio_crc32c_copy_fn *copy; /* NULL: a copy, then a checksum */
};

/* The best first; the last needs nothing. */
static const struct variant variants[] = {
#if defined(__x86_64__)
    {"avx512-vpclmulqdq",
     S3DLIO_CPU_AVX512 | S3DLIO_CPU_VPCLMULQDQ | S3DLIO_CPU_SSE42 | S3DLIO_CPU_PCLMUL,
     s3dlio_crc32c_avx512, s3dlio_crc32c_copy_avx512},
    {"sse42-pclmul", S3DLIO_CPU_SSE42 | S3DLIO_CPU_PCLMUL, s3dlio_crc32c_sse42, NULL},
#elif defined(__aarch64__) && !defined(__AARCH64EB__)
    {"armv8-crc", S3DLIO_CPU_ARM_CRC32 | S3DLIO_CPU_ARM_PMULL, s3dlio_crc32c_armv8_pmull, NULL},
    {"armv8-crc", S3DLIO_CPU_ARM_CRC32, s3dlio_crc32c_armv8, NULL},
#endif
    {"portable", 0, s3dlio_crc32c_portable, NULL},
};

/*
 * NULL before the first call.  Threads that meet here all store the same pointer, and what it
 * points to is constant, so the order in which they see it does not matter.
 */
static _Atomic(const struct variant *) bound;

static const struct variant *
choose(void)
{
    unsigned features = s3dlio_cpu_features();
    const struct variant *best = variants;

    while ((best->features & features) != best->features)
        best++;
    atomic_store_explicit(&bound, best, memory_order_relaxed);
    return best;
}

static inline const struct variant *
bound_variant(void)
{
    const struct variant *chosen = atomic_load_explicit(&bound, memory_order_relaxed);

    return chosen ? chosen : choose();
}

void
s3dlio_crc32c_rebind_for_tests(void)
{
    atomic_store_explicit(&bound, NULL, memory_order_relaxed);
}

uint32_t
s3dlio_crc32c(uint32_t crc, const void *data, size_t nbytes)
{
    return ~bound_variant()->extend(~crc, data, nbytes);
}

uint32_t
s3dlio_crc32c_copy(uint32_t crc, void *to, const void *from, size_t nbytes)
{
    const struct variant *variant = bound_variant();

    crc = ~crc;
    if (variant->copy)
        return ~variant->copy(crc, to, from, nbytes);
    for (size_t at = 0, piece; at < nbytes; at += piece) {
        piece = nbytes - at < PIECE_NBYTES ? nbytes - at : PIECE_NBYTES;
        memcpy((char *)to + at, (const char *)from + at, piece);
        crc = variant->extend(crc, (unsigned char *)to + at, piece);
    }
    return ~crc;
}

const char *
s3dlio_crc32c_variant(void)
{
    return bound_variant()->name;
}

/* The order of x: power(ORDER) is 1, so exponents count modulo ORDER. */
#define ORDER 0x7fffffffu

/* powers[i] is power(2^i). */
static const uint32_t powers[31] = {
    0x40000000, 0x20000000, 0x08000000, 0x00800000, 0x00008000, 0x82f63b78, 0x6ea2d55c, 0x18b8ea18,
    0x510ac59a, 0xb82be955, 0xb8fdb1e7, 0x88e56f72, 0x74c360a4, 0xe4172b16, 0x0d65762a, 0x35d73a62,
    0x28461564, 0xbf455269, 0xe2ea32dc, 0xfe7740e6, 0xf946610b, 0x3c204f8f, 0x538586e3, 0x59726915,
    0x734d5309, 0xbc1ac763, 0x7d0722cc, 0xd289cabe, 0xe94ca9bc, 0x05b74f3f, 0xa51e1f42,
};

/* a * b mod P */
static uint32_t
multiply(uint32_t a, uint32_t b)
{
    uint32_t product = 0;

    for (; b != 0; b <<= 1) {
        if (b >> 31)
            product ^= a;
        a = a >> 1 ^ (a & 1) * 0x82f63b78u;
    }
    return product;
}

uint32_t
s3dlio_crc32c_combine(uint32_t crc1, uint32_t crc2, uint64_t nbytes2)
{
    /*
     * The register starts as all ones for part 2 alone, and as the complement of crc1 after
     * part 1.  These two differ by crc1, which nbytes2 bytes multiply by x^(8 * nbytes2).
     */
    uint64_t exponent = nbytes2 % ORDER * 8 % ORDER;

    for (int i = 0; exponent != 0; i++, exponent >>= 1) {
        if (exponent & 1)
            crc1 = multiply(crc1, powers[i]);
    }
    return crc1 ^ crc2;
}
