/* SPDX-License-Identifier: MIT
 *
 * Included before everything else (-include) in programs for tools/emulate_avx512.sh, with
 * -D_GNU_SOURCE, as this is where the C library's headers come in first.
 *
 * Bochs 2.7 rounds a float halfway between two F16 values away from zero, every CPU to the even one.
 * Here the intrinsics get floats that are F16 values already, so that nothing is left to round. */
#ifndef BNORM_BOCHS_F16_H
#define BNORM_BOCHS_F16_H

#include <immintrin.h>
#include <math.h>
#include <stdint.h>
#include <string.h>

static inline float bochs_f16(float v) {
    const float size = fabsf(v);
    uint32_t bits;
    if (size < 0x1p-14f) /* denormal as F16: multiples of 2^-24, as floats from 0.5 to 1 are */
        return copysignf(size + 0.5f - 0.5f, v);
    if (!(size < INFINITY))
        return v;
    memcpy(&bits, &v, sizeof bits);
    bits += 0xfff + (bits >> 13 & 1);
    bits &= ~(uint32_t)0x1fff;
    memcpy(&v, &bits, sizeof v);
    return v;
}

__attribute__((target("avx2"))) static inline __m256 bochs_f16_8(__m256 v) {
    float lanes[8];
    _mm256_storeu_ps(lanes, v);
    for (int i = 0; i < 8; i++)
        lanes[i] = bochs_f16(lanes[i]);
    return _mm256_loadu_ps(lanes);
}

__attribute__((target("avx512f"))) static inline __m512 bochs_f16_16(__m512 v) {
    float lanes[16];
    _mm512_storeu_ps(lanes, v);
    for (int i = 0; i < 16; i++)
        lanes[i] = bochs_f16(lanes[i]);
    return _mm512_loadu_ps(lanes);
}

/* Inside themselves the names are gcc's functions, which is what they are with -O1 and above. */
#define _mm256_cvtps_ph(v, rounding) _mm256_cvtps_ph(bochs_f16_8(v), rounding)
#define _mm512_cvtps_ph(v, rounding) _mm512_cvtps_ph(bochs_f16_16(v), rounding)

#endif
