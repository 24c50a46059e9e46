/* SPDX-License-Identifier: MIT
 *
 * Argument checks shared by all entry points. They run before anything is written. */
#ifndef BNORM_CHECK_H
#define BNORM_CHECK_H

#include "bnorm.h"

/* A tensor as the caller gave it, with the strides filled in. A stride that is never used is 0. */
typedef struct bnorm_tensor {
    float *data; /* inputs too; never written through for those */
    size_t run_stride, image_stride;
    size_t extent; /* elements from the first to one past the last; 0 = absent */
} bnorm_tensor;

/* Memory that a call reads or writes. */
typedef struct bnorm_buffer {
    const void *begin;
    size_t bytes;               /* 0 = absent */
    const bnorm_tensor *tensor; /* NULL for arrays and the workspace */
} bnorm_buffer;

bnorm_status bnorm_check_shape(const bnorm_shape *shape);
bnorm_status bnorm_check_act(const bnorm_act *act);
bnorm_status bnorm_check_eps(double eps);
bnorm_status bnorm_check_workspace(size_t need, size_t ws_size); /* need 0: the size overflows */

/* Fills *tensor; a NULL data pointer is an absent tensor. The shape has been checked and is not
 * empty. */
bnorm_status bnorm_check_tensor(const bnorm_shape *shape, const void *data, size_t run_stride,
                                size_t image_stride, bnorm_tensor *tensor);

/* BNORM_BAD_OVERLAP where an output clashes with an input or another output. An output tensor may
 * be the same tensor as an input ("in place"), two outputs may not be the same. */
bnorm_status bnorm_check_overlap(const bnorm_shape *shape, const bnorm_buffer *inputs,
                                 size_t input_count, const bnorm_buffer *outputs,
                                 size_t output_count);

static inline int bnorm_is_empty(const bnorm_shape *shape) {
    return shape->n == 0 || shape->hw == 0;
}

static inline bnorm_buffer bnorm_tensor_buffer(const bnorm_tensor *tensor) {
    const bnorm_buffer buffer = {tensor->data, tensor->extent * sizeof(float), tensor};
    return buffer;
}

/* An array of c floats, or nothing. */
static inline bnorm_buffer bnorm_array_buffer(const float *array, size_t c) {
    const bnorm_buffer buffer = {array, array ? c * sizeof(float) : 0, NULL};
    return buffer;
}

static inline bnorm_buffer bnorm_memory_buffer(const void *begin, size_t bytes) {
    const bnorm_buffer buffer = {begin, bytes, NULL};
    return buffer;
}

#endif
