/* SPDX-License-Identifier: MIT
 *
 * What is frozen when fine-tuning? Forward with batch statistics and with frozen ones, and the
 * gradient that each lets through to the layers before. */
#include "question.h"

int main(void) {
    /* The layer was trained on data of mean 0 and variance 1; the new data is elsewhere. */
    const bnorm_shape shape = {.n = 4, .c = 1, .hw = 1};
    const float x[4] = {5, 6, 8, 9}, dy[4] = {1, 0, 0, 0};
    const float gamma = 2, beta = 0.5f;
    const double eps = 1e-5;
    float y[4], dx[4], mean, invstd, unused, dgamma, dbeta, running_mean = 0, running_var = 1;
    const bnorm_in x_in = {.data = x}, dy_in = {.data = dy};
    const bnorm_out y_out = {.data = y}, dx_out = {.data = dx};
    print("x           ", x, 4);
    print("dy          ", dy, 4);

    train(&shape, x, y,
          &(bnorm_train){.gamma = &gamma,
                         .beta = &beta,
                         .eps = eps,
                         .running = bnorm_running_pytorch(&running_mean, &running_var, 0.1),
                         .save_mean = &mean,
                         .save_invstd = &invstd});
    bnorm_grad grad = {.gamma = &gamma,
                       .save_mean = &mean,
                       .save_invstd = &invstd,
                       .dgamma = &dgamma,
                       .dbeta = &dbeta};
    ok(bnorm_backward(&shape, x_in, dy_in, dx_out, &grad, workspace, sizeof workspace, NULL));
    puts("\nnot frozen: batch statistics");
    print("y           ", y, 4);
    print("dx          ", dx, 4);
    print("dgamma dbeta", (float[]){dgamma, dbeta}, 2);
    print("running     ", (float[]){running_mean, running_var}, 2);

    running_mean = 0;
    running_var = 1;
    /* With gamma NULL the scale is 1/sqrt(var + eps), as backward wants it. */
    ok(bnorm_fold(1, NULL, NULL, &running_mean, &running_var, eps, &invstd, &unused));
    const float scale = gamma * invstd;
    const bnorm_affine affine = {.center = &running_mean, .scale = &scale, .shift = &beta};
    ok(bnorm_apply(&shape, x_in, y_out, &affine, NULL));
    grad.save_mean = &running_mean;
    grad.frozen = 1;
    ok(bnorm_backward(&shape, x_in, dy_in, dx_out, &grad, workspace, sizeof workspace, NULL));
    puts("\nfrozen statistics");
    print("y           ", y, 4);
    print("dx          ", dx, 4);
    print("dgamma dbeta", (float[]){dgamma, dbeta}, 2);
    print("running     ", (float[]){running_mean, running_var}, 2);
    return 0;
}
