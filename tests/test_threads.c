/* SPDX-License-Identifier: MIT
 *
 * Any `parallel`, any order of tasks, any number of calling threads: the same bits as the scalar
 * set in a serial call. Built with -fsanitize=thread, it also shows that there is no race. */
#define _GNU_SOURCE 1 /* pthread_barrier_t */
#include "calls.h"

#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>

/* ---------------------------------------------------------------------------------------------- */
/* All operations on one input                                                                    */

enum { OPS = BNORM_OP_APPLY + 1 };

/* Backward is of the forward pass, with another activation. */
struct all {
    struct data data, saved;
    struct call calls[OPS];
    struct results want[OPS];
};

static const struct data *data_of(const struct all *all, int op) {
    return op == BNORM_OP_BACKWARD ? &all->saved : &all->data;
}

/* With the scalar set, serially, on dense data. */
static void all_new(struct test *t, struct all *all, const bnorm_shape *shape) {
    const struct call base = {
        .shape = *shape, .eps = 1e-3, .rate = .1, .variance = BNORM_VARIANCE_SAMPLE, .lo = 1};
    data_new(t, &all->data, shape);
    for (int op = 0; op < OPS; op++) {
        all->calls[op] = base;
        all->calls[op].op = (bnorm_op)op;
    }
    all->calls[BNORM_OP_APPLY].act.kind = BNORM_ACT_RELU;
    all->calls[BNORM_OP_APPLY].residual = 1;
    all->calls[BNORM_OP_FORWARD_TRAIN].act.kind = BNORM_ACT_HARD_SWISH;
    all->calls[BNORM_OP_BACKWARD].act = (bnorm_act){BNORM_ACT_LEAKY_RELU, .1f, 0};
    all->calls[BNORM_OP_BACKWARD].residual = 1;
    for (int op = 0; op < OPS; op++) {
        if (op == BNORM_OP_BACKWARD) {
            all->saved = all->data;
            data_take(&all->saved, &all->want[BNORM_OP_FORWARD_TRAIN]);
        }
        all->want[op] = run_scalar(t, &all->calls[op], data_of(all, op));
    }
}

/* ---------------------------------------------------------------------------------------------- */
/* One caller, its tasks in any order on any threads                                              */

/* Cut in each way that there is: by images, by rows, within a row, by channels, by planes, within a
 * plane; few and many blocks. */
static const size_t shared_sizes[][3] = {/* n, c, hw */
                                         {1, 3, 40000}, {300, 1024, 1}, {2, 64, 3136},
                                         {5, 17, 1000}, {1, 1, 70001},  {1, 2048, 49},
                                         {3, 40001, 1}, {2, 20003, 2},  {1, 5, 7}};

static void test_orders(struct test *t) {
    size_t calls = 0;
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
    for (size_t s = 0; s < COUNT_OF(shared_sizes); s++) {
        const size_t *size = shared_sizes[s];
        const bnorm_shape shape = {
            .layout = layout_of(t), .n = size[0], .c = size[1], .hw = size[2]};
        struct all all;
        all_new(t, &all, &shape);
        for (size_t o = 0; o < COUNT_OF(orders); o++) {
            if (!test_draws(t, 3))
                continue;
            /* What is said of the threads and the memory only changes how the work is cut. */
            static const size_t threads[] = {0, 4, 1, 2, 0, 3, 7, 64, SIZE_MAX};
            const bnorm_exec exec = {.parallel = orders[o].parallel,
                                     .pool = orders[o].pool,
                                     .isa = t->isa,
                                     .memory = (bnorm_memory)((s / 8 + o) % 4),
                                     .threads = threads[(s + o) % COUNT_OF(threads)]};
            calls = 0;
            for (int op = 0; op < OPS; op++) {
                struct call call = all.calls[op];
                random_targets(&t->rng, &call);
                call.side = (int)rng_below(&t->rng, 2);
                call.what = orders[o].name;
                const struct results got = run_call(t, &call, data_of(&all, op), &exec);
                check_results(t, &got, &all.want[op], &all.data);
            }
            if (o == 3 && shape_count(&shape) > 100000 && exec.threads != 1 && calls < 4)
                test_fail(t,
                          "four operations called `parallel` only %zu times: work this large "
                          "should be shared",
                          calls);
        }
        test_release(t);
    }
}

/* Leaves tasks out, and runs others twice. */
static void parallel_faulty(void *pool, void (*task)(void *arg, size_t i), void *arg,
                            size_t count) {
    for (size_t i = 0; i < count; i++)
        for (size_t times = rng_below(pool, 3); times-- > 0;)
            task(arg, i);
}

/* Results are then anything, but nothing else is touched, and the call returns. */
static void test_faulty(struct test *t) {
    for (size_t s = 0; s < COUNT_OF(shared_sizes); s++) {
        const size_t *size = shared_sizes[s];
        const bnorm_shape shape = {
            .layout = layout_of(t), .n = size[0], .c = size[1], .hw = size[2]};
        struct all all;
        all_new(t, &all, &shape);
        for (int op = 0; op < OPS; op++) {
            const bnorm_exec exec = {
                .parallel = parallel_faulty, .pool = &t->rng, .isa = t->isa, .threads = s % 5};
            struct call call = all.calls[op];
            random_targets(&t->rng, &call);
            call.what = "faulty threads";
            run_call(t, &call, data_of(&all, op), &exec);
        }
        test_release(t);
    }
}

/* ---------------------------------------------------------------------------------------------- */
/* Several callers at once                                                                        */

struct caller {
    pthread_t thread;
    pthread_barrier_t *together;
    struct ready ready[OPS];
    bnorm_exec exec;
    bnorm_status status[OPS];
};

static void *call(void *arg) {
    struct caller *c = arg;
    pthread_barrier_wait(c->together);
    for (int op = 0; op < OPS; op++)
        c->status[op] = call_run(&c->ready[op].args, &c->exec);
    return NULL;
}

/* Takes the inputs of another call of the same operation. */
static void share_inputs(struct ready *r, const struct ready *from) {
    struct operands *at = &r->at;
    at->x = from->at.x;
    at->dy = from->at.dy;
    at->residual = from->at.residual;
    at->gamma = from->at.gamma;
    at->beta = from->at.beta;
    at->scale = from->at.scale;
    if (r->call.op == BNORM_OP_APPLY || r->call.op == BNORM_OP_BACKWARD) {
        at->mean = from->at.mean;
        at->lo = from->at.lo;
        at->invstd = from->at.invstd;
    }
    call_arguments(&r->args, &r->call, at);
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
        struct all all;
        char text[96];
        all_new(t, &all, shape);
        struct caller *callers = test_alloc(t, CALLERS * sizeof *callers);
        pthread_barrier_t together;
        pthread_barrier_init(&together, NULL, CALLERS);
        for (size_t i = 0; i < CALLERS; i++) {
            struct caller *c = &callers[i];
            c->together = &together;
            for (int op = 0; op < OPS; op++) {
                ready_new(t, &c->ready[op], &all.calls[op], data_of(&all, op));
                share_inputs(&c->ready[op], &callers[0].ready[op]);
            }
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
            test_context(t, "%s several callers", shape_text(shape, text));
            for (int op = 0; op < OPS; op++) {
                check_status(t, "a caller's operation", callers[i].status[op], BNORM_OK);
                const struct results got = ready_finish(t, &callers[i].ready[op]);
                check_results(t, &got, &all.want[op], &all.data);
            }
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
        {"threads", "faulty", test_faulty},
        {"threads", "callers", test_callers},
    };
    add_layout_cases(s, cases, COUNT_OF(cases));
    suite_add(s, NULL, test_first_calls, NULL, "threads/first-calls");
}
