/* SPDX-License-Identifier: MIT
 *
 * The handwritten digits, in batches; and how many of them a network gets right. */
#ifndef DATA_H
#define DATA_H

#include "net.h"

/* The file is a row of 14 forms of about 130 digits from 13 writers. It is cut between two forms,
 * so that the test is on other people's handwriting than the training. */
enum {
    TRAIN = 1157,     /* nine forms to learn from */
    VALIDATION = 258, /* two forms to choose the learning rate by */
    TEST = 382,       /* three forms that choose nothing */
    IMAGES = TRAIN + VALIDATION + TEST,
    BATCH = 32,
    EPOCH = TRAIN / BATCH /* steps */
};

typedef struct image_set {
    const sample *at[TRAIN];
    size_t count;
} image_set;

/* Mirrored: left and right exchanged. Filled by load_images(). */
extern image_set train, validation, test, mirrored_train, mirrored_test;

void load_images(void);

/* Steps through `set` in batches, in a new random order each epoch; images that fill no batch wait
 * for the next. */
typedef struct feed {
    image_set set;
    size_t next;
    uint64_t random;
} feed;

const sample *const *next_batch(feed *f, size_t size);

/* The digit that these NET_CLASSES logits stand for. */
int best_class(const float *logits);

/* Percent of the set that the network gets right when it sees the set in batches of this size. */
double accuracy_in_batches(net *n, const image_set *set, net_stats stats, size_t batch);
/* In batches of BATCH. */
double accuracy(net *n, const image_set *set, net_stats stats);

#endif
