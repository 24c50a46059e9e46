/* SPDX-License-Identifier: MIT */
#include "base.h"

#include "check.h"

#include "../dispatch/isa.h"

#include <stdint.h>

/* No object is larger than this, whatever its type; pointer differences inside it are
 * representable. */
#define MAX_ELEMENTS ((size_t)PTRDIFF_MAX / sizeof(float))

/* *product = a*b; false where that exceeds MAX_ELEMENTS. */
static int multiply(size_t a, size_t b, size_t *product) {
    return !__builtin_mul_overflow(a, b, product) && *product <= MAX_ELEMENTS;
}

bnorm_status bnorm_check_shape(const bnorm_shape *shape) {
    size_t elements, c;
    if (!shape)
        return BNORM_NULL_POINTER;
    if ((unsigned)shape->layout > BNORM_NCHW || (unsigned)shape->dtype > BNORM_U8)
        return BNORM_BAD_ENUM;
    const size_t b = bnorm_block_of(shape);
    if (b > 1 && (shape->layout != BNORM_NCHW || (b != 4 && b != 8 && b != 16 && b != 32)))
        return BNORM_UNSUPPORTED;
    c = b;
    if (shape->c == 0 || !multiply(bnorm_channel_blocks(shape), c, &c) ||
        !multiply(shape->n, c, &elements) || !multiply(elements, shape->hw, &elements) ||
        !multiply(c, shape->hw, &elements))
        return BNORM_BAD_SHAPE;
    return BNORM_OK;
}

bnorm_status bnorm_check_float_shape(const bnorm_shape *shape) {
    const bnorm_status status = bnorm_check_shape(shape);
    return !status && shape->dtype > BNORM_F16 ? BNORM_UNSUPPORTED : status;
}

bnorm_status bnorm_check_act(const bnorm_act *act, const bnorm_isa *isa) {
    const bnorm_act_kind kind = act->kind;
    if ((unsigned)kind > BNORM_ACT_MISH)
        return BNORM_BAD_ENUM;
    if (kind == BNORM_ACT_CLAMP && !__builtin_isless(act->a, act->b))
        return BNORM_BAD_ACTIVATION;
    if ((kind == BNORM_ACT_LEAKY_RELU || kind == BNORM_ACT_ELU) && !__builtin_isfinite(act->a))
        return BNORM_BAD_ACTIVATION;
    if (kind > BNORM_ACT_HARD_SWISH && !bnorm_isa_has_sleef(isa))
        return BNORM_UNSUPPORTED;
    return BNORM_OK;
}

bnorm_status bnorm_check_mask(const bnorm_act *act, unsigned char **mask) {
    if (act->kind == BNORM_ACT_IDENTITY)
        *mask = NULL;
    return *mask && act->kind > BNORM_ACT_LEAKY_RELU ? BNORM_UNSUPPORTED : BNORM_OK;
}

bnorm_status bnorm_check_eps(double eps) {
    return __builtin_isfinite(eps) && eps >= 0 ? BNORM_OK : BNORM_BAD_EPSILON;
}

bnorm_status bnorm_check_running(const bnorm_running *running) {
    if ((unsigned)running->variance > BNORM_VARIANCE_SAMPLE)
        return BNORM_BAD_ENUM;
    if ((!running->mean && running->new_mean) || (!running->var && running->new_var))
        return BNORM_NULL_POINTER;
    const int tracked = running->mean || running->var;
    return tracked && !__builtin_isfinite(running->rate) ? BNORM_BAD_RATE : BNORM_OK;
}

bnorm_status bnorm_check_workspace(size_t need, size_t ws_size) {
    if (need == 0)
        return BNORM_BAD_SHAPE;
    return ws_size < need ? BNORM_WORKSPACE_TOO_SMALL : BNORM_OK;
}

/* Elements from the first to one past the last of `count` pieces of `extent` elements each,
 * `stride` apart. */
static int span(size_t count, size_t stride, size_t extent, size_t *total) {
    size_t before;
    if (!multiply(count - 1, stride, &before) || before > MAX_ELEMENTS - extent)
        return 0;
    *total = before + extent;
    return 1;
}

bnorm_status bnorm_check_tensor(const bnorm_shape *shape, const void *data, size_t run_stride,
                                size_t image_stride, bnorm_tensor *tensor) {
    const size_t run = bnorm_run_length(shape), runs = bnorm_runs(shape);
    size_t image, batch;

    *tensor = (bnorm_tensor){.data = (char *)(uintptr_t)data, .type = shape->dtype};
    if (!data)
        return BNORM_OK;
    if (!run_stride && !image_stride) { /* dense: bnorm_check_shape has seen to the sizes */
        tensor->run_stride = runs > 1 ? run : 0;
        tensor->image_stride = shape->n > 1 ? runs * run : 0;
        tensor->extent = shape->n * runs * run;
        return BNORM_OK;
    }
    if (runs > 1)
        tensor->run_stride = run_stride ? run_stride : run;
    if (!span(runs, tensor->run_stride, run, &image))
        return BNORM_BAD_STRIDE;
    if (shape->n > 1 && !(tensor->image_stride = image_stride)) {
        /* Dense images: a run's padding belongs to the image. */
        const size_t pitch = run_stride ? run_stride : run;
        if (!multiply(runs, pitch, &tensor->image_stride))
            return BNORM_BAD_STRIDE;
    }
    if (!span(shape->n, tensor->image_stride, run, &batch) ||
        !span(runs, tensor->run_stride, batch, &tensor->extent))
        return BNORM_BAD_STRIDE;
    /* Distinct addresses: runs inside images that follow one another, or images inside runs, as
     * in (C, N, HW) order. */
    const int images_outside = (runs == 1 || tensor->run_stride >= run) &&
                               (shape->n == 1 || tensor->image_stride >= image);
    const int runs_outside = (shape->n == 1 || tensor->image_stride >= run) &&
                             (runs == 1 || tensor->run_stride >= batch);
    return images_outside || runs_outside ? BNORM_OK : BNORM_BAD_STRIDE;
}

bnorm_status bnorm_check_dy(const bnorm_shape *shape, bnorm_in dy, unsigned broadcast,
                            bnorm_tensor *tensor) {
    bnorm_shape narrow = *shape;
    if (broadcast > (BNORM_BROADCAST_N | BNORM_BROADCAST_C | BNORM_BROADCAST_HW))
        return BNORM_BAD_ENUM;
    if (broadcast && bnorm_block_of(shape) > 1)
        return BNORM_UNSUPPORTED;
    if (broadcast & BNORM_BROADCAST_N)
        narrow.n = 1;
    if (broadcast & BNORM_BROADCAST_C)
        narrow.c = 1;
    if (broadcast & BNORM_BROADCAST_HW)
        narrow.hw = 1;
    return bnorm_check_in(&narrow, dy, tensor);
}

static int same_tensor(const bnorm_tensor *a, const bnorm_tensor *b) {
    return a->data == b->data && a->run_stride == b->run_stride &&
           a->image_stride == b->image_stride;
}

/* Whether two tensors with the same strides, b `distance` elements behind a, have an element in
 * common: is there a difference of indices (outer, inner, position) that makes up the distance?
 * Tensors do not overlap themselves, so at each level only the two multiples of the stride around
 * the distance can. */
static int elements_meet(const bnorm_shape *shape, const bnorm_tensor *a, size_t distance) {
    const size_t run = bnorm_run_length(shape), runs = bnorm_runs(shape);
    const int images_outer = a->image_stride >= a->run_stride;
    const size_t outer_stride = images_outer ? a->image_stride : a->run_stride;
    const size_t inner_stride = images_outer ? a->run_stride : a->image_stride;
    const size_t outer_count = images_outer ? shape->n : runs,
                 inner_count = images_outer ? runs : shape->n;

    for (size_t up = 0; up < 2; up++) {
        const size_t outer = (outer_stride ? distance / outer_stride : 0) + up;
        if (outer >= outer_count)
            break;
        const size_t reached = outer * outer_stride;
        const size_t rest = up ? reached - distance : distance - reached;
        for (size_t next = 0; next < 2; next++) {
            const size_t inner = (inner_stride ? rest / inner_stride : 0) + next;
            if (inner >= inner_count)
                break;
            const size_t at = inner * inner_stride;
            if ((next ? at - rest : rest - at) < run)
                return 1;
        }
    }
    return 0;
}

/* Whether two buffers whose ranges meet do so in a way that is not allowed. */
static int clash(const bnorm_shape *shape, const bnorm_buffer *one, const bnorm_buffer *two,
                 int may_be_same) {
    const bnorm_tensor *a = one->tensor, *b = two->tensor;
    if (!a || !b || bnorm_size_of(a->type) != bnorm_size_of(b->type))
        return 1;
    const size_t size = bnorm_size_of(a->type);
    if (same_tensor(a, b))
        return !may_be_same;
    /* Different strides inside one range are not followed up: refuse. */
    if (a->run_stride != b->run_stride || a->image_stride != b->image_stride)
        return 1;
    const uintptr_t lower = (uintptr_t)(a->data < b->data ? a->data : b->data);
    const uintptr_t upper = (uintptr_t)(a->data < b->data ? b->data : a->data);
    return (upper - lower) % size || elements_meet(shape, a, (upper - lower) / size);
}

bnorm_status bnorm_check_overlap(const bnorm_shape *shape, const bnorm_buffer *buffers,
                                 size_t count, size_t output_count) {
    const bnorm_buffer *const end = buffers + count;
    for (size_t i = 0; i < output_count; i++) {
        const bnorm_buffer output = buffers[i];
        if (!output.end)
            continue;
        for (const bnorm_buffer *other = &buffers[i + 1]; other != end; other++)
            if (output.begin < other->end && other->begin < output.end &&
                clash(shape, &output, other, other >= &buffers[output_count]))
                return BNORM_BAD_OVERLAP;
    }
    return BNORM_OK;
}

#define MOST_BUFFERS ((size_t)20)

bnorm_status bnorm_check_more_overlap(const bnorm_shape *shape, const bnorm_buffer *buffers,
                                      size_t count, size_t output_count, const bnorm_buffer *more,
                                      size_t more_count, size_t more_outputs) {
    bnorm_buffer all[MOST_BUFFERS] = {{0}};
    size_t n = 0;
    for (size_t i = 0; i < more_outputs; i++)
        all[n++] = more[i];
    for (size_t i = 0; i < count; i++)
        all[n++] = buffers[i];
    for (size_t i = more_outputs; i < more_count; i++)
        all[n++] = more[i];
    return bnorm_check_overlap(shape, all, n, more_outputs + output_count);
}
