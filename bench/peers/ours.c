/* SPDX-License-Identifier: MIT
 *
 * bnorm itself, with the best kernel set and with AVX2; plain C; the roof. */
#include "contender.h"

#include <stdlib.h>
#include <unistd.h>

#include "../plain.h"
#include "../roof.h"
#include "threads.h"

/* State of them all. */
typedef struct ours_state {
    const peers_line *line;
    const bnorm_isa *isa;
    const roof_method *method;
    int shared; /* the roof: by all threads */
} ours_state;

static size_t one_variant(const peers_line *line) {
    (void)line;
    return 1;
}

static ours_state *new_state(const peers_line *line) {
    ours_state *s = calloc(1, sizeof *s);
    if (s)
        s->line = line;
    return s;
}

/* ---------------------------------------------------------------------------------------------- */

static void *create_bnorm(const peers_line *line, size_t variant) {
    (void)variant;
    ours_state *s = new_state(line);
    if (s)
        s->isa = bnorm_isa_best();
    return s;
}

static void *create_avx2(const peers_line *line, size_t variant) {
    (void)variant;
    const bnorm_isa *isa = bnorm_isa_find("avx2");
    ours_state *s = isa && isa != bnorm_isa_best() ? new_state(line) : NULL;
    if (s)
        s->isa = isa;
    return s;
}

static int run_bnorm(void *state) {
    const ours_state *s = state;
    return bench_run(&s->line->problem, s->isa, peers_threads_exec(), &s->line->result) != BNORM_OK;
}

const contender peers_bnorm = {.name = "bnorm",
                               .variants = one_variant,
                               .create = create_bnorm,
                               .run = run_bnorm,
                               .destroy = free};
const contender peers_bnorm_avx2 = {.name = "bnorm avx2",
                                    .variants = one_variant,
                                    .create = create_avx2,
                                    .run = run_bnorm,
                                    .destroy = free};

/* ---------------------------------------------------------------------------------------------- */

/* Plain C has one thread and no blocks of channels, and its "restrict" does not allow it to work in
 * place. */
static void *create_plain(const peers_line *line, size_t variant) {
    const int blocked = line->problem.form.c_block != 0;
    (void)variant;
    return line->threads == 1 && !line->in_place && !blocked ? new_state(line) : NULL;
}

static int run_plain(void *state) {
    const ours_state *s = state;
    plain_run(&s->line->problem, &s->line->result);
    return 0;
}

const contender peers_plain = {.name = "plain C",
                               .variants = one_variant,
                               .create = create_plain,
                               .run = run_plain,
                               .destroy = free};

/* ---------------------------------------------------------------------------------------------- */

/* Floats per piece of the second of two passes, which goes backwards from what the first one left
 * in the cache; also what threads share at least, in whole pages. */
enum { PIECE = 32768, PART = 1024 };

/* Each method, by one thread and, where there are several, by all of them. */
static size_t roof_variants(const peers_line *line) {
    size_t count = 0;
    while (roof_method_at(count))
        count++;
    return line->threads > 1 ? 2 * count : count;
}

static void *create_roof(const peers_line *line, size_t variant) {
    size_t count = 0;
    while (roof_method_at(count))
        count++;
    const roof_method *method = roof_method_at(variant % count);
    const int triad = bench_ops[line->problem.op].tensors == 3;
    /* memcpy, the first, is not for memory that overlaps. */
    if (method->triad != triad || !method->usable() || (line->in_place && variant % count == 0))
        return NULL;
    ours_state *s = new_state(line);
    if (s) {
        s->method = method;
        s->shared = variant >= count;
    }
    return s;
}

static size_t l2_bytes(void) {
#ifdef _SC_LEVEL2_CACHE_SIZE
    const long size = sysconf(_SC_LEVEL2_CACHE_SIZE);
    if (size > 0)
        return (size_t)size;
#endif
    return 1 << 20;
}

/* Must the inputs be read twice? Always in NHWC reductions, where the statistics need the whole
 * tensor first; in NCHW training only if not even one channel, or block of them, stays in the L2
 * cache. */
static int two_passes(const peers_line *line) {
    const bench_problem *p = &line->problem;
    if (p->layout == BNORM_NHWC)
        return line->training || p->op == BENCH_BACKWARD;
    const size_t together = p->form.c_block ? p->form.c_block : 1;
    return line->training && p->n * p->hw * together * sizeof(float) > l2_bytes();
}

/* What decides which method is the fastest. */
static size_t roof_kind(const peers_line *line) {
    return bench_ops[line->problem.op].tensors * 4 + (size_t)two_passes(line) * 2 +
           (size_t)line->in_place;
}

static void move(const ours_state *s, size_t first, size_t end) {
    const bench_problem *p = &s->line->problem;
    float *out = s->line->result.tensor;
    if (!two_passes(s->line)) {
        s->method->run(out + first, p->x + first, p->dy + first, end - first);
        return;
    }
    s->method->read(out + first, p->x + first, s->method->triad ? p->dy + first : NULL,
                    end - first);
    while (end > first) {
        const size_t rest = (end - first) % PIECE, piece = rest ? rest : PIECE;
        end -= piece;
        s->method->run(out + end, p->x + end, p->dy + end, piece);
    }
}

static void move_part(void *arg, size_t i) {
    const ours_state *s = arg;
    const bench_problem *p = &s->line->problem;
    const size_t elements = p->n * p->c * p->hw;
    const size_t part = (elements / s->line->threads / PART + 1) * PART;
    const size_t first = i * part;
    if (first < elements)
        move(s, first, elements - first < part ? elements : first + part);
}

static int run_roof(void *state) {
    ours_state *s = state;
    const bench_problem *p = &s->line->problem;
    const bnorm_exec *exec = peers_threads_exec();
    if (s->shared)
        exec->parallel(exec->pool, move_part, s, s->line->threads);
    else
        move(s, 0, p->n * p->c * p->hw);
    return 0;
}

const contender peers_roof = {.name = "roof",
                              .variants = roof_variants,
                              .kind = roof_kind,
                              .create = create_roof,
                              .run = run_roof,
                              .destroy = free};
