/* SPDX-License-Identifier: MIT
 *
 * The course of a call with weights: they are added up, per block. Blocks of one weight are reduced
 * as without weights, and their sums scaled; of others, tiles of positions become floats without
 * those of weight 0, which are reduced on their own and joined (Chan), as blocks are. Then y is that
 * of any call, and dx too where a weight is 1 or 0, with coefficients times the weight elsewhere. */
#include "base.h"

#include "weights.h"

#include "channel.h"
#include "run.h"

/* How many weights from the first on are like it. */
static size_t equal_weights(const float *weights, size_t n) {
    size_t i = 1;
    if (memcmp(weights, weights + 1, (n - 1) * sizeof *weights) == 0)
        return n;
    while (i < n && weights[i] == weights[0]) /* -0 is 0 */
        i++;
    return i;
}

/* ---------------------------------------------------------------------------------------------- */
/* Statistics */

static const float *weights_at(const bnorm_weighing *w, const bnorm_view *view,
                               const bnorm_block *block) {
    return w->values + block->image * view->positions + block->from;
}

struct adding {
    bnorm_weighing *w;
    const bnorm_reduction *r;
};

/* A task, so that it runs in exec's mode: weights that are denormal may count as 0. */
static void add_up(void *arg, size_t task) {
    const struct adding *job = arg;
    const bnorm_view *view = &job->r->view;
    double total = 0;
    (void)task;
    for (size_t b = 0; b < job->r->blocks.count; b++) {
        const bnorm_block block = bnorm_block_at(view, &job->r->blocks, b);
        const float *const weights = weights_at(job->w, view, &block);
        double sums[4] = {0, 0, 0, 0};
        for (size_t i = 0; i < block.len; i++)
            sums[i % 4] += (double)weights[i];
        const double sum = (sums[0] + sums[1]) + (sums[2] + sums[3]);
        if (job->w->sums)
            job->w->sums[b] = sum;
        total += sum;
    }
    job->w->total = total;
}

void bnorm_weigh(bnorm_weighing *w, const bnorm_reduction *r, const bnorm_exec *exec) {
    struct adding job = {w, r};
    bnorm_run(exec, add_up, &job, 1);
    w->divisor = w->total + w->epsilon;
}

/* Positions of a block that are reduced together, as floats, without those of weight 0: of a plane,
 * or rows of up to LANES channels, which a block of channels has at most. */
#define ROWS  8
#define LANES 32
_Static_assert(ROWS *LANES <= 256, "positions of a tile are bytes");

struct tile {
    const float *weights;     /* of all positions */
    size_t n;                 /* positions that have a weight */
    uint8_t at[ROWS * LANES]; /* which these are */
    double total;             /* of the weights */
    int equal;                /* not 0: all of these have one weight */
    size_t lanes;             /* channels */
    float x[ROWS * LANES];
};

static double weight_of(const struct tile *tile, size_t k) {
    return (double)tile->weights[tile->at[k]];
}

static void pick_positions(struct tile *tile, const float *weights, size_t count) {
    float first = 0;
    tile->weights = weights;
    tile->n = 0;
    tile->total = 0;
    tile->equal = 1;
    for (size_t i = 0; i < count; i++) {
        const float weight = weights[i];
        first = first > 0 ? first : weight;
        tile->at[tile->n] = (uint8_t)i;
        tile->n += weight > 0;
        tile->total += (double)weight;
        tile->equal &= weight == first || !(weight > 0);
    }
}

/* A tensor of which a block is reduced. */
struct source {
    const bnorm_reduction *r;
    const bnorm_tensor *x;
    size_t image, channel, valid;
};

/* Elements of the tile's channels in positions [from, from + count) of an image. */
static __attribute__((noinline)) void load_tile(const struct source *s, size_t from, size_t count,
                                                struct tile *tile) {
    static const float ones[LANES] = {1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1,
                                      1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1};
    static const float zeros[LANES] = {0};
    const bnorm_view *view = &s->r->view;
    bnorm_part part = bnorm_part_of(view, s->channel, s->valid, s->image, from, count);
    bnorm_map map = {.view = *view,
                     .kernel = view->planes ? s->r->isa->apply_span : s->r->isa->apply_rows};
    map.args.x = *s->x;
    bnorm_move_to(&map.args.x, &part);
    tile->lanes = view->planes ? 1 : part.lanes; /* with the padding of a block of channels */
    map.args.pre = BNORM_PRE_X;
    map.args.images = map.args.groups = 1;
    map.args.rows = part.rows;
    map.args.lanes = part.lanes;
    map.args.valid = s->valid;
    map.args.scale = ones;
    map.args.shift = zeros;
    map.args.out.data = tile->x;
    map.args.out.row_stride = tile->lanes;
    bnorm_run_map(&map, &map.args);
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
        excess = bnorm_fma(weight_of(tile, k), (double)x[k * tile->lanes] - pivot, excess);
    const double centre = pivot + excess / tile->total;
    for (size_t k = 0; k < tile->n; k++) {
        const double d = (double)x[k * tile->lanes] - centre;
        squares = bnorm_fma(weight_of(tile, k) * d, d, squares);
    }
    *mean = centre;
    *m2 = squares;
}

/* Sums and M2 of n values of equal weight, as means and weighted M2. */
static void weight_moments(double *mean, double *m2, size_t channels, size_t n, double weight) {
    for (size_t i = 0; i < channels; i++) {
        mean[i] /= (double)n;
        m2[i] *= weight;
    }
}

/* Means and M2 of the tile's first `valid` channels. */
static void tile_moments(const struct source *s, const struct tile *tile, double *mean,
                         double *m2) {
    const size_t lanes = tile->lanes, valid = s->valid;
    if (!tile->equal) {
        for (size_t i = 0; i < valid; i++)
            lane_moments(tile, i, &mean[i], &m2[i]);
        return;
    }
    bnorm_map_args args = {.groups = 1, .rows = tile->n, .lanes = lanes, .valid = valid};
    args.x.data = (void *)(uintptr_t)tile->x;
    args.x.row_stride = lanes;
    if (s->r->view.planes) {
        args.rows = 1;
        args.lanes = tile->n;
        s->r->kernels->moments_span(&args, mean, m2);
    } else {
        s->r->kernels->moments_rows(&args, 1, mean, m2); /* whatever channels come together */
    }
    weight_moments(mean, m2, valid, tile->n, weight_of(tile, 0));
}

/* Chan, Golub, LeVeque (1979): `before` and `weight` are how much weight either side has. */
static void join(double before, double weight, double *mean, double *m2, double next_mean,
                 double next_m2) {
    const double share = weight / (before + weight), d = next_mean - *mean;
    *m2 = bnorm_fma(d * d, before * share, *m2 + next_m2);
    *mean = bnorm_fma(d, share, *mean);
}

void bnorm_weighted_moments_of(const bnorm_reduction *r, const bnorm_weighing *w,
                               const bnorm_tensor *x, size_t b, size_t channel, size_t channels) {
    const bnorm_view *view = &r->view;
    const bnorm_block block = bnorm_block_at(view, &r->blocks, b);
    const float *const weights = weights_at(w, view, &block);
    double *const mean = bnorm_entry(r, 0, b, channel), *const m2 = bnorm_entry(r, 1, b, channel);
    if (w->sums[b] == 0)
        return;
    if (equal_weights(weights, block.len) == block.len) {
        bnorm_reduce_moments(r, x, b, channel, channels);
        weight_moments(mean, m2, channels, block.len, (double)weights[0]);
        return;
    }
    const size_t most = view->planes ? ROWS * LANES : ROWS;
    const size_t at_once = view->planes ? 1 : bnorm_min(view->lanes, LANES);
    struct tile tile;
    double before = 0;
    for (size_t i = 0; i < channels; i++)
        mean[i] = m2[i] = 0;
    for (size_t at = 0; at < block.len; at += most) {
        const size_t count = bnorm_min(most, block.len - at);
        pick_positions(&tile, weights + at, count);
        for (size_t i = 0; tile.n && i < channels; i += at_once) {
            const size_t valid = bnorm_min(at_once, channels - i);
            const struct source s = {
                .r = r, .x = x, .image = block.image, .channel = channel + i, .valid = valid};
            double next_mean[LANES], next_m2[LANES];
            load_tile(&s, block.from + at, count, &tile);
            tile_moments(&s, &tile, next_mean, next_m2);
            for (size_t k = 0; k < valid; k++)
                join(before, tile.total, &mean[i + k], &m2[i + k], next_mean[k], next_m2[k]);
        }
        before += tile.total;
    }
}

void bnorm_weighted_merge(const bnorm_reduction *r, const bnorm_weighing *w, size_t channel,
                          size_t channels, double *mean, double *m2) {
    double before = 0;
    mean += channel;
    m2 += channel;
    for (size_t i = 0; i < channels; i++)
        mean[i] = m2[i] = 0;
    for (size_t b = 0; b < r->blocks.count; b++) {
        const double *const next_mean = bnorm_entry(r, 0, b, channel), *const next_m2 = bnorm_entry(
                                                                           r, 1, b, channel);
        for (size_t i = 0; w->sums[b] > 0 && i < channels; i++)
            join(before, w->sums[b], &mean[i], &m2[i], next_mean[i], next_m2[i]);
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

void bnorm_weighted_coefficients(const bnorm_reduction *r, const bnorm_weighing *w,
                                 const bnorm_grad_coefficient_args *derived, const float *save_mean,
                                 size_t channel, size_t channels) {
    const double divisor = w->divisor;
    bnorm_grad_coefficient_args sums = *derived;
    sums.slope = NULL; /* dgamma and dbeta only */
    r->kernels->grad_coefficients(&sums, channel, channels);
    for (size_t i = channel; derived->slope && i < channel + channels; i++) {
        const double low = bnorm_parameter(derived->mean_lo, i, 0);
        const double invstd = (double)derived->invstd[i];
        const double scale = bnorm_parameter(derived->gamma, i, 1) * invstd;
        const double sum_gxh = bnorm_centred_sum(derived, i) * invstd;
        /* What epsilon takes off the mean, in deviations. */
        const double off = ((double)save_mean[i] + low) * (w->epsilon / divisor);
        const double sum = bnorm_fma(-off * invstd, sum_gxh, derived->sum_g[i]);
        derived->slope[i] = bnorm_round(-scale * (sum_gxh / divisor));
        derived->offset[i] = bnorm_round(
            bnorm_plus_product(-low * invstd, (double)derived->slope[i], -scale * (sum / divisor)));
    }
}

/* Coefficients that are weighted at once. */
#define AT_ONCE ((size_t)64)
/* Positions of equal weight that are worth a call of their own. */
#define LEAST_RUN ((size_t)16)

static void weight_floats(const float *values, size_t n, float weight, float *products) {
    for (size_t i = 0; i < n; i++)
        products[i] = weight * values[i];
}

/* A part all of whose positions have one weight; of one group, or of planes. */
static void equal_positions(const bnorm_map *map, const bnorm_part *whole, float weight, int near) {
    const bnorm_view *view = &map->view;
    const int plain = weight == 0 || weight == 1 || !map->args.slope;
    /* Planes are counted by groups, and a single group by its channels. */
    const size_t channels = view->planes ? whole->groups : whole->lanes;
    const size_t step = plain ? channels : AT_ONCE;
    float slope[AT_ONCE], offset[AT_ONCE];
    for (size_t at = 0; at < channels; at += step) {
        const size_t count = bnorm_min(step, channels - at);
        /* Other groups have fewer channels than that. */
        const bnorm_part part =
            step < channels ? bnorm_some_slices(view, whole, at, count) : *whole;
        bnorm_map_args args;
        bnorm_take_part(map, &part, near, &args);
        if (weight == 0) {
            args.slope = NULL;
        } else if (!plain) {
            const size_t known = bnorm_min(count, view->c - bnorm_channel_of(view, &part));
            weight_floats(args.slope, known, weight, slope);
            weight_floats(args.offset, known, weight, offset);
            args.slope = slope;
            args.offset = offset;
        }
        bnorm_run_map(map, &args);
    }
}

/* Positions of one group, in runs of equal weight. */
static void equal_runs(const bnorm_map *map, const bnorm_part *whole, const float *weights,
                       int near) {
    const size_t count = bnorm_positions(&map->view, whole);
    for (size_t at = 0, n; at < count; at += n) {
        n = equal_weights(weights + at, count - at);
        const bnorm_part part = bnorm_some_positions(&map->view, whole, at, n);
        equal_positions(map, &part, weights[at], near);
    }
}

/* Positions of different weights of one plane, or of whole rows of a block, which follow one
 * another: the elements are taken for the channels of one row. */
static __attribute__((noinline)) void mixed_positions(const bnorm_map *map, const bnorm_part *part,
                                                      const float *weights, int near) {
    float center[AT_ONCE], scale[AT_ONCE], shift[AT_ONCE], invstd[AT_ONCE], slope[AT_ONCE],
        offset[AT_ONCE], dx[AT_ONCE], frozen[AT_ONCE];
    const size_t unit = bnorm_unit(&map->view), len = part->rows * part->lanes;
    bnorm_map rows = *map;
    bnorm_map_args *const args = &rows.args;
    bnorm_take_part(map, part, near, args);
    rows.kernel = bnorm_training_of(map->isa)->dx_rows;
    char *const out = args->out.data;
    int zeros = 0;
    for (size_t at = 0, p = 0; at < len; at += unit, p++) {
        zeros |= weights[p] == 0;
        for (size_t i = 0; i < unit; i++) {
            center[at + i] = args->center[i];
            scale[at + i] = args->scale[i];
            shift[at + i] = args->shift[i];
            invstd[at + i] = args->invstd[i];
            slope[at + i] = weights[p] * args->slope[i];
            offset[at + i] = weights[p] * args->offset[i];
        }
    }
    args->rows = args->groups = 1;
    args->lanes = args->valid = len;
    args->center = center;
    args->scale = scale;
    args->shift = shift;
    args->invstd = invstd;
    args->slope = slope;
    args->offset = offset;
    if (!zeros) {
        bnorm_run_map(&rows, args);
        return;
    }
    /* Both forms, of which each position takes one. Outputs may be inputs: they come last. */
    void *const dresidual = args->dresidual.data;
    args->out.data = dx;
    args->dresidual.data = NULL;
    bnorm_run_map(&rows, args);
    args->out.data = frozen;
    args->dresidual.data = dresidual;
    args->slope = NULL;
    bnorm_run_map(&rows, args);
    const size_t bytes = unit * bnorm_size_of(args->x.type);
    for (size_t at = 0, p = 0; at < len; at += unit, p++) {
        const char *const from = (const char *)(weights[p] == 0 ? frozen : dx) + p * bytes;
        if (bytes == sizeof *dx) /* not worth a call */
            memcpy(out + p * bytes, from, sizeof *dx);
        else
            memcpy(out + p * bytes, from, bytes);
    }
}

/* Several planes, or groups of channels, of the same positions. */
static void mapped_groups(const bnorm_map *map, const bnorm_part *whole, const float *weights,
                          int near) {
    const bnorm_view *view = &map->view;
    const size_t unit = bnorm_unit(view), count = bnorm_positions(view, whole);
    const int mixes = map->args.slope && !view->leaves; /* rows of (N, C) data may have gaps */
    for (size_t at = 0, n; at < count; at += n) {
        const size_t rest = count - at, equal = equal_weights(weights + at, rest);
        const int mixed = mixes && equal < LEAST_RUN && equal < rest;
        n = mixed ? bnorm_min(rest, AT_ONCE / unit) : equal;
        bnorm_part part = bnorm_some_positions(view, whole, at, n);
        if (!mixed && view->planes) {
            equal_positions(map, &part, weights[at], near);
            continue;
        }
        for (part.groups = 1; part.group < whole->group + whole->groups; part.group++) {
            if (mixed && (part.group + 1) * unit <= view->c)
                mixed_positions(map, &part, weights + at, near);
            else
                equal_runs(map, &part, weights + at, near);
        }
    }
}

void bnorm_weighted_map(const bnorm_map *map, const bnorm_weighing *w, const bnorm_part *part,
                        int near) {
    const bnorm_view *const view = &map->view;
    const size_t positions = view->planes ? view->lanes : view->rows,
                 count = bnorm_positions(view, part);
    bnorm_map cached;
    for (size_t i = 0; i < part->images; i++) {
        const float *const weights =
            w->values + (part->image + i) * positions + bnorm_first_position(view, part);
        bnorm_part image = *part;
        image.image += i;
        image.images = 1;
        if ((map->args.hints & BNORM_STREAM) && equal_weights(weights, count) < count) {
            cached = *map; /* past the caches in long runs only */
            cached.args.hints &= ~(unsigned)BNORM_STREAM;
            map = &cached;
        }
        if (bnorm_counts_groups(view))
            mapped_groups(map, &image, weights, near);
        else
            equal_runs(map, &image, weights, near);
    }
}
