/* SPDX-License-Identifier: MIT */
#include "roof.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "clock.h"

typedef roof_traffic traffic;

enum mode { ORDINARY, PREFETCH, STREAM };

/* Distances in floats. Far enough to hide memory, near enough to stay in L1 until used; measured
 * best of 1 to 4 KiB on servers where one core cannot fill its memory channels. */
enum { PREFETCH_LOAD = 512, PREFETCH_STORE = 256, LINE = 16 };

static void copy_memcpy(float *dst, const float *a, const float *b, size_t n) {
    (void)b;
    memcpy(dst, a, n * sizeof *dst);
}

static void triad_loop(float *restrict dst, const float *a, const float *b, size_t n) {
    for (size_t i = 0; i < n; i++)
        dst[i] = a[i] + 3 * b[i];
}

/* The sum of all floats, and of b's unless NULL; in float lanes as it is only there to be used. */
static void read_loop(float *dst, const float *a, const float *b, size_t n) {
    unsigned bits = 0; /* integers: a compiler may reorder their sum, and so use vectors */
    for (size_t i = 0; i < n; i++) {
        unsigned word;
        memcpy(&word, a + i, sizeof word);
        bits ^= word;
    }
    if (b)
        read_loop(dst, b, NULL, n);
    memcpy(dst, &bits, sizeof bits);
}

/* Copy and triad with four full vectors per step. "mode" and "triad" are constants wherever this is
 * called. Prefetches beyond the end of a buffer do nothing. */
#define ROOF_TRAFFIC(isa, target, vec, lanes, load, store, stream, add, mul, set1)                 \
    target static inline __attribute__((always_inline))                                            \
    vec isa##_value(const float *a, const float *b, int triad) {                                   \
        return triad ? add(load(a), mul(load(b), set1(3))) : load(a);                              \
    }                                                                                              \
    target static inline __attribute__((always_inline)) void isa##_traffic(                        \
        float *dst, const float *a, const float *b, size_t n, enum mode mode, int triad) {         \
        size_t i = 0;                                                                              \
        for (; i + 4 * lanes <= n; i += 4 * lanes) {                                               \
            if (mode == PREFETCH) {                                                                \
                for (size_t line = i; line < i + 4 * lanes; line += LINE) {                        \
                    __builtin_prefetch(a + line + PREFETCH_LOAD, 0, 3);                            \
                    if (triad)                                                                     \
                        __builtin_prefetch(b + line + PREFETCH_LOAD, 0, 3);                        \
                    __builtin_prefetch(dst + line + PREFETCH_STORE, 1, 3);                         \
                }                                                                                  \
            }                                                                                      \
            const vec v0 = isa##_value(a + i, b + i, triad);                                       \
            const vec v1 = isa##_value(a + i + lanes, b + i + lanes, triad);                       \
            const vec v2 = isa##_value(a + i + 2 * lanes, b + i + 2 * lanes, triad);               \
            const vec v3 = isa##_value(a + i + 3 * lanes, b + i + 3 * lanes, triad);               \
            if (mode == STREAM) {                                                                  \
                stream(dst + i, v0);                                                               \
                stream(dst + i + lanes, v1);                                                       \
                stream(dst + i + 2 * lanes, v2);                                                   \
                stream(dst + i + 3 * lanes, v3);                                                   \
            } else {                                                                               \
                store(dst + i, v0);                                                                \
                store(dst + i + lanes, v1);                                                        \
                store(dst + i + 2 * lanes, v2);                                                    \
                store(dst + i + 3 * lanes, v3);                                                    \
            }                                                                                      \
        }                                                                                          \
        for (; i < n; i++)                                                                         \
            dst[i] = triad ? a[i] + 3 * b[i] : a[i];                                               \
    }                                                                                              \
    target static inline __attribute__((always_inline)) void isa##_sum(                            \
        float *dst, const float *a, const float *b, size_t n, enum mode mode) {                    \
        vec s0 = set1(0), s1 = s0, s2 = s0, s3 = s0;                                               \
        size_t i = 0;                                                                              \
        for (; i + 4 * lanes <= n; i += 4 * lanes) {                                               \
            if (mode == PREFETCH) {                                                                \
                for (size_t line = i; line < i + 4 * lanes; line += LINE) {                        \
                    __builtin_prefetch(a + line + PREFETCH_LOAD, 0, 3);                            \
                    if (b)                                                                         \
                        __builtin_prefetch(b + line + PREFETCH_LOAD, 0, 3);                        \
                }                                                                                  \
            }                                                                                      \
            s0 = add(s0, load(a + i));                                                             \
            s1 = add(s1, load(a + i + lanes));                                                     \
            s2 = add(s2, load(a + i + 2 * lanes));                                                 \
            s3 = add(s3, load(a + i + 3 * lanes));                                                 \
            if (b) {                                                                               \
                s0 = add(s0, load(b + i));                                                         \
                s1 = add(s1, load(b + i + lanes));                                                 \
                s2 = add(s2, load(b + i + 2 * lanes));                                             \
                s3 = add(s3, load(b + i + 3 * lanes));                                             \
            }                                                                                      \
        }                                                                                          \
        float lane[lanes], total = 0;                                                              \
        store(lane, add(add(s0, s1), add(s2, s3)));                                                \
        for (size_t v = 0; v < lanes; v++)                                                         \
            total += lane[v];                                                                      \
        for (; i < n; i++)                                                                         \
            total += a[i] + (b ? b[i] : 0);                                                        \
        dst[0] = total;                                                                            \
    }                                                                                              \
    target static void isa##_read(float *dst, const float *a, const float *b, size_t n) {          \
        b ? isa##_sum(dst, a, b, n, ORDINARY) : isa##_sum(dst, a, NULL, n, ORDINARY);              \
    }                                                                                              \
    target static void isa##_read_prefetch(float *dst, const float *a, const float *b, size_t n) { \
        b ? isa##_sum(dst, a, b, n, PREFETCH) : isa##_sum(dst, a, NULL, n, PREFETCH);              \
    }                                                                                              \
    ROOF_FUNCTION(isa, target, copy, ORDINARY, 0)                                                  \
    ROOF_FUNCTION(isa, target, copy_prefetch, PREFETCH, 0)                                         \
    ROOF_FUNCTION(isa, target, triad, ORDINARY, 1)                                                 \
    ROOF_FUNCTION(isa, target, triad_prefetch, PREFETCH, 1)

#define ROOF_FUNCTION(isa, target, name, mode, triad)                                              \
    target static void isa##_##name(float *dst, const float *a, const float *b, size_t n) {        \
        isa##_traffic(dst, a, b, n, mode, triad);                                                  \
    }

#if defined(__x86_64__)
#include <immintrin.h>

/* Streaming stores are weakly ordered: the fence belongs to the copy. */
#define ROOF_STREAM(isa, target, name, triad)                                                      \
    target static void isa##_##name(float *dst, const float *a, const float *b, size_t n) {        \
        isa##_traffic(dst, a, b, n, STREAM, triad);                                                \
        _mm_sfence();                                                                              \
    }

#define TARGET_AVX2   __attribute__((target("avx2,prfchw")))
#define TARGET_AVX512 __attribute__((target("avx512f,prfchw")))

ROOF_TRAFFIC(avx2, TARGET_AVX2, __m256, 8, _mm256_loadu_ps, _mm256_storeu_ps, _mm256_stream_ps,
             _mm256_add_ps, _mm256_mul_ps, _mm256_set1_ps)
ROOF_STREAM(avx2, TARGET_AVX2, copy_stream, 0)
ROOF_STREAM(avx2, TARGET_AVX2, triad_stream, 1)
ROOF_TRAFFIC(avx512, TARGET_AVX512, __m512, 16, _mm512_loadu_ps, _mm512_storeu_ps, _mm512_stream_ps,
             _mm512_add_ps, _mm512_mul_ps, _mm512_set1_ps)
ROOF_STREAM(avx512, TARGET_AVX512, copy_stream, 0)
ROOF_STREAM(avx512, TARGET_AVX512, triad_stream, 1)

static int has_avx2(void) {
    return __builtin_cpu_supports("avx2") != 0;
}
static int has_avx512(void) {
    return __builtin_cpu_supports("avx512f") != 0;
}

#elif defined(__aarch64__)
#include <arm_neon.h>

/* Ordinary and prefetching copies only: ACLE has no streaming store. */
ROOF_TRAFFIC(neon, , float32x4_t, 4, vld1q_f32, vst1q_f32, vst1q_f32, vaddq_f32, vmulq_f32,
             vdupq_n_f32)
#endif

static int always(void) {
    return 1;
}

static const roof_method methods[] = {
    {"memcpy", 0, always, copy_memcpy, read_loop},
    {"loop", 1, always, triad_loop, read_loop},
#if defined(__x86_64__)
    {"avx2", 0, has_avx2, avx2_copy, avx2_read},
    {"avx2 prefetch", 0, has_avx2, avx2_copy_prefetch, avx2_read_prefetch},
    {"avx2 stream", 0, has_avx2, avx2_copy_stream, avx2_read_prefetch},
    {"avx512", 0, has_avx512, avx512_copy, avx512_read},
    {"avx512 prefetch", 0, has_avx512, avx512_copy_prefetch, avx512_read_prefetch},
    {"avx512 stream", 0, has_avx512, avx512_copy_stream, avx512_read_prefetch},
    {"avx2", 1, has_avx2, avx2_triad, avx2_read},
    {"avx2 prefetch", 1, has_avx2, avx2_triad_prefetch, avx2_read_prefetch},
    {"avx2 stream", 1, has_avx2, avx2_triad_stream, avx2_read_prefetch},
    {"avx512", 1, has_avx512, avx512_triad, avx512_read},
    {"avx512 prefetch", 1, has_avx512, avx512_triad_prefetch, avx512_read_prefetch},
    {"avx512 stream", 1, has_avx512, avx512_triad_stream, avx512_read_prefetch},
#elif defined(__aarch64__)
    {"neon", 0, always, neon_copy, neon_read},
    {"neon prefetch", 0, always, neon_copy_prefetch, neon_read_prefetch},
    {"neon", 1, always, neon_triad, neon_read},
    {"neon prefetch", 1, always, neon_triad_prefetch, neon_read_prefetch},
#endif
};

enum { METHODS = sizeof methods / sizeof methods[0], SAMPLES = 32, FIRST_ROUNDS = 5 };

const roof_method *roof_method_at(size_t i) {
    return i < METHODS ? &methods[i] : NULL;
}

/* Samples of one size, in seconds per copy. */
typedef struct entry {
    int triad;
    size_t elements;
    size_t repeats; /* copies per sample */
    int shared;     /* by all threads, where that is faster than one: small copies are not */
    struct {
        size_t taken; /* beyond SAMPLES the oldest are replaced */
        double seconds[SAMPLES];
    } method[METHODS];
} entry;

struct bench_roof {
    size_t threads;
    bnorm_exec exec;
    entry *entries;
    size_t count;
};

bench_roof *roof_create(size_t threads, const bnorm_exec *exec) {
    bench_roof *created = calloc(1, sizeof *created);
    if (created)
        *created = (bench_roof){.threads = threads, .exec = *exec};
    return created;
}

void roof_destroy(bench_roof *r) {
    if (r)
        free(r->entries);
    free(r);
}

/* One copy, cut for threads at multiples of 1 KiB, which keeps streaming stores aligned. */
typedef struct shared_copy {
    const bench_problem *problem;
    float *out;
    traffic run;
    size_t elements, part;
} shared_copy;

static void copy_part(void *arg, size_t i) {
    const shared_copy *copy = arg;
    const size_t first = i * copy->part;
    if (first < copy->elements) {
        const size_t left = copy->elements - first;
        copy->run(copy->out + first, copy->problem->x + first, copy->problem->dy + first,
                  left < copy->part ? left : copy->part);
    }
}

static double sample(const bench_roof *r, const bench_problem *p, float *out, size_t method,
                     const entry *e) {
    const size_t part = (e->elements / r->threads / 256 + 1) * 256;
    shared_copy copy = {p, out, methods[method].run, e->elements, part};
    const enum bench_clock clock = r->threads == 1 ? BENCH_THREAD : BENCH_WALL;
    const double start = bench_seconds(clock);
    for (size_t i = 0; i < e->repeats; i++) {
        if (e->shared)
            r->exec.parallel(r->exec.pool, copy_part, &copy, r->threads);
        else
            methods[method].run(out, p->x, p->dy, e->elements);
    }
    return (bench_seconds(clock) - start) / (double)e->repeats;
}

static void add_sample(const bench_roof *r, const bench_problem *p, float *out, size_t method,
                       entry *e) {
    const double seconds = sample(r, p, out, method, e);
    e->method[method].seconds[e->method[method].taken++ % SAMPLES] = seconds;
}

static double method_median(const entry *e, size_t method) {
    const size_t taken = e->method[method].taken;
    return bench_median(e->method[method].seconds, taken < SAMPLES ? taken : SAMPLES);
}

static size_t best_method(const entry *e) {
    size_t best = METHODS;
    for (size_t m = 0; m < METHODS; m++)
        if (e->method[m].taken && (best == METHODS || method_median(e, m) < method_median(e, best)))
            best = m;
    return best;
}

/* As sample(), with as many repeats as make at least 0.1 ms. The second try counts: caches may be
 * cold and threads asleep in the first. */
static double seconds_of(const bench_roof *r, const bench_problem *p, float *out, size_t method,
                         entry *e) {
    e->repeats = 1;
    sample(r, p, out, method, e);
    const double once = sample(r, p, out, method, e);
    e->repeats = once < 1e-4 ? (size_t)(1e-4 / (once + 1e-8)) + 1 : 1;
    return sample(r, p, out, method, e);
}

static entry *new_entry(bench_roof *r, const bench_problem *p, float *out, int triad,
                        size_t elements) {
    entry *grown = realloc(r->entries, (r->count + 1) * sizeof *grown);
    if (!grown)
        return NULL;
    r->entries = grown;
    entry *e = &grown[r->count++];
    *e = (entry){.triad = triad, .elements = elements};
    const size_t first = triad ? 1 : 0;
    const double alone = seconds_of(r, p, out, first, e);
    if (r->exec.parallel) {
        e->shared = 1;
        e->shared = seconds_of(r, p, out, first, e) < alone;
    }
    for (int round = 0; round < FIRST_ROUNDS; round++)
        for (size_t m = 0; m < METHODS; m++)
            if (methods[m].triad == triad && methods[m].usable())
                add_sample(r, p, out, m, e);
    return e;
}

double roof_measure(bench_roof *r, const bench_problem *p, float *out) {
    /* Floats per tensor, whatever the type. */
    const size_t tensors = bench_tensors(p), bytes = (size_t)bench_traffic(p) / tensors;
    const size_t elements = (bytes + sizeof(float) - 1) / sizeof(float);
    const int triad = tensors > 2;
    entry *e = NULL;
    for (size_t i = 0; !e && i < r->count; i++)
        if (r->entries[i].triad == triad && r->entries[i].elements == elements)
            e = &r->entries[i];
    if (e)
        add_sample(r, p, out, best_method(e), e);
    else if (!(e = new_entry(r, p, out, triad, elements)))
        return 0;
    const size_t best = best_method(e);
    return (double)(tensors * elements * sizeof(float)) / method_median(e, best);
}
