/* SPDX-License-Identifier: MIT
 *
 * Arithmetic on one channel's parameters in plain C: in double, with fma where something is added
 * to a product that is not exact, so that the bits do not depend on the compiler. */
#ifndef BNORM_CHANNEL_H
#define BNORM_CHANNEL_H

#include "../dispatch/isa.h"
#include "fma.h"

#include <math.h>
#include <stdint.h>
#include <string.h>

/* Rounds to float; every NaN becomes the one that bnorm writes. */
static inline float bnorm_round(double v) {
    const uint32_t bits = 0xffffffffu;
    float result = (float)v;
    if (v != v)
        memcpy(&result, &bits, sizeof result);
    return result;
}

/* A per-channel parameter, or its default where the array is absent. */
static inline double bnorm_parameter(const float *array, size_t i, double otherwise) {
    return array ? (double)array[i] : otherwise;
}

/* Where an array, or none, has the parameters of channel i. */
static inline const float *bnorm_from(const float *array, size_t i) {
    return array ? array + i : NULL;
}
static inline float *bnorm_to(float *array, size_t i) {
    return array ? array + i : NULL;
}

static inline void bnorm_clear(float *array, size_t c) {
    if (array)
        memset(array, 0, c * sizeof *array);
}

/* gamma/sqrt(var + eps), 0 where var + eps = 0. */
static inline double bnorm_fold_scale(double gamma, float var, double eps) {
    const double variance = (double)var + eps;
    return variance == 0 ? 0 : gamma / sqrt(variance);
}
static inline float bnorm_invstd(float var, double eps) {
    return bnorm_round(bnorm_fold_scale(1, var, eps));
}

/* a*b + c rounded once, for an a that is mostly 0. */
static inline double bnorm_plus_product(double a, double b, double c) {
    return a == 0 ? c : bnorm_fma(a, b, c);
}

/* sum(g*(x - mean)) with the whole mean; times invstd it is sum(g*xh). */
static inline double bnorm_centred_sum(const bnorm_grad_coefficient_args *a, size_t i) {
    return bnorm_plus_product(-bnorm_parameter(a->mean_lo, i, 0), a->sum_g[i], a->sum_gx[i]);
}

#endif
