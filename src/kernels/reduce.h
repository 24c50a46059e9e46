/* SPDX-License-Identifier: MIT
 *
 * The reductions of a block: of the statistics, sum(d) and sum(d*d) with d = x - pivot; of backward,
 * sum(g) and sum(g*d) with d = x - center, by way of a pivot near it. src/scalar/scalar.c says what,
 * docs/numerics.md why.
 *
 * Rows of lanes are added up in groups of 16 rows, in float, four rows at a time; groups in double.
 * A lane is a chain of a channel (several where few channels share a row), or every 32nd element of
 * a plane. A form has three parameters, constants of an inlined body:
 *   g     where the first of the two terms comes from: BNORM_SQUARES = from d; of backward an enum
 *         bnorm_pre: dy alone for BNORM_PRE_NONE, else dy where RELU or CLAMP let it pass, from a
 *         mask RELU alone
 *   type  of the tensors: F32, and BF16 and F16 for BNORM_SQUARES and BNORM_PRE_NONE
 *   plane whether rows are those of a plane, whose steps are constants, too, or of a block of
 *         channels with the same steps, of F32 and without an activation
 * Everything else, and rows of less than a vector of lanes, becomes x and g in floats first, in
 * memory that stays in the first-level cache. */
#include "../fma.h"

#define BNORM_SQUARES (-1)
#define BNORM_GENERAL (-2) /* has no form: by way of memory */

enum plane { BNORM_ROWS, BNORM_PLANE, BNORM_BLOCK };

struct sum_form {
    int g;
    bnorm_dtype type;
    enum plane plane;
};

/* Rows of lanes in memory. Steps are bytes from one row to the next. */
struct sum_rows {
    const bnorm_map_args *a; /* pre and act of backward; NULL = statistics */
    bnorm_dtype type;
    int spread;   /* parameters: one for all lanes, or one per lane */
    int prefetch; /* lines are asked for ahead of their use */
    const char *x, *dy, *argument;
    size_t x_step, dy_step, argument_step, bit, bit_step;
    size_t dy_again;    /* bytes from the end of a group of a plane back to its beginning, or 0 */
    const float *pivot; /* d = x - pivot */
    const float *center, *scale, *shift, *invstd; /* NULL for statistics */
    /* Staged lanes have the parameters of these channels again and again, those behind the first
     * `valid` have 0. */
    size_t c, valid;
};

/* Moves to lane i of row `row`, whose parameters begin with lane `p`. */
BNORM_INLINE void move_rows(struct sum_rows *s, size_t row, size_t i, size_t p) {
    const size_t size = size_of(s->type);
    s->x += row * s->x_step + i * size;
    if (s->pivot)
        s->pivot += p;
    if (!s->a)
        return;
    s->center += p;
    s->invstd += p;
    s->dy += row * s->dy_step + i * size;
    s->bit += row * s->bit_step + i;
    if (reads_argument(s->a->pre))
        s->argument += row * s->argument_step + i * size;
    if (reads_x(s->a->pre)) {
        s->scale += p;
        s->shift += p;
    }
}

BNORM_INLINE void take_every(struct sum_rows *s, size_t every) {
    s->x_step *= every;
    s->dy_step *= every;
    s->argument_step *= every;
    s->bit_step *= every;
}

/* The same, and of every `every`th row. */
BNORM_RARE struct sum_rows sum_rows_from(const struct sum_rows *s, size_t row, size_t i,
                                         size_t every, size_t p) {
    struct sum_rows t = *s;
    move_rows(&t, row, i, p);
    take_every(&t, every);
    return t;
}

/* ---------------------------------------------------------------------------------------------- */
/* Trees of vectors */

struct sums {
    vec_f a, b;
};

/* The parameters of a vector of lanes. */
struct sum_parameters {
    vec_f pivot, center, scale, shift, low, high, one;
};

BNORM_INLINE struct sums no_sums(void) {
    return (struct sums){vec_set1(0), vec_set1(0)};
}

BNORM_INLINE struct sums add_sums(struct sums s, struct sums t) {
    return (struct sums){vec_add(s.a, t.a), vec_add(s.b, t.b)};
}

/* RELU and CLAMP pass dy where low < v, unless high <= v: never for RELU, whose limit is a NaN. */
BNORM_INLINE void set_limits(const bnorm_act *act, struct sum_parameters *p) {
    const int clamp = act->kind == BNORM_ACT_CLAMP;
    p->low = clamp ? vec_set1(act->a) : vec_set1(0);
    p->high = clamp ? vec_set1(act->b) : vec_set1(NAN);
}

BNORM_INLINE vec_f limited(const struct sum_parameters *p, vec_f v, vec_f dy) {
    return vec_zero_from(v, p->high, vec_zero_unless_gt(v, p->low, dy));
}

/* Of a vector from lane i on; or of all vectors of plane i, or of a block of channels. */
BNORM_INLINE struct sum_parameters sum_parameters_at(const struct sum_form f,
                                                     const struct sum_rows *s, size_t i) {
    struct sum_parameters p;
    const int reads_all = f.g == BNORM_PRE_X || f.g == BNORM_PRE_RESIDUAL;
    p.pivot = p.center = p.scale = p.shift = p.low = p.high = vec_set1(0);
    p.one = vec_keep(vec_set1(1));
    if (f.g > BNORM_PRE_NONE && f.g != BNORM_PRE_MASK)
        set_limits(&s->a->act, &p);
#define BNORM_PARAMETERS(load)                                                                     \
    {                                                                                              \
        p.pivot = load(s->pivot + i);                                                              \
        if (reads_all) {                                                                           \
            p.center = load(s->center + i);                                                        \
            p.scale = load(s->scale + i);                                                          \
            p.shift = load(s->shift + i);                                                          \
        }                                                                                          \
    }
#define BNORM_ONE(p) vec_set1(*(p))
    if (f.plane == BNORM_PLANE)
        BNORM_PARAMETERS(BNORM_ONE)
    else
        BNORM_PARAMETERS(vec_load)
#undef BNORM_ONE
#undef BNORM_PARAMETERS
    return p;
}

/* Lanes of a vector, from lane i on, that lie before `end`. */
BNORM_INLINE size_t lanes_before(size_t end, size_t i) {
    return end > i ? lesser(VEC_F, end - i) : 0;
}

/* n <= VEC_F elements, 0 behind them. */
BNORM_RARE vec_f half_lanes(const void *p, bnorm_dtype type, size_t n) {
    return widened_lanes(p, type, n);
}
BNORM_INLINE vec_f form_lanes(const struct sum_form f, const char *p, size_t n) {
    const void *const at = p;
    if (__builtin_constant_p(n) && n == VEC_F)
        return widened_lanes(at, f.type, VEC_F);
    return f.type == BNORM_F32 ? vec_load_n(at, n) : half_lanes(at, f.type, n);
}

/* Where rows of lanes are read. */
struct cursor {
    const char *x, *dy, *argument;
    size_t bit;
};

/* Lane i of row `row` behind a cursor, or before it, by offsets that have wrapped. */
BNORM_INLINE struct cursor cursor_at(const struct sum_form f, const struct sum_rows *s,
                                     struct cursor c, size_t row, size_t i) {
    const size_t at = i * size_of(f.type), step = BNORM_SPAN_LANES * size_of(f.type);
    c.x += (ptrdiff_t)(row * (f.plane ? step : s->x_step) + at);
    if (f.g >= BNORM_PRE_NONE)
        c.dy += (ptrdiff_t)(row * (f.plane ? step : s->dy_step) + at);
    if (f.g == BNORM_PRE_RESIDUAL || f.g == BNORM_PRE_Y)
        c.argument += (ptrdiff_t)(row * (f.plane ? step : s->argument_step) + at);
    if (f.g == BNORM_PRE_MASK)
        c.bit += row * (f.plane ? BNORM_SPAN_LANES : s->bit_step) + i;
    return c;
}

BNORM_INLINE struct cursor cursor_of(const struct sum_rows *s) {
    return (struct cursor){s->x, s->dy, s->argument, s->bit};
}

/* The two factors of a row: their product is the second term, the first of them the first term. */
struct terms {
    vec_f a, d;
};

BNORM_INLINE struct terms no_terms(void) {
    return (struct terms){vec_set1(0), vec_set1(0)};
}

/* What the sums of rows take: `row` and `i` are counted from the cursor. */
#define BNORM_SUM_ARGS                                                                             \
    const struct sum_form f, const struct sum_rows *s, const struct sum_parameters *p,             \
        struct cursor from, size_t row, size_t i

/* x - from in the first n lanes, zeros behind them. Where sums are little more than additions, those
 * fill the units that add, and products leave theirs free. */
BNORM_INLINE vec_f difference(const struct sum_form f, const struct sum_parameters *p, vec_f x,
                              vec_f from, size_t n) {
    const int adds = f.plane == BNORM_PLANE && f.g <= BNORM_PRE_NONE;
    const vec_f all = adds ? vec_sub_times(x, p->one, from) : vec_sub(x, from);
    return __builtin_constant_p(n) && n == VEC_F ? all : vec_first_n(all, n);
}

/* n lanes of a row, zeros behind them. */
BNORM_INLINE struct terms terms_at(BNORM_SUM_ARGS, size_t n) {
    const struct cursor at = cursor_at(f, s, from, row, i);
    const vec_f x = form_lanes(f, at.x, n), d = difference(f, p, x, p->pivot, n);
    if (f.g == BNORM_SQUARES)
        return (struct terms){d, d};
    const vec_f dy = form_lanes(f, at.dy, n);
    vec_f v = vec_set1(0);
    if (f.g == BNORM_PRE_NONE)
        return (struct terms){dy, d};
    if (f.g == BNORM_PRE_RESIDUAL || f.g == BNORM_PRE_Y)
        v = form_lanes(f, at.argument, n);
    if (f.g == BNORM_PRE_MASK) {
        const unsigned char *const bits = s->a->mask.bits;
        const int whole_row = f.plane && __builtin_constant_p(n) && n == VEC_F;
        const unsigned window = whole_row ? (unsigned)(row_window(bits, at.bit - i) >> i)
                                : n       ? bit_window(bits, at.bit, n)
                                          : 0;
        return (struct terms){vec_if_bits(window, dy), d};
    }
    if (f.g == BNORM_PRE_X)
        v = vec_fma(difference(f, p, x, p->center, n), p->scale, p->shift);
    if (f.g == BNORM_PRE_RESIDUAL)
        v = vec_add(vec_fma(difference(f, p, x, p->center, n), p->scale, p->shift), v);
    return (struct terms){limited(p, v, dy), d};
}

/* Sums of one row and of two. 0 is added to a product that compilers can't make one operation with
 * what it is added to. */
BNORM_INLINE struct sums sum_of_one(struct terms t) {
    return (struct sums){t.a, vec_fma(t.a, t.d, vec_set1(0))};
}
BNORM_INLINE struct sums sum_of_two(struct terms t, struct terms u) {
    return (struct sums){vec_add(t.a, u.a), vec_fma(u.a, u.d, vec_mul(t.a, t.d))};
}

/* Sums of 1, 2 and 4 rows, the last one of n lanes. */
BNORM_INLINE struct sums sum_1(BNORM_SUM_ARGS, size_t n) {
    return sum_of_one(terms_at(f, s, p, from, row, i, n));
}
BNORM_INLINE struct sums sum_2(BNORM_SUM_ARGS, size_t n) {
    return sum_of_two(terms_at(f, s, p, from, row, i, VEC_F),
                      terms_at(f, s, p, from, row + 1, i, n));
}
BNORM_INLINE struct sums sum_4(BNORM_SUM_ARGS) {
    return add_sums(sum_2(f, s, p, from, row, i, VEC_F), sum_2(f, s, p, from, row + 2, i, VEC_F));
}

/* Asks for the lines of `bytes` bytes of each tensor, `ahead` behind a cursor. The CPU's own
 * prefetching begins anew with each row of a few lines, and with each page. */
BNORM_INLINE void prefetch_ahead(const struct sum_form f, struct cursor at, size_t ahead,
                                 size_t bytes) {
#define BNORM_PREFETCH(t) vec_prefetch((const float *)(const void *)(at.t + ahead + k))
    for (size_t k = 0; k < bytes; k += 64) {
        BNORM_PREFETCH(x);
        if (f.g >= BNORM_PRE_NONE)
            BNORM_PREFETCH(dy);
        if (f.g == BNORM_PRE_RESIDUAL || f.g == BNORM_PRE_Y)
            BNORM_PREFETCH(argument);
    }
#undef BNORM_PREFETCH
}

/* Adds the sums of four rows of `count` vectors side by side to theirs, `fours` times. */
BNORM_INLINE void add_fours(const struct sum_form f, const struct sum_rows *s,
                            const struct sum_parameters *p, struct cursor at, size_t fours,
                            size_t count, struct sums *sums) {
    BNORM_NO_UNROLL
    for (; fours > 0; fours--) {
        BNORM_UNROLL
        for (size_t k = 0; k < count; k++)
            sums[k] = add_sums(sums[k], sum_4(f, s, p, at, 0, k * VEC_F));
        if (BNORM_UNLIKELY(s->prefetch))
            prefetch_ahead(f, at, BNORM_AHEAD, 4 * BNORM_SPAN_LANES * size_of(f.type));
        at = cursor_at(f, s, at, 4, 0);
    }
}

/* Sums of `rows` < 4 rows, and the first `tail` lanes of one more. Rows that are not there count
 * as 0. */
BNORM_INLINE struct sums sum_rest(BNORM_SUM_ARGS, size_t rows, size_t tail) {
    struct sums two, one;
    if (rows & 2) {
        two = sum_2(f, s, p, from, row, i, VEC_F);
        if (rows == 2 && !tail)
            return two;
    }
    if (tail)
        one = rows & 1 ? sum_2(f, s, p, from, row + (rows & 2), i, tail)
                       : sum_1(f, s, p, from, row + (rows & 2), i, tail);
    else if (rows & 1)
        one = sum_1(f, s, p, from, row + (rows & 2), i, VEC_F);
    else
        return no_sums();
    return rows & 2 ? add_sums(two, one) : one;
}

/* Whether a form takes less code, which costs it a few percent at most: those of backward with more
 * than a load of dy do. */
BNORM_INLINE int is_short(const struct sum_form f) {
    return f.g > BNORM_PRE_NONE || (f.g == BNORM_PRE_NONE && f.type != BNORM_F32);
}

/* The same by less code: of terms that are made one row at a time. */
BNORM_INLINE struct sums sum_few(BNORM_SUM_ARGS, size_t rows, size_t tail) {
    struct terms t[4] = {no_terms(), no_terms(), no_terms(), no_terms()};
    BNORM_NO_UNROLL
    for (size_t j = 0; j < rows + (tail > 0); j++)
        t[j] = terms_at(f, s, p, from, row + j, i, j < rows ? VEC_F : tail);
    return add_sums(sum_of_two(t[0], t[1]), sum_of_two(t[2], t[3]));
}

/* ---------------------------------------------------------------------------------------------- */
/* Everything, by way of memory */

/* What load_rows makes of vectors with the same parameters: of a column of rows, or of a plane. */
struct column {
    struct sum_parameters p;
    const struct sum_rows *s;
    size_t x_step, dy_step, argument_step, bit_step; /* from a vector to the next */
    size_t step, end;                                /* floats in x and g, and of all vectors */
    float *x, *g;
    struct cursor at;
};

/* n <= VEC_F lanes of each; limits: the activation is RELU or CLAMP, else any. */
BNORM_INLINE void load_column(const struct column *of, int limits, size_t n) {
    const struct column own = *of, *const c = &own; /* that no store can change */
    const bnorm_map_args *const a = c->s->a;
    const enum bnorm_pre pre = a ? a->pre : BNORM_PRE_NONE;
    const bnorm_dtype type = c->s->type;
    struct cursor at = c->at;
    for (size_t k = 0; k < c->end; k += c->step) {
        const vec_f x = widened_lanes(at.x, type, n);
        vec_store(c->x + k, x);
        at.x += c->x_step;
        if (!limits && !a)
            continue;
        vec_f g = widened_lanes(at.dy, type, n), v = vec_set1(0);
        at.dy += c->dy_step;
        if (reads_argument(pre)) {
            v = widened_lanes(at.argument, type, n);
            at.argument += c->argument_step;
        }
        if (pre == BNORM_PRE_MASK) {
            v = vec_if_bits(bit_window(a->mask.bits, at.bit, n) & ((1u << n) - 1), vec_set1(1));
            at.bit += c->bit_step;
        } else if (pre != BNORM_PRE_Y) {
            const vec_f d = first_lanes(vec_sub(x, c->p.center), n),
                        of_x = vec_fma(d, c->p.scale, c->p.shift);
            v = pre == BNORM_PRE_RESIDUAL ? vec_add(of_x, v) : of_x;
        }
        if (limits)
            g = limited(&c->p, v, g);
        else if (pre != BNORM_PRE_NONE)
            g = gradient_of(&a->act, v, g);
        vec_store(c->g + k, g);
    }
}

/* Rows [0, rows) of n lanes as floats without gaps, whole vectors each: x, and g, which is not
 * written for statistics. One row where parameters are spread. */
static void load_rows(const struct sum_rows *s, size_t rows, size_t n, float *x, float *g) {
    const enum bnorm_pre pre = s->a ? s->a->pre : BNORM_PRE_NONE;
    const size_t size = size_of(s->type);
    const int limits = pre != BNORM_PRE_NONE &&
                       (s->a->act.kind == BNORM_ACT_RELU || s->a->act.kind == BNORM_ACT_CLAMP);
    const size_t next = VEC_F * size;
    struct column c = {.s = s, .at = cursor_of(s), .x = x, .g = g};
    c.x_step = s->spread ? next : s->x_step;
    c.dy_step = s->spread ? next : s->dy_step;
    c.argument_step = s->spread ? next : s->argument_step;
    c.bit_step = s->spread ? VEC_F : s->bit_step;
    c.step = s->spread ? VEC_F : whole_vectors(n);
    if (limits)
        set_limits(&s->a->act, &c.p);
    for (size_t i = 0, vectors; i < n; i += vectors * VEC_F) {
        const size_t lanes = lesser(VEC_F, n - i);
        vectors = s->spread && lanes == VEC_F ? (n - i) / VEC_F : 1;
        c.end = s->spread ? vectors * VEC_F : rows * c.step;
        if (reads_x(pre)) {
            c.p.center = parameter_lanes(s->center, s->spread, i, lanes);
            c.p.scale = parameter_lanes(s->scale, s->spread, i, lanes);
            c.p.shift = parameter_lanes(s->shift, s->spread, i, lanes);
        }
        if (limits && lanes == VEC_F)
            load_column(&c, 1, VEC_F);
        else if (lanes == VEC_F)
            load_column(&c, 0, VEC_F);
        else
            load_column(&c, 0, lanes);
        const size_t done = vectors * VEC_F;
        c.x += done;
        c.g += done;
        c.at.x += done * size;
        c.at.bit += done;
        if (s->a)
            c.at.dy += done * size;
        if (reads_argument(pre))
            c.at.argument += done * size;
    }
}

/* ---------------------------------------------------------------------------------------------- */
/* Rows */

/* Adds the sums of a group to as many doubles; the first group's are stored. */
BNORM_INLINE void add_group(struct sums s, int first, double *a, double *b) {
    static const double none[VEC_F];
    const double *const from_a = first ? none : a, *const from_b = first ? none : b;
    vec_store_d(a, vec_add_d(vec_load_d(from_a), vec_low(s.a)));
    vec_store_d(a + VEC_D, vec_add_d(vec_load_d(from_a + VEC_D), vec_high(s.a)));
    vec_store_d(b, vec_add_d(vec_load_d(from_b), vec_low(s.b)));
    vec_store_d(b + VEC_D, vec_add_d(vec_load_d(from_b + VEC_D), vec_high(s.b)));
}

/* X(name, g, type) for all forms. */
#define BNORM_SUM_TYPES(X, name, g)                                                                \
    X(name##_f32, g, BNORM_F32)                                                                    \
    X(name##_bf16, g, BNORM_BF16)                                                                  \
    X(name##_f16, g, BNORM_F16)
#define BNORM_SUM_FORMS(X)                                                                         \
    BNORM_SUM_TYPES(X, squares, BNORM_SQUARES)                                                     \
    BNORM_SUM_TYPES(X, dy, BNORM_PRE_NONE)                                                         \
    X(limited_x, BNORM_PRE_X, BNORM_F32)                                                           \
    X(limited_residual, BNORM_PRE_RESIDUAL, BNORM_F32)                                             \
    X(limited_y, BNORM_PRE_Y, BNORM_F32)                                                           \
    X(limited_mask, BNORM_PRE_MASK, BNORM_F32)

/* Which of them s has, or BNORM_GENERAL. */
static int form_of(const struct sum_rows *s) {
    const enum bnorm_pre pre = s->a ? s->a->pre : BNORM_PRE_NONE;
    if (pre == BNORM_PRE_NONE)
        return (s->a ? 3 : 0) + (int)s->type;
    if (s->type == BNORM_F32 && (s->a->act.kind == BNORM_ACT_RELU ||
                                 (s->a->act.kind == BNORM_ACT_CLAMP && pre != BNORM_PRE_MASK)))
        return 6 + (int)pre - (int)BNORM_PRE_X;
    return BNORM_GENERAL;
}

/* Sums of a group in float: of each vector of lanes both. */
BNORM_INLINE struct sums load_sums(const float *from) {
    return (struct sums){vec_load(from), vec_load(from + VEC_F)};
}
BNORM_INLINE void add_to_group(struct sums s, int first, float *to) {
    if (!first)
        s = add_sums(load_sums(to), s);
    vec_store(to, s.a);
    vec_store(to + VEC_F, s.b);
}

/* Four rows of len lanes. Where these are not whole vectors, the last one begins so much earlier.
 * With each vector the next lines of the row `ahead` rows behind are asked for. */
BNORM_INLINE void add_fours_of_rows(const struct sum_form f, const struct sum_rows *s,
                                    struct cursor at, size_t len, size_t ahead, int first,
                                    float *to) {
    const size_t rest = len % VEC_F;
    size_t i = 0, end = len - rest, lane = 0;
    struct cursor next = cursor_at(f, s, at, ahead, 0);
    for (;;) {
        do {
            const struct sum_parameters p = sum_parameters_at(f, s, i);
            if (BNORM_UNLIKELY(s->prefetch)) {
                prefetch_ahead(f, next, 0, 4 * VEC_F * size_of(f.type));
                next = cursor_at(f, s, next, 0, 4 * VEC_F);
                lane += 4 * VEC_F;
                if (lane >= len) {
                    next = cursor_at(f, s, next, 1, -lane);
                    lane = 0;
                }
            }
            add_to_group(sum_4(f, s, &p, at, 0, 0), first, to);
            at = cursor_at(f, s, at, 0, VEC_F);
            i += VEC_F;
            to += 2 * VEC_F;
        } while (i < end);
        if (end == len)
            return;
        i = len - VEC_F;
        end = len;
        at = cursor_at(f, s, at, 0, rest - VEC_F);
    }
}

/* `rows` < 4 rows of len lanes, and of one more the lanes before `tail`. */
BNORM_INLINE void add_other_rows(const struct sum_form f, const struct sum_rows *s,
                                 struct cursor at, size_t len, size_t rows, size_t tail, int first,
                                 float *to) {
    for (size_t i = 0; i < len; i += VEC_F) {
        const size_t lane = lesser(i, len - VEC_F), in_tail = lanes_before(tail, lane);
        const struct sum_parameters p = sum_parameters_at(f, s, lane);
        const struct sums rest = is_short(f) ? sum_few(f, s, &p, at, 0, lane, rows, in_tail)
                                             : sum_rest(f, s, &p, at, 0, lane, rows, in_tail);
        add_to_group(rest, first, to + 2 * i);
    }
}

/* The last `rest` doubles of a vector to its front, zeros behind them. */
BNORM_INLINE void move_rest(double *p, size_t rest) {
    memmove(p, p + (VEC_F - rest), rest * sizeof *p);
    memset(p + rest, 0, (VEC_F - rest) * sizeof *p);
}

/* Sums of `rows` rows of len >= VEC_F lanes, and the first `tail` lanes of one more; whole vectors
 * are written. group has room for those of a group of rows. */
BNORM_INLINE void add_lanes(const struct sum_form f, const struct sum_rows *from, size_t rows,
                            size_t tail, size_t len, float *group, double *a, double *b) {
    const struct sum_rows own = *from, *const s = &own; /* that no store can change */
    const size_t rest = len % VEC_F, whole = len - rest, four = 4 * len * size_of(f.type),
                 ahead = s->prefetch ? 4 * ((BNORM_AHEAD + four - 1) / four) : 0;
    for (size_t r = 0; r < rows + (tail > 0); r += BNORM_GROUP) {
        const size_t count = lesser(BNORM_GROUP, rows - r), last = count < BNORM_GROUP ? tail : 0;
        struct cursor at = cursor_at(f, s, cursor_of(s), r, 0);
        size_t q = 0;
        for (; q + 4 <= count; q += 4, at = cursor_at(f, s, at, 4, 0)) {
            if (is_short(f))
                add_fours_of_rows(f, s, at, len, ahead, q == 0, group);
            else if (q == 0)
                add_fours_of_rows(f, s, at, len, ahead, 1, group);
            else
                add_fours_of_rows(f, s, at, len, ahead, 0, group);
        }
        if (q < count || last)
            add_other_rows(f, s, at, len, count - q, last, q == 0, group);
        for (size_t i = 0; i < len; i += VEC_F)
            add_group(load_sums(group + 2 * i), r == 0, a + i, b + i);
    }
    if (rest) {
        move_rest(a + whole, rest);
        move_rest(b + whole, rest);
    }
}

typedef void rows_form(const struct sum_rows *s, size_t rows, size_t tail, size_t len, float *group,
                       double *a, double *b);
#define BNORM_ROWS_FORM(name, g, type)                                                             \
    static void add_rows_##name(const struct sum_rows *s, size_t rows, size_t tail, size_t len,    \
                                float *group, double *a, double *b) {                              \
        add_lanes((struct sum_form){g, type, BNORM_ROWS}, s, rows, tail, len, group, a, b);        \
    }
BNORM_SUM_FORMS(BNORM_ROWS_FORM)
#define BNORM_ROWS_ENTRY(name, g, type) add_rows_##name,
static rows_form *const rows_forms[] = {BNORM_SUM_FORMS(BNORM_ROWS_ENTRY)};

/* What has a form, of len >= VEC_F: of a tile, and of what takes little stack. */
BNORM_RARE void add_tile_form(const struct sum_rows *s, size_t rows, size_t tail, size_t len,
                              double *a, double *b) {
    float group[2 * (BNORM_TILE + BNORM_PAD)];
    rows_forms[form_of(s)](s, rows, tail, len, group, a, b);
}
BNORM_RARE void add_form(const struct sum_rows *s, size_t rows, size_t tail, size_t len, double *a,
                         double *b) {
    float group[2 * (BNORM_MAX_LANES + BNORM_PAD)];
    rows_forms[form_of(s)](s, rows, tail, len, group, a, b);
}

/* Elements of four rows of a plane, and of a group. */
#define BNORM_FOUR_SPAN  ((size_t)4 * BNORM_SPAN_LANES)
#define BNORM_GROUP_SPAN (BNORM_GROUP * BNORM_SPAN_LANES)
/* Floats of x and g that are made at a time: a group of a plane; of rows a group of so many lanes. */
#define BNORM_STAGE_LANES ((size_t)(VEC_F > 4 ? 16 : 8))

/* Rows of `row` floats at x, and at g. */
BNORM_INLINE struct sum_rows staged_rows(const struct sum_rows *s, const float *x, const float *g,
                                         const float *pivot, size_t row) {
    static const bnorm_map_args plain = {.pre = BNORM_PRE_NONE};
    return (struct sum_rows){.a = s->a ? &plain : NULL,
                             .type = BNORM_F32,
                             .spread = s->spread,
                             .x = (const char *)x,
                             .dy = (const char *)g,
                             .x_step = row * sizeof *x,
                             .dy_step = row * sizeof *g,
                             .pivot = pivot,
                             .center = pivot,
                             .invstd = pivot};
}

/* Parameters of n lanes from lane i on, but for the pivot. */
struct staged_parameters {
    float center[BNORM_STAGE_LANES], scale[BNORM_STAGE_LANES], shift[BNORM_STAGE_LANES];
};
BNORM_RARE void stage_parameters(struct sum_rows *s, size_t i, size_t n,
                                 struct staged_parameters *to) {
    if (s->spread || !s->a || !reads_x(s->a->pre))
        return;
    for (size_t k = 0, channel = i % s->c; k < n; k++) {
        const int valid = channel < s->valid;
        to->center[k] = valid ? s->center[channel] : 0;
        to->scale[k] = valid ? s->scale[channel] : 0;
        to->shift[k] = valid ? s->shift[channel] : 0;
        channel = channel + 1 < s->c ? channel + 1 : 0;
    }
    s->center = to->center;
    s->scale = to->scale;
    s->shift = to->shift;
}

/* What has none, and any len: a group of few lanes at a time. */
BNORM_COLD void add_staged(const struct sum_rows *s, size_t rows, size_t tail, size_t len,
                           double *a, double *b) {
    enum { ROOM = BNORM_GROUP * BNORM_STAGE_LANES };
    float x[ROOM], g[ROOM], pivot[BNORM_STAGE_LANES], group[2 * BNORM_STAGE_LANES];
    double sums_a[BNORM_STAGE_LANES + VEC_F], sums_b[BNORM_STAGE_LANES + VEC_F];
    struct staged_parameters parameters;
    const size_t end = rows ? len : tail;
    for (size_t i = 0; i < end; i += BNORM_STAGE_LANES) {
        const size_t n = lesser(BNORM_STAGE_LANES, end - i), row = whole_vectors(n);
        struct sum_rows at = sum_rows_from(s, 0, i, 1, 0);
        const struct sum_rows t = staged_rows(s, x, g, pivot, row);
        stage_parameters(&at, i, n, &parameters);
        memset(pivot, 0, sizeof pivot);
        memcpy(pivot, s->pivot + i, n * sizeof *pivot);
        for (size_t r = 0; r < rows + (tail > i); r += BNORM_GROUP) {
            const size_t count = lesser(BNORM_GROUP, rows - r), behind = count * row,
                         in_tail = count < BNORM_GROUP && tail > i ? lesser(n, tail - i) : 0;
            load_rows(&at, count, n, x, g);
            move_rows(&at, count, 0, 0);
            if (in_tail)
                load_rows(&at, 1, in_tail, x + behind, g + behind);
            rows_forms[form_of(&t)](&t, count, in_tail, row, group, sums_a, sums_b);
            for (size_t k = 0; k < row; k += VEC_D) {
                const vec_d none = vec_set1_d(0), of_a = r ? vec_load_d(a + i + k) : none,
                            of_b = r ? vec_load_d(b + i + k) : none;
                vec_store_d(a + i + k, vec_add_d(of_a, vec_load_d(sums_a + k)));
                vec_store_d(b + i + k, vec_add_d(of_b, vec_load_d(sums_b + k)));
            }
        }
    }
}

BNORM_INLINE void add_rows(const struct sum_rows *s, size_t rows, size_t tail, size_t len,
                           double *a, double *b) {
    if (len > BNORM_MAX_LANES)
        add_tile_form(s, rows, tail, len, a, b);
    else if (len >= VEC_F && form_of(s) != BNORM_GENERAL)
        add_form(s, rows, tail, len, a, b);
    else
        add_staged(s, rows, tail, len, a, b);
}

/* c channels of a block of `count` positions: of rows, or, where parameters are spread, with c = 1
 * and 32 chains, of a plane. */
struct sum_block {
    struct sum_rows s; /* a row is a position, and c*chains lanes have parameters */
    size_t count, c, chains;
    int many; /* the first of many blocks, x_step and dy_step apart, whose rows follow one another */
};

/* Rows without gaps are joined, so that chain j of channel i is lane j*c + i of longer rows, for
 * which v is computed with parameters that are repeated, up to so many; otherwise each chain has rows
 * of its own, and of a single row there is one chain, whose lanes need no more than c parameters. */
#define BNORM_REPEATED 144
struct chain_rows {
    struct sum_rows s;
    size_t rows, tail, len;
};
static size_t chain_count(const struct sum_block *k) {
    const struct sum_rows *s = &k->s;
    const size_t bytes = k->c * size_of(s->type);
    const int repeats = s->a && reads_x(s->a->pre) && k->c * k->chains > BNORM_REPEATED;
    const int joined = s->x_step == bytes &&
                       (!s->a || (s->dy_step == bytes &&
                                  (!reads_argument(s->a->pre) || s->argument_step == bytes) &&
                                  (s->a->pre != BNORM_PRE_MASK || s->bit_step == k->c)));
    return k->chains == 1 || (joined && !repeats) ? 1 : lesser(k->chains, k->count);
}
BNORM_RARE struct chain_rows chain_at(const struct sum_block *k, size_t chains, size_t j) {
    struct chain_rows r = {.s = sum_rows_from(&k->s, j, 0, k->chains, 0)};
    if (chains == 1) {
        r.rows = k->count / k->chains;
        r.tail = k->count % k->chains * k->c;
        r.len = r.rows ? k->c * k->chains : r.tail;
    } else {
        r.rows = (k->count - j + k->chains - 1) / k->chains;
        r.len = k->c;
    }
    return r;
}

/* Both sums of c channels; room for c*chains lanes and a vector more. Most have one chain of rows, or
 * rows that are joined, as in chain_at: without a copy of what has just been written, member by
 * member, which would wait for it. */
static void sum_channels(struct sum_block *k, double *a, double *b) {
    const size_t chains = chain_count(k),
                 step[] = {k->s.x_step, k->s.dy_step, k->s.argument_step, k->s.bit_step};
    if (k->count < k->chains) { /* not all chains have a row */
        zero_lanes(a, k->c * k->chains);
        zero_lanes(b, k->c * k->chains);
    }
    if (chains == 1) {
        const size_t rows = k->count / k->chains, tail = k->count % k->chains * k->c;
        take_every(&k->s, k->chains);
        add_rows(&k->s, rows, tail, rows ? k->c * k->chains : tail, a, b);
        k->s.x_step = step[0];
        k->s.dy_step = step[1];
        k->s.argument_step = step[2];
        k->s.bit_step = step[3];
    } else {
        for (size_t j = 0; j < chains; j++) {
            const struct chain_rows r = chain_at(k, chains, j);
            add_rows(&r.s, r.rows, r.tail, r.len, a + j * k->c, b + j * k->c);
        }
    }
    fold_chains(a, k->c, k->chains);
    fold_chains(b, k->c, k->chains);
}

/* ---------------------------------------------------------------------------------------------- */
/* Planes: rows of BNORM_SPAN_LANES elements. The lanes of a group are folded in float, upper half
 * onto lower half, to four, which are added up in double. */

enum { SPAN_VECTORS = BNORM_SPAN_LANES / VEC_F };

#define BNORM_PLANES (VEC_F > 8 ? VEC_F : BNORM_SPAN_LANES / 4)
/* Of up to VEC_F planes: the sums of a group, four each, and those of planes of more groups; of a
 * block of channels those of all lanes, which are folded to VEC_F at block_a and block_b. */
struct plane_sums {
    _Alignas(64) float a[VEC_F][4], b[VEC_F][4];
    double all_a[4 * BNORM_PLANES], all_b[4 * BNORM_PLANES];
    double *block_a, *block_b;
};

/* Adds four floats. */
BNORM_INLINE void add_four(double *sums, const float *fours) {
    const size_t lanes = lesser(VEC_D, 4);
    for (size_t k = 0; k < 4; k += lanes)
        store_d_lanes(sums + k,
                      vec_add_d(load_d_lanes(sums + k, lanes), widen_lanes(fours + k, lanes)),
                      lanes);
}

/* Adds the sums of a group's lanes. */
BNORM_RARE void add_lanes_of_group(const float *group, int first, struct plane_sums *to) {
    for (size_t i = 0; i < BNORM_SPAN_LANES; i += VEC_F)
        add_group(load_sums(group + 2 * i), first, to->all_a + i, to->all_b + i);
}

/* The lanes of a row folded, upper half onto lower half, to those of a vector. */
BNORM_INLINE vec_d fold_vectors(vec_d *v) {
    BNORM_UNROLL
    for (size_t half = SPAN_VECTORS / 2; half > 0; half /= 2) {
        BNORM_UNROLL
        for (size_t k = 0; k < half; k++)
            v[k] = vec_add_d(v[k], v[half + k]);
    }
    return v[0];
}

/* Of a block's doubles. */
BNORM_RARE void fold_lanes(const double *lanes, double *to) {
    for (size_t i = 0; i < VEC_F; i += VEC_D) {
        vec_d v[SPAN_VECTORS];
        BNORM_UNROLL
        for (size_t k = 0; k < SPAN_VECTORS; k++)
            v[k] = vec_load_d(lanes + k * VEC_F + i);
        vec_store_d(to + i, fold_vectors(v));
    }
}

/* Adds the sums of a group of a block of channels. */
BNORM_INLINE void add_to_block(const struct sums *u, int first, int last, struct plane_sums *to) {
    if (first && last) {
        vec_d v[SPAN_VECTORS];
#define BNORM_FOLDED(half, sum, to)                                                                \
    {                                                                                              \
        BNORM_UNROLL                                                                               \
        for (size_t k = 0; k < SPAN_VECTORS; k++)                                                  \
            v[k] = half(u[k].sum);                                                                 \
        vec_store_d(to, vec_add_d(fold_vectors(v), vec_set1_d(0))); /* no -0 */                    \
    }
        BNORM_FOLDED(vec_low, a, to->block_a)
        BNORM_FOLDED(vec_high, a, to->block_a + VEC_D)
        BNORM_FOLDED(vec_low, b, to->block_b)
        BNORM_FOLDED(vec_high, b, to->block_b + VEC_D)
#undef BNORM_FOLDED
    } else {
        float lanes[2 * BNORM_SPAN_LANES];
        BNORM_UNROLL
        for (size_t k = 0; k < SPAN_VECTORS; k++)
            add_to_group(u[k], 1, lanes + k * 2 * VEC_F);
        add_lanes_of_group(lanes, first, to);
        if (last) {
            fold_lanes(to->all_a, to->block_a);
            fold_lanes(to->all_b, to->block_b);
        }
    }
    if (last) {
        to->block_a += VEC_F;
        to->block_b += VEC_F;
    }
}

/* Planes, or blocks of channels, of `len` elements; `adds`: the sums of groups are added to those of
 * planes. */
BNORM_INLINE void sum_planes(const struct sum_form f, int small, const struct sum_rows *s,
                             size_t planes, size_t len, int adds, struct plane_sums *to) {
    const struct sum_form apart = {f.g, f.type, BNORM_ROWS};
    /* Behind all fours of rows: whole rows, and the last one, which may be whole, too. */
    const size_t over = len % BNORM_FOUR_SPAN, rows = (over - 1) / BNORM_SPAN_LANES;
    size_t last[SPAN_VECTORS];
    struct cursor plane = cursor_of(s);
    for (size_t k = 0; k < SPAN_VECTORS; k++)
        last[k] = lanes_before(over - rows * BNORM_SPAN_LANES, k * VEC_F);
    for (size_t i = 0; i < planes; i++, plane = cursor_at(apart, s, plane, 1, 0)) {
        const struct sum_parameters p =
            sum_parameters_at(f, s, f.plane == BNORM_BLOCK ? i * VEC_F : i);
        struct cursor at = plane;
        size_t left = len;
        if (len < BNORM_FOUR_SPAN && s->prefetch)
            prefetch_ahead(f, at, BNORM_AHEAD, (len * size_of(f.type) + 32) / 64 * 64);
        do {
            const size_t count = small ? len : lesser(left, BNORM_GROUP_SPAN),
                         fours = small ? 0 : count / BNORM_FOUR_SPAN;
            struct sums t[SPAN_VECTORS], u[SPAN_VECTORS];
            struct terms rest[SPAN_VECTORS];
#define BNORM_VECTORS_OF(array, value)                                                             \
    {                                                                                              \
        BNORM_UNROLL                                                                               \
        for (size_t k = 0; k < SPAN_VECTORS; k++)                                                  \
            array[k] = value;                                                                      \
    }
#define BNORM_TERMS(row) terms_at(f, s, &p, behind, row, k *VEC_F, VEC_F)
            if (small || count % BNORM_FOUR_SPAN) {
                const struct cursor behind = cursor_at(f, s, at, 4 * fours, 0);
                BNORM_VECTORS_OF(
                    rest, ((f.g > BNORM_PRE_NONE || f.plane == BNORM_BLOCK) && k > 0 && !last[k])
                              ? no_terms()
                              : terms_at(f, s, &p, behind, rows, k * VEC_F, last[k]))
                if (rows & 1)
                    BNORM_VECTORS_OF(u, sum_of_two(BNORM_TERMS(rows - 1), rest[k]))
                else
                    BNORM_VECTORS_OF(u, sum_of_one(rest[k]))
                if (rows & 2)
                    BNORM_VECTORS_OF(u, add_sums(sum_of_two(BNORM_TERMS(0), BNORM_TERMS(1)), u[k]))
            } else {
                BNORM_VECTORS_OF(u, no_sums())
            }
            if (fours) {
                BNORM_VECTORS_OF(t, no_sums())
                add_fours(f, s, &p, at, fours, SPAN_VECTORS, t);
                BNORM_VECTORS_OF(u, add_sums(t[k], u[k]))
            }
            if (f.plane == BNORM_BLOCK) {
                add_to_block(u, left == len, left == count, to);
            } else {
                BNORM_UNROLL
                for (size_t half = SPAN_VECTORS / 2; half > 0; half /= 2) {
                    BNORM_UNROLL
                    for (size_t k = 0; k < half; k++)
                        u[k] = add_sums(u[k], u[half + k]);
                }
                vec_fold_fours(to->a[i], to->b[i], u[0].a, u[0].b);
                if (adds) {
                    add_four(to->all_a + 4 * i, to->a[i]);
                    add_four(to->all_b + 4 * i, to->b[i]);
                }
            }
            at = cursor_at(f, s, at, BNORM_GROUP, 0);
            if (f.g >= BNORM_PRE_NONE)
                at.dy -= s->dy_again;
            left -= count;
        } while (!small && left);
    }
#undef BNORM_TERMS
#undef BNORM_VECTORS_OF
}

typedef void planes_form(const struct sum_rows *s, size_t planes, size_t len, int adds,
                         struct plane_sums *to);
#define BNORM_PLANES_FORM(name, g, type)                                                           \
    static void sum_planes_##name(const struct sum_rows *s, size_t planes, size_t len, int adds,   \
                                  struct plane_sums *to) {                                         \
        const struct sum_form f = {g, type, BNORM_PLANE};                                          \
        if (len < BNORM_FOUR_SPAN && (type) == BNORM_F32 && (g) <= BNORM_PRE_NONE)                 \
            sum_planes(f, 1, s, planes, len, adds, to);                                            \
        else                                                                                       \
            sum_planes(f, 0, s, planes, len, adds, to);                                            \
    }
#define BNORM_BLOCK_FORM(name, g)                                                                  \
    static void sum_blocks_##name(const struct sum_rows *s, size_t blocks, size_t len,             \
                                  struct plane_sums *to) {                                         \
        sum_planes((struct sum_form){g, BNORM_F32, BNORM_BLOCK}, 0, s, blocks, len, 0, to);        \
    }
BNORM_SUM_FORMS(BNORM_PLANES_FORM)
BNORM_BLOCK_FORM(squares, BNORM_SQUARES)
BNORM_BLOCK_FORM(dy, BNORM_PRE_NONE)
#define BNORM_PLANES_ENTRY(name, g, type) sum_planes_##name,
static planes_form *const planes_forms[] = {BNORM_SUM_FORMS(BNORM_PLANES_ENTRY)};

/* What has no form, a group after the other. */
BNORM_RARE void sum_staged_planes(const struct sum_rows *s, size_t planes, size_t len,
                                  struct plane_sums *to) {
    float x[BNORM_GROUP_SPAN], g[BNORM_GROUP_SPAN];
    for (size_t i = 0; i < planes; i++) {
        struct plane_sums one;
        memset(&one, 0, sizeof one);
        for (size_t e = 0, n; e < len; e += n) {
            struct sum_rows part = sum_rows_from(s, i, e, 1, i);
            const struct sum_rows t = staged_rows(&part, x, g, part.pivot, 0);
            if (s->dy_again)
                part.dy -= e * size_of(s->type);
            n = lesser(len - e, BNORM_GROUP_SPAN);
            load_rows(&part, 1, n, x, g);
            planes_forms[form_of(&t)](&t, 1, n, 1, &one);
        }
        memcpy(to->all_a + 4 * i, one.all_a, 4 * sizeof *one.all_a);
        memcpy(to->all_b + 4 * i, one.all_b, 4 * sizeof *one.all_b);
    }
}

/* In double, of the four sums of each of VEC_F planes. */
BNORM_INLINE void fold_fours(const float *fours, double *sums) {
    vec_f v[4];
    vec_load_fours(fours, v);
#define BNORM_FOLDED(half)                                                                         \
    vec_add_d(vec_add_d(vec_add_d(half(v[0]), half(v[2])), vec_add_d(half(v[1]), half(v[3]))),     \
              vec_set1_d(0)) /* no -0 */
    vec_store_d(sums, BNORM_FOLDED(vec_low));
    vec_store_d(sums + VEC_D, BNORM_FOLDED(vec_high));
#undef BNORM_FOLDED
}

/* Both sums of up to VEC_F planes; there is room for those of all. */
static void add_planes(const struct sum_rows *s, size_t planes, size_t len, double *a, double *b) {
    const int form = form_of(s), adds = form == BNORM_GENERAL || len > BNORM_GROUP_SPAN;
    struct plane_sums sums;
    if (adds) {
        zero_lanes(sums.all_a, 4 * planes);
        zero_lanes(sums.all_b, 4 * planes);
    }
    for (size_t i = planes; !adds && i < VEC_F; i++) {
        memset(sums.a[i], 0, sizeof sums.a[i]);
        memset(sums.b[i], 0, sizeof sums.b[i]);
    }
    if (form == BNORM_GENERAL)
        sum_staged_planes(s, planes, len, &sums);
    else
        planes_forms[form](s, planes, len, adds, &sums);
    if (!adds) {
        fold_fours(sums.a[0], a);
        fold_fours(sums.b[0], b);
        return;
    }
    for (size_t i = 0; i < planes; i++) {
        const double *const p = sums.all_a + 4 * i, *const q = sums.all_b + 4 * i;
        a[i] = (p[0] + p[2]) + (p[1] + p[3]);
        b[i] = (q[0] + q[2]) + (q[1] + q[3]);
    }
}

/* Both sums of the channels of rows, or of a plane. */
static void sum_block(struct sum_block *k, double *a, double *b) {
    if (k->s.spread)
        add_planes(&k->s, 1, k->count, a, b);
    else
        sum_channels(k, a, b);
}

/* ---------------------------------------------------------------------------------------------- */
/* In double */

/* Sums of x, or of g, in a, and of (x - center)^2, or g*(x - center), in b; either may be absent.
 * Chains are added up in order. */
BNORM_COLD void double_channels(const struct sum_block *k, const double *center, double *a,
                                double *b) {
    enum { LANES = BNORM_STAGE_LANES };
    float x[LANES], g[LANES];
    struct staged_parameters parameters;
    const size_t lanes = k->c * k->chains, chains = chain_count(k);
    if (a)
        zero_lanes(a, lanes);
    if (b)
        zero_lanes(b, lanes);
    for (size_t j = 0; j < chains; j++) {
        const struct chain_rows r = chain_at(k, chains, j);
        for (size_t row = 0; row < r.rows + (r.tail > 0); row++) {
            const size_t len = row < r.rows ? r.len : r.tail;
            for (size_t i = 0; i < len; i += LANES) {
                const size_t n = lesser(LANES, len - i), at = j * k->c + i;
                struct sum_rows here = sum_rows_from(&r.s, row, i, 1, 0);
                stage_parameters(&here, i, n, &parameters);
                load_rows(&here, 1, n, x, g);
                for (size_t q = 0; q < n; q++) {
                    const double value = (double)x[q], of_g = k->s.a ? (double)g[q] : 0;
                    const double d = b ? value - center[(at + q) % k->c] : 0;
                    if (a)
                        a[at + q] += k->s.a ? of_g : value;
                    if (b)
                        b[at + q] = bnorm_fma(k->s.a ? of_g : d, d, b[at + q]);
                }
            }
        }
    }
    if (a)
        fold_chains(a, k->c, k->chains);
    if (b)
        fold_chains(b, k->c, k->chains);
}

/* Sums in float are accurate within these limits of the second one. */
#define BNORM_LEAST_SUM 0x1p-90

/* ---------------------------------------------------------------------------------------------- */
/* Statistics */

/* Upper half of n vectors onto lower half. */
#define BNORM_FOLD(v, n)                                                                           \
    for (size_t j = 0; j < (n) / 2; j++)                                                           \
        (v)[j] = vec_add((v)[j], (v)[(n) / 2 + j]);

/* Pivots of VEC_F channels from `samples` values each, folded to at most 4: their mean, rounded to
 * a unit of about an eighth of their spread. So values of a grid have differences on it, with few
 * digits, whose sums are exact. */
BNORM_INLINE vec_f pivots_of(vec_f *v, size_t samples) {
    vec_f least = v[0], most = v[0];
    if (samples > 1) {
        least = vec_min(v[1], v[0]);
        most = vec_max(v[1], v[0]);
    }
    if (samples > 2) {
        least = vec_min(vec_min(v[3], v[2]), least);
        most = vec_max(vec_max(v[3], v[2]), most);
        BNORM_UNROLL
        BNORM_FOLD(v, 4)
    }
    if (samples > 1)
        v[0] = vec_add(v[0], v[1]);
    /* 3*2^22 units: the last digit of a sum with it is a unit. */
    const vec_f unit = vec_power_of_2(vec_sub(most, least)),
                magic = vec_mul(unit, vec_set1(0x3p17f));
    return vec_sub(vec_fma(v[0], vec_set1(1 / (float)samples), magic), magic);
}

/* n <= 4 elements. */
BNORM_INLINE four_floats load_four(const void *p, bnorm_dtype type, size_t n) {
    four_floats four;
    float lanes[VEC_F];
    vec_store(lanes, widened_lanes(p, type, n));
    memcpy(&four, lanes, sizeof four);
    return four;
}

/* The rows of a block that its pivots are taken from; returns how many. */
BNORM_INLINE size_t sampled_rows(const struct sum_rows *s, size_t count, size_t step,
                                 const char **row) {
    const size_t samples = bnorm_samples(count);
    const int shift = __builtin_ctzll(samples);
    for (size_t j = 0; j < samples; j++)
        row[j] = s->x + (j * count >> shift) * step;
    return samples;
}

/* Pivots of channels [0, c) from these rows; writes up to a vector more. */
BNORM_RARE void sample_rows(const char *const *row, bnorm_dtype type, size_t samples, size_t c,
                            float *pivot) {
    vec_f v[BNORM_SAMPLES];
    size_t i = 0;
#define BNORM_SAMPLE(j) vec_load((const float *)(const void *)row[j] + i)
    for (; type == BNORM_F32 && samples == BNORM_SAMPLES && i + VEC_F <= c; i += VEC_F) {
        BNORM_UNROLL
        for (size_t j = 0; j < BNORM_SAMPLES / 2; j++)
            v[j] = vec_add(BNORM_SAMPLE(j), BNORM_SAMPLE(BNORM_SAMPLES / 2 + j));
        BNORM_UNROLL
        BNORM_FOLD(v, BNORM_SAMPLES / 2)
        vec_store(pivot + i, pivots_of(v, BNORM_SAMPLES));
    }
#undef BNORM_SAMPLE
    for (; i < c; i += VEC_F) {
        for (size_t j = 0; j < samples; j++)
            v[j] = widened_lanes(element_at(row[j], type, i), type, lesser(VEC_F, c - i));
        for (size_t n = samples; n > 4; n /= 2)
            BNORM_FOLD(v, n)
        vec_store(pivot + i, pivots_of(v, samples));
    }
}

/* Upper half of n places onto lower half, down to one. */
BNORM_INLINE four_floats fold_places(four_floats *place, size_t n) {
    BNORM_UNROLL
    for (size_t half = BNORM_PLACES / 2; half > 0; half /= 2)
        if (n > half) {
            BNORM_UNROLL
            for (size_t q = 0; q < half; q++)
                place[q] += place[half + q];
        }
    return place[0];
}

/* The sum of a plane's places, four lanes; at[q] is the offset of a place. */
BNORM_INLINE four_floats sample_plane(const char *plane, bnorm_dtype type, size_t places,
                                      const size_t *at, size_t run) {
    four_floats place[BNORM_PLACES];
    if (type == BNORM_BF16 && run == 4) {
        for (size_t q = 0; q < places; q++)
            place[q] = vec_four_bf16((const void *)(plane + at[q]));
    } else if (type == BNORM_F16 && run == 4) {
        for (size_t q = 0; q < places; q++)
            place[q] = vec_four_f16((const void *)(plane + at[q]));
    } else {
        for (size_t q = 0; q < places; q++)
            place[q] = load_four(plane + at[q], type, run);
    }
    return fold_places(place, places);
}
/* Of floats, and a number of places that is a constant. */
BNORM_INLINE four_floats sample_floats(const char *plane, size_t places, const size_t *at) {
    four_floats place[BNORM_PLACES];
    BNORM_UNROLL
    for (size_t q = 0; q < places; q++)
        place[q] = vec_four((const void *)(plane + at[q]));
    return fold_places(place, places);
}

/* Those of planes, up to VEC_F of them: from places of four neighbours, spread over the plane. */
BNORM_INLINE void sample_planes(const struct sum_rows *s, size_t planes, size_t len, float *pivot) {
    const size_t places = bnorm_places(len), run = len < 4 ? bnorm_samples(len) : 4;
    const int shift = __builtin_ctzll(places);
    _Alignas(64) float fours[VEC_F][4];
    size_t at[BNORM_PLACES];
    vec_f v[4];
    for (size_t q = 0; q < places; q++)
        at[q] = (q * len >> shift) * size_of(s->type);
    for (size_t i = 0; i < planes; i++) {
        const char *const plane = s->x + i * s->x_step;
        const four_floats sum = s->type != BNORM_F32 || places < 4
                                    ? sample_plane(plane, s->type, places, at, run)
                                : places == 4 ? sample_floats(plane, 4, at)
                                : places == 8 ? sample_floats(plane, 8, at)
                                              : sample_floats(plane, 16, at);
        memcpy(fours[i], &sum, sizeof fours[i]);
    }
    for (size_t i = planes; i < VEC_F; i++)
        memset(fours[i], 0, sizeof fours[i]);
    vec_load_fours(fours[0], v);
    vec_store(pivot, pivots_of(v, places * run));
}

/* Pivots of backward, of n channels whose first values are x: their centers, rounded to a unit of
 * about 2^-16/invstd. */
BNORM_INLINE vec_f rounded_centers(vec_f x, const struct sum_rows *s, size_t i, size_t n) {
    const vec_f center = load_lanes(s->center + i, n), least = vec_set1(0x1p-90f),
                most = vec_set1(0x1p126f),
                inverse = vec_min(vec_max(load_lanes(s->invstd + i, n), least), most),
                unit = vec_power_of_2(vec_div(vec_set1(1), inverse)),
                magic = vec_mul(unit, vec_set1(0x3p6f)),
                rounded = vec_sub(vec_add(center, magic), magic);
    return vec_if_le(vec_set1(0), vec_minus_abs(vec_sub(x, center)), center, rounded);
}

/* Of rows of c lanes, of which `valid` have a center, the first in lane p; whole vectors are
 * written. */
BNORM_RARE void round_centers(const struct sum_rows *s, const char *x, size_t p, size_t c,
                              size_t valid, float *pivot) {
    size_t i = 0;
    for (; s->type == BNORM_F32 && i + VEC_F <= valid; i += VEC_F)
        vec_store(pivot + i,
                  rounded_centers(vec_load((const float *)(const void *)x + i), s, p + i, VEC_F));
    for (; i < c; i += VEC_F) {
        const size_t n = lanes_before(valid, i);
        const vec_f of_x = widened_lanes(element_at(x, s->type, i), s->type, n);
        vec_store(pivot + i, rounded_centers(of_x, s, p + i, n));
    }
}

BNORM_INLINE void round_plane_centers(const struct sum_rows *s, size_t planes, float *pivot) {
    memset(pivot, 0, VEC_F * sizeof *pivot);
    for (size_t i = 0; i < planes; i++) {
        const char *const x = s->x + i * s->x_step;
        float lanes[VEC_F];
        if (s->type == BNORM_F32) {
            memcpy(&pivot[i], x, sizeof *pivot);
        } else {
            vec_store(lanes, half_lanes(x, s->type, 1));
            pivot[i] = lanes[0];
        }
    }
    vec_store(pivot, rounded_centers(vec_load(pivot), s, 0, planes));
}

/* Room for the lanes of few channels, which are done again together. */
#define BNORM_AGAIN (BNORM_MAX_LANES + BNORM_PAD)

/* Not 0 where a channel has a value that is not its pivot. */
BNORM_COLD void sum_distances(const struct sum_block *k, double *b) {
    const size_t chains = chain_count(k);
    zero_lanes(b, k->c * k->chains);
    for (size_t j = 0; j < chains; j++) {
        const struct chain_rows r = chain_at(k, chains, j);
        for (size_t i = 0; i < r.len; i += VEC_F) {
            const size_t p = r.s.spread ? 0 : i;
            struct sums t = no_sums();
            for (size_t row = 0; row < r.rows + (r.tail > i); row++) {
                const size_t n = lesser(VEC_F, (row < r.rows ? r.len : r.tail) - i);
                const vec_f x = widened_lanes(element_at(r.s.x + row * r.s.x_step, r.s.type, i),
                                              r.s.type, n),
                            pivot = parameter_lanes(r.s.pivot + p, r.s.spread, 0, n);
                t.b = vec_add(t.b, vec_minus_abs(first_lanes(vec_sub(x, pivot), n)));
            }
            add_group(t, 1, b + j * k->c + i, b + j * k->c + i);
        }
    }
    fold_chains(b, k->c, k->chains);
}

static float power_of_2(float v) {
    uint32_t bits;
    memcpy(&bits, &v, sizeof bits);
    bits &= 0x7f800000;
    memcpy(&v, &bits, sizeof v);
    return v;
}

/* A pivot from the sums about another one: the mean, rounded to an eighth of the deviation where
 * these say enough of it. 0 where they say nothing. */
static float better_pivot(double n, float pivot, double a, double b) {
    const float mean = (float)bnorm_fma(a, 1 / n, (double)pivot);
    const double squares = bnorm_fma(a * (-1 / n), a, b);
    if (!(mean >= -FLT_MAX && mean <= FLT_MAX))
        return 0;
    if (!(squares > b * 0x1p-10 && b <= DBL_MAX))
        return mean;
    const float magic = power_of_2((float)sqrt(squares * (1 / n))) * 0x3p19f, sum = mean + magic;
    return sum - magic;
}

/* Lanes whose pivot is more than a deviation off the mean, or whose squares leave the range of a
 * float: one bit each. */
BNORM_INLINE unsigned inaccurate_moments(double n, vec_d a, vec_d b) {
    const vec_d half = vec_mul_d(b, vec_set1_d(0.5)),
                margin = vec_fma_d(vec_mul_d(a, vec_set1_d(-1 / n)), a, half);
    return vec_outside_d(margin, 0, DBL_MAX) | vec_outside_d(b, BNORM_LEAST_SUM, DBL_MAX);
}

/* Lanes whose second sum in float is out of range, unless all g are 0, or whose first one is. */
BNORM_INLINE unsigned inaccurate_sums(vec_d a, vec_d b) {
    const vec_d zero = vec_set1_d(0), one = vec_set1_d(1);
    unsigned bits =
        vec_outside_d(b, BNORM_LEAST_SUM, DBL_MAX) & vec_outside_d(b, -DBL_MAX, -BNORM_LEAST_SUM);
    if (bits)
        bits &= vec_outside_d(vec_if_eq_d(b, zero, vec_if_eq_d(a, zero, zero, one), one), 0, 0);
    return bits | vec_outside_d(a, -DBL_MAX, DBL_MAX);
}

/* Lanes of the first `lanes` whose sums, of n values, are no good. */
BNORM_INLINE unsigned inaccurate(int backward, double n, vec_d a, vec_d b, size_t lanes) {
    return (backward ? inaccurate_sums(a, b) : inaccurate_moments(n, a, b)) & ((1u << lanes) - 1);
}

/* What is wanted of channel i, made of its sums in double. */
BNORM_INLINE void store_again(const double *a, const double *b, size_t i, double *first,
                              double *second) {
    if (first)
        vec_store_d_n(first + i, vec_canonical_d(vec_set1_d(a[i])), 1);
    vec_store_d_n(second + i, vec_canonical_d(vec_set1_d(b[i])), 1);
}

/* Does those of the first `valid` channels again whose sums a and b about their pivots are
 * inaccurate: about another pivot, and if they still are, in double about the mean itself. Where all
 * values are the pivot, nothing is inaccurate. The sums of all lanes, in more_a and more_b, may take
 * the place of a and b. */
BNORM_COLD void moments_again(struct sum_block k, size_t valid, const double *a, const double *b,
                              double *more_a, double *more_b, double *sum, double *m2) {
    float pivot[BNORM_AGAIN];
    enum { RIGHT, ALIKE, WRONG };
    unsigned char state[BNORM_AGAIN];
    const double n = (double)k.count;
    const size_t times = k.s.spread ? 1 : k.chains;
    size_t wrong = 0;
    int alike = 0;
    memcpy(pivot, k.s.pivot, k.c * sizeof *pivot);
    repeat_lanes(pivot, k.c, times);
    k.s.pivot = pivot;
    for (size_t i = 0; i < k.c; i++) {
        state[i] = RIGHT;
        if (i >= valid || !inaccurate(0, n, vec_set1_d(a[i]), vec_set1_d(b[i]), 1))
            continue;
        state[i] = b[i] == 0 ? ALIKE : WRONG;
        if (state[i] == WRONG)
            pivot[i] = better_pivot(n, pivot[i], a[i], b[i]);
        alike |= state[i] == ALIKE;
    }
    if (alike)
        sum_distances(&k, more_b); /* perhaps in place of b, which is 0 in these channels */
    for (size_t i = 0; i < k.c; i++) {
        if (state[i] == ALIKE && more_b[i] == 0) {
            state[i] = RIGHT;
        } else if (state[i] == ALIKE) {
            state[i] = WRONG;
            pivot[i] = better_pivot(n, pivot[i], a[i], 0);
        }
        wrong += state[i] == WRONG;
    }
    if (!wrong)
        return;
    repeat_lanes(pivot, k.c, times);
    sum_block(&k, more_a, more_b);
    for (size_t i = 0; i < k.c; i++) {
        const double squares = bnorm_fma(more_a[i] * (-1 / n), more_a[i], more_b[i]);
        if (state[i] == RIGHT || !(more_b[i] >= BNORM_LEAST_SUM && more_b[i] <= DBL_MAX))
            continue;
        sum[i] = bnorm_fma(n, (double)pivot[i], more_a[i]);
        m2[i] = squares < 0 ? 0 : squares;
        state[i] = RIGHT;
        wrong--;
    }
    if (!wrong)
        return;
    double_channels(&k, NULL, more_a, NULL);
    for (size_t i = 0; i < k.c; i++)
        if (state[i] == WRONG)
            store_again(more_a, more_a, i, sum, sum);
    for (size_t i = 0; i < k.c; i++)
        more_a[i] /= n;
    double_channels(&k, more_a, NULL, more_b);
    for (size_t i = 0; i < k.c; i++)
        if (state[i] == WRONG)
            store_again(more_b, more_b, i, NULL, m2);
}

/* The same of backward: in double. A first sum that is finite stays, so that it does not depend on
 * x. */
BNORM_COLD void sums_again(const struct sum_block *k, size_t valid, const double *a,
                           const double *b, double *more_a, double *more_b, double *sum_g,
                           double *sum_gx) {
    enum { RIGHT, SECOND, BOTH };
    unsigned char state[BNORM_AGAIN];
    double center[BNORM_AGAIN] = {0};
    for (size_t i = 0; i < valid; i++) {
        state[i] = !inaccurate(1, 1, vec_set1_d(a[i]), vec_set1_d(b[i]), 1) ? RIGHT
                   : fabs(a[i]) <= DBL_MAX                                  ? SECOND
                                                                            : BOTH;
        center[i] = (double)k->s.center[i];
    }
    double_channels(k, center, more_a, more_b);
    for (size_t i = 0; i < valid; i++)
        if (state[i] != RIGHT)
            store_again(more_a, more_b, i, state[i] == BOTH ? sum_g : NULL, sum_gx);
}

/* ---------------------------------------------------------------------------------------------- */
/* From the sums about pivots to what is wanted of the first `valid` channels: sum(x) and M2, or both
 * sums about the center */

/* Those of `lanes` channels; which are inaccurate. b becomes about the center. */
BNORM_INLINE unsigned store_channels(int backward, double n, const float *pivot,
                                     const float *center, size_t lanes, const double *a, double *b,
                                     double *first, double *second) {
    const vec_d of_a = vec_load_d(a), of_pivot = vec_widen(pivot), zero = vec_set1_d(0);
    vec_d of_b = vec_load_d(b), total = of_a, result;
    if (backward) {
        const vec_d off = vec_sub_d(of_pivot, widen_lanes(center, lanes));
        result = of_b = vec_fma_d(off, of_a, of_b);
        vec_store_d(b, of_b);
    } else {
        const vec_d m2 = vec_fma_d(vec_mul_d(of_a, vec_set1_d(-1 / n)), of_a, of_b);
        total = vec_fma_d(vec_set1_d(n), of_pivot, of_a);
        result = vec_if_lt_d(m2, zero, zero, m2);
    }
    store_d_lanes(first, vec_canonical_d(total), lanes);
    store_d_lanes(second, vec_canonical_d(result), lanes);
    return inaccurate(backward, n, of_a, of_b, lanes);
}

BNORM_COLD unsigned store_channels_n(int backward, double n, const float *pivot,
                                     const float *center, size_t lanes, const double *a, double *b,
                                     double *first, double *second) {
    return store_channels(backward, n, pivot, center, lanes, a, b, first, second);
}

/* Lanes of each vector that are inaccurate, if any are. */
BNORM_INLINE unsigned store_block(const struct sum_block *k, size_t valid, const double *a,
                                  double *b, double *first, double *second, unsigned char *wrong) {
    const float *const pivot = k->s.pivot, *const center = k->s.center;
    const int backward = k->s.a != NULL;
    const double n = (double)k->count;
    unsigned any = 0;
    size_t i = 0;
#define BNORM_ARGS(lanes)                                                                          \
    backward, n, pivot + i, backward ? center + i : NULL, lanes, a + i, b + i, first + i, second + i
    for (; i + VEC_D <= valid; i += VEC_D)
        any |= wrong[i / VEC_D] = (unsigned char)store_channels(BNORM_ARGS(VEC_D));
    if (i < valid)
        any |= wrong[i / VEC_D] = (unsigned char)store_channels_n(BNORM_ARGS(valid - i));
#undef BNORM_ARGS
    return any;
}

/* Blocks whose rows follow one another go through the steps of a reduction together: so many. */
#define BNORM_MANY 8

/* Channels that are done again together, from the i-th on: a plane; else vectors of channels, or all
 * that share rows. */
BNORM_COLD struct sum_block slice_of(const struct sum_block *k, size_t i) {
    struct sum_block slice = *k;
    if (k->s.spread) {
        slice.s = sum_rows_from(&k->s, i, 0, 1, i);
        slice.s.x_step = slice.s.argument_step = size_of(k->s.type);
        slice.s.dy_step = k->s.dy_again ? 0 : size_of(k->s.type);
        slice.s.bit_step = 1;
        slice.c = 1;
        slice.chains = BNORM_SPAN_LANES;
    } else if (k->many) {
        slice.s = sum_rows_from(&k->s, i / k->c, 0, 1, i);
        slice.s.x_step = slice.s.dy_step = k->c * size_of(k->s.type);
        slice.s.valid = lesser(k->c, k->s.valid - i);
    } else if (k->chains == 1) {
        slice.s = sum_rows_from(&k->s, 0, i, 1, i);
        slice.c = slice.s.c = lesser(VEC_F, k->c - i);
        slice.s.valid = k->s.valid - i;
    }
    return slice;
}

/* There is room for all lanes and a vector more in a and b: for those of a plane behind VEC_F, for
 * those of one of many blocks behind those of all. */
static void finish_block(const struct sum_block *k, size_t valid, double *a, double *b,
                         double *first, double *second) {
    unsigned char wrong[BNORM_AGAIN / VEC_D];
    if (!store_block(k, valid, a, b, first, second, wrong))
        return;
    for (size_t i = 0, n; i < valid; i += n) {
        const struct sum_block slice = slice_of(k, i);
        const size_t more = k->s.spread ? VEC_F : k->many ? BNORM_MANY * VEC_F : i;
        unsigned any = 0;
        n = lesser(slice.c, valid - i);
        for (size_t j = i; j < i + n; j++)
            any |= wrong[j / VEC_D] & 1u << j % VEC_D;
        if (any && k->s.a)
            sums_again(&slice, n, a + i, b + i, a + more, b + more, first + i, second + i);
        else if (any)
            moments_again(slice, n, a + i, b + i, a + more, b + more, first + i, second + i);
    }
}

/* Parameters of `chains` rows of c channels, those behind the first `valid` 0; writes up to a vector
 * more. */
BNORM_INLINE const float *repeat(float *pattern, const float *p, size_t c, size_t valid,
                                 size_t chains) {
    for (size_t i = 0; i < c; i += VEC_F)
        vec_store(pattern + i, load_lanes(p + i, lanes_before(valid, i)));
    repeat_lanes(pattern, c, chains);
    return pattern;
}

/* Both sums of a block about pivots, in a and b; pivot has room for all lanes. */
static void sum_about_pivots(struct sum_block *k, size_t valid, float *pivot, double *a,
                             double *b) {
    const char *row[BNORM_SAMPLES];
    k->s.c = k->c;
    k->s.valid = valid;
    if (k->s.a)
        round_centers(&k->s, k->s.x, 0, k->c, valid, pivot);
    else
        sample_rows(row, k->s.type, sampled_rows(&k->s, k->count, k->s.x_step, row), k->c, pivot);
    repeat_lanes(pivot, k->c, k->chains);
    k->s.pivot = pivot;
    sum_block(k, a, b);
}

static void reduce_block(struct sum_block *k, size_t valid, float *pivot, double *a, double *b,
                         double *first, double *second) {
    sum_about_pivots(k, valid, pivot, a, b);
    finish_block(k, valid, a, b, first, second);
}

/* Of a vector of channels from the i-th on, whose sums are no longer there. */
BNORM_COLD void reduce_vector(const struct sum_block *k, size_t i, double *first, double *second) {
    double a[2 * VEC_F], b[2 * VEC_F];
    struct sum_block slice = slice_of(k, i);
    sum_block(&slice, a, b);
    finish_block(&slice, VEC_F, a, b, first, second);
}

/* Of at most BNORM_TILE channels, a lane each and whole vectors: sums are where the results go. */
BNORM_RARE void reduce_tile(struct sum_block *k, double *first, double *second) {
    float pivot[BNORM_TILE + BNORM_PAD];
    unsigned char wrong[BNORM_TILE / VEC_D];
    sum_about_pivots(k, k->c, pivot, first, second);
    const unsigned any = store_block(k, k->c, first, second, first, second, wrong);
    for (size_t i = 0; any && i < k->c; i += VEC_F)
        if (wrong[i / VEC_D] | wrong[i / VEC_D + 1])
            reduce_vector(k, i, first + i, second + i);
}

/* Where v is computed of several rows in one, or beside padding, in a form. */
BNORM_RARE void reduce_repeated(struct sum_block *k, size_t valid, float *pivot, double *a,
                                double *b, double *first, double *second) {
    enum { ROOM = BNORM_REPEATED + BNORM_PAD };
    float center[ROOM], scale[ROOM], shift[ROOM];
    k->s.center = repeat(center, k->s.center, k->c, valid, k->chains);
    k->s.scale = repeat(scale, k->s.scale, k->c, valid, k->chains);
    k->s.shift = repeat(shift, k->s.shift, k->c, valid, k->chains);
    reduce_block(k, valid, pivot, a, b, first, second);
}

/* Of few channels: their rows may be several in one, or have padding behind them. */
BNORM_RARE void reduce_few(struct sum_block *k, size_t valid, double *first, double *second) {
    double a[BNORM_AGAIN], b[BNORM_AGAIN];
    float pivot[BNORM_AGAIN];
    const struct sum_rows *const s = &k->s;
    const int joined = k->chains > 1 && chain_count(k) == 1;
    if ((valid < k->c || joined) && k->c * k->chains <= BNORM_REPEATED && s->a &&
        reads_x(s->a->pre) && form_of(s) != BNORM_GENERAL)
        reduce_repeated(k, valid, pivot, a, b, first, second);
    else
        reduce_block(k, valid, pivot, a, b, first, second);
}

/* Of k->c lanes in memory: padding of rows without gaps is added up too, for nothing. Changes k. */
static void reduce_rows(struct sum_block *k, size_t valid, double *first, double *second) {
    if (k->c <= BNORM_MAX_LANES) {
        reduce_few(k, valid, first, second);
        return;
    }
    const size_t most = form_of(&k->s) == BNORM_GENERAL ? BNORM_MAX_LANES : BNORM_TILE;
    for (size_t i = 0, n; i < valid; i += n) {
        n = lesser(most, valid - i);
        if (n > BNORM_MAX_LANES && n % VEC_F)
            n = (n / VEC_F - 1) * VEC_F; /* and at least a vector afterwards */
        struct sum_block tile = {sum_rows_from(&k->s, 0, i, 1, i), k->count, n, k->chains, 0};
        if (n <= BNORM_MAX_LANES)
            reduce_few(&tile, n, first + i, second + i);
        else
            reduce_tile(&tile, first + i, second + i);
    }
}

/* A vector of lanes each folded to the c lanes of their channels, which follow one another, as do
 * their pivots. */
BNORM_COLD void join_blocks(size_t c, size_t blocks, float *pivot, double *a, double *b) {
    for (size_t i = 0; i < blocks; i++) {
        fold_chains(a + i * VEC_F, c, VEC_F / c);
        fold_chains(b + i * VEC_F, c, VEC_F / c);
        for (size_t j = 0; j < c; j++) {
            a[i * c + j] = a[i * VEC_F + j];
            b[i * c + j] = b[i * VEC_F + j];
            pivot[i * c + j] = pivot[i * VEC_F + j];
        }
    }
}

/* Whether rows of all chains, without gaps, are those of a plane, with the same parameters in each of
 * their vectors, and have a form. */
BNORM_INLINE int are_vectors(const bnorm_map_args *a, int backward, size_t chains) {
    return a->lanes <= VEC_F && VEC_F % a->lanes == 0 && chains * a->lanes == BNORM_SPAN_LANES &&
           a->x.type == BNORM_F32 && (!backward || a->pre == BNORM_PRE_NONE);
}

/* Of all these blocks, of which k is the first; changes k. */
BNORM_RARE void reduce_blocks(struct sum_block *k, const bnorm_map_args *all, double *first,
                              double *second) {
    double a[BNORM_MANY * VEC_F + BNORM_SPAN_LANES + VEC_F],
        b[BNORM_MANY * VEC_F + BNORM_SPAN_LANES + VEC_F];
    float pivot[BNORM_MANY * VEC_F + BNORM_PAD];
    struct plane_sums sums;
    const size_t c = k->c, most = BNORM_MANY * c, valid = all->valid;
    const char *row[BNORM_SAMPLES];
    k->s.c = c;
    k->s.x_step = all->x.group_stride * sizeof(float);
    k->s.dy_step = k->s.a ? all->dy.group_stride * sizeof(float) : 0;
    const size_t samples = k->s.a ? 0 : sampled_rows(&k->s, k->count, c * sizeof(float), row);
    for (size_t i = 0, blocks; i < valid; i += most) {
        const size_t channels = lesser(most, valid - i);
        blocks = (channels + c - 1) / c;
        for (size_t j = 0; j < blocks; j++) {
            const char *const x = k->s.x + j * k->s.x_step;
            const size_t own_channels = lesser(c, channels - j * c);
            float *const own = pivot + j * VEC_F;
            if (k->s.a && own_channels == VEC_F)
                vec_store(own, rounded_centers(vec_load((const float *)(const void *)x), &k->s,
                                               j * VEC_F, VEC_F));
            else if (k->s.a)
                round_centers(&k->s, x, j * c, c, own_channels, own);
            else
                sample_rows(row, BNORM_F32, samples, c, own);
            for (size_t q = 0; q < samples; q++)
                row[q] += k->s.x_step;
            if (c < VEC_F)
                repeat_lanes(own, c, VEC_F / c);
        }
        k->s.pivot = pivot;
        k->s.valid = channels;
        sums.block_a = a;
        sums.block_b = b;
        if (k->s.a)
            sum_blocks_dy(&k->s, blocks, k->count * c, &sums);
        else
            sum_blocks_squares(&k->s, blocks, k->count * c, &sums);
        if (c < VEC_F)
            join_blocks(c, blocks, pivot, a, b);
        finish_block(k, channels, a, b, first + i, second + i);
        k->s.pivot = NULL;
        move_rows(&k->s, blocks, 0, channels);
    }
}

/* Of planes from the first of k on, each of k->count elements; changes k, as a copy of what has just
 * been written, member by member, is slow to make in larger pieces. */
static void reduce_span(struct sum_block *k, size_t planes, double *first, double *second) {
    for (size_t i = 0; i < planes; i += VEC_F, move_rows(&k->s, VEC_F, 0, VEC_F)) {
        double a[VEC_F + BNORM_SPAN_LANES + VEC_F], b[VEC_F + BNORM_SPAN_LANES + VEC_F];
        float pivot[VEC_F];
        zero_lanes(a, 2 * VEC_F);
        zero_lanes(b, 2 * VEC_F);
        k->c = lesser(VEC_F, planes - i);
        if (k->s.a)
            round_plane_centers(&k->s, k->c, pivot);
        else
            sample_planes(&k->s, k->c, k->count, pivot);
        k->s.pivot = pivot;
        add_planes(&k->s, k->c, k->count, a, b);
        finish_block(k, k->c, a, b, first + i, second + i);
        k->s.pivot = NULL;
    }
}

/* ---------------------------------------------------------------------------------------------- */
/* The kernels */

/* Rows of a group, or all planes; of backward what it reads besides x, too. */
BNORM_INLINE struct sum_rows sum_rows_of(const bnorm_map_args *a, int planes, int backward,
                                         size_t group) {
    const size_t size = size_of(a->x.type), channel = group * a->lanes;
    /* Backward's two tensors come as fast by themselves where runs are long, or rows a few lines, and rows
     * of several tiles jump. */
    const int gains = !backward ? 1
                      : planes  ? a->lanes < BNORM_GROUP_SPAN && a->lanes % BNORM_FOUR_SPAN
                                : a->lanes > 64 && a->lanes <= BNORM_TILE;
    const unsigned prefetches = gains ? BNORM_PREFETCH_SUMS : BNORM_PREFETCH_IN;
#define BNORM_STEP(t)   (size * (planes ? a->t.group_stride : a->t.row_stride))
#define BNORM_OF(value) (backward ? (value) : 0)
#define BNORM_BEGIN(t)  ((const char *)a->t.data + group * a->t.group_stride * size)
    struct sum_rows s; /* member by member, as compilers clear whole structs first */
    s.a = BNORM_OF(a);
    s.type = a->x.type;
    s.spread = planes;
    s.prefetch = (a->hints & prefetches) != 0;
    s.x = BNORM_BEGIN(x);
    s.dy = BNORM_OF(BNORM_BEGIN(dy));
    s.argument = backward && reads_argument(a->pre) ? BNORM_BEGIN(argument) : NULL;
    s.x_step = BNORM_STEP(x);
    s.dy_step = BNORM_OF(BNORM_STEP(dy));
    s.argument_step = BNORM_OF(BNORM_STEP(argument));
    s.bit = BNORM_OF(a->mask.at + group * a->mask.group_stride);
    s.bit_step = BNORM_OF(planes ? a->mask.group_stride : a->mask.row_stride);
    s.dy_again = BNORM_OF(planes && a->dy.same_lanes ? size * BNORM_GROUP * BNORM_SPAN_LANES : 0);
    s.pivot = NULL;
    s.center = BNORM_OF(a->center + channel);
    s.scale = backward && reads_x(a->pre) ? a->scale + channel : NULL;
    s.shift = backward && reads_x(a->pre) ? a->shift + channel : NULL;
    s.invstd = BNORM_OF(a->invstd + channel);
    s.c = s.valid = 0;
#undef BNORM_OF
#undef BNORM_BEGIN
#undef BNORM_STEP
    return s;
}

BNORM_INLINE void reduce_groups(const bnorm_map_args *a, int backward, size_t chains, double *first,
                                double *second) {
    const int gaps = a->x.row_stride != a->lanes || (backward && a->dy.row_stride != a->lanes) ||
                     (backward && reads_argument(a->pre) && a->argument.row_stride != a->lanes);
    struct sum_block k;
    k.many = !gaps && are_vectors(a, backward, chains);
    for (size_t group = 0, i = 0; i < a->valid; group++, i += a->lanes) {
        const size_t valid = lesser(a->lanes, a->valid - i);
        k.s = sum_rows_of(a, 0, backward, group);
        k.count = a->rows;
        k.c = gaps ? valid : a->lanes;
        k.chains = chains;
        if (k.many) {
            reduce_blocks(&k, a, first, second);
            break;
        }
        reduce_rows(&k, valid, first + i, second + i);
    }
    vec_zeroupper();
}

BNORM_INLINE void reduce_planes(const bnorm_map_args *a, int backward, double *first,
                                double *second) {
    struct sum_block k;
    k.s = sum_rows_of(a, 1, backward, 0);
    k.count = a->lanes;
    k.chains = 1;
    k.many = 0;
    reduce_span(&k, a->groups, first, second);
    vec_zeroupper();
}

static void moments_rows(const bnorm_map_args *a, size_t chains, double *sum, double *m2) {
    reduce_groups(a, 0, chains, sum, m2);
}

static void moments_span(const bnorm_map_args *a, double *sum, double *m2) {
    reduce_planes(a, 0, sum, m2);
}

static void sums_rows(const bnorm_map_args *a, size_t chains, double *sum_g, double *sum_gx) {
    reduce_groups(a, 1, chains, sum_g, sum_gx);
}

static void sums_span(const bnorm_map_args *a, double *sum_g, double *sum_gx) {
    reduce_planes(a, 1, sum_g, sum_gx);
}
