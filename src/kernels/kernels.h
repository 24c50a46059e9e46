/* SPDX-License-Identifier: MIT
 *
 * The SIMD kernels, one source for every instruction set. Included once by each ISA folder's .c,
 * after its vec.h, never compiled alone. vec.h provides, for vectors of VEC_F floats (vec_f) and
 * VEC_D = VEC_F/2 doubles (vec_d):
 *   vec_load, vec_store, vec_set1, vec_add, vec_sub, vec_mul
 *   vec_stream, ..._bf16_2, ..._bf16_apart, ..._f16_2
 *                                 vec_store of part of a line past the caches, p aligned; vec_fence
 *                                 when all is stored
 *   vec_prefetch, vec_prefetch_out      ask for the line of p, to be read or written
 *   vec_repeat                    (p, n): n floats, a power of two, again and again
 *   vec_fma(a, b, c)              a*b + c rounded once
 *   vec_keep                      a vector that the compiler knows nothing about any more, where it
 *                                 would otherwise fold it, or load it again in place of a register
 *   vec_sub_times(a, one, b)      a - b, where a CPU has other units for products as a*one - b
 *   vec_load_n, vec_store_n       the first n lanes, of 1 when stored; memory behind them is not
 *                                 touched, other lanes load as 0
 *   vec_first_n                   the first n lanes, zeros behind them
 *   vec_if_le, vec_if_gt          (a, b, yes, no) per lane; a NaN compares false
 *   vec_zero_if_le                (a, b, v): 0 where a <= b, else v
 *   vec_zero_unless_gt            (a, b, v): v where a > b, else 0
 *   vec_zero_from                 (v, limit, x): 0 where v >= limit, else x; a NaN as the limit raises
 *                                 no exception
 *   vec_canonical                 every NaN becomes 0xffffffff
 *   vec_canonical_result          the same, of what arithmetic gave: no NaN is a signalling one
 *   vec_relu, vec_clamp           vec_canonical_result of these activations
 *   vec_are_numbers               (v, n): of an even number of vectors, whether none has a NaN; 0, as is
 *                                 VEC_TESTS_NAN, where vec_canonical_result takes one instruction
 *   vec_div, vec_negate, vec_minus_abs
 *   vec_max, vec_min              (a, b): a where it is greater, or less, else b
 *   vec_power_of_2                v >= 0 with its fraction cut off, 0 for denormals
 *   vec_zero_nan                  0 for every NaN
 *   vec_load_..., vec_store_...   bf16, f16, and VEC_F bytes: s8, u8; a NaN that is stored is that
 *                                 of vec_canonical
 *   vec_store_8                   (p, v, zero_point, is_signed): v of at most 2^14 rounded to whole
 *                                 numbers, ties to even, zero_point added, limited to s8 or u8
 *   vec_store_bf16_2, ..._8_4     two or four vectors, one behind the other
 *   vec_apart, ..._bf16_apart     two vectors, of the even and of the odd elements of 2*VEC_F
 *   vec_if_bits                   (bits, v): v where one of the lowest VEC_F bits is set, else 0
 *   vec_bits_gt                   (a, b): a bit per lane
 *   ..._d                         the same for doubles, and vec_div_d, vec_sqrt_d, vec_if_eq_d,
 *                                 vec_if_lt_d, vec_outside_d
 *   vec_widen, vec_widen_n        floats from memory as doubles
 *   vec_low, vec_high             the halves of a vec_f as doubles
 *   vec_narrow_store, ..._n       VEC_D doubles rounded to floats, or the first n of them, canonical
 *   vec_round_d                   doubles rounded to floats, and back
 *   vec_fold_fours                (to_a, to_b, a, b): the lanes of each folded to 4, upper half onto
 *                                 lower half, to aligned memory
 *   four_floats, vec_four, ..._bf16, ..._f16
 *                                 a vector of 4 floats, which + adds; from memory
 *   vec_load_fours                VEC_F times 4 floats from aligned memory: the first, second, third
 *                                 and last of each
 *   vec_zeroupper                     before a kernel returns to code that is not of this set
 * Wherever a product is added to something, it is written as a fma: a compiler that contracts finds
 * nothing to do. */
#include "../order.h"

#include <float.h>
#include <math.h>
#include <stdint.h>
#include <string.h>

#define BNORM_INLINE static inline __attribute__((always_inline))
#define BNORM_RARE   static __attribute__((noinline)) /* costs nothing where it is not called */
#define BNORM_COLD                                                                                 \
    static __attribute__((noinline, cold)) /* the same, and as little code as can be */
/* How far ahead of their use lines are asked for, in bytes. */
#define BNORM_AHEAD       ((size_t)2048)
#define BNORM_UNLIKELY(c) __builtin_expect(!!(c), 0)
#if defined(__clang__)
#define BNORM_UNROLL /* clang unrolls short constant loops by itself */
#define BNORM_UNROLL_SOME
#define BNORM_NO_UNROLL _Pragma("clang loop unroll(disable)")
#else
#define BNORM_UNROLL      _Pragma("GCC unroll 32")
#define BNORM_UNROLL_SOME _Pragma("GCC unroll 4")
#define BNORM_NO_UNROLL   _Pragma("GCC unroll 1")
#endif

/* Channels that a reduction kernel takes at a time, whole rows of most: half a row at a time came up
 * to 1.24 times slower from memory. And room for the lanes of one vector behind them. */
#define BNORM_TILE 1024
#define BNORM_PAD  16

BNORM_INLINE size_t lesser(size_t a, size_t b) {
    return a < b ? a : b;
}

BNORM_INLINE vec_f load_lanes(const float *p, size_t n) {
    return n == VEC_F ? vec_load(p) : vec_load_n(p, n);
}

BNORM_INLINE void store_lanes(float *p, vec_f v, size_t n) {
    if (n == VEC_F)
        vec_store(p, v);
    else
        vec_store_n(p, v, n);
}

/* The first n lanes, zeros behind them. */
BNORM_INLINE vec_f first_lanes(vec_f v, size_t n) {
    return n == VEC_F ? v : vec_first_n(v, n);
}

/* s[0..n) = 0; writes whole vectors. */
BNORM_INLINE void zero_lanes(double *s, size_t n) {
    for (size_t i = 0; i < n; i += VEC_D)
        vec_store_d(s + i, vec_set1_d(0));
}

/* p[0..c) again behind itself, `times` times altogether; writes up to a vector more. */
BNORM_INLINE void repeat_lanes(float *p, size_t c, size_t times) {
    for (size_t j = 1; j < times; j++)
        for (size_t i = 0; i < c; i += VEC_F)
            vec_store(p + j * c + i, vec_load(p + i));
}

/* A parameter of each lane, or one for all n lanes. */
BNORM_INLINE vec_f parameter_lanes(const float *p, int spread, size_t i, size_t n) {
    if (!spread)
        return load_lanes(p + i, n);
    return first_lanes(vec_set1(*p), n);
}

BNORM_INLINE vec_d widen_lanes(const float *p, size_t n) {
    return n == VEC_D ? vec_widen(p) : vec_widen_n(p, n);
}

BNORM_INLINE vec_d load_d_lanes(const double *p, size_t n) {
    return n == VEC_D ? vec_load_d(p) : vec_load_d_n(p, n);
}

BNORM_INLINE void store_d_lanes(double *p, vec_d v, size_t n) {
    if (n == VEC_D)
        vec_store_d(p, v);
    else
        vec_store_d_n(p, v, n);
}

/* s[i] for i < c: the chains of channel i, which lie c apart, folded upper half onto lower half. */
BNORM_INLINE void fold_chains(double *s, size_t c, size_t chains) {
    for (size_t half = chains / 2; half > 0; half /= 2) {
        const size_t n = half * c;
        size_t i = 0;
        for (; i + VEC_D <= n; i += VEC_D)
            vec_store_d(s + i, vec_add_d(vec_load_d(s + i), vec_load_d(s + n + i)));
        for (; i < n; i++)
            s[i] += s[n + i];
    }
}

/* Lanes of `to` whose bits are set. */
BNORM_INLINE void replace_lanes(unsigned bits, const double *from, double *to) {
    for (size_t i = 0; bits; i++, bits >>= 1)
        if (bits & 1)
            to[i] = from[i];
}

#include "convert.h"
#if BNORM_SLEEF
#include "smooth.h"
#else
/* Never called: the drivers refuse these activations. */
BNORM_INLINE vec_f smooth_value(bnorm_act_kind kind, vec_f v, vec_f a) {
    (void)kind, (void)a;
    return v;
}
static void smooth_gradients(bnorm_act_kind kind, float a, const float *v, float *dy, size_t n) {
    (void)kind, (void)a, (void)v, (void)dy, (void)n;
}
#endif
#include "gradient.h"
#include "reduce.h"
#include "leaves.h"
#include "map.h"
#include "coefficients.h"

/* The tables of this kernel set, made from the lists. */
#define BNORM_ENTRY(kernel, args) .kernel = kernel,
#define BNORM_INFERENCE_TABLE(set)                                                                 \
    { .name = set, BNORM_INFERENCE_KERNELS(BNORM_ENTRY) }
#define BNORM_TRAINING_TABLE                                                                       \
    { BNORM_TRAINING_KERNELS(BNORM_ENTRY) }
