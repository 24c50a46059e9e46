/* SPDX-License-Identifier: MIT */
#include "reference.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>

/* Sums of a channel and of the magnitudes of what is summed. */
typedef struct channel {
    double mean, invstd;
    double mean_size;
    double dbeta, dbeta_size, dgamma, dgamma_size;
} channel;

typedef struct tolerance {
    double relative;
    const char *who;
    double more_size; /* of an element, beside its terms */
} tolerance;

static int same(const tolerance *t, const char *what, size_t i, double got, double want,
                double size) {
    if (fabs(got - want) <= t->relative * size)
        return 1;
    fprintf(stderr,
            "bench: %s: %s[%zu] is %.9g, the reference says %.9g (allowed difference %.2g).\n",
            t->who, what, i, got, want, t->relative * size);
    return 0;
}

/* A run is contiguous: the channels of a pixel (NHWC) or the pixels of a plane (NCHW). */
static size_t run_length(const bench_problem *p) {
    return p->layout == BNORM_NHWC ? p->c : p->hw;
}

/* Element i of the run is of channel first + i*step. */
static size_t first_channel(const bench_problem *p, size_t run) {
    return p->layout == BNORM_NHWC ? 0 : run % p->c;
}

static size_t channel_step(const bench_problem *p) {
    return p->layout == BNORM_NHWC ? 1 : 0;
}

static double activate(bnorm_act act, double v) {
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
        return v * fmin(fmax(v + 3, 0), 6) / 6;
    case BNORM_ACT_SIGMOID:
        return 1 / (1 + exp(-v));
    case BNORM_ACT_SILU:
        return v / (1 + exp(-v));
    case BNORM_ACT_TANH:
        return tanh(v);
    case BNORM_ACT_GELU:
        return v / 2 * (1 + erf(v / sqrt(2)));
    case BNORM_ACT_ELU:
        return v > 0 ? v : (double)act.a * expm1(v);
    case BNORM_ACT_SOFTPLUS:
        return log1p(exp(v));
    case BNORM_ACT_MISH:
        return v * tanh(log1p(exp(v)));
    }
    return NAN;
}

/* dy times the derivative of the activation, where that is given as a mask. */
static double gradient(const bench_problem *p, bnorm_act act, size_t i) {
    if (act.kind == BNORM_ACT_IDENTITY || p->passed[i] > 0)
        return p->dy[i];
    return act.kind == BNORM_ACT_LEAKY_RELU ? (double)(act.a * p->dy[i]) : 0;
}

/* The derivative steps at some v, which rounding may put on either side. */
static int is_exact(const bench_problem *p) {
    return p->op != BENCH_BACKWARD || bench_act(p).kind == BNORM_ACT_IDENTITY || p->form.mask;
}

/* The error of what follows the affine map may be of another size than the terms of v. */
static double more_size(const bench_problem *p) {
    return bench_act(p).kind >= BNORM_ACT_SIGMOID || p->form.dtype >= BNORM_S8;
}

static void batch_statistics(const bench_problem *p, channel *channels) {
    const size_t length = run_length(p), runs = p->n * p->c * p->hw / length;
    const size_t step = channel_step(p);
    const double count = (double)(p->n * p->hw);
    for (size_t run = 0; run < runs; run++) {
        channel *ch = &channels[first_channel(p, run)];
        for (size_t i = 0; i < length; i++, ch += step) {
            ch->mean += p->x[run * length + i];
            ch->mean_size += fabs((double)p->x[run * length + i]);
        }
    }
    for (size_t c = 0; c < p->c; c++) {
        channels[c].mean /= count;
        channels[c].mean_size /= count;
    }
    for (size_t run = 0; run < runs; run++) {
        channel *ch = &channels[first_channel(p, run)];
        for (size_t i = 0; i < length; i++, ch += step) {
            const double deviation = p->x[run * length + i] - ch->mean;
            ch->invstd += deviation * deviation;
        }
    }
    for (size_t c = 0; c < p->c; c++)
        channels[c].invstd = 1 / sqrt(channels[c].invstd / count + p->eps);
}

static void gradient_sums(const bench_problem *p, channel *channels) {
    const size_t length = run_length(p), runs = p->n * p->c * p->hw / length;
    const size_t step = channel_step(p);
    const bnorm_act act = bench_act(p);
    for (size_t run = 0; run < runs; run++) {
        channel *ch = &channels[first_channel(p, run)];
        for (size_t i = 0; i < length; i++, ch += step) {
            const double g = gradient(p, act, run * length + i);
            const double normalized = (p->x[run * length + i] - ch->mean) * ch->invstd;
            ch->dbeta += g;
            ch->dbeta_size += fabs(g);
            ch->dgamma += g * normalized;
            ch->dgamma_size += fabs(g * normalized);
        }
    }
}

static int check_channels(const bench_problem *p, const bench_result *r, const channel *channels,
                          const tolerance *t) {
    const double count = (double)(p->n * p->hw);
    int good = 1;
    for (size_t c = 0; good && c < p->c; c++) {
        const channel *ch = &channels[c];
        if (bench_ops[p->op].training) {
            const double var = 1 / (ch->invstd * ch->invstd) - p->eps;
            const double sample = count > 1 ? var * count / (count - 1) : var;
            const double running = 1 + BENCH_RATE * (sample - 1);
            good = same(t, "save_mean", c, r->mean[c], ch->mean, ch->mean_size) &&
                   same(t, "save_invstd", c, r->invstd[c], ch->invstd, ch->invstd) &&
                   same(t, "running_mean", c, r->running_mean[c], BENCH_RATE * ch->mean,
                        ch->mean_size) &&
                   same(t, "running_var", c, r->running_var[c], running, running);
        } else if (p->op == BENCH_BACKWARD) {
            good = same(t, "dbeta", c, r->dbeta[c], ch->dbeta, ch->dbeta_size) &&
                   same(t, "dgamma", c, r->dgamma[c], ch->dgamma, ch->dgamma_size);
        }
    }
    return good;
}

static int check_element(const bench_problem *p, bnorm_act act, const bench_result *r,
                         const channel *ch, size_t c, size_t i, const tolerance *t) {
    const double x = p->x[i], gamma = p->gamma[c], beta = p->beta[c];
    if (p->op == BENCH_BACKWARD) {
        const double count = (double)(p->n * p->hw);
        const double g = gradient(p, act, i), normalized = (x - ch->mean) * ch->invstd;
        const double want =
            gamma * ch->invstd * (g - ch->dbeta / count - normalized * ch->dgamma / count);
        const double size = fabs(gamma * ch->invstd) *
                            (fabs(g) + ch->dbeta_size / count +
                             (fabs(x) + fabs(ch->mean)) * ch->invstd * ch->dgamma_size / count);
        return same(t, "dx", i, r->tensor[i], want, size);
    }
    const double residual = bench_has_residual(p) ? p->dy[i] : 0;
    const double v = gamma * ch->invstd * (x - ch->mean) + beta + residual;
    const double size = fabs(gamma * ch->invstd) * (fabs(x) + fabs(ch->mean)) + fabs(beta) +
                        fabs(residual) + t->more_size;
    return same(t, "y", i, r->tensor[i], activate(act, v), size);
}

int reference_check(const bench_problem *p, const bench_result *r, double relative,
                    const char *who) {
    const tolerance t = {relative, who, more_size(p)};
    if (!is_exact(p))
        return 1;
    channel *channels = calloc(p->c, sizeof *channels);
    if (!channels) {
        fprintf(stderr, "bench: out of memory while checking.\n");
        return 0;
    }
    if (bench_ops[p->op].training) {
        batch_statistics(p, channels);
    } else {
        for (size_t c = 0; c < p->c; c++) {
            channels[c].mean = p->mean[c];
            channels[c].invstd = p->invstd[c];
        }
        if (p->op == BENCH_BACKWARD)
            gradient_sums(p, channels);
    }
    /* Statistics are floats whatever the type. */
    const tolerance t_channels = {p->form.dtype == BNORM_F32 ? relative : 1e-6, who, 0};
    int good = check_channels(p, r, channels, &t_channels);
    const size_t length = run_length(p), elements = p->n * p->c * p->hw;
    const size_t step = channel_step(p);
    const bnorm_act act = bench_act(p);
    for (size_t first = 0; good && first < elements; first += length) {
        size_t c = first_channel(p, first / length);
        for (size_t i = 0; good && i < length; i++, c += step)
            good = check_element(p, act, r, &channels[c], c, first + i, &t);
    }
    free(channels);
    return good;
}
