/* SPDX-License-Identifier: MIT
 *
 * What lies between the passes of an operation: blocks merged, and per-channel coefficients. In
 * double; src/scalar/scalar.c says what. Channels take a lane each, so that all sets divide and
 * take roots alike. */

/* Vectors of channels that go through the blocks side by side: one alone would wait for its own
 * results. */
#define BNORM_SIDE 4

/* Rounded to floats, n of them, canonical. What is rounded for other uses, too, is given unrounded:
 * one conversion then serves both. */
BNORM_INLINE void narrow_lanes(float *p, vec_d v, size_t n) {
    if (n == VEC_D)
        vec_narrow_store(p, v);
    else
        vec_narrow_store_n(p, v, n);
}

/* A parameter, or its default where the array is absent. */
BNORM_INLINE vec_d parameter_d(const float *p, size_t i, size_t n, double otherwise) {
    return p ? widen_lanes(p + i, n) : vec_set1_d(otherwise);
}

/* a*b + c, c where a is 0 */
BNORM_INLINE vec_d plus_product(vec_d a, vec_d b, vec_d c) {
    return vec_if_eq_d(a, vec_set1_d(0), c, vec_fma_d(a, b, c));
}

/* v, 1 in lanes from the n-th on, which hold no channel. */
BNORM_INLINE vec_d or_one(vec_d v, size_t n) {
    static const double lane[] = {0, 1, 2, 3, 4, 5, 6, 7};
    if (n == VEC_D)
        return v;
    return vec_if_lt_d(vec_load_d(lane), vec_set1_d((double)n), v, vec_set1_d(1));
}

/* Channels [i, i + vectors*VEC_D), or the first n lanes of one vector, of a part of the batch:
 * their sum and M2, or their two sums. */
struct nodes {
    vec_d a[BNORM_SIDE], b[BNORM_SIDE];
};

BNORM_INLINE struct nodes load_nodes(const bnorm_partials *p, size_t row, size_t i, size_t vectors,
                                     size_t n) {
    const size_t at = row * p->stride + i;
    struct nodes all;
    BNORM_UNROLL
    for (size_t v = 0; v < vectors; v++) {
        all.a[v] = load_d_lanes(p->entries[0] + at + v * VEC_D, n);
        all.b[v] = load_d_lanes(p->entries[1] + at + v * VEC_D, n);
    }
    return all;
}

BNORM_INLINE void store_nodes(const bnorm_partials *p, size_t row, size_t i, size_t vectors,
                              size_t n, const struct nodes *all) {
    const size_t at = row * p->stride + i;
    BNORM_UNROLL
    for (size_t v = 0; v < vectors; v++) {
        store_d_lanes(p->entries[0] + at + v * VEC_D, all->a[v], n);
        store_d_lanes(p->entries[1] + at + v * VEC_D, all->b[v], n);
    }
}

/* One piece and the one after it, of n_left and n_right values; those of sums are not looked at. */
BNORM_INLINE void join_nodes(enum tree tree, size_t vectors, const struct nodes *left,
                             struct nodes *right, double n_left, double n_right) {
    const int merged = tree == BNORM_MERGED, halves = n_left == n_right;
    const vec_d weight = vec_set1_d(merged ? n_left / (n_right * (n_left + n_right)) : 0);
    const vec_d count = vec_set1_d(n_left), minus_next = vec_set1_d(-n_right);
    BNORM_UNROLL
    for (size_t v = 0; v < vectors; v++) {
        const vec_d a = left->a[v], next = right->a[v], both = vec_add_d(left->b[v], right->b[v]);
        right->a[v] = vec_add_d(a, next);
        right->b[v] = both;
        if (merged) {
            const vec_d excess =
                halves ? vec_sub_d(next, a) : vec_fma_d(minus_next, vec_div_d(a, count), next);
            right->b[v] = vec_fma_d(vec_mul_d(excess, excess), weight, both);
        }
    }
}

/* An image from its blocks, or a leaf of `images`, from this row on. */
BNORM_INLINE struct nodes image_nodes(enum tree tree, const bnorm_partials *p, size_t row,
                                      size_t images, size_t i, size_t vectors, size_t n) {
    struct nodes all = load_nodes(p, row, i, vectors, n);
    double before = p->per_image > 1 ? p->size : p->last * (double)images;
    for (size_t b = 1; b < p->per_image; b++) {
        const double block = b + 1 < p->per_image ? p->size : p->last;
        struct nodes next = load_nodes(p, row + b, i, vectors, n);
        join_nodes(tree, vectors, &all, &next, before, block);
        all = next;
        before += block;
    }
    return all;
}

/* Images come in order; a subtree waits where its blocks were for the one next to it. */
BNORM_INLINE void tree_lanes(enum tree tree, const bnorm_partials *p, size_t i, size_t vectors,
                             size_t n, double *first, double *second) {
    struct {
        size_t images, row;
    } waiting[BNORM_LEVELS];
    const size_t end = p->first + p->n;
    size_t depth = 0, row = 0;
    struct nodes all, left;
    for (size_t image = p->first, next; image < end; image = next) {
        size_t images = bnorm_subtree(image, end, p->leaf), begin = image, at = row;
        next = image + images;
        all = image_nodes(tree, p, row, images, i, vectors, n);
        row += p->per_image;
        for (; depth && waiting[depth - 1].images == images && (begin & images); images *= 2) {
            at = waiting[--depth].row;
            left = load_nodes(p, at, i, vectors, n);
            join_nodes(tree, vectors, &left, &all, (double)images * p->hw, (double)images * p->hw);
            begin -= images;
        }
        store_nodes(p, at, i, vectors, n, &all);
        waiting[depth].images = images;
        waiting[depth++].row = at;
    }
    if (!first)
        return;
    double behind = (double)waiting[depth - 1].images;
    while (--depth) {
        const double images = (double)waiting[depth - 1].images;
        left = load_nodes(p, waiting[depth - 1].row, i, vectors, n);
        join_nodes(tree, vectors, &left, &all, images * p->hw, behind * p->hw);
        behind += images;
    }
    const vec_d count = vec_set1_d(behind * p->hw);
    BNORM_UNROLL
    for (size_t v = 0; v < vectors; v++) {
        const vec_d b = vec_canonical_d(all.b[v]);
        const vec_d a = tree == BNORM_MERGED ? vec_if_eq_d(b, b, vec_div_d(all.a[v], count), b)
                                             : vec_canonical_d(all.a[v]);
        store_d_lanes(first + i + v * VEC_D, a, n);
        store_d_lanes(second + i + v * VEC_D, b, n);
    }
}

/* Of channels that are no whole vectors side by side. */
BNORM_RARE void tree_lanes_n(enum tree tree, const bnorm_partials *p, size_t i, size_t n,
                             double *first, double *second) {
    tree_lanes(tree, p, i, 1, n, first, second);
}

BNORM_INLINE void tree_channels(enum tree tree, const bnorm_partials *p, size_t channel, size_t c,
                                double *first, double *second) {
    const size_t end = channel + c;
    size_t i = channel;
    for (; i + BNORM_SIDE * VEC_D <= end; i += BNORM_SIDE * VEC_D)
        tree_lanes(tree, p, i, BNORM_SIDE, VEC_D, first, second);
    for (; i < end; i += VEC_D)
        tree_lanes_n(tree, p, i, lesser(VEC_D, end - i), first, second);
    vec_zeroupper();
}

static void merge(const bnorm_partials *p, size_t first, size_t c, double *mean, double *m2) {
    tree_channels(BNORM_MERGED, p, first, c, mean, m2);
}

static void add_blocks(const bnorm_partials *p, size_t first, size_t c, double *sum_g,
                       double *sum_gx) {
    tree_channels(BNORM_ADDED, p, first, c, sum_g, sum_gx);
}

static void merge_pair(const bnorm_pair_args *a, size_t c) {
    for (size_t i = 0; i < c; i += VEC_D) {
        const size_t n = lesser(VEC_D, c - i);
        struct nodes left, right;
        left.a[0] = load_d_lanes(a->sum + i, n);
        left.b[0] = load_d_lanes(a->m2 + i, n);
        right.a[0] = load_d_lanes(a->next_sum + i, n);
        right.b[0] = load_d_lanes(a->next_m2 + i, n);
        join_nodes(BNORM_MERGED, 1, &left, &right, a->n[0], a->n[1]);
        store_d_lanes(a->sum + i, vec_canonical_d(right.a[0]), n);
        store_d_lanes(a->m2 + i, vec_canonical_d(right.b[0]), n);
    }
    vec_zeroupper();
}

/* scale = gamma*invstd and shift = beta - mean_lo*scale; a product of two floats is exact. */
BNORM_INLINE void scale_and_shift(vec_d gamma, vec_d beta, vec_d mean_lo, vec_d invstd,
                                  float *scale, float *shift, size_t n) {
    const vec_d product = vec_mul_d(gamma, invstd);
    const vec_d minus_low = vec_mul_d(vec_set1_d(-1), mean_lo);
    narrow_lanes(scale, product, n);
    narrow_lanes(shift, plus_product(minus_low, vec_round_d(product), beta), n);
}

/* old + rate*(batch - old) */
BNORM_INLINE vec_d blended(double rate, vec_d batch, vec_d old) {
    return vec_fma_d(vec_set1_d(rate), vec_sub_d(batch, old), old);
}

/* The same where some lanes have an infinity or a NaN, whose difference the average does not
 * have. */
BNORM_RARE void blend_infinite(double rate, double batch[VEC_D], double old[VEC_D]) {
    double average[VEC_D];
    unsigned bits = 0;
    for (size_t i = 0; i < VEC_D; i++) {
        if (!__builtin_isfinite(old[i]) || !__builtin_isfinite(batch[i])) {
            average[i] = (1 - rate) * old[i] + rate * batch[i];
            batch[i] = old[i] = 0;
            bits |= 1u << i;
        }
    }
    vec_store_d(batch, blended(rate, vec_load_d(batch), vec_load_d(old)));
    replace_lanes(bits, average, batch);
}

/* (1 - rate)*old + rate*batch. Rate 1 takes the batch's value whatever the old one is, rate 0 keeps
 * the old one whatever the batch's is. */
BNORM_INLINE void blend_lanes(const float *running, float *updated, double rate, vec_d batch,
                              size_t n) {
    if (rate != 1) {
        const vec_d old = widen_lanes(running, n);
        if (rate == 0) {
            batch = old;
        } else if (vec_outside_d(old, -DBL_MAX, DBL_MAX) |
                   vec_outside_d(batch, -DBL_MAX, DBL_MAX)) {
            double values[VEC_D], olds[VEC_D];
            vec_store_d(values, batch);
            vec_store_d(olds, old);
            blend_infinite(rate, values, olds);
            batch = vec_load_d(values);
        } else {
            batch = blended(rate, batch, old);
        }
    }
    narrow_lanes(updated, batch, n);
}

BNORM_INLINE void coefficient_lanes(const bnorm_coefficient_args *a, size_t i, size_t n) {
    const vec_d zero = vec_set1_d(0), count = vec_set1_d(a->n);
    const vec_d mean = load_d_lanes(a->mean + i, n), m2 = load_d_lanes(a->m2 + i, n);
    const vec_d variance = vec_div_d(m2, count);

    if (a->scale) {
        const vec_d low = vec_sub_d(mean, vec_round_d(mean));
        const vec_d one = vec_set1_d(1);
        const vec_d spread = or_one(vec_add_d(variance, vec_set1_d(a->eps)), n);
        /* 0/1 where the root is 0 */
        const vec_d root = vec_if_eq_d(spread, zero, one, vec_sqrt_d(spread));
        const vec_d invstd = vec_div_d(vec_if_eq_d(spread, zero, zero, one), root);
        narrow_lanes(a->center + i, mean, n);
        scale_and_shift(parameter_d(a->gamma, i, n, 1), parameter_d(a->beta, i, n, 0),
                        vec_round_d(low), vec_round_d(invstd), a->scale + i, a->shift + i, n);
        if (a->save_mean)
            narrow_lanes(a->save_mean + i, mean, n);
        if (a->save_mean_lo)
            narrow_lanes(a->save_mean_lo + i, low, n);
        if (a->save_invstd)
            narrow_lanes(a->save_invstd + i, invstd, n);
        if (a->save_var)
            narrow_lanes(a->save_var + i, variance, n);
    }
    if (a->new_mean)
        blend_lanes(a->running_mean + i, a->new_mean + i, a->rate, mean, n);
    if (a->new_var)
        blend_lanes(a->running_var + i, a->new_var + i, a->rate,
                    a->divisor == a->n ? variance : vec_div_d(m2, vec_set1_d(a->divisor)), n);
}

BNORM_COLD void coefficient_lanes_n(const bnorm_coefficient_args *a, size_t i, size_t n) {
    coefficient_lanes(a, i, n);
}

static void coefficients(const bnorm_coefficient_args *a, size_t first, size_t c) {
    const size_t end = first + c;
    size_t i = first;
    for (; i + VEC_D <= end; i += VEC_D)
        coefficient_lanes(a, i, VEC_D);
    if (i < end)
        coefficient_lanes_n(a, i, end - i);
    vec_zeroupper();
}

BNORM_INLINE void scale_shift_lanes(const bnorm_scale_args *a, size_t i, size_t n) {
    scale_and_shift(parameter_d(a->gamma, i, n, 1), parameter_d(a->beta, i, n, 0),
                    parameter_d(a->mean_lo, i, n, 0), widen_lanes(a->invstd + i, n), a->scale + i,
                    a->shift + i, n);
}

static void scale_shift(const bnorm_scale_args *a, size_t c) {
    size_t i = 0;
    for (; i + VEC_D <= c; i += VEC_D)
        scale_shift_lanes(a, i, VEC_D);
    if (i < c)
        scale_shift_lanes(a, i, c - i);
    vec_zeroupper();
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

BNORM_COLD void grad_coefficient_lanes_n(const bnorm_grad_coefficient_args *a, size_t i, size_t n) {
    grad_coefficient_lanes(a, i, n);
}

static void grad_coefficients(const bnorm_grad_coefficient_args *a, size_t first, size_t c) {
    const size_t end = first + c;
    size_t i = first;
    for (; i + VEC_D <= end; i += VEC_D)
        grad_coefficient_lanes(a, i, VEC_D);
    if (i < end)
        grad_coefficient_lanes_n(a, i, end - i);
    vec_zeroupper();
}
