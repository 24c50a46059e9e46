/* SPDX-License-Identifier: MIT */
#include "calls.h"

#include <math.h>
#include <stdio.h>
#include <string.h>

/* ---------------------------------------------------------------------------------------------- */
/* Data                                                                                           */

size_t data_count(const struct data *d) {
    return d->n * d->c * d->hw;
}

static void round_all(bnorm_dtype dtype, float *x, size_t count) {
    for (size_t i = 0; i < count; i++)
        x[i] = element_round(dtype, x[i]);
}

void data_new(struct test *t, struct data *d, const bnorm_shape *shape) {
    *d = (struct data){.n = shape->n, .c = shape->c, .hw = shape->hw};
    const size_t count = data_count(d), c = d->c;
    const bnorm_shape plain = {.layout = BNORM_NCHW, .n = d->n, .c = c, .hw = d->hw};
    d->x = test_floats(t, count);
    fill_values(&t->rng, &plain, VALUES_NORMAL, d->x);
    d->dy = uniform_floats(t, 1, count, -2, 2);
    d->residual = uniform_floats(t, 1, count, -2, 2);
    round_all(shape->dtype, d->x, count);
    round_all(shape->dtype, d->dy, count);
    round_all(shape->dtype, d->residual, count);
    d->gamma = uniform_floats(t, rng_below(&t->rng, 4) != 0, c, -2, 2);
    d->beta = uniform_floats(t, rng_below(&t->rng, 4) != 0, c, -2, 2);
    d->mean = uniform_floats(t, 1, c, -2, 2);
    d->invstd = uniform_floats(t, 1, c, .3, 2);
    d->lo = uniform_floats(t, 1, c, -0x1p-26, 0x1p-26);
}

float *take_channels(struct test *t, const float *from, const struct data *shape,
                     const struct channels *which) {
    if (!from)
        return NULL;
    const size_t hw = shape->hw;
    float *taken = test_floats(t, shape->n * which->width * hw);
    for (size_t image = 0; image < shape->n; image++)
        memcpy(taken + image * which->width * hw, from + (image * shape->c + which->first) * hw,
               which->count * hw * sizeof(float));
    return taken;
}

size_t plain_index(const bnorm_shape *shape, size_t i) {
    const size_t len = shape_len(shape), image = i / (len * shape_runs(shape));
    const size_t channel = shape_channel(shape, i);
    size_t position = i % len; /* NCHW */
    if (shape->c_block)
        position /= shape->c_block;
    else if (shape->layout == BNORM_NHWC)
        position = i / len % shape->hw;
    return channel < shape->c ? (image * shape->c + channel) * shape->hw + position : SIZE_MAX;
}

/* From (n, c, hw) order into the shape's, padding included, and back. */
static float *arrange(struct test *t, const bnorm_shape *shape, const float *plain, float padding) {
    const size_t count = shape_count(shape);
    float *dense = test_floats(t, count);
    for (size_t i = 0; i < count; i++) {
        const size_t at = plain_index(shape, i);
        dense[i] = at == SIZE_MAX ? padding : plain[at];
    }
    return dense;
}

static float *rearrange(struct test *t, const bnorm_shape *shape, const struct tensor *tensor,
                        const char *what) {
    const size_t count = shape_count(shape);
    float *dense = test_floats(t, count), *plain = test_floats(t, shape->n * shape->c * shape->hw);
    tensor_get(tensor, shape, dense);
    for (size_t i = 0; i < count; i++) {
        const size_t at = plain_index(shape, i);
        if (at != SIZE_MAX)
            plain[at] = dense[i];
        else if (float_bits(dense[i]))
            test_fail(t, "%s: element %zu is padding, but is 0x%08x, expected +0", what, i,
                      float_bits(dense[i]));
    }
    return plain;
}

/* ---------------------------------------------------------------------------------------------- */
/* Calls                                                                                          */

const char *call_text(const struct call *call, char text[256]) {
    static const char *const ops[] = {"moments", "forward_train", "backward", "apply"};
    static const char *const reuses[] = {"separate", "onto x (dresidual onto dy)",
                                         "onto the residual (dx onto dy)"};
    static const char *const paddings[] = {"signalling NaN", "huge", "zero"};
    char shape[96];
    snprintf(text, 256, "%s %s act=%d(%.9g, %.9g)%s%s%s%s%s%s, %s, padding %s", ops[call->op],
             shape_text(&call->shape, shape), (int)call->act.kind, (double)call->act.a,
             (double)call->act.b, call->residual ? " residual" : "", call->lo ? " lo" : "",
             call->frozen ? " frozen" : "", call->mask ? " writes mask" : "",
             call->given_y ? " given y" : "", call->given_mask ? " given mask" : "",
             reuses[call->reuse], paddings[call->padding]);
    return text;
}

static struct tensor *add_input(struct test *t, struct ready *r, const char *name,
                                const float *plain) {
    const float paddings[] = {bits_float(0xffa54321u), 1e30f, 0};
    float *dense = arrange(t, &r->shape, plain, paddings[r->call.padding]);
    const struct placement place = {.side = r->fixture.side};
    return fixture_tensor(&r->fixture, name, &r->shape, r->call.dense ? &place : NULL, dense);
}

static struct tensor *add_output(struct ready *r, const char *name) {
    const struct placement place = {.side = r->fixture.side};
    return fixture_tensor(&r->fixture, name, &r->shape, r->call.dense ? &place : NULL, NULL);
}

/* NULL stays NULL. */
static const float *add_array(struct ready *r, const char *name, const float *values) {
    return values ? fixture_input(&r->fixture, name, values, r->data->c) : NULL;
}

static void ready_backward(struct test *t, struct ready *r, struct tensor *x,
                           struct tensor *residual) {
    const struct data *d = r->data;
    struct fixture *f = &r->fixture;
    struct tensor *dy = add_input(t, r, "dy", d->dy), *extra = residual;
    r->grad = (bnorm_grad){
        .gamma = add_array(r, "gamma", d->gamma),
        .beta = add_array(r, "beta", d->beta),
        .save_mean = add_array(r, "save_mean", d->mean),
        .save_invstd = add_array(r, "save_invstd", d->invstd),
        .save_mean_lo = r->call.lo ? add_array(r, "save_mean_lo", d->lo) : NULL,
        .frozen = r->call.frozen,
        .act = r->call.act,
    };
    if (r->call.given_y) {
        extra = add_input(t, r, "y", r->call.given_y);
        r->grad.y = tensor_in(extra);
    }
    if (residual)
        r->grad.residual = tensor_in(residual);
    if (r->call.given_mask) {
        unsigned char *mask = fixture_bytes(f, "mask", bnorm_mask_size(&r->shape));
        memcpy(mask, r->call.given_mask, bnorm_mask_size(&r->shape));
        r->grad.mask = mask;
    }
    switch (r->call.reuse) {
    case REUSE_NOTHING:
        r->y = add_output(r, "dx");
        r->dresidual = add_output(r, "dresidual");
        break;
    case REUSE_FIRST:
        r->y = x;
        r->dresidual = dy;
        break;
    case REUSE_SECOND:
        r->y = dy;
        r->dresidual = extra ? extra : x;
        break;
    }
    fixture_writes(f, r->dresidual);
    r->grad.dresidual = tensor_out(r->dresidual);
    r->grad.dgamma = r->arrays.dgamma = fixture_output(f, "dgamma", NULL, d->c);
    r->grad.dbeta = r->arrays.dbeta = fixture_output(f, "dbeta", NULL, d->c);
    r->job.dy = tensor_in(dy);
    r->job.grad = &r->grad;
}

static void ready_forward(struct test *t, struct ready *r, struct tensor *x,
                          struct tensor *residual) {
    const struct data *d = r->data;
    struct fixture *f = &r->fixture;
    r->y = r->call.reuse == REUSE_FIRST                ? x
           : r->call.reuse == REUSE_SECOND && residual ? residual
                                                       : add_output(r, "y");
    const bnorm_in in = residual ? tensor_in(residual) : (bnorm_in){NULL, 0, 0};
    if (r->call.mask) { /* every bit is to be written, whatever it was */
        r->arrays.mask_bytes = bnorm_mask_size(&r->shape);
        r->arrays.mask = fixture_bytes(f, "mask", r->arrays.mask_bytes);
        memset(r->arrays.mask, rng_below(&t->rng, 2) ? 0xff : 0, r->arrays.mask_bytes);
    }
    if (r->call.op == BNORM_OP_APPLY) {
        float *scale = test_floats(t, d->c);
        for (size_t i = 0; i < d->c; i++)
            scale[i] = (d->gamma ? d->gamma[i] : 1) * d->invstd[i];
        r->affine = (bnorm_affine){
            .center = add_array(r, "center", d->mean),
            .scale = add_array(r, "scale", scale),
            .shift = add_array(r, "shift", d->beta),
            .residual = in,
            .act = r->call.act,
            .mask = r->arrays.mask,
        };
        r->job.affine = &r->affine;
        return;
    }
    const size_t c = d->c;
    r->arrays.mean = fixture_output(f, "save_mean", NULL, c);
    r->arrays.invstd = fixture_output(f, "save_invstd", NULL, c);
    r->arrays.lo = r->call.lo ? fixture_output(f, "save_mean_lo", NULL, c) : NULL;
    r->arrays.running_mean = fixture_output(f, "running mean", test_floats(t, c), c);
    r->arrays.running_var = fixture_output(f, "running variance", test_floats(t, c), c);
    r->train = (bnorm_train){
        .gamma = add_array(r, "gamma", d->gamma),
        .beta = add_array(r, "beta", d->beta),
        .eps = 1e-5,
        .running = {.mean = r->arrays.running_mean,
                    .var = r->arrays.running_var,
                    .rate = .1,
                    .variance = BNORM_VARIANCE_SAMPLE},
        .save_mean = r->arrays.mean,
        .save_invstd = r->arrays.invstd,
        .save_mean_lo = r->arrays.lo,
        .residual = in,
        .act = r->call.act,
        .mask = r->arrays.mask,
    };
    r->job.train = &r->train;
}

void ready_new(struct test *t, struct ready *r, const struct call *call, const struct data *data,
               enum side side) {
    struct fixture *f = &r->fixture;
    *r = (struct ready){.call = *call, .data = data, .shape = call->shape};
    fixture_start(f, t, side);
    struct tensor *x = add_input(t, r, "x", data->x);
    struct tensor *residual = call->residual && call->op != BNORM_OP_MOMENTS
                                  ? add_input(t, r, "residual", data->residual)
                                  : NULL;
    r->job = (bnorm_job){.op = call->op, .shape = &r->shape, .x = tensor_in(x)};
    if (call->op == BNORM_OP_MOMENTS) {
        r->job.mean = r->arrays.mean = fixture_output(f, "mean", NULL, data->c);
        r->job.var = r->arrays.var = fixture_output(f, "var", NULL, data->c);
    } else if (call->op == BNORM_OP_BACKWARD) {
        ready_backward(t, r, x, residual);
    } else {
        ready_forward(t, r, x, residual);
    }
    if (r->y) {
        fixture_writes(f, r->y);
        r->job.out = tensor_out(r->y);
    }
    r->job.ws_size = bnorm_workspace(call->op, &r->shape);
    r->job.ws = fixture_workspace(f, r->job.ws_size);
}

struct results ready_finish(struct test *t, struct ready *r) {
    const size_t c = r->data->c;
    struct results got = r->arrays;
    fixture_check(&r->fixture);
    if (r->grad.mask && memcmp(r->grad.mask, r->call.given_mask, bnorm_mask_size(&r->shape)) != 0)
        test_fail(t, "bnorm_backward changed the mask");
    float **const arrays[] = {&got.mean,         &got.var,         &got.lo,     &got.invstd,
                              &got.running_mean, &got.running_var, &got.dgamma, &got.dbeta};
    for (size_t i = 0; i < COUNT_OF(arrays); i++)
        if (*arrays[i])
            *arrays[i] = copy_floats(t, *arrays[i], c);
    if (r->y) {
        float *plain = rearrange(t, &r->shape, r->y, "y or dx");
        if (r->call.op == BNORM_OP_BACKWARD)
            got.dx = plain;
        else
            got.y = plain;
    }
    if (r->dresidual)
        got.dresidual = rearrange(t, &r->shape, r->dresidual, "dresidual");
    if (got.mask) {
        got.mask = test_alloc(t, got.mask_bytes);
        memcpy(got.mask, r->arrays.mask, got.mask_bytes);
    }
    fixture_end(&r->fixture);
    return got;
}

bnorm_status run_job(const bnorm_job *job, const bnorm_exec *exec) {
    switch (job->op) {
    case BNORM_OP_MOMENTS:
        return bnorm_moments(job->shape, job->x, job->mean, job->var, job->ws, job->ws_size, exec);
    case BNORM_OP_FORWARD_TRAIN:
        return bnorm_forward_train(job->shape, job->x, job->out, job->train, job->ws, job->ws_size,
                                   exec);
    case BNORM_OP_BACKWARD:
        return bnorm_backward(job->shape, job->x, job->dy, job->out, job->grad, job->ws,
                              job->ws_size, exec);
    case BNORM_OP_APPLY:
        break;
    }
    return bnorm_apply(job->shape, job->x, job->out, job->affine, exec);
}

struct results run_call(struct test *t, const struct call *call, const struct data *data,
                        const bnorm_exec *exec) {
    struct ready r;
    char text[256];
    const enum side side = (enum side)rng_below(&t->rng, 2);
    test_context(t, "%s, %s, guard %s", call_text(call, text), bnorm_isa_name(exec->isa),
                 side == SIDE_START ? "before" : "after");
    ready_new(t, &r, call, data, side);
    check_status(t, "the call", run_job(&r.job, exec), BNORM_OK);
    return ready_finish(t, &r);
}

static void check_both(struct test *t, const char *what, const float *got, const float *want,
                       size_t count) {
    if (got && want)
        check_bits(t, what, got, want, count);
}

void check_results(struct test *t, const struct results *got, const struct results *want,
                   const struct data *data) {
    const size_t count = data_count(data), c = data->c;
    check_both(t, "mean", got->mean, want->mean, c);
    check_both(t, "var", got->var, want->var, c);
    check_both(t, "mean_lo", got->lo, want->lo, c);
    check_both(t, "invstd", got->invstd, want->invstd, c);
    check_both(t, "running mean", got->running_mean, want->running_mean, c);
    check_both(t, "running variance", got->running_var, want->running_var, c);
    check_both(t, "dgamma", got->dgamma, want->dgamma, c);
    check_both(t, "dbeta", got->dbeta, want->dbeta, c);
    check_both(t, "y", got->y, want->y, count);
    check_both(t, "dresidual", got->dresidual, want->dresidual, count);
    check_both(t, "dx", got->dx, want->dx, count);
    if (got->mask && want->mask && memcmp(got->mask, want->mask, want->mask_bytes) != 0)
        test_fail(t, "the masks differ");
}

bnorm_act random_mask_act(struct rng *r) {
    static const bnorm_act_kind kinds[] = {BNORM_ACT_RELU, BNORM_ACT_CLAMP, BNORM_ACT_LEAKY_RELU};
    bnorm_act act = random_act(r, kinds[rng_below(r, 3)]);
    if (act.kind == BNORM_ACT_LEAKY_RELU) {
        static const float slopes[] = {0, -.25f, .125f, 3};
        const size_t i = rng_below(r, 6);
        act.a = i < 4 ? slopes[i] : act.a;
    }
    return act;
}
