/* SPDX-License-Identifier: MIT
 *
 * The training backward pass, for batch and for frozen statistics. */
#ifndef BNORM_BACKWARD_H
#define BNORM_BACKWARD_H

#include "apply.h"
#include "reduce.h"

/* One of the two phases of a batch in pieces, instead of the whole of bnorm_backward. */
typedef struct bnorm_grad_phase {
    const bnorm_partial *piece; /* that takes the sums, which are all that is wanted; or NULL */
    const float *coefficients; /* that bnorm_finish_grad has given, for dx and dresidual; or NULL */
} bnorm_grad_phase;

typedef struct bnorm_gradients {
    int collected;         /* not 0: whole subtrees are all that is wanted */
    bnorm_view view;       /* of the sums */
    bnorm_view apply_view; /* of the elementwise pass */
    bnorm_blocks blocks;
    bnorm_walk x, dy, extra, mask;                      /* as the sums see them */
    bnorm_walk ax, ady, aextra, amask, adx, adresidual; /* as the elementwise pass sees them */
    double *block_g, *block_gx;                         /* blocks.count x c each */
    bnorm_partials partials;                            /* the same, to be read */
    double *sum_g, *sum_gx;                             /* c each */
    bnorm_scale_args prepared;                          /* what the sums need already */
    bnorm_grad_coefficient_args derived;                /* slope NULL = frozen, or dx not wanted */
    enum bnorm_pre pre;
    unsigned hints; /* of the elementwise pass */
    bnorm_act act;
    const float *save_mean;
    int has_sums;
    int has_scale; /* scale and shift are to be computed */
    const bnorm_isa *isa;
} bnorm_gradients;

/* The checks of bnorm_backward, or of a phase. Where they pass, *s says what there is to do; x.data
 * NULL = only to clear dgamma and dbeta. s NULL = only the checks. */
bnorm_status bnorm_plan_backward(const bnorm_shape *shape, bnorm_in x, bnorm_in dy, bnorm_out dx,
                                 const bnorm_grad *grad, const bnorm_grad_phase *phase, void *ws,
                                 size_t ws_size, const bnorm_exec *exec, bnorm_gradients *s);

void bnorm_gradients_run(const bnorm_gradients *s, const bnorm_exec *exec);

#endif
