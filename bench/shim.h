/* SPDX-License-Identifier: MIT
 *
 * A small C interface over Google Benchmark, so that the benchmarks themselves are C. */
#ifndef BNORM_BENCH_SHIM_H
#define BNORM_BENCH_SHIM_H

#include <stddef.h>

#ifdef __cplusplus
extern "C" {
#endif

/* One run of one benchmark: a number of iterations between two readings of the clock. */
typedef struct shim_state shim_state;

typedef void (*shim_function)(shim_state *state, void *arg);

/* Takes Google Benchmark's own flags out of argv; help prints the program's part of --help. */
void shim_initialize(int *argc, char **argv, void (*help)(void));
/* Not 0 where arguments are left over; says which. */
int shim_unrecognized(int argc, char **argv);
/* The value of --benchmark_filter. */
const char *shim_filter(void);
/* A line of the "context" of the JSON output. */
void shim_context(const char *key, const char *value);
/* repetitions 0 = as the flags say. */
void shim_register(const char *name, shim_function function, void *arg, int repetitions);
/* Runs what the filter selects; quiet: without Google Benchmark's own display (--benchmark_out is
 * written all the same). Returns the number of benchmarks selected. */
size_t shim_run(int quiet);

/* Inside a benchmark: while (shim_keep_running(state)) work(); */
int shim_keep_running(shim_state *state);
size_t shim_iterations(const shim_state *state);
void shim_counter(shim_state *state, const char *name, double value);
void shim_label(shim_state *state, const char *label);
void shim_error(shim_state *state, const char *message);

#ifdef __cplusplus
}
#endif

#endif
