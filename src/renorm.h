/* SPDX-License-Identifier: MIT
 *
 * Batch renormalization: gamma*r and gamma*d + beta take the place of gamma and beta. */
#ifndef BNORM_RENORM_H
#define BNORM_RENORM_H

#include "../dispatch/isa.h"

#pragma GCC visibility push(hidden)

/* Where they are derived from and where they go; gamma and beta NULL = 1 and 0. */
typedef struct bnorm_renorm_args {
    const float *gamma, *beta;
    float *new_gamma, *new_beta;
} bnorm_renorm_args;

/* From the merged statistics and the running ones, which are still those before the update. */
void bnorm_renorm_forward(const bnorm_renorm *renorm, const bnorm_renorm_args *args,
                          const bnorm_coefficient_args *derived, size_t channel, size_t channels);

/* From what forward has saved. */
void bnorm_renorm_backward(const float *r, const float *d, const bnorm_renorm_args *args, size_t c);
/* dgamma = r*sum(g*xh) + d*sum(g) */
void bnorm_renorm_dgamma(const float *r, const float *d, const bnorm_grad_coefficient_args *derived,
                         size_t channel, size_t channels);

#pragma GCC visibility pop

#endif
