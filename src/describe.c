/* SPDX-License-Identifier: MIT
 *
 * Tensors of any rank, as other libraries describe them: which of their axes are images and which
 * positions, so that each tensor needs two strides only. */
#include "base.h"

#include "tensor.h"

#include <stdint.h>

/* One way to see the axes. Those of size 1 have no part in it, nor has the channels'. */
typedef struct axis_cut {
    unsigned char order[BNORM_MAX_DIMS]; /* axes, from the outermost on */
    size_t count;
    size_t images; /* so many of them are the images, the rest are the positions */
    size_t channel;
    bnorm_layout layout;
} axis_cut;

/* What stands in the way: the axis, and how many arrays had been looked at. */
typedef struct axis_obstacle {
    size_t arrays, axis;
} axis_obstacle;

static int is_absent(const bnorm_ndarray *arrays, size_t i) {
    return i > 0 && !arrays[i].data && !arrays[i].strides;
}

/* In elements. Strides have been checked, and the shape is not empty. */
static size_t stride_of(const bnorm_axes *axes, const bnorm_ndarray *array, size_t axis) {
    if (array->strides)
        return (size_t)array->strides[axis] / (array->itemsize ? array->itemsize : 1);
    size_t stride = 1;
    for (size_t i = axes->ndim - 1; i > axis; i--)
        stride *= (size_t)axes->sizes[i];
    return stride;
}

/* Fills *cut with the order that the axes have and the samples as its images. Where a size is to
 * blame, *bad is its axis. */
static bnorm_status check_axes(const bnorm_axes *axes, axis_cut *cut, size_t *bad) {
    if (!axes->sizes)
        return BNORM_NULL_POINTER;
    if ((unsigned)axes->dtype > BNORM_U8)
        return BNORM_BAD_ENUM;
    if (axes->ndim < 1 || axes->ndim > BNORM_MAX_DIMS)
        return BNORM_BAD_SHAPE;
    const int ndim = (int)axes->ndim, from_end = axes->channel_axis < 0 ? ndim : 0;
    if (axes->channel_axis < -ndim || axes->channel_axis >= ndim)
        return BNORM_BAD_PARAMETER;
    const int channel = axes->channel_axis + from_end;
    cut->channel = (size_t)channel;
    cut->count = 0;
    /* An empty batch must not hide that other sizes overflow. */
    bnorm_shape all = {.n = 1, .c = 1, .hw = 1};
    for (size_t axis = 0; axis < axes->ndim; axis++) {
        const int64_t size = axes->sizes[axis];
        *bad = axis;
        if (size < 0 || (size == 0 && axis == cut->channel) ||
            __builtin_mul_overflow(all.n, size > 0 ? size : 1, &all.n) || bnorm_check_shape(&all))
            return BNORM_BAD_SHAPE;
        if (axis != cut->channel && size != 1)
            cut->order[cut->count++] = (unsigned char)axis;
    }
    const size_t samples = cut->channel == 0;
    cut->images = samples < axes->ndim && axes->sizes[samples] != 1;
    return BNORM_OK;
}

/* Whether each stride on its own is one that can be expressed. */
static int check_strides(const bnorm_axes *axes, const bnorm_ndarray *array, size_t *bad) {
    for (size_t axis = 0; array->strides && axis < axes->ndim; axis++) {
        const int64_t stride = array->strides[axis];
        *bad = axis;
        /* A negative one exceeds PTRDIFF_MAX, too. */
        if (axes->sizes[axis] > 1 &&
            ((uint64_t)stride > PTRDIFF_MAX || (!stride && !array->may_broadcast) ||
             (array->itemsize && (size_t)stride % array->itemsize)))
            return 0;
    }
    return 1;
}

/* Whether axes [begin, end) of the order are a single one in memory, of this stride: that of the
 * innermost. 0 where all strides are, or where there are none. */
static int fold_axes(const bnorm_axes *axes, const bnorm_ndarray *array, const unsigned char *begin,
                     const unsigned char *end, size_t *stride, size_t *bad) {
    size_t inner = 0;
    *stride = begin < end ? inner = stride_of(axes, array, end[-1]) : 0;
    while (end - begin > 1) {
        const size_t size = (size_t)axes->sizes[*--end], outer = stride_of(axes, array, end[-1]);
        *bad = end[-1];
        if (outer % size || outer / size != inner)
            return 0;
        inner = outer;
    }
    return 1;
}

/* Fills in, out and broadcast of *array; 0, and *bad, where this cut does not allow it. */
static int express(const bnorm_axes *axes, const axis_cut *cut, bnorm_ndarray *array, size_t *bad) {
    const unsigned char *const order = cut->order, *const end = order + cut->count;
    const int has_channels = axes->sizes[cut->channel] > 1;
    const size_t channel = has_channels ? stride_of(axes, array, cut->channel) : 0;
    size_t image, position;
    if (!fold_axes(axes, array, order, order + cut->images, &image, bad) ||
        !fold_axes(axes, array, order + cut->images, end, &position, bad))
        return 0;
    *bad = cut->layout == BNORM_NHWC ? cut->channel : cut->count ? end[-1] : 0;
    if ((cut->layout == BNORM_NHWC ? channel : position) > 1)
        return 0;
    const size_t run = cut->layout == BNORM_NHWC ? position : channel;
    array->in = (bnorm_in){array->data, run, image};
    array->out = (bnorm_out){array->data, run, image};
    array->broadcast = (cut->images && !image ? BNORM_BROADCAST_N : 0u) |
                       (has_channels && !channel ? BNORM_BROADCAST_C : 0u) |
                       (cut->images < cut->count && !position ? BNORM_BROADCAST_HW : 0u);
    return 1;
}

static int all_fit(const bnorm_axes *axes, const axis_cut *cut, const bnorm_ndarray *arrays,
                   size_t count, axis_obstacle *obstacle) {
    for (size_t i = 0; i < count; i++) {
        bnorm_ndarray array = arrays[i];
        size_t axis;
        if (is_absent(arrays, i) || express(axes, cut, &array, &axis))
            continue;
        if (i >= obstacle->arrays) {
            obstacle->arrays = i + 1;
            obstacle->axis = axis;
        }
        return 0;
    }
    return 1;
}

/* The layout to try first: that of the first array, which with one channel or one position, or
 * where it is broadcast, may fit both. */
static bnorm_layout likely_layout(const bnorm_axes *axes, const axis_cut *cut,
                                  const bnorm_ndarray *array) {
    if (cut->images == cut->count)
        return BNORM_NHWC;
    if (axes->sizes[cut->channel] == 1)
        return BNORM_NCHW;
    const size_t channel = stride_of(axes, array, cut->channel);
    const size_t position = stride_of(axes, array, cut->order[cut->count - 1]);
    return channel > 1 && channel > position ? BNORM_NCHW : BNORM_NHWC;
}

/* Tries the order of *cut with its number of images, and then with ever more. */
static int find_cut(const bnorm_axes *axes, axis_cut *cut, const bnorm_ndarray *arrays,
                    size_t count, axis_obstacle *obstacle) {
    for (; cut->images <= cut->count; cut->images++) {
        const bnorm_layout likely = likely_layout(axes, cut, &arrays[0]);
        cut->layout = likely;
        if (all_fit(axes, cut, arrays, count, obstacle))
            return 1;
        cut->layout = likely == BNORM_NHWC ? BNORM_NCHW : BNORM_NHWC;
        if (all_fit(axes, cut, arrays, count, obstacle))
            return 1;
    }
    return 0;
}

/* Sorts the axes of an order, from `first` on, by an array's strides, the largest first. */
static void sort_axes(const bnorm_axes *axes, const bnorm_ndarray *array, axis_cut *cut,
                      size_t first) {
    for (size_t i = first; i < cut->count; i++) {
        const unsigned char axis = cut->order[i];
        const size_t stride = stride_of(axes, array, axis);
        size_t at = i;
        for (; at > first && stride_of(axes, array, cut->order[at - 1]) < stride; at--)
            cut->order[at] = cut->order[at - 1];
        cut->order[at] = axis;
    }
}

/* The first of the orders that all arrays agree on: as given, the samples and then the rest as in
 * memory, all as in memory. Elements of distinct addresses that fit a cut in any order fit one of
 * these: the axes that form one are sorted, and do not interleave with those of the other. */
static int find_order(const bnorm_axes *axes, axis_cut *cut, const bnorm_ndarray *arrays,
                      size_t count, axis_obstacle *obstacle) {
    const size_t samples = cut->images;
    if (find_cut(axes, cut, arrays, count, obstacle))
        return 1;
    if (!axes->any_order)
        return 0;
    cut->images = samples;
    sort_axes(axes, &arrays[0], cut, samples);
    if (find_cut(axes, cut, arrays, count, obstacle))
        return 1;
    cut->images = 0;
    sort_axes(axes, &arrays[0], cut, 0);
    return find_cut(axes, cut, arrays, count, obstacle);
}

static size_t product(const bnorm_axes *axes, const axis_cut *cut, size_t first, size_t end) {
    size_t size = 1;
    for (size_t i = first; i < end; i++)
        size *= (size_t)axes->sizes[cut->order[i]];
    return size;
}

/* bnorm_describe, but for where it writes what is wrong. */
static bnorm_status describe(const bnorm_axes *axes, bnorm_ndarray *arrays, size_t count,
                             bnorm_shape *shape, axis_obstacle *obstacle) {
    axis_cut cut;
    if (!axes || !arrays || !shape)
        return BNORM_NULL_POINTER;
    if (count == 0)
        return BNORM_BAD_SHAPE;
    const bnorm_status status = check_axes(axes, &cut, &obstacle->axis);
    if (status)
        return status;

    bnorm_shape found = {.dtype = axes->dtype, .c = (size_t)axes->sizes[cut.channel]};
    const int is_empty = !product(axes, &cut, 0, cut.count);
    if (is_empty) {
        cut.layout = cut.channel + 1 == axes->ndim ? BNORM_NHWC : BNORM_NCHW;
    } else {
        for (size_t i = 0; i < count; i++) {
            obstacle->arrays = i + 1;
            if (!check_strides(axes, &arrays[i], &obstacle->axis))
                return BNORM_BAD_STRIDE;
        }
        obstacle->arrays = 0;
        if (!find_order(axes, &cut, arrays, count, obstacle))
            return BNORM_BAD_STRIDE;
    }
    found.layout = cut.layout;
    found.n = product(axes, &cut, 0, cut.images);
    found.hw = product(axes, &cut, cut.images, cut.count);
    for (size_t i = 0; i < count; i++) {
        size_t axis;
        arrays[i].in = (bnorm_in){arrays[i].data, 0, 0};
        arrays[i].out = (bnorm_out){arrays[i].data, 0, 0};
        arrays[i].broadcast = 0;
        if (!is_empty && !is_absent(arrays, i))
            express(axes, &cut, &arrays[i], &axis);
    }
    *shape = found;
    return BNORM_OK;
}

bnorm_status bnorm_describe(const bnorm_axes *axes, bnorm_ndarray *arrays, size_t count,
                            bnorm_shape *shape, size_t *bad_array, size_t *bad_axis) {
    axis_obstacle obstacle = {0, 0};
    const bnorm_status status = describe(axes, arrays, count, shape, &obstacle);
    if (status && bad_array)
        *bad_array = obstacle.arrays ? obstacle.arrays - 1 : 0;
    if (status && bad_axis)
        *bad_axis = obstacle.axis;
    return status;
}
