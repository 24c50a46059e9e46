/* SPDX-License-Identifier: MIT
 *
 * Weights of positions: the statistics of what has a weight, and its share in the gradient. */
#ifndef BNORM_WEIGHTS_H
#define BNORM_WEIGHTS_H

#include "map.h"
#include "reduce.h"

#pragma GCC visibility push(hidden)

/* The weights of a call; values NULL = none. */
typedef struct bnorm_weighing {
    const float *values; /* of position p of image n: [n*positions + p] */
    double epsilon;
    double *sums;   /* of the weights of each block; NULL = not wanted */
    double total;   /* of all weights */
    double divisor; /* total + epsilon, which takes the place of N*HW */
} bnorm_weighing;

/* Adds up the weights, in exec's mode: fills what follows from values and epsilon. */
void bnorm_weigh(bnorm_weighing *w, const bnorm_reduction *r, const bnorm_exec *exec);

/* Means and weighted M2 of block b of x, and of all blocks. */
void bnorm_weighted_moments_of(const bnorm_reduction *r, const bnorm_weighing *w,
                               const bnorm_tensor *x, size_t b, size_t channel, size_t channels);
void bnorm_weighted_merge(const bnorm_reduction *r, const bnorm_weighing *w, size_t channel,
                          size_t channels, double *mean, double *m2);

/* The coefficients of a position of weight 1. */
void bnorm_weighted_coefficients(const bnorm_reduction *r, const bnorm_weighing *w,
                                 const bnorm_grad_coefficient_args *derived, const float *save_mean,
                                 size_t channel, size_t channels);
/* dx and dresidual. */
void bnorm_weighted_map(const bnorm_map *map, const bnorm_weighing *w, const bnorm_part *part,
                        int near);

#pragma GCC visibility pop

#endif
