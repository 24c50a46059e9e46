/* SPDX-License-Identifier: MIT */
#include <pthread.h>
#include <stdatomic.h>
#include "threads.h"

typedef struct job {
    void (*task)(void *arg, size_t i);
    void *arg;
    size_t count;
    atomic_size_t next;
} job;

static void *work(void *argument) {
    job *j = argument;
    for (size_t i; (i = atomic_fetch_add(&j->next, 1)) < j->count;)
        j->task(j->arg, i);
    return NULL;
}

void threads_run(void *pool, void (*task)(void *arg, size_t i), void *arg, size_t count) {
    const size_t wanted = *(const size_t *)pool;
    job j = {.task = task, .arg = arg, .count = count};
    pthread_t thread[THREADS_MAX];
    size_t started = 0;
    /* Where a thread cannot be started, the others do its share. */
    while (started + 1 < wanted && started + 1 < count && started < THREADS_MAX &&
           pthread_create(&thread[started], NULL, work, &j) == 0)
        started++;
    work(&j);
    while (started-- > 0)
        pthread_join(thread[started], NULL);
}
