/* SPDX-License-Identifier: MIT
 *
 * Refusals: every status of bnorm.h is provoked for every function that can return it, and all
 * memory of the call is byte-identical afterwards. Also what must not be refused: optional
 * pointers, in place, slices of one buffer. */
#include <limits.h>
#include <math.h>
#include <stdio.h>
#include <string.h>
#include "types.h"
#include "../src/workspace.h"

enum { N = 2, C = 6, HW = 3, COUNT = N * C * HW, ROOM = 512, PARAM_ROOM = 32, WS_ROOM = 1 << 16 };

enum view_id { X, Y, DY, DX, RESIDUAL, DRESIDUAL, FORWARD_Y, VIEWS };

enum param_id {
    GAMMA,
    BETA,
    MEAN,
    VAR,
    SAVE_MEAN,
    SAVE_INVSTD,
    SAVE_MEAN_LO,
    SAVE_VAR,
    NEW_MEAN,
    NEW_VAR,
    DGAMMA,
    DBETA,
    CENTER,
    SCALE,
    SHIFT,
    BIAS,
    OUT_BIAS,
    PARAMS
};

static const char *const view_names[VIEWS] = {"x", "y", "dy", "dx", "residual", "dresidual", "y"};
static const char *const param_names[PARAMS] = {
    "gamma",        "beta",     "mean",     "var",     "save_mean", "save_invstd",
    "save_mean_lo", "save_var", "new_mean", "new_var", "dgamma",    "dbeta",
    "center",       "scale",    "shift",    "bias",    "out_bias"};

#define BIT(i) (1u << (i))

/* All memory that a call can reach; compared as a whole. */
struct memory {
    float view[VIEWS][ROOM];
    float param[PARAMS][PARAM_ROOM];
    unsigned char ws[WS_ROOM];
    unsigned char after_ws[ROOM * sizeof(float)];
};

struct view {
    float *data;
    size_t run_stride, image_stride;
};

struct attempt;

struct function {
    const char *name;
    bnorm_status (*invoke)(const struct attempt *k);
    int op; /* of bnorm_workspace(), or -1 */
    /* Bit sets of enum view_id and enum param_id. */
    unsigned views_in, views_out, views_required;
    unsigned params_in, params_out, params_required;
};

/* The arguments of one call, whatever the function. */
struct attempt {
    struct test *t;
    const struct function *function;
    struct memory *memory, *before;
    int no_shape, no_options, no_exec;
    bnorm_shape shape;
    bnorm_exec exec;
    struct view view[VIEWS];
    float *param[PARAMS];
    bnorm_act act;
    double eps, rate;
    bnorm_variance variance;
    bnorm_conv conv;
    bnorm_y_dtype y_dtype;
    bnorm_quant x_quant, residual_quant, y_quant;
    void *ws;
    size_t ws_size;
};

static bnorm_in in(const struct attempt *k, enum view_id id) {
    const struct view *v = &k->view[id];
    return (bnorm_in){v->data, v->run_stride, v->image_stride};
}

static bnorm_out out(const struct attempt *k, enum view_id id) {
    const struct view *v = &k->view[id];
    return (bnorm_out){v->data, v->run_stride, v->image_stride};
}

static const bnorm_shape *shape_of(const struct attempt *k) {
    return k->no_shape ? NULL : &k->shape;
}

static const bnorm_exec *exec_of(const struct attempt *k) {
    return k->no_exec ? NULL : &k->exec;
}

static bnorm_status invoke_apply(const struct attempt *k) {
    const bnorm_affine affine = {.center = k->param[CENTER],
                                 .scale = k->param[SCALE],
                                 .shift = k->param[SHIFT],
                                 .residual = in(k, RESIDUAL),
                                 .act = k->act,
                                 .y_dtype = k->y_dtype,
                                 .x_quant = k->x_quant,
                                 .residual_quant = k->residual_quant,
                                 .y_quant = k->y_quant};
    return bnorm_apply(shape_of(k), in(k, X), out(k, Y), k->no_options ? NULL : &affine,
                       exec_of(k));
}

static bnorm_status invoke_moments(const struct attempt *k) {
    return bnorm_moments(shape_of(k), in(k, X), k->param[MEAN], k->param[VAR], k->ws, k->ws_size,
                         exec_of(k));
}

static bnorm_status invoke_train(const struct attempt *k) {
    const bnorm_train train = {
        .gamma = k->param[GAMMA],
        .beta = k->param[BETA],
        .eps = k->eps,
        .running = {.mean = k->param[MEAN],
                    .var = k->param[VAR],
                    .rate = k->rate,
                    .variance = k->variance,
                    .new_mean = k->param[NEW_MEAN],
                    .new_var = k->param[NEW_VAR]},
        .save_mean = k->param[SAVE_MEAN],
        .save_invstd = k->param[SAVE_INVSTD],
        .save_var = k->param[SAVE_VAR],
        .save_mean_lo = k->param[SAVE_MEAN_LO],
        .residual = in(k, RESIDUAL),
        .act = k->act,
    };
    return bnorm_forward_train(shape_of(k), in(k, X), out(k, Y), k->no_options ? NULL : &train,
                               k->ws, k->ws_size, exec_of(k));
}

static bnorm_status invoke_backward(const struct attempt *k) {
    const bnorm_grad grad = {
        .gamma = k->param[GAMMA],
        .beta = k->param[BETA],
        .save_mean = k->param[SAVE_MEAN],
        .save_invstd = k->param[SAVE_INVSTD],
        .save_var = k->param[SAVE_VAR],
        .eps = k->eps,
        .save_mean_lo = k->param[SAVE_MEAN_LO],
        .act = k->act,
        .residual = in(k, RESIDUAL),
        .y = in(k, FORWARD_Y),
        .dresidual = out(k, DRESIDUAL),
        .dgamma = k->param[DGAMMA],
        .dbeta = k->param[DBETA],
    };
    return bnorm_backward(shape_of(k), in(k, X), in(k, DY), out(k, DX),
                          k->no_options ? NULL : &grad, k->ws, k->ws_size, exec_of(k));
}

static bnorm_status invoke_fold(const struct attempt *k) {
    return bnorm_fold(k->shape.c, k->param[GAMMA], k->param[BETA], k->param[MEAN], k->param[VAR],
                      k->eps, k->param[SCALE], k->param[SHIFT]);
}

static bnorm_status invoke_fold_conv(const struct attempt *k) {
    return bnorm_fold_conv(k->no_options ? NULL : &k->conv, k->param[GAMMA], k->param[BETA],
                           k->param[MEAN], k->param[VAR], k->eps, k->view[X].data, k->param[BIAS],
                           k->view[Y].data, k->param[OUT_BIAS]);
}

static const struct function apply = {
    .name = "apply",
    .invoke = invoke_apply,
    .op = -1,
    .views_in = BIT(X) | BIT(RESIDUAL),
    .views_out = BIT(Y),
    .views_required = BIT(X) | BIT(Y),
    .params_in = BIT(CENTER) | BIT(SCALE) | BIT(SHIFT),
};

static const struct function moments = {
    .name = "moments",
    .invoke = invoke_moments,
    .op = BNORM_OP_MOMENTS,
    .views_in = BIT(X),
    .views_required = BIT(X),
    .params_out = BIT(MEAN) | BIT(VAR),
};

/* MEAN and VAR are the running statistics. */
static const struct function train = {
    .name = "forward_train",
    .invoke = invoke_train,
    .op = BNORM_OP_FORWARD_TRAIN,
    .views_in = BIT(X) | BIT(RESIDUAL),
    .views_out = BIT(Y),
    .views_required = BIT(X) | BIT(Y),
    .params_in = BIT(GAMMA) | BIT(BETA),
    .params_out = BIT(MEAN) | BIT(VAR) | BIT(SAVE_MEAN) | BIT(SAVE_INVSTD) | BIT(SAVE_MEAN_LO) |
                  BIT(SAVE_VAR),
};

/* Running statistics that go elsewhere. */
static const struct function train_elsewhere = {
    .name = "forward_train-elsewhere",
    .invoke = invoke_train,
    .op = BNORM_OP_FORWARD_TRAIN,
    .views_in = BIT(X),
    .views_out = BIT(Y),
    .views_required = BIT(X) | BIT(Y),
    .params_in = BIT(MEAN) | BIT(VAR),
    .params_out = BIT(NEW_MEAN) | BIT(NEW_VAR) | BIT(SAVE_MEAN),
    .params_required = BIT(MEAN) | BIT(VAR),
};

#define BACKWARD(function_name, forward_tensor)                                                    \
    {                                                                                              \
        .name = function_name, .invoke = invoke_backward, .op = BNORM_OP_BACKWARD,                 \
        .views_in = BIT(X) | BIT(DY) | BIT(forward_tensor), .views_out = BIT(DX) | BIT(DRESIDUAL), \
        .views_required = BIT(X) | BIT(DY),                                                        \
        .params_in =                                                                               \
            BIT(GAMMA) | BIT(BETA) | BIT(SAVE_MEAN) | BIT(SAVE_INVSTD) | BIT(SAVE_MEAN_LO),        \
        .params_out = BIT(DGAMMA) | BIT(DBETA),                                                    \
        .params_required = BIT(SAVE_MEAN) | BIT(SAVE_INVSTD),                                      \
    }

/* From a variance. */
static const struct function backward_var = {
    .name = "backward-var",
    .invoke = invoke_backward,
    .op = BNORM_OP_BACKWARD,
    .views_in = BIT(X) | BIT(DY),
    .views_out = BIT(DX),
    .views_required = BIT(X) | BIT(DY),
    .params_in = BIT(GAMMA) | BIT(SAVE_MEAN) | BIT(SAVE_VAR),
    .params_out = BIT(DGAMMA) | BIT(DBETA),
    .params_required = BIT(SAVE_MEAN) | BIT(SAVE_VAR),
};

static const struct function backward_residual = BACKWARD("backward-residual", RESIDUAL);
static const struct function backward_y = BACKWARD("backward-y", FORWARD_Y);

static const struct function fold = {
    .name = "fold",
    .invoke = invoke_fold,
    .op = -1,
    .params_in = BIT(GAMMA) | BIT(BETA) | BIT(MEAN) | BIT(VAR),
    .params_out = BIT(SCALE) | BIT(SHIFT),
    .params_required = BIT(MEAN) | BIT(VAR) | BIT(SCALE),
};

/* X and Y are the weights: 6 out, 4/2 in, 3 kernel positions = COUNT. */
static const struct function fold_conv = {
    .name = "fold_conv",
    .invoke = invoke_fold_conv,
    .op = -1,
    .views_in = BIT(X),
    .views_out = BIT(Y),
    .views_required = BIT(X) | BIT(Y),
    .params_in = BIT(GAMMA) | BIT(BETA) | BIT(MEAN) | BIT(VAR) | BIT(BIAS),
    .params_out = BIT(OUT_BIAS),
    .params_required = BIT(MEAN) | BIT(VAR) | BIT(OUT_BIAS),
};

static unsigned views_of(const struct attempt *k) {
    return k->function->views_in | k->function->views_out;
}

static unsigned params_of(const struct attempt *k) {
    return k->function->params_in | k->function->params_out;
}

/* Makes *k a valid call of its function on fresh memory. */
static void fresh(struct attempt *k, bnorm_layout layout) {
    struct memory *m = k->memory;
    memset(m, 0xa5, sizeof *m);
    for (size_t i = 0; i < VIEWS; i++)
        for (size_t j = 0; j < ROOM; j++)
            m->view[i][j] = 0.5f + 0.25f * (float)((i + j) % 7);
    for (size_t i = 0; i < PARAMS; i++)
        for (size_t j = 0; j < PARAM_ROOM; j++)
            m->param[i][j] = 0.5f + 0.25f * (float)((i + j) % 5);
    k->no_shape = k->no_options = k->no_exec = 0;
    k->exec = (bnorm_exec){0};
    k->shape = (bnorm_shape){.layout = layout, .n = N, .c = C, .hw = HW};
    for (size_t i = 0; i < VIEWS; i++)
        k->view[i] = (struct view){views_of(k) & BIT(i) ? m->view[i] : NULL, 0, 0};
    for (size_t i = 0; i < PARAMS; i++)
        k->param[i] = params_of(k) & BIT(i) ? m->param[i] : NULL;
    k->act = (bnorm_act){BNORM_ACT_RELU, 0, 0};
    k->eps = 1e-5;
    k->rate = 0.1;
    k->variance = BNORM_VARIANCE_SAMPLE;
    k->y_dtype = BNORM_Y_SAME;
    k->x_quant = k->residual_quant = k->y_quant = (bnorm_quant){0};
    k->conv = (bnorm_conv){BNORM_CONV_OIHW, .out_channels = C, .in_channels = 4, .kernel = HW, 2};
    k->ws = NULL;
    k->ws_size = 0;
    if (k->function->op >= 0) {
        k->ws = m->ws;
        k->ws_size = bnorm_workspace((bnorm_op)k->function->op, &k->shape);
        if (k->ws_size > WS_ROOM)
            test_fail(k->t, "workspace of %zu bytes, raise WS_ROOM", k->ws_size);
    }
}

/* Runs *k; where it is refused, no byte may have changed. */
static void attempt(struct attempt *k, bnorm_status want, const char *what) {
    test_context(k->t, "%s, %s, %s", k->function->name,
                 k->shape.layout == BNORM_NCHW ? "nchw" : "nhwc", what);
    *k->before = *k->memory;
    const bnorm_status got = k->function->invoke(k);
    check_status(k->t, what, got, want);
    if (got != BNORM_OK && memcmp(k->before, k->memory, sizeof *k->memory) != 0)
        test_fail(k->t, "the call was refused but wrote memory");
}

static struct attempt new_call(struct test *t) {
    return (struct attempt){.t = t,
                            .function = t->param,
                            .memory = test_alloc(t, sizeof(struct memory)),
                            .before = test_alloc(t, sizeof(struct memory))};
}

/* A valid call with one thing changed, named by the code that changes it. */
#define EXPECT(status, ...)                                                                        \
    do {                                                                                           \
        fresh(k, layout);                                                                          \
        __VA_ARGS__;                                                                               \
        attempt(k, status, #__VA_ARGS__);                                                          \
    } while (0)

#define FOR_EACH_LAYOUT                                                                            \
    for (bnorm_layout layout = BNORM_NHWC; layout <= BNORM_NCHW;                                   \
         layout = (bnorm_layout)(layout + 1))

/* As EXPECT, for changes made in a loop: what is a printf format. */
static void attempt_named(struct attempt *k, bnorm_status want, const char *format, ...)
    __attribute__((format(printf, 3, 4)));

static void attempt_named(struct attempt *k, bnorm_status want, const char *format, ...) {
    char what[128];
    va_list args;
    va_start(args, format);
    vsnprintf(what, sizeof what, format, args);
    va_end(args);
    attempt(k, want, what);
}

/* ---------------------------------------------------------------------------------------------- */
/* NULL                                                                                           */

static void test_null(struct test *t) {
    struct attempt call = new_call(t), *k = &call;
    const struct function *f = k->function;
    FOR_EACH_LAYOUT {
        EXPECT(BNORM_OK, (void)0);
        for (size_t i = 0; i < VIEWS; i++) {
            if (!(views_of(k) & BIT(i)))
                continue;
            fresh(k, layout);
            k->view[i].data = NULL;
            attempt_named(k, f->views_required & BIT(i) ? BNORM_NULL_POINTER : BNORM_OK,
                          "%s = NULL", view_names[i]);
        }
        for (size_t i = 0; i < PARAMS; i++) {
            if (!(params_of(k) & BIT(i)))
                continue;
            fresh(k, layout);
            k->param[i] = NULL;
            attempt_named(k, f->params_required & BIT(i) ? BNORM_NULL_POINTER : BNORM_OK,
                          "%s = NULL", param_names[i]);
        }
    }
}

static void test_null_structs(struct test *t) {
    struct attempt call = new_call(t), *k = &call;
    FOR_EACH_LAYOUT {
        EXPECT(BNORM_NULL_POINTER, k->no_shape = 1);
        if (k->function->op >= 0)
            EXPECT(BNORM_NULL_POINTER, k->ws = NULL);
        if (k->function == &apply)
            EXPECT(BNORM_OK, k->no_options = 1);
        else if (k->function != &moments)
            EXPECT(BNORM_NULL_POINTER, k->no_options = 1);
        if (k->function == &train)
            EXPECT(BNORM_OK, k->param[MEAN] = k->param[VAR] = NULL);
        if (k->function == &fold)
            EXPECT(BNORM_OK, k->param[MEAN] = k->param[SHIFT] = NULL);
    }
}

/* ---------------------------------------------------------------------------------------------- */
/* Shapes and strides                                                                             */

static void test_shape(struct test *t) {
    struct attempt call = new_call(t), *k = &call;
    const size_t max = SIZE_MAX;
    FOR_EACH_LAYOUT {
        EXPECT(BNORM_BAD_ENUM, k->shape.layout = (bnorm_layout)2);
        EXPECT(BNORM_BAD_ENUM, k->shape.layout = (bnorm_layout)-1);
        EXPECT(BNORM_BAD_ENUM, k->shape.dtype = (bnorm_dtype)5);
        EXPECT(BNORM_BAD_ENUM, k->shape.dtype = (bnorm_dtype)-1);
        EXPECT(BNORM_OK, k->shape.dtype = BNORM_BF16);
        EXPECT(BNORM_OK, k->shape.dtype = BNORM_F16);
        const bnorm_status quantized = k->function == &apply ? BNORM_OK : BNORM_UNSUPPORTED;
        EXPECT(quantized, k->shape.dtype = BNORM_S8);
        EXPECT(quantized, k->shape.dtype = BNORM_U8);
        for (size_t block = 1; block <= 64; block++) {
            const int good = block == 4 || block == 8 || block == 16 || block == 32;
            fresh(k, layout);
            k->shape.c_block = block;
            if (k->function->op >= 0 && good && layout == BNORM_NCHW)
                k->ws_size = bnorm_workspace((bnorm_op)k->function->op, &k->shape);
            const int plain = block == 1, blocked = good && layout == BNORM_NCHW;
            attempt_named(k, plain || blocked ? BNORM_OK : BNORM_UNSUPPORTED, "c_block = %zu",
                          block);
        }
        EXPECT(BNORM_UNSUPPORTED, k->shape.c_block = max);
        EXPECT(BNORM_BAD_SHAPE, k->shape.c = 0);
        EXPECT(BNORM_BAD_SHAPE, k->shape.n = max);
        EXPECT(BNORM_BAD_SHAPE, k->shape.c = max);
        EXPECT(BNORM_BAD_SHAPE, k->shape.hw = max);
        EXPECT(BNORM_BAD_SHAPE, k->shape.n = max / (C * HW) + 1); /* elements */
        EXPECT(BNORM_BAD_SHAPE, k->shape.c = max / (N * HW) + 1);
        EXPECT(BNORM_BAD_SHAPE, k->shape.hw = max / (N * C) + 1);
        EXPECT(BNORM_BAD_SHAPE, k->shape.n = max / sizeof(float) / (C * HW) + 1); /* bytes */
        EXPECT(BNORM_BAD_SHAPE, k->shape.c = max / sizeof(float) / (N * HW) + 1);
        EXPECT(BNORM_BAD_SHAPE, k->shape.hw = max / sizeof(float) / (N * C) + 1);
        if (k->function->op >= 0) /* the tensors fit, the workspace does not */
            EXPECT(BNORM_BAD_SHAPE, (k->shape.n = k->shape.hw = 1, k->shape.c = max >> 7));
    }
}

/* Blocks of channels, with the padding of the last one. */
static void test_blocked_shape(struct test *t) {
    struct attempt call = new_call(t), *k = &call;
    const bnorm_layout layout = BNORM_NCHW;
    const size_t max = SIZE_MAX, most = (size_t)PTRDIFF_MAX / sizeof(float);
#define BLOCKED k->shape.c_block = 32
    EXPECT(BNORM_BAD_SHAPE, (BLOCKED, k->shape.c = 0));
    EXPECT(BNORM_BAD_SHAPE, (BLOCKED, k->shape.n = max));
    EXPECT(BNORM_BAD_SHAPE, (BLOCKED, k->shape.c = max));
    EXPECT(BNORM_BAD_SHAPE, (BLOCKED, k->shape.c = max - 31));
    EXPECT(BNORM_BAD_SHAPE, (BLOCKED, k->shape.hw = max));
    EXPECT(BNORM_BAD_SHAPE, (BLOCKED, k->shape.hw = max / 32 + 1));
    EXPECT(BNORM_BAD_SHAPE, (BLOCKED, k->shape.n = most / (32 * HW) + 1)); /* with padding only */
    EXPECT(BNORM_BAD_SHAPE, (BLOCKED, k->shape.hw = most / (32 * N) + 1));
    EXPECT(BNORM_BAD_SHAPE, (BLOCKED, k->shape.n = k->shape.hw = 1, k->shape.c = most - 2));
    EXPECT(BNORM_BAD_ENUM, (BLOCKED, k->shape.layout = (bnorm_layout)2));
    EXPECT(BNORM_BAD_ENUM, (BLOCKED, k->shape.dtype = (bnorm_dtype)5));
#undef BLOCKED
    /* Two blocks of 4 channels: runs of 12 elements. */
    enum { RUN = HW * 4, IMAGE = 2 * RUN };
    const struct {
        size_t run_stride, image_stride;
        bnorm_status status;
    } strides[] = {
        {RUN, 0, BNORM_OK},
        {0, IMAGE, BNORM_OK},
        {RUN + 5, 0, BNORM_OK},
        {0, IMAGE + 3, BNORM_OK},
        {N * RUN, RUN, BNORM_OK}, /* images inside runs */
        {1, 0, BNORM_BAD_STRIDE},
        {HW, 0, BNORM_BAD_STRIDE}, /* as without blocks */
        {RUN - 1, 0, BNORM_BAD_STRIDE},
        {0, IMAGE - 1, BNORM_BAD_STRIDE},
        {RUN + 1, IMAGE, BNORM_BAD_STRIDE},
        {N * RUN - 1, RUN, BNORM_BAD_STRIDE},
        {N * RUN, RUN - 1, BNORM_BAD_STRIDE},
        {max, 0, BNORM_BAD_STRIDE},
        {max / 4, 0, BNORM_BAD_STRIDE},
        {0, max - IMAGE + 1, BNORM_BAD_STRIDE},
    };
    for (size_t v = 0; v < VIEWS; v++)
        for (size_t i = 0; views_of(k) & BIT(v) && i < sizeof strides / sizeof strides[0]; i++) {
            fresh(k, layout);
            k->shape.c_block = 4;
            if (k->function->op >= 0)
                k->ws_size = bnorm_workspace((bnorm_op)k->function->op, &k->shape);
            k->view[v].run_stride = strides[i].run_stride;
            k->view[v].image_stride = strides[i].image_stride;
            attempt_named(k, strides[i].status, "c_block = 4, strides of %s = %zu, %zu",
                          view_names[v], strides[i].run_stride, strides[i].image_stride);
        }
}

/* Elements of other sizes than four bytes: no alignment but their own, other limits. */
static void test_small_elements(struct test *t) {
    struct attempt call = new_call(t), *k = &call;
    const size_t max = SIZE_MAX;
    FOR_EACH_LAYOUT {
        EXPECT(BNORM_BAD_SHAPE, (k->shape.dtype = BNORM_BF16, k->shape.n = max / 2 / (C * HW) + 1));
        EXPECT(BNORM_BAD_SHAPE, (k->shape.dtype = BNORM_F16, k->shape.hw = max / (N * C) + 1));
        for (size_t v = 0; v < VIEWS; v++) {
            if (!(views_of(k) & BIT(v)))
                continue;
            fresh(k, layout);
            k->shape.dtype = BNORM_F16;
            k->view[v].data = (void *)((unsigned char *)k->view[v].data + 2);
            attempt_named(k, BNORM_OK, "F16, %s moved by two bytes", view_names[v]);
            fresh(k, layout);
            k->shape.dtype = BNORM_BF16;
            k->view[v].image_stride = max / 2;
            attempt_named(k, BNORM_BAD_STRIDE, "BF16, %s spans too many bytes", view_names[v]);
        }
    }
}

static void test_stride(struct test *t) {
    struct attempt call = new_call(t), *k = &call;
    FOR_EACH_LAYOUT {
        const size_t len = layout == BNORM_NHWC ? C : HW;
        const size_t max = SIZE_MAX;
        /* Two elements at one address, the last element past SIZE_MAX bytes, or both by wrapping.
         */
        const struct {
            size_t run_stride, image_stride;
        } bad[] = {
            {1, 0},
            {len - 1, 0},
            {0, 1},
            {0, C * HW - 1},
            {len + 1, C * HW}, /* dense images, runs that are not */
            {max, 0},
            {max / 2, 0},
            {max / 4, 0},
            {max - len + 1, 0},
            {0, max},
            {0, max / 4},
            {0, max - C * HW + 1},
            {max, max},
            {0, max / 2 / sizeof(float)}, /* larger than any object */
        };
        const struct {
            size_t run_stride, image_stride;
        } good[] = {{len, 0}, {0, C * HW}, {len + 3, 0}, {0, C * HW + 5}, {len + 1, C * HW * 2}};
        for (size_t i = 0; i < VIEWS; i++) {
            if (!(views_of(k) & BIT(i)))
                continue;
            for (size_t j = 0; j < sizeof bad / sizeof bad[0]; j++) {
                fresh(k, layout);
                k->view[i].run_stride = bad[j].run_stride;
                k->view[i].image_stride = bad[j].image_stride;
                attempt_named(k, BNORM_BAD_STRIDE, "strides of %s = %zu, %zu", view_names[i],
                              bad[j].run_stride, bad[j].image_stride);
            }
            for (size_t j = 0; j < sizeof good / sizeof good[0]; j++) {
                fresh(k, layout);
                k->view[i].run_stride = good[j].run_stride;
                k->view[i].image_stride = good[j].image_stride;
                attempt_named(k, BNORM_OK, "strides of %s = %zu, %zu", view_names[i],
                              good[j].run_stride, good[j].image_stride);
            }
        }
    }
}

/* ---------------------------------------------------------------------------------------------- */
/* Overlap                                                                                        */

/* What bnorm.h allows in place. */
static int views_may_be_same(enum view_id a, enum view_id b) {
    const unsigned pair = BIT(a) | BIT(b);
    return pair == (BIT(Y) | BIT(X)) || pair == (BIT(Y) | BIT(RESIDUAL)) ||
           pair == (BIT(DX) | BIT(X)) || pair == (BIT(DX) | BIT(DY)) ||
           pair == (BIT(DX) | BIT(RESIDUAL)) || pair == (BIT(DX) | BIT(FORWARD_Y)) ||
           pair == (BIT(DRESIDUAL) | BIT(DY)) || pair == (BIT(DRESIDUAL) | BIT(X)) ||
           pair == (BIT(DRESIDUAL) | BIT(RESIDUAL)) || pair == (BIT(DRESIDUAL) | BIT(FORWARD_Y));
}

static int params_may_be_same(const struct function *f, enum param_id a, enum param_id b) {
    if (f == &train_elsewhere)
        return (a == MEAN && b == NEW_MEAN) || (a == NEW_MEAN && b == MEAN) ||
               (a == VAR && b == NEW_VAR) || (a == NEW_VAR && b == VAR);
    return (f == &fold || f == &fold_conv) && !(f->params_out & BIT(a) && f->params_out & BIT(b));
}

static void move_view(struct attempt *k, bnorm_layout layout, size_t a, size_t b, size_t offset) {
    fresh(k, layout);
    k->view[a].data = k->view[b].data + offset;
}

static void test_view_overlap(struct test *t) {
    struct attempt call = new_call(t), *k = &call;
    const struct function *f = k->function;
    FOR_EACH_LAYOUT {
        for (size_t a = 0; a < VIEWS; a++) {
            for (size_t b = 0; b < VIEWS; b++) {
                if (a == b || !(views_of(k) & BIT(a)) || !(views_of(k) & BIT(b)) ||
                    !(f->views_out & (BIT(a) | BIT(b))))
                    continue;
                const char *an = view_names[a], *bn = view_names[b];
                move_view(k, layout, a, b, 0);
                attempt_named(k,
                              views_may_be_same((enum view_id)a, (enum view_id)b)
                                  ? BNORM_OK
                                  : BNORM_BAD_OVERLAP,
                              "%s = %s", an, bn);
                move_view(k, layout, a, b, 1);
                attempt_named(k, BNORM_BAD_OVERLAP, "%s = %s + 1", an, bn);
                move_view(k, layout, a, b, COUNT - 1);
                attempt_named(k, BNORM_BAD_OVERLAP, "%s = last of %s", an, bn);
                move_view(k, layout, a, b, COUNT);
                attempt_named(k, BNORM_OK, "%s = just past %s", an, bn);
            }
        }
    }
}

/* Tensors that interleave in one buffer, as the slices of a concatenation do. */
static void test_slices(struct test *t) {
    struct attempt call = new_call(t), *k = &call;
    const struct function *f = k->function;
    FOR_EACH_LAYOUT {
        const size_t len = layout == BNORM_NHWC ? C : HW;
        for (size_t a = 0; a < VIEWS; a++) {
            for (size_t b = 0; b < VIEWS; b++) {
                if (a == b || !(views_of(k) & BIT(a)) || !(views_of(k) & BIT(b)) ||
                    !(f->views_out & (BIT(a) | BIT(b))))
                    continue;
                const char *an = view_names[a], *bn = view_names[b];
                for (size_t by_image = 0; by_image < 2; by_image++) {
                    const size_t part = by_image ? C * HW : len;
                    for (size_t overlap = 0; overlap < 2; overlap++) {
                        move_view(k, layout, a, b, part - overlap);
                        if (by_image)
                            k->view[a].image_stride = k->view[b].image_stride = 2 * part;
                        else
                            k->view[a].run_stride = k->view[b].run_stride = 2 * part;
                        attempt_named(k, overlap ? BNORM_BAD_OVERLAP : BNORM_OK,
                                      "%s and %s are slices of %zu, %zu of them shared", an, bn,
                                      part, overlap);
                    }
                }
                /* The same elements, once with the default strides and once spelled out. */
                move_view(k, layout, a, b, 0);
                k->view[a].run_stride = len;
                k->view[b].image_stride = C * HW;
                attempt_named(k,
                              views_may_be_same((enum view_id)a, (enum view_id)b)
                                  ? BNORM_OK
                                  : BNORM_BAD_OVERLAP,
                              "%s = %s with explicit strides", an, bn);
                move_view(k, layout, a, b, 0);
                k->view[a].run_stride = len + 1;
                attempt_named(k, BNORM_BAD_OVERLAP, "%s = %s with another run stride", an, bn);
                move_view(k, layout, a, b, 0);
                k->view[a].image_stride = C * HW + 1;
                attempt_named(k, BNORM_BAD_OVERLAP, "%s = %s with another image stride", an, bn);
            }
        }
    }
}

static void test_param_overlap(struct test *t) {
    struct attempt call = new_call(t), *k = &call;
    const struct function *f = k->function;
    FOR_EACH_LAYOUT {
        for (size_t a = 0; a < PARAMS; a++) {
            if (!(params_of(k) & BIT(a)))
                continue;
            for (size_t b = 0; b < PARAMS; b++) {
                if (a == b || !(params_of(k) & BIT(b)) || !(f->params_out & (BIT(a) | BIT(b))))
                    continue;
                const char *an = param_names[a], *bn = param_names[b];
                const int same = params_may_be_same(f, (enum param_id)a, (enum param_id)b);
                fresh(k, layout);
                k->param[a] = k->param[b];
                attempt_named(k, same ? BNORM_OK : BNORM_BAD_OVERLAP, "%s = %s", an, bn);
                fresh(k, layout);
                k->param[a] = k->param[b] + C - 1;
                attempt_named(k, BNORM_BAD_OVERLAP, "%s = last of %s", an, bn);
                fresh(k, layout);
                k->param[a] = k->param[b] + C;
                attempt_named(k, BNORM_OK, "%s = just past %s", an, bn);
            }
            for (size_t v = 0; v < VIEWS; v++) {
                if (!(views_of(k) & BIT(v)) || !(f->params_out & BIT(a) || f->views_out & BIT(v)))
                    continue;
                const char *an = param_names[a], *vn = view_names[v];
                fresh(k, layout);
                k->param[a] = k->view[v].data + COUNT - 1;
                attempt_named(k, BNORM_BAD_OVERLAP, "%s = last of %s", an, vn);
                fresh(k, layout);
                k->view[v].data = k->param[a] + C - 1;
                attempt_named(k, BNORM_BAD_OVERLAP, "%s = last of %s", vn, an);
                fresh(k, layout);
                k->param[a] = k->view[v].data + COUNT;
                attempt_named(k, BNORM_OK, "%s = just past %s", an, vn);
            }
        }
    }
}

static void test_options_of_apply(struct test *t) {
    struct attempt call = new_call(t), *k = &call;
    FOR_EACH_LAYOUT {
        EXPECT(BNORM_OK, k->param[CENTER] = k->param[SCALE]);
        EXPECT(BNORM_OK, k->param[CENTER] = k->param[SHIFT]);
    }
}

/* Another type of y. In place only where the elements have one size. */
static void test_y_dtype(struct test *t) {
    struct attempt call = new_call(t), *k = &call;
    FOR_EACH_LAYOUT {
        EXPECT(BNORM_BAD_ENUM, k->y_dtype = (bnorm_y_dtype)6);
        EXPECT(BNORM_BAD_ENUM, k->y_dtype = (bnorm_y_dtype)-1);
        EXPECT(BNORM_BAD_ENUM, (k->y_dtype = (bnorm_y_dtype)6, k->shape.n = 0));
        for (int from = BNORM_F32; from <= BNORM_U8; from++)
            for (int to = BNORM_Y_SAME; to <= BNORM_Y_U8; to++) {
                const bnorm_dtype x = (bnorm_dtype)from, y = to ? (bnorm_dtype)(to - 1) : x;
                const size_t x_size = dtype_size(x), y_size = dtype_size(y);
                const enum view_id views[] = {X, RESIDUAL};
                fresh(k, layout);
                k->shape.dtype = x;
                k->y_dtype = (bnorm_y_dtype)to;
                attempt_named(k, BNORM_OK, "%s to y_dtype %d", dtype_name(x), to);
                for (size_t v = 0; v < 2; v++) {
                    fresh(k, layout);
                    k->shape.dtype = x;
                    k->y_dtype = (bnorm_y_dtype)to;
                    k->view[Y].data = k->view[views[v]].data;
                    attempt_named(k, x_size == y_size ? BNORM_OK : BNORM_BAD_OVERLAP,
                                  "%s to y_dtype %d onto %s", dtype_name(x), to,
                                  view_names[views[v]]);
                    unsigned char *data = (unsigned char *)k->view[views[v]].data;
                    fresh(k, layout);
                    k->shape.dtype = x;
                    k->y_dtype = (bnorm_y_dtype)to;
                    k->view[Y].data = (void *)(data + COUNT * x_size - y_size);
                    attempt_named(k, BNORM_BAD_OVERLAP, "%s to y_dtype %d, begins in %s",
                                  dtype_name(x), to, view_names[views[v]]);
                    fresh(k, layout);
                    k->shape.dtype = x;
                    k->y_dtype = (bnorm_y_dtype)to;
                    k->view[Y].data = (void *)(data + COUNT * x_size);
                    attempt_named(k, BNORM_OK, "%s to y_dtype %d, just past %s", dtype_name(x), to,
                                  view_names[views[v]]);
                }
            }
    }
}

/* scale positive and finite or 0, zero_point a value of the type; only where it matters. */
static void test_quant(struct test *t) {
    struct attempt call = new_call(t), *k = &call;
    static const struct {
        bnorm_quant quant;
        bnorm_status s8, u8;
    } quants[] = {
        {{0, 0}, BNORM_OK, BNORM_OK},
        {{.5f, 127}, BNORM_OK, BNORM_OK},
        {{1e-30f, 0}, BNORM_OK, BNORM_OK},
        {{.5f, -128}, BNORM_OK, BNORM_BAD_QUANTIZATION},
        {{.5f, -1}, BNORM_OK, BNORM_BAD_QUANTIZATION},
        {{.5f, 128}, BNORM_BAD_QUANTIZATION, BNORM_OK},
        {{0, 255}, BNORM_BAD_QUANTIZATION, BNORM_OK},
        {{.5f, 256}, BNORM_BAD_QUANTIZATION, BNORM_BAD_QUANTIZATION},
        {{.5f, -129}, BNORM_BAD_QUANTIZATION, BNORM_BAD_QUANTIZATION},
        {{.5f, INT_MIN}, BNORM_BAD_QUANTIZATION, BNORM_BAD_QUANTIZATION},
        {{-.5f, 0}, BNORM_BAD_QUANTIZATION, BNORM_BAD_QUANTIZATION},
        {{NAN, 0}, BNORM_BAD_QUANTIZATION, BNORM_BAD_QUANTIZATION},
        {{INFINITY, 0}, BNORM_BAD_QUANTIZATION, BNORM_BAD_QUANTIZATION},
    };
    FOR_EACH_LAYOUT {
        for (size_t i = 0; i < sizeof quants / sizeof quants[0]; i++)
            for (int u8 = 0; u8 < 2; u8++)
                for (int which = 0; which < 6; which++) {
                    const bnorm_status bad = u8 ? quants[i].u8 : quants[i].s8;
                    fresh(k, layout);
                    *(which % 3 == 0   ? &k->x_quant
                      : which % 3 == 1 ? &k->residual_quant
                                       : &k->y_quant) = quants[i].quant;
                    /* Quantized are all three, or y alone. */
                    if (which < 3)
                        k->shape.dtype = u8 ? BNORM_U8 : BNORM_S8;
                    else
                        k->y_dtype = u8 ? BNORM_Y_U8 : BNORM_Y_S8;
                    attempt_named(k, which < 3 || which == 5 ? bad : BNORM_OK,
                                  "%s: scale %g, zero point %d of tensor %d", u8 ? "u8" : "s8",
                                  (double)quants[i].quant.scale, quants[i].quant.zero_point, which);
                }
        /* What is flushed is no divisor. */
        for (size_t i = 0; i < 8; i++) {
            const bnorm_quant quant = {i % 2 ? 0x1p-126f : 0x1.fffffcp-127f, 0};
            const bnorm_denormals denormals = (bnorm_denormals)(i / 2 % 2);
            fresh(k, layout);
            k->shape.dtype = BNORM_S8;
            *(i / 4 ? &k->x_quant : &k->y_quant) = quant;
            k->exec.denormals = denormals;
            attempt_named(k, denormals && i % 2 == 0 ? BNORM_BAD_QUANTIZATION : BNORM_OK,
                          "scale %a, denormals %d, of %s", (double)quant.scale, (int)denormals,
                          i / 4 ? "x" : "y");
        }
    }
}

/* ---------------------------------------------------------------------------------------------- */
/* Workspace                                                                                      */

static void test_workspace_refusals(struct test *t) {
    struct attempt call = new_call(t), *k = &call;
    FOR_EACH_LAYOUT {
        EXPECT(BNORM_WORKSPACE_TOO_SMALL, k->ws_size -= 1);
        EXPECT(BNORM_WORKSPACE_TOO_SMALL, k->ws_size = 0);
        EXPECT(BNORM_OK, k->ws_size = WS_ROOM);
        for (size_t v = 0; v < VIEWS; v++) {
            if (!(views_of(k) & BIT(v)))
                continue;
            fresh(k, layout);
            k->view[v].data = (float *)k->ws;
            attempt_named(k, BNORM_BAD_OVERLAP, "%s = workspace", view_names[v]);
            fresh(k, layout);
            k->view[v].data = (float *)k->ws + (k->ws_size - 1) / sizeof(float);
            attempt_named(k, BNORM_BAD_OVERLAP, "%s = end of the workspace", view_names[v]);
            fresh(k, layout);
            k->ws = &k->memory->ws[WS_ROOM - k->ws_size];
            k->view[v].data = (float *)k->memory->after_ws;
            attempt_named(k, BNORM_OK, "%s = just past the workspace", view_names[v]);
            fresh(k, layout);
            k->ws = &k->memory->ws[WS_ROOM - k->ws_size + 1];
            k->view[v].data = (float *)k->memory->after_ws;
            attempt_named(k, BNORM_BAD_OVERLAP, "%s = last byte of the workspace", view_names[v]);
        }
        for (size_t p = 0; p < PARAMS; p++) {
            if (!(params_of(k) & BIT(p)))
                continue;
            fresh(k, layout);
            k->param[p] = (float *)k->ws + 1;
            attempt_named(k, BNORM_BAD_OVERLAP, "%s in the workspace", param_names[p]);
            fresh(k, layout);
            k->param[p] = (float *)k->ws + (k->ws_size - 1) / sizeof(float);
            attempt_named(k, BNORM_BAD_OVERLAP, "%s = end of the workspace", param_names[p]);
        }
    }
}

/* Empty batches: BNORM_OK, nothing touched but dgamma and dbeta; a workspace is not needed. */
static void test_empty(struct test *t) {
    struct attempt call = new_call(t), *k = &call;
    FOR_EACH_LAYOUT {
        for (size_t i = 0; i < 3; i++) {
            fresh(k, layout);
            if (i != 1)
                k->shape.n = 0;
            if (i != 0)
                k->shape.hw = 0;
            if (i == 2) {
                k->ws = NULL;
                k->ws_size = 0;
            }
            attempt_named(k, BNORM_OK, "n = %zu, hw = %zu", k->shape.n, k->shape.hw);
            for (size_t p = DGAMMA; p <= DBETA; p++)
                for (size_t c = 0; c < C && k->param[p]; c++)
                    k->before->param[p][c] = 0;
            for (size_t c = 0; c < C && k->param[NEW_MEAN]; c++) {
                k->before->param[NEW_MEAN][c] = k->memory->param[MEAN][c];
                k->before->param[NEW_VAR][c] = k->memory->param[VAR][c];
            }
            if (memcmp(k->before, k->memory, sizeof *k->memory) != 0)
                test_fail(t, "an empty batch wrote memory");
        }
        EXPECT(BNORM_BAD_SHAPE, (k->shape.n = 0, k->shape.c = 0));
        EXPECT(BNORM_BAD_ENUM, (k->shape.n = 0, k->shape.layout = (bnorm_layout)7));
        if (k->function->views_out)
            EXPECT(BNORM_BAD_ENUM, (k->shape.hw = 0, k->act.kind = (bnorm_act_kind)12));
    }
}

static void test_workspace_size(struct test *t) {
    const size_t max = SIZE_MAX;
    for (int op = BNORM_OP_MOMENTS; op <= BNORM_OP_BACKWARD; op++) {
        for (int layout = BNORM_NHWC; layout <= BNORM_NCHW; layout++) {
            const bnorm_shape good = {.layout = (bnorm_layout)layout, .n = N, .c = C, .hw = HW};
            bnorm_shape bad[18];
            for (size_t i = 0; i < sizeof bad / sizeof bad[0]; i++)
                bad[i] = good;
            bad[0].layout = (bnorm_layout)2;
            bad[1].dtype = (bnorm_dtype)5;
            bad[2].c_block = 7;
            bad[3].c = 0;
            bad[4].n = 0;
            bad[5].hw = 0;
            bad[6].n = max;
            bad[7].c = max;
            bad[8].hw = max;
            bad[9].n = max / sizeof(float) / (C * HW) + 1;
            bad[10].c = max / sizeof(float) / (N * HW) + 1;
            bad[11].hw = max / sizeof(float) / (N * C) + 1;
            bad[12].layout = (bnorm_layout)-1;
            bad[13].dtype = (bnorm_dtype)-1;
            bad[14].dtype = BNORM_S8;
            bad[15].dtype = BNORM_U8;
            bad[16].layout = BNORM_NHWC;
            bad[16].c_block = 8;
            bad[17].layout = BNORM_NCHW;
            bad[17].c_block = 32;
            bad[17].c = max - 30;
            test_context(t, "op %d, layout %d", op, layout);
            if (bnorm_workspace((bnorm_op)op, &good) == 0)
                test_fail(t, "no workspace for a valid shape");
            if (bnorm_workspace((bnorm_op)op, NULL) != 0)
                test_fail(t, "a workspace for no shape");
            if (bnorm_workspace(BNORM_OP_APPLY, &good) != 0)
                test_fail(t, "a workspace for bnorm_apply");
            if (bnorm_workspace((bnorm_op)4, &good) != 0 ||
                bnorm_workspace((bnorm_op)-1, &good) != 0)
                test_fail(t, "a workspace for an op that does not exist");
            for (size_t i = 0; i < sizeof bad / sizeof bad[0]; i++)
                if (bnorm_workspace((bnorm_op)op, &bad[i]) != 0)
                    test_fail(t, "a workspace for the refused or empty shape number %zu", i);
            /* Tensors that there could be, with workspaces that there can not: the products of
             * blocks, channels and bytes overflow one after the other, or come out too large. */
            const size_t top = max / 16 + 1;
            const bnorm_shape huge[] = {
                {.layout = (bnorm_layout)layout, .dtype = BNORM_BF16, .n = top, .c = 1, .hw = 2},
                {.layout = (bnorm_layout)layout,
                 .dtype = BNORM_BF16,
                 .n = top - 1,
                 .c = 1,
                 .hw = 2},
                {.layout = (bnorm_layout)layout, .n = 1, .c = top / 4, .hw = 1},
                {.layout = (bnorm_layout)layout, .n = 1, .c = top / 16, .hw = 1},
            };
            for (size_t i = 0; i < sizeof huge / sizeof huge[0]; i++)
                if (bnorm_workspace((bnorm_op)op, &huge[i]) != 0)
                    test_fail(t, "a workspace of %zu bytes for the huge shape number %zu",
                              bnorm_workspace((bnorm_op)op, &huge[i]), i);
        }
    }
}

/* One call of every op; results go to `results`, 2*count + 4*c floats. */
static void run_all(struct test *t, bnorm_op op, const bnorm_shape *shape, const float *x,
                    const float *dy, void *ws, size_t ws_size, float *results) {
    const size_t count = shape_count(shape), c = shape->c;
    const bnorm_exec exec = {.isa = t->isa};
    const bnorm_act relu = {BNORM_ACT_RELU, 0, 0};
    const bnorm_in in_x = {.data = x};
    float *a = results + 2 * count, *b = a + c, *lo = b + c;
    bnorm_status status;
    if (op == BNORM_OP_MOMENTS) {
        status = bnorm_moments(shape, in_x, a, b, ws, ws_size, &exec);
    } else if (op == BNORM_OP_FORWARD_TRAIN) {
        const bnorm_train options = {
            .eps = 1e-5, .save_mean = a, .save_invstd = b, .save_mean_lo = lo, .act = relu};
        status = bnorm_forward_train(shape, in_x, (bnorm_out){.data = results}, &options, ws,
                                     ws_size, &exec);
    } else {
        float *ones = lo + c;
        for (size_t i = 0; i < c; i++)
            ones[i] = 1;
        const bnorm_grad options = {.save_mean = ones,
                                    .save_invstd = ones,
                                    .act = relu,
                                    .dresidual = {.data = results + count},
                                    .dgamma = a,
                                    .dbeta = b};
        status = bnorm_backward(shape, in_x, (bnorm_in){.data = dy}, (bnorm_out){.data = results},
                                &options, ws, ws_size, &exec);
    }
    check_status(t, "call", status, BNORM_OK);
}

/* A workspace of exactly bnorm_workspace() bytes between guard pages, at every alignment and with
 * garbage in it, gives the bits that a roomy zeroed one gives. */
static void test_workspace_memory(struct test *t) {
    static const struct {
        size_t n, c, hw;
    } sizes[] = {{1, 1, 1},   {2, 3, 5},    {3, 17, 40},  {1, 63, 9},    {2, 64, 33}, {5, 65, 1},
                 {2, 200, 3}, {1, 1, 9000}, {2, 3, 5000}, {1, 1030, 70}, {33, 2, 2},  {1, 5, 8300}};
    for (size_t i = 0; i < sizeof sizes / sizeof sizes[0]; i++) {
        for (int layout = BNORM_NHWC; layout <= BNORM_NCHW; layout++) {
            const bnorm_shape shape = {.layout = (bnorm_layout)layout,
                                       .n = sizes[i].n,
                                       .c = sizes[i].c,
                                       .hw = sizes[i].hw};
            const size_t count = shape_count(&shape), room = 2 * count + 4 * shape.c;
            float *x = test_floats(t, count), *dy = test_floats(t, count);
            float *want = test_floats(t, room), *got = test_floats(t, room);
            for (size_t j = 0; j < count; j++) {
                x[j] = (float)rng_normal(&t->rng);
                dy[j] = (float)rng_normal(&t->rng);
            }
            for (int op = BNORM_OP_MOMENTS; op <= BNORM_OP_BACKWARD; op++) {
                const size_t size = bnorm_workspace((bnorm_op)op, &shape);
                memset(want, 0, room * sizeof *want);
                run_all(t, (bnorm_op)op, &shape, x, dy, test_alloc(t, size + 4096), size + 4096,
                        want);
                for (size_t shift = 0; shift < 64; shift += test_repeat(1, 5, 9)) {
                    for (int side = SIDE_START; side <= SIDE_END; side++) {
                        test_context(t, "op %d, layout %d, %zux%zux%zu, workspace %s + %zu bytes",
                                     op, layout, shape.n, shape.c, shape.hw,
                                     side == SIDE_START ? "start" : "end", shift);
                        struct buffer ws;
                        buffer_new(&ws, size, (enum side)side, shift);
                        memset(got, 0, room * sizeof *got);
                        run_all(t, (bnorm_op)op, &shape, x, dy, ws.data, size, got);
                        check_bits(t, "results", got, want, room);
                        buffer_check(t, &ws, "workspace");
                        buffer_free(&ws);
                    }
                }
            }
        }
    }
}

/* ---------------------------------------------------------------------------------------------- */
/* Parameters                                                                                     */

static void test_act(struct test *t) {
    struct attempt call = new_call(t), *k = &call;
    FOR_EACH_LAYOUT {
        EXPECT(BNORM_BAD_ENUM, k->act.kind = (bnorm_act_kind)12);
        if (act_usable(NULL, BNORM_ACT_ELU)) {
            EXPECT(BNORM_BAD_ACTIVATION, k->act = (bnorm_act){BNORM_ACT_ELU, NAN, 0});
            EXPECT(BNORM_BAD_ACTIVATION, k->act = (bnorm_act){BNORM_ACT_ELU, INFINITY, 0});
        }
        EXPECT(BNORM_BAD_ENUM, k->act.kind = (bnorm_act_kind)-1);
        EXPECT(BNORM_BAD_ACTIVATION, k->act = (bnorm_act){BNORM_ACT_CLAMP, 0, 0});
        EXPECT(BNORM_BAD_ACTIVATION, k->act = (bnorm_act){BNORM_ACT_CLAMP, 2, 1});
        EXPECT(BNORM_BAD_ACTIVATION, k->act = (bnorm_act){BNORM_ACT_CLAMP, NAN, 1});
        EXPECT(BNORM_BAD_ACTIVATION, k->act = (bnorm_act){BNORM_ACT_CLAMP, 0, NAN});
        EXPECT(BNORM_BAD_ACTIVATION, k->act = (bnorm_act){BNORM_ACT_LEAKY_RELU, NAN, 0});
        EXPECT(BNORM_BAD_ACTIVATION, k->act = (bnorm_act){BNORM_ACT_LEAKY_RELU, INFINITY, 0});
        EXPECT(BNORM_BAD_ACTIVATION, k->act = (bnorm_act){BNORM_ACT_LEAKY_RELU, -INFINITY, 0});
        EXPECT(BNORM_OK, k->act = (bnorm_act){BNORM_ACT_CLAMP, -INFINITY, INFINITY});
        EXPECT(BNORM_OK, k->act = (bnorm_act){BNORM_ACT_CLAMP, 0, 6});
        EXPECT(BNORM_OK, k->act = (bnorm_act){BNORM_ACT_LEAKY_RELU, 0.25f, NAN});
        EXPECT(BNORM_OK, k->act = (bnorm_act){BNORM_ACT_RELU, NAN, NAN});
        if (k->function == &backward_y) {
            EXPECT(BNORM_UNSUPPORTED, k->act.kind = BNORM_ACT_HARD_SWISH);
            EXPECT(BNORM_UNSUPPORTED, k->act = (bnorm_act){BNORM_ACT_LEAKY_RELU, 0, 0});
            EXPECT(BNORM_UNSUPPORTED, k->act = (bnorm_act){BNORM_ACT_LEAKY_RELU, -0.25f, 0});
        } else {
            EXPECT(BNORM_OK, k->act.kind = BNORM_ACT_HARD_SWISH);
            EXPECT(BNORM_OK, k->act = (bnorm_act){BNORM_ACT_LEAKY_RELU, -0.25f, 0});
            EXPECT(BNORM_OK, k->act.kind = BNORM_ACT_IDENTITY);
        }
        if (k->function == &backward_y)
            EXPECT(BNORM_BAD_PARAMETER, k->view[RESIDUAL].data = k->memory->view[RESIDUAL]);
        if (k->function == &backward_residual)
            EXPECT(BNORM_BAD_PARAMETER, k->view[FORWARD_Y].data = k->memory->view[FORWARD_Y]);
    }
}

static void test_eps(struct test *t) {
    struct attempt call = new_call(t), *k = &call;
    FOR_EACH_LAYOUT {
        EXPECT(BNORM_BAD_EPSILON, k->eps = -1e-9);
        EXPECT(BNORM_BAD_EPSILON, k->eps = (double)NAN);
        EXPECT(BNORM_BAD_EPSILON, k->eps = (double)INFINITY);
        EXPECT(BNORM_BAD_EPSILON, k->eps = -(double)INFINITY);
        EXPECT(BNORM_OK, k->eps = 0);
        EXPECT(BNORM_OK, k->eps = 1e30);
        if (k->function == &backward_var) {
            EXPECT(BNORM_BAD_VARIANCE, k->memory->param[SAVE_VAR][C - 1] = -1);
            EXPECT(BNORM_OK, (k->memory->param[SAVE_VAR][0] = -1, k->eps = 1)); /* a sum of zero */
            EXPECT(BNORM_OK, k->memory->param[SAVE_VAR][0] = NAN);
            EXPECT(BNORM_OK, k->memory->param[SAVE_VAR][C] = -1); /* not of this call */
            EXPECT(BNORM_OK, (k->param[SAVE_INVSTD] = k->memory->param[SAVE_INVSTD], k->eps = -1));
        }
    }
}

static void test_running(struct test *t) {
    struct attempt call = new_call(t), *k = &call;
    FOR_EACH_LAYOUT {
        EXPECT(BNORM_BAD_RATE, k->rate = (double)NAN);
        EXPECT(BNORM_OK, k->rate = -1.2);
        EXPECT(BNORM_OK, k->rate = 0);
        EXPECT(BNORM_BAD_ENUM, k->variance = (bnorm_variance)2);
        EXPECT(BNORM_BAD_ENUM, k->variance = (bnorm_variance)-1);
    }
}

static void test_exec(struct test *t) {
    struct attempt call = new_call(t), *k = &call;
    FOR_EACH_LAYOUT {
        EXPECT(BNORM_BAD_ENUM, k->exec.denormals = (bnorm_denormals)2);
        EXPECT(BNORM_BAD_ENUM, k->exec.denormals = (bnorm_denormals)-1);
        EXPECT(BNORM_BAD_ENUM, k->exec.memory = (bnorm_memory)4);
        EXPECT(BNORM_BAD_ENUM, k->exec.memory = (bnorm_memory)-1);
        EXPECT(BNORM_BAD_ENUM, (k->exec.memory = (bnorm_memory)4, k->shape.n = 0));
        EXPECT(BNORM_BAD_ENUM, (k->exec.denormals = (bnorm_denormals)2, k->shape.hw = 0));
        EXPECT(BNORM_OK, k->no_exec = 1);
        EXPECT(BNORM_OK, k->exec.denormals = BNORM_DENORMALS_FLUSH);
        EXPECT(BNORM_OK, k->exec.memory = BNORM_MEMORY_CACHED);
        EXPECT(BNORM_OK, k->exec.memory = BNORM_MEMORY_PREFETCH);
        EXPECT(BNORM_OK, k->exec.memory = BNORM_MEMORY_STREAM);
        EXPECT(BNORM_OK, k->exec.threads = SIZE_MAX); /* of no one, without parallel */
    }
}

#define MOST_FLOATS ((size_t)PTRDIFF_MAX / sizeof(float))

/* bnorm_fold and bnorm_fold_conv. */
static void test_fold_parameters(struct test *t) {
    struct attempt call = new_call(t), *k = &call;
    const bnorm_layout layout = BNORM_NHWC;
    const size_t max = SIZE_MAX;
    EXPECT(BNORM_BAD_VARIANCE, k->memory->param[VAR][C - 1] = -1);
    EXPECT(BNORM_BAD_VARIANCE, k->memory->param[VAR][0] = -INFINITY);
    EXPECT(BNORM_OK, (k->memory->param[VAR][0] = -1, k->eps = 1)); /* a sum of zero */
    EXPECT(BNORM_OK, (k->memory->param[VAR][0] = -1, k->eps = 2));
    EXPECT(BNORM_OK, k->memory->param[VAR][0] = NAN);
    EXPECT(BNORM_OK, k->memory->param[VAR][C] = -1); /* not of this call */
    if (k->function == &fold) {
        EXPECT(BNORM_BAD_SHAPE, k->shape.c = 0);
        EXPECT(BNORM_BAD_SHAPE, k->shape.c = max);
        EXPECT(BNORM_BAD_SHAPE, k->shape.c = max / sizeof(float) + 1);
        return;
    }
    EXPECT(BNORM_NULL_POINTER, k->no_options = 1);
    EXPECT(BNORM_BAD_ENUM, k->conv.layout = (bnorm_conv_layout)5);
    EXPECT(BNORM_BAD_ENUM, k->conv.layout = (bnorm_conv_layout)-1);
    EXPECT(BNORM_BAD_SHAPE, k->conv.out_channels = 0);
    EXPECT(BNORM_BAD_SHAPE, k->conv.in_channels = 0);
    EXPECT(BNORM_BAD_SHAPE, k->conv.kernel = 0);
    EXPECT(BNORM_BAD_SHAPE, k->conv.groups = 4); /* not of out */
    EXPECT(BNORM_BAD_SHAPE, k->conv.groups = 3); /* not of in */
    EXPECT(BNORM_BAD_SHAPE, k->conv.groups = max);
    EXPECT(BNORM_BAD_SHAPE, k->conv.out_channels = max - 1);
    EXPECT(BNORM_BAD_SHAPE, k->conv.in_channels = max - 1);
    EXPECT(BNORM_BAD_SHAPE, k->conv.kernel = max);
    EXPECT(BNORM_BAD_SHAPE, k->conv.kernel = max / (C * 2) + 1);                 /* elements */
    EXPECT(BNORM_BAD_SHAPE, k->conv.kernel = max / (C * 2) / sizeof(float) + 1); /* bytes */
    /* The most that fit get as far as the next check, that of the mean. */
    for (size_t more = 0; more < 2; more++) {
        const bnorm_status status = more ? BNORM_BAD_SHAPE : BNORM_NULL_POINTER;
        EXPECT(status, (k->param[MEAN] = NULL, k->conv.kernel = MOST_FLOATS / (C * 4) + more));
        EXPECT(status, (k->param[MEAN] = NULL, k->conv.kernel = k->conv.groups = 1,
                        k->conv.in_channels = MOST_FLOATS / C + more));
    }
    EXPECT(BNORM_UNSUPPORTED, k->conv.layout = BNORM_CONV_HWOI);
    EXPECT(BNORM_OK, (k->conv.layout = BNORM_CONV_HWOI, k->conv.groups = 0));
}

/* ---------------------------------------------------------------------------------------------- */
/* Texts and handles                                                                              */

/* All that is laid out in a workspace ends in it, wherever it begins and wherever in a batch the
 * images are. */
static void test_workspace_layout(struct test *t) {
    struct rng *const r = &t->rng;
    for (size_t i = 0; i < 20000; i++) {
        const size_t hw = rng_below(r, 2) ? 1 : 1 + rng_below(r, 3000);
        const bnorm_shape shape = {.layout = (bnorm_layout)rng_below(r, 2),
                                   .n = 1 + rng_below(r, 3000),
                                   .c = 1 + rng_below(r, 200),
                                   .hw = hw};
        const size_t first = rng_below(r, 100000);
        bnorm_view view;
        bnorm_view_of(&shape, &view);
        const bnorm_blocks blocks = bnorm_blocks_of(&view, first);
        const uintptr_t begin = ((uintptr_t)1 << 40) + rng_below(r, 64);
        const bnorm_tables tables = bnorm_tables_of(&view, &blocks, (void *)begin);
        const uintptr_t end = begin + bnorm_workspace_need(&view, &blocks);
        char text[96];
        if ((uintptr_t)(tables.params[1] + view.c) > end ||
            (uintptr_t)(tables.weights + blocks.count) > (uintptr_t)tables.coefficients[0])
            test_fail(t, "%s first=%zu: tables end behind the workspace", shape_text(&shape, text),
                      first);
    }
}

struct slice {
    size_t begin, run_stride, image_stride;
};

static size_t runs_of(const bnorm_shape *shape) {
    const size_t b = shape->c_block ? shape->c_block : 1;
    return shape->layout == BNORM_NHWC ? shape->hw : (shape->c + b - 1) / b;
}

/* Which floats of a buffer a slice has, padding included; 0 if it has one of them twice. */
static int mark_elements(const bnorm_shape *shape, const struct slice *s, unsigned char *marked) {
    const size_t b = shape->c_block ? shape->c_block : 1;
    const size_t len = shape->layout == BNORM_NHWC ? shape->c : shape->hw * b;
    for (size_t n = 0; n < shape->n; n++)
        for (size_t run = 0; run < runs_of(shape); run++)
            for (size_t i = 0; i < len; i++)
                if (marked[s->begin + n * s->image_stride + run * s->run_stride + i]++)
                    return 0;
    return 1;
}

/* Whether y may be written to while x is read, of so many floats. */
static bnorm_status status_of(const bnorm_shape *shape, const struct slice *x,
                              const struct slice *y, const unsigned char *x_has,
                              const unsigned char *y_has, size_t size) {
    const int differ = (runs_of(shape) > 1 && x->run_stride != y->run_stride) ||
                       (shape->n > 1 && x->image_stride != y->image_stride);
    size_t x_end = size, y_end = size, meet = 0;
    while (!x_has[x_end - 1])
        x_end--;
    while (!y_has[y_end - 1])
        y_end--;
    for (size_t i = 0; i < size; i++)
        meet += x_has[i] && y_has[i];
    if (differ)
        return x->begin < y_end && y->begin < x_end ? BNORM_BAD_OVERLAP : BNORM_OK;
    return meet && x->begin != y->begin ? BNORM_BAD_OVERLAP : BNORM_OK;
}

/* Two slices of one buffer, at any distance, against what a count of their elements says. */
static void test_any_slices(struct test *t) {
    enum { MOST = 4, SIZE = 2400 };
    static float buffer[SIZE];
    struct rng *const r = &t->rng;
    size_t apart = 0, meeting = 0;
    for (size_t i = test_repeat(400000, 100000, 30000); i-- > 0;) {
        static const size_t blocks[] = {0, 0, 4};
        const bnorm_layout layout = rng_below(r, 3) ? BNORM_NCHW : BNORM_NHWC;
        const bnorm_shape shape = {.layout = layout,
                                   .n = 1 + rng_below(r, MOST),
                                   .c = 1 + rng_below(r, MOST + 2),
                                   .hw = 1 + rng_below(r, MOST),
                                   .c_block = layout == BNORM_NCHW ? blocks[rng_below(r, 3)] : 0};
        const struct slice xs = {rng_below(r, SIZE / 2), 1 + rng_below(r, 40),
                                 1 + rng_below(r, 120)};
        struct slice ys = xs;
        ys.begin = rng_below(r, 4) ? rng_below(r, SIZE / 2) : xs.begin + rng_below(r, 40);
        if (rng_below(r, 4) == 0)
            ys.run_stride = 1 + rng_below(r, 40);
        if (rng_below(r, 4) == 0)
            ys.image_stride = 1 + rng_below(r, 120);
        unsigned char x_has[SIZE] = {0}, y_has[SIZE] = {0};
        if (!mark_elements(&shape, &xs, x_has) || !mark_elements(&shape, &ys, y_has))
            continue;
        const bnorm_in x = {buffer + xs.begin, xs.run_stride, xs.image_stride};
        const bnorm_out y = {buffer + ys.begin, ys.run_stride, ys.image_stride};
        const bnorm_status got = bnorm_apply(&shape, x, y, NULL, NULL);
        test_context(t, "layout %d n=%zu c=%zu hw=%zu block=%zu x %zu, %zu y %zu, %zu distance %td",
                     layout, shape.n, shape.c, shape.hw, shape.c_block, xs.run_stride,
                     xs.image_stride, ys.run_stride, ys.image_stride,
                     (ptrdiff_t)(ys.begin - xs.begin));
        if (got == BNORM_BAD_STRIDE)
            continue; /* images and runs that are woven into each other */
        check_status(t, "bnorm_apply", got, status_of(&shape, &xs, &ys, x_has, y_has, SIZE));
        apart += got == BNORM_OK;
        meeting += got != BNORM_OK;
    }
    if (apart < 1000 || meeting < 1000)
        test_fail(t, "only %zu slices apart and %zu that meet", apart, meeting);
}

static void test_strerror(struct test *t) {
    const int garbage[] = {BNORM_BAD_RENORM + 1, -1, 1000, INT_MAX, INT_MIN};
    const char *texts[BNORM_BAD_RENORM + 1 + sizeof garbage / sizeof garbage[0]];
    const size_t statuses = BNORM_BAD_RENORM + 1;
    const size_t all = sizeof texts / sizeof texts[0];
    for (size_t i = 0; i < all; i++) {
        const int status = i < statuses ? (int)i : garbage[i - statuses];
        test_context(t, "status %d", status);
        const char *text = texts[i] = bnorm_strerror((bnorm_status)status);
        if (text == NULL)
            test_fail(t, "NULL");
        const size_t length = strlen(text);
        if (length < 8 || text[0] < 'A' || text[0] > 'Z' || text[length - 1] != '.' ||
            strchr(text, ' ') == NULL)
            test_fail(t, "\"%s\" is no sentence", text);
        for (size_t j = 0; j < i && j < statuses; j++)
            if (strcmp(texts[j], text) == 0)
                test_fail(t, "\"%s\" says the same as status %zu", text, j);
    }
}

static void test_isa_handles(struct test *t) {
    char version[64];
    snprintf(version, sizeof version, "%d.%d.%d", BNORM_VERSION_MAJOR, BNORM_VERSION_MINOR,
             BNORM_VERSION_PATCH);
    if (strcmp(bnorm_version(), version) != 0)
        test_fail(t, "library %s, header %s", bnorm_version(), version);
    static const char order[] = "avx512 avx2 neon scalar";
    const char *at = order;
    size_t count = 0;
    int best_listed = 0;
    for (const bnorm_isa *isa; (isa = bnorm_isa_at(count)) != NULL; count++) {
        const char *name = bnorm_isa_name(isa);
        test_context(t, "set %zu", count);
        if (name == NULL || name[0] == '\0')
            test_fail(t, "no name");
        const char *const found = strstr(at, name);
        if (!found)
            test_fail(t, "%s is not listed in the order %s", name, order);
        at = found;
        if (bnorm_isa_find(name) != isa)
            test_fail(t, "bnorm_isa_find(\"%s\") gives another set", name);
        for (size_t i = 0; i < count; i++)
            if (bnorm_isa_at(i) == isa)
                test_fail(t, "%s is listed twice", name);
        best_listed |= isa == bnorm_isa_best();
        if (count > 64)
            test_fail(t, "the list has no end");
    }
    test_context(t, "%zu sets", count);
    if (count == 0 || strcmp(bnorm_isa_name(bnorm_isa_at(count - 1)), "scalar") != 0)
        test_fail(t, "the last set is not scalar");
    if (!best_listed)
        test_fail(t, "bnorm_isa_best() is not in the list");
    if (bnorm_isa_at(count + 1) != NULL || bnorm_isa_at(SIZE_MAX) != NULL)
        test_fail(t, "a set past the end");
    if (strcmp(bnorm_isa_name(NULL), bnorm_isa_name(bnorm_isa_best())) != 0)
        test_fail(t, "bnorm_isa_name(NULL) is not the best");
    const char *unknown[] = {NULL, "", "avx", "AVX2", "scala", "scalars", "avx2 ", "sse2"};
    for (size_t i = 0; i < sizeof unknown / sizeof unknown[0]; i++)
        if (bnorm_isa_find(unknown[i]) != NULL)
            test_fail(t, "bnorm_isa_find(\"%s\") found something",
                      unknown[i] ? unknown[i] : "NULL");
}

/* ---------------------------------------------------------------------------------------------- */

/* ---------------------------------------------------------------------------------------------- */
/* Arrays of more floats than channels: an output must not meet the last of them, either           */

/* Another buffer begins at the array's last float, and then behind it. */
static bnorm_status at_the_end(size_t at, size_t floats) {
    return at < floats ? BNORM_BAD_OVERLAP : BNORM_OK;
}

static void test_coefficients(struct test *t) {
    float x[C] = {1, 2, 3, 4, 5, 6}, ones[C] = {1, 1, 1, 1, 1, 1};
    double nodes[2][4 * C];
    float memory[7 * C], ws[WS_ROOM / 4];
    const bnorm_shape shape = {.n = 1, .c = C, .hw = 1};
    bnorm_partial piece = {.c = C, .nodes = nodes[0], .size = sizeof nodes[0]}, sums = piece;
    sums.op = BNORM_OP_BACKWARD;
    sums.nodes = nodes[1];
    bnorm_grad grad = {.save_mean = ones, .save_invstd = ones};
    const bnorm_in in = {.data = x};
    check_status(t, "bnorm_partial_collect",
                 bnorm_partial_collect(&shape, in, &piece, ws, sizeof ws, NULL), BNORM_OK);
    check_status(t, "bnorm_partial_collect_grad",
                 bnorm_partial_collect_grad(&shape, in, in, &grad, &sums, ws, sizeof ws, NULL),
                 BNORM_OK);
    for (size_t at = 3 * C - 1; at <= 3 * C; at++) {
        const bnorm_train options = {.eps = 1, .save_mean = memory + at};
        test_context(t, "save_mean at %zu", at);
        check_status(t, "bnorm_partial_finish", bnorm_partial_finish(&piece, &options, memory),
                     at_the_end(at, 3 * C));
    }
    for (size_t at = 5 * C - 1; at <= 5 * C; at++) {
        test_context(t, "an output at %zu", at);
        grad.dgamma = memory + at;
        check_status(t, "bnorm_partial_finish_grad",
                     bnorm_partial_finish_grad(&sums, &grad, memory), at_the_end(at, 5 * C));
        const bnorm_out dx = {.data = memory + at};
        check_status(t, "bnorm_partial_apply_grad",
                     bnorm_partial_apply_grad(&shape, in, in, dx, &grad, memory, NULL),
                     at_the_end(at, 5 * C));
    }
}

/* Saved statistics of groups, of which each of the others, or dbeta, meets the last. */
static void test_saved_groups(struct test *t) {
    enum { GROUPS = 2, SAVED = GROUPS * C, ARRAYS = 4 };
    float x[SAVED], y[SAVED], memory[ARRAYS][SAVED], ws[WS_ROOM / 4], long_array[2 * SAVED];
    const bnorm_shape shape = {.n = GROUPS, .c = C, .hw = 1};
    const bnorm_ghost ghost = {.groups = GROUPS};
    const bnorm_in in = {.data = x};
    const bnorm_out out = {.data = y};
    for (size_t i = 0; i < SAVED; i++)
        x[i] = (float)i;
    for (size_t i = 0; i < ARRAYS * ARRAYS * 2; i++) {
        const size_t one = i % ARRAYS, other = i / ARRAYS % ARRAYS, at = SAVED - 1 + i / 16;
        float *arrays[ARRAYS] = {memory[0], memory[1], memory[2], memory[3]};
        arrays[one] = long_array;
        if (one == other)
            continue;
        arrays[other] = long_array + at;
        const bnorm_train options = {.eps = 1,
                                     .save_mean = arrays[0],
                                     .save_invstd = arrays[1],
                                     .save_var = arrays[2],
                                     .save_mean_lo = arrays[3]};
        test_context(t, "array %zu at %zu of array %zu", other, at, one);
        check_status(
            t, "bnorm_forward_train_ghost",
            bnorm_forward_train_ghost(&shape, in, out, &options, &ghost, ws, sizeof ws, NULL),
            at_the_end(at, SAVED));
    }
    for (size_t i = 0; i < SAVED; i++)
        memory[0][i] = long_array[i] = 1;
    for (size_t i = 0; i < ARRAYS * 2; i++) {
        const size_t one = i % ARRAYS, at = SAVED - 1 + i / ARRAYS;
        const bnorm_grad grad = {.save_mean = one == 0 ? long_array : memory[0],
                                 .save_invstd = one == 1   ? long_array
                                                : one == 2 ? NULL
                                                           : memory[0],
                                 .save_var = one == 2 ? long_array : NULL,
                                 .save_mean_lo = one == 3 ? long_array : NULL,
                                 .dbeta = long_array + at};
        test_context(t, "dbeta at %zu of array %zu", at, one);
        check_status(t, "bnorm_backward_ghost",
                     bnorm_backward_ghost(&shape, in, in, out, &grad, &ghost, ws, sizeof ws, NULL),
                     at_the_end(at, SAVED));
    }
}

void add_errors(struct suite *s) {
    static const struct function *const on_tensors[] = {
        &apply, &moments, &train, &train_elsewhere, &backward_residual, &backward_y, &backward_var};
    static const struct function *const folds[] = {&fold, &fold_conv};
    for (size_t i = 0; i < sizeof on_tensors / sizeof on_tensors[0]; i++) {
        const struct function *f = on_tensors[i];
        suite_add(s, NULL, test_null, f, "errors/%s/null", f->name);
        suite_add(s, NULL, test_null_structs, f, "errors/%s/null-structs", f->name);
        suite_add(s, NULL, test_shape, f, "errors/%s/shape", f->name);
        suite_add(s, NULL, test_stride, f, "errors/%s/stride", f->name);
        suite_add(s, NULL, test_blocked_shape, f, "errors/%s/blocked", f->name);
        suite_add(s, NULL, test_small_elements, f, "errors/%s/small-elements", f->name);
        suite_add(s, NULL, test_empty, f, "errors/%s/empty", f->name);
        if (f->views_out) {
            suite_add(s, NULL, test_view_overlap, f, "errors/%s/tensor-overlap", f->name);
            suite_add(s, NULL, test_slices, f, "errors/%s/slices", f->name);
            suite_add(s, NULL, test_act, f, "errors/%s/activation", f->name);
        }
        suite_add(s, NULL, test_param_overlap, f, "errors/%s/parameter-overlap", f->name);
        suite_add(s, NULL, test_exec, f, "errors/%s/exec", f->name);
        if (f->op >= 0)
            suite_add(s, NULL, test_workspace_refusals, f, "errors/%s/workspace", f->name);
    }
    suite_add(s, NULL, test_options_of_apply, &apply, "errors/apply/center-alias");
    suite_add(s, NULL, test_y_dtype, &apply, "errors/apply/y-dtype");
    suite_add(s, NULL, test_quant, &apply, "errors/apply/quant");
    suite_add(s, NULL, test_eps, &train, "errors/forward_train/eps");
    suite_add(s, NULL, test_eps, &backward_var, "errors/backward-var/eps");
    suite_add(s, NULL, test_running, &train, "errors/forward_train/running");
    for (size_t i = 0; i < sizeof folds / sizeof folds[0]; i++) {
        const struct function *f = folds[i];
        suite_add(s, NULL, test_null, f, "errors/%s/null", f->name);
        suite_add(s, NULL, test_eps, f, "errors/%s/eps", f->name);
        suite_add(s, NULL, test_fold_parameters, f, "errors/%s/parameters", f->name);
        suite_add(s, NULL, test_param_overlap, f, "errors/%s/parameter-overlap", f->name);
    }
    suite_add(s, NULL, test_view_overlap, &fold_conv, "errors/fold_conv/weights-overlap");
    suite_add(s, NULL, test_workspace_size, NULL, "errors/workspace/size");
    suite_add_per_isa(s, test_workspace_memory, NULL, "errors/workspace/memory/%s");
    suite_add(s, NULL, test_workspace_layout, NULL, "errors/workspace/layout");
    suite_add(s, NULL, test_any_slices, NULL, "errors/any-slices");
    suite_add(s, NULL, test_coefficients, NULL, "errors/coefficients");
    suite_add(s, NULL, test_saved_groups, NULL, "errors/saved-groups");
    suite_add(s, NULL, test_strerror, NULL, "errors/strerror");
    suite_add(s, NULL, test_isa_handles, NULL, "errors/isa-handles");
}
