/* SPDX-License-Identifier: MIT
 *
 * Elementwise work: y of forward, dx and dresidual of backward. */
#ifndef BNORM_MAP_H
#define BNORM_MAP_H

#include "../dispatch/cpu.h"
#include "tensor.h"

#pragma GCC visibility push(hidden)

typedef struct bnorm_map {
    bnorm_view view;
    bnorm_map_args args; /* of the whole view */
    const bnorm_isa *isa;
    void (*kernel)(const bnorm_map_args *args);
} bnorm_map;

/* Channels of a part that the arrays that stand for an absent scale or shift have room for. */
#define BNORM_DEFAULTS ((size_t)64)

/* When the view is there, and tensors and parameters are in `args`: fills in what follows for the
 * whole view. Images that follow one another without a gap become one. */
void bnorm_plan_map(bnorm_map *map, const bnorm_exec *exec);

/* What the kernels do about the caches (enum bnorm_hint) in a call on so many different tensors of
 * so many bytes altogether; in_place: an output is an input. limits are for BNORM_MEMORY_AUTO. */
unsigned bnorm_hints(bnorm_memory memory, bnorm_limits limits, size_t bytes, int in_place);

/* The arguments for a part; near: it is in cache. */
void bnorm_take_part(const bnorm_map *map, const bnorm_part *part, int near, bnorm_map_args *args);
void bnorm_run_map(const bnorm_map *map, const bnorm_map_args *args);
/* Without absent parameters. */
void bnorm_map_whole(const bnorm_map *map);
void bnorm_map_part(const bnorm_map *map, const bnorm_part *part, int near);

/* Sets the bits of a mask behind the last element, before the others are written. */
void bnorm_end_mask(const bnorm_shape *shape, const bnorm_bits *mask);

#pragma GCC visibility pop

#endif
