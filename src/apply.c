/* SPDX-License-Identifier: MIT
 *
 * Inference: a pass without statistics. The course of a call: check, which names all buffers and
 * fills the arguments of the kernels; then one kernel call for each task. */
#include "base.h"

#include "call.h"
#include "check.h"
#include "map.h"
#include "run.h"
#include "uses.h"

#include <float.h>

/* The parameters of a tensor of S8 or U8. A scale that is flushed would be none. */
static bnorm_status check_quant(bnorm_dtype type, const bnorm_quant *quant,
                                const bnorm_exec *exec) {
    const int least = type == BNORM_S8 ? -128 : 0;
    const int flush = exec && exec->denormals == BNORM_DENORMALS_FLUSH;
    const float scale = quant->scale, least_scale = flush ? FLT_MIN : 0;
    return __builtin_isfinite(scale) && (scale == 0 || scale >= least_scale) &&
                   quant->zero_point >= least && quant->zero_point <= least + 255
               ? BNORM_OK
               : BNORM_BAD_QUANTIZATION;
}

/* ... with the default filled in, also where the tensor is absent, as kernels read it all the same. */
static void set_quant(const bnorm_quant *quant, bnorm_tensor *tensor) {
    tensor->quant.scale = 1;
    tensor->quant.zero_point = 0;
    if (!tensor->data || tensor->type <= BNORM_F16)
        return;
    tensor->quant.zero_point = quant->zero_point;
    if (quant->scale != 0)
        tensor->quant.scale = quant->scale;
}

static bnorm_dtype y_type_of(const bnorm_shape *shape, const bnorm_affine *affine) {
    return affine->y_dtype == BNORM_Y_SAME ? shape->dtype
                                           : (bnorm_dtype)(affine->y_dtype - BNORM_Y_F32);
}

/* What is asked of any batch; *mask becomes NULL where none is needed. */
static bnorm_status check_options(const bnorm_shape *shape, const bnorm_exec *exec,
                                  const bnorm_affine *affine, unsigned char **mask) {
    bnorm_status status = bnorm_check_shape(shape);
    if (!status)
        status = bnorm_check_exec(exec);
    if (!status)
        status = bnorm_check_act(&affine->act, exec);
    if (bnorm_failed(status))
        return status;
    if ((unsigned)affine->y_dtype > BNORM_Y_U8)
        return BNORM_BAD_ENUM;
    if (shape->dtype > BNORM_F16)
        status = check_quant(shape->dtype, &affine->x_quant, exec);
    if (!status && shape->dtype > BNORM_F16 && affine->residual.data)
        status = check_quant(shape->dtype, &affine->residual_quant, exec);
    if (!status && y_type_of(shape, affine) > BNORM_F16)
        status = check_quant(y_type_of(shape, affine), &affine->y_quant, exec);
    if (!status && *mask)
        status = bnorm_check_mask(&affine->act, mask);
    return status;
}

/* Where the checks pass, *map says what there is to do; x absent = nothing. */
static bnorm_status plan(const bnorm_shape *shape, const bnorm_in *x, const bnorm_out *y,
                         const bnorm_affine *affine, const bnorm_exec *exec, bnorm_map *map) {
    static const bnorm_affine copy = {0};
    bnorm_map_args *const args = &map->args;
    bnorm_uses uses;
    if (!affine)
        affine = &copy;
    unsigned char *mask = affine->mask;
    bnorm_status status = check_options(shape, exec, affine, &mask);
    args->x.data = NULL;
    if (bnorm_failed(status) || bnorm_is_empty(shape))
        return status;
    const size_t c = shape->c;
    bnorm_view_of(shape, &map->view);
    bnorm_begin_uses(&uses, shape, &map->view);
    bnorm_requires(&uses, x->data);
    bnorm_requires(&uses, y->data);
    bnorm_reads_tensor(&uses, x, &args->x);
    bnorm_writes_tensor(&uses, y, y_type_of(shape, affine), &args->out);
    bnorm_reads_tensor(&uses, &affine->residual, &args->argument);
    bnorm_writes_mask(&uses, mask);
    bnorm_reads_floats(&uses, affine->center, c);
    bnorm_reads_floats(&uses, affine->scale, c);
    bnorm_reads_floats(&uses, affine->shift, c);
    status = bnorm_check_uses(&uses);
    if (bnorm_failed(status)) {
        args->x.data = NULL;
        return status;
    }
    set_quant(&affine->x_quant, &args->x);
    set_quant(&affine->residual_quant, &args->argument);
    set_quant(&affine->y_quant, &args->out);
    args->dy.data = args->dresidual.data = NULL;
    bnorm_set_bits(shape, mask, &args->mask);
    args->pre = affine->residual.data ? BNORM_PRE_RESIDUAL : BNORM_PRE_X;
    args->act = affine->act;
    args->center = affine->center;
    args->scale = affine->scale;
    args->shift = affine->shift;
    args->invstd = args->slope = args->offset = NULL;
    bnorm_plan_map(map, exec);
    return BNORM_OK;
}

static void map_whole(const void *self) {
    bnorm_map_whole(self);
}

static void map_part(const void *self, const bnorm_part *part, int near) {
    bnorm_map_part(self, part, near);
}

/* Where a parameter is absent, as many channels at a time as there are defaults. */
static void map_with_defaults(const void *self, const bnorm_part *whole, int near) {
    const bnorm_map *map = self;
    const bnorm_view *view = &map->view;
    const size_t unit = bnorm_counts_groups(view) ? bnorm_unit(view) : 1,
                 step = BNORM_DEFAULTS / unit, count = bnorm_slices(view, whole);
    for (size_t at = 0; at < count; at += step) {
        const bnorm_part part = bnorm_some_slices(view, whole, at, bnorm_min(step, count - at));
        bnorm_map_part(map, &part, near);
    }
}

bnorm_status bnorm_check_apply(const bnorm_job *job, const bnorm_exec *exec) {
    bnorm_map map;
    return plan(job->shape, &job->x, &job->out, job->affine, exec, &map);
}

bnorm_status bnorm_apply(const bnorm_shape *shape, bnorm_in x, bnorm_out y,
                         const bnorm_affine *affine, const bnorm_exec *exec) {
    bnorm_map map;
    const bnorm_status status = plan(shape, &x, &y, affine, exec, &map);
    if (status || !map.args.x.data)
        return status;
    const int complete = map.args.scale && map.args.shift;
    bnorm_end_mask(shape, &map.args.mask);
    if (complete && bnorm_is_plain(exec)) { /* nothing that a pass is for */
        bnorm_map_whole(&map);
        return BNORM_OK;
    }
    const bnorm_pass pass = {
        .self = &map,
        .view = &map.view,
        .map_view = &map.view,
        .map_work = bnorm_map_work(2, map.args.act.kind),
        .map = complete ? map_part : map_with_defaults,
        .map_whole = complete ? map_whole : NULL,
    };
    bnorm_run_map_pass(&pass, exec);
    return BNORM_OK;
}
