/* SPDX-License-Identifier: MIT
 *
 * Group norm: the statistics of a group of neighbouring channels of one sample; layer norm over
 * (C, H, W) is one group. Channels first, a group is one run of memory, that is a channel of another
 * shape. Channels last, the moments of each channel are merged. */
#include "question.h"

enum { N = 2, C = 4, HW = 3, GROUPS = 2, PER_GROUP = C / GROUPS };

static const float gamma[C] = {1, 2, 1, 1}, beta[C] = {0, 10, 0, 0};
static const double eps = 1e-5;

/* y of all samples from the mean and variance of every group: N*GROUPS. */
static void apply(bnorm_layout layout, const float *x, const float *mean, const float *var,
                  float *y) {
    float center[N * C], scale[N * C], variance[N * C], gammas[N * C], shift[N * C];
    for (int i = 0; i < N * C; i++) {
        center[i] = mean[i / PER_GROUP];
        variance[i] = var[i / PER_GROUP];
        gammas[i] = gamma[i % C];
        shift[i] = beta[i % C];
    }
    ok(bnorm_fold(N * C, gammas, NULL, NULL, variance, eps, scale, NULL));
    const int at_once = layout == BNORM_NCHW ? N : 1; /* channels last, sample by sample */
    for (int i = 0; i < N; i += at_once) {
        const bnorm_shape shape = {.layout = layout, .n = 1, .c = (size_t)at_once * C, .hw = HW};
        const bnorm_in in = {.data = x + i * C * HW};
        const bnorm_out out = {.data = y + i * C * HW};
        const bnorm_affine affine = {
            .center = center + i * C, .scale = scale + i * C, .shift = shift + i * C};
        ok(bnorm_apply(&shape, in, out, &affine, NULL));
    }
}

static void channels_first(const float *x, float *mean, float *var) {
    const bnorm_shape groups = {
        .layout = BNORM_NCHW, .n = 1, .c = N * GROUPS, .hw = PER_GROUP * HW};
    ok(bnorm_moments(&groups, (bnorm_in){.data = x}, mean, var, workspace, sizeof workspace, NULL));
}

static void channels_last(const float *x, float *mean, float *var) {
    for (int i = 0; i < N; i++) {
        const bnorm_shape sample = {.layout = BNORM_NHWC, .n = 1, .c = C, .hw = HW};
        double nodes[2 * 2 * C], means[C], m2[C];
        bnorm_partial piece = {.c = C, .nodes = nodes, .size = sizeof nodes};
        ok(bnorm_partial_collect(&sample, (bnorm_in){.data = x + i * C * HW}, &piece, workspace,
                                 sizeof workspace, NULL));
        ok(bnorm_partial_total(&piece, NULL, means,
                               m2)); /* means, and sums of squared deviations */
        for (int g = 0; g < GROUPS; g++) {
            double all = 0, squares = 0;
            for (int k = g * PER_GROUP; k < (g + 1) * PER_GROUP; k++)
                all += means[k] / PER_GROUP;
            for (int k = g * PER_GROUP; k < (g + 1) * PER_GROUP; k++)
                squares += m2[k] + HW * (means[k] - all) * (means[k] - all);
            mean[i * GROUPS + g] = (float)all;
            var[i * GROUPS + g] = (float)(squares / (PER_GROUP * HW));
        }
    }
}

int main(void) {
    float first[N * C * HW], last[N * C * HW], y[N * C * HW], mean[N * GROUPS], var[N * GROUPS];
    fill(first, N * C * HW, 5, 2);
    for (int n = 0; n < N; n++)
        for (int c = 0; c < C; c++)
            for (int p = 0; p < HW; p++)
                last[(n * HW + p) * C + c] = first[(n * C + c) * HW + p];

    channels_first(first, mean, var);
    apply(BNORM_NCHW, first, mean, var, y);
    print("channels first: means    ", mean, N * GROUPS);
    print("                variances", var, N * GROUPS);
    print("  y, sample 0, channel 1 ", y + HW, HW);

    channels_last(last, mean, var);
    apply(BNORM_NHWC, last, mean, var, y);
    print("channels last:  means    ", mean, N * GROUPS);
    print("                variances", var, N * GROUPS);
    print("  y, sample 0, channel 1 ", (float[]){y[1], y[C + 1], y[2 * C + 1]}, HW);
    return 0;
}
