/* SPDX-License-Identifier: MIT
 *
 * The scalar kernel set: the readable specification of every kernel, bit for bit. It shares no code
 * with the SIMD templates, so that a bug there can't hide here. docs/numerics.md explains the order
 * of the sums. */
#include "../../dispatch/isa.h"
#include "../plan.h"

#include <float.h>
#include <math.h>
#include <string.h>

/* Every NaN that bnorm writes is this one, so that the bits do not depend on how a CPU propagates
 * payloads. */
static float canonical(float v) {
    const unsigned bits = 0xffffffffu;
    float nan_value;
    memcpy(&nan_value, &bits, sizeof nan_value);
    return v == v ? v : nan_value;
}

static double canonical_double(double v) {
    const unsigned long long bits = 0xffffffffffffffffu;
    double nan_value;
    memcpy(&nan_value, &bits, sizeof nan_value);
    return v == v ? v : nan_value;
}

/* ---------------------------------------------------------------------------------------------- */
/* Reductions. Chain j of a channel holds rows j, j + chains, j + 2*chains, ...; each chain is
 * summed in groups of 8, each group as a fixed tree in which missing rows count as zero; then the
 * chains are folded, upper half onto lower half. */

struct chain {
    const float *x;
    size_t step;  /* elements from one member to the next */
    size_t count; /* members */
};

static struct chain chain_of(const float *x, size_t stride, size_t rows, size_t chains, size_t j) {
    struct chain chain = {x + j * stride, stride * chains, 0};
    if (j < rows)
        chain.count = (rows - j + chains - 1) / chains;
    return chain;
}

static double tree(const double v[BNORM_GROUP]) {
    return ((v[0] + v[1]) + (v[2] + v[3])) + ((v[4] + v[5]) + (v[6] + v[7]));
}

static double fold(double *partial, size_t chains) {
    for (size_t half = chains / 2; half > 0; half /= 2)
        for (size_t j = 0; j < half; j++)
            partial[j] += partial[j + half];
    return partial[0];
}

static double chain_sum(struct chain chain) {
    double sum = 0;
    for (size_t q = 0; q < chain.count; q += BNORM_GROUP) {
        double v[BNORM_GROUP] = {0};
        for (size_t i = 0; i < BNORM_GROUP && q + i < chain.count; i++)
            v[i] = (double)chain.x[(q + i) * chain.step];
        sum += tree(v);
    }
    return sum;
}

/* Squares of a group in float: even rows and odd rows each in one chain of fma, then both added. */
static double chain_squares(struct chain chain, float pivot) {
    double sum = 0;
    for (size_t q = 0; q < chain.count; q += BNORM_GROUP) {
        float d[BNORM_GROUP] = {0};
        for (size_t i = 0; i < BNORM_GROUP && q + i < chain.count; i++)
            d[i] = chain.x[(q + i) * chain.step] - pivot;
        float even = d[0] * d[0], odd = d[1] * d[1];
        for (size_t i = 2; i < BNORM_GROUP; i += 2) {
            even = fmaf(d[i], d[i], even);
            odd = fmaf(d[i + 1], d[i + 1], odd);
        }
        const float both = even + odd;
        sum += (double)both;
    }
    return sum;
}

/* The same in double, for groups whose squares leave the range of a float. */
static double chain_squares_wide(struct chain chain, float pivot) {
    double sum = 0;
    for (size_t q = 0; q < chain.count; q += BNORM_GROUP) {
        double d[BNORM_GROUP] = {0};
        for (size_t i = 0; i < BNORM_GROUP && q + i < chain.count; i++)
            d[i] = (double)chain.x[(q + i) * chain.step] - (double)pivot;
        double even = d[0] * d[0], odd = d[1] * d[1];
        for (size_t i = 2; i < BNORM_GROUP; i += 2) {
            even = fma(d[i], d[i], even);
            odd = fma(d[i + 1], d[i + 1], odd);
        }
        sum += even + odd;
    }
    return sum;
}

/* Sum and sum of squared deviations of one channel's block: sum, pivot = sum/rows rounded to float,
 * squares about the pivot, corrected for the pivot's rounding. */
static void moments_channel(const float *x, size_t stride, size_t rows, size_t chains, double *sum,
                            double *m2) {
    double partial[BNORM_SPAN_LANES] = {0};
    const double n = (double)rows, inverse_n = 1 / n;

    for (size_t j = 0; j < chains; j++)
        partial[j] = chain_sum(chain_of(x, stride, rows, chains, j));
    const double total = fold(partial, chains);
    const float pivot = (float)(total * inverse_n);

    for (size_t j = 0; j < chains; j++)
        partial[j] = chain_squares(chain_of(x, stride, rows, chains, j), pivot);
    double squares = fold(partial, chains);

    /* Over- or underflow in float, or a NaN, or a constant. */
    if (!(squares >= 0x1p-90 && squares <= DBL_MAX)) {
        for (size_t j = 0; j < chains; j++)
            partial[j] = chain_squares_wide(chain_of(x, stride, rows, chains, j), pivot);
        squares = fold(partial, chains);
    }
    const double excess = fma(-n, (double)pivot, total);
    const double centred = fma(-excess, excess * inverse_n, squares);
    *sum = canonical_double(total);
    *m2 = canonical_double(centred < 0 ? 0 : centred);
}

static void moments_rows(const float *x, size_t stride, size_t rows, size_t c, size_t chains,
                         double *sum, double *m2) {
    for (size_t i = 0; i < c; i++)
        moments_channel(x + i, stride, rows, chains, &sum[i], &m2[i]);
}

static void moments_span(const float *x, size_t stride, size_t planes, size_t len, double *sum,
                         double *m2) {
    for (size_t i = 0; i < planes; i++)
        moments_channel(x + i * stride, 1, len, BNORM_SPAN_LANES, &sum[i], &m2[i]);
}

/* Chan, Golub, LeVeque: "Updating formulae and a pairwise algorithm for computing sample variances"
 * (1979), with excess = n_block*(block mean - mean), which is exactly 0 for equal means. */
static void merge(size_t c, double n_before, double n_block, const double *sum,
                  const double *block_m2, double *mean, double *m2) {
    const double n = n_before + n_block, inverse_n = 1 / n;
    const double weight = n_before / (n_block * n);
    for (size_t i = 0; i < c; i++) {
        if (n_before == 0) {
            mean[i] = sum[i] / n_block;
            m2[i] = block_m2[i];
            continue;
        }
        const double excess = fma(-n_block, mean[i], sum[i]);
        mean[i] = canonical_double(fma(excess, inverse_n, mean[i]));
        m2[i] = canonical_double(fma(excess * excess, weight, m2[i] + block_m2[i]));
    }
}

/* ---------------------------------------------------------------------------------------------- */
/* Elementwise */

/* 1/6 and 1/3 to the bit: where FLT_EVAL_METHOD is not 0, 1.0f / 6 is no float. */
#define SIXTH 0x1.555556p-3f
#define THIRD 0x1.555556p-2f

static float activate(const bnorm_act *act, float v) {
    switch (act->kind) {
    case BNORM_ACT_IDENTITY:
        break;
    case BNORM_ACT_RELU:
        return v <= 0 ? 0 : v;
    case BNORM_ACT_CLAMP:
        v = v <= act->a ? act->a : v;
        return v >= act->b ? act->b : v;
    case BNORM_ACT_LEAKY_RELU:
        return v > 0 ? v : v * act->a;
    case BNORM_ACT_HARD_SWISH: {
        if (v <= -3)
            return 0;
        if (v >= 3)
            return v;
        const float shifted = v + 3, product = v * shifted;
        return product * SIXTH;
    }
    }
    return v;
}

/* dy times the derivative of the activation at v. */
static float gradient(const bnorm_act *act, float v, float dy) {
    switch (act->kind) {
    case BNORM_ACT_IDENTITY:
        break;
    case BNORM_ACT_RELU:
        return v > 0 ? dy : 0;
    case BNORM_ACT_CLAMP:
        return v > act->a && v < act->b ? dy : 0;
    case BNORM_ACT_LEAKY_RELU:
        return v > 0 ? dy : dy * act->a;
    case BNORM_ACT_HARD_SWISH: {
        if (v <= -3)
            return 0;
        if (v >= 3)
            return dy;
        const float slope = fmaf(v, THIRD, 0.5f);
        return dy * slope;
    }
    }
    return dy;
}

/* Element i of run r; parameters of channel ch. */
static void apply_element(const bnorm_apply_args *a, size_t r, size_t i, size_t ch) {
    float v = a->x[r * a->x_stride + i];
    if (a->center)
        v = v - a->center[ch];
    v = fmaf(v, a->scale[ch], a->shift[ch]);
    if (a->residual)
        v = v + a->residual[r * a->residual_stride + i];
    a->y[r * a->y_stride + i] = canonical(activate(&a->act, v));
}

static void apply_rows(const bnorm_apply_args *a) {
    for (size_t r = 0; r < a->runs; r++)
        for (size_t i = 0; i < a->len; i++)
            apply_element(a, r, i, i);
}

static void apply_span(const bnorm_apply_args *a) {
    for (size_t r = 0; r < a->runs; r++)
        for (size_t i = 0; i < a->len; i++)
            apply_element(a, r, i, r);
}

static float grad_element(const bnorm_grad_args *a, size_t r, size_t i, size_t ch) {
    const float dy = a->dy[r * a->dy_stride + i];
    if (a->pre == BNORM_PRE_NONE)
        return dy;
    const float centred = a->x[r * a->x_stride + i] - a->center[ch];
    float v = fmaf(centred, a->scale[ch], a->shift[ch]);
    if (a->pre == BNORM_PRE_RESIDUAL)
        v = v + a->extra[r * a->extra_stride + i];
    else if (a->pre == BNORM_PRE_Y)
        v = a->extra[r * a->extra_stride + i];
    return gradient(&a->act, v, dy);
}

/* Sums of one channel whose element q is (run0 + q*run_step, i0 + q*i_step): by rows or along a
 * plane. */
static void sums_channel(const bnorm_grad_args *a, size_t ch, size_t count, size_t chains,
                         int along_run, double *sum_g, double *sum_gx) {
    double partial_g[BNORM_SPAN_LANES] = {0}, partial_gx[BNORM_SPAN_LANES] = {0};
    for (size_t j = 0; j < chains; j++) {
        partial_g[j] = partial_gx[j] = 0;
        for (size_t q = j; q < count; q += BNORM_GROUP * chains) {
            double g[BNORM_GROUP] = {0}, t[BNORM_GROUP] = {0};
            for (size_t k = 0; k < BNORM_GROUP && q + k * chains < count; k++) {
                const size_t r = along_run ? ch : q + k * chains,
                             i = along_run ? q + k * chains : ch;
                g[k] = (double)grad_element(a, r, i, ch);
                t[k] = (double)a->x[r * a->x_stride + i] - (double)a->center[ch];
            }
            double even = g[0] * t[0], odd = g[1] * t[1];
            for (size_t k = 2; k < BNORM_GROUP; k += 2) {
                even = fma(g[k], t[k], even);
                odd = fma(g[k + 1], t[k + 1], odd);
            }
            partial_g[j] += tree(g);
            partial_gx[j] += even + odd;
        }
    }
    *sum_g = canonical_double(fold(partial_g, chains));
    *sum_gx = canonical_double(fold(partial_gx, chains));
}

static void sums_rows(const bnorm_grad_args *a, size_t chains, double *sum_g, double *sum_gx) {
    for (size_t ch = 0; ch < a->len; ch++)
        sums_channel(a, ch, a->runs, chains, 0, &sum_g[ch], &sum_gx[ch]);
}

static void sums_span(const bnorm_grad_args *a, double *sum_g, double *sum_gx) {
    for (size_t ch = 0; ch < a->runs; ch++)
        sums_channel(a, ch, a->len, BNORM_SPAN_LANES, 1, &sum_g[ch], &sum_gx[ch]);
}

static void dx_element(const bnorm_grad_args *a, size_t r, size_t i, size_t ch) {
    const float g = grad_element(a, r, i, ch);
    float dx = g * a->scale[ch];
    if (a->dx && a->slope) {
        const float centred = a->x[r * a->x_stride + i] - a->center[ch];
        const float xh = centred * a->invstd[ch];
        dx = fmaf(xh, a->slope[ch], fmaf(g, a->scale[ch], a->offset[ch]));
    }
    if (a->dx)
        a->dx[r * a->dx_stride + i] = canonical(dx);
    if (a->dresidual)
        a->dresidual[r * a->dresidual_stride + i] = canonical(g);
}

static void dx_rows(const bnorm_grad_args *a) {
    for (size_t r = 0; r < a->runs; r++)
        for (size_t i = 0; i < a->len; i++)
            dx_element(a, r, i, i);
}

static void dx_span(const bnorm_grad_args *a) {
    for (size_t r = 0; r < a->runs; r++)
        for (size_t i = 0; i < a->len; i++)
            dx_element(a, r, i, r);
}

const struct bnorm_isa bnorm_isa_scalar = {.name = "scalar",
#define X(kernel, args) .kernel = kernel,
                                           BNORM_KERNELS(X)
#undef X
};
