/* SPDX-License-Identifier: MIT
 *
 * What lies in the workspace of an operation with statistics. */
#ifndef BNORM_WORKSPACE_H
#define BNORM_WORKSPACE_H

#include "order.h"

/* Two tables of partial results (blocks x c), two merged results, up to five coefficients and, for
 * variants of the operations, two totals and two parameters per channel and a sum of weights per
 * block. */
typedef struct bnorm_tables {
    double *entries[2];
    double *merged[2];
    double *totals[2];
    float *coefficients[5];
    float *params[2];
    double *weights;
} bnorm_tables;

/* Bytes, wherever in the batch the images are; 0 where that overflows. */
size_t bnorm_workspace_need(const bnorm_view *view, const bnorm_blocks *blocks);
bnorm_tables bnorm_tables_of(const bnorm_view *view, const bnorm_blocks *blocks, void *ws);
/* The entries as the merging kernels take them. */
bnorm_partials bnorm_partials_of(const bnorm_view *view, const bnorm_blocks *blocks,
                                 const bnorm_tables *tables);

/* What n more images may change of a piece. */
static inline size_t bnorm_piece_bytes(const bnorm_partial *piece, size_t n) {
    return bnorm_partial_size(piece->c, piece->n + n);
}

#endif
