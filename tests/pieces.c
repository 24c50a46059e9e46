/* SPDX-License-Identifier: MIT */
#include "pieces.h"

#include <stdio.h>
#include <string.h>

#include "types.h"

/* ---------------------------------------------------------------------------------------------- */
/* Cuts                                                                                           */

static struct cut cut_room(struct test *t, size_t parts) {
    return (struct cut){0, test_alloc(t, (parts + 1) * sizeof(size_t))};
}

static void cut_at(struct cut *cut, size_t image) {
    cut->at[++cut->parts] = image;
}

struct cut cut_new(struct test *t, enum cut_kind kind, size_t n) {
    struct cut cut = cut_room(t, 2 * n + 3);
    const size_t chance = 1 + rng_below(&t->rng, n > 8 ? n / 4 : 2);
    if (kind == CUT_EMPTY)
        cut_at(&cut, 0);
    for (size_t i = 1; i < n; i++) {
        if (kind == CUT_HALVES
                ? i == n / 2
                : kind == CUT_IMAGES || (kind >= CUT_RANDOM && rng_below(&t->rng, chance) == 0))
            cut_at(&cut, i);
        if (kind == CUT_EMPTY && cut.at[cut.parts] == i && rng_below(&t->rng, 2))
            cut_at(&cut, i);
    }
    cut_at(&cut, n);
    if (kind == CUT_EMPTY)
        cut_at(&cut, n);
    return cut;
}

struct cut cut_by_bits(struct test *t, size_t n, size_t bits) {
    struct cut cut = cut_room(t, n);
    for (size_t i = 1; i < n; i++)
        if (bits >> (i - 1) & 1)
            cut_at(&cut, i);
    cut_at(&cut, n);
    return cut;
}

const char *cut_text(const struct cut *cut, char text[96]) {
    size_t length = 0;
    text[0] = 0;
    for (size_t i = 0; i < cut->parts; i++) {
        if (length > 60) {
            snprintf(text + length, 96 - length, "+... (%zu parts)", cut->parts);
            break;
        }
        length += (size_t)snprintf(text + length, 96 - length, "%s%zu", i ? "+" : "",
                                   cut->at[i + 1] - cut->at[i]);
    }
    return text;
}

const char *joining_text(enum joining joining) {
    static const char *const texts[JOIN_COUNT] = {"appended", "merged from the left",
                                                  "merged from the right", "merged in any order",
                                                  "appended and merged"};
    return texts[joining];
}

/* ---------------------------------------------------------------------------------------------- */
/* Pieces                                                                                         */

/* Of images [first, last], those in the subtree of all images whose upper bits are those of `at`:
 * how many subtrees they consist of. */
static size_t count_below(size_t first, size_t last, size_t at, size_t size) {
    const size_t end = at + (size - 1);
    if (last < at || end < first)
        return 0;
    if (first <= at && end <= last)
        return 1;
    return count_below(first, last, at, size / 2) +
           count_below(first, last, at + size / 2, size / 2);
}

size_t subtree_count(size_t first, size_t n) {
    const size_t half = SIZE_MAX / 2 + 1; /* of all numbers */
    if (n == 0)
        return 0;
    return count_below(first, first + (n - 1), 0, half) +
           count_below(first, first + (n - 1), half, half);
}

size_t used_bytes(const bnorm_partial *piece) {
    return subtree_count(piece->first, piece->n) * 2 * piece->c * sizeof(double);
}

bnorm_partial piece_empty(bnorm_op op, size_t c, size_t first) {
    return (bnorm_partial){.op = op, .c = c, .first = first};
}

void placed_new(struct test *t, struct placed *p, const bnorm_partial *from, size_t bytes) {
    const size_t used = used_bytes(from);
    if (bytes < used)
        test_fail(t, "%zu bytes for a piece of %zu: bnorm_partial_size() is too small", bytes,
                  used);
    buffer_new(&p->nodes, bytes, (enum side)rng_below(&t->rng, 2),
               rng_below(&t->rng, 9) * sizeof(double));
    if (used)
        memcpy(p->nodes.data, from->nodes, used);
    p->from = from;
    p->piece = *from;
    p->piece.nodes = (double *)(void *)p->nodes.data;
    p->piece.size = bytes;
}

/* Canaries from byte `from` on. */
static void check_untouched(struct test *t, const struct placed *p, size_t from) {
    const uint32_t canary = CANARY_BITS;
    buffer_check(t, &p->nodes, "the nodes");
    for (size_t i = from; i < p->nodes.bytes; i += sizeof canary)
        if (memcmp(p->nodes.data + i, &canary, sizeof canary) != 0)
            test_fail(t, "byte %zu of the nodes was written; only %zu of %zu are used", i, from,
                      p->nodes.bytes);
}

static void check_members(struct test *t, const struct placed *p) {
    const bnorm_partial *got = &p->piece, *want = p->from;
    if (got->op != want->op || got->c != want->c || got->first != want->first ||
        (void *)got->nodes != p->nodes.data || got->size != p->nodes.bytes)
        test_fail(t, "op, c, first, nodes or size of the piece has changed");
}

void placed_unchanged(struct test *t, struct placed *p) {
    const size_t used = used_bytes(p->from);
    check_members(t, p);
    check_untouched(t, p, used);
    if (p->piece.n != p->from->n || p->piece.hw != p->from->hw)
        test_fail(t, "n or hw of a piece that is only read has changed");
    if (used && memcmp(p->piece.nodes, p->from->nodes, used) != 0)
        test_fail(t, "nodes of a piece that is only read have changed");
    buffer_free(&p->nodes);
}

bnorm_partial placed_grown(struct test *t, struct placed *p, size_t more, size_t hw) {
    bnorm_partial on_the_way = *p->from, sent = p->piece;
    const size_t n = p->from->n + more;
    size_t most = 0; /* from nothing, no subtree that is not kept */
    for (size_t i = p->from->n ? p->from->n : n; i <= n; i++) {
        on_the_way.n = i;
        const size_t bytes = used_bytes(&on_the_way);
        most = bytes > most ? bytes : most;
    }
    check_members(t, p);
    check_untouched(t, p, most);
    if (sent.n != n || sent.hw != (more ? hw : p->from->hw))
        test_fail(t, "the piece has %zu images of %zu, expected %zu of %zu", sent.n, sent.hw, n,
                  more ? hw : p->from->hw);
    const size_t used = used_bytes(&sent);
    if (bnorm_partial_used(&sent) != used)
        test_fail(t, "bnorm_partial_used() is %zu, expected %zu", bnorm_partial_used(&sent), used);
    sent.size = used;
    sent.nodes = used ? test_alloc(t, used) : NULL;
    if (used)
        memcpy(sent.nodes, p->nodes.data, used);
    buffer_free(&p->nodes);
    return sent;
}

bnorm_partial piece_merged(struct test *t, const bnorm_partial *left, const bnorm_partial *right) {
    struct placed to, from;
    placed_new(t, &to, left, bnorm_partial_size(left->c, left->n + right->n));
    placed_new(t, &from, right, used_bytes(right));
    check_status(t, "bnorm_partial_merge", bnorm_partial_merge(&to.piece, &from.piece), BNORM_OK);
    placed_unchanged(t, &from);
    return placed_grown(t, &to, right->n, right->hw);
}

struct totals piece_totals(struct test *t, const bnorm_partial *piece) {
    const size_t bytes = piece->c * sizeof(double);
    struct totals totals = {0, test_doubles(t, piece->c), test_doubles(t, piece->c)};
    struct placed from;
    struct buffer mean, m2;
    placed_new(t, &from, piece, used_bytes(piece));
    buffer_new(&mean, bytes, from.nodes.side, 0);
    buffer_new(&m2, bytes, from.nodes.side, 0);
    check_status(t, "bnorm_partial_total",
                 bnorm_partial_total(&from.piece, &totals.count, (double *)(void *)mean.data,
                                     (double *)(void *)m2.data),
                 BNORM_OK);
    buffer_check(t, &mean, "mean");
    buffer_check(t, &m2, "m2");
    memcpy(totals.mean, mean.data, bytes);
    memcpy(totals.m2, m2.data, bytes);
    buffer_free(&mean);
    buffer_free(&m2);
    placed_unchanged(t, &from);
    return totals;
}

void check_same_piece(struct test *t, const bnorm_partial *got, const bnorm_partial *want) {
    if (got->op != want->op || got->c != want->c || got->first != want->first || got->n != want->n)
        test_fail(t, "op, c, first or n of two pieces differ");
    const size_t count = used_bytes(want) / sizeof(double);
    for (size_t i = 0; i < count; i++)
        if (memcmp(&got->nodes[i], &want->nodes[i], sizeof(double)) != 0)
            test_fail(t, "double %zu of %zu of the nodes is %a, expected %a", i, count,
                      got->nodes[i], want->nodes[i]);
}

/* ---------------------------------------------------------------------------------------------- */
/* Calls in pieces                                                                                */

/* Elements from image 0 to image i. */
static size_t image_offset(const bnorm_shape *shape, size_t run_stride, size_t image_stride,
                           size_t i) {
    const size_t run = run_stride ? run_stride : shape_len(shape);
    return i * (image_stride ? image_stride : run * shape_runs(shape)) * dtype_size(shape->dtype);
}

/* From image i on; an absent tensor stays absent, and no images need none. */
static bnorm_in in_from(const bnorm_shape *whole, bnorm_in in, size_t i, size_t n) {
    if (!in.data || !n)
        return (bnorm_in){0};
    in.data = (const char *)in.data + image_offset(whole, in.run_stride, in.image_stride, i);
    return in;
}

static bnorm_out out_from(const bnorm_shape *whole, bnorm_out out, size_t i, size_t n) {
    if (!out.data || !n)
        return (bnorm_out){0};
    out.data = (char *)out.data + image_offset(whole, out.run_stride, out.image_stride, i);
    return out;
}

static void copy_bit(unsigned char *to, size_t i, const unsigned char *from, size_t k) {
    const unsigned bit = from[k / 8] >> k % 8 & 1;
    to[i / 8] = (unsigned char)((to[i / 8] & ~(1u << i % 8)) | bit << i % 8);
}

/* Some images of a call. A mask has its bits at other places there. */
struct part {
    bnorm_shape shape;
    bnorm_in x, dy;
    bnorm_out out;
    bnorm_grad grad;
    struct buffer mask;
    size_t bits, first_bit;
};

static void part_new(struct part *p, const struct ready *r, size_t begin, size_t end) {
    const bnorm_shape *whole = &r->call.shape;
    const size_t n = end - begin, image = shape_runs(whole) * shape_len(whole);
    p->shape = *whole;
    p->shape.n = n;
    p->x = in_from(whole, r->args.job.x, begin, n);
    p->dy = in_from(whole, r->args.job.dy, begin, n);
    p->out = out_from(whole, r->args.job.out, begin, n);
    p->grad = r->args.grad;
    p->grad.residual = in_from(whole, r->args.grad.residual, begin, n);
    p->grad.y = in_from(whole, r->args.grad.y, begin, n);
    p->grad.dresidual = out_from(whole, r->args.grad.dresidual, begin, n);
    p->bits = n * image;
    p->first_bit = begin * image;
    p->mask.slot = NULL;
    if (r->args.grad.mask || r->at.mask)
        buffer_new(&p->mask, (p->bits + 7) / 8, r->fixture.side, 0);
    if (r->args.grad.mask) {
        const unsigned char *mask = r->args.grad.mask;
        for (size_t i = 0; i < p->bits; i++)
            copy_bit(p->mask.data, i, mask, p->first_bit + i);
        p->grad.mask = p->mask.data;
    }
}

/* `mask`, where it is not NULL, gets the bits that have been written. */
static void part_free(struct test *t, struct part *p, unsigned char *mask) {
    if (!p->mask.slot)
        return;
    buffer_check(t, &p->mask, "the mask");
    for (size_t i = 0; mask && i < p->bits; i++)
        copy_bit(mask, p->first_bit + i, p->mask.data, i);
    if (mask && p->bits % 8 && p->mask.data[p->bits / 8] >> p->bits % 8)
        test_fail(t, "a bit behind the last of the mask is set");
    buffer_free(&p->mask);
}

/* Asking for the sets takes long on virtual machines. */
static const bnorm_isa *random_isa(struct rng *r) {
    static const bnorm_isa *sets[8];
    static size_t count;
    if (!count)
        while (count < COUNT_OF(sets) && (sets[count] = bnorm_isa_at(count)) != NULL)
            count++;
    return sets[rng_below(r, count)];
}

static bnorm_exec exec_of(struct test *t, const bnorm_exec *exec) {
    bnorm_exec chosen = *exec;
    if (!chosen.isa)
        chosen.isa = random_isa(&t->rng);
    return chosen;
}

static bnorm_partial collect_part(struct test *t, const struct ready *r, const bnorm_partial *to,
                                  size_t begin, size_t end, const bnorm_exec *exec) {
    const bnorm_exec chosen = exec_of(t, exec);
    struct part p;
    struct placed piece;
    struct buffer ws;
    part_new(&p, r, begin, end);
    placed_new(t, &piece, to, bnorm_partial_size(to->c, to->n + p.shape.n));
    const size_t ws_size = bnorm_workspace(to->op, &p.shape);
    buffer_new(&ws, ws_size, r->fixture.side, rng_below(&t->rng, 64));
    const bnorm_status status =
        to->op == BNORM_OP_MOMENTS
            ? bnorm_partial_collect(&p.shape, p.x, &piece.piece, ws.data, ws_size, &chosen)
            : bnorm_partial_collect_grad(&p.shape, p.x, p.dy, &p.grad, &piece.piece, ws.data,
                                         ws_size, &chosen);
    check_status(t, "collecting", status, BNORM_OK);
    buffer_check(t, &ws, "the workspace");
    buffer_free(&ws);
    part_free(t, &p, NULL);
    return placed_grown(t, &piece, p.shape.n, p.shape.hw);
}

bnorm_partial collect_parts(struct test *t, const struct ready *r, bnorm_op op,
                            const struct cut *cut, enum joining joining, size_t first,
                            const bnorm_exec *exec) {
    bnorm_partial *pieces = test_alloc(t, cut->parts * sizeof *pieces);
    size_t count = 0;
    for (size_t i = 0; i < cut->parts; i++) {
        const size_t begin = cut->at[i], end = cut->at[i + 1];
        if (!count || !(joining == JOIN_APPEND || (joining == JOIN_MIXED && rng_below(&t->rng, 2))))
            pieces[count++] = piece_empty(op, r->call.shape.c, first + begin);
        pieces[count - 1] = collect_part(t, r, &pieces[count - 1], begin, end, exec);
    }
    for (; count > 1; count--) {
        const size_t i = joining == JOIN_LEFT    ? 0
                         : joining == JOIN_RIGHT ? count - 2
                                                 : rng_below(&t->rng, count - 1);
        pieces[i] = piece_merged(t, &pieces[i], &pieces[i + 1]);
        memmove(&pieces[i + 1], &pieces[i + 2], (count - 2 - i) * sizeof *pieces);
    }
    return pieces[0];
}

/* Of an array that was all canaries: each element is written, or with wanted = 0 none. */
static void check_written(struct test *t, const char *what, const float *x, size_t count,
                          int wanted) {
    for (size_t i = 0; x && i < count; i++)
        if ((float_bits(x[i]) != CANARY_BITS) != wanted)
            test_fail(t, "%s[%zu] was %s", what, i, wanted ? "not written" : "written too early");
}

static void forward_in_pieces(struct test *t, struct ready *r, const struct cut *cut,
                              enum joining joining, const bnorm_exec *exec) {
    const size_t c = r->call.shape.c;
    const bnorm_partial piece = collect_parts(t, r, BNORM_OP_MOMENTS, cut, joining, 0, exec);
    float *coefficients = fixture_output(&r->fixture, "coefficients", NULL, 3 * c);
    struct placed placed;
    placed_new(t, &placed, &piece, piece.size);
    check_status(t, "bnorm_partial_finish",
                 bnorm_partial_finish(&placed.piece, &r->args.train, coefficients), BNORM_OK);
    check_written(t, "the coefficients", coefficients, 3 * c, 1);
    placed_unchanged(t, &placed);
    for (size_t i = 0; i < cut->parts; i++) {
        const bnorm_exec chosen = exec_of(t, exec);
        struct part p;
        part_new(&p, r, cut->at[i], cut->at[i + 1]);
        const bnorm_affine affine = {
            .center = coefficients,
            .scale = coefficients + c,
            .shift = coefficients + 2 * c,
            .residual = in_from(&r->call.shape, r->args.train.residual, cut->at[i], p.shape.n),
            .act = r->args.train.act,
            .mask = p.mask.slot ? p.mask.data : NULL,
        };
        check_status(t, "bnorm_apply", bnorm_apply(&p.shape, p.x, p.out, &affine, &chosen),
                     BNORM_OK);
        part_free(t, &p, r->at.mask);
    }
    unsigned char *mask = r->at.mask;
    for (size_t i = shape_count(&r->call.shape); mask && i < 8 * bnorm_mask_size(&r->call.shape);
         i++)
        mask[i / 8] &= (unsigned char)~(1u << i % 8);
}

static void backward_in_pieces(struct test *t, struct ready *r, const struct cut *cut,
                               enum joining joining, const bnorm_exec *exec) {
    const size_t c = r->call.shape.c;
    const bnorm_partial piece = collect_parts(t, r, BNORM_OP_BACKWARD, cut, joining, 0, exec);
    const int applied = r->args.job.out.data || r->args.grad.dresidual.data;
    float *coefficients = applied ? fixture_output(&r->fixture, "coefficients", NULL, 5 * c) : NULL;
    check_written(t, "dgamma", r->at.dgamma, c, 0);
    check_written(t, "dbeta", r->at.dbeta, c, 0);
    struct placed placed;
    placed_new(t, &placed, &piece, piece.size);
    check_status(t, "bnorm_partial_finish_grad",
                 bnorm_partial_finish_grad(&placed.piece, &r->args.grad, coefficients), BNORM_OK);
    check_written(t, "the coefficients", coefficients, applied ? 5 * c : 0, 1);
    placed_unchanged(t, &placed);
    for (size_t i = 0; applied && i < cut->parts; i++) {
        const bnorm_exec chosen = exec_of(t, exec);
        struct part p;
        part_new(&p, r, cut->at[i], cut->at[i + 1]);
        check_status(
            t, "bnorm_partial_apply_grad",
            bnorm_partial_apply_grad(&p.shape, p.x, p.dy, p.out, &p.grad, coefficients, &chosen),
            BNORM_OK);
        part_free(t, &p, NULL);
    }
}

void run_in_pieces(struct test *t, struct ready *r, const struct cut *cut, enum joining joining,
                   const bnorm_exec *exec) {
    if (r->args.job.op == BNORM_OP_BACKWARD)
        backward_in_pieces(t, r, cut, joining, exec);
    else
        forward_in_pieces(t, r, cut, joining, exec);
}

/* ---------------------------------------------------------------------------------------------- */
/* A training step                                                                                */

/* Ways to recover the argument of the activation, of those that there are. */
static void choose_recovery(struct test *t, struct step *s) {
    struct call *b = &s->backward;
    b->given_y = NULL;
    b->given_mask = NULL;
    b->residual = (int)rng_below(&t->rng, 2);
    if (y_tells_argument(b->act) && rng_below(&t->rng, 3) == 0) {
        b->given_y = s->want_y.y;
        b->residual = 0;
    } else if (s->forward.mask && rng_below(&t->rng, 2)) {
        b->given_mask = s->want_y.mask;
        b->residual = 0;
    }
}

void step_solve(struct test *t, struct step *s) {
    const bnorm_exec exec = {.isa = scalar_isa()};
    s->want_y = run_call(t, &s->forward, &s->forward_data, &exec);
    s->backward_data = s->forward_data;
    choose_recovery(t, s);
    if (!s->backward.frozen && s->want_y.mean) {
        data_take(&s->backward_data, &s->want_y);
        if (!s->want_y.lo)
            s->backward_data.lo = s->forward_data.lo;
    }
    s->want_dx = run_call(t, &s->backward, &s->backward_data, &exec);
}

void step_new(struct test *t, struct step *s, const bnorm_shape *shape, enum values values) {
    static const double rates[] = {.1, 1, 0, -.5, .003, 2}, epsilons[] = {1e-5, 1e-3, 0, 1e-9};
    struct data *d = &s->forward_data;
    struct rng *rng = &t->rng;
    memset(s, 0, sizeof *s);
    data_new(t, d, shape);
    if (values != VALUES_NORMAL)
        data_fill(t, d, values, shape->dtype);
    if (rng_below(rng, 4) == 0)
        d->running_mean = d->running_var = NULL;
    s->forward = random_call(t, BNORM_OP_FORWARD_TRAIN, shape);
    if (rng_below(rng, 2))
        s->forward.act = random_mask_act(rng);
    s->forward.mask = act_has_mask(s->forward.act) && rng_below(rng, 2);
    s->forward.eps = epsilons[rng_below(rng, COUNT_OF(epsilons))];
    s->forward.rate = rates[rng_below(rng, COUNT_OF(rates))];
    s->forward.variance = (bnorm_variance)rng_below(rng, 2);
    /* Of one value, backward relies on the mean being that value. */
    if (rng_below(rng, 4) == 0 && d->n * d->hw != 1) {
        s->forward.omit = OMIT_MEAN | OMIT_INVSTD;
        s->forward.lo = 0;
    }
    s->backward = random_call(t, BNORM_OP_BACKWARD, shape);
    s->backward.act = s->forward.act;
    if (rng_below(rng, 8) == 0)
        s->backward.out = NOWHERE;
    if (rng_below(rng, 4) == 0)
        s->backward.dresidual = NOWHERE;
    s->backward.omit = (rng_below(rng, 4) ? 0 : OMIT_DGAMMA) | (rng_below(rng, 4) ? 0 : OMIT_DBETA);
    step_solve(t, s);
}

static void check_pieces(struct test *t, const struct call *call, const struct data *data,
                         const struct results *want, const struct cut *cut, enum joining joining,
                         const bnorm_exec *exec) {
    struct ready r;
    char text[320], parts[96];
    ready_new(t, &r, call, data);
    test_context(t, "%s, %s: %s", cut_text(cut, parts), joining_text(joining),
                 call_text(call, text));
    run_in_pieces(t, &r, cut, joining, exec);
    const struct results got = ready_finish(t, &r);
    check_results(t, &got, want, data);
}

void step_check(struct test *t, const struct step *s, const struct cut *cut, enum joining joining,
                const bnorm_exec *exec) {
    check_pieces(t, &s->forward, &s->forward_data, &s->want_y, cut, joining, exec);
    check_pieces(t, &s->backward, &s->backward_data, &s->want_dx, cut, joining, exec);
}
