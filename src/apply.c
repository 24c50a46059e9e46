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

/* *quant of S8 or U8 with the default filled in. */
static bnorm_status complete_quant(bnorm_dtype type, bnorm_quant *quant) {
    const int least = type == BNORM_S8 ? -128 : 0;
    if (quant->scale == 0)
        quant->scale = 1;
    return __builtin_isfinite(quant->scale) && quant->scale > 0 && quant->zero_point >= least &&
                   quant->zero_point <= least + 255
               ? BNORM_OK
               : BNORM_BAD_QUANTIZATION;
}

/* What is asked of any batch: options, and of quantized tensors what their elements mean. */
static bnorm_status check_options(const bnorm_shape *shape, const bnorm_exec *exec,
                                  bnorm_affine *affine, bnorm_dtype *y_type) {
    bnorm_status status = bnorm_check_shape(shape);
    if (!status)
        status = bnorm_check_exec(exec);
    if (!status)
        status = bnorm_check_act(&affine->act, bnorm_exec_isa(exec));
    if (bnorm_failed(status))
        return status;
    if ((unsigned)affine->y_dtype > BNORM_Y_U8)
        return BNORM_BAD_ENUM;
    *y_type = affine->y_dtype == BNORM_Y_SAME ? shape->dtype
                                              : (bnorm_dtype)(affine->y_dtype - BNORM_Y_F32);
    if (shape->dtype > BNORM_F16)
        status = complete_quant(shape->dtype, &affine->x_quant);
    if (!status && shape->dtype > BNORM_F16 && affine->residual.data)
        status = complete_quant(shape->dtype, &affine->residual_quant);
    if (!status && *y_type > BNORM_F16)
        status = complete_quant(*y_type, &affine->y_quant);
    unsigned char *mask = affine->mask;
    if (!status && mask)
        status = bnorm_check_mask(&affine->act, &mask);
    affine->mask = mask;
    return status;
}

/* Where the checks pass, *map says what there is to do; x absent = nothing. */
static bnorm_status plan(const bnorm_job *job, const bnorm_exec *exec, bnorm_map *map) {
    static const bnorm_affine copy = {0};
    const bnorm_shape *shape = job->shape;
    bnorm_affine affine = job->affine ? *job->affine : copy;
    bnorm_map_args *const args = &map->args;
    bnorm_view view;
    bnorm_uses uses;
    bnorm_dtype y_type;
    args->x.data = NULL;
    const bnorm_status status = check_options(shape, exec, &affine, &y_type);
    if (bnorm_failed(status) || bnorm_is_empty(shape))
        return status;
    const size_t c = shape->c;
    view = bnorm_view_of(shape);
    bnorm_begin_uses(&uses, shape, &view);
    bnorm_requires(&uses, job->x.data);
    bnorm_requires(&uses, job->out.data);
    bnorm_reads_tensor(&uses, job->x, &args->x);
    bnorm_writes_tensor(&uses, job->out, y_type, &args->out);
    bnorm_reads_tensor(&uses, affine.residual, &args->argument);
    bnorm_writes(&uses, affine.mask, bnorm_mask_size(shape), BNORM_KIND_NONE);
    bnorm_reads_floats(&uses, affine.center, c);
    bnorm_reads_floats(&uses, affine.scale, c);
    bnorm_reads_floats(&uses, affine.shift, c);
    if (bnorm_failed(bnorm_check_uses(&uses))) {
        args->x.data = NULL;
        return bnorm_check_uses(&uses);
    }
    args->x.quant = affine.x_quant;
    args->argument.quant = affine.residual_quant;
    args->out.quant = affine.y_quant;
    args->dy = args->dresidual = bnorm_absent();
    args->mask = bnorm_bits_of(shape, affine.mask);
    args->pre = affine.residual.data ? BNORM_PRE_RESIDUAL : BNORM_PRE_X;
    args->act = affine.act;
    args->center = affine.center;
    args->scale = affine.scale;
    args->shift = affine.shift;
    args->invstd = args->slope = args->offset = NULL;
    bnorm_plan_map(map, &view, 0, exec);
    return BNORM_OK;
}

static void map_part(const void *self, const bnorm_part *part, int near) {
    bnorm_map_part(self, part, near);
}

/* Where a parameter is absent, as many channels at a time as there are defaults. */
static void map_with_defaults(const void *self, const bnorm_part *whole, int near) {
    const bnorm_map *map = self;
    const bnorm_view *view = &map->view;
    const int by_groups = bnorm_counts_groups(view);
    const size_t step = !by_groups || view->planes ? BNORM_DEFAULTS : BNORM_DEFAULTS / view->lanes,
                 count = by_groups ? whole->groups : whole->lanes;
    for (size_t at = 0; at < count; at += step) {
        bnorm_part part = *whole;
        if (by_groups) {
            part.group += at;
            part.groups = bnorm_min(step, count - at);
        } else {
            part.lane += at;
            part.lanes = bnorm_min(step, count - at);
        }
        bnorm_map_part(map, &part, near);
    }
}

bnorm_status bnorm_check_apply(const bnorm_job *job, const bnorm_exec *exec) {
    bnorm_map map;
    return plan(job, exec, &map);
}

bnorm_status bnorm_call_apply(const bnorm_job *job, const bnorm_exec *exec) {
    bnorm_map map;
    const bnorm_status status = plan(job, exec, &map);
    if (status || !map.args.x.data)
        return status;
    const int complete = map.args.scale && map.args.shift;
    const bnorm_pass pass = {
        .self = &map,
        .view = &map.view,
        .map_view = &map.view,
        .tensors = 1,
        .map = complete ? map_part : map_with_defaults,
    };
    bnorm_end_mask(job->shape, &map.args.mask);
    bnorm_run_pass(&pass, exec);
    return BNORM_OK;
}

bnorm_status bnorm_apply(const bnorm_shape *shape, bnorm_in x, bnorm_out y,
                         const bnorm_affine *affine, const bnorm_exec *exec) {
    const bnorm_job job = {
        .op = BNORM_OP_APPLY, .shape = shape, .x = x, .out = y, .affine = affine};
    return bnorm_call_apply(&job, exec);
}
