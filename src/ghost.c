/* SPDX-License-Identifier: MIT
 *
 * Ghost batches: a call per group, one after the other, and what they have in common. */
#include "base.h"

#include "backward.h"
#include "channel.h"
#include "train.h"

static bnorm_status check_ghost(const bnorm_shape *shape, const bnorm_ghost *ghost) {
    if (!shape || !ghost)
        return BNORM_NULL_POINTER;
    if ((unsigned)ghost->order > BNORM_GHOST_INTERLEAVED ||
        (unsigned)ghost->running > BNORM_GHOST_SUCCESSIVE)
        return BNORM_BAD_ENUM;
    return ghost->groups == 0 || shape->n % ghost->groups ? BNORM_BAD_SHAPE : BNORM_OK;
}

/* A mask that is not ignored. */
static int has_mask(const void *mask, const bnorm_act *act) {
    return mask && act->kind != BNORM_ACT_IDENTITY;
}

static bnorm_shape group_shape(const bnorm_shape *shape, const bnorm_ghost *ghost) {
    bnorm_shape group = *shape;
    group.n /= ghost->groups;
    return group;
}

/* The images of a group, in a dy that has been checked. */
static bnorm_in group_dy(const bnorm_shape *shape, bnorm_in dy, unsigned broadcast,
                         const bnorm_ghost *ghost, size_t group) {
    const int interleaved = ghost->order == BNORM_GHOST_INTERLEAVED;
    const size_t first = interleaved ? group : group * (shape->n / ghost->groups);
    bnorm_tensor tensor;
    bnorm_check_dy(shape, dy, broadcast, &tensor);
    if (!tensor.data)
        return dy;
    dy.data = tensor.data + first * tensor.image_stride * bnorm_size_of(tensor.type);
    dy.run_stride = tensor.run_stride;
    dy.image_stride = tensor.image_stride * (interleaved ? ghost->groups : 1);
    return dy;
}

/* The same of a tensor that is written out. */
static bnorm_in group_in(const bnorm_shape *shape, bnorm_in in, const bnorm_ghost *ghost,
                         size_t group) {
    return group_dy(shape, in, 0, ghost, group);
}

static bnorm_out group_out(const bnorm_shape *shape, bnorm_out out, const bnorm_ghost *ghost,
                           size_t group) {
    const bnorm_in whole = {out.data, out.run_stride, out.image_stride};
    const bnorm_in part = group_in(shape, whole, ghost, group);
    return (bnorm_out){(void *)(uintptr_t)part.data, part.run_stride, part.image_stride};
}

/* Two sums per channel over the groups, in double. */
struct sums {
    size_t group, c;
    double *a, *b;
};

/* ---------------------------------------------------------------------------------------------- */
/* Forward */

struct averaging {
    struct sums sums;
    const bnorm_statistics *s;
    const bnorm_running *running;
    const bnorm_isa *isa;
};

/* Tasks, so that they run in exec's mode. The first group is not added to 0, so that one group has
 * the bits of a plain call. */
static void add_statistics(void *arg, size_t task) {
    const struct averaging *job = arg;
    const struct sums *sums = &job->sums;
    (void)task;
    for (size_t i = 0; i < sums->c; i++) {
        const double mean = job->s->mean[i], var = job->s->m2[i] / job->s->derived.divisor;
        sums->a[i] = sums->group ? sums->a[i] + mean : mean;
        sums->b[i] = sums->group ? sums->b[i] + var : var;
    }
}

static void update_running(void *arg, size_t task) {
    const struct averaging *job = arg;
    const struct sums *sums = &job->sums;
    const bnorm_running *running = job->running;
    const double groups = (double)(sums->group + 1);
    (void)task;
    for (size_t i = 0; i < sums->c; i++) {
        sums->a[i] /= groups;
        sums->b[i] /= groups;
    }
    const bnorm_coefficient_args args = {
        .mean = sums->a,
        .m2 = sums->b,
        .n = 1,
        .running_mean = running->mean,
        .running_var = running->var,
        .new_mean = bnorm_updated(running->mean, running->new_mean),
        .new_var = bnorm_updated(running->var, running->new_var),
        .rate = running->rate,
        .divisor = 1,
    };
    job->isa->coefficients(&args, 0, sums->c);
}

/* bnorm_plan_train has been told of the first group's share of the saved statistics only. */
static bnorm_status check_saved(const bnorm_shape *shape, bnorm_in x, bnorm_out y,
                                const bnorm_train *train, size_t groups, const void *ws,
                                size_t need) {
    const size_t c = shape->c;
    size_t saved;
    bnorm_tensor tx, ty, tr;
    if (__builtin_mul_overflow(groups, c, &saved) || saved > (size_t)PTRDIFF_MAX / sizeof(float))
        return BNORM_BAD_SHAPE;
    bnorm_check_in(shape, x, &tx);
    bnorm_check_out(shape, y, &ty);
    bnorm_check_in(shape, train->residual, &tr);
    const bnorm_running *const running = &train->running;
    const bnorm_buffer buffers[] = {
        bnorm_array_buffer(train->save_mean, saved),
        bnorm_array_buffer(train->save_invstd, saved),
        bnorm_array_buffer(train->save_var, saved),
        bnorm_array_buffer(train->save_mean_lo, saved),
        bnorm_tensor_buffer(&ty),
        bnorm_memory_buffer(ws, need),
        bnorm_array_buffer(running->mean, c),
        bnorm_array_buffer(running->var, c),
        bnorm_array_buffer(running->new_mean, c),
        bnorm_array_buffer(running->new_var, c),
        bnorm_tensor_buffer(&tx),
        bnorm_tensor_buffer(&tr),
        bnorm_array_buffer(train->gamma, c),
        bnorm_array_buffer(train->beta, c),
    };
    return bnorm_check_overlap(shape, buffers, sizeof buffers / sizeof buffers[0], 4);
}

static float *skip(float *array, size_t count) {
    return array ? array + count : NULL;
}

bnorm_status bnorm_forward_train_ghost(const bnorm_shape *shape, bnorm_in x, bnorm_out y,
                                       const bnorm_train *train, const bnorm_ghost *ghost, void *ws,
                                       size_t ws_size, const bnorm_exec *exec) {
    bnorm_status status = check_ghost(shape, ghost);
    if (!status)
        status = bnorm_plan_train(shape, x, y, train, ws, ws_size, exec, NULL);
    if (status)
        return status;
    if (has_mask(train->mask, &train->act) || train->weights.values || train->renorm)
        return BNORM_UNSUPPORTED;
    if (bnorm_is_empty(shape)) {
        bnorm_keep_running(&train->running, shape->c);
        return BNORM_OK;
    }
    const size_t need = bnorm_workspace(BNORM_OP_FORWARD_TRAIN, shape);
    if ((status = check_saved(shape, x, y, train, ghost->groups, ws, need)))
        return status;

    const bnorm_shape part = group_shape(shape, ghost);
    const int tracked = train->running.mean || train->running.var;
    const int averaged = ghost->running == BNORM_GHOST_AVERAGE && tracked;
    const bnorm_running none = {.mean = NULL};
    struct averaging job = {.running = &train->running, .isa = bnorm_exec_isa(exec)};
    for (size_t k = 0; k < ghost->groups; k++) {
        bnorm_statistics s;
        bnorm_train group = *train;
        group.save_mean = skip(train->save_mean, k * shape->c);
        group.save_invstd = skip(train->save_invstd, k * shape->c);
        group.save_var = skip(train->save_var, k * shape->c);
        group.save_mean_lo = skip(train->save_mean_lo, k * shape->c);
        group.residual = group_in(shape, train->residual, ghost, k);
        if (averaged) {
            group.running = none;
            group.running.variance = train->running.variance; /* for the divisor */
        } else if (k > 0) {
            group.running.mean = bnorm_updated(train->running.mean, train->running.new_mean);
            group.running.var = bnorm_updated(train->running.var, train->running.new_var);
        }
        status = bnorm_plan_train(&part, group_in(shape, x, ghost, k),
                                  group_out(shape, y, ghost, k), &group, ws, ws_size, exec, &s);
        if (status)
            return status;
        bnorm_statistics_run(&s, exec);
        job.sums = (struct sums){k, shape->c, s.totals[0], s.totals[1]};
        job.s = &s;
        if (averaged)
            bnorm_run(exec, add_statistics, &job, 1);
    }
    if (averaged)
        bnorm_run(exec, update_running, &job, 1);
    return BNORM_OK;
}

/* ---------------------------------------------------------------------------------------------- */
/* Backward */

struct gradient_sums {
    struct sums sums;
    const bnorm_gradients *s;
};

/* dgamma and dbeta. */
static void add_gradients(void *arg, size_t task) {
    const struct gradient_sums *job = arg;
    const struct sums *sums = &job->sums;
    const bnorm_grad_coefficient_args *derived = &job->s->derived;
    (void)task;
    for (size_t i = 0; i < sums->c; i++) {
        const double centred = bnorm_centred_sum(derived, i), invstd = (double)derived->invstd[i];
        sums->a[i] = sums->group ? bnorm_fma(centred, invstd, sums->a[i]) : centred * invstd;
        sums->b[i] = sums->group ? sums->b[i] + derived->sum_g[i] : derived->sum_g[i];
        if (derived->dgamma)
            derived->dgamma[i] = bnorm_round(sums->a[i]);
        if (derived->dbeta)
            derived->dbeta[i] = bnorm_round(sums->b[i]);
    }
}

static bnorm_status check_given(const bnorm_shape *shape, bnorm_out dx, const bnorm_grad *grad,
                                size_t groups, const void *ws, size_t need) {
    const size_t c = shape->c;
    size_t saved;
    bnorm_tensor tdx, tdresidual;
    if (__builtin_mul_overflow(groups, c, &saved) || saved > (size_t)PTRDIFF_MAX / sizeof(float))
        return BNORM_BAD_SHAPE;
    if (!grad->save_invstd && bnorm_check_variance(saved, grad->save_var, grad->eps))
        return BNORM_BAD_VARIANCE;
    bnorm_check_out(shape, dx, &tdx);
    bnorm_check_out(shape, grad->dresidual, &tdresidual);
    const bnorm_buffer buffers[] = {
        bnorm_memory_buffer(ws, need),
        bnorm_tensor_buffer(&tdx),
        bnorm_tensor_buffer(&tdresidual),
        bnorm_array_buffer(grad->dgamma, c),
        bnorm_array_buffer(grad->dbeta, c),
        bnorm_array_buffer(grad->save_mean, saved),
        bnorm_array_buffer(grad->save_invstd, saved),
        bnorm_array_buffer(grad->save_invstd ? NULL : grad->save_var, saved),
        bnorm_array_buffer(grad->save_mean_lo, saved),
    };
    return bnorm_check_overlap(shape, buffers, sizeof buffers / sizeof buffers[0], 5);
}

bnorm_status bnorm_backward_ghost(const bnorm_shape *shape, bnorm_in x, bnorm_in dy, bnorm_out dx,
                                  const bnorm_grad *grad, const bnorm_ghost *ghost, void *ws,
                                  size_t ws_size, const bnorm_exec *exec) {
    bnorm_status status = check_ghost(shape, ghost);
    if (!status)
        status = bnorm_plan_backward(shape, x, dy, dx, grad, NULL, ws, ws_size, exec, NULL);
    if (status)
        return status;
    if (has_mask(grad->mask, &grad->act) || (grad->weights.values && !grad->frozen) ||
        grad->renorm_r)
        return BNORM_UNSUPPORTED;
    if (bnorm_is_empty(shape)) /* clears dgamma and dbeta */
        return bnorm_backward(shape, x, dy, dx, grad, ws, ws_size, exec);
    const size_t need = bnorm_workspace(BNORM_OP_BACKWARD, shape);
    if ((status = check_given(shape, dx, grad, ghost->groups, ws, need)))
        return status;

    const bnorm_shape part = group_shape(shape, ghost);
    for (size_t k = 0; k < ghost->groups; k++) {
        bnorm_gradients s;
        bnorm_grad group = *grad;
        group.save_mean += k * shape->c;
        group.save_invstd = grad->save_invstd ? grad->save_invstd + k * shape->c : NULL;
        group.save_var = grad->save_var ? grad->save_var + k * shape->c : NULL;
        group.save_mean_lo = grad->save_mean_lo ? grad->save_mean_lo + k * shape->c : NULL;
        group.residual = group_in(shape, grad->residual, ghost, k);
        group.y = group_in(shape, grad->y, ghost, k);
        group.dresidual = group_out(shape, grad->dresidual, ghost, k);
        status = bnorm_plan_backward(
            &part, group_in(shape, x, ghost, k), group_dy(shape, dy, grad->dy_broadcast, ghost, k),
            group_out(shape, dx, ghost, k), &group, NULL, ws, ws_size, exec, &s);
        if (status)
            return status;
        bnorm_gradients_run(&s, exec);
        struct gradient_sums job = {{k, shape->c, s.totals[0], s.totals[1]}, &s};
        if (grad->dgamma || grad->dbeta)
            bnorm_run(exec, add_gradients, &job, 1);
    }
    return BNORM_OK;
}
