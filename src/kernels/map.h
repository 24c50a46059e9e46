/* SPDX-License-Identifier: MIT
 *
 * Elementwise work: y of forward, dx and dresidual of backward. A run is a row, a plane, or rows
 * that follow one another without a gap. It is taken in groups of BNORM_VECTORS vectors, which are
 * loaded, computed and stored together, then in single vectors; types, activation and options are
 * asked for once a group. Where a run ends within a vector, the last vector begins so much earlier
 * that it is whole.
 *
 * There are three loops, of which a form is an instance: map_runs; map_together for rows of floats
 * in a cache, of which several pass at once, so that their parameters are loaded once; and map_apart for
 * rows of BF16, whose even and odd elements come apart. A form has five parameters:
 *   direction   FORWARD, BACKWARD
 *   source      of a vector's parameters: SPREAD, the same for all vectors of a run (planes, and
 *               blocks of channels that fit into a vector); LOADED, from arrays; TOGETHER, from
 *               arrays for the vectors of several rows; APART, from arrays in another order
 *   type        of all tensors, without a mask; BNORM_ANY: is asked for
 *   kind        of activation. CLAMP together has RELU, too; BNORM_CURVE is LEAKY_RELU and HARD_SWISH,
 *               in backward CLAMP, too.
 *               BNORM_ANY: is asked for, of all where types are asked for, too, else of IDENTITY, RELU,
 *               in forward CLAMP, and what has_curves says
 *   sloped      whether dx has the terms of batch statistics; BNORM_ANY: is asked for */

/* Vectors of a group: their latencies overlap, also where a compiler must assume that a store
 * changes what a later load reads. */
#define BNORM_VECTORS ((size_t)4)
#define BNORM_GROUP_F (BNORM_VECTORS * VEC_F)
/* The same of lines of outputs. */
#define BNORM_AHEAD_OUT 1024
/* Bytes of output of runs between gaps whose lines are not asked for. */
#define BNORM_PART ((size_t)4096)
/* Runs of so many elements are aligned to lines of the cache, and streamed. */
#define BNORM_LONG_RUN 512
/* Rows that follow one another are joined. Their parameters are written one behind the other, but of
 * BNORM_LONG_ROW channels and more in whole groups; all arrays together have room for BNORM_ROOM
 * floats. */
#define BNORM_LONG_ROW 256
#define BNORM_ROOM     ((size_t)1536)
/* Planes of fewer elements are joined to rows: of one image, of several, and of types and
 * activations without a form of their own. */
#define BNORM_SMALL_PLANE  ((size_t)2 * VEC_F)
#define BNORM_SMALL_PLANES ((size_t)4 * VEC_F)
#define BNORM_SMALL_ANY    ((size_t)128)
/* Rows that pass together, BNORM_VECTORS of them, have so many channels at least, where they can be
 * joined. */
#define BNORM_FEW_LANES ((size_t)8 * VEC_F)

enum direction { FORWARD, BACKWARD };
enum source { SPREAD, TOGETHER, LOADED, APART };

#define BNORM_ANY   (-1)
#define BNORM_CURVE (-2)

struct form {
    enum direction direction;
    enum source source;
    int type, kind;
    int sloped;
};

/* Arrays of parameters; those that are not wanted are any readable memory. */
struct parameters {
    const float *center, *scale, *shift, *invstd, *slope, *offset;
};

#define BNORM_FOR_PARAMETERS(m, X)                                                                 \
    if ((m)->centred) {                                                                            \
        X(0, center);                                                                              \
    }                                                                                              \
    X(1, scale);                                                                                   \
    X(2, shift);                                                                                   \
    if ((m)->sloped) {                                                                             \
        X(3, invstd);                                                                              \
        X(4, slope);                                                                               \
        X(5, offset);                                                                              \
    }

struct mapping;
struct block;
typedef void map_function(const struct mapping *m, const struct block *b);

/* What holds for a whole call. */
struct mapping {
    enum direction direction;
    bnorm_dtype type, out_type;
    size_t size, out_size; /* bytes of an element */
    enum bnorm_pre pre;
    bnorm_act act;
    int centred, sloped;
    int reads_x; /* for more than its own sake; always in forward */
    int has_out, has_dresidual, writes_bits;
    int in_place; /* an output is an input */
    unsigned hints;
    size_t ahead;
    unsigned char *bits; /* the mask, or NULL */
    struct quant x_quant, argument_quant, out_quant;
    struct parameters p;
    map_function *spread, *several, *loaded, *any; /* the forms; the first two may be NULL */
};

/* Where the elements of a run are. Absent tensors are any memory, which is not looked at. */
struct run {
    const char *x, *dy, *argument;
    char *out, *dresidual;
    size_t bit;
};

/* Bytes from a run to the next of each tensor; 0 of absent ones. */
struct strides {
    size_t x, dy, argument, out, dresidual, bit;
};

/* Rows of one group, or planes of one image. */
struct block {
    struct run run;
    struct strides strides;
    size_t rows, lanes;
    unsigned hints;  /* those that are followed */
    int dense;       /* rows follow one another without a gap */
    int streams_all; /* with BNORM_STREAM: of floats single vectors, too */
    /* The parameters of the first element have number `first`. Loaded ones repeat after `period`
     * elements, and `step` = BNORM_GROUP_F % period. Where nothing can be read behind these (exact),
     * groups begin with the first element. Spread ones are `each` per run. */
    size_t first, period, step, each;
    int exact;
};

/* Parameters that stay in registers. */
struct held {
    vec_f center, scale, shift, invstd, slope, offset;
};

#define BNORM_EACH                                                                                 \
    BNORM_UNROLL                                                                                   \
    for (size_t q = 0; q < count; q++)
#define BNORM_PAIRS                                                                                \
    BNORM_UNROLL                                                                                   \
    for (size_t q = 0; q + 1 < count; q += 2)

/* ---------------------------------------------------------------------------------------------- */
/* Groups */

/* Where all lanes have the same parameters, or these are in that order, BF16 comes and goes with even and
 * odd elements apart, which takes half the instructions. */
BNORM_INLINE int goes_apart(const struct form f, size_t count) {
    return f.source == APART || (f.source == SPREAD && f.type == BNORM_BF16 && count % 2 == 0);
}

BNORM_INLINE void load_vectors(vec_f *to, bnorm_dtype type, const char *p,
                               const struct quant *quant, size_t count, int apart) {
    const vec_f scale = vec_set1(quant->scale), zero = vec_set1(quant->zero_point);
#define BNORM_AT(element) ((const element *)(const void *)p + q * VEC_F)
    switch (type) {
    case BNORM_F32:
        BNORM_EACH to[q] = vec_load(BNORM_AT(float));
        break;
    case BNORM_BF16:
        if (apart)
            BNORM_PAIRS vec_load_bf16_apart(to + q, BNORM_AT(uint16_t));
        else
            BNORM_EACH to[q] = vec_load_bf16(BNORM_AT(uint16_t));
        break;
    case BNORM_F16:
        BNORM_EACH to[q] = vec_load_f16(BNORM_AT(uint16_t));
        break;
    case BNORM_S8:
        BNORM_EACH to[q] = vec_mul(vec_sub(vec_load_s8(BNORM_AT(uint8_t)), zero), scale);
        break;
    case BNORM_U8:
        BNORM_EACH to[q] = vec_mul(vec_sub(vec_load_u8(BNORM_AT(uint8_t)), zero), scale);
        break;
    }
#undef BNORM_AT
}

/* Canonical values; a group in whole lines past the caches if `streams`, of floats and halves. */
BNORM_INLINE void store_vectors(char *p, bnorm_dtype type, const struct quant *quant,
                                const vec_f *v, size_t count, int streams, int apart) {
#define BNORM_AT(element) ((element *)(void *)p + q * VEC_F)
    switch (type) {
    case BNORM_F32:
        if (BNORM_UNLIKELY(streams))
            BNORM_EACH vec_stream(BNORM_AT(float), v[q]);
        else
            BNORM_EACH vec_store(BNORM_AT(float), v[q]);
        break;
    case BNORM_BF16:
        if (apart && BNORM_UNLIKELY(streams))
            BNORM_PAIRS vec_stream_bf16_apart(BNORM_AT(uint16_t), v[q], v[q + 1]);
        else if (apart)
            BNORM_PAIRS vec_store_bf16_apart(BNORM_AT(uint16_t), v[q], v[q + 1]);
        else if (BNORM_UNLIKELY(streams))
            BNORM_PAIRS vec_stream_bf16_2(BNORM_AT(uint16_t), v[q], v[q + 1]);
        else if (count % 2 == 0)
            BNORM_PAIRS vec_store_bf16_2(BNORM_AT(uint16_t), v[q], v[q + 1]);
        else
            BNORM_EACH vec_store_bf16(BNORM_AT(uint16_t), v[q]);
        break;
    case BNORM_F16:
        if (BNORM_UNLIKELY(streams))
            BNORM_PAIRS vec_stream_f16_2(BNORM_AT(uint16_t), v[q], v[q + 1]);
        else
            BNORM_EACH vec_store_f16(BNORM_AT(uint16_t), v[q]);
        break;
    case BNORM_S8:
    case BNORM_U8: {
        const int zero = (int)quant->zero_point, is_signed = type == BNORM_S8;
        vec_f steps[BNORM_VECTORS];
        BNORM_EACH steps[q] = quotient(v[q], quant);
        if (count == 4)
            vec_store_8_4((uint8_t *)p, steps, zero, is_signed);
        else
            BNORM_EACH vec_store_8(BNORM_AT(uint8_t), steps[q], zero, is_signed);
        break;
    }
    }
#undef BNORM_AT
}

/* Whether vectors have no NaN to be made canonical: one test for several, where that takes fewer
 * instructions. */
BNORM_INLINE int are_numbers(const vec_f *v, size_t count) {
    return count > 1 && __builtin_expect(vec_are_numbers(v, count), 1);
}

BNORM_INLINE vec_f leaky_relu(vec_f v, vec_f a) {
    return vec_mul(v, vec_if_gt(v, vec_set1(0), vec_set1(1), a));
}
BNORM_INLINE vec_f hard_swish(vec_f v) {
    const vec_f m = within_three(v), three = vec_set1(3);
    return vec_if_le(three, v, v, vec_mul(vec_mul(m, vec_add(m, three)), vec_set1(1.0f / 6)));
}

/* Whether a form has LEAKY_RELU and HARD_SWISH, and in backward CLAMP. */
BNORM_INLINE int has_curves(const struct form f) {
    const int floats = f.type == BNORM_F32 && f.direction == FORWARD;
    return f.kind == BNORM_CURVE || (f.kind == BNORM_ANY && (f.type == BNORM_ANY || floats));
}

/* Out of line, as are SLEEF's functions. */
BNORM_RARE void smooth_values(bnorm_act_kind kind, float a, float *v, size_t n) {
    for (size_t i = 0; i < n; i += VEC_F)
        vec_store(v + i, vec_canonical(smooth_value(kind, vec_load(v + i), vec_set1(a))));
}

/* y, canonical; RELU has the limits of a CLAMP, too. */
BNORM_INLINE void activate_vectors(const struct form f, const bnorm_act *act, vec_f *v,
                                   size_t count) {
    const vec_f a = vec_set1(act->a), b = vec_set1(act->b);
    const int kind = f.kind == BNORM_ANY ? (int)act->kind : f.kind,
              clamps = kind == BNORM_ACT_RELU || kind == BNORM_ACT_CLAMP,
              relu = f.kind == BNORM_ACT_RELU || act->kind == BNORM_ACT_RELU;
    if (has_curves(f)) {
        if (act->kind == BNORM_ACT_LEAKY_RELU) {
            BNORM_EACH v[q] = leaky_relu(v[q], a);
        } else if (act->kind == BNORM_ACT_HARD_SWISH) {
            BNORM_EACH v[q] = hard_swish(v[q]);
        } else if (f.type == BNORM_ANY && act->kind > BNORM_ACT_HARD_SWISH) {
            float values[BNORM_GROUP_F];
            BNORM_EACH vec_store(values + q * VEC_F, v[q]);
            smooth_values(act->kind, act->a, values, count * VEC_F);
            BNORM_EACH v[q] = vec_load(values + q * VEC_F);
            return;
        }
    }
    if (are_numbers(v, count)) {
        if (clamps)
            BNORM_EACH v[q] = vec_max(v[q], a);
        if (clamps && !relu)
            BNORM_EACH v[q] = vec_min(v[q], b);
    } else if (clamps && relu && (f.kind == BNORM_ACT_RELU || !VEC_TESTS_NAN)) {
        BNORM_EACH v[q] = vec_relu(v[q]);
    } else if (clamps) {
        BNORM_EACH v[q] = vec_clamp(v[q], a, b);
    } else {
        BNORM_EACH v[q] = vec_canonical_result(v[q]);
    }
}

#define BNORM_CASE(kind)                                                                           \
    case kind:                                                                                     \
        BNORM_EACH BNORM_OF(kind);                                                                 \
        break;

/* g = dy*act'(v) */
BNORM_INLINE void gradient_vectors(const struct form f, const bnorm_act *act, const vec_f *v,
                                   vec_f *g, size_t count) {
    const vec_f a = vec_set1(act->a), b = vec_set1(act->b);
#define BNORM_OF(kind) g[q] = gradient(kind, v[q], g[q], a, b)
    if (!has_curves(f)) {
        BNORM_EACH BNORM_OF(BNORM_ACT_RELU);
        return;
    }
    if (f.kind == BNORM_CURVE && act->kind <= BNORM_ACT_RELU)
        __builtin_unreachable();
    switch (act->kind) {
        BNORM_PLAIN_KINDS(BNORM_CASE)
    default: {
        if (f.kind == BNORM_CURVE)
            __builtin_unreachable();
        float values[2][BNORM_GROUP_F];
        BNORM_EACH vec_store(values[0] + q * VEC_F, v[q]);
        BNORM_EACH vec_store(values[1] + q * VEC_F, g[q]);
        smooth_gradients(act->kind, act->a, values[0], values[1], count * VEC_F);
        BNORM_EACH g[q] = vec_load(values[1] + q * VEC_F);
    }
    }
#undef BNORM_OF
}
#undef BNORM_CASE

/* A bit per element: whether the derivative is that of the upper branch. */
BNORM_INLINE uint64_t branch_bits(const bnorm_act *act, const vec_f *v, size_t count) {
    const vec_f zero = vec_set1(0), low = vec_set1(act->a), high = vec_set1(act->b);
    uint64_t word = 0;
    BNORM_EACH {
        const unsigned bits = act->kind == BNORM_ACT_CLAMP
                                  ? vec_bits_gt(v[q], low) & vec_bits_gt(high, v[q])
                                  : vec_bits_gt(v[q], zero);
        word |= (uint64_t)bits << (q * VEC_F);
    }
    return word;
}

/* The type of a tensor that has this one in the call; backward has no quantized ones. */
BNORM_INLINE bnorm_dtype type_of(const struct form f, bnorm_dtype type) {
    if (f.direction == BACKWARD && type > BNORM_F16)
        __builtin_unreachable();
    return f.type == BNORM_ANY ? type : (bnorm_dtype)f.type;
}

/* Which outputs there are. */
BNORM_INLINE int has_out(const struct form f, const struct mapping *m) {
    return f.type == BNORM_ANY && f.direction == BACKWARD ? m->has_out : 1;
}
BNORM_INLINE int has_dresidual(const struct form f, const struct mapping *m) {
    const int never = f.direction == FORWARD || f.kind == BNORM_ACT_IDENTITY;
    return never ? 0 : m->has_dresidual;
}

/* What is stored; canonical. */
struct results {
    vec_f out[BNORM_VECTORS], dresidual[BNORM_VECTORS];
    uint64_t bits; /* of a mask that is written */
};

/* Vectors of a run, or of rows that are `stride` bytes apart. */
BNORM_INLINE void load_inputs(const struct form f, vec_f *to, bnorm_dtype type, const char *p,
                              size_t stride, const struct quant *quant, size_t count) {
    if (f.source == TOGETHER)
        BNORM_EACH to[q] = vec_load((const float *)(const void *)(p + q * stride));
    else
        load_vectors(to, type, p, quant, count, goes_apart(f, count));
}

/* `count` vectors from element e of a run on, whose parameters begin with number i; together, of as
 * many rows. */
BNORM_INLINE void compute(const struct form f, const struct mapping *m, const struct run *r,
                          const struct strides *s, const struct held *h, size_t i, size_t e,
                          size_t count, struct results *to) {
    vec_f x[BNORM_VECTORS] = {0}, v[BNORM_VECTORS] = {0}, g[BNORM_VECTORS] = {0};
    const int any = f.type == BNORM_ANY, forward = f.direction == FORWARD;
    const int sloped = f.sloped == BNORM_ANY ? m->sloped : f.sloped,
              centred = any || forward ? m->centred : 1;
    const bnorm_dtype type = type_of(f, m->type);
    const size_t at = e * (any ? m->size : size_of(type));
#define BNORM_P(name) (f.source >= LOADED ? vec_load(m->p.name + i + q * VEC_F) : h->name)
    if (forward || sloped || m->reads_x) {
        load_inputs(f, x, type, r->x + at, s->x, &m->x_quant, count);
        if (centred)
            BNORM_EACH x[q] = vec_sub(x[q], BNORM_P(center));
    }
    if (forward) {
        BNORM_EACH v[q] = vec_fma(x[q], BNORM_P(scale), BNORM_P(shift));
        if (BNORM_UNLIKELY(m->pre == BNORM_PRE_RESIDUAL)) {
            load_inputs(f, g, type, r->argument + at, s->argument, &m->argument_quant, count);
            BNORM_EACH v[q] = vec_add(v[q], g[q]);
        }
        if (any && m->bits)
            to->bits = branch_bits(&m->act, v, count);
        activate_vectors(f, &m->act, v, count);
        BNORM_EACH to->out[q] = v[q];
        return;
    }
    const int has_argument =
        (f.kind == BNORM_ANY ? (int)m->act.kind : f.kind) != BNORM_ACT_IDENTITY;
    if (has_argument) {
        if (m->pre == BNORM_PRE_Y) {
            load_inputs(f, v, type, r->argument + at, s->argument, &m->x_quant, count);
        } else if (any && m->pre == BNORM_PRE_MASK) {
            const uint64_t word = read_bits(m->bits, r->bit + e, count * VEC_F);
            BNORM_EACH v[q] = vec_if_bits((unsigned)(word >> (q * VEC_F)), vec_set1(1));
        } else {
            BNORM_EACH v[q] = vec_fma(x[q], BNORM_P(scale), BNORM_P(shift));
            if (m->pre == BNORM_PRE_RESIDUAL) {
                load_inputs(f, g, type, r->argument + at, s->argument, &m->x_quant, count);
                BNORM_EACH v[q] = vec_add(v[q], g[q]);
            }
        }
    }
    load_inputs(f, g, type, r->dy + at, s->dy, &m->x_quant, count);
    if (has_argument)
        gradient_vectors(f, &m->act, v, g, count);
    if (has_dresidual(f, m))
        BNORM_EACH to->dresidual[q] = vec_canonical(g[q]);
    if (sloped) {
        BNORM_EACH g[q] = vec_fma(g[q], BNORM_P(scale), BNORM_P(offset));
        BNORM_EACH x[q] = vec_mul(x[q], BNORM_P(invstd));
        BNORM_EACH g[q] = vec_fma(x[q], BNORM_P(slope), g[q]);
    } else {
        BNORM_EACH g[q] = vec_mul(g[q], BNORM_P(scale));
    }
    BNORM_EACH to->out[q] = g[q];
    if (any || !are_numbers(g, count))
        BNORM_EACH to->out[q] = vec_canonical_result(g[q]);
#undef BNORM_P
}

BNORM_INLINE void store_results(const struct form f, const struct mapping *m, const struct run *r,
                                size_t e, size_t count, const struct results *from, int streams) {
    const int any = f.type == BNORM_ANY, apart = goes_apart(f, count);
    const bnorm_dtype type = type_of(f, m->out_type);
    const size_t at = e * (any ? m->out_size : size_of(type));
    if (has_out(f, m))
        store_vectors(r->out + at, type, &m->out_quant, from->out, count, streams, apart);
    if (has_dresidual(f, m))
        store_vectors(r->dresidual + at, type, &m->out_quant, from->dresidual, count, streams,
                      apart);
}

/* The vectors of as many rows. */
BNORM_INLINE void store_rows(const struct form f, const struct mapping *m, const struct run *r,
                             const struct strides *s, size_t e, size_t count,
                             const struct results *from) {
    const size_t at = e * sizeof(float);
    BNORM_EACH vec_store((float *)(void *)(r->out + at + q * s->out), from->out[q]);
    if (has_dresidual(f, m))
        BNORM_EACH vec_store((float *)(void *)(r->dresidual + at + q * s->dresidual),
                             from->dresidual[q]);
}

/* ---------------------------------------------------------------------------------------------- */
/* Runs */

BNORM_INLINE void skip_rows(const struct form f, struct run *r, const struct strides *s, size_t n) {
    r->x += n * s->x;
    r->argument += n * s->argument;
    r->out += n * s->out;
    r->bit += n * s->bit;
    if (f.direction == BACKWARD) {
        r->dy += n * s->dy;
        r->dresidual += n * s->dresidual;
    }
}
BNORM_INLINE void skip_row(const struct form f, struct run *r, const struct strides *s) {
    skip_rows(f, r, s, 1);
}

BNORM_INLINE void skip_elements(struct run *r, const struct form f, const struct mapping *m,
                                size_t n) {
    const size_t in = f.type == BNORM_ANY ? m->size : size_of((bnorm_dtype)f.type),
                 out = f.type == BNORM_ANY ? m->out_size : in;
    r->x += n * in;
    r->dy += n * in;
    r->argument += n * in;
    r->out += n * out;
    r->dresidual += n * out;
    r->bit += n;
}

/* The parameters of all vectors of a run, `each` of them, a power of two, from number i on, over and
 * over; together, those of a vector. */
BNORM_INLINE void hold(const struct form f, const struct parameters *p, size_t i, size_t each,
                       struct held *h) {
#define BNORM_HOLD(load)                                                                           \
    {                                                                                              \
        h->center = load(p->center);                                                               \
        h->scale = load(p->scale);                                                                 \
        h->shift = load(p->shift);                                                                 \
        if (f.direction == BACKWARD) {                                                             \
            h->invstd = load(p->invstd);                                                           \
            h->slope = load(p->slope);                                                             \
            h->offset = load(p->offset);                                                           \
        }                                                                                          \
    }
#define BNORM_ONE_OF(array)  vec_set1((array)[i])
#define BNORM_SOME_OF(array) vec_repeat((array) + i, each)
#define BNORM_ALL_OF(array)  vec_keep(vec_load((array) + i))
    if (f.source == TOGETHER)
        BNORM_HOLD(BNORM_ALL_OF)
    else if (each == 1)
        BNORM_HOLD(BNORM_ONE_OF)
    else
        BNORM_HOLD(BNORM_SOME_OF)
#undef BNORM_ONE_OF
#undef BNORM_SOME_OF
#undef BNORM_ALL_OF
#undef BNORM_HOLD
}

/* Asks for the lines that a group from element e of r on will be followed by. */
BNORM_INLINE void prefetch_group(const struct form f, const struct mapping *m, const struct run *r,
                                 size_t e, unsigned hints) {
    const size_t size = f.type == BNORM_ANY ? m->size : size_of((bnorm_dtype)f.type),
                 out_size = f.type == BNORM_ANY ? m->out_size : size, in = BNORM_GROUP_F * size,
                 out = BNORM_GROUP_F * out_size;
    const int argument = reads_argument(m->pre);
#define BNORM_PREFETCH(t)                                                                          \
    vec_prefetch((const float *)(const void *)(r->t + e * size + m->ahead + k))
#define BNORM_PREFETCH_TO(t)                                                                       \
    vec_prefetch_out((const float *)(const void *)(r->t + e * out_size + BNORM_AHEAD_OUT + k))
    for (size_t k = 0; (hints & BNORM_PREFETCH_IN) && k < in; k += 64) {
        BNORM_PREFETCH(x);
        if (f.direction == BACKWARD)
            BNORM_PREFETCH(dy);
        if (argument)
            BNORM_PREFETCH(argument);
    }
    for (size_t k = 0; (hints & BNORM_PREFETCH_OUT) && k < out; k += 64) {
        if (has_out(f, m))
            BNORM_PREFETCH_TO(out);
        if (has_dresidual(f, m))
            BNORM_PREFETCH_TO(dresidual);
    }
#undef BNORM_PREFETCH
#undef BNORM_PREFETCH_TO
}

/* Inputs of a vector. */
struct inputs {
    _Alignas(64) char x[VEC_F * sizeof(float)], dy[VEC_F * sizeof(float)],
        argument[VEC_F * sizeof(float)];
};

/* Copies those of a run from element e on; the result is a run of them. */
BNORM_INLINE struct run keep_inputs(const struct form f, const struct mapping *m, struct run r,
                                    size_t e, struct inputs *to) {
    const size_t bytes = VEC_F * m->size;
    skip_elements(&r, f, m, e);
    memcpy(to->x, r.x, bytes);
    memcpy(to->argument, r.argument, bytes);
    if (f.direction == BACKWARD)
        memcpy(to->dy, r.dy, bytes);
    return (struct run){to->x, to->dy, to->argument, NULL, NULL, r.bit};
}

/* Runs of at least a vector. Where a run ends within a vector, the last vector is computed first, as
 * its elements may be overwritten before their turn, and stored last; in the form for everything
 * else its inputs are copied, which takes less code. What is copied first has no other name
 * afterwards, so that it stays in registers while outputs are stored. */
BNORM_INLINE void map_runs(const struct form f, const struct mapping *given,
                           const struct block *block) {
    const struct mapping mine = *given, *const m = &mine;
    const struct strides strides = block->strides;
    const size_t len = block->lanes, first = block->first, period = block->period,
                 step = block->step, each = block->each, tail = len % VEC_F, whole = len - tail,
                 grouped = len - len % BNORM_GROUP_F;
    const int any = f.type == BNORM_ANY, writes_bits = any && f.direction == FORWARD && m->bits;
    struct run r = block->run;
    const unsigned hints = block->hints;
    struct bit_writer w = {0};
    struct held h;
/* Which parameters element e has. */
#define BNORM_INDEX(e)                                                                             \
    (f.source == SPREAD ? 0 : first + (e) < period ? first + (e) : (first + (e)) % period)
    if (writes_bits)
        begin_bits(&w, m->bits, r.bit);
    for (size_t row = 0; row < block->rows; row++, skip_row(f, &r, &strides)) {
        struct results last = {.bits = 0};
        struct inputs inputs;
        struct run kept = {0};
        size_t e = 0, i = BNORM_INDEX(0);
        if (f.source == SPREAD)
            hold(f, &m->p, (first + row) * each, each, &h);
        if (writes_bits)
            seek_bits(&w, r.bit);
        if (tail && any)
            kept = keep_inputs(f, m, r, len - VEC_F, &inputs);
        else if (tail)
            compute(f, m, &r, &strides, &h, BNORM_INDEX(len - VEC_F), len - VEC_F, 1, &last);
        for (; e < grouped; e += BNORM_GROUP_F) {
            struct results results = {.bits = 0};
            if (BNORM_UNLIKELY(hints))
                prefetch_group(f, m, &r, e, hints);
            compute(f, m, &r, &strides, &h, i, e, BNORM_VECTORS, &results);
            store_results(f, m, &r, e, BNORM_VECTORS, &results, (hints & BNORM_STREAM) != 0);
            if (writes_bits)
                put_bits(&w, results.bits, BNORM_GROUP_F);
            if (f.source == LOADED) {
                i += step;
                i = i >= period ? i - period : i;
            }
        }
        for (; e < (any ? len : whole); e += VEC_F) {
            struct results results = {.bits = 0};
            const size_t again = any && e >= whole ? VEC_F - tail : 0;
            e -= again;
            compute(f, m, again ? &kept : &r, &strides, &h, BNORM_INDEX(e), again ? 0 : e, 1,
                    &results);
            store_results(f, m, &r, e, 1, &results, f.type == BNORM_F32 && block->streams_all);
            if (writes_bits)
                put_bits(&w, results.bits >> again, VEC_F - again);
        }
        if (tail && !any)
            store_results(f, m, &r, len - VEC_F, 1, &last, 0);
    }
    if (writes_bits)
        end_bits(&w);
#undef BNORM_INDEX
}

/* Rows of floats that pass together: each vector of parameters is loaded once for all of them. Of
 * rows that end within a vector the last one is computed first and stored last, as in map_runs. */
BNORM_INLINE void map_together(const struct form f, const struct mapping *given,
                               const struct block *block) {
    const struct mapping mine = *given, *const m = &mine;
    const struct strides strides = block->strides;
    const size_t len = block->lanes, tail = len % VEC_F, whole = len - tail;
    const size_t count = BNORM_VECTORS;
    struct run r = block->run;
    for (size_t rows = block->rows; rows > 0; rows -= count) {
        struct results last = {.bits = 0};
        struct held h;
        if (tail) {
            hold(f, &m->p, len - VEC_F, VEC_F, &h);
            compute(f, m, &r, &strides, &h, 0, len - VEC_F, count, &last);
        }
        for (size_t e = 0; e < whole; e += VEC_F) {
            struct results results = {.bits = 0};
            hold(f, &m->p, e, VEC_F, &h);
            compute(f, m, &r, &strides, &h, 0, e, count, &results);
            store_rows(f, m, &r, &strides, e, count, &results);
        }
        if (tail)
            store_rows(f, m, &r, &strides, len - VEC_F, count, &last);
        skip_rows(f, &r, &strides, count);
    }
}

/* Rows of whole groups of BF16. */
BNORM_INLINE void map_apart(const struct form f, const struct mapping *given,
                            const struct block *block) {
    const struct mapping mine = *given, *const m = &mine;
    const struct strides strides = block->strides;
    const size_t len = block->lanes;
    const unsigned hints = block->hints;
    const struct held none = {0};
    struct run r = block->run;
    for (size_t row = 0; row < block->rows; row++, skip_row(f, &r, &strides))
        for (size_t e = 0; e < len; e += BNORM_GROUP_F) {
            struct results results = {.bits = 0};
            if (BNORM_UNLIKELY(hints))
                prefetch_group(f, m, &r, e, hints);
            compute(f, m, &r, &strides, &none, e, e, BNORM_VECTORS, &results);
            store_results(f, m, &r, e, BNORM_VECTORS, &results, (hints & BNORM_STREAM) != 0);
        }
}

/* What moves by the size of elements that a call has. */
static const struct form all_forms = {BACKWARD, LOADED, BNORM_ANY, BNORM_ANY, 0};

#define BNORM_FORM(name, map, direction, source, type, kind, sloped)                               \
    static void name(const struct mapping *m, const struct block *b) {                             \
        map((struct form){direction, source, type, kind, sloped}, m, b);                           \
    }
/* Those of floats with one activation: of planes, and of rows together. */
#define BNORM_FLOAT_FORMS(name, direction, kind)                                                   \
    BNORM_FORM(name##_planes, map_runs, direction, SPREAD, BNORM_F32, kind, 1)                     \
    BNORM_FORM(name##_together, map_together, direction, TOGETHER, BNORM_F32, kind, 1)
/* Those of one type: of planes and of rows; those of BF16 are apart. */
#define BNORM_FORMS(name, direction, type)                                                         \
    BNORM_FORM(name##_planes, map_runs, direction, SPREAD, type, BNORM_ANY, 1)                     \
    BNORM_FORM(name##_rows, map_runs, direction, LOADED, type, BNORM_ANY, 1)
#define BNORM_BF16_FORMS(name, direction)                                                          \
    BNORM_FORM(name##_planes, map_runs, direction, SPREAD, BNORM_BF16, BNORM_ANY, 1)               \
    BNORM_FORM(name##_apart, map_apart, direction, APART, BNORM_BF16, BNORM_ANY, 1)
BNORM_FLOAT_FORMS(forward_identity, FORWARD, BNORM_ACT_IDENTITY)
BNORM_FORM(forward_relu_planes, map_runs, FORWARD, SPREAD, BNORM_F32, BNORM_ACT_RELU, 0)
BNORM_FORM(forward_clamp_planes, map_runs, FORWARD, SPREAD, BNORM_F32, BNORM_ACT_CLAMP, 0)
BNORM_FORM(forward_clamp_together, map_together, FORWARD, TOGETHER, BNORM_F32, BNORM_ACT_CLAMP, 0)
BNORM_FLOAT_FORMS(forward_curve, FORWARD, BNORM_CURVE)
BNORM_FORM(forward_f32_rows, map_runs, FORWARD, LOADED, BNORM_F32, BNORM_ANY, 0)
BNORM_BF16_FORMS(forward_bf16, FORWARD)
BNORM_FORMS(forward_f16, FORWARD, BNORM_F16)
BNORM_FORMS(forward_any, FORWARD, BNORM_ANY)
BNORM_FLOAT_FORMS(backward_identity, BACKWARD, BNORM_ACT_IDENTITY)
BNORM_FLOAT_FORMS(backward_relu, BACKWARD, BNORM_ACT_RELU)
BNORM_FORM(backward_f32_rows, map_runs, BACKWARD, LOADED, BNORM_F32, BNORM_ANY, BNORM_ANY)
BNORM_FORM(backward_curve_planes, map_runs, BACKWARD, SPREAD, BNORM_F32, BNORM_CURVE, 1)
BNORM_FORM(backward_frozen_planes, map_runs, BACKWARD, SPREAD, BNORM_F32, BNORM_ANY, 0)
BNORM_BF16_FORMS(backward_bf16, BACKWARD)
BNORM_FORMS(backward_f16, BACKWARD, BNORM_F16)
BNORM_FORM(backward_any_rows, map_runs, BACKWARD, LOADED, BNORM_ANY, BNORM_ANY, BNORM_ANY)

struct functions {
    map_function *planes, *rows, *several; /* most rows of a block: together or apart */
};
/* Of floats by kind of activation; of BF16, of F16; of others; in backward of floats without slope. */
enum {
    BNORM_OF_TYPE = BNORM_ACT_HARD_SWISH,
    BNORM_OTHERS = BNORM_OF_TYPE + BNORM_F16 + 1,
    BNORM_FROZEN
};
static const struct functions forward_functions[] = {
    {forward_identity_planes, forward_f32_rows, forward_identity_together},
    {forward_relu_planes, forward_f32_rows, forward_clamp_together},
    {forward_clamp_planes, forward_f32_rows, forward_clamp_together},
    {forward_curve_planes, forward_f32_rows, forward_curve_together},
    {forward_curve_planes, forward_f32_rows, forward_curve_together},
    {forward_bf16_planes, forward_any_rows, forward_bf16_apart},
    {forward_f16_planes, forward_f16_rows, NULL},
    {forward_any_planes, forward_any_rows, NULL}};
static const struct functions backward_functions[] = {
    {backward_identity_planes, backward_f32_rows, backward_identity_together},
    {backward_relu_planes, backward_f32_rows, backward_relu_together},
    {backward_curve_planes, backward_any_rows, NULL},
    {backward_curve_planes, backward_any_rows, NULL},
    {backward_curve_planes, backward_any_rows, NULL},
    {backward_bf16_planes, backward_any_rows, backward_bf16_apart},
    {backward_f16_planes, backward_f16_rows, NULL},
    {NULL, backward_any_rows, NULL},
    {backward_frozen_planes, backward_f32_rows, NULL}};

/* The forms of a call. */
BNORM_INLINE const struct functions *functions_of(const struct mapping *m,
                                                  const struct functions *functions) {
    const bnorm_act_kind kind = m->act.kind;
    const int backward = m->direction == BACKWARD, float32 = m->type == BNORM_F32,
              two = kind <= BNORM_ACT_RELU, frozen = backward && !m->sloped;
    int typed = m->type <= BNORM_F16 && m->type == m->out_type && !m->bits &&
                kind <= (float32    ? BNORM_ACT_HARD_SWISH
                         : backward ? BNORM_ACT_RELU
                                    : BNORM_ACT_CLAMP);
    if (backward)
        typed &= m->has_out && m->centred && !(frozen && !(float32 && two)) &&
                 !(kind == BNORM_ACT_IDENTITY && float32 && m->has_dresidual);
    return &functions[!typed          ? BNORM_OTHERS
                      : !float32      ? BNORM_OF_TYPE + (size_t)m->type
                      : frozen && two ? BNORM_FROZEN
                                      : (size_t)kind];
}

/* ---------------------------------------------------------------------------------------------- */
/* Long runs: lines of the caches */

BNORM_INLINE size_t to_line(const char *p) {
    return -(uintptr_t)p % 64;
}

/* Whether all outputs of all runs begin with a line. */
BNORM_INLINE int begins_lines(const struct mapping *m, const struct block *b) {
    size_t off = 0;
    if (m->has_out)
        off |= to_line(b->run.out) | (b->rows > 1 ? b->strides.out % 64 : 0);
    if (m->has_dresidual)
        off |= to_line(b->run.dresidual) | (b->rows > 1 ? b->strides.dresidual % 64 : 0);
    return off == 0;
}

/* A run from a line of the output on; what is before it, on its own. */
BNORM_COLD void map_long(map_function *form, const struct mapping *m, const struct block *run) {
    struct block b = *run;
    const size_t e = to_line(m->has_out ? b.run.out : b.run.dresidual) / m->out_size;
    if (e > 0 && e % b.each == 0) {
        b.lanes = e < VEC_F ? VEC_F : e; /* what goes beyond it is computed again */
        b.hints &= ~(unsigned)BNORM_STREAM;
        form(m, &b);
        b = *run;
        b.lanes -= e;
        if (form != m->spread)
            b.first = e < b.period ? e : e % b.period;
        skip_elements(&b.run, all_forms, m, e);
    }
    if (!begins_lines(m, &b))
        b.hints &= ~(unsigned)BNORM_STREAM;
    form(m, &b);
}

/* Whether runs follow one another in whole vectors, so that where one ends within a line the next one
 * goes on with it. */
BNORM_INLINE int fills_lines(const struct mapping *m, const struct block *b) {
    const size_t out = m->has_out ? (uintptr_t)b->run.out : 0,
                 dresidual = m->has_dresidual ? (uintptr_t)b->run.dresidual : 0;
    return b->dense && m->out_type == BNORM_F32 && b->lanes % VEC_F == 0 &&
           (out | dresidual) % (VEC_F * sizeof(float)) == 0;
}

/* Runs of at least a vector. */
static void map_form(map_function *form, const struct mapping *m, struct block *b) {
    const size_t least = form == m->spread ? 4 * BNORM_LONG_RUN : BNORM_LONG_RUN;
    const int streams = (m->hints & BNORM_STREAM) != 0,
              splits = !b->exact && !m->in_place && !m->writes_bits;
    b->hints = b->dense || b->lanes * m->out_size > BNORM_PART || streams ? m->hints : 0;
    b->streams_all = streams && fills_lines(m, b);
    if (!b->streams_all && b->lanes < BNORM_LONG_RUN)
        b->hints &= ~(unsigned)BNORM_STREAM;
    if (b->streams_all || b->lanes < (streams ? BNORM_LONG_RUN : least) || begins_lines(m, b)) {
        form(m, b);
        return;
    }
    if (!splits) {
        b->hints &= ~(unsigned)BNORM_STREAM;
        form(m, b);
        return;
    }
    struct block run = *b;
    run.rows = 1;
    for (size_t row = 0; row < b->rows; row++, skip_row(all_forms, &run.run, &b->strides)) {
        run.first = form == m->spread ? b->first + row : b->first;
        map_long(form, m, &run);
    }
}

/* ---------------------------------------------------------------------------------------------- */
/* Rows and planes */

/* No period. */
BNORM_INLINE void begin_period(struct block *b) {
    b->first = 0;
    b->period = SIZE_MAX;
    b->step = BNORM_GROUP_F;
    b->each = 1;
    b->exact = 0;
}

/* Runs of fewer elements than a vector: each as one vector in memory, the other elements of which
 * are 0, as are their parameters, so that nothing comes of them. */
BNORM_COLD void map_few(const struct mapping *m, const struct block *b, int planes) {
    struct {
        _Alignas(64) char x[64], dy[64], argument[64], out[64], dresidual[64];
        float p[6][VEC_F];
    } lanes;
    const size_t n = b->lanes;
    const int reads_bits = m->pre == BNORM_PRE_MASK;
    unsigned char bits[8] = {0};
    struct mapping few = *m;
    struct block vector;
    struct run r = b->run;
    memset(&lanes, 0, sizeof lanes);
    vector.run = (struct run){lanes.x, lanes.dy, lanes.argument, lanes.out, lanes.dresidual, 0};
    vector.strides = (struct strides){0};
    vector.rows = 1;
    vector.hints = 0;
    vector.lanes = VEC_F;
    begin_period(&vector);
    few.bits = m->bits ? bits : NULL;
    few.hints = 0;
    if (m->type >= BNORM_S8) { /* what stands for 0 */
        memset(lanes.x, (int)m->x_quant.zero_point, sizeof lanes.x);
        memset(lanes.argument, (int)m->argument_quant.zero_point, sizeof lanes.argument);
    }
    for (size_t row = 0; row < b->rows; row++, skip_row(all_forms, &r, &b->strides)) {
#define BNORM_FEW(k, name)                                                                         \
    for (size_t i = 0; i < n; i++)                                                                 \
        lanes.p[k][i] = m->p.name[planes ? row : i];                                               \
    few.p.name = lanes.p[k];
        if (row == 0 || planes)
            BNORM_FOR_PARAMETERS(m, BNORM_FEW)
#undef BNORM_FEW
        memcpy(lanes.x, r.x, n * m->size);
        memcpy(lanes.dy, r.dy, n * m->size);
        memcpy(lanes.argument, r.argument, n * m->size);
        if (reads_bits) {
            const unsigned window = bit_window(m->bits, r.bit, n) & ((1u << n) - 1);
            bits[0] = (unsigned char)window;
            bits[1] = (unsigned char)(window >> 8);
        }
        m->any(&few, &vector);
        if (m->bits && !reads_bits) {
            struct bit_writer w;
            begin_bits(&w, m->bits, r.bit);
            put_bits(&w, bits[0] | (uint64_t)bits[1] << 8, n);
            end_bits(&w);
        }
        if (m->has_out)
            memcpy(r.out, lanes.out, n * m->out_size);
        if (m->has_dresidual)
            memcpy(r.dresidual, lanes.dresidual, n * m->out_size);
    }
}

/* p[0..n) over and over, `end` floats, in whole vectors. */
BNORM_RARE void repeat_floats(float *to, const float *p, size_t n, size_t end) {
    size_t done = 0;
    for (; done < end && done < n; done += VEC_F)
        store_lanes(to + done, load_lanes(p + done, lesser(VEC_F, n - done)), VEC_F);
    while (n < VEC_F) {
        vec_store(to + n, vec_load(to));
        n *= 2;
    }
    /* Until vectors are whole, from the first ones: one across two that were just stored would wait
     * for both. */
    for (const size_t first = n; n % VEC_F && n < end; n += first)
        for (size_t i = 0; i < first && n + i < end; i += VEC_F)
            vec_store(to + n + i, vec_load(to + i));
    for (size_t i = n; i < end; i += VEC_F)
        vec_store(to + i, vec_load(to + i - n));
}

/* Floats of `room` for each array. */
BNORM_INLINE size_t room_of(const struct mapping *m) {
    return BNORM_ROOM / (m->sloped ? 6 : 3) / VEC_F * VEC_F;
}

/* The parameters of rows that follow one another, repeated in `room`. */
BNORM_RARE void repeat_parameters(struct mapping *m, size_t lanes, size_t end, float *room) {
    const size_t each = room_of(m);
#define BNORM_REPEAT(k, name)                                                                      \
    repeat_floats(room + (k)*each, m->p.name, lanes, end);                                         \
    m->p.name = room + (k)*each;
    BNORM_FOR_PARAMETERS(m, BNORM_REPEAT)
#undef BNORM_REPEAT
    if (!m->centred)
        m->p.center = m->p.scale;
}

BNORM_INLINE void skip_parameters(struct parameters *p, size_t n) {
    p->center += n;
    p->scale += n;
    p->shift += n;
    p->invstd += n;
    p->slope += n;
    p->offset += n;
}

/* How many channels, in whole units, rows that follow one another get by being joined; 0 where their
 * parameters do not fit into `room`. */
BNORM_INLINE size_t joined_lanes(const struct mapping *m, const struct block *b, size_t unit,
                                 size_t least) {
    size_t lanes = b->lanes;
    while (lanes % unit || lanes < least)
        lanes *= 2;
    return lanes <= room_of(m) - BNORM_GROUP_F ? lanes : 0;
}

/* Rows that follow one another become one run. The parameters are written one behind the other in
 * `room`, but where groups are whole in each row. */
BNORM_RARE void join_rows(struct mapping *m, struct block *b, float *room) {
    const size_t total = b->rows * b->lanes;
    size_t period = b->lanes;
    b->exact = b->lanes >= BNORM_LONG_ROW && b->lanes % BNORM_GROUP_F == 0;
    if (!b->exact) {
        period = joined_lanes(m, b, VEC_F, VEC_F);
        if (!period || (b->lanes >= VEC_F && total < 4 * period))
            return;
        repeat_parameters(m, b->lanes, period + BNORM_GROUP_F, room);
    }
    b->lanes = total;
    b->rows = 1;
    b->period = period;
    b->step = BNORM_GROUP_F % period;
}

/* As many rows as can pass together; short ones and such as end within a vector are joined first, if
 * they follow one another. Leaves the others, which are one run where they were joined. Changes b,
 * not a copy, which compilers would make by a slow instruction. */
BNORM_COLD void map_rows_together(struct mapping *m, struct block *b, float *room) {
    const size_t count = BNORM_VECTORS, given = b->lanes, total = b->rows * given;
    size_t least = BNORM_FEW_LANES, joined = 0;
    while (least > VEC_F && total < 8 * count * least)
        least /= 2;
    if (b->dense && (given % VEC_F || given < least))
        joined = joined_lanes(m, b, VEC_F, least);
    const size_t lanes = joined ? joined : given, rows = total / lanes / count * count;
    if (!rows || lanes < VEC_F)
        return;
    const size_t others = b->rows - rows;
    if (joined) {
        const size_t stride = joined * sizeof(float);
        repeat_parameters(m, given, joined + BNORM_GROUP_F, room);
        b->strides = (struct strides){stride, stride, stride, stride, stride, 0};
    }
    b->rows = rows;
    b->lanes = lanes;
    m->several(m, b);
    skip_rows(all_forms, &b->run, &b->strides, rows);
    if (joined) {
        b->rows = 1;
        b->lanes = total - rows * joined;
        b->period = joined;
        b->step = BNORM_GROUP_F % joined;
    } else {
        b->rows = others;
        b->lanes = others ? given : 0;
    }
}

/* n parameters in whole groups, even and odd ones apart; may be in place. */
BNORM_COLD void take_apart(float *to, const float *p, size_t n) {
    for (size_t i = 0; i < n; i += 2 * VEC_F) {
        vec_f v[2];
        vec_apart(v, vec_load(p + i), vec_load(p + i + VEC_F));
        vec_store(to + i, v[0]);
        vec_store(to + i + VEC_F, v[1]);
    }
}

/* All rows, joined to whole groups, or to whole vectors, where they follow one another, and in strips of
 * whole groups. Leaves the last rows that are too few to be joined, or all. */
BNORM_COLD void map_rows_apart(struct mapping *m, struct block *b, float *room) {
    const size_t each = room_of(m), given = b->lanes;
    const struct parameters p = m->p;
    struct block these = *b;
    size_t joined = 0;
    for (size_t unit = BNORM_GROUP_F; b->dense && given % BNORM_GROUP_F && !joined && unit >= VEC_F;
         unit /= BNORM_VECTORS)
        joined = joined_lanes(m, b, unit, BNORM_GROUP_F);
    const size_t lanes = joined ? joined : given, rest = lanes % BNORM_GROUP_F,
                 whole = lanes - rest, rows = b->rows * given / lanes,
                 end = whole && rest && rest < VEC_F ? whole - BNORM_GROUP_F : whole;
    if (joined) {
        const size_t stride = joined * m->size;
        these.strides = (struct strides){stride, stride, stride, stride, stride, 0};
    }
    these.rows = rows;
    these.hints =
        b->dense || given * m->size > BNORM_PART || (m->hints & BNORM_STREAM) ? m->hints : 0;
    if (!end || rows < BNORM_VECTORS || ((these.hints & BNORM_STREAM) && !begins_lines(m, &these)))
        return;
    if (joined)
        repeat_parameters(m, given, lanes, room);
    const struct parameters from = m->p;
    for (size_t i = 0; i < end; i += these.lanes) {
        these.lanes = lesser(each / BNORM_GROUP_F * BNORM_GROUP_F, end - i);
#define BNORM_APART(k, name)                                                                       \
    take_apart(room + (k)*each, from.name + i, these.lanes);                                       \
    m->p.name = room + (k)*each;
        BNORM_FOR_PARAMETERS(m, BNORM_APART)
#undef BNORM_APART
        if (!m->centred)
            m->p.center = m->p.scale;
        m->several(m, &these);
        skip_elements(&these.run, all_forms, m, these.lanes);
    }
    if (end < lanes) {
        m->p = from;
        skip_parameters(&m->p, end);
        these.lanes = lanes - end;
        these.dense = 0;
        map_form(m->loaded, m, &these);
    }
    m->p = p;
    skip_elements(&b->run, all_forms, m, rows * lanes);
    b->rows -= rows * lanes / given;
    b->lanes = b->rows ? given : 0;
}

static void map_rows(struct mapping *m, struct block *b, float *room) {
    const struct parameters p = m->p;
    if (m->several && m->type == BNORM_BF16)
        map_rows_apart(m, b, room);
    else if (m->several && m->hints == 0)
        map_rows_together(m, b, room);
    if (b->dense && b->rows > 1)
        join_rows(m, b, room);
    if (b->lanes >= VEC_F)
        map_form(m->loaded, m, b);
    else if (b->lanes > 0)
        map_few(m, b, 0);
    m->p = p;
}

/* Planes. */
static void map_planes(struct mapping *m, struct block *b, float *room) {
    const struct parameters p = m->p;
    const size_t planes = b->rows;
    if (b->lanes < VEC_F) {
        map_few(m, b, 1);
        return;
    }
    if (m->spread) {
        map_form(m->spread, m, b);
        return;
    }
    b->rows = 1;
    b->period = 1;
    b->step = 0;
    for (size_t plane = 0; plane < planes; plane++, skip_row(all_forms, &b->run, &b->strides)) {
#define BNORM_SPREAD(k, name)                                                                      \
    for (size_t i = 0; i < BNORM_GROUP_F; i += VEC_F)                                              \
        vec_store(room + (k)*BNORM_GROUP_F + i, vec_set1(p.name[plane]));                          \
    m->p.name = room + (k)*BNORM_GROUP_F;
        BNORM_FOR_PARAMETERS(m, BNORM_SPREAD)
#undef BNORM_SPREAD
        map_form(m->loaded, m, b);
    }
    m->p = p;
}

BNORM_RARE void clear_rows(char *p, size_t stride, size_t rows, size_t bytes, int zero) {
    const uint32_t four = (uint32_t)(zero & 255) * 0x01010101u;
    for (; rows > 0; rows--, p += stride) {
        size_t k = 0;
        for (; k + 4 <= bytes; k += 4)
            memcpy(p + k, &four, 4);
        for (; k < bytes; k++)
            p[k] = (char)zero;
    }
}

/* Rows whose lanes behind the first `valid` are padding, which gets zeros. Whatever is in it gives
 * NaN in forward, which has no bit. */
BNORM_COLD void map_padded(const struct mapping *m, struct block *b, size_t valid, float *room) {
    const struct run r = b->run;
    const struct strides strides = b->strides;
    const size_t rows = b->rows, n = b->lanes - valid, at = valid * m->out_size;
    float p[6][32];
    struct mapping padded = *m;
#define BNORM_PAD_ARRAY(k, name)                                                                   \
    for (size_t i = 0; i < b->lanes; i++)                                                          \
        p[k][i] = i < valid ? m->p.name[i] : 0;                                                    \
    padded.p.name = p[k];
    BNORM_FOR_PARAMETERS(m, BNORM_PAD_ARRAY)
#undef BNORM_PAD_ARRAY
    if (!m->centred)
        padded.p.center = padded.p.scale;
    for (size_t i = valid; i < b->lanes; i++)
        p[2][i] = NAN;
    map_rows(&padded, b, room);
    const int zero = m->out_type >= BNORM_S8 ? (int)m->out_quant.zero_point : 0;
    if (m->has_out)
        clear_rows(r.out + at, strides.out, rows, n * m->out_size, zero);
    if (m->has_dresidual)
        clear_rows(r.dresidual + at, strides.dresidual, rows, n * m->out_size, 0);
}

/* Each of n floats `len` times, in whole vectors. */
BNORM_RARE void stretch_floats(float *to, const float *p, size_t n, size_t len) {
    for (size_t j = 0; j < n; j++, to += len)
        for (size_t i = 0; i < len; i += VEC_F)
            vec_store(to + i, vec_set1(p[j]));
}

/* Planes that follow one another are rows of as many channels, each with its parameter. These rows
 * are repeated where they are. */
BNORM_RARE void map_small_planes(const struct mapping *whole, const struct block *planes,
                                 const struct block *images, float *room) {
    const size_t len = planes->lanes, each = room_of(whole), most = (each - VEC_F) / len;
    struct mapping m = *whole;
    struct block b = *images;
    for (size_t first = 0, n; first < planes->rows; first += n) {
        struct block these = b;
        n = lesser(most, planes->rows - first);
        these.lanes = n * len;
        these.dense &= n == planes->rows;
#define BNORM_STRETCH(k, name)                                                                     \
    stretch_floats(room + (k)*each, whole->p.name + first, n, len);                                \
    m.p.name = room + (k)*each;
        BNORM_FOR_PARAMETERS(whole, BNORM_STRETCH)
#undef BNORM_STRETCH
        if (!m.centred)
            m.p.center = m.p.scale;
        map_rows(&m, &these, room);
        skip_elements(&b.run, all_forms, &m, n * len);
    }
}

/* ---------------------------------------------------------------------------------------------- */
/* The kernels */

/* Member by member, as compilers clear whole structs first. */
BNORM_INLINE void begin_mapping(struct mapping *m, const bnorm_map_args *a,
                                enum direction direction, const struct functions *all) {
    const float *const any = a->scale;
    const int backward = direction == BACKWARD, sloped = backward && a->slope != NULL;
    m->type = a->x.type;
    m->out_type = backward ? a->x.type : a->out.type;
    m->size = size_of(m->type);
    m->out_size = size_of(m->out_type);
    m->pre = a->pre;
    m->act = a->act;
    m->centred = a->center != NULL;
    m->sloped = sloped;
    m->reads_x = sloped || reads_x(a->pre);
    m->has_out = a->out.data != NULL;
    m->has_dresidual = backward && a->dresidual.data;
    m->hints = a->hints & (BNORM_PREFETCH_IN | BNORM_PREFETCH_OUT | BNORM_STREAM);
    m->ahead = a->ahead ? a->ahead : BNORM_AHEAD;
    m->in_place = 0;
    const void *const outs[2] = {a->out.data, a->dresidual.data};
    for (size_t k = 0; k < 2; k++)
        m->in_place |= outs[k] && (outs[k] == a->x.data || outs[k] == a->dy.data ||
                                   outs[k] == a->argument.data);
    if (m->in_place) /* what is past the caches would be computed again */
        m->hints &= ~(unsigned)BNORM_STREAM;
    m->bits = a->mask.bits;
    /* Compilers may convert a zero point before they ask for the type. */
    m->x_quant = m->argument_quant = m->out_quant = (struct quant){1, 0, 1, 0};
    if (m->type >= BNORM_S8 || m->out_type >= BNORM_S8) {
        begin_quant(&m->x_quant, &a->x.quant);
        begin_quant(&m->argument_quant, &a->argument.quant);
        begin_quant(&m->out_quant, &a->out.quant);
    }
    m->p.center = a->center ? a->center : any;
    m->p.scale = a->scale;
    m->p.shift = a->shift ? a->shift : any;
    m->p.invstd = sloped ? a->invstd : any;
    m->p.slope = sloped ? a->slope : any;
    m->p.offset = sloped ? a->offset : any;
    const bnorm_act_kind kind =
        backward && m->pre == BNORM_PRE_NONE ? BNORM_ACT_IDENTITY : m->act.kind;
    m->act.kind = kind;
    if (kind == BNORM_ACT_RELU) {
        m->act.a = 0;
        m->act.b = INFINITY;
    }
    m->direction = direction;
    m->writes_bits = !backward && m->bits;
    m->any = all[BNORM_OTHERS].rows;
    const struct functions *const functions = functions_of(m, all);
    m->spread = functions->planes;
    m->loaded = functions->rows;
    m->several = functions->several;
}

/* Axes of a tensor. */
enum axis { IMAGES, GROUPS, ROWS };

/* Element 0 of a group, and runs that follow one another along an axis: rows, or whole groups. */
static void begin_block(struct block *b, const struct mapping *m, const bnorm_map_args *a,
                        enum axis axis, size_t image, size_t group) {
#define BNORM_STRIDE(t)                                                                            \
    (axis == IMAGES ? a->t.image_stride : axis == GROUPS ? a->t.group_stride : a->t.row_stride)
#define BNORM_TENSOR(t, present, size)                                                             \
    b->strides.t = 0;                                                                              \
    if (present) {                                                                                 \
        const size_t stride = BNORM_STRIDE(t);                                                     \
        b->run.t =                                                                                 \
            (char *)a->t.data + (image * a->t.image_stride + group * a->t.group_stride) * (size);  \
        b->strides.t = stride * (size);                                                            \
        b->dense &= stride == b->lanes;                                                            \
    }
    b->lanes = axis == GROUPS ? a->rows * a->lanes : a->lanes;
    b->rows = axis == IMAGES ? a->images : axis == GROUPS ? a->groups : a->rows;
    b->dense = 1;
    BNORM_TENSOR(x, 1, m->size)
    b->run.dy = b->run.argument = b->run.x;
    b->run.out = b->run.dresidual = (char *)(uintptr_t)b->run.x;
    BNORM_TENSOR(dy, a->dy.data, m->size)
    BNORM_TENSOR(argument, reads_argument(a->pre), m->size)
    BNORM_TENSOR(out, m->has_out, m->out_size)
    BNORM_TENSOR(dresidual, m->has_dresidual, m->out_size)
    b->run.bit = a->mask.at + image * a->mask.image_stride + group * a->mask.group_stride;
    b->strides.bit = BNORM_STRIDE(mask);
    b->dense &= !m->bits || b->strides.bit == b->lanes;
    begin_period(b);
#undef BNORM_TENSOR
#undef BNORM_STRIDE
}

/* Whether rows are so short that a vector has whole ones, and follow one another without a gap; not
 * where lanes change their order. */
BNORM_INLINE int are_short_rows(const struct mapping *m, const bnorm_map_args *a) {
    struct block b;
    if (!m->spread || m->type == BNORM_BF16 || a->lanes > VEC_F || VEC_F % a->lanes ||
        a->rows * a->lanes < VEC_F || a->valid < a->lanes)
        return 0;
    begin_block(&b, m, a, ROWS, 0, 0);
    return b.dense;
}

/* A group after the other. */
BNORM_INLINE void map_groups(struct mapping *m, const bnorm_map_args *a, float *room) {
    struct block b;
    for (size_t group = 0; group < a->groups; group++) {
        for (size_t image = 0; image < a->images; image++) {
            begin_block(&b, m, a, ROWS, image, group);
            if (a->valid < a->lanes)
                map_padded(m, &b, a->valid, room);
            else
                map_rows(m, &b, room);
        }
        skip_parameters(&m->p, a->lanes);
    }
}

/* Planes of an image after the other, or small ones as rows. */
BNORM_INLINE void map_images(struct mapping *m, const bnorm_map_args *a, float *room) {
    struct block b;
    const size_t small = m->loaded == m->any && !m->several ? BNORM_SMALL_ANY
                         : a->images > 1                    ? BNORM_SMALL_PLANES
                                                            : BNORM_SMALL_PLANE;
    begin_block(&b, m, a, GROUPS, 0, 0);
    if (a->lanes < small && b.dense) {
        struct block images;
        begin_block(&images, m, a, IMAGES, 0, 0);
        map_small_planes(m, &b, &images, room);
        return;
    }
    for (size_t image = 0; image < a->images; image++) {
        begin_block(&b, m, a, GROUPS, image, 0);
        map_planes(m, &b, room);
    }
}

static void map_all(const bnorm_map_args *a, int planes, enum direction direction,
                    const struct functions *all) {
    _Alignas(64) float room[BNORM_ROOM + BNORM_PAD];
    struct mapping m;
    struct block b;
    begin_mapping(&m, a, direction, all);
    if (planes) {
        map_images(&m, a, room);
    } else if (are_short_rows(&m, a)) {
        for (size_t image = 0; image < a->images; image++) {
            begin_block(&b, &m, a, GROUPS, image, 0);
            b.each = a->lanes;
            map_form(m.spread, &m, &b);
        }
    } else {
        map_groups(&m, a, room);
    }
    if (m.hints & BNORM_STREAM)
        vec_fence();
}

static void apply_rows(const bnorm_map_args *a) {
    map_all(a, 0, FORWARD, forward_functions);
    vec_zeroupper();
}
static void apply_span(const bnorm_map_args *a) {
    map_all(a, 1, FORWARD, forward_functions);
    vec_zeroupper();
}
static void dx_rows(const bnorm_map_args *a) {
    map_all(a, 0, BACKWARD, backward_functions);
    vec_zeroupper();
}
static void dx_span(const bnorm_map_args *a) {
    map_all(a, 1, BACKWARD, backward_functions);
    vec_zeroupper();
}
