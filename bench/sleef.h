/* SPDX-License-Identifier: MIT
 *
 * What a fused activation is measured against: the same SLEEF function alone, over a dense tensor
 * of floats, with as little around it as the formula needs. */
#ifndef BNORM_BENCH_SLEEF_H
#define BNORM_BENCH_SLEEF_H

#include <stddef.h>

#include "bnorm.h"

/* y[i] = act(x[i]) for i < n. */
typedef void (*sleef_loop)(float *y, const float *x, size_t n);

/* With the vectors of this kernel set; NULL where there is none, as in a build without SLEEF. */
sleef_loop sleef_loop_of(const bnorm_isa *isa, bnorm_act_kind kind);

#endif
