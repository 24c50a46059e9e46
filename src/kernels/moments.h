/* SPDX-License-Identifier: MIT
 *
 * Sums and squared deviations of a block, and merging of blocks. src/scalar/scalar.c says what,
 * docs/numerics.md why.
 *
 * A strip is a matrix of `rows` whole rows of `len` lanes, and one tail row of which only the first
 * `tail` lanes exist. Each lane is one chain of one channel. Rows are taken in groups of 8; in the
 * last group the missing rows would add zeros, which change no sum, so they are left out. */

/* call(n) with a constant n = rows, 1 to 8. */
#define BNORM_ROW_CASE(n, call)                                                                    \
    case n:                                                                                        \
        call(n);                                                                                   \
        break;
#define BNORM_FOR_ROWS(rows, call)                                                                 \
    switch (rows) {                                                                                \
        BNORM_ROW_CASE(1, call)                                                                    \
        BNORM_ROW_CASE(2, call)                                                                    \
        BNORM_ROW_CASE(3, call)                                                                    \
        BNORM_ROW_CASE(4, call)                                                                    \
        BNORM_ROW_CASE(5, call)                                                                    \
        BNORM_ROW_CASE(6, call)                                                                    \
        BNORM_ROW_CASE(7, call)                                                                    \
        BNORM_ROW_CASE(8, call)                                                                    \
    }

/* Sum of rows q and q + 1, the latter if it exists. */
BNORM_INLINE vec_d pair_sum(const float *x, size_t stride, size_t q, size_t rows, size_t n) {
    const vec_d first = widen_lanes(x + q * stride, n);
    return q + 1 < rows ? vec_add_d(first, widen_lanes(x + (q + 1) * stride, n)) : first;
}

/* Sum of rows q to q + 3. */
BNORM_INLINE vec_d quad_sum(const float *x, size_t stride, size_t q, size_t rows, size_t n) {
    const vec_d first = pair_sum(x, stride, q, rows, n);
    return q + 2 < rows ? vec_add_d(first, pair_sum(x, stride, q + 2, rows, n)) : first;
}

/* s[0..n) += the tree of up to 8 rows. */
BNORM_INLINE void group_sum(const float *x, size_t stride, size_t rows, size_t n, int padded,
                            double *s) {
    const vec_d first = quad_sum(x, stride, 0, rows, n);
    accumulate_d(s, rows > 4 ? vec_add_d(first, quad_sum(x, stride, 4, rows, n)) : first, n,
                 padded);
}

BNORM_INLINE void group_sums(const float *x, size_t stride, size_t rows, size_t len, int padded,
                             double *s) {
    size_t i = 0;
    for (; i + VEC_D <= len; i += VEC_D)
        group_sum(x + i, stride, rows, VEC_D, padded, s + i);
    if (i < len)
        group_sum(x + i, stride, rows, len - i, padded, s + i);
}

static void some_sums(const float *x, size_t stride, size_t rows, size_t len, int padded,
                      double *s){
#define BNORM_CALL(n) group_sums(x, stride, n, len, padded, s)
    BNORM_FOR_ROWS(rows, BNORM_CALL)
#undef BNORM_CALL
}

/* s[i] += sum of lane i; padded: s is a plane_lanes. */
BNORM_INLINE void strip_sum(const float *x, size_t stride, size_t rows, size_t len, size_t tail,
                            int padded, double *s) {
    for (; rows >= BNORM_GROUP; rows -= BNORM_GROUP, x += BNORM_GROUP * stride)
        group_sums(x, stride, BNORM_GROUP, len, padded, s);
    if (tail)
        some_sums(x, stride, rows + 1, tail, padded, s);
    if (rows)
        some_sums(x + tail, stride, rows, len - tail, padded && !tail, s + tail);
}

/* s[0..n) += sum of (x - pivot)^2 over up to 8 rows: in float, even and odd rows apart. */
BNORM_INLINE void group_square(const float *x, size_t stride, size_t rows, size_t n, vec_f pivot,
                               int padded, double *s) {
    vec_f even = vec_set1(0), odd = even;
    BNORM_UNROLL
    for (size_t q = 0; q < rows; q++) {
        const vec_f d = vec_sub(load_lanes(x + q * stride, n), pivot);
        if (q % 2 == 0)
            even = vec_fma(d, d, even);
        else
            odd = vec_fma(d, d, odd);
    }
    accumulate_f(s, rows > 1 ? vec_add(even, odd) : even, n, padded);
}

BNORM_INLINE void group_squares(const float *x, size_t stride, size_t rows, size_t len,
                                const float *pivot, int spread, int padded, double *s) {
    size_t i = 0;
    for (; i + VEC_F <= len; i += VEC_F)
        group_square(x + i, stride, rows, VEC_F, parameter_lanes(pivot, spread, i, VEC_F), padded,
                     s + i);
    if (i < len)
        group_square(x + i, stride, rows, len - i, parameter_lanes(pivot, spread, i, len - i),
                     padded, s + i);
}

static void some_squares(const float *x, size_t stride, size_t rows, size_t len, const float *pivot,
                         int spread, int padded, double *s){
#define BNORM_CALL(n) group_squares(x, stride, n, len, pivot, spread, padded, s)
    BNORM_FOR_ROWS(rows, BNORM_CALL)
#undef BNORM_CALL
}

/* s[i] += sum of (x - pivot)^2 over lane i; spread: one pivot, and s is a plane_lanes. */
BNORM_INLINE void strip_squares(const float *x, size_t stride, size_t rows, size_t len, size_t tail,
                                const float *pivot, int spread, double *s) {
    for (; rows >= BNORM_GROUP; rows -= BNORM_GROUP, x += BNORM_GROUP * stride)
        group_squares(x, stride, BNORM_GROUP, len, pivot, spread, spread, s);
    if (tail)
        some_squares(x, stride, rows + 1, tail, pivot, spread, spread, s);
    if (rows)
        some_squares(x + tail, stride, rows, len - tail, spread ? pivot : pivot + tail, spread,
                     spread && !tail, s + tail);
}

/* The same in double, for values whose squares leave the range of a float. Rare: not tuned. */
static void strip_squares_wide(const float *x, size_t stride, size_t rows, size_t len, size_t tail,
                               const float *pivot, int spread, double *s) {
    for (size_t i = 0; i < len; i++) {
        const size_t count = rows + (i < tail);
        for (size_t r = 0; r < count; r += BNORM_GROUP) {
            double sums[2] = {0, 0};
            for (size_t q = 0; q < BNORM_GROUP && r + q < count; q++) {
                const double d = (double)x[(r + q) * stride + i] - (double)pivot[spread ? 0 : i];
                sums[q % 2] = fma(d, d, sums[q % 2]);
            }
            s[i] += sums[0] + sums[1];
        }
    }
}

/* Runs a strip function over the chains of c channels, chain j of channel i into lane j*c + i. Rows
 * without gaps are one strip of c*chains lanes; otherwise each chain is a strip of c lanes. */
#define BNORM_FOR_STRIPS(x, stride, rows, c, chains, call)                                         \
    do {                                                                                           \
        if ((stride) == (c)) {                                                                     \
            const size_t strip_rows = (rows) / (chains), strip_tail = (rows) % (chains) * (c);     \
            const size_t strip_len = strip_rows ? (c) * (chains) : strip_tail,                     \
                         strip_stride = (c) * (chains);                                            \
            const size_t lane = 0;                                                                 \
            const float *const strip = (x);                                                        \
            call;                                                                                  \
        } else {                                                                                   \
            for (size_t j = 0; j < (chains) && j < (rows); j++) {                                  \
                const size_t strip_rows = ((rows)-j + (chains)-1) / (chains), strip_tail = 0,      \
                             strip_len = (c);                                                      \
                const size_t strip_stride = (stride) * (chains), lane = j * (c);                   \
                const float *const strip = (x) + j * (stride);                                     \
                call;                                                                              \
            }                                                                                      \
        }                                                                                          \
    } while (0)

/* Values for which squares in float were accurate enough. */
#define BNORM_LEAST_SQUARES 0x1p-90

/* pivot[i] = sum[i]/n rounded, for c channels; writes up to BNORM_PAD floats behind them. */
BNORM_INLINE void block_pivots(const double *sum, double inverse_n, size_t c, float *pivot) {
    for (size_t i = 0; i < c; i += VEC_D)
        vec_narrow_store(pivot + i, vec_mul_d(vec_load_d_n(sum + i, lesser(VEC_D, c - i)),
                                              vec_set1_d(inverse_n)));
}

/* Whether squares of one of c channels left the range of a float. */
BNORM_INLINE int block_outside(const double *squares, size_t c) {
    unsigned outside = 0;
    for (size_t i = 0; i < c; i += VEC_D) {
        const size_t n = lesser(VEC_D, c - i);
        outside |= vec_outside_d(vec_load_d_n(squares + i, n), BNORM_LEAST_SQUARES, DBL_MAX) &
                   ((1u << n) - 1);
    }
    return outside != 0;
}

BNORM_INLINE int is_outside(double squares) {
    return !(squares >= BNORM_LEAST_SQUARES && squares <= DBL_MAX);
}

/* m2 = squares about the pivot, corrected for the pivot's rounding. */
BNORM_INLINE void block_finish(double rows, const float *pivot, size_t c, double *sum, double *m2) {
    const vec_d minus_n = vec_set1_d(-rows), minus_inverse = vec_set1_d(-(1 / rows)),
                zero = vec_set1_d(0);
    for (size_t i = 0; i < c; i += VEC_D) {
        const size_t n = lesser(VEC_D, c - i);
        const vec_d total = vec_load_d_n(sum + i, n);
        const vec_d excess = vec_fma_d(minus_n, vec_widen_n(pivot + i, n), total);
        const vec_d centred =
            vec_fma_d(excess, vec_mul_d(excess, minus_inverse), vec_load_d_n(m2 + i, n));
        vec_store_d_n(sum + i, vec_canonical_d(total), n);
        vec_store_d_n(m2 + i, vec_canonical_d(vec_if_lt_d(centred, zero, zero, centred)), n);
    }
}

/* One block of c <= BNORM_TILE channels. */
BNORM_INLINE void moments_tile(const float *x, size_t stride, size_t rows, size_t c, size_t chains,
                               double *sum, double *m2) {
    double lanes[BNORM_TILE];
    float pivot[BNORM_TILE + BNORM_PAD];
    double *const s = chains > 1 ? lanes : sum, *const s2 = chains > 1 ? lanes : m2;

    memset(s, 0, c * chains * sizeof *s);
    BNORM_FOR_STRIPS(
        x, stride, rows, c, chains,
        strip_sum(strip, strip_stride, strip_rows, strip_len, strip_tail, 0, s + lane));
    if (chains > 1) {
        fold_chains(lanes, c, chains);
        memcpy(sum, lanes, c * sizeof *sum);
    }
    block_pivots(sum, 1 / (double)rows, c, pivot);
    for (size_t j = 1; j < chains; j++)
        memcpy(pivot + j * c, pivot, c * sizeof *pivot);

    memset(s2, 0, c * chains * sizeof *s2);
    BNORM_FOR_STRIPS(x, stride, rows, c, chains,
                     strip_squares(strip, strip_stride, strip_rows, strip_len, strip_tail,
                                   pivot + lane, 0, s2 + lane));
    if (chains > 1) {
        fold_chains(lanes, c, chains);
        memcpy(m2, lanes, c * sizeof *m2);
    }
    if (block_outside(m2, c)) {
        memset(lanes, 0, c * chains * sizeof *lanes);
        BNORM_FOR_STRIPS(x, stride, rows, c, chains,
                         strip_squares_wide(strip, strip_stride, strip_rows, strip_len, strip_tail,
                                            pivot + lane, 0, lanes + lane));
        fold_chains(lanes, c, chains);
        for (size_t i = 0; i < c; i++)
            if (is_outside(m2[i]))
                m2[i] = lanes[i];
    }
    block_finish((double)rows, pivot, c, sum, m2);
}

static void moments_rows(const float *x, size_t stride, size_t rows, size_t c, size_t chains,
                         double *sum, double *m2) {
    for (size_t i = 0; i < c; i += BNORM_TILE)
        moments_tile(x + i, stride, rows, lesser(BNORM_TILE, c - i), chains, sum + i, m2 + i);
    vec_leave();
}

/* Planes that are reduced side by side, so that their second pass reads from L1. */
#define BNORM_PLANES     16
#define BNORM_PLANES_LEN 8192

static void moments_span(const float *x, size_t stride, size_t planes, size_t len, double *sum,
                         double *m2) {
    const size_t rows = len / BNORM_SPAN_LANES, tail = len % BNORM_SPAN_LANES;
    const size_t fit =
        len * BNORM_PLANES <= BNORM_PLANES_LEN ? BNORM_PLANES : BNORM_PLANES_LEN / len;
    const size_t step = fit ? fit : 1;
    plane_lanes p;
    float pivot[BNORM_PLANES + BNORM_PAD];

    for (size_t first = 0; first < planes;
         first += step, x += step * stride, sum += step, m2 += step) {
        const size_t count = lesser(step, planes - first);
        for (size_t i = 0; i < count; i++) {
            zero_plane(&p);
            strip_sum(x + i * stride, BNORM_SPAN_LANES, rows, BNORM_SPAN_LANES, tail, 1, p.lane);
            sum[i] = fold_plane(&p);
        }
        block_pivots(sum, 1 / (double)len, count, pivot);
        for (size_t i = 0; i < count; i++) {
            zero_plane(&p);
            strip_squares(x + i * stride, BNORM_SPAN_LANES, rows, BNORM_SPAN_LANES, tail, pivot + i,
                          1, p.lane);
            m2[i] = fold_plane(&p);
            if (is_outside(m2[i])) {
                zero_plane(&p);
                strip_squares_wide(x + i * stride, BNORM_SPAN_LANES, rows, BNORM_SPAN_LANES, tail,
                                   pivot + i, 1, p.lane);
                m2[i] = fold_plane(&p);
            }
        }
        block_finish((double)len, pivot, count, sum, m2);
    }
    vec_leave();
}

static void merge(size_t c, double n_before, double n_block, const double *sum,
                  const double *block_m2, double *mean, double *m2) {
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
        vec_store_d_n(
            m2 + i,
            vec_canonical_d(vec_fma_d(vec_mul_d(excess, excess), weight, vec_add_d(old_m2, q))),
            in_use);
    }
    vec_leave();
}
