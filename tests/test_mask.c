/* SPDX-License-Identifier: MIT
 *
 * The mask of an activation: bit for bit what forward's argument says, in the dense order of the
 * tensor whatever its strides, in exactly bnorm_mask_size() bytes; and backward with it, beside the
 * other ways to recover the argument and, for any bits, beside the oracle. */
#include "calls.h"
#include "oracle.h"
#include "types.h"

#include <math.h>
#include <stdio.h>
#include <string.h>

/* Element counts and runs that end anywhere in a byte. */
static const size_t sizes[][3] = {
    {1, 1, 1},   {1, 3, 7},  {2, 3, 7},   {5, 3, 7},   {1, 7, 1},   {17, 3, 1},   {9, 8, 1},
    {2, 5, 9},   {1, 8, 8},  {2, 16, 16}, {3, 17, 5},  {1, 37, 49}, {4, 33, 3},   {2, 70, 11},
    {1, 3, 517}, {2, 2, 64}, {1, 1, 131}, {2, 31, 31}, {1, 9, 15},  {3, 1, 4099}, {300, 7, 1},
};

/* Enough for several threads, whose parts then begin within bytes. */
static const size_t large[][3] = {{3, 7, 4099}, {1, 1, 70001}, {700, 131, 1}, {5, 257, 63}};

enum order { NHWC, NCHW, BLOCKED };
static const enum order orders[] = {NHWC, NCHW, BLOCKED};

static bnorm_shape shape_of(const struct test *t, const size_t size[3], bnorm_dtype dtype,
                            size_t i) {
    const enum order order = *(const enum order *)t->param;
    return (bnorm_shape){.layout = order == NHWC ? BNORM_NHWC : BNORM_NCHW,
                         .dtype = dtype,
                         .n = size[0],
                         .c = size[1],
                         .hw = size[2],
                         .c_block = order == BLOCKED ? (size_t)4 << i % 4 : 0};
}

static struct call random_mask_call(struct test *t, bnorm_op op, const bnorm_shape *shape) {
    struct call call = random_call(t, op, shape);
    call.act = random_mask_act(&t->rng);
    call.mask = 1;
    call.frozen = 0;
    return call;
}

static int bit_of(const unsigned char *mask, size_t i) {
    return mask[i / 8] >> i % 8 & 1;
}

/* ---------------------------------------------------------------------------------------------- */
/* Forward                                                                                        */

/* The activation's argument in float: the same call of the scalar set without activation. A forward
 * pass that saves the mean alone uses no more of it. */
static float *argument_of(struct test *t, const struct call *call, const struct data *d,
                          const struct results *forward) {
    struct call plain = *call;
    struct data data = *d;
    plain.act = (bnorm_act){.kind = BNORM_ACT_IDENTITY};
    plain.mask = 0;
    if (call->op == BNORM_OP_FORWARD_TRAIN && !call->residual && !call->lo) {
        plain.op = BNORM_OP_APPLY;
        data.mean = forward->mean;
        data.invstd = forward->invstd;
    }
    return run_scalar(t, &plain, &data).y;
}

/* Moves arguments to the very points where the bit changes, as far as rounding lets it. */
static void aim_at_kinks(struct test *t, const struct call *call, struct data *d,
                         bnorm_dtype dtype) {
    const float targets[] = {0, call->act.a, call->act.b};
    const size_t kinds = call->act.kind == BNORM_ACT_CLAMP ? 3 : 1;
    if (call->residual) {
        struct call without = *call;
        without.residual = 0;
        without.lo = 1;
        const float *v = argument_of(t, &without, d, NULL);
        for (size_t i = 0; i < data_count(d); i += 2) {
            const float target = targets[rng_below(&t->rng, kinds)];
            d->residual[i] = element_round(dtype, target - v[i]);
        }
    } else if (call->op == BNORM_OP_APPLY) { /* v = beta */
        for (size_t c = 0; c < d->c; c++) {
            d->mean[c] = element_round(dtype, d->mean[c]);
            if (d->beta)
                d->beta[c] = targets[rng_below(&t->rng, kinds)];
        }
        for (size_t i = 0; i < data_count(d); i += 3)
            d->x[i] = d->mean[i / d->hw % d->c];
    }
}

static int expected_bit(bnorm_act act, float v) {
    return act.kind == BNORM_ACT_CLAMP ? act.a < v && v < act.b : v > 0;
}

/* v of bnorm_apply once more, by the formula. */
static void check_argument(struct test *t, const struct call *call, const struct data *d,
                           const float *v) {
    for (size_t i = 0; i < data_count(d); i++) {
        const size_t c = i / d->hw % d->c;
        const float scale = (d->gamma ? d->gamma[c] : 1) * d->invstd[c];
        float want = fmaf(d->x[i] - d->mean[c], scale, d->beta ? d->beta[c] : 0);
        if (call->residual)
            want += d->residual[i];
        if (isnan(want) ? !isnan(v[i]) : v[i] != want)
            test_fail(t, "v[%zu] is %.9g, expected %.9g", i, (double)v[i], (double)want);
    }
}

static void check_mask(struct test *t, const struct call *call, const struct results *got,
                       const float *v) {
    const bnorm_shape *shape = &call->shape;
    const size_t count = shape_count(shape);
    if (got->mask_bytes != (count + 7) / 8)
        test_fail(t, "bnorm_mask_size() is %zu for %zu elements", got->mask_bytes, count);
    for (size_t i = 0; i < count; i++) {
        const size_t at = plain_index(shape, i);
        if (at != SIZE_MAX && bit_of(got->mask, i) != expected_bit(call->act, v[at]))
            test_fail(t, "bit %zu of %zu is %d, but the argument is %.9g", i, count,
                      bit_of(got->mask, i), (double)v[at]);
    }
    for (size_t i = count; i < 8 * got->mask_bytes; i++)
        if (bit_of(got->mask, i))
            test_fail(t, "bit %zu behind the last of %zu is set", i, count);
}

static void compare_forward(struct test *t, const struct call *call, size_t i) {
    const bnorm_exec exec = type_exec(t, i), scalar = {.isa = scalar_isa()};
    struct data d;
    data_new(t, &d, &call->shape);
    aim_at_kinks(t, call, &d, call->shape.dtype);
    if (i % 5 == 0) {
        const float special[] = {bits_float(0xffc00001u), INFINITY, -INFINITY, -0.0f};
        d.x[rng_below(&t->rng, data_count(&d))] = special[i / 5 % 4];
    }
    struct call dense = on_floats(call);
    dense.shape.dtype = call->shape.dtype;
    const struct results want = run_call(t, &dense, &d, &scalar);
    const float *v = argument_of(t, call, &d, &want);
    if (call->op == BNORM_OP_APPLY)
        check_argument(t, call, &d, v);
    check_mask(t, &dense, &want, v);
    const struct results got = run_call(t, call, &d, &exec);
    check_mask(t, call, &got, v);
    check_results(t, &got, &want, &d);
    /* To want a mask changes nothing else. */
    struct call without = *call;
    without.mask = 0;
    const struct results others = run_call(t, &without, &d, &exec);
    check_results(t, &others, &want, &d);
}

static void test_forward(struct test *t) {
    for (size_t s = 0; s < COUNT_OF(sizes); s++)
        for (size_t k = 0; k < test_repeat(24, 6, 6); k++) {
            const bnorm_shape shape = shape_of(t, sizes[s], (bnorm_dtype)(k % 3), s + k);
            const struct call call =
                random_mask_call(t, k % 2 ? BNORM_OP_APPLY : BNORM_OP_FORWARD_TRAIN, &shape);
            compare_forward(t, &call, s + k);
            test_release(t);
        }
}

/* ---------------------------------------------------------------------------------------------- */
/* Backward                                                                                       */

/* From forward's mask, its residual or nothing, its y: all the same bits. */
static void compare_backward(struct test *t, const bnorm_shape *shape, int frozen, size_t i) {
    const bnorm_exec exec = type_exec(t, i), scalar = {.isa = scalar_isa()};
    struct data d;
    data_new(t, &d, shape);
    struct call forward =
        random_mask_call(t, frozen ? BNORM_OP_APPLY : BNORM_OP_FORWARD_TRAIN, shape);
    forward.lo = 1;
    forward.dense = 1;
    aim_at_kinks(t, &forward, &d, shape->dtype);
    const struct results f = run_call(t, &forward, &d, &scalar);
    if (!frozen)
        data_take(&d, &f);
    struct call backward = forward;
    backward.op = BNORM_OP_BACKWARD;
    backward.frozen = frozen;
    backward.lo = !frozen;
    backward.out = backward.dresidual = OWN;
    const struct results want = run_call(t, &backward, &d, &scalar);

    backward.dense = 0;
    backward.residual = 0;
    backward.given_mask = f.mask;
    for (size_t k = 0; k < 3; k++) {
        random_targets(&t->rng, &backward);
        const struct results got = run_call(t, &backward, &d, &exec);
        check_results(t, &got, &want, &d);
    }
    /* A small type rounds y onto the points where the derivative jumps. */
    if (shape->dtype == BNORM_F32 && y_tells_argument(forward.act)) {
        backward.given_mask = NULL;
        backward.given_y = f.y;
        random_targets(&t->rng, &backward);
        const struct results from_y = run_call(t, &backward, &d, &exec);
        check_results(t, &from_y, &want, &d);
    }
}

static void test_backward(struct test *t) {
    for (size_t s = 0; s < COUNT_OF(sizes); s++)
        for (size_t k = 0; k < test_repeat(12, 4, 3); k++) {
            const bnorm_shape shape = shape_of(t, sizes[s], (bnorm_dtype)(k % 3), s + k);
            compare_backward(t, &shape, k % 4 == 3, s + k);
            test_release(t);
        }
}

/* Arguments that have these bits. */
static double *argument_for(struct test *t, bnorm_act act, const float *bits, size_t count) {
    double *v = test_doubles(t, count);
    const int clamp = act.kind == BNORM_ACT_CLAMP;
    const double upper = clamp ? ((double)act.a + (double)act.b) / 2 : 1;
    const double lower = clamp ? (double)act.b + 1 : -1;
    for (size_t i = 0; i < count; i++)
        v[i] = bits[i] > 0 ? upper : lower;
    return v;
}

/* Any bits that a user may write, those of padding and behind the last included. */
static void compare_any_bits(struct test *t, const bnorm_shape *shape, size_t i) {
    const bnorm_exec exec = type_exec(t, i), scalar = {.isa = scalar_isa()};
    struct data d;
    data_new(t, &d, shape);
    struct call call = random_mask_call(t, BNORM_OP_BACKWARD, shape);
    call.residual = call.mask = 0;
    call.frozen = i % 3 == 0;
    if (!call.frozen) {
        struct call forward = random_mask_call(t, BNORM_OP_FORWARD_TRAIN, shape);
        forward.lo = 1;
        const struct results f = run_call(t, &forward, &d, &scalar);
        data_take(&d, &f);
    }
    const size_t bytes = bnorm_mask_size(shape), count = shape_count(shape);
    unsigned char *mask = test_alloc(t, bytes);
    for (size_t k = 0; k < bytes; k++)
        mask[k] = (unsigned char)rng_u64(&t->rng);
    call.given_mask = mask;

    float *bits = test_floats(t, data_count(&d)), *g = test_floats(t, data_count(&d));
    for (size_t k = 0; k < count; k++) {
        const size_t at = plain_index(shape, k);
        if (at != SIZE_MAX)
            bits[at] = (float)bit_of(mask, k);
    }
    const int leaky = call.act.kind == BNORM_ACT_LEAKY_RELU;
    for (size_t k = 0; k < data_count(&d); k++) {
        g[k] = bits[k] > 0 ? d.dy[k] : leaky ? call.act.a * d.dy[k] : 0;
        g[k] = element_round(shape->dtype, g[k]);
    }
    struct call dense = on_floats(&call);
    dense.shape.dtype = shape->dtype;
    const struct results want = run_call(t, &dense, &d, &scalar);
    check_bits(t, "dresidual", want.dresidual, g, data_count(&d));
    if (shape->dtype == BNORM_F32)
        check_oracle(t, &call, &d, argument_for(t, call.act, bits, data_count(&d)), &want);
    if (!leaky) /* the gradient is 0 whatever dy is */
        for (size_t k = 0; k < data_count(&d); k++)
            if (bits[k] == 0 && rng_below(&t->rng, 4) == 0)
                d.dy[k] = k % 2 ? bits_float(0xffc01234u) : INFINITY;
    const struct results got = run_call(t, &call, &d, &exec);
    check_results(t, &got, &want, &d);
}

static void test_any_bits(struct test *t) {
    for (size_t s = 0; s < COUNT_OF(sizes); s++)
        for (size_t k = 0; k < test_repeat(12, 4, 3); k++) {
            const bnorm_shape shape = shape_of(t, sizes[s], (bnorm_dtype)(k % 3), s + k);
            compare_any_bits(t, &shape, s + k);
            test_release(t);
        }
}

/* ---------------------------------------------------------------------------------------------- */
/* Parts of a tensor on several threads share bytes of the mask                                   */

static void test_threads(struct test *t) {
    static const size_t threads[] = {0, 2, 3, 4, 7};
    for (size_t s = 0; s < COUNT_OF(large); s++)
        for (size_t i = 0; i < test_repeat(6, 1, 1); i++) {
            if (!test_draws(t, 2))
                continue;
            const size_t k = s % 2 + i;
            const bnorm_shape shape = shape_of(t, large[s], (bnorm_dtype)((s + k) % 3), s + k);
            const bnorm_op op = k % 2 ? BNORM_OP_APPLY : BNORM_OP_FORWARD_TRAIN;
            const struct call call = random_mask_call(t, op, &shape);
            struct data d;
            data_new(t, &d, &shape);
            const bnorm_exec serial = {.isa = scalar_isa()};
            const struct results want = run_call(t, &call, &d, &serial);
            check_mask(t, &call, &want, argument_of(t, &call, &d, &want));
            for (size_t w = 0; w < COUNT_OF(threads); w += test_repeat(1, 2, 2)) {
                const bnorm_exec exec = {.parallel = parallel_threads,
                                         .isa = t->isa,
                                         .threads = threads[w],
                                         .memory = (bnorm_memory)((s + w) % 4)};
                const struct results got = run_call(t, &call, &d, &exec);
                check_results(t, &got, &want, &d);
            }
            test_release(t);
            compare_backward(t, &shape, (int)(k % 2), 12 + s + k);
            test_release(t);
        }
}

/* ---------------------------------------------------------------------------------------------- */
/* Refusals                                                                                       */

static void refuse(struct test *t, struct ready *r, bnorm_status want) {
    const bnorm_exec exec = {.isa = t->isa};
    const unsigned char *before = snapshot(t, &r->fixture);
    ready_say(t, r, &exec);
    check_status(t, "the call", call_run(&r->args, &exec), want);
    check_snapshot(t, &r->fixture, before);
    fixture_end(&r->fixture);
    test_release(t);
}

static const size_t refused[3] = {2, 5, 9};

/* Activations whose derivative is no matter of one bit. */
static void test_kinds(struct test *t) {
    for (int kind = BNORM_ACT_HARD_SWISH; kind <= BNORM_ACT_MISH; kind++)
        for (int op = BNORM_OP_FORWARD_TRAIN; op <= BNORM_OP_APPLY; op++) {
            const bnorm_shape shape = shape_of(t, refused, BNORM_F32, 0);
            struct data d;
            data_new(t, &d, &shape);
            struct call call = random_mask_call(t, (bnorm_op)op, &shape);
            call.act = (bnorm_act){.kind = (bnorm_act_kind)kind, .a = 1};
            call.residual = op != BNORM_OP_BACKWARD;
            unsigned char *mask = test_alloc(t, bnorm_mask_size(&shape));
            if (op == BNORM_OP_BACKWARD)
                call.given_mask = mask;
            struct ready r;
            call.what = "this activation has no mask";
            ready_new(t, &r, &call, &d);
            refuse(t, &r, BNORM_UNSUPPORTED);
        }
}

/* Mask, residual and y say the same thing: backward takes one of them. */
static void test_too_many(struct test *t) {
    for (int which = 1; which < 8; which++) {
        const bnorm_shape shape = shape_of(t, refused, BNORM_F32, 1);
        struct data d;
        data_new(t, &d, &shape);
        struct call call = random_mask_call(t, BNORM_OP_BACKWARD, &shape);
        call.act = (bnorm_act){.kind = BNORM_ACT_RELU};
        call.out = call.dresidual = OWN;
        call.residual = which & 1;
        call.given_y = which & 2 ? d.residual : NULL;
        call.given_mask = which & 4 ? test_alloc(t, bnorm_mask_size(&shape)) : NULL;
        struct ready r;
        call.what = "residual, y and mask";
        ready_new(t, &r, &call, &d);
        const int alone = which == 1 || which == 2 || which == 4;
        if (alone) {
            const bnorm_exec exec = {.isa = t->isa};
            check_status(t, "the call", call_run(&r.args, &exec), BNORM_OK);
            ready_finish(t, &r);
            test_release(t);
        } else {
            refuse(t, &r, BNORM_BAD_PARAMETER);
        }
    }
}

/* Where the mask points to in a refused call. */
static void *mask_target(struct ready *r, size_t i, const char **what) {
    struct item *item = &r->fixture.items[i];
    const struct buffer *b = &item->tensor.buffer;
    *what = item->name;
    return b->bytes ? b->data + b->bytes - 1 : NULL;
}

/* Onto the last byte of every other buffer of the call. */
static void test_overlap(struct test *t) {
    for (int op = BNORM_OP_FORWARD_TRAIN; op <= BNORM_OP_APPLY; op++)
        for (size_t i = 0, count = 1; i < count; i++) {
            const bnorm_shape shape = shape_of(t, refused, BNORM_F32, 2);
            struct data d;
            data_new(t, &d, &shape);
            d.gamma = d.mean;
            d.beta = d.mean;
            struct call call = random_mask_call(t, (bnorm_op)op, &shape);
            call.act = (bnorm_act){.kind = BNORM_ACT_RELU};
            call.residual = op != BNORM_OP_BACKWARD;
            call.out = call.dresidual = OWN;
            call.lo = 1;
            call.side = SIDE_START;
            if (op == BNORM_OP_BACKWARD)
                call.given_mask = test_alloc(t, bnorm_mask_size(&shape));
            struct ready r;
            ready_new(t, &r, &call, &d);
            count = r.fixture.count;
            const char *what;
            void *target = mask_target(&r, i, &what);
            const char *const inputs[] = {"x",         "dy",          "gamma",       "beta",
                                          "save_mean", "save_invstd", "save_mean_lo"};
            int may = !target || !strcmp(what, "mask");
            for (size_t k = 0; op == BNORM_OP_BACKWARD && k < COUNT_OF(inputs); k++)
                may |= !strcmp(what, inputs[k]); /* the mask is an input: inputs may overlap */
            if (may) {
                fixture_end(&r.fixture);
                test_release(t);
                continue;
            }
            r.args.affine.mask = r.args.train.mask = target;
            r.args.grad.mask = target;
            r.call.what = what;
            refuse(t, &r, BNORM_BAD_OVERLAP);
        }
}

/* IDENTITY has no need of a mask, and neither reads nor writes it. */
static void test_identity(struct test *t) {
    const bnorm_exec exec = {.isa = t->isa};
    for (int op = BNORM_OP_FORWARD_TRAIN; op <= BNORM_OP_APPLY; op++) {
        const bnorm_shape shape = shape_of(t, refused, BNORM_F32, 3);
        struct data d;
        data_new(t, &d, &shape);
        struct call call = random_mask_call(t, (bnorm_op)op, &shape);
        call.act = (bnorm_act){.kind = BNORM_ACT_IDENTITY};
        call.residual = 0;
        const size_t bytes = bnorm_mask_size(&shape);
        unsigned char *mask = test_alloc(t, bytes);
        for (size_t i = 0; i < bytes; i++)
            mask[i] = (unsigned char)(37 * i);
        if (op == BNORM_OP_BACKWARD)
            call.given_mask = mask;
        struct ready r;
        call.what = "IDENTITY with a mask";
        ready_new(t, &r, &call, &d);
        memcpy(r.at.mask, mask, bytes);
        ready_say(t, &r, &exec);
        check_status(t, "the call", call_run(&r.args, &exec), BNORM_OK);
        const struct results got = ready_finish(t, &r);
        if (got.mask && memcmp(got.mask, mask, bytes) != 0)
            test_fail(t, "the mask has been written");
        call.mask = 0;
        call.given_mask = NULL;
        const struct results want = run_call(t, &call, &d, &exec);
        check_results(t, &got, &want, &d);
        test_release(t);
    }
}

static void test_size(struct test *t) {
    const bnorm_shape good = {.layout = BNORM_NCHW, .n = 3, .c = 5, .hw = 7};
    bnorm_shape bad[10];
    for (size_t i = 0; i < COUNT_OF(bad); i++)
        bad[i] = good;
    bad[0].layout = (bnorm_layout)2;
    bad[1].dtype = (bnorm_dtype)5;
    bad[2].c_block = 7;
    bad[3].c = 0;
    bad[4].n = 0;
    bad[5].hw = 0;
    bad[6].n = SIZE_MAX;
    bad[7].c = SIZE_MAX;
    bad[8].hw = SIZE_MAX / 8;
    bad[9].layout = BNORM_NHWC;
    bad[9].c_block = 8;
    for (size_t i = 0; i < COUNT_OF(bad); i++) {
        test_context(t, "shape number %zu", i);
        if (bnorm_mask_size(&bad[i]) != 0)
            test_fail(t, "a mask of %zu bytes for a refused or empty shape",
                      bnorm_mask_size(&bad[i]));
    }
    test_context(t, "valid shapes");
    for (size_t dtype = BNORM_F32; dtype <= BNORM_F16; dtype++) {
        bnorm_shape shape = good;
        shape.dtype = (bnorm_dtype)dtype;
        if (bnorm_mask_size(&shape) != 14)
            test_fail(t, "%zu bytes for 3*5*7 elements", bnorm_mask_size(&shape));
        shape.layout = BNORM_NHWC;
        if (bnorm_mask_size(&shape) != 14)
            test_fail(t, "%zu bytes for 3*7*5 elements", bnorm_mask_size(&shape));
        shape.layout = BNORM_NCHW;
        shape.c_block = 4;
        if (bnorm_mask_size(&shape) != 21)
            test_fail(t, "%zu bytes for 3*2*7*4 elements", bnorm_mask_size(&shape));
    }
}

void add_mask(struct suite *s) {
    static const char *const names[] = {"nhwc", "nchw", "blocked"};
    static const struct {
        const char *name;
        test_fn run;
    } cases[] = {
        {"forward", test_forward}, {"backward", test_backward}, {"any-bits", test_any_bits},
        {"threads", test_threads}, {"kinds", test_kinds},       {"too-many", test_too_many},
        {"overlap", test_overlap}, {"identity", test_identity},
    };
    for (size_t order = 0; order < COUNT_OF(orders); order++)
        for (size_t i = 0; i < COUNT_OF(cases); i++) {
            char name[96];
            snprintf(name, sizeof name, "mask/%s/%%s/%s", names[order], cases[i].name);
            suite_add_per_isa(s, cases[i].run, &orders[order], name);
        }
    suite_add(s, NULL, test_size, NULL, "mask/size");
}
