/* SPDX-License-Identifier: MIT
 *
 * Statistics, training and backward on BF16 and F16 tensors. See types.h for the oracle: what is
 * float by contract (statistics, gradients of parameters) has the bits of the call on floats. */
#include "oracle.h"
#include "types.h"

#include <math.h>
#include <stdio.h>
#include <string.h>

static void round_floats(bnorm_dtype dtype, float *x, size_t count) {
    for (size_t i = 0; i < count; i++)
        x[i] = element_round(dtype, x[i]);
}

/* ---------------------------------------------------------------------------------------------- */
/* Forward                                                                                        */

struct options {
    bnorm_act act;
    int residual, gamma, beta;     /* given or NULL */
    int mean, lo, invstd, running; /* wanted or NULL */
    int mask;
    double eps, rate;
    bnorm_variance variance;
    bnorm_denormals denormals;
};

struct results {
    float *y, *mean, *lo, *invstd, *running_mean, *running_var, *moments_mean, *moments_var;
    unsigned char *mask;
};

struct problem {
    bnorm_shape shape;
    const char *values;
    struct options options;
    float *x, *residual, *gamma, *beta, *running_mean, *running_var;
    struct results want;
};

static void say_problem(struct test *t, const struct problem *p, const char *how) {
    char text[96];
    const struct options *o = &p->options;
    test_context(
        t, "%s values=%s act=%d(%.9g, %.9g) eps=%g rate=%g%s%s%s%s%s%s%s%s%s, %s",
        shape_text(&p->shape, text), p->values, (int)o->act.kind, (double)o->act.a,
        (double)o->act.b, o->eps, o->rate, o->variance == BNORM_VARIANCE_SAMPLE ? " sample" : "",
        o->residual ? " residual" : "", o->gamma ? " gamma" : "", o->beta ? " beta" : "",
        o->mean ? " save_mean" : "", o->lo ? " save_mean_lo" : "", o->running ? " running" : "",
        o->mask ? " mask" : "", o->denormals ? " flush" : "", how);
}

static void problem_new(struct test *t, struct problem *p, const bnorm_shape *shape,
                        enum type_values values, const struct options *options) {
    const size_t c = shape->c;
    *p = (struct problem){.shape = *shape, .values = type_values_name(values), .options = *options};
    p->x = type_floats(t, shape, values);
    p->residual = options->residual ? type_floats(t, shape, values) : NULL;
    p->gamma = uniform_floats(t, options->gamma, c, -2, 2);
    p->beta = uniform_floats(t, options->beta, c, -2, 2);
    p->running_mean = uniform_floats(t, options->running, c, -2, 2);
    p->running_var = uniform_floats(t, options->running, c, 0, 2);
}

static bnorm_train train_of(const struct problem *p) {
    return (bnorm_train){
        .gamma = p->gamma,
        .beta = p->beta,
        .eps = p->options.eps,
        .running = {.rate = p->options.rate, .variance = p->options.variance},
        .act = p->options.act,
    };
}

/* The same kernel set on floats. */
static void problem_solve(struct test *t, struct problem *p) {
    const size_t count = shape_count(&p->shape), c = p->shape.c;
    const bnorm_shape shape = shape_with(&p->shape, BNORM_F32);
    struct results *w = &p->want;
    say_problem(t, p, "floats, dense");
    w->y = test_floats(t, count);
    w->mean = p->options.mean ? test_floats(t, c) : NULL;
    w->lo = p->options.lo ? test_floats(t, c) : NULL;
    w->invstd = p->options.invstd ? test_floats(t, c) : NULL;
    w->running_mean = p->running_mean ? copy_floats(t, p->running_mean, c) : NULL;
    w->running_var = p->running_var ? copy_floats(t, p->running_var, c) : NULL;
    w->moments_mean = test_floats(t, c);
    w->moments_var = test_floats(t, c);
    w->mask = p->options.mask ? test_alloc(t, bnorm_mask_size(&shape)) : NULL;
    bnorm_train train = train_of(p);
    train.running.mean = w->running_mean;
    train.running.var = w->running_var;
    train.save_mean = w->mean;
    train.save_mean_lo = w->lo;
    train.save_invstd = w->invstd;
    train.residual.data = p->residual;
    train.mask = w->mask;
    const bnorm_exec exec = {.isa = t->isa, .denormals = p->options.denormals};
    const size_t ws_size = bnorm_workspace(BNORM_OP_FORWARD_TRAIN, &shape);
    const size_t moments_size = bnorm_workspace(BNORM_OP_MOMENTS, &shape);
    const bnorm_in x = {p->x, 0, 0};
    check_status(t, "bnorm_forward_train",
                 bnorm_forward_train(&shape, x, (bnorm_out){w->y, 0, 0}, &train,
                                     test_alloc(t, ws_size), ws_size, &exec),
                 BNORM_OK);
    check_status(t, "bnorm_moments",
                 bnorm_moments(&shape, x, w->moments_mean, w->moments_var,
                               test_alloc(t, moments_size), moments_size, &exec),
                 BNORM_OK);
    round_floats(p->shape.dtype, w->y, count);
}

struct how {
    enum side side;
    enum in_place in_place;
    const struct placement *x, *residual, *y; /* NULL: random */
    bnorm_exec exec;
};

static void run_moments(struct test *t, const struct problem *p, const struct how *how) {
    struct fixture f;
    const size_t c = p->shape.c, ws_size = bnorm_workspace(BNORM_OP_MOMENTS, &p->shape);
    fixture_start(&f, t, how->side);
    struct tensor *x = fixture_tensor(&f, "x", &p->shape, how->x, p->x);
    const int which = (int)rng_below(&t->rng, 4); /* mostly both */
    float *mean = which == 1 ? NULL : fixture_output(&f, "mean", NULL, c);
    float *var = which == 2 ? NULL : fixture_output(&f, "var", NULL, c);
    void *ws = fixture_workspace(&f, ws_size);
    say_problem(t, p, which == 1 ? "no mean" : which == 2 ? "no var" : "moments");
    check_status(t, "bnorm_moments",
                 bnorm_moments(&p->shape, tensor_in(x), mean, var, ws, ws_size, &how->exec),
                 BNORM_OK);
    if (mean)
        check_bits(t, "mean", mean, p->want.moments_mean, c);
    if (var)
        check_bits(t, "var", var, p->want.moments_var, c);
    fixture_check(&f);
    fixture_end(&f);
}

static void run_forward(struct test *t, const struct problem *p, const struct how *how) {
    const size_t c = p->shape.c, mask_size = bnorm_mask_size(&p->shape);
    const struct results *w = &p->want;
    struct fixture f;
    fixture_start(&f, t, how->side);
    struct tensor *x = fixture_tensor(&f, "x", &p->shape, how->x, p->x), *residual = NULL, *y = x;
    if (p->residual)
        residual = fixture_tensor(&f, "residual", &p->shape, how->residual, p->residual);
    if (how->in_place == ONTO_RESIDUAL && residual)
        y = residual;
    else if (how->in_place != ONTO_X)
        y = fixture_tensor(&f, "y", &p->shape, how->y, NULL);
    fixture_writes(&f, y);

    bnorm_train train = train_of(p);
    train.gamma = p->gamma ? fixture_input(&f, "gamma", p->gamma, c) : NULL;
    train.beta = p->beta ? fixture_input(&f, "beta", p->beta, c) : NULL;
    if (p->running_mean) {
        train.running.mean = fixture_output(&f, "running mean", p->running_mean, c);
        train.running.var = fixture_output(&f, "running variance", p->running_var, c);
    }
    train.save_mean = w->mean ? fixture_output(&f, "save_mean", NULL, c) : NULL;
    train.save_mean_lo = w->lo ? fixture_output(&f, "save_mean_lo", NULL, c) : NULL;
    train.save_invstd = w->invstd ? fixture_output(&f, "save_invstd", NULL, c) : NULL;
    train.residual = residual ? tensor_in(residual) : (bnorm_in){NULL, 0, 0};
    unsigned char *mask = w->mask ? fixture_bytes(&f, "mask", mask_size) : NULL;
    train.mask = mask;
    const size_t ws_size = bnorm_workspace(BNORM_OP_FORWARD_TRAIN, &p->shape);
    void *ws = fixture_workspace(&f, ws_size);

    char text[192];
    snprintf(text, sizeof text,
             "%s, guard %s, strides (run, image, address mod 64) x (%zu, %zu, %zu) y (%zu, %zu, "
             "%zu), memory=%d threads=%zu",
             in_place_text(how->in_place), how->side == SIDE_START ? "before" : "after",
             x->run_stride, x->image_stride, (size_t)((uintptr_t)x->data % 64), y->run_stride,
             y->image_stride, (size_t)((uintptr_t)y->data % 64), (int)how->exec.memory,
             how->exec.threads);
    say_problem(t, p, text);
    check_status(t, "bnorm_forward_train",
                 bnorm_forward_train(&p->shape, tensor_in(x), tensor_out(y), &train, ws, ws_size,
                                     &how->exec),
                 BNORM_OK);
    if (w->mean)
        check_bits(t, "save_mean", train.save_mean, w->mean, c);
    if (w->lo)
        check_bits(t, "save_mean_lo", train.save_mean_lo, w->lo, c);
    if (w->invstd)
        check_bits(t, "save_invstd", train.save_invstd, w->invstd, c);
    if (p->running_mean) {
        check_bits(t, "running mean", train.running.mean, w->running_mean, c);
        check_bits(t, "running variance", train.running.var, w->running_var, c);
    }
    check_elements(t, "y", y, &p->shape, w->y);
    check_bytes(t, "mask", mask, w->mask, w->mask ? mask_size : 0);
    fixture_check(&f);
    fixture_end(&f);
}

/* Both guard pages. */
static void run_everywhere(struct test *t, const struct problem *p, size_t i) {
    for (int side = SIDE_START; side <= SIDE_END; side++) {
        struct how how = {.side = (enum side)side,
                          .in_place = (enum in_place)(i % IN_PLACE_COUNT),
                          .exec = type_exec(t, 2 * i + (size_t)side)};
        how.exec.denormals = p->options.denormals;
        run_forward(t, p, &how);
        run_moments(t, p, &how);
    }
}

/* `i` picks the activation. */
static struct options random_options(struct test *t, size_t i) {
    static const double rates[] = {0, .1, 1, -1.2}, epsilons[] = {1e-3, 1e-5, 1e-9};
    const uint64_t bits = rng_u64(&t->rng);
    struct options options = {
        .act = type_act(t, i),
        .residual = (int)(bits & 1),
        .gamma = (bits >> 1 & 3) != 0,
        .beta = (bits >> 3 & 3) != 0,
        .mean = (bits >> 5 & 3) != 0,
        .lo = (int)(bits >> 7 & 1),
        .invstd = (bits >> 8 & 3) != 0,
        .running = (int)(bits >> 10 & 1),
        .eps = epsilons[rng_below(&t->rng, 3)],
        .rate = rates[rng_below(&t->rng, 4)],
        .variance = (bnorm_variance)(bits >> 11 & 1),
    };
    options.mask = act_has_mask(options.act) && (bits >> 12 & 1);
    return options;
}

static void test_forward_sizes(struct test *t) {
    const struct shape_list *list = type_shapes(t);
    for (size_t s = 0; s < list->count; s++) {
        if (!test_draws(t, 3))
            continue;
        const struct options options = random_options(t, rng_below(&t->rng, 1000));
        struct problem p;
        problem_new(t, &p, &list->shapes[s], s % 3 ? TYPE_NORMAL : TYPE_OFFSET, &options);
        problem_solve(t, &p);
        run_everywhere(t, &p, s);
        test_release(t);
    }
}

/* Every activation with every kind of values, in every place; also with denormals flushed. */
static void test_forward_values(struct test *t) {
    const struct shape_list *list = type_shapes(t);
    size_t i = 0;
    for (size_t s = 0; s < type_few_shapes(t); s++)
        for (int values = 0; values < TYPE_VALUES_COUNT; values++)
            for (size_t kind = 0; kind < ALL_ACT_KINDS; kind++, i++) {
                if (!test_full() && i % 3 != s % 3)
                    continue;
                struct options options = random_options(t, kind);
                options.denormals = (bnorm_denormals)(i / 7 % 2);
                struct problem p;
                problem_new(t, &p, &list->shapes[s], (enum type_values)values, &options);
                problem_solve(t, &p);
                run_everywhere(t, &p, i);
                test_release(t);
            }
}

/* A NaN, an infinity or a signalling NaN in one channel leaves the others as they are. */
static void test_forward_nan(struct test *t) {
    const float bad[] = {bits_float(0x7fc10000u), bits_float(0xffffe000u), INFINITY, -INFINITY};
    const struct shape_list *list = type_shapes(t);
    for (size_t s = 0; s < list->count; s++) {
        if (shape_count(&list->shapes[s]) > 8000)
            continue;
        const struct options options = random_options(t, s);
        struct problem p;
        problem_new(t, &p, &list->shapes[s], TYPE_NORMAL, &options);
        p.values = "normal and one that is not finite";
        p.x[rng_below(&t->rng, shape_count(&p.shape))] = bad[s % COUNT_OF(bad)];
        problem_solve(t, &p);
        run_everywhere(t, &p, s);
        test_release(t);
    }
}

static void test_forward_misaligned(struct test *t) {
    const struct shape_list *list = type_shapes(t);
    for (size_t s = 0; s < type_few_shapes(t); s++) {
        struct options options = random_options(t, s);
        options.residual = 1;
        struct problem p;
        problem_new(t, &p, &list->shapes[s], TYPE_NORMAL, &options);
        problem_solve(t, &p);
        for (size_t shift = 0; shift < 32; shift++) {
            const size_t which = (shift + s) % 4;
            for (int side = SIDE_START; side <= SIDE_END; side++) {
                struct placement at[3];
                for (size_t k = 0; k < 3; k++)
                    at[k] = (struct placement){.side = (enum side)side,
                                               .shift = which == k || which == 3 ? shift : 0};
                const struct how how = {(enum side)side, SEPARATE, &at[0],
                                        &at[1],          &at[2],   {.isa = t->isa}};
                run_forward(t, &p, &how);
                run_moments(t, &p, &how);
            }
        }
        test_release(t);
    }
}

static void test_forward_exec(struct test *t) {
    const struct shape_list *list = type_shared_shapes(t);
    for (size_t s = 0; s < list->count; s++) {
        if (!test_draws(t, 2))
            continue;
        const struct options options = random_options(t, rng_below(&t->rng, 1000));
        struct problem p;
        problem_new(t, &p, &list->shapes[s], TYPE_NORMAL, &options);
        problem_solve(t, &p);
        for (size_t i = s; i < 20; i += list->count)
            if (test_full() || i % 5 == s) {
                const struct how how = {.side = (enum side)(i % 2),
                                        .in_place = (enum in_place)(i / 2 % IN_PLACE_COUNT),
                                        .exec = type_exec(t, i)};
                run_forward(t, &p, &how);
                run_moments(t, &p, &how);
            }
        test_release(t);
    }
}

/* Nothing on the way to the mean and the variance overflows, however large the data: both are as
 * near to the exact ones as for any other data, unless a float cannot hold them. */
static void test_no_overflow(struct test *t) {
    const struct shape_list *list = type_shapes(t);
    for (size_t s = 0; s < list->count; s++)
        for (int constant = 0; constant < 2; constant++) {
            const bnorm_shape *shape = &list->shapes[s];
            const size_t count = shape_count(shape), c = shape->c;
            if (shape->c_block)
                break; /* the oracle has the plain layouts */
            char text[96];
            test_context(t, "%s near the type's largest number%s", shape_text(shape, text),
                         constant ? ", constant" : "");
            float *x = type_floats(t, shape, TYPE_LARGE);
            const float largest = dtype_of(t) == BNORM_BF16 ? bits_float(0x7f7f0000u) : 65504.0f;
            for (size_t i = 0; constant && i < count; i++)
                x[i] = largest;
            struct fixture f;
            fixture_start(&f, t, SIDE_END);
            struct tensor *typed = fixture_tensor(&f, "x", shape, NULL, x);
            float *mean = fixture_output(&f, "mean", NULL, c);
            float *var = fixture_output(&f, "var", NULL, c);
            const size_t ws_size = bnorm_workspace(BNORM_OP_MOMENTS, shape);
            const bnorm_exec exec = {.isa = t->isa};
            check_status(t, "bnorm_moments",
                         bnorm_moments(shape, tensor_in(typed), mean, var,
                                       fixture_workspace(&f, ws_size), ws_size, &exec),
                         BNORM_OK);
            const struct oracle_stats exact = {test_doubles(t, c), test_doubles(t, c),
                                               test_doubles(t, c), test_doubles(t, c)};
            oracle_moments(shape, to_double(t, x, count), &exact);
            const double ulp = 0x1p-24;
            for (size_t i = 0; i < c; i++) {
                if (constant) {
                    const float zero = 0;
                    check_bits(t, "mean", &mean[i], &largest, 1);
                    check_bits(t, "var", &var[i], &zero, 1);
                }
                check_near(t, "mean", i, mean[i], exact.mean[i],
                           exact.mean_bound[i] + ulp * fabs(exact.mean[i]));
                if (exact.var[i] < 0x1p127)
                    check_near(t, "var", i, var[i], exact.var[i],
                               exact.var_bound[i] + ulp * exact.var[i]);
                else if (!isinf(var[i]) || var[i] < 0)
                    test_fail(t, "var[%zu] is %g, expected infinity for %g", i, (double)var[i],
                              exact.var[i]);
            }
            fixture_check(&f);
            fixture_end(&f);
            test_release(t);
        }
}

/* ---------------------------------------------------------------------------------------------- */
/* Backward                                                                                       */

/* What tells backward the activation's argument. */
enum source { FROM_X = 0, FROM_RESIDUAL, FROM_Y, FROM_MASK, SOURCE_COUNT };

struct grad_options {
    bnorm_act act;
    enum source source;
    int gamma, beta, lo; /* given or NULL */
    int frozen;
    bnorm_denormals denormals;
};

struct grad_problem {
    bnorm_shape shape;
    enum type_values values;
    struct grad_options options;
    float *x, *dy, *extra; /* extra: the residual or y */
    unsigned char *mask;   /* random bits */
    float *gamma, *beta, *mean, *lo, *invstd;
    float *dx, *dresidual, *dgamma, *dbeta; /* what the call on floats gives, rounded */
};

static void say_grad(struct test *t, const struct grad_problem *p, const char *how) {
    static const char *const sources[] = {"x", "the residual", "y", "a mask"};
    char text[96];
    const struct grad_options *o = &p->options;
    test_context(t, "%s values=%s act=%d(%.9g, %.9g) from %s%s%s%s%s%s, %s",
                 shape_text(&p->shape, text), type_values_name(p->values), (int)o->act.kind,
                 (double)o->act.a, (double)o->act.b, sources[o->source], o->gamma ? " gamma" : "",
                 o->beta ? " beta" : "", o->lo ? " save_mean_lo" : "", o->frozen ? " frozen" : "",
                 o->denormals ? " flush" : "", how);
}

static int source_fits(bnorm_act act, enum source source) {
    return source == FROM_X || source == FROM_RESIDUAL || act.kind == BNORM_ACT_IDENTITY ||
           (act_has_mask(act) &&
            (source == FROM_MASK || act.kind != BNORM_ACT_LEAKY_RELU || act.a > 0));
}

static bnorm_grad grad_of(const struct grad_problem *p) {
    return (bnorm_grad){
        .gamma = p->gamma,
        .beta = p->beta,
        .save_mean = p->mean,
        .save_invstd = p->invstd,
        .save_mean_lo = p->lo,
        .frozen = p->options.frozen,
        .act = p->options.act,
        .mask = p->mask,
    };
}

/* Statistics from forward, on floats; its y as it would have been stored. */
static void grad_new(struct test *t, struct grad_problem *p, const bnorm_shape *shape,
                     enum type_values values, const struct grad_options *options) {
    const size_t count = shape_count(shape), c = shape->c;
    *p = (struct grad_problem){.shape = *shape, .values = values, .options = *options};
    p->x = type_floats(t, shape, values);
    p->dy = type_floats(t, shape, values == TYPE_OFFSET ? TYPE_NORMAL : values);
    if (options->source == FROM_RESIDUAL)
        p->extra = type_floats(t, shape, values);
    if (options->source == FROM_MASK) {
        p->mask = test_alloc(t, bnorm_mask_size(shape));
        for (size_t i = 0; i < bnorm_mask_size(shape); i++)
            p->mask[i] = (unsigned char)rng_u64(&t->rng);
    }
    p->gamma = uniform_floats(t, options->gamma, c, -2, 2);
    p->beta = uniform_floats(t, options->beta, c, -2, 2);
    p->mean = test_floats(t, c);
    p->lo = options->lo ? test_floats(t, c) : NULL;
    p->invstd = test_floats(t, c);

    say_grad(t, p, "forward on floats");
    const bnorm_shape wide = shape_with(shape, BNORM_F32);
    float *y = test_floats(t, count);
    const bnorm_train train = {
        .gamma = p->gamma,
        .beta = p->beta,
        .eps = 1e-5,
        .save_mean = p->mean,
        .save_invstd = p->invstd,
        .save_mean_lo = p->lo,
        .residual = {p->extra, 0, 0},
        .act = options->act,
    };
    const bnorm_exec exec = {.isa = t->isa};
    const size_t ws_size = bnorm_workspace(BNORM_OP_FORWARD_TRAIN, &wide);
    check_status(t, "bnorm_forward_train",
                 bnorm_forward_train(&wide, (bnorm_in){p->x, 0, 0}, (bnorm_out){y, 0, 0}, &train,
                                     test_alloc(t, ws_size), ws_size, &exec),
                 BNORM_OK);
    if (options->source == FROM_Y) {
        round_floats(shape->dtype, y, count);
        p->extra = y;
    }
}

/* The same kernel set on floats. */
static void grad_solve(struct test *t, struct grad_problem *p) {
    const size_t count = shape_count(&p->shape), c = p->shape.c;
    const bnorm_shape shape = shape_with(&p->shape, BNORM_F32);
    say_grad(t, p, "floats, dense");
    p->dx = test_floats(t, count);
    p->dresidual = test_floats(t, count);
    p->dgamma = test_floats(t, c);
    p->dbeta = test_floats(t, c);
    bnorm_grad grad = grad_of(p);
    *(p->options.source == FROM_Y ? &grad.y : &grad.residual) = (bnorm_in){p->extra, 0, 0};
    if (p->options.source == FROM_Y && grad.act.kind == BNORM_ACT_CLAMP) {
        /* What is clamped is stored as the rounded limit. */
        round_floats(p->shape.dtype, &grad.act.a, 1);
        round_floats(p->shape.dtype, &grad.act.b, 1);
    }
    grad.dresidual.data = p->dresidual;
    grad.dgamma = p->dgamma;
    grad.dbeta = p->dbeta;
    const bnorm_exec exec = {.isa = t->isa, .denormals = p->options.denormals};
    const size_t ws_size = bnorm_workspace(BNORM_OP_BACKWARD, &shape);
    check_status(t, "bnorm_backward",
                 bnorm_backward(&shape, (bnorm_in){p->x, 0, 0}, (bnorm_in){p->dy, 0, 0},
                                (bnorm_out){p->dx, 0, 0}, &grad, test_alloc(t, ws_size), ws_size,
                                &exec),
                 BNORM_OK);
    round_floats(p->shape.dtype, p->dx, count);
    round_floats(p->shape.dtype, p->dresidual, count);
}

/* Where an output tensor goes. */
enum target { NOWHERE = 0, OWN, ONTO_DY, ONTO_EXTRA, ONTO_INPUT, TARGET_COUNT };

struct grad_how {
    enum side side;
    enum target dx, dresidual;
    int no_dgamma, no_dbeta;
    const struct placement *x, *dy, *extra, *dx_place, *dresidual_place; /* NULL: random */
    bnorm_exec exec;
};

static int targets_fit(const struct grad_problem *p, enum target dx, enum target dresidual) {
    return (dx == NOWHERE || dx == OWN || dx != dresidual) &&
           (p->extra || (dx != ONTO_EXTRA && dresidual != ONTO_EXTRA));
}

static void run_backward(struct test *t, const struct grad_problem *p, const struct grad_how *how) {
    static const char *const targets[] = {"unwanted", "its own", "dy", "residual or y", "x"};
    const size_t c = p->shape.c;
    struct fixture f;
    fixture_start(&f, t, how->side);
    struct tensor *x = fixture_tensor(&f, "x", &p->shape, how->x, p->x);
    struct tensor *dy = fixture_tensor(&f, "dy", &p->shape, how->dy, p->dy), *extra = NULL;
    bnorm_grad grad = grad_of(p);
    grad.gamma = p->gamma ? fixture_input(&f, "gamma", p->gamma, c) : NULL;
    grad.beta = p->beta ? fixture_input(&f, "beta", p->beta, c) : NULL;
    grad.save_mean = fixture_input(&f, "save_mean", p->mean, c);
    grad.save_invstd = fixture_input(&f, "save_invstd", p->invstd, c);
    grad.save_mean_lo = p->lo ? fixture_input(&f, "save_mean_lo", p->lo, c) : NULL;
    grad.dgamma = how->no_dgamma ? NULL : fixture_output(&f, "dgamma", NULL, c);
    grad.dbeta = how->no_dbeta ? NULL : fixture_output(&f, "dbeta", NULL, c);
    if (p->extra) {
        extra = fixture_tensor(&f, "residual or y", &p->shape, how->extra, p->extra);
        *(p->options.source == FROM_Y ? &grad.y : &grad.residual) = tensor_in(extra);
    }
    const size_t mask_size = bnorm_mask_size(&p->shape);
    unsigned char *mask = NULL;
    if (p->mask) {
        mask = fixture_bytes(&f, "mask", mask_size);
        memcpy(mask, p->mask, mask_size);
        grad.mask = mask;
    }
    struct tensor *const places[TARGET_COUNT] = {NULL, NULL, dy, extra, x};
    struct tensor *dx = places[how->dx], *dresidual = places[how->dresidual];
    if (how->dx == OWN)
        dx = fixture_tensor(&f, "dx", &p->shape, how->dx_place, NULL);
    if (how->dresidual == OWN)
        dresidual = fixture_tensor(&f, "dresidual", &p->shape, how->dresidual_place, NULL);
    if (dx)
        fixture_writes(&f, dx);
    if (dresidual) {
        fixture_writes(&f, dresidual);
        grad.dresidual = tensor_out(dresidual);
    }
    const size_t ws_size = bnorm_workspace(BNORM_OP_BACKWARD, &p->shape);
    void *ws = fixture_workspace(&f, ws_size);

    char text[256];
    snprintf(text, sizeof text,
             "guard %s, dx to %s, dresidual to %s%s%s, strides (run, image, address mod 64) x "
             "(%zu, %zu, %zu) dy (%zu, %zu, %zu), memory=%d threads=%zu",
             how->side == SIDE_START ? "before" : "after", targets[how->dx],
             targets[how->dresidual], how->no_dgamma ? ", no dgamma" : "",
             how->no_dbeta ? ", no dbeta" : "", x->run_stride, x->image_stride,
             (size_t)((uintptr_t)x->data % 64), dy->run_stride, dy->image_stride,
             (size_t)((uintptr_t)dy->data % 64), (int)how->exec.memory, how->exec.threads);
    say_grad(t, p, text);
    bnorm_exec exec = how->exec;
    exec.isa = t->isa;
    exec.denormals = p->options.denormals;
    check_status(t, "bnorm_backward",
                 bnorm_backward(&p->shape, tensor_in(x), tensor_in(dy),
                                dx ? tensor_out(dx) : (bnorm_out){NULL, 0, 0}, &grad, ws, ws_size,
                                &exec),
                 BNORM_OK);
    if (grad.dbeta)
        check_bits(t, "dbeta", grad.dbeta, p->dbeta, c);
    if (grad.dgamma)
        check_bits(t, "dgamma", grad.dgamma, p->dgamma, c);
    if (dresidual)
        check_elements(t, "dresidual", dresidual, &p->shape, p->dresidual);
    if (dx)
        check_elements(t, "dx", dx, &p->shape, p->dx);
    check_bytes(t, "mask", mask, p->mask, p->mask ? mask_size : 0);
    fixture_check(&f);
    fixture_end(&f);
}

/* Both guard pages, targets drawn from those that fit. */
static void run_backward_everywhere(struct test *t, const struct grad_problem *p, size_t i) {
    for (int side = SIDE_START; side <= SIDE_END; side++) {
        struct grad_how how = {.side = (enum side)side, .exec = type_exec(t, 2 * i + (size_t)side)};
        do {
            how.dx = (enum target)rng_below(&t->rng, TARGET_COUNT);
            how.dresidual = (enum target)rng_below(&t->rng, TARGET_COUNT);
        } while (!targets_fit(p, how.dx, how.dresidual));
        how.no_dgamma = rng_below(&t->rng, 4) == 0;
        how.no_dbeta = rng_below(&t->rng, 4) == 0;
        run_backward(t, p, &how);
    }
}

/* `i` picks the activation. */
static struct grad_options random_grad_options(struct test *t, size_t i) {
    const uint64_t bits = rng_u64(&t->rng);
    struct grad_options options = {
        .act = type_act(t, i),
        .gamma = (bits >> 1 & 3) != 0,
        .beta = (bits >> 3 & 3) != 0,
        .lo = (int)(bits >> 5 & 1),
        .frozen = (bits >> 6 & 3) == 0,
    };
    do
        options.source = (enum source)rng_below(&t->rng, SOURCE_COUNT);
    while (!source_fits(options.act, options.source));
    return options;
}

static void test_backward_sizes(struct test *t) {
    const struct shape_list *list = type_shapes(t);
    for (size_t s = 0; s < list->count; s++) {
        if (!test_draws(t, 3))
            continue;
        const struct grad_options options = random_grad_options(t, rng_below(&t->rng, 1000));
        struct grad_problem p;
        grad_new(t, &p, &list->shapes[s], s % 3 ? TYPE_NORMAL : TYPE_OFFSET, &options);
        grad_solve(t, &p);
        run_backward_everywhere(t, &p, s);
        test_release(t);
    }
}

/* Every activation from every source, frozen or not, into every pair of places. */
static void test_backward_options(struct test *t) {
    const struct shape_list *list = type_shapes(t);
    size_t i = 0;
    for (size_t kind = 0; kind < ALL_ACT_KINDS; kind++)
        for (int source = 0; source < SOURCE_COUNT; source++)
            for (int frozen = 0; frozen < 2; frozen++) {
                struct grad_options options = random_grad_options(t, kind);
                if (!source_fits(options.act, (enum source)source))
                    continue;
                options.source = (enum source)source;
                options.frozen = frozen;
                struct grad_problem p;
                grad_new(t, &p, &list->shapes[i++ % type_few_shapes(t)], TYPE_NORMAL, &options);
                grad_solve(t, &p);
                for (int dx = 0; dx < TARGET_COUNT; dx++)
                    for (int dresidual = 0; dresidual < TARGET_COUNT; dresidual++) {
                        const struct grad_how how = {
                            .side = (enum side)rng_below(&t->rng, 2),
                            .dx = (enum target)dx,
                            .dresidual = (enum target)dresidual,
                            .no_dgamma = (int)rng_below(&t->rng, 2),
                            .no_dbeta = (int)rng_below(&t->rng, 2),
                        };
                        if (targets_fit(&p, how.dx, how.dresidual) && test_draws(t, 2))
                            run_backward(t, &p, &how);
                    }
                test_release(t);
            }
}

static void test_backward_values(struct test *t) {
    const struct shape_list *list = type_shapes(t);
    size_t i = 0;
    for (size_t s = 0; s < type_few_shapes(t); s++)
        for (int values = TYPE_LARGE; values < TYPE_VALUES_COUNT; values++)
            for (size_t kind = 0; kind < ALL_ACT_KINDS; kind++, i++) {
                if (!test_full() && i % 3 != s % 3)
                    continue;
                struct grad_options options = random_grad_options(t, kind);
                options.denormals = (bnorm_denormals)(i / 7 % 2);
                struct grad_problem p;
                grad_new(t, &p, &list->shapes[s], (enum type_values)values, &options);
                grad_solve(t, &p);
                run_backward_everywhere(t, &p, i);
                test_release(t);
            }
}

static void test_backward_misaligned(struct test *t) {
    const struct shape_list *list = type_shapes(t);
    for (size_t s = 0; s < type_few_shapes(t); s++) {
        struct grad_options options = random_grad_options(t, s);
        options.source = FROM_RESIDUAL;
        struct grad_problem p;
        grad_new(t, &p, &list->shapes[s], TYPE_NORMAL, &options);
        grad_solve(t, &p);
        for (size_t shift = 0; shift < 32; shift++)
            for (int side = SIDE_START; side <= SIDE_END; side++) {
                const size_t which = (shift + s) % 6;
                struct placement at[5];
                for (size_t k = 0; k < 5; k++)
                    at[k] = (struct placement){.side = (enum side)side,
                                               .shift = which == k || which == 5 ? shift : 0};
                const struct grad_how how = {.side = (enum side)side,
                                             .dx = OWN,
                                             .dresidual = OWN,
                                             .x = &at[0],
                                             .dy = &at[1],
                                             .extra = &at[2],
                                             .dx_place = &at[3],
                                             .dresidual_place = &at[4]};
                run_backward(t, &p, &how);
            }
        test_release(t);
    }
}

static void test_backward_exec(struct test *t) {
    const struct shape_list *list = type_shared_shapes(t);
    for (size_t s = 0; s < list->count; s++) {
        if (!test_draws(t, 2))
            continue;
        const struct grad_options options = random_grad_options(t, rng_below(&t->rng, 1000));
        struct grad_problem p;
        grad_new(t, &p, &list->shapes[s], TYPE_NORMAL, &options);
        grad_solve(t, &p);
        for (size_t i = s; i < 20; i += list->count)
            if (test_full() || i % 5 == s) {
                const struct grad_how how = {.side = (enum side)(i % 2),
                                             .dx = i % 7 == 6 ? ONTO_DY : OWN,
                                             .dresidual = i % 3 ? NOWHERE : OWN,
                                             .exec = type_exec(t, i)};
                run_backward(t, &p, &how);
            }
        test_release(t);
    }
}

void add_types_train(struct suite *s) {
    static const bnorm_dtype types[] = {BNORM_BF16, BNORM_F16};
    static const struct type_test tests[] = {
        {"forward/sizes", test_forward_sizes},
        {"forward/values", test_forward_values},
        {"forward/nan", test_forward_nan},
        {"forward/misaligned", test_forward_misaligned},
        {"forward/exec", test_forward_exec},
        {"moments/no-overflow", test_no_overflow},
        {"backward/sizes", test_backward_sizes},
        {"backward/options", test_backward_options},
        {"backward/values", test_backward_values},
        {"backward/misaligned", test_backward_misaligned},
        {"backward/exec", test_backward_exec},
    };
    add_type_cases(s, tests, COUNT_OF(tests), types, COUNT_OF(types));
}
