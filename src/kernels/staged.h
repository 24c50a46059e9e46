/* SPDX-License-Identifier: MIT
 *
 * Elementwise passes over tensors that are not plain floats, and activations that take more than a
 * few instructions: BNORM_STAGE elements at a time, gathered as floats where necessary, go through
 * the same loops, and from there to where they belong. */

/* A tensor, its runs `stride` elements apart; data NULL = absent. */
struct tensor {
    const void *data;
    size_t stride;
    bnorm_dtype type;
    const bnorm_quant *quant;
};

/* Bits of runs. */
struct bits {
    unsigned char *bits;
    size_t at, stride;
};

struct staged {
    size_t runs, len, valid;
    struct tensor x, dy, extra, out, dresidual;
    const struct bits *mask; /* written by forward, read by backward; NULL = none */
    bnorm_act act;
    int apart;      /* whether act is computed here, not by the loops */
    unsigned hints; /* sum of enum bnorm_hint */
};

/* Elements [i, i + n) of run r and the runs after it. */
struct part {
    size_t r, i, n;
};

/* Takes the piece of a part that lies in one run off it, or all where runs have no gaps; how long
 * it was. */
BNORM_INLINE size_t next_piece(struct part *part, size_t len, size_t stride) {
    const size_t n = stride == len ? part->n : lesser(len - part->i, part->n);
    part->n -= n;
    part->r++;
    part->i = 0;
    return n;
}

static void gather(float *to, const struct tensor *t, size_t len, struct part part,
                   unsigned hints) {
    const size_t ahead = hints & BNORM_FETCH_IN ? BNORM_AHEAD_IN * sizeof(float) : 0;
    if (t->stride == len) {
        widen(to, element_at(t->data, t->type, part.r * len + part.i), t->type, t->quant, part.n,
              ahead);
        return;
    }
    while (part.n) {
        const void *const from = element_at(t->data, t->type, part.r * t->stride + part.i);
        if (part.i == 0 && part.n >= len) {
            const size_t rows = part.n / len;
            widen_rows(to, from, t->type, t->quant, t->stride, rows, len, 0);
            to += rows * len;
            part.r += rows;
            part.n -= rows * len;
        } else {
            const size_t n = next_piece(&part, len, t->stride);
            widen(to, from, t->type, t->quant, n, 0);
            to += n;
        }
    }
}

/* A part as floats: where it lies, or in `room`. */
BNORM_INLINE const float *floats_of(float *room, const struct tensor *t, size_t len,
                                    struct part part, unsigned hints) {
    if (!t->data)
        return NULL;
    if (t->type == BNORM_F32 && t->stride == len)
        return (const float *)t->data + part.r * len + part.i;
    gather(room, t, len, part, hints);
    return room;
}

/* Whole lines go past the caches. */
static void bypass_bytes(char *to, const char *from, size_t bytes) {
    const size_t head = lesser(bytes, -(uintptr_t)to % 64);
    memcpy(to, from, head);
    to += head;
    from += head;
    for (bytes -= head; bytes >= 64; bytes -= 64) {
        for (size_t k = 0; k < VEC_LINE; k++, to += sizeof(vec_f), from += sizeof(vec_f)) {
            vec_f v;
            memcpy(&v, from, sizeof v);
            vec_bypass((float *)(void *)to, v);
        }
    }
    memcpy(to, from, bytes);
}

static void scatter(const struct tensor *t, size_t len, struct part part, const float *from,
                    unsigned hints) {
    const size_t ahead = hints & BNORM_FETCH_OUT ? BNORM_AHEAD_OUT * sizeof(float) : 0;
    if (t->stride == len) {
        char *const to = (char *)(uintptr_t)element_at(t->data, t->type, part.r * len + part.i);
        if (hints & BNORM_BYPASS) {
            _Alignas(64) char narrowed[BNORM_STAGE * sizeof(float)];
            narrow(narrowed, t->type, t->quant, from, part.n, 0);
            bypass_bytes(to, narrowed, part.n * size_of(t->type));
        } else {
            narrow(to, t->type, t->quant, from, part.n, ahead);
        }
        return;
    }
    while (part.n) {
        const uintptr_t to = (uintptr_t)element_at(t->data, t->type, part.r * t->stride + part.i);
        const size_t n = next_piece(&part, len, t->stride);
        narrow((void *)to, t->type, t->quant, from, n, 0);
        from += n;
    }
}

static void gather_bits(float *to, const struct bits *mask, size_t len, struct part part) {
    while (part.n) {
        const size_t at = mask->at + part.r * mask->stride + part.i,
                     n = next_piece(&part, len, mask->stride);
        widen_bits(to, mask->bits, at, n);
        to += n;
    }
}

static void scatter_bits(const struct bits *mask, size_t len, struct part part,
                         const bnorm_act *act, const float *v) {
    while (part.n) {
        const size_t at = mask->at + part.r * mask->stride + part.i,
                     n = next_piece(&part, len, mask->stride);
        store_bits(mask->bits, at, act, v, n);
        v += n;
    }
}

/* Padded channels: a pattern of runs of `len`, 1 or 0 per element. */
struct padding {
    float keep[32 + VEC_F];
};

BNORM_INLINE void write_padding(struct padding *p, size_t len, size_t valid) {
    for (size_t i = 0; i < 32 + VEC_F; i++)
        p->keep[i] = i % len < valid ? 1 : 0;
}

/* `fill` for padding, from element i of a run on. */
static void fill_padding(const struct padding *p, size_t len, size_t i, float *v, size_t n,
                         float fill) {
    const vec_f zero = vec_set1(0), other = vec_set1(fill);
    for (size_t k = 0; k < n; k += VEC_F)
        vec_store(v + k,
                  vec_if_le(vec_load(p->keep + (i + k) % len), zero, other, vec_load(v + k)));
}

/* Activations that go with a mask, of n values, in place. */
static void activate_values(const bnorm_act *act, float *v, size_t n) {
    const vec_f a = vec_set1(act->a), b = vec_set1(act->b);
#define BNORM_CASE(kind)                                                                           \
    case kind:                                                                                     \
        for (size_t i = 0; i < n; i += VEC_F)                                                      \
            vec_store(v + i, activate(kind, vec_load(v + i), a, b));                               \
        break;
    switch (act->kind) {
        BNORM_CASE(BNORM_ACT_RELU)
        BNORM_CASE(BNORM_ACT_CLAMP)
        BNORM_CASE(BNORM_ACT_LEAKY_RELU)
    default:
        break;
    }
#undef BNORM_CASE
}

/* The loops for one set of arguments. */
typedef void run_streams(const struct streams *s);

/* Of a size that no two of them lie at the same place of a page: loads would seem to depend on
 * stores. */
struct room {
    _Alignas(64) float array[BNORM_STAGE + 336];
};

/* Zeros behind n elements: loops over whole vectors meet nothing that the stack held. */
BNORM_INLINE float *end_room(float *room, size_t n) {
    vec_store(room + n, vec_set1(0));
    return room;
}

/* Where the loops store a part: where it belongs, or in `room`. */
BNORM_INLINE float *place_of_part(const struct staged *t, float *room, const struct tensor *out,
                                  struct part part) {
    if (!out->data)
        return NULL;
    if (out->type == BNORM_F32 && out->stride == t->len && t->valid == t->len &&
        !(t->hints & BNORM_BYPASS) && part.n % VEC_F == 0)
        return (float *)(uintptr_t)out->data + part.r * t->len + part.i;
    return end_room(room, part.n);
}

/* Passes on what is in `room`. */
BNORM_INLINE void finish_part(const struct staged *t, const struct padding *padding, float *room,
                              const float *place, const struct tensor *out, struct part part) {
    if (place != room)
        return;
    if (t->valid < t->len)
        fill_padding(padding, t->len, part.i, room, part.n, 0);
    scatter(out, t->len, part, room, t->hints);
}

static void stage_forward(const struct staged *t, struct streams s, struct part part,
                          const struct padding *padding, run_streams *forward) {
    struct room x, extra, out;
    float *const place = place_of_part(t, out.array, &t->out, part);
    s.x = floats_of(x.array, &t->x, t->len, part, t->hints);
    s.extra = floats_of(extra.array, &t->extra, t->len, part, t->hints);
    s.out = place;
    if (t->apart)
        s.act.kind = BNORM_ACT_IDENTITY;
    forward(&s);
    if (t->mask) {
        if (t->valid < t->len) /* its bits are 0 */
            fill_padding(padding, t->len, part.i, place, part.n, NAN);
        scatter_bits(t->mask, t->len, part, &t->act, place);
    }
    if (t->apart)
        activate_values(&t->act, place, part.n);
    finish_part(t, padding, out.array, place, &t->out, part);
}

static void stage_backward(const struct staged *t, struct streams s, struct part part,
                           const struct padding *padding, run_streams *forward,
                           run_streams *backward) {
    struct room x, dy, extra, out, dresidual;
    s.x = floats_of(x.array, &t->x, t->len, part, t->hints);
    s.extra = floats_of(extra.array, &t->extra, t->len, part, t->hints);
    if (t->mask) {
        gather_bits(extra.array, t->mask, t->len, part);
        s.extra = extra.array;
    }
    if (t->apart) {
        struct streams v = s;
        v.out = end_room(extra.array, part.n);
        v.dresidual = NULL;
        v.act.kind = s.act.kind = BNORM_ACT_IDENTITY;
        forward(&v);
        gather(dy.array, &t->dy, t->len, part, t->hints);
        end_room(dy.array, part.n);
        smooth_gradients(t->act.kind, t->act.a, extra.array, dy.array, whole_vectors(part.n));
        s.dy = dy.array;
        s.extra = NULL;
        s.pre = BNORM_PRE_NONE;
    } else {
        s.dy = floats_of(dy.array, &t->dy, t->len, part, t->hints);
    }
    s.out = place_of_part(t, out.array, &t->out, part);
    s.dresidual = place_of_part(t, dresidual.array, &t->dresidual, part);
    backward(&s);
    finish_part(t, padding, out.array, s.out, &t->out, part);
    finish_part(t, padding, dresidual.array, s.dresidual, &t->dresidual, part);
}

/* The parameters of runs with padding, which gets zeros. */
struct padded {
    float array[6][32 + VEC_F];
};

BNORM_INLINE const float *pad_parameters(float *to, const float *p, size_t valid) {
    for (size_t i = 0; i < 32 + VEC_F; i++)
        to[i] = i < valid ? p[i] : 0;
    return to;
}

/* The elements of the first part: up to a line of the output where lines go past the caches. */
BNORM_INLINE size_t first_part(const struct staged *t) {
    const struct tensor *out = t->out.data ? &t->out : &t->dresidual;
    if (!(t->hints & BNORM_BYPASS))
        return BNORM_STAGE;
    return BNORM_STAGE - (uintptr_t)out->data % 64 / size_of(out->type);
}

/* All runs as one stream; backward NULL = forward, `written` NULL = planes. */
static void stage_streams(const struct staged *t, struct streams s, struct written *written,
                          run_streams *forward, run_streams *backward) {
    const size_t total = t->runs * t->len;
    const struct parameters p = s.p;
    struct padded padded;
    struct padding padding;

    s.count = 1;
    s.total = total;
    s.hints = 0;
    s.type = s.out_type = BNORM_F32;
    s.out = s.dresidual = NULL; /* no particular place */
    if (t->valid < t->len) {
        write_padding(&padding, t->len, t->valid);
#define BNORM_PAD_ARRAY(k, name) s.p.name = pad_parameters(padded.array[k], p.name, t->valid)
        BNORM_FOR_PARAMETERS(&s, BNORM_PAD_ARRAY)
#undef BNORM_PAD_ARRAY
    }
    if (written) {
        join_rows(&s, written);
        if (s.len >= VEC_F) /* a part may begin anywhere */
            join_ends(&s, written);
    }
    for (size_t e = 0, n; e < total; e += n) {
        n = lesser(e ? BNORM_STAGE : first_part(t), total - e);
        const struct part part = {e / t->len, e % t->len, n};
        struct streams sub = s;
        sub.total = n;
        sub.first = e % s.len;
        if (!written)
            skip_parameters(&sub.p, part.r);
        if (backward)
            stage_backward(t, sub, part, &padding, forward, backward);
        else
            stage_forward(t, sub, part, &padding, forward);
    }
    if (t->hints & BNORM_BYPASS)
        vec_fence();
    vec_leave();
}

/* ---------------------------------------------------------------------------------------------- */
/* The kernels */

/* Whether the loops for floats, and those for 16 bits, do. */
BNORM_INLINE int is_plain_apply(const bnorm_map_args *a) {
    return a->x.type == BNORM_F32 && a->out.type == BNORM_F32 && !a->mask.bits;
}
BNORM_INLINE int is_narrow_apply(const bnorm_map_args *a) {
    return a->x.type <= BNORM_F16 && a->out.type <= BNORM_F16 && !a->mask.bits &&
           !is_smooth(&a->act);
}

/* The bits of a group, one run after the other. */
BNORM_INLINE struct bits bits_of_group(const bnorm_map_args *a, int planes, size_t image,
                                       size_t group) {
    const bnorm_bits *m = &a->mask;
    return (struct bits){m->bits, m->at + image * m->image_stride + group * m->group_stride,
                         planes ? m->group_stride : m->row_stride};
}

/* `written` NULL = planes. */
static void apply_staged(const bnorm_map_args *a, size_t image, size_t group,
                         const struct streams *s, struct written *written, run_streams *forward) {
    const struct bits bits = bits_of_group(a, !written, image, group);
    const struct staged t = {
        .runs = written ? a->rows : a->groups,
        .len = a->lanes,
        .valid = written ? a->valid : a->lanes,
        .x = {s->x, s->x_stride, a->x.type, &a->x.quant},
        .extra = {s->extra, s->extra_stride, a->argument.type, &a->argument.quant},
        .out = {s->out, s->out_stride, a->out.type, &a->out.quant},
        .mask = bits.bits ? &bits : NULL,
        .act = a->act,
        .apart = bits.bits != NULL,
        .hints = a->hints,
    };
    stage_streams(&t, *s, written, forward, NULL);
}

static void dx_staged(const bnorm_map_args *a, size_t image, size_t group, const struct streams *s,
                      struct written *written, run_streams *forward, run_streams *backward) {
    const struct bits bits = bits_of_group(a, !written, image, group);
    const bnorm_dtype type = a->x.type;
    const struct staged t = {
        .runs = written ? a->rows : a->groups,
        .len = a->lanes,
        .valid = written ? a->valid : a->lanes,
        .x = {s->x, s->x_stride, type, NULL},
        .dy = {s->dy, s->dy_stride, type, NULL},
        .extra = {s->extra, s->extra_stride, type, NULL},
        .out = {s->out, s->out_stride, type, NULL},
        .dresidual = {s->dresidual, s->dresidual_stride, type, NULL},
        .mask = a->pre == BNORM_PRE_MASK ? &bits : NULL,
        .act = a->act,
        .apart = a->pre != BNORM_PRE_NONE && is_smooth(&a->act),
        .hints = a->hints,
    };
    struct streams floats = *s;
    if (t.mask)
        floats.pre = BNORM_PRE_Y;
    stage_streams(&t, floats, written, forward, backward);
}

static void apply_group(const bnorm_map_args *a, size_t image, size_t group) {
    const int plain = is_plain_apply(a);
    struct streams s;
    struct written written;
    fill_streams(&s, a, FORWARD, 0, image, group);
    if (a->valid < a->lanes || !(plain || is_narrow_apply(a))) {
        apply_staged(a, image, group, &s, &written, forward_rows);
        return;
    }
    join_rows(&s, &written);
    if (plain)
        forward_rows(&s);
    else
        forward_narrow_rows(&s);
}

static void apply_planes(const bnorm_map_args *a, size_t image) {
    struct streams s;
    fill_streams(&s, a, FORWARD, 1, image, 0);
    if (is_plain_apply(a))
        forward_span(&s);
    else if (is_narrow_apply(a))
        forward_narrow_span(&s);
    else
        apply_staged(a, image, 0, &s, NULL, forward_span);
}

static void dx_group(const bnorm_map_args *a, size_t image, size_t group) {
    struct streams s;
    struct written written;
    fill_streams(&s, a, BACKWARD, 0, image, group);
    if (a->valid < a->lanes || !is_narrow_grad(a)) {
        dx_staged(a, image, group, &s, &written, forward_rows, backward_rows);
        return;
    }
    join_rows(&s, &written);
    if (a->x.type == BNORM_F32)
        backward_rows(&s);
    else
        backward_narrow_rows(&s);
}

static void dx_planes(const bnorm_map_args *a, size_t image) {
    struct streams s;
    fill_streams(&s, a, BACKWARD, 1, image, 0);
    if (!is_narrow_grad(a))
        dx_staged(a, image, 0, &s, NULL, forward_span, backward_span);
    else if (a->x.type == BNORM_F32)
        backward_span(&s);
    else
        backward_narrow_span(&s);
}

static void apply_rows(const bnorm_map_args *a) {
    for (size_t image = 0; image < a->images; image++)
        for (size_t group = 0; group < a->groups; group++)
            apply_group(a, image, group);
}

static void apply_span(const bnorm_map_args *a) {
    for (size_t image = 0; image < a->images; image++)
        apply_planes(a, image);
}

static void dx_rows(const bnorm_map_args *a) {
    for (size_t image = 0; image < a->images; image++)
        for (size_t group = 0; group < a->groups; group++)
            dx_group(a, image, group);
}

static void dx_span(const bnorm_map_args *a) {
    for (size_t image = 0; image < a->images; image++)
        dx_planes(a, image);
}
