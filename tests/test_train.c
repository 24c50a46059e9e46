/* SPDX-License-Identifier: MIT
 *
 * bnorm_moments and bnorm_forward_train: the scalar set against the oracle, every set against the
 * scalar set's bits, and the edge cases with what they must give exactly. */
#include "calls.h"
#include "oracle.h"

#include <math.h>
#include <string.h>

/* Random options; `act` picks the activation. */
static void problem_new(struct test *t, struct problem *p, const bnorm_shape *shape,
                        enum values values, size_t act) {
    static const double rates[] = {0, .1, 1, -1.2};
    static const double epsilons[] = {1e-3, 1e-5, 1e-9};
    struct rng *r = &t->rng;
    *p = (struct problem){.call = random_call(t, BNORM_OP_FORWARD_TRAIN, shape)};
    p->call.act = random_act(r, (bnorm_act_kind)(act % ACT_KINDS));
    p->call.omit = rng_below(r, 4) ? 0 : OMIT_MEAN;
    p->call.eps = epsilons[rng_below(r, 3)];
    p->call.rate = rates[rng_below(r, 4)];
    p->call.variance = (bnorm_variance)rng_below(r, 2);
    p->call.dense = 0;
    p->call.elsewhere = rng_below(r, 4) == 0;
    p->call.what = values_name(values);
    data_new(t, &p->data, shape);
    if (values != VALUES_NORMAL)
        data_fill(t, &p->data, values, BNORM_F32);
}

/* Without invstd and the running statistics, too: y stays the same. */
static void check_sides(struct test *t, const struct problem *p, enum target target) {
    struct call call = p->call;
    call.out = target;
    if (rng_below(&t->rng, 4) == 0)
        call.omit |= OMIT_INVSTD | OMIT_RUNNING;
    if (targets_fit(&call))
        problem_check_sides(t, p, &call);
}

/* ---------------------------------------------------------------------------------------------- */

/* Every edge of sizes, each with other options and values. */
static void test_sizes(struct test *t) {
    const struct shape_list *list = edge_shapes(layout_of(t));
    for (size_t s = 0; s < list->count; s++) {
        if (!test_draws(t, 3))
            continue;
        struct problem p;
        problem_new(t, &p, &list->shapes[s], s % 3 ? VALUES_NORMAL : VALUES_MEAN_1E6, s);
        problem_solve(t, &p);
        check_sides(t, &p, p.call.out);
        test_release(t);
    }
}

/* Every combination of options on a few shapes. */
static void test_options(struct test *t) {
    const struct shape_list *list = small_shapes(layout_of(t));
    for (size_t s = 0; s < list->count; s++)
        for (size_t kind = 0; kind < ACT_KINDS; kind++)
            for (int mask = 0; mask < 32; mask++) {
                const size_t c = list->shapes[s].c;
                struct problem p;
                problem_new(t, &p, &list->shapes[s], VALUES_NORMAL, kind);
                p.call.residual = mask & 1;
                p.data.gamma = uniform_floats(t, mask & 2, c, -2, 2);
                p.data.beta = uniform_floats(t, mask & 4, c, -2, 2);
                p.call.omit = mask & 8 ? 0 : OMIT_MEAN;
                p.call.lo = mask >> 4 & 1;
                problem_solve(t, &p);
                for (int target = OWN; target < NOWHERE; target++)
                    check_sides(t, &p, (enum target)target);
                test_release(t);
            }
}

static void test_misaligned(struct test *t) {
    const struct shape_list *list = small_shapes(layout_of(t));
    for (size_t s = 0; s < list->count; s++) {
        struct problem p;
        problem_new(t, &p, &list->shapes[s], VALUES_NORMAL, s);
        p.call.residual = 1;
        problem_solve(t, &p);
        problem_check_shifts(t, &p, 16, 1);
        test_release(t);
    }
}

/* Values that lose accuracy, overflow or vanish where statistics are not computed with care. */
static void test_values(struct test *t) {
    static const double epsilons[] = {1e-3, 1e-9, 0};
    const struct shape_list *list = value_shapes(layout_of(t));
    for (size_t s = 0; s < list->count; s++)
        for (int kind = 0; kind < VALUES_COUNT; kind++)
            for (size_t e = 0; e < COUNT_OF(epsilons); e++) {
                struct problem p;
                problem_new(t, &p, &list->shapes[s], (enum values)kind, s + e + (size_t)kind);
                p.call.eps = epsilons[e];
                if (kind == VALUES_DENORMAL && e == 2)
                    p.call.eps = 1e-30; /* 1/deviation would overflow */
                problem_solve(t, &p);
                check_sides(t, &p, p.call.out);
                test_release(t);
            }
}

/* bnorm_moments alone, with either output missing. */
static void test_moments(struct test *t) {
    const struct shape_list *list = edge_shapes(layout_of(t));
    for (size_t s = 0; s < list->count; s++) {
        if (!test_draws(t, 3))
            continue;
        struct problem p;
        problem_new(t, &p, &list->shapes[s], (enum values)(s % VALUES_COUNT), s);
        p.call.op = BNORM_OP_MOMENTS;
        p.call.omit = 0;
        problem_solve(t, &p);
        for (size_t i = 0; i < 2; i++) {
            const size_t missing = rng_below(&t->rng, 6);
            p.call.omit = missing == 0 ? OMIT_MEAN : missing == 1 ? OMIT_VAR : 0;
            problem_check_sides(t, &p, &p.call);
        }
        test_release(t);
    }
}

/* ---------------------------------------------------------------------------------------------- */
/* What has to come out exactly. `one call` on dense data with the case's set. */

static void train_dense(struct test *t, const bnorm_shape *shape, const float *x, float *y,
                        const bnorm_train *train) {
    const bnorm_exec exec = {.isa = t->isa};
    const size_t ws_size = bnorm_workspace(BNORM_OP_FORWARD_TRAIN, shape);
    check_status(t, "bnorm_forward_train",
                 bnorm_forward_train(shape, (bnorm_in){x, 0, 0}, (bnorm_out){y, 0, 0}, train,
                                     test_alloc(t, ws_size), ws_size, &exec),
                 BNORM_OK);
}

/* A constant channel (also n = 1): the mean is the value, the variance 0, y = act(beta + residual),
 * also for eps = 0, where invstd is 0. */
static void test_constant(struct test *t) {
    const bnorm_exec exec = {.isa = t->isa};
    const struct shape_list *list = edge_shapes(layout_of(t));
    for (size_t s = 0; s < list->count; s++) {
        if (!test_draws(t, 3))
            continue;
        const bnorm_shape *shape = &list->shapes[s];
        const size_t c = shape->c;
        struct problem p;
        problem_new(t, &p, shape, VALUES_CONSTANT, s % (ACT_KINDS - 1)); /* not HARD_SWISH */
        p.call.eps = s % 2 ? 1e-3 : 0;
        p.call.omit = 0;
        p.call.lo = 1;
        p.call.rate = 1;
        p.data.beta = uniform_floats(t, 1, c, -2, 2);
        const struct results got = run_call(t, &p.call, &p.data, &exec);
        for (size_t i = 0; i < c; i++) {
            check_bits(t, "save_mean", &got.mean[i], &p.data.x[i * shape->hw], 1);
            check_near(t, "save_mean_lo", i, got.lo[i], 0, 0);
            check_near(t, "save_invstd", i, got.invstd[i],
                       p.call.eps > 0 ? 1 / sqrt(p.call.eps) : 0, 0x1p-19);
            check_near(t, "running variance", i, got.running_var[i], 0, 0x1p-51);
        }
        for (size_t i = 0; i < data_count(&p.data); i++) {
            float v = p.data.beta[i / shape->hw % c];
            if (p.call.residual)
                v += p.data.residual[i];
            const float want = (float)oracle_act(p.call.act, (double)v);
            check_near(t, "y", i, got.y[i], (double)want, 0);
        }
        test_release(t);
    }
}

/* A NaN or infinity spoils its own channel, with the one NaN of bnorm, and no other bit. */
static void test_nan(struct test *t) {
    const float bad[] = {bits_float(0xffc00001u), bits_float(0x7fa00000u), INFINITY, -INFINITY};
    const struct shape_list *list = value_shapes(layout_of(t));
    for (size_t s = 0; s < list->count; s++)
        for (size_t b = 0; b < COUNT_OF(bad); b++) {
            struct problem p;
            problem_new(t, &p, &list->shapes[s], VALUES_NORMAL, s + b);
            p.call.act.kind = b % 2 ? BNORM_ACT_RELU : p.call.act.kind;
            p.call.omit = 0;
            p.call.lo = 1;
            p.call.rate = .1;
            problem_solve(t, &p);
            const size_t count = data_count(&p.data), hw = p.data.hw, c = p.data.c;
            const size_t where = rng_below(&t->rng, count), spoilt = where / hw % c;
            p.data.x[where] = bad[b];
            const float nan_value = bits_float(NAN_BITS);
            struct results *w = &p.want;
            w->mean[spoilt] = w->lo[spoilt] = w->invstd[spoilt] = nan_value;
            w->running_mean[spoilt] = w->running_var[spoilt] = nan_value;
            for (size_t i = 0; i < count; i++)
                if (i / hw % c == spoilt)
                    w->y[i] = nan_value;
            check_sides(t, &p, p.call.out);
            test_release(t);
        }
}

/* N = 0 or HW = 0: nothing is touched, no workspace is needed, data may be NULL. */
static void test_empty(struct test *t) {
    const bnorm_exec exec = {.isa = t->isa};
    for (int which = 0; which < 3; which++) {
        const bnorm_shape shape = {
            .layout = layout_of(t), .n = which == 1 ? 3 : 0, .c = 3, .hw = which == 0 ? 7 : 0};
        const float before[3] = {1, 2, 3};
        float a[6][3], x[3] = {0};
        for (size_t i = 0; i < 6; i++)
            memcpy(a[i], before, sizeof before);
        char text[96];
        test_context(t, "%s", shape_text(&shape, text));
        const bnorm_train train = {
            .eps = 1e-3,
            .running = {.mean = a[0], .var = a[1], .rate = 1, .variance = BNORM_VARIANCE_SAMPLE},
            .save_mean = a[2],
            .save_invstd = a[3],
            .save_mean_lo = a[4]};
        if (bnorm_workspace(BNORM_OP_FORWARD_TRAIN, &shape) ||
            bnorm_workspace(BNORM_OP_MOMENTS, &shape))
            test_fail(t, "bnorm_workspace() is not 0 for an empty batch");
        check_status(t, "bnorm_forward_train on NULL",
                     bnorm_forward_train(&shape, (bnorm_in){NULL, 0, 0}, (bnorm_out){NULL, 0, 0},
                                         &train, NULL, 0, &exec),
                     BNORM_OK);
        check_status(t, "bnorm_forward_train",
                     bnorm_forward_train(&shape, (bnorm_in){x, 0, 0}, (bnorm_out){a[5], 0, 0},
                                         &train, NULL, 0, &exec),
                     BNORM_OK);
        check_status(t, "bnorm_moments",
                     bnorm_moments(&shape, (bnorm_in){NULL, 0, 0}, a[2], a[3], NULL, 0, &exec),
                     BNORM_OK);
        for (size_t i = 0; i < 6; i++)
            check_bits(t, "an output", a[i], before, 3);
    }
}

/* ---------------------------------------------------------------------------------------------- */
/* Worked examples, as users know them from the frameworks                                        */

static void test_examples(struct test *t) {
    const bnorm_layout layout = layout_of(t);
    {
        test_context(t, "x = [3, 4] as two samples of one feature");
        const bnorm_shape shape = {.layout = layout, .n = 2, .c = 1, .hw = 1};
        const float x[2] = {3, 4};
        float y[2];
        train_dense(t, &shape, x, y, &(bnorm_train){.eps = 1e-3});
        check_near(t, "y", 0, y[0], -.998005980, 1e-7);
        check_near(t, "y", 1, y[1], .998005980, 1e-7);
    }
    {
        test_context(t, "x = [[3, 4]], one sample of two features");
        const bnorm_shape shape = {.layout = layout, .n = 1, .c = 2, .hw = 1};
        const float x[2] = {3, 4};
        float y[2] = {1, 1}, mean[2] = {0, 0}, var[2] = {1, 1};
        train_dense(t, &shape, x, y,
                    &(bnorm_train){.eps = 1e-3,
                                   .running = {.mean = mean,
                                               .var = var,
                                               .rate = 1,
                                               .variance = BNORM_VARIANCE_SAMPLE}});
        for (size_t i = 0; i < 2; i++) {
            check_near(t, "y", i, y[i], 0, 0);
            check_near(t, "running mean", i, mean[i], (double)x[i], 0);
            check_near(t, "running variance", i, var[i], 0, 0); /* n/max(n - 1, 1) */
        }
    }
    {
        test_context(t, "x = 5, 7, ... 15 in two channels, scale 4, offset 2");
        const bnorm_shape shape = {.layout = layout, .n = 1, .c = 2, .hw = 6};
        const float gamma[2] = {4, 4}, beta[2] = {2, 2};
        float x[12], y[12], mean[2] = {0, 0}, var[2] = {0, 0};
        for (size_t c = 0; c < 2; c++)
            for (size_t p = 0; p < 6; p++)
                x[layout == BNORM_NHWC ? p * 2 + c : c * 6 + p] = (float)(5 + 2 * p);
        train_dense(t, &shape, x, y,
                    &(bnorm_train){.gamma = gamma,
                                   .beta = beta,
                                   .eps = 1e-3,
                                   .running = {.mean = mean,
                                               .var = var,
                                               .rate = 1,
                                               .variance = BNORM_VARIANCE_SAMPLE}});
        for (size_t c = 0; c < 2; c++) {
            check_near(t, "running mean", c, mean[c], 10, 0);
            check_near(t, "running variance", c, var[c], 14, 1e-6);
        }
        for (size_t i = 0; i < 12; i++)
            check_near(t, "y", i, y[i], 4 * ((double)x[i] - 10) / sqrt(35.0 / 3 + 1e-3) + 2, 2e-6);
    }
    {
        test_context(t, "mean 1e6, deviation 1, n = 100352, any order: a few ulp");
        const bnorm_shape shape = {.layout = layout, .n = 32, .c = 1, .hw = 3136};
        const size_t n = 100352;
        float *x = test_floats(t, n), *y = test_floats(t, n);
        fill_values(&t->rng, &shape, VALUES_MEAN_1E6, x);
        const struct oracle_stats e = {test_doubles(t, 1), NULL, test_doubles(t, 1), NULL};
        oracle_moments(&shape, to_double(t, x, n), &e);
        for (int order = 0; order < 4; order++) {
            float mean, invstd;
            train_dense(t, &shape, x, y,
                        &(bnorm_train){.save_mean = &mean, .save_invstd = &invstd});
            check_near(t, "save_mean", 0, mean, e.mean[0], .03125);
            check_near(t, "save_invstd", 0, invstd, 1 / sqrt(e.var[0]), 3e-7);
            for (size_t i = 0; i < n; i++) /* the mean's 48 bits: no 0.03 of error */
                check_near(t, "y", i, y[i], ((double)x[i] - e.mean[0]) / sqrt(e.var[0]), 4e-6);
            for (size_t i = n; i > 1; i--) {
                const size_t j = rng_below(&t->rng, i);
                const float swap = x[i - 1];
                x[i - 1] = x[j];
                x[j] = swap;
            }
        }
    }
}

/* Running statistics: kinds of variance and rates, and what rate 0 and 1 mean to the bit. */
static void test_running(struct test *t) {
    static const double rates[] = {0, .1, 1, -1.2, 1e-3, 2};
    const struct shape_list *list = small_shapes(layout_of(t));
    for (size_t s = 0; s < list->count; s++)
        for (size_t r = 0; r < COUNT_OF(rates); r++)
            for (int kind = 0; kind < 2; kind++) {
                struct problem p;
                problem_new(t, &p, &list->shapes[s], VALUES_NORMAL, s);
                p.call.rate = rates[r];
                p.call.variance = (bnorm_variance)kind;
                p.call.omit = 0;
                problem_solve(t, &p);
                check_sides(t, &p, OWN);
                const size_t c = p.data.c;
                if (r == 0) {
                    check_bits(t, "running mean at rate 0", p.want.running_mean,
                               p.data.running_mean, c);
                    check_bits(t, "running variance at rate 0", p.want.running_var,
                               p.data.running_var, c);
                }
                if (r == 2)
                    check_bits(t, "running mean at rate 1", p.want.running_mean, p.want.mean, c);
                test_release(t);
            }
}

void add_train(struct suite *s) {
    static const struct layout_case cases[] = {
        {"train", "sizes", test_sizes},           {"train", "options", test_options},
        {"train", "misaligned", test_misaligned}, {"train", "values", test_values},
        {"train", "constant", test_constant},     {"train", "nan", test_nan},
        {"train", "empty", test_empty},           {"train", "examples", test_examples},
        {"train", "running", test_running},       {"moments", "sizes", test_moments},
    };
    add_layout_cases(s, cases, COUNT_OF(cases));
}
