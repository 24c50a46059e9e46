/* SPDX-License-Identifier: MIT
 *
 * Flush-to-zero for the calling thread, and back. */
#ifndef BNORM_FP_MODE_H
#define BNORM_FP_MODE_H

#include <stdint.h>

#if defined(__SSE2__)

#include <xmmintrin.h>

typedef unsigned bnorm_fp_mode;

/* MXCSR: FTZ (bit 15) for results, DAZ (bit 6) for operands. */
static inline bnorm_fp_mode bnorm_flush_denormals(void) {
    const bnorm_fp_mode mode = _mm_getcsr();
    _mm_setcsr(mode | 0x8040u);
    return mode;
}

static inline void bnorm_restore_mode(bnorm_fp_mode mode) {
    _mm_setcsr(mode);
}

#elif defined(__aarch64__)

typedef uint64_t bnorm_fp_mode;

/* FPCR: FZ (bit 24) for results and operands. */
static inline bnorm_fp_mode bnorm_flush_denormals(void) {
    bnorm_fp_mode mode;
    __asm__ volatile("mrs %0, fpcr" : "=r"(mode));
    __asm__ volatile("msr fpcr, %0" : : "r"(mode | (UINT64_C(1) << 24)));
    return mode;
}

static inline void bnorm_restore_mode(bnorm_fp_mode mode) {
    __asm__ volatile("msr fpcr, %0" : : "r"(mode));
}

#else

typedef int bnorm_fp_mode;

/* No such mode here. */
static inline bnorm_fp_mode bnorm_flush_denormals(void) {
    return 0;
}

static inline void bnorm_restore_mode(bnorm_fp_mode mode) {
    (void)mode;
}

#endif

#endif
