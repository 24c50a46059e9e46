/* SPDX-License-Identifier: MIT */
#include "measure.h"

#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/resource.h>

#include "../clock.h"
#include "check.h"
#include "onednn.h"
#include "threads.h"

#if defined(__x86_64__)
#include <immintrin.h>
#endif

const char *const peers_names[PEERS_CONTENDERS] = {
    [PEERS_BNORM] = "bnorm",   [PEERS_BNORM_AVX2] = "bnorm avx2",    [PEERS_ONEDNN] = "oneDNN",
    [PEERS_TORCH] = "PyTorch", [PEERS_ONNXRUNTIME] = "ONNX Runtime", [PEERS_PLAIN] = "plain C",
    [PEERS_ROOF] = "roof",
};

/* NULL = this program was built without it. */
static const contender *contender_at(size_t who) {
    switch (who) {
    case PEERS_BNORM:
        return &peers_bnorm;
    case PEERS_BNORM_AVX2:
        return &peers_bnorm_avx2;
    case PEERS_ONEDNN:
        return peers_onednn() ? &peers_onednn()->contender : NULL;
#ifdef HAVE_TORCH
    case PEERS_TORCH:
        return &peers_torch;
#endif
    case PEERS_ONNXRUNTIME:
        return peers_onnxruntime_version() ? &peers_onnxruntime : NULL;
    case PEERS_PLAIN:
        return &peers_plain;
    case PEERS_ROOF:
        return &peers_roof;
    default:
        return NULL;
    }
}

/* A sample of warm calls takes at least this long. Calls before the clock starts leave caches as
 * the contender's own calls do, not as another one's: two, as a last-level cache may take in only
 * what is used again. The longest calls work beyond all caches. */
static const double sample_seconds = 40e-6, longest_warm_up = 20e-3;
/* Such calls are estimated by their second run alone. */
static const double long_call = 2e-3;
/* Lines with such rounds have one round less. */
static const double long_round = 0.1;

enum { MIN_ROUNDS = 3, MAX_VARIANTS = 64, WARM_UPS = 2, PROBE_ROUNDS = 3, TRIES = 4 };

/* A contender that takes part. */
typedef struct entry {
    const contender *of;
    void *state;
    size_t variant;
    double estimate; /* of a call */
    int minor;       /* far behind bnorm, or plain C, which is no peer */
    double values[BENCH_MEDIAN_OF];
    size_t count;
    double disturbed; /* the least of the samples that other programs disturbed */
} entry;

typedef struct session {
    const peers_line *line;
    const bench_memory *memory;
    const peers_plan *plan;
    peers_times *times;
} session;

/* ---------------------------------------------------------------------------------------------- */
/* Cold caches */

#if defined(__x86_64__)
static void evict(const void *data, size_t bytes) {
    for (size_t i = 0; i < bytes; i += 64)
        _mm_clflush((const char *)data + i);
    _mm_mfence();
}
#else
/* Another buffer takes the place. */
static void evict(const void *data, size_t bytes) {
    enum { SWEEP = 64 << 20 };
    static volatile char *sweep;
    (void)data;
    (void)bytes;
    if (!sweep)
        sweep = malloc(SWEEP);
    for (size_t i = 0; sweep && i < SWEEP; i += 64)
        sweep[i] = (char)i;
}
#endif

static void evict_all(const session *s, const entry *e) {
    const bench_problem *p = &s->line->problem;
    const size_t bytes = p->n * p->c * p->hw * sizeof(float);
    const float *own = e->of->output ? e->of->output(e->state) : NULL;
    evict(p->x, bytes);
#if defined(__x86_64__) /* elsewhere once is enough */
    evict(p->dy, bytes);
    evict(s->line->result.tensor, bytes);
    if (own)
        evict(own, bytes);
#else
    (void)own;
#endif
}

/* ---------------------------------------------------------------------------------------------- */
/* Samples */

/* How often this program lost a core to another one. */
static long preemptions(void) {
    struct rusage usage;
    return getrusage(RUSAGE_SELF, &usage) == 0 ? usage.ru_nivcsw : 0;
}

static double sample_once(const session *s, const entry *e, enum bench_clock clock) {
    const int cold = s->plan->cache == PEERS_COLD;
    size_t calls = 1;
    if (cold)
        evict_all(s, e);
    else if (e->estimate < sample_seconds)
        calls = (size_t)(sample_seconds / (e->estimate + 1e-9)) + 1;
    peers_threads_wake(e->of);
    if (!cold && e->estimate < longest_warm_up)
        for (int i = 0; i < WARM_UPS - e->minor; i++)
            e->of->run(e->state);
    const double start = bench_seconds(clock);
    for (size_t i = 0; i < calls; i++)
        e->of->run(e->state);
    const double seconds = (bench_seconds(clock) - start) / (double)calls;
    peers_threads_settle(e->of);
    return seconds;
}

/* Adds the seconds per call. With one thread other programs' time does not count, but for single
 * cold calls: that clock is slow to read. It counts what other threads of this program do, too:
 * oneDNN 3.2 takes as many as fit its blocks to the caches, seven for NHWC 32x20x28x28, however few
 * it is allowed. By the wall clock a sample that another program disturbed is taken again while
 * there is time, and counts only where there is no better one. */
static void sample(const session *s, entry *e) {
    const int cold = s->plan->cache == PEERS_COLD;
    const enum bench_clock clock = s->line->threads == 1 && !cold ? BENCH_PROCESS : BENCH_WALL;
    const double start = bench_seconds(BENCH_WALL);
    s->times->samples++;
    for (int i = 0; i < TRIES; i++) {
        const long before = preemptions();
        const double seconds = sample_once(s, e, clock);
        if (clock == BENCH_PROCESS || preemptions() == before) {
            e->values[e->count++] = seconds;
            return;
        }
        if (e->disturbed <= 0 || seconds < e->disturbed)
            e->disturbed = seconds;
        if (bench_seconds(BENCH_WALL) - start > s->plan->budget)
            break;
    }
    s->times->disturbed++;
}

/* What a call takes about: less than the first one, which may have had to wake threads, fill caches
 * and ask the system for memory. */
static void estimate(entry *e) {
    for (int i = 0; i < 2 && (i == 0 || e->estimate < long_call); i++) {
        peers_threads_wake(e->of);
        const double start = bench_seconds(BENCH_WALL);
        e->of->run(e->state);
        const double seconds = bench_seconds(BENCH_WALL) - start;
        e->estimate = seconds < e->estimate ? seconds : e->estimate;
    }
    peers_threads_settle(e->of);
}

/* ---------------------------------------------------------------------------------------------- */
/* The fastest variant of each contender */

static void drop(entry *e) {
    if (e->state)
        e->of->destroy(e->state);
    e->state = NULL;
}

static double median(const entry *e) {
    return e->count ? bench_median(e->values, e->count) : e->disturbed;
}

static double least(const entry *e) {
    double seconds = e->count ? e->values[0] : e->disturbed;
    for (size_t i = 1; i < e->count; i++)
        seconds = e->values[i] < seconds ? e->values[i] : seconds;
    return seconds;
}

/* Leaves the fastest one of the candidates in the first place and destroys the others. After each
 * round those clearly behind are out. */
static void choose(const session *s, entry *candidates, size_t count) {
    static const double limits[PROBE_ROUNDS] = {1.5, 1.2, 1};
    for (int round = 0; round < PROBE_ROUNDS && count > 1; round++) {
        for (size_t i = 0; i < count; i++)
            sample(s, &candidates[i]);
        double best = least(&candidates[0]);
        for (size_t i = 1; i < count; i++)
            best = least(&candidates[i]) < best ? least(&candidates[i]) : best;
        size_t left = 0;
        for (size_t i = 0; i < count; i++) {
            if (least(&candidates[i]) <= limits[round] * best)
                candidates[left++] = candidates[i];
            else
                drop(&candidates[i]);
        }
        count = left;
    }
    for (size_t i = 1; i < count; i++)
        drop(&candidates[i]);
    candidates[0].count = 0;
    candidates[0].disturbed = 0;
}

/* The choices that later lines share. */
static struct choice {
    const contender *of;
    size_t kind, elements, threads;
    enum peers_cache cache;
    size_t variant;
} choices[4096];
static size_t choice_count;

static struct choice make_choice(const session *s, const contender *of) {
    const bench_problem *p = &s->line->problem;
    return (struct choice){.of = of,
                           .kind = of->kind(s->line),
                           .elements = p->n * p->c * p->hw,
                           .threads = s->line->threads,
                           .cache = s->plan->cache};
}

/* NULL = not chosen yet. */
static const size_t *find_choice(const session *s, const contender *of) {
    if (!of->kind)
        return NULL;
    const struct choice wanted = make_choice(s, of);
    for (size_t i = 0; i < choice_count; i++) {
        const struct choice *c = &choices[i];
        if (c->of == of && c->kind == wanted.kind && c->elements == wanted.elements &&
            c->threads == wanted.threads && c->cache == wanted.cache)
            return &c->variant;
    }
    return NULL;
}

static void keep_choice(const session *s, const entry *chosen) {
    if (chosen->of->kind && choice_count < sizeof choices / sizeof choices[0]) {
        choices[choice_count] = make_choice(s, chosen->of);
        choices[choice_count++].variant = chosen->variant;
    }
}

/* Checks and keeps every variant that works; the fastest one goes to *chosen. */
static enum peers_verdict prepare(const session *s, const contender *of, const char *name,
                                  entry *chosen) {
    entry candidates[MAX_VARIANTS];
    size_t count = 0;
    enum peers_verdict verdict = PEERS_SAME;
    const size_t *known = find_choice(s, of);
    const size_t variants = of->variants(s->line);
    for (size_t v = 0; v < variants && count < MAX_VARIANTS; v++) {
        entry *e = &candidates[count];
        if (known && *known != v)
            continue;
        *e = (entry){.of = of, .state = of->create(s->line, v), .variant = v};
        if (!e->state)
            continue;
        const enum peers_verdict found =
            of == &peers_bnorm ? peers_check_bnorm(s->line, s->memory, e->state, &e->estimate)
                               : peers_check(s->line, s->memory, of, e->state, name, &e->estimate);
        if (found == PEERS_SAME) {
            estimate(e);
            count++;
        } else {
            drop(e);
            verdict = found > verdict ? found : verdict;
        }
    }
    if (count) {
        choose(s, candidates, count);
        *chosen = candidates[0];
        if (!known)
            keep_choice(s, chosen);
    }
    return verdict;
}

/* ---------------------------------------------------------------------------------------------- */

/* In turn, so that whatever the machine does meets them all. One that is far behind sits out once
 * the time is over. */
static void race(const session *s, entry *entries) {
    const peers_plan *plan = s->plan;
    double round_seconds = 0;
    for (size_t i = 0; i < PEERS_CONTENDERS; i++) {
        entry *e = &entries[i];
        const int peer = i == PEERS_ONEDNN || i == PEERS_TORCH || i == PEERS_ONNXRUNTIME;
        e->minor = i == PEERS_PLAIN || (peer && e->estimate > 3 * entries[PEERS_BNORM].estimate);
        round_seconds += e->estimate;
    }
    const size_t rounds = round_seconds > long_round ? MIN_ROUNDS - 1 : MIN_ROUNDS;
    const size_t at_least = plan->repetitions ? plan->repetitions : rounds;
    const size_t at_most = plan->repetitions ? plan->repetitions : BENCH_MEDIAN_OF - 1;
    const double start = bench_seconds(BENCH_WALL);
    for (size_t round = 0; round < at_most; round++) {
        const int over = bench_seconds(BENCH_WALL) - start > plan->budget;
        if (over && round >= at_least)
            break;
        for (size_t i = 0; i < PEERS_CONTENDERS; i++) {
            entry *e = &entries[i];
            if (e->state && !(over && round > 0 && e->minor && !plan->repetitions))
                sample(s, e);
        }
    }
}

int peers_measure(const peers_line *line, const bench_memory *memory, const peers_plan *plan,
                  const char *name, peers_times *times) {
    const session s = {line, memory, plan, times};
    entry entries[PEERS_CONTENDERS] = {0};
    enum peers_verdict verdict = PEERS_SAME;
    *times = (peers_times){0};
    for (size_t i = 0; i < PEERS_CONTENDERS && verdict != PEERS_BNORM_WRONG; i++) {
        const contender *of = contender_at(i);
        const enum peers_verdict found = of ? prepare(&s, of, name, &entries[i]) : PEERS_SAME;
        verdict = found > verdict ? found : verdict;
    }
    if (verdict == PEERS_BNORM_WRONG)
        fprintf(stderr, "\nbnorm-peers: %s: bnorm is wrong. Run `make test`.\n", name);
    else
        race(&s, entries);
    for (size_t i = 0; i < PEERS_CONTENDERS; i++) {
        times->seconds[i] = plan->least ? least(&entries[i]) : median(&entries[i]);
        drop(&entries[i]);
    }
    return verdict != PEERS_BNORM_WRONG;
}
