/* SPDX-License-Identifier: MIT
 *
 * The many small batch norms of a network: as one bnorm_run_jobs(), and as a call each. */
#ifndef BNORM_BENCH_JOBS_H
#define BNORM_BENCH_JOBS_H

#include <stddef.h>

#include "workload.h"

enum bench_job_list {
    BENCH_JOBS_RESNET50,  /* its 53 batch norms for one image of 32x32: 16x16 down to 1x1 */
    BENCH_JOBS_MOBILENET, /* the 12 of MobileNetV2's 7x7 layers, one image of 224x224 */
    BENCH_JOBS_TINY,      /* 64 tensors of 1 KiB */
    BENCH_JOB_LISTS
};

extern const char *const bench_job_list_names[BENCH_JOB_LISTS];

typedef struct bench_jobs bench_jobs;

/* Every job has its own tensors and parameters. op is BENCH_INFERENCE, _TRAINING or _BACKWARD. NULL
 * without memory. */
bench_jobs *bench_jobs_create(enum bench_job_list list, enum bench_op op, bnorm_layout layout);
void bench_jobs_destroy(bench_jobs *jobs);
/* "53x17KiB": jobs, and the mean size of their x. */
const char *bench_jobs_size(const bench_jobs *jobs);
double bench_jobs_traffic(const bench_jobs *jobs);

bnorm_status bench_jobs_run(const bench_jobs *jobs, const bnorm_exec *exec);
bnorm_status bench_jobs_call_each(const bench_jobs *jobs, const bnorm_exec *exec);
/* Do both give the same bits? 0 after a message. */
int bench_jobs_check(bench_jobs *jobs, const bnorm_exec *exec);

#endif
