/* SPDX-License-Identifier: MIT
 *
 * What vec.h needs of 32-bit Arm: ARMv7-A with Advanced SIMD and VFPv4, or AArch32. Doubles are not
 * Advanced SIMD's there, but the VFP's. The VFP obeys FPSCR; Advanced SIMD takes denormal floats for
 * zero, rounds to nearest and answers every NaN with its own, whatever FPSCR says. */
typedef struct vec_d {
    double a, b;
} vec_d;

/* The elements of odd numbers, of a and then of b. */
static inline uint16x8_t neon_odd(uint16x8_t a, uint16x8_t b) {
    return vuzpq_u16(a, b).val[1];
}
/* Rounded to nearest, for magnitudes of at most 2^22: there is no conversion that rounds. */
static inline int32x4_t neon_whole(vec_f v) {
    const vec_f shift = vdupq_n_f32(0x1.8p23f);
    return vsubq_s32(vreinterpretq_s32_f32(vaddq_f32(v, shift)), vreinterpretq_s32_f32(shift));
}
static inline uint32_t neon_sum(uint32x4_t v) {
    const uint32x2_t pairs = vpadd_u32(vget_low_u32(v), vget_high_u32(v));
    return vget_lane_u32(vpadd_u32(pairs, pairs), 0);
}

static inline vec_f vec_canonical(vec_f v) {
    return vreinterpretq_f32_u32(vornq_u32(vreinterpretq_u32_f32(v), vceqq_f32(v, v)));
}
static inline vec_f vec_canonical_result(vec_f v) {
    return vec_canonical(v);
}
/* The first n lanes of v, zeros behind them. gcc 12 takes the middle of an array for aligned to 8 bytes
 * where it knows n, which ends in a fault: so none is read here. */
static inline vec_f vec_first_n(vec_f v, size_t n) {
    static const uint32_t lanes[4] = {0, 1, 2, 3};
    const uint32x4_t first = vcltq_u32(vld1q_u32(lanes), vdupq_n_u32((uint32_t)n));
    return vreinterpretq_f32_u32(vandq_u32(vreinterpretq_u32_f32(v), first));
}
/* Four divisions of the VFP. */
static inline vec_f vec_div(vec_f a, vec_f b) {
    return a / b;
}
#define VEC_SLEEF(function, ulp) Sleef_finz_##function##f4_##ulp##neonvfpv4
/* The intrinsics want a type for half precision, which gcc has under a flag only. */
static inline vec_f vec_load_f16(const uint16_t *p) {
    vec_f v;
    __asm__("vcvt.f32.f16 %q0, %P1" : "=w"(v) : "w"(vld1_u16(p)));
    return v;
}
static inline void vec_store_f16(uint16_t *p, vec_f v) {
    uint16x4_t half;
    __asm__("vcvt.f16.f32 %P0, %q1" : "=w"(half) : "w"(v));
    vst1_u16(p, vorn_u16(half, vmovn_u32(vceqq_f32(v, v))));
}

static inline vec_d vec_load_d(const double *p) {
    return (vec_d){p[0], p[1]};
}
/* 1 <= n <= 2 */
static inline vec_d vec_load_d_n(const double *p, size_t n) {
    return (vec_d){p[0], n >= 2 ? p[1] : 0};
}
static inline void vec_store_d(double *p, vec_d v) {
    p[0] = v.a;
    p[1] = v.b;
}
static inline void vec_store_d_n(double *p, vec_d v, size_t n) {
    p[0] = v.a;
    if (n >= 2)
        p[1] = v.b;
}
static inline vec_d vec_set1_d(double v) {
    return (vec_d){v, v};
}
static inline vec_d vec_add_d(vec_d a, vec_d b) {
    return (vec_d){a.a + b.a, a.b + b.b};
}
static inline vec_d vec_sub_d(vec_d a, vec_d b) {
    return (vec_d){a.a - b.a, a.b - b.b};
}
static inline vec_d vec_mul_d(vec_d a, vec_d b) {
    return (vec_d){a.a * b.a, a.b * b.b};
}
static inline vec_d vec_div_d(vec_d a, vec_d b) {
    return (vec_d){a.a / b.a, a.b / b.b};
}
static inline vec_d vec_sqrt_d(vec_d v) {
    return (vec_d){sqrt(v.a), sqrt(v.b)};
}
static inline vec_d vec_fma_d(vec_d a, vec_d b, vec_d c) {
    return (vec_d){__builtin_fma(a.a, b.a, c.a), __builtin_fma(a.b, b.b, c.b)};
}
static inline vec_d vec_if_eq_d(vec_d a, vec_d b, vec_d yes, vec_d no) {
    return (vec_d){a.a == b.a ? yes.a : no.a, a.b == b.b ? yes.b : no.b};
}
static inline vec_d vec_if_lt_d(vec_d a, vec_d b, vec_d yes, vec_d no) {
    return (vec_d){a.a < b.a ? yes.a : no.a, a.b < b.b ? yes.b : no.b};
}
static inline vec_d vec_canonical_d(vec_d v) {
    const uint64_t bits = ~UINT64_C(0);
    double nan;
    memcpy(&nan, &bits, sizeof nan);
    return vec_if_eq_d(v, v, v, vec_set1_d(nan));
}
/* Lanes of v outside [low, high], NaN included, one bit each. */
static inline unsigned vec_outside_d(vec_d v, double low, double high) {
    const unsigned in_a = v.a >= low && v.a <= high, in_b = v.b >= low && v.b <= high;
    return (in_a | in_b << 1) ^ 3;
}

/* float -> double: from memory, and the lower and upper half of a vector. */
static inline vec_d vec_widen(const float *p) {
    return (vec_d){(double)p[0], (double)p[1]};
}
static inline vec_d vec_widen_n(const float *p, size_t n) {
    return (vec_d){(double)p[0], n >= 2 ? (double)p[1] : 0};
}
static inline vec_d vec_low(vec_f v) {
    return (vec_d){(double)vgetq_lane_f32(v, 0), (double)vgetq_lane_f32(v, 1)};
}
static inline vec_d vec_high(vec_f v) {
    return (vec_d){(double)vgetq_lane_f32(v, 2), (double)vgetq_lane_f32(v, 3)};
}
/* double -> float, rounded and canonical: VEC_D floats to memory. */
static inline void vec_narrow_store(float *p, vec_d v) {
    v = vec_canonical_d(v);
    p[0] = (float)v.a;
    p[1] = (float)v.b;
}
static inline void vec_narrow_store_n(float *p, vec_d v, size_t n) {
    v = vec_canonical_d(v);
    p[0] = (float)v.a;
    if (n >= 2)
        p[1] = (float)v.b;
}
/* Rounded to floats, and back. */
static inline vec_d vec_round_d(vec_d v) {
    return (vec_d){(double)(float)v.a, (double)(float)v.b};
}
