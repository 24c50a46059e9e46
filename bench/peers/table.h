/* SPDX-License-Identifier: MIT
 *
 * The report over all lines. */
#ifndef BNORM_PEERS_TABLE_H
#define BNORM_PEERS_TABLE_H

#include <stdio.h>

#include "measure.h"

enum peers_mode {
    PEERS_INFERENCE,
    PEERS_IN_PLACE,
    PEERS_RELU,
    PEERS_RESIDUAL_RELU,
    PEERS_TRAINING,
    PEERS_TRAINING_RELU,
    PEERS_BACKWARD,
    PEERS_MODES
};

/* Of blocks, which PyTorch does not have, no table counts lines together with others'. */
enum peers_layout { PEERS_NCHW, PEERS_NHWC, PEERS_NCHW8C, PEERS_NCHW16C, PEERS_LAYOUTS };

/* By bytes of x. */
enum peers_class { PEERS_SMALL, PEERS_MIDDLE, PEERS_LARGE, PEERS_CLASSES };

enum peers_class peers_class_of(size_t elements);

/* Measured in one setting. */
typedef struct peers_record {
    enum peers_mode mode;
    enum peers_layout layout;
    enum peers_cache cache;
    size_t threads;
    size_t n, c, hw;
    const char *size; /* "32x64x56x56" */
    int tiny;         /* the call overhead's shape, which no other table counts */
    peers_times times;
    /* How often a line with a peer ahead was measured again, and how often one was ahead again. */
    size_t again, behind_again;
} peers_record;

/* Is one of the peers that count ahead? */
int peers_is_behind(const peers_times *times);

void peers_print_report(const peers_record *records, size_t count, int details);
void peers_write_json(FILE *file, const char *cpu, const peers_record *records, size_t count);

#endif
