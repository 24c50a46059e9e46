/* SPDX-License-Identifier: MIT
 *
 * Instance norm: every sample has statistics of its own, so it is ghost batches of one sample. */
#include "question.h"

enum { N = 2, C = 2, HW = 3 };

int main(void) {
    const float x[N * C * HW] = {1, 2, 3, 10, 20, 30, 4, 4, 7, 0, 0, 3}; /* (N, C, H, W) */
    const float gamma[C] = {1, 2}, beta[C] = {0, 10};
    float y[N * C * HW], mean[N * C];
    const bnorm_shape shape = {.layout = BNORM_NCHW, .n = N, .c = C, .hw = HW};
    const bnorm_ghost each_sample = {.groups = N};
    const bnorm_train options = {.gamma = gamma, .beta = beta, .eps = 1e-5, .save_mean = mean};
    const bnorm_in in = {.data = x};
    const bnorm_out out = {.data = y};
    ok(bnorm_forward_train_ghost(&shape, in, out, &options, &each_sample, workspace,
                                 sizeof workspace, NULL));
    print("means", mean, N * C);
    for (int i = 0; i < N; i++)
        print("y    ", y + i * C * HW, C * HW);
    return 0;
}
