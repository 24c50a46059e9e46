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
/* Reductions. Chain j of a channel holds positions j, j + chains, j + 2*chains, ... It is added up in
 * groups of 16, in float, and groups in double. What chains add up to is folded, upper half onto
 * lower half. */

/* A channel of a block; of backward where there is dy. */
struct channel {
    bnorm_map_args args; /* dy is absent for statistics */
    size_t ch;
    int along_plane;
    size_t count, chains;
};

static float grad_element(const bnorm_map_args *a, size_t r, size_t i, size_t ch);

ALWAYS_INLINE float value_of(const struct channel *c, size_t q) {
    const bnorm_tensor *x = &c->args.x;
    return load(x->data, x->type, &no_quant,
                c->along_plane ? c->ch * x->row_stride + q : q * x->row_stride + c->ch);
}

static float grad_of(const struct channel *c, size_t q) {
    return c->along_plane ? grad_element(&c->args, c->ch, q, c->ch)
                          : grad_element(&c->args, q, c->ch, c->ch);
}

/* Of a: sum of d = x - pivot, or of g; of b: of d*d, or of g*d. */
struct two_sums {
    double a, b;
};

/* `count` positions, every `chains`th from q on: a pair at a time, two pairs together, and these one
 * after the other. */
ALWAYS_INLINE void sum_group(const struct channel *c, int backward, float pivot, size_t q,
                             size_t count, float *sum_a, float *sum_b) {
    *sum_a = *sum_b = 0;
    for (size_t i = 0; i < count; i += 4) {
        float a[2] = {0, 0}, b[2] = {0, 0};
        for (size_t k = 0; k < 4 && i + k < count; k++) {
            const size_t at = q + (i + k) * c->chains;
            const float d = value_of(c, at) - pivot, first = backward ? grad_of(c, at) : d;
            a[k / 2] += first;
            b[k / 2] = bnorm_fmaf(first, d, b[k / 2]);
        }
        /* Variables round, where expressions of floats are computed in double. */
        const float four_a = a[0] + a[1], four_b = b[0] + b[1];
        *sum_a += four_a;
        *sum_b += four_b;
    }
}

static size_t group_size(const struct channel *c, size_t q) {
    const size_t left = q < c->count ? (c->count - q + c->chains - 1) / c->chains : 0;
    return left < BNORM_GROUP ? left : BNORM_GROUP;
}

static double fold(double *partial, size_t chains) {
    for (size_t half = chains / 2; half > 0; half /= 2)
        for (size_t j = 0; j < half; j++)
            partial[j] += partial[j + half];
    return partial[0];
}

/* Of rows: each chain in double. Of a plane: the chains of a group are folded in float to four. */
ALWAYS_INLINE struct two_sums float_sums(const struct channel *c, int backward, float pivot) {
    double a[BNORM_SPAN_LANES] = {0}, b[BNORM_SPAN_LANES] = {0};
    const size_t lanes = c->along_plane ? 4 : c->chains;
    for (size_t group = 0; group < c->count; group += BNORM_GROUP * c->chains) {
        float group_a[BNORM_SPAN_LANES], group_b[BNORM_SPAN_LANES];
        for (size_t j = 0; j < c->chains; j++)
            sum_group(c, backward, pivot, group + j, group_size(c, group + j), &group_a[j],
                      &group_b[j]);
        for (size_t half = c->chains / 2; half >= lanes; half /= 2)
            for (size_t j = 0; j < half; j++) {
                group_a[j] += group_a[j + half];
                group_b[j] += group_b[j + half];
            }
        for (size_t j = 0; j < lanes; j++) {
            a[j] += (double)group_a[j];
            b[j] += (double)group_b[j];
        }
    }
    return (struct two_sums){fold(a, lanes), fold(b, lanes)};
}

static struct two_sums sums_of(const struct channel *c, float pivot) {
    return c->args.dy.data ? float_sums(c, 1, pivot) : float_sums(c, 0, pivot);
}

/* All in double, each chain in order: where floats do not do. Statistics have the values themselves
 * in a. */
static struct two_sums double_sums_of(const struct channel *c, double center) {
    double a[BNORM_SPAN_LANES] = {0}, b[BNORM_SPAN_LANES] = {0};
    for (size_t q = 0; q < c->count; q++) {
        const double x = (double)value_of(c, q), d = x - center;
        const double first = c->args.dy.data ? (double)grad_of(c, q) : d;
        a[q % c->chains] += c->args.dy.data ? first : x;
        b[q % c->chains] = bnorm_fma(first, d, b[q % c->chains]);
    }
    return (struct two_sums){fold(a, c->chains), fold(b, c->chains)};
}

static float power_of_2(float v) {
    return float_of(bits_of(v) & 0x7f800000);
}

/* A whole number of units, which are 2^-23 times 2/3 of magic. */
static float round_to(float v, float magic) {
    const float sum = v + magic;
    return sum - magic;
}

/* The mean of values that are spread over the block (of a plane: places of four neighbours),
 * rounded to an eighth or so of their spread. */
static float sample_pivot(const struct channel *c) {
    float v[4 * BNORM_PLACES], least, most;
    size_t samples = bnorm_samples(c->count), n;
    if (c->along_plane && c->count >= 4)
        samples = 4 * bnorm_places(c->count);
    for (size_t j = 0; j < samples; j++) {
        size_t q = j * c->count / samples;
        if (c->along_plane)
            q = samples < 4 ? j : j / 4 * c->count / (samples / 4) + j % 4;
        v[j] = value_of(c, q);
    }
    for (n = samples; n > 4; n /= 2)
        for (size_t j = 0; j < n / 2; j++)
            v[j] += v[j + n / 2];
    least = most = v[0];
    for (size_t j = 1; j < n; j++) {
        least = v[j] < least ? v[j] : least;
        most = v[j] > most ? v[j] : most;
    }
    for (; n > 1; n /= 2)
        for (size_t j = 0; j < n / 2; j++)
            v[j] += v[j + n / 2];
    const float mean = v[0] * (1 / (float)samples);
    return round_to(mean, power_of_2(most - least) * 0x3p17f);
}

/* A pivot from the sums about another one: the mean, rounded to an eighth or so of the deviation
 * where these say enough of it. 0 where they say nothing. */
static float better_pivot(double n, float pivot, struct two_sums sums) {
    const float mean = (float)bnorm_fma(sums.a, 1 / n, (double)pivot);
    const double squares = bnorm_fma(sums.a * (-1 / n), sums.a, sums.b);
    if (!(mean >= -FLT_MAX && mean <= FLT_MAX))
        return 0;
    if (!(squares > sums.b * 0x1p-10 && sums.b <= DBL_MAX))
        return mean;
    return round_to(mean, power_of_2((float)sqrt(squares * (1 / n))) * 0x3p19f);
}

static int all_values_are(const struct channel *c, float pivot) {
    for (size_t q = 0; q < c->count; q++)
        if (!(value_of(c, q) - pivot == 0))
            return 0;
    return 1;
}

/* Squares that leave the range of a float. */
static int in_range(double squares) {
    return squares >= 0x1p-90 && squares <= DBL_MAX;
}

/* Sum and sum of squared deviations of one channel's block, from the sums of d = x - pivot and its
 * square. The pivot must be within a deviation of the mean, or be as near as a float can. */
static void moments_channel(const struct channel *c, double *sum, double *m2) {
    const double n = (double)c->count;
    float pivot = sample_pivot(c);
    struct two_sums sums = sums_of(c, pivot);
    const double margin = bnorm_fma(sums.a * (-1 / n), sums.a, sums.b * 0.5);
    if (!(margin >= 0 && margin <= DBL_MAX && in_range(sums.b)) && !all_values_are(c, pivot)) {
        pivot = better_pivot(n, pivot, sums);
        sums = sums_of(c, pivot);
        if (!in_range(sums.b)) {
            const double total = double_sums_of(c, 0).a;
            *sum = canonical_double(total);
            *m2 = canonical_double(double_sums_of(c, total / n).b);
            return;
        }
    }
    const double squares = bnorm_fma(sums.a * (-1 / n), sums.a, sums.b);
    *sum = canonical_double(bnorm_fma(n, (double)pivot, sums.a));
    *m2 = canonical_double(squares < 0 ? 0 : squares);
}

/* Rows [r, r + rows) of one channel: sums, and squares about the mean of two halves. */
static void tree_sums(const bnorm_map_args *a, size_t i, size_t r, size_t rows, double *sum,
                      double *m2) {
    double left, right, left_m2, right_m2;
    if (rows == 1) {
        *sum = (double)load(a->x.data, a->x.type, &no_quant, r * a->x.row_stride + i);
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

static void moments_leaf(const struct channel *c, double *sum, double *m2) {
    double total, squares;
    tree_sums(&c->args, c->ch, 0, c->count, &total, &squares);
    *sum = canonical_double(total);
    *m2 = canonical_double(squares + (total - total)); /* NaN where an infinity is */
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

static float grad_element(const bnorm_map_args *a, size_t r, size_t i, size_t ch) {
    const float dy = load_at(&a->dy, r, a->dy.same_lanes ? 0 : i);
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

/* The center, rounded to a unit of about 2^-16/invstd: x - center rounds alike for all x of similar
 * size, which adds up. A constant channel stays at its value. */
static float round_center(const struct channel *c) {
    const float center = c->args.center[c->ch], invstd = c->args.invstd[c->ch];
    float inverse = invstd > 0x1p-90f ? invstd : 0x1p-90f;
    inverse = inverse < 0x1p126f ? inverse : 0x1p126f;
    if (value_of(c, 0) - center == 0)
        return center;
    return round_to(center, power_of_2(1 / inverse) * 0x3p6f);
}

/* Sums of a channel in float, or in double where they are out of range: 0 is right where all g are
 * 0, and the sum of g does not depend on x. */
static void sums_channel(const struct channel *c, double *sum_g, double *sum_gx) {
    const float center = c->args.center[c->ch], pivot = round_center(c);
    struct two_sums sums = sums_of(c, pivot);
    sums.b = bnorm_fma((double)pivot - (double)center, sums.a, sums.b);
    const int finite = fabs(sums.a) <= DBL_MAX;
    if (!(finite && in_range(fabs(sums.b))) && !(sums.a == 0 && sums.b == 0)) {
        const struct two_sums again = double_sums_of(c, (double)center);
        if (!finite)
            sums.a = again.a;
        sums.b = again.b;
    }
    *sum_g = canonical_double(sums.a);
    *sum_gx = canonical_double(sums.b);
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

static void sums_leaf(const struct channel *c, double *sum_g, double *sum_gx) {
    double g, gx;
    tree_products(&c->args, c->ch, 0, c->count, &g, &gx);
    *sum_g = canonical_double(g);
    *sum_gx = canonical_double(gx);
}

/* Both sums of a channel's part of a block. */
typedef void channel_function(const struct channel *c, double *first, double *second);

ALWAYS_INLINE void each_channel_of_rows(const bnorm_map_args *whole, size_t chains,
                                        channel_function *reduce, double *first, double *second) {
    for (size_t group = 0, ch = 0; group < whole->groups; group++) {
        struct channel c = {rows_of(whole, 0, group, 0), 0, 0, whole->rows, chains};
        if (whole->dy.data) {
            c.args.center += ch;
            c.args.scale += ch;
            c.args.shift += ch;
            c.args.invstd += ch;
        }
        for (; c.ch < whole->lanes && ch < whole->valid; c.ch++, ch++)
            reduce(&c, &first[ch], &second[ch]);
    }
}

ALWAYS_INLINE void each_channel_of_planes(const bnorm_map_args *whole, channel_function *reduce,
                                          double *first, double *second) {
    struct channel c = {rows_of(whole, 0, 0, 1), 0, 1, whole->lanes, BNORM_SPAN_LANES};
    for (; c.ch < whole->groups; c.ch++)
        reduce(&c, &first[c.ch], &second[c.ch]);
}

static void moments_rows(const bnorm_map_args *a, size_t chains, double *sum, double *m2) {
    each_channel_of_rows(a, chains, moments_channel, sum, m2);
}

static void moments_span(const bnorm_map_args *a, double *sum, double *m2) {
    each_channel_of_planes(a, moments_channel, sum, m2);
}

static void sums_rows(const bnorm_map_args *a, size_t chains, double *sum_g, double *sum_gx) {
    each_channel_of_rows(a, chains, sums_channel, sum_g, sum_gx);
}

static void sums_span(const bnorm_map_args *a, double *sum_g, double *sum_gx) {
    each_channel_of_planes(a, sums_channel, sum_g, sum_gx);
}

static void moments_tree(const bnorm_map_args *a, double *sum, double *m2) {
    each_channel_of_rows(a, 1, moments_leaf, sum, m2);
}

static void sums_tree(const bnorm_map_args *a, double *sum_g, double *sum_gx) {
    each_channel_of_rows(a, 1, sums_leaf, sum_g, sum_gx);
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

#define X(kernel, args) .kernel = kernel,
const struct bnorm_isa bnorm_isa_scalar = {.name = "scalar", BNORM_INFERENCE_KERNELS(X)};
const bnorm_training bnorm_training_scalar = {BNORM_TRAINING_KERNELS(X)};
#undef X
