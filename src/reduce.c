/* SPDX-License-Identifier: MIT */
#include "base.h"

#include "reduce.h"

#include "run.h"

#include <string.h>

/* Whether rows have lanes without a channel. */
static int has_padding(const bnorm_map_args *args) {
    return args->valid < args->groups * args->lanes;
}

void bnorm_reduce_moments(const bnorm_reduction *r, const bnorm_tensor *x, size_t b, size_t channel,
                          size_t channels) {
    const bnorm_view *view = &r->view;
    const bnorm_block block = bnorm_block_at(view, &r->blocks, b);
    const bnorm_part part =
        bnorm_part_of(view, channel, channels, block.image, block.from, block.len);
    double *const sum = bnorm_entry(r, 0, b, channel), *const m2 = bnorm_entry(r, 1, b, channel);
    bnorm_map_args args; /* member by member, as compilers clear whole structs first */
    args.images = 1;
    args.groups = part.groups;
    args.rows = part.rows;
    args.lanes = part.lanes;
    args.valid = channels;
    args.hints = r->hints;
    args.x = *x;
    args.dy.data = args.argument.data = args.out.data = args.dresidual.data = NULL;
    bnorm_move_to(&args.x, &part);
    if (view->planes)
        r->kernels->moments_span(&args, sum, m2);
    else if (view->leaves)
        r->kernels->moments_tree(&args, sum, m2);
    else
        BNORM_HELD(r->kernels->moments_rows(&args, r->blocks.chains, sum, m2), has_padding(&args));
}

void bnorm_copy_element(const void *element, bnorm_dtype type, size_t n, float *copies) {
    if (bnorm_size_of(type) == sizeof(float)) {
        for (size_t i = 0; i < n; i++)
            memcpy(copies + i, element, sizeof(float));
    } else {
        for (size_t i = 0; i < n; i++)
            memcpy((uint16_t *)(void *)copies + i, element, sizeof(uint16_t));
    }
}

static void run_sums(const bnorm_reduction *r, const bnorm_map_args *args, double *sum_g,
                     double *sum_gx) {
    if (r->view.planes)
        r->kernels->sums_span(args, sum_g, sum_gx);
    else if (r->view.leaves)
        r->kernels->sums_tree(args, sum_g, sum_gx);
    else
        BNORM_HELD(r->kernels->sums_rows(args, r->blocks.chains, sum_g, sum_gx), has_padding(args));
}

/* All rows or planes of the call have one value of dy. Not inlined, as few calls need that much of
 * stack. */
static __attribute__((noinline)) void same_sums(const bnorm_reduction *r, bnorm_map_args *args,
                                                double *sum_g, double *sum_gx) {
    float copies[BNORM_COPIES];
    bnorm_copy_element(args->dy.data, args->dy.type, bnorm_min(args->lanes, BNORM_COPIES), copies);
    args->dy.data = copies;
    run_sums(r, args, sum_g, sum_gx);
}

/* What the kernels take for one slice. */
static void take_slice(const bnorm_view *view, const bnorm_map_args *whole, const bnorm_part *part,
                       size_t channels, bnorm_map_args *args) {
    const size_t channel = bnorm_channel_of(view, part);
    args->pre = whole->pre; /* only what reductions read */
    args->act = whole->act;
    args->hints = whole->hints;
    args->x = whole->x;
    args->dy = whole->dy;
    args->argument = whole->argument;
    args->mask = whole->mask;
    args->out.data = args->dresidual.data = NULL;
    args->images = 1;
    args->groups = part->groups;
    args->rows = part->rows;
    args->lanes = part->lanes;
    args->valid = channels;
    bnorm_move_inputs(args, part);
    args->center = whole->center + channel;
    args->scale = whole->scale + channel;
    args->shift = whole->shift + channel;
    args->invstd = whole->invstd + channel;
}

void bnorm_reduce_sums(const bnorm_reduction *r, const bnorm_map_args *whole, size_t b,
                       size_t channel, size_t channels) {
    const bnorm_view *view = &r->view;
    const bnorm_block block = bnorm_block_at(view, &r->blocks, b);
    /* A dy that is written out comes one row, or plane, at a time, unless it is the same in all. */
    const size_t dy_stride = view->planes ? whole->dy.group_stride : whole->dy.row_stride;
    const int same_dy = whole->dy.same_lanes;
    size_t at_once = channels;
    if (same_dy)
        at_once = dy_stride != 0 ? 1 : view->planes ? channels : bnorm_min(channels, BNORM_COPIES);
    for (size_t i = 0; i < channels; i += at_once) {
        const size_t count = bnorm_min(at_once, channels - i);
        const bnorm_part part =
            bnorm_part_of(view, channel + i, count, block.image, block.from, block.len);
        double *const sum_g = bnorm_entry(r, 0, b, channel + i), *const sum_gx = bnorm_entry(
                                                                     r, 1, b, channel + i);
        bnorm_map_args args;
        take_slice(view, whole, &part, count, &args);
        if (same_dy && args.lanes > 1)
            same_sums(r, &args, sum_g, sum_gx);
        else
            run_sums(r, &args, sum_g, sum_gx);
    }
}
