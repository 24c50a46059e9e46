/* SPDX-License-Identifier: MIT
 *
 * Why did the moving (running) statistics not change? What each kind of call does to a running mean
 * of 0 and a running variance of 1. */
#include "question.h"

static const float x[4] = {8, 9, 11, 12}; /* mean 10, variance 2.5 */
static float y[4], mean, var;
static bnorm_shape shape = {.n = 4, .c = 1, .hw = 1};

static void training(const char *what, bnorm_running running) {
    mean = 0;
    var = 1;
    train(&shape, x, y, &(bnorm_train){.eps = 1e-3, .running = running});
    printf("%-46s %7.3f %9.3f\n", what, (double)mean, (double)var);
}

int main(void) {
    puts("one call on a batch of mean 10, variance 2.5      mean  variance");

    mean = 0;
    var = 1;
    infer(&shape, x, y, &mean, &var, 1e-3);
    printf("%-46s %7.3f %9.3f\n", "inference mode", (double)mean, (double)var);

    training("training, running statistics not given", (bnorm_running){0});
    training("training, Keras momentum 1", bnorm_running_keras(&mean, &var, 1));
    training("training, PyTorch momentum 0", bnorm_running_pytorch(&mean, &var, 0));
    shape.n = 0;
    training("training, Keras momentum 0.99, no samples", bnorm_running_keras(&mean, &var, 0.99));
    shape.n = 4;
    training("training, Keras momentum 0.99", bnorm_running_keras(&mean, &var, 0.99));
    training("training, Keras momentum 0.9", bnorm_running_keras(&mean, &var, 0.9));
    training("training, Keras momentum 0", bnorm_running_keras(&mean, &var, 0));
    return 0;
}
