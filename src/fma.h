/* SPDX-License-Identifier: MIT
 *
 * a*b + c rounded once. Where the compiler has no instruction for it, fma is a call into the C
 * library, which is slow on CPUs without FMA and on some systems rounds more than once. So it is
 * made of additions and products then: S. Boldo, G. Melquiond, "Emulation of FMA and correctly
 * rounded sums: proved algorithms using rounding to odd" (2008). For the default rounding mode.
 *
 * A compiler that contracts changes nothing here: every product that something is added to is
 * exact. */
#ifndef BNORM_FMA_H
#define BNORM_FMA_H

#include <stdint.h>
#include <string.h>

/* gcc says so of all CPUs, clang of some. BNORM_OWN_FMA is for the tests. */
#if !defined(BNORM_OWN_FMA) && ((defined(__FP_FAST_FMA) && defined(__FP_FAST_FMAF)) ||             \
                                defined(__FMA__) || defined(__FMA4__) || defined(__aarch64__))

static inline float bnorm_fmaf(float a, float b, float c) {
    return __builtin_fmaf(a, b, c);
}

static inline double bnorm_fma(double a, double b, double c) {
    return __builtin_fma(a, b, c);
}

#else

static inline uint64_t bnorm_double_bits(double v) {
    uint64_t bits;
    memcpy(&bits, &v, sizeof bits);
    return bits;
}

static inline double bnorm_bits_double(uint64_t bits) {
    double v;
    memcpy(&v, &bits, sizeof v);
    return v;
}

/* high + low = a + b exactly, high being a + b rounded. */
struct bnorm_sum {
    double high, low;
};

static inline struct bnorm_sum bnorm_exact_sum(double a, double b) {
    const double high = a + b, of_b = high - a, of_a = high - of_b;
    return (struct bnorm_sum){high, (a - of_a) + (b - of_b)};
}

/* a + b, finite, rounded to odd: of the two neighbours of an inexact sum, the one whose last bit is
 * set. Rounded to fewer bits afterwards (2 less will do), it gives what a + b itself would. */
static inline double bnorm_odd_sum(double a, double b) {
    const struct bnorm_sum sum = bnorm_exact_sum(a, b);
    const uint64_t bits = bnorm_double_bits(sum.high);
    if (sum.low == 0 || bits % 2)
        return sum.high;
    return bnorm_bits_double((sum.low > 0) == (sum.high > 0) ? bits + 1 : bits - 1);
}

/* The product is exact in double. Their sum, rounded to double, is as good as rounded to odd unless
 * it lies half-way between two floats: one 1 behind the last bit of a float, or, where the float is
 * denormal, somewhere else. Infinities and NaNs never get to the sum that subtracts. */
static inline float bnorm_fmaf(float a, float b, float c) {
    const double product = (double)a * (double)b, sum = product + (double)c;
    const uint64_t bits = bnorm_double_bits(sum);
    if ((bits & 0x1fffffff) != 0x10000000 && (bits >> 52 & 0x7ff) >= 1023 - 126)
        return (float)sum;
    return (float)bnorm_odd_sum(product, (double)c);
}

/* 2^exponent, for exponents of -1022 to 1023. */
static inline double bnorm_power_of_2(int exponent) {
    return bnorm_bits_double((uint64_t)(exponent + 1023) << 52);
}

/* As stored: 0 for zeros and denormals, 2047 for infinities and NaNs. */
static inline int bnorm_stored_exponent(double v) {
    return (int)(bnorm_double_bits(v) >> 52 & 0x7ff);
}

/* high + low = a*b exactly, high being a*b rounded; nothing on the way may over- or underflow. */
static inline struct bnorm_sum bnorm_exact_product(double a, double b) {
    /* Halves of 26 bits and a sign: their products are exact, and so are `middle` and what is added
     * to the low part, in 53 bits. */
    const uint64_t half = (uint64_t)1 << 26, upper = ~(2 * half - 1);
    const double a1 = bnorm_bits_double((bnorm_double_bits(a) + half) & upper), a2 = a - a1;
    const double b1 = bnorm_bits_double((bnorm_double_bits(b) + half) & upper), b2 = b - b1;
    const double middle = a1 * b2 + a2 * b1;
    const struct bnorm_sum most = bnorm_exact_sum(a1 * b1, middle);
    return bnorm_exact_sum(most.high, most.low + a2 * b2);
}

/* v = m*2^exponent with 1 <= |m| < 2, for finite numbers other than 0. */
static inline double bnorm_mantissa(double v, int *exponent) {
    const int denormal = bnorm_stored_exponent(v) == 0;
    const double normal = denormal ? v * 0x1p54 : v;
    *exponent = bnorm_stored_exponent(normal) - 1023 - (denormal ? 54 : 0);
    return bnorm_bits_double((bnorm_double_bits(normal) & ~((uint64_t)0x7ff << 52)) | (uint64_t)1023
                                                                                          << 52);
}

/* bnorm_fma of any numbers: the work is done on mantissas. */
__attribute__((noinline, unused)) static double bnorm_fma_rare(double a, double b, double c) {
    if (a == 0 || b == 0 || bnorm_stored_exponent(a) == 2047 || bnorm_stored_exponent(b) == 2047)
        return a * b + c;
    if (bnorm_stored_exponent(c) == 2047)
        return c;
    int exponent_a, exponent_b, exponent_c = 0;
    const double ma = bnorm_mantissa(a, &exponent_a), mb = bnorm_mantissa(b, &exponent_b);
    const int scale = exponent_a + exponent_b; /* 2^scale <= |a*b| < 2^(scale + 2) */
    if (scale < -1080)                         /* less than half the least denormal */
        return c == 0 ? a * b : c;
    double mc = 0;
    if (c != 0) {
        mc = bnorm_mantissa(c, &exponent_c);
        if (exponent_c - scale > 110)
            return c;
        /* Further down it matters only that it is not 0. */
        const int apart = exponent_c - scale;
        mc *= bnorm_power_of_2(apart < -200 ? -200 : apart);
    }

    const struct bnorm_sum product = bnorm_exact_product(ma, mb);
    const struct bnorm_sum low = bnorm_exact_sum(mc, product.low);
    const struct bnorm_sum high = bnorm_exact_sum(product.high, low.high);
    const double rest = bnorm_odd_sum(low.low, high.low);
    double result = high.high + rest;
    if (result == 0)
        return result;
    if (bnorm_stored_exponent(result) - 1023 + scale < -1022) {
        /* Rounded to a multiple of 2^-1074/2^scale, as that is the last bit of what it is added
         * to. */
        const double big = bnorm_power_of_2(-1022 - scale) * (result < 0 ? -1 : 1);
        const struct bnorm_sum moved = bnorm_exact_sum(big, high.high);
        result = moved.high + bnorm_odd_sum(moved.low, rest);
        result = bnorm_bits_double(bnorm_double_bits(result - big) |
                                   (bnorm_double_bits(big) & (uint64_t)1 << 63));
    }
    return result * bnorm_power_of_2(scale / 2) * bnorm_power_of_2(scale - scale / 2);
}

/* Not inlined, so that no operation on a, b or c is contracted with the one that they come from. */
__attribute__((noinline, unused)) static double bnorm_fma(double a, double b, double c) {
    const int exponent_a = bnorm_stored_exponent(a), exponent_b = bnorm_stored_exponent(b);
    if ((unsigned)(exponent_a - 543) > 980 || (unsigned)(exponent_b - 543) > 980 ||
        bnorm_stored_exponent(c) > 2023)
        return bnorm_fma_rare(a, b, c);
    const struct bnorm_sum product = bnorm_exact_product(a, b);
    const struct bnorm_sum sum = bnorm_exact_sum(product.high, c);
    if (product.low == 0)
        return sum.high;
    /* What rounding `low` took matters only if the rest is half a unit, a power of 2. */
    const double low = sum.low + product.low, result = sum.high + low;
    const double rest = low - (result - sum.high);
    if (rest == 0 || bnorm_double_bits(rest) << 12 != 0)
        return result;
    return bnorm_fma_rare(a, b, c);
}

#endif

#endif
