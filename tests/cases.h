/* SPDX-License-Identifier: MIT
 *
 * What the operations' tests share: which shapes, which values, where the buffers lie. */
#ifndef BNORM_TESTS_CASES_H
#define BNORM_TESTS_CASES_H

#include "harness.h"

#define COUNT_OF(array) (sizeof(array) / sizeof((array)[0]))

/* ---------------------------------------------------------------------------------------------- */
/* Shapes                                                                                         */

struct shape_list {
    const bnorm_shape *shapes;
    size_t count;
};

/* Shapes around every edge: vectors, groups of the reductions, blocks, images. */
const struct shape_list *edge_shapes(bnorm_layout layout);
/* A dozen small ones, for crossing with many options. */
const struct shape_list *small_shapes(bnorm_layout layout);

/* Larger than a block in every direction that makes blocks, and smaller. */
const struct shape_list *value_shapes(bnorm_layout layout);

const char *layout_name(bnorm_layout layout);

/* ---------------------------------------------------------------------------------------------- */
/* Values                                                                                         */

enum values {
    VALUES_NORMAL = 0,    /* mean and deviation differ per channel */
    VALUES_MEAN_1E6,      /* mean 1e6, deviation 1 */
    VALUES_OUTLIER,       /* the first element of a channel lies 1e6 deviations off */
    VALUES_HALF_CONSTANT, /* the first half of a channel is one value */
    VALUES_CONSTANT,      /* each channel is one value */
    VALUES_HUGE,          /* about 1e38: squares overflow a float */
    VALUES_TINY,          /* about 1e-30: squares vanish in a float */
    VALUES_DENORMAL,      /* about 1e-40, both zeros among them */
    VALUES_COUNT
};
const char *values_name(enum values kind);
void fill_values(struct rng *r, const bnorm_shape *shape, enum values kind, float *x);
/* Uniform values, for parameters and gradients. */
void fill_uniform(struct rng *r, float *x, size_t count, double low, double high);
/* New uniform values, or NULL where they are not wanted. */
float *uniform_floats(struct test *t, int wanted, size_t count, double low, double high);
float *copy_floats(struct test *t, const float *x, size_t count);

/* A random activation of a kind; the parameters lie where the data is. */
bnorm_act random_act(struct rng *r, bnorm_act_kind kind);
#define ACT_KINDS 5

/* Copies into the case's memory; NULL stays NULL. */
double *to_double(struct test *t, const float *x, size_t count);
double *test_doubles(struct test *t, size_t count);

/* ---------------------------------------------------------------------------------------------- */
/* The buffers of one call                                                                        */

struct item {
    const char *name;
    bnorm_shape shape;
    struct tensor tensor;
    const float *unchanged; /* dense; what it must still hold after the call; NULL: an output */
};

/* All buffers of a call touch a guard page at the same end. */
struct fixture {
    struct test *t;
    enum side side;
    size_t count;
    struct item items[20];
};

void fixture_start(struct fixture *f, struct test *t, enum side side);
/* A tensor holding `dense` (NULL: canaries). Its strides are random unless given. */
struct tensor *fixture_tensor(struct fixture *f, const char *name, const bnorm_shape *shape,
                              const struct placement *placement, const float *dense);
/* An array of count floats at a random misalignment: an input, or an output that starts out with
 * `values` (NULL: canaries). */
const float *fixture_input(struct fixture *f, const char *name, const float *values, size_t count);
float *fixture_output(struct fixture *f, const char *name, const float *values, size_t count);
/* Bytes at a random alignment, that the call may write. */
unsigned char *fixture_bytes(struct fixture *f, const char *name, size_t bytes);
/* Workspace of the given size at a random alignment. */
void *fixture_workspace(struct fixture *f, size_t bytes);
/* The tensor will be written. */
void fixture_writes(struct fixture *f, const struct tensor *tensor);
/* Canaries, gaps and inputs are as they were. */
void fixture_check(struct fixture *f);
void fixture_end(struct fixture *f);

/* Strides: dense, padded runs, padded images, both, or images between runs; any misalignment. */
struct placement random_placement(struct rng *r, const bnorm_shape *shape, enum side side);

/* For test_context(): "nhwc n=2 c=3 hw=5". */
const char *shape_text(const bnorm_shape *shape, char text[96]);

/* The scalar kernel set, which all others are compared to. */
const bnorm_isa *scalar_isa(void);
/* Is it the case's own set? Then it is compared to the oracle. */
int is_scalar(const struct test *t);

/* Registers each case for each layout and kernel set, as "family/nhwc/f32/avx2/name". */
struct layout_case {
    const char *family, *name;
    test_fn run;
};
void add_layout_cases(struct suite *s, const struct layout_case *cases, size_t count);
/* The layout of such a case. */
bnorm_layout layout_of(const struct test *t);

#endif
