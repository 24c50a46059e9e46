/* SPDX-License-Identifier: MIT
 *
 * What JAX's compiler calls (bnorm/jax.py): handlers of XLA's foreign function interface, in which
 * tensors are dense, and threads XLA's own. Scratch memory comes from XLA, too, as one more result.
 *
 * The interface is one of structs, which XLA keeps as they are within a major version. Those that
 * are used here are declared here, so that the package is built without JAX; `make engines`
 * compares them with the header of the JAX that it runs with. */
#include "xla.h"

#include "bnorm.h"

#include <sched.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>

#define EXPORT __attribute__((visibility("default")))

/* ---------------------------------------------------------------------------------------------- */
/* Threads. XLA runs what it is given when it has a thread for it, maybe after all is done: nobody
 * waits for a helper that has not begun. */

struct work {
    void (*task)(void *arg, size_t i);
    void *arg;
    size_t count;
    atomic_size_t next, done;
    atomic_size_t users; /* who may still look at this */
};

static void leave(struct work *work) {
    if (atomic_fetch_sub(&work->users, 1) == 1)
        free(work);
}

static void help(void *pointer) {
    struct work *work = pointer;
    for (size_t i; (i = atomic_fetch_add(&work->next, 1)) < work->count;) {
        work->task(work->arg, i);
        atomic_fetch_add(&work->done, 1);
    }
    leave(work);
}

/* 0 where there was an error. */
static int succeeded(const xla_frame *frame, xla_error *error) {
    if (error)
        frame->api->error_destroy(&(xla_error_destroy_args){
            .struct_size = sizeof(xla_error_destroy_args), .error = error});
    return !error;
}

static size_t count_threads(const xla_frame *frame) {
    int64_t threads = 1;
    xla_num_threads_args args = {
        .struct_size = sizeof args, .context = frame->context, .threads = &threads};
    return succeeded(frame, frame->api->num_threads(&args)) && threads > 1 ? (size_t)threads : 1;
}

static void on_xla(void *pool, void (*task)(void *, size_t), void *arg, size_t count) {
    const xla_frame *frame = pool;
    struct work *work = malloc(sizeof *work);
    if (!work) {
        for (size_t i = 0; i < count; i++)
            task(arg, i);
        return;
    }
    const size_t threads = count_threads(frame), helpers = (threads < count ? threads : count) - 1;
    *work = (struct work){.task = task, .arg = arg, .count = count, .users = helpers + 2};
    for (size_t i = 0; i < helpers; i++) {
        xla_schedule_args args = {
            .struct_size = sizeof args, .context = frame->context, .task = help, .data = work};
        if (!succeeded(frame, frame->api->schedule(&args)))
            leave(work);
    }
    help(work);
    while (atomic_load(&work->done) < count)
        sched_yield();
    leave(work);
}

/* ---------------------------------------------------------------------------------------------- */
/* Calls */

static bnorm_status describe(int64_t dtype, int axis, size_t rank, const int64_t *sizes,
                             bnorm_ndarray *x, bnorm_shape *shape) {
    const bnorm_axes axes = {.ndim = rank,
                             .sizes = sizes,
                             .channel_axis = axis,
                             .dtype = dtype == XLA_BF16  ? BNORM_BF16
                                      : dtype == XLA_F16 ? BNORM_F16
                                                         : BNORM_F32};
    return bnorm_describe(&axes, x, 1, shape, NULL, NULL);
}

/* Bytes of scratch memory, which the last result has to have. */
EXPORT size_t bnormpy_xla_scratch(int op, int dtype, int axis, size_t rank, const int64_t *sizes) {
    bnorm_ndarray x = {.data = NULL};
    bnorm_shape shape;
    if (describe(dtype, axis, rank, sizes, &x, &shape) != BNORM_OK)
        return 0;
    /* Inference has a scale there. */
    return op == BNORM_OP_APPLY ? shape.c * sizeof(float) : bnorm_workspace((bnorm_op)op, &shape);
}

/* Operands, then results, those that are there, in this order (bnorm/jax.py has it, too). `saved`
 * has 4*C floats, mean, its low part, invstd and variance, `gradients` 2*C, dgamma and dbeta. */
enum {
    X,
    DY,
    RESIDUAL,
    Y,
    GAMMA,
    BETA,
    MEAN,
    VAR,
    SAVED,
    OUT,
    NEW_SAVED,
    GRADIENTS,
    DRESIDUAL,
    SCRATCH,
    BUFFERS
};

/* The attribute: what is there, a bit for each of the above; then what else is said. */
enum { THERE, AXIS, EPS, ACT, ACT_A, ACT_B, OPTIONS };

static xla_error *fail(const xla_frame *frame, const char *message) {
    return frame->api->error_create(
        &(xla_error_create_args){.struct_size = sizeof(xla_error_create_args),
                                 .message = message,
                                 .code = XLA_INVALID_ARGUMENT});
}

static bnorm_status compute(bnorm_op op, const xla_frame *frame, const double *options,
                            xla_buffer *const *buffers) {
    bnorm_ndarray x = {.data = buffers[X]->data};
    bnorm_shape shape;
    bnorm_status status = describe(buffers[X]->dtype, (int)options[AXIS], (size_t)buffers[X]->rank,
                                   buffers[X]->sizes, &x, &shape);
    if (status != BNORM_OK)
        return status;
    bnorm_in in[BUFFERS];
    bnorm_out out[BUFFERS];
    float *floats[BUFFERS];
    for (size_t i = 0; i < BUFFERS; i++) {
        void *data = buffers[i] ? buffers[i]->data : NULL;
        in[i] = (bnorm_in){data, x.in.run_stride, x.in.image_stride};
        out[i] = (bnorm_out){data, x.in.run_stride, x.in.image_stride};
        floats[i] = data;
    }
    const bnorm_act act = {(bnorm_act_kind)options[ACT], (float)options[ACT_A],
                           (float)options[ACT_B]};
    const bnorm_exec exec = {
        .parallel = on_xla, .pool = (void *)(uintptr_t)frame, .threads = count_threads(frame)};
    void *ws = floats[SCRATCH];
    const size_t ws_size = (size_t)buffers[SCRATCH]->sizes[0];

    if (op == BNORM_OP_APPLY) {
        status =
            bnorm_fold(shape.c, floats[GAMMA], NULL, NULL, floats[VAR], options[EPS], ws, NULL);
        const bnorm_affine affine = {.center = floats[MEAN],
                                     .scale = ws,
                                     .shift = floats[BETA],
                                     .residual = in[RESIDUAL],
                                     .act = act};
        return status == BNORM_OK ? bnorm_apply(&shape, in[X], out[OUT], &affine, &exec) : status;
    }
    if (op == BNORM_OP_FORWARD_TRAIN) {
        const bnorm_train train = {.gamma = floats[GAMMA],
                                   .beta = floats[BETA],
                                   .eps = options[EPS],
                                   .save_mean = floats[NEW_SAVED],
                                   .save_mean_lo = floats[NEW_SAVED] + shape.c,
                                   .save_invstd = floats[NEW_SAVED] + 2 * shape.c,
                                   .save_var = floats[NEW_SAVED] + 3 * shape.c,
                                   .residual = in[RESIDUAL],
                                   .act = act};
        /* XLA's results begin as garbage, and an empty batch leaves statistics as they are. */
        if (shape.n == 0 || shape.hw == 0)
            memset(floats[NEW_SAVED], 0, 4 * shape.c * sizeof(float));
        return bnorm_forward_train(&shape, in[X], out[OUT], &train, ws, ws_size, &exec);
    }
    const float *saved = floats[SAVED];
    const bnorm_grad grad = {.gamma = floats[GAMMA],
                             .beta = floats[BETA],
                             .save_mean = saved ? saved : floats[MEAN],
                             .save_mean_lo = saved ? saved + shape.c : NULL,
                             .save_invstd = saved ? saved + 2 * shape.c : NULL,
                             .save_var = floats[VAR],
                             .eps = options[EPS],
                             .frozen = !saved,
                             .act = act,
                             .residual = in[RESIDUAL],
                             .y = in[Y],
                             .dresidual = out[DRESIDUAL],
                             .dgamma = floats[GRADIENTS],
                             .dbeta = floats[GRADIENTS] + shape.c};
    return bnorm_backward(&shape, in[X], in[DY], out[OUT], &grad, ws, ws_size, &exec);
}

static xla_error *handle(bnorm_op op, xla_frame *frame) {
    /* XLA asks for the version once, and then calls with every stage; there is work in one. */
    if (frame->extension && frame->extension->type == XLA_METADATA) {
        const xla_metadata_extension *asks = (const xla_metadata_extension *)frame->extension;
        asks->metadata->version.major = XLA_MAJOR;
        asks->metadata->version.minor = XLA_MINOR;
        return NULL;
    }
    if (frame->stage != XLA_EXECUTE)
        return NULL;
    const xla_array *attribute = frame->attributes.size == 1 ? frame->attributes.items[0] : NULL;
    if (!attribute || *frame->attributes.types != XLA_ARRAY || attribute->dtype != XLA_F64 ||
        attribute->size != OPTIONS)
        return fail(frame, "bnorm: call this by the functions of bnorm.jax");
    const double *options = attribute->data;
    xla_buffer *buffers[BUFFERS] = {NULL};
    int64_t arguments = 0, results = 0;
    for (unsigned i = 0; i < BUFFERS; i++) {
        if (!((unsigned)options[THERE] >> i & 1))
            continue;
        if (i < OUT && arguments < frame->arguments.size)
            buffers[i] = frame->arguments.items[arguments++];
        else if (i >= OUT && results < frame->results.size)
            buffers[i] = frame->results.items[results++];
    }
    if (!buffers[X] || !buffers[SCRATCH])
        return fail(frame, "bnorm: call this by the functions of bnorm.jax");
    const bnorm_status status = compute(op, frame, options, buffers);
    return status == BNORM_OK ? NULL : fail(frame, bnorm_strerror(status));
}

EXPORT xla_error *bnormpy_xla_apply(xla_frame *frame) {
    return handle(BNORM_OP_APPLY, frame);
}

EXPORT xla_error *bnormpy_xla_train(xla_frame *frame) {
    return handle(BNORM_OP_FORWARD_TRAIN, frame);
}

EXPORT xla_error *bnormpy_xla_backward(xla_frame *frame) {
    return handle(BNORM_OP_BACKWARD, frame);
}
