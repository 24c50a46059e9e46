/* SPDX-License-Identifier: MIT */
#include "cases.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "../src/order.h" /* where blocks end */

/* ---------------------------------------------------------------------------------------------- */
/* Shapes                                                                                         */

struct shapes {
    bnorm_shape *shapes;
    size_t count, capacity;
};

static void shapes_add(struct shapes *s, bnorm_layout layout, size_t n, size_t c, size_t hw) {
    if (s->count == s->capacity) {
        s->capacity = s->capacity ? 2 * s->capacity : 256;
        s->shapes = realloc(s->shapes, s->capacity * sizeof *s->shapes);
        if (!s->shapes)
            exit(2);
    }
    s->shapes[s->count++] = (bnorm_shape){.layout = layout, .n = n, .c = c, .hw = hw};
}

static const size_t wide_channels[] = {95,  96,  97,  127,  128,  129,  255,
                                       256, 257, 512, 1023, 1024, 1030, 2048};

/* Every channel count up to 70, then the wide ones. */
static size_t channel_count(size_t i) {
    return i < 70 ? i + 1 : wide_channels[i - 70];
}
#define CHANNEL_COUNTS (70 + COUNT_OF(wide_channels))

static const size_t plane_sizes[] = {1,   2,   3,   7,   15,  16,   17,   31,   33,   49,
                                     63,  64,  65,  100, 127, 128,  196,  255,  257,  500,
                                     511, 512, 513, 575, 577, 1000, 2047, 2048, 2049, 4200};

static void add_nhwc(struct shapes *s) {
    static const size_t few_rows[] = {1, 2, 3, 7, 15, 16, 17, 31, 33, 49};
    for (size_t i = 0; i < CHANNEL_COUNTS; i++) {
        const size_t c = channel_count(i);
        const size_t block = bnorm_block_rows(c, 0), group = BNORM_GROUP * bnorm_chains(c);
        for (size_t k = 0; k < 3; k++)
            shapes_add(s, BNORM_NHWC, 1 + (i + k) % 5, c, few_rows[(3 * i + k) % 10]);
        for (size_t k = 0; k < 3; k++)
            if (group + 1 < block - 1)
                shapes_add(s, BNORM_NHWC, 1, c, group - 1 + k);
        for (size_t k = 0; k < 3; k++)
            shapes_add(s, BNORM_NHWC, 1, c, block - 1 + k);
        shapes_add(s, BNORM_NHWC, 1 + i % 2, c, block + group + 1 + i % 7); /* a partial second */
    }
    for (size_t i = 0; i < COUNT_OF(plane_sizes); i++)
        shapes_add(s, BNORM_NHWC, 1 + i % 3, 1 + i % 6, plane_sizes[i]);
}

static void add_nchw(struct shapes *s) {
    for (size_t i = 0; i < COUNT_OF(plane_sizes); i++) {
        static const size_t channels[] = {1, 2, 3, 4, 5, 7, 16, 17};
        const size_t hw = plane_sizes[i];
        for (size_t k = 0; k < 3; k++)
            shapes_add(s, BNORM_NCHW, 1 + (i + k) % 5, channels[(i + 3 * k) % (hw < 600 ? 8 : 4)],
                       hw);
    }
    for (size_t hw = 1; hw <= 70; hw++)
        shapes_add(s, BNORM_NCHW, 1 + hw % 2, 3, hw);
    for (size_t i = 0; i < CHANNEL_COUNTS; i++) {
        static const size_t few[] = {1, 4, 15, 1, 49, 2};
        shapes_add(s, BNORM_NCHW, 1 + i % 3, channel_count(i), few[i % 6]);
        shapes_add(s, BNORM_NCHW, 1 + i % 4, channel_count(i), few[(i + 3) % 6]);
    }
    for (size_t i = 0; i < 3; i++) /* one channel more or less than fit a block of planes */
        shapes_add(s, BNORM_NCHW, 2, 3 + i, 4096 * 2 - 1 + i);
}

/* Dense layers: one position per sample, batches up to 300. */
static void add_dense_layers(struct shapes *s, bnorm_layout layout) {
    static const size_t channels[] = {1, 3, 17, 64, 100, 257, 1024};
    static const size_t samples[] = {1, 2, 5, 31, 32, 33, 255, 300};
    for (size_t i = 0; i < COUNT_OF(channels); i++)
        for (size_t k = 0; k < COUNT_OF(samples); k++)
            if (channels[i] * samples[k] <= 40000 || k % 2)
                shapes_add(s, layout, samples[k], channels[i], 1);
    shapes_add(s, layout, 4097, 2, 1);
    shapes_add(s, layout, 1300, 8, 1);
}

const struct shape_list *edge_shapes(bnorm_layout layout) {
    static struct shape_list lists[2];
    struct shape_list *list = &lists[layout];
    if (!list->count) {
        struct shapes s = {0};
        if (layout == BNORM_NHWC)
            add_nhwc(&s);
        else
            add_nchw(&s);
        add_dense_layers(&s, layout);
        list->shapes = s.shapes; /* kept for the whole run */
        list->count = s.count;
    }
    return list;
}

#define SHAPE(lay, samples, channels, positions)                                                   \
    { .layout = lay, .n = samples, .c = channels, .hw = positions }

const struct shape_list *small_shapes(bnorm_layout layout) {
    static const bnorm_shape nhwc[] = {
        SHAPE(BNORM_NHWC, 1, 1, 1),  SHAPE(BNORM_NHWC, 3, 1, 37),  SHAPE(BNORM_NHWC, 2, 3, 50),
        SHAPE(BNORM_NHWC, 1, 8, 9),  SHAPE(BNORM_NHWC, 2, 16, 17), SHAPE(BNORM_NHWC, 2, 19, 5),
        SHAPE(BNORM_NHWC, 1, 37, 6), SHAPE(BNORM_NHWC, 9, 64, 1),  SHAPE(BNORM_NHWC, 3, 83, 4),
    };
    static const bnorm_shape nchw[] = {
        SHAPE(BNORM_NCHW, 1, 1, 1),  SHAPE(BNORM_NCHW, 3, 2, 37), SHAPE(BNORM_NCHW, 2, 3, 50),
        SHAPE(BNORM_NCHW, 1, 5, 64), SHAPE(BNORM_NCHW, 2, 3, 83), SHAPE(BNORM_NCHW, 2, 33, 5),
        SHAPE(BNORM_NCHW, 7, 21, 1), SHAPE(BNORM_NCHW, 2, 3, 16), SHAPE(BNORM_NCHW, 1, 2, 131),
    };
    static const struct shape_list lists[] = {{nhwc, COUNT_OF(nhwc)}, {nchw, COUNT_OF(nchw)}};
    return &lists[layout];
}

const struct shape_list *value_shapes(bnorm_layout layout) {
    static const bnorm_shape nhwc[] = {
        SHAPE(BNORM_NHWC, 2, 3, 5000), SHAPE(BNORM_NHWC, 3, 67, 700), SHAPE(BNORM_NHWC, 100, 16, 1),
        SHAPE(BNORM_NHWC, 2, 5, 9),    SHAPE(BNORM_NHWC, 1, 7, 1),
    };
    static const bnorm_shape nchw[] = {
        SHAPE(BNORM_NCHW, 4, 3, 4500), SHAPE(BNORM_NCHW, 32, 1, 3136), SHAPE(BNORM_NCHW, 3, 20, 49),
        SHAPE(BNORM_NCHW, 40, 16, 1),  SHAPE(BNORM_NCHW, 2, 5, 9),     SHAPE(BNORM_NCHW, 1, 7, 1),
    };
    static const struct shape_list lists[] = {{nhwc, COUNT_OF(nhwc)}, {nchw, COUNT_OF(nchw)}};
    return &lists[layout];
}
#undef SHAPE

const char *layout_name(bnorm_layout layout) {
    return layout == BNORM_NHWC ? "nhwc" : "nchw";
}

const char *shape_text(const bnorm_shape *shape, char text[96]) {
    snprintf(text, 96, "%s %s n=%zu c=%zu hw=%zu block=%zu", layout_name(shape->layout),
             dtype_name(shape->dtype), shape->n, shape->c, shape->hw, shape->c_block);
    return text;
}

const bnorm_isa *scalar_isa(void) {
    return bnorm_isa_find("scalar");
}

int is_scalar(const struct test *t) {
    return t->isa == scalar_isa();
}

static const bnorm_layout layouts[] = {BNORM_NHWC, BNORM_NCHW};

void add_layout_cases(struct suite *s, const struct layout_case *cases, size_t count) {
    for (size_t layout = 0; layout < COUNT_OF(layouts); layout++)
        for (size_t i = 0; i < count; i++) {
            char name[96];
            snprintf(name, sizeof name, "%s/%s/f32/%%s/%s", cases[i].family,
                     layout_name(layouts[layout]), cases[i].name);
            suite_add_per_isa(s, cases[i].run, &layouts[layout], name);
        }
}

bnorm_layout layout_of(const struct test *t) {
    return *(const bnorm_layout *)t->param;
}

/* ---------------------------------------------------------------------------------------------- */
/* Values                                                                                         */

const char *values_name(enum values kind) {
    static const char *const names[VALUES_COUNT] = {
        "normal", "mean-1e6", "outlier", "half-constant", "constant", "huge", "tiny", "denormal"};
    return names[kind];
}

void fill_uniform(struct rng *r, float *x, size_t count, double low, double high) {
    for (size_t i = 0; i < count; i++)
        x[i] = (float)rng_uniform(r, low, high);
}

float *uniform_floats(struct test *t, int wanted, size_t count, double low, double high) {
    if (!wanted)
        return NULL;
    float *x = test_floats(t, count);
    fill_uniform(&t->rng, x, count, low, high);
    return x;
}

float *copy_floats(struct test *t, const float *x, size_t count) {
    float *copy = test_floats(t, count);
    memcpy(copy, x, count * sizeof *x);
    return copy;
}

/* Element q, in order of images and positions, of a channel with the given mean and deviation. */
static double value_of(struct rng *r, enum values kind, size_t q, size_t n, double mean,
                       double deviation) {
    const double normal = rng_normal(r);
    switch (kind) {
    case VALUES_MEAN_1E6:
        return 1e6 + normal;
    case VALUES_OUTLIER:
        return q == 0 ? mean + 1e6 * deviation : mean + deviation * normal;
    case VALUES_HALF_CONSTANT:
        return q < n / 2 ? mean : mean + deviation * normal;
    case VALUES_CONSTANT:
        return mean * 1e6 / 3; /* of many bits, so that sums round where they may */
    case VALUES_HUGE:
        return 3e37 * normal;
    case VALUES_TINY:
        return 1e-30 * normal;
    case VALUES_DENORMAL:
        return q % 5 == 0 ? 0.0 : q % 5 == 1 ? -0.0 : 1e-40 * normal;
    case VALUES_NORMAL:
    case VALUES_COUNT:
        break;
    }
    return mean + deviation * normal;
}

void fill_values(struct rng *r, const bnorm_shape *shape, enum values kind, float *x) {
    const size_t n = shape->n * shape->hw;
    for (size_t c = 0; c < shape->c; c++) {
        const double mean = rng_uniform(r, -2, 2), deviation = rng_uniform(r, .5, 2);
        for (size_t q = 0; q < n; q++) {
            const size_t image = q / shape->hw, p = q % shape->hw;
            const size_t i = shape->layout == BNORM_NHWC ? (image * shape->hw + p) * shape->c + c
                                                         : (image * shape->c + c) * shape->hw + p;
            x[i] = (float)value_of(r, kind, q, n, mean, deviation);
        }
    }
}

bnorm_act random_act(struct rng *r, bnorm_act_kind kind) {
    bnorm_act act = {.kind = kind};
    if (kind == BNORM_ACT_CLAMP) {
        act.a = rng_below(r, 2) ? 0 : (float)rng_uniform(r, -1.5, -.5);
        act.b = (float)rng_uniform(r, .5, 1.5);
    } else if (kind == BNORM_ACT_LEAKY_RELU) {
        act.a = (float)rng_uniform(r, .01, .5);
    }
    return act;
}

double *test_doubles(struct test *t, size_t count) {
    return test_alloc(t, count * sizeof(double));
}

double *to_double(struct test *t, const float *x, size_t count) {
    if (!x)
        return NULL;
    double *d = test_doubles(t, count);
    for (size_t i = 0; i < count; i++)
        d[i] = (double)x[i];
    return d;
}

/* ---------------------------------------------------------------------------------------------- */
/* The buffers of one call                                                                        */

struct placement random_placement(struct rng *r, const bnorm_shape *shape, enum side side) {
    struct placement p = {.side = side, .shift = rng_below(r, 2) ? rng_below(r, 16) : 0};
    const size_t runs = shape_runs(shape), len = shape_len(shape);
    switch (rng_below(r, 7)) {
    case 0:
        p.run_stride = len + 1 + rng_below(r, 20);
        break;
    case 1:
        p.image_stride = len * runs + 1 + rng_below(r, 40);
        break;
    case 2:
        p.run_stride = len + 1 + rng_below(r, 20);
        p.image_stride = p.run_stride * runs + rng_below(r, 40);
        break;
    case 3: /* images between the runs, as in (C, N, H, W) */
        p.image_stride = len + rng_below(r, 5);
        p.run_stride = p.image_stride * shape->n + rng_below(r, 5);
        break;
    case 4: /* dense, said in full */
        p.run_stride = len;
        p.image_stride = len * runs;
        break;
    default: /* dense */
        break;
    }
    return p;
}

void fixture_start(struct fixture *f, struct test *t, enum side side) {
    f->t = t;
    f->side = side;
    f->count = 0;
}

static struct item *item_new(struct fixture *f, const char *name, const bnorm_shape *shape) {
    if (f->count == COUNT_OF(f->items))
        test_fail(f->t, "too many buffers in a fixture: raise the size of `items`");
    struct item *item = &f->items[f->count++];
    item->name = name;
    item->shape = *shape;
    item->unchanged = NULL;
    return item;
}

struct tensor *fixture_tensor(struct fixture *f, const char *name, const bnorm_shape *shape,
                              const struct placement *placement, const float *dense) {
    struct item *item = item_new(f, name, shape);
    const struct placement p =
        placement ? *placement : random_placement(&f->t->rng, shape, f->side);
    tensor_new(&item->tensor, shape, &p);
    if (dense)
        tensor_put(&item->tensor, shape, dense);
    item->unchanged = dense;
    return &item->tensor;
}

static struct tensor *fixture_array(struct fixture *f, const char *name, const float *values,
                                    size_t count) {
    const bnorm_shape shape = {.n = 1, .c = count, .hw = 1};
    struct placement p = {.side = f->side};
    p.shift = rng_below(&f->t->rng, 2) ? rng_below(&f->t->rng, 16) : 0;
    return fixture_tensor(f, name, &shape, &p, values);
}

const float *fixture_input(struct fixture *f, const char *name, const float *values, size_t count) {
    return fixture_array(f, name, values, count)->data;
}

float *fixture_output(struct fixture *f, const char *name, const float *values, size_t count) {
    struct tensor *tensor = fixture_array(f, name, values, count);
    fixture_writes(f, tensor);
    return tensor->data;
}

unsigned char *fixture_bytes(struct fixture *f, const char *name, size_t bytes) {
    const bnorm_shape empty = {.n = 0, .c = 1, .hw = 1};
    struct item *item = item_new(f, name, &empty);
    item->tensor.span = 0;
    buffer_new(&item->tensor.buffer, bytes, f->side, rng_below(&f->t->rng, 64));
    return item->tensor.buffer.data;
}

void *fixture_workspace(struct fixture *f, size_t bytes) {
    return fixture_bytes(f, "workspace", bytes);
}

void fixture_writes(struct fixture *f, const struct tensor *tensor) {
    for (size_t i = 0; i < f->count; i++)
        if (&f->items[i].tensor == tensor)
            f->items[i].unchanged = NULL;
}

void fixture_check(struct fixture *f) {
    for (size_t i = 0; i < f->count; i++) {
        const struct item *item = &f->items[i];
        tensor_check_gaps(f->t, &item->tensor, &item->shape, item->name);
        if (!item->unchanged)
            continue;
        const size_t count = shape_count(&item->shape);
        const bnorm_dtype dtype = item->tensor.dtype;
        float *got = test_floats(f->t, 2 * count), *rounded = got + count;
        tensor_get(&item->tensor, &item->shape, got);
        for (size_t k = 0; dtype != BNORM_F32 && k < count; k++)
            rounded[k] = element_round(dtype, item->unchanged[k]);
        check_bits(f->t, item->name, got, dtype == BNORM_F32 ? item->unchanged : rounded, count);
    }
}

void fixture_end(struct fixture *f) {
    for (size_t i = 0; i < f->count; i++)
        buffer_free(&f->items[i].tensor.buffer);
    f->count = 0;
}
