/* SPDX-License-Identifier: MIT */
#include "../src/base.h"

#include "cpu.h"

#include <stdint.h>

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

/* One thread reads or writes a float in 0.05 to 0.1 ns, a core of Zen 1 in 0.15, on paper one of Arm in
 * 0.1 to 2. Waking a pool that spins takes 1 to 3 us, with what another core has in its cache. On a Zen 1
 * calls of 4 to 20 us, of 32 to 128 Ki floats, took 0.57 to 1 times as long with a second thread. What is
 * left is for pools whose threads sleep. */
enum { QUICK_WORK = 128, SLOW_WORK = 48 };

/* Of CPUs that nothing is known about. Few have more than 2 MiB of L2; outputs that are streamed past
 * the caches began to gain between 48 and 96 MiB on a Sapphire Rapids, 1.15 to 1.3 times there. */
static const bnorm_limits usual = {BNORM_LEAST_PREFETCH,
                                   BNORM_LEAST_PREFETCH,
                                   48,
                                   256,
                                   BNORM_LEAST_WAVE,
                                   BNORM_HAVE_X86 ? QUICK_WORK : SLOW_WORK};

#define KIB ((uint64_t)1 << 10)
#define MIB ((uint64_t)1 << 20)

/* Sizes of the L2 and the L3 in bytes, as leaf 4 of Intel and leaf 0x8000001D of AMD list all
 * caches. 0 where they say nothing, or what no CPU has: emulators and virtual machines may answer
 * anything. Which threads share a cache is left out, as virtual machines make it up. */
static void find_caches(bnorm_cpuid *ask, unsigned leaf, uint64_t *l2, uint64_t *l3) {
    uint64_t sizes[8] = {0}; /* by level */
    for (unsigned i = 0; i < 8; i++) {
        unsigned answer[4];
        ask(leaf, i, answer);
        const unsigned type = answer[0] & 31, level = answer[0] >> 5 & 7;
        const unsigned line = (answer[1] & 4095) + 1, partitions = (answer[1] >> 12 & 1023) + 1,
                       ways = (answer[1] >> 22) + 1;
        if (!type)
            break;
        if (type == 3) /* unified */
            sizes[level] = (uint64_t)line * partitions * ways * ((uint64_t)answer[2] + 1);
    }
    const int sane = sizes[2] >= 128 * KIB && sizes[2] <= 16 * MIB && sizes[3] > sizes[2] &&
                     sizes[3] >= 2 * MIB && sizes[3] <= 1024 * MIB;
    *l2 = sane ? sizes[2] : 0;
    *l3 = sane ? sizes[3] : 0;
}

/* That can be remembered. */
#define MOST_WAVE (1023u * 64)

static unsigned between(uint64_t least, uint64_t n, uint64_t most) {
    return (unsigned)(n < least ? least : n > most ? most : n);
}

/* In whole MiB, and such that it can be remembered. */
static unsigned limit(uint64_t bytes) {
    return between(BNORM_LEAST_PREFETCH, bytes / MIB, 255);
}

/* A core of Zen reaches its L3 at full speed without being told what comes, and a prefetch of what is
 * there costs more than it brings: 1.3 to 2.6 times slower on a Zen 3. Other cores, and strangers on
 * a virtual machine, use the L3, too: from half of it on prefetching gained up to 1.15, in place and
 * out of place. Where a call's tensors are more than the L3, what it wrote first has left it when the
 * next call comes to read it, so that outputs are streamed past the caches: of two calls that take
 * turns in writing what the other reads, NHWC, inference gained 1.04 at the size of the L3 and 1.25
 * from 1.5 times of it on, training lost 1.08 and gained 1.15; at 0.7 of it both lost 1.1 to 1.3.
 * A core of Zen 1 gets less from its L3: at three quarters of it inference in turn gained 1.05 to
 * 1.17 and just below its size 1.3 to 1.5, a call alone 1.07 to 1.57, training 1.11.
 * Both read from the L3 so fast that few pages of many images at a time cost more than the L2 brings:
 * with waves that stay in the L2 backward of 32x64x28x28 took 1.23 times as long on a Zen 3, 1.1 on a
 * Zen 1. An eighth of the L3 leaves each of its 8 cores its share. */
static bnorm_limits limits_of_zen(int first, uint64_t l2, uint64_t l3) {
    const uint64_t stream = first ? l3 / 4 * 3 : l3;
    const bnorm_limits limits = {limit(l3 / 2),
                                 limit(l3 / 2),
                                 (unsigned)(stream / MIB),
                                 (unsigned)(l2 / KIB),
                                 between(BNORM_LEAST_WAVE, l3 / 8 / (64 * KIB) * 64, MOST_WAVE),
                                 first ? SLOW_WORK : QUICK_WORK};
    return limits;
}

/* Intel's L3 is far from its cores. Out of place, 6 times the L2 is where prefetching began to gain
 * on a Cascade Lake (1 MiB, between 4 and 6 MiB), and does not matter on a Sapphire Rapids (2 MiB,
 * equal from 8 MiB to 48). In place the lines are there when they are written: on a Cascade Lake
 * prefetching still lost 1.43 times at 8 MiB.
 * A streaming store holds one of a core's few fill buffers until it reaches memory: where there are
 * 12 of them, in the cores of Skylake-X, Cascade Lake and Cooper Lake, all of model 0x55, it lost
 * 1.08 to 1.21 times at 51 MB and gained nowhere. */
static bnorm_limits limits_of_intel(unsigned model, uint64_t l2, uint64_t l3) {
    const bnorm_limits limits = {limit(6 * l2),
                                 limit(16 * l2 < l3 / 2 ? 16 * l2 : l3 / 2),
                                 model == 0x55 ? 0 : usual.stream,
                                 (unsigned)(l2 / KIB),
                                 usual.wave,
                                 QUICK_WORK};
    return limits;
}

bnorm_limits bnorm_limits_x86(bnorm_cpuid *ask) {
    enum { EAX, EBX, ECX, EDX };
    unsigned first[4], one[4], extended[4];
    uint64_t l2, l3;
    ask(0, 0, first);
    ask(1, 0, one);
    ask(0x80000000u, 0, extended);
    /* Models and families of two digits are in two places. */
    unsigned family = one[EAX] >> 8 & 15, model = one[EAX] >> 4 & 15;
    if (family == 15)
        family += one[EAX] >> 20 & 255;
    if (family == 6 || family >= 15)
        model |= one[EAX] >> 12 & 0xf0;
    /* GenuineIntel */
    if (first[EBX] == 0x756e6547u && first[EDX] == 0x49656e69u && first[ECX] == 0x6c65746eu &&
        first[EAX] >= 4 && family == 6) {
        find_caches(ask, 4, &l2, &l3);
        return l2 ? limits_of_intel(model, l2, l3) : usual;
    }
    /* AuthenticAMD, Zen and later */
    if (first[EBX] == 0x68747541u && first[EDX] == 0x69746e65u && first[ECX] == 0x444d4163u &&
        extended[EAX] >= 0x8000001du && family >= 0x17) {
        find_caches(ask, 0x8000001du, &l2, &l3);
        return l3 ? limits_of_zen(family == 0x17 && model < 0x30, l2, l3) : usual;
    }
    return usual;
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

static void ask_cpuid(unsigned leaf, unsigned subleaf, unsigned answer[4]) {
    if (!__get_cpuid_count(leaf, subleaf, &answer[0], &answer[1], &answer[2], &answer[3]))
        answer[0] = answer[1] = answer[2] = answer[3] = 0;
}

/* Where each limit begins behind the features: two of up to 255, of up to 4095, of up to 65535, of up to
 * 1023 times 64, and of up to 63 times 16. */
enum {
    PREFETCH_AT = 4,
    IN_PLACE_AT = PREFETCH_AT + 8,
    STREAM_AT = IN_PLACE_AT + 8,
    L2_AT = 32,
    WAVE_AT = 48,
    WORK_AT = 58
};

/* Asked once, as a virtual machine takes many microseconds over each cpuid. First calls that race
 * all store the same value, which is not 0. */
static uint64_t this_cpu(void) {
    static _Atomic(uint64_t) known;
    uint64_t cpu = atomic_load_explicit(&known, memory_order_relaxed);
    if (!cpu) {
        unsigned leaf1[4], leaf7[4];
        ask_cpuid(1, 0, leaf1);
        ask_cpuid(7, 0, leaf7);
        const bnorm_limits limits = bnorm_limits_x86(ask_cpuid);
        cpu = bnorm_cpu_x86(leaf1[2], leaf7[1], xcr0_if(leaf1[2] & 1u << 27)) |
              limits.prefetch << PREFETCH_AT | limits.prefetch_in_place << IN_PLACE_AT |
              limits.stream << STREAM_AT | (uint64_t)limits.l2 << L2_AT |
              (uint64_t)(limits.wave / 64) << WAVE_AT | (uint64_t)(limits.work / 16) << WORK_AT;
        atomic_store_explicit(&known, cpu, memory_order_relaxed);
    }
    return cpu;
}

unsigned bnorm_cpu_features(void) {
    return (unsigned)this_cpu() & ((1u << PREFETCH_AT) - 1);
}

bnorm_limits bnorm_cpu_limits(void) {
    const uint64_t cpu = this_cpu();
    const bnorm_limits limits = {cpu >> PREFETCH_AT & 255,     cpu >> IN_PLACE_AT & 255,
                                 cpu >> STREAM_AT & 4095,      cpu >> L2_AT & UINT16_MAX,
                                 (cpu >> WAVE_AT & 1023) * 64, (unsigned)(cpu >> WORK_AT) * 16};
    return limits;
}

#else

#if BNORM_HAVE_NEON && (defined(__aarch64__) || (defined(__ARM_NEON) && defined(__ARM_FEATURE_FMA)))
/* The whole program is built for it. */
static int has_neon(void) {
    return 1;
}
#elif BNORM_HAVE_NEON && defined(__linux__)
#include <sys/auxv.h>

/* Linux, also Android: HWCAP_NEON and HWCAP_VFPv4 of 32-bit Arm. Cortex-A5, A7, A15 and later cores
 * have both; of A8 and A9, which lack fma, the first has NEON without VFPv4. */
static int has_neon(void) {
    const unsigned long both = 1ul << 12 | 1ul << 16;
    return (getauxval(AT_HWCAP) & both) == both;
}
#else
static int has_neon(void) {
    return 0;
}
#endif

unsigned bnorm_cpu_features(void) {
    return BNORM_CPU_SCALAR | (has_neon() ? BNORM_CPU_NEON : 0);
}

bnorm_limits bnorm_cpu_limits(void) {
    return usual;
}

#endif
