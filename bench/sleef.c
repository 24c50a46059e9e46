/* SPDX-License-Identifier: MIT */
#include "sleef.h"

#include <string.h>

#include "../dispatch/isa.h" /* BNORM_SLEEF */

typedef struct sleef_set {
    const char *name; /* of the kernel set */
    sleef_loop sigmoid, silu, tanh, gelu, elu, softplus, mish;
} sleef_set;

#if BNORM_SLEEF && (defined(__x86_64__) || defined(__aarch64__))

enum { MAX_LANES = 16 };

/* The rest, in a vector of its own. */
#define SLEEF_LOOP(isa, activation, vec, lanes, load, store, value)                                \
    static void isa##_##activation(float *y, const float *x, size_t n) {                           \
        size_t i = 0;                                                                              \
        for (; i + lanes <= n; i += lanes) {                                                       \
            const vec v = load(x + i);                                                             \
            store(y + i, value);                                                                   \
        }                                                                                          \
        if (i < n) {                                                                               \
            float rest[MAX_LANES] = {0};                                                           \
            memcpy(rest, x + i, (n - i) * sizeof *x);                                              \
            const vec v = load(rest);                                                              \
            store(rest, value);                                                                    \
            memcpy(y + i, rest, (n - i) * sizeof *x);                                              \
        }                                                                                          \
    }

/* f(function, ulp) is the full name of a SLEEF function, if_positive(v, a, b) chooses per lane. The
 * functions are those that the kernels call, or for GELU, whose normal distribution they compute
 * themselves, erf. The formulas are the shortest ones: MISH is v*e*(e + 2)/(e*(e + 2) + 2) with
 * e = exp(v). */
#define SLEEF_SET(isa, vec, lanes, load, store, f, set1, add, sub, mul, div, if_positive)          \
    vec f(exp, u10)(vec v);                                                                        \
    vec f(expm1, u10)(vec v);                                                                      \
    vec f(log1p, u10)(vec v);                                                                      \
    vec f(tanh, u35)(vec v);                                                                       \
    vec f(erf, u10)(vec v);                                                                        \
    static inline vec isa##_one_plus_exp_minus(vec v) {                                            \
        return add(set1(1), f(exp, u10)(sub(set1(0), v)));                                         \
    }                                                                                              \
    static inline vec isa##_mish_value(vec v) {                                                    \
        const vec e = f(exp, u10)(v), numerator = mul(e, add(e, set1(2)));                         \
        return div(mul(v, numerator), add(numerator, set1(2)));                                    \
    }                                                                                              \
    SLEEF_LOOP(isa, sigmoid, vec, lanes, load, store, div(set1(1), isa##_one_plus_exp_minus(v)))   \
    SLEEF_LOOP(isa, silu, vec, lanes, load, store, div(v, isa##_one_plus_exp_minus(v)))            \
    SLEEF_LOOP(isa, tanh, vec, lanes, load, store, f(tanh, u35)(v))                                \
    SLEEF_LOOP(isa, gelu, vec, lanes, load, store,                                                 \
               mul(mul(v, set1(0.5F)), add(set1(1), f(erf, u10)(mul(v, set1(0x1.6a09e6p-1F))))))   \
    SLEEF_LOOP(isa, elu, vec, lanes, load, store, if_positive(v, v, f(expm1, u10)(v)))             \
    SLEEF_LOOP(isa, softplus, vec, lanes, load, store, f(log1p, u10)(f(exp, u10)(v)))              \
    SLEEF_LOOP(isa, mish, vec, lanes, load, store, isa##_mish_value(v))                            \
    static const sleef_set isa##_set = {#isa,       isa##_sigmoid, isa##_silu,     isa##_tanh,     \
                                        isa##_gelu, isa##_elu,     isa##_softplus, isa##_mish};

#if defined(__x86_64__)
#include <immintrin.h>

#if defined(__clang__)
#pragma clang attribute push(__attribute__((target("avx2,fma"))), apply_to = function)
#else
#pragma GCC push_options
#pragma GCC target("avx2,fma")
#endif
#define AVX2_SLEEF(function, ulp) Sleef_finz_##function##f8_##ulp##avx2
#define AVX2_IF_POSITIVE(v, yes, no)                                                               \
    _mm256_blendv_ps(no, yes, _mm256_cmp_ps(v, _mm256_setzero_ps(), _CMP_GT_OQ))
SLEEF_SET(avx2, __m256, 8, _mm256_loadu_ps, _mm256_storeu_ps, AVX2_SLEEF, _mm256_set1_ps,
          _mm256_add_ps, _mm256_sub_ps, _mm256_mul_ps, _mm256_div_ps, AVX2_IF_POSITIVE)
#if defined(__clang__)
#pragma clang attribute pop
#pragma clang attribute push(__attribute__((target("avx512f"))), apply_to = function)
#else
#pragma GCC pop_options
#pragma GCC push_options
#pragma GCC target("avx512f")
#endif
#define AVX512_SLEEF(function, ulp) Sleef_finz_##function##f16_##ulp##avx512f
#define AVX512_IF_POSITIVE(v, yes, no)                                                             \
    _mm512_mask_blend_ps(_mm512_cmp_ps_mask(v, _mm512_setzero_ps(), _CMP_GT_OQ), no, yes)
SLEEF_SET(avx512, __m512, 16, _mm512_loadu_ps, _mm512_storeu_ps, AVX512_SLEEF, _mm512_set1_ps,
          _mm512_add_ps, _mm512_sub_ps, _mm512_mul_ps, _mm512_div_ps, AVX512_IF_POSITIVE)
#if defined(__clang__)
#pragma clang attribute pop
#else
#pragma GCC pop_options
#endif

static const sleef_set *const sets[] = {&avx2_set, &avx512_set, NULL};

#else
#include <arm_neon.h>

#define NEON_SLEEF(function, ulp)    Sleef_finz_##function##f4_##ulp##advsimd
#define NEON_IF_POSITIVE(v, yes, no) vbslq_f32(vcgtzq_f32(v), yes, no)
SLEEF_SET(neon, float32x4_t, 4, vld1q_f32, vst1q_f32, NEON_SLEEF, vdupq_n_f32, vaddq_f32, vsubq_f32,
          vmulq_f32, vdivq_f32, NEON_IF_POSITIVE)

static const sleef_set *const sets[] = {&neon_set, NULL};
#endif

#else
static const sleef_set *const sets[] = {NULL};
#endif

sleef_loop sleef_loop_of(const bnorm_isa *isa, bnorm_act_kind kind) {
    const sleef_set *set = NULL;
    for (size_t i = 0; !set && sets[i]; i++)
        if (strcmp(sets[i]->name, bnorm_isa_name(isa)) == 0)
            set = sets[i];
    if (!set)
        return NULL;
    switch (kind) {
    case BNORM_ACT_SIGMOID:
        return set->sigmoid;
    case BNORM_ACT_SILU:
        return set->silu;
    case BNORM_ACT_TANH:
        return set->tanh;
    case BNORM_ACT_GELU:
        return set->gelu;
    case BNORM_ACT_ELU:
        return set->elu;
    case BNORM_ACT_SOFTPLUS:
        return set->softplus;
    case BNORM_ACT_MISH:
        return set->mish;
    default:
        return NULL;
    }
}
