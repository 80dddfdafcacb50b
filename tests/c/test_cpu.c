/* What is taken for a feature of the processor, on processors that are not here. */
#include "cpu.h"

#include "support.h"

#if defined(__x86_64__)
#include <cpuid.h>

#define XCR0_SSE_AVX 0x7u
#define XCR0_AVX512  0xe7u
#define AVX512_BITS  (bit_AVX512F | bit_AVX512BW | bit_AVX512VL)

enum { BOTH = S3DLIO_CPU_AVX512 | S3DLIO_CPU_VPCLMULQDQ };

static void
check_decoded(struct s3dlio_cpuid cpuid, unsigned features)
{
    CHECK_EQ(s3dlio_cpu_decode(&cpuid), features);
}

static void
features_are_those_that_processor_and_system_have(void)
{
    const unsigned old = bit_SSE4_2 | bit_PCLMUL;

    check_decoded((struct s3dlio_cpuid){0}, 0);
    check_decoded((struct s3dlio_cpuid){.leaf1_ecx = bit_SSE4_2}, S3DLIO_CPU_SSE42);
    check_decoded((struct s3dlio_cpuid){.leaf1_ecx = bit_PCLMUL}, S3DLIO_CPU_PCLMUL);
    check_decoded((struct s3dlio_cpuid){old, XCR0_AVX512, AVX512_BITS, bit_VPCLMULQDQ},
                  S3DLIO_CPU_SSE42 | S3DLIO_CPU_PCLMUL | BOTH);
    /* The system does not save the registers: using them would lose what they hold. */
    check_decoded((struct s3dlio_cpuid){old, XCR0_SSE_AVX, AVX512_BITS, bit_VPCLMULQDQ},
                  S3DLIO_CPU_SSE42 | S3DLIO_CPU_PCLMUL);
    check_decoded((struct s3dlio_cpuid){0, 0, AVX512_BITS, bit_VPCLMULQDQ}, 0);
    /* A part of AVX-512 is none. */
    check_decoded((struct s3dlio_cpuid){0, XCR0_AVX512, AVX512_BITS & ~bit_AVX512VL, 0}, 0);
    check_decoded((struct s3dlio_cpuid){0, XCR0_AVX512, bit_AVX512F, bit_VPCLMULQDQ},
                  S3DLIO_CPU_VPCLMULQDQ);
}

/* The compiler's own look at the same processor. */
static void
features_here_are_those_the_compiler_sees(void)
{
    unsigned features = s3dlio_cpu_features();

    __builtin_cpu_init();
    CHECK_EQ((features & S3DLIO_CPU_SSE42) != 0, __builtin_cpu_supports("sse4.2") != 0);
    CHECK_EQ((features & S3DLIO_CPU_PCLMUL) != 0, __builtin_cpu_supports("pclmul") != 0);
    CHECK_EQ((features & S3DLIO_CPU_AVX512) != 0, __builtin_cpu_supports("avx512f") &&
                                                      __builtin_cpu_supports("avx512bw") &&
                                                      __builtin_cpu_supports("avx512vl"));
    CHECK_EQ((features & S3DLIO_CPU_VPCLMULQDQ) != 0, __builtin_cpu_supports("vpclmulqdq") != 0);
}
#endif

static void
hidden_features_are_not_seen_until_they_are_shown(void)
{
    unsigned features = s3dlio_cpu_features();

    s3dlio_cpu_hide_for_tests(features);
    CHECK_EQ(s3dlio_cpu_features(), 0);
    s3dlio_cpu_hide_for_tests(0);
    CHECK_EQ(s3dlio_cpu_features(), features);
}

int
main(void)
{
    deadline(120);
#if defined(__x86_64__)
    features_are_those_that_processor_and_system_have();
    features_here_are_those_the_compiler_sees();
#endif
    hidden_features_are_not_seen_until_they_are_shown();
    return 0;
}
