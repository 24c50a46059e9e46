/* SPDX-License-Identifier: MIT
 *
 * A training step in bfloat16, channels last: batch norm, residual and ReLU in one call. Forward
 * leaves one bit per element for backward, so that y may overwrite the residual and neither has to
 * be kept. Parameters, statistics and the parameters' gradients are floats. */
#include <bnorm.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>

enum { N = 4, C = 3, HW = 14 * 14, COUNT = N * C * HW };

static uint16_t x[COUNT], residual_then_y[COUNT], dy[COUNT], dx[COUNT];
static unsigned char mask[(COUNT + 7) / 8]; /* bnorm_mask_size() bytes */

/* A bfloat16 is the upper half of a float; these numbers have no bits in the lower one. */
static uint16_t bf16_of(int sixty_fourths) {
    const float v = (float)sixty_fourths / 64;
    uint32_t bits;
    memcpy(&bits, &v, sizeof bits);
    return (uint16_t)(bits >> 16);
}

static int dy_at(int i) {
    return i * 53 % 241 - 120;
}

int main(void) {
    for (int i = 0; i < COUNT; i++) {
        x[i] = bf16_of(i * 37 % 255 - 127);
        residual_then_y[i] = bf16_of(i * 91 % 251 - 125);
        dy[i] = bf16_of(dy_at(i));
    }

    const bnorm_shape shape = {.layout = BNORM_NHWC, .dtype = BNORM_BF16, .n = N, .c = C, .hw = HW};
    static char ws[1 << 16]; /* bnorm_workspace() bytes; the functions say if that is too little */
    const float gamma[C] = {1, 2, 0.5f}, beta[C] = {0, 1, -1};
    float mean[C], invstd[C], dgamma[C], dbeta[C];
    const bnorm_in in = {.data = x}, gradient = {.data = dy};
    const bnorm_out y = {.data = residual_then_y}, out = {.data = dx};
    const bnorm_train train = {.gamma = gamma,
                               .beta = beta,
                               .eps = 1e-5,
                               .save_mean = mean,
                               .save_invstd = invstd,
                               .residual = {.data = residual_then_y},
                               .act = {BNORM_ACT_RELU, 0, 0},
                               .mask = mask};
    bnorm_status status = bnorm_forward_train(&shape, in, y, &train, ws, sizeof ws, NULL);

    const bnorm_grad grad = {.gamma = gamma,
                             .save_mean = mean,
                             .save_invstd = invstd,
                             .act = train.act,
                             .mask = mask,
                             .dresidual = {.data = dy}, /* in place */
                             .dgamma = dgamma,
                             .dbeta = dbeta};
    if (status == BNORM_OK)
        status = bnorm_backward(&shape, in, gradient, out, &grad, ws, sizeof ws, NULL);
    puts(bnorm_strerror(status));

    /* Any program can read the mask: dbeta is the sum of dy where its bit is set. */
    int wrong = status != BNORM_OK;
    for (int c = 0; !wrong && c < C; c++) {
        int sum = 0;
        for (int e = c; e < COUNT; e += C)
            sum += mask[e / 8] >> e % 8 & 1 ? dy_at(e) : 0;
        printf("channel %d: dgamma %.6f, dbeta %.6f\n", c, (double)dgamma[c], (double)dbeta[c]);
        wrong = dbeta[c] * 64 != (float)sum;
    }
    printf("a tensor: %zu bytes; the mask: %zu\n", sizeof x, sizeof mask);
    return wrong;
}
