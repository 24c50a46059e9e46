/* SPDX-License-Identifier: MIT */
#include "report.h"

#include <math.h>
#include <stdio.h>
#include <string.h>

enum { NAMES = 20, CELL = 8, GAP = 3, MAX_SETS = 8 };

const char *bench_set_name(const bench_row *row) {
    return row->isa ? bnorm_isa_name(row->isa) : "plain";
}

static double row_seconds(const bench_row *row) {
    return bench_samples_seconds(&row->samples);
}

/* Which rows a column takes, and what of them. */
enum column { SPEEDUP, ROOF_SINGLE, ROOF_BATCH };

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

static const bench_row *plain_of(const bench_row *rows, size_t count, const bench_case *test) {
    for (size_t i = 0; i < count; i++)
        if (rows[i].test == test && !rows[i].isa && rows[i].samples.count)
            return &rows[i];
    return NULL;
}

static cell geometric_mean(const bench_row *rows, size_t count, enum bench_op op,
                           bnorm_layout layout, const bnorm_isa *isa, enum column column) {
    cell mean = {0};
    for (size_t i = 0; i < count; i++) {
        const bench_row *row = &rows[i];
        if (row->test->op != op || row->test->layout != layout || row->isa != isa ||
            !row->samples.count)
            continue;
        double value = 0;
        if (column == SPEEDUP) {
            const bench_row *plain = plain_of(rows, count, row->test);
            value = plain ? row_seconds(plain) / row_seconds(row) : 0;
        } else if ((row->test->shape->n == 1) == (column == ROOF_SINGLE)) {
            value = bench_samples_figure(&row->samples, 0);
        }
        cell_add(&mean, value);
    }
    return mean;
}

/* The kernel sets in the table, then plain C as NULL. The scalar set, the specification, is there
 * only where it is all there is. */
static size_t list_sets(const bnorm_isa **sets) {
    const bnorm_isa *isa;
    size_t count = 0;
    for (size_t i = 0; count < MAX_SETS && (isa = bench_isa_at(i)) != NULL; i++)
        if (i == 0 || strcmp(bnorm_isa_name(isa), "scalar") != 0)
            sets[count++] = isa;
    sets[count] = NULL;
    return count;
}

static const struct {
    const char *title;
    size_t plain; /* 1: also for plain C */
    int decimals;
    char unit;
} headings[] = {
    [SPEEDUP] = {"speed-up over plain C", 0, 2, 'x'},
    [ROOF_SINGLE] = {"% of roof, N = 1", 1, 0, '%'},
    [ROOF_BATCH] = {"% of roof, N > 1", 1, 0, '%'},
};

enum { COLUMNS = sizeof headings / sizeof headings[0] };

/* Space before a column's cells, so that it is as wide as its title. */
static int margin(size_t column, size_t set_count) {
    const int title = (int)strlen(headings[column].title);
    const int cells = (int)(set_count + headings[column].plain) * CELL;
    return GAP + (title > cells ? title - cells : 0);
}

static void print_header(const bnorm_isa *const *sets, size_t set_count) {
    printf("%*s", NAMES, "");
    for (size_t column = 0; column < COLUMNS; column++) {
        const int cells = (int)(set_count + headings[column].plain) * CELL;
        printf("%*s", margin(column, set_count) + cells, headings[column].title);
    }
    printf("\n%*s", NAMES, "");
    for (size_t column = 0; column < COLUMNS; column++) {
        printf("%*s", margin(column, set_count), "");
        for (size_t s = 0; s < set_count + headings[column].plain; s++)
            printf("%*s", CELL, s < set_count ? bnorm_isa_name(sets[s]) : "plain");
    }
    printf("\n");
}

static int any_measured(const bench_row *rows, size_t count, enum bench_op op,
                        bnorm_layout layout) {
    for (size_t i = 0; i < count; i++)
        if (rows[i].test->op == op && rows[i].test->layout == layout && rows[i].samples.count)
            return 1;
    return 0;
}

static void print_line(const bench_row *rows, size_t count, enum bench_op op, bnorm_layout layout,
                       const bnorm_isa *const *sets, size_t set_count) {
    printf("%-*s%-*s", NAMES - 5, bench_ops[op].name, 5, bench_layouts[layout]);
    for (size_t column = 0; column < COLUMNS; column++) {
        printf("%*s", margin(column, set_count), "");
        for (size_t s = 0; s < set_count + headings[column].plain; s++) {
            const cell mean = geometric_mean(rows, count, op, layout, sets[s], (enum column)column);
            if (mean.count)
                printf("%*.*f%c", CELL - 1, headings[column].decimals, cell_mean(&mean),
                       headings[column].unit);
            else
                printf("%*s", CELL, "-");
        }
    }
    printf("\n");
}

void report_print(const bench_row *rows, size_t count) {
    const bnorm_isa *sets[MAX_SETS + 1];
    const size_t set_count = list_sets(sets);
    print_header(sets, set_count);
    for (int op = 0; op < BENCH_OPS; op++)
        for (int layout = 0; layout < 2; layout++)
            if (any_measured(rows, count, (enum bench_op)op, (bnorm_layout)layout))
                print_line(rows, count, (enum bench_op)op, (bnorm_layout)layout, sets, set_count);
}

/* ---------------------------------------------------------------------------------------------- */
/* Pairs */

enum { OP_NAMES = 30, TYPE_NAMES = 9, LAYOUT_NAMES = 16, PAIR_CELL = 9 };

static const struct {
    const char *title;
    const char *of_figure[BENCH_MAX_RIVALS];
    const char *columns[BENCH_COLUMNS];
} groups[BENCH_GROUPS] = {
    [BENCH_TYPES] = {"Types", {"the same with f32"}, {"L2", "L3", "memory"}},
    [BENCH_BLOCKED] = {"Blocks of channels",
                       {"plain NCHW of the same type"},
                       {"L2", "L3", "memory"}},
    [BENCH_PLACES] = {"Slices of a quarter of the channels, padded planes",
                      {"the same, dense", "the fastest copy of the same runs"},
                      {"L2", "L3", "memory"}},
    [BENCH_EPILOGUES] = {"Fused",
                         {"the op without", "the op without, and the bytes at the roof's rate"},
                         {"L2", "L3", "memory"}},
    [BENCH_SMOOTH] = {"Fused SLEEF activations",
                      {"the op without", "the SLEEF loop alone, without batch norm"},
                      {"L2", "L3", "memory"}},
    [BENCH_JOBS] = {"bnorm_run_jobs", {"one call each"}, {"1T", "2T"}},
};

static cell pair_cell(const bench_pair *pairs, size_t count, const bench_entry *entry, int layout,
                      size_t column, const bnorm_isa *isa, size_t figure) {
    cell mean = {0};
    for (size_t i = 0; i < count; i++) {
        const bench_pair *p = &pairs[i];
        if (p->entry == entry && p->layout == (bnorm_layout)layout && p->column == column &&
            p->isa == isa)
            cell_add(&mean, bench_samples_figure(&p->samples, figure));
    }
    return mean;
}

/* The columns of a group's table, of those that have figures. */
typedef struct pair_column {
    int layout;
    size_t column;
    const bnorm_isa *isa;
} pair_column;

static size_t list_columns(const bench_pair *pairs, size_t count, enum bench_group group,
                           size_t figure, pair_column *columns) {
    const bnorm_isa *isa;
    size_t found = 0;
    for (int layout = 0; layout < 2; layout++)
        for (size_t column = 0; column < BENCH_COLUMNS; column++)
            for (size_t s = 0; (isa = bench_isa_at(s)) != NULL; s++) {
                int any = 0;
                for (size_t i = 0; i < count; i++)
                    any |= pairs[i].entry->group == group && pairs[i].isa == isa &&
                           pairs[i].layout == (bnorm_layout)layout && pairs[i].column == column &&
                           bench_samples_figure(&pairs[i].samples, figure) > 0;
                if (any)
                    columns[found++] = (pair_column){layout, column, isa};
            }
    return found;
}

/* Do the lines of this group name a layout or a list of jobs? */
static int layout_names(enum bench_group group) {
    return group == BENCH_BLOCKED || group == BENCH_PLACES || group == BENCH_JOBS ? LAYOUT_NAMES
                                                                                  : 0;
}

static void print_pair_header(enum bench_group group, size_t figure, const pair_column *columns,
                              size_t column_count) {
    const int margin_width = OP_NAMES + TYPE_NAMES + layout_names(group);
    printf("\n%s: time over that of %s\n", groups[group].title, groups[group].of_figure[figure]);
    for (int line = 0; line < 3; line++) {
        printf("%*s", margin_width, "");
        for (size_t c = 0; c < column_count; c++)
            printf("%*s", PAIR_CELL,
                   line == 0   ? bench_layouts[columns[c].layout]
                   : line == 1 ? groups[group].columns[columns[c].column]
                               : bnorm_isa_name(columns[c].isa));
        printf("\n");
    }
}

static void print_pair_line(const bench_pair *pairs, size_t count, const bench_entry *entry,
                            size_t figure, const pair_column *columns, size_t column_count) {
    char op[64], dtype[16], layout[32];
    cell cells[2 * BENCH_COLUMNS * MAX_SETS];
    size_t any = 0;
    for (size_t c = 0; c < column_count; c++) {
        cells[c] = pair_cell(pairs, count, entry, columns[c].layout, columns[c].column,
                             columns[c].isa, figure);
        any += cells[c].count;
    }
    if (!any)
        return;
    bench_entry_names(entry, op, sizeof op, dtype, sizeof dtype, layout, sizeof layout);
    printf("%-*s%-*s%-*s", OP_NAMES, op, TYPE_NAMES, dtype, layout_names(entry->group), layout);
    for (size_t c = 0; c < column_count; c++)
        if (cells[c].count)
            printf("%*.2f", PAIR_CELL, cell_mean(&cells[c]));
        else
            printf("%*s", PAIR_CELL, "-");
    printf("\n");
}

void report_print_pairs(const bench_pair *pairs, size_t count) {
    for (int group = 0; group < BENCH_GROUPS; group++)
        for (size_t figure = 0; figure < BENCH_MAX_RIVALS; figure++) {
            pair_column columns[2 * BENCH_COLUMNS * MAX_SETS];
            const size_t column_count =
                list_columns(pairs, count, (enum bench_group)group, figure, columns);
            if (column_count == 0)
                continue;
            print_pair_header((enum bench_group)group, figure, columns, column_count);
            const bench_entry *last = NULL;
            for (size_t i = 0; i < count; i++)
                if (pairs[i].entry->group == (enum bench_group)group && pairs[i].entry != last) {
                    last = pairs[i].entry;
                    print_pair_line(pairs, count, last, figure, columns, column_count);
                }
        }
}

/* ---------------------------------------------------------------------------------------------- */
/* Claims */

static int any_entry(const bench_entry *e) {
    (void)e;
    return 1;
}

static int is_half_inference(const bench_entry *e) {
    return e->op == BENCH_INFERENCE && e->form.dtype != BNORM_F32 && e->form.dtype <= BNORM_F16 &&
           e->form.y_dtype == BNORM_Y_SAME;
}

static int is_half_training(const bench_entry *e) {
    return e->op != BENCH_INFERENCE && e->form.dtype <= BNORM_F16;
}

static int is_fused_inference(const bench_entry *e) {
    return e->op == BENCH_INFERENCE && !e->form.residual && !e->form.mask;
}

static int is_fused_residual(const bench_entry *e) {
    return e->op == BENCH_INFERENCE && e->form.residual;
}

static int is_fused_mask(const bench_entry *e) {
    return e->form.mask && e->op != BENCH_BACKWARD;
}

static int is_backward_mask(const bench_entry *e) {
    return e->form.mask && e->op == BENCH_BACKWARD;
}

static int is_padded(const bench_entry *e) {
    return e->form.place == BENCH_PADDED;
}

static int is_slice(const bench_entry *e) {
    return e->form.place == BENCH_SLICE;
}

static int is_silu(const bench_entry *e) {
    return e->form.act.kind == BNORM_ACT_SILU;
}

static int is_other_smooth(const bench_entry *e) {
    return e->form.act.kind != BNORM_ACT_SILU;
}

/* Two times of the same length differ by this much on a machine that others use too. */
#define NOISE 0.05

static const struct claim {
    const char *text;
    enum bench_group group;
    size_t figure;
    int column; /* -1 = all */
    int (*about)(const bench_entry *e);
    double target;
} claims[] = {
    {"bf16, f16 inference over f32, memory", BENCH_TYPES, 0, BENCH_MEMORY, is_half_inference, 0.55},
    {"bf16, f16 training and backward over f32, memory", BENCH_TYPES, 0, BENCH_MEMORY,
     is_half_training, 0.55 + NOISE},
    {"blocks of channels over plain NCHW", BENCH_BLOCKED, 0, -1, any_entry, 1 + NOISE},
    {"padded planes over dense", BENCH_PLACES, 0, -1, is_padded, 1 + NOISE},
    {"slices, inference, over a copy of the slice", BENCH_PLACES, 1, -1, is_slice, 1 + NOISE},
    {"fused RELU, LEAKY_RELU, ... over their bytes", BENCH_EPILOGUES, 1, -1, is_fused_inference,
     1 + NOISE},
    {"fused residual over its bytes", BENCH_EPILOGUES, 1, -1, is_fused_residual, 1 + NOISE},
    {"mask written over its bytes", BENCH_EPILOGUES, 1, -1, is_fused_mask, 1 + NOISE},
    {"mask read by backward over its bytes", BENCH_EPILOGUES, 1, -1, is_backward_mask, 1 + NOISE},
    {"SILU over the SLEEF loop, L2", BENCH_SMOOTH, 1, BENCH_CACHE, is_silu, 1.10},
    {"SILU over the SLEEF loop, memory", BENCH_SMOOTH, 1, BENCH_MEMORY, is_silu, 1.10},
    {"other SLEEF activations over their loops", BENCH_SMOOTH, 1, -1, is_other_smooth, 1.10},
    {"run_jobs over one call each, 1 thread", BENCH_JOBS, 0, BENCH_1_THREAD, any_entry, 1 + NOISE},
    {"run_jobs over one call each, 2 threads", BENCH_JOBS, 0, BENCH_2_THREADS, any_entry, 0.75},
};

static void print_claim(const struct claim *claim, const bench_pair *pairs, size_t count) {
    cell mean = {0};
    size_t reached = 0;
    for (size_t i = 0; i < count; i++) {
        const bench_pair *p = &pairs[i];
        if (p->entry->group != claim->group || !claim->about(p->entry) ||
            (claim->column >= 0 && p->column != (enum bench_column)claim->column))
            continue;
        const double ratio = bench_samples_figure(&p->samples, claim->figure);
        cell_add(&mean, ratio);
        reached += ratio > 0 && ratio <= claim->target;
    }
    if (!mean.count)
        return;
    const char *verdict = reached == mean.count               ? "reached"
                          : cell_mean(&mean) <= claim->target ? "on average"
                                                              : "missed";
    printf("%-50s %8.2f %8.2f %8.2f %5zu of %-4zu %s\n", claim->text, claim->target,
           cell_mean(&mean), mean.worst, reached, mean.count, verdict);
}

void report_print_claims(const bench_pair *pairs, size_t count) {
    printf("\n%-50s %8s %8s %8s %13s\n", "Claims: time over another's", "target", "mean", "worst",
           "rows in it");
    for (size_t i = 0; i < sizeof claims / sizeof claims[0]; i++)
        print_claim(&claims[i], pairs, count);
}
