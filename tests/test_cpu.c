/* SPDX-License-Identifier: MIT
 *
 * Which kernel sets may run, by what an x86 CPU and its operating system answer, and what elementwise
 * passes do about its caches. */
#include "harness.h"
#include "../dispatch/cpu.h"
#include "../src/map.h"

#include <string.h>
#if BNORM_HAVE_X86
#include <cpuid.h>
#endif

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

/* Answers of CPUs, in the order that CPUID gives them in. */
#define INTEL 0x756e6547, 0x6c65746e, 0x49656e69
#define AMD   0x68747541, 0x444d4163, 0x69746e65
#define HYGON 0x6f677948, 0x656e6975, 0x6e65476e

/* EAX of leaf 1. */
#define ZEN1            0x00800f12
#define ZEN3            0x00a00f11
#define ZEN4            0x00a10f11
#define EXCAVATOR       0x00660f01
#define SKYLAKE         0x000506e3
#define CASCADE_LAKE    0x00050657
#define SAPPHIRE_RAPIDS 0x000806f8
#define PENTIUM4        0x00000f65

/* EAX to EDX of the leaf of caches: EAX also has how many threads share the cache, which must not
 * matter, and EDX flags. */
#define L1D      0x1c004121, 0x01c0003f, 63, 0
#define L1I      0x1c004122, 0x01c0003f, 63, 0
#define L2(size) 0x1c004143, 0x01c0003f, (size) / 512 - 1, 0  /* 8 ways of 64 bytes */
#define L3(size) 0x1c03c163, 0x03c0003f, (size) / 1024 - 1, 4 /* 16 ways of 64 bytes */
#define K        (1u << 10)
#define M        (1u << 20)

struct answers {
    unsigned top, vendor[3], model, extended;
    unsigned leaf; /* of the caches */
    unsigned caches[6][4];
};

static const struct answers *asked;

static void answer(unsigned leaf, unsigned subleaf, unsigned to[4]) {
    const unsigned none[4] = {0},
                   first[4] = {asked->top, asked->vendor[0], asked->vendor[1], asked->vendor[2]};
    const unsigned model[4] = {asked->model, 0, 0, 0}, extended[4] = {asked->extended, 0, 0, 0};
    const unsigned *from = none;
    if (leaf == 0)
        from = first;
    else if (leaf == 1)
        from = model;
    else if (leaf == 0x80000000)
        from = extended;
    else if (leaf == asked->leaf) /* some never come to an end */
        from = asked->caches[subleaf < 6 ? subleaf : 5];
    memcpy(to, from, sizeof none);
}

static const struct {
    const char *what;
    struct answers answers;
    bnorm_limits limits;
} limits[] = {
#define ON_INTEL(model, ...)                                                                       \
    22, {INTEL}, model, 0x80000008, 4, {                                                           \
        {L1D}, {L1I}, __VA_ARGS__                                                                  \
    }
#define ON_AMD(model, ...)                                                                         \
    16, {AMD}, model, 0x80000021, 0x8000001d, {                                                    \
        {L1D}, {L1I}, __VA_ARGS__                                                                  \
    }
#define USUAL 2, 2, 48, 256, 512, BNORM_HAVE_X86 ? 128 : 48
    {"Zen 3", {ON_AMD(ZEN3, {L2(512 * K)}, {L3(32 * M)})}, {16, 16, 32, 512, 4096, 128}},
    {"Zen 3 with more L3",
     {ON_AMD(ZEN3, {L2(512 * K)}, {L3(96 * M)})},
     {48, 48, 96, 512, 12288, 128}},
    {"Zen 4", {ON_AMD(ZEN4, {L2(M)}, {L3(32 * M)})}, {16, 16, 32, 1024, 4096, 128}},
    {"the least L3", {ON_AMD(ZEN1, {L2(512 * K)}, {L3(2 * M)})}, {2, 2, 1, 512, 512, 48}},
    {"Zen 3 with an L3 that is no multiple of 512 KiB",
     {ON_AMD(ZEN3, {L2(512 * K)}, {L3(33000 * K)})},
     {16, 16, 32, 512, 4096, 128}},
    {"Zen 1", {ON_AMD(ZEN1, {L2(512 * K)}, {L3(8 * M)})}, {4, 4, 6, 512, 1024, 48}},
    /* 35.75 and 105 MiB of L3, of 11 and 15 ways, as they answer. */
    {"Cascade Lake",
     {ON_INTEL(CASCADE_LAKE, {L2(M)}, {0x1c03c163, 0x0280003f, 0xcfff, 4})},
     {6, 16, 0, 1024, 512, 128}},
    {"Sapphire Rapids",
     {ON_INTEL(SAPPHIRE_RAPIDS, {L2(2 * M)}, {0x1c03c163, 0x0380003f, 0x1bfff, 4})},
     {12, 32, 48, 2048, 512, 128}},
    {"a desktop, half of whose L3 is less than 16 times the L2 and whose L2 is small",
     {ON_INTEL(SKYLAKE, {L2(256 * K)}, {L3(6 * M)})},
     {2, 3, 48, 256, 512, 128}},
    {"the largest caches, as far as they are remembered",
     {ON_INTEL(SAPPHIRE_RAPIDS, {L2(16 * M)}, {L3(1024 * M)})},
     {96, 255, 48, 16384, 512, 128}},
    {"an AMD with the most L3",
     {ON_AMD(ZEN4, {L2(M)}, {L3(1024 * M)})},
     {255, 255, 1024, 1024, 65472, 128}},
    {"Zen 3, other leaves of caches first",
     {ON_AMD(ZEN3, {L3(32 * M)}, {L2(512 * K)})},
     {16, 16, 32, 512, 4096, 128}},

    {"nothing", {0}, {USUAL}},
    {"another vendor",
     {16, {HYGON}, ZEN1, 0x80000021, 0x8000001d, {{L1D}, {L1I}, {L2(512 * K)}, {L3(32 * M)}}},
     {USUAL}},
    {"another vendor with leaf 4",
     {16, {HYGON}, CASCADE_LAKE, 0x80000021, 4, {{L1D}, {L1I}, {L2(M)}, {L3(32 * M)}}},
     {USUAL}},
    {"an AMD before Zen", {ON_AMD(EXCAVATOR, {L2(M)}, {L3(32 * M)})}, {USUAL}},
    {"an Intel of another family", {ON_INTEL(PENTIUM4, {L2(M)}, {L3(32 * M)})}, {USUAL}},
    {"an Intel without leaf 4",
     {2, {INTEL}, CASCADE_LAKE, 0x80000008, 4, {{L1D}, {L1I}, {L2(M)}, {L3(32 * M)}}},
     {USUAL}},
    {"an AMD without the leaf of caches",
     {16, {AMD}, ZEN3, 0x8000001c, 0x8000001d, {{L1D}, {L1I}, {L2(M)}, {L3(32 * M)}}},
     {USUAL}},
    {"an AMD whose leaf of caches is empty", {ON_AMD(ZEN3, {0})}, {USUAL}},
    {"no caches beyond L1, without an end", {ON_AMD(ZEN3, {L1I}, {L1I}, {L1I}, {L1I})}, {USUAL}},
    {"no L3", {ON_INTEL(CASCADE_LAKE, {L2(M)})}, {USUAL}},
    {"no L2", {ON_AMD(ZEN3, {L3(32 * M)})}, {USUAL}},
    {"an L2 for instructions", {ON_AMD(ZEN3, {0x142, 0x01c0003f, 1023, 0}, {L3(32 * M)})}, {USUAL}},
    {"an L2 of one line", {ON_INTEL(CASCADE_LAKE, {0x143, 63, 0, 0}, {L3(32 * M)})}, {USUAL}},
    {"an L2 below what there is", {ON_INTEL(CASCADE_LAKE, {L2(64 * K)}, {L3(32 * M)})}, {USUAL}},
    {"an L2 above what there is", {ON_INTEL(CASCADE_LAKE, {L2(32 * M)}, {L3(64 * M)})}, {USUAL}},
    {"an L3 of one line", {ON_AMD(ZEN3, {L2(512 * K)}, {0x163, 63, 0, 0})}, {USUAL}},
    {"an L3 as large as the L2", {ON_INTEL(CASCADE_LAKE, {L2(4 * M)}, {L3(4 * M)})}, {USUAL}},
    {"an L3 below what there is", {ON_AMD(ZEN3, {L2(512 * K)}, {L3(M)})}, {USUAL}},
    {"an L3 above what there is", {ON_AMD(ZEN3, {L2(512 * K)}, {L3(2048 * M)})}, {USUAL}},
    {"all bits", {ON_AMD(ZEN3, {~0u, ~0u, ~0u, ~0u})}, {USUAL}},
    {"sizes beyond 64 bits", /* a product of 2^64 */
     {ON_AMD(ZEN3, {L2(512 * K)}, {0x163, ~0u, ~0u, 0})},
     {USUAL}},
};

static void check_limits(struct test *t) {
    for (size_t i = 0; i < sizeof limits / sizeof limits[0]; i++) {
        const bnorm_limits *want = &limits[i].limits;
        test_context(t, "%s", limits[i].what);
        asked = &limits[i].answers;
        const bnorm_limits got = bnorm_limits_x86(answer);
        if (got.prefetch != want->prefetch || got.prefetch_in_place != want->prefetch_in_place ||
            got.stream != want->stream || got.l2 != want->l2 || got.wave != want->wave ||
            got.work != want->work)
            test_fail(t,
                      "prefetch from %u MiB on, in place %u, stream from %u, L2 of %u KiB, waves "
                      "of %u KiB, work of %u Ki, not %u, %u, %u, %u, %u, %u",
                      got.prefetch, got.prefetch_in_place, got.stream, got.l2, got.wave, got.work,
                      want->prefetch, want->prefetch_in_place, want->stream, want->l2, want->wave,
                      want->work);
    }
}

/* In bytes, what is done about the caches. */
static const struct {
    bnorm_memory memory;
    bnorm_limits limits;
    size_t bytes;
    int in_place;
    unsigned hints;
} hints[] = {
#define AUTO       BNORM_MEMORY_AUTO
#define CACHED     BNORM_MEMORY_CACHED
#define PREFETCH   BNORM_MEMORY_PREFETCH
#define STREAM     BNORM_MEMORY_STREAM
#define SOME       4, 8, 64, 384, 512, 128
#define NO_STREAM  4, 8, 0, 384, 512, 128
#define MOST       255, 255, 2048, 12288, 512, 128
#define SUMS       BNORM_PREFETCH_SUMS
#define PREFETCHED (SUMS | BNORM_PREFETCH_IN | BNORM_PREFETCH_OUT)
#define STREAMED   (SUMS | BNORM_PREFETCH_IN | BNORM_STREAM)
    {AUTO, {SOME}, 0, 0, 0},
    {AUTO, {SOME}, 384 * K, 0, 0},
    {AUTO, {SOME}, 384 * K + 1, 0, SUMS},
    {AUTO, {SOME}, 384 * K, 1, 0},
    {AUTO, {MOST}, 12 * M, 0, 0},
    {AUTO, {MOST}, 12 * M + 1, 0, SUMS},
    {AUTO, {SOME}, 4 * M, 0, SUMS},
    {AUTO, {SOME}, 4 * M + 1, 0, PREFETCHED},
    {AUTO, {SOME}, 4 * M + 1, 1, SUMS},
    {AUTO, {SOME}, 8 * M, 1, SUMS},
    {AUTO, {SOME}, 8 * M + 1, 1, PREFETCHED},
    {AUTO, {SOME}, 64 * M - 1, 0, PREFETCHED},
    {AUTO, {SOME}, 64 * M, 0, STREAMED},
    {AUTO, {SOME}, 64 * M, 1, PREFETCHED},
    {AUTO, {SOME}, SIZE_MAX, 0, STREAMED},
    {AUTO, {SOME}, SIZE_MAX, 1, PREFETCHED},
    {AUTO, {USUAL}, 2 * M, 0, SUMS},
    {AUTO, {USUAL}, 2 * M + 1, 0, PREFETCHED},
    {AUTO, {USUAL}, 2 * M + 1, 1, PREFETCHED},
    {AUTO, {USUAL}, 48 * M - 1, 0, PREFETCHED},
    {AUTO, {USUAL}, 48 * M, 0, STREAMED},
    {AUTO, {NO_STREAM}, 4 * M, 0, SUMS},
    {AUTO, {NO_STREAM}, 4 * M + 1, 0, PREFETCHED},
    {AUTO, {NO_STREAM}, SIZE_MAX, 0, PREFETCHED},
    {AUTO, {NO_STREAM}, SIZE_MAX, 1, PREFETCHED},
    {AUTO, {MOST}, 255 * M, 0, SUMS},
    {AUTO, {MOST}, 255 * M, 1, SUMS},
    {AUTO, {MOST}, (size_t)2048 * M - 1, 0, PREFETCHED},
    {AUTO, {MOST}, (size_t)2048 * M, 0, STREAMED},
    {CACHED, {SOME}, 0, 0, 0},
    {CACHED, {SOME}, SIZE_MAX, 0, 0},
    {CACHED, {SOME}, SIZE_MAX, 1, 0},
    {PREFETCH, {SOME}, 0, 0, PREFETCHED},
    {PREFETCH, {SOME}, 0, 1, PREFETCHED},
    {PREFETCH, {SOME}, SIZE_MAX, 0, PREFETCHED},
    {STREAM, {SOME}, 0, 0, STREAMED},
    {STREAM, {NO_STREAM}, 0, 0, STREAMED},
    {STREAM, {SOME}, SIZE_MAX, 0, STREAMED},
    {STREAM, {SOME}, 0, 1, PREFETCHED},
    {STREAM, {SOME}, SIZE_MAX, 1, PREFETCHED},
};

static void check_hints(struct test *t) {
    for (size_t i = 0; i < sizeof hints / sizeof hints[0]; i++) {
        const unsigned got =
            bnorm_hints(hints[i].memory, hints[i].limits, hints[i].bytes, hints[i].in_place);
        test_context(t, "line %zu: mode %d, %zu bytes%s", i, (int)hints[i].memory, hints[i].bytes,
                     hints[i].in_place ? ", in place" : "");
        if (got != hints[i].hints)
            test_fail(t, "hints are %#x, not %#x", got, hints[i].hints);
    }
}

#if BNORM_HAVE_X86
static void ask(unsigned leaf, unsigned subleaf, unsigned to[4]) {
    if (!__get_cpuid_count(leaf, subleaf, &to[0], &to[1], &to[2], &to[3]))
        to[0] = to[1] = to[2] = to[3] = 0;
}
#else
static void ask(unsigned leaf, unsigned subleaf, unsigned to[4]) {
    (void)leaf, (void)subleaf;
    to[0] = to[1] = to[2] = to[3] = 0;
}
#endif

/* What is remembered is what the CPU says, and no limit is lower than calls are asked about. */
static void check_these_limits(struct test *t) {
    const bnorm_limits want = bnorm_limits_x86(ask);
    for (int i = 0; i < 2; i++) {
        const bnorm_limits got = bnorm_cpu_limits();
        if (memcmp(&got, &want, sizeof got) != 0 || got.prefetch < BNORM_LEAST_PREFETCH ||
            got.prefetch_in_place < BNORM_LEAST_PREFETCH || got.wave < BNORM_LEAST_WAVE ||
            got.work == 0)
            test_fail(t, "prefetch from %u MiB on, in place %u, stream from %u", got.prefetch,
                      got.prefetch_in_place, got.stream);
    }
}

void add_cpu(struct suite *s) {
    suite_add(s, NULL, check_x86, NULL, "cpu/x86");
    suite_add(s, NULL, check_this_cpu, NULL, "cpu/this");
    suite_add(s, NULL, check_limits, NULL, "cpu/limits");
    suite_add(s, NULL, check_these_limits, NULL, "cpu/these-limits");
    suite_add(s, NULL, check_hints, NULL, "cpu/hints");
}
