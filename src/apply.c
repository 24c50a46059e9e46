/* SPDX-License-Identifier: MIT */
#include "apply.h"

bnorm_view bnorm_elementwise_view(const bnorm_shape *shape, bnorm_walk *const *walks,
                                  size_t count) {
    bnorm_view view = bnorm_view_of(shape);
    int gaps = 0, dense = view.rows;
    for (size_t i = 0; i < count; i++) {
        if (!walks[i]->data)
            continue;
        gaps |= walks[i]->step != 1;
        dense &= view.images == 1 || walks[i]->image_stride == view.runs * walks[i]->run_stride;
    }
    if (gaps) {
        for (size_t i = 0; i < count; i++)
            *walks[i] = (bnorm_walk){walks[i]->data, walks[i]->run_stride, walks[i]->step, 1};
        return (bnorm_view){0, shape->n, shape->c, 1, shape->c};
    }
    if (dense) {
        view.runs *= view.images;
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
    size_t present = 0, in_place = 0;
    for (size_t i = 0; i < count; i++) {
        present += walks[i]->data != NULL;
        for (size_t k = 0; k < i; k++)
            in_place += walks[i]->data && walks[i]->data == walks[k]->data;
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
    const size_t elements = view->images * view->runs * view->len;
    if (!in_place && elements >= STREAMED_BYTES / sizeof(float))
        return BNORM_FETCH_IN | BNORM_BYPASS;
    return elements > CACHED_BYTES / sizeof(float) / (present > in_place ? present - in_place : 1)
               ? fetch
               : 0;
}

/* Stand-ins for absent parameters, this many channels at a time. */
#define DEFAULTS 64
#define EIGHT(v) v, v, v, v, v, v, v, v
static const float ones[DEFAULTS] = {EIGHT(1), EIGHT(1), EIGHT(1), EIGHT(1),
                                     EIGHT(1), EIGHT(1), EIGHT(1), EIGHT(1)};
static const float zeros[DEFAULTS] = {0};

void bnorm_elementwise_piece(const bnorm_elementwise *pass, const bnorm_piece *piece,
                             unsigned hints) {
    const int rows = pass->view.rows;
    const size_t first = bnorm_piece_channel(&pass->view, piece),
                 channels = rows ? piece->len : piece->runs;
    const size_t step = pass->scale && pass->shift ? channels : DEFAULTS;
    for (size_t at = 0; at < channels; at += step) {
        const size_t channel = first + at, count = bnorm_min(step, channels - at);
        const size_t run = piece->run + (rows ? 0 : at), i = piece->i + (rows ? at : 0);
        const bnorm_apply_args args = {
            .runs = rows ? piece->runs : count,
            .len = rows ? count : piece->len,
            .x = bnorm_at(&pass->x, piece->image, run, i),
            .residual = bnorm_at(&pass->residual, piece->image, run, i),
            .y = bnorm_at(&pass->y, piece->image, run, i),
            .x_stride = pass->x.run_stride,
            .residual_stride = pass->residual.run_stride,
            .y_stride = pass->y.run_stride,
            .center = pass->center ? pass->center + channel : NULL,
            .scale = pass->scale ? pass->scale + channel : ones,
            .shift = pass->shift ? pass->shift + channel : zeros,
            .act = pass->act,
            .hints = hints,
        };
        if (rows)
            pass->isa->apply_rows(&args);
        else
            pass->isa->apply_span(&args);
    }
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

bnorm_status bnorm_apply(const bnorm_shape *shape, bnorm_in x, bnorm_out y,
                         const bnorm_affine *affine, const bnorm_exec *exec) {
    const bnorm_affine copy = {0};
    bnorm_tensor tx, ty, tr;
    bnorm_status status = bnorm_check_shape(shape);

    if (!affine)
        affine = &copy;
    if (!status)
        status = bnorm_check_exec(exec);
    if (!status)
        status = bnorm_check_act(&affine->act);
    if (status || bnorm_is_empty(shape))
        return status;
    if (!x.data || !y.data)
        return BNORM_NULL_POINTER;
    if (bnorm_failed(status = bnorm_check_in(shape, x, &tx)) ||
        bnorm_failed(status = bnorm_check_out(shape, y, &ty)) ||
        bnorm_failed(status = bnorm_check_in(shape, affine->residual, &tr)))
        return status;
    const bnorm_buffer buffers[] = {
        bnorm_tensor_buffer(&ty), /* the output */
        bnorm_tensor_buffer(&tx),
        bnorm_tensor_buffer(&tr),
        bnorm_array_buffer(affine->center, shape->c),
        bnorm_array_buffer(affine->scale, shape->c),
        bnorm_array_buffer(affine->shift, shape->c),
    };
    status = bnorm_check_overlap(shape, buffers, sizeof buffers / sizeof buffers[0], 1);
    if (bnorm_failed(status))
        return status;

    bnorm_walk wx = bnorm_walk_of(shape, &tx), wr = bnorm_walk_of(shape, &tr),
               wy = bnorm_walk_of(shape, &ty);
    bnorm_walk *const walks[] = {&wx, &wr, &wy};
    const bnorm_view view = bnorm_elementwise_view(shape, walks, sizeof walks / sizeof walks[0]);
    /* Every member is named: compilers clear structs first otherwise, which takes as long as a
     * small tensor. */
    const bnorm_elementwise pass = {
        .view = view,
        .x = wx,
        .residual = wr,
        .y = wy,
        .center = affine->center,
        .scale = affine->scale,
        .shift = affine->shift,
        .act = affine->act,
        .isa = bnorm_exec_isa(exec),
        .hints = bnorm_elementwise_hints(exec, &view, walks, sizeof walks / sizeof walks[0]),
    };
    bnorm_elementwise_run(&pass, exec);
    return BNORM_OK;
}
