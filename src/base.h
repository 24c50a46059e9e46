/* SPDX-License-Identifier: MIT
 *
 * What every source includes first. It makes sure of IEEE arithmetic, on which the bits depend, in
 * these sources only: programs that use bnorm may have any flags. Engines often give one set of
 * flags to all of their files. */
#ifndef BNORM_BASE_H
#define BNORM_BASE_H

#if defined(__clang__)
/* No pragma of clang reaches selections, negations and builtin functions, so it has to be refused.
 * Parts of -ffast-math that define no macro show in that clang then refuses this pragma, which else
 * changes nothing. Clang has it for x86, from version 16 on for AArch64, not for 32-bit Arm. */
#pragma clang diagnostic push
#pragma clang diagnostic ignored "-Wignored-pragmas"
#pragma float_control(push)
#pragma float_control(except, on) /* bnorm needs IEEE arithmetic: add -fno-fast-math */
#pragma float_control(pop)
#pragma clang diagnostic pop
#elif defined(__GNUC__) &&                                                                         \
    (defined(__FAST_MATH__) || __FINITE_MATH_ONLY__ || defined(__ASSOCIATIVE_MATH__) ||            \
     defined(__RECIPROCAL_MATH__) || defined(__NO_SIGNED_ZEROS__))
/* The code is then that of a build without these flags, but that comparisons of equality with a NaN
 * may raise the invalid flag. gcc's manual warns of the pragma: without need there is none. It has
 * to come before the intrinsics, which are inlined between functions of the same flags only. */
#pragma GCC optimize("no-fast-math", "no-unsafe-math-optimizations", "no-associative-math",        \
                     "no-reciprocal-math", "no-finite-math-only", "signed-zeros", "trapping-math")
#endif

/* What is still on. */
#if defined(__FAST_MATH__) || (defined(__FINITE_MATH_ONLY__) && __FINITE_MATH_ONLY__) ||           \
    defined(__ASSOCIATIVE_MATH__) || defined(__RECIPROCAL_MATH__) || defined(__NO_SIGNED_ZEROS__)
#error "bnorm needs IEEE arithmetic: compile its sources without -ffast-math and its parts"
#endif
#if defined(__FLT_EVAL_METHOD__) && (__FLT_EVAL_METHOD__ == 2 || __FLT_EVAL_METHOD__ == -1)
#error "bnorm needs arithmetic in float and double, not x87: add -msse2 -mfpmath=sse"
#endif
_Static_assert(sizeof 1.0 == sizeof(double),
               "bnorm needs IEEE arithmetic: add -fno-single-precision-constant");
#if defined(__clang__)
/* -fno-honor-nans alone shows in nothing but that x == x is taken for true, where clang optimizes. */
__attribute__((used)) static void bnorm_refuse_no_honor_nans(float x) {
    if (__builtin_constant_p(x == x))
        __asm__(".error \"bnorm needs IEEE arithmetic: add -fhonor-nans\"");
}
#endif

#include "bnorm.h"

#endif
