/* SPDX-License-Identifier: MIT
 *
 * bnorm_apply. The scalar set is compared to the oracle, every set to the scalar set's bits; each
 * call with other strides, alignments, guard pages and ways to work in place. */
#include "calls.h"
#include "oracle.h"

#include <math.h>
#include <string.h>

/* What a call is given; else NULL. */
enum { RESIDUAL = 1, CENTER = 2, SCALE = 4, SHIFT = 8, EVERYTHING = 15 };

static void problem_new(struct test *t, struct problem *p, const bnorm_shape *shape, bnorm_act act,
                        unsigned given) {
    const size_t c = shape->c;
    *p = (struct problem){.call = {.op = BNORM_OP_APPLY,
                                   .shape = *shape,
                                   .act = act,
                                   .residual = (given & RESIDUAL) != 0}};
    data_new(t, &p->data, shape);
    p->data.mean = uniform_floats(t, (given & CENTER) != 0, c, -2, 2);
    p->data.gamma = uniform_floats(t, (given & SCALE) != 0, c, -2, 2);
    p->data.invstd = NULL;
    p->data.beta = uniform_floats(t, (given & SHIFT) != 0, c, -2, 2);
}

static void check_onto(struct test *t, const struct problem *p, enum target target) {
    struct call call = p->call;
    call.out = target;
    if (targets_fit(&call))
        problem_check_sides(t, p, &call);
}

/* ---------------------------------------------------------------------------------------------- */

/* Every edge of sizes, each with other options. */
static void test_sizes(struct test *t) {
    const struct shape_list *list = edge_shapes(layout_of(t));
    for (size_t s = 0; s < list->count; s++) {
        if (!test_draws(t, 2))
            continue;
        struct rng *r = &t->rng;
        const unsigned given = (unsigned)rng_below(r, 4) | (rng_below(r, 8) ? SCALE : 0) |
                               (rng_below(r, 8) ? SHIFT : 0);
        struct problem p;
        problem_new(t, &p, &list->shapes[s], random_act(r, (bnorm_act_kind)(s % ACT_KINDS)), given);
        problem_solve(t, &p);
        random_targets(r, &p.call);
        problem_check_sides(t, &p, &p.call);
        test_release(t);
    }
}

/* Every combination of options on a few shapes. */
static void test_options(struct test *t) {
    const struct shape_list *list = small_shapes(layout_of(t));
    for (size_t s = 0; s < list->count; s++)
        for (int kind = 0; kind < ACT_KINDS; kind++)
            for (unsigned given = 0; given <= EVERYTHING; given++) {
                struct problem p;
                problem_new(t, &p, &list->shapes[s], random_act(&t->rng, (bnorm_act_kind)kind),
                            given);
                problem_solve(t, &p);
                for (int target = OWN; target < NOWHERE; target++)
                    check_onto(t, &p, (enum target)target);
                test_release(t);
            }
}

static void test_misaligned(struct test *t) {
    const struct shape_list *list = small_shapes(layout_of(t));
    for (size_t s = 0; s < list->count; s++) {
        struct problem p;
        problem_new(t, &p, &list->shapes[s], (bnorm_act){.kind = BNORM_ACT_RELU}, EVERYTHING);
        problem_solve(t, &p);
        problem_check_shifts(t, &p, 16, 1);
        test_release(t);
    }
}

/* x, y and the residual as neighbouring channel slices of one wider buffer. */
static void test_slices(struct test *t) {
    const struct shape_list *list = small_shapes(layout_of(t));
    const bnorm_exec exec = {.isa = t->isa};
    for (size_t s = 0; s < list->count; s++) {
        struct problem p;
        problem_new(t, &p, &list->shapes[s], (bnorm_act){BNORM_ACT_LEAKY_RELU, .25f, 0},
                    EVERYTHING);
        problem_solve(t, &p);
        p.call.side = (int)(s % 2);
        const struct results got = run_sliced(t, &p.call, &p.data, &exec);
        check_results(t, &got, &p.want, &p.data);
        test_release(t);
    }
}

/* The same tensor as x and residual; one array as center, scale and shift. */
static void test_shared_inputs(struct test *t) {
    const struct shape_list *list = small_shapes(layout_of(t));
    const bnorm_exec exec = {.isa = t->isa};
    for (size_t s = 0; s < list->count; s++) {
        struct problem p;
        problem_new(t, &p, &list->shapes[s], (bnorm_act){BNORM_ACT_IDENTITY, 0, 0},
                    RESIDUAL | SCALE);
        p.data.residual = p.data.x;
        p.data.mean = p.data.beta = p.data.gamma;
        problem_solve(t, &p);
        p.call.side = SIDE_END;
        for (int in_place = 0; in_place < 2; in_place++) {
            struct ready r;
            p.call.out = in_place ? ONTO_X : OWN;
            p.call.what = "x is the residual";
            ready_new(t, &r, &p.call, &p.data);
            r.at.residual = r.at.x;
            r.at.scale = r.at.beta = r.at.mean;
            call_arguments(&r.args, &r.call, &r.at);
            ready_say(t, &r, &exec);
            check_status(t, "bnorm_apply", call_run(&r.args, &exec), BNORM_OK);
            const struct results got = ready_finish(t, &r);
            check_results(t, &got, &p.want, &p.data);
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
                struct problem p;
                problem_new(t, &p, &list->shapes[s], acts[a],
                            (unsigned)(mask | (mask & SCALE ? SHIFT : 0)));
                const size_t count = data_count(&p.data);
                for (size_t i = 0; i < count; i++)
                    p.data.x[i] = special[rng_below(&t->rng, COUNT_OF(special))];
                for (size_t i = 0; s % 2 && i < count; i++)
                    p.data.residual[i] = special[rng_below(&t->rng, COUNT_OF(special))];
                p.want = run_scalar(t, &p.call, &p.data);
                for (size_t i = 0; i < count; i++) {
                    const float y = p.want.y[i], x = p.data.x[i];
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
                random_targets(&t->rng, &p.call);
                problem_check_sides(t, &p, &p.call);
                test_release(t);
            }
}

/* affine NULL copies, and a NaN is made the one NaN that bnorm writes. */
static void test_copy(struct test *t) {
    const struct shape_list *list = small_shapes(layout_of(t));
    const bnorm_exec exec = {.isa = t->isa};
    for (size_t s = 0; s < list->count; s++) {
        struct call call = {.op = BNORM_OP_APPLY, .shape = list->shapes[s], .what = "affine NULL"};
        struct data d;
        struct ready r;
        data_new(t, &d, &call.shape);
        data_fill(t, &d, VALUES_DENORMAL, BNORM_F32);
        const size_t count = data_count(&d);
        d.x[0] = bits_float(0xff8abcdeu);
        d.x[count - 1] = INFINITY;
        ready_new(t, &r, &call, &d);
        r.args.job.affine = NULL;
        ready_say(t, &r, &exec);
        check_status(t, "bnorm_apply", call_run(&r.args, &exec), BNORM_OK);
        const float *got = ready_finish(t, &r).y;
        for (size_t i = 0; i < count; i++) {
            /* -0*1 + 0 is +0; a copy may also keep the sign of zero */
            const float want = d.x[i] != d.x[i]             ? bits_float(NAN_BITS)
                               : d.x[i] == 0 && got[i] == 0 ? got[i]
                                                            : d.x[i];
            check_bits(t, "y", &got[i], &want, 1);
        }
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
