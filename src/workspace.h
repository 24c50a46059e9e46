/* SPDX-License-Identifier: MIT
 *
 * What lies in the workspace of an operation with statistics. */
#ifndef BNORM_WORKSPACE_H
#define BNORM_WORKSPACE_H

#include "call.h"
#include "order.h"
#include "uses.h"

#pragma GCC visibility push(hidden)

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

/* Floats of an array that is saved for every group of images. */
static inline size_t bnorm_saved_floats(bnorm_uses *uses, const bnorm_batch *batch) {
    size_t saved;
    if (__builtin_mul_overflow(batch->ghosts, uses->shape->c, &saved) ||
        saved > (size_t)PTRDIFF_MAX / sizeof(float)) {
        uses->status = uses->status ? uses->status : BNORM_BAD_SHAPE;
        return 0;
    }
    return saved;
}

/* What n more images may change of a piece. */
static inline size_t bnorm_piece_bytes(const bnorm_partial *piece, size_t n) {
    return bnorm_partial_size(piece->c, piece->n + n);
}

/* What a call with sums writes beside its results: the workspace, and the piece that takes them. */
static inline void bnorm_uses_memory(bnorm_uses *uses, const bnorm_job *job,
                                     const bnorm_batch *batch) {
    const bnorm_partial *piece = batch->piece;
    const bnorm_blocks blocks = bnorm_blocks_of(uses->view, bnorm_first_image(batch));
    bnorm_uses_workspace(uses, job->ws, job->ws_size, bnorm_workspace_need(uses->view, &blocks));
    if (piece)
        bnorm_writes(uses, piece->nodes, bnorm_piece_bytes(piece, job->shape->n), BNORM_KIND_NONE);
}

#pragma GCC visibility pop

#endif
