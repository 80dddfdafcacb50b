#include "cpu.h"

#include <stdatomic.h>

#if defined(__x86_64__)
#include <cpuid.h>

/* SSE, AVX, opmask, the upper halves of ZMM0-15, and ZMM16-31: Intel SDM, volume 1, 13.3. */
#define XCR0_AVX512 0xe6u

static unsigned
xcr0(void)
{
    unsigned low, high;

    __asm__("xgetbv" : "=a"(low), "=d"(high) : "c"(0));
    return low;
}

static unsigned
when_all(unsigned bits, unsigned value, unsigned feature)
{
    return (value & bits) == bits ? feature : 0;
}

unsigned
s3dlio_cpu_decode(const struct s3dlio_cpuid *cpuid)
{
    unsigned features = when_all(bit_SSE4_2, cpuid->leaf1_ecx, S3DLIO_CPU_SSE42);

    features |= when_all(bit_PCLMUL, cpuid->leaf1_ecx, S3DLIO_CPU_PCLMUL);
    if ((cpuid->xcr0 & XCR0_AVX512) != XCR0_AVX512)
        return features;
    features |=
        when_all(bit_AVX512F | bit_AVX512BW | bit_AVX512VL, cpuid->leaf7_ebx, S3DLIO_CPU_AVX512);
    return features | when_all(bit_VPCLMULQDQ, cpuid->leaf7_ecx, S3DLIO_CPU_VPCLMULQDQ);
}

static unsigned
detect(void)
{
    struct s3dlio_cpuid cpuid = {0, 0, 0, 0};
    unsigned eax, ebx, edx;

    __cpuid(1, eax, ebx, cpuid.leaf1_ecx, edx);
    /* XGETBV exists where the system has set OSXSAVE, and tells which registers it saves. */
    if (cpuid.leaf1_ecx & bit_OSXSAVE)
        cpuid.xcr0 = xcr0();
    /* A processor without leaf 7 leaves the zeros. */
    (void)__get_cpuid_count(7, 0, &eax, &cpuid.leaf7_ebx, &cpuid.leaf7_ecx, &edx);
    return s3dlio_cpu_decode(&cpuid);
}

#elif defined(__aarch64__) && defined(__linux__)
#include <sys/auxv.h>

static unsigned
detect(void)
{
    unsigned long hwcap = getauxval(AT_HWCAP);
    unsigned features = 0;

    if (hwcap & HWCAP_CRC32)
        features |= S3DLIO_CPU_ARM_CRC32;
    if (hwcap & HWCAP_PMULL)
        features |= S3DLIO_CPU_ARM_PMULL;
    return features;
}

#else

/* Nobody to ask, so only what the compiler was told it may use. */
static unsigned
detect(void)
{
    unsigned features = 0;

#if defined(__ARM_FEATURE_CRC32)
    features |= S3DLIO_CPU_ARM_CRC32;
#endif
#if defined(__ARM_FEATURE_AES)
    features |= S3DLIO_CPU_ARM_PMULL;
#endif
    return features;
}

#endif

static atomic_uint hidden;

unsigned
s3dlio_cpu_features(void)
{
    return detect() & ~atomic_load(&hidden);
}

void
s3dlio_cpu_hide_for_tests(unsigned features)
{
    atomic_store(&hidden, features);
}
