/* SPDX-License-Identifier: MIT
 *
 * What every source includes first. It makes sure of IEEE arithmetic, on which the bits depend, in
 * these sources only: programs that use bnorm may have any flags. Engines often give one set of
 * flags to all of their files. And it names the symbols. */
#ifndef BNORM_BASE_H
#define BNORM_BASE_H

#if defined(_MSC_VER) && !defined(__clang__)
#error "bnorm's sources need gcc or clang; with Visual Studio compile them with clang-cl"
#endif

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

/* All functions and tables that sources share are hidden: where a program has other ones of the same
 * names, as of another copy of bnorm in a host and its plugin, each copy calls its own, whatever the
 * flags. Of the shared library, BNORM_API exports those of bnorm.h. */
#pragma GCC visibility push(hidden)
#include "bnorm.h"
#pragma GCC visibility pop

/* What is shared between sources, as the functions of bnorm.h. */
#if defined(BNORM_PREFIX)
#define bnorm_check_act             BNORM_NAME(bnorm_check_act)
#define bnorm_check_apply           BNORM_NAME(bnorm_check_apply)
#define bnorm_check_backward        BNORM_NAME(bnorm_check_backward)
#define bnorm_check_eps             BNORM_NAME(bnorm_check_eps)
#define bnorm_check_exec            BNORM_NAME(bnorm_check_exec)
#define bnorm_check_float_shape     BNORM_NAME(bnorm_check_float_shape)
#define bnorm_check_forward         BNORM_NAME(bnorm_check_forward)
#define bnorm_check_mask            BNORM_NAME(bnorm_check_mask)
#define bnorm_check_renorm          BNORM_NAME(bnorm_check_renorm)
#define bnorm_check_running         BNORM_NAME(bnorm_check_running)
#define bnorm_check_shape           BNORM_NAME(bnorm_check_shape)
#define bnorm_check_strides         BNORM_NAME(bnorm_check_strides)
#define bnorm_check_train           BNORM_NAME(bnorm_check_train)
#define bnorm_check_uses            BNORM_NAME(bnorm_check_uses)
#define bnorm_check_variance        BNORM_NAME(bnorm_check_variance)
#define bnorm_check_weight_values   BNORM_NAME(bnorm_check_weight_values)
#define bnorm_check_weights         BNORM_NAME(bnorm_check_weights)
#define bnorm_copy_element          BNORM_NAME(bnorm_copy_element)
#define bnorm_cpu_features          BNORM_NAME(bnorm_cpu_features)
#define bnorm_cpu_limits            BNORM_NAME(bnorm_cpu_limits)
#define bnorm_cpu_x86               BNORM_NAME(bnorm_cpu_x86)
#define bnorm_dense_tensor          BNORM_NAME(bnorm_dense_tensor)
#define bnorm_end_mask              BNORM_NAME(bnorm_end_mask)
#define bnorm_fit_view              BNORM_NAME(bnorm_fit_view)
#define bnorm_hints                 BNORM_NAME(bnorm_hints)
#define bnorm_isa_avx2              BNORM_NAME(bnorm_isa_avx2)
#define bnorm_isa_avx512            BNORM_NAME(bnorm_isa_avx512)
#define bnorm_isa_has_sleef         BNORM_NAME(bnorm_isa_has_sleef)
#define bnorm_isa_neon              BNORM_NAME(bnorm_isa_neon)
#define bnorm_isa_scalar            BNORM_NAME(bnorm_isa_scalar)
#define bnorm_training_avx2         BNORM_NAME(bnorm_training_avx2)
#define bnorm_training_avx512       BNORM_NAME(bnorm_training_avx512)
#define bnorm_training_neon         BNORM_NAME(bnorm_training_neon)
#define bnorm_training_of           BNORM_NAME(bnorm_training_of)
#define bnorm_training_scalar       BNORM_NAME(bnorm_training_scalar)
#define bnorm_keep_running          BNORM_NAME(bnorm_keep_running)
#define bnorm_lay_out_backward      BNORM_NAME(bnorm_lay_out_backward)
#define bnorm_lay_out_forward       BNORM_NAME(bnorm_lay_out_forward)
#define bnorm_limits_x86            BNORM_NAME(bnorm_limits_x86)
#define bnorm_map_part              BNORM_NAME(bnorm_map_part)
#define bnorm_map_whole             BNORM_NAME(bnorm_map_whole)
#define bnorm_partials_of           BNORM_NAME(bnorm_partials_of)
#define bnorm_parts                 BNORM_NAME(bnorm_parts)
#define bnorm_plan_backward         BNORM_NAME(bnorm_plan_backward)
#define bnorm_plan_forward          BNORM_NAME(bnorm_plan_forward)
#define bnorm_plan_map              BNORM_NAME(bnorm_plan_map)
#define bnorm_reads_broadcast       BNORM_NAME(bnorm_reads_broadcast)
#define bnorm_reduce_moments        BNORM_NAME(bnorm_reduce_moments)
#define bnorm_reduce_sums           BNORM_NAME(bnorm_reduce_sums)
#define bnorm_renorm_backward       BNORM_NAME(bnorm_renorm_backward)
#define bnorm_renorm_dgamma         BNORM_NAME(bnorm_renorm_dgamma)
#define bnorm_renorm_forward        BNORM_NAME(bnorm_renorm_forward)
#define bnorm_run                   BNORM_NAME(bnorm_run)
#define bnorm_run_backward          BNORM_NAME(bnorm_run_backward)
#define bnorm_run_forward           BNORM_NAME(bnorm_run_forward)
#define bnorm_run_map               BNORM_NAME(bnorm_run_map)
#define bnorm_run_map_pass          BNORM_NAME(bnorm_run_map_pass)
#define bnorm_run_pass              BNORM_NAME(bnorm_run_pass)
#define bnorm_running_divisor       BNORM_NAME(bnorm_running_divisor)
#define bnorm_set_bits              BNORM_NAME(bnorm_set_bits)
#define bnorm_tables_of             BNORM_NAME(bnorm_tables_of)
#define bnorm_take_part             BNORM_NAME(bnorm_take_part)
#define bnorm_take_samples          BNORM_NAME(bnorm_take_samples)
#define bnorm_uses_running          BNORM_NAME(bnorm_uses_running)
#define bnorm_uses_train            BNORM_NAME(bnorm_uses_train)
#define bnorm_uses_workspace        BNORM_NAME(bnorm_uses_workspace)
#define bnorm_view_of               BNORM_NAME(bnorm_view_of)
#define bnorm_weigh                 BNORM_NAME(bnorm_weigh)
#define bnorm_weighted_coefficients BNORM_NAME(bnorm_weighted_coefficients)
#define bnorm_weighted_map          BNORM_NAME(bnorm_weighted_map)
#define bnorm_weighted_merge        BNORM_NAME(bnorm_weighted_merge)
#define bnorm_weighted_moments_of   BNORM_NAME(bnorm_weighted_moments_of)
#define bnorm_workspace_need        BNORM_NAME(bnorm_workspace_need)
#define bnorm_writes_mask           BNORM_NAME(bnorm_writes_mask)
#define bnorm_writes_tensor         BNORM_NAME(bnorm_writes_tensor)
#else
#define BNORM_NAME(name) name
#endif

#endif
