/* SPDX-License-Identifier: MIT
 *
 * y = act(fma(x - center, scale, shift) + residual). The kind of activation and the presence of
 * center and residual are constants of an inlined body, so that each combination has its own loop. */

BNORM_INLINE vec_f activate(bnorm_act_kind kind, vec_f v, vec_f a, vec_f b) {
    const vec_f zero = vec_set1(0), three = vec_set1(3);
    switch (kind) {
    case BNORM_ACT_IDENTITY:
        break;
    case BNORM_ACT_RELU:
        return vec_zero_if_le(v, zero, v);
    case BNORM_ACT_CLAMP:
        v = vec_if_le(v, a, a, v);
        return vec_if_le(b, v, b, v);
    case BNORM_ACT_LEAKY_RELU:
        return vec_if_gt(v, zero, v, vec_mul(v, a));
    case BNORM_ACT_HARD_SWISH: {
        const vec_f between = vec_mul(vec_mul(v, vec_add(v, three)), vec_set1(1.0f / 6));
        return vec_zero_if_le(v, vec_set1(-3), vec_if_le(three, v, v, between));
    }
    }
    return v;
}

struct apply_vectors {
    vec_f center, scale, shift, a, b;
};

BNORM_INLINE void apply_lanes(bnorm_act_kind kind, int centred, int added, const float *x,
                              const float *residual, float *y, const struct apply_vectors *p,
                              size_t n) {
    vec_f v = load_lanes(x, n);
    if (centred)
        v = vec_sub(v, p->center);
    v = vec_fma(v, p->scale, p->shift);
    if (added)
        v = vec_add(v, load_lanes(residual, n));
    store_lanes(y, vec_canonical(activate(kind, v, p->a, p->b)), n);
}

/* n lanes of one row, from element i on. */
BNORM_INLINE void apply_row_lanes(bnorm_act_kind kind, int centred, int added,
                                  const bnorm_apply_args *a, const float *x, const float *residual,
                                  float *y, size_t i, size_t n) {
    const struct apply_vectors p = {centred ? load_lanes(a->center + i, n) : vec_set1(0),
                                    load_lanes(a->scale + i, n), load_lanes(a->shift + i, n),
                                    vec_set1(a->act.a), vec_set1(a->act.b)};
    apply_lanes(kind, centred, added, x + i, added ? residual + i : NULL, y + i, &p, n);
}

/* Row by row: parameters come from L1 again for each row, which costs less than the strided stores
 * of several rows. */
BNORM_INLINE void apply_rows_body(bnorm_act_kind kind, int centred, int added,
                                  const bnorm_apply_args *a) {
    for (size_t r = 0; r < a->runs; r++) {
        const float *x = a->x + r * a->x_stride;
        const float *residual = added ? a->residual + r * a->residual_stride : NULL;
        float *y = a->y + r * a->y_stride;
        size_t i = 0;
        for (; i + 4 * VEC_F <= a->len; i += 4 * VEC_F) {
            BNORM_UNROLL
            for (size_t q = 0; q < 4 * VEC_F; q += VEC_F)
                apply_row_lanes(kind, centred, added, a, x, residual, y, i + q, VEC_F);
        }
        for (; i < a->len; i += VEC_F)
            apply_row_lanes(kind, centred, added, a, x, residual, y, i, lesser(VEC_F, a->len - i));
    }
}

BNORM_INLINE void apply_span_body(bnorm_act_kind kind, int centred, int added,
                                  const bnorm_apply_args *a) {
    for (size_t r = 0; r < a->runs; r++) {
        const struct apply_vectors p = {centred ? vec_set1(a->center[r]) : vec_set1(0),
                                        vec_set1(a->scale[r]), vec_set1(a->shift[r]),
                                        vec_set1(a->act.a), vec_set1(a->act.b)};
        const float *x = a->x + r * a->x_stride,
                    *residual = added ? a->residual + r * a->residual_stride : NULL;
        float *y = a->y + r * a->y_stride;
        size_t i = 0;
        for (; i + 4 * VEC_F <= a->len; i += 4 * VEC_F) {
            BNORM_UNROLL
            for (size_t q = 0; q < 4 * VEC_F; q += VEC_F)
                apply_lanes(kind, centred, added, x + i + q, added ? residual + i + q : NULL,
                            y + i + q, &p, VEC_F);
        }
        for (; i < a->len; i += VEC_F)
            apply_lanes(kind, centred, added, x + i, added ? residual + i : NULL, y + i, &p,
                        lesser(VEC_F, a->len - i));
    }
}

#define BNORM_APPLY_CASE(body, kind)                                                               \
    case kind:                                                                                     \
        if (local.center)                                                                          \
            local.residual ? body(kind, 1, 1, &local) : body(kind, 1, 0, &local);                  \
        else                                                                                       \
            local.residual ? body(kind, 0, 1, &local) : body(kind, 0, 0, &local);                  \
        break;

/* A local copy of the arguments stays in registers: vector stores may alias anything whose address
 * is known outside. */
#define BNORM_APPLY_CASES(body)                                                                    \
    const bnorm_apply_args local = *a;                                                             \
    switch (local.act.kind) {                                                                      \
        BNORM_APPLY_CASE(body, BNORM_ACT_IDENTITY)                                                 \
        BNORM_APPLY_CASE(body, BNORM_ACT_RELU)                                                     \
        BNORM_APPLY_CASE(body, BNORM_ACT_CLAMP)                                                    \
        BNORM_APPLY_CASE(body, BNORM_ACT_LEAKY_RELU)                                               \
        BNORM_APPLY_CASE(body, BNORM_ACT_HARD_SWISH)                                               \
    }

static void apply_rows_any(const bnorm_apply_args *a) {
    BNORM_APPLY_CASES(apply_rows_body)
    vec_leave();
}

/* p[0..c) repeated `times` times. */
BNORM_INLINE const float *repeat(float *pattern, const float *p, size_t c, size_t times) {
    if (!p)
        return NULL;
    for (size_t j = 0; j < times; j++)
        memcpy(pattern + j * c, p, c * sizeof *p);
    return pattern;
}

/* Few channels without gaps between rows: several rows are one, with the parameters repeated, so
 * that vectors are full. */
static void apply_rows(const bnorm_apply_args *a) {
    const size_t c = a->len, times = bnorm_chains(c);
    const int dense =
        a->x_stride == c && a->y_stride == c && (!a->residual || a->residual_stride == c);
    if (times == 1 || !dense || a->runs < 2 * times) {
        apply_rows_any(a);
        return;
    }
    float center[BNORM_MAX_LANES], scale[BNORM_MAX_LANES], shift[BNORM_MAX_LANES];
    bnorm_apply_args wide = *a, rest = *a;
    wide.runs = a->runs / times;
    wide.len = wide.x_stride = wide.y_stride = wide.residual_stride = c * times;
    wide.center = repeat(center, a->center, c, times);
    wide.scale = repeat(scale, a->scale, c, times);
    wide.shift = repeat(shift, a->shift, c, times);
    apply_rows_any(&wide);

    const size_t done = wide.runs * times;
    rest.runs = a->runs - done;
    rest.x += done * c;
    rest.y += done * c;
    if (rest.residual)
        rest.residual += done * c;
    if (rest.runs)
        apply_rows_any(&rest);
}

static void apply_span(const bnorm_apply_args *a) {
    BNORM_APPLY_CASES(apply_span_body)
    vec_leave();
}
