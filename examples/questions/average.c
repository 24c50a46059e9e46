/* SPDX-License-Identifier: MIT
 *
 * Statistics over many batches: a plain average of theirs, an update with statistics that come from
 * elsewhere, and the exact statistics of all samples. */
#include "question.h"

enum { BATCHES = 3, MOST = 4 };

static const float data[BATCHES][MOST] = {{1, 3, 5, 7}, {2, 4}, {10, 20, 30}};
static const size_t samples[BATCHES] = {4, 2, 3};

int main(void) {
    float mean = 0, var = 1, given_mean = 0, given_var = 1;
    double nodes[64], count, all_mean, all_m2;
    bnorm_partial all = {.op = BNORM_OP_MOMENTS, .c = 1, .nodes = nodes, .size = sizeof nodes};

    for (size_t i = 0; i < BATCHES; i++) {
        const bnorm_shape shape = {.n = samples[i], .c = 1, .hw = 1};
        const bnorm_in in = {.data = data[i]};
        const bnorm_running average = bnorm_running_pytorch_cumulative(&mean, &var, i + 1);
        const bnorm_running given = bnorm_running_keras(&given_mean, &given_var, 0.9);
        float y[MOST], batch_mean, batch_var;
        train(&shape, data[i], y, &(bnorm_train){.eps = 1e-5, .running = average});
        ok(bnorm_moments(&shape, in, &batch_mean, &batch_var, workspace, sizeof workspace, NULL));
        ok(bnorm_running_update(1, &batch_mean, &batch_var, (double)samples[i], &given));
        ok(bnorm_partial_collect(&shape, in, &all, workspace, sizeof workspace, NULL));
        print("batch: mean, variance        ", (float[]){batch_mean, batch_var}, 2);
    }

    ok(bnorm_partial_total(&all, &count, &all_mean, &all_m2));
    puts("");
    print("average of batches           ", (float[]){mean, var}, 2);
    print("updates with given statistics", (float[]){given_mean, given_var}, 2);
    print("all samples                  ", (float[]){(float)all_mean, (float)(all_m2 / count)}, 2);
    return 0;
}
