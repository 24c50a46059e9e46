/* SPDX-License-Identifier: MIT
 *
 * oneDNN through its C API, versions 2 and 3, as its users are told to: primitives and memory
 * objects are created once, in the layout that is asked for, scale and shift as two arrays. Running
 * statistics are left to oneDNN's caller and not timed. ReLU is tried fused (fuse_norm_relu, and a
 * binary post-op after a residual) and as a primitive of its own. */
#include "onednn.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>

#include <dnnl.h>

enum { MAX_STEPS = 3, MAX_ARGS = 9, MAX_MEMORIES = 16 };

typedef struct step {
    dnnl_primitive_t primitive;
    dnnl_exec_arg_t args[MAX_ARGS];
    int arg_count;
} step;

typedef struct onednn_state {
    step steps[MAX_STEPS];
    int step_count;
    dnnl_memory_t memories[MAX_MEMORIES];
    int memory_count;
    void *workspace;
    float *batch_var;
} onednn_state;

static dnnl_engine_t engine;
static dnnl_stream_t stream;

/* Never freed: the program measures until it ends. */
static int start(void) {
    if (!engine && dnnl_engine_create(&engine, dnnl_cpu, 0) != dnnl_success)
        return 0;
    return stream || dnnl_stream_create(&stream, engine, dnnl_stream_default_flags) == dnnl_success;
}

/* ---------------------------------------------------------------------------------------------- */
/* The differences between versions 2 and 3 */

/* What is to be created. */
typedef struct recipe {
    dnnl_format_tag_t tag;
    dnnl_prop_kind_t prop;
    unsigned flags;
    float eps;
} recipe;

#if DNNL_VERSION_MAJOR < 3

typedef dnnl_memory_desc_t descriptor;

static int describe(descriptor *d, int count, const dnnl_dim_t *dims, dnnl_format_tag_t tag) {
    return dnnl_memory_desc_init_by_tag(d, count, dims, dnnl_f32, tag) == dnnl_success;
}
static void forget(descriptor d) {
    (void)d;
}

static dnnl_memory_t memory_of(const descriptor *d, void *data) {
    dnnl_memory_t memory;
    return dnnl_memory_create(&memory, d, engine, data) == dnnl_success ? memory : NULL;
}

static size_t size_of_workspace(const_dnnl_primitive_desc_t pd) {
    const dnnl_memory_desc_t *d = dnnl_primitive_desc_query_md(pd, dnnl_query_workspace_md, 0);
    return d ? dnnl_memory_desc_get_size(d) : 0;
}

static dnnl_memory_t workspace_memory(const_dnnl_primitive_desc_t pd, void *data) {
    return memory_of(dnnl_primitive_desc_query_md(pd, dnnl_query_workspace_md, 0), data);
}

static dnnl_primitive_desc_t make_norm(const recipe *r, const descriptor *d) {
    dnnl_batch_normalization_desc_t desc;
    dnnl_primitive_desc_t pd, hint = NULL;
    if (r->prop == dnnl_backward) {
        if (dnnl_batch_normalization_forward_desc_init(&desc, dnnl_forward_training, d, r->eps,
                                                       r->flags) != dnnl_success ||
            dnnl_primitive_desc_create(&hint, &desc, NULL, engine, NULL) != dnnl_success ||
            dnnl_batch_normalization_backward_desc_init(&desc, r->prop, d, d, r->eps, r->flags) !=
                dnnl_success)
            return NULL;
    } else if (dnnl_batch_normalization_forward_desc_init(&desc, r->prop, d, r->eps, r->flags) !=
               dnnl_success) {
        return NULL;
    }
    const dnnl_status_t status = dnnl_primitive_desc_create(&pd, &desc, NULL, engine, hint);
    if (hint)
        dnnl_primitive_desc_destroy(hint);
    return status == dnnl_success ? pd : NULL;
}

static dnnl_primitive_desc_t make_relu(const descriptor *d) {
    dnnl_eltwise_desc_t desc;
    dnnl_primitive_desc_t pd;
    if (dnnl_eltwise_forward_desc_init(&desc, dnnl_forward_inference, dnnl_eltwise_relu, d, 0, 0) !=
            dnnl_success ||
        dnnl_primitive_desc_create(&pd, &desc, NULL, engine, NULL) != dnnl_success)
        return NULL;
    return pd;
}

static dnnl_primitive_desc_t make_add(const descriptor *d, const_dnnl_primitive_attr_t attr) {
    dnnl_binary_desc_t desc;
    dnnl_primitive_desc_t pd;
    if (dnnl_binary_desc_init(&desc, dnnl_binary_add, d, d, d) != dnnl_success ||
        dnnl_primitive_desc_create(&pd, &desc, attr, engine, NULL) != dnnl_success)
        return NULL;
    return pd;
}

static int append_relu(dnnl_post_ops_t ops) {
    return dnnl_post_ops_append_eltwise(ops, 1, dnnl_eltwise_relu, 0, 0) == dnnl_success;
}

#else

typedef dnnl_memory_desc_t descriptor;

static int describe(descriptor *d, int count, const dnnl_dim_t *dims, dnnl_format_tag_t tag) {
    return dnnl_memory_desc_create_with_tag(d, count, dims, dnnl_f32, tag) == dnnl_success;
}
static void forget(descriptor d) {
    dnnl_memory_desc_destroy(d);
}

static dnnl_memory_t memory_of(const descriptor *d, void *data) {
    dnnl_memory_t memory;
    return dnnl_memory_create(&memory, *d, engine, data) == dnnl_success ? memory : NULL;
}

static size_t size_of_workspace(const_dnnl_primitive_desc_t pd) {
    const_dnnl_memory_desc_t d = dnnl_primitive_desc_query_md(pd, dnnl_query_workspace_md, 0);
    return d ? dnnl_memory_desc_get_size(d) : 0;
}

static dnnl_memory_t workspace_memory(const_dnnl_primitive_desc_t pd, void *data) {
    const_dnnl_memory_desc_t d = dnnl_primitive_desc_query_md(pd, dnnl_query_workspace_md, 0);
    dnnl_memory_t memory;
    return dnnl_memory_create(&memory, d, engine, data) == dnnl_success ? memory : NULL;
}

static dnnl_primitive_desc_t make_norm(const recipe *r, const descriptor *d) {
    dnnl_primitive_desc_t pd, hint;
    if (r->prop != dnnl_backward)
        return dnnl_batch_normalization_forward_primitive_desc_create(
                   &pd, engine, r->prop, *d, *d, r->eps, r->flags, NULL) == dnnl_success
                   ? pd
                   : NULL;
    if (dnnl_batch_normalization_forward_primitive_desc_create(
            &hint, engine, dnnl_forward_training, *d, *d, r->eps, r->flags, NULL) != dnnl_success)
        return NULL;
    const dnnl_status_t status = dnnl_batch_normalization_backward_primitive_desc_create(
        &pd, engine, r->prop, *d, *d, *d, r->eps, r->flags, hint, NULL);
    dnnl_primitive_desc_destroy(hint);
    return status == dnnl_success ? pd : NULL;
}

static dnnl_primitive_desc_t make_relu(const descriptor *d) {
    dnnl_primitive_desc_t pd;
    return dnnl_eltwise_forward_primitive_desc_create(&pd, engine, dnnl_forward_inference,
                                                      dnnl_eltwise_relu, *d, *d, 0, 0,
                                                      NULL) == dnnl_success
               ? pd
               : NULL;
}

static dnnl_primitive_desc_t make_add(const descriptor *d, const_dnnl_primitive_attr_t attr) {
    dnnl_primitive_desc_t pd;
    return dnnl_binary_primitive_desc_create(&pd, engine, dnnl_binary_add, *d, *d, *d, attr) ==
                   dnnl_success
               ? pd
               : NULL;
}

static int append_relu(dnnl_post_ops_t ops) {
    return dnnl_post_ops_append_eltwise(ops, dnnl_eltwise_relu, 0, 0) == dnnl_success;
}

#endif

/* ---------------------------------------------------------------------------------------------- */
/* Steps */

static dnnl_primitive_desc_t make_add_relu(const descriptor *d) {
    dnnl_primitive_attr_t attr = NULL;
    dnnl_post_ops_t ops = NULL;
    dnnl_primitive_desc_t pd = NULL;
    if (dnnl_primitive_attr_create(&attr) == dnnl_success &&
        dnnl_post_ops_create(&ops) == dnnl_success && append_relu(ops) &&
        dnnl_primitive_attr_set_post_ops(attr, ops) == dnnl_success)
        pd = make_add(d, attr);
    dnnl_post_ops_destroy(ops);
    dnnl_primitive_attr_destroy(attr);
    return pd;
}

static void add_memory(onednn_state *s, step *to, int arg, dnnl_memory_t memory) {
    if (memory) {
        s->memories[s->memory_count++] = memory;
        to->args[to->arg_count++] = (dnnl_exec_arg_t){arg, memory};
    }
}

/* oneDNN takes no pointers to const; inputs are only read. */
static void add_arg(onednn_state *s, step *to, int arg, const descriptor *d, const float *data) {
    add_memory(s, to, arg, memory_of(d, (void *)(size_t)data));
}

/* Takes the description, which may be NULL. NULL = this oneDNN has no such primitive. */
static step *add_step(onednn_state *s, dnnl_primitive_desc_t pd) {
    step *added = &s->steps[s->step_count];
    if (!pd)
        return NULL;
    const dnnl_status_t status = dnnl_primitive_create(&added->primitive, pd);
    dnnl_primitive_desc_destroy(pd);
    if (status != dnnl_success)
        return NULL;
    s->step_count++;
    return added;
}

static int add_norm(onednn_state *s, const peers_line *line, const recipe *r,
                    const descriptor *tensor, const descriptor *array) {
    const bench_problem *p = &line->problem;
    const bench_result *result = &line->result;
    dnnl_primitive_desc_t pd = make_norm(r, tensor);
    const size_t workspace_size = pd ? size_of_workspace(pd) : 0;
    dnnl_memory_t workspace = NULL;
    if (workspace_size) {
        s->workspace = aligned_alloc(64, (workspace_size + 63) / 64 * 64);
        workspace = s->workspace ? workspace_memory(pd, s->workspace) : NULL;
    }
    step *norm = add_step(s, pd);
    if (!norm)
        return 0;
    add_arg(s, norm, DNNL_ARG_SRC, tensor, p->x);
    add_arg(s, norm, DNNL_ARG_SCALE, array, p->gamma);
    if (r->prop != dnnl_backward || DNNL_VERSION_MAJOR < 3) /* 3 refuses what it does not use */
        add_arg(s, norm, DNNL_ARG_SHIFT, array, p->beta);
    add_arg(s, norm, DNNL_ARG_MEAN, array, line->training ? result->mean : p->mean);
    add_arg(s, norm, DNNL_ARG_VARIANCE, array, line->training ? s->batch_var : p->var);
    if (workspace)
        add_memory(s, norm, DNNL_ARG_WORKSPACE, workspace);
    if (r->prop == dnnl_backward) {
        add_arg(s, norm, DNNL_ARG_DIFF_DST, tensor, p->dy);
        add_arg(s, norm, DNNL_ARG_DIFF_SRC, tensor, result->tensor);
        add_arg(s, norm, DNNL_ARG_DIFF_SCALE, array, result->dgamma);
        add_arg(s, norm, DNNL_ARG_DIFF_SHIFT, array, result->dbeta);
    } else {
        add_arg(s, norm, DNNL_ARG_DST, tensor, result->tensor);
    }
    return 1;
}

/* y = relu(y) or relu(y + residual), after the norm. */
static int add_rest(onednn_state *s, const peers_line *line, int fused, const descriptor *tensor) {
    const float *y = line->result.tensor;
    const int residual = line->problem.op == BENCH_RESIDUAL_RELU;
    if (residual) {
        step *add = add_step(s, fused ? make_add_relu(tensor) : make_add(tensor, NULL));
        if (!add)
            return 0;
        add_arg(s, add, DNNL_ARG_SRC_0, tensor, y);
        add_arg(s, add, DNNL_ARG_SRC_1, tensor, line->problem.dy);
        add_arg(s, add, DNNL_ARG_DST, tensor, y);
    }
    if (!fused && line->relu) {
        step *relu = add_step(s, make_relu(tensor));
        if (!relu)
            return 0;
        add_arg(s, relu, DNNL_ARG_SRC, tensor, y);
        add_arg(s, relu, DNNL_ARG_DST, tensor, y);
    }
    return 1;
}

/* ---------------------------------------------------------------------------------------------- */
/* The contender */

static size_t variants(const peers_line *line) {
    return line->relu ? 2 : 1;
}

static dnnl_format_tag_t tag_of(const bench_problem *p) {
    return p->form.c_block == 16     ? dnnl_nChw16c
           : p->form.c_block == 8    ? dnnl_nChw8c
           : p->layout == BNORM_NHWC ? dnnl_nhwc
                                     : dnnl_nchw;
}

static void destroy(void *state) {
    onednn_state *s = state;
    for (int i = 0; i < s->step_count; i++)
        dnnl_primitive_destroy(s->steps[i].primitive);
    for (int i = 0; i < s->memory_count; i++)
        dnnl_memory_destroy(s->memories[i]);
    free(s->workspace);
    free(s->batch_var);
    free(s);
}

static void *create(const peers_line *line, size_t variant) {
    const bench_problem *p = &line->problem;
    onednn_state *s = calloc(1, sizeof *s);
    if (!s || !start() || !(s->batch_var = malloc(p->c * sizeof(float)))) {
        free(s);
        return NULL;
    }
    const dnnl_dims_t dims = {(dnnl_dim_t)p->n, (dnnl_dim_t)p->c, (dnnl_dim_t)line->height,
                              (dnnl_dim_t)line->width};
    const dnnl_dims_t channels = {(dnnl_dim_t)p->c};
    const int fused = variant == 0;
    recipe r = {.tag = tag_of(p),
                .prop = p->op == BENCH_BACKWARD ? dnnl_backward
                        : line->training        ? dnnl_forward_training
                                                : dnnl_forward_inference,
                .flags = dnnl_use_scale | dnnl_use_shift,
                .eps = (float)p->eps};
    if (r.prop == dnnl_forward_inference)
        r.flags |= dnnl_use_global_stats;
    if (fused && line->relu && p->op != BENCH_RESIDUAL_RELU)
        r.flags |= dnnl_fuse_norm_relu;
    descriptor tensor, array;
    if (describe(&tensor, 4, dims, r.tag)) {
        if (describe(&array, 1, channels, dnnl_x)) {
            const int good = add_norm(s, line, &r, &tensor, &array) &&
                             (r.flags & dnnl_fuse_norm_relu || add_rest(s, line, fused, &tensor));
            forget(array);
            forget(tensor);
            if (good)
                return s;
        } else {
            forget(tensor);
        }
    }
    destroy(s);
    return NULL;
}

static int run(void *state) {
    onednn_state *s = state;
    for (int i = 0; i < s->step_count; i++)
        if (dnnl_primitive_execute(s->steps[i].primitive, stream, s->steps[i].arg_count,
                                   s->steps[i].args) != dnnl_success)
            return 1;
    return dnnl_stream_wait(stream) != dnnl_success;
}

/* oneDNN gives the variance; the rest is its caller's. */
static void collect(void *state, const peers_line *line) {
    const onednn_state *s = state;
    const bench_problem *p = &line->problem;
    const bench_result *r = &line->result;
    const double count = (double)(p->n * p->hw);
    if (!line->training)
        return;
    for (size_t c = 0; c < p->c; c++) {
        const double var = s->batch_var[c], sample = count > 1 ? var * count / (count - 1) : var;
        r->invstd[c] = (float)(1 / sqrt(var + p->eps));
        r->running_mean[c] += (float)(BENCH_RATE * ((double)r->mean[c] - r->running_mean[c]));
        r->running_var[c] += (float)(BENCH_RATE * (sample - r->running_var[c]));
    }
}

#define TEXT(x)                      #x
#define VERSION(major, minor, patch) TEXT(major) "." TEXT(minor) "." TEXT(patch)

extern const onednn_contender peers_onednn_contender;
const onednn_contender peers_onednn_contender = {
    .contender = {.name = "oneDNN",
                  .runtime = PEERS_OPENMP,
                  .variants = variants,
                  .create = create,
                  .run = run,
                  .collect = collect,
                  .destroy = destroy},
    .version = VERSION(DNNL_VERSION_MAJOR, DNNL_VERSION_MINOR, DNNL_VERSION_PATCH),
};
