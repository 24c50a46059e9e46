/* SPDX-License-Identifier: MIT */
#include "base.h"

#include "apply.h"

bnorm_view bnorm_elementwise_view(const bnorm_shape *shape, bnorm_walk *const *walks,
                                  size_t count) {
    bnorm_view view = bnorm_view_of(shape);
    int gaps = 0, dense = view.rows;
    if (view.unit > 1)
        return view;
    for (size_t i = 0; i < count; i++) {
        if (!walks[i]->data)
            continue;
        gaps |= shape->hw == 1 && walks[i]->step != 1;
        dense &= view.images == 1 || walks[i]->image_stride == view.runs * walks[i]->run_stride;
    }
    if (gaps) {
        for (size_t i = 0; i < count; i++)
            *walks[i] = (bnorm_walk){walks[i]->data, walks[i]->run_stride, walks[i]->step, 1,
                                     walks[i]->type};
        return (bnorm_view){0, 0, shape->n, shape->c, 1, shape->c, 1, 1};
    }
    if (dense) {
        view.runs *= view.images;
        view.positions = view.runs;
        view.images = 1;
    }
    return view;
}

/* Tensors of more bytes altogether than this do not stay in the caches near a core. */
#define CACHED_BYTES ((size_t)2 << 20)
/* Outputs of more bytes than this each do not stay in any cache. */
#define STREAMED_BYTES ((size_t)24 << 20)

unsigned bnorm_elementwise_hints(const bnorm_exec *exec, const bnorm_view *view,
                                 bnorm_walk *const *walks, size_t count) {
    const unsigned fetch = BNORM_FETCH_IN | BNORM_FETCH_OUT;
    size_t tensors = 0, element_bytes = 0; /* of different tensors */
    int in_place = 0;
    for (size_t i = 0; i < count; i++) {
        int again = 0;
        if (!walks[i]->data)
            continue;
        for (size_t k = 0; k < i; k++)
            again |= walks[i]->data == walks[k]->data;
        in_place |= again;
        if (again)
            continue;
        tensors++;
        element_bytes += bnorm_size_of(walks[i]->type);
    }
    switch (exec ? exec->memory : BNORM_MEMORY_AUTO) {
    case BNORM_MEMORY_AUTO:
        break;
    case BNORM_MEMORY_CACHED:
        return 0;
    case BNORM_MEMORY_PREFETCH:
        return fetch;
    case BNORM_MEMORY_STREAM:
        return in_place ? fetch : BNORM_FETCH_IN | BNORM_BYPASS;
    }
    const size_t bytes = view->images * view->runs * view->len * element_bytes;
    if (!in_place && bytes >= STREAMED_BYTES * tensors)
        return BNORM_FETCH_IN | BNORM_BYPASS;
    return bytes > CACHED_BYTES ? fetch : 0;
}

/* Stand-ins for absent parameters, this many channels at a time. */
#define DEFAULTS 64
#define EIGHT(v) v, v, v, v, v, v, v, v
static const float ones[DEFAULTS] = {EIGHT(1), EIGHT(1), EIGHT(1), EIGHT(1),
                                     EIGHT(1), EIGHT(1), EIGHT(1), EIGHT(1)};
static const float zeros[DEFAULTS] = {0};

/* Runs [run, run + runs) of an image, elements [i, i + len) of each, whose parameters begin with
 * those of `channel`. */
static void run_piece(const bnorm_elementwise *pass, size_t image, size_t run, size_t i,
                      size_t runs, size_t len, size_t valid, size_t channel, unsigned hints) {
    const bnorm_view *view = &pass->view;
    const bnorm_apply_args args = {
        .runs = runs,
        .len = len,
        .x = bnorm_at(view, &pass->x, image, run, i),
        .residual = bnorm_at(view, &pass->residual, image, run, i),
        .y = bnorm_at(view, &pass->y, image, run, i),
        .x_stride = bnorm_stride(view, &pass->x),
        .residual_stride = bnorm_stride(view, &pass->residual),
        .y_stride = bnorm_stride(view, &pass->y),
        .center = pass->center ? pass->center + channel : NULL,
        .scale = pass->scale ? pass->scale + channel : ones,
        .shift = pass->shift ? pass->shift + channel : zeros,
        .act = pass->act,
        .hints = hints,
        .x_type = pass->x.type,
        .y_type = pass->y.type,
        .x_quant = pass->x_quant,
        .residual_quant = pass->residual_quant,
        .y_quant = pass->y_quant,
        .valid = valid,
        .mask = bnorm_bits_at(view, &pass->mask, image, run, i),
    };
    if (view->rows || view->unit > 1)
        BNORM_HELD(pass->isa->apply_rows(&args), valid < len);
    else
        pass->isa->apply_span(&args);
}

void bnorm_elementwise_piece(const bnorm_elementwise *pass, const bnorm_piece *piece,
                             unsigned hints) {
    const bnorm_view *view = &pass->view;
    const int rows = view->rows;
    const size_t first = bnorm_piece_channel(view, piece),
                 channels = rows ? piece->len : piece->runs;
    if (view->unit > 1) {
        for (size_t r = 0; r < piece->runs; r++) {
            const size_t run = piece->run + r, channel = run * view->unit;
            run_piece(pass, piece->image, run, piece->i, piece->len / view->unit, view->unit,
                      bnorm_valid(view, channel), channel, hints);
        }
        return;
    }
    const size_t step = pass->scale && pass->shift ? channels : DEFAULTS;
    for (size_t at = 0; at < channels; at += step) {
        const size_t count = bnorm_min(step, channels - at);
        if (rows)
            run_piece(pass, piece->image, piece->run, piece->i + at, piece->runs, count, count,
                      first + at, hints);
        else
            run_piece(pass, piece->image, piece->run + at, piece->i, count, piece->len, piece->len,
                      first + at, hints);
    }
}

void bnorm_end_mask(const bnorm_shape *shape, unsigned char *mask) {
    if (mask)
        mask[bnorm_mask_size(shape) - 1] = 0;
}

static void piece_of(const void *self, const bnorm_piece *piece) {
    const bnorm_elementwise *pass = self;
    bnorm_elementwise_piece(pass, piece, pass->hints);
}

struct job {
    const bnorm_elementwise *pass;
    bnorm_cut cut;
};

static void task(void *arg, size_t i) {
    const struct job *job = arg;
    bnorm_cut_run(&job->cut, i, piece_of, job->pass);
}

/* Everything, image by image. */
static void whole(void *arg, size_t i) {
    const struct job *job = arg;
    const bnorm_view *view = &job->pass->view;
    (void)i;
    for (size_t image = 0; image < view->images; image++) {
        const bnorm_piece piece = {image, 0, view->runs, 0, view->len};
        piece_of(job->pass, &piece);
    }
}

void bnorm_elementwise_run(const bnorm_elementwise *pass, const bnorm_exec *exec) {
    const bnorm_view *view = &pass->view;
    const size_t parts = bnorm_parts(exec, view->images * view->runs * view->len);
    struct job job;
    job.pass = pass;
    if (parts == 1) {
        bnorm_run(exec, whole, &job, 1);
        return;
    }
    job.cut = bnorm_cut_of(view, 0, parts);
    bnorm_run(exec, task, &job, parts);
}

/* The type of y. */
static bnorm_dtype y_type_of(const bnorm_shape *shape, const bnorm_affine *affine) {
    return affine->y_dtype == BNORM_Y_SAME ? shape->dtype
                                           : (bnorm_dtype)(affine->y_dtype - BNORM_Y_F32);
}

/* *quant of S8 or U8 with the default filled in. */
static bnorm_status check_quant(bnorm_dtype type, bnorm_quant *quant) {
    const int least = type == BNORM_S8 ? -128 : 0;
    if (quant->scale == 0)
        quant->scale = 1;
    return __builtin_isfinite(quant->scale) && quant->scale > 0 && quant->zero_point >= least &&
                   quant->zero_point <= least + 255
               ? BNORM_OK
               : BNORM_BAD_QUANTIZATION;
}

bnorm_status bnorm_plan_apply(const bnorm_shape *shape, bnorm_in x, bnorm_out y,
                              const bnorm_affine *affine, const bnorm_exec *exec,
                              bnorm_elementwise *pass) {
    static const bnorm_affine copy = {0};
    bnorm_tensor tx, ty, tr;
    bnorm_status status = bnorm_check_shape(shape);

    if (pass)
        pass->y.data = NULL;
    if (!affine)
        affine = &copy;
    if (!status)
        status = bnorm_check_exec(exec);
    if (!status)
        status = bnorm_check_act(&affine->act, bnorm_exec_isa(exec));
    if (bnorm_failed(status))
        return status;
    if ((unsigned)affine->y_dtype > BNORM_Y_U8)
        return BNORM_BAD_ENUM;
    const bnorm_dtype y_type = y_type_of(shape, affine);
    bnorm_quant x_quant = affine->x_quant, residual_quant = affine->residual_quant,
                y_quant = affine->y_quant;
    unsigned char *mask = affine->mask;
    if (shape->dtype > BNORM_F16 &&
        (bnorm_failed(status = check_quant(shape->dtype, &x_quant)) ||
         (affine->residual.data &&
          bnorm_failed(status = check_quant(shape->dtype, &residual_quant)))))
        return status;
    if (y_type > BNORM_F16 && bnorm_failed(status = check_quant(y_type, &y_quant)))
        return status;
    if ((mask && bnorm_failed(status = bnorm_check_mask(&affine->act, &mask))) ||
        bnorm_is_empty(shape))
        return status;
    if (!x.data || !y.data)
        return BNORM_NULL_POINTER;
    if (bnorm_failed(status = bnorm_check_in(shape, x, &tx)) ||
        bnorm_failed(status = bnorm_check_out(shape, y, &ty)) ||
        bnorm_failed(status = bnorm_check_in(shape, affine->residual, &tr)))
        return status;
    ty.type = y_type;
    const bnorm_buffer buffers[] = {
        /* outputs */
        bnorm_tensor_buffer(&ty),
        bnorm_mask_buffer(shape, mask),
        /* inputs */
        bnorm_tensor_buffer(&tx),
        bnorm_tensor_buffer(&tr),
        bnorm_array_buffer(affine->center, shape->c),
        bnorm_array_buffer(affine->scale, shape->c),
        bnorm_array_buffer(affine->shift, shape->c),
    };
    status = bnorm_check_overlap(shape, buffers, sizeof buffers / sizeof buffers[0], 2);
    if (bnorm_failed(status) || !pass)
        return status;

    /* Member by member: a compiler fills a whole struct aside and copies it, which takes as long
     * as a small tensor. */
    bnorm_walk *const walks[] = {&pass->x, &pass->residual, &pass->y, &pass->mask};
    const size_t count = sizeof walks / sizeof walks[0];
    pass->x = bnorm_walk_of(shape, &tx);
    pass->residual = bnorm_walk_of(shape, &tr);
    pass->y = bnorm_walk_of(shape, &ty);
    pass->mask = bnorm_mask_walk(shape, mask);
    pass->view = bnorm_elementwise_view(shape, walks, count);
    pass->center = affine->center;
    pass->scale = affine->scale;
    pass->shift = affine->shift;
    pass->act = affine->act;
    pass->x_quant = x_quant;
    pass->residual_quant = residual_quant;
    pass->y_quant = y_quant;
    pass->isa = bnorm_exec_isa(exec);
    pass->hints = bnorm_elementwise_hints(exec, &pass->view, walks, count - 1);
    return BNORM_OK;
}

bnorm_status bnorm_apply(const bnorm_shape *shape, bnorm_in x, bnorm_out y,
                         const bnorm_affine *affine, const bnorm_exec *exec) {
    bnorm_elementwise pass;
    const bnorm_status status = bnorm_plan_apply(shape, x, y, affine, exec, &pass);
    if (!status && pass.y.data) {
        bnorm_end_mask(shape, (unsigned char *)pass.mask.data);
        bnorm_elementwise_run(&pass, exec);
    }
    return status;
}

size_t bnorm_mask_size(const bnorm_shape *shape) {
    if (bnorm_check_shape(shape) || bnorm_is_empty(shape))
        return 0;
    return (shape->n * bnorm_runs(shape) * bnorm_run_length(shape) - 1) / 8 + 1;
}
