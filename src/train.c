/* SPDX-License-Identifier: MIT
 *
 * Batch statistics and the training forward pass. */
#include "train.h"

#include <math.h>

static void reduce(const void *self, size_t b, size_t channel, size_t channels) {
    const bnorm_statistics *s = self;
    const bnorm_view *view = &s->view;
    const bnorm_block block = bnorm_block_at(view, &s->blocks, b);
    const size_t entry = b * view->c + channel, unit = view->unit;
    double *sum = s->sum + entry, *m2 = s->block_m2 + entry;
    bnorm_block_args args = {NULL,    s->x.type, block.len, channels, bnorm_stride(view, &s->x),
                             channels};

    if (!view->rows && unit == 1) {
        args.x = bnorm_at(view, &s->x, block.image, channel, block.from);
        args.runs = channels;
        args.len = block.len;
        s->isa->moments_span(&args, sum, m2);
        return;
    }
    /* Channels that are not next to each other come one by one. */
    const size_t at_once = unit > 1 ? unit : s->x.step == 1 ? channels : 1;
    for (size_t i = 0; i < channels; i += at_once) {
        args.x = view->rows
                     ? bnorm_at(view, &s->x, block.image, block.from, channel + i)
                     : bnorm_at(view, &s->x, block.image, (channel + i) / unit, block.from * unit);
        args.len = at_once;
        args.valid = bnorm_min(at_once, channels - i);
        s->isa->moments_rows(&args, s->blocks.chains, sum + i, m2 + i);
    }
}

static void finish(const void *self, size_t channel, size_t channels) {
    const bnorm_statistics *s = self;
    s->isa->merge(&s->partials, channel, channels, s->mean, s->m2);
    s->isa->coefficients(&s->derived, channel, channels);
}

static void apply(const void *self, const bnorm_piece *piece) {
    const bnorm_statistics *s = self;
    bnorm_elementwise_piece(&s->pass, piece, s->pass.hints);
}

static void apply_near(const void *self, const bnorm_piece *piece) {
    const bnorm_statistics *s = self;
    bnorm_elementwise_piece(&s->pass, piece, s->pass.hints & ~(unsigned)BNORM_FETCH_IN);
}

void bnorm_statistics_run(const bnorm_statistics *s, const bnorm_exec *exec) {
    const bnorm_reduction op = {
        .self = s,
        .view = s->view,
        .blocks = s->blocks,
        .apply_view = s->pass.view,
        .tensors = 1,
        .reduce = reduce,
        .finish = finish,
        .apply = s->pass.y.data ? apply : NULL,
        .apply_near = apply_near,
    };
    bnorm_reduction_run(&op, exec);
}

/* N*HW */
static double element_count(const bnorm_shape *shape) {
    return (double)shape->n * (double)shape->hw;
}

/* Of m2, in the running variance. */
static double running_divisor(const bnorm_running *running, double n) {
    if (running->variance == BNORM_VARIANCE_POPULATION)
        return n;
    return n > 1 ? n - 1 : 1;
}

bnorm_status bnorm_plan_moments(const bnorm_shape *shape, bnorm_in x, float *mean, float *var,
                                void *ws, size_t ws_size, const bnorm_exec *exec,
                                bnorm_statistics *s) {
    bnorm_tensor tx;
    bnorm_status status = bnorm_check_float_shape(shape);
    s->x.data = NULL;
    if (!status)
        status = bnorm_check_exec(exec);
    if (status || bnorm_is_empty(shape))
        return status;
    if (!x.data || !ws)
        return BNORM_NULL_POINTER;
    if (bnorm_failed(status = bnorm_check_in(shape, x, &tx)))
        return status;
    const bnorm_view view = bnorm_view_of(shape);
    const bnorm_blocks blocks = bnorm_blocks_of(&view);
    const size_t need = bnorm_reduction_workspace(&view, &blocks);
    if (bnorm_failed(status = bnorm_check_workspace(need, ws_size)))
        return status;
    const bnorm_buffer buffers[] = {
        bnorm_memory_buffer(ws, need),
        bnorm_array_buffer(mean, shape->c),
        bnorm_array_buffer(var, shape->c),
        bnorm_tensor_buffer(&tx),
    };
    status = bnorm_check_overlap(shape, buffers, sizeof buffers / sizeof buffers[0], 3);
    if (bnorm_failed(status))
        return status;

    const bnorm_tables tables = bnorm_tables_of(&view, &blocks, ws);
    const double n = element_count(shape);
    *s = (bnorm_statistics){
        .view = view,
        .blocks = blocks,
        .x = bnorm_walk_of(shape, &tx),
        .sum = tables.entries[0],
        .block_m2 = tables.entries[1],
        .partials = bnorm_partials_of(&view, &blocks, &tables),
        .mean = tables.merged[0],
        .m2 = tables.merged[1],
        /* As running statistics that take the batch's values. */
        .derived = {.mean = tables.merged[0],
                    .m2 = tables.merged[1],
                    .n = n,
                    .running_mean = mean,
                    .running_var = var,
                    .rate = 1,
                    .divisor = n},
        .isa = bnorm_exec_isa(exec),
    };
    return BNORM_OK;
}

bnorm_status bnorm_moments(const bnorm_shape *shape, bnorm_in x, float *mean, float *var, void *ws,
                           size_t ws_size, const bnorm_exec *exec) {
    bnorm_statistics s;
    const bnorm_status status = bnorm_plan_moments(shape, x, mean, var, ws, ws_size, exec, &s);
    if (!status && s.x.data)
        bnorm_statistics_run(&s, exec);
    return status;
}

static bnorm_status check_train(const bnorm_train *train, const bnorm_exec *exec) {
    const bnorm_running *running = &train->running;
    bnorm_status status = bnorm_check_act(&train->act, bnorm_exec_isa(exec));
    if (!status)
        status = bnorm_check_eps(train->eps);
    if (bnorm_failed(status))
        return status;
    if ((unsigned)running->variance > BNORM_VARIANCE_SAMPLE)
        return BNORM_BAD_ENUM;
    if (!running->mean != !running->var)
        return BNORM_NULL_POINTER;
    return running->mean && !isfinite(running->rate) ? BNORM_BAD_PARAMETER : BNORM_OK;
}

bnorm_status bnorm_plan_train(const bnorm_shape *shape, bnorm_in x, bnorm_out y,
                              const bnorm_train *train, void *ws, size_t ws_size,
                              const bnorm_exec *exec, bnorm_statistics *s) {
    bnorm_tensor tx, ty, tr;
    bnorm_status status = bnorm_check_float_shape(shape);
    s->x.data = NULL;
    if (bnorm_failed(status))
        return status;
    if (!train)
        return BNORM_NULL_POINTER;
    unsigned char *mask = train->mask;
    if (bnorm_failed(status = check_train(train, exec)) ||
        bnorm_failed(status = bnorm_check_mask(&train->act, &mask)) ||
        bnorm_failed(status = bnorm_check_exec(exec)) || bnorm_is_empty(shape))
        return status;
    if (!x.data || !y.data || !ws)
        return BNORM_NULL_POINTER;
    if (bnorm_failed(status = bnorm_check_in(shape, x, &tx)) ||
        bnorm_failed(status = bnorm_check_out(shape, y, &ty)) ||
        bnorm_failed(status = bnorm_check_in(shape, train->residual, &tr)))
        return status;
    const bnorm_view view = bnorm_view_of(shape);
    const bnorm_blocks blocks = bnorm_blocks_of(&view);
    const size_t c = shape->c, need = bnorm_reduction_workspace(&view, &blocks);
    if (bnorm_failed(status = bnorm_check_workspace(need, ws_size)))
        return status;
    const bnorm_buffer buffers[] = {
        /* outputs */
        bnorm_tensor_buffer(&ty),
        bnorm_memory_buffer(ws, need),
        bnorm_array_buffer(train->running.mean, c),
        bnorm_array_buffer(train->running.var, c),
        bnorm_array_buffer(train->save_mean, c),
        bnorm_array_buffer(train->save_invstd, c),
        bnorm_array_buffer(train->save_mean_lo, c),
        bnorm_memory_buffer(mask, mask ? bnorm_mask_size(shape) : 0),
        /* inputs */
        bnorm_tensor_buffer(&tx),
        bnorm_tensor_buffer(&tr),
        bnorm_array_buffer(train->gamma, c),
        bnorm_array_buffer(train->beta, c),
    };
    status = bnorm_check_overlap(shape, buffers, sizeof buffers / sizeof buffers[0], 8);
    if (bnorm_failed(status))
        return status;

    const bnorm_running *running = &train->running;
    const bnorm_tables tables = bnorm_tables_of(&view, &blocks, ws);
    const double n = element_count(shape);
    bnorm_walk wx = bnorm_walk_of(shape, &tx), wr = bnorm_walk_of(shape, &tr),
               wy = bnorm_walk_of(shape, &ty), wmask = bnorm_mask_walk(shape, mask);
    bnorm_walk *const walks[] = {&wx, &wr, &wy, &wmask};
    const size_t count = sizeof walks / sizeof walks[0];
    const bnorm_view pass_view = bnorm_elementwise_view(shape, walks, count);
    const bnorm_quant none = {1, 0};
    /* Every member is named, as clearing structs costs as much as a small batch. */
    *s = (bnorm_statistics){
        .view = view,
        .blocks = blocks,
        .x = bnorm_walk_of(shape, &tx),
        .sum = tables.entries[0],
        .block_m2 = tables.entries[1],
        .partials = bnorm_partials_of(&view, &blocks, &tables),
        .mean = tables.merged[0],
        .m2 = tables.merged[1],
        .derived = {.mean = tables.merged[0],
                    .m2 = tables.merged[1],
                    .n = n,
                    .eps = train->eps,
                    .gamma = train->gamma,
                    .beta = train->beta,
                    .drop_low = train->act.kind != BNORM_ACT_IDENTITY && !tr.data &&
                                train->save_mean && !train->save_mean_lo,
                    .center = tables.coefficients[0],
                    .scale = tables.coefficients[1],
                    .shift = tables.coefficients[2],
                    .save_mean = train->save_mean,
                    .save_mean_lo = train->save_mean_lo,
                    .save_invstd = train->save_invstd,
                    .running_mean = running->mean,
                    .running_var = running->var,
                    .rate = running->rate,
                    .divisor = running_divisor(running, n)},
        .pass = {.view = pass_view,
                 .x = wx,
                 .residual = wr,
                 .y = wy,
                 .mask = wmask,
                 .center = tables.coefficients[0],
                 .scale = tables.coefficients[1],
                 .shift = tables.coefficients[2],
                 .act = train->act,
                 .x_quant = none,
                 .residual_quant = none,
                 .y_quant = none,
                 .isa = bnorm_exec_isa(exec),
                 .hints = bnorm_elementwise_hints(exec, &pass_view, walks, count - 1)},
        .isa = bnorm_exec_isa(exec),
    };
    return BNORM_OK;
}

bnorm_status bnorm_forward_train(const bnorm_shape *shape, bnorm_in x, bnorm_out y,
                                 const bnorm_train *train, void *ws, size_t ws_size,
                                 const bnorm_exec *exec) {
    bnorm_statistics s;
    const bnorm_status status = bnorm_plan_train(shape, x, y, train, ws, ws_size, exec, &s);
    if (!status && s.x.data) {
        bnorm_end_mask(shape, (unsigned char *)s.pass.mask.data);
        bnorm_statistics_run(&s, exec);
    }
    return status;
}
