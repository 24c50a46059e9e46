/* SPDX-License-Identifier: MIT
 *
 * Calls of bnorm's variants (weights, batch renormalization, ghost batches), built on calls.h;
 * their oracle: the formulas of bnorm.h in long double, with bounds, which variants.c derives; and
 * random problems to try both on. */
#ifndef BNORM_TESTS_VARIANTS_H
#define BNORM_TESTS_VARIANTS_H

#include "calls.h"
#include "types.h"

/* ---------------------------------------------------------------------------------------------- */
/* Calls                                                                                          */

/* What a call has besides `struct call`. Arrays are inputs that the calls copy. */
struct variant {
    const float *weights; /* n*hw; NULL = none */
    double epsilon;
    const bnorm_renorm *renorm; /* its limits; NULL = none */
    const float *r, *d;         /* backward: what forward saved; NULL = none */
    const bnorm_ghost *ghost;   /* NULL = none; data->mean, lo and invstd then have G*C floats */
    /* Forward: */
    double eps, rate;
    bnorm_variance variance;
    const float *running_mean, *running_var; /* before the call; NULL = not tracked */
};

/* A call with its buffers filled; in place, as struct ready. */
struct variant_ready {
    struct ready base;
    const struct variant *variant;
    bnorm_weights weights;
    bnorm_renorm renorm;
};
void variant_ready(struct test *t, struct variant_ready *v, const struct call *call,
                   const struct data *data, const struct variant *variant, enum side side);
/* BNORM_OP_MOMENTS stands for bnorm_weighted_moments. */
bnorm_status variant_start(const struct variant_ready *v, const bnorm_exec *exec);

/* As calls.h has it. Of ghost batches mean, lo and invstd have G*C floats. */
struct variant_results {
    struct results all;
    float *r, *d;
};
struct variant_results variant_finish(struct test *t, struct variant_ready *v);
/* All three; fails the case unless the call succeeds. */
struct variant_results variant_run(struct test *t, const struct call *call, const struct data *data,
                                   const struct variant *variant, const bnorm_exec *exec);

/* Tensors rounded to the type, as a call on such tensors stores them. */
void variant_round(struct variant_results *results, const struct data *data, bnorm_dtype dtype);
/* Everything that both have has the same bits. groups: 1, or those of a ghost batch. */
void variant_check_bits(struct test *t, const struct variant_results *got,
                        const struct variant_results *want, const struct data *data, size_t groups);

/* Image i of a group, in the whole batch. */
size_t ghost_image(const bnorm_ghost *ghost, size_t n, size_t group, size_t i);
/* A tensor of a group alone, and all tensors of one; other arrays are shared. */
float *ghost_tensor(struct test *t, const float *x, const struct data *whole,
                    const bnorm_ghost *ghost, size_t group);
struct data ghost_data(struct test *t, const struct data *whole, const bnorm_ghost *ghost,
                       size_t group);

/* ---------------------------------------------------------------------------------------------- */
/* Oracle                                                                                         */

/* More exact than double where the CPU or the compiler has it; nowhere less. */
typedef long double wide;

/* Tensors are (n, c, hw), as in struct data; NULL as there. */
struct wide_data {
    size_t n, c, hw;
    wide *x, *dy, *residual, *gamma, *beta;
    const float *weights;
    double epsilon, eps;
    bnorm_act act;
    wide *r, *d; /* factors of batch renormalization; NULL = 1 and 0 */
};
struct wide_data wide_data(struct test *t, const struct call *call, const struct data *data,
                           const struct variant *variant);
/* Index of element q of a channel. */
size_t wide_at(const struct wide_data *w, size_t c, size_t q);

/* c each; bounds are before the rounding to float. */
struct wide_stats {
    wide *weight, *divisor; /* W and W + epsilon */
    wide *mean, *mean_bound, *var, *var_bound, *invstd, *invstd_bound;
};
struct wide_stats wide_stats(struct test *t, const struct wide_data *w);

/* y, and how far a right implementation in float may be from it. r and d may be off by r_bound and
 * d_bound (NULL = not at all). bound may be NULL. */
struct wide_forward {
    const wide *r_bound, *d_bound;
    wide *v, *y, *bound;
};
void wide_forward(const struct wide_data *w, const struct wide_stats *stats,
                  const struct wide_forward *out);

/* Gradients for given statistics: mean = hi + lo. */
struct wide_gradient {
    wide *dgamma, *dgamma_bound, *dbeta, *dbeta_bound; /* c each, the rounding to float included */
    wide *g, *g_bound, *dx, *dx_bound;
};
struct wide_gradient wide_gradient(struct test *t, const struct wide_data *w,
                                   const struct wide_stats *stats, const wide *hi);

void check_wide(struct test *t, const char *what, size_t index, float got, wide want, wide bound);

/* Results of the scalar set, or of any, on floats against the oracle. */
void check_forward(struct test *t, const struct call *call, const struct data *data,
                   const struct variant *variant, const struct variant_results *got);
void check_backward(struct test *t, const struct call *call, const struct data *data,
                    const struct variant *variant, const struct variant_results *got);
void check_moments(struct test *t, const struct call *call, const struct data *data,
                   const struct variant *variant, const struct variant_results *got);

/* No gradient where rounding decides on which side of a kink the argument lies. Statistics, r and d
 * are those that backward will have. */
void variant_avoid_kinks(struct test *t, const struct call *call, struct data *data,
                         const struct variant *variant, double margin);

/* ---------------------------------------------------------------------------------------------- */
/* Problems                                                                                       */

/* Registers cases for NHWC, NCHW and channel-blocked tensors and each kernel set, as
 * "family/nhwc/avx2/name". */
void add_problem_cases(struct suite *s, const char *family, const struct type_test *tests,
                       size_t count);

/* Shapes of such a case: around vectors, groups and blocks of the reductions, and subtrees of
 * images. The first PROBLEM_SMALL have few elements. */
#define PROBLEM_SHAPES 24
#define PROBLEM_SMALL  13
bnorm_shape problem_shape(const struct test *t, size_t i, bnorm_dtype dtype);
/* F32, BF16, F16 and so on. */
bnorm_dtype problem_dtype(size_t i);

enum weights {
    WEIGHTS_NONE = 0,
    WEIGHTS_RANDOM,
    WEIGHTS_MASK,    /* 0 and 1 */
    WEIGHTS_PADDING, /* 1 up to a length, which differs per image; 0 behind it */
    WEIGHTS_FEW,     /* 1 at one position, and a half at another or nowhere */
    WEIGHTS_LARGE,   /* about 1e30 */
    WEIGHTS_SMALL,   /* about 1e-30 */
    WEIGHTS_COUNT
};
/* For all positions; never all 0. NULL for none. */
float *new_weights(struct test *t, enum weights kind, size_t n, size_t hw);

struct problem {
    struct call call; /* forward, on floats, dense */
    struct data data;
    struct variant variant;
    bnorm_renorm limits;
    const char *what; /* for messages */
};

/* Elements are numbers of the shape's type; the call is on floats all the same. */
void problem_new(struct test *t, struct problem *p, const bnorm_shape *shape, enum weights weights);
/* Other values of x, on floats. */
void problem_fill(struct test *t, struct problem *p, enum values kind);
/* Limits that clip some channels, and running statistics. */
void problem_add_renorm(struct test *t, struct problem *p);
void problem_say(struct test *t, const struct problem *p, const struct call *call, const char *how);

/* The call as it is, with the scalar set. */
struct variant_results problem_scalar(struct test *t, const struct problem *p,
                                      const struct call *call);
/* The call in another way: strides, in place, threads, memory; on elements of this type. */
struct variant_results problem_elsewhere(struct test *t, const struct problem *p,
                                         const struct call *call, bnorm_dtype dtype);
/* Elsewhere the bits of `want`, a call on floats, and rounded to elements of the type. *want is
 * rounded, too. */
void problem_compare(struct test *t, const struct problem *p, const struct call *call,
                     struct variant_results *want, bnorm_dtype dtype);

/* The problem's call: the scalar set against the oracle, the case's set against that. */
struct variant_results problem_forward(struct test *t, const struct problem *p, bnorm_dtype dtype);
/* The same of backward, for what forward gave. */
void problem_backward(struct test *t, struct problem *p, const struct variant_results *saved,
                      bnorm_dtype dtype);
/* Its parts: backward is given what forward gave; and gets the argument of the activation from x,
 * with the residual, or from forward's mask. */
void problem_take_saved(struct problem *p, const struct variant_results *saved);
struct call problem_backward_call(struct test *t, const struct problem *p,
                                  const struct variant_results *saved);

#endif
