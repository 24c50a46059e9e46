/* SPDX-License-Identifier: MIT
 *
 * What is measured: an operation, a type, layout or fusion, each against what it should be compared
 * with. A rival is timed side by side in one run, and what counts is the ratio of the two times. */
#ifndef BNORM_BENCH_ROWS_H
#define BNORM_BENCH_ROWS_H

#include <stddef.h>

#include "clock.h"
#include "jobs.h"
#include "pool.h"
#include "roof.h"
#include "shapes.h"
#include "shim.h"
#include "workload.h"

/* One table of the report each, the first one beside the screen. */
enum bench_group {
    BENCH_TYPES,     /* floats, and elements of 16 and 8 bits over floats */
    BENCH_BLOCKED,   /* blocks of channels over NCHW */
    BENCH_PLACES,    /* slices and padded planes over dense tensors */
    BENCH_EPILOGUES, /* what costs no more than its bytes over the op without it */
    BENCH_SMOOTH,    /* SLEEF's activations likewise */
    BENCH_JOBS,      /* bnorm_run_jobs over one call each */
    BENCH_GROUPS
};

/* What the time is divided by: counters in the JSON, as "over_f32". */
enum bench_rival {
    BENCH_OVER_NOTHING = 0,
    BENCH_OVER_ROOF,  /* the fastest copy of the same bytes */
    BENCH_OVER_F32,   /* the same with floats */
    BENCH_OVER_PLAIN, /* the same with plain, dense tensors */
    BENCH_OVER_BARE,  /* the same without activation, residual and mask */
    BENCH_OVER_BYTES, /* that, and the bytes that came with them at the roof's rate */
    BENCH_OVER_SLEEF, /* the activation alone, see sleef.h */
    BENCH_OVER_CALLS, /* one call per job */
    BENCH_OVER_COPY,  /* the fastest copy of the same runs, one by one */
    BENCH_RIVALS
};

enum { BENCH_MAX_RIVALS = 2 };

typedef struct bench_entry {
    enum bench_group group;
    enum bench_op op;
    bench_form form;
    unsigned layouts;         /* 1 << BNORM_NHWC | 1 << BNORM_NCHW */
    size_t fewer;             /* channels less than the shape has: none of its blocks is full */
    enum bench_job_list jobs; /* of BENCH_JOBS */
    enum bench_rival rivals[BENCH_MAX_RIVALS]; /* ROOF comes first, BARE before BYTES */
    int on_screen;                             /* one of those that are measured by default */
    /* For the project's claims not at all, beyond the caches with the best set alone, always. */
    enum { BENCH_CLAIMS_NOTHING, BENCH_CLAIMS_BEST, BENCH_CLAIMS_ALL_SETS } claims;
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
typedef struct bench_row {
    const bench_entry *entry;
    bnorm_layout layout;
    enum bench_column column;
    const bench_shape *shape; /* NULL for jobs */
    size_t n, c, hw;
    bench_jobs *jobs;
    const bnorm_isa *isa;    /* NULL = the plain C loop */
    size_t rivals;           /* how many of the entry's are timed */
    struct bench_row *first; /* of those that differ in the kernel set alone, which share a check */
    enum { BENCH_UNCHECKED, BENCH_RIGHT, BENCH_WRONG } state; /* of the first one */
    bench_samples samples;                                    /* figures: one per rival */
} bench_row;

/* What all rows need to run. */
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

/* What an entry is on a shape, with all its rivals; "first" is not set. */
bench_row bench_row_make(const bench_entry *entry, bnorm_layout layout, const bench_shape *shape,
                         const bnorm_isa *isa);
/* 0 where the form mostly moves what lies between the elements, as blocks of 16 with C = 3 do. */
int bench_row_is_sensible(const bench_row *row);
/* Adds what the row needs to the sizes for bench_memory_add_forms(). */
void bench_row_sizes(const bench_row *row, size_t elements[BENCH_DTYPES], size_t *ws_size);

/* Bytes that a call must at least read or write; not of jobs. */
double bench_row_traffic(const bench_row *row);

const char *bench_set_name(const bnorm_isa *isa);
enum { BENCH_ROW_NAME = 192 };
/* op/layout/dtype/set/network/shape */
void bench_row_name(const bench_row *row, char *name, size_t size);
/* The parts of a line of a table: "inference_relu", "bf16", "nChw8c" or "". */
void bench_entry_names(const bench_entry *entry, char *op, size_t op_size, char *dtype,
                       size_t dtype_size, char *layout, size_t layout_size);

int bench_row_is_checked(const bench_row *row);
/* 0 where a result is wrong: nothing is timed. */
int bench_row_measure(bench_row *row, const bench_lab *lab, shim_state *state);

#endif
