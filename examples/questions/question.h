/* SPDX-License-Identifier: MIT
 *
 * What the programs of this folder share: the two modes of batch norm, and some data. */
#ifndef QUESTION_H
#define QUESTION_H

#include <bnorm.h>
#include <math.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>

/* Enough for every shape here; bnorm says if it is not. */
static char workspace[1 << 20];

/* Ends the program if a call of bnorm did not succeed. */
static inline void ok(bnorm_status status) {
    if (status == BNORM_OK)
        return;
    fprintf(stderr, "%s\n", bnorm_strerror(status));
    exit(1);
}

/* Training mode: the statistics are those of this batch. */
static inline void train(const bnorm_shape *shape, const float *x, float *y,
                         const bnorm_train *options) {
    const bnorm_in in = {.data = x};
    const bnorm_out out = {.data = y};
    ok(bnorm_forward_train(shape, in, out, options, workspace, sizeof workspace, NULL));
}

enum { MOST_CHANNELS = 8 };

/* Inference mode, with gamma 1 and beta 0: the statistics are those that training left. */
static inline void infer(const bnorm_shape *shape, const float *x, float *y, const float *mean,
                         const float *var, double eps) {
    float scale[MOST_CHANNELS], shift[MOST_CHANNELS];
    const bnorm_in in = {.data = x};
    const bnorm_out out = {.data = y};
    const bnorm_affine affine = {.scale = scale, .shift = shift};
    ok(bnorm_fold(shape->c, NULL, NULL, mean, var, eps, scale, shift));
    ok(bnorm_apply(shape, in, out, &affine, NULL));
}

/* To the three digits that are printed; -0 becomes 0. */
static inline double rounded(double v) {
    return rint(v * 1000) / 1000 + 0.0;
}

static inline void print(const char *name, const float *values, size_t count) {
    printf("%s", name);
    for (size_t i = 0; i < count; i++)
        printf(" %7.3f", rounded((double)values[i]));
    putchar('\n');
}

/* Random numbers that are the same everywhere, nearly normal: twelve uniform ones, added. */
static inline float normal(float mean, float deviation) {
    static uint32_t state = 1;
    int32_t sum = 0;
    for (int i = 0; i < 12; i++) {
        state = state * 1664525u + 1013904223u;
        sum += (int32_t)(state >> 16);
    }
    return mean + deviation * ((float)(sum - 6 * 65536) / 65536);
}

static inline void fill(float *values, size_t count, float mean, float deviation) {
    for (size_t i = 0; i < count; i++)
        values[i] = normal(mean, deviation);
}

#endif
