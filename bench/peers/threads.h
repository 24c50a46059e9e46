/* SPDX-License-Identifier: MIT
 *
 * The threads of bnorm (pthreadpool) and of the peers (OpenMP), of which only one side may be busy
 * at a time. */
#ifndef BNORM_PEERS_THREADS_H
#define BNORM_PEERS_THREADS_H

#include <stddef.h>

#include "contender.h"

/* To call first: OpenMP reads at load time how long its threads spin, so that this may start the
 * program again. */
void peers_threads_prepare(char **argv);
/* From now on everything runs on this many threads; 0 where they cannot be had. */
int peers_threads_set(size_t threads);
/* The bnorm_exec for it. */
const bnorm_exec *peers_threads_exec(void);
/* Before a sample: the contender's own threads are awake and spin. After it: all threads sleep. */
void peers_threads_wake(const contender *of);
void peers_threads_settle(const contender *of);

#endif
