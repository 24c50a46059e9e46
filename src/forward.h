/* SPDX-License-Identifier: MIT
 *
 * Batch statistics and the training forward pass. The course of a call: bnorm_plan_forward checks
 * it and says in a bnorm_forward what there is to do; nothing has been written so far. Then
 * bnorm_run_forward runs the pass: blocks are reduced to sums and M2, these are merged along the
 * tree, coefficients follow from them, y from those. */
#ifndef BNORM_FORWARD_H
#define BNORM_FORWARD_H

#include "call.h"
#include "map.h"
#include "reduce.h"
#include "renorm.h"
#include "weights.h"

#pragma GCC visibility push(hidden)

typedef struct bnorm_forward {
    enum bnorm_stage stage;
    bnorm_reduction sums;
    bnorm_map map;     /* x and, for BNORM_STAGE_ALL, the others; x absent = nothing to do */
    double *mean, *m2; /* c each: merged */
    double *totals[2]; /* c each: room of ghost batches */
    bnorm_coefficient_args derived;
    bnorm_running running;
    bnorm_weighing weights;
    const bnorm_renorm *renorm; /* NULL = none */
    bnorm_renorm_args renormed;
    void *ws;
} bnorm_forward;

/* A job with `train`, of which the running statistics of bnorm_moments are a case: mean and var
 * that take the values of the batch. Changes nothing but *f. */
bnorm_status bnorm_plan_forward(const bnorm_job *job, const bnorm_batch *batch,
                                const bnorm_exec *exec, bnorm_forward *f);
/* What follows from the view, the tensors, the parameters and the number of the first image. */
void bnorm_lay_out_forward(bnorm_forward *f, const bnorm_view *view, size_t first,
                           const bnorm_exec *exec);
void bnorm_run_forward(bnorm_forward *f, const bnorm_exec *exec);

/* The arrays of training's options; those that are saved have `saved` floats. */
void bnorm_uses_train(bnorm_uses *uses, const bnorm_train *train, size_t c, size_t saved);

#pragma GCC visibility pop

#endif
