/* SPDX-License-Identifier: MIT
 *
 * What does a batch of one do? What counts is how many values a channel has: the samples, times the
 * positions of each. */
#include "question.h"

/* Four values per line: as samples, or as positions of one sample. */
static void show(const char *what, size_t n, size_t hw, const float *x) {
    const bnorm_shape shape = {.layout = BNORM_NCHW, .n = n, .c = 1, .hw = hw};
    float y[4], dx[4], mean, invstd, running_mean = 5, running_var = 4;
    const float dy[4] = {1, 0, 0, 0};
    const bnorm_in x_in = {.data = x}, dy_in = {.data = dy};
    const bnorm_out dx_out = {.data = dx};

    printf("\n%s\n", what);
    print("  x             ", x, n * hw);
    infer(&shape, x, y, &running_mean, &running_var, 1e-5);
    print("  inference mode", y, n * hw);
    train(&shape, x, y,
          &(bnorm_train){.eps = 1e-5,
                         .running = bnorm_running_pytorch(&running_mean, &running_var, 0.1),
                         .save_mean = &mean,
                         .save_invstd = &invstd});
    print("  training mode ", y, n * hw);
    const bnorm_grad grad = {.save_mean = &mean, .save_invstd = &invstd};
    ok(bnorm_backward(&shape, x_in, dy_in, dx_out, &grad, workspace, sizeof workspace, NULL));
    print("  dx of dy 1 0..", dx, n * hw);
    print("  running       ", (float[]){running_mean, running_var}, 2);
}

int main(void) {
    puts("running mean 5 and variance 4, gamma 1, beta 0");
    show("one sample of one value: training mode gives beta, and no gradient", 1, 1, (float[]){9});
    show("two samples: training mode gives -1 and 1, whatever they are", 2, 1, (float[]){9, 9.5f});
    show("one image of 2x2 pixels: normalised by its own pixels", 1, 4, (float[]){9, 5, 6, 4});
    show("four samples", 4, 1, (float[]){9, 5, 6, 4});
    return 0;
}
