/* SPDX-License-Identifier: MIT */
#include "shapes.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { MAX_SHAPES = 1024 };

/* Is n one of the numbers of a list such as "1,32"? */
static int in_list(const char *list, size_t n) {
    while (*list) {
        char *end;
        if (strtoull(list, &end, 10) == n && end != list)
            return 1;
        list = *end == ',' ? end + 1 : "";
    }
    return 0;
}

/* The product of "56x56" or "1000"; 0 for anything else. */
static size_t positions(const char *hw) {
    size_t product = 1;
    for (;;) {
        char *end;
        const size_t size = strtoull(hw, &end, 10);
        if (end == hw || size == 0 || size > 1000000 || product > 1000000)
            return 0;
        product *= size;
        if (*end == '\0')
            return product;
        if (*end != 'x')
            return 0;
        hw = end + 1;
    }
}

static void set_size(bench_shape *shape, const char *hw) {
    if (shape->hw == 1)
        snprintf(shape->size, sizeof shape->size, "%zux%zu", shape->n, shape->c);
    else
        snprintf(shape->size, sizeof shape->size, "%zux%zux%s", shape->n, shape->c, hw);
}

/* Appends the shapes of one line, one per N; 0 where the line is malformed. */
static int read_line(const char *line, bench_shape *shapes, size_t *count) {
    bench_shape shape = {0};
    char batches[32], hw[24], tags[2][32] = {"", ""};
    const char *quick = "", *forms = "";
    const int fields = sscanf(line, "%47s %31s %31s %zu %23s %31s %31s", shape.network, shape.layer,
                              batches, &shape.c, hw, tags[0], tags[1]);
    if (fields < 5)
        return 0;
    for (int i = 0; i < fields - 5; i++) {
        if (strncmp(tags[i], "quick=", 6) == 0)
            quick = tags[i] + 6;
        else if (strncmp(tags[i], "forms=", 6) == 0)
            forms = tags[i] + 6;
        else
            return 0;
    }
    shape.hw = positions(hw);
    if (shape.hw == 0 || shape.c == 0)
        return 0;
    for (const char *batch = batches;; batch++) {
        char *end;
        shape.n = strtoull(batch, &end, 10);
        if (end == batch || shape.n == 0 || (*end != ',' && *end != '\0') || *count == MAX_SHAPES)
            return 0;
        batch = end;
        shape.quick = in_list(quick, shape.n);
        shape.forms = in_list(forms, shape.n);
        set_size(&shape, hw);
        shapes[(*count)++] = shape;
        if (*batch == '\0')
            return 1;
    }
}

int bench_shape_parse(const char *text, bench_shape *shape) {
    char sizes[32];
    const char *colon = strchr(text, ':');
    const size_t name = colon ? (size_t)(colon - text) : 0;
    *shape = (bench_shape){.network = "own", .quick = 1, .forms = 1};
    if (colon) {
        if (name == 0 || name >= sizeof shape->network)
            return 0;
        memcpy(shape->network, text, name);
        shape->network[name] = '\0';
        text = colon + 1;
    }
    if (strlen(text) >= sizeof sizes)
        return 0;
    strcpy(sizes, text);
    for (char *c = sizes; *c; c++)
        *c = *c == ',' ? 'x' : *c;
    char *c = strchr(sizes, 'x'), *hw = c ? strchr(c + 1, 'x') : NULL;
    if (!c)
        return 0;
    *c++ = '\0';
    if (hw)
        *hw++ = '\0';
    shape->n = positions(sizes);
    shape->c = positions(c);
    shape->hw = positions(hw ? hw : "1");
    set_size(shape, hw);
    return shape->n && shape->c && shape->hw;
}

bench_shape *bench_shapes_read(const char *path, size_t *count) {
    FILE *file = fopen(path, "r");
    if (!file) {
        fprintf(stderr,
                "bnorm-bench: cannot read %s: %s. Run from the repository root or give "
                "--shapes=FILE.\n",
                path, strerror(errno));
        return NULL;
    }
    bench_shape *shapes = malloc(MAX_SHAPES * sizeof *shapes);
    char line[256];
    int good = shapes != NULL;
    *count = 0;
    for (int number = 1; good && fgets(line, sizeof line, file); number++) {
        if (line[0] == '#' || line[strspn(line, " \t\r\n")] == '\0')
            continue;
        good = read_line(line, shapes, count);
        if (!good)
            fprintf(stderr,
                    "bnorm-bench: %s:%d is not \"network layer N C HxW [quick=N] [forms=N]\".\n",
                    path, number);
    }
    fclose(file);
    if (good)
        return shapes;
    free(shapes);
    return NULL;
}
