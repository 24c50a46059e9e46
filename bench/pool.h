/* SPDX-License-Identifier: MIT
 *
 * A small pool of POSIX threads with the shape of bnorm's "parallel". */
#ifndef BNORM_BENCH_POOL_H
#define BNORM_BENCH_POOL_H

#include <stddef.h>

typedef struct bench_pool bench_pool;

/* A pool of this many threads, the caller's included; NULL where they cannot be had. */
bench_pool *bench_pool_create(size_t threads);
/* A bnorm_parallel; pool is a bench_pool. */
void bench_pool_parallel(void *pool, void (*task)(void *arg, size_t i), void *arg, size_t count);
void bench_pool_destroy(bench_pool *pool);

#endif
