/* SPDX-License-Identifier: MIT
 *
 * The vec_* primitives for AArch64 Advanced SIMD: 4 floats or 2 doubles. See src/kernels/kernels.h
 * for their meaning. */
#define VEC_F 4 /* floats per vector */
#define VEC_D 2 /* doubles per vector */

typedef float32x4_t vec_f;
typedef float64x2_t vec_d;
typedef float32x4_t four_floats;

static inline vec_f vec_load(const float *p) {
    return vld1q_f32(p);
}
/* n <= 4 */
static inline vec_f vec_load_n(const float *p, size_t n) {
    vec_f v = vdupq_n_f32(0);
    if (n >= 4)
        return vld1q_f32(p);
    if (n == 0)
        return v;
    if (n & 2) {
        v = vcombine_f32(vld1_f32(p), vget_low_f32(v));
        return n & 1 ? vld1q_lane_f32(p + 2, v, 2) : v;
    }
    return vld1q_lane_f32(p, v, 0);
}
static inline void vec_store(float *p, vec_f v) {
    vst1q_f32(p, v);
}
static inline void vec_store_n(float *p, vec_f v, size_t n) {
    if (n >= 4) {
        vst1q_f32(p, v);
    } else if (n & 2) {
        vst1_f32(p, vget_low_f32(v));
        if (n & 1)
            vst1q_lane_f32(p + 2, v, 2);
    } else {
        vst1q_lane_f32(p, v, 0);
    }
}
/* Arm cores find streams by themselves and do not read lines that are about to be overwritten. */
static inline void vec_stream(float *p, vec_f v) {
    vst1q_f32(p, v);
}
static inline void vec_fence(void) {}
static inline void vec_prefetch(const float *p) {
    (void)p;
}
static inline void vec_prefetch_out(const float *p) {
    (void)p;
}
static inline vec_f vec_set1(float v) {
    return vdupq_n_f32(v);
}
static inline vec_f vec_repeat(const float *p, size_t n) {
    switch (n) {
    case 4:
        return vld1q_f32(p);
    case 2:
        return vcombine_f32(vld1_f32(p), vld1_f32(p));
    default:
        return vdupq_n_f32(*p);
    }
}
static inline vec_f vec_add(vec_f a, vec_f b) {
    return vaddq_f32(a, b);
}
static inline vec_f vec_sub(vec_f a, vec_f b) {
    return vsubq_f32(a, b);
}
static inline vec_f vec_mul(vec_f a, vec_f b) {
    return vmulq_f32(a, b);
}
static inline vec_f vec_fma(vec_f a, vec_f b, vec_f c) {
    return vfmaq_f32(c, a, b);
}
static inline vec_f vec_if_le(vec_f a, vec_f b, vec_f yes, vec_f no) {
    return vbslq_f32(vcleq_f32(a, b), yes, no);
}
static inline vec_f vec_if_gt(vec_f a, vec_f b, vec_f yes, vec_f no) {
    return vbslq_f32(vcgtq_f32(a, b), yes, no);
}
static inline vec_f vec_zero_if_le(vec_f a, vec_f b, vec_f v) {
    return vreinterpretq_f32_u32(vbicq_u32(vreinterpretq_u32_f32(v), vcleq_f32(a, b)));
}
/* Only the comparison for equality leaves quiet NaN alone. */
static inline vec_f vec_zero_from(vec_f v, vec_f limit, vec_f x) {
    const uint32x4_t reached = vceqq_f32(vmaxq_f32(limit, v), v);
    return vreinterpretq_f32_u32(vbicq_u32(vreinterpretq_u32_f32(x), reached));
}
static inline vec_f vec_zero_unless_gt(vec_f a, vec_f b, vec_f v) {
    return vreinterpretq_f32_u32(vandq_u32(vreinterpretq_u32_f32(v), vcgtq_f32(a, b)));
}
static inline vec_f vec_canonical(vec_f v) {
    return vreinterpretq_f32_u32(vornq_u32(vreinterpretq_u32_f32(v), vceqq_f32(v, v)));
}

/* FMAXNM takes a lone quiet NaN for less than any number and, of two, the first. */
static inline vec_f vec_canonical_result(vec_f v) {
    return vmaxnmq_f32(vreinterpretq_f32_u32(vdupq_n_u32(~0u)), v);
}
static inline vec_f vec_relu(vec_f v) {
    return vec_canonical_result(vmaxq_f32(v, vdupq_n_f32(0)));
}
static inline vec_f vec_clamp(vec_f v, vec_f a, vec_f b) {
    v = vec_if_le(v, a, a, v);
    return vec_canonical_result(vec_if_le(b, v, b, v));
}

/* The first n lanes of v, zeros behind them. */
static inline vec_f vec_first_n(vec_f v, size_t n) {
    static const uint32_t window[8] = {~0u, ~0u, ~0u, ~0u};
    return vreinterpretq_f32_u32(vandq_u32(vreinterpretq_u32_f32(v), vld1q_u32(window + 4 - n)));
}

static inline vec_f vec_div(vec_f a, vec_f b) {
    return vdivq_f32(a, b);
}
static inline vec_f vec_negate(vec_f v) {
    return vnegq_f32(v);
}
static inline vec_f vec_minus_abs(vec_f v) {
    return vnegq_f32(vabsq_f32(v));
}
/* a where it is greater, else b. */
static inline vec_f vec_max(vec_f a, vec_f b) {
    return vbslq_f32(vcgtq_f32(a, b), a, b);
}
static inline vec_f vec_min(vec_f a, vec_f b) {
    return vbslq_f32(vcltq_f32(a, b), a, b);
}
static inline vec_f vec_power_of_2(vec_f v) {
    return vreinterpretq_f32_u32(vandq_u32(vreinterpretq_u32_f32(v), vdupq_n_u32(0x7f800000)));
}
static inline vec_f vec_zero_nan(vec_f v) {
    return vreinterpretq_f32_u32(vandq_u32(vreinterpretq_u32_f32(v), vceqq_f32(v, v)));
}
#define VEC_SLEEF(function, ulp) Sleef_finz_##function##f4_##ulp##advsimd

static inline vec_f vec_load_bf16(const uint16_t *p) {
    return vreinterpretq_f32_u32(vshll_n_u16(vld1_u16(p), 16));
}
/* Rounded in the upper halves; a NaN, all of whose bits are set, would overflow. */
static inline uint16x8_t vec_round_bf16(vec_f v) {
    const uint32x4_t bits = vreinterpretq_u32_f32(v),
                     odd = vandq_u32(vshrq_n_u32(bits, 16), vdupq_n_u32(1)),
                     least = vminq_u32(bits, vdupq_n_u32(0xffff7fff));
    return vreinterpretq_u16_u32(vaddq_u32(vaddq_u32(least, vdupq_n_u32(0x7fff)), odd));
}
static inline void vec_store_bf16(uint16_t *p, vec_f v) {
    vst1_u16(p, vshrn_n_u32(vreinterpretq_u32_u16(vec_round_bf16(v)), 16));
}
static inline void vec_store_bf16_2(uint16_t *p, vec_f a, vec_f b) {
    vst1q_u16(p, vuzp2q_u16(vec_round_bf16(a), vec_round_bf16(b)));
}
static inline vec_f vec_load_f16(const uint16_t *p) {
    return vcvt_f32_f16(vreinterpret_f16_u16(vld1_u16(p)));
}
static inline void vec_store_f16(uint16_t *p, vec_f v) {
    vst1_u16(p, vreinterpret_u16_f16(vcvt_f16_f32(v)));
}
static inline void vec_stream_bf16_2(uint16_t *p, vec_f a, vec_f b) {
    vec_store_bf16_2(p, a, b);
}
static inline void vec_stream_f16_2(uint16_t *p, vec_f a, vec_f b) {
    vec_store_f16(p, a);
    vec_store_f16(p + VEC_F, b);
}
/* 4 bytes. */
static inline uint8x8_t vec_load_8(const uint8_t *p) {
    uint32_t bytes;
    memcpy(&bytes, p, sizeof bytes);
    return vreinterpret_u8_u32(vdup_n_u32(bytes));
}
static inline vec_f vec_load_s8(const uint8_t *p) {
    return vcvtq_f32_s32(vmovl_s16(vget_low_s16(vmovl_s8(vreinterpret_s8_u8(vec_load_8(p))))));
}
static inline vec_f vec_load_u8(const uint8_t *p) {
    return vcvtq_f32_u32(vmovl_u16(vget_low_u16(vmovl_u8(vec_load_8(p)))));
}
static inline uint8x8_t vec_whole_8(vec_f a, vec_f b, int zero_point, int is_signed) {
    const int16x8_t words =
                        vcombine_s16(vqmovn_s32(vcvtnq_s32_f32(a)), vqmovn_s32(vcvtnq_s32_f32(b))),
                    whole = vqaddq_s16(words, vdupq_n_s16((short)zero_point));
    return is_signed ? vreinterpret_u8_s8(vqmovn_s16(whole)) : vqmovun_s16(whole);
}
static inline void vec_store_8(uint8_t *p, vec_f v, int zero_point, int is_signed) {
    const uint8x8_t whole = vec_whole_8(v, v, zero_point, is_signed);
    const uint32_t bytes = vget_lane_u32(vreinterpret_u32_u8(whole), 0);
    memcpy(p, &bytes, sizeof bytes);
}
static inline void vec_store_8_4(uint8_t *p, const vec_f *v, int zero_point, int is_signed) {
    vst1q_u8(p, vcombine_u8(vec_whole_8(v[0], v[1], zero_point, is_signed),
                            vec_whole_8(v[2], v[3], zero_point, is_signed)));
}
static inline vec_f vec_from_bits(unsigned bits) {
    const uint32_t places[4] = {1, 2, 4, 8};
    const uint32x4_t set = vtstq_u32(vdupq_n_u32(bits), vld1q_u32(places));
    return vreinterpretq_f32_u32(vandq_u32(set, vreinterpretq_u32_f32(vdupq_n_f32(1))));
}
static inline unsigned vec_bits_gt(vec_f a, vec_f b) {
    const uint32_t places[4] = {1, 2, 4, 8};
    return vaddvq_u32(vandq_u32(vcgtq_f32(a, b), vld1q_u32(places)));
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
static inline void vec_fold_fours(float *to_a, float *to_b, vec_f a, vec_f b) {
    vec_store(to_a, a);
    vec_store(to_b, b);
}
static inline four_floats vec_four(const void *p) {
    return vld1q_f32(p);
}
static inline four_floats vec_four_bf16(const void *p) {
    return vec_load_bf16(p);
}
static inline four_floats vec_four_f16(const void *p) {
    return vec_load_f16(p);
}
static inline void vec_load_fours(const float *p, vec_f v[4]) {
    const float32x4x4_t fours = vld4q_f32(p);
    for (int i = 0; i < 4; i++)
        v[i] = fours.val[i];
}
/* double -> float, rounded: VEC_D floats to memory. */
static inline void vec_narrow_store(float *p, vec_d v) {
    vst1_f32(p, vcvt_f32_f64(v));
}
static inline void vec_narrow_store_n(float *p, vec_d v, size_t n) {
    if (n >= 2)
        vst1_f32(p, vcvt_f32_f64(v));
    else
        vst1_lane_f32(p, vcvt_f32_f64(v), 0);
}
/* Rounded to floats, and back. */
static inline vec_d vec_round_d(vec_d v) {
    return vcvt_f64_f32(vcvt_f32_f64(v));
}
static inline void vec_zeroupper(void) {}
