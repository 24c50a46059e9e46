/* SPDX-License-Identifier: MIT
 *
 * What Keras, tf-keras, TensorFlow, PyTorch, ONNX Runtime and ONNX's reference computed, as
 * recorded in frameworks.inc by make conformance-snapshot: bnorm gives the same through the
 * matching preset. A tolerance is the framework's own error (against float64) on that case plus
 * some roundings. make conformance compares with the frameworks themselves, and on many more cases. */
#include <math.h>
#include <stdio.h>
#include <string.h>
#include "harness.h"

enum preset {
    PRESET_NONE = 0, /* running statistics are not tracked */
    PRESET_KERAS,
    PRESET_TENSORFLOW,
    PRESET_PYTORCH,
    PRESET_PYTORCH_CUMULATIVE,
    PRESET_ONNX,
    PRESET_CAFFE
};

struct expected {
    const float *values; /* NULL: the framework does not say */
    double tolerance;
};

/* Tensors are dense, in the shape's layout. y and gradients are those of the last step. */
struct snapshot {
    const char *name; /* framework (version)/case */
    bnorm_shape shape;
    enum preset preset;
    int frozen;   /* statistics are mean and var */
    size_t steps; /* tensors at x */
    double eps, momentum;
    bnorm_ghost ghost;          /* groups 0 = none */
    double weight_epsilon;      /* where weights are given */
    const bnorm_renorm *renorm; /* NULL = none */
    double renorm_momentum;     /* of the averages that r and d are computed from */
    const float *x, *dy;
    const float *gamma, *beta; /* may be NULL */
    const float *mean, *var;   /* running statistics before the first step */
    const float *weights;      /* NULL = none */
    struct expected y, dx, dgamma, dbeta;
    struct expected running_mean, running_var; /* after every step */
};

static const struct snapshot snapshots[] = {
#include "frameworks.inc"
};

struct results {
    float *y, *dx, *dgamma, *dbeta, *running_mean, *running_var;
};

static bnorm_running running_of(const struct snapshot *s, float *mean, float *var, size_t step) {
    switch (s->preset) {
    case PRESET_NONE:
        break;
    case PRESET_KERAS:
        return bnorm_running_keras(mean, var, s->momentum);
    case PRESET_TENSORFLOW:
        return bnorm_running_tensorflow(mean, var, s->momentum);
    case PRESET_PYTORCH:
        return bnorm_running_pytorch(mean, var, s->momentum);
    case PRESET_PYTORCH_CUMULATIVE:
        return bnorm_running_pytorch_cumulative(mean, var, step);
    case PRESET_ONNX:
        return bnorm_running_onnx(mean, var, s->momentum);
    case PRESET_CAFFE:
        return bnorm_running_caffe(mean, var, s->momentum, step);
    }
    return (bnorm_running){0};
}

static void run_backward(struct test *t, const struct snapshot *s, const float *x,
                         const bnorm_grad *grad, const bnorm_exec *exec, const struct results *r) {
    const bnorm_in in = {.data = x}, dy = {.data = s->dy};
    const bnorm_out dx = {.data = r->dx};
    const size_t size = bnorm_workspace(BNORM_OP_BACKWARD, &s->shape);
    void *ws = test_alloc(t, size);
    if (s->ghost.groups)
        check_status(t, "bnorm_backward_ghost",
                     bnorm_backward_ghost(&s->shape, in, dy, dx, grad, &s->ghost, ws, size, exec),
                     BNORM_OK);
    else
        check_status(t, "bnorm_backward",
                     bnorm_backward(&s->shape, in, dy, dx, grad, ws, size, exec), BNORM_OK);
}

/* Averages of the mean and of the standard deviation sqrt(variance + eps), as Keras keeps them for
 * batch renormalization. */
struct averages {
    float *mean, *deviation;
};

static struct averages averages_new(struct test *t, const struct snapshot *s) {
    const size_t c = s->shape.c;
    const struct averages a = {test_floats(t, c), test_floats(t, c)};
    for (size_t i = 0; i < c; i++) {
        a.mean[i] = s->mean[i];
        a.deviation[i] = sqrtf(s->var[i]);
    }
    return a;
}

static void averages_update(struct test *t, const struct averages *a, const struct snapshot *s,
                            const struct averages *batch, double momentum) {
    const bnorm_running running = bnorm_running_keras(a->mean, a->deviation, momentum);
    check_status(t, "bnorm_running_update",
                 bnorm_running_update(s->shape.c, batch->mean, batch->deviation,
                                      (double)(s->shape.n * s->shape.hw), &running),
                 BNORM_OK);
}

static void variance_of(const struct snapshot *s, const float *deviation, float *var) {
    for (size_t i = 0; i < s->shape.c; i++)
        var[i] = (float)fmax((double)deviation[i] * (double)deviation[i] - s->eps, 0);
}

static void run_train(struct test *t, const struct snapshot *s, const bnorm_exec *exec,
                      const struct results *r) {
    const size_t c = s->shape.c, count = shape_count(&s->shape);
    const size_t saved = c * (s->ghost.groups ? s->ghost.groups : 1);
    const size_t size = bnorm_workspace(BNORM_OP_FORWARD_TRAIN, &s->shape);
    void *ws = test_alloc(t, size);
    float *mean = test_floats(t, c), *var = test_floats(t, c);
    memcpy(mean, s->mean, c * sizeof *mean);
    memcpy(var, s->var, c * sizeof *var);
    bnorm_renorm renorm = {0};
    bnorm_train train = {.gamma = s->gamma,
                         .beta = s->beta,
                         .eps = s->eps,
                         .save_mean = test_floats(t, saved),
                         .save_invstd = test_floats(t, saved),
                         .save_mean_lo = test_floats(t, saved),
                         .weights = {s->weights, s->weight_epsilon}};
    const struct averages slow = averages_new(t, s), fast = averages_new(t, s);
    const struct averages batch = {train.save_mean, test_floats(t, c)};
    if (s->renorm) {
        renorm = *s->renorm;
        renorm.save_r = test_floats(t, c);
        renorm.save_d = test_floats(t, c);
        train.renorm = &renorm;
    }

    for (size_t step = 1; step <= s->steps; step++) {
        const bnorm_in x = {.data = s->x + (step - 1) * count};
        const bnorm_out y = {.data = r->y};
        train.running = running_of(s, mean, var, step);
        if (s->renorm) { /* r and d are computed from one pair of averages, kept as it is here */
            variance_of(s, fast.deviation, var);
            train.running = (bnorm_running){.mean = fast.mean, .var = var};
        }
        if (s->ghost.groups)
            check_status(
                t, "bnorm_forward_train_ghost",
                bnorm_forward_train_ghost(&s->shape, x, y, &train, &s->ghost, ws, size, exec),
                BNORM_OK);
        else
            check_status(t, "bnorm_forward_train",
                         bnorm_forward_train(&s->shape, x, y, &train, ws, size, exec), BNORM_OK);
        if (s->renorm) { /* the other pair, slower by default, is for inference */
            for (size_t i = 0; i < c; i++)
                batch.deviation[i] = 1 / train.save_invstd[i];
            averages_update(t, &fast, s, &batch, s->renorm_momentum);
            averages_update(t, &slow, s, &batch, s->momentum);
            memcpy(mean, slow.mean, c * sizeof *mean);
            variance_of(s, slow.deviation, var);
        }
        memcpy(r->running_mean + (step - 1) * c, mean, c * sizeof *mean);
        memcpy(r->running_var + (step - 1) * c, var, c * sizeof *var);
    }
    const bnorm_grad grad = {.gamma = s->gamma,
                             .beta = s->beta,
                             .save_mean = train.save_mean,
                             .save_invstd = train.save_invstd,
                             .save_mean_lo = train.save_mean_lo,
                             .dgamma = r->dgamma,
                             .dbeta = r->dbeta,
                             .weights = train.weights,
                             .renorm_r = renorm.save_r,
                             .renorm_d = renorm.save_d};
    run_backward(t, s, s->x + (s->steps - 1) * count, &grad, exec, r);
}

static void run_frozen(struct test *t, const struct snapshot *s, const bnorm_exec *exec,
                       const struct results *r) {
    const size_t c = s->shape.c;
    float *scale = test_floats(t, c), *invstd = test_floats(t, c), *shift = test_floats(t, c);
    check_status(t, "bnorm_fold",
                 bnorm_fold(c, s->gamma, NULL, s->mean, s->var, s->eps, scale, shift), BNORM_OK);
    check_status(t, "bnorm_fold", bnorm_fold(c, NULL, NULL, s->mean, s->var, s->eps, invstd, shift),
                 BNORM_OK);
    const bnorm_affine affine = {.center = s->mean, .scale = scale, .shift = s->beta};
    check_status(
        t, "bnorm_apply",
        bnorm_apply(&s->shape, (bnorm_in){.data = s->x}, (bnorm_out){.data = r->y}, &affine, exec),
        BNORM_OK);
    const bnorm_grad grad = {.gamma = s->gamma,
                             .beta = s->beta,
                             .save_mean = s->mean,
                             .save_invstd = invstd,
                             .frozen = 1,
                             .dgamma = r->dgamma,
                             .dbeta = r->dbeta};
    run_backward(t, s, s->x, &grad, exec, r);
}

static void check_recorded(struct test *t, const char *what, const float *got,
                           const struct expected *want, size_t count) {
    for (size_t i = 0; want->values && i < count; i++)
        check_near(t, what, i, got[i], (double)want->values[i], want->tolerance);
}

static void test_snapshot(struct test *t) {
    const struct snapshot *s = t->param;
    test_context(t, "%s", s->name);
    const size_t c = s->shape.c, count = shape_count(&s->shape);
    const struct results r = {.y = test_floats(t, count),
                              .dx = test_floats(t, count),
                              .dgamma = test_floats(t, c),
                              .dbeta = test_floats(t, c),
                              .running_mean = test_floats(t, s->steps * c),
                              .running_var = test_floats(t, s->steps * c)};
    const bnorm_exec exec = {.isa = t->isa};
    (s->frozen ? run_frozen : run_train)(t, s, &exec, &r);
    check_recorded(t, "y", r.y, &s->y, count);
    check_recorded(t, "dx", r.dx, &s->dx, count);
    check_recorded(t, "dgamma", r.dgamma, &s->dgamma, c);
    check_recorded(t, "dbeta", r.dbeta, &s->dbeta, c);
    check_recorded(t, "running mean", r.running_mean, &s->running_mean, s->steps * c);
    check_recorded(t, "running variance", r.running_var, &s->running_var, s->steps * c);
}

void add_frameworks(struct suite *s) {
    for (size_t i = 0; i < sizeof snapshots / sizeof snapshots[0]; i++) {
        char name[256];
        snprintf(name, sizeof name, "frameworks/%s/%%s", snapshots[i].name);
        suite_add_per_isa(s, test_snapshot, &snapshots[i], name);
    }
}
