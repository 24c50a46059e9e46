/* SPDX-License-Identifier: MIT */
#include "base.h"

#include "weighted.h"

#include "backward.h"
#include "channel.h"
#include "train.h"

#include <float.h>

/* How many weights from the first on are like it. */
static size_t equal_weights(const float *weights, size_t n) {
    size_t i = 1;
    if (memcmp(weights, weights + 1, (n - 1) * sizeof *weights) == 0)
        return n;
    while (i < n && weights[i] == weights[0]) /* -0 is 0 */
        i++;
    return i;
}

bnorm_status bnorm_check_weights(const bnorm_shape *shape, const bnorm_weights *weights) {
    const size_t n = shape->n * shape->hw;
    int good = 1;
    for (size_t i = 0; i < n; i++)
        good &= weights->values[i] >= 0 && weights->values[i] <= FLT_MAX;
    return good ? BNORM_OK : BNORM_BAD_WEIGHTS;
}

/* ---------------------------------------------------------------------------------------------- */
/* Statistics */

static const float *weights_at(const bnorm_weighted *weighted, const bnorm_view *view,
                               const bnorm_block *block) {
    return weighted->values + block->image * view->positions + block->from;
}

struct weighing {
    const bnorm_view *view;
    const bnorm_blocks *blocks;
    bnorm_weighted *weighted;
};

/* A task, so that it runs in exec's mode: weights that are denormal may count as 0. */
static void weigh(void *arg, size_t task) {
    const struct weighing *job = arg;
    double total = 0;
    (void)task;
    for (size_t b = 0; b < job->blocks->count; b++) {
        const bnorm_block block = bnorm_block_at(job->view, job->blocks, b);
        const float *const weights = weights_at(job->weighted, job->view, &block);
        double sums[4] = {0, 0, 0, 0};
        for (size_t i = 0; i < block.len; i++)
            sums[i % 4] += (double)weights[i];
        const double sum = (sums[0] + sums[1]) + (sums[2] + sums[3]);
        if (job->weighted->sums)
            job->weighted->sums[b] = sum;
        total += sum;
    }
    job->weighted->total = total;
}

double bnorm_weigh(const bnorm_weights *weights, const bnorm_view *view, const bnorm_blocks *blocks,
                   double *sums, const bnorm_exec *exec, bnorm_weighted *weighted) {
    struct weighing job = {view, blocks, weighted};
    weighted->values = weights->values;
    weighted->epsilon = weights->epsilon;
    weighted->sums = sums;
    weighted->total = 0;
    bnorm_run(exec, weigh, &job, 1);
    weighted->divisor = weighted->total + weights->epsilon;
    return weighted->divisor;
}

/* Positions of a block that are reduced together, as floats, without those of weight 0: all of a
 * block of a plane, or some rows of up to LANES channels. */
#define ROWS  64
#define LANES 32
_Static_assert(ROWS *LANES >= BNORM_BLOCK_SPAN, "a block of a plane is one tile");

struct tile {
    size_t n;                /* positions that have a weight */
    size_t at[ROWS * LANES]; /* which these are */
    float weight[ROWS * LANES];
    double total; /* of the weights */
    int equal;    /* not 0: all weights are weight[0] */
    size_t lanes; /* channels */
    float x[ROWS * LANES];
};

static void pick_positions(struct tile *tile, const float *weights, size_t count) {
    float first = 0;
    tile->n = 0;
    tile->total = 0;
    tile->equal = 1;
    for (size_t i = 0; i < count; i++) {
        const float weight = weights[i];
        first = first > 0 ? first : weight;
        tile->at[tile->n] = i;
        tile->weight[tile->n] = weight;
        tile->n += weight > 0;
        tile->total += (double)weight;
        tile->equal &= weight == first || !(weight > 0);
    }
}

/* Elements of the tile's channels in positions [from, from + count) of an image. */
static void widen(const bnorm_statistics *s, size_t image, size_t from, size_t count,
                  size_t channel, size_t valid, struct tile *tile) {
    static const float ones[LANES] = {1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1,
                                      1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1};
    static const float zeros[LANES] = {0};
    const bnorm_view *view = &s->view;
    const int planes = !view->rows && view->unit == 1;
    const bnorm_apply_args args = {
        .runs = planes ? 1 : count,
        .len = planes ? count : tile->lanes,
        .x = view->rows ? bnorm_at(view, &s->x, image, from, channel)
                        : bnorm_at(view, &s->x, image, channel / view->unit, from * view->unit),
        .y = tile->x,
        .x_stride = bnorm_stride(view, &s->x),
        .y_stride = tile->lanes,
        .scale = ones,
        .shift = zeros,
        .x_type = s->x.type,
        .y_type = BNORM_F32,
        .valid = valid,
    };
    if (planes)
        s->isa->apply_span(&args);
    else
        BNORM_HELD(s->isa->apply_rows(&args), args.valid < args.len);
    const size_t lanes = tile->n < count ? tile->lanes : 0;
    for (size_t k = 0; lanes == 1 && k < tile->n; k++)
        tile->x[k] = tile->x[tile->at[k]];
    for (size_t k = 0; lanes > 1 && k < tile->n; k++)
        memmove(tile->x + k * lanes, tile->x + tile->at[k] * lanes, lanes * sizeof *tile->x);
}

/* With fma, as said in channel.h. */
static void lane_moments(const struct tile *tile, size_t lane, double *mean, double *m2) {
    const float *const x = tile->x + lane;
    const double pivot = (double)x[0];
    double excess = 0, squares = 0;
    for (size_t k = 0; k < tile->n; k++)
        excess = bnorm_fma((double)tile->weight[k], (double)x[k * tile->lanes] - pivot, excess);
    const double centre = pivot + excess / tile->total;
    for (size_t k = 0; k < tile->n; k++) {
        const double d = (double)x[k * tile->lanes] - centre;
        squares = bnorm_fma((double)tile->weight[k] * d, d, squares);
    }
    *mean = centre;
    *m2 = squares;
}

/* Sums and M2 of n values of equal weight, as means and weighted M2. */
static void weight_moments(double *mean, double *m2, size_t channels, size_t n, float weight) {
    for (size_t i = 0; i < channels; i++) {
        mean[i] /= (double)n;
        m2[i] *= (double)weight;
    }
}

/* Means and M2 of the tile's first `valid` channels. */
static void tile_moments(const bnorm_statistics *s, const struct tile *tile, size_t valid,
                         double *mean, double *m2) {
    const size_t lanes = tile->lanes;
    if (!tile->equal) {
        for (size_t i = 0; i < valid; i++)
            lane_moments(tile, i, &mean[i], &m2[i]);
        return;
    }
    if (s->view.rows || s->view.unit > 1) {
        const bnorm_block_args args = {tile->x, BNORM_F32, tile->n, lanes, lanes, valid};
        s->isa->moments_rows(&args, 1, mean, m2); /* whatever channels come together */
    } else {
        const bnorm_block_args args = {tile->x, BNORM_F32, 1, tile->n, tile->n, 1};
        s->isa->moments_span(&args, mean, m2);
    }
    weight_moments(mean, m2, valid, tile->n, tile->weight[0]);
}

/* Chan, Golub, LeVeque (1979): `before` and `weight` are how much weight either side has. */
static void join(double before, double weight, double *mean, double *m2, double next_mean,
                 double next_m2) {
    const double share = weight / (before + weight), d = next_mean - *mean;
    *m2 = bnorm_fma(d * d, before * share, *m2 + next_m2);
    *mean = bnorm_fma(d, share, *mean);
}

void bnorm_weighted_reduce(const void *self, size_t b, size_t channel, size_t channels) {
    const bnorm_statistics *s = self;
    const bnorm_view *view = &s->view;
    const bnorm_block block = bnorm_block_at(view, &s->blocks, b);
    const float *const weights = weights_at(&s->weighted, view, &block);
    double *const mean = s->sum + b * view->c + channel, *const m2 =
                                                             s->block_m2 + b * view->c + channel;
    if (s->weighted.sums[b] == 0)
        return;
    if (equal_weights(weights, block.len) == block.len) {
        bnorm_statistics_reduce(s, b, channel, channels);
        weight_moments(mean, m2, channels, block.len, weights[0]);
        return;
    }
    const int planes = !view->rows && view->unit == 1;
    const size_t most = planes ? BNORM_BLOCK_SPAN : ROWS;
    size_t at_once = 1;
    if (!planes)
        at_once = view->unit > 1 ? view->unit : s->x.step == 1 ? LANES : 1;
    struct tile tile;
    double before = 0;
    for (size_t i = 0; i < channels; i++)
        mean[i] = m2[i] = 0;
    for (size_t at = 0; at < block.len; at += most) {
        const size_t count = bnorm_min(most, block.len - at);
        pick_positions(&tile, weights + at, count);
        for (size_t i = 0; tile.n && i < channels; i += at_once) {
            const size_t valid = bnorm_min(at_once, channels - i);
            double next_mean[LANES], next_m2[LANES];
            tile.lanes = view->unit > 1 ? view->unit : valid;
            widen(s, block.image, block.from + at, count, channel + i, valid, &tile);
            tile_moments(s, &tile, valid, next_mean, next_m2);
            for (size_t k = 0; k < valid; k++)
                join(before, tile.total, &mean[i + k], &m2[i + k], next_mean[k], next_m2[k]);
        }
        before += tile.total;
    }
}

void bnorm_weighted_merge(const bnorm_statistics *s, size_t channel, size_t channels) {
    const bnorm_weighted *const w = &s->weighted;
    double *const mean = s->mean + channel, *const m2 = s->m2 + channel;
    double before = 0;
    for (size_t i = 0; i < channels; i++)
        mean[i] = m2[i] = 0;
    for (size_t b = 0; b < s->blocks.count; b++) {
        const size_t entry = b * s->view.c + channel;
        for (size_t i = 0; w->sums[b] > 0 && i < channels; i++)
            join(before, w->sums[b], &mean[i], &m2[i], s->sum[entry + i], s->block_m2[entry + i]);
        before += w->sums[b];
    }
    /* So far about the weighted mean; the one that is wanted is off by some of epsilon. */
    for (size_t i = 0; i < channels; i++) {
        const double off = mean[i] * (w->epsilon / w->divisor);
        m2[i] = bnorm_fma(off * off, w->total, m2[i]);
        mean[i] *= w->total / w->divisor;
        if (m2[i] != m2[i]) /* as in the kernel `merge` */
            mean[i] = m2[i];
    }
}

/* ---------------------------------------------------------------------------------------------- */
/* Gradients */

void bnorm_weighted_coefficients(const bnorm_gradients *s, size_t channel, size_t channels) {
    const bnorm_grad_coefficient_args *const derived = &s->derived;
    const double divisor = s->weighted.divisor;
    bnorm_grad_coefficient_args sums = *derived;
    sums.slope = NULL; /* dgamma and dbeta only */
    s->isa->grad_coefficients(&sums, channel, channels);
    for (size_t i = channel; derived->slope && i < channel + channels; i++) {
        const double low = bnorm_parameter(derived->mean_lo, i, 0);
        const double invstd = (double)derived->invstd[i];
        const double scale = bnorm_parameter(derived->gamma, i, 1) * invstd;
        const double sum_gxh = bnorm_centred_sum(derived, i) * invstd;
        /* What epsilon takes off the mean, in deviations. */
        const double off = ((double)s->save_mean[i] + low) * (s->weighted.epsilon / divisor);
        const double sum = bnorm_fma(-off * invstd, sum_gxh, derived->sum_g[i]);
        derived->slope[i] = bnorm_round(-scale * (sum_gxh / divisor));
        derived->offset[i] = bnorm_round(
            bnorm_plus_product(-low * invstd, (double)derived->slope[i], -scale * (sum / divisor)));
    }
}

/* Coefficients that are weighted at once. */
#define AT_ONCE ((size_t)128)
/* Positions of equal weight that are worth a call of their own. */
#define LEAST_RUN ((size_t)16)

static void weight_floats(const float *values, size_t n, float weight, float *products) {
    for (size_t i = 0; i < n; i++)
        products[i] = weight * values[i];
}

/* Runs of a piece at positions of one weight. */
static void equal_positions(const bnorm_gradients *s, const bnorm_piece *piece, size_t channel,
                            float weight, unsigned hints) {
    const bnorm_view *const view = &s->apply_view;
    const int planes = !view->rows && view->unit == 1, plain = weight == 0 || weight == 1;
    const size_t channels = planes ? piece->runs : view->rows ? piece->len : view->unit;
    const size_t step = plain ? channels : AT_ONCE;
    float slope[AT_ONCE], offset[AT_ONCE];
    for (size_t at = 0; at < channels; at += step) {
        const size_t count = bnorm_min(step, channels - at);
        bnorm_piece part = *piece;
        if (planes) {
            part.run += at;
            part.runs = count;
        } else if (view->rows) {
            part.i += at;
            part.len = count;
        }
        bnorm_grad_args args = bnorm_gradient_args(s, &part, channel + at, hints);
        if (weight == 0 || !s->derived.slope) {
            args.slope = NULL;
        } else if (weight != 1) {
            const size_t known = bnorm_min(count, s->view.c - channel - at);
            weight_floats(args.slope, known, weight, slope);
            weight_floats(args.offset, known, weight, offset);
            args.slope = slope;
            args.offset = offset;
        }
        bnorm_run_gradient(s, &args);
    }
}

/* Positions of different weights of one plane, or of whole rows of a block: the elements are taken
 * for the channels of one row. */
static void mixed_positions(const bnorm_gradients *s, const bnorm_piece *piece, size_t channel,
                            const float *weights, unsigned hints) {
    float center[AT_ONCE], scale[AT_ONCE], shift[AT_ONCE], invstd[AT_ONCE], slope[AT_ONCE],
        offset[AT_ONCE], dx[AT_ONCE], frozen[AT_ONCE];
    const size_t unit = s->apply_view.unit, len = piece->len;
    bnorm_grad_args args = bnorm_gradient_args(s, piece, channel, hints);
    char *const out = args.dx;
    int zeros = 0;
    for (size_t at = 0, p = 0; at < len; at += unit, p++) {
        zeros |= weights[p] == 0;
        for (size_t i = 0; i < unit; i++) {
            center[at + i] = args.center[i];
            scale[at + i] = args.scale[i];
            shift[at + i] = args.shift[i];
            invstd[at + i] = args.invstd[i];
            slope[at + i] = weights[p] * args.slope[i];
            offset[at + i] = weights[p] * args.offset[i];
        }
    }
    args.runs = 1;
    args.len = args.valid = len;
    args.center = center;
    args.scale = scale;
    args.shift = shift;
    args.invstd = invstd;
    args.slope = slope;
    args.offset = offset;
    if (!zeros) {
        s->isa->dx_rows(&args);
        return;
    }
    /* Both forms, of which each position takes one. Outputs may be inputs: they come last. */
    void *const dresidual = args.dresidual;
    args.dx = dx;
    args.dresidual = NULL;
    s->isa->dx_rows(&args);
    args.dx = frozen;
    args.dresidual = dresidual;
    args.slope = NULL;
    s->isa->dx_rows(&args);
    const size_t bytes = unit * bnorm_size_of(args.type);
    for (size_t at = 0, p = 0; at < len; at += unit, p++) {
        const char *const from = (const char *)(weights[p] == 0 ? frozen : dx) + p * bytes;
        if (bytes == sizeof *dx) /* not worth a call */
            memcpy(out + p * bytes, from, sizeof *dx);
        else
            memcpy(out + p * bytes, from, bytes);
    }
}

static void rows(const bnorm_gradients *s, const bnorm_piece *piece, const float *weights,
                 unsigned hints) {
    bnorm_piece part = *piece;
    for (size_t at = 0; at < piece->runs; at += part.runs) {
        part.run = piece->run + at;
        part.runs = equal_weights(weights + at, piece->runs - at);
        equal_positions(s, &part, piece->i, weights[at], hints);
    }
}

/* Positions of one plane or block, in runs of equal weight. */
static void equal_runs(const bnorm_gradients *s, const bnorm_piece *piece, const float *weights,
                       unsigned hints) {
    const size_t unit = s->apply_view.unit, count = piece->len / unit;
    bnorm_piece part = *piece;
    for (size_t at = 0; at < count; at += part.len / unit) {
        part.i = piece->i + at * unit;
        part.len = equal_weights(weights + at, count - at) * unit;
        equal_positions(s, &part, part.run * unit, weights[at], hints);
    }
}

static void columns(const bnorm_gradients *s, const bnorm_piece *piece, const float *weights,
                    unsigned hints) {
    const size_t unit = s->apply_view.unit, count = piece->len / unit;
    /* Rows of a block follow one another, but for (N, C) data. */
    const int mixes = s->derived.slope && !s->view.leaves;
    for (size_t at = 0, n; at < count; at += n) {
        const size_t rest = count - at, equal = equal_weights(weights + at, rest);
        const int mixed = mixes && equal < LEAST_RUN && equal < rest;
        bnorm_piece part = *piece;
        n = mixed ? bnorm_min(rest, AT_ONCE / unit) : equal;
        part.i += at * unit;
        part.len = n * unit;
        if (!mixed && unit == 1) {
            equal_positions(s, &part, part.run, weights[at], hints);
            continue;
        }
        for (part.runs = 1; part.run < piece->run + piece->runs; part.run++) {
            const size_t channel = part.run * unit;
            if (mixed && bnorm_valid(&s->apply_view, channel) == unit)
                mixed_positions(s, &part, channel, weights + at, hints);
            else
                equal_runs(s, &part, weights + at, hints);
        }
    }
}

void bnorm_weighted_apply(const bnorm_gradients *s, const bnorm_piece *piece, unsigned hints) {
    const bnorm_view *const view = &s->apply_view;
    const size_t positions = view->rows ? view->runs : view->len / view->unit,
                 first = view->rows ? piece->run : piece->i / view->unit,
                 count = view->rows ? piece->runs : piece->len / view->unit;
    const float *const weights = s->weighted.values + piece->image * positions + first;
    if (equal_weights(weights, count) < count)
        hints &= ~(unsigned)BNORM_BYPASS; /* for long runs only */
    (view->rows ? rows : columns)(s, piece, weights, hints);
}
