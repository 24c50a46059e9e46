/* SPDX-License-Identifier: MIT
 *
 * The elementwise pass of backward: dx and dresidual. */

/* n lanes at element i of run r. */
BNORM_INLINE void dx_lanes(enum bnorm_pre pre, bnorm_act_kind kind, const bnorm_grad_args *a,
                           const struct grad_vectors *p, size_t r, size_t i, size_t n) {
    const vec_f x = load_lanes(a->x + r * a->x_stride + i, n);
    const vec_f dy = load_lanes(a->dy + r * a->dy_stride + i, n);
    const float *extra = reads_extra(pre) ? a->extra + r * a->extra_stride + i : NULL;
    const vec_f g = grad_lanes(pre, kind, x, dy, extra, p, n);
    if (a->dx) {
        const vec_f xh = vec_mul(vec_sub(x, p->center), p->invstd);
        const vec_f dx = a->slope ? vec_fma(xh, p->slope, vec_fma(g, p->scale, p->offset))
                                  : vec_mul(g, p->scale);
        store_lanes(a->dx + r * a->dx_stride + i, vec_canonical(dx), n);
    }
    if (a->dresidual)
        store_lanes(a->dresidual + r * a->dresidual_stride + i, vec_canonical(g), n);
}

BNORM_INLINE void dx_rows_lanes(enum bnorm_pre pre, bnorm_act_kind kind, const bnorm_grad_args *a,
                                size_t r, size_t rows, size_t i, size_t n) {
    const struct grad_vectors p = grad_parameters(a, pre, i, n, 0, 1);
    BNORM_UNROLL
    for (size_t q = 0; q < rows; q++)
        dx_lanes(pre, kind, a, &p, r + q, i, n);
}

/* Rows that take turns on one load of the parameters. */
#define BNORM_ROWS 4

/* What full groups of full vectors leave over: one copy for all combinations. */
static void dx_rows_rest(const bnorm_grad_args *a, size_t r, size_t rows, size_t i) {
    for (; i < a->len; i += VEC_F)
        for (size_t q = 0; q < rows; q++)
            dx_rows_lanes(a->pre, a->act.kind, a, r + q, 1, i, lesser(VEC_F, a->len - i));
}

BNORM_INLINE void dx_rows_body(enum bnorm_pre pre, bnorm_act_kind kind, const bnorm_grad_args *a) {
    size_t r = 0;
    for (; r + BNORM_ROWS <= a->runs; r += BNORM_ROWS) {
        size_t i = 0;
        for (; i + VEC_F <= a->len; i += VEC_F)
            dx_rows_lanes(pre, kind, a, r, BNORM_ROWS, i, VEC_F);
        if (i < a->len)
            dx_rows_rest(a, r, BNORM_ROWS, i);
    }
    if (r < a->runs)
        dx_rows_rest(a, r, a->runs - r, 0);
}

BNORM_INLINE void dx_span_body(enum bnorm_pre pre, bnorm_act_kind kind, const bnorm_grad_args *a) {
    for (size_t r = 0; r < a->runs; r++) {
        const struct grad_vectors p = grad_parameters(a, pre, r, VEC_F, 1, 1);
        size_t i = 0;
        for (; i + VEC_F <= a->len; i += VEC_F)
            dx_lanes(pre, kind, a, &p, r, i, VEC_F);
        if (i < a->len)
            dx_lanes(pre, kind, a, &p, r, i, a->len - i);
    }
}

static void dx_rows_any(const bnorm_grad_args *a) {
    const bnorm_grad_args local = *a; /* as in BNORM_APPLY_CASES */
#define BNORM_CALL(pre, kind) dx_rows_body(pre, kind, &local)
    BNORM_GRAD_CASES(BNORM_CALL)
#undef BNORM_CALL
    vec_leave();
}

/* Few channels without gaps between rows: as in apply_rows. */
static void dx_rows(const bnorm_grad_args *a) {
    const size_t c = a->len, times = bnorm_chains(c);
    const int wanted = reads_extra(a->pre);
    const int dense = a->x_stride == c && a->dy_stride == c && (!wanted || a->extra_stride == c) &&
                      (!a->dx || a->dx_stride == c) && (!a->dresidual || a->dresidual_stride == c);
    if (times == 1 || !dense || a->runs < 2 * times) {
        dx_rows_any(a);
        return;
    }
    float center[BNORM_MAX_LANES], scale[BNORM_MAX_LANES], shift[BNORM_MAX_LANES];
    float invstd[BNORM_MAX_LANES], slope[BNORM_MAX_LANES], offset[BNORM_MAX_LANES];
    bnorm_grad_args wide = *a, rest = *a;
    wide.runs = a->runs / times;
    wide.len = c * times;
    wide.x_stride = wide.dy_stride = wide.extra_stride = wide.dx_stride = wide.dresidual_stride =
        c * times;
    wide.center = repeat(center, a->center, c, times);
    wide.scale = repeat(scale, a->scale, c, times);
    wide.shift = repeat(shift, a->shift, c, times);
    wide.invstd = repeat(invstd, a->slope ? a->invstd : NULL, c, times);
    wide.slope = repeat(slope, a->slope, c, times);
    wide.offset = repeat(offset, a->offset, c, times);
    dx_rows_any(&wide);

    const size_t done = wide.runs * times;
    rest.runs = a->runs - done;
    rest.x += done * c;
    rest.dy += done * c;
    if (wanted)
        rest.extra += done * c;
    if (rest.dx)
        rest.dx += done * c;
    if (rest.dresidual)
        rest.dresidual += done * c;
    if (rest.runs)
        dx_rows_any(&rest);
}

static void dx_span(const bnorm_grad_args *a) {
    const bnorm_grad_args local = *a;
#define BNORM_CALL(pre, kind) dx_span_body(pre, kind, &local)
    BNORM_GRAD_CASES(BNORM_CALL)
#undef BNORM_CALL
    vec_leave();
}
