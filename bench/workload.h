/* SPDX-License-Identifier: MIT
 *
 * What is measured: an op on a tensor, dense and of floats unless its form says otherwise, its
 * inputs, and where its results go. */
#ifndef BNORM_BENCH_WORKLOAD_H
#define BNORM_BENCH_WORKLOAD_H

#include <stddef.h>

#include "bnorm.h"
#include "tensor.h"

enum bench_op {
    BENCH_INFERENCE,      /* bnorm_apply, centred form */
    BENCH_INFERENCE_RELU, /* the same with fused ReLU */
    BENCH_TRAINING,       /* bnorm_forward_train with running statistics, mean and invstd saved */
    BENCH_BACKWARD,       /* bnorm_backward for dx, dgamma and dbeta */
    BENCH_OPS,            /* those above are what bnorm-bench measures, bnorm-peers all */
    BENCH_RESIDUAL_RELU = BENCH_OPS, /* bnorm_apply with residual and ReLU */
    BENCH_TRAINING_RELU,             /* bnorm_forward_train with ReLU */
    BENCH_ALL_OPS
};

/* Name of an op, and the tensors that it must at least read or write: the traffic that GB/s and
 * percent of the roof count, whatever an implementation really moves.
 *
 *   inference   x in, y out
 *   training    x in, y out: a tensor too large for the caches is really read twice, for the
 *               statistics and then for y
 *   backward    x and dy in, dx out: both inputs are really read twice */
typedef struct bench_op_info {
    const char *name;
    size_t tensors;
    int relu, training;
} bench_op_info;

extern const bench_op_info bench_ops[BENCH_ALL_OPS];
extern const char *const bench_layouts[2]; /* by bnorm_layout */

/* bnorm_isa_at() from memory: asking the CPU takes a virtual machine many microseconds. */
const bnorm_isa *bench_isa_at(size_t i);

typedef struct bench_problem {
    enum bench_op op;
    bnorm_layout layout;
    size_t n, c, hw;
    bench_form form;
    double eps;
    const float *x, *dy;            /* dy is also what is added as residual */
    const void *typed_x, *typed_dy; /* the same in the form's type, where that is not F32 */
    const unsigned char *mask;      /* backward */
    const float *passed;            /* the same as 1 and 0 in x's order, for the reference */
    const float *gamma, *beta;
    const float *mean, *invstd; /* inference, backward */
    const float *scale;         /* gamma*invstd; inference */
    const float *var;           /* 1/invstd^2 - eps, for those who want it so */
    void *ws;
    size_t ws_size;
} bench_problem;

/* Arrays of c floats, but tensor, which has the type of the form, dresidual and mask. */
typedef struct bench_result {
    float *tensor;                                     /* y or dx */
    float *mean, *invstd, *running_mean, *running_var; /* training */
    float *dgamma, *dbeta;                             /* backward */
    void *dresidual;                                   /* both: forms that want them */
    unsigned char *mask;
} bench_result;

#define BENCH_RATE 0.1 /* weight of the batch in the running statistics, which start at 0 and 1 */

/* Inputs and results, shared by all problems: each uses the front part of every buffer. */
typedef struct bench_memory {
    float *x, *dy;
    float *gamma, *beta, *mean, *invstd, *scale, *var;
    void *ws;
    bench_result timed, expected; /* what is timed; the scalar set's results */
    size_t filled;                /* elements of the tensors that are initialised */
    struct {
        void *x, *dy;
        size_t filled;
    } typed[BENCH_DTYPES];
    unsigned char *mask;
    size_t mask_filled;
    unsigned random;
    void *blocks[32];
    size_t block_count;
} bench_memory;

/* Memory for problems of up to this size; 0 where there is not enough. */
int bench_memory_create(bench_memory *memory, size_t elements, size_t channels, size_t ws_size);
/* The same for problems with forms, with tensors of up to so many elements of each type, gaps
 * included. */
int bench_memory_add_forms(bench_memory *memory, const size_t elements[BENCH_DTYPES]);
void bench_memory_destroy(bench_memory *memory);
/* Bytes that bench_memory_create takes for tensors of this many elements. */
size_t bench_memory_bytes(size_t elements);

bench_problem bench_problem_make(bench_memory *memory, enum bench_op op, bnorm_layout layout,
                                 size_t n, size_t c, size_t hw);
/* With a form. */
bench_problem bench_problem_form(bench_memory *memory, enum bench_op op, bnorm_layout layout,
                                 size_t n, size_t c, size_t hw, const bench_form *form);
/* Bytes of workspace for this problem. */
size_t bench_workspace(enum bench_op op, bnorm_layout layout, size_t n, size_t c, size_t hw);

/* Running statistics as at the start of training, NaN everywhere else: what is not written shows.
 */
void bench_result_reset(const bench_problem *problem, const bench_result *result);

/* A call of the library as bnorm_run_jobs takes it: job points to the other members, of which only
 * those of its op are set. */
typedef struct bench_call {
    bnorm_job job;
    bnorm_shape shape;
    bnorm_affine affine;
    bnorm_train train;
    bnorm_grad grad;
} bench_call;

/* Has to stay where it is. */
void bench_call_make(bench_call *call, const bench_problem *problem, const bench_result *result);
/* Makes the call and runs it. */
bnorm_status bench_run(const bench_problem *problem, const bnorm_isa *isa, const bnorm_exec *exec,
                       const bench_result *result);

/* What the op and the form say. */
bnorm_act bench_act(const bench_problem *problem);
int bench_has_residual(const bench_problem *problem);
/* Tensors that must at least be read or written, and their bytes and those of the mask. */
size_t bench_tensors(const bench_problem *problem);
double bench_traffic(const bench_problem *problem);

/* Compares the scalar set with the double reference, every other kernel set with the scalar set to
 * the bit, and, if the form is all 0, the plain C loops with the reference. 0 after a message on
 * stderr where one differs. */
int bench_check(const bench_problem *problem, bench_memory *memory, const bnorm_exec *exec);
int bench_form_is_plain(const bench_form *form);

#endif
