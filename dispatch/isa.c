/* SPDX-License-Identifier: MIT */
#ifndef _GNU_SOURCE
#define _GNU_SOURCE 1 /* secure_getenv */
#endif
#include "../src/base.h"

#include "isa.h"

#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>

/* The kernel sets, best first. */
static const struct {
    unsigned cpu;
    const bnorm_isa *isa;
} sets[] = {
#define X(cpu, name) {cpu, &bnorm_isa_##name},
    BNORM_SETS(X)
#undef X
};

const bnorm_isa *bnorm_isa_at(size_t i) {
    const unsigned features = bnorm_cpu_features();
    for (size_t k = 0; k < sizeof sets / sizeof sets[0]; k++)
        if ((sets[k].cpu & features) && i-- == 0)
            return sets[k].isa;
    return NULL;
}

const bnorm_isa *bnorm_isa_find(const char *name) {
    const bnorm_isa *isa = NULL;
    for (size_t i = 0; name && (isa = bnorm_isa_at(i)) != NULL; i++)
        if (strcmp(isa->name, name) == 0)
            break;
    return isa;
}

/* A program that runs with more rights than its user has takes no orders from the environment. */
static const char *wanted(void) {
#if defined(__GLIBC__)
    return secure_getenv("BNORM_ISA");
#else
    return getenv("BNORM_ISA");
#endif
}

/* A pure function of CPU and environment: first calls that race all store the same value, so
 * relaxed is enough (what the pointer points to is constant data). */
const bnorm_isa *bnorm_isa_best(void) {
    static _Atomic(const bnorm_isa *) best;
    const bnorm_isa *isa = atomic_load_explicit(&best, memory_order_relaxed);
    if (!isa) {
        isa = bnorm_isa_find(wanted());
        if (!isa)
            isa = bnorm_isa_at(0);
        atomic_store_explicit(&best, isa, memory_order_relaxed);
    }
    return isa;
}

/* SLEEF's scalar functions need fma, which a CPU has that runs the vector set of least needs. */
int bnorm_isa_has_sleef(const bnorm_isa *isa) {
    const unsigned fma = BNORM_HAVE_X86    ? BNORM_CPU_AVX2
                         : BNORM_HAVE_NEON ? BNORM_CPU_NEON
                                           : BNORM_CPU_SCALAR;
    return BNORM_SLEEF && (isa != &bnorm_isa_scalar || (bnorm_cpu_features() & fma));
}

const char *bnorm_isa_name(const bnorm_isa *isa) {
    return (isa ? isa : bnorm_isa_best())->name;
}
