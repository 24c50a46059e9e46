/* SPDX-License-Identifier: MIT
 *
 * How far the activations from BNORM_ACT_SIGMOID on, and their derivatives, are from exact results.
 *
 * Values come from bnorm_apply, derivatives from bnorm_backward with frozen statistics and dy = 1;
 * exact results from libm in long double (on x86 64 bits of precision, 40 more than a float has).
 * Every step-th float of all there are is tried, and 16 times as many from 2^-6 to 128, where the
 * functions bend. All kernel sets give the same bits, so that one is enough. */
#include <float.h>
#include <math.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include "bnorm.h"

typedef long double exact_function(long double v);

/* ---------------------------------------------------------------------------------------------- */
/* Exact results: nothing cancels or overflows. */

static long double sigmoid(long double v) {
    const long double e = expl(-fabsl(v));
    return (v > 0 ? 1 : e) / (1 + e);
}

static long double sigmoid_slope(long double v) {
    return sigmoid(v) * sigmoid(-v);
}

static long double silu(long double v) {
    return v * sigmoid(v);
}

static long double silu_slope(long double v) {
    return sigmoid(v) * (1 + v * sigmoid(-v));
}

static long double tanh_slope(long double v) {
    return 4 * sigmoid_slope(2 * v);
}

static long double normal(long double v) {
    return erfcl(-v * 0.707106781186547524400844362104849039L) / 2;
}

static long double gelu(long double v) {
    return v * normal(v);
}

static long double gelu_slope(long double v) {
    return normal(v) + v * expl(-v * v / 2) * 0.398942280401432677939946059934381868L;
}

static long double elu(long double v) {
    return v > 0 ? v : expm1l(v);
}

static long double elu_slope(long double v) {
    return v > 0 ? 1 : expl(v);
}

static long double softplus(long double v) {
    return (v > 0 ? v : 0) + log1pl(expl(-fabsl(v)));
}

static long double mish(long double v) {
    return v * tanhl(softplus(v));
}

static long double mish_slope(long double v) {
    const long double s = softplus(v);
    return tanhl(s) + v * tanh_slope(s) * sigmoid(v);
}

/* What bnorm promises: values in ulp, derivatives in 2^-24. */
static const struct activation {
    const char *name;
    bnorm_act act;
    exact_function *value, *slope;
    double value_bound, slope_bound;
} activations[] = {
    {"SIGMOID", {BNORM_ACT_SIGMOID, 0, 0}, sigmoid, sigmoid_slope, 4, 4},
    {"SILU", {BNORM_ACT_SILU, 0, 0}, silu, silu_slope, 4, 4},
    {"TANH", {BNORM_ACT_TANH, 0, 0}, tanhl, tanh_slope, 4, 4},
    {"GELU", {BNORM_ACT_GELU, 0, 0}, gelu, gelu_slope, 4, 4},
    {"ELU", {BNORM_ACT_ELU, 1, 0}, elu, elu_slope, 4, 4},
    {"SOFTPLUS", {BNORM_ACT_SOFTPLUS, 0, 0}, softplus, sigmoid, 4, 4},
    {"MISH", {BNORM_ACT_MISH, 0, 0}, mish, mish_slope, 4, 5},
};
enum { ACTIVATIONS = sizeof activations / sizeof activations[0] };

/* ---------------------------------------------------------------------------------------------- */
/* What bnorm computes */

enum { CHUNK = 1 << 14 };
static float v[CHUNK], ones[CHUNK], values[CHUNK], slopes[CHUNK];

static void check(const char *function, bnorm_status status) {
    if (status == BNORM_OK)
        return;
    fprintf(stderr, "activations: %s: %s\n", function, bnorm_strerror(status));
    if (status == BNORM_UNSUPPORTED)
        fprintf(stderr, "Build bnorm with SLEEF (make SLEEF=1), and run it on a CPU with FMA.\n");
    exit(2);
}

/* values and slopes of v. */
static void compute(const bnorm_act *act) {
    static void *ws;
    static size_t ws_size;
    const float zero = 0, one = 1;
    const bnorm_shape shape = {.layout = BNORM_NCHW, .n = 1, .c = 1, .hw = CHUNK};
    const bnorm_affine affine = {.act = *act};
    const bnorm_grad grad = {.save_mean = &zero, .save_invstd = &one, .frozen = 1, .act = *act};
    if (!ws) {
        ws_size = bnorm_workspace(BNORM_OP_BACKWARD, &shape);
        ws = malloc(ws_size);
        if (!ws) {
            perror("activations");
            exit(2);
        }
        for (size_t i = 0; i < CHUNK; i++)
            ones[i] = 1;
    }
    const bnorm_in x = {.data = v}, dy = {.data = ones};
    const bnorm_out y = {.data = values}, dx = {.data = slopes};
    check("bnorm_apply", bnorm_apply(&shape, x, y, &affine, NULL));
    check("bnorm_backward", bnorm_backward(&shape, x, dy, dx, &grad, ws, ws_size, NULL));
}

/* ---------------------------------------------------------------------------------------------- */
/* Errors */

struct errors {
    double worst, sum;
    float at;
    size_t count;
};

static void add_error(struct errors *e, float at, double error) {
    /* Also where the error is NaN. */
    if (!(error <= e->worst)) {
        e->worst = error == error ? error : HUGE_VAL;
        e->at = at;
    }
    e->sum += error;
    e->count++;
}

/* The distance of floats at the exact result. Left of -10, where results are products with an exp
 * or erfc that may be denormal and so has few bits, no less than at 2^-120. */
static double ulp(float at, long double exact) {
    int exponent = 0;
    frexpl(exact, &exponent);
    const int smallest = at < -10 ? -120 - 23 : FLT_MIN_EXP - FLT_MANT_DIG;
    return ldexp(1, exponent - FLT_MANT_DIG > smallest && exact != 0 ? exponent - FLT_MANT_DIG
                                                                     : smallest);
}

static void add_values(const struct activation *a, struct errors *value, struct errors *slope) {
    compute(&a->act);
    for (size_t i = 0; i < CHUNK; i++) {
        const long double exact = a->value(v[i]), exact_slope = a->slope(v[i]);
        add_error(value, v[i], (double)fabsl(values[i] - exact) / ulp(v[i], exact));
        add_error(slope, v[i], (double)fabsl(slopes[i] - exact_slope) * 0x1p24);
    }
}

static float float_of(uint32_t bits) {
    float f;
    memcpy(&f, &bits, sizeof f);
    return f;
}

/* Every step-th float from low to high, and of their negatives. */
static void sweep(const struct activation *a, float low, float high, uint32_t step,
                  struct errors *value, struct errors *slope) {
    uint32_t first, last;
    memcpy(&first, &low, sizeof first);
    memcpy(&last, &high, sizeof last);
    for (uint32_t bits = first; bits < last;) {
        for (size_t i = 0; i < CHUNK; i += 2) {
            v[i] = float_of(bits);
            v[i + 1] = -v[i];
            bits = last - bits > step ? bits + step : last;
        }
        add_values(a, value, slope);
    }
}

/* NaN stays NaN; the infinities give the limits, which FLT_MAX gives as well: finite ones, or v. */
static int special_values_are_right(const struct activation *a) {
    static const float inputs[] = {NAN, INFINITY, -INFINITY};
    int right = 1;
    for (size_t i = 0; i < CHUNK; i++)
        v[i] = inputs[i % 3];
    compute(&a->act);
    for (size_t i = 0; i < CHUNK; i++) {
        const float finite = copysignf(FLT_MAX, v[i]);
        const float limit = (float)a->value(finite), slope = (float)a->slope(finite);
        if (v[i] != v[i] ? values[i] == values[i] || slopes[i] == slopes[i]
                         : values[i] != (fabsf(limit) > 1 ? v[i] : limit) || slopes[i] != slope)
            right = 0;
    }
    return right;
}

/* ---------------------------------------------------------------------------------------------- */
/* Tables */

struct row {
    struct errors value, slope;
};

static const char *const headings[] = {
    "activation", "worst, ulp", "at v", "mean, ulp", "derivative: worst, 2^-24", "at v"};

static void print_text(const struct row *rows) {
    printf("%-10s  %10s  %15s  %9s  %25s  %15s\n", headings[0], headings[1], headings[2],
           headings[3], headings[4], headings[5]);
    for (size_t i = 0; i < ACTIVATIONS; i++) {
        const struct errors *y = &rows[i].value, *d = &rows[i].slope;
        printf("%-10s  %10.2f  %15.8g  %9.3f  %25.2f  %15.8g\n", activations[i].name, y->worst,
               (double)y->at, y->sum / (double)y->count, d->worst, (double)d->at);
    }
}

static int write_markdown(const char *path, const struct row *rows) {
    FILE *file = fopen(path, "w");
    if (!file)
        return 0;
    fprintf(file, "| %s | %s | %s | %s | %s | %s |\n|---|--:|--:|--:|--:|--:|\n", headings[0],
            headings[1], headings[2], headings[3], headings[4], headings[5]);
    for (size_t i = 0; i < ACTIVATIONS; i++) {
        const struct errors *y = &rows[i].value, *d = &rows[i].slope;
        fprintf(file, "| %s | %.2f | %.4g | %.3f | %.2f | %.4g |\n", activations[i].name, y->worst,
                (double)y->at, y->sum / (double)y->count, d->worst, (double)d->at);
    }
    return fclose(file) == 0;
}

static int above_bound(const char *name, const char *what, double worst, double bound) {
    if (worst <= bound)
        return 0;
    fprintf(stderr, "activations: %s: the %s is off by %g, more than %g\n", name, what, worst,
            bound);
    return 1;
}

static int usage(void) {
    fprintf(stderr, "usage: activations [--step N] [--markdown FILE]\n"
                    "  --step N         try every N-th float (default 1021; fewer take longer)\n"
                    "  --markdown FILE  write the table there, too\n");
    return 2;
}

int main(int argc, char **argv) {
    unsigned long step = 1021;
    const char *markdown = NULL;
    for (int i = 1; i < argc; i++) {
        if (i + 1 < argc && !strcmp(argv[i], "--step"))
            step = strtoul(argv[++i], NULL, 10);
        else if (i + 1 < argc && !strcmp(argv[i], "--markdown"))
            markdown = argv[++i];
        else
            return usage();
    }
    if (step < 1 || step > 1u << 24)
        return usage();

    struct row rows[ACTIVATIONS] = {0};
    int failures = 0;
    for (size_t i = 0; i < ACTIVATIONS; i++) {
        const struct activation *a = &activations[i];
        struct errors *value = &rows[i].value, *slope = &rows[i].slope;
        fprintf(stderr, "%s ...\n", a->name);
        sweep(a, 0, FLT_MAX, (uint32_t)step, value, slope);
        sweep(a, 0x1p-6f, 128, (uint32_t)(step < 16 ? 1 : step / 16), value, slope);
        failures += above_bound(a->name, "value", value->worst, a->value_bound);
        failures += above_bound(a->name, "derivative", slope->worst, a->slope_bound);
        if (!special_values_are_right(a)) {
            fprintf(stderr, "activations: %s: wrong at an infinity or a NaN\n", a->name);
            failures++;
        }
    }
    print_text(rows);
    if (markdown && !write_markdown(markdown, rows)) {
        perror(markdown);
        return 2;
    }
    return failures > 0;
}
