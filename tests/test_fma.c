/* SPDX-License-Identifier: MIT
 *
 * src/fma.h where the compiler has no fma: compared to integer arithmetic, over all kinds of
 * numbers. No libm is asked, as there are some whose fma is wrong. */
#define BNORM_OWN_FMA
#include "../src/fma.h"
#include "cases.h"
#include "harness.h"

#include <fenv.h>
#include <float.h>
#include <math.h>
#include <stdlib.h>

/* The reference takes integers of 128 bits, which compilers for 32-bit CPUs lack. */
#if defined(__SIZEOF_INT128__)

__extension__ typedef unsigned __int128 wide_uint;

/* Numbers are m*2^least with whole m, those in [2^(most - 1), 2^most) are the largest, and they
 * have up to `precision` bits. */
struct format {
    int precision, least, most;
};
static const struct format floats = {24, -149, 128}, doubles = {53, -1074, 1024};

/* ---------------------------------------------------------------------------------------------- */
/* The reference                                                                                  */

/* bits*2^exponent; the last bit is also set where bits behind it were cut off. */
struct scaled {
    wide_uint bits;
    int exponent;
};

static int length(wide_uint bits) {
    const unsigned long long high = (unsigned long long)(bits >> 64);
    const unsigned long long part = high ? high : (unsigned long long)bits;
    return part ? (high ? 128 : 64) - __builtin_clzll(part) : 0;
}

static struct scaled magnitude(double v) {
    int exponent;
    const double fraction = frexp(fabs(v), &exponent);
    return (struct scaled){(wide_uint)ldexp(fraction, 53), exponent - 53};
}

static struct scaled at_exponent(struct scaled v, int exponent) {
    const int down = exponent - v.exponent;
    if (down <= 0)
        return (struct scaled){v.bits ? v.bits << -down : 0, exponent};
    if (down > 127)
        return (struct scaled){v.bits != 0, exponent};
    const wide_uint kept = v.bits >> down;
    return (struct scaled){kept | (kept << down != v.bits), exponent};
}

/* To the nearest number of the format, ties to even; what is too large for it is left so. */
static double round_to(const struct format *f, struct scaled v) {
    const int too_long = length(v.bits) - f->precision, too_low = f->least - v.exponent;
    const int drop = too_long > too_low ? too_long : too_low;
    if (drop > 126)
        return 0;
    if (drop > 0) {
        const wide_uint half = (wide_uint)1 << (drop - 1), rest = v.bits & (2 * half - 1);
        v.bits >>= drop;
        v.bits += rest > half || (rest == half && (v.bits & 1));
        v.exponent += drop;
    }
    return ldexp((double)v.bits, v.exponent);
}

/* a*b + c in the format. */
static double exact_fma(const struct format *f, double a, double b, double c) {
    if (a == 0 || b == 0 || !isfinite(a) || !isfinite(b))
        return a * b + c;
    if (!isfinite(c))
        return c;
    const struct scaled factor = magnitude(b);
    struct scaled product = magnitude(a), sum = magnitude(c);
    product.bits *= factor.bits;
    product.exponent += factor.exponent;
    int negative = !signbit(a) != !signbit(b);
    const int subtract = c != 0 && negative != !!signbit(c);

    /* The longer one gets 126 bits, what the other has behind them can't but tip the scales. */
    const int top_product = product.exponent + length(product.bits);
    const int top_sum = c != 0 ? sum.exponent + length(sum.bits) : top_product;
    const int exponent = (top_product > top_sum ? top_product : top_sum) - 126;
    product = at_exponent(product, exponent);
    sum = at_exponent(sum, exponent);
    if (!subtract) {
        sum.bits += product.bits;
    } else if (sum.bits > product.bits) {
        sum.bits -= product.bits;
        negative = !negative;
    } else {
        sum.bits = product.bits - sum.bits;
    }
    const double size = sum.bits ? round_to(f, sum) : 0;
    return negative && sum.bits ? -size : size;
}

/* ---------------------------------------------------------------------------------------------- */
/* Numbers                                                                                        */

static double as_format(const struct format *f, double v) {
    return f == &floats ? (double)(float)v : v;
}

/* From 2^(exponent - 1) to 2^exponent, with a random number of bits. */
static double number(struct test *t, const struct format *f, int exponent) {
    const int bits = 1 + (int)rng_below(&t->rng, (size_t)f->precision);
    const uint64_t top = (uint64_t)1 << (bits - 1), m = top | (rng_u64(&t->rng) & (top - 1)) | 1;
    const double v = as_format(f, ldexp((double)m, exponent - bits));
    return rng_below(&t->rng, 2) ? v : -v;
}

/* From low to high, both included. */
static int between(struct test *t, int low, int high) {
    return low + (int)rng_below(&t->rng, (size_t)(high - low + 1));
}

static double any_number(struct test *t, const struct format *f) {
    const double least = ldexp(1, f->least), most = ldexp(2 - ldexp(2, -f->precision), f->most - 1);
    const double special[] = {0, -0.0, INFINITY, -INFINITY, NAN, 1, -1, least, -least, most, -most};
    if (rng_below(&t->rng, 4) == 0)
        return special[rng_below(&t->rng, COUNT_OF(special))];
    if (rng_below(&t->rng, 2))
        return number(t, f, between(t, f->least + 1, f->most));
    const uint64_t bits = rng_u64(&t->rng);
    return f == &floats ? (double)bits_float((uint32_t)bits) : bnorm_bits_double(bits);
}

/* Products and sums around every edge: ties, what tips them, cancellation, the range's ends. */
static void triple(struct test *t, const struct format *f, double v[3]) {
    const int ends[] = {between(t, f->least - 4, f->least + f->precision + 4), between(t, -3, 3),
                        between(t, f->least - 40, f->most + 10),
                        between(t, f->most - 4, f->most + 1)};
    const int product = ends[rng_below(&t->rng, COUNT_OF(ends))];
    const int half = product / 2, spread = rng_below(&t->rng, 2) ? f->most - 20 - abs(half) : 5;
    const int first = half + between(t, -spread, spread);
    v[0] = number(t, f, first);
    v[1] = number(t, f, product - first);
    if (rng_below(&t->rng, 4) == 0) { /* (1 + d)*(1 - d): the product's bits are far apart */
        const double d = ldexp(between(t, -3, 3), 1 - f->precision);
        v[0] = as_format(f, ldexp(1 + d, first));
        v[1] = as_format(f, ldexp(1 - d, product - first));
    }
    switch (rng_below(&t->rng, 5)) {
    case 0:
        v[2] = number(t, f, product - between(t, 0, 3 * f->precision));
        break;
    case 1:
        v[2] = number(t, f, product + between(t, 0, 3 * f->precision));
        break;
    case 2: {
        const double ulps = ldexp(between(t, -4, 4), -f->precision);
        const double near = as_format(f, v[0] * v[1]);
        v[2] = as_format(f, -near - near * ulps);
        break;
    }
    case 3:
        v[2] = rng_below(&t->rng, 2) ? 0 : -0.0;
        break;
    default:
        v[rng_below(&t->rng, 3)] = any_number(t, f);
        v[2] = any_number(t, f);
    }
}

/* ---------------------------------------------------------------------------------------------- */
/* Cases                                                                                          */

#define EXCEPTIONS (FE_INVALID | FE_DIVBYZERO | FE_OVERFLOW)

/* What was raised, but for what the result explains. */
static int excess_exceptions(const double v[3], double result) {
    const int exceptions = fetestexcept(EXCEPTIONS);
    int finite = 1, number = 1;
    for (int i = 0; i < 3; i++) {
        finite &= isfinite(v[i]) != 0;
        number &= !isnan(v[i]);
    }
    const int explained =
        (finite && isinf(result) ? FE_OVERFLOW : 0) | (!number || isnan(result) ? FE_INVALID : 0);
    return exceptions & ~explained;
}

static void check(struct test *t, const struct format *f, const double v[3]) {
    volatile double got;          /* computed between the two looks at the exceptions */
    if (fetestexcept(EXCEPTIONS)) /* cheaper than clearing them */
        feclearexcept(EXCEPTIONS);
    if (f == &floats)
        got = (double)bnorm_fmaf((float)v[0], (float)v[1], (float)v[2]);
    else
        got = bnorm_fma(v[0], v[1], v[2]);
    const int exceptions = excess_exceptions(v, got);
    const double exact = exact_fma(f, v[0], v[1], v[2]), want = as_format(f, exact);
    if (isnan(got) ? !isnan(want) : bnorm_double_bits(got) != bnorm_double_bits(want))
        test_fail(t, "%a*%a + %a is %a, not %a", v[0], v[1], v[2], want, got);
    if (exceptions)
        test_fail(t, "%a*%a + %a raises exceptions %#x out of nothing", v[0], v[1], v[2],
                  (unsigned)exceptions);
}

/* param: the format. */
static void test_random(struct test *t) {
    const struct format *const f = t->param;
    const size_t count = test_quick() ? 400000 : 10000000;
    for (size_t i = 0; i < count; i++) {
        double v[3];
        triple(t, f, v);
        check(t, f, v);
    }
}

/* What has been wrong somewhere: in MinGW-w64, or where a sum just off the middle of two denormals
 * is rounded twice. */
static void test_known(struct test *t) {
    static const double all[][3] = {
        {-0x1.19dca8p+44, 0x1.ce0006p-23, -0x1.0c8edep-79},
        {0x1p-75, -0x1p-75, 0},
        {0x1.000002p-75, 0x1.fffffcp-76, 0x1.000008p-128},
        {0x1.8p-75, 0x1p-75, 0x1p-149},
        {0x1.8p-75, 0x1p-75, -0x1p-149},
        {0x1.fffffep127, 0x1p1, -INFINITY},
        {0x1.fffffep127, 1, 0x1p103},
        {-0x1.fffffep127, 1, -0x1p102},
        {0, INFINITY, 1},
        {INFINITY, 1, -INFINITY},
    };
    for (size_t i = 0; i < COUNT_OF(all); i++) {
        check(t, &floats, all[i]);
        check(t, &doubles, all[i]);
    }
}

/* Where two floats are equally near but for shift. */
static void test_apply(struct test *t) {
    const bnorm_shape shape = {.n = 1, .c = 1, .hw = 1};
    const bnorm_exec exec = {.isa = t->isa};
    const float x = -1.9369631e13f, scale = 2.1513551e-7f, shift = -1.7354427e-24f;
    const float want = -4167095.75f;
    const bnorm_affine affine = {.scale = &scale, .shift = &shift};
    float y = 0;
    check_status(
        t, "bnorm_apply",
        bnorm_apply(&shape, (bnorm_in){.data = &x}, (bnorm_out){.data = &y}, &affine, &exec),
        BNORM_OK);
    check_bits(t, "y", &y, &want, 1);
}

void add_fma(struct suite *s) {
    suite_add(s, NULL, test_random, &floats, "fma/floats");
    suite_add(s, NULL, test_random, &doubles, "fma/doubles");
    suite_add(s, NULL, test_known, NULL, "fma/known");
    suite_add_per_isa(s, test_apply, NULL, "fma/apply/%s");
}

#else

void add_fma(struct suite *s) {
    (void)s;
}

#endif
