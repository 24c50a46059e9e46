/* SPDX-License-Identifier: MIT
 *
 * The training backward pass, for batch and for frozen statistics. */
#include "apply.h"
#include "numbers.h"
#include "reduce.h"

struct backward {
    bnorm_view view;       /* of the sums */
    bnorm_view apply_view; /* of the elementwise pass */
    bnorm_blocks blocks;
    bnorm_walk x, dy, extra;                     /* as the sums see them */
    bnorm_walk ax, ady, aextra, adx, adresidual; /* as the elementwise pass sees them */
    double *block_g, *block_gx;                  /* blocks.count x c each */
    double *sum_g, *sum_gx;                      /* c each */
    float *scale, *shift, *slope, *offset;       /* c each; slope NULL = frozen */
    double n;
    enum bnorm_pre pre;
    const bnorm_grad *grad;
    const bnorm_isa *isa;
};

/* Arguments that the sums and the elementwise pass have in common, from channel `channel` on. */
static bnorm_grad_args common_args(const struct backward *s, size_t channel) {
    return (bnorm_grad_args){
        .pre = s->pre,
        .act = s->grad->act,
        .center = s->grad->save_mean + channel,
        .scale = s->scale + channel,
        .shift = s->shift + channel,
    };
}

static void reduce(const void *self, size_t b, size_t channel, size_t channels) {
    const struct backward *s = self;
    const size_t image = b / s->blocks.per_image, from = b % s->blocks.per_image * s->blocks.size;
    const size_t len = bnorm_block_len(&s->view, &s->blocks, b);
    double *sum_g = s->block_g + b * s->view.c + channel,
           *sum_gx = s->block_gx + b * s->view.c + channel;
    /* Rows whose channels are not next to each other come one channel at a time. */
    const int gaps = s->x.step != 1 || s->dy.step != 1 || (s->extra.data && s->extra.step != 1);
    const size_t at_once = s->view.rows && gaps ? 1 : channels;

    for (size_t i = 0; i < channels; i += at_once) {
        const size_t run = s->view.rows ? from : channel,
                     element = s->view.rows ? channel + i : from;
        bnorm_grad_args args = common_args(s, channel + i);
        args.runs = s->view.rows ? len : channels;
        args.len = s->view.rows ? at_once : len;
        args.x = bnorm_at(&s->x, image, run, element);
        args.dy = bnorm_at(&s->dy, image, run, element);
        args.extra = bnorm_at(&s->extra, image, run, element);
        args.x_stride = s->x.run_stride;
        args.dy_stride = s->dy.run_stride;
        args.extra_stride = s->extra.run_stride;
        if (s->view.rows)
            s->isa->sums_rows(&args, s->blocks.chains, sum_g + i, sum_gx + i);
        else
            s->isa->sums_span(&args, sum_g, sum_gx);
    }
}

/* Coefficients that the sums need already; a task, so that it runs in exec's mode. */
static void prepare(void *arg, size_t task) {
    const struct backward *s = arg;
    const bnorm_grad *grad = s->grad;
    (void)task;
    for (size_t i = 0; i < s->view.c; i++) {
        s->scale[i] = bnorm_scale(grad->gamma, i, grad->save_invstd[i]);
        s->shift[i] =
            bnorm_shift(grad->beta, i, grad->save_mean_lo ? grad->save_mean_lo[i] : 0, s->scale[i]);
    }
}

/* a*b + c rounded once, for an a that is mostly 0: fma may be a call into libm. */
static double plus_product(double a, double b, double c) {
    return a == 0 ? c : fma(a, b, c);
}

static void finish(const void *self, size_t channel, size_t channels) {
    const struct backward *s = self;
    const bnorm_grad *grad = s->grad;
    double *sum_g = s->sum_g + channel, *sum_gx = s->sum_gx + channel;

    for (size_t i = 0; i < channels; i++)
        sum_g[i] = sum_gx[i] = 0;
    for (size_t b = 0; b < s->blocks.count; b++) {
        const double *g = s->block_g + b * s->view.c + channel,
                     *gx = s->block_gx + b * s->view.c + channel;
        for (size_t i = 0; i < channels; i++) {
            sum_g[i] += g[i];
            sum_gx[i] += gx[i];
        }
    }
    for (size_t i = 0; i < channels; i++) {
        const size_t ch = channel + i;
        const double low = bnorm_parameter(grad->save_mean_lo, ch, 0);
        const double invstd = (double)grad->save_invstd[ch];
        const double scale = bnorm_parameter(grad->gamma, ch, 1) * invstd;
        const double dgamma = plus_product(-low, sum_g[i], sum_gx[i]) * invstd;
        if (grad->dgamma)
            grad->dgamma[ch] = bnorm_to_float(dgamma);
        if (grad->dbeta)
            grad->dbeta[ch] = bnorm_to_float(sum_g[i]);
        if (s->slope) {
            /* dx = scale*(g - dbeta/n - (x - mean)*invstd*dgamma/n) */
            s->slope[ch] = bnorm_to_float(-scale * (dgamma / s->n));
            s->offset[ch] = bnorm_to_float(
                plus_product(-low * invstd, (double)s->slope[ch], -scale * (sum_g[i] / s->n)));
            /* One value is its own mean: y does not depend on it, and v not on the scale. */
            if (s->n == 1 && isfinite(s->scale[ch]))
                s->scale[ch] = s->slope[ch] = s->offset[ch] = 0;
        }
    }
}

static void apply(const void *self, const bnorm_piece *piece) {
    const struct backward *s = self;
    const size_t channel = bnorm_piece_channel(&s->apply_view, piece);
    bnorm_grad_args args = common_args(s, channel);
    args.runs = piece->runs;
    args.len = piece->len;
    args.x = bnorm_at(&s->ax, piece->image, piece->run, piece->i);
    args.dy = bnorm_at(&s->ady, piece->image, piece->run, piece->i);
    args.extra = bnorm_at(&s->aextra, piece->image, piece->run, piece->i);
    args.dx = bnorm_at(&s->adx, piece->image, piece->run, piece->i);
    args.dresidual = bnorm_at(&s->adresidual, piece->image, piece->run, piece->i);
    args.x_stride = s->ax.run_stride;
    args.dy_stride = s->ady.run_stride;
    args.extra_stride = s->aextra.run_stride;
    args.dx_stride = s->adx.run_stride;
    args.dresidual_stride = s->adresidual.run_stride;
    if (s->slope) {
        args.invstd = s->grad->save_invstd + channel;
        args.slope = s->slope + channel;
        args.offset = s->offset + channel;
    }
    if (s->apply_view.rows)
        s->isa->dx_rows(&args);
    else
        s->isa->dx_span(&args);
}

static void zero(float *array, size_t c) {
    for (size_t i = 0; array && i < c; i++)
        array[i] = 0;
}

/* How the activation's argument is recovered, or why it can't be. */
static bnorm_status check_grad(const bnorm_grad *grad, enum bnorm_pre *pre) {
    const bnorm_act *act = &grad->act;
    const bnorm_status status = bnorm_check_act(act);
    if (status)
        return status;
    if (grad->residual.data && grad->y.data)
        return BNORM_BAD_PARAMETER;
    *pre = BNORM_PRE_X;
    if (act->kind == BNORM_ACT_IDENTITY)
        *pre = BNORM_PRE_NONE;
    else if (grad->residual.data)
        *pre = BNORM_PRE_RESIDUAL;
    else if (grad->y.data)
        *pre = BNORM_PRE_Y;
    if (*pre == BNORM_PRE_Y &&
        (act->kind == BNORM_ACT_HARD_SWISH || (act->kind == BNORM_ACT_LEAKY_RELU && !(act->a > 0))))
        return BNORM_UNSUPPORTED;
    return BNORM_OK;
}

bnorm_status bnorm_backward(const bnorm_shape *shape, bnorm_in x, bnorm_in dy, bnorm_out dx,
                            const bnorm_grad *grad, void *ws, size_t ws_size,
                            const bnorm_exec *exec) {
    bnorm_tensor tx, tdy, tdx, tdresidual, textra;
    enum bnorm_pre pre;
    bnorm_status status = bnorm_check_shape(shape);
    if (status)
        return status;
    if (!grad)
        return BNORM_NULL_POINTER;
    if ((status = check_grad(grad, &pre)))
        return status;
    const size_t c = shape->c;
    if (bnorm_is_empty(shape)) {
        zero(grad->dgamma, c);
        zero(grad->dbeta, c);
        return BNORM_OK;
    }
    if (!x.data || !dy.data || !grad->save_mean || !grad->save_invstd || !ws)
        return BNORM_NULL_POINTER;
    const bnorm_in none = {0};
    const bnorm_in extra = pre == BNORM_PRE_RESIDUAL ? grad->residual
                           : pre == BNORM_PRE_Y      ? grad->y
                                                     : none;
    if ((status = bnorm_check_tensor(shape, x.data, x.run_stride, x.image_stride, &tx)) ||
        (status = bnorm_check_tensor(shape, dy.data, dy.run_stride, dy.image_stride, &tdy)) ||
        (status = bnorm_check_tensor(shape, extra.data, extra.run_stride, extra.image_stride,
                                     &textra)) ||
        (status = bnorm_check_tensor(shape, dx.data, dx.run_stride, dx.image_stride, &tdx)) ||
        (status = bnorm_check_tensor(shape, grad->dresidual.data, grad->dresidual.run_stride,
                                     grad->dresidual.image_stride, &tdresidual)))
        return status;
    const size_t need = bnorm_reduction_workspace(shape);
    if ((status = bnorm_check_workspace(need, ws_size)))
        return status;
    const bnorm_buffer inputs[] = {
        bnorm_tensor_buffer(&tx),
        bnorm_tensor_buffer(&tdy),
        bnorm_tensor_buffer(&textra),
        bnorm_array_buffer(grad->gamma, c),
        bnorm_array_buffer(grad->beta, c),
        bnorm_array_buffer(grad->save_mean, c),
        bnorm_array_buffer(grad->save_invstd, c),
        bnorm_array_buffer(grad->save_mean_lo, c),
    };
    const bnorm_buffer outputs[] = {
        bnorm_memory_buffer(ws, need),      bnorm_tensor_buffer(&tdx),
        bnorm_tensor_buffer(&tdresidual),   bnorm_array_buffer(grad->dgamma, c),
        bnorm_array_buffer(grad->dbeta, c),
    };
    status = bnorm_check_overlap(shape, inputs, sizeof inputs / sizeof inputs[0], outputs,
                                 sizeof outputs / sizeof outputs[0]);
    if (status)
        return status;

    const bnorm_tables tables = bnorm_tables_of(shape, ws);
    struct backward s = {
        .view = bnorm_view_of(shape),
        .x = bnorm_walk_of(shape, &tx),
        .dy = bnorm_walk_of(shape, &tdy),
        .extra = bnorm_walk_of(shape, &textra),
        .adx = bnorm_walk_of(shape, &tdx),
        .adresidual = bnorm_walk_of(shape, &tdresidual),
        .block_g = tables.entries[0],
        .block_gx = tables.entries[1],
        .sum_g = tables.merged[0],
        .sum_gx = tables.merged[1],
        .scale = tables.coefficients[0],
        .shift = tables.coefficients[1],
        .slope = grad->frozen || !tdx.data ? NULL : tables.coefficients[2],
        .offset = tables.coefficients[3],
        .n = (double)shape->n * (double)shape->hw,
        .pre = pre,
        .grad = grad,
        .isa = bnorm_exec_isa(exec),
    };
    s.blocks = bnorm_blocks_of(&s.view);
    s.ax = s.x;
    s.ady = s.dy;
    s.aextra = s.extra;
    bnorm_walk *const walks[] = {&s.ax, &s.ady, &s.aextra, &s.adx, &s.adresidual};
    s.apply_view = bnorm_elementwise_view(shape, walks, sizeof walks / sizeof walks[0]);
    bnorm_run(exec, prepare, &s, 1);

    const int sums_wanted = s.slope || grad->dgamma || grad->dbeta;
    const bnorm_reduction op = {
        .self = &s,
        .view = s.view,
        .blocks = s.blocks,
        .apply_view = s.apply_view,
        .tensors = 2,
        .reduce = sums_wanted ? reduce : NULL,
        .finish = sums_wanted ? finish : NULL,
        .apply = tdx.data || tdresidual.data ? apply : NULL,
    };
    bnorm_reduction_run(&op, exec);
    return BNORM_OK;
}
