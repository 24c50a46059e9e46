/* SPDX-License-Identifier: MIT
 *
 * The formulas in double, element by element, in memory order. */
#ifndef BNORM_BENCH_REFERENCE_H
#define BNORM_BENCH_REFERENCE_H

#include "workload.h"

/* Compares results, from running statistics 0 and 1, with the formulas. tolerance is relative to
 * the sum of the magnitudes of the terms added up. 0 after a message on stderr, which calls the
 * results "who". A gradient through an activation is checked only where a mask says which elements
 * pass. */
int reference_check(const bench_problem *problem, const bench_result *result, double tolerance,
                    const char *who);

#endif
