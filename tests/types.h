/* SPDX-License-Identifier: MIT
 *
 * What the tests of element types share. The oracle is exact: a call on tensors of another type
 * must give what the same call of the same kernel set gives on the elements as floats, rounded once
 * by the conversions of harness.h. */
#ifndef BNORM_TESTS_TYPES_H
#define BNORM_TESTS_TYPES_H

#include "calls.h"

/* ---------------------------------------------------------------------------------------------- */
/* Cases                                                                                          */

/* Registers each test for NHWC, NCHW and channel-blocked tensors, each type and each kernel set, as
 * "types/nhwc/bf16/avx2/name". */
struct type_test {
    const char *name;
    test_fn run;
};
void add_type_cases(struct suite *s, const struct type_test *tests, size_t count,
                    const bnorm_dtype *types, size_t type_count);

bnorm_dtype dtype_of(const struct test *t);
/* Shapes of the case's layout and type: channel and pixel counts around vectors, several blocks,
 * padded blocks of channels. The first type_few_shapes() of them are small. */
const struct shape_list *type_shapes(const struct test *t);
size_t type_few_shapes(const struct test *t);
/* Three that are large enough to be shared among threads, in any type. */
const struct shape_list *type_shared_shapes(const struct test *t);
/* The same shape with elements of another type. */
bnorm_shape shape_with(const bnorm_shape *shape, bnorm_dtype dtype);

bnorm_y_dtype y_dtype_of(bnorm_dtype dtype);
/* The type of y where x has the type `same`. */
bnorm_dtype y_type_of(bnorm_y_dtype y_dtype, bnorm_dtype same);

/* ---------------------------------------------------------------------------------------------- */
/* Data                                                                                           */

enum type_values {
    TYPE_NORMAL = 0, /* mean and deviation differ per channel */
    TYPE_OFFSET,     /* mean 100, deviation 1 */
    TYPE_LARGE,      /* near the largest number of the type */
    TYPE_TINY,       /* denormals of the type, both zeros */
    TYPE_CODES,      /* any finite number of the type */
    TYPE_RAW,        /* any bits: infinities and all NaNs too */
    TYPE_VALUES_COUNT
};
const char *type_values_name(enum type_values kind);
/* As many as shape_count(): each a number of the shape's type. For S8 and U8 any whole number of
 * the type. */
float *type_floats(struct test *t, const bnorm_shape *shape, enum type_values kind);

/* Every activation that this build has on this CPU; i picks the kind. */
#define ALL_ACT_KINDS (BNORM_ACT_MISH + 1)
int act_usable(const bnorm_isa *isa, bnorm_act_kind kind);
bnorm_act type_act(struct test *t, size_t i);

/* What a quantized element means, and the element for a value. */
float dequantized(bnorm_quant quant, float element);
float quantized(bnorm_dtype dtype, bnorm_quant quant, float value);

/* Another way to run a call for each i: every bnorm_memory, thread counts, orders of tasks. */
bnorm_exec type_exec(struct test *t, size_t i);

/* A call with elements of the case's type; x, dy and residual are such values. */
void typed_problem(struct test *t, struct problem *p, const struct call *call,
                   enum type_values values);
/* What the call of the case's own set gives on the elements as floats, rounded once. */
void typed_solve(struct test *t, struct problem *p);
/* In ten or so ways to run, others for each i. */
void typed_check_execs(struct test *t, const struct problem *p, size_t i);

void check_bytes(struct test *t, const char *what, const unsigned char *got,
                 const unsigned char *want, size_t count);

#endif
