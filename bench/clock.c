/* SPDX-License-Identifier: MIT */
#define _POSIX_C_SOURCE 200809L /* clock_gettime */

#include "clock.h"

#include <stdlib.h>
#include <string.h>
#include <time.h>

double bench_seconds(enum bench_clock clock) {
    static const clockid_t clocks[] = {[BENCH_WALL] = CLOCK_MONOTONIC,
                                       [BENCH_THREAD] = CLOCK_THREAD_CPUTIME_ID,
                                       [BENCH_PROCESS] = CLOCK_PROCESS_CPUTIME_ID};
    struct timespec now;
    clock_gettime(clocks[clock], &now);
    return (double)now.tv_sec + (double)now.tv_nsec * 1e-9;
}

static int ascending(const void *a, const void *b) {
    const double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

double bench_median(const double *values, size_t count) {
    double sorted[BENCH_MEDIAN_OF];
    if (count == 0)
        return 0;
    if (count > BENCH_MEDIAN_OF)
        count = BENCH_MEDIAN_OF;
    memcpy(sorted, values, count * sizeof *values);
    qsort(sorted, count, sizeof *sorted, ascending);
    return (sorted[(count - 1) / 2] + sorted[count / 2]) / 2;
}

void bench_samples_add(bench_samples *samples, size_t iterations, double seconds,
                       const double figures[BENCH_FIGURES]) {
    if (samples->iterations != iterations) {
        samples->iterations = iterations;
        samples->count = 0;
    }
    if (samples->count == BENCH_MEDIAN_OF)
        return;
    for (size_t i = 0; i < BENCH_FIGURES; i++)
        samples->figures[i][samples->count] = figures[i];
    samples->seconds[samples->count++] = seconds;
}

double bench_samples_seconds(const bench_samples *samples) {
    return bench_median(samples->seconds, samples->count);
}

double bench_samples_figure(const bench_samples *samples, size_t figure) {
    return bench_median(samples->figures[figure], samples->count);
}
