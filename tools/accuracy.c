/* SPDX-License-Identifier: MIT
 *
 * Accuracy of training forward and backward against exact results: bnorm and, where installed,
 * oneDNN and PyTorch on the same data.
 *
 *   accuracy [--quick] [--strict] [--markdown FILE] [--tsv FILE]
 *
 *   --quick          no more than 1e6 elements per channel
 *   --strict         exits with 1 if bnorm misses a goal
 *   --markdown FILE  also writes the table of docs/numerics.md: mean, variance and y, the worst of
 *                    both layouts
 *   --tsv FILE       also writes every figure, one a line, for accuracy.plot
 *
 * docs/numerics.md says what the figures mean. */
#include <float.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include "accuracy.h"

/* ---------------------------------------------------------------------------------------------- */
/* Cases                                                                                          */

#define EPS 0x1p-17

struct shape {
    size_t n, hw, c;
};

/* Every distribution runs at this shape. */
static const struct shape common = {32, 56 * 56, 16};

/* Further ones. */
static const struct special {
    const char *distribution;
    struct shape shape;
    double eps;
} specials[] = {
    {"tiny, 1e-30", {32, 56 * 56, 16}, 0},
    {"denormal, 1e-40", {32, 56 * 56, 16}, 0},
    {"constant 0.1", {32, 56 * 56, 16}, 0},
    {"mean 1e3", {1, 1, 16}, EPS},
    {"mean 1e3", {2, 1, 16}, EPS},
    {"mean 1e3", {3, 1, 16}, EPS},
    {"mean 1e3", {1, 5, 16}, EPS},
    {"mean 1e3", {2, 4, 16}, EPS},
    {"mean 1e3", {33, 1, 16}, EPS},
    {"mean 1e3", {5, 49, 16}, EPS},
    {"mean 1e3", {1, 1000, 16}, EPS},
    {"mean 1e3", {1, 4097, 3}, EPS},
    {"mean 1e3", {16384, 1, 16}, EPS},
    {"mean 1e3", {16, 65536, 16}, EPS},
    {"mean 1e6", {2, 4, 16}, EPS},
    {"mean 1e6", {5, 49, 16}, EPS},
    {"mean 1e6", {16384, 1, 16}, EPS},
    {"mean 1e6", {16, 65536, 16}, EPS},
    {"log-normal, sigma 3", {16, 65536, 16}, EPS},
    {"Cauchy", {16, 65536, 16}, EPS},
    {"mean 1e3", {1, 10000000, 1}, EPS},
    {"mean 1e6", {1, 100000000, 1}, EPS},
};
#define SPECIALS    (sizeof specials / sizeof specials[0])
#define QUICK_LIMIT 1100000 /* elements per channel */

struct study_case {
    const distribution *distribution;
    struct shape shape;
    double eps;
};

static size_t case_count(void) {
    return distribution_count + SPECIALS;
}

static struct study_case case_at(size_t i) {
    if (i < distribution_count)
        return (struct study_case){&distributions[i], common, EPS};
    const struct special *s = &specials[i - distribution_count];
    return (struct study_case){find_distribution(s->distribution), s->shape, s->eps};
}

static const char *case_name(const struct study_case *c) {
    static char name[96];
    snprintf(name, sizeof name, "%s, n %zu%s", c->distribution->name, c->shape.n * c->shape.hw,
             c->eps == 0 ? ", eps 0" : "");
    return name;
}

/* ---------------------------------------------------------------------------------------------- */
/* Libraries                                                                                      */

static int always(void) {
    return 1;
}

static void nothing(void) {}

static int run_bnorm(const struct problem *p, struct answer *a) {
    const bnorm_shape shape = {.layout = p->layout, .n = p->n, .c = p->c, .hw = p->hw};
    const bnorm_in x = {.data = p->x}, dy = {.data = p->dy};
    const bnorm_out y = {.data = a->y}, dx = {.data = a->dx};
    const size_t ws_size = bnorm_workspace(BNORM_OP_FORWARD_TRAIN, &shape);
    void *const ws = malloc(ws_size);
    float *const low = malloc(p->c * sizeof *low);
    const bnorm_train train = {
        .eps = p->eps, .save_mean = a->mean, .save_mean_lo = low, .save_invstd = a->invstd};
    const bnorm_grad grad = {.save_mean = a->mean,
                             .save_mean_lo = low,
                             .save_invstd = a->invstd,
                             .dgamma = a->dgamma,
                             .dbeta = a->dbeta};
    const int ok = ws && low &&
                   bnorm_moments(&shape, x, NULL, a->var, ws, ws_size, NULL) == BNORM_OK &&
                   bnorm_forward_train(&shape, x, y, &train, ws, ws_size, NULL) == BNORM_OK &&
                   bnorm_backward(&shape, x, dy, dx, &grad, ws, ws_size, NULL) == BNORM_OK;
    free(low);
    free(ws);
    return ok;
}

static const struct library library_bnorm = {"bnorm", "", always, run_bnorm, nothing};

enum { BNORM, LIBRARIES = 3 };
static const struct library *const libraries[LIBRARIES] = {&library_bnorm, &library_dnnl,
                                                           &library_torch};

/* ---------------------------------------------------------------------------------------------- */
/* Errors                                                                                         */

enum quantity { MEAN, VARIANCE, INVSTD, Y, DX, DGAMMA, DBETA, QUANTITIES };
static const char *const quantity_names[QUANTITIES] = {"mean", "variance", "invstd", "y",
                                                       "dx",   "dgamma",   "dbeta"};

/* The goals; those of y and dgamma for a mean of up to 1e6 deviations. */
static const double goals[QUANTITIES] = {
    [MEAN] = 1, [VARIANCE] = 4, [Y] = 1, [DGAMMA] = 1, [DBETA] = 1};

/* Largest error over channels and elements; NAN = not computed by this library, INFINITY = not a
 * number, or over- or underflow where the exact result is a normal float. */
struct errors {
    double of[QUANTITIES];
};

static double ulp(double v) {
    int exponent;
    if (v < (double)FLT_MIN)
        return 0x1p-149;
    frexp(v, &exponent);
    return ldexp(1, exponent - 24);
}

/* In units in the last place of the exact result rounded to float, or of `least` if that is more.
 */
static double error_in_ulps(float got, double exact, double least) {
    const float rounded = (float)exact;
    if (isinf(rounded))
        return got == rounded ? 0 : INFINITY;
    if (!isfinite(got))
        return INFINITY;
    return fabs((double)got - exact) / fmax(ulp(fabs((double)rounded)), least);
}

/* In units of 2^-22*scale, for results that a cancellation may leave small. */
static double error_relative_to(float got, double exact, double scale) {
    return isfinite(got) ? fabs((double)got - exact) / fmax(0x1p-22 * scale, 0x1p-149) : INFINITY;
}

static void keep_worst(double *worst, double error) {
    if (!(error <= *worst))
        *worst = error;
}

static struct channel channel_of(const struct problem *p, size_t c) {
    const int nhwc = p->layout == BNORM_NHWC;
    const size_t at = nhwc ? c : c * p->hw;
    return (struct channel){p->x + at, p->dy + at, p->n, p->hw, p->c * p->hw, nhwc ? p->c : 1};
}

static void compare_channel(const struct problem *p, const struct answer *a, size_t c,
                            const struct exact *e, struct errors *errors) {
    const struct channel ch = channel_of(p, c);
    double *const of = errors->of;
    keep_worst(&of[MEAN], error_in_ulps(a->mean[c], e->mean, e->deviation * 0x1p-23));
    if (a->var)
        keep_worst(&of[VARIANCE],
                   error_in_ulps(a->var[c], a->sample_variance ? e->sample_var : e->var, 0));
    if (a->invstd)
        keep_worst(&of[INVSTD], error_in_ulps(a->invstd[c], e->invstd, 0));
    keep_worst(&of[DGAMMA], error_in_ulps(a->dgamma[c], e->dgamma, e->dgamma_terms * 0x1p-22));
    keep_worst(&of[DBETA], error_in_ulps(a->dbeta[c], e->dbeta, e->dbeta_terms * 0x1p-22));
    for (size_t image = 0; image < ch.images; image++)
        for (size_t q = 0; q < ch.positions; q++) {
            const size_t at = image * ch.image_stride + q * ch.position_step,
                         base = (size_t)(ch.x - p->x);
            const double y = exact_y(e, ch.x[at]);
            double magnitude;
            const double dx = exact_dx(e, ch.x[at], ch.dy[at], &magnitude);
            keep_worst(&of[Y], error_relative_to(a->y[base + at], y, fmax(1, fabs(y))));
            keep_worst(&of[DX], error_relative_to(a->dx[base + at], dx, magnitude));
        }
}

/* ---------------------------------------------------------------------------------------------- */
/* Running a case                                                                                 */

static void *allocate(size_t bytes) {
    void *memory = malloc(bytes);
    if (!memory) {
        fprintf(stderr, "accuracy: %zu bytes of memory cannot be had; try --quick\n", bytes);
        exit(2);
    }
    return memory;
}

static float *floats(size_t count) {
    return allocate(count * sizeof(float));
}

/* Puts a channel's values where the layout wants them, images one after the other. */
static void scatter(const struct channel *ch, const float *values, float *tensor) {
    for (size_t image = 0; image < ch->images; image++)
        for (size_t p = 0; p < ch->positions; p++)
            tensor[image * ch->image_stride + p * ch->position_step] =
                values[image * ch->positions + p];
}

struct outcome {
    struct errors errors[LIBRARIES];
    int within_1e6; /* all channels have |mean| <= 1e6 deviations */
};

static struct outcome run_case(const struct study_case *sc, bnorm_layout layout,
                               const int *present) {
    const struct shape *s = &sc->shape;
    const size_t count = s->n * s->hw * s->c, n = s->n * s->hw;
    float *const x = floats(count), *const dy = floats(count), *const y = floats(count),
                 *const dx = floats(count), *const rows = floats(5 * s->c),
                 *const values = floats(n);
    struct exact *const exact = allocate(s->c * sizeof *exact);
    const struct problem p = {layout, s->n, s->c, s->hw, sc->eps, x, dy};
    struct outcome o = {.within_1e6 = 1};

    for (size_t c = 0; c < s->c; c++) {
        const struct channel ch = channel_of(&p, c);
        sc->distribution->fill(values, n, sc->distribution->parameter, c);
        scatter(&ch, values, x + (ch.x - x));
        fill_gradient(values, n, c);
        scatter(&ch, values, dy + (ch.dy - dy));
        exact[c] = exact_channel(&ch, sc->eps);
        o.within_1e6 &= fabs(exact[c].mean) <= 1.01e6 * exact[c].deviation;
    }
    for (int i = 0; i < LIBRARIES; i++) {
        struct errors *const e = &o.errors[i];
        struct answer a = {
            .mean = rows,
            .var = rows + s->c,
            .invstd = rows + 2 * s->c,
            .y = y,
            .dx = dx,
            .dgamma = rows + 3 * s->c,
            .dbeta = rows + 4 * s->c,
        };
        const int ok = present[i] && libraries[i]->run(&p, &a);
        if (present[i] && !ok)
            fprintf(stderr, "accuracy: %s fails at: %s\n", libraries[i]->name, case_name(sc));
        for (int q = 0; q < QUANTITIES; q++)
            e->of[q] = ok ? 0 : (double)NAN;
        if (!a.var)
            e->of[VARIANCE] = (double)NAN;
        if (!a.invstd)
            e->of[INVSTD] = (double)NAN;
        for (size_t c = 0; ok && c < s->c; c++)
            compare_channel(&p, &a, c, &exact[c], e);
    }
    free(exact);
    free(values);
    free(rows);
    free(dx);
    free(dy);
    free(y);
    free(x);
    return o;
}

/* ---------------------------------------------------------------------------------------------- */
/* Output                                                                                         */

static const char *number(double v) {
    static char text[4][16];
    static int turn;
    char *const t = text[turn = (turn + 1) % 4];
    const char *const format = isnan(v)    ? "-"
                               : isinf(v)  ? "wrong"
                               : v < 99.95 ? "%.2f"
                               : v < 99999 ? "%.0f"
                                           : "%.0e";
    snprintf(t, sizeof text[0], format, v);
    return t;
}

static const bnorm_layout layouts[] = {BNORM_NHWC, BNORM_NCHW};
static const char *const layout_names[] = {"NHWC", "NCHW"};
enum { LAYOUTS = 2 };

static void print_head(void) {
    printf("%-38s %-6s %-8s", "case", "layout", "library");
    for (int q = 0; q < QUANTITIES; q++)
        printf("%9s", quantity_names[q]);
    printf("\n");
}

static void print_case(const struct study_case *sc, const struct outcome *outcomes,
                       const int *present) {
    for (int layout = 0; layout < LAYOUTS; layout++)
        for (int i = 0; i < LIBRARIES; i++) {
            if (!present[i])
                continue;
            printf("%-38s %-6s %-8s", layout + i ? "" : case_name(sc),
                   i ? "" : layout_names[layout], libraries[i]->name);
            for (int q = 0; q < QUANTITIES; q++)
                printf("%9s", number(outcomes[layout].errors[i].of[q]));
            printf("\n");
        }
    fflush(stdout);
}

static const enum quantity markdown_columns[] = {MEAN, VARIANCE, Y};
enum { MARKDOWN_COLUMNS = 3 };

static void print_markdown_head(FILE *out) {
    fprintf(out, "| case |");
    for (int k = 0; k < MARKDOWN_COLUMNS; k++)
        for (int i = 0; i < LIBRARIES; i++)
            fprintf(out, " %s%s%s |", i ? "" : quantity_names[markdown_columns[k]], i ? "" : ": ",
                    libraries[i]->name);
    fprintf(out, "\n|---|");
    for (int k = 0; k < MARKDOWN_COLUMNS * LIBRARIES; k++)
        fprintf(out, "--:|");
    fprintf(out, "\n");
}

static void print_markdown_case(FILE *out, const struct study_case *sc,
                                const struct outcome *outcomes) {
    fprintf(out, "| %s |", case_name(sc));
    for (int k = 0; k < MARKDOWN_COLUMNS; k++)
        for (int i = 0; i < LIBRARIES; i++) {
            double worst = outcomes[0].errors[i].of[markdown_columns[k]];
            keep_worst(&worst, outcomes[1].errors[i].of[markdown_columns[k]]);
            fprintf(out, " %s |", number(worst));
        }
    fprintf(out, "\n");
}

static void print_tsv_case(FILE *tsv, const struct study_case *sc, const struct outcome *outcomes) {
    for (int layout = 0; layout < LAYOUTS; layout++)
        for (int i = 0; i < LIBRARIES; i++)
            for (int q = 0; q < QUANTITIES; q++)
                fprintf(tsv, "%s\t%.9g\t%zu\t%s\t%s\t%s\t%.6g\n", sc->distribution->name,
                        sc->distribution->parameter, sc->shape.n * sc->shape.hw,
                        layout_names[layout], libraries[i]->name, quantity_names[q],
                        outcomes[layout].errors[i].of[q]);
}

/* ---------------------------------------------------------------------------------------------- */
/* Verdict                                                                                        */

struct verdict {
    double worst[QUANTITIES];
    char worst_case[QUANTITIES][112];
    int goals_missed, worse, far_worse;
};

/* What the rounding of an exact result may cost: with no more than that, nothing is closer. */
static const double rounding[QUANTITIES] = {0.5, 0.5, 0.5, 0.25, 0.25, 0.5, 0.5};

/* Errors are compared to six digits: the exact results are good for ten. A result without two right
 * digits (2^-22 is the unit, or half of it) is closer than no other. */
static int closer(enum quantity q, double other, double own) {
    return other < 0x1p16 && own > rounding[q] && own > other * 1.000001;
}

static void judge(struct verdict *v, const struct study_case *sc, const struct outcome *o,
                  const char *layout, FILE *remarks) {
    const double *const own = o->errors[BNORM].of;
    for (int q = 0; q < QUANTITIES; q++) {
        if (own[q] > v->worst[q]) {
            v->worst[q] = own[q];
            snprintf(v->worst_case[q], sizeof v->worst_case[q], "%s, %s", case_name(sc), layout);
        }
        if (goals[q] > 0 && own[q] > goals[q] && ((q != Y && q != DGAMMA) || o->within_1e6)) {
            v->goals_missed++;
            fprintf(remarks, "goal missed: %s, %s: %s %s, goal %s\n", case_name(sc), layout,
                    quantity_names[q], number(own[q]), number(goals[q]));
        }
        for (int i = 1; i < LIBRARIES; i++)
            if (closer((enum quantity)q, o->errors[i].of[q], own[q])) {
                v->worse++;
                v->far_worse += own[q] > o->errors[i].of[q] + 0.5;
                fprintf(remarks, "%s is closer: %s, %s: %s %.4g, bnorm %.4g\n", libraries[i]->name,
                        case_name(sc), layout, quantity_names[q], o->errors[i].of[q], own[q]);
            }
    }
}

static void print_remarks(FILE *remarks) {
    char line[256];
    rewind(remarks);
    while (fgets(line, sizeof line, remarks))
        printf("%s", line);
}

static FILE *open_output(const char *name) {
    FILE *const file = fopen(name, "w");
    if (!file) {
        perror(name);
        exit(2);
    }
    return file;
}

int main(int argc, char **argv) {
    int quick = 0, strict = 0, present[LIBRARIES];
    FILE *tsv = NULL, *markdown = NULL;
    for (int i = 1; i < argc; i++) {
        if (!strcmp(argv[i], "--quick")) {
            quick = 1;
        } else if (!strcmp(argv[i], "--strict")) {
            strict = 1; /* a missed goal is a failure */
        } else if (!strcmp(argv[i], "--markdown") && i + 1 < argc) {
            markdown = open_output(argv[++i]);
        } else if (!strcmp(argv[i], "--tsv") && i + 1 < argc) {
            tsv = open_output(argv[++i]);
        } else {
            fprintf(stderr,
                    "usage: accuracy [--quick] [--strict] [--markdown FILE] [--tsv FILE]\n");
            return 2;
        }
    }
    FILE *const remarks = tmpfile();
    if (!remarks) {
        perror("accuracy: temporary file");
        return 2;
    }
    printf("bnorm %s, kernel set %s\n", bnorm_version(), bnorm_isa_name(NULL));
    for (int i = 0; i < LIBRARIES; i++) {
        present[i] = libraries[i]->start();
        if (!present[i])
            printf("%s: not installed; %s\n", libraries[i]->name, libraries[i]->missing);
    }
    printf(
        "Largest errors. mean: ulp, or 2^-23 deviations if that is more; variance, invstd: ulp;\n"
        "y: 2^-22*max(1, |y|); dx: 2^-22 of the sum of its terms' magnitudes; dgamma, dbeta: ulp,\n"
        "or 2^-22 of the root of the sum of their terms' squares if that is more. wrong: overflow\n"
        "or not a number.\n\n");

    print_head();
    if (markdown)
        print_markdown_head(markdown);
    struct verdict v = {0};
    for (size_t i = 0; i < case_count(); i++) {
        const struct study_case sc = case_at(i);
        struct outcome outcomes[LAYOUTS];
        if (quick && sc.shape.n * sc.shape.hw > QUICK_LIMIT)
            continue;
        for (int layout = 0; layout < LAYOUTS; layout++) {
            outcomes[layout] = run_case(&sc, layouts[layout], present);
            judge(&v, &sc, &outcomes[layout], layout_names[layout], remarks);
        }
        print_case(&sc, outcomes, present);
        if (markdown)
            print_markdown_case(markdown, &sc, outcomes);
        if (tsv)
            print_tsv_case(tsv, &sc, outcomes);
    }

    printf("\nbnorm's worst cases\n");
    for (int q = 0; q < QUANTITIES; q++)
        printf("  %-9s %8s  %s\n", quantity_names[q], number(v.worst[q]), v.worst_case[q]);
    printf("\n");
    print_remarks(remarks);
    printf("%d goals missed; %d figures in which another library is closer, %d by more than 0.5\n",
           v.goals_missed, v.worse, v.far_worse);
    fclose(remarks);
    if (markdown)
        fclose(markdown);
    if (tsv)
        fclose(tsv);
    for (int i = 0; i < LIBRARIES; i++)
        if (present[i])
            libraries[i]->stop();
    return strict && v.goals_missed > 0;
}
