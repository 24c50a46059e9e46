/* SPDX-License-Identifier: MIT
 *
 * Types, layouts and fusions, each against what it should be compared with: a pair is timed side by
 * side in one run, and what counts is the ratio of the two times. */
#ifndef BNORM_BENCH_PAIRS_H
#define BNORM_BENCH_PAIRS_H

#include <stddef.h>

#include "clock.h"
#include "jobs.h"
#include "pool.h"
#include "roof.h"
#include "shapes.h"
#include "shim.h"
#include "workload.h"

/* One table of the report each. */
enum bench_group {
    BENCH_TYPES,     /* elements of 16 and 8 bits over floats */
    BENCH_BLOCKED,   /* blocks of channels over NCHW */
    BENCH_PLACES,    /* slices and padded planes over dense tensors */
    BENCH_EPILOGUES, /* what costs no more than its bytes over the op without it */
    BENCH_SMOOTH,    /* SLEEF's activations likewise */
    BENCH_JOBS,      /* bnorm_run_jobs over one call each */
    BENCH_GROUPS
};

/* What the time is divided by. */
enum bench_rival {
    BENCH_OVER_NOTHING = 0,
    BENCH_OVER_F32,   /* the same with floats */
    BENCH_OVER_PLAIN, /* the same with plain, dense tensors */
    BENCH_OVER_BARE,  /* the same without activation, residual and mask */
    BENCH_OVER_BYTES, /* that, and the bytes that came with them at the roof's rate */
    BENCH_OVER_SLEEF, /* the activation alone, see sleef.h */
    BENCH_OVER_CALLS, /* one call per job */
    BENCH_OVER_COPY,  /* the fastest copy of the same runs, one by one */
    BENCH_RIVALS
};

extern const char *const bench_rival_names[BENCH_RIVALS]; /* counters in the JSON: "over_f32" */

enum { BENCH_MAX_RIVALS = 2 };

typedef struct bench_entry {
    enum bench_group group;
    enum bench_op op;
    bench_form form;
    unsigned layouts;         /* 1 << BNORM_NHWC | 1 << BNORM_NCHW */
    size_t fewer;             /* channels less than the shape has: none of its blocks is full */
    enum bench_job_list jobs; /* of BENCH_JOBS */
    enum bench_rival rivals[BENCH_MAX_RIVALS]; /* BARE before BYTES */
    enum { BENCH_WHEN_FULL, BENCH_WHEN_QUICK, BENCH_WHEN_QUICK_ALL_SETS } when;
} bench_entry;

/* The columns of a table: where a tensor of floats of the shape lies; for jobs the threads. */
enum bench_column {
    BENCH_CACHE,   /* up to 1 MiB: in the L2 cache */
    BENCH_BETWEEN, /* in the last level of caches, or not */
    BENCH_MEMORY,  /* 64 MiB and more */
    BENCH_COLUMNS,
    BENCH_1_THREAD = 0,
    BENCH_2_THREADS
};

/* One entry with one layout, shape and kernel set. */
typedef struct bench_pair {
    const bench_entry *entry;
    bnorm_layout layout;
    enum bench_column column;
    const bench_shape *shape; /* NULL for jobs */
    size_t n, c, hw;
    bench_jobs *jobs;
    const bnorm_isa *isa;
    enum { BENCH_PAIR_UNCHECKED, BENCH_PAIR_RIGHT, BENCH_PAIR_WRONG } state;
    bench_samples samples; /* figures: one per rival */
} bench_pair;

/* What all pairs need to run. */
typedef struct bench_lab {
    bench_memory *memory;
    bench_roof *roof;
    const bnorm_exec *exec;
    size_t threads; /* of exec */
    bnorm_exec two_threads;
} bench_lab;

/* All that can be measured; sets *unsupported where this build or CPU has no SLEEF. Free with
 * free(). NULL without memory. */
bench_entry *bench_entries_create(size_t *count, int *unsupported);

/* The pair's shape is set, the rest is not. */
bench_pair bench_pair_make(const bench_entry *entry, bnorm_layout layout, const bench_shape *shape,
                           const bnorm_isa *isa);
/* 0 where the form mostly moves what lies between the elements, as blocks of 16 with C = 3 do. */
int bench_pair_is_sensible(const bench_pair *pair);
/* Adds what the pair needs to the sizes for bench_memory_add_forms(). */
void bench_pair_sizes(const bench_pair *pair, size_t elements[BENCH_DTYPES], size_t *ws_size);

/* op/layout/dtype/set/network/shape */
void bench_pair_name(const bench_pair *pair, char *name, size_t size);
/* The parts of a line of a table: "inference_relu", "bf16", "nChw8c" or "". */
void bench_entry_names(const bench_entry *entry, char *op, size_t op_size, char *dtype,
                       size_t dtype_size, char *layout, size_t layout_size);

/* 0 where a result is wrong: nothing is timed. */
int bench_pair_measure(bench_pair *pair, const bench_lab *lab, shim_state *state);

#endif
