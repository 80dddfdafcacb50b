/* Which optional instructions the processor has, and the system lets programs use. */
#ifndef CPU_H
#define CPU_H

enum {
    S3DLIO_CPU_SSE42 = 1 << 0,
    S3DLIO_CPU_PCLMUL = 1 << 1,
    S3DLIO_CPU_AVX512 = 1 << 2, /* F, BW and VL together */
    S3DLIO_CPU_VPCLMULQDQ = 1 << 3,

    S3DLIO_CPU_ARM_CRC32 = 1 << 8,
    S3DLIO_CPU_ARM_PMULL = 1 << 9,
};

#if defined(__x86_64__)
/* What the processor said (CPUID), and which registers the system saves (XGETBV; 0 if not told). */
struct s3dlio_cpuid {
    unsigned leaf1_ecx, xcr0, leaf7_ebx, leaf7_ecx;
};

/* The features of such a processor, as a mask of the bits above. */
unsigned
s3dlio_cpu_decode(const struct s3dlio_cpuid *cpuid);
#endif

/*
 * s3dlio_cpu_features() returns the features that are present and not hidden, as a mask of
 * the bits above.  It asks the processor each time, which can be slow in a virtual machine:
 * keep what it decides.  Any thread may call it.
 */
unsigned
s3dlio_cpu_features(void);

/*
 * s3dlio_cpu_hide_for_tests() hides the features in the mask and shows all others again.
 *
 * What was bound by the features seen before stays bound.  Any thread may call it.
 */
void
s3dlio_cpu_hide_for_tests(unsigned features);

#endif /* CPU_H */
