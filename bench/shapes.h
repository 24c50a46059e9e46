/* SPDX-License-Identifier: MIT
 *
 * Reads shapes.txt, which explains its own format. */
#ifndef BNORM_BENCH_SHAPES_H
#define BNORM_BENCH_SHAPES_H

#include <stddef.h>

typedef struct bench_shape {
    char network[48];
    char layer[32];
    char size[48]; /* "32x64x56x56" */
    size_t n, c, hw;
    int quick, forms; /* the line's tags name this N */
} bench_shape;

/* The shapes of a file, one per N; NULL after a message where it cannot be read. Free with free().
 */
bench_shape *bench_shapes_read(const char *path, size_t *count);

/* "8,64,56,56", N,C[,H[,W...]] with an optional "name:" before it, is a shape of that network, with
 * all tags; 0 where the text is anything else. */
int bench_shape_parse(const char *text, bench_shape *shape);

#endif
