/* SPDX-License-Identifier: MIT
 *
 * The roof: what this machine can do with the same bytes when nothing is computed, as the best of
 * several copies (x to y: inference, training) or triads (y = x + 3*dy: backward). */
#ifndef BNORM_BENCH_ROOF_H
#define BNORM_BENCH_ROOF_H

#include <stddef.h>

#include "bnorm.h"
#include "workload.h"

/* Copies: dst = a. Triads: dst = a + 3*b. Reads: of a and, unless NULL, of b; write dst[0]. */
typedef void (*roof_traffic)(float *dst, const float *a, const float *b, size_t n);

typedef struct roof_method {
    const char *name;
    int triad;
    int (*usable)(void);
    roof_traffic run;
    roof_traffic read; /* a pass over the inputs alone, in the same manner */
} roof_method;

/* The ways to move data that are tried; NULL past the end. */
const roof_method *roof_method_at(size_t i);

typedef struct bench_roof bench_roof;

/* Threads share each copy as they share bnorm's calls. */
bench_roof *roof_create(size_t threads, const bnorm_exec *exec);
void roof_destroy(bench_roof *roof);

/* Bytes per second for this problem's traffic without mask; 0 where memory ran out.
 * The first call for a size tries every method several times in turn; later ones add a sample of
 * the best, so that the medians cover the whole run. Overwrites "out". */
double roof_measure(bench_roof *roof, const bench_problem *problem, float *out);

#endif
