/* SPDX-License-Identifier: MIT
 *
 * Exact sums. A float is an integer of 24 bits times a power of two; integers that belong to the
 * same power are added in one bin, without rounding. Bins are joined in 113-bit floating point. */
#include <float.h>
#include <math.h>
#include <stdint.h>
#include <string.h>
#include "accuracy.h"

#if LDBL_MANT_DIG == 113
typedef long double quad;
#else
__extension__ typedef __float128 quad;
#endif
__extension__ typedef __int128 wide;

/* x = mantissa*2^(exponent - 150); infinities and NaN do not occur in the study. */
struct parts {
    int64_t mantissa;
    unsigned exponent;
};

static inline struct parts parts_of(float x) {
    uint32_t bits;
    memcpy(&bits, &x, sizeof bits);
    const uint32_t field = bits >> 23 & 0xff, fraction = bits & 0x7fffff;
    const int64_t magnitude = field ? fraction | 0x800000 : fraction;
    return (struct parts){bits >> 31 ? -magnitude : magnitude, field ? field : 1};
}

/* Sums of x, x*x, dy, dy*dy and x*dy. */
struct bins {
    int64_t x[256], dy[256]; /* up to 2^39 values */
    wide xx[256], dydy[256], xdy[512];
};

static quad scaled(wide mantissa, int exponent) {
    return (quad)mantissa * (quad)ldexp(1, exponent);
}

static quad total(const int64_t *bins) {
    quad sum = 0;
    for (int i = 255; i >= 0; i--)
        sum += scaled(bins[i], i - 150);
    return sum;
}

static quad total_of_products(const wide *bins, int count, int step) {
    quad sum = 0;
    for (int i = count - 1; i >= 0; i--)
        sum += scaled(bins[i], step * i - 300);
    return sum;
}

static quad inverse_root(quad v) {
    const quad r = (quad)(1 / sqrt((double)v));
    return r + r * (1 - v * r * r) / 2; /* one step of Newton's method */
}

struct exact exact_channel(const struct channel *ch, double eps) {
    struct bins b;
    memset(&b, 0, sizeof b);
    for (size_t image = 0; image < ch->images; image++)
        for (size_t p = 0; p < ch->positions; p++) {
            const size_t at = image * ch->image_stride + p * ch->position_step;
            const struct parts x = parts_of(ch->x[at]), dy = parts_of(ch->dy[at]);
            b.x[x.exponent] += x.mantissa;
            b.dy[dy.exponent] += dy.mantissa;
            b.xx[x.exponent] += (wide)(x.mantissa * x.mantissa);
            b.dydy[dy.exponent] += (wide)(dy.mantissa * dy.mantissa);
            b.xdy[x.exponent + dy.exponent] += (wide)(x.mantissa * dy.mantissa);
        }
    const quad n = (quad)ch->images * (quad)ch->positions, sum = total(b.x), sum_dy = total(b.dy);
    const quad mean = sum / n;
    quad m2 = total_of_products(b.xx, 256, 2) - mean * sum;
    /* Of equal values it is 0; what the 113 bits leave of it is far below 2^-64 of the squares. */
    if (m2 < mean * sum * (quad)0x1p-100)
        m2 = 0;
    const quad spread = m2 / n + (quad)eps;
    const quad invstd = spread > 0 ? inverse_root(spread) : 0;

    struct exact e = {.n = (double)n};
    e.mean = (double)mean;
    e.mean_lo = (double)(mean - (quad)e.mean);
    e.var = (double)(m2 / n);
    e.sample_var = (double)(m2 / (n > 1 ? n - 1 : 1));
    e.deviation = sqrt(e.var);
    e.invstd = (double)invstd;
    e.dbeta = (double)sum_dy;
    e.dgamma = (double)((total_of_products(b.xdy, 512, 1) - mean * sum_dy) * invstd);
    e.dbeta_terms = sqrt((double)total_of_products(b.dydy, 256, 2));
    double squares = 0;
    for (size_t image = 0; image < ch->images; image++)
        for (size_t p = 0; p < ch->positions; p++) {
            const size_t at = image * ch->image_stride + p * ch->position_step;
            const double term = (double)ch->dy[at] * exact_y(&e, ch->x[at]);
            squares += term * term;
        }
    e.dgamma_terms = sqrt(squares);
    return e;
}

/* (x - mean)*invstd: what the subtraction rounds off is added again (Knuth's TwoSum). */
double exact_y(const struct exact *e, float x) {
    const double a = (double)x, b = -e->mean, sum = a + b, part = sum - a;
    const double rest = (a - (sum - part)) + (b - part);
    return (sum + (rest - e->mean_lo)) * e->invstd;
}

double exact_dx(const struct exact *e, float x, float dy, double *magnitude) {
    const double g = (double)dy, mean_g = e->dbeta / e->n,
                 projection = exact_y(e, x) * (e->dgamma / e->n);
    *magnitude = e->invstd * (fabs(g) + fabs(mean_g) + fabs(projection));
    return e->invstd * (g - mean_g - projection);
}
