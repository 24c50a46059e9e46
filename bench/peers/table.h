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

extern const char *const peers_modes[PEERS_MODES];

/* Measured in one setting. */
typedef struct peers_record {
    enum peers_mode mode;
    bnorm_layout layout;
    enum peers_cache cache;
    size_t threads;
    size_t n, c, hw;
    const char *size; /* "32x64x56x56" */
    int tiny;         /* the call overhead's shape, which no other table counts */
    peers_times times;
} peers_record;

void peers_print_report(const peers_record *records, size_t count);
void peers_write_json(FILE *file, const char *cpu, const peers_record *records, size_t count);

#endif
