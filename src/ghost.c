/* SPDX-License-Identifier: MIT
 *
 * Ghost batches: one plan for the whole batch, of which each group is a part, and a pass per group,
 * one after the other. */
#include "base.h"

#include "backward.h"
#include "channel.h"
#include "forward.h"
#include "run.h"
#include "running.h"

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

/* The images of one group, in the tensors of all of them. */
static bnorm_view take_group(const bnorm_shape *shape, const bnorm_ghost *ghost, size_t k,
                             const bnorm_view *whole, bnorm_map_args *args) {
    const int interleaved = ghost->order == BNORM_GHOST_INTERLEAVED;
    const size_t n = shape->n / ghost->groups, first = interleaved ? k : k * n,
                 step = interleaved ? ghost->groups : 1;
    bnorm_tensor *const tensors[] = {&args->x, &args->dy, &args->argument, &args->out,
                                     &args->dresidual};
    bnorm_view view = *whole;
    for (size_t i = 0; i < sizeof tensors / sizeof tensors[0]; i++)
        bnorm_take_samples(whole, tensors[i], first, step);
    if (view.leaves)
        view.rows = view.positions = n;
    else
        view.images = n;
    return view;
}

/* ---------------------------------------------------------------------------------------------- */
/* Forward */

/* Two sums per channel over the groups, in double: tasks, so that they run in exec's mode. */
struct averaging {
    const bnorm_forward *f;
    const bnorm_running *running;
    size_t group;
};

/* The first group is not added to 0, so that one group has the bits of a plain call. */
static void add_statistics(void *arg, size_t task) {
    const struct averaging *job = arg;
    const bnorm_forward *f = job->f;
    (void)task;
    for (size_t i = 0; i < f->map.view.c; i++) {
        const double mean = f->mean[i], var = f->m2[i] / f->derived.divisor;
        f->totals[0][i] = job->group ? f->totals[0][i] + mean : mean;
        f->totals[1][i] = job->group ? f->totals[1][i] + var : var;
    }
}

static void update_running(void *arg, size_t task) {
    const struct averaging *job = arg;
    const bnorm_forward *f = job->f;
    const bnorm_running *running = job->running;
    const double groups = (double)(job->group + 1);
    (void)task;
    for (size_t i = 0; i < f->map.view.c; i++) {
        f->totals[0][i] /= groups;
        f->totals[1][i] /= groups;
    }
    const bnorm_coefficient_args args = {
        .mean = f->totals[0],
        .m2 = f->totals[1],
        .n = 1,
        .running_mean = running->mean,
        .running_var = running->var,
        .new_mean = bnorm_updated(running->mean, running->new_mean),
        .new_var = bnorm_updated(running->var, running->new_var),
        .rate = running->rate,
        .divisor = 1,
    };
    f->sums.kernels->coefficients(&args, 0, f->map.view.c);
}

/* Group k of a planned call, all of whose images share the workspace. */
static void take_forward(const bnorm_forward *all, const bnorm_shape *shape,
                         const bnorm_ghost *ghost, size_t k, const bnorm_exec *exec,
                         bnorm_forward *group) {
    const size_t at = k * shape->c;
    const bnorm_running *const running = &all->running;
    bnorm_coefficient_args *const derived = &group->derived;
    *group = *all;
    derived->save_mean = bnorm_to(derived->save_mean, at);
    derived->save_mean_lo = bnorm_to(derived->save_mean_lo, at);
    derived->save_invstd = bnorm_to(derived->save_invstd, at);
    derived->save_var = bnorm_to(derived->save_var, at);
    if (ghost->running == BNORM_GHOST_AVERAGE) {
        derived->new_mean = derived->new_var = NULL;
    } else if (k > 0) {
        derived->running_mean = bnorm_updated(running->mean, running->new_mean);
        derived->running_var = bnorm_updated(running->var, running->new_var);
    }
    const bnorm_view view = take_group(shape, ghost, k, &all->sums.view, &group->map.args);
    bnorm_lay_out_forward(group, &view, 0, exec);
}

bnorm_status bnorm_forward_train_ghost(const bnorm_shape *shape, bnorm_in x, bnorm_out y,
                                       const bnorm_train *train, const bnorm_ghost *ghost, void *ws,
                                       size_t ws_size, const bnorm_exec *exec) {
    const bnorm_job job = {
        .shape = shape, .x = x, .out = y, .train = train, .ws = ws, .ws_size = ws_size};
    bnorm_forward all;
    bnorm_status status = check_ghost(shape, ghost);
    if (!status) {
        const bnorm_batch batch = {.stage = BNORM_STAGE_ALL, .ghosts = ghost->groups};
        status = bnorm_plan_forward(&job, &batch, exec, &all);
    }
    if (status)
        return status;
    if (has_mask(train->mask, &train->act) || train->weights.values || train->renorm)
        return BNORM_UNSUPPORTED;
    if (bnorm_is_empty(shape)) {
        bnorm_keep_running(&train->running, shape->c);
        return BNORM_OK;
    }
    const int tracked = train->running.mean || train->running.var;
    const int averaged = ghost->running == BNORM_GHOST_AVERAGE && tracked;
    for (size_t k = 0; k < ghost->groups; k++) {
        bnorm_forward group;
        take_forward(&all, shape, ghost, k, exec, &group);
        struct averaging averaging = {&group, &train->running, k};
        bnorm_run_forward(&group, exec);
        if (averaged)
            bnorm_run(exec, add_statistics, &averaging, 1);
        if (averaged && k + 1 == ghost->groups)
            bnorm_run(exec, update_running, &averaging, 1);
    }
    return BNORM_OK;
}

/* ---------------------------------------------------------------------------------------------- */
/* Backward */

struct gradient_sums {
    const bnorm_backward_plan *b;
    size_t group;
};

/* dgamma and dbeta. */
static void add_gradients(void *arg, size_t task) {
    const struct gradient_sums *job = arg;
    const bnorm_grad_coefficient_args *derived = &job->b->derived;
    double *const gx = job->b->totals[0], *const g = job->b->totals[1];
    (void)task;
    for (size_t i = 0; i < job->b->map.view.c; i++) {
        const double centred = bnorm_centred_sum(derived, i), invstd = (double)derived->invstd[i];
        gx[i] = job->group ? bnorm_fma(centred, invstd, gx[i]) : centred * invstd;
        g[i] = job->group ? g[i] + derived->sum_g[i] : derived->sum_g[i];
        if (derived->dgamma)
            derived->dgamma[i] = bnorm_round(gx[i]);
        if (derived->dbeta)
            derived->dbeta[i] = bnorm_round(g[i]);
    }
}

static void take_backward(const bnorm_backward_plan *all, const bnorm_shape *shape,
                          const bnorm_ghost *ghost, size_t k, const bnorm_exec *exec,
                          bnorm_backward_plan *group) {
    const size_t at = k * shape->c;
    *group = *all;
    group->map.args.center = bnorm_from(group->map.args.center, at);
    group->save_var = bnorm_from(group->save_var, at);
    group->prepared.invstd = bnorm_from(group->prepared.invstd, at);
    group->prepared.mean_lo = group->derived.mean_lo = bnorm_from(group->derived.mean_lo, at);
    const bnorm_view view = take_group(shape, ghost, k, &all->sums.view, &group->map.args);
    bnorm_lay_out_backward(group, &view, 0, exec);
}

bnorm_status bnorm_backward_ghost(const bnorm_shape *shape, bnorm_in x, bnorm_in dy, bnorm_out dx,
                                  const bnorm_grad *grad, const bnorm_ghost *ghost, void *ws,
                                  size_t ws_size, const bnorm_exec *exec) {
    const bnorm_job job = {
        .shape = shape, .x = x, .dy = dy, .out = dx, .grad = grad, .ws = ws, .ws_size = ws_size};
    bnorm_backward_plan all;
    bnorm_status status = check_ghost(shape, ghost);
    if (!status) {
        const bnorm_batch batch = {.stage = BNORM_STAGE_ALL, .ghosts = ghost->groups};
        status = bnorm_plan_backward(&job, &batch, exec, &all);
    }
    if (status)
        return status;
    if (has_mask(grad->mask, &grad->act) || (grad->weights.values && !grad->frozen) ||
        grad->renorm_r)
        return BNORM_UNSUPPORTED;
    if (bnorm_is_empty(shape)) /* clears dgamma and dbeta */
        return bnorm_backward(shape, x, dy, dx, grad, ws, ws_size, exec);
    for (size_t k = 0; k < ghost->groups; k++) {
        bnorm_backward_plan group;
        take_backward(&all, shape, ghost, k, exec, &group);
        struct gradient_sums sums = {&group, k};
        bnorm_run_backward(&group, exec);
        if (group.derived.dgamma || group.derived.dbeta)
            bnorm_run(exec, add_gradients, &sums, 1);
    }
    return BNORM_OK;
}
