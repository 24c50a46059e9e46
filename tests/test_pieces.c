/* SPDX-License-Identifier: MIT
 *
 * Batches in pieces: wherever between images a batch is cut and however its pieces are put
 * together, on whatever kernel sets and threads, the bits are those of one call over all of it. */
#include <float.h>
#include <inttypes.h>
#include <limits.h>
#include <math.h>
#include <stdio.h>
#include <string.h>

#include "oracle.h"
#include "pieces.h"
#include "types.h"

#include "../src/order.h" /* where blocks end */

enum order { NHWC, NCHW, BLOCKED };
static const enum order orders[] = {NHWC, NCHW, BLOCKED};
static const char *const order_names[] = {"nhwc", "nchw", "blocked"};

static enum order order_of(const struct test *t) {
    return *(const enum order *)t->param;
}

/* i picks the type and the size of a block of channels. */
static bnorm_shape shape_of(const struct test *t, size_t n, size_t c, size_t hw, size_t i) {
    const enum order order = order_of(t);
    return (bnorm_shape){.layout = order == NHWC ? BNORM_NHWC : BNORM_NCHW,
                         .dtype = (bnorm_dtype)(i % 3),
                         .n = n,
                         .c = c,
                         .hw = hw,
                         .c_block = order == BLOCKED ? (size_t)4 << i / 3 % 4 : 0};
}

/* ---------------------------------------------------------------------------------------------- */
/* Whole steps                                                                                    */

/* Every way to cut a small batch, and to join its parts. */
static void test_cuts(struct test *t) {
    static const size_t sizes[][2] = {{3, 2}, {5, 1}, {1, 7}, {17, 3}, {33, 1}, {2, 49}};
    const bnorm_exec exec = {.isa = t->isa};
    for (size_t n = 1; n <= test_repeat(7, 6, 4); n++)
        for (size_t k = 0; k < (n < 5 ? COUNT_OF(sizes) : 2); k++) {
            const size_t *size = sizes[(n + k) % COUNT_OF(sizes)];
            const bnorm_shape shape = shape_of(t, n, size[0], size[1], rng_below(&t->rng, 12));
            struct step s;
            step_new(t, &s, &shape, VALUES_NORMAL);
            for (size_t bits = 0; bits < (size_t)1 << (n - 1); bits++) {
                const struct cut cut = cut_by_bits(t, n, bits);
                for (size_t j = 0; j < (n < 5 ? JOIN_COUNT : 1); j++)
                    step_check(t, &s, &cut, (enum joining)((bits + j) % JOIN_COUNT), &exec);
            }
            test_release(t);
        }
}

static void check_batch(struct test *t, const bnorm_shape *shape, size_t cuts) {
    const bnorm_exec exec = {.isa = t->isa};
    struct step s;
    step_new(t, &s, shape, VALUES_NORMAL);
    for (size_t i = 0; i < cuts; i++) {
        const enum cut_kind kind = (enum cut_kind)((shape->n + i) % CUT_KINDS);
        const struct cut cut = cut_new(t, kind, shape->n);
        step_check(t, &s, &cut, (enum joining)rng_below(&t->rng, JOIN_COUNT), &exec);
    }
    test_release(t);
}

/* Trees that are incomplete in every way. */
static void test_batches(struct test *t) {
    static const size_t more[] = {63, 64, 65, 127, 128, 129, 200}, planes[] = {1, 2, 7, 49};
    for (size_t i = 1; i <= 40 + COUNT_OF(more); i++) {
        const size_t n = i <= 40 ? i : more[i - 41];
        const size_t hw = planes[rng_below(&t->rng, COUNT_OF(planes))], most = 4000 / (n * hw);
        const size_t c = 1 + rng_below(&t->rng, most < 1 ? 1 : most < 40 ? most : 40);
        if (test_quick() && i % 4 != 1 && n != 65)
            continue;
        const bnorm_shape shape = shape_of(t, n, c, hw, rng_below(&t->rng, 12));
        check_batch(t, &shape, test_repeat(3, 2, 2));
    }
}

/* (N, C) data: rows are images, and leaves of the tree have many. */
static void test_rows(struct test *t) {
    static const size_t counts[] = {1, 2, 3, 31, 64, 65, 100, 128, 191, 257, 320, 600};
    static const size_t wide[] = {64, 97, 130, 257, 1030};
    for (size_t i = 0; i < COUNT_OF(counts); i++)
        for (size_t k = 0; k < 2; k++) {
            const size_t n = counts[i];
            const size_t c = k == 0 || n > 65 ? 1 + rng_below(&t->rng, n > 200 ? 20 : 40)
                                              : wide[rng_below(&t->rng, COUNT_OF(wide))];
            const bnorm_shape shape = shape_of(t, n, c, 1, rng_below(&t->rng, 12));
            check_batch(t, &shape, test_repeat(4, 2, 1));
        }
}

/* Positions of an image that form a block. */
static size_t block_size(const bnorm_shape *shape) {
    if (shape->layout == BNORM_NHWC)
        return bnorm_block_rows(shape->c, 0);
    return shape->c_block ? bnorm_block_rows(shape->c_block, 0) : BNORM_BLOCK_SPAN;
}

/* Images of several blocks. */
static void test_blocks(struct test *t) {
    static const size_t channels[] = {1, 33, 3};
    for (size_t i = 0; i < (test_quick() ? 2 : COUNT_OF(channels)); i++) {
        bnorm_shape shape = shape_of(t, 2 + i, channels[i], 1, 3 * i + rng_below(&t->rng, 3));
        shape.c = shape.layout == BNORM_NCHW && shape.c > 8 ? shape.c / 4 : shape.c;
        shape.hw = block_size(&shape) * (1 + i % 2) + 1 + rng_below(&t->rng, 99);
        check_batch(t, &shape, test_repeat(2, 1, 1));
    }
}

/* Pieces that are shared among threads: each layout has one of these. */
static void test_threads(struct test *t) {
    static const size_t sizes[][3] = {{5, 129, 300}, {3, 3, 23001}, {200, 700, 1}};
    const size_t *size = sizes[(order_of(t) + rng_below(&t->rng, 3)) % 3];
    const bnorm_shape shape = shape_of(t, size[0], size[1], size[2], rng_below(&t->rng, 12));
    struct step s;
    step_new(t, &s, &shape, VALUES_NORMAL);
    for (size_t k = 0; k < test_repeat(3, 2, 1); k++) {
        const struct cut cut = cut_new(t, k == 1 ? CUT_WHOLE : CUT_HALVES, shape.n);
        const bnorm_exec exec = type_exec(t, 4 * (1 + (k + rng_below(&t->rng, 4)) % 4) + k);
        step_check(t, &s, &cut, (enum joining)rng_below(&t->rng, JOIN_COUNT), &exec);
    }
}

/* Values at the ends of what there is; NaN and infinities, which stay in their channel. */
static void test_values(struct test *t) {
    const float special[] = {bits_float(0xffc12345u), bits_float(0x7fc00001u), INFINITY, -INFINITY};
    const bnorm_exec exec = {.isa = t->isa};
    for (size_t i = 0; i < 3 * VALUES_COUNT; i++) {
        const size_t n = 2 + rng_below(&t->rng, 12), hw = i % 3 ? 1 + rng_below(&t->rng, 20) : 1;
        const bnorm_shape shape = shape_of(t, n, 1 + rng_below(&t->rng, 20), hw, i + i / 3);
        struct step s;
        step_new(t, &s, &shape, (enum values)(i % VALUES_COUNT));
        for (size_t k = 0; k < 3; k++) {
            if (k) { /* after the first round */
                float *array = k == 1 ? s.forward_data.x : s.forward_data.dy;
                array[rng_below(&t->rng, data_count(&s.forward_data))] =
                    special[rng_below(&t->rng, COUNT_OF(special))];
                step_solve(t, &s);
            }
            const struct cut cut = cut_new(t, k ? CUT_RANDOM : CUT_EMPTY, n);
            step_check(t, &s, &cut, (enum joining)rng_below(&t->rng, JOIN_COUNT), &exec);
        }
        test_release(t);
    }
}

/* Each part on a kernel set of its own, as in a group of unlike machines. */
static void test_sets(struct test *t) {
    static const size_t sizes[][3] = {{9, 17, 5}, {70, 3, 1}, {130, 33, 1}, {5, 6, 60}, {3, 1, 7}};
    const bnorm_exec any = {0};
    for (size_t i = 0; i < COUNT_OF(sizes) * test_repeat(4, 2, 1); i++) {
        const size_t *size = sizes[i % COUNT_OF(sizes)];
        const bnorm_shape shape = shape_of(t, size[0], size[1], size[2], rng_below(&t->rng, 12));
        struct step s;
        step_new(t, &s, &shape, VALUES_NORMAL);
        for (size_t k = 0; k < 3; k++) {
            const struct cut cut = cut_new(t, k ? CUT_RANDOM : CUT_IMAGES, size[0]);
            step_check(t, &s, &cut, (enum joining)rng_below(&t->rng, JOIN_COUNT), &any);
        }
        test_release(t);
    }
}

/* y of another type than x is y as a float, rounded. */
static void test_y_types(struct test *t) {
    const bnorm_exec exec = {.isa = t->isa};
    const float shift[] = {.5f, 0, -1, 3, 2};
    for (bnorm_dtype from = BNORM_F32; from <= BNORM_F16; from = (bnorm_dtype)(from + 1)) {
        const bnorm_shape shape = {.layout = BNORM_NHWC, .dtype = from, .n = 6, .c = 5, .hw = 3};
        const bnorm_shape wide = shape_with(&shape, BNORM_F32);
        struct data d;
        struct ready r;
        data_new(t, &d, &shape);
        d.beta = copy_floats(t, shift, 5);
        const struct call call = {
            .op = BNORM_OP_FORWARD_TRAIN, .shape = wide, .eps = 1e-5, .rate = .1, .lo = 1};
        const struct results want = run_call(t, &call, &d, &exec);
        struct call narrow = call;
        narrow.shape = shape;
        ready_new(t, &r, &narrow, &d);
        const struct cut cut = cut_new(t, CUT_IMAGES, shape.n);
        const bnorm_partial piece =
            collect_parts(t, &r, BNORM_OP_MOMENTS, &cut, JOIN_TREE, 0, &exec);
        float coefficients[15];
        check_status(t, "bnorm_partial_finish",
                     bnorm_partial_finish(&piece, &r.args.train, coefficients), BNORM_OK);
        for (bnorm_dtype to = BNORM_F32; to <= BNORM_F16; to = (bnorm_dtype)(to + 1)) {
            const bnorm_affine affine = {.center = coefficients,
                                         .scale = coefficients + 5,
                                         .shift = coefficients + 10,
                                         .y_dtype = y_dtype_of(to)};
            float y[90];
            test_context(t, "%s to %s", dtype_name(from), dtype_name(to));
            check_status(t, "bnorm_apply",
                         bnorm_apply(&shape, r.args.job.x, (bnorm_out){y, 0, 0}, &affine, &exec),
                         BNORM_OK);
            for (size_t i = 0; i < 90; i++) {
                const float rounded = element_round(to, want.y[plain_index(&shape, i)]);
                const float got = element_get(to, y, i);
                check_bits(t, "y", &got, &rounded, 1);
            }
        }
        test_release(t);
    }
}

/* ---------------------------------------------------------------------------------------------- */
/* Pieces                                                                                         */

/* A call of n images with random options; i picks the type, and every second one is of rows. */
static void random_ready(struct test *t, struct ready *r, struct data *d, bnorm_op op, size_t n,
                         size_t i) {
    const size_t hw = i % 2 ? 1 : 1 + rng_below(&t->rng, 9);
    const bnorm_shape shape = shape_of(t, n, 1 + rng_below(&t->rng, 20), hw, i);
    struct call call = random_call(t, op, &shape);
    char text[320];
    call.act = random_mask_act(&t->rng);
    call.out = call.dresidual = OWN; /* what is collected twice is not to change */
    data_new(t, d, &shape);
    ready_new(t, r, &call, d);
    test_context(t, "%s", call_text(&call, text));
}

/* Nodes depend on the images alone, wherever the piece begins. */
static void test_first(struct test *t) {
    static const size_t starts[] = {0, 1, 3, 6, 8, 37, 64, 100, 1000, ((size_t)1 << 20) - 3};
    const bnorm_exec exec = {.isa = t->isa}, scalar = {.isa = scalar_isa()};
    for (size_t i = 0; i < test_repeat(6, 2, 2) * (COUNT_OF(starts) + 1); i++) {
        const bnorm_op op = rng_below(&t->rng, 2) ? BNORM_OP_MOMENTS : BNORM_OP_BACKWARD;
        const size_t n = 1 + rng_below(&t->rng, i % 3 ? 20 : 200), s = i % (COUNT_OF(starts) + 1);
        const size_t first = s < COUNT_OF(starts) ? starts[s] : SIZE_MAX - n;
        struct ready r;
        struct data d;
        random_ready(t, &r, &d, op, n, rng_below(&t->rng, 12));
        const struct cut whole = cut_new(t, CUT_WHOLE, n);
        const bnorm_partial want = collect_parts(t, &r, op, &whole, JOIN_APPEND, first, &scalar);
        const struct totals all = piece_totals(t, &want);
        for (size_t k = 0; k < 4; k++) {
            const struct cut cut = cut_new(t, (enum cut_kind)(CUT_HALVES + k), n);
            const enum joining joining = (enum joining)rng_below(&t->rng, JOIN_COUNT);
            char text[96];
            test_context(t, "images from %zu on, %s, %s, %s n=%zu c=%zu hw=%zu", first,
                         cut_text(&cut, text), joining_text(joining),
                         dtype_name(r.call.shape.dtype), n, r.call.shape.c, r.call.shape.hw);
            const bnorm_partial got = collect_parts(t, &r, op, &cut, joining, first, &exec);
            check_same_piece(t, &got, &want);
            const struct totals totals = piece_totals(t, &got);
            if (totals.count != all.count ||
                memcmp(totals.mean, all.mean, r.call.shape.c * sizeof(double)) != 0 ||
                memcmp(totals.m2, all.m2, r.call.shape.c * sizeof(double)) != 0)
                test_fail(t, "the totals of equal pieces differ");
        }
        test_release(t);
    }
}

/* Where a larger subtree begins, the tree is the one of images 0, 1, ... */
static void test_aligned(struct test *t) {
    const bnorm_exec exec = {.isa = t->isa};
    for (size_t i = 0; i < 30; i++) {
        const bnorm_op op = i % 2 ? BNORM_OP_MOMENTS : BNORM_OP_BACKWARD;
        const size_t n = 1 + rng_below(&t->rng, 64), first = 64 * (1 + rng_below(&t->rng, 1000));
        struct ready r;
        struct data d;
        random_ready(t, &r, &d, op, n, i);
        const struct cut cut = cut_new(t, CUT_RANDOM, n);
        const bnorm_partial want = collect_parts(t, &r, op, &cut, JOIN_TREE, 0, &exec);
        bnorm_partial got = collect_parts(t, &r, op, &cut, JOIN_TREE, first, &exec);
        got.first = 0;
        check_same_piece(t, &got, &want);
        test_release(t);
    }
}

/* exec NULL: on this thread, with the best set, whose bits are those of any set. */
static void test_exec_null(struct test *t) {
    struct ready r;
    struct data d;
    random_ready(t, &r, &d, BNORM_OP_BACKWARD, 7, 0);
    const bnorm_exec exec = {.isa = t->isa};
    const struct cut whole = cut_new(t, CUT_WHOLE, 7);
    for (size_t k = 0; k < 2; k++) {
        const bnorm_op op = k ? BNORM_OP_BACKWARD : BNORM_OP_MOMENTS;
        const bnorm_partial want = collect_parts(t, &r, op, &whole, JOIN_APPEND, 0, &exec);
        bnorm_partial got = piece_empty(op, r.call.shape.c, 0);
        got.size = bnorm_partial_size(r.call.shape.c, 7);
        got.nodes = test_alloc(t, got.size);
        const size_t ws_size = bnorm_workspace(op, &r.call.shape);
        void *ws = test_alloc(t, ws_size);
        check_status(
            t, "collecting",
            k ? bnorm_partial_collect_grad(&r.call.shape, r.args.job.x, r.args.job.dy, &r.args.grad,
                                           &got, ws, ws_size, NULL)
              : bnorm_partial_collect(&r.call.shape, r.args.job.x, &got, ws, ws_size, NULL),
            BNORM_OK);
        check_same_piece(t, &got, &want);
    }
}

/* ---------------------------------------------------------------------------------------------- */
/* Totals                                                                                         */

static void check_total(struct test *t, const char *what, size_t c, double got, long double want,
                        double bound) {
    const double error = (double)fabsl((long double)got - want);
    if (!(error <= bound))
        test_fail(t, "%s of channel %zu is %.17g, expected %.17Lg: off by %.3g, allowed %.3g", what,
                  c, got, want, error, bound);
}

/* Element q of channel c, image by image. */
static double element_of(const struct data *d, const float *x, size_t c, size_t q) {
    return (double)x[(q / d->hw * d->c + c) * d->hw + q % d->hw];
}

static void check_moments(struct test *t, const struct data *d, const struct totals *got) {
    const bnorm_shape plain = {.layout = BNORM_NCHW, .n = d->n, .c = d->c, .hw = d->hw};
    const size_t count = d->n * d->hw;
    double *bounds = test_doubles(t, 4 * d->c);
    const struct oracle_stats stats = {bounds, bounds + d->c, bounds + 2 * d->c, bounds + 3 * d->c};
    oracle_moments(&plain, to_double(t, d->x, data_count(d)), &stats);
    for (size_t c = 0; c < d->c; c++) {
        long double sum = 0, mean, m2 = 0;
        for (size_t q = 0; q < count; q++)
            sum += (long double)element_of(d, d->x, c, q);
        mean = sum / (long double)count;
        for (size_t q = 0; q < count; q++) {
            const long double off = (long double)element_of(d, d->x, c, q) - mean;
            m2 += off * off;
        }
        const double mean_bound = stats.mean_bound[c] + 0x1p-52 * fabs(stats.mean[c]);
        const double m2_bound = stats.var_bound[c] * (double)count;
        if (stats.var[c] == 0 && (got->mean[c] != element_of(d, d->x, c, 0) || got->m2[c] != 0))
            test_fail(t, "channel %zu is constant, but has mean %.17g and M2 %.17g", c,
                      got->mean[c], got->m2[c]);
        check_total(t, "the mean", c, got->mean[c], mean, mean_bound);
        check_total(t, "M2", c, got->m2[c], m2, m2_bound + DBL_EPSILON * (double)m2);
    }
}

/* Without activation: g is dy. The bounds are those of oracle.c. */
static void check_sums(struct test *t, const struct data *d, const struct totals *got) {
    const size_t count = d->n * d->hw;
    const bnorm_shape plain = {.layout = BNORM_NCHW, .n = d->n, .c = d->c, .hw = d->hw};
    const double sum_error = oracle_sum_error(&plain), product_error = oracle_product_error(&plain);
    for (size_t c = 0; c < d->c; c++) {
        long double sum_g = 0, sum_gx = 0;
        double abs_g = 0, abs_gx = 0;
        for (size_t q = 0; q < count; q++) {
            const double g = element_of(d, d->dy, c, q);
            const double off = element_of(d, d->x, c, q) - (double)d->mean[c];
            sum_g += (long double)g;
            sum_gx += (long double)g * (long double)off;
            abs_g += fabs(g);
            abs_gx += fabs(g * off);
        }
        check_total(t, "sum(g)", c, got->mean[c], sum_g, sum_error * abs_g);
        check_total(t, "sum(g*(x - mean))", c, got->m2[c], sum_gx,
                    product_error * abs_gx + 2 * (double)count * 0x1p-149);
    }
}

/* x mean 1e6 with deviation 1, outliers, constant channels and more. */
static void test_totals(struct test *t) {
    static const size_t sizes[][3] = {{1, 5, 1},    {1, 3, 40},  {2, 19, 7}, {7, 8, 3},
                                      {13, 1, 100}, {100, 3, 5}, {65, 9, 1}, {300, 17, 1}};
    const bnorm_exec exec = {.isa = t->isa};
    for (size_t i = 0; i < COUNT_OF(sizes) * VALUES_COUNT; i++) {
        const enum values values = (enum values)(i % VALUES_COUNT);
        const size_t *size = sizes[i / VALUES_COUNT];
        /* Some values are for floats only. */
        const size_t type = values == VALUES_NORMAL || values == VALUES_HALF_CONSTANT ? i : 0;
        const bnorm_shape shape = shape_of(t, size[0], size[1], size[2], 3 * i + type / 8 % 3);
        struct data d;
        data_new(t, &d, &shape);
        data_fill(t, &d, values, shape.dtype);
        for (size_t c = 0; values == VALUES_MEAN_1E6 && c < d.c; c++)
            d.mean[c] = 1e6f;
        const struct call call = {.op = BNORM_OP_BACKWARD, .shape = shape, .side = SIDE_END};
        struct ready r;
        ready_new(t, &r, &call, &d);
        for (size_t k = 0; k < 2; k++) {
            const bnorm_op op = k ? BNORM_OP_BACKWARD : BNORM_OP_MOMENTS;
            const struct cut cut = cut_new(t, CUT_RANDOM, d.n);
            const size_t first = rng_below(&t->rng, 2) ? rng_below(&t->rng, 1000) : 0;
            char text[96], parts[96];
            test_context(t, "%s %s, %s, images from %zu on", values_name(values),
                         shape_text(&shape, text), cut_text(&cut, parts), first);
            const bnorm_partial piece = collect_parts(
                t, &r, op, &cut, (enum joining)rng_below(&t->rng, JOIN_COUNT), first, &exec);
            const struct totals got = piece_totals(t, &piece);
            if (got.count != (double)(d.n * d.hw))
                test_fail(t, "the count is %.17g", got.count);
            if (k)
                check_sums(t, &d, &got);
            else
                check_moments(t, &d, &got);
        }
        test_release(t);
    }
}

/* A NaN or an infinity makes its channel's totals NaN, with all bits set, and no other's. */
static void test_nan(struct test *t) {
    const float special[] = {bits_float(0xffc12345u), bits_float(0x7fc00001u), INFINITY, -INFINITY};
    const bnorm_exec exec = {.isa = t->isa};
    unsigned char ones[sizeof(double)];
    memset(ones, 0xff, sizeof ones);
    for (size_t i = 0; i < 48; i++) {
        const bnorm_op op = i % 2 ? BNORM_OP_MOMENTS : BNORM_OP_BACKWARD;
        const size_t n = 1 + rng_below(&t->rng, i % 3 ? 9 : 150), hw = i % 5 < 2 ? 1 : 1 + i % 7;
        const bnorm_shape shape = shape_of(t, n, 1 + rng_below(&t->rng, 12), hw, i / 2);
        const struct call call = {.op = BNORM_OP_BACKWARD, .shape = shape, .side = SIDE_END};
        const struct cut cut = cut_new(t, CUT_RANDOM, n);
        const enum joining joining = (enum joining)rng_below(&t->rng, JOIN_COUNT);
        struct data d;
        struct ready r;
        char text[320];
        data_new(t, &d, &shape);
        ready_new(t, &r, &call, &d);
        const bnorm_partial without = collect_parts(t, &r, op, &cut, joining, 0, &exec);
        const struct totals want = piece_totals(t, &without);
        const size_t at = rng_below(&t->rng, data_count(&d)), channel = at / hw % d.c;
        const float value = special[rng_below(&t->rng, COUNT_OF(special))];
        (op == BNORM_OP_MOMENTS ? d.x : d.dy)[at] = value;
        ready_new(t, &r, &call, &d);
        test_context(t, "%g in channel %zu, %s", (double)value, channel, call_text(&call, text));
        const bnorm_partial with = collect_parts(t, &r, op, &cut, joining, 0, &exec);
        const struct totals got = piece_totals(t, &with);
        for (size_t c = 0; c < d.c; c++) {
            const int other = c != channel, sums = op == BNORM_OP_BACKWARD;
            if (sums && !other && isinf(value)) { /* the sum of an infinity is one */
                if (got.mean[c] != (double)value)
                    test_fail(t, "sum(g) is %g", got.mean[c]);
                continue;
            }
            if (memcmp(&got.mean[c], other ? (void *)&want.mean[c] : ones, sizeof ones) != 0 ||
                memcmp(&got.m2[c], other ? (void *)&want.m2[c] : ones, sizeof ones) != 0)
                test_fail(t, "channel %zu has totals %a and %a, without the NaN %a and %a", c,
                          got.mean[c], got.m2[c], want.mean[c], want.m2[c]);
        }
        test_release(t);
    }
}

/* Any NaN that a piece brings along, or that two infinities make, is bnorm's once pieces are merged:
 * as two images that are one subtree, and as two that stay apart. */
static void test_nan_in_nodes(struct test *t) {
    enum { C = 4 };
    const uint64_t bits[2] = {0x7ff8000000012345u, 0xfff8000000000000u};
    double nan_of[2], nodes[2][2][C];
    memcpy(nan_of, bits, sizeof bits);
    for (size_t i = 0; i < 8; i++) {
        const bnorm_op op = i % 2 ? BNORM_OP_BACKWARD : BNORM_OP_MOMENTS;
        const size_t which = i / 2 % 2, first = i / 4;
        const double left[C] = {INFINITY, nan_of[0], 1, 1}, right[C] = {-INFINITY, 1, nan_of[1], 2};
        for (size_t k = 0; k < C; k++) {
            nodes[0][which][k] = left[k];
            nodes[1][which][k] = right[k];
            nodes[0][!which][k] = nodes[1][!which][k] = 1;
        }
        const bnorm_partial pieces[2] = {{op, C, 1, first, 1, nodes[0][0], sizeof nodes[0]},
                                         {op, C, 1, first + 1, 1, nodes[1][0], sizeof nodes[1]}};
        const bnorm_partial merged = piece_merged(t, &pieces[0], &pieces[1]);
        const double *const node = merged.nodes + 2 * C * first; /* the last one */
        size_t count = 0;
        for (size_t k = 0; k < 2 * C; k++) {
            uint64_t got;
            memcpy(&got, &node[k], sizeof got);
            count += isnan(node[k]) ? 1 : 0;
            test_context(t, "op %d, array %zu, from image %zu, sum %zu", (int)op, which, first, k);
            if (isnan(node[k]) && got != UINT64_MAX)
                test_fail(t, "the NaN 0x%016" PRIx64, got);
        }
        if (count < (first ? 1 : 3))
            test_fail(t, "only %zu NaN", count);
    }
}

/* ---------------------------------------------------------------------------------------------- */
/* Sizes                                                                                          */

static size_t digits(size_t n) {
    size_t count = 0;
    for (; n; n /= 2)
        count++;
    return count;
}

static void check_size(struct test *t, size_t c, size_t first, size_t n) {
    const bnorm_partial piece = {.c = c, .first = first, .n = n};
    const size_t used = bnorm_partial_used(&piece), size = bnorm_partial_size(c, n);
    if (used != used_bytes(&piece))
        test_fail(t, "c=%zu first=%zu n=%zu: bnorm_partial_used() is %zu, expected %zu", c, first,
                  n, used, used_bytes(&piece));
    if (used > size)
        test_fail(t, "c=%zu first=%zu n=%zu: bnorm_partial_size() is %zu, but %zu are used", c,
                  first, n, size, used);
    if (size > 2 * digits(n) * 2 * c * sizeof(double))
        test_fail(t, "c=%zu n=%zu: bnorm_partial_size() is %zu: more than promised", c, n, size);
}

static void test_sizes(struct test *t) {
    const size_t most = test_repeat(300, 140, 70);
    for (size_t first = 0; first <= most; first++)
        for (size_t n = 0; n <= most; n++)
            check_size(t, 1 + first % 3, first, n);
    for (size_t i = 0; i < 20000; i++) { /* of any magnitude, also up to the last number */
        const size_t shift = rng_below(&t->rng, sizeof(size_t) * CHAR_BIT);
        size_t n = (size_t)rng_u64(&t->rng) >> shift;
        size_t first = (size_t)rng_u64(&t->rng) >> rng_below(&t->rng, sizeof(size_t) * CHAR_BIT);
        if (i % 5 == 0) /* next to a power of two */
            first = ((size_t)1 << rng_below(&t->rng, sizeof(size_t) * CHAR_BIT)) - i / 5 % 3;
        if (i % 7 == 0)
            n = ((size_t)1 << rng_below(&t->rng, sizeof(size_t) * CHAR_BIT)) - i / 7 % 3;
        if (i % 11 == 0 || first > SIZE_MAX - n)
            first = SIZE_MAX - n;
        check_size(t, 1 + i % 4, first, n);
    }
    const bnorm_partial empty = {.c = 3, .first = 5};
    if (bnorm_partial_used(&empty) != 0)
        test_fail(t, "an empty piece uses %zu bytes", bnorm_partial_used(&empty));
    if (bnorm_partial_size(0, 1) || bnorm_partial_size(0, 1000) ||
        bnorm_partial_size(SIZE_MAX / 16 + 1, 1) || bnorm_partial_size(SIZE_MAX, 1) ||
        bnorm_partial_size(SIZE_MAX / 4, SIZE_MAX) ||
        bnorm_partial_size(SIZE_MAX / 8, SIZE_MAX / 2))
        test_fail(t, "bnorm_partial_size() is not 0 for c = 0 or sizes that overflow");
    const bnorm_partial huge[] = {{.c = SIZE_MAX / 16 + 2, .n = 1},
                                  {.c = SIZE_MAX / 2 + 2, .n = 1},
                                  {.c = SIZE_MAX / 32 + 2, .n = 3}};
    for (size_t i = 0; i < COUNT_OF(huge); i++)
        if (bnorm_partial_used(&huge[i]) != 0)
            test_fail(t, "c=%zu n=%zu: bnorm_partial_used() is %zu, but should be 0", huge[i].c,
                      huge[i].n, bnorm_partial_used(&huge[i]));
}

/* ---------------------------------------------------------------------------------------------- */
/* Nothing                                                                                        */

static void check_zeros(struct test *t, const char *what, const float *x, size_t count) {
    for (size_t i = 0; i < count; i++)
        if (float_bits(x[i]) != 0)
            test_fail(t, "%s[%zu] is %g, expected +0", what, i, (double)x[i]);
}

/* No images, and images of no positions. */
static void test_empty_batches(struct test *t) {
    const bnorm_exec exec = {.isa = t->isa};
    const bnorm_in none = {0};
    for (size_t k = 0; k < 8; k++) {
        const bnorm_op op = k % 2 ? BNORM_OP_BACKWARD : BNORM_OP_MOMENTS;
        const bnorm_shape shape = {
            .layout = (bnorm_layout)(k / 2 % 2), .n = k < 4 ? 0 : 3, .c = 5, .hw = k < 4 ? 7 : 0};
        double nodes[10];
        memset(nodes, 0xa5, sizeof nodes);
        for (size_t n = 0; n < 2; n++) { /* an empty piece and one of an image */
            const bnorm_partial before = {.op = op,
                                          .c = 5,
                                          .hw = 9, /* not that of the batch */
                                          .first = 8,
                                          .n = n,
                                          .nodes = n ? nodes : NULL,
                                          .size = n ? sizeof nodes : 0};
            bnorm_partial piece = before;
            test_context(t, "n=%zu hw=%zu into %zu images", shape.n, shape.hw, n);
            const bnorm_grad grad = {0};
            check_status(
                t, "collecting",
                op == BNORM_OP_MOMENTS
                    ? bnorm_partial_collect(&shape, none, &piece, NULL, 0, &exec)
                    : bnorm_partial_collect_grad(&shape, none, none, &grad, &piece, NULL, 0, &exec),
                BNORM_OK);
            if (piece.op != op || piece.c != 5 || piece.hw != 9 || piece.first != 8 ||
                piece.n != n || piece.nodes != before.nodes || piece.size != before.size)
                test_fail(t, "an empty batch changed the piece");
            for (size_t i = 0; i < sizeof nodes; i++)
                if (((const unsigned char *)nodes)[i] != 0xa5)
                    test_fail(t, "an empty batch changed the nodes");
        }
        const bnorm_grad grad = {0};
        check_status(
            t, "bnorm_partial_apply_grad",
            bnorm_partial_apply_grad(&shape, none, none, (bnorm_out){0}, &grad, NULL, &exec),
            BNORM_OK);
    }
}

/* What an empty piece is turned into. */
static void test_empty_pieces(struct test *t) {
    for (size_t k = 0; k < 2; k++) {
        const bnorm_partial moments = {
            .op = BNORM_OP_MOMENTS, .c = 5, .first = k ? 77 : 0, .hw = k ? SIZE_MAX : 0};
        bnorm_partial sums = moments;
        sums.op = BNORM_OP_BACKWARD;
        struct fixture f;
        fixture_start(&f, t, k ? SIDE_START : SIDE_END);
        float *coefficients = fixture_output(&f, "coefficients", NULL, 15);
        float *slopes = fixture_output(&f, "coefficients of backward", NULL, 25);
        float *save[5];
        for (size_t i = 0; i < 5; i++)
            save[i] = fixture_output(&f, "an array that is saved", NULL, 5);
        const float old[5] = {1, 2, 3, -4, NAN};
        float *mean = fixture_output(&f, "running mean", old, 5);
        float *var = fixture_output(&f, "running variance", old, 5);
        bnorm_train train = {
            .eps = 1e-3,
            .running = {.mean = mean, .var = var, .rate = .25, .variance = BNORM_VARIANCE_SAMPLE},
            .save_mean = save[0],
            .save_invstd = save[1],
            .save_mean_lo = save[2]};
        bnorm_grad grad = {.dgamma = save[3], .dbeta = save[4]};
        test_context(t, "an empty piece at image %zu", moments.first);
        check_status(t, "bnorm_partial_finish",
                     bnorm_partial_finish(&moments, &train, coefficients), BNORM_OK);
        check_status(t, "bnorm_partial_finish_grad",
                     bnorm_partial_finish_grad(&sums, &grad, slopes), BNORM_OK);
        check_zeros(t, "the coefficients of forward", coefficients, 15);
        check_zeros(t, "the coefficients of backward", slopes, 25);
        for (size_t i = 0; i < 5; i++)
            check_zeros(t, "a saved array, dgamma or dbeta", save[i], 5);
        check_bits(t, "the running mean", mean, old, 5);
        check_bits(t, "the running variance", var, old, 5);
        grad.frozen = 1;
        check_status(t, "frozen", bnorm_partial_finish_grad(&sums, &grad, slopes), BNORM_OK);
        check_zeros(t, "the coefficients of backward", slopes, 25);
        grad = (bnorm_grad){0};
        train = (bnorm_train){0};
        check_status(t, "nothing wanted", bnorm_partial_finish_grad(&sums, &grad, NULL), BNORM_OK);
        check_status(t, "nothing saved", bnorm_partial_finish(&moments, &train, coefficients),
                     BNORM_OK);

        double count = 7, totals[2][5] = {{1, 1, 1, 1, 1}, {1, 1, 1, 1, 1}};
        check_status(t, "bnorm_partial_total",
                     bnorm_partial_total(&moments, &count, totals[0], totals[1]), BNORM_OK);
        for (size_t i = 0; i < 5; i++)
            if (count != 0 || totals[0][i] != 0 || totals[1][i] != 0)
                test_fail(t, "the totals of an empty piece are not 0");
        check_status(t, "without arrays", bnorm_partial_total(&sums, NULL, NULL, NULL), BNORM_OK);
        fixture_check(&f);
        test_release(t);
    }
}

/* Empty pieces on either side, and both. */
static void test_empty_merges(struct test *t) {
    struct ready r;
    struct data d;
    const bnorm_exec exec = {.isa = t->isa};
    for (size_t k = 0; k < 2; k++) {
        const bnorm_op op = k ? BNORM_OP_BACKWARD : BNORM_OP_MOMENTS;
        random_ready(t, &r, &d, BNORM_OP_BACKWARD, 5, 2 * k);
        const size_t c = r.call.shape.c, first = 11;
        const struct cut whole = cut_new(t, CUT_WHOLE, 5);
        const bnorm_partial full = collect_parts(t, &r, op, &whole, JOIN_APPEND, first, &exec);
        bnorm_partial before = piece_empty(op, c, first), after = piece_empty(op, c, first + 5);
        after.hw = 12345; /* not looked at */
        const bnorm_partial left = piece_merged(t, &before, &full);
        check_same_piece(t, &left, &full);
        if (left.hw != full.hw)
            test_fail(t, "an empty piece got hw = %zu, expected %zu", left.hw, full.hw);
        const bnorm_partial right = piece_merged(t, &full, &after);
        check_same_piece(t, &right, &full);
        const bnorm_partial same = piece_empty(op, c, first);
        const bnorm_partial nothing = piece_merged(t, &before, &same);
        check_same_piece(t, &nothing, &same);
        before.hw = 999; /* an empty piece takes any other's */
        const bnorm_partial other = piece_merged(t, &before, &full);
        check_same_piece(t, &other, &full);
        test_release(t);
    }
}

/* ---------------------------------------------------------------------------------------------- */
/* Refusals                                                                                       */

enum { N = 2, C = 5, HW = 3, COUNT = N * C * HW, ROOM = 64, NODES = 128, WS_ROOM = 1 << 14 };

enum tensor_id { X, DY, DX, RESIDUAL, DRESIDUAL, Y, TENSORS };
enum array_id {
    GAMMA,
    BETA,
    SAVE_MEAN,
    SAVE_INVSTD,
    SAVE_MEAN_LO,
    RUNNING_MEAN,
    RUNNING_VAR,
    DGAMMA,
    DBETA,
    COEFFICIENTS,
    WEIGHTS,
    ARRAYS
};

/* All memory that a call can reach; compared as a whole. */
struct memory {
    float tensor[TENSORS][ROOM];
    float array[ARRAYS][ROOM];
    double nodes[2][NODES];
    double count, total[2][C];
    unsigned char mask[ROOM], ws[WS_ROOM];
    bnorm_partial left, right;
};

/* The arguments of a call of any function. */
struct args {
    struct test *t;
    struct memory *m, *before;
    bnorm_status (*function)(const struct args *a);
    bnorm_op op;
    bnorm_shape shape_value;
    bnorm_train train_value;
    bnorm_grad grad_value;
    bnorm_renorm renorm;
    bnorm_exec exec_value;
    const bnorm_shape *shape;
    const bnorm_train *train;
    const bnorm_grad *grad;
    const bnorm_exec *exec;
    bnorm_in x, dy;
    bnorm_out dx;
    bnorm_partial *left;
    const bnorm_partial *right;
    float *coefficients;
    double *count, *mean, *m2;
    void *ws;
    size_t ws_size;
};

static bnorm_status call_collect(const struct args *a) {
    return bnorm_partial_collect(a->shape, a->x, a->left, a->ws, a->ws_size, a->exec);
}

static bnorm_status call_collect_grad(const struct args *a) {
    return bnorm_partial_collect_grad(a->shape, a->x, a->dy, a->grad, a->left, a->ws, a->ws_size,
                                      a->exec);
}

static bnorm_status call_merge(const struct args *a) {
    return bnorm_partial_merge(a->left, a->right);
}

static bnorm_status call_total(const struct args *a) {
    return bnorm_partial_total(a->left, a->count, a->mean, a->m2);
}

static bnorm_status call_finish(const struct args *a) {
    return bnorm_partial_finish(a->left, a->train, a->coefficients);
}

static bnorm_status call_finish_grad(const struct args *a) {
    return bnorm_partial_finish_grad(a->left, a->grad, a->coefficients);
}

static bnorm_status call_apply_grad(const struct args *a) {
    return bnorm_partial_apply_grad(a->shape, a->x, a->dy, a->dx, a->grad, a->coefficients,
                                    a->exec);
}

/* Makes *a a valid call: left has images [2, 5), right and the batch the two after them. */
static void fresh(struct args *a) {
    struct memory *m = a->m;
    memset(m, 0xa5, sizeof *m);
    for (size_t i = 0; i < ROOM; i++) {
        for (size_t k = 0; k < TENSORS; k++)
            m->tensor[k][i] = .5f + .25f * (float)((i + k) % 7);
        for (size_t k = 0; k < ARRAYS; k++)
            m->array[k][i] = .5f + .25f * (float)((i + k) % 5);
    }
    for (size_t i = 0; i < NODES; i++)
        m->nodes[0][i] = m->nodes[1][i] = .5 + (double)(i % 9);
    const size_t all = bnorm_partial_size(C, 5);
    m->left = (bnorm_partial){a->op, C, HW, 2, 3, m->nodes[0], all};
    m->right = (bnorm_partial){a->op, C, HW, 5, 2, m->nodes[1], 2 * 2 * C * sizeof(double)};
    if (all > sizeof m->nodes[0] || bnorm_partial_used(&m->right) != m->right.size)
        test_fail(a->t, "%zu bytes of nodes: raise NODES", all);
    a->shape_value = (bnorm_shape){.layout = BNORM_NHWC, .n = N, .c = C, .hw = HW};
    a->train_value = (bnorm_train){
        .gamma = m->array[GAMMA],
        .beta = m->array[BETA],
        .eps = 1e-5,
        .running = {.mean = m->array[RUNNING_MEAN],
                    .var = m->array[RUNNING_VAR],
                    .rate = .1,
                    .variance = BNORM_VARIANCE_SAMPLE},
        .save_mean = m->array[SAVE_MEAN],
        .save_invstd = m->array[SAVE_INVSTD],
        .save_mean_lo = m->array[SAVE_MEAN_LO],
        .act = {BNORM_ACT_RELU, 0, 0},
    };
    a->grad_value = (bnorm_grad){
        .gamma = m->array[GAMMA],
        .beta = m->array[BETA],
        .save_mean = m->array[SAVE_MEAN],
        .save_invstd = m->array[SAVE_INVSTD],
        .save_mean_lo = m->array[SAVE_MEAN_LO],
        .act = {BNORM_ACT_RELU, 0, 0},
        .residual = {m->tensor[RESIDUAL], 0, 0},
        .dresidual = {m->tensor[DRESIDUAL], 0, 0},
        .dgamma = m->array[DGAMMA],
        .dbeta = m->array[DBETA],
    };
    a->renorm = (bnorm_renorm){.r_min = 1, .r_max = 1};
    a->exec_value = (bnorm_exec){0};
    a->shape = &a->shape_value;
    a->train = &a->train_value;
    a->grad = &a->grad_value;
    a->exec = &a->exec_value;
    a->x = (bnorm_in){m->tensor[X], 0, 0};
    a->dy = (bnorm_in){m->tensor[DY], 0, 0};
    a->dx = (bnorm_out){m->tensor[DX], 0, 0};
    a->left = &m->left;
    a->right = &m->right;
    a->coefficients = m->array[COEFFICIENTS];
    a->count = &m->count;
    a->mean = m->total[0];
    a->m2 = m->total[1];
    a->ws = m->ws;
    a->ws_size = bnorm_workspace(a->op, a->shape);
    if (a->ws_size > WS_ROOM)
        test_fail(a->t, "workspace of %zu bytes: raise WS_ROOM", a->ws_size);
}

/* Runs *a; where it is refused, no byte may have changed. */
static void attempt(struct args *a, bnorm_status want, const char *what) {
    test_context(a->t, "%s", what);
    *a->before = *a->m;
    const bnorm_status got = a->function(a);
    check_status(a->t, what, got, want);
    if (got != BNORM_OK && memcmp(a->before, a->m, sizeof *a->m) != 0)
        test_fail(a->t, "the call was refused but wrote memory");
}

static struct args args_new(struct test *t, bnorm_status (*function)(const struct args *),
                            bnorm_op op) {
    return (struct args){.t = t,
                         .m = test_alloc(t, sizeof(struct memory)),
                         .before = test_alloc(t, sizeof(struct memory)),
                         .function = function,
                         .op = op};
}

/* A valid call with something changed, named by the code that changes it. */
#define EXPECT(status, ...)                                                                        \
    do {                                                                                           \
        fresh(a);                                                                                  \
        __VA_ARGS__;                                                                               \
        attempt(a, status, #__VA_ARGS__);                                                          \
    } while (0)

/* What every function refuses of a piece. */
static void refuse_pieces(struct args *a) {
    const bnorm_op other = a->op == BNORM_OP_MOMENTS ? BNORM_OP_BACKWARD : BNORM_OP_MOMENTS;
    EXPECT(BNORM_OK, (void)0);
    EXPECT(BNORM_NULL_POINTER, a->left = NULL);
    EXPECT(BNORM_NULL_POINTER, a->left->nodes = NULL);
    EXPECT(BNORM_BAD_ENUM, a->left->op = BNORM_OP_FORWARD_TRAIN);
    EXPECT(BNORM_BAD_ENUM, a->left->op = BNORM_OP_APPLY);
    EXPECT(BNORM_BAD_ENUM, a->left->op = (bnorm_op)-1);
    EXPECT(BNORM_BAD_ENUM, a->left->op = (bnorm_op)4);
    if (a->function != call_total)
        EXPECT(BNORM_BAD_ENUM, a->left->op = other);
    EXPECT(BNORM_BAD_SHAPE, a->left->c = 0);
    EXPECT(BNORM_BAD_SHAPE, a->left->hw = 0);
    EXPECT(BNORM_BAD_SHAPE, a->left->first = SIZE_MAX - 1);
    EXPECT(BNORM_WORKSPACE_TOO_SMALL, a->left->size = bnorm_partial_used(a->left) - 1);
}

/* What both collecting functions refuse. */
static void refuse_collecting(struct args *a) {
    refuse_pieces(a);
    EXPECT(BNORM_OK, a->exec = NULL);
    EXPECT(BNORM_NULL_POINTER, a->shape = NULL);
    EXPECT(BNORM_NULL_POINTER, a->x.data = NULL);
    EXPECT(BNORM_NULL_POINTER, a->ws = NULL);
    EXPECT(BNORM_BAD_ENUM, a->shape_value.layout = (bnorm_layout)2);
    EXPECT(BNORM_BAD_ENUM, a->shape_value.dtype = (bnorm_dtype)9);
    EXPECT(BNORM_UNSUPPORTED, a->shape_value.dtype = BNORM_S8);
    EXPECT(BNORM_UNSUPPORTED, a->shape_value.c_block = 8);
    EXPECT(BNORM_BAD_ENUM, a->exec_value.memory = (bnorm_memory)4);
    EXPECT(BNORM_BAD_ENUM, a->exec_value.denormals = (bnorm_denormals)2);
    EXPECT(BNORM_BAD_STRIDE, a->x.run_stride = C - 1);
    EXPECT(BNORM_BAD_STRIDE, a->x.run_stride = SIZE_MAX / 4);
    EXPECT(BNORM_BAD_SHAPE, a->shape_value.c = 0);
    EXPECT(BNORM_BAD_SHAPE, a->shape_value.c = C - 1);
    EXPECT(BNORM_BAD_SHAPE, a->shape_value.c = C - 1, a->shape_value.n = 0);
    EXPECT(BNORM_BAD_SHAPE, a->shape_value.hw = HW - 1);
    EXPECT(BNORM_BAD_SHAPE, a->left->c = C + 1);
    EXPECT(BNORM_BAD_SHAPE, a->left->first = SIZE_MAX - 4);
    EXPECT(BNORM_BAD_SHAPE, a->left->first = 0, a->left->n = a->left->size = SIZE_MAX);
    EXPECT(BNORM_BAD_SHAPE, a->left->first = SIZE_MAX - 1, a->left->n = 0);
    EXPECT(BNORM_OK, a->left->first = SIZE_MAX - 5);
    EXPECT(BNORM_OK, a->left->first = SIZE_MAX - 2, a->left->n = 0);
    EXPECT(BNORM_OK, a->left->n = 0, a->left->hw = HW - 1);
    EXPECT(BNORM_NULL_POINTER, a->left->n = 0, a->left->nodes = NULL);
    EXPECT(BNORM_WORKSPACE_TOO_SMALL, a->left->size--);
    EXPECT(BNORM_WORKSPACE_TOO_SMALL, a->left->n = 0, a->left->size = bnorm_partial_size(C, 2) - 1);
    EXPECT(BNORM_OK, a->left->n = 0, a->left->size = bnorm_partial_size(C, 2));
    EXPECT(BNORM_WORKSPACE_TOO_SMALL, a->ws_size--);
    EXPECT(BNORM_BAD_OVERLAP, a->ws = a->left->nodes);
    EXPECT(BNORM_BAD_OVERLAP, a->left->nodes = (double *)(void *)a->m->ws);
    EXPECT(BNORM_BAD_OVERLAP, a->x.data = a->left->nodes);
    EXPECT(BNORM_BAD_OVERLAP, a->x.data = a->m->ws);
    EXPECT(BNORM_BAD_OVERLAP, a->left->n = 0, a->x.data = a->left->nodes);
}

static void test_refuse_collect(struct test *t) {
    struct args args = args_new(t, call_collect, BNORM_OP_MOMENTS), *a = &args;
    refuse_collecting(a);
}

/* What both functions that take a bnorm_grad and tensors refuse. */
static void refuse_grads(struct args *a) {
    const bnorm_in y = {a->m->tensor[Y], 0, 0}, none = {0};
    EXPECT(BNORM_NULL_POINTER, a->grad = NULL);
    EXPECT(BNORM_NULL_POINTER, a->dy.data = NULL);
    EXPECT(BNORM_NULL_POINTER, a->grad_value.save_mean = NULL);
    EXPECT(BNORM_NULL_POINTER, a->grad_value.save_invstd = NULL);
    EXPECT(BNORM_OK, a->grad_value.save_mean_lo = NULL);
    EXPECT(BNORM_OK, a->grad_value.gamma = a->grad_value.beta = NULL);
    EXPECT(BNORM_OK, a->grad_value.dgamma = a->grad_value.dbeta = NULL);
    EXPECT(BNORM_OK, a->grad_value.residual = none);
    EXPECT(BNORM_OK, a->grad_value.residual = none, a->grad_value.y = y);
    EXPECT(BNORM_OK, a->grad_value.residual = none, a->grad_value.mask = a->m->mask);
    EXPECT(BNORM_BAD_PARAMETER, a->grad_value.y = y);
    EXPECT(BNORM_BAD_PARAMETER, a->grad_value.mask = a->m->mask);
    EXPECT(BNORM_UNSUPPORTED, a->grad_value.residual = none, a->grad_value.y = y,
           a->grad_value.act.kind = BNORM_ACT_HARD_SWISH);
    EXPECT(BNORM_UNSUPPORTED, a->grad_value.residual = none, a->grad_value.mask = a->m->mask,
           a->grad_value.act.kind = BNORM_ACT_HARD_SWISH);
    EXPECT(BNORM_BAD_ENUM, a->grad_value.act.kind = (bnorm_act_kind)99);
    EXPECT(BNORM_BAD_ACTIVATION, a->grad_value.act = (bnorm_act){BNORM_ACT_CLAMP, 1, 1});
    EXPECT(BNORM_BAD_ACTIVATION, a->grad_value.act = (bnorm_act){BNORM_ACT_LEAKY_RELU, NAN, 0});
    EXPECT(BNORM_BAD_STRIDE, a->dy.run_stride = C - 1);
    EXPECT(BNORM_BAD_STRIDE, a->grad_value.residual.run_stride = C - 1);
    EXPECT(BNORM_UNSUPPORTED, a->grad_value.weights.values = a->m->array[WEIGHTS]);
    EXPECT(BNORM_UNSUPPORTED, a->grad_value.renorm_r = a->m->array[GAMMA],
           a->grad_value.renorm_d = a->m->array[BETA]);
}

static void test_refuse_collect_grad(struct test *t) {
    struct args args = args_new(t, call_collect_grad, BNORM_OP_BACKWARD), *a = &args;
    refuse_collecting(a);
    refuse_grads(a);
    EXPECT(BNORM_BAD_OVERLAP, a->dy.data = a->left->nodes);
    EXPECT(BNORM_BAD_OVERLAP, a->grad_value.residual.data = a->left->nodes);
    EXPECT(BNORM_BAD_OVERLAP, a->grad_value.residual.data = NULL,
           a->grad_value.mask = a->left->nodes);
    const float **const arrays[] = {&a->grad_value.gamma, &a->grad_value.beta,
                                    &a->grad_value.save_mean, &a->grad_value.save_invstd,
                                    &a->grad_value.save_mean_lo};
    for (size_t i = 0; i < COUNT_OF(arrays); i++) {
        EXPECT(BNORM_BAD_OVERLAP, *arrays[i] = (float *)(void *)a->left->nodes + 3);
        EXPECT(BNORM_BAD_OVERLAP, *arrays[i] = (float *)(void *)a->m->ws);
    }
    /* What is written later is not looked at. */
    EXPECT(BNORM_OK, a->grad_value.dresidual.data = a->m->tensor[X],
           a->grad_value.dresidual.run_stride = 1);
    if (memcmp(a->before->tensor, a->m->tensor, sizeof a->m->tensor) != 0 ||
        memcmp(a->before->array, a->m->array, sizeof a->m->array) != 0)
        test_fail(t, "bnorm_partial_collect_grad wrote a tensor or an array");
}

static void test_refuse_merge(struct test *t) {
    static const bnorm_op ops[] = {BNORM_OP_MOMENTS, BNORM_OP_BACKWARD};
    for (size_t k = 0; k < COUNT_OF(ops); k++) {
        struct args args = args_new(t, call_merge, ops[k]), *a = &args;
        bnorm_partial *const right = &a->m->right;
        refuse_pieces(a);
        EXPECT(BNORM_NULL_POINTER, a->right = NULL);
        EXPECT(BNORM_NULL_POINTER, right->nodes = NULL);
        EXPECT(BNORM_BAD_ENUM, right->op = ops[!k]);
        EXPECT(BNORM_BAD_ENUM, right->op = a->left->op = BNORM_OP_APPLY);
        EXPECT(BNORM_BAD_ENUM, right->op = a->left->op = BNORM_OP_FORWARD_TRAIN);
        EXPECT(BNORM_BAD_SHAPE, right->c--);
        EXPECT(BNORM_BAD_SHAPE, a->left->c--);
        EXPECT(BNORM_BAD_SHAPE, right->hw++);
        EXPECT(BNORM_BAD_SHAPE, right->hw = 0);
        EXPECT(BNORM_BAD_SHAPE, right->first++);
        EXPECT(BNORM_BAD_SHAPE, right->first--);
        EXPECT(BNORM_BAD_SHAPE, a->left->first--);
        EXPECT(BNORM_BAD_SHAPE, right->n = 0, right->first++);
        EXPECT(BNORM_BAD_SHAPE, right->n = 0, right->first = 2);
        EXPECT(BNORM_BAD_SHAPE, a->left->n = 0);
        EXPECT(BNORM_BAD_SHAPE, a->left->n = 0, right->n = 0);
        EXPECT(BNORM_BAD_SHAPE, right->first = 0, right->n = 2); /* in the other order */
        EXPECT(BNORM_BAD_SHAPE, a->left->first = SIZE_MAX - 4, right->first = SIZE_MAX - 1);
        EXPECT(BNORM_OK, a->left->first = SIZE_MAX - 5, right->first = SIZE_MAX - 2,
               right->nodes = a->m->nodes[1], right->size = sizeof a->m->nodes[1]);
        EXPECT(BNORM_WORKSPACE_TOO_SMALL, a->left->size--);
        EXPECT(BNORM_WORKSPACE_TOO_SMALL, right->size--);
        EXPECT(BNORM_OK, right->n = 0, right->nodes = NULL, right->size = 0, right->hw = 0);
        EXPECT(BNORM_OK, a->left->n = 0, a->left->first = 5, a->left->hw = 0);
        EXPECT(BNORM_NULL_POINTER, a->left->n = 0, a->left->first = 5, a->left->nodes = NULL);
        EXPECT(BNORM_BAD_OVERLAP, right->nodes = a->left->nodes);
        EXPECT(BNORM_BAD_OVERLAP, right->nodes = a->left->nodes + 4 * C - 1);
        EXPECT(BNORM_BAD_OVERLAP, right->nodes = a->left->nodes + 4 * C); /* where its nodes go */
        EXPECT(BNORM_BAD_OVERLAP, a->left->nodes = right->nodes + 4 * C - 1);
        EXPECT(BNORM_OK, right->nodes = a->left->nodes + a->left->size / sizeof(double));
    }
}

static void test_refuse_total(struct test *t) {
    static const bnorm_op ops[] = {BNORM_OP_MOMENTS, BNORM_OP_BACKWARD};
    for (size_t k = 0; k < COUNT_OF(ops); k++) {
        struct args args = args_new(t, call_total, ops[k]), *a = &args;
        refuse_pieces(a);
        EXPECT(BNORM_OK, a->count = NULL);
        EXPECT(BNORM_OK, a->mean = NULL);
        EXPECT(BNORM_OK, a->m2 = NULL);
        EXPECT(BNORM_OK, a->count = a->mean = a->m2 = NULL);
        EXPECT(BNORM_OK, a->left->size = bnorm_partial_used(a->left));
        EXPECT(BNORM_BAD_OVERLAP, a->mean = a->m2);
        EXPECT(BNORM_BAD_OVERLAP, a->mean = a->m->total[0] + 1, a->m2 = a->m->total[0]);
        EXPECT(BNORM_BAD_OVERLAP, a->count = a->m->total[1] + C - 1);
        EXPECT(BNORM_BAD_OVERLAP, a->mean = a->left->nodes);
        EXPECT(BNORM_BAD_OVERLAP, a->m2 = a->left->nodes + 4 * C - 1);
        EXPECT(BNORM_BAD_OVERLAP, a->count = a->left->nodes);
    }
}

/* Each output on each other array: the same, and one element off. Takes places, as *a is made anew
 * for each call. */
static void refuse_overlaps(struct args *a, float **const outputs[], size_t output_count,
                            const float **const inputs[], size_t input_count) {
    for (size_t i = 0; i < output_count; i++) {
        for (size_t j = 0; j < output_count; j++) {
            if (i == j)
                continue;
            EXPECT(BNORM_BAD_OVERLAP, *outputs[i] = *outputs[j]);
            EXPECT(BNORM_BAD_OVERLAP, *outputs[i] = *outputs[j] + 1);
        }
        for (size_t j = 0; j < input_count; j++) {
            EXPECT(BNORM_BAD_OVERLAP, *inputs[j] = *outputs[i]);
            EXPECT(BNORM_BAD_OVERLAP, *inputs[j] = *outputs[i] + 1);
        }
        EXPECT(BNORM_BAD_OVERLAP, *outputs[i] = (float *)(void *)a->left->nodes);
        EXPECT(BNORM_BAD_OVERLAP, *outputs[i] = (float *)(void *)(a->left->nodes + 4 * C) - 1);
    }
    EXPECT(BNORM_OK, *inputs[0] = *inputs[1]);
}

static void test_refuse_finish(struct test *t) {
    struct args args = args_new(t, call_finish, BNORM_OP_MOMENTS), *a = &args;
    bnorm_train *const train = &a->train_value;
    refuse_pieces(a);
    EXPECT(BNORM_OK, a->left->size = bnorm_partial_used(a->left));
    EXPECT(BNORM_NULL_POINTER, a->train = NULL);
    EXPECT(BNORM_NULL_POINTER, a->coefficients = NULL);
    EXPECT(BNORM_OK, train->gamma = train->beta = NULL);
    EXPECT(BNORM_OK, train->save_mean = NULL);
    EXPECT(BNORM_OK, train->save_invstd = NULL);
    EXPECT(BNORM_OK, train->save_mean_lo = NULL);
    EXPECT(BNORM_BAD_EPSILON, train->eps = -1e-9);
    EXPECT(BNORM_BAD_EPSILON, train->eps = NAN);
    EXPECT(BNORM_BAD_EPSILON, train->eps = INFINITY);
    EXPECT(BNORM_BAD_RATE, train->running.rate = NAN);
    EXPECT(BNORM_BAD_RATE, train->running.rate = -INFINITY);
    EXPECT(BNORM_NULL_POINTER, train->running.new_mean = train->running.mean,
           train->running.mean = NULL);
    EXPECT(BNORM_NULL_POINTER, train->running.new_var = train->running.var,
           train->running.var = NULL);
    EXPECT(BNORM_OK, train->running.var = NULL);
    EXPECT(BNORM_OK, train->running.mean = train->running.var = NULL);
    EXPECT(BNORM_OK, train->running.mean = train->running.var = NULL, train->running.rate = NAN);
    EXPECT(BNORM_BAD_ENUM, train->running.variance = (bnorm_variance)2);
    EXPECT(BNORM_BAD_ENUM, train->act.kind = (bnorm_act_kind)99);
    EXPECT(BNORM_BAD_ACTIVATION, train->act = (bnorm_act){BNORM_ACT_CLAMP, 2, 1});
    EXPECT(BNORM_UNSUPPORTED, train->weights.values = a->m->array[WEIGHTS]);
    EXPECT(BNORM_UNSUPPORTED, train->renorm = &a->renorm);
    EXPECT(BNORM_BAD_EPSILON, a->left->n = 0, train->eps = -1);
    float **const outputs[] = {&a->coefficients,  &train->running.mean, &train->running.var,
                               &train->save_mean, &train->save_invstd,  &train->save_mean_lo};
    const float **const inputs[] = {&train->gamma, &train->beta};
    EXPECT(BNORM_BAD_OVERLAP, train->gamma = a->coefficients + 3 * C - 1);
    EXPECT(BNORM_OK, train->gamma = a->coefficients + 3 * C);
    refuse_overlaps(a, outputs, COUNT_OF(outputs), inputs, COUNT_OF(inputs));
}

static void test_refuse_finish_grad(struct test *t) {
    struct args args = args_new(t, call_finish_grad, BNORM_OP_BACKWARD), *a = &args;
    bnorm_grad *const grad = &a->grad_value;
    refuse_pieces(a);
    EXPECT(BNORM_OK, a->left->size = bnorm_partial_used(a->left));
    EXPECT(BNORM_NULL_POINTER, a->grad = NULL);
    EXPECT(BNORM_NULL_POINTER, grad->save_invstd = NULL);
    EXPECT(BNORM_OK, a->coefficients = NULL);
    EXPECT(BNORM_OK, grad->gamma = grad->beta = NULL);
    EXPECT(BNORM_OK, grad->save_mean_lo = NULL);
    EXPECT(BNORM_OK, grad->dgamma = NULL);
    EXPECT(BNORM_OK, grad->dbeta = NULL);
    EXPECT(BNORM_OK, grad->frozen = 1);
    check_zeros(t, "slope and offset", a->coefficients + 2 * C, 2 * C);
    EXPECT(BNORM_BAD_OVERLAP, grad->gamma = a->coefficients + 5 * C - 1);
    EXPECT(BNORM_OK, grad->gamma = a->coefficients + 5 * C);
    EXPECT(BNORM_UNSUPPORTED, grad->weights.values = a->m->array[WEIGHTS]);
    EXPECT(BNORM_UNSUPPORTED, grad->renorm_r = a->m->array[GAMMA],
           grad->renorm_d = a->m->array[BETA]);
    float **const outputs[] = {&a->coefficients, &grad->dgamma, &grad->dbeta};
    const float **const inputs[] = {&grad->gamma, &grad->beta, &grad->save_invstd,
                                    &grad->save_mean_lo};
    refuse_overlaps(a, outputs, COUNT_OF(outputs), inputs, COUNT_OF(inputs));
}

static void test_refuse_apply_grad(struct test *t) {
    struct args args = args_new(t, call_apply_grad, BNORM_OP_BACKWARD), *a = &args;
    bnorm_grad *const grad = &a->grad_value;
    const bnorm_out none = {0};
    EXPECT(BNORM_OK, (void)0);
    if (memcmp(a->before->array, a->m->array, sizeof a->m->array) != 0)
        test_fail(t, "bnorm_partial_apply_grad wrote an array");
    refuse_grads(a);
    EXPECT(BNORM_OK, a->exec = NULL);
    EXPECT(BNORM_NULL_POINTER, a->shape = NULL);
    EXPECT(BNORM_NULL_POINTER, a->x.data = NULL);
    EXPECT(BNORM_NULL_POINTER, a->coefficients = NULL);
    EXPECT(BNORM_OK, a->dx = none);
    EXPECT(BNORM_OK, grad->dresidual = none);
    EXPECT(BNORM_OK, a->dx = none, grad->dresidual = none);
    EXPECT(BNORM_OK, grad->frozen = 1);
    EXPECT(BNORM_BAD_SHAPE, a->shape_value.c = 0);
    EXPECT(BNORM_BAD_ENUM, a->shape_value.layout = (bnorm_layout)2);
    EXPECT(BNORM_UNSUPPORTED, a->shape_value.dtype = BNORM_U8);
    EXPECT(BNORM_BAD_ENUM, a->exec_value.memory = (bnorm_memory)4);
    EXPECT(BNORM_BAD_STRIDE, a->x.run_stride = C - 1);
    EXPECT(BNORM_BAD_STRIDE, a->dx.run_stride = C - 1);
    EXPECT(BNORM_BAD_STRIDE, grad->dresidual.run_stride = C - 1);
    /* In place as in bnorm_backward. */
    EXPECT(BNORM_OK, a->dx.data = a->m->tensor[X]);
    EXPECT(BNORM_OK, a->dx.data = a->m->tensor[DY]);
    EXPECT(BNORM_OK, a->dx.data = a->m->tensor[RESIDUAL]);
    EXPECT(BNORM_OK, grad->dresidual.data = a->m->tensor[X]);
    EXPECT(BNORM_OK, grad->dresidual.data = a->m->tensor[DY]);
    EXPECT(BNORM_OK, grad->dresidual.data = a->m->tensor[RESIDUAL]);
    EXPECT(BNORM_BAD_OVERLAP, a->dx.data = grad->dresidual.data);
    float *const outputs[] = {a->m->tensor[DX], a->m->tensor[DRESIDUAL]};
    const float **const inputs[] = {&grad->gamma, &grad->beta, &grad->save_mean, &grad->save_invstd,
                                    &grad->save_mean_lo};
    for (size_t i = 0; i < COUNT_OF(outputs); i++) {
        EXPECT(BNORM_BAD_OVERLAP, a->x.data = outputs[i] + 1);
        EXPECT(BNORM_BAD_OVERLAP, a->dy.data = outputs[i] + COUNT - 1);
        EXPECT(BNORM_BAD_OVERLAP, grad->residual.data = outputs[i] + 1);
        EXPECT(BNORM_BAD_OVERLAP, grad->residual.data = NULL, grad->y.data = outputs[i] + 1);
        EXPECT(BNORM_BAD_OVERLAP, grad->residual.data = NULL, grad->mask = outputs[i]);
        EXPECT(BNORM_BAD_OVERLAP, a->coefficients = outputs[i] + COUNT - 1);
        EXPECT(BNORM_BAD_OVERLAP, a->coefficients = outputs[i] - (5 * C - 1));
        EXPECT(BNORM_OK, a->coefficients = outputs[i] - 5 * C);
        for (size_t j = 0; j < COUNT_OF(inputs); j++)
            EXPECT(BNORM_BAD_OVERLAP, *inputs[j] = outputs[i] + COUNT - 1);
    }
}

/* ---------------------------------------------------------------------------------------------- */

void add_pieces(struct suite *s) {
    static const struct {
        const char *name;
        test_fn run;
    } per_order[] = {{"cuts", test_cuts},         {"batches", test_batches},
                     {"rows", test_rows},         {"blocks", test_blocks},
                     {"threads", test_threads},   {"values", test_values},
                     {"first", test_first},       {"aligned", test_aligned},
                     {"totals", test_totals},     {"nan", test_nan},
                     {"no-exec", test_exec_null}, {"empty-merges", test_empty_merges}},
      per_set[] = {{"y-types", test_y_types}, {"empty-batches", test_empty_batches}},
      once[] = {{"sizes", test_sizes},
                {"empty-pieces", test_empty_pieces},
                {"nan-in-nodes", test_nan_in_nodes},
                {"refused/collect", test_refuse_collect},
                {"refused/collect-grad", test_refuse_collect_grad},
                {"refused/merge", test_refuse_merge},
                {"refused/total", test_refuse_total},
                {"refused/finish", test_refuse_finish},
                {"refused/finish-grad", test_refuse_finish_grad},
                {"refused/apply-grad", test_refuse_apply_grad}};
    char name[96];
    for (size_t k = 0; k < COUNT_OF(orders); k++) {
        for (size_t i = 0; i < COUNT_OF(per_order); i++) {
            snprintf(name, sizeof name, "pieces/%s/%%s/%s", order_names[k], per_order[i].name);
            suite_add_per_isa(s, per_order[i].run, &orders[k], name);
        }
        suite_add(s, NULL, test_sets, &orders[k], "pieces/%s/any-sets", order_names[k]);
    }
    for (size_t i = 0; i < COUNT_OF(per_set); i++) {
        snprintf(name, sizeof name, "pieces/%%s/%s", per_set[i].name);
        suite_add_per_isa(s, per_set[i].run, NULL, name);
    }
    for (size_t i = 0; i < COUNT_OF(once); i++)
        suite_add(s, NULL, once[i].run, NULL, "pieces/%s", once[i].name);
}
