/* SPDX-License-Identifier: MIT */
#include "check.h"

#include <math.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "../clock.h"
#include "../reference.h"

/* bnorm: a float has 2^-24, a few roundings per element. Others sum in float, some of them one
 * after the other: 0.1 % of the variance over 3 million elements. */
static const double bnorm_tolerance = 1e-6, peer_tolerance = 1e-3, plain_tolerance = 1e-2;

/* Up to here the reference in double costs less than the timing. */
enum { REFERENCE_ELEMENTS = 200000 };

static size_t elements_of(const peers_line *line) {
    return line->problem.n * line->problem.c * line->problem.hw;
}

static int run_fresh(const peers_line *line, const bench_memory *memory, const contender *of,
                     void *state, double *seconds) {
    bench_result_reset(&line->problem, &line->result);
    if (line->in_place)
        memcpy(line->result.tensor, memory->x, elements_of(line) * sizeof(float));
    const double start = bench_seconds(BENCH_WALL);
    const int failed = of->run(state);
    *seconds = bench_seconds(BENCH_WALL) - start;
    if (failed)
        return 0;
    if (of->collect)
        of->collect(state, line);
    return 1;
}

/* The reference knows the plain layouts alone. */
static int agrees_with_reference(const peers_line *line, const bench_memory *memory,
                                 const bench_result *result) {
    const size_t elements = elements_of(line), blocks = line->problem.form.c_block;
    const bench_problem *p = &line->problem;
    const bench_tensor tensor = {
        .layout = p->layout, .n = p->n, .c = p->c, .hw = p->hw, .c_block = blocks};
    bench_problem problem = *p;
    bench_result plain = *result;
    float *const dense = blocks ? malloc(3 * elements * sizeof *dense) : NULL;
    problem.x = memory->x; /* in place it was overwritten */
    if (blocks && !dense) {
        fprintf(stderr, "\nbnorm-peers: out of memory while checking.\n");
        return 0;
    }
    if (blocks) {
        bench_unpack(&tensor, BNORM_F32, problem.x, dense);
        bench_unpack(&tensor, BNORM_F32, problem.dy, dense + elements);
        bench_unpack(&tensor, BNORM_F32, result->tensor, dense + 2 * elements);
        problem.x = dense;
        problem.dy = dense + elements;
        plain.tensor = dense + 2 * elements;
    }
    const int good = reference_check(&problem, &plain, bnorm_tolerance, "bnorm");
    free(dense);
    return good;
}

enum peers_verdict peers_check_bnorm(const peers_line *line, const bench_memory *memory,
                                     void *state, double *seconds) {
    const bench_problem *p = &line->problem;
    const bench_result *from = &line->result, *to = &memory->expected;
    if (!run_fresh(line, memory, &peers_bnorm, state, seconds))
        return PEERS_BNORM_WRONG;
    if (elements_of(line) <= REFERENCE_ELEMENTS && !agrees_with_reference(line, memory, from))
        return PEERS_BNORM_WRONG;
    memcpy(to->tensor, from->tensor, elements_of(line) * sizeof(float));
    memcpy(to->mean, from->mean, p->c * sizeof(float));
    memcpy(to->invstd, from->invstd, p->c * sizeof(float));
    memcpy(to->running_mean, from->running_mean, p->c * sizeof(float));
    memcpy(to->running_var, from->running_var, p->c * sizeof(float));
    memcpy(to->dgamma, from->dgamma, p->c * sizeof(float));
    memcpy(to->dbeta, from->dbeta, p->c * sizeof(float));
    return PEERS_SAME;
}

/* The bits of a float without its sign have its order, and a NaN is above all numbers: it does not
 * get lost. */
static double largest_difference(const float *a, const float *b, size_t count) {
    uint32_t largest = 0;
    for (size_t i = 0; i < count; i++) {
        const float difference = fabsf(a[i] - b[i]);
        uint32_t bits;
        memcpy(&bits, &difference, sizeof bits);
        largest = bits > largest ? bits : largest;
    }
    float result;
    memcpy(&result, &largest, sizeof result);
    return (double)result;
}

/* Sizes of terms: |x| < 2, |dy| and |beta| < 1, |gamma| and invstd < 1.6; see bench/workload.c. */
static int agrees_with_bnorm(const peers_line *line, const bench_memory *memory, double tolerance,
                             const char *who, const char *name) {
    const bench_problem *p = &line->problem;
    const bench_result *r = &line->result, *e = &memory->expected;
    const int training = line->training, backward = p->op == BENCH_BACKWARD;
    const double count = (double)(p->n * p->hw);
    const struct {
        const char *name;
        int written;
        const float *got, *want;
        size_t count;
        double size;
    } arrays[] = {
        {backward ? "dx" : "y", 1, r->tensor, e->tensor, elements_of(line), 6},
        {"mean", training, r->mean, e->mean, p->c, 2},
        {"invstd", training, r->invstd, e->invstd, p->c, 1},
        {"running_mean", training, r->running_mean, e->running_mean, p->c, 1},
        {"running_var", training, r->running_var, e->running_var, p->c, 1},
        {"dgamma", backward, r->dgamma, e->dgamma, p->c, 2 * count},
        {"dbeta", backward, r->dbeta, e->dbeta, p->c, count},
    };
    for (size_t i = 0; i < sizeof arrays / sizeof arrays[0]; i++) {
        if (!arrays[i].written)
            continue;
        const double off = largest_difference(arrays[i].got, arrays[i].want, arrays[i].count);
        if (off <= tolerance * arrays[i].size)
            continue;
        fprintf(stderr,
                "\nbnorm-peers: %s: %s of %s differs from bnorm's by %.3g (allowed %.3g).\n", name,
                arrays[i].name, who, off, tolerance * arrays[i].size);
        return 0;
    }
    return 1;
}

enum peers_verdict peers_check(const peers_line *line, const bench_memory *memory,
                               const contender *of, void *state, const char *name,
                               double *seconds) {
    if (!run_fresh(line, memory, of, state, seconds)) {
        fprintf(stderr, "\nbnorm-peers: %s: %s failed.\n", name, of->name);
        return PEERS_DIFFERENT;
    }
    if (of == &peers_roof)
        return PEERS_SAME;
    const double tolerance = of == &peers_bnorm_avx2 ? 0
                             : of == &peers_plain    ? plain_tolerance
                                                     : peer_tolerance;
    if (agrees_with_bnorm(line, memory, tolerance, of->name, name))
        return PEERS_SAME;
    if (of == &peers_bnorm_avx2 || !agrees_with_reference(line, memory, &memory->expected))
        return PEERS_BNORM_WRONG;
    return PEERS_DIFFERENT;
}
