/* SPDX-License-Identifier: MIT
 *
 * Why do training mode and inference mode give different results for the same input? They use
 * different statistics: those of the batch, and those that training has collected so far. */
#include "question.h"

int main(void) {
    /* Two samples of one feature, and the defaults of Keras. */
    const bnorm_shape shape = {.n = 2, .c = 1, .hw = 1};
    const float x[2] = {3, 4};
    float y[2], moving_mean = 0, moving_var = 1;
    const bnorm_train options = {
        .eps = 1e-3,
        .running = bnorm_running_keras(&moving_mean, &moving_var, 0.99),
    };

    print("x             ", x, 2);
    train(&shape, x, y, &(bnorm_train){.eps = options.eps}); /* moving statistics stay */
    print("training mode ", y, 2);

    puts("\nsteps  moving mean  moving variance   inference mode");
    for (int step = 0; step <= 1000; step++) {
        if (step)
            train(&shape, x, y, &options);
        if (step == 0 || step == 1 || step == 10 || step == 100 || step == 1000) {
            infer(&shape, x, y, &moving_mean, &moving_var, options.eps);
            printf("%5d  %11.3f  %15.3f  ", step, (double)moving_mean, (double)moving_var);
            print("", y, 2);
        }
    }
    return 0;
}
