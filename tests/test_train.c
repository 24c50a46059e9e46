/* SPDX-License-Identifier: MIT
 *
 * bnorm_moments and bnorm_forward_train: the scalar set against the oracle, every set against the
 * scalar set's bits, and the edge cases with what they must give exactly. */
#include "cases.h"
#include "oracle.h"

#include <math.h>
#include <stdio.h>
#include <string.h>

#define U 0x1p-24

struct options {
    bnorm_act act;
    int residual, gamma, beta; /* given or NULL */
    int save_mean, save_lo;    /* wanted or NULL */
    double eps, rate;
    bnorm_variance variance;
};

struct results {
    float *y, *mean, *lo, *invstd, *running_mean, *running_var;
};

struct problem {
    bnorm_shape shape;
    enum values values;
    struct options options;
    float *x, *residual, *gamma, *beta, *running_mean, *running_var;
    struct results want; /* what the scalar set makes of dense data */
};

static void say_problem(struct test *t, const struct problem *p, const char *how) {
    char text[96];
    const struct options *o = &p->options;
    test_context(t, "%s values=%s act=%d(%.9g, %.9g) eps=%g rate=%g%s%s%s%s%s%s, %s",
                 shape_text(&p->shape, text), values_name(p->values), (int)o->act.kind,
                 (double)o->act.a, (double)o->act.b, o->eps, o->rate,
                 o->variance == BNORM_VARIANCE_SAMPLE ? " sample" : "",
                 o->residual ? " residual" : "", o->gamma ? " gamma" : "", o->beta ? " beta" : "",
                 o->save_mean ? " save_mean" : "", o->save_lo ? " save_mean_lo" : "", how);
}

static void problem_new(struct test *t, struct problem *p, const bnorm_shape *shape,
                        enum values values, const struct options *options) {
    const size_t count = shape_count(shape), c = shape->c;
    p->shape = *shape;
    p->values = values;
    p->options = *options;
    p->x = test_floats(t, count);
    fill_values(&t->rng, shape, values, p->x);
    p->residual = uniform_floats(t, options->residual, count, -2, 2);
    p->gamma = uniform_floats(t, options->gamma, c, -2, 2);
    p->beta = uniform_floats(t, options->beta, c, -2, 2);
    p->running_mean = uniform_floats(t, 1, c, -2, 2);
    p->running_var = uniform_floats(t, 1, c, 0, 2);
}

/* The scalar set on dense data. */
static void problem_solve(struct test *t, struct problem *p) {
    const size_t count = shape_count(&p->shape), c = p->shape.c;
    struct results *w = &p->want;
    say_problem(t, p, "scalar, dense");
    w->y = test_floats(t, count);
    w->mean = p->options.save_mean ? test_floats(t, c) : NULL;
    w->lo = p->options.save_lo ? test_floats(t, c) : NULL;
    w->invstd = test_floats(t, c);
    w->running_mean = copy_floats(t, p->running_mean, c);
    w->running_var = copy_floats(t, p->running_var, c);
    const bnorm_train train = {
        .gamma = p->gamma,
        .beta = p->beta,
        .eps = p->options.eps,
        .running = {.mean = w->running_mean,
                    .var = w->running_var,
                    .rate = p->options.rate,
                    .variance = p->options.variance},
        .save_mean = w->mean,
        .save_invstd = w->invstd,
        .save_mean_lo = w->lo,
        .residual = {p->residual, 0, 0},
        .act = p->options.act,
    };
    const bnorm_exec exec = {.isa = scalar_isa()};
    const size_t ws_size = bnorm_workspace(BNORM_OP_FORWARD_TRAIN, &p->shape);
    const bnorm_in x = {p->x, 0, 0};
    const bnorm_out y = {w->y, 0, 0};
    check_status(
        t, "bnorm_forward_train",
        bnorm_forward_train(&p->shape, x, y, &train, test_alloc(t, ws_size), ws_size, &exec),
        BNORM_OK);
}

static void compare_to_oracle(struct test *t, const struct problem *p) {
    const size_t count = shape_count(&p->shape), c = p->shape.c;
    const struct options *o = &p->options;
    const struct results *w = &p->want;
    const struct oracle_train train = {
        .gamma = to_double(t, p->gamma, c),
        .beta = to_double(t, p->beta, c),
        .residual = to_double(t, p->residual, count),
        .eps = o->eps,
        .act = o->act,
    };
    const struct oracle_train_out e = {
        .stats = {test_doubles(t, c), test_doubles(t, c), test_doubles(t, c), test_doubles(t, c)},
        .invstd = test_doubles(t, c),
        .invstd_bound = test_doubles(t, c),
        .y = test_doubles(t, count),
        .y_bound = test_doubles(t, count),
    };
    oracle_train(&p->shape, to_double(t, p->x, count), &train, &e);
    const double factor =
        oracle_variance_factor(o->variance, (double)p->shape.n * (double)p->shape.hw);
    for (size_t i = 0; i < c; i++) {
        const double mean = e.stats.mean[i], mean_bound = e.stats.mean_bound[i];
        const double tiny = 0x1p-149, rate = fabs(o->rate);
        check_near(t, "save_invstd", i, w->invstd[i], e.invstd[i],
                   e.invstd_bound[i] + U * e.invstd[i] + tiny);
        if (w->mean)
            check_near(t, "save_mean", i, w->mean[i], mean, mean_bound + U * fabs(mean) + tiny);
        if (w->mean && w->lo) {
            const double both = (double)w->mean[i] + (double)w->lo[i];
            const double bound = mean_bound + 2 * U * U * fabs(mean) + 2 * tiny;
            if (!(fabs(both - mean) <= bound))
                test_fail(t, "save_mean + save_mean_lo[%zu] is %.17g, expected %.17g within %.3g",
                          i, both, mean, bound);
        }
        /* Four roundings in double, one to float. */
        const double old_mean = (double)p->running_mean[i], old_var = (double)p->running_var[i];
        const double new_mean = oracle_running(old_mean, mean, o->rate);
        check_near(t, "running mean", i, w->running_mean[i], new_mean,
                   rate * mean_bound + U * fabs(new_mean) +
                       0x1p-51 * (fabs(old_mean) + rate * (fabs(old_mean) + fabs(mean))) + tiny);
        const double var = e.stats.var[i] * factor;
        const double new_var = oracle_running(old_var, var, o->rate);
        check_near(t, "running variance", i, w->running_var[i], new_var,
                   rate * factor * e.stats.var_bound[i] + U * fabs(new_var) +
                       0x1p-51 * (fabs(old_var) + rate * (fabs(old_var) + var)) + tiny);
    }
    for (size_t i = 0; i < count; i++)
        check_near(t, "y", i, w->y[i], e.y[i], e.y_bound[i]);
}

struct how {
    enum side side;
    enum in_place in_place;
    int outputs_less; /* leave away invstd and the running statistics: y stays the same */
    const struct placement *x, *residual, *y; /* NULL: random */
};

static void compare_to_scalar(struct test *t, const struct problem *p, const struct how *how) {
    const size_t count = shape_count(&p->shape), c = p->shape.c;
    struct fixture f;
    fixture_start(&f, t, how->side);
    struct tensor *x = fixture_tensor(&f, "x", &p->shape, how->x, p->x), *residual = NULL, *y = x;
    if (p->residual)
        residual = fixture_tensor(&f, "residual", &p->shape, how->residual, p->residual);
    if (how->in_place == ONTO_RESIDUAL && residual)
        y = residual;
    else if (how->in_place == SEPARATE)
        y = fixture_tensor(&f, "y", &p->shape, how->y, NULL);
    fixture_writes(&f, y);

    bnorm_train train = {
        .gamma = p->gamma ? fixture_input(&f, "gamma", p->gamma, c) : NULL,
        .beta = p->beta ? fixture_input(&f, "beta", p->beta, c) : NULL,
        .eps = p->options.eps,
        .save_mean = p->want.mean ? fixture_output(&f, "save_mean", NULL, c) : NULL,
        .save_mean_lo = p->want.lo ? fixture_output(&f, "save_mean_lo", NULL, c) : NULL,
        .residual = residual ? tensor_in(residual) : (bnorm_in){NULL, 0, 0},
        .act = p->options.act,
    };
    if (!how->outputs_less) {
        train.save_invstd = fixture_output(&f, "save_invstd", NULL, c);
        train.running = (bnorm_running){
            .mean = fixture_output(&f, "running mean", p->running_mean, c),
            .var = fixture_output(&f, "running variance", p->running_var, c),
            .rate = p->options.rate,
            .variance = p->options.variance,
        };
    }
    const size_t ws_size = bnorm_workspace(BNORM_OP_FORWARD_TRAIN, &p->shape);
    void *ws = fixture_workspace(&f, ws_size);

    char text[256];
    snprintf(text, sizeof text,
             "%s, %s, strides (run, image, misaligned by) x (%zu, %zu, %zu) y (%zu, %zu, %zu)",
             how->side == SIDE_START ? "guard before" : "guard after", in_place_text(how->in_place),
             x->run_stride, x->image_stride, (size_t)((uintptr_t)x->data / 4 % 16), y->run_stride,
             y->image_stride, (size_t)((uintptr_t)y->data / 4 % 16));
    say_problem(t, p, text);

    const bnorm_exec exec = {.isa = t->isa};
    check_status(
        t, "bnorm_forward_train",
        bnorm_forward_train(&p->shape, tensor_in(x), tensor_out(y), &train, ws, ws_size, &exec),
        BNORM_OK);
    if (train.save_mean)
        check_bits(t, "save_mean", train.save_mean, p->want.mean, c);
    if (train.save_mean_lo)
        check_bits(t, "save_mean_lo", train.save_mean_lo, p->want.lo, c);
    if (!how->outputs_less) {
        check_bits(t, "save_invstd", train.save_invstd, p->want.invstd, c);
        check_bits(t, "running mean", train.running.mean, p->want.running_mean, c);
        check_bits(t, "running variance", train.running.var, p->want.running_var, c);
    }
    float *got = test_floats(t, count);
    tensor_get(y, &p->shape, got);
    check_bits(t, "y", got, p->want.y, count);
    fixture_check(&f);
    fixture_end(&f);
}

static void compare_everywhere(struct test *t, const struct problem *p, enum in_place in_place) {
    for (int side = SIDE_START; side <= SIDE_END; side++) {
        const struct how how = {.side = (enum side)side,
                                .in_place = in_place,
                                .outputs_less = rng_below(&t->rng, 4) == 0};
        compare_to_scalar(t, p, &how);
    }
}

static struct options random_options(struct rng *r, size_t act) {
    static const double rates[] = {0, .1, 1, -1.2};
    static const double epsilons[] = {1e-3, 1e-5, 1e-9};
    const uint64_t bits = rng_u64(r);
    return (struct options){
        .act = random_act(r, (bnorm_act_kind)(act % ACT_KINDS)),
        .residual = (int)(bits & 1),
        .gamma = (bits >> 1 & 3) != 0,
        .beta = (bits >> 3 & 3) != 0,
        .save_mean = (bits >> 5 & 3) != 0,
        .save_lo = (int)(bits >> 7 & 1),
        .eps = epsilons[rng_below(r, 3)],
        .rate = rates[rng_below(r, 4)],
        .variance = (bnorm_variance)(bits >> 8 & 1),
    };
}

/* ---------------------------------------------------------------------------------------------- */

/* Every edge of sizes, each with other options and values. */
static void test_sizes(struct test *t) {
    const struct shape_list *list = edge_shapes(layout_of(t));
    for (size_t s = 0; s < list->count; s++) {
        if (!test_draws(t, 3))
            continue;
        const struct options options = random_options(&t->rng, s);
        struct problem p;
        problem_new(t, &p, &list->shapes[s], s % 3 ? VALUES_NORMAL : VALUES_MEAN_1E6, &options);
        problem_solve(t, &p);
        if (is_scalar(t))
            compare_to_oracle(t, &p);
        compare_everywhere(t, &p, (enum in_place)rng_below(&t->rng, IN_PLACE_COUNT));
        test_release(t);
    }
}

/* Every combination of options on a few shapes. */
static void test_options(struct test *t) {
    const struct shape_list *list = small_shapes(layout_of(t));
    for (size_t s = 0; s < list->count; s++)
        for (int kind = 0; kind < ACT_KINDS; kind++)
            for (int mask = 0; mask < 32; mask++) {
                struct options options = random_options(&t->rng, (size_t)kind);
                options.residual = mask & 1;
                options.gamma = mask >> 1 & 1;
                options.beta = mask >> 2 & 1;
                options.save_mean = mask >> 3 & 1;
                options.save_lo = mask >> 4 & 1;
                struct problem p;
                problem_new(t, &p, &list->shapes[s], VALUES_NORMAL, &options);
                problem_solve(t, &p);
                if (is_scalar(t))
                    compare_to_oracle(t, &p);
                for (int place = 0; place < IN_PLACE_COUNT; place++)
                    if (place != ONTO_RESIDUAL || options.residual)
                        compare_everywhere(t, &p, (enum in_place)place);
                test_release(t);
            }
}

/* Every misalignment of each tensor, the others staying where they are. */
static void test_misaligned(struct test *t) {
    const struct shape_list *list = small_shapes(layout_of(t));
    for (size_t s = 0; s < list->count; s++) {
        struct options options = random_options(&t->rng, s);
        options.residual = 1;
        struct problem p;
        problem_new(t, &p, &list->shapes[s], VALUES_NORMAL, &options);
        problem_solve(t, &p);
        for (int side = SIDE_START; side <= SIDE_END; side++)
            for (size_t which = 0; which < 4; which++)
                for (size_t shift = 0; shift < 16; shift++) {
                    struct placement places[3];
                    for (size_t k = 0; k < 3; k++)
                        places[k] = (struct placement){
                            .side = (enum side)side, .shift = which == k || which == 3 ? shift : 0};
                    const struct how how = {(enum side)side, SEPARATE,   0,
                                            &places[0],      &places[1], &places[2]};
                    compare_to_scalar(t, &p, &how);
                }
        test_release(t);
    }
}

/* Larger than a block in every direction that makes blocks. */
static const bnorm_shape *value_shapes(bnorm_layout layout, size_t *count) {
    static const bnorm_shape nhwc[] = {
        {.layout = BNORM_NHWC, .n = 2, .c = 3, .hw = 5000},
        {.layout = BNORM_NHWC, .n = 3, .c = 67, .hw = 700},
        {.layout = BNORM_NHWC, .n = 100, .c = 16, .hw = 1},
        {.layout = BNORM_NHWC, .n = 2, .c = 5, .hw = 9},
    };
    static const bnorm_shape nchw[] = {
        {.layout = BNORM_NCHW, .n = 4, .c = 2, .hw = 4500},
        {.layout = BNORM_NCHW, .n = 32, .c = 1, .hw = 3136},
        {.layout = BNORM_NCHW, .n = 3, .c = 20, .hw = 49},
        {.layout = BNORM_NCHW, .n = 2, .c = 5, .hw = 9},
    };
    *count = layout == BNORM_NHWC ? COUNT_OF(nhwc) : COUNT_OF(nchw);
    return layout == BNORM_NHWC ? nhwc : nchw;
}

/* Values that lose accuracy, overflow or vanish where statistics are not computed with care. */
static void test_values(struct test *t) {
    static const double epsilons[] = {1e-3, 1e-9, 0};
    size_t shapes;
    const bnorm_shape *list = value_shapes(layout_of(t), &shapes);
    for (size_t s = 0; s < shapes; s++)
        for (int kind = 0; kind < VALUES_COUNT; kind++)
            for (size_t e = 0; e < COUNT_OF(epsilons); e++) {
                struct options options = random_options(&t->rng, s + e + (size_t)kind);
                options.eps = epsilons[e];
                if (kind == VALUES_DENORMAL && e == 2)
                    options.eps = 1e-30; /* 1/deviation would overflow */
                struct problem p;
                problem_new(t, &p, &list[s], (enum values)kind, &options);
                problem_solve(t, &p);
                if (is_scalar(t))
                    compare_to_oracle(t, &p);
                compare_everywhere(t, &p, (enum in_place)(e % IN_PLACE_COUNT));
                test_release(t);
            }
}

/* bnorm_moments alone, with either output missing. */
static void test_moments(struct test *t) {
    const struct shape_list *list = edge_shapes(layout_of(t));
    const bnorm_exec exec = {.isa = t->isa}, scalar = {.isa = scalar_isa()};
    for (size_t s = 0; s < list->count; s++) {
        if (!test_draws(t, 3))
            continue;
        const bnorm_shape *shape = &list->shapes[s];
        const size_t count = shape_count(shape), c = shape->c;
        const enum values values = (enum values)(s % VALUES_COUNT);
        float *x = test_floats(t, count), *mean = test_floats(t, c), *var = test_floats(t, c);
        fill_values(&t->rng, shape, values, x);
        const size_t ws_size = bnorm_workspace(BNORM_OP_MOMENTS, shape);
        char text[96];
        shape_text(shape, text);
        test_context(t, "%s values=%s, scalar, dense", text, values_name(values));
        check_status(t, "bnorm_moments",
                     bnorm_moments(shape, (bnorm_in){x, 0, 0}, mean, var, test_alloc(t, ws_size),
                                   ws_size, &scalar),
                     BNORM_OK);
        if (is_scalar(t)) {
            const struct oracle_stats e = {test_doubles(t, c), test_doubles(t, c),
                                           test_doubles(t, c), test_doubles(t, c)};
            oracle_moments(shape, to_double(t, x, count), &e);
            for (size_t i = 0; i < c; i++) {
                check_near(t, "mean", i, mean[i], e.mean[i],
                           e.mean_bound[i] + U * fabs(e.mean[i]) + 0x1p-149);
                check_near(t, "var", i, var[i], e.var[i], e.var_bound[i] + U * e.var[i] + 0x1p-149);
            }
        }
        for (int side = SIDE_START; side <= SIDE_END; side++) {
            struct fixture f;
            fixture_start(&f, t, (enum side)side);
            const struct tensor *in = fixture_tensor(&f, "x", shape, NULL, x);
            void *ws = fixture_workspace(&f, ws_size);
            const size_t missing = rng_below(&t->rng, 6);
            float *got_mean = missing == 0 ? NULL : fixture_output(&f, "mean", NULL, c);
            float *got_var = missing == 1 ? NULL : fixture_output(&f, "var", NULL, c);
            test_context(t, "%s values=%s, guard %s, strides %zu, %zu%s", text, values_name(values),
                         side == SIDE_START ? "before" : "after", in->run_stride, in->image_stride,
                         missing == 0   ? ", mean NULL"
                         : missing == 1 ? ", var NULL"
                                        : "");
            check_status(t, "bnorm_moments",
                         bnorm_moments(shape, tensor_in(in), got_mean, got_var, ws, ws_size, &exec),
                         BNORM_OK);
            if (got_mean)
                check_bits(t, "mean", got_mean, mean, c);
            if (got_var)
                check_bits(t, "var", got_var, var, c);
            fixture_check(&f);
            fixture_end(&f);
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
    const struct shape_list *list = edge_shapes(layout_of(t));
    for (size_t s = 0; s < list->count; s++) {
        if (!test_draws(t, 3))
            continue;
        const bnorm_shape *shape = &list->shapes[s];
        const size_t count = shape_count(shape), c = shape->c;
        struct options options = random_options(&t->rng, s % (ACT_KINDS - 1)); /* not HARD_SWISH */
        options.eps = s % 2 ? 1e-3 : 0;
        options.save_mean = options.save_lo = options.beta = 1;
        options.rate = 1;
        struct problem p;
        problem_new(t, &p, shape, VALUES_CONSTANT, &options);
        say_problem(t, &p, "dense");
        float *y = test_floats(t, count), *mean = test_floats(t, c), *lo = test_floats(t, c),
              *invstd = test_floats(t, c);
        const bnorm_train train = {
            .gamma = p.gamma,
            .beta = p.beta,
            .eps = options.eps,
            .running = {.mean = p.running_mean,
                        .var = p.running_var,
                        .rate = 1,
                        .variance = options.variance},
            .save_mean = mean,
            .save_mean_lo = lo,
            .save_invstd = invstd,
            .residual = {p.residual, 0, 0},
            .act = options.act,
        };
        train_dense(t, shape, p.x, y, &train);
        for (size_t i = 0; i < c; i++) {
            const float value = p.x[shape->layout == BNORM_NHWC ? i : i * shape->hw];
            check_bits(t, "save_mean", &mean[i], &value, 1);
            check_near(t, "save_mean_lo", i, lo[i], 0, 0);
            check_near(t, "save_invstd", i, invstd[i], options.eps > 0 ? 1 / sqrt(options.eps) : 0,
                       0x1p-19);
            check_near(t, "running variance", i, p.running_var[i], 0, 0x1p-51);
        }
        for (size_t i = 0; i < count; i++) {
            float v = p.beta[shape_channel(shape, i)];
            if (p.residual)
                v += p.residual[i];
            const float want = (float)oracle_act(options.act, (double)v);
            check_near(t, "y", i, y[i], (double)want, 0);
        }
        test_release(t);
    }
}

/* A NaN or infinity spoils its own channel, with the one NaN of bnorm, and no other bit. */
static void test_nan(struct test *t) {
    const float bad[] = {bits_float(0xffc00001u), bits_float(0x7fa00000u), INFINITY, -INFINITY};
    size_t shapes;
    const bnorm_shape *list = value_shapes(layout_of(t), &shapes);
    for (size_t s = 0; s < shapes; s++)
        for (size_t b = 0; b < COUNT_OF(bad); b++) {
            struct options options = random_options(&t->rng, s + b);
            options.act.kind = b % 2 ? BNORM_ACT_RELU : options.act.kind;
            options.save_mean = options.save_lo = 1;
            options.rate = .1;
            struct problem p;
            problem_new(t, &p, &list[s], VALUES_NORMAL, &options);
            problem_solve(t, &p);
            const size_t count = shape_count(&p.shape);
            const size_t where = rng_below(&t->rng, count);
            const size_t spoilt = shape_channel(&p.shape, where);
            p.x[where] = bad[b];
            const float nan_value = bits_float(NAN_BITS);
            struct results *w = &p.want;
            w->mean[spoilt] = w->lo[spoilt] = w->invstd[spoilt] = nan_value;
            w->running_mean[spoilt] = w->running_var[spoilt] = nan_value;
            for (size_t i = 0; i < count; i++)
                if (shape_channel(&p.shape, i) == spoilt)
                    w->y[i] = nan_value;
            compare_everywhere(t, &p, (enum in_place)(b % IN_PLACE_COUNT));
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
                struct options options = random_options(&t->rng, s);
                options.rate = rates[r];
                options.variance = (bnorm_variance)kind;
                options.save_mean = 1;
                struct problem p;
                problem_new(t, &p, &list->shapes[s], VALUES_NORMAL, &options);
                problem_solve(t, &p);
                if (is_scalar(t))
                    compare_to_oracle(t, &p);
                compare_everywhere(t, &p, SEPARATE);
                const size_t c = p.shape.c;
                if (r == 0) {
                    check_bits(t, "running mean at rate 0", p.want.running_mean, p.running_mean, c);
                    check_bits(t, "running variance at rate 0", p.want.running_var, p.running_var,
                               c);
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
