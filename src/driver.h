/* SPDX-License-Identifier: MIT
 *
 * What the layout-neutral drivers share: how a tensor looks to the kernels, how work is handed out,
 * the workspace. */
#ifndef BNORM_DRIVER_H
#define BNORM_DRIVER_H

#include "../dispatch/isa.h"
#include "check.h"
#include "fp_mode.h"
#include "plan.h"

#include <stdint.h>

/* How the kernels walk a tensor. Per image there are `runs` runs of `len` elements.
 *   rows     runs are pixels, len = c; a run's element i belongs to channel i
 *   planes   run r belongs to channel r; unit = 1
 *   blocked  a run is `len/unit` rows of `unit` channels, unit = c_block; row element k of run r
 *            belongs to channel r*unit + k, or is padding
 * NCHW with HW = 1 is (N, C) data and walks as rows, whatever the strides. (N, C) data is one
 * image of N rows here, though each of them is one of the batch's (`leaves`). */
typedef struct bnorm_view {
    int rows, leaves;
    size_t images, runs, len;
    size_t c, unit;
    size_t positions; /* of a channel in an image */
} bnorm_view;

/* One tensor seen through a view: element (image, run, i) is at
 *   image*image_stride + run*run_stride + i*step            rows and planes
 *   image*image_stride + run*run_stride + i/unit*step       blocked, i a multiple of unit
 * step is 1 for rows and planes, except for NCHW with HW = 1. An absent tensor
 * has data NULL. */
typedef struct bnorm_walk {
    char *data;
    size_t image_stride, run_stride, step;
    bnorm_dtype type;
} bnorm_walk;

static inline size_t bnorm_min(size_t a, size_t b) {
    return a < b ? a : b;
}

static inline size_t bnorm_ceil_div(size_t a, size_t b) {
    return a / b + (a % b != 0);
}

static inline bnorm_view bnorm_view_of(const bnorm_shape *shape) {
    const size_t n = shape->n, c = shape->c, hw = shape->hw, b = bnorm_block_of(shape);
    const size_t blocks = bnorm_channel_blocks(shape);
    if (b > 1 && hw == 1)
        return (bnorm_view){0, 1, 1, blocks, n * b, c, b, n};
    if (b > 1)
        return (bnorm_view){0, 0, n, blocks, hw * b, c, b, hw};
    if (hw == 1)
        return (bnorm_view){1, 1, 1, n, c, c, 1, n};
    if (shape->layout == BNORM_NHWC)
        return (bnorm_view){1, 0, n, hw, c, c, 1, hw};
    return (bnorm_view){0, 0, n, c, hw, c, 1, hw};
}

static inline bnorm_walk bnorm_walk_of(const bnorm_shape *shape, const bnorm_tensor *tensor) {
    char *const data = tensor->data;
    const size_t run_stride = tensor->run_stride, image_stride = tensor->image_stride;
    const bnorm_dtype type = tensor->type;
    const size_t b = bnorm_block_of(shape);
    if (b > 1 && shape->hw == 1)
        return (bnorm_walk){data, 0, run_stride, image_stride, type};
    if (b > 1)
        return (bnorm_walk){data, image_stride, run_stride, b, type};
    if (shape->hw == 1 && shape->layout == BNORM_NHWC)
        return (bnorm_walk){data, 0, image_stride, 1, type};
    if (shape->hw == 1)
        return (bnorm_walk){data, 0, image_stride, shape->c > 1 ? run_stride : 1, type};
    return (bnorm_walk){data, image_stride, run_stride, 1, type};
}

/* Where (image, run, i) is, in elements. */
static inline size_t bnorm_offset(const bnorm_view *view, const bnorm_walk *walk, size_t image,
                                  size_t run, size_t i) {
    if (view->unit > 1)
        i /= view->unit;
    return image * walk->image_stride + run * walk->run_stride + i * walk->step;
}

/* Its address; NULL stays NULL. */
static inline void *bnorm_at(const bnorm_view *view, const bnorm_walk *walk, size_t image,
                             size_t run, size_t i) {
    if (!walk->data)
        return NULL;
    return walk->data + bnorm_offset(view, walk, image, run, i) * bnorm_size_of(walk->type);
}

/* Elements from one row or run to the next, as kernels take them. */
static inline size_t bnorm_stride(const bnorm_view *view, const bnorm_walk *walk) {
    return view->unit > 1 ? walk->step : walk->run_stride;
}

/* Channels of the block that begins with this one, up to its padding. */
static inline size_t bnorm_valid(const bnorm_view *view, size_t channel) {
    return bnorm_min(view->unit, view->c - channel);
}

/* The bits of a mask: those of the dense tensor. */
static inline bnorm_walk bnorm_mask_walk(const bnorm_shape *shape, unsigned char *mask) {
    bnorm_tensor dense = {(char *)mask, 0, 0, 0, BNORM_F32};
    if (!mask)
        return (bnorm_walk){NULL, 0, 0, 1, BNORM_F32};
    dense.run_stride = bnorm_run_length(shape);
    dense.image_stride = bnorm_runs(shape) * dense.run_stride;
    return bnorm_walk_of(shape, &dense);
}

static inline bnorm_bits bnorm_bits_at(const bnorm_view *view, const bnorm_walk *mask, size_t image,
                                       size_t run, size_t i) {
    if (!mask->data)
        return (bnorm_bits){NULL, 0, 0};
    return (bnorm_bits){(unsigned char *)mask->data, bnorm_offset(view, mask, image, run, i),
                        bnorm_stride(view, mask)};
}

/* A piece of work: runs [run, run + runs) of one image, elements [i, i + len) of each. */
typedef struct bnorm_piece {
    size_t image, run, runs, i, len;
} bnorm_piece;

/* A view, or `runs` of its runs from `first_run` on, cut into parts of equal size for an
 * elementwise pass. Positions are counted through all images; a part may begin and end within a
 * run. */
typedef struct bnorm_cut {
    bnorm_view view;
    size_t first_run, runs;
    size_t total, parts, step; /* positions; parts begin at multiples of step */
} bnorm_cut;

static inline bnorm_cut bnorm_cut_of(const bnorm_view *view, size_t first_run, size_t parts) {
    bnorm_cut cut = {*view, first_run, view->runs - first_run, 0, parts, 64};
    cut.total = view->images * cut.runs * view->len;
    /* Whole runs where they are short. */
    if (view->len <= cut.total / parts / 16)
        cut.step = view->len;
    return cut;
}

/* Where part i begins. */
static inline size_t bnorm_cut_at(const bnorm_cut *cut, size_t i) {
    if (i == cut->parts)
        return cut->total;
    const size_t at = cut->total / cut->parts * i + cut->total % cut->parts * i / cut->parts;
    return at - at % cut->step;
}

/* Calls a function for the pieces of part i. */
typedef void bnorm_piece_function(const void *self, const bnorm_piece *piece);

static inline void bnorm_cut_run(const bnorm_cut *cut, size_t i, bnorm_piece_function *function,
                                 const void *self) {
    const size_t len = cut->view.len, image_size = cut->runs * len, end = bnorm_cut_at(cut, i + 1);
    for (size_t at = bnorm_cut_at(cut, i); at < end;) {
        const size_t within = at % image_size, run = within / len, from = within % len;
        bnorm_piece piece = {at / image_size, cut->first_run + run, 1, from, 0};
        if (from || end - at < len) {
            piece.len = bnorm_min(len - from, end - at);
        } else {
            piece.len = len;
            piece.runs = bnorm_min((end - at) / len, cut->runs - run);
        }
        function(self, &piece);
        at += piece.runs * piece.len;
    }
}

/* The first channel of a piece, for its per-channel parameters. */
static inline size_t bnorm_piece_channel(const bnorm_view *view, const bnorm_piece *piece) {
    return view->rows ? piece->i : piece->run * view->unit;
}

static inline int bnorm_is_parallel(const bnorm_exec *exec) {
    return exec && exec->parallel;
}

static inline bnorm_status bnorm_check_exec(const bnorm_exec *exec) {
    const int good = !exec || ((unsigned)exec->denormals <= BNORM_DENORMALS_FLUSH &&
                               (unsigned)exec->memory <= BNORM_MEMORY_STREAM);
    return good ? BNORM_OK : BNORM_BAD_ENUM;
}

static inline const bnorm_isa *bnorm_exec_isa(const bnorm_exec *exec) {
    return exec && exec->isa ? exec->isa : bnorm_isa_best();
}

/* A task in the floating-point mode that exec asks for, on whatever thread it runs. */
typedef struct bnorm_flushed {
    void (*task)(void *arg, size_t i);
    void *arg;
} bnorm_flushed;

static inline void bnorm_flushed_task(void *arg, size_t i) {
    const bnorm_flushed *flushed = arg;
    const bnorm_fp_mode mode = bnorm_flush_denormals();
    flushed->task(flushed->arg, i);
    bnorm_restore_mode(mode);
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

static inline void bnorm_run(const bnorm_exec *exec, void (*task)(void *arg, size_t i), void *arg,
                             size_t count) {
    bnorm_flushed flushed = {task, arg};
    if (exec && exec->denormals == BNORM_DENORMALS_FLUSH) {
        task = bnorm_flushed_task;
        arg = &flushed;
    }
    if (count > 1 && bnorm_is_parallel(exec)) {
        exec->parallel(exec->pool, task, arg, count);
        return;
    }
    for (size_t i = 0; i < count; i++)
        task(arg, i);
}

/* Elements that a task should have to be worth sharing (64 KiB), those that it must have, and those
 * of a call (256 KiB). */
#define BNORM_TASK_ELEMENTS  ((size_t)16384)
#define BNORM_LEAST_ELEMENTS ((size_t)1024)
#define BNORM_CALL_ELEMENTS  (4 * BNORM_TASK_ELEMENTS)
/* More threads than this get no tasks of their own. */
#define BNORM_MOST_THREADS ((size_t)1024)

/* How many threads to cut for; 0 = the caller does not say. */
static inline size_t bnorm_threads(const bnorm_exec *exec) {
    return bnorm_min(exec->threads, BNORM_MOST_THREADS);
}

/* Parts of elementwise work on so many elements: a whole number per thread, 1 where it is not worth
 * sharing. No result depends on it. */
static inline size_t bnorm_parts(const bnorm_exec *exec, size_t elements) {
    if (!bnorm_is_parallel(exec) || exec->threads == 1 || elements < BNORM_CALL_ELEMENTS)
        return 1;
    const size_t parts = elements / BNORM_TASK_ELEMENTS, threads = bnorm_threads(exec);
    if (!threads)
        return bnorm_min(parts, 256);
    const size_t rounds = parts / threads;
    return bnorm_min(threads * (rounds < 1 ? 1 : bnorm_min(rounds, 8)),
                     elements / BNORM_LEAST_ELEMENTS);
}

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
    bnorm_blocks blocks = {BNORM_BLOCK_SPAN, 0, 0, BNORM_SPAN_LANES, first};
    if (view->leaves) {
        blocks.size = BNORM_LEAF;
        blocks.chains = 1;
        blocks.count = bnorm_subtrees(first, view->positions, BNORM_LEAF);
        blocks.per_image = 1;
        return blocks;
    }
    if (view->rows || view->unit > 1) {
        const size_t lanes = view->rows ? view->c : view->unit;
        blocks.size = bnorm_block_rows(lanes, view->positions);
        blocks.chains = bnorm_chains(lanes);
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
