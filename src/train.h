/* SPDX-License-Identifier: MIT
 *
 * Batch statistics and the training forward pass. */
#ifndef BNORM_TRAIN_H
#define BNORM_TRAIN_H

#include "apply.h"
#include "reduce.h"
#include "renorm.h"
#include "weighted.h"

typedef struct bnorm_statistics {
    int collected; /* not 0: whole subtrees are all that is wanted */
    bnorm_view view;
    bnorm_blocks blocks;
    bnorm_walk x;
    double *sum, *block_m2;  /* blocks.count x c each */
    bnorm_partials partials; /* the same, to be read */
    double *mean, *m2;       /* c each: merged */
    double *totals[2];       /* c each: room of ghost batches */
    bnorm_coefficient_args derived;
    bnorm_weighted weighted;
    const bnorm_renorm *renorm; /* NULL = none */
    bnorm_renorm_args renormed;
    bnorm_elementwise pass; /* y.data NULL = bnorm_moments */
    const bnorm_isa *isa;
} bnorm_statistics;

/* The checks of bnorm_moments, bnorm_partial_collect and bnorm_forward_train. Where they pass, *s
 * says what there is to do; x.data NULL = nothing. s NULL = only the checks. piece NULL =
 * bnorm_moments; weights NULL = none. */
bnorm_status bnorm_plan_moments(const bnorm_shape *shape, bnorm_in x, const bnorm_weights *weights,
                                float *mean, float *var, const bnorm_partial *piece, void *ws,
                                size_t ws_size, const bnorm_exec *exec, bnorm_statistics *s);
bnorm_status bnorm_plan_train(const bnorm_shape *shape, bnorm_in x, bnorm_out y,
                              const bnorm_train *train, void *ws, size_t ws_size,
                              const bnorm_exec *exec, bnorm_statistics *s);

/* Sums and M2 of block b, without weights. */
void bnorm_statistics_reduce(const bnorm_statistics *s, size_t b, size_t channel, size_t channels);
void bnorm_statistics_run(const bnorm_statistics *s, const bnorm_exec *exec);

bnorm_status bnorm_check_train(const bnorm_train *train, const bnorm_exec *exec);
/* Of M2, in the running variance. */
double bnorm_running_divisor(const bnorm_running *running, double n);
/* What an empty batch leaves of running statistics that go elsewhere. */
void bnorm_keep_running(const bnorm_running *running, size_t c);

#endif
