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

/* What is asked of any batch, with defaults filled in. */
struct options {
    bnorm_quant x_quant, residual_quant, y_quant;
    unsigned char *mask;
    bnorm_dtype y_type;
};

static bnorm_status check_options(const bnorm_shape *shape, const bnorm_exec *exec,
                                  const bnorm_affine *affine, struct options *options) {
    bnorm_status status = bnorm_check_shape(shape);
    if (!status)
        status = bnorm_check_exec(exec);
    if (!status)
        status = bnorm_check_act(&affine->act, exec);
    if (bnorm_failed(status))
        return status;
    if ((unsigned)affine->y_dtype > BNORM_Y_U8)
        return BNORM_BAD_ENUM;
    options->y_type = affine->y_dtype == BNORM_Y_SAME
                          ? shape->dtype
                          : (bnorm_dtype)(affine->y_dtype - BNORM_Y_F32);
    options->x_quant = affine->x_quant;
    options->residual_quant = affine->residual_quant;
    options->y_quant = affine->y_quant;
    if (shape->dtype > BNORM_F16)
        status = complete_quant(shape->dtype, &options->x_quant);
    if (!status && shape->dtype > BNORM_F16 && affine->residual.data)
        status = complete_quant(shape->dtype, &options->residual_quant);
    if (!status && options->y_type > BNORM_F16)
        status = complete_quant(options->y_type, &options->y_quant);
    options->mask = affine->mask;
    if (!status && options->mask)
        status = bnorm_check_mask(&affine->act, &options->mask);
    return status;
}

/* Where the checks pass, *map says what there is to do; x absent = nothing. */
static bnorm_status plan(const bnorm_shape *shape, bnorm_in x, bnorm_out y,
                         const bnorm_affine *affine, const bnorm_exec *exec, bnorm_map *map) {
    static const bnorm_affine copy = {0};
    bnorm_map_args *const args = &map->args;
    struct options options;
    bnorm_uses uses;
    if (!affine)
        affine = &copy;
    bnorm_status status = check_options(shape, exec, affine, &options);
    args->x.data = NULL;
    if (bnorm_failed(status) || bnorm_is_empty(shape))
        return status;
    const size_t c = shape->c;
    bnorm_view view = bnorm_view_of(shape);
    bnorm_begin_uses(&uses, shape, &view);
    bnorm_requires(&uses, x.data);
    bnorm_requires(&uses, y.data);
    bnorm_reads_tensor(&uses, x, &args->x);
    bnorm_writes_tensor(&uses, y, options.y_type, &args->out);
    bnorm_reads_tensor(&uses, affine->residual, &args->argument);
    bnorm_writes_mask(&uses, options.mask);
    bnorm_reads_floats(&uses, affine->center, c);
    bnorm_reads_floats(&uses, affine->scale, c);
    bnorm_reads_floats(&uses, affine->shift, c);
    status = bnorm_check_uses(&uses);
    if (bnorm_failed(status)) {
        args->x.data = NULL;
        return status;
    }
    args->x.quant = options.x_quant;
    args->argument.quant = options.residual_quant;
    args->out.quant = options.y_quant;
    args->dy = args->dresidual = bnorm_absent();
    args->mask = bnorm_bits_of(shape, options.mask);
    args->pre = affine->residual.data ? BNORM_PRE_RESIDUAL : BNORM_PRE_X;
    args->act = affine->act;
    args->center = affine->center;
    args->scale = affine->scale;
    args->shift = affine->shift;
    args->invstd = args->slope = args->offset = NULL;
    bnorm_plan_map(map, &view, 0, exec);
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
    return plan(job->shape, job->x, job->out, job->affine, exec, &map);
}

bnorm_status bnorm_apply(const bnorm_shape *shape, bnorm_in x, bnorm_out y,
                         const bnorm_affine *affine, const bnorm_exec *exec) {
    bnorm_map map;
    const bnorm_status status = plan(shape, x, y, affine, exec, &map);
    if (status || !map.args.x.data)
        return status;
    const int complete = map.args.scale && map.args.shift;
    const bnorm_pass pass = {
        .self = &map,
        .view = &map.view,
        .map_view = &map.view,
        .tensors = 1,
        .map_work = bnorm_map_work(2, map.args.act.kind),
        .map = complete ? map_part : map_with_defaults,
        .map_whole = complete ? map_whole : NULL,
    };
    bnorm_end_mask(shape, &map.args.mask);
    bnorm_run_pass(&pass, exec);
    return BNORM_OK;
}
