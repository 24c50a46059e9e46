/* SPDX-License-Identifier: MIT
 *
 * Properties that hold for any data, over random shapes; data whose statistics are exact; and the
 * caller's floating-point mode: rounding direction, flush to zero. */
#include "calls.h"
#include "oracle.h"

#include <fenv.h>
#include <float.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#if defined(__x86_64__) || defined(__i386__)
#include <immintrin.h>
#endif

static int repetitions(int many) {
    return (int)test_repeat((size_t)many, (size_t)(many + 2) / 3, (size_t)(many + 7) / 8);
}

/* ---------------------------------------------------------------------------------------------- */
/* Shapes and calls                                                                               */

/* Few or many channels, one block or several, one position or many. */
static bnorm_shape random_shape(struct test *t) {
    struct rng *r = &t->rng;
    bnorm_shape s = {.layout = layout_of(t)};
    switch (rng_below(r, 4)) {
    case 0: /* (N, C) data */
        s = (bnorm_shape){.layout = s.layout, .n = 1 + rng_below(r, 400), .hw = 1};
        s.c = 1 + rng_below(r, 40);
        break;
    case 1: /* several blocks per image */
        s.n = 1 + rng_below(r, 3);
        s.c = 1 + rng_below(r, 3);
        s.hw = 4000 + rng_below(r, 6000);
        break;
    case 2: /* many channels */
        s.n = 1 + rng_below(r, 3);
        s.c = 200 + rng_below(r, 1000);
        s.hw = 1 + rng_below(r, 80);
        break;
    default:
        s.n = 1 + rng_below(r, 6);
        s.c = 1 + rng_below(r, 70);
        s.hw = 1 + rng_below(r, 200);
    }
    return s;
}

static size_t per_channel(const bnorm_shape *s) {
    return s->n * s->hw;
}

/* Dense index of element q of channel c. */
static size_t element(const bnorm_shape *s, size_t c, size_t q) {
    const size_t image = q / s->hw, p = q % s->hw, b = s->c_block;
    if (b)
        return ((image * shape_runs(s) + c / b) * s->hw + p) * b + c % b;
    return s->layout == BNORM_NHWC ? (image * s->hw + p) * s->c + c
                                   : (image * s->c + c) * s->hw + p;
}

/* What is called between two changes of the floating-point mode must not need the harness. Each
 * call builds on the results of those before it. */
enum step { MOMENTS, FORWARD, BACKWARD, FOLD, APPLY, STEPS };
static const char *const step_names[STEPS] = {"bnorm_moments", "bnorm_forward_train",
                                              "bnorm_backward", "bnorm_fold", "bnorm_apply"};

/* All for dense x and dy. */
struct calls {
    bnorm_shape shape;
    bnorm_exec exec;
    double eps;
    struct call_args args[STEPS];
    struct results out;                         /* invstd, lo: of forward; mean, var: moments */
    float *save_mean, *applied, *scale, *shift; /* of forward; of the fold and with it */
};

static const struct calls *new_calls(struct test *t, const bnorm_shape *s, const float *x,
                                     const float *dy, double eps) {
    static const bnorm_op ops[STEPS] = {BNORM_OP_MOMENTS, BNORM_OP_FORWARD_TRAIN, BNORM_OP_BACKWARD,
                                        BNORM_OP_APPLY, BNORM_OP_APPLY};
    struct calls *k = test_alloc(t, sizeof *k);
    struct results *out = &k->out;
    float **const arrays[] = {&out->mean,         &out->var,         &out->lo,     &out->invstd,
                              &out->running_mean, &out->running_var, &out->dgamma, &out->dbeta,
                              &k->save_mean,      &k->scale,         &k->shift};
    float **const tensors[] = {&out->y, &out->dx, &k->applied};
    k->shape = *s;
    k->exec.isa = t->isa;
    k->eps = eps;
    for (size_t i = 0; i < COUNT_OF(arrays); i++)
        *arrays[i] = test_floats(t, s->c);
    for (size_t i = 0; i < COUNT_OF(tensors); i++)
        *tensors[i] = test_floats(t, shape_count(s));
    for (size_t i = 0; i < STEPS; i++) {
        const struct call call = {
            .op = ops[i], .shape = *s, .eps = eps, .rate = 0.25, .variance = BNORM_VARIANCE_SAMPLE};
        struct operands at = {
            .x = {.data = x},
            .dy = {.data = dy},
            .out = {.data = i == FORWARD    ? out->y
                            : i == BACKWARD ? out->dx
                                            : k->applied},
            .ws_size = bnorm_workspace(ops[i], s),
        };
        at.ws = test_alloc(t, at.ws_size);
        if (i == MOMENTS) {
            at.mean = out->mean;
            at.var = out->var;
        } else if (i < FOLD) {
            at.mean = k->save_mean;
            at.lo = out->lo;
            at.invstd = out->invstd;
            at.running_mean = out->running_mean;
            at.running_var = out->running_var;
            at.dgamma = out->dgamma;
            at.dbeta = out->dbeta;
        } else {
            at.scale = k->scale;
            at.beta = k->shift;
        }
        call_arguments(&k->args[i], &call, &at);
    }
    return k;
}

static bnorm_status run_step(const struct calls *k, size_t i) {
    if (i != FOLD)
        return call_run(&k->args[i], &k->exec);
    return bnorm_fold(k->shape.c, NULL, NULL, k->out.mean, k->out.var, k->eps, k->scale, k->shift);
}

static void run_all(struct test *t, const struct calls *k) {
    for (size_t i = 0; i < STEPS; i++)
        check_status(t, step_names[i], run_step(k, i), BNORM_OK);
}

static void check_same(struct test *t, const struct calls *got, const struct calls *want) {
    const size_t count = shape_count(&got->shape), c = got->shape.c;
    const struct data dims = {.n = got->shape.n, .c = c, .hw = got->shape.hw};
    check_results(t, &got->out, &want->out, &dims);
    check_bits(t, "save_mean", got->save_mean, want->save_mean, c);
    check_bits(t, "scale", got->scale, want->scale, c);
    check_bits(t, "shift", got->shift, want->shift, c);
    check_bits(t, "applied", got->applied, want->applied, count);
}

static void say(struct test *t, const bnorm_shape *s, const char *what) {
    char text[96];
    test_context(t, "%s, %s", shape_text(s, text), what);
}

/* Exact statistics and y with their bounds, the final rounding to float included. */
struct reference {
    double *mean, *mean_bound, *var, *var_bound, *y, *y_bound;
};

static struct reference reference_of(struct test *t, const bnorm_shape *s, const float *x,
                                     double eps) {
    const size_t c = s->c, count = shape_count(s);
    const struct reference r = {test_doubles(t, c), test_doubles(t, c),     test_doubles(t, c),
                                test_doubles(t, c), test_doubles(t, count), test_doubles(t, count)};
    const struct oracle_train train = {.eps = eps};
    const struct oracle_train_out out = {
        .stats = {r.mean, r.mean_bound, r.var, r.var_bound},
        .invstd = test_doubles(t, c),
        .invstd_bound = test_doubles(t, c),
        .v = test_doubles(t, count),
        .y = r.y,
        .y_bound = r.y_bound,
    };
    oracle_train(s, to_double(t, x, count), &train, &out);
    for (size_t i = 0; i < c; i++) {
        r.mean_bound[i] += 0x1p-24 * (fabs(r.mean[i]) + r.mean_bound[i]) + 0x1p-149;
        r.var_bound[i] += 0x1p-24 * (r.var[i] + r.var_bound[i]) + 0x1p-149;
    }
    return r;
}

/* ---------------------------------------------------------------------------------------------- */
/* Exact data                                                                                     */

/* Pairs m - d and m + d next to each other, so that the mean is m in every block too; d is 1 or 7
 * steps in equal numbers (variance 25 steps^2) or always 1 step (variance 1, and y is +-1). */
static void exact_data(struct test *t) {
    for (int i = 0; i < repetitions(60); i++) {
        bnorm_shape s = random_shape(t);
        const int unit = (int)rng_below(&t->rng, 2);
        if (s.hw == 1)
            s.n += 3 - (s.n - 1) % 4;
        else
            s.hw += 3 - (s.hw - 1) % 4;
        const size_t n = per_channel(&s), count = shape_count(&s);
        float *x = test_floats(t, count), *dy = test_floats(t, count), *mean = test_floats(t, s.c),
              *var = test_floats(t, s.c), *y = test_floats(t, count), *invstd = test_floats(t, s.c),
              *dgamma = test_floats(t, s.c), *dbeta = test_floats(t, s.c);
        for (size_t c = 0; c < s.c; c++) {
            const double step = ldexp(1, (int)rng_below(&t->rng, 21) - 10),
                         m = step * ((double)rng_below(&t->rng, 1 << 22) - 0x1p21);
            double sum_g = 0, sum_gx = 0;
            for (size_t q = 0; q < n; q++) {
                const size_t at = element(&s, c, q);
                const double pair = unit || q % 4 < 2 ? 1 : 7;
                const double sign = q % 2 == (q / 2 + c) % 2 ? 1 : -1;
                const double g = (double)rng_below(&t->rng, 65) - 32;
                x[at] = (float)(m + sign * pair * step);
                dy[at] = (float)g;
                y[at] = (float)sign;
                sum_g += g;
                sum_gx += g * sign;
            }
            mean[c] = (float)m;
            var[c] = (float)((unit ? 1 : 25) * step * step);
            invstd[c] = (float)(1 / step);
            dgamma[c] = (float)sum_gx;
            dbeta[c] = (float)sum_g;
        }
        say(t, &s, unit ? "pairs m +- 1" : "pairs m +- 1, m +- 7");
        const struct calls *k = new_calls(t, &s, x, dy, 0);
        run_all(t, k);
        check_bits(t, "mean", k->out.mean, mean, s.c);
        check_bits(t, "var", k->out.var, var, s.c);
        check_bits(t, "save_mean", k->save_mean, mean, s.c);
        check_bits(t, "dbeta", k->out.dbeta, dbeta, s.c);
        if (unit) {
            check_bits(t, "save_invstd", k->out.invstd, invstd, s.c);
            check_bits(t, "y", k->out.y, y, count);
            check_bits(t, "dgamma", k->out.dgamma, dgamma, s.c);
        }
        test_release(t);
    }
}

/* Whole numbers times 2^exponent. Those of a channel are at most 20 apart, and sums in float of the
 * squares of their distances from the mean of any 16 of them are exact; or up to 240 apart, which
 * takes a pivot that is rounded. */
struct grid {
    int exponent;
    int *steps; /* of each element of a channel */
    int64_t sum, squares;
};

enum { GRID_SUM_0, GRID_WHOLE, GRID_MEAN, GRID_RARE, GRID_WIDE, GRID_KINDS };
static const char *const grid_names[GRID_KINDS] = {"a sum of 0", "whole numbers",
                                                   "a power of two and whole numbers",
                                                   "a rare value", "many values"};

static void fill_grid(struct rng *r, struct grid *g, size_t n, size_t kind) {
    const int range = kind == GRID_WIDE ? 120 : 1 + (int)rng_below(r, 10);
    const int mean = 16 << rng_below(r, 4);
    g->exponent = (int)rng_below(r, 9) - 4;
    for (size_t q = 0; q < n; q++) {
        const int v = (int)rng_below(r, 2 * (size_t)range + 1) - range;
        if (kind == GRID_RARE)
            g->steps[q] = mean + (rng_below(r, 100) < 3 ? range : 0);
        else if (kind == GRID_SUM_0)
            g->steps[q] = q < n / 2 ? v : q == n - 1 - q ? 0 : -g->steps[n - 1 - q];
        else
            g->steps[q] = (kind == GRID_MEAN ? mean : 0) + v;
    }
    g->sum = g->squares = 0;
    for (size_t q = 0; q < n; q++) {
        g->sum += g->steps[q];
        g->squares += g->steps[q] * g->steps[q];
    }
}

/* An exact value that was rounded once, or as good as that. */
static int is_rounded(float got, double want) {
    const float near = (float)want;
    const double ulp = (double)(nextafterf(fabsf(near), INFINITY) - fabsf(near));
    return fabs((double)got - want) <= (0.5 + 0x1p-16) * ulp;
}

static int bit_at(const unsigned char *mask, size_t i) {
    return mask[i / 8] >> i % 8 & 1;
}

/* Mean and variance are those of the whole numbers, rounded once; what equals the mean is 0 in y,
 * in ReLU's mask and in its gradient. In all types and layouts, blocked ones too. Where samples are
 * alike by chance, their mean is rounded to a finer grid, and the variance of many values may not be
 * exact. */
static void grid_data(struct test *t) {
    static const bnorm_dtype types[] = {BNORM_F32, BNORM_BF16, BNORM_F16};
    const bnorm_exec exec = {.isa = t->isa};
    size_t wide = 0, wide_exact = 0;
    for (int i = 0; i < repetitions(100); i++) {
        bnorm_shape s = random_shape(t);
        s.dtype = types[rng_below(&t->rng, COUNT_OF(types))];
        if (s.layout == BNORM_NCHW && rng_below(&t->rng, 3) == 0)
            s.c_block = (size_t)4 << rng_below(&t->rng, 3);
        const size_t n = per_channel(&s), count = shape_count(&s), bytes = dtype_size(s.dtype),
                     kind = rng_below(&t->rng, GRID_KINDS),
                     ws_size = bnorm_workspace(BNORM_OP_BACKWARD, &s) +
                               bnorm_workspace(BNORM_OP_FORWARD_TRAIN, &s);
        void *const x = test_alloc(t, count * bytes), *const dy = test_alloc(t, count * bytes),
                    *const y = test_alloc(t, count * bytes),
                    *const dx = test_alloc(t, count * bytes), *const ws = test_alloc(t, ws_size);
        unsigned char *const mask = test_alloc(t, bnorm_mask_size(&s));
        float *const mean = test_floats(t, s.c), *const var = test_floats(t, s.c),
                     *const save_mean = test_floats(t, s.c), *const lo = test_floats(t, s.c),
                     *const invstd = test_floats(t, s.c), *const dgamma = test_floats(t, s.c),
                     *const dbeta = test_floats(t, s.c);
        struct grid *const grids = test_alloc(t, s.c * sizeof *grids);
        for (size_t c = 0; c < s.c; c++) {
            grids[c].steps = test_alloc(t, n * sizeof(int));
            fill_grid(&t->rng, &grids[c], n, kind);
            for (size_t q = 0; q < n; q++) {
                element_set(s.dtype, x, element(&s, c, q),
                            ldexpf((float)grids[c].steps[q], grids[c].exponent));
                element_set(s.dtype, dy, element(&s, c, q), (float)rng_below(&t->rng, 33) - 16);
            }
        }
        const bnorm_act relu = {.kind = BNORM_ACT_RELU};
        const bnorm_train train = {.eps = 1e-5,
                                   .save_mean = save_mean,
                                   .save_mean_lo = lo,
                                   .save_invstd = invstd,
                                   .act = relu,
                                   .mask = mask};
        const bnorm_grad grad = {.save_mean = save_mean,
                                 .save_mean_lo = lo,
                                 .save_invstd = invstd,
                                 .act = relu,
                                 .mask = mask,
                                 .dgamma = dgamma,
                                 .dbeta = dbeta};
        char text[96];
        test_context(t, "%s, %s, %s", shape_text(&s, text), dtype_name(s.dtype), grid_names[kind]);
        check_status(t, "bnorm_moments",
                     bnorm_moments(&s, (bnorm_in){.data = x}, mean, var, ws, ws_size, &exec),
                     BNORM_OK);
        check_status(t, "bnorm_forward_train",
                     bnorm_forward_train(&s, (bnorm_in){.data = x}, (bnorm_out){.data = y}, &train,
                                         ws, ws_size, &exec),
                     BNORM_OK);
        check_status(t, "bnorm_backward",
                     bnorm_backward(&s, (bnorm_in){.data = x}, (bnorm_in){.data = dy},
                                    (bnorm_out){.data = dx}, &grad, ws, ws_size, &exec),
                     BNORM_OK);
        for (size_t c = 0; c < s.c; c++) {
            const struct grid *g = &grids[c];
            const int64_t all = (int64_t)n;
            const float want = (float)ldexp((double)g->sum / (double)n, g->exponent);
            check_bits(t, "mean", &mean[c], &want, 1);
            check_bits(t, "save_mean", &save_mean[c], &want, 1);
            const double want_var =
                ldexp((double)(all * g->squares - g->sum * g->sum) / ((double)n * (double)n),
                      2 * g->exponent);
            const int exact = is_rounded(var[c], want_var);
            if (!exact && kind != GRID_WIDE)
                test_fail(t, "var[%zu] is %.9g, expected %.17g, rounded once", c, (double)var[c],
                          want_var);
            wide += kind == GRID_WIDE;
            wide_exact += kind == GRID_WIDE && exact;
            double sum_g = 0, sum_gx = 0;
            for (size_t q = 0; q < n; q++) {
                const size_t at = element(&s, c, q);
                const int passes = g->steps[q] * all > g->sum;
                if (bit_at(mask, at) != passes || (element_get(s.dtype, y, at) > 0) != passes)
                    test_fail(t,
                              "element %zu of channel %zu lies %s the mean, but y is %g and its "
                              "bit %d",
                              q, c, passes ? "above" : "not above",
                              (double)element_get(s.dtype, y, at), bit_at(mask, at));
                sum_g += passes ? (double)element_get(s.dtype, dy, at) : 0;
                sum_gx += passes ? (double)element_get(s.dtype, dy, at) *
                                       (ldexp(g->steps[q], g->exponent) - (double)want)
                                 : 0;
            }
            const float want_dbeta = (float)sum_g,
                        want_dgamma = (float)(sum_gx * (double)invstd[c]);
            check_bits(t, "dbeta", &dbeta[c], &want_dbeta, 1);
            if (g->sum % all == 0)
                check_near(t, "dgamma", c, dgamma[c], (double)want_dgamma, 0);
            const float at_mean = (float)(-(double)invstd[c] * (sum_g / (double)n));
            for (size_t q = 0; q < n; q++)
                if (g->steps[q] * all == g->sum)
                    check_near(t, "dx of the mean", q, element_get(s.dtype, dx, element(&s, c, q)),
                               n == 1 ? 0 : (double)element_round(s.dtype, at_mean), 0);
        }
        test_release(t);
    }
    if (wide_exact < wide - wide / 1000)
        test_fail(t, "%zu of %zu variances of many values are exact, expected 99.9 %%", wide_exact,
                  wide);
}

/* ---------------------------------------------------------------------------------------------- */
/* Properties                                                                                     */

static const enum values ordinary_values[] = {VALUES_NORMAL, VALUES_MEAN_1E6, VALUES_OUTLIER,
                                              VALUES_HALF_CONSTANT, VALUES_CONSTANT};

static enum values random_values(struct test *t) {
    return ordinary_values[rng_below(&t->rng, COUNT_OF(ordinary_values))];
}

static float *random_x(struct test *t, const bnorm_shape *s, enum values kind) {
    float *x = test_floats(t, shape_count(s));
    fill_values(&t->rng, s, kind, x);
    return x;
}

static float *random_dy(struct test *t, const bnorm_shape *s) {
    return uniform_floats(t, 1, shape_count(s), -1, 1);
}

/* What is to be expected of ordinary data and of difficult data: roundings of many values do not all
 * have one sign, as the bounds of the oracle assume. */
enum spread {
    MEAN_0,
    MEAN_1E3,
    MEAN_1E5,
    RARE_VALUE,
    OUTLIERS_SAMPLED,
    ONE_OUTLIER,
    ASCENDING,
    MIXED_CLUSTERS,
    CLUSTERS_IN_A_ROW,
    SKEWED,
    SPREADS
};
static const char *const spread_names[SPREADS] = {"mean 0",
                                                  "mean 1e3",
                                                  "mean 1e5",
                                                  "a rare value",
                                                  "outliers where pivots are taken",
                                                  "one outlier",
                                                  "sorted",
                                                  "clusters, mixed",
                                                  "clusters in a row",
                                                  "log-normal"};

static int ascending(const void *a, const void *b) {
    const float x = *(const float *)a, y = *(const float *)b;
    return (x > y) - (x < y);
}

static void fill_spread(struct rng *r, float *x, size_t n, enum spread spread) {
    const float one = (float)rng_uniform(r, -2, 2),
                other = one + (float)(rng_uniform(r, -2, 2) * exp(rng_uniform(r, -4, 4)));
    const double share = rng_uniform(r, .003, .04), width = exp(rng_uniform(r, -8, 0));
    const size_t every = 1 + n / 16;
    for (size_t q = 0; q < n; q++) {
        const double v = rng_normal(r);
        switch (spread) {
        case MEAN_1E3:
            x[q] = (float)(1e3 + v);
            break;
        case MEAN_1E5:
            x[q] = (float)(1e5 + v);
            break;
        case RARE_VALUE:
            x[q] = rng_uniform(r, 0, 1) < share ? other : one;
            break;
        case OUTLIERS_SAMPLED:
            x[q] = (float)(q % every == 0 ? 100 + v : v);
            break;
        case ONE_OUTLIER:
            x[q] = (float)(q == 0 ? 1e6 : v);
            break;
        case MIXED_CLUSTERS:
        case CLUSTERS_IN_A_ROW:
            x[q] = (float)((rng_below(r, 2) ? 1 : -1) + width * v);
            break;
        case SKEWED:
            x[q] = (float)exp(2 * v);
            break;
        default:
            x[q] = (float)v;
        }
    }
    if (spread == ASCENDING || spread == CLUSTERS_IN_A_ROW)
        qsort(x, n, sizeof *x, ascending);
}

/* As random_dy; or of one sign, or all the same, which the mean of x is to take out again. Not where
 * x is much alike over whole groups, so that their products are of one sign, too, nor where a few
 * values have all the weight in dgamma, and the error of the mean counts beside it. */
static float *dy_for(struct test *t, const bnorm_shape *s, enum spread spread) {
    static const double least[] = {-1, 0, 1};
    const int any = spread <= MEAN_1E5 || spread == MIXED_CLUSTERS;
    return uniform_floats(t, 1, shape_count(s), any ? least[rng_below(&t->rng, 3)] : -1, 1);
}

static double ulp_of(double v) {
    const float near = fabsf((float)v);
    return (double)(nextafterf(near, INFINITY) - near);
}

static void goals(struct test *t) {
    for (int i = 0; i < repetitions(60); i++) {
        const bnorm_shape s = random_shape(t);
        const enum spread spread = (enum spread)rng_below(&t->rng, SPREADS);
        const size_t n = per_channel(&s), count = shape_count(&s);
        float *const x = test_floats(t, count), *const values = test_floats(t, n);
        const float *const dy = dy_for(t, &s, spread);
        for (size_t c = 0; c < s.c; c++) {
            fill_spread(&t->rng, values, n, spread);
            for (size_t q = 0; q < n; q++)
                x[element(&s, c, q)] = values[q];
        }
        const struct calls *const k = new_calls(t, &s, x, dy, 1e-5);
        const struct reference r = reference_of(t, &s, x, 1e-5);
        say(t, &s, spread_names[spread]);
        run_all(t, k);
        for (size_t c = 0; c < s.c; c++) {
            const double deviation = sqrt(r.var[c]), unit = 0x1p-22;
            double sum_g = 0, sum_gx = 0, squares_g = 0, squares_gx = 0;
            for (size_t q = 0; q < n; q++) {
                const size_t at = element(&s, c, q);
                const double g = (double)dy[at], gx = g * r.y[at];
                sum_g += g;
                sum_gx += gx;
                squares_g += g * g;
                squares_gx += gx * gx;
                check_near(t, "y", at, k->out.y[at], r.y[at], unit * fmax(1, fabs(r.y[at])));
            }
            check_near(t, "mean", c, k->out.mean[c], r.mean[c],
                       fmax(ulp_of(r.mean[c]), unit / 2 * deviation));
            check_near(t, "var", c, k->out.var[c], r.var[c], 4 * ulp_of(r.var[c]));
            /* The goal is a fraction of this; one channel in 100 is beyond. */
            check_near(t, "dbeta", c, k->out.dbeta[c], sum_g,
                       3 * fmax(ulp_of(sum_g), unit * sqrt(squares_g)));
            check_near(t, "dgamma", c, k->out.dgamma[c], sum_gx,
                       (spread == ONE_OUTLIER ? 3 : 2.5) *
                           fmax(ulp_of(sum_gx), unit * sqrt(squares_gx)));
        }
        test_release(t);
    }
}

/* Samples and pixels in another order: the exact statistics are the same. */
static void permute(struct test *t) {
    for (int i = 0; i < repetitions(40); i++) {
        const bnorm_shape s = random_shape(t);
        const enum values kind = random_values(t);
        const size_t n = per_channel(&s);
        const float *x = random_x(t, &s, kind), *dy = random_dy(t, &s);
        float *shuffled = test_floats(t, shape_count(&s));
        size_t *order = test_alloc(t, n * sizeof *order);
        for (size_t q = 0; q < n; q++) {
            const size_t other = rng_below(&t->rng, q + 1);
            order[q] = order[other];
            order[other] = q;
        }
        for (size_t c = 0; c < s.c; c++)
            for (size_t q = 0; q < n; q++)
                shuffled[element(&s, c, order[q])] = x[element(&s, c, q)];
        const struct calls *a = new_calls(t, &s, x, dy, 1e-5),
                           *b = new_calls(t, &s, shuffled, dy, 1e-5);
        const struct reference r = reference_of(t, &s, x, 1e-5);
        say(t, &s, values_name(kind));
        run_all(t, a);
        run_all(t, b);
        for (size_t c = 0; c < s.c; c++) {
            check_near(t, "mean", c, b->out.mean[c], (double)a->out.mean[c], 2 * r.mean_bound[c]);
            check_near(t, "var", c, b->out.var[c], (double)a->out.var[c], 2 * r.var_bound[c]);
            check_near(t, "mean against the exact one", c, b->out.mean[c], r.mean[c],
                       r.mean_bound[c]);
            check_near(t, "var against the exact one", c, b->out.var[c], r.var[c], r.var_bound[c]);
        }
        test_release(t);
    }
}

/* The statistics of two batches, merged, are those of both together. An error e of the difference d
 * of the means changes d^2*w by at most (2|d|e + e^2)*w. */
static void concatenate(struct test *t) {
    for (int i = 0; i < repetitions(40); i++) {
        bnorm_shape s = random_shape(t);
        s.n += s.n < 2;
        bnorm_shape first = s, second = s;
        first.n = 1 + rng_below(&t->rng, s.n - 1);
        second.n = s.n - first.n;
        const enum values kind = random_values(t);
        const float *x = random_x(t, &s, kind), *dy = random_dy(t, &s);
        const size_t before = first.n * s.c * s.hw;
        const struct calls *whole = new_calls(t, &s, x, dy, 1e-5),
                           *a = new_calls(t, &first, x, dy, 1e-5),
                           *b = new_calls(t, &second, x + before, dy + before, 1e-5);
        const struct reference r = reference_of(t, &s, x, 1e-5),
                               ra = reference_of(t, &first, x, 1e-5),
                               rb = reference_of(t, &second, x + before, 1e-5);
        const double share = (double)first.n / (double)s.n;
        say(t, &s, values_name(kind));
        run_all(t, whole);
        run_all(t, a);
        run_all(t, b);
        for (size_t c = 0; c < s.c; c++) {
            const double mean_a = (double)a->out.mean[c], mean_b = (double)b->out.mean[c];
            const double d = mean_b - mean_a, w = share * (1 - share);
            const double mean = mean_a + d * (1 - share);
            const double var =
                (double)a->out.var[c] * share + (double)b->out.var[c] * (1 - share) + d * d * w;
            const double e = ra.mean_bound[c] + rb.mean_bound[c];
            check_near(t, "mean of both", c, whole->out.mean[c], mean, r.mean_bound[c] + e);
            check_near(t, "var of both", c, whole->out.var[c], var,
                       r.var_bound[c] + ra.var_bound[c] + rb.var_bound[c] +
                           (2 * fabs(d) * e + e * e) * w);
        }
        test_release(t);
    }
}

/* x*2^k gives mean*2^k, var*4^k, invstd/2^k and, with eps 0, the same y, all to the bit; dy*2^k
 * gives dx, dgamma and dbeta times 2^k. Without over- and underflow, that is. */
static void scale_by_power_of_two(struct test *t) {
    for (int i = 0; i < repetitions(60); i++) {
        const bnorm_shape s = random_shape(t);
        const enum values kind = random_values(t);
        const size_t count = shape_count(&s);
        const int k = (int)rng_below(&t->rng, 41) - 20, kg = (int)rng_below(&t->rng, 41) - 20;
        const float *x = random_x(t, &s, kind), *dy = random_dy(t, &s);
        float *scaled_x = test_floats(t, count), *scaled_dy = test_floats(t, count);
        for (size_t e = 0; e < count; e++) {
            scaled_x[e] = ldexpf(x[e], k);
            scaled_dy[e] = ldexpf(dy[e], kg);
        }
        const struct calls *a = new_calls(t, &s, x, dy, 0),
                           *b = new_calls(t, &s, scaled_x, scaled_dy, 0);
        char text[96];
        test_context(t, "%s, %s, x*2^%d, dy*2^%d", shape_text(&s, text), values_name(kind), k, kg);
        run_all(t, a);
        run_all(t, b);
        const struct results *o = &a->out;
        for (size_t c = 0; c < s.c; c++) {
            o->mean[c] = ldexpf(o->mean[c], k);
            o->var[c] = ldexpf(o->var[c], 2 * k);
            a->save_mean[c] = ldexpf(a->save_mean[c], k);
            o->lo[c] = ldexpf(o->lo[c], k);
            o->invstd[c] = ldexpf(o->invstd[c], -k);
            o->dgamma[c] = ldexpf(o->dgamma[c], kg);
            o->dbeta[c] = ldexpf(o->dbeta[c], kg);
            o->running_mean[c] = ldexpf(o->running_mean[c], k);
            o->running_var[c] = ldexpf(o->running_var[c], 2 * k);
            a->scale[c] = ldexpf(a->scale[c], -k);
        }
        for (size_t e = 0; e < count; e++)
            o->dx[e] = ldexpf(o->dx[e], kg - k);
        check_same(t, b, a);
        test_release(t);
    }
}

/* x + constant has the same variance and y, as far as the bounds go. The values have few bits, so
 * that adding the constant is exact. */
static void add_constant(struct test *t) {
    for (int i = 0; i < repetitions(40); i++) {
        const bnorm_shape s = random_shape(t);
        const size_t count = shape_count(&s);
        const double constant = (double)rng_below(&t->rng, 4096);
        float *x = test_floats(t, count), *moved = test_floats(t, count);
        const float *dy = random_dy(t, &s);
        for (size_t e = 0; e < count; e++) {
            x[e] = (float)((double)rng_below(&t->rng, 4096) * 0x1p-8 - 8);
            moved[e] = (float)((double)x[e] + constant);
        }
        const struct calls *a = new_calls(t, &s, x, dy, 1e-5),
                           *b = new_calls(t, &s, moved, dy, 1e-5);
        const struct reference ra = reference_of(t, &s, x, 1e-5),
                               rb = reference_of(t, &s, moved, 1e-5);
        char text[96];
        test_context(t, "%s, x + %g", shape_text(&s, text), constant);
        run_all(t, a);
        run_all(t, b);
        for (size_t c = 0; c < s.c; c++) {
            check_near(t, "mean", c, b->out.mean[c], (double)a->out.mean[c] + constant,
                       ra.mean_bound[c] + rb.mean_bound[c]);
            check_near(t, "var", c, b->out.var[c], (double)a->out.var[c],
                       ra.var_bound[c] + rb.var_bound[c]);
        }
        for (size_t e = 0; e < count; e++)
            check_near(t, "y", e, b->out.y[e], (double)a->out.y[e],
                       1.001 * (ra.y_bound[e] + rb.y_bound[e] + 0x1p-23 * fabs(ra.y[e])));
        test_release(t);
    }
}

/* The same bits as `want` or, in the channel of a NaN or an infinity, NaN; if an infinity in dy may
 * stay one, no finite number. */
static void check_channels(struct test *t, const char *what, const bnorm_shape *s, size_t bad,
                           int spoiled, int may_be_infinite, const float *got, const float *want,
                           size_t count) {
    for (size_t i = 0; i < count; i++) {
        const size_t c = count == s->c ? i : shape_channel(s, i);
        if (c != bad || !spoiled)
            check_bits(t, what, got + i, want + i, 1);
        else if (may_be_infinite ? isfinite(got[i]) : float_bits(got[i]) != NAN_BITS)
            test_fail(t, "%s[%zu] is %.9g (0x%08x), but its channel has %s", what, i,
                      (double)got[i], float_bits(got[i]),
                      may_be_infinite ? "an infinity" : "a NaN or an infinity");
    }
}

/* One NaN or infinity in x: its channel is NaN throughout, the others do not notice. */
static void nan_stays(struct test *t) {
    static const uint32_t specials[] = {0x7fc00000, 0xffc12345, 0x7f800001, 0x7f800000, 0xff800000};
    for (int i = 0; i < repetitions(60); i++) {
        const bnorm_shape s = random_shape(t);
        const size_t count = shape_count(&s), at = rng_below(&t->rng, count),
                     bad = shape_channel(&s, at);
        const float special = bits_float(specials[rng_below(&t->rng, COUNT_OF(specials))]);
        const int in_x = (int)rng_below(&t->rng, 3) > 0, may_be_infinite = !in_x && isinf(special);
        const float *x = random_x(t, &s, VALUES_NORMAL), *dy = random_dy(t, &s);
        float *bad_x = copy_floats(t, x, count), *bad_dy = copy_floats(t, dy, count);
        (in_x ? bad_x : bad_dy)[at] = special;
        const struct calls *a = new_calls(t, &s, x, dy, 1e-5),
                           *b = new_calls(t, &s, bad_x, bad_dy, 1e-5);
        const struct results *want = &a->out, *got = &b->out;
        char text[96];
        test_context(t, "%s, 0x%08x at %zu of %s", shape_text(&s, text), float_bits(special), at,
                     in_x ? "x" : "dy");
        run_all(t, a);
        run_all(t, b);
        const struct {
            const char *name;
            const float *got, *want;
            size_t count;
            int spoiled;
        } outputs[] = {
            {"mean", got->mean, want->mean, s.c, in_x},
            {"var", got->var, want->var, s.c, in_x},
            {"y", got->y, want->y, count, in_x},
            {"save_mean", b->save_mean, a->save_mean, s.c, in_x},
            {"save_mean_lo", got->lo, want->lo, s.c, in_x},
            {"save_invstd", got->invstd, want->invstd, s.c, in_x},
            {"running_mean", got->running_mean, want->running_mean, s.c, in_x},
            {"running_var", got->running_var, want->running_var, s.c, in_x},
            {"dx", got->dx, want->dx, count, 1},
            {"dgamma", got->dgamma, want->dgamma, s.c, 1},
            {"dbeta", got->dbeta, want->dbeta, s.c, !in_x},
            {"scale", b->scale, a->scale, s.c, in_x},
            {"shift", b->shift, a->shift, s.c, in_x},
            {"applied", b->applied, a->applied, count, in_x},
        };
        for (size_t k = 0; k < COUNT_OF(outputs); k++)
            check_channels(t, outputs[k].name, &s, bad, outputs[k].spoiled, may_be_infinite,
                           outputs[k].got, outputs[k].want, outputs[k].count);
        test_release(t);
    }
}

/* ---------------------------------------------------------------------------------------------- */
/* Floating-point mode                                                                            */

/* The control bits of the unit that SIMD code uses; 0 where flushing is not known. */
#if defined(__x86_64__) || defined(__i386__)
#define FLUSH_BITS 0x8040u /* FTZ, DAZ */
static unsigned mode(void) {
    return _mm_getcsr() & ~0x3fu; /* without the sticky flags */
}
static void set_mode(unsigned bits) {
    _mm_setcsr(bits);
}
#elif defined(__aarch64__)
#define FLUSH_BITS 0x1000000u /* FZ: inputs and outputs */
static unsigned mode(void) {
    uint64_t bits;
    __asm__ volatile("mrs %0, fpcr" : "=r"(bits));
    return (unsigned)bits;
}
static void set_mode(unsigned bits) {
    __asm__ volatile("msr fpcr, %0" : : "r"((uint64_t)bits));
}
#elif defined(__arm__)
#define FLUSH_BITS 0x1000000u /* FZ, of the VFP */
static unsigned mode(void) {
    unsigned bits;
    __asm__ volatile("vmrs %0, fpscr" : "=r"(bits));
    return bits & 0x7ffff00u; /* without the flags */
}
static void set_mode(unsigned bits) {
    __asm__ volatile("vmsr fpscr, %0" : : "r"(bits));
}
#else
#define FLUSH_BITS 0u
static unsigned mode(void) {
    return (unsigned)fegetround();
}
static void set_mode(unsigned bits) {
    fesetround((int)bits);
}
#endif

/* Runs all calls in the mode that `bits` stand for; fails if one of them changes it. */
static void run_all_in(struct test *t, const struct calls *k, unsigned bits) {
    const unsigned before = mode();
    bnorm_status status[STEPS];
    unsigned after[STEPS];
    set_mode(bits);
    const unsigned set = mode();
    for (size_t i = 0; i < STEPS; i++) {
        status[i] = run_step(k, i);
        after[i] = mode();
    }
    set_mode(before);
    for (size_t i = 0; i < STEPS; i++) {
        check_status(t, step_names[i], status[i], BNORM_OK);
        if (after[i] != set)
            test_fail(t, "%s changed the floating-point mode from 0x%x to 0x%x", step_names[i], set,
                      after[i]);
    }
}

static int is_denormal(float v) {
    return fpclassify(v) == FP_SUBNORMAL;
}

/* Data far from the denormals: the same bits. */
static void flush_to_zero(struct test *t) {
    for (int i = 0; i < repetitions(40); i++) {
        const bnorm_shape s = random_shape(t);
        const enum values kind = random_values(t);
        const float *x = random_x(t, &s, kind), *dy = random_dy(t, &s);
        const struct calls *a = new_calls(t, &s, x, dy, 1e-5), *b = new_calls(t, &s, x, dy, 1e-5);
        say(t, &s, values_name(kind));
        run_all_in(t, a, mode());
        run_all_in(t, b, mode() | FLUSH_BITS);
        check_same(t, b, a);
        test_release(t);
    }
}

/* Some elements are denormal: flushed, they become zeros; all others keep their bits. */
static void flush_denormals_only(struct test *t) {
    for (int i = 0; i < repetitions(40); i++) {
        const bnorm_shape s = random_shape(t);
        const size_t count = shape_count(&s);
        float *x = random_x(t, &s, VALUES_NORMAL);
        float *want = test_floats(t, count), *got = test_floats(t, count),
              *flushed = test_floats(t, count);
        float *scale = test_floats(t, s.c);
        for (size_t c = 0; c < s.c; c++)
            scale[c] = rng_below(&t->rng, 2) ? 0.5f : 2;
        for (size_t e = 0; e < count; e++)
            if (rng_below(&t->rng, 2))
                x[e] = bits_float((uint32_t)rng_below(&t->rng, 0x1800000) |
                                  (uint32_t)rng_below(&t->rng, 2) << 31);
        for (size_t e = 0; e < count; e++)
            flushed[e] = FLUSH_BITS && is_denormal(x[e]) ? 0 : x[e];
        const bnorm_affine affine = {.scale = scale};
        const bnorm_exec exec = {.isa = t->isa};
        say(t, &s, "denormals among normal values");
        const unsigned before = mode();
        set_mode(before | FLUSH_BITS);
        const bnorm_status status =
            bnorm_apply(&s, (bnorm_in){.data = x}, (bnorm_out){.data = got}, &affine, &exec);
        set_mode(before);
        check_status(t, "bnorm_apply", status, BNORM_OK);
        check_status(
            t, "bnorm_apply",
            bnorm_apply(&s, (bnorm_in){.data = flushed}, (bnorm_out){.data = want}, &affine, &exec),
            BNORM_OK);
        for (size_t e = 0; e < count; e++) {
            /* fma's zero result has the sign of the sum -0 + 0: positive. */
            if (FLUSH_BITS && is_denormal(want[e]))
                want[e] = copysignf(0, want[e]);
            /* Flushed results may keep the sign or not. */
            if (want[e] == 0 && got[e] == 0)
                continue;
            check_bits(t, "y", got + e, want + e, 1);
        }
        test_release(t);
    }
}

/* exec->denormals: as if every thread had been in that mode, which is theirs again afterwards. */
static void flush_by_exec(struct test *t) {
    for (int i = 0; i < repetitions(40); i++) {
        const bnorm_shape s = random_shape(t);
        const size_t count = shape_count(&s);
        float *x = random_x(t, &s, VALUES_NORMAL), *y[2];
        for (size_t e = 0; e < count; e += 3)
            x[e] = bits_float((uint32_t)rng_below(&t->rng, 0x1000000));
        /* Denormal operands with normal results, and the other way round: the mode's two halves. */
        float *const scale = test_floats(t, s.c);
        for (size_t c = 0; c < s.c; c++)
            scale[c] = (c + (size_t)i) % 2 ? 0x1p20f : 0x1p-126f;
        const bnorm_affine affine = {.scale = scale};
        say(t, &s, "denormals among normal values, bnorm_exec.denormals");
        for (int by_exec = 0; by_exec < 2; by_exec++) {
            const bnorm_exec exec = {.isa = t->isa,
                                     .denormals =
                                         by_exec ? BNORM_DENORMALS_FLUSH : BNORM_DENORMALS_CALLER};
            y[by_exec] = test_floats(t, count);
            const unsigned before = mode();
            if (!by_exec)
                set_mode(before | FLUSH_BITS);
            const unsigned set = mode();
            const bnorm_status status = bnorm_apply(
                &s, (bnorm_in){.data = x}, (bnorm_out){.data = y[by_exec]}, &affine, &exec);
            const unsigned after = mode();
            set_mode(before);
            check_status(t, "bnorm_apply", status, BNORM_OK);
            if (after != set)
                test_fail(t, "bnorm_apply left mode 0x%x, not 0x%x", after, set);
        }
        check_bits(t, "y", y[1], y[0], count);
        test_release(t);
    }
}

static const struct {
    const char *name;
    int direction;
} directions[] = {
#ifdef FE_UPWARD
    {"upward", FE_UPWARD},
#endif
#ifdef FE_DOWNWARD
    {"downward", FE_DOWNWARD},
#endif
#ifdef FE_TOWARDZERO
    {"toward zero", FE_TOWARDZERO},
#endif
    {"to nearest", FE_TONEAREST},
};

/* Directed rounding errs up to twice as much per operation, four times in squares of errors. A
 * constant channel stays exact. */
static void rounding_direction(struct test *t) {
    for (int i = 0; i < repetitions(40); i++) {
        const bnorm_shape s = random_shape(t);
        const enum values kind = random_values(t);
        const float *x = random_x(t, &s, kind), *dy = random_dy(t, &s);
        const struct reference r = reference_of(t, &s, x, 1e-5);
        const size_t d = rng_below(&t->rng, COUNT_OF(directions));
        const struct calls *k = new_calls(t, &s, x, dy, 1e-5);
        char text[96];
        test_context(t, "%s, %s, rounding %s", shape_text(&s, text), values_name(kind),
                     directions[d].name);
        fesetround(directions[d].direction);
        const unsigned rounding = mode();
        fesetround(FE_TONEAREST);
        run_all_in(t, k, rounding);
        for (size_t c = 0; c < s.c; c++) {
            check_near(t, "mean", c, k->out.mean[c], r.mean[c], 4 * r.mean_bound[c]);
            check_near(t, "var", c, k->out.var[c], r.var[c], 4 * r.var_bound[c]);
        }
        for (size_t e = 0; e < shape_count(&s); e++)
            check_near(t, "y", e, k->out.y[e], r.y[e], 4 * (r.y_bound[e] + 0x1p-24 * fabs(r.y[e])));
        test_release(t);
    }
}

/* Halves are stored rounded to nearest in every mode. Arm's instruction for F16 goes by the mode. */
static void halves_in_directions(struct test *t) {
    const int is_arm = strcmp(bnorm_isa_name(t->isa), "neon") == 0;
    for (size_t i = 0; i < (size_t)repetitions(64); i++) {
        const bnorm_shape s = random_shape(t);
        const size_t count = shape_count(&s), d = i % COUNT_OF(directions);
        const bnorm_dtype type = i / COUNT_OF(directions) % 2 && !is_arm ? BNORM_F16 : BNORM_BF16;
        const float *const x = random_x(t, &s, VALUES_NORMAL);
        uint16_t *const got = test_alloc(t, count * sizeof *got);
        uint16_t *const want = test_alloc(t, count * sizeof *want);
        for (size_t e = 0; e < count; e++)
            element_set(type, want, e, x[e]);
        const bnorm_affine affine = {.y_dtype = (bnorm_y_dtype)(BNORM_Y_F32 + type)};
        const bnorm_exec exec = {.isa = t->isa, .memory = (bnorm_memory)rng_below(&t->rng, 4)};
        char text[96];
        test_context(t, "%s to %s, rounding %s", shape_text(&s, text), dtype_name(type),
                     directions[d].name);
        fesetround(directions[d].direction);
        const bnorm_status status = bnorm_apply(&s, BNORM_IN(x), BNORM_OUT(got), &affine, &exec);
        fesetround(FE_TONEAREST);
        check_status(t, "bnorm_apply", status, BNORM_OK);
        for (size_t e = 0; e < count; e++)
            if (got[e] != want[e])
                test_fail(t, "element %zu, %a, is 0x%04x, not 0x%04x", e, (double)x[e], got[e],
                          want[e]);
        test_release(t);
    }
}

void add_properties(struct suite *s) {
    static const struct layout_case cases[] = {
        {"properties", "exact-data", exact_data},
        {"properties", "grid", grid_data},
        {"properties", "goals", goals},
        {"properties", "permute", permute},
        {"properties", "concatenate", concatenate},
        {"properties", "power-of-two", scale_by_power_of_two},
        {"properties", "add-constant", add_constant},
        {"properties", "nan", nan_stays},
        {"fp-mode", "flush-to-zero", flush_to_zero},
        {"fp-mode", "flush-denormals-only", flush_denormals_only},
        {"fp-mode", "flush-by-exec", flush_by_exec},
        {"fp-mode", "rounding", rounding_direction},
        {"fp-mode", "halves", halves_in_directions},
    };
    add_layout_cases(s, cases, COUNT_OF(cases));
}
