/* SPDX-License-Identifier: MIT
 *
 * Per-channel arithmetic that forward and backward must do alike. */
#ifndef BNORM_NUMBERS_H
#define BNORM_NUMBERS_H

#include <math.h>
#include <stdint.h>
#include <string.h>

/* Rounds to float; every NaN becomes the one that bnorm writes. */
static inline float bnorm_to_float(double v) {
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

/* gamma*invstd, the factor of y = fma(x - mean, scale, shift). */
static inline float bnorm_scale(const float *gamma, size_t i, float invstd) {
    return bnorm_to_float(bnorm_parameter(gamma, i, 1) * (double)invstd);
}

/* beta less what the low part of the mean contributes; the product of two floats is exact. */
static inline float bnorm_shift(const float *beta, size_t i, float mean_lo, float scale) {
    const double b = bnorm_parameter(beta, i, 0);
    return bnorm_to_float(mean_lo == 0 ? b : b - (double)mean_lo * (double)scale);
}

#endif
