/* SPDX-License-Identifier: MIT
 *
 * Floating-point exceptions: no function raises INVALID, DIVBYZERO or OVERFLOW unless the
 * mathematics of a real element does, nor touches errno. What is no element holds signalling NaNs
 * and numbers that overflow: gaps, padding, the workspace, and the stack below each call. */
#define _GNU_SOURCE 1 /* feenableexcept */
#include "variants.h"

#include <errno.h>
#include <fenv.h>
#include <float.h>
#include <math.h>
#include <stdio.h>
#include <string.h>

/* ---------------------------------------------------------------------------------------------- */
/* Watching a call                                                                                */

#define WATCHED (FE_INVALID | FE_DIVBYZERO | FE_OVERFLOW)

/* A signalling NaN as a float, as a double, as halves of both types; huge; zero divisors. */
static const uint32_t patterns[] = {0x7fa00001u, 0x7ff00001u, 0x7d017d01u, 0x7fa07fa0u,
                                    0xff7fffffu, 0x7f7fffffu, 0x7fefffffu, 0};

static uint32_t pattern_of(struct test *t) {
    return patterns[rng_below(&t->rng, COUNT_OF(patterns))];
}

/* More than any call takes, and what bnorm.h promises, which compilers that do not optimize, or that
 * look at memory themselves, do not keep. */
#define STACK ((size_t)160 << 10)
#ifdef __has_feature
#define HAS_FEATURE(f) __has_feature(f)
#else
#define HAS_FEATURE(f) 0
#endif
#if !defined(__OPTIMIZE__) || defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__) ||     \
    HAS_FEATURE(address_sanitizer) || HAS_FEATURE(thread_sanitizer) ||                             \
    HAS_FEATURE(memory_sanitizer)
#define MOST_STACK STACK
#else
#define MOST_STACK ((size_t)16 << 10)
#endif

/* Paints the stack below the caller, who takes no more of it than the call does. */
static uint32_t paint;
static uintptr_t painted; /* its lowest address */

static __attribute__((noinline)) void paint_stack(uint32_t with) {
    volatile uint32_t below[STACK / sizeof(uint32_t)];
    for (size_t i = 0; i < COUNT_OF(below); i++)
        below[i] = with;
    paint = with;
    painted = (uintptr_t)below;
}

/* How much of it has been used since. */
static __attribute__((noinline)) size_t stack_used(void) {
    const volatile uint32_t *const below = (const volatile uint32_t *)painted;
    size_t i = 0;
    while (i < STACK / sizeof(uint32_t) && below[i] == paint)
        i++;
    return STACK - i * sizeof(uint32_t);
}

/* Flags say what was raised; every fourth call runs with the exceptions unmasked, where the CPU can
 * do that, and would end in SIGFPE. */
#define NO_ERRNO 12345

static void watch(struct test *t) {
    paint_stack(pattern_of(t));
    errno = NO_ERRNO;
    feclearexcept(FE_ALL_EXCEPT);
#if defined(__GLIBC__) && defined(__x86_64__)
    if (rng_below(&t->rng, 4) == 0)
        feenableexcept(WATCHED);
#endif
}

static void quiet(struct test *t, const char *what) {
    const size_t used = stack_used();
    const int raised = fetestexcept(WATCHED), set = errno;
#if defined(__GLIBC__) && defined(__x86_64__)
    fedisableexcept(WATCHED);
#endif
    if (raised)
        test_fail(t, "%s raised%s%s%s", what, raised & FE_INVALID ? " INVALID" : "",
                  raised & FE_DIVBYZERO ? " DIVBYZERO" : "",
                  raised & FE_OVERFLOW ? " OVERFLOW" : "");
    if (set != NO_ERRNO)
        test_fail(t, "%s set errno to %d", what, set);
    if (used > MOST_STACK)
        test_fail(t, "%s took %zu bytes of stack", what, used);
}

static void fill_pattern(struct test *t, void *memory, size_t bytes) {
    const uint32_t pattern = pattern_of(t);
    unsigned char *const to = memory;
    for (size_t i = 0; i + sizeof pattern <= bytes; i += sizeof pattern)
        memcpy(to + i, &pattern, sizeof pattern);
}

/* On this thread, whose flags are looked at. */
static bnorm_exec exec_of(struct test *t, size_t i) {
    bnorm_exec exec = type_exec(t, i);
    if (exec.parallel == parallel_threads)
        exec.parallel = parallel_serial;
    if (rng_below(&t->rng, 8) == 0)
        exec.denormals = BNORM_DENORMALS_FLUSH;
    return exec;
}

/* ---------------------------------------------------------------------------------------------- */
/* Ordinary data                                                                                  */

enum ordinary {
    FIRST_OWN = VALUES_COUNT,
    ZEROS = FIRST_OWN,
    ONE_VALUE,
    FEW_VALUES,
    ORDINARY_COUNT
};

/* x of the problem: nothing whose squares or reciprocals leave the range of a float. */
static void fill_ordinary(struct test *t, struct problem *p, bnorm_dtype dtype, size_t i) {
    static const float few[] = {0, -0.0f, 1, -1, .5f, 2};
    size_t kind = i % ORDINARY_COUNT;
    if (kind == VALUES_HUGE || (dtype != BNORM_F32 && kind < FIRST_OWN))
        kind = VALUES_NORMAL;
    for (size_t k = 0; kind >= FIRST_OWN && k < data_count(&p->data); k++)
        p->data.x[k] = kind == ONE_VALUE ? 1.5f
                       : kind == ZEROS   ? few[rng_below(&t->rng, 2)]
                                         : few[rng_below(&t->rng, COUNT_OF(few))];
    if (kind < FIRST_OWN && dtype == BNORM_F32)
        data_fill(t, &p->data, (enum values)kind, BNORM_F32);
    /* y and dx stay within the range of their type. */
    const int may_be_0 =
        dtype == BNORM_F16 ? kind == ZEROS || kind == ONE_VALUE : kind != VALUES_DENORMAL;
    if (dtype == BNORM_F16)
        p->call.eps = 1e-3;
    if (may_be_0 && !p->data.weights && rng_below(&t->rng, 4) == 0)
        p->call.eps = 0;
}

static bnorm_shape shape_of(struct test *t, size_t i, bnorm_dtype dtype) {
    static const size_t counts[] = {1, 2, 3, 5, 8, 16};
    struct rng *r = &t->rng;
    bnorm_shape shape = problem_shape(t, i, dtype);
    if (i < PROBLEM_SHAPES)
        return shape;
    shape.n = 1 + rng_below(r, 4);
    shape.c = rng_below(r, 2) ? 1 + rng_below(r, 70) : counts[rng_below(r, COUNT_OF(counts))];
    shape.hw = 1 + rng_below(r, rng_below(r, 4) ? 40 : 1500 / shape.c + 1);
    return shape;
}

/* ---------------------------------------------------------------------------------------------- */
/* Training, backward and moments, with all variants                                              */

static struct results run_watched(struct test *t, const struct problem *p, const struct call *call,
                                  size_t i) {
    struct ready v;
    const bnorm_exec exec = exec_of(t, i);
    struct call one = *call;
    one.side = (int)rng_below(&t->rng, 2);
    if (one.op == BNORM_OP_BACKWARD && rng_below(&t->rng, 6) == 0)
        one.out = NOWHERE;
    ready_new(t, &v, &one, &p->data);
    ready_say(t, &v, &exec);
    fill_pattern(t, v.at.ws, v.at.ws_size);
    watch(t);
    const bnorm_status status = call_run(&v.args, &exec);
    quiet(t, "the call");
    check_status(t, "the call", status, BNORM_OK);
    return ready_finish(t, &v);
}

/* Every way to tell backward of the activation's argument. */
static void run_backwards(struct test *t, struct problem *p, const struct results *saved,
                          size_t i) {
    const bnorm_act act = p->call.act;
    struct call call = p->call;
    data_take(&p->data, saved);
    call.op = BNORM_OP_BACKWARD;
    call.mask = 0;
    run_watched(t, p, &call, i);
    if (act_has_mask(act) && saved->mask) {
        call.residual = 0;
        call.given_mask = saved->mask;
        run_watched(t, p, &call, i);
        call.given_mask = NULL;
    }
    if (y_tells_argument(act)) {
        call.residual = 0;
        call.given_y = saved->y;
        run_watched(t, p, &call, i);
        call.given_y = NULL;
    }
    call.residual = p->call.residual;
    if (!p->data.weights && !call.ghost && call.shape.c_block <= 1) {
        call.dy_broadcast = (unsigned)rng_below(&t->rng, 8);
        run_watched(t, p, &call, i);
        call.dy_broadcast = 0;
    }
    call.frozen = 1;
    p->data.r = p->data.d = NULL;
    run_watched(t, p, &call, i);
}

static size_t rounds_of(size_t quick, size_t all) {
    return test_quick() ? quick : all;
}

static void test_training(struct test *t) {
    for (size_t i = 0; i < rounds_of(2 * PROBLEM_SHAPES, 400); i++) {
        const bnorm_dtype dtype = problem_dtype(rng_below(&t->rng, 3));
        const bnorm_shape shape = shape_of(t, i, dtype);
        const int weighted = rng_below(&t->rng, 4) == 0;
        bnorm_ghost ghost = {shape.n, (bnorm_ghost_order)rng_below(&t->rng, 2),
                             (bnorm_ghost_running)rng_below(&t->rng, 2)};
        struct problem p;
        problem_new(t, &p, &shape,
                    weighted ? (enum weights)(1 + rng_below(&t->rng, 4)) : WEIGHTS_NONE);
        p.call.shape.dtype = dtype;
        p.call.dense = rng_below(&t->rng, 3) == 0;
        p.call.act = type_act(t, i);
        p.call.mask = act_has_mask(p.call.act);
        random_targets(&t->rng, &p.call);
        fill_ordinary(t, &p, dtype, rng_below(&t->rng, 2 * ORDINARY_COUNT));
        if (rng_below(&t->rng, 4) == 0) {
            problem_add_renorm(t, &p);
        } else if (!weighted && rng_below(&t->rng, 4) == 0) {
            p.call.ghost = &ghost;
            p.call.mask = 0;
        }
        struct call moments = p.call;
        moments.op = BNORM_OP_MOMENTS;
        if (!p.call.ghost)
            run_watched(t, &p, &moments, i);
        const struct results saved = run_watched(t, &p, &p.call, i);
        run_backwards(t, &p, &saved, i);
        test_release(t);
    }
}

/* ---------------------------------------------------------------------------------------------- */
/* Inference between all types                                                                    */

static bnorm_quant random_quant(struct test *t, bnorm_dtype dtype) {
    static const float scales[] = {0, .05f, FLT_MAX};
    const int least = dtype == BNORM_S8 ? -128 : 0;
    return (bnorm_quant){scales[rng_below(&t->rng, 3)], least + (int)rng_below(&t->rng, 256)};
}

/* Where each step of a quantized tensor is FLT_MAX, elements are zero; padding may be anything. */
static struct tensor *apply_input(struct test *t, struct fixture *f, const char *name,
                                  const bnorm_shape *shape, bnorm_quant quant) {
    const int quantized = shape->dtype > BNORM_F16;
    float *const dense = type_floats(t, shape, TYPE_NORMAL);
    for (size_t i = 0; i < shape_count(shape); i++)
        if (!quantized && shape_channel(shape, i) >= shape->c)
            dense[i] = bits_float(0xffa54321u);
        else if (quantized && quant.scale == FLT_MAX && shape_channel(shape, i) < shape->c)
            dense[i] = (float)quant.zero_point;
    return fixture_tensor(f, name, shape, NULL, dense);
}

static void apply_once(struct test *t, const bnorm_shape *shape, bnorm_dtype y_type, size_t i) {
    const size_t c = shape->c;
    const bnorm_shape y_shape = shape_with(shape, y_type);
    const bnorm_exec exec = exec_of(t, i);
    struct fixture f;
    char text[96];
    fixture_start(&f, t, (enum side)rng_below(&t->rng, 2));
    const bnorm_quant quant = random_quant(t, shape->dtype);
    const struct tensor *const x = apply_input(t, &f, "x", shape, quant);
    struct tensor *const y = fixture_tensor(&f, "y", &y_shape, NULL, NULL);
    fixture_writes(&f, y);
    bnorm_affine affine = {
        .center = uniform_floats(t, (int)rng_below(&t->rng, 2), c, -2, 2),
        .scale = uniform_floats(t, (int)rng_below(&t->rng, 4), c, -2, 2),
        .shift = uniform_floats(t, (int)rng_below(&t->rng, 4), c, -2, 2),
        .act = type_act(t, i),
        .y_dtype = y_dtype_of(y_type),
        .x_quant = quant,
        .residual_quant = quant,
        .y_quant = random_quant(t, y_type),
    };
    if (rng_below(&t->rng, 2))
        affine.residual = tensor_in(apply_input(t, &f, "residual", shape, quant));
    if (act_has_mask(affine.act) && rng_below(&t->rng, 2))
        affine.mask = fixture_bytes(&f, "mask", bnorm_mask_size(shape));
    test_context(t, "bnorm_apply %s to %s, act %d%s%s%s, memory %d", shape_text(shape, text),
                 dtype_name(y_type), (int)affine.act.kind, affine.center ? " centred" : "",
                 affine.residual.data ? " residual" : "", affine.mask ? " mask" : "",
                 (int)exec.memory);
    watch(t);
    const bnorm_status status = bnorm_apply(shape, tensor_in(x), tensor_out(y), &affine, &exec);
    quiet(t, "bnorm_apply");
    check_status(t, "bnorm_apply", status, BNORM_OK);
    fixture_check(&f);
    fixture_end(&f);
}

static void test_apply(struct test *t) {
    for (size_t i = 0; i < rounds_of(6, 40); i++)
        for (bnorm_dtype x = BNORM_F32; x <= BNORM_U8; x++)
            for (bnorm_dtype y = BNORM_F32; y <= BNORM_U8; y++) {
                const bnorm_shape shape = shape_of(t, rng_below(&t->rng, 2 * PROBLEM_SHAPES), x);
                apply_once(t, &shape, y, rng_below(&t->rng, 1000));
                test_release(t);
            }
}

/* Lanes that hold nothing of a run must not be computed with its parameters: (0 - center)*scale
 * would overflow, as would the shift in binary16. */
static void test_far_from_zero(struct test *t) {
    for (size_t i = 0; i < rounds_of(60, 400); i++) {
        const bnorm_dtype dtype = i % 3 == 2 ? BNORM_BF16 : BNORM_F32;
        const bnorm_shape shape = shape_of(t, i, dtype);
        const float far = element_round(dtype, 1e30f);
        struct problem p;
        problem_new(t, &p, &shape, WEIGHTS_NONE);
        p.call.shape.dtype = dtype;
        p.call.dense = 0;
        p.call.lo = 0;
        p.call.act = type_act(t, i);
        p.call.mask = 0;
        p.data.beta = NULL;
        p.data.invstd = test_floats(t, shape.c);
        p.data.gamma = NULL;
        for (size_t k = 0; k < shape.c; k++) {
            p.data.mean[k] = far;
            p.data.invstd[k] = 1e20f;
        }
        for (size_t k = 0; k < data_count(&p.data); k++) {
            p.data.x[k] = far;
            p.data.dy[k] = 0x1p-60f;
        }
        p.call.op = BNORM_OP_APPLY;
        run_watched(t, &p, &p.call, i);
        p.call.op = BNORM_OP_BACKWARD;
        run_watched(t, &p, &p.call, i);
        p.call.frozen = 1;
        run_watched(t, &p, &p.call, i);
        test_release(t);
    }
}

/* ---------------------------------------------------------------------------------------------- */
/* Activations, at floats of every size                                                           */

#define ARGUMENTS ((size_t)4099)

static void activation_at(struct test *t, const bnorm_act *act, const float *v) {
    const bnorm_shape shape = {.layout = BNORM_NCHW, .n = 1, .c = 1, .hw = ARGUMENTS};
    const bnorm_exec exec = {.isa = t->isa};
    const bnorm_affine affine = {.act = *act};
    const float zero = 0, one = 1;
    float *const dy = test_floats(t, ARGUMENTS), *const y = test_floats(t, ARGUMENTS);
    float dgamma, dbeta;
    for (size_t i = 0; i < ARGUMENTS; i++)
        dy[i] = 0x1p-70f;
    const bnorm_in x_in = {v, 0, 0}, dy_in = {dy, 0, 0};
    const bnorm_out out = {y, 0, 0};
    watch(t);
    bnorm_apply(&shape, x_in, out, &affine, &exec);
    quiet(t, "the activation");

    bnorm_grad grad = {.save_mean = &zero, .save_invstd = &one, .act = *act, .frozen = 1};
    const size_t bytes = bnorm_workspace(BNORM_OP_BACKWARD, &shape);
    void *const ws = test_alloc(t, bytes);
    watch(t);
    bnorm_backward(&shape, x_in, dy_in, out, &grad, ws, bytes, &exec);
    quiet(t, "the derivative");
    grad.dresidual = out;
    watch(t);
    bnorm_backward(&shape, x_in, dy_in, (bnorm_out){NULL, 0, 0}, &grad, ws, bytes, &exec);
    quiet(t, "the derivative, of dresidual alone");
    grad.dgamma = &dgamma;
    grad.dbeta = &dbeta;
    watch(t);
    bnorm_backward(&shape, x_in, dy_in, out, &grad, ws, bytes, &exec);
    quiet(t, "the sums with the derivative");
}

static void test_activations(struct test *t) {
    static const bnorm_act acts[] = {
        {BNORM_ACT_RELU, 0, 0},          {BNORM_ACT_CLAMP, 0, 6},
        {BNORM_ACT_LEAKY_RELU, .1f, 0},  {BNORM_ACT_LEAKY_RELU, 1, 0},
        {BNORM_ACT_HARD_SWISH, 0, 0},    {BNORM_ACT_SIGMOID, 0, 0},
        {BNORM_ACT_SILU, 0, 0},          {BNORM_ACT_TANH, 0, 0},
        {BNORM_ACT_GELU, 0, 0},          {BNORM_ACT_ELU, 1, 0},
        {BNORM_ACT_ELU, 1e30f, 0},       {BNORM_ACT_SOFTPLUS, 0, 0},
        {BNORM_ACT_MISH, 0, 0},          {BNORM_ACT_CLAMP, -INFINITY, INFINITY},
        {BNORM_ACT_LEAKY_RELU, 1e30f, 0}};
    for (size_t k = 0; k < COUNT_OF(acts); k++)
        for (size_t round = 0; round < rounds_of(4, 64); round++) {
            float *const v = test_floats(t, ARGUMENTS);
            for (size_t i = 0; i < ARGUMENTS; i++) {
                const uint32_t bits = (uint32_t)rng_u64(&t->rng) & 0xff7fffffu;
                const uint32_t usual = 100 + (bits >> 23 & 63); /* exponent */
                v[i] = bits_float(round % 2 ? bits : (bits & 0x807fffffu) | usual << 23);
                if (acts[k].kind == BNORM_ACT_LEAKY_RELU && acts[k].a > 1)
                    v[i] = fabsf(v[i]); /* only that is too large times the slope */
            }
            v[0] = 0;
            v[1] = acts[k].a > 1 ? 0 : -0.0f;
            v[2] = INFINITY;
            v[3] = acts[k].a > 1 ? 1 : -INFINITY;
            test_context(t, "act %d (%g)", (int)acts[k].kind, (double)acts[k].a);
            if (act_usable(t->isa, acts[k].kind))
                activation_at(t, &acts[k], v);
            test_release(t);
        }
}

/* ---------------------------------------------------------------------------------------------- */
/* Jobs and pieces                                                                                */

#define JOBS 8

static void test_jobs(struct test *t) {
    for (size_t round = 0; round < rounds_of(8, 60); round++) {
        const bnorm_exec exec = exec_of(t, round);
        struct problem *problems = test_alloc(t, JOBS * sizeof *problems);
        struct ready *ready = test_alloc(t, JOBS * sizeof *ready);
        bnorm_job jobs[JOBS];
        for (size_t i = 0; i < JOBS; i++) {
            static const bnorm_op ops[] = {BNORM_OP_APPLY, BNORM_OP_MOMENTS, BNORM_OP_FORWARD_TRAIN,
                                           BNORM_OP_BACKWARD};
            const bnorm_shape shape = problem_shape(t, rng_below(&t->rng, PROBLEM_SMALL),
                                                    problem_dtype(rng_below(&t->rng, 3)));
            problem_new(t, &problems[i], &shape, WEIGHTS_NONE);
            problems[i].call.op = ops[i % COUNT_OF(ops)];
            problems[i].call.shape.dtype = shape.dtype;
            problems[i].call.dense = 0;
            problems[i].call.mask &= problems[i].call.op != BNORM_OP_BACKWARD;
            problems[i].call.side = i % 2;
            ready_new(t, &ready[i], &problems[i].call, &problems[i].data);
            jobs[i] = ready[i].args.job;
        }
        test_context(t, "round %zu", round);
        watch(t);
        const bnorm_status status = bnorm_run_jobs(jobs, JOBS, NULL, &exec);
        quiet(t, "bnorm_run_jobs");
        check_status(t, "bnorm_run_jobs", status, BNORM_OK);
        for (size_t i = 0; i < JOBS; i++)
            ready_finish(t, &ready[i]);
        test_release(t);
    }
}

/* The images of a call twice: as two pieces, merged. */
static void collect_twice(struct test *t, const struct call_args *r, bnorm_op op,
                          const bnorm_exec *exec, bnorm_partial *piece) {
    bnorm_partial next;
    const size_t n = r->shape.n, c = r->shape.c, size = bnorm_partial_size(c, 3 * n);
    bnorm_partial *const pieces[] = {piece, &next};
    double *const totals = test_doubles(t, 2 * c);
    double count;
    for (size_t k = 0; k < 2; k++) {
        *pieces[k] = (bnorm_partial){op, c, 0, k ? piece->first + n : n, 0, NULL, size};
        pieces[k]->nodes = test_alloc(t, size);
        fill_pattern(t, pieces[k]->nodes, size);
        watch(t);
        const bnorm_status status =
            op == BNORM_OP_MOMENTS
                ? bnorm_partial_collect(&r->shape, r->job.x, pieces[k], r->job.ws, r->job.ws_size,
                                        exec)
                : bnorm_partial_collect_grad(&r->shape, r->job.x, r->job.dy, &r->grad, pieces[k],
                                             r->job.ws, r->job.ws_size, exec);
        quiet(t, "collecting");
        check_status(t, "collecting", status, BNORM_OK);
    }
    watch(t);
    check_status(t, "bnorm_partial_merge", bnorm_partial_merge(piece, &next), BNORM_OK);
    check_status(t, "bnorm_partial_total", bnorm_partial_total(piece, &count, totals, totals + c),
                 BNORM_OK);
    quiet(t, "merging");
}

static void pieces_forward(struct test *t, const struct call_args *r, const bnorm_exec *exec) {
    const size_t c = r->shape.c;
    float *const given = test_floats(t, 3 * c);
    bnorm_partial piece;
    collect_twice(t, r, BNORM_OP_MOMENTS, exec, &piece);
    const bnorm_affine affine = {.center = given,
                                 .scale = given + c,
                                 .shift = given + 2 * c,
                                 .residual = r->train.residual,
                                 .act = r->train.act};
    watch(t);
    check_status(t, "bnorm_partial_finish", bnorm_partial_finish(&piece, &r->train, given),
                 BNORM_OK);
    check_status(t, "bnorm_apply", bnorm_apply(&r->shape, r->job.x, r->job.out, &affine, exec),
                 BNORM_OK);
    quiet(t, "finishing");
}

static void pieces_backward(struct test *t, const struct call_args *r, const bnorm_exec *exec) {
    float *const given = test_floats(t, 5 * r->shape.c);
    bnorm_partial piece;
    collect_twice(t, r, BNORM_OP_BACKWARD, exec, &piece);
    watch(t);
    check_status(t, "bnorm_partial_finish_grad", bnorm_partial_finish_grad(&piece, &r->grad, given),
                 BNORM_OK);
    quiet(t, "bnorm_partial_finish_grad");
    watch(t);
    check_status(
        t, "bnorm_partial_apply_grad",
        bnorm_partial_apply_grad(&r->shape, r->job.x, r->job.dy, r->job.out, &r->grad, given, exec),
        BNORM_OK);
    quiet(t, "bnorm_partial_apply_grad");
}

static void test_pieces(struct test *t) {
    for (size_t i = 0; i < rounds_of(40, 200); i++) {
        const bnorm_dtype dtype = problem_dtype(i);
        const bnorm_shape shape = shape_of(t, i, dtype);
        const bnorm_exec exec = exec_of(t, i);
        struct problem p;
        struct ready r;
        problem_new(t, &p, &shape, WEIGHTS_NONE);
        p.call.shape.dtype = dtype;
        p.call.dense = 0;
        p.call.act = type_act(t, i);
        p.call.mask = 0;
        p.call.op = i % 2 ? BNORM_OP_BACKWARD : BNORM_OP_FORWARD_TRAIN;
        fill_ordinary(t, &p, dtype, rng_below(&t->rng, 2 * ORDINARY_COUNT));
        p.call.what = "in pieces";
        p.call.side = i % 2;
        ready_new(t, &r, &p.call, &p.data);
        ready_say(t, &r, &exec);
        fill_pattern(t, r.at.ws, r.at.ws_size);
        (i % 2 ? pieces_backward : pieces_forward)(t, &r.args, &exec);
        ready_finish(t, &r);
        test_release(t);
    }
}

/* ---------------------------------------------------------------------------------------------- */
/* Parameters                                                                                     */

#define CHANNELS 37

static void test_fold_and_running(struct test *t) {
    static const bnorm_conv_layout layouts[] = {BNORM_CONV_OIHW, BNORM_CONV_OHWI, BNORM_CONV_HWIO,
                                                BNORM_CONV_IOHW, BNORM_CONV_HWOI};
    for (size_t round = 0; round < rounds_of(20, 200); round++) {
        float mean[CHANNELS], var[CHANNELS], scale[CHANNELS], shift[CHANNELS],
            weights[CHANNELS * 6];
        fill_uniform(&t->rng, mean, CHANNELS, -2, 2);
        fill_uniform(&t->rng, var, CHANNELS, 0, 2);
        fill_uniform(&t->rng, weights, CHANNELS * 6, -2, 2);
        var[round % CHANNELS] = 0;
        if (round % 2)
            var[(round + 1) % CHANNELS] = INFINITY; /* folds to 0 */
        const double eps = round % 3 ? 0 : 1e-5;
        const bnorm_conv conv = {layouts[round % COUNT_OF(layouts)], CHANNELS, 3, 2, 1};
        watch(t);
        check_status(t, "bnorm_fold",
                     bnorm_fold(CHANNELS, NULL, NULL, mean, var, eps, scale, shift), BNORM_OK);
        check_status(
            t, "bnorm_fold_conv",
            bnorm_fold_conv(&conv, NULL, NULL, mean, var, eps, weights, NULL, weights, shift),
            BNORM_OK);
        quiet(t, "folding");

        float running_mean[CHANNELS], running_var[CHANNELS];
        fill_uniform(&t->rng, running_mean, CHANNELS, -2, 2);
        fill_uniform(&t->rng, running_var, CHANNELS, 0, 2);
        var[(round + 1) % CHANNELS] = 1;
        const double momentum = (double)(round % 5) / 4, n = 1 + (double)(round % 4);
        const bnorm_running presets[] = {
            bnorm_running_keras(running_mean, running_var, momentum),
            bnorm_running_tensorflow(running_mean, running_var, momentum),
            bnorm_running_pytorch(running_mean, running_var, momentum),
            bnorm_running_pytorch_cumulative(running_mean, running_var, round),
            bnorm_running_onnx(running_mean, running_var, momentum),
            bnorm_running_caffe(running_mean, running_var, momentum, round * round * round),
        };
        for (size_t k = 0; k < COUNT_OF(presets); k++) {
            watch(t);
            bnorm_running_caffe(running_mean, running_var, momentum, round * round * round);
            check_status(t, "bnorm_running_update",
                         bnorm_running_update(CHANNELS, mean, var, n, &presets[k]), BNORM_OK);
            quiet(t, "bnorm_running_update");
        }
    }
}

/* What is refused raises nothing either, and an empty batch. */
static void test_refusals(struct test *t) {
    const double bad[] = {NAN, INFINITY, -INFINITY, -1};
    const bnorm_shape shape = {.n = 2, .c = 3, .hw = 5}, empty = {.c = 3, .hw = 5};
    const size_t bytes = bnorm_workspace(BNORM_OP_BACKWARD, &shape);
    float x[30] = {0}, y[30], c[6][3] = {{0}};
    void *const ws = test_alloc(t, bytes);
    const bnorm_in in = {x, 0, 0};
    const bnorm_out out = {y, 0, 0};
    for (size_t i = 0; i < COUNT_OF(bad); i++) {
        const float value = (float)bad[i];
        const bnorm_running running = {.mean = c[0], .var = c[1], .rate = .1},
                            no_rate = {.mean = c[0], .var = c[1], .rate = i < 3 ? bad[i] : NAN};
        const bnorm_renorm renorms[] = {{bad[i], -2, 0, NULL, NULL},
                                        {1, bad[i] < 2 ? bad[i] : NAN, 0, NULL, NULL},
                                        {1, 1, bad[i] < 0 ? bad[i] : NAN, NULL, NULL}};
        const bnorm_affine affines[] = {
            {.act = {BNORM_ACT_CLAMP, value, -INFINITY}},
            {.act = {BNORM_ACT_CLAMP, 0, i == 1 ? NAN : value}},
            {.act = {BNORM_ACT_LEAKY_RELU, i < 3 ? value : NAN, 0}},
            {.y_dtype = BNORM_Y_S8, .y_quant = {value, 0}},
        };
        test_context(t, "%g", bad[i]);
        watch(t);
        for (size_t k = 0; k < COUNT_OF(affines); k++)
            check_status(t, "bnorm_apply", bnorm_apply(&shape, in, out, &affines[k], NULL),
                         k < 3 ? BNORM_BAD_ACTIVATION : BNORM_BAD_QUANTIZATION);
        for (size_t k = 0; k < COUNT_OF(renorms); k++) {
            const bnorm_train train = {.eps = 1e-5, .running = running, .renorm = &renorms[k]};
            check_status(t, "renorm", bnorm_forward_train(&shape, in, out, &train, ws, bytes, NULL),
                         BNORM_BAD_RENORM);
        }
        const bnorm_train trains[] = {
            {.eps = bad[i]}, {.running = no_rate}, {.weights = {x, bad[i]}}};
        for (size_t k = 0; k < COUNT_OF(trains); k++)
            check_status(t, "bnorm_forward_train",
                         bnorm_forward_train(&shape, in, out, &trains[k], ws, bytes, NULL),
                         k == 1 ? BNORM_BAD_RATE : BNORM_BAD_EPSILON);
        check_status(t, "bnorm_running_update",
                     bnorm_running_update(3, c[2], c[3], bad[i], &running), BNORM_BAD_PARAMETER);
        check_status(t, "bnorm_fold", bnorm_fold(3, NULL, NULL, c[0], c[1], bad[i], c[2], c[3]),
                     BNORM_BAD_EPSILON);
        quiet(t, "what is refused");
    }
    const bnorm_grad grad = {.dgamma = c[0], .dbeta = c[1]};
    const bnorm_train train = {.running = {.mean = c[0], .var = c[1], .rate = .1}};
    watch(t);
    check_status(t, "bnorm_apply", bnorm_apply(&empty, in, out, NULL, NULL), BNORM_OK);
    check_status(t, "bnorm_moments", bnorm_moments(&empty, in, c[0], c[1], NULL, 0, NULL),
                 BNORM_OK);
    check_status(t, "bnorm_forward_train",
                 bnorm_forward_train(&empty, in, out, &train, NULL, 0, NULL), BNORM_OK);
    check_status(t, "bnorm_backward", bnorm_backward(&empty, in, in, out, &grad, NULL, 0, NULL),
                 BNORM_OK);
    quiet(t, "an empty batch");
}

void add_exceptions(struct suite *s) {
    static const struct type_test tests[] = {
        {"training", test_training}, {"apply", test_apply},   {"far_from_zero", test_far_from_zero},
        {"jobs", test_jobs},         {"pieces", test_pieces},
    };
    add_problem_cases(s, "exceptions", tests, COUNT_OF(tests));
    suite_add_per_isa(s, test_activations, NULL, "exceptions/%s/activations");
    suite_add(s, NULL, test_fold_and_running, NULL, "exceptions/fold_and_running");
    suite_add(s, NULL, test_refusals, NULL, "exceptions/refusals");
}
