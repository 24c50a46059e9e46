/* SPDX-License-Identifier: MIT
 *
 * The training backward pass, for batch and for frozen statistics. */
#include "apply.h"
#include "reduce.h"

struct backward {
    bnorm_view view;       /* of the sums */
    bnorm_view apply_view; /* of the elementwise pass */
    bnorm_blocks blocks;
    bnorm_walk x, dy, extra;                     /* as the sums see them */
    bnorm_walk ax, ady, aextra, adx, adresidual; /* as the elementwise pass sees them */
    double *block_g, *block_gx;                  /* blocks.count x c each */
    bnorm_partials partials;                     /* the same, to be read */
    double *sum_g, *sum_gx;                      /* c each */
    bnorm_scale_args prepared;                   /* what the sums need already */
    bnorm_grad_coefficient_args derived;         /* slope NULL = frozen, or dx not wanted */
    enum bnorm_pre pre;
    unsigned hints; /* of the elementwise pass */
    const bnorm_grad *grad;
    const bnorm_isa *isa;
};

static void reduce(const void *self, size_t b, size_t channel, size_t channels) {
    const struct backward *s = self;
    const bnorm_block block = bnorm_block_at(&s->view, &s->blocks, b);
    const size_t entry = b * s->view.c + channel;
    double *sum_g = s->block_g + entry, *sum_gx = s->block_gx + entry;
    /* Rows whose channels are not next to each other come one channel at a time. */
    const int gaps = s->x.step != 1 || s->dy.step != 1 || (s->extra.data && s->extra.step != 1);
    const size_t at_once = s->view.rows && gaps ? 1 : channels;

    for (size_t i = 0; i < channels; i += at_once) {
        const size_t run = s->view.rows ? block.from : channel,
                     element = s->view.rows ? channel + i : block.from;
        /* Every member is named, as clearing costs more than setting. */
        const bnorm_grad_args args = {
            .runs = s->view.rows ? block.len : channels,
            .len = s->view.rows ? at_once : block.len,
            .x = bnorm_at(&s->x, block.image, run, element),
            .dy = bnorm_at(&s->dy, block.image, run, element),
            .extra = bnorm_at(&s->extra, block.image, run, element),
            .x_stride = s->x.run_stride,
            .dy_stride = s->dy.run_stride,
            .extra_stride = s->extra.run_stride,
            .pre = s->pre,
            .act = s->grad->act,
            .center = s->grad->save_mean + channel + i,
            .scale = s->prepared.scale + channel + i,
            .shift = s->prepared.shift + channel + i,
            .invstd = NULL,
            .slope = NULL,
            .offset = NULL,
            .dx = NULL,
            .dresidual = NULL,
            .dx_stride = 0,
            .dresidual_stride = 0,
            .hints = 0,
        };
        if (s->view.rows)
            s->isa->sums_rows(&args, s->blocks.chains, sum_g + i, sum_gx + i);
        else
            s->isa->sums_span(&args, sum_g, sum_gx);
    }
}

/* A task, so that it runs in exec's mode. */
static void prepare(void *arg, size_t task) {
    const struct backward *s = arg;
    (void)task;
    s->isa->scale_shift(&s->prepared, s->view.c);
}

static void finish(const void *self, size_t channel, size_t channels) {
    const struct backward *s = self;
    s->isa->add_blocks(&s->partials, channel, channels, s->sum_g, s->sum_gx);
    s->isa->grad_coefficients(&s->derived, channel, channels);
}

static void apply_hinted(const struct backward *s, const bnorm_piece *piece, unsigned hints) {
    const size_t channel = bnorm_piece_channel(&s->apply_view, piece);
    const int sloped = s->derived.slope != NULL;
    const bnorm_grad_args args = {
        .runs = piece->runs,
        .len = piece->len,
        .x = bnorm_at(&s->ax, piece->image, piece->run, piece->i),
        .dy = bnorm_at(&s->ady, piece->image, piece->run, piece->i),
        .extra = bnorm_at(&s->aextra, piece->image, piece->run, piece->i),
        .x_stride = s->ax.run_stride,
        .dy_stride = s->ady.run_stride,
        .extra_stride = s->aextra.run_stride,
        .pre = s->pre,
        .act = s->grad->act,
        .center = s->grad->save_mean + channel,
        .scale = s->prepared.scale + channel,
        .shift = s->prepared.shift + channel,
        .invstd = sloped ? s->derived.invstd + channel : NULL,
        .slope = sloped ? s->derived.slope + channel : NULL,
        .offset = sloped ? s->derived.offset + channel : NULL,
        .dx = bnorm_at(&s->adx, piece->image, piece->run, piece->i),
        .dresidual = bnorm_at(&s->adresidual, piece->image, piece->run, piece->i),
        .dx_stride = s->adx.run_stride,
        .dresidual_stride = s->adresidual.run_stride,
        .hints = hints,
    };
    if (s->apply_view.rows)
        s->isa->dx_rows(&args);
    else
        s->isa->dx_span(&args);
}

static void apply(const void *self, const bnorm_piece *piece) {
    const struct backward *s = self;
    apply_hinted(s, piece, s->hints);
}

static void apply_near(const void *self, const bnorm_piece *piece) {
    const struct backward *s = self;
    apply_hinted(s, piece, s->hints & ~(unsigned)BNORM_FETCH_IN);
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
    if (bnorm_failed(status))
        return status;
    if (!grad)
        return BNORM_NULL_POINTER;
    if (bnorm_failed(status = check_grad(grad, &pre)) ||
        bnorm_failed(status = bnorm_check_exec(exec)))
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
    if (bnorm_failed(status = bnorm_check_in(shape, x, &tx)) ||
        bnorm_failed(status = bnorm_check_in(shape, dy, &tdy)) ||
        bnorm_failed(status = bnorm_check_in(shape, extra, &textra)) ||
        bnorm_failed(status = bnorm_check_out(shape, dx, &tdx)) ||
        bnorm_failed(status = bnorm_check_out(shape, grad->dresidual, &tdresidual)))
        return status;
    const bnorm_view view = bnorm_view_of(shape);
    const bnorm_blocks blocks = bnorm_blocks_of(&view);
    const size_t need = bnorm_reduction_workspace(&view, &blocks);
    if (bnorm_failed(status = bnorm_check_workspace(need, ws_size)))
        return status;
    const bnorm_buffer buffers[] = {
        /* outputs */
        bnorm_memory_buffer(ws, need),
        bnorm_tensor_buffer(&tdx),
        bnorm_tensor_buffer(&tdresidual),
        bnorm_array_buffer(grad->dgamma, c),
        bnorm_array_buffer(grad->dbeta, c),
        /* inputs */
        bnorm_tensor_buffer(&tx),
        bnorm_tensor_buffer(&tdy),
        bnorm_tensor_buffer(&textra),
        bnorm_array_buffer(grad->gamma, c),
        bnorm_array_buffer(grad->beta, c),
        bnorm_array_buffer(grad->save_mean, c),
        bnorm_array_buffer(grad->save_invstd, c),
        bnorm_array_buffer(grad->save_mean_lo, c),
    };
    status = bnorm_check_overlap(shape, buffers, sizeof buffers / sizeof buffers[0], 5);
    if (bnorm_failed(status))
        return status;

    const bnorm_tables tables = bnorm_tables_of(&view, &blocks, ws);
    float *const scale = tables.coefficients[0];
    const bnorm_walk wx = bnorm_walk_of(shape, &tx), wdy = bnorm_walk_of(shape, &tdy),
                     wextra = bnorm_walk_of(shape, &textra);
    bnorm_walk ax = wx, ady = wdy, aextra = wextra, adx = bnorm_walk_of(shape, &tdx),
               adresidual = bnorm_walk_of(shape, &tdresidual);
    bnorm_walk *const walks[] = {&ax, &ady, &aextra, &adx, &adresidual};
    const bnorm_view apply_view =
        bnorm_elementwise_view(shape, walks, sizeof walks / sizeof walks[0]);
    struct backward s = {
        .view = view,
        .apply_view = apply_view,
        .blocks = blocks,
        .x = wx,
        .dy = wdy,
        .extra = wextra,
        .ax = ax,
        .ady = ady,
        .aextra = aextra,
        .adx = adx,
        .adresidual = adresidual,
        .block_g = tables.entries[0],
        .block_gx = tables.entries[1],
        .partials = bnorm_partials_of(&view, &blocks, &tables),
        .sum_g = tables.merged[0],
        .sum_gx = tables.merged[1],
        .prepared = {.gamma = grad->gamma,
                     .beta = grad->beta,
                     .mean_lo = grad->save_mean_lo,
                     .invstd = grad->save_invstd,
                     .scale = scale,
                     .shift = tables.coefficients[1]},
        .derived = {.sum_g = tables.merged[0],
                    .sum_gx = tables.merged[1],
                    .n = (double)shape->n * (double)shape->hw,
                    .gamma = grad->gamma,
                    .mean_lo = grad->save_mean_lo,
                    .invstd = grad->save_invstd,
                    .dgamma = grad->dgamma,
                    .dbeta = grad->dbeta,
                    .scale = scale,
                    .slope = grad->frozen || !tdx.data ? NULL : tables.coefficients[2],
                    .offset = tables.coefficients[3]},
        .pre = pre,
        .hints = bnorm_elementwise_hints(exec, &apply_view, walks, sizeof walks / sizeof walks[0]),
        .grad = grad,
        .isa = bnorm_exec_isa(exec),
    };
    bnorm_run(exec, prepare, &s, 1);

    const int sums_wanted = s.derived.slope || grad->dgamma || grad->dbeta;
    const bnorm_reduction op = {
        .self = &s,
        .view = view,
        .blocks = blocks,
        .apply_view = s.apply_view,
        .tensors = 2,
        .reduce = sums_wanted ? reduce : NULL,
        .finish = sums_wanted ? finish : NULL,
        .apply = tdx.data || tdresidual.data ? apply : NULL,
        .apply_near = apply_near,
    };
    bnorm_reduction_run(&op, exec);
    return BNORM_OK;
}
