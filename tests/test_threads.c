/* SPDX-License-Identifier: MIT
 *
 * Any `parallel`, any order of tasks, any number of calling threads: the same bits as the scalar
 * set in a serial call. Built with -fsanitize=thread, it also shows that there is no race. */
#define _GNU_SOURCE 1 /* pthread_barrier_t */
#include "cases.h"

#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* ---------------------------------------------------------------------------------------------- */
/* All operations on one input                                                                    */

struct inputs {
    bnorm_shape shape;
    float *x, *residual, *dy, *gamma, *beta;
};

struct outputs {
    float *applied, *mean, *var;                  /* bnorm_apply, bnorm_moments */
    float *y, *save_mean, *save_lo, *save_invstd; /* bnorm_forward_train */
    float *running_mean, *running_var;
    float *dx, *dresidual, *dgamma, *dbeta; /* bnorm_backward */
};

static struct inputs inputs_new(struct test *t, const bnorm_shape *shape) {
    const size_t count = shape_count(shape), c = shape->c;
    struct inputs in = {.shape = *shape, .x = test_floats(t, count)};
    fill_values(&t->rng, shape, VALUES_NORMAL, in.x);
    in.residual = uniform_floats(t, 1, count, -2, 2);
    in.dy = uniform_floats(t, 1, count, -2, 2);
    in.gamma = uniform_floats(t, 1, c, -2, 2);
    in.beta = uniform_floats(t, 1, c, -2, 2);
    return in;
}

static struct outputs outputs_new(struct test *t, const bnorm_shape *shape) {
    const size_t count = shape_count(shape), c = shape->c;
    struct outputs out = {.applied = test_floats(t, count), .y = test_floats(t, count)};
    out.dx = test_floats(t, count);
    out.dresidual = test_floats(t, count);
    float **const arrays[] = {&out.mean,        &out.var,         &out.save_mean,
                              &out.save_lo,     &out.save_invstd, &out.running_mean,
                              &out.running_var, &out.dgamma,      &out.dbeta};
    for (size_t i = 0; i < COUNT_OF(arrays); i++)
        *arrays[i] = test_floats(t, c);
    return out;
}

/* Where the tensors of a run lie: in turn x, residual, dy and the four outputs. With `in_place`,
 * the outputs lie on x, x, dy and the residual instead. */
struct tensors {
    bnorm_in x, residual, dy;
    bnorm_out applied, y, dx, dresidual;
};

static struct tensors dense_tensors(const struct inputs *in, const struct outputs *out) {
    return (struct tensors){
        .x = {in->x, 0, 0},
        .residual = {in->residual, 0, 0},
        .dy = {in->dy, 0, 0},
        .applied = {out->applied, 0, 0},
        .y = {out->y, 0, 0},
        .dx = {out->dx, 0, 0},
        .dresidual = {out->dresidual, 0, 0},
    };
}

static bnorm_status run_apply(const struct inputs *in, const struct tensors *at,
                              const bnorm_exec *exec) {
    const bnorm_affine affine = {
        .center = in->beta,
        .scale = in->gamma,
        .shift = in->beta,
        .residual = at->residual,
        .act = {.kind = BNORM_ACT_RELU},
    };
    return bnorm_apply(&in->shape, at->x, at->applied, &affine, exec);
}

static bnorm_status run_train(const struct inputs *in, const struct outputs *out,
                              const struct tensors *at, void *ws, size_t ws_size,
                              const bnorm_exec *exec) {
    const bnorm_train train = {
        .gamma = in->gamma,
        .beta = in->beta,
        .eps = 1e-3,
        .running = {.mean = out->running_mean,
                    .var = out->running_var,
                    .rate = .1,
                    .variance = BNORM_VARIANCE_SAMPLE},
        .save_mean = out->save_mean,
        .save_mean_lo = out->save_lo,
        .save_invstd = out->save_invstd,
        .act = {.kind = BNORM_ACT_HARD_SWISH},
    };
    return bnorm_forward_train(&in->shape, at->x, at->y, &train, ws, ws_size, exec);
}

static bnorm_status run_backward(const struct inputs *in, const struct outputs *out,
                                 const struct tensors *at, void *ws, size_t ws_size,
                                 const bnorm_exec *exec) {
    const bnorm_grad grad = {
        .gamma = in->gamma,
        .beta = in->beta,
        .save_mean = out->save_mean,
        .save_mean_lo = out->save_lo,
        .save_invstd = out->save_invstd,
        .act = {.kind = BNORM_ACT_LEAKY_RELU, .a = .1f},
        .residual = at->residual,
        .dresidual = at->dresidual,
        .dgamma = out->dgamma,
        .dbeta = out->dbeta,
    };
    return bnorm_backward(&in->shape, at->x, at->dy, at->dx, &grad, ws, ws_size, exec);
}

/* The largest workspace of all operations. */
static size_t workspace_size(const bnorm_shape *shape) {
    static const bnorm_op ops[] = {BNORM_OP_MOMENTS, BNORM_OP_FORWARD_TRAIN, BNORM_OP_BACKWARD};
    size_t size = 0;
    for (size_t i = 0; i < COUNT_OF(ops); i++)
        if (bnorm_workspace(ops[i], shape) > size)
            size = bnorm_workspace(ops[i], shape);
    return size;
}

/* The scalar set, serially, on dense data. */
static void solve(struct test *t, const struct inputs *in, const struct outputs *out) {
    const bnorm_exec exec = {.isa = scalar_isa()};
    const struct tensors at = dense_tensors(in, out);
    const size_t ws_size = workspace_size(&in->shape);
    void *ws = test_alloc(t, ws_size);
    check_status(t, "bnorm_apply", run_apply(in, &at, &exec), BNORM_OK);
    check_status(t, "bnorm_moments",
                 bnorm_moments(&in->shape, at.x, out->mean, out->var, ws, ws_size, &exec),
                 BNORM_OK);
    check_status(t, "bnorm_forward_train", run_train(in, out, &at, ws, ws_size, &exec), BNORM_OK);
    check_status(t, "bnorm_backward", run_backward(in, out, &at, ws, ws_size, &exec), BNORM_OK);
}

static void compare_outputs(struct test *t, const bnorm_shape *shape, const struct outputs *got,
                            const struct outputs *want) {
    const size_t count = shape_count(shape), c = shape->c;
    check_bits(t, "y of bnorm_apply", got->applied, want->applied, count);
    check_bits(t, "mean", got->mean, want->mean, c);
    check_bits(t, "var", got->var, want->var, c);
    check_bits(t, "save_mean", got->save_mean, want->save_mean, c);
    check_bits(t, "save_mean_lo", got->save_lo, want->save_lo, c);
    check_bits(t, "save_invstd", got->save_invstd, want->save_invstd, c);
    check_bits(t, "running mean", got->running_mean, want->running_mean, c);
    check_bits(t, "running variance", got->running_var, want->running_var, c);
    check_bits(t, "y of bnorm_forward_train", got->y, want->y, count);
    check_bits(t, "dgamma", got->dgamma, want->dgamma, c);
    check_bits(t, "dbeta", got->dbeta, want->dbeta, c);
    check_bits(t, "dresidual", got->dresidual, want->dresidual, count);
    check_bits(t, "dx", got->dx, want->dx, count);
}

/* ---------------------------------------------------------------------------------------------- */
/* One caller, its tasks in any order on any threads                                              */

/* Cut in each way that there is: by images, by rows, within a row, by channels, by planes, within a
 * plane; few and many blocks. */
static const bnorm_shape *shared_shapes(bnorm_layout layout, size_t *count) {
#define SHAPE(lay, samples, channels, positions)                                                   \
    { .layout = lay, .n = samples, .c = channels, .hw = positions }
    static const bnorm_shape nhwc[] = {
        SHAPE(BNORM_NHWC, 1, 3, 40000), SHAPE(BNORM_NHWC, 300, 1024, 1),
        SHAPE(BNORM_NHWC, 2, 64, 3136), SHAPE(BNORM_NHWC, 5, 17, 1000),
        SHAPE(BNORM_NHWC, 1, 1, 70001), SHAPE(BNORM_NHWC, 1, 2048, 49),
        SHAPE(BNORM_NHWC, 3, 40001, 1), SHAPE(BNORM_NHWC, 2, 20003, 2),
        SHAPE(BNORM_NHWC, 1, 5, 7),
    };
    static const bnorm_shape nchw[] = {
        SHAPE(BNORM_NCHW, 1, 3, 40000), SHAPE(BNORM_NCHW, 300, 1024, 1),
        SHAPE(BNORM_NCHW, 2, 64, 3136), SHAPE(BNORM_NCHW, 5, 17, 1000),
        SHAPE(BNORM_NCHW, 1, 1, 70001), SHAPE(BNORM_NCHW, 1, 2048, 49),
        SHAPE(BNORM_NCHW, 3, 40001, 1), SHAPE(BNORM_NCHW, 2, 20003, 2),
        SHAPE(BNORM_NCHW, 1, 5, 7),
    };
#undef SHAPE
    *count = layout == BNORM_NHWC ? COUNT_OF(nhwc) : COUNT_OF(nchw);
    return layout == BNORM_NHWC ? nhwc : nchw;
}

/* Runs every operation with fresh, differently placed tensors, the second half in place. */
static void run_placed(struct test *t, const struct inputs *in, const struct outputs *out,
                       int in_place, const bnorm_exec *exec) {
    const bnorm_shape *shape = &in->shape;
    struct fixture f;
    const size_t ws_size = workspace_size(shape);
    for (int op = 0; op < 4; op++) {
        fixture_start(&f, t, (enum side)rng_below(&t->rng, 2));
        struct tensor *x = fixture_tensor(&f, "x", shape, NULL, in->x);
        struct tensor *residual = fixture_tensor(&f, "residual", shape, NULL, in->residual);
        struct tensor *dy = fixture_tensor(&f, "dy", shape, NULL, in->dy);
        struct tensor *first = op == 3 ? dy : x, *second = residual;
        if (!in_place) {
            first = fixture_tensor(&f, "the output", shape, NULL, NULL);
            second = fixture_tensor(&f, "dresidual", shape, NULL, NULL);
        }
        if (op != 1)
            fixture_writes(&f, first);
        if (op == 3)
            fixture_writes(&f, second);
        const struct tensors at = {tensor_in(x),      tensor_in(residual), tensor_in(dy),
                                   tensor_out(first), tensor_out(first),   tensor_out(first),
                                   tensor_out(second)};
        void *ws = fixture_workspace(&f, ws_size);
        bnorm_status status;
        float *dense[2] = {NULL, NULL};
        if (op == 0) {
            status = run_apply(in, &at, exec);
            dense[0] = out->applied;
        } else if (op == 1) {
            status = bnorm_moments(shape, at.x, out->mean, out->var, ws, ws_size, exec);
        } else if (op == 2) {
            status = run_train(in, out, &at, ws, ws_size, exec);
            dense[0] = out->y;
        } else {
            status = run_backward(in, out, &at, ws, ws_size, exec);
            dense[0] = out->dx;
            dense[1] = out->dresidual;
        }
        check_status(t, "the call", status, BNORM_OK);
        if (dense[0])
            tensor_get(first, shape, dense[0]);
        if (dense[1])
            tensor_get(second, shape, dense[1]);
        fixture_check(&f);
        fixture_end(&f);
    }
}

static void test_orders(struct test *t) {
    size_t shapes, calls = 0;
    const bnorm_shape *list = shared_shapes(layout_of(t), &shapes);
    const struct {
        const char *name;
        bnorm_parallel parallel;
        void *pool;
    } orders[] = {
        {"in order", parallel_serial, NULL},
        {"reversed", parallel_reversed, NULL},
        {"shuffled", parallel_shuffled, &t->rng},
        {"on four threads", parallel_threads, &calls},
    };
    for (size_t s = 0; s < shapes; s++) {
        const struct inputs in = inputs_new(t, &list[s]);
        const struct outputs want = outputs_new(t, &list[s]), got = outputs_new(t, &list[s]);
        char text[96];
        shape_text(&list[s], text);
        test_context(t, "%s scalar, serial", text);
        solve(t, &in, &want);
        const size_t c = list[s].c;
        for (size_t o = 0; o < COUNT_OF(orders); o++) {
            if (!test_draws(t, 3))
                continue;
            const int in_place = (int)(s + o) % 2;
            test_context(t, "%s tasks %s%s", text, orders[o].name, in_place ? ", in place" : "");
            memset(got.running_mean, 0, c * sizeof(float));
            memset(got.running_var, 0, c * sizeof(float));
            /* What is said of the threads and the memory only changes how the work is cut. */
            static const size_t threads[] = {0, 4, 1, 2, 0, 3, 7, 64, SIZE_MAX};
            const bnorm_exec exec = {.parallel = orders[o].parallel,
                                     .pool = orders[o].pool,
                                     .isa = t->isa,
                                     .memory = (bnorm_memory)((s / 8 + o) % 4),
                                     .threads = threads[(s + o) % COUNT_OF(threads)]};
            calls = 0;
            run_placed(t, &in, &got, in_place, &exec);
            compare_outputs(t, &list[s], &got, &want);
            if (o == 3 && shape_count(&list[s]) > 100000 && exec.threads != 1 && calls < 4)
                test_fail(t,
                          "four operations called `parallel` only %zu times: work this large "
                          "should be shared",
                          calls);
        }
        test_release(t);
    }
}

/* ---------------------------------------------------------------------------------------------- */
/* Several callers at once                                                                        */

struct caller {
    pthread_t thread;
    pthread_barrier_t *together;
    const struct inputs *in; /* shared */
    struct outputs out;
    struct tensors at;
    void *ws;
    size_t ws_size;
    bnorm_exec exec;
    bnorm_status status[4];
};

static void *call(void *arg) {
    struct caller *c = arg;
    pthread_barrier_wait(c->together);
    c->status[0] = run_apply(c->in, &c->at, &c->exec);
    c->status[1] =
        bnorm_moments(&c->in->shape, c->at.x, c->out.mean, c->out.var, c->ws, c->ws_size, &c->exec);
    c->status[2] = run_train(c->in, &c->out, &c->at, c->ws, c->ws_size, &c->exec);
    c->status[3] = run_backward(c->in, &c->out, &c->at, c->ws, c->ws_size, &c->exec);
    return NULL;
}

#define CALLERS 6

/* On the same inputs; half of them share their work among further threads. */
static void test_callers(struct test *t) {
    const bnorm_shape shapes[] = {
        {.layout = layout_of(t), .n = 2, .c = 64, .hw = 700},
        {.layout = layout_of(t), .n = 70, .c = 37, .hw = 1},
        {.layout = layout_of(t), .n = 1, .c = 3, .hw = 30000},
    };
    for (size_t s = 0; s < COUNT_OF(shapes); s++) {
        const bnorm_shape *shape = &shapes[s];
        const struct inputs in = inputs_new(t, shape);
        const struct outputs want = outputs_new(t, shape);
        char text[96];
        test_context(t, "%s several callers", shape_text(shape, text));
        solve(t, &in, &want);
        struct caller callers[CALLERS];
        pthread_barrier_t together;
        pthread_barrier_init(&together, NULL, CALLERS);
        for (size_t i = 0; i < CALLERS; i++) {
            struct caller *c = &callers[i];
            *c = (struct caller){.together = &together, .in = &in};
            c->out = outputs_new(t, shape);
            c->at = dense_tensors(&in, &c->out);
            c->ws_size = workspace_size(shape);
            c->ws = test_alloc(t, c->ws_size);
            c->exec.isa = t->isa;
            c->exec.parallel = i % 2 ? parallel_threads : NULL;
        }
        for (size_t i = 0; i < CALLERS; i++)
            if (pthread_create(&callers[i].thread, NULL, call, &callers[i])) {
                perror("pthread_create");
                exit(2);
            }
        for (size_t i = 0; i < CALLERS; i++)
            pthread_join(callers[i].thread, NULL);
        pthread_barrier_destroy(&together);
        for (size_t i = 0; i < CALLERS; i++) {
            for (size_t k = 0; k < 4; k++)
                check_status(t, "a caller's operation", callers[i].status[k], BNORM_OK);
            compare_outputs(t, shape, &callers[i].out, &want);
        }
        test_release(t);
    }
}

/* ---------------------------------------------------------------------------------------------- */
/* The very first calls of the process race to choose the kernel set                              */

struct first_call {
    pthread_t thread;
    pthread_barrier_t *together;
    const bnorm_isa *best;
    float y[3];
    bnorm_status status;
};

static struct first_call first_calls[8];

static void *first_call(void *arg) {
    struct first_call *f = arg;
    const bnorm_shape shape = {.n = 1, .c = 3, .hw = 1};
    const float x[3] = {-1, 0, 2}, shift[3] = {1, 1, 1};
    const bnorm_affine affine = {.shift = shift};
    pthread_barrier_wait(f->together);
    f->status = bnorm_apply(&shape, (bnorm_in){x, 0, 0}, (bnorm_out){f->y, 0, 0}, &affine, NULL);
    f->best = bnorm_isa_best();
    return NULL;
}

void race_first_calls(void) {
    pthread_barrier_t together;
    pthread_barrier_init(&together, NULL, COUNT_OF(first_calls));
    for (size_t i = 0; i < COUNT_OF(first_calls); i++) {
        first_calls[i].together = &together;
        if (pthread_create(&first_calls[i].thread, NULL, first_call, &first_calls[i])) {
            perror("pthread_create");
            exit(2);
        }
    }
    for (size_t i = 0; i < COUNT_OF(first_calls); i++)
        pthread_join(first_calls[i].thread, NULL);
    pthread_barrier_destroy(&together);
}

static void test_first_calls(struct test *t) {
    const float want[3] = {0, 1, 3};
    for (size_t i = 0; i < COUNT_OF(first_calls); i++) {
        test_context(t, "first call of thread %zu", i);
        check_status(t, "bnorm_apply", first_calls[i].status, BNORM_OK);
        check_bits(t, "y", first_calls[i].y, want, 3);
        if (first_calls[i].best != bnorm_isa_best())
            test_fail(t, "bnorm_isa_best() was %s, but now is %s",
                      bnorm_isa_name(first_calls[i].best), bnorm_isa_name(bnorm_isa_best()));
    }
    const char *wish = getenv("BNORM_ISA");
    const bnorm_isa *expected = wish ? bnorm_isa_find(wish) : NULL;
    if (!expected)
        expected = bnorm_isa_at(0);
    if (bnorm_isa_best() != expected)
        test_fail(t, "bnorm_isa_best() is %s, expected %s", bnorm_isa_name(bnorm_isa_best()),
                  bnorm_isa_name(expected));
}

void add_threads(struct suite *s) {
    static const struct layout_case cases[] = {
        {"threads", "orders", test_orders},
        {"threads", "callers", test_callers},
    };
    add_layout_cases(s, cases, COUNT_OF(cases));
    suite_add(s, NULL, test_first_calls, NULL, "threads/first-calls");
}
