/* SPDX-License-Identifier: MIT
 *
 * The oracle of bnorm's variants (weights, batch renormalization, ghost batches): the formulas of
 * bnorm.h in long double, with bounds, which variants.c derives; and random problems to try it on.
 */
#ifndef BNORM_TESTS_VARIANTS_H
#define BNORM_TESTS_VARIANTS_H

#include "calls.h"
#include "types.h"

/* ---------------------------------------------------------------------------------------------- */
/* Ghost batches                                                                                  */

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
    bnorm_shape shape;
    size_t n, c, hw;
    wide *x, *dy, *residual, *gamma, *beta;
    const float *weights;
    double epsilon, eps;
    bnorm_act act;
    wide *r, *d; /* factors of batch renormalization; NULL = 1 and 0 */
};
struct wide_data wide_data(struct test *t, const struct call *call, const struct data *data);
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
                   const struct results *got);
void check_backward(struct test *t, const struct call *call, const struct data *data,
                    const struct results *got);
void check_moments(struct test *t, const struct call *call, const struct data *data,
                   const struct results *got);

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

/* Elements are numbers of the shape's type; the call is on floats all the same. */
void problem_new(struct test *t, struct problem *p, const bnorm_shape *shape, enum weights weights);
/* Limits that clip some channels, and running statistics. */
void problem_add_renorm(struct test *t, struct problem *p);

/* A call in another way: strides, in place, threads, memory; on elements of this type. */
struct results problem_elsewhere(struct test *t, const struct problem *p, const struct call *call,
                                 bnorm_dtype dtype);
/* Elsewhere the bits of `want`, a call on floats, and rounded to elements of the type. *want is
 * rounded, too. */
void problem_compare(struct test *t, const struct problem *p, const struct call *call,
                     struct results *want, bnorm_dtype dtype);

/* The problem's call: the scalar set against the oracle, the case's set against that. */
struct results problem_forward(struct test *t, const struct problem *p, bnorm_dtype dtype);
/* The same of backward, for what forward gave. */
void problem_backward(struct test *t, struct problem *p, const struct results *saved,
                      bnorm_dtype dtype);
/* Its call: it gets the argument of the activation from x, with the residual, or from forward's
 * mask. */
struct call problem_backward_call(struct test *t, const struct problem *p,
                                  const struct results *saved);

#endif
