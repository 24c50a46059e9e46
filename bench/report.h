/* SPDX-License-Identifier: MIT
 *
 * The tables for people at the end of a run. Rows that were not measured do not count. */
#ifndef BNORM_BENCH_REPORT_H
#define BNORM_BENCH_REPORT_H

#include <stddef.h>

#include "rows.h"

/* GB/s, percent of the roof and plain C, in 80 columns: per op, layout, type and kernel set. One
 * table with geometric means over the shapes, or with own shapes one for each. */
void report_screen(const bench_row *rows, size_t count, const bench_shape *own, size_t own_count);
/* One table per group, with geometric means over shapes. */
void report_groups(const bench_row *rows, size_t count);
/* One line per claim: its target, what was measured, and whether that reaches it. */
void report_claims(const bench_row *rows, size_t count);

#endif
