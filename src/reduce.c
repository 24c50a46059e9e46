/* SPDX-License-Identifier: MIT */
#include "base.h"

#include "reduce.h"

/* Elements of a group of planes that is reduced and then normalised while it is in cache (512 KiB,
 * over all tensors). */
#define GROUP_ELEMENTS ((size_t)131072)
/* Least elements of a block's slice. */
#define UNIT_ELEMENTS ((size_t)4096)
/* Threads to cut for where the caller does not say. */
#define SOME_THREADS ((size_t)16)

#define WS_ALIGN 64

size_t bnorm_reduction_workspace(const bnorm_view *view, const bnorm_blocks *blocks) {
    const size_t fixed = 4 * sizeof(double) + 7 * sizeof(float), entry = 2 * sizeof(double);
    size_t bytes, count = blocks->count;
    if (view->leaves) /* at either end up to one of each smaller size */
        count = bnorm_min(view->positions, view->positions / BNORM_LEAF + 12);
    if (__builtin_mul_overflow(count, entry, &bytes) ||
        __builtin_add_overflow(bytes, fixed, &bytes) ||
        __builtin_mul_overflow(bytes, view->c, &bytes) || bytes > (size_t)PTRDIFF_MAX / 2)
        return 0;
    return bytes + count * sizeof(double) + WS_ALIGN;
}

bnorm_tables bnorm_tables_of(const bnorm_view *view, const bnorm_blocks *blocks, void *ws) {
    const size_t c = view->c, entries = blocks->count * c, off = (size_t)((uintptr_t)ws % WS_ALIGN);
    double *const begin = (double *)(void *)((char *)ws + (off ? WS_ALIGN - off : 0)),
                  *merged = begin + 2 * entries;
    float *const floats = (float *)(void *)(merged + 4 * c + blocks->count);
    return (bnorm_tables){
        .entries = {begin, begin + entries},
        .merged = {merged, merged + c},
        .totals = {merged + 2 * c, merged + 3 * c},
        .coefficients = {floats, floats + c, floats + 2 * c, floats + 3 * c, floats + 4 * c},
        .params = {floats + 5 * c, floats + 6 * c},
        .weights = merged + 4 * c,
    };
}

bnorm_partials bnorm_partials_of(const bnorm_view *view, const bnorm_blocks *blocks,
                                 const bnorm_tables *tables) {
    const size_t hw = view->leaves ? 1 : view->positions;
    return (bnorm_partials){
        .entries = {tables->entries[0], tables->entries[1]},
        .stride = view->c,
        .first = blocks->first,
        .n = view->leaves ? view->positions : view->images,
        .leaf = view->leaves ? BNORM_LEAF : 1,
        .per_image = blocks->per_image,
        .size = (double)blocks->size,
        .last = (double)(hw - (blocks->per_image - 1) * blocks->size),
        .hw = (double)hw,
    };
}

size_t bnorm_workspace(bnorm_op op, const bnorm_shape *shape) {
    if ((unsigned)op > BNORM_OP_BACKWARD || bnorm_check_float_shape(shape) || bnorm_is_empty(shape))
        return 0;
    const bnorm_view view = bnorm_view_of(shape);
    const bnorm_blocks blocks = bnorm_blocks_of(&view, 0);
    return bnorm_reduction_workspace(&view, &blocks);
}

/* What is shared out. In NCHW whole groups of channels come first, with all three phases; the
 * channels from `first` on, in NHWC all, go through the phases one after the other. */
struct job {
    const bnorm_reduction *op;
    size_t group, groups; /* channels per group */
    size_t first;
    size_t slice, slices; /* channels per unit: a slice of a block */
    size_t units, unit_parts;
    size_t finish_step;
    bnorm_cut cut; /* of the elementwise pass */
    size_t turn;   /* parts that are done last to first: those of one thread */
};

/* The last image, reduced last, is normalised first. */
static void run_group(const bnorm_reduction *op, size_t channel, size_t channels) {
    const size_t unit = op->view.unit;
    for (size_t b = 0; b < op->blocks.count; b++)
        op->reduce(op->self, b, channel, channels);
    op->finish(op->self, channel, channels);
    for (size_t image = op->view.images; op->apply && image-- > 0;) {
        const bnorm_piece piece = {image, channel / unit, bnorm_ceil_div(channels, unit), 0,
                                   op->view.len};
        op->apply_near(op->self, &piece);
    }
}

static void reduce_task(void *arg, size_t i) {
    const struct job *job = arg;
    const bnorm_reduction *op = job->op;
    if (i < job->groups) {
        const size_t channel = i * job->group;
        run_group(op, channel, bnorm_min(job->group, op->view.c - channel));
        return;
    }
    i -= job->groups;
    const size_t last = (i + 1) * job->units / job->unit_parts;
    for (size_t u = i * job->units / job->unit_parts; u < last; u++) {
        const size_t channel = job->first + u % job->slices * job->slice;
        op->reduce(op->self, u / job->slices, channel, bnorm_min(job->slice, op->view.c - channel));
    }
}

static void finish_task(void *arg, size_t i) {
    const struct job *job = arg;
    const size_t channel = job->first + i * job->finish_step;
    job->op->finish(job->op->self, channel, bnorm_min(job->finish_step, job->op->view.c - channel));
}

/* What was reduced last comes first: it is still in cache. Pools that give each thread a range of
 * tasks give it the same range of the tensor in every pass, so the order turns within a range. */
static void apply_task(void *arg, size_t i) {
    const struct job *job = arg;
    const size_t within = i % job->turn, begin = i - within,
                 turn = bnorm_min(job->turn, job->cut.parts - begin);
    bnorm_cut_run(&job->cut, begin + turn - 1 - within, job->op->apply, job->op->self);
}

/* Groups of planes that stay in cache between the phases; with threads, as many as give each thread
 * the same number. threads 0 = not shared. */
static void cut_groups(struct job *job, size_t threads, int known) {
    const bnorm_reduction *op = job->op;
    const size_t c = op->view.c, unit = op->view.unit;
    const size_t per_channel = op->view.images * op->view.positions * op->tensors;
    size_t group = per_channel < GROUP_ELEMENTS ? GROUP_ELEMENTS / per_channel : 1;
    if (threads) {
        const size_t fair = c / (4 * threads),
                     least = bnorm_ceil_div(BNORM_TASK_ELEMENTS, per_channel);
        group = bnorm_min(group, fair > least ? fair : least);
    }
    job->group = bnorm_min(bnorm_ceil_div(group, unit) * unit, c);
    job->groups = bnorm_ceil_div(c, job->group);
    if (threads && job->groups < threads)
        job->groups = 0;
    else if (threads && known && job->groups < 8 * threads)
        job->groups -= job->groups % threads;
    job->first = bnorm_min(job->groups * job->group, c);
}

/* Blocks, or slices of them where there are few. */
static void cut_units(struct job *job, size_t threads) {
    const bnorm_reduction *op = job->op;
    const bnorm_view *view = &op->view;
    const size_t c = view->c - job->first;
    const size_t block = bnorm_min(op->blocks.size, view->positions);
    size_t least = 1; /* channels per slice */
    if (!threads || (view->rows && op->blocks.chains > 1))
        least = c;
    else if (view->rows)
        least = 16;
    if (least < UNIT_ELEMENTS / block)
        least = UNIT_ELEMENTS / block;
    const size_t wanted = bnorm_ceil_div(8 * threads, op->blocks.count);
    job->slice = wanted > 1 ? bnorm_ceil_div(c, wanted) : c;
    if (job->slice < least)
        job->slice = least;
    const size_t whole = view->rows ? 16 : view->unit;
    job->slice = bnorm_ceil_div(job->slice, whole) * whole;
    job->slice = bnorm_min(job->slice, c);
    job->slices = bnorm_ceil_div(c, job->slice);
    job->units = op->blocks.count * job->slices;
    job->unit_parts = threads ? bnorm_min(job->units, 16 * threads) : 1;
}

void bnorm_reduction_run(const bnorm_reduction *op, const bnorm_exec *exec) {
    const bnorm_view *view = &op->view;
    const size_t c = view->c, total = view->images * view->runs * view->len;
    const int shared = bnorm_parts(exec, total * op->tensors) > 1;
    const size_t threads = !shared ? 0 : exec->threads ? bnorm_threads(exec) : SOME_THREADS;
    struct job job;

    job.op = op;
    job.first = job.groups = 0;
    if (op->reduce) {
        if (!view->rows)
            cut_groups(&job, threads, shared && exec->threads);
        job.unit_parts = 0;
        if (job.first < c)
            cut_units(&job, threads);
        bnorm_run(exec, reduce_task, &job, job.groups + job.unit_parts);
        if (job.first == c)
            return;
        /* Few entries per channel are not worth sharing. */
        const size_t rest = c - job.first;
        job.finish_step = rest;
        if (threads && op->blocks.count * rest >= UNIT_ELEMENTS / 4)
            job.finish_step = (bnorm_ceil_div(rest, threads) + 7) / 8 * 8;
        bnorm_run(exec, finish_task, &job, bnorm_ceil_div(rest, job.finish_step));
    }
    if (op->apply) {
        const size_t elements = total / c * (c - job.first);
        size_t parts = shared ? bnorm_parts(exec, elements) : elements / GROUP_ELEMENTS;
        if (parts < threads) /* what is left of a large tensor */
            parts = bnorm_min(threads, elements / BNORM_LEAST_ELEMENTS);
        job.cut = bnorm_cut_of(&op->apply_view, job.first / view->unit, parts ? parts : 1);
        job.turn = job.cut.parts;
        if (shared) /* not known: each part on its own */
            job.turn = exec->threads ? bnorm_ceil_div(job.cut.parts, threads) : 1;
        bnorm_run(exec, apply_task, &job, job.cut.parts);
    }
}
