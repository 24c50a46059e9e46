/* SPDX-License-Identifier: MIT
 *
 * A small convolutional network, with or without batch norm: eight layers of
 *     convolution 3x3, 16 channels  ->  batch norm + ReLU
 * that shrink the 8x8 image to 1x1, and a linear layer to the 10 digits. Tensors are NHWC. */
#ifndef NET_H
#define NET_H

#include <stddef.h>
#include <stdint.h>
#include "bnorm.h"

enum {
    NET_SIDE = 8,
    NET_PIXELS = NET_SIDE * NET_SIDE,
    NET_CLASSES = 10,
    NET_LAYERS = 8,
    NET_CHANNELS = 16,
    NET_KERNEL = 9, /* 3x3 positions */
    NET_MAX_BATCH = 128,
    NET_MAX_WEIGHTS = NET_KERNEL * NET_CHANNELS * NET_CHANNELS,
    NET_MAX_TENSOR = NET_MAX_BATCH * NET_PIXELS * NET_CHANNELS
};

typedef struct sample {
    float pixels[NET_PIXELS]; /* 0 to 1 */
    int digit;
} sample;

/* Which statistics normalize: those of the batch at hand (training mode), or the running ones
 * (inference mode; in training, "frozen"). */
typedef enum net_stats { NET_BATCH_STATS, NET_RUNNING_STATS } net_stats;

typedef struct net net;

/* Processes that train one network together, each on its share of every batch. Whatever is summed
 * over a batch is summed in the order of its samples, as by one process, so that the weights are
 * the same to the bit. net.c calls these in the same order in all processes; mpi/team.c has them
 * for MPI. */
typedef struct net_team {
    void *self;
    /* This process's share of a batch of `count` samples: *own of them, from *first on. */
    void (*share)(void *self, size_t count, size_t *first, size_t *own);
    /* Batch norm with the statistics of the whole batch, on this process's share. */
    void (*forward_train)(void *self, const bnorm_shape *shape, bnorm_in x, bnorm_out y,
                          const bnorm_train *train, const bnorm_exec *exec);
    void (*backward)(void *self, const bnorm_shape *shape, bnorm_in x, bnorm_in dy, bnorm_out dx,
                     const bnorm_grad *grad, const bnorm_exec *exec);
    /* A sum goes from process to process, and each adds its share to what it takes: the sum of the
     * shares before, or for the first one what sum holds. */
    void (*take)(void *self, float *sum, size_t count);
    void (*pass)(void *self, const float *sum, size_t count);
    /* The last process's sum, which is the whole one, becomes that of all. */
    void (*spread)(void *self, float *sum, size_t count);
} net_team;

/* batch_norm 0: convolution + bias + ReLU instead. running_rate: the weight of the newest batch in
 * the running statistics, what PyTorch calls the momentum of BatchNorm2d. exec must outlive the
 * network. */
net *net_create(int batch_norm, double running_rate, uint64_t seed, const bnorm_exec *exec);
net *net_clone(const net *n);
void net_destroy(net *n);

/* From now on net_train computes only a share of each batch, which all processes of the team are
 * given. The team must outlive the network. */
void net_join(net *n, const net_team *team);

/* One step of SGD with momentum 0.9 on up to NET_MAX_BATCH samples. */
void net_train(net *n, const sample *const *batch, size_t whole, net_stats stats,
               float learning_rate);

/* The logits of up to NET_MAX_BATCH samples: count rows of NET_CLASSES, valid until the next call.
 */
const float *net_predict(net *n, const sample *const *batch, size_t count, net_stats stats);

/* Folds every batch norm into the convolution before it; the result is a network without batch
 * norm. */
void net_fold(net *n);

/* The next number of a pseudorandom sequence, 0 to 2^31 - 1. */
uint32_t net_random(uint64_t *state);

/* FNV-1a over the bits of everything learned, continuing from `hash`; start with NET_HASH. */
#define NET_HASH 0xcbf29ce484222325u
uint64_t net_hash(const net *n, uint64_t hash);

#endif
