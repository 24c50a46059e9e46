/* SPDX-License-Identifier: MIT */
#include "tensor.h"

#include <math.h>
#include <stdint.h>
#include <string.h>

const char *const bench_dtype_names[BENCH_DTYPES] = {
    [BNORM_F32] = "f32", [BNORM_BF16] = "bf16", [BNORM_F16] = "f16",
    [BNORM_S8] = "s8",   [BNORM_U8] = "u8",
};

size_t bench_dtype_size(bnorm_dtype dtype) {
    static const size_t sizes[BENCH_DTYPES] = {
        [BNORM_F32] = 4, [BNORM_BF16] = 2, [BNORM_F16] = 2, [BNORM_S8] = 1, [BNORM_U8] = 1,
    };
    return sizes[dtype];
}

bnorm_quant bench_quant(bnorm_dtype dtype) {
    return (bnorm_quant){.scale = 1 / 16.0F, .zero_point = dtype == BNORM_U8 ? 128 : 0};
}

/* ---------------------------------------------------------------------------------------------- */
/* Addresses */

enum { LINE = 16, SLICES = 4 };

static size_t run_length(const bench_tensor *t) {
    return t->layout == BNORM_NHWC ? t->c : t->c_block ? t->hw * t->c_block : t->hw;
}

static size_t runs_per_image(const bench_tensor *t) {
    if (t->layout == BNORM_NHWC)
        return t->hw;
    return t->c_block ? (t->c + t->c_block - 1) / t->c_block : t->c;
}

size_t bench_run_stride(const bench_tensor *t) {
    switch (t->place) {
    case BENCH_DENSE:
        break;
    case BENCH_SLICE:
        return SLICES * run_length(t);
    case BENCH_PADDED:
        return (run_length(t) + LINE - 1) / LINE * LINE + LINE;
    }
    return 0;
}

static size_t span_with(const bench_tensor *t, size_t stride) {
    return t->n * runs_per_image(t) * stride;
}

size_t bench_span(const bench_tensor *t) {
    const size_t stride = bench_run_stride(t);
    return span_with(t, stride ? stride : run_length(t));
}

size_t bench_elements(const bench_tensor *t) {
    return span_with(t, run_length(t));
}

/* Of element (n, c, p). */
static size_t offset_of(const bench_tensor *t, size_t n, size_t c, size_t p, size_t stride) {
    const size_t runs = runs_per_image(t);
    if (t->layout == BNORM_NHWC)
        return (n * runs + p) * stride + c;
    if (t->c_block)
        return (n * runs + c / t->c_block) * stride + p * t->c_block + c % t->c_block;
    return (n * runs + c) * stride + p;
}

static size_t dense_offset(const bench_tensor *t, size_t n, size_t c, size_t p) {
    return t->layout == BNORM_NHWC ? (n * t->hw + p) * t->c + c : (n * t->c + c) * t->hw + p;
}

/* ---------------------------------------------------------------------------------------------- */
/* Elements */

/* 1 sign, 5 exponent and 10 mantissa bits; what is too small for them becomes 0. |v| < 65536. */
static uint16_t to_f16(float v) {
    uint32_t bits;
    memcpy(&bits, &v, sizeof bits);
    const uint32_t sign = bits >> 16 & 0x8000, size = bits & 0x7fffffff;
    return (uint16_t)(size < 113U << 23 ? sign : sign | (size - (112U << 23)) >> 13);
}

static double from_f16(uint16_t h) {
    const int exponent = h >> 10 & 31, mantissa = h & 1023;
    const double size = exponent == 31 ? (mantissa ? NAN : INFINITY)
                        : exponent     ? ldexp(1024 + mantissa, exponent - 25)
                                       : ldexp(mantissa, -24);
    return h & 0x8000 ? -size : size;
}

void bench_element_set(bnorm_dtype dtype, void *data, size_t i, float v) {
    uint32_t bits;
    memcpy(&bits, &v, sizeof bits);
    switch (dtype) {
    case BNORM_F32:
        ((float *)data)[i] = v;
        break;
    case BNORM_BF16:
        ((uint16_t *)data)[i] = (uint16_t)(bits >> 16);
        break;
    case BNORM_F16:
        ((uint16_t *)data)[i] = to_f16(v);
        break;
    case BNORM_S8:
    case BNORM_U8: /* within 32 of the zero point */
        ((unsigned char *)data)[i] =
            (unsigned char)(bench_quant(dtype).zero_point - 32 + (int)(bits >> 8 & 63));
        break;
    }
}

double bench_element(bnorm_dtype dtype, const void *data, size_t i) {
    const bnorm_quant quant = bench_quant(dtype);
    switch (dtype) {
    case BNORM_F32:
        return ((const float *)data)[i];
    case BNORM_BF16: {
        const uint32_t bits = (uint32_t)((const uint16_t *)data)[i] << 16;
        float v;
        memcpy(&v, &bits, sizeof v);
        return v;
    }
    case BNORM_F16:
        return from_f16(((const uint16_t *)data)[i]);
    case BNORM_S8:
        return (((const signed char *)data)[i] - quant.zero_point) * (double)quant.scale;
    case BNORM_U8:
        return (((const unsigned char *)data)[i] - quant.zero_point) * (double)quant.scale;
    }
    return NAN;
}

void bench_unpack(const bench_tensor *t, bnorm_dtype dtype, const void *data, float *dense) {
    const size_t given = bench_run_stride(t), stride = given ? given : run_length(t);
    for (size_t n = 0; n < t->n; n++)
        for (size_t c = 0; c < t->c; c++)
            for (size_t p = 0; p < t->hw; p++)
                dense[dense_offset(t, n, c, p)] =
                    (float)bench_element(dtype, data, offset_of(t, n, c, p, stride));
}

void bench_unpack_mask(const bench_tensor *t, const unsigned char *mask, float *dense) {
    for (size_t n = 0; n < t->n; n++)
        for (size_t c = 0; c < t->c; c++)
            for (size_t p = 0; p < t->hw; p++) {
                const size_t e = offset_of(t, n, c, p, run_length(t));
                dense[dense_offset(t, n, c, p)] = (float)(mask[e / 8] >> e % 8 & 1);
            }
}
