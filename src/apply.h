/* SPDX-License-Identifier: MIT
 *
 * The elementwise pass y = act((x - center)*scale + shift + residual), shared by inference and
 * training. */
#ifndef BNORM_APPLY_H
#define BNORM_APPLY_H

#include "driver.h"

typedef struct bnorm_elementwise {
    bnorm_view view;
    bnorm_walk x, residual, y;
    const float *center, *scale, *shift; /* as in bnorm_affine */
    bnorm_act act;
    const bnorm_isa *isa;
    unsigned hints; /* sum of enum bnorm_hint */
} bnorm_elementwise;

/* The view for an elementwise pass over `count` tensors, and their walks adapted to it: (N, C) data
 * with gaps between channels becomes planes of one pixel; images that follow one another without a
 * gap become one. */
bnorm_view bnorm_elementwise_view(const bnorm_shape *shape, bnorm_walk *const *walks, size_t count);

/* What its kernels do about the caches, as exec->memory says; the same `count` tensors. */
unsigned bnorm_elementwise_hints(const bnorm_exec *exec, const bnorm_view *view,
                                 bnorm_walk *const *walks, size_t count);

/* One piece, with some of the pass's hints. */
void bnorm_elementwise_piece(const bnorm_elementwise *pass, const bnorm_piece *piece,
                             unsigned hints);
void bnorm_elementwise_run(const bnorm_elementwise *pass, const bnorm_exec *exec);

#endif
