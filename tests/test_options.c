/* SPDX-License-Identifier: MIT
 *
 * Options that give a call's arguments or results another form: a variance instead of an inverse
 * deviation, running statistics that go elsewhere, gradients that were expanded, blocks of one
 * channel. Each must give the bits of the plain call. And statistics of data whose sums are exact. */
#include "../dispatch/isa.h"
#include "pieces.h"
#include "variants.h"

#include <math.h>
#include <string.h>

/* How training and backward are called: as one call, in pieces, or with each image a group. */
enum way { WHOLE, PIECES, GHOST, SUCCESSIVE, WAYS = SUCCESSIVE };

static struct results run_way(struct test *t, enum way way, const struct call *call,
                              const struct data *data, const bnorm_exec *exec) {
    const bnorm_ghost ghost = {.groups = call->shape.n,
                               .running = way == SUCCESSIVE ? BNORM_GHOST_SUCCESSIVE
                                                            : BNORM_GHOST_AVERAGE};
    struct call one = *call;
    one.ghost = way >= GHOST ? &ghost : NULL;
    if (way != PIECES)
        return run_call(t, &one, data, exec);
    struct ready r;
    const struct cut whole = cut_new(t, CUT_WHOLE, call->shape.n);
    ready_new(t, &r, &one, data);
    ready_say(t, &r, exec);
    run_in_pieces(t, &r, &whole, JOIN_APPEND, exec);
    return ready_finish(t, &r);
}

/* Statistics for backward in any way. */
static void random_saved(struct test *t, struct data *d) {
    const size_t most = d->n * d->c;
    d->mean = uniform_floats(t, 1, most, -1, 1);
    d->lo = uniform_floats(t, 1, most, 0, 1e-8);
    d->invstd = uniform_floats(t, 1, most, .5, 2);
}

/* ---------------------------------------------------------------------------------------------- */
/* Gradients that were expanded                                                                   */

static const size_t sizes[][3] = {/* n, c, hw */
                                  {3, 5, 7},   {2, 40, 9},   {6, 37, 1}, {1, 300, 2}, {2, 3, 5000},
                                  {5, 16, 64}, {2, 2200, 3}, {70, 4, 1}, {2, 1, 17},  {4, 64, 300}};

/* dy written out. */
static float *expanded(struct test *t, const struct data *d, const float *from,
                       const bnorm_shape *narrow) {
    float *dy = test_floats(t, data_count(d)), *to = dy;
    for (size_t n = 0; n < d->n; n++)
        for (size_t c = 0; c < d->c; c++)
            for (size_t p = 0; p < d->hw; p++)
                *to++ =
                    from[(n % narrow->n * narrow->c + c % narrow->c) * narrow->hw + p % narrow->hw];
    return dy;
}

static void broadcast_case(struct test *t, const bnorm_shape *shape, unsigned broadcast,
                           size_t round) {
    static const bnorm_act_kind kinds[] = {BNORM_ACT_IDENTITY, BNORM_ACT_RELU,
                                           BNORM_ACT_HARD_SWISH};
    const bnorm_shape narrow = narrow_shape(shape, broadcast);
    const bnorm_exec exec = type_exec(t, round);
    struct data d, few;
    data_new(t, &d, shape);
    random_saved(t, &d);
    few = d;
    d.dy = expanded(t, &d, d.dy, &narrow);
    for (size_t i = 0; i < 6; i++) {
        const enum way way = (enum way)((round + i) % WAYS);
        struct call call = random_call(t, BNORM_OP_BACKWARD, shape);
        call.act = (bnorm_act){.kind = kinds[i % 3]};
        call.lo = 1;
        call.residual = 0;
        call.frozen = i == 5;
        const struct results want = run_way(t, way, &call, &d, &exec);
        call.dy_broadcast = broadcast;
        call.what = "with one value of dy along some axes";
        const struct results got = run_way(t, way, &call, &few, &exec);
        check_results(t, &got, &want, &d);
    }
    test_release(t);
}

static void test_broadcast(struct test *t) {
    const bnorm_dtype dtype = *(const bnorm_dtype *)t->param;
    size_t round = 0;
    for (size_t i = 0; i < COUNT_OF(sizes); i++)
        for (int layout = 0; layout < 2; layout++)
            for (unsigned broadcast = 0; broadcast < 8; broadcast++, round++) {
                if (test_quick() && (sizes[i][0] * sizes[i][1] * sizes[i][2] > 5000) && round % 3)
                    continue;
                const bnorm_shape shape = {(bnorm_layout)layout, dtype,       sizes[i][0],
                                           sizes[i][1],          sizes[i][2], 0};
                broadcast_case(t, &shape, broadcast, round);
            }
}

static void test_broadcast_refusals(struct test *t) {
    const bnorm_shape shape = {.layout = BNORM_NCHW, .n = 2, .c = 8, .hw = 6};
    const struct call call = {.op = BNORM_OP_BACKWARD, .shape = shape, .dense = 1};
    enum { OWN_PLACE = -1 };
    const struct {
        const char *what;
        unsigned broadcast;
        size_t c_block;
        int weights, dx, dresidual; /* floats behind the first of dy, or OWN_PLACE */
        bnorm_status want;
    } all[] = {
        {"no such axis", 8, 0, 0, OWN_PLACE, OWN_PLACE, BNORM_BAD_ENUM},
        {"blocks", BNORM_BROADCAST_N, 4, 0, OWN_PLACE, OWN_PLACE, BNORM_UNSUPPORTED},
        {"weights", BNORM_BROADCAST_N, 0, 1, OWN_PLACE, OWN_PLACE, BNORM_UNSUPPORTED},
        {"dx on dy", BNORM_BROADCAST_HW, 0, 0, 0, OWN_PLACE, BNORM_BAD_OVERLAP},
        {"dx on the last of dy", BNORM_BROADCAST_HW, 0, 0, 15, OWN_PLACE, BNORM_BAD_OVERLAP},
        {"dx behind dy", BNORM_BROADCAST_C | BNORM_BROADCAST_HW, 0, 0, 2, OWN_PLACE, BNORM_OK},
        {"dresidual on dy", BNORM_BROADCAST_N, 0, 0, OWN_PLACE, 0, BNORM_BAD_OVERLAP},
    };
    const bnorm_exec exec = {.isa = bnorm_isa_best()};
    for (size_t i = 0; i < COUNT_OF(all); i++) {
        struct data d;
        struct ready r;
        data_new(t, &d, &shape);
        d.weights = uniform_floats(t, all[i].weights, 12, 0, 1);
        ready_new(t, &r, &call, &d);
        float *dy = test_floats(t, 2 * 96 + 16); /* room for all of dx */
        memcpy(dy, r.args.job.dy.data, 96 * sizeof(float));
        r.args.shape.c_block = all[i].c_block;
        r.args.grad.dy_broadcast = all[i].broadcast;
        r.args.job.dy.data = dy;
        if (all[i].dx != OWN_PLACE)
            r.args.job.out.data = dy + all[i].dx;
        if (all[i].dresidual != OWN_PLACE)
            r.args.grad.dresidual.data = dy + all[i].dresidual;
        r.call.what = all[i].what;
        ready_say(t, &r, &exec);
        check_status(t, "bnorm_backward", call_run(&r.args, NULL), all[i].want);
    }
    /* Elements that stand for a whole run are no tensor that dx may be, whatever its strides. */
    struct call rows = call;
    rows.shape.layout = BNORM_NHWC;
    struct data d;
    struct ready r;
    data_new(t, &d, &shape);
    ready_new(t, &r, &rows, &d);
    r.args.grad.dy_broadcast = BNORM_BROADCAST_C;
    r.args.job.dy.run_stride = r.args.job.out.run_stride = 8;
    r.args.job.dy.image_stride = r.args.job.out.image_stride = 48;
    r.args.job.out.data = (void *)(uintptr_t)r.args.job.dy.data;
    test_context(t, "dx on dy with its strides");
    check_status(t, "bnorm_backward", call_run(&r.args, NULL), BNORM_BAD_OVERLAP);
}

/* ---------------------------------------------------------------------------------------------- */
/* A variance instead of an inverse deviation                                                     */

static void test_save_var(struct test *t) {
    size_t round = 0;
    for (size_t i = 0; i < COUNT_OF(sizes); i++)
        for (int layout = 0; layout < 2; layout++, round++) {
            const bnorm_shape shape = {(bnorm_layout)layout, problem_dtype(round), sizes[i][0],
                                       sizes[i][1],          sizes[i][2],          0};
            const size_t c = shape.c, most = shape.n * c;
            const bnorm_exec exec = type_exec(t, round);
            struct data d;
            data_new(t, &d, &shape);
            struct call call = random_call(t, BNORM_OP_FORWARD_TRAIN, &shape);
            call.save_var = 1;
            const struct results saved = run_call(t, &call, &d, &exec);
            call.op = BNORM_OP_MOMENTS;
            call.omit = OMIT_MEAN;
            const struct results moments = run_call(t, &call, &d, &exec);
            check_bits(t, "save_var", saved.var, moments.var, c);

            d.var = uniform_floats(t, 1, most, .1, 3);
            for (size_t e = 0; c > 2 && e < shape.n; e++)
                d.var[e * c + c - 1] = 0; /* with eps 0 its invstd is 0 */
            d.mean = uniform_floats(t, 1, most, -1, 1);
            d.invstd = test_floats(t, most);
            for (int k = 0; k < 6; k++) {
                const enum way way = (enum way)(k % WAYS);
                call = random_call(t, BNORM_OP_BACKWARD, &shape);
                call.act = (bnorm_act){.kind = k % 2 ? BNORM_ACT_RELU : BNORM_ACT_IDENTITY};
                call.eps = k % 2 ? 0 : 1e-3;
                call.frozen = k == 4;
                call.lo = call.residual = 0;
                check_status(t, "bnorm_fold",
                             bnorm_fold(most, NULL, NULL, NULL, d.var, call.eps, d.invstd, NULL),
                             BNORM_OK);
                const struct results want = run_way(t, way, &call, &d, &exec);
                call.save_var = 1;
                const struct results got = run_way(t, way, &call, &d, &exec);
                check_results(t, &got, &want, &d);
            }
            test_release(t);
        }
}

/* A later group's variance is looked at before the first group is done. */
static void test_ghost_variance(struct test *t) {
    const bnorm_shape shape = {.n = 4, .c = 5, .hw = 3};
    const bnorm_ghost ghost = {.groups = 4};
    const struct call call = {
        .op = BNORM_OP_BACKWARD, .shape = shape, .eps = 1e-3, .save_var = 1, .ghost = &ghost};
    struct data d;
    struct ready r;
    data_new(t, &d, &shape);
    random_saved(t, &d);
    d.var = uniform_floats(t, 1, 20, .5, 1);
    d.var[19] = -1;
    ready_new(t, &r, &call, &d);
    const unsigned char *before = snapshot(t, &r.fixture);
    check_status(t, "bnorm_backward_ghost", call_run(&r.args, NULL), BNORM_BAD_VARIANCE);
    check_snapshot(t, &r.fixture, before);
}

/* ---------------------------------------------------------------------------------------------- */
/* Running statistics                                                                             */

/* Alone, with statistics from elsewhere. */
static struct results update_alone(struct test *t, const struct call *call, const struct data *d) {
    const size_t c = d->c;
    const int no_mean = (call->omit & OMIT_RUNNING_MEAN) != 0,
              no_var = (call->omit & OMIT_RUNNING_VAR) != 0;
    struct results got = {.running_mean = no_mean ? NULL : copy_floats(t, d->running_mean, c),
                          .running_var = no_var ? NULL : copy_floats(t, d->running_var, c)};
    bnorm_running running = {.mean = got.running_mean,
                             .var = got.running_var,
                             .rate = call->rate,
                             .variance = call->variance};
    if (call->elsewhere) {
        running.new_mean = no_mean ? NULL : test_floats(t, c);
        running.new_var = no_var ? NULL : test_floats(t, c);
    }
    check_status(t, "bnorm_running_update",
                 bnorm_running_update(c, d->mean, d->invstd, 12, &running), BNORM_OK);
    if (running.new_mean) {
        check_bits(t, "the old mean", running.mean, d->running_mean, c);
        got.running_mean = running.new_mean;
    }
    if (running.new_var) {
        check_bits(t, "the old variance", running.var, d->running_var, c);
        got.running_var = running.new_var;
    }
    return got;
}

static void test_running_elsewhere(struct test *t) {
    static const double rates[] = {.1, 0, 1, -.5};
    enum { ALONE = SUCCESSIVE + 1 };
    for (size_t round = 0; round < 40; round++) {
        const bnorm_shape shape = {.layout = (bnorm_layout)(round % 2),
                                   .n = round % 5 ? 3 : 1,
                                   .c = 1 + 7 * round,
                                   .hw = 1 + round % 4};
        const bnorm_exec exec = type_exec(t, round);
        struct data d;
        data_new(t, &d, &shape);
        for (int way = WHOLE; way <= ALONE; way++) {
            struct results all[4];
            struct call call = random_call(t, BNORM_OP_FORWARD_TRAIN, &shape);
            call.rate = rates[round % 4];
            call.variance = (bnorm_variance)(round / 4 % 2);
            /* Here; there; one of the two here, the other there. */
            for (size_t k = 0; k < COUNT_OF(all); k++) {
                call.elsewhere = k == 1 || k == 3;
                call.omit = k == 2   ? OMIT_RUNNING_VAR | OMIT_MEAN | OMIT_INVSTD
                            : k == 3 ? OMIT_RUNNING_MEAN
                                     : 0;
                all[k] = way == ALONE ? update_alone(t, &call, &d)
                                      : run_way(t, (enum way)way, &call, &d, &exec);
            }
            test_context(t, "way %d, c = %zu, n = %zu, hw = %zu, rate %g", way, shape.c, shape.n,
                         shape.hw, call.rate);
            for (size_t k = 1; k < COUNT_OF(all); k++)
                check_results(t, &all[k], &all[0], &d);
        }
        test_release(t);
    }
    /* An empty batch leaves what there was, also elsewhere. */
    for (int way = WHOLE; way <= SUCCESSIVE; way++) {
        const bnorm_exec exec = {.isa = t->isa};
        const bnorm_shape shape = {.n = way >= GHOST, .c = 9, .hw = way >= GHOST ? 0 : 5};
        struct data d;
        data_new(t, &d, &shape);
        const struct call call = {.op = BNORM_OP_FORWARD_TRAIN,
                                  .shape = shape,
                                  .eps = 1e-3,
                                  .rate = .1,
                                  .omit = OMIT_MEAN | OMIT_INVSTD,
                                  .elsewhere = 1};
        const struct results got = run_way(t, (enum way)way, &call, &d, &exec);
        check_bits(t, "the mean", got.running_mean, d.running_mean, 9);
        check_bits(t, "the variance", got.running_var, d.running_var, 9);
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
                bnorm_training_of(t->isa)->coefficients(&args, 0, c);
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
    struct call call = {.op = BNORM_OP_FORWARD_TRAIN, .shape = shape, .eps = 1e-3, .rate = .1};
    struct data d;
    data_new(t, &d, &shape);
    d.weights = test_floats(t, 12);
    for (call.elsewhere = 0; call.elsewhere < 2; call.elsewhere++) {
        const struct results got = run_call(t, &call, &d, &exec);
        check_bits(t, "running mean", got.running_mean, d.running_mean, 20);
        check_bits(t, "running variance", got.running_var, d.running_var, 20);
    }
    call.epsilon = 1e-7; /* as Keras: the statistics are 0 */
    const struct results got = run_call(t, &call, &d, &exec);
    check_near(t, "running mean", 0, got.running_mean[0], .9 * (double)d.running_mean[0], 1e-7);
}

/* ---------------------------------------------------------------------------------------------- */
/* The rest                                                                                       */

/* Blocks of one channel are none. */
static void test_blocks_of_one(struct test *t) {
    static const bnorm_op ops[] = {BNORM_OP_FORWARD_TRAIN, BNORM_OP_BACKWARD};
    for (size_t i = 0; i < COUNT_OF(sizes); i++)
        for (int layout = 0; layout < 2; layout++) {
            const bnorm_shape shape = {(bnorm_layout)layout, BNORM_F32,   sizes[i][0],
                                       sizes[i][1],          sizes[i][2], 0};
            bnorm_shape blocked = shape;
            const bnorm_exec exec = type_exec(t, i);
            struct data d;
            data_new(t, &d, &shape);
            blocked.c_block = 1;
            test_context(t, "%s n=%zu c=%zu hw=%zu", layout ? "nchw" : "nhwc", shape.n, shape.c,
                         shape.hw);
            if (bnorm_workspace(BNORM_OP_BACKWARD, &blocked) !=
                    bnorm_workspace(BNORM_OP_BACKWARD, &shape) ||
                bnorm_mask_size(&blocked) != (data_count(&d) + 7) / 8)
                test_fail(t, "another size of workspace or mask");
            for (size_t k = 0; k < COUNT_OF(ops); k++) {
                struct call call = random_call(t, ops[k], &shape);
                call.act = (bnorm_act){.kind = k ? BNORM_ACT_RELU : BNORM_ACT_IDENTITY};
                call.lo = 1;
                const struct results want = run_call(t, &call, &d, &exec);
                struct ready r;
                ready_new(t, &r, &call, &d);
                r.args.shape.c_block = 1;
                ready_say(t, &r, &exec);
                check_status(t, "the call", call_run(&r.args, &exec), BNORM_OK);
                const struct results got = ready_finish(t, &r);
                check_results(t, &got, &want, &d);
            }
            test_release(t);
        }
}

/* y has the whole mean, whatever is saved. */
static void test_whole_mean(struct test *t) {
    const bnorm_exec exec = {.isa = t->isa};
    const bnorm_shape shape = {.layout = BNORM_NCHW, .n = 2, .c = 3, .hw = 500};
    struct call call = {.op = BNORM_OP_FORWARD_TRAIN,
                        .shape = shape,
                        .act = {.kind = BNORM_ACT_RELU},
                        .eps = 1e-5,
                        .omit = OMIT_MEAN | OMIT_RUNNING};
    struct data d;
    data_new(t, &d, &shape);
    d.gamma = d.beta = NULL;
    float *x = d.x;
    for (size_t i = 0; i < data_count(&d); i++)
        x[i] = (float)rng_normal(&t->rng) + 1e6f + .3f;
    const float *plain = run_call(t, &call, &d, &exec).y;
    call.omit = OMIT_RUNNING;
    for (call.lo = 0; call.lo < 2; call.lo++) {
        const struct results got = run_call(t, &call, &d, &exec);
        check_bits(t, "y", got.y, plain, data_count(&d));
    }
    for (size_t ch = 0; ch < 3; ch++) {
        double sum = 0, squares = 0;
        for (size_t i = 0; i < 1000; i++)
            sum += (double)x[i / 500 * 1500 + ch * 500 + i % 500];
        for (size_t i = 0; i < 1000; i++) {
            const double off = (double)x[i / 500 * 1500 + ch * 500 + i % 500] - sum / 1000;
            squares += off * off;
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
        const size_t c = shape.c, hw = shape.hw;
        struct data d;
        data_new(t, &d, &shape);
        float *want = test_floats(t, c);
        /* Whole numbers; a channel's last element makes its sum 0, or an element at random is odd. */
        for (size_t ch = 0; ch < c; ch++) {
            double sum = 0;
            for (size_t q = 0; q < shape.n * hw; q++) {
                double v = (double)rng_below(&t->rng, 9) - 4;
                if (fabs(sum + v) > 100)
                    v = sum > 0 ? -4 : 4;
                if (q + 1 == shape.n * hw && ch % 2 == 0)
                    v = -sum;
                d.x[(q / hw * c + ch) * hw + q % hw] = (float)v;
                sum += v;
            }
            want[ch] = (float)(sum / ((double)shape.n * (double)hw));
        }
        const bnorm_exec exec = type_exec(t, i);
        struct call call = random_call(t, BNORM_OP_FORWARD_TRAIN, &shape);
        call.act = (bnorm_act){.kind = BNORM_ACT_RELU};
        call.lo = 1;
        const struct results saved = run_call(t, &call, &d, &exec);
        check_bits(t, "mean", saved.mean, want, c);
        for (size_t ch = 0; ch < c; ch += 2)
            check_near(t, "the mean's rest", ch, saved.lo[ch], 0, 0);
        data_take(&d, &saved);
        d.beta = NULL;
        call.op = BNORM_OP_BACKWARD;
        call.residual = 0;
        random_targets(&t->rng, &call);
        const float *g = run_call(t, &call, &d, &exec).dresidual;
        for (size_t e = 0; e < data_count(&d); e++)
            if (e / hw % c % 2 == 0 && d.x[e] == 0 && g[e] != 0)
                test_fail(t, "x = 0 of channel %zu, whose mean is 0, has a gradient", e / hw % c);
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
