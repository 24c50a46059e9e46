/* SPDX-License-Identifier: MIT
 *
 * Wall-clock time and medians. */
#ifndef BNORM_BENCH_CLOCK_H
#define BNORM_BENCH_CLOCK_H

#include <stddef.h>

double bench_seconds(void);

enum { BENCH_MEDIAN_OF = 64 };

/* Of at most BENCH_MEDIAN_OF values; 0 of none. */
double bench_median(const double *values, size_t count);

#endif
