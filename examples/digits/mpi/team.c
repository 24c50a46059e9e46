/* SPDX-License-Identifier: MIT */
#include "team.h"

#include <stdio.h>
#include <stdlib.h>

static void check(const team *t, bnorm_mpi_result result) {
    if (result.status == BNORM_MPI_OK)
        return;
    char text[BNORM_MPI_MAX_ERROR_STRING];
    fprintf(stderr, "digits-mpi: rank %d: %s\n", t->rank,
            bnorm_mpi_strerror(result, text, sizeof(text)));
    MPI_Abort(t->comm, EXIT_FAILURE);
}

size_t team_first(const team *t, int rank, size_t count) {
    return count * (size_t)rank / (size_t)t->ranks;
}

static void share(void *self, size_t count, size_t *first, size_t *own) {
    team *t = self;
    *first = team_first(t, t->rank, count);
    *own = team_first(t, t->rank + 1, count) - *first;
    if (t->batch && t->count == count)
        return;
    bnorm_mpi_batch_destroy(t->batch);
    t->batch = NULL;
    t->count = count;
    check(t, bnorm_mpi_batch_create(t->comm, *own, NET_CHANNELS, &t->batch));
}

static void *workspace(team *t, bnorm_op op, const bnorm_shape *shape) {
    const size_t size = bnorm_mpi_workspace(op, shape, t->batch);
    if (size > t->workspace_size) {
        free(t->workspace);
        /* Without memory the workspace is NULL, which bnorm_mpi reports on all ranks. */
        t->workspace = malloc(size);
        t->workspace_size = size;
    }
    return t->workspace;
}

static void forward_train(void *self, const bnorm_shape *shape, bnorm_in x, bnorm_out y,
                          const bnorm_train *train, const bnorm_exec *exec) {
    team *t = self;
    void *ws = workspace(t, BNORM_OP_FORWARD_TRAIN, shape);
    check(t, bnorm_mpi_forward_train(shape, x, y, train, t->batch, ws, t->workspace_size, exec));
}

static void backward(void *self, const bnorm_shape *shape, bnorm_in x, bnorm_in dy, bnorm_out dx,
                     const bnorm_grad *grad, const bnorm_exec *exec) {
    team *t = self;
    void *ws = workspace(t, BNORM_OP_BACKWARD, shape);
    check(t, bnorm_mpi_backward(shape, x, dy, dx, grad, t->batch, ws, t->workspace_size, exec));
}

static void take(void *self, float *sum, size_t count) {
    const team *t = self;
    if (t->rank > 0)
        MPI_Recv(sum, (int)count, MPI_FLOAT, t->rank - 1, 0, t->comm, MPI_STATUS_IGNORE);
}

static void pass(void *self, const float *sum, size_t count) {
    const team *t = self;
    if (t->rank + 1 < t->ranks)
        MPI_Send(sum, (int)count, MPI_FLOAT, t->rank + 1, 0, t->comm);
}

static void spread(void *self, float *sum, size_t count) {
    const team *t = self;
    MPI_Bcast(sum, (int)count, MPI_FLOAT, t->ranks - 1, t->comm);
}

void team_create(team *t, MPI_Comm comm) {
    *t = (team){.net = {t, share, forward_train, backward, take, pass, spread}, .comm = comm};
    MPI_Comm_rank(comm, &t->rank);
    MPI_Comm_size(comm, &t->ranks);
}

void team_destroy(team *t) {
    bnorm_mpi_batch_destroy(t->batch);
    free(t->workspace);
}
