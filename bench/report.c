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
    return bench_median(row->seconds, row->samples);
}

/* Which rows a column takes, and what of them. */
enum column { SPEEDUP, ROOF_SINGLE, ROOF_BATCH };

typedef struct cell {
    double log_sum;
    size_t count;
} cell;

static const bench_row *plain_of(const bench_row *rows, size_t count, const bench_case *test) {
    for (size_t i = 0; i < count; i++)
        if (rows[i].test == test && !rows[i].isa && rows[i].samples)
            return &rows[i];
    return NULL;
}

static cell geometric_mean(const bench_row *rows, size_t count, enum bench_op op,
                           bnorm_layout layout, const bnorm_isa *isa, enum column column) {
    cell mean = {0, 0};
    for (size_t i = 0; i < count; i++) {
        const bench_row *row = &rows[i];
        if (row->test->op != op || row->test->layout != layout || row->isa != isa || !row->samples)
            continue;
        double value = 0;
        if (column == SPEEDUP) {
            const bench_row *plain = plain_of(rows, count, row->test);
            value = plain ? row_seconds(plain) / row_seconds(row) : 0;
        } else if ((row->test->shape->n == 1) == (column == ROOF_SINGLE)) {
            value = bench_median(row->roof_percent, row->samples);
        }
        if (value > 0) {
            mean.log_sum += log(value);
            mean.count++;
        }
    }
    return mean;
}

/* The kernel sets in the table, then plain C as NULL. The scalar set, the specification, is there
 * only where it is all there is. */
static size_t list_sets(const bnorm_isa **sets) {
    const bnorm_isa *isa;
    size_t count = 0;
    for (size_t i = 0; count < MAX_SETS && (isa = bnorm_isa_at(i)) != NULL; i++)
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
} columns[] = {
    [SPEEDUP] = {"speed-up over plain C", 0, 2, 'x'},
    [ROOF_SINGLE] = {"% of roof, N = 1", 1, 0, '%'},
    [ROOF_BATCH] = {"% of roof, N > 1", 1, 0, '%'},
};

enum { COLUMNS = sizeof columns / sizeof columns[0] };

/* Space before a column's cells, so that it is as wide as its title. */
static int margin(size_t column, size_t set_count) {
    const int title = (int)strlen(columns[column].title);
    const int cells = (int)(set_count + columns[column].plain) * CELL;
    return GAP + (title > cells ? title - cells : 0);
}

static void print_header(const bnorm_isa *const *sets, size_t set_count) {
    printf("%*s", NAMES, "");
    for (size_t column = 0; column < COLUMNS; column++) {
        const int cells = (int)(set_count + columns[column].plain) * CELL;
        printf("%*s", margin(column, set_count) + cells, columns[column].title);
    }
    printf("\n%*s", NAMES, "");
    for (size_t column = 0; column < COLUMNS; column++) {
        printf("%*s", margin(column, set_count), "");
        for (size_t s = 0; s < set_count + columns[column].plain; s++)
            printf("%*s", CELL, s < set_count ? bnorm_isa_name(sets[s]) : "plain");
    }
    printf("\n");
}

static int any_measured(const bench_row *rows, size_t count, enum bench_op op,
                        bnorm_layout layout) {
    for (size_t i = 0; i < count; i++)
        if (rows[i].test->op == op && rows[i].test->layout == layout && rows[i].samples)
            return 1;
    return 0;
}

static void print_line(const bench_row *rows, size_t count, enum bench_op op, bnorm_layout layout,
                       const bnorm_isa *const *sets, size_t set_count) {
    printf("%-*s%-*s", NAMES - 5, bench_ops[op].name, 5, bench_layouts[layout]);
    for (size_t column = 0; column < COLUMNS; column++) {
        printf("%*s", margin(column, set_count), "");
        for (size_t s = 0; s < set_count + columns[column].plain; s++) {
            const cell mean = geometric_mean(rows, count, op, layout, sets[s], (enum column)column);
            if (mean.count)
                printf("%*.*f%c", CELL - 1, columns[column].decimals,
                       exp(mean.log_sum / (double)mean.count), columns[column].unit);
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
