/* SPDX-License-Identifier: MIT
 *
 * Statistics, training and backward on BF16 and F16 tensors. See types.h for the oracle: what is
 * float by contract (statistics, gradients of parameters) has the bits of the call on floats. */
#include "oracle.h"
#include "types.h"

#include <math.h>

/* ---------------------------------------------------------------------------------------------- */
/* Forward                                                                                        */

/* Random options; `i` picks the activation. */
static struct call random_forward(struct test *t, const bnorm_shape *shape, size_t i) {
    static const double rates[] = {0, .1, 1, -1.2}, epsilons[] = {1e-3, 1e-5, 1e-9};
    struct rng *r = &t->rng;
    struct call call = random_call(t, BNORM_OP_FORWARD_TRAIN, shape);
    call.dense = 0;
    call.act = type_act(t, i);
    call.mask = act_has_mask(call.act) && rng_below(r, 2);
    call.omit = (rng_below(r, 4) ? 0 : OMIT_MEAN) | (rng_below(r, 4) ? 0 : OMIT_INVSTD) |
                (rng_below(r, 2) ? 0 : OMIT_RUNNING);
    call.eps = epsilons[rng_below(r, 3)];
    call.rate = rates[rng_below(r, 4)];
    call.variance = (bnorm_variance)rng_below(r, 2);
    call.elsewhere = rng_below(r, 4) == 0;
    return call;
}

/* The moments of the same x. */
static struct problem moments_of(struct test *t, const struct problem *p) {
    struct problem moments = *p;
    moments.call.op = BNORM_OP_MOMENTS;
    moments.call.omit = 0;
    typed_solve(t, &moments);
    return moments;
}

/* Both guard pages; mostly both moments. */
static void check_forward(struct test *t, struct problem *p) {
    typed_solve(t, p);
    struct problem moments = moments_of(t, p);
    const size_t which = rng_below(&t->rng, 4);
    moments.call.omit = which == 1 ? OMIT_MEAN : which == 2 ? OMIT_VAR : 0;
    problem_check_sides(t, p, &p->call);
    problem_check_sides(t, &moments, &moments.call);
}

static void test_forward_sizes(struct test *t) {
    const struct shape_list *list = type_shapes(t);
    for (size_t s = 0; s < list->count; s++) {
        if (!test_draws(t, 3))
            continue;
        const struct call call = random_forward(t, &list->shapes[s], rng_below(&t->rng, 1000));
        struct problem p;
        typed_problem(t, &p, &call, s % 3 ? TYPE_NORMAL : TYPE_OFFSET);
        check_forward(t, &p);
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
                const struct call call = random_forward(t, &list->shapes[s], kind);
                struct problem p;
                typed_problem(t, &p, &call, (enum type_values)values);
                p.denormals = (bnorm_denormals)(i / 7 % 2);
                check_forward(t, &p);
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
        const struct call call = random_forward(t, &list->shapes[s], s);
        struct problem p;
        typed_problem(t, &p, &call, TYPE_NORMAL);
        p.call.what = "normal and one that is not finite";
        p.data.x[rng_below(&t->rng, data_count(&p.data))] = bad[s % COUNT_OF(bad)];
        check_forward(t, &p);
        test_release(t);
    }
}

static void test_forward_misaligned(struct test *t) {
    const struct shape_list *list = type_shapes(t);
    for (size_t s = 0; s < type_few_shapes(t); s++) {
        struct call call = random_forward(t, &list->shapes[s], s);
        call.residual = 1;
        struct problem p;
        typed_problem(t, &p, &call, TYPE_NORMAL);
        typed_solve(t, &p);
        problem_check_shifts(t, &p, 32, 4);
        const struct problem moments = moments_of(t, &p);
        problem_check_shifts(t, &moments, 32, 4);
        test_release(t);
    }
}

static void test_forward_exec(struct test *t) {
    const struct shape_list *list = type_shared_shapes(t);
    for (size_t s = 0; s < list->count; s++) {
        if (!test_draws(t, 2))
            continue;
        const struct call call = random_forward(t, &list->shapes[s], rng_below(&t->rng, 1000));
        struct problem p;
        typed_problem(t, &p, &call, TYPE_NORMAL);
        typed_solve(t, &p);
        typed_check_execs(t, &p, s);
        const struct problem moments = moments_of(t, &p);
        typed_check_execs(t, &moments, s);
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
            bnorm_shape plain = plain_shape(shape);
            if (shape->c_block)
                break;                                   /* the oracle has the plain layouts */
            plain.c_block = shape->layout == BNORM_NHWC; /* the bounds of rows */
            const struct call call = {.op = BNORM_OP_MOMENTS, .shape = *shape, .side = SIDE_END};
            const bnorm_exec exec = {.isa = t->isa};
            const float largest = dtype_of(t) == BNORM_BF16 ? bits_float(0x7f7f0000u) : 65504.0f;
            struct problem p;
            typed_problem(t, &p, &call, TYPE_LARGE);
            for (size_t i = 0; constant && i < count; i++)
                p.data.x[i] = largest;
            p.call.what = constant ? "constant" : "large";
            const struct results got = run_call(t, &p.call, &p.data, &exec);
            const float *mean = got.mean, *var = got.var;
            const struct oracle_stats exact = {test_doubles(t, c), test_doubles(t, c),
                                               test_doubles(t, c), test_doubles(t, c)};
            oracle_moments(&plain, to_double(t, p.data.x, count), &exact);
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
            test_release(t);
        }
}

/* ---------------------------------------------------------------------------------------------- */
/* Backward                                                                                       */

/* What tells backward the activation's argument. */
enum source { FROM_X = 0, FROM_RESIDUAL, FROM_Y, FROM_MASK, SOURCE_COUNT };

static int source_fits(bnorm_act act, enum source source) {
    return source == FROM_X || source == FROM_RESIDUAL || act.kind == BNORM_ACT_IDENTITY ||
           (source == FROM_MASK ? act_has_mask(act) : y_tells_argument(act));
}

/* Random options; `i` picks the activation. */
static struct call random_backward(struct test *t, const bnorm_shape *shape, size_t i) {
    struct call call = random_call(t, BNORM_OP_BACKWARD, shape);
    call.dense = 0;
    call.act = type_act(t, i);
    return call;
}

static enum source random_source(struct test *t, bnorm_act act) {
    enum source source;
    do
        source = (enum source)rng_below(&t->rng, SOURCE_COUNT);
    while (!source_fits(act, source));
    return source;
}

/* Statistics from forward, on floats; its y as it would have been stored; random bits of a mask. */
static void grad_new(struct test *t, struct problem *p, const struct call *call,
                     enum type_values values, enum source source) {
    const bnorm_exec exec = {.isa = t->isa};
    typed_problem(t, p, call, values);
    p->call.residual = source == FROM_RESIDUAL;
    struct call forward = on_floats(&p->call);
    forward.op = BNORM_OP_FORWARD_TRAIN;
    forward.eps = 1e-5;
    const struct results saved = run_call(t, &forward, &p->data, &exec);
    data_take(&p->data, &saved);
    if (source == FROM_Y) {
        round_floats(call->shape.dtype, saved.y, data_count(&p->data));
        p->call.given_y = saved.y;
    }
    if (source == FROM_MASK) {
        const size_t bytes = bnorm_mask_size(&call->shape);
        unsigned char *mask = test_alloc(t, bytes);
        for (size_t i = 0; i < bytes; i++)
            mask[i] = (unsigned char)rng_u64(&t->rng);
        p->call.given_mask = mask;
    }
}

/* Two ways to run and two choices of outputs. */
static void check_everywhere(struct test *t, const struct problem *p) {
    for (size_t k = 0; k < 2; k++) {
        const bnorm_exec exec = type_exec(t, rng_below(&t->rng, 20));
        struct call one = p->call;
        random_outputs(&t->rng, &one);
        problem_check(t, p, &one, &exec);
    }
}

static void test_backward_sizes(struct test *t) {
    const struct shape_list *list = type_shapes(t);
    for (size_t s = 0; s < list->count; s++) {
        if (!test_draws(t, 3))
            continue;
        const struct call call = random_backward(t, &list->shapes[s], rng_below(&t->rng, 1000));
        struct problem p;
        grad_new(t, &p, &call, s % 3 ? TYPE_NORMAL : TYPE_OFFSET, random_source(t, call.act));
        typed_solve(t, &p);
        check_everywhere(t, &p);
        test_release(t);
    }
}

/* Every activation from every source, frozen or not, into every pair of places. */
static void test_backward_options(struct test *t) {
    const struct shape_list *list = type_shapes(t);
    const bnorm_exec exec = {.isa = t->isa};
    size_t i = 0;
    for (size_t kind = 0; kind < ALL_ACT_KINDS; kind++)
        for (int source = 0; source < SOURCE_COUNT; source++)
            for (int frozen = 0; frozen < 2; frozen++) {
                const bnorm_shape *shape = &list->shapes[i % type_few_shapes(t)];
                struct call call = random_backward(t, shape, kind);
                if (!source_fits(call.act, (enum source)source))
                    continue;
                i++;
                call.frozen = frozen;
                struct problem p;
                grad_new(t, &p, &call, TYPE_NORMAL, (enum source)source);
                typed_solve(t, &p);
                for (int dx = 0; dx < TARGET_COUNT; dx++)
                    for (int dresidual = 0; dresidual < TARGET_COUNT; dresidual++) {
                        struct call one = p.call;
                        one.side = (int)rng_below(&t->rng, 2);
                        one.out = (enum target)dx;
                        one.dresidual = (enum target)dresidual;
                        one.omit = (rng_below(&t->rng, 2) ? 0 : OMIT_DGAMMA) |
                                   (rng_below(&t->rng, 2) ? 0 : OMIT_DBETA);
                        if (targets_fit(&one) && test_draws(t, 2))
                            problem_check(t, &p, &one, &exec);
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
                const struct call call = random_backward(t, &list->shapes[s], kind);
                struct problem p;
                grad_new(t, &p, &call, (enum type_values)values, random_source(t, call.act));
                p.denormals = (bnorm_denormals)(i / 7 % 2);
                typed_solve(t, &p);
                check_everywhere(t, &p);
                test_release(t);
            }
}

static void test_backward_misaligned(struct test *t) {
    const struct shape_list *list = type_shapes(t);
    for (size_t s = 0; s < type_few_shapes(t); s++) {
        const struct call call = random_backward(t, &list->shapes[s], s);
        struct problem p;
        grad_new(t, &p, &call, TYPE_NORMAL, FROM_RESIDUAL);
        typed_solve(t, &p);
        problem_check_shifts(t, &p, 32, 6);
        test_release(t);
    }
}

static void test_backward_exec(struct test *t) {
    const struct shape_list *list = type_shared_shapes(t);
    for (size_t s = 0; s < list->count; s++) {
        if (!test_draws(t, 2))
            continue;
        const struct call call = random_backward(t, &list->shapes[s], rng_below(&t->rng, 1000));
        struct problem p;
        grad_new(t, &p, &call, TYPE_NORMAL, random_source(t, call.act));
        typed_solve(t, &p);
        if (rng_below(&t->rng, 2))
            p.call.dresidual = NOWHERE;
        typed_check_execs(t, &p, s);
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
