/* SPDX-License-Identifier: MIT
 *
 * Tensors of every type and layout: where their elements lie, and what they mean. */
#ifndef BNORM_BENCH_TENSOR_H
#define BNORM_BENCH_TENSOR_H

#include <stddef.h>

#include "bnorm.h"

enum { BENCH_DTYPES = BNORM_U8 + 1 };

enum bench_place {
    BENCH_DENSE = 0,
    BENCH_SLICE, /* NHWC: C of 4*C channels, as in a concatenation */
    BENCH_PADDED /* NCHW: every plane ends with up to two unused lines of 16 elements */
};

/* What else than a dense tensor of floats, and what is fused. All zero = nothing. */
typedef struct bench_form {
    bnorm_dtype dtype;
    bnorm_y_dtype y_dtype; /* inference */
    size_t c_block;
    enum bench_place place;
    bnorm_act act; /* IDENTITY = what the op says */
    int residual;  /* forward adds dy; backward writes dresidual */
    int mask;      /* forward writes it; backward reads it, or else recomputes */
} bench_form;

/* A tensor of C channels; forms that the layout does not have are not allowed. */
typedef struct bench_tensor {
    bnorm_layout layout;
    size_t n, c, hw;
    size_t c_block;
    enum bench_place place;
} bench_tensor;

extern const char *const bench_dtype_names[BENCH_DTYPES]; /* "f32" */
size_t bench_dtype_size(bnorm_dtype dtype);
/* Of the elements of 8 bits that are measured. */
bnorm_quant bench_quant(bnorm_dtype dtype);

/* For bnorm_in and bnorm_out; 0 = dense. */
size_t bench_run_stride(const bench_tensor *tensor);
/* Elements from the first one to the last one, gaps and padding included. */
size_t bench_span(const bench_tensor *tensor);
/* Without gaps, but with the padding of blocks: one bit of a mask each. */
size_t bench_elements(const bench_tensor *tensor);

/* The element in this type, cut off instead of rounded; 8 bits: some value from -2 to 2. */
void bench_element_set(bnorm_dtype dtype, void *data, size_t i, float v);
double bench_element(bnorm_dtype dtype, const void *data, size_t i);

/* As dense floats in the plain layout, C*N*HW of them. */
void bench_unpack(const bench_tensor *tensor, bnorm_dtype dtype, const void *data, float *dense);
/* The mask's bits likewise, as 0 and 1. */
void bench_unpack_mask(const bench_tensor *tensor, const unsigned char *mask, float *dense);

#endif
