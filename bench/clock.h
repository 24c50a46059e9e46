/* SPDX-License-Identifier: MIT
 *
 * Wall-clock time and medians. */
#ifndef BNORM_BENCH_CLOCK_H
#define BNORM_BENCH_CLOCK_H

#include <stddef.h>

enum bench_clock {
    BENCH_WALL,
    /* Only while this thread runs: other programs on the machine cost others' time. For work on one
     * thread; it is also what Google Benchmark calls CPU time and takes for its own rates. */
    BENCH_THREAD
};

double bench_seconds(enum bench_clock clock);

enum { BENCH_MEDIAN_OF = 64 };

/* Of at most BENCH_MEDIAN_OF values; 0 of none. */
double bench_median(const double *values, size_t count);

#endif
