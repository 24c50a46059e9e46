/* SPDX-License-Identifier: MIT
 *
 * Per-activation mode (cuDNN), or axes (1, 2, 3): every position of every channel has statistics
 * and parameters of its own, over the samples alone. That is only another shape of the same tensor.
 */
#include "question.h"

enum { N = 3, C = 2, HW = 2 };

int main(void) {
    const float x[N * C * HW] = {0, 10, 20, 30, 1, 12, 20, 34, 2, 14, 20, 38}; /* (N, C, H, W) */
    const bnorm_shape per_channel = {.layout = BNORM_NCHW, .n = N, .c = C, .hw = HW};
    const bnorm_shape per_activation = {.layout = BNORM_NCHW, .n = N, .c = C * HW, .hw = 1};
    float y[N * C * HW], mean[C * HW];

    train(&per_channel, x, y, &(bnorm_train){.eps = 1e-5, .save_mean = mean});
    print("per channel:    means", mean, C);
    for (int i = 0; i < N; i++)
        print("                y    ", y + i * C * HW, C * HW);

    train(&per_activation, x, y, &(bnorm_train){.eps = 1e-5, .save_mean = mean});
    print("per activation: means", mean, C * HW);
    for (int i = 0; i < N; i++)
        print("                y    ", y + i * C * HW, C * HW);
    return 0;
}
