/* SPDX-License-Identifier: MIT
 *
 * bnorm creates no threads: it hands its tasks to the caller's. This runs a training step on the
 * calling thread, on pthreadpool and on OpenMP, and shows that the result has the same bits.
 * `make examples` builds it with those of the two that are installed. */
#ifdef _OPENMP
#include <omp.h>
#endif
#include <bnorm.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#ifdef HAVE_PTHREADPOOL
#include <pthreadpool.h>

static void on_pthreadpool(void *pool, void (*task)(void *, size_t), void *arg, size_t count) {
    pthreadpool_parallelize_1d(pool, task, arg, count, 0);
}
#endif

#ifdef _OPENMP
static void on_openmp(void *pool, void (*task)(void *, size_t), void *arg, size_t count) {
    (void)pool;
#pragma omp parallel for schedule(dynamic)
    for (size_t i = 0; i < count; i++)
        task(arg, i);
}
#endif

enum { N = 4, C = 64, HW = 56 * 56, COUNT = N * C * HW };

static float x[COUNT], alone[COUNT], shared[COUNT];

/* Without exec, on this thread, into `alone`; else into `shared`, which must become the same. */
static void train(const char *name, const bnorm_exec *exec) {
    float *y = exec ? shared : alone;
    const bnorm_shape shape = {.layout = BNORM_NHWC, .n = N, .c = C, .hw = HW};
    const size_t ws_size = bnorm_workspace(BNORM_OP_FORWARD_TRAIN, &shape);
    void *ws = malloc(ws_size);
    if (!ws) {
        fprintf(stderr, "threads: out of memory\n");
        exit(1);
    }

    float running_mean[C] = {0}, running_var[C];
    for (size_t i = 0; i < C; i++)
        running_var[i] = 1;
    const bnorm_train options = {
        .eps = 1e-5,
        .running = bnorm_running_pytorch(running_mean, running_var, 0.1),
        .act = {.kind = BNORM_ACT_RELU},
    };

    const bnorm_in in = {.data = x};
    const bnorm_out out = {.data = y};
    const bnorm_status status = bnorm_forward_train(&shape, in, out, &options, ws, ws_size, exec);
    free(ws);
    if (status != BNORM_OK) {
        fprintf(stderr, "threads: %s: %s\n", name, bnorm_strerror(status));
        exit(1);
    }
    if (memcmp(y, alone, sizeof alone) != 0) {
        fprintf(stderr, "threads: %s: not the bits of one thread; please report this\n", name);
        exit(1);
    }
    printf("%-12s y[0..2] = %.9g %.9g %.9g\n", name, (double)y[0], (double)y[1], (double)y[2]);
}

int main(void) {
    uint32_t random = 1;
    for (size_t i = 0; i < COUNT; i++) {
        random = random * 1664525u + 1013904223u;
        x[i] = (float)(random >> 8) * 0x1p-24f;
    }

    train("one thread", NULL);
#ifdef HAVE_PTHREADPOOL
    pthreadpool_t pool = pthreadpool_create(0);
    const bnorm_exec pooled = {
        .parallel = on_pthreadpool, .pool = pool, .threads = pthreadpool_get_threads_count(pool)};
    train("pthreadpool", &pooled);
    pthreadpool_destroy(pool);
#else
    puts("pthreadpool  not here when this was built; Debian: libpthreadpool-dev");
#endif
#ifdef _OPENMP
    const bnorm_exec openmp = {.parallel = on_openmp, .threads = (size_t)omp_get_max_threads()};
    train("OpenMP", &openmp);
#else
    puts("OpenMP       not here when this was built; Debian: libgomp1 (gcc) or libomp-dev (clang)");
#endif
    return 0;
}
