/* SPDX-License-Identifier: MIT
 *
 * Trains the network of net.c with every batch spread over the processes of an MPI run, and then
 * once more in one process alone: the weights must be the same to the bit. */
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "../data.h"
#include "team.h"

typedef struct settings {
    size_t steps, batch;
    uint64_t seed;
    float rate;
} settings;

enum { REPORTS = 4 };

/* Trains a new network; t NULL = alone. Rank 0 says how it gets on. */
static net *train_net(const settings *s, const team *t) {
    static const bnorm_exec exec = {0};
    net *n = net_create(1, 0.1, s->seed, &exec);
    feed f = {.set = train, .random = s->seed};
    if (t)
        net_join(n, &t->net);
    for (size_t step = 1; step <= s->steps; step++) {
        net_train(n, next_batch(&f, s->batch), s->batch, NET_BATCH_STATS, s->rate);
        if (t && t->rank == 0 && step % ((s->steps + REPORTS - 1) / REPORTS) == 0) {
            printf("    %5zu        %8.1f       %8.1f\n", step,
                   accuracy(n, &train, NET_RUNNING_STATS), accuracy(n, &test, NET_RUNNING_STATS));
            fflush(stdout);
        }
    }
    return n;
}

/* 0 after a message where the weights are not those that all others have, and one process alone. */
static int compare(const settings *s, const team *t, const net *n) {
    const uint64_t hash = net_hash(n, NET_HASH);
    uint64_t least, most, alone = 0;
    MPI_Allreduce(&hash, &least, 1, MPI_UINT64_T, MPI_MIN, t->comm);
    MPI_Allreduce(&hash, &most, 1, MPI_UINT64_T, MPI_MAX, t->comm);
    if (t->rank == 0) {
        net *one = train_net(s, NULL);
        alone = net_hash(one, NET_HASH);
        printf("\nhash of all weights: %016" PRIx64 "\n"
               "in one process:      %016" PRIx64 "\n",
               hash, alone);
        net_destroy(one);
    }
    MPI_Bcast(&alone, 1, MPI_UINT64_T, 0, t->comm);
    const int same = least == most && least == alone;
    if (!same && t->rank == 0)
        fprintf(stderr, "digits-mpi: the weights differ %s; run make test-mpi\n",
                least == most ? "from those of one process" : "between processes");
    return same;
}

static int run(const settings *s) {
    team t;
    team_create(&t, MPI_COMM_WORLD);
    if (t.rank == 0) {
        printf("Batches of %zu digits over %d process%s:", s->batch, t.ranks,
               t.ranks == 1 ? "" : "es");
        for (int r = 0; r < t.ranks; r++)
            printf(" %zu", team_first(&t, r + 1, s->batch) - team_first(&t, r, s->batch));
        printf("\n\n    steps   training images   test images   (percent right)\n");
        fflush(stdout);
    }
    net *n = train_net(s, &t);
    const int same = compare(s, &t, n);
    net_destroy(n);
    team_destroy(&t);
    return same ? EXIT_SUCCESS : EXIT_FAILURE;
}

static const char usage[] = "usage: mpiexec -n PROCESSES digits-mpi [--steps N] [--batch N] "
                            "[--seed N]\n"
                            "  --steps N   of training (108)\n"
                            "  --batch N   1 to 128 images, of all processes together (32)\n"
                            "  --seed N    other initial weights and order of images (1)\n";

/* 0 where the arguments are not understood. */
static int parse(settings *s, int argc, char **argv) {
    for (int i = 1; i < argc; i += 2) {
        char *end = NULL;
        const unsigned long long value = i + 1 < argc ? strtoull(argv[i + 1], &end, 10) : 0;
        if (!end || end == argv[i + 1] || *end)
            return 0;
        if (strcmp(argv[i], "--steps") == 0)
            s->steps = value;
        else if (strcmp(argv[i], "--batch") == 0)
            s->batch = value;
        else if (strcmp(argv[i], "--seed") == 0)
            s->seed = value;
        else
            return 0;
    }
    return s->steps > 0 && s->batch > 0 && s->batch <= NET_MAX_BATCH;
}

int main(int argc, char **argv) {
    settings s = {.steps = 3 * EPOCH, .batch = BATCH, .seed = 1, .rate = 0.01f};
    int provided, rank, status = 2;
    MPI_Init_thread(&argc, &argv, MPI_THREAD_FUNNELED, &provided);
    MPI_Comm_rank(MPI_COMM_WORLD, &rank);
    load_images();
    if (parse(&s, argc, argv))
        status = run(&s);
    else if (rank == 0)
        fputs(usage, stderr);
    MPI_Finalize();
    return status;
}
