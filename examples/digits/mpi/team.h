/* SPDX-License-Identifier: MIT
 *
 * A net_team of the ranks of a communicator. Rank r of R has the samples from r*count/R up to
 * (r + 1)*count/R of every batch. */
#ifndef TEAM_H
#define TEAM_H

#include "../net.h"
#include "bnorm_mpi.h"

typedef struct team {
    net_team net; /* for net_join */
    MPI_Comm comm;
    int rank, ranks;
    size_t count; /* samples of the batches that `batch` stands for */
    bnorm_mpi_batch *batch;
    void *workspace;
    size_t workspace_size;
} team;

/* In place: `net` points to *t. A failure of any rank ends the run of all. */
void team_create(team *t, MPI_Comm comm);
void team_destroy(team *t);

/* The first sample of a rank's share. */
size_t team_first(const team *t, int rank, size_t count);

#endif
