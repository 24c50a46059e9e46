/* SPDX-License-Identifier: MIT
 *
 * Batch statistics and the training forward pass. */
#include "apply.h"
#include "numbers.h"
#include "reduce.h"

/* What finish() derives from the merged statistics; arrays may be NULL. */
struct outputs {
    float *mean, *var;             /* bnorm_moments */
    float *center, *scale, *shift; /* coefficients of the elementwise pass */
};

struct statistics {
    bnorm_view view;
    bnorm_blocks blocks;
    bnorm_walk x;
    double *sum, *block_m2; /* blocks.count x c each */
    double *mean, *m2;      /* c each: merged */
    double n;
    struct outputs out;
    const bnorm_train *train; /* NULL for bnorm_moments */
    int drop_low;             /* normalise with the float mean alone */
    bnorm_elementwise pass;
};

static void reduce(const void *self, size_t b, size_t channel, size_t channels) {
    const struct statistics *s = self;
    const bnorm_isa *isa = s->pass.isa;
    const size_t image = b / s->blocks.per_image, from = b % s->blocks.per_image * s->blocks.size;
    const size_t len = bnorm_block_len(&s->view, &s->blocks, b);
    double *sum = s->sum + b * s->view.c + channel, *m2 = s->block_m2 + b * s->view.c + channel;

    if (!s->view.rows) {
        isa->moments_span(bnorm_at(&s->x, image, channel, from), s->x.run_stride, channels, len,
                          sum, m2);
        return;
    }
    /* Channels that are not next to each other come one by one. */
    const size_t at_once = s->x.step == 1 ? channels : 1;
    for (size_t i = 0; i < channels; i += at_once)
        isa->moments_rows(bnorm_at(&s->x, image, from, channel + i), s->x.run_stride, len, at_once,
                          s->blocks.chains, sum + i, m2 + i);
}

/* old + rate*(batch - old). Rate 1 takes the batch's value whatever the old one is, also a NaN. */
static float blend(double rate, double old, double batch) {
    return bnorm_to_float(rate == 1 ? batch : fma(rate, batch - old, old));
}

/* Outputs of one channel of bnorm_forward_train. */
static void finish_channel(const struct statistics *s, size_t i, double mean, double m2) {
    const bnorm_train *train = s->train;
    const bnorm_running *running = &train->running;
    const double variance = m2 / s->n, spread = variance + train->eps;
    const float high = bnorm_to_float(mean), low = bnorm_to_float(mean - (double)high);
    const float invstd = spread == 0 ? 0 : bnorm_to_float(1 / sqrt(spread));
    const float scale = bnorm_scale(train->gamma, i, invstd);

    s->out.center[i] = high;
    s->out.scale[i] = scale;
    s->out.shift[i] = bnorm_shift(train->beta, i, s->drop_low ? 0 : low, scale);
    if (train->save_mean)
        train->save_mean[i] = high;
    if (train->save_mean_lo)
        train->save_mean_lo[i] = low;
    if (train->save_invstd)
        train->save_invstd[i] = invstd;
    if (running->mean) {
        const double divisor =
            running->variance == BNORM_VARIANCE_SAMPLE ? (s->n > 1 ? s->n - 1 : 1) : s->n;
        const double old_mean = (double)running->mean[i], old_var = (double)running->var[i];
        running->mean[i] = blend(running->rate, old_mean, mean);
        running->var[i] = blend(running->rate, old_var, m2 / divisor);
    }
}

static void finish(const void *self, size_t channel, size_t channels) {
    const struct statistics *s = self;
    double *mean = s->mean + channel, *m2 = s->m2 + channel;
    double before = 0;
    for (size_t b = 0; b < s->blocks.count; b++) {
        const double len = (double)bnorm_block_len(&s->view, &s->blocks, b);
        s->pass.isa->merge(channels, before, len, s->sum + b * s->view.c + channel,
                           s->block_m2 + b * s->view.c + channel, mean, m2);
        before += len;
    }
    for (size_t i = 0; i < channels; i++) {
        if (m2[i] != m2[i]) /* an infinity among the data leaves no mean either */
            mean[i] = m2[i];
        if (s->train)
            finish_channel(s, channel + i, mean[i], m2[i]);
        if (s->out.mean)
            s->out.mean[channel + i] = bnorm_to_float(mean[i]);
        if (s->out.var)
            s->out.var[channel + i] = bnorm_to_float(m2[i] / s->n);
    }
}

static void apply(const void *self, const bnorm_piece *piece) {
    const struct statistics *s = self;
    bnorm_elementwise_piece(&s->pass, piece);
}

static void run_statistics(const bnorm_shape *shape, const bnorm_tensor *x, struct statistics *s,
                           void *ws, const bnorm_exec *exec) {
    const bnorm_tables tables = bnorm_tables_of(shape, ws);
    s->view = bnorm_view_of(shape);
    s->blocks = bnorm_blocks_of(&s->view);
    s->x = bnorm_walk_of(shape, x);
    s->n = (double)shape->n * (double)shape->hw;
    s->pass.isa = bnorm_exec_isa(exec);
    s->sum = tables.entries[0];
    s->block_m2 = tables.entries[1];
    s->mean = tables.merged[0];
    s->m2 = tables.merged[1];
    if (s->train) {
        s->pass.center = s->out.center = tables.coefficients[0];
        s->pass.scale = s->out.scale = tables.coefficients[1];
        s->pass.shift = s->out.shift = tables.coefficients[2];
    }
    const bnorm_reduction op = {
        .self = s,
        .view = s->view,
        .blocks = s->blocks,
        .apply_view = s->pass.view,
        .tensors = 1,
        .reduce = reduce,
        .finish = finish,
        .apply = s->train ? apply : NULL,
    };
    bnorm_reduction_run(&op, exec);
}

bnorm_status bnorm_moments(const bnorm_shape *shape, bnorm_in x, float *mean, float *var, void *ws,
                           size_t ws_size, const bnorm_exec *exec) {
    bnorm_tensor tx;
    bnorm_status status = bnorm_check_shape(shape);
    if (status || bnorm_is_empty(shape))
        return status;
    if (!x.data || !ws)
        return BNORM_NULL_POINTER;
    if ((status = bnorm_check_tensor(shape, x.data, x.run_stride, x.image_stride, &tx)))
        return status;
    const size_t need = bnorm_reduction_workspace(shape);
    if ((status = bnorm_check_workspace(need, ws_size)))
        return status;
    const bnorm_buffer input = bnorm_tensor_buffer(&tx), outputs[] = {
                                                             bnorm_memory_buffer(ws, need),
                                                             bnorm_array_buffer(mean, shape->c),
                                                             bnorm_array_buffer(var, shape->c),
                                                         };
    status = bnorm_check_overlap(shape, &input, 1, outputs, sizeof outputs / sizeof outputs[0]);
    if (status)
        return status;

    struct statistics s = {.out = {.mean = mean, .var = var}};
    run_statistics(shape, &tx, &s, ws, exec);
    return BNORM_OK;
}

static bnorm_status check_train(const bnorm_train *train) {
    const bnorm_running *running = &train->running;
    bnorm_status status = bnorm_check_act(&train->act);
    if (!status)
        status = bnorm_check_eps(train->eps);
    if (status)
        return status;
    if ((unsigned)running->variance > BNORM_VARIANCE_SAMPLE)
        return BNORM_BAD_ENUM;
    if (!running->mean != !running->var)
        return BNORM_NULL_POINTER;
    return running->mean && !isfinite(running->rate) ? BNORM_BAD_PARAMETER : BNORM_OK;
}

bnorm_status bnorm_forward_train(const bnorm_shape *shape, bnorm_in x, bnorm_out y,
                                 const bnorm_train *train, void *ws, size_t ws_size,
                                 const bnorm_exec *exec) {
    bnorm_tensor tx, ty, tr;
    bnorm_status status = bnorm_check_shape(shape);
    if (status)
        return status;
    if (!train)
        return BNORM_NULL_POINTER;
    if ((status = check_train(train)) || bnorm_is_empty(shape))
        return status;
    if (!x.data || !y.data || !ws)
        return BNORM_NULL_POINTER;
    if ((status = bnorm_check_tensor(shape, x.data, x.run_stride, x.image_stride, &tx)) ||
        (status = bnorm_check_tensor(shape, y.data, y.run_stride, y.image_stride, &ty)) ||
        (status = bnorm_check_tensor(shape, train->residual.data, train->residual.run_stride,
                                     train->residual.image_stride, &tr)))
        return status;
    const size_t c = shape->c, need = bnorm_reduction_workspace(shape);
    if ((status = bnorm_check_workspace(need, ws_size)))
        return status;
    const bnorm_buffer inputs[] = {
        bnorm_tensor_buffer(&tx),
        bnorm_tensor_buffer(&tr),
        bnorm_array_buffer(train->gamma, c),
        bnorm_array_buffer(train->beta, c),
    };
    const bnorm_buffer outputs[] = {
        bnorm_tensor_buffer(&ty),
        bnorm_memory_buffer(ws, need),
        bnorm_array_buffer(train->running.mean, c),
        bnorm_array_buffer(train->running.var, c),
        bnorm_array_buffer(train->save_mean, c),
        bnorm_array_buffer(train->save_invstd, c),
        bnorm_array_buffer(train->save_mean_lo, c),
    };
    status = bnorm_check_overlap(shape, inputs, sizeof inputs / sizeof inputs[0], outputs,
                                 sizeof outputs / sizeof outputs[0]);
    if (status)
        return status;

    struct statistics s = {
        .train = train,
        .drop_low = train->act.kind != BNORM_ACT_IDENTITY && !tr.data && train->save_mean &&
                    !train->save_mean_lo,
        .pass = {.x = bnorm_walk_of(shape, &tx),
                 .residual = bnorm_walk_of(shape, &tr),
                 .y = bnorm_walk_of(shape, &ty),
                 .act = train->act},
    };
    bnorm_walk *const walks[] = {&s.pass.x, &s.pass.residual, &s.pass.y};
    s.pass.view = bnorm_elementwise_view(shape, walks, 3);
    run_statistics(shape, &tx, &s, ws, exec);
    return BNORM_OK;
}
