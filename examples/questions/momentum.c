/* SPDX-License-Identifier: MIT
 *
 * Is momentum 0.1 or 0.9? Both, by framework: the weight of the new value or of the old one. And
 * the running variance is the population's or the sample's. */
#include "question.h"

static void show(const char *preset, bnorm_running running) {
    static const float x[6] = {5, 7, 9, 11, 13, 15};
    static const bnorm_shape shape = {.n = 6, .c = 1, .hw = 1};
    float y[6];
    *running.mean = 0;
    *running.var = 0;
    train(&shape, x, y, &(bnorm_train){.eps = 1e-3, .running = running});
    printf("%-30s %8.3f %9.3f\n", preset, (double)*running.mean, (double)*running.var);
}

int main(void) {
    float mean, var;
    puts("after one step from 0: 5 7 9 11 13 15 have mean 10,");
    puts("population variance 11.667, sample variance 14");
    puts("");
    puts("                                   mean  variance");
    show("Keras, momentum 0.9", bnorm_running_keras(&mean, &var, 0.9));
    show("ONNX, momentum 0.9", bnorm_running_onnx(&mean, &var, 0.9));
    show("TensorFlow fused, momentum 0.9", bnorm_running_tensorflow(&mean, &var, 0.9));
    show("PyTorch, momentum 0.1", bnorm_running_pytorch(&mean, &var, 0.1));
    puts("the wrong way round:");
    show("Keras, momentum 0.1", bnorm_running_keras(&mean, &var, 0.1));
    show("PyTorch, momentum 0.9", bnorm_running_pytorch(&mean, &var, 0.9));
    puts("the first step of:");
    show("PyTorch, momentum None", bnorm_running_pytorch_cumulative(&mean, &var, 1));
    show("Caffe, fraction 0.999", bnorm_running_caffe(&mean, &var, 0.999, 1));
    return 0;
}
