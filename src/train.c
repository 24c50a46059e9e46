/* SPDX-License-Identifier: MIT
 *
 * Batch statistics and the training forward pass. */
#include "base.h"

#include "train.h"

void bnorm_statistics_reduce(const bnorm_statistics *s, size_t b, size_t channel, size_t channels) {
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
        if (view->leaves)
            s->isa->moments_tree(&args, sum + i, m2 + i);
        else
            BNORM_HELD(s->isa->moments_rows(&args, s->blocks.chains, sum + i, m2 + i),
                       args.valid < args.len);
    }
}

static void reduce(const void *self, size_t b, size_t channel, size_t channels) {
    bnorm_statistics_reduce(self, b, channel, channels);
}

static void finish(const void *self, size_t channel, size_t channels) {
    const bnorm_statistics *s = self;
    if (s->collected) {
        s->isa->merge(&s->partials, channel, channels, NULL, NULL);
        return;
    }
    if (s->weighted.values)
        bnorm_weighted_merge(s, channel, channels);
    else
        s->isa->merge(&s->partials, channel, channels, s->mean, s->m2);
    if (s->renorm)
        bnorm_renorm_forward(s->renorm, &s->renormed, &s->derived, channel, channels);
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
        .reduce = s->weighted.values ? bnorm_weighted_reduce : reduce,
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

double bnorm_running_divisor(const bnorm_running *running, double n) {
    if (running->variance == BNORM_VARIANCE_POPULATION)
        return n;
    return n > 2 ? n - 1 : 1; /* a sum of weights may be no whole number */
}

/* What all operations share. Plans are filled member by member: compilers fill a whole struct
 * aside and copy it, which takes as long as a small batch. */
static bnorm_tables plan_sums(bnorm_statistics *s, const bnorm_shape *shape, const bnorm_tensor *x,
                              const bnorm_view *view, const bnorm_blocks *blocks, void *ws,
                              const bnorm_exec *exec) {
    const bnorm_tables tables = bnorm_tables_of(view, blocks, ws);
    s->collected = 0;
    s->weighted.values = NULL;
    s->renorm = NULL;
    s->view = *view;
    s->blocks = *blocks;
    s->x = bnorm_walk_of(shape, x);
    s->sum = tables.entries[0];
    s->block_m2 = tables.entries[1];
    s->partials = bnorm_partials_of(view, blocks, &tables);
    s->totals[0] = tables.totals[0];
    s->totals[1] = tables.totals[1];
    s->mean = tables.merged[0];
    s->m2 = tables.merged[1];
    s->derived.mean = tables.merged[0];
    s->derived.m2 = tables.merged[1];
    s->derived.n = element_count(shape);
    s->isa = bnorm_exec_isa(exec);
    return tables;
}

/* With weights, their sum and epsilon are what the values are counted as. */
static void plan_weights(bnorm_statistics *s, const bnorm_weights *weights,
                         const bnorm_tables *tables, const bnorm_exec *exec) {
    s->derived.n = bnorm_weigh(weights, &s->view, &s->blocks, tables->weights, exec, &s->weighted);
}

bnorm_status bnorm_plan_moments(const bnorm_shape *shape, bnorm_in x, const bnorm_weights *weights,
                                float *mean, float *var, const bnorm_partial *piece, void *ws,
                                size_t ws_size, const bnorm_exec *exec, bnorm_statistics *s) {
    bnorm_tensor tx;
    bnorm_status status = bnorm_check_float_shape(shape);
    if (s)
        s->x.data = NULL;
    if (weights && !weights->values)
        weights = NULL;
    if (!status && weights)
        status = bnorm_check_weighting(weights);
    if (!status)
        status = bnorm_check_exec(exec);
    if (status || bnorm_is_empty(shape))
        return status;
    if (!x.data || !ws)
        return BNORM_NULL_POINTER;
    if (bnorm_failed(status = bnorm_check_in(shape, x, &tx)))
        return status;
    const bnorm_view view = bnorm_view_of(shape);
    const bnorm_blocks blocks = bnorm_blocks_of(&view, piece ? piece->first + piece->n : 0);
    const size_t need = bnorm_reduction_workspace(&view, &blocks);
    if (bnorm_failed(status = bnorm_check_workspace(need, ws_size)))
        return status;
    const bnorm_buffer buffers[] = {
        bnorm_memory_buffer(ws, need),     bnorm_array_buffer(mean, shape->c),
        bnorm_array_buffer(var, shape->c), bnorm_piece_buffer(piece, shape->n),
        bnorm_tensor_buffer(&tx),
    };
    const size_t buffer_count = sizeof buffers / sizeof buffers[0];
    if (weights) {
        const bnorm_buffer more = bnorm_weights_buffer(shape, weights);
        status = bnorm_check_more_overlap(shape, buffers, buffer_count, 4, &more, 1, 0);
        if (!status)
            status = bnorm_check_weights(shape, weights);
    } else {
        status = bnorm_check_overlap(shape, buffers, buffer_count, 4);
    }
    if (bnorm_failed(status) || !s)
        return status;

    const bnorm_tables tables = plan_sums(s, shape, &tx, &view, &blocks, ws, exec);
    s->collected = piece != NULL;
    s->pass.view = view;
    s->pass.y.data = NULL;
    /* As running statistics that take the batch's values. */
    s->derived.scale = NULL;
    s->derived.running_mean = s->derived.new_mean = mean;
    s->derived.running_var = s->derived.new_var = var;
    s->derived.rate = 1;
    s->derived.divisor = s->derived.n;
    if (weights) {
        plan_weights(s, weights, &tables, exec);
        s->derived.divisor = s->derived.n;
    }
    return BNORM_OK;
}

static bnorm_status moments(const bnorm_shape *shape, bnorm_in x, const bnorm_weights *weights,
                            float *mean, float *var, void *ws, size_t ws_size,
                            const bnorm_exec *exec) {
    bnorm_statistics s;
    const bnorm_status status =
        bnorm_plan_moments(shape, x, weights, mean, var, NULL, ws, ws_size, exec, &s);
    if (!status && s.x.data)
        bnorm_statistics_run(&s, exec);
    return status;
}

bnorm_status bnorm_moments(const bnorm_shape *shape, bnorm_in x, float *mean, float *var, void *ws,
                           size_t ws_size, const bnorm_exec *exec) {
    return moments(shape, x, NULL, mean, var, ws, ws_size, exec);
}

bnorm_status bnorm_weighted_moments(const bnorm_shape *shape, bnorm_in x,
                                    const bnorm_weights *weights, float *mean, float *var, void *ws,
                                    size_t ws_size, const bnorm_exec *exec) {
    return moments(shape, x, weights, mean, var, ws, ws_size, exec);
}

bnorm_status bnorm_check_train(const bnorm_train *train, const bnorm_exec *exec) {
    const bnorm_running *running = &train->running;
    bnorm_status status = bnorm_check_act(&train->act, bnorm_exec_isa(exec));
    if (!status)
        status = bnorm_check_eps(train->eps);
    if (!status)
        status = bnorm_check_running(running);
    if (!status && train->renorm)
        status = bnorm_check_renorm(train->renorm, running);
    return status ? status : bnorm_check_weighting(&train->weights);
}

bnorm_status bnorm_plan_train(const bnorm_shape *shape, bnorm_in x, bnorm_out y,
                              const bnorm_train *train, void *ws, size_t ws_size,
                              const bnorm_exec *exec, bnorm_statistics *s) {
    bnorm_tensor tx, ty, tr;
    bnorm_status status = bnorm_check_float_shape(shape);
    if (s)
        s->x.data = NULL;
    if (bnorm_failed(status))
        return status;
    if (!train)
        return BNORM_NULL_POINTER;
    unsigned char *mask = train->mask;
    if (bnorm_failed(status = bnorm_check_train(train, exec)) ||
        bnorm_failed(status = bnorm_check_mask(&train->act, &mask)) ||
        bnorm_failed(status = bnorm_check_exec(exec)) || bnorm_is_empty(shape))
        return status;
    if (!x.data || !y.data || !ws)
        return BNORM_NULL_POINTER;
    if (bnorm_failed(status = bnorm_check_in(shape, x, &tx)) ||
        bnorm_failed(status = bnorm_check_out(shape, y, &ty)) ||
        bnorm_failed(status = bnorm_check_in(shape, train->residual, &tr)))
        return status;
    const bnorm_running *const running = &train->running;
    float *const new_mean = bnorm_updated(running->mean, running->new_mean);
    float *const new_var = bnorm_updated(running->var, running->new_var);
    const bnorm_view view = bnorm_view_of(shape);
    const bnorm_blocks blocks = bnorm_blocks_of(&view, 0);
    const size_t c = shape->c, need = bnorm_reduction_workspace(&view, &blocks);
    if (bnorm_failed(status = bnorm_check_workspace(need, ws_size)))
        return status;
    const bnorm_buffer buffers[] = {
        /* outputs */
        bnorm_tensor_buffer(&ty),
        bnorm_memory_buffer(ws, need),
        bnorm_array_buffer(new_mean, c),
        bnorm_array_buffer(new_var, c),
        bnorm_array_buffer(train->save_mean, c),
        bnorm_array_buffer(train->save_invstd, c),
        bnorm_array_buffer(train->save_mean_lo, c),
        bnorm_mask_buffer(shape, mask),
        /* inputs */
        bnorm_tensor_buffer(&tx),
        bnorm_tensor_buffer(&tr),
        bnorm_array_buffer(train->gamma, c),
        bnorm_array_buffer(train->beta, c),
    };
    const size_t buffer_count = sizeof buffers / sizeof buffers[0];
    const bnorm_weights *const weights = train->weights.values ? &train->weights : NULL;
    const bnorm_renorm *const renorm = train->renorm;
    if (weights || renorm || train->save_var || running->new_mean || running->new_var) {
        const bnorm_buffer more[] = {
            bnorm_array_buffer(renorm ? renorm->save_r : NULL, c),
            bnorm_array_buffer(renorm ? renorm->save_d : NULL, c),
            bnorm_array_buffer(train->save_var, c),
            bnorm_weights_buffer(shape, weights),
            bnorm_array_buffer(bnorm_only_read(running->mean, running->new_mean), c),
            bnorm_array_buffer(bnorm_only_read(running->var, running->new_var), c),
        };
        status = bnorm_check_more_overlap(shape, buffers, buffer_count, 8, more, 6, 3);
        if (!status && weights)
            status = bnorm_check_weights(shape, weights);
        if (!status && renorm)
            status = bnorm_check_variance(c, train->running.var, train->eps);
    } else {
        status = bnorm_check_overlap(shape, buffers, buffer_count, 8);
    }
    if (bnorm_failed(status) || !s)
        return status;

    const bnorm_tables tables = plan_sums(s, shape, &tx, &view, &blocks, ws, exec);
    bnorm_elementwise *const pass = &s->pass;
    bnorm_walk *const walks[] = {&pass->x, &pass->residual, &pass->y, &pass->mask};
    const size_t count = sizeof walks / sizeof walks[0];
    s->derived.eps = train->eps;
    s->derived.gamma = train->gamma;
    s->derived.beta = train->beta;
    s->derived.center = tables.coefficients[0];
    s->derived.scale = tables.coefficients[1];
    s->derived.shift = tables.coefficients[2];
    s->derived.save_mean = train->save_mean;
    s->derived.save_mean_lo = train->save_mean_lo;
    s->derived.save_invstd = train->save_invstd;
    s->derived.save_var = train->save_var;
    s->derived.running_mean = running->mean;
    s->derived.running_var = running->var;
    s->derived.new_mean = new_mean;
    s->derived.new_var = new_var;
    s->derived.rate = running->rate;
    s->derived.divisor = bnorm_running_divisor(running, s->derived.n);
    if (weights) {
        plan_weights(s, weights, &tables, exec);
        s->derived.divisor = running->variance == BNORM_VARIANCE_POPULATION
                                 ? s->derived.n
                                 : bnorm_running_divisor(running, s->weighted.total);
        if (s->derived.n == 0) /* there is nothing to be averaged */
            s->derived.rate = 0;
    }
    if (renorm) {
        s->renorm = renorm;
        s->renormed =
            (bnorm_renorm_args){train->gamma, train->beta, tables.params[0], tables.params[1]};
        s->derived.gamma = tables.params[0];
        s->derived.beta = tables.params[1];
    }
    pass->x = s->x;
    pass->residual = bnorm_walk_of(shape, &tr);
    pass->y = bnorm_walk_of(shape, &ty);
    pass->mask = bnorm_mask_walk(shape, mask);
    pass->view = bnorm_elementwise_view(shape, walks, count);
    pass->center = s->derived.center;
    pass->scale = s->derived.scale;
    pass->shift = s->derived.shift;
    pass->act = train->act;
    pass->x_quant = pass->residual_quant = pass->y_quant = (bnorm_quant){1, 0};
    pass->isa = s->isa;
    pass->hints = bnorm_elementwise_hints(exec, &pass->view, walks, count - 1);
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
    } else if (!status) {
        bnorm_keep_running(&train->running, shape->c);
    }
    return status;
}
