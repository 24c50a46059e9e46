/* SPDX-License-Identifier: MIT
 *
 * S8 and U8: the formula of bnorm_quant by known answers, where rounding turns, at both ends; what
 * is refused. (test_types.c crosses them with everything else.) */
#include "types.h"

#include <float.h>
#include <limits.h>
#include <math.h>
#include <string.h>

static int lowest(bnorm_dtype dtype) {
    return dtype == BNORM_S8 ? -128 : 0;
}

/* A shape of the case's layout with room for that many elements, all in one channel where that can
 * be. */
static bnorm_shape shape_for(const struct test *t, bnorm_dtype dtype, size_t count) {
    const int blocked = type_shapes(t)->shapes[0].c_block != 0;
    bnorm_shape shape = {.layout = layout_of(t), .dtype = dtype, .n = 1, .c = 1, .hw = count};
    if (blocked) {
        shape.c = shape.c_block = 16;
        shape.hw = (count + 15) / 16;
    } else if (shape.layout == BNORM_NHWC && count % 2) {
        shape.c = count;
        shape.hw = 1;
    }
    return shape;
}

/* bnorm_apply on dense tensors of elements given as floats, `count` of which count; the result as
 * floats. */
static float *applied(struct test *t, const bnorm_shape *shape, const float *x, size_t count,
                      const bnorm_affine *affine) {
    const size_t all = shape_count(shape);
    const bnorm_dtype y_type = y_type_of(affine->y_dtype, shape->dtype);
    struct buffer in, out;
    buffer_new(&in, all * dtype_size(shape->dtype), SIDE_END, 0);
    buffer_new(&out, all * dtype_size(y_type), SIDE_END, 0);
    for (size_t i = 0; i < all; i++)
        element_set(shape->dtype, in.data, i, i < count ? x[i] : 0);
    const bnorm_exec exec = {.isa = t->isa};
    check_status(
        t, "bnorm_apply",
        bnorm_apply(shape, (bnorm_in){in.data, 0, 0}, (bnorm_out){out.data, 0, 0}, affine, &exec),
        BNORM_OK);
    float *y = test_floats(t, all);
    for (size_t i = 0; i < all; i++)
        y[i] = element_get(y_type, out.data, i);
    buffer_check(t, &out, "y");
    buffer_free(&in);
    buffer_free(&out);
    return y;
}

/* Floats to the case's type. */
static void check_quantized(struct test *t, bnorm_quant quant, const float *values,
                            const float *want, size_t count) {
    const bnorm_shape shape = shape_for(t, BNORM_F32, count);
    const bnorm_affine affine = {.y_dtype = y_dtype_of(dtype_of(t)), .y_quant = quant};
    const float *y = applied(t, &shape, values, count, &affine);
    const int denormal = float_bits(quant.scale) - 1 < 0x7fffff;
    for (size_t i = 0; i < count; i++)
        if (y[i] != want[i] && !(denormal && test_flushes()))
            test_fail(t, "%.9g with scale %.9g and zero point %d became %g, expected %g",
                      (double)values[i], (double)quant.scale, quant.zero_point, (double)y[i],
                      (double)want[i]);
}

/* ---------------------------------------------------------------------------------------------- */

static void test_known(struct test *t) {
    const float nan_value = bits_float(0x7fc00000u), signalling = bits_float(0xff800001u);
    const struct {
        bnorm_dtype dtype;
        bnorm_quant quant;
        float value, want;
    } answers[] = {
        {BNORM_S8, {1, 0}, .5f, 0},
        {BNORM_S8, {1, 0}, 1.5f, 2},
        {BNORM_S8, {1, 0}, 2.5f, 2},
        {BNORM_S8, {1, 0}, -.5f, 0},
        {BNORM_S8, {1, 0}, -1.5f, -2},
        {BNORM_S8, {1, 0}, -2.5f, -2},
        {BNORM_S8, {1, 0}, 126.5f, 126},
        {BNORM_S8, {1, 0}, 127.5f, 127},
        {BNORM_S8, {1, 0}, 128, 127},
        {BNORM_S8, {1, 0}, -128.5f, -128},
        {BNORM_S8, {1, 0}, -129, -128},
        {BNORM_S8, {0, 0}, 3, 3}, /* scale 0 = 1 */
        {BNORM_S8, {.5f, 0}, 3, 6},
        {BNORM_S8, {.25f, 10}, .375f, 12},
        {BNORM_S8, {.25f, 10}, .125f, 10},
        {BNORM_S8, {1, -128}, 0, -128},
        {BNORM_S8, {1, -128}, 254.5f, 126},
        {BNORM_S8, {1, -128}, 256, 127},
        {BNORM_S8, {1, -128}, -1, -128},
        {BNORM_S8, {1, 127}, -254.5f, -127},
        {BNORM_S8, {1, 127}, -256, -128},
        {BNORM_S8, {1, 127}, 1, 127},
        {BNORM_S8, {1, 5}, nan_value, 5},
        {BNORM_S8, {1, -128}, signalling, -128},
        {BNORM_S8, {1, 0}, INFINITY, 127},
        {BNORM_S8, {1, 0}, -INFINITY, -128},
        {BNORM_S8, {1, -128}, FLT_MAX, 127},
        {BNORM_S8, {1, 127}, -FLT_MAX, -128},
        {BNORM_S8, {1e-30f, 0}, 1e30f, 127}, /* an infinite quotient */
        {BNORM_S8, {1e-30f, 0}, -1e30f, -128},
        {BNORM_S8, {1e-40f, 3}, 0, 3}, /* a denormal scale */
        {BNORM_S8, {1e-40f, 3}, 2e-40f, 5},
        {BNORM_S8, {FLT_MAX, 3}, 1, 3},
        {BNORM_S8, {FLT_MAX, 3}, FLT_MAX, 4},
        {BNORM_S8, {1, 127}, 0x1p31f, 127}, /* around the ends of int */
        {BNORM_S8, {1, 127}, 0x1.fffffep30f, 127},
        {BNORM_S8, {1, -128}, -0x1p31f, -128},
        {BNORM_S8, {1, 127}, -0x1p31f, -128},
        {BNORM_S8, {1, -128}, -0x1.000002p31f, -128},
        {BNORM_S8, {1, 0}, 0x1p40f, 127},
        {BNORM_S8, {1, 0}, -0x1p63f, -128},
        {BNORM_S8, {1, 0}, 0x1p64f, 127},
        {BNORM_S8, {1, 0}, 32768, 127}, /* around those of short */
        {BNORM_S8, {1, 0}, -32769, -128},
        {BNORM_S8, {1, 127}, 32767, 127},
        {BNORM_S8, {1, 0}, 65536, 127},
        {BNORM_U8, {1, 0}, .5f, 0},
        {BNORM_U8, {1, 0}, 1.5f, 2},
        {BNORM_U8, {1, 0}, -.5f, 0},
        {BNORM_U8, {1, 0}, -1, 0},
        {BNORM_U8, {1, 0}, 254.5f, 254},
        {BNORM_U8, {1, 0}, 255.5f, 255},
        {BNORM_U8, {1, 0}, 128, 128},
        {BNORM_U8, {1, 128}, 126.5f, 254},
        {BNORM_U8, {1, 128}, 127.5f, 255},
        {BNORM_U8, {1, 128}, -128.5f, 0},
        {BNORM_U8, {1, 128}, -127.5f, 0},
        {BNORM_U8, {1, 128}, -126.5f, 2},
        {BNORM_U8, {1, 255}, .5f, 255},
        {BNORM_U8, {1, 255}, -.5f, 255},
        {BNORM_U8, {1, 255}, -255.5f, 0},
        {BNORM_U8, {1, 255}, 1, 255},
        {BNORM_U8, {1, 7}, nan_value, 7},
        {BNORM_U8, {1, 255}, signalling, 255},
        {BNORM_U8, {1, 0}, INFINITY, 255},
        {BNORM_U8, {1, 255}, -INFINITY, 0},
        {BNORM_U8, {1, 255}, 0x1p31f, 255},
        {BNORM_U8, {1, 255}, -0x1p31f, 0},
        {BNORM_U8, {1, 0}, 0x1p32f, 255},
        {BNORM_U8, {1, 0}, 65537, 255},
        {BNORM_U8, {1, 255}, -40000, 0},
    };
    for (size_t i = 0; i < COUNT_OF(answers); i++) {
        if (answers[i].dtype != dtype_of(t))
            continue;
        float values[67], want[67]; /* in every lane */
        for (size_t k = 0; k < COUNT_OF(values); k++) {
            values[k] = answers[i].value;
            want[k] = answers[i].want;
        }
        for (size_t count = 1; count <= COUNT_OF(values); count += 11)
            check_quantized(t, answers[i].quant, values, want, count);
        test_release(t);
    }
}

/* Floats around every half step, for scales by which a multiplication with the reciprocal is off,
 * and for some around those from which on there is none. */
static void test_turns(struct test *t) {
    const float scales[] = {1,
                            .1f,
                            .0078125f,
                            .037f,
                            3,
                            1.1f,
                            .00784314f,
                            1e-38f,
                            1e36f,
                            0x1.fffffep0f,
                            0x1.000002p0f,
                            0x1.555556p-91f,
                            0x1.249248p-90f,
                            0x1.71c71cp89f,
                            0x1.3b13b2p91f,
                            0x1.999998p116f};
    const int low = lowest(dtype_of(t)), points[] = {low, low + 255, low + 100};
    for (size_t s = 0; s < COUNT_OF(scales); s++)
        for (size_t z = 0; z < COUNT_OF(points); z++) {
            const bnorm_quant quant = {scales[s], points[z]};
            float values[2 * 520 * 5], want[COUNT_OF(values)];
            size_t count = 0;
            for (int half = -520; half < 520; half++) {
                const float middle = (float)(half * .5 * (double)scales[s]);
                float v = nextafterf(nextafterf(middle, -INFINITY), -INFINITY);
                for (int k = 0; k < 5; k++, v = nextafterf(v, INFINITY))
                    values[count++] = v;
            }
            for (size_t i = 0; i < count; i++)
                want[i] = quantized(dtype_of(t), quant, values[i]);
            check_quantized(t, quant, values, want, count);
            test_release(t);
        }
}

/* All 256 elements: as floats they are (q - zero_point)*scale; a copy keeps them; under another
 * zero point, and another scale by a power of two, they follow exactly; ReLU is max(q, zero_point).
 */
static void test_elements(struct test *t) {
    const float scales[] = {0, .5f, .1f, .037f, 1e-30f, 1e30f};
    const bnorm_dtype dtype = dtype_of(t);
    const int low = lowest(dtype), points[] = {low, low + 255, low + 128, low + 3};
    const bnorm_shape shape = shape_for(t, dtype, 256);
    const bnorm_dtype other = dtype == BNORM_S8 ? BNORM_U8 : BNORM_S8;
    float x[256];
    for (int i = 0; i < 256; i++)
        x[i] = (float)(low + i);
    for (size_t s = 0; s < COUNT_OF(scales); s++)
        for (size_t z = 0; z < COUNT_OF(points); z++) {
            const bnorm_quant quant = {scales[s], points[z]};
            test_context(t, "scale %.9g, zero point %d", (double)quant.scale, quant.zero_point);
            const bnorm_affine to_float = {.y_dtype = BNORM_Y_F32, .x_quant = quant};
            const bnorm_affine copy = {.x_quant = quant, .y_quant = quant};
            const bnorm_affine relu = {
                .x_quant = quant, .y_quant = quant, .act.kind = BNORM_ACT_RELU};
            const bnorm_affine shifted = {
                .y_dtype = y_dtype_of(other),
                .x_quant = quant,
                .y_quant = {quant.scale, points[z] + lowest(other) - low}};
            const float *v = applied(t, &shape, x, 256, &to_float);
            const float *same = applied(t, &shape, x, 256, &copy);
            const float *positive = applied(t, &shape, x, 256, &relu);
            const float *moved = applied(t, &shape, x, 256, &shifted);
            for (int i = 0; i < 256; i++) {
                const float q = x[i], size = scales[s] == 0 ? 1 : scales[s];
                const float exact = (q - (float)points[z]) * size;
                if (v[i] != exact || (v[i] == 0 && signbit(v[i])))
                    test_fail(t, "%g is %.9g, expected %.9g", (double)q, (double)v[i],
                              (double)exact);
                if (same[i] != q)
                    test_fail(t, "%g became %g in a copy", (double)q, (double)same[i]);
                if (positive[i] != fmaxf(q, (float)points[z]))
                    test_fail(t, "%g became %g by ReLU", (double)q, (double)positive[i]);
                if (moved[i] != q + (float)(lowest(other) - low))
                    test_fail(t, "%g became %g in the other type", (double)q, (double)moved[i]);
            }
            test_release(t);
        }
}

/* Every pair of x and residual, each with its own scale and zero point, added and quantized: the
 * steps of the formula one by one. */
static void test_residual(struct test *t) {
    const bnorm_dtype dtype = dtype_of(t);
    const int low = lowest(dtype);
    const bnorm_quant x_quant = {.03f, low + 100}, residual_quant = {.05f, low + 140},
                      y_quant = {.1f, low + 60};
    const bnorm_shape shape = shape_for(t, dtype, 65536);
    float *x = test_floats(t, 65536);
    unsigned char *residual = test_alloc(t, 65536);
    for (int i = 0; i < 65536; i++) {
        x[i] = (float)(low + i % 256);
        element_set(dtype, residual, (size_t)i, (float)(low + i / 256));
    }
    const bnorm_affine affine = {.residual = {residual, 0, 0},
                                 .act.kind = BNORM_ACT_RELU,
                                 .x_quant = x_quant,
                                 .residual_quant = residual_quant,
                                 .y_quant = y_quant};
    const float *y = applied(t, &shape, x, 65536, &affine);
    for (size_t i = 0; i < 65536; i++) {
        const float r = element_get(dtype, residual, i);
        const float a = (x[i] - (float)x_quant.zero_point) * x_quant.scale;
        const float b = (r - (float)residual_quant.zero_point) * residual_quant.scale;
        const float sum = a + b, v = sum > 0 ? sum : 0;
        const float want = quantized(dtype, y_quant, v);
        if (y[i] != want)
            test_fail(t, "%g + %g (%.9g) became %g, expected %g", (double)x[i], (double)r,
                      (double)v, (double)y[i], (double)want);
    }
}

/* ---------------------------------------------------------------------------------------------- */
/* What is refused, without a byte written                                                        */

/* Room for the tensors of a call, and what it held before. */
struct arena {
    unsigned char x[256], residual[256], y[256], ws[4096];
    float arrays[8][16];
};

/* Fails if the call returns another status or has written anything. */
static void check_refused(struct test *t, const char *what, const struct arena *before,
                          const struct arena *after, bnorm_status got, bnorm_status want) {
    check_status(t, what, got, want);
    if (memcmp(before, after, sizeof *before) != 0)
        test_fail(t, "%s wrote something although it failed", what);
}

static void refuse_apply(struct test *t, const bnorm_shape *shape, const bnorm_affine *affine,
                         bnorm_status want) {
    static struct arena before, after;
    memset(&before, 0x5a, sizeof before);
    after = before;
    bnorm_affine with = *affine;
    with.residual.data = affine->residual.data ? after.residual : NULL;
    check_refused(
        t, "bnorm_apply", &before, &after,
        bnorm_apply(shape, (bnorm_in){after.x, 0, 0}, (bnorm_out){after.y, 0, 0}, &with, NULL),
        want);
}

static void test_bad_quant(struct test *t) {
    static const float scales[] = {-1, -FLT_MIN, NAN, INFINITY, -INFINITY};
    static const bnorm_dtype types[] = {BNORM_S8, BNORM_U8};
    static const char *const places[] = {"x", "residual", "y"};
    for (size_t k = 0; k < COUNT_OF(types); k++) {
        const bnorm_dtype dtype = types[k];
        const int low = lowest(dtype);
        const int points[] = {low - 1, low + 256, INT_MIN, INT_MAX, 1000000};
        for (size_t i = 0; i < COUNT_OF(scales) + COUNT_OF(points); i++)
            for (int place = 0; place < 3; place++) {
                bnorm_quant bad = {.zero_point = low};
                if (i < COUNT_OF(scales))
                    bad.scale = scales[i];
                else
                    bad.zero_point = points[i - COUNT_OF(scales)];
                test_context(t, "%s: quant of %s with scale %g and zero point %d",
                             dtype_name(dtype), places[place], (double)bad.scale, bad.zero_point);
                bnorm_shape shape = {.dtype = dtype, .n = 2, .c = 3, .hw = 5};
                const bnorm_quant good = {.zero_point = low};
                bnorm_affine affine = {.residual.data = &shape, /* replaced */
                                       .x_quant = place == 0 ? bad : good,
                                       .residual_quant = place == 1 ? bad : good,
                                       .y_quant = place == 2 ? bad : good};
                refuse_apply(t, &shape, &affine, BNORM_BAD_QUANTIZATION);
                if (place == 2) { /* from floats too */
                    affine.y_dtype = y_dtype_of(dtype);
                    shape.dtype = BNORM_BF16;
                    refuse_apply(t, &shape, &affine, BNORM_BAD_QUANTIZATION);
                }
            }
    }
}

static void test_bad_types(struct test *t) {
    static const int bad[] = {-1, 5, 6, 1000, INT_MAX, INT_MIN};
    for (size_t i = 0; i < COUNT_OF(bad); i++) {
        bnorm_shape shape = {.n = 2, .c = 3, .hw = 5};
        bnorm_affine affine = {0};
        test_context(t, "dtype %d", bad[i]);
        shape.dtype = (bnorm_dtype)bad[i];
        refuse_apply(t, &shape, &affine, BNORM_BAD_ENUM);
        for (int op = BNORM_OP_MOMENTS; op <= BNORM_OP_APPLY; op++)
            if (bnorm_workspace((bnorm_op)op, &shape) != 0)
                test_fail(t, "bnorm_workspace(%d) is not 0", op);
        shape.dtype = BNORM_F32;
        if (bad[i] == 5) /* a bnorm_y_dtype has one more */
            continue;
        test_context(t, "y_dtype %d", bad[i]);
        affine.y_dtype = (bnorm_y_dtype)bad[i];
        refuse_apply(t, &shape, &affine, BNORM_BAD_ENUM);
    }
}

/* Only bnorm_apply takes S8 and U8. */
static void test_unsupported(struct test *t) {
    static const bnorm_dtype types[] = {BNORM_S8, BNORM_U8};
    static struct arena before, a;
    memset(&before, 0x5a, sizeof before);
    for (size_t k = 0; k < COUNT_OF(types); k++)
        for (int layout = BNORM_NHWC; layout <= BNORM_NCHW; layout++)
            for (size_t c_block = 0; c_block <= (layout ? 8u : 0u); c_block += 8) {
                const bnorm_shape shape = {.layout = (bnorm_layout)layout,
                                           .dtype = types[k],
                                           .n = 2,
                                           .c = 3,
                                           .hw = 5,
                                           .c_block = c_block};
                char text[96];
                test_context(t, "%s", shape_text(&shape, text));
                a = before;
                const bnorm_in x = {a.x, 0, 0}, dy = {a.residual, 0, 0};
                const bnorm_out y = {a.y, 0, 0};
                const bnorm_train train = {.eps = 1e-3, .save_mean = a.arrays[0]};
                const bnorm_grad grad = {.save_mean = a.arrays[1],
                                         .save_invstd = a.arrays[2],
                                         .dgamma = a.arrays[3],
                                         .dbeta = a.arrays[4]};
                check_refused(
                    t, "bnorm_moments", &before, &a,
                    bnorm_moments(&shape, x, a.arrays[5], a.arrays[6], a.ws, sizeof a.ws, NULL),
                    BNORM_UNSUPPORTED);
                check_refused(t, "bnorm_forward_train", &before, &a,
                              bnorm_forward_train(&shape, x, y, &train, a.ws, sizeof a.ws, NULL),
                              BNORM_UNSUPPORTED);
                check_refused(t, "bnorm_backward", &before, &a,
                              bnorm_backward(&shape, x, dy, y, &grad, a.ws, sizeof a.ws, NULL),
                              BNORM_UNSUPPORTED);
                for (int op = BNORM_OP_MOMENTS; op <= BNORM_OP_APPLY; op++)
                    if (bnorm_workspace((bnorm_op)op, &shape) != 0)
                        test_fail(t, "bnorm_workspace(%d) is not 0", op);
            }
}

/* y may be x where elements have one size; else, and where they only overlap, it is refused. What
 * only touches is no overlap: addresses are in bytes of each tensor's own type. */
static void test_overlap(struct test *t) {
    static const bnorm_dtype types[] = {BNORM_F32, BNORM_BF16, BNORM_F16, BNORM_S8, BNORM_U8};
    for (size_t i = 0; i < COUNT_OF(types); i++)
        for (size_t k = 0; k < COUNT_OF(types); k++) {
            const size_t from = dtype_size(types[i]), to = dtype_size(types[k]), count = 32;
            const bnorm_shape shape = {.dtype = types[i], .n = 2, .c = 4, .hw = 4};
            const bnorm_affine affine = {.y_dtype = y_dtype_of(types[k])};
            const size_t x_at = 2 * 4 * count; /* room for y before and after x */
            const size_t gaps[] = {x_at, x_at + from * count - to, x_at - to * count + to};
            for (size_t j = 0; j < COUNT_OF(gaps); j++) {
                static struct arena before, a;
                memset(&before, 0x5a, sizeof before);
                a = before;
                unsigned char *const base = a.ws;
                const int same = j == 0 && from == to;
                test_context(t, "%s to %s, x at byte %zu, y at byte %zu", dtype_name(types[i]),
                             dtype_name(types[k]), x_at, gaps[j]);
                const bnorm_status status =
                    bnorm_apply(&shape, (bnorm_in){base + x_at, 0, 0},
                                (bnorm_out){base + gaps[j], 0, 0}, &affine, NULL);
                if (same)
                    check_status(t, "bnorm_apply", status, BNORM_OK);
                else
                    check_refused(t, "bnorm_apply", &before, &a, status, BNORM_BAD_OVERLAP);
            }
            const size_t beside[] = {x_at + from * count, x_at - to * count};
            for (size_t j = 0; j < COUNT_OF(beside); j++) {
                static struct arena a;
                test_context(t, "%s to %s, x at byte %zu, y at byte %zu", dtype_name(types[i]),
                             dtype_name(types[k]), x_at, beside[j]);
                check_status(t, "bnorm_apply",
                             bnorm_apply(&shape, (bnorm_in){a.ws + x_at, 0, 0},
                                         (bnorm_out){a.ws + beside[j], 0, 0}, &affine, NULL),
                             BNORM_OK);
            }
        }
}

/* Slices of one buffer share no element; where the types' sizes differ, their bytes do. */
static void test_slices(struct test *t) {
    static struct arena before, a;
    memset(&before, 0x5a, sizeof before);
    const bnorm_shape shape = {.dtype = BNORM_BF16, .n = 2, .c = 3, .hw = 5};
    const bnorm_in x = {a.ws, 6, 0};
    const bnorm_out y = {a.ws + 3 * 2, 6, 0};
    for (int y_dtype = BNORM_Y_SAME; y_dtype <= BNORM_Y_U8; y_dtype++) {
        const bnorm_affine affine = {.y_dtype = (bnorm_y_dtype)y_dtype};
        const int one_size =
            y_dtype == BNORM_Y_SAME || y_dtype == BNORM_Y_BF16 || y_dtype == BNORM_Y_F16;
        test_context(t, "bf16 slice to y_dtype %d", y_dtype);
        a = before;
        const bnorm_status status = bnorm_apply(&shape, x, y, &affine, NULL);
        if (one_size)
            check_status(t, "bnorm_apply", status, BNORM_OK);
        else
            check_refused(t, "bnorm_apply", &before, &a, status, BNORM_BAD_OVERLAP);
    }
}

/* A tensor of any type spans at most PTRDIFF_MAX bytes. */
static void test_span(struct test *t) {
    static const bnorm_dtype types[] = {BNORM_F32, BNORM_BF16, BNORM_F16, BNORM_S8, BNORM_U8};
    for (size_t i = 0; i < COUNT_OF(types); i++) {
        static struct arena before, a;
        memset(&before, 0x5a, sizeof before);
        a = before;
        const bnorm_shape shape = {.dtype = types[i], .n = 2, .c = 1, .hw = 1};
        const size_t most = PTRDIFF_MAX / dtype_size(types[i]);
        test_context(t, "%s, image_stride %zu", dtype_name(types[i]), most);
        check_refused(
            t, "bnorm_apply", &before, &a,
            bnorm_apply(&shape, (bnorm_in){a.x, 0, most}, (bnorm_out){a.y, 0, 0}, NULL, NULL),
            BNORM_BAD_STRIDE);
    }
}

/* An empty batch of any type touches nothing. */
static void test_empty(struct test *t) {
    for (int dtype = BNORM_F32; dtype <= BNORM_U8; dtype++)
        for (int y_dtype = BNORM_Y_SAME; y_dtype <= BNORM_Y_U8; y_dtype++) {
            const bnorm_shape shape = {.dtype = (bnorm_dtype)dtype, .n = 0, .c = 3, .hw = 5};
            const bnorm_affine affine = {.y_dtype = (bnorm_y_dtype)y_dtype};
            test_context(t, "dtype %d, y_dtype %d", dtype, y_dtype);
            check_status(
                t, "bnorm_apply",
                bnorm_apply(&shape, (bnorm_in){NULL, 0, 0}, (bnorm_out){NULL, 0, 0}, &affine, NULL),
                BNORM_OK);
        }
}

void add_quantized(struct suite *s) {
    static const bnorm_dtype types[] = {BNORM_S8, BNORM_U8};
    static const struct type_test tests[] = {
        {"quantized/known", test_known},
        {"quantized/turns", test_turns},
        {"quantized/elements", test_elements},
        {"quantized/residual", test_residual},
    };
    add_type_cases(s, tests, COUNT_OF(tests), types, COUNT_OF(types));
    suite_add(s, NULL, test_bad_quant, NULL, "types/errors/quant");
    suite_add(s, NULL, test_bad_types, NULL, "types/errors/dtype");
    suite_add(s, NULL, test_unsupported, NULL, "types/errors/unsupported");
    suite_add(s, NULL, test_overlap, NULL, "types/errors/overlap");
    suite_add(s, NULL, test_slices, NULL, "types/errors/slices");
    suite_add(s, NULL, test_span, NULL, "types/errors/span");
    suite_add(s, NULL, test_empty, NULL, "types/empty");
}
