/* SPDX-License-Identifier: MIT
 *
 * Why is evaluation worse than training? A layer whose input has mean 5 and deviation 2 should give
 * mean 0 and deviation 1. Training mode does at once; inference mode does when the running
 * statistics have forgotten that they began at 0 and 1. */
#include "question.h"

enum { BATCH = 32, HELD_OUT = 1000 };

static float held_out[HELD_OUT], y[HELD_OUT];
static const bnorm_shape shape = {.n = BATCH, .c = 1, .hw = 1};
static const bnorm_shape held_out_shape = {.n = HELD_OUT, .c = 1, .hw = 1};

/* Mean and deviation of what inference mode makes of samples that training has not seen. */
static void print_inference(float running_mean, float running_var) {
    float mean, var;
    const bnorm_in in = {.data = y};
    infer(&held_out_shape, held_out, y, &running_mean, &running_var, 1e-5);
    ok(bnorm_moments(&held_out_shape, in, &mean, &var, workspace, sizeof workspace, NULL));
    printf("   %6.3f +- %5.3f", rounded((double)mean), sqrt((double)var));
}

int main(void) {
    float x[BATCH], mean[3] = {0, 0, 0}, var[3] = {1, 1, 1};
    const double rate[2] = {0.1, 0.01};
    fill(held_out, HELD_OUT, 5, 2);

    puts("held-out samples in inference mode: mean +- deviation");
    puts("steps        rate 0.1          rate 0.01       plain average");
    for (size_t step = 1; step <= 1000; step++) {
        fill(x, BATCH, 5, 2);
        for (int i = 0; i < 3; i++) {
            const bnorm_running running =
                i < 2 ? bnorm_running_pytorch(&mean[i], &var[i], rate[i])
                      : bnorm_running_pytorch_cumulative(&mean[i], &var[i], step);
            train(&shape, x, y, &(bnorm_train){.eps = 1e-5, .running = running});
        }
        if (step == 1 || step == 3 || step == 10 || step == 30 || step == 100 || step == 1000) {
            printf("%5zu", step);
            for (int i = 0; i < 3; i++)
                print_inference(mean[i], var[i]);
            putchar('\n');
        }
    }
    return 0;
}
