/* SPDX-License-Identifier: MIT */
#include "../src/base.h"

#include "cpu.h"

#if BNORM_HAVE_X86

#include <cpuid.h>

/* Register state that the operating system saves on a context switch. */
static unsigned xcr0(void) {
    unsigned eax, edx;
    __asm__ volatile("xgetbv" : "=a"(eax), "=d"(edx) : "c"(0));
    return eax;
}

/* Intel SDM volume 1, 14.3 and 15.2: the feature bits alone do not say that the OS saves the
 * registers. */
unsigned bnorm_cpu_features(void) {
    const unsigned fma = 1u << 12, osxsave = 1u << 27, avx = 1u << 28,
                   f16c = 1u << 29; /* leaf 1, ecx */
    const unsigned avx2 = 1u << 5;  /* leaf 7, ebx */
    const unsigned avx512 =
        1u << 16 | 1u << 17 | 1u << 30 | 1u << 31; /* leaf 7, ebx: F, DQ, BW, VL */
    const unsigned ymm = 0x6, zmm = 0xe6;          /* XCR0 */
    const unsigned need1 = fma | osxsave | avx | f16c;
    unsigned features = BNORM_CPU_SCALAR;
    unsigned eax, ebx, ecx, edx;

    if (!__get_cpuid(1, &eax, &ebx, &ecx, &edx) || (ecx & need1) != need1)
        return features;
    if (!__get_cpuid_count(7, 0, &eax, &ebx, &ecx, &edx) || !(ebx & avx2))
        return features;
    const unsigned saved = xcr0();
    if ((saved & ymm) == ymm)
        features |= BNORM_CPU_AVX2;
    if ((saved & zmm) == zmm && (ebx & avx512) == avx512)
        features |= BNORM_CPU_AVX512;
    return features;
}

#else

unsigned bnorm_cpu_features(void) {
    return BNORM_CPU_SCALAR | (BNORM_HAVE_NEON ? BNORM_CPU_NEON : 0);
}

#endif
