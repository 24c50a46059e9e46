/* SPDX-License-Identifier: MIT
 *
 * Calls of the variants: several in bnorm_run_jobs, those that are refused, which write nothing,
 * and those on an empty batch. */
#include "variants.h"

#include <math.h>
#include <string.h>

/* ---------------------------------------------------------------------------------------------- */
/* Jobs                                                                                           */

#define JOBS 6

/* Forward and backward with weights and with renorm, in one call of bnorm_run_jobs. */
struct mix {
    struct problem problems[JOBS];
    struct call calls[JOBS];
    struct ready ready[JOBS];
    struct results want[JOBS];
    bnorm_job jobs[JOBS];
};

static struct mix *mix_new(struct test *t) {
    const bnorm_exec scalar = {.isa = scalar_isa()};
    struct mix *m = test_alloc(t, sizeof *m);
    for (size_t i = 0; i < JOBS; i++) {
        const bnorm_shape shape = problem_shape(t, rng_below(&t->rng, PROBLEM_SMALL),
                                                problem_dtype(rng_below(&t->rng, 3)));
        struct problem *p = &m->problems[i];
        problem_new(t, p, &shape, i % 3 ? (enum weights)(1 + rng_below(&t->rng, 4)) : WEIGHTS_NONE);
        if (i % 3 != 1)
            problem_add_renorm(t, p);
        p->call.shape.dtype = shape.dtype;
        m->calls[i] = p->call;
        m->want[i] = run_call(t, &p->call, &p->data, &scalar);
        if (i < JOBS / 2) {
            data_take(&p->data, &m->want[i]);
            m->calls[i] = problem_backward_call(t, p, &m->want[i]);
            m->want[i] = run_call(t, &m->calls[i], &p->data, &scalar);
        }
        m->calls[i].dense = 0;
        m->calls[i].side = (int)rng_below(&t->rng, 2);
    }
    for (size_t i = 0; i < JOBS; i++) {
        ready_new(t, &m->ready[i], &m->calls[i], &m->problems[i].data);
        m->jobs[i] = m->ready[i].args.job;
    }
    return m;
}

static void test_jobs(struct test *t) {
    for (size_t round = 0; round < test_repeat(20, 8, 3); round++) {
        struct mix *m = mix_new(t);
        const bnorm_exec exec = type_exec(t, round);
        test_context(t, "round %zu", round);
        check_status(t, "bnorm_run_jobs", bnorm_run_jobs(m->jobs, JOBS, NULL, &exec), BNORM_OK);
        for (size_t i = 0; i < JOBS; i++) {
            ready_say(t, &m->ready[i], &exec);
            const struct results got = ready_finish(t, &m->ready[i]);
            check_results(t, &got, &m->want[i], &m->problems[i].data);
        }
        test_release(t);
    }
}

/* Input arrays lie in writable memory. */
static float *writable(const float *array) {
    return (float *)(uintptr_t)array;
}

static void test_bad_job(struct test *t) {
    for (size_t round = 0; round < test_repeat(8, 4, 2); round++) {
        struct mix *m = mix_new(t);
        const bnorm_exec exec = type_exec(t, round);
        const size_t at = rng_below(&t->rng, JOBS);
        struct call_args *v = &m->ready[at].args;
        if (v->weights.values) {
            writable(v->weights.values)[0] = -1;
        } else {
            v->renorm.d_max = -1;    /* forward */
            v->grad.renorm_d = NULL; /* backward: one without the other */
        }
        unsigned char *before[JOBS];
        for (size_t i = 0; i < JOBS; i++)
            before[i] = snapshot(t, &m->ready[i].fixture);
        size_t failed = JOBS;
        const bnorm_status want = v->weights.values                      ? BNORM_BAD_WEIGHTS
                                  : m->calls[at].op == BNORM_OP_BACKWARD ? BNORM_NULL_POINTER
                                                                         : BNORM_BAD_RENORM;
        test_context(t, "job %zu is bad", at);
        check_status(t, "bnorm_run_jobs", bnorm_run_jobs(m->jobs, JOBS, &failed, &exec), want);
        if (failed != at)
            test_fail(t, "*failed is %zu, expected %zu", failed, at);
        for (size_t i = 0; i < JOBS; i++)
            check_snapshot(t, &m->ready[i].fixture, before[i]);
        test_release(t);
    }
}

/* ---------------------------------------------------------------------------------------------- */
/* Refusals                                                                                       */

struct attempt {
    struct problem problem;
    struct call call;
    struct ready ready;
    bnorm_ghost ghost;
};

enum flavour { WITH_BOTH = 0, WITH_WEIGHTS, WITH_GHOST };

/* A valid call. */
static void attempt_new(struct test *t, struct attempt *a, bnorm_op op, enum flavour flavour) {
    bnorm_shape shape = problem_shape(t, 8, BNORM_F32);
    struct problem *p = &a->problem;
    problem_new(t, p, &shape, flavour == WITH_GHOST ? WEIGHTS_NONE : WEIGHTS_RANDOM);
    problem_add_renorm(t, p);
    if (flavour != WITH_BOTH)
        p->call.renorm = NULL;
    p->call.act = (bnorm_act){.kind = BNORM_ACT_RELU};
    p->call.mask = 0;
    p->call.lo = 1;
    p->call.residual = 1;
    if (flavour == WITH_GHOST) {
        a->ghost = (bnorm_ghost){3, BNORM_GHOST_INTERLEAVED, BNORM_GHOST_SUCCESSIVE};
        p->call.ghost = &a->ghost;
        p->data.mean = uniform_floats(t, 1, 3 * shape.c, -1, 1);
        p->data.invstd = uniform_floats(t, 1, 3 * shape.c, .5, 1);
        p->data.lo = test_floats(t, 3 * shape.c);
    } else if (op == BNORM_OP_BACKWARD && flavour == WITH_BOTH) {
        p->data.r = uniform_floats(t, 1, shape.c, .5, 1);
        p->data.d = uniform_floats(t, 1, shape.c, .5, 1);
    }
    a->call = p->call;
    a->call.op = op;
    a->call.dense = 0;
    a->call.side = (int)rng_below(&t->rng, 2);
    ready_new(t, &a->ready, &a->call, &p->data);
}

static void attempt_run(struct test *t, struct attempt *a, bnorm_status want, const char *what) {
    const bnorm_exec exec = {.isa = t->isa};
    const unsigned char *before = snapshot(t, &a->ready.fixture);
    a->ready.call.what = what;
    ready_say(t, &a->ready, &exec);
    const bnorm_status got = call_run(&a->ready.args, &exec);
    check_status(t, what, got, want);
    if (got != BNORM_OK)
        check_snapshot(t, &a->ready.fixture, before);
    test_release(t);
}

/* A valid call with one thing changed, named by the code that changes it. */
#define EXPECT(op, flavour, status, ...)                                                           \
    do {                                                                                           \
        attempt_new(t, a, op, flavour);                                                            \
        __VA_ARGS__;                                                                               \
        attempt_run(t, a, status, #__VA_ARGS__);                                                   \
    } while (0)

/* Zeros are weights that no check of values refuses. */
static const float *zeroed(const struct tensor *tensor) {
    memset(tensor->buffer.data, 0, tensor->buffer.bytes);
    return tensor->data;
}

static void test_weight_errors(struct test *t) {
    struct attempt attempt, *a = &attempt;
    struct call_args *r = &a->ready.args;
    bnorm_train *train = &r->train;
    bnorm_grad *grad = &r->grad;
    const double bad[] = {-1, -1e-30, NAN, INFINITY, -INFINITY};
    EXPECT(BNORM_OP_FORWARD_TRAIN, WITH_WEIGHTS, BNORM_OK, (void)0);
    EXPECT(BNORM_OP_BACKWARD, WITH_WEIGHTS, BNORM_OK, (void)0);
    EXPECT(BNORM_OP_MOMENTS, WITH_WEIGHTS, BNORM_OK, (void)0);
    for (size_t i = 0; i < COUNT_OF(bad); i++) {
        const size_t at = i == 0 ? 0 : i == 1 ? 6 * 31 - 1 : rng_below(&t->rng, 6 * 31);
        EXPECT(BNORM_OP_FORWARD_TRAIN, WITH_WEIGHTS, BNORM_BAD_WEIGHTS,
               writable(train->weights.values)[at] = (float)bad[i]);
        EXPECT(BNORM_OP_BACKWARD, WITH_WEIGHTS, BNORM_BAD_WEIGHTS,
               writable(grad->weights.values)[at] = (float)bad[i]);
        EXPECT(BNORM_OP_MOMENTS, WITH_WEIGHTS, BNORM_BAD_WEIGHTS,
               writable(r->weights.values)[at] = (float)bad[i]);
        EXPECT(BNORM_OP_FORWARD_TRAIN, WITH_WEIGHTS, BNORM_BAD_EPSILON,
               train->weights.epsilon = bad[i]);
        EXPECT(BNORM_OP_BACKWARD, WITH_WEIGHTS, BNORM_BAD_EPSILON, grad->weights.epsilon = bad[i]);
        EXPECT(BNORM_OP_MOMENTS, WITH_WEIGHTS, BNORM_BAD_EPSILON, r->weights.epsilon = bad[i]);
    }
    EXPECT(BNORM_OP_FORWARD_TRAIN, WITH_WEIGHTS, BNORM_BAD_OVERLAP,
           train->weights.values = zeroed(a->ready.y));
    EXPECT(BNORM_OP_FORWARD_TRAIN, WITH_WEIGHTS, BNORM_BAD_OVERLAP,
           train->save_mean = writable(train->weights.values) + 6 * 31 - 1);
    EXPECT(BNORM_OP_FORWARD_TRAIN, WITH_WEIGHTS, BNORM_BAD_OVERLAP,
           train->running.var = writable(train->weights.values));
    EXPECT(BNORM_OP_FORWARD_TRAIN, WITH_WEIGHTS, BNORM_BAD_OVERLAP,
           r->job.ws = writable(train->weights.values));
    EXPECT(BNORM_OP_FORWARD_TRAIN, WITH_WEIGHTS, BNORM_WORKSPACE_TOO_SMALL, r->job.ws_size--);
    EXPECT(BNORM_OP_FORWARD_TRAIN, WITH_WEIGHTS, BNORM_UNSUPPORTED, r->shape.dtype = BNORM_S8);
    EXPECT(BNORM_OP_BACKWARD, WITH_WEIGHTS, BNORM_BAD_OVERLAP, /* y is dx */
           grad->weights.values = zeroed(a->ready.y));
    EXPECT(BNORM_OP_BACKWARD, WITH_WEIGHTS, BNORM_BAD_OVERLAP,
           grad->weights.values = zeroed(a->ready.dresidual));
    EXPECT(BNORM_OP_BACKWARD, WITH_WEIGHTS, BNORM_BAD_OVERLAP,
           grad->dgamma = writable(grad->weights.values));
    EXPECT(BNORM_OP_BACKWARD, WITH_WEIGHTS, BNORM_BAD_OVERLAP,
           grad->dbeta = writable(grad->weights.values) + 6 * 31 - 1);
    EXPECT(BNORM_OP_BACKWARD, WITH_WEIGHTS, BNORM_BAD_OVERLAP,
           r->job.ws = writable(grad->weights.values));
    EXPECT(BNORM_OP_BACKWARD, WITH_WEIGHTS, BNORM_WORKSPACE_TOO_SMALL, r->job.ws_size--);
    EXPECT(BNORM_OP_MOMENTS, WITH_WEIGHTS, BNORM_BAD_OVERLAP,
           r->job.mean = writable(r->weights.values));
    EXPECT(BNORM_OP_MOMENTS, WITH_WEIGHTS, BNORM_BAD_OVERLAP, r->job.mean = r->job.var);
    EXPECT(BNORM_OP_MOMENTS, WITH_WEIGHTS, BNORM_BAD_OVERLAP,
           r->job.ws = writable(r->weights.values));
    EXPECT(BNORM_OP_MOMENTS, WITH_WEIGHTS, BNORM_WORKSPACE_TOO_SMALL, r->job.ws_size--);
    EXPECT(BNORM_OP_MOMENTS, WITH_WEIGHTS, BNORM_NULL_POINTER, r->job.ws = NULL);
    EXPECT(BNORM_OP_MOMENTS, WITH_WEIGHTS, BNORM_NULL_POINTER, r->job.x.data = NULL);
    EXPECT(BNORM_OP_MOMENTS, WITH_WEIGHTS, BNORM_NULL_POINTER, r->job.shape = NULL);
    EXPECT(BNORM_OP_MOMENTS, WITH_WEIGHTS, BNORM_UNSUPPORTED, r->shape.dtype = BNORM_U8);
    EXPECT(BNORM_OP_MOMENTS, WITH_WEIGHTS, BNORM_BAD_SHAPE, r->shape.c = 0);
    EXPECT(BNORM_OP_MOMENTS, WITH_WEIGHTS, BNORM_BAD_ENUM, r->shape.dtype = (bnorm_dtype)9);
    EXPECT(BNORM_OP_MOMENTS, WITH_WEIGHTS, BNORM_BAD_STRIDE, r->job.x.run_stride = 1,
           r->job.x.image_stride = 1);
    EXPECT(BNORM_OP_MOMENTS, WITH_WEIGHTS, BNORM_OK, r->job.mean = NULL, r->job.var = NULL);
}

static void test_renorm_errors(struct test *t) {
    struct attempt attempt, *a = &attempt;
    struct call_args *r = &a->ready.args;
    bnorm_renorm *renorm = &r->renorm;
    bnorm_train *train = &r->train;
    bnorm_grad *grad = &r->grad;
    EXPECT(BNORM_OP_FORWARD_TRAIN, WITH_BOTH, BNORM_OK, (void)0);
    EXPECT(BNORM_OP_FORWARD_TRAIN, WITH_BOTH, BNORM_OK, renorm->save_r = renorm->save_d = NULL);
    EXPECT(BNORM_OP_BACKWARD, WITH_BOTH, BNORM_OK, (void)0);
    EXPECT(BNORM_OP_FORWARD_TRAIN, WITH_BOTH, BNORM_BAD_RENORM, renorm->r_min = -.5);
    EXPECT(BNORM_OP_FORWARD_TRAIN, WITH_BOTH, BNORM_BAD_RENORM, renorm->r_min = NAN);
    EXPECT(BNORM_OP_FORWARD_TRAIN, WITH_BOTH, BNORM_BAD_RENORM, renorm->r_max = NAN);
    EXPECT(BNORM_OP_FORWARD_TRAIN, WITH_BOTH, BNORM_BAD_RENORM, renorm->r_min = 2,
           renorm->r_max = 1.9);
    EXPECT(BNORM_OP_FORWARD_TRAIN, WITH_BOTH, BNORM_BAD_RENORM, renorm->d_max = -1e-9);
    EXPECT(BNORM_OP_FORWARD_TRAIN, WITH_BOTH, BNORM_BAD_RENORM, renorm->d_max = NAN);
    EXPECT(BNORM_OP_FORWARD_TRAIN, WITH_BOTH, BNORM_NULL_POINTER,
           train->running.mean = train->running.var = NULL);
    EXPECT(BNORM_OP_FORWARD_TRAIN, WITH_BOTH, BNORM_BAD_VARIANCE, train->running.var[0] = -1);
    EXPECT(BNORM_OP_FORWARD_TRAIN, WITH_BOTH, BNORM_BAD_VARIANCE, train->eps = .25,
           train->running.var[r->shape.c - 1] = -.5f);
    EXPECT(BNORM_OP_FORWARD_TRAIN, WITH_BOTH, BNORM_OK, train->eps = .25,
           train->running.var[0] = -.125f);
    EXPECT(BNORM_OP_FORWARD_TRAIN, WITH_BOTH, BNORM_OK, train->renorm = NULL,
           train->running.var[0] = -1);
    EXPECT(BNORM_OP_FORWARD_TRAIN, WITH_BOTH, BNORM_BAD_OVERLAP, renorm->save_r = renorm->save_d);
    EXPECT(BNORM_OP_FORWARD_TRAIN, WITH_BOTH, BNORM_BAD_OVERLAP, renorm->save_r = train->save_mean);
    EXPECT(BNORM_OP_FORWARD_TRAIN, WITH_BOTH, BNORM_BAD_OVERLAP,
           renorm->save_d = train->running.var);
    EXPECT(BNORM_OP_FORWARD_TRAIN, WITH_BOTH, BNORM_BAD_OVERLAP,
           renorm->save_d = writable(train->weights.values));
    EXPECT(BNORM_OP_FORWARD_TRAIN, WITH_BOTH, BNORM_BAD_OVERLAP, renorm->save_r = a->ready.y->data);
    EXPECT(BNORM_OP_FORWARD_TRAIN, WITH_BOTH, BNORM_BAD_OVERLAP,
           renorm->save_r = writable(r->job.x.data));
    EXPECT(BNORM_OP_FORWARD_TRAIN, WITH_BOTH, BNORM_BAD_OVERLAP, r->job.ws = renorm->save_r);
    EXPECT(BNORM_OP_FORWARD_TRAIN, WITH_BOTH, BNORM_BAD_OVERLAP, train->gamma = renorm->save_r);
    EXPECT(BNORM_OP_FORWARD_TRAIN, WITH_BOTH, BNORM_BAD_OVERLAP,
           train->gamma = renorm->save_r + r->shape.c - 1);
    EXPECT(BNORM_OP_FORWARD_TRAIN, WITH_BOTH, BNORM_BAD_OVERLAP,
           train->gamma = renorm->save_d + r->shape.c - 1);
    EXPECT(BNORM_OP_BACKWARD, WITH_BOTH, BNORM_NULL_POINTER, grad->renorm_r = NULL);
    EXPECT(BNORM_OP_BACKWARD, WITH_BOTH, BNORM_NULL_POINTER, grad->renorm_d = NULL);
    EXPECT(BNORM_OP_BACKWARD, WITH_BOTH, BNORM_BAD_PARAMETER, grad->frozen = 1);
    EXPECT(BNORM_OP_BACKWARD, WITH_BOTH, BNORM_OK, grad->frozen = 1,
           grad->renorm_r = grad->renorm_d = NULL);
    EXPECT(BNORM_OP_BACKWARD, WITH_BOTH, BNORM_BAD_OVERLAP,
           grad->dgamma = writable(grad->renorm_r));
    EXPECT(BNORM_OP_BACKWARD, WITH_BOTH, BNORM_BAD_OVERLAP, grad->dbeta = writable(grad->renorm_d));
    EXPECT(BNORM_OP_BACKWARD, WITH_BOTH, BNORM_BAD_OVERLAP,
           grad->dgamma = writable(grad->renorm_r) + r->shape.c - 1);
    EXPECT(BNORM_OP_BACKWARD, WITH_BOTH, BNORM_BAD_OVERLAP,
           grad->dbeta = writable(grad->renorm_d) + r->shape.c - 1);
    EXPECT(BNORM_OP_BACKWARD, WITH_BOTH, BNORM_BAD_OVERLAP, r->job.ws = writable(grad->renorm_d));
    EXPECT(BNORM_OP_BACKWARD, WITH_BOTH, BNORM_BAD_OVERLAP,
           grad->renorm_r = a->ready.dresidual->data);
}

static void test_ghost_errors(struct test *t) {
    static const bnorm_op ops[] = {BNORM_OP_FORWARD_TRAIN, BNORM_OP_BACKWARD};
    static const float weights[6 * 31];
    struct attempt attempt, *a = &attempt;
    struct call_args *r = &a->ready.args;
    bnorm_train *train = &r->train;
    bnorm_grad *grad = &r->grad;
    unsigned char mask[6 * 32 * 31];
    for (size_t i = 0; i < COUNT_OF(ops); i++) {
        EXPECT(ops[i], WITH_GHOST, BNORM_OK, (void)0);
        EXPECT(ops[i], WITH_GHOST, BNORM_BAD_SHAPE, a->ghost.groups = 0);
        EXPECT(ops[i], WITH_GHOST, BNORM_BAD_SHAPE, a->ghost.groups = 4);
        EXPECT(ops[i], WITH_GHOST, BNORM_BAD_SHAPE, a->ghost.groups = 12);
        EXPECT(ops[i], WITH_GHOST, BNORM_BAD_SHAPE, a->ghost.groups = SIZE_MAX);
        EXPECT(ops[i], WITH_GHOST, BNORM_BAD_ENUM, a->ghost.order = (bnorm_ghost_order)2);
        EXPECT(ops[i], WITH_GHOST, BNORM_NULL_POINTER, r->job.shape = NULL);
        EXPECT(ops[i], WITH_GHOST, BNORM_NULL_POINTER, r->job.x.data = NULL);
        EXPECT(ops[i], WITH_GHOST, BNORM_NULL_POINTER, r->job.ws = NULL);
        EXPECT(ops[i], WITH_GHOST, BNORM_NULL_POINTER, r->job.train = NULL, r->job.grad = NULL);
        EXPECT(ops[i], WITH_GHOST, BNORM_WORKSPACE_TOO_SMALL, r->job.ws_size--);
        EXPECT(ops[i], WITH_GHOST, BNORM_UNSUPPORTED, r->shape.dtype = BNORM_S8);
        EXPECT(ops[i], WITH_GHOST, BNORM_BAD_STRIDE, r->job.x.run_stride = 1,
               r->job.x.image_stride = 1);
        EXPECT(ops[i], WITH_GHOST, BNORM_BAD_STRIDE, r->job.out.run_stride = 1,
               r->job.out.image_stride = 1);
        EXPECT(ops[i], WITH_GHOST, BNORM_UNSUPPORTED, train->weights.values = weights,
               grad->weights.values = weights);
        EXPECT(ops[i], WITH_GHOST, BNORM_BAD_OVERLAP, /* out of place, but one element off */
               r->job.out = (bnorm_out){(float *)(uintptr_t)r->job.x.data + 1, r->job.x.run_stride,
                                        r->job.x.image_stride});
        EXPECT(ops[i], WITH_GHOST, BNORM_BAD_ACTIVATION, train->act.kind = BNORM_ACT_CLAMP,
               grad->act.kind = BNORM_ACT_CLAMP);
    }
    EXPECT(BNORM_OP_FORWARD_TRAIN, WITH_GHOST, BNORM_BAD_ENUM,
           a->ghost.running = (bnorm_ghost_running)2);
    EXPECT(BNORM_OP_FORWARD_TRAIN, WITH_GHOST, BNORM_UNSUPPORTED, train->mask = mask);
    EXPECT(BNORM_OP_FORWARD_TRAIN, WITH_GHOST, BNORM_UNSUPPORTED,
           train->renorm = &(bnorm_renorm){.r_min = 1, .r_max = 1});
    EXPECT(BNORM_OP_FORWARD_TRAIN, WITH_GHOST, BNORM_NULL_POINTER, r->job.out.data = NULL);
    EXPECT(BNORM_OP_FORWARD_TRAIN, WITH_GHOST, BNORM_NULL_POINTER,
           train->running.new_var = train->running.var, train->running.var = NULL);
    EXPECT(BNORM_OP_FORWARD_TRAIN, WITH_GHOST, BNORM_BAD_EPSILON, train->eps = -1);
    EXPECT(BNORM_OP_FORWARD_TRAIN, WITH_GHOST, BNORM_BAD_RATE, train->running.rate = NAN);
    /* Only the last group's part meets another array. */
    EXPECT(BNORM_OP_FORWARD_TRAIN, WITH_GHOST, BNORM_BAD_OVERLAP,
           train->save_invstd = train->save_mean + 2 * r->shape.c);
    EXPECT(BNORM_OP_FORWARD_TRAIN, WITH_GHOST, BNORM_BAD_OVERLAP,
           train->running.mean = train->save_mean_lo + 3 * r->shape.c - 1);
    EXPECT(BNORM_OP_FORWARD_TRAIN, WITH_GHOST, BNORM_BAD_OVERLAP,
           train->running.mean = train->save_invstd + 3 * r->shape.c - 1);
    EXPECT(BNORM_OP_FORWARD_TRAIN, WITH_GHOST, BNORM_BAD_OVERLAP,
           train->save_var = train->save_invstd, train->save_invstd = NULL,
           train->running.mean = train->save_var + 3 * r->shape.c - 1);
    EXPECT(BNORM_OP_FORWARD_TRAIN, WITH_GHOST, BNORM_BAD_OVERLAP, r->job.ws = train->save_mean);
    EXPECT(BNORM_OP_FORWARD_TRAIN, WITH_GHOST, BNORM_BAD_OVERLAP,
           train->save_mean = a->ready.y->data);
    EXPECT(BNORM_OP_BACKWARD, WITH_GHOST, BNORM_UNSUPPORTED, grad->residual.data = NULL,
           grad->mask = mask);
    EXPECT(BNORM_OP_BACKWARD, WITH_GHOST, BNORM_UNSUPPORTED, grad->renorm_r = weights,
           grad->renorm_d = weights);
    EXPECT(BNORM_OP_BACKWARD, WITH_GHOST, BNORM_NULL_POINTER, grad->save_mean = NULL);
    EXPECT(BNORM_OP_BACKWARD, WITH_GHOST, BNORM_NULL_POINTER, grad->save_invstd = NULL);
    EXPECT(BNORM_OP_BACKWARD, WITH_GHOST, BNORM_NULL_POINTER, r->job.dy.data = NULL);
    EXPECT(BNORM_OP_BACKWARD, WITH_GHOST, BNORM_BAD_OVERLAP,
           grad->dgamma = writable(grad->save_mean) + 3 * r->shape.c - 1);
    EXPECT(BNORM_OP_BACKWARD, WITH_GHOST, BNORM_BAD_OVERLAP,
           grad->dgamma = writable(grad->save_invstd) + 3 * r->shape.c - 1);
    EXPECT(BNORM_OP_BACKWARD, WITH_GHOST, BNORM_BAD_OVERLAP, grad->save_mean_lo = grad->save_invstd,
           grad->dgamma = writable(grad->save_mean_lo) + 3 * r->shape.c - 1,
           grad->save_invstd = grad->save_mean);
    EXPECT(BNORM_OP_BACKWARD, WITH_GHOST, BNORM_BAD_OVERLAP, grad->save_var = grad->save_invstd,
           grad->dgamma = writable(grad->save_var) + 3 * r->shape.c - 1, grad->save_invstd = NULL);
    EXPECT(BNORM_OP_BACKWARD, WITH_GHOST, BNORM_BAD_OVERLAP, grad->dgamma = grad->dbeta);
    EXPECT(BNORM_OP_BACKWARD, WITH_GHOST, BNORM_BAD_OVERLAP, grad->dresidual = r->job.out);
    EXPECT(BNORM_OP_BACKWARD, WITH_GHOST, BNORM_OK, r->job.out.data = NULL,
           grad->dresidual.data = NULL);

    const bnorm_exec exec = {.isa = t->isa};
    attempt_new(t, a, BNORM_OP_FORWARD_TRAIN, WITH_GHOST);
    check_status(t, "forward without a bnorm_ghost",
                 bnorm_forward_train_ghost(r->job.shape, r->job.x, r->job.out, train, NULL,
                                           r->job.ws, r->job.ws_size, &exec),
                 BNORM_NULL_POINTER);
    attempt_new(t, a, BNORM_OP_BACKWARD, WITH_GHOST);
    check_status(t, "backward without a bnorm_ghost",
                 bnorm_backward_ghost(r->job.shape, r->job.x, r->job.dy, r->job.out, grad, NULL,
                                      r->job.ws, r->job.ws_size, &exec),
                 BNORM_NULL_POINTER);
}

/* N = 0 or HW = 0: nothing is touched but dgamma and dbeta, which become 0. */
static void test_empty(struct test *t) {
    const bnorm_exec exec = {.isa = t->isa};
    const bnorm_in none = {NULL, 0, 0};
    const bnorm_out nowhere = {NULL, 0, 0};
    for (int which = 0; which < 3; which++) {
        bnorm_shape shape = problem_shape(t, 2, BNORM_F32);
        shape.n = which == 1 ? 4 : 0;
        shape.hw = which == 0 ? 7 : 0;
        const float before[6] = {1, 2, 3, 4, 5, 6}, zeros[3] = {0, 0, 0};
        float a[9][6];
        for (size_t i = 0; i < COUNT_OF(a); i++)
            memcpy(a[i], before, sizeof before);
        const bnorm_renorm renorm = {1, 2, 1, a[5], a[6]};
        const bnorm_weights weights = {a[7], 1e-7};
        const bnorm_ghost ghost = {2, BNORM_GHOST_INTERLEAVED, BNORM_GHOST_AVERAGE};
        bnorm_train train = {
            .running = {.mean = a[0], .var = a[1], .rate = .5, .variance = BNORM_VARIANCE_SAMPLE},
            .save_mean = a[2],
            .save_mean_lo = a[3],
            .save_invstd = a[4],
            .weights = weights,
            .renorm = &renorm,
        };
        bnorm_grad grad = {
            .save_mean = before,
            .save_invstd = before,
            .weights = weights,
            .renorm_r = before,
            .renorm_d = before,
            .dgamma = a[8],
            .dbeta = a[8] + 3,
        };
        char text[96];
        test_context(t, "%s", shape_text(&shape, text));
        check_status(t, "bnorm_weighted_moments",
                     bnorm_weighted_moments(&shape, none, &weights, a[0], a[1], NULL, 0, &exec),
                     BNORM_OK);
        check_status(t, "bnorm_forward_train",
                     bnorm_forward_train(&shape, none, nowhere, &train, NULL, 0, &exec), BNORM_OK);
        train.weights.values = NULL;
        train.renorm = NULL;
        check_status(
            t, "bnorm_forward_train_ghost",
            bnorm_forward_train_ghost(&shape, none, nowhere, &train, &ghost, NULL, 0, &exec),
            BNORM_OK);
        for (size_t i = 0; i < COUNT_OF(a); i++)
            check_bits(t, "an array of forward", a[i], before, 6);
        for (int k = 0; k < 2; k++) {
            memcpy(a[8], before, sizeof before);
            if (k)
                grad = (bnorm_grad){
                    .save_mean = before, .save_invstd = before, .dgamma = a[8], .dbeta = a[8] + 3};
            check_status(
                t, k ? "bnorm_backward_ghost" : "bnorm_backward",
                k ? bnorm_backward_ghost(&shape, none, none, nowhere, &grad, &ghost, NULL, 0, &exec)
                  : bnorm_backward(&shape, none, none, nowhere, &grad, NULL, 0, &exec),
                BNORM_OK);
            check_bits(t, "dgamma", a[8], zeros, 3);
            check_bits(t, "dbeta", a[8] + 3, zeros, 3);
        }
    }
}

void add_variant_calls(struct suite *s) {
    static const struct type_test tests[] = {
        {"jobs", test_jobs},
        {"bad-job", test_bad_job},
        {"weight-errors", test_weight_errors},
        {"renorm-errors", test_renorm_errors},
        {"ghost-errors", test_ghost_errors},
        {"empty", test_empty},
    };
    add_problem_cases(s, "variants", tests, COUNT_OF(tests));
}
