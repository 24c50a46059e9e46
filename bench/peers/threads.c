/* SPDX-License-Identifier: MIT */
#define _GNU_SOURCE /* RTLD_DEFAULT, sched_setaffinity, setenv, usleep */

#include "threads.h"

#include <dlfcn.h>
#include <pthread.h>
#include <pthreadpool.h>
#include <sched.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "onednn.h"

/* Iterations for which an idle OpenMP thread spins, about 0.1 ms: longer than from one call to the
 * next, short enough to wait for its end. The default is many ms, in which such a thread would take
 * a core from the next contender. */
#define SPIN_COUNT "2000"
enum { SPIN_MICROSECONDS = 300 };

static pthreadpool_t pool;
static size_t threads = 1;
static bnorm_exec exec;

void peers_threads_prepare(char **argv) {
    if (getenv("GOMP_SPINCOUNT") || getenv("OMP_WAIT_POLICY"))
        return;
    setenv("GOMP_SPINCOUNT", SPIN_COUNT, 1);
    setenv("KMP_BLOCKTIME", "0", 1); /* the same for LLVM's and Intel's OpenMP, in ms */
    execv("/proc/self/exe", argv);
    perror("bnorm-peers: cannot start again, timings with threads may be disturbed");
}

static void parallel(void *opaque, void (*task)(void *arg, size_t i), void *arg, size_t count) {
    pthreadpool_parallelize_1d(opaque, task, arg, count, 0);
}

typedef void (*set_threads)(int count);
typedef void (*run_parallel)(void (*task)(void *arg), void *arg, unsigned count, unsigned flags);

/* oneDNN's OpenMP library, or else PyTorch's, which mostly is the same one; NULL = none. ISO C has
 * no cast from an object's to a function's pointer: memcpy. */
static void *openmp(const contender *of, const char *function) {
    void *const own = strcmp(of->name, "oneDNN") == 0 ? peers_onednn_symbol(function) : NULL;
    return own ? own : dlsym(RTLD_DEFAULT, function);
}

static void set_openmp(void *symbol, size_t count) {
    set_threads set = NULL;
    memcpy(&set, &symbol, sizeof set);
    if (set)
        set((int)count);
}

static void run_openmp(void *symbol, void (*task)(void *arg), void *arg) {
    run_parallel run =
        NULL; /* LLVM's OpenMP has it too: what compilers make of "#pragma omp parallel" */
    memcpy(&run, &symbol, sizeof run);
    if (run)
        run(task, arg, 0, 0);
}

#ifdef __linux__
/* Each thread of a pool stays on a core of its own. Otherwise, on a busy machine, two of them would
 * share a core at times, and the one that spins would keep the one that works from working. */
static cpu_set_t allowed;
static pthread_t caller;
static atomic_size_t arrived, workers;

static void pin_to(size_t nth) {
    cpu_set_t one;
    CPU_ZERO(&one);
    for (size_t cpu = 0; cpu < CPU_SETSIZE; cpu++)
        if (CPU_ISSET(cpu, &allowed) && nth-- == 0) {
            CPU_SET(cpu, &one);
            sched_setaffinity(0, sizeof one, &one); /* of this thread; may fail, at a cost */
            return;
        }
}

/* Waits for the others, though not for ever: so each thread of the pool gets exactly one task. The
 * caller is a member of every pool and has the first core. */
static void pin_self(void *arg) {
    enum { PATIENCE = 100000 };
    (void)arg;
    atomic_fetch_add(&arrived, 1);
    for (int i = 0; i < PATIENCE && atomic_load(&arrived) < threads; i++)
        sched_yield();
    pin_to(pthread_equal(pthread_self(), caller) ? 0 : 1 + atomic_fetch_add(&workers, 1));
}

static void pin_task(void *arg, size_t i) {
    (void)i;
    pin_self(arg);
}

static void pin_all(void) {
    static int known;
    caller = pthread_self();
    if (!known++ && sched_getaffinity(0, sizeof allowed, &allowed) != 0)
        CPU_ZERO(&allowed);
    sched_setaffinity(0, sizeof allowed, &allowed);
    if (threads == 1 || threads > (size_t)CPU_COUNT(&allowed))
        return;
    void *const libraries[] = {dlsym(RTLD_DEFAULT, "GOMP_parallel"),
                               peers_onednn_symbol("GOMP_parallel")};
    for (size_t i = 0; i < 2; i++) {
        if (i == 1 && libraries[1] == libraries[0])
            break;
        atomic_store(&arrived, 0);
        atomic_store(&workers, 0);
        run_openmp(libraries[i], pin_self, NULL);
    }
    atomic_store(&arrived, 0);
    atomic_store(&workers, 0);
    pthreadpool_parallelize_1d(pool, pin_task, NULL, threads, 0);
}
#else
static void pin_all(void) {}
#endif

int peers_threads_set(size_t count) {
    set_openmp(peers_onednn_symbol("omp_set_num_threads"), count);
    set_openmp(dlsym(RTLD_DEFAULT, "omp_set_num_threads"), count);
#ifdef HAVE_TORCH
    peers_torch_set_threads(count);
#endif
    pthreadpool_destroy(pool);
    pool = NULL;
    exec = (bnorm_exec){0};
    threads = count;
    if (count > 1) {
        pool = pthreadpool_create(count);
        exec = (bnorm_exec){.parallel = parallel, .pool = pool, .threads = count};
        if (!pool)
            return 0;
    }
    pin_all();
    return 1;
}

const bnorm_exec *peers_threads_exec(void) {
    return &exec;
}

static void nothing(void *arg, size_t i) {
    (void)arg;
    (void)i;
}

static void nothing_openmp(void *arg) {
    (void)arg;
}

void peers_threads_wake(const contender *of) {
    if (threads == 1)
        return;
    if (of->runtime == PEERS_OWN_POOL) {
        pthreadpool_parallelize_1d(pool, nothing, NULL, threads, 0);
        return;
    }
    run_openmp(openmp(of, "GOMP_parallel"), nothing_openmp, NULL);
}

void peers_threads_settle(const contender *of) {
    if (of->runtime == PEERS_OPENMP) /* with one thread, too: see BENCH_PROCESS in measure.c */
        usleep(SPIN_MICROSECONDS);
    else if (threads > 1)
        pthreadpool_parallelize_1d(pool, nothing, NULL, threads, PTHREADPOOL_FLAG_YIELD_WORKERS);
}
