/* SPDX-License-Identifier: MIT
 *
 * bnorm_backward. The oracle is checked against central differences, the scalar set against the
 * oracle, every set against the scalar set's bits; the ways to recover the activation's argument
 * against each other and against forward. */
#include "oracle.h"
#include "types.h"

#include <math.h>
#include <string.h>

/* What tells backward the activation's argument. */
enum source { FROM_X = 0, FROM_RESIDUAL, FROM_Y, SOURCE_COUNT };

/* Forward with the scalar set, whose y is given back: for batch statistics a training pass, which
 * leaves its statistics in the data, for frozen ones bnorm_apply. */
static float *forward(struct test *t, struct problem *p) {
    struct call call = p->call;
    if (call.frozen) {
        call.op = BNORM_OP_APPLY;
        call.lo = 0;
        return run_scalar(t, &call, &p->data).y;
    }
    call.op = BNORM_OP_FORWARD_TRAIN;
    call.eps = 1e-5;
    call.omit = 0;
    const struct results saved = run_scalar(t, &call, &p->data);
    data_take(&p->data, &saved);
    return saved.y;
}

/* Random options, `act` picks the activation, and forward's results. */
static void problem_new(struct test *t, struct problem *p, const bnorm_shape *shape,
                        enum values values, size_t act) {
    *p = (struct problem){.call = random_call(t, BNORM_OP_BACKWARD, shape)};
    p->call.act = random_act(&t->rng, (bnorm_act_kind)(act % ACT_KINDS));
    p->call.lo &= !p->call.frozen;
    p->call.dense = 0;
    p->call.what = values_name(values);
    data_new(t, &p->data, shape);
    if (values != VALUES_NORMAL)
        data_fill(t, &p->data, values, BNORM_F32);
}

/* The scalar set, all outputs wanted. */
static void solve(struct test *t, struct problem *p) {
    forward(t, p);
    avoid_kinks(t, &p->call, &p->data, 0);
    problem_solve(t, p);
}

static int source_fits(const struct call *call, enum source source) {
    switch (source) {
    case FROM_X: /* an identity needs no argument, residual or not */
        return !call->residual || call->act.kind == BNORM_ACT_IDENTITY;
    case FROM_RESIDUAL:
        return call->residual;
    default:
        return y_tells_argument(call->act);
    }
}

static struct call with_source(const struct call *call, enum source source, const float *y) {
    struct call one = *call;
    one.residual = source == FROM_RESIDUAL;
    one.given_y = source == FROM_Y ? y : NULL;
    return one;
}

/* Two choices of a source and of outputs, of those that fit. */
static void check_everywhere(struct test *t, const struct problem *p, const float *y) {
    for (size_t k = 0; k < 2; k++) {
        const bnorm_exec exec = type_exec(t, rng_below(&t->rng, 20));
        enum source source;
        do
            source = (enum source)rng_below(&t->rng, SOURCE_COUNT);
        while (!source_fits(&p->call, source));
        struct call one = with_source(&p->call, source, y);
        random_outputs(&t->rng, &one);
        problem_check(t, p, &one, &exec);
    }
}

/* ---------------------------------------------------------------------------------------------- */

/* Every edge of sizes, each with other options and values. */
static void test_sizes(struct test *t) {
    const struct shape_list *list = edge_shapes(layout_of(t));
    for (size_t s = 0; s < list->count; s++) {
        if (!test_draws(t, 4))
            continue;
        struct problem p;
        problem_new(t, &p, &list->shapes[s], s % 3 ? VALUES_NORMAL : VALUES_MEAN_1E6, s);
        const float *y = forward(t, &p);
        avoid_kinks(t, &p.call, &p.data, 0);
        problem_solve(t, &p);
        check_everywhere(t, &p, y);
        test_release(t);
    }
}

/* Every combination of options, and every way to work in place, on a few shapes. */
static void test_options(struct test *t) {
    const bnorm_exec exec = {.isa = t->isa};
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
                p.call.frozen = mask >> 3 & 1;
                p.call.lo = mask >> 4 & !p.call.frozen;
                const float *y = forward(t, &p);
                avoid_kinks(t, &p.call, &p.data, 0);
                problem_solve(t, &p);
                for (int source = 0; source < SOURCE_COUNT; source++)
                    for (int dx = 0; dx < TARGET_COUNT; dx++)
                        for (int dresidual = 0; dresidual < TARGET_COUNT; dresidual++) {
                            struct call one = with_source(&p.call, (enum source)source, y);
                            one.side = (int)rng_below(&t->rng, 2);
                            one.out = (enum target)dx;
                            one.dresidual = (enum target)dresidual;
                            one.omit = (rng_below(&t->rng, 2) ? 0 : OMIT_DGAMMA) |
                                       (rng_below(&t->rng, 2) ? 0 : OMIT_DBETA);
                            if (source_fits(&p.call, (enum source)source) && targets_fit(&one) &&
                                test_draws(t, 5))
                                problem_check(t, &p, &one, &exec);
                        }
                test_release(t);
            }
}

static void test_misaligned(struct test *t) {
    const struct shape_list *list = small_shapes(layout_of(t));
    for (size_t s = 0; s < list->count; s++) {
        struct problem p;
        problem_new(t, &p, &list->shapes[s], VALUES_NORMAL, s);
        p.call.residual = 1;
        solve(t, &p);
        problem_check_shifts(t, &p, 16, 1);
        test_release(t);
    }
}

/* Values that lose accuracy where the sums are not computed with care; constant channels. */
static void test_values(struct test *t) {
    static const enum values kinds[] = {VALUES_NORMAL,        VALUES_MEAN_1E6, VALUES_OUTLIER,
                                        VALUES_HALF_CONSTANT, VALUES_CONSTANT, VALUES_DENORMAL};
    const struct shape_list *list = value_shapes(layout_of(t));
    for (size_t s = 0; s < list->count; s++)
        for (size_t k = 0; k < COUNT_OF(kinds); k++)
            for (size_t kind = 0; kind < ACT_KINDS; kind++) {
                if (!test_draws(t, 4))
                    continue;
                struct problem p;
                problem_new(t, &p, &list->shapes[s], kinds[k], kind);
                const float *y = forward(t, &p);
                avoid_kinks(t, &p.call, &p.data, 0);
                problem_solve(t, &p);
                check_everywhere(t, &p, y);
                test_release(t);
            }
}

/* A NaN or infinity in x spoils dx and dgamma of its own channel and no other bit; one in dy dbeta
 * as well. */
static void test_nan(struct test *t) {
    const float bad[] = {bits_float(0xffc00001u), bits_float(0x7fa00000u), INFINITY, -INFINITY};
    const struct shape_list *list = value_shapes(layout_of(t));
    for (size_t s = 0; s < list->count; s++)
        for (size_t b = 0; b < COUNT_OF(bad); b++)
            for (int in_dy = 0; in_dy < 2; in_dy++) {
                struct problem p;
                problem_new(t, &p, &list->shapes[s], VALUES_NORMAL,
                            in_dy ? BNORM_ACT_IDENTITY : s + b);
                p.call.frozen = 0;
                const float *y = forward(t, &p);
                avoid_kinks(t, &p.call, &p.data, 0);
                const struct results clean = run_scalar(t, &p.call, &p.data);
                const size_t count = data_count(&p.data), c = p.data.c;
                const size_t where = rng_below(&t->rng, count);
                const size_t spoilt = where / p.data.hw % c;
                if (in_dy) {
                    p.data.dy[where] = bad[b];
                } else {
                    p.data.x[where] = bad[b];
                    y = forward(t, &p);
                }
                p.want = run_scalar(t, &p.call, &p.data);
                const float *dx = p.want.dx, *dgamma = p.want.dgamma, *dbeta = p.want.dbeta;
                const float nan_value = bits_float(NAN_BITS);
                for (size_t i = 0; i < count; i++) {
                    if (i / p.data.hw % c != spoilt)
                        check_bits(t, "dx", &dx[i], &clean.dx[i], 1);
                    else if (!in_dy || bad[b] != bad[b])
                        check_bits(t, "dx", &dx[i], &nan_value, 1);
                    else if (isfinite(dx[i])) /* an infinite sum may stay an infinity */
                        test_fail(t, "dx[%zu] is %g, but its channel's dy has a %g", i,
                                  (double)dx[i], (double)bad[b]);
                }
                for (size_t i = 0; i < c; i++) {
                    if (i != spoilt) {
                        check_bits(t, "dgamma", &dgamma[i], &clean.dgamma[i], 1);
                        check_bits(t, "dbeta", &dbeta[i], &clean.dbeta[i], 1);
                    } else if (isfinite(dgamma[i]) || (in_dy && isfinite(dbeta[i]))) {
                        test_fail(t, "dgamma[%zu] is %g, dbeta %g, but the channel has a %g", i,
                                  (double)dgamma[i], (double)dbeta[i], (double)bad[b]);
                    }
                }
                check_everywhere(t, &p, y);
                test_release(t);
            }
}

/* ---------------------------------------------------------------------------------------------- */
/* The decision at the kink is forward's own, for every element, however the argument is recovered.
 */

static void check_decisions(struct test *t, const struct problem *p, enum source source,
                            const float *forward_y) {
    const bnorm_exec exec = {.isa = t->isa};
    const size_t count = data_count(&p->data);
    const bnorm_act act = p->call.act;
    struct call call = with_source(&p->call, source, forward_y);
    call.out = NOWHERE;
    call.omit = OMIT_DGAMMA | OMIT_DBETA;
    call.what = source == FROM_X ? "from x" : source == FROM_Y ? "from y" : "from residual";
    const float *g = run_call(t, &call, &p->data, &exec).dresidual;
    for (size_t i = 0; i < count; i++) {
        const float y = forward_y[i];
        float want = p->data.dy[i]; /* 1 */
        switch (act.kind) {
        case BNORM_ACT_RELU:
            want = y > 0 ? want : 0;
            break;
        case BNORM_ACT_CLAMP:
            want = act.a < y && y < act.b ? want : 0;
            break;
        default: /* LEAKY_RELU */
            want = y > 0 ? want : act.a * want;
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
                const int frozen = mask >> 2 & 1, residual = mask & 1;
                struct problem p;
                problem_new(t, &p, &shapes[s], frozen ? VALUES_NORMAL : VALUES_MEAN_1E6, 0);
                const size_t count = data_count(&p.data), c = p.data.c;
                p.call.act = acts[a];
                p.call.residual = residual;
                p.call.lo = mask >> 1 & !frozen;
                p.call.frozen = frozen;
                p.data.gamma = uniform_floats(t, 1, c, -2, 2);
                /* Without beta, many arguments lie next to 0. */
                p.data.beta = uniform_floats(t, mask & 8, c, -2, 2);
                const float *y = forward(t, &p);
                if (residual) { /* and here they lie there again */
                    const double *v = exact_argument(t, &p.call, &p.data);
                    for (size_t i = 0; i < count; i += 2)
                        p.data.residual[i] = (float)-(v[i] - (double)p.data.residual[i]);
                    y = forward(t, &p);
                }
                for (size_t i = 0; i < count; i++)
                    p.data.dy[i] = 1;
                /* Forward uses all bits of the mean, so backward has to. Frozen statistics have no
                 * more. */
                if (p.call.lo || frozen)
                    check_decisions(t, &p, residual ? FROM_RESIDUAL : FROM_X, y);
                check_decisions(t, &p, FROM_Y, y);
                if (!residual && (p.call.lo || frozen)) { /* a residual of zeros changes nothing */
                    p.data.residual = test_floats(t, count);
                    check_decisions(t, &p, FROM_RESIDUAL, y);
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
    const bnorm_shape plain = plain_shape(&f->p->call.shape), *shape = &plain;
    const bnorm_act act = f->p->call.act;
    const size_t count = shape_count(shape), c = shape->c;
    double *y = f->scratch.y, sum = 0;
    if (f->p->call.frozen) {
        for (size_t i = 0; i < c; i++)
            f->scratch.invstd[i] = f->gamma[i] * f->invstd[i];
        const struct oracle_affine affine = {f->mean, f->scratch.invstd, f->beta, f->residual, act};
        oracle_apply(shape, f->x, &affine, NULL, y, NULL);
    } else {
        const struct oracle_train train = {f->gamma, f->beta, f->residual, 1e-5, act};
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
                struct problem p;
                problem_new(t, &p, &shapes[s], VALUES_NORMAL, (size_t)kind);
                const size_t count = data_count(&p.data), c = p.data.c;
                struct data *d = &p.data;
                p.call.what = "central differences";
                p.call.residual = mask & 1;
                p.call.frozen = mask >> 1;
                p.call.lo = !p.call.frozen;
                d->gamma = uniform_floats(t, 1, c, -2, 2);
                d->beta = uniform_floats(t, 1, c, -2, 2);
                const float *y = forward(t, &p);
                avoid_kinks(t, &p.call, d, .01); /* farther than h moves any argument */
                /* The library on the case's set. */
                p.want = run_scalar(t, &p.call, d);
                check_everywhere(t, &p, y);
                double *dy = to_double(t, d->dy, count);
                struct functional f = {
                    .p = &p,
                    .x = to_double(t, d->x, count),
                    .residual =
                        p.call.residual ? to_double(t, d->residual, count) : test_doubles(t, count),
                    .gamma = to_double(t, d->gamma, c),
                    .beta = to_double(t, d->beta, c),
                    .mean = to_double(t, d->mean, c),
                    .invstd = to_double(t, d->invstd, c),
                    .dy = dy,
                    .scratch = {.stats = {test_doubles(t, c), test_doubles(t, c),
                                          test_doubles(t, c), test_doubles(t, c)},
                                .invstd = test_doubles(t, c),
                                .invstd_bound = test_doubles(t, c),
                                .y = test_doubles(t, count)},
                };
                const struct oracle_grad_out e = oracle_gradient(t, &p.call, d, NULL);
                check_derivatives(t, &f, "dx", f.x, count, e.dx, p.want.dx);
                check_derivatives(t, &f, "dresidual", f.residual, count, e.g, p.want.dresidual);
                check_derivatives(t, &f, "dgamma", f.gamma, c, e.dgamma, p.want.dgamma);
                check_derivatives(t, &f, "dbeta", f.beta, c, e.dbeta, p.want.dbeta);
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

/* Sums of blocks of zeros, all of them negative, are 0, however few they are. */
static void test_zeros(struct test *t) {
    enum { N = 3, C = 16, MOST = 20 };
    static const size_t blocks[] = {0, 4, 8, 16};
    const bnorm_exec exec = {.isa = t->isa};
    const float zeros[C] = {0};
    float mean[C], invstd[C], dgamma[C], dbeta[C];
    float x[N * C * MOST], dy[N * C * MOST], dx[N * C * MOST];
    for (size_t i = 0; i < N * C * MOST; i++) {
        x[i] = (float)(i % 5);
        dy[i] = -0.0f;
    }
    for (size_t i = 0; i < C; i++) {
        mean[i] = 2;
        invstd[i] = 1;
    }
    for (size_t b = 0; b < (layout_of(t) == BNORM_NCHW ? COUNT_OF(blocks) : 1); b++)
        for (size_t hw = 2; hw <= MOST; hw++) {
            const bnorm_shape shape = {layout_of(t), BNORM_F32, N, C, hw, blocks[b]};
            const size_t size = bnorm_workspace(BNORM_OP_BACKWARD, &shape);
            const bnorm_grad grad = {
                .save_mean = mean, .save_invstd = invstd, .dgamma = dgamma, .dbeta = dbeta};
            char text[96];
            test_context(t, "%s", shape_text(&shape, text));
            check_status(t, "bnorm_backward",
                         bnorm_backward(&shape, (bnorm_in){x, 0, 0}, (bnorm_in){dy, 0, 0},
                                        (bnorm_out){dx, 0, 0}, &grad, test_alloc(t, size), size,
                                        &exec),
                         BNORM_OK);
            check_bits(t, "dbeta", dbeta, zeros, C);
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
        {"backward", "zeros", test_zeros},
    };
    add_layout_cases(s, cases, COUNT_OF(cases));
}
