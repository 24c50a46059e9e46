/* SPDX-License-Identifier: MIT
 *
 * Calls of call.h with buffers between guard pages, in any layout and type, and their results in
 * one order whatever the layout; what the scalar set gives for them is held against oracle.h. */
#ifndef BNORM_TESTS_CALLS_H
#define BNORM_TESTS_CALLS_H

#include "call.h"
#include "cases.h"

/* ---------------------------------------------------------------------------------------------- */
/* Data                                                                                           */

/* A problem: tensors are dense, in the order (n, c, hw), of floats that a dtype holds exactly. */
struct data {
    size_t n, c, hw;
    float *x, *dy, *residual;
    float *gamma, *beta; /* may be NULL */
    /* For bnorm_apply and bnorm_backward, which may also lack lo; bnorm_apply has the scale
     * gamma*invstd, and takes NULL for any of them. Of ghost batches groups*c floats. */
    float *mean, *invstd, *lo;
    float *var;                              /* in place of invstd; NULL = none */
    const float *running_mean, *running_var; /* before forward; NULL = not tracked */
    const float *weights;                    /* n*hw; NULL = none */
    const float *r, *d;                      /* what forward with renorm saved; NULL = none */
};

/* Tracks running statistics, has no weights, r or d. */
void data_new(struct test *t, struct data *d, const bnorm_shape *shape);
size_t data_count(const struct data *d);
/* Other values of x, rounded to the type. */
void data_fill(struct test *t, struct data *d, enum values kind, bnorm_dtype dtype);
/* A dense shape of floats in the data's order. */
bnorm_shape plain_shape(const bnorm_shape *shape);
/* The shape of a dy that has one value along some axes. */
bnorm_shape narrow_shape(const bnorm_shape *shape, unsigned dy_broadcast);
void round_floats(bnorm_dtype dtype, float *x, size_t count); /* NULL is left alone */

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

/* What a call has written, in (n, c, hw) order and as floats; NULL where it writes no such thing.
 */
struct results {
    float *y, *dx, *dresidual;
    float *mean, *var, *lo, *invstd, *running_mean, *running_var, *r, *d, *dgamma, *dbeta;
    unsigned char *mask;
    size_t mask_bytes;
    size_t groups; /* of mean, var, lo and invstd; 0 = 1 */
};

/* A call with its buffers filled, ready to run: call_run(&r.args, exec), or r.args.job. */
struct ready {
    struct fixture fixture;
    struct call call;
    const struct data *data;
    struct operands at;
    struct call_args args;
    struct tensor *y, *dresidual; /* y or dx */
};

/* In place: r->args points into itself. A target that does not fit becomes OWN. */
void ready_new(struct test *t, struct ready *r, const struct call *call, const struct data *data);
/* Checks canaries, gaps, inputs and padding; takes the results and gives the buffers back. */
struct results ready_finish(struct test *t, struct ready *r);

/* Says what is to be run and how its tensors lie. */
void ready_say(struct test *t, const struct ready *r, const bnorm_exec *exec);

/* All steps; fails the case unless the call succeeds. */
struct results run_call(struct test *t, const struct call *call, const struct data *data,
                        const bnorm_exec *exec);
/* The call on floats, dense, nothing in place, with the scalar set; nothing of it is rounded. */
struct results run_scalar(struct test *t, const struct call *call, const struct data *data);
struct call on_floats(const struct call *call);

/* All bytes of the buffers of a fixture, canaries and inputs included; and that a call which was
 * refused has left them as they were. */
unsigned char *snapshot(struct test *t, const struct fixture *f);
void check_snapshot(struct test *t, const struct fixture *f, const unsigned char *before);

/* Everything that both have has the same bits. */
void check_results(struct test *t, const struct results *got, const struct results *want,
                   const struct data *data);
/* Tensors rounded to the type, as a call on such tensors stores them. */
void round_results(struct results *results, const struct data *data, bnorm_dtype dtype);
/* Backward's data from what forward saved. */
void data_take(struct data *d, const struct results *saved);

/* x, y and the residual of bnorm_apply as neighbouring channel slices of one wider buffer, as in a
 * concatenation. */
struct results run_sliced(struct test *t, const struct call *call, const struct data *data,
                          const bnorm_exec *exec);

const char *call_text(const struct call *call, char text[320]);

/* A random call: any activation, any target that fits. */
struct call random_call(struct test *t, bnorm_op op, const bnorm_shape *shape);
int targets_fit(const struct call *call);
void random_targets(struct rng *r, struct call *call);
/* Any outputs of backward, each anywhere or nowhere, at any guard page. */
void random_outputs(struct rng *r, struct call *call);

/* A random one of RELU, CLAMP and LEAKY_RELU, whose slope may be 0 or negative. */
bnorm_act random_mask_act(struct rng *r);
/* Does the activation have a mask; does y tell its argument? */
int act_has_mask(bnorm_act act);
int y_tells_argument(bnorm_act act);

/* ---------------------------------------------------------------------------------------------- */
/* Problems                                                                                       */

struct problem {
    struct call call;
    struct data data;
    struct results want;
    bnorm_renorm limits; /* of call.renorm */
    bnorm_denormals denormals;
};

/* What the scalar set gives on floats; where it is the case's own, held against the oracle. */
void problem_solve(struct test *t, struct problem *p);
/* p->want of another call of the same problem, run in this way; with both guard pages, in two ways
 * to run. */
void problem_check(struct test *t, const struct problem *p, const struct call *call,
                   const bnorm_exec *exec);
void problem_check_sides(struct test *t, const struct problem *p, const struct call *call);
/* Each tensor at each distance below `shifts` from an aligned place, the others staying there, then
 * all; every step-th of these. */
void problem_check_shifts(struct test *t, const struct problem *p, size_t shifts, size_t step);

/* ---------------------------------------------------------------------------------------------- */
/* The oracle                                                                                     */

/* Results of any op on floats, without weights, renorm and ghost batches; all that the call has.
 * v: the activation's argument where something else than x tells it; else NULL. */
void check_oracle(struct test *t, const struct call *call, const struct data *data, const double *v,
                  const struct results *got);
/* The oracle's gradient for the statistics that backward is given, and the argument then. */
struct oracle_grad_out oracle_gradient(struct test *t, const struct call *call,
                                       const struct data *data, const double *v);
double *exact_argument(struct test *t, const struct call *call, const struct data *data);
/* No gradient where rounding decides on which side of a kink the argument lies (or it is within
 * the margin), so that the oracle and all ways to recover the argument agree. Statistics, r and d
 * are those that backward will have; call->residual says whether forward had one. */
void avoid_kinks(struct test *t, const struct call *call, struct data *data, double margin);

#endif
