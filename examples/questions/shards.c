/* SPDX-License-Identifier: MIT
 *
 * Threads of another runtime, each of which owns some samples of the batch: every one collects the
 * statistics of its own, one merges them, and every one normalises its own. */
#include "question.h"
#include <pthread.h>
#include <string.h>

enum { SHARDS = 3, IMAGES = 12, C = 4, HW = 64, COUNT = IMAGES * C * HW };

struct shard {
    pthread_t thread;
    bnorm_shape shape;
    bnorm_partial piece;
    const float *x;
    float *y;
    bnorm_affine affine;
    char ws[1 << 16];
};

static void *collect(void *arg) {
    struct shard *s = arg;
    const bnorm_in in = {.data = s->x};
    ok(bnorm_partial_collect(&s->shape, in, &s->piece, s->ws, sizeof s->ws, NULL));
    return NULL;
}

static void *apply(void *arg) {
    struct shard *s = arg;
    const bnorm_in in = {.data = s->x};
    const bnorm_out out = {.data = s->y};
    ok(bnorm_apply(&s->shape, in, out, &s->affine, NULL));
    return NULL;
}

static void on_all(struct shard *shards, void *(*task)(void *)) {
    for (int i = 0; i < SHARDS; i++)
        if (pthread_create(&shards[i].thread, NULL, task, &shards[i])) {
            fputs("no more threads: end some programs and try again\n", stderr);
            exit(1);
        }
    for (int i = 0; i < SHARDS; i++)
        pthread_join(shards[i].thread, NULL);
}

int main(void) {
    static float x[COUNT], y[COUNT], expected[COUNT];
    static double nodes[SHARDS][256]; /* each at least bnorm_partial_size(C, IMAGES) bytes */
    static struct shard shards[SHARDS];
    const size_t images[SHARDS] = {7, 0, 5}; /* one of them has none */
    float mean[C], coefficients[3 * C];
    fill(x, COUNT, 100, 3);

    size_t first = 0;
    for (int i = 0; i < SHARDS; i++) {
        struct shard *s = &shards[i];
        s->shape = (bnorm_shape){.layout = BNORM_NCHW, .n = images[i], .c = C, .hw = HW};
        s->piece =
            (bnorm_partial){.c = C, .first = first, .nodes = nodes[i], .size = sizeof nodes[i]};
        s->x = x + first * C * HW;
        s->y = y + first * C * HW;
        s->affine.center = coefficients;
        s->affine.scale = coefficients + C;
        s->affine.shift = coefficients + 2 * C;
        first += images[i];
    }

    const bnorm_train options = {.eps = 1e-5, .save_mean = mean};
    on_all(shards, collect);
    for (int i = 1; i < SHARDS; i++)
        ok(bnorm_partial_merge(&shards[0].piece, &shards[i].piece));
    ok(bnorm_partial_finish(&shards[0].piece, &options, coefficients));
    on_all(shards, apply);
    print("mean", mean, C);

    const bnorm_shape shape = {.layout = BNORM_NCHW, .n = IMAGES, .c = C, .hw = HW};
    train(&shape, x, expected, &options);
    printf("y has the bits of one call: %s\n", memcmp(y, expected, sizeof y) ? "no" : "yes");
    return 0;
}
