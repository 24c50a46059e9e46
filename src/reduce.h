/* SPDX-License-Identifier: MIT
 *
 * Reduce, finish, apply: the course of every operation with per-channel sums.
 *   reduce  fill a table of partial results, one entry per block and channel; any order
 *   finish  merge the entries of a channel in a fixed order and derive its coefficients
 *   apply   an elementwise pass that uses the coefficients
 * The blocks depend on the shape alone; how they are grouped into tasks changes nothing but the
 * time. */
#ifndef BNORM_REDUCE_H
#define BNORM_REDUCE_H

#include "driver.h"

/* What lies in the workspace: two tables of partial results (blocks x c), two merged results, up to
 * five coefficients and, for variants of the operations, two totals and two parameters per channel
 * and a sum of weights per block. */
typedef struct bnorm_tables {
    double *entries[2];
    double *merged[2];
    double *totals[2];
    float *coefficients[5];
    float *params[2];
    double *weights;
} bnorm_tables;

/* Bytes, wherever in the batch the images are; 0 where that overflows. */
size_t bnorm_reduction_workspace(const bnorm_view *view, const bnorm_blocks *blocks);
bnorm_tables bnorm_tables_of(const bnorm_view *view, const bnorm_blocks *blocks, void *ws);
/* The entries as the merging kernels take them. */
bnorm_partials bnorm_partials_of(const bnorm_view *view, const bnorm_blocks *blocks,
                                 const bnorm_tables *tables);

typedef struct bnorm_reduction {
    const void *self; /* first argument of the functions */
    bnorm_view view;
    bnorm_blocks blocks;
    bnorm_view apply_view; /* of the elementwise pass */
    size_t tensors;        /* that reduce reads: 1 or 2 */
    /* Table entries of block b for channels [channel, channel + channels); NULL = nothing to
     * reduce. */
    void (*reduce)(const void *self, size_t b, size_t channel, size_t channels);
    void (*finish)(const void *self, size_t channel, size_t channels);
    /* The elementwise pass, or NULL; apply_near where the piece has just been reduced. */
    bnorm_piece_function *apply, *apply_near;
} bnorm_reduction;

void bnorm_reduction_run(const bnorm_reduction *op, const bnorm_exec *exec);

#endif
