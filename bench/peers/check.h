/* SPDX-License-Identifier: MIT
 *
 * Do all contenders compute the same? */
#ifndef BNORM_PEERS_CHECK_H
#define BNORM_PEERS_CHECK_H

#include "contender.h"

enum peers_verdict { PEERS_SAME, PEERS_DIFFERENT, PEERS_BNORM_WRONG };

/* Runs bnorm, compares it with the formulas in double (small tensors; large ones only once a peer
 * differs) and keeps its results in memory->expected. *seconds is the time of the run, here and
 * below. */
enum peers_verdict peers_check_bnorm(const peers_line *line, const bench_memory *memory,
                                     void *state, double *seconds);

/* Runs another contender and compares it with what bnorm computed: to the bit for kernel sets of
 * bnorm, else within a tolerance relative to the magnitude of the terms that are added up. */
enum peers_verdict peers_check(const peers_line *line, const bench_memory *memory,
                               const contender *of, void *state, const char *name, double *seconds);

#endif
