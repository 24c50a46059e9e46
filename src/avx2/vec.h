/* SPDX-License-Identifier: MIT
 *
 * The vec_* primitives for AVX2 and FMA: 8 floats or 4 doubles. See src/kernels/kernels.h for their
 * meaning. */
#define VEC_F 8 /* floats per vector */
#define VEC_D 4 /* doubles per vector */

typedef __m256 vec_f;
typedef __m256d vec_d;
typedef __m128 four_floats;

/* A mask with the first n of 8 or 4 lanes set is a window into these. */
static const int vec_window_f[16] = {-1, -1, -1, -1, -1, -1, -1, -1};
static const long long vec_window_d[8] = {-1, -1, -1, -1};

static inline __m256i vec_mask_f(size_t n) {
    return _mm256_loadu_si256((const __m256i *)(const void *)(vec_window_f + 8 - n));
}
static inline __m256i vec_mask_d(size_t n) {
    return _mm256_loadu_si256((const __m256i *)(const void *)(vec_window_d + 4 - n));
}
static inline __m128i vec_mask_half(size_t n) {
    return _mm_loadu_si128((const __m128i *)(const void *)(vec_window_f + 8 - n));
}

static inline vec_f vec_load(const float *p) {
    return _mm256_loadu_ps(p);
}
static inline vec_f vec_load_n(const float *p, size_t n) {
    return _mm256_maskload_ps(p, vec_mask_f(n));
}
static inline void vec_store(float *p, vec_f v) {
    _mm256_storeu_ps(p, v);
}
static inline void vec_store_n(float *p, vec_f v, size_t n) {
    _mm256_maskstore_ps(p, vec_mask_f(n), v);
}
static inline void vec_stream(float *p, vec_f v) {
    _mm256_stream_ps(p, v);
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
    return _mm256_set1_ps(v);
}
static inline vec_f vec_repeat(const float *p, size_t n) {
    const __m256i lanes = _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7);
    return _mm256_permutevar8x32_ps(vec_load_n(p, n),
                                    _mm256_and_si256(lanes, _mm256_set1_epi32((int)n - 1)));
}
static inline vec_f vec_keep(vec_f v) {
    __asm__("" : "+x"(v));
    return v;
}
static inline vec_f vec_sub_times(vec_f a, vec_f one, vec_f b) {
    return _mm256_fmsub_ps(a, one, b);
}
static inline vec_f vec_add(vec_f a, vec_f b) {
    return _mm256_add_ps(a, b);
}
static inline vec_f vec_sub(vec_f a, vec_f b) {
    return _mm256_sub_ps(a, b);
}
static inline vec_f vec_mul(vec_f a, vec_f b) {
    return _mm256_mul_ps(a, b);
}
static inline vec_f vec_fma(vec_f a, vec_f b, vec_f c) {
    return _mm256_fmadd_ps(a, b, c);
}
static inline vec_f vec_if_le(vec_f a, vec_f b, vec_f yes, vec_f no) {
    return _mm256_blendv_ps(no, yes, _mm256_cmp_ps(a, b, _CMP_LE_OQ));
}
static inline vec_f vec_if_gt(vec_f a, vec_f b, vec_f yes, vec_f no) {
    return _mm256_blendv_ps(no, yes, _mm256_cmp_ps(a, b, _CMP_GT_OQ));
}
static inline vec_f vec_zero_if_le(vec_f a, vec_f b, vec_f v) {
    return _mm256_andnot_ps(_mm256_cmp_ps(a, b, _CMP_LE_OQ), v);
}
static inline vec_f vec_zero_unless_gt(vec_f a, vec_f b, vec_f v) {
    return _mm256_and_ps(_mm256_cmp_ps(a, b, _CMP_GT_OQ), v);
}
static inline vec_f vec_zero_from(vec_f v, vec_f limit, vec_f x) {
    return _mm256_andnot_ps(_mm256_cmp_ps(limit, v, _CMP_LE_OQ), x);
}
static inline vec_f vec_canonical(vec_f v) {
    return _mm256_or_ps(v, _mm256_cmp_ps(v, v, _CMP_UNORD_Q));
}

static inline vec_f vec_canonical_result(vec_f v) {
    return vec_canonical(v);
}
enum { VEC_TESTS_NAN = 1 };
static inline int vec_are_numbers(const vec_f *v, size_t n) {
    vec_f nan = _mm256_cmp_ps(v[0], v[1], _CMP_UNORD_Q);
    for (size_t i = 2; i < n; i += 2)
        nan = _mm256_or_ps(nan, _mm256_cmp_ps(v[i], v[i + 1], _CMP_UNORD_Q));
    return _mm256_movemask_ps(nan) == 0;
}
/* max and min return their second operand where one is a NaN or both are zeros. */
static inline vec_f vec_relu(vec_f v) {
    return _mm256_or_ps(_mm256_max_ps(v, _mm256_setzero_ps()), _mm256_cmp_ps(v, v, _CMP_UNORD_Q));
}
static inline vec_f vec_clamp(vec_f v, vec_f a, vec_f b) {
    return _mm256_or_ps(_mm256_min_ps(_mm256_max_ps(v, a), b), _mm256_cmp_ps(v, v, _CMP_UNORD_Q));
}

/* The first n lanes of v, zeros behind them. */
static inline vec_f vec_first_n(vec_f v, size_t n) {
    return _mm256_and_ps(v, _mm256_castsi256_ps(vec_mask_f(n)));
}

static inline vec_f vec_div(vec_f a, vec_f b) {
    return _mm256_div_ps(a, b);
}
static inline vec_f vec_negate(vec_f v) {
    return _mm256_xor_ps(v, _mm256_set1_ps(-0.0f));
}
static inline vec_f vec_minus_abs(vec_f v) {
    return _mm256_or_ps(v, _mm256_set1_ps(-0.0f));
}
/* a where it is greater, else b. */
static inline vec_f vec_max(vec_f a, vec_f b) {
    return _mm256_max_ps(a, b);
}
/* a where it is less, else b. */
static inline vec_f vec_min(vec_f a, vec_f b) {
    return _mm256_min_ps(a, b);
}
/* The power of 2 that is at most v >= 0; 0 for denormals. */
static inline vec_f vec_power_of_2(vec_f v) {
    return _mm256_and_ps(v, _mm256_castsi256_ps(_mm256_set1_epi32(0x7f800000)));
}
static inline vec_f vec_zero_nan(vec_f v) {
    return _mm256_and_ps(v, _mm256_cmp_ps(v, v, _CMP_ORD_Q));
}
#define VEC_SLEEF(function, ulp) Sleef_finz_##function##f8_##ulp##avx2

static inline vec_f vec_load_bf16(const uint16_t *p) {
    const __m128i h = _mm_loadu_si128((const __m128i *)(const void *)p);
    return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(h), 16));
}
/* The lower halves of 8 numbers of 32 bits that are below 2^16. */
static inline __m128i vec_pack_16(__m256i v) {
    return _mm_packus_epi32(_mm256_castsi256_si128(v), _mm256_extracti128_si256(v, 1));
}
/* Rounded in the upper halves; a NaN, all of whose bits are set, would overflow. */
static inline __m256i vec_round_bf16(vec_f v) {
    const __m256i bits = _mm256_castps_si256(v),
                  odd = _mm256_and_si256(_mm256_srli_epi32(bits, 16), _mm256_set1_epi32(1)),
                  least = _mm256_min_epu32(bits, _mm256_set1_epi32(-0x8001));
    return _mm256_add_epi32(_mm256_add_epi32(least, _mm256_set1_epi32(0x7fff)), odd);
}
static inline __m256i vec_narrow_bf16(vec_f v) {
    return _mm256_srli_epi32(vec_round_bf16(v), 16);
}
static inline void vec_store_bf16(uint16_t *p, vec_f v) {
    _mm_storeu_si128((__m128i *)(void *)p, vec_pack_16(vec_narrow_bf16(v)));
}
static inline __m256i vec_pair_bf16(vec_f a, vec_f b) {
    const __m256i both = _mm256_packus_epi32(vec_narrow_bf16(a), vec_narrow_bf16(b));
    return _mm256_permute4x64_epi64(both, 0xd8);
}
static inline void vec_store_bf16_2(uint16_t *p, vec_f a, vec_f b) {
    _mm256_storeu_si256((__m256i *)(void *)p, vec_pair_bf16(a, b));
}
static inline void vec_stream_bf16_2(uint16_t *p, vec_f a, vec_f b) {
    _mm256_stream_si256((__m256i *)(void *)p, vec_pair_bf16(a, b));
}
static inline void vec_apart(vec_f v[2], vec_f a, vec_f b) {
    const __m256d even = _mm256_castps_pd(_mm256_shuffle_ps(a, b, 0x88)),
                  odd = _mm256_castps_pd(_mm256_shuffle_ps(a, b, 0xdd));
    v[0] = _mm256_castpd_ps(_mm256_permute4x64_pd(even, 0xd8));
    v[1] = _mm256_castpd_ps(_mm256_permute4x64_pd(odd, 0xd8));
}
static inline void vec_load_bf16_apart(vec_f v[2], const uint16_t *p) {
    const __m256i h = _mm256_loadu_si256((const __m256i *)(const void *)p);
    v[0] = _mm256_castsi256_ps(_mm256_slli_epi32(h, 16));
    v[1] = _mm256_castsi256_ps(_mm256_and_si256(h, _mm256_set1_epi32(-0x10000)));
}
static inline __m256i vec_join_bf16(vec_f even, vec_f odd) {
    return _mm256_blend_epi16(vec_narrow_bf16(even), vec_round_bf16(odd), 0xaa);
}
static inline void vec_store_bf16_apart(uint16_t *p, vec_f even, vec_f odd) {
    _mm256_storeu_si256((__m256i *)(void *)p, vec_join_bf16(even, odd));
}
static inline void vec_stream_bf16_apart(uint16_t *p, vec_f even, vec_f odd) {
    _mm256_stream_si256((__m256i *)(void *)p, vec_join_bf16(even, odd));
}
static inline vec_f vec_load_f16(const uint16_t *p) {
    return _mm256_cvtph_ps(_mm_loadu_si128((const __m128i *)(const void *)p));
}
static inline __m128i vec_round_f16(vec_f v) {
    return _mm256_cvtps_ph(v, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
}
static inline void vec_store_f16(uint16_t *p, vec_f v) {
    _mm_storeu_si128((__m128i *)(void *)p, vec_round_f16(v));
}
static inline void vec_stream_f16_2(uint16_t *p, vec_f a, vec_f b) {
    _mm256_stream_si256((__m256i *)(void *)p, _mm256_set_m128i(vec_round_f16(b), vec_round_f16(a)));
}
static inline vec_f vec_load_s8(const uint8_t *p) {
    return _mm256_cvtepi32_ps(
        _mm256_cvtepi8_epi32(_mm_loadl_epi64((const __m128i *)(const void *)p)));
}
static inline vec_f vec_load_u8(const uint8_t *p) {
    return _mm256_cvtepi32_ps(
        _mm256_cvtepu8_epi32(_mm_loadl_epi64((const __m128i *)(const void *)p)));
}
/* Fours of a and b in turn. */
static inline __m256i vec_whole_16(vec_f a, vec_f b, int zero_point) {
    const __m256i words = _mm256_packs_epi32(_mm256_cvtps_epi32(a), _mm256_cvtps_epi32(b));
    return _mm256_adds_epi16(words, _mm256_set1_epi16((short)zero_point));
}
static inline void vec_store_8(uint8_t *p, vec_f v, int zero_point, int is_signed) {
    const __m256i words = _mm256_permute4x64_epi64(vec_whole_16(v, v, zero_point), 0x08);
    const __m128i low = _mm256_castsi256_si128(words);
    _mm_storel_epi64((__m128i *)(void *)p,
                     is_signed ? _mm_packs_epi16(low, low) : _mm_packus_epi16(low, low));
}
static inline void vec_store_8_4(uint8_t *p, const vec_f *v, int zero_point, int is_signed) {
    const __m256i low = vec_whole_16(v[0], v[1], zero_point),
                  high = vec_whole_16(v[2], v[3], zero_point),
                  fours =
                      is_signed ? _mm256_packs_epi16(low, high) : _mm256_packus_epi16(low, high),
                  order = _mm256_setr_epi32(0, 4, 1, 5, 2, 6, 3, 7);
    _mm256_storeu_si256((__m256i *)(void *)p, _mm256_permutevar8x32_epi32(fours, order));
}
static inline vec_f vec_if_bits(unsigned bits, vec_f v) {
    const __m256i place = _mm256_setr_epi32(1, 2, 4, 8, 16, 32, 64, 128);
    const __m256i set = _mm256_and_si256(_mm256_set1_epi32((int)bits), place);
    return _mm256_and_ps(_mm256_castsi256_ps(_mm256_cmpeq_epi32(set, place)), v);
}
static inline unsigned vec_bits_gt(vec_f a, vec_f b) {
    return (unsigned)_mm256_movemask_ps(_mm256_cmp_ps(a, b, _CMP_GT_OQ));
}

static inline vec_d vec_load_d(const double *p) {
    return _mm256_loadu_pd(p);
}
static inline vec_d vec_load_d_n(const double *p, size_t n) {
    return _mm256_maskload_pd(p, vec_mask_d(n));
}
static inline void vec_store_d(double *p, vec_d v) {
    _mm256_storeu_pd(p, v);
}
static inline void vec_store_d_n(double *p, vec_d v, size_t n) {
    _mm256_maskstore_pd(p, vec_mask_d(n), v);
}
static inline vec_d vec_set1_d(double v) {
    return _mm256_set1_pd(v);
}
static inline vec_d vec_add_d(vec_d a, vec_d b) {
    return _mm256_add_pd(a, b);
}
static inline vec_d vec_sub_d(vec_d a, vec_d b) {
    return _mm256_sub_pd(a, b);
}
static inline vec_d vec_mul_d(vec_d a, vec_d b) {
    return _mm256_mul_pd(a, b);
}
static inline vec_d vec_div_d(vec_d a, vec_d b) {
    return _mm256_div_pd(a, b);
}
static inline vec_d vec_sqrt_d(vec_d v) {
    return _mm256_sqrt_pd(v);
}
static inline vec_d vec_fma_d(vec_d a, vec_d b, vec_d c) {
    return _mm256_fmadd_pd(a, b, c);
}
static inline vec_d vec_if_eq_d(vec_d a, vec_d b, vec_d yes, vec_d no) {
    return _mm256_blendv_pd(no, yes, _mm256_cmp_pd(a, b, _CMP_EQ_OQ));
}
static inline vec_d vec_if_lt_d(vec_d a, vec_d b, vec_d yes, vec_d no) {
    return _mm256_blendv_pd(no, yes, _mm256_cmp_pd(a, b, _CMP_LT_OQ));
}
static inline vec_d vec_canonical_d(vec_d v) {
    return _mm256_or_pd(v, _mm256_cmp_pd(v, v, _CMP_UNORD_Q));
}
/* Lanes of v outside [low, high], NaN included, one bit each. */
static inline unsigned vec_outside_d(vec_d v, double low, double high) {
    return (unsigned)_mm256_movemask_pd(
        _mm256_or_pd(_mm256_cmp_pd(v, vec_set1_d(low), _CMP_NGE_UQ),
                     _mm256_cmp_pd(v, vec_set1_d(high), _CMP_NLE_UQ)));
}

/* float -> double: from memory, and the lower and upper half of a vector. */
static inline vec_d vec_widen(const float *p) {
    return _mm256_cvtps_pd(_mm_loadu_ps(p));
}
static inline vec_d vec_widen_n(const float *p, size_t n) {
    return _mm256_cvtps_pd(_mm_maskload_ps(p, vec_mask_half(n)));
}
static inline vec_d vec_low(vec_f v) {
    return _mm256_cvtps_pd(_mm256_castps256_ps128(v));
}
static inline vec_d vec_high(vec_f v) {
    return _mm256_cvtps_pd(_mm256_extractf128_ps(v, 1));
}
static inline void vec_fold_fours(float *to_a, float *to_b, vec_f a, vec_f b) {
    _mm_store_ps(to_a, _mm_add_ps(_mm256_castps256_ps128(a), _mm256_extractf128_ps(a, 1)));
    _mm_store_ps(to_b, _mm_add_ps(_mm256_castps256_ps128(b), _mm256_extractf128_ps(b, 1)));
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
    vec_f m[4];
    for (int i = 0; i < 4; i++)
        m[i] = _mm256_insertf128_ps(_mm256_castps128_ps256(_mm_load_ps(p + 4 * i)),
                                    _mm_load_ps(p + 16 + 4 * i), 1);
    const vec_f a = _mm256_unpacklo_ps(m[0], m[2]), b = _mm256_unpacklo_ps(m[1], m[3]),
                c = _mm256_unpackhi_ps(m[0], m[2]), d = _mm256_unpackhi_ps(m[1], m[3]);
    v[0] = _mm256_unpacklo_ps(a, b);
    v[1] = _mm256_unpackhi_ps(a, b);
    v[2] = _mm256_unpacklo_ps(c, d);
    v[3] = _mm256_unpackhi_ps(c, d);
}
/* double -> float, rounded and canonical: VEC_D floats to memory. */
static inline __m128 vec_narrow(vec_d v) {
    const __m128 floats = _mm256_cvtpd_ps(v);
    return _mm_or_ps(floats, _mm_cmp_ps(floats, floats, _CMP_UNORD_Q));
}
static inline void vec_narrow_store(float *p, vec_d v) {
    _mm_storeu_ps(p, vec_narrow(v));
}
static inline void vec_narrow_store_n(float *p, vec_d v, size_t n) {
    _mm_maskstore_ps(p, vec_mask_half(n), vec_narrow(v));
}
/* Rounded to floats, and back. */
static inline vec_d vec_round_d(vec_d v) {
    return _mm256_cvtps_pd(_mm256_cvtpd_ps(v));
}
/* gcc inserts this only when it optimizes, and not for size; without it all SSE code that follows
 * is slow. */
static inline void vec_zeroupper(void) {
    _mm256_zeroupper();
}
