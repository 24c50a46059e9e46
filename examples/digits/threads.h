/* SPDX-License-Identifier: MIT
 *
 * The smallest `parallel` for bnorm_exec: POSIX threads that live for one call. A program with a
 * thread pool passes the pool's own function instead; pthreadpool's pthreadpool_parallelize_1d
 * needs only a wrapper for its flags. */
#ifndef THREADS_H
#define THREADS_H

#include <stddef.h>

enum { THREADS_MAX = 64 };

/* pool points to a size_t, the number of threads to use, the caller's included. */
void threads_run(void *pool, void (*task)(void *arg, size_t i), void *arg, size_t count);

#endif
