/* SPDX-License-Identifier: MIT
 *
 * bnorm_apply. The scalar set is compared to the oracle, every set to the scalar set's bits; each
 * call with other strides, alignments, guard pages and ways to work in place. */
#include "cases.h"
#include "oracle.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

struct options {
    bnorm_act act;
    int residual, center, scale, shift; /* given or NULL */
};

/* A problem with its dense data; the parameters that options leave out are NULL. */
struct problem {
    bnorm_shape shape;
    struct options options;
    float *x, *residual, *center, *scale, *shift;
    float *want; /* what the scalar set makes of dense data */
};

static void say_problem(struct test *t, const struct problem *p, const char *how) {
    char text[96];
    test_context(t, "%s act=%d(%.9g, %.9g)%s%s%s%s, %s", shape_text(&p->shape, text),
                 (int)p->options.act.kind, (double)p->options.act.a, (double)p->options.act.b,
                 p->residual ? " residual" : "", p->center ? " center" : "",
                 p->scale ? " scale" : "", p->shift ? " shift" : "", how);
}

static void problem_new(struct test *t, struct problem *p, const bnorm_shape *shape,
                        const struct options *options) {
    const size_t count = shape_count(shape), c = shape->c;
    p->shape = *shape;
    p->options = *options;
    p->x = test_floats(t, count);
    p->residual = uniform_floats(t, options->residual, count, -2, 2);
    p->center = uniform_floats(t, options->center, c, -2, 2);
    p->scale = uniform_floats(t, options->scale, c, -2, 2);
    p->shift = uniform_floats(t, options->shift, c, -2, 2);
    p->want = test_floats(t, count);
    fill_values(&t->rng, shape, VALUES_NORMAL, p->x);
}

/* The scalar set on dense data. */
static void problem_solve(struct test *t, struct problem *p) {
    say_problem(t, p, "scalar, dense");
    const bnorm_affine affine = {
        .center = p->center,
        .scale = p->scale,
        .shift = p->shift,
        .residual = {p->residual, 0, 0},
        .act = p->options.act,
    };
    const bnorm_exec exec = {.isa = scalar_isa()};
    const bnorm_in x = {p->x, 0, 0};
    const bnorm_out y = {p->want, 0, 0};
    check_status(t, "bnorm_apply", bnorm_apply(&p->shape, x, y, &affine, &exec), BNORM_OK);
}

static void compare_to_oracle(struct test *t, const struct problem *p) {
    const size_t count = shape_count(&p->shape), c = p->shape.c;
    double *x = to_double(t, p->x, count);
    double *y = test_doubles(t, count), *bound = test_doubles(t, count);
    const struct oracle_affine affine = {
        .center = to_double(t, p->center, c),
        .scale = to_double(t, p->scale, c),
        .shift = to_double(t, p->shift, c),
        .residual = to_double(t, p->residual, count),
        .act = p->options.act,
    };
    oracle_apply(&p->shape, x, &affine, NULL, y, bound);
    for (size_t i = 0; i < count; i++)
        check_near(t, "y", i, p->want[i], y[i], bound[i]);
}

struct how {
    enum side side;
    enum in_place in_place;
    const struct placement *x, *residual, *y; /* NULL: random */
};

/* Runs the problem on the case's set and compares the bits. */
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

    const bnorm_affine affine = {
        .center = p->center ? fixture_input(&f, "center", p->center, c) : NULL,
        .scale = p->scale ? fixture_input(&f, "scale", p->scale, c) : NULL,
        .shift = p->shift ? fixture_input(&f, "shift", p->shift, c) : NULL,
        .residual = residual ? tensor_in(residual) : (bnorm_in){NULL, 0, 0},
        .act = p->options.act,
    };
    char text[256];
    snprintf(text, sizeof text,
             "%s, %s, strides (run, image, misaligned by) x (%zu, %zu, %zu) y (%zu, %zu, %zu)",
             how->side == SIDE_START ? "guard before" : "guard after", in_place_text(how->in_place),
             x->run_stride, x->image_stride, (size_t)((uintptr_t)x->data / 4 % 16), y->run_stride,
             y->image_stride, (size_t)((uintptr_t)y->data / 4 % 16));
    say_problem(t, p, text);

    const bnorm_exec exec = {.isa = t->isa};
    check_status(t, "bnorm_apply",
                 bnorm_apply(&p->shape, tensor_in(x), tensor_out(y), &affine, &exec), BNORM_OK);
    float *got = test_floats(t, count);
    tensor_get(y, &p->shape, got);
    check_bits(t, "y", got, p->want, count);
    fixture_check(&f);
    fixture_end(&f);
}

static void compare_everywhere(struct test *t, const struct problem *p, enum in_place in_place) {
    for (int side = SIDE_START; side <= SIDE_END; side++) {
        const struct how how = {.side = (enum side)side, .in_place = in_place};
        compare_to_scalar(t, p, &how);
    }
}

/* ---------------------------------------------------------------------------------------------- */

/* Every edge of sizes, each with other options. */
static void test_sizes(struct test *t) {
    const struct shape_list *list = edge_shapes(layout_of(t));
    for (size_t s = 0; s < list->count; s++) {
        if (!test_draws(t, 2))
            continue;
        const uint64_t bits = rng_u64(&t->rng);
        const struct options options = {
            .act = random_act(&t->rng, (bnorm_act_kind)(s % ACT_KINDS)),
            .residual = (int)(bits & 1),
            .center = (int)(bits >> 1 & 1),
            .scale = (bits >> 2 & 7) != 0,
            .shift = (bits >> 5 & 7) != 0,
        };
        struct problem p;
        problem_new(t, &p, &list->shapes[s], &options);
        problem_solve(t, &p);
        if (is_scalar(t))
            compare_to_oracle(t, &p);
        compare_everywhere(t, &p, (enum in_place)(bits >> 8 & 0xff) % IN_PLACE_COUNT);
        test_release(t);
    }
}

/* Every combination of options on a few shapes. */
static void test_options(struct test *t) {
    const struct shape_list *list = small_shapes(layout_of(t));
    for (size_t s = 0; s < list->count; s++)
        for (int kind = 0; kind < ACT_KINDS; kind++)
            for (int mask = 0; mask < 16; mask++) {
                const struct options options = {
                    .act = random_act(&t->rng, (bnorm_act_kind)kind),
                    .residual = mask & 1,
                    .center = mask >> 1 & 1,
                    .scale = mask >> 2 & 1,
                    .shift = mask >> 3 & 1,
                };
                struct problem p;
                problem_new(t, &p, &list->shapes[s], &options);
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
    const struct options options = {
        .act.kind = BNORM_ACT_RELU, .residual = 1, .center = 1, .scale = 1, .shift = 1};
    for (size_t s = 0; s < list->count; s++) {
        struct problem p;
        problem_new(t, &p, &list->shapes[s], &options);
        problem_solve(t, &p);
        for (int side = SIDE_START; side <= SIDE_END; side++)
            for (size_t which = 0; which < 4; which++)
                for (size_t shift = 0; shift < 16; shift++) {
                    struct placement places[3];
                    for (size_t k = 0; k < 3; k++)
                        places[k] = (struct placement){
                            .side = (enum side)side, .shift = which == k || which == 3 ? shift : 0};
                    const struct how how = {(enum side)side, SEPARATE, &places[0], &places[1],
                                            &places[2]};
                    compare_to_scalar(t, &p, &how);
                }
        test_release(t);
    }
}

/* x, residual and y as neighbouring channel slices of one wider buffer, as in a concatenation. */
static void test_slices(struct test *t) {
    const struct shape_list *list = small_shapes(layout_of(t));
    const struct options options = {.act.kind = BNORM_ACT_LEAKY_RELU,
                                    .act.a = .25f,
                                    .residual = 1,
                                    .center = 1,
                                    .scale = 1,
                                    .shift = 1};
    for (size_t s = 0; s < list->count; s++) {
        struct problem p;
        problem_new(t, &p, &list->shapes[s], &options);
        problem_solve(t, &p);
        const size_t count = shape_count(&p.shape);
        bnorm_shape wide = p.shape;
        wide.c *= 3;
        /* The wider buffer, and its slices seen as tensors. */
        struct fixture f;
        fixture_start(&f, t, (enum side)(s % 2));
        struct tensor *all =
            fixture_tensor(&f, "wide", &wide, &(struct placement){.side = f.side}, NULL);
        fixture_writes(&f, all);
        struct tensor slices[3];
        for (size_t k = 0; k < 3; k++) {
            slices[k] = *all;
            slices[k].data =
                (float *)all->data +
                k * (p.shape.layout == BNORM_NHWC ? p.shape.c : p.shape.c * p.shape.hw);
            slices[k].given_run_stride = all->run_stride;
            slices[k].given_image_stride = all->image_stride;
        }
        tensor_put(&slices[0], &p.shape, p.x);
        tensor_put(&slices[2], &p.shape, p.residual);
        say_problem(t, &p, "slices of one buffer");
        const bnorm_affine affine = {.center = p.center,
                                     .scale = p.scale,
                                     .shift = p.shift,
                                     .residual = tensor_in(&slices[2]),
                                     .act = p.options.act};
        const bnorm_exec exec = {.isa = t->isa};
        check_status(
            t, "bnorm_apply",
            bnorm_apply(&p.shape, tensor_in(&slices[0]), tensor_out(&slices[1]), &affine, &exec),
            BNORM_OK);
        float *got = test_floats(t, count);
        tensor_get(&slices[1], &p.shape, got);
        check_bits(t, "y", got, p.want, count);
        tensor_get(&slices[0], &p.shape, got);
        check_bits(t, "x", got, p.x, count);
        tensor_get(&slices[2], &p.shape, got);
        check_bits(t, "residual", got, p.residual, count);
        fixture_check(&f);
        fixture_end(&f);
        test_release(t);
    }
}

/* The same tensor as x and residual; one array as center, scale and shift. */
static void test_shared_inputs(struct test *t) {
    const struct shape_list *list = small_shapes(layout_of(t));
    for (size_t s = 0; s < list->count; s++) {
        const struct options options = {.act.kind = BNORM_ACT_IDENTITY, .scale = 1};
        struct problem p;
        problem_new(t, &p, &list->shapes[s], &options);
        p.residual = p.x;
        p.center = p.shift = p.scale;
        problem_solve(t, &p);
        if (is_scalar(t))
            compare_to_oracle(t, &p);
        const size_t count = shape_count(&p.shape);
        for (int in_place = 0; in_place < 2; in_place++) {
            struct fixture f;
            fixture_start(&f, t, SIDE_END);
            struct tensor *x = fixture_tensor(&f, "x", &p.shape, NULL, p.x);
            struct tensor *y = in_place ? x : fixture_tensor(&f, "y", &p.shape, NULL, NULL);
            fixture_writes(&f, y);
            const float *a = fixture_input(&f, "parameters", p.scale, p.shape.c);
            const bnorm_affine affine = {
                .center = a, .scale = a, .shift = a, .residual = tensor_in(x)};
            const bnorm_exec exec = {.isa = t->isa};
            say_problem(t, &p, in_place ? "all of them one tensor" : "x is the residual");
            check_status(t, "bnorm_apply",
                         bnorm_apply(&p.shape, tensor_in(x), tensor_out(y), &affine, &exec),
                         BNORM_OK);
            float *got = test_floats(t, count);
            tensor_get(y, &p.shape, got);
            check_bits(t, "y", got, p.want, count);
            fixture_check(&f);
            fixture_end(&f);
        }
        test_release(t);
    }
}

/* Values at which vectors are tempted to differ: each against each activation, at each lane. */
static void test_special_values(struct test *t) {
    const float special[] = {0.0f,
                             -0.0f,
                             1e-45f,
                             -1e-45f,
                             1e-38f,
                             -1e-38f,
                             3.0f,
                             -3.0f,
                             2.9999998f,
                             -2.9999998f,
                             6.0f,
                             1.0f,
                             -1.0f,
                             .5f,
                             3e38f,
                             -3e38f,
                             INFINITY,
                             -INFINITY,
                             bits_float(NAN_BITS),
                             bits_float(0xffc12345u),
                             bits_float(0x7f812345u)};
    const bnorm_act acts[] = {{BNORM_ACT_IDENTITY, 0, 0},      {BNORM_ACT_RELU, 0, 0},
                              {BNORM_ACT_CLAMP, 0, 6},         {BNORM_ACT_CLAMP, -1, .5f},
                              {BNORM_ACT_CLAMP, -INFINITY, 1}, {BNORM_ACT_LEAKY_RELU, .01f, 0},
                              {BNORM_ACT_LEAKY_RELU, 0, 0},    {BNORM_ACT_LEAKY_RELU, -2, 0},
                              {BNORM_ACT_LEAKY_RELU, 3, 0},    {BNORM_ACT_HARD_SWISH, 0, 0}};
    const struct shape_list *list = small_shapes(layout_of(t));
    for (size_t s = 0; s < list->count; s++)
        for (size_t a = 0; a < COUNT_OF(acts); a++)
            for (int mask = 0; mask < 8; mask++) {
                const struct options options = {.act = acts[a],
                                                .residual = mask & 1,
                                                .center = mask >> 1 & 1,
                                                .scale = mask >> 2 & 1,
                                                .shift = mask >> 2 & 1};
                struct problem p;
                problem_new(t, &p, &list->shapes[s], &options);
                const size_t count = shape_count(&p.shape);
                for (size_t i = 0; i < count; i++)
                    p.x[i] = special[rng_below(&t->rng, COUNT_OF(special))];
                if (p.residual && s % 2)
                    for (size_t i = 0; i < count; i++)
                        p.residual[i] = special[rng_below(&t->rng, COUNT_OF(special))];
                problem_solve(t, &p);
                for (size_t i = 0; i < count; i++) {
                    const float y = p.want[i], x = p.x[i];
                    if (y != y && float_bits(y) != NAN_BITS)
                        test_fail(t, "y[%zu] is the NaN 0x%08x, expected 0x%08x", i, float_bits(y),
                                  NAN_BITS);
                    if (mask) /* else y = act(fma(x, 1, 0)): exact expectations */
                        continue;
                    const double exact = oracle_act(acts[a], (double)x);
                    const int tiny = fabs(exact) < 0x1p-125;
                    check_near(t, "y", i, y, exact, tiny ? 0x1p-148 : fabs(exact) * 0x1p-22);
                    if (acts[a].kind == BNORM_ACT_RELU && x <= 0 && float_bits(y) != 0)
                        test_fail(t, "RELU of %g is 0x%08x, expected +0", (double)x, float_bits(y));
                    if (acts[a].kind == BNORM_ACT_HARD_SWISH && x <= -3 && y != 0)
                        test_fail(t, "HARD_SWISH of %g is %g, expected 0", (double)x, (double)y);
                    if (acts[a].kind == BNORM_ACT_HARD_SWISH && x >= 3 && y != x)
                        test_fail(t, "HARD_SWISH of %g is %g, expected itself", (double)x,
                                  (double)y);
                }
                compare_everywhere(t, &p, (enum in_place)(mask & 1 ? a % 3 : a % 2));
                test_release(t);
            }
}

/* affine NULL copies, and a NaN is made the one NaN that bnorm writes. */
static void test_copy(struct test *t) {
    const struct shape_list *list = small_shapes(layout_of(t));
    const bnorm_exec exec = {.isa = t->isa};
    for (size_t s = 0; s < list->count; s++) {
        char text[96];
        const bnorm_shape *shape = &list->shapes[s];
        const size_t count = shape_count(shape);
        float *x = test_floats(t, count), *want = test_floats(t, count);
        fill_values(&t->rng, shape, VALUES_DENORMAL, x);
        x[0] = bits_float(0xff8abcdeu);
        x[count - 1] = INFINITY;
        for (size_t i = 0; i < count; i++)
            want[i] = x[i] != x[i] ? bits_float(NAN_BITS) : x[i] + 0.0f; /* -0*1 + 0 is +0 */
        struct fixture f;
        fixture_start(&f, t, SIDE_START);
        const struct tensor *in = fixture_tensor(&f, "x", shape, NULL, x);
        const struct tensor *out = fixture_tensor(&f, "y", shape, NULL, NULL);
        test_context(t, "%s affine NULL", shape_text(shape, text));
        check_status(t, "bnorm_apply",
                     bnorm_apply(shape, tensor_in(in), tensor_out(out), NULL, &exec), BNORM_OK);
        float *got = test_floats(t, count);
        tensor_get(out, shape, got);
        for (size_t i = 0; i < count; i++)
            if (got[i] == 0 && want[i] == 0) /* a copy may also keep the sign of zero */
                want[i] = got[i];
        check_bits(t, "y", got, want, count);
        fixture_check(&f);
        fixture_end(&f);
        test_release(t);
    }
}

/* N = 0 or HW = 0: nothing is touched, data may be NULL. */
static void test_empty(struct test *t) {
    const bnorm_exec exec = {.isa = t->isa};
    for (int which = 0; which < 3; which++) {
        const bnorm_shape shape = {
            .layout = layout_of(t), .n = which == 0 ? 0 : 3, .c = 5, .hw = which == 1 ? 0 : 7};
        const bnorm_shape empty = {.layout = shape.layout,
                                   .n = which == 2 ? 0 : shape.n,
                                   .c = 5,
                                   .hw = which == 2 ? 0 : shape.hw};
        char text[96];
        test_context(t, "%s", shape_text(&empty, text));
        check_status(
            t, "bnorm_apply on NULL",
            bnorm_apply(&empty, (bnorm_in){NULL, 0, 0}, (bnorm_out){NULL, 0, 0}, NULL, &exec),
            BNORM_OK);
        float y[4] = {1, 2, 3, 4};
        const float before[4] = {1, 2, 3, 4}, x[4] = {0};
        check_status(t, "bnorm_apply",
                     bnorm_apply(&empty, (bnorm_in){x, 0, 0}, (bnorm_out){y, 0, 0}, NULL, &exec),
                     BNORM_OK);
        check_bits(t, "y", y, before, 4);
    }
}

void add_apply(struct suite *s) {
    static const struct layout_case cases[] = {
        {"apply", "sizes", test_sizes},
        {"apply", "options", test_options},
        {"apply", "misaligned", test_misaligned},
        {"apply", "slices", test_slices},
        {"apply", "shared-inputs", test_shared_inputs},
        {"apply", "special-values", test_special_values},
        {"apply", "copy", test_copy},
        {"apply", "empty", test_empty},
    };
    add_layout_cases(s, cases, COUNT_OF(cases));
}
