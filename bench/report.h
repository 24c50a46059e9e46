/* SPDX-License-Identifier: MIT
 *
 * The rows measured, and the table for people at the end of a run. */
#ifndef BNORM_BENCH_REPORT_H
#define BNORM_BENCH_REPORT_H

#include <stddef.h>

#include "clock.h"
#include "pairs.h"
#include "shapes.h"
#include "workload.h"

/* One op on one shape: what all its rows share. */
typedef struct bench_case {
    enum bench_op op;
    bnorm_layout layout;
    const bench_shape *shape;
    enum { BENCH_UNCHECKED, BENCH_RIGHT, BENCH_WRONG } state;
} bench_case;

/* One kernel set, or plain C, on one case. */
typedef struct bench_row {
    bench_case *test;
    const bnorm_isa *isa;  /* NULL = plain C */
    bench_samples samples; /* the figure is the percentage of the roof */
} bench_row;

const char *bench_set_name(const bench_row *row);

/* The geometric mean over shapes, per op, layout and kernel set. Rows not measured do not count. */
void report_print(const bench_row *rows, size_t count);

/* One table per group of pairs, again with geometric means over shapes. */
void report_print_pairs(const bench_pair *pairs, size_t count);
/* One line per claim: its target, what was measured, and whether that reaches it. */
void report_print_claims(const bench_pair *pairs, size_t count);

#endif
