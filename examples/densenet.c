/* SPDX-License-Identifier: MIT
 *
 * A small DenseNet, as an engine would run it: inference and training steps on threads. Every layer
 * normalizes all channels that there are so far and appends GROWTH new ones:
 *
 *   image, conv, LAYERS times (BN, ReLU, conv), BN, ReLU, average of all pixels, linear layer
 *
 * Batch norm stands before the convolution here, with ReLU between, so that it cannot be folded.
 * Features are one NHWC tensor, and what a layer reads and appends are channel slices of it: bnorm
 * reads them where they lie, and nothing is ever concatenated. Memory is allocated once.
 *
 * It learns which way stripes run, and checks itself: gradients against finite differences, the
 * bits of one thread against those of several, stored statistics on images it has not seen. */
#include <bnorm.h>
#include <math.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { N = 16, SIDE = 8, HW = SIDE * SIDE, COLORS = 3, CLASSES = 4, STEPS = 50, THREADS = 4 };
enum { STEM = 16, GROWTH = 8, LAYERS = 4, CHANNELS = STEM + LAYERS * GROWTH, NORMS = LAYERS + 1 };
static const double eps = 1e-5;
static const bnorm_act relu = {BNORM_ACT_RELU, 0, 0};

/* Weights are (3, 3, in, out). Nothing but floats, so that a step is one loop. */
struct parameters {
    float stem[9 * COLORS * STEM], conv[LAYERS][9 * CHANNELS * GROWTH];
    float gamma[NORMS][CHANNELS], beta[NORMS][CHANNELS];
    float linear[CHANNELS * CLASSES];
};

struct net {
    bnorm_exec exec;
    struct parameters p, d; /* d: the gradients */
    float running_mean[NORMS][CHANNELS], running_var[NORMS][CHANNELS];
    float scale[NORMS][CHANNELS], shift[NORMS][CHANNELS]; /* folded, for inference */
    float save_mean[NORMS][CHANNELS], save_mean_lo[NORMS][CHANNELS], save_invstd[NORMS][CHANNELS];
    float features[N * HW * CHANNELS], dfeatures[N * HW * CHANNELS];
    float y[NORMS][N * HW * CHANNELS];                  /* after BN and ReLU, dense */
    float dy[N * HW * CHANNELS], dx[N * HW * CHANNELS]; /* of the layer that backward is at */
    float pooled[N * CHANNELS], dpooled[N * CHANNELS], dlogits[N * CLASSES];
    size_t workspace_size;
    char workspace[];
};

static float images[N * HW * COLORS];
static int labels[N];

static void check(int ok, const char *message) {
    if (!ok) {
        fprintf(stderr, "densenet: %s\n", message);
        exit(1);
    }
}

static void check_status(bnorm_status status) {
    check(status == BNORM_OK, bnorm_strerror(status));
}

/* The engine's threads, for batch norm and for convolutions. */
static void parallel(void *threads, void (*task)(void *, size_t), void *arg, size_t count) {
    (void)threads;
#if defined(_OPENMP)
#pragma omp parallel for schedule(dynamic) num_threads(*(const int *)threads)
#endif
    for (size_t i = 0; i < count; i++)
        task(arg, i);
}

#if defined(_OPENMP)
static const char openmp[] = "";
#else
static const char openmp[] = " (built without OpenMP: both are 1)";
#endif

/* ---- Convolution: plain loops, each sum in one order whatever the threads -------------------- */

struct conv {
    size_t in, out;
    float *weights;
    const float *from; /* pixels of from_stride floats, and so on */
    size_t from_stride;
    float *to;
    size_t to_stride;
    int back; /* not 0: the gradient of the input from that of the output */
};

/* The pixel that tap k of 9 reads for pixel p, or -1 where that is beyond the image. */
static int source(int p, int k) {
    const int y = p % HW / SIDE + k / 3 - 1, x = p % SIDE + k % 3 - 1;
    return y < 0 || y >= SIDE || x < 0 || x >= SIDE ? -1 : p - p % HW + y * SIDE + x;
}

static void convolve_image(void *arg, size_t n) {
    const struct conv *conv = arg;
    for (int p = (int)n * HW; p < (int)(n + 1) * HW; p++) {
        float *to = conv->to + (size_t)p * conv->to_stride;
        memset(to, 0, (conv->back ? conv->in : conv->out) * sizeof *to);
        for (int k = 0; k < 9; k++) {
            const int at = source(p, conv->back ? 8 - k : k);
            if (at < 0)
                continue;
            const float *from = conv->from + (size_t)at * conv->from_stride;
            const float *w = conv->weights + (size_t)k * conv->in * conv->out;
            for (size_t i = 0; i < conv->in; i++, w += conv->out)
                for (size_t o = 0; o < conv->out; o++)
                    to[conv->back ? i : o] += w[o] * from[conv->back ? o : i];
        }
    }
}

/* The gradient of one tap's and input channel's weights; `to` is the gradient of the output. */
static void sum_weights_back(void *arg, size_t k_i) {
    const struct conv *conv = arg;
    float *dw = conv->weights + k_i * conv->out;
    memset(dw, 0, conv->out * sizeof *dw);
    for (int p = 0; p < N * HW; p++) {
        const int from = source(p, (int)(k_i / conv->in));
        const float *dy = conv->to + (size_t)p * conv->to_stride;
        for (size_t o = 0; from >= 0 && o < conv->out; o++)
            dw[o] += conv->from[(size_t)from * conv->from_stride + k_i % conv->in] * dy[o];
    }
}

static void convolve(const struct net *net, struct conv conv) {
    net->exec.parallel(net->exec.pool, convolve_image, &conv, N);
}

static void weights_back(const struct net *net, struct conv conv) {
    net->exec.parallel(net->exec.pool, sum_weights_back, &conv, 9 * conv.in);
}

/* ---- The network ----------------------------------------------------------------------------- */

/* What layer i reads: the channels that there are so far. */
static bnorm_shape shape_of(size_t i) {
    return (bnorm_shape){.layout = BNORM_NHWC, .n = N, .c = STEM + i * GROWTH, .hw = HW};
}

static bnorm_in slice(const float *features) {
    return (bnorm_in){.data = features, .run_stride = CHANNELS};
}

static void norm_train(struct net *net, size_t i) {
    const bnorm_shape shape = shape_of(i);
    const bnorm_train train = {
        .gamma = net->p.gamma[i],
        .beta = net->p.beta[i],
        .eps = eps,
        .running = bnorm_running_pytorch(net->running_mean[i], net->running_var[i], 0.1),
        .save_mean = net->save_mean[i],
        .save_mean_lo = net->save_mean_lo[i], /* backward finds ReLU's argument again from x */
        .save_invstd = net->save_invstd[i],
        .act = relu,
    };
    check_status(bnorm_forward_train(&shape, slice(net->features), BNORM_OUT(net->y[i]), &train,
                                     net->workspace, net->workspace_size, &net->exec));
}

static void norm_infer(struct net *net, size_t i) {
    const bnorm_shape shape = shape_of(i);
    const bnorm_affine affine = {.scale = net->scale[i], .shift = net->shift[i], .act = relu};
    check_status(
        bnorm_apply(&shape, slice(net->features), BNORM_OUT(net->y[0]), &affine, &net->exec));
}

static void norm_backward(struct net *net, size_t i, const float *dy, unsigned broadcast,
                          float *dx) {
    const bnorm_shape shape = shape_of(i);
    const bnorm_grad grad = {
        .gamma = net->p.gamma[i],
        .beta = net->p.beta[i],
        .save_mean = net->save_mean[i],
        .save_mean_lo = net->save_mean_lo[i],
        .save_invstd = net->save_invstd[i],
        .act = relu,
        .dgamma = net->d.gamma[i],
        .dbeta = net->d.beta[i],
        .dy_broadcast = broadcast,
    };
    check_status(bnorm_backward(&shape, slice(net->features), BNORM_IN(dy), BNORM_OUT(dx), &grad,
                                net->workspace, net->workspace_size, &net->exec));
}

/* Returns the loss; leaves the logits' gradients, and how many images it gets right. */
static double forward(struct net *net, int training, int *right) {
    const float *y = NULL;
    convolve(net,
             (struct conv){COLORS, STEM, net->p.stem, images, COLORS, net->features, CHANNELS, 0});
    for (size_t i = 0; i < NORMS; i++) {
        (training ? norm_train : norm_infer)(net, i);
        y = net->y[training ? i : 0];
        const size_t c = shape_of(i).c;
        if (i < LAYERS)
            convolve(net, (struct conv){c, GROWTH, net->p.conv[i], y, c, net->features + c,
                                        CHANNELS, 0});
    }
    double loss = 0;
    *right = 0;
    for (size_t n = 0; n < N; n++) {
        double exps[CLASSES], sum = 0;
        for (size_t c = 0; c < CHANNELS; c++) {
            net->pooled[n * CHANNELS + c] = 0;
            for (size_t p = n * HW; p < (n + 1) * HW; p++)
                net->pooled[n * CHANNELS + c] += y[p * CHANNELS + c] / HW;
        }
        for (size_t k = 0; k < CLASSES; k++) {
            double logit = 0;
            for (size_t c = 0; c < CHANNELS; c++)
                logit +=
                    (double)net->pooled[n * CHANNELS + c] * (double)net->p.linear[c * CLASSES + k];
            sum += exps[k] = exp(logit);
        }
        for (int k = 0; k < CLASSES; k++)
            net->dlogits[n * CLASSES + (size_t)k] = (float)((exps[k] / sum - (k == labels[n])) / N);
        loss -= log(exps[labels[n]] / sum) / N;
        *right += exps[labels[n]] > sum / 2;
    }
    return loss;
}

static void backward(struct net *net) {
    memset(&net->d, 0, sizeof net->d);
    memset(net->dpooled, 0, sizeof net->dpooled);
    for (size_t n = 0; n < N; n++)
        for (size_t c = 0; c < CHANNELS; c++)
            for (size_t k = 0; k < CLASSES; k++) {
                const float d = net->dlogits[n * CLASSES + k];
                net->d.linear[c * CLASSES + k] += net->pooled[n * CHANNELS + c] * d;
                net->dpooled[n * CHANNELS + c] += net->p.linear[c * CLASSES + k] * d / HW;
            }
    /* The average's gradient is the same for all pixels, and is not written out. */
    norm_backward(net, LAYERS, net->dpooled, BNORM_BROADCAST_HW, net->dfeatures);
    for (size_t i = LAYERS; i-- > 0;) {
        const size_t c = shape_of(i).c;
        float *dy = net->dfeatures + c;
        weights_back(net, (struct conv){c, GROWTH, net->d.conv[i], net->y[i], c, dy, CHANNELS, 1});
        convolve(net, (struct conv){c, GROWTH, net->p.conv[i], dy, CHANNELS, net->dy, c, 1});
        norm_backward(net, i, net->dy, 0, net->dx);
        /* What later layers did with these channels is there already. */
        for (size_t e = 0; e < N * HW * c; e++)
            net->dfeatures[e / c * CHANNELS + e % c] += net->dx[e];
    }
    float *dfirst = net->dfeatures;
    weights_back(net,
                 (struct conv){COLORS, STEM, net->d.stem, images, COLORS, dfirst, CHANNELS, 1});
}

/* ---- Training, inference, and whether both are right ----------------------------------------- */

static float uniform(uint32_t *random) {
    *random = *random * 1664525u + 1013904223u;
    return (float)(*random >> 8) * 0x1p-23f - 1;
}

/* Stripes that run in one of four directions, of random colours and phase, in noise. */
static void draw(uint32_t *random) {
    static const int directions[CLASSES][2] = {{1, 0}, {0, 1}, {1, 1}, {1, -1}};
    for (int n = 0; n < N; n++) {
        labels[n] = n % CLASSES;
        const int *direction = directions[labels[n]];
        const float phase = 4 * uniform(random), color = uniform(random);
        for (int p = 0; p < HW; p++) {
            const int at = p % SIDE * direction[0] + p / SIDE * direction[1];
            const float light = sinf((float)at * 1.6f + phase);
            for (int c = 0; c < COLORS; c++)
                images[(n * HW + p) * COLORS + c] =
                    (c == 0 ? color : 1 - color) * light + 0.3f * uniform(random);
        }
    }
}

static void fill(uint32_t *random, float *weights, size_t count, float most) {
    for (size_t i = 0; i < count; i++)
        weights[i] = most * uniform(random);
}

/* The same net for any number of threads, trained: *first and *last are losses. */
static struct net *train(int *threads, double *first, double *last) {
    const bnorm_shape largest = shape_of(LAYERS);
    const size_t forward_size = bnorm_workspace(BNORM_OP_FORWARD_TRAIN, &largest);
    const size_t backward_size = bnorm_workspace(BNORM_OP_BACKWARD, &largest);
    const size_t workspace_size = forward_size > backward_size ? forward_size : backward_size;
    struct net *net = calloc(1, sizeof *net + workspace_size);
    check(net != NULL, "out of memory");
    net->exec = (bnorm_exec){.parallel = parallel, .pool = threads, .threads = (size_t)*threads};
    net->workspace_size = workspace_size;
    uint32_t random = 1;
    fill(&random, net->p.stem, 9 * COLORS * STEM, 0.3f);
    fill(&random, net->p.linear, CHANNELS * CLASSES, 0.1f);
    for (size_t i = 0; i < NORMS; i++) {
        if (i < LAYERS)
            fill(&random, net->p.conv[i], 9 * CHANNELS * GROWTH, 0.1f);
        for (size_t c = 0; c < CHANNELS; c++)
            net->p.gamma[i][c] = net->running_var[i][c] = 1;
    }
    for (int step = 0, right; step < STEPS; step++) {
        draw(&random);
        *last = forward(net, 1, &right);
        if (step == 0)
            *first = *last;
        backward(net);
        float *p = (float *)&net->p, *d = (float *)&net->d;
        for (size_t i = 0; i < sizeof net->p / sizeof *p; i++)
            p[i] -= 0.2f * d[i];
    }
    return net;
}

/* Stored statistics, on images that training has not seen. */
static double infer(struct net *net, int *right) {
    uint32_t random = 3;
    draw(&random);
    for (size_t i = 0; i < NORMS; i++)
        check_status(bnorm_fold(shape_of(i).c, net->p.gamma[i], net->p.beta[i],
                                net->running_mean[i], net->running_var[i], eps, net->scale[i],
                                net->shift[i]));
    return forward(net, 0, right);
}

/* How far from finite differences, as a part of itself, the largest of these gradients is. */
static double error_of(struct net *net, float *parameters, const float *d, size_t count) {
    size_t most = 0;
    for (size_t i = 0; i < count; i++)
        most = fabsf(d[i]) > fabsf(d[most]) ? i : most;
    double loss[2];
    const float kept = parameters[most], h = 1.0f / 512;
    for (int i = 0, right; i < 2; i++) {
        parameters[most] = kept + (i == 0 ? h : -h);
        loss[i] = forward(net, 1, &right);
    }
    parameters[most] = kept;
    return fabs((loss[0] - loss[1]) / (2 * (double)h) / (double)d[most] - 1);
}

static double error_of_gradients(struct net *net) {
    int right;
    forward(net, 1, &right);
    backward(net);
    double error = error_of(net, net->p.linear, net->d.linear, CHANNELS * CLASSES);
    error = fmax(error, error_of(net, net->p.stem, net->d.stem, 9 * COLORS * STEM));
    for (size_t i = 0; i < NORMS; i++) {
        error = fmax(error, error_of(net, net->p.gamma[i], net->d.gamma[i], CHANNELS));
        error = fmax(error, error_of(net, net->p.beta[i], net->d.beta[i], CHANNELS));
        if (i < LAYERS)
            error =
                fmax(error, error_of(net, net->p.conv[i], net->d.conv[i], 9 * CHANNELS * GROWTH));
    }
    return error;
}

int main(void) {
    int one = 1, several = THREADS, right, right_shared;
    double first, last;
    struct net *shared = train(&several, &first, &last), *alone = train(&one, &first, &last);
    const double loss = infer(alone, &right);
    const int same = memcmp(&alone->p, &shared->p, sizeof alone->p) == 0 &&
                     fabs(infer(shared, &right_shared) - loss) == 0;
    const double error = error_of_gradients(alone);
    printf("%d layers, %d channels in the end, %zu bytes\n", LAYERS, CHANNELS,
           sizeof *alone + alone->workspace_size);
    printf("loss: %.3f at first, %.3f after %d steps\n", first, last, STEPS);
    printf("inference: loss %.3f, %d of %d new images right\n", loss, right, N);
    printf("gradients: within %.1f %% of finite differences\n", 100 * error);
    printf("1 and %d threads%s: %s\n", THREADS, openmp, same ? "the same bits" : "other bits");
    free(alone);
    free(shared);
    return !(same && last < first / 4 && right == N && error < 0.02);
}
