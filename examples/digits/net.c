/* SPDX-License-Identifier: MIT
 *
 * To give the same bits everywhere, every sum here has a fixed order and nothing comes from libm
 * but sqrt and ldexp, which are exact. What remains is the compiler: it must not turn a*b + c into
 * one fma. gcc does not with -std=c11; clang is told here. */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include "net.h"

#ifdef __clang__
#pragma STDC FP_CONTRACT OFF
#endif

#define EPS 1e-5

/* Input pixel `in` reaches output pixel `out` through kernel position `k`. */
typedef struct tap {
    unsigned char in, out, k;
} tap;

typedef struct layer {
    size_t in_channels, in_pixels, out_pixels;
    size_t taps, tap_begin[NET_KERNEL + 1]; /* taps of one kernel position lie together */
    tap tap[NET_KERNEL * NET_PIXELS];

    float weights[NET_MAX_WEIGHTS]; /* HWIO */
    float gamma[NET_CHANNELS], beta[NET_CHANNELS];
    float running_mean[NET_CHANNELS], running_var[NET_CHANNELS];

    /* forward keeps for backward */
    float conv[NET_MAX_TENSOR]; /* what the convolution wrote, batch norm's x */
    float out[NET_MAX_TENSOR];
    float save_mean[NET_CHANNELS], save_invstd[NET_CHANNELS];

    float dweights[NET_MAX_WEIGHTS], dgamma[NET_CHANNELS], dbeta[NET_CHANNELS];
    float vweights[NET_MAX_WEIGHTS], vgamma[NET_CHANNELS], vbeta[NET_CHANNELS]; /* SGD velocity */
} layer;

struct net {
    int batch_norm;
    double running_rate;
    const bnorm_exec *exec;
    const net_team *team; /* NULL = alone */
    void *workspace;
    size_t workspace_size;
    layer layers[NET_LAYERS];
    float linear[NET_CHANNELS * NET_CLASSES], bias[NET_CLASSES];
    float dlinear[NET_CHANNELS * NET_CLASSES], dbias[NET_CLASSES];
    float vlinear[NET_CHANNELS * NET_CLASSES], vbias[NET_CLASSES];
    float input[NET_MAX_BATCH * NET_PIXELS];
    float logits[NET_MAX_BATCH * NET_CLASSES];
    float dlogits[NET_MAX_BATCH * NET_CLASSES];
    float grad[2][NET_MAX_TENSOR]; /* of the loss by the tensor where backward has arrived */
};

static void check(bnorm_status status) {
    if (status != BNORM_OK) {
        fprintf(stderr, "digits: %s\n", bnorm_strerror(status));
        exit(EXIT_FAILURE);
    }
}

static void *check_memory(void *memory) {
    if (!memory) {
        fprintf(stderr, "digits: out of memory\n");
        exit(EXIT_FAILURE);
    }
    return memory;
}

/* ---------------------------------------------------------------------------------------------- */
/* Batch norm: everything that bnorm does for this program                                        */

static bnorm_shape shape_of(const layer *l, size_t count) {
    return (bnorm_shape){.layout = BNORM_NHWC, .n = count, .c = NET_CHANNELS, .hw = l->out_pixels};
}

static void *workspace(net *n, bnorm_op op, const bnorm_shape *shape) {
    const size_t size = bnorm_workspace(op, shape);
    if (size > n->workspace_size) {
        free(n->workspace);
        n->workspace = check_memory(malloc(size));
        n->workspace_size = size;
    }
    return n->workspace;
}

/* A layer without batch norm is one whose statistics are mean 0 and variance 1 for ever, so that
 * gamma*(x - 0)/1 + beta is x + bias. */
static double eps_of(const net *n) {
    return n->batch_norm ? EPS : 0;
}

static int uses_batch_stats(const net *n, net_stats stats) {
    return n->batch_norm && stats == NET_BATCH_STATS;
}

/* team NULL = alone. */
static void norm_forward(net *n, layer *l, size_t count, net_stats stats, int update_running,
                         const net_team *team) {
    const bnorm_shape shape = shape_of(l, count);
    const bnorm_in x = {.data = l->conv};
    const bnorm_out y = {.data = l->out};
    if (uses_batch_stats(n, stats)) {
        bnorm_train train = {.gamma = l->gamma,
                             .beta = l->beta,
                             .eps = EPS,
                             .save_mean = l->save_mean,
                             .save_invstd = l->save_invstd,
                             .act = {.kind = BNORM_ACT_RELU}};
        if (update_running)
            train.running = bnorm_running_pytorch(l->running_mean, l->running_var, n->running_rate);
        if (team) {
            team->forward_train(team->self, &shape, x, y, &train, n->exec);
        } else {
            void *ws = workspace(n, BNORM_OP_FORWARD_TRAIN, &shape);
            check(bnorm_forward_train(&shape, x, y, &train, ws, n->workspace_size, n->exec));
        }
    } else {
        float scale[NET_CHANNELS], shift[NET_CHANNELS];
        check(bnorm_fold(NET_CHANNELS, l->gamma, l->beta, l->running_mean, l->running_var,
                         eps_of(n), scale, shift));
        const bnorm_affine affine = {
            .scale = scale, .shift = shift, .act = {.kind = BNORM_ACT_RELU}};
        check(bnorm_apply(&shape, x, y, &affine, n->exec));
    }
}

/* Replaces grad, the gradient by the layer's output, with that by the convolution's. */
static void norm_backward(net *n, layer *l, size_t count, net_stats stats, float *grad) {
    const bnorm_shape shape = shape_of(l, count);
    bnorm_grad g = {.gamma = l->gamma,
                    .beta = l->beta,
                    .save_mean = l->save_mean,
                    .save_invstd = l->save_invstd,
                    .act = {.kind = BNORM_ACT_RELU},
                    .dgamma = l->dgamma,
                    .dbeta = l->dbeta};
    if (!uses_batch_stats(n, stats)) {
        /* Frozen statistics are constants: no gradient flows through them. gamma NULL makes the
         * fold's scale the inverse standard deviation. */
        float shift[NET_CHANNELS];
        check(bnorm_fold(NET_CHANNELS, NULL, NULL, l->running_mean, l->running_var, eps_of(n),
                         l->save_invstd, shift));
        g.save_mean = l->running_mean;
        g.frozen = 1;
        g.y.data = l->out; /* where ReLU was open */
    }
    const bnorm_in x = {.data = l->conv}, dy = {.data = grad};
    const bnorm_out dx = {.data = grad};
    if (n->team) {
        n->team->backward(n->team->self, &shape, x, dy, dx, &g, n->exec);
    } else {
        void *ws = workspace(n, BNORM_OP_BACKWARD, &shape);
        check(bnorm_backward(&shape, x, dy, dx, &g, ws, n->workspace_size, n->exec));
    }
}

void net_fold(net *n) {
    for (layer *l = n->layers; l < n->layers + NET_LAYERS; l++) {
        const bnorm_conv conv = {.layout = BNORM_CONV_HWIO,
                                 .out_channels = NET_CHANNELS,
                                 .in_channels = l->in_channels,
                                 .kernel = NET_KERNEL};
        check(bnorm_fold_conv(&conv, l->gamma, l->beta, l->running_mean, l->running_var, EPS,
                              l->weights, NULL, l->weights, l->beta));
        for (size_t c = 0; c < NET_CHANNELS; c++) {
            l->gamma[c] = 1;
            l->running_mean[c] = 0;
            l->running_var[c] = 1;
        }
    }
    n->batch_norm = 0;
}

/* ---------------------------------------------------------------------------------------------- */
/* Convolution 3x3 with padding 1, and the linear layer: plain C                                  */

static void init_taps(layer *l, int side, int stride) {
    const int out_side = side / stride;
    l->in_pixels = (size_t)(side * side);
    l->out_pixels = (size_t)(out_side * out_side);
    size_t taps = 0;
    for (int k = 0; k < NET_KERNEL; k++) {
        l->tap_begin[k] = taps;
        for (int y = 0; y < out_side; y++)
            for (int x = 0; x < out_side; x++) {
                const int in_y = y * stride + k / 3 - 1, in_x = x * stride + k % 3 - 1;
                if (in_y >= 0 && in_y < side && in_x >= 0 && in_x < side)
                    l->tap[taps++] = (tap){.in = (unsigned char)(in_y * side + in_x),
                                           .out = (unsigned char)(y * out_side + x),
                                           .k = (unsigned char)k};
            }
    }
    l->tap_begin[NET_KERNEL] = l->taps = taps;
}

/* out[j] += sum over i of in[i]*rows[i][j], in the order of i. Four rows at a time keep out[j] in a
 * register. */
static void add_product(size_t count, const float *restrict in, const float *restrict rows,
                        float *restrict out) {
    const size_t fours = count / 4 * 4;
    for (size_t i = 0; i < fours; i += 4) {
        const float *r = rows + i * NET_CHANNELS;
        for (size_t j = 0; j < NET_CHANNELS; j++)
            out[j] = out[j] + in[i] * r[j] + in[i + 1] * r[NET_CHANNELS + j] +
                     in[i + 2] * r[2 * NET_CHANNELS + j] + in[i + 3] * r[3 * NET_CHANNELS + j];
    }
    for (size_t i = fours; i < count; i++)
        for (size_t j = 0; j < NET_CHANNELS; j++)
            out[j] += in[i] * rows[i * NET_CHANNELS + j];
}

typedef struct conv_job {
    layer *l;
    size_t count;
    const float *in, *grad;
    float *din;
    float transposed[NET_MAX_WEIGHTS];
} conv_job;

static void conv_forward_image(void *arg, size_t image) {
    const conv_job *job = arg;
    layer *l = job->l;
    const float *in = job->in + image * l->in_pixels * l->in_channels;
    float *out = l->conv + image * l->out_pixels * NET_CHANNELS;
    memset(out, 0, l->out_pixels * NET_CHANNELS * sizeof(*out));
    for (const tap *t = l->tap; t < l->tap + l->taps; t++)
        add_product(l->in_channels, in + t->in * l->in_channels,
                    l->weights + t->k * l->in_channels * NET_CHANNELS, out + t->out * NET_CHANNELS);
}

static void conv_din_image(void *arg, size_t image) {
    const conv_job *job = arg;
    const layer *l = job->l;
    const float *grad = job->grad + image * l->out_pixels * NET_CHANNELS;
    float *din = job->din + image * l->in_pixels * NET_CHANNELS;
    memset(din, 0, l->in_pixels * NET_CHANNELS * sizeof(*din));
    for (const tap *t = l->tap; t < l->tap + l->taps; t++)
        add_product(NET_CHANNELS, grad + t->out * NET_CHANNELS,
                    job->transposed + t->k * NET_CHANNELS * NET_CHANNELS,
                    din + t->in * NET_CHANNELS);
}

/* Adds one kernel position over all images, in order, so that the sum does not depend on the
 * threads. */
static void conv_dweights_position(void *arg, size_t k) {
    const conv_job *job = arg;
    layer *l = job->l;
    const size_t channels = l->in_channels;
    float *dweights = l->dweights + k * channels * NET_CHANNELS;
    const size_t taps = l->tap_begin[k + 1] - l->tap_begin[k];
    const tap *t = l->tap + l->tap_begin[k];
    float column[NET_CHANNELS][NET_PIXELS], rows[NET_PIXELS][NET_CHANNELS];
    for (size_t image = 0; image < job->count; image++) {
        const float *in = job->in + image * l->in_pixels * channels;
        const float *grad = job->grad + image * l->out_pixels * NET_CHANNELS;
        for (size_t i = 0; i < taps; i++) {
            for (size_t c = 0; c < channels; c++)
                column[c][i] = in[t[i].in * channels + c];
            memcpy(rows[i], grad + t[i].out * NET_CHANNELS, sizeof(rows[i]));
        }
        for (size_t c = 0; c < channels; c++)
            add_product(taps, column[c], rows[0], dweights + c * NET_CHANNELS);
    }
}

static void run(const net *n, void (*task)(void *arg, size_t i), conv_job *job, size_t count) {
    if (n->exec->parallel)
        n->exec->parallel(n->exec->pool, task, job, count);
    else
        for (size_t i = 0; i < count; i++)
            task(job, i);
}

/* din NULL = not wanted */
static void conv_backward(net *n, layer *l, size_t count, const float *in, const float *grad,
                          float *din) {
    conv_job job = {.l = l, .count = count, .in = in, .grad = grad, .din = din};
    memset(l->dweights, 0, sizeof(l->dweights));
    if (n->team)
        /* Position by position: while the next process has one, this one has the next. */
        for (size_t k = 0; k < NET_KERNEL; k++) {
            const size_t size = l->in_channels * NET_CHANNELS;
            n->team->take(n->team->self, l->dweights + k * size, size);
            conv_dweights_position(&job, k);
            n->team->pass(n->team->self, l->dweights + k * size, size);
        }
    else
        run(n, conv_dweights_position, &job, NET_KERNEL);
    if (!din)
        return;
    for (size_t k = 0; k < NET_KERNEL; k++)
        for (size_t i = 0; i < NET_CHANNELS; i++)
            for (size_t o = 0; o < NET_CHANNELS; o++)
                job.transposed[(k * NET_CHANNELS + o) * NET_CHANNELS + i] =
                    l->weights[(k * NET_CHANNELS + i) * NET_CHANNELS + o];
    run(n, conv_din_image, &job, count);
}

static void linear_forward(net *n, size_t count) {
    const float *in = n->layers[NET_LAYERS - 1].out;
    for (size_t s = 0; s < count; s++)
        for (size_t k = 0; k < NET_CLASSES; k++) {
            float sum = n->bias[k];
            for (size_t c = 0; c < NET_CHANNELS; c++)
                sum += in[s * NET_CHANNELS + c] * n->linear[c * NET_CLASSES + k];
            n->logits[s * NET_CLASSES + k] = sum;
        }
}

static void linear_backward(net *n, size_t count, float *din) {
    const float *in = n->layers[NET_LAYERS - 1].out;
    const net_team *team = n->team;
    memset(n->dlinear, 0, sizeof(n->dlinear));
    memset(n->dbias, 0, sizeof(n->dbias));
    if (team) {
        team->take(team->self, n->dlinear, NET_CHANNELS * NET_CLASSES);
        team->take(team->self, n->dbias, NET_CLASSES);
    }
    for (size_t s = 0; s < count; s++) {
        const float *grad = n->dlogits + s * NET_CLASSES;
        for (size_t k = 0; k < NET_CLASSES; k++)
            n->dbias[k] += grad[k];
        for (size_t c = 0; c < NET_CHANNELS; c++) {
            float sum = 0;
            for (size_t k = 0; k < NET_CLASSES; k++) {
                sum += grad[k] * n->linear[c * NET_CLASSES + k];
                n->dlinear[c * NET_CLASSES + k] += in[s * NET_CHANNELS + c] * grad[k];
            }
            din[s * NET_CHANNELS + c] = sum;
        }
    }
    if (team) {
        team->pass(team->self, n->dlinear, NET_CHANNELS * NET_CLASSES);
        team->pass(team->self, n->dbias, NET_CLASSES);
    }
}

/* ---------------------------------------------------------------------------------------------- */
/* Loss: softmax and cross-entropy                                                                */

/* exp(x) for x <= 0 by its series: the libm of different systems differ in the last bit. */
static double exp_negative(double x) {
    if (!(x > -700))
        return 0;
    const double k = floor(x / 0.6931471805599453 + 0.5);
    const double r = x - k * 0.6931471805599453; /* |r| < 0.35 */
    double sum = 1;
    for (int i = 14; i > 0; i--)
        sum = 1 + r * sum / i;
    return ldexp(sum, (int)k);
}

/* The gradient of the mean loss by the logits: softmax minus the one-hot digit, over the number of
 * samples in the whole batch. */
static void loss_backward(net *n, const sample *const *batch, size_t count, size_t whole) {
    for (size_t s = 0; s < count; s++) {
        const float *logits = n->logits + s * NET_CLASSES;
        double max = logits[0], power[NET_CLASSES], sum = 0;
        for (size_t k = 1; k < NET_CLASSES; k++)
            max = logits[k] > max ? logits[k] : max;
        for (size_t k = 0; k < NET_CLASSES; k++)
            sum += power[k] = exp_negative(logits[k] - max);
        for (size_t k = 0; k < NET_CLASSES; k++) {
            const double target = (int)k == batch[s]->digit;
            n->dlogits[s * NET_CLASSES + k] = (float)((power[k] / sum - target) / (double)whole);
        }
    }
}

/* ---------------------------------------------------------------------------------------------- */
/* The network                                                                                    */

static void forward(net *n, const sample *const *batch, size_t count, net_stats stats, int train,
                    const net_team *team) {
    for (size_t s = 0; s < count; s++)
        memcpy(n->input + s * NET_PIXELS, batch[s]->pixels, sizeof(batch[s]->pixels));
    const float *in = n->input;
    for (layer *l = n->layers; l < n->layers + NET_LAYERS; l++) {
        conv_job job = {.l = l, .count = count, .in = in};
        run(n, conv_forward_image, &job, count);
        norm_forward(n, l, count, stats, train, team);
        in = l->out;
    }
    linear_forward(n, count);
}

const float *net_predict(net *n, const sample *const *batch, size_t count, net_stats stats) {
    forward(n, batch, count, stats, 0, NULL);
    return n->logits;
}

static void sgd(size_t count, float *value, const float *gradient, float *velocity, float rate) {
    for (size_t i = 0; i < count; i++) {
        velocity[i] = 0.9f * velocity[i] + gradient[i];
        value[i] -= rate * velocity[i];
    }
}

/* The sums over all processes' shares. */
static void spread_gradients(net *n) {
    const net_team *team = n->team;
    for (layer *l = n->layers; l < n->layers + NET_LAYERS; l++)
        team->spread(team->self, l->dweights, NET_KERNEL * l->in_channels * NET_CHANNELS);
    team->spread(team->self, n->dlinear, NET_CHANNELS * NET_CLASSES);
    team->spread(team->self, n->dbias, NET_CLASSES);
}

void net_train(net *n, const sample *const *batch, size_t whole, net_stats stats,
               float learning_rate) {
    size_t first = 0, count = whole;
    if (n->team)
        n->team->share(n->team->self, whole, &first, &count);
    batch += first;
    forward(n, batch, count, stats, 1, n->team);
    loss_backward(n, batch, count, whole);
    float *grad = n->grad[0], *din = n->grad[1];
    linear_backward(n, count, grad);
    for (size_t i = NET_LAYERS; i-- > 0;) {
        layer *l = &n->layers[i];
        norm_backward(n, l, count, stats, grad);
        conv_backward(n, l, count, i ? n->layers[i - 1].out : n->input, grad, i ? din : NULL);
        float *swap = grad;
        grad = din;
        din = swap;
    }
    if (n->team)
        spread_gradients(n);
    for (layer *l = n->layers; l < n->layers + NET_LAYERS; l++) {
        sgd(NET_KERNEL * l->in_channels * NET_CHANNELS, l->weights, l->dweights, l->vweights,
            learning_rate);
        if (n->batch_norm)
            sgd(NET_CHANNELS, l->gamma, l->dgamma, l->vgamma, learning_rate);
        sgd(NET_CHANNELS, l->beta, l->dbeta, l->vbeta, learning_rate);
    }
    sgd(NET_CHANNELS * NET_CLASSES, n->linear, n->dlinear, n->vlinear, learning_rate);
    sgd(NET_CLASSES, n->bias, n->dbias, n->vbias, learning_rate);
}

uint32_t net_random(uint64_t *state) {
    *state = *state * 6364136223846793005u + 1442695040888963407u;
    return (uint32_t)(*state >> 33);
}

/* He's initialization for layers that feed a ReLU: uniform with variance 2/inputs. */
static void init_weights(float *weights, size_t count, size_t inputs, uint64_t *seed) {
    const double bound = sqrt(6.0 / (double)inputs);
    for (size_t i = 0; i < count; i++) {
        const double uniform = net_random(seed) * 0x1p-30 - 1; /* -1 to 1 */
        weights[i] = (float)(uniform * bound);
    }
}

net *net_create(int batch_norm, double running_rate, uint64_t seed, const bnorm_exec *exec) {
    static const int strides[NET_LAYERS] = {1, 2, 1, 1, 2, 1, 1, 2};
    net *n = check_memory(calloc(1, sizeof(*n)));
    n->batch_norm = batch_norm;
    n->running_rate = running_rate;
    n->exec = exec;
    int side = NET_SIDE;
    for (int i = 0; i < NET_LAYERS; i++) {
        layer *l = &n->layers[i];
        init_taps(l, side, strides[i]);
        side /= strides[i];
        l->in_channels = i ? NET_CHANNELS : 1;
        const size_t inputs = NET_KERNEL * l->in_channels;
        init_weights(l->weights, inputs * NET_CHANNELS, inputs, &seed);
        for (size_t c = 0; c < NET_CHANNELS; c++)
            l->gamma[c] = l->running_var[c] = 1;
    }
    init_weights(n->linear, NET_CHANNELS * NET_CLASSES, NET_CHANNELS, &seed);
    return n;
}

void net_join(net *n, const net_team *team) {
    n->team = team;
}

net *net_clone(const net *n) {
    net *copy = check_memory(malloc(sizeof(*copy)));
    memcpy(copy, n, sizeof(*copy));
    copy->workspace = NULL;
    copy->workspace_size = 0;
    return copy;
}

void net_destroy(net *n) {
    if (n)
        free(n->workspace);
    free(n);
}

static uint64_t hash_floats(const float *values, size_t count, uint64_t hash) {
    for (size_t i = 0; i < count; i++) {
        uint32_t bits;
        memcpy(&bits, &values[i], sizeof(bits));
        if (isnan(values[i]))
            bits = 0x7fc00000; /* a NaN's sign differs between processors */
        for (int shift = 0; shift < 32; shift += 8)
            hash = (hash ^ (bits >> shift & 0xff)) * 0x100000001b3u;
    }
    return hash;
}

uint64_t net_hash(const net *n, uint64_t hash) {
    for (const layer *l = n->layers; l < n->layers + NET_LAYERS; l++) {
        hash = hash_floats(l->weights, NET_KERNEL * l->in_channels * NET_CHANNELS, hash);
        hash = hash_floats(l->gamma, NET_CHANNELS, hash);
        hash = hash_floats(l->beta, NET_CHANNELS, hash);
        hash = hash_floats(l->running_mean, NET_CHANNELS, hash);
        hash = hash_floats(l->running_var, NET_CHANNELS, hash);
    }
    hash = hash_floats(n->linear, NET_CHANNELS * NET_CLASSES, hash);
    return hash_floats(n->bias, NET_CLASSES, hash);
}
