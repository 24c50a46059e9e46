/* SPDX-License-Identifier: MIT
 *
 * Checks of options. They run before anything is written. */
#ifndef BNORM_CHECK_H
#define BNORM_CHECK_H

#include "tensor.h"

#pragma GCC visibility push(hidden)

bnorm_status bnorm_check_exec(const bnorm_exec *exec);
bnorm_status bnorm_check_act(const bnorm_act *act, const bnorm_exec *exec);
/* A mask goes with these kinds only; where none is needed, *mask becomes NULL. */
bnorm_status bnorm_check_mask(const bnorm_act *act, unsigned char **mask);
bnorm_status bnorm_check_eps(double eps);
/* Whether var + eps of all c channels is at least 0, or NaN. */
bnorm_status bnorm_check_variance(size_t c, const float *var, double eps);
bnorm_status bnorm_check_running(const bnorm_running *running);
bnorm_status bnorm_check_renorm(const bnorm_renorm *renorm, const bnorm_running *running);
/* What can be checked of weights for any batch, and of one that is not empty. */
bnorm_status bnorm_check_weights(const bnorm_weights *weights);
bnorm_status bnorm_check_weight_values(const bnorm_shape *shape, const bnorm_weights *weights);
bnorm_status bnorm_check_train(const bnorm_train *train, const bnorm_exec *exec);

#pragma GCC visibility pop

#endif
