/* SPDX-License-Identifier: MIT
 *
 * Weighted statistics, batch renormalization, ghost batches, and one statistic per activation. The
 * oracle is checked against central differences, the scalar set against the oracle, every set,
 * layout of memory, type and number of threads against the scalar set's bits, and the variants
 * against each other and against the plain calls. */
#include "oracle.h"
#include "variants.h"

#include <float.h>
#include <math.h>
#include <stdio.h>
#include <string.h>

/* ---------------------------------------------------------------------------------------------- */
/* Weights                                                                                        */

static void test_weights(struct test *t) {
    for (size_t i = 0; i < PROBLEM_SHAPES; i++)
        for (int kind = WEIGHTS_RANDOM; kind < WEIGHTS_COUNT; kind++) {
            if (!test_draws(t, 3))
                continue;
            const bnorm_dtype dtype = problem_dtype(i + (size_t)kind);
            const bnorm_shape shape = problem_shape(t, i, dtype);
            struct problem p;
            problem_new(t, &p, &shape, (enum weights)kind);
            const struct results saved = problem_forward(t, &p, dtype);
            problem_backward(t, &p, &saved, dtype);
            test_release(t);
        }
}

/* Values that lose accuracy, overflow or vanish where statistics are not computed with care. */
static void test_weighted_values(struct test *t) {
    static const size_t which[] = {8, 13, 15, 16, 17};
    for (size_t s = 0; s < COUNT_OF(which); s++)
        for (int values = 0; values < VALUES_COUNT; values++)
            for (int kind = WEIGHTS_RANDOM; kind <= WEIGHTS_PADDING; kind++) {
                if (!test_draws(t, 2))
                    continue;
                const bnorm_shape shape = problem_shape(t, which[s], BNORM_F32);
                struct problem p;
                problem_new(t, &p, &shape, (enum weights)kind);
                data_fill(t, &p.data, (enum values)values, BNORM_F32);
                p.call.what = values_name((enum values)values);
                if (values == VALUES_HUGE || values == VALUES_CONSTANT)
                    p.call.epsilon = 0; /* what it adds to var is then not small beside it */
                const struct results saved = problem_forward(t, &p, BNORM_F32);
                if (values == VALUES_NORMAL || values == VALUES_MEAN_1E6)
                    problem_backward(t, &p, &saved, BNORM_F32);
                test_release(t);
            }
}

static void test_weighted_moments(struct test *t) {
    for (size_t i = 0; i < PROBLEM_SHAPES; i++)
        for (int kind = WEIGHTS_NONE; kind < WEIGHTS_COUNT; kind++) {
            if (!test_draws(t, 2))
                continue;
            const bnorm_dtype dtype = problem_dtype(i + (size_t)kind);
            const bnorm_shape shape = problem_shape(t, i, dtype);
            struct problem p;
            problem_new(t, &p, &shape, (enum weights)kind);
            struct call call = p.call;
            call.op = BNORM_OP_MOMENTS;
            struct results want = run_scalar(t, &call, &p.data);
            if (is_scalar(t))
                check_moments(t, &call, &p.data, &want);
            problem_compare(t, &p, &call, &want, dtype);
            test_release(t);
        }
}

/* Either output or the whole struct may be missing; without weights the bits are bnorm_moments'. */
static void test_moments_options(struct test *t) {
    const bnorm_exec exec = {.isa = t->isa};
    for (size_t i = 0; i < PROBLEM_SHAPES; i++) {
        const bnorm_shape shape = problem_shape(t, i, BNORM_F32);
        const size_t count = shape_count(&shape), c = shape.c;
        const size_t ws_size = bnorm_workspace(BNORM_OP_MOMENTS, &shape);
        const bnorm_in x = {uniform_floats(t, 1, count, -2, 2), 0, 0};
        float *mean = test_floats(t, c), *var = test_floats(t, c), *want_mean = test_floats(t, c),
              *want_var = test_floats(t, c);
        void *ws = test_alloc(t, ws_size);
        const bnorm_weights weighted = {new_weights(t, WEIGHTS_RANDOM, shape.n, shape.hw), 1e-7};
        const bnorm_weights none = {NULL, 0};
        char text[96];
        test_context(t, "%s", shape_text(&shape, text));
        check_status(t, "bnorm_moments",
                     bnorm_moments(&shape, x, want_mean, want_var, ws, ws_size, &exec), BNORM_OK);
        for (int k = 0; k < 2; k++) {
            check_status(
                t, "bnorm_weighted_moments without weights",
                bnorm_weighted_moments(&shape, x, k ? &none : NULL, mean, var, ws, ws_size, &exec),
                BNORM_OK);
            check_bits(t, "mean without weights", mean, want_mean, c);
            check_bits(t, "var without weights", var, want_var, c);
        }
        check_status(
            t, "bnorm_weighted_moments",
            bnorm_weighted_moments(&shape, x, &weighted, want_mean, want_var, ws, ws_size, &exec),
            BNORM_OK);
        check_status(t, "with var NULL",
                     bnorm_weighted_moments(&shape, x, &weighted, mean, NULL, ws, ws_size, &exec),
                     BNORM_OK);
        check_status(t, "with mean NULL",
                     bnorm_weighted_moments(&shape, x, &weighted, NULL, var, ws, ws_size, &exec),
                     BNORM_OK);
        check_bits(t, "mean", mean, want_mean, c);
        check_bits(t, "var", var, want_var, c);
        test_release(t);
    }
}

/* What lies where the weight is 0, or -0, reaches only its own y: statistics are to the bit those
 * with 0 there. */
static void test_masked(struct test *t) {
    const float garbage[] = {bits_float(0xffc54321u), bits_float(0x7fa00000u), INFINITY, -INFINITY,
                             1e30f};
    for (size_t i = 0; i < PROBLEM_SHAPES; i++)
        for (int kind = WEIGHTS_MASK; kind <= WEIGHTS_FEW; kind++) {
            if (!test_draws(t, 2))
                continue;
            const bnorm_shape shape = problem_shape(t, i, BNORM_F32);
            struct problem p;
            problem_new(t, &p, &shape, (enum weights)kind);
            p.call.what = "garbage where the weight is 0";
            const size_t count = data_count(&p.data);
            float *weights = copy_floats(t, p.data.weights, shape.n * shape.hw);
            float *zeroed = copy_floats(t, p.data.x, count);
            for (size_t k = 0; k < count; k++) {
                const size_t at = k / (shape.c * shape.hw) * shape.hw + k % shape.hw;
                if (weights[at] > 0)
                    continue;
                weights[at] = k % 2 ? -0.0f : 0;
                zeroed[k] = 0;
                p.data.x[k] = garbage[rng_below(&t->rng, COUNT_OF(garbage))];
            }
            p.data.weights = weights;
            const struct results got = problem_forward(t, &p, BNORM_F32);
            p.data.x = zeroed;
            const struct results saved = run_scalar(t, &p.call, &p.data);
            struct results want = saved;
            want.y = NULL;
            want.mask = NULL;
            check_results(t, &got, &want, &p.data);
            problem_backward(t, &p, &saved, BNORM_F32);
            test_release(t);
        }
}

/* Without any weight: 0/0, or statistics of 0 where epsilon is there. */
static void test_no_weight(struct test *t) {
    const float nan_value = bits_float(NAN_BITS);
    for (size_t i = 0; i < PROBLEM_SHAPES; i++)
        for (int k = 0; k < 2; k++) {
            const bnorm_shape shape = problem_shape(t, i, BNORM_F32);
            struct problem p;
            problem_new(t, &p, &shape, WEIGHTS_MASK);
            p.data.weights = test_floats(t, shape.n * shape.hw);
            p.call.epsilon = k ? 1e-7 : 0;
            p.call.what = "all weights 0";
            const struct results got = problem_forward(t, &p, BNORM_F32);
            for (size_t c = 0; k == 0 && c < shape.c; c++) {
                check_bits(t, "save_mean", &got.mean[c], &nan_value, 1);
                check_bits(t, "save_invstd", &got.invstd[c], &nan_value, 1);
            }
            for (size_t e = 0; k == 0 && e < data_count(&p.data); e++)
                check_bits(t, "y", &got.y[e], &nan_value, 1);
            test_release(t);
        }
}

/* A NaN or infinity that has weight spoils its own channel, and no other bit. */
static void test_variant_nan(struct test *t) {
    const float bad[] = {bits_float(0xffc00001u), bits_float(0x7fa00000u), INFINITY, -INFINITY};
    const float nan_value = bits_float(NAN_BITS);
    for (size_t i = 0; i < PROBLEM_SHAPES; i++)
        for (int renorm = 0; renorm < 2; renorm++) {
            const bnorm_shape shape = problem_shape(t, i, BNORM_F32);
            struct problem p;
            problem_new(t, &p, &shape, renorm && i % 2 ? WEIGHTS_NONE : WEIGHTS_RANDOM);
            if (renorm)
                problem_add_renorm(t, &p);
            p.call.mask = 0;
            p.call.what = "a NaN in x";
            struct results want = run_scalar(t, &p.call, &p.data);
            const size_t count = data_count(&p.data), where = rng_below(&t->rng, count);
            const size_t channel = where / shape.hw % shape.c;
            if (p.data.weights) {
                const size_t at = where / (shape.c * shape.hw) * shape.hw + where % shape.hw;
                if (!(p.data.weights[at] > 0))
                    continue;
            }
            p.data.x[where] = bad[rng_below(&t->rng, COUNT_OF(bad))];
            float *const arrays[] = {want.mean, want.invstd, want.lo, want.var};
            for (size_t k = 0; k < COUNT_OF(arrays); k++)
                if (arrays[k])
                    arrays[k][channel] = nan_value;
            if (p.data.running_mean && p.call.rate != 0) /* which keeps the old values */
                want.running_mean[channel] = want.running_var[channel] = nan_value;
            for (size_t e = 0; e < count; e++)
                if (e / shape.hw % shape.c == channel)
                    want.y[e] = nan_value;
            struct results got = problem_elsewhere(t, &p, &p.call, BNORM_F32);
            if (renorm) /* what these become is not said */
                got.r[channel] = want.r[channel], got.d[channel] = want.d[channel];
            check_results(t, &got, &want, &p.data);
            test_release(t);
        }
}

/* Both are within the bounds of what is exact. */
static void check_same_value(struct test *t, const char *what, size_t index, float a, float b,
                             wide bound) {
    check_wide(t, what, index, a, (wide)b, 2 * bound);
}

/* All weights 1, epsilon 0: near the call without weights. */
static void test_unit_weights(struct test *t) {
    for (size_t i = 0; i < PROBLEM_SHAPES; i++) {
        const bnorm_shape shape = problem_shape(t, i, BNORM_F32);
        const size_t c = shape.c, positions = shape.n * shape.hw;
        struct problem p;
        problem_new(t, &p, &shape, WEIGHTS_NONE);
        p.call.what = "all weights 1";
        p.call.act = (bnorm_act){.kind = BNORM_ACT_IDENTITY};
        p.call.mask = 0;
        p.call.lo = 1;
        const size_t count = data_count(&p.data);
        float *ones = test_floats(t, positions);
        for (size_t k = 0; k < positions; k++)
            ones[k] = 1;
        const bnorm_exec exec = {.isa = t->isa};
        const struct results plain = run_call(t, &p.call, &p.data, &exec);
        p.data.weights = ones;
        const struct results got = run_call(t, &p.call, &p.data, &exec);
        const struct wide_data w = wide_data(t, &p.call, &p.data);
        const struct wide_stats s = wide_stats(t, &w);
        const struct wide_forward e = {.bound = test_alloc(t, count * sizeof(wide))};
        wide_forward(&w, &s, &e);
        for (size_t k = 0; k < c; k++) {
            check_same_value(t, "save_mean", k, got.mean[k], plain.mean[k],
                             s.mean_bound[k] + 0x1p-24L * fabsl(s.mean[k]));
            check_same_value(t, "save_invstd", k, got.invstd[k], plain.invstd[k],
                             s.invstd_bound[k] + 0x1p-24L * s.invstd[k]);
        }
        for (size_t k = 0; k < count; k++)
            check_same_value(t, "y", k, got.y[k], plain.y[k], e.bound[k]);

        data_take(&p.data, &got);
        const struct call call = problem_backward_call(t, &p, &got);
        const struct results dx = run_call(t, &call, &p.data, &exec);
        p.data.weights = NULL;
        const struct results plain_dx = run_call(t, &call, &p.data, &exec);
        check_bits(t, "dgamma", dx.dgamma, plain_dx.dgamma, c);
        check_bits(t, "dbeta", dx.dbeta, plain_dx.dbeta, c);
        check_bits(t, "dresidual", dx.dresidual, plain_dx.dresidual, count);
        if (is_scalar(t)) /* both within the same bounds */
            check_backward(t, &call, &p.data, &plain_dx);
        p.data.weights = ones;
        if (is_scalar(t))
            check_backward(t, &call, &p.data, &dx);
        test_release(t);
    }
}

/* Weights 0 and 1: the statistics of what has weight 1, as a smaller batch. */
static void test_compacted(struct test *t) {
    const bnorm_exec exec = {.isa = t->isa};
    for (size_t i = 0; i < PROBLEM_SHAPES; i++)
        for (int mean_1e6 = 0; mean_1e6 < 2; mean_1e6++) {
            const bnorm_shape shape = problem_shape(t, i, BNORM_F32);
            struct problem p;
            problem_new(t, &p, &shape, i % 2 ? WEIGHTS_MASK : WEIGHTS_PADDING);
            if (mean_1e6)
                data_fill(t, &p.data, VALUES_MEAN_1E6, BNORM_F32);
            p.call.epsilon = 0;
            p.call.op = BNORM_OP_MOMENTS;
            const size_t positions = shape.n * shape.hw;
            struct data few = p.data; /* one image of as many positions */
            few.n = 1;
            few.weights = NULL;
            few.hw = 0;
            for (size_t k = 0; k < positions; k++)
                few.hw += p.data.weights[k] > 0;
            few.x = test_floats(t, few.c * few.hw);
            for (size_t c = 0; c < few.c; c++)
                for (size_t k = 0, q = 0; k < positions; k++)
                    if (p.data.weights[k] > 0)
                        few.x[c * few.hw + q++] =
                            p.data.x[(k / shape.hw * shape.c + c) * shape.hw + k % shape.hw];
            const struct results got = run_call(t, &p.call, &p.data, &exec);
            const struct wide_data w = wide_data(t, &p.call, &p.data);
            const struct wide_stats s = wide_stats(t, &w);
            struct call call = p.call;
            call.shape.n = 1;
            call.shape.hw = few.hw;
            const struct results want = run_call(t, &call, &few, &exec);
            for (size_t c = 0; c < few.c; c++) {
                /* Both may be off. */
                check_same_value(t, "mean", c, got.mean[c], want.mean[c],
                                 2 * (s.mean_bound[c] + 0x1p-24L * fabsl(s.mean[c])));
                check_same_value(t, "var", c, got.var[c], want.var[c],
                                 2 * (s.var_bound[c] + 0x1p-24L * s.var[c] + 0x1p-149L));
            }
            test_release(t);
        }
}

/* With frozen statistics weights are ignored, whatever they are. */
static void test_frozen_weights(struct test *t) {
    for (size_t i = 0; i < PROBLEM_SHAPES; i++) {
        const bnorm_shape shape = problem_shape(t, i, BNORM_F32);
        struct problem p;
        problem_new(t, &p, &shape, WEIGHTS_NONE);
        p.call.what = "frozen";
        struct call call = p.call;
        call.op = BNORM_OP_BACKWARD;
        call.mask = 0;
        call.frozen = 1;
        struct results want = run_scalar(t, &call, &p.data);
        float *weights = new_weights(t, WEIGHTS_RANDOM, shape.n, shape.hw);
        if (i % 2)
            weights[0] = -1;
        p.data.weights = weights;
        call.epsilon = .5;
        problem_compare(t, &p, &call, &want, BNORM_F32);
        test_release(t);
    }
}

/* ---------------------------------------------------------------------------------------------- */
/* Batch renormalization                                                                          */

static void test_renorm(struct test *t) {
    for (size_t i = 0; i < PROBLEM_SHAPES; i++)
        for (int weighted = 0; weighted < (int)test_repeat(4, 2, 2); weighted++) {
            if (!test_draws(t, 2))
                continue;
            const bnorm_dtype dtype = problem_dtype(i + (size_t)weighted);
            const bnorm_shape shape = problem_shape(t, i, dtype);
            struct problem p;
            problem_new(t, &p, &shape, weighted % 2 ? WEIGHTS_RANDOM : WEIGHTS_NONE);
            problem_add_renorm(t, &p);
            if (weighted > 1 && dtype == BNORM_F32)
                data_fill(t, &p.data, VALUES_MEAN_1E6, BNORM_F32);
            const struct results saved = problem_forward(t, &p, dtype);
            problem_backward(t, &p, &saved, dtype);
            test_release(t);
        }
}

/* r = 1 and d = 0 change no bit of forward or backward, but for the sign of a dgamma that is 0. */
static void test_renorm_plain(struct test *t) {
    for (size_t i = 0; i < PROBLEM_SHAPES; i++)
        for (int weighted = 0; weighted < 2; weighted++) {
            const bnorm_shape shape = problem_shape(t, i, BNORM_F32);
            struct problem p;
            problem_new(t, &p, &shape, weighted ? WEIGHTS_RANDOM : WEIGHTS_NONE);
            problem_add_renorm(t, &p);
            p.limits = (bnorm_renorm){1, 1, 0, NULL, NULL};
            p.call.what = "r = 1, d = 0";
            const size_t c = shape.c;
            float *ones = test_floats(t, c), *zeros = test_floats(t, c);
            for (size_t k = 0; k < c; k++)
                ones[k] = 1;
            p.call.renorm = NULL;
            struct results want = run_scalar(t, &p.call, &p.data);
            p.call.renorm = &p.limits;
            const struct results got = problem_elsewhere(t, &p, &p.call, BNORM_F32);
            check_results(t, &got, &want, &p.data);
            check_bits(t, "r", got.r, ones, c);
            for (size_t k = 0; k < c; k++) /* either zero */
                check_near(t, "d", k, got.d[k], 0, 0);
            data_take(&p.data, &got);
            const struct call call = problem_backward_call(t, &p, &got);
            p.data.r = p.data.d = NULL;
            want = run_scalar(t, &call, &p.data);
            p.data.r = ones;
            p.data.d = zeros;
            struct results dx = problem_elsewhere(t, &p, &call, BNORM_F32);
            for (size_t k = 0; k < c; k++) {
                dx.dgamma[k] += 0.0f;
                want.dgamma[k] += 0.0f;
            }
            check_results(t, &dx, &want, &p.data);
            test_release(t);
        }
}

/* Without limits, y is what the running statistics make of x. */
static void test_renorm_unlimited(struct test *t) {
    for (size_t i = 0; i < PROBLEM_SHAPES; i++) {
        const bnorm_shape shape = problem_shape(t, i, BNORM_F32);
        struct problem p;
        problem_new(t, &p, &shape, i % 2 ? WEIGHTS_RANDOM : WEIGHTS_NONE);
        problem_add_renorm(t, &p);
        p.limits = (bnorm_renorm){0, INFINITY, INFINITY, NULL, NULL};
        p.call.what = "no limits";
        p.call.act = (bnorm_act){.kind = BNORM_ACT_IDENTITY};
        p.call.mask = 0;
        p.call.eps = 1e-3;
        const struct results got = problem_elsewhere(t, &p, &p.call, BNORM_F32);
        for (size_t c = 0; c < shape.c; c++) { /* both are rounded once */
            const double deviation = sqrt((double)p.data.running_var[c] + 1e-3);
            check_near(t, "r", c, got.r[c], 1 / ((double)got.invstd[c] * deviation),
                       2.01 * 0x1p-24 * (double)got.r[c]);
        }
        for (size_t e = 0; e < data_count(&p.data); e++) {
            const size_t c = e / shape.hw % shape.c;
            const double gamma = p.data.gamma ? (double)p.data.gamma[c] : 1;
            const double deviation = sqrt((double)p.data.running_var[c] + 1e-3);
            const double distance = (double)p.data.x[e] - (double)p.data.running_mean[c];
            const double own = fabs((double)p.data.x[e] - (double)got.mean[c]) +
                               fabs((double)got.mean[c] - (double)p.data.running_mean[c]);
            double want = gamma * distance / deviation;
            want += p.data.beta ? (double)p.data.beta[c] : 0;
            want += p.call.residual ? (double)p.data.residual[e] : 0;
            /* r*invstd has some roundings, what is left of var's error (8u) cancels between them. */
            check_near(t, "y", e, got.y[e], want,
                       16 * 0x1p-24 * (fabs(gamma) * own / deviation + fabs(want) + 4));
        }
        test_release(t);
    }
}

/* To the bit what plain training gives for gamma*r and gamma*d + beta, each rounded once. */
static void test_renorm_substituted(struct test *t) {
    for (size_t i = 0; i < PROBLEM_SHAPES; i++) {
        const bnorm_shape shape = problem_shape(t, i, BNORM_F32);
        struct problem p;
        problem_new(t, &p, &shape, i % 2 ? WEIGHTS_RANDOM : WEIGHTS_NONE);
        problem_add_renorm(t, &p);
        p.call.what = "against other gamma and beta";
        const struct results got = problem_elsewhere(t, &p, &p.call, BNORM_F32);
        struct problem plain = p;
        plain.call.renorm = NULL;
        plain.data.gamma = test_floats(t, shape.c);
        plain.data.beta = test_floats(t, shape.c);
        for (size_t c = 0; c < shape.c; c++) {
            const double gamma = p.data.gamma ? (double)p.data.gamma[c] : 1;
            const double beta = p.data.beta ? (double)p.data.beta[c] : 0;
            plain.data.gamma[c] = (float)(gamma * (double)got.r[c]);
            plain.data.beta[c] = (float)(gamma * (double)got.d[c] + beta);
        }
        const struct results want = run_scalar(t, &plain.call, &plain.data);
        check_results(t, &got, &want, &p.data);
        test_release(t);
    }
}

/* Running statistics whose variance is 0, as eps is. */
static void test_renorm_zero(struct test *t) {
    const bnorm_shape shape = problem_shape(t, 2, BNORM_F32);
    struct problem p;
    problem_new(t, &p, &shape, WEIGHTS_NONE);
    problem_add_renorm(t, &p);
    p.data.running_var = test_floats(t, shape.c);
    p.call.eps = 0;
    p.limits = (bnorm_renorm){.5, 3, 2, NULL, NULL};
    p.call.what = "running variance 0";
    const struct results got = problem_forward(t, &p, BNORM_F32);
    for (size_t c = 0; c < shape.c; c++) {
        const double above = (double)(got.mean[c] - p.data.running_mean[c]);
        check_near(t, "r", c, got.r[c], 3, 0);
        check_near(t, "d", c, got.d[c], above > 0 ? 2 : -2, 0);
    }
}

/* ---------------------------------------------------------------------------------------------- */
/* Ghost batches                                                                                  */

/* How many of n images may form a group, at random. */
static size_t random_groups(struct rng *r, size_t n) {
    size_t groups;
    do
        groups = 1 + rng_below(r, n);
    while (n % groups);
    return groups;
}

/* One call of the scalar set per group on copies of its samples. dgamma and dbeta are sums of
 * floats: see check_ghost_sums. */
static struct results ghost_by_calls(struct test *t, const struct problem *p,
                                     const struct call *call, float *sum_bounds) {
    const bnorm_ghost *ghost = p->call.ghost;
    const bnorm_exec exec = {.isa = scalar_isa()};
    const size_t c = p->data.c, image = c * p->data.hw, count = data_count(&p->data);
    const size_t all = ghost->groups * c;
    struct data data = p->data;
    struct results want = {.groups = ghost->groups};
    const int is_forward = call->op == BNORM_OP_FORWARD_TRAIN;
    if (is_forward) {
        want.mean = test_floats(t, all);
        want.invstd = test_floats(t, all);
        want.lo = call->lo ? test_floats(t, all) : NULL;
        want.var = call->save_var ? test_floats(t, all) : NULL;
        want.y = test_floats(t, count);
    } else {
        want.dx = test_floats(t, count);
        want.dresidual = test_floats(t, count);
        want.dgamma = test_floats(t, c);
        want.dbeta = test_floats(t, c);
    }
    double *sums = test_doubles(t, 4 * c);
    for (size_t g = 0; g < ghost->groups; g++) {
        struct data part = ghost_data(t, &data, ghost, g);
        struct call one = *call;
        one.shape.n = part.n;
        if (call->given_y)
            one.given_y = ghost_tensor(t, call->given_y, &p->data, ghost, g);
        one.ghost = NULL;
        if (!is_forward) {
            part.mean += g * c;
            part.invstd += g * c;
            part.lo = call->lo ? part.lo + g * c : NULL;
        }
        const struct results got = run_call(t, &one, &part, &exec);
        const size_t bytes = c * sizeof(float);
        if (is_forward) {
            memcpy(want.mean + g * c, got.mean, bytes);
            memcpy(want.invstd + g * c, got.invstd, bytes);
            if (want.lo)
                memcpy(want.lo + g * c, got.lo, bytes);
            if (want.var)
                memcpy(want.var + g * c, got.var, bytes);
            if (data.running_mean && ghost->running == BNORM_GHOST_SUCCESSIVE) {
                data.running_mean = want.running_mean = got.running_mean;
                data.running_var = want.running_var = got.running_var;
            }
        }
        for (size_t k = 0; !is_forward && k < c; k++) {
            const double dgamma = (double)got.dgamma[k], dbeta = (double)got.dbeta[k];
            sums[k] += dgamma;
            sums[c + k] += dbeta;
            sums[2 * c + k] += fabs(dgamma);
            sums[3 * c + k] += fabs(dbeta);
        }
        const float *const from[] = {got.y, got.dx, got.dresidual};
        float *const to[] = {want.y, want.dx, want.dresidual};
        for (size_t i = 0; i < part.n; i++)
            for (size_t k = 0; k < COUNT_OF(from); k++)
                if (from[k] && to[k])
                    memcpy(to[k] + ghost_image(ghost, p->data.n, g, i) * image, from[k] + i * image,
                           image * sizeof(float));
    }
    for (size_t k = 0; !is_forward && k < c; k++) {
        want.dgamma[k] = (float)sums[k];
        want.dbeta[k] = (float)sums[c + k];
    }
    /* Each was rounded to a float, and so is the sum. */
    for (size_t k = 0; sum_bounds && k < 2 * c; k++)
        sum_bounds[k] = (float)(0x1.02p-24 * (sums[2 * c + k] + 2 * fabs(sums[k])) + 0x1p-140);
    return want;
}

static void check_ghost_sums(struct test *t, const struct results *got, struct results *want,
                             const float *bounds, size_t c) {
    for (size_t k = 0; k < c; k++) {
        check_near(t, "dgamma", k, got->dgamma[k], (double)want->dgamma[k], (double)bounds[k]);
        check_near(t, "dbeta", k, got->dbeta[k], (double)want->dbeta[k], (double)bounds[c + k]);
    }
    want->dgamma = got->dgamma; /* which all sets have to give */
    want->dbeta = got->dbeta;
}

/* One update with the averages of the groups' statistics; got is the scalar set's. */
static void check_ghost_average(struct test *t, const struct problem *p,
                                const struct results *got) {
    const bnorm_ghost *ghost = p->call.ghost;
    const size_t c = p->data.c;
    const wide rate = p->call.rate, groups = (wide)ghost->groups;
    wide *sums = test_alloc(t, 4 * c * sizeof(wide));
    for (size_t g = 0; g < ghost->groups; g++) {
        const struct data part = ghost_data(t, &p->data, ghost, g);
        const struct wide_data w = wide_data(t, &p->call, &part);
        const struct wide_stats s = wide_stats(t, &w);
        for (size_t k = 0; k < c; k++) {
            const wide n = s.weight[k];
            const wide factor = p->call.variance == BNORM_VARIANCE_SAMPLE ? n / fmaxl(n - 1, 1) : 1;
            sums[k] += s.mean[k] / groups;
            sums[c + k] += factor * s.var[k] / groups;
            sums[2 * c + k] += (s.mean_bound[k] + 8 * 0x1p-53L * fabsl(s.mean[k])) / groups;
            sums[3 * c + k] += factor * (s.var_bound[k] + 8 * 0x1p-53L * s.var[k]) / groups;
        }
    }
    const float *const old[] = {p->data.running_mean, p->data.running_var};
    const float *const new[] = {got->running_mean, got->running_var};
    for (size_t k = 0; k < 2 * c; k++) {
        const wide before = (wide)old[k / c][k % c], want = before + rate * (sums[k] - before);
        /* As many roundings in double as there are groups, and those of the update. */
        check_wide(t, k < c ? "running mean" : "running variance", k % c, new[k / c][k % c], want,
                   fabsl(rate) * (sums[2 * c + k] + groups * 0x1p-53L * fabsl(sums[k])) +
                       0x1p-24L * fabsl(want) + 0x1p-149L +
                       0x1p-51L * (fabsl(before) + fabsl(rate) * (fabsl(before) + fabsl(sums[k]))));
    }
}

static void test_ghost(struct test *t) {
    static const size_t more[][3] = {{12, 5, 17}, {8, 16, 4},  {6, 3, 2100}, {64, 7, 1},
                                     {12, 33, 9}, {4, 1, 257}, {30, 20, 2},  {256, 3, 1}};
    for (size_t i = 0; i < COUNT_OF(more); i++)
        for (int k = 0; k < (int)test_repeat(8, 4, 4); k++) {
            if (!test_draws(t, 2))
                continue;
            const bnorm_dtype dtype = problem_dtype(i + (size_t)k);
            bnorm_shape shape = problem_shape(t, i, dtype);
            shape.n = more[i][0];
            shape.c = more[i][1];
            shape.hw = more[i][2];
            struct problem p;
            problem_new(t, &p, &shape, WEIGHTS_NONE);
            const bnorm_ghost ghost = {k == 0   ? 1
                                       : k == 1 ? shape.n
                                                : random_groups(&t->rng, shape.n),
                                       (bnorm_ghost_order)(k & 1),
                                       (bnorm_ghost_running)(k >> 1 & 1)};
            char text[64];
            snprintf(text, sizeof text, "%zu groups, order %d, running %d", ghost.groups,
                     (int)ghost.order, (int)ghost.running);
            p.call.what = text;
            p.call.mask = 0;
            p.call.ghost = &ghost;
            struct results want = ghost_by_calls(t, &p, &p.call, NULL);
            const struct results saved = run_scalar(t, &p.call, &p.data);
            check_results(t, &saved, &want, &p.data);
            if (p.data.running_mean && ghost.running == BNORM_GHOST_AVERAGE && is_scalar(t))
                check_ghost_average(t, &p, &saved);
            want.running_mean = saved.running_mean;
            want.running_var = saved.running_var;
            data_take(&p.data, &want);
            problem_compare(t, &p, &p.call, &want, dtype);

            struct call call = p.call;
            call.op = BNORM_OP_BACKWARD;
            call.frozen = rng_below(&t->rng, 4) == 0;
            if (dtype == BNORM_F32 && act_has_mask(call.act)) { /* of LEAKY_RELU slopes are > 0 */
                call.given_y = saved.y;
                call.residual = 0;
            }
            float *bounds = test_floats(t, 2 * shape.c);
            want = ghost_by_calls(t, &p, &call, bounds);
            const struct results got = run_scalar(t, &call, &p.data);
            check_ghost_sums(t, &got, &want, bounds, shape.c);
            check_results(t, &got, &want, &p.data);
            problem_compare(t, &p, &call, &want, dtype);
            test_release(t);
        }
}

/* One group is the plain call, running statistics and sums included. */
static void test_ghost_single(struct test *t) {
    for (size_t i = 0; i < PROBLEM_SHAPES; i++) {
        const bnorm_shape shape = problem_shape(t, i, BNORM_F32);
        struct problem p;
        problem_new(t, &p, &shape, WEIGHTS_NONE);
        p.call.mask = 0;
        p.call.what = "one group";
        const struct results saved = run_scalar(t, &p.call, &p.data);
        const bnorm_ghost ghost = {1, (bnorm_ghost_order)(i % 2), (bnorm_ghost_running)(i / 2 % 2)};
        p.call.ghost = &ghost;
        struct results got = problem_elsewhere(t, &p, &p.call, BNORM_F32);
        check_results(t, &got, &saved, &p.data);
        data_take(&p.data, &saved);
        struct call call = p.call;
        call.op = BNORM_OP_BACKWARD;
        call.ghost = NULL;
        struct results want = run_scalar(t, &call, &p.data);
        call.ghost = &ghost;
        problem_compare(t, &p, &call, &want, BNORM_F32);
        test_release(t);
    }
}

/* dbeta of the groups is added in double: floats would lose the one between two large ones. */
static void test_ghost_sums(struct test *t) {
    const bnorm_exec exec = {.isa = t->isa};
    bnorm_shape shape = problem_shape(t, 0, BNORM_F32);
    shape.n = 4;
    shape.c = 3;
    shape.hw = 2;
    const bnorm_ghost ghost = {2, BNORM_GHOST_INTERLEAVED, BNORM_GHOST_AVERAGE};
    const float group_dy[2][2] = {{0x1p24f, 1}, {-0x1p24f, 0}}; /* sample 0 or 1, sample 2 or 3 */
    struct data d;
    data_new(t, &d, &shape);
    for (size_t i = 0; i < data_count(&d); i++) {
        const size_t image = i / (d.c * d.hw);
        d.dy[i] = i % d.hw ? 0 : group_dy[image % 2][image / 2];
    }
    d.mean = uniform_floats(t, 1, 2 * d.c, -1, 1);
    d.invstd = uniform_floats(t, 1, 2 * d.c, .5, 1);
    d.lo = NULL;
    const struct call call = {.op = BNORM_OP_BACKWARD, .shape = shape, .ghost = &ghost};
    const struct results got = run_call(t, &call, &d, &exec);
    for (size_t c = 0; c < d.c; c++)
        check_near(t, "dbeta", c, got.dbeta[c], 1, 0);
}

/* ---------------------------------------------------------------------------------------------- */
/* One statistic per activation                                                                   */

/* A tensor taken as (N, C*HW): each activation is normalised over the samples, and its bits do not
 * depend on where in the image it lies. */
static void test_per_activation(struct test *t) {
    static const size_t images[][3] = {{5, 3, 4},   {2, 17, 9}, {33, 2, 7}, {130, 5, 3},
                                       {64, 16, 4}, {3, 1, 31}, {1, 4, 4},  {7, 33, 50}};
    for (size_t i = 0; i < COUNT_OF(images); i++) {
        const size_t n = images[i][0], c = images[i][1], hw = images[i][2];
        const bnorm_dtype dtype = problem_dtype(i);
        const bnorm_shape nchw = {BNORM_NCHW, dtype, n, c * hw, 1, 0};
        const bnorm_shape nhwc = {BNORM_NHWC, dtype, n, c * hw, 1, 0};
        struct problem p;
        problem_new(t, &p, &nchw, i % 2 ? WEIGHTS_RANDOM : WEIGHTS_NONE);
        p.call.what = "per activation";
        p.call.mask = 0;
        const struct results want = problem_forward(t, &p, dtype);

        /* The same activations, channels last. */
        struct problem q = p;
        q.call.shape = shape_with(&nhwc, BNORM_F32);
        const float *const from[] = {p.data.x, p.data.dy, p.data.residual};
        float **const to[] = {&q.data.x, &q.data.dy, &q.data.residual};
        const float *const arrays[] = {p.data.gamma, p.data.beta, p.data.running_mean,
                                       p.data.running_var};
        float *moved[4] = {NULL, NULL, NULL, NULL};
        for (size_t k = 0; k < 3; k++)
            *to[k] = test_floats(t, n * c * hw);
        for (size_t k = 0; k < 4; k++)
            moved[k] = arrays[k] ? test_floats(t, c * hw) : NULL;
        for (size_t a = 0; a < c * hw; a++) {
            const size_t b = a % hw * c + a / hw; /* channel a/hw, position a%hw */
            for (size_t k = 0; k < 3; k++)
                for (size_t image = 0; image < n; image++)
                    (*to[k])[image * c * hw + b] = from[k][image * c * hw + a];
            for (size_t k = 0; k < 4; k++)
                if (arrays[k])
                    moved[k][b] = arrays[k][a];
        }
        q.data.gamma = moved[0];
        q.data.beta = moved[1];
        q.data.running_mean = moved[2];
        q.data.running_var = moved[3];
        const struct results got = problem_elsewhere(t, &q, &q.call, BNORM_F32);
        for (size_t a = 0; a < c * hw; a++) {
            const size_t b = a % hw * c + a / hw;
            check_bits(t, "save_mean", &got.mean[b], &want.mean[a], 1);
            check_bits(t, "save_invstd", &got.invstd[b], &want.invstd[a], 1);
            for (size_t image = 0; image < n; image++)
                check_bits(t, "y", &got.y[image * c * hw + b], &want.y[image * c * hw + a], 1);
        }
        problem_backward(t, &p, &want, dtype);
        test_release(t);
    }
}

/* ---------------------------------------------------------------------------------------------- */
/* Threads                                                                                        */

/* Large enough to be shared; all orders of tasks and numbers of threads. */
static void test_threads(struct test *t) {
    static const size_t large[][3] = {{4, 3, 5501}, {4, 67, 250}, {70, 1030, 1}};
    for (size_t i = 0; i < COUNT_OF(large); i++)
        for (int what = 0; what < 3; what++) {
            if (!test_draws(t, 2))
                continue;
            bnorm_shape shape = problem_shape(t, i, BNORM_F32);
            shape.n = large[i][0];
            shape.c = large[i][1];
            shape.hw = large[i][2];
            struct problem p;
            problem_new(t, &p, &shape, what == 0 ? WEIGHTS_RANDOM : WEIGHTS_NONE);
            const bnorm_ghost ghost = {2, (bnorm_ghost_order)(i % 2), BNORM_GHOST_AVERAGE};
            if (what == 1)
                problem_add_renorm(t, &p);
            if (what == 2) {
                p.call.ghost = &ghost;
                p.call.mask = 0;
            }
            p.call.what = what == 0 ? "weights" : what == 1 ? "renorm" : "ghost";
            const struct results want = run_scalar(t, &p.call, &p.data);
            struct problem q = p;
            data_take(&q.data, &want);
            const struct call call = problem_backward_call(t, &q, &want);
            const struct results want_dx = run_scalar(t, &call, &q.data);
            for (size_t way = 1; way < test_repeat(4, 2, 2); way++) {
                const bnorm_exec exec = type_exec(t, 4 * way + i);
                const struct results got = run_call(t, &p.call, &p.data, &exec);
                check_results(t, &got, &want, &p.data);
                const struct results dx = run_call(t, &call, &q.data, &exec);
                check_results(t, &dx, &want_dx, &q.data);
            }
            test_release(t);
        }
}

/* ---------------------------------------------------------------------------------------------- */
/* The oracle against central differences                                                         */

/* The sum of dy*y: its derivatives are the gradients. */
static wide functional(struct test *t, const struct wide_data *w, wide *y) {
    const struct wide_stats s = wide_stats(t, w);
    const struct wide_forward out = {.y = y};
    wide sum = 0;
    wide_forward(w, &s, &out);
    for (size_t i = 0; i < w->n * w->c * w->hw; i++)
        sum += w->dy[i] * y[i];
    return sum;
}

struct derivative {
    const char *name;
    wide *of;
    size_t count;
    const wide *exact;
    const float *got;
};

/* h moves no argument over a kink; its square times a third derivative is about 1e-8. What the
 * library has in addition are statistics rounded to floats. */
static void check_derivative(struct test *t, const struct wide_data *w, const struct derivative *d,
                             wide *y) {
    const wide h = 0x1p-15L;
    wide largest = 0;
    for (size_t i = 0; i < d->count; i++)
        largest = fmaxl(largest, fabsl(d->exact[i]));
    for (size_t i = 0; i < d->count; i++) {
        const wide keep = d->of[i];
        d->of[i] = keep + h;
        const wide above = functional(t, w, y);
        d->of[i] = keep - h;
        const wide below = functional(t, w, y);
        d->of[i] = keep;
        const wide difference = (above - below) / (2 * h);
        if (!(fabsl(difference - d->exact[i]) <= 2e-7L * (1 + largest)))
            test_fail(t, "%s[%zu]: the oracle says %.12g, central differences %.12g", d->name, i,
                      (double)d->exact[i], (double)difference);
        check_wide(t, d->name, i, d->got[i], difference, 1e-5L * (1 + largest));
    }
}

static void test_differences(struct test *t) {
    static const double epsilons[] = {0, 1e-7, .5};
    const bnorm_exec exec = {.isa = t->isa};
    for (size_t round = 0; round < test_repeat(36, 18, 18); round++) {
        bnorm_shape shape = problem_shape(t, round, BNORM_F32);
        shape.n = 3;
        shape.c = 2;
        shape.hw = 4;
        struct problem p;
        problem_new(t, &p, &shape, round % 2 ? WEIGHTS_RANDOM : WEIGHTS_MASK);
        const size_t count = data_count(&p.data), c = shape.c, positions = shape.n * shape.hw;
        const double mean = round % 4 < 2 ? 0 : LDBL_MANT_DIG > DBL_MANT_DIG ? 1e6 : 1e3;
        for (size_t i = 0; i < count; i++)
            p.data.x[i] = (float)(mean + rng_normal(&t->rng));
        float *weights = copy_floats(t, p.data.weights, positions);
        for (size_t i = 0; i < positions / 2; i++) /* no statistics of next to nothing */
            weights[i] = (float)rng_uniform(&t->rng, .5, 2);
        p.data.weights = weights;
        p.call.epsilon = epsilons[round % 3];
        p.call.eps = .1;
        if (round % 6 == 5)
            p.data.weights = NULL;
        p.data.gamma = uniform_floats(t, 1, c, -2, 2);
        p.data.beta = uniform_floats(t, 1, c, -2, 2);
        p.call.act = random_act(&t->rng, (bnorm_act_kind)(round / 2 % ACT_KINDS));
        p.call.mask = 0;
        p.call.lo = 1;
        p.call.what = "central differences";
        struct results saved = run_call(t, &p.call, &p.data, &exec);
        if (round % 3 || !p.data.weights) {
            saved.r = uniform_floats(t, 1, c, .5, 2);
            saved.d = uniform_floats(t, 1, c, -1, 1);
        }
        data_take(&p.data, &saved);
        struct call call = p.call;
        call.op = BNORM_OP_BACKWARD;
        avoid_kinks(t, &call, &p.data, .01);
        const struct results got = run_call(t, &call, &p.data, &exec);

        struct wide_data w = wide_data(t, &call, &p.data);
        wide *y = test_alloc(t, count * sizeof(wide));
        const struct wide_stats s = wide_stats(t, &w);
        const struct wide_gradient e = wide_gradient(t, &w, &s, s.mean);
        const struct derivative all[] = {
            {"dx", w.x, count, e.dx, got.dx},
            {"dgamma", w.gamma, c, e.dgamma, got.dgamma},
            {"dbeta", w.beta, c, e.dbeta, got.dbeta},
            {"dresidual", w.residual, w.residual ? count : 0, e.g, got.dresidual},
        };
        for (size_t k = 0; k < COUNT_OF(all); k++)
            check_derivative(t, &w, &all[k], y);
        test_release(t);
    }
}

/* ---------------------------------------------------------------------------------------------- */
/* Worked examples                                                                                */

/* Keras 3: BatchNormalization with a mask, (batch, steps, features) = (1, 4, 1). */
static void test_examples(struct test *t) {
    const bnorm_exec exec = {.isa = t->isa};
    const bnorm_shape shape = problem_shape(t, 0, BNORM_F32);
    struct data d = {.n = 1, .c = 1, .hw = 4, .x = (float[]){1, 3, 5, 100}};
    d.residual = d.dy = test_floats(t, 4);
    struct call call = {.op = BNORM_OP_FORWARD_TRAIN, .shape = shape, .lo = 1};
    call.shape.hw = 4;
    {
        const float mask[] = {1, 1, 1, 0}, zero = 0, one = 1;
        d.weights = mask;
        d.running_mean = &zero;
        d.running_var = &one;
        call.epsilon = 1e-7;
        call.eps = 1e-3;
        call.rate = .01;
        call.what = "x = 1, 3, 5, 100 with mask 1, 1, 1, 0";
        const struct results got = run_call(t, &call, &d, &exec);
        /* mean 3 and variance 8/3 but for 1e-7/3 */
        check_near(t, "save_mean", 0, got.mean[0], 2.9999999, 2.4e-7);
        check_near(t, "running mean", 0, got.running_mean[0], .029999999, 4e-9);
        check_near(t, "running variance", 0, got.running_var[0], 1 + .01 * 5 / 3, 2e-7);
        for (size_t i = 0; i < 4; i++)
            check_near(t, "y", i, got.y[i], ((double)d.x[i] - 3) / sqrt(8. / 3 + 1e-3), 2e-5);
    }
    {
        const float two = 2, four = 4;
        const bnorm_renorm limits = {.5, 1.5, 1, NULL, NULL};
        const float x[] = {1, 3, 5, 7}; /* mean 4, variance 5 */
        const double r = sqrt(5) / 2, rs = 2;
        d.x = (float[]){1, 3, 5, 7};
        d.weights = NULL;
        d.running_mean = &two;
        d.running_var = &four;
        call.eps = 0;
        call.rate = .1;
        call.renorm = &limits;
        call.what = "x = 1, 3, 5, 7, running mean 2 and variance 4";
        const struct results got = run_call(t, &call, &d, &exec);
        check_near(t, "r", 0, got.r[0], r, 1.2e-7);
        check_near(t, "d", 0, got.d[0], 1, 0);
        check_near(t, "running mean", 0, got.running_mean[0], 2.2, 1.2e-7);
        check_near(t, "running variance", 0, got.running_var[0], 4.1, 2.4e-7);
        for (size_t i = 0; i < 4; i++) /* as the running statistics have it */
            check_near(t, "y", i, got.y[i], ((double)x[i] - 2) / rs, 1e-6);
    }
    {
        call.what = "tf-keras with virtual_batch_size 2: samples 0 and 2, 1 and 3";
        const bnorm_ghost ghost = {2, BNORM_GHOST_INTERLEAVED, BNORM_GHOST_AVERAGE};
        const float zero = 0, one = 1;
        d.running_mean = &zero;
        d.running_var = &one;
        call.renorm = NULL;
        call.ghost = &ghost;
        call.rate = .5;
        d.n = 4;
        d.hw = 1;
        d.x = (float[]){1, 10, 3, 14};
        call.shape.n = 4;
        call.shape.hw = 1;
        const struct results got = run_call(t, &call, &d, &exec);
        const float mean[] = {2, 12}, y[] = {-1, -1, 1, 1};
        check_bits(t, "save_mean", got.mean, mean, 2);
        check_bits(t, "y", got.y, y, 4);
        check_near(t, "running mean", 0, got.running_mean[0], 3.5, 0);
        check_near(t, "running variance", 0, got.running_var[0], 1.75, 0); /* 1 and 4 */
    }
}

void add_variants(struct suite *s) {
    static const struct type_test tests[] = {
        {"weights", test_weights},
        {"weighted-values", test_weighted_values},
        {"weighted-moments", test_weighted_moments},
        {"moments-options", test_moments_options},
        {"masked", test_masked},
        {"no-weight", test_no_weight},
        {"nan", test_variant_nan},
        {"unit-weights", test_unit_weights},
        {"compacted", test_compacted},
        {"frozen-weights", test_frozen_weights},
        {"renorm", test_renorm},
        {"renorm-plain", test_renorm_plain},
        {"renorm-unlimited", test_renorm_unlimited},
        {"renorm-zero", test_renorm_zero},
        {"renorm-substituted", test_renorm_substituted},
        {"ghost", test_ghost},
        {"ghost-single", test_ghost_single},
        {"ghost-sums", test_ghost_sums},
        {"threads", test_threads},
        {"differences", test_differences},
        {"examples", test_examples},
    };
    add_problem_cases(s, "variants", tests, COUNT_OF(tests));
    suite_add_per_isa(s, test_per_activation, NULL, "variants/activations/%s/per-activation");
}
