/* SPDX-License-Identifier: MIT
 *
 * How tensors of every layout are counted through, and the memory of one. All that follows from
 * the layout of a shape is in here. */
#ifndef BNORM_TENSOR_H
#define BNORM_TENSOR_H

#include "../dispatch/isa.h"

#include <stdint.h>

#pragma GCC visibility push(hidden)

static inline size_t bnorm_min(size_t a, size_t b) {
    return a < b ? a : b;
}

static inline size_t bnorm_ceil_div(size_t a, size_t b) {
    return a / b + (a % b != 0);
}

/* Bytes of an element. */
static inline size_t bnorm_size_of(bnorm_dtype type) {
    return type == BNORM_F32 ? 4 : type == BNORM_BF16 || type == BNORM_F16 ? 2 : 1;
}

static inline int bnorm_is_empty(const bnorm_shape *shape) {
    return shape->n == 0 || shape->hw == 0;
}

/* A shape as images of groups of rows of lanes; see bnorm_tensor. There are two families:
 *   rows     a lane is a channel: lane i of group g is channel g*lanes + i, or padding.
 *            NHWC has one group, a blocked tensor one per block. (N, C) data is one image of n
 *            rows, one group where channels are next to each other, without padding, else one per
 *            channel or block
 *   planes   a group is a channel, of one row: NCHW */
typedef struct bnorm_view {
    int planes;
    int leaves; /* rows are samples: (N, C) data */
    size_t images, groups, rows, lanes;
    size_t c;         /* channels */
    size_t positions; /* of a channel in an image: rows, or lanes of planes */
} bnorm_view;

void bnorm_view_of(const bnorm_shape *shape, bnorm_view *view);

/* Values per channel. */
static inline double bnorm_values_of(const bnorm_view *view) {
    return (double)view->images * (double)view->positions;
}

/* A rectangle of a view. */
typedef struct bnorm_part {
    size_t image, images, group, groups, row, rows, lane, lanes;
} bnorm_part;

static inline bnorm_part bnorm_whole(const bnorm_view *view) {
    return (bnorm_part){
        .images = view->images, .groups = view->groups, .rows = view->rows, .lanes = view->lanes};
}

/* Whether channels are counted by groups, not by the lanes of the only one. */
static inline int bnorm_counts_groups(const bnorm_view *view) {
    return view->planes || view->groups > 1;
}

/* Channels of a group. */
static inline size_t bnorm_unit(const bnorm_view *view) {
    return view->planes ? 1 : view->lanes;
}

/* The first channel of a part, for its parameters. */
static inline size_t bnorm_channel_of(const bnorm_view *view, const bnorm_part *part) {
    return part->group * bnorm_unit(view) + (view->planes ? 0 : part->lane);
}

/* Positions of each image of a part: the first, and how many. */
static inline size_t bnorm_first_position(const bnorm_view *view, const bnorm_part *part) {
    return view->planes ? part->lane : part->row;
}
static inline size_t bnorm_positions(const bnorm_view *view, const bnorm_part *part) {
    return view->planes ? part->lanes : part->rows;
}
/* The n positions of a part from number `at` on. */
static inline bnorm_part bnorm_some_positions(const bnorm_view *view, const bnorm_part *whole,
                                              size_t at, size_t n) {
    bnorm_part part = *whole;
    *(view->planes ? &part.lane : &part.row) += at;
    *(view->planes ? &part.lanes : &part.rows) = n;
    return part;
}

/* Groups of a part, where channels are counted by these, or lanes: how many, and n of them from
 * number `at` on. */
static inline size_t bnorm_slices(const bnorm_view *view, const bnorm_part *part) {
    return bnorm_counts_groups(view) ? part->groups : part->lanes;
}
static inline bnorm_part bnorm_some_slices(const bnorm_view *view, const bnorm_part *whole,
                                           size_t at, size_t n) {
    const int groups = bnorm_counts_groups(view);
    bnorm_part part = *whole;
    *(groups ? &part.group : &part.lane) += at;
    *(groups ? &part.groups : &part.lanes) = n;
    return part;
}

/* Channels [channel, channel + channels) of positions [from, from + len) of one image: whole groups
 * where there are several. */
static inline bnorm_part bnorm_part_of(const bnorm_view *view, size_t channel, size_t channels,
                                       size_t image, size_t from, size_t len) {
    bnorm_part part = {.image = image, .images = 1, .groups = 1, .rows = 1};
    if (view->planes) {
        part.group = channel;
        part.groups = channels;
        part.lane = from;
        part.lanes = len;
        return part;
    }
    part.row = from;
    part.rows = len;
    part.lane = channel;
    part.lanes = channels;
    if (view->groups > 1) {
        part.group = channel / view->lanes;
        part.groups = bnorm_ceil_div(channels, view->lanes);
        part.lane = 0;
        part.lanes = view->lanes;
    } else if (channel + channels == view->c) {
        part.lanes = view->lanes - channel; /* with the padding */
    }
    return part;
}

/* Where a part begins, in elements. */
static inline size_t bnorm_offset_of(const bnorm_tensor *tensor, const bnorm_part *part) {
    return part->image * tensor->image_stride + part->group * tensor->group_stride +
           part->row * tensor->row_stride + (tensor->same_lanes ? 0 : part->lane);
}

/* Moves a tensor to where a part begins. */
static inline void bnorm_move_to(bnorm_tensor *tensor, const bnorm_part *part) {
    if (tensor->data)
        tensor->data =
            (char *)tensor->data + bnorm_offset_of(tensor, part) * bnorm_size_of(tensor->type);
}

/* The same of the inputs of a pass, and of its mask. */
static inline void bnorm_move_inputs(bnorm_map_args *args, const bnorm_part *part) {
    const bnorm_bits *mask = &args->mask;
    bnorm_move_to(&args->x, part);
    bnorm_move_to(&args->dy, part);
    bnorm_move_to(&args->argument, part);
    args->mask.at = part->image * mask->image_stride + part->group * mask->group_stride +
                    part->row * mask->row_stride + part->lane;
}

/* Moves a tensor to sample `first`, from which it has every `step`th one. */
void bnorm_take_samples(const bnorm_view *view, bnorm_tensor *tensor, size_t first, size_t step);

bnorm_status bnorm_check_shape(const bnorm_shape *shape);
/* The shape of an operation with statistics: not for quantized tensors. */
bnorm_status bnorm_check_float_shape(const bnorm_shape *shape);

/* The dense tensor of a shape, without data: quantized by 1 and 0; returns its elements. The shape
 * has been checked and is not empty. */
size_t bnorm_dense_tensor(const bnorm_shape *shape, bnorm_tensor *tensor);

/* Makes it one with other strides, or with one value only along the axes `broadcast`. Fills *extent,
 * the elements from the first to one past the last. */
bnorm_status bnorm_check_strides(const bnorm_shape *shape, bnorm_in in, unsigned broadcast,
                                 bnorm_tensor *tensor, size_t *extent);

/* The bits of a mask, or none: those of the dense tensor. */
void bnorm_set_bits(const bnorm_shape *shape, unsigned char *mask, bnorm_bits *bits);

/* Changes the view where the channels of a tensor of (N, C) data are not next to each other. */
void bnorm_fit_view(const bnorm_shape *shape, const bnorm_tensor *tensor, bnorm_view *view);

#pragma GCC visibility pop

#endif
