/* SPDX-License-Identifier: MIT
 *
 * Sums and squared deviations of a block, and merging of blocks. src/scalar/scalar.c says what, docs/numerics.md why.
 *
 * A strip is a matrix of `rows` whole rows of `len` lanes, plus one tail row of which only the first `tail` lanes exist.
 * Each lane is one chain of one channel. */

/* s[i] += sum of lane i, in groups of 8 rows, each a tree. */
BNORM_INLINE void strip_sum_group(const float *x, size_t stride, size_t whole, size_t i, size_t n, size_t tail,
                                  double *s) {
    vec_d v[BNORM_GROUP];
    BNORM_UNROLL
    for (size_t q = 0; q < BNORM_GROUP; q++)
        v[q] = widen_lanes(x + q * stride + i, row_lanes(q, whole, i, n, tail));
    accumulate_d(s + i,
                 vec_add_d(vec_add_d(vec_add_d(v[0], v[1]), vec_add_d(v[2], v[3])),
                           vec_add_d(vec_add_d(v[4], v[5]), vec_add_d(v[6], v[7]))),
                 n);
}

BNORM_INLINE void strip_sum(const float *x, size_t stride, size_t rows, size_t len, size_t tail, double *s) {
    size_t r = 0;
    for (; r + BNORM_GROUP <= rows; r += BNORM_GROUP, x += BNORM_GROUP * stride) {
        size_t i = 0;
        for (; i + VEC_D <= len; i += VEC_D)
            strip_sum_group(x, stride, BNORM_GROUP, i, VEC_D, 0, s);
        if (i < len)
            strip_sum_group(x, stride, BNORM_GROUP, i, len - i, 0, s);
    }
    if (r < rows || tail)
        for (size_t i = 0; i < len; i += VEC_D)
            strip_sum_group(x, stride, rows - r, i, lesser(VEC_D, len - i), tail, s);
}

/* s[i] += sum of (x - pivot[i])^2 over lane i: in float within a group of 8 rows, even and odd rows apart. */
BNORM_INLINE void strip_squares_group(const float *x, size_t stride, size_t whole, size_t i, size_t n, size_t tail,
                                      const float *pivot, double *s) {
    vec_f d[BNORM_GROUP];
    BNORM_UNROLL
    for (size_t q = 0; q < BNORM_GROUP; q++) {
        const size_t lanes = row_lanes(q, whole, i, n, tail);
        d[q] = vec_sub(load_lanes(x + q * stride + i, lanes), load_lanes(pivot + i, lanes));
    }
    vec_f even = vec_mul(d[0], d[0]), odd = vec_mul(d[1], d[1]);
    BNORM_UNROLL
    for (size_t q = 2; q < BNORM_GROUP; q += 2) {
        even = vec_fma(d[q], d[q], even);
        odd = vec_fma(d[q + 1], d[q + 1], odd);
    }
    accumulate_f(s + i, vec_add(even, odd), n);
}

BNORM_INLINE void strip_squares(const float *x, size_t stride, size_t rows, size_t len, size_t tail,
                                const float *pivot, double *s) {
    size_t r = 0;
    for (; r + BNORM_GROUP <= rows; r += BNORM_GROUP, x += BNORM_GROUP * stride) {
        size_t i = 0;
        for (; i + VEC_F <= len; i += VEC_F)
            strip_squares_group(x, stride, BNORM_GROUP, i, VEC_F, 0, pivot, s);
        if (i < len)
            strip_squares_group(x, stride, BNORM_GROUP, i, len - i, 0, pivot, s);
    }
    if (r < rows || tail)
        for (size_t i = 0; i < len; i += VEC_F)
            strip_squares_group(x, stride, rows - r, i, lesser(VEC_F, len - i), tail, pivot, s);
}

/* The same in double, for values whose squares leave the range of a float. Rare: not tuned. */
static void strip_squares_wide(const float *x, size_t stride, size_t rows, size_t len, size_t tail, const float *pivot,
                               double *s) {
    for (size_t r = 0; r < rows + (tail > 0); r += BNORM_GROUP, x += BNORM_GROUP * stride)
        for (size_t i = 0; i < len; i += VEC_D) {
            const size_t n = lesser(VEC_D, len - i);
            vec_d d[BNORM_GROUP];
            for (size_t q = 0; q < BNORM_GROUP; q++) {
                const size_t lanes = row_lanes(q, rows - r, i, n, tail);
                d[q] = vec_sub_d(widen_lanes(x + q * stride + i, lanes), widen_lanes(pivot + i, lanes));
            }
            vec_d even = vec_mul_d(d[0], d[0]), odd = vec_mul_d(d[1], d[1]);
            for (size_t q = 2; q < BNORM_GROUP; q += 2) {
                even = vec_fma_d(d[q], d[q], even);
                odd = vec_fma_d(d[q + 1], d[q + 1], odd);
            }
            accumulate_d(s + i, vec_add_d(even, odd), n);
        }
}

/* Runs a strip function over the chains of c channels, chain j of channel i into lane j*c + i. Rows without gaps are one
 * strip of c*chains lanes; otherwise each chain is a strip of c lanes. */
#define BNORM_FOR_STRIPS(x, stride, rows, c, chains, call)                                                             \
    do {                                                                                                               \
        if ((stride) == (c)) {                                                                                         \
            const size_t strip_rows = (rows) / (chains), strip_tail = (rows) % (chains) * (c);                         \
            const size_t strip_len = strip_rows ? (c) * (chains) : strip_tail, strip_stride = (c) * (chains);          \
            const size_t lane = 0;                                                                                     \
            const float *const strip = (x);                                                                            \
            call;                                                                                                      \
        } else {                                                                                                       \
            for (size_t j = 0; j < (chains) && j < (rows); j++) {                                                      \
                const size_t strip_rows = ((rows) - j + (chains) - 1) / (chains), strip_tail = 0, strip_len = (c);     \
                const size_t strip_stride = (stride) * (chains), lane = j * (c);                                       \
                const float *const strip = (x) + j * (stride);                                                         \
                call;                                                                                                  \
            }                                                                                                          \
        }                                                                                                              \
    } while (0)

/* One block of c <= BNORM_TILE channels. */
BNORM_INLINE void moments_tile(const float *x, size_t stride, size_t rows, size_t c, size_t chains, double *sum,
                               double *m2) {
    double lanes[BNORM_TILE];
    float pivot[BNORM_TILE + BNORM_PAD];
    const double n = (double)rows, inverse_n = 1 / n;
    double *const s = chains > 1 ? lanes : sum, *const s2 = chains > 1 ? lanes : m2;

    memset(s, 0, c * chains * sizeof *s);
    BNORM_FOR_STRIPS(x, stride, rows, c, chains,
                     strip_sum(strip, strip_stride, strip_rows, strip_len, strip_tail, s + lane));
    if (chains > 1) {
        fold_chains(lanes, c, chains);
        memcpy(sum, lanes, c * sizeof *sum);
    }
    for (size_t i = 0; i < c; i += VEC_D)
        vec_narrow_store(pivot + i, vec_mul_d(vec_load_d_n(sum + i, lesser(VEC_D, c - i)), vec_set1_d(inverse_n)));
    for (size_t j = 1; j < chains; j++)
        memcpy(pivot + j * c, pivot, c * sizeof *pivot);

    memset(s2, 0, c * chains * sizeof *s2);
    BNORM_FOR_STRIPS(x, stride, rows, c, chains,
                     strip_squares(strip, strip_stride, strip_rows, strip_len, strip_tail, pivot + lane, s2 + lane));
    if (chains > 1) {
        fold_chains(lanes, c, chains);
        memcpy(m2, lanes, c * sizeof *m2);
    }

    unsigned outside = 0;
    for (size_t i = 0; i < c; i += VEC_D) {
        const size_t in_use = lesser(VEC_D, c - i);
        outside |= vec_outside_d(vec_load_d_n(m2 + i, in_use), 0x1p-90, DBL_MAX) & ((1u << in_use) - 1);
    }
    if (outside) {
        memset(lanes, 0, c * chains * sizeof *lanes);
        BNORM_FOR_STRIPS(x, stride, rows, c, chains,
                         strip_squares_wide(strip, strip_stride, strip_rows, strip_len, strip_tail, pivot + lane,
                                            lanes + lane));
        fold_chains(lanes, c, chains);
        for (size_t i = 0; i < c; i++)
            if (!(m2[i] >= 0x1p-90 && m2[i] <= DBL_MAX))
                m2[i] = lanes[i];
    }
    for (size_t i = 0; i < c; i += VEC_D) {
        const size_t in_use = lesser(VEC_D, c - i);
        const vec_d total = vec_load_d_n(sum + i, in_use), zero = vec_set1_d(0);
        const vec_d excess = vec_fma_d(vec_set1_d(-n), vec_widen_n(pivot + i, in_use), total);
        const vec_d centred =
            vec_fma_d(excess, vec_mul_d(excess, vec_set1_d(-inverse_n)), vec_load_d_n(m2 + i, in_use));
        vec_store_d_n(sum + i, vec_canonical_d(total), in_use);
        vec_store_d_n(m2 + i, vec_canonical_d(vec_if_lt_d(centred, zero, zero, centred)), in_use);
    }
}

static void moments_rows(const float *x, size_t stride, size_t rows, size_t c, size_t chains, double *sum, double *m2) {
    for (size_t i = 0; i < c; i += BNORM_TILE)
        moments_tile(x + i, stride, rows, lesser(BNORM_TILE, c - i), chains, sum + i, m2 + i);
}

static void moments_span(const float *x, size_t stride, size_t planes, size_t len, double *sum, double *m2) {
    for (size_t i = 0; i < planes; i++)
        moments_tile(x + i * stride, 1, len, 1, BNORM_SPAN_LANES, sum + i, m2 + i);
}

static void merge(size_t c, double n_before, double n_block, const double *sum, const double *block_m2, double *mean,
                  double *m2) {
    const double n = n_before + n_block;
    const vec_d inverse_n = vec_set1_d(1 / n), weight = vec_set1_d(n_before / (n_block * n));
    const vec_d count = vec_set1_d(n_block), minus_count = vec_set1_d(-n_block);
    for (size_t i = 0; i < c; i += VEC_D) {
        const size_t in_use = lesser(VEC_D, c - i);
        const vec_d s = vec_load_d_n(sum + i, in_use), q = vec_load_d_n(block_m2 + i, in_use);
        if (n_before == 0) {
            vec_store_d_n(mean + i, vec_div_d(s, count), in_use);
            vec_store_d_n(m2 + i, q, in_use);
            continue;
        }
        const vec_d old = vec_load_d_n(mean + i, in_use), old_m2 = vec_load_d_n(m2 + i, in_use);
        const vec_d excess = vec_fma_d(minus_count, old, s);
        vec_store_d_n(mean + i, vec_canonical_d(vec_fma_d(excess, inverse_n, old)), in_use);
        vec_store_d_n(m2 + i, vec_canonical_d(vec_fma_d(vec_mul_d(excess, excess), weight, vec_add_d(old_m2, q))),
                      in_use);
    }
}
