/* SPDX-License-Identifier: MIT
 *
 * What this CPU and its operating system can run, one bit per shipped kernel set, and from which
 * sizes on it gains by what can be done about its caches. */
#ifndef BNORM_DISPATCH_CPU_H
#define BNORM_DISPATCH_CPU_H

#pragma GCC visibility push(hidden)

/* Which kernel sets this build contains. */
#if defined(__x86_64__) || defined(_M_X64)
#define BNORM_HAVE_X86 1
#else
#define BNORM_HAVE_X86 0
#endif
/* On 32-bit Arm the target is chosen in the source, but clang has no intrinsics where NEON is off: it
 * takes -mfpu=neon, the default for Android and not on Debian. */
#if (defined(__aarch64__) && !defined(__AARCH64EB__)) ||                                           \
    (defined(__arm__) && !defined(__ARMEB__) && defined(__ARM_FP) && __ARM_ARCH >= 7 &&            \
     __ARM_ARCH_PROFILE == 'A' && (defined(__ARM_NEON) || !defined(__clang__)))
#define BNORM_HAVE_NEON 1
#else
#define BNORM_HAVE_NEON 0
#endif

enum {
    BNORM_CPU_SCALAR = 1 << 0, /* always */
    BNORM_CPU_AVX2 = 1 << 1,   /* AVX2, FMA, F16C; the OS saves ymm */
    BNORM_CPU_AVX512 = 1 << 2, /* AVX-512 F, BW, DQ, VL; the OS saves zmm and the mask registers */
    BNORM_CPU_NEON = 1 << 3    /* Advanced SIMD: part of every AArch64 CPU; else with VFPv4 */
};

/* A sum of these. */
unsigned bnorm_cpu_features(void);

/* The same of an x86 CPU, by what it answers: ECX of CPUID leaf 1, EBX of leaf 7, both 0 where there
 * is no such leaf, and XCR0, the registers that the operating system saves; 0 where it does not say
 * so. */
unsigned bnorm_cpu_x86(unsigned leaf1_ecx, unsigned leaf7_ebx, unsigned xcr0);

/* Bytes of all tensors of a call together at which something changes for the caches' sake, in MiB
 * where nothing else is said, and what is worth another thread. */
typedef struct bnorm_limits {
    unsigned prefetch;          /* above: lines are asked for ahead */
    unsigned prefetch_in_place; /* the same where an output is an input */
    unsigned stream; /* from there on outputs may be streamed past the caches; 0 = never */
    unsigned l2;     /* KiB: above, reductions ask for lines ahead */
    unsigned wave;   /* KiB of all tensors that one thread may read twice beyond the L2 */
    unsigned work;   /* 1024 floats, read or written, from which on a call is shared */
} bnorm_limits;

/* No limit of prefetch and no wave is lower, on any CPU. */
#define BNORM_LEAST_PREFETCH 2u
#define BNORM_LEAST_WAVE     512u

bnorm_limits bnorm_cpu_limits(void);

/* EAX, EBX, ECX and EDX of a CPUID leaf, 0 where there is no such leaf. */
typedef void bnorm_cpuid(unsigned leaf, unsigned subleaf, unsigned answer[4]);

/* Those of an x86 CPU, by what it answers. */
bnorm_limits bnorm_limits_x86(bnorm_cpuid *ask);

#pragma GCC visibility pop

#endif
