/* SPDX-License-Identifier: MIT
 *
 * Elements of every type: the conversions, and bnorm_apply from every type to every type. See
 * types.h for the oracle. */
#include "types.h"

#include <math.h>
#include <stdio.h>
#include <string.h>

static const bnorm_dtype all_types[] = {BNORM_F32, BNORM_BF16, BNORM_F16, BNORM_S8, BNORM_U8};
static const bnorm_dtype float_types[] = {BNORM_F32, BNORM_BF16, BNORM_F16};
static const bnorm_dtype half_types[] = {BNORM_BF16, BNORM_F16};

static int is_whole(bnorm_dtype dtype) {
    return dtype == BNORM_S8 || dtype == BNORM_U8;
}

/* ---------------------------------------------------------------------------------------------- */
/* The harness's conversions, which all the rest is measured with                                 */

#define CODES 65536

static float half_value(bnorm_dtype dtype, uint32_t code) {
    const uint16_t element = (uint16_t)code;
    return element_get(dtype, &element, 0);
}

static uint32_t half_code(bnorm_dtype dtype, float value) {
    uint16_t element;
    element_set(dtype, &element, 0, value);
    return element;
}

static uint32_t infinity_code(bnorm_dtype dtype) {
    return dtype == BNORM_BF16 ? 0x7f80 : 0x7c00;
}

static void check_code(struct test *t, bnorm_dtype dtype, float value, uint32_t want) {
    const uint32_t code = half_code(dtype, value);
    if (code != want)
        test_fail(t, "%s: %.9g (0x%08x) became 0x%04x, expected 0x%04x", dtype_name(dtype),
                  (double)value, float_bits(value), code, want);
}

/* Value of a finite code, from the definition of the format: (-1)^s * 2^(e - bias) * 1.m */
static double defined_value(bnorm_dtype dtype, uint32_t code) {
    const int bits = dtype == BNORM_BF16 ? 7 : 10, bias = dtype == BNORM_BF16 ? 127 : 15;
    const int m = (int)(code & ((1u << bits) - 1)), e = (int)((code & 0x7fff) >> bits);
    const double size = e ? ldexp(m + (1 << bits), e - bias - bits) : ldexp(m, 1 - bias - bits);
    return code >> 15 ? -size : size;
}

/* Every code has the value that the format defines, and comes back. What lies half-way between
 * neighbours goes to the even one, its own neighbours to the nearer one; as rounding never swaps
 * two numbers, this proves it for all floats. The number after the largest one counts as if its
 * exponent existed. */
static void test_harness(struct test *t) {
    for (size_t k = 0; k < COUNT_OF(half_types); k++) {
        const bnorm_dtype dtype = half_types[k];
        const uint32_t infinity = infinity_code(dtype);
        for (uint32_t code = 0; code < CODES; code++) {
            const uint32_t size = code & 0x7fff, sign = code & 0x8000;
            const float value = half_value(dtype, code), s = sign ? -1 : 1;
            if (size > infinity) {
                if (!isnan(value) || !isnan(half_value(dtype, half_code(dtype, value))))
                    test_fail(t, "%s: 0x%04x is a NaN", dtype_name(dtype), code);
                continue;
            }
            if (size < infinity && (double)value != defined_value(dtype, code))
                test_fail(t, "%s: 0x%04x is %.9g, expected %.17g", dtype_name(dtype), code,
                          (double)value, defined_value(dtype, code));
            if (!!signbit(value) != !!sign || (size == infinity && !isinf(value)))
                test_fail(t, "%s: 0x%04x is %g", dtype_name(dtype), code, (double)value);
            check_code(t, dtype, value, code);
            if (size == infinity)
                continue;
            const double low = fabs(defined_value(dtype, code)),
                         high = defined_value(dtype, size + 1);
            const float middle = (float)((low + high) / 2);
            check_code(t, dtype, s * middle, sign | (size + (size & 1)));
            check_code(t, dtype, s * nextafterf(middle, 0), sign | size);
            check_code(t, dtype, s * nextafterf(middle, INFINITY), sign | (size + 1));
        }
        check_code(t, dtype, bits_float(NAN_BITS), 0xffff);
    }
}

/* ---------------------------------------------------------------------------------------------- */
/* The library's conversions, in the open: bnorm_apply as a copy                                  */

/* What a copy makes of a value: 1*x + 0, which has no -0, and bnorm's NaN. */
static float copied(float value) {
    return isnan(value) ? bits_float(NAN_BITS) : value == 0 ? 0 : value;
}

/* Copies dense elements, as they are, into each float type. Rows or planes of several lengths, so
 * that whole vectors and what is left over convert alike. */
static void check_copies(struct test *t, bnorm_dtype from, const void *x, size_t count) {
    static const size_t channels[] = {1, 3, 37, 1024}, blocked_channels[] = {8, 16, 32, 1024};
    const size_t c_block = type_shapes(t)->shapes[0].c_block ? 8 : 0;
    for (size_t k = 0; k < COUNT_OF(channels); k++)
        for (size_t j = 0; j < COUNT_OF(float_types); j++) {
            const size_t c = c_block ? blocked_channels[k] : channels[k], used = count / c * c;
            const bnorm_shape shape = {.layout = layout_of(t),
                                       .dtype = from,
                                       .n = 1,
                                       .c = c,
                                       .hw = count / c,
                                       .c_block = c_block};
            const bnorm_dtype to = float_types[j];
            char text[96];
            test_context(t, "copy %s to %s", shape_text(&shape, text), dtype_name(to));
            struct buffer in, out;
            buffer_new(&in, used * dtype_size(from), SIDE_END, 0);
            buffer_new(&out, used * dtype_size(to), SIDE_END, 0);
            memcpy(in.data, x, in.bytes);
            const bnorm_affine affine = {.y_dtype = y_dtype_of(to)};
            const bnorm_exec exec = {.isa = t->isa};
            check_status(t, "bnorm_apply",
                         bnorm_apply(&shape, (bnorm_in){in.data, 0, 0}, (bnorm_out){out.data, 0, 0},
                                     from == to ? NULL : &affine, &exec),
                         BNORM_OK);
            unsigned char *want = test_alloc(t, out.bytes);
            for (size_t i = 0; i < used; i++)
                element_set(to, want, i, copied(element_get(from, x, i)));
            for (size_t i = 0; i < out.bytes; i++)
                if (out.data[i] != want[i]) {
                    const size_t e = i / dtype_size(to);
                    const float source = element_get(from, x, e), y = element_get(to, out.data, e);
                    test_fail(t, "y[%zu] is %.9g (as float 0x%08x) for x = %.9g (0x%08x)", e,
                              (double)y, float_bits(y), (double)source, float_bits(source));
                }
            if (memcmp(in.data, x, in.bytes) != 0)
                test_fail(t, "x was changed");
            buffer_check(t, &out, "y");
            test_release(t);
        }
}

/* All codes of the case's type; for floats, every number where rounding to a half type turns, and
 * random bits. */
static void test_conversions(struct test *t) {
    const bnorm_dtype from = dtype_of(t);
    static uint16_t codes[CODES];
    for (uint32_t i = 0; i < CODES; i++)
        codes[i] = (uint16_t)i;
    if (from != BNORM_F32) {
        check_copies(t, from, codes, CODES);
        return;
    }
    static float values[CODES];
    for (size_t k = 0; k < COUNT_OF(half_types); k++)
        for (int step = -1; step <= 1; step++) {
            for (uint32_t i = 0; i < CODES; i++) {
                const double low = fabs(defined_value(half_types[k], i));
                const double high = defined_value(half_types[k], (i & 0x7fff) + 1);
                const uint32_t middle = float_bits((float)((low + high) / 2)) + (uint32_t)step;
                values[i] = bits_float(middle | (i & 0x8000) << 16);
            }
            check_copies(t, from, values, CODES);
        }
    for (int round = 0; round < 3; round++) {
        for (uint32_t i = 0; i < CODES; i++)
            values[i] = bits_float((uint32_t)rng_u64(&t->rng));
        check_copies(t, from, values, CODES);
    }
}

/* ---------------------------------------------------------------------------------------------- */
/* bnorm_apply                                                                                    */

/* Zero points at both ends and anywhere; scales that leave some values in range and others not. */
static bnorm_quant random_quant(struct rng *r, bnorm_dtype dtype) {
    const int low = dtype == BNORM_S8 ? -128 : 0;
    const int points[] = {low, low + 255, 0, low + (int)rng_below(r, 256)};
    bnorm_quant quant = {0, 0};
    if (!is_whole(dtype)) { /* ignored, whatever it says */
        if (rng_below(r, 2))
            quant = (bnorm_quant){-1, 1000};
        return quant;
    }
    quant.zero_point = points[rng_below(r, COUNT_OF(points))];
    if (rng_below(r, 4))
        quant.scale = rng_below(r, 2) ? .0625f : (float)rng_uniform(r, .004, .1);
    return quant;
}

/* Random options; `i` picks the activation and the type of y, so that a loop sees all pairs. */
static struct call random_typed(struct test *t, const bnorm_shape *shape, size_t i) {
    struct rng *r = &t->rng;
    struct call call = random_call(t, BNORM_OP_APPLY, shape);
    call.dense = 0;
    call.act = type_act(t, i);
    call.mask = act_has_mask(call.act) && rng_below(r, 2);
    call.y_dtype = (bnorm_y_dtype)(i % (BNORM_Y_U8 + 1));
    call.x_quant = random_quant(r, shape->dtype);
    call.residual_quant = random_quant(r, shape->dtype);
    call.y_quant = random_quant(r, y_type_of(call.y_dtype, shape->dtype));
    return call;
}

enum { CENTER = 1, SCALE = 2, SHIFT = 4 };

static void problem_new(struct test *t, struct problem *p, const struct call *call,
                        enum type_values values, unsigned given) {
    const size_t c = call->shape.c;
    typed_problem(t, p, call, values);
    p->data.mean = uniform_floats(t, (given & CENTER) != 0, c, -2, 2);
    p->data.gamma = uniform_floats(t, (given & SCALE) != 0, c, -2, 2);
    p->data.invstd = NULL;
    p->data.beta = uniform_floats(t, (given & SHIFT) != 0, c, -2, 2);
}

static unsigned mostly_given(struct rng *r) {
    return (rng_below(r, 2) ? CENTER : 0) | (rng_below(r, 8) ? SCALE : 0) |
           (rng_below(r, 8) ? SHIFT : 0);
}

static void random_problem(struct test *t, struct problem *p, const bnorm_shape *shape,
                           enum type_values values, size_t i) {
    const struct call call = random_typed(t, shape, i);
    problem_new(t, p, &call, values, mostly_given(&t->rng));
}

static void solve_and_check(struct test *t, struct problem *p) {
    typed_solve(t, p);
    random_targets(&t->rng, &p->call);
    problem_check_sides(t, p, &p->call);
}

/* ---------------------------------------------------------------------------------------------- */

/* Every shape, other options with each. */
static void test_sizes(struct test *t) {
    const struct shape_list *list = type_shapes(t);
    for (size_t s = 0; s < list->count; s++) {
        if (!test_draws(t, 4))
            continue;
        struct problem p;
        random_problem(t, &p, &list->shapes[s], TYPE_NORMAL, rng_below(&t->rng, 1000));
        solve_and_check(t, &p);
        test_release(t);
    }
}

/* Every type of y with every activation and every parameter present or absent, in every place. */
static void test_options(struct test *t) {
    const struct shape_list *list = type_shapes(t);
    size_t i = 0;
    for (int y_dtype = BNORM_Y_SAME; y_dtype <= BNORM_Y_U8; y_dtype++)
        for (size_t kind = 0; kind < ALL_ACT_KINDS; kind++)
            for (int given = 0; given < 16; given++, i++) {
                if (test_quick() ? given != (int)(i * 7 / 16 % 16) : !test_draws(t, 4))
                    continue;
                const bnorm_shape *shape = &list->shapes[i % type_few_shapes(t)];
                struct call call = random_typed(t, shape, (size_t)y_dtype);
                call.act = type_act(t, kind);
                call.residual = given & 1;
                call.mask = act_has_mask(call.act) && given % 3 == 0;
                struct problem p;
                problem_new(t, &p, &call, TYPE_NORMAL, (unsigned)given >> 1);
                typed_solve(t, &p);
                for (int target = OWN; target < NOWHERE; target++) {
                    p.call.out = (enum target)target;
                    if (targets_fit(&p.call))
                        problem_check_sides(t, &p, &p.call);
                }
                test_release(t);
            }
}

/* Elements at every distance from a cache line's start: x, the residual, y, and all together. */
static void test_misaligned(struct test *t) {
    const struct shape_list *list = type_shapes(t);
    for (size_t s = 0; s < type_few_shapes(t); s++) {
        if (!test_draws(t, 2))
            continue;
        struct problem p;
        random_problem(t, &p, &list->shapes[s], TYPE_NORMAL, s);
        p.call.residual = 1;
        typed_solve(t, &p);
        problem_check_shifts(t, &p, 32, 2);
        test_release(t);
    }
}

/* Strides by name: a channel slice of a concatenation, planes padded to 64 bytes and to an odd
 * length, (C, N, HW) order. */
static void test_strides(struct test *t) {
    const struct shape_list *list = type_shapes(t);
    for (size_t s = 0; s < list->count; s++) {
        const bnorm_shape *shape = &list->shapes[s];
        if (shape_count(shape) > 20000 || !test_draws(t, 3))
            continue;
        const size_t runs = shape_runs(shape), len = shape_len(shape), n = shape->n;
        const int rows = shape->layout == BNORM_NHWC;
        const struct {
            size_t run, image;
        } strides[] = {
            {rows ? 3 * len : 0, rows ? 0 : 3 * len * runs}, /* slice */
            {(len / 64 + 1) * 64, 0},                        /* padded runs */
            {len + 1, 0},
            {n * len, len}, /* images within runs */
            {n * len + 3, len},
            {0, len * runs + 5}, /* padded images */
        };
        struct problem p;
        random_problem(t, &p, shape, TYPE_NORMAL, s);
        typed_solve(t, &p);
        for (size_t k = 0; k < COUNT_OF(strides); k++) {
            const bnorm_exec exec = type_exec(t, s + k);
            const enum side side = (enum side)((s + k) % 2);
            struct placement at[AT_COUNT], *dense = &at[k % 2 ? AT_X : AT_OUT];
            for (size_t j = 0; j < AT_COUNT; j++)
                at[j] = (struct placement){strides[k].run, strides[k].image, side,
                                           rng_below(&t->rng, 32)};
            dense->run_stride = dense->image_stride = 0; /* one of them */
            struct call one = p.call;
            one.out = OWN;
            one.at = at;
            one.side = (int)side;
            problem_check(t, &p, &one, &exec);
        }
        test_release(t);
    }
}

/* Numbers at the ends of the type, denormals, NaNs; also with denormals flushed. */
static void test_values(struct test *t) {
    const struct shape_list *list = type_shapes(t);
    size_t i = 0;
    for (size_t s = 1; s < type_few_shapes(t); s++)
        for (int kind = TYPE_LARGE; kind < TYPE_VALUES_COUNT; kind++)
            for (int flush = 0; flush < 2; flush++)
                for (size_t k = 0; k < ALL_ACT_KINDS; k++, i++) {
                    if (!test_draws(t, 2))
                        continue;
                    struct call call =
                        random_typed(t, &list->shapes[s], i * 5 / 12 % (BNORM_Y_U8 + 1));
                    call.act = type_act(t, k);
                    call.mask &= act_has_mask(call.act);
                    struct problem p;
                    problem_new(t, &p, &call, (enum type_values)kind, mostly_given(&t->rng));
                    p.denormals = (bnorm_denormals)flush;
                    solve_and_check(t, &p);
                    test_release(t);
                }
}

/* Tensors that are shared among threads, in every way to run a call. */
static void test_exec(struct test *t) {
    const struct shape_list *list = type_shared_shapes(t);
    for (size_t s = 0; s < list->count; s++) {
        if (!test_draws(t, 2))
            continue;
        struct problem p;
        random_problem(t, &p, &list->shapes[s], TYPE_NORMAL, rng_below(&t->rng, 1000));
        typed_solve(t, &p);
        p.call.out = OWN;
        typed_check_execs(t, &p, s);
        test_release(t);
    }
}

/* Past the caches, which are smaller: the same image again and again, so that one of them
 * gives the expected bits of all. */
static void test_large(struct test *t) {
    const bnorm_dtype x_type = dtype_of(t);
    const bnorm_y_dtype y_dtypes[] = {
        BNORM_Y_SAME, x_type == BNORM_F32 || is_whole(x_type) ? BNORM_Y_BF16 : BNORM_Y_F32};
    const bnorm_shape *first = &type_shapes(t)->shapes[2];
    char text[320];
    for (size_t k = 0; k < COUNT_OF(y_dtypes); k++) {
        if ((k && is_scalar(t)) || ((k || is_scalar(t)) && !test_full())) /* scalar never streams */
            break;
        bnorm_shape shape = {.layout = layout_of(t), .dtype = x_type, .n = 1, .c = 67, .hw = 997};
        shape.c_block = first->c_block ? 16 : 0;
        struct call call = random_typed(t, &shape, (size_t)y_dtypes[k]);
        call.act = (bnorm_act){BNORM_ACT_LEAKY_RELU, .25f, 0};
        call.residual = call.mask = 0;
        call.what = "as many images as stream";
        struct problem p;
        problem_new(t, &p, &call, TYPE_NORMAL, CENTER | SCALE | SHIFT);
        typed_solve(t, &p);
        const bnorm_dtype y_type = y_type_of(call.y_dtype, x_type);
        const size_t count = shape_count(&shape), x_size = dtype_size(x_type);
        const size_t y_size = dtype_size(y_type);
        const size_t smaller = x_size < y_size ? x_size : y_size;
        shape.n = ((size_t)25 << 20) / smaller / count + 1;
        test_context(t, "%s", call_text(&call, text));
        struct buffer x, y;
        buffer_new(&x, shape.n * count * x_size, SIDE_END, 0);
        buffer_new(&y, shape.n * count * y_size, SIDE_END, 0);
        unsigned char *want = test_alloc(t, count * y_size);
        for (size_t i = 0; i < count; i++) {
            const size_t at = plain_index(&shape, i);
            const int in = at != SIZE_MAX;
            element_set(x_type, x.data, i, in ? p.data.x[at] : 0);
            element_set(y_type, want, i,
                        in                 ? p.want.y[at]
                        : is_whole(y_type) ? (float)call.y_quant.zero_point
                                           : 0);
        }
        for (size_t n = 1; n < shape.n; n++)
            memcpy(x.data + n * count * x_size, x.data, count * x_size);
        const struct operands operands = {.x = {x.data, 0, 0},
                                          .out = {y.data, 0, 0},
                                          .mean = p.data.mean,
                                          .scale = p.data.gamma,
                                          .beta = p.data.beta};
        const bnorm_exec exec = {.isa = t->isa, .memory = BNORM_MEMORY_STREAM};
        struct call_args args;
        call.shape = shape;
        call_arguments(&args, &call, &operands);
        check_status(t, "bnorm_apply", call_run(&args, &exec), BNORM_OK);
        for (size_t n = 0; n < shape.n; n++)
            if (memcmp(y.data + n * count * y_size, want, count * y_size) != 0)
                test_fail(t, "image %zu of %zu differs", n, shape.n);
        buffer_check(t, &y, "y");
        buffer_free(&x);
        buffer_free(&y);
        test_release(t);
    }
}

void add_types(struct suite *s) {
    static const struct type_test conversions[] = {{"conversions", test_conversions}};
    static const struct type_test tests[] = {
        {"apply/sizes", test_sizes},     {"apply/options", test_options},
        {"apply/strides", test_strides}, {"apply/misaligned", test_misaligned},
        {"apply/values", test_values},   {"apply/exec", test_exec},
        {"apply/large", test_large},
    };
    suite_add(s, NULL, test_harness, NULL, "types/harness");
    add_type_cases(s, conversions, COUNT_OF(conversions), float_types, COUNT_OF(float_types));
    add_type_cases(s, tests, COUNT_OF(tests), all_types, COUNT_OF(all_types));
}
