/* SPDX-License-Identifier: MIT
 *
 * The vec_* primitives for AVX-512 (F, BW, DQ, VL): 16 floats or 8 doubles. See
 * src/kernels/kernels.h for their meaning. */
#define VEC_F 16 /* floats per vector */
#define VEC_D 8  /* doubles per vector */

typedef __m512 vec_f;
typedef __m512d vec_d;
typedef __m128 four_floats;

static inline __mmask16 vec_mask_f(size_t n) {
    return (__mmask16)((1u << n) - 1);
}
static inline __mmask8 vec_mask_d(size_t n) {
    return (__mmask8)((1u << n) - 1);
}

static inline vec_f vec_load(const float *p) {
    return _mm512_loadu_ps(p);
}
static inline vec_f vec_load_n(const float *p, size_t n) {
    return _mm512_maskz_loadu_ps(vec_mask_f(n), p);
}
static inline void vec_store(float *p, vec_f v) {
    _mm512_storeu_ps(p, v);
}
static inline void vec_store_n(float *p, vec_f v, size_t n) {
    _mm512_mask_storeu_ps(p, vec_mask_f(n), v);
}
static inline void vec_stream(float *p, vec_f v) {
    _mm512_stream_ps(p, v);
}
static inline void vec_fence(void) {
    _mm_sfence();
}
static inline void vec_prefetch(const float *p) {
    __builtin_prefetch(p, 0, 3);
}
static inline void vec_prefetch_out(const float *p) {
    __builtin_prefetch(p, 1, 3);
}
static inline vec_f vec_set1(float v) {
    return _mm512_set1_ps(v);
}
static inline vec_f vec_repeat(const float *p, size_t n) {
    const __m512i lanes = _mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
    return _mm512_permutexvar_ps(_mm512_and_si512(lanes, _mm512_set1_epi32((int)n - 1)),
                                 vec_load_n(p, n));
}
static inline vec_f vec_add(vec_f a, vec_f b) {
    return _mm512_add_ps(a, b);
}
static inline vec_f vec_keep(vec_f v) {
    __asm__("" : "+v"(v));
    return v;
}
static inline vec_f vec_sub_times(vec_f a, vec_f one, vec_f b) {
    return _mm512_fmsub_ps(a, one, b);
}
static inline vec_f vec_sub(vec_f a, vec_f b) {
    return _mm512_sub_ps(a, b);
}
static inline vec_f vec_mul(vec_f a, vec_f b) {
    return _mm512_mul_ps(a, b);
}
static inline vec_f vec_fma(vec_f a, vec_f b, vec_f c) {
    return _mm512_fmadd_ps(a, b, c);
}
static inline vec_f vec_if_le(vec_f a, vec_f b, vec_f yes, vec_f no) {
    return _mm512_mask_blend_ps(_mm512_cmp_ps_mask(a, b, _CMP_LE_OQ), no, yes);
}
static inline vec_f vec_if_gt(vec_f a, vec_f b, vec_f yes, vec_f no) {
    return _mm512_mask_blend_ps(_mm512_cmp_ps_mask(a, b, _CMP_GT_OQ), no, yes);
}
static inline vec_f vec_zero_if_le(vec_f a, vec_f b, vec_f v) {
    return _mm512_maskz_mov_ps(_mm512_cmp_ps_mask(a, b, _CMP_NLE_UQ), v);
}
static inline vec_f vec_zero_from(vec_f v, vec_f limit, vec_f x) {
    return _mm512_maskz_mov_ps(_mm512_cmp_ps_mask(limit, v, _CMP_NLE_UQ), x);
}
static inline vec_f vec_zero_unless_gt(vec_f a, vec_f b, vec_f v) {
    return _mm512_maskz_mov_ps(_mm512_cmp_ps_mask(a, b, _CMP_GT_OQ), v);
}
/* What vfixupimm makes of each kind of number, 4 bits each: NaNs become `nan`, others stay (1); for
 * the second table zeros and what is below become +0 (8). */
static inline vec_f vec_fixup(vec_f v, int table) {
    const vec_f nan = _mm512_castsi512_ps(_mm512_set1_epi32(-1));
    return _mm512_fixupimm_ps(nan, v, _mm512_set1_epi32(table), 0);
}
static inline vec_f vec_canonical(vec_f v) {
    return vec_fixup(v, 0x11111100);
}
static inline vec_f vec_canonical_result(vec_f v) {
    return vec_canonical(v);
}
enum { VEC_TESTS_NAN = 0 };
static inline int vec_are_numbers(const vec_f *v, size_t n) {
    (void)v, (void)n;
    return 0;
}
static inline vec_f vec_relu(vec_f v) {
    return vec_fixup(v, 0x18181800);
}
static inline vec_f vec_clamp(vec_f v, vec_f a, vec_f b) {
    const vec_f nan = _mm512_castsi512_ps(_mm512_set1_epi32(-1));
    return _mm512_mask_mov_ps(_mm512_min_ps(_mm512_max_ps(v, a), b),
                              _mm512_cmp_ps_mask(v, v, _CMP_UNORD_Q), nan);
}

/* The first n lanes of v, zeros behind them. */
static inline vec_f vec_first_n(vec_f v, size_t n) {
    return _mm512_maskz_mov_ps(vec_mask_f(n), v);
}

static inline vec_f vec_div(vec_f a, vec_f b) {
    return _mm512_div_ps(a, b);
}
static inline vec_f vec_negate(vec_f v) {
    return _mm512_xor_ps(v, _mm512_set1_ps(-0.0f));
}
static inline vec_f vec_minus_abs(vec_f v) {
    return _mm512_or_ps(v, _mm512_set1_ps(-0.0f));
}
/* a where it is greater, else b. */
static inline vec_f vec_max(vec_f a, vec_f b) {
    return _mm512_max_ps(a, b);
}
static inline vec_f vec_min(vec_f a, vec_f b) {
    return _mm512_min_ps(a, b);
}
static inline vec_f vec_power_of_2(vec_f v) {
    return _mm512_and_ps(v, _mm512_castsi512_ps(_mm512_set1_epi32(0x7f800000)));
}
static inline vec_f vec_zero_nan(vec_f v) {
    return _mm512_maskz_mov_ps(_mm512_cmp_ps_mask(v, v, _CMP_ORD_Q), v);
}
#define VEC_SLEEF(function, ulp) Sleef_finz_##function##f16_##ulp##avx512f

static inline vec_f vec_load_bf16(const uint16_t *p) {
    const __m256i h = _mm256_loadu_si256((const __m256i *)(const void *)p);
    return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(h), 16));
}
/* Rounded in the upper halves; a NaN, all of whose bits are set, would overflow. */
static inline __m512i vec_round_bf16(vec_f v) {
    const __m512i bits = _mm512_castps_si512(v),
                  odd = _mm512_and_si512(_mm512_srli_epi32(bits, 16), _mm512_set1_epi32(1)),
                  least = _mm512_min_epu32(bits, _mm512_set1_epi32(-0x8001));
    return _mm512_add_epi32(_mm512_add_epi32(least, _mm512_set1_epi32(0x7fff)), odd);
}
static inline void vec_store_bf16(uint16_t *p, vec_f v) {
    _mm256_storeu_si256((__m256i *)(void *)p,
                        _mm512_cvtepi32_epi16(_mm512_srli_epi32(vec_round_bf16(v), 16)));
}
static inline __m512i vec_pair_bf16(vec_f a, vec_f b) {
    static const uint16_t upper[32] = {1,  3,  5,  7,  9,  11, 13, 15, 17, 19, 21,
                                       23, 25, 27, 29, 31, 33, 35, 37, 39, 41, 43,
                                       45, 47, 49, 51, 53, 55, 57, 59, 61, 63};
    return _mm512_permutex2var_epi16(vec_round_bf16(a), _mm512_loadu_si512(upper),
                                     vec_round_bf16(b));
}
static inline void vec_store_bf16_2(uint16_t *p, vec_f a, vec_f b) {
    _mm512_storeu_si512(p, vec_pair_bf16(a, b));
}
static inline void vec_stream_bf16_2(uint16_t *p, vec_f a, vec_f b) {
    _mm512_stream_si512((__m512i *)(void *)p, vec_pair_bf16(a, b));
}
static inline void vec_apart(vec_f v[2], vec_f a, vec_f b) {
    const __m512i even =
        _mm512_setr_epi32(0, 2, 4, 6, 8, 10, 12, 14, 16, 18, 20, 22, 24, 26, 28, 30);
    v[0] = _mm512_permutex2var_ps(a, even, b);
    v[1] = _mm512_permutex2var_ps(a, _mm512_add_epi32(even, _mm512_set1_epi32(1)), b);
}
static inline void vec_load_bf16_apart(vec_f v[2], const uint16_t *p) {
    const __m512i h = _mm512_loadu_si512(p);
    v[0] = _mm512_castsi512_ps(_mm512_slli_epi32(h, 16));
    v[1] = _mm512_castsi512_ps(_mm512_and_si512(h, _mm512_set1_epi32(-0x10000)));
}
static inline __m512i vec_join_bf16(vec_f even, vec_f odd) {
    return _mm512_mask_blend_epi16(0xaaaaaaaa, _mm512_srli_epi32(vec_round_bf16(even), 16),
                                   vec_round_bf16(odd));
}
static inline void vec_store_bf16_apart(uint16_t *p, vec_f even, vec_f odd) {
    _mm512_storeu_si512(p, vec_join_bf16(even, odd));
}
static inline void vec_stream_bf16_apart(uint16_t *p, vec_f even, vec_f odd) {
    _mm512_stream_si512((__m512i *)(void *)p, vec_join_bf16(even, odd));
}
static inline vec_f vec_load_f16(const uint16_t *p) {
    return _mm512_cvtph_ps(_mm256_loadu_si256((const __m256i *)(const void *)p));
}
static inline __m256i vec_round_f16(vec_f v) {
    return _mm512_cvtps_ph(v, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
}
static inline void vec_store_f16(uint16_t *p, vec_f v) {
    _mm256_storeu_si256((__m256i *)(void *)p, vec_round_f16(v));
}
static inline void vec_stream_f16_2(uint16_t *p, vec_f a, vec_f b) {
    const __m512i low = _mm512_castsi256_si512(vec_round_f16(a));
    _mm512_stream_si512((__m512i *)(void *)p, _mm512_inserti64x4(low, vec_round_f16(b), 1));
}
static inline vec_f vec_load_s8(const uint8_t *p) {
    return _mm512_cvtepi32_ps(
        _mm512_cvtepi8_epi32(_mm_loadu_si128((const __m128i *)(const void *)p)));
}
static inline vec_f vec_load_u8(const uint8_t *p) {
    return _mm512_cvtepi32_ps(
        _mm512_cvtepu8_epi32(_mm_loadu_si128((const __m128i *)(const void *)p)));
}
static inline void vec_store_8(uint8_t *p, vec_f v, int zero_point, int is_signed) {
    const __m512i whole = _mm512_add_epi32(_mm512_cvtps_epi32(v), _mm512_set1_epi32(zero_point));
    _mm_storeu_si128((__m128i *)(void *)p,
                     is_signed
                         ? _mm512_cvtsepi32_epi8(whole)
                         : _mm512_cvtusepi32_epi8(_mm512_max_epi32(whole, _mm512_setzero_si512())));
}
static inline void vec_store_8_4(uint8_t *p, const vec_f *v, int zero_point, int is_signed) {
    for (int q = 0; q < 4; q++)
        vec_store_8(p + 16 * q, v[q], zero_point, is_signed);
}
static inline vec_f vec_if_bits(unsigned bits, vec_f v) {
    return _mm512_maskz_mov_ps((__mmask16)bits, v);
}
static inline unsigned vec_bits_gt(vec_f a, vec_f b) {
    return _mm512_cmp_ps_mask(a, b, _CMP_GT_OQ);
}

static inline vec_d vec_load_d(const double *p) {
    return _mm512_loadu_pd(p);
}
static inline vec_d vec_load_d_n(const double *p, size_t n) {
    return _mm512_maskz_loadu_pd(vec_mask_d(n), p);
}
static inline void vec_store_d(double *p, vec_d v) {
    _mm512_storeu_pd(p, v);
}
static inline void vec_store_d_n(double *p, vec_d v, size_t n) {
    _mm512_mask_storeu_pd(p, vec_mask_d(n), v);
}
static inline vec_d vec_set1_d(double v) {
    return _mm512_set1_pd(v);
}
static inline vec_d vec_add_d(vec_d a, vec_d b) {
    return _mm512_add_pd(a, b);
}
static inline vec_d vec_sub_d(vec_d a, vec_d b) {
    return _mm512_sub_pd(a, b);
}
static inline vec_d vec_mul_d(vec_d a, vec_d b) {
    return _mm512_mul_pd(a, b);
}
static inline vec_d vec_div_d(vec_d a, vec_d b) {
    return _mm512_div_pd(a, b);
}
static inline vec_d vec_sqrt_d(vec_d v) {
    return _mm512_sqrt_pd(v);
}
static inline vec_d vec_fma_d(vec_d a, vec_d b, vec_d c) {
    return _mm512_fmadd_pd(a, b, c);
}
static inline vec_d vec_if_eq_d(vec_d a, vec_d b, vec_d yes, vec_d no) {
    return _mm512_mask_blend_pd(_mm512_cmp_pd_mask(a, b, _CMP_EQ_OQ), no, yes);
}
static inline vec_d vec_if_lt_d(vec_d a, vec_d b, vec_d yes, vec_d no) {
    return _mm512_mask_blend_pd(_mm512_cmp_pd_mask(a, b, _CMP_LT_OQ), no, yes);
}
static inline vec_d vec_canonical_d(vec_d v) {
    const vec_d nan = _mm512_castsi512_pd(_mm512_set1_epi32(-1));
    return _mm512_mask_mov_pd(v, _mm512_cmp_pd_mask(v, v, _CMP_UNORD_Q), nan);
}
/* Lanes of v outside [low, high], NaN included, one bit each. */
static inline unsigned vec_outside_d(vec_d v, double low, double high) {
    return (unsigned)(_mm512_cmp_pd_mask(v, vec_set1_d(low), _CMP_NGE_UQ) |
                      _mm512_cmp_pd_mask(v, vec_set1_d(high), _CMP_NLE_UQ));
}

/* float -> double: from memory, and the lower and upper half of a vector. */
static inline vec_d vec_widen(const float *p) {
    return _mm512_cvtps_pd(_mm256_loadu_ps(p));
}
static inline vec_d vec_widen_n(const float *p, size_t n) {
    return _mm512_cvtps_pd(_mm256_maskz_loadu_ps(vec_mask_d(n), p));
}
static inline vec_d vec_low(vec_f v) {
    return _mm512_cvtps_pd(_mm512_castps512_ps256(v));
}
static inline vec_d vec_high(vec_f v) {
    return _mm512_cvtps_pd(_mm512_extractf32x8_ps(v, 1));
}
static inline void vec_fold_fours(float *to_a, float *to_b, vec_f a, vec_f b) {
    /* 8 lanes of a, 8 of b; then 4 of each. */
    const vec_f eight = _mm512_add_ps(_mm512_shuffle_f32x4(a, b, 0x44),
                                      _mm512_shuffle_f32x4(a, b, 0xee)),
                even = _mm512_shuffle_f32x4(eight, eight, 0x08),
                odd = _mm512_shuffle_f32x4(eight, eight, 0x0d);
    const __m256 fours = _mm256_add_ps(_mm512_castps512_ps256(even), _mm512_castps512_ps256(odd));
    _mm_store_ps(to_a, _mm256_castps256_ps128(fours));
    _mm_store_ps(to_b, _mm256_extractf128_ps(fours, 1));
}
static inline four_floats vec_four(const void *p) {
    return _mm_loadu_ps(p);
}
static inline four_floats vec_four_bf16(const void *p) {
    return _mm_castsi128_ps(_mm_slli_epi32(_mm_cvtepu16_epi32(_mm_loadl_epi64(p)), 16));
}
static inline four_floats vec_four_f16(const void *p) {
    return _mm_cvtph_ps(_mm_loadl_epi64(p));
}
static inline void vec_load_fours(const float *p, vec_f v[4]) {
    const __m512i every_fourth =
                      _mm512_setr_epi32(0, 4, 8, 12, 16, 20, 24, 28, 1, 5, 9, 13, 17, 21, 25, 29),
                  third = _mm512_add_epi32(every_fourth, _mm512_set1_epi32(2));
    const vec_f a = vec_load(p), b = vec_load(p + 16), c = vec_load(p + 32), d = vec_load(p + 48);
    /* The first and second of 8 fours; their third and last. */
    const vec_f low = _mm512_permutex2var_ps(a, every_fourth, b),
                high = _mm512_permutex2var_ps(c, every_fourth, d),
                low_3 = _mm512_permutex2var_ps(a, third, b),
                high_3 = _mm512_permutex2var_ps(c, third, d);
    v[0] = _mm512_shuffle_f32x4(low, high, 0x44);
    v[1] = _mm512_shuffle_f32x4(low, high, 0xee);
    v[2] = _mm512_shuffle_f32x4(low_3, high_3, 0x44);
    v[3] = _mm512_shuffle_f32x4(low_3, high_3, 0xee);
}
/* double -> float, rounded and canonical: VEC_D floats to memory. */
static inline void vec_narrow_store(float *p, vec_d v) {
    _mm256_storeu_ps(p, _mm512_cvtpd_ps(vec_canonical_d(v)));
}
static inline void vec_narrow_store_n(float *p, vec_d v, size_t n) {
    _mm256_mask_storeu_ps(p, vec_mask_d(n), _mm512_cvtpd_ps(vec_canonical_d(v)));
}
/* Rounded to floats, and back. */
static inline vec_d vec_round_d(vec_d v) {
    return _mm512_cvtps_pd(_mm512_cvtpd_ps(v));
}
/* gcc inserts this only when it optimizes, and not for size; without it all SSE code that follows
 * is slow. */
static inline void vec_zeroupper(void) {
    _mm256_zeroupper();
}
