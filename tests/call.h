/* SPDX-License-Identifier: MIT
 *
 * One description of a call of any operation, for tests, tools and benchmarks: what is computed and
 * on what (struct call), where all of that lies (struct operands), and the structs of bnorm.h that
 * say the same (struct call_args). A header alone, so that programs of one source have it too. */
#ifndef BNORM_TESTS_CALL_H
#define BNORM_TESTS_CALL_H

#include "bnorm.h"

/* Where an output tensor goes; ONTO_EXTRA: onto the residual, or in backward the y that is given.
 */
enum target { OWN = 0, ONTO_X, ONTO_DY, ONTO_EXTRA, NOWHERE, TARGET_COUNT };

/* Outputs that are not wanted. */
enum {
    OMIT_MEAN = 1,
    OMIT_VAR = 2, /* of moments */
    OMIT_INVSTD = 4,
    OMIT_RUNNING_MEAN = 8, /* whatever the data has */
    OMIT_RUNNING_VAR = 16,
    OMIT_RUNNING = OMIT_RUNNING_MEAN | OMIT_RUNNING_VAR,
    OMIT_DGAMMA = 32,
    OMIT_DBETA = 64
};

/* Numbers in call.at. */
enum call_place { AT_X, AT_DY, AT_EXTRA, AT_OUT, AT_DRESIDUAL, AT_COUNT };

struct placement; /* of harness.h */

/* Zero is the default of everything. */
struct call {
    bnorm_op op;
    bnorm_shape shape;
    bnorm_act act;
    bnorm_y_dtype y_dtype; /* of bnorm_apply, as are the quantizations */
    bnorm_quant x_quant, residual_quant, y_quant;
    double eps, rate; /* of training, as is the kind of variance */
    bnorm_variance variance;
    double epsilon;             /* of weights */
    const bnorm_renorm *renorm; /* its limits; NULL = none */
    const bnorm_ghost *ghost;   /* NULL = none; statistics then have groups*c floats */
    int frozen;                 /* backward */
    unsigned dy_broadcast;      /* the data has one value of dy along these axes */

    /* How buffers are made, as tests do: see calls.h. */
    enum target out, dresidual; /* of y or dx; of backward */
    unsigned omit;              /* sum of OMIT_... */
    int residual;               /* added by forward, given to backward */
    int lo;                     /* save_mean_lo is written or given */
    int save_var;  /* the variance is written; given in place of invstd, where the data has one */
    int mask;      /* forward is to write one */
    int elsewhere; /* updated running statistics do not go where the old are */
    const float *given_y;            /* to backward, in (n, c, hw) order; NULL = none */
    const unsigned char *given_mask; /* to backward; NULL = none */
    int dense;                       /* else strides and alignments are random, but for `at` */
    const struct placement *at;      /* AT_COUNT of them; NULL = as `dense` says */
    int side;                        /* enum side: which guard page the buffers touch */
    int padding;      /* of inputs, which must not matter: 0 = signalling NaN, 1 = huge, 2 = zero */
    const char *what; /* is tried, for messages; NULL = nothing to say */
};

/* Tensors and arrays, of which a call takes what its operation has; NULL = absent. */
struct operands {
    bnorm_in x, dy, residual, y; /* y: what forward wrote, for backward */
    bnorm_out out, dresidual;    /* out: y or dx */
    const float *gamma, *beta;   /* beta: shift of bnorm_apply */
    const float *scale;          /* of bnorm_apply, whose center is the mean */
    float *mean, *lo, *invstd, *var;
    float *running_mean, *running_var, *new_mean, *new_var;
    const float *weights;
    float *r, *d; /* batch renormalization */
    float *dgamma, *dbeta;
    void *mask, *ws;
    size_t ws_size;
};

/* Points into itself: it is filled where it stays. */
struct call_args {
    bnorm_shape shape;
    bnorm_affine affine;
    bnorm_train train;
    bnorm_grad grad;
    bnorm_weights weights; /* of moments */
    bnorm_renorm renorm;
    const bnorm_ghost *ghost;
    bnorm_job job;
};

static inline void call_arguments(struct call_args *a, const struct call *call,
                                  const struct operands *o) {
    const bnorm_weights weights = {o->weights, call->epsilon};
    *a = (struct call_args){.shape = call->shape, .weights = weights, .ghost = call->ghost};
    a->job = (bnorm_job){
        .op = call->op,
        .shape = &a->shape,
        .x = o->x,
        .dy = o->dy,
        .out = o->out,
        .mean = o->mean,
        .var = o->var,
        .ws = o->ws,
        .ws_size = o->ws_size,
    };
    switch (call->op) {
    case BNORM_OP_MOMENTS:
        break;
    case BNORM_OP_APPLY:
        a->affine = (bnorm_affine){
            .center = o->mean,
            .scale = o->scale,
            .shift = o->beta,
            .residual = o->residual,
            .act = call->act,
            .y_dtype = call->y_dtype,
            .x_quant = call->x_quant,
            .residual_quant = call->residual_quant,
            .y_quant = call->y_quant,
            .mask = o->mask,
        };
        a->job.affine = &a->affine;
        break;
    case BNORM_OP_FORWARD_TRAIN:
        a->train = (bnorm_train){
            .gamma = o->gamma,
            .beta = o->beta,
            .eps = call->eps,
            .running = {o->running_mean, o->running_var, call->rate, call->variance, o->new_mean,
                        o->new_var},
            .save_mean = o->mean,
            .save_invstd = o->invstd,
            .save_var = o->var,
            .save_mean_lo = o->lo,
            .residual = o->residual,
            .act = call->act,
            .mask = o->mask,
            .weights = weights,
        };
        if (call->renorm) {
            a->renorm = *call->renorm;
            a->renorm.save_r = o->r;
            a->renorm.save_d = o->d;
            a->train.renorm = &a->renorm;
        }
        a->job.train = &a->train;
        break;
    case BNORM_OP_BACKWARD:
        a->grad = (bnorm_grad){
            .gamma = o->gamma,
            .beta = o->beta,
            .save_mean = o->mean,
            .save_invstd = o->invstd,
            .save_var = o->var,
            .eps = o->var ? call->eps : 0,
            .save_mean_lo = o->lo,
            .frozen = call->frozen,
            .act = call->act,
            .residual = o->residual,
            .y = o->y,
            .mask = o->mask,
            .dresidual = o->dresidual,
            .dgamma = o->dgamma,
            .dbeta = o->dbeta,
            .weights = weights,
            .renorm_r = o->r,
            .renorm_d = o->d,
            .dy_broadcast = call->dy_broadcast,
        };
        a->job.grad = &a->grad;
        break;
    }
}

/* The single call that a job stands for. */
static inline bnorm_status run_job(const bnorm_job *job, const bnorm_exec *exec) {
    switch (job->op) {
    case BNORM_OP_MOMENTS:
        return bnorm_moments(job->shape, job->x, job->mean, job->var, job->ws, job->ws_size, exec);
    case BNORM_OP_FORWARD_TRAIN:
        return bnorm_forward_train(job->shape, job->x, job->out, job->train, job->ws, job->ws_size,
                                   exec);
    case BNORM_OP_BACKWARD:
        return bnorm_backward(job->shape, job->x, job->dy, job->out, job->grad, job->ws,
                              job->ws_size, exec);
    case BNORM_OP_APPLY:
        break;
    }
    return bnorm_apply(job->shape, job->x, job->out, job->affine, exec);
}

/* The same for what no job can have: ghost batches, and moments with weights. */
static inline bnorm_status call_run(const struct call_args *a, const bnorm_exec *exec) {
    const bnorm_job *job = &a->job;
    if (job->op == BNORM_OP_MOMENTS && a->weights.values)
        return bnorm_weighted_moments(job->shape, job->x, &a->weights, job->mean, job->var, job->ws,
                                      job->ws_size, exec);
    if (!a->ghost)
        return run_job(job, exec);
    if (job->op == BNORM_OP_FORWARD_TRAIN)
        return bnorm_forward_train_ghost(job->shape, job->x, job->out, job->train, a->ghost,
                                         job->ws, job->ws_size, exec);
    return bnorm_backward_ghost(job->shape, job->x, job->dy, job->out, job->grad, a->ghost, job->ws,
                                job->ws_size, exec);
}

#endif
