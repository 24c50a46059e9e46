/* SPDX-License-Identifier: MIT
 *
 * Sums and squared deviations of a block. src/scalar/scalar.c says what, docs/numerics.md why. */

/* What a pass over a block adds up. */
enum { BNORM_SUMS = 1, BNORM_SQUARES = 2, BNORM_BOTH = 3 };

/* Sums of up to 16 rows of one vector of lanes: x (in sums.h g) in double, squares (products with
 * g) in float, even and odd rows apart. */
struct group_sums {
    vec_d low, high;
    vec_f even, odd, halves;
};

/* Ends the chains of half a group. */
BNORM_INLINE void close_half(struct group_sums *s) {
    s->halves = vec_add(s->halves, vec_add(s->even, s->odd));
    s->even = s->odd = vec_set1(0);
}

/* Adds n lanes of a row and m lanes of the row after it; m may be 0. */
BNORM_INLINE void add_pair(int wanted, struct group_sums *s, const float *a, size_t n,
                           const float *b, size_t m, vec_f pivot) {
    if ((wanted & BNORM_SUMS) && n == VEC_F && m == VEC_F) {
        vec_d a_low, a_high, b_low, b_high;
        vec_widen_both(a, &a_low, &a_high);
        vec_widen_both(b, &b_low, &b_high);
        s->low = vec_add_d(s->low, vec_add_d(a_low, b_low));
        s->high = vec_add_d(s->high, vec_add_d(a_high, b_high));
    } else if (wanted & BNORM_SUMS) {
        const vec_d low = widen_lanes(a, lesser(n, VEC_D));
        s->low = vec_add_d(s->low, m ? vec_add_d(low, widen_lanes(b, lesser(m, VEC_D))) : low);
        if (n > VEC_D) {
            const vec_d high = widen_lanes(a + VEC_D, n - VEC_D);
            s->high = vec_add_d(
                s->high, m > VEC_D ? vec_add_d(high, widen_lanes(b + VEC_D, m - VEC_D)) : high);
        }
    }
    if (wanted & BNORM_SQUARES) {
        const vec_f even = vec_sub(load_lanes(a, n), first_lanes(pivot, n));
        s->even = vec_fma(even, even, s->even);
        if (m) {
            const vec_f odd = vec_sub(load_lanes(b, m), first_lanes(pivot, m));
            s->odd = vec_fma(odd, odd, s->odd);
        }
    }
}

/* Adds `rows` rows of n lanes, and the first `extra` lanes of one more row: at most 16 rows
 * altogether. */
BNORM_INLINE void add_group(int wanted, struct group_sums *s, const float *x, size_t stride,
                            size_t rows, size_t extra, size_t n, vec_f pivot) {
    for (size_t q = 0; q + 2 <= rows; q += 2, x += 2 * stride) {
        add_pair(wanted, s, x, n, x + stride, n, pivot);
        if (q + 2 == BNORM_HALF)
            close_half(s);
    }
    if (rows % 2)
        add_pair(wanted, s, x, n, x + stride, extra, pivot);
    else if (extra)
        add_pair(wanted, s, x, extra, x, 0, pivot);
    close_half(s);
}

BNORM_INLINE struct group_sums no_sums(void) {
    const vec_f zero = vec_set1(0);
    return (struct group_sums){vec_set1_d(0), vec_set1_d(0), zero, zero, zero};
}

BNORM_INLINE struct group_sums load_group(int wanted, const double *sum) {
    struct group_sums s = no_sums();
    if (wanted & BNORM_SUMS) {
        s.low = vec_load_d(sum);
        s.high = vec_load_d(sum + VEC_D);
    }
    return s;
}

BNORM_INLINE void store_group(int wanted, const struct group_sums *s, double *sum,
                              double *squares) {
    if (wanted & BNORM_SUMS) {
        vec_store_d(sum, s->low);
        vec_store_d(sum + VEC_D, s->high);
    }
    if (wanted & BNORM_SQUARES) {
        vec_store_d(squares, vec_add_d(vec_load_d(squares), vec_low(s->halves)));
        vec_store_d(squares + VEC_D, vec_add_d(vec_load_d(squares + VEC_D), vec_high(s->halves)));
    }
}

/* The same, added to the lanes of sum and squares. Whole vectors of both are written. */
BNORM_INLINE void group_moments(int wanted, const float *x, size_t stride, size_t rows,
                                size_t extra, size_t n, vec_f pivot, double *sum, double *squares) {
    struct group_sums s = load_group(wanted, sum);
    add_group(wanted, &s, x, stride, rows, extra, n, pivot);
    store_group(wanted, &s, sum, squares);
}

/* A whole group of a line, VEC_LINE vectors side by side: chains need not wait for each other. */
BNORM_INLINE void line_moments(int wanted, int spread, const float *x, size_t stride,
                               const float *pivot, double *sum, double *squares) {
    struct group_sums s[VEC_LINE];
    vec_f p[VEC_LINE];
    BNORM_UNROLL
    for (size_t k = 0; k < VEC_LINE; k++) {
        s[k] = load_group(wanted, sum + k * VEC_F);
        p[k] = !(wanted & BNORM_SQUARES) ? vec_set1(0)
               : spread                  ? vec_set1(*pivot)
                                         : vec_load(pivot + k * VEC_F);
    }
    BNORM_UNROLL_SOME
    for (size_t q = 0; q < BNORM_GROUP; q += 2, x += 2 * stride) {
        if (wanted & BNORM_SUMS) {
            vec_fetch(x + fetch_distance(stride));
            vec_fetch(x + fetch_distance(stride) + stride);
        }
        BNORM_UNROLL
        for (size_t k = 0; k < VEC_LINE; k++)
            add_pair(wanted, &s[k], x + k * VEC_F, VEC_F, x + stride + k * VEC_F, VEC_F, p[k]);
        if ((q + 2) % BNORM_HALF == 0) {
            BNORM_UNROLL
            for (size_t k = 0; k < VEC_LINE; k++)
                close_half(&s[k]);
        }
    }
    BNORM_UNROLL
    for (size_t k = 0; k < VEC_LINE; k++)
        store_group(wanted, &s[k], sum + k * VEC_F, squares + k * VEC_F);
}

/* A matrix of `rows` whole rows of `len` lanes, and one tail row of which only the first `tail`
 * lanes exist. Each lane is one chain of one channel. */
struct strip {
    const float *x;
    size_t stride, rows, len, tail;
};

/* Adds a strip to its lanes; spread: one pivot for all lanes. */
BNORM_INLINE void strip_moments(int wanted, int spread, const struct strip *s, const float *pivot,
                                double *sum, double *squares) {
    const vec_f none = vec_set1(0),
                all = spread && (wanted & BNORM_SQUARES) ? vec_set1(*pivot) : none;
#define BNORM_PIVOT(i) (!(wanted & BNORM_SQUARES) ? none : spread ? all : vec_load(pivot + (i)))
    const size_t len = spread ? BNORM_SPAN_LANES : s->len;
    const float *x = s->x;
    size_t rows = s->rows;
    for (; rows >= BNORM_GROUP; rows -= BNORM_GROUP, x += BNORM_GROUP * s->stride) {
        size_t i = 0;
        for (; i + VEC_LINE * VEC_F <= len; i += VEC_LINE * VEC_F)
            line_moments(wanted, spread, x + i, s->stride, spread ? pivot : pivot + i, sum + i,
                         squares + i);
        for (; i < len; i += VEC_F)
            group_moments(wanted, x + i, s->stride, BNORM_GROUP, 0, lesser(VEC_F, len - i),
                          BNORM_PIVOT(i), sum + i, squares + i);
    }
    for (size_t i = 0; i < (rows ? len : s->tail); i += VEC_F) {
        const size_t n = lesser(VEC_F, len - i),
                     extra = i < s->tail ? lesser(VEC_F, s->tail - i) : 0;
        if (spread || n == VEC_F)
            group_moments(wanted, x + i, s->stride, rows, extra, VEC_F, BNORM_PIVOT(i), sum + i,
                          squares + i);
        else
            group_moments(wanted, x + i, s->stride, rows, extra, n, BNORM_PIVOT(i), sum + i,
                          squares + i);
    }
#undef BNORM_PIVOT
}

/* Rows of a block as they lie in memory. */
struct rows {
    const void *x;
    bnorm_dtype type;
    size_t stride, count;
};

BNORM_INLINE struct rows rows_from(const struct rows *r, size_t i) {
    return (struct rows){element_at(r->x, r->type, i), r->type, r->stride, r->count};
}

/* One copy of each for floats and for what is widened. */
static void strip_both(const struct strip *s, const float *pivot, double *sum, double *squares) {
    strip_moments(BNORM_BOTH, 0, s, pivot, sum, squares);
}

static void strip_squares(const struct strip *s, const float *pivot, double *squares) {
    strip_moments(BNORM_SQUARES, 0, s, pivot, squares, squares);
}

/* Lanes that are widened side by side. */
#define BNORM_WIDE_LANES 64

/* Rows of a strip that are widened at a time: whole groups, and room for the tail row. */
BNORM_INLINE size_t wide_rows(size_t lanes) {
    const size_t groups = BNORM_STAGE / BNORM_GROUP / lanes;
    return (groups ? groups : 1) * BNORM_GROUP;
}
#define BNORM_WIDE (BNORM_STAGE + BNORM_WIDE_LANES + 16)

/* A strip of `rows` rows of `len` lanes and a tail of another one, of any type. */
BNORM_INLINE void typed_strip(int wanted, const struct rows *r, size_t len, size_t tail,
                              const float *pivot, double *sum, double *squares) {
    float wide[BNORM_WIDE];
    if (r->type == BNORM_F32) {
        const struct strip s = {r->x, r->stride, r->count, len, tail};
        if (wanted == BNORM_BOTH)
            strip_both(&s, pivot, sum, squares);
        else
            strip_squares(&s, pivot, squares);
        return;
    }
    for (size_t i = 0; i < len; i += BNORM_WIDE_LANES) {
        const size_t lanes = lesser(BNORM_WIDE_LANES, len - i), step = wide_rows(lanes);
        size_t row = 0;
        do {
            const size_t count = lesser(step, r->count - row);
            const int last = row + count == r->count;
            const size_t extra = last && tail > i ? lesser(lanes, tail - i) : 0;
            const struct strip s = {wide, lanes, count, lanes, extra};
            const void *const from = element_at(r->x, r->type, row * r->stride + i);
            widen_rows(wide, from, r->type, NULL, r->stride, count, lanes, 0);
            if (extra)
                widen(wide + count * lanes, element_at(from, r->type, count * r->stride), r->type,
                      NULL, extra, 0);
            if (wanted == BNORM_BOTH)
                strip_both(&s, pivot + i, sum + i, squares + i);
            else
                strip_squares(&s, pivot + i, squares + i);
            row += count;
        } while (row < r->count);
    }
}

/* Lanes that slices of channels share a second pass in, and room for those of their chains. */
#define BNORM_SLICE      64
#define BNORM_SLICE_ROOM (BNORM_MAX_LANES + BNORM_SLICE + BNORM_PAD)

/* Rows of x and g that lie at some distance; g NULL = x - center. */
struct pair_rows {
    const float *x, *g;
    size_t x_stride, g_stride;
};

BNORM_INLINE vec_d add_double_row(struct pair_rows r, size_t row, size_t n, const float *center,
                                  vec_d sum) {
    const vec_d d = vec_sub_d(widen_lanes(r.x + row * r.x_stride, n), widen_lanes(center, n));
    return vec_fma_d(r.g ? widen_lanes(r.g + row * r.g_stride, n) : d, d, sum);
}

/* Sums of g*(x - center) in double, for where those of floats would leave their range or vanish: of
 * up to 16 rows of n <= VEC_D lanes, and of the first `extra` lanes of one more row; even and odd
 * rows apart. */
BNORM_INLINE vec_d double_group(struct pair_rows r, size_t rows, size_t n, size_t extra,
                                const float *center) {
    vec_d even = vec_set1_d(0), odd = even;
    size_t q = 0;
    for (; q + 2 <= rows; q += 2) {
        even = add_double_row(r, q, n, center, even);
        odd = add_double_row(r, q + 1, n, center, odd);
    }
    if (rows % 2) {
        even = add_double_row(r, q, n, center, even);
        if (extra)
            odd = add_double_row(r, q + 1, extra, center, odd);
    } else if (extra) {
        even = add_double_row(r, q, extra, center, even);
    }
    return vec_add_d(even, odd);
}

/* Adds up to 16 rows of n lanes to as many lanes of `sums`; writes up to a vector more. */
BNORM_INLINE void double_lanes(struct pair_rows r, size_t rows, size_t n, const float *center,
                               double *sums) {
    for (size_t i = 0; i < n; i += VEC_D) {
        const struct pair_rows here = {r.x + i, r.g ? r.g + i : NULL, r.x_stride, r.g_stride};
        const size_t lanes = lesser(VEC_D, n - i);
        const vec_d sum = lanes == VEC_D ? double_group(here, rows, VEC_D, 0, center + i)
                                         : double_group(here, rows, lanes, 0, center + i);
        vec_store_d(sums + i, vec_add_d(vec_load_d(sums + i), sum));
    }
}

/* Elements of a plane that are a group of its lanes. */
#define BNORM_GROUP_SPAN (BNORM_GROUP * BNORM_SPAN_LANES)

/* Adds the first `count` of them; g NULL as above. */
BNORM_INLINE void double_span(const float *x, const float *g, size_t count, float center,
                              double *lanes) {
    const size_t rows = count / BNORM_SPAN_LANES, tail = count % BNORM_SPAN_LANES;
    float centers[VEC_F];
    vec_store(centers, vec_set1(center));
    for (size_t i = 0; i < BNORM_SPAN_LANES; i += VEC_D) {
        const struct pair_rows here = {x + i, g ? g + i : NULL, BNORM_SPAN_LANES, BNORM_SPAN_LANES};
        const size_t extra = tail > i ? lesser(VEC_D, tail - i) : 0;
        const vec_d sum = double_group(here, rows, VEC_D, extra, centers);
        vec_store_d(lanes + i, vec_add_d(vec_load_d(lanes + i), sum));
    }
}

/* The squares of a plane. */
BNORM_RARE double double_plane(const float *x, size_t len, float pivot) {
    double lanes[BNORM_SPAN_LANES];
    zero_lanes(lanes, BNORM_SPAN_LANES);
    for (size_t i = 0; i < len; i += BNORM_GROUP_SPAN)
        double_span(x + i, NULL, lesser(BNORM_GROUP_SPAN, len - i), pivot, lanes);
    return fold_scalars(lanes, BNORM_SPAN_LANES);
}

/* Every `chains`th row from row j on. */
BNORM_INLINE struct rows chain_rows(const struct rows *r, size_t chains, size_t j) {
    return (struct rows){element_at(r->x, r->type, j * r->stride), r->type, r->stride * chains,
                         j < r->count ? (r->count - j + chains - 1) / chains : 0};
}

/* The squares of n <= BNORM_SLICE channels, in double; writes up to a vector more. */
static void double_squares(const struct rows *r, size_t chains, size_t n, const float *pivot,
                           double *squares) {
    float wide[BNORM_GROUP * BNORM_SLICE + VEC_F];
    zero_lanes(squares, n * chains + VEC_D);
    for (size_t j = 0; j < chains; j++) {
        const struct rows chain = chain_rows(r, chains, j);
        for (size_t row = 0; row < chain.count; row += BNORM_GROUP) {
            const size_t count = lesser(BNORM_GROUP, chain.count - row);
            const void *const x = element_at(chain.x, chain.type, row * chain.stride);
            struct pair_rows these = {wide, NULL, n, 0};
            if (chain.type == BNORM_F32)
                these = (struct pair_rows){x, NULL, chain.stride, 0};
            else
                widen_rows(wide, x, chain.type, NULL, chain.stride, count, n, 0);
            double_lanes(these, count, n, pivot, squares + j * n);
        }
    }
    fold_chains(squares, n, chains);
}

/* Adds the chains of c channels, chain j of channel i in lane j*c + i. Rows without gaps are one
 * strip of c*chains lanes; otherwise each chain is a strip of c lanes. */
BNORM_INLINE void add_chains(int wanted, const struct rows *r, size_t c, size_t chains,
                             const float *pivot, double *sum, double *squares) {
    if (chains == 1 || r->stride == c) {
        const size_t whole = r->count / chains, tail = r->count % chains * c;
        const struct rows joined = {r->x, r->type, r->stride * chains, whole};
        typed_strip(wanted, &joined, whole ? c * chains : tail, tail, pivot, sum, squares);
        return;
    }
    for (size_t j = 0; j < chains && j < r->count; j++) {
        const struct rows chain = chain_rows(r, chains, j);
        typed_strip(wanted, &chain, c, 0, pivot + j * c, sum + j * c, squares + j * c);
    }
}

/* The mean of a sample of up to 16 rows. Its error costs little accuracy; see distant(). */
BNORM_INLINE void sample_lanes(size_t samples, const struct rows *x, const size_t *row, size_t i,
                               size_t n, float *pivot) {
    vec_f v[BNORM_SAMPLES];
    if (x->type == BNORM_F32) {
        BNORM_UNROLL
        for (size_t j = 0; j < samples; j++)
            v[j] = load_lanes((const float *)x->x + row[j] + i, n);
    } else {
        for (size_t j = 0; j < samples; j++)
            v[j] = widened_lanes(element_at(x->x, x->type, row[j] + i), x->type, n);
    }
    for (size_t half = samples / 2; half > 0; half /= 2)
        for (size_t j = 0; j < half; j++)
            v[j] = vec_add(v[j], v[half + j]);
    vec_store(pivot, vec_mul(v[0], vec_set1(1 / (float)samples)));
}

BNORM_INLINE void sample_pivots(const struct rows *x, size_t c, float *pivot) {
    const size_t samples = bnorm_samples(x->count);
    size_t row[BNORM_SAMPLES], i = 0;
    for (size_t j = 0; j < samples; j++)
        row[j] = j * x->count / samples * x->stride;
    if (samples == BNORM_SAMPLES)
        for (; i + VEC_F <= c; i += VEC_F)
            sample_lanes(BNORM_SAMPLES, x, row, i, VEC_F, pivot + i);
    for (; i < c; i += VEC_F)
        sample_lanes(samples, x, row, i, lesser(VEC_F, c - i), pivot + i);
}

/* What the sum exceeds n*pivot by. */
BNORM_INLINE vec_d pivot_excess(double n, const float *pivot, vec_d sum) {
    return vec_fma_d(vec_set1_d(-n), vec_widen(pivot), sum);
}

/* Lanes whose pivot is too far from the mean, by more than a deviation: the difference of squares
 * and excess^2/n would lose digits. */
BNORM_INLINE unsigned distant(double n, vec_d excess, vec_d squares) {
    const vec_d t = vec_fma_d(vec_mul_d(excess, vec_set1_d(-1 / n)), excess,
                              vec_mul_d(squares, vec_set1_d(0.5)));
    return vec_outside_d(t, 0, DBL_MAX);
}

/* Replaces the pivots of channels [0, c) that are too far by the mean; how many there were. */
BNORM_INLINE unsigned replace_pivots(double n, size_t c, const double *sum, const double *squares,
                                     float *pivot) {
    unsigned any = 0;
    for (size_t i = 0; i < c; i += VEC_D) {
        const vec_d total = vec_load_d(sum + i);
        unsigned bits = distant(n, pivot_excess(n, pivot + i, total), vec_load_d(squares + i));
        if (c - i < VEC_D)
            bits &= (1u << (c - i)) - 1;
        any |= bits;
        for (size_t j = 0; bits; j++, bits >>= 1)
            if (bits & 1)
                pivot[i + j] = (float)(sum[i + j] * (1 / n));
    }
    return any;
}

/* Values for which squares in float were accurate enough. */
#define BNORM_LEAST_SQUARES 0x1p-90

BNORM_INLINE unsigned inaccurate_squares(vec_d squares, size_t n) {
    const unsigned first_n = (1u << lesser(VEC_D, n)) - 1;
    return vec_outside_d(squares, BNORM_LEAST_SQUARES, DBL_MAX) & first_n;
}

/* Lanes of `to` whose bits are set. */
BNORM_INLINE void replace_lanes(unsigned bits, const double *from, double *to) {
    for (size_t i = 0; bits; i++, bits >>= 1)
        if (bits & 1)
            to[i] = from[i];
}

/* Replaces those of c channels that are not, channels side by side together. */
BNORM_RARE void squares_again(const struct rows *x, size_t chains, size_t c, const float *pivot,
                              double *squares) {
    for (size_t i = 0, n; i < c; i += n ? n : VEC_D) {
        for (n = 0; n < BNORM_SLICE && i + n < c; n += VEC_D)
            if (!inaccurate_squares(vec_load_d(squares + i + n), c - i - n))
                break;
        if (n) {
            const struct rows channels = rows_from(x, i);
            double again[BNORM_SLICE_ROOM];
            double_squares(&channels, chains, lesser(n, c - i), pivot + i, again);
            for (size_t j = i; j < i + n; j += VEC_D)
                replace_lanes(inaccurate_squares(vec_load_d(squares + j), c - j), again + (j - i),
                              squares + j);
        }
    }
}

/* m2 = squares about the pivot, corrected for the pivot's distance from the mean. */
BNORM_INLINE vec_d centred_squares(double n, vec_d excess, vec_d squares) {
    const vec_d zero = vec_set1_d(0);
    const vec_d m2 = vec_fma_d(excess, vec_mul_d(excess, vec_set1_d(-1 / n)), squares);
    return vec_canonical_d(vec_if_lt_d(m2, zero, zero, m2));
}

/* Sum and M2 of c channels; not 0 where squares are not accurate enough. */
BNORM_INLINE unsigned store_moments(double n, const double *sums, const double *squares,
                                    const float *pivot, size_t c, double *sum, double *m2) {
    unsigned bits = 0;
    for (size_t i = 0; i < c; i += VEC_D) {
        const size_t in_use = lesser(VEC_D, c - i);
        const vec_d total = vec_load_d(sums + i), s = vec_load_d(squares + i);
        bits |= inaccurate_squares(s, in_use);
        vec_store_d_n(sum + i, vec_canonical_d(total), in_use);
        vec_store_d_n(m2 + i, centred_squares(n, pivot_excess(n, pivot + i, total), s), in_use);
    }
    return bits;
}

/* One block of c <= BNORM_TILE channels, of which the first `valid` are wanted. */
BNORM_INLINE void moments_tile(const struct rows *x, size_t c, size_t valid, size_t chains,
                               double *sum, double *m2) {
    double sums[BNORM_TILE + BNORM_PAD], squares[BNORM_TILE + BNORM_PAD];
    float pivot[BNORM_TILE + BNORM_PAD];
    const size_t lanes = c * chains, slice = chains > 1 ? c : BNORM_SLICE;
    const double n = (double)x->count;

    zero_lanes(sums, lanes + BNORM_PAD);
    zero_lanes(squares, lanes + BNORM_PAD);
    sample_pivots(x, c, pivot);
    repeat_lanes(pivot, c, chains);
    add_chains(BNORM_BOTH, x, c, chains, pivot, sums, squares);
    fold_chains(sums, c, chains);
    fold_chains(squares, c, chains);

    for (size_t i = 0; i < valid; i += slice) {
        const size_t count = lesser(slice, c - i);
        const struct rows these = rows_from(x, i);
        if (!replace_pivots(n, lesser(slice, valid - i), sums + i, squares + i, pivot + i))
            continue;
        repeat_lanes(pivot + i, count, chains);
        zero_lanes(squares + i, count * chains);
        add_chains(BNORM_SQUARES, &these, count, chains, pivot + i, sums, squares + i);
        fold_chains(squares + i, count, chains);
    }
    if (store_moments(n, sums, squares, pivot, valid, sum, m2)) {
        squares_again(x, chains, valid, pivot, squares);
        store_moments(n, sums, squares, pivot, valid, sum, m2);
    }
}

/* Padding of rows without gaps is added up too, for nothing. */
static void moments_rows(const bnorm_block_args *a, size_t chains, double *sum, double *m2) {
    const struct rows x = {a->x, a->type, a->stride, a->runs};
    const size_t c = a->stride == a->len ? a->len : a->valid;
    for (size_t i = 0; i < a->valid; i += BNORM_TILE) {
        const struct rows tile = rows_from(&x, i);
        moments_tile(&tile, lesser(BNORM_TILE, c - i), lesser(BNORM_TILE, a->valid - i), chains,
                     sum + i, m2 + i);
    }
    vec_leave();
}

/* Elements of planes that are reduced side by side, so that their second pass reads from L1. */
#define BNORM_PLANES_LEN 4096

/* Adds up one plane, sums or squares; the lanes are folded to one vector. */
BNORM_INLINE vec_d plane_moments(int wanted, const float *x, size_t len, const float *pivot) {
    const struct strip s = {x, BNORM_SPAN_LANES, len / BNORM_SPAN_LANES, BNORM_SPAN_LANES,
                            len % BNORM_SPAN_LANES};
    plane_lanes lanes;
    vec_d v[BNORM_SPAN_LANES / VEC_D];
    if (s.rows < BNORM_GROUP) {
        /* One group: no need to keep the lanes in memory. */
        const vec_f all = wanted & BNORM_SQUARES ? vec_set1(*pivot) : vec_set1(0);
        BNORM_UNROLL
        for (size_t i = 0; i < BNORM_SPAN_LANES; i += VEC_F) {
            struct group_sums g = no_sums();
            const size_t extra = i < s.tail ? lesser(VEC_F, s.tail - i) : 0;
            add_group(wanted, &g, x + i, BNORM_SPAN_LANES, s.rows, extra, VEC_F, all);
            v[i / VEC_D] = wanted & BNORM_SQUARES ? vec_low(g.halves) : g.low;
            v[i / VEC_D + 1] = wanted & BNORM_SQUARES ? vec_high(g.halves) : g.high;
        }
        return fold_vectors(v);
    }
    zero_plane(&lanes);
    strip_moments(wanted, 1, &s, pivot, lanes.lane, lanes.lane);
    return fold_plane(&lanes);
}

static void moments_planes(const float *x, size_t stride, size_t planes, size_t len, double *sum,
                           double *m2) {
    const size_t fit = BNORM_PLANES_LEN / len, step = fit > VEC_D ? VEC_D : fit ? fit : 1;
    const double n = (double)len;
    vec_d v[VEC_D];
    float pivot[VEC_D];

    for (size_t i = 0; i < VEC_D; i++)
        v[i] = vec_set1_d(0);
    for (size_t first = 0; first < planes; first += step, x += step * stride) {
        const size_t count = lesser(step, planes - first);
        for (size_t i = 0; i < count; i++)
            v[i] = plane_moments(BNORM_SUMS, x + i * stride, len, NULL);
        const vec_d total = vec_fold_d(v);
        vec_narrow_store(pivot, vec_mul_d(total, vec_set1_d(1 / n)));
        for (size_t i = 0; i < count; i++)
            v[i] = plane_moments(BNORM_SQUARES, x + i * stride, len, pivot + i);
        vec_d squares = vec_fold_d(v);
        unsigned bits = inaccurate_squares(squares, count);
        if (bits) {
            double t[VEC_D];
            vec_store_d(t, squares);
            for (size_t i = 0; bits; i++, bits >>= 1)
                if (bits & 1)
                    t[i] = double_plane(x + i * stride, len, pivot[i]);
            squares = vec_load_d(t);
        }
        vec_store_d_n(sum + first, vec_canonical_d(total), count);
        vec_store_d_n(m2 + first, centred_squares(n, pivot_excess(n, pivot, total), squares),
                      count);
    }
}

static void moments_span(const bnorm_block_args *a, double *sum, double *m2) {
    if (a->type == BNORM_F32) {
        moments_planes(a->x, a->stride, a->runs, a->len, sum, m2);
    } else {
        float wide[BNORM_PLANES_LEN + VEC_F];
        const size_t fit = BNORM_PLANES_LEN / a->len;
        for (size_t r = 0; r < a->runs; r += fit) {
            const size_t count = lesser(fit, a->runs - r);
            widen_rows(wide, element_at(a->x, a->type, r * a->stride), a->type, NULL, a->stride,
                       count, a->len, 0);
            moments_planes(wide, a->len, count, a->len, sum + r, m2 + r);
        }
    }
    vec_leave();
}
