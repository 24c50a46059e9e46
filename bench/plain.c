/* SPDX-License-Identifier: MIT */
#include "plain.h"

#include <math.h>
#include <string.h>

/* "relu" is a constant wherever these are called: no test is left in the loops. */
static inline float activate(float v, int relu) {
    return relu && !(v > 0) ? 0 : v;
}

static inline float at_or_0(const float *residual, size_t i) {
    return residual ? residual[i] : 0;
}

/* "residual" is NULL or p->dy, and a constant NULL too. */
static inline void inference_nhwc(const bench_problem *p, float *restrict y,
                                  const float *restrict residual, int relu) {
    const float *restrict mean = p->mean, *restrict scale = p->scale, *restrict beta = p->beta;
    for (size_t row = 0; row < p->n * p->hw; row++) {
        const float *restrict x = p->x + row * p->c;
        for (size_t c = 0; c < p->c; c++)
            y[row * p->c + c] = activate(
                (x[c] - mean[c]) * scale[c] + beta[c] + at_or_0(residual, row * p->c + c), relu);
    }
}

static inline void inference_nchw(const bench_problem *p, float *restrict y,
                                  const float *restrict residual, int relu) {
    for (size_t plane = 0; plane < p->n * p->c; plane++) {
        const float *restrict x = p->x + plane * p->hw;
        const size_t c = plane % p->c;
        const float mean = p->mean[c], scale = p->scale[c], beta = p->beta[c];
        for (size_t i = 0; i < p->hw; i++)
            y[plane * p->hw + i] =
                activate((x[i] - mean) * scale + beta + at_or_0(residual, plane * p->hw + i), relu);
    }
}

/* From the batch's mean and variance of a channel: what is saved and the running statistics. */
static void finish_statistics(const bench_problem *p, const bench_result *r, size_t c, float mean,
                              float var) {
    const float count = (float)(p->n * p->hw);
    const float sample = count > 1 ? var * count / (count - 1) : var;
    r->mean[c] = mean;
    r->invstd[c] = 1 / sqrtf(var + (float)p->eps);
    r->running_mean[c] += (float)BENCH_RATE * (mean - r->running_mean[c]);
    r->running_var[c] += (float)BENCH_RATE * (sample - r->running_var[c]);
}

static inline void training_nhwc(const bench_problem *p, const bench_result *r, int relu) {
    const size_t rows = p->n * p->hw, channels = p->c;
    float *restrict mean = r->mean, *restrict var = r->invstd, *restrict y = r->tensor;
    memset(mean, 0, channels * sizeof *mean);
    memset(var, 0, channels * sizeof *var);
    for (size_t row = 0; row < rows; row++) {
        const float *restrict x = p->x + row * channels;
        for (size_t c = 0; c < channels; c++)
            mean[c] += x[c];
    }
    for (size_t c = 0; c < channels; c++)
        mean[c] /= (float)rows;
    for (size_t row = 0; row < rows; row++) {
        const float *restrict x = p->x + row * channels;
        for (size_t c = 0; c < channels; c++)
            var[c] += (x[c] - mean[c]) * (x[c] - mean[c]);
    }
    for (size_t c = 0; c < channels; c++)
        finish_statistics(p, r, c, mean[c], var[c] / (float)rows);
    const float *restrict gamma = p->gamma, *restrict beta = p->beta, *restrict invstd = var;
    for (size_t row = 0; row < rows; row++) {
        const float *restrict x = p->x + row * channels;
        for (size_t c = 0; c < channels; c++)
            y[row * channels + c] =
                activate((x[c] - mean[c]) * (gamma[c] * invstd[c]) + beta[c], relu);
    }
}

static inline void training_nchw(const bench_problem *p, const bench_result *r, int relu) {
    const size_t image = p->c * p->hw;
    const float count = (float)(p->n * p->hw);
    for (size_t c = 0; c < p->c; c++) {
        const float *restrict x = p->x + c * p->hw;
        float *restrict y = r->tensor + c * p->hw;
        float sum = 0, squares = 0;
        for (size_t n = 0; n < p->n; n++)
            for (size_t i = 0; i < p->hw; i++)
                sum += x[n * image + i];
        const float mean = sum / count;
        for (size_t n = 0; n < p->n; n++)
            for (size_t i = 0; i < p->hw; i++)
                squares += (x[n * image + i] - mean) * (x[n * image + i] - mean);
        finish_statistics(p, r, c, mean, squares / count);
        const float scale = p->gamma[c] * r->invstd[c], beta = p->beta[c];
        for (size_t n = 0; n < p->n; n++)
            for (size_t i = 0; i < p->hw; i++)
                y[n * image + i] = activate((x[n * image + i] - mean) * scale + beta, relu);
    }
}

static void backward_nhwc(const bench_problem *p, const bench_result *r) {
    const size_t rows = p->n * p->hw, channels = p->c;
    const float *restrict gamma = p->gamma, *restrict mean = p->mean, *restrict invstd = p->invstd;
    float *restrict dgamma = r->dgamma, *restrict dbeta = r->dbeta, *restrict dx = r->tensor;
    memset(dgamma, 0, channels * sizeof *dgamma);
    memset(dbeta, 0, channels * sizeof *dbeta);
    for (size_t row = 0; row < rows; row++) {
        const float *restrict x = p->x + row * channels, *restrict dy = p->dy + row * channels;
        for (size_t c = 0; c < channels; c++) {
            dbeta[c] += dy[c];
            dgamma[c] += dy[c] * ((x[c] - mean[c]) * invstd[c]);
        }
    }
    const float inverse = 1 / (float)rows;
    for (size_t row = 0; row < rows; row++) {
        const float *restrict x = p->x + row * channels, *restrict dy = p->dy + row * channels;
        for (size_t c = 0; c < channels; c++) {
            const float normalized = (x[c] - mean[c]) * invstd[c];
            dx[row * channels + c] =
                gamma[c] * invstd[c] *
                (dy[c] - dbeta[c] * inverse - normalized * (dgamma[c] * inverse));
        }
    }
}

static void backward_nchw(const bench_problem *p, const bench_result *r) {
    const size_t image = p->c * p->hw;
    const float inverse = 1 / (float)(p->n * p->hw);
    for (size_t c = 0; c < p->c; c++) {
        const float *restrict x = p->x + c * p->hw, *restrict dy = p->dy + c * p->hw;
        float *restrict dx = r->tensor + c * p->hw;
        const float mean = p->mean[c], invstd = p->invstd[c];
        float dgamma = 0, dbeta = 0;
        for (size_t n = 0; n < p->n; n++)
            for (size_t i = n * image; i < n * image + p->hw; i++) {
                dbeta += dy[i];
                dgamma += dy[i] * ((x[i] - mean) * invstd);
            }
        r->dgamma[c] = dgamma;
        r->dbeta[c] = dbeta;
        const float scale = p->gamma[c] * invstd;
        const float offset = dbeta * inverse, slope = dgamma * inverse;
        for (size_t n = 0; n < p->n; n++)
            for (size_t i = n * image; i < n * image + p->hw; i++)
                dx[i] = scale * (dy[i] - offset - (x[i] - mean) * invstd * slope);
    }
}

void plain_run(const bench_problem *p, const bench_result *r) {
    const int nhwc = p->layout == BNORM_NHWC;
    switch (p->op) {
    case BENCH_INFERENCE:
        nhwc ? inference_nhwc(p, r->tensor, NULL, 0) : inference_nchw(p, r->tensor, NULL, 0);
        break;
    case BENCH_INFERENCE_RELU:
        nhwc ? inference_nhwc(p, r->tensor, NULL, 1) : inference_nchw(p, r->tensor, NULL, 1);
        break;
    case BENCH_RESIDUAL_RELU:
        nhwc ? inference_nhwc(p, r->tensor, p->dy, 1) : inference_nchw(p, r->tensor, p->dy, 1);
        break;
    case BENCH_TRAINING:
        nhwc ? training_nhwc(p, r, 0) : training_nchw(p, r, 0);
        break;
    case BENCH_TRAINING_RELU:
        nhwc ? training_nhwc(p, r, 1) : training_nchw(p, r, 1);
        break;
    case BENCH_BACKWARD:
        nhwc ? backward_nhwc(p, r) : backward_nchw(p, r);
        break;
    case BENCH_ALL_OPS:
        break;
    }
}
