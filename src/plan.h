/* SPDX-License-Identifier: MIT
 *
 * How a tensor is cut for the reductions. Everything here depends on the shape alone, so that the
 * result has the same bits for every kernel set, schedule, stride and alignment. docs/numerics.md
 * explains the order. */
#ifndef BNORM_PLAN_H
#define BNORM_PLAN_H

#include <stddef.h>

/* Partial sums per channel in the rows family. Where c is no whole number of vectors several rows
 * share the lanes: the smallest power of two that makes c*chains at least 32 and leaves at most an
 * eighth of the vectors of 16 lanes empty. */
static inline size_t bnorm_chains(size_t c) {
    size_t chains = 1;
    while (c * chains < 32 || c * chains * 8 < (c * chains + 15) / 16 * 16 * 7)
        chains *= 2;
    return chains;
}

/* Rows are taken in groups of 16 per chain: squares and products are in float within a group, each
 * half of it on its own. */
#define BNORM_GROUP 16
#define BNORM_HALF  8
/* Rows of a block, spread over it, that its pivots are taken from: a power of two, up to 16. */
#define BNORM_SAMPLES 16
static inline size_t bnorm_samples(size_t rows) {
    return rows >= 16 ? 16 : rows >= 8 ? 8 : rows >= 4 ? 4 : rows >= 2 ? 2 : 1;
}

/* Chains of a block of a plane. */
#define BNORM_SPAN_LANES 32
/* Room for c*chains with more than one chain: the largest is 194, for c = 97. */
#define BNORM_MAX_LANES 208

/* Rows (pixels) of one image that form a block: a 64th of the image, but 64 to 128 KiB, whole
 * groups, and at least 64 rows. It depends on the image alone, so that batches can be cut anywhere
 * between images. */
static inline size_t bnorm_block_rows(size_t c, size_t hw) {
    const size_t group = BNORM_GROUP * bnorm_chains(c), least = 16384 / c, most = 32768 / c;
    size_t rows = hw / 64;
    if (rows < least)
        rows = least;
    if (rows > most)
        rows = most;
    if (rows < 64)
        rows = 64;
    return (rows + group - 1) / group * group;
}

/* Pixels of one plane that form a block. */
#define BNORM_BLOCK_SPAN 2048

/* Images are merged along a binary tree over their numbers in the whole batch. The largest whole
 * subtree of at most `most` images, a power of two, that begins with image i and ends before `end`:
 * its images. */
static inline size_t bnorm_subtree(size_t i, size_t end, size_t most) {
    const size_t aligned = i ? i & (0 - i) : most;
    size_t images = aligned < most ? aligned : most;
    while (images > end - i)
        images /= 2;
    return images;
}

/* How many of them images [first, first + n) are. */
static inline size_t bnorm_subtrees(size_t first, size_t n, size_t most) {
    const size_t end = first + n;
    size_t i = first, count = 0;
    for (; i < end && i % most; count++)
        i += bnorm_subtree(i, end, most);
    count += (end - i) / most;
    for (size_t rest = (end - i) % most; rest; rest &= rest - 1)
        count++;
    return count;
}

/* The largest subtree there can be, and the most levels. */
#define BNORM_TREE   (~(~(size_t)0 >> 1))
#define BNORM_LEVELS (2 * sizeof(size_t) * 8)

/* Images of one position, as those of (N, C) data, are reduced in leaves of up to so many. */
#define BNORM_LEAF ((size_t)64)

#endif
