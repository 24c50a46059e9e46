/* SPDX-License-Identifier: MIT */
#include <bnorm.h>
#include <stdio.h>

int main(void) {
    /* Two pixels of three channels: batch norm with stored statistics, then ReLU, in place. */
    float x[] = {5, 10, -1, 3, 20, 5}, scale[3], shift[3];
    const float gamma[] = {1, 2, 1}, beta[] = {0, 1, 0}, mean[] = {4, 15, 2}, var[] = {4, 25, 9};
    bnorm_fold(3, gamma, beta, mean, var, 1e-5, scale, shift);
    const bnorm_shape shape = {.layout = BNORM_NHWC, .n = 1, .c = 3, .hw = 2};
    const bnorm_affine affine = {.scale = scale, .shift = shift, .act = {.kind = BNORM_ACT_RELU}};
    const bnorm_in in = {.data = x};
    const bnorm_out out = {.data = x};
    const bnorm_status status = bnorm_apply(&shape, in, out, &affine, NULL);
    printf("%.2f %.2f %.2f, %.2f %.2f %.2f: ", x[0], x[1], x[2], x[3], x[4], x[5]);
    puts(bnorm_strerror(status));
    return status != BNORM_OK;
}
