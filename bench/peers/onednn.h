/* SPDX-License-Identifier: MIT
 *
 * oneDNN is a library that is loaded: PyTorch brings along a oneDNN of its own, maybe of another
 * version, and the two must not see each other's functions. */
#ifndef BNORM_PEERS_ONEDNN_H
#define BNORM_PEERS_ONEDNN_H

#include "contender.h"

/* What onednn.c exports as "peers_onednn_contender". */
typedef struct onednn_contender {
    contender contender;
    char version[32]; /* "2.6.3" */
} onednn_contender;

/* NULL where the program was built without oneDNN: there is no library beside it. */
const onednn_contender *peers_onednn(void);
/* A function that the library or its oneDNN uses; NULL = none. */
void *peers_onednn_symbol(const char *name);

#endif
