/* SPDX-License-Identifier: MIT
 *
 * How a tensor is cut for the reductions. Everything here depends on the shape alone, so that the
 * result has the same bits for every kernel set, schedule, stride and alignment. docs/numerics.md
 * explains the order. */
#ifndef BNORM_PLAN_H
#define BNORM_PLAN_H

#include <stddef.h>

/* Partial sums per channel in the rows family. Below 64 channels several rows share the lanes: the
 * smallest power of two that makes c*chains at least 64 and, below 32 channels, whole vectors (a
 * multiple of 16). One channel, or one NCHW plane, has 64. */
static inline size_t bnorm_chains(size_t c) {
    size_t chains = 1;
    while (c * chains < 64 || (c < 32 && c * chains % 16))
        chains *= 2;
    return chains;
}

/* Rows (pixels) of one image that form a block: about 128 KiB of data, so that the block's second
 * pass reads from cache. One channel, or one NCHW plane, has 4096. */
static inline size_t bnorm_block_rows(size_t c) {
    if (c <= 8)
        return 4096;
    if (c >= 1024)
        return 32;
    return (32768 / c + 31) / 32 * 32;
}

/* Rows are taken in groups of 8 per chain: within a group sums form a fixed tree. */
#define BNORM_GROUP 8
/* Lanes of a block of a plane. */
#define BNORM_SPAN_LANES 64
/* Largest c*chains with more than one chain: c = 31. */
#define BNORM_MAX_LANES 496

#endif
