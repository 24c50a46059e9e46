/* SPDX-License-Identifier: MIT */
#include "../src/base.h"

#include "cpu.h"

/* Intel SDM volume 1, 14.3 and 15.2: the feature bits alone do not say that the OS saves the
 * registers. */
unsigned bnorm_cpu_x86(unsigned leaf1_ecx, unsigned leaf7_ebx, unsigned xcr0) {
    const unsigned fma = 1u << 12, osxsave = 1u << 27, avx = 1u << 28, f16c = 1u << 29;
    const unsigned avx2 = 1u << 5;
    const unsigned avx512 = 1u << 16 | 1u << 17 | 1u << 30 | 1u << 31; /* F, DQ, BW, VL */
    const unsigned ymm = 0x6, zmm = 0xe6;
    const unsigned need1 = fma | osxsave | avx | f16c;
    unsigned features = BNORM_CPU_SCALAR;
    if ((leaf1_ecx & need1) != need1 || !(leaf7_ebx & avx2))
        return features;
    if ((xcr0 & ymm) == ymm)
        features |= BNORM_CPU_AVX2;
    if ((xcr0 & zmm) == zmm && (leaf7_ebx & avx512) == avx512)
        features |= BNORM_CPU_AVX512;
    return features;
}

#if BNORM_HAVE_X86

#include <cpuid.h>
#include <stdatomic.h>

/* The instruction is there where the OS says that it uses it. */
static unsigned xcr0_if(unsigned osxsave) {
    unsigned eax = 0, edx;
    if (osxsave)
        __asm__ volatile("xgetbv" : "=a"(eax), "=d"(edx) : "c"(0));
    return eax;
}

static unsigned ask(void) {
    unsigned eax, ebx, ecx, edx, leaf1_ecx = 0, leaf7_ebx = 0;
    if (__get_cpuid(1, &eax, &ebx, &ecx, &edx))
        leaf1_ecx = ecx;
    if (__get_cpuid_count(7, 0, &eax, &ebx, &ecx, &edx))
        leaf7_ebx = ebx;
    return bnorm_cpu_x86(leaf1_ecx, leaf7_ebx, xcr0_if(leaf1_ecx & 1u << 27));
}

/* Asked once, as a virtual machine takes many microseconds over each cpuid. First calls that race
 * all store the same value, which is not 0. */
unsigned bnorm_cpu_features(void) {
    static _Atomic(unsigned) known;
    unsigned features = atomic_load_explicit(&known, memory_order_relaxed);
    if (!features) {
        features = ask();
        atomic_store_explicit(&known, features, memory_order_relaxed);
    }
    return features;
}

#else

unsigned bnorm_cpu_features(void) {
    return BNORM_CPU_SCALAR | (BNORM_HAVE_NEON ? BNORM_CPU_NEON : 0);
}

#endif
