/* SPDX-License-Identifier: MIT
 *
 * The sums of backward: g and g*(x - center) of a block. */

/* Rows of a block as they lie in memory; extra NULL = not read. */
struct grad_rows {
    const void *x, *dy, *extra;
    size_t x_stride, dy_stride, extra_stride;
    size_t mask_at, mask_stride;
    size_t count;
    const float *center, *scale, *shift;
};

/* From element i of row r on, every `step`th row; the parameters stay. */
BNORM_INLINE struct grad_rows grad_rows_from(const bnorm_map_args *a, const struct grad_rows *r,
                                             size_t row, size_t i, size_t step) {
    return (struct grad_rows){
        .x = element_at(r->x, a->x.type, row * r->x_stride + i),
        .dy = element_at(r->dy, a->x.type, row * r->dy_stride + i),
        .extra = r->extra ? element_at(r->extra, a->x.type, row * r->extra_stride + i) : NULL,
        .x_stride = r->x_stride * step,
        .dy_stride = r->dy_stride * step,
        .extra_stride = r->extra_stride * step,
        .mask_at = r->mask_at + row * r->mask_stride + i,
        .mask_stride = r->mask_stride * step,
        .count = row < r->count ? (r->count - row + step - 1) / step : 0,
        .center = r->center,
        .scale = r->scale,
        .shift = r->shift,
    };
}

/* The first `rows` rows of n lanes as rows without gaps: x, and g. Parameters are one per lane, or
 * with spread one per row. All have room for whole vectors; v is scratch. */
static void widen_grads(const bnorm_map_args *a, const struct grad_rows *r, size_t rows, size_t n,
                        int spread, float *x, float *g, float *v) {
    widen_rows(x, r->x, a->x.type, NULL, r->x_stride, rows, n, 0);
    widen_rows(g, r->dy, a->x.type, NULL, r->dy_stride, rows, n, 0);
    if (a->pre == BNORM_PRE_NONE)
        return;
    if (r->extra)
        widen_rows(v, r->extra, a->x.type, NULL, r->extra_stride, rows, n, 0);
    for (size_t q = 0; a->pre == BNORM_PRE_MASK && q < rows; q++)
        widen_bits(v + q * n, a->mask.bits, r->mask_at + q * r->mask_stride, n);
    vec_store(v + rows * n, vec_set1(0)); /* gradients come in whole vectors */
    vec_store(g + rows * n, vec_set1(0));
    for (size_t q = 0; reads_x(a->pre) && q < rows; q++)
        for (size_t k = 0; k < n; k += VEC_F) {
            const size_t lanes = lesser(VEC_F, n - k), p = spread ? q : k;
            const vec_f centred = vec_sub(load_lanes(x + q * n + k, lanes),
                                          parameter_lanes(r->center + p, spread, 0, lanes));
            vec_f argument = vec_fma(centred, parameter_lanes(r->scale + p, spread, 0, lanes),
                                     parameter_lanes(r->shift + p, spread, 0, lanes));
            if (a->pre == BNORM_PRE_RESIDUAL)
                argument = vec_add(argument, load_lanes(v + q * n + k, lanes));
            store_lanes(v + q * n + k, argument, lanes);
        }
    gradient_values(&a->act, v, g, rows * n);
}

/* A strip as in moments.h, of several tensors of floats. */
struct grad_strip {
    const float *x, *dy, *extra;
    size_t x_stride, dy_stride, extra_stride;
    size_t rows, len, tail;
    const float *center, *scale, *shift; /* one per lane, or one for all lanes of a plane */
};

/* Where a row of each tensor is read. */
struct grad_place {
    const float *x, *dy, *extra;
};

BNORM_INLINE struct grad_place grad_place_at(enum bnorm_pre pre, const struct grad_strip *s,
                                             size_t r, size_t i) {
    return (struct grad_place){s->x + r * s->x_stride + i, s->dy + r * s->dy_stride + i,
                               reads_extra(pre) ? s->extra + r * s->extra_stride + i : NULL};
}

BNORM_INLINE struct grad_place next_row(enum bnorm_pre pre, const struct grad_strip *s,
                                        struct grad_place at) {
    return (struct grad_place){at.x + s->x_stride, at.dy + s->dy_stride,
                               reads_extra(pre) ? at.extra + s->extra_stride : NULL};
}

BNORM_INLINE struct grad_place place_after(enum bnorm_pre pre, struct grad_place at, size_t i) {
    return (struct grad_place){at.x + i, at.dy + i, reads_extra(pre) ? at.extra + i : NULL};
}

/* g of n lanes; adds g*(x - center) to *products. */
BNORM_INLINE vec_f grad_row(enum bnorm_pre pre, bnorm_act_kind kind, struct grad_place at,
                            const struct grad_vectors *p, size_t n, vec_f *products) {
    const vec_f d = first_lanes(vec_sub(load_lanes(at.x, n), p->center), n);
    const vec_f g = first_lanes(grad_lanes(pre, kind, d, load_lanes(at.dy, n), at.extra, p, n), n);
    *products = vec_fma(g, d, *products);
    return g;
}

/* Adds n lanes of a row and m lanes of the row after it; m may be 0. */
BNORM_INLINE void add_grad_pair(enum bnorm_pre pre, bnorm_act_kind kind, struct grad_place at,
                                struct grad_place next, const struct grad_vectors *p, size_t n,
                                size_t m, struct group_sums *sums) {
    const vec_f a = grad_row(pre, kind, at, p, n, &sums->even);
    const vec_f b = m ? grad_row(pre, kind, next, p, m, &sums->odd) : vec_set1(0);
    vec_d a_low, a_high, b_low, b_high;
    if (pre == BNORM_PRE_NONE && n == VEC_F && m == VEC_F) {
        /* g is dy. */
        vec_widen_both(at.dy, &a_low, &a_high);
        vec_widen_both(next.dy, &b_low, &b_high);
    } else {
        a_low = vec_low(a), a_high = vec_high(a);
        b_low = vec_low(b), b_high = vec_high(b);
    }
    sums->low = vec_add_d(sums->low, vec_add_d(a_low, b_low));
    sums->high = vec_add_d(sums->high, vec_add_d(a_high, b_high));
}

/* Parameters of lanes [i, i + n), or of all. */
BNORM_INLINE struct grad_vectors strip_parameters(enum bnorm_pre pre, int spread,
                                                  const bnorm_map_args *a,
                                                  const struct grad_strip *s, size_t i, size_t n) {
    struct grad_vectors p = {0};
    p.center = parameter_lanes(s->center, spread, i, n);
    p.a = vec_set1(a->act.a);
    p.b = vec_set1(a->act.b);
    if (reads_x(pre)) {
        p.scale = parameter_lanes(s->scale, spread, i, n);
        p.shift = parameter_lanes(s->shift, spread, i, n);
    }
    return p;
}

/* Adds rows [r, r + rows), n lanes each, and the first `extra` lanes of the row after them: at most
 * 16 rows altogether. */
BNORM_INLINE void add_grad_group(enum bnorm_pre pre, bnorm_act_kind kind, int spread,
                                 const bnorm_map_args *a, const struct grad_strip *s, size_t r,
                                 size_t rows, size_t extra, size_t i, size_t n,
                                 struct group_sums *sums) {
    const struct grad_vectors p = strip_parameters(pre, spread, a, s, i, n);
    struct grad_place at = grad_place_at(pre, s, r, i), next = next_row(pre, s, at);
    for (size_t q = 0; q + 2 <= rows; q += 2) {
        add_grad_pair(pre, kind, at, next, &p, n, n, sums);
        at = next_row(pre, s, next);
        next = next_row(pre, s, at);
        if (q + 2 == BNORM_HALF)
            close_half(sums);
    }
    if (rows % 2)
        add_grad_pair(pre, kind, at, next, &p, n, extra, sums);
    else if (extra)
        add_grad_pair(pre, kind, at, next, &p, extra, 0, sums);
    close_half(sums);
}

/* The same, added to the lanes of sum_g and sum_gx. Whole vectors of both are written. */
BNORM_INLINE void group_grad(enum bnorm_pre pre, bnorm_act_kind kind, int spread,
                             const bnorm_map_args *a, const struct grad_strip *s, size_t r,
                             size_t rows, size_t extra, size_t i, size_t n, double *sum_g,
                             double *sum_gx) {
    struct group_sums sums = load_group(BNORM_SUMS, sum_g + i);
    add_grad_group(pre, kind, spread, a, s, r, rows, extra, i, n, &sums);
    store_group(BNORM_BOTH, &sums, sum_g + i, sum_gx + i);
}

/* A whole group of `count` vectors side by side from lane i on: chains that do not wait for each
 * other. */
BNORM_INLINE void wide_grad(size_t count, enum bnorm_pre pre, bnorm_act_kind kind, int spread,
                            const bnorm_map_args *a, const struct grad_strip *s, size_t r, size_t i,
                            double *sum_g, double *sum_gx) {
    struct group_sums sums[VEC_LINE];
    struct grad_vectors p[VEC_LINE];
    /* The next group is worth prefetching where it does not lie too far, nor a plane ends soon. */
    const int near = spread ? s->rows >= 2 * BNORM_GROUP
                            : lesser(s->x_stride, s->dy_stride) <= BNORM_FETCH_STRIDE;
    struct grad_place at = grad_place_at(pre, s, r, i), next = next_row(pre, s, at);
    BNORM_UNROLL
    for (size_t k = 0; k < count; k++) {
        sums[k] = load_group(BNORM_SUMS, sum_g + i + k * VEC_F);
        p[k] = strip_parameters(pre, spread, a, s, i + k * VEC_F, VEC_F);
    }
    BNORM_UNROLL_SOME
    for (size_t q = 0; q < BNORM_GROUP; q += 2) {
        if (near) {
            vec_fetch(at.x + BNORM_GROUP * s->x_stride);
            vec_fetch(next.x + BNORM_GROUP * s->x_stride);
            vec_fetch(at.dy + BNORM_GROUP * s->dy_stride);
            vec_fetch(next.dy + BNORM_GROUP * s->dy_stride);
        }
        BNORM_UNROLL
        for (size_t k = 0; k < count; k++) {
            const size_t o = k * VEC_F;
            const struct grad_place here = place_after(pre, at, o),
                                    there = place_after(pre, next, o);
            add_grad_pair(pre, kind, here, there, &p[k], VEC_F, VEC_F, &sums[k]);
        }
        at = next_row(pre, s, next);
        next = next_row(pre, s, at);
        if ((q + 2) % BNORM_HALF == 0) {
            BNORM_UNROLL
            for (size_t k = 0; k < count; k++)
                close_half(&sums[k]);
        }
    }
    BNORM_UNROLL
    for (size_t k = 0; k < count; k++)
        store_group(BNORM_BOTH, &sums[k], sum_g + i + k * VEC_F, sum_gx + i + k * VEC_F);
}

/* Lanes [i, i + n) of less than a whole vector: one copy for all combinations, but for the most
 * frequent one. */
static void narrow_grad(int spread, const bnorm_map_args *a, const struct grad_strip *s, size_t r,
                        size_t rows, size_t extra, size_t i, size_t n, double *sum_g,
                        double *sum_gx) {
    if (a->pre == BNORM_PRE_NONE)
        group_grad(BNORM_PRE_NONE, BNORM_ACT_IDENTITY, spread, a, s, r, rows, extra, i, n, sum_g,
                   sum_gx);
    else
        group_grad(a->pre, a->act.kind, spread, a, s, r, rows, extra, i, n, sum_g, sum_gx);
}

BNORM_INLINE void strip_grad(enum bnorm_pre pre, bnorm_act_kind kind, int spread,
                             const bnorm_map_args *a, const struct grad_strip *s, double *sum_g,
                             double *sum_gx) {
    const size_t len = spread ? BNORM_SPAN_LANES : s->len, whole = len / VEC_F * VEC_F;
    size_t r = 0;
    for (; r + BNORM_GROUP <= s->rows; r += BNORM_GROUP) {
        /* The parameters of more than two vectors do not fit in 32 registers. */
        const size_t count = pre == BNORM_PRE_NONE ? VEC_LINE : lesser(VEC_LINE, 2);
        size_t i = 0;
        for (; i + count * VEC_F <= whole; i += count * VEC_F)
            wide_grad(count, pre, kind, spread, a, s, r, i, sum_g, sum_gx);
        for (; i < whole; i += VEC_F)
            wide_grad(1, pre, kind, spread, a, s, r, i, sum_g, sum_gx);
        if (whole < len)
            narrow_grad(spread, a, s, r, BNORM_GROUP, 0, whole, len - whole, sum_g, sum_gx);
    }
    const size_t rows = s->rows - r, end = rows ? len : s->tail;
    for (size_t i = 0; i < end; i += VEC_F) {
        const size_t extra = i < s->tail ? lesser(VEC_F, s->tail - i) : 0;
        if (spread || i < whole)
            group_grad(pre, kind, spread, a, s, r, rows, extra, i, VEC_F, sum_g, sum_gx);
        else
            narrow_grad(spread, a, s, r, rows, extra, i, len - i, sum_g, sum_gx);
    }
}

static void strip_grad_rows(const bnorm_map_args *a, const struct grad_strip *s, double *sum_g,
                            double *sum_gx){
#define BNORM_CALL(pre, kind) strip_grad(pre, kind, 0, a, s, sum_g, sum_gx)
    BNORM_GRAD_CASES(BNORM_CALL)
#undef BNORM_CALL
}

/* One plane; the lanes are folded to one vector. */
BNORM_INLINE void plane_grad(enum bnorm_pre pre, bnorm_act_kind kind, const bnorm_map_args *a,
                             const struct grad_strip *s, vec_d *sum_g, vec_d *sum_gx) {
    if (s->rows < BNORM_GROUP) {
        /* One group: no need to keep the lanes in memory. */
        vec_d g[BNORM_SPAN_LANES / VEC_D], gx[BNORM_SPAN_LANES / VEC_D];
        for (size_t i = 0; i < BNORM_SPAN_LANES; i += VEC_F) {
            const size_t extra = i < s->tail ? lesser(VEC_F, s->tail - i) : 0;
            struct group_sums sums = no_sums();
            add_grad_group(pre, kind, 1, a, s, 0, s->rows, extra, i, VEC_F, &sums);
            g[i / VEC_D] = sums.low;
            g[i / VEC_D + 1] = sums.high;
            gx[i / VEC_D] = vec_low(sums.halves);
            gx[i / VEC_D + 1] = vec_high(sums.halves);
        }
        *sum_g = fold_vectors(g);
        *sum_gx = fold_vectors(gx);
        return;
    }
    plane_lanes g, gx;
    zero_plane(&g);
    zero_plane(&gx);
    strip_grad(pre, kind, 1, a, s, g.lane, gx.lane);
    *sum_g = fold_plane(&g);
    *sum_gx = fold_plane(&gx);
}

static void plane_grads(const bnorm_map_args *a, const struct grad_strip *s, vec_d *sum_g,
                        vec_d *sum_gx) {
#define BNORM_CALL(pre, kind) plane_grad(pre, kind, a, s, sum_g, sum_gx)
    BNORM_GRAD_CASES(BNORM_CALL)
#undef BNORM_CALL
}

/* A strip of r->count rows of `len` lanes and a tail of another one, as typed_strip in moments.h.
 * */
static void typed_grad_strip(const bnorm_map_args *a, const struct grad_rows *r, size_t len,
                             size_t tail, double *sum_g, double *sum_gx) {
    if (is_plain_grad(a)) {
        const struct grad_strip s = {r->x,         r->dy,           r->extra, r->x_stride,
                                     r->dy_stride, r->extra_stride, r->count, len,
                                     tail,         r->center,       r->scale, r->shift};
        strip_grad_rows(a, &s, sum_g, sum_gx);
        return;
    }
    float x[BNORM_WIDE], g[BNORM_WIDE], v[BNORM_WIDE];
    bnorm_map_args plain = *a;
    plain.pre = BNORM_PRE_NONE;
    for (size_t i = 0; i < len; i += BNORM_WIDE_LANES) {
        const size_t lanes = lesser(BNORM_WIDE_LANES, len - i), step = wide_rows(lanes);
        size_t row = 0;
        do {
            const size_t count = lesser(step, r->count - row), at = count * lanes;
            const int last = row + count == r->count;
            const size_t extra = last && tail > i ? lesser(lanes, tail - i) : 0;
            struct grad_rows these = grad_rows_from(a, r, row, i, 1);
            these.center += i;
            if (reads_x(a->pre)) {
                these.scale += i;
                these.shift += i;
            }
            widen_grads(a, &these, count, lanes, 0, x, g, v);
            if (extra) {
                const struct grad_rows rest = grad_rows_from(a, &these, count, 0, 1);
                widen_grads(a, &rest, 1, extra, 0, x + at, g + at, v);
            }
            const struct grad_strip s = {.x = x,
                                         .dy = g,
                                         .x_stride = lanes,
                                         .dy_stride = lanes,
                                         .rows = count,
                                         .len = lanes,
                                         .tail = extra,
                                         .center = these.center};
            strip_grad_rows(&plain, &s, sum_g + i, sum_gx + i);
            row += count;
        } while (row < r->count);
    }
}

/* Adds the chains of c channels of a block of rows, as add_chains in moments.h; the parameters are
 * those of c*chains lanes. */
static void add_grad_chains(const bnorm_map_args *a, const struct grad_rows *r, size_t c,
                            size_t chains, double *sum_g, double *sum_gx) {
    if (chains == 1 ||
        (r->x_stride == c && r->dy_stride == c && (!r->extra || r->extra_stride == c) &&
         (a->pre != BNORM_PRE_MASK || r->mask_stride == c))) {
        const size_t whole = r->count / chains, tail = r->count % chains * c;
        struct grad_rows joined = grad_rows_from(a, r, 0, 0, chains);
        joined.count = whole;
        typed_grad_strip(a, &joined, whole ? c * chains : tail, tail, sum_g, sum_gx);
        return;
    }
    for (size_t j = 0; j < chains && j < r->count; j++) {
        const struct grad_rows chain = grad_rows_from(a, r, j, 0, chains);
        typed_grad_strip(a, &chain, c, 0, sum_g + j * c, sum_gx + j * c);
    }
}

/* Sums of g*(x - center) of n <= BNORM_SLICE channels of rows, in double; writes up to a vector
 * more. */
static void double_products(const bnorm_map_args *a, const struct grad_rows *r, size_t chains,
                            size_t n, double *products) {
    enum { ROOM = BNORM_GROUP * BNORM_SLICE + VEC_F };
    float x[ROOM], g[ROOM], v[ROOM];
    zero_lanes(products, n * chains + VEC_D);
    for (size_t j = 0; j < chains; j++) {
        const struct grad_rows chain = grad_rows_from(a, r, j, 0, chains);
        for (size_t row = 0; row < chain.count; row += BNORM_GROUP) {
            const struct grad_rows group = grad_rows_from(a, &chain, row, 0, 1);
            const size_t count = lesser(BNORM_GROUP, group.count);
            struct pair_rows these = {x, g, n, n};
            if (a->x.type == BNORM_F32 && a->pre == BNORM_PRE_NONE)
                these = (struct pair_rows){group.x, group.dy, group.x_stride, group.dy_stride};
            else
                widen_grads(a, &group, count, n, 0, x, g, v);
            double_lanes(these, count, n, r->center, products + j * n);
        }
    }
    fold_chains(products, n, chains);
}

/* ... and of a plane, whose elements are the rows. */
BNORM_RARE double double_plane_products(const bnorm_map_args *a, const struct grad_rows *plane) {
    double lanes[BNORM_SPAN_LANES];
    enum { ROOM = BNORM_GROUP_SPAN + VEC_F };
    float x[ROOM], g[ROOM], v[ROOM];
    zero_lanes(lanes, BNORM_SPAN_LANES);
    for (size_t i = 0; i < plane->count; i += BNORM_GROUP_SPAN) {
        const struct grad_rows rest = grad_rows_from(a, plane, i, 0, 1);
        const size_t count = lesser(BNORM_GROUP_SPAN, rest.count);
        widen_grads(a, &rest, 1, count, 1, x, g, v);
        double_span(x, g, count, *plane->center, lanes);
    }
    return fold_scalars(lanes, BNORM_SPAN_LANES);
}

/* Lanes whose products in float were not accurate enough: the size of their sum is out of range,
 * and not all g are 0. */
#define BNORM_LEAST_PRODUCTS 0x1p-90

BNORM_INLINE unsigned inaccurate_products(vec_d g, vec_d gx, size_t n) {
    const vec_d zero = vec_set1_d(0), one = vec_set1_d(1);
    const unsigned first_n = (1u << lesser(VEC_D, n)) - 1;
    unsigned bits = vec_outside_d(gx, BNORM_LEAST_PRODUCTS, DBL_MAX) &
                    vec_outside_d(gx, -DBL_MAX, -BNORM_LEAST_PRODUCTS) & first_n;
    if (bits)
        bits &= vec_outside_d(vec_if_eq_d(gx, zero, vec_if_eq_d(g, zero, zero, one), one), 0, 0);
    return bits;
}

/* The rows from element i of one on. */
BNORM_INLINE struct grad_rows grad_rows_at(const bnorm_map_args *a, size_t i) {
    const int extra = reads_extra(a->pre);
    return (struct grad_rows){
        .x = element_at(a->x.data, a->x.type, i),
        .dy = element_at(a->dy.data, a->x.type, i),
        .extra = extra ? element_at(a->argument.data, a->x.type, i) : NULL,
        .x_stride = a->x.row_stride,
        .dy_stride = a->dy.row_stride,
        .extra_stride = a->argument.row_stride,
        .mask_at = a->mask.at + i,
        .mask_stride = a->mask.row_stride,
        .count = a->rows,
        .center = a->center + i,
        .scale = a->scale + i,
        .shift = a->shift + i,
    };
}

/* The planes from number r on, as rows. */
BNORM_INLINE struct grad_rows grad_planes_at(const bnorm_map_args *a, size_t r) {
    const int extra = reads_extra(a->pre);
    return (struct grad_rows){
        .x = element_at(a->x.data, a->x.type, r * a->x.group_stride),
        .dy = element_at(a->dy.data, a->x.type, r * a->dy.group_stride),
        .extra =
            extra ? element_at(a->argument.data, a->x.type, r * a->argument.group_stride) : NULL,
        .x_stride = a->x.group_stride,
        .dy_stride = a->dy.group_stride,
        .extra_stride = a->argument.group_stride,
        .mask_at = a->mask.at + r * a->mask.group_stride,
        .mask_stride = a->mask.group_stride,
        .count = a->groups,
        .center = a->center + r,
        .scale = a->scale + r,
        .shift = a->shift + r,
    };
}

/* Replaces the products of c channels, from channel `at` on, that are not accurate enough: channels
 * side by side together. */
BNORM_RARE void products_again(const bnorm_map_args *a, size_t at, size_t chains, size_t c,
                               const double *g, double *gx) {
    for (size_t i = 0, n; i < c; i += n ? n : VEC_D) {
        for (n = 0; n < BNORM_SLICE && i + n < c; n += VEC_D)
            if (!inaccurate_products(vec_load_d(g + i + n), vec_load_d(gx + i + n), c - i - n))
                break;
        if (n) {
            const struct grad_rows channels = grad_rows_at(a, at + i);
            double again[BNORM_SLICE_ROOM];
            double_products(a, &channels, chains, lesser(n, c - i), again);
            for (size_t j = i; j < i + n; j += VEC_D)
                replace_lanes(inaccurate_products(vec_load_d(g + j), vec_load_d(gx + j), c - j),
                              again + (j - i), gx + j);
        }
    }
}

/* Parameters of `chains` rows of c channels, those behind the first `valid` 0. */
BNORM_INLINE const float *repeat(float *pattern, const float *p, size_t c, size_t valid,
                                 size_t chains) {
    for (size_t j = 0; j < chains; j++) {
        memcpy(pattern + j * c, p, valid * sizeof *p);
        if (valid < c)
            memset(pattern + j * c + valid, 0, (c - valid) * sizeof *p);
    }
    return pattern;
}

/* Both sums of c channels; not 0 where products are not accurate enough. */
BNORM_INLINE unsigned store_sums(const double *g, const double *gx, size_t c, double *sum_g,
                                 double *sum_gx) {
    unsigned bits = 0;
    for (size_t i = 0; i < c; i += VEC_D) {
        const vec_d a = vec_load_d(g + i), b = vec_load_d(gx + i);
        const size_t n = lesser(VEC_D, c - i);
        bits |= inaccurate_products(a, b, n);
        vec_store_d_n(sum_g + i, vec_canonical_d(a), n);
        vec_store_d_n(sum_gx + i, vec_canonical_d(b), n);
    }
    return bits;
}

/* Channels [at, at + c) of a block of rows, of which the first `valid` are wanted. */
BNORM_INLINE void sums_tile(const bnorm_map_args *a, size_t at, size_t c, size_t valid,
                            size_t chains, double *sum_g, double *sum_gx) {
    const size_t lanes = c * chains;
    double g[BNORM_TILE + BNORM_PAD], gx[BNORM_TILE + BNORM_PAD];
    float center[BNORM_MAX_LANES], scale[BNORM_MAX_LANES], shift[BNORM_MAX_LANES];
    struct grad_rows block = grad_rows_at(a, at);

    if (chains > 1 || valid < c) {
        block.center = repeat(center, block.center, c, valid, chains);
        if (reads_x(a->pre)) {
            block.scale = repeat(scale, block.scale, c, valid, chains);
            block.shift = repeat(shift, block.shift, c, valid, chains);
        }
    }
    zero_lanes(g, lanes + BNORM_PAD);
    zero_lanes(gx, lanes + BNORM_PAD);
    add_grad_chains(a, &block, c, chains, g, gx);
    fold_chains(g, c, chains);
    fold_chains(gx, c, chains);
    if (store_sums(g, gx, valid, sum_g, sum_gx)) {
        products_again(a, at, chains, valid, g, gx);
        store_sums(g, gx, valid, sum_g, sum_gx);
    }
}

/* Padding of rows without gaps is added up too, for nothing. */
static void sums_rows(const bnorm_map_args *a, size_t chains, double *sum_g, double *sum_gx) {
    const int gaps = a->x.row_stride != a->lanes || a->dy.row_stride != a->lanes ||
                     (reads_extra(a->pre) && a->argument.row_stride != a->lanes);
    const size_t c = gaps ? a->valid : a->lanes;
    for (size_t at = 0; at < a->valid; at += BNORM_TILE)
        sums_tile(a, at, lesser(BNORM_TILE, c - at), lesser(BNORM_TILE, a->valid - at), chains,
                  sum_g + at, sum_gx + at);
    vec_leave();
}

/* Planes of floats: each is a strip of BNORM_SPAN_LANES lanes of one channel. */
static void sums_planes(const bnorm_map_args *a, double *sum_g, double *sum_gx) {
    vec_d v_g[VEC_D], v_gx[VEC_D];
    for (size_t i = 0; i < VEC_D; i++)
        v_g[i] = v_gx[i] = vec_set1_d(0);
    for (size_t first = 0; first < a->groups; first += VEC_D) {
        const size_t count = lesser(VEC_D, a->groups - first);
        for (size_t i = 0; i < count; i++) {
            const struct grad_rows r = grad_planes_at(a, first + i);
            const struct grad_strip s = {.x = r.x,
                                         .dy = r.dy,
                                         .extra = r.extra,
                                         .x_stride = BNORM_SPAN_LANES,
                                         .dy_stride = BNORM_SPAN_LANES,
                                         .extra_stride = BNORM_SPAN_LANES,
                                         .rows = a->lanes / BNORM_SPAN_LANES,
                                         .len = BNORM_SPAN_LANES,
                                         .tail = a->lanes % BNORM_SPAN_LANES,
                                         .center = r.center,
                                         .scale = r.scale,
                                         .shift = r.shift};
            plane_grads(a, &s, &v_g[i], &v_gx[i]);
        }
        const vec_d g = vec_fold_d(v_g);
        vec_d gx = vec_fold_d(v_gx);
        unsigned bits = inaccurate_products(g, gx, count);
        if (bits) {
            double t[VEC_D];
            vec_store_d(t, gx);
            for (size_t i = 0; bits; i++, bits >>= 1)
                if (bits & 1) {
                    struct grad_rows plane = grad_planes_at(a, first + i);
                    plane.x_stride = plane.dy_stride = plane.extra_stride = 1;
                    plane.count = a->lanes;
                    t[i] = double_plane_products(a, &plane);
                }
            gx = vec_load_d(t);
        }
        vec_store_d_n(sum_g + first, vec_canonical_d(g), count);
        vec_store_d_n(sum_gx + first, vec_canonical_d(gx), count);
    }
}

static void sums_span(const bnorm_map_args *a, double *sum_g, double *sum_gx) {
    if (is_plain_grad(a)) {
        sums_planes(a, sum_g, sum_gx);
    } else {
        enum { ROOM = BNORM_BLOCK_SPAN + VEC_F };
        float x[ROOM], g[ROOM], v[ROOM];
        const size_t fit = BNORM_BLOCK_SPAN / a->lanes;
        bnorm_map_args plain = *a;
        plain.x.type = plain.dy.type = BNORM_F32;
        plain.pre = BNORM_PRE_NONE;
        plain.x.data = x;
        plain.dy.data = g;
        plain.x.group_stride = plain.dy.group_stride = a->lanes;
        for (size_t r = 0; r < a->groups; r += fit) {
            const struct grad_rows planes = grad_planes_at(a, r);
            plain.groups = lesser(fit, a->groups - r);
            plain.center = a->center + r;
            widen_grads(a, &planes, plain.groups, a->lanes, 1, x, g, v);
            sums_planes(&plain, sum_g + r, sum_gx + r);
        }
    }
    vec_leave();
}
