/* SPDX-License-Identifier: MIT
 *
 * The elementwise passes: y of forward, dx and dresidual of backward. One loop serves them all, as
 * they have the same course: runs that follow one another are one stream, which is cut where lines
 * of the cache begin, so that each store fills a vector and none crosses a line. Where a run ends
 * within a vector, its lanes take the parameters of both runs. The kind of activation and the
 * family are constants of an inlined body; what else a call may want or not is asked once per group
 * of vectors. */

/* Vectors that are loaded, computed and stored together: their latencies overlap, also where a
 * compiler must assume that a store changes what a later load reads. */
#define BNORM_VECTORS 4
/* Floats in a line of the cache. */
#define BNORM_LINE 16
/* Rows of few channels are joined to rows of about BNORM_LONG_ROW floats, at most BNORM_PERIOD. */
#define BNORM_LONG_ROW 256
#define BNORM_PERIOD   1536

/* Streams of fewer floats are not cut at lines. */
#define BNORM_SHORT 768

/* How far ahead of their use lines are asked for, in floats. */
#define BNORM_AHEAD_IN  512
#define BNORM_AHEAD_OUT 256
/* Floats between two times of asking, and of passing outputs on past the caches. */
#define BNORM_PART 128

enum direction { FORWARD, BACKWARD };

struct form {
    enum direction direction;
    bnorm_act_kind kind;
    int spread; /* planes: one parameter for all lanes */
    int narrow; /* elements are of BF16 or F16, or of F32 too: asked once per group of vectors */
};

/* Arrays of parameters; those that are not wanted are any readable memory. */
struct parameters {
    const float *center, *scale, *shift, *invstd, *slope, *offset;
};

/* `count` streams of `total` elements each, in runs of `len`. A stream of several runs has no gaps.
 */
struct streams {
    size_t count, total, len;
    size_t first; /* where in a run each stream begins */
    const void *x, *dy, *extra;
    void *out, *dresidual;      /* out: y or dx; NULL = not wanted */
    bnorm_dtype type, out_type; /* of inputs and outputs */
    size_t x_stride, dy_stride, extra_stride, out_stride, dresidual_stride;
    enum bnorm_pre pre;
    bnorm_act act;
    int centred, sloped;
    unsigned hints;
    struct parameters p;
    struct parameters joint; /* rows: the last VEC_F of a run and the first VEC_F of the next */
};

/* y, canonical. */
BNORM_INLINE vec_f activate(bnorm_act_kind kind, vec_f v, vec_f a, vec_f b) {
    const vec_f zero = vec_set1(0), three = vec_set1(3);
    switch (kind) {
    case BNORM_ACT_IDENTITY:
        break;
    case BNORM_ACT_RELU:
        return vec_relu(v);
    case BNORM_ACT_CLAMP:
        return vec_clamp(v, a, b);
    case BNORM_ACT_LEAKY_RELU:
        v = vec_mul(v, vec_if_gt(v, zero, vec_set1(1), a));
        break;
    case BNORM_ACT_HARD_SWISH: {
        const vec_f m = within_three(v);
        v = vec_if_le(three, v, v, vec_mul(vec_mul(m, vec_add(m, three)), vec_set1(1.0f / 6)));
        break;
    }
    default:
        return vec_canonical(smooth_value(kind, v, a));
    }
    return vec_canonical_result(v);
}

/* What the lanes of a vector take: with spread the same for all, else from element i of arrays. */
struct lane_parameters {
    vec_f center, scale, shift, invstd, slope, offset;
};

/* Element e of an input or output. */
BNORM_INLINE const void *in_at(const struct form f, const struct streams *s, const void *p,
                               size_t e) {
    return (const char *)p + e * (f.narrow ? size_of(s->type) : sizeof(float));
}
BNORM_INLINE void *out_at(const struct form f, const struct streams *s, void *p, size_t e) {
    return (char *)p + e * (f.narrow ? size_of(s->out_type) : sizeof(float));
}

/* The lines that elements [e, end) will be followed by. */
BNORM_INLINE void fetch_ahead(const struct form f, const struct streams *s, size_t e, size_t end) {
    const int both = f.narrow && s->type != BNORM_F32 && s->out_type != BNORM_F32;
#define BNORM_FETCH(p)    vec_fetch((const float *)in_at(f, s, p, e) + BNORM_AHEAD_IN)
#define BNORM_FETCH_TO(p) vec_fetch_out((const float *)out_at(f, s, p, e) + BNORM_AHEAD_OUT)
    for (; e < end; e += both ? 2 * BNORM_LINE : BNORM_LINE) {
        if (s->hints & BNORM_FETCH_IN) {
            BNORM_FETCH(s->x);
            if (f.direction == BACKWARD)
                BNORM_FETCH(s->dy);
            if (s->extra)
                BNORM_FETCH(s->extra);
        }
        if (s->hints & BNORM_FETCH_OUT) {
            if (f.direction == FORWARD || s->out)
                BNORM_FETCH_TO(s->out);
            if (f.direction == BACKWARD && s->dresidual)
                BNORM_FETCH_TO(s->dresidual);
        }
    }
#undef BNORM_FETCH
#undef BNORM_FETCH_TO
}

/* `count` vectors of n lanes from element e on, whose parameters are `all` or the arrays p from
 * element i on. */
BNORM_INLINE void group_lanes(const struct form f, const struct streams *s,
                              const struct lane_parameters *all, const struct parameters *p,
                              size_t i, size_t e, size_t count, size_t n) {
    vec_f x[BNORM_VECTORS], v[BNORM_VECTORS] = {0}, g[BNORM_VECTORS];
    const vec_f act_a = vec_set1(s->act.a), act_b = vec_set1(s->act.b);
    const int has_argument = f.direction == FORWARD || f.kind != BNORM_ACT_IDENTITY;
#define BNORM_EACH                                                                                 \
    BNORM_UNROLL                                                                                   \
    for (size_t q = 0; q < count; q++)
#define BNORM_PAIRS                                                                                \
    BNORM_UNROLL                                                                                   \
    for (size_t q = 0; q + 1 < count; q += 2)
#define BNORM_P(name) (f.spread ? all->name : load_lanes(p->name + i + q * VEC_F, n))
#define BNORM_LOAD(to, p)                                                                          \
    if (!f.narrow || s->type == BNORM_F32)                                                         \
        BNORM_EACH to[q] = load_lanes((const float *)in_at(f, s, p, e) + q * VEC_F, n);            \
    else if (s->type == BNORM_BF16)                                                                \
        BNORM_EACH to[q] = load_bf16_lanes((const uint16_t *)in_at(f, s, p, e) + q * VEC_F, n);    \
    else                                                                                           \
        BNORM_EACH to[q] = load_f16_lanes((const uint16_t *)in_at(f, s, p, e) + q * VEC_F, n)
#define BNORM_STORE(p, v)                                                                          \
    if (!f.narrow || s->out_type == BNORM_F32)                                                     \
        BNORM_EACH store_lanes((float *)out_at(f, s, p, e) + q * VEC_F, v[q], n);                  \
    else if (s->out_type == BNORM_BF16 && count % 2 == 0 && n == VEC_F)                            \
        BNORM_PAIRS vec_store_bf16_2((uint16_t *)out_at(f, s, p, e) + q * VEC_F, v[q], v[q + 1]);  \
    else if (s->out_type == BNORM_BF16)                                                            \
        BNORM_EACH store_bf16_lanes((uint16_t *)out_at(f, s, p, e) + q * VEC_F, v[q], n);          \
    else                                                                                           \
        BNORM_EACH store_f16_lanes((uint16_t *)out_at(f, s, p, e) + q * VEC_F, v[q], n)

    BNORM_LOAD(x, s->x);
    if (s->centred)
        BNORM_EACH x[q] = vec_sub(x[q], BNORM_P(center));
    if (has_argument) {
        if (f.direction == BACKWARD && s->pre == BNORM_PRE_Y) {
            BNORM_LOAD(v, s->extra);
        } else {
            BNORM_EACH v[q] = vec_fma(x[q], BNORM_P(scale), BNORM_P(shift));
            if (s->pre == BNORM_PRE_RESIDUAL) {
                BNORM_LOAD(g, s->extra);
                BNORM_EACH v[q] = vec_add(v[q], g[q]);
            }
        }
    }
    if (f.direction == FORWARD) {
        BNORM_EACH v[q] = activate(f.kind, v[q], act_a, act_b);
        BNORM_STORE(s->out, v);
        return;
    }
    BNORM_LOAD(g, s->dy);
    if (has_argument)
        BNORM_EACH g[q] = gradient(f.kind, v[q], g[q], act_a, act_b);
    if (s->dresidual) {
        BNORM_EACH v[q] = vec_canonical(g[q]);
        BNORM_STORE(s->dresidual, v);
    }
    if (!s->out)
        return;
    if (s->sloped) {
        BNORM_EACH g[q] = vec_fma(g[q], BNORM_P(scale), BNORM_P(offset));
        BNORM_EACH x[q] = vec_mul(x[q], BNORM_P(invstd));
        BNORM_EACH g[q] = vec_fma(x[q], BNORM_P(slope), g[q]);
    } else {
        BNORM_EACH g[q] = vec_mul(g[q], BNORM_P(scale));
    }
    BNORM_EACH g[q] = vec_canonical_result(g[q]);
    BNORM_STORE(s->out, g);
#undef BNORM_EACH
#undef BNORM_PAIRS
#undef BNORM_P
#undef BNORM_LOAD
#undef BNORM_STORE
}

/* The parameters of run r. */
BNORM_INLINE struct lane_parameters spread_parameters(const struct form f, const struct streams *s,
                                                      size_t r) {
    const int backward = f.direction == BACKWARD;
    const vec_f none = vec_set1(0);
    return (struct lane_parameters){
        vec_set1(s->p.center[r]),
        vec_set1(s->p.scale[r]),
        vec_set1(s->p.shift[r]),
        backward ? vec_set1(s->p.invstd[r]) : none,
        backward ? vec_set1(s->p.slope[r]) : none,
        backward ? vec_set1(s->p.offset[r]) : none,
    };
}

/* Those of a for n lanes and those of b for the others. */
BNORM_INLINE struct lane_parameters join_parameters(const struct lane_parameters *a,
                                                    const struct lane_parameters *b, size_t n) {
    return (struct lane_parameters){
        vec_join(a->center, b->center, n), vec_join(a->scale, b->scale, n),
        vec_join(a->shift, b->shift, n),   vec_join(a->invstd, b->invstd, n),
        vec_join(a->slope, b->slope, n),   vec_join(a->offset, b->offset, n),
    };
}

BNORM_INLINE void skip_parameters(struct parameters *p, size_t channels) {
    p->center += channels;
    p->scale += channels;
    p->shift += channels;
    p->invstd += channels;
    p->slope += channels;
    p->offset += channels;
}

/* The streams from number `count` on. */
BNORM_INLINE void skip_streams(const struct form f, struct streams *s, size_t count) {
    const size_t channels = f.spread ? count : 0;
    s->x = in_at(f, s, s->x, count * s->x_stride);
    if (s->extra)
        s->extra = in_at(f, s, s->extra, count * s->extra_stride);
    if (s->out)
        s->out = out_at(f, s, s->out, count * s->out_stride);
    if (f.direction == BACKWARD) {
        s->dy = in_at(f, s, s->dy, count * s->dy_stride);
        if (s->dresidual)
            s->dresidual = out_at(f, s, s->dresidual, count * s->dresidual_stride);
    }
    skip_parameters(&s->p, channels);
}

/* Where an element of a stream lies: element i of run r. */
struct place {
    size_t r, i;
};

/* Elements [e, end) of a stream, the first at `at`: what fills no line, and short runs. Returns
 * where `end` lies. */
BNORM_INLINE struct place stream_edge(const struct form f, const struct streams *s, struct place at,
                                      size_t e, size_t end) {
    while (e < end) {
        const size_t n = lesser(lesser(VEC_F, end - e), s->len - at.i);
        struct lane_parameters p = spread_parameters(f, s, f.spread ? at.r : 0);
        if (f.spread && n < VEC_F) { /* lanes without an element stay 0 */
            const struct lane_parameters none = {0};
            p = join_parameters(&p, &none, n);
        }
        group_lanes(f, s, &p, &s->p, at.i, e, 1, n);
        e += n;
        at.i += n;
        if (at.i == s->len)
            at = (struct place){at.r + 1, 0};
    }
    return at;
}

/* Elements [e, end) of a stream, whole vectors, the first at `at`; a run has at least VEC_F.
 * Returns where `end` lies. */
BNORM_INLINE struct place stream_body(const struct form f, const struct streams *s, struct place at,
                                      size_t e, size_t end) {
    struct lane_parameters all = spread_parameters(f, s, f.spread ? at.r : 0);
    for (;;) {
        size_t left = lesser(s->len - at.i, end - e) / VEC_F;
        for (; left >= BNORM_VECTORS; left -= BNORM_VECTORS) {
            group_lanes(f, s, &all, &s->p, at.i, e, BNORM_VECTORS, VEC_F);
            e += BNORM_VECTORS * VEC_F;
            at.i += BNORM_VECTORS * VEC_F;
        }
        for (; left; left--) {
            group_lanes(f, s, &all, &s->p, at.i, e, 1, VEC_F);
            e += VEC_F;
            at.i += VEC_F;
        }
        const size_t n = s->len - at.i; /* lanes that belong to this run */
        if (e == end)
            return n ? at : (struct place){at.r + 1, 0};
        at = (struct place){at.r + 1, 0};
        const struct lane_parameters next = f.spread ? spread_parameters(f, s, at.r) : all;
        if (n) {
            const struct lane_parameters both = f.spread ? join_parameters(&all, &next, n) : all;
            at.i = VEC_F - n;
            group_lanes(f, s, &both, &s->joint, at.i, e, 1, VEC_F);
            e += VEC_F;
            if (e == end)
                return at;
        }
        all = next;
    }
}

/* Elements of an output from p to the next line. */
BNORM_INLINE size_t to_line(const struct streams *s, const void *p) {
    return -(uintptr_t)p % 64 / size_of(s->out_type);
}

/* Elements before the first whole line; 0 where aligned stores would gain less than this costs. */
BNORM_INLINE size_t head_of(const struct streams *s) {
    return s->total < BNORM_SHORT ? 0 : to_line(s, s->out ? s->out : s->dresidual);
}

/* Of the hints that were given, those that serve this stream: asking ahead needs one that goes on;
 * whole lines can go past the caches where both outputs have them in the same places. */
BNORM_INLINE unsigned stream_hints(const struct streams *s, unsigned hints) {
    if (s->total < 4 * BNORM_AHEAD_IN)
        hints &= BNORM_BYPASS;
    if (s->total < BNORM_SHORT ||
        (s->out && s->dresidual && to_line(s, s->out) != to_line(s, s->dresidual)))
        hints &= ~(unsigned)BNORM_BYPASS;
    return hints;
}

/* Where element 0 of an output would be if element e were at p. */
BNORM_INLINE void *element_0(const struct form f, const struct streams *s, void *p, size_t e) {
    const size_t size = f.narrow ? size_of(s->out_type) : sizeof(float);
    return (void *)((uintptr_t)p - e * size);
}

/* Stores whole lines past the caches; NULL = none. */
static void pass_on(char *to, const float *from, size_t bytes) {
    for (; to && bytes; bytes -= sizeof(vec_f), to += sizeof(vec_f), from += VEC_F)
        vec_bypass((float *)(void *)to, vec_load(from));
}

/* The members that this direction reads, each by its name: they stay in registers, as no pointer to
 * them is left, and no time is lost on the others. */
BNORM_INLINE struct streams local_streams(const struct form f, const struct streams *s) {
    const int backward = f.direction == BACKWARD;
    const float *const none = NULL;
#define BNORM_COPY(set)                                                                            \
    {                                                                                              \
        s->set.center, s->set.scale, s->set.shift, backward ? s->set.invstd : none,                \
            backward ? s->set.slope : none, backward ? s->set.offset : none                        \
    }
    return (struct streams){
        .count = s->count,
        .total = s->total,
        .len = s->len,
        .first = s->first,
        .x = s->x,
        .dy = backward ? s->dy : NULL,
        .extra = s->extra,
        .out = s->out,
        .type = s->type,
        .out_type = s->out_type,
        .dresidual = backward ? s->dresidual : NULL,
        .x_stride = s->x_stride,
        .dy_stride = backward ? s->dy_stride : 0,
        .extra_stride = s->extra_stride,
        .out_stride = s->out_stride,
        .dresidual_stride = backward ? s->dresidual_stride : 0,
        .pre = s->pre,
        .act = s->act,
        .centred = s->centred,
        .sloped = backward ? s->sloped : 0,
        .hints = s->hints,
        .p = BNORM_COPY(p),
        .joint = BNORM_COPY(joint),
    };
#undef BNORM_COPY
}

BNORM_INLINE void all_streams(const struct form f, const struct streams *given) {
    struct streams s = local_streams(f, given);
    const unsigned hints = s.hints;
    _Alignas(64) float aside[2][BNORM_PART];
    for (size_t k = 0; k < s.count; k++) {
        const size_t head = s.len < VEC_F ? s.total : head_of(&s);
        const size_t line = f.narrow ? 2 * BNORM_LINE : BNORM_LINE;
        const size_t end = head + (s.total - head) / line * line;
        /* The same number of bytes for elements of half the size. */
        const size_t step = f.narrow && s.out_type != BNORM_F32 ? 2 * BNORM_PART : BNORM_PART;
        struct place at = {0, s.first};
        s.hints = stream_hints(&s, hints);
        /* Both edges in one place, so that there is one copy of them. */
        for (size_t e = 0, stop = head;; stop = s.total) {
            at = stream_edge(f, &s, at, e, stop);
            if (stop == s.total)
                break;
            for (e = head; e < end;) {
                void *const out = s.out, *const dresidual = s.dresidual;
                const size_t part = s.hints ? lesser(end, e + step) : end;
                if (s.hints & (BNORM_FETCH_IN | BNORM_FETCH_OUT))
                    fetch_ahead(f, &s, e, part);
                if (s.hints & BNORM_BYPASS) {
                    s.out = out ? element_0(f, &s, aside[0], e) : NULL;
                    s.dresidual = dresidual ? element_0(f, &s, aside[1], e) : NULL;
                }
                at = stream_body(f, &s, at, e, part);
                if (s.hints & BNORM_BYPASS) {
                    const size_t bytes = (part - e) * (f.narrow ? size_of(s.out_type) : 4);
                    pass_on(out ? out_at(f, &s, out, e) : NULL, aside[0], bytes);
                    pass_on(dresidual ? out_at(f, &s, dresidual, e) : NULL, aside[1], bytes);
                    s.out = out;
                    s.dresidual = dresidual;
                }
                e = part;
            }
        }
        skip_streams(f, &s, 1);
    }
    if (hints & BNORM_BYPASS)
        vec_fence();
    vec_leave();
}

#define BNORM_FORM(direction, kind, spread, narrow)                                                \
    case kind:                                                                                     \
        all_streams((struct form){direction, kind, spread, narrow}, s);                            \
        break;
#if BNORM_SLEEF
#define BNORM_SMOOTH_FORMS(spread)                                                                 \
    BNORM_FORM(FORWARD, BNORM_ACT_SIGMOID, spread, 0)                                              \
    BNORM_FORM(FORWARD, BNORM_ACT_SILU, spread, 0)                                                 \
    BNORM_FORM(FORWARD, BNORM_ACT_TANH, spread, 0)                                                 \
    BNORM_FORM(FORWARD, BNORM_ACT_GELU, spread, 0)                                                 \
    BNORM_FORM(FORWARD, BNORM_ACT_ELU, spread, 0)                                                  \
    BNORM_FORM(FORWARD, BNORM_ACT_SOFTPLUS, spread, 0)                                             \
    BNORM_FORM(FORWARD, BNORM_ACT_MISH, spread, 0)
#else
#define BNORM_SMOOTH_FORMS(spread)
#endif
#define BNORM_NO_FORMS(spread)
/* clang-format off */
#define BNORM_FORMS(name, direction, spread, narrow, others)                                       \
    static void name(const struct streams *s) {                                                    \
        switch (s->act.kind) {                                                                     \
            BNORM_FORM(direction, BNORM_ACT_IDENTITY, spread, narrow)                              \
            BNORM_FORM(direction, BNORM_ACT_RELU, spread, narrow)                                  \
            BNORM_FORM(direction, BNORM_ACT_CLAMP, spread, narrow)                                 \
            BNORM_FORM(direction, BNORM_ACT_LEAKY_RELU, spread, narrow)                            \
            BNORM_FORM(direction, BNORM_ACT_HARD_SWISH, spread, narrow)                            \
            others(spread)                                                                         \
        default: /* in staged.h */                                                                 \
            break;                                                                                 \
        }                                                                                          \
    }
/* clang-format on */
BNORM_FORMS(forward_rows, FORWARD, 0, 0, BNORM_SMOOTH_FORMS)
BNORM_FORMS(forward_span, FORWARD, 1, 0, BNORM_SMOOTH_FORMS)
BNORM_FORMS(backward_rows, BACKWARD, 0, 0, BNORM_NO_FORMS)
BNORM_FORMS(backward_span, BACKWARD, 1, 0, BNORM_NO_FORMS)
BNORM_FORMS(forward_narrow_rows, FORWARD, 0, 1, BNORM_NO_FORMS)
BNORM_FORMS(forward_narrow_span, FORWARD, 1, 1, BNORM_NO_FORMS)
BNORM_FORMS(backward_narrow_rows, BACKWARD, 0, 1, BNORM_NO_FORMS)
BNORM_FORMS(backward_narrow_span, BACKWARD, 1, 1, BNORM_NO_FORMS)

/* Element 0 of a group. */
BNORM_INLINE void *group_at(const bnorm_tensor *t, size_t size, size_t image, size_t group) {
    const size_t i = image * t->image_stride + group * t->group_stride;
    return t->data ? (char *)t->data + i * size : NULL;
}

/* The rows of a group, or with `planes` all planes of an image, of which `group` is the first.
 * Member by member, as compilers clear whole structs first. */
BNORM_INLINE void fill_streams(struct streams *s, const bnorm_map_args *a, enum direction direction,
                               int planes, size_t image, size_t group) {
    const float *const any = a->scale;
    const int backward = direction == BACKWARD, sloped = backward && a->slope != NULL;
#define BNORM_STRIDE(name) (planes ? a->name.group_stride : a->name.row_stride)
    s->count = planes ? a->groups : a->rows;
    s->total = s->len = a->lanes;
    s->first = 0;
    s->type = a->x.type;
    s->out_type = backward ? a->x.type : a->out.type;
    const size_t size = size_of(s->type), out_size = backward ? size : size_of(s->out_type);
    s->x = group_at(&a->x, size, image, group);
    s->dy = backward ? group_at(&a->dy, size, image, group) : NULL;
    s->extra = reads_extra(a->pre) ? group_at(&a->argument, size, image, group) : NULL;
    s->out = group_at(&a->out, out_size, image, group);
    s->dresidual = backward ? group_at(&a->dresidual, size, image, group) : NULL;
    s->x_stride = BNORM_STRIDE(x);
    s->dy_stride = BNORM_STRIDE(dy);
    s->extra_stride = BNORM_STRIDE(argument);
    s->out_stride = BNORM_STRIDE(out);
    s->dresidual_stride = BNORM_STRIDE(dresidual);
    s->pre = a->pre;
    s->act.kind = a->pre == BNORM_PRE_NONE ? BNORM_ACT_IDENTITY : a->act.kind;
    s->act.a = a->act.a;
    s->act.b = a->act.b;
    s->hints = a->hints;
    s->centred = a->center != NULL;
    s->sloped = sloped;
    s->p.center = a->center ? a->center : any;
    s->p.scale = a->scale;
    s->p.shift = a->shift ? a->shift : any;
    s->p.invstd = sloped ? a->invstd : any;
    s->p.slope = sloped ? a->slope : any;
    s->p.offset = sloped ? a->offset : any;
    s->joint.center = s->joint.scale = s->joint.shift = any;
    s->joint.invstd = s->joint.slope = s->joint.offset = any;
    if (!planes)
        skip_parameters(&s->p, group * a->lanes);
    if (s->x_stride == s->len && (!s->dy || s->dy_stride == s->len) &&
        (!s->extra || s->extra_stride == s->len) && (!s->out || s->out_stride == s->len) &&
        (!s->dresidual || s->dresidual_stride == s->len)) {
        s->total *= s->count;
        s->count = 1;
    }
#undef BNORM_STRIDE
}

/* Parameters of rows as a stream takes them. */
struct written {
    _Alignas(64) float array[6][BNORM_PERIOD + 4 * BNORM_LINE];
    float joint[6][2 * VEC_F];
};

/* p[0..c) over and over, from p[first] on, first < 2*BNORM_LINE; `least` is vector_multiple(c). */
BNORM_INLINE const float *write_period(float *array, const float *p, size_t c, size_t first,
                                       size_t least, size_t period) {
    float *const begin = array + 2 * BNORM_LINE - first;
    const size_t again = least + first, end = period + first;
    for (size_t j = 0; j < again; j += c)
        for (size_t i = 0; i < c && j + i < again; i += VEC_F)
            vec_store(begin + j + i, load_lanes(p + i, lesser(VEC_F, c - i)));
    for (size_t j = again; j < end; j += VEC_F)
        vec_store(begin + j, vec_load(begin + j - least));
    return array + 2 * BNORM_LINE;
}

BNORM_INLINE const float *write_joint(float *to, const float *p, size_t c) {
    vec_store(to, vec_load(p + c - VEC_F));
    vec_store(to + VEC_F, vec_load(p));
    return to;
}

/* The smallest multiple of c that whole vectors fill. */
BNORM_INLINE size_t vector_multiple(size_t c) {
    size_t times = 1;
    while (c * times % VEC_F)
        times *= 2;
    return c * times;
}

#define BNORM_FOR_PARAMETERS(s, X)                                                                 \
    if ((s)->centred)                                                                              \
        X(0, center);                                                                              \
    X(1, scale);                                                                                   \
    X(2, shift);                                                                                   \
    if ((s)->sloped) {                                                                             \
        X(3, invstd);                                                                              \
        X(4, slope);                                                                               \
        X(5, offset);                                                                              \
    }

/* What a vector across the end of a run takes. */
BNORM_INLINE void join_ends(struct streams *s, struct written *written){
#define BNORM_WRITE(k, name) s->joint.name = write_joint(written->joint[k], s->p.name, s->len)
    BNORM_FOR_PARAMETERS(s, BNORM_WRITE)
#undef BNORM_WRITE
}

/* Rows without gaps are one stream, whose parameters repeat. Written out so that they begin with
 * the first whole line and fill vectors, they are loaded like the tensors; where that takes too
 * much room they are loaded from anywhere and a vector may get those of two rows. */
BNORM_INLINE void join_rows(struct streams *s, struct written *written) {
    const size_t c = s->len, head = head_of(s), least = vector_multiple(c);
    if (s->count > 1 || s->total == c)
        return;
    if (head == 0 && c == least && c >= BNORM_LONG_ROW)
        return;
    if (least <= BNORM_PERIOD && s->total >= (c < VEC_F ? 2 : 8) * least) {
        s->len = least;
        while (s->len < BNORM_LONG_ROW && s->total >= 4 * s->len)
            s->len *= 2;
        s->first = (s->len - head) % s->len;
#define BNORM_WRITE(k, name)                                                                       \
    s->p.name = write_period(written->array[k], s->p.name, c, head % c, least, s->len)
        BNORM_FOR_PARAMETERS(s, BNORM_WRITE)
#undef BNORM_WRITE
    } else if (c >= VEC_F) {
        join_ends(s, written);
    }
}
