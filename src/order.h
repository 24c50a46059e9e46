/* SPDX-License-Identifier: MIT
 *
 * How a tensor is cut for the reductions. Everything here depends on the shape alone, so that the
 * result has the same bits for every kernel set, schedule, stride and alignment. docs/numerics.md
 * explains the order. */
#ifndef BNORM_ORDER_H
#define BNORM_ORDER_H

#include "tensor.h"

/* Partial sums per channel in the rows family. Where c is no whole number of vectors several rows
 * share the lanes: the smallest power of two that makes c*chains at least 32 and leaves at most an
 * eighth of the vectors of 16 lanes empty. */
static inline size_t bnorm_chains(size_t c) {
    size_t chains = 1;
    while (c * chains < 32 || c * chains * 8 < (c * chains + 15) / 16 * 16 * 7)
        chains *= 2;
    return chains;
}

/* Rows are taken in groups of 16 per chain, which are added up in float. */
#define BNORM_GROUP 16
/* Rows of a block, spread over it, that its pivots are taken from: a power of two, up to 16. */
#define BNORM_SAMPLES 16
static inline size_t bnorm_samples(size_t rows) {
    return rows >= 16 ? 16 : rows >= 8 ? 8 : rows >= 4 ? 4 : rows >= 2 ? 2 : 1;
}

/* Places of a block of a plane, spread over it, that its pivot is taken from, four neighbours each:
 * neighbours are much alike, so that larger planes have more places. */
#define BNORM_PLACES 16
static inline size_t bnorm_places(size_t len) {
    return len >= 512 ? 16 : len >= 128 ? 8 : len >= 16 ? 4 : len >= 8 ? 2 : 1;
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

/* Blocks of the reductions per image and altogether; with leaves, those. */
typedef struct bnorm_blocks {
    size_t size; /* positions of a channel per block; the last one of an image may have fewer */
    size_t per_image;
    size_t count;
    size_t chains;
    size_t first; /* number of the first image in the whole batch */
} bnorm_blocks;

/* For images [first, first + n) of a batch. */
static inline bnorm_blocks bnorm_blocks_of(const bnorm_view *view, size_t first) {
    bnorm_blocks blocks = {BNORM_BLOCK_SPAN, 1, 0, BNORM_SPAN_LANES, first};
    if (view->leaves) {
        blocks.size = BNORM_LEAF;
        blocks.chains = 1;
        blocks.count = bnorm_subtrees(first, view->positions, BNORM_LEAF);
        return blocks;
    }
    if (!view->planes) {
        blocks.size = bnorm_block_rows(view->lanes, view->positions);
        blocks.chains = bnorm_chains(view->lanes);
    }
    blocks.per_image = bnorm_ceil_div(view->positions, blocks.size);
    blocks.count = blocks.per_image * view->images;
    return blocks;
}

/* Positions [from, from + len) of one image. */
typedef struct bnorm_block {
    size_t image, from, len;
} bnorm_block;

/* Block b, counted through all images. */
static inline bnorm_block bnorm_block_at(const bnorm_view *view, const bnorm_blocks *blocks,
                                         size_t b) {
    bnorm_block block = {b, 0, view->positions};
    if (view->leaves) {
        const size_t first = blocks->first, end = first + view->positions;
        size_t at = first, before = 0;
        block.image = 0;
        if (first % BNORM_LEAF == 0) { /* leaves of full size come first */
            before = bnorm_min(b, view->positions / BNORM_LEAF);
            at += before * BNORM_LEAF;
        }
        for (; before < b; before++) {
            at += bnorm_subtree(at, end, BNORM_LEAF);
            if (at % BNORM_LEAF == 0) {
                const size_t whole = bnorm_min(b - before - 1, (end - at) / BNORM_LEAF);
                before += whole;
                at += whole * BNORM_LEAF;
            }
        }
        block.from = at - first;
        block.len = bnorm_subtree(at, end, BNORM_LEAF);
        return block;
    }
    if (blocks->per_image > 1) {
        block.image = b / blocks->per_image;
        block.from = b % blocks->per_image * blocks->size;
        block.len = bnorm_min(blocks->size, view->positions - block.from);
    }
    return block;
}

#endif
