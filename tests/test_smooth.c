/* SPDX-License-Identifier: MIT
 *
 * The activations made of exponentials, SIGMOID and those after it. Values and slopes are compared
 * to the oracle, every set to the scalar set's bits; fused calls to the same steps one by one. A
 * build or CPU that does not have them says so of all of them. */
#include "calls.h"
#include "oracle.h"
#include "types.h"

#include <float.h>
#include <math.h>
#include <stdio.h>
#include <string.h>

#define FIRST_KIND BNORM_ACT_SIGMOID
#define LAST_KIND  BNORM_ACT_MISH

static int is_usable(const struct test *t) {
    return act_usable(t->isa, FIRST_KIND);
}

/* `i` picks a parameter where there is one. */
static bnorm_act smooth_act(bnorm_act_kind kind, size_t i) {
    static const float slopes[] = {1, .5f, -1.5f, 0, 3};
    const int elu = kind == BNORM_ACT_ELU;
    return (bnorm_act){.kind = kind, .a = elu ? slopes[i % COUNT_OF(slopes)] : NAN, .b = NAN};
}

/* ---------------------------------------------------------------------------------------------- */
/* Values and slopes                                                                              */

/* y = act(v), by the given set. */
static float *values_of(struct test *t, const bnorm_isa *isa, bnorm_act act, const float *v,
                        size_t count) {
    const bnorm_shape shape = {.layout = BNORM_NCHW, .n = 1, .c = 1, .hw = count};
    const bnorm_affine affine = {.act = act};
    const bnorm_exec exec = {.isa = isa};
    float *y = test_floats(t, count);
    check_status(t, "bnorm_apply",
                 bnorm_apply(&shape, (bnorm_in){v, 0, 0}, (bnorm_out){y, 0, 0}, &affine, &exec),
                 BNORM_OK);
    return y;
}

/* g = dy*act'(v): frozen statistics that change nothing. */
static float *gradients_of(struct test *t, const bnorm_isa *isa, bnorm_act act, const float *v,
                           const float *dy, size_t count) {
    const bnorm_shape shape = {.layout = BNORM_NCHW, .n = 1, .c = 1, .hw = count};
    const bnorm_exec exec = {.isa = isa};
    const float zero = 0, one = 1;
    float *g = test_floats(t, count);
    const bnorm_grad grad = {
        .save_mean = &zero, .save_invstd = &one, .frozen = 1, .act = act, .dresidual = {g, 0, 0}};
    const size_t ws_size = bnorm_workspace(BNORM_OP_BACKWARD, &shape);
    check_status(t, "bnorm_backward",
                 bnorm_backward(&shape, (bnorm_in){v, 0, 0}, (bnorm_in){dy, 0, 0},
                                (bnorm_out){NULL, 0, 0}, &grad, test_alloc(t, ws_size), ws_size,
                                &exec),
                 BNORM_OK);
    return g;
}

static float *slopes_of(struct test *t, const bnorm_isa *isa, bnorm_act act, const float *v,
                        size_t count) {
    float *ones = test_floats(t, count);
    for (size_t i = 0; i < count; i++)
        ones[i] = 1;
    return gradients_of(t, isa, act, v, ones, count);
}

/* Every power of two, what lies around it and between; then where exponentials matter. */
static float *arguments(struct test *t, size_t *count) {
    static const float edges[] = {-0.0f,    0.0f,    INFINITY, -INFINITY, FLT_MAX,
                                  -FLT_MAX, FLT_MIN, -FLT_MIN, 0x1p-149f, -0x1p-149f};
    const size_t random = test_repeat(100000, 20000, 5000);
    float *v = test_floats(t, COUNT_OF(edges) + 277 * 8 + random);
    size_t n = 0;
    for (size_t i = 0; i < COUNT_OF(edges); i++)
        v[n++] = edges[i];
    for (int e = -149; e < 128; e++)
        for (int sign = -1; sign <= 1; sign += 2) {
            const float power = (float)sign * (float)ldexp(1, e);
            v[n++] = power;
            v[n++] = nextafterf(power, 0);
            v[n++] = nextafterf(power, (float)sign * INFINITY);
            v[n++] = power * (float)rng_uniform(&t->rng, 1, 2);
        }
    for (size_t i = 0; i < random; i++) {
        static const double reach[] = {1, 6, 20, 110};
        v[n++] = (float)rng_uniform(&t->rng, -1, 1) * (float)reach[i % COUNT_OF(reach)];
    }
    *count = n;
    return v;
}

/* What a value may lose where denormals are taken for zero: as in oracle_smooth_bound, but of the least
 * normal float, not of the least denormal. */
static double flushed(double v) {
    return test_flushes() ? 2 * (2 + fabs(v)) * (double)FLT_MIN : 0;
}

static void test_values(struct test *t) {
    if (!is_usable(t))
        return;
    for (size_t kind = FIRST_KIND; kind <= LAST_KIND; kind++)
        for (size_t i = 0; i < (kind == BNORM_ACT_ELU ? 5 : 1); i++) {
            const bnorm_act act = smooth_act((bnorm_act_kind)kind, i);
            const double scale = kind == BNORM_ACT_ELU ? fmax(1, fabs((double)act.a)) : 1;
            size_t count;
            const float *v = arguments(t, &count);
            test_context(t, "act=%zu(%g)", kind, (double)act.a);
            const float *y = values_of(t, t->isa, act, v, count);
            const float *slope = slopes_of(t, t->isa, act, v, count);
            check_bits(t, "y", y, values_of(t, scalar_isa(), act, v, count), count);
            check_bits(t, "slope", slope, slopes_of(t, scalar_isa(), act, v, count), count);
            for (size_t k = 0; k < count; k++) {
                test_context(t, "act=%zu(%g) at %.9g", kind, (double)act.a, (double)v[k]);
                const double exact = oracle_act(act, (double)v[k]);
                check_near(t, "y", k, y[k], exact,
                           oracle_smooth_bound((double)v[k], exact) + flushed((double)v[k]));
                check_near(t, "slope", k, slope[k], oracle_act_derivative(act, (double)v[k]),
                           scale * ORACLE_SMOOTH_SLOPE);
            }
            test_release(t);
        }
}

/* All NaNs become the one NaN of bnorm, in the value and in the gradient. */
static void test_nan(struct test *t) {
    if (!is_usable(t))
        return;
    const float nans[] = {bits_float(0xffc00001u), bits_float(0x7fc12345u), bits_float(0x7f812345u),
                          bits_float(NAN_BITS)};
    float v[37], dy[37];
    for (size_t kind = FIRST_KIND; kind <= LAST_KIND; kind++)
        for (size_t at = 0; at < COUNT_OF(v); at++) {
            for (size_t i = 0; i < COUNT_OF(v); i++) {
                v[i] = (float)rng_normal(&t->rng);
                dy[i] = 1;
            }
            const bnorm_act act = smooth_act((bnorm_act_kind)kind, at);
            const float *y = values_of(t, t->isa, act, v, COUNT_OF(v));
            const float *g = gradients_of(t, t->isa, act, v, dy, COUNT_OF(v));
            v[at] = nans[at % COUNT_OF(nans)];
            const float *spoilt = values_of(t, t->isa, act, v, COUNT_OF(v));
            const float *spoilt_g = gradients_of(t, t->isa, act, v, dy, COUNT_OF(v));
            const float nan_value = bits_float(NAN_BITS);
            test_context(t, "act=%zu NaN at %zu", kind, at);
            for (size_t i = 0; i < COUNT_OF(v); i++) {
                check_bits(t, "y", &spoilt[i], i == at ? &nan_value : &y[i], 1);
                check_bits(t, "g", &spoilt_g[i], i == at ? &nan_value : &g[i], 1);
            }
            test_release(t);
        }
}

/* ---------------------------------------------------------------------------------------------- */
/* Fused into calls                                                                               */

static const size_t sizes[][3] = {{1, 1, 1},   {3, 1, 37},   {2, 3, 50}, {1, 8, 9},   {2, 17, 16},
                                  {1, 37, 7},  {9, 64, 1},   {2, 33, 5}, {70, 19, 1}, {2, 5, 1031},
                                  {1, 3, 517}, {1, 2, 4500}, {2, 40, 49}};

static const size_t large[][3] = {{2, 37, 1600}, {700, 131, 1}, {1, 3, 30001}};

/* In turn NHWC, NCHW and blocked. */
static bnorm_shape shape_of(const size_t size[3], size_t i) {
    return (bnorm_shape){.layout = i % 3 ? BNORM_NCHW : BNORM_NHWC,
                         .dtype = (bnorm_dtype)(i / 3 % 3),
                         .n = size[0],
                         .c = size[1],
                         .hw = size[2],
                         .c_block = i % 3 == 2 ? (size_t)4 << i / 3 % 4 : 0};
}

static struct call smooth_call(struct test *t, bnorm_op op, const bnorm_shape *shape,
                               bnorm_act act) {
    struct call call = random_call(t, op, shape);
    call.act = act;
    call.lo = 1;
    call.frozen = 0;
    return call;
}

/* The same call without activation, by the scalar set on floats. */
static struct results run_plain(struct test *t, const struct call *call, const struct data *d) {
    struct call plain = *call;
    plain.act = (bnorm_act){.kind = BNORM_ACT_IDENTITY};
    return run_scalar(t, &plain, d);
}

/* Forward is the argument, then the activation; backward is the gradient, then a call without
 * activation. */
static void compare_steps(struct test *t, const bnorm_shape *shape, bnorm_act act, int frozen,
                          size_t i) {
    const bnorm_exec exec = type_exec(t, i);
    struct data d;
    data_new(t, &d, shape);
    const size_t count = data_count(&d);
    const struct call forward =
        smooth_call(t, frozen ? BNORM_OP_APPLY : BNORM_OP_FORWARD_TRAIN, shape, act);
    const float *v = run_plain(t, &forward, &d).y;
    float *y = values_of(t, scalar_isa(), act, v, count);
    round_floats(shape->dtype, y, count);
    const struct results f = run_call(t, &forward, &d, &exec);
    check_bits(t, "y", f.y, y, count);

    if (!frozen)
        data_take(&d, &f);
    struct call backward = forward;
    backward.op = BNORM_OP_BACKWARD;
    backward.frozen = frozen;
    backward.lo = !frozen;
    random_targets(&t->rng, &backward);
    const struct results got = run_call(t, &backward, &d, &exec);

    struct data steps = d;
    steps.dy = gradients_of(t, scalar_isa(), act, v, d.dy, count);
    const float *slopes = slopes_of(t, scalar_isa(), act, v, count);
    for (size_t k = 0; k < count; k++) {
        const float product = d.dy[k] * slopes[k];
        check_bits(t, "dy times the slope", &steps.dy[k], &product, 1);
    }
    struct results want = run_plain(t, &backward, &steps);
    round_results(&want, &d, shape->dtype);
    char text[320];
    test_context(t, "%s beside its steps", call_text(&backward, text));
    check_results(t, &got, &want, &d);
}

static void test_steps(struct test *t) {
    if (!is_usable(t))
        return;
    for (size_t s = 0; s < COUNT_OF(sizes); s++)
        for (size_t kind = FIRST_KIND; kind <= LAST_KIND; kind++)
            for (size_t k = 0; k < test_repeat(9, 3, 3); k++) {
                const bnorm_shape shape = shape_of(sizes[s], s + kind + k);
                compare_steps(t, &shape, smooth_act((bnorm_act_kind)kind, s + k), (int)(k & 1),
                              s + k);
                test_release(t);
            }
}

static void test_threads(struct test *t) {
    if (!is_usable(t))
        return;
    for (size_t s = 0; s < COUNT_OF(large); s++)
        for (size_t kind = FIRST_KIND; kind <= LAST_KIND; kind++) {
            if (!test_draws(t, 3))
                continue;
            const bnorm_shape shape = shape_of(large[s], s + kind);
            compare_steps(t, &shape, smooth_act((bnorm_act_kind)kind, s), (int)(kind & 1),
                          12 + kind % 4); /* four threads */
            test_release(t);
        }
}

/* ---------------------------------------------------------------------------------------------- */
/* Not for these                                                                                  */

static void expect(struct test *t, const struct call *call, const struct data *d,
                   bnorm_status want) {
    const bnorm_exec exec = {.isa = t->isa};
    struct ready r;
    ready_new(t, &r, call, d);
    const unsigned char *before = snapshot(t, &r.fixture);
    ready_say(t, &r, &exec);
    check_status(t, "the call", call_run(&r.args, &exec), want);
    if (want != BNORM_OK)
        check_snapshot(t, &r.fixture, before);
    fixture_end(&r.fixture);
}

/* All of them or none, in every operation; y does not tell the argument of any. */
static void test_refusals(struct test *t) {
    const bnorm_status status = is_usable(t) ? BNORM_OK : BNORM_UNSUPPORTED;
    for (size_t kind = FIRST_KIND; kind <= LAST_KIND; kind++)
        for (int op = BNORM_OP_FORWARD_TRAIN; op <= BNORM_OP_APPLY; op++) {
            const bnorm_shape shape = shape_of(sizes[2], kind);
            const bnorm_act act = smooth_act((bnorm_act_kind)kind, 0);
            struct data d;
            data_new(t, &d, &shape);
            struct call call = smooth_call(t, (bnorm_op)op, &shape, act);
            expect(t, &call, &d, status);
            if (op == BNORM_OP_BACKWARD) {
                call.residual = 0;
                call.given_y = d.residual;
                expect(t, &call, &d, BNORM_UNSUPPORTED);
            }
            const bnorm_shape empty = {.layout = BNORM_NCHW, .n = 0, .c = 3, .hw = 5};
            const bnorm_exec exec = {.isa = t->isa};
            const bnorm_affine affine = {.act = act};
            test_context(t, "act=%zu, empty batch", kind);
            check_status(t, "bnorm_apply",
                         bnorm_apply(&empty, (bnorm_in){NULL, 0, 0}, (bnorm_out){NULL, 0, 0},
                                     &affine, &exec),
                         status);
            test_release(t);
        }
}

void add_smooth(struct suite *s) {
    suite_add_per_isa(s, test_values, NULL, "smooth/%s/values");
    suite_add_per_isa(s, test_nan, NULL, "smooth/%s/nan");
    suite_add_per_isa(s, test_steps, NULL, "smooth/%s/steps");
    suite_add_per_isa(s, test_threads, NULL, "smooth/%s/threads");
    suite_add_per_isa(s, test_refusals, NULL, "smooth/%s/refusals");
}
