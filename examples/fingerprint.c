/* SPDX-License-Identifier: MIT
 *
 * One number for what each function of bnorm computes, on fixed data of many shapes with every
 * activation. The numbers are the same on every CPU, kernel set and compiler: whoever builds bnorm
 * with other tools or flags can see whether the promise of equal bits still holds there. */
#include <bnorm.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { MAX_C = 70, MAX_COUNT = 3 * 2 * 1000 };

static const bnorm_shape shapes[] = {
    {.layout = BNORM_NHWC, .n = 3, .c = 19, .hw = 37},
    {.layout = BNORM_NHWC, .n = 2, .c = 3, .hw = 1000},
    {.layout = BNORM_NCHW, .n = 3, .c = 19, .hw = 37},
    {.layout = BNORM_NCHW, .n = 1, .c = 2, .hw = 3000},
    {.layout = BNORM_NCHW, .n = 80, .c = 70, .hw = 1},
};

static const bnorm_act acts[] = {
    {.kind = BNORM_ACT_IDENTITY},
    {.kind = BNORM_ACT_RELU},
    {.kind = BNORM_ACT_CLAMP, .a = 0, .b = 6},
    {.kind = BNORM_ACT_LEAKY_RELU, .a = 0.1f},
    {.kind = BNORM_ACT_HARD_SWISH},
};

static struct {
    float x[MAX_COUNT], dy[MAX_COUNT], residual[MAX_COUNT], y[MAX_COUNT], dx[MAX_COUNT];
    float gamma[MAX_C], beta[MAX_C], mean[MAX_C], var[MAX_C];
    float out[4][MAX_C];
    _Alignas(16) unsigned char ws[1 << 16];
} m;

static void fill(float *values, size_t count, double low, double high, uint32_t seed) {
    for (size_t i = 0; i < count; i++) {
        seed = seed * 1664525u + 1013904223u;
        values[i] = (float)(low + (high - low) * (seed >> 8) * 0x1p-24);
    }
}

static void prepare(void) {
    fill(m.x, MAX_COUNT, -7, 9, 1);
    fill(m.dy, MAX_COUNT, -1, 1, 2);
    fill(m.residual, MAX_COUNT, -2, 2, 3);
    fill(m.gamma, MAX_C, -1, 4, 4);
    fill(m.beta, MAX_C, -2, 2, 5);
    fill(m.mean, MAX_C, -3, 3, 6);
    fill(m.var, MAX_C, 0, 9, 7);
}

/* FNV-1a over the bits, in an order that no byte order changes. */
static uint64_t add(uint64_t hash, const float *values, size_t count) {
    for (size_t i = 0; i < count; i++) {
        uint32_t bits;
        memcpy(&bits, &values[i], sizeof bits);
        for (int shift = 0; shift < 32; shift += 8)
            hash = (hash ^ (bits >> shift & 0xff)) * 0x100000001b3u;
    }
    return hash;
}

static void expect_ok(bnorm_status status, const char *function) {
    if (status == BNORM_OK)
        return;
    fprintf(stderr, "fingerprint: %s: %s\n", function, bnorm_strerror(status));
    exit(1);
}

/* Each of these takes one call's outputs into the hash. */

static uint64_t apply(const bnorm_shape *s, const bnorm_act *act, const bnorm_exec *exec,
                      uint64_t hash) {
    expect_ok(bnorm_fold(s->c, m.gamma, m.beta, m.mean, m.var, 1e-3, m.out[0], m.out[1]),
              "bnorm_fold");
    const bnorm_affine affine = {
        .scale = m.out[0], .shift = m.out[1], .residual = {.data = m.residual}, .act = *act};
    const bnorm_in x = {.data = m.x};
    const bnorm_out y = {.data = m.y};
    expect_ok(bnorm_apply(s, x, y, &affine, exec), "bnorm_apply");
    return add(add(add(hash, m.out[0], s->c), m.out[1], s->c), m.y, s->n * s->c * s->hw);
}

static uint64_t train(const bnorm_shape *s, const bnorm_act *act, const bnorm_exec *exec,
                      uint64_t hash) {
    memset(m.out, 0, sizeof m.out);
    const bnorm_train options = {
        .gamma = m.gamma,
        .beta = m.beta,
        .eps = 1e-3,
        .running = bnorm_running_pytorch(m.out[0], m.out[1], 0.1),
        .save_mean = m.out[2],
        .save_invstd = m.out[3],
        .act = *act,
    };
    const bnorm_in x = {.data = m.x};
    const bnorm_out y = {.data = m.y};
    expect_ok(bnorm_forward_train(s, x, y, &options, m.ws, sizeof m.ws, exec),
              "bnorm_forward_train");
    return add(add(hash, m.out[0], sizeof m.out / sizeof(float)), m.y, s->n * s->c * s->hw);
}

static uint64_t backward(const bnorm_shape *s, const bnorm_act *act, const bnorm_exec *exec,
                         uint64_t hash) {
    const bnorm_in x = {.data = m.x}, dy = {.data = m.dy};
    const bnorm_out dx = {.data = m.dx};
    (void)train(s, act, exec, 0);
    const bnorm_grad options = {
        .gamma = m.gamma,
        .beta = m.beta,
        .save_mean = m.out[2],
        .save_invstd = m.out[3],
        .act = *act,
        .dgamma = m.out[0],
        .dbeta = m.out[1],
    };
    expect_ok(bnorm_backward(s, x, dy, dx, &options, m.ws, sizeof m.ws, exec), "bnorm_backward");
    return add(add(hash, m.out[0], 2 * MAX_C), m.dx, s->n * s->c * s->hw);
}

int main(void) {
    static const struct {
        const char *name;
        uint64_t (*call)(const bnorm_shape *, const bnorm_act *, const bnorm_exec *, uint64_t);
    } ops[] = {{"apply", apply}, {"forward_train", train}, {"backward", backward}};
    int differ = 0;

    prepare();
    for (size_t op = 0; op < sizeof ops / sizeof *ops; op++) {
        uint64_t first = 0;
        for (size_t i = 0; bnorm_isa_at(i); i++) {
            const bnorm_exec exec = {.isa = bnorm_isa_at(i)};
            uint64_t hash = 0xcbf29ce484222325u;
            for (size_t s = 0; s < sizeof shapes / sizeof *shapes; s++)
                for (size_t a = 0; a < sizeof acts / sizeof *acts; a++)
                    hash = ops[op].call(&shapes[s], &acts[a], &exec, hash);
            if (i == 0) {
                first = hash;
                printf("%-14s %016llx\n", ops[op].name, (unsigned long long)hash);
            } else if (hash != first) {
                differ = 1;
                printf("%-14s %016llx on %s: different bits; was bnorm built with -ffast-math?\n",
                       ops[op].name, (unsigned long long)hash, bnorm_isa_name(exec.isa));
            }
        }
    }
    return differ;
}
