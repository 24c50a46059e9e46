/* SPDX-License-Identifier: MIT
 *
 * The scalar kernel set: the readable specification of every kernel, bit for bit. It shares no code
 * with the SIMD templates, so that a bug there can't hide here. docs/numerics.md explains the order
 * of the sums. */
#include "../base.h"

#include "../../dispatch/isa.h"
#include "../fma.h"
#include "../order.h"

#include <float.h>
#include <math.h>
#include <stdint.h>
#include <string.h>

#if BNORM_SLEEF
#include "smooth.h"
#else
/* Never called: the drivers refuse these activations. */
static float smooth_value(const bnorm_act *act, float v) {
    (void)act;
    return v;
}
static float smooth_slope(const bnorm_act *act, float v) {
    (void)act, (void)v;
    return 1;
}
#endif

/* Small functions called from many loops: compilers leave some of them out of line by their size. */
#define ALWAYS_INLINE static inline __attribute__((always_inline))

/* Every NaN that bnorm writes is this one, so that the bits do not depend on how a CPU propagates
 * payloads. */
static float canonical(float v) {
    const unsigned bits = 0xffffffffu;
    float nan_value;
    memcpy(&nan_value, &bits, sizeof nan_value);
    return v == v ? v : nan_value;
}

static double canonical_double(double v) {
    const unsigned long long bits = 0xffffffffffffffffu;
    double nan_value;
    memcpy(&nan_value, &bits, sizeof nan_value);
    return v == v ? v : nan_value;
}

/* ---------------------------------------------------------------------------------------------- */
/* Elements of all types */

static float float_of(uint32_t bits) {
    float v;
    memcpy(&v, &bits, sizeof v);
    return v;
}

static uint32_t bits_of(float v) {
    uint32_t bits;
    memcpy(&bits, &v, sizeof bits);
    return bits;
}

/* The upper bits of a number whose lower `drop` bits are rounded off, to nearest even. */
static uint32_t round_off(uint32_t bits, unsigned drop) {
    const uint32_t half = (uint32_t)1 << (drop - 1);
    return (bits + half - 1 + (bits >> drop & 1)) >> drop;
}

static uint16_t to_bf16(float v) {
    return v == v ? (uint16_t)round_off(bits_of(v), 16) : 0xffff;
}

/* Sign, 5 bits of exponent (bias 15), 10 of fraction. */
static float from_f16(uint16_t h) {
    const uint32_t sign = (uint32_t)(h & 0x8000) << 16, exponent = h >> 10 & 31,
                   fraction = h & 1023;
    if (exponent == 31)
        return float_of(sign | 0x7f800000 | fraction << 13);
    if (exponent == 0) { /* a multiple of 2^-24 */
        const float v = (float)fraction * 0x1p-24f;
        return sign ? -v : v;
    }
    return float_of(sign | (exponent + 112) << 23 | fraction << 13);
}

static uint16_t to_f16(float v) {
    const uint32_t bits = bits_of(v), sign = bits >> 16 & 0x8000, size = bits & 0x7fffffff;
    if (v != v)
        return 0xffff;
    if (size >= 0x47800000) /* 65536 */
        return (uint16_t)(sign | 0x7c00);
    if (size >= 0x38800000) /* 2^-14; rounding up may reach infinity */
        return (uint16_t)(sign | round_off(size - (112u << 23), 13));
    if (size < 0x33000000) /* 2^-25 */
        return (uint16_t)sign;
    /* A multiple of 2^-24: the fraction with its hidden bit, shifted. */
    return (uint16_t)(sign | round_off((size & 0x7fffff) | 0x800000, 126 - (size >> 23)));
}

/* For types that are not quantized. */
static const bnorm_quant no_quant = {1, 0};

static float lower_limit(bnorm_dtype type) {
    return type == BNORM_S8 ? -128 : 0;
}

static float upper_limit(bnorm_dtype type) {
    return type == BNORM_S8 ? 127 : 255;
}

static float load_converted(const void *data, bnorm_dtype type, const bnorm_quant *quant,
                            size_t i) {
    switch (type) {
    case BNORM_F32:
        break;
    case BNORM_BF16:
        return float_of((uint32_t)((const uint16_t *)data)[i] << 16);
    case BNORM_F16:
        return from_f16(((const uint16_t *)data)[i]);
    case BNORM_S8:
        return (float)(((const int8_t *)data)[i] - quant->zero_point) * quant->scale;
    case BNORM_U8:
        return (float)(((const uint8_t *)data)[i] - quant->zero_point) * quant->scale;
    }
    return 0;
}

/* Element i; quant is that of S8 and U8. Inline for floats, which are most. */
ALWAYS_INLINE float load(const void *data, bnorm_dtype type, const bnorm_quant *quant, size_t i) {
    return type == BNORM_F32 ? ((const float *)data)[i] : load_converted(data, type, quant, i);
}

/* v/scale, to the nearest whole number, ties to even. */
static float quantize(bnorm_dtype type, const bnorm_quant *quant, float v) {
    const float steps = v / quant->scale, whole = steps == steps ? rintf(steps) : 0;
    const float q = whole + (float)quant->zero_point;
    if (q <= lower_limit(type))
        return lower_limit(type);
    return q >= upper_limit(type) ? upper_limit(type) : q;
}

static void store_converted(void *data, bnorm_dtype type, const bnorm_quant *quant, size_t i,
                            float v) {
    switch (type) {
    case BNORM_F32:
        break;
    case BNORM_BF16:
        ((uint16_t *)data)[i] = to_bf16(v);
        break;
    case BNORM_F16:
        ((uint16_t *)data)[i] = to_f16(v);
        break;
    case BNORM_S8:
        ((int8_t *)data)[i] = (int8_t)quantize(type, quant, v);
        break;
    case BNORM_U8:
        ((uint8_t *)data)[i] = (uint8_t)quantize(type, quant, v);
        break;
    }
}

ALWAYS_INLINE void store(void *data, bnorm_dtype type, const bnorm_quant *quant, size_t i,
                         float v) {
    if (type == BNORM_F32)
        ((float *)data)[i] = canonical(v);
    else
        store_converted(data, type, quant, i, v);
}

static size_t bit_of(const bnorm_bits *mask, size_t r, size_t i) {
    return mask->at + r * mask->row_stride + i;
}

static float load_bit(const bnorm_bits *mask, size_t r, size_t i) {
    const size_t n = bit_of(mask, r, i);
    return (float)(mask->bits[n / 8] >> n % 8 & 1);
}

/* Other threads may write the other bits of the byte. */
static void store_bit(const bnorm_bits *mask, size_t r, size_t i, int bit) {
    const size_t n = bit_of(mask, r, i);
    unsigned char *const byte = mask->bits + n / 8;
#if __GCC_ATOMIC_CHAR_LOCK_FREE == 2
    const unsigned char own = (unsigned char)(1u << n % 8);
    if (bit)
        __atomic_fetch_or(byte, own, __ATOMIC_RELAXED);
    else
        __atomic_fetch_and(byte, (unsigned char)~own, __ATOMIC_RELAXED);
#else /* RISC-V (little-endian) has atomics of words, which never cross a page */
    const size_t within = (uintptr_t)byte % 4;
    uint32_t *const word = (uint32_t *)(void *)(byte - within);
    const uint32_t own = (uint32_t)1 << (8 * within + n % 8);
    if (bit)
        __atomic_fetch_or(word, own, __ATOMIC_RELAXED);
    else
        __atomic_fetch_and(word, ~own, __ATOMIC_RELAXED);
#endif
}

/* ---------------------------------------------------------------------------------------------- */
/* Reductions. Chain j of a channel holds rows j, j + chains, j + 2*chains, ...; what the chains add
 * up to is folded, upper half onto lower half. */

struct chain {
    const bnorm_block_args *block;
    size_t first; /* element */
    size_t step;  /* elements from one member to the next */
    size_t count; /* members */
};

static float member(struct chain chain, size_t q) {
    return load(chain.block->x, chain.block->type, &no_quant, chain.first + q * chain.step);
}

/* A channel of a block. */
struct channel {
    const bnorm_block_args *block;
    size_t first, step, count;
};

static struct chain chain_of(struct channel x, size_t chains, size_t j) {
    struct chain chain = {x.block, x.first + j * x.step, x.step * chains, 0};
    if (j < x.count)
        chain.count = (x.count - j + chains - 1) / chains;
    return chain;
}

static double fold(double *partial, size_t chains) {
    for (size_t half = chains / 2; half > 0; half /= 2)
        for (size_t j = 0; j < half; j++)
            partial[j] += partial[j + half];
    return partial[0];
}

/* In double, by pairs. */
static double chain_sum(struct chain chain) {
    double sum = 0;
    for (size_t q = 0; q < chain.count; q += 2) {
        const double next = q + 1 < chain.count ? (double)member(chain, q + 1) : 0;
        sum += (double)member(chain, q) + next;
    }
    return sum;
}

/* Where row i of a group is added: even rows and odd rows of each half are a chain of fma. */
static size_t place_of(size_t i) {
    return i / BNORM_HALF * 2 + i % 2;
}

static float add_places(const float place[4]) {
    const float first = place[0] + place[1], second = place[2] + place[3];
    return first + second;
}

/* In groups of 16: the squares of a group in float, in four chains. */
static double chain_squares(struct chain chain, float pivot) {
    double sum = 0;
    for (size_t q = 0; q < chain.count; q += BNORM_GROUP) {
        float squares[4] = {0, 0, 0, 0};
        for (size_t i = 0; i < BNORM_GROUP && q + i < chain.count; i++) {
            const float d = member(chain, q + i) - pivot;
            squares[place_of(i)] = bnorm_fmaf(d, d, squares[place_of(i)]);
        }
        sum += (double)add_places(squares);
    }
    return sum;
}

/* The same in double, for groups whose squares leave the range of a float. */
static double chain_squares_wide(struct chain chain, float pivot) {
    double sum = 0;
    for (size_t q = 0; q < chain.count; q += BNORM_GROUP) {
        double squares[2] = {0, 0};
        for (size_t i = 0; i < BNORM_GROUP && q + i < chain.count; i++) {
            const double d = (double)member(chain, q + i) - (double)pivot;
            squares[i % 2] = bnorm_fma(d, d, squares[i % 2]);
        }
        sum += squares[0] + squares[1];
    }
    return sum;
}

typedef double chain_function(struct chain chain, float pivot);

static double all_squares(chain_function *squares, struct channel x, size_t chains, float pivot) {
    double partial[BNORM_SPAN_LANES] = {0};
    for (size_t j = 0; j < chains; j++)
        partial[j] = squares(chain_of(x, chains, j), pivot);
    return fold(partial, chains);
}

/* The mean of up to 16 rows, spread over the block. */
static float sample_mean(struct channel x) {
    const size_t samples = bnorm_samples(x.count);
    float v[BNORM_SAMPLES];
    for (size_t j = 0; j < samples; j++)
        v[j] = member(chain_of(x, 1, j * x.count / samples), 0);
    for (size_t half = samples / 2; half > 0; half /= 2)
        for (size_t j = 0; j < half; j++)
            v[j] = v[j] + v[j + half];
    return v[0] * (1 / (float)samples);
}

/* Sum and sum of squared deviations of one channel's block: squares about a pivot, corrected for
 * the pivot's distance from the mean, excess/n. The pivot is the mean rounded to float, or what a
 * sample gives if that is within a deviation of the mean. */
static void moments_channel(struct channel x, size_t chains, const float *sample, double *sum,
                            double *m2) {
    double partial[BNORM_SPAN_LANES] = {0};
    const double n = (double)x.count;

    for (size_t j = 0; j < chains; j++)
        partial[j] = chain_sum(chain_of(x, chains, j));
    const double total = fold(partial, chains);

    float pivot = sample ? *sample : (float)(total * (1 / n));
    double squares = all_squares(chain_squares, x, chains, pivot);
    double excess = bnorm_fma(-n, (double)pivot, total);
    if (sample) {
        const double margin = bnorm_fma(excess * (-1 / n), excess, squares * 0.5);
        if (!(margin >= 0 && margin <= DBL_MAX)) {
            pivot = (float)(total * (1 / n));
            squares = all_squares(chain_squares, x, chains, pivot);
            excess = bnorm_fma(-n, (double)pivot, total);
        }
    }
    /* Over- or underflow in float, or a NaN, or a constant. */
    if (!(squares >= 0x1p-90 && squares <= DBL_MAX))
        squares = all_squares(chain_squares_wide, x, chains, pivot);

    const double centred = bnorm_fma(excess, excess * (-1 / n), squares);
    *sum = canonical_double(total);
    *m2 = canonical_double(centred < 0 ? 0 : centred);
}

static void moments_rows(const bnorm_block_args *a, size_t chains, double *sum, double *m2) {
    for (size_t i = 0; i < a->valid; i++) {
        const struct channel x = {a, i, a->stride, a->runs};
        const float sample = sample_mean(x);
        moments_channel(x, chains, &sample, &sum[i], &m2[i]);
    }
}

static void moments_span(const bnorm_block_args *a, double *sum, double *m2) {
    for (size_t i = 0; i < a->runs; i++) {
        const struct channel x = {a, i * a->stride, 1, a->len};
        moments_channel(x, BNORM_SPAN_LANES, NULL, &sum[i], &m2[i]);
    }
}

/* Rows [r, r + rows) of one channel: sums, and squares about the mean of two halves. */
static void tree_sums(const bnorm_block_args *a, size_t i, size_t r, size_t rows, double *sum,
                      double *m2) {
    double left, right, left_m2, right_m2;
    if (rows == 1) {
        *sum = (double)load(a->x, a->type, &no_quant, r * a->stride + i);
        *m2 = 0;
        return;
    }
    tree_sums(a, i, r, rows / 2, &left, &left_m2);
    tree_sums(a, i, r + rows / 2, rows / 2, &right, &right_m2);
    const double d = right - left;
    *sum = left + right;
    const double between = d * d * (1 / (double)rows); /* by a power of two: exact */
    *m2 = between + (left_m2 + right_m2);
}

static void moments_tree(const bnorm_block_args *a, double *sum, double *m2) {
    for (size_t i = 0; i < a->valid; i++) {
        double total, squares;
        tree_sums(a, i, 0, a->runs, &total, &squares);
        sum[i] = canonical_double(total);
        m2[i] = canonical_double(squares + (total - total)); /* NaN where an infinity is */
    }
}

/* What a tree is made of: statistics of n values. */
struct node {
    double sum, m2, n;
};

/* Chan, Golub, LeVeque: "Updating formulae and a pairwise algorithm for computing sample variances"
 * (1979), with excess = b.n*(mean of b - mean of a). It is exactly 0 for equal means, and sums that
 * fit into a double stay exact. */
static struct node pair_of(struct node a, struct node b) {
    const double excess = a.n == b.n ? b.sum - a.sum : bnorm_fma(-b.n, a.sum / a.n, b.sum);
    const double weight = a.n / (b.n * (a.n + b.n));
    return (struct node){a.sum + b.sum, bnorm_fma(excess * excess, weight, a.m2 + b.m2), a.n + b.n};
}

/* The row of the tables with the first block of image i. */
static size_t row_of(const bnorm_partials *p, size_t i) {
    return bnorm_subtrees(p->first, i - p->first, p->leaf) * p->per_image * p->stride;
}

/* An image, or a leaf of several. Blocks come in order. */
static struct node image_node(const bnorm_partials *p, size_t row, size_t images) {
    const double *const sum = p->entries[0] + row, *const m2 = p->entries[1] + row;
    struct node all = {sum[0], m2[0], p->per_image > 1 ? p->size : p->last * (double)images};
    for (size_t b = 1; b < p->per_image; b++) {
        const double n = b + 1 < p->per_image ? p->size : p->last;
        all = pair_of(all, (struct node){sum[b * p->stride], m2[b * p->stride], n});
    }
    return all;
}

/* Images [i, end): the largest whole subtree that they begin with, and what is behind it. Whole
 * subtrees are two halves. */
static struct node merge_images(const bnorm_partials *p, size_t channel, size_t i, size_t end) {
    const size_t images = bnorm_subtree(i, end, BNORM_TREE), row = row_of(p, i) + channel;
    struct node all;
    if (images < end - i)
        return pair_of(merge_images(p, channel, i, i + images),
                       merge_images(p, channel, i + images, end));
    if (images <= p->leaf)
        all = image_node(p, row, images);
    else
        all = pair_of(merge_images(p, channel, i, i + images / 2),
                      merge_images(p, channel, i + images / 2, end));
    p->entries[0][row] = all.sum;
    p->entries[1][row] = all.m2;
    return all;
}

static void merge(const bnorm_partials *p, size_t first, size_t c, double *mean, double *m2) {
    for (size_t i = first; i < first + c; i++) {
        const struct node all = merge_images(p, i, p->first, p->first + p->n);
        if (!mean)
            continue;
        m2[i] = canonical_double(all.m2);
        /* an infinity among the data leaves no mean either */
        mean[i] = all.m2 != all.m2 ? m2[i] : all.sum / all.n;
    }
}

static void merge_pair(const bnorm_pair_args *a, size_t c) {
    for (size_t i = 0; i < c; i++) {
        const struct node left = {a->sum[i], a->m2[i], a->n[0]},
                          right = {a->next_sum[i], a->next_m2[i], a->n[1]},
                          both = pair_of(left, right);
        a->sum[i] = canonical_double(both.sum);
        a->m2[i] = canonical_double(both.m2);
    }
}

/* ---------------------------------------------------------------------------------------------- */
/* Elementwise */

/* 1/6 and 1/3 to the bit: where FLT_EVAL_METHOD is not 0, 1.0f / 6 is no float. */
#define SIXTH 0x1.555556p-3f
#define THIRD 0x1.555556p-2f

static float activate(const bnorm_act *act, float v) {
    switch (act->kind) {
    case BNORM_ACT_IDENTITY:
        break;
    case BNORM_ACT_RELU:
        return v <= 0 ? 0 : v;
    case BNORM_ACT_CLAMP:
        v = v <= act->a ? act->a : v;
        return v >= act->b ? act->b : v;
    case BNORM_ACT_LEAKY_RELU:
        return v > 0 ? v : v * act->a;
    case BNORM_ACT_HARD_SWISH: {
        if (v <= -3)
            return 0;
        if (v >= 3)
            return v;
        const float shifted = v + 3, product = v * shifted;
        return product * SIXTH;
    }
    default:
        return smooth_value(act, v);
    }
    return v;
}

/* dy times the derivative of the activation at v. */
static float gradient(const bnorm_act *act, float v, float dy) {
    switch (act->kind) {
    case BNORM_ACT_IDENTITY:
        break;
    case BNORM_ACT_RELU:
        return v > 0 ? dy : 0;
    case BNORM_ACT_CLAMP:
        return v > act->a && v < act->b ? dy : 0;
    case BNORM_ACT_LEAKY_RELU:
        return v > 0 ? dy : dy * act->a;
    case BNORM_ACT_HARD_SWISH: {
        if (v <= -3)
            return 0;
        if (v >= 3)
            return dy;
        const float slope = bnorm_fmaf(v, THIRD, 0.5f);
        return dy * slope;
    }
    default:
        return dy * smooth_slope(act, v);
    }
    return dy;
}

/* What a mask says: whether the derivative is that of the upper branch. */
static int passes(const bnorm_act *act, float v) {
    return act->kind == BNORM_ACT_CLAMP ? v > act->a && v < act->b : v > 0;
}

/* A tensor from one of its groups on. */
static bnorm_tensor group_of(bnorm_tensor t, size_t image, size_t group, int planes) {
    static const size_t sizes[] = {4, 2, 2, 1, 1}; /* by bnorm_dtype */
    if (t.data)
        t.data = (char *)t.data + (image * t.image_stride + group * t.group_stride) * sizes[t.type];
    if (planes)
        t.row_stride = t.group_stride;
    return t;
}

/* The rows of one group alone; or the planes of one image, as rows. */
static bnorm_map_args rows_of(const bnorm_map_args *whole, size_t image, size_t group, int planes) {
    bnorm_map_args a = *whole;
    a.x = group_of(a.x, image, group, planes);
    a.dy = group_of(a.dy, image, group, planes);
    a.argument = group_of(a.argument, image, group, planes);
    a.out = group_of(a.out, image, group, planes);
    a.dresidual = group_of(a.dresidual, image, group, planes);
    a.mask.at += image * a.mask.image_stride + group * a.mask.group_stride;
    if (planes) {
        a.mask.row_stride = a.mask.group_stride;
        a.rows = a.groups;
    }
    return a;
}

ALWAYS_INLINE float load_at(const bnorm_tensor *t, size_t r, size_t i) {
    return load(t->data, t->type, &t->quant, r * t->row_stride + i);
}

ALWAYS_INLINE void store_at(const bnorm_tensor *t, size_t r, size_t i, float v) {
    store(t->data, t->type, &t->quant, r * t->row_stride + i, v);
}

/* Element i of row r; parameters of channel ch. */
typedef void element_function(const bnorm_map_args *a, size_t r, size_t i, size_t ch);

ALWAYS_INLINE void each_row(const bnorm_map_args *whole, element_function *element,
                            element_function *padding) {
    for (size_t image = 0; image < whole->images; image++)
        for (size_t group = 0; group < whole->groups; group++) {
            const bnorm_map_args a = rows_of(whole, image, group, 0);
            for (size_t r = 0; r < a.rows; r++) {
                for (size_t i = 0; i < a.valid; i++)
                    element(&a, r, i, group * a.lanes + i);
                for (size_t i = a.valid; i < a.lanes; i++)
                    padding(&a, r, i, 0);
            }
        }
}

ALWAYS_INLINE void each_plane(const bnorm_map_args *whole, element_function *element) {
    for (size_t image = 0; image < whole->images; image++) {
        const bnorm_map_args a = rows_of(whole, image, 0, 1);
        for (size_t r = 0; r < a.rows; r++)
            for (size_t i = 0; i < a.lanes; i++)
                element(&a, r, i, r);
    }
}

ALWAYS_INLINE void apply_element(const bnorm_map_args *a, size_t r, size_t i, size_t ch) {
    float v = load_at(&a->x, r, i);
    if (a->center)
        v = v - a->center[ch];
    v = bnorm_fmaf(v, a->scale[ch], a->shift[ch]);
    if (a->argument.data)
        v = v + load_at(&a->argument, r, i);
    if (a->mask.bits)
        store_bit(&a->mask, r, i, passes(&a->act, v));
    store_at(&a->out, r, i, activate(&a->act, v));
}

/* Its bits in a mask are 0. */
static void apply_padding(const bnorm_map_args *a, size_t r, size_t i, size_t ch) {
    (void)ch;
    if (a->mask.bits)
        store_bit(&a->mask, r, i, 0);
    store_at(&a->out, r, i, 0);
}

static void apply_rows(const bnorm_map_args *a) {
    each_row(a, apply_element, apply_padding);
}

static void apply_span(const bnorm_map_args *a) {
    each_plane(a, apply_element);
}

ALWAYS_INLINE float x_minus_center(const bnorm_map_args *a, size_t r, size_t i, size_t ch) {
    return load_at(&a->x, r, i) - a->center[ch];
}

ALWAYS_INLINE float grad_element(const bnorm_map_args *a, size_t r, size_t i, size_t ch) {
    const float dy = load_at(&a->dy, r, i);
    float v = 0;
    switch (a->pre) {
    case BNORM_PRE_NONE:
        return dy;
    case BNORM_PRE_X:
        v = bnorm_fmaf(x_minus_center(a, r, i, ch), a->scale[ch], a->shift[ch]);
        break;
    case BNORM_PRE_RESIDUAL:
        v = bnorm_fmaf(x_minus_center(a, r, i, ch), a->scale[ch], a->shift[ch]);
        v = v + load_at(&a->argument, r, i);
        break;
    case BNORM_PRE_Y:
        v = load_at(&a->argument, r, i);
        break;
    case BNORM_PRE_MASK:
        v = load_bit(&a->mask, r, i);
        break;
    }
    return gradient(&a->act, v, dy);
}

/* Sums of one channel of `count` elements. g by pairs in double; g*(x - center) in groups of 16, in
 * float like the squares above, or in double. */
static void sums_channel(const bnorm_map_args *a, size_t ch, size_t count, size_t chains,
                         int along_plane, int wide, double *sum_g, double *sum_gx) {
    double partial_g[BNORM_SPAN_LANES] = {0}, partial_gx[BNORM_SPAN_LANES] = {0};
    for (size_t j = 0; j < chains; j++) {
        for (size_t q = j; q < count; q += BNORM_GROUP * chains) {
            double g[BNORM_GROUP] = {0}, wide_products[2] = {0, 0};
            float products[4] = {0, 0, 0, 0};
            for (size_t k = 0; k < BNORM_GROUP && q + k * chains < count; k++) {
                const size_t r = along_plane ? ch : q + k * chains,
                             i = along_plane ? q + k * chains : ch;
                const float x = load_at(&a->x, r, i), center = a->center[ch];
                const float g_float = grad_element(a, r, i, ch), d = x - center;
                g[k] = (double)g_float;
                if (wide)
                    wide_products[k % 2] =
                        bnorm_fma(g[k], (double)x - (double)center, wide_products[k % 2]);
                else
                    products[place_of(k)] = bnorm_fmaf(g_float, d, products[place_of(k)]);
            }
            for (size_t k = 0; k < BNORM_GROUP; k += 2)
                partial_g[j] += g[k] + g[k + 1];
            partial_gx[j] +=
                wide ? wide_products[0] + wide_products[1] : (double)add_places(products);
        }
    }
    *sum_g = canonical_double(fold(partial_g, chains));
    *sum_gx = canonical_double(fold(partial_gx, chains));
}

/* Products in float, or in double where their sum is out of range; 0 is right where all g are 0. */
static void accurate_sums(const bnorm_map_args *a, size_t ch, size_t count, size_t chains,
                          int along_plane, double *sum_g, double *sum_gx) {
    sums_channel(a, ch, count, chains, along_plane, 0, sum_g, sum_gx);
    const double size = fabs(*sum_gx);
    if (!(size >= 0x1p-90 && size <= DBL_MAX) && !(*sum_g == 0 && *sum_gx == 0))
        sums_channel(a, ch, count, chains, along_plane, 1, sum_g, sum_gx);
}

static void sums_rows(const bnorm_map_args *a, size_t chains, double *sum_g, double *sum_gx) {
    for (size_t ch = 0; ch < a->valid; ch++)
        accurate_sums(a, ch, a->rows, chains, 0, &sum_g[ch], &sum_gx[ch]);
}

static void sums_span(const bnorm_map_args *whole, double *sum_g, double *sum_gx) {
    const bnorm_map_args a = rows_of(whole, 0, 0, 1);
    for (size_t ch = 0; ch < a.rows; ch++)
        accurate_sums(&a, ch, a.lanes, BNORM_SPAN_LANES, 1, &sum_g[ch], &sum_gx[ch]);
}

/* Rows [r, r + rows) of one channel, two halves; products in double. */
static void tree_products(const bnorm_map_args *a, size_t i, size_t r, size_t rows, double *sum_g,
                          double *sum_gx) {
    double next_g, next_gx;
    if (rows == 1) {
        const float x = load_at(&a->x, r, i);
        *sum_g = (double)grad_element(a, r, i, i);
        /* + 0 is what a compiler may contract the product with, instead of the sum of two. */
        *sum_gx = *sum_g * ((double)x - (double)a->center[i]) + 0;
        return;
    }
    tree_products(a, i, r, rows / 2, sum_g, sum_gx);
    tree_products(a, i, r + rows / 2, rows / 2, &next_g, &next_gx);
    *sum_g += next_g;
    *sum_gx += next_gx;
}

static void sums_tree(const bnorm_map_args *a, double *sum_g, double *sum_gx) {
    for (size_t i = 0; i < a->valid; i++) {
        double g, gx;
        tree_products(a, i, 0, a->rows, &g, &gx);
        sum_g[i] = canonical_double(g);
        sum_gx[i] = canonical_double(gx);
    }
}

ALWAYS_INLINE void dx_element(const bnorm_map_args *a, size_t r, size_t i, size_t ch) {
    const float g = grad_element(a, r, i, ch);
    if (a->out.data && a->slope) {
        const float xh = x_minus_center(a, r, i, ch) * a->invstd[ch];
        const float dx = bnorm_fmaf(xh, a->slope[ch], bnorm_fmaf(g, a->scale[ch], a->offset[ch]));
        store_at(&a->out, r, i, dx);
    } else if (a->out.data) {
        store_at(&a->out, r, i, g * a->scale[ch]);
    }
    if (a->dresidual.data)
        store_at(&a->dresidual, r, i, g);
}

static void dx_padding(const bnorm_map_args *a, size_t r, size_t i, size_t ch) {
    (void)ch;
    if (a->out.data)
        store_at(&a->out, r, i, 0);
    if (a->dresidual.data)
        store_at(&a->dresidual, r, i, 0);
}

static void dx_rows(const bnorm_map_args *a) {
    each_row(a, dx_element, dx_padding);
}

static void dx_span(const bnorm_map_args *a) {
    each_plane(a, dx_element);
}

/* ---------------------------------------------------------------------------------------------- */
/* Coefficients. NULL stands for an array of the default. */

static double parameter(const float *array, size_t i, double otherwise) {
    return array ? (double)array[i] : otherwise;
}

static float to_float(double v) {
    return canonical((float)v);
}

/* a*b + c rounded once, for an a that is mostly 0. */
static double plus_product(double a, double b, double c) {
    return a == 0 ? c : bnorm_fma(a, b, c);
}

static float scale_of(const float *gamma, size_t i, float invstd) {
    return to_float(parameter(gamma, i, 1) * (double)invstd);
}

/* beta less what the low part of the mean contributes; the product of two floats is exact. */
static float shift_of(const float *beta, size_t i, double mean_lo, float scale) {
    const double b = parameter(beta, i, 0);
    return to_float(mean_lo == 0 ? b : b - mean_lo * (double)scale);
}

/* (1 - rate)*old + rate*batch, as old + rate*(batch - old) unless one of them is infinite or NaN.
 * Rate 1 takes the batch's value whatever the old one is, rate 0 keeps the old one. */
static float blend(const float *running, double rate, double batch) {
    if (rate == 1)
        return to_float(batch);
    const double old = (double)*running;
    if (rate == 0)
        return to_float(old);
    if (__builtin_isfinite(old) && __builtin_isfinite(batch))
        return to_float(bnorm_fma(rate, batch - old, old));
    return to_float((1 - rate) * old + rate * batch);
}

static void coefficients(const bnorm_coefficient_args *a, size_t first, size_t c) {
    for (size_t i = first; i < first + c; i++) {
        const double mean = a->mean[i], m2 = a->m2[i];
        if (a->scale) {
            const double spread = m2 / a->n + a->eps;
            const float high = to_float(mean), low = to_float(mean - (double)high);
            const float invstd = spread == 0 ? 0 : to_float(1 / sqrt(spread));
            a->center[i] = high;
            a->scale[i] = scale_of(a->gamma, i, invstd);
            a->shift[i] = shift_of(a->beta, i, (double)low, a->scale[i]);
            if (a->save_mean)
                a->save_mean[i] = high;
            if (a->save_mean_lo)
                a->save_mean_lo[i] = low;
            if (a->save_invstd)
                a->save_invstd[i] = invstd;
            if (a->save_var)
                a->save_var[i] = to_float(m2 / a->n);
        }
        if (a->new_mean)
            a->new_mean[i] = blend(&a->running_mean[i], a->rate, mean);
        if (a->new_var)
            a->new_var[i] = blend(&a->running_var[i], a->rate, m2 / a->divisor);
    }
}

/* As merge_images. */
static void add_images(const bnorm_partials *p, size_t channel, size_t i, size_t end, double *g,
                       double *gx) {
    const size_t images = bnorm_subtree(i, end, BNORM_TREE), row = row_of(p, i) + channel;
    const int whole = images == end - i;
    double *const block_g = p->entries[0] + row, *const block_gx = p->entries[1] + row;
    if (whole && images <= p->leaf) {
        *g = block_g[0];
        *gx = block_gx[0];
        for (size_t b = 1; b < p->per_image; b++) {
            *g += block_g[b * p->stride];
            *gx += block_gx[b * p->stride];
        }
    } else {
        const size_t middle = i + (whole ? images / 2 : images);
        double next_g, next_gx;
        add_images(p, channel, i, middle, g, gx);
        add_images(p, channel, middle, end, &next_g, &next_gx);
        *g += next_g;
        *gx += next_gx;
    }
    if (whole) {
        *block_g = *g;
        *block_gx = *gx;
    }
}

static void add_blocks(const bnorm_partials *p, size_t first, size_t c, double *sum_g,
                       double *sum_gx) {
    for (size_t i = first; i < first + c; i++) {
        double g, gx;
        add_images(p, i, p->first, p->first + p->n, &g, &gx);
        if (!sum_g)
            continue;
        sum_g[i] = canonical_double(g);
        sum_gx[i] = canonical_double(gx);
    }
}

static void scale_shift(const bnorm_scale_args *a, size_t c) {
    for (size_t i = 0; i < c; i++) {
        a->scale[i] = scale_of(a->gamma, i, a->invstd[i]);
        a->shift[i] = shift_of(a->beta, i, parameter(a->mean_lo, i, 0), a->scale[i]);
    }
}

static void grad_coefficients(const bnorm_grad_coefficient_args *a, size_t first, size_t c) {
    for (size_t i = first; i < first + c; i++) {
        const double low = parameter(a->mean_lo, i, 0), invstd = (double)a->invstd[i];
        const double scale = parameter(a->gamma, i, 1) * invstd;
        const double dgamma = plus_product(-low, a->sum_g[i], a->sum_gx[i]) * invstd;
        if (a->dgamma)
            a->dgamma[i] = to_float(dgamma);
        if (a->dbeta)
            a->dbeta[i] = to_float(a->sum_g[i]);
        if (!a->slope)
            continue;
        /* dx = scale*(g - dbeta/n - (x - mean)*invstd*dgamma/n) */
        a->slope[i] = to_float(-scale * (dgamma / a->n));
        a->offset[i] = to_float(
            plus_product(-low * invstd, (double)a->slope[i], -scale * (a->sum_g[i] / a->n)));
        if (a->n == 1 && __builtin_isfinite(a->scale[i]))
            a->scale[i] = a->slope[i] = a->offset[i] = 0;
    }
}

const struct bnorm_isa bnorm_isa_scalar = {.name = "scalar",
#define X(kernel, args) .kernel = kernel,
                                           BNORM_KERNELS(X)
#undef X
};
