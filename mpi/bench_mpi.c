/* SPDX-License-Identifier: MIT
 *
 * What synchronising costs: the time of training over MPI, and of its collective and merges within,
 * beside the time of bnorm alone on the same shard, for the shapes of a network in shapes.txt whose
 * N is that of every process; as a table and as JSON. Of all repetitions the fastest is shown, and
 * of all ranks the slowest: a collective waits for each rank, so whatever else runs on the machine
 * adds the length of its turns to the typical one. */
#include "bnorm_mpi.h"

#include <math.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "../bench/clock.h"
#include "../bench/cpu_name.h"
#include "../bench/shapes.h"

static int rank, ranks;

static _Noreturn void stop(const char *message) {
    fprintf(stderr, "bnorm-mpi-bench: %s\n", message);
    MPI_Abort(MPI_COMM_WORLD, EXIT_FAILURE);
    exit(EXIT_FAILURE);
}

static void *allocate(size_t bytes) {
    void *memory = malloc(bytes ? bytes : 1);
    if (!memory)
        stop("out of memory; take fewer images with --images 8");
    return memory;
}

/* ---------------------------------------------------------------------------------------------- */
/* The collective, seen from inside                                                               */

static double waited, collected; /* seconds in the latest call */

/* In place of MPI's own. The ranks first wait for the slowest one, so that its local work is not
 * counted as communication. */
int MPI_Allgather(const void *send, int send_count, MPI_Datatype send_type, void *receive,
                  int receive_count, MPI_Datatype receive_type, MPI_Comm comm) {
    const double begin = MPI_Wtime();
    PMPI_Barrier(comm);
    const double together = MPI_Wtime();
    const int error =
        PMPI_Allgather(send, send_count, send_type, receive, receive_count, receive_type, comm);
    waited = together - begin;
    collected = MPI_Wtime() - together;
    return error;
}

/* ---------------------------------------------------------------------------------------------- */
/* One layer                                                                                      */

typedef struct layer {
    bnorm_shape shape; /* of one process */
    float *x, *dy, *out;
    float *arrays; /* 6 of c floats */
    bnorm_train train;
    bnorm_grad grad;
    void *ws;
    size_t ws_size;
    bnorm_mpi_batch *batch;
} layer;

enum pass { FORWARD, BACKWARD, PASSES };
static const char *const pass_names[PASSES] = {"forward", "backward"};

/* Seconds. */
typedef struct figures {
    double local, call, wait, collective, merge;
} figures;

static void check(bnorm_status status) {
    if (status)
        stop(bnorm_strerror(status));
}

static void check_mpi(bnorm_mpi_result result) {
    char text[BNORM_MPI_MAX_ERROR_STRING];
    if (result.status)
        stop(bnorm_mpi_strerror(result, text, sizeof text));
}

static size_t larger(size_t a, size_t b) {
    return a > b ? a : b;
}

static void create(layer *l, const bnorm_shape *shape) {
    const size_t c = shape->c, count = shape->n * c * shape->hw;
    *l = (layer){.shape = *shape,
                 .x = allocate(count * sizeof(float)),
                 .dy = allocate(count * sizeof(float)),
                 .out = allocate(count * sizeof(float)),
                 .arrays = allocate(6 * c * sizeof(float))};
    for (size_t i = 0; i < count; i++) {
        const uint64_t bits = i * 0x9e3779b97f4a7c15u;
        l->x[i] = (float)(bits >> 54) / 512;
        l->dy[i] = (float)(bits >> 44 & 1023) / 512 - 1;
    }
    for (size_t i = 0; i < 6 * c; i++)
        l->arrays[i] = 1;
    float *const a = l->arrays;
    l->train = (bnorm_train){
        .eps = 1e-5,
        .running = {.mean = a, .var = a + c, .rate = .1, .variance = BNORM_VARIANCE_SAMPLE},
        .save_mean = a + 2 * c,
        .save_invstd = a + 3 * c,
        .act = {.kind = BNORM_ACT_RELU}};
    l->grad = (bnorm_grad){.save_mean = a + 2 * c,
                           .save_invstd = a + 3 * c,
                           .act = {.kind = BNORM_ACT_RELU},
                           .dgamma = a + 4 * c,
                           .dbeta = a + 5 * c};
    check_mpi(bnorm_mpi_batch_create(MPI_COMM_WORLD, shape->n, c, &l->batch));
    l->ws_size = larger(bnorm_workspace(BNORM_OP_FORWARD_TRAIN, shape),
                        bnorm_workspace(BNORM_OP_BACKWARD, shape));
    l->ws_size = larger(l->ws_size, bnorm_mpi_workspace(BNORM_OP_FORWARD_TRAIN, shape, l->batch));
    l->ws_size = larger(l->ws_size, bnorm_mpi_workspace(BNORM_OP_BACKWARD, shape, l->batch));
    l->ws = allocate(l->ws_size);
}

static void destroy(layer *l) {
    bnorm_mpi_batch_destroy(l->batch);
    free(l->x);
    free(l->dy);
    free(l->out);
    free(l->arrays);
    free(l->ws);
}

static void run_alone(layer *l, enum pass pass) {
    const bnorm_in x = {.data = l->x}, dy = {.data = l->dy};
    const bnorm_out out = {.data = l->out};
    check(pass == FORWARD
              ? bnorm_forward_train(&l->shape, x, out, &l->train, l->ws, l->ws_size, NULL)
              : bnorm_backward(&l->shape, x, dy, out, &l->grad, l->ws, l->ws_size, NULL));
}

static void run_together(layer *l, enum pass pass) {
    const bnorm_in x = {.data = l->x}, dy = {.data = l->dy};
    const bnorm_out out = {.data = l->out};
    check_mpi(pass == FORWARD ? bnorm_mpi_forward_train(&l->shape, x, out, &l->train, l->batch,
                                                        l->ws, l->ws_size, NULL)
                              : bnorm_mpi_backward(&l->shape, x, dy, out, &l->grad, l->batch, l->ws,
                                                   l->ws_size, NULL));
}

/* ---------------------------------------------------------------------------------------------- */
/* Merging                                                                                        */

/* Seconds to merge the pieces of so many ranks, of n images each, as every rank does. */
static double merge_seconds(bnorm_op op, size_t c, size_t n, size_t count) {
    enum { TIMES = 25 };
    const size_t most = bnorm_partial_size(c, n), whole_size = bnorm_partial_size(c, n * count);
    double *const nodes = allocate(most), *const whole_nodes = allocate(whole_size);
    double least = HUGE_VAL;
    for (size_t i = 0; i < most / sizeof(double); i++)
        nodes[i] = 1 + (double)(i % 7);
    for (size_t k = 0; k < TIMES; k++) {
        bnorm_partial whole = {.op = op, .c = c, .nodes = whole_nodes, .size = whole_size};
        const double begin = bench_seconds(BENCH_WALL);
        for (size_t r = 0; r < count; r++) {
            const bnorm_partial piece = {
                .op = op, .c = c, .hw = 49, .first = r * n, .n = n, .nodes = nodes, .size = most};
            check(bnorm_partial_merge(&whole, &piece));
        }
        least = fmin(least, bench_seconds(BENCH_WALL) - begin);
    }
    free(nodes);
    free(whole_nodes);
    return least;
}

/* Bytes of statistics in the longest message of ranks with n images each. */
static size_t message_bytes(size_t c, size_t n, size_t count) {
    size_t most = 0;
    for (size_t r = 0; r < count; r++) {
        const bnorm_partial piece = {.c = c, .first = r * n, .n = n, .hw = 1};
        most = larger(most, bnorm_partial_used(&piece));
    }
    return most;
}

/* ---------------------------------------------------------------------------------------------- */
/* Measuring                                                                                      */

static figures measure(layer *l, enum pass pass, size_t repetitions) {
    figures own = {.local = HUGE_VAL, .call = HUGE_VAL, .wait = HUGE_VAL, .collective = HUGE_VAL};
    run_together(l, pass); /* touches everything */
    for (size_t i = 0; i < repetitions; i++) {
        PMPI_Barrier(MPI_COMM_WORLD); /* both ranks use the memory at the same time, in both ways */
        double begin = MPI_Wtime();
        run_alone(l, pass);
        own.local = fmin(own.local, MPI_Wtime() - begin);
        PMPI_Barrier(MPI_COMM_WORLD);
        begin = MPI_Wtime();
        run_together(l, pass);
        own.call = fmin(own.call, MPI_Wtime() - begin);
        own.wait = fmin(own.wait, waited);
        own.collective = fmin(own.collective, collected);
    }
    own.merge = merge_seconds(pass == FORWARD ? BNORM_OP_MOMENTS : BNORM_OP_BACKWARD, l->shape.c,
                              l->shape.n, (size_t)ranks);
    figures all;
    MPI_Allreduce(&own, &all, sizeof own / sizeof(double), MPI_DOUBLE, MPI_MAX, MPI_COMM_WORLD);
    return all;
}

typedef struct options {
    const char *shapes, *json, *network;
    size_t images; /* of every process */
    size_t repetitions;
} options;

static void print_row(const bench_shape *s, const options *o, enum pass pass, const figures *f) {
    printf("%-15s %5zu %6zu  %-8s %9.3f %9.3f %9.1f %9.1f %8zu %9.1f\n", s->layer, s->c, s->hw,
           pass_names[pass], f->local * 1e3, f->call * 1e3, f->collective * 1e6, f->merge * 1e6,
           message_bytes(s->c, o->images, (size_t)ranks) + 32,
           100 * (f->collective + f->merge) / f->local);
    fflush(stdout);
}

static void write_row(FILE *json, const bench_shape *s, const options *o, enum pass pass,
                      const figures *f) {
    fprintf(json,
            "    {\"layer\": \"%s\", \"c\": %zu, \"hw\": %zu, \"pass\": \"%s\", \"local_s\": %.9f, "
            "\"call_s\": %.9f, \"wait_s\": %.9f, \"collective_s\": %.9f, \"merge_s\": %.9f, "
            "\"message_bytes\": %zu},\n",
            s->layer, s->c, s->hw, pass_names[pass], f->local, f->call, f->wait, f->collective,
            f->merge, message_bytes(s->c, o->images, (size_t)ranks) + 32);
}

/* Nanoseconds per node and channel, with as many ranks as a large run has. */
static double merge_rate(bnorm_op op, size_t c) {
    enum { RANKS = 64 };
    return merge_seconds(op, c, 32, RANKS) * 1e9 / (double)(RANKS * c);
}

static void measure_all(const bench_shape *shapes, size_t count, const options *o) {
    FILE *json = rank == 0 && o->json ? fopen(o->json, "w") : NULL;
    char mpi[MPI_MAX_LIBRARY_VERSION_STRING];
    int length;
    MPI_Get_library_version(mpi, &length);
    mpi[strcspn(mpi, "\n,")] = 0;
    for (char *c = mpi; *c; c++)
        *c = *c == '\t' ? ' ' : *c;
    if (rank == 0 && o->json && !json)
        stop("the JSON file cannot be written; name another with --json");
    const double moments = merge_rate(BNORM_OP_MOMENTS, 512);
    const double sums = merge_rate(BNORM_OP_BACKWARD, 512);
    if (json)
        fprintf(json,
                "{\n  \"cpu\": \"%s\",\n  \"mpi\": \"%s\",\n  \"bnorm\": \"%s\",\n"
                "  \"kernel_set\": \"%s\",\n  \"processes\": %d,\n  \"images\": %zu,\n"
                "  \"merge_ns\": {\"forward\": %.3f, \"backward\": %.3f},\n  \"rows\": [\n",
                bench_cpu_name(), mpi, bnorm_version(), bnorm_isa_name(NULL), ranks, o->images,
                moments, sums);
    if (rank == 0)
        printf("%s, %s, %d processes with %zu images each, NHWC floats, ReLU, one thread each\n"
               "merging: %.2f ns per node and channel in forward, %.2f in backward\n\n"
               "%-15s %5s %6s  %-8s %9s %9s %9s %9s %8s %9s\n"
               "%-15s %5s %6s  %-8s %9s %9s %9s %9s %8s %9s\n",
               bench_cpu_name(), mpi, ranks, o->images, moments, sums, "layer", "c", "hw", "pass",
               "alone", "over MPI", "allgather", "merge", "message", "share", "", "", "", "", "ms",
               "ms", "us", "us", "bytes", "percent");
    figures total[PASSES] = {{0}};
    for (size_t i = 0; i < count; i++) {
        const bench_shape *const s = &shapes[i];
        if (strcmp(s->network, o->network) != 0 || s->n != 1) /* each once; N is ours */
            continue;
        layer l;
        create(&l, &(bnorm_shape){.n = o->images, .c = s->c, .hw = s->hw});
        for (int pass = 0; pass < PASSES; pass++) {
            const figures f = measure(&l, (enum pass)pass, o->repetitions);
            total[pass].local += f.local;
            total[pass].collective += f.collective;
            total[pass].merge += f.merge;
            if (rank == 0)
                print_row(s, o, (enum pass)pass, &f);
            if (json)
                write_row(json, s, o, (enum pass)pass, &f);
        }
        destroy(&l);
    }
    for (int pass = 0; pass < PASSES && rank == 0; pass++)
        printf("sum of %-8s: alone %.1f ms, allgather and merge %.3f ms, %.2f percent of it\n",
               pass_names[pass], total[pass].local * 1e3,
               (total[pass].collective + total[pass].merge) * 1e3,
               100 * (total[pass].collective + total[pass].merge) / total[pass].local);
    if (json) {
        fprintf(json, "    {}\n  ]\n}\n");
        fclose(json);
        printf("JSON: %s\n", o->json);
    }
}

static const char usage[] =
    "usage: mpiexec -n PROCESSES bnorm-mpi-bench [--shapes FILE] [--network NAME] [--images N]\n"
    "           [--repetitions N] [--json FILE]\n"
    "  --shapes FILE     bench/shapes.txt\n"
    "  --network NAME    of that file (resnet50)\n"
    "  --images N        of every process (32)\n"
    "  --repetitions N   of which the fastest is shown (25)\n"
    "  --json FILE       where to write the same as JSON\n";

/* 0 where the arguments are not understood. */
static int parse(options *o, int argc, char **argv) {
    for (int i = 1; i < argc; i += 2) {
        const char *const value = argv[i + 1]; /* argv ends with NULL */
        if (!value)
            return 0;
        if (strcmp(argv[i], "--shapes") == 0)
            o->shapes = value;
        else if (strcmp(argv[i], "--network") == 0)
            o->network = value;
        else if (strcmp(argv[i], "--json") == 0)
            o->json = value;
        else if (strcmp(argv[i], "--images") == 0)
            o->images = strtoul(value, NULL, 10);
        else if (strcmp(argv[i], "--repetitions") == 0)
            o->repetitions = strtoul(value, NULL, 10);
        else
            return 0;
    }
    return o->images > 0 && o->repetitions > 0;
}

int main(int argc, char **argv) {
    options o = {
        .shapes = "bench/shapes.txt", .network = "resnet50", .images = 32, .repetitions = 25};
    int provided, status = 2;
    MPI_Init_thread(&argc, &argv, MPI_THREAD_FUNNELED, &provided);
    MPI_Comm_rank(MPI_COMM_WORLD, &rank);
    MPI_Comm_size(MPI_COMM_WORLD, &ranks);
    if (parse(&o, argc, argv)) {
        size_t count;
        bench_shape *const shapes = bench_shapes_read(o.shapes, &count);
        status = shapes ? EXIT_SUCCESS : EXIT_FAILURE;
        if (shapes)
            measure_all(shapes, count, &o);
        free(shapes);
    } else if (rank == 0) {
        fputs(usage, stderr);
    }
    MPI_Finalize();
    return status;
}
