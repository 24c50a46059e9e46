/* SPDX-License-Identifier: MIT
 *
 * Each kernel of each set against the scalar kernel, called directly: random arguments, lengths
 * around every vector and tile edge, buffers between guard pages, outputs compared as bytes. The
 * list of kernels is BNORM_KERNELS: one that is added there fails to compile until it has a
 * check_<kernel>() here. Kernels that take types are called with all of them, with padded rows,
 * with masks, and with the activations that SLEEF computes; see `kinds` at the end. */
#include <float.h>
#include <math.h>
#include <stdio.h>
#include <string.h>
#include "harness.h"
#include "../dispatch/isa.h"
#include "../src/order.h"

/* ---------------------------------------------------------------------------------------------- */
/* Operands: every array of a call exists twice, once for the scalar kernel and once, with the same
 * bytes, between guard pages for the kernel under test.                                          */

enum version { SCALAR, TESTED, VERSIONS };
enum { MAX_OPERANDS = 16, POOL_BYTES = 24 << 20 };

struct operand {
    const char *name;
    void *data[VERSIONS];
    struct buffer buffer;
    size_t bytes, size; /* size: of one element */
};

/* What a case is about, beside its kernel: the param of the test. */
enum {
    MIXED = 1,       /* types that differ, S8 and U8 among them */
    PADDED = 2,      /* rows with padding, of all types */
    MASKED = 4,      /* masks, with all types */
    EXPONENTIAL = 8, /* activations that need SLEEF, with types of floats */
    ALL_TYPES = MIXED | PADDED | MASKED | EXPONENTIAL
};

struct kind {
    const char *name;
    bnorm_dtype type; /* of all tensors, unless `with` has ALL_TYPES */
    unsigned with;
};

static const struct kind f32 = {"f32", BNORM_F32, 0};

struct trial {
    struct test *t;
    struct rng *rng;
    const struct kind *kind;
    size_t block; /* length of rows with padding; 0 = rows have none */
    const struct bnorm_isa *isa[VERSIONS];
    struct operand operands[MAX_OPERANDS];
    size_t count;
    unsigned char *pool; /* memory of the scalar versions */
    size_t used;
    int values;   /* how floats are drawn, see draw() */
    int exponent; /* of all floats, where values is 5 */
    int dense;    /* no gaps between the runs of any operand */
};

static struct trial new_trial(struct test *t) {
    return (struct trial){.t = t,
                          .rng = &t->rng,
                          .kind = t->param,
                          .isa = {&bnorm_isa_scalar, t->isa},
                          .pool = test_alloc(t, POOL_BYTES)};
}

static int one_in(struct trial *r, size_t n) {
    return rng_below(r->rng, n) == 0;
}

static void begin(struct trial *r) {
    for (size_t i = 0; i < r->count; i++)
        buffer_free(&r->operands[i].buffer);
    r->count = r->used = 0;
    r->values = (int)rng_below(r->rng, 6);
    r->exponent = (int)rng_below(r->rng, 24) + (one_in(r, 3) ? 50 : -60);
    r->dense = (int)rng_below(r->rng, 2);
}

/* Elements between runs. */
static size_t gap(struct trial *r) {
    return r->dense || one_in(r, 2) ? 0 : rng_below(r->rng, 20);
}

static float special(struct rng *rng) {
    static const uint32_t bits[] = {
        0x00000000, 0x80000000,                         /* zeros */
        0x7f800000, 0xff800000,                         /* infinities */
        0x7fc00000, 0xffc00000, 0x7fc12345, 0x7f800001, /* NaNs, the last one signalling */
        0x00000001, 0x80000001, 0x007fffff, 0x00800000, /* around the denormals' border */
        0x7f7fffff, 0xff7fffff,                         /* largest finite */
    };
    static const float edges[] = {-3, 3, 6, 1, -1, 0.5f, 2.9999998f, -2.9999998f, 6.0000005f};
    const size_t all = sizeof bits / sizeof bits[0] + sizeof edges / sizeof edges[0];
    const size_t i = rng_below(rng, all);
    const float v = i < sizeof bits / sizeof bits[0] ? bits_float(bits[i])
                                                     : edges[i - sizeof bits / sizeof bits[0]];
    /* Where denormals are flushed, those that are only passed on may stay. */
    return (float_bits(v) & 0x7f800000) == 0 && test_flushes() ? copysignf(0, v) : v;
}

static float draw(struct trial *r) {
    switch (r->values) {
    case 0: /* ordinary */
        return (float)rng_normal(r->rng);
    case 1: /* mean far above the deviation */
        return (float)(1e6 + rng_normal(r->rng));
    case 2: /* any magnitude: over- and underflow in the middle of a computation */
        return (float)ldexp(rng_normal(r->rng), (int)rng_below(r->rng, 260) - 130);
    case 3: /* now and then something special */
        return one_in(r, 24) ? special(r->rng) : (float)(3 * rng_normal(r->rng));
    case 4:
        return special(r->rng);
    default: /* all of one size: sums of squares near the ends of a float's range */
        return (float)ldexp(rng_normal(r->rng), r->exponent);
    }
}

/* Flush against a guard page, or up to 15 elements of `size` bytes away from it. */
static struct operand *add_operand(struct trial *r, const char *name, size_t bytes, size_t size) {
    if (r->count == MAX_OPERANDS || r->used + bytes > POOL_BYTES)
        test_fail(r->t, "raise MAX_OPERANDS or POOL_BYTES");
    struct operand *o = &r->operands[r->count++];
    const enum side side = one_in(r, 2) ? SIDE_START : SIDE_END;
    buffer_new(&o->buffer, bytes, side, one_in(r, 2) ? 0 : size * rng_below(r->rng, 16));
    o->name = name;
    o->bytes = bytes;
    o->size = size;
    o->data[SCALAR] = r->pool + r->used;
    o->data[TESTED] = o->buffer.data;
    r->used += (bytes + 63) / 64 * 64;
    return o;
}

/* Both versions with the same random floats. */
static struct operand *floats(struct trial *r, const char *name, size_t count) {
    struct operand *o = add_operand(r, name, count * sizeof(float), sizeof(float));
    float *p = o->data[SCALAR];
    for (size_t i = 0; i < count; i++)
        p[i] = draw(r);
    memcpy(o->data[TESTED], p, o->bytes);
    return o;
}

/* Parameters near 1, so that values stay near the activations' corners, or any floats at all. */
static struct operand *parameters(struct trial *r, const char *name, size_t count, float unit) {
    struct operand *o = floats(r, name, count);
    const int exact = one_in(r, 3), any = one_in(r, 3);
    float *p = o->data[SCALAR];
    for (size_t i = 0; i < count && !any; i++)
        p[i] = exact ? unit : unit + 0.5f * (float)rng_normal(r->rng);
    memcpy(o->data[TESTED], p, o->bytes);
    return o;
}

/* Doubles, canaries until filled. */
static struct operand *doubles(struct trial *r, const char *name, size_t count) {
    struct operand *o = add_operand(r, name, count * sizeof(double), sizeof(double));
    memcpy(o->data[SCALAR], o->data[TESTED], o->bytes);
    return o;
}

static void fill_doubles(struct trial *r, struct operand *o, double low, double high) {
    double *p = o->data[SCALAR];
    for (size_t i = 0; i < o->bytes / sizeof(double); i++) {
        p[i] = rng_uniform(r->rng, low, high);
        /* What the other kernels hand over: their NaN is canonical too. */
        if ((r->values == 3 || r->values == 4) && one_in(r, 6)) {
            const double odd[] = {0, -0.0, (double)INFINITY, -(double)INFINITY, DBL_MAX, 0x1p-1074};
            const size_t k = rng_below(r->rng, 7);
            const uint64_t nan_bits = 0xffffffffffffffffu;
            if (k < 6)
                p[i] = odd[k];
            else
                memcpy(&p[i], &nan_bits, sizeof nan_bits);
        }
    }
    memcpy(o->data[TESTED], p, o->bytes);
}

/* Floats that another kernel hands over: every NaN is bnorm's. */
static void canonical(struct operand *o) {
    float *p = o->data[SCALAR];
    for (size_t i = 0; i < o->bytes / sizeof(float); i++)
        if (p[i] != p[i])
            p[i] = bits_float(0xffffffff);
    memcpy(o->data[TESTED], p, o->bytes);
}

/* ---------------------------------------------------------------------------------------------- */
/* Tensors of all types                                                                           */

static int is_float(bnorm_dtype type) {
    return type <= BNORM_F16;
}

/* What draw() is to floats, in numbers that an F16 can hold. */
static float draw_small(struct trial *r) {
    if (r->values == 1)
        return (float)(1e3 + rng_normal(r->rng));
    if (r->values == 5)
        return (float)ldexp(rng_normal(r->rng), r->exponent % 12);
    return draw(r);
}

/* Any element of 16 bits, now and then; S8 and U8 always are. As in special(), no denormal where they are
 * flushed; those of F16 are normal floats. */
static void draw_element(struct trial *r, bnorm_dtype type, unsigned char *p) {
    uint64_t bits = rng_u64(r->rng);
    const int any = r->values == 2 || (r->values == 4 && one_in(r, 2));
    if (type == BNORM_BF16 && !(bits & 0x7f80) && test_flushes())
        bits = 0;
    if (!is_float(type) || (type != BNORM_F32 && any))
        memcpy(p, &bits, dtype_size(type));
    else
        element_set(type, p, 0, type == BNORM_F16 ? draw_small(r) : draw(r));
}

/* Where the elements of a tensor are; those of a run from `valid` on are padding. */
struct area {
    size_t runs, len, valid, stride;
};

static size_t span(size_t runs, size_t stride, size_t len) {
    return (runs - 1) * stride + len;
}

static unsigned char *element(const struct operand *o, const struct area *a, size_t run, size_t i) {
    return (unsigned char *)o->data[SCALAR] + (run * a->stride + i) * o->size;
}

/* Elements that are drawn; those behind them are the same again. A prime, so that they stand in
 * other lanes. */
enum { DRAWN = 1021 };

/* A tensor of random values; the padding is NaN, or any bytes where the type has none. */
static struct operand *tensor(struct trial *r, const char *name, bnorm_dtype type,
                              const struct area *a) {
    const size_t size = dtype_size(type), count = span(a->runs, a->stride, a->len);
    struct operand *o = add_operand(r, name, count * size, size);
    unsigned char *p = o->data[SCALAR];
    for (size_t i = 0; i < count && i < DRAWN; i++)
        draw_element(r, type, p + i * size);
    for (size_t i = DRAWN; i < count; i++)
        memcpy(p + i * size, p + (i - DRAWN) * size, size);
    for (size_t run = 0; run < a->runs && is_float(type); run++)
        if (a->valid < a->len)
            memset(element(o, a, run, a->valid), 0xff, (a->len - a->valid) * size);
    memcpy(o->data[TESTED], o->data[SCALAR], o->bytes);
    return o;
}

/* Padding that was written is +0. S8 and U8 mean it by the byte that their quantization gives, in
 * which the sets agree. */
static void check_padding(struct trial *r, const struct operand *o, bnorm_dtype type,
                          const struct area *a) {
    for (size_t run = 0; o && run < a->runs && is_float(type); run++)
        for (size_t i = a->valid; i < a->len; i++) {
            const unsigned char zero[4] = {0};
            if (memcmp(element(o, a, run, i), zero, o->size))
                test_fail(r->t, "%s: padding element %zu of run %zu is not +0", o->name, i, run);
        }
}

/* The bits of a mask, among bits of other elements. */
struct mask {
    struct operand *operand; /* NULL = none */
    const unsigned char *before;
    size_t at, stride;
};

static struct mask new_mask(struct trial *r, size_t runs, size_t len) {
    struct mask m = {.at = one_in(r, 3) ? 0 : rng_below(r->rng, 70), .stride = len + gap(r)};
    const size_t bytes = (m.at + span(runs, m.stride, len) + 7) / 8;
    m.operand = add_operand(r, "mask", bytes, 1);
    unsigned char *p = m.operand->data[SCALAR], *before = test_alloc(r->t, bytes);
    for (size_t i = 0; i < bytes; i++)
        before[i] = p[i] = (unsigned char)rng_u64(r->rng);
    memcpy(m.operand->data[TESTED], p, bytes);
    m.before = before;
    return m;
}

static bnorm_bits bits_of(const struct mask *m, enum version v, size_t runs) {
    return (bnorm_bits){.bits = m->operand ? m->operand->data[v] : NULL,
                        .at = m->at,
                        .image_stride = runs * m->stride,
                        .group_stride = m->stride,
                        .row_stride = m->stride};
}

/* Bits that are of no element are as they were. */
static void check_other_bits(struct trial *r, const struct mask *m, size_t runs, size_t len) {
    for (size_t bit = 0; m->operand && bit < 8 * m->operand->bytes; bit++) {
        const size_t i = bit - m->at;
        const unsigned char *after = m->operand->data[SCALAR];
        if (bit >= m->at && i % m->stride < len && i / m->stride < runs)
            continue;
        if ((after[bit / 8] ^ m->before[bit / 8]) >> bit % 8 & 1)
            test_fail(r->t, "mask: bit %zu, which is of no element, was changed", bit);
    }
}

static int takes_mask(const bnorm_act *act) {
    return act->kind == BNORM_ACT_RELU || act->kind == BNORM_ACT_CLAMP ||
           act->kind == BNORM_ACT_LEAKY_RELU;
}

/* The type of a tensor: the case's, or any of the first `types`. */
static bnorm_dtype some_type(struct trial *r, size_t types) {
    return r->kind->with & ALL_TYPES ? (bnorm_dtype)rng_below(r->rng, types) : r->kind->type;
}
enum { FLOAT_TYPES = BNORM_F16 + 1, TYPES = BNORM_U8 + 1 };

static bnorm_quant some_quant(struct trial *r, bnorm_dtype type) {
    static const float scales[] = {0.05f, 1, 0.0117f, 3e-30f, 1e30f, 1e-40f};
    if (is_float(type))
        return (bnorm_quant){1, 0};
    const int zero_point = one_in(r, 3) ? 0 : (int)rng_below(r->rng, 256);
    const size_t normal = test_flushes() ? 5 : 6;
    return (bnorm_quant){scales[one_in(r, 4) ? rng_below(r->rng, normal) : 0],
                         type == BNORM_S8 && zero_point > 127 ? zero_point - 256 : zero_point};
}

/* Length of a run of c channels. */
static size_t run_len(const struct trial *r, size_t c) {
    return r->block ? r->block : c;
}

static void *at(const struct operand *o, enum version v) {
    return o ? o->data[v] : NULL;
}

/* After both calls: every array, inputs too, has the same bytes in both versions. */
static void compare(struct trial *r) {
    const uint16_t one = 1;
    const int little = *(const unsigned char *)&one;
    for (size_t n = 0; n < r->count; n++) {
        const struct operand *o = &r->operands[n];
        buffer_check(r->t, &o->buffer, o->name);
        if (memcmp(o->data[SCALAR], o->data[TESTED], o->bytes) == 0)
            continue;
        const unsigned char *want = o->data[SCALAR], *got = o->data[TESTED];
        size_t k = 0;
        while (want[k] == got[k])
            k++;
        k = k / o->size * o->size;
        char text[VERSIONS][2 * sizeof(double) + 1];
        for (size_t i = 0; i < o->size; i++) {
            snprintf(text[SCALAR] + 2 * i, 3, "%02x", want[k + (little ? o->size - 1 - i : i)]);
            snprintf(text[TESTED] + 2 * i, 3, "%02x", got[k + (little ? o->size - 1 - i : i)]);
        }
        test_fail(r->t, "%s: element %zu of %zu is 0x%s, the scalar kernel's 0x%s", o->name,
                  k / o->size, o->bytes / o->size, text[TESTED], text[SCALAR]);
    }
}

/* ---------------------------------------------------------------------------------------------- */
/* Sizes                                                                                          */

/* Other kinds than f32 have fewer rounds, and take at random what depends on them. */
static size_t round_of(struct trial *r, size_t k) {
    return r->kind == &f32 ? k : rng_below(r->rng, 1000);
}

/* Calls trial(r, length) for each length 1..130 `rounds` times, and for some longer ones; or for
 * each number of channels in a block. */
static void for_lengths(struct test *t, size_t rounds, const size_t *more, size_t more_count,
                        void (*trial)(struct trial *r, size_t length, size_t round)) {
    struct trial r = new_trial(t);
    const size_t every = r.kind == &f32 ? 6 : 3;
    if (r.kind != &f32 && !(r.kind->with & PADDED))
        rounds = (rounds + 3) / 4;
    for (size_t k = 0; k < rounds; k++) {
        if (r.kind->with & PADDED) {
            for (r.block = 4; r.block <= 32; r.block *= 2)
                for (size_t valid = 1; valid <= r.block; valid++) {
                    if (!test_draws(t, every))
                        continue;
                    begin(&r);
                    trial(&r, valid, round_of(&r, k));
                }
            continue;
        }
        for (size_t length = 1; length <= 130; length++) {
            if (!test_draws(t, every))
                continue;
            begin(&r);
            trial(&r, length, round_of(&r, k));
        }
        for (size_t i = 0; i < more_count; i++) {
            if (!test_draws(t, every))
                continue;
            begin(&r);
            trial(&r, more[i], round_of(&r, k));
        }
    }
    begin(&r);
}

static const size_t long_runs[] = {191, 192, 193,  255,  256,  257,  384, 511,
                                   513, 960, 1000, 1023, 1024, 1025, 2051};
#define LONG_RUNS (sizeof long_runs / sizeof long_runs[0])
static const size_t long_planes[] = {191, 192,  193,  255,  256,  257,  511,  512,  513,
                                     960, 1023, 1024, 1025, 2051, 3136, 4033, 4095, 4096};
#define LONG_PLANES (sizeof long_planes / sizeof long_planes[0])

/* Mostly few runs, sometimes enough for every unrolled loop, and in the rows family for rows of few
 * channels that share vectors. */
static size_t some_runs(struct trial *r, int rows, size_t len) {
    if (r->block && one_in(r, 8))
        return 1 + rng_below(r->rng, 6000 / r->block);
    if (!one_in(r, 4))
        return 1 + rng_below(r->rng, 9);
    return 1 + rng_below(r->rng, 70 + (rows ? 2 * bnorm_chains(len) : 0));
}

/* ---------------------------------------------------------------------------------------------- */
/* Statistics                                                                                     */

/* How the drivers choose chains: by all channels of the tensor, of which a call may have one only,
 * or any number where there is one chain. */
static size_t some_chains(struct trial *r, size_t c) {
    if (c == 1 && one_in(r, 2))
        return bnorm_chains(1 + rng_below(r->rng, 100));
    return one_in(r, 4) ? 1 : bnorm_chains(c);
}

/* Up to a block of rows, mostly around the edges of the groups. */
static size_t some_rows(struct trial *r, size_t c, size_t chains) {
    const size_t most = bnorm_block_rows(c, 1 << 24), group = BNORM_GROUP * chains;
    size_t rows;
    switch (rng_below(r->rng, 8)) {
    case 0:
        rows = c * most <= 65536 || one_in(r, 8) ? most : 1 + rng_below(r->rng, most / 4);
        break;
    case 1:
        rows = 1 + rng_below(r->rng, most);
        break;
    case 2:
        rows = 1 + rng_below(r->rng, chains);
        break;
    default:
        rows = 1 + rng_below(r->rng, 4 * group);
    }
    return rows < most ? rows : most;
}

/* Sometimes all values of the block are the same: the variance is exactly 0. */
static void maybe_constant(struct trial *r, struct operand *x, const struct area *a) {
    if (!one_in(r, 12))
        return;
    for (size_t run = 0; run < a->runs; run++)
        for (size_t i = 0; i < a->valid; i++)
            memmove(element(x, a, run, i), x->data[SCALAR], x->size);
    memcpy(x->data[TESTED], x->data[SCALAR], x->bytes);
}

/* Rows, or planes; gaps between groups that are not there are not looked at. */
static bnorm_map_args block_args(const struct operand *x, bnorm_dtype type, const struct area *a,
                                 int planes, enum version v) {
    bnorm_map_args args = {.images = 1,
                           .groups = planes ? a->runs : 1,
                           .rows = planes ? 1 : a->runs,
                           .lanes = a->len,
                           .valid = planes ? a->runs : a->valid};
    args.x = (bnorm_tensor){.data = at(x, v), .type = type};
    *(planes ? &args.x.group_stride : &args.x.row_stride) = a->stride;
    return args;
}

/* A block of rows in chains, or with 0 of them as a tree. */
static void trial_block_of_rows(struct trial *r, size_t c, size_t rows, size_t chains) {
    const size_t len = run_len(r, c);
    const struct area a = {rows, len, c, len + gap(r)};
    const bnorm_dtype type = some_type(r, FLOAT_TYPES);
    test_context(r->t, "c = %zu of %zu, rows = %zu, chains = %zu, stride = %zu, type %d, values %d",
                 c, len, rows, chains, a.stride, (int)type, r->values);
    struct operand *x = tensor(r, "x", type, &a);
    maybe_constant(r, x, &a);
    struct operand *sum = doubles(r, "sum", c), *m2 = doubles(r, "m2", c);
    for (enum version v = SCALAR; v < VERSIONS; v++) {
        const bnorm_map_args args = block_args(x, type, &a, 0, v);
        if (chains)
            bnorm_training_of(r->isa[v])->moments_rows(&args, chains, at(sum, v), at(m2, v));
        else
            bnorm_training_of(r->isa[v])->moments_tree(&args, at(sum, v), at(m2, v));
    }
    compare(r);
}

static void trial_moments_rows(struct trial *r, size_t c, size_t round) {
    (void)round;
    const size_t len = run_len(r, c), chains = some_chains(r, len);
    trial_block_of_rows(r, c, some_rows(r, len, chains), chains);
}

static void check_moments_rows(struct test *t) {
    for_lengths(t, 10, long_runs, LONG_RUNS, trial_moments_rows);
}

static void trial_moments_span(struct trial *r, size_t len, size_t round) {
    (void)round;
    const size_t planes = 1 + rng_below(r->rng, 9);
    const struct area a = {planes, len, len, len + gap(r)};
    const bnorm_dtype type = some_type(r, FLOAT_TYPES);
    test_context(r->t, "len = %zu, planes = %zu, stride = %zu, type %d, values %d", len, planes,
                 a.stride, (int)type, r->values);
    struct operand *x = tensor(r, "x", type, &a);
    maybe_constant(r, x, &a);
    struct operand *sum = doubles(r, "sum", planes), *m2 = doubles(r, "m2", planes);
    for (enum version v = SCALAR; v < VERSIONS; v++) {
        const bnorm_map_args args = block_args(x, type, &a, 1, v);
        bnorm_training_of(r->isa[v])->moments_span(&args, at(sum, v), at(m2, v));
    }
    compare(r);
}

static void trial_any_plane(struct trial *r, size_t number, size_t round) {
    (void)number;
    trial_moments_span(r, 1 + rng_below(r->rng, 4096), round);
}

static void check_moments_span(struct test *t) {
    for_lengths(t, 14, long_planes, LONG_PLANES, trial_moments_span);
    for_lengths(t, 1, NULL, 0, trial_any_plane);
}

/* Rows of a leaf: 1, 2, 4, ... */
static size_t some_leaf(struct trial *r) {
    size_t sizes = 1;
    while ((size_t)1 << sizes <= BNORM_LEAF)
        sizes++;
    return (size_t)1 << rng_below(r->rng, sizes);
}

static void trial_moments_tree(struct trial *r, size_t c, size_t round) {
    (void)round;
    trial_block_of_rows(r, c, some_leaf(r), 0);
}

static void check_moments_tree(struct test *t) {
    for_lengths(t, 14, long_runs, LONG_RUNS, trial_moments_tree);
}

/* ---------------------------------------------------------------------------------------------- */
/* Trees of images                                                                                */

/* Of merge, and of add_blocks. */
enum tree { MERGED, ADDED };
enum { MAX_ROWS = 4096 };

/* The tables of both: rows of blocks of images anywhere in a batch, channels [first, first + c). */
struct blocks {
    enum tree tree;
    bnorm_partials sizes; /* without pointers */
    size_t first, c;
    struct operand *entries[2];
    const double *before[2]; /* what was in them */
    size_t rows;
    double values[MAX_ROWS]; /* of a channel in the blocks of a row */
    double constant;         /* all values are this one, exactly; NAN = they differ */
};

/* Rows of images [i, end), which whole leaves end at. */
static size_t rows_of(const struct blocks *k, size_t i, size_t end) {
    return bnorm_subtrees(i, end - i, k->sizes.leaf) * k->sizes.per_image;
}

/* Numbers of the first image: where it changes the tree and where not. */
static size_t some_first_image(struct trial *r) {
    switch (rng_below(r->rng, 4)) {
    case 0:
        return 0;
    case 1:
        return rng_below(r->rng, 10);
    case 2:
        return rng_below(r->rng, 1000);
    default: /* a little before a power of two, or that */
        return ((size_t)1 << (8 + rng_below(r->rng, 22))) - rng_below(r->rng, 130);
    }
}

static bnorm_partials some_sizes(struct trial *r, size_t c) {
    bnorm_partials p = {.first = some_first_image(r), .leaf = 1, .per_image = 1};
    p.n = 1 + rng_below(r->rng, one_in(r, 6) ? 600 : one_in(r, 3) ? 70 : 9);
    if (one_in(r, 3)) {
        p.leaf = BNORM_LEAF;
        p.size = BNORM_LEAF;
        p.last = one_in(r, 4) ? (double)(1 + rng_below(r->rng, 50)) : 1;
    } else {
        const size_t most = 65536 / c;
        p.per_image = one_in(r, 2) ? 1 : 1 + rng_below(r->rng, 5);
        p.n = p.n * p.per_image <= most ? p.n : 1 + most / p.per_image;
        p.size = (double)(1 + rng_below(r->rng, 4096));
        p.last = (double)(1 + rng_below(r->rng, (size_t)p.size));
    }
    p.hw = (double)(p.per_image - 1) * p.size + p.last;
    return p;
}

static const double *copy_of(struct trial *r, const struct operand *o) {
    if (r->used + o->bytes > POOL_BYTES)
        test_fail(r->t, "raise POOL_BYTES");
    double *copy = (double *)(void *)(r->pool + r->used);
    memcpy(copy, o->data[SCALAR], o->bytes);
    r->used += (o->bytes + 63) / 64 * 64;
    return copy;
}

/* Sums that all equal values have, and no deviations. */
static void fill_constant(struct blocks *k) {
    for (size_t row = 0; row < k->rows; row++)
        for (size_t i = k->first; i < k->first + k->c; i++)
            for (enum version v = SCALAR; v < VERSIONS; v++) {
                ((double *)k->entries[0]->data[v])[row * k->sizes.stride + i] =
                    k->constant * k->values[row];
                ((double *)k->entries[1]->data[v])[row * k->sizes.stride + i] = 0;
            }
}

/* The largest aligned power of two that fits. */
static void check_subtree(struct trial *r, size_t image, size_t images, size_t end, size_t most) {
    const size_t twice = 2 * images;
    const int good = images && !(images & (images - 1)) && image % images == 0 &&
                     images <= end - image && images <= most;
    const int larger = twice && twice <= most && image % twice == 0 && twice <= end - image;
    if (!good || larger)
        test_fail(r->t, "a subtree of %zu images at %zu, before %zu, at most %zu", images, image,
                  end, most);
}

static void new_blocks(struct trial *r, struct blocks *k, enum tree tree, size_t c) {
    *k = (struct blocks){.tree = tree, .sizes = some_sizes(r, c), .first = gap(r), .c = c};
    bnorm_partials *const p = &k->sizes;
    const size_t end = p->first + p->n;
    p->stride = k->first + c + gap(r);
    k->constant = one_in(r, 8) ? (double)(float)rng_normal(r->rng) : (double)NAN;
    test_context(r->t,
                 "c = %zu from %zu, stride = %zu, images [%zu, %zu), leaf = %zu, %zu per image, "
                 "%g and %g long, constant %g, values %d",
                 c, k->first, p->stride, p->first, end, p->leaf, p->per_image, p->size, p->last,
                 k->constant, r->values);
    for (size_t image = p->first, images; image < end; image += images) {
        images = bnorm_subtree(image, end, p->leaf);
        check_subtree(r, image, images, end, p->leaf);
        check_subtree(r, image, bnorm_subtree(image, end, BNORM_TREE), end, BNORM_TREE);
        if (k->rows + p->per_image > MAX_ROWS)
            test_fail(r->t, "raise MAX_ROWS");
        for (size_t b = 1; b < p->per_image; b++)
            k->values[k->rows++] = p->size;
        k->values[k->rows++] = p->last * (double)images;
    }
    if (k->rows != rows_of(k, p->first, end))
        test_fail(r->t, "bnorm_subtrees() gives %zu rows, there are %zu", rows_of(k, p->first, end),
                  k->rows);
    const size_t count = (k->rows - 1) * p->stride + k->first + c;
    k->entries[0] = doubles(r, "sums", count);
    k->entries[1] = doubles(r, "m2 or sums of products", count);
    fill_doubles(r, k->entries[0], -p->size, p->size);
    fill_doubles(r, k->entries[1], 0, p->size);
    if (k->constant == k->constant)
        fill_constant(k);
    for (size_t i = 0; i < 2; i++)
        k->before[i] = copy_of(r, k->entries[i]);
}

static bnorm_partials partials_of(const struct blocks *k, enum version v) {
    bnorm_partials p = k->sizes;
    for (size_t i = 0; i < 2; i++)
        p.entries[i] = at(k->entries[i], v);
    return p;
}

/* Which entries are results: the first row of each whole subtree. Which NaN is there and what the
 * other rows hold is up to the kernel; other channels are as they were. */
static void forget_rest(const struct blocks *k) {
    const size_t end = k->sizes.first + k->sizes.n;
    size_t image = k->sizes.first, node = 0;
    for (size_t row = 0; row < k->rows; row++) {
        const int is_node = row == node;
        if (is_node) {
            const size_t next = image + bnorm_subtree(image, end, BNORM_TREE);
            node += rows_of(k, image, next);
            image = next;
        }
        for (size_t i = 0; i < 2 * k->c; i++) {
            const size_t e = row * k->sizes.stride + k->first + i / 2;
            const double *want = (double *)k->entries[i % 2]->data[SCALAR] + e;
            double *got = (double *)k->entries[i % 2]->data[TESTED] + e;
            if (!is_node || (*want != *want && *got != *got))
                *got = *want;
        }
    }
}

static void check_close(struct trial *r, const char *what, size_t channel, double got,
                        long double want, long double size) {
    if (!(fabsl((long double)got - want) <= 1e-13L * size))
        test_fail(r->t, "%s of channel %zu is %.17g, not %.17Lg", what, channel, got, want);
}

/* What rows [row, row + rows) have together, by other formulas in long double: the sum, or the mean
 * of all rows, and M2; or two sums. */
static void check_node(struct trial *r, const struct blocks *k, size_t row, size_t rows, size_t i,
                       int is_total, double first, double second) {
    const double *a = k->before[0] + row * k->sizes.stride + i,
                 *b = k->before[1] + row * k->sizes.stride + i;
    long double n = 0, sum = 0, second_sum = 0, size = 0, widest = 0, squares = 0;
    for (size_t q = 0; q < rows; q++) {
        const long double v = (long double)a[q * k->sizes.stride], values = k->values[row + q];
        n += values;
        sum += v;
        second_sum += (long double)b[q * k->sizes.stride];
        size += fabsl(v);
        widest = fmaxl(widest, fabsl(v) / values);
    }
    if (k->tree == ADDED) {
        check_close(r, "sum", i, first, sum, size);
        check_close(r, "sum of products", i, second, second_sum, second_sum);
        return;
    }
    for (size_t q = 0; q < rows; q++) {
        const long double values = k->values[row + q],
                          d = (long double)a[q * k->sizes.stride] / values - sum / n;
        squares += d * d * values;
    }
    if (is_total)
        check_close(r, "mean", i, first, sum / n, widest);
    else
        check_close(r, "sum", i, first, sum, size);
    check_close(r, "m2", i, second, second_sum + squares, second_sum + n * widest * widest);
    const double constant = k->constant * (is_total ? 1 : (double)n);
    if (k->constant == k->constant && (first != constant || second != 0))
        test_fail(r->t, "channel %zu of equal values has %s %.17g and m2 %g", i,
                  is_total ? "mean" : "sum", first, second);
}

static void check_nodes(struct trial *r, const struct blocks *k, const double *const totals[2]) {
    const size_t end = k->sizes.first + k->sizes.n;
    const double *a = k->entries[0]->data[SCALAR], *b = k->entries[1]->data[SCALAR];
    for (size_t i = k->first; i < k->first + k->c; i++) {
        if (totals[0])
            check_node(r, k, 0, k->rows, i, 1, totals[0][i], totals[1][i]);
        for (size_t image = k->sizes.first, row = 0; image < end;) {
            const size_t next = image + bnorm_subtree(image, end, BNORM_TREE),
                         rows = rows_of(k, image, next), e = row * k->sizes.stride + i;
            check_node(r, k, row, rows, i, 0, a[e], b[e]);
            row += rows;
            image = next;
        }
    }
}

static void trial_tree(struct trial *r, enum tree tree, size_t c) {
    struct blocks k;
    new_blocks(r, &k, tree, c);
    const int totals = !one_in(r, 4);
    struct operand *first = totals ? doubles(r, "mean or sum_g", k.first + c) : NULL,
                   *second = totals ? doubles(r, "m2 or sum_gx", k.first + c) : NULL;
    for (enum version v = SCALAR; v < VERSIONS; v++) {
        const bnorm_partials p = partials_of(&k, v);
        if (tree == MERGED)
            bnorm_training_of(r->isa[v])->merge(&p, k.first, c, at(first, v), at(second, v));
        else
            bnorm_training_of(r->isa[v])->add_blocks(&p, k.first, c, at(first, v), at(second, v));
    }
    forget_rest(&k);
    compare(r);
    const double *const results[2] = {at(first, SCALAR), at(second, SCALAR)};
    if (r->values != 3 && r->values != 4)
        check_nodes(r, &k, results);
}

static void trial_merge(struct trial *r, size_t c, size_t round) {
    (void)round;
    trial_tree(r, MERGED, c);
}

static void check_merge(struct test *t) {
    for_lengths(t, 24, long_runs, LONG_RUNS, trial_merge);
}

static void trial_add_blocks(struct trial *r, size_t c, size_t round) {
    (void)round;
    trial_tree(r, ADDED, c);
}

static void check_add_blocks(struct test *t) {
    for_lengths(t, 24, long_runs, LONG_RUNS, trial_add_blocks);
}

static void trial_merge_pair(struct trial *r, size_t c, size_t round) {
    (void)round;
    double n[2] = {(double)(1 + rng_below(r->rng, 100000)),
                   (double)(1 + rng_below(r->rng, one_in(r, 2) ? 9 : 100000))};
    if (one_in(r, 4))
        n[1] = n[0];
    const double size = ldexp(1, (int)rng_below(r->rng, 60) - 40);
    test_context(r->t, "c = %zu, n = %g and %g, size %g, values %d", c, n[0], n[1], size,
                 r->values);
    struct operand *sum = doubles(r, "sum", c), *m2 = doubles(r, "m2", c);
    struct operand *next_sum = doubles(r, "next_sum", c), *next_m2 = doubles(r, "next_m2", c);
    fill_doubles(r, sum, -size * n[0], size * n[0]);
    fill_doubles(r, next_sum, -size * n[1], size * n[1]);
    fill_doubles(r, m2, 0, size * size);
    fill_doubles(r, next_m2, 0, one_in(r, 4) ? 0 : size * size);
    if (one_in(r, 8))
        for (enum version v = SCALAR; v < VERSIONS; v++)
            memcpy(sum->data[v], next_sum->data[v], sum->bytes);
    const double *before[2] = {copy_of(r, sum), copy_of(r, m2)};
    for (enum version v = SCALAR; v < VERSIONS; v++) {
        const bnorm_pair_args args = {
            .n = {n[0], n[1]},
            .sum = at(sum, v),
            .m2 = at(m2, v),
            .next_sum = at(next_sum, v),
            .next_m2 = at(next_m2, v),
        };
        bnorm_training_of(r->isa[v])->merge_pair(&args, c);
    }
    compare(r);
    for (size_t i = 0; i < c && r->values != 3 && r->values != 4; i++) {
        const long double n0 = n[0], n1 = n[1], all = n0 + n1, sum0 = before[0][i],
                          sum1 = ((double *)next_sum->data[SCALAR])[i], a = sum0 / n0,
                          b = sum1 / n1,
                          m2s = (long double)before[1][i] + ((double *)next_m2->data[SCALAR])[i];
        check_close(r, "sum", i, ((double *)sum->data[SCALAR])[i], sum0 + sum1, fabsl(sum0 + sum1));
        check_close(r, "m2", i, ((double *)m2->data[SCALAR])[i],
                    m2s + (b - a) * (b - a) * n0 * n1 / all, m2s + (a * a + b * b) * all);
    }
}

static void check_merge_pair(struct test *t) {
    for_lengths(t, 24, long_runs, LONG_RUNS, trial_merge_pair);
}

/* ---------------------------------------------------------------------------------------------- */
/* Coefficients                                                                                   */

/* As in training: n of a tensor, sometimes 1. */
static double some_count(struct trial *r) {
    return (double)(one_in(r, 4) ? 1 : 1 + rng_below(r->rng, 100000));
}

/* Not wanted, or an array of floats. */
static struct operand *maybe(struct trial *r, const char *name, size_t count) {
    return one_in(r, 3) ? NULL : floats(r, name, count);
}

static struct operand *maybe_parameters(struct trial *r, const char *name, size_t count,
                                        float unit) {
    return one_in(r, 3) ? NULL : parameters(r, name, count, unit);
}

static void trial_coefficients(struct trial *r, size_t c, size_t round) {
    const size_t first = gap(r), count = first + c;
    const double n = some_count(r), rates[] = {0, 0.1, 0.01, 1, 1, -0.5, 3};
    const double rate = rates[rng_below(r->rng, sizeof rates / sizeof rates[0])];
    const double eps = one_in(r, 3) ? 0 : one_in(r, 2) ? 1e-5 : 1e-3;
    const double divisor = one_in(r, 2) || n == 1 ? n : n - 1;
    const int scaled = round % 4 != 0;
    test_context(
        r->t, "c = %zu from %zu, n = %g, eps = %g, rate = %g, divisor = %g, scaled %d, values %d",
        c, first, n, eps, rate, divisor, scaled, r->values);
    struct operand *mean = doubles(r, "mean", count), *m2 = doubles(r, "m2", count);
    const double size = ldexp(1, (int)rng_below(r->rng, 60) - 40);
    fill_doubles(r, mean, -size, one_in(r, 4) ? 0x1p128 : size);
    fill_doubles(r, m2, 0, one_in(r, 4) ? 0 : size);
    struct operand *gamma = maybe_parameters(r, "gamma", count, 1);
    struct operand *beta = maybe_parameters(r, "beta", count, 0);
    struct operand *center = scaled ? floats(r, "center", count) : NULL;
    struct operand *scale = scaled ? floats(r, "scale", count) : NULL;
    struct operand *shift = scaled ? floats(r, "shift", count) : NULL;
    struct operand *save_mean = maybe(r, "save_mean", count);
    struct operand *save_mean_lo = maybe(r, "save_mean_lo", count);
    struct operand *save_invstd = maybe(r, "save_invstd", count);
    struct operand *save_var = maybe(r, "save_var", count);
    struct operand *running_mean = maybe_parameters(r, "running_mean", count, 0);
    struct operand *running_var = maybe_parameters(r, "running_var", count, 1);
    const int elsewhere = one_in(r, 2);
    struct operand *new_mean =
        running_mean && elsewhere ? floats(r, "new_mean", count) : running_mean;
    struct operand *new_var = running_var && elsewhere ? floats(r, "new_var", count) : running_var;
    for (enum version v = SCALAR; v < VERSIONS; v++) {
        const bnorm_coefficient_args args = {
            .mean = at(mean, v),
            .m2 = at(m2, v),
            .n = n,
            .eps = eps,
            .gamma = at(gamma, v),
            .beta = at(beta, v),
            .center = at(center, v),
            .scale = at(scale, v),
            .shift = at(shift, v),
            .save_mean = at(save_mean, v),
            .save_mean_lo = at(save_mean_lo, v),
            .save_invstd = at(save_invstd, v),
            .save_var = at(save_var, v),
            .running_mean = at(running_mean, v),
            .running_var = at(running_var, v),
            .new_mean = at(new_mean, v),
            .new_var = at(new_var, v),
            .rate = rate,
            .divisor = divisor,
        };
        bnorm_training_of(r->isa[v])->coefficients(&args, first, c);
    }
    compare(r);
}

static void check_coefficients(struct test *t) {
    for_lengths(t, 24, long_runs, LONG_RUNS, trial_coefficients);
}

static void trial_scale_shift(struct trial *r, size_t c, size_t round) {
    (void)round;
    test_context(r->t, "c = %zu, values %d", c, r->values);
    struct operand *gamma = maybe_parameters(r, "gamma", c, 1);
    struct operand *beta = maybe_parameters(r, "beta", c, 0);
    struct operand *mean_lo = maybe_parameters(r, "mean_lo", c, 0);
    struct operand *invstd = parameters(r, "invstd", c, 1);
    struct operand *scale = floats(r, "scale", c), *shift = floats(r, "shift", c);
    for (enum version v = SCALAR; v < VERSIONS; v++) {
        const bnorm_scale_args args = {
            .gamma = at(gamma, v),
            .beta = at(beta, v),
            .mean_lo = at(mean_lo, v),
            .invstd = at(invstd, v),
            .scale = at(scale, v),
            .shift = at(shift, v),
        };
        bnorm_training_of(r->isa[v])->scale_shift(&args, c);
    }
    compare(r);
}

static void check_scale_shift(struct test *t) {
    for_lengths(t, 24, long_runs, LONG_RUNS, trial_scale_shift);
}

static void trial_grad_coefficients(struct trial *r, size_t c, size_t round) {
    const size_t first = gap(r), count = first + c;
    const double n = some_count(r), size = ldexp(1, (int)rng_below(r->rng, 60) - 40);
    const int sloped = round % 4 != 0;
    test_context(r->t, "c = %zu from %zu, n = %g, sloped %d, values %d", c, first, n, sloped,
                 r->values);
    struct operand *sum_g = doubles(r, "sum_g", count), *sum_gx = doubles(r, "sum_gx", count);
    fill_doubles(r, sum_g, -size, size);
    fill_doubles(r, sum_gx, -size, size);
    struct operand *gamma = maybe_parameters(r, "gamma", count, 1);
    struct operand *mean_lo = maybe_parameters(r, "mean_lo", count, 0);
    struct operand *invstd = parameters(r, "invstd", count, 1);
    struct operand *dgamma = maybe(r, "dgamma", count), *dbeta = maybe(r, "dbeta", count);
    struct operand *scale = parameters(r, "scale", count, 1);
    canonical(scale); /* scale_shift wrote it */
    struct operand *slope = sloped ? floats(r, "slope", count) : NULL;
    struct operand *offset = sloped ? floats(r, "offset", count) : NULL;
    for (enum version v = SCALAR; v < VERSIONS; v++) {
        const bnorm_grad_coefficient_args args = {
            .sum_g = at(sum_g, v),
            .sum_gx = at(sum_gx, v),
            .n = n,
            .gamma = at(gamma, v),
            .mean_lo = at(mean_lo, v),
            .invstd = at(invstd, v),
            .dgamma = at(dgamma, v),
            .dbeta = at(dbeta, v),
            .scale = at(scale, v),
            .slope = at(slope, v),
            .offset = at(offset, v),
        };
        bnorm_training_of(r->isa[v])->grad_coefficients(&args, first, c);
    }
    compare(r);
}

static void check_grad_coefficients(struct test *t) {
    for_lengths(t, 24, long_runs, LONG_RUNS, trial_grad_coefficients);
}

/* ---------------------------------------------------------------------------------------------- */
/* Elementwise                                                                                    */

enum {
    ACTS = BNORM_ACT_HARD_SWISH + 1, /* without SLEEF */
    SLEEF_ACTS = BNORM_ACT_MISH + 1 - ACTS,
    PRES = BNORM_PRE_Y + 1 /* without a mask */
};

static bnorm_act_kind some_act_kind(const struct trial *r, size_t round) {
    static const bnorm_act_kind masked[] = {BNORM_ACT_RELU, BNORM_ACT_CLAMP, BNORM_ACT_LEAKY_RELU};
    if (r->kind->with & EXPONENTIAL)
        return (bnorm_act_kind)(ACTS + round % SLEEF_ACTS);
    if (r->kind->with & MASKED)
        return masked[round % 3];
    return (bnorm_act_kind)(round % ACTS);
}

static bnorm_act some_act(struct trial *r, size_t round) {
    const bnorm_act_kind kind = some_act_kind(r, round);
    const float slopes[] = {0.25f, 0.01f, 0.0f, -0.0f, -0.5f, 1, FLT_MAX, 1e-45f};
    if (kind == BNORM_ACT_LEAKY_RELU || kind == BNORM_ACT_ELU)
        return (bnorm_act){kind, slopes[rng_below(r->rng, 8)], 0};
    if (kind == BNORM_ACT_CLAMP) {
        const bnorm_act clamps[] = {{kind, 0, 6},    {kind, -0.0f, 6},           {kind, -1, 1},
                                    {kind, -1, 0},   {kind, -INFINITY, 0.5f},    {kind, -1, -0.0f},
                                    {kind, 0.5f, 1}, {kind, -INFINITY, INFINITY}};
        return clamps[rng_below(r->rng, 8)];
    }
    return (bnorm_act){kind, NAN, NAN}; /* a and b are not of these */
}

/* Sum of enum bnorm_hint; half of the time none. */
static unsigned some_hints(struct trial *r) {
    return one_in(r, 2) ? 0 : (unsigned)rng_below(r->rng, 16);
}

/* Where apply writes. */
enum place { APART, IN_X, IN_RESIDUAL };

static const char *place_text(enum place place) {
    return place == APART ? "apart" : place == IN_X ? "in x" : "in residual";
}

/* As many as the runs can be shared among. */
static size_t some_images(struct trial *r, size_t runs) {
    return runs % 2 == 0 && one_in(r, 3) ? 2 : 1;
}

/* All runs, as rows or as planes of so many images that follow one another. */
static bnorm_map_args map_sizes(int rows, size_t images, size_t runs, size_t len, size_t valid) {
    return (bnorm_map_args){.images = images,
                            .groups = rows ? 1 : runs / images,
                            .rows = rows ? runs / images : 1,
                            .lanes = len,
                            .valid = valid};
}

static bnorm_tensor operand_tensor(const struct operand *o, enum version v, bnorm_dtype type,
                                   const struct area *a, size_t images) {
    return (bnorm_tensor){.data = at(o, v),
                          .image_stride = a->runs / images * a->stride,
                          .group_stride = a->stride,
                          .row_stride = a->stride,
                          .type = type,
                          .quant = {1, 0}};
}

static void trial_apply(struct trial *r, int rows, size_t c, size_t round) {
    const size_t len = run_len(r, c), runs = some_runs(r, rows, len), images = some_images(r, runs),
                 channels = rows ? c : runs / images;
    const struct area x_area = {runs, len, c, len + gap(r)},
                      residual_area = {runs, len, c, len + gap(r)},
                      own_area = {runs, len, c, len + gap(r)};
    /* Without MIXED most outputs have the type of x. */
    const bnorm_dtype x_type = some_type(r, r->kind->with & EXPONENTIAL ? FLOAT_TYPES : TYPES);
    const bnorm_dtype any_type = some_type(r, TYPES);
    const bnorm_dtype y_type = r->kind->with & MIXED || one_in(r, 4) ? any_type : x_type;
    const int fits = dtype_size(x_type) == dtype_size(y_type);
    const enum place place = fits ? (enum place)rng_below(r->rng, 3) : APART;
    const int with_residual = place == IN_RESIDUAL || one_in(r, 2), with_center = one_in(r, 2);
    const struct area y_area = place == APART ? own_area : place == IN_X ? x_area : residual_area;
    const bnorm_act act = some_act(r, round);
    const unsigned hints = some_hints(r);
    const bnorm_quant x_quant = some_quant(r, x_type), residual_quant = some_quant(r, x_type),
                      y_quant = some_quant(r, y_type);
    struct mask mask = {.operand = NULL};
    if (r->kind->with & MASKED || (r->kind->with & PADDED && takes_mask(&act) && one_in(r, 2)))
        mask = new_mask(r, runs, len);
    test_context(
        r->t,
        "len = %zu, valid = %zu, runs = %zu, images = %zu, hints %u, act %d (%g, %g), center %d, "
        "residual %d, "
        "y %s, strides %zu %zu %zu, types %d %d, x (%g, %d), residual (%g, %d), y (%g, %d), "
        "mask %d at %zu, stride %zu, values %d",
        len, c, runs, images, hints, (int)act.kind, (double)act.a, (double)act.b, with_center,
        with_residual, place_text(place), x_area.stride, residual_area.stride, y_area.stride,
        (int)x_type, (int)y_type, (double)x_quant.scale, x_quant.zero_point,
        (double)residual_quant.scale, residual_quant.zero_point, (double)y_quant.scale,
        y_quant.zero_point, mask.operand != NULL, mask.at, mask.stride, r->values);
    struct operand *x = tensor(r, "x", x_type, &x_area);
    struct operand *residual = with_residual ? tensor(r, "residual", x_type, &residual_area) : NULL;
    struct operand *y = place == APART  ? tensor(r, "y", y_type, &y_area)
                        : place == IN_X ? x
                                        : residual;
    struct operand *center = with_center ? parameters(r, "center", channels, 0) : NULL;
    struct operand *scale = parameters(r, "scale", channels, 1);
    struct operand *shift = parameters(r, "shift", channels, -0.0f);
    for (enum version v = SCALAR; v < VERSIONS; v++) {
        bnorm_map_args args = map_sizes(rows, images, runs, len, c);
        args.x = operand_tensor(x, v, x_type, &x_area, images);
        args.argument = operand_tensor(residual, v, x_type, &residual_area, images);
        args.out = operand_tensor(y, v, y_type, &y_area, images);
        args.x.quant = x_quant;
        args.argument.quant = residual_quant;
        args.out.quant = y_quant;
        args.pre = residual ? BNORM_PRE_RESIDUAL : BNORM_PRE_X;
        args.center = at(center, v);
        args.scale = at(scale, v);
        args.shift = at(shift, v);
        args.act = act;
        args.hints = hints;
        args.mask = bits_of(&mask, v, runs / images);
        if (rows)
            r->isa[v]->apply_rows(&args);
        else
            r->isa[v]->apply_span(&args);
    }
    compare(r);
    check_padding(r, y, y_type, &y_area);
    check_other_bits(r, &mask, runs, len);
}

static void trial_apply_rows(struct trial *r, size_t len, size_t round) {
    trial_apply(r, 1, len, round);
}

static void trial_apply_span(struct trial *r, size_t len, size_t round) {
    trial_apply(r, 0, len, round);
}

static void check_apply_rows(struct test *t) {
    for_lengths(t, 6 * ACTS, long_runs, LONG_RUNS, trial_apply_rows);
}

static void check_apply_span(struct test *t) {
    for_lengths(t, 6 * ACTS, long_planes, LONG_PLANES, trial_apply_span);
}

/* ---------------------------------------------------------------------------------------------- */
/* Gradients                                                                                      */

/* What sums_* and dx_* share. */
struct grad {
    bnorm_map_args sizes; /* with all but operands */
    bnorm_dtype type;
    size_t images, channels;
    struct area x_area, dy_area, extra_area;
    struct operand *x, *dy, *extra, *center, *scale, *shift, *invstd;
    struct mask mask;
};

static enum bnorm_pre some_pre(struct trial *r, const bnorm_act *act, size_t round) {
    if (r->kind->with & EXPONENTIAL)
        return round / SLEEF_ACTS % 2 ? BNORM_PRE_RESIDUAL : BNORM_PRE_X;
    if (r->kind->with & MASKED || (r->kind->with & PADDED && takes_mask(act) && one_in(r, 3)))
        return BNORM_PRE_MASK;
    return (enum bnorm_pre)(round / ACTS % PRES);
}

static struct grad new_grad(struct trial *r, int rows, size_t images, size_t runs, size_t c,
                            size_t round) {
    const size_t len = run_len(r, c);
    const bnorm_act act = some_act(r, round);
    const bnorm_dtype type = some_type(r, FLOAT_TYPES);
    struct grad g = {
        .type = type,
        .images = images,
        .channels = rows ? c : runs / images,
        .x_area = {runs, len, c, len + gap(r)},
        .dy_area = {runs, len, c, len + gap(r)},
        .extra_area = {runs, len, c, len + gap(r)},
    };
    g.sizes = map_sizes(rows, images, runs, len, c);
    g.sizes.pre = some_pre(r, &act, round);
    g.sizes.act = act;
    g.sizes.hints = some_hints(r);
    const bnorm_map_args *s = &g.sizes;
    if (s->pre == BNORM_PRE_MASK)
        g.mask = new_mask(r, runs, len);
    test_context(r->t,
                 "len = %zu, valid = %zu, runs = %zu, images = %zu, type %d, pre %d, act %d (%g, "
                 "%g), strides "
                 "%zu %zu %zu, mask at %zu, stride %zu, values %d",
                 len, c, runs, images, (int)type, (int)s->pre, (int)act.kind, (double)act.a,
                 (double)act.b, g.x_area.stride, g.dy_area.stride, g.extra_area.stride, g.mask.at,
                 g.mask.stride, r->values);
    g.x = tensor(r, "x", type, &g.x_area);
    g.dy = tensor(r, "dy", type, &g.dy_area);
    g.extra = s->pre == BNORM_PRE_RESIDUAL || s->pre == BNORM_PRE_Y
                  ? tensor(r, "extra", type, &g.extra_area)
                  : NULL;
    g.center = parameters(r, "center", g.channels, 0);
    g.scale = parameters(r, "scale", g.channels, 1);
    g.shift = parameters(r, "shift", g.channels, -0.0f);
    g.invstd = parameters(r, "invstd", g.channels, 1);
    return g;
}

static bnorm_map_args grad_args(const struct grad *g, enum version v) {
    bnorm_map_args args = g->sizes;
    args.x = operand_tensor(g->x, v, g->type, &g->x_area, g->images);
    args.dy = operand_tensor(g->dy, v, g->type, &g->dy_area, g->images);
    args.argument = operand_tensor(g->extra, v, g->type, &g->extra_area, g->images);
    args.center = at(g->center, v);
    args.scale = at(g->scale, v);
    args.shift = at(g->shift, v);
    args.invstd = at(g->invstd, v);
    args.mask = bits_of(&g->mask, v, g->x_area.runs / g->images);
    return args;
}

/* As trial_block_of_rows. */
static void trial_sums_of_rows(struct trial *r, size_t c, size_t round, size_t rows,
                               size_t chains) {
    const struct grad g = new_grad(r, 1, 1, rows, c, round);
    struct operand *sum_g = doubles(r, "sum_g", c), *sum_gx = doubles(r, "sum_gx", c);
    for (enum version v = SCALAR; v < VERSIONS; v++) {
        const bnorm_map_args args = grad_args(&g, v);
        if (chains)
            bnorm_training_of(r->isa[v])->sums_rows(&args, chains, at(sum_g, v), at(sum_gx, v));
        else
            bnorm_training_of(r->isa[v])->sums_tree(&args, at(sum_g, v), at(sum_gx, v));
    }
    compare(r);
}

static void trial_sums_rows(struct trial *r, size_t c, size_t round) {
    const size_t len = run_len(r, c), chains = some_chains(r, len);
    trial_sums_of_rows(r, c, round, some_rows(r, len, chains), chains);
}

static void check_sums_rows(struct test *t) {
    for_lengths(t, ACTS * PRES, long_runs, LONG_RUNS, trial_sums_rows);
}

static void trial_sums_tree(struct trial *r, size_t c, size_t round) {
    trial_sums_of_rows(r, c, round, some_leaf(r), 0);
}

static void check_sums_tree(struct test *t) {
    for_lengths(t, ACTS * PRES, long_runs, LONG_RUNS, trial_sums_tree);
}

static void trial_sums_span(struct trial *r, size_t len, size_t round) {
    const size_t planes = 1 + rng_below(r->rng, 6);
    if (r->kind != &f32 && len > BNORM_BLOCK_SPAN)
        return;
    const struct grad g = new_grad(r, 0, 1, planes, len, round);
    struct operand *sum_g = doubles(r, "sum_g", planes), *sum_gx = doubles(r, "sum_gx", planes);
    for (enum version v = SCALAR; v < VERSIONS; v++) {
        const bnorm_map_args args = grad_args(&g, v);
        bnorm_training_of(r->isa[v])->sums_span(&args, at(sum_g, v), at(sum_gx, v));
    }
    compare(r);
}

static void check_sums_span(struct test *t) {
    for_lengths(t, ACTS * PRES, long_planes, LONG_PLANES, trial_sums_span);
}

/* An output of dx_*: absent, apart, or in one of two inputs. */
struct out_operand {
    struct operand *operand;
    struct area area;
};

static struct out_operand some_output(struct trial *r, const char *name, const struct grad *g,
                                      int may_be_x, const struct operand *taken) {
    const struct out_operand candidates[] = {
        {g->dy, g->dy_area}, {g->extra, g->extra_area}, {may_be_x ? g->x : NULL, g->x_area}};
    const struct out_operand *in = &candidates[rng_below(r->rng, 3)];
    if (one_in(r, 2) && in->operand && in->operand != taken)
        return *in;
    struct area own = g->x_area;
    own.stride = own.len + gap(r);
    return (struct out_operand){tensor(r, name, g->type, &own), own};
}

static void trial_dx(struct trial *r, int rows, size_t c, size_t round) {
    const size_t runs = some_runs(r, rows, run_len(r, c));
    const struct grad g = new_grad(r, rows, some_images(r, runs), runs, c, round);
    const size_t channels = g.channels, wanted = rng_below(r->rng, 4);
    const struct out_operand none = {NULL, {0, 0, 0, 0}};
    const struct out_operand dx = wanted == 0 ? none : some_output(r, "dx", &g, 1, NULL);
    const struct out_operand dresidual =
        wanted == 1 ? none : some_output(r, "dresidual", &g, 0, dx.operand);
    const int frozen = one_in(r, 3);
    struct operand *slope = frozen ? NULL : parameters(r, "slope", channels, -1);
    struct operand *offset = frozen ? NULL : parameters(r, "offset", channels, 0);
    char context[sizeof r->t->context];
    snprintf(context, sizeof context, "%s", r->t->context);
    test_context(r->t, "%.300s, frozen %d, dx %s, stride %zu, dresidual %s, stride %zu", context,
                 frozen, dx.operand ? dx.operand->name : "absent", dx.area.stride,
                 dresidual.operand ? dresidual.operand->name : "absent", dresidual.area.stride);
    for (enum version v = SCALAR; v < VERSIONS; v++) {
        bnorm_map_args args = grad_args(&g, v);
        args.slope = at(slope, v);
        args.offset = at(offset, v);
        args.out = operand_tensor(dx.operand, v, g.type, &dx.area, g.images);
        args.dresidual = operand_tensor(dresidual.operand, v, g.type, &dresidual.area, g.images);
        if (rows)
            bnorm_training_of(r->isa[v])->dx_rows(&args);
        else
            bnorm_training_of(r->isa[v])->dx_span(&args);
    }
    compare(r);
    check_padding(r, dx.operand, g.type, &dx.area);
    check_padding(r, dresidual.operand, g.type, &dresidual.area);
}

static void trial_dx_rows(struct trial *r, size_t len, size_t round) {
    trial_dx(r, 1, len, round);
}

static void trial_dx_span(struct trial *r, size_t len, size_t round) {
    trial_dx(r, 0, len, round);
}

static void check_dx_rows(struct test *t) {
    for_lengths(t, 2 * ACTS * PRES, long_runs, LONG_RUNS, trial_dx_rows);
}

static void check_dx_span(struct test *t) {
    for_lengths(t, 2 * ACTS * PRES, long_planes, LONG_PLANES, trial_dx_span);
}

/* ---------------------------------------------------------------------------------------------- */
/* Cases                                                                                          */

static const struct kind kinds[] = {
    {"bf16", BNORM_BF16, 0},        {"f16", BNORM_F16, 0},       {"types", BNORM_F32, MIXED},
    {"padding", BNORM_F32, PADDED}, {"mask", BNORM_F32, MASKED}, {"sleef", BNORM_F32, EXPONENTIAL},
};

/* Is there SLEEF, and can the scalar set, which is compared with, use it on this CPU? */
static int have_sleef(void) {
    float v = 1;
    const bnorm_shape shape = {.layout = BNORM_NCHW, .n = 1, .c = 1, .hw = 1};
    const bnorm_affine affine = {.act = {BNORM_ACT_SIGMOID, 0, 0}};
    const bnorm_exec exec = {.isa = &bnorm_isa_scalar};
    const bnorm_status status =
        bnorm_apply(&shape, (bnorm_in){&v, 0, 0}, (bnorm_out){&v, 0, 0}, &affine, &exec);
    return status != BNORM_UNSUPPORTED;
}

/* A kernel with the kinds that it can have, beside other types. */
static void add_kinds(struct suite *s, test_fn run, const char *kernel, unsigned with) {
    for (size_t i = 0; i < sizeof kinds / sizeof kinds[0]; i++) {
        char name[64];
        if (kinds[i].with & ~with)
            continue;
        snprintf(name, sizeof name, "kernel/%s/%s/%%s", kernel, kinds[i].name);
        suite_add_per_isa(s, run, &kinds[i], name);
    }
}

void add_kernels(struct suite *s) {
    const unsigned sleef = have_sleef() ? EXPONENTIAL : 0;
#define X(kernel, args) suite_add_per_isa(s, check_##kernel, &f32, "kernel/" #kernel "/f32/%s");
    BNORM_KERNELS(X)
#undef X
    add_kinds(s, check_moments_rows, "moments_rows", PADDED);
    add_kinds(s, check_moments_span, "moments_span", 0);
    add_kinds(s, check_moments_tree, "moments_tree", PADDED);
    add_kinds(s, check_apply_rows, "apply_rows", MIXED | PADDED | MASKED | sleef);
    add_kinds(s, check_apply_span, "apply_span", MIXED | MASKED | sleef);
    add_kinds(s, check_sums_rows, "sums_rows", PADDED | MASKED | sleef);
    add_kinds(s, check_sums_span, "sums_span", MASKED | sleef);
    add_kinds(s, check_sums_tree, "sums_tree", PADDED | MASKED | sleef);
    add_kinds(s, check_dx_rows, "dx_rows", PADDED | MASKED | sleef);
    add_kinds(s, check_dx_span, "dx_span", MASKED | sleef);
}
