/* SPDX-License-Identifier: MIT
 *
 * Tensors as other libraries describe them: PyTorch's (N, C, H, W), which may lie in memory with
 * channels first or last. Where x is a slice of a wider tensor it is read where it lies; where two
 * tensors do not go together, bnorm_describe names the one to copy. */
#include <bnorm.h>
#include <stdint.h>
#include <stdio.h>

enum { N = 2, C = 3, H = 4, W = 5, COUNT = N * C * H * W };

static const int64_t sizes[] = {N, C, H, W};

/* Inference with ReLU, for (N, C, H, W) tensors with strides in elements. */
static bnorm_status relu(float *x, const int64_t *x_strides, float *y, const int64_t *y_strides) {
    static const float scale[C] = {1, 2, 3};
    const bnorm_affine affine = {.scale = scale, .act = {.kind = BNORM_ACT_RELU}};
    const bnorm_axes axes = {.ndim = 4, .sizes = sizes, .channel_axis = 1};
    bnorm_ndarray t[] = {{.data = x, .strides = x_strides}, {.data = y, .strides = y_strides}};
    bnorm_shape shape;
    size_t array = 0, axis = 0;
    bnorm_status status = bnorm_describe(&axes, t, 2, &shape, &array, &axis);
    if (status == BNORM_OK)
        status = bnorm_apply(&shape, t[0].in, t[1].out, &affine, NULL);

    if (status == BNORM_OK)
        printf("%s, %zu images of %zu positions\n",
               shape.layout == BNORM_NHWC ? "channels last" : "channels first", shape.n, shape.hw);
    else
        printf("axis %zu of tensor %zu: %s\n", axis, array, bnorm_strerror(status));
    return status;
}

int main(void) {
    static float x[2 * COUNT], y[COUNT];
    for (int i = 0; i < 2 * COUNT; i++)
        x[i] = (float)(i % 11 - 3);
    const int64_t first[] = {C * H * W, H * W, W, 1};
    const int64_t last[] = {C * H * W, 1, W * C, C};            /* torch.channels_last */
    const int64_t columns[] = {C * H * 2 * W, 1, 2 * W * C, C}; /* the left half of a wider x */

    const int good = relu(x, first, y, first) == BNORM_OK && relu(x, last, y, last) == BNORM_OK &&
                     relu(x, columns, y, last) == BNORM_OK && y[COUNT - 1] == 3 &&
                     relu(x, first, y, last) == BNORM_BAD_STRIDE;
    return !good;
}
