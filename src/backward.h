/* SPDX-License-Identifier: MIT
 *
 * The training backward pass, for batch and for frozen statistics. The course of a call: as that of
 * a forward one, with sums of g and g*(x - mean) for the statistics and dx and dresidual for y.
 * Where the activation's argument is computed anew, its scale and shift come before all that. */
#ifndef BNORM_BACKWARD_H
#define BNORM_BACKWARD_H

#include "call.h"
#include "map.h"
#include "reduce.h"
#include "renorm.h"
#include "weights.h"

#pragma GCC visibility push(hidden)

typedef struct bnorm_backward_plan {
    enum bnorm_stage stage;
    bnorm_reduction sums;
    bnorm_map map;                       /* x absent = only dgamma and dbeta are to be cleared */
    double *sum_g, *sum_gx;              /* c each: merged */
    double *totals[2];                   /* c each: room of ghost batches */
    bnorm_scale_args prepared;           /* what the sums need already */
    bnorm_grad_coefficient_args derived; /* slope NULL = frozen, or dx not wanted */
    int frozen;
    const float *save_var; /* invstd is computed of it and eps; NULL = invstd is given */
    double eps;
    float *invstd;
    bnorm_weighing weights;
    const float *renorm_r, *renorm_d; /* NULL = none */
    bnorm_renorm_args renormed;
    const float *coefficients; /* of BNORM_STAGE_MAP */
    void *ws;
} bnorm_backward_plan;

/* A job with `grad`. Changes nothing but *b. */
bnorm_status bnorm_plan_backward(const bnorm_job *job, const bnorm_batch *batch,
                                 const bnorm_exec *exec, bnorm_backward_plan *b);
/* What follows from the view, the tensors, the parameters and the number of the first image. */
void bnorm_lay_out_backward(bnorm_backward_plan *b, const bnorm_view *view, size_t first,
                            const bnorm_exec *exec);
void bnorm_run_backward(bnorm_backward_plan *b, const bnorm_exec *exec);

#pragma GCC visibility pop

#endif
