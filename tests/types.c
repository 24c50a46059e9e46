/* SPDX-License-Identifier: MIT */
#include "types.h"

#include <float.h>
#include <math.h>
#include <stdio.h>

/* ---------------------------------------------------------------------------------------------- */
/* Cases                                                                                          */

#define TYPES 5

struct type_case {
    bnorm_layout layout; /* first, for layout_of() */
    int blocked;
    bnorm_dtype dtype;
};

static const struct type_case *case_of(const struct test *t) {
    return t->param;
}

bnorm_dtype dtype_of(const struct test *t) {
    return case_of(t)->dtype;
}

void add_type_cases(struct suite *s, const struct type_test *tests, size_t count,
                    const bnorm_dtype *types, size_t type_count) {
    static const char *const names[] = {"nhwc", "nchw", "blocked"};
    static struct type_case cases[COUNT_OF(names)][TYPES];
    for (size_t k = 0; k < COUNT_OF(names); k++)
        for (size_t i = 0; i < type_count; i++) {
            struct type_case *c = &cases[k][types[i]];
            *c = (struct type_case){k ? BNORM_NCHW : BNORM_NHWC, k == 2, types[i]};
            for (size_t j = 0; j < count; j++) {
                char name[96];
                snprintf(name, sizeof name, "types/%s/%s/%%s/%s", names[k], dtype_name(types[i]),
                         tests[j].name);
                suite_add_per_isa(s, tests[j].run, c, name);
            }
        }
}

bnorm_shape shape_with(const bnorm_shape *shape, bnorm_dtype dtype) {
    bnorm_shape other = *shape;
    other.dtype = dtype;
    return other;
}

bnorm_y_dtype y_dtype_of(bnorm_dtype dtype) {
    return (bnorm_y_dtype)(dtype + BNORM_Y_F32);
}

bnorm_dtype y_type_of(bnorm_y_dtype y_dtype, bnorm_dtype same) {
    return y_dtype == BNORM_Y_SAME ? same : (bnorm_dtype)(y_dtype - BNORM_Y_F32);
}

/* n, c, hw */
static const size_t few[][3] = {
    {1, 1, 1}, {3, 1, 37}, {2, 3, 50}, {1, 8, 9}, {2, 17, 16}, {1, 37, 7}, {9, 64, 1}, {2, 33, 5},
};

static const size_t many[][3] = {
    {5, 1, 7},     {2, 1, 49},   {1, 1, 113},   {2, 1, 2100},  {7, 3, 1},    {3, 3, 7},
    {1, 3, 49},    {2, 3, 113},  {2, 3, 2100},  {13, 8, 1},    {2, 8, 7},    {3, 8, 49},
    {1, 8, 113},   {1, 8, 2100}, {300, 17, 1},  {2, 17, 7},    {1, 17, 49},  {3, 17, 113},
    {600, 64, 1},  {3, 64, 7},   {2, 64, 49},   {1, 64, 113},  {1, 64, 300}, {31, 100, 1},
    {1, 100, 7},   {2, 100, 49}, {1, 100, 113}, {70, 1030, 1}, {3, 1030, 7}, {1, 1030, 49},
    {1, 1, 17000}, {1, 2, 8200}, {1, 3, 5600},
};

#define SHAPES (COUNT_OF(few) + COUNT_OF(many))

size_t type_few_shapes(const struct test *t) {
    (void)t;
    return COUNT_OF(few);
}

const struct shape_list *type_shapes(const struct test *t) {
    static bnorm_shape shapes[SHAPES];
    static const struct shape_list list = {shapes, SHAPES};
    static const size_t blocks[] = {4, 8, 16, 32};
    const struct type_case *c = case_of(t);
    for (size_t i = 0; i < SHAPES; i++) {
        const size_t *s = i < COUNT_OF(few) ? few[i] : many[i - COUNT_OF(few)];
        shapes[i] = (bnorm_shape){
            .layout = c->layout,
            .dtype = c->dtype,
            .n = s[0],
            .c = s[1],
            .hw = s[2],
            .c_block = c->blocked ? blocks[i % COUNT_OF(blocks)] : 0,
        };
    }
    return &list;
}

/* At least 256 KiB each. */
const struct shape_list *type_shared_shapes(const struct test *t) {
    static bnorm_shape shapes[3];
    static const struct shape_list list = {shapes, COUNT_OF(shapes)};
    const struct type_case *c = case_of(t);
    const size_t images = 4 / dtype_size(c->dtype);
    shapes[0] = (bnorm_shape){.n = images, .c = 3, .hw = 24001, .c_block = 4};
    shapes[1] = (bnorm_shape){.n = 3 * images, .c = 67, .hw = 400, .c_block = 8};
    shapes[2] = (bnorm_shape){.n = 70 * images, .c = 1030, .hw = 1, .c_block = 16};
    for (size_t i = 0; i < list.count; i++) {
        shapes[i].layout = c->layout;
        shapes[i].dtype = c->dtype;
        shapes[i].c_block = c->blocked ? shapes[i].c_block : 0;
    }
    return &list;
}

/* ---------------------------------------------------------------------------------------------- */
/* Data                                                                                           */

const char *type_values_name(enum type_values kind) {
    static const char *const names[] = {"normal", "offset", "large", "tiny", "codes", "raw"};
    return names[kind];
}

/* The element whose bits are the lowest ones of `bits`. */
static float element_of(bnorm_dtype dtype, uint64_t bits) {
    const uint32_t low = (uint32_t)bits;
    const uint16_t half = (uint16_t)bits;
    const uint8_t byte = (uint8_t)bits;
    switch (dtype_size(dtype)) {
    case 4:
        return element_get(dtype, &low, 0);
    case 2:
        return element_get(dtype, &half, 0);
    default:
        return element_get(dtype, &byte, 0);
    }
}

static float largest(bnorm_dtype dtype) {
    return dtype == BNORM_F32 ? FLT_MAX : dtype == BNORM_BF16 ? bits_float(0x7f7f0000u) : 65504.0f;
}

static float tiniest(bnorm_dtype dtype) {
    return dtype == BNORM_F32 ? 0x1p-149f : dtype == BNORM_BF16 ? 0x1p-133f : 0x1p-24f;
}

static float value_of(struct rng *r, bnorm_dtype dtype, enum type_values kind, double mean,
                      double deviation) {
    float v;
    switch (kind) {
    case TYPE_OFFSET:
        return element_round(dtype, (float)(100 + rng_normal(r)));
    case TYPE_LARGE:
        v = largest(dtype);
        return rng_below(r, 4) ? element_round(dtype, (float)rng_uniform(r, .5, 1) * v) : v;
    case TYPE_TINY:
        v = (float)rng_below(r, 128) * tiniest(dtype);
        return rng_below(r, 2) ? -v : v;
    case TYPE_CODES:
        do
            v = element_of(dtype, rng_u64(r));
        while (!isfinite(v));
        return v;
    case TYPE_RAW:
        return element_of(dtype, rng_u64(r));
    case TYPE_NORMAL:
    case TYPE_VALUES_COUNT:
        break;
    }
    return element_round(dtype, (float)(mean + deviation * rng_normal(r)));
}

float *type_floats(struct test *t, const bnorm_shape *shape, enum type_values kind) {
    const size_t count = shape_count(shape);
    const int whole = shape->dtype == BNORM_S8 || shape->dtype == BNORM_U8;
    float *x = test_floats(t, count);
    for (size_t i = 0; i < count; i++) {
        const size_t c = shape_channel(shape, i);
        const double mean = (double)(c * 7 % 5) - 2, deviation = .5 + (double)(c * 5 % 7) / 4;
        x[i] = value_of(&t->rng, shape->dtype, whole ? TYPE_RAW : kind, mean, deviation);
    }
    return x;
}

int act_usable(const bnorm_isa *isa, bnorm_act_kind kind) {
    const bnorm_shape shape = {.n = 1, .c = 1, .hw = 1};
    const bnorm_affine affine = {.act = {.kind = kind, .a = 0, .b = 1}};
    const bnorm_exec exec = {.isa = isa};
    float v = 0;
    return bnorm_apply(&shape, (bnorm_in){&v, 0, 0}, (bnorm_out){&v, 0, 0}, &affine, &exec) !=
           BNORM_UNSUPPORTED;
}

bnorm_act type_act(struct test *t, size_t i) {
    bnorm_act_kind kind = (bnorm_act_kind)(i % ALL_ACT_KINDS);
    if (!act_usable(t->isa, kind))
        kind = (bnorm_act_kind)(i % (BNORM_ACT_HARD_SWISH + 1));
    bnorm_act act = random_act(&t->rng, kind);
    if (kind == BNORM_ACT_ELU)
        act.a = (float)rng_uniform(&t->rng, .5, 1.5);
    return act;
}

static float scale_of(bnorm_quant quant) {
    return quant.scale == 0 ? 1 : quant.scale;
}

/* The difference and its product are exact in double. */
float dequantized(bnorm_quant quant, float element) {
    return (float)(((double)element - quant.zero_point) * (double)scale_of(quant));
}

/* The quotient of two floats is rounded to a float: rounding it to double before changes nothing.
 */
float quantized(bnorm_dtype dtype, bnorm_quant quant, float value) {
    const double low = dtype == BNORM_S8 ? -128 : 0, high = low + 255;
    if (isnan(value))
        return (float)quant.zero_point;
    const float steps = (float)((double)value / (double)scale_of(quant));
    return (float)fmin(fmax(rint((double)steps) + quant.zero_point, low), high);
}

bnorm_exec type_exec(struct test *t, size_t i) {
    static const struct {
        bnorm_parallel parallel;
        size_t threads;
    } ways[] = {{NULL, 0},
                {parallel_reversed, 2},
                {parallel_shuffled, 0},
                {parallel_threads, 4},
                {parallel_serial, 7}};
    const size_t way = i / 4 % COUNT_OF(ways);
    return (bnorm_exec){
        .parallel = ways[way].parallel,
        .pool = ways[way].parallel == parallel_shuffled ? &t->rng : NULL,
        .isa = t->isa,
        .memory = (bnorm_memory)(i % 4),
        .threads = ways[way].threads,
    };
}

void typed_problem(struct test *t, struct problem *p, const struct call *call,
                   enum type_values values) {
    bnorm_shape plain = plain_shape(&call->shape);
    plain.dtype = call->shape.dtype;
    *p = (struct problem){.call = *call};
    p->call.what = type_values_name(values);
    data_new(t, &p->data, &call->shape);
    p->data.x = type_floats(t, &plain, values);
    p->data.residual = type_floats(t, &plain, values);
    p->data.dy = type_floats(t, &plain, values == TYPE_OFFSET ? TYPE_NORMAL : values);
}

static float *widened(struct test *t, bnorm_quant quant, const float *x, size_t count) {
    float *wide = test_floats(t, count);
    for (size_t i = 0; i < count; i++)
        wide[i] = dequantized(quant, x[i]);
    return wide;
}

void typed_solve(struct test *t, struct problem *p) {
    const bnorm_exec exec = {.isa = t->isa, .denormals = p->denormals};
    const size_t count = data_count(&p->data);
    const bnorm_dtype dtype = p->call.shape.dtype;
    const int apply = p->call.op == BNORM_OP_APPLY;
    const bnorm_dtype y_type = apply ? y_type_of(p->call.y_dtype, dtype) : dtype;
    struct call call = on_floats(&p->call);
    struct data data = p->data;
    if (dtype > BNORM_F16) {
        data.x = widened(t, call.x_quant, data.x, count);
        data.residual = widened(t, call.residual_quant, data.residual, count);
    }
    if (call.given_y && call.act.kind == BNORM_ACT_CLAMP) {
        /* What is clamped is stored as the rounded limit. */
        call.act.a = element_round(dtype, call.act.a);
        call.act.b = element_round(dtype, call.act.b);
    }
    p->want = run_call(t, &call, &data, &exec);
    if (y_type > BNORM_F16)
        for (size_t i = 0; i < count; i++)
            p->want.y[i] = quantized(y_type, p->call.y_quant, p->want.y[i]);
    else
        round_results(&p->want, &data, y_type);
}

void typed_check_execs(struct test *t, const struct problem *p, size_t i) {
    for (struct call one = p->call; i < 20; i += 3)
        if (test_full() || i % 5 < 2) {
            const bnorm_exec exec = type_exec(t, i);
            one.side = (int)(i % 2);
            problem_check(t, p, &one, &exec);
        }
}

void check_bytes(struct test *t, const char *what, const unsigned char *got,
                 const unsigned char *want, size_t count) {
    for (size_t i = 0; i < count; i++)
        if (got[i] != want[i])
            test_fail(t, "%s: byte %zu of %zu is 0x%02x, expected 0x%02x", what, i, count, got[i],
                      want[i]);
}
