/* SPDX-License-Identifier: MIT */
#include "base.h"

#include "forward.h"

#include "call.h"
#include "check.h"
#include "run.h"
#include "running.h"

/* ---------------------------------------------------------------------------------------------- */
/* The plan */

/* Without weights values are counted, with them their sum and epsilon are. */
static void count_values(bnorm_forward *f, double n, double sample_n) {
    f->derived.n = n;
    f->derived.divisor = f->running.variance == BNORM_VARIANCE_POPULATION
                             ? n
                             : bnorm_running_divisor(&f->running, sample_n);
}

void bnorm_lay_out_forward(bnorm_forward *f, const bnorm_view *view, size_t first,
                           const bnorm_exec *exec) {
    bnorm_map_args *const args = &f->map.args;
    const bnorm_tables tables =
        bnorm_plan_reduction(&f->sums, view, first, f->ws, bnorm_exec_isa(exec));
    const double n = bnorm_values_of(view);
    f->totals[0] = tables.totals[0];
    f->totals[1] = tables.totals[1];
    f->weights.sums = tables.weights;
    f->mean = tables.merged[0];
    f->m2 = tables.merged[1];
    f->derived.mean = f->mean;
    f->derived.m2 = f->m2;
    count_values(f, n, n);
    f->map.view = *view;
    bnorm_plan_map(&f->map, exec);
    f->sums.hints = args->hints;
    if (f->stage < BNORM_STAGE_ALL) {
        f->derived.scale = NULL; /* running statistics only */
        return;
    }
    if (f->renorm) {
        f->renormed.new_gamma = tables.params[0];
        f->renormed.new_beta = tables.params[1];
        f->derived.gamma = tables.params[0];
        f->derived.beta = tables.params[1];
    }
    args->center = f->derived.center = tables.coefficients[0];
    args->scale = f->derived.scale = tables.coefficients[1];
    args->shift = f->derived.shift = tables.coefficients[2];
}

void bnorm_uses_train(bnorm_uses *uses, const bnorm_train *train, size_t c, size_t saved) {
    const bnorm_renorm *const renorm = train->renorm;
    bnorm_uses_running(uses, &train->running, c);
    bnorm_writes_floats(uses, train->save_mean, saved);
    bnorm_writes_floats(uses, train->save_invstd, saved);
    bnorm_writes_floats(uses, train->save_mean_lo, saved);
    bnorm_writes_floats(uses, train->save_var, saved);
    if (renorm) {
        bnorm_writes_floats(uses, renorm->save_r, c);
        bnorm_writes_floats(uses, renorm->save_d, c);
    }
    bnorm_reads_floats(uses, train->gamma, c);
    bnorm_reads_floats(uses, train->beta, c);
}

/* What the call reads and writes; fills in the tensors. */
static bnorm_status check_uses(const bnorm_job *job, const bnorm_batch *batch, bnorm_view *view,
                               bnorm_forward *f) {
    const bnorm_shape *shape = job->shape;
    const bnorm_train *train = job->train;
    static const bnorm_in none = {NULL, 0, 0};
    const int all = f->stage == BNORM_STAGE_ALL;
    const size_t n = shape->n * shape->hw;
    bnorm_map_args *const args = &f->map.args;
    bnorm_uses uses;
    bnorm_begin_uses(&uses, shape, view);
    bnorm_requires(&uses, job->x.data);
    bnorm_requires(&uses, all ? job->out.data : job->x.data);
    bnorm_requires(&uses, job->ws);
    bnorm_reads_tensor(&uses, &job->x, &args->x);
    args->out.data = NULL;
    if (all)
        bnorm_writes_tensor(&uses, &job->out, shape->dtype, &args->out);
    bnorm_reads_tensor(&uses, all ? &train->residual : &none, &args->argument);
    const size_t saved = bnorm_saved_floats(&uses, batch);
    bnorm_uses_memory(&uses, job, batch);
    bnorm_writes_mask(&uses, args->mask.bits);
    bnorm_reads_floats(&uses, train->weights.values, n);
    bnorm_uses_train(&uses, train, shape->c, saved);
    bnorm_status status = bnorm_check_uses(&uses);
    if (!status && train->weights.values)
        status = bnorm_check_weight_values(shape, &train->weights);
    if (!status && train->renorm)
        status = bnorm_check_variance(shape->c, train->running.var, train->eps);
    return status;
}

/* Member by member: a compiler fills a whole struct aside and copies it, which takes as long as a
 * small batch. */
static void take_parameters(const bnorm_train *train, bnorm_forward *f) {
    const bnorm_running *const running = &train->running;
    bnorm_map_args *const args = &f->map.args;
    f->running = *running;
    f->weights.values = train->weights.values;
    f->weights.epsilon = train->weights.epsilon;
    f->renorm = train->renorm;
    f->renormed.gamma = f->derived.gamma = train->gamma;
    f->renormed.beta = f->derived.beta = train->beta;
    f->derived.eps = train->eps;
    f->derived.save_mean = train->save_mean;
    f->derived.save_mean_lo = train->save_mean_lo;
    f->derived.save_invstd = train->save_invstd;
    f->derived.save_var = train->save_var;
    f->derived.running_mean = running->mean;
    f->derived.running_var = running->var;
    f->derived.new_mean = bnorm_updated(running->mean, running->new_mean);
    f->derived.new_var = bnorm_updated(running->var, running->new_var);
    f->derived.rate = running->rate;
    args->dy.data = args->dresidual.data = NULL;
    args->pre = args->argument.data ? BNORM_PRE_RESIDUAL : BNORM_PRE_X;
    args->act = train->act;
    args->invstd = args->slope = args->offset = NULL;
}

bnorm_status bnorm_plan_forward(const bnorm_job *job, const bnorm_batch *batch,
                                const bnorm_exec *exec, bnorm_forward *f) {
    const bnorm_shape *shape = job->shape;
    const bnorm_train *train = job->train;
    bnorm_status status = bnorm_check_float_shape(shape);
    f->map.args.x.data = NULL;
    if (bnorm_failed(status))
        return status;
    if (!train)
        return BNORM_NULL_POINTER;
    unsigned char *mask = train->mask;
    status = bnorm_check_train(train, exec);
    if (!status)
        status = bnorm_check_mask(&train->act, &mask);
    if (!status)
        status = bnorm_check_exec(exec);
    if (bnorm_failed(status) || bnorm_is_empty(shape))
        return status;
    bnorm_view view;
    bnorm_view_of(shape, &view);
    f->stage = batch->stage;
    f->ws = job->ws;
    bnorm_set_bits(shape, mask, &f->map.args.mask);
    if (bnorm_failed(status = check_uses(job, batch, &view, f))) {
        f->map.args.x.data = NULL;
        return status;
    }
    take_parameters(train, f);
    bnorm_lay_out_forward(f, &view, bnorm_first_image(batch), exec);
    return BNORM_OK;
}

/* ---------------------------------------------------------------------------------------------- */
/* The pass */

static void reduce(const void *self, size_t b, size_t channel, size_t channels) {
    const bnorm_forward *f = self;
    if (f->weights.values)
        bnorm_weighted_moments_of(&f->sums, &f->weights, &f->map.args.x, b, channel, channels);
    else
        bnorm_reduce_moments(&f->sums, &f->map.args.x, b, channel, channels);
}

static void finish(const void *self, size_t channel, size_t channels) {
    const bnorm_forward *f = self;
    const bnorm_training *const kernels = f->sums.kernels;
    if (f->stage == BNORM_STAGE_SUMS) {
        kernels->merge(&f->sums.partials, channel, channels, NULL, NULL);
        return;
    }
    if (f->weights.values)
        bnorm_weighted_merge(&f->sums, &f->weights, channel, channels, f->mean, f->m2);
    else
        kernels->merge(&f->sums.partials, channel, channels, f->mean, f->m2);
    if (f->renorm)
        bnorm_renorm_forward(f->renorm, &f->renormed, &f->derived, channel, channels);
    kernels->coefficients(&f->derived, channel, channels);
}

static void map(const void *self, const bnorm_part *part, int near) {
    const bnorm_forward *f = self;
    bnorm_map_part(&f->map, part, near);
}

static void map_whole(const void *self) {
    const bnorm_forward *f = self;
    bnorm_map_whole(&f->map);
}

void bnorm_run_forward(bnorm_forward *f, const bnorm_exec *exec) {
    const bnorm_pass pass = {
        .self = f,
        .view = &f->sums.view,
        .blocks = &f->sums.blocks,
        .map_view = &f->map.view,
        .tensors = 1,
        .reduce_work = bnorm_reduce_work(1, BNORM_ACT_IDENTITY),
        .map_work = bnorm_map_work(2, f->map.args.act.kind),
        .reduce = reduce,
        .finish = finish,
        .map = f->stage == BNORM_STAGE_ALL ? map : NULL,
        .map_whole = map_whole,
    };
    if (f->weights.values) {
        bnorm_weigh(&f->weights, &f->sums, exec);
        count_values(f, f->weights.divisor, f->weights.total);
        if (f->derived.n == 0 && f->stage == BNORM_STAGE_ALL) /* there is nothing to be averaged */
            f->derived.rate = 0;
    }
    bnorm_run_pass(&pass, exec);
}

/* ---------------------------------------------------------------------------------------------- */
/* The functions */

static const bnorm_batch whole = {.stage = BNORM_STAGE_ALL, .ghosts = 1};
static const bnorm_batch statistics = {.stage = BNORM_STAGE_FINISH, .ghosts = 1};

/* mean and var of bnorm_moments are running statistics that take the batch's values. */
static bnorm_train as_running(float *mean, float *var, const bnorm_weights *weights) {
    bnorm_train train = {.running = {.mean = mean, .var = var, .rate = 1}};
    if (weights)
        train.weights = *weights;
    return train;
}

bnorm_status bnorm_check_forward(const bnorm_job *job, const bnorm_exec *exec) {
    bnorm_forward f;
    if (job->op == BNORM_OP_FORWARD_TRAIN)
        return bnorm_plan_forward(job, &whole, exec, &f);
    const bnorm_train train = as_running(job->mean, job->var, NULL);
    bnorm_job moments = *job;
    moments.train = &train;
    return bnorm_plan_forward(&moments, &statistics, exec, &f);
}

bnorm_status bnorm_moments(const bnorm_shape *shape, bnorm_in x, float *mean, float *var, void *ws,
                           size_t ws_size, const bnorm_exec *exec) {
    return bnorm_weighted_moments(shape, x, NULL, mean, var, ws, ws_size, exec);
}

bnorm_status bnorm_weighted_moments(const bnorm_shape *shape, bnorm_in x,
                                    const bnorm_weights *weights, float *mean, float *var, void *ws,
                                    size_t ws_size, const bnorm_exec *exec) {
    const bnorm_train train = as_running(mean, var, weights);
    const bnorm_job job = {.shape = shape, .x = x, .train = &train, .ws = ws, .ws_size = ws_size};
    bnorm_forward f;
    const bnorm_status status = bnorm_plan_forward(&job, &statistics, exec, &f);
    if (!status && f.map.args.x.data)
        bnorm_run_forward(&f, exec);
    return status;
}

bnorm_status bnorm_forward_train(const bnorm_shape *shape, bnorm_in x, bnorm_out y,
                                 const bnorm_train *train, void *ws, size_t ws_size,
                                 const bnorm_exec *exec) {
    const bnorm_job job = {
        .shape = shape, .x = x, .out = y, .train = train, .ws = ws, .ws_size = ws_size};
    bnorm_forward f;
    const bnorm_status status = bnorm_plan_forward(&job, &whole, exec, &f);
    if (status)
        return status;
    if (f.map.args.x.data) {
        bnorm_end_mask(shape, &f.map.args.mask);
        bnorm_run_forward(&f, exec);
    } else {
        bnorm_keep_running(&train->running, shape->c);
    }
    return BNORM_OK;
}
