/* SPDX-License-Identifier: MIT
 *
 * A batch that is larger than memory: it goes by twice in pieces, once for the statistics and once
 * for y, and once more each for the sums and for dx. The bits are those of one call. */
#include "question.h"
#include <string.h>

enum { IMAGES = 12, AT_ONCE = 5, C = 4, HW = 64, COUNT = IMAGES * C * HW };

/* Stand for files: x and dy are read from them in pieces, y and dx written. */
static float x_file[COUNT], dy_file[COUNT], y_file[COUNT], dx_file[COUNT];
static float expected[COUNT];

/* The next piece: shape.n images from number first on; 0 when there are no more. */
static int next(size_t *first, bnorm_shape *shape) {
    *first += shape->n;
    shape->n = IMAGES - *first < AT_ONCE ? IMAGES - *first : AT_ONCE;
    return shape->n != 0;
}

int main(void) {
    static float x[AT_ONCE * C * HW], dy[AT_ONCE * C * HW]; /* all the memory there is */
    fill(x_file, COUNT, 100, 3);
    fill(dy_file, COUNT, 0, 1);

    float mean[C], mean_lo[C], invstd[C], dgamma[C], coefficients[4 * C];
    const bnorm_train options = {
        .eps = 1e-5, .save_mean = mean, .save_mean_lo = mean_lo, .save_invstd = invstd};
    const bnorm_grad grad = {
        .save_mean = mean, .save_mean_lo = mean_lo, .save_invstd = invstd, .dgamma = dgamma};
    const bnorm_in x_in = {.data = x}, dy_in = {.data = dy};
    const bnorm_out x_out = {.data = x}, dy_out = {.data = dy};
    bnorm_shape shape = {.layout = BNORM_NCHW, .c = C, .hw = HW};
    double nodes[256]; /* bnorm_partial_size() bytes; the functions say if that is too little */
    const size_t image = C * HW * sizeof *x;

    bnorm_partial piece = {.op = BNORM_OP_MOMENTS, .c = C, .nodes = nodes, .size = sizeof nodes};
    for (size_t first = shape.n = 0; next(&first, &shape);) {
        memcpy(x, x_file + first * C * HW, shape.n * image);
        ok(bnorm_partial_collect(&shape, x_in, &piece, workspace, sizeof workspace, NULL));
        printf("statistics of images %zu to %zu\n", first, first + shape.n - 1);
    }
    ok(bnorm_partial_finish(&piece, &options, coefficients));
    const bnorm_affine affine = {
        .center = coefficients, .scale = coefficients + C, .shift = coefficients + 2 * C};
    for (size_t first = shape.n = 0; next(&first, &shape);) {
        memcpy(x, x_file + first * C * HW, shape.n * image);
        ok(bnorm_apply(&shape, x_in, x_out, &affine, NULL));
        memcpy(y_file + first * C * HW, x, shape.n * image);
    }

    piece = (bnorm_partial){.op = BNORM_OP_BACKWARD, .c = C, .nodes = nodes, .size = sizeof nodes};
    for (size_t first = shape.n = 0; next(&first, &shape);) {
        memcpy(x, x_file + first * C * HW, shape.n * image);
        memcpy(dy, dy_file + first * C * HW, shape.n * image);
        ok(bnorm_partial_collect_grad(&shape, x_in, dy_in, &grad, &piece, workspace,
                                      sizeof workspace, NULL));
    }
    ok(bnorm_partial_finish_grad(&piece, &grad, coefficients));
    for (size_t first = shape.n = 0; next(&first, &shape);) {
        memcpy(x, x_file + first * C * HW, shape.n * image);
        memcpy(dy, dy_file + first * C * HW, shape.n * image);
        ok(bnorm_partial_apply_grad(&shape, x_in, dy_in, dy_out, &grad, coefficients, NULL));
        memcpy(dx_file + first * C * HW, dy, shape.n * image);
    }
    print("mean  ", mean, C);
    print("dgamma", dgamma, C);

    shape.n = IMAGES;
    train(&shape, x_file, expected, &options);
    printf("y  has the bits of one call: %s\n",
           memcmp(y_file, expected, sizeof expected) ? "no" : "yes");
    const bnorm_in all_x = {.data = x_file}, all_dy = {.data = dy_file};
    const bnorm_out all_dx = {.data = expected};
    ok(bnorm_backward(&shape, all_x, all_dy, all_dx, &grad, workspace, sizeof workspace, NULL));
    printf("dx has the bits of one call: %s\n",
           memcmp(dx_file, expected, sizeof expected) ? "no" : "yes");
    return 0;
}
