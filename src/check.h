/* SPDX-License-Identifier: MIT
 *
 * Argument checks shared by all entry points. They run before anything is written. */
#ifndef BNORM_CHECK_H
#define BNORM_CHECK_H

#include "bnorm.h"

#include <stdint.h>

/* A tensor as the caller gave it, with the strides filled in. A stride that is never used is 0. */
typedef struct bnorm_tensor {
    char *data; /* inputs too; never written through for those */
    size_t run_stride, image_stride;
    size_t extent; /* elements from the first to one past the last; 0 = absent */
    bnorm_dtype type;
} bnorm_tensor;

/* Bytes of an element. */
static inline size_t bnorm_size_of(bnorm_dtype type) {
    return type == BNORM_F32 ? 4 : type == BNORM_BF16 || type == BNORM_F16 ? 2 : 1;
}

/* Channels per block; 1 where there are none. */
static inline size_t bnorm_block_of(const bnorm_shape *shape) {
    return shape->c_block ? shape->c_block : 1;
}

/* Blocks of channels; c where there are none. */
static inline size_t bnorm_channel_blocks(const bnorm_shape *shape) {
    return (shape->c - 1) / bnorm_block_of(shape) + 1;
}

/* Runs of an image, and elements of a run, padding included. */
static inline size_t bnorm_runs(const bnorm_shape *shape) {
    return shape->layout == BNORM_NHWC ? shape->hw : bnorm_channel_blocks(shape);
}
static inline size_t bnorm_run_length(const bnorm_shape *shape) {
    return shape->layout == BNORM_NHWC ? shape->c : shape->hw * bnorm_block_of(shape);
}

/* Memory [begin, end) that a call reads or writes; both 0 = absent, which meets nothing. */
typedef struct bnorm_buffer {
    uintptr_t begin, end;
    const bnorm_tensor *tensor; /* NULL for arrays and the workspace */
} bnorm_buffer;

bnorm_status bnorm_check_shape(const bnorm_shape *shape);
/* The shape of an operation with statistics: not for quantized tensors. */
bnorm_status bnorm_check_float_shape(const bnorm_shape *shape);
bnorm_status bnorm_check_act(const bnorm_act *act, const bnorm_isa *isa);
/* A mask goes with these kinds only; where none is needed, *mask becomes NULL. */
bnorm_status bnorm_check_mask(const bnorm_act *act, unsigned char **mask);
bnorm_status bnorm_check_eps(double eps);
/* Whether var + eps of all c channels is at least 0, or NaN. */
bnorm_status bnorm_check_variance(size_t c, const float *var, double eps);
/* 1/sqrt(var + eps) rounded, 0 where that is 0. */
void bnorm_invstd(size_t c, const float *var, double eps, float *invstd);
bnorm_status bnorm_check_running(const bnorm_running *running);
/* Where an array of running statistics is updated, and the array if it is only read. */
static inline float *bnorm_updated(float *running, float *elsewhere) {
    return elsewhere ? elsewhere : running;
}
static inline const float *bnorm_only_read(const float *running, const float *elsewhere) {
    return elsewhere && elsewhere != running ? running : NULL;
}
bnorm_status bnorm_check_workspace(size_t need, size_t ws_size); /* need 0: the size overflows */

/* Fills *tensor, with the type of the shape; a NULL data pointer is an absent tensor. The shape has
 * been checked and is not empty. */
bnorm_status bnorm_check_tensor(const bnorm_shape *shape, const void *data, size_t run_stride,
                                size_t image_stride, bnorm_tensor *tensor);

static inline bnorm_status bnorm_check_in(const bnorm_shape *shape, bnorm_in in,
                                          bnorm_tensor *tensor) {
    return bnorm_check_tensor(shape, in.data, in.run_stride, in.image_stride, tensor);
}

/* dy, whose strides along the axes of dy_broadcast become 0; that along a run is not among them. */
bnorm_status bnorm_check_dy(const bnorm_shape *shape, bnorm_in dy, unsigned broadcast,
                            bnorm_tensor *tensor);

static inline bnorm_status bnorm_check_out(const bnorm_shape *shape, bnorm_out out,
                                           bnorm_tensor *tensor) {
    return bnorm_check_tensor(shape, out.data, out.run_stride, out.image_stride, tensor);
}

/* Of the buffers, the first output_count are outputs. BNORM_BAD_OVERLAP where an output clashes
 * with another buffer. An output tensor may be the same tensor as an input ("in place"), two
 * outputs may not be the same. */
bnorm_status bnorm_check_overlap(const bnorm_shape *shape, const bnorm_buffer *buffers,
                                 size_t count, size_t output_count);

/* The same with some buffers more, of which the first more_outputs are outputs: for options
 * that are rare. */
bnorm_status bnorm_check_more_overlap(const bnorm_shape *shape, const bnorm_buffer *buffers,
                                      size_t count, size_t output_count, const bnorm_buffer *more,
                                      size_t more_count, size_t more_outputs);

/* Says to the compiler that errors are rare. By its own guesses what comes after many checks is
 * hardly ever reached, and is compiled for size. */
static inline int bnorm_failed(bnorm_status status) {
    return __builtin_expect(status != BNORM_OK, 0) != 0;
}

static inline int bnorm_is_empty(const bnorm_shape *shape) {
    return shape->n == 0 || shape->hw == 0;
}

static inline bnorm_buffer bnorm_memory_buffer(const void *begin, size_t bytes) {
    const uintptr_t first = (uintptr_t)begin;
    return (bnorm_buffer){first, first ? first + bytes : 0, NULL};
}

/* A mask of this shape, or nothing. */
static inline bnorm_buffer bnorm_mask_buffer(const bnorm_shape *shape, const unsigned char *mask) {
    return bnorm_memory_buffer(mask, mask ? bnorm_mask_size(shape) : 0);
}

/* What n more images may change of a piece, or nothing. */
static inline bnorm_buffer bnorm_piece_buffer(const bnorm_partial *piece, size_t n) {
    return bnorm_memory_buffer(piece ? piece->nodes : NULL,
                               piece ? bnorm_partial_size(piece->c, piece->n + n) : 0);
}

/* An array of c floats, or nothing. */
static inline bnorm_buffer bnorm_array_buffer(const float *array, size_t c) {
    return bnorm_memory_buffer(array, c * sizeof(float));
}

static inline bnorm_buffer bnorm_tensor_buffer(const bnorm_tensor *tensor) {
    bnorm_buffer buffer =
        bnorm_memory_buffer(tensor->data, tensor->extent * bnorm_size_of(tensor->type));
    buffer.tensor = tensor;
    return buffer;
}

#endif
