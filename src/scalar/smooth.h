/* SPDX-License-Identifier: MIT
 *
 * The activations that need exp and its kin, and their derivatives: the specification of
 * src/kernels/smooth.h, with which it shares no code. SLEEF's functions for one float with fma have
 * the bits of its vector functions. */
#if BNORM_SLEEF

float Sleef_finz_expf1_u10purecfma(float v);
float Sleef_finz_expm1f1_u10purecfma(float v);
float Sleef_finz_log1pf1_u10purecfma(float v);
float Sleef_finz_tanhf1_u35purecfma(float v);

/* SLEEF computes on all lanes of the register that the float is in, and whatever else lies there
 * may raise exceptions. A load clears it. */
static float alone(float v) {
    const volatile float memory = v;
    return memory;
}

/* SLEEF's functions raise exceptions at numbers that are far too large for them: v is cut off
 * behind the point where the result is the same. NaN stays. */
static float at_least(float v, float least) {
    return v <= least ? least : v;
}

/* Where exp(v) is 0. */
#define EXP_ZERO (-104)

/* In [0, 1]: exp of the other sign might overflow. */
static float exp_minus_abs(float v) {
    return Sleef_finz_expf1_u10purecfma(alone(at_least(-fabsf(v), EXP_ZERO)));
}

static float sigmoid(float v) {
    const float e = exp_minus_abs(v);
    return (v > 0 ? 1 : e) / (1 + e);
}

static float sigmoid_slope(float v) {
    const float e = exp_minus_abs(v), d = 1 + e;
    return e / (d * d);
}

/* Below -104 e is 0, and -inf*0 would be NaN. */
static float silu(float v) {
    const float e = exp_minus_abs(v);
    return at_least(v, EXP_ZERO) * (v > 0 ? 1 : e) / (1 + e);
}

/* s*(1 + v*(1 - s)) with s = sigmoid(v), for v <= 0; at -v it is 1 less that. */
static float silu_slope(float v) {
    const float n = fabsf(v) >= 104 ? -104 : -fabsf(v);
    const float e = exp_minus_abs(n), inverse = 1 / (1 + e), s = e * inverse;
    const float factor = bnorm_fmaf(n, inverse, 1);
    return v > 0 ? bnorm_fmaf(-s, factor, 1) : s * factor;
}

/* 1 - tanh(v)^2 */
static float tanh_slope(float v) {
    const float q = exp_minus_abs(2 * at_least(-fabsf(v), EXP_ZERO)), d = 1 + q;
    return 4 * q / (d * d);
}

/* The normal distribution: Phi(n) = exp*(ratio + low) with exp = exp(-n^2/2), for n = -|v| or -15.
 * low is what rounding took from exp and ratio. */
struct normal_parts {
    float n, exp, ratio, low;
};

static struct normal_parts normal_parts(float v) {
    struct normal_parts p;
    const float n = fabsf(v) >= 15 ? -15 : -fabsf(v);
    const float exponent = n * (n * -0.5f);

    /* ratio*d as a polynomial of s; src/kernels/smooth.h says where it is from. */
    const float k = 2.34375f, d = k - n, inverse = 1 / d, s = bnorm_fmaf(inverse, -2 * k, 1);
    float sum = -0x1.3c7de2p-14f;
    sum = bnorm_fmaf(sum, s, -0x1.f532c8p-13f);
    sum = bnorm_fmaf(sum, s, 0x1.70788ep-17f);
    sum = bnorm_fmaf(sum, s, 0x1.427392p-10f);
    sum = bnorm_fmaf(sum, s, 0x1.af9714p-10f);
    sum = bnorm_fmaf(sum, s, -0x1.1df5a6p-8f);
    sum = bnorm_fmaf(sum, s, -0x1.b5d34cp-7f);
    sum = bnorm_fmaf(sum, s, 0x1.664226p-6f);
    sum = bnorm_fmaf(sum, s, 0x1.982a14p-4f);
    sum = bnorm_fmaf(sum, s, -0x1.9eaf7ep-2f);
    sum = bnorm_fmaf(sum, s, 0x1.6523p-1f);
    p.n = n;
    p.exp = Sleef_finz_expf1_u10purecfma(alone(exponent));
    p.ratio = sum * inverse;

    /* Relative errors, and that of the last product. */
    const float exp_error = bnorm_fmaf(n, n * -0.5f, -exponent);
    const float inverse_error = bnorm_fmaf(n - (k - d), inverse, bnorm_fmaf(-d, inverse, 1));
    p.low = bnorm_fmaf(p.ratio, exp_error + inverse_error, bnorm_fmaf(sum, inverse, -p.ratio));
    return p;
}

/* v*Phi(v) = max(v, 0) - |v|*Phi(-|v|) */
static float gelu(float v) {
    const struct normal_parts p = normal_parts(v);
    return bnorm_fmaf(p.n, bnorm_fmaf(p.exp, p.ratio, p.exp * p.low), v > 0 ? v : 0);
}

/* Phi(v) + v*exp(-v^2/2)/sqrt(2*pi), for v <= 0; at -v it is 1 less that. */
static float gelu_slope(float v) {
    const struct normal_parts p = normal_parts(v);
    const float factor = bnorm_fmaf(p.n, 0x1.988454p-2f, p.ratio) + p.low;
    return v > 0 ? bnorm_fmaf(-p.exp, factor, 1) : p.exp * factor;
}

/* tanh(log(1 + exp(v))) is numerator/denominator. */
struct mish_parts {
    float numerator, denominator;
};

/* With E = exp(v), ((1 + E)^2 - 1)/((1 + E)^2 + 1), both divided by E^2 where v > 0. */
static struct mish_parts mish_parts(float v, float e) {
    struct mish_parts p;
    if (v > 0) {
        p.numerator = bnorm_fmaf(e, 2, 1);
        p.denominator = bnorm_fmaf(e, 2 * e, p.numerator);
    } else {
        p.numerator = bnorm_fmaf(e, e, 2 * e);
        p.denominator = p.numerator + 2;
    }
    return p;
}

static float mish(float v) {
    const struct mish_parts p = mish_parts(v, exp_minus_abs(v));
    if (v <= EXP_ZERO)
        return 0;
    return at_least(v, EXP_ZERO) * p.numerator / p.denominator;
}

/* t + v*(1 - t^2)*sigmoid(v), t = numerator/denominator */
static float mish_slope(float v) {
    const float size = fabsf(v) >= 104 ? 104 : fabsf(v), e = exp_minus_abs(size);
    const struct mish_parts p = mish_parts(v, e);
    const float scaled_v = v > 0 ? size * e : -size;
    const float second = scaled_v * e * bnorm_fmaf(e, 4, 4);
    const float inverse = 1 / p.denominator;
    return inverse * bnorm_fmaf(inverse, second, p.numerator);
}

/* The activation at v; v itself for kinds that are not of these. */
static float smooth_value(const bnorm_act *act, float v) {
    switch (act->kind) {
    case BNORM_ACT_SIGMOID:
        return sigmoid(v);
    case BNORM_ACT_SILU:
        return silu(v);
    case BNORM_ACT_TANH:
        return Sleef_finz_tanhf1_u35purecfma(
            alone(v >= 9 ? 9 : at_least(v, -9))); /* 1 from there on */
    case BNORM_ACT_GELU:
        return gelu(v);
    case BNORM_ACT_ELU:
        return v > 0 ? v : Sleef_finz_expm1f1_u10purecfma(alone(at_least(v, EXP_ZERO))) * act->a;
    case BNORM_ACT_SOFTPLUS:
        return (v > 0 ? v : 0) + Sleef_finz_log1pf1_u10purecfma(alone(exp_minus_abs(v)));
    case BNORM_ACT_MISH:
        return mish(v);
    default:
        return v;
    }
}

/* Its derivative at v. */
static float smooth_slope(const bnorm_act *act, float v) {
    switch (act->kind) {
    case BNORM_ACT_SIGMOID:
        return sigmoid_slope(v);
    case BNORM_ACT_SILU:
        return silu_slope(v);
    case BNORM_ACT_TANH:
        return tanh_slope(v);
    case BNORM_ACT_GELU:
        return gelu_slope(v);
    case BNORM_ACT_ELU:
        return v > 0 ? 1 : Sleef_finz_expf1_u10purecfma(alone(at_least(v, EXP_ZERO))) * act->a;
    case BNORM_ACT_SOFTPLUS:
        return sigmoid(v);
    case BNORM_ACT_MISH:
        return mish_slope(v);
    default:
        return 1;
    }
}

#endif
