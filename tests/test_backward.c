/* SPDX-License-Identifier: MIT
 *
 * bnorm_backward. The oracle is checked against central differences, the scalar set against the
 * oracle, every set against the scalar set's bits; the ways to recover the activation's argument
 * against each other and against forward. */
#include "cases.h"
#include "oracle.h"

#include <math.h>
#include <stdio.h>
#include <string.h>

/* What tells backward the activation's argument. */
enum source { FROM_X = 0, FROM_RESIDUAL, FROM_Y, SOURCE_COUNT };

struct options {
    bnorm_act act;
    int residual;    /* forward added one */
    int gamma, beta; /* given or NULL */
    int frozen, lo;
};

/* A problem with its dense data, forward's results included. */
struct problem {
    bnorm_shape shape;
    enum values values;
    struct options options;
    float *x, *dy, *residual, *gamma, *beta;
    float *mean, *lo, *invstd, *y;
    /* What the scalar set makes of dense data: */
    float *dx, *dresidual, *dgamma, *dbeta;
};

static void say_problem(struct test *t, const struct problem *p, const char *how) {
    char text[96];
    const struct options *o = &p->options;
    test_context(t, "%s values=%s act=%d(%.9g, %.9g)%s%s%s%s%s, %s", shape_text(&p->shape, text),
                 values_name(p->values), (int)o->act.kind, (double)o->act.a, (double)o->act.b,
                 o->residual ? " residual" : "", o->gamma ? " gamma" : "", o->beta ? " beta" : "",
                 o->frozen ? " frozen" : "", o->lo ? " mean_lo" : "", how);
}

/* Forward with the scalar set: for batch statistics a training pass, for frozen ones bnorm_apply.
 */
static void forward(struct test *t, struct problem *p) {
    const size_t c = p->shape.c;
    const bnorm_exec exec = {.isa = scalar_isa()};
    const bnorm_in x = {p->x, 0, 0};
    const bnorm_out y = {p->y, 0, 0};
    say_problem(t, p, "forward");
    if (p->options.frozen) {
        float *scale = test_floats(t, c);
        for (size_t i = 0; i < c; i++) {
            p->mean[i] = (float)rng_normal(&t->rng);
            p->invstd[i] = (float)rng_uniform(&t->rng, .3, 2);
            scale[i] = (p->gamma ? p->gamma[i] : 1) * p->invstd[i];
        }
        const bnorm_affine affine = {.center = p->mean,
                                     .scale = scale,
                                     .shift = p->beta,
                                     .residual = {p->residual, 0, 0},
                                     .act = p->options.act};
        check_status(t, "bnorm_apply", bnorm_apply(&p->shape, x, y, &affine, &exec), BNORM_OK);
        return;
    }
    const bnorm_train train = {
        .gamma = p->gamma,
        .beta = p->beta,
        .eps = 1e-5,
        .save_mean = p->mean,
        .save_invstd = p->invstd,
        .save_mean_lo = p->lo,
        .residual = {p->residual, 0, 0},
        .act = p->options.act,
    };
    const size_t ws_size = bnorm_workspace(BNORM_OP_FORWARD_TRAIN, &p->shape);
    check_status(
        t, "bnorm_forward_train",
        bnorm_forward_train(&p->shape, x, y, &train, test_alloc(t, ws_size), ws_size, &exec),
        BNORM_OK);
}

/* The activation's argument, exactly, for the saved statistics. */
static double *exact_argument(struct test *t, const struct problem *p) {
    const size_t count = shape_count(&p->shape), c = p->shape.c;
    double *v = test_doubles(t, count), *center = to_double(t, p->mean, c);
    double *scale = to_double(t, p->invstd, c);
    for (size_t i = 0; i < c; i++) {
        center[i] += p->lo ? (double)p->lo[i] : 0;
        scale[i] *= p->gamma ? (double)p->gamma[i] : 1;
    }
    const struct oracle_affine affine = {
        .center = center,
        .scale = scale,
        .shift = to_double(t, p->beta, c),
        .residual = to_double(t, p->residual, count),
        .act = {.kind = BNORM_ACT_IDENTITY},
    };
    oracle_apply(&p->shape, to_double(t, p->x, count), &affine, v, test_doubles(t, count), NULL);
    return v;
}

static void problem_new(struct test *t, struct problem *p, const bnorm_shape *shape,
                        enum values values, const struct options *options) {
    const size_t count = shape_count(shape), c = shape->c;
    p->shape = *shape;
    p->values = values;
    p->options = *options;
    p->x = test_floats(t, count);
    fill_values(&t->rng, shape, values, p->x);
    p->dy = uniform_floats(t, 1, count, -2, 2);
    p->residual = uniform_floats(t, options->residual, count, -2, 2);
    p->gamma = uniform_floats(t, options->gamma, c, -2, 2);
    p->beta = uniform_floats(t, options->beta, c, -2, 2);
    p->mean = test_floats(t, c);
    p->invstd = test_floats(t, c);
    p->lo = options->lo && !options->frozen ? test_floats(t, c) : NULL;
    p->y = test_floats(t, count);
    forward(t, p);
}

/* No gradient where rounding decides on which side of a kink the argument lies, so that the oracle
 * and all ways to recover the argument agree. (The decision itself is tested below, exactly.) */
static void avoid_kinks(struct test *t, struct problem *p) {
    const size_t count = shape_count(&p->shape);
    const double *v = exact_argument(t, p);
    for (size_t i = 0; i < count; i++) {
        const size_t c = shape_channel(&p->shape, i);
        const double scale = fabs((p->gamma ? (double)p->gamma[c] : 1) * (double)p->invstd[c]);
        const double beta = p->beta ? fabs((double)p->beta[c]) : 0;
        /* Forward may have used a mean that is better by its rounding to float. */
        const double margin =
            0x1p-20 *
            (scale * (fabs((double)p->x[i]) + fabs((double)p->mean[c])) + beta + fabs(v[i]) + 1);
        if (oracle_kink_distance(p->options.act, v[i]) <= margin)
            p->dy[i] = 0;
    }
}

static bnorm_grad grad_of(const struct problem *p) {
    return (bnorm_grad){
        .gamma = p->gamma,
        .beta = p->beta,
        .save_mean = p->mean,
        .save_invstd = p->invstd,
        .save_mean_lo = p->lo,
        .frozen = p->options.frozen,
        .act = p->options.act,
        .residual = {p->residual, 0, 0},
    };
}

/* The scalar set on dense data, all outputs wanted. */
static void problem_solve(struct test *t, struct problem *p) {
    const size_t count = shape_count(&p->shape), c = p->shape.c;
    say_problem(t, p, "scalar, dense");
    p->dx = test_floats(t, count);
    p->dresidual = test_floats(t, count);
    p->dgamma = test_floats(t, c);
    p->dbeta = test_floats(t, c);
    bnorm_grad grad = grad_of(p);
    grad.dresidual.data = p->dresidual;
    grad.dgamma = p->dgamma;
    grad.dbeta = p->dbeta;
    const bnorm_exec exec = {.isa = scalar_isa()};
    const size_t ws_size = bnorm_workspace(BNORM_OP_BACKWARD, &p->shape);
    check_status(t, "bnorm_backward",
                 bnorm_backward(&p->shape, (bnorm_in){p->x, 0, 0}, (bnorm_in){p->dy, 0, 0},
                                (bnorm_out){p->dx, 0, 0}, &grad, test_alloc(t, ws_size), ws_size,
                                &exec),
                 BNORM_OK);
}

/* The oracle's gradient for the saved statistics. */
static struct oracle_grad_out oracle_gradient(struct test *t, const struct problem *p) {
    const size_t count = shape_count(&p->shape), c = p->shape.c;
    double *mean = to_double(t, p->mean, c);
    for (size_t i = 0; i < c; i++)
        mean[i] += p->lo ? (double)p->lo[i] : 0;
    const struct oracle_grad grad = {
        .gamma = to_double(t, p->gamma, c),
        .beta = to_double(t, p->beta, c),
        .mean = mean,
        .mean_hi = to_double(t, p->mean, c),
        .invstd = to_double(t, p->invstd, c),
        .v = exact_argument(t, p),
        .frozen = p->options.frozen,
        .act = p->options.act,
    };
    const struct oracle_grad_out out = {
        test_doubles(t, c),     test_doubles(t, c),     test_doubles(t, c),
        test_doubles(t, c),     test_doubles(t, count), test_doubles(t, count),
        test_doubles(t, count), test_doubles(t, count),
    };
    oracle_backward(&p->shape, to_double(t, p->x, count), to_double(t, p->dy, count), &grad, &out);
    return out;
}

static void compare_to_oracle(struct test *t, const struct problem *p) {
    const struct oracle_grad_out e = oracle_gradient(t, p);
    for (size_t i = 0; i < p->shape.c; i++) {
        check_near(t, "dbeta", i, p->dbeta[i], e.dbeta[i], e.dbeta_bound[i]);
        check_near(t, "dgamma", i, p->dgamma[i], e.dgamma[i], e.dgamma_bound[i]);
    }
    for (size_t i = 0; i < shape_count(&p->shape); i++) {
        check_near(t, "dresidual", i, p->dresidual[i], e.g[i], e.g_bound[i]);
        check_near(t, "dx", i, p->dx[i], e.dx[i], e.dx_bound[i]);
    }
}

/* Where an output tensor goes. */
enum target { NOWHERE = 0, OWN, ONTO_DY, ONTO_EXTRA, ONTO_INPUT, TARGET_COUNT };

struct how {
    enum side side;
    enum source source;
    enum target dx, dresidual; /* ONTO_INPUT (x) for dx only */
    int no_dgamma, no_dbeta;
    const struct placement *x, *dy, *extra, *dx_place, *dresidual_place; /* NULL: random */
};

static const char *target_text(enum target target) {
    static const char *const texts[] = {"unwanted", "its own", "dy", "residual or y", "x"};
    return texts[target];
}

static struct tensor *target_of(struct fixture *f, enum target target, const char *name,
                                const bnorm_shape *shape, const struct placement *place,
                                struct tensor *x, struct tensor *dy, struct tensor *extra) {
    struct tensor *tensor = NULL;
    switch (target) {
    case OWN:
        tensor = fixture_tensor(f, name, shape, place, NULL);
        break;
    case ONTO_DY:
        tensor = dy;
        break;
    case ONTO_EXTRA:
        tensor = extra;
        break;
    case ONTO_INPUT:
        tensor = x;
        break;
    case NOWHERE:
    case TARGET_COUNT:
        break;
    }
    if (tensor)
        fixture_writes(f, tensor);
    return tensor;
}

static void compare_to_scalar(struct test *t, const struct problem *p, const struct how *how) {
    static const char *const sources[] = {"x", "the residual", "y"};
    const size_t count = shape_count(&p->shape), c = p->shape.c;
    struct fixture f;
    fixture_start(&f, t, how->side);
    struct tensor *x = fixture_tensor(&f, "x", &p->shape, how->x, p->x);
    struct tensor *dy = fixture_tensor(&f, "dy", &p->shape, how->dy, p->dy), *extra = NULL;
    bnorm_grad grad = {
        .gamma = p->gamma ? fixture_input(&f, "gamma", p->gamma, c) : NULL,
        .beta = p->beta ? fixture_input(&f, "beta", p->beta, c) : NULL,
        .save_mean = fixture_input(&f, "save_mean", p->mean, c),
        .save_invstd = fixture_input(&f, "save_invstd", p->invstd, c),
        .save_mean_lo = p->lo ? fixture_input(&f, "save_mean_lo", p->lo, c) : NULL,
        .frozen = p->options.frozen,
        .act = p->options.act,
        .dgamma = how->no_dgamma ? NULL : fixture_output(&f, "dgamma", NULL, c),
        .dbeta = how->no_dbeta ? NULL : fixture_output(&f, "dbeta", NULL, c),
    };
    if (how->source == FROM_RESIDUAL) {
        extra = fixture_tensor(&f, "residual", &p->shape, how->extra, p->residual);
        grad.residual = tensor_in(extra);
    } else if (how->source == FROM_Y) {
        extra = fixture_tensor(&f, "y", &p->shape, how->extra, p->y);
        grad.y = tensor_in(extra);
    }
    struct tensor *dx = target_of(&f, how->dx, "dx", &p->shape, how->dx_place, x, dy, extra);
    struct tensor *dresidual = target_of(&f, how->dresidual, "dresidual", &p->shape,
                                         how->dresidual_place, NULL, dy, extra);
    if (dresidual)
        grad.dresidual = tensor_out(dresidual);
    const size_t ws_size = bnorm_workspace(BNORM_OP_BACKWARD, &p->shape);
    void *ws = fixture_workspace(&f, ws_size);

    char text[256];
    snprintf(text, sizeof text,
             "argument from %s, guard %s, dx to %s, dresidual to %s%s%s, strides x (%zu, %zu) dy "
             "(%zu, %zu)",
             sources[how->source], how->side == SIDE_START ? "before" : "after",
             target_text(how->dx), target_text(how->dresidual), how->no_dgamma ? ", no dgamma" : "",
             how->no_dbeta ? ", no dbeta" : "", x->run_stride, x->image_stride, dy->run_stride,
             dy->image_stride);
    say_problem(t, p, text);

    const bnorm_exec exec = {.isa = t->isa};
    check_status(t, "bnorm_backward",
                 bnorm_backward(&p->shape, tensor_in(x), tensor_in(dy),
                                dx ? tensor_out(dx) : (bnorm_out){NULL, 0, 0}, &grad, ws, ws_size,
                                &exec),
                 BNORM_OK);
    if (grad.dbeta)
        check_bits(t, "dbeta", grad.dbeta, p->dbeta, c);
    if (grad.dgamma)
        check_bits(t, "dgamma", grad.dgamma, p->dgamma, c);
    float *got = test_floats(t, count);
    if (dresidual) {
        tensor_get(dresidual, &p->shape, got);
        check_bits(t, "dresidual", got, p->dresidual, count);
    }
    if (dx) {
        tensor_get(dx, &p->shape, got);
        check_bits(t, "dx", got, p->dx, count);
    }
    fixture_check(&f);
    fixture_end(&f);
}

static int y_tells_argument(bnorm_act act) {
    return act.kind == BNORM_ACT_RELU || act.kind == BNORM_ACT_CLAMP ||
           (act.kind == BNORM_ACT_LEAKY_RELU && act.a > 0);
}

static int source_fits(const struct problem *p, enum source source) {
    switch (source) {
    case FROM_X: /* an identity needs no argument, residual or not */
        return !p->options.residual || p->options.act.kind == BNORM_ACT_IDENTITY;
    case FROM_RESIDUAL:
        return p->options.residual;
    default:
        return y_tells_argument(p->options.act);
    }
}

static int targets_fit(const struct how *how) {
    const int extra = how->source != FROM_X;
    return how->dresidual != ONTO_INPUT &&
           (how->dx == NOWHERE || how->dx == OWN || how->dx != how->dresidual) &&
           (extra || (how->dx != ONTO_EXTRA && how->dresidual != ONTO_EXTRA));
}

/* Both guard pages, with a source and targets drawn from those that fit. */
static void compare_everywhere(struct test *t, const struct problem *p) {
    for (int side = SIDE_START; side <= SIDE_END; side++) {
        struct how how = {.side = (enum side)side};
        do
            how.source = (enum source)rng_below(&t->rng, SOURCE_COUNT);
        while (!source_fits(p, how.source));
        do {
            how.dx = (enum target)rng_below(&t->rng, TARGET_COUNT);
            how.dresidual = (enum target)rng_below(&t->rng, TARGET_COUNT);
        } while (!targets_fit(&how));
        how.no_dgamma = rng_below(&t->rng, 4) == 0;
        how.no_dbeta = rng_below(&t->rng, 4) == 0;
        compare_to_scalar(t, p, &how);
    }
}

static struct options random_options(struct rng *r, size_t act) {
    const uint64_t bits = rng_u64(r);
    return (struct options){
        .act = random_act(r, (bnorm_act_kind)(act % ACT_KINDS)),
        .residual = (int)(bits & 1),
        .gamma = (bits >> 1 & 3) != 0,
        .beta = (bits >> 3 & 3) != 0,
        .frozen = (bits >> 5 & 3) == 0,
        .lo = (int)(bits >> 7 & 1),
    };
}

/* ---------------------------------------------------------------------------------------------- */

/* Every edge of sizes, each with other options and values. */
static void test_sizes(struct test *t) {
    const struct shape_list *list = edge_shapes(layout_of(t));
    for (size_t s = 0; s < list->count; s++) {
        if (!test_draws(t, 4))
            continue;
        const struct options options = random_options(&t->rng, s);
        struct problem p;
        problem_new(t, &p, &list->shapes[s], s % 3 ? VALUES_NORMAL : VALUES_MEAN_1E6, &options);
        avoid_kinks(t, &p);
        problem_solve(t, &p);
        if (is_scalar(t))
            compare_to_oracle(t, &p);
        compare_everywhere(t, &p);
        test_release(t);
    }
}

/* Every combination of options, and every way to work in place, on a few shapes. */
static void test_options(struct test *t) {
    const struct shape_list *list = small_shapes(layout_of(t));
    for (size_t s = 0; s < list->count; s++)
        for (int kind = 0; kind < ACT_KINDS; kind++)
            for (int mask = 0; mask < 32; mask++) {
                const struct options options = {
                    .act = random_act(&t->rng, (bnorm_act_kind)kind),
                    .residual = mask & 1,
                    .gamma = mask >> 1 & 1,
                    .beta = mask >> 2 & 1,
                    .frozen = mask >> 3 & 1,
                    .lo = mask >> 4 & 1,
                };
                struct problem p;
                problem_new(t, &p, &list->shapes[s], VALUES_NORMAL, &options);
                avoid_kinks(t, &p);
                problem_solve(t, &p);
                if (is_scalar(t))
                    compare_to_oracle(t, &p);
                for (int source = 0; source < SOURCE_COUNT; source++)
                    for (int dx = 0; dx < TARGET_COUNT; dx++)
                        for (int dresidual = 0; dresidual < TARGET_COUNT; dresidual++) {
                            const struct how how = {
                                .side = (enum side)rng_below(&t->rng, 2),
                                .source = (enum source)source,
                                .dx = (enum target)dx,
                                .dresidual = (enum target)dresidual,
                                .no_dgamma = (int)rng_below(&t->rng, 2),
                                .no_dbeta = (int)rng_below(&t->rng, 2),
                            };
                            if (source_fits(&p, how.source) && targets_fit(&how) &&
                                test_draws(t, 5))
                                compare_to_scalar(t, &p, &how);
                        }
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
        avoid_kinks(t, &p);
        problem_solve(t, &p);
        for (int side = SIDE_START; side <= SIDE_END; side++)
            for (size_t which = 0; which < 6; which++)
                for (size_t shift = 0; shift < 16; shift++) {
                    struct placement at[5];
                    for (size_t k = 0; k < 5; k++)
                        at[k] = (struct placement){.side = (enum side)side,
                                                   .shift = which == k || which == 5 ? shift : 0};
                    const struct how how = {.side = (enum side)side,
                                            .source = FROM_RESIDUAL,
                                            .dx = OWN,
                                            .dresidual = OWN,
                                            .x = &at[0],
                                            .dy = &at[1],
                                            .extra = &at[2],
                                            .dx_place = &at[3],
                                            .dresidual_place = &at[4]};
                    compare_to_scalar(t, &p, &how);
                }
        test_release(t);
    }
}

static const bnorm_shape *value_shapes(bnorm_layout layout, size_t *count) {
    static const bnorm_shape nhwc[] = {
        {.layout = BNORM_NHWC, .n = 2, .c = 3, .hw = 5000},
        {.layout = BNORM_NHWC, .n = 3, .c = 67, .hw = 700},
        {.layout = BNORM_NHWC, .n = 40, .c = 16, .hw = 1},
        {.layout = BNORM_NHWC, .n = 1, .c = 7, .hw = 1},
    };
    static const bnorm_shape nchw[] = {
        {.layout = BNORM_NCHW, .n = 2, .c = 3, .hw = 4500},
        {.layout = BNORM_NCHW, .n = 3, .c = 20, .hw = 49},
        {.layout = BNORM_NCHW, .n = 40, .c = 16, .hw = 1},
        {.layout = BNORM_NCHW, .n = 1, .c = 7, .hw = 1},
    };
    *count = layout == BNORM_NHWC ? COUNT_OF(nhwc) : COUNT_OF(nchw);
    return layout == BNORM_NHWC ? nhwc : nchw;
}

/* Values that lose accuracy where the sums are not computed with care; constant channels. */
static void test_values(struct test *t) {
    static const enum values kinds[] = {VALUES_NORMAL,        VALUES_MEAN_1E6, VALUES_OUTLIER,
                                        VALUES_HALF_CONSTANT, VALUES_CONSTANT, VALUES_DENORMAL};
    size_t shapes;
    const bnorm_shape *list = value_shapes(layout_of(t), &shapes);
    for (size_t s = 0; s < shapes; s++)
        for (size_t k = 0; k < COUNT_OF(kinds); k++)
            for (size_t kind = 0; kind < ACT_KINDS; kind++) {
                if (!test_draws(t, 4))
                    continue;
                const struct options options = random_options(&t->rng, kind);
                struct problem p;
                problem_new(t, &p, &list[s], kinds[k], &options);
                avoid_kinks(t, &p);
                problem_solve(t, &p);
                if (is_scalar(t))
                    compare_to_oracle(t, &p);
                compare_everywhere(t, &p);
                test_release(t);
            }
}

/* A NaN or infinity in x spoils dx and dgamma of its own channel and no other bit; one in dy dbeta
 * as well. */
static void test_nan(struct test *t) {
    const float bad[] = {bits_float(0xffc00001u), bits_float(0x7fa00000u), INFINITY, -INFINITY};
    size_t shapes;
    const bnorm_shape *list = value_shapes(layout_of(t), &shapes);
    for (size_t s = 0; s < shapes; s++)
        for (size_t b = 0; b < COUNT_OF(bad); b++)
            for (int in_dy = 0; in_dy < 2; in_dy++) {
                struct options options = random_options(&t->rng, s + b);
                options.frozen = 0;
                options.act.kind = in_dy ? BNORM_ACT_IDENTITY : options.act.kind;
                struct problem p;
                problem_new(t, &p, &list[s], VALUES_NORMAL, &options);
                avoid_kinks(t, &p);
                problem_solve(t, &p);
                float *clean_dx = p.dx, *clean_dgamma = p.dgamma, *clean_dbeta = p.dbeta;
                const size_t count = shape_count(&p.shape), c = p.shape.c;
                const size_t where = rng_below(&t->rng, count);
                const size_t spoilt = shape_channel(&p.shape, where);
                if (in_dy) {
                    p.dy[where] = bad[b];
                } else {
                    p.x[where] = bad[b];
                    forward(t, &p);
                }
                problem_solve(t, &p);
                const float nan_value = bits_float(NAN_BITS);
                for (size_t i = 0; i < count; i++) {
                    if (shape_channel(&p.shape, i) != spoilt)
                        check_bits(t, "dx", &p.dx[i], &clean_dx[i], 1);
                    else if (!in_dy || bad[b] != bad[b])
                        check_bits(t, "dx", &p.dx[i], &nan_value, 1);
                    else if (isfinite(p.dx[i])) /* an infinite sum may stay an infinity */
                        test_fail(t, "dx[%zu] is %g, but its channel's dy has a %g", i,
                                  (double)p.dx[i], (double)bad[b]);
                }
                for (size_t i = 0; i < c; i++) {
                    if (i != spoilt) {
                        check_bits(t, "dgamma", &p.dgamma[i], &clean_dgamma[i], 1);
                        check_bits(t, "dbeta", &p.dbeta[i], &clean_dbeta[i], 1);
                    } else if (isfinite(p.dgamma[i]) || (in_dy && isfinite(p.dbeta[i]))) {
                        test_fail(t, "dgamma[%zu] is %g, dbeta %g, but the channel has a %g", i,
                                  (double)p.dgamma[i], (double)p.dbeta[i], (double)bad[b]);
                    }
                }
                compare_everywhere(t, &p);
                test_release(t);
            }
}

/* ---------------------------------------------------------------------------------------------- */
/* The decision at the kink is forward's own, for every element, however the argument is recovered.
 */

static void check_decisions(struct test *t, const struct problem *p, enum source source) {
    const size_t count = shape_count(&p->shape);
    const bnorm_exec exec = {.isa = t->isa};
    const float a = p->options.act.a;
    float *g = test_floats(t, count);
    bnorm_grad grad = grad_of(p);
    grad.dresidual.data = g;
    if (source != FROM_RESIDUAL)
        grad.residual.data = NULL;
    if (source == FROM_Y)
        grad.y.data = p->y;
    const size_t ws_size = bnorm_workspace(BNORM_OP_BACKWARD, &p->shape);
    say_problem(t, p, source == FROM_X ? "from x" : source == FROM_Y ? "from y" : "from residual");
    check_status(t, "bnorm_backward",
                 bnorm_backward(&p->shape, (bnorm_in){p->x, 0, 0}, (bnorm_in){p->dy, 0, 0},
                                (bnorm_out){NULL, 0, 0}, &grad, test_alloc(t, ws_size), ws_size,
                                &exec),
                 BNORM_OK);
    for (size_t i = 0; i < count; i++) {
        const float y = p->y[i];
        float want = p->dy[i]; /* 1 */
        switch (p->options.act.kind) {
        case BNORM_ACT_RELU:
            want = y > 0 ? want : 0;
            break;
        case BNORM_ACT_CLAMP:
            want = a < y && y < p->options.act.b ? want : 0;
            break;
        default: /* LEAKY_RELU */
            want = y > 0 ? want : a * want;
            break;
        }
        if (float_bits(g[i]) != float_bits(want))
            test_fail(t, "the gradient of element %zu is %g, but forward's y is %.9g (0x%08x)", i,
                      (double)g[i], (double)y, float_bits(y));
    }
}

static void test_decisions(struct test *t) {
    static const bnorm_act acts[] = {
        {BNORM_ACT_RELU, 0, 0}, {BNORM_ACT_CLAMP, 0, .5f}, {BNORM_ACT_LEAKY_RELU, .25f, 0}};
    const bnorm_shape shapes[] = {
        {.layout = layout_of(t), .n = 2, .c = 3, .hw = 4100},
        {.layout = layout_of(t), .n = 3, .c = 70, .hw = 49},
        {.layout = layout_of(t), .n = 200, .c = 17, .hw = 1},
    };
    for (size_t s = 0; s < COUNT_OF(shapes); s++)
        for (size_t a = 0; a < COUNT_OF(acts); a++)
            for (int mask = 0; mask < 16; mask++) {
                const struct options options = {
                    .act = acts[a],
                    .residual = mask & 1,
                    .lo = mask >> 1 & 1,
                    .frozen = mask >> 2 & 1,
                    .gamma = 1,
                    /* Without beta, many arguments lie next to 0. */
                    .beta = mask >> 3 & 1,
                };
                const size_t count = shape_count(&shapes[s]);
                struct problem p;
                problem_new(t, &p, &shapes[s], options.frozen ? VALUES_NORMAL : VALUES_MEAN_1E6,
                            &options);
                if (options.residual) { /* and here they lie there again */
                    const double *v = exact_argument(t, &p);
                    for (size_t i = 0; i < count; i += 2)
                        p.residual[i] = (float)-(v[i] - (double)p.residual[i]);
                    forward(t, &p);
                }
                for (size_t i = 0; i < count; i++)
                    p.dy[i] = 1;
                /* Forward uses all bits of the mean, so backward has to. Frozen statistics have no
                 * more. */
                if (options.lo || options.frozen)
                    check_decisions(t, &p, options.residual ? FROM_RESIDUAL : FROM_X);
                check_decisions(t, &p, FROM_Y);
                if (!options.residual && options.lo) { /* a residual of zeros changes nothing */
                    p.residual = test_floats(t, count);
                    check_decisions(t, &p, FROM_RESIDUAL);
                }
                test_release(t);
            }
}

/* ---------------------------------------------------------------------------------------------- */
/* Central differences of the oracle's forward pass, in double                                    */

/* L = sum(dy*y) as a function of everything forward takes. */
struct functional {
    const struct problem *p;
    double *x, *residual, *gamma, *beta; /* always there */
    double *mean, *invstd;               /* for frozen statistics */
    const double *dy;
    struct oracle_train_out scratch;
};

static double functional_value(const struct functional *f) {
    const bnorm_shape *shape = &f->p->shape;
    const size_t count = shape_count(shape), c = shape->c;
    double *y = f->scratch.y, sum = 0;
    if (f->p->options.frozen) {
        for (size_t i = 0; i < c; i++)
            f->scratch.invstd[i] = f->gamma[i] * f->invstd[i];
        const struct oracle_affine affine = {f->mean, f->scratch.invstd, f->beta, f->residual,
                                             f->p->options.act};
        oracle_apply(shape, f->x, &affine, NULL, y, NULL);
    } else {
        const struct oracle_train train = {f->gamma, f->beta, f->residual, 1e-5, f->p->options.act};
        oracle_train(shape, f->x, &train, &f->scratch);
    }
    for (size_t i = 0; i < count; i++)
        sum += f->dy[i] * y[i];
    return sum;
}

static void check_derivatives(struct test *t, const struct functional *f, const char *what,
                              double *of, size_t count, const double *exact, const float *got) {
    double largest = 0;
    for (size_t i = 0; i < count; i++)
        largest = fmax(largest, fabs(exact[i]));
    for (size_t i = 0; i < count; i++) {
        const double h = 0x1p-14, keep = of[i];
        of[i] = keep + h;
        const double above = functional_value(f);
        of[i] = keep - h;
        const double below = functional_value(f);
        of[i] = keep;
        /* The third derivative's h^2 is about 4e-9; statistics in float cost backward 1e-6. */
        const double difference = (above - below) / (2 * h), scale = 1 + largest;
        if (!(fabs(difference - exact[i]) <= 1e-5 * scale))
            test_fail(t, "%s[%zu]: the oracle says %.12g, central differences %.12g", what, i,
                      exact[i], difference);
        check_near(t, what, i, got[i], difference, 1e-5 * scale);
    }
}

static void test_differences(struct test *t) {
    const bnorm_shape shapes[] = {
        {.layout = layout_of(t), .n = 3, .c = 2, .hw = 7},
        {.layout = layout_of(t), .n = 9, .c = 3, .hw = 1},
        {.layout = layout_of(t), .n = 1, .c = 1, .hw = 19},
    };
    for (size_t s = 0; s < COUNT_OF(shapes); s++)
        for (int kind = 0; kind < ACT_KINDS; kind++)
            for (int mask = 0; mask < 4; mask++) {
                const size_t count = shape_count(&shapes[s]), c = shapes[s].c;
                const struct options options = {
                    .act = random_act(&t->rng, (bnorm_act_kind)kind),
                    .residual = mask & 1,
                    .frozen = mask >> 1,
                    .gamma = 1,
                    .beta = 1,
                    .lo = 1,
                };
                struct problem p;
                problem_new(t, &p, &shapes[s], VALUES_NORMAL, &options);
                const double *v = exact_argument(t, &p);
                for (size_t i = 0; i < count; i++) /* farther than h moves any argument */
                    if (oracle_kink_distance(options.act, v[i]) < .01)
                        p.dy[i] = 0;
                /* The library on the case's set. */
                problem_solve(t, &p);
                compare_everywhere(t, &p);
                say_problem(t, &p, "central differences");
                double *dy = to_double(t, p.dy, count);
                struct functional f = {
                    .p = &p,
                    .x = to_double(t, p.x, count),
                    .residual =
                        options.residual ? to_double(t, p.residual, count) : test_doubles(t, count),
                    .gamma = to_double(t, p.gamma, c),
                    .beta = to_double(t, p.beta, c),
                    .mean = to_double(t, p.mean, c),
                    .invstd = to_double(t, p.invstd, c),
                    .dy = dy,
                    .scratch = {.stats = {test_doubles(t, c), test_doubles(t, c),
                                          test_doubles(t, c), test_doubles(t, c)},
                                .invstd = test_doubles(t, c),
                                .invstd_bound = test_doubles(t, c),
                                .y = test_doubles(t, count)},
                };
                const struct oracle_grad_out e = oracle_gradient(t, &p);
                check_derivatives(t, &f, "dx", f.x, count, e.dx, p.dx);
                check_derivatives(t, &f, "dresidual", f.residual, count, e.g, p.dresidual);
                check_derivatives(t, &f, "dgamma", f.gamma, c, e.dgamma, p.dgamma);
                check_derivatives(t, &f, "dbeta", f.beta, c, e.dbeta, p.dbeta);
                test_release(t);
            }
}

/* ---------------------------------------------------------------------------------------------- */

/* N = 0 or HW = 0: dgamma and dbeta are 0, nothing else is touched, data may be NULL. */
static void test_empty(struct test *t) {
    const bnorm_exec exec = {.isa = t->isa};
    const float mean[3] = {1, 2, 3}, invstd[3] = {1, 1, 1}, before[3] = {1, 2, 3};
    const float zeros[3] = {0, 0, 0};
    for (int which = 0; which < 3; which++)
        for (int frozen = 0; frozen < 2; frozen++) {
            const bnorm_shape shape = {
                .layout = layout_of(t), .n = which == 1 ? 3 : 0, .c = 3, .hw = which == 0 ? 7 : 0};
            float dgamma[3] = {7, 7, 7}, dbeta[3] = {7, 7, 7}, dx[3] = {1, 2, 3}, dr[3] = {1, 2, 3};
            char text[96];
            test_context(t, "%s frozen=%d", shape_text(&shape, text), frozen);
            if (bnorm_workspace(BNORM_OP_BACKWARD, &shape))
                test_fail(t, "bnorm_workspace() is not 0 for an empty batch");
            const bnorm_in none = {NULL, 0, 0};
            bnorm_grad grad = {.save_mean = mean,
                               .save_invstd = invstd,
                               .frozen = frozen,
                               .dgamma = dgamma,
                               .dbeta = dbeta};
            check_status(
                t, "bnorm_backward on NULL",
                bnorm_backward(&shape, none, none, (bnorm_out){NULL, 0, 0}, &grad, NULL, 0, &exec),
                BNORM_OK);
            check_bits(t, "dgamma", dgamma, zeros, 3);
            check_bits(t, "dbeta", dbeta, zeros, 3);
            grad.dgamma = grad.dbeta = NULL;
            grad.dresidual.data = dr;
            check_status(t, "bnorm_backward",
                         bnorm_backward(&shape, (bnorm_in){mean, 0, 0}, (bnorm_in){invstd, 0, 0},
                                        (bnorm_out){dx, 0, 0}, &grad, NULL, 0, &exec),
                         BNORM_OK);
            check_bits(t, "dx", dx, before, 3);
            check_bits(t, "dresidual", dr, before, 3);
        }
}

void add_backward(struct suite *s) {
    static const struct layout_case cases[] = {
        {"backward", "sizes", test_sizes},
        {"backward", "options", test_options},
        {"backward", "misaligned", test_misaligned},
        {"backward", "values", test_values},
        {"backward", "nan", test_nan},
        {"backward", "decisions", test_decisions},
        {"backward", "differences", test_differences},
        {"backward", "empty", test_empty},
    };
    add_layout_cases(s, cases, COUNT_OF(cases));
}
