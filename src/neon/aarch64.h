/* SPDX-License-Identifier: MIT
 *
 * What vec.h needs of AArch64. */
typedef float64x2_t vec_d;

static inline uint16x8_t neon_odd(uint16x8_t a, uint16x8_t b) {
    return vuzp2q_u16(a, b);
}
static inline int32x4_t neon_whole(vec_f v) {
    return vcvtnq_s32_f32(v);
}
static inline uint32_t neon_sum(uint32x4_t v) {
    return vaddvq_u32(v);
}

static inline vec_f vec_canonical(vec_f v) {
    return vreinterpretq_f32_u32(vornq_u32(vreinterpretq_u32_f32(v), vceqq_f32(v, v)));
}
/* FMAXNM takes a lone quiet NaN for less than any number and, of two, the first. Not the intrinsic: clang
 * takes its result for v, as which of two NaNs it is does not matter to a compiler. */
static inline vec_f vec_canonical_result(vec_f v) {
    const vec_f nan = vreinterpretq_f32_u32(vdupq_n_u32(~0u));
    __asm__("fmaxnm %0.4s, %1.4s, %2.4s" : "=w"(v) : "w"(nan), "w"(v));
    return v;
}
/* The first n lanes of v, zeros behind them. */
static inline vec_f vec_first_n(vec_f v, size_t n) {
    static const uint32_t window[8] = {~0u, ~0u, ~0u, ~0u};
    return vreinterpretq_f32_u32(vandq_u32(vreinterpretq_u32_f32(v), vld1q_u32(window + 4 - n)));
}
static inline vec_f vec_div(vec_f a, vec_f b) {
    return vdivq_f32(a, b);
}
#define VEC_SLEEF(function, ulp) Sleef_finz_##function##f4_##ulp##advsimd
static inline vec_f vec_load_f16(const uint16_t *p) {
    return vcvt_f32_f16(vreinterpret_f16_u16(vld1_u16(p)));
}
static inline void vec_store_f16(uint16_t *p, vec_f v) {
    vst1_u16(p, vreinterpret_u16_f16(vcvt_f16_f32(v)));
}

static inline vec_d vec_load_d(const double *p) {
    return vld1q_f64(p);
}
/* 1 <= n <= 2 */
static inline vec_d vec_load_d_n(const double *p, size_t n) {
    return n >= 2 ? vld1q_f64(p) : vcombine_f64(vld1_f64(p), vdup_n_f64(0));
}
static inline void vec_store_d(double *p, vec_d v) {
    vst1q_f64(p, v);
}
static inline void vec_store_d_n(double *p, vec_d v, size_t n) {
    if (n >= 2)
        vst1q_f64(p, v);
    else
        vst1q_lane_f64(p, v, 0);
}
static inline vec_d vec_set1_d(double v) {
    return vdupq_n_f64(v);
}
static inline vec_d vec_add_d(vec_d a, vec_d b) {
    return vaddq_f64(a, b);
}
static inline vec_d vec_sub_d(vec_d a, vec_d b) {
    return vsubq_f64(a, b);
}
static inline vec_d vec_mul_d(vec_d a, vec_d b) {
    return vmulq_f64(a, b);
}
static inline vec_d vec_div_d(vec_d a, vec_d b) {
    return vdivq_f64(a, b);
}
static inline vec_d vec_sqrt_d(vec_d v) {
    return vsqrtq_f64(v);
}
static inline vec_d vec_fma_d(vec_d a, vec_d b, vec_d c) {
    return vfmaq_f64(c, a, b);
}
static inline vec_d vec_if_eq_d(vec_d a, vec_d b, vec_d yes, vec_d no) {
    return vbslq_f64(vceqq_f64(a, b), yes, no);
}
static inline vec_d vec_if_lt_d(vec_d a, vec_d b, vec_d yes, vec_d no) {
    return vbslq_f64(vcltq_f64(a, b), yes, no);
}
static inline vec_d vec_canonical_d(vec_d v) {
    return vreinterpretq_f64_u64(vornq_u64(vreinterpretq_u64_f64(v), vceqq_f64(v, v)));
}
/* Lanes of v outside [low, high], NaN included, one bit each. */
static inline unsigned vec_outside_d(vec_d v, double low, double high) {
    const uint64x2_t inside =
        vandq_u64(vcgeq_f64(v, vdupq_n_f64(low)), vcleq_f64(v, vdupq_n_f64(high)));
    return (unsigned)(~vgetq_lane_u64(inside, 0) & 1) | (unsigned)(~vgetq_lane_u64(inside, 1) & 2);
}

/* float -> double: from memory, and the lower and upper half of a vector. */
static inline vec_d vec_widen(const float *p) {
    return vcvt_f64_f32(vld1_f32(p));
}
static inline vec_d vec_widen_n(const float *p, size_t n) {
    return vcvt_f64_f32(n >= 2 ? vld1_f32(p) : vld1_lane_f32(p, vdup_n_f32(0), 0));
}
static inline vec_d vec_low(vec_f v) {
    return vcvt_f64_f32(vget_low_f32(v));
}
static inline vec_d vec_high(vec_f v) {
    return vcvt_high_f64_f32(v);
}
/* double -> float, rounded and canonical: VEC_D floats to memory. */
static inline void vec_narrow_store(float *p, vec_d v) {
    vst1_f32(p, vcvt_f32_f64(vec_canonical_d(v)));
}
static inline void vec_narrow_store_n(float *p, vec_d v, size_t n) {
    const float32x2_t floats = vcvt_f32_f64(vec_canonical_d(v));
    if (n >= 2)
        vst1_f32(p, floats);
    else
        vst1_lane_f32(p, floats, 0);
}
/* Rounded to floats, and back. */
static inline vec_d vec_round_d(vec_d v) {
    return vcvt_f64_f32(vcvt_f32_f64(v));
}
