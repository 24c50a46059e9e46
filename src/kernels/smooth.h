/* SPDX-License-Identifier: MIT
 *
 * The activations that need exp and its kin, and their derivatives, with SLEEF's functions: those
 * with "finz" in their name give the same bits on every instruction set that has fma. They are
 * called by their full names: SLEEF's own dispatcher would choose for the machine, not for this
 * kernel set. docs/numerics.md has the errors, which `make activations` measures.
 *
 * What all have in common: e = exp(-|v|) lies in [0, 1], so that nothing overflows and nothing
 * cancels where v is far from 0. v is cut off behind the point where the result is the same to the
 * last bit: where the formula would be 0*inf at an infinity, and as SLEEF's functions raise
 * exceptions at numbers that are far too large for them. */
#if BNORM_SLEEF

/* sleef_exp(v) and so on. */
#if defined(__clang__) && defined(__x86_64__)
/* clang passes vectors in memory unless its command line, not just the function, chooses a target
 * that has them; SLEEF expects them in registers. A few instructions take them from there. */
#if !defined(__ELF__)
#error "with clang on x86, bnorm can call SLEEF on ELF systems only: build it with SLEEF=0"
#endif
#if VEC_F == 16
#define SMOOTH_REGISTER "%zmm0"
#else
#define SMOOTH_REGISTER "%ymm0"
#endif
#define SMOOTH_FUNCTION_(name, symbol)    SMOOTH_THROUGH(name, symbol, BNORM_NAME(bnorm_##symbol))
#define SMOOTH_THROUGH(name, symbol, own) SMOOTH_THROUGH_(name, symbol, own)
#define SMOOTH_THROUGH_(name, symbol, own)                                                         \
    __asm__(".pushsection .text\n"                                                                 \
            ".globl " #own "\n"                                                                    \
            ".hidden " #own "\n"                                                                   \
            ".type " #own ", @function\n"                                                          \
            ".p2align 4\n" #own ":\n"                                                              \
            "vmovups (%rdi), " SMOOTH_REGISTER "\n"                                                \
            "jmp " #symbol "@PLT\n"                                                                \
            ".size " #own ", .-" #own "\n"                                                         \
            ".popsection");                                                                        \
    __attribute__((visibility("hidden"))) vec_f own(const vec_f *v);                               \
    BNORM_INLINE vec_f name(vec_f v) {                                                             \
        return own(&v);                                                                            \
    }
#else
#define SMOOTH_FUNCTION_(name, symbol)                                                             \
    vec_f symbol(vec_f v);                                                                         \
    BNORM_INLINE vec_f name(vec_f v) {                                                             \
        return symbol(v);                                                                          \
    }
#endif
#define SMOOTH_FUNCTION(name, symbol) SMOOTH_FUNCTION_(name, symbol)
SMOOTH_FUNCTION(sleef_exp, VEC_SLEEF(exp, u10))
SMOOTH_FUNCTION(sleef_expm1, VEC_SLEEF(expm1, u10))
SMOOTH_FUNCTION(sleef_log1p, VEC_SLEEF(log1p, u10))
SMOOTH_FUNCTION(sleef_tanh, VEC_SLEEF(tanh, u35))

/* Where SLEEF's exp(v) and exp(-v^2/2) are 0. */
#define SMOOTH_EXP_ZERO    (-104)
#define SMOOTH_NORMAL_ZERO (-15)

/* Where SLEEF's tanh(v) is 1. */
#define SMOOTH_TANH_ONE 9

/* The greater of -|v| and the limit; a NaN stays. */
BNORM_INLINE vec_f minus_abs_from(vec_f v, float limit) {
    return vec_max(vec_set1(limit), vec_minus_abs(v));
}

/* exp(-|v|) */
BNORM_INLINE vec_f exp_minus_abs(vec_f v) {
    return sleef_exp(minus_abs_from(v, SMOOTH_EXP_ZERO));
}

/* The lesser of v and 0, -0 for -0; a NaN stays. */
BNORM_INLINE vec_f negative_part(vec_f v) {
    return vec_if_gt(v, vec_set1(0), vec_set1(0), v);
}

/* 1/(1 + exp(-v)) */
BNORM_INLINE vec_f sigmoid_value(vec_f v) {
    const vec_f one = vec_set1(1), e = exp_minus_abs(v);
    return vec_div(vec_if_gt(v, vec_set1(0), one, e), vec_add(one, e));
}

BNORM_INLINE vec_f sigmoid_slope(vec_f v) {
    const vec_f e = exp_minus_abs(v), d = vec_add(vec_set1(1), e);
    return vec_div(e, vec_mul(d, d));
}

/* v*sigmoid(v) */
BNORM_INLINE vec_f silu_value(vec_f v) {
    const vec_f one = vec_set1(1), e = exp_minus_abs(v);
    const vec_f factor = vec_if_gt(v, vec_set1(0), one, e);
    return vec_div(vec_mul(vec_max(v, vec_set1(SMOOTH_EXP_ZERO)), factor), vec_add(one, e));
}

/* s*(1 + v*(1 - s)) with s = sigmoid(v); at -v it is 1 less that. */
BNORM_INLINE vec_f silu_slope(vec_f v) {
    const vec_f one = vec_set1(1), n = minus_abs_from(v, SMOOTH_EXP_ZERO);
    const vec_f e = sleef_exp(n), inverse = vec_div(one, vec_add(one, e));
    const vec_f s = vec_mul(e, inverse), factor = vec_fma(n, inverse, one);
    return vec_if_gt(v, vec_set1(0), vec_fma(vec_negate(s), factor, one), vec_mul(s, factor));
}

/* 1 - tanh(v)^2 = 4q/(1 + q)^2 with q = exp(-2|v|) */
BNORM_INLINE vec_f tanh_slope(vec_f v) {
    const vec_f n = minus_abs_from(v, .5f * SMOOTH_EXP_ZERO), q = sleef_exp(vec_add(n, n));
    const vec_f d = vec_add(vec_set1(1), q);
    return vec_div(vec_mul(q, vec_set1(4)), vec_mul(d, d));
}

/* The normal distribution: Phi(n) = exp(-n^2/2)*(ratio + low) for n <= 0, where low is what
 * rounding took from exp(-n^2/2) and ratio. */
struct normal_parts {
    vec_f n, exp, ratio, low;
};

/* For n = -|v|. ratio*(k - n) is nearly constant: a polynomial of s = (-n - k)/(k - n) in [-1, 1),
 * the substitution of Shepherd and Laframboise, "Chebyshev approximation of (1 + 2x)exp(x^2)erfc x"
 * (Mathematics of Computation 36, 1981). Its coefficients are those of mpmath's chebyfit for n from
 * -15 to 0, rounded to float; k = 75/32 is the one for which rounding hurts least. In exact
 * arithmetic ratio then is right to 0.13*2^-24. SLEEF's erfc would take 4 times as long. */
BNORM_INLINE struct normal_parts normal_parts(vec_f v) {
    static const float c[] = {0x1.6523p-1f,    -0x1.9eaf7ep-2f,  0x1.982a14p-4f,  0x1.664226p-6f,
                              -0x1.b5d34cp-7f, -0x1.1df5a6p-8f,  0x1.af9714p-10f, 0x1.427392p-10f,
                              0x1.70788ep-17f, -0x1.f532c8p-13f, -0x1.3c7de2p-14f};
    enum { DEGREE = sizeof c / sizeof c[0] - 1 };
    const vec_f one = vec_set1(1), k = vec_set1(2.34375f);
    const vec_f n = minus_abs_from(v, SMOOTH_NORMAL_ZERO),
                minus_half_n = vec_mul(n, vec_set1(-0.5f));
    const vec_f exponent = vec_mul(n, minus_half_n), exp = sleef_exp(exponent);

    const vec_f d = vec_sub(k, n), inverse = vec_div(one, d);
    const vec_f s = vec_fma(inverse, vec_set1(-2 * 2.34375f), one);
    vec_f sum = vec_set1(c[DEGREE]);
    BNORM_UNROLL
    for (size_t i = DEGREE; i-- > 0;)
        sum = vec_fma(sum, s, vec_set1(c[i]));
    const vec_f ratio = vec_mul(sum, inverse);

    /* The relative errors of exp and 1/d; d_error is exact. */
    const vec_f exp_error = vec_fma(n, minus_half_n, vec_negate(exponent));
    const vec_f d_error = vec_sub(n, vec_sub(k, d));
    const vec_f inverse_error = vec_fma(d_error, inverse, vec_fma(vec_negate(d), inverse, one));
    const vec_f ratio_error = vec_fma(sum, inverse, vec_negate(ratio));
    const struct normal_parts p = {n, exp, ratio,
                                   vec_fma(ratio, vec_add(exp_error, inverse_error), ratio_error)};
    return p;
}

/* v*Phi(v) = max(v, 0) - |v|*Phi(-|v|) */
BNORM_INLINE vec_f gelu_value(vec_f v) {
    const struct normal_parts p = normal_parts(v);
    const vec_f normal = vec_fma(p.exp, p.ratio, vec_mul(p.exp, p.low));
    return vec_fma(p.n, normal, vec_zero_unless_gt(v, vec_set1(0), v));
}

/* Phi(v) + v*exp(-v^2/2)/sqrt(2*pi); at -v it is 1 less that. */
BNORM_INLINE vec_f gelu_slope(vec_f v) {
    const struct normal_parts p = normal_parts(v);
    const vec_f factor = vec_add(vec_fma(p.n, vec_set1(0x1.988454p-2f), p.ratio), p.low);
    return vec_if_gt(v, vec_set1(0), vec_fma(vec_negate(p.exp), factor, vec_set1(1)),
                     vec_mul(p.exp, factor));
}

/* tanh(v) */
BNORM_INLINE vec_f tanh_value(vec_f v) {
    const vec_f one = vec_set1(SMOOTH_TANH_ONE);
    return sleef_tanh(vec_max(vec_negate(one), vec_if_gt(v, one, one, v)));
}

/* a*(exp(v) - 1) below 0 */
BNORM_INLINE vec_f elu_value(vec_f v, vec_f a) {
    const vec_f n = vec_max(vec_set1(SMOOTH_EXP_ZERO), negative_part(v));
    return vec_if_gt(v, vec_set1(0), v, vec_mul(sleef_expm1(n), a));
}

BNORM_INLINE vec_f elu_slope(vec_f v, vec_f a) {
    const vec_f n = vec_max(vec_set1(SMOOTH_EXP_ZERO), negative_part(v));
    return vec_if_gt(v, vec_set1(0), vec_set1(1), vec_mul(sleef_exp(n), a));
}

/* log(1 + exp(v)) = max(v, 0) + log(1 + e) */
BNORM_INLINE vec_f softplus_value(vec_f v) {
    const vec_f log1p = sleef_log1p(exp_minus_abs(v));
    return vec_add(vec_zero_unless_gt(v, vec_set1(0), v), log1p);
}

/* tanh(log(1 + E)) = ((1 + E)^2 - 1)/((1 + E)^2 + 1) with E = exp(v) as numerator/denominator,
 * both of them divided by E^2 where v > 0. e = exp(-|v|). */
struct mish_fraction {
    vec_f numerator, denominator;
};

BNORM_INLINE struct mish_fraction mish_fraction(vec_f v, vec_f e) {
    const vec_f zero = vec_set1(0), two = vec_set1(2), twice = vec_add(e, e);
    const vec_f numerator = vec_if_gt(v, zero, vec_fma(e, two, vec_set1(1)), vec_fma(e, e, twice));
    const struct mish_fraction f = {
        numerator,
        vec_if_gt(v, zero, vec_fma(e, twice, numerator), vec_add(numerator, two)),
    };
    return f;
}

/* v*tanh(log(1 + exp(v))) */
BNORM_INLINE vec_f mish_value(vec_f v) {
    const vec_f least = vec_set1(SMOOTH_EXP_ZERO);
    const struct mish_fraction f = mish_fraction(v, exp_minus_abs(v));
    return vec_div(vec_zero_if_le(v, least, vec_mul(vec_max(v, least), f.numerator)),
                   f.denominator);
}

/* t + v*(1 - t^2)*sigmoid(v) with t = numerator/denominator: the second term is
 * 4*e*(1 + e)*v/denominator^2, times e where v > 0. */
BNORM_INLINE vec_f mish_slope(vec_f v) {
    const vec_f four = vec_set1(4), n = minus_abs_from(v, SMOOTH_EXP_ZERO);
    const vec_f e = sleef_exp(n);
    const struct mish_fraction f = mish_fraction(v, e);
    const vec_f inverse = vec_div(vec_set1(1), f.denominator);
    const vec_f scaled_v = vec_if_gt(v, vec_set1(0), vec_mul(vec_negate(n), e), n);
    const vec_f second = vec_mul(vec_mul(scaled_v, e), vec_fma(e, four, four));
    return vec_mul(inverse, vec_fma(inverse, second, f.numerator));
}

/* The activation at v. */
BNORM_INLINE vec_f smooth_value(bnorm_act_kind kind, vec_f v, vec_f a) {
    switch (kind) {
    case BNORM_ACT_SIGMOID:
        return sigmoid_value(v);
    case BNORM_ACT_SILU:
        return silu_value(v);
    case BNORM_ACT_TANH:
        return tanh_value(v);
    case BNORM_ACT_GELU:
        return gelu_value(v);
    case BNORM_ACT_ELU:
        return elu_value(v, a);
    case BNORM_ACT_SOFTPLUS:
        return softplus_value(v);
    case BNORM_ACT_MISH:
        return mish_value(v);
    default:
        return v;
    }
}

/* Its derivative at v. */
BNORM_INLINE vec_f smooth_slope(bnorm_act_kind kind, vec_f v, vec_f a) {
    switch (kind) {
    case BNORM_ACT_SIGMOID:
        return sigmoid_slope(v);
    case BNORM_ACT_SILU:
        return silu_slope(v);
    case BNORM_ACT_TANH:
        return tanh_slope(v);
    case BNORM_ACT_GELU:
        return gelu_slope(v);
    case BNORM_ACT_ELU:
        return elu_slope(v, a);
    case BNORM_ACT_SOFTPLUS: /* of which the sigmoid is the derivative */
        return sigmoid_value(v);
    case BNORM_ACT_MISH:
        return mish_slope(v);
    default:
        return vec_set1(1);
    }
}

#define SMOOTH_KINDS(body)                                                                         \
    switch (kind) {                                                                                \
    case BNORM_ACT_SIGMOID:                                                                        \
        body(BNORM_ACT_SIGMOID);                                                                   \
        break;                                                                                     \
    case BNORM_ACT_SILU:                                                                           \
        body(BNORM_ACT_SILU);                                                                      \
        break;                                                                                     \
    case BNORM_ACT_TANH:                                                                           \
        body(BNORM_ACT_TANH);                                                                      \
        break;                                                                                     \
    case BNORM_ACT_GELU:                                                                           \
        body(BNORM_ACT_GELU);                                                                      \
        break;                                                                                     \
    case BNORM_ACT_ELU:                                                                            \
        body(BNORM_ACT_ELU);                                                                       \
        break;                                                                                     \
    case BNORM_ACT_SOFTPLUS:                                                                       \
        body(BNORM_ACT_SOFTPLUS);                                                                  \
        break;                                                                                     \
    case BNORM_ACT_MISH:                                                                           \
        body(BNORM_ACT_MISH);                                                                      \
        break;                                                                                     \
    default:                                                                                       \
        break;                                                                                     \
    }

/* dy[i] *= act'(v[i]) in whole vectors: up to VEC_F - 1 elements behind n are computed too. */
static void smooth_gradients(bnorm_act_kind kind, float a, const float *v, float *dy, size_t n) {
#define SMOOTH_GRADIENTS(kind)                                                                     \
    for (size_t i = 0; i < n; i += VEC_F)                                                          \
    vec_store(dy + i, vec_mul(vec_load(dy + i), smooth_slope(kind, vec_load(v + i), vec_set1(a))))
    SMOOTH_KINDS(SMOOTH_GRADIENTS)
#undef SMOOTH_GRADIENTS
}

#undef SMOOTH_KINDS

#endif
