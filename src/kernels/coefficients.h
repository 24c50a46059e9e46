/* SPDX-License-Identifier: MIT
 *
 * What lies between the passes of an operation: blocks merged, and per-channel coefficients. In
 * double; src/scalar/scalar.c says what. Channels take a lane each, so that all sets divide and
 * take roots alike. */

/* Vectors of channels that go through the blocks side by side: one alone would wait for its own
 * results. */
#define BNORM_SIDE 4

BNORM_INLINE vec_d load_d_lanes(const double *p, size_t n) {
    return n == VEC_D ? vec_load_d(p) : vec_load_d_n(p, n);
}

BNORM_INLINE void store_d_lanes(double *p, vec_d v, size_t n) {
    if (n == VEC_D)
        vec_store_d(p, v);
    else
        vec_store_d_n(p, v, n);
}

/* Rounded to floats, n of them. */
BNORM_INLINE void narrow_lanes(float *p, vec_d v, size_t n) {
    const vec_d canonical = vec_canonical_d(v);
    if (n == VEC_D)
        vec_narrow_store(p, canonical);
    else
        vec_narrow_store_n(p, canonical, n);
}

/* A parameter, or its default where the array is absent. */
BNORM_INLINE vec_d parameter_d(const float *p, size_t i, size_t n, double otherwise) {
    return p ? widen_lanes(p + i, n) : vec_set1_d(otherwise);
}

/* a*b + c, c where a is 0 */
BNORM_INLINE vec_d plus_product(vec_d a, vec_d b, vec_d c) {
    return vec_if_eq_d(a, vec_set1_d(0), c, vec_fma_d(a, b, c));
}

/* body(i, vectors, n) for all channels: n lanes of `vectors` vectors from channel i on. */
#define BNORM_FOR_CHANNELS(first, c, side, body)                                                   \
    do {                                                                                           \
        const size_t end = (first) + (c);                                                          \
        size_t i = (first);                                                                        \
        for (; (side) > 1 && i + (side)*VEC_D <= end; i += (side)*VEC_D)                           \
            body(i, side, VEC_D);                                                                  \
        for (; i + VEC_D <= end; i += VEC_D)                                                       \
            body(i, 1, VEC_D);                                                                     \
        if (i < end)                                                                               \
            body(i, 1, end - i);                                                                   \
    } while (0)

BNORM_INLINE void merge_lanes(const bnorm_partials *p, size_t i, size_t vectors, size_t n,
                              double *mean, double *m2) {
    const double *sum = p->entries[0] + i, *block_m2 = p->entries[1] + i;
    vec_d merged[BNORM_SIDE], squares[BNORM_SIDE];
    double before = p->per_image > 1 ? p->size : p->last;
    BNORM_UNROLL
    for (size_t v = 0; v < vectors; v++) {
        merged[v] = vec_div_d(load_d_lanes(sum + v * VEC_D, n), vec_set1_d(before));
        squares[v] = load_d_lanes(block_m2 + v * VEC_D, n);
    }
    for (size_t b = 1, of_image = 1; b < p->blocks; b++, of_image++) {
        if (of_image == p->per_image)
            of_image = 0;
        const double block = of_image + 1 < p->per_image ? p->size : p->last;
        const double all = before + block;
        const vec_d inverse = vec_set1_d(1 / all), weight = vec_set1_d(before / (block * all));
        const vec_d minus_block = vec_set1_d(-block);
        sum += p->stride;
        block_m2 += p->stride;
        before = all;
        BNORM_UNROLL
        for (size_t v = 0; v < vectors; v++) {
            const vec_d excess =
                vec_fma_d(minus_block, merged[v], load_d_lanes(sum + v * VEC_D, n));
            const vec_d both = vec_add_d(squares[v], load_d_lanes(block_m2 + v * VEC_D, n));
            merged[v] = vec_canonical_d(vec_fma_d(excess, inverse, merged[v]));
            squares[v] = vec_canonical_d(vec_fma_d(vec_mul_d(excess, excess), weight, both));
        }
    }
    BNORM_UNROLL
    for (size_t v = 0; v < vectors; v++) {
        const vec_d q = squares[v];
        store_d_lanes(mean + i + v * VEC_D, vec_if_eq_d(q, q, merged[v], q), n);
        store_d_lanes(m2 + i + v * VEC_D, q, n);
    }
}

static void merge(const bnorm_partials *p, size_t first, size_t c, double *mean, double *m2) {
#define BNORM_CALL(i, vectors, n) merge_lanes(p, i, vectors, n, mean, m2)
    BNORM_FOR_CHANNELS(first, c, BNORM_SIDE, BNORM_CALL);
#undef BNORM_CALL
    vec_leave();
}

BNORM_INLINE void add_lanes(const bnorm_partials *p, size_t i, size_t vectors, size_t n,
                            double *sum_g, double *sum_gx) {
    const double *block_g = p->entries[0] + i, *block_gx = p->entries[1] + i;
    vec_d g[BNORM_SIDE], gx[BNORM_SIDE];
    BNORM_UNROLL
    for (size_t v = 0; v < vectors; v++)
        g[v] = gx[v] = vec_set1_d(0);
    for (size_t b = 0; b < p->blocks; b++, block_g += p->stride, block_gx += p->stride) {
        BNORM_UNROLL
        for (size_t v = 0; v < vectors; v++) {
            g[v] = vec_add_d(g[v], load_d_lanes(block_g + v * VEC_D, n));
            gx[v] = vec_add_d(gx[v], load_d_lanes(block_gx + v * VEC_D, n));
        }
    }
    BNORM_UNROLL
    for (size_t v = 0; v < vectors; v++) {
        store_d_lanes(sum_g + i + v * VEC_D, vec_canonical_d(g[v]), n);
        store_d_lanes(sum_gx + i + v * VEC_D, vec_canonical_d(gx[v]), n);
    }
}

static void add_blocks(const bnorm_partials *p, size_t first, size_t c, double *sum_g,
                       double *sum_gx) {
#define BNORM_CALL(i, vectors, n) add_lanes(p, i, vectors, n, sum_g, sum_gx)
    BNORM_FOR_CHANNELS(first, c, BNORM_SIDE, BNORM_CALL);
#undef BNORM_CALL
    vec_leave();
}

/* scale = gamma*invstd and shift = beta - mean_lo*scale; a product of two floats is exact. */
BNORM_INLINE void scale_and_shift(vec_d gamma, vec_d beta, vec_d mean_lo, vec_d invstd,
                                  float *scale, float *shift, size_t n) {
    const vec_d rounded = vec_round_d(vec_mul_d(gamma, invstd));
    const vec_d minus_low = vec_mul_d(vec_set1_d(-1), mean_lo);
    narrow_lanes(scale, rounded, n);
    narrow_lanes(shift, plus_product(minus_low, rounded, beta), n);
}

/* old + rate*(batch - old), or the batch's value whatever the old one is. */
BNORM_INLINE void blend_lanes(float *running, double rate, vec_d batch, size_t n) {
    if (rate != 1) {
        const vec_d old = widen_lanes(running, n);
        batch = vec_fma_d(vec_set1_d(rate), vec_sub_d(batch, old), old);
    }
    narrow_lanes(running, batch, n);
}

BNORM_INLINE void coefficient_lanes(const bnorm_coefficient_args *a, size_t i, size_t n) {
    const vec_d zero = vec_set1_d(0), count = vec_set1_d(a->n);
    const vec_d mean = load_d_lanes(a->mean + i, n), m2 = load_d_lanes(a->m2 + i, n);
    const vec_d variance = vec_div_d(m2, count);

    if (a->scale) {
        const vec_d high = vec_round_d(mean), low = vec_round_d(vec_sub_d(mean, high));
        const vec_d spread = vec_add_d(variance, vec_set1_d(a->eps));
        const vec_d inverse = vec_div_d(vec_set1_d(1), vec_sqrt_d(spread));
        const vec_d invstd = vec_if_eq_d(spread, zero, zero, vec_round_d(inverse));
        narrow_lanes(a->center + i, high, n);
        scale_and_shift(parameter_d(a->gamma, i, n, 1), parameter_d(a->beta, i, n, 0),
                        a->drop_low ? zero : low, invstd, a->scale + i, a->shift + i, n);
        if (a->save_mean)
            narrow_lanes(a->save_mean + i, high, n);
        if (a->save_mean_lo)
            narrow_lanes(a->save_mean_lo + i, low, n);
        if (a->save_invstd)
            narrow_lanes(a->save_invstd + i, invstd, n);
    }
    if (a->running_mean)
        blend_lanes(a->running_mean + i, a->rate, mean, n);
    if (a->running_var)
        blend_lanes(a->running_var + i, a->rate,
                    a->divisor == a->n ? variance : vec_div_d(m2, vec_set1_d(a->divisor)), n);
}

static void coefficients(const bnorm_coefficient_args *a, size_t first, size_t c) {
#define BNORM_CALL(i, vectors, n) coefficient_lanes(a, i, n)
    BNORM_FOR_CHANNELS(first, c, 1, BNORM_CALL);
#undef BNORM_CALL
    vec_leave();
}

static void scale_shift(const bnorm_scale_args *a, size_t c) {
#define BNORM_CALL(i, vectors, n)                                                                  \
    scale_and_shift(parameter_d(a->gamma, i, n, 1), parameter_d(a->beta, i, n, 0),                 \
                    parameter_d(a->mean_lo, i, n, 0), widen_lanes(a->invstd + i, n), a->scale + i, \
                    a->shift + i, n)
    BNORM_FOR_CHANNELS((size_t)0, c, 1, BNORM_CALL);
#undef BNORM_CALL
    vec_leave();
}

BNORM_INLINE void grad_coefficient_lanes(const bnorm_grad_coefficient_args *a, size_t i, size_t n) {
    const vec_d sum_g = load_d_lanes(a->sum_g + i, n), sum_gx = load_d_lanes(a->sum_gx + i, n);
    const vec_d minus_one = vec_set1_d(-1), zero = vec_set1_d(0), count = vec_set1_d(a->n);
    const vec_d minus_low = vec_mul_d(minus_one, parameter_d(a->mean_lo, i, n, 0));
    const vec_d invstd = widen_lanes(a->invstd + i, n);
    const vec_d dgamma = vec_mul_d(plus_product(minus_low, sum_g, sum_gx), invstd);

    if (a->dgamma)
        narrow_lanes(a->dgamma + i, dgamma, n);
    if (a->dbeta)
        narrow_lanes(a->dbeta + i, sum_g, n);
    if (!a->slope)
        return;
    const vec_d minus_scale =
        vec_mul_d(minus_one, vec_mul_d(parameter_d(a->gamma, i, n, 1), invstd));
    vec_d slope = vec_round_d(vec_mul_d(minus_scale, vec_div_d(dgamma, count)));
    vec_d offset = plus_product(vec_mul_d(minus_low, invstd), slope,
                                vec_mul_d(minus_scale, vec_div_d(sum_g, count)));
    if (a->n == 1) {
        /* x - x is 0 for what is finite */
        const vec_d scale = widen_lanes(a->scale + i, n), none = vec_sub_d(scale, scale);
        narrow_lanes(a->scale + i, vec_if_eq_d(none, zero, zero, scale), n);
        slope = vec_if_eq_d(none, zero, zero, slope);
        offset = vec_if_eq_d(none, zero, zero, offset);
    }
    narrow_lanes(a->slope + i, slope, n);
    narrow_lanes(a->offset + i, offset, n);
}

static void grad_coefficients(const bnorm_grad_coefficient_args *a, size_t first, size_t c) {
#define BNORM_CALL(i, vectors, n) grad_coefficient_lanes(a, i, n)
    BNORM_FOR_CHANNELS(first, c, 1, BNORM_CALL);
#undef BNORM_CALL
    vec_leave();
}
