/* SPDX-License-Identifier: MIT
 *
 * Ghost (virtual) batches: one call, but every group of samples has its own statistics. */
#include "question.h"

enum { N = 6, GROUPS = 2 };

static const float x[N] = {1, 2, 3, 11, 12, 16};

static void show(const char *what, bnorm_ghost_order order, bnorm_ghost_running average) {
    const bnorm_shape shape = {.n = N, .c = 1, .hw = 1};
    const bnorm_ghost ghost = {.groups = GROUPS, .order = order, .running = average};
    const bnorm_in in = {.data = x};
    float y[N], means[GROUPS], mean = 0, var = 0;
    const bnorm_out out = {.data = y};
    const bnorm_train options = {
        .eps = 1e-3, .running = bnorm_running_keras(&mean, &var, 0.9), .save_mean = means};
    ok(bnorm_forward_train_ghost(&shape, in, out, &options, &ghost, workspace, sizeof workspace,
                                 NULL));
    printf("\n%s\n", what);
    print("  means of groups", means, GROUPS);
    print("  y              ", y, N);
    print("  running        ", (float[]){mean, var}, 2);
}

int main(void) {
    print("x                ", x, N);
    show("contiguous, one update with the averages", BNORM_GHOST_CONTIGUOUS, BNORM_GHOST_AVERAGE);
    show("contiguous, one update per group", BNORM_GHOST_CONTIGUOUS, BNORM_GHOST_SUCCESSIVE);
    show("interleaved, one update with the averages", BNORM_GHOST_INTERLEAVED, BNORM_GHOST_AVERAGE);
    return 0;
}
