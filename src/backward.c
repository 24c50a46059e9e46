/* SPDX-License-Identifier: MIT */
#include "base.h"

#include "backward.h"

#include "channel.h"
#include "check.h"
#include "run.h"
#include "uses.h"

/* ---------------------------------------------------------------------------------------------- */
/* The plan */

/* How the activation's argument is recovered, or why it can't be. */
static bnorm_status check_argument(const bnorm_grad *grad, enum bnorm_pre *pre) {
    const bnorm_act *act = &grad->act;
    unsigned char *mask = (unsigned char *)(uintptr_t)grad->mask;
    *pre = BNORM_PRE_NONE;
    if (act->kind == BNORM_ACT_IDENTITY)
        return BNORM_OK;
    if ((grad->residual.data != NULL) + (grad->y.data != NULL) + (mask != NULL) > 1)
        return BNORM_BAD_PARAMETER;
    const bnorm_status status = bnorm_check_mask(act, &mask);
    *pre = BNORM_PRE_X;
    if (grad->residual.data)
        *pre = BNORM_PRE_RESIDUAL;
    else if (grad->y.data)
        *pre = BNORM_PRE_Y;
    else if (mask)
        *pre = BNORM_PRE_MASK;
    if (!status && *pre == BNORM_PRE_Y &&
        (act->kind >= BNORM_ACT_HARD_SWISH || (act->kind == BNORM_ACT_LEAKY_RELU && !(act->a > 0))))
        return BNORM_UNSUPPORTED;
    return status;
}

/* What is asked of any batch. */
static bnorm_status check_options(const bnorm_job *job, const bnorm_batch *batch,
                                  const bnorm_exec *exec, enum bnorm_pre *pre) {
    const bnorm_grad *grad = job->grad;
    bnorm_status status = bnorm_check_float_shape(job->shape);
    if (status)
        return status;
    if (!grad)
        return BNORM_NULL_POINTER;
    if ((status = bnorm_check_act(&grad->act, exec)))
        return status;
    if ((grad->renorm_r || grad->renorm_d) && grad->frozen)
        return BNORM_BAD_PARAMETER;
    if (!grad->renorm_r != !grad->renorm_d)
        return BNORM_NULL_POINTER;
    if (!grad->frozen)
        status = bnorm_check_weights(&grad->weights);
    if (!status)
        status = check_argument(grad, pre);
    if (!status)
        status = bnorm_check_exec(exec);
    if (!status &&
        grad->dy_broadcast > (BNORM_BROADCAST_N | BNORM_BROADCAST_C | BNORM_BROADCAST_HW))
        status = BNORM_BAD_ENUM;
    const int weighted = grad->weights.values && !grad->frozen;
    const int variants = grad->renorm_r || weighted;
    if (!status && ((batch->stage != BNORM_STAGE_ALL && variants) ||
                    (grad->dy_broadcast && (weighted || job->shape->c_block > 1))))
        status = BNORM_UNSUPPORTED;
    return status;
}

/* a and b as a tensor of this type holds them. By the scalar set, which raises no OVERFLOW where
 * one becomes infinite. */
static void round_limits(bnorm_act *act, bnorm_dtype type) {
    const float one = 1, zero = 0, limits[2] = {act->a, act->b};
    float held[2], back[2];
    bnorm_map_args args = {.images = 1, .groups = 1, .rows = 1, .lanes = 2, .valid = 2};
    args.pre = BNORM_PRE_X;
    args.scale = &one;
    args.shift = &zero;
    args.x.data = (void *)(uintptr_t)limits;
    args.out.data = held;
    args.out.type = type;
    bnorm_isa_scalar.apply_span(&args);
    args.x.data = held;
    args.x.type = type;
    args.out.data = back;
    args.out.type = BNORM_F32;
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

static void uses_parameters(bnorm_uses *uses, const bnorm_grad *grad, enum bnorm_stage stage,
                            size_t c, size_t saved) {
    if (stage == BNORM_STAGE_ALL) {
        bnorm_writes_floats(uses, grad->dgamma, c);
        bnorm_writes_floats(uses, grad->dbeta, c);
    }
    bnorm_reads_floats(uses, grad->gamma, c);
    bnorm_reads_floats(uses, grad->beta, c);
    bnorm_reads_floats(uses, grad->save_mean, saved);
    bnorm_reads_floats(uses, grad->save_invstd, saved);
    bnorm_reads_floats(uses, grad->save_invstd ? NULL : grad->save_var, saved);
    bnorm_reads_floats(uses, grad->save_mean_lo, saved);
    bnorm_reads_floats(uses, grad->renorm_r, c);
    bnorm_reads_floats(uses, grad->renorm_d, c);
}

/* What the call reads and writes; fills in the tensors. */
static bnorm_status check_uses(const bnorm_job *job, const bnorm_batch *batch, bnorm_view *view,
                               bnorm_backward_plan *b) {
    const bnorm_shape *shape = job->shape;
    const bnorm_grad *grad = job->grad;
    const int sums_only = b->stage == BNORM_STAGE_SUMS, has_sums = b->stage != BNORM_STAGE_MAP;
    static const bnorm_in none = {NULL, 0, 0};
    static const bnorm_out nowhere = {NULL, 0, 0};
    bnorm_map_args *const args = &b->map.args;
    bnorm_uses uses;
    bnorm_begin_uses(&uses, shape, view);
    bnorm_requires(&uses, job->x.data);
    bnorm_requires(&uses, job->dy.data);
    bnorm_requires(&uses, grad->save_mean);
    bnorm_requires(&uses, has_sums ? job->ws : batch->coefficients);
    const size_t saved = bnorm_saved_floats(&uses, batch);
    bnorm_reads_tensor(&uses, &job->x, &args->x);
    bnorm_reads_broadcast(&uses, &job->dy, grad->dy_broadcast, &args->dy);
    bnorm_reads_tensor(&uses,
                       args->pre == BNORM_PRE_RESIDUAL ? &grad->residual
                       : args->pre == BNORM_PRE_Y      ? &grad->y
                                                       : &none,
                       &args->argument);
    bnorm_writes_tensor(&uses, &job->out, shape->dtype, &args->out);
    bnorm_writes_tensor(&uses, sums_only ? &nowhere : &grad->dresidual, shape->dtype,
                        &args->dresidual);
    if (has_sums)
        bnorm_uses_memory(&uses, job, batch);
    if (args->mask.bits)
        bnorm_reads(&uses, args->mask.bits, bnorm_mask_size(shape), BNORM_KIND_NONE);
    bnorm_reads_floats(&uses, batch->coefficients, 5 * shape->c);
    bnorm_reads_floats(&uses, b->weights.values, shape->n * shape->hw);
    uses_parameters(&uses, grad, b->stage, shape->c, saved);
    bnorm_status status = bnorm_check_uses(&uses);
    if (!status && !grad->save_invstd) /* values are read last: all sizes are right */
        status = bnorm_check_variance(saved, grad->save_var, grad->eps);
    return status || !b->weights.values ? status : bnorm_check_weight_values(shape, &grad->weights);
}

/* Member by member, as in forward.c. */
static void take_parameters(const bnorm_grad *grad, bnorm_backward_plan *b) {
    bnorm_map_args *const args = &b->map.args;
    b->prepared.gamma = b->derived.gamma = b->renormed.gamma = grad->gamma;
    b->prepared.beta = b->renormed.beta = grad->beta;
    b->prepared.mean_lo = b->derived.mean_lo = grad->save_mean_lo;
    b->prepared.invstd = grad->save_invstd;
    const int all = b->stage == BNORM_STAGE_ALL;
    b->derived.dgamma = all ? grad->dgamma : NULL;
    b->derived.dbeta = all ? grad->dbeta : NULL;
    b->save_var = grad->save_invstd ? NULL : grad->save_var;
    b->eps = grad->eps;
    b->renorm_r = grad->renorm_r;
    b->renorm_d = grad->renorm_d;
    args->act = act_of(grad, args->pre, args->x.type);
    args->center = grad->save_mean;
}

/* Coefficients alone, as bnorm_partial_finish_grad has given them; they are only read. */
static bnorm_tables given_tables(bnorm_backward_plan *b, const bnorm_view *view) {
    bnorm_tables tables = {.entries = {NULL, NULL}};
    b->sums.view = *view;
    for (size_t i = 0; i < 5; i++)
        tables.coefficients[i] = (float *)(uintptr_t)b->coefficients + i * view->c;
    return tables;
}

void bnorm_lay_out_backward(bnorm_backward_plan *b, const bnorm_view *view, size_t first,
                            const bnorm_exec *exec) {
    bnorm_map_args *const args = &b->map.args;
    const bnorm_tables tables =
        b->stage == BNORM_STAGE_MAP
            ? given_tables(b, view)
            : bnorm_plan_reduction(&b->sums, view, first, b->ws, bnorm_exec_isa(exec));
    b->totals[0] = tables.totals[0];
    b->totals[1] = tables.totals[1];
    b->invstd = tables.coefficients[4];
    if (b->save_var)
        b->prepared.invstd = b->invstd;
    b->prepared.scale = tables.coefficients[0];
    b->prepared.shift = tables.coefficients[1];
    b->derived.sum_g = b->sum_g = tables.merged[0];
    b->derived.sum_gx = b->sum_gx = tables.merged[1];
    b->derived.n = bnorm_values_of(view);
    b->derived.invstd = b->prepared.invstd;
    b->derived.scale = tables.coefficients[0];
    b->derived.slope = b->frozen || !args->out.data ? NULL : tables.coefficients[2];
    b->derived.offset = tables.coefficients[3];
    if (b->renorm_r) {
        b->renormed.new_gamma = tables.params[0];
        b->renormed.new_beta = tables.params[1];
        b->prepared.gamma = b->derived.gamma = tables.params[0];
        b->prepared.beta = tables.params[1];
    }
    args->scale = b->prepared.scale;
    args->shift = b->prepared.shift;
    args->slope = b->derived.slope;
    args->invstd = b->derived.invstd;
    args->offset = args->slope ? b->derived.offset : NULL;
    b->map.view = *view;
    bnorm_plan_map(&b->map, exec);
    const bnorm_training *const kernels = bnorm_training_of(b->map.isa);
    b->map.kernel = view->planes ? kernels->dx_span : kernels->dx_rows;
}

bnorm_status bnorm_plan_backward(const bnorm_job *job, const bnorm_batch *batch,
                                 const bnorm_exec *exec, bnorm_backward_plan *b) {
    const bnorm_shape *shape = job->shape;
    const bnorm_grad *grad = job->grad;
    bnorm_map_args *const args = &b->map.args;
    bnorm_status status = check_options(job, batch, exec, &args->pre);
    args->x.data = NULL;
    if (bnorm_failed(status) || bnorm_is_empty(shape))
        return status;
    bnorm_view view;
    bnorm_view_of(shape, &view);
    b->stage = batch->stage;
    b->ws = job->ws;
    b->coefficients = batch->coefficients;
    b->frozen = grad->frozen;
    b->weights.values = grad->frozen ? NULL : grad->weights.values;
    b->weights.epsilon = grad->weights.epsilon;
    b->weights.sums = NULL;
    const void *const mask = args->pre == BNORM_PRE_MASK ? grad->mask : NULL;
    bnorm_set_bits(shape, (unsigned char *)(uintptr_t)mask, &args->mask);
    if (bnorm_failed(status = check_uses(job, batch, &view, b))) {
        args->x.data = NULL;
        return status;
    }
    take_parameters(grad, b);
    bnorm_lay_out_backward(b, &view, bnorm_first_image(batch), exec);
    return BNORM_OK;
}

/* ---------------------------------------------------------------------------------------------- */
/* The pass */

static void reduce(const void *self, size_t block, size_t channel, size_t channels) {
    const bnorm_backward_plan *b = self;
    bnorm_reduce_sums(&b->sums, &b->map.args, block, channel, channels);
}

/* A task, so that it runs in exec's mode. */
static void prepare(void *arg, size_t task) {
    const bnorm_backward_plan *b = arg;
    const size_t c = b->map.view.c;
    (void)task;
    for (size_t i = 0; b->save_var && i < c; i++)
        b->invstd[i] = bnorm_invstd(b->save_var[i], b->eps);
    if (b->renorm_r)
        bnorm_renorm_backward(b->renorm_r, b->renorm_d, &b->renormed, c);
    bnorm_training_of(b->map.isa)->scale_shift(&b->prepared, c);
}

static void finish(const void *self, size_t channel, size_t channels) {
    const bnorm_backward_plan *b = self;
    const bnorm_training *const kernels = bnorm_training_of(b->map.isa);
    if (b->stage == BNORM_STAGE_SUMS) {
        kernels->add_blocks(&b->sums.partials, channel, channels, NULL, NULL);
        return;
    }
    kernels->add_blocks(&b->sums.partials, channel, channels, b->sum_g, b->sum_gx);
    if (b->weights.values)
        bnorm_weighted_coefficients(&b->sums, &b->weights, &b->derived, b->map.args.center, channel,
                                    channels);
    else
        kernels->grad_coefficients(&b->derived, channel, channels);
    if (b->renorm_r)
        bnorm_renorm_dgamma(b->renorm_r, b->renorm_d, &b->derived, channel, channels);
}

/* Part of an image whose dy has one value for all lanes of a row or plane, or of all of them. */
static void map_same_lanes(const bnorm_map *map, const bnorm_part *image, int near) {
    const int planes = map->view.planes;
    const bnorm_tensor *dy = &map->args.dy;
    const size_t count = planes ? image->groups : image->rows,
                 stride = planes ? dy->group_stride : dy->row_stride, at_once = stride ? 1 : count;
    float copies[BNORM_COPIES];
    bnorm_part part = *image;
    for (size_t i = 0; i < count; i += at_once) {
        *(planes ? &part.group : &part.row) = (planes ? image->group : image->row) + i;
        *(planes ? &part.groups : &part.rows) = at_once;
        for (size_t at = 0; at < image->lanes; at += BNORM_COPIES) {
            bnorm_map_args args;
            part.lane = image->lane + at;
            part.lanes = bnorm_min(BNORM_COPIES, image->lanes - at);
            bnorm_take_part(map, &part, near, &args);
            bnorm_copy_element(args.dy.data, args.dy.type, part.lanes, copies);
            args.dy.data = copies;
            bnorm_run_map(map, &args);
        }
    }
}

static __attribute__((noinline)) void map_broadcast(const bnorm_map *map, const bnorm_part *part,
                                                    int near) {
    bnorm_part image = *part;
    for (image.images = 1; image.image < part->image + part->images; image.image++)
        map_same_lanes(map, &image, near);
}

static void map(const void *self, const bnorm_part *part, int near) {
    const bnorm_backward_plan *b = self;
    if (b->map.args.dy.same_lanes)
        map_broadcast(&b->map, part, near);
    else if (b->weights.values)
        bnorm_weighted_map(&b->map, &b->weights, part, near);
    else
        bnorm_map_part(&b->map, part, near);
}

static void map_whole(const void *self) {
    const bnorm_backward_plan *b = self;
    bnorm_map_whole(&b->map);
}

void bnorm_run_backward(bnorm_backward_plan *b, const bnorm_exec *exec) {
    const bnorm_map_args *args = &b->map.args;
    const int has_sums =
        b->stage != BNORM_STAGE_MAP &&
        (b->stage == BNORM_STAGE_SUMS || b->derived.slope || b->derived.dgamma || b->derived.dbeta);
    const bnorm_pass pass = {
        .self = b,
        .view = &b->sums.view,
        .blocks = &b->sums.blocks,
        .map_view = &b->map.view,
        .tensors = 2,
        .reduce_work = bnorm_reduce_work(2, args->act.kind),
        .map_work = bnorm_map_work(3, args->act.kind),
        .reduce = has_sums ? reduce : NULL,
        .finish = finish,
        .map = args->out.data || args->dresidual.data ? map : NULL,
        .map_whole = args->dy.same_lanes || b->weights.values ? NULL : map_whole,
    };
    if (b->weights.values)
        bnorm_weigh(&b->weights, &b->sums, exec);
    if (b->stage != BNORM_STAGE_MAP)
        bnorm_run(exec, prepare, b, 1);
    if (pass.reduce)
        bnorm_run_pass(&pass, exec);
    else
        bnorm_run_map_pass(&pass, exec);
}

/* ---------------------------------------------------------------------------------------------- */
/* The function */

static const bnorm_batch whole = {.stage = BNORM_STAGE_ALL, .ghosts = 1};

bnorm_status bnorm_check_backward(const bnorm_job *job, const bnorm_exec *exec) {
    bnorm_backward_plan b;
    return bnorm_plan_backward(job, &whole, exec, &b);
}

bnorm_status bnorm_backward(const bnorm_shape *shape, bnorm_in x, bnorm_in dy, bnorm_out dx,
                            const bnorm_grad *grad, void *ws, size_t ws_size,
                            const bnorm_exec *exec) {
    const bnorm_job job = {
        .shape = shape, .x = x, .dy = dy, .out = dx, .grad = grad, .ws = ws, .ws_size = ws_size};
    bnorm_backward_plan b;
    const bnorm_status status = bnorm_plan_backward(&job, &whole, exec, &b);
    if (status)
        return status;
    if (b.map.args.x.data) {
        bnorm_run_backward(&b, exec);
    } else {
        bnorm_clear(grad->dgamma, shape->c);
        bnorm_clear(grad->dbeta, shape->c);
    }
    return BNORM_OK;
}
