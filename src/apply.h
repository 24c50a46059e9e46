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
    bnorm_walk mask;                     /* written; bits */
    const float *center, *scale, *shift; /* as in bnorm_affine */
    bnorm_act act;
    bnorm_quant x_quant, residual_quant, y_quant;
    const bnorm_isa *isa;
    unsigned hints; /* sum of enum bnorm_hint */
} bnorm_elementwise;

/* The view for an elementwise pass over `count` tensors, and their walks adapted to it: (N, C) data
 * with gaps between channels becomes planes of one pixel; images that follow one another without a
 * gap become one. */
bnorm_view bnorm_elementwise_view(const bnorm_shape *shape, bnorm_walk *const *walks, size_t count);

/* What its kernels do about the caches, as exec->memory says, for `count` tensors. */
unsigned bnorm_elementwise_hints(const bnorm_exec *exec, const bnorm_view *view,
                                 bnorm_walk *const *walks, size_t count);

/* One piece, with some of the pass's hints. */
void bnorm_elementwise_piece(const bnorm_elementwise *pass, const bnorm_piece *piece,
                             unsigned hints);
/* Sets the bits of a mask behind the last element, before the others are written. */
void bnorm_end_mask(const bnorm_shape *shape, unsigned char *mask);
void bnorm_elementwise_run(const bnorm_elementwise *pass, const bnorm_exec *exec);

/* The checks of bnorm_apply. Where they pass, *pass says what there is to do; y.data NULL =
 * nothing. pass NULL = only the checks. */
bnorm_status bnorm_plan_apply(const bnorm_shape *shape, bnorm_in x, bnorm_out y,
                              const bnorm_affine *affine, const bnorm_exec *exec,
                              bnorm_elementwise *pass);

#endif
