/* SPDX-License-Identifier: MIT */
#define _POSIX_C_SOURCE 200809L /* regcomp */

#include "report.h"

#include <math.h>
#include <regex.h>
#include <stdio.h>
#include <string.h>

enum { MAX_SETS = 8, MAX_COLUMNS = 64, TITLES = 3, ANY_LAYOUT = 2 };

/* A figure of a rival is that of bench_row's samples. */
enum figure { OF_RIVAL, MICROSECONDS = BENCH_MAX_RIVALS, RATE, ROOF, SPEEDUP, FIGURES };

typedef struct cell {
    double log_sum, worst;
    size_t count;
} cell;

static void cell_add(cell *c, double value) {
    if (value > 0) {
        c->log_sum += log(value);
        c->worst = value > c->worst ? value : c->worst;
        c->count++;
    }
}

static double cell_mean(const cell *c) {
    return exp(c->log_sum / (double)c->count);
}

/* The plain C loop on the same shape, which has floats only. */
static double plain_seconds(const bench_row *rows, size_t count, const bench_row *r) {
    for (size_t i = 0; i < count; i++)
        if (!rows[i].isa && rows[i].entry->op == r->entry->op && rows[i].layout == r->layout &&
            rows[i].shape == r->shape)
            return bench_samples_seconds(&rows[i].samples);
    return 0;
}

static double figure_of(const bench_row *rows, size_t count, const bench_row *r, int figure) {
    const double seconds = bench_samples_seconds(&r->samples);
    switch (figure) {
    case MICROSECONDS:
        return seconds * 1e6;
    case RATE:
        return bench_row_traffic(r) / seconds * 1e-9;
    case ROOF: {
        const double over_roof = bench_samples_figure(&r->samples, 0);
        return over_roof > 0 ? 100 / over_roof : 0;
    }
    case SPEEDUP:
        return plain_seconds(rows, count, r) / seconds;
    default:
        return bench_samples_figure(&r->samples, (size_t)figure);
    }
}

/* ---------------------------------------------------------------------------------------------- */
/* Tables: a line is an entry, or an entry with one layout; a column says which of its rows count */

typedef struct column {
    char titles[TITLES][96];
    int width;
    int figure;
    const bnorm_isa *isa; /* NULL = plain C */
    int layout;           /* ANY_LAYOUT = the line's */
    const bench_shape *shape;
    enum bench_column first, last; /* where shape is NULL */
} column;

typedef struct table {
    const bench_row *rows;
    size_t count;
    enum bench_group group;
    int on_screen; /* only such entries, and a line per layout */
    int names;     /* width */
    column columns[MAX_COLUMNS];
    size_t column_count;
} table;

static int is_in_table(const table *t, const bench_row *r) {
    return r->samples.count && r->entry->group == t->group &&
           (!t->on_screen || r->entry->on_screen);
}

static int is_in_column(const table *t, const column *c, const bench_row *r) {
    return is_in_table(t, r) && r->isa == c->isa &&
           (c->layout == ANY_LAYOUT || (int)r->layout == c->layout) &&
           (c->shape ? r->shape == c->shape : r->column >= c->first && r->column <= c->last);
}

static int is_on_line(const table *t, const bench_row *line, const bench_row *r) {
    return r->entry == line->entry && (!t->on_screen || r->layout == line->layout);
}

static cell cell_of(const table *t, const bench_row *line, const column *c) {
    cell mean = {0};
    for (const bench_row *r = t->rows; r < t->rows + t->count; r++)
        if ((!line || is_on_line(t, line, r)) && is_in_column(t, c, r))
            cell_add(&mean, figure_of(t->rows, t->count, r, c->figure));
    return mean;
}

/* Unless nothing was measured for it. */
static void add_column(table *t, const column *c) {
    if (t->column_count < MAX_COLUMNS && cell_of(t, NULL, c).count)
        t->columns[t->column_count++] = *c;
}

/* Each title over all columns side by side that share it and those above. */
static void print_heading(const table *t) {
    for (int line = 0; line < TITLES; line++) {
        int width = 0;
        printf("%*s", t->names, "");
        for (size_t i = 0; i < t->column_count; i++) {
            const column *c = &t->columns[i];
            int joined = line + 1 < TITLES && i + 1 < t->column_count;
            for (int above = 0; above <= line; above++)
                joined = joined && strcmp(c->titles[above], c[1].titles[above]) == 0;
            width += c->width;
            if (!joined) {
                printf("%*s", width, c->titles[line]);
                width = 0;
            }
        }
        printf("\n");
    }
}

static void print_names(const table *t, const bench_row *line) {
    const bench_entry *e = line->entry;
    char op[64], dtype[16], layout[32];
    bench_entry_names(e, op, sizeof op, dtype, sizeof dtype, layout, sizeof layout);
    if (t->on_screen)
        printf("%-9s %s %-*s", e->op == BENCH_INFERENCE_RELU ? "  + ReLU" : op,
               bench_layouts[line->layout], t->names - 15, dtype);
    else
        printf("%-30s%-9s%-*s", op, dtype, t->names - 39, layout);
}

static void print_cell(const cell *mean, const column *c) {
    const double value = mean->count ? cell_mean(mean) : 0;
    const int is_ratio = c->figure < BENCH_MAX_RIVALS || value < 10;
    if (mean->count == 0)
        printf("%*s", c->width, "-");
    else if (c->figure == ROOF)
        printf("%*.0f%%", c->width - 1, value);
    else
        printf("%*.*f", c->width, is_ratio ? 2 : value < 100 ? 1 : 0, value);
}

static void print_line(const table *t, const bench_row *line) {
    cell cells[MAX_COLUMNS];
    size_t any = 0;
    for (size_t i = 0; i < t->column_count; i++) {
        cells[i] = cell_of(t, line, &t->columns[i]);
        any += cells[i].count;
    }
    if (!any)
        return;
    print_names(t, line);
    for (size_t i = 0; i < t->column_count; i++)
        print_cell(&cells[i], &t->columns[i]);
    printf("\n");
}

static void print_table(const table *t) {
    print_heading(t);
    for (const bench_row *r = t->rows; r < t->rows + t->count; r++) {
        int known = !is_in_table(t, r);
        for (const bench_row *k = t->rows; !known && k < r; k++)
            known = is_in_table(t, k) && is_on_line(t, k, r);
        if (!known)
            print_line(t, r);
    }
}

/* ---------------------------------------------------------------------------------------------- */
/* The screen */

/* Widths where one shape has the table to itself, else with one kernel set and with more. */
static const struct {
    const char *title;
    int own, one, more;
} figures[FIGURES] = {
    [MICROSECONDS] = {"us", 8, 0, 0},
    [RATE] = {"GB/s", 6, 8, 5},
    [ROOF] = {"roof", 6, 8, 5},
    [SPEEDUP] = {"vs C", 6, 8, 5},
};

/* The columns of one shape, or of all whose size is in a class. The scalar set, the specification,
 * is shown only where it is all there is. */
static void add_block(table *t, const column *block) {
    const bnorm_isa *sets[MAX_SETS + 1];
    size_t set_count = 0;
    for (size_t i = 0; set_count < MAX_SETS && (sets[set_count] = bench_isa_at(i)) != NULL; i++)
        if (i == 0 || strcmp(bnorm_isa_name(sets[set_count]), "scalar") != 0)
            set_count++;
    for (size_t s = 0; s < set_count + (block->shape ? 1 : 0); s++)
        for (int figure = MICROSECONDS; figure < (s < set_count ? FIGURES : RATE); figure++) {
            column c = *block;
            c.isa = s < set_count ? sets[s] : NULL;
            c.figure = figure;
            c.width = c.shape         ? figures[figure].own
                      : set_count > 1 ? figures[figure].more
                                      : figures[figure].one;
            snprintf(c.titles[1], sizeof c.titles[1], "%s", c.isa ? bnorm_isa_name(c.isa) : "C");
            snprintf(c.titles[2], sizeof c.titles[2], "%s", figures[figure].title);
            if (c.width)
                add_column(t, &c);
        }
}

/* How many shapes the rows of a class have. */
static size_t shapes_of(const table *t, const column *class) {
    size_t shapes = 0;
    for (const bench_row *r = t->rows; r < t->rows + t->count; r++) {
        column c = *class;
        c.isa = r->isa;
        int seen = !is_in_column(t, &c, r);
        for (const bench_row *k = t->rows; !seen && k < r; k++) {
            c.isa = k->isa;
            seen = k->shape == r->shape && is_in_column(t, &c, k);
        }
        shapes += !seen;
    }
    return shapes;
}

void report_screen(const bench_row *rows, size_t count, const bench_shape *own, size_t own_count) {
    column classes[] = {{.titles = {"up to 1 MiB"}, .first = BENCH_CACHE, .last = BENCH_CACHE},
                        {.titles = {"larger"}, .first = BENCH_BETWEEN, .last = BENCH_MEMORY}};
    const table empty = {
        .rows = rows, .count = count, .group = BENCH_TYPES, .on_screen = 1, .names = 19};
    table t = empty;
    for (size_t i = 0; own_count == 0 && i < sizeof classes / sizeof classes[0]; i++) {
        column *c = &classes[i];
        char *title = c->titles[0];
        c->layout = ANY_LAYOUT;
        const size_t shapes = shapes_of(&t, c), end = strlen(title);
        snprintf(title + end, sizeof c->titles[0] - end, ", %zu shape%s", shapes,
                 shapes == 1 ? "" : "s");
        add_block(&t, c);
    }
    if (t.column_count) {
        printf("\n");
        print_table(&t);
    }
    for (size_t i = 0; i < own_count; i++) {
        column c = {.layout = ANY_LAYOUT, .shape = &own[i]};
        const char *name = own[i].network;
        snprintf(c.titles[0], sizeof c.titles[0], "%s %s", strcmp(name, "own") ? name : "",
                 own[i].size);
        t = empty;
        add_block(&t, &c);
        printf("\n");
        print_table(&t);
    }
}

/* ---------------------------------------------------------------------------------------------- */
/* Groups */

static const struct {
    const char *title;
    const char *of_rival[BENCH_MAX_RIVALS];
    const char *classes[BENCH_COLUMNS];
    int has_layout_names;
} groups[BENCH_GROUPS] = {
    [BENCH_TYPES] = {"Types", {NULL, "the same with f32"}, {"L2", "L3", "memory"}, 0},
    [BENCH_BLOCKED] = {"Blocks of channels",
                       {"plain NCHW of the same type"},
                       {"L2", "L3", "memory"},
                       1},
    [BENCH_PLACES] = {"Slices of a quarter of the channels, padded planes",
                      {"the same, dense", "the fastest copy of the same runs"},
                      {"L2", "L3", "memory"},
                      1},
    [BENCH_EPILOGUES] = {"Fused",
                         {"the op without", "the op without, and the bytes at the roof's rate"},
                         {"L2", "L3", "memory"},
                         0},
    [BENCH_SMOOTH] = {"Fused SLEEF activations",
                      {"the op without", "the SLEEF loop alone, without batch norm"},
                      {"L2", "L3", "memory"},
                      0},
    [BENCH_JOBS] = {"bnorm_run_jobs", {"one call each"}, {"1T", "2T"}, 1},
};

static void report_group(const bench_row *rows, size_t count, int group, int rival) {
    const bnorm_isa *isa;
    table t = {.rows = rows,
               .count = count,
               .group = (enum bench_group)group,
               .names = groups[group].has_layout_names ? 55 : 39};
    for (int layout = 0; layout < 2; layout++)
        for (int class = 0; class < BENCH_COLUMNS; class ++)
            for (size_t s = 0; (isa = bench_isa_at(s)) != NULL; s++) {
                column c = {.width = 9,
                            .figure = OF_RIVAL + rival,
                            .isa = isa,
                            .layout = layout,
                            .first = (enum bench_column) class,
                            .last = (enum bench_column) class};
                snprintf(c.titles[0], sizeof c.titles[0], "%s", bench_layouts[layout]);
                snprintf(c.titles[1], sizeof c.titles[1], "%s", groups[group].classes[class]);
                snprintf(c.titles[2], sizeof c.titles[2], "%s", bnorm_isa_name(isa));
                add_column(&t, &c);
            }
    if (t.column_count) {
        printf("\n%s: time over that of %s\n", groups[group].title, groups[group].of_rival[rival]);
        print_table(&t);
    }
}

void report_groups(const bench_row *rows, size_t count) {
    for (int group = 0; group < BENCH_GROUPS; group++)
        for (int rival = 0; rival < BENCH_MAX_RIVALS; rival++)
            if (groups[group].of_rival[rival])
                report_group(rows, count, group, rival);
}

/* ---------------------------------------------------------------------------------------------- */
/* Claims */

/* Two times of the same length differ by this much on a machine that others use too. */
#define NOISE 0.05

static const struct claim {
    const char *text;
    enum bench_group group;
    size_t rival;
    int column;       /* -1 = all */
    const char *rows; /* a regular expression for their names */
    double target;
} claims[] = {
    {"bf16, f16 inference over f32, memory", BENCH_TYPES, 1, BENCH_MEMORY, "^inference.*/b?f16/",
     0.55},
    {"bf16, f16 training and backward over f32, memory", BENCH_TYPES, 1, BENCH_MEMORY,
     "^(training|backward)/.*/b?f16/", 0.55 + NOISE},
    {"blocks of channels over plain NCHW", BENCH_BLOCKED, 0, -1, ".", 1 + NOISE},
    {"padded planes over dense", BENCH_PLACES, 0, -1, "/nchw-padded/", 1 + NOISE},
    {"slices, inference, over a copy of the slice", BENCH_PLACES, 1, -1, "/nhwc-slice/", 1 + NOISE},
    {"fused RELU, LEAKY_RELU, ... over their bytes", BENCH_EPILOGUES, 1, -1,
     "^inference_(relu6?|leaky_relu|hard_swish)/", 1 + NOISE},
    {"fused residual over its bytes", BENCH_EPILOGUES, 1, -1, "^inference_residual", 1 + NOISE},
    {"mask written over its bytes", BENCH_EPILOGUES, 1, -1, "^(inference|training).*_mask/",
     1 + NOISE},
    {"mask read by backward over its bytes", BENCH_EPILOGUES, 1, -1, "^backward.*_mask/",
     1 + NOISE},
    {"SILU over the SLEEF loop, L2", BENCH_SMOOTH, 1, BENCH_CACHE, "_silu/", 1.10},
    {"SILU over the SLEEF loop, memory", BENCH_SMOOTH, 1, BENCH_MEMORY, "_silu/", 1.10},
    {"other SLEEF activations over their loops", BENCH_SMOOTH, 1, -1,
     "_(sigmoid|tanh|gelu|elu|softplus|mish)/", 1.10},
    {"run_jobs over one call each, 1 thread", BENCH_JOBS, 0, BENCH_1_THREAD, ".", 1 + NOISE},
    {"run_jobs over one call each, 2 threads", BENCH_JOBS, 0, BENCH_2_THREADS, ".", 0.75},
};

static void print_claim(const struct claim *claim, const bench_row *rows, size_t count) {
    regex_t names;
    cell mean = {0};
    size_t reached = 0;
    if (regcomp(&names, claim->rows, REG_EXTENDED | REG_NOSUB) != 0)
        return;
    for (const bench_row *r = rows; r < rows + count; r++) {
        char name[BENCH_ROW_NAME];
        bench_row_name(r, name, sizeof name);
        if (r->entry->group != claim->group || regexec(&names, name, 0, NULL, 0) != 0 ||
            (claim->column >= 0 && r->column != (enum bench_column)claim->column))
            continue;
        const double ratio = bench_samples_figure(&r->samples, claim->rival);
        cell_add(&mean, ratio);
        reached += ratio > 0 && ratio <= claim->target;
    }
    regfree(&names);
    if (!mean.count)
        return;
    const char *verdict = reached == mean.count               ? "reached"
                          : cell_mean(&mean) <= claim->target ? "on average"
                                                              : "missed";
    printf("%-50s %8.2f %8.2f %8.2f %5zu of %-4zu %s\n", claim->text, claim->target,
           cell_mean(&mean), mean.worst, reached, mean.count, verdict);
}

void report_claims(const bench_row *rows, size_t count) {
    printf("\n%-50s %8s %8s %8s %13s\n", "Claims: time over another's", "target", "mean", "worst",
           "rows in it");
    for (size_t i = 0; i < sizeof claims / sizeof claims[0]; i++)
        print_claim(&claims[i], rows, count);
}
