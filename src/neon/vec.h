/* SPDX-License-Identifier: MIT
 *
 * The vec_* primitives for Advanced SIMD: 4 floats or 2 doubles. See src/kernels/kernels.h for their
 * meaning. What 32-bit Arm does another way is in armv7.h, and the same for AArch64 in aarch64.h:
 * doubles, division, half precision, and three steps of what is here. */
#define VEC_F 4 /* floats per vector */
#define VEC_D 2 /* doubles per vector */

typedef float32x4_t vec_f;
typedef float32x4_t four_floats;

#if defined(__aarch64__)
#include "aarch64.h"
#else
#include "armv7.h"
#endif

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
static inline vec_f vec_keep(vec_f v) {
    return v;
}
static inline vec_f vec_sub_times(vec_f a, vec_f one, vec_f b) {
    (void)one;
    return vec_sub(a, b);
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
enum { VEC_TESTS_NAN = 0 };
static inline int vec_are_numbers(const vec_f *v, size_t n) {
    (void)v, (void)n;
    return 0;
}
static inline vec_f vec_relu(vec_f v) {
    return vec_canonical_result(vmaxq_f32(v, vdupq_n_f32(0)));
}
static inline vec_f vec_clamp(vec_f v, vec_f a, vec_f b) {
    v = vec_if_le(v, a, a, v);
    return vec_canonical_result(vec_if_le(b, v, b, v));
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
    vst1q_u16(p, neon_odd(vec_round_bf16(a), vec_round_bf16(b)));
}
static inline void vec_stream_bf16_2(uint16_t *p, vec_f a, vec_f b) {
    vec_store_bf16_2(p, a, b);
}
static inline void vec_apart(vec_f v[2], vec_f a, vec_f b) {
    const float32x4x2_t both = vuzpq_f32(a, b);
    v[0] = both.val[0];
    v[1] = both.val[1];
}
static inline void vec_load_bf16_apart(vec_f v[2], const uint16_t *p) {
    const uint32x4_t h = vreinterpretq_u32_u16(vld1q_u16(p));
    v[0] = vreinterpretq_f32_u32(vshlq_n_u32(h, 16));
    v[1] = vreinterpretq_f32_u32(vandq_u32(h, vdupq_n_u32(0xffff0000)));
}
static inline void vec_store_bf16_apart(uint16_t *p, vec_f even, vec_f odd) {
    const uint32x4_t h = vsriq_n_u32(vreinterpretq_u32_u16(vec_round_bf16(odd)),
                                     vreinterpretq_u32_u16(vec_round_bf16(even)), 16);
    vst1q_u16(p, vreinterpretq_u16_u32(h));
}
static inline void vec_stream_bf16_apart(uint16_t *p, vec_f even, vec_f odd) {
    vec_store_bf16_apart(p, even, odd);
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
    const int16x8_t words = vcombine_s16(vqmovn_s32(neon_whole(a)), vqmovn_s32(neon_whole(b))),
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
static inline vec_f vec_if_bits(unsigned bits, vec_f v) {
    const uint32_t places[4] = {1, 2, 4, 8};
    const uint32x4_t set = vtstq_u32(vdupq_n_u32(bits), vld1q_u32(places));
    return vreinterpretq_f32_u32(vandq_u32(set, vreinterpretq_u32_f32(v)));
}
static inline unsigned vec_bits_gt(vec_f a, vec_f b) {
    const uint32_t places[4] = {1, 2, 4, 8};
    return neon_sum(vandq_u32(vcgtq_f32(a, b), vld1q_u32(places)));
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
static inline void vec_zeroupper(void) {}
