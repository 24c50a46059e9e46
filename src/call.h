/* SPDX-License-Identifier: MIT
 *
 * The operations as calls: a job says what, exec says how. */
#ifndef BNORM_CALL_H
#define BNORM_CALL_H

#include "bnorm.h"

#pragma GCC visibility push(hidden)

/* What is wanted of an operation with statistics. */
enum bnorm_stage {
    BNORM_STAGE_SUMS,   /* whole subtrees of the tables, for a piece of a batch */
    BNORM_STAGE_FINISH, /* ... and what follows from them per channel */
    BNORM_STAGE_ALL,    /* ... and the elements */
    BNORM_STAGE_MAP     /* the elements alone, with coefficients that are given */
};

/* Which images of a batch a call has, and what for. */
typedef struct bnorm_batch {
    enum bnorm_stage stage;
    size_t ghosts;              /* groups of images with save_* arrays of their own; else 1 */
    const bnorm_partial *piece; /* of BNORM_STAGE_SUMS: takes them */
    const float *coefficients;  /* of BNORM_STAGE_MAP: as bnorm_partial_finish_grad gives them */
} bnorm_batch;

static inline size_t bnorm_first_image(const bnorm_batch *batch) {
    return batch->piece ? batch->piece->first + batch->piece->n : 0;
}

/* What a job's function would say, without running it. */
bnorm_status bnorm_check_apply(const bnorm_job *job, const bnorm_exec *exec);
bnorm_status bnorm_check_forward(const bnorm_job *job, const bnorm_exec *exec);
bnorm_status bnorm_check_backward(const bnorm_job *job, const bnorm_exec *exec);

#pragma GCC visibility pop

#endif
