/* SPDX-License-Identifier: MIT
 *
 * The SIMD kernels, one source for every instruction set. Included once by each ISA folder's .c,
 * after its vec.h, never compiled alone. vec.h provides, for vectors of VEC_F floats (vec_f) and
 * VEC_D = VEC_F/2 doubles (vec_d):
 *   vec_load, vec_store, vec_set1, vec_add, vec_sub, vec_mul
 *   vec_fma(a, b, c)              a*b + c rounded once
 *   vec_load_n, vec_store_n       the first n >= 1 lanes; memory behind them is not touched, other
 *                                 lanes load as 0
 *   vec_first_n                   the first n lanes, zeros behind them
 *   vec_if_le, vec_if_gt          (a, b, yes, no) per lane; a NaN compares false
 *   vec_zero_if_le                (a, b, v): 0 where a <= b, else v
 *   vec_zero_unless_gt            (a, b, v): v where a > b, else 0
 *   vec_canonical                 every NaN becomes 0xffffffff
 *   ..._d                         the same for doubles, and vec_div_d, vec_if_lt_d, vec_outside_d
 *   vec_widen, vec_widen_n        floats from memory as doubles
 *   vec_low, vec_high             the halves of a vec_f as doubles
 *   vec_narrow_store              VEC_D doubles rounded to floats
 *   vec_leave                     before a kernel returns to code that is not of this set
 * Wherever a product is added to something, it is written as a fma: a compiler that contracts finds
 * nothing to do. */
#include "../plan.h"

#include <float.h>
#include <math.h>
#include <string.h>

#define BNORM_INLINE static inline __attribute__((always_inline))
#if defined(__clang__)
#define BNORM_UNROLL /* clang unrolls short constant loops by itself */
#else
#define BNORM_UNROLL _Pragma("GCC unroll 32")
#endif

/* Channels that a reduction kernel takes at a time, and room for the lanes of one vector behind
 * them. */
#define BNORM_TILE 512
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

/* A parameter of each lane, or one for all n lanes. */
BNORM_INLINE vec_f parameter_lanes(const float *p, int spread, size_t i, size_t n) {
    if (!spread)
        return load_lanes(p + i, n);
    return n == VEC_F ? vec_set1(*p) : vec_first_n(vec_set1(*p), n);
}

BNORM_INLINE vec_d widen_lanes(const float *p, size_t n) {
    return n == VEC_D ? vec_widen(p) : vec_widen_n(p, n);
}

/* s[0..n) += v, 1 <= n <= VEC_D. The sums of a plane are padded: whole vectors then, as v is 0 in
 * the other lanes (and a masked store would hold up the load that follows). */
BNORM_INLINE void accumulate_d(double *s, vec_d v, size_t n, int padded) {
    if (n == VEC_D || padded)
        vec_store_d(s, vec_add_d(vec_load_d(s), v));
    else
        vec_store_d_n(s, vec_add_d(vec_load_d_n(s, n), v), n);
}

/* s[0..n) += v widened, 1 <= n <= VEC_F */
BNORM_INLINE void accumulate_f(double *s, vec_f v, size_t n, int padded) {
    accumulate_d(s, vec_low(v), lesser(n, VEC_D), padded);
    if (n > VEC_D)
        accumulate_d(s + VEC_D, vec_high(v), n - VEC_D, padded);
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

/* The sums of one plane, one lane each. */
typedef struct plane_lanes {
    _Alignas(64) double lane[BNORM_SPAN_LANES];
} plane_lanes;

BNORM_INLINE void zero_plane(plane_lanes *p) {
    BNORM_UNROLL
    for (size_t i = 0; i < BNORM_SPAN_LANES; i += VEC_D)
        vec_store_d(p->lane + i, vec_set1_d(0));
}

/* The same fold for one plane, in registers. Written out, as gcc does not unroll a loop over
 * halves. */
BNORM_INLINE double fold_plane(const plane_lanes *p) {
    enum { VECTORS = BNORM_SPAN_LANES / VEC_D };
    vec_d v[VECTORS];
    double t[VEC_D];
    BNORM_UNROLL
    for (size_t i = 0; i < VECTORS; i++)
        v[i] = vec_load_d(p->lane + i * VEC_D);
#define BNORM_FOLD(size, half, array, add)                                                         \
    BNORM_UNROLL                                                                                   \
    for (size_t i = 0; (half) < (size) && i < (half); i++)                                         \
        array[i] = add(array[i], array[((half) + i) % (size)]);
#define BNORM_ADD(a, b) ((a) + (b))
    BNORM_FOLD(VECTORS, 16, v, vec_add_d)
    BNORM_FOLD(VECTORS, 8, v, vec_add_d)
    BNORM_FOLD(VECTORS, 4, v, vec_add_d)
    BNORM_FOLD(VECTORS, 2, v, vec_add_d)
    BNORM_FOLD(VECTORS, 1, v, vec_add_d)
    vec_store_d(t, v[0]);
    BNORM_FOLD(VEC_D, 4, t, BNORM_ADD)
    BNORM_FOLD(VEC_D, 2, t, BNORM_ADD)
    BNORM_FOLD(VEC_D, 1, t, BNORM_ADD)
#undef BNORM_FOLD
#undef BNORM_ADD
    return t[0];
}

#include "moments.h"
#include "elementwise.h"
#include "gradient.h"
#include "sums.h"
#include "dx.h"

/* The table of this kernel set, made from the one list. */
#define BNORM_ENTRY(kernel, args) .kernel = kernel,
#define BNORM_KERNEL_TABLE(set)                                                                    \
    { .name = set, BNORM_KERNELS(BNORM_ENTRY) }
