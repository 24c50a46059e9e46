/* SPDX-License-Identifier: MIT
 *
 * One kernel call for a part of a view: what a call has planned, moved to where the part begins. */
#include "base.h"

#include "map.h"

#include "run.h"

/* Images without gaps are one: long parts, in which there is time to look ahead. */
static int is_dense(const bnorm_view *view, const bnorm_tensor *tensor) {
    return !tensor->data || tensor->image_stride == view->rows * tensor->row_stride;
}

unsigned bnorm_hints(bnorm_memory memory, bnorm_limits limits, size_t bytes, int in_place) {
    const size_t mib = (size_t)1 << 20,
                 prefetch = in_place ? limits.prefetch_in_place : limits.prefetch;
    unsigned hints = 0;
    if (memory == BNORM_MEMORY_AUTO) {
        if (bytes > (size_t)limits.l2 << 10)
            hints |= BNORM_PREFETCH_SUMS;
        if (limits.stream && !in_place && bytes >= limits.stream * mib)
            memory = BNORM_MEMORY_STREAM;
        else
            memory = bytes > prefetch * mib ? BNORM_MEMORY_PREFETCH : BNORM_MEMORY_CACHED;
    }
    if (memory == BNORM_MEMORY_CACHED)
        return hints;
    return hints | BNORM_PREFETCH_SUMS | BNORM_PREFETCH_IN |
           (memory == BNORM_MEMORY_STREAM && !in_place ? BNORM_STREAM : BNORM_PREFETCH_OUT);
}

#define MOST_TENSORS ((size_t)5)
/* As exec->memory says. */
static unsigned hints_of(const bnorm_map *map, const bnorm_exec *exec) {
    const bnorm_map_args *args = &map->args;
    const bnorm_tensor *const tensors[MOST_TENSORS] = {&args->x, &args->dy, &args->argument,
                                                       &args->out, &args->dresidual};
    const bnorm_view *view = &map->view;
    const size_t elements = view->images * view->groups * view->rows * view->lanes;
    const bnorm_memory memory = exec ? exec->memory : BNORM_MEMORY_AUTO;
    const bnorm_limits limits = bnorm_cpu_limits();
    size_t element_bytes = 0; /* of different tensors */
    int in_place = 0;
    /* Below all limits, whatever the tensors. */
    if (memory == BNORM_MEMORY_AUTO &&
        elements * (MOST_TENSORS * sizeof(float)) <= (size_t)limits.l2 << 10)
        return 0;
    for (size_t i = 0; i < MOST_TENSORS; i++) {
        int again = 0;
        if (!tensors[i]->data)
            continue;
        for (size_t k = 0; k < i; k++)
            again |= tensors[i]->data == tensors[k]->data;
        in_place |= again;
        if (again)
            continue;
        element_bytes += bnorm_size_of(tensors[i]->type);
    }
    return bnorm_hints(memory, limits, elements * element_bytes, in_place);
}

void bnorm_plan_map(bnorm_map *map, const bnorm_exec *exec) {
    bnorm_map_args *const args = &map->args;
    bnorm_view *const view = &map->view;
    const bnorm_isa *const isa = bnorm_exec_isa(exec);
    map->isa = isa;
    map->kernel = view->planes ? isa->apply_span : isa->apply_rows;
    if (view->groups == 1 && !view->planes && view->images > 1 && is_dense(view, &args->x) &&
        is_dense(view, &args->dy) && is_dense(view, &args->argument) &&
        is_dense(view, &args->out) && is_dense(view, &args->dresidual)) {
        view->rows *= view->images;
        view->images = 1;
    }
    args->images = view->images;
    args->groups = view->groups;
    args->rows = view->rows;
    args->lanes = args->valid = view->lanes;
    args->hints = hints_of(map, exec);
    args->ahead = 0;
}

/* Stand-ins for absent parameters. */
#define EIGHT(v) v, v, v, v, v, v, v, v
static const float ones[BNORM_DEFAULTS] = {EIGHT(1), EIGHT(1), EIGHT(1), EIGHT(1),
                                           EIGHT(1), EIGHT(1), EIGHT(1), EIGHT(1)};
static const float zeros[BNORM_DEFAULTS] = {0};

static const float *from(const float *array, size_t channel, const float *otherwise) {
    return array ? array + channel : otherwise;
}

/* Whether the planes of the next channels, which are reduced next, are asked for while these are mapped,
 * whose inputs are in a cache. Not where the L3 has all tensors; where planes are one piece, which the
 * CPU sees coming; or where more passes before they are used than stays in a cache. */
#define MOST_AHEAD ((size_t)2 << 20)
static int is_followed(const bnorm_view *view, const bnorm_map_args *args) {
    const size_t elements = view->images * args->groups * view->positions * (args->dy.data ? 2 : 1);
    return view->planes && (args->hints & BNORM_STREAM) && view->images > 1 &&
           elements * bnorm_size_of(args->x.type) <= MOST_AHEAD;
}

void bnorm_take_part(const bnorm_map *map, const bnorm_part *part, int near, bnorm_map_args *args) {
    const bnorm_view *view = &map->view;
    const size_t channel = bnorm_channel_of(view, part);
    *args = map->args;
    args->images = part->images;
    args->groups = part->groups;
    args->rows = part->rows;
    args->lanes = args->valid = part->lanes;
    if (!view->planes && part->groups == 1)
        args->valid = bnorm_min(part->lanes, view->c - channel);
    bnorm_move_inputs(args, part);
    bnorm_move_to(&args->out, part);
    bnorm_move_to(&args->dresidual, part);
    args->center = from(args->center, channel, NULL);
    args->scale = from(args->scale, channel, ones);
    args->shift = from(args->shift, channel, zeros);
    args->invstd = from(args->invstd, channel, NULL);
    args->slope = from(args->slope, channel, NULL);
    args->offset = from(args->offset, channel, NULL);
    if (near && is_followed(view, args))
        args->ahead = part->groups * args->x.group_stride * bnorm_size_of(args->x.type);
    else if (near)
        args->hints &= ~(unsigned)BNORM_PREFETCH_IN;
}

void bnorm_run_map(const bnorm_map *map, const bnorm_map_args *args) {
    BNORM_HELD(map->kernel(args), args->valid < args->lanes);
}

static void map_rectangle(const bnorm_map *map, const bnorm_part *part, int near) {
    bnorm_map_args args;
    bnorm_take_part(map, part, near, &args);
    bnorm_run_map(map, &args);
}

void bnorm_map_whole(const bnorm_map *map) {
    const bnorm_view *view = &map->view;
    const bnorm_part part = bnorm_whole(view);
    if (view->planes || view->groups * view->lanes == view->c)
        map->kernel(&map->args);
    else
        bnorm_map_part(map, &part, 0);
}

void bnorm_map_part(const bnorm_map *map, const bnorm_part *part, int near) {
    const bnorm_view *view = &map->view;
    const int padded = !view->planes && (part->group + part->groups) * view->lanes > view->c;
    if (padded && part->groups > 1) { /* the block that has padding on its own */
        bnorm_part whole = *part, last = *part;
        whole.groups--;
        last.group += whole.groups;
        last.groups = 1;
        map_rectangle(map, &whole, near);
        map_rectangle(map, &last, near);
    } else {
        map_rectangle(map, part, near);
    }
}

void bnorm_end_mask(const bnorm_shape *shape, const bnorm_bits *mask) {
    if (mask->bits)
        mask->bits[bnorm_mask_size(shape) - 1] = 0;
}
