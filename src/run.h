/* SPDX-License-Identifier: MIT
 *
 * How a call is run: on which threads, in which floating-point mode, in which tasks. */
#ifndef BNORM_RUN_H
#define BNORM_RUN_H

#include "fp_mode.h"
#include "order.h"

#pragma GCC visibility push(hidden)

static inline const bnorm_isa *bnorm_exec_isa(const bnorm_exec *exec) {
    return exec && exec->isa ? exec->isa : bnorm_isa_best();
}

/* Whether a call runs on this thread alone, in its mode. */
static inline int bnorm_is_plain(const bnorm_exec *exec) {
    return !exec || (!exec->parallel && exec->denormals == BNORM_DENORMALS_CALLER);
}

/* Kernels compute on padding along with the elements beside it, which is faster than to leave it
 * out. It may hold anything: exceptions are held meanwhile, those of the elements too. */
#define BNORM_HELD(call, padded)                                                                   \
    do {                                                                                           \
        if (padded) {                                                                              \
            const bnorm_exceptions held = bnorm_hold_exceptions();                                 \
            call;                                                                                  \
            bnorm_release_exceptions(held);                                                        \
        } else {                                                                                   \
            call;                                                                                  \
        }                                                                                          \
    } while (0)

/* task(arg, i) for all i < count, in the mode and on the threads that exec asks for. */
void bnorm_run(const bnorm_exec *exec, void (*task)(void *arg, size_t i), void *arg, size_t count);

/* Tasks to cut so much work into: a whole number per thread, 1 where it is not worth sharing. No
 * result depends on it. A float that is read or written is 1. */
size_t bnorm_parts(const bnorm_exec *exec, size_t work);

/* Work per element of an operation on so many tensors: sums cost more than what they read. */
static inline size_t bnorm_reduce_work(size_t tensors, bnorm_act_kind kind) {
    return 2 + tensors + (kind > BNORM_ACT_HARD_SWISH ? 16 : 0);
}
static inline size_t bnorm_map_work(size_t tensors, bnorm_act_kind kind) {
    return tensors + (kind > BNORM_ACT_HARD_SWISH ? 16 : 0);
}

/* A pass over all channels, which every operation is:
 *   reduce  fills a table of partial results, one entry per block and channel; in any order
 *   finish  merges the entries of a channel in a fixed order and derives its coefficients
 *   map     computes elements with the coefficients
 * The blocks depend on the shape alone; how they are grouped into tasks changes nothing but the
 * time. */
typedef struct bnorm_pass {
    const void *self;       /* first argument of the functions */
    const bnorm_view *view; /* of the statistics */
    const bnorm_blocks *blocks;
    const bnorm_view *map_view;
    size_t tensors;               /* that reduce reads: 1 or 2 */
    size_t reduce_work, map_work; /* per element */
    /* Table entries of block b for channels [channel, channel + channels); NULL = nothing to reduce,
     * which is for bnorm_run_map_pass. */
    void (*reduce)(const void *self, size_t b, size_t channel, size_t channels);
    void (*finish)(const void *self, size_t channel, size_t channels);
    /* NULL = nothing. near: the part has just been reduced. */
    void (*map)(const void *self, const bnorm_part *part, int near);
    /* The same for everything, where that is simpler; NULL = as a part. */
    void (*map_whole)(const void *self);
} bnorm_pass;

void bnorm_run_pass(const bnorm_pass *pass, const bnorm_exec *exec);
/* The same where reduce is NULL: it reads no more than self, view, map and what belongs to map. */
void bnorm_run_map_pass(const bnorm_pass *pass, const bnorm_exec *exec);

#pragma GCC visibility pop

#endif
