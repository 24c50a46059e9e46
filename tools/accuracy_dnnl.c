/* SPDX-License-Identifier: MIT
 *
 * oneDNN 2.x through its C API; compiled with -DHAVE_DNNL where it is installed. */
#include "accuracy.h"

#ifdef HAVE_DNNL

#include <dnnl.h>
#include <stdlib.h>

static dnnl_engine_t engine;
static dnnl_stream_t stream;

static int start(void) {
    return dnnl_engine_create(&engine, dnnl_cpu, 0) == dnnl_success &&
           dnnl_stream_create(&stream, engine, dnnl_stream_default_flags) == dnnl_success;
}

static void stop(void) {
    dnnl_stream_destroy(stream);
    dnnl_engine_destroy(engine);
}

enum { MAX_ARGS = 8 };

/* A primitive that is executed once; status keeps the first failure. */
struct call {
    dnnl_status_t status;
    dnnl_primitive_desc_t desc;
    dnnl_exec_arg_t args[MAX_ARGS];
    int count;
};

static void note(struct call *call, dnnl_status_t status) {
    if (call->status == dnnl_success)
        call->status = status;
}

static void add(struct call *call, int id, const dnnl_memory_desc_t *desc, const float *data) {
    if (call->status != dnnl_success)
        return;
    call->args[call->count].arg = id;
    note(call,
         dnnl_memory_create(&call->args[call->count].memory, desc, engine, (void *)(size_t)data));
    call->count += call->status == dnnl_success;
}

static int execute(struct call *call) {
    dnnl_primitive_t primitive = NULL;
    if (call->status == dnnl_success)
        note(call, dnnl_primitive_create(&primitive, call->desc));
    if (call->status == dnnl_success)
        note(call, dnnl_primitive_execute(primitive, stream, call->count, call->args));
    note(call, dnnl_stream_wait(stream));
    dnnl_primitive_destroy(primitive);
    for (int i = 0; i < call->count; i++)
        dnnl_memory_destroy(call->args[i].memory);
    return call->status == dnnl_success;
}

static int run(const struct problem *p, struct answer *a) {
    const dnnl_dims_t dims = {(dnnl_dim_t)p->n, (dnnl_dim_t)p->c, (dnnl_dim_t)p->hw, 1};
    const dnnl_dims_t channels = {(dnnl_dim_t)p->c}, parameters = {2, (dnnl_dim_t)p->c};
    dnnl_memory_desc_t data, row, pair;
    dnnl_batch_normalization_desc_t forward_op, backward_op;
    struct call forward = {.status = dnnl_success}, backward = {.status = dnnl_success};
    float *const gamma_beta = calloc(4 * p->c, sizeof(float));
    if (!gamma_beta)
        return 0;
    float *const gradients = gamma_beta + 2 * p->c;
    for (size_t i = 0; i < p->c; i++)
        gamma_beta[i] = 1;

    note(&forward, dnnl_memory_desc_init_by_tag(&data, 4, dims, dnnl_f32,
                                                p->layout == BNORM_NCHW ? dnnl_nchw : dnnl_nhwc));
    note(&forward, dnnl_memory_desc_init_by_tag(&row, 1, channels, dnnl_f32, dnnl_a));
    note(&forward, dnnl_memory_desc_init_by_tag(&pair, 2, parameters, dnnl_f32, dnnl_ab));
    note(&forward,
         dnnl_batch_normalization_forward_desc_init(&forward_op, dnnl_forward_training, &data,
                                                    (float)p->eps, dnnl_use_scaleshift));
    note(&forward, dnnl_primitive_desc_create(&forward.desc, &forward_op, NULL, engine, NULL));
    add(&forward, DNNL_ARG_SRC, &data, p->x);
    add(&forward, DNNL_ARG_DST, &data, a->y);
    add(&forward, DNNL_ARG_MEAN, &row, a->mean);
    add(&forward, DNNL_ARG_VARIANCE, &row, a->var);
    add(&forward, DNNL_ARG_SCALE_SHIFT, &pair, gamma_beta);
    int ok = execute(&forward);

    note(&backward,
         dnnl_batch_normalization_backward_desc_init(&backward_op, dnnl_backward, &data, &data,
                                                     (float)p->eps, dnnl_use_scaleshift));
    note(&backward,
         dnnl_primitive_desc_create(&backward.desc, &backward_op, NULL, engine, forward.desc));
    add(&backward, DNNL_ARG_SRC, &data, p->x);
    add(&backward, DNNL_ARG_DIFF_DST, &data, p->dy);
    add(&backward, DNNL_ARG_DIFF_SRC, &data, a->dx);
    add(&backward, DNNL_ARG_MEAN, &row, a->mean);
    add(&backward, DNNL_ARG_VARIANCE, &row, a->var);
    add(&backward, DNNL_ARG_SCALE_SHIFT, &pair, gamma_beta);
    add(&backward, DNNL_ARG_DIFF_SCALE_SHIFT, &pair, gradients);
    ok = execute(&backward) && ok;

    for (size_t i = 0; i < p->c; i++) {
        a->dgamma[i] = gradients[i];
        a->dbeta[i] = gradients[p->c + i];
    }
    a->invstd = NULL;
    dnnl_primitive_desc_destroy(backward.desc);
    dnnl_primitive_desc_destroy(forward.desc);
    free(gamma_beta);
    return ok;
}

#else

static int start(void) {
    return 0;
}

static int run(const struct problem *p, struct answer *a) {
    (void)p;
    (void)a;
    return 0;
}

static void stop(void) {}

#endif

const struct library library_dnnl = {
    "oneDNN", "install libdnnl-dev (2.x) and build this program again", start, run, stop,
};
