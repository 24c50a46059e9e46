/* SPDX-License-Identifier: MIT
 *
 * Rows that are images of their own: whole subtrees of up to BNORM_LEAF of them. */

/* How the two numbers per channel of neighbours become one: as statistics, or as two sums. */
enum tree { BNORM_MERGED, BNORM_ADDED };

/* Of some rows: sum and M2, or the sums of g and g*(x - center). */
struct leaf {
    vec_d a, b;
};

/* Two neighbours of `rows` rows each. */
BNORM_INLINE struct leaf join_leaves(enum tree tree, struct leaf left, struct leaf right,
                                     size_t rows) {
    vec_d b = vec_add_d(left.b, right.b);
    if (tree == BNORM_MERGED) {
        const vec_d d = vec_sub_d(right.a, left.a);
        b = vec_fma_d(vec_mul_d(d, d), vec_set1_d(0.5 / (double)rows), b);
    }
    return (struct leaf){vec_add_d(left.a, right.a), b};
}

/* Rows of floats; g and center are for sums only. */
struct leaf_rows {
    const float *x, *g, *center;
    size_t x_stride, g_stride;
};

BNORM_INLINE struct leaf_rows leaf_rows_from(enum tree tree, struct leaf_rows r, size_t i) {
    r.x += i;
    if (tree == BNORM_ADDED) {
        r.g += i;
        r.center += i;
    }
    return r;
}

BNORM_INLINE struct leaf leaf_1(enum tree tree, struct leaf_rows r, size_t row, size_t n) {
    const vec_d x = widen_lanes(r.x + row * r.x_stride, n);
    if (tree == BNORM_MERGED)
        return (struct leaf){x, vec_set1_d(0)};
    /* 0 added: a product that compilers can't make one operation with what it is added to. */
    const vec_d g = widen_lanes(r.g + row * r.g_stride, n),
                d = vec_sub_d(x, widen_lanes(r.center, n));
    return (struct leaf){g, vec_fma_d(g, d, vec_set1_d(0))};
}

BNORM_INLINE struct leaf leaf_2(enum tree tree, struct leaf_rows r, size_t row, size_t n) {
    return join_leaves(tree, leaf_1(tree, r, row, n), leaf_1(tree, r, row + 1, n), 1);
}

BNORM_INLINE struct leaf leaf_4(enum tree tree, struct leaf_rows r, size_t row, size_t n) {
    return join_leaves(tree, leaf_2(tree, r, row, n), leaf_2(tree, r, row + 2, n), 2);
}

/* Rows of the smallest subtrees, but for those that are smaller altogether. */
#define BNORM_TWIG 8

BNORM_INLINE struct leaf leaf_of(enum tree tree, struct leaf_rows r, size_t rows, size_t n) {
    switch (rows) {
    case 1:
        return leaf_1(tree, r, 0, n);
    case 2:
        return leaf_2(tree, r, 0, n);
    case 4:
        return leaf_4(tree, r, 0, n);
    default:
        return join_leaves(tree, leaf_4(tree, r, 0, n), leaf_4(tree, r, 4, n), 4);
    }
}

/* Lanes that go through their rows side by side: long pieces of each row are read. */
#define BNORM_LEAF_TILE 64

/* Two numbers per lane. */
struct leaf_lanes {
    double a[BNORM_LEAF_TILE + VEC_D], b[BNORM_LEAF_TILE + VEC_D];
};

BNORM_INLINE struct leaf load_leaf(const struct leaf_lanes *lanes, size_t i) {
    return (struct leaf){vec_load_d(lanes->a + i), vec_load_d(lanes->b + i)};
}

BNORM_INLINE void store_leaf(struct leaf_lanes *lanes, size_t i, struct leaf leaf) {
    vec_store_d(lanes->a + i, leaf.a);
    vec_store_d(lanes->b + i, leaf.b);
}

/* Rows as floats: where they are, or all but the plainest by way of L1. */
struct leaf_floats {
    float x[BNORM_TWIG * BNORM_LEAF_TILE + VEC_F], g[BNORM_TWIG * BNORM_LEAF_TILE];
};
BNORM_INLINE struct leaf_rows leaf_rows_at(const struct sum_rows *s, size_t row, size_t rows,
                                           size_t c, struct leaf_floats *to) {
    struct sum_rows from = *s; /* inlined, so that little of it is copied */
    move_rows(&from, row, 0, 0);
    const size_t n = whole_vectors(c);
    if (s->type == BNORM_F32 && (!s->a || s->a->pre == BNORM_PRE_NONE))
        return (struct leaf_rows){(const void *)from.x, (const void *)from.dy, s->center,
                                  s->x_step / sizeof *to->x, s->dy_step / sizeof *to->g};
    if (!s->a) {
        widen_rows(to->x, from.x, s->type, s->x_step / size_of(s->type), rows, c);
        return (struct leaf_rows){to->x, NULL, NULL, c, 0};
    }
    load_rows(&from, rows, c, to->x, to->g);
    return (struct leaf_rows){to->x, to->g, s->center, n, n};
}

/* c <= BNORM_LEAF_TILE lanes of `rows` rows. Subtrees wait for their neighbours. */
BNORM_INLINE void leaf_tile(enum tree tree, const struct sum_rows *s, size_t rows, size_t c,
                            struct leaf_lanes *all) {
    struct leaf_floats floats;
    struct leaf_lanes waiting[3];
    const size_t step = lesser(rows, BNORM_TWIG), twigs = rows / step;
    size_t depth = 0;
    for (size_t q = 0; q < twigs; q++) {
        const struct leaf_rows r = leaf_rows_at(s, q * step, step, c, &floats);
        size_t left = depth;
        for (size_t i = 0; i < c; i += VEC_D) {
            const struct leaf_rows here = leaf_rows_from(tree, r, i);
            struct leaf leaf = leaf_of(tree, here, step, lesser(VEC_D, c - i));
            left = depth;
            for (size_t joined = 1; q & joined; joined *= 2)
                leaf = join_leaves(tree, load_leaf(&waiting[--left], i), leaf, step * joined);
            store_leaf(q + 1 == twigs ? all : &waiting[left], i, leaf);
        }
        depth = left + 1;
    }
}

BNORM_INLINE void reduce_leaves(enum tree tree, const struct sum_rows *s, size_t rows, size_t c,
                                double *a, double *b) {
    struct leaf_lanes all;
    for (size_t i = 0; i < c; i += BNORM_LEAF_TILE) {
        const size_t n = lesser(BNORM_LEAF_TILE, c - i);
        struct sum_rows tile = *s;
        move_rows(&tile, 0, i, i);
        leaf_tile(tree, &tile, rows, n, &all);
        for (size_t k = 0; k < n; k += VEC_D) {
            struct leaf leaf = load_leaf(&all, k);
            if (tree == BNORM_MERGED) /* an infinity leaves no squares either */
                leaf.b = vec_add_d(leaf.b, vec_sub_d(leaf.a, leaf.a));
            store_d_lanes(a + i + k, vec_canonical_d(leaf.a), lesser(VEC_D, n - k));
            store_d_lanes(b + i + k, vec_canonical_d(leaf.b), lesser(VEC_D, n - k));
        }
    }
}

BNORM_INLINE void reduce_groups_of_leaves(enum tree tree, const bnorm_map_args *a, double *first,
                                          double *second) {
    const int backward = tree == BNORM_ADDED;
    for (size_t group = 0, i = 0; i < a->valid; group++, i += a->lanes) {
        const struct sum_rows s = sum_rows_of(a, 0, backward, group);
        reduce_leaves(tree, &s, a->rows, lesser(a->lanes, a->valid - i), first + i, second + i);
    }
    vec_zeroupper();
}

static void moments_tree(const bnorm_map_args *a, double *sum, double *m2) {
    reduce_groups_of_leaves(BNORM_MERGED, a, sum, m2);
}

static void sums_tree(const bnorm_map_args *a, double *sum_g, double *sum_gx) {
    reduce_groups_of_leaves(BNORM_ADDED, a, sum_g, sum_gx);
}
