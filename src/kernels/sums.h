/* SPDX-License-Identifier: MIT
 *
 * The sums of backward: g and g*(x - center) of a block. */

/* A strip as in moments.h, of several tensors. */
struct grad_strip {
    const float *x, *dy, *extra;
    size_t x_stride, dy_stride, extra_stride;
    size_t rows, len, tail;
    const float *center, *scale, *shift; /* one per lane, or one for all lanes of a plane */
};

/* Sums of a group in VEC_D lanes: g by pairs of rows, g*(x - center) by even and odd rows. */
struct grad_sums {
    vec_d pair[BNORM_GROUP / 2], even, odd;
};

BNORM_INLINE void add_to_sums(struct grad_sums *sums, size_t q, vec_d g, vec_d centred) {
    if (q % 2 == 0) {
        sums->pair[q / 2] = g;
        sums->even = vec_fma_d(g, centred, sums->even);
    } else {
        sums->pair[q / 2] = vec_add_d(sums->pair[q / 2], g);
        sums->odd = vec_fma_d(g, centred, sums->odd);
    }
}

BNORM_INLINE void accumulate_sums(const struct grad_sums *sums, double *sum_g, double *sum_gx,
                                  size_t n, int padded) {
    const vec_d *pair = sums->pair;
    accumulate_d(sum_g, vec_add_d(vec_add_d(pair[0], pair[1]), vec_add_d(pair[2], pair[3])), n,
                 padded);
    accumulate_d(sum_gx, vec_add_d(sums->even, sums->odd), n, padded);
}

/* Lanes [i, i + n) of row q of a group that begins at row r. x is widened from memory, as taking a
 * vector apart costs a shuffle. */
BNORM_INLINE void grad_row(enum bnorm_pre pre, bnorm_act_kind kind, const struct grad_strip *s,
                           const struct grad_vectors *p, size_t r, size_t q, size_t i, size_t n,
                           struct grad_sums *low, struct grad_sums *high) {
    const int wanted = reads_extra(pre);
    const size_t n_low = lesser(n, VEC_D), n_high = n - n_low;
    const float *x = s->x + (r + q) * s->x_stride + i, *dy = s->dy + (r + q) * s->dy_stride + i;
    vec_d g_low, g_high = vec_set1_d(0);
    if (pre == BNORM_PRE_NONE) {
        g_low = widen_lanes(dy, n_low);
        if (n_high)
            g_high = widen_lanes(dy + VEC_D, n_high);
    } else {
        const float *extra = wanted ? s->extra + (r + q) * s->extra_stride + i : NULL;
        const vec_f g = grad_lanes(pre, kind, load_lanes(x, n), load_lanes(dy, n), extra, p, n);
        g_low = vec_low(g);
        g_high = vec_high(g);
    }
    add_to_sums(low, q, g_low, vec_sub_d(widen_lanes(x, n_low), vec_low(p->center)));
    if (n_high)
        add_to_sums(high, q, g_high,
                    vec_sub_d(widen_lanes(x + VEC_D, n_high), vec_high(p->center)));
}

/* Up to 8 rows from row r on, lanes [i, i + n); unrolled where their number is a constant. */
BNORM_INLINE void group_grad(enum bnorm_pre pre, bnorm_act_kind kind, int spread,
                             const bnorm_grad_args *a, const struct grad_strip *s, size_t r,
                             size_t rows, size_t i, size_t n, int padded, double *sum_g,
                             double *sum_gx) {
    const int recomputed = pre == BNORM_PRE_X || pre == BNORM_PRE_RESIDUAL;
    const vec_d zero = vec_set1_d(0);
    struct grad_sums low = {{zero, zero, zero, zero}, zero, zero}, high = low;
    struct grad_vectors p = {0};

    p.center = parameter_lanes(s->center, spread, i, n);
    p.a = vec_set1(a->act.a);
    p.b = vec_set1(a->act.b);
    if (recomputed) {
        p.scale = parameter_lanes(s->scale, spread, i, n);
        p.shift = parameter_lanes(s->shift, spread, i, n);
    }
    if (__builtin_constant_p(rows)) {
        BNORM_UNROLL
        for (size_t q = 0; q < rows; q++)
            grad_row(pre, kind, s, &p, r, q, i, n, &low, &high);
    } else {
        for (size_t q = 0; q < rows; q++)
            grad_row(pre, kind, s, &p, r, q, i, n, &low, &high);
    }
    accumulate_sums(&low, sum_g + i, sum_gx + i, lesser(n, VEC_D), padded);
    if (n > VEC_D)
        accumulate_sums(&high, sum_g + i + VEC_D, sum_gx + i + VEC_D, n - VEC_D, padded);
}

/* What full groups of full vectors leave over, lanes [i, end): one copy for all combinations, but for
 * the most frequent one. */
static void some_grads(int spread, int padded, const bnorm_grad_args *a, const struct grad_strip *s,
                       size_t r, size_t rows, size_t i, size_t end, double *sum_g, double *sum_gx) {
    for (; i < end; i += VEC_F) {
        const size_t n = lesser(VEC_F, end - i);
        if (a->pre != BNORM_PRE_NONE) {
            group_grad(a->pre, a->act.kind, spread, a, s, r, rows, i, n, padded, sum_g, sum_gx);
            continue;
        }
#define BNORM_CALL(count)                                                                          \
    group_grad(BNORM_PRE_NONE, BNORM_ACT_IDENTITY, spread, a, s, r, count, i, n, padded, sum_g,    \
               sum_gx)
        BNORM_FOR_ROWS(rows, BNORM_CALL)
#undef BNORM_CALL
    }
}

BNORM_INLINE void strip_grad(enum bnorm_pre pre, bnorm_act_kind kind, int spread,
                             const bnorm_grad_args *a, const struct grad_strip *s, double *sum_g,
                             double *sum_gx) {
    size_t r = 0;
    for (; r + BNORM_GROUP <= s->rows; r += BNORM_GROUP) {
        size_t i = 0;
        for (; i + VEC_F <= s->len; i += VEC_F)
            group_grad(pre, kind, spread, a, s, r, BNORM_GROUP, i, VEC_F, spread, sum_g, sum_gx);
        if (i < s->len)
            some_grads(spread, spread, a, s, r, BNORM_GROUP, i, s->len, sum_g, sum_gx);
    }
    if (s->tail)
        some_grads(spread, spread, a, s, r, s->rows - r + 1, 0, s->tail, sum_g, sum_gx);
    if (r < s->rows)
        some_grads(spread, spread && !s->tail, a, s, r, s->rows - r, s->tail, s->len, sum_g,
                   sum_gx);
}

static void strip_grad_rows(const bnorm_grad_args *a, const struct grad_strip *s, double *sum_g,
                            double *sum_gx) {
#define BNORM_CALL(pre, kind) strip_grad(pre, kind, 0, a, s, sum_g, sum_gx)
    BNORM_GRAD_CASES(BNORM_CALL)
#undef BNORM_CALL
}

static void strip_grad_plane(const bnorm_grad_args *a, const struct grad_strip *s, double *sum_g,
                             double *sum_gx){
#define BNORM_CALL(pre, kind) strip_grad(pre, kind, 1, a, s, sum_g, sum_gx)
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
BNORM_INLINE void sums_tile(const bnorm_grad_args *a, size_t at, size_t c, size_t chains,
                            double *sum_g, double *sum_gx) {
    const size_t rows = a->runs;
    const int wanted = reads_extra(a->pre);
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
        strip_grad_rows(a, &s, sum_g, sum_gx);
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
            strip_grad_rows(a, &s, g, gx);
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
                strip_grad_rows(a, &chain, g + j * c, gx + j * c);
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
    vec_leave();
}

/* A plane is a strip of BNORM_SPAN_LANES lanes of one channel. */
static void sums_span(const bnorm_grad_args *a, double *sum_g, double *sum_gx) {
    const int wanted = reads_extra(a->pre);
    plane_lanes g, gx;
    for (size_t r = 0; r < a->runs; r++) {
        const struct grad_strip s = {.x = a->x + r * a->x_stride,
                                     .dy = a->dy + r * a->dy_stride,
                                     .extra = wanted ? a->extra + r * a->extra_stride : NULL,
                                     .x_stride = BNORM_SPAN_LANES,
                                     .dy_stride = BNORM_SPAN_LANES,
                                     .extra_stride = BNORM_SPAN_LANES,
                                     .rows = a->len / BNORM_SPAN_LANES,
                                     .len = BNORM_SPAN_LANES,
                                     .tail = a->len % BNORM_SPAN_LANES,
                                     .center = a->center + r,
                                     .scale = a->scale + r,
                                     .shift = a->shift + r};
        zero_plane(&g);
        zero_plane(&gx);
        strip_grad_plane(a, &s, g.lane, gx.lane);
        sum_g[r] = fold_plane(&g);
        sum_gx[r] = fold_plane(&gx);
    }
    canonical_sums(sum_g, a->runs);
    canonical_sums(sum_gx, a->runs);
    vec_leave();
}
