/* SPDX-License-Identifier: MIT
 *
 * How the bounds are derived; u, w and eta are those of oracle.c, and so is what is not said here.
 *
 *   Weighted moments. A product w*x of floats is exact in double. sum(w*x), and sum(w), pass
 *   through at most K = 1028 + 4*blocks roundings, and the quotient of the two doubles that:
 *   |mean' - mean| <= delta = (2K + 8)*w*max|x|, the maximum over weights above 0. Blocks whose
 *   weights are all the same are added up in float, without them: what oracle.c says of such sums
 *   comes on top, for the variance var0 about m (below).
 *   Products of squares round once for w*d on top of what squares do, and their sum once for the
 *   product: 12u for 8u. About the mean without epsilon, m = sum(w*x)/W, squares are at most twice
 *   W/D*var0 + (u*max|x|)^2 off the pivots. What epsilon moves the mean by adds W/D*(m - mean)^2 to
 *   var, in double. Together
 *       |var' - var| <= 12u*(2*W/D*var0 + (u*max|x|)^2) + 2*sqrt(var)*delta + delta^2 + K*w*var.
 *
 *   Batch renormalization. sd, rs and what is made of them are doubles: r is off by what sd is,
 *   d by what the mean is, over rs, by 8w, and by their rounding to float; limits only narrow that.
 *   gamma*r and gamma*d + beta round once each, before what oracle.c says of gamma and beta.
 *
 *   Backward. With S = sum(g*xh), s = gamma*r*invstd and m = mean*epsilon/D,
 *       dx = s*g + w*(slope*(x - mean - m) + base), slope = -s*invstd*S/D, base = -s*dbeta/D
 *   slope is off by what S is, and by 3u for the roundings of gamma*r, of s and of itself; the
 *   constant part, base - slope*(lo + m), by what its terms are, 2u of base, and a rounding. The
 *   rest: x - hi, its product, the sum in brackets, times w, s*g, and the sum of all: 4u of the
 *   first product, 3u of the constant part and of s*g, u of dx. Without weights w = 1, D = n.
 */
#include "variants.h"

#include <math.h>
#include <stdio.h>
#include <string.h>

#include "oracle.h"

#define U     0x1p-24L
#define W     0x1p-53L
#define ETA   0x1p-149L
#define SLACK 1.001L

/* ---------------------------------------------------------------------------------------------- */
/* Ghost batches                                                                                  */

size_t ghost_image(const bnorm_ghost *ghost, size_t n, size_t group, size_t i) {
    return ghost->order == BNORM_GHOST_INTERLEAVED ? group + i * ghost->groups
                                                   : group * (n / ghost->groups) + i;
}

float *ghost_tensor(struct test *t, const float *x, const struct data *whole,
                    const bnorm_ghost *ghost, size_t group) {
    const size_t image = whole->c * whole->hw, n = whole->n / ghost->groups;
    float *part = test_floats(t, n * image);
    for (size_t i = 0; i < n; i++)
        memcpy(part + i * image, x + ghost_image(ghost, whole->n, group, i) * image,
               image * sizeof(float));
    return part;
}

struct data ghost_data(struct test *t, const struct data *whole, const bnorm_ghost *ghost,
                       size_t group) {
    struct data part = *whole;
    part.n = whole->n / ghost->groups;
    part.x = ghost_tensor(t, whole->x, whole, ghost, group);
    part.dy = ghost_tensor(t, whole->dy, whole, ghost, group);
    part.residual = ghost_tensor(t, whole->residual, whole, ghost, group);
    return part;
}

/* ---------------------------------------------------------------------------------------------- */
/* Oracle: data                                                                                   */

static wide *test_wides(struct test *t, size_t count) {
    return test_alloc(t, count * sizeof(wide));
}

static wide *to_wide(struct test *t, const float *x, size_t count) {
    wide *all = x ? test_wides(t, count) : NULL;
    for (size_t i = 0; x && i < count; i++)
        all[i] = (wide)x[i];
    return all;
}

struct wide_data wide_data(struct test *t, const struct call *call, const struct data *data) {
    const size_t count = data_count(data), c = data->c;
    return (struct wide_data){
        .shape = call->shape,
        .n = data->n,
        .c = c,
        .hw = data->hw,
        .x = to_wide(t, data->x, count),
        .dy = to_wide(t, data->dy, count),
        .residual = call->residual ? to_wide(t, data->residual, count) : NULL,
        .gamma = to_wide(t, data->gamma, c),
        .beta = to_wide(t, data->beta, c),
        .weights = data->weights,
        .epsilon = data->weights ? call->epsilon : 0,
        .eps = call->eps,
        .act = call->act,
        .r = to_wide(t, data->r, c),
        .d = to_wide(t, data->d, c),
    };
}

size_t wide_at(const struct wide_data *w, size_t c, size_t q) {
    return (q / w->hw * w->c + c) * w->hw + q % w->hw;
}

/* Of element q of any channel. */
static wide weight_of(const struct wide_data *w, size_t q) {
    return w->weights ? (wide)w->weights[q] : 1;
}

static wide param(const wide *array, size_t c, wide otherwise) {
    return array ? array[c] : otherwise;
}

/* ---------------------------------------------------------------------------------------------- */
/* Oracle: statistics                                                                             */

static wide sum_roundings(const struct wide_data *w) {
    return 1028 + 4 * (wide)w->n * ceill((wide)w->hw / 32);
}

static wide invstd_of(wide var, wide eps) {
    return isnan(var) ? var : var + eps == 0 ? 0 : 1 / sqrtl(var + eps);
}

struct wide_stats wide_stats(struct test *t, const struct wide_data *w) {
    const size_t count = w->n * w->hw;
    wide *const all = test_wides(t, 8 * w->c);
    const struct wide_stats s = {all,
                                 all + w->c,
                                 all + 2 * w->c,
                                 all + 3 * w->c,
                                 all + 4 * w->c,
                                 all + 5 * w->c,
                                 all + 6 * w->c,
                                 all + 7 * w->c};
    const wide k = sum_roundings(w);
    bnorm_shape shape = w->shape;
    if (w->weights && shape.hw == 1) /* rows of one weight are a block, added up in float */
        shape.hw = 2;
    for (size_t c = 0; c < w->c; c++) {
        wide total = 0, sum = 0, max = 0, squares = 0, about_mean = 0;
        for (size_t q = 0; q < count; q++) {
            const wide weight = weight_of(w, q), x = w->x[wide_at(w, c, q)];
            total += weight;
            if (weight > 0) {
                sum += weight * x;
                max = isnan(x) ? x : fmaxl(max, fabsl(x));
            }
        }
        const wide divisor = total + w->epsilon;
        const wide mean = sum / divisor, own = total > 0 ? sum / total : mean;
        for (size_t q = 0; q < count; q++) {
            const wide weight = weight_of(w, q), x = w->x[wide_at(w, c, q)];
            if (weight > 0) {
                squares += weight * (x - own) * (x - own);
                about_mean += weight * (x - mean) * (x - mean);
            }
        }
        const wide var = about_mean / divisor;
        const struct oracle_bounds floats =
            oracle_moment_bounds(&shape, total > 0 ? (double)(squares / total) : 0, (double)max);
        const wide delta = (2 * k + 8) * W * max * SLACK + (wide)floats.mean;
        const wide var_bound = SLACK * (12 * U * (2 * squares / divisor + U * max * U * max) +
                                        2 * sqrtl(var) * delta + delta * delta + k * W * var) +
                               (wide)floats.var;
        const wide invstd = invstd_of(var, w->eps), least = fmaxl(var - var_bound, 0);
        const wide above = least + w->eps > 0 ? invstd_of(least, w->eps) : var > 0 ? INFINITY : 0;
        s.weight[c] = total;
        s.divisor[c] = divisor;
        s.mean[c] = mean;
        s.mean_bound[c] = delta;
        s.var[c] = var;
        s.var_bound[c] = var_bound;
        s.invstd[c] = invstd;
        s.invstd_bound[c] =
            fmaxl(above - invstd, invstd - invstd_of(var + var_bound, w->eps)) + 8 * W * invstd;
    }
    return s;
}

/* ---------------------------------------------------------------------------------------------- */
/* Oracle: forward                                                                                */

/* v = (x - mean)*s + b, and what it is off by. */
struct line {
    wide mean, mean_error, hi, s, s_error, b, b_error;
};

static struct line line_of(const struct wide_data *w, const struct wide_stats *stats, size_t c,
                           const struct wide_forward *f) {
    const wide gamma = param(w->gamma, c, 1), r = param(w->r, c, 1);
    const wide invstd = stats->invstd[c], own = gamma * r;
    const wide own_error = w->r ? fabsl(gamma) * param(f->r_bound, c, 0) + U * fabsl(own) + ETA : 0;
    const wide b = gamma * param(w->d, c, 0) + param(w->beta, c, 0);
    const wide hi = (wide)(float)stats->mean[c];
    return (struct line){
        .mean = stats->mean[c],
        .mean_error = stats->mean_bound[c] + ETA,
        .hi = hi,
        .s = own * invstd,
        .s_error =
            fabsl(own) * (stats->invstd_bound[c] + 2 * U * invstd + ETA) + own_error * invstd + ETA,
        .b = b,
        .b_error = w->d ? fabsl(gamma) * param(f->d_bound, c, 0) + U * fabsl(b) + ETA : 0,
    };
}

static wide line_bound(const struct line *l, wide x, const wide *residual, wide v) {
    const wide shift = (l->mean - l->hi) * l->s, p = (x - l->mean) * l->s + l->b;
    if (!isfinite(v)) /* no rounding makes that finite */
        return 0;
    return SLACK * (fabsl(x - l->mean) * l->s_error + fabsl(l->s) * l->mean_error + l->b_error +
                    U * (fabsl((x - l->hi) * l->s) + fabsl(shift) + fabsl(l->b - shift) + fabsl(p) +
                         (residual ? fabsl(v) : 0))) +
           (2 + fabsl(x - l->hi)) * ETA;
}

void wide_forward(const struct wide_data *w, const struct wide_stats *stats,
                  const struct wide_forward *out) {
    for (size_t c = 0; c < w->c; c++) {
        const struct line line = line_of(w, stats, c, out);
        for (size_t q = 0; q < w->n * w->hw; q++) {
            const size_t i = wide_at(w, c, q);
            const wide v = (w->x[i] - line.mean) * line.s + line.b + param(w->residual, i, 0);
            if (out->v)
                out->v[i] = v;
            if (out->y)
                out->y[i] =
                    w->act.kind == BNORM_ACT_IDENTITY ? v : (wide)oracle_act(w->act, (double)v);
            if (out->bound)
                out->bound[i] = (wide)oracle_act_bound(
                    w->act, (double)v, (double)line_bound(&line, w->x[i], w->residual, v));
        }
    }
}

/* ---------------------------------------------------------------------------------------------- */
/* Oracle: backward                                                                               */

struct wide_gradient wide_gradient(struct test *t, const struct wide_data *w,
                                   const struct wide_stats *stats, const wide *hi) {
    const size_t count = w->n * w->hw, all = count * w->c;
    wide *const arrays = test_wides(t, 4 * (w->c + all)), *const tensors = arrays + 4 * w->c;
    const struct wide_gradient e = {arrays,  arrays + w->c, arrays + 2 * w->c, arrays + 3 * w->c,
                                    tensors, tensors + all, tensors + 2 * all, tensors + 3 * all};
    wide *const v = test_wides(t, all);
    const struct wide_forward forward = {.v = v};
    wide_forward(w, stats, &forward);
    for (size_t c = 0; c < w->c; c++) {
        struct line line = line_of(w, stats, c, &forward);
        line.hi = hi[c];
        const wide mean = line.mean, lo = mean - hi[c], invstd = stats->invstd[c], s = line.s;
        const wide divisor = stats->divisor[c];
        /* The pivot of the sums, from hi, as in oracle.c. */
        const wide off = fmaxl(0x1p-17L / invstd, 2 * U * fabsl(hi[c]));
        wide sum_g = 0, sum_gx = 0, abs_g = 0, abs_gx = 0, error_g = 0, error_gx = 0;
        for (size_t q = 0; q < count; q++) {
            const size_t i = wide_at(w, c, q);
            const wide bound = line_bound(&line, w->x[i], w->residual, v[i]);
            const wide g = w->dy[i] * (wide)oracle_act_derivative(w->act, (double)v[i]);
            e.g[i] = g;
            e.g_bound[i] =
                (wide)oracle_gradient_bound(w->act, (double)v[i], (double)bound, (double)w->dy[i]);
            sum_g += g;
            sum_gx += g * (w->x[i] - mean);
            abs_g += fabsl(g);
            abs_gx += fabsl(g) * (fabsl(w->x[i] - hi[c]) + fabsl(lo) + off);
            error_g += e.g_bound[i];
            error_gx += e.g_bound[i] * fabsl(w->x[i] - mean);
        }
        const wide r = param(w->r, c, 1), d = param(w->d, c, 0);
        const wide sum = invstd * sum_gx;
        const wide sum_g_error = SLACK * error_g + (wide)oracle_sum_error(&w->shape) * abs_g;
        const wide sum_error =
            invstd * (SLACK * error_gx + (wide)oracle_product_error(&w->shape) * abs_gx +
                      2 * (wide)count * ETA);
        e.dbeta[c] = sum_g;
        e.dbeta_bound[c] = sum_g_error + U * fabsl(sum_g) + ETA;
        e.dgamma[c] = r * sum + d * sum_g;
        e.dgamma_bound[c] = r * sum_error + fabsl(d) * sum_g_error + U * fabsl(e.dgamma[c]) +
                            4 * W * (fabsl(r * sum) + fabsl(d * sum_g)) + ETA;

        const wide moved = w->epsilon > 0 ? mean * w->epsilon / divisor : 0;
        const wide slope = -s * invstd * sum / divisor, base = -s * sum_g / divisor;
        const wide slope_error =
            fabsl(s) * invstd * sum_error / divisor + 3 * U * fabsl(slope) + ETA;
        const wide offset = base - slope * (lo + moved);
        const wide offset_error = fabsl(s) * sum_g_error / divisor + 2 * U * fabsl(base) +
                                  (fabsl(lo) + fabsl(moved)) * slope_error + U * fabsl(offset) +
                                  ETA;
        for (size_t q = 0; q < count; q++) {
            const size_t i = wide_at(w, c, q);
            const wide weight = weight_of(w, q), x = w->x[i], sg = s * e.g[i];
            const wide distance = fabsl(x - hi[c]);
            /* Where the weight is 0, x need not be finite. */
            const wide rest = weight > 0 ? weight * (slope * (x - mean - moved) + base) : 0;
            const wide rest_error =
                weight > 0 ? weight * (distance * (slope_error + 4 * U * fabsl(slope)) +
                                       offset_error + 3 * U * fabsl(offset) + 2 * ETA)
                           : 0;
            e.dx[i] = sg + rest;
            e.dx_bound[i] = SLACK * (fabsl(s) * e.g_bound[i] + 3 * U * fabsl(sg) + rest_error +
                                     U * fabsl(e.dx[i])) +
                            (2 + fabsl(e.g[i])) * ETA;
        }
    }
    return e;
}

/* ---------------------------------------------------------------------------------------------- */
/* Comparisons                                                                                    */

void check_wide(struct test *t, const char *what, size_t index, float got, wide want, wide bound) {
    check_near(t, what, index, got, (double)want, (double)bound);
}

/* With the rounding to float. */
static void check_rounded(struct test *t, const char *what, size_t index, float got, wide want,
                          wide bound) {
    check_wide(t, what, index, got, want, bound + U * fabsl(want) + ETA);
}

/* old + rate*(batch - old): four roundings in double, one to float. Rate 0 keeps the old value,
 * whatever the batch's is. */
static void check_running(struct test *t, const char *what, size_t index, float got, float old,
                          wide batch, wide bound, wide rate) {
    const wide before = (wide)old;
    if (rate == 0)
        check_rounded(t, what, index, got, before, 0);
    else
        check_rounded(t, what, index, got, before + rate * (batch - before),
                      fabsl(rate) * bound +
                          4 * W * (fabsl(before) + fabsl(rate) * (fabsl(before) + fabsl(batch))));
}

/* A value between limits, known to a bound, rounded to float. */
static void clip(wide value, wide bound, wide low, wide high, wide *clipped, wide *clipped_bound) {
    const wide v = isnan(value) ? value : fminl(fmaxl(value, low), high);
    const wide below = fminl(fmaxl(value - bound, low), high),
               above = fminl(fmaxl(value + bound, low), high);
    *clipped = v;
    *clipped_bound = (isinf(value) ? 0 : fmaxl(above - v, v - below)) + U * fabsl(v) + ETA;
}

static struct wide_forward renormalise(struct test *t, struct wide_data *w,
                                       const struct wide_stats *stats, const struct call *call,
                                       const struct data *data) {
    const bnorm_renorm *limits = call->renorm;
    if (!limits)
        return (struct wide_forward){0};
    wide *const all = test_wides(t, 4 * w->c), *const bounds = all + 2 * w->c;
    w->r = all;
    w->d = all + w->c;
    for (size_t c = 0; c < w->c; c++) {
        const wide eps = w->eps, var = stats->var[c], own = (wide)data->running_mean[c];
        const wide deviation = sqrtl(var + eps);
        const wide least = sqrtl(fmaxl(var - stats->var_bound[c], 0) + eps);
        const wide most = sqrtl(var + stats->var_bound[c] + eps);
        const wide old = sqrtl((wide)data->running_var[c] + eps);
        const wide r = deviation / old, d = (stats->mean[c] - own) / old;
        clip(r, fmaxl(deviation - least, most - deviation) / old + 8 * W * r, limits->r_min,
             limits->r_max, &w->r[c], &bounds[c]);
        clip(d, (stats->mean_bound[c] + 8 * W * (fabsl(stats->mean[c]) + fabsl(own))) / old,
             -(wide)limits->d_max, limits->d_max, &w->d[c], &bounds[w->c + c]);
    }
    return (struct wide_forward){.r_bound = bounds, .d_bound = bounds + w->c};
}

void check_forward(struct test *t, const struct call *call, const struct data *data,
                   const struct results *got) {
    const size_t count = data_count(data);
    const struct results *g = got;
    struct wide_data w = wide_data(t, call, data);
    const struct wide_stats s = wide_stats(t, &w);
    struct wide_forward forward = renormalise(t, &w, &s, call, data);
    forward.y = test_wides(t, 2 * count);
    forward.bound = forward.y + count;
    wide_forward(&w, &s, &forward);
    for (size_t c = 0; c < w.c; c++) {
        check_rounded(t, "save_mean", c, g->mean[c], s.mean[c], s.mean_bound[c]);
        check_rounded(t, "save_invstd", c, g->invstd[c], s.invstd[c], s.invstd_bound[c]);
        if (g->var)
            check_rounded(t, "save_var", c, g->var[c], s.var[c], s.var_bound[c]);
        const wide bound = s.mean_bound[c] + 2 * U * U * fabsl(s.mean[c]) + 2 * ETA;
        if (g->lo && !isnan(s.mean[c]) &&
            !(fabsl((wide)g->mean[c] + (wide)g->lo[c] - s.mean[c]) <= bound))
            test_fail(t, "save_mean + save_mean_lo[%zu] is %.17g, expected %.17g within %.3g", c,
                      (double)g->mean[c] + (double)g->lo[c], (double)s.mean[c], (double)bound);
        if (got->r)
            check_wide(t, "r", c, got->r[c], w.r[c], forward.r_bound[c]);
        if (got->d)
            check_wide(t, "d", c, got->d[c], w.d[c], forward.d_bound[c]);
        if (!data->running_mean)
            continue;
        const wide factor =
            call->variance == BNORM_VARIANCE_SAMPLE ? s.divisor[c] / fmaxl(s.weight[c] - 1, 1) : 1;
        const wide rate = s.divisor[c] == 0 ? 0 : call->rate; /* no weight: nothing is averaged */
        check_running(t, "running mean", c, g->running_mean[c], data->running_mean[c], s.mean[c],
                      s.mean_bound[c], rate);
        check_running(t, "running variance", c, g->running_var[c], data->running_var[c],
                      factor * s.var[c], factor * (s.var_bound[c] + 4 * W * s.var[c]), rate);
    }
    for (size_t i = 0; i < count; i++)
        check_wide(t, "y", i, g->y[i], forward.y[i], forward.bound[i]);
}

void check_moments(struct test *t, const struct call *call, const struct data *data,
                   const struct results *got) {
    const struct wide_data w = wide_data(t, call, data);
    const struct wide_stats s = wide_stats(t, &w);
    for (size_t c = 0; c < w.c; c++) {
        check_rounded(t, "mean", c, got->mean[c], s.mean[c], s.mean_bound[c]);
        check_rounded(t, "var", c, got->var[c], s.var[c], s.var_bound[c]);
    }
}

/* The statistics that backward is given; exact. */
static struct wide_stats saved_stats(struct test *t, const struct call *call,
                                     const struct data *data, const struct wide_data *w) {
    struct wide_stats s = wide_stats(t, w);
    for (size_t c = 0; c < w->c; c++) {
        s.mean[c] = (wide)data->mean[c] + (call->lo ? (wide)data->lo[c] : 0);
        s.invstd[c] = (wide)data->invstd[c];
        s.mean_bound[c] = s.invstd_bound[c] = 0;
    }
    return s;
}

void check_backward(struct test *t, const struct call *call, const struct data *data,
                    const struct results *got) {
    const struct wide_data w = wide_data(t, call, data);
    const struct wide_stats s = saved_stats(t, call, data, &w);
    const struct wide_gradient e = wide_gradient(t, &w, &s, to_wide(t, data->mean, w.c));
    for (size_t c = 0; c < w.c; c++) {
        check_wide(t, "dbeta", c, got->dbeta[c], e.dbeta[c], e.dbeta_bound[c]);
        check_wide(t, "dgamma", c, got->dgamma[c], e.dgamma[c], e.dgamma_bound[c]);
    }
    for (size_t i = 0; i < data_count(data); i++) {
        check_wide(t, "dresidual", i, got->dresidual[i], e.g[i], e.g_bound[i]);
        check_wide(t, "dx", i, got->dx[i], e.dx[i], e.dx_bound[i]);
    }
}

/* ---------------------------------------------------------------------------------------------- */
/* Problems                                                                                       */

struct kind {
    bnorm_layout layout;
    int blocked;
    const char *name;
};

/* n, c, hw */
static const size_t sizes[PROBLEM_SHAPES][3] = {
    {1, 1, 1},   {3, 1, 37},   {2, 3, 50},   {1, 8, 9},     {2, 17, 16},  {1, 37, 7},
    {9, 64, 1},  {2, 33, 5},   {6, 5, 31},   {33, 2, 3},    {130, 3, 1},  {65, 19, 1},
    {2, 3, 513}, {1, 2, 2100}, {2, 1, 4200}, {2, 100, 70},  {300, 17, 1}, {1, 3, 5600},
    {5, 20, 49}, {2, 130, 33}, {7, 16, 64},  {1, 1030, 17}, {13, 257, 1}, {4, 95, 3},
};

void add_problem_cases(struct suite *s, const char *family, const struct type_test *tests,
                       size_t count) {
    static const struct kind kinds[] = {
        {BNORM_NHWC, 0, "nhwc"}, {BNORM_NCHW, 0, "nchw"}, {BNORM_NCHW, 1, "blocked"}};
    for (size_t k = 0; k < COUNT_OF(kinds); k++)
        for (size_t i = 0; i < count; i++) {
            char name[96];
            snprintf(name, sizeof name, "%s/%s/%%s/%s", family, kinds[k].name, tests[i].name);
            suite_add_per_isa(s, tests[i].run, &kinds[k], name);
        }
}

bnorm_dtype problem_dtype(size_t i) {
    static const bnorm_dtype types[] = {BNORM_F32, BNORM_BF16, BNORM_F16};
    return types[i % COUNT_OF(types)];
}

bnorm_shape problem_shape(const struct test *t, size_t i, bnorm_dtype dtype) {
    static const size_t blocks[] = {4, 8, 16, 32};
    const struct kind *kind = t->param;
    const size_t *size = sizes[i % PROBLEM_SHAPES];
    return (bnorm_shape){
        .layout = kind->layout,
        .dtype = dtype,
        .n = size[0],
        .c = size[1],
        .hw = size[2],
        .c_block = kind->blocked ? blocks[i % COUNT_OF(blocks)] : 0,
    };
}

static const char *weights_name(enum weights kind) {
    static const char *const names[WEIGHTS_COUNT] = {"no",  "random", "mask", "padding",
                                                     "few", "large",  "small"};
    return names[kind];
}

float *new_weights(struct test *t, enum weights kind, size_t n, size_t hw) {
    if (kind == WEIGHTS_NONE)
        return NULL;
    const double unit = kind == WEIGHTS_LARGE ? 1e30 : kind == WEIGHTS_SMALL ? 1e-30 : 1;
    float *w = test_floats(t, n * hw);
    for (size_t image = 0; image < n; image++) {
        const size_t length = rng_below(&t->rng, hw + 1);
        for (size_t p = 0; p < hw; p++) {
            const double random = rng_uniform(&t->rng, 0, 2);
            w[image * hw + p] = kind == WEIGHTS_MASK      ? random < 1
                                : kind == WEIGHTS_PADDING ? p < length
                                : kind == WEIGHTS_FEW     ? 0
                                                          : (float)(unit * random);
        }
    }
    w[rng_below(&t->rng, n * hw)] = (float)unit; /* never none at all */
    if (kind == WEIGHTS_FEW && rng_below(&t->rng, 2))
        w[rng_below(&t->rng, n * hw)] += .5f;
    return w;
}

void problem_new(struct test *t, struct problem *p, const bnorm_shape *shape,
                 enum weights weights) {
    static const double epsilons[] = {1e-3, 1e-5, 1e-9}, rates[] = {.1, 0, 1, -1.2};
    struct rng *r = &t->rng;
    *p = (struct problem){.call = random_call(t, BNORM_OP_FORWARD_TRAIN, shape)};
    data_new(t, &p->data, shape);
    p->data.weights = new_weights(t, weights, shape->n, shape->hw);
    if (rng_below(r, 4) == 0)
        p->data.running_mean = p->data.running_var = NULL;
    p->call = on_floats(&p->call);
    p->call.padding = 0;
    p->call.act = random_act(r, (bnorm_act_kind)rng_below(r, ACT_KINDS));
    p->call.mask = act_has_mask(p->call.act);
    p->call.lo = rng_below(r, 4) != 0;
    p->call.save_var = (int)rng_below(r, 2);
    p->call.epsilon = weights ? (double[]){0, 1e-7, .5}[rng_below(r, 3)] : 0;
    p->call.eps = epsilons[rng_below(r, COUNT_OF(epsilons))];
    p->call.rate = rates[rng_below(r, COUNT_OF(rates))];
    p->call.variance = (bnorm_variance)rng_below(r, 2);
    p->call.what = weights_name(weights);
}

void problem_add_renorm(struct test *t, struct problem *p) {
    static const double limits[][3] = {
        {.5, 1.5, .5}, {0, 3, 5}, {1. / 3, 3, INFINITY}, {0, INFINITY, INFINITY}, {.9, 1.1, 0},
        {0, 0, 2},     {1, 1, 0},
    };
    const double *limit = limits[rng_below(&t->rng, COUNT_OF(limits))];
    p->limits = (bnorm_renorm){.r_min = limit[0], .r_max = limit[1], .d_max = limit[2]};
    p->call.renorm = &p->limits;
    p->data.running_mean = uniform_floats(t, 1, p->data.c, -2, 2);
    p->data.running_var = uniform_floats(t, 1, p->data.c, .2, 3);
}

struct results problem_elsewhere(struct test *t, const struct problem *p, const struct call *call,
                                 bnorm_dtype dtype) {
    struct call other = *call;
    const bnorm_exec exec = type_exec(t, rng_below(&t->rng, 20));
    other.shape.dtype = dtype;
    other.dense = 0;
    other.side = (int)rng_below(&t->rng, 2);
    other.padding = (int)rng_below(&t->rng, 3);
    random_targets(&t->rng, &other);
    return run_call(t, &other, &p->data, &exec);
}

void problem_compare(struct test *t, const struct problem *p, const struct call *call,
                     struct results *want, bnorm_dtype dtype) {
    struct results got = problem_elsewhere(t, p, call, BNORM_F32);
    check_results(t, &got, want, &p->data);
    if (dtype == BNORM_F32)
        return;
    round_results(want, &p->data, dtype);
    got = problem_elsewhere(t, p, call, dtype);
    check_results(t, &got, want, &p->data);
}

struct results problem_forward(struct test *t, const struct problem *p, bnorm_dtype dtype) {
    const struct results want = run_scalar(t, &p->call, &p->data);
    if (is_scalar(t))
        check_forward(t, &p->call, &p->data, &want);
    struct results rounded = want;
    rounded.y = copy_floats(t, want.y, data_count(&p->data));
    problem_compare(t, p, &p->call, &rounded, dtype);
    return want;
}

struct call problem_backward_call(struct test *t, const struct problem *p,
                                  const struct results *saved) {
    struct call call = p->call;
    call.op = BNORM_OP_BACKWARD;
    call.mask = 0;
    if (saved->mask && !p->call.ghost && rng_below(&t->rng, 2)) {
        call.given_mask = saved->mask;
        call.residual = 0;
    }
    return call;
}

void problem_backward(struct test *t, struct problem *p, const struct results *saved,
                      bnorm_dtype dtype) {
    struct call whole = p->call; /* with the residual, also where a mask tells of it */
    data_take(&p->data, saved);
    whole.op = BNORM_OP_BACKWARD;
    avoid_kinks(t, &whole, &p->data, 0);
    const struct call call = problem_backward_call(t, p, saved);
    struct results want = run_scalar(t, &call, &p->data);
    if (is_scalar(t))
        check_backward(t, &whole, &p->data, &want);
    problem_compare(t, p, &call, &want, dtype);
}
