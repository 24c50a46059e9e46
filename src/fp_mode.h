/* SPDX-License-Identifier: MIT
 *
 * Flush-to-zero for the calling thread, and back; the same for exceptions, held while kernels
 * compute on padding, which may hold anything. */
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

typedef unsigned bnorm_exceptions;

/* MXCSR: all exceptions masked (bits 7 to 12); their flags are bits 0 to 5. */
static inline bnorm_exceptions bnorm_hold_exceptions(void) {
    const bnorm_exceptions held = _mm_getcsr();
    _mm_setcsr(held | 0x1f80u);
    return held;
}

static inline void bnorm_release_exceptions(bnorm_exceptions held) {
    _mm_setcsr(held);
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

typedef struct bnorm_exceptions {
    uint64_t mode, flags;
} bnorm_exceptions;

/* FPCR: no exception traps (bits 8 to 12 and 15); FPSR has the flags. */
static inline bnorm_exceptions bnorm_hold_exceptions(void) {
    bnorm_exceptions held;
    __asm__ volatile("mrs %0, fpcr" : "=r"(held.mode));
    __asm__ volatile("mrs %0, fpsr" : "=r"(held.flags));
    __asm__ volatile("msr fpcr, %0" : : "r"(held.mode & ~UINT64_C(0x9f00)));
    return held;
}

static inline void bnorm_release_exceptions(bnorm_exceptions held) {
    __asm__ volatile("msr fpsr, %0" : : "r"(held.flags));
    __asm__ volatile("msr fpcr, %0" : : "r"(held.mode));
}

#elif defined(__arm__) && defined(__ARM_FP)

typedef uint32_t bnorm_fp_mode;

/* FPSCR: FZ (bit 24) for results and operands of the VFP; Advanced SIMD flushes without it. */
static inline bnorm_fp_mode bnorm_flush_denormals(void) {
    bnorm_fp_mode mode;
    __asm__ volatile("vmrs %0, fpscr" : "=r"(mode));
    __asm__ volatile("vmsr fpscr, %0" : : "r"(mode | UINT32_C(1) << 24));
    return mode;
}

static inline void bnorm_restore_mode(bnorm_fp_mode mode) {
    __asm__ volatile("vmsr fpscr, %0" : : "r"(mode));
}

typedef uint32_t bnorm_exceptions;

/* FPSCR: no exception traps (bits 8 to 12 and 15); their flags are bits 0 to 4 and 7. */
static inline bnorm_exceptions bnorm_hold_exceptions(void) {
    bnorm_exceptions held;
    __asm__ volatile("vmrs %0, fpscr" : "=r"(held));
    __asm__ volatile("vmsr fpscr, %0" : : "r"(held & ~UINT32_C(0x9f00)));
    return held;
}

static inline void bnorm_release_exceptions(bnorm_exceptions held) {
    __asm__ volatile("vmsr fpscr, %0" : : "r"(held));
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

typedef int bnorm_exceptions;

/* The scalar set alone runs here, which leaves padding alone. */
static inline bnorm_exceptions bnorm_hold_exceptions(void) {
    return 0;
}

static inline void bnorm_release_exceptions(bnorm_exceptions held) {
    (void)held;
}

#endif

#endif
