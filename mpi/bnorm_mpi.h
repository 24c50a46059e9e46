/* SPDX-License-Identifier: MIT
 *
 * bnorm over MPI: training with the statistics of a batch that is spread over processes
 * ("synchronised" batch norm), to the bits of one process with the whole batch.
 *
 * The conventions of bnorm.h hold, and these:
 *
 *   Ranks        Every rank of the communicator makes the same calls on the same batch in the same
 *                order, as for MPI's own collectives, of which each call here is one: exactly one
 *                MPI_Allgather. A rank whose shard is empty makes them too.
 *   Images       The images of the whole batch are those of rank 0, then those of rank 1, ... as
 *                they lie on the ranks; nothing but statistics is sent or copied.
 *   Bits         y, dx and dresidual of each image, saved and running statistics, dgamma and dbeta
 *                are those of bnorm_forward_train and bnorm_backward over all images in that order,
 *                however many ranks there are and wherever the batch is cut. Layout, gamma, beta, eps,
 *                activation, running statistics and the rest of the options are taken to be equal on
 *                all ranks; strides and exec may differ. (BNORM_DENORMALS_FLUSH is for the tensors
 *                alone here: statistics are merged in the caller's floating-point mode.)
 *   Errors       A rank that refuses its arguments takes part all the same and tells the others. So
 *                a call succeeds on all ranks or fails on all; where it fails, nothing but
 *                workspaces has been written on any. Only two things cannot be told to others: a
 *                call that is not made, or is made with batch NULL, on which the other ranks wait,
 *                as in any collective; and BNORM_MPI_FAILED, where MPI itself gave up: there, end
 *                the run with MPI_Abort. If a process dies, mpiexec ends the others.
 *   Threads      One call at a time on one batch; MPI_THREAD_FUNNELED is enough where only the
 *                thread that called MPI_Init_thread calls these functions. exec->parallel's tasks
 *                never call MPI.
 *   Processes    All run the same version of bnorm and have one byte order.
 */
#ifndef BNORM_MPI_H
#define BNORM_MPI_H

#include <mpi.h>
#include <stddef.h>

#include "bnorm.h"

#ifdef __cplusplus
extern "C" {
#endif

/* ---------------------------------------------------------------------------------------------- */
/* Results */

typedef enum bnorm_mpi_status {
    BNORM_MPI_OK = 0,
    BNORM_MPI_REFUSED,   /* bnorm refuses the arguments of `rank`; `cause` says why */
    BNORM_MPI_MISMATCH,  /* the call of `rank` is not that of the ranks before it: function or c,
                            or hw where its shard is not empty */
    BNORM_MPI_NO_MEMORY, /* bnorm_mpi_batch_create: `rank` has too little */
    BNORM_MPI_FAILED     /* an MPI function failed on this rank, with `mpi_error` */
} bnorm_mpi_status;

/* Zero is success. Where several ranks are to blame, a rank that refuses its own arguments gets its
 * own reason, the others the first of those ranks (in bnorm_mpi_batch_create: one of them). */
typedef struct bnorm_mpi_result {
    bnorm_mpi_status status;
    int rank;           /* in the batch's communicator; 0 on success */
    bnorm_status cause; /* of REFUSED, as the function of bnorm.h would return it; else BNORM_OK */
    int mpi_error;      /* of FAILED; else MPI_SUCCESS */
} bnorm_mpi_result;

enum { BNORM_MPI_MAX_ERROR_STRING = 256 + MPI_MAX_ERROR_STRING };

/* Writes full English sentences that say what happened and what to do, at most size bytes with the
 * closing 0; BNORM_MPI_MAX_ERROR_STRING are enough. Returns text. size 0 is not allowed. May be
 * called until MPI_Finalize. */
const char *bnorm_mpi_strerror(bnorm_mpi_result result, char *text, size_t size);

/* ---------------------------------------------------------------------------------------------- */
/* Batches */

/* How a batch is spread over the ranks of a communicator. Made once and used by all layers and all
 * steps, as long as the number of images on each rank stays what it is. It holds a duplicate of the
 * communicator, so that its messages meet no others, and the memory to receive into: ranks times
 * the size of a message. */
typedef struct bnorm_mpi_batch bnorm_mpi_batch;

/* Collective. n: this rank's images, may be 0. c: the most channels of any layer that will use the
 * batch; the same on all ranks. Every message has the size for c channels, so that also ranks that
 * disagree about a layer understand each other; in a network of very different widths, a batch per
 * width sends fewer bytes. The size is
 *   32 + 16*c*nodes bytes
 * where nodes is that of the rank with most: 1 where every rank has the same power of two of
 * images, at most two per binary digit of its n otherwise.
 *
 * *batch is written on success only.
 *   BNORM_MPI_REFUSED    BNORM_NULL_POINTER: batch is NULL or comm is MPI_COMM_NULL
 *                        BNORM_BAD_SHAPE: c = 0; sizes overflow
 *                        BNORM_UNSUPPORTED: comm is an intercommunicator
 *   BNORM_MPI_MISMATCH   c differs
 *   BNORM_MPI_NO_MEMORY
 * Errors of the communicator given, which is used for one MPI_Comm_dup, go to its own error
 * handler. */
bnorm_mpi_result bnorm_mpi_batch_create(MPI_Comm comm, size_t n, size_t c, bnorm_mpi_batch **batch);

/* Collective; before MPI_Finalize. NULL is allowed. */
void bnorm_mpi_batch_destroy(bnorm_mpi_batch *batch);

/* ---------------------------------------------------------------------------------------------- */
/* Training */

/* Bytes of workspace that this rank needs; op is BNORM_OP_FORWARD_TRAIN or BNORM_OP_BACKWARD. A
 * rank without images needs one too, unless no rank has any. 0 for what the call would refuse. */
size_t bnorm_mpi_workspace(bnorm_op op, const bnorm_shape *shape, const bnorm_mpi_batch *batch);

/* bnorm_forward_train for a shard: shape->n images, the n of the batch on this rank, with
 * shape->c <= the c of the batch. x, y, residual and mask are those of the shard; arrays of c
 * floats are the whole batch's, and every rank gets the same ones. Where shape->n is 0, but not on
 * all ranks, tensors and mask may be NULL and hw is not looked at; the arrays are written as on
 * other ranks. Aliasing as in bnorm_forward_train.
 *
 * Statuses of BNORM_MPI_REFUSED are those of bnorm_forward_train, and
 *   BNORM_BAD_SHAPE     also: n is not this rank's n of the batch, c is more than that of the batch
 *   BNORM_UNSUPPORTED   also: weights, renorm */
bnorm_mpi_result bnorm_mpi_forward_train(const bnorm_shape *shape, bnorm_in x, bnorm_out y,
                                         const bnorm_train *train, bnorm_mpi_batch *batch, void *ws,
                                         size_t ws_size, const bnorm_exec *exec);

/* bnorm_backward for a shard, likewise: x, dy, dx, residual, y, mask and dresidual are those of the
 * shard; dgamma and dbeta are the whole batch's on every rank, so they must not be summed over
 * ranks again. Frozen statistics: dx needs no other rank, but dgamma and dbeta do. */
bnorm_mpi_result bnorm_mpi_backward(const bnorm_shape *shape, bnorm_in x, bnorm_in dy, bnorm_out dx,
                                    const bnorm_grad *grad, bnorm_mpi_batch *batch, void *ws,
                                    size_t ws_size, const bnorm_exec *exec);

#ifdef __cplusplus
}
#endif

#endif
