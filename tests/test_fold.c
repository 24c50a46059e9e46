/* SPDX-License-Identifier: MIT
 *
 * Folding against the formulas in extended precision, a folded convolution against convolution and
 * batch norm, and the momentum presets against what each framework documents. */
#include <math.h>
#include <string.h>
#include "harness.h"

/* A quarter more than half a unit in the last place of a float: rounding once, and the few units of
 * a double that came before. */
#define ROUNDED 0x1.4p-24
#define TINY    0x1p-149 /* below the normal floats rounding is absolute */

static void fill(struct test *t, float *p, size_t count, double low, double high) {
    for (size_t i = 0; i < count; i++)
        p[i] = (float)rng_uniform(&t->rng, low, high);
}

/* One batch norm of c channels. */
struct norm {
    size_t c;
    float *gamma, *beta, *mean, *var;
    double eps;
};

static struct norm new_norm(struct test *t, size_t c) {
    struct norm n = {
        c, test_floats(t, c), test_floats(t, c), test_floats(t, c), test_floats(t, c), 1e-3};
    fill(t, n.gamma, c, -2, 2);
    fill(t, n.beta, c, -3, 3);
    fill(t, n.mean, c, -5, 5);
    fill(t, n.var, c, 0.01, 9);
    return n;
}

static long double oracle_scale(const float *gamma, const float *var, double eps, size_t i) {
    const long double variance = (long double)var[i] + (long double)eps;
    return variance == 0 ? 0 : (gamma ? (long double)gamma[i] : 1) / sqrtl(variance);
}

/* ---------------------------------------------------------------------------------------------- */
/* bnorm_fold                                                                                     */

static void check_fold(struct test *t, const struct norm *n, int with_gamma, int with_beta) {
    float *scale = test_floats(t, n->c), *shift = test_floats(t, n->c);
    const float *gamma = with_gamma ? n->gamma : NULL, *beta = with_beta ? n->beta : NULL;
    test_context(t, "c = %zu, eps = %g, gamma %d, beta %d", n->c, n->eps, with_gamma, with_beta);
    check_status(t, "bnorm_fold",
                 bnorm_fold(n->c, gamma, beta, n->mean, n->var, n->eps, scale, shift), BNORM_OK);
    for (size_t i = 0; i < n->c; i++) {
        const long double s = oracle_scale(gamma, n->var, n->eps, i);
        check_near(t, "scale", i, scale[i], (double)s, (double)(fabsl(s) * ROUNDED + TINY));
        /* With scale[i] as it was written; the product and the sum are each good to 2^-53. */
        const long double product = (long double)n->mean[i] * (long double)scale[i];
        const long double b = (beta ? (long double)beta[i] : 0) - product;
        check_near(t, "shift", i, shift[i], (double)b,
                   (double)(fabsl(b) * ROUNDED + fabsl(product) * 0x1p-52L) + TINY);
    }
}

static void test_fold(struct test *t) {
    for (size_t c = 1; c <= 40; c++) {
        struct norm n = new_norm(t, c);
        for (int parts = 0; parts < 4; parts++) {
            const double eps[] = {0, 1e-9, 1e-5, 1e-3, 1};
            for (size_t e = 0; e < sizeof eps / sizeof eps[0]; e++) {
                n.eps = eps[e];
                check_fold(t, &n, parts & 1, parts & 2);
            }
        }
    }
    /* Ranges in which a float formula would lose everything. */
    struct norm n = new_norm(t, 64);
    fill(t, n.var, n.c, 0, 1e-30);
    n.eps = 1e-9;
    check_fold(t, &n, 1, 1);
    fill(t, n.mean, n.c, 1e6, 2e6);
    check_fold(t, &n, 1, 1);
    fill(t, n.var, n.c, 1e30, 3e38);
    check_fold(t, &n, 1, 1);
}

static void test_fold_special(struct test *t) {
    const float gamma[4] = {3, 3, 3, 3}, beta[4] = {7, 7, 7, 7}, mean[4] = {2, NAN, 2, 2};
    const float var[4] = {0, 4, NAN, 4};
    const float want_scale[4] = {0, 1.5f, bits_float(NAN_BITS), 1.5f};
    const float want_shift[4] = {7, bits_float(NAN_BITS), bits_float(NAN_BITS), 4};
    float scale[4], shift[4];
    test_context(t, "eps 0, a variance of 0 and NaNs");
    check_status(t, "bnorm_fold", bnorm_fold(4, gamma, beta, mean, var, 0, scale, shift), BNORM_OK);
    check_bits(t, "scale", scale, want_scale, 4);
    check_bits(t, "shift", shift, want_shift, 4);
    const float negative = -1e-3f;
    test_context(t, "a negative variance that eps makes up for");
    check_status(t, "bnorm_fold", bnorm_fold(1, NULL, NULL, mean, &negative, 0.251, scale, shift),
                 BNORM_OK);
    check_near(t, "scale", 0, scale[0], 1 / sqrt((double)negative + 0.251), 2 * ROUNDED);
}

/* scale and shift may each be any of the inputs. */
static void test_fold_in_place(struct test *t) {
    enum { C = 19 };
    const struct norm n = new_norm(t, C);
    const float *const inputs[4] = {n.gamma, n.beta, n.mean, n.var};
    float want_scale[C], want_shift[C];
    check_status(t, "bnorm_fold",
                 bnorm_fold(C, n.gamma, n.beta, n.mean, n.var, n.eps, want_scale, want_shift),
                 BNORM_OK);
    for (size_t a = 0; a < 5; a++) {
        for (size_t b = 0; b < 5; b++) {
            float copy[6][C];
            if (a == b && a < 4)
                continue;
            for (size_t i = 0; i < 4; i++)
                memcpy(copy[i], inputs[i], sizeof copy[i]);
            float *scale = a < 4 ? copy[a] : copy[4], *shift = b < 4 ? copy[b] : copy[5];
            test_context(t, "scale in input %zu, shift in input %zu (4 = neither)", a, b);
            check_status(t, "bnorm_fold",
                         bnorm_fold(C, copy[0], copy[1], copy[2], copy[3], n.eps, scale, shift),
                         BNORM_OK);
            check_bits(t, "scale", scale, want_scale, C);
            check_bits(t, "shift", shift, want_shift, C);
        }
    }
}

/* ---------------------------------------------------------------------------------------------- */
/* bnorm_fold_conv                                                                                */

struct conv_case {
    bnorm_conv conv;
    int transposed;
};

/* Where the weight for output channel o, input channel i (both of all groups, in one group) and
 * kernel position k lies. */
static size_t weight_index(const bnorm_conv *v, size_t o, size_t i, size_t k) {
    const size_t groups = v->groups ? v->groups : 1;
    const size_t o_group = v->out_channels / groups, i_group = v->in_channels / groups;
    switch (v->layout) {
    case BNORM_CONV_OIHW:
        return (o * i_group + i % i_group) * v->kernel + k;
    case BNORM_CONV_OHWI:
        return (o * v->kernel + k) * i_group + i % i_group;
    case BNORM_CONV_HWIO:
        return (k * i_group + i % i_group) * v->out_channels + o;
    case BNORM_CONV_IOHW:
        return (i * o_group + o % o_group) * v->kernel + k;
    case BNORM_CONV_HWOI:
        return (k * v->out_channels + o) * v->in_channels + i;
    }
    return 0;
}

static int same_group(const bnorm_conv *v, size_t o, size_t i) {
    const size_t groups = v->groups ? v->groups : 1;
    return o / (v->out_channels / groups) == i / (v->in_channels / groups);
}

static size_t weight_count(const bnorm_conv *v) {
    return v->out_channels * v->in_channels * v->kernel / (v->groups ? v->groups : 1);
}

/* Every element of the weights and the bias against the formula. */
static void check_fold_conv(struct test *t, const bnorm_conv *v, const struct norm *n,
                            int with_gamma, int with_beta, int with_bias) {
    const size_t count = weight_count(v);
    float *weights = test_floats(t, count), *bias = test_floats(t, n->c);
    float *out_weights = test_floats(t, count), *out_bias = test_floats(t, n->c);
    unsigned char *seen = test_alloc(t, count);
    const float *gamma = with_gamma ? n->gamma : NULL, *beta = with_beta ? n->beta : NULL;
    fill(t, weights, count, -1, 1);
    fill(t, bias, n->c, -2, 2);
    test_context(t,
                 "layout %d, %zu out, %zu in, kernel %zu, groups %zu, gamma %d, beta %d, bias %d",
                 (int)v->layout, v->out_channels, v->in_channels, v->kernel, v->groups, with_gamma,
                 with_beta, with_bias);
    check_status(t, "bnorm_fold_conv",
                 bnorm_fold_conv(v, gamma, beta, n->mean, n->var, n->eps, weights,
                                 with_bias ? bias : NULL, out_weights, out_bias),
                 BNORM_OK);
    for (size_t o = 0; o < v->out_channels; o++) {
        const long double s = oracle_scale(gamma, n->var, n->eps, o);
        for (size_t i = 0; i < v->in_channels; i++) {
            for (size_t k = 0; same_group(v, o, i) && k < v->kernel; k++) {
                const size_t at = weight_index(v, o, i, k);
                const long double want = (long double)weights[at] * s;
                seen[at]++;
                check_near(t, "weight", at, out_weights[at], (double)want,
                           (double)(fabsl(want) * ROUNDED + TINY));
            }
        }
        const long double b = (with_bias ? (long double)bias[o] : 0) - (long double)n->mean[o];
        const long double want = b * s + (beta ? (long double)beta[o] : 0);
        check_near(t, "bias", o, out_bias[o], (double)want,
                   (double)(fabsl(want) * ROUNDED + fabsl(b * s) * 0x1p-51L) + TINY);
    }
    for (size_t i = 0; i < count; i++)
        if (seen[i] != 1)
            test_fail(t, "the test itself visits weight %zu %d times", i, seen[i]);

    /* In place: the same bits. */
    const size_t bytes = n->c * sizeof(float);
    float *place_weights = test_floats(t, count), *place_bias = test_floats(t, n->c);
    float *const outs[] = {n->gamma, n->beta, n->mean, n->var};
    for (size_t k = 0; k < 5; k++) {
        float *bias_out = k < 4 ? outs[k] : place_bias, *saved = test_floats(t, n->c);
        memcpy(place_weights, weights, count * sizeof(float));
        memcpy(place_bias, bias, bytes);
        memcpy(saved, bias_out, bytes);
        check_status(t, "bnorm_fold_conv in place",
                     bnorm_fold_conv(v, gamma, beta, n->mean, n->var, n->eps, place_weights,
                                     with_bias ? place_bias : NULL, place_weights, bias_out),
                     BNORM_OK);
        check_bits(t, "weights in place", place_weights, out_weights, count);
        check_bits(t, "bias in place", bias_out, out_bias, n->c);
        memcpy(bias_out, saved, bytes);
    }
}

/* The layer and the batch norm behind it, or the folded layer alone: the same up to rounding. The
 * layer is computed here, in double, over one spatial axis with kernel positions as taps. */
static void check_end_to_end(struct test *t, const struct conv_case *cc, const struct norm *n) {
    const bnorm_conv *v = &cc->conv;
    enum { INPUT = 11 };
    const size_t length = cc->transposed ? INPUT + v->kernel - 1 : INPUT - v->kernel + 1;
    const size_t count = weight_count(v), out_count = v->out_channels * length;
    float *x = test_floats(t, v->in_channels * INPUT), *weights = test_floats(t, count);
    float *bias = test_floats(t, n->c), *y = test_floats(t, out_count);
    float *folded_weights = test_floats(t, count), *folded_bias = test_floats(t, n->c);
    double *plain = test_alloc(t, out_count * sizeof(double));
    double *folded = test_alloc(t, out_count * sizeof(double));
    double *size = test_alloc(t, out_count * sizeof(double)); /* sum of the magnitudes */
    fill(t, x, v->in_channels * INPUT, -1, 1);
    fill(t, weights, count, -1, 1);
    fill(t, bias, n->c, -1, 1);
    test_context(t, "layout %d, groups %zu, end to end", (int)v->layout, v->groups);
    check_status(t, "bnorm_fold_conv",
                 bnorm_fold_conv(v, n->gamma, n->beta, n->mean, n->var, n->eps, weights, bias,
                                 folded_weights, folded_bias),
                 BNORM_OK);
    for (size_t o = 0; o < v->out_channels; o++) {
        for (size_t p = 0; p < length; p++) {
            const size_t at = o * length + p;
            plain[at] = (double)bias[o];
            folded[at] = (double)folded_bias[o];
            size[at] = fabs(folded[at]);
        }
        for (size_t i = 0; i < v->in_channels; i++) {
            for (size_t k = 0; same_group(v, o, i) && k < v->kernel; k++) {
                const size_t w = weight_index(v, o, i, k);
                for (size_t p = 0; p < (cc->transposed ? INPUT : length); p++) {
                    const size_t at = o * length + p + (cc->transposed ? k : 0);
                    const double in = (double)x[i * INPUT + p + (cc->transposed ? 0 : k)];
                    plain[at] += (double)weights[w] * in;
                    folded[at] += (double)folded_weights[w] * in;
                    size[at] += fabs((double)folded_weights[w] * in);
                }
            }
        }
    }
    const bnorm_shape shape = {.layout = BNORM_NCHW, .n = 1, .c = v->out_channels, .hw = length};
    float *scale = test_floats(t, n->c), *shift = test_floats(t, n->c);
    for (size_t i = 0; i < out_count; i++)
        y[i] = (float)plain[i];
    check_status(t, "bnorm_fold",
                 bnorm_fold(n->c, n->gamma, n->beta, n->mean, n->var, n->eps, scale, shift),
                 BNORM_OK);
    const bnorm_affine affine = {.scale = scale, .shift = shift};
    check_status(t, "bnorm_apply",
                 bnorm_apply(&shape, (bnorm_in){.data = y}, (bnorm_out){.data = y}, &affine, NULL),
                 BNORM_OK);
    for (size_t i = 0; i < out_count; i++) {
        const size_t o = i / length;
        /* 2^-24 each: folded weights and bias; the layer's output, scale (it multiplies output and
         * mean), shift and y. */
        const double scaled = fabs((double)scale[o]);
        const double bound =
            0x1p-24 * (size[i] + (2 * fabs(plain[i]) + fabs((double)n->mean[o])) * scaled +
                       fabs((double)shift[o]) + fabs(folded[i]));
        check_near(t, "output", i, y[i], folded[i], 1.01 * bound);
    }
}

static void test_fold_conv(struct test *t) {
    const struct conv_case *cc = t->param;
    struct norm n = new_norm(t, cc->conv.out_channels);
    for (int parts = 0; parts < 8; parts++)
        check_fold_conv(t, &cc->conv, &n, parts & 1, parts >> 1 & 1, parts >> 2 & 1);
    n.eps = 0;
    n.var[0] = 0;
    check_fold_conv(t, &cc->conv, &n, 1, 1, 1);
    n = new_norm(t, cc->conv.out_channels);
    for (int i = 0; i < 5; i++)
        check_end_to_end(t, cc, &n);
}

/* ---------------------------------------------------------------------------------------------- */
/* Presets                                                                                        */

static void check_preset(struct test *t, const char *name, bnorm_running r, const float *mean,
                         const float *var, double rate, bnorm_variance variance) {
    test_context(t, "%s, rate %.17g", name, r.rate);
    if (r.mean != mean || r.var != var)
        test_fail(t, "the pointers are not the caller's");
    if (r.variance != variance)
        test_fail(t, "variance kind %d", (int)r.variance);
    if (!(fabs(r.rate - rate) <= 1e-13 * fabs(rate)))
        test_fail(t, "want the rate %.17g", rate);
}

static void test_preset_values(struct test *t) {
    const bnorm_variance population = BNORM_VARIANCE_POPULATION, sample = BNORM_VARIANCE_SAMPLE;
    float m[1], v[1];
    const struct {
        const char *name;
        bnorm_running running;
        double rate;
        bnorm_variance variance;
    } presets[] = {
        {"keras 0.99", bnorm_running_keras(m, v, 0.99), 0.01, population},
        {"keras 0", bnorm_running_keras(m, v, 0), 1, population},
        {"tensorflow 0.99", bnorm_running_tensorflow(m, v, 0.99), 0.01, sample},
        {"tensorflow 1", bnorm_running_tensorflow(m, v, 1), 0, sample},
        {"pytorch 0.1", bnorm_running_pytorch(m, v, 0.1), 0.1, sample},
        {"pytorch -1.2", bnorm_running_pytorch(m, v, -1.2), -1.2, sample},
        {"pytorch None, step 1", bnorm_running_pytorch_cumulative(m, v, 1), 1, sample},
        {"pytorch None, step 2", bnorm_running_pytorch_cumulative(m, v, 2), 0.5, sample},
        {"pytorch None, step 8", bnorm_running_pytorch_cumulative(m, v, 8), 0.125, sample},
        {"pytorch None, step 0", bnorm_running_pytorch_cumulative(m, v, 0), 1, sample},
        {"onnx 0.9", bnorm_running_onnx(m, v, 0.9), 0.1, population},
        {"caffe 0.999, step 1", bnorm_running_caffe(m, v, 0.999, 1), 1, sample},
        {"caffe 0.999, step 2", bnorm_running_caffe(m, v, 0.999, 2), 1 / 1.999, sample},
        {"caffe 0.5, step 3", bnorm_running_caffe(m, v, 0.5, 3), 4.0 / 7, sample},
        {"caffe 0, step 9", bnorm_running_caffe(m, v, 0, 9), 1, sample},
        {"caffe 1, step 1", bnorm_running_caffe(m, v, 1, 1), 1, sample},
        {"caffe 1, step 1000", bnorm_running_caffe(m, v, 1, 1000), 0.001, sample},
        {"caffe 0.5, long after", bnorm_running_caffe(m, v, 0.5, SIZE_MAX), 0.5, sample},
        {"caffe 0.999, long after", bnorm_running_caffe(m, v, 0.999, 10000000), 0.001, sample},
        /* (1 - f)/(1 - f^n) with 1 - f = 2^-40: no cancellation allowed. 1/n*(1 + (n-1)/2*2^-40).
         */
        {"caffe near 1", bnorm_running_caffe(m, v, 1 - 0x1p-40, 1001),
         1 / 1001.0 * (1 + 500 * 0x1p-40), sample},
    };
    for (size_t i = 0; i < sizeof presets / sizeof presets[0]; i++)
        check_preset(t, presets[i].name, presets[i].running, m, v, presets[i].rate,
                     presets[i].variance);
}

/* One training step on `count` values of one channel. */
static void step(struct test *t, const float *x, size_t count, bnorm_running running) {
    const bnorm_shape shape = {.layout = BNORM_NHWC, .n = count, .c = 1, .hw = 1};
    const bnorm_train train = {.eps = 1e-3, .running = running};
    const size_t size = bnorm_workspace(BNORM_OP_FORWARD_TRAIN, &shape);
    float *y = test_floats(t, count);
    check_status(t, "bnorm_forward_train",
                 bnorm_forward_train(&shape, (bnorm_in){.data = x}, (bnorm_out){.data = y}, &train,
                                     test_alloc(t, size), size, NULL),
                 BNORM_OK);
}

/* x = 3, 4 has mean 3.5, population variance 0.25 and sample variance 0.5; running statistics start
 * at 0 and 1, as in every framework. Worked by hand from the documentation of each. */
static void test_one_step(struct test *t) {
    static const float x[2] = {3, 4};
    float mean, var;
    const struct {
        const char *name;
        bnorm_running running;
        double mean, var;
    } cases[] = {
        {"keras, momentum 0.99", bnorm_running_keras(&mean, &var, 0.99), 0.035, 0.9925},
        {"tensorflow, momentum 0.99", bnorm_running_tensorflow(&mean, &var, 0.99), 0.035, 0.995},
        {"pytorch, momentum 0.1", bnorm_running_pytorch(&mean, &var, 0.1), 0.35, 0.95},
        {"pytorch, momentum None", bnorm_running_pytorch_cumulative(&mean, &var, 1), 3.5, 0.5},
        {"onnx, momentum 0.9", bnorm_running_onnx(&mean, &var, 0.9), 0.35, 0.925},
        {"caffe, fraction 0.999", bnorm_running_caffe(&mean, &var, 0.999, 1), 3.5, 0.5},
        {"rate -1.2", bnorm_running_pytorch(&mean, &var, -1.2), -4.2, 1.6},
    };
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        test_context(t, "%s", cases[i].name);
        mean = 0;
        var = 1;
        step(t, x, 2, cases[i].running);
        check_near(t, "running mean", 0, mean, cases[i].mean, fabs(cases[i].mean) * 0x1p-23);
        check_near(t, "running variance", 0, var, cases[i].var, cases[i].var * 0x1p-23);
    }
    /* TensorFlow's own test of its fused kernel. */
    static const float fused[6] = {5, 7, 9, 11, 13, 15};
    test_context(t, "tensorflow, 5 7 9 11 13 15");
    step(t, fused, 6, bnorm_running_tensorflow(&mean, &var, 0));
    check_near(t, "running mean", 0, mean, 10, 0);
    check_near(t, "running variance", 0, var, 14, 0);
    /* One value: no sample variance exists; the frameworks that train on it keep 0. */
    test_context(t, "one value");
    step(t, fused, 1, bnorm_running_tensorflow(&mean, &var, 0));
    check_near(t, "running mean", 0, mean, 5, 0);
    check_near(t, "running variance", 0, var, 0, 0);
}

enum { STEPS = 20, BATCH = 6 };

/* Mean and both variances of a batch in long double. */
struct batch {
    float x[BATCH];
    double mean, population, sample;
};

static struct batch new_batch(struct test *t) {
    struct batch b;
    long double sum = 0, squares = 0;
    const double center = rng_uniform(&t->rng, -4, 4), deviation = rng_uniform(&t->rng, 0.5, 3);
    for (size_t i = 0; i < BATCH; i++) {
        b.x[i] = (float)(center + deviation * rng_normal(&t->rng));
        sum += (long double)b.x[i];
    }
    for (size_t i = 0; i < BATCH; i++) {
        const long double d = (long double)b.x[i] - sum / BATCH;
        squares += d * d;
    }
    b.mean = (double)(sum / BATCH);
    b.population = (double)(squares / BATCH);
    b.sample = (double)(squares / (BATCH - 1));
    return b;
}

enum framework { KERAS, TENSORFLOW, PYTORCH, CUMULATIVE, ONNX, CAFFE };

static bnorm_running preset_of(enum framework f, float *mean, float *var, size_t k) {
    switch (f) {
    case KERAS:
        return bnorm_running_keras(mean, var, 0.99);
    case TENSORFLOW:
        return bnorm_running_tensorflow(mean, var, 0.9);
    case PYTORCH:
        return bnorm_running_pytorch(mean, var, 0.1);
    case CUMULATIVE:
        return bnorm_running_pytorch_cumulative(mean, var, k);
    case ONNX:
        return bnorm_running_onnx(mean, var, 0.9);
    case CAFFE:
        break;
    }
    return bnorm_running_caffe(mean, var, 0.95, k);
}

/* 20 steps as each framework's source does them, in double. */
static void test_twenty_steps(struct test *t) {
    const enum framework f = *(const enum framework *)t->param;
    float mean = 0, var = 1;
    double want_mean = 0, want_var = 1;           /* the moving averages */
    double sum_mean = 0, sum_var = 0, weight = 0; /* Caffe's blobs; PyTorch's plain sums */
    double largest = 1;
    for (size_t k = 1; k <= STEPS; k++) {
        const struct batch b = new_batch(t);
        test_context(t, "step %zu", k);
        step(t, b.x, BATCH, preset_of(f, &mean, &var, k));
        switch (f) {
        case KERAS:
            want_mean = want_mean * 0.99 + b.mean * (1 - 0.99);
            want_var = want_var * 0.99 + b.population * (1 - 0.99);
            break;
        case TENSORFLOW:
            want_mean -= (want_mean - b.mean) * (1 - 0.9);
            want_var -= (want_var - b.sample) * (1 - 0.9);
            break;
        case PYTORCH:
            want_mean = 0.1 * b.mean + (1 - 0.1) * want_mean;
            want_var = 0.1 * b.sample + (1 - 0.1) * want_var;
            break;
        case CUMULATIVE:
            sum_mean += b.mean;
            sum_var += b.sample;
            want_mean = sum_mean / (double)k;
            want_var = sum_var / (double)k;
            break;
        case ONNX:
            want_mean = want_mean * 0.9 + b.mean * (1 - 0.9);
            want_var = want_var * 0.9 + b.population * (1 - 0.9);
            break;
        case CAFFE:
            sum_mean = 0.95 * sum_mean + b.mean;
            sum_var = 0.95 * sum_var + b.sample;
            weight = 0.95 * weight + 1;
            want_mean = sum_mean / weight;
            want_var = sum_var / weight;
            break;
        }
        largest = fmax(largest, fmax(fabs(b.mean), b.sample));
        /* Each step rounds the state to float once; with rates in [0, 1] errors never grow. A batch
         * variance is the sum of groups of 8 squares in float: at most 2^-24 for each deviation
         * (squared: twice), four chained fma and one addition. */
        const double bound = (double)k * largest * 0x1p-24 * 1.01;
        check_near(t, "running mean", 0, mean, want_mean, bound);
        check_near(t, "running variance", 0, var, want_var, bound + 7 * largest * 0x1p-24);
    }
}

void add_fold(struct suite *s) {
    static const struct {
        const char *name;
        struct conv_case conv;
    } convs[] = {
        {"oihw/plain", {{BNORM_CONV_OIHW, 5, 3, 4, 0}, 0}},
        {"oihw/groups", {{BNORM_CONV_OIHW, 6, 4, 3, 2}, 0}},
        {"oihw/depthwise", {{BNORM_CONV_OIHW, 7, 7, 5, 7}, 0}},
        {"oihw/depth-multiplier", {{BNORM_CONV_OIHW, 6, 3, 3, 3}, 0}},
        {"oihw/linear", {{BNORM_CONV_OIHW, 9, 13, 1, 1}, 0}},
        {"ohwi/plain", {{BNORM_CONV_OHWI, 5, 3, 4, 1}, 0}},
        {"ohwi/groups", {{BNORM_CONV_OHWI, 4, 6, 3, 2}, 0}},
        {"ohwi/linear", {{BNORM_CONV_OHWI, 3, 8, 1, 0}, 0}},
        {"hwio/plain", {{BNORM_CONV_HWIO, 5, 3, 4, 0}, 0}},
        {"hwio/groups", {{BNORM_CONV_HWIO, 6, 4, 3, 2}, 0}},
        {"hwio/linear", {{BNORM_CONV_HWIO, 11, 6, 1, 0}, 0}},
        {"iohw/plain", {{BNORM_CONV_IOHW, 5, 3, 4, 0}, 1}},
        {"iohw/groups", {{BNORM_CONV_IOHW, 6, 4, 3, 2}, 1}},
        {"iohw/depthwise", {{BNORM_CONV_IOHW, 5, 5, 3, 5}, 1}},
        {"hwoi/plain", {{BNORM_CONV_HWOI, 5, 3, 4, 0}, 1}},
        {"hwoi/one-group", {{BNORM_CONV_HWOI, 2, 7, 3, 1}, 1}},
        {"oihw/one-channel", {{BNORM_CONV_OIHW, 1, 1, 1, 1}, 0}},
    };
    static const struct {
        const char *name;
        enum framework framework;
    } frameworks[] = {{"keras", KERAS},     {"tensorflow", TENSORFLOW},
                      {"pytorch", PYTORCH}, {"pytorch-none", CUMULATIVE},
                      {"onnx", ONNX},       {"caffe", CAFFE}};
    suite_add(s, NULL, test_fold, NULL, "fold/scale-shift");
    suite_add(s, NULL, test_fold_special, NULL, "fold/special");
    suite_add(s, NULL, test_fold_in_place, NULL, "fold/in-place");
    for (size_t i = 0; i < sizeof convs / sizeof convs[0]; i++)
        suite_add(s, NULL, test_fold_conv, &convs[i].conv, "fold/%s", convs[i].name);
    suite_add(s, NULL, test_preset_values, NULL, "fold/presets/values");
    suite_add(s, NULL, test_one_step, NULL, "fold/presets/one-step");
    for (size_t i = 0; i < sizeof frameworks / sizeof frameworks[0]; i++)
        suite_add(s, NULL, test_twenty_steps, &frameworks[i].framework, "fold/presets/%s",
                  frameworks[i].name);
}
