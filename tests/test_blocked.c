/* SPDX-License-Identifier: MIT
 *
 * Channel-blocked tensors. bnorm_apply gives the bits of the NCHW call on the permuted data. The
 * reductions and what follows them give, for each block of channels, the bits of the NHWC call on
 * that block alone, whose padding channels are zero; and they are compared to the oracle. Padding
 * of inputs holds NaN, huge values or zeros; ready_finish() sees that padding of outputs is zero. */
#include "calls.h"
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

/* ---------------------------------------------------------------------------------------------- */
/* bnorm_apply                                                                                    */

static void compare_apply(struct test *t, const struct call *call, const struct data *d, size_t i) {
    struct call plain = on_floats(call);
    plain.shape = call->shape;
    plain.shape.c_block = 0;
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
            for (size_t k = 0; k < 2 * (ONTO_EXTRA + 1); k++) {
                const bnorm_shape shape = shape_of(few[s], (bnorm_dtype)((s + kind + k) % 3));
                struct data d;
                data_new(t, &d, &shape);
                struct call call = random_call(t, BNORM_OP_APPLY, &shape);
                call.act = type_act(t, kind);
                call.out = (enum target)(k / 2);
                call.residual = k % 2;
                if (targets_fit(&call))
                    compare_apply(t, &call, &d, kind + k);
                test_release(t);
            }
}

/* x, y and the residual as neighbouring slices of one buffer that holds more blocks of channels. */
static void test_slices(struct test *t) {
    static const size_t few[][4] = {{2, 3, 7, 4}, {3, 13, 10, 8}, {1, 40, 33, 16}, {5, 9, 1, 8}};
    const bnorm_exec exec = {.isa = t->isa};
    for (size_t s = 0; s < COUNT_OF(few); s++) {
        const bnorm_shape shape = shape_of(few[s], BNORM_F32);
        struct data d;
        data_new(t, &d, &shape);
        struct call call = {.op = BNORM_OP_APPLY,
                            .shape = shape,
                            .act = {.kind = BNORM_ACT_RELU},
                            .residual = 1,
                            .side = (int)(s % 2)};
        const struct results got = run_sliced(t, &call, &d, &exec);
        call.shape.c_block = 0;
        const struct results want = run_scalar(t, &call, &d);
        check_results(t, &got, &want, &d);
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
        .running_mean = take_channels(t, d->running_mean, &array, which),
        .running_var = take_channels(t, d->running_var, &array, which),
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
        struct call one = on_floats(call);
        one.shape = call->shape;
        one.shape.layout = BNORM_NHWC;
        one.shape.c = b;
        one.shape.c_block = 0;
        if (call->given_y)
            one.given_y = take_channels(t, call->given_y, d, &padded);
        const struct results result = run_call(t, &one, &block, &scalar);
        const struct results want = take_results(t, &result, &block, &in_block);
        const struct results have = take_results(t, got, d, &in_all);
        const struct data dims = {.n = d->n, .c = valid, .hw = d->hw};
        char text[320];
        test_context(t, "%s on %s, channels from %zu", call_text(call, text),
                     bnorm_isa_name(t->isa), first);
        check_results(t, &have, &want, &dims);
    }
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
        check_oracle(t, &train, &d, NULL, &forward);

    /* Backward of that forward pass, or of bnorm_apply with other statistics. */
    struct call backward = random_call(t, BNORM_OP_BACKWARD, shape);
    backward.act = train.act;
    backward.residual = train.residual;
    backward.lo = train.lo || train.residual;
    if (!backward.frozen) {
        data_take(&d, &forward);
        if (!forward.lo)
            d.lo = test_floats(t, d.c);
    } else {
        backward.lo = 0;
    }
    avoid_kinks(t, &backward, &d, 0);
    const struct results gradients = run_call(t, &backward, &d, &exec);
    check_blocks(t, &backward, &d, &gradients);
    if (is_scalar(t) && !spoilt && shape->dtype == BNORM_F32)
        check_oracle(t, &backward, &d, NULL, &gradients);

    /* The same from forward's y. */
    if (y_tells_argument(train.act) && !backward.frozen) {
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
