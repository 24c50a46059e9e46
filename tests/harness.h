/* SPDX-License-Identifier: MIT
 *
 * What every test file builds on: the suite, deterministic random numbers, buffers between guard
 * pages, strided tensors, comparisons that say where and what, and ways to run tasks.
 *
 * A test file exposes one `void add_<file>(struct suite *s)` that registers its cases. A case runs
 * on one kernel set (or on none), may loop over many shapes, and says with test_context() what it
 * is about to try, so that a failure, also a hit guard page, names it. */
#ifndef BNORM_TESTS_HARNESS_H
#define BNORM_TESTS_HARNESS_H

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#if defined(_WIN32)
#include "on_windows.h"
#else
#if defined(__has_include)
#if !__has_include(<cmocka.h>)
#error "cmocka is missing: run make deps (Debian: libcmocka-dev)"
#endif
#endif
#include <cmocka.h>
#endif
#include "bnorm.h"

/* ---------------------------------------------------------------------------------------------- */
/* Random numbers                                                                                 */

struct rng {
    uint64_t state;
};

uint64_t rng_u64(struct rng *r);
size_t rng_below(struct rng *r, size_t n); /* 0 <= value < n; n >= 1 */
double rng_uniform(struct rng *r, double low, double high);
double rng_normal(struct rng *r); /* mean 0, deviation 1 */

/* ---------------------------------------------------------------------------------------------- */
/* Suite                                                                                          */

struct suite;

/* A running case. */
struct test {
    const char *name;
    const bnorm_isa *isa; /* NULL: a case that is not about a kernel set */
    const void *param;    /* what was given to suite_add() */
    struct rng rng;       /* seeded from $BNORM_SEED and the name */
    char context[512];    /* what is being tried, for messages */
};

typedef void (*test_fn)(struct test *t);

/* Registers a case; name is a printf format, such as "apply/nhwc/f32/%s". isa NULL = about no set;
 * with a set, the case counts for it in the closing table. param must outlive the run (static). */
void suite_add(struct suite *s, const bnorm_isa *isa, test_fn run, const void *param,
               const char *name, ...) __attribute__((format(printf, 5, 6)));

/* Registers a case for every usable kernel set; "%s" in name stands for the set's name. */
void suite_add_per_isa(struct suite *s, test_fn run, const void *param, const char *name);

void test_context(struct test *t, const char *format, ...) __attribute__((format(printf, 2, 3)));

/* Fails the case with the message, its context and the seed. Never from another thread. */
_Noreturn void test_fail(struct test *t, const char *format, ...)
    __attribute__((format(printf, 2, 3)));

/* How deep the cases go: full with $BNORM_TEST_FULL (make test-full); quick with
 * $BNORM_TEST_QUICK, for emulators and sanitizers; else as `make test` does. Less depth means fewer
 * repetitions and sizes, never fewer kinds of them: every edge is tried at every depth. */
int test_full(void);
int test_quick(void);
/* The number for this depth. */
size_t test_repeat(size_t full, size_t normal, size_t quick);
/* 1 for all at the full depth, else for about one in `every`: other ones in each case, so that the
 * cases of all kernel sets, layouts and types together try them all. */
int test_draws(struct test *t, size_t every);
/* As put before a command for the same depth: "BNORM_TEST_FULL=1 ", or "". */
const char *test_depth_setting(void);

/* Lets the first calls of bnorm race on several threads. main() does this before anything else. */
void race_first_calls(void);

void add_apply(struct suite *s);
void add_train(struct suite *s);
void add_backward(struct suite *s);
void add_threads(struct suite *s);
void add_properties(struct suite *s);
void add_errors(struct suite *s);
void add_fold(struct suite *s);
void add_kernels(struct suite *s);
void add_blocked(struct suite *s);
void add_mask(struct suite *s);
void add_jobs(struct suite *s);
void add_pieces(struct suite *s);
void add_smooth(struct suite *s);
void add_types(struct suite *s);
void add_types_train(struct suite *s);
void add_quantized(struct suite *s);
void add_onnx(struct suite *s);
void add_frameworks(struct suite *s);
void add_variants(struct suite *s);
void add_variant_calls(struct suite *s);
void add_running(struct suite *s);
void add_options(struct suite *s);
void add_describe(struct suite *s);
void add_fma(struct suite *s);
void add_cpu(struct suite *s);
void add_exceptions(struct suite *s);

/* ---------------------------------------------------------------------------------------------- */
/* Buffers between guard pages                                                                    */

/* Which guard page touches the buffer. Whatever is not touched by one has canary bytes next to it.
 */
enum side { SIDE_START = 0, SIDE_END };

struct buffer {
    unsigned char *data; /* `bytes` bytes, filled with canaries by buffer_new() */
    size_t bytes;
    enum side side;
    struct buffer_slot *slot;
};

/* `shift` bytes (at most 256) lie between the buffer and its guard page; 0 = flush. Start at
 * SIDE_START is page-aligned plus shift, end at SIDE_END page-aligned minus shift. bytes may be 0.
 */
void buffer_new(struct buffer *b, size_t bytes, enum side side, size_t shift);
/* Fails the case if a canary around the buffer has changed. */
void buffer_check(struct test *t, const struct buffer *b, const char *what);
void buffer_free(struct buffer *b);

/* The canary as a float pattern (a signalling NaN that no arithmetic yields). */
#define CANARY_BITS 0xffa5c3a5u

/* ---------------------------------------------------------------------------------------------- */
/* Elements of any type, as floats                                                                */

size_t dtype_size(bnorm_dtype dtype);
const char *dtype_name(bnorm_dtype dtype); /* "f32" */
/* The element nearest to the value, ties to even, as a float. For S8 and U8: of the integer. */
float element_round(bnorm_dtype dtype, float value);
float element_get(bnorm_dtype dtype, const void *data, size_t i);
void element_set(bnorm_dtype dtype, void *data, size_t i, float value); /* rounds */

/* ---------------------------------------------------------------------------------------------- */
/* Strided tensors                                                                                */

struct tensor {
    struct buffer buffer;
    bnorm_dtype dtype;
    void *data;
    size_t run_stride, image_stride;             /* resolved: 0 is replaced by what it means */
    size_t given_run_stride, given_image_stride; /* as in the placement */
    size_t span;                                 /* elements from the first to past the last */
};

/* How a tensor lies: strides as in bnorm_in (0 = dense), guard page, misalignment in elements. */
struct placement {
    size_t run_stride, image_stride;
    enum side side;
    size_t shift;
};

/* Elements of a blocked tensor include its padding, whose channel is c or more. */
size_t shape_runs(const bnorm_shape *shape);              /* per image */
size_t shape_len(const bnorm_shape *shape);               /* elements of a run */
size_t shape_count(const bnorm_shape *shape);             /* elements */
size_t shape_channel(const bnorm_shape *shape, size_t i); /* of dense element i */

/* All bytes are canaries at first, elements and gaps. */
void tensor_new(struct tensor *t, const bnorm_shape *shape, const struct placement *p);
/* Dense elements are floats, whatever the tensor's type; put rounds them. */
void tensor_put(struct tensor *t, const bnorm_shape *shape, const float *dense);
void tensor_get(const struct tensor *t, const bnorm_shape *shape, float *dense);
/* Fails the case if a canary around the tensor or in a gap between its runs has changed. */
void tensor_check_gaps(struct test *t, const struct tensor *x, const bnorm_shape *shape,
                       const char *what);
bnorm_in tensor_in(const struct tensor *t);
bnorm_out tensor_out(const struct tensor *t);

/* ---------------------------------------------------------------------------------------------- */
/* Comparisons                                                                                    */

uint32_t float_bits(float f);
float bits_float(uint32_t bits);
#define NAN_BITS 0xffffffffu

/* Whether this thread takes denormals for zero. All of a test does on 32-bit Arm with NEON, which can't
 * do otherwise: then the other sets have its bits. */
int test_flushes(void);

/* Equal bits, or fail with the first index that differs. */
void check_bits(struct test *t, const char *what, const float *got, const float *want,
                size_t count);
/* |got - want| <= bound; a NaN is only near a NaN, an infinity near what overflows a float. */
void check_near(struct test *t, const char *what, size_t index, float got, double want,
                double bound);
void check_status(struct test *t, const char *what, bnorm_status got, bnorm_status want);

/* Zeroed memory that lives until the end of the case; never NULL. */
void *test_alloc(struct test *t, size_t bytes);
float *test_floats(struct test *t, size_t count);
/* Gives back all buffers and memory. Done after every case, failed ones too; a case that loops
 * over many shapes calls it between them. */
void test_release(struct test *t);

/* ---------------------------------------------------------------------------------------------- */
/* Ways to run tasks, each a bnorm_parallel                                                       */

void parallel_serial(void *pool, void (*task)(void *arg, size_t i), void *arg, size_t count);
void parallel_reversed(void *pool, void (*task)(void *arg, size_t i), void *arg, size_t count);
/* pool: struct rng of the order. */
void parallel_shuffled(void *pool, void (*task)(void *arg, size_t i), void *arg, size_t count);
/* Four POSIX threads pull indices from one counter. pool: NULL, or a size_t that counts the calls.
 */
void parallel_threads(void *pool, void (*task)(void *arg, size_t i), void *arg, size_t count);

#endif
