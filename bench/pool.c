/* SPDX-License-Identifier: MIT */
#include "pool.h"

#include <pthread.h>
#include <stdatomic.h>
#include <stdlib.h>

enum { MAX_THREADS = 256, SPINS = 20000 };

struct bench_pool {
    pthread_t workers[MAX_THREADS];
    size_t worker_count;
    pthread_mutex_t mutex;
    pthread_cond_t wake, done;
    atomic_size_t job;  /* counts the calls of bench_pool_parallel; workers wait for it to change */
    atomic_size_t busy; /* workers that have not finished the job */
    int quit;
    void (*task)(void *arg, size_t i);
    void *arg;
    size_t count;
    atomic_size_t next;
};

static void work(bench_pool *pool) {
    for (size_t i; (i = atomic_fetch_add(&pool->next, 1)) < pool->count;)
        pool->task(pool->arg, i);
}

/* Calls of a benchmark follow each other closely: spin for a while before sleeping, as thread pools
 * made for inference do. */
static void *worker(void *arg) {
    bench_pool *pool = arg;
    for (size_t seen = 0;;) {
        for (int i = 0; i < SPINS && atomic_load(&pool->job) == seen; i++)
            ;
        pthread_mutex_lock(&pool->mutex);
        while (atomic_load(&pool->job) == seen)
            pthread_cond_wait(&pool->wake, &pool->mutex);
        seen = atomic_load(&pool->job);
        const int quit = pool->quit;
        pthread_mutex_unlock(&pool->mutex);
        if (quit)
            return NULL;
        work(pool);
        if (atomic_fetch_sub(&pool->busy, 1) == 1) {
            pthread_mutex_lock(&pool->mutex);
            pthread_cond_signal(&pool->done);
            pthread_mutex_unlock(&pool->mutex);
        }
    }
}

static void start_job(bench_pool *pool) {
    pthread_mutex_lock(&pool->mutex);
    atomic_fetch_add(&pool->job, 1);
    pthread_cond_broadcast(&pool->wake);
    pthread_mutex_unlock(&pool->mutex);
}

bench_pool *bench_pool_create(size_t threads) {
    bench_pool *pool = threads <= MAX_THREADS ? calloc(1, sizeof *pool) : NULL;
    if (!pool)
        return NULL;
    pthread_mutex_init(&pool->mutex, NULL);
    pthread_cond_init(&pool->wake, NULL);
    pthread_cond_init(&pool->done, NULL);
    for (; pool->worker_count + 1 < threads; pool->worker_count++) {
        if (pthread_create(&pool->workers[pool->worker_count], NULL, worker, pool) != 0) {
            bench_pool_destroy(pool);
            return NULL;
        }
    }
    return pool;
}

void bench_pool_parallel(void *opaque, void (*task)(void *arg, size_t i), void *arg, size_t count) {
    bench_pool *pool = opaque;
    pool->task = task;
    pool->arg = arg;
    pool->count = count;
    atomic_store(&pool->next, 0);
    atomic_store(&pool->busy, pool->worker_count);
    start_job(pool);
    work(pool);
    for (int i = 0; i < SPINS && atomic_load(&pool->busy); i++)
        ;
    pthread_mutex_lock(&pool->mutex);
    while (atomic_load(&pool->busy))
        pthread_cond_wait(&pool->done, &pool->mutex);
    pthread_mutex_unlock(&pool->mutex);
}

void bench_pool_destroy(bench_pool *pool) {
    pool->quit = 1;
    start_job(pool);
    for (size_t i = 0; i < pool->worker_count; i++)
        pthread_join(pool->workers[i], NULL);
    pthread_mutex_destroy(&pool->mutex);
    pthread_cond_destroy(&pool->wake);
    pthread_cond_destroy(&pool->done);
    free(pool);
}
