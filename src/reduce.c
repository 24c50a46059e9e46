/* SPDX-License-Identifier: MIT */
#include "reduce.h"

/* Elements that a task should have to be worth sharing (64 KiB), and of a group of planes that is
 * reduced and then normalised while it is in cache (256 KiB, over all tensors). */
#define TASK_ELEMENTS  16384
#define GROUP_ELEMENTS 65536
/* With fewer tasks than this, channels alone do not feed many threads. */
#define FEW_TASKS 16

#define WS_ALIGN 64

size_t bnorm_reduction_workspace(const bnorm_view *view, const bnorm_blocks *blocks) {
    const size_t fixed = 2 * sizeof(double) + 4 * sizeof(float), entry = 2 * sizeof(double);
    size_t bytes;
    if (__builtin_mul_overflow(blocks->count, entry, &bytes) ||
        __builtin_add_overflow(bytes, fixed, &bytes) ||
        __builtin_mul_overflow(bytes, view->c, &bytes) || bytes > (size_t)PTRDIFF_MAX / 2)
        return 0;
    return bytes + WS_ALIGN;
}

bnorm_tables bnorm_tables_of(const bnorm_view *view, const bnorm_blocks *blocks, void *ws) {
    const size_t c = view->c, entries = blocks->count * c, off = (size_t)((uintptr_t)ws % WS_ALIGN);
    double *const begin = (double *)(void *)((char *)ws + (off ? WS_ALIGN - off : 0)),
                  *merged = begin + 2 * entries;
    float *const floats = (float *)(void *)(merged + 2 * c);
    return (bnorm_tables){{begin, begin + entries},
                          {merged, merged + c},
                          {floats, floats + c, floats + 2 * c, floats + 3 * c}};
}

bnorm_partials bnorm_partials_of(const bnorm_view *view, const bnorm_blocks *blocks,
                                 const bnorm_tables *tables) {
    const bnorm_block last = bnorm_block_at(view, blocks, blocks->per_image - 1);
    return (bnorm_partials){
        .entries = {tables->entries[0], tables->entries[1]},
        .stride = view->c,
        .blocks = blocks->count,
        .per_image = blocks->per_image,
        .size = (double)blocks->size,
        .last = (double)last.len,
    };
}

size_t bnorm_workspace(bnorm_op op, const bnorm_shape *shape) {
    if ((unsigned)op > BNORM_OP_BACKWARD || bnorm_check_shape(shape) || bnorm_is_empty(shape))
        return 0;
    const bnorm_view view = bnorm_view_of(shape);
    const bnorm_blocks blocks = bnorm_blocks_of(&view);
    return bnorm_reduction_workspace(&view, &blocks);
}

struct job {
    const bnorm_reduction *op;
    size_t channel_step, channel_parts; /* channels per task */
    size_t block_step, block_parts;     /* blocks per task */
    bnorm_grid grid;                    /* of the elementwise pass */
};

static size_t channels_at(const struct job *job, size_t channel) {
    return bnorm_min(job->channel_step, job->op->view.c - channel);
}

static void set_channels(struct job *job, size_t step) {
    job->channel_step = step;
    job->channel_parts = bnorm_ceil_div(job->op->view.c, step);
}

static void reduce_task(void *arg, size_t i) {
    const struct job *job = arg;
    const size_t channel = i % job->channel_parts * job->channel_step;
    const size_t first = i / job->channel_parts * job->block_step;
    const size_t last = bnorm_min(first + job->block_step, job->op->blocks.count);
    for (size_t b = first; b < last; b++)
        job->op->reduce(job->op->self, b, channel, channels_at(job, channel));
}

static void finish_task(void *arg, size_t i) {
    const struct job *job = arg;
    const size_t channel = i * job->channel_step;
    job->op->finish(job->op->self, channel, channels_at(job, channel));
}

static void apply_task(void *arg, size_t i) {
    const struct job *job = arg;
    const bnorm_piece piece = bnorm_grid_piece_from_end(&job->grid, i);
    job->op->apply(job->op->self, &piece);
}

/* All three phases for a group of planes; the last image, read last, is normalised first. */
static void fused_task(void *arg, size_t i) {
    const struct job *job = arg;
    const bnorm_reduction *op = job->op;
    const size_t channel = i * job->channel_step, channels = channels_at(job, channel);
    for (size_t b = 0; b < op->blocks.count; b++)
        op->reduce(op->self, b, channel, channels);
    op->finish(op->self, channel, channels);
    for (size_t image = op->view.images; op->apply && image-- > 0;) {
        const bnorm_piece piece = {image, channel, channels, 0, op->view.len};
        op->apply(op->self, &piece);
    }
}

/* Planes in groups that stay in cache between the phases. */
static int run_fused(struct job *job, const bnorm_exec *exec) {
    const bnorm_reduction *op = job->op;
    const size_t per_channel = op->view.images * op->view.len * op->tensors;
    size_t step = per_channel < GROUP_ELEMENTS ? GROUP_ELEMENTS / per_channel : 1;
    if (bnorm_is_parallel(exec)) {
        const size_t fair = op->view.c / FEW_TASKS,
                     least = bnorm_ceil_div(TASK_ELEMENTS, per_channel);
        step = bnorm_min(step, fair > least ? fair : least);
    }
    set_channels(job, bnorm_min(step, op->view.c));
    if (bnorm_is_parallel(exec) && job->channel_parts < FEW_TASKS &&
        per_channel * op->view.c > TASK_ELEMENTS)
        return 0;
    bnorm_run(exec, fused_task, job, job->channel_parts);
    return 1;
}

void bnorm_reduction_run(const bnorm_reduction *op, const bnorm_exec *exec) {
    struct job job;
    job.op = op; /* the rest is set where it is used */
    const bnorm_view *view = &op->view;

    if (!view->rows && op->reduce && run_fused(&job, exec))
        return;
    if (op->reduce) {
        /* A block of many channels is shared out in slices. */
        const size_t fair = (bnorm_ceil_div(TASK_ELEMENTS * 2, op->blocks.size) + 63) / 64 * 64;
        set_channels(
            &job, view->rows ? (op->blocks.chains > 1 ? view->c : bnorm_min(fair, view->c))
                             : bnorm_min(bnorm_ceil_div(TASK_ELEMENTS, op->blocks.size), view->c));
        if (!bnorm_is_parallel(exec))
            set_channels(&job, view->c);
        const size_t positions = view->rows ? view->runs : view->len;
        const size_t block = bnorm_min(op->blocks.size, positions) * job.channel_step;
        job.block_step = block < TASK_ELEMENTS ? TASK_ELEMENTS / block : 1;
        job.block_parts = bnorm_ceil_div(op->blocks.count, job.block_step);
        bnorm_run(exec, reduce_task, &job, job.block_parts * job.channel_parts);
    }
    if (op->finish) {
        /* Few entries per channel are not worth sharing. */
        const bnorm_exec alone = {.denormals = exec ? exec->denormals : BNORM_DENORMALS_CALLER};
        set_channels(&job, bnorm_min(256, view->c));
        bnorm_run(op->blocks.count >= 16 ? exec : &alone, finish_task, &job, job.channel_parts);
    }
    if (op->apply) {
        const size_t elements =
            bnorm_is_parallel(exec) ? bnorm_piece_elements(exec, &op->apply_view) : GROUP_ELEMENTS;
        job.grid = bnorm_grid_of(op->apply_view, elements);
        bnorm_run(exec, apply_task, &job, bnorm_grid_count(&job.grid));
    }
}
