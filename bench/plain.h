/* SPDX-License-Identifier: MIT
 *
 * The baseline: batch norm as a careful C programmer writes it without SIMD, one function per op
 * and layout. Compiled with -O3 and for this CPU (-march=native), so that the compiler may
 * vectorise all that the order of float additions allows it to. One thread. */
#ifndef BNORM_BENCH_PLAIN_H
#define BNORM_BENCH_PLAIN_H

#include "workload.h"

void plain_run(const bench_problem *problem, const bench_result *result);

#endif
