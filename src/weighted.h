/* SPDX-License-Identifier: MIT
 *
 * Weights of positions: the statistics of what has a weight, and its share in the gradient. */
#ifndef BNORM_WEIGHTED_H
#define BNORM_WEIGHTED_H

#include "driver.h"

/* The weights of a call; values NULL = none. */
typedef struct bnorm_weighted {
    const float *values; /* of position p of image n: [n*positions + p] */
    double epsilon;
    double *sums;   /* of the weights of each block; NULL = not wanted */
    double total;   /* of all weights */
    double divisor; /* total + epsilon, which takes the place of N*HW */
} bnorm_weighted;

/* What can be checked of any batch, and the weights of one that is not empty. */
static inline bnorm_status bnorm_check_weighting(const bnorm_weights *weights) {
    return weights->values ? bnorm_check_eps(weights->epsilon) : BNORM_OK;
}
bnorm_status bnorm_check_weights(const bnorm_shape *shape, const bnorm_weights *weights);

static inline bnorm_buffer bnorm_weights_buffer(const bnorm_shape *shape,
                                                const bnorm_weights *weights) {
    return bnorm_array_buffer(weights ? weights->values : NULL, shape->n * shape->hw);
}

/* Fills *weighted and sums, in exec's mode; returns the divisor. */
double bnorm_weigh(const bnorm_weights *weights, const bnorm_view *view, const bnorm_blocks *blocks,
                   double *sums, const bnorm_exec *exec, bnorm_weighted *weighted);

/* Reduce and merge of a bnorm_statistics with weights. */
struct bnorm_statistics;
void bnorm_weighted_reduce(const void *self, size_t b, size_t channel, size_t channels);
void bnorm_weighted_merge(const struct bnorm_statistics *s, size_t channel, size_t channels);

/* The coefficients of a bnorm_gradients with weights: those of a position of weight 1. */
struct bnorm_gradients;
void bnorm_weighted_coefficients(const struct bnorm_gradients *s, size_t channel, size_t channels);
/* Its elementwise pass. */
void bnorm_weighted_apply(const struct bnorm_gradients *s, const bnorm_piece *piece,
                          unsigned hints);

#endif
