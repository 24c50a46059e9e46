/* SPDX-License-Identifier: MIT
 *
 * The training backward pass, for batch and for frozen statistics. */
#include "base.h"

#include "backward.h"

#include <string.h>

/* Most elements that a dy with one value along its runs is written out to at a time. */
#define COPIES ((size_t)BNORM_BLOCK_SPAN)

/* n copies of one element. */
static void *copies_of(const void *element, bnorm_dtype type, size_t n, void *copies) {
    if (bnorm_size_of(type) == sizeof(float)) {
        for (size_t i = 0; i < n; i++)
            memcpy((float *)copies + i, element, sizeof(float));
    } else {
        for (size_t i = 0; i < n; i++)
            memcpy((uint16_t *)copies + i, element, sizeof(uint16_t));
    }
    return copies;
}

static void run_sums(const bnorm_gradients *s, const bnorm_grad_args *args, double *sum_g,
                     double *sum_gx) {
    if (!s->view.rows && s->view.unit == 1)
        s->isa->sums_span(args, sum_g, sum_gx);
    else if (s->view.leaves)
        s->isa->sums_tree(args, sum_g, sum_gx);
    else
        BNORM_HELD(s->isa->sums_rows(args, s->blocks.chains, sum_g, sum_gx),
                   args->valid < args->len);
}

/* All runs of the call have one value of dy. Not inlined, as few calls need that much of stack. */
static __attribute__((noinline)) void same_sums(const bnorm_gradients *s, bnorm_grad_args *args,
                                                double *sum_g, double *sum_gx) {
    float copies[COPIES];
    args->dy = copies_of(args->dy, args->type, args->len, copies);
    run_sums(s, args, sum_g, sum_gx);
}

/* How many channels of a block one call of a kernel takes. Those that are not next to each other
 * come one at a time, as do those of a dy that is written out for each. */
static size_t channels_at_once(const bnorm_gradients *s, size_t channels) {
    const bnorm_view *view = &s->view;
    const int gaps = s->x.step != 1 || (s->extra.data && s->extra.step != 1);
    if (view->unit > 1)
        return view->unit;
    if (s->same_dy && s->dy.run_stride == 0 && !gaps)
        return view->rows ? bnorm_min(channels, COPIES) : channels;
    return gaps || s->dy.step != 1 ? 1 : channels;
}

static void reduce(const void *self, size_t b, size_t channel, size_t channels) {
    const bnorm_gradients *s = self;
    const bnorm_view *view = &s->view;
    const bnorm_block block = bnorm_block_at(view, &s->blocks, b);
    const size_t entry = b * view->c + channel, unit = view->unit;
    double *sum_g = s->block_g + entry, *sum_gx = s->block_gx + entry;
    const int planes = !view->rows && unit == 1;
    const size_t at_once = channels_at_once(s, channels);

    for (size_t i = 0; i < channels; i += at_once) {
        const size_t run = view->rows ? block.from : (channel + i) / unit,
                     element = view->rows ? channel + i : block.from * unit,
                     count = bnorm_min(at_once, channels - i);
        /* Every member is named, as clearing costs more than setting. */
        bnorm_grad_args args = {
            .runs = planes ? count : block.len,
            .len = planes     ? block.len
                   : unit > 1 ? unit
                              : count,
            .x = bnorm_at(view, &s->x, block.image, run, element),
            .dy = bnorm_at(view, &s->dy, block.image, run, element),
            .extra = bnorm_at(view, &s->extra, block.image, run, element),
            .x_stride = bnorm_stride(view, &s->x),
            .dy_stride = bnorm_stride(view, &s->dy),
            .extra_stride = bnorm_stride(view, &s->extra),
            .pre = s->pre,
            .act = s->act,
            .center = s->save_mean + channel + i,
            .scale = s->prepared.scale + channel + i,
            .shift = s->prepared.shift + channel + i,
            .type = s->x.type,
            .valid = count,
            .mask = bnorm_bits_at(view, &s->mask, block.image, run, element),
            .invstd = NULL,
            .slope = NULL,
            .offset = NULL,
            .dx = NULL,
            .dresidual = NULL,
            .dx_stride = 0,
            .dresidual_stride = 0,
            .hints = 0,
        };
        if (s->same_dy && args.len > 1)
            same_sums(s, &args, sum_g + i, sum_gx + i);
        else
            run_sums(s, &args, sum_g + i, sum_gx + i);
    }
}

/* A task, so that it runs in exec's mode. */
static void prepare(void *arg, size_t task) {
    const bnorm_gradients *s = arg;
    (void)task;
    if (s->invstd)
        bnorm_invstd(s->view.c, s->save_var, s->eps, s->invstd);
    if (s->renorm_r)
        bnorm_renorm_backward(s->renorm_r, s->renorm_d, &s->renormed, s->view.c);
    s->isa->scale_shift(&s->prepared, s->view.c);
}

static void finish(const void *self, size_t channel, size_t channels) {
    const bnorm_gradients *s = self;
    if (s->collected) {
        s->isa->add_blocks(&s->partials, channel, channels, NULL, NULL);
        return;
    }
    s->isa->add_blocks(&s->partials, channel, channels, s->sum_g, s->sum_gx);
    if (s->weighted.values)
        bnorm_weighted_coefficients(s, channel, channels);
    else
        s->isa->grad_coefficients(&s->derived, channel, channels);
    if (s->renorm_r)
        bnorm_renorm_dgamma(s->renorm_r, s->renorm_d, &s->derived, channel, channels);
}

/* A piece whose dy has one value along each run, or along all. */
static __attribute__((noinline)) void apply_same(const bnorm_gradients *s, const bnorm_piece *piece,
                                                 unsigned hints) {
    const size_t end = piece->run + piece->runs, at_once = s->ady.run_stride == 0 ? piece->runs : 1;
    float copies[COPIES];
    bnorm_piece part = *piece;
    part.runs = at_once;
    for (; part.run < end; part.run += at_once) {
        for (size_t at = 0; at < piece->len; at += part.len) {
            part.i = piece->i + at;
            part.len = bnorm_min(COPIES, piece->len - at);
            bnorm_grad_args args =
                bnorm_gradient_args(s, &part, bnorm_piece_channel(&s->apply_view, &part), hints);
            args.dy = copies_of(args.dy, args.type, part.len, copies);
            bnorm_run_gradient(s, &args);
        }
    }
}

static void apply_hinted(const bnorm_gradients *s, const bnorm_piece *piece, unsigned hints) {
    const bnorm_view *view = &s->apply_view;
    if (s->same_dy && s->ady.step == 0) {
        apply_same(s, piece, hints);
        return;
    }
    if (s->weighted.values) {
        bnorm_weighted_apply(s, piece, hints);
        return;
    }
    if (view->unit > 1) {
        bnorm_piece part = *piece;
        for (part.runs = 1; part.run < piece->run + piece->runs; part.run++) {
            const bnorm_grad_args args =
                bnorm_gradient_args(s, &part, part.run * view->unit, hints);
            bnorm_run_gradient(s, &args);
        }
        return;
    }
    const bnorm_grad_args args =
        bnorm_gradient_args(s, piece, bnorm_piece_channel(view, piece), hints);
    bnorm_run_gradient(s, &args);
}

static void apply(const void *self, const bnorm_piece *piece) {
    const bnorm_gradients *s = self;
    apply_hinted(s, piece, s->hints);
}

static void apply_near(const void *self, const bnorm_piece *piece) {
    const bnorm_gradients *s = self;
    apply_hinted(s, piece, s->hints & ~(unsigned)BNORM_FETCH_IN);
}

static void zero(float *array, size_t c) {
    for (size_t i = 0; array && i < c; i++)
        array[i] = 0;
}

/* How the activation's argument is recovered, or why it can't be. */
static bnorm_status check_grad(const bnorm_grad *grad, const bnorm_exec *exec,
                               enum bnorm_pre *pre) {
    const bnorm_act *act = &grad->act;
    unsigned char *mask = (unsigned char *)(uintptr_t)grad->mask;
    bnorm_status status = bnorm_check_act(act, bnorm_exec_isa(exec));
    if (status)
        return status;
    if ((grad->renorm_r || grad->renorm_d) && grad->frozen)
        return BNORM_BAD_PARAMETER;
    if (!grad->renorm_r != !grad->renorm_d)
        return BNORM_NULL_POINTER;
    if (!grad->frozen && bnorm_failed(status = bnorm_check_weighting(&grad->weights)))
        return status;
    *pre = BNORM_PRE_NONE;
    if (act->kind == BNORM_ACT_IDENTITY)
        return BNORM_OK;
    if ((grad->residual.data != NULL) + (grad->y.data != NULL) + (mask != NULL) > 1)
        return BNORM_BAD_PARAMETER;
    if (bnorm_failed(status = bnorm_check_mask(act, &mask)))
        return status;
    *pre = BNORM_PRE_X;
    if (grad->residual.data)
        *pre = BNORM_PRE_RESIDUAL;
    else if (grad->y.data)
        *pre = BNORM_PRE_Y;
    else if (mask)
        *pre = BNORM_PRE_MASK;
    if (*pre == BNORM_PRE_Y &&
        (act->kind >= BNORM_ACT_HARD_SWISH || (act->kind == BNORM_ACT_LEAKY_RELU && !(act->a > 0))))
        return BNORM_UNSUPPORTED;
    return BNORM_OK;
}

/* a and b as a tensor of this type holds them. By the scalar set, which raises no OVERFLOW where
 * one becomes infinite. */
static void round_limits(bnorm_act *act, bnorm_dtype type) {
    const float one = 1, zero = 0, limits[2] = {act->a, act->b};
    float held[2], back[2];
    bnorm_apply_args args = {.runs = 1,
                             .len = 2,
                             .x = limits,
                             .y = held,
                             .scale = &one,
                             .shift = &zero,
                             .x_type = BNORM_F32,
                             .y_type = type,
                             .valid = 2};
    bnorm_isa_scalar.apply_span(&args);
    args.x = held;
    args.y = back;
    args.x_type = type;
    args.y_type = BNORM_F32;
    bnorm_isa_scalar.apply_span(&args);
    act->a = back[0];
    act->b = back[1];
}

/* What the kernels take for it: a mask's bits are 0 and 1 on either side of RELU's limit; a y that
 * was rounded is compared with limits that are. */
static bnorm_act act_of(const bnorm_grad *grad, enum bnorm_pre pre, bnorm_dtype type) {
    bnorm_act act = grad->act;
    if (pre == BNORM_PRE_MASK && act.kind == BNORM_ACT_CLAMP)
        act.kind = BNORM_ACT_RELU;
    if (pre == BNORM_PRE_Y && act.kind == BNORM_ACT_CLAMP && type != BNORM_F32)
        round_limits(&act, type);
    return act;
}

/* Whether dy has one value along its runs. */
static int is_same_along_runs(const bnorm_shape *shape, unsigned broadcast) {
    const unsigned axis = shape->layout == BNORM_NHWC ? BNORM_BROADCAST_C : BNORM_BROADCAST_HW;
    return (broadcast & axis) && bnorm_run_length(shape) > 1;
}

bnorm_status bnorm_plan_backward(const bnorm_shape *shape, bnorm_in x, bnorm_in dy, bnorm_out dx,
                                 const bnorm_grad *grad, const bnorm_grad_phase *phase, void *ws,
                                 size_t ws_size, const bnorm_exec *exec, bnorm_gradients *s) {
    bnorm_tensor tx, tdy, tdx, tdresidual, textra;
    const bnorm_partial *const piece = phase ? phase->piece : NULL;
    const float *const given = phase ? phase->coefficients : NULL;
    enum bnorm_pre pre;
    bnorm_status status = bnorm_check_float_shape(shape);
    if (s)
        s->x.data = NULL;
    if (bnorm_failed(status))
        return status;
    if (!grad)
        return BNORM_NULL_POINTER;
    if (bnorm_failed(status = check_grad(grad, exec, &pre)) ||
        bnorm_failed(status = bnorm_check_exec(exec)))
        return status;
    const bnorm_weights *const weights =
        grad->weights.values && !grad->frozen ? &grad->weights : NULL;
    if ((phase && (grad->renorm_r || weights)) || (weights && grad->dy_broadcast))
        return BNORM_UNSUPPORTED;
    if (bnorm_is_empty(shape))
        return BNORM_OK;
    const size_t c = shape->c;
    if (!x.data || !dy.data || !grad->save_mean || (!ws && !given))
        return BNORM_NULL_POINTER;
    const float *const save_var = grad->save_invstd ? NULL : grad->save_var;
    if (!grad->save_invstd && bnorm_failed(status = bnorm_check_variance(c, save_var, grad->eps)))
        return status;
    const bnorm_in none = {0};
    const bnorm_out nowhere = {0};
    float *const dgamma = phase ? NULL : grad->dgamma, *const dbeta = phase ? NULL : grad->dbeta;
    unsigned char *const mask =
        pre == BNORM_PRE_MASK ? (unsigned char *)(uintptr_t)grad->mask : NULL;
    const bnorm_in extra = pre == BNORM_PRE_RESIDUAL ? grad->residual
                           : pre == BNORM_PRE_Y      ? grad->y
                                                     : none;
    if (bnorm_failed(status = bnorm_check_in(shape, x, &tx)) ||
        bnorm_failed(status = bnorm_check_dy(shape, dy, grad->dy_broadcast, &tdy)) ||
        bnorm_failed(status = bnorm_check_in(shape, extra, &textra)) ||
        bnorm_failed(status = bnorm_check_out(shape, dx, &tdx)) ||
        bnorm_failed(status =
                         bnorm_check_out(shape, piece ? nowhere : grad->dresidual, &tdresidual)))
        return status;
    const bnorm_view view = bnorm_view_of(shape);
    const bnorm_blocks blocks = bnorm_blocks_of(&view, piece ? piece->first + piece->n : 0);
    const size_t need = given ? 0 : bnorm_reduction_workspace(&view, &blocks);
    if (!given && bnorm_failed(status = bnorm_check_workspace(need, ws_size)))
        return status;
    /* A broadcast dy is the same tensor as no other. */
    bnorm_buffer dy_buffer = bnorm_tensor_buffer(&tdy);
    if (grad->dy_broadcast)
        dy_buffer.tensor = NULL;
    const bnorm_buffer buffers[] = {
        /* outputs */
        bnorm_memory_buffer(ws, need),
        bnorm_tensor_buffer(&tdx),
        bnorm_tensor_buffer(&tdresidual),
        bnorm_array_buffer(dgamma, c),
        bnorm_array_buffer(dbeta, c),
        bnorm_piece_buffer(piece, shape->n),
        /* inputs */
        bnorm_tensor_buffer(&tx),
        dy_buffer,
        bnorm_tensor_buffer(&textra),
        bnorm_array_buffer(grad->gamma, c),
        bnorm_array_buffer(grad->beta, c),
        bnorm_array_buffer(grad->save_mean, c),
        bnorm_array_buffer(grad->save_invstd, c),
        bnorm_array_buffer(save_var, c),
        bnorm_array_buffer(grad->save_mean_lo, c),
        bnorm_mask_buffer(shape, mask),
        bnorm_array_buffer(given, 5 * c),
    };
    const size_t buffer_count = sizeof buffers / sizeof buffers[0];
    if (weights || grad->renorm_r) {
        const bnorm_buffer more[] = {
            bnorm_weights_buffer(shape, weights),
            bnorm_array_buffer(grad->renorm_r, c),
            bnorm_array_buffer(grad->renorm_d, c),
        };
        status = bnorm_check_more_overlap(shape, buffers, buffer_count, 6, more, 3, 0);
        if (!status && weights)
            status = bnorm_check_weights(shape, weights);
    } else {
        status = bnorm_check_overlap(shape, buffers, buffer_count, 6);
    }
    if (bnorm_failed(status) || !s)
        return status;

    bnorm_tables tables = {.entries = {NULL, NULL}};
    if (!given)
        tables = bnorm_tables_of(&view, &blocks, ws);
    for (size_t i = 0; given && i < 5; i++) /* only read */
        tables.coefficients[i] = (float *)(uintptr_t)given + i * c;
    float *const scale = tables.coefficients[0];
    bnorm_walk *const walks[] = {&s->ax, &s->ady, &s->aextra, &s->adx, &s->adresidual, &s->amask};
    const size_t count = sizeof walks / sizeof walks[0];
    /* Member by member, as in train.c. */
    s->collected = piece != NULL;
    s->x = s->ax = bnorm_walk_of(shape, &tx);
    s->dy = bnorm_walk_of(shape, &tdy);
    s->same_dy = is_same_along_runs(shape, grad->dy_broadcast);
    if (s->same_dy)
        s->dy.step = 0;
    s->ady = s->dy;
    s->extra = s->aextra = bnorm_walk_of(shape, &textra);
    s->mask = s->amask = bnorm_mask_walk(shape, mask);
    s->adx = bnorm_walk_of(shape, &tdx);
    s->adresidual = bnorm_walk_of(shape, &tdresidual);
    s->apply_view = bnorm_elementwise_view(shape, walks, count);
    s->view = view;
    s->blocks = blocks;
    s->block_g = tables.entries[0];
    s->block_gx = tables.entries[1];
    s->partials = bnorm_partials_of(&view, &blocks, &tables);
    s->totals[0] = tables.totals[0];
    s->totals[1] = tables.totals[1];
    s->sum_g = tables.merged[0];
    s->sum_gx = tables.merged[1];
    s->prepared.gamma = grad->gamma;
    s->prepared.beta = grad->beta;
    s->prepared.mean_lo = grad->save_mean_lo;
    s->prepared.invstd = save_var ? tables.coefficients[4] : grad->save_invstd;
    s->prepared.scale = scale;
    s->prepared.shift = tables.coefficients[1];
    s->derived.sum_g = tables.merged[0];
    s->derived.sum_gx = tables.merged[1];
    s->derived.n = (double)shape->n * (double)shape->hw;
    s->derived.gamma = grad->gamma;
    s->derived.mean_lo = grad->save_mean_lo;
    s->derived.invstd = s->prepared.invstd;
    s->derived.dgamma = dgamma;
    s->derived.dbeta = dbeta;
    s->derived.scale = scale;
    s->derived.slope = grad->frozen || !tdx.data ? NULL : tables.coefficients[2];
    s->derived.offset = tables.coefficients[3];
    s->pre = pre;
    s->hints = bnorm_elementwise_hints(exec, &s->apply_view, walks, count - 1);
    s->act = act_of(grad, pre, shape->dtype);
    s->save_mean = grad->save_mean;
    s->isa = bnorm_exec_isa(exec);
    s->has_sums = piece || (!given && (s->derived.slope || dgamma || dbeta));
    s->has_scale = !given;
    s->invstd = save_var && !given ? tables.coefficients[4] : NULL;
    s->save_var = save_var;
    s->eps = grad->eps;
    s->weighted.values = NULL;
    s->renorm_r = grad->renorm_r;
    s->renorm_d = grad->renorm_d;
    if (weights)
        bnorm_weigh(weights, &view, &blocks, NULL, exec, &s->weighted);
    if (grad->renorm_r) {
        s->renormed =
            (bnorm_renorm_args){grad->gamma, grad->beta, tables.params[0], tables.params[1]};
        s->prepared.gamma = s->derived.gamma = tables.params[0];
        s->prepared.beta = tables.params[1];
    }
    return BNORM_OK;
}

void bnorm_gradients_run(const bnorm_gradients *s, const bnorm_exec *exec) {
    const bnorm_reduction op = {
        .self = s,
        .view = s->view,
        .blocks = s->blocks,
        .apply_view = s->apply_view,
        .tensors = 2,
        .reduce = s->has_sums ? reduce : NULL,
        .finish = s->has_sums ? finish : NULL,
        .apply = s->adx.data || s->adresidual.data ? apply : NULL,
        .apply_near = apply_near,
    };
    if (s->has_scale)
        bnorm_run(exec, prepare, (void *)(uintptr_t)s, 1);
    bnorm_reduction_run(&op, exec);
}

bnorm_status bnorm_backward(const bnorm_shape *shape, bnorm_in x, bnorm_in dy, bnorm_out dx,
                            const bnorm_grad *grad, void *ws, size_t ws_size,
                            const bnorm_exec *exec) {
    bnorm_gradients s;
    const bnorm_status status =
        bnorm_plan_backward(shape, x, dy, dx, grad, NULL, ws, ws_size, exec, &s);
    if (status)
        return status;
    if (s.x.data) {
        bnorm_gradients_run(&s, exec);
    } else {
        zero(grad->dgamma, shape->c);
        zero(grad->dbeta, shape->c);
    }
    return BNORM_OK;
}
