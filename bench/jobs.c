/* SPDX-License-Identifier: MIT */
#include "jobs.h"
#include "../tests/call.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

const char *const bench_job_list_names[BENCH_JOB_LISTS] = {
    [BENCH_JOBS_RESNET50] = "resnet50@32",
    [BENCH_JOBS_MOBILENET] = "mobilenetv2@7x7",
    [BENCH_JOBS_TINY] = "tiny",
};

/* So many layers of this size; ends with count 0. */
typedef struct layers {
    size_t c, side, count;
} layers;

enum { MAX_GROUPS = 16, MAX_JOBS = 64, ALIGN = 16 };

static const layers lists[BENCH_JOB_LISTS][MAX_GROUPS] = {
    [BENCH_JOBS_RESNET50] = {{64, 16, 1},
                             {64, 8, 6},
                             {256, 8, 4},
                             {128, 8, 1},
                             {128, 4, 7},
                             {512, 4, 5},
                             {256, 4, 1},
                             {256, 2, 11},
                             {1024, 2, 7},
                             {512, 2, 1},
                             {512, 1, 5},
                             {2048, 1, 4}},
    [BENCH_JOBS_MOBILENET] = {{576, 7, 1}, {160, 7, 3}, {960, 7, 6}, {320, 7, 1}, {1280, 7, 1}},
    [BENCH_JOBS_TINY] = {{16, 4, 64}},
};

/* Arrays of channels. */
enum array {
    GAMMA,
    BETA,
    MEAN,
    INVSTD,
    SAVE_MEAN,
    SAVE_INVSTD,
    RUNNING_MEAN,
    RUNNING_VAR,
    DGAMMA,
    DBETA,
    ARRAYS
};

struct bench_jobs {
    size_t count, elements, channels;
    size_t tensors; /* as bench_ops says */
    bnorm_job jobs[MAX_JOBS];
    bench_call calls[MAX_JOBS]; /* what they point to */
    float *x, *dy, *out, *arrays;
    char *ws;
    char size[32];
};

static size_t rounded(size_t n) {
    return (n + ALIGN - 1) / ALIGN * ALIGN;
}

/* Job i, whose tensors and arrays start at these offsets. */
static void set_job(bench_jobs *j, size_t i, const bench_problem *shape, size_t tensor,
                    size_t channel, size_t ws) {
    float *a[ARRAYS];
    for (size_t k = 0; k < ARRAYS; k++)
        a[k] = j->arrays + k * j->channels + channel;
    bench_problem p = *shape;
    p.eps = 1e-5;
    p.x = j->x + tensor;
    p.dy = j->dy + tensor;
    p.gamma = p.scale = a[GAMMA];
    p.beta = a[BETA];
    p.mean = a[MEAN];
    p.invstd = a[INVSTD];
    p.ws = j->ws + ws;
    p.ws_size = bench_workspace(p.op, p.layout, p.n, p.c, p.hw);
    const bench_result result = {.tensor = j->out + tensor,
                                 .mean = a[SAVE_MEAN],
                                 .invstd = a[SAVE_INVSTD],
                                 .running_mean = a[RUNNING_MEAN],
                                 .running_var = a[RUNNING_VAR],
                                 .dgamma = a[DGAMMA],
                                 .dbeta = a[DBETA]};
    bench_call_make(&j->calls[i], &p, &result);
    j->jobs[i] = j->calls[i].job;
}

/* Calls set_job() for all, or only adds up what they need. */
static size_t walk(bench_jobs *j, enum bench_job_list list, enum bench_op op, bnorm_layout layout,
                   int set) {
    size_t tensor = 0, channel = 0, ws = 0;
    j->count = 0;
    for (const layers *l = lists[list]; l->count; l++) {
        for (size_t k = 0; k < l->count; k++) {
            const bench_problem shape = {
                .op = op, .layout = layout, .n = 1, .c = l->c, .hw = l->side * l->side};
            if (set)
                set_job(j, j->count, &shape, tensor, channel, ws);
            j->count++;
            tensor += rounded(shape.c * shape.hw);
            channel += rounded(shape.c);
            ws += rounded(bench_workspace(op, layout, shape.n, shape.c, shape.hw));
        }
    }
    j->elements = tensor;
    j->channels = channel;
    return ws;
}

static void fill(bench_jobs *j) {
    unsigned random = 1;
    for (size_t i = 0; i < j->elements; i++) {
        random = random * 1664525U + 1013904223U;
        j->x[i] = (float)(random >> 8) * 0x1p-23F;
        j->dy[i] = 1 - j->x[i];
        j->out[i] = 0;
    }
    for (size_t i = 0; i < ARRAYS * j->channels; i++)
        j->arrays[i] = 1;
}

bench_jobs *bench_jobs_create(enum bench_job_list list, enum bench_op op, bnorm_layout layout) {
    bench_jobs *j = calloc(1, sizeof *j);
    if (!j)
        return NULL;
    const size_t ws = walk(j, list, op, layout, 0);
    j->tensors = bench_ops[op].tensors;
    float **const blocks[] = {&j->x, &j->dy, &j->out};
    int good = (j->arrays = aligned_alloc(64, ARRAYS * j->channels * sizeof(float))) != NULL &&
               (j->ws = aligned_alloc(64, (ws / 64 + 1) * 64)) != NULL;
    for (size_t i = 0; i < 3; i++)
        good &= (*blocks[i] = aligned_alloc(64, j->elements * sizeof(float))) != NULL;
    if (!good) {
        bench_jobs_destroy(j);
        return NULL;
    }
    fill(j);
    walk(j, list, op, layout, 1);
    snprintf(j->size, sizeof j->size, "%zux%zuKiB", j->count,
             j->elements * sizeof(float) / j->count / 1024);
    return j;
}

void bench_jobs_destroy(bench_jobs *j) {
    if (!j)
        return;
    free(j->x);
    free(j->dy);
    free(j->out);
    free(j->arrays);
    free(j->ws);
    free(j);
}

const char *bench_jobs_size(const bench_jobs *j) {
    return j->size;
}

double bench_jobs_traffic(const bench_jobs *j) {
    return (double)(j->tensors * j->elements * sizeof(float));
}

bnorm_status bench_jobs_run(const bench_jobs *j, const bnorm_exec *exec) {
    return bnorm_run_jobs(j->jobs, j->count, NULL, exec);
}

bnorm_status bench_jobs_call_each(const bench_jobs *j, const bnorm_exec *exec) {
    bnorm_status status = BNORM_OK;
    for (size_t i = 0; status == BNORM_OK && i < j->count; i++)
        status = run_job(&j->jobs[i], exec);
    return status;
}

int bench_jobs_check(bench_jobs *j, const bnorm_exec *exec) {
    const size_t tensor = j->elements * sizeof(float), arrays = ARRAYS * j->channels * 4;
    float *const expected = malloc(tensor + arrays);
    bnorm_status status = expected ? BNORM_OK : BNORM_UNSUPPORTED;
    int same = 0;
    if (expected) {
        fill(j);
        status = bench_jobs_call_each(j, exec);
        memcpy(expected, j->out, tensor);
        memcpy(expected + j->elements, j->arrays, arrays);
        fill(j);
        if (status == BNORM_OK)
            status = bench_jobs_run(j, exec);
        same = memcmp(expected, j->out, tensor) == 0 &&
               memcmp(expected + j->elements, j->arrays, arrays) == 0;
    }
    free(expected);
    if (status != BNORM_OK)
        fprintf(stderr, "bnorm-bench: jobs: %s\n", bnorm_strerror(status));
    else if (!same)
        fprintf(stderr, "bnorm-bench: bnorm_run_jobs differs from one call each.\n");
    return status == BNORM_OK && same;
}
