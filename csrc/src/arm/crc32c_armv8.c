/* CRC32C by the CRC32C instructions of Armv8, which compute register * x^64 + word * x^32 mod P. */
#include "crc32c_impl.h"

#include <arm_acle.h>
#include <arm_neon.h>
#include <string.h>

#if defined(__clang__)
#define TARGET       __attribute__((target("crc")))
#define TARGET_PMULL __attribute__((target("crc,aes")))
#else
#define TARGET       __attribute__((target("+crc")))
#define TARGET_PMULL __attribute__((target("+crc+crypto")))
#endif

static inline uint64_t
word_at(const unsigned char *data)
{
    uint64_t word;

    memcpy(&word, data, sizeof word);
    return word;
}

/* One stream: without PMULL there is no cheap way to merge three. */
TARGET uint32_t
s3dlio_crc32c_armv8(uint32_t crc, const unsigned char *data, size_t nbytes)
{
    for (; nbytes >= 8; data += 8, nbytes -= 8)
        crc = __crc32cd(crc, word_at(data));
    for (; nbytes > 0; data++, nbytes--)
        crc = __crc32cb(crc, *data);
    return crc;
}

/* A word that leaves the register 'crc' moved up, when the CRC32CX instruction takes it in. */
TARGET_PMULL static inline uint64_t
moved(uint32_t crc, uint32_t up)
{
    return vgetq_lane_u64(vreinterpretq_u64_p128(vmull_p64(crc, up)), 0);
}

TARGET_PMULL static inline uint32_t
extend_by_split(uint32_t crc0, const unsigned char *data, const struct s3dlio_crc32c_split *split)
{
    size_t stream_nbytes = split->stream_nbytes;
    const unsigned char *last = data + stream_nbytes - 8;
    uint32_t crc1 = 0, crc2 = 0;

    for (; data < last; data += 8) {
        crc0 = __crc32cd(crc0, word_at(data));
        crc1 = __crc32cd(crc1, word_at(data + stream_nbytes));
        crc2 = __crc32cd(crc2, word_at(data + 2 * stream_nbytes));
    }
    crc0 = __crc32cd(crc0, word_at(data));
    crc1 = __crc32cd(crc1, word_at(data + stream_nbytes));

    /* The last word of the third stream carries the other two registers in. */
    return __crc32cd(crc2, word_at(data + 2 * stream_nbytes) ^ moved(crc0, split->up_two) ^
                               moved(crc1, split->up_one));
}

TARGET_PMULL uint32_t
s3dlio_crc32c_armv8_pmull(uint32_t crc, const unsigned char *data, size_t nbytes)
{
    const struct s3dlio_crc32c_split *split = s3dlio_crc32c_splits;

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
    return s3dlio_crc32c_armv8(crc, data, nbytes);
}
