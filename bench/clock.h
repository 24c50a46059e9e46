/* SPDX-License-Identifier: MIT
 *
 * Time, repetitions and medians. */
#ifndef BNORM_BENCH_CLOCK_H
#define BNORM_BENCH_CLOCK_H

#include <stddef.h>

enum bench_clock {
    BENCH_WALL,
    /* Only while this thread runs: other programs on the machine cost others' time. For work on one
     * thread; it is also what Google Benchmark calls CPU time and takes for its own rates. */
    BENCH_THREAD,
    BENCH_PROCESS /* the same of all threads of this program together */
};

double bench_seconds(enum bench_clock clock);

enum { BENCH_MEDIAN_OF = 64 };

/* Of at most BENCH_MEDIAN_OF values; 0 of none. */
double bench_median(const double *values, size_t count);

/* The repetitions of one row: seconds per run and what was derived from them at the time. */
enum { BENCH_FIGURES = 2 };

typedef struct bench_samples {
    size_t iterations; /* of the samples; runs with fewer only found this number */
    size_t count;
    double seconds[BENCH_MEDIAN_OF];
    double figures[BENCH_FIGURES][BENCH_MEDIAN_OF];
} bench_samples;

/* Runs with growing numbers of iterations look for the number to use; all repetitions then have it.
 */
void bench_samples_add(bench_samples *samples, size_t iterations, double seconds,
                       const double figures[BENCH_FIGURES]);
/* Medians; 0 without samples. */
double bench_samples_seconds(const bench_samples *samples);
double bench_samples_figure(const bench_samples *samples, size_t figure);

#endif
