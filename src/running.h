/* SPDX-License-Identifier: MIT
 *
 * Running statistics, as training and functions of their own update them. */
#ifndef BNORM_RUNNING_H
#define BNORM_RUNNING_H

#include "uses.h"

#pragma GCC visibility push(hidden)

/* Of M2, in the running variance. */
double bnorm_running_divisor(const bnorm_running *running, double n);
/* What an empty batch leaves of running statistics that go elsewhere. */
void bnorm_keep_running(const bnorm_running *running, size_t c);
/* Where an array of running statistics is updated. */
static inline float *bnorm_updated(float *running, float *elsewhere) {
    return elsewhere ? elsewhere : running;
}
/* What running statistics read and write. */
void bnorm_uses_running(bnorm_uses *uses, const bnorm_running *running, size_t c);

#pragma GCC visibility pop

#endif
