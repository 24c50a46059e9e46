/* SPDX-License-Identifier: MIT
 *
 * Which kernel sets may run, by what an x86 CPU and its operating system answer. */
#include "harness.h"
#include "../dispatch/cpu.h"

/* ECX of CPUID leaf 1. */
#define FMA     (1u << 12)
#define OSXSAVE (1u << 27)
#define AVX     (1u << 28)
#define F16C    (1u << 29)
/* EBX of CPUID leaf 7. */
#define AVX2 (1u << 5)
#define F    (1u << 16)
#define DQ   (1u << 17)
#define BW   (1u << 30)
#define VL   (1u << 31)
/* XCR0. */
#define X87   (1u << 0)
#define SSE   (1u << 1)
#define YMM   (1u << 2)
#define MASKS (1u << 5)
#define ZMM   (1u << 6) /* upper halves of zmm0 to zmm15 */
#define HIGH  (1u << 7) /* zmm16 to zmm31 */

#define LEAF1  (FMA | OSXSAVE | AVX | F16C)
#define LEAF7  (AVX2 | F | DQ | BW | VL)
#define SAVED  (X87 | SSE | YMM | MASKS | ZMM | HIGH)
#define SCALAR BNORM_CPU_SCALAR
#define UP_TO2 (SCALAR | BNORM_CPU_AVX2)
#define ALL    (UP_TO2 | BNORM_CPU_AVX512)

static const struct {
    const char *what;
    unsigned leaf1, leaf7, xcr0, features;
} cpus[] = {
    {"everything", LEAF1, LEAF7, SAVED, ALL},
    {"everything, and bits of other features", ~0u, ~0u, ~0u, ALL},
    {"nothing", 0, 0, 0, SCALAR},
    {"all other features", ~LEAF1, ~LEAF7, ~SAVED, SCALAR},
    {"no FMA", LEAF1 & ~FMA, LEAF7, SAVED, SCALAR},
    {"no F16C", LEAF1 & ~F16C, LEAF7, SAVED, SCALAR},
    {"no AVX", LEAF1 & ~AVX, LEAF7, SAVED, SCALAR},
    {"an OS without XSAVE", LEAF1 & ~OSXSAVE, LEAF7, 0, SCALAR},
    {"an OS without XSAVE, garbage in XCR0", LEAF1 & ~OSXSAVE, LEAF7, SAVED, SCALAR},
    {"no leaf 7", LEAF1, 0, SAVED, SCALAR},
    {"no AVX2", LEAF1, LEAF7 & ~AVX2, SAVED, SCALAR},
    {"AVX2 alone", LEAF1, AVX2, X87 | SSE | YMM, UP_TO2},
    {"no AVX-512F", LEAF1, LEAF7 & ~F, SAVED, UP_TO2},
    {"no AVX-512DQ", LEAF1, LEAF7 & ~DQ, SAVED, UP_TO2},
    {"no AVX-512BW", LEAF1, LEAF7 & ~BW, SAVED, UP_TO2},
    {"no AVX-512VL", LEAF1, LEAF7 & ~VL, SAVED, UP_TO2},
    {"an OS that saves xmm only", LEAF1, LEAF7, X87 | SSE, SCALAR},
    {"an OS that saves no xmm", LEAF1, LEAF7, SAVED & ~SSE, SCALAR},
    {"an OS that saves no ymm", LEAF1, LEAF7, SAVED & ~YMM, SCALAR},
    {"an OS that saves no zmm", LEAF1, LEAF7, X87 | SSE | YMM, UP_TO2},
    {"an OS that saves no masks", LEAF1, LEAF7, SAVED & ~MASKS, UP_TO2},
    {"an OS that saves no upper halves", LEAF1, LEAF7, SAVED & ~ZMM, UP_TO2},
    {"an OS that saves no zmm16 to zmm31", LEAF1, LEAF7, SAVED & ~HIGH, UP_TO2},
};

static void check_x86(struct test *t) {
    for (size_t i = 0; i < sizeof cpus / sizeof cpus[0]; i++) {
        const unsigned got = bnorm_cpu_x86(cpus[i].leaf1, cpus[i].leaf7, cpus[i].xcr0);
        test_context(t, "%s", cpus[i].what);
        if (got != cpus[i].features)
            test_fail(t, "features are %#x, not %#x", got, cpus[i].features);
    }
}

/* The sets that are given out are those of the features, each time. */
static void check_this_cpu(struct test *t) {
    const unsigned features = bnorm_cpu_features();
    size_t sets = 0;
    for (unsigned rest = features; rest; rest &= rest - 1)
        sets++;
    if (!(features & BNORM_CPU_SCALAR) || bnorm_cpu_features() != features)
        test_fail(t, "features are %#x, then %#x", features, bnorm_cpu_features());
    if (!bnorm_isa_at(sets - 1) || bnorm_isa_at(sets))
        test_fail(t, "features %#x do not give %zu sets", features, sets);
}

void add_cpu(struct suite *s) {
    suite_add(s, NULL, check_x86, NULL, "cpu/x86");
    suite_add(s, NULL, check_this_cpu, NULL, "cpu/this");
}
