/* SPDX-License-Identifier: MIT
 *
 * The blocks of a tensor, reduced by the kernels into tables of the workspace. */
#ifndef BNORM_REDUCE_H
#define BNORM_REDUCE_H

#include "workspace.h"

#pragma GCC visibility push(hidden)

typedef struct bnorm_reduction {
    const bnorm_isa *isa;
    const bnorm_training *kernels; /* of the set */
    bnorm_view view;
    bnorm_blocks blocks;
    bnorm_partials partials; /* an entry per block and channel */
    unsigned hints;          /* those of the map, for statistics */
} bnorm_reduction;

/* For images [first, first + n) of a batch. */
static inline bnorm_tables bnorm_plan_reduction(bnorm_reduction *r, const bnorm_view *view,
                                                size_t first, void *ws, const bnorm_isa *isa) {
    r->isa = isa;
    r->kernels = bnorm_training_of(isa);
    r->view = *view;
    r->blocks = bnorm_blocks_of(view, first);
    const bnorm_tables tables = bnorm_tables_of(view, &r->blocks, ws);
    r->partials = bnorm_partials_of(view, &r->blocks, &tables);
    return tables;
}

/* The entry of block b for a channel, in the first and in the second table. */
static inline double *bnorm_entry(const bnorm_reduction *r, size_t table, size_t b,
                                  size_t channel) {
    return r->partials.entries[table] + b * r->partials.stride + channel;
}

/* Sums and M2 of block b of x, for channels [channel, channel + channels). */
void bnorm_reduce_moments(const bnorm_reduction *r, const bnorm_tensor *x, size_t b, size_t channel,
                          size_t channels);
/* Sums of g and g*(x - center). */
void bnorm_reduce_sums(const bnorm_reduction *r, const bnorm_map_args *whole, size_t b,
                       size_t channel, size_t channels);

/* Most elements that a dy with the same lanes is written out to at a time. */
#define BNORM_COPIES ((size_t)BNORM_GROUP * BNORM_SPAN_LANES)
/* n copies of one element. */
void bnorm_copy_element(const void *element, bnorm_dtype type, size_t n, float *copies);

#pragma GCC visibility pop

#endif
