/* SPDX-License-Identifier: MIT */
#include "base.h"

#include "renorm.h"

#include "channel.h"

/* v between two limits, rounded; NaN stays. */
static float clip(double v, double least, double most) {
    return bnorm_round(v < least ? least : v > most ? most : v);
}

/* Products of two floats are exact in double. */
static void substitute(const bnorm_renorm_args *args, size_t i, float r, float d) {
    const double gamma = bnorm_parameter(args->gamma, i, 1);
    args->new_gamma[i] = bnorm_round(gamma * (double)r);
    args->new_beta[i] = bnorm_round(gamma * (double)d + bnorm_parameter(args->beta, i, 0));
}

void bnorm_renorm_forward(const bnorm_renorm *renorm, const bnorm_renorm_args *args,
                          const bnorm_coefficient_args *derived, size_t channel, size_t channels) {
    for (size_t i = channel; i < channel + channels; i++) {
        const double running_mean = (double)derived->running_mean[i];
        const double running_deviation = sqrt((double)derived->running_var[i] + derived->eps);
        const double deviation = sqrt(derived->m2[i] / derived->n + derived->eps);
        const float r = clip(deviation / running_deviation, renorm->r_min, renorm->r_max);
        const float d = clip((derived->mean[i] - running_mean) / running_deviation, -renorm->d_max,
                             renorm->d_max);
        substitute(args, i, r, d);
        if (renorm->save_r)
            renorm->save_r[i] = r;
        if (renorm->save_d)
            renorm->save_d[i] = d;
    }
}

void bnorm_renorm_backward(const float *r, const float *d, const bnorm_renorm_args *args,
                           size_t c) {
    for (size_t i = 0; i < c; i++)
        substitute(args, i, r[i], d[i]);
}

void bnorm_renorm_dgamma(const float *r, const float *d, const bnorm_grad_coefficient_args *derived,
                         size_t channel, size_t channels) {
    for (size_t i = channel; derived->dgamma && i < channel + channels; i++) {
        const double sum_gxh = bnorm_centred_sum(derived, i) * (double)derived->invstd[i];
        derived->dgamma[i] =
            bnorm_round(bnorm_fma((double)d[i], derived->sum_g[i], sum_gxh * (double)r[i]));
    }
}
