/* SPDX-License-Identifier: MIT
 *
 * How the bounds are derived. u = 2^-24 bounds the relative error of one float operation, w = 2^-53
 * that of one double operation; eta = 2^-149 covers what an operation loses to underflow. Products
 * of such terms are covered by SLACK. Magnitudes are those of the exact values; dev = sqrt(var).
 *
 *   Sums in float. In a group of 16 positions a value passes through at most five additions: its
 *   pair, two pairs, three more quads. In planes (NCHW) three more fold the lanes of the group. So
 *   there are s = 5 of them, 8 in planes, and for products s + 1: they are rounded as well. Each
 *   rounds by u times what it adds up, so together by s*u times the sum of the magnitudes. (N, C)
 *   data is added up in double alone: s = 0.
 *   Sums in double. Those of groups are covered by SLACK. Where floats are out of range, chains of at
 *   most 1024 values are, and at most 32 chains: no value passes through more than 1028 additions.
 *   Merging a block costs the mean four roundings. So what double loses of the mean is at most
 *   delta = (1028 + 4*merges)*w*max|x|, and 4*merges*w*max|x| in (N, C) data.
 *
 *   Moments. d = x - pivot. The pivot is off the mean by at most mu = max(dev, dev/16 + 3u*max|x|):
 *   it is accepted within a deviation; else it is the mean rounded to an eighth of the deviation,
 *   off by half of that, and by three roundings of a float. So the root mean square of d is at most
 *   rho = hypot(dev, mu), and so is the mean of |d|, which is sqrt(2)*dev where mu = dev. d rounds
 *   once, and then its sum does: |mean' - mean| <= (s + 1)*u*rho + delta.
 *   Of M2 = sum(d*d) - sum(d)^2/n, per value:
 *     - the rounding of d changes each x by u*|d|, and the variance by 2u*dev*rho;
 *     - sum(d*d): (s + 1)*u*rho^2;
 *     - sum(d) is s*u*rho off, and counts 2*mu times: 2*mu*s*u*rho;
 *     - between blocks the means count, which are (s + 1)*u*rho off, 2*between times. With
 *       2*between*within <= var that is (s + 1)*u*(sqrt(2)*var + 6u*max|x|*dev); and all means may be
 *       off by delta: 2*dev*delta + delta^2.
 *   These add up to 38u*var, and 57u*var in planes, for a mean of up to some 10^5 deviations. They
 *   are reached by no data: the pivot would have to be a deviation off, all |d| equal and all
 *   roundings of one sign. In (N, C) data four roundings per merge are left: 4*merges*w*var.
 *
 *   Affine map. v = fma(x - c, s, b) + r in float: u|x - c||s| for the difference (none without c),
 *   u|(x - c)s + b| for the fma, u|v| for adding r.
 *
 *   Training. As the affine map with c = hi, the mean rounded to float; s = gamma*invstd, off by
 *   |s|*(rel(invstd) + 2u) for the roundings of invstd and s; b = beta - lo*s in float, off by
 *   u|lo*s| + u|b|; and the mean itself, off by |s|*delta, or |s|*(delta + u|mean|) where lo is not
 *   used. rel(invstd) follows from the ends of var's interval.
 *
 *   Activations. IDENTITY, RELU and CLAMP do not enlarge an error of v. LEAKY_RELU multiplies it by
 *   max(1, |a|) and rounds once. HARD_SWISH has slopes up to 1.5 and rounds v + 3, two products and
 *   the constant 1/6: 4u|y|. For those made of exponentials the errors are not derived but what the
 *   library promises at least: see ORACLE_SMOOTH_ULP.
 *
 *   Backward. g = dy*act'(v): LEAKY_RELU rounds once, u|g|. HARD_SWISH's slope v/3 + 1/2 is off by
 *   e_v/3 + u|v|/3 (the constant 1/3) + u|slope|, and the product rounds: u|g|. Where act'(v)
 *   jumps, callers see to dy = 0, or know v to the bit. e_v is the affine map's bound with s and b
 *   rounded. Sums of g are those of floats above, then rounded once:
 *   |dbeta' - dbeta| <= sum(e_g) + (s*u + (1028 + 4*merges)*w)*sum|g| + u|dbeta|. dgamma has
 *   invstd*|x - p| as weights: u for the difference, (s + 1)*u for the products. p is hi, rounded
 *   to a unit of at most 2^-16/invstd, or off by an ulp where that is more.
 *   dx = fma((x - hi)*invstd, slope, fma(g, s, offset)), slope = -s*dgamma/n, and
 *   offset = -s*dbeta/n - lo*invstd*slope, both from the unrounded sums, rounded once: the error is
 *   |s|e_g + u|s g| + u|s g + offset| + (error and u of offset) + |x - hi|*invstd*(error and 3u of
 *   slope) + u|dx|; here s is the scale. The code below calls slope what is here slope*invstd.
 */
#include "oracle.h"

#include <float.h>
#include <math.h>
#include <stddef.h>

#define U     0x1p-24
#define W     0x1p-53
#define ETA   0x1p-149
#define SLACK 1.001

/* ---------------------------------------------------------------------------------------------- */
/* Walking a channel of a dense tensor                                                            */

static size_t elements_per_channel(const bnorm_shape *s) {
    return s->n * s->hw;
}

/* Index of element q of channel c, image by image. */
static size_t at(const bnorm_shape *s, size_t c, size_t q) {
    const size_t image = q / s->hw, p = q % s->hw;
    return s->layout == BNORM_NHWC ? (image * s->hw + p) * s->c + c
                                   : (image * s->c + c) * s->hw + p;
}

static int in_planes(const bnorm_shape *s) {
    return s->layout == BNORM_NCHW && s->hw > 1 && !s->c_block;
}

/* Additions in float that a value passes through: s of the comment above. */
static double float_additions(const bnorm_shape *s) {
    return s->hw == 1 ? 0 : in_planes(s) ? 8 : 5;
}

/* Roundings in double: blocks have at least 64 positions, and images are merged along a tree. */
static double double_roundings(const bnorm_shape *s) {
    const double merges = ceil((double)s->hw / 64) + ceil(log2((double)s->n));
    return (s->hw == 1 ? 0 : 1028) + 4 * merges;
}

double oracle_sum_error(const bnorm_shape *shape) {
    return SLACK * (float_additions(shape) * U + double_roundings(shape) * W);
}

double oracle_product_error(const bnorm_shape *shape) {
    const double steps = float_additions(shape);
    return SLACK * ((steps > 0 ? steps + 2 : 0) * U + double_roundings(shape) * W);
}

static double param(const double *array, size_t c, double otherwise) {
    return array ? array[c] : otherwise;
}

/* Neumaier's compensated sum: as good as twice the precision, on every CPU. */
struct sum {
    double value, compensation;
};

static void sum_add(struct sum *s, double v) {
    const double t = s->value + v;
    s->compensation += fabs(s->value) >= fabs(v) ? (s->value - t) + v : (v - t) + s->value;
    s->value = t;
}

static double sum_total(const struct sum *s) {
    return isfinite(s->value) ? s->value + s->compensation : s->value;
}

/* ---------------------------------------------------------------------------------------------- */
/* Activations                                                                                    */

static double sigmoid(double v) {
    return 1 / (1 + exp(-v));
}

static double softplus(double v) {
    return fmax(v, 0) + log1p(exp(-fabs(v)));
}

double oracle_act(bnorm_act act, double v) {
    if (isnan(v))
        return v;
    switch (act.kind) {
    case BNORM_ACT_IDENTITY:
        return v;
    case BNORM_ACT_RELU:
        return v > 0 ? v : 0;
    case BNORM_ACT_CLAMP:
        return fmin(fmax(v, (double)act.a), (double)act.b);
    case BNORM_ACT_LEAKY_RELU:
        return v > 0 ? v : (double)act.a * v;
    case BNORM_ACT_HARD_SWISH:
        return v <= -3 ? 0 : v >= 3 ? v : v * (v + 3) / 6;
    case BNORM_ACT_SIGMOID:
        return sigmoid(v);
    case BNORM_ACT_SILU:
        return v == -INFINITY ? 0 : v * sigmoid(v);
    case BNORM_ACT_TANH:
        return tanh(v);
    case BNORM_ACT_GELU:
        return v == -INFINITY ? 0 : v / 2 * erfc(-v / sqrt(2));
    case BNORM_ACT_ELU:
        return v > 0 ? v : (double)act.a * expm1(v);
    case BNORM_ACT_SOFTPLUS:
        return softplus(v);
    case BNORM_ACT_MISH:
        return v == -INFINITY ? 0 : v * tanh(softplus(v));
    }
    return NAN;
}

/* v*slope, where the slope vanishes faster than v grows. */
static double times(double v, double slope) {
    return slope == 0 ? 0 : v * slope;
}

double oracle_act_derivative(bnorm_act act, double v) {
    switch (act.kind) {
    case BNORM_ACT_IDENTITY:
        return 1;
    case BNORM_ACT_RELU:
        return v > 0;
    case BNORM_ACT_CLAMP:
        return (double)act.a < v && v < (double)act.b;
    case BNORM_ACT_LEAKY_RELU:
        return v > 0 ? 1 : (double)act.a;
    case BNORM_ACT_HARD_SWISH:
        return v <= -3 ? 0 : v >= 3 ? 1 : (2 * v + 3) / 6;
    case BNORM_ACT_SIGMOID:
        return sigmoid(v) * sigmoid(-v);
    case BNORM_ACT_SILU:
        return sigmoid(v) + times(v, sigmoid(v) * sigmoid(-v));
    case BNORM_ACT_TANH:
        return 4 * sigmoid(2 * v) * sigmoid(-2 * v);
    case BNORM_ACT_GELU:
        return erfc(-v / sqrt(2)) / 2 + times(v, exp(-v * v / 2) / sqrt(8 * atan(1)));
    case BNORM_ACT_ELU:
        return v > 0 ? 1 : (double)act.a * exp(v);
    case BNORM_ACT_SOFTPLUS:
        return sigmoid(v);
    case BNORM_ACT_MISH: {
        const double s = softplus(v), e = exp(-s); /* 1 - tanh(s)^2 = 1/cosh(s)^2 */
        const double sech = 2 * e / (1 + e * e);
        return tanh(s) + times(v, sech * sech * sigmoid(v));
    }
    }
    return NAN;
}

double oracle_kink_distance(bnorm_act act, double v) {
    switch (act.kind) {
    case BNORM_ACT_RELU:
    case BNORM_ACT_LEAKY_RELU:
    case BNORM_ACT_ELU:
        return fabs(v);
    case BNORM_ACT_CLAMP:
        return fmin(fabs(v - (double)act.a), fabs(v - (double)act.b));
    case BNORM_ACT_HARD_SWISH:
        return fmin(fabs(v + 3), fabs(v - 3));
    default: /* differentiable */
        return INFINITY;
    }
}

/* Of the activations made of exponentials; those of SILU, GELU and MISH reach 1.1 to 1.13. */
static double largest_slope(bnorm_act act) {
    return act.kind == BNORM_ACT_ELU ? fmax(1, fabs((double)act.a)) : 1.13;
}

/* An exponential below the normal range is off by eta, and is multiplied by v. */
double oracle_smooth_bound(double v, double y) {
    return 2 * ORACLE_SMOOTH_ULP * U * fabs(y) + 2 * (2 + fabs(v)) * ETA;
}

double oracle_act_bound(bnorm_act act, double v, double v_bound) {
    const double y = fabs(oracle_act(act, v));
    switch (act.kind) {
    case BNORM_ACT_IDENTITY:
    case BNORM_ACT_RELU:
    case BNORM_ACT_CLAMP:
        return v_bound;
    case BNORM_ACT_LEAKY_RELU:
        return v_bound * fmax(1, fabs((double)act.a)) + U * y + ETA;
    case BNORM_ACT_HARD_SWISH:
        return 1.5 * v_bound + 4 * U * y + ETA;
    default:
        return largest_slope(act) * v_bound + oracle_smooth_bound(v, y);
    }
}

double oracle_gradient_bound(bnorm_act act, double v, double v_bound, double dy) {
    const double slope = fabs(oracle_act_derivative(act, v)), g = fabs(dy * slope);
    switch (act.kind) {
    case BNORM_ACT_IDENTITY:
    case BNORM_ACT_RELU:
    case BNORM_ACT_CLAMP:
        return 0;
    case BNORM_ACT_LEAKY_RELU:
        return v > 0 ? 0 : U * g + ETA;
    case BNORM_ACT_HARD_SWISH:
        return fabs(v) >= 3 ? 0
                            : fabs(dy) * (v_bound / 3 + U * fabs(v) / 3 + U * slope) + U * g + ETA;
    default: /* no second derivative of these is larger */
        return fabs(dy) * largest_slope(act) * (v_bound + ORACLE_SMOOTH_SLOPE) + U * g + ETA;
    }
}

/* ---------------------------------------------------------------------------------------------- */
/* Statistics                                                                                     */

struct oracle_bounds oracle_moment_bounds(const bnorm_shape *shape, double var, double max) {
    const double dev = sqrt(fmax(var, 0)), steps = float_additions(shape);
    const double delta = double_roundings(shape) * W * max;
    if (shape->hw == 1)
        return (struct oracle_bounds){
            .mean = SLACK * delta,
            .var = SLACK * (double_roundings(shape) * W * var + (2 * dev + delta) * delta)};
    const double mu = fmax(dev, dev / 16 + 3 * U * max), rho = hypot(dev, mu);
    return (struct oracle_bounds){.mean = SLACK * ((steps + 1) * U * rho + delta),
                                  .var = SLACK *
                                         (U * rho * (2 * dev + (steps + 1) * rho + 2 * steps * mu) +
                                          (steps + 1) * U * (sqrt(2) * var + 6 * U * max * dev) +
                                          (2 * dev + delta) * delta)};
}

void oracle_moments(const bnorm_shape *shape, const double *x, const struct oracle_stats *out) {
    const size_t count = elements_per_channel(shape);
    const double n = (double)count;
    for (size_t c = 0; c < shape->c; c++) {
        struct sum sum = {0, 0}, squares = {0, 0}, rest = {0, 0};
        double max = 0, min_x = INFINITY, max_x = -INFINITY;
        for (size_t q = 0; q < count; q++) {
            const double v = x[at(shape, c, q)];
            sum_add(&sum, v);
            max = fmax(max, fabs(v));
            min_x = fmin(min_x, v);
            max_x = fmax(max_x, v);
        }
        const double mean = sum_total(&sum) / n;
        for (size_t q = 0; q < count; q++) {
            const double d = x[at(shape, c, q)] - mean;
            sum_add(&squares, d * d);
            sum_add(&rest, d);
        }
        /* What the rounding of the mean to double left over. */
        const double shift = sum_total(&rest) / n;
        double var = sum_total(&squares) / n - shift * shift;
        struct oracle_bounds bounds = oracle_moment_bounds(shape, var, max);
        if (min_x == max_x && isfinite(mean)) /* a constant channel has to be exact */
            var = bounds.var = bounds.mean = 0;
        if (out->mean)
            out->mean[c] = min_x == max_x ? min_x : mean;
        if (out->mean_bound)
            out->mean_bound[c] = bounds.mean;
        if (out->var)
            out->var[c] = isnan(mean) ? mean : var;
        if (out->var_bound)
            out->var_bound[c] = bounds.var;
    }
}

double oracle_running(double running, double batch, double rate) {
    return running + rate * (batch - running);
}

double oracle_variance_factor(bnorm_variance kind, double n) {
    return kind == BNORM_VARIANCE_SAMPLE ? n / fmax(n - 1, 1) : 1;
}

/* ---------------------------------------------------------------------------------------------- */
/* Forward                                                                                        */

void oracle_apply(const bnorm_shape *shape, const double *x, const struct oracle_affine *affine,
                  double *v, double *y, double *y_bound) {
    const size_t count = elements_per_channel(shape);
    for (size_t c = 0; c < shape->c; c++)
        for (size_t q = 0; q < count; q++) {
            const size_t i = at(shape, c, q);
            const double scale = param(affine->scale, c, 1);
            const double d = x[i] - param(affine->center, c, 0);
            const double p = d * scale + param(affine->shift, c, 0);
            const double argument = p + param(affine->residual, i, 0);
            if (v)
                v[i] = argument;
            y[i] = oracle_act(affine->act, argument);
            if (y_bound) {
                double bound = U * fabs(p) + ETA;
                if (affine->center)
                    bound += U * fabs(d * scale);
                if (affine->residual)
                    bound += U * fabs(argument);
                y_bound[i] = oracle_act_bound(affine->act, argument, bound * SLACK);
            }
        }
}

static double invstd_of(double var, double eps) {
    const double sum = fmax(var, 0) + eps;
    return isnan(var) ? var : sum == 0 ? 0 : 1 / sqrt(sum);
}

/* Bound of v = fma(x - hi, s, b) + r; see the head of this file. s is off by s_error. */
struct normalise {
    double mean, mean_error, hi, s, s_error, beta;
};

static double normalise_bound(const struct normalise *m, double x, const double *residual,
                              double v) {
    const double lo = m->mean - m->hi, b = m->beta - lo * m->s, p = (x - m->mean) * m->s + m->beta;
    double bound = fabs(x - m->mean) * m->s_error + fabs(m->s) * m->mean_error +
                   U * fabs((x - m->hi) * m->s) + U * fabs(lo * m->s) + U * fabs(b) + U * fabs(p);
    if (residual)
        bound += U * fabs(v);
    return SLACK * bound + (2 + fabs(x - m->hi)) * ETA;
}

void oracle_train(const bnorm_shape *shape, const double *x, const struct oracle_train *train,
                  const struct oracle_train_out *out) {
    const size_t count = elements_per_channel(shape);
    oracle_moments(shape, x, &out->stats);
    for (size_t c = 0; c < shape->c; c++) {
        const double mean = out->stats.mean[c], mean_bound = out->stats.mean_bound[c];
        const double var = out->stats.var[c], var_bound = out->stats.var_bound[c];
        const double invstd = invstd_of(var, train->eps);
        const double above = fmax(var - var_bound, 0) + train->eps > 0
                                 ? invstd_of(var - var_bound, train->eps)
                             : var > 0 ? INFINITY
                                       : 0;
        const double invstd_bound =
            fmax(above - invstd, invstd - invstd_of(var + var_bound, train->eps));
        out->invstd[c] = invstd;
        out->invstd_bound[c] = invstd_bound + 8 * W * invstd;

        const double gamma = param(train->gamma, c, 1);
        const double hi = (double)(float)mean;
        const struct normalise m = {
            .mean = mean,
            .mean_error = mean_bound + ETA,
            .hi = hi,
            .s = gamma * invstd,
            .s_error = fabs(gamma) * (out->invstd_bound[c] + 2 * U * invstd + ETA) + ETA,
            .beta = param(train->beta, c, 0),
        };
        for (size_t q = 0; q < count; q++) {
            const size_t i = at(shape, c, q);
            const double v = (x[i] - mean) * m.s + m.beta + param(train->residual, i, 0);
            if (out->v)
                out->v[i] = v;
            out->y[i] = oracle_act(train->act, v);
            if (out->v_bound || out->y_bound) {
                const double bound = normalise_bound(&m, x[i], train->residual, v);
                if (out->v_bound)
                    out->v_bound[i] = bound;
                if (out->y_bound)
                    out->y_bound[i] = oracle_act_bound(train->act, v, bound);
            }
        }
    }
}

/* ---------------------------------------------------------------------------------------------- */
/* Backward                                                                                       */

void oracle_backward(const bnorm_shape *shape, const double *x, const double *dy,
                     const struct oracle_grad *grad, const struct oracle_grad_out *out) {
    const size_t count = elements_per_channel(shape);
    const double n = (double)count;
    for (size_t c = 0; c < shape->c; c++) {
        const double mean = grad->mean[c], hi = grad->mean_hi[c], lo = mean - hi;
        const double invstd = grad->invstd[c], s = param(grad->gamma, c, 1) * invstd;
        const struct normalise m = {.mean = mean,
                                    .hi = hi,
                                    .s = s,
                                    .s_error = U * fabs(s),
                                    .beta = param(grad->beta, c, 0)};

        struct sum sum_g = {0, 0}, sum_gx = {0, 0};
        const double off = fmax(0x1p-17 / invstd, 2 * U * fabs(hi)); /* the pivot, from hi */
        double abs_g = 0, abs_gx = 0, error_g = 0, error_gx = 0;
        for (size_t q = 0; q < count; q++) {
            const size_t i = at(shape, c, q);
            const double v = grad->v[i], v_bound = normalise_bound(&m, x[i], grad->v, v);
            const double g = dy[i] * oracle_act_derivative(grad->act, v);
            const double g_bound = oracle_gradient_bound(grad->act, v, v_bound, dy[i]);
            out->g[i] = g;
            out->g_bound[i] = g_bound;
            sum_add(&sum_g, g);
            sum_add(&sum_gx, g * (x[i] - mean));
            abs_g += fabs(g);
            abs_gx += fabs(g) * (fabs(x[i] - hi) + fabs(lo) + off);
            error_g += g_bound;
            error_gx += g_bound * fabs(x[i] - mean);
        }
        const double dbeta = sum_total(&sum_g), dgamma = invstd * sum_total(&sum_gx);
        const double dbeta_error = SLACK * error_g + oracle_sum_error(shape) * abs_g;
        const double dgamma_error =
            invstd * (SLACK * error_gx + oracle_product_error(shape) * abs_gx + 2 * n * ETA);
        out->dbeta[c] = dbeta;
        out->dgamma[c] = dgamma;
        out->dbeta_bound[c] = dbeta_error + U * fabs(dbeta) + ETA;
        out->dgamma_bound[c] = dgamma_error + U * fabs(dgamma) + ETA;

        const double slope = -s * invstd * dgamma / n;
        const double slope_error = fabs(s) * invstd * dgamma_error / n + U * fabs(slope) + ETA;
        const double offset = -s * dbeta / n - lo * slope;
        const double offset_error =
            fabs(s) * dbeta_error / n + fabs(lo) * slope_error + U * fabs(offset) + ETA;
        for (size_t q = 0; q < count; q++) {
            const size_t i = at(shape, c, q);
            const double sg = s * out->g[i], sg_error = fabs(s) * out->g_bound[i] + U * fabs(sg);
            if (grad->frozen) {
                out->dx[i] = sg;
                out->dx_bound[i] = SLACK * (sg_error + U * fabs(sg)) + ETA;
                continue;
            }
            const double d = fabs(x[i] - hi);
            out->dx[i] = s * (out->g[i] - dbeta / n - (x[i] - mean) * invstd * dgamma / n);
            out->dx_bound[i] =
                SLACK * (sg_error + offset_error + U * fabs(sg + offset) +
                         d * (slope_error + 2 * U * fabs(slope)) + U * fabs(out->dx[i])) +
                (2 + fabs(out->g[i])) * ETA;
        }
    }
}
