/* SPDX-License-Identifier: MIT
 *
 * One line of the comparison: checks all contenders, then times them in turn. */
#ifndef BNORM_PEERS_MEASURE_H
#define BNORM_PEERS_MEASURE_H

#include "contender.h"

enum peers_who {
    PEERS_BNORM,
    PEERS_BNORM_AVX2,
    PEERS_ONEDNN,
    PEERS_TORCH,
    PEERS_ONNXRUNTIME,
    PEERS_PLAIN,
    PEERS_ROOF,
    PEERS_CONTENDERS
};

extern const char *const peers_names[PEERS_CONTENDERS];

enum peers_cache { PEERS_WARM, PEERS_COLD };

typedef struct peers_plan {
    enum peers_cache cache;
    double budget;      /* seconds per line, if the least number of rounds fits */
    size_t repetitions; /* rounds; 0 = as many as fit, at least 3 */
    int least;          /* the shortest sample stands for a line instead of the median */
} peers_plan;

/* Seconds per call; 0 = not measured. */
typedef struct peers_times {
    double seconds[PEERS_CONTENDERS];
    size_t samples, disturbed; /* by other programs, which took a core meanwhile */
} peers_times;

/* 0 where bnorm is wrong, after a message that calls the line "name". A peer that fails or differs
 * is reported and has no time. */
int peers_measure(const peers_line *line, const bench_memory *memory, const peers_plan *plan,
                  const char *name, peers_times *times);

#endif
