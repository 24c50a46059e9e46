/* SPDX-License-Identifier: MIT
 *
 * bnorm_run_jobs: the bits of the single calls, whatever they are and however the jobs are shared;
 * and where one job is bad, none runs. */
#include "calls.h"
#include "types.h"

#include <math.h>
#include <stdio.h>
#include <string.h>

/* ---------------------------------------------------------------------------------------------- */
/* A few jobs of all kinds, between guard pages                                                   */

#define JOBS 7 /* as many as the harness has buffers for */

static const size_t sizes[][3] = {{1, 1, 1},  {2, 3, 7},  {5, 17, 1}, {3, 8, 9},    {2, 33, 5},
                                  {1, 5, 49}, {4, 16, 4}, {1, 70, 3}, {2, 4, 2100}, {64, 40, 1}};

struct mix {
    struct data data[JOBS];
    struct call call[JOBS];
    struct ready ready[JOBS];
    bnorm_job job[JOBS];
    struct results want[JOBS];
};

static struct call random_job(struct test *t, const bnorm_shape *shape) {
    struct call call = random_call(t, (bnorm_op)rng_below(&t->rng, 4), shape);
    call.mask = act_has_mask(call.act) && rng_below(&t->rng, 2);
    if (call.op == BNORM_OP_BACKWARD && call.mask) {
        unsigned char *mask = test_alloc(t, bnorm_mask_size(shape));
        for (size_t i = 0; i < bnorm_mask_size(shape); i++)
            mask[i] = (unsigned char)rng_u64(&t->rng);
        call.given_mask = mask;
        call.residual = call.mask = 0;
    }
    return call;
}

static bnorm_shape random_shape(struct rng *r) {
    const size_t *size = sizes[rng_below(r, COUNT_OF(sizes))];
    const size_t block = rng_below(r, 3) ? 0 : (size_t)4 << rng_below(r, 4);
    return (bnorm_shape){.layout = block || rng_below(r, 2) ? BNORM_NCHW : BNORM_NHWC,
                         .dtype = (bnorm_dtype)rng_below(r, 3),
                         .n = size[0],
                         .c = size[1],
                         .hw = size[2],
                         .c_block = block};
}

/* Random problems, and what single calls make of them. */
static struct mix *mix_new(struct test *t, const bnorm_exec *single) {
    struct mix *m = test_alloc(t, sizeof *m);
    for (size_t i = 0; i < JOBS; i++) {
        const bnorm_shape shape = random_shape(&t->rng);
        data_new(t, &m->data[i], &shape);
        m->call[i] = random_job(t, &shape);
        m->want[i] = run_call(t, &m->call[i], &m->data[i], single);
    }
    return m;
}

static void mix_ready(struct test *t, struct mix *m) {
    for (size_t i = 0; i < JOBS; i++) {
        m->call[i].side = (int)rng_below(&t->rng, 2);
        ready_new(t, &m->ready[i], &m->call[i], &m->data[i]);
        m->job[i] = m->ready[i].args.job;
    }
}

static void mix_compare(struct test *t, struct mix *m, const char *how) {
    for (size_t i = 0; i < JOBS; i++) {
        char text[320];
        test_context(t, "job %zu, %s: %s", i, how, call_text(&m->call[i], text));
        const struct results got = ready_finish(t, &m->ready[i]);
        check_results(t, &got, &m->want[i], &m->data[i]);
    }
}

static void test_mixes(struct test *t) {
    static const char *const hows[] = {"serial", "reversed", "shuffled", "on threads", "in order"};
    for (size_t round = 0; round < test_repeat(120, 40, 20); round++) {
        const bnorm_exec single = {.isa = t->isa};
        struct mix *m = mix_new(t, &single);
        mix_ready(t, m);
        const bnorm_exec exec = type_exec(t, round);
        size_t failed = 77;
        test_context(t, "round %zu", round);
        check_status(t, "bnorm_run_jobs",
                     bnorm_run_jobs(m->job, JOBS, round % 2 ? &failed : NULL, &exec), BNORM_OK);
        mix_compare(t, m, hows[round / 4 % COUNT_OF(hows)]);
        test_release(t);
    }
}

/* exec NULL: on this thread, with the best set, whose bits are those of any set. */
static void test_no_exec(struct test *t) {
    const bnorm_exec single = {.isa = t->isa};
    struct mix *m = mix_new(t, &single);
    mix_ready(t, m);
    check_status(t, "bnorm_run_jobs", bnorm_run_jobs(m->job, JOBS, NULL, NULL), BNORM_OK);
    mix_compare(t, m, "exec NULL");
}

/* Denormals are flushed on every thread that works, and nowhere else. */
static void test_flush(struct test *t) {
    const int flushes = test_flushes();
    for (size_t round = 0; round < 10; round++) {
        const bnorm_exec single = {.isa = t->isa, .denormals = BNORM_DENORMALS_FLUSH};
        struct mix *m = test_alloc(t, sizeof *m);
        for (size_t i = 0; i < JOBS; i++) {
            const bnorm_shape shape = {.layout = (bnorm_layout)(i % 2), .n = 3, .c = 5, .hw = 11};
            data_new(t, &m->data[i], &shape);
            data_fill(t, &m->data[i], VALUES_DENORMAL, shape.dtype);
            m->call[i] = random_job(t, &shape);
            m->want[i] = run_call(t, &m->call[i], &m->data[i], &single);
        }
        mix_ready(t, m);
        bnorm_exec exec = type_exec(t, 2 * round);
        exec.denormals = BNORM_DENORMALS_FLUSH;
        test_context(t, "round %zu", round);
        check_status(t, "bnorm_run_jobs", bnorm_run_jobs(m->job, JOBS, NULL, &exec), BNORM_OK);
        if (test_flushes() != flushes)
            test_fail(t, "the thread's floating-point mode was not restored");
        mix_compare(t, m, "flushed");
        test_release(t);
    }
}

/* ---------------------------------------------------------------------------------------------- */
/* Many                                                                                           */

/* Shares work like parallel_serial, counting the calls. */
static void parallel_counted(void *pool, void (*task)(void *arg, size_t i), void *arg,
                             size_t count) {
    size_t *calls = pool;
    ++*calls;
    parallel_serial(NULL, task, arg, count);
}

#define MANY 1000
#define TINY 12 /* elements: 2 samples, 3 channels, 2 positions */

/* Dense tensors of x, dy, the single calls' results and the jobs'. */
struct tiny {
    float x[TINY], dy[TINY], want[TINY], got[TINY];
    float mean[2][3], invstd[2][3], dgamma[2][3], dbeta[2][3];
    bnorm_train train[2];
    bnorm_grad grad[2];
    bnorm_affine affine;
    unsigned char ws[2][2048];
};

static bnorm_job tiny_job(struct tiny *tiny, bnorm_op op, size_t version,
                          const bnorm_shape *shape) {
    const bnorm_act act = {.kind = BNORM_ACT_HARD_SWISH};
    static const float ones[3] = {1, 1, 1};
    tiny->affine = (bnorm_affine){.scale = ones, .shift = ones, .act = act};
    tiny->train[version] = (bnorm_train){.eps = 1e-3,
                                         .save_mean = tiny->mean[version],
                                         .save_invstd = tiny->invstd[version],
                                         .act = act};
    tiny->grad[version] = (bnorm_grad){.save_mean = ones,
                                       .save_invstd = ones,
                                       .act = act,
                                       .dgamma = tiny->dgamma[version],
                                       .dbeta = tiny->dbeta[version]};
    return (bnorm_job){
        .op = op,
        .shape = shape,
        .x = {tiny->x, 0, 0},
        .dy = {tiny->dy, 0, 0},
        .out = {version ? tiny->got : tiny->want, 0, 0},
        .affine = &tiny->affine,
        .train = &tiny->train[version],
        .grad = &tiny->grad[version],
        .mean = tiny->mean[version],
        .var = tiny->invstd[version],
        .ws = tiny->ws[version],
        .ws_size = sizeof tiny->ws[version],
    };
}

static void test_many(struct test *t) {
    const bnorm_shape shapes[] = {{.layout = BNORM_NHWC, .n = 2, .c = 3, .hw = 2},
                                  {.layout = BNORM_NCHW, .n = 2, .c = 3, .hw = 2}};
    struct tiny *tiny = test_alloc(t, MANY * sizeof *tiny);
    bnorm_job *jobs = test_alloc(t, MANY * sizeof *jobs);
    size_t calls = 0;
    const struct {
        const char *name;
        bnorm_parallel parallel;
        void *pool;
        size_t threads;
    } ways[] = {{"serial", NULL, NULL, 0},
                {"counted", parallel_counted, &calls, 4},
                {"one thread", parallel_counted, &calls, 1},
                {"shuffled", parallel_shuffled, &t->rng, 0},
                {"four threads", parallel_threads, NULL, 4},
                {"any threads", parallel_threads, NULL, 0}};
    for (size_t i = 0; i < MANY; i++) {
        fill_uniform(&t->rng, tiny[i].x, TINY, -4, 4);
        fill_uniform(&t->rng, tiny[i].dy, TINY, -4, 4);
        const bnorm_job single = tiny_job(&tiny[i], (bnorm_op)(i % 4), 0, &shapes[i / 4 % 2]);
        const bnorm_exec exec = {.isa = t->isa};
        test_context(t, "single call %zu", i);
        if (bnorm_workspace(single.op, single.shape) > single.ws_size)
            test_fail(t, "a workspace of %zu bytes: raise its size",
                      bnorm_workspace(single.op, single.shape));
        check_status(t, "the call", run_job(&single, &exec), BNORM_OK);
    }
    for (size_t w = 0; w < COUNT_OF(ways); w++) {
        const bnorm_exec exec = {.parallel = ways[w].parallel,
                                 .pool = ways[w].pool,
                                 .isa = t->isa,
                                 .threads = ways[w].threads};
        for (size_t i = 0; i < MANY; i++) {
            jobs[i] = tiny_job(&tiny[i], (bnorm_op)(i % 4), 1, &shapes[i / 4 % 2]);
            memset(tiny[i].got, 0, sizeof tiny[i].got);
            memset(tiny[i].mean[1], 0, sizeof tiny[i].mean[1]);
            memset(tiny[i].dgamma[1], 0, sizeof tiny[i].dgamma[1]);
        }
        calls = 0;
        test_context(t, "%zu jobs, %s", (size_t)MANY, ways[w].name);
        check_status(t, "bnorm_run_jobs", bnorm_run_jobs(jobs, MANY, NULL, &exec), BNORM_OK);
        if (ways[w].parallel == parallel_counted && calls != (ways[w].threads != 1))
            test_fail(t, "`parallel` was called %zu times", calls);
        for (size_t i = 0; i < MANY; i++) {
            test_context(t, "job %zu of many, %s", i, ways[w].name);
            const struct tiny *x = &tiny[i];
            check_bits(t, "the tensor", x->got, x->want, TINY);
            check_bits(t, "the mean", x->mean[1], x->mean[0], 3);
            check_bits(t, "invstd or var", x->invstd[1], x->invstd[0], 3);
            check_bits(t, "dgamma", x->dgamma[1], x->dgamma[0], 3);
            check_bits(t, "dbeta", x->dbeta[1], x->dbeta[0], 3);
        }
    }
}

static void test_few(struct test *t) {
    const bnorm_exec exec = {.isa = t->isa, .parallel = parallel_threads};
    size_t failed = 5;
    check_status(t, "count 0, jobs NULL", bnorm_run_jobs(NULL, 0, &failed, &exec), BNORM_OK);
    check_status(t, "the same without exec", bnorm_run_jobs(NULL, 0, NULL, NULL), BNORM_OK);
    const bnorm_job job = {.op = BNORM_OP_APPLY};
    check_status(t, "count 0", bnorm_run_jobs(&job, 0, &failed, &exec), BNORM_OK);
    check_status(t, "jobs NULL", bnorm_run_jobs(NULL, 1, &failed, &exec), BNORM_NULL_POINTER);

    /* One job is run by the caller or by a task; both are right. */
    const bnorm_shape shape = {.n = 1, .c = 3, .hw = 1};
    float y[3];
    const float x[3] = {1, 2, 3};
    const bnorm_job one = {.op = BNORM_OP_APPLY, .shape = &shape, .x = {x, 0, 0}, .out = {y, 0, 0}};
    check_status(t, "one job", bnorm_run_jobs(&one, 1, &failed, &exec), BNORM_OK);
    check_bits(t, "y", y, x, 3);
}

/* Equal jobs begin where tasks end, whatever their number: each is run once, which shows in place. */
static void test_alike(struct test *t) {
    enum { ALIKE = 16, C = 16, HW = 512 };
    const bnorm_shape shape = {.n = 1, .c = C, .hw = HW};
    float *const x = test_floats(t, ALIKE * C * HW), twos[C];
    bnorm_job jobs[ALIKE];
    for (size_t i = 0; i < C; i++)
        twos[i] = 2;
    const bnorm_affine twice = {.scale = twos};
    for (size_t i = 0; i < ALIKE; i++) {
        float *const own = x + i * C * HW;
        jobs[i] = (bnorm_job){.op = BNORM_OP_APPLY,
                              .shape = &shape,
                              .x = {own, 0, 0},
                              .out = {own, 0, 0},
                              .affine = &twice};
    }
    for (size_t threads = 0; threads <= 9; threads++) {
        const bnorm_exec exec = {.isa = t->isa, .parallel = parallel_threads, .threads = threads};
        for (size_t i = 0; i < ALIKE * C * HW; i++)
            x[i] = 3;
        test_context(t, "%zu threads", threads);
        check_status(t, "bnorm_run_jobs", bnorm_run_jobs(jobs, ALIKE, NULL, &exec), BNORM_OK);
        for (size_t i = 0; i < ALIKE * C * HW; i++)
            if (x[i] != 6)
                test_fail(t, "element %zu of job %zu is %g, not 6", i % (C * HW), i / (C * HW),
                          (double)x[i]);
    }
}

/* Empty batches beside others: as their functions say. */
static void test_empty(struct test *t) {
    const bnorm_exec exec = {.isa = t->isa, .parallel = parallel_threads, .threads = 2};
    const bnorm_shape none = {.n = 0, .c = 3, .hw = 7}, flat = {.n = 2, .c = 3, .hw = 0};
    const bnorm_shape one = {.n = 1, .c = 3, .hw = 1};
    const float ones[3] = {1, 1, 1}, zeros[3] = {0, 0, 0}, x[3] = {4, 5, 6};
    float dgamma[3] = {7, 7, 7}, dbeta[3] = {7, 7, 7}, mean[3] = {1, 1, 1}, var[3] = {1, 1, 1};
    float y[3] = {0}, running_mean[3] = {1, 1, 1}, running_var[3] = {1, 1, 1};
    const bnorm_grad grad = {
        .save_mean = ones, .save_invstd = ones, .dgamma = dgamma, .dbeta = dbeta};
    const bnorm_train train = {.eps = 1e-3,
                               .running = {.mean = running_mean,
                                           .var = running_var,
                                           .rate = .5,
                                           .variance = BNORM_VARIANCE_SAMPLE}};
    const bnorm_job jobs[] = {
        {.op = BNORM_OP_APPLY, .shape = &none},
        {.op = BNORM_OP_MOMENTS, .shape = &flat, .mean = mean, .var = var},
        {.op = BNORM_OP_APPLY, .shape = &one, .x = {x, 0, 0}, .out = {y, 0, 0}},
        {.op = BNORM_OP_FORWARD_TRAIN, .shape = &none, .train = &train},
        {.op = BNORM_OP_BACKWARD, .shape = &flat, .grad = &grad},
    };
    size_t failed = 9;
    check_status(t, "bnorm_run_jobs", bnorm_run_jobs(jobs, COUNT_OF(jobs), &failed, &exec),
                 BNORM_OK);
    check_bits(t, "y", y, x, 3);
    check_bits(t, "mean", mean, ones, 3);
    check_bits(t, "var", var, ones, 3);
    check_bits(t, "running mean", running_mean, ones, 3);
    check_bits(t, "running variance", running_var, ones, 3);
    check_bits(t, "dgamma", dgamma, zeros, 3);
    check_bits(t, "dbeta", dbeta, zeros, 3);
}

/* ---------------------------------------------------------------------------------------------- */
/* A bad job among good ones                                                                      */

/* Breaks the job in one way; returns the status, or BNORM_OK where this way is not for this op. */
static bnorm_status spoil(struct ready *r, bnorm_job *job, size_t how) {
    switch (how) {
    case 0:
        job->op = (bnorm_op)4;
        return BNORM_BAD_ENUM;
    case 1:
        job->op = (bnorm_op)-1;
        return BNORM_BAD_ENUM;
    case 2:
        job->shape = NULL;
        return BNORM_NULL_POINTER;
    case 3:
        job->x.data = NULL;
        return BNORM_NULL_POINTER;
    case 4:
        r->args.shape.c = 0;
        return BNORM_BAD_SHAPE;
    case 5:
        r->args.shape.layout = (bnorm_layout)2;
        return BNORM_BAD_ENUM;
    case 6:
        r->args.shape.layout = BNORM_NCHW;
        r->args.shape.c_block = 5;
        return BNORM_UNSUPPORTED;
    case 7: /* of moments and apply no options are required */
        if (job->op != BNORM_OP_FORWARD_TRAIN && job->op != BNORM_OP_BACKWARD)
            return BNORM_OK;
        job->train = NULL;
        job->grad = NULL;
        return BNORM_NULL_POINTER;
    case 8:
        if (job->op == BNORM_OP_APPLY)
            return BNORM_OK;
        job->ws_size--;
        return BNORM_WORKSPACE_TOO_SMALL;
    case 9:
        if (job->op == BNORM_OP_APPLY)
            return BNORM_OK;
        job->ws = NULL;
        return BNORM_NULL_POINTER;
    case 10:
        if (job->op == BNORM_OP_MOMENTS)
            return BNORM_OK;
        r->args.affine.act = r->args.train.act = r->args.grad.act =
            (bnorm_act){BNORM_ACT_CLAMP, 1, 0};
        return BNORM_BAD_ACTIVATION;
    case 11:
        if (job->op != BNORM_OP_FORWARD_TRAIN)
            return BNORM_OK;
        r->args.train.eps = -1;
        return BNORM_BAD_EPSILON;
    default:
        if (job->op != BNORM_OP_BACKWARD)
            return BNORM_OK;
        r->args.grad.dgamma = r->args.grad.dbeta;
        return BNORM_BAD_OVERLAP;
    }
}
#define WAYS_TO_SPOIL 13

static void test_bad(struct test *t) {
    size_t tried = 0;
    for (size_t round = 0; round < test_repeat(12, 4, 3) * WAYS_TO_SPOIL; round++) {
        const bnorm_exec single = {.isa = t->isa};
        struct mix *m = mix_new(t, &single);
        mix_ready(t, m);
        const size_t at = rng_below(&t->rng, JOBS), second = rng_below(&t->rng, JOBS);
        const bnorm_status want = spoil(&m->ready[at], &m->job[at], round % WAYS_TO_SPOIL);
        if (want != BNORM_OK) {
            if (second > at) /* the first one counts */
                m->job[second].op = (bnorm_op)9;
            unsigned char *before[JOBS];
            for (size_t i = 0; i < JOBS; i++)
                before[i] = snapshot(t, &m->ready[i].fixture);
            const bnorm_exec exec = type_exec(t, round);
            size_t failed = JOBS;
            char text[320];
            test_context(t, "job %zu spoilt in way %zu: %s", at, round % WAYS_TO_SPOIL,
                         call_text(&m->call[at], text));
            check_status(t, "bnorm_run_jobs without failed",
                         bnorm_run_jobs(m->job, JOBS, NULL, &exec), want);
            check_status(t, "bnorm_run_jobs", bnorm_run_jobs(m->job, JOBS, &failed, &exec), want);
            if (failed != at)
                test_fail(t, "*failed is %zu, expected %zu", failed, at);
            for (size_t i = 0; i < JOBS; i++)
                check_snapshot(t, &m->ready[i].fixture, before[i]);
            tried++;
        }
        test_release(t);
    }
    if (tried < WAYS_TO_SPOIL)
        test_fail(t, "only %zu bad jobs were tried", tried);
}

/* A bad exec is no job's fault: nothing is written, failed included or not. */
static void test_exec(struct test *t) {
    const bnorm_shape shape = {.n = 1, .c = 3, .hw = 1};
    const float x[3] = {1, 2, 3}, before[3] = {7, 8, 9};
    float y[3] = {7, 8, 9};
    const bnorm_job job = {.op = BNORM_OP_APPLY, .shape = &shape, .x = {x, 0, 0}, .out = {y, 0, 0}};
    const bnorm_exec bad[] = {{.isa = t->isa, .memory = (bnorm_memory)4},
                              {.isa = t->isa, .denormals = (bnorm_denormals)2}};
    for (size_t i = 0; i < COUNT_OF(bad); i++) {
        size_t failed = 0;
        check_status(t, "a bad exec", bnorm_run_jobs(&job, 1, &failed, &bad[i]), BNORM_BAD_ENUM);
        check_bits(t, "y", y, before, 3);
    }
}

void add_jobs(struct suite *s) {
    static const struct {
        const char *name;
        test_fn run;
    } cases[] = {
        {"jobs/%s/mixes", test_mixes}, {"jobs/%s/no-exec", test_no_exec},
        {"jobs/%s/flush", test_flush}, {"jobs/%s/many", test_many},
        {"jobs/%s/few", test_few},     {"jobs/%s/empty", test_empty},
        {"jobs/%s/bad", test_bad},     {"jobs/%s/exec", test_exec},
        {"jobs/%s/alike", test_alike},
    };
    for (size_t i = 0; i < COUNT_OF(cases); i++)
        suite_add_per_isa(s, cases[i].run, NULL, cases[i].name);
}
