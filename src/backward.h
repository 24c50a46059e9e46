/* SPDX-License-Identifier: MIT
 *
 * The training backward pass, for batch and for frozen statistics. */
#ifndef BNORM_BACKWARD_H
#define BNORM_BACKWARD_H

#include "apply.h"
#include "reduce.h"
#include "renorm.h"
#include "weighted.h"

/* One of the two phases of a batch in pieces, instead of the whole of bnorm_backward. */
typedef struct bnorm_grad_phase {
    const bnorm_partial *piece; /* that takes the sums, which are all that is wanted; or NULL */
    /* That bnorm_partial_finish_grad has given, for dx and dresidual; or NULL. */
    const float *coefficients;
} bnorm_grad_phase;

typedef struct bnorm_gradients {
    int collected;         /* not 0: whole subtrees are all that is wanted */
    bnorm_view view;       /* of the sums */
    bnorm_view apply_view; /* of the elementwise pass */
    bnorm_blocks blocks;
    bnorm_walk x, dy, extra, mask;                      /* as the sums see them */
    bnorm_walk ax, ady, aextra, amask, adx, adresidual; /* as the elementwise pass sees them */
    int same_dy;                                        /* not 0: dy has one value along its runs */
    double *block_g, *block_gx;                         /* blocks.count x c each */
    bnorm_partials partials;                            /* the same, to be read */
    double *sum_g, *sum_gx;                             /* c each */
    double *totals[2];                                  /* c each: room of ghost batches */
    bnorm_scale_args prepared;                          /* what the sums need already */
    bnorm_grad_coefficient_args derived;                /* slope NULL = frozen, or dx not wanted */
    enum bnorm_pre pre;
    unsigned hints; /* of the elementwise pass */
    bnorm_act act;
    const float *save_mean;
    bnorm_weighted weighted;
    float *invstd; /* to be computed of save_var and eps; NULL = it is given */
    const float *save_var;
    double eps;
    const float *renorm_r, *renorm_d; /* NULL = none */
    bnorm_renorm_args renormed;
    int has_sums;
    int has_scale; /* scale and shift are to be computed */
    const bnorm_isa *isa;
} bnorm_gradients;

/* The checks of bnorm_backward, or of a phase. Where they pass, *s says what there is to do; x.data
 * NULL = only to clear dgamma and dbeta. s NULL = only the checks. */
bnorm_status bnorm_plan_backward(const bnorm_shape *shape, bnorm_in x, bnorm_in dy, bnorm_out dx,
                                 const bnorm_grad *grad, const bnorm_grad_phase *phase, void *ws,
                                 size_t ws_size, const bnorm_exec *exec, bnorm_gradients *s);

/* What the kernels of the elementwise pass take for a piece, whose parameters begin with those of
 * `channel`. In a blocked view the piece has one run. */
static inline bnorm_grad_args bnorm_gradient_args(const bnorm_gradients *s,
                                                  const bnorm_piece *piece, size_t channel,
                                                  unsigned hints) {
    const bnorm_view *view = &s->apply_view;
    const size_t image = piece->image, run = piece->run, i = piece->i, unit = view->unit;
    const int sloped = s->derived.slope != NULL;
    return (bnorm_grad_args){
        .runs = unit > 1 ? piece->len / unit : piece->runs,
        .len = unit > 1 ? unit : piece->len,
        .x = bnorm_at(view, &s->ax, image, run, i),
        .dy = bnorm_at(view, &s->ady, image, run, i),
        .extra = bnorm_at(view, &s->aextra, image, run, i),
        .x_stride = bnorm_stride(view, &s->ax),
        .dy_stride = bnorm_stride(view, &s->ady),
        .extra_stride = bnorm_stride(view, &s->aextra),
        .pre = s->pre,
        .act = s->act,
        .center = s->save_mean + channel,
        .scale = s->prepared.scale + channel,
        .shift = s->prepared.shift + channel,
        .type = s->ax.type,
        .valid = unit > 1 ? bnorm_valid(view, channel) : piece->len,
        .mask = bnorm_bits_at(view, &s->amask, image, run, i),
        .invstd = sloped ? s->derived.invstd + channel : NULL,
        .slope = sloped ? s->derived.slope + channel : NULL,
        .offset = sloped ? s->derived.offset + channel : NULL,
        .dx = bnorm_at(view, &s->adx, image, run, i),
        .dresidual = bnorm_at(view, &s->adresidual, image, run, i),
        .dx_stride = bnorm_stride(view, &s->adx),
        .dresidual_stride = bnorm_stride(view, &s->adresidual),
        .hints = hints,
    };
}

static inline void bnorm_run_gradient(const bnorm_gradients *s, const bnorm_grad_args *args) {
    if (s->apply_view.rows || s->apply_view.unit > 1)
        BNORM_HELD(s->isa->dx_rows(args), args->valid < args->len);
    else
        s->isa->dx_span(args);
}

void bnorm_gradients_run(const bnorm_gradients *s, const bnorm_exec *exec);

#endif
