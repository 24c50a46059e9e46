/* SPDX-License-Identifier: MIT
 *
 * Sequences of different lengths, padded: a mask keeps the padding out of the statistics. It is
 * normalised with the rest, as in Keras. */
#include "question.h"

int main(void) {
    /* Two sequences of one feature, four and two steps long; the rest is padding. */
    const bnorm_shape shape = {.n = 2, .c = 1, .hw = 4};
    const float x[8] = {1, 2, 3, 4, 5, 6, 0, 0}, weights[8] = {1, 1, 1, 1, 1, 1, 0, 0};
    const bnorm_weights mask = {.values = weights, .epsilon = 1e-7}; /* as in Keras 3 */
    const bnorm_in in = {.data = x};
    float y[8], mean, var, running_mean = 0, running_var = 1;

    ok(bnorm_weighted_moments(&shape, in, NULL, &mean, &var, workspace, sizeof workspace, NULL));
    print("mean, variance without mask:", (float[]){mean, var}, 2);
    ok(bnorm_weighted_moments(&shape, in, &mask, &mean, &var, workspace, sizeof workspace, NULL));
    print("mean, variance with mask:   ", (float[]){mean, var}, 2);

    train(&shape, x, y,
          &(bnorm_train){.eps = 1e-3,
                         .running = bnorm_running_keras(&running_mean, &running_var, 0.9),
                         .weights = mask});
    print("running statistics:         ", (float[]){running_mean, running_var}, 2);
    print("y of the first sequence:    ", y, 4);
    print("y of the second:            ", y + 4, 4);
    return 0;
}
