/* SPDX-License-Identifier: MIT */
#include "workload.h"

#include <math.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "plain.h"
#include "reference.h"

const bench_op_info bench_ops[BENCH_ALL_OPS] = {
    [BENCH_INFERENCE] = {"inference", 2, 0, 0},
    [BENCH_INFERENCE_RELU] = {"inference_relu", 2, 1, 0},
    [BENCH_TRAINING] = {"training", 2, 0, 1},
    [BENCH_BACKWARD] = {"backward", 3, 0, 0},
    [BENCH_RESIDUAL_RELU] = {"residual_relu", 3, 1, 0},
    [BENCH_TRAINING_RELU] = {"training_relu", 2, 1, 1},
};

const char *const bench_layouts[2] = {[BNORM_NHWC] = "nhwc", [BNORM_NCHW] = "nchw"};

static const double eps = 1e-5;

enum { TENSORS = 4, PAGE = 4096, LINE = 64 };

/* Every block starts on another cache line of its page. At equal offsets loads would wait for
 * stores to other tensors (4 KiB aliasing), on some calls only, as chance has it. */
static void *new_block(bench_memory *memory, size_t bytes) {
    const size_t offset = (memory->block_count * 5 % 64) * LINE;
    char *block = malloc(bytes + 2 * PAGE);
    if (!block)
        return NULL;
    memory->blocks[memory->block_count++] = block;
    return block + (PAGE - (uintptr_t)block % PAGE) + offset;
}

size_t bench_memory_bytes(size_t elements) {
    return TENSORS * elements * sizeof(float);
}

/* Uniform in [-1, 1). */
static float next_random(unsigned *state) {
    *state = *state * 1664525U + 1013904223U;
    return (float)(*state >> 8) * 0x1p-23F - 1;
}

int bench_memory_create(bench_memory *memory, size_t elements, size_t channels, size_t ws_size) {
    *memory = (bench_memory){.random = 1};
    float **const tensors[] = {&memory->x, &memory->dy, &memory->timed.tensor,
                               &memory->expected.tensor};
    for (size_t i = 0; i < TENSORS; i++)
        if (!(*tensors[i] = new_block(memory, elements * sizeof(float))))
            return 0;
    float **const arrays[] = {
        &memory->gamma,
        &memory->beta,
        &memory->mean,
        &memory->invstd,
        &memory->scale,
        &memory->var,
        &memory->timed.mean,
        &memory->timed.invstd,
        &memory->timed.running_mean,
        &memory->timed.running_var,
        &memory->timed.dgamma,
        &memory->timed.dbeta,
    };
    const size_t array_count = sizeof arrays / sizeof arrays[0];
    const size_t array_size = (channels + 15) / 16 * 16; /* whole cache lines */
    float *const block = new_block(memory, (array_count + 6) * array_size * sizeof(float));
    if (!block || !(memory->ws = new_block(memory, ws_size)))
        return 0;
    for (size_t i = 0; i < array_count; i++)
        *arrays[i] = block + i * array_size;
    float **const expected[] = {
        &memory->expected.mean,        &memory->expected.invstd, &memory->expected.running_mean,
        &memory->expected.running_var, &memory->expected.dgamma, &memory->expected.dbeta,
    };
    for (size_t i = 0; i < 6; i++)
        *expected[i] = block + (array_count + i) * array_size;
    for (size_t c = 0; c < channels; c++) {
        memory->gamma[c] = 1 + next_random(&memory->random) / 2;
        memory->beta[c] = next_random(&memory->random);
        memory->mean[c] = 0.25F + next_random(&memory->random) / 8;
        memory->invstd[c] = 1 + next_random(&memory->random) / 8;
        memory->scale[c] = memory->gamma[c] * memory->invstd[c];
        memory->var[c] = (float)(1 / ((double)memory->invstd[c] * memory->invstd[c]) - eps);
    }
    return 1;
}

void bench_memory_destroy(bench_memory *memory) {
    for (size_t i = 0; i < memory->block_count; i++)
        free(memory->blocks[i]);
}

/* Initialises, and so touches, the front of the tensors as far as it is needed: what the largest
 * shape of a full run needs costs a quick one nothing. */
static void fill(bench_memory *memory, size_t elements) {
    for (size_t i = memory->filled; i < elements; i++) {
        memory->x[i] = 0.25F + 1.75F * next_random(&memory->random);
        memory->dy[i] = next_random(&memory->random);
        memory->timed.tensor[i] = memory->expected.tensor[i] = 0;
    }
    if (memory->filled < elements)
        memory->filled = elements;
}

static bnorm_shape make_shape(bnorm_layout layout, size_t n, size_t c, size_t hw) {
    return (bnorm_shape){.layout = layout, .dtype = BNORM_F32, .n = n, .c = c, .hw = hw};
}

size_t bench_workspace(enum bench_op op, bnorm_layout layout, size_t n, size_t c, size_t hw) {
    const bnorm_shape shape = make_shape(layout, n, c, hw);
    if (bench_ops[op].training)
        return bnorm_workspace(BNORM_OP_FORWARD_TRAIN, &shape);
    if (op == BENCH_BACKWARD)
        return bnorm_workspace(BNORM_OP_BACKWARD, &shape);
    return 0;
}

bench_problem bench_problem_make(bench_memory *memory, enum bench_op op, bnorm_layout layout,
                                 size_t n, size_t c, size_t hw) {
    fill(memory, n * c * hw);
    return (bench_problem){
        .op = op,
        .layout = layout,
        .n = n,
        .c = c,
        .hw = hw,
        .eps = eps,
        .x = memory->x,
        .dy = memory->dy,
        .gamma = memory->gamma,
        .beta = memory->beta,
        .mean = memory->mean,
        .invstd = memory->invstd,
        .scale = memory->scale,
        .var = memory->var,
        .ws = memory->ws,
        .ws_size = bench_workspace(op, layout, n, c, hw),
    };
}

bnorm_status bench_run(const bench_problem *p, const bnorm_isa *isa, const bnorm_exec *exec,
                       const bench_result *r) {
    const bnorm_shape shape = make_shape(p->layout, p->n, p->c, p->hw);
    bnorm_exec how = *exec;
    how.isa = isa;
    const bnorm_in x = {.data = p->x}, dy = {.data = p->dy};
    const bnorm_out out = {.data = r->tensor};
    const bnorm_act act = {.kind = bench_ops[p->op].relu ? BNORM_ACT_RELU : BNORM_ACT_IDENTITY};
    if (bench_ops[p->op].training) {
        const bnorm_train train = {
            .gamma = p->gamma,
            .beta = p->beta,
            .eps = p->eps,
            .running = bnorm_running_pytorch(r->running_mean, r->running_var, BENCH_RATE),
            .save_mean = r->mean,
            .save_invstd = r->invstd,
            .act = act,
        };
        return bnorm_forward_train(&shape, x, out, &train, p->ws, p->ws_size, &how);
    }
    if (p->op == BENCH_BACKWARD) {
        const bnorm_grad grad = {
            .gamma = p->gamma,
            .save_mean = p->mean,
            .save_invstd = p->invstd,
            .dgamma = r->dgamma,
            .dbeta = r->dbeta,
        };
        return bnorm_backward(&shape, x, dy, out, &grad, p->ws, p->ws_size, &how);
    }
    const bnorm_affine affine = {
        .center = p->mean,
        .scale = p->scale,
        .shift = p->beta,
        .residual.data = p->op == BENCH_RESIDUAL_RELU ? p->dy : NULL,
        .act = act,
    };
    return bnorm_apply(&shape, x, out, &affine, &how);
}

void bench_result_reset(const bench_problem *p, const bench_result *r) {
    float *const arrays[] = {r->mean, r->invstd, r->dgamma, r->dbeta};
    memset(r->tensor, 0xff, p->n * p->c * p->hw * sizeof(float));
    for (size_t i = 0; i < sizeof arrays / sizeof arrays[0]; i++)
        memset(arrays[i], 0xff, p->c * sizeof(float));
    for (size_t c = 0; c < p->c; c++) {
        r->running_mean[c] = 0;
        r->running_var[c] = 1;
    }
}

static int run_fresh(const bench_problem *p, const bnorm_isa *isa, const bnorm_exec *exec,
                     const bench_result *r) {
    bench_result_reset(p, r);
    const bnorm_status status = bench_run(p, isa, exec, r);
    if (status != BNORM_OK)
        fprintf(stderr, "bnorm-bench: %s: %s\n", bnorm_isa_name(isa), bnorm_strerror(status));
    return status == BNORM_OK;
}

static int same_bits(const bench_problem *p, const bench_result *a, const bench_result *b,
                     const char *who) {
    const struct {
        const char *name;
        const float *a, *b;
        size_t count;
    } arrays[] = {
        {"the output tensor", a->tensor, b->tensor, p->n * p->c * p->hw},
        {"save_mean", a->mean, b->mean, p->c},
        {"save_invstd", a->invstd, b->invstd, p->c},
        {"running_mean", a->running_mean, b->running_mean, p->c},
        {"running_var", a->running_var, b->running_var, p->c},
        {"dgamma", a->dgamma, b->dgamma, p->c},
        {"dbeta", a->dbeta, b->dbeta, p->c},
    };
    for (size_t i = 0; i < sizeof arrays / sizeof arrays[0]; i++) {
        if (memcmp(arrays[i].a, arrays[i].b, arrays[i].count * sizeof(float)) != 0) {
            fprintf(stderr, "bnorm-bench: %s differs from the scalar set in %s.\n", who,
                    arrays[i].name);
            return 0;
        }
    }
    return 1;
}

int bench_check(const bench_problem *p, bench_memory *memory, const bnorm_exec *exec) {
    /* A float has 2^-24; a few roundings per element. Plain sums of floats lose more: 0.1 % of the
     * variance over the 3 million elements of a YOLO channel. */
    const double kernel_tolerance = 1e-6, plain_tolerance = 1e-2;
    const bnorm_isa *scalar = bnorm_isa_find("scalar");
    int good = run_fresh(p, scalar, exec, &memory->expected) &&
               reference_check(p, &memory->expected, kernel_tolerance, "scalar");
    const bnorm_isa *isa;
    for (size_t i = 0; good && (isa = bnorm_isa_at(i)) != NULL; i++)
        if (isa != scalar)
            good = run_fresh(p, isa, exec, &memory->timed) &&
                   same_bits(p, &memory->timed, &memory->expected, bnorm_isa_name(isa));
    if (good) {
        bench_result_reset(p, &memory->timed);
        plain_run(p, &memory->timed);
        good = reference_check(p, &memory->timed, plain_tolerance, "plain C");
    }
    if (!good)
        fprintf(
            stderr,
            "bnorm-bench: the wrong result is of %s %s, N %zu, C %zu, HW %zu. Run `make test`.\n",
            bench_ops[p->op].name, bench_layouts[p->layout], p->n, p->c, p->hw);
    return good;
}
