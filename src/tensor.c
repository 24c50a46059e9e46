/* SPDX-License-Identifier: MIT */
#include "base.h"

#include "tensor.h"

/* No object is larger than this, whatever its type; pointer differences inside it are
 * representable. */
#define MAX_ELEMENTS ((size_t)PTRDIFF_MAX / sizeof(float))

/* The product of three smaller sizes is far below that. */
#define FEW ((size_t)1 << 20)

/* *product = a*b; false where that exceeds MAX_ELEMENTS. */
static int multiply(size_t a, size_t b, size_t *product) {
    return !__builtin_mul_overflow(a, b, product) && *product <= MAX_ELEMENTS;
}

/* Channels per block; 1 where there are none. */
static size_t block_of(const bnorm_shape *shape) {
    return shape->c_block ? shape->c_block : 1;
}

/* Blocks of channels; c where there are none. */
static size_t blocks_of(const bnorm_shape *shape) {
    const size_t b = block_of(shape);
    return b == 1 ? shape->c : (shape->c - 1) / b + 1;
}

static int is_nhwc(const bnorm_shape *shape) {
    return shape->layout == BNORM_NHWC;
}

void bnorm_view_of(const bnorm_shape *shape, bnorm_view *view) {
    const size_t n = shape->n, c = shape->c, hw = shape->hw, b = block_of(shape);
    view->planes = b == 1 && hw > 1 && !is_nhwc(shape);
    view->leaves = hw == 1;
    view->images = view->leaves ? 1 : n;
    view->groups = 1;
    view->rows = view->positions = view->leaves ? n : hw;
    view->lanes = view->c = c;
    if (view->planes) {
        view->groups = c;
        view->rows = 1;
        view->lanes = hw;
    } else if (b > 1 && (!view->leaves || c % b != 0)) {
        view->groups = blocks_of(shape);
        view->lanes = b;
    }
}

void bnorm_fit_view(const bnorm_shape *shape, const bnorm_tensor *tensor, bnorm_view *view) {
    if (view->leaves && tensor->data && tensor->group_stride != block_of(shape)) {
        view->groups = blocks_of(shape);
        view->lanes = block_of(shape);
    }
}

void bnorm_take_samples(const bnorm_view *view, bnorm_tensor *tensor, size_t first, size_t step) {
    size_t *const sample_stride = view->leaves ? &tensor->row_stride : &tensor->image_stride;
    if (!tensor->data)
        return;
    tensor->data = (char *)tensor->data + first * *sample_stride * bnorm_size_of(tensor->type);
    *sample_stride *= step;
}

bnorm_status bnorm_check_shape(const bnorm_shape *shape) {
    size_t elements, c;
    if (!shape)
        return BNORM_NULL_POINTER;
    if ((unsigned)shape->layout > BNORM_NCHW || (unsigned)shape->dtype > BNORM_U8)
        return BNORM_BAD_ENUM;
    const size_t b = block_of(shape);
    if (b > 1 && (is_nhwc(shape) || (b != 4 && b != 8 && b != 16 && b != 32)))
        return BNORM_UNSUPPORTED;
    if (shape->c && sizeof(size_t) == 8 && (shape->n | shape->c | shape->hw) < FEW)
        return BNORM_OK;
    if (shape->c == 0 || !multiply(blocks_of(shape), b, &c) || !multiply(shape->n, c, &elements) ||
        !multiply(elements, shape->hw, &elements) || !multiply(c, shape->hw, &elements))
        return BNORM_BAD_SHAPE;
    return BNORM_OK;
}

bnorm_status bnorm_check_float_shape(const bnorm_shape *shape) {
    const bnorm_status status = bnorm_check_shape(shape);
    return !status && shape->dtype > BNORM_F16 ? BNORM_UNSUPPORTED : status;
}

size_t bnorm_mask_size(const bnorm_shape *shape) {
    if (bnorm_check_shape(shape) || bnorm_is_empty(shape))
        return 0;
    return (shape->n * blocks_of(shape) * block_of(shape) * shape->hw - 1) / 8 + 1;
}

/* ---------------------------------------------------------------------------------------------- */
/* Strides */

/* Elements of a run, padding included, and runs of an image. */
static size_t run_length(const bnorm_shape *shape) {
    return is_nhwc(shape) ? shape->c : shape->hw * block_of(shape);
}
static size_t runs_of(const bnorm_shape *shape) {
    return is_nhwc(shape) ? shape->hw : blocks_of(shape);
}

/* Elements from the first to one past the last of `count` times `extent` elements, `step` apart. */
static int span(size_t count, size_t step, size_t extent, size_t *total) {
    size_t before;
    if (!multiply(count - 1, step, &before) || before > MAX_ELEMENTS - extent)
        return 0;
    *total = before + extent;
    return 1;
}

/* The strides of a tensor with the defaults filled in; 0 where none is used. */
static bnorm_status resolve(const bnorm_shape *shape, bnorm_in *in, size_t *extent) {
    const size_t run = run_length(shape), runs = runs_of(shape);
    const size_t run_stride = in->run_stride, image_stride = in->image_stride;
    size_t image, batch;
    in->run_stride = runs > 1 ? (run_stride ? run_stride : run) : 0;
    in->image_stride = *extent = 0;
    if (!span(runs, in->run_stride, run, &image))
        return BNORM_BAD_STRIDE;
    if (shape->n > 1 && !(in->image_stride = image_stride)) {
        /* Dense images: a run's padding belongs to the image. */
        if (!multiply(runs, run_stride ? run_stride : run, &in->image_stride))
            return BNORM_BAD_STRIDE;
    }
    if (!span(shape->n, in->image_stride, run, &batch) ||
        !span(runs, in->run_stride, batch, extent))
        return BNORM_BAD_STRIDE;
    /* Distinct addresses: runs inside images that follow one another, or images inside runs, as
     * in (C, N, HW) order. */
    const int images_outside =
        (runs == 1 || in->run_stride >= run) && (shape->n == 1 || in->image_stride >= image);
    const int runs_outside =
        (shape->n == 1 || in->image_stride >= run) && (runs == 1 || in->run_stride >= batch);
    return images_outside || runs_outside ? BNORM_OK : BNORM_BAD_STRIDE;
}

/* Strides of runs and images as those of the view's axes. That of a single run is 1, as that of the
 * channels of dense (N, C) data. */
static void set_strides(const bnorm_shape *shape, size_t run_stride, size_t image_stride,
                        bnorm_tensor *tensor) {
    const size_t b = block_of(shape);
    tensor->image_stride = image_stride;
    tensor->group_stride = is_nhwc(shape) || runs_of(shape) == 1 ? 1 : run_stride;
    tensor->row_stride = is_nhwc(shape) ? run_stride : b;
    if (shape->hw == 1) {
        tensor->image_stride = 0;
        tensor->row_stride = image_stride;
    }
}

size_t bnorm_dense_tensor(const bnorm_shape *shape, bnorm_tensor *tensor) {
    const size_t run = run_length(shape), image = runs_of(shape) * run;
    tensor->data = NULL;
    tensor->type = shape->dtype;
    tensor->same_lanes = 0;
    tensor->quant.scale = 1;
    tensor->quant.zero_point = 0;
    set_strides(shape, run, shape->n > 1 ? image : 0, tensor);
    return shape->n * image;
}

bnorm_status bnorm_check_strides(const bnorm_shape *shape, bnorm_in in, unsigned broadcast,
                                 bnorm_tensor *tensor, size_t *extent) {
    tensor->same_lanes = run_length(shape) > 1 &&
                         (broadcast & (is_nhwc(shape) ? BNORM_BROADCAST_C : BNORM_BROADCAST_HW));
    bnorm_shape stored = *shape; /* one value along the axes that it is expanded along */
    if (broadcast & BNORM_BROADCAST_N)
        stored.n = 1;
    if (broadcast & BNORM_BROADCAST_C)
        stored.c = 1;
    if (broadcast & BNORM_BROADCAST_HW)
        stored.hw = 1;
    const bnorm_status status = resolve(&stored, &in, extent);
    set_strides(shape, in.run_stride, in.image_stride, tensor);
    return status;
}

void bnorm_set_bits(const bnorm_shape *shape, unsigned char *mask, bnorm_bits *bits) {
    bnorm_tensor dense;
    bits->bits = mask;
    bits->at = 0;
    if (!mask)
        return;
    const size_t run = run_length(shape);
    set_strides(shape, run, runs_of(shape) * run, &dense);
    bits->image_stride = dense.image_stride;
    bits->group_stride = dense.group_stride;
    bits->row_stride = dense.row_stride;
}
