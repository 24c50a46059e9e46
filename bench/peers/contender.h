/* SPDX-License-Identifier: MIT
 *
 * What is compared: one interface for bnorm, its peers, plain C and the roof. */
#ifndef BNORM_PEERS_CONTENDER_H
#define BNORM_PEERS_CONTENDER_H

#include <stddef.h>

#include "../workload.h"

#ifdef __cplusplus
extern "C" {
#endif

/* What to run, from which buffers and into which. In place: x is result.tensor. */
typedef struct peers_line {
    bench_problem problem;
    bench_result result;
    int in_place;
    int relu, training;   /* as bench_ops says */
    size_t height, width; /* of hw */
    size_t threads;
} peers_line;

typedef struct contender {
    const char *name;
    /* Which threads work in run(): those are woken before the clock starts. */
    enum peers_runtime { PEERS_OWN_POOL, PEERS_OPENMP } runtime;
    /* Everything that a user would do once: NULL where the contender has nothing for this line.
     * Contenders with several ways (fused or one after the other, ordinary or streaming stores) are
     * asked for variants 0, 1, ... up to the first count; the fastest one is timed. */
    size_t (*variants)(const peers_line *line);
    /* Lines of the same kind, size and setting share the choice; NULL = each line chooses. */
    size_t (*kind)(const peers_line *line);
    void *(*create)(const peers_line *line, size_t variant);
    /* What is timed; not 0 = failed. */
    int (*run)(void *state);
    /* Makes line.result hold what run() computed, where it does not yet. NULL = it always does. */
    void (*collect)(void *state, const peers_line *line);
    /* The tensor that run() wrote, where that is not line.result.tensor. */
    const float *(*output)(void *state);
    void (*destroy)(void *state);
} contender;

extern const contender peers_bnorm, peers_bnorm_avx2, peers_onnxruntime, peers_plain, peers_roof;
/* NULL where its library was not named at build time or cannot be loaded. */
const char *peers_onnxruntime_version(void);
#ifdef HAVE_TORCH
extern const contender peers_torch;
const char *peers_torch_version(void);
void peers_torch_set_threads(size_t threads);
#endif

#ifdef __cplusplus
}
#endif

#endif
