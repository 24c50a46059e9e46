/* SPDX-License-Identifier: MIT
 *
 * Synchronised batch norm: bnorm.h's batches in pieces, with one MPI_Allgather between collecting a
 * shard's piece and merging all pieces in the order of ranks. */
#include "bnorm_mpi.h"

#include <limits.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* Messages are counted in words: an int, MPI's type of counts, reaches eight times as far. */
#define WORD sizeof(uint64_t)

/* What each rank sends in front of its nodes. */
typedef struct header {
    uint64_t refusal; /* a bnorm_status; whatever follows is then not looked at */
    uint64_t op, c, hw;
} header;

struct bnorm_mpi_batch {
    MPI_Comm comm;
    int rank, ranks;
    size_t c;
    size_t words;    /* of one rank's message */
    uint64_t *slots; /* the messages of all ranks */
    size_t first[];  /* the first image of each rank, and behind them the number of all images */
};

static size_t images_of(const bnorm_mpi_batch *batch, int rank) {
    return batch->first[rank + 1] - batch->first[rank];
}

static size_t all_images(const bnorm_mpi_batch *batch) {
    return batch->first[batch->ranks];
}

static uint64_t *slot_of(const bnorm_mpi_batch *batch, int rank) {
    return batch->slots + (size_t)rank * batch->words;
}

/* ---------------------------------------------------------------------------------------------- */
/* Results */

static const bnorm_mpi_result success = {BNORM_MPI_OK, 0, BNORM_OK, MPI_SUCCESS};

static bnorm_mpi_result failed(int rank, int mpi_error) {
    return (bnorm_mpi_result){BNORM_MPI_FAILED, rank, BNORM_OK, mpi_error};
}

static bnorm_mpi_result refused(int rank, bnorm_status cause) {
    return (bnorm_mpi_result){BNORM_MPI_REFUSED, rank, cause, MPI_SUCCESS};
}

static bnorm_mpi_result problem(bnorm_mpi_status status, int rank) {
    return (bnorm_mpi_result){status, rank, BNORM_OK, MPI_SUCCESS};
}

const char *bnorm_mpi_strerror(bnorm_mpi_result result, char *text, size_t size) {
    char mpi[MPI_MAX_ERROR_STRING] = "no text";
    int length;
    switch (result.status) {
    case BNORM_MPI_OK:
        snprintf(text, size, "Success.");
        return text;
    case BNORM_MPI_REFUSED:
        snprintf(text, size,
                 "Rank %d was given arguments that bnorm refuses: %s Correct them there; no rank "
                 "has written anything.",
                 result.rank, bnorm_strerror(result.cause));
        return text;
    case BNORM_MPI_MISMATCH:
        snprintf(text, size,
                 "Rank %d makes another call than the ranks before it. Make the same calls in the "
                 "same order on all ranks, with the same c and hw; no rank has written anything.",
                 result.rank);
        return text;
    case BNORM_MPI_NO_MEMORY:
        snprintf(text, size,
                 "Rank %d has too little memory for the messages of all ranks. Give the batch "
                 "fewer channels or use fewer ranks.",
                 result.rank);
        return text;
    case BNORM_MPI_FAILED:
        MPI_Error_string(result.mpi_error, mpi, &length);
        snprintf(text, size, "MPI failed on rank %d: %s. End the run with MPI_Abort.", result.rank,
                 mpi);
        return text;
    }
    snprintf(text, size, "%d is not a status of bnorm_mpi.", (int)result.status);
    return text;
}

/* ---------------------------------------------------------------------------------------------- */
/* Batches */

/* The same result on all ranks where any has none of its own. */
static bnorm_mpi_result agree(const MPI_Comm comm, int rank, bnorm_mpi_result own) {
    struct {
        int code, rank;
    } mine = {(int)own.status << 8 | (int)own.cause, rank}, worst;
    const int error = MPI_Allreduce(&mine, &worst, 1, MPI_2INT, MPI_MAXLOC, comm);
    if (error)
        return failed(rank, error);
    if (own.status || !worst.code)
        return own;
    own = problem((bnorm_mpi_status)(worst.code >> 8), worst.rank);
    own.cause = (bnorm_status)(worst.code & 0xff);
    return own;
}

/* Sets first[] and c from what each rank says: n and c. */
static bnorm_mpi_result gather_sizes(bnorm_mpi_batch *batch, size_t n, size_t c) {
    /* The sizes arrive where the messages will. */
    uint64_t *const own = batch->slots + 2 * (size_t)batch->rank;
    own[0] = n;
    own[1] = c;
    const int error = MPI_Allgather(MPI_IN_PLACE, 0, MPI_DATATYPE_NULL, batch->slots, 2,
                                    MPI_UINT64_T, batch->comm);
    if (error)
        return failed(batch->rank, error);
    for (int r = 0; r < batch->ranks; r++) {
        const uint64_t *const sizes = batch->slots + 2 * (size_t)r;
        if (sizes[1] != batch->slots[1])
            return problem(BNORM_MPI_MISMATCH, r);
        if (sizes[0] > SIZE_MAX - batch->first[r])
            return refused(r, BNORM_BAD_SHAPE);
        batch->first[r + 1] = batch->first[r] + sizes[0];
    }
    batch->c = c;
    return success;
}

/* The size of a message; all ranks come to the same. */
static bnorm_mpi_result size_message(bnorm_mpi_batch *batch) {
    size_t bytes = 0; /* per channel */
    for (int r = 0; r < batch->ranks; r++) {
        const bnorm_partial piece = {
            .c = 1, .first = batch->first[r], .n = images_of(batch, r), .hw = 1};
        const size_t used = bnorm_partial_used(&piece);
        bytes = used > bytes ? used : bytes;
    }
    if (bytes && batch->c > ((size_t)INT_MAX * WORD - sizeof(header)) / bytes)
        return refused(0, BNORM_BAD_SHAPE);
    batch->words = (sizeof(header) + bytes * batch->c) / WORD;
    return success;
}

static bnorm_mpi_result fill_batch(bnorm_mpi_batch *batch, size_t n, size_t c) {
    bnorm_mpi_result result = gather_sizes(batch, n, c);
    if (!result.status)
        result = size_message(batch);
    if (result.status)
        return result;
    const size_t bytes = batch->words * WORD, ranks = (size_t)batch->ranks;
    free(batch->slots);
    batch->slots = bytes <= SIZE_MAX / ranks ? calloc(ranks, bytes) : NULL;
    const bnorm_mpi_status memory = batch->slots ? BNORM_MPI_OK : BNORM_MPI_NO_MEMORY;
    return agree(batch->comm, batch->rank, problem(memory, memory ? batch->rank : 0));
}

bnorm_mpi_result bnorm_mpi_batch_create(MPI_Comm comm, size_t n, size_t c,
                                        bnorm_mpi_batch **batch) {
    int rank = 0, ranks = 0, inter = 0, error;
    if (comm == MPI_COMM_NULL)
        return refused(0, BNORM_NULL_POINTER);
    if ((error = MPI_Comm_test_inter(comm, &inter)) || (error = MPI_Comm_rank(comm, &rank)) ||
        (error = MPI_Comm_size(comm, &ranks)))
        return failed(rank, error);
    if (inter)
        return refused(rank, BNORM_UNSUPPORTED);
    MPI_Comm own;
    if ((error = MPI_Comm_dup(comm, &own)))
        return failed(rank, error);
    MPI_Comm_set_errhandler(own, MPI_ERRORS_RETURN);

    bnorm_mpi_batch *const made = malloc(sizeof *made + ((size_t)ranks + 1) * sizeof(size_t));
    uint64_t *const sizes = malloc(2 * (size_t)ranks * WORD);
    bnorm_mpi_result result = success;
    if (!batch)
        result = refused(rank, BNORM_NULL_POINTER);
    else if (c == 0)
        result = refused(rank, BNORM_BAD_SHAPE);
    else if (!made || !sizes)
        result = problem(BNORM_MPI_NO_MEMORY, rank);
    result = agree(own, rank, result);
    if (result.status) {
        free(made);
        free(sizes);
        MPI_Comm_free(&own);
        return result;
    }
    *made = (bnorm_mpi_batch){.comm = own, .rank = rank, .ranks = ranks, .slots = sizes};
    made->first[0] = 0;
    result = fill_batch(made, n, c);
    if (result.status)
        bnorm_mpi_batch_destroy(made);
    else
        *batch = made;
    return result;
}

void bnorm_mpi_batch_destroy(bnorm_mpi_batch *batch) {
    if (!batch)
        return;
    MPI_Comm_free(&batch->comm);
    free(batch->slots);
    free(batch);
}

/* ---------------------------------------------------------------------------------------------- */
/* Workspace */

/* The parts of a workspace. */
typedef struct space {
    double *nodes; /* of this rank's piece, then of the whole batch */
    size_t nodes_size;
    float *coefficients; /* 4*c */
    char *ws;            /* of bnorm's own call */
    size_t ws_size;
    size_t size; /* of all, with room to align; 0 = none is needed, or a bad shape */
} space;

enum { ALIGNMENT = 64 };

static size_t align(size_t value) {
    return (value + ALIGNMENT - 1) / ALIGNMENT * ALIGNMENT;
}

/* A shard with one image and position, for the checks of a rank without images. */
static bnorm_shape probe_of(const bnorm_shape *shape) {
    return (bnorm_shape){.n = 1, .c = shape->c, .hw = 1};
}

/* No rank has anything, as far as this one knows: it has images and sees them empty. */
static int is_whole_empty(const bnorm_shape *shape, const bnorm_mpi_batch *batch) {
    return all_images(batch) == 0 || (shape->n && shape->hw == 0);
}

static space space_of(bnorm_op op, const bnorm_shape *shape, const bnorm_mpi_batch *batch,
                      void *ws) {
    const space none = {0};
    if (is_whole_empty(shape, batch))
        return none;
    const bnorm_shape probe = probe_of(shape);
    const bnorm_shape *const real = shape->n ? shape : &probe;
    size_t own = bnorm_workspace(op, real);
    if (op == BNORM_OP_FORWARD_TRAIN) {
        const size_t collect = bnorm_workspace(BNORM_OP_MOMENTS, real);
        own = collect > own ? collect : own;
    }
    const size_t nodes = bnorm_partial_size(shape->c, all_images(batch));
    const size_t coefficients = 5 * shape->c * sizeof(float); /* far less than nodes' overflow */
    if (own == 0 || nodes == 0 || nodes > SIZE_MAX / 4 || own > SIZE_MAX / 4)
        return none;
    char *const begin = (char *)ws + (ws ? align((uintptr_t)ws) - (uintptr_t)ws : 0);
    const size_t ws_at = align(nodes) + align(coefficients);
    if (!ws)
        return (space){.size = ALIGNMENT - 1 + ws_at + own};
    return (space){.nodes = (double *)(void *)begin,
                   .nodes_size = nodes,
                   .coefficients = (float *)(void *)(begin + align(nodes)),
                   .ws = begin + ws_at,
                   .ws_size = own,
                   .size = ALIGNMENT - 1 + ws_at + own};
}

size_t bnorm_mpi_workspace(bnorm_op op, const bnorm_shape *shape, const bnorm_mpi_batch *batch) {
    if (!shape || !batch || (op != BNORM_OP_FORWARD_TRAIN && op != BNORM_OP_BACKWARD) ||
        shape->c > batch->c || shape->n != images_of(batch, batch->rank))
        return 0;
    return space_of(op, shape, batch, NULL).size;
}

/* ---------------------------------------------------------------------------------------------- */
/* Checks: what any later step could refuse is refused before the collective */

/* One call, forward or backward. */
typedef struct call {
    bnorm_job job; /* the call that one process would make of this shard */
    bnorm_mpi_batch *batch;
    void *memory;
    size_t memory_size;
    const bnorm_exec *exec;
    space space;
} call;

/* Is any byte of the workspace one of those at begin? */
static int in_workspace(const call *c, const void *begin, size_t bytes) {
    const uintptr_t from = (uintptr_t)begin, ws = (uintptr_t)c->memory;
    return begin && from < ws + c->space.size && ws < from + bytes;
}

/* The same of a tensor, which has been checked. */
static int tensor_in_workspace(const call *c, const void *data, size_t run_stride,
                               size_t image_stride) {
    const bnorm_shape *const shape = c->job.shape;
    if (shape->n == 0 || shape->hw == 0)
        return 0;
    const size_t block = shape->c_block ? shape->c_block : 1;
    const size_t blocks = (shape->c - 1) / block + 1;
    const size_t runs = shape->layout == BNORM_NHWC ? shape->hw : blocks;
    const size_t length = shape->layout == BNORM_NHWC ? shape->c : shape->hw * block;
    const size_t run = run_stride ? run_stride : length;
    const size_t image = image_stride ? image_stride : run * runs;
    const size_t span = (shape->n - 1) * image + (runs - 1) * run + length;
    return in_workspace(c, data, span * (shape->dtype == BNORM_F32 ? 4 : 2));
}

static int input_in_workspace(const call *c, bnorm_in in) {
    return tensor_in_workspace(c, in.data, in.run_stride, in.image_stride);
}

static int output_in_workspace(const call *c, bnorm_out out) {
    return tensor_in_workspace(c, out.data, out.run_stride, out.image_stride);
}

/* bnorm's own check knows only its own part of the workspace. */
static int workspace_overlaps(const call *c) {
    const bnorm_train *const train = c->job.train;
    const bnorm_grad *const grad = c->job.grad;
    const bnorm_shape *const shape = c->job.shape;
    const size_t floats = shape->c * sizeof(float), mask = bnorm_mask_size(shape);
    if (input_in_workspace(c, c->job.x) || input_in_workspace(c, c->job.dy) ||
        output_in_workspace(c, c->job.out))
        return 1;
    if (train) {
        const float *const arrays[] = {train->gamma,       train->beta,      train->running.mean,
                                       train->running.var, train->save_mean, train->save_invstd,
                                       train->save_mean_lo};
        for (size_t i = 0; i < sizeof arrays / sizeof arrays[0]; i++)
            if (in_workspace(c, arrays[i], floats))
                return 1;
        return input_in_workspace(c, train->residual) || in_workspace(c, train->mask, mask);
    }
    const float *const arrays[] = {grad->gamma,  grad->beta,  grad->save_mean,   grad->save_invstd,
                                   grad->dgamma, grad->dbeta, grad->save_mean_lo};
    for (size_t i = 0; i < sizeof arrays / sizeof arrays[0]; i++)
        if (in_workspace(c, arrays[i], floats))
            return 1;
    return input_in_workspace(c, grad->residual) || input_in_workspace(c, grad->y) ||
           output_in_workspace(c, grad->dresidual) || in_workspace(c, grad->mask, mask);
}

/* What bnorm says to the arguments of this shard, and to the arrays of a rank without images.
 * bnorm_run_jobs checks all jobs before it runs one, so nothing runs in front of a bad one. */
static bnorm_status check_jobs(const call *c) {
    bnorm_job jobs[3] = {c->job};
    size_t count = 1, refuses = 0;
    bnorm_shape shape;
    bnorm_train train;
    bnorm_grad grad;
    if (c->job.shape->n == 0 && c->space.size) {
        bnorm_job *const probe = &jobs[count++];
        float *const one = c->space.coefficients; /* c floats, never read */
        shape = probe_of(c->job.shape);
        *probe = c->job;
        probe->shape = &shape;
        probe->x = probe->dy = (bnorm_in){.data = one};
        probe->out = (bnorm_out){.data = one};
        if (c->job.train) {
            train = *c->job.train;
            train.residual = (bnorm_in){0};
            train.mask = NULL;
            probe->train = &train;
        } else {
            grad = *c->job.grad;
            grad.residual = grad.y = (bnorm_in){0};
            grad.dresidual = (bnorm_out){0};
            grad.mask = NULL;
            probe->grad = &grad;
        }
    }
    const bnorm_job bad = {0};
    jobs[count] = bad;
    const bnorm_status status = bnorm_run_jobs(jobs, count + 1, &refuses, c->exec);
    return refuses == count ? BNORM_OK : status;
}

static bnorm_status check_call(call *c) {
    const bnorm_shape *const shape = c->job.shape;
    const bnorm_train *const train = c->job.train;
    const bnorm_grad *const grad = c->job.grad;
    if (!shape || (!train && !grad))
        return BNORM_NULL_POINTER;
    if (shape->c > c->batch->c || shape->n != images_of(c->batch, c->batch->rank))
        return BNORM_BAD_SHAPE;
    const size_t need = bnorm_mpi_workspace(c->job.op, shape, c->batch);
    if (need) {
        if (!c->memory)
            return BNORM_NULL_POINTER;
        if (c->memory_size < need)
            return BNORM_WORKSPACE_TOO_SMALL;
        c->space = space_of(c->job.op, shape, c->batch, c->memory);
        c->job.ws = c->space.ws;
        c->job.ws_size = c->space.ws_size;
    }
    const bnorm_status status = check_jobs(c);
    if (status)
        return status;
    if (!need && !is_whole_empty(shape, c->batch))
        return BNORM_BAD_SHAPE; /* bnorm_partial_size() overflows */
    if (train && (train->weights.values || train->renorm))
        return BNORM_UNSUPPORTED;
    if (grad && ((grad->weights.values && !grad->frozen) || grad->renorm_r || grad->renorm_d))
        return BNORM_UNSUPPORTED;
    return need && workspace_overlaps(c) ? BNORM_BAD_OVERLAP : BNORM_OK;
}

/* ---------------------------------------------------------------------------------------------- */
/* The collective */

static header header_of(const bnorm_mpi_batch *batch, int rank) {
    header h;
    memcpy(&h, slot_of(batch, rank), sizeof h);
    return h;
}

static double *nodes_of(const bnorm_mpi_batch *batch, int rank) {
    return (double *)(void *)(slot_of(batch, rank) + sizeof(header) / WORD);
}

/* Has every rank made this call? */
static bnorm_mpi_result compare_headers(const bnorm_mpi_batch *batch) {
    const header first = header_of(batch, 0), own = header_of(batch, batch->rank);
    if (own.refusal)
        return refused(batch->rank, (bnorm_status)own.refusal);
    for (int r = 0; r < batch->ranks; r++) {
        const header h = header_of(batch, r);
        if (h.refusal)
            return refused(r, (bnorm_status)h.refusal);
    }
    int with_images = -1; /* the first such rank */
    for (int r = 0; r < batch->ranks; r++) {
        const header h = header_of(batch, r);
        if (with_images < 0 && images_of(batch, r))
            with_images = r;
        if (h.op != first.op || h.c != first.c ||
            (images_of(batch, r) && h.hw != header_of(batch, with_images).hw))
            return problem(BNORM_MPI_MISMATCH, r);
    }
    return success;
}

/* Sends this rank's piece, or its refusal, and gets those of all. */
static bnorm_mpi_result exchange(const call *c, bnorm_status own, const bnorm_partial *piece) {
    bnorm_mpi_batch *const batch = c->batch;
    header h = {.refusal = (uint64_t)own};
    if (!own) {
        h.op = (uint64_t)c->job.op;
        h.c = c->job.shape->c;
        h.hw = c->job.shape->hw;
        if (piece->n)
            memcpy(nodes_of(batch, batch->rank), piece->nodes, bnorm_partial_used(piece));
    }
    memcpy(slot_of(batch, batch->rank), &h, sizeof h);
    const int error = MPI_Allgather(MPI_IN_PLACE, 0, MPI_DATATYPE_NULL, batch->slots,
                                    (int)batch->words, MPI_UINT64_T, batch->comm);
    return error ? failed(batch->rank, error) : compare_headers(batch);
}

/* *whole = the pieces of all ranks, in their order. */
static bnorm_status merge_all(const bnorm_mpi_batch *batch, bnorm_partial *whole) {
    bnorm_status status = BNORM_OK;
    whole->first = whole->n = 0;
    for (int r = 0; r < batch->ranks && !status; r++) {
        const bnorm_partial piece = {.op = whole->op,
                                     .c = whole->c,
                                     .hw = (size_t)header_of(batch, r).hw,
                                     .first = batch->first[r],
                                     .n = images_of(batch, r),
                                     .nodes = nodes_of(batch, r),
                                     .size = (batch->words * WORD) - sizeof(header)};
        status = bnorm_partial_merge(whole, &piece);
    }
    return status;
}

/* ---------------------------------------------------------------------------------------------- */
/* Training */

/* Both functions up to the sums of the whole batch. The piece is empty if the batch is. */
static bnorm_mpi_result sum_up(call *c, bnorm_op op, bnorm_partial *piece) {
    const bnorm_job *const job = &c->job;
    bnorm_status status = check_call(c);
    *piece = (bnorm_partial){.op = op};
    if (!status && c->space.size) {
        piece->c = job->shape->c;
        piece->first = c->batch->first[c->batch->rank];
        piece->nodes = c->space.nodes;
        piece->size = c->space.nodes_size;
        if (job->shape->n)
            status = op == BNORM_OP_MOMENTS
                         ? bnorm_partial_collect(job->shape, job->x, piece, job->ws, job->ws_size,
                                                 c->exec)
                         : bnorm_partial_collect_grad(job->shape, job->x, job->dy, job->grad, piece,
                                                      job->ws, job->ws_size, c->exec);
    }
    const bnorm_mpi_result result = exchange(c, status, piece);
    if (result.status)
        return result;
    /* Every rank with images sees the same hw. */
    int empty = all_images(c->batch) == 0;
    for (int r = 0; r < c->batch->ranks && !empty; r++)
        empty = images_of(c->batch, r) && header_of(c->batch, r).hw == 0;
    if (empty) {
        piece->n = 0;
        return success;
    }
    status = merge_all(c->batch, piece);
    return status ? refused(c->batch->rank, status) : success;
}

static bnorm_mpi_result done(const call *c, bnorm_status status) {
    return status ? refused(c->batch->rank, status) : success;
}

bnorm_mpi_result bnorm_mpi_forward_train(const bnorm_shape *shape, bnorm_in x, bnorm_out y,
                                         const bnorm_train *train, bnorm_mpi_batch *batch, void *ws,
                                         size_t ws_size, const bnorm_exec *exec) {
    if (!batch)
        return refused(0, BNORM_NULL_POINTER);
    call c = {.job = {.op = BNORM_OP_FORWARD_TRAIN, .shape = shape, .x = x, .out = y},
              .batch = batch,
              .memory = ws,
              .memory_size = ws_size,
              .exec = exec};
    c.job.train = train;
    bnorm_partial piece;
    const bnorm_mpi_result result = sum_up(&c, BNORM_OP_MOMENTS, &piece);
    if (result.status || piece.n == 0)
        return result;
    float *const coefficients = c.space.coefficients;
    bnorm_status status = bnorm_partial_finish(&piece, train, coefficients);
    if (!status) {
        const bnorm_affine affine = {.center = coefficients,
                                     .scale = coefficients + shape->c,
                                     .shift = coefficients + 2 * shape->c,
                                     .residual = train->residual,
                                     .act = train->act,
                                     .mask = train->mask};
        status = bnorm_apply(shape, x, y, &affine, exec);
    }
    return done(&c, status);
}

bnorm_mpi_result bnorm_mpi_backward(const bnorm_shape *shape, bnorm_in x, bnorm_in dy, bnorm_out dx,
                                    const bnorm_grad *grad, bnorm_mpi_batch *batch, void *ws,
                                    size_t ws_size, const bnorm_exec *exec) {
    if (!batch)
        return refused(0, BNORM_NULL_POINTER);
    call c = {.job = {.op = BNORM_OP_BACKWARD, .shape = shape, .x = x, .dy = dy, .out = dx},
              .batch = batch,
              .memory = ws,
              .memory_size = ws_size,
              .exec = exec};
    c.job.grad = grad;
    bnorm_partial piece;
    const bnorm_mpi_result result = sum_up(&c, BNORM_OP_BACKWARD, &piece);
    if (result.status)
        return result;
    if (piece.n == 0) { /* nothing but zeros for dgamma and dbeta, as of an empty batch */
        const bnorm_shape empty = {.c = shape->c};
        return done(&c, bnorm_backward(&empty, x, dy, dx, grad, NULL, 0, exec));
    }
    float *const coefficients = c.space.coefficients;
    bnorm_status status = bnorm_partial_finish_grad(&piece, grad, coefficients);
    if (!status)
        status = bnorm_partial_apply_grad(shape, x, dy, dx, grad, coefficients, exec);
    return done(&c, status);
}
