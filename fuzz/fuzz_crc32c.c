/*
 * CRC32C of any bytes, at any alignment, in any pieces, by any variant for this processor, is that
 * of the definition, and combine() puts it together.  Input: the variant, the alignment, how often
 * the rest is repeated, the number of cuts and where they are; then the bytes.
 */
#include "cpu.h"
#include "crc32c_impl.h"
#include "fuzz.h"
#include "s3dlio/crc32c.h"

/* Asking the processor takes longer than the rest, so it is asked only on a change. */
static void
use_variant(unsigned number)
{
    static const unsigned hidden[] = {
        0,
        S3DLIO_CPU_AVX512 | S3DLIO_CPU_VPCLMULQDQ | S3DLIO_CPU_ARM_PMULL,
        ~0u,
    };
    static unsigned current;

    number %= sizeof hidden / sizeof hidden[0];
    if (number == current)
        return;
    s3dlio_cpu_hide_for_tests(hidden[number]);
    s3dlio_crc32c_rebind_for_tests();
    current = number;
}

int
LLVMFuzzerTestOneInput(const uint8_t *data, size_t nbytes)
{
    struct input input = {data, nbytes};
    unsigned variant = input_byte(&input);
    size_t shift = input_byte(&input) % 64;
    size_t times = input_byte(&input);
    unsigned ncuts = input_byte(&input) % 8;
    size_t cuts[9] = {0};
    uint32_t whole, pieces = 0, combined = 0;
    unsigned char *memory, *bytes;

    /* One in eight is long enough for the widest step of every variant. */
    times = 1 + (times < 224 ? times % 4 : (times - 223) * 8);
    for (unsigned i = 1; i <= ncuts; i++)
        cuts[i] = input_size(&input) * times;
    nbytes = input.nbytes * times;
    memory = room_for(shift + nbytes);
    bytes = repeat(input.data, input.nbytes, nbytes);
    if (nbytes > 0)
        memcpy(memory + shift, bytes, nbytes);
    free(bytes);
    bytes = memory + shift;
    use_variant(variant);

    whole = slow_crc32c(0, bytes, nbytes);
    CHECK_EQ(s3dlio_crc32c(0, bytes, nbytes), whole);
    cuts[ncuts + 1] = nbytes;
    for (unsigned i = 1; i <= ncuts + 1; i++) {
        size_t piece;

        if (cuts[i] > nbytes)
            cuts[i] = nbytes;
        if (cuts[i] < cuts[i - 1])
            cuts[i] = cuts[i - 1];
        piece = cuts[i] - cuts[i - 1];
        pieces = s3dlio_crc32c(pieces, bytes + cuts[i - 1], piece);
        combined =
            s3dlio_crc32c_combine(combined, s3dlio_crc32c(0, bytes + cuts[i - 1], piece), piece);
    }
    CHECK_EQ(pieces, whole);
    CHECK_EQ(combined, whole);
    free(memory);
    return 0;
}
