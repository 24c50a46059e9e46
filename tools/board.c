/* SPDX-License-Identifier: MIT
 *
 * bnorm-board: one file to copy to a device. It computes the hashes of bnorm-verify, times the three
 * operations on every kernel set beside plain C and the best copy of the same bytes, and ends with a
 * line for a report. One thread; every result is checked before it is timed. `make board` links it
 * with verify.c, whose main is verify_main there. */
#define _POSIX_C_SOURCE 200809L /* dup */
#include "bnorm.h"
#include "../bench/clock.h"
#include "../bench/cpu_name.h"
#include "../bench/plain.h"
#include "../bench/roof.h"
#include "../bench/workload.h"

#include <math.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

int verify_main(int argc, char **argv);

enum { MOST_SETS = 4, ROUNDS = 7, OPS = 3, SHAPES = 2 };
/* In the caches of most boards, and beyond them. */
static const size_t shapes[SHAPES][4] = {{1, 64, 28, 28}, {8, 64, 56, 56}};
static const enum bench_op ops[OPS] = {BENCH_INFERENCE, BENCH_TRAINING, BENCH_BACKWARD};
/* Of a sample. */
static const double least_seconds = 0.01;
static const bnorm_exec serial = {0};

struct row {
    enum bench_op op;
    bnorm_layout layout;
    const size_t *shape;
    double bytes;
    double roof, plain, sets[MOST_SETS]; /* seconds per call; roof: of the same bytes */
};

struct board {
    bench_memory memory;
    bench_roof *roof;
    const bnorm_isa *isas[MOST_SETS];
    size_t sets;
    struct row rows[OPS * 2 * SHAPES];
    size_t count;
};

/* One implementation: a set, or plain C where isa is NULL. */
static void run(const bench_problem *p, const bnorm_isa *isa, const bench_result *result) {
    if (isa)
        bench_run(p, isa, &serial, result);
    else
        plain_run(p, result);
}

static double sample(const bench_problem *p, const bnorm_isa *isa, const bench_result *result) {
    for (size_t calls = 1;; calls *= 2) {
        const double began = bench_seconds(BENCH_WALL);
        for (size_t i = 0; i < calls; i++)
            run(p, isa, result);
        const double seconds = bench_seconds(BENCH_WALL) - began;
        if (seconds >= least_seconds)
            return seconds / (double)calls;
    }
}

/* Medians of samples that are taken in turns. 0 where a result is wrong. */
static int measure(struct board *b, struct row *row) {
    const size_t *s = row->shape;
    double seconds[MOST_SETS + 1][ROUNDS];
    const bench_problem p =
        bench_problem_make(&b->memory, row->op, row->layout, s[0], s[1], s[2] * s[3]);
    bench_result *const result = &b->memory.timed;
    if (!bench_check(&p, &b->memory, &serial))
        return 0;
    row->bytes = bench_traffic(&p);
    for (size_t i = 0; i < ROUNDS; i++) {
        for (size_t k = 0; k < b->sets; k++)
            seconds[k][i] = sample(&p, b->isas[k], result);
        seconds[b->sets][i] = sample(&p, NULL, result);
        row->roof = row->bytes / roof_measure(b->roof, &p, result->tensor);
    }
    for (size_t k = 0; k < b->sets; k++)
        row->sets[k] = bench_median(seconds[k], ROUNDS);
    row->plain = bench_median(seconds[b->sets], ROUNDS);
    return 1;
}

static void shape_text(const size_t *s, char *text, size_t size) {
    snprintf(text, size, "%zux%zux%zux%zu", s[0], s[1], s[2], s[3]);
}

static double rate(const struct row *row, double seconds) {
    return row->bytes / seconds * 1e-9;
}

static void print_table(const struct board *b) {
    printf("\nGB/s of what has to be read and written, and percent of the roof, the best copy of\n"
           "the same bytes here; f32, 1 thread\n\n%-10s %-6s %-12s %6s %12s",
           "operation", "layout", "shape", "roof", "plain C");
    for (size_t k = b->sets; k-- > 0;)
        printf(" %12s", bnorm_isa_name(b->isas[k]));
    printf("\n");
    for (size_t i = 0; i < b->count; i++) {
        const struct row *row = &b->rows[i];
        char shape[32];
        shape_text(row->shape, shape, sizeof shape);
        printf("%-10s %-6s %-12s %6.2f %6.2f %3.0f %%", bench_ops[row->op].name,
               bench_layouts[row->layout], shape, rate(row, row->roof), rate(row, row->plain),
               100 * row->roof / row->plain);
        for (size_t k = b->sets; k-- > 0;)
            printf(" %6.2f %3.0f %%", rate(row, row->sets[k]), 100 * row->roof / row->sets[k]);
        printf("\n");
    }
}

static void print_json(const struct board *b) {
    printf("{\"bnorm\": \"%s\", \"cpu\": \"%s\", \"rows\": [", bnorm_version(), bench_cpu_name());
    for (size_t i = 0; i < b->count; i++) {
        const struct row *row = &b->rows[i];
        char shape[32];
        shape_text(row->shape, shape, sizeof shape);
        printf("%s\n  {\"op\": \"%s\", \"layout\": \"%s\", \"shape\": \"%s\", \"bytes\": %.0f, "
               "\"seconds\": {\"roof\": %.4g, \"plain\": %.4g",
               i ? "," : "", bench_ops[row->op].name, bench_layouts[row->layout], shape, row->bytes,
               row->roof, row->plain);
        for (size_t k = 0; k < b->sets; k++)
            printf(", \"%s\": %.4g", bnorm_isa_name(b->isas[k]), row->sets[k]);
        printf("}}");
    }
    printf("\n]}\n");
}

/* Geometric means of the best set's percent of the roof, and of its speed beside plain C. */
static void print_summary(const struct board *b, int same) {
    printf("\nFor a report:\nbnorm-board %s, %s, %s: %s;", bnorm_version(), bench_cpu_name(),
           bnorm_isa_name(b->isas[0]), same ? "same bits" : "NOT THE SAME BITS");
    for (size_t op = 0; op < OPS; op++) {
        double of_roof = 0, of_plain = 0, n = 0;
        for (size_t i = 0; i < b->count; i++)
            if (b->rows[i].op == ops[op]) {
                of_roof += log(b->rows[i].roof / b->rows[i].sets[0]);
                of_plain += log(b->rows[i].plain / b->rows[i].sets[0]);
                n++;
            }
        printf(" %s %.0f %% of the roof, %.1f times plain C%s", bench_ops[ops[op]].name,
               100 * exp(of_roof / n), exp(of_plain / n), op + 1 < OPS ? ";" : "\n");
    }
}

static int prepare(struct board *b) {
    size_t most = 0, ws = 0;
    while (b->sets < MOST_SETS && (b->isas[b->sets] = bench_isa_at(b->sets)) != NULL)
        b->sets++;
    for (size_t s = 0; s < SHAPES; s++)
        for (size_t op = 0; op < OPS; op++)
            for (bnorm_layout layout = BNORM_NHWC; layout <= BNORM_NCHW; layout++) {
                const size_t hw = shapes[s][2] * shapes[s][3],
                             elements = shapes[s][0] * shapes[s][1] * hw,
                             room =
                                 bench_workspace(ops[op], layout, shapes[s][0], shapes[s][1], hw);
                b->rows[b->count++] =
                    (struct row){.op = ops[op], .layout = layout, .shape = shapes[s]};
                most = elements > most ? elements : most;
                ws = room > ws ? room : ws;
            }
    b->roof = roof_create(1, &serial);
    return b->roof && bench_memory_create(&b->memory, most + 1, shapes[0][1], ws);
}

int main(int argc, char **argv) {
    static struct board board;
    char *verify[] = {argv[0], (char[]){"--brief"}, NULL};
    const int json = argc == 2 && strcmp(argv[1], "--json") == 0;
    if (argc > 1 && !json) {
        printf("usage: %s [--json]\n"
               "Checks the bits of every function on this CPU, then times the operations: some\n"
               "minutes on a small board. --json prints figures for programs instead of tables.\n"
               "Exit status 0: all results are right; 1: not; 2: no memory.\n",
               argv[0]);
        return strcmp(argv[1], "--help") != 0;
    }
    const int out = dup(STDOUT_FILENO);
    if (json)
        dup2(STDERR_FILENO, STDOUT_FILENO);
    const int same = verify_main(2, verify) == 0;
    fflush(stdout);
    dup2(out, STDOUT_FILENO);
    if (!prepare(&board)) {
        fprintf(stderr, "bnorm-board: not enough memory: end other programs and try again.\n");
        return 2;
    }
    for (size_t i = 0; i < board.count; i++) {
        fprintf(stderr, "\r[%zu/%zu] %s ", i + 1, board.count, bench_ops[board.rows[i].op].name);
        if (!measure(&board, &board.rows[i]))
            return 1;
    }
    fprintf(stderr, "\r                      \r");
    if (json)
        print_json(&board);
    else {
        print_table(&board);
        print_summary(&board, same);
    }
    return !same;
}
