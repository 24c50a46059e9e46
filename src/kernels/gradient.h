/* SPDX-License-Identifier: MIT
 *
 * Backward: g = dy*act'(v), the sums of g and g*(x - center), and dx. How v is recovered (pre) and the kind of activation
 * are constants of an inlined body. */

/* dy times the derivative at v. */
BNORM_INLINE vec_f gradient(bnorm_act_kind kind, vec_f v, vec_f dy, vec_f a, vec_f b) {
    const vec_f zero = vec_set1(0), three = vec_set1(3);
    switch (kind) {
    case BNORM_ACT_IDENTITY:
        break;
    case BNORM_ACT_RELU:
        return vec_if_gt(v, zero, dy, zero);
    case BNORM_ACT_CLAMP:
        return vec_if_gt(v, a, vec_if_gt(b, v, dy, zero), zero);
    case BNORM_ACT_LEAKY_RELU:
        return vec_if_gt(v, zero, dy, vec_mul(dy, a));
    case BNORM_ACT_HARD_SWISH: {
        const vec_f between = vec_mul(dy, vec_fma(v, vec_set1(1.0f / 3), vec_set1(0.5f)));
        return vec_if_le(v, vec_set1(-3), zero, vec_if_le(three, v, dy, between));
    }
    }
    return dy;
}

struct grad_vectors {
    vec_f center, scale, shift, a, b; /* for g */
    vec_f slope, offset;              /* for dx */
};

/* Parameters of one channel for all lanes, or of the channels of the lanes. */
BNORM_INLINE struct grad_vectors grad_parameters(const bnorm_grad_args *a, enum bnorm_pre pre, size_t channel,
                                                 size_t n, int spread, int dx) {
    const int recomputed = pre == BNORM_PRE_X || pre == BNORM_PRE_RESIDUAL;
    const int sloped = dx && a->slope;
#define BNORM_PARAMETER(wanted, array)                                                                                 \
    ((wanted) ? (spread ? vec_set1((array)[channel]) : load_lanes((array) + channel, n)) : vec_set1(0))
    const struct grad_vectors p = {BNORM_PARAMETER(recomputed || sloped || !dx, a->center),
                                   BNORM_PARAMETER(recomputed || dx, a->scale),
                                   BNORM_PARAMETER(recomputed, a->shift),
                                   vec_set1(a->act.a),
                                   vec_set1(a->act.b),
                                   BNORM_PARAMETER(sloped, a->slope),
                                   BNORM_PARAMETER(sloped, a->offset)};
#undef BNORM_PARAMETER
    return p;
}

BNORM_INLINE vec_f grad_lanes(enum bnorm_pre pre, bnorm_act_kind kind, vec_f x, vec_f dy, const float *extra,
                              const struct grad_vectors *p, size_t n) {
    if (pre == BNORM_PRE_NONE)
        return dy;
    vec_f v = load_lanes(pre == BNORM_PRE_X ? NULL : extra, pre == BNORM_PRE_X ? 0 : n);
    if (pre != BNORM_PRE_Y) {
        const vec_f recomputed = vec_fma(vec_sub(x, p->center), p->scale, p->shift);
        v = pre == BNORM_PRE_RESIDUAL ? vec_add(recomputed, v) : recomputed;
    }
    return gradient(kind, v, dy, p->a, p->b);
}

/* ------------------------------------------------------------------------------------------------------------------ */
/* Sums                                                                                                               */

/* A strip as in moments.h, of several tensors. */
struct grad_strip {
    const float *x, *dy, *extra;
    size_t x_stride, dy_stride, extra_stride;
    size_t rows, len, tail;
    const float *center, *scale, *shift; /* one per lane */
};

BNORM_INLINE void strip_grad_group(enum bnorm_pre pre, bnorm_act_kind kind, const bnorm_grad_args *a,
                                   const struct grad_strip *s, size_t r, size_t whole, size_t i, size_t n, size_t tail,
                                   double *sum_g, double *sum_gx) {
    const int recomputed = pre == BNORM_PRE_X || pre == BNORM_PRE_RESIDUAL;
    struct grad_vectors p = {0};
    vec_d g_low[4], g_high[4]; /* sums of pairs of rows */
    vec_d even_low = vec_set1_d(0), even_high = even_low, odd_low = even_low, odd_high = even_low;
    p.a = vec_set1(a->act.a);
    p.b = vec_set1(a->act.b);
    if (recomputed) {
        p.scale = load_lanes(s->scale + i, n);
        p.shift = load_lanes(s->shift + i, n);
    }
    BNORM_UNROLL
    for (size_t q = 0; q < BNORM_GROUP; q++) {
        const size_t lanes = row_lanes(q, whole, i, n, tail), row = r + q;
        const vec_f x = load_lanes(s->x + row * s->x_stride + i, lanes);
        const vec_f center = load_lanes(s->center + i, lanes); /* 0 - 0 where there is no row */
        p.center = center;
        vec_f g = load_lanes(s->dy + row * s->dy_stride + i, lanes);
        if (lanes) {
            const float *extra = pre == BNORM_PRE_NONE || pre == BNORM_PRE_X ? NULL : s->extra + row * s->extra_stride + i;
            g = grad_lanes(pre, kind, x, g, extra, &p, lanes);
        }
        const vec_d gl = vec_low(g), gh = vec_high(g);
        const vec_d tl = vec_sub_d(vec_low(x), vec_low(center)), th = vec_sub_d(vec_high(x), vec_high(center));
        if (q % 2 == 0) {
            g_low[q / 2] = gl;
            g_high[q / 2] = gh;
            even_low = q ? vec_fma_d(gl, tl, even_low) : vec_mul_d(gl, tl);
            even_high = q ? vec_fma_d(gh, th, even_high) : vec_mul_d(gh, th);
        } else {
            g_low[q / 2] = vec_add_d(g_low[q / 2], gl);
            g_high[q / 2] = vec_add_d(g_high[q / 2], gh);
            odd_low = q > 1 ? vec_fma_d(gl, tl, odd_low) : vec_mul_d(gl, tl);
            odd_high = q > 1 ? vec_fma_d(gh, th, odd_high) : vec_mul_d(gh, th);
        }
    }
    const size_t low = lesser(n, VEC_D);
    accumulate_d(sum_g + i, vec_add_d(vec_add_d(g_low[0], g_low[1]), vec_add_d(g_low[2], g_low[3])), low);
    accumulate_d(sum_gx + i, vec_add_d(even_low, odd_low), low);
    if (n > VEC_D) {
        accumulate_d(sum_g + i + VEC_D, vec_add_d(vec_add_d(g_high[0], g_high[1]), vec_add_d(g_high[2], g_high[3])),
                     n - VEC_D);
        accumulate_d(sum_gx + i + VEC_D, vec_add_d(even_high, odd_high), n - VEC_D);
    }
}

BNORM_INLINE void strip_grad(enum bnorm_pre pre, bnorm_act_kind kind, const bnorm_grad_args *a,
                             const struct grad_strip *s, double *sum_g, double *sum_gx) {
    size_t r = 0;
    for (; r + BNORM_GROUP <= s->rows; r += BNORM_GROUP) {
        size_t i = 0;
        for (; i + VEC_F <= s->len; i += VEC_F)
            strip_grad_group(pre, kind, a, s, r, BNORM_GROUP, i, VEC_F, 0, sum_g, sum_gx);
        if (i < s->len)
            strip_grad_group(pre, kind, a, s, r, BNORM_GROUP, i, s->len - i, 0, sum_g, sum_gx);
    }
    if (r < s->rows || s->tail)
        for (size_t i = 0; i < s->len; i += VEC_F)
            strip_grad_group(pre, kind, a, s, r, s->rows - r, i, lesser(VEC_F, s->len - i), s->tail, sum_g, sum_gx);
}

/* The combinations of pre and activation that occur. */
#define BNORM_GRAD_KINDS(pre, body)                                                                                    \
    switch (a->act.kind) {                                                                                             \
    case BNORM_ACT_IDENTITY:                                                                                           \
        body(pre, BNORM_ACT_IDENTITY);                                                                                 \
        break;                                                                                                         \
    case BNORM_ACT_RELU:                                                                                               \
        body(pre, BNORM_ACT_RELU);                                                                                     \
        break;                                                                                                         \
    case BNORM_ACT_CLAMP:                                                                                              \
        body(pre, BNORM_ACT_CLAMP);                                                                                    \
        break;                                                                                                         \
    case BNORM_ACT_LEAKY_RELU:                                                                                         \
        body(pre, BNORM_ACT_LEAKY_RELU);                                                                               \
        break;                                                                                                         \
    case BNORM_ACT_HARD_SWISH:                                                                                         \
        body(pre, BNORM_ACT_HARD_SWISH);                                                                               \
        break;                                                                                                         \
    }

#define BNORM_GRAD_CASES(body)                                                                                         \
    switch (a->pre) {                                                                                                  \
    case BNORM_PRE_NONE:                                                                                               \
        body(BNORM_PRE_NONE, BNORM_ACT_IDENTITY);                                                                      \
        break;                                                                                                         \
    case BNORM_PRE_X:                                                                                                  \
        BNORM_GRAD_KINDS(BNORM_PRE_X, body)                                                                            \
        break;                                                                                                         \
    case BNORM_PRE_RESIDUAL:                                                                                           \
        BNORM_GRAD_KINDS(BNORM_PRE_RESIDUAL, body)                                                                     \
        break;                                                                                                         \
    case BNORM_PRE_Y:                                                                                                  \
        BNORM_GRAD_KINDS(BNORM_PRE_Y, body)                                                                            \
        break;                                                                                                         \
    }

static void strip_grad_any(const bnorm_grad_args *a, const struct grad_strip *s, double *sum_g, double *sum_gx) {
#define BNORM_CALL(pre, kind) strip_grad(pre, kind, a, s, sum_g, sum_gx)
    BNORM_GRAD_CASES(BNORM_CALL)
#undef BNORM_CALL
}

BNORM_INLINE void canonical_sums(double *sum, size_t c) {
    for (size_t i = 0; i < c; i += VEC_D) {
        const size_t n = lesser(VEC_D, c - i);
        vec_store_d_n(sum + i, vec_canonical_d(vec_load_d_n(sum + i, n)), n);
    }
}

/* Channels [at, at + c) of a block of rows. */
BNORM_INLINE void sums_tile(const bnorm_grad_args *a, size_t at, size_t c, size_t chains, double *sum_g,
                            double *sum_gx) {
    const size_t rows = a->runs;
    const int wanted = a->pre == BNORM_PRE_RESIDUAL || a->pre == BNORM_PRE_Y;
    struct grad_strip s = {.x = a->x + at,
                           .dy = a->dy + at,
                           .extra = wanted ? a->extra + at : NULL,
                           .x_stride = a->x_stride,
                           .dy_stride = a->dy_stride,
                           .extra_stride = a->extra_stride,
                           .rows = rows,
                           .len = c,
                           .center = a->center + at,
                           .scale = a->scale + at,
                           .shift = a->shift + at};
    if (chains == 1) {
        memset(sum_g, 0, c * sizeof *sum_g);
        memset(sum_gx, 0, c * sizeof *sum_gx);
        strip_grad_any(a, &s, sum_g, sum_gx);
    } else {
        double g[BNORM_MAX_LANES], gx[BNORM_MAX_LANES];
        float center[BNORM_MAX_LANES], scale[BNORM_MAX_LANES], shift[BNORM_MAX_LANES];
        memset(g, 0, c * chains * sizeof *g);
        memset(gx, 0, c * chains * sizeof *gx);
        if (a->x_stride == c && a->dy_stride == c && (!wanted || a->extra_stride == c)) {
            s.rows = rows / chains;
            s.tail = rows % chains * c;
            s.len = s.rows ? c * chains : s.tail;
            s.x_stride = s.dy_stride = s.extra_stride = c * chains;
            s.center = repeat(center, a->center, c, chains);
            s.scale = repeat(scale, a->scale, c, chains);
            s.shift = repeat(shift, a->shift, c, chains);
            strip_grad_any(a, &s, g, gx);
        } else {
            for (size_t j = 0; j < chains && j < rows; j++) {
                struct grad_strip chain = s;
                chain.x += j * a->x_stride;
                chain.dy += j * a->dy_stride;
                if (wanted)
                    chain.extra += j * a->extra_stride;
                chain.x_stride *= chains;
                chain.dy_stride *= chains;
                chain.extra_stride *= chains;
                chain.rows = (rows - j + chains - 1) / chains;
                strip_grad_any(a, &chain, g + j * c, gx + j * c);
            }
        }
        fold_chains(g, c, chains);
        fold_chains(gx, c, chains);
        memcpy(sum_g, g, c * sizeof *g);
        memcpy(sum_gx, gx, c * sizeof *gx);
    }
    canonical_sums(sum_g, c);
    canonical_sums(sum_gx, c);
}

static void sums_rows(const bnorm_grad_args *a, size_t chains, double *sum_g, double *sum_gx) {
    for (size_t at = 0; at < a->len; at += BNORM_TILE)
        sums_tile(a, at, lesser(BNORM_TILE, a->len - at), chains, sum_g + at, sum_gx + at);
}

/* A plane is a block of rows of one channel. */
static void sums_span(const bnorm_grad_args *a, double *sum_g, double *sum_gx) {
    const int wanted = a->pre == BNORM_PRE_RESIDUAL || a->pre == BNORM_PRE_Y;
    for (size_t r = 0; r < a->runs; r++) {
        bnorm_grad_args plane = *a;
        plane.runs = a->len;
        plane.len = 1;
        plane.x += r * a->x_stride;
        plane.dy += r * a->dy_stride;
        if (wanted)
            plane.extra += r * a->extra_stride;
        plane.x_stride = plane.dy_stride = plane.extra_stride = 1;
        plane.center += r;
        plane.scale += r;
        plane.shift += r;
        sums_tile(&plane, 0, 1, BNORM_SPAN_LANES, sum_g + r, sum_gx + r);
    }
}

/* ------------------------------------------------------------------------------------------------------------------ */
/* dx                                                                                                                 */

/* n lanes at element i of run r. */
BNORM_INLINE void dx_lanes(enum bnorm_pre pre, bnorm_act_kind kind, const bnorm_grad_args *a,
                           const struct grad_vectors *p, size_t r, size_t i, size_t n) {
    const vec_f x = load_lanes(a->x + r * a->x_stride + i, n);
    const vec_f dy = load_lanes(a->dy + r * a->dy_stride + i, n);
    const float *extra = pre == BNORM_PRE_NONE || pre == BNORM_PRE_X ? NULL : a->extra + r * a->extra_stride + i;
    const vec_f g = grad_lanes(pre, kind, x, dy, extra, p, n);
    if (a->dx) {
        const vec_f dx = a->slope ? vec_fma(vec_sub(x, p->center), p->slope, vec_fma(g, p->scale, p->offset))
                                  : vec_mul(g, p->scale);
        store_lanes(a->dx + r * a->dx_stride + i, vec_canonical(dx), n);
    }
    if (a->dresidual)
        store_lanes(a->dresidual + r * a->dresidual_stride + i, vec_canonical(g), n);
}

BNORM_INLINE void dx_rows_lanes(enum bnorm_pre pre, bnorm_act_kind kind, const bnorm_grad_args *a, size_t r,
                                size_t rows, size_t i, size_t n) {
    const struct grad_vectors p = grad_parameters(a, pre, i, n, 0, 1);
    BNORM_UNROLL
    for (size_t q = 0; q < rows; q++)
        dx_lanes(pre, kind, a, &p, r + q, i, n);
}

BNORM_INLINE void dx_rows_body(enum bnorm_pre pre, bnorm_act_kind kind, const bnorm_grad_args *a) {
    size_t r = 0;
    for (; r + BNORM_ROWS <= a->runs; r += BNORM_ROWS) {
        size_t i = 0;
        for (; i + VEC_F <= a->len; i += VEC_F)
            dx_rows_lanes(pre, kind, a, r, BNORM_ROWS, i, VEC_F);
        if (i < a->len)
            dx_rows_lanes(pre, kind, a, r, BNORM_ROWS, i, a->len - i);
    }
    for (; r < a->runs; r++)
        for (size_t i = 0; i < a->len; i += VEC_F)
            dx_rows_lanes(pre, kind, a, r, 1, i, lesser(VEC_F, a->len - i));
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
#define BNORM_CALL(pre, kind) dx_rows_body(pre, kind, a)
    BNORM_GRAD_CASES(BNORM_CALL)
#undef BNORM_CALL
}

/* Few channels without gaps between rows: as in apply_rows. */
static void dx_rows(const bnorm_grad_args *a) {
    const size_t c = a->len, times = c < BNORM_SPAN_LANES ? bnorm_chains(c) : 1;
    const int wanted = a->pre == BNORM_PRE_RESIDUAL || a->pre == BNORM_PRE_Y;
    const int dense = a->x_stride == c && a->dy_stride == c && (!wanted || a->extra_stride == c) &&
                      (!a->dx || a->dx_stride == c) && (!a->dresidual || a->dresidual_stride == c);
    if (times == 1 || !dense || a->runs < 2 * times) {
        dx_rows_any(a);
        return;
    }
    float center[BNORM_MAX_LANES], scale[BNORM_MAX_LANES], shift[BNORM_MAX_LANES];
    float slope[BNORM_MAX_LANES], offset[BNORM_MAX_LANES];
    bnorm_grad_args wide = *a, rest = *a;
    wide.runs = a->runs / times;
    wide.len = c * times;
    wide.x_stride = wide.dy_stride = wide.extra_stride = wide.dx_stride = wide.dresidual_stride = c * times;
    wide.center = repeat(center, a->center, c, times);
    wide.scale = repeat(scale, a->scale, c, times);
    wide.shift = repeat(shift, a->shift, c, times);
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
#define BNORM_CALL(pre, kind) dx_span_body(pre, kind, a)
    BNORM_GRAD_CASES(BNORM_CALL)
#undef BNORM_CALL
}
