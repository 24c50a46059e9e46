/* SPDX-License-Identifier: MIT
 *
 * What this CPU and its operating system can run: one bit per shipped kernel set. */
#ifndef BNORM_DISPATCH_CPU_H
#define BNORM_DISPATCH_CPU_H

/* Which kernel sets this build contains. */
#if defined(__x86_64__) || defined(_M_X64)
#define BNORM_HAVE_X86 1
#else
#define BNORM_HAVE_X86 0
#endif
#if defined(__aarch64__) && !defined(__AARCH64EB__)
#define BNORM_HAVE_NEON 1
#else
#define BNORM_HAVE_NEON 0
#endif

enum {
    BNORM_CPU_SCALAR = 1 << 0, /* always */
    BNORM_CPU_AVX2 = 1 << 1,   /* AVX2, FMA, F16C; the OS saves ymm */
    BNORM_CPU_AVX512 = 1 << 2, /* AVX-512 F, BW, DQ, VL; the OS saves zmm and the mask registers */
    BNORM_CPU_NEON = 1 << 3    /* Advanced SIMD: part of every AArch64 CPU */
};

/* A sum of these. */
unsigned bnorm_cpu_features(void);

/* The same of an x86 CPU, by what it answers: ECX of CPUID leaf 1, EBX of leaf 7, both 0 where there
 * is no such leaf, and XCR0, the registers that the operating system saves; 0 where it does not say
 * so. */
unsigned bnorm_cpu_x86(unsigned leaf1_ecx, unsigned leaf7_ebx, unsigned xcr0);

#endif
