/* SPDX-License-Identifier: MIT
 *
 * How much denormal data slows the operations down, what flush to zero (FTZ, DAZ) brings back, and
 * what constant channels cost: time relative to normal data, in cache, in one process. For x86. */
#define _POSIX_C_SOURCE 199309L /* clock_gettime */
#include <immintrin.h>
#include <stdio.h>
#include <stdlib.h>
#include <time.h>
#include "bnorm.h"
#include "../tests/call.h"

#define FLUSH_BITS  0x8040u
#define REPETITIONS 400

enum { C = 64, HW = 28 * 28, COUNT = C * HW };
enum { NORMAL, HALF_DENORMAL, DENORMAL, SOME_CONSTANT, CONSTANT, KINDS };

/* One channel in so many is constant, or all are. */
#define CONSTANT_STEP 8

static float data[KINDS][COUNT], results[COUNT];
static float halves[C], zeros[C], mean[C], var[C], mean_lo[C], dgamma[C], dbeta[C];

static const struct {
    const char *name;
    bnorm_op op;
} operations[] = {
    {"bnorm_apply", BNORM_OP_APPLY},
    {"bnorm_moments", BNORM_OP_MOMENTS},
    {"bnorm_forward_train", BNORM_OP_FORWARD_TRAIN},
    {"bnorm_backward", BNORM_OP_BACKWARD},
};

static double now(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

static void measure(const bnorm_shape *shape, const bnorm_isa *isa, void *ws, size_t ws_size,
                    size_t op) {
    const int backward = operations[op].op == BNORM_OP_BACKWARD;
    const bnorm_exec exec = {.isa = isa};
    const struct call call = {.op = operations[op].op, .shape = *shape, .eps = 1e-5};
    struct operands at = {
        .out = {.data = results},
        .mean = backward ? zeros : mean,
        .invstd = backward ? halves : var,
        .dgamma = dgamma,
        .dbeta = dbeta,
        .ws = ws,
        .ws_size = ws_size,
    };
    if (call.op == BNORM_OP_APPLY) {
        at.mean = NULL;
        at.scale = halves;
        at.beta = zeros;
    } else if (call.op == BNORM_OP_MOMENTS) {
        at.var = var;
    } else if (call.op == BNORM_OP_FORWARD_TRAIN) {
        at.lo = mean_lo;
    }
    double best[KINDS][2] = {{1e9, 1e9}, {1e9, 1e9}, {1e9, 1e9}, {1e9, 1e9}, {1e9, 1e9}};
    for (int i = 0; i < REPETITIONS; i++)
        for (int kind = 0; kind < KINDS; kind++)
            for (int flush = 0; flush < 2; flush++) {
                struct call_args args;
                const int in_dy = backward && kind <= DENORMAL;
                at.x.data = data[in_dy ? NORMAL : kind];
                at.dy.data = data[in_dy ? kind : NORMAL];
                call_arguments(&args, &call, &at);
                const unsigned before = _mm_getcsr();
                _mm_setcsr(flush ? before | FLUSH_BITS : before);
                const double start = now();
                const bnorm_status status = run_job(&args.job, &exec);
                const double seconds = now() - start;
                _mm_setcsr(before);
                if (status) {
                    fprintf(stderr, "%s: %s\n", operations[op].name, bnorm_strerror(status));
                    exit(1);
                }
                if (seconds < best[kind][flush])
                    best[kind][flush] = seconds;
            }
    const double normal = best[NORMAL][0];
    printf("%-6s %-7s %-20s %8.1f %7.2f %7.2f %7.2f %7.2f %7.2f %7.2f\n",
           shape->layout == BNORM_NHWC ? "NHWC" : "NCHW", bnorm_isa_name(isa), operations[op].name,
           1e6 * normal, best[HALF_DENORMAL][0] / normal, best[DENORMAL][0] / normal,
           best[HALF_DENORMAL][1] / normal, best[DENORMAL][1] / normal,
           best[SOME_CONSTANT][0] / normal, best[CONSTANT][0] / normal);
}

/* In [-0.5, 0.5). */
static double random_value(void) {
    static unsigned long long state = 1;
    state = state * 6364136223846793005u + 1442695040888963407u;
    return (double)(state >> 11) * 0x1p-53 - 0.5;
}

int main(void) {
    for (size_t i = 0; i < COUNT; i++) {
        const double normal = random_value(), denormal = 1e-39 * random_value();
        data[NORMAL][i] = (float)normal;
        data[HALF_DENORMAL][i] = (float)(random_value() < 0 ? normal : denormal);
        data[DENORMAL][i] = (float)denormal;
    }
    for (size_t c = 0; c < C; c++)
        halves[c] = 0.5f;
    printf("Time relative to normal data: half or all of the values denormal (in backward those of "
           "dy), also with\nflush to zero; one channel in %d or all of them constant\n",
           CONSTANT_STEP);
    printf("%-6s %-7s %-20s %8s %7s %7s %7s %7s %7s %7s\n", "layout", "set", "function", "us",
           "half", "all", "half+FZ", "all+FZ", "some", "const");
    const bnorm_layout layouts[] = {BNORM_NHWC, BNORM_NCHW};
    for (int layout = 0; layout < 2; layout++) {
        const bnorm_shape shape = {.layout = layouts[layout], .n = 1, .c = C, .hw = HW};
        const bnorm_isa *isa;
        for (size_t i = 0; i < COUNT; i++) {
            const size_t channel = layouts[layout] == BNORM_NHWC ? i % C : i / HW;
            data[SOME_CONSTANT][i] = channel % CONSTANT_STEP ? data[NORMAL][i] : 0;
        }
        const size_t ws_size = bnorm_workspace(BNORM_OP_BACKWARD, &shape);
        void *ws = malloc(ws_size);
        if (!ws) {
            perror("denormals");
            return 1;
        }
        for (size_t i = 0; (isa = bnorm_isa_at(i)) != NULL; i++)
            for (size_t op = 0; op < sizeof operations / sizeof operations[0]; op++)
                measure(&shape, isa, ws, ws_size, op);
        free(ws);
    }
    return 0;
}
