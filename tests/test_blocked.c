/* SPDX-License-Identifier: MIT
 *
 * Channel-blocked tensors. bnorm_apply gives the bits of the NCHW call on the permuted data. The
 * reductions and what follows them give, for each block of channels, the bits of the NHWC call on
 * that block alone, whose padding channels are zero; and they are compared to the oracle. Padding
 * of inputs holds NaN, huge values or zeros; ready_finish() sees that padding of outputs is zero. */
#include "calls.h"
#include "oracle.h"
#include "types.h"

#include <math.h>
#include <string.h>

/* n, c, hw, block: channels fewer than a block, whole blocks, one channel more or less; pixels
 * around vectors and in several blocks of the reductions. */
static const size_t sizes[][4] = {
    {1, 1, 1, 4},      {2, 3, 1, 4},    {3, 4, 1, 4},      {5, 5, 1, 8},      {9, 16, 1, 8},
    {33, 17, 1, 16},   {7, 31, 1, 32},  {300, 100, 1, 16}, {4097, 2, 1, 4},   {700, 65, 1, 32},
    {1, 1, 7, 4},      {2, 3, 7, 8},    {3, 8, 7, 4},      {1, 9, 7, 8},      {2, 16, 7, 16},
    {2, 33, 7, 32},    {1, 15, 49, 16}, {2, 4, 49, 4},     {3, 17, 49, 16},   {1, 64, 49, 32},
    {2, 29, 49, 8},    {1, 3, 100, 4},  {2, 8, 100, 8},    {1, 40, 100, 16},  {1, 70, 100, 32},
    {2, 1, 31, 4},     {1, 6, 33, 4},   {1, 5, 3136, 4},   {2, 9, 3136, 8},   {1, 16, 3136, 16},
    {1, 37, 3136, 32}, {1, 3, 9000, 4}, {2, 7, 5000, 8},   {1, 20, 4100, 16},
};

/* Enough for several threads; quick runs take the first. */
static const size_t large[][4] = {
    {2, 37, 1600, 16}, {3, 60, 784, 8}, {700, 200, 1, 32}, {1, 5, 20000, 4}};

static bnorm_shape shape_of(const size_t size[4], bnorm_dtype dtype) {
    return (bnorm_shape){.layout = BNORM_NCHW,
                         .dtype = dtype,
                         .n = size[0],
                         .c = size[1],
                         .hw = size[2],
                         .c_block = size[3]};
}

/* Mostly floats, as the tests of types compare the other types with them. */
static bnorm_dtype pick_dtype(struct rng *r) {
    return rng_below(r, 2) ? BNORM_F32 : rng_below(r, 2) ? BNORM_BF16 : BNORM_F16;
}

static struct call random_call(struct test *t, bnorm_op op, const bnorm_shape *shape) {
    return (struct call){
        .op = op,
        .shape = *shape,
        .act = type_act(t, rng_below(&t->rng, ALL_ACT_KINDS)),
        .reuse = (enum reuse)rng_below(&t->rng, REUSE_COUNT),
        .residual = (int)rng_below(&t->rng, 2),
        .lo = (int)rng_below(&t->rng, 2),
        .frozen = rng_below(&t->rng, 4) == 0,
        .padding = (int)rng_below(&t->rng, 3),
    };
}

/* ---------------------------------------------------------------------------------------------- */
/* bnorm_apply                                                                                    */

static void compare_apply(struct test *t, const struct call *call, const struct data *d, size_t i) {
    struct call plain = *call;
    plain.shape.c_block = 0;
    plain.reuse = REUSE_NOTHING;
    plain.dense = 1;
    const bnorm_exec scalar = {.isa = scalar_isa()}, exec = type_exec(t, i);
    const struct results want = run_call(t, &plain, d, &scalar);
    const struct results got = run_call(t, call, d, &exec);
    check_results(t, &got, &want, d);
}

static void test_apply(struct test *t) {
    for (size_t s = 0; s < COUNT_OF(sizes); s++)
        for (size_t k = 0; k < test_repeat(6, 3, 2); k++) {
            const bnorm_shape shape = shape_of(sizes[s], pick_dtype(&t->rng));
            struct data d;
            data_new(t, &d, &shape);
            struct call call = random_call(t, BNORM_OP_APPLY, &shape);
            call.dense = k == 0;
            compare_apply(t, &call, &d, s + k);
            test_release(t);
        }
}

/* Every activation with every way to work in place, on padded blocks. */
static void test_options(struct test *t) {
    static const size_t few[][4] = {
        {2, 3, 7, 4}, {1, 13, 10, 8}, {2, 21, 5, 16}, {3, 40, 3, 32}, {6, 11, 1, 8}};
    for (size_t s = 0; s < COUNT_OF(few); s++)
        for (size_t kind = 0; kind < ALL_ACT_KINDS; kind++)
            for (size_t k = 0; k < 2 * REUSE_COUNT; k++) {
                const bnorm_shape shape = shape_of(few[s], (bnorm_dtype)((s + kind + k) % 3));
                struct data d;
                data_new(t, &d, &shape);
                struct call call = random_call(t, BNORM_OP_APPLY, &shape);
                call.act = type_act(t, kind);
                call.reuse = (enum reuse)(k / 2);
                call.residual = k % 2;
                compare_apply(t, &call, &d, kind + k);
                test_release(t);
            }
}

/* x, residual and y as neighbouring slices of one buffer that holds more blocks of channels. */
static void test_slices(struct test *t) {
    static const size_t few[][4] = {{2, 3, 7, 4}, {3, 13, 10, 8}, {1, 40, 33, 16}, {5, 9, 1, 8}};
    for (size_t s = 0; s < COUNT_OF(few); s++) {
        const bnorm_shape shape = shape_of(few[s], BNORM_F32);
        struct data d;
        data_new(t, &d, &shape);
        bnorm_shape wide = shape;
        wide.c = 3 * shape_runs(&shape) * shape.c_block;
        struct fixture f;
        fixture_start(&f, t, (enum side)(s % 2));
        const struct placement dense = {.side = f.side};
        struct tensor *all = fixture_tensor(&f, "wide", &wide, &dense, NULL);
        struct tensor slices[3];
        const size_t count = shape_count(&shape);
        float *in = test_floats(t, count), *added = test_floats(t, count);
        for (size_t i = 0; i < count; i++) {
            const size_t at = plain_index(&shape, i);
            in[i] = at == SIZE_MAX ? bits_float(NAN_BITS) : d.x[at];
            added[i] = at == SIZE_MAX ? bits_float(NAN_BITS) : d.residual[at];
        }
        for (size_t k = 0; k < 3; k++) {
            slices[k] = *all;
            slices[k].data = (float *)all->data + k * shape_runs(&shape) * shape_len(&shape);
            slices[k].given_run_stride = all->run_stride;
            slices[k].given_image_stride = all->image_stride;
        }
        tensor_put(&slices[0], &shape, in);
        tensor_put(&slices[2], &shape, added);
        char text[96];
        test_context(t, "%s, slices of one buffer", shape_text(&shape, text));
        const bnorm_affine affine = {.center = d.mean,
                                     .scale = d.invstd,
                                     .shift = d.beta,
                                     .residual = tensor_in(&slices[2]),
                                     .act = {.kind = BNORM_ACT_RELU}};
        const bnorm_exec exec = {.isa = t->isa};
        check_status(
            t, "bnorm_apply",
            bnorm_apply(&shape, tensor_in(&slices[0]), tensor_out(&slices[1]), &affine, &exec),
            BNORM_OK);
        d.gamma = NULL;
        struct call plain = {.op = BNORM_OP_APPLY, .shape = shape, .act = affine.act, .dense = 1};
        plain.shape.c_block = 0;
        plain.residual = 1;
        const bnorm_exec scalar = {.isa = scalar_isa()};
        const struct results want = run_call(t, &plain, &d, &scalar);
        float *got = test_floats(t, count);
        tensor_get(&slices[1], &shape, got);
        for (size_t i = 0; i < count; i++) {
            const size_t at = plain_index(&shape, i);
            const float zero = 0;
            check_bits(t, "y", &got[i], at == SIZE_MAX ? &zero : &want.y[at], 1);
        }
        tensor_get(&slices[0], &shape, got);
        check_bits(t, "x", got, in, count);
        tensor_get(&slices[2], &shape, got);
        check_bits(t, "residual", got, added, count);
        fixture_check(&f);
        fixture_end(&f);
        test_release(t);
    }
}

/* ---------------------------------------------------------------------------------------------- */
/* Statistics and gradients, block by block                                                       */

/* The data of block number `block` as data of b channels; padding channels are zero. */
static struct data block_data(struct test *t, const struct data *d, const struct channels *which) {
    const struct data array = {.n = 1, .c = d->c, .hw = 1};
    return (struct data){
        .n = d->n,
        .c = which->width,
        .hw = d->hw,
        .x = take_channels(t, d->x, d, which),
        .dy = take_channels(t, d->dy, d, which),
        .residual = take_channels(t, d->residual, d, which),
        .gamma = take_channels(t, d->gamma, &array, which),
        .beta = take_channels(t, d->beta, &array, which),
        .mean = take_channels(t, d->mean, &array, which),
        .invstd = take_channels(t, d->invstd, &array, which),
        .lo = take_channels(t, d->lo, &array, which),
    };
}

static struct results take_results(struct test *t, const struct results *r, const struct data *d,
                                   const struct channels *which) {
    const struct data array = {.n = 1, .c = d->c, .hw = 1};
    return (struct results){
        .y = take_channels(t, r->y, d, which),
        .dx = take_channels(t, r->dx, d, which),
        .dresidual = take_channels(t, r->dresidual, d, which),
        .mean = take_channels(t, r->mean, &array, which),
        .var = take_channels(t, r->var, &array, which),
        .lo = take_channels(t, r->lo, &array, which),
        .invstd = take_channels(t, r->invstd, &array, which),
        .running_mean = take_channels(t, r->running_mean, &array, which),
        .running_var = take_channels(t, r->running_var, &array, which),
        .dgamma = take_channels(t, r->dgamma, &array, which),
        .dbeta = take_channels(t, r->dbeta, &array, which),
    };
}

/* Compares with the scalar set's NHWC calls on one block each. */
static void check_blocks(struct test *t, const struct call *call, const struct data *d,
                         const struct results *got) {
    const size_t b = call->shape.c_block;
    const bnorm_exec scalar = {.isa = scalar_isa()};
    for (size_t first = 0; first < d->c; first += b) {
        const size_t valid = d->c - first < b ? d->c - first : b;
        const struct channels padded = {first, valid, b}, in_all = {first, valid, valid};
        const struct channels in_block = {0, valid, valid};
        const struct data block = block_data(t, d, &padded);
        struct call one = *call;
        one.shape.layout = BNORM_NHWC;
        one.shape.c = b;
        one.shape.c_block = 0;
        one.reuse = REUSE_NOTHING;
        one.dense = 1;
        if (call->given_y)
            one.given_y = take_channels(t, call->given_y, d, &padded);
        const struct results result = run_call(t, &one, &block, &scalar);
        const struct results want = take_results(t, &result, &block, &in_block);
        const struct results have = take_results(t, got, d, &in_all);
        const struct data dims = {.n = d->n, .c = valid, .hw = d->hw};
        char text[256];
        test_context(t, "%s on %s, channels from %zu", call_text(call, text),
                     bnorm_isa_name(t->isa), first);
        check_results(t, &have, &want, &dims);
    }
}

static void check_train_oracle(struct test *t, const struct call *call, const struct data *d,
                               const struct results *got) {
    const size_t count = data_count(d), c = d->c;
    const struct oracle_train train = {
        .gamma = to_double(t, d->gamma, c),
        .beta = to_double(t, d->beta, c),
        .residual = call->residual ? to_double(t, d->residual, count) : NULL,
        .eps = 1e-5,
        .act = call->act,
    };
    const struct oracle_train_out out = {
        .stats = {test_doubles(t, c), test_doubles(t, c), test_doubles(t, c), test_doubles(t, c)},
        .invstd = test_doubles(t, c),
        .invstd_bound = test_doubles(t, c),
        .y = test_doubles(t, count),
        .y_bound = test_doubles(t, count),
    };
    oracle_train(&call->shape, to_double(t, d->x, count), &train, &out);
    for (size_t i = 0; i < c; i++) {
        const double mean = out.stats.mean[i], invstd = out.invstd[i];
        check_near(t, "save_mean", i, got->mean[i], mean,
                   out.stats.mean_bound[i] + 0x1p-24 * fabs(mean) + 0x1p-149);
        check_near(t, "save_invstd", i, got->invstd[i], invstd,
                   out.invstd_bound[i] + 0x1p-24 * invstd + 0x1p-149);
    }
    for (size_t i = 0; i < count; i++)
        check_near(t, "y", i, got->y[i], out.y[i], out.y_bound[i]);
}

static void check_grad_oracle(struct test *t, const struct call *call, const struct data *d,
                              const struct results *got) {
    const size_t count = data_count(d), c = d->c;
    const bnorm_shape plain = {.layout = BNORM_NCHW, .n = d->n, .c = c, .hw = d->hw};
    double *mean = to_double(t, d->mean, c), *scale = to_double(t, d->invstd, c);
    for (size_t i = 0; i < c; i++) {
        mean[i] += call->lo ? (double)d->lo[i] : 0;
        scale[i] *= d->gamma ? (double)d->gamma[i] : 1;
    }
    const struct oracle_affine affine = {
        .center = mean,
        .scale = scale,
        .shift = to_double(t, d->beta, c),
        .residual = call->residual ? to_double(t, d->residual, count) : NULL,
    };
    double *x = to_double(t, d->x, count), *v = test_doubles(t, count);
    oracle_apply(&plain, x, &affine, v, test_doubles(t, count), NULL);
    const struct oracle_grad grad = {
        .gamma = to_double(t, d->gamma, c),
        .beta = affine.shift,
        .mean = mean,
        .mean_hi = to_double(t, d->mean, c),
        .invstd = to_double(t, d->invstd, c),
        .v = v,
        .frozen = call->frozen,
        .act = call->act,
    };
    const struct oracle_grad_out e = {
        test_doubles(t, c),     test_doubles(t, c),     test_doubles(t, c),
        test_doubles(t, c),     test_doubles(t, count), test_doubles(t, count),
        test_doubles(t, count), test_doubles(t, count),
    };
    oracle_backward(&plain, x, to_double(t, d->dy, count), &grad, &e);
    for (size_t i = 0; i < c; i++) {
        check_near(t, "dbeta", i, got->dbeta[i], e.dbeta[i], e.dbeta_bound[i]);
        check_near(t, "dgamma", i, got->dgamma[i], e.dgamma[i], e.dgamma_bound[i]);
    }
    for (size_t i = 0; i < count; i++) {
        check_near(t, "dresidual", i, got->dresidual[i], e.g[i], e.g_bound[i]);
        check_near(t, "dx", i, got->dx[i], e.dx[i], e.dx_bound[i]);
    }
}

/* No gradient where rounding decides on which side of a kink the argument lies: v is forward's. */
static void avoid_kinks(struct data *d, bnorm_act act, const float *v) {
    for (size_t i = 0; i < data_count(d); i++)
        if (oracle_kink_distance(act, (double)v[i]) < 1e-4)
            d->dy[i] = 0;
}

/* The activation's argument, by a forward pass of floats without activation. */
static float *argument_of(struct test *t, const struct call *forward, const struct data *d) {
    const bnorm_exec scalar = {.isa = scalar_isa()};
    struct call call = *forward;
    call.shape.dtype = BNORM_F32;
    call.act = (bnorm_act){.kind = BNORM_ACT_IDENTITY};
    call.reuse = REUSE_NOTHING;
    call.dense = 1;
    return run_call(t, &call, d, &scalar).y;
}

static void compare_reductions(struct test *t, const bnorm_shape *shape, size_t i) {
    const bnorm_exec exec = type_exec(t, i);
    struct data d;
    data_new(t, &d, shape);
    const int spoilt = i % 7 == 3; /* one channel must not spoil its block */
    if (spoilt)
        d.x[rng_below(&t->rng, data_count(&d))] = i % 2 ? bits_float(NAN_BITS) : INFINITY;

    struct call moments = random_call(t, BNORM_OP_MOMENTS, shape);
    const struct results statistics = run_call(t, &moments, &d, &exec);
    check_blocks(t, &moments, &d, &statistics);

    struct call train = random_call(t, BNORM_OP_FORWARD_TRAIN, shape);
    const struct results forward = run_call(t, &train, &d, &exec);
    check_blocks(t, &train, &d, &forward);
    if (is_scalar(t) && !spoilt && shape->dtype == BNORM_F32)
        check_train_oracle(t, &train, &d, &forward);

    /* Backward of that forward pass, or of bnorm_apply with other statistics. */
    struct call backward = random_call(t, BNORM_OP_BACKWARD, shape);
    backward.act = train.act;
    backward.residual = train.residual;
    backward.lo = train.lo || train.residual;
    if (!backward.frozen) {
        d.mean = forward.mean;
        d.invstd = forward.invstd;
        d.lo = forward.lo ? forward.lo : test_floats(t, d.c);
    } else {
        backward.lo = 0;
    }
    struct call again = train;
    again.op = BNORM_OP_APPLY;
    avoid_kinks(&d, train.act, argument_of(t, &again, &d));
    const struct results gradients = run_call(t, &backward, &d, &exec);
    check_blocks(t, &backward, &d, &gradients);
    if (is_scalar(t) && !spoilt && shape->dtype == BNORM_F32)
        check_grad_oracle(t, &backward, &d, &gradients);

    /* The same from forward's y. */
    const int y_tells =
        act_has_mask(train.act) && (train.act.kind != BNORM_ACT_LEAKY_RELU || train.act.a > 0);
    if (y_tells && !backward.frozen) {
        backward.residual = 0;
        backward.given_y = forward.y;
        const struct results from_y = run_call(t, &backward, &d, &exec);
        check_blocks(t, &backward, &d, &from_y);
    }
    test_release(t);
}

static void test_reductions(struct test *t) {
    for (size_t s = 0; s < COUNT_OF(sizes); s++)
        for (size_t k = 0; k < test_repeat(4, 2, 2); k++) {
            if (!test_draws(t, 2))
                continue;
            const bnorm_shape shape =
                shape_of(sizes[s], k % 2 == 0 ? BNORM_F32 : pick_dtype(&t->rng));
            compare_reductions(t, &shape, 5 * s + k);
        }
}

/* All tasks of large tensors, in several orders and on several threads. */
static void test_threads(struct test *t) {
    for (size_t s = 0; s < (test_quick() ? 1 : COUNT_OF(large)); s++)
        for (size_t k = 0; k < test_repeat(2, 1, 2); k++) {
            const bnorm_shape shape = shape_of(large[s], (s + k) % 2 ? BNORM_BF16 : BNORM_F32);
            struct data d;
            data_new(t, &d, &shape);
            struct call call = random_call(t, BNORM_OP_APPLY, &shape);
            compare_apply(t, &call, &d, 12 + s + k); /* on four threads */
            test_release(t);
            compare_reductions(t, &shape, 12 + (s + k) % 4);
        }
}

/* N = 0 or HW = 0. */
static void test_empty(struct test *t) {
    const bnorm_exec exec = {.isa = t->isa};
    for (int which = 0; which < 2; which++)
        for (int op = BNORM_OP_MOMENTS; op <= BNORM_OP_APPLY; op++) {
            const size_t size[4] = {which ? 3 : 0, 5, which ? 0 : 7, 8};
            const bnorm_shape shape = shape_of(size, BNORM_F32);
            const float ones[5] = {1, 1, 1, 1, 1}, zeros[5] = {0};
            float dgamma[5] = {7, 7, 7, 7, 7}, dbeta[5] = {7, 7, 7, 7, 7};
            const bnorm_train train = {.eps = 1};
            const bnorm_grad grad = {
                .save_mean = ones, .save_invstd = ones, .dgamma = dgamma, .dbeta = dbeta};
            const bnorm_job job = {
                .op = (bnorm_op)op, .shape = &shape, .train = &train, .grad = &grad};
            char text[96];
            test_context(t, "%s op=%d", shape_text(&shape, text), op);
            check_status(t, "a call on NULL", run_job(&job, &exec), BNORM_OK);
            if (op == BNORM_OP_BACKWARD) {
                check_bits(t, "dgamma", dgamma, zeros, 5);
                check_bits(t, "dbeta", dbeta, zeros, 5);
            }
            if (bnorm_workspace((bnorm_op)op, &shape) || bnorm_mask_size(&shape))
                test_fail(t, "bnorm_workspace() or bnorm_mask_size() is not 0 for an empty batch");
        }
}

void add_blocked(struct suite *s) {
    suite_add_per_isa(s, test_apply, NULL, "blocked/%s/apply");
    suite_add_per_isa(s, test_options, NULL, "blocked/%s/options");
    suite_add_per_isa(s, test_slices, NULL, "blocked/%s/slices");
    suite_add_per_isa(s, test_reductions, NULL, "blocked/%s/reductions");
    suite_add_per_isa(s, test_threads, NULL, "blocked/%s/threads");
    suite_add_per_isa(s, test_empty, NULL, "blocked/%s/empty");
}
