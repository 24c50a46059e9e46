/* SPDX-License-Identifier: MIT */
#include "../src/base.h"

#include "isa.h"

const bnorm_training *bnorm_training_of(const bnorm_isa *isa) {
#define X(cpu, name)                                                                               \
    if (isa == &bnorm_isa_##name)                                                                  \
        return &bnorm_training_##name;
    BNORM_SETS(X)
#undef X
    return isa->training;
}
