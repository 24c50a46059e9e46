/* SPDX-License-Identifier: MIT
 *
 * Options that give a call's arguments or results another form: a variance instead of an inverse
 * deviation, running statistics that go elsewhere, gradients that were expanded, blocks of one
 * channel. Each must give the bits of the plain call. And statistics of data whose sums are exact. */
#include "../dispatch/isa.h"
#include "variants.h"

#include <math.h>
#include <string.h>

enum { MOST_C = 2200 };

/* A batch with the statistics that backward takes; tensors are dense. */
struct batch {
    bnorm_shape shape;
    size_t count;
    void *x, *dy, *y, *dx, *dresidual, *ws;
    size_t ws_size;
    float *gamma, *beta, *mean, *lo, *var, *invstd, *dgamma, *dbeta;
};

static void *elements(struct test *t, bnorm_dtype dtype, size_t count) {
    char *data = test_alloc(t, count * dtype_size(dtype) + 1);
    for (size_t i = 0; i < count; i++)
        element_set(dtype, data, i, (float)rng_normal(&t->rng));
    return data;
}

static float *floats_from(struct test *t, size_t count, double low, double high) {
    float *f = test_floats(t, count);
    for (size_t i = 0; i < count; i++)
        f[i] = (float)rng_uniform(&t->rng, low, high);
    return f;
}

static struct batch batch_new(struct test *t, const bnorm_shape *shape) {
    const size_t count = shape_count(shape), c = shape->c;
    struct batch b = {.shape = *shape, .count = count};
    b.x = elements(t, shape->dtype, count);
    b.dy = elements(t, shape->dtype, count);
    b.y = elements(t, shape->dtype, count);
    b.dx = elements(t, shape->dtype, count);
    b.dresidual = elements(t, shape->dtype, count);
    b.gamma = floats_from(t, c, .5, 2);
    b.beta = floats_from(t, c, -1, 1);
    b.mean = floats_from(t, c, -1, 1);
    b.lo = floats_from(t, c, -1e-8, 1e-8);
    b.var = floats_from(t, c, .1, 3);
    b.invstd = test_floats(t, c);
    b.dgamma = test_floats(t, c);
    b.dbeta = test_floats(t, c);
    b.ws_size = bnorm_workspace(BNORM_OP_BACKWARD, shape);
    b.ws = test_alloc(t, b.ws_size + 1);
    check_status(t, "bnorm_fold", bnorm_fold(c, NULL, NULL, NULL, b.var, 1e-3, b.invstd, NULL),
                 BNORM_OK);
    return b;
}

static bnorm_grad grad_of(const struct batch *b, bnorm_act_kind kind, int frozen) {
    return (bnorm_grad){.gamma = b->gamma,
                        .beta = b->beta,
                        .save_mean = b->mean,
                        .save_mean_lo = b->lo,
                        .save_invstd = b->invstd,
                        .frozen = frozen,
                        .act = {.kind = kind},
                        .dresidual = {b->dresidual, 0, 0},
                        .dgamma = b->dgamma,
                        .dbeta = b->dbeta};
}

/* How a backward pass is called. */
enum way { WHOLE, PIECES, GHOST, WAYS };

static void backward_in_pieces(struct test *t, const struct batch *b, const bnorm_grad *grad,
                               bnorm_in dy, const bnorm_exec *exec) {
    const size_t c = b->shape.c, size = bnorm_partial_size(c, b->shape.n);
    float *coefficients = test_floats(t, 5 * c);
    bnorm_partial piece = {
        .op = BNORM_OP_BACKWARD, .c = c, .nodes = test_alloc(t, size + 1), .size = size};
    const bnorm_in x = {b->x, 0, 0};
    check_status(
        t, "bnorm_partial_collect_grad",
        bnorm_partial_collect_grad(&b->shape, x, dy, grad, &piece, b->ws, b->ws_size, exec),
        BNORM_OK);
    check_status(t, "bnorm_partial_finish_grad",
                 bnorm_partial_finish_grad(&piece, grad, coefficients), BNORM_OK);
    check_status(t, "bnorm_partial_apply_grad",
                 bnorm_partial_apply_grad(&b->shape, x, dy, (bnorm_out){b->dx, 0, 0}, grad,
                                          coefficients, exec),
                 BNORM_OK);
}

static void backward(struct test *t, enum way way, const struct batch *b, const bnorm_grad *grad,
                     bnorm_in dy, const bnorm_exec *exec) {
    const bnorm_in x = {b->x, 0, 0};
    const bnorm_out dx = {b->dx, 0, 0};
    if (way == PIECES) {
        backward_in_pieces(t, b, grad, dy, exec);
    } else if (way == GHOST) {
        const bnorm_ghost ghost = {.groups = b->shape.n, .order = BNORM_GHOST_CONTIGUOUS};
        check_status(
            t, "bnorm_backward_ghost",
            bnorm_backward_ghost(&b->shape, x, dy, dx, grad, &ghost, b->ws, b->ws_size, exec),
            BNORM_OK);
    } else {
        check_status(t, "bnorm_backward",
                     bnorm_backward(&b->shape, x, dy, dx, grad, b->ws, b->ws_size, exec), BNORM_OK);
    }
}

/* The results of one call, kept while another one is made; then those of both have the same bits. */
struct kept {
    void *dx, *dresidual;
    float *dgamma, *dbeta;
};

static struct kept keep(struct test *t, const struct batch *b) {
    const size_t bytes = b->count * dtype_size(b->shape.dtype), c = b->shape.c;
    const struct kept k = {test_alloc(t, bytes), test_alloc(t, bytes), test_floats(t, c),
                           test_floats(t, c)};
    memcpy(k.dx, b->dx, bytes);
    memcpy(k.dresidual, b->dresidual, bytes);
    memcpy(k.dgamma, b->dgamma, c * sizeof(float));
    memcpy(k.dbeta, b->dbeta, c * sizeof(float));
    memset(b->dx, 0x55, bytes);
    memset(b->dresidual, 0x55, bytes);
    return k;
}

static void check_kept(struct test *t, const struct batch *b, const struct kept *k) {
    const size_t bytes = b->count * dtype_size(b->shape.dtype);
    check_bytes(t, "dx", b->dx, k->dx, bytes);
    check_bytes(t, "dresidual", b->dresidual, k->dresidual, bytes);
    check_bits(t, "dgamma", b->dgamma, k->dgamma, b->shape.c);
    check_bits(t, "dbeta", b->dbeta, k->dbeta, b->shape.c);
}

/* ---------------------------------------------------------------------------------------------- */
/* Gradients that were expanded                                                                   */

static const size_t sizes[][3] = {/* n, c, hw */
                                  {3, 5, 7},    {2, 40, 9},  {6, 37, 1},     {1, 300, 2},
                                  {2, 3, 5000}, {5, 16, 64}, {2, MOST_C, 3}, {70, 4, 1},
                                  {2, 1, 17},   {4, 64, 300}};

/* The elements of dy as they are given: one where an axis is broadcast. */
static bnorm_shape narrow(const bnorm_shape *shape, unsigned broadcast) {
    bnorm_shape s = *shape;
    s.n = broadcast & BNORM_BROADCAST_N ? 1 : s.n;
    s.c = broadcast & BNORM_BROADCAST_C ? 1 : s.c;
    s.hw = broadcast & BNORM_BROADCAST_HW ? 1 : s.hw;
    return s;
}

/* Writes b->dy out from a dense tensor of the narrow shape. */
static void expand(const struct batch *b, const struct tensor *from, const bnorm_shape *s) {
    const int nhwc = b->shape.layout == BNORM_NHWC;
    size_t e = 0;
    for (size_t n = 0; n < b->shape.n; n++)
        for (size_t i = 0; i < b->shape.c * b->shape.hw; i++, e++) {
            const size_t c = nhwc ? i % b->shape.c : i / b->shape.hw,
                         p = nhwc ? i / b->shape.c : i % b->shape.hw;
            const size_t run = nhwc ? (s->hw > 1 ? p : 0) : (s->c > 1 ? c : 0);
            const size_t within = nhwc ? (s->c > 1 ? c : 0) : (s->hw > 1 ? p : 0);
            const size_t at =
                (s->n > 1 ? n : 0) * from->image_stride + run * from->run_stride + within;
            element_set(b->shape.dtype, b->dy, e, element_get(b->shape.dtype, from->data, at));
        }
}

static void broadcast_case(struct test *t, const bnorm_shape *shape, unsigned broadcast,
                           size_t round) {
    static const bnorm_act_kind kinds[] = {BNORM_ACT_IDENTITY, BNORM_ACT_RELU,
                                           BNORM_ACT_HARD_SWISH};
    struct batch b = batch_new(t, shape);
    const bnorm_shape s = narrow(shape, broadcast);
    const size_t gap = round % 2 ? 3 : 0;
    const struct placement place = {gap ? shape_len(&s) + gap : 0, 0,
                                    round % 4 < 2 ? SIDE_END : SIDE_START, 0};
    struct tensor dy;
    tensor_new(&dy, &s, &place);
    float *values = floats_from(t, shape_count(&s), -2, 2);
    tensor_put(&dy, &s, values);
    expand(&b, &dy, &s);
    const bnorm_exec exec = type_exec(t, round);
    for (size_t i = 0; i < 6; i++) {
        bnorm_grad grad = grad_of(&b, kinds[i % 3], i == 5);
        const enum way way = (enum way)((round + i) % WAYS);
        const size_t groups = way == GHOST ? shape->n : 1;
        float *save[3] = {floats_from(t, groups * shape->c, -1, 1),
                          floats_from(t, groups * shape->c, 0, 1e-8),
                          floats_from(t, groups * shape->c, .5, 2)};
        grad.save_mean = save[0];
        grad.save_mean_lo = save[1];
        grad.save_invstd = save[2];
        if (way == PIECES)
            memset(b.dgamma, 0, shape->c * sizeof(float));
        test_context(t, "%s n=%zu c=%zu hw=%zu broadcast %u, gap %zu, way %d, act %d, frozen %d",
                     shape->layout ? "nchw" : "nhwc", shape->n, shape->c, shape->hw, broadcast, gap,
                     (int)way, (int)kinds[i % 3], grad.frozen);
        backward(t, way, &b, &grad, (bnorm_in){b.dy, 0, 0}, &exec);
        const struct kept kept = keep(t, &b);
        grad.dy_broadcast = broadcast;
        backward(t, way, &b, &grad, tensor_in(&dy), &exec);
        check_kept(t, &b, &kept);
    }
    buffer_check(t, &dy.buffer, "dy");
    test_release(t);
}

static void test_broadcast(struct test *t) {
    const bnorm_dtype dtype = *(const bnorm_dtype *)t->param;
    size_t round = 0;
    for (size_t i = 0; i < COUNT_OF(sizes); i++)
        for (int layout = 0; layout < 2; layout++)
            for (unsigned broadcast = 0; broadcast < 8; broadcast++, round++) {
                if (test_quick() && (sizes[i][0] * sizes[i][1] * sizes[i][2] > 5000) && round % 5)
                    continue;
                const bnorm_shape shape = {(bnorm_layout)layout, dtype,       sizes[i][0],
                                           sizes[i][1],          sizes[i][2], 0};
                broadcast_case(t, &shape, broadcast, round);
            }
}

static void test_broadcast_refusals(struct test *t) {
    const bnorm_shape shape = {.layout = BNORM_NCHW, .n = 2, .c = 8, .hw = 6};
    struct batch b = batch_new(t, &shape);
    const float *weights = floats_from(t, 12, 0, 1);
    const bnorm_in x = {b.x, 0, 0}, dy = {b.dy, 0, 0};
    const struct {
        const char *what;
        unsigned broadcast;
        size_t c_block;
        const float *weights;
        void *dx, *dresidual;
        bnorm_status want;
    } all[] = {
        {"no such axis", 8, 0, NULL, b.dx, NULL, BNORM_BAD_ENUM},
        {"blocks", BNORM_BROADCAST_N, 4, NULL, b.dx, NULL, BNORM_UNSUPPORTED},
        {"weights", BNORM_BROADCAST_N, 0, weights, b.dx, NULL, BNORM_UNSUPPORTED},
        {"dx on dy", BNORM_BROADCAST_HW, 0, NULL, b.dy, NULL, BNORM_BAD_OVERLAP},
        {"dx on the last of dy", BNORM_BROADCAST_HW, 0, NULL, (float *)b.dy + 15, NULL,
         BNORM_BAD_OVERLAP},
        {"dx behind dy", BNORM_BROADCAST_C | BNORM_BROADCAST_HW, 0, NULL, (float *)b.dy + 2, NULL,
         BNORM_OK},
        {"dresidual on dy", BNORM_BROADCAST_N, 0, NULL, b.dx, b.dy, BNORM_BAD_OVERLAP},
    };
    float *big = test_floats(t, 2 * 96 + 16);
    memcpy(big, b.dy, 96 * sizeof(float));
    for (size_t i = 0; i < COUNT_OF(all); i++) {
        bnorm_shape s = shape;
        s.c_block = all[i].c_block;
        bnorm_grad grad = grad_of(&b, BNORM_ACT_IDENTITY, 0);
        grad.dy_broadcast = all[i].broadcast;
        grad.weights.values = all[i].weights;
        grad.dresidual.data = all[i].dresidual;
        test_context(t, "%s", all[i].what);
        bnorm_in from = dy;
        bnorm_out to = {all[i].dx, 0, 0};
        if (all[i].want == BNORM_OK) { /* room for all of dx */
            from.data = big;
            to.data = big + 2;
        }
        check_status(t, "bnorm_backward",
                     bnorm_backward(&s, x, from, to, &grad, b.ws, b.ws_size, NULL), all[i].want);
    }
    /* Elements that stand for a whole run are no tensor that dx may be, whatever its strides. */
    const bnorm_shape rows = {.n = 2, .c = 8, .hw = 6};
    bnorm_grad grad = grad_of(&b, BNORM_ACT_IDENTITY, 0);
    grad.dy_broadcast = BNORM_BROADCAST_C;
    test_context(t, "dx on dy with its strides");
    check_status(t, "bnorm_backward",
                 bnorm_backward(&rows, x, (bnorm_in){b.dy, 8, 48}, (bnorm_out){b.dy, 8, 48}, &grad,
                                b.ws, b.ws_size, NULL),
                 BNORM_BAD_OVERLAP);
}

/* ---------------------------------------------------------------------------------------------- */
/* A variance instead of an inverse deviation                                                     */

static void test_save_var(struct test *t) {
    size_t round = 0;
    for (size_t i = 0; i < COUNT_OF(sizes); i++)
        for (int layout = 0; layout < 2; layout++, round++) {
            const bnorm_shape shape = {(bnorm_layout)layout, problem_dtype(round), sizes[i][0],
                                       sizes[i][1],          sizes[i][2],          0};
            struct batch b = batch_new(t, &shape);
            const size_t c = shape.c;
            const bnorm_exec exec = type_exec(t, round);
            float *mean = test_floats(t, c), *var = test_floats(t, c), *saved = test_floats(t, c),
                  *invstd = test_floats(t, c);
            test_context(t, "%s n=%zu c=%zu hw=%zu", layout ? "nchw" : "nhwc", shape.n, c,
                         shape.hw);
            const bnorm_train train = {
                .eps = 1e-3, .save_mean = mean, .save_var = saved, .save_invstd = invstd};
            check_status(
                t, "bnorm_moments",
                bnorm_moments(&shape, (bnorm_in){b.x, 0, 0}, NULL, var, b.ws, b.ws_size, &exec),
                BNORM_OK);
            check_status(t, "bnorm_forward_train",
                         bnorm_forward_train(&shape, (bnorm_in){b.x, 0, 0}, (bnorm_out){b.y, 0, 0},
                                             &train, b.ws, b.ws_size, &exec),
                         BNORM_OK);
            check_bits(t, "save_var", saved, var, c);

            if (c > 2)
                b.var[c - 1] = 0; /* with eps 0 its invstd is 0 */
            for (int k = 0; k < 6; k++) {
                const double eps = k % 2 ? 0 : 1e-3;
                const enum way way = (enum way)(k % WAYS);
                const size_t groups = way == GHOST ? shape.n : 1;
                float *means = floats_from(t, groups * c, -1, 1),
                      *vars = test_floats(t, groups * c), *from_var = test_floats(t, groups * c);
                for (size_t e = 0; e < groups * c; e++)
                    vars[e] = b.var[e % c];
                check_status(t, "bnorm_fold",
                             bnorm_fold(groups * c, NULL, NULL, NULL, vars, eps, from_var, NULL),
                             BNORM_OK);
                bnorm_grad grad = grad_of(&b, k % 2 ? BNORM_ACT_RELU : BNORM_ACT_IDENTITY, k == 4);
                grad.save_mean = means;
                grad.save_mean_lo = NULL;
                grad.save_invstd = from_var;
                backward(t, way, &b, &grad, (bnorm_in){b.dy, 0, 0}, &exec);
                const struct kept kept = keep(t, &b);
                grad.save_invstd = NULL;
                grad.save_var = vars;
                grad.eps = eps;
                backward(t, way, &b, &grad, (bnorm_in){b.dy, 0, 0}, &exec);
                check_kept(t, &b, &kept);
            }
            test_release(t);
        }
}

/* A later group's variance is looked at before the first group is done. */
static void test_ghost_variance(struct test *t) {
    const bnorm_shape shape = {.n = 4, .c = 5, .hw = 3};
    struct batch b = batch_new(t, &shape);
    float *vars = floats_from(t, 20, .5, 1);
    vars[19] = -1;
    bnorm_grad grad = grad_of(&b, BNORM_ACT_IDENTITY, 0);
    const bnorm_ghost ghost = {.groups = 4};
    grad.save_mean = floats_from(t, 20, -1, 1);
    grad.save_mean_lo = grad.save_invstd = NULL;
    grad.save_var = vars;
    grad.eps = 1e-3;
    const struct kept before = keep(t, &b);
    memcpy(b.dx, before.dx, b.count * sizeof(float));
    memcpy(b.dresidual, before.dresidual, b.count * sizeof(float));
    check_status(t, "bnorm_backward_ghost",
                 bnorm_backward_ghost(&shape, (bnorm_in){b.x, 0, 0}, (bnorm_in){b.dy, 0, 0},
                                      (bnorm_out){b.dx, 0, 0}, &grad, &ghost, b.ws, b.ws_size,
                                      NULL),
                 BNORM_BAD_VARIANCE);
    check_kept(t, &b, &before);
}

/* ---------------------------------------------------------------------------------------------- */
/* Running statistics                                                                             */

struct averages {
    float *mean, *var;
};

static struct averages averages_new(struct test *t, size_t c) {
    return (struct averages){floats_from(t, c, -1, 1), floats_from(t, c, .5, 2)};
}

/* Any function that updates them: way 0 training, 1 pieces, 2 and 3 ghost batches, 4 alone. */
static void update(struct test *t, int way, const struct batch *b, const bnorm_running *running,
                   const bnorm_exec *exec) {
    const bnorm_train train = {.gamma = b->gamma, .eps = 1e-3, .running = *running};
    const bnorm_in x = {b->x, 0, 0};
    const bnorm_out y = {b->y, 0, 0};
    const bnorm_ghost ghost = {.groups = b->shape.n,
                               .running = way == 3 ? BNORM_GHOST_SUCCESSIVE : BNORM_GHOST_AVERAGE};
    const size_t size = bnorm_partial_size(b->shape.c, b->shape.n);
    bnorm_partial piece = {.c = b->shape.c, .nodes = test_alloc(t, size + 1), .size = size};
    float *coefficients = test_floats(t, 3 * b->shape.c);
    if (way == 0)
        check_status(t, "bnorm_forward_train",
                     bnorm_forward_train(&b->shape, x, y, &train, b->ws, b->ws_size, exec),
                     BNORM_OK);
    else if (way == 1) {
        check_status(t, "bnorm_partial_collect",
                     bnorm_partial_collect(&b->shape, x, &piece, b->ws, b->ws_size, exec),
                     BNORM_OK);
        check_status(t, "bnorm_partial_finish", bnorm_partial_finish(&piece, &train, coefficients),
                     BNORM_OK);
    } else if (way < 4)
        check_status(
            t, "bnorm_forward_train_ghost",
            bnorm_forward_train_ghost(&b->shape, x, y, &train, &ghost, b->ws, b->ws_size, exec),
            BNORM_OK);
    else
        check_status(t, "bnorm_running_update",
                     bnorm_running_update(b->shape.c, b->mean, b->var, 12, running), BNORM_OK);
}

static void test_running_elsewhere(struct test *t) {
    static const double rates[] = {.1, 0, 1, -.5};
    for (size_t round = 0; round < 40; round++) {
        const bnorm_shape shape = {.layout = (bnorm_layout)(round % 2),
                                   .n = round % 5 ? 3 : 1,
                                   .c = 1 + 7 * round,
                                   .hw = 1 + round % 4};
        struct batch b = batch_new(t, &shape);
        const size_t c = shape.c, bytes = c * sizeof(float);
        const bnorm_exec exec = type_exec(t, round);
        for (int way = 0; way < 5; way++) {
            const struct averages old = averages_new(t, c), in_place = averages_new(t, c),
                                  elsewhere = averages_new(t, c), before = averages_new(t, c),
                                  alone = averages_new(t, c);
            memcpy(in_place.mean, old.mean, bytes), memcpy(in_place.var, old.var, bytes);
            memcpy(before.mean, old.mean, bytes), memcpy(before.var, old.var, bytes);
            memcpy(alone.mean, old.mean, bytes), memcpy(alone.var, old.var, bytes);
            bnorm_running running = {.mean = in_place.mean,
                                     .var = in_place.var,
                                     .rate = rates[round % 4],
                                     .variance = (bnorm_variance)(round / 4 % 2)};
            test_context(t, "way %d, c = %zu, n = %zu, hw = %zu, rate %g", way, c, shape.n,
                         shape.hw, running.rate);
            update(t, way, &b, &running, &exec);
            running.mean = old.mean, running.var = old.var;
            running.new_mean = elsewhere.mean, running.new_var = elsewhere.var;
            update(t, way, &b, &running, &exec);
            check_bits(t, "the old mean", old.mean, before.mean, c);
            check_bits(t, "the old variance", old.var, before.var, c);
            check_bits(t, "the new mean", elsewhere.mean, in_place.mean, c);
            check_bits(t, "the new variance", elsewhere.var, in_place.var, c);
            /* One of the two, and one here and the other there. */
            const bnorm_running mean_alone = {
                .mean = alone.mean, .rate = running.rate, .variance = running.variance};
            const bnorm_running var_alone = {.var = alone.var,
                                             .rate = running.rate,
                                             .variance = running.variance,
                                             .new_var = alone.var};
            update(t, way, &b, &mean_alone, &exec);
            check_bits(t, "the variance, not tracked", alone.var, before.var, c);
            update(t, way, &b, &var_alone, &exec);
            check_bits(t, "the mean alone", alone.mean, in_place.mean, c);
            check_bits(t, "the variance alone", alone.var, in_place.var, c);
        }
        test_release(t);
    }
    /* An empty batch leaves what there was, also elsewhere. */
    for (int way = 0; way < 4; way++) {
        const bnorm_shape shape = {.c = 9, .hw = 5};
        struct batch b = batch_new(t, &shape);
        const struct averages old = averages_new(t, 9), elsewhere = averages_new(t, 9);
        const bnorm_running running = {.mean = old.mean,
                                       .var = old.var,
                                       .rate = .1,
                                       .new_mean = elsewhere.mean,
                                       .new_var = elsewhere.var};
        b.shape.n = way > 1; /* groups */
        b.shape.hw = way > 1 ? 0 : 5;
        test_context(t, "an empty batch, way %d", way);
        update(t, way, &b, &running, NULL);
        check_bits(t, "the mean", elsewhere.mean, old.mean, 9);
        check_bits(t, "the variance", elsewhere.var, old.var, 9);
    }
}

/* (1 - rate)*old + rate*batch of infinities and NaN: no difference of two infinities. */
static void test_infinite_running(struct test *t) {
    static const struct {
        float old, batch;
        double rate;
        float want;
    } all[] = {
        {INFINITY, 1, .1, INFINITY},
        {-INFINITY, 1, .1, -INFINITY},
        {INFINITY, INFINITY, .1, INFINITY},
        {1, INFINITY, .1, INFINITY},
        {1, -INFINITY, .1, -INFINITY},
        {INFINITY, -INFINITY, .1, NAN},
        {INFINITY, 1, 0, INFINITY},
        {NAN, 1, 0, NAN},
        {1, NAN, 0, 1},
        {1, INFINITY, 0, 1},
        {INFINITY, 3, 1, 3},
        {NAN, 3, 1, 3},
        {1, INFINITY, 1, INFINITY},
        {INFINITY, 1, 2, -INFINITY},
        {1, INFINITY, -1, -INFINITY},
        {NAN, 1, .1, NAN},
        {1, NAN, .1, NAN},
        {-0.0f, 5, 0, -0.0f},
    };
    /* Statistics of a batch: M2 of two values -s and s about m. */
    for (size_t first = 0; first < COUNT_OF(all); first++)
        for (size_t c = 1; c < 12; c++) {
            float mean[12], var[12], got_mean[12], got_var[12], want[12], batch_mean[12],
                batch_var[12];
            double means[12], m2[12];
            for (size_t i = 0; i < c; i++) {
                const size_t k = (first + (i == c / 2 ? 0 : 1 + i)) % COUNT_OF(all);
                /* All channels of a call have one rate: those of the same rate, or ordinary ones. */
                const int same = all[k].rate == all[first].rate;
                mean[i] = var[i] = same ? all[k].old : 1;
                batch_mean[i] = batch_var[i] = same ? all[k].batch : 1;
                means[i] = (double)batch_mean[i];
                m2[i] = 8 * means[i];
                want[i] = same ? all[k].want : 1;
                if (want[i] != want[i])
                    want[i] = bits_float(NAN_BITS);
            }
            test_context(t, "c = %zu from case %zu", c, first);
            const double rate = all[first].rate;
            if (t->isa) {
                const bnorm_coefficient_args args = {.mean = means,
                                                     .m2 = m2,
                                                     .n = 8,
                                                     .running_mean = mean,
                                                     .running_var = var,
                                                     .new_mean = got_mean,
                                                     .new_var = got_var,
                                                     .rate = rate,
                                                     .divisor = 8};
                t->isa->coefficients(&args, 0, c);
            } else {
                const bnorm_running running = {.mean = mean,
                                               .var = var,
                                               .rate = rate,
                                               .new_mean = got_mean,
                                               .new_var = got_var};
                check_status(t, "bnorm_running_update",
                             bnorm_running_update(c, batch_mean, batch_var, 8, &running), BNORM_OK);
            }
            check_bits(t, "mean", got_mean, want, c);
            check_bits(t, "variance", got_var, want, c);
        }
}

/* The variance of the first batch exceeds a float. */
static void test_huge_batch(struct test *t) {
    const bnorm_exec exec = {.isa = t->isa};
    const bnorm_shape shape = {.n = 4, .c = 1, .hw = 1};
    float running_mean = 0, running_var = 1, scale, shift, huge[4] = {1e20f, -1e20f, 2e20f, 0},
          ordinary[4] = {1, 2, 3, 4};
    char ws[4096];
    const bnorm_train train = {.eps = 1e-5,
                               .running = bnorm_running_pytorch(&running_mean, &running_var, .1)};
    check_status(t, "huge",
                 bnorm_forward_train(&shape, (bnorm_in){huge, 0, 0}, (bnorm_out){huge, 0, 0},
                                     &train, ws, sizeof ws, &exec),
                 BNORM_OK);
    check_status(t, "ordinary",
                 bnorm_forward_train(&shape, (bnorm_in){ordinary, 0, 0},
                                     (bnorm_out){ordinary, 0, 0}, &train, ws, sizeof ws, &exec),
                 BNORM_OK);
    const float infinite = INFINITY, zeros[2] = {0, 0};
    check_bits(t, "the running variance", &running_var, &infinite, 1);
    check_status(t, "bnorm_fold",
                 bnorm_fold(1, NULL, NULL, &running_mean, &running_var, 1e-5, &scale, &shift),
                 BNORM_OK);
    check_bits(t, "scale", &scale, zeros, 1);
    check_near(t, "shift", 0, shift, 0, 0);
}

/* Weights that are all zero change no running statistics where there is no epsilon. */
static void test_no_weight(struct test *t) {
    const bnorm_exec exec = {.isa = t->isa};
    const bnorm_shape shape = {.n = 3, .c = 20, .hw = 4};
    struct batch b = batch_new(t, &shape);
    const struct averages now = averages_new(t, 20), before = averages_new(t, 20),
                          next = averages_new(t, 20);
    memcpy(before.mean, now.mean, 20 * sizeof(float));
    memcpy(before.var, now.var, 20 * sizeof(float));
    bnorm_train train = {.eps = 1e-3,
                         .running = {.mean = now.mean, .var = now.var, .rate = .1},
                         .weights = {test_floats(t, 12), 0}};
    for (int elsewhere = 0; elsewhere < 2; elsewhere++) {
        if (elsewhere)
            train.running.new_mean = next.mean, train.running.new_var = next.var;
        check_status(t, "bnorm_forward_train",
                     bnorm_forward_train(&shape, (bnorm_in){b.x, 0, 0}, (bnorm_out){b.y, 0, 0},
                                         &train, b.ws, b.ws_size, &exec),
                     BNORM_OK);
        check_bits(t, "running mean", elsewhere ? next.mean : now.mean, before.mean, 20);
        check_bits(t, "running variance", elsewhere ? next.var : now.var, before.var, 20);
    }
    train.weights.epsilon = 1e-7; /* as Keras: the statistics are 0 */
    check_status(t, "with epsilon",
                 bnorm_forward_train(&shape, (bnorm_in){b.x, 0, 0}, (bnorm_out){b.y, 0, 0}, &train,
                                     b.ws, b.ws_size, &exec),
                 BNORM_OK);
    check_near(t, "running mean", 0, next.mean[0], .9 * (double)before.mean[0], 1e-7);
}

/* ---------------------------------------------------------------------------------------------- */
/* The rest                                                                                       */

/* Blocks of one channel are none. */
static void test_blocks_of_one(struct test *t) {
    for (size_t i = 0; i < COUNT_OF(sizes); i++)
        for (int layout = 0; layout < 2; layout++) {
            bnorm_shape shape = {(bnorm_layout)layout, BNORM_F32,   sizes[i][0],
                                 sizes[i][1],          sizes[i][2], 0};
            struct batch b = batch_new(t, &shape);
            const bnorm_exec exec = type_exec(t, i);
            const bnorm_train train = {
                .eps = 1e-3, .save_mean = b.mean, .save_mean_lo = b.lo, .save_invstd = b.invstd};
            const bnorm_grad grad = grad_of(&b, BNORM_ACT_RELU, 0);
            float *want = test_floats(t, b.count);
            struct kept kept = {0};
            test_context(t, "%s n=%zu c=%zu hw=%zu", layout ? "nchw" : "nhwc", shape.n, shape.c,
                         shape.hw);
            for (size_t block = 0; block < 2; block++) {
                b.shape.c_block = block;
                if (bnorm_workspace(BNORM_OP_BACKWARD, &b.shape) != b.ws_size ||
                    bnorm_mask_size(&b.shape) != (b.count + 7) / 8)
                    test_fail(t, "another size of workspace or mask");
                check_status(t, "bnorm_forward_train",
                             bnorm_forward_train(&b.shape, (bnorm_in){b.x, 0, 0},
                                                 (bnorm_out){b.y, 0, 0}, &train, b.ws, b.ws_size,
                                                 &exec),
                             BNORM_OK);
                if (block)
                    check_bits(t, "y", b.y, want, b.count);
                else
                    memcpy(want, b.y, b.count * sizeof(float));
                backward(t, WHOLE, &b, &grad, (bnorm_in){b.dy, 0, 0}, &exec);
                if (block)
                    check_kept(t, &b, &kept);
                else
                    kept = keep(t, &b);
            }
            test_release(t);
        }
}

/* y has the whole mean, whatever is saved. */
static void test_whole_mean(struct test *t) {
    const bnorm_exec exec = {.isa = t->isa};
    const bnorm_shape shape = {.layout = BNORM_NCHW, .n = 2, .c = 3, .hw = 500};
    struct batch b = batch_new(t, &shape);
    float *x = b.x, *plain = test_floats(t, b.count);
    for (size_t i = 0; i < b.count; i++)
        x[i] += 1e6f + .3f;
    for (int saved = 0; saved < 3; saved++) {
        const bnorm_train train = {.eps = 1e-5,
                                   .act = {.kind = BNORM_ACT_RELU},
                                   .save_mean = saved ? b.mean : NULL,
                                   .save_mean_lo = saved > 1 ? b.lo : NULL};
        check_status(t, "bnorm_forward_train",
                     bnorm_forward_train(&shape, (bnorm_in){x, 0, 0}, (bnorm_out){b.y, 0, 0},
                                         &train, b.ws, b.ws_size, &exec),
                     BNORM_OK);
        test_context(t, "%d of save_mean and save_mean_lo", saved);
        if (saved)
            check_bits(t, "y", b.y, plain, b.count);
        else
            memcpy(plain, b.y, b.count * sizeof(float));
    }
    for (size_t ch = 0; ch < 3; ch++) {
        double sum = 0, squares = 0;
        for (size_t i = 0; i < 1000; i++)
            sum += (double)x[i / 500 * 1500 + ch * 500 + i % 500];
        for (size_t i = 0; i < 1000; i++) {
            const double d = (double)x[i / 500 * 1500 + ch * 500 + i % 500] - sum / 1000;
            squares += d * d;
        }
        for (size_t i = 0; i < 1000; i++) {
            const size_t at = i / 500 * 1500 + ch * 500 + i % 500;
            const double want = ((double)x[at] - sum / 1000) / sqrt(squares / 1000 + 1e-5);
            check_near(t, "y", at, plain[at], want > 0 ? want : 0, 0x1p-21 * fmax(1, fabs(want)));
        }
    }
}

/* Data whose sums a double holds: the mean is right to the bit, and 0 where the sum is. Then ReLU's
 * gradient and dx of x = 0 are those of v = beta = 0. */
static void test_exact_sums(struct test *t) {
    static const size_t shapes[][3] = {{3, 5, 49},  {7, 16, 9},    {1, 33, 121}, {5, 3, 1},
                                       {13, 40, 1}, {3, 64, 3025}, {11, 2, 7}};
    for (size_t i = 0; i < COUNT_OF(shapes) * 6; i++) {
        const size_t *const size = shapes[i / 6];
        const bnorm_shape shape = {
            (bnorm_layout)(i % 2), problem_dtype(i / 2), size[0], size[1], size[2], 0};
        struct batch b = batch_new(t, &shape);
        const size_t c = shape.c, count = b.count, per_image = c * shape.hw;
        float *mean = test_floats(t, c), *lo = test_floats(t, c), *want = test_floats(t, c);
        double *sums = test_alloc(t, c * sizeof *sums);
        test_context(t, "%s %s n=%zu c=%zu hw=%zu", shape.layout ? "nchw" : "nhwc",
                     dtype_name(shape.dtype), shape.n, c, shape.hw);
        /* Whole numbers; a channel's last element makes its sum 0, or an element at random is odd. */
        for (size_t e = 0; e < count; e++) {
            const size_t rest = e % per_image, ch = shape.layout ? rest / shape.hw : rest % c;
            const int last =
                e / per_image == shape.n - 1 &&
                (shape.layout ? rest % shape.hw == shape.hw - 1 : rest / c == shape.hw - 1);
            double v = (double)rng_below(&t->rng, 9) - 4;
            if (fabs(sums[ch] + v) > 100)
                v = sums[ch] > 0 ? -4 : 4;
            if (last && ch % 2 == 0)
                v = -sums[ch];
            element_set(shape.dtype, b.x, e, (float)v);
            sums[ch] += v;
        }
        for (size_t ch = 0; ch < c; ch++)
            want[ch] = (float)(sums[ch] / ((double)shape.n * (double)shape.hw));
        const bnorm_exec exec = type_exec(t, i);
        const bnorm_train train = {.eps = 1e-5,
                                   .act = {.kind = BNORM_ACT_RELU},
                                   .save_mean = mean,
                                   .save_mean_lo = lo,
                                   .save_invstd = b.invstd};
        check_status(t, "bnorm_forward_train",
                     bnorm_forward_train(&shape, (bnorm_in){b.x, 0, 0}, (bnorm_out){b.y, 0, 0},
                                         &train, b.ws, b.ws_size, &exec),
                     BNORM_OK);
        check_bits(t, "mean", mean, want, c);
        for (size_t ch = 0; ch < c; ch += 2)
            check_near(t, "the mean's rest", ch, lo[ch], 0, 0);
        bnorm_grad grad = grad_of(&b, BNORM_ACT_RELU, 0);
        grad.beta = NULL;
        grad.save_mean = mean;
        grad.save_mean_lo = lo;
        backward(t, WHOLE, &b, &grad, (bnorm_in){b.dy, 0, 0}, &exec);
        for (size_t e = 0; e < count; e++) {
            const size_t rest = e % per_image, ch = shape.layout ? rest / shape.hw : rest % c;
            if (ch % 2 == 0 && element_get(shape.dtype, b.x, e) == 0 &&
                element_get(shape.dtype, b.dresidual, e) != 0)
                test_fail(t, "x = 0 of channel %zu, whose mean is 0, has a gradient", ch);
        }
        test_release(t);
    }
}

static void test_check_statistics(struct test *t) {
    float mean[6] = {1, 2, 3, 4, 5, 6}, var[6] = {1, 0, 3, 4, 5, 6};
    static const struct {
        const char *what;
        int of_mean;
        size_t at;
        float value;
        int bad;
    } all[] = {
        {"a negative variance", 0, 3, -1, 1},  {"-eps", 0, 2, -.5f, 0},
        {"below -eps", 0, 0, -.6f, 1},         {"infinite variance", 0, 5, INFINITY, 1},
        {"NaN variance", 0, 4, NAN, 1},        {"NaN mean", 1, 1, NAN, 1},
        {"infinite mean", 1, 2, -INFINITY, 1},
    };
    size_t channel = 77;
    check_status(t, "good", bnorm_check_statistics(6, mean, var, .5, &channel), BNORM_OK);
    check_status(t, "c = 0", bnorm_check_statistics(0, mean, var, .5, &channel), BNORM_BAD_SHAPE);
    check_status(t, "c", bnorm_check_statistics(SIZE_MAX, mean, var, .5, &channel),
                 BNORM_BAD_SHAPE);
    check_status(t, "eps", bnorm_check_statistics(6, mean, var, -.5, &channel), BNORM_BAD_EPSILON);
    check_status(t, "var", bnorm_check_statistics(6, mean, NULL, .5, &channel), BNORM_NULL_POINTER);
    if (channel != 77)
        test_fail(t, "*channel was written");
    for (size_t i = 0; i < COUNT_OF(all); i++) {
        float *const value = (all[i].of_mean ? mean : var) + all[i].at;
        const float before = *value;
        *value = all[i].value;
        test_context(t, "%s", all[i].what);
        channel = 77;
        check_status(t, "bnorm_check_statistics",
                     bnorm_check_statistics(6, mean, var, .5, &channel),
                     all[i].bad ? BNORM_BAD_VARIANCE : BNORM_OK);
        if (channel != (all[i].bad ? all[i].at : 77))
            test_fail(t, "*channel is %zu", channel);
        check_status(t, "without channel",
                     bnorm_check_statistics(6, all[i].of_mean ? mean : NULL, var, .5, NULL),
                     all[i].bad ? BNORM_BAD_VARIANCE : BNORM_OK);
        *value = before;
    }
}

void add_options(struct suite *s) {
    static const bnorm_dtype types[] = {BNORM_F32, BNORM_BF16, BNORM_F16};
    const bnorm_isa *isa;
    for (size_t i = 0; (isa = bnorm_isa_at(i)) != NULL; i++)
        for (size_t k = 0; k < COUNT_OF(types); k++)
            suite_add(s, isa, test_broadcast, &types[k], "options/%s/broadcast/%s",
                      bnorm_isa_name(isa), dtype_name(types[k]));
    suite_add(s, NULL, test_broadcast_refusals, NULL, "options/broadcast-refusals");
    suite_add_per_isa(s, test_save_var, NULL, "options/%s/save_var");
    suite_add(s, NULL, test_ghost_variance, NULL, "options/ghost-variance");
    suite_add_per_isa(s, test_running_elsewhere, NULL, "options/%s/running-elsewhere");
    suite_add_per_isa(s, test_infinite_running, NULL, "options/%s/infinite-running");
    suite_add(s, NULL, test_infinite_running, NULL, "options/infinite-running");
    suite_add_per_isa(s, test_huge_batch, NULL, "options/%s/huge-batch");
    suite_add_per_isa(s, test_no_weight, NULL, "options/%s/no-weight");
    suite_add_per_isa(s, test_blocks_of_one, NULL, "options/%s/blocks-of-one");
    suite_add_per_isa(s, test_whole_mean, NULL, "options/%s/whole-mean");
    suite_add_per_isa(s, test_exact_sums, NULL, "options/%s/exact-sums");
    suite_add(s, NULL, test_check_statistics, NULL, "options/check-statistics");
}
