/* SPDX-License-Identifier: MIT
 *
 * One call of any operation, in any layout and type, for tests that cross them: buffers between
 * guard pages, results in one order whatever the layout. */
#ifndef BNORM_TESTS_CALLS_H
#define BNORM_TESTS_CALLS_H

#include "cases.h"

/* ---------------------------------------------------------------------------------------------- */
/* Data                                                                                           */

/* A problem: tensors are dense, in the order (n, c, hw), of floats that a dtype holds exactly. */
struct data {
    size_t n, c, hw;
    float *x, *dy, *residual;
    float *gamma, *beta; /* may be NULL */
    /* For bnorm_apply and bnorm_backward; lo may be NULL. */
    float *mean, *invstd, *lo;
};

void data_new(struct test *t, struct data *d, const bnorm_shape *shape);
size_t data_count(const struct data *d);

/* Channels [first, first + count) of (n, c, hw) data as (n, width, hw); zeros behind them. NULL
 * stays NULL. */
struct channels {
    size_t first, count, width;
};
float *take_channels(struct test *t, const float *from, const struct data *shape,
                     const struct channels *which);

/* Index in (n, c, hw) order of dense element i of a tensor; SIZE_MAX in the padding of a blocked
 * one. */
size_t plain_index(const bnorm_shape *shape, size_t i);

/* ---------------------------------------------------------------------------------------------- */
/* Calls                                                                                          */

/* Which of the calls' ways to work in place. */
enum reuse {
    REUSE_NOTHING = 0,
    REUSE_FIRST, /* y onto x; dx onto x, dresidual onto dy */
    REUSE_SECOND /* y onto the residual; dx onto dy, dresidual onto the residual or y */
};
#define REUSE_COUNT 3

struct call {
    bnorm_op op;
    bnorm_shape shape;
    bnorm_act act;
    enum reuse reuse;
    int residual;                    /* added by forward, given to backward */
    int lo;                          /* save_mean_lo is written or given */
    int frozen;                      /* backward */
    int dense;                       /* else strides are random */
    int mask;                        /* forward is to write one */
    const float *given_y;            /* to backward, in (n, c, hw) order; NULL = none */
    const unsigned char *given_mask; /* to backward; NULL = none */
    /* inputs' padding, which must not matter: 0 = signalling NaN, 1 = huge, 2 = zero */
    int padding;
};

/* What a call has written, in (n, c, hw) order and as floats; NULL where it writes no such thing.
 */
struct results {
    float *y, *dx, *dresidual;
    float *mean, *var, *lo, *invstd, *running_mean, *running_var, *dgamma, *dbeta;
    unsigned char *mask;
    size_t mask_bytes;
};

/* A call with its buffers filled, ready to run: bnorm_run_jobs() or run_job(). */
struct ready {
    struct fixture fixture;
    struct call call;
    const struct data *data;
    bnorm_shape shape;
    bnorm_affine affine;
    bnorm_train train;
    bnorm_grad grad;
    bnorm_job job;
    struct tensor *y, *dresidual; /* y or dx */
    struct results arrays;        /* the arrays where the call writes them */
};

/* In place: the job points into *r. */
void ready_new(struct test *t, struct ready *r, const struct call *call, const struct data *data,
               enum side side);
/* Checks canaries, gaps, inputs and padding; takes the results and gives the buffers back. */
struct results ready_finish(struct test *t, struct ready *r);

/* The single call that a job stands for. */
bnorm_status run_job(const bnorm_job *job, const bnorm_exec *exec);

/* All three steps; fails the case unless the call succeeds. */
struct results run_call(struct test *t, const struct call *call, const struct data *data,
                        const bnorm_exec *exec);

/* Everything that both have has the same bits. */
void check_results(struct test *t, const struct results *got, const struct results *want,
                   const struct data *data);

const char *call_text(const struct call *call, char text[256]);

/* A random one of RELU, CLAMP and LEAKY_RELU, whose slope may be 0 or negative. */
bnorm_act random_mask_act(struct rng *r);

#endif
