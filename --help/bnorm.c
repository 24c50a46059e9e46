/* SPDX-License-Identifier: MIT
 *
 * bnorm 0.1.0 as one file, which its `make amalgamation` wrote. Compile with `cc -c bnorm.c`, with
 * -DBNORM_SLEEF=1 for the activations that need exp.
 *
 * MIT License
 *
 * Copyright (c) 2026 bnorm contributors
 *
 * Permission is hereby granted, free of charge, to any person obtaining a copy
 * of this software and associated documentation files (the "Software"), to deal
 * in the Software without restriction, including without limitation the rights
 * to use, copy, modify, merge, publish, distribute, sublicense, and/or sell
 * copies of the Software, and to permit persons to whom the Software is
 * furnished to do so, subject to the following conditions:
 *
 * The above copyright notice and this permission notice shall be included in all
 * copies or substantial portions of the Software.
 *
 * THE SOFTWARE IS PROVIDED "AS IS", WITHOUT WARRANTY OF ANY KIND, EXPRESS OR
 * IMPLIED, INCLUDING BUT NOT LIMITED TO THE WARRANTIES OF MERCHANTABILITY,
 * FITNESS FOR A PARTICULAR PURPOSE AND NONINFRINGEMENT. IN NO EVENT SHALL THE
 * AUTHORS OR COPYRIGHT HOLDERS BE LIABLE FOR ANY CLAIM, DAMAGES OR OTHER
 * LIABILITY, WHETHER IN AN ACTION OF CONTRACT, TORT OR OTHERWISE, ARISING FROM,
 * OUT OF OR IN CONNECTION WITH THE SOFTWARE OR THE USE OR OTHER DEALINGS IN THE
 * SOFTWARE.
 */
#ifndef _GNU_SOURCE
#define _GNU_SOURCE 1 /* secure_getenv */
#endif
#if defined(__clang__)
#pragma clang diagnostic ignored "-Wunused-function"
#endif

#include "bnorm.h"

/* ----------------------------------------------------------------------------------- src/base.h */

/*
 * What every source includes first. It makes sure of IEEE arithmetic, on which the bits depend, in
 * these sources only: programs that use bnorm may have any flags. Engines often give one set of
 * flags to all of their files. And it names the symbols. */
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
#endif

#endif

/* ------------------------------------------------------------------------------- dispatch/cpu.h */

/*
 * What this CPU and its operating system can run, one bit per shipped kernel set, and from which
 * sizes on it gains by what can be done about its caches. */
#ifndef BNORM_DISPATCH_CPU_H
#define BNORM_DISPATCH_CPU_H

/* Which kernel sets this build contains. */
#if defined(__x86_64__) || defined(_M_X64)
#define BNORM_HAVE_X86 1
#else
#define BNORM_HAVE_X86 0
#endif
#if defined(__aarch64__) && !defined(__AARCH64EB__)
#define BNORM_HAVE_NEON 1
#else
#define BNORM_HAVE_NEON 0
#endif

enum {
    BNORM_CPU_SCALAR = 1 << 0, /* always */
    BNORM_CPU_AVX2 = 1 << 1,   /* AVX2, FMA, F16C; the OS saves ymm */
    BNORM_CPU_AVX512 = 1 << 2, /* AVX-512 F, BW, DQ, VL; the OS saves zmm and the mask registers */
    BNORM_CPU_NEON = 1 << 3    /* Advanced SIMD: part of every AArch64 CPU */
};

/* A sum of these. */
unsigned bnorm_cpu_features(void);

/* The same of an x86 CPU, by what it answers: ECX of CPUID leaf 1, EBX of leaf 7, both 0 where there
 * is no such leaf, and XCR0, the registers that the operating system saves; 0 where it does not say
 * so. */
unsigned bnorm_cpu_x86(unsigned leaf1_ecx, unsigned leaf7_ebx, unsigned xcr0);

/* MiB of all tensors of a call together from which on elementwise passes do something about the
 * caches. */
typedef struct bnorm_limits {
    unsigned prefetch;          /* above: lines are asked for ahead */
    unsigned prefetch_in_place; /* the same where an output is an input */
    unsigned stream;            /* from there on outputs may bypass the caches; 0 = never */
    unsigned strips;            /* KiB of all tensors up to which strips of rows pay */
} bnorm_limits;

/* No limit of prefetch is lower, on any CPU. */
#define BNORM_LEAST_PREFETCH 2u

bnorm_limits bnorm_cpu_limits(void);

/* EAX, EBX, ECX and EDX of a CPUID leaf, 0 where there is no such leaf. */
typedef void bnorm_cpuid(unsigned leaf, unsigned subleaf, unsigned answer[4]);

/* Those of an x86 CPU, by what it answers. */
bnorm_limits bnorm_limits_x86(bnorm_cpuid *ask);

#endif

/* ------------------------------------------------------------------------------- dispatch/isa.h */

/*
 * The one list of kernels. Prototypes, the table type, every kernel set's table, the tests and the
 * benches come from it.
 *
 * Kernels are leaf functions: no checks, no allocation, no globals; they touch exactly the elements
 * named by their arguments. Strides are element counts between runs. Two families:
 *   rows   NHWC: a run is a row of c channels, per-channel parameters are indexed by the position
 *          in the run. A block of channels in NCHW is rows of c_block channels
 *   span   NCHW: a run is a plane of len pixels, per-channel parameters are indexed by the run
 * Elements are converted to float as they are loaded, and from float as they are stored. */
#ifndef BNORM_DISPATCH_ISA_H
#define BNORM_DISPATCH_ISA_H

#include <stddef.h>

/* 1 = link with SLEEF, for the activations from BNORM_ACT_SIGMOID on. */
#ifndef BNORM_SLEEF
#define BNORM_SLEEF 0
#endif

/* Where the argument v of the activation comes from in backward. */
enum bnorm_pre {
    BNORM_PRE_NONE = 0, /* not needed: g = dy */
    BNORM_PRE_X,        /* v = fma(x - center, scale, shift) */
    BNORM_PRE_RESIDUAL, /* the same + argument */
    BNORM_PRE_Y,        /* v = argument: the forward's y stands in for v */
    BNORM_PRE_MASK      /* v = 1 where the bit is set, else 0 */
};

/* What kernels do about the caches; changes nothing but the time. NEON's ignore it.
 * */
enum bnorm_hint {
    BNORM_FETCH_IN = 1,  /* ask for lines of the inputs ahead of their use */
    BNORM_FETCH_OUT = 2, /* and for lines of the outputs */
    BNORM_BYPASS = 4,    /* store whole lines past the caches; not for outputs that are inputs */
    BNORM_STRIPS = 8     /* rows may be taken a strip of channels at a time */
};

/* A tensor, from the check of a call to the kernels. Positions in it are counted along four axes,
 * whatever its layout: element (image, group, row, lane) is
 *   data[image*image_stride + group*group_stride + row*row_stride + lane]
 * Of NHWC, rows are positions and lanes channels; of NCHW, groups are channels and lanes positions;
 * of blocked tensors, groups are blocks of channels, rows positions and lanes a block's channels.
 * (N, C) data is one image, whose rows are samples. */
typedef struct bnorm_tensor {
    void *data; /* NULL = absent; inputs are never written through it */
    size_t image_stride, group_stride, row_stride; /* in elements */
    bnorm_dtype type;
    int same_lanes;    /* not 0: a row has one element, which stands for all lanes. Kernels never
                          see such a tensor, only written out */
    bnorm_quant quant; /* S8 and U8; complete */
} bnorm_tensor;

/* Bits of elements, bit n of an array being (bits[n/8] >> n%8) & 1: that of an element is at `at` +
 * its offset by these strides. Bits of other elements that share a byte may belong to other
 * threads. */
typedef struct bnorm_bits {
    unsigned char *bits; /* NULL = none */
    size_t at, image_stride, group_stride, row_stride;
} bnorm_bits;

/* What an elementwise kernel and the sums of backward take.
 *   apply_*  out = act(fma(x - center, scale, shift) + argument)
 * and with g = dy*act'(v):
 *   sums_*   sum(g) and sum(g*(x - center)) in double; invstd says how large x - center is
 *   dx_*     dresidual = g
 *            out = fma((x - center)*invstd, slope, fma(g, scale, offset))
 *            out = g*scale where slope is NULL (frozen statistics)
 * over `images` images of `groups` groups of `rows` rows of `lanes` elements. Parameters are indexed
 * by the channel: by group*lanes + lane in *_rows, by the group in *_span, where rows is 1. */
typedef struct bnorm_map_args {
    size_t images, groups, rows, lanes;
    /* *_rows: the first `valid` lanes have parameters, apply_* and dx_* write 0 to those behind
     * them. Fewer than `lanes` only where lanes is at most 32 and groups 1. */
    size_t valid;
    bnorm_tensor x, dy;
    bnorm_tensor argument; /* residual; or y, where `pre` says so; absent = none */
    bnorm_tensor out;      /* y or dx; may be absent in dx_* */
    bnorm_tensor dresidual;
    bnorm_bits mask; /* written by apply_*, for RELU, CLAMP and LEAKY_RELU; read by others */
    enum bnorm_pre pre;
    bnorm_act act;
    unsigned hints;      /* sum of enum bnorm_hint */
    const float *center; /* NULL in apply_* = no subtraction */
    const float *scale, *shift, *invstd, *slope, *offset;
} bnorm_map_args;

/* A block to reduce: rows of `len` elements, or planes of `len`, at most BNORM_BLOCK_SPAN unless of
 * F32, `stride` apart. */
typedef struct bnorm_block_args {
    const void *x;
    bnorm_dtype type;
    size_t runs, len, stride;
    size_t valid;   /* rows only: results are wanted of the first `valid` elements of a row */
    unsigned hints; /* of enum bnorm_hint BNORM_FETCH_IN */
} bnorm_block_args;

/* Partial results of every block of images [first, first + n): two tables, in which block b of
 * channel i is b*stride + i. They are merged where they are: afterwards the whole subtrees of these
 * images (bnorm_subtree in src/order.h), sum and M2 or two sums, are at their first blocks. */
typedef struct bnorm_partials {
    double *entries[2];
    size_t stride;
    size_t first, n;
    size_t leaf;       /* images that have one block together, at most; else 1 */
    size_t per_image;  /* blocks of an image; 1 for leaves */
    double size, last; /* values per block of an image, and in the last one of each */
    double hw;         /* values of an image */
} bnorm_partials;

/* Statistics of two neighbouring pieces of the batch, of n[0] and n[1] values per channel: the
 * first becomes that of both. */
typedef struct bnorm_pair_args {
    double n[2];
    double *sum, *m2;
    const double *next_sum, *next_m2;
} bnorm_pair_args;

/* What training derives from the merged statistics, with
 *   high, low = mean as the sum of two floats
 *   variance  = m2/n
 *   invstd    = 1/sqrt(variance + eps), 0 where variance + eps = 0
 * All arrays are indexed by the channel. */
typedef struct bnorm_coefficient_args {
    const double *mean, *m2;
    double n, eps;
    const float *gamma, *beta; /* NULL = 1 and 0 */
    /* high, gamma*invstd and beta - low*scale; scale NULL = neither these nor save_* are wanted */
    float *center, *scale, *shift;
    /* high, low, invstd, variance; NULL = not wanted */
    float *save_mean, *save_mean_lo, *save_invstd, *save_var;
    /* new = (1 - rate)*running + rate*batch, of mean and m2/divisor. new NULL = not wanted;
     * running is not read where rate is 1, and may be new. */
    const float *running_mean, *running_var;
    float *new_mean, *new_var;
    double rate, divisor;
} bnorm_coefficient_args;

/* scale = gamma*invstd, shift = beta - mean_lo*scale, as in forward. */
typedef struct bnorm_scale_args {
    const float *gamma, *beta, *mean_lo; /* NULL = 1, 0 and 0 */
    const float *invstd;
    float *scale, *shift;
} bnorm_scale_args;

/* What backward derives from its sums:
 *   dgamma = (sum_gx - mean_lo*sum_g)*invstd
 *   dbeta  = sum_g
 *   slope  = -gamma*invstd*(dgamma/n)
 *   offset = -gamma*invstd*(sum_g/n) - mean_lo*invstd*slope
 * One value (n = 1) is its own mean, so that neither its y depends on it nor v on the scale: scale,
 * slope and offset become 0 where scale is finite. */
typedef struct bnorm_grad_coefficient_args {
    const double *sum_g, *sum_gx;
    double n;
    const float *gamma, *mean_lo; /* NULL = 1 and 0 */
    const float *invstd;
    float *dgamma, *dbeta;         /* NULL = not wanted */
    float *scale, *slope, *offset; /* slope NULL = none of these is wanted */
} bnorm_grad_coefficient_args;

/* The kernels of a set are in two tables, so that a program which only infers is linked without those
 * of training where sections that nothing refers to are dropped (-ffunction-sections
 * -fdata-sections, -Wl,--gc-sections).
 *
 * Kernels that take `first` and `c` work on channels [first, first + c).
 *
 * The reduction order of docs/numerics.md is part of these kernels' contract: outputs are equal to
 * the bit on every set. `chains` is the number of interleaved partial sums per channel, a power of
 * two (see bnorm_chains in src/order.h). */
#define BNORM_INFERENCE_KERNELS(X)                                                                 \
    X(apply_rows, (const bnorm_map_args *a))                                                       \
    X(apply_span, (const bnorm_map_args *a))
#define BNORM_TRAINING_KERNELS(X)                                                                  \
    /* One block of rows: per channel sum(x) and sum((x - sum/rows)^2). */                         \
    X(moments_rows, (const bnorm_block_args *a, size_t chains, double *sum, double *m2))           \
    /* One block of each plane: 32 chains. */                                                      \
    X(moments_span, (const bnorm_block_args *a, double *sum, double *m2))                          \
    /* The same for up to BNORM_LEAF rows, a power of two: merged pair by pair, each an image. */  \
    X(moments_tree, (const bnorm_block_args *a, double *sum, double *m2))                          \
    /* Merge blocks along the tree; a NaN in m2 makes the mean NaN. NULL: only subtrees. */        \
    X(merge, (const bnorm_partials *p, size_t first, size_t c, double *mean, double *m2))          \
    X(merge_pair, (const bnorm_pair_args *a, size_t c))                                            \
    X(coefficients, (const bnorm_coefficient_args *a, size_t first, size_t c))                     \
    X(sums_rows, (const bnorm_map_args *a, size_t chains, double *sum_g, double *sum_gx))          \
    X(sums_span, (const bnorm_map_args *a, double *sum_g, double *sum_gx))                         \
    /* As moments_tree. */                                                                         \
    X(sums_tree, (const bnorm_map_args *a, double *sum_g, double *sum_gx))                         \
    /* Add the sums of blocks, in the same order as merge. */                                      \
    X(add_blocks,                                                                                  \
      (const bnorm_partials *p, size_t first, size_t c, double *sum_g, double *sum_gx))            \
    X(scale_shift, (const bnorm_scale_args *a, size_t c))                                          \
    X(grad_coefficients, (const bnorm_grad_coefficient_args *a, size_t first, size_t c))           \
    X(dx_rows, (const bnorm_map_args *a))                                                          \
    X(dx_span, (const bnorm_map_args *a))

#define BNORM_KERNELS(X)                                                                           \
    BNORM_INFERENCE_KERNELS(X)                                                                     \
    BNORM_TRAINING_KERNELS(X)

#define BNORM_MEMBER(kernel, args) void(*kernel) args;
typedef struct bnorm_training {
    BNORM_TRAINING_KERNELS(BNORM_MEMBER)
} bnorm_training;
struct bnorm_isa {
    const char *name;
    const bnorm_training
        *training; /* of sets that the library does not have; see bnorm_training_of */
    BNORM_INFERENCE_KERNELS(BNORM_MEMBER)
};
#undef BNORM_MEMBER

/* The kernel sets, one per ISA folder. */
extern const struct bnorm_isa bnorm_isa_scalar, bnorm_isa_avx2, bnorm_isa_avx512, bnorm_isa_neon;
extern const bnorm_training bnorm_training_scalar, bnorm_training_avx2, bnorm_training_avx512,
    bnorm_training_neon;

/* The kernels of training of a set. */
const bnorm_training *bnorm_training_of(const bnorm_isa *isa);

/* Whether the set has the activations from BNORM_ACT_SIGMOID on. */
int bnorm_isa_has_sleef(const bnorm_isa *isa);

#endif

/* ------------------------------------------------------------------------------ src/avx2/avx2.c */

#include <stdint.h>
#include <float.h>
#include <math.h>
#include <string.h>
#define add_fours_of_rows avx2_add_fours_of_rows
#define add_other_rows avx2_add_other_rows
#define add_planes avx2_add_planes
#define add_rows avx2_add_rows
#define add_rows_dy_bf16 avx2_add_rows_dy_bf16
#define add_rows_dy_f16 avx2_add_rows_dy_f16
#define add_rows_dy_f32 avx2_add_rows_dy_f32
#define add_rows_limited_mask avx2_add_rows_limited_mask
#define add_rows_limited_residual avx2_add_rows_limited_residual
#define add_rows_limited_x avx2_add_rows_limited_x
#define add_rows_limited_y avx2_add_rows_limited_y
#define add_rows_squares_bf16 avx2_add_rows_squares_bf16
#define add_rows_squares_f16 avx2_add_rows_squares_f16
#define add_rows_squares_f32 avx2_add_rows_squares_f32
#define are_short_rows avx2_are_short_rows
#define backward_any_rows avx2_backward_any_rows
#define backward_bf16_planes avx2_backward_bf16_planes
#define backward_bf16_rows avx2_backward_bf16_rows
#define backward_f16_planes avx2_backward_f16_planes
#define backward_f16_rows avx2_backward_f16_rows
#define backward_frozen_planes avx2_backward_frozen_planes
#define backward_frozen_rows avx2_backward_frozen_rows
#define backward_identity_planes avx2_backward_identity_planes
#define backward_identity_rows avx2_backward_identity_rows
#define backward_relu_planes avx2_backward_relu_planes
#define backward_relu_rows avx2_backward_relu_rows
#define block_rows avx2_block_rows
#define bnorm_bits_double avx2_bnorm_bits_double
#define bnorm_block avx2_bnorm_block
#define bnorm_block_at avx2_bnorm_block_at
#define bnorm_block_rows avx2_bnorm_block_rows
#define bnorm_blocks avx2_bnorm_blocks
#define bnorm_blocks_of avx2_bnorm_blocks_of
#define bnorm_ceil_div avx2_bnorm_ceil_div
#define bnorm_chains avx2_bnorm_chains
#define bnorm_channel_of avx2_bnorm_channel_of
#define bnorm_check_float_shape avx2_bnorm_check_float_shape
#define bnorm_check_shape avx2_bnorm_check_shape
#define bnorm_check_strides avx2_bnorm_check_strides
#define bnorm_counts_groups avx2_bnorm_counts_groups
#define bnorm_dense_tensor avx2_bnorm_dense_tensor
#define bnorm_double_bits avx2_bnorm_double_bits
#define bnorm_exact_product avx2_bnorm_exact_product
#define bnorm_exact_sum avx2_bnorm_exact_sum
#define bnorm_first_position avx2_bnorm_first_position
#define bnorm_fit_view avx2_bnorm_fit_view
#define bnorm_fma avx2_bnorm_fma
#define bnorm_fma_rare avx2_bnorm_fma_rare
#define bnorm_fmaf avx2_bnorm_fmaf
#define bnorm_is_empty avx2_bnorm_is_empty
#define bnorm_mantissa avx2_bnorm_mantissa
#define bnorm_min avx2_bnorm_min
#define bnorm_move_to avx2_bnorm_move_to
#define bnorm_odd_sum avx2_bnorm_odd_sum
#define bnorm_offset_of avx2_bnorm_offset_of
#define bnorm_part avx2_bnorm_part
#define bnorm_part_of avx2_bnorm_part_of
#define bnorm_places avx2_bnorm_places
#define bnorm_positions avx2_bnorm_positions
#define bnorm_power_of_2 avx2_bnorm_power_of_2
#define bnorm_samples avx2_bnorm_samples
#define bnorm_set_bits avx2_bnorm_set_bits
#define bnorm_size_of avx2_bnorm_size_of
#define bnorm_slices avx2_bnorm_slices
#define bnorm_some_positions avx2_bnorm_some_positions
#define bnorm_some_slices avx2_bnorm_some_slices
#define bnorm_stored_exponent avx2_bnorm_stored_exponent
#define bnorm_subtree avx2_bnorm_subtree
#define bnorm_subtrees avx2_bnorm_subtrees
#define bnorm_sum avx2_bnorm_sum
#define bnorm_take_samples avx2_bnorm_take_samples
#define bnorm_unit avx2_bnorm_unit
#define bnorm_values_of avx2_bnorm_values_of
#define bnorm_view avx2_bnorm_view
#define bnorm_view_of avx2_bnorm_view_of
#define bnorm_whole avx2_bnorm_whole
#define chain_rows avx2_chain_rows
#define clear_rows avx2_clear_rows
#define forward_any_planes avx2_forward_any_planes
#define forward_any_rows avx2_forward_any_rows
#define forward_bf16_planes avx2_forward_bf16_planes
#define forward_bf16_rows avx2_forward_bf16_rows
#define forward_clamp_held avx2_forward_clamp_held
#define forward_clamp_planes avx2_forward_clamp_planes
#define forward_clamp_rows avx2_forward_clamp_rows
#define forward_f16_planes avx2_forward_f16_planes
#define forward_f16_rows avx2_forward_f16_rows
#define forward_identity_held avx2_forward_identity_held
#define forward_identity_planes avx2_forward_identity_planes
#define forward_identity_rows avx2_forward_identity_rows
#define forward_relu_held avx2_forward_relu_held
#define forward_relu_planes avx2_forward_relu_planes
#define forward_relu_rows avx2_forward_relu_rows
#define join_rows avx2_join_rows
#define leaf_rows avx2_leaf_rows
#define load_bf16_lanes avx2_load_bf16_lanes
#define load_d_lanes avx2_load_d_lanes
#define load_f16_lanes avx2_load_f16_lanes
#define load_rows avx2_load_rows
#define map_all_planes avx2_map_all_planes
#define map_all_rows avx2_map_all_rows
#define map_held avx2_map_held
#define map_planes avx2_map_planes
#define map_rows avx2_map_rows
#define map_small_planes avx2_map_small_planes
#define map_whole_rows avx2_map_whole_rows
#define reduce_rows avx2_reduce_rows
#define sample_planes avx2_sample_planes
#define sample_rows avx2_sample_rows
#define staged_rows avx2_staged_rows
#define store_bf16_lanes avx2_store_bf16_lanes
#define store_d_lanes avx2_store_d_lanes
#define store_f16_lanes avx2_store_f16_lanes
#define sum_planes avx2_sum_planes
#define sum_planes_dy_bf16 avx2_sum_planes_dy_bf16
#define sum_planes_dy_f16 avx2_sum_planes_dy_f16
#define sum_planes_dy_f32 avx2_sum_planes_dy_f32
#define sum_planes_limited_mask avx2_sum_planes_limited_mask
#define sum_planes_limited_residual avx2_sum_planes_limited_residual
#define sum_planes_limited_x avx2_sum_planes_limited_x
#define sum_planes_limited_y avx2_sum_planes_limited_y
#define sum_planes_squares_bf16 avx2_sum_planes_squares_bf16
#define sum_planes_squares_f16 avx2_sum_planes_squares_f16
#define sum_planes_squares_f32 avx2_sum_planes_squares_f32
#define sum_rows avx2_sum_rows
#define sum_staged_planes avx2_sum_staged_planes
#define vec_four_bf16 avx2_vec_four_bf16
#define vec_four_f16 avx2_vec_four_f16
#define vec_load_bf16 avx2_vec_load_bf16
#define vec_load_d avx2_vec_load_d
#define vec_load_d_n avx2_vec_load_d_n
#define vec_load_f16 avx2_vec_load_f16
#define vec_load_fours avx2_vec_load_fours
#define vec_load_n avx2_vec_load_n
#define vec_load_s8 avx2_vec_load_s8
#define vec_load_u8 avx2_vec_load_u8
#define vec_round_bf16 avx2_vec_round_bf16
#define vec_store_8 avx2_vec_store_8
#define vec_store_8_4 avx2_vec_store_8_4
#define vec_store_bf16 avx2_vec_store_bf16
#define vec_store_bf16_2 avx2_vec_store_bf16_2
#define vec_store_d avx2_vec_store_d
#define vec_store_d_n avx2_vec_store_d_n
#define vec_store_f16 avx2_vec_store_f16
#define vec_store_n avx2_vec_store_n
#define widen_rows avx2_widen_rows
/* SPDX-License-Identifier: MIT
 *
 * The AVX2 kernel set. The target is chosen here, so that no build needs special flags. */

#if BNORM_HAVE_X86

#include <immintrin.h>
#include <stdint.h>
#include <string.h>

#if defined(__clang__)
#pragma clang attribute push(__attribute__((target("avx2,fma,f16c,prfchw"))), apply_to = function)
#else
#pragma GCC push_options
#pragma GCC target("avx2,fma,f16c,prfchw")
#endif

/* SPDX-License-Identifier: MIT
 *
 * The vec_* primitives for AVX2 and FMA: 8 floats or 4 doubles. See src/kernels/kernels.h for their
 * meaning. */
#define VEC_F 8 /* floats per vector */
#define VEC_D 4 /* doubles per vector */

typedef __m256 avx2_vec_f;
typedef __m256d avx2_vec_d;
typedef __m128 avx2_four_floats;

/* A mask with the first n of 8 or 4 lanes set is a window into these. */
static const int vec_window_f[16] = {-1, -1, -1, -1, -1, -1, -1, -1};
static const long long vec_window_d[8] = {-1, -1, -1, -1};

static inline __m256i avx2_vec_mask_f(size_t n) {
    return _mm256_loadu_si256((const __m256i *)(const void *)(vec_window_f + 8 - n));
}
static inline __m256i avx2_vec_mask_d(size_t n) {
    return _mm256_loadu_si256((const __m256i *)(const void *)(vec_window_d + 4 - n));
}
static inline __m128i vec_mask_half(size_t n) {
    return _mm_loadu_si128((const __m128i *)(const void *)(vec_window_f + 8 - n));
}

static inline avx2_vec_f avx2_vec_load(const float *p) {
    return _mm256_loadu_ps(p);
}
static inline avx2_vec_f vec_load_n(const float *p, size_t n) {
    return _mm256_maskload_ps(p, avx2_vec_mask_f(n));
}
static inline void avx2_vec_store(float *p, avx2_vec_f v) {
    _mm256_storeu_ps(p, v);
}
static inline void vec_store_n(float *p, avx2_vec_f v, size_t n) {
    _mm256_maskstore_ps(p, avx2_vec_mask_f(n), v);
}
static inline void avx2_vec_bypass(float *p, avx2_vec_f v) {
    _mm256_stream_ps(p, v);
}
static inline void avx2_vec_fence(void) {
    _mm_sfence();
}
static inline void avx2_vec_fetch(const float *p) {
    __builtin_prefetch(p, 0, 3);
}
static inline void avx2_vec_fetch_out(const float *p) {
    __builtin_prefetch(p, 1, 3);
}
static inline avx2_vec_f avx2_vec_set1(float v) {
    return _mm256_set1_ps(v);
}
static inline avx2_vec_f avx2_vec_repeat(const float *p, size_t n) {
    const __m256i lanes = _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7);
    return _mm256_permutevar8x32_ps(vec_load_n(p, n),
                                    _mm256_and_si256(lanes, _mm256_set1_epi32((int)n - 1)));
}
static inline avx2_vec_f avx2_vec_add(avx2_vec_f a, avx2_vec_f b) {
    return _mm256_add_ps(a, b);
}
static inline avx2_vec_f avx2_vec_sub(avx2_vec_f a, avx2_vec_f b) {
    return _mm256_sub_ps(a, b);
}
static inline avx2_vec_f avx2_vec_mul(avx2_vec_f a, avx2_vec_f b) {
    return _mm256_mul_ps(a, b);
}
static inline avx2_vec_f avx2_vec_fma(avx2_vec_f a, avx2_vec_f b, avx2_vec_f c) {
    return _mm256_fmadd_ps(a, b, c);
}
static inline avx2_vec_f avx2_vec_if_le(avx2_vec_f a, avx2_vec_f b, avx2_vec_f yes, avx2_vec_f no) {
    return _mm256_blendv_ps(no, yes, _mm256_cmp_ps(a, b, _CMP_LE_OQ));
}
static inline avx2_vec_f avx2_vec_if_gt(avx2_vec_f a, avx2_vec_f b, avx2_vec_f yes, avx2_vec_f no) {
    return _mm256_blendv_ps(no, yes, _mm256_cmp_ps(a, b, _CMP_GT_OQ));
}
static inline avx2_vec_f avx2_vec_zero_if_le(avx2_vec_f a, avx2_vec_f b, avx2_vec_f v) {
    return _mm256_andnot_ps(_mm256_cmp_ps(a, b, _CMP_LE_OQ), v);
}
static inline avx2_vec_f avx2_vec_zero_unless_gt(avx2_vec_f a, avx2_vec_f b, avx2_vec_f v) {
    return _mm256_and_ps(_mm256_cmp_ps(a, b, _CMP_GT_OQ), v);
}
static inline avx2_vec_f avx2_vec_zero_from(avx2_vec_f v, avx2_vec_f limit, avx2_vec_f x) {
    return _mm256_andnot_ps(_mm256_cmp_ps(limit, v, _CMP_LE_OQ), x);
}
static inline avx2_vec_f avx2_vec_canonical(avx2_vec_f v) {
    return _mm256_or_ps(v, _mm256_cmp_ps(v, v, _CMP_UNORD_Q));
}

static inline avx2_vec_f avx2_vec_canonical_result(avx2_vec_f v) {
    return avx2_vec_canonical(v);
}
/* max and min return their second operand where one is a NaN or both are zeros. */
static inline avx2_vec_f avx2_vec_relu(avx2_vec_f v) {
    return _mm256_or_ps(_mm256_max_ps(v, _mm256_setzero_ps()), _mm256_cmp_ps(v, v, _CMP_UNORD_Q));
}
static inline avx2_vec_f avx2_vec_clamp(avx2_vec_f v, avx2_vec_f a, avx2_vec_f b) {
    return _mm256_or_ps(_mm256_min_ps(_mm256_max_ps(v, a), b), _mm256_cmp_ps(v, v, _CMP_UNORD_Q));
}

/* The first n lanes of v, zeros behind them. */
static inline avx2_vec_f avx2_vec_first_n(avx2_vec_f v, size_t n) {
    return _mm256_and_ps(v, _mm256_castsi256_ps(avx2_vec_mask_f(n)));
}

static inline avx2_vec_f avx2_vec_div(avx2_vec_f a, avx2_vec_f b) {
    return _mm256_div_ps(a, b);
}
static inline avx2_vec_f avx2_vec_negate(avx2_vec_f v) {
    return _mm256_xor_ps(v, _mm256_set1_ps(-0.0f));
}
static inline avx2_vec_f avx2_vec_minus_abs(avx2_vec_f v) {
    return _mm256_or_ps(v, _mm256_set1_ps(-0.0f));
}
/* a where it is greater, else b. */
static inline avx2_vec_f avx2_vec_max(avx2_vec_f a, avx2_vec_f b) {
    return _mm256_max_ps(a, b);
}
/* a where it is less, else b. */
static inline avx2_vec_f avx2_vec_min(avx2_vec_f a, avx2_vec_f b) {
    return _mm256_min_ps(a, b);
}
/* The power of 2 that is at most v >= 0; 0 for denormals. */
static inline avx2_vec_f avx2_vec_power_of_2(avx2_vec_f v) {
    return _mm256_and_ps(v, _mm256_castsi256_ps(_mm256_set1_epi32(0x7f800000)));
}
static inline avx2_vec_f avx2_vec_zero_nan(avx2_vec_f v) {
    return _mm256_and_ps(v, _mm256_cmp_ps(v, v, _CMP_ORD_Q));
}
#define VEC_SLEEF(function, ulp) Sleef_finz_##function##f8_##ulp##avx2

static inline avx2_vec_f vec_load_bf16(const uint16_t *p) {
    const __m128i h = _mm_loadu_si128((const __m128i *)(const void *)p);
    return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(h), 16));
}
/* The lower halves of 8 numbers of 32 bits that are below 2^16. */
static inline __m128i vec_pack_16(__m256i v) {
    return _mm_packus_epi32(_mm256_castsi256_si128(v), _mm256_extracti128_si256(v, 1));
}
/* Rounded; a NaN, all of whose bits are set, would overflow. */
static inline __m256i vec_round_bf16(avx2_vec_f v) {
    const __m256i bits = _mm256_castps_si256(v),
                  odd = _mm256_and_si256(_mm256_srli_epi32(bits, 16), _mm256_set1_epi32(1)),
                  least = _mm256_min_epu32(bits, _mm256_set1_epi32(-0x8001)),
                  sum = _mm256_add_epi32(_mm256_add_epi32(least, _mm256_set1_epi32(0x7fff)), odd);
    return _mm256_srli_epi32(sum, 16);
}
static inline void vec_store_bf16(uint16_t *p, avx2_vec_f v) {
    _mm_storeu_si128((__m128i *)(void *)p, vec_pack_16(vec_round_bf16(v)));
}
static inline void vec_store_bf16_2(uint16_t *p, avx2_vec_f a, avx2_vec_f b) {
    const __m256i both = _mm256_packus_epi32(vec_round_bf16(a), vec_round_bf16(b));
    _mm256_storeu_si256((__m256i *)(void *)p, _mm256_permute4x64_epi64(both, 0xd8));
}
static inline avx2_vec_f vec_load_f16(const uint16_t *p) {
    return _mm256_cvtph_ps(_mm_loadu_si128((const __m128i *)(const void *)p));
}
static inline void vec_store_f16(uint16_t *p, avx2_vec_f v) {
    _mm_storeu_si128((__m128i *)(void *)p,
                     _mm256_cvtps_ph(v, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC));
}
static inline avx2_vec_f vec_load_s8(const uint8_t *p) {
    return _mm256_cvtepi32_ps(
        _mm256_cvtepi8_epi32(_mm_loadl_epi64((const __m128i *)(const void *)p)));
}
static inline avx2_vec_f vec_load_u8(const uint8_t *p) {
    return _mm256_cvtepi32_ps(
        _mm256_cvtepu8_epi32(_mm_loadl_epi64((const __m128i *)(const void *)p)));
}
/* Fours of a and b in turn. */
static inline __m256i vec_whole_16(avx2_vec_f a, avx2_vec_f b, int zero_point) {
    const __m256i words = _mm256_packs_epi32(_mm256_cvtps_epi32(a), _mm256_cvtps_epi32(b));
    return _mm256_adds_epi16(words, _mm256_set1_epi16((short)zero_point));
}
static inline void vec_store_8(uint8_t *p, avx2_vec_f v, int zero_point, int is_signed) {
    const __m256i words = _mm256_permute4x64_epi64(vec_whole_16(v, v, zero_point), 0x08);
    const __m128i low = _mm256_castsi256_si128(words);
    _mm_storel_epi64((__m128i *)(void *)p,
                     is_signed ? _mm_packs_epi16(low, low) : _mm_packus_epi16(low, low));
}
static inline void vec_store_8_4(uint8_t *p, const avx2_vec_f *v, int zero_point, int is_signed) {
    const __m256i low = vec_whole_16(v[0], v[1], zero_point),
                  high = vec_whole_16(v[2], v[3], zero_point),
                  fours =
                      is_signed ? _mm256_packs_epi16(low, high) : _mm256_packus_epi16(low, high),
                  order = _mm256_setr_epi32(0, 4, 1, 5, 2, 6, 3, 7);
    _mm256_storeu_si256((__m256i *)(void *)p, _mm256_permutevar8x32_epi32(fours, order));
}
static inline avx2_vec_f avx2_vec_from_bits(unsigned bits) {
    const __m256i place = _mm256_setr_epi32(1, 2, 4, 8, 16, 32, 64, 128);
    const __m256i set = _mm256_and_si256(_mm256_set1_epi32((int)bits), place);
    return _mm256_and_ps(_mm256_castsi256_ps(_mm256_cmpeq_epi32(set, place)), _mm256_set1_ps(1));
}
static inline unsigned avx2_vec_bits_gt(avx2_vec_f a, avx2_vec_f b) {
    return (unsigned)_mm256_movemask_ps(_mm256_cmp_ps(a, b, _CMP_GT_OQ));
}

static inline avx2_vec_d vec_load_d(const double *p) {
    return _mm256_loadu_pd(p);
}
static inline avx2_vec_d vec_load_d_n(const double *p, size_t n) {
    return _mm256_maskload_pd(p, avx2_vec_mask_d(n));
}
static inline void vec_store_d(double *p, avx2_vec_d v) {
    _mm256_storeu_pd(p, v);
}
static inline void vec_store_d_n(double *p, avx2_vec_d v, size_t n) {
    _mm256_maskstore_pd(p, avx2_vec_mask_d(n), v);
}
static inline avx2_vec_d avx2_vec_set1_d(double v) {
    return _mm256_set1_pd(v);
}
static inline avx2_vec_d avx2_vec_add_d(avx2_vec_d a, avx2_vec_d b) {
    return _mm256_add_pd(a, b);
}
static inline avx2_vec_d avx2_vec_sub_d(avx2_vec_d a, avx2_vec_d b) {
    return _mm256_sub_pd(a, b);
}
static inline avx2_vec_d avx2_vec_mul_d(avx2_vec_d a, avx2_vec_d b) {
    return _mm256_mul_pd(a, b);
}
static inline avx2_vec_d avx2_vec_div_d(avx2_vec_d a, avx2_vec_d b) {
    return _mm256_div_pd(a, b);
}
static inline avx2_vec_d avx2_vec_sqrt_d(avx2_vec_d v) {
    return _mm256_sqrt_pd(v);
}
static inline avx2_vec_d avx2_vec_fma_d(avx2_vec_d a, avx2_vec_d b, avx2_vec_d c) {
    return _mm256_fmadd_pd(a, b, c);
}
static inline avx2_vec_d avx2_vec_if_eq_d(avx2_vec_d a, avx2_vec_d b, avx2_vec_d yes, avx2_vec_d no) {
    return _mm256_blendv_pd(no, yes, _mm256_cmp_pd(a, b, _CMP_EQ_OQ));
}
static inline avx2_vec_d avx2_vec_if_lt_d(avx2_vec_d a, avx2_vec_d b, avx2_vec_d yes, avx2_vec_d no) {
    return _mm256_blendv_pd(no, yes, _mm256_cmp_pd(a, b, _CMP_LT_OQ));
}
static inline avx2_vec_d avx2_vec_canonical_d(avx2_vec_d v) {
    return _mm256_or_pd(v, _mm256_cmp_pd(v, v, _CMP_UNORD_Q));
}
/* Lanes of v outside [low, high], NaN included, one bit each. */
static inline unsigned avx2_vec_outside_d(avx2_vec_d v, double low, double high) {
    return (unsigned)_mm256_movemask_pd(
        _mm256_or_pd(_mm256_cmp_pd(v, avx2_vec_set1_d(low), _CMP_NGE_UQ),
                     _mm256_cmp_pd(v, avx2_vec_set1_d(high), _CMP_NLE_UQ)));
}

/* float -> double: from memory, and the lower and upper half of a vector. */
static inline avx2_vec_d avx2_vec_widen(const float *p) {
    return _mm256_cvtps_pd(_mm_loadu_ps(p));
}
static inline avx2_vec_d avx2_vec_widen_n(const float *p, size_t n) {
    return _mm256_cvtps_pd(_mm_maskload_ps(p, vec_mask_half(n)));
}
static inline avx2_vec_d avx2_vec_low(avx2_vec_f v) {
    return _mm256_cvtps_pd(_mm256_castps256_ps128(v));
}
static inline avx2_vec_d avx2_vec_high(avx2_vec_f v) {
    return _mm256_cvtps_pd(_mm256_extractf128_ps(v, 1));
}
static inline void avx2_vec_fold_fours(float *to_a, float *to_b, avx2_vec_f a, avx2_vec_f b) {
    _mm_store_ps(to_a, _mm_add_ps(_mm256_castps256_ps128(a), _mm256_extractf128_ps(a, 1)));
    _mm_store_ps(to_b, _mm_add_ps(_mm256_castps256_ps128(b), _mm256_extractf128_ps(b, 1)));
}
static inline avx2_four_floats avx2_vec_four(const void *p) {
    return _mm_loadu_ps(p);
}
static inline avx2_four_floats vec_four_bf16(const void *p) {
    return _mm_castsi128_ps(_mm_slli_epi32(_mm_cvtepu16_epi32(_mm_loadl_epi64(p)), 16));
}
static inline avx2_four_floats vec_four_f16(const void *p) {
    return _mm_cvtph_ps(_mm_loadl_epi64(p));
}
static inline void vec_load_fours(const float *p, avx2_vec_f v[4]) {
    avx2_vec_f m[4];
    for (int i = 0; i < 4; i++)
        m[i] = _mm256_insertf128_ps(_mm256_castps128_ps256(_mm_load_ps(p + 4 * i)),
                                    _mm_load_ps(p + 16 + 4 * i), 1);
    const avx2_vec_f a = _mm256_unpacklo_ps(m[0], m[2]), b = _mm256_unpacklo_ps(m[1], m[3]),
                c = _mm256_unpackhi_ps(m[0], m[2]), d = _mm256_unpackhi_ps(m[1], m[3]);
    v[0] = _mm256_unpacklo_ps(a, b);
    v[1] = _mm256_unpackhi_ps(a, b);
    v[2] = _mm256_unpacklo_ps(c, d);
    v[3] = _mm256_unpackhi_ps(c, d);
}
/* double -> float, rounded: VEC_D floats to memory. */
static inline void avx2_vec_narrow_store(float *p, avx2_vec_d v) {
    _mm_storeu_ps(p, _mm256_cvtpd_ps(v));
}
static inline void avx2_vec_narrow_store_n(float *p, avx2_vec_d v, size_t n) {
    _mm_maskstore_ps(p, vec_mask_half(n), _mm256_cvtpd_ps(v));
}
/* Rounded to floats, and back. */
static inline avx2_vec_d avx2_vec_round_d(avx2_vec_d v) {
    return _mm256_cvtps_pd(_mm256_cvtpd_ps(v));
}
/* gcc inserts this only when it optimizes, and not for size; without it all SSE code that follows
 * is slow. */
static inline void avx2_vec_leave(void) {
    _mm256_zeroupper();
}
/* SPDX-License-Identifier: MIT
 *
 * The SIMD kernels, one source for every instruction set. Included once by each ISA folder's .c,
 * after its vec.h, never compiled alone. vec.h provides, for vectors of VEC_F floats (vec_f) and
 * VEC_D = VEC_F/2 doubles (vec_d):
 *   vec_load, vec_store, vec_set1, vec_add, vec_sub, vec_mul
 *   vec_bypass                    vec_store of part of a line past the caches, p aligned; vec_fence
 *                                 when all is stored
 *   vec_fetch, vec_fetch_out      ask for the line of p, to be read or written
 *   vec_repeat                    (p, n): n floats, a power of two, again and again
 *   vec_fma(a, b, c)              a*b + c rounded once
 *   vec_load_n, vec_store_n       the first n lanes, of 1 when stored; memory behind them is not
 *                                 touched, other lanes load as 0
 *   vec_first_n                   the first n lanes, zeros behind them
 *   vec_if_le, vec_if_gt          (a, b, yes, no) per lane; a NaN compares false
 *   vec_zero_if_le                (a, b, v): 0 where a <= b, else v
 *   vec_zero_unless_gt            (a, b, v): v where a > b, else 0
 *   vec_zero_from                 (v, limit, x): 0 where v >= limit, else x; a NaN as the limit raises
 *                                 no exception
 *   vec_canonical                 every NaN becomes 0xffffffff
 *   vec_canonical_result          the same, of what arithmetic gave: no NaN is a signalling one
 *   vec_relu, vec_clamp           vec_canonical_result of these activations
 *   vec_div, vec_negate, vec_minus_abs
 *   vec_max, vec_min              (a, b): a where it is greater, or less, else b
 *   vec_power_of_2                v >= 0 with its fraction cut off, 0 for denormals
 *   vec_zero_nan                  0 for every NaN
 *   vec_load_..., vec_store_...   bf16, f16, and VEC_F bytes: s8, u8; a NaN that is stored is that
 *                                 of vec_canonical
 *   vec_store_8                   (p, v, zero_point, is_signed): v of at most 2^14 rounded to whole
 *                                 numbers, ties to even, zero_point added, limited to s8 or u8
 *   vec_store_bf16_2, ..._8_4     two or four vectors, one behind the other
 *   vec_from_bits                 1 where one of the lowest VEC_F bits is set, else 0
 *   vec_bits_gt                   (a, b): a bit per lane
 *   ..._d                         the same for doubles, and vec_div_d, vec_sqrt_d, vec_if_eq_d,
 *                                 vec_if_lt_d, vec_outside_d
 *   vec_widen, vec_widen_n        floats from memory as doubles
 *   vec_low, vec_high             the halves of a vec_f as doubles
 *   vec_narrow_store, ..._n       VEC_D doubles rounded to floats, or the first n of them
 *   vec_round_d                   doubles rounded to floats, and back
 *   vec_fold_fours                (to_a, to_b, a, b): the lanes of each folded to 4, upper half onto
 *                                 lower half, to aligned memory
 *   four_floats, vec_four, ..._bf16, ..._f16
 *                                 a vector of 4 floats, which + adds; from memory
 *   vec_load_fours                VEC_F times 4 floats from aligned memory: the first, second, third
 *                                 and last of each
 *   vec_leave                     before a kernel returns to code that is not of this set
 * Wherever a product is added to something, it is written as a fma: a compiler that contracts finds
 * nothing to do. */
/* SPDX-License-Identifier: MIT
 *
 * How a tensor is cut for the reductions. Everything here depends on the shape alone, so that the
 * result has the same bits for every kernel set, schedule, stride and alignment. docs/numerics.md
 * explains the order. */
#ifndef BNORM_ORDER_H
#define BNORM_ORDER_H

/* SPDX-License-Identifier: MIT
 *
 * How tensors of every layout are counted through, and the memory of one. All that follows from
 * the layout of a shape is in here. */
#ifndef BNORM_TENSOR_H
#define BNORM_TENSOR_H

static inline size_t bnorm_min(size_t a, size_t b) {
    return a < b ? a : b;
}

static inline size_t bnorm_ceil_div(size_t a, size_t b) {
    return a / b + (a % b != 0);
}

/* Bytes of an element. */
static inline size_t bnorm_size_of(bnorm_dtype type) {
    return type == BNORM_F32 ? 4 : type == BNORM_BF16 || type == BNORM_F16 ? 2 : 1;
}

static inline int bnorm_is_empty(const bnorm_shape *shape) {
    return shape->n == 0 || shape->hw == 0;
}

/* A shape as images of groups of rows of lanes; see bnorm_tensor. There are two families:
 *   rows     a lane is a channel: lane i of group g is channel g*lanes + i, or padding.
 *            NHWC has one group, a blocked tensor one per block. (N, C) data is one image of n
 *            rows, one group where channels are next to each other, else one per channel
 *   planes   a group is a channel, of one row: NCHW */
typedef struct bnorm_view {
    int planes;
    int leaves; /* rows are samples: (N, C) data */
    size_t images, groups, rows, lanes;
    size_t c;         /* channels */
    size_t positions; /* of a channel in an image: rows, or lanes of planes */
} bnorm_view;

bnorm_view bnorm_view_of(const bnorm_shape *shape);

/* Values per channel. */
static inline double bnorm_values_of(const bnorm_view *view) {
    return (double)view->images * (double)view->positions;
}

/* A rectangle of a view. */
typedef struct bnorm_part {
    size_t image, images, group, groups, row, rows, lane, lanes;
} bnorm_part;

static inline bnorm_part bnorm_whole(const bnorm_view *view) {
    return (bnorm_part){
        .images = view->images, .groups = view->groups, .rows = view->rows, .lanes = view->lanes};
}

/* Whether channels are counted by groups, not by the lanes of the only one. */
static inline int bnorm_counts_groups(const bnorm_view *view) {
    return view->planes || view->groups > 1;
}

/* Channels of a group. */
static inline size_t bnorm_unit(const bnorm_view *view) {
    return view->planes ? 1 : view->lanes;
}

/* The first channel of a part, for its parameters. */
static inline size_t bnorm_channel_of(const bnorm_view *view, const bnorm_part *part) {
    return part->group * bnorm_unit(view) + (view->planes ? 0 : part->lane);
}

/* Positions of each image of a part: the first, and how many. */
static inline size_t bnorm_first_position(const bnorm_view *view, const bnorm_part *part) {
    return view->planes ? part->lane : part->row;
}
static inline size_t bnorm_positions(const bnorm_view *view, const bnorm_part *part) {
    return view->planes ? part->lanes : part->rows;
}
/* The n positions of a part from number `at` on. */
static inline bnorm_part bnorm_some_positions(const bnorm_view *view, const bnorm_part *whole,
                                              size_t at, size_t n) {
    bnorm_part part = *whole;
    *(view->planes ? &part.lane : &part.row) += at;
    *(view->planes ? &part.lanes : &part.rows) = n;
    return part;
}

/* Groups of a part, where channels are counted by these, or lanes: how many, and n of them from
 * number `at` on. */
static inline size_t bnorm_slices(const bnorm_view *view, const bnorm_part *part) {
    return bnorm_counts_groups(view) ? part->groups : part->lanes;
}
static inline bnorm_part bnorm_some_slices(const bnorm_view *view, const bnorm_part *whole,
                                           size_t at, size_t n) {
    const int groups = bnorm_counts_groups(view);
    bnorm_part part = *whole;
    *(groups ? &part.group : &part.lane) += at;
    *(groups ? &part.groups : &part.lanes) = n;
    return part;
}

/* Channels [channel, channel + channels) of positions [from, from + len) of one image: whole groups
 * where there are several. */
static inline bnorm_part bnorm_part_of(const bnorm_view *view, size_t channel, size_t channels,
                                       size_t image, size_t from, size_t len) {
    bnorm_part part = {.image = image, .images = 1, .groups = 1, .rows = 1};
    if (view->planes) {
        part.group = channel;
        part.groups = channels;
        part.lane = from;
        part.lanes = len;
        return part;
    }
    part.row = from;
    part.rows = len;
    part.lane = channel;
    part.lanes = channels;
    if (view->groups > 1) {
        part.group = channel / view->lanes;
        part.groups = bnorm_ceil_div(channels, view->lanes);
        part.lane = 0;
        part.lanes = view->lanes;
    } else if (channel + channels == view->c) {
        part.lanes = view->lanes - channel; /* with the padding */
    }
    return part;
}

/* Where a part begins, in elements. */
static inline size_t bnorm_offset_of(const bnorm_tensor *tensor, const bnorm_part *part) {
    return part->image * tensor->image_stride + part->group * tensor->group_stride +
           part->row * tensor->row_stride + (tensor->same_lanes ? 0 : part->lane);
}

/* Moves a tensor to where a part begins. */
static inline void bnorm_move_to(bnorm_tensor *tensor, const bnorm_part *part) {
    if (tensor->data)
        tensor->data =
            (char *)tensor->data + bnorm_offset_of(tensor, part) * bnorm_size_of(tensor->type);
}

/* Moves a tensor to sample `first`, from which it has every `step`th one. */
void bnorm_take_samples(const bnorm_view *view, bnorm_tensor *tensor, size_t first, size_t step);

bnorm_status bnorm_check_shape(const bnorm_shape *shape);
/* The shape of an operation with statistics: not for quantized tensors. */
bnorm_status bnorm_check_float_shape(const bnorm_shape *shape);

/* The dense tensor of a shape, without data: quantized by 1 and 0; returns its elements. The shape
 * has been checked and is not empty. */
size_t bnorm_dense_tensor(const bnorm_shape *shape, bnorm_tensor *tensor);

/* Makes it one with other strides, or with one value only along the axes `broadcast`. Fills *extent,
 * the elements from the first to one past the last. */
bnorm_status bnorm_check_strides(const bnorm_shape *shape, bnorm_in in, unsigned broadcast,
                                 bnorm_tensor *tensor, size_t *extent);

/* The bits of a mask, or none: those of the dense tensor. */
void bnorm_set_bits(const bnorm_shape *shape, unsigned char *mask, bnorm_bits *bits);

/* Changes the view where the channels of a tensor of (N, C) data are not next to each other. */
static inline void bnorm_fit_view(bnorm_view *view, const bnorm_tensor *tensor) {
    if (view->leaves && view->groups == 1 && tensor->data && tensor->group_stride != 1) {
        view->groups = view->c;
        view->lanes = 1;
    }
}

#endif

/* Partial sums per channel in the rows family. Where c is no whole number of vectors several rows
 * share the lanes: the smallest power of two that makes c*chains at least 32 and leaves at most an
 * eighth of the vectors of 16 lanes empty. */
static inline size_t bnorm_chains(size_t c) {
    size_t chains = 1;
    while (c * chains < 32 || c * chains * 8 < (c * chains + 15) / 16 * 16 * 7)
        chains *= 2;
    return chains;
}

/* Rows are taken in groups of 16 per chain, which are added up in float. */
#define BNORM_GROUP 16
/* Rows of a block, spread over it, that its pivots are taken from: a power of two, up to 16. */
#define BNORM_SAMPLES 16
static inline size_t bnorm_samples(size_t rows) {
    return rows >= 16 ? 16 : rows >= 8 ? 8 : rows >= 4 ? 4 : rows >= 2 ? 2 : 1;
}

/* Places of a block of a plane, spread over it, that its pivot is taken from, four neighbours each:
 * neighbours are much alike, so that larger planes have more places. */
#define BNORM_PLACES 16
static inline size_t bnorm_places(size_t len) {
    return len >= 512 ? 16 : len >= 128 ? 8 : len >= 16 ? 4 : len >= 8 ? 2 : 1;
}

/* Chains of a block of a plane. */
#define BNORM_SPAN_LANES 32
/* Room for c*chains with more than one chain: the largest is 194, for c = 97. */
#define BNORM_MAX_LANES 208

/* Rows (pixels) of one image that form a block: a 64th of the image, but 64 to 128 KiB, whole
 * groups, and at least 64 rows. It depends on the image alone, so that batches can be cut anywhere
 * between images. */
static inline size_t bnorm_block_rows(size_t c, size_t hw) {
    const size_t group = BNORM_GROUP * bnorm_chains(c), least = 16384 / c, most = 32768 / c;
    size_t rows = hw / 64;
    if (rows < least)
        rows = least;
    if (rows > most)
        rows = most;
    if (rows < 64)
        rows = 64;
    return (rows + group - 1) / group * group;
}

/* Pixels of one plane that form a block. */
#define BNORM_BLOCK_SPAN 2048

/* Images are merged along a binary tree over their numbers in the whole batch. The largest whole
 * subtree of at most `most` images, a power of two, that begins with image i and ends before `end`:
 * its images. */
static inline size_t bnorm_subtree(size_t i, size_t end, size_t most) {
    const size_t aligned = i ? i & (0 - i) : most;
    size_t images = aligned < most ? aligned : most;
    while (images > end - i)
        images /= 2;
    return images;
}

/* How many of them images [first, first + n) are. */
static inline size_t bnorm_subtrees(size_t first, size_t n, size_t most) {
    const size_t end = first + n;
    size_t i = first, count = 0;
    for (; i < end && i % most; count++)
        i += bnorm_subtree(i, end, most);
    count += (end - i) / most;
    for (size_t rest = (end - i) % most; rest; rest &= rest - 1)
        count++;
    return count;
}

/* The largest subtree there can be, and the most levels. */
#define BNORM_TREE   (~(~(size_t)0 >> 1))
#define BNORM_LEVELS (2 * sizeof(size_t) * 8)

/* Images of one position, as those of (N, C) data, are reduced in leaves of up to so many. */
#define BNORM_LEAF ((size_t)64)

/* Blocks of the reductions per image and altogether; with leaves, those. */
typedef struct bnorm_blocks {
    size_t size; /* positions of a channel per block; the last one of an image may have fewer */
    size_t per_image;
    size_t count;
    size_t chains;
    size_t first; /* number of the first image in the whole batch */
} bnorm_blocks;

/* For images [first, first + n) of a batch. */
static inline bnorm_blocks bnorm_blocks_of(const bnorm_view *view, size_t first) {
    bnorm_blocks blocks = {BNORM_BLOCK_SPAN, 1, 0, BNORM_SPAN_LANES, first};
    if (view->leaves) {
        blocks.size = BNORM_LEAF;
        blocks.chains = 1;
        blocks.count = bnorm_subtrees(first, view->positions, BNORM_LEAF);
        return blocks;
    }
    if (!view->planes) {
        blocks.size = bnorm_block_rows(view->lanes, view->positions);
        blocks.chains = bnorm_chains(view->lanes);
    }
    blocks.per_image = bnorm_ceil_div(view->positions, blocks.size);
    blocks.count = blocks.per_image * view->images;
    return blocks;
}

/* Positions [from, from + len) of one image. */
typedef struct bnorm_block {
    size_t image, from, len;
} bnorm_block;

/* Block b, counted through all images. */
static inline bnorm_block bnorm_block_at(const bnorm_view *view, const bnorm_blocks *blocks,
                                         size_t b) {
    bnorm_block avx2_block = {b, 0, view->positions};
    if (view->leaves) {
        const size_t first = blocks->first, end = first + view->positions;
        size_t at = first, before = 0;
        avx2_block.image = 0;
        if (first % BNORM_LEAF == 0) { /* leaves of full size come first */
            before = bnorm_min(b, view->positions / BNORM_LEAF);
            at += before * BNORM_LEAF;
        }
        for (; before < b; before++) {
            at += bnorm_subtree(at, end, BNORM_LEAF);
            if (at % BNORM_LEAF == 0) {
                const size_t whole = bnorm_min(b - before - 1, (end - at) / BNORM_LEAF);
                before += whole;
                at += whole * BNORM_LEAF;
            }
        }
        avx2_block.from = at - first;
        avx2_block.len = bnorm_subtree(at, end, BNORM_LEAF);
        return avx2_block;
    }
    if (blocks->per_image > 1) {
        avx2_block.image = b / blocks->per_image;
        avx2_block.from = b % blocks->per_image * blocks->size;
        avx2_block.len = bnorm_min(blocks->size, view->positions - avx2_block.from);
    }
    return avx2_block;
}

#endif

#define BNORM_INLINE static inline __attribute__((always_inline))
#define BNORM_RARE   static __attribute__((noinline)) /* costs nothing where it is not called */
/* How far ahead of their use lines are asked for, in bytes. */
#define BNORM_AHEAD       ((size_t)2048)
#define BNORM_UNLIKELY(c) __builtin_expect(!!(c), 0)
#if defined(__clang__)
#define BNORM_UNROLL /* clang unrolls short constant loops by itself */
#define BNORM_UNROLL_SOME
#define BNORM_NO_UNROLL _Pragma("clang loop unroll(disable)")
#else
#define BNORM_UNROLL      _Pragma("GCC unroll 32")
#define BNORM_UNROLL_SOME _Pragma("GCC unroll 4")
#define BNORM_NO_UNROLL   _Pragma("GCC unroll 1")
#endif

/* Channels that a reduction kernel takes at a time, and room for the lanes of one vector behind
 * them. */
#define BNORM_TILE 256
#define BNORM_PAD  16

BNORM_INLINE size_t avx2_lesser(size_t a, size_t b) {
    return a < b ? a : b;
}

BNORM_INLINE avx2_vec_f avx2_load_lanes(const float *p, size_t n) {
    return n == VEC_F ? avx2_vec_load(p) : vec_load_n(p, n);
}

BNORM_INLINE void avx2_store_lanes(float *p, avx2_vec_f v, size_t n) {
    if (n == VEC_F)
        avx2_vec_store(p, v);
    else
        vec_store_n(p, v, n);
}

/* The first n lanes, zeros behind them. */
BNORM_INLINE avx2_vec_f avx2_first_lanes(avx2_vec_f v, size_t n) {
    return n == VEC_F ? v : avx2_vec_first_n(v, n);
}

/* s[0..n) = 0; writes whole vectors. */
BNORM_INLINE void avx2_zero_lanes(double *s, size_t n) {
    for (size_t i = 0; i < n; i += VEC_D)
        vec_store_d(s + i, avx2_vec_set1_d(0));
}

/* p[0..c) again behind itself, `times` times altogether; writes up to a vector more. */
BNORM_INLINE void avx2_repeat_lanes(float *p, size_t c, size_t times) {
    for (size_t j = 1; j < times; j++)
        for (size_t i = 0; i < c; i += VEC_F)
            avx2_vec_store(p + j * c + i, avx2_vec_load(p + i));
}

/* A parameter of each lane, or one for all n lanes. */
BNORM_INLINE avx2_vec_f avx2_parameter_lanes(const float *p, int spread, size_t i, size_t n) {
    if (!spread)
        return avx2_load_lanes(p + i, n);
    return avx2_first_lanes(avx2_vec_set1(*p), n);
}

BNORM_INLINE avx2_vec_d avx2_widen_lanes(const float *p, size_t n) {
    return n == VEC_D ? avx2_vec_widen(p) : avx2_vec_widen_n(p, n);
}

BNORM_INLINE avx2_vec_d load_d_lanes(const double *p, size_t n) {
    return n == VEC_D ? vec_load_d(p) : vec_load_d_n(p, n);
}

BNORM_INLINE void store_d_lanes(double *p, avx2_vec_d v, size_t n) {
    if (n == VEC_D)
        vec_store_d(p, v);
    else
        vec_store_d_n(p, v, n);
}

/* s[i] for i < c: the chains of channel i, which lie c apart, folded upper half onto lower half. */
BNORM_INLINE void avx2_fold_chains(double *s, size_t c, size_t chains) {
    for (size_t half = chains / 2; half > 0; half /= 2) {
        const size_t n = half * c;
        size_t i = 0;
        for (; i + VEC_D <= n; i += VEC_D)
            vec_store_d(s + i, avx2_vec_add_d(vec_load_d(s + i), vec_load_d(s + n + i)));
        for (; i < n; i++)
            s[i] += s[n + i];
    }
}

/* Lanes of `to` whose bits are set. */
BNORM_INLINE void avx2_replace_lanes(unsigned bits, const double *from, double *to) {
    for (size_t i = 0; bits; i++, bits >>= 1)
        if (bits & 1)
            to[i] = from[i];
}

/* SPDX-License-Identifier: MIT
 *
 * Elements of all types to floats and back, and masks of bits. Kernels that meet anything but
 * floats take it through memory of floats in the first-level cache: the loops that compute exist
 * once. What is widened is written in whole vectors, so the memory has room for one more. */

/* Elements that pass through such memory at a time. */
#define BNORM_STAGE 1024

BNORM_INLINE size_t avx2_size_of(bnorm_dtype type) {
    return type == BNORM_F32 ? 4 : type == BNORM_BF16 || type == BNORM_F16 ? 2 : 1;
}

/* Element i of an array. */
BNORM_INLINE const void *avx2_element_at(const void *p, bnorm_dtype type, size_t i) {
    return (const char *)p + i * avx2_size_of(type);
}

/* n < VEC_F elements of 16 bits; a loop over them takes longer. */
BNORM_INLINE void avx2_copy_halves(uint16_t *to, const uint16_t *p, size_t n) {
    if (VEC_F > 8 && n & 8)
        memcpy(to, p, 16);
    if (VEC_F > 4 && n & 4)
        memcpy(to + (n & 8), p + (n & 8), 8);
    if (n & 2)
        memcpy(to + (n & 12), p + (n & 12), 4);
    if (n & 1)
        to[n & 14] = p[n & 14];
}

/* n lanes of 16 bits, as load_lanes and store_lanes. */
#define BNORM_HALF_LANES(type)                                                                     \
    BNORM_INLINE avx2_vec_f load_##type##_lanes(const uint16_t *p, size_t n) {                          \
        uint16_t all[VEC_F] = {0};                                                                 \
        if (n == VEC_F)                                                                            \
            return vec_load_##type(p);                                                             \
        avx2_copy_halves(all, p, n);                                                                    \
        return vec_load_##type(all);                                                               \
    }                                                                                              \
    BNORM_INLINE void store_##type##_lanes(uint16_t *p, avx2_vec_f v, size_t n) {                       \
        uint16_t all[VEC_F];                                                                       \
        if (n == VEC_F) {                                                                          \
            vec_store_##type(p, v);                                                                \
            return;                                                                                \
        }                                                                                          \
        vec_store_##type(all, v);                                                                  \
        avx2_copy_halves(p, all, n);                                                                    \
    }
BNORM_HALF_LANES(bf16)
BNORM_HALF_LANES(f16)

/* A quantization as kernels use it. */
struct avx2_quant {
    float scale, zero_point;
    float inverse; /* 1/scale, or 0 where quotients must be divided for */
    float limit;   /* what is beyond it lies beyond all of a type's values */
};

BNORM_INLINE void avx2_begin_quant(struct avx2_quant *to, const bnorm_quant *from) {
    const float scale = from->scale;
    const int usual = scale > 0x1p-90f && scale < 0x1p90f;
    to->scale = scale;
    to->zero_point = (float)from->zero_point;
    to->inverse = usual ? 1 / scale : 0;
    to->limit = scale < 0x1p117f ? 1024 * scale : FLT_MAX;
}

/* v/scale, rounded once, but that NaN gives 0 and what is beyond the limit is not exact. The
 * quotient by the rounded inverse, corrected by its remainder, is the rounded quotient: P. Markstein,
 * "Computation of elementary functions on the IBM RISC System/6000 processor" (1990), theorem 8.5 of
 * J.-M. Muller et al., "Handbook of floating-point arithmetic". */
BNORM_INLINE avx2_vec_f avx2_quotient(avx2_vec_f v, const struct avx2_quant *avx2_quant) {
    const avx2_vec_f limit = avx2_vec_set1(avx2_quant->limit), inverse = avx2_vec_set1(avx2_quant->inverse);
    v = avx2_vec_zero_nan(v);
    v = avx2_vec_min(avx2_vec_max(v, avx2_vec_negate(limit)), limit);
    if (BNORM_UNLIKELY(avx2_quant->inverse == 0))
        return avx2_vec_div(v, avx2_vec_set1(avx2_quant->scale));
    const avx2_vec_f q = avx2_vec_mul(v, inverse), remainder = avx2_vec_fma(q, avx2_vec_set1(-avx2_quant->scale), v);
    return avx2_vec_fma(remainder, inverse, q);
}

/* n <= VEC_F elements; not for S8 and U8. */
BNORM_INLINE avx2_vec_f avx2_widened_lanes(const void *p, bnorm_dtype type, size_t n) {
    if (type == BNORM_F32)
        return avx2_load_lanes(p, n);
    return type == BNORM_BF16 ? load_bf16_lanes(p, n) : load_f16_lanes(p, n);
}

/* `rows` rows of n elements, `stride` apart, to rows of floats without gaps, and zeros up to the end
 * of a vector; not for S8 and U8. */
static void widen_rows(float *to, const void *from, bnorm_dtype type, size_t stride, size_t rows,
                       size_t n) {
    if (stride == n)
        n *= rows, rows = 1;
#define BNORM_WIDEN(element, load)                                                                 \
    for (const element *row = from; rows > 0; rows--, row += stride, to += n) {                    \
        size_t i = 0;                                                                              \
        for (; i + VEC_F <= n; i += VEC_F)                                                         \
            avx2_vec_store(to + i, load(row + i));                                                      \
        if (i < n)                                                                                 \
            avx2_vec_store(to + i, avx2_widened_lanes(row + i, type, n - i));                                \
    }
    if (type == BNORM_F32) {
        BNORM_WIDEN(float, avx2_vec_load)
    } else if (type == BNORM_BF16) {
        BNORM_WIDEN(uint16_t, vec_load_bf16)
    } else {
        BNORM_WIDEN(uint16_t, vec_load_f16)
    }
#undef BNORM_WIDEN
}

/* ---------------------------------------------------------------------------------------------- */
/* Bits. Those of one call lie next to each other, or in runs; bytes that they fill are read and
 * written as such, others may be shared with another thread. */

/* Bits [at, at + n) as the lowest of the result, n <= 16. */
BNORM_INLINE unsigned avx2_bit_window(const unsigned char *bits, size_t at, size_t n) {
    const size_t first = at / 8, last = (at + n - 1) / 8;
    unsigned window = bits[first];
    if (last > first)
        window |= (unsigned)bits[first + 1] << 8;
    if (last > first + 1)
        window |= (unsigned)bits[first + 2] << 16;
    return window >> at % 8;
}

/* The bits of a byte that `own` says. */
BNORM_INLINE void avx2_store_some_bits(unsigned char *byte, unsigned bits, unsigned own) {
    __atomic_fetch_and(byte, (unsigned char)(bits | ~own), __ATOMIC_RELAXED);
    __atomic_fetch_or(byte, (unsigned char)(bits & own), __ATOMIC_RELAXED);
}

/* n bits from bit `at` on, n a multiple of 8 up to 64, or at most 8. */
BNORM_INLINE uint64_t avx2_read_bits(const unsigned char *bits, size_t at, size_t n) {
    const size_t shift = at % 8;
    uint64_t word = 0;
    if (n <= 8)
        return avx2_bit_window(bits, at, n);
    memcpy(&word, bits + at / 8, n / 8);
    word >>= shift;
    if (shift)
        word |= (uint64_t)bits[at / 8 + n / 8] << (n - shift);
    return word;
}

/* Writes bits one behind the other. */
struct avx2_bit_writer {
    unsigned char *bits;
    size_t at;        /* of the next bit */
    uint64_t waiting; /* those of the byte that is not full */
    unsigned others;  /* bits of that byte that are not of this call */
};

BNORM_INLINE void avx2_begin_bits(struct avx2_bit_writer *w, unsigned char *bits, size_t at) {
    w->bits = bits;
    w->at = at;
    w->waiting = 0;
    w->others = (1u << at % 8) - 1;
}

BNORM_INLINE void avx2_end_bits(struct avx2_bit_writer *w) {
    const unsigned mine = ((1u << w->at % 8) - 1) & ~w->others;
    if (mine)
        avx2_store_some_bits(w->bits + w->at / 8, (unsigned)w->waiting, mine);
}

/* The next bit is number `at`. */
BNORM_INLINE void avx2_seek_bits(struct avx2_bit_writer *w, size_t at) {
    if (w->at == at)
        return;
    avx2_end_bits(w);
    avx2_begin_bits(w, w->bits, at);
}

/* The n lowest bits of a word, n at most 64. */
BNORM_INLINE void avx2_put_bits(struct avx2_bit_writer *w, uint64_t word, size_t n) {
    if (w->at % 8 == 0 && n % 8 == 0) {
        memcpy(w->bits + w->at / 8, &word, n / 8);
        w->at += n;
        return;
    }
    for (; n > 0; n -= avx2_lesser(n, 32), word >>= 32) {
        const size_t k = avx2_lesser(n, 32), avx2_held = w->at % 8;
        unsigned char *byte = w->bits + w->at / 8;
        uint64_t bits = w->waiting | (word & ((UINT64_C(1) << k) - 1)) << avx2_held;
        size_t count = avx2_held + k;
        for (; count >= 8; count -= 8, bits >>= 8, byte++) {
            if (w->others)
                avx2_store_some_bits(byte, (unsigned)bits & 255, 255 & ~w->others);
            else
                *byte = (unsigned char)bits;
            w->others = 0;
        }
        w->waiting = bits;
        w->at += k;
    }
}
#if BNORM_SLEEF
/* SPDX-License-Identifier: MIT
 *
 * The activations that need exp and its kin, and their derivatives, with SLEEF's functions: those
 * with "finz" in their name give the same bits on every instruction set that has fma. They are
 * called by their full names: SLEEF's own dispatcher would choose for the machine, not for this
 * kernel set. docs/numerics.md has the errors, which `make activations` measures.
 *
 * What all have in common: e = exp(-|v|) lies in [0, 1], so that nothing overflows and nothing
 * cancels where v is far from 0. v is cut off behind the point where the result is the same to the
 * last bit: where the formula would be 0*inf at an infinity, and as SLEEF's functions raise
 * exceptions at numbers that are far too large for them. */
#if BNORM_SLEEF

/* sleef_exp(v) and so on. */
#if defined(__clang__) && defined(__x86_64__)
/* clang passes vectors in memory unless its command line, not just the function, chooses a target
 * that has them; SLEEF expects them in registers. A few instructions take them from there. */
#if !defined(__ELF__)
#error "with clang on x86, bnorm can call SLEEF on ELF systems only: build it with SLEEF=0"
#endif
#if VEC_F == 16
#define SMOOTH_REGISTER "%zmm0"
#else
#define SMOOTH_REGISTER "%ymm0"
#endif
#define SMOOTH_FUNCTION_(name, symbol)                                                             \
    __asm__(".pushsection .text\n"                                                                 \
            ".globl bnorm_" #symbol "\n"                                                           \
            ".hidden bnorm_" #symbol "\n"                                                          \
            ".type bnorm_" #symbol ", @function\n"                                                 \
            ".p2align 4\n"                                                                         \
            "bnorm_" #symbol ":\n"                                                                 \
            "vmovups (%rdi), " SMOOTH_REGISTER "\n"                                                \
            "jmp " #symbol "@PLT\n"                                                                \
            ".size bnorm_" #symbol ", .-bnorm_" #symbol "\n"                                       \
            ".popsection");                                                                        \
    __attribute__((visibility("hidden"))) avx2_vec_f bnorm_##symbol(const avx2_vec_f *v);                    \
    BNORM_INLINE avx2_vec_f name(avx2_vec_f v) {                                                             \
        return bnorm_##symbol(&v);                                                                 \
    }
#else
#define SMOOTH_FUNCTION_(name, symbol)                                                             \
    avx2_vec_f symbol(avx2_vec_f v);                                                                         \
    BNORM_INLINE avx2_vec_f name(avx2_vec_f v) {                                                             \
        return symbol(v);                                                                          \
    }
#endif
#define SMOOTH_FUNCTION(name, symbol) SMOOTH_FUNCTION_(name, symbol)
SMOOTH_FUNCTION(avx2_sleef_exp, VEC_SLEEF(exp, u10))
SMOOTH_FUNCTION(avx2_sleef_expm1, VEC_SLEEF(expm1, u10))
SMOOTH_FUNCTION(avx2_sleef_log1p, VEC_SLEEF(log1p, u10))
SMOOTH_FUNCTION(avx2_sleef_tanh, VEC_SLEEF(tanh, u35))

/* Where SLEEF's exp(v) and exp(-v^2/2) are 0. */
#define SMOOTH_EXP_ZERO    (-104)
#define SMOOTH_NORMAL_ZERO (-15)

/* Where SLEEF's tanh(v) is 1. */
#define SMOOTH_TANH_ONE 9

/* The greater of -|v| and the limit; a NaN stays. */
BNORM_INLINE avx2_vec_f avx2_minus_abs_from(avx2_vec_f v, float limit) {
    return avx2_vec_max(avx2_vec_set1(limit), avx2_vec_minus_abs(v));
}

/* exp(-|v|) */
BNORM_INLINE avx2_vec_f avx2_exp_minus_abs(avx2_vec_f v) {
    return avx2_sleef_exp(avx2_minus_abs_from(v, SMOOTH_EXP_ZERO));
}

/* The lesser of v and 0, -0 for -0; a NaN stays. */
BNORM_INLINE avx2_vec_f avx2_negative_part(avx2_vec_f v) {
    return avx2_vec_if_gt(v, avx2_vec_set1(0), avx2_vec_set1(0), v);
}

/* 1/(1 + exp(-v)) */
BNORM_INLINE avx2_vec_f avx2_sigmoid_value(avx2_vec_f v) {
    const avx2_vec_f one = avx2_vec_set1(1), e = avx2_exp_minus_abs(v);
    return avx2_vec_div(avx2_vec_if_gt(v, avx2_vec_set1(0), one, e), avx2_vec_add(one, e));
}

BNORM_INLINE avx2_vec_f avx2_sigmoid_slope(avx2_vec_f v) {
    const avx2_vec_f e = avx2_exp_minus_abs(v), d = avx2_vec_add(avx2_vec_set1(1), e);
    return avx2_vec_div(e, avx2_vec_mul(d, d));
}

/* v*sigmoid(v) */
BNORM_INLINE avx2_vec_f avx2_silu_value(avx2_vec_f v) {
    const avx2_vec_f one = avx2_vec_set1(1), e = avx2_exp_minus_abs(v);
    const avx2_vec_f factor = avx2_vec_if_gt(v, avx2_vec_set1(0), one, e);
    return avx2_vec_div(avx2_vec_mul(avx2_vec_max(v, avx2_vec_set1(SMOOTH_EXP_ZERO)), factor), avx2_vec_add(one, e));
}

/* s*(1 + v*(1 - s)) with s = sigmoid(v); at -v it is 1 less that. */
BNORM_INLINE avx2_vec_f avx2_silu_slope(avx2_vec_f v) {
    const avx2_vec_f one = avx2_vec_set1(1), n = avx2_minus_abs_from(v, SMOOTH_EXP_ZERO);
    const avx2_vec_f e = avx2_sleef_exp(n), inverse = avx2_vec_div(one, avx2_vec_add(one, e));
    const avx2_vec_f s = avx2_vec_mul(e, inverse), factor = avx2_vec_fma(n, inverse, one);
    return avx2_vec_if_gt(v, avx2_vec_set1(0), avx2_vec_fma(avx2_vec_negate(s), factor, one), avx2_vec_mul(s, factor));
}

/* 1 - tanh(v)^2 = 4q/(1 + q)^2 with q = exp(-2|v|) */
BNORM_INLINE avx2_vec_f avx2_tanh_slope(avx2_vec_f v) {
    const avx2_vec_f n = avx2_minus_abs_from(v, .5f * SMOOTH_EXP_ZERO), q = avx2_sleef_exp(avx2_vec_add(n, n));
    const avx2_vec_f d = avx2_vec_add(avx2_vec_set1(1), q);
    return avx2_vec_div(avx2_vec_mul(q, avx2_vec_set1(4)), avx2_vec_mul(d, d));
}

/* The normal distribution: Phi(n) = exp(-n^2/2)*(ratio + low) for n <= 0, where low is what
 * rounding took from exp(-n^2/2) and ratio. */
struct avx2_normal_parts {
    avx2_vec_f n, exp, ratio, low;
};

/* For n = -|v|. ratio*(k - n) is nearly constant: a polynomial of s = (-n - k)/(k - n) in [-1, 1),
 * the substitution of Shepherd and Laframboise, "Chebyshev approximation of (1 + 2x)exp(x^2)erfc x"
 * (Mathematics of Computation 36, 1981). Its coefficients are those of mpmath's chebyfit for n from
 * -15 to 0, rounded to float; k = 75/32 is the one for which rounding hurts least. In exact
 * arithmetic ratio then is right to 0.13*2^-24. SLEEF's erfc would take 4 times as long. */
BNORM_INLINE struct avx2_normal_parts avx2_normal_parts(avx2_vec_f v) {
    static const float c[] = {0x1.6523p-1f,    -0x1.9eaf7ep-2f,  0x1.982a14p-4f,  0x1.664226p-6f,
                              -0x1.b5d34cp-7f, -0x1.1df5a6p-8f,  0x1.af9714p-10f, 0x1.427392p-10f,
                              0x1.70788ep-17f, -0x1.f532c8p-13f, -0x1.3c7de2p-14f};
    enum { DEGREE = sizeof c / sizeof c[0] - 1 };
    const avx2_vec_f one = avx2_vec_set1(1), k = avx2_vec_set1(2.34375f);
    const avx2_vec_f n = avx2_minus_abs_from(v, SMOOTH_NORMAL_ZERO),
                minus_half_n = avx2_vec_mul(n, avx2_vec_set1(-0.5f));
    const avx2_vec_f exponent = avx2_vec_mul(n, minus_half_n), exp = avx2_sleef_exp(exponent);

    const avx2_vec_f d = avx2_vec_sub(k, n), inverse = avx2_vec_div(one, d);
    const avx2_vec_f s = avx2_vec_fma(inverse, avx2_vec_set1(-2 * 2.34375f), one);
    avx2_vec_f sum = avx2_vec_set1(c[DEGREE]);
    BNORM_UNROLL
    for (size_t i = DEGREE; i-- > 0;)
        sum = avx2_vec_fma(sum, s, avx2_vec_set1(c[i]));
    const avx2_vec_f ratio = avx2_vec_mul(sum, inverse);

    /* The relative errors of exp and 1/d; d_error is exact. */
    const avx2_vec_f exp_error = avx2_vec_fma(n, minus_half_n, avx2_vec_negate(exponent));
    const avx2_vec_f d_error = avx2_vec_sub(n, avx2_vec_sub(k, d));
    const avx2_vec_f inverse_error = avx2_vec_fma(d_error, inverse, avx2_vec_fma(avx2_vec_negate(d), inverse, one));
    const avx2_vec_f ratio_error = avx2_vec_fma(sum, inverse, avx2_vec_negate(ratio));
    const struct avx2_normal_parts p = {n, exp, ratio,
                                   avx2_vec_fma(ratio, avx2_vec_add(exp_error, inverse_error), ratio_error)};
    return p;
}

/* v*Phi(v) = max(v, 0) - |v|*Phi(-|v|) */
BNORM_INLINE avx2_vec_f avx2_gelu_value(avx2_vec_f v) {
    const struct avx2_normal_parts p = avx2_normal_parts(v);
    const avx2_vec_f normal = avx2_vec_fma(p.exp, p.ratio, avx2_vec_mul(p.exp, p.low));
    return avx2_vec_fma(p.n, normal, avx2_vec_zero_unless_gt(v, avx2_vec_set1(0), v));
}

/* Phi(v) + v*exp(-v^2/2)/sqrt(2*pi); at -v it is 1 less that. */
BNORM_INLINE avx2_vec_f avx2_gelu_slope(avx2_vec_f v) {
    const struct avx2_normal_parts p = avx2_normal_parts(v);
    const avx2_vec_f factor = avx2_vec_add(avx2_vec_fma(p.n, avx2_vec_set1(0x1.988454p-2f), p.ratio), p.low);
    return avx2_vec_if_gt(v, avx2_vec_set1(0), avx2_vec_fma(avx2_vec_negate(p.exp), factor, avx2_vec_set1(1)),
                     avx2_vec_mul(p.exp, factor));
}

/* tanh(v) */
BNORM_INLINE avx2_vec_f avx2_tanh_value(avx2_vec_f v) {
    const avx2_vec_f one = avx2_vec_set1(SMOOTH_TANH_ONE);
    return avx2_sleef_tanh(avx2_vec_max(avx2_vec_negate(one), avx2_vec_if_gt(v, one, one, v)));
}

/* a*(exp(v) - 1) below 0 */
BNORM_INLINE avx2_vec_f avx2_elu_value(avx2_vec_f v, avx2_vec_f a) {
    const avx2_vec_f n = avx2_vec_max(avx2_vec_set1(SMOOTH_EXP_ZERO), avx2_negative_part(v));
    return avx2_vec_if_gt(v, avx2_vec_set1(0), v, avx2_vec_mul(avx2_sleef_expm1(n), a));
}

BNORM_INLINE avx2_vec_f avx2_elu_slope(avx2_vec_f v, avx2_vec_f a) {
    const avx2_vec_f n = avx2_vec_max(avx2_vec_set1(SMOOTH_EXP_ZERO), avx2_negative_part(v));
    return avx2_vec_if_gt(v, avx2_vec_set1(0), avx2_vec_set1(1), avx2_vec_mul(avx2_sleef_exp(n), a));
}

/* log(1 + exp(v)) = max(v, 0) + log(1 + e) */
BNORM_INLINE avx2_vec_f avx2_softplus_value(avx2_vec_f v) {
    const avx2_vec_f log1p = avx2_sleef_log1p(avx2_exp_minus_abs(v));
    return avx2_vec_add(avx2_vec_zero_unless_gt(v, avx2_vec_set1(0), v), log1p);
}

/* tanh(log(1 + E)) = ((1 + E)^2 - 1)/((1 + E)^2 + 1) with E = exp(v) as numerator/denominator,
 * both of them divided by E^2 where v > 0. e = exp(-|v|). */
struct avx2_mish_fraction {
    avx2_vec_f numerator, denominator;
};

BNORM_INLINE struct avx2_mish_fraction avx2_mish_fraction(avx2_vec_f v, avx2_vec_f e) {
    const avx2_vec_f zero = avx2_vec_set1(0), two = avx2_vec_set1(2), twice = avx2_vec_add(e, e);
    const avx2_vec_f numerator = avx2_vec_if_gt(v, zero, avx2_vec_fma(e, two, avx2_vec_set1(1)), avx2_vec_fma(e, e, twice));
    const struct avx2_mish_fraction f = {
        numerator,
        avx2_vec_if_gt(v, zero, avx2_vec_fma(e, twice, numerator), avx2_vec_add(numerator, two)),
    };
    return f;
}

/* v*tanh(log(1 + exp(v))) */
BNORM_INLINE avx2_vec_f avx2_mish_value(avx2_vec_f v) {
    const avx2_vec_f least = avx2_vec_set1(SMOOTH_EXP_ZERO);
    const struct avx2_mish_fraction f = avx2_mish_fraction(v, avx2_exp_minus_abs(v));
    return avx2_vec_div(avx2_vec_zero_if_le(v, least, avx2_vec_mul(avx2_vec_max(v, least), f.numerator)),
                   f.denominator);
}

/* t + v*(1 - t^2)*sigmoid(v) with t = numerator/denominator: the second term is
 * 4*e*(1 + e)*v/denominator^2, times e where v > 0. */
BNORM_INLINE avx2_vec_f avx2_mish_slope(avx2_vec_f v) {
    const avx2_vec_f four = avx2_vec_set1(4), n = avx2_minus_abs_from(v, SMOOTH_EXP_ZERO);
    const avx2_vec_f e = avx2_sleef_exp(n);
    const struct avx2_mish_fraction f = avx2_mish_fraction(v, e);
    const avx2_vec_f inverse = avx2_vec_div(avx2_vec_set1(1), f.denominator);
    const avx2_vec_f scaled_v = avx2_vec_if_gt(v, avx2_vec_set1(0), avx2_vec_mul(avx2_vec_negate(n), e), n);
    const avx2_vec_f second = avx2_vec_mul(avx2_vec_mul(scaled_v, e), avx2_vec_fma(e, four, four));
    return avx2_vec_mul(inverse, avx2_vec_fma(inverse, second, f.numerator));
}

/* The activation at v. */
BNORM_INLINE avx2_vec_f avx2_smooth_value(bnorm_act_kind kind, avx2_vec_f v, avx2_vec_f a) {
    switch (kind) {
    case BNORM_ACT_SIGMOID:
        return avx2_sigmoid_value(v);
    case BNORM_ACT_SILU:
        return avx2_silu_value(v);
    case BNORM_ACT_TANH:
        return avx2_tanh_value(v);
    case BNORM_ACT_GELU:
        return avx2_gelu_value(v);
    case BNORM_ACT_ELU:
        return avx2_elu_value(v, a);
    case BNORM_ACT_SOFTPLUS:
        return avx2_softplus_value(v);
    case BNORM_ACT_MISH:
        return avx2_mish_value(v);
    default:
        return v;
    }
}

/* Its derivative at v. */
BNORM_INLINE avx2_vec_f avx2_smooth_slope(bnorm_act_kind kind, avx2_vec_f v, avx2_vec_f a) {
    switch (kind) {
    case BNORM_ACT_SIGMOID:
        return avx2_sigmoid_slope(v);
    case BNORM_ACT_SILU:
        return avx2_silu_slope(v);
    case BNORM_ACT_TANH:
        return avx2_tanh_slope(v);
    case BNORM_ACT_GELU:
        return avx2_gelu_slope(v);
    case BNORM_ACT_ELU:
        return avx2_elu_slope(v, a);
    case BNORM_ACT_SOFTPLUS: /* of which the sigmoid is the derivative */
        return avx2_sigmoid_value(v);
    case BNORM_ACT_MISH:
        return avx2_mish_slope(v);
    default:
        return avx2_vec_set1(1);
    }
}

#define SMOOTH_KINDS(body)                                                                         \
    switch (kind) {                                                                                \
    case BNORM_ACT_SIGMOID:                                                                        \
        body(BNORM_ACT_SIGMOID);                                                                   \
        break;                                                                                     \
    case BNORM_ACT_SILU:                                                                           \
        body(BNORM_ACT_SILU);                                                                      \
        break;                                                                                     \
    case BNORM_ACT_TANH:                                                                           \
        body(BNORM_ACT_TANH);                                                                      \
        break;                                                                                     \
    case BNORM_ACT_GELU:                                                                           \
        body(BNORM_ACT_GELU);                                                                      \
        break;                                                                                     \
    case BNORM_ACT_ELU:                                                                            \
        body(BNORM_ACT_ELU);                                                                       \
        break;                                                                                     \
    case BNORM_ACT_SOFTPLUS:                                                                       \
        body(BNORM_ACT_SOFTPLUS);                                                                  \
        break;                                                                                     \
    case BNORM_ACT_MISH:                                                                           \
        body(BNORM_ACT_MISH);                                                                      \
        break;                                                                                     \
    default:                                                                                       \
        break;                                                                                     \
    }

/* dy[i] *= act'(v[i]) in whole vectors: up to VEC_F - 1 elements behind n are computed too. */
static void avx2_smooth_gradients(bnorm_act_kind kind, float a, const float *v, float *dy, size_t n) {
#define SMOOTH_GRADIENTS(kind)                                                                     \
    for (size_t i = 0; i < n; i += VEC_F)                                                          \
    avx2_vec_store(dy + i, avx2_vec_mul(avx2_vec_load(dy + i), avx2_smooth_slope(kind, avx2_vec_load(v + i), avx2_vec_set1(a))))
    SMOOTH_KINDS(SMOOTH_GRADIENTS)
#undef SMOOTH_GRADIENTS
}

#undef SMOOTH_KINDS

#endif
#else
/* Never called: the drivers refuse these activations. */
BNORM_INLINE avx2_vec_f avx2_smooth_value(bnorm_act_kind kind, avx2_vec_f v, avx2_vec_f a) {
    (void)kind, (void)a;
    return v;
}
static void avx2_smooth_gradients(bnorm_act_kind kind, float a, const float *v, float *dy, size_t n) {
    (void)kind, (void)a, (void)v, (void)dy, (void)n;
}
#endif
/* SPDX-License-Identifier: MIT
 *
 * What the passes of backward share: g = dy*act'(v). The kind of activation is a constant of an
 * inlined body. */

/* v where -3 < v < 3, else 0; a NaN stays. So no result that hard swish does not take overflows. */
BNORM_INLINE avx2_vec_f avx2_within_three(avx2_vec_f v) {
    return avx2_vec_zero_if_le(avx2_vec_minus_abs(v), avx2_vec_set1(-3), v);
}

/* dy times the derivative at v. */
BNORM_INLINE avx2_vec_f avx2_gradient(bnorm_act_kind kind, avx2_vec_f v, avx2_vec_f dy, avx2_vec_f a, avx2_vec_f b) {
    const avx2_vec_f zero = avx2_vec_set1(0), three = avx2_vec_set1(3);
    switch (kind) {
    case BNORM_ACT_IDENTITY:
        break;
    case BNORM_ACT_RELU:
        return avx2_vec_zero_unless_gt(v, zero, dy);
    case BNORM_ACT_CLAMP:
        return avx2_vec_zero_unless_gt(v, a, avx2_vec_zero_unless_gt(b, v, dy));
    case BNORM_ACT_LEAKY_RELU:
        return avx2_vec_if_gt(v, zero, dy, avx2_vec_mul(dy, avx2_vec_if_gt(v, zero, avx2_vec_set1(1), a)));
    case BNORM_ACT_HARD_SWISH: {
        const avx2_vec_f slope = avx2_vec_fma(avx2_within_three(v), avx2_vec_set1(1.0f / 3), avx2_vec_set1(0.5f));
        const avx2_vec_f between = avx2_vec_mul(dy, slope);
        return avx2_vec_zero_if_le(v, avx2_vec_set1(-3), avx2_vec_if_le(three, v, dy, between));
    }
    default: /* in smooth.h */
        break;
    }
    return dy;
}

BNORM_INLINE int avx2_reads_extra(enum bnorm_pre pre) {
    return pre == BNORM_PRE_RESIDUAL || pre == BNORM_PRE_Y;
}

/* Whether v is computed from x. */
BNORM_INLINE int avx2_reads_x(enum bnorm_pre pre) {
    return pre == BNORM_PRE_X || pre == BNORM_PRE_RESIDUAL;
}

BNORM_INLINE size_t avx2_whole_vectors(size_t n) {
    return (n + VEC_F - 1) / VEC_F * VEC_F;
}

/* The activations that are a few operations; the others are in smooth.h. */
#define BNORM_PLAIN_KINDS(X)                                                                       \
    X(BNORM_ACT_IDENTITY)                                                                          \
    X(BNORM_ACT_RELU)                                                                              \
    X(BNORM_ACT_CLAMP)                                                                             \
    X(BNORM_ACT_LEAKY_RELU)                                                                        \
    X(BNORM_ACT_HARD_SWISH)

/* dy times the derivative at v, in place, n of them; whole vectors are written. */
static void avx2_gradient_values(const bnorm_act *act, const float *v, float *dy, size_t n) {
    const avx2_vec_f a = avx2_vec_set1(act->a), b = avx2_vec_set1(act->b);
#define BNORM_CASE(kind)                                                                           \
    case kind:                                                                                     \
        for (size_t i = 0; i < n; i += VEC_F)                                                      \
            avx2_vec_store(dy + i, avx2_gradient(kind, avx2_vec_load(v + i), avx2_vec_load(dy + i), a, b));            \
        break;
    switch (act->kind) {
        BNORM_PLAIN_KINDS(BNORM_CASE)
    default:
        avx2_smooth_gradients(act->kind, act->a, v, dy, avx2_whole_vectors(n));
    }
#undef BNORM_CASE
}
/* SPDX-License-Identifier: MIT
 *
 * The reductions of a block: of the statistics, sum(d) and sum(d*d) with d = x - pivot; of backward,
 * sum(g) and sum(g*d) with d = x - center, by way of a pivot near it. src/scalar/scalar.c says what, docs/numerics.md why.
 *
 * Rows of lanes are added up in groups of 16 rows, in float, four rows at a time; groups in double.
 * A lane is a chain of a channel (several where few channels share a row), or every 32nd element of
 * a plane. A form has two parameters, constants of an inlined body:
 *   g     where the first of the two terms comes from: BNORM_SQUARES = from d; of backward an enum
 *         bnorm_pre: dy alone for BNORM_PRE_NONE, else dy where RELU or CLAMP let it pass
 *   type  of the tensors: F32, and BF16 and F16 for BNORM_SQUARES and BNORM_PRE_NONE
 * Everything else, and rows of less than a vector of lanes, becomes x and g in floats first, in
 * memory that stays in the first-level cache. */
/* SPDX-License-Identifier: MIT
 *
 * a*b + c rounded once. Where the compiler has no instruction for it, fma is a call into the C
 * library, which is slow on CPUs without FMA and on some systems rounds more than once. So it is
 * made of additions and products then: S. Boldo, G. Melquiond, "Emulation of FMA and correctly
 * rounded sums: proved algorithms using rounding to odd" (2008). For the default rounding mode.
 *
 * A compiler that contracts changes nothing here: every product that something is added to is
 * exact. */
#ifndef BNORM_FMA_H
#define BNORM_FMA_H

/* gcc says so of all CPUs, clang of some. BNORM_OWN_FMA is for the tests. */
#if !defined(BNORM_OWN_FMA) && ((defined(__FP_FAST_FMA) && defined(__FP_FAST_FMAF)) ||             \
                                defined(__FMA__) || defined(__FMA4__) || defined(__aarch64__))

static inline float bnorm_fmaf(float a, float b, float c) {
    return __builtin_fmaf(a, b, c);
}

static inline double bnorm_fma(double a, double b, double c) {
    return __builtin_fma(a, b, c);
}

#else

static inline uint64_t bnorm_double_bits(double v) {
    uint64_t bits;
    memcpy(&bits, &v, sizeof bits);
    return bits;
}

static inline double bnorm_bits_double(uint64_t bits) {
    double v;
    memcpy(&v, &bits, sizeof v);
    return v;
}

/* high + low = a + b exactly, high being a + b rounded. */
struct bnorm_sum {
    double high, low;
};

static inline struct bnorm_sum bnorm_exact_sum(double a, double b) {
    const double high = a + b, of_b = high - a, of_a = high - of_b;
    return (struct bnorm_sum){high, (a - of_a) + (b - of_b)};
}

/* a + b, finite, rounded to odd: of the two neighbours of an inexact sum, the one whose last bit is
 * set. Rounded to fewer bits afterwards (2 less will do), it gives what a + b itself would. */
static inline double bnorm_odd_sum(double a, double b) {
    const struct bnorm_sum sum = bnorm_exact_sum(a, b);
    const uint64_t bits = bnorm_double_bits(sum.high);
    if (sum.low == 0 || bits % 2)
        return sum.high;
    return bnorm_bits_double((sum.low > 0) == (sum.high > 0) ? bits + 1 : bits - 1);
}

/* The product is exact in double. Their sum, rounded to double, is as good as rounded to odd unless
 * it lies half-way between two floats: one 1 behind the last bit of a float, or, where the float is
 * denormal, somewhere else. Infinities and NaNs never get to the sum that subtracts. */
static inline float bnorm_fmaf(float a, float b, float c) {
    const double product = (double)a * (double)b, sum = product + (double)c;
    const uint64_t bits = bnorm_double_bits(sum);
    if ((bits & 0x1fffffff) != 0x10000000 && (bits >> 52 & 0x7ff) >= 1023 - 126)
        return (float)sum;
    return (float)bnorm_odd_sum(product, (double)c);
}

/* 2^exponent, for exponents of -1022 to 1023. */
static inline double bnorm_power_of_2(int exponent) {
    return bnorm_bits_double((uint64_t)(exponent + 1023) << 52);
}

/* As stored: 0 for zeros and denormals, 2047 for infinities and NaNs. */
static inline int bnorm_stored_exponent(double v) {
    return (int)(bnorm_double_bits(v) >> 52 & 0x7ff);
}

/* high + low = a*b exactly, high being a*b rounded; nothing on the way may over- or underflow. */
static inline struct bnorm_sum bnorm_exact_product(double a, double b) {
    /* Halves of 26 bits and a sign: their products are exact, and so are `middle` and what is added
     * to the low part, in 53 bits. */
    const uint64_t half = (uint64_t)1 << 26, upper = ~(2 * half - 1);
    const double a1 = bnorm_bits_double((bnorm_double_bits(a) + half) & upper), a2 = a - a1;
    const double b1 = bnorm_bits_double((bnorm_double_bits(b) + half) & upper), b2 = b - b1;
    const double middle = a1 * b2 + a2 * b1;
    const struct bnorm_sum most = bnorm_exact_sum(a1 * b1, middle);
    return bnorm_exact_sum(most.high, most.low + a2 * b2);
}

/* v = m*2^exponent with 1 <= |m| < 2, for finite numbers other than 0. */
static inline double bnorm_mantissa(double v, int *exponent) {
    const int denormal = bnorm_stored_exponent(v) == 0;
    const double normal = denormal ? v * 0x1p54 : v;
    *exponent = bnorm_stored_exponent(normal) - 1023 - (denormal ? 54 : 0);
    return bnorm_bits_double((bnorm_double_bits(normal) & ~((uint64_t)0x7ff << 52)) | (uint64_t)1023
                                                                                          << 52);
}

/* bnorm_fma of any numbers: the work is done on mantissas. */
__attribute__((noinline, unused)) static double bnorm_fma_rare(double a, double b, double c) {
    if (a == 0 || b == 0 || bnorm_stored_exponent(a) == 2047 || bnorm_stored_exponent(b) == 2047)
        return a * b + c;
    if (bnorm_stored_exponent(c) == 2047)
        return c;
    int exponent_a, exponent_b, exponent_c = 0;
    const double ma = bnorm_mantissa(a, &exponent_a), mb = bnorm_mantissa(b, &exponent_b);
    const int scale = exponent_a + exponent_b; /* 2^scale <= |a*b| < 2^(scale + 2) */
    if (scale < -1080)                         /* less than half the least denormal */
        return c == 0 ? a * b : c;
    double mc = 0;
    if (c != 0) {
        mc = bnorm_mantissa(c, &exponent_c);
        if (exponent_c - scale > 110)
            return c;
        /* Further down it matters only that it is not 0. */
        const int apart = exponent_c - scale;
        mc *= bnorm_power_of_2(apart < -200 ? -200 : apart);
    }

    const struct bnorm_sum product = bnorm_exact_product(ma, mb);
    const struct bnorm_sum low = bnorm_exact_sum(mc, product.low);
    const struct bnorm_sum high = bnorm_exact_sum(product.high, low.high);
    const double rest = bnorm_odd_sum(low.low, high.low);
    double result = high.high + rest;
    if (result == 0)
        return result;
    if (bnorm_stored_exponent(result) - 1023 + scale < -1022) {
        /* Rounded to a multiple of 2^-1074/2^scale, as that is the last bit of what it is added
         * to. */
        const double big = bnorm_power_of_2(-1022 - scale) * (result < 0 ? -1 : 1);
        const struct bnorm_sum moved = bnorm_exact_sum(big, high.high);
        result = moved.high + bnorm_odd_sum(moved.low, rest);
        result = bnorm_bits_double(bnorm_double_bits(result - big) |
                                   (bnorm_double_bits(big) & (uint64_t)1 << 63));
    }
    return result * bnorm_power_of_2(scale / 2) * bnorm_power_of_2(scale - scale / 2);
}

/* Not inlined, so that no operation on a, b or c is contracted with the one that they come from. */
__attribute__((noinline, unused)) static double bnorm_fma(double a, double b, double c) {
    const int exponent_a = bnorm_stored_exponent(a), exponent_b = bnorm_stored_exponent(b);
    if ((unsigned)(exponent_a - 543) > 980 || (unsigned)(exponent_b - 543) > 980 ||
        bnorm_stored_exponent(c) > 2023)
        return bnorm_fma_rare(a, b, c);
    const struct bnorm_sum product = bnorm_exact_product(a, b);
    const struct bnorm_sum sum = bnorm_exact_sum(product.high, c);
    if (product.low == 0)
        return sum.high;
    /* What rounding `low` took matters only if the rest is half a unit, a power of 2. */
    const double low = sum.low + product.low, result = sum.high + low;
    const double rest = low - (result - sum.high);
    if (rest == 0 || bnorm_double_bits(rest) << 12 != 0)
        return result;
    return bnorm_fma_rare(a, b, c);
}

#endif

#endif

#define BNORM_SQUARES (-1)
#define BNORM_GENERAL (-2) /* has no form: by way of memory */

struct avx2_sum_form {
    int g;
    bnorm_dtype type;
    int plane; /* rows are those of a plane */
};

/* Rows of lanes in memory. Steps are bytes from one row to the next. */
struct sum_rows {
    const bnorm_map_args *a; /* pre and act of backward; NULL = statistics */
    bnorm_dtype type;
    int spread; /* parameters: one for all lanes, or one per lane */
    int fetch;  /* lines are asked for ahead of their use */
    const char *x, *dy, *argument;
    size_t x_step, dy_step, argument_step, bit, bit_step;
    const float *pivot;                           /* d = x - pivot */
    const float *center, *scale, *shift, *invstd; /* NULL for statistics */
};

/* From lane i of row `row` on, every `every`th row; parameters from lane `p` on. */
BNORM_INLINE struct sum_rows avx2_sum_rows_from(const struct sum_rows *s, size_t row, size_t i,
                                           size_t every, size_t p) {
    const size_t size = avx2_size_of(s->type);
    struct sum_rows t = *s;
    t.x += row * s->x_step + i * size;
    t.x_step *= every;
    if (s->pivot)
        t.pivot += p;
    if (s->a) {
        t.center += p;
        t.invstd += p;
        t.dy += row * s->dy_step + i * size;
        t.dy_step *= every;
        if (avx2_reads_extra(s->a->pre)) {
            t.argument += row * s->argument_step + i * size;
            t.argument_step *= every;
        }
        t.bit += row * s->bit_step + i;
        t.bit_step *= every;
        if (avx2_reads_x(s->a->pre)) {
            t.scale += p;
            t.shift += p;
        }
    }
    return t;
}

/* ---------------------------------------------------------------------------------------------- */
/* Trees of vectors */

struct avx2_sums {
    avx2_vec_f a, b;
};

/* The parameters of a vector of lanes. */
struct avx2_sum_parameters {
    avx2_vec_f pivot, center, scale, shift, low, high;
};

BNORM_INLINE struct avx2_sums avx2_no_sums(void) {
    return (struct avx2_sums){avx2_vec_set1(0), avx2_vec_set1(0)};
}

BNORM_INLINE struct avx2_sums avx2_add_sums(struct avx2_sums s, struct avx2_sums t) {
    return (struct avx2_sums){avx2_vec_add(s.a, t.a), avx2_vec_add(s.b, t.b)};
}

/* RELU and CLAMP pass dy where low < v, unless high <= v: never for RELU, whose limit is a NaN. */
BNORM_INLINE struct avx2_sum_parameters
avx2_sum_parameters_at(const struct avx2_sum_form f, const struct sum_rows *s, int spread, size_t i) {
    struct avx2_sum_parameters p;
    const avx2_vec_f zero = avx2_vec_set1(0);
    p.pivot = avx2_parameter_lanes(s->pivot, spread, i, VEC_F);
    p.center = p.scale = p.shift = p.low = p.high = zero;
    if (f.g > BNORM_PRE_NONE) {
        const int clamp = s->a->act.kind == BNORM_ACT_CLAMP;
        p.low = clamp ? avx2_vec_set1(s->a->act.a) : zero;
        p.high = clamp ? avx2_vec_set1(s->a->act.b) : avx2_vec_set1(NAN);
    }
    if (f.g == BNORM_PRE_X || f.g == BNORM_PRE_RESIDUAL) {
        p.center = avx2_parameter_lanes(s->center, spread, i, VEC_F);
        p.scale = avx2_parameter_lanes(s->scale, spread, i, VEC_F);
        p.shift = avx2_parameter_lanes(s->shift, spread, i, VEC_F);
    }
    return p;
}

/* Lanes of a vector, from lane i on, that lie before `end`. */
BNORM_INLINE size_t avx2_lanes_before(size_t end, size_t i) {
    return end > i ? avx2_lesser(VEC_F, end - i) : 0;
}

/* n <= VEC_F elements, 0 behind them. */
BNORM_RARE avx2_vec_f avx2_half_lanes(const void *p, bnorm_dtype type, size_t n) {
    return avx2_widened_lanes(p, type, n);
}
BNORM_INLINE avx2_vec_f avx2_form_lanes(const struct avx2_sum_form f, const char *p, size_t n) {
    const void *const at = p;
    if (__builtin_constant_p(n) && n == VEC_F)
        return avx2_widened_lanes(at, f.type, VEC_F);
    return f.type == BNORM_F32 ? vec_load_n(at, n) : avx2_half_lanes(at, f.type, n);
}

/* Where rows of lanes are read. */
struct avx2_cursor {
    const char *x, *dy, *argument;
    size_t bit;
};

/* Lane i of row `row` behind a cursor. */
BNORM_INLINE struct avx2_cursor avx2_cursor_at(const struct avx2_sum_form f, const struct sum_rows *s,
                                     struct avx2_cursor c, size_t row, size_t i) {
    const size_t at = i * avx2_size_of(f.type), step = BNORM_SPAN_LANES * avx2_size_of(f.type);
    c.x += row * (f.plane ? step : s->x_step) + at;
    if (f.g >= BNORM_PRE_NONE)
        c.dy += row * (f.plane ? step : s->dy_step) + at;
    if (f.g == BNORM_PRE_RESIDUAL || f.g == BNORM_PRE_Y)
        c.argument += row * (f.plane ? step : s->argument_step) + at;
    if (f.g == BNORM_PRE_MASK)
        c.bit += row * (f.plane ? BNORM_SPAN_LANES : s->bit_step) + i;
    return c;
}

BNORM_INLINE struct avx2_cursor avx2_cursor_of(const struct sum_rows *s) {
    return (struct avx2_cursor){s->x, s->dy, s->argument, s->bit};
}

/* The two factors of a row: their product is the second term, the first of them the first term. */
struct avx2_terms {
    avx2_vec_f a, d;
};

/* What the sums of rows take: `row` and `i` are counted from the cursor. */
#define BNORM_SUM_ARGS                                                                             \
    const struct avx2_sum_form f, const struct sum_rows *s, const struct avx2_sum_parameters *p,             \
        struct avx2_cursor from, size_t row, size_t i

/* x - from in the first n lanes, zeros behind them. */
BNORM_INLINE avx2_vec_f avx2_difference(avx2_vec_f x, avx2_vec_f from, size_t n) {
    const avx2_vec_f all = avx2_vec_sub(x, from);
    return __builtin_constant_p(n) && n == VEC_F ? all : avx2_vec_first_n(all, n);
}

/* n lanes of a row, zeros behind them. */
BNORM_INLINE struct avx2_terms avx2_terms_at(BNORM_SUM_ARGS, size_t n) {
    const struct avx2_cursor at = avx2_cursor_at(f, s, from, row, i);
    const avx2_vec_f x = avx2_form_lanes(f, at.x, n), d = avx2_difference(x, p->pivot, n);
    if (f.g == BNORM_SQUARES)
        return (struct avx2_terms){d, d};
    const avx2_vec_f dy = avx2_form_lanes(f, at.dy, n);
    avx2_vec_f v = avx2_vec_set1(0);
    if (f.g == BNORM_PRE_NONE)
        return (struct avx2_terms){dy, d};
    if (f.g == BNORM_PRE_RESIDUAL || f.g == BNORM_PRE_Y)
        v = avx2_form_lanes(f, at.argument, n);
    if (f.g == BNORM_PRE_MASK)
        v = avx2_vec_from_bits(n ? avx2_bit_window(s->a->mask.bits, at.bit, n) : 0);
    if (f.g == BNORM_PRE_X)
        v = avx2_vec_fma(avx2_difference(x, p->center, n), p->scale, p->shift);
    if (f.g == BNORM_PRE_RESIDUAL)
        v = avx2_vec_add(avx2_vec_fma(avx2_difference(x, p->center, n), p->scale, p->shift), v);
    return (struct avx2_terms){avx2_vec_zero_from(v, p->high, avx2_vec_zero_unless_gt(v, p->low, dy)), d};
}

/* Sums of one row and of two. 0 is added to a product that compilers can't make one operation with
 * what it is added to. */
BNORM_INLINE struct avx2_sums avx2_sum_of_one(struct avx2_terms t) {
    return (struct avx2_sums){t.a, avx2_vec_fma(t.a, t.d, avx2_vec_set1(0))};
}
BNORM_INLINE struct avx2_sums avx2_sum_of_two(struct avx2_terms t, struct avx2_terms u) {
    return (struct avx2_sums){avx2_vec_add(t.a, u.a), avx2_vec_fma(u.a, u.d, avx2_vec_mul(t.a, t.d))};
}

/* Sums of 1, 2 and 4 rows, the last one of n lanes. */
BNORM_INLINE struct avx2_sums avx2_sum_1(BNORM_SUM_ARGS, size_t n) {
    return avx2_sum_of_one(avx2_terms_at(f, s, p, from, row, i, n));
}
BNORM_INLINE struct avx2_sums avx2_sum_2(BNORM_SUM_ARGS, size_t n) {
    return avx2_sum_of_two(avx2_terms_at(f, s, p, from, row, i, VEC_F),
                      avx2_terms_at(f, s, p, from, row + 1, i, n));
}
BNORM_INLINE struct avx2_sums avx2_sum_4(BNORM_SUM_ARGS) {
    return avx2_add_sums(avx2_sum_2(f, s, p, from, row, i, VEC_F), avx2_sum_2(f, s, p, from, row + 2, i, VEC_F));
}

/* Asks for the lines of `bytes` bytes of each tensor, `ahead` behind a cursor. The CPU's own
 * prefetching begins anew with each row of a few lines, and with each page. */
BNORM_INLINE void avx2_fetch_ahead(const struct avx2_sum_form f, struct avx2_cursor at, size_t ahead,
                              size_t bytes) {
#define BNORM_FETCH(t) avx2_vec_fetch((const float *)(const void *)(at.t + ahead + k))
    for (size_t k = 0; k < bytes; k += 64) {
        BNORM_FETCH(x);
        if (f.g >= BNORM_PRE_NONE)
            BNORM_FETCH(dy);
        if (f.g == BNORM_PRE_RESIDUAL || f.g == BNORM_PRE_Y)
            BNORM_FETCH(argument);
    }
#undef BNORM_FETCH
}

/* Adds the sums of four rows of `count` vectors side by side to theirs, `fours` times. */
BNORM_INLINE void avx2_add_fours(const struct avx2_sum_form f, const struct sum_rows *s,
                            const struct avx2_sum_parameters *p, struct avx2_cursor at, size_t fours,
                            size_t count, struct avx2_sums *avx2_sums) {
    BNORM_NO_UNROLL
    for (; fours > 0; fours--) {
        BNORM_UNROLL
        for (size_t k = 0; k < count; k++)
            avx2_sums[k] = avx2_add_sums(avx2_sums[k], avx2_sum_4(f, s, p, at, 0, k * VEC_F));
        if (BNORM_UNLIKELY(s->fetch))
            avx2_fetch_ahead(f, at, BNORM_AHEAD, 4 * BNORM_SPAN_LANES * avx2_size_of(f.type));
        at = avx2_cursor_at(f, s, at, 4, 0);
    }
}

/* Sums of `rows` < 4 rows, and the first `extra` lanes of one more. Rows that are not there count
 * as 0. */
BNORM_INLINE struct avx2_sums avx2_sum_rest(BNORM_SUM_ARGS, size_t rows, size_t extra) {
    struct avx2_sums two, one;
    if (rows & 2) {
        two = avx2_sum_2(f, s, p, from, row, i, VEC_F);
        if (rows == 2 && !extra)
            return two;
    }
    if (extra)
        one = rows & 1 ? avx2_sum_2(f, s, p, from, row + (rows & 2), i, extra)
                       : avx2_sum_1(f, s, p, from, row + (rows & 2), i, extra);
    else if (rows & 1)
        one = avx2_sum_1(f, s, p, from, row + (rows & 2), i, VEC_F);
    else
        return avx2_no_sums();
    return rows & 2 ? avx2_add_sums(two, one) : one;
}

/* ---------------------------------------------------------------------------------------------- */
/* Everything, by way of memory */

/* `rows` rows of n lanes as floats without gaps, whole vectors each. */
BNORM_INLINE void avx2_load_tensor(float *to, const char *from, size_t step, bnorm_dtype type,
                              size_t rows, size_t n) {
    if (n % VEC_F == 0) {
        widen_rows(to, from, type, step / avx2_size_of(type), rows, n);
        return;
    }
    for (; rows > 0; rows--, from += step)
        for (size_t i = 0; i < n; i += VEC_F, to += VEC_F)
            avx2_vec_store(to, avx2_widened_lanes(avx2_element_at(from, type, i), type, avx2_lesser(VEC_F, n - i)));
}

/* Arguments of the activation, n <= VEC_F from lane i of row r on; `one` are the parameters of a
 * plane. */
BNORM_INLINE avx2_vec_f avx2_argument_lanes(enum bnorm_pre pre, const struct sum_rows *s,
                                  const struct avx2_sum_parameters *one, avx2_vec_f x, size_t r, size_t i,
                                  size_t n) {
    struct avx2_sum_parameters p = *one;
    const char *const argument =
        avx2_reads_extra(pre) ? s->argument + r * s->argument_step + i * avx2_size_of(s->type) : NULL;
    if (pre == BNORM_PRE_MASK) {
        const size_t bit = s->bit + r * s->bit_step + i;
        return avx2_vec_from_bits(avx2_bit_window(s->a->mask.bits, bit, n) & ((1u << n) - 1));
    }
    if (pre == BNORM_PRE_Y)
        return avx2_widened_lanes(argument, s->type, n);
    if (!s->spread) {
        p.center = avx2_load_lanes(s->center + i, n);
        p.scale = avx2_load_lanes(s->scale + i, n);
        p.shift = avx2_load_lanes(s->shift + i, n);
    }
    /* Lanes behind them hold 0, as do their parameters where they are not those of a plane. */
    const avx2_vec_f v = avx2_vec_fma(avx2_first_lanes(avx2_vec_sub(x, p.center), n), p.scale, p.shift);
    if (pre == BNORM_PRE_X)
        return v;
    return avx2_vec_add(v, avx2_widened_lanes(argument, s->type, n));
}

BNORM_INLINE void avx2_load_arguments(enum bnorm_pre pre, const struct sum_rows *s, const float *x,
                                 size_t r, size_t i, size_t end, float *v) {
    struct avx2_sum_parameters one = {.center = avx2_vec_set1(0), .scale = avx2_vec_set1(0)};
    if (avx2_reads_x(pre) && s->spread) {
        one.center = avx2_vec_set1(s->center[r]);
        one.scale = avx2_vec_set1(s->scale[r]);
        one.shift = avx2_vec_set1(s->shift[r]);
    }
    for (; i + VEC_F <= end; i += VEC_F, v += VEC_F)
        avx2_vec_store(v, avx2_argument_lanes(pre, s, &one, avx2_vec_load(x + i), r, i, VEC_F));
    if (i < end)
        avx2_vec_store(v, avx2_argument_lanes(pre, s, &one, avx2_vec_load(x + i), r, i, end - i));
}

/* Rows [0, rows) of n lanes as floats without gaps, whole vectors each: x, and g, which is not
 * written for statistics. */
static void load_rows(const struct sum_rows *s, size_t rows, size_t n, float *x, float *g) {
    enum { ROOM = 128 };
    float v[ROOM];
    size_t count = 0;
    avx2_load_tensor(x, s->x, s->x_step, s->type, rows, n);
    if (!s->a)
        return;
    avx2_load_tensor(g, s->dy, s->dy_step, s->type, rows, n);
    if (s->a->pre == BNORM_PRE_NONE)
        return;
    const struct sum_rows own = *s; /* that no store can change */
    for (size_t r = 0; r < rows; r++, x += avx2_whole_vectors(n))
        for (size_t i = 0, end; i < n; i = end) {
            end = avx2_lesser(n, i + ROOM);
            if (count + avx2_whole_vectors(end - i) > ROOM) {
                avx2_gradient_values(&s->a->act, v, g, count);
                g += count;
                count = 0;
            }
#define BNORM_CASE(pre)                                                                            \
    case pre:                                                                                      \
        avx2_load_arguments(pre, &own, x, r, i, end, v + count);                                        \
        break;
            switch (s->a->pre) {
                BNORM_CASE(BNORM_PRE_X)
                BNORM_CASE(BNORM_PRE_RESIDUAL)
                BNORM_CASE(BNORM_PRE_Y)
                BNORM_CASE(BNORM_PRE_MASK)
            default:
                break;
            }
#undef BNORM_CASE
            count += avx2_whole_vectors(end - i);
        }
    avx2_gradient_values(&s->a->act, v, g, count);
}

/* ---------------------------------------------------------------------------------------------- */
/* Rows */

/* Adds the sums of a group to as many doubles; the first group's are stored. */
BNORM_INLINE void avx2_add_group(struct avx2_sums s, int first, double *a, double *b) {
    static const double none[VEC_F];
    const double *const from_a = first ? none : a, *const from_b = first ? none : b;
    vec_store_d(a, avx2_vec_add_d(vec_load_d(from_a), avx2_vec_low(s.a)));
    vec_store_d(a + VEC_D, avx2_vec_add_d(vec_load_d(from_a + VEC_D), avx2_vec_high(s.a)));
    vec_store_d(b, avx2_vec_add_d(vec_load_d(from_b), avx2_vec_low(s.b)));
    vec_store_d(b + VEC_D, avx2_vec_add_d(vec_load_d(from_b + VEC_D), avx2_vec_high(s.b)));
}

/* X(name, g, type) for all forms. */
#define BNORM_SUM_TYPES(X, name, g)                                                                \
    X(name##_f32, g, BNORM_F32)                                                                    \
    X(name##_bf16, g, BNORM_BF16)                                                                  \
    X(name##_f16, g, BNORM_F16)
#define BNORM_SUM_FORMS(X)                                                                         \
    BNORM_SUM_TYPES(X, squares, BNORM_SQUARES)                                                     \
    BNORM_SUM_TYPES(X, dy, BNORM_PRE_NONE)                                                         \
    X(limited_x, BNORM_PRE_X, BNORM_F32)                                                           \
    X(limited_residual, BNORM_PRE_RESIDUAL, BNORM_F32)                                             \
    X(limited_y, BNORM_PRE_Y, BNORM_F32)                                                           \
    X(limited_mask, BNORM_PRE_MASK, BNORM_F32)

/* Which of them s has, or BNORM_GENERAL. */
static int avx2_form_of(const struct sum_rows *s) {
    const enum bnorm_pre pre = s->a ? s->a->pre : BNORM_PRE_NONE;
    if (pre == BNORM_PRE_NONE)
        return (s->a ? 3 : 0) + (int)s->type;
    if (s->type == BNORM_F32 &&
        (s->a->act.kind == BNORM_ACT_RELU || s->a->act.kind == BNORM_ACT_CLAMP))
        return 6 + (int)pre - (int)BNORM_PRE_X;
    return BNORM_GENERAL;
}

/* Sums of a group in float, whole vectors of lanes: those of b behind those of a. */
#define BNORM_GROUP_LANES (BNORM_TILE + BNORM_PAD)
BNORM_INLINE void avx2_add_to_group(struct avx2_sums s, int first, float *to) {
    float *const b = to + BNORM_GROUP_LANES;
    if (!first)
        s = avx2_add_sums((struct avx2_sums){avx2_vec_load(to), avx2_vec_load(b)}, s);
    avx2_vec_store(to, s.a);
    avx2_vec_store(b, s.b);
}

/* Four rows of len lanes. Where these are not whole vectors, the last one begins so much earlier.
 * With each vector the next lines of the row `ahead` rows behind are asked for. */
BNORM_INLINE void add_fours_of_rows(const struct avx2_sum_form f, const struct sum_rows *s,
                                    struct avx2_cursor at, size_t len, size_t ahead, int first,
                                    float *to) {
    const size_t rest = len % VEC_F;
    size_t i = 0, end = len - rest, lane = 0;
    struct avx2_cursor next = avx2_cursor_at(f, s, at, ahead, 0);
    for (;;) {
        do {
            const struct avx2_sum_parameters p = avx2_sum_parameters_at(f, s, 0, i);
            if (BNORM_UNLIKELY(s->fetch)) {
                avx2_fetch_ahead(f, next, 0, 4 * VEC_F * avx2_size_of(f.type));
                next = avx2_cursor_at(f, s, next, 0, 4 * VEC_F);
                lane += 4 * VEC_F;
                if (lane >= len) {
                    next = avx2_cursor_at(f, s, next, 1, -lane);
                    lane = 0;
                }
            }
            avx2_add_to_group(avx2_sum_4(f, s, &p, at, 0, 0), first, to + i);
            at = avx2_cursor_at(f, s, at, 0, VEC_F);
            i += VEC_F;
        } while (i < end);
        if (end == len)
            return;
        i = len - VEC_F;
        end = len;
        to += VEC_F - rest;
        at = avx2_cursor_at(f, s, at, 0, rest - VEC_F);
    }
}

/* `rows` < 4 rows of len lanes, and of one more the lanes before `tail`. */
BNORM_INLINE void add_other_rows(const struct avx2_sum_form f, const struct sum_rows *s,
                                 struct avx2_cursor at, size_t len, size_t rows, size_t tail, int first,
                                 float *to) {
    for (size_t i = 0; i < len; i += VEC_F) {
        const size_t lane = avx2_lesser(i, len - VEC_F), extra = avx2_lanes_before(tail, lane);
        const struct avx2_sum_parameters p = avx2_sum_parameters_at(f, s, 0, lane);
        avx2_add_to_group(avx2_sum_rest(f, s, &p, at, 0, lane, rows, extra), first, to + i);
    }
}

/* The last `rest` doubles of a vector to its front, zeros behind them. */
BNORM_INLINE void avx2_move_rest(double *p, size_t rest) {
    memmove(p, p + (VEC_F - rest), rest * sizeof *p);
    memset(p + rest, 0, (VEC_F - rest) * sizeof *p);
}

/* Sums of `rows` rows of len >= VEC_F lanes, and the first `tail` lanes of one more; whole vectors
 * are written. */
BNORM_INLINE void avx2_add_lanes(const struct avx2_sum_form f, const struct sum_rows *from, size_t rows,
                            size_t tail, size_t len, double *a, double *b) {
    float group[2 * BNORM_GROUP_LANES];
    const struct sum_rows own = *from, *const s = &own; /* that no store can change */
    const size_t rest = len % VEC_F, whole = len - rest, four = 4 * len * avx2_size_of(f.type),
                 ahead = s->fetch ? 4 * ((BNORM_AHEAD + four - 1) / four) : 0;
    for (size_t r = 0; r < rows + (tail > 0); r += BNORM_GROUP) {
        const size_t count = avx2_lesser(BNORM_GROUP, rows - r), last = count < BNORM_GROUP ? tail : 0;
        struct avx2_cursor at = avx2_cursor_at(f, s, avx2_cursor_of(s), r, 0);
        size_t q = 0;
        for (; q + 4 <= count; q += 4, at = avx2_cursor_at(f, s, at, 4, 0)) {
            if (q == 0)
                add_fours_of_rows(f, s, at, len, ahead, 1, group);
            else
                add_fours_of_rows(f, s, at, len, ahead, 0, group);
        }
        if (q < count || last)
            add_other_rows(f, s, at, len, count - q, last, q == 0, group);
        for (size_t i = 0; i < len; i += VEC_F)
            avx2_add_group((struct avx2_sums){avx2_vec_load(group + i), avx2_vec_load(group + BNORM_GROUP_LANES + i)},
                      r == 0, a + i, b + i);
    }
    if (rest) {
        avx2_move_rest(a + whole, rest);
        avx2_move_rest(b + whole, rest);
    }
}

#define BNORM_ROWS_FORM(name, g, type)                                                             \
    static void add_rows_##name(const struct sum_rows *s, size_t rows, size_t tail, size_t len,    \
                                double *a, double *b) {                                            \
        avx2_add_lanes((struct avx2_sum_form){g, type, 0}, s, rows, tail, len, a, b);                        \
    }
BNORM_SUM_FORMS(BNORM_ROWS_FORM)

/* What has a form, of len >= VEC_F. */
BNORM_INLINE void avx2_add_form(const struct sum_rows *s, size_t rows, size_t tail, size_t len,
                           double *a, double *b) {
#define BNORM_ROWS_ENTRY(name, g, type) add_rows_##name,
    static void (*const forms[])(const struct sum_rows *, size_t, size_t, size_t, double *,
                                 double *) = {BNORM_SUM_FORMS(BNORM_ROWS_ENTRY)};
    forms[avx2_form_of(s)](s, rows, tail, len, a, b);
}

/* Elements of four rows of a plane, and of a group. */
#define BNORM_FOUR_SPAN  ((size_t)4 * BNORM_SPAN_LANES)
#define BNORM_GROUP_SPAN (BNORM_GROUP * BNORM_SPAN_LANES)
/* Floats of x and g that are made at a time: a group of a plane; of rows a group of so many lanes. */
#define BNORM_STAGE_LANES ((size_t)32)

/* Rows of `row` floats at x, and at g. */
BNORM_INLINE struct sum_rows staged_rows(const struct sum_rows *s, bnorm_map_args *args,
                                         const float *x, const float *g, const float *pivot,
                                         size_t row) {
    args->pre = BNORM_PRE_NONE;
    return (struct sum_rows){.a = s->a ? args : NULL,
                             .type = BNORM_F32,
                             .spread = s->spread,
                             .x = (const char *)x,
                             .dy = (const char *)g,
                             .x_step = row * sizeof *x,
                             .dy_step = row * sizeof *g,
                             .pivot = pivot,
                             .center = pivot,
                             .invstd = pivot};
}

/* What has none, and any len: a group of few lanes at a time. */
BNORM_RARE void avx2_add_staged(const struct sum_rows *s, size_t rows, size_t tail, size_t len,
                           double *a, double *b) {
    enum { ROOM = BNORM_GROUP * BNORM_STAGE_LANES };
    float x[ROOM], g[ROOM], pivot[BNORM_STAGE_LANES];
    double sums_a[BNORM_STAGE_LANES + VEC_F], sums_b[BNORM_STAGE_LANES + VEC_F];
    bnorm_map_args args;
    for (size_t r = 0; r < rows + (tail > 0); r += BNORM_GROUP) {
        const size_t count = avx2_lesser(BNORM_GROUP, rows - r), last = count < BNORM_GROUP ? tail : 0,
                     end = count ? len : last;
        for (size_t i = 0; i < end; i += BNORM_STAGE_LANES) {
            const size_t n = avx2_lesser(BNORM_STAGE_LANES, end - i), row = avx2_whole_vectors(n),
                         extra = last > i ? avx2_lesser(n, last - i) : 0, behind = count * row;
            const struct sum_rows at = avx2_sum_rows_from(s, r, i, 1, i),
                                  after = avx2_sum_rows_from(&at, count, 0, 1, 0),
                                  t = staged_rows(s, &args, x, g, pivot, row);
            memset(pivot, 0, sizeof pivot);
            memcpy(pivot, at.pivot, n * sizeof *pivot);
            load_rows(&at, count, n, x, g);
            if (extra)
                load_rows(&after, 1, extra, x + behind, g + behind);
            avx2_add_form(&t, count, extra, row, sums_a, sums_b);
            for (size_t k = 0; k < row; k++) {
                a[i + k] = (r ? a[i + k] : 0) + sums_a[k];
                b[i + k] = (r ? b[i + k] : 0) + sums_b[k];
            }
        }
    }
}

BNORM_INLINE void add_rows(const struct sum_rows *s, size_t rows, size_t tail, size_t len,
                           double *a, double *b) {
    if (len >= VEC_F && avx2_form_of(s) != BNORM_GENERAL)
        avx2_add_form(s, rows, tail, len, a, b);
    else
        avx2_add_staged(s, rows, tail, len, a, b);
}

/* c channels of a block of `count` positions: of rows, or, where parameters are spread, with c = 1
 * and 32 chains, of a plane. */
struct avx2_sum_block {
    struct sum_rows s; /* a row is a position, and c*chains lanes have parameters */
    size_t count, c, chains;
};

/* Rows without gaps are joined, so that chain j of channel i is lane j*c + i of longer rows;
 * otherwise each chain has rows of its own. */
struct chain_rows {
    struct sum_rows s;
    size_t rows, tail, len;
};
BNORM_INLINE size_t avx2_chain_count(const struct avx2_sum_block *k) {
    const struct sum_rows *s = &k->s;
    const size_t bytes = k->c * avx2_size_of(s->type);
    const int joined =
        s->x_step == bytes &&
        (!s->a || (s->dy_step == bytes && (!avx2_reads_extra(s->a->pre) || s->argument_step == bytes) &&
                   (s->a->pre != BNORM_PRE_MASK || s->bit_step == k->c)));
    return k->chains == 1 || joined ? 1 : avx2_lesser(k->chains, k->count);
}
BNORM_INLINE struct chain_rows avx2_chain_at(const struct avx2_sum_block *k, size_t chains, size_t j) {
    struct chain_rows r = {.s = avx2_sum_rows_from(&k->s, j, 0, k->chains, k->s.spread ? 0 : j * k->c)};
    if (chains == 1 && k->chains > 1) {
        r.rows = k->count / k->chains;
        r.tail = k->count % k->chains * k->c;
        r.len = r.rows ? k->c * k->chains : r.tail;
    } else {
        r.rows = (k->count - j + k->chains - 1) / k->chains;
        r.len = k->c;
    }
    return r;
}

/* Both sums of c channels; room for c*chains lanes and a vector more. */
static void avx2_sum_channels(const struct avx2_sum_block *k, double *a, double *b) {
    const size_t chains = avx2_chain_count(k);
    if (k->count < k->chains) { /* not all chains have a row */
        avx2_zero_lanes(a, k->c * k->chains);
        avx2_zero_lanes(b, k->c * k->chains);
    }
    for (size_t j = 0; j < chains; j++) {
        const struct chain_rows r = avx2_chain_at(k, chains, j);
        add_rows(&r.s, r.rows, r.tail, r.len, a + j * k->c, b + j * k->c);
    }
    avx2_fold_chains(a, k->c, k->chains);
    avx2_fold_chains(b, k->c, k->chains);
}

/* ---------------------------------------------------------------------------------------------- */
/* Planes: rows of BNORM_SPAN_LANES elements. The lanes of a group are folded in float, upper half
 * onto lower half, to four, which are added up in double. */

enum { avx2_SPAN_VECTORS = BNORM_SPAN_LANES / VEC_F };

/* Of up to VEC_F planes: the sums of a group, four each, and those of planes of more groups. */
struct avx2_plane_sums {
    _Alignas(64) float a[VEC_F][4], b[VEC_F][4];
    double all_a[VEC_F][4], all_b[VEC_F][4];
};

/* Adds four floats. */
BNORM_INLINE void avx2_add_four(double *avx2_sums, const float *fours) {
    const size_t lanes = avx2_lesser(VEC_D, 4);
    for (size_t k = 0; k < 4; k += lanes)
        store_d_lanes(avx2_sums + k,
                      avx2_vec_add_d(load_d_lanes(avx2_sums + k, lanes), avx2_widen_lanes(fours + k, lanes)),
                      lanes);
}

/* Planes of `len` elements; `adds`: the sums of groups are added to those of planes. */
BNORM_INLINE void sum_planes(const struct avx2_sum_form f, const struct sum_rows *s, size_t planes,
                             size_t len, int adds, struct avx2_plane_sums *to) {
    const struct avx2_sum_form apart = {f.g, f.type, 0};
    const size_t rows = len % BNORM_FOUR_SPAN / BNORM_SPAN_LANES;
    size_t last[avx2_SPAN_VECTORS]; /* lanes of the row that is not whole */
    struct avx2_cursor plane = avx2_cursor_of(s);
    for (size_t k = 0; k < avx2_SPAN_VECTORS; k++)
        last[k] = avx2_lanes_before(len % BNORM_SPAN_LANES, k * VEC_F);
    for (size_t i = 0; i < planes; i++, plane = avx2_cursor_at(apart, s, plane, 1, 0)) {
        const struct sum_rows here = avx2_sum_rows_from(s, 0, 0, 1, i);
        const struct avx2_sum_parameters p = avx2_sum_parameters_at(f, &here, 1, 0);
        struct avx2_cursor at = plane;
        size_t left = len;
        do {
            const size_t count = avx2_lesser(left, BNORM_GROUP_SPAN), fours = count / BNORM_FOUR_SPAN;
            struct avx2_sums t[avx2_SPAN_VECTORS], u[avx2_SPAN_VECTORS];
            struct avx2_terms rest[avx2_SPAN_VECTORS];
#define BNORM_VECTORS_OF(array, value)                                                             \
    {                                                                                              \
        BNORM_UNROLL                                                                               \
        for (size_t k = 0; k < avx2_SPAN_VECTORS; k++)                                                  \
            array[k] = value;                                                                      \
    }
#define BNORM_TERMS(row) avx2_terms_at(f, s, &p, behind, row, k *VEC_F, VEC_F)
            if (count % BNORM_FOUR_SPAN) {
                const struct avx2_cursor behind = avx2_cursor_at(f, s, at, 4 * fours, 0);
                BNORM_VECTORS_OF(rest, avx2_terms_at(f, s, &p, behind, rows, k * VEC_F, last[k]))
                if (rows & 1)
                    BNORM_VECTORS_OF(u, avx2_sum_of_two(BNORM_TERMS(rows - 1), rest[k]))
                else
                    BNORM_VECTORS_OF(u, avx2_sum_of_one(rest[k]))
                if (rows & 2)
                    BNORM_VECTORS_OF(u, avx2_add_sums(avx2_sum_of_two(BNORM_TERMS(0), BNORM_TERMS(1)), u[k]))
            } else {
                BNORM_VECTORS_OF(u, avx2_no_sums())
            }
            if (fours) {
                BNORM_VECTORS_OF(t, avx2_no_sums())
                avx2_add_fours(f, s, &p, at, fours, avx2_SPAN_VECTORS, t);
                BNORM_VECTORS_OF(u, avx2_add_sums(t[k], u[k]))
            }
#undef BNORM_TERMS
#undef BNORM_VECTORS_OF
            BNORM_UNROLL
            for (size_t half = avx2_SPAN_VECTORS / 2; half > 0; half /= 2) {
                BNORM_UNROLL
                for (size_t k = 0; k < half; k++)
                    u[k] = avx2_add_sums(u[k], u[half + k]);
            }
            avx2_vec_fold_fours(to->a[i], to->b[i], u[0].a, u[0].b);
            if (adds) {
                avx2_add_four(to->all_a[i], to->a[i]);
                avx2_add_four(to->all_b[i], to->b[i]);
            }
            at = avx2_cursor_at(f, s, at, BNORM_GROUP, 0);
            left -= count;
        } while (left);
    }
}

typedef void avx2_planes_form(const struct sum_rows *s, size_t planes, size_t len, int adds,
                         struct avx2_plane_sums *to);
#define BNORM_PLANES_FORM(name, g, type)                                                           \
    static void sum_planes_##name(const struct sum_rows *s, size_t planes, size_t len, int adds,   \
                                  struct avx2_plane_sums *to) {                                         \
        sum_planes((struct avx2_sum_form){g, type, 1}, s, planes, len, adds, to);                       \
    }
BNORM_SUM_FORMS(BNORM_PLANES_FORM)
#define BNORM_PLANES_ENTRY(name, g, type) sum_planes_##name,
static avx2_planes_form *const avx2_planes_forms[] = {BNORM_SUM_FORMS(BNORM_PLANES_ENTRY)};

/* What has no form, a group after the other. */
BNORM_RARE void sum_staged_planes(const struct sum_rows *s, size_t planes, size_t len,
                                  struct avx2_plane_sums *to) {
    float x[BNORM_GROUP_SPAN], g[BNORM_GROUP_SPAN];
    bnorm_map_args args;
    for (size_t i = 0; i < planes; i++) {
        struct avx2_plane_sums one;
        memset(&one, 0, sizeof one);
        for (size_t e = 0, n; e < len; e += n) {
            const struct sum_rows part = avx2_sum_rows_from(s, i, e, 1, i),
                                  t = staged_rows(&part, &args, x, g, part.pivot, 0);
            n = avx2_lesser(len - e, BNORM_GROUP_SPAN);
            load_rows(&part, 1, n, x, g);
            avx2_planes_forms[avx2_form_of(&t)](&t, 1, n, 1, &one);
        }
        memcpy(to->all_a[i], one.all_a[0], sizeof one.all_a[0]);
        memcpy(to->all_b[i], one.all_b[0], sizeof one.all_b[0]);
    }
}

/* In double, of the four sums of each of VEC_F planes. */
BNORM_INLINE void avx2_fold_fours(const float *fours, double *avx2_sums, size_t planes) {
    double all[VEC_F];
    avx2_vec_f v[4];
    vec_load_fours(fours, v);
#define BNORM_FOLDED(half)                                                                         \
    avx2_vec_add_d(avx2_vec_add_d(avx2_vec_add_d(half(v[0]), half(v[2])), avx2_vec_add_d(half(v[1]), half(v[3]))),     \
              avx2_vec_set1_d(0)) /* no -0 */
    vec_store_d(all, BNORM_FOLDED(avx2_vec_low));
    vec_store_d(all + VEC_D, BNORM_FOLDED(avx2_vec_high));
#undef BNORM_FOLDED
    memcpy(avx2_sums, all, planes * sizeof *avx2_sums);
}

/* Both sums of up to VEC_F planes. */
static void add_planes(const struct sum_rows *s, size_t planes, size_t len, double *a, double *b) {
    const int avx2_form = avx2_form_of(s), adds = avx2_form == BNORM_GENERAL || len > BNORM_GROUP_SPAN;
    struct avx2_plane_sums avx2_sums;
    if (adds || planes < VEC_F)
        memset(&avx2_sums, 0, sizeof avx2_sums);
    if (avx2_form == BNORM_GENERAL)
        sum_staged_planes(s, planes, len, &avx2_sums);
    else
        avx2_planes_forms[avx2_form](s, planes, len, adds, &avx2_sums);
    if (!adds) {
        avx2_fold_fours(avx2_sums.a[0], a, planes);
        avx2_fold_fours(avx2_sums.b[0], b, planes);
        return;
    }
    for (size_t i = 0; i < planes; i++) {
        const double *const p = avx2_sums.all_a[i], *const q = avx2_sums.all_b[i];
        a[i] = (p[0] + p[2]) + (p[1] + p[3]);
        b[i] = (q[0] + q[2]) + (q[1] + q[3]);
    }
}

/* ---------------------------------------------------------------------------------------------- */
/* In double */

/* Sums of x, or of g, in a, and of (x - center)^2, or g*(x - center), in b; either may be absent.
 * Chains are added up in order. */
BNORM_RARE void avx2_double_channels(const struct avx2_sum_block *k, const double *center, double *a,
                                double *b) {
    enum { LANES = 16 };
    float x[LANES], g[LANES];
    const size_t lanes = k->c * k->chains, chains = avx2_chain_count(k);
    if (a)
        avx2_zero_lanes(a, lanes);
    if (b)
        avx2_zero_lanes(b, lanes);
    for (size_t j = 0; j < chains; j++) {
        const struct chain_rows r = avx2_chain_at(k, chains, j);
        for (size_t row = 0; row < r.rows + (r.tail > 0); row++) {
            const size_t len = row < r.rows ? r.len : r.tail;
            for (size_t i = 0; i < len; i += LANES) {
                const size_t n = avx2_lesser(LANES, len - i), at = j * k->c + i;
                const struct sum_rows here = avx2_sum_rows_from(&r.s, row, i, 1, r.s.spread ? 0 : i);
                load_rows(&here, 1, n, x, g);
                for (size_t q = 0; q < n; q++) {
                    const double value = (double)x[q], of_g = k->s.a ? (double)g[q] : 0;
                    const double d = b ? value - center[(at + q) % k->c] : 0;
                    if (a)
                        a[at + q] += k->s.a ? of_g : value;
                    if (b)
                        b[at + q] = bnorm_fma(k->s.a ? of_g : d, d, b[at + q]);
                }
            }
        }
    }
    if (a)
        avx2_fold_chains(a, k->c, k->chains);
    if (b)
        avx2_fold_chains(b, k->c, k->chains);
}

/* Sums in float are accurate within these limits of the second one. */
#define BNORM_LEAST_SUM 0x1p-90

/* ---------------------------------------------------------------------------------------------- */
/* Statistics */

/* Upper half of n vectors onto lower half. */
#define BNORM_FOLD(v, n)                                                                           \
    for (size_t j = 0; j < (n) / 2; j++)                                                           \
        (v)[j] = avx2_vec_add((v)[j], (v)[(n) / 2 + j]);

/* Pivots of VEC_F channels from `samples` values each, folded to at most 4: their mean, rounded to
 * a unit of about an eighth of their spread. So values of a grid have differences on it, with few
 * digits, whose sums are exact. */
BNORM_INLINE avx2_vec_f avx2_pivots_of(avx2_vec_f *v, size_t samples) {
    avx2_vec_f least = v[0], most = v[0];
    if (samples > 1) {
        least = avx2_vec_min(v[1], v[0]);
        most = avx2_vec_max(v[1], v[0]);
    }
    if (samples > 2) {
        least = avx2_vec_min(avx2_vec_min(v[3], v[2]), least);
        most = avx2_vec_max(avx2_vec_max(v[3], v[2]), most);
        BNORM_UNROLL
        BNORM_FOLD(v, 4)
    }
    if (samples > 1)
        v[0] = avx2_vec_add(v[0], v[1]);
    /* 3*2^22 units: the last digit of a sum with it is a unit. */
    const avx2_vec_f unit = avx2_vec_power_of_2(avx2_vec_sub(most, least)),
                magic = avx2_vec_mul(unit, avx2_vec_set1(0x3p17f));
    return avx2_vec_sub(avx2_vec_fma(v[0], avx2_vec_set1(1 / (float)samples), magic), magic);
}

/* n <= 4 elements. */
BNORM_INLINE avx2_four_floats avx2_load_four(const void *p, bnorm_dtype type, size_t n) {
    avx2_four_floats four;
    float lanes[VEC_F];
    avx2_vec_store(lanes, avx2_widened_lanes(p, type, n));
    memcpy(&four, lanes, sizeof four);
    return four;
}

/* Pivots of channels [0, c) of rows; writes up to a vector more. */
BNORM_INLINE void sample_rows(const struct sum_rows *s, size_t count, size_t c, float *pivot) {
    const size_t samples = bnorm_samples(count);
    const int shift = __builtin_ctzll(samples);
    const char *row[BNORM_SAMPLES];
    avx2_vec_f v[BNORM_SAMPLES];
    size_t i = 0;
    for (size_t j = 0; j < samples; j++)
        row[j] = s->x + (j * count >> shift) * s->x_step;
    for (; s->type == BNORM_F32 && samples == BNORM_SAMPLES && i + VEC_F <= c; i += VEC_F) {
        BNORM_UNROLL
        for (size_t j = 0; j < BNORM_SAMPLES / 2; j++)
            v[j] = avx2_vec_add(avx2_vec_load((const float *)(const void *)row[j] + i),
                           avx2_vec_load((const float *)(const void *)row[BNORM_SAMPLES / 2 + j] + i));
        BNORM_UNROLL
        BNORM_FOLD(v, BNORM_SAMPLES / 2)
        avx2_vec_store(pivot + i, avx2_pivots_of(v, BNORM_SAMPLES));
    }
    for (; i < c; i += VEC_F) {
        for (size_t j = 0; j < samples; j++)
            v[j] = avx2_widened_lanes(avx2_element_at(row[j], s->type, i), s->type, avx2_lesser(VEC_F, c - i));
        for (size_t n = samples; n > 4; n /= 2)
            BNORM_FOLD(v, n)
        avx2_vec_store(pivot + i, avx2_pivots_of(v, samples));
    }
}

/* Upper half of n places onto lower half, down to one. */
BNORM_INLINE avx2_four_floats avx2_fold_places(avx2_four_floats *place, size_t n) {
    BNORM_UNROLL
    for (size_t half = BNORM_PLACES / 2; half > 0; half /= 2)
        if (n > half) {
            BNORM_UNROLL
            for (size_t q = 0; q < half; q++)
                place[q] += place[half + q];
        }
    return place[0];
}

/* The sum of a plane's places, four lanes; at[q] is the offset of a place. */
BNORM_INLINE avx2_four_floats avx2_sample_plane(const char *plane, bnorm_dtype type, size_t places,
                                      const size_t *at, size_t avx2_run) {
    avx2_four_floats place[BNORM_PLACES];
    if (type == BNORM_BF16 && avx2_run == 4) {
        for (size_t q = 0; q < places; q++)
            place[q] = vec_four_bf16((const void *)(plane + at[q]));
    } else if (type == BNORM_F16 && avx2_run == 4) {
        for (size_t q = 0; q < places; q++)
            place[q] = vec_four_f16((const void *)(plane + at[q]));
    } else {
        for (size_t q = 0; q < places; q++)
            place[q] = avx2_load_four(plane + at[q], type, avx2_run);
    }
    return avx2_fold_places(place, places);
}
/* Of floats, and a number of places that is a constant. */
BNORM_INLINE avx2_four_floats avx2_sample_floats(const char *plane, size_t places, const size_t *at) {
    avx2_four_floats place[BNORM_PLACES];
    BNORM_UNROLL
    for (size_t q = 0; q < places; q++)
        place[q] = avx2_vec_four((const void *)(plane + at[q]));
    return avx2_fold_places(place, places);
}

/* Those of planes, up to VEC_F of them: from places of four neighbours, spread over the plane. */
BNORM_INLINE void sample_planes(const struct sum_rows *s, size_t planes, size_t len, float *pivot) {
    const size_t places = bnorm_places(len), avx2_run = len < 4 ? bnorm_samples(len) : 4;
    const int shift = __builtin_ctzll(places);
    _Alignas(64) float fours[VEC_F][4] = {{0}};
    size_t at[BNORM_PLACES];
    avx2_vec_f v[4];
    for (size_t q = 0; q < places; q++)
        at[q] = (q * len >> shift) * avx2_size_of(s->type);
    for (size_t i = 0; i < planes; i++) {
        const char *const plane = s->x + i * s->x_step;
        const avx2_four_floats sum = s->type != BNORM_F32 || places < 4
                                    ? avx2_sample_plane(plane, s->type, places, at, avx2_run)
                                : places == 4 ? avx2_sample_floats(plane, 4, at)
                                : places == 8 ? avx2_sample_floats(plane, 8, at)
                                              : avx2_sample_floats(plane, 16, at);
        memcpy(fours[i], &sum, sizeof fours[i]);
    }
    vec_load_fours(fours[0], v);
    avx2_vec_store(pivot, avx2_pivots_of(v, places * avx2_run));
}

/* Pivots of backward, of n channels whose first values are x: their centers, rounded to a unit of
 * about 2^-16/invstd. */
BNORM_INLINE avx2_vec_f avx2_rounded_centers(avx2_vec_f x, const struct sum_rows *s, size_t i, size_t n) {
    const avx2_vec_f center = avx2_load_lanes(s->center + i, n), least = avx2_vec_set1(0x1p-90f),
                most = avx2_vec_set1(0x1p126f),
                inverse = avx2_vec_min(avx2_vec_max(avx2_load_lanes(s->invstd + i, n), least), most),
                unit = avx2_vec_power_of_2(avx2_vec_div(avx2_vec_set1(1), inverse)),
                magic = avx2_vec_mul(unit, avx2_vec_set1(0x3p6f)),
                rounded = avx2_vec_sub(avx2_vec_add(center, magic), magic);
    return avx2_vec_if_le(avx2_vec_set1(0), avx2_vec_minus_abs(avx2_vec_sub(x, center)), center, rounded);
}

/* Of rows of c lanes, of which `valid` have a center; whole vectors are written. */
BNORM_INLINE void avx2_round_centers(const struct sum_rows *s, size_t c, size_t valid, float *pivot) {
    size_t i = 0;
    for (; s->type == BNORM_F32 && i + VEC_F <= valid; i += VEC_F)
        avx2_vec_store(pivot + i,
                  avx2_rounded_centers(avx2_vec_load((const float *)(const void *)s->x + i), s, i, VEC_F));
    for (; i < c; i += VEC_F) {
        const size_t n = avx2_lanes_before(valid, i);
        const avx2_vec_f x = avx2_widened_lanes(avx2_element_at(s->x, s->type, i), s->type, n);
        avx2_vec_store(pivot + i, avx2_rounded_centers(x, s, i, n));
    }
}

BNORM_INLINE void avx2_round_plane_centers(const struct sum_rows *s, size_t planes, float *pivot) {
    memset(pivot, 0, VEC_F * sizeof *pivot);
    for (size_t i = 0; i < planes; i++) {
        float lanes[VEC_F];
        if (s->type == BNORM_F32)
            memcpy(lanes, s->x + i * s->x_step, sizeof *lanes);
        else
            avx2_vec_store(lanes, avx2_half_lanes(s->x + i * s->x_step, s->type, 1));
        pivot[i] = lanes[0];
    }
    avx2_vec_store(pivot, avx2_rounded_centers(avx2_vec_load(pivot), s, 0, planes));
}

/* Room for the lanes that are done again together: BNORM_MAX_LANES at most. */
#define BNORM_AGAIN (BNORM_MAX_LANES + BNORM_PAD)

/* Not 0 where a channel has a value that is not its pivot. */
static void avx2_sum_distances(const struct avx2_sum_block *k, double *b) {
    const size_t chains = avx2_chain_count(k);
    avx2_zero_lanes(b, k->c * k->chains);
    for (size_t j = 0; j < chains; j++) {
        const struct chain_rows r = avx2_chain_at(k, chains, j);
        for (size_t i = 0; i < r.len; i += VEC_F) {
            const size_t p = r.s.spread ? 0 : i;
            struct avx2_sums t = avx2_no_sums();
            for (size_t row = 0; row < r.rows + (r.tail > i); row++) {
                const size_t n = avx2_lesser(VEC_F, (row < r.rows ? r.len : r.tail) - i);
                const avx2_vec_f x = avx2_widened_lanes(avx2_element_at(r.s.x + row * r.s.x_step, r.s.type, i),
                                              r.s.type, n),
                            pivot = avx2_parameter_lanes(r.s.pivot + p, r.s.spread, 0, n);
                t.b = avx2_vec_add(t.b, avx2_vec_minus_abs(avx2_first_lanes(avx2_vec_sub(x, pivot), n)));
            }
            avx2_add_group(t, 1, b + j * k->c + i, b + j * k->c + i);
        }
    }
    avx2_fold_chains(b, k->c, k->chains);
}

static float avx2_power_of_2(float v) {
    uint32_t bits;
    memcpy(&bits, &v, sizeof bits);
    bits &= 0x7f800000;
    memcpy(&v, &bits, sizeof v);
    return v;
}

/* A pivot from the sums about another one: the mean, rounded to an eighth of the deviation where
 * these say enough of it. 0 where they say nothing. */
static float avx2_better_pivot(double n, float pivot, double a, double b) {
    const float mean = (float)bnorm_fma(a, 1 / n, (double)pivot);
    const double squares = bnorm_fma(a * (-1 / n), a, b);
    if (!(mean >= -FLT_MAX && mean <= FLT_MAX))
        return 0;
    if (!(squares > b * 0x1p-10 && b <= DBL_MAX))
        return mean;
    const float magic = avx2_power_of_2((float)sqrt(squares * (1 / n))) * 0x3p19f, sum = mean + magic;
    return sum - magic;
}

/* Both sums of the channels of rows, or of a plane. */
BNORM_INLINE void avx2_sum_block(const struct avx2_sum_block *k, double *a, double *b) {
    if (k->s.spread)
        add_planes(&k->s, 1, k->count, a, b);
    else
        avx2_sum_channels(k, a, b);
}

/* Lanes whose pivot is more than a deviation off the mean, or whose squares leave the range of a
 * float: one bit each. */
BNORM_INLINE unsigned avx2_inaccurate_moments(double n, avx2_vec_d a, avx2_vec_d b) {
    const avx2_vec_d half = avx2_vec_mul_d(b, avx2_vec_set1_d(0.5)),
                margin = avx2_vec_fma_d(avx2_vec_mul_d(a, avx2_vec_set1_d(-1 / n)), a, half);
    return avx2_vec_outside_d(margin, 0, DBL_MAX) | avx2_vec_outside_d(b, BNORM_LEAST_SUM, DBL_MAX);
}

/* Lanes whose second sum in float is out of range, unless all g are 0, or whose first one is. */
BNORM_INLINE unsigned avx2_inaccurate_sums(avx2_vec_d a, avx2_vec_d b) {
    const avx2_vec_d zero = avx2_vec_set1_d(0), one = avx2_vec_set1_d(1);
    unsigned bits =
        avx2_vec_outside_d(b, BNORM_LEAST_SUM, DBL_MAX) & avx2_vec_outside_d(b, -DBL_MAX, -BNORM_LEAST_SUM);
    if (bits)
        bits &= avx2_vec_outside_d(avx2_vec_if_eq_d(b, zero, avx2_vec_if_eq_d(a, zero, zero, one), one), 0, 0);
    return bits | avx2_vec_outside_d(a, -DBL_MAX, DBL_MAX);
}

/* Lanes of the first `lanes` whose sums, of n values, are no good. */
BNORM_INLINE unsigned avx2_inaccurate(int backward, double n, avx2_vec_d a, avx2_vec_d b, size_t lanes) {
    return (backward ? avx2_inaccurate_sums(a, b) : avx2_inaccurate_moments(n, a, b)) & ((1u << lanes) - 1);
}

/* What is wanted of channel i, made of its sums in double. */
BNORM_INLINE void avx2_store_again(const double *a, const double *b, size_t i, double *first,
                              double *second) {
    if (first)
        vec_store_d_n(first + i, avx2_vec_canonical_d(avx2_vec_set1_d(a[i])), 1);
    vec_store_d_n(second + i, avx2_vec_canonical_d(avx2_vec_set1_d(b[i])), 1);
}

/* Does those of the first `valid` channels again whose sums a and b about their pivots are
 * inaccurate: about another pivot, and if they still are, in double about the mean itself. Where all
 * values are the pivot, nothing is inaccurate. */
BNORM_RARE void avx2_moments_again(struct avx2_sum_block k, size_t valid, const double *a, const double *b,
                              double *sum, double *m2) {
    float other[BNORM_AGAIN];
    double again_a[BNORM_AGAIN], again_b[BNORM_AGAIN];
    const double n = (double)k.count;
    unsigned char wanted[BNORM_AGAIN];
    size_t count = 0;
    int same = 0;
    for (size_t i = 0; i < valid; i++)
        same |= b[i] == 0;
    if (same)
        avx2_sum_distances(&k, again_b);
    for (size_t i = 0; i < k.c; i++) {
        const float pivot = k.s.pivot[i];
        wanted[i] = i < valid && avx2_inaccurate(0, n, avx2_vec_set1_d(a[i]), avx2_vec_set1_d(b[i]), 1) &&
                    !(b[i] == 0 && again_b[i] == 0);
        other[i] = wanted[i] ? avx2_better_pivot(n, pivot, a[i], b[i]) : pivot;
        count += wanted[i];
    }
    if (!count)
        return;
    avx2_repeat_lanes(other, k.c, k.s.spread ? 1 : k.chains);
    k.s.pivot = other;
    avx2_sum_block(&k, again_a, again_b);
    for (size_t i = 0; i < k.c; i++) {
        const double squares = bnorm_fma(again_a[i] * (-1 / n), again_a[i], again_b[i]);
        if (!(wanted[i] && again_b[i] >= BNORM_LEAST_SUM && again_b[i] <= DBL_MAX))
            continue;
        sum[i] = bnorm_fma(n, (double)other[i], again_a[i]);
        m2[i] = squares < 0 ? 0 : squares;
        wanted[i] = 0;
        count--;
    }
    if (!count)
        return;
    avx2_double_channels(&k, NULL, again_a, NULL);
    for (size_t i = 0; i < k.c; i++)
        if (wanted[i])
            avx2_store_again(again_a, again_a, i, sum, sum);
    for (size_t i = 0; i < k.c; i++)
        again_a[i] /= n;
    avx2_double_channels(&k, again_a, NULL, again_b);
    for (size_t i = 0; i < k.c; i++)
        if (wanted[i])
            avx2_store_again(again_b, again_b, i, NULL, m2);
}

/* The same of backward: in double. A first sum that is finite stays, so that it does not depend on
 * x. */
BNORM_RARE void avx2_sums_again(const struct avx2_sum_block *k, size_t valid, const double *a,
                           const double *b, double *sum_g, double *sum_gx) {
    double again_a[BNORM_AGAIN], again_b[BNORM_AGAIN], center[BNORM_MAX_LANES] = {0};
    for (size_t i = 0; i < valid; i++)
        center[i] = (double)k->s.center[i];
    avx2_double_channels(k, center, again_a, again_b);
    for (size_t i = 0; i < valid; i++)
        if (avx2_inaccurate(1, 1, avx2_vec_set1_d(a[i]), avx2_vec_set1_d(b[i]), 1))
            avx2_store_again(again_a, again_b, i, fabs(a[i]) <= DBL_MAX ? NULL : sum_g, sum_gx);
}

/* ---------------------------------------------------------------------------------------------- */
/* From the sums about pivots to what is wanted of the first `valid` channels: sum(x) and M2, or both
 * sums about the center */

/* Those of `lanes` channels; which are inaccurate. b becomes about the center. */
BNORM_INLINE unsigned avx2_store_channels(int backward, double n, const float *pivot,
                                     const float *center, size_t lanes, const double *a, double *b,
                                     double *first, double *second) {
    const avx2_vec_d of_a = vec_load_d(a), of_pivot = avx2_vec_widen(pivot), zero = avx2_vec_set1_d(0);
    avx2_vec_d of_b = vec_load_d(b), total = of_a, result;
    if (backward) {
        const avx2_vec_d off = avx2_vec_sub_d(of_pivot, avx2_widen_lanes(center, lanes));
        result = of_b = avx2_vec_fma_d(off, of_a, of_b);
        vec_store_d(b, of_b);
    } else {
        const avx2_vec_d m2 = avx2_vec_fma_d(avx2_vec_mul_d(of_a, avx2_vec_set1_d(-1 / n)), of_a, of_b);
        total = avx2_vec_fma_d(avx2_vec_set1_d(n), of_pivot, of_a);
        result = avx2_vec_if_lt_d(m2, zero, zero, m2);
    }
    store_d_lanes(first, avx2_vec_canonical_d(total), lanes);
    store_d_lanes(second, avx2_vec_canonical_d(result), lanes);
    return avx2_inaccurate(backward, n, of_a, of_b, lanes);
}

/* Whether any is inaccurate. */
BNORM_INLINE unsigned avx2_store_block(int backward, const struct avx2_sum_block *k, size_t valid,
                                  const double *a, double *b, double *first, double *second) {
    const float *const pivot = k->s.pivot, *const center = k->s.center;
    const double n = (double)k->count;
    unsigned any = 0;
    size_t i = 0;
#define BNORM_CALL(lanes)                                                                          \
    any |= avx2_store_channels(backward, n, pivot + i, backward ? center + i : NULL, lanes, a + i,      \
                          b + i, first + i, second + i)
    for (; i + VEC_D <= valid; i += VEC_D)
        BNORM_CALL(VEC_D);
    if (i < valid)
        BNORM_CALL(valid - i);
#undef BNORM_CALL
    return any;
}

/* Channels that are done again together, from the i-th on: a plane; else vectors of channels, or all
 * that share rows. */
BNORM_INLINE struct avx2_sum_block avx2_slice_of(const struct avx2_sum_block *k, size_t i) {
    struct avx2_sum_block slice = *k;
    if (k->s.spread) {
        slice.s = avx2_sum_rows_from(&k->s, i, 0, 1, i);
        slice.s.x_step = slice.s.dy_step = slice.s.argument_step = avx2_size_of(k->s.type);
        slice.s.bit_step = 1;
        slice.c = 1;
        slice.chains = BNORM_SPAN_LANES;
    } else if (k->chains == 1) {
        slice.s = avx2_sum_rows_from(&k->s, 0, i, 1, i);
        slice.c = avx2_lesser(VEC_F, k->c - i);
    }
    return slice;
}

/* There is room for a vector behind a and b. */
static void avx2_finish_block(const struct avx2_sum_block *k, size_t valid, const double *a, double *b,
                         double *first, double *second) {
    const int backward = k->s.a != NULL;
    if (!(backward ? avx2_store_block(1, k, valid, a, b, first, second)
                   : avx2_store_block(0, k, valid, a, b, first, second)))
        return;
    for (size_t i = 0, n; i < valid; i += n) {
        const struct avx2_sum_block slice = avx2_slice_of(k, i);
        unsigned any = 0;
        n = avx2_lesser(slice.c, valid - i);
        for (size_t j = i; j < i + n; j += VEC_D)
            any |= avx2_inaccurate(backward, (double)k->count, vec_load_d(a + j), vec_load_d(b + j),
                              avx2_lesser(VEC_D, i + n - j));
        if (any && backward)
            avx2_sums_again(&slice, n, a + i, b + i, first + i, second + i);
        else if (any)
            avx2_moments_again(slice, n, a + i, b + i, first + i, second + i);
    }
}

/* Parameters of `chains` rows of c channels, those behind the first `valid` 0. */
BNORM_INLINE const float *avx2_repeat(float *pattern, const float *p, size_t c, size_t valid,
                                 size_t chains) {
    for (size_t j = 0; j < chains; j++) {
        memcpy(pattern + j * c, p, valid * sizeof *p);
        if (valid < c)
            memset(pattern + j * c + valid, 0, (c - valid) * sizeof *p);
    }
    return pattern;
}

static void avx2_sum_tile(const struct avx2_sum_block *k, size_t valid, double *a, double *b, double *first,
                     double *second) {
    avx2_sum_channels(k, a, b);
    avx2_finish_block(k, valid, a, b, first, second);
}

/* Where v is computed of several rows in one, or beside padding. Not inlined: what it takes of stack
 * is for few channels. */
BNORM_RARE void avx2_sum_repeated(const struct avx2_sum_block *k, size_t valid, double *a, double *b,
                             double *first, double *second) {
    float center[BNORM_MAX_LANES], scale[BNORM_MAX_LANES], shift[BNORM_MAX_LANES];
    struct avx2_sum_block repeated = *k;
    repeated.s.center = avx2_repeat(center, k->s.center, k->c, valid, k->chains);
    repeated.s.scale = avx2_repeat(scale, k->s.scale, k->c, valid, k->chains);
    repeated.s.shift = avx2_repeat(shift, k->s.shift, k->c, valid, k->chains);
    avx2_sum_tile(&repeated, valid, a, b, first, second);
}

/* A block of c <= BNORM_TILE channels. */
static void avx2_reduce_tile(const struct sum_rows *s, size_t count, size_t c, size_t valid,
                        size_t chains, double *first, double *second) {
    double a[BNORM_TILE + BNORM_PAD], b[BNORM_TILE + BNORM_PAD];
    float pivot[BNORM_TILE + BNORM_PAD];
    struct avx2_sum_block k = {*s, count, c, chains};
    if (s->a)
        avx2_round_centers(s, c, valid, pivot);
    else
        sample_rows(s, count, c, pivot);
    avx2_repeat_lanes(pivot, c, chains);
    k.s.pivot = pivot;
    if (s->a && avx2_reads_x(s->a->pre) && (chains > 1 || valid < c))
        avx2_sum_repeated(&k, valid, a, b, first, second);
    else
        avx2_sum_tile(&k, valid, a, b, first, second);
}

/* Of c lanes in memory: padding of rows without gaps is added up too, for nothing. */
BNORM_INLINE void reduce_rows(const struct sum_rows *s, size_t count, size_t c, size_t valid,
                              size_t chains, double *first, double *second) {
    for (size_t i = 0; i < valid; i += BNORM_TILE) {
        const struct sum_rows tile = avx2_sum_rows_from(s, 0, i, 1, i);
        avx2_reduce_tile(&tile, count, avx2_lesser(BNORM_TILE, c - i), avx2_lesser(BNORM_TILE, valid - i), chains,
                    first + i, second + i);
    }
    avx2_vec_leave();
}

static void avx2_reduce_span(const struct sum_rows *all, size_t planes, size_t len, double *first,
                        double *second) {
    for (size_t i = 0; i < planes; i += VEC_F) {
        double a[2 * VEC_F] = {0}, b[2 * VEC_F] = {0};
        float pivot[VEC_F];
        const size_t n = avx2_lesser(VEC_F, planes - i);
        struct avx2_sum_block k = {avx2_sum_rows_from(all, i, 0, 1, i), len, n, 1};
        if (all->a)
            avx2_round_plane_centers(&k.s, n, pivot);
        else
            sample_planes(&k.s, n, len, pivot);
        k.s.pivot = pivot;
        add_planes(&k.s, n, len, a, b);
        avx2_finish_block(&k, n, a, b, first + i, second + i);
    }
    avx2_vec_leave();
}

/* ---------------------------------------------------------------------------------------------- */
/* The kernels */

BNORM_INLINE struct sum_rows block_rows(const bnorm_block_args *a, int planes) {
    return (struct sum_rows){.type = a->type,
                             .spread = planes,
                             .fetch = (a->hints & BNORM_FETCH_IN) != 0,
                             .x = a->x,
                             .x_step = a->stride * avx2_size_of(a->type)};
}

static void avx2_moments_rows(const bnorm_block_args *a, size_t chains, double *sum, double *m2) {
    const struct sum_rows s = block_rows(a, 0);
    reduce_rows(&s, a->runs, a->stride == a->len ? a->len : a->valid, a->valid, chains, sum, m2);
}

static void avx2_moments_span(const bnorm_block_args *a, double *sum, double *m2) {
    const struct sum_rows s = block_rows(a, 1);
    avx2_reduce_span(&s, a->runs, a->len, sum, m2);
}

/* Where backward reads; strides are those of rows, or of planes. */
BNORM_INLINE struct sum_rows avx2_sum_rows_at(const bnorm_map_args *a, int planes) {
    const size_t size = avx2_size_of(a->x.type);
    return (struct sum_rows){
        .a = a,
        .type = a->x.type,
        .spread = planes,
        .fetch = (a->hints & BNORM_FETCH_IN) != 0,
        .x = a->x.data,
        .dy = a->dy.data,
        .argument = a->argument.data,
        .x_step = size * (planes ? a->x.group_stride : a->x.row_stride),
        .dy_step = size * (planes ? a->dy.group_stride : a->dy.row_stride),
        .argument_step = size * (planes ? a->argument.group_stride : a->argument.row_stride),
        .bit = a->mask.at,
        .bit_step = planes ? a->mask.group_stride : a->mask.row_stride,
        .center = a->center,
        .scale = a->scale,
        .shift = a->shift,
        .invstd = a->invstd,
    };
}

static void avx2_sums_rows(const bnorm_map_args *a, size_t chains, double *sum_g, double *sum_gx) {
    const int gaps = a->x.row_stride != a->lanes || a->dy.row_stride != a->lanes ||
                     (avx2_reads_extra(a->pre) && a->argument.row_stride != a->lanes);
    const struct sum_rows s = avx2_sum_rows_at(a, 0);
    reduce_rows(&s, a->rows, gaps ? a->valid : a->lanes, a->valid, chains, sum_g, sum_gx);
}

static void avx2_sums_span(const bnorm_map_args *a, double *sum_g, double *sum_gx) {
    const struct sum_rows s = avx2_sum_rows_at(a, 1);
    avx2_reduce_span(&s, a->groups, a->lanes, sum_g, sum_gx);
}
/* SPDX-License-Identifier: MIT
 *
 * Rows that are images of their own: whole subtrees of up to BNORM_LEAF of them. */

/* How the two numbers per channel of neighbours become one: as statistics, or as two sums. */
enum avx2_tree { avx2_BNORM_MERGED, avx2_BNORM_ADDED };

/* Of some rows: sum and M2, or the sums of g and g*(x - center). */
struct avx2_leaf {
    avx2_vec_d a, b;
};

/* Two neighbours of `rows` rows each. */
BNORM_INLINE struct avx2_leaf avx2_join_leaves(enum avx2_tree avx2_tree, struct avx2_leaf left, struct avx2_leaf right,
                                     size_t rows) {
    avx2_vec_d b = avx2_vec_add_d(left.b, right.b);
    if (avx2_tree == avx2_BNORM_MERGED) {
        const avx2_vec_d d = avx2_vec_sub_d(right.a, left.a);
        b = avx2_vec_fma_d(avx2_vec_mul_d(d, d), avx2_vec_set1_d(0.5 / (double)rows), b);
    }
    return (struct avx2_leaf){avx2_vec_add_d(left.a, right.a), b};
}

/* Rows of floats; g and center are for sums only. */
struct leaf_rows {
    const float *x, *g, *center;
    size_t x_stride, g_stride;
};

BNORM_INLINE struct leaf_rows avx2_leaf_rows_from(enum avx2_tree avx2_tree, struct leaf_rows r, size_t row,
                                             size_t i) {
    r.x += row * r.x_stride + i;
    if (avx2_tree == avx2_BNORM_ADDED) {
        r.g += row * r.g_stride + i;
        r.center += i;
    }
    return r;
}

BNORM_INLINE struct avx2_leaf avx2_leaf_1(enum avx2_tree avx2_tree, struct leaf_rows r, size_t row, size_t n) {
    const avx2_vec_d x = avx2_widen_lanes(r.x + row * r.x_stride, n);
    if (avx2_tree == avx2_BNORM_MERGED)
        return (struct avx2_leaf){x, avx2_vec_set1_d(0)};
    /* 0 added: a product that compilers can't make one operation with what it is added to. */
    const avx2_vec_d g = avx2_widen_lanes(r.g + row * r.g_stride, n),
                d = avx2_vec_sub_d(x, avx2_widen_lanes(r.center, n));
    return (struct avx2_leaf){g, avx2_vec_fma_d(g, d, avx2_vec_set1_d(0))};
}

BNORM_INLINE struct avx2_leaf avx2_leaf_2(enum avx2_tree avx2_tree, struct leaf_rows r, size_t row, size_t n) {
    return avx2_join_leaves(avx2_tree, avx2_leaf_1(avx2_tree, r, row, n), avx2_leaf_1(avx2_tree, r, row + 1, n), 1);
}

BNORM_INLINE struct avx2_leaf avx2_leaf_4(enum avx2_tree avx2_tree, struct leaf_rows r, size_t row, size_t n) {
    return avx2_join_leaves(avx2_tree, avx2_leaf_2(avx2_tree, r, row, n), avx2_leaf_2(avx2_tree, r, row + 2, n), 2);
}

/* Rows of the smallest subtrees, but for those that are smaller altogether. */
#define BNORM_TWIG 8

BNORM_INLINE struct avx2_leaf avx2_leaf_of(enum avx2_tree avx2_tree, struct leaf_rows r, size_t rows, size_t n) {
    switch (rows) {
    case 1:
        return avx2_leaf_1(avx2_tree, r, 0, n);
    case 2:
        return avx2_leaf_2(avx2_tree, r, 0, n);
    case 4:
        return avx2_leaf_4(avx2_tree, r, 0, n);
    default:
        return avx2_join_leaves(avx2_tree, avx2_leaf_4(avx2_tree, r, 0, n), avx2_leaf_4(avx2_tree, r, 4, n), 4);
    }
}

/* Lanes that go through their rows side by side: long pieces of each row are read. */
#define BNORM_LEAF_TILE 64

/* Two numbers per lane. */
struct avx2_leaf_lanes {
    double a[BNORM_LEAF_TILE + VEC_D], b[BNORM_LEAF_TILE + VEC_D];
};

BNORM_INLINE struct avx2_leaf avx2_load_leaf(const struct avx2_leaf_lanes *lanes, size_t i) {
    return (struct avx2_leaf){vec_load_d(lanes->a + i), vec_load_d(lanes->b + i)};
}

BNORM_INLINE void avx2_store_leaf(struct avx2_leaf_lanes *lanes, size_t i, struct avx2_leaf avx2_leaf) {
    vec_store_d(lanes->a + i, avx2_leaf.a);
    vec_store_d(lanes->b + i, avx2_leaf.b);
}

/* Rows as floats: where they are, or all but the plainest by way of L1. */
struct avx2_leaf_floats {
    float x[BNORM_TWIG * BNORM_LEAF_TILE + VEC_F], g[BNORM_TWIG * BNORM_LEAF_TILE];
};
BNORM_INLINE struct leaf_rows avx2_leaf_rows_at(const struct sum_rows *s, size_t row, size_t rows,
                                           size_t c, struct avx2_leaf_floats *to) {
    const struct sum_rows from = avx2_sum_rows_from(s, row, 0, 1, 0);
    const size_t n = avx2_whole_vectors(c);
    if (s->type == BNORM_F32 && (!s->a || s->a->pre == BNORM_PRE_NONE))
        return (struct leaf_rows){(const void *)from.x, (const void *)from.dy, s->center,
                                  s->x_step / sizeof *to->x, s->dy_step / sizeof *to->g};
    if (!s->a) {
        widen_rows(to->x, from.x, s->type, s->x_step / avx2_size_of(s->type), rows, c);
        return (struct leaf_rows){to->x, NULL, NULL, c, 0};
    }
    load_rows(&from, rows, c, to->x, to->g);
    return (struct leaf_rows){to->x, to->g, s->center, n, n};
}

/* c <= BNORM_LEAF_TILE lanes of `rows` rows. Subtrees wait for their neighbours. */
BNORM_INLINE void avx2_leaf_tile(enum avx2_tree avx2_tree, const struct sum_rows *s, size_t rows, size_t c,
                            struct avx2_leaf_lanes *all) {
    struct avx2_leaf_floats floats;
    struct avx2_leaf_lanes waiting[3];
    const size_t step = avx2_lesser(rows, BNORM_TWIG), twigs = rows / step;
    size_t depth = 0;
    for (size_t q = 0; q < twigs; q++) {
        const struct leaf_rows r = avx2_leaf_rows_at(s, q * step, step, c, &floats);
        size_t left = depth;
        for (size_t i = 0; i < c; i += VEC_D) {
            const struct leaf_rows here = avx2_leaf_rows_from(avx2_tree, r, 0, i);
            struct avx2_leaf avx2_leaf = avx2_leaf_of(avx2_tree, here, step, avx2_lesser(VEC_D, c - i));
            left = depth;
            for (size_t joined = 1; q & joined; joined *= 2)
                avx2_leaf = avx2_join_leaves(avx2_tree, avx2_load_leaf(&waiting[--left], i), avx2_leaf, step * joined);
            avx2_store_leaf(q + 1 == twigs ? all : &waiting[left], i, avx2_leaf);
        }
        depth = left + 1;
    }
}

BNORM_INLINE void avx2_reduce_leaves(enum avx2_tree avx2_tree, const struct sum_rows *s, size_t rows, size_t c,
                                double *a, double *b) {
    struct avx2_leaf_lanes all;
    for (size_t i = 0; i < c; i += BNORM_LEAF_TILE) {
        const size_t n = avx2_lesser(BNORM_LEAF_TILE, c - i);
        const struct sum_rows tile = avx2_sum_rows_from(s, 0, i, 1, i);
        avx2_leaf_tile(avx2_tree, &tile, rows, n, &all);
        for (size_t k = 0; k < n; k += VEC_D) {
            struct avx2_leaf avx2_leaf = avx2_load_leaf(&all, k);
            if (avx2_tree == avx2_BNORM_MERGED) /* an infinity leaves no squares either */
                avx2_leaf.b = avx2_vec_add_d(avx2_leaf.b, avx2_vec_sub_d(avx2_leaf.a, avx2_leaf.a));
            store_d_lanes(a + i + k, avx2_vec_canonical_d(avx2_leaf.a), avx2_lesser(VEC_D, n - k));
            store_d_lanes(b + i + k, avx2_vec_canonical_d(avx2_leaf.b), avx2_lesser(VEC_D, n - k));
        }
    }
    avx2_vec_leave();
}

static void avx2_moments_tree(const bnorm_block_args *a, double *sum, double *m2) {
    const struct sum_rows s = block_rows(a, 0);
    avx2_reduce_leaves(avx2_BNORM_MERGED, &s, a->runs, a->valid, sum, m2);
}

static void avx2_sums_tree(const bnorm_map_args *a, double *sum_g, double *sum_gx) {
    const struct sum_rows s = avx2_sum_rows_at(a, 0);
    avx2_reduce_leaves(avx2_BNORM_ADDED, &s, a->rows, a->valid, sum_g, sum_gx);
}
/* SPDX-License-Identifier: MIT
 *
 * Elementwise work: y of forward, dx and dresidual of backward. A run is a row, a plane, or rows
 * that follow one another without a gap. It is taken in groups of BNORM_VECTORS vectors, which are
 * loaded, computed and stored together, then in single vectors; types, activation and options are
 * asked for once a group. Where a run ends within a vector, the last vector begins so much earlier
 * that it is whole.
 *
 * There is one loop, map_runs, of which a form is an instance. It has three parameters:
 *   direction   FORWARD, BACKWARD
 *   source      of a vector's parameters: SPREAD, the same for all vectors of a run (planes, and
 *               blocks of channels that fit into a vector);
 *               HELD, those of a group, which are the same in all groups (few channels, or a strip
 *               of channels through all rows); LOADED, from arrays
 *   sloped      whether dx has the terms of batch statistics, of forms of backward with a type
 *   type        of all tensors, without a mask, with IDENTITY, RELU or CLAMP in forward and with
 *               RELU or no activation in backward; BNORM_ANY: everything else */

/* Vectors of a group: their latencies overlap, also where a compiler must assume that a store
 * changes what a later load reads. */
#define BNORM_VECTORS ((size_t)4)
#define BNORM_GROUP_F (BNORM_VECTORS * VEC_F)
/* The same of lines of outputs. */
#define BNORM_AHEAD_OUT 1024
/* Bytes of output that pass the caches at a time. Lines of runs of more bytes are asked for. */
#define BNORM_PART ((size_t)4096)
/* Runs of so many elements are aligned to lines of the cache, and follow hints. */
#define BNORM_LONG_RUN 512
/* Rows of few channels are joined to rows of about BNORM_LONG_ROW floats, for which the parameters
 * are written one behind the other; all arrays together have room for BNORM_ROOM floats. */
#define BNORM_LONG_ROW 256
#define BNORM_ROOM     ((size_t)3072)
/* Planes of fewer elements are joined to rows: of one image, of several, and of types and
 * activations without a form of their own. */
#define BNORM_SMALL_PLANE  ((size_t)2 * VEC_F)
#define BNORM_SMALL_PLANES ((size_t)4 * VEC_F)
#define BNORM_SMALL_ANY    ((size_t)128)

enum avx2_direction { avx2_FORWARD, avx2_BACKWARD };
enum avx2_source { avx2_SPREAD, avx2_HELD, avx2_LOADED };

/* No type, no kind. */
#define BNORM_ANY (-1)

struct avx2_form {
    enum avx2_direction direction;
    enum avx2_source source;
    int type, kind;
    int sloped;
};

/* Arrays of parameters; those that are not wanted are any readable memory. */
struct avx2_parameters {
    const float *center, *scale, *shift, *invstd, *slope, *offset;
};

#define BNORM_FOR_PARAMETERS(m, X)                                                                 \
    if ((m)->centred) {                                                                            \
        X(0, center);                                                                              \
    }                                                                                              \
    X(1, scale);                                                                                   \
    X(2, shift);                                                                                   \
    if ((m)->sloped) {                                                                             \
        X(3, invstd);                                                                              \
        X(4, slope);                                                                               \
        X(5, offset);                                                                              \
    }

struct avx2_mapping;
struct avx2_block;
typedef void avx2_map_function(const struct avx2_mapping *m, const struct avx2_block *b);

/* What holds for a whole call. */
struct avx2_mapping {
    enum avx2_direction direction;
    bnorm_dtype type, out_type;
    size_t size, out_size; /* bytes of an element */
    enum bnorm_pre pre;
    bnorm_act act;
    int centred, sloped;
    int reads_x; /* for more than its own sake; always in forward */
    int has_out, has_dresidual, writes_bits;
    int in_place; /* an output is an input */
    unsigned hints;
    int strips;
    unsigned char *bits; /* the mask, or NULL */
    struct avx2_quant x_quant, argument_quant, out_quant;
    struct avx2_parameters p;
    avx2_map_function *spread, *held, *loaded, *any; /* the forms; the first two may be NULL */
};

/* Where the elements of a run are. Absent tensors are any memory, which is not looked at. */
struct avx2_run {
    const char *x, *dy, *argument;
    char *out, *dresidual;
    size_t bit;
};

/* Bytes from a run to the next of each tensor; 0 of absent ones. */
struct avx2_strides {
    size_t x, dy, argument, out, dresidual, bit;
};

/* Rows of one group, or planes of one image. */
struct avx2_block {
    struct avx2_run run;
    struct avx2_strides strides;
    size_t rows, lanes;
    unsigned fetch; /* which hints are followed */
    int dense;      /* rows follow one another without a gap */
    /* The parameters of the first element have number `first`. Loaded ones repeat after `period`
     * elements, and `step` = BNORM_GROUP_F % period. Where nothing can be read behind these (exact),
     * groups begin with the first element. Spread ones are `each` per run. */
    size_t first, period, step, each;
    int exact;
};

/* Parameters that stay in registers. */
struct avx2_held {
    avx2_vec_f center[BNORM_VECTORS], scale[BNORM_VECTORS], shift[BNORM_VECTORS];
    avx2_vec_f invstd[BNORM_VECTORS], slope[BNORM_VECTORS], offset[BNORM_VECTORS];
};

#define BNORM_EACH                                                                                 \
    BNORM_UNROLL                                                                                   \
    for (size_t q = 0; q < count; q++)

/* ---------------------------------------------------------------------------------------------- */
/* Groups */

BNORM_INLINE void avx2_load_vectors(avx2_vec_f *to, bnorm_dtype type, const char *p,
                               const struct avx2_quant *avx2_quant, size_t count) {
    const avx2_vec_f scale = avx2_vec_set1(avx2_quant->scale), zero = avx2_vec_set1(avx2_quant->zero_point);
#define BNORM_AT(element) ((const element *)(const void *)p + q * VEC_F)
    switch (type) {
    case BNORM_F32:
        BNORM_EACH to[q] = avx2_vec_load(BNORM_AT(float));
        break;
    case BNORM_BF16:
        BNORM_EACH to[q] = vec_load_bf16(BNORM_AT(uint16_t));
        break;
    case BNORM_F16:
        BNORM_EACH to[q] = vec_load_f16(BNORM_AT(uint16_t));
        break;
    case BNORM_S8:
        BNORM_EACH to[q] = avx2_vec_mul(avx2_vec_sub(vec_load_s8(BNORM_AT(uint8_t)), zero), scale);
        break;
    case BNORM_U8:
        BNORM_EACH to[q] = avx2_vec_mul(avx2_vec_sub(vec_load_u8(BNORM_AT(uint8_t)), zero), scale);
        break;
    }
#undef BNORM_AT
}

/* Canonical values. */
BNORM_INLINE void avx2_store_vectors(char *p, bnorm_dtype type, const struct avx2_quant *avx2_quant,
                                const avx2_vec_f *v, size_t count) {
#define BNORM_AT(element) ((element *)(void *)p + q * VEC_F)
    switch (type) {
    case BNORM_F32:
        BNORM_EACH avx2_vec_store(BNORM_AT(float), v[q]);
        break;
    case BNORM_BF16:
        if (count % 2 == 0) {
            BNORM_UNROLL
            for (size_t q = 0; q + 1 < count; q += 2)
                vec_store_bf16_2(BNORM_AT(uint16_t), v[q], v[q + 1]);
        } else {
            BNORM_EACH vec_store_bf16(BNORM_AT(uint16_t), v[q]);
        }
        break;
    case BNORM_F16:
        BNORM_EACH vec_store_f16(BNORM_AT(uint16_t), v[q]);
        break;
    case BNORM_S8:
    case BNORM_U8: {
        const int zero = (int)avx2_quant->zero_point, is_signed = type == BNORM_S8;
        avx2_vec_f steps[BNORM_VECTORS];
        BNORM_EACH steps[q] = avx2_quotient(v[q], avx2_quant);
        if (count == 4)
            vec_store_8_4((uint8_t *)p, steps, zero, is_signed);
        else
            BNORM_EACH vec_store_8(BNORM_AT(uint8_t), steps[q], zero, is_signed);
        break;
    }
    }
#undef BNORM_AT
}

/* y, canonical. */
BNORM_INLINE avx2_vec_f avx2_activate(bnorm_act_kind kind, avx2_vec_f v, avx2_vec_f a, avx2_vec_f b) {
    const avx2_vec_f zero = avx2_vec_set1(0), three = avx2_vec_set1(3);
    switch (kind) {
    case BNORM_ACT_RELU:
        return avx2_vec_relu(v);
    case BNORM_ACT_CLAMP:
        return avx2_vec_clamp(v, a, b);
    case BNORM_ACT_LEAKY_RELU:
        v = avx2_vec_mul(v, avx2_vec_if_gt(v, zero, avx2_vec_set1(1), a));
        break;
    case BNORM_ACT_HARD_SWISH: {
        const avx2_vec_f m = avx2_within_three(v);
        v = avx2_vec_if_le(three, v, v, avx2_vec_mul(avx2_vec_mul(m, avx2_vec_add(m, three)), avx2_vec_set1(1.0f / 6)));
        break;
    }
    default:
        break;
    }
    return avx2_vec_canonical_result(v);
}

/* Out of line, as are SLEEF's functions. */
BNORM_RARE void avx2_smooth_values(bnorm_act_kind kind, float a, float *v, size_t n) {
    for (size_t i = 0; i < n; i += VEC_F)
        avx2_vec_store(v + i, avx2_vec_canonical(avx2_smooth_value(kind, avx2_vec_load(v + i), avx2_vec_set1(a))));
}

#define BNORM_CASE(kind)                                                                           \
    case kind:                                                                                     \
        BNORM_EACH BNORM_OF(kind);                                                                 \
        break;

BNORM_INLINE void avx2_activate_vectors(const struct avx2_form f, const bnorm_act *act, avx2_vec_f *v,
                                   size_t count) {
    const avx2_vec_f a = avx2_vec_set1(act->a), b = avx2_vec_set1(act->b);
#define BNORM_OF(kind) v[q] = avx2_activate(kind, v[q], a, b)
    if (f.type != BNORM_ANY) {
        switch (f.kind == BNORM_ANY ? (int)act->kind : f.kind) {
            BNORM_CASE(BNORM_ACT_RELU)
            BNORM_CASE(BNORM_ACT_CLAMP)
        default:
            BNORM_EACH BNORM_OF(BNORM_ACT_IDENTITY);
        }
        return;
    }
    switch (act->kind) {
        BNORM_PLAIN_KINDS(BNORM_CASE)
    default: {
        float values[BNORM_GROUP_F];
        BNORM_EACH avx2_vec_store(values + q * VEC_F, v[q]);
        avx2_smooth_values(act->kind, act->a, values, count * VEC_F);
        BNORM_EACH v[q] = avx2_vec_load(values + q * VEC_F);
    }
    }
#undef BNORM_OF
}

/* g = dy*act'(v) */
BNORM_INLINE void avx2_gradient_vectors(const struct avx2_form f, const bnorm_act *act, const avx2_vec_f *v,
                                   avx2_vec_f *g, size_t count) {
    const avx2_vec_f a = avx2_vec_set1(act->a), b = avx2_vec_set1(act->b);
#define BNORM_OF(kind) g[q] = avx2_gradient(kind, v[q], g[q], a, b)
    if (f.type != BNORM_ANY) {
        BNORM_EACH BNORM_OF(BNORM_ACT_RELU);
        return;
    }
    switch (act->kind) {
        BNORM_PLAIN_KINDS(BNORM_CASE)
    default: {
        float values[2][BNORM_GROUP_F];
        BNORM_EACH avx2_vec_store(values[0] + q * VEC_F, v[q]);
        BNORM_EACH avx2_vec_store(values[1] + q * VEC_F, g[q]);
        avx2_smooth_gradients(act->kind, act->a, values[0], values[1], count * VEC_F);
        BNORM_EACH g[q] = avx2_vec_load(values[1] + q * VEC_F);
    }
    }
#undef BNORM_OF
}
#undef BNORM_CASE

/* A bit per element: whether the derivative is that of the upper branch. */
BNORM_INLINE uint64_t avx2_branch_bits(const bnorm_act *act, const avx2_vec_f *v, size_t count) {
    const avx2_vec_f zero = avx2_vec_set1(0), low = avx2_vec_set1(act->a), high = avx2_vec_set1(act->b);
    uint64_t word = 0;
    BNORM_EACH {
        const unsigned bits = act->kind == BNORM_ACT_CLAMP
                                  ? avx2_vec_bits_gt(v[q], low) & avx2_vec_bits_gt(high, v[q])
                                  : avx2_vec_bits_gt(v[q], zero);
        word |= (uint64_t)bits << (q * VEC_F);
    }
    return word;
}

/* The type of a tensor that has this one in the call; backward has no quantized ones. */
BNORM_INLINE bnorm_dtype avx2_type_of(const struct avx2_form f, bnorm_dtype type) {
    if (f.direction == avx2_BACKWARD && type > BNORM_F16)
        __builtin_unreachable();
    return f.type == BNORM_ANY ? type : (bnorm_dtype)f.type;
}

/* Which outputs there are. */
BNORM_INLINE int avx2_has_out(const struct avx2_form f, const struct avx2_mapping *m) {
    return f.type == BNORM_ANY && f.direction == avx2_BACKWARD ? m->has_out : 1;
}
BNORM_INLINE int avx2_has_dresidual(const struct avx2_form f, const struct avx2_mapping *m) {
    const int never = f.direction == avx2_FORWARD || f.kind == BNORM_ACT_IDENTITY;
    return never ? 0 : m->has_dresidual;
}

/* What is stored; canonical. */
struct avx2_results {
    avx2_vec_f out[BNORM_VECTORS], dresidual[BNORM_VECTORS];
    uint64_t bits; /* of a mask that is written */
};

/* `count` vectors from element e of a run on, whose parameters begin with number i. */
BNORM_INLINE void avx2_compute(const struct avx2_form f, const struct avx2_mapping *m, const struct avx2_run *r,
                          const struct avx2_held *h, size_t i, size_t e, size_t count,
                          struct avx2_results *to) {
    avx2_vec_f x[BNORM_VECTORS] = {0}, v[BNORM_VECTORS] = {0}, g[BNORM_VECTORS] = {0};
    const int any = f.type == BNORM_ANY, forward = f.direction == avx2_FORWARD;
    const int sloped = any ? m->sloped : f.sloped, centred = any || forward ? m->centred : 1;
    const bnorm_dtype type = avx2_type_of(f, m->type);
    const size_t at = e * (any ? m->size : avx2_size_of(type));
#define BNORM_P(name)                                                                              \
    (f.source == avx2_LOADED ? avx2_vec_load(m->p.name + i + q * VEC_F)                                      \
     : f.source == avx2_HELD ? h->name[q]                                                               \
                        : h->name[0])
    if (forward || sloped || m->reads_x) {
        avx2_load_vectors(x, type, r->x + at, &m->x_quant, count);
        if (centred)
            BNORM_EACH x[q] = avx2_vec_sub(x[q], BNORM_P(center));
    }
    if (forward) {
        BNORM_EACH v[q] = avx2_vec_fma(x[q], BNORM_P(scale), BNORM_P(shift));
        if (BNORM_UNLIKELY(m->pre == BNORM_PRE_RESIDUAL)) {
            avx2_load_vectors(g, type, r->argument + at, &m->argument_quant, count);
            BNORM_EACH v[q] = avx2_vec_add(v[q], g[q]);
        }
        if (any && m->bits)
            to->bits = avx2_branch_bits(&m->act, v, count);
        avx2_activate_vectors(f, &m->act, v, count);
        BNORM_EACH to->out[q] = v[q];
        return;
    }
    const int has_argument =
        (f.kind == BNORM_ANY ? (int)m->act.kind : f.kind) != BNORM_ACT_IDENTITY;
    if (has_argument) {
        if (m->pre == BNORM_PRE_Y) {
            avx2_load_vectors(v, type, r->argument + at, &m->x_quant, count);
        } else if (any && m->pre == BNORM_PRE_MASK) {
            const uint64_t word = avx2_read_bits(m->bits, r->bit + e, count * VEC_F);
            BNORM_EACH v[q] = avx2_vec_from_bits((unsigned)(word >> (q * VEC_F)));
        } else {
            BNORM_EACH v[q] = avx2_vec_fma(x[q], BNORM_P(scale), BNORM_P(shift));
            if (m->pre == BNORM_PRE_RESIDUAL) {
                avx2_load_vectors(g, type, r->argument + at, &m->x_quant, count);
                BNORM_EACH v[q] = avx2_vec_add(v[q], g[q]);
            }
        }
    }
    avx2_load_vectors(g, type, r->dy + at, &m->x_quant, count);
    if (has_argument)
        avx2_gradient_vectors(f, &m->act, v, g, count);
    if (avx2_has_dresidual(f, m))
        BNORM_EACH to->dresidual[q] = avx2_vec_canonical(g[q]);
    if (sloped) {
        BNORM_EACH g[q] = avx2_vec_fma(g[q], BNORM_P(scale), BNORM_P(offset));
        BNORM_EACH x[q] = avx2_vec_mul(x[q], BNORM_P(invstd));
        BNORM_EACH g[q] = avx2_vec_fma(x[q], BNORM_P(slope), g[q]);
    } else {
        BNORM_EACH g[q] = avx2_vec_mul(g[q], BNORM_P(scale));
    }
    BNORM_EACH to->out[q] = avx2_vec_canonical_result(g[q]);
#undef BNORM_P
}

BNORM_INLINE void avx2_store_results(const struct avx2_form f, const struct avx2_mapping *m, const struct avx2_run *r,
                                size_t e, size_t count, const struct avx2_results *from) {
    const int any = f.type == BNORM_ANY;
    const bnorm_dtype type = avx2_type_of(f, m->out_type);
    const size_t at = e * (any ? m->out_size : avx2_size_of(type));
    if (avx2_has_out(f, m))
        avx2_store_vectors(r->out + at, type, &m->out_quant, from->out, count);
    if (avx2_has_dresidual(f, m))
        avx2_store_vectors(r->dresidual + at, type, &m->out_quant, from->dresidual, count);
}

/* ---------------------------------------------------------------------------------------------- */
/* Runs */

BNORM_INLINE void avx2_skip_row(const struct avx2_form f, struct avx2_run *r, const struct avx2_strides *s) {
    r->x += s->x;
    r->argument += s->argument;
    r->out += s->out;
    r->bit += s->bit;
    if (f.direction == avx2_BACKWARD) {
        r->dy += s->dy;
        r->dresidual += s->dresidual;
    }
}

BNORM_INLINE void avx2_skip_elements(struct avx2_run *r, const struct avx2_form f, const struct avx2_mapping *m,
                                size_t n) {
    const size_t in = f.type == BNORM_ANY ? m->size : avx2_size_of((bnorm_dtype)f.type),
                 out = f.type == BNORM_ANY ? m->out_size : in;
    r->x += n * in;
    r->dy += n * in;
    r->argument += n * in;
    r->out += n * out;
    r->dresidual += n * out;
    r->bit += n;
}

/* The parameters that all groups have, or all vectors of a run: `each` of them, from number i on. */
BNORM_INLINE void avx2_hold(const struct avx2_form f, const struct avx2_parameters *p, size_t i, size_t each,
                       struct avx2_held *h) {
    const size_t count = f.source == avx2_HELD ? BNORM_VECTORS : 1;
#define BNORM_HOLD(load)                                                                           \
    {                                                                                              \
        BNORM_EACH h->center[q] = load(p->center);                                                 \
        BNORM_EACH h->scale[q] = load(p->scale);                                                   \
        BNORM_EACH h->shift[q] = load(p->shift);                                                   \
        if (f.direction == avx2_BACKWARD) {                                                             \
            BNORM_EACH h->invstd[q] = load(p->invstd);                                             \
            BNORM_EACH h->slope[q] = load(p->slope);                                               \
            BNORM_EACH h->offset[q] = load(p->offset);                                             \
        }                                                                                          \
    }
#define BNORM_GROUP_OF(array) avx2_vec_load((array) + q * VEC_F)
#define BNORM_ONE_OF(array)   avx2_vec_set1((array)[i])
#define BNORM_SOME_OF(array)  avx2_vec_repeat((array) + i, each)
    if (f.source == avx2_HELD)
        BNORM_HOLD(BNORM_GROUP_OF)
    else if (each == 1)
        BNORM_HOLD(BNORM_ONE_OF)
    else
        BNORM_HOLD(BNORM_SOME_OF)
#undef BNORM_GROUP_OF
#undef BNORM_ONE_OF
#undef BNORM_SOME_OF
#undef BNORM_HOLD
}

/* Asks for the lines that a group from element e of r on will be followed by. */
BNORM_INLINE void avx2_fetch_group(const struct avx2_form f, const struct avx2_mapping *m, const struct avx2_run *r,
                              size_t e, unsigned hints) {
    const size_t size = f.type == BNORM_ANY ? m->size : avx2_size_of((bnorm_dtype)f.type),
                 out_size = f.type == BNORM_ANY ? m->out_size : size, in = BNORM_GROUP_F * size,
                 out = BNORM_GROUP_F * out_size;
    const int argument = avx2_reads_extra(m->pre);
#define BNORM_FETCH(t) avx2_vec_fetch((const float *)(const void *)(r->t + e * size + BNORM_AHEAD + k))
#define BNORM_FETCH_TO(t)                                                                          \
    avx2_vec_fetch_out((const float *)(const void *)(r->t + e * out_size + BNORM_AHEAD_OUT + k))
    for (size_t k = 0; (hints & BNORM_FETCH_IN) && k < in; k += 64) {
        BNORM_FETCH(x);
        if (f.direction == avx2_BACKWARD)
            BNORM_FETCH(dy);
        if (argument)
            BNORM_FETCH(argument);
    }
    for (size_t k = 0; (hints & BNORM_FETCH_OUT) && k < out; k += 64) {
        if (avx2_has_out(f, m))
            BNORM_FETCH_TO(out);
        if (avx2_has_dresidual(f, m))
            BNORM_FETCH_TO(dresidual);
    }
#undef BNORM_FETCH
#undef BNORM_FETCH_TO
}

/* Inputs of a vector. */
struct avx2_inputs {
    _Alignas(64) char x[VEC_F * sizeof(float)], dy[VEC_F * sizeof(float)],
        argument[VEC_F * sizeof(float)];
};

/* Copies those of a run from element e on; the result is a run of them. */
BNORM_INLINE struct avx2_run avx2_keep_inputs(const struct avx2_form f, const struct avx2_mapping *m, struct avx2_run r,
                                    size_t e, struct avx2_inputs *to) {
    const size_t bytes = VEC_F * m->size;
    avx2_skip_elements(&r, f, m, e);
    memcpy(to->x, r.x, bytes);
    memcpy(to->argument, r.argument, bytes);
    if (f.direction == avx2_BACKWARD)
        memcpy(to->dy, r.dy, bytes);
    return (struct avx2_run){to->x, to->dy, to->argument, NULL, NULL, r.bit};
}

/* Runs of at least a vector. Where a run ends within a vector, the last vector is computed first, as
 * its elements may be overwritten before their turn, and stored last; in the form for everything
 * else its inputs are copied, which takes less code. What is copied first has no other name
 * afterwards, so that it stays in registers while outputs are stored. */
BNORM_INLINE void avx2_map_runs(const struct avx2_form f, const struct avx2_mapping *given,
                           const struct avx2_block *avx2_block) {
    const struct avx2_mapping mine = *given, *const m = &mine;
    const struct avx2_strides avx2_strides = avx2_block->strides;
    const size_t len = avx2_block->lanes, first = avx2_block->first, period = avx2_block->period,
                 step = avx2_block->step, each = avx2_block->each, tail = len % VEC_F, whole = len - tail,
                 grouped = len - len % BNORM_GROUP_F;
    const int any = f.type == BNORM_ANY, writes_bits = any && f.direction == avx2_FORWARD && m->bits;
    struct avx2_run r = avx2_block->run;
    const unsigned fetch = avx2_block->fetch;
    struct avx2_bit_writer w = {0};
    struct avx2_held h;
/* Which parameters element e has. */
#define BNORM_INDEX(e)                                                                             \
    (f.source == avx2_SPREAD ? 0 : first + (e) < period ? first + (e) : (first + (e)) % period)
    if (writes_bits)
        avx2_begin_bits(&w, m->bits, r.bit);
    for (size_t row = 0; row < avx2_block->rows; row++, avx2_skip_row(f, &r, &avx2_strides)) {
        struct avx2_results last = {.bits = 0};
        struct avx2_inputs avx2_inputs;
        struct avx2_run kept = {0};
        size_t e = 0, i = BNORM_INDEX(0);
        if (f.source == avx2_SPREAD)
            avx2_hold(f, &m->p, (first + row) * each, each, &h);
        if (writes_bits)
            avx2_seek_bits(&w, r.bit);
        if (tail && any)
            kept = avx2_keep_inputs(f, m, r, len - VEC_F, &avx2_inputs);
        else if (tail)
            avx2_compute(f, m, &r, &h, BNORM_INDEX(len - VEC_F), len - VEC_F, 1, &last);
        for (; e < grouped; e += BNORM_GROUP_F) {
            struct avx2_results avx2_results = {.bits = 0};
            if (BNORM_UNLIKELY(fetch))
                avx2_fetch_group(f, m, &r, e, fetch);
            avx2_compute(f, m, &r, &h, i, e, BNORM_VECTORS, &avx2_results);
            avx2_store_results(f, m, &r, e, BNORM_VECTORS, &avx2_results);
            if (writes_bits)
                avx2_put_bits(&w, avx2_results.bits, BNORM_GROUP_F);
            if (f.source == avx2_LOADED) {
                i += step;
                i = i >= period ? i - period : i;
            }
        }
        for (; e < (any ? len : whole); e += VEC_F) {
            struct avx2_results avx2_results = {.bits = 0};
            const size_t again = any && e >= whole ? VEC_F - tail : 0;
            e -= again;
            avx2_compute(f, m, again ? &kept : &r, &h, BNORM_INDEX(e), again ? 0 : e, 1, &avx2_results);
            avx2_store_results(f, m, &r, e, 1, &avx2_results);
            if (writes_bits)
                avx2_put_bits(&w, avx2_results.bits >> again, VEC_F - again);
        }
        if (tail && !any)
            avx2_store_results(f, m, &r, len - VEC_F, 1, &last);
    }
    if (writes_bits)
        avx2_end_bits(&w);
#undef BNORM_INDEX
}

/* The elements of a group in each row. */
BNORM_INLINE void map_held(const struct avx2_form f, const struct avx2_mapping *given,
                           const struct avx2_block *avx2_block) {
    const struct avx2_mapping mine = *given, *const m = &mine;
    const struct avx2_strides avx2_strides = avx2_block->strides;
    struct avx2_run r = avx2_block->run;
    struct avx2_held h;
    avx2_hold(f, &m->p, 0, 0, &h);
    for (size_t rows = avx2_block->rows; rows > 0; rows--, avx2_skip_row(f, &r, &avx2_strides)) {
        struct avx2_results avx2_results = {.bits = 0};
        avx2_compute(f, m, &r, &h, 0, 0, BNORM_VECTORS, &avx2_results);
        avx2_store_results(f, m, &r, 0, BNORM_VECTORS, &avx2_results);
    }
}

/* What moves by the size of elements that a call has. */
static const struct avx2_form avx2_all_forms = {avx2_BACKWARD, avx2_LOADED, BNORM_ANY, BNORM_ANY, 0};

#define BNORM_FORM(name, map, avx2_direction, avx2_source, type, kind, sloped)                               \
    static void name(const struct avx2_mapping *m, const struct avx2_block *b) {                             \
        map((struct avx2_form){avx2_direction, avx2_source, type, kind, sloped}, m, b);                           \
    }
/* Those of one type and kind: of planes and of rows. */
#define BNORM_FORMS(name, avx2_direction, type, kind, sloped)                                           \
    BNORM_FORM(name##_planes, avx2_map_runs, avx2_direction, avx2_SPREAD, type, kind, sloped)                     \
    BNORM_FORM(name##_rows, avx2_map_runs, avx2_direction, avx2_LOADED, type, kind, sloped)
#define BNORM_FORWARD_F32(name, kind)                                                              \
    BNORM_FORMS(name, avx2_FORWARD, BNORM_F32, kind, 0)                                                 \
    BNORM_FORM(name##_held, map_held, avx2_FORWARD, avx2_HELD, BNORM_F32, kind, 0)
BNORM_FORWARD_F32(forward_identity, BNORM_ACT_IDENTITY)
BNORM_FORWARD_F32(forward_relu, BNORM_ACT_RELU)
BNORM_FORWARD_F32(forward_clamp, BNORM_ACT_CLAMP)
BNORM_FORMS(forward_bf16, avx2_FORWARD, BNORM_BF16, BNORM_ANY, 0)
BNORM_FORMS(forward_f16, avx2_FORWARD, BNORM_F16, BNORM_ANY, 0)
BNORM_FORMS(forward_any, avx2_FORWARD, BNORM_ANY, BNORM_ANY, 0)
BNORM_FORMS(backward_identity, avx2_BACKWARD, BNORM_F32, BNORM_ACT_IDENTITY, 1)
BNORM_FORMS(backward_relu, avx2_BACKWARD, BNORM_F32, BNORM_ACT_RELU, 1)
BNORM_FORMS(backward_frozen, avx2_BACKWARD, BNORM_F32, BNORM_ANY, 0)
BNORM_FORMS(backward_bf16, avx2_BACKWARD, BNORM_BF16, BNORM_ANY, 1)
BNORM_FORMS(backward_f16, avx2_BACKWARD, BNORM_F16, BNORM_ANY, 1)
BNORM_FORM(backward_any_rows, avx2_map_runs, avx2_BACKWARD, avx2_LOADED, BNORM_ANY, BNORM_ANY, 0)

struct avx2_functions {
    avx2_map_function *planes, *rows, *held;
};
/* Of floats by kind of activation, in backward without slope instead of clamp; of BF16, of F16, of
 * others. */
#define BNORM_OTHERS 5
static const struct avx2_functions avx2_forward_functions[BNORM_OTHERS + 1] = {
    {forward_identity_planes, forward_identity_rows, forward_identity_held},
    {forward_relu_planes, forward_relu_rows, forward_relu_held},
    {forward_clamp_planes, forward_clamp_rows, forward_clamp_held},
    {forward_bf16_planes, forward_bf16_rows, NULL},
    {forward_f16_planes, forward_f16_rows, NULL},
    {forward_any_planes, forward_any_rows, NULL}};
static const struct avx2_functions avx2_backward_functions[BNORM_OTHERS + 1] = {
    {backward_identity_planes, backward_identity_rows, NULL},
    {backward_relu_planes, backward_relu_rows, NULL},
    {backward_frozen_planes, backward_frozen_rows, NULL},
    {backward_bf16_planes, backward_bf16_rows, NULL},
    {backward_f16_planes, backward_f16_rows, NULL},
    {NULL, backward_any_rows, NULL}};

/* The forms of a call. */
BNORM_INLINE const struct avx2_functions *avx2_functions_of(const struct avx2_mapping *m,
                                                  const struct avx2_functions *avx2_functions) {
    const int identity = m->act.kind == BNORM_ACT_IDENTITY, float32 = m->type == BNORM_F32;
    const int frozen = m->direction == avx2_BACKWARD && !m->sloped;
    size_t which = float32 ? (size_t)m->act.kind : 2 + (size_t)m->type;
    int typed = m->type <= BNORM_F16 && m->type == m->out_type && !m->bits;
    if (m->direction == avx2_FORWARD)
        typed &= m->act.kind <= BNORM_ACT_CLAMP;
    else
        typed &= m->act.kind <= BNORM_ACT_RELU && m->has_out && m->centred &&
                 !(identity && float32 && m->has_dresidual) && (float32 || !frozen);
    if (frozen)
        which = BNORM_ACT_CLAMP;
    return &avx2_functions[typed ? which : BNORM_OTHERS];
}

/* ---------------------------------------------------------------------------------------------- */
/* Long runs: lines of the caches */

/* Whole lines past the caches. */
BNORM_INLINE void avx2_pass_on(char *to, const float *from, size_t bytes) {
    for (size_t k = 0; k < bytes; k += sizeof(avx2_vec_f), from += VEC_F)
        avx2_vec_bypass((float *)(void *)(to + k), avx2_vec_load(from));
}

BNORM_INLINE size_t avx2_to_line(const char *p) {
    return -(uintptr_t)p % 64;
}

/* A run from a line of the output on, and whole lines past the caches where that is wanted. */
BNORM_RARE void avx2_map_long(avx2_map_function *avx2_form, const struct avx2_mapping *m, const struct avx2_block *avx2_run) {
    _Alignas(64) float lines[2][BNORM_PART / sizeof(float)];
    const size_t most = BNORM_PART / m->out_size, line = 64 / m->out_size, len = avx2_run->lanes;
    struct avx2_block b = *avx2_run;
    size_t e = 0;
    if (!b.exact && !m->in_place && !m->writes_bits) {
        e = avx2_to_line(m->has_out ? b.run.out : b.run.dresidual) / m->out_size;
        e = e % b.each == 0 ? e : 0;
        b.lanes = e < VEC_F ? VEC_F : e; /* what goes beyond it is computed again */
        if (e)
            avx2_form(m, &b);
        avx2_skip_elements(&b.run, avx2_all_forms, m, e);
    }
    while (e < len) {
        struct avx2_run r = b.run;
        size_t n = len - e, skip = n;
        const int bypass = (m->hints & BNORM_BYPASS) && n >= line &&
                           (!m->has_out || avx2_to_line(r.out) == 0) &&
                           (!m->has_dresidual || avx2_to_line(r.dresidual) == 0);
        if (avx2_form != m->spread)
            b.first = e < b.period ? e : e % b.period;
        if (bypass) {
            n = skip = avx2_lesser(n / line * line, most);
            b.run.out = (char *)lines[0];
            b.run.dresidual = (char *)lines[1];
        } else if (n < VEC_F) { /* nor is that in place */
            b = *avx2_run;
            n = VEC_F;
            avx2_skip_elements(&b.run, avx2_all_forms, m, len - n);
            if (avx2_form != m->spread)
                b.first = len - n < b.period ? len - n : (len - n) % b.period;
        }
        b.lanes = n;
        avx2_form(m, &b);
        if (bypass && m->has_out)
            avx2_pass_on(r.out, lines[0], n * m->out_size);
        if (bypass && m->has_dresidual)
            avx2_pass_on(r.dresidual, lines[1], n * m->out_size);
        b.run = r;
        e += skip;
        avx2_skip_elements(&b.run, avx2_all_forms, m, skip);
    }
}

/* Runs of at least a vector. */
static void avx2_map_form(avx2_map_function *avx2_form, const struct avx2_mapping *m, struct avx2_block *b) {
    const char *out = m->has_out ? b->run.out : b->run.dresidual;
    const size_t stride = m->has_out ? b->strides.out : b->strides.dresidual;
    const size_t least = avx2_form == m->spread ? 4 * BNORM_LONG_RUN : BNORM_LONG_RUN;
    const int lies_well = avx2_to_line(out) == 0 && (b->rows == 1 || stride % 64 == 0);
    b->fetch = b->lanes * m->out_size > BNORM_PART || (m->hints & BNORM_BYPASS)
                   ? m->hints & ~(unsigned)BNORM_BYPASS
                   : 0;
    if (b->lanes < BNORM_LONG_RUN ||
        (!(m->hints & BNORM_BYPASS) && (lies_well || m->in_place || b->lanes < least))) {
        avx2_form(m, b);
        return;
    }
    struct avx2_block avx2_run = *b;
    avx2_run.rows = 1;
    for (size_t row = 0; row < b->rows; row++, avx2_skip_row(avx2_all_forms, &avx2_run.run, &b->strides)) {
        avx2_run.first = avx2_form == m->spread ? b->first + row : b->first;
        avx2_map_long(avx2_form, m, &avx2_run);
    }
}

/* ---------------------------------------------------------------------------------------------- */
/* Rows and planes */

/* No period. */
BNORM_INLINE void avx2_begin_period(struct avx2_block *b) {
    b->first = 0;
    b->period = SIZE_MAX;
    b->step = BNORM_GROUP_F;
    b->each = 1;
    b->exact = 0;
}

/* Runs of fewer elements than a vector: each as one vector in memory, the other elements of which
 * are 0, as are their parameters, so that nothing comes of them. */
BNORM_RARE void avx2_map_few(const struct avx2_mapping *m, const struct avx2_block *b, int planes) {
    struct {
        _Alignas(64) char x[64], dy[64], argument[64], out[64], dresidual[64];
        float p[6][VEC_F];
    } lanes;
    const size_t n = b->lanes;
    const int reads_bits = m->pre == BNORM_PRE_MASK;
    unsigned char bits[8] = {0};
    struct avx2_mapping few = *m;
    struct avx2_block vector;
    struct avx2_run r = b->run;
    memset(&lanes, 0, sizeof lanes);
    vector.run = (struct avx2_run){lanes.x, lanes.dy, lanes.argument, lanes.out, lanes.dresidual, 0};
    vector.strides = (struct avx2_strides){0};
    vector.rows = 1;
    vector.fetch = 0;
    vector.lanes = VEC_F;
    avx2_begin_period(&vector);
    few.bits = m->bits ? bits : NULL;
    few.hints = 0;
    if (m->type >= BNORM_S8) { /* what stands for 0 */
        memset(lanes.x, (int)m->x_quant.zero_point, sizeof lanes.x);
        memset(lanes.argument, (int)m->argument_quant.zero_point, sizeof lanes.argument);
    }
    for (size_t row = 0; row < b->rows; row++, avx2_skip_row(avx2_all_forms, &r, &b->strides)) {
#define BNORM_FEW(k, name)                                                                         \
    for (size_t i = 0; i < n; i++)                                                                 \
        lanes.p[k][i] = m->p.name[planes ? row : i];                                               \
    few.p.name = lanes.p[k];
        if (row == 0 || planes)
            BNORM_FOR_PARAMETERS(m, BNORM_FEW)
#undef BNORM_FEW
        memcpy(lanes.x, r.x, n * m->size);
        memcpy(lanes.dy, r.dy, n * m->size);
        memcpy(lanes.argument, r.argument, n * m->size);
        if (reads_bits) {
            const unsigned window = avx2_bit_window(m->bits, r.bit, n) & ((1u << n) - 1);
            bits[0] = (unsigned char)window;
            bits[1] = (unsigned char)(window >> 8);
        }
        m->any(&few, &vector);
        if (m->bits && !reads_bits) {
            struct avx2_bit_writer w;
            avx2_begin_bits(&w, m->bits, r.bit);
            avx2_put_bits(&w, bits[0] | (uint64_t)bits[1] << 8, n);
            avx2_end_bits(&w);
        }
        if (m->has_out)
            memcpy(r.out, lanes.out, n * m->out_size);
        if (m->has_dresidual)
            memcpy(r.dresidual, lanes.dresidual, n * m->out_size);
    }
}

/* p[0..n) over and over, `end` floats, in whole vectors. */
BNORM_INLINE void avx2_repeat_floats(float *to, const float *p, size_t n, size_t end) {
    size_t done = 0;
    for (; done < end && done < n; done += VEC_F)
        avx2_store_lanes(to + done, avx2_load_lanes(p + done, avx2_lesser(VEC_F, n - done)), VEC_F);
    while (n < VEC_F) {
        avx2_vec_store(to + n, avx2_vec_load(to));
        n *= 2;
    }
    for (size_t i = n; i < end; i += VEC_F)
        avx2_vec_store(to + i, avx2_vec_load(to + i - n));
}

/* Floats of `room` for each array. */
BNORM_INLINE size_t avx2_room_of(const struct avx2_mapping *m) {
    return BNORM_ROOM / (m->sloped ? 6 : 3) / VEC_F * VEC_F;
}

/* The parameters of rows that follow one another, repeated in `room`. */
BNORM_RARE void avx2_repeat_parameters(struct avx2_mapping *m, size_t lanes, size_t end, float *room) {
    const size_t each = avx2_room_of(m);
#define BNORM_REPEAT(k, name)                                                                      \
    avx2_repeat_floats(room + (k)*each, m->p.name, lanes, end);                                         \
    m->p.name = room + (k)*each;
    BNORM_FOR_PARAMETERS(m, BNORM_REPEAT)
#undef BNORM_REPEAT
    if (!m->centred)
        m->p.center = m->p.scale;
}

/* Rows that follow one another become one run. The parameters are written one behind the other in
 * `room`, but where groups are whole in each row. */
BNORM_RARE void join_rows(struct avx2_mapping *m, struct avx2_block *b, float *room) {
    const size_t total = b->rows * b->lanes, most = avx2_room_of(m) - BNORM_GROUP_F;
    size_t period = b->lanes;
    b->exact = b->lanes >= BNORM_LONG_ROW && b->lanes % BNORM_GROUP_F == 0;
    if (!b->exact) {
        while (period % VEC_F)
            period *= 2;
        if (period > most || (b->lanes >= VEC_F && total < 4 * period))
            return;
        while (period < BNORM_LONG_ROW && 8 * period <= total && 2 * period <= most)
            period *= 2;
        avx2_repeat_parameters(m, b->lanes, period + BNORM_GROUP_F, room);
    }
    b->lanes = total;
    b->rows = 1;
    b->period = period;
    b->step = BNORM_GROUP_F % period;
}

/* A strip of channels after the other, whose parameters are held while all rows pass. */
BNORM_RARE void avx2_map_strips(struct avx2_mapping *m, const struct avx2_block *b) {
    struct avx2_block strip = *b;
    for (size_t e = 0; e < b->lanes; e += BNORM_GROUP_F) {
        m->held(m, &strip);
        m->p.center += BNORM_GROUP_F;
        m->p.scale += BNORM_GROUP_F;
        m->p.shift += BNORM_GROUP_F;
        avx2_skip_elements(&strip.run, avx2_all_forms, m, BNORM_GROUP_F);
    }
}

/* Groups that have whole rows. Leaves at least a vector of what follows them. */
BNORM_RARE void map_whole_rows(struct avx2_mapping *m, struct avx2_block *b, float *room) {
    const struct avx2_strides *s = &b->strides;
    const size_t total = b->rows * b->lanes, times = BNORM_GROUP_F / b->lanes;
    struct avx2_block groups = *b;
    groups.rows = (total - VEC_F) / BNORM_GROUP_F;
    groups.strides.x = times * s->x;
    groups.strides.argument = times * s->argument;
    groups.strides.out = times * s->out;
    avx2_repeat_parameters(m, b->lanes, 2 * BNORM_GROUP_F, room);
    m->held(m, &groups);
    avx2_skip_elements(&b->run, avx2_all_forms, m, groups.rows * BNORM_GROUP_F);
    b->lanes = total - groups.rows * BNORM_GROUP_F;
    b->rows = 1;
    b->period = BNORM_GROUP_F;
    b->step = 0;
}

static void map_rows(struct avx2_mapping *m, struct avx2_block *b) {
    _Alignas(64) float room[BNORM_ROOM + BNORM_PAD];
    const struct avx2_parameters p = m->p;
    const size_t total = b->rows * b->lanes;
    if (m->held && b->lanes % BNORM_GROUP_F == 0 && b->rows >= 4 && m->strips) {
        avx2_map_strips(m, b);
        m->p = p;
        return;
    }
    if (b->dense && b->rows > 1) {
        if (m->held && m->hints == 0 && BNORM_GROUP_F % b->lanes == 0 && total >= 2 * BNORM_GROUP_F)
            map_whole_rows(m, b, room);
        else
            join_rows(m, b, room);
    }
    if (b->lanes < VEC_F)
        avx2_map_few(m, b, 0);
    else
        avx2_map_form(m->loaded, m, b);
    m->p = p;
}

/* Planes. */
static void map_planes(struct avx2_mapping *m, struct avx2_block *b) {
    float room[6][BNORM_GROUP_F];
    const struct avx2_parameters p = m->p;
    const size_t planes = b->rows;
    if (b->lanes < VEC_F) {
        avx2_map_few(m, b, 1);
        return;
    }
    if (m->spread) {
        avx2_map_form(m->spread, m, b);
        return;
    }
    b->rows = 1;
    b->period = 1;
    b->step = 0;
    for (size_t plane = 0; plane < planes; plane++, avx2_skip_row(avx2_all_forms, &b->run, &b->strides)) {
#define BNORM_SPREAD(k, name)                                                                      \
    for (size_t i = 0; i < BNORM_GROUP_F; i += VEC_F)                                              \
        avx2_vec_store(room[k] + i, avx2_vec_set1(p.name[plane]));                                           \
    m->p.name = room[k];
        BNORM_FOR_PARAMETERS(m, BNORM_SPREAD)
#undef BNORM_SPREAD
        avx2_map_form(m->loaded, m, b);
    }
    m->p = p;
}

BNORM_RARE void clear_rows(char *p, size_t stride, size_t rows, size_t bytes, int zero) {
    const uint32_t four = (uint32_t)(zero & 255) * 0x01010101u;
    for (; rows > 0; rows--, p += stride) {
        size_t k = 0;
        for (; k + 4 <= bytes; k += 4)
            memcpy(p + k, &four, 4);
        for (; k < bytes; k++)
            p[k] = (char)zero;
    }
}

/* Rows whose lanes behind the first `valid` are padding, which gets zeros. Whatever is in it gives
 * NaN in forward, which has no bit. */
BNORM_RARE void avx2_map_padded(const struct avx2_mapping *m, struct avx2_block *b, size_t valid) {
    const struct avx2_run r = b->run;
    const size_t rows = b->rows, n = b->lanes - valid, at = valid * m->out_size;
    float p[6][32];
    struct avx2_mapping padded = *m;
#define BNORM_PAD_ARRAY(k, name)                                                                   \
    for (size_t i = 0; i < b->lanes; i++)                                                          \
        p[k][i] = i < valid ? m->p.name[i] : 0;                                                    \
    padded.p.name = p[k];
    BNORM_FOR_PARAMETERS(m, BNORM_PAD_ARRAY)
#undef BNORM_PAD_ARRAY
    if (!m->centred)
        padded.p.center = padded.p.scale;
    for (size_t i = valid; i < b->lanes; i++)
        p[2][i] = NAN;
    map_rows(&padded, b);
    const int zero = m->out_type >= BNORM_S8 ? (int)m->out_quant.zero_point : 0;
    if (m->has_out)
        clear_rows(r.out + at, b->strides.out, rows, n * m->out_size, zero);
    if (m->has_dresidual)
        clear_rows(r.dresidual + at, b->strides.dresidual, rows, n * m->out_size, 0);
}

/* Planes that follow one another are rows of as many channels, each with its parameter. */
BNORM_RARE void map_small_planes(const struct avx2_mapping *whole, const struct avx2_block *planes,
                                 const struct avx2_block *images) {
    _Alignas(64) float room[BNORM_ROOM + BNORM_PAD];
    const size_t len = planes->lanes, each = avx2_room_of(whole), most = (each - VEC_F) / len;
    struct avx2_mapping m = *whole;
    struct avx2_block b = *images;
    for (size_t first = 0, n; first < planes->rows; first += n) {
        struct avx2_block these = b;
        n = avx2_lesser(most, planes->rows - first);
        these.lanes = n * len;
        these.dense &= n == planes->rows;
#define BNORM_STRETCH(k, name)                                                                     \
    for (size_t j = 0; j < n; j++) {                                                               \
        const avx2_vec_f p = avx2_vec_set1(whole->p.name[first + j]);                                        \
        for (size_t i = 0; i < len; i += VEC_F)                                                    \
            avx2_vec_store(room + (k)*each + j * len + i, p);                                           \
    }                                                                                              \
    m.p.name = room + (k)*each;
        BNORM_FOR_PARAMETERS(whole, BNORM_STRETCH)
#undef BNORM_STRETCH
        if (!m.centred)
            m.p.center = m.p.scale;
        map_rows(&m, &these);
        avx2_skip_elements(&b.run, avx2_all_forms, &m, n * len);
    }
}

/* ---------------------------------------------------------------------------------------------- */
/* The kernels */

/* Member by member, as compilers clear whole structs first. */
BNORM_INLINE void avx2_begin_mapping(struct avx2_mapping *m, const bnorm_map_args *a,
                                enum avx2_direction avx2_direction, const struct avx2_functions *all) {
    const float *const any = a->scale;
    const int backward = avx2_direction == avx2_BACKWARD, sloped = backward && a->slope != NULL;
    m->type = a->x.type;
    m->out_type = backward ? a->x.type : a->out.type;
    m->size = avx2_size_of(m->type);
    m->out_size = avx2_size_of(m->out_type);
    m->pre = a->pre;
    m->act = a->act;
    m->centred = a->center != NULL;
    m->sloped = sloped;
    m->reads_x = sloped || avx2_reads_x(a->pre);
    m->has_out = a->out.data != NULL;
    m->has_dresidual = backward && a->dresidual.data;
    m->hints = a->hints & ~(unsigned)BNORM_STRIPS;
    m->strips = (a->hints & BNORM_STRIPS) != 0;
    m->in_place = 0;
    const void *const outs[2] = {a->out.data, a->dresidual.data};
    for (size_t k = 0; k < 2; k++)
        m->in_place |= outs[k] && (outs[k] == a->x.data || outs[k] == a->dy.data ||
                                   outs[k] == a->argument.data);
    if (m->in_place) /* what is past the caches would be computed again */
        m->hints &= ~(unsigned)BNORM_BYPASS;
    m->bits = a->mask.bits;
    /* Compilers may convert a zero point before they ask for the type. */
    m->x_quant = m->argument_quant = m->out_quant = (struct avx2_quant){1, 0, 1, 0};
    if (m->type >= BNORM_S8 || m->out_type >= BNORM_S8) {
        avx2_begin_quant(&m->x_quant, &a->x.quant);
        avx2_begin_quant(&m->argument_quant, &a->argument.quant);
        avx2_begin_quant(&m->out_quant, &a->out.quant);
    }
    m->p.center = a->center ? a->center : any;
    m->p.scale = a->scale;
    m->p.shift = a->shift ? a->shift : any;
    m->p.invstd = sloped ? a->invstd : any;
    m->p.slope = sloped ? a->slope : any;
    m->p.offset = sloped ? a->offset : any;
    const bnorm_act_kind kind =
        backward && m->pre == BNORM_PRE_NONE ? BNORM_ACT_IDENTITY : m->act.kind;
    m->act.kind = kind;
    m->direction = avx2_direction;
    m->writes_bits = !backward && m->bits;
    m->any = all[BNORM_OTHERS].rows;
    const struct avx2_functions *const avx2_functions = avx2_functions_of(m, all);
    m->spread = avx2_functions->planes;
    m->loaded = avx2_functions->rows;
    m->held = avx2_functions->held;
}

/* Axes of a tensor. */
enum avx2_axis { avx2_IMAGES, avx2_GROUPS, avx2_ROWS };

/* Element 0 of a group, and runs of `lanes` that follow one another along an axis. */
BNORM_INLINE void avx2_begin_block(struct avx2_block *b, const struct avx2_mapping *m, const bnorm_map_args *a,
                              enum avx2_axis avx2_axis, size_t image, size_t group) {
#define BNORM_STRIDE(t)                                                                            \
    (avx2_axis == avx2_IMAGES ? a->t.image_stride : avx2_axis == avx2_GROUPS ? a->t.group_stride : a->t.row_stride)
#define BNORM_TENSOR(t, present, size)                                                             \
    b->strides.t = 0;                                                                              \
    if (present) {                                                                                 \
        const size_t stride = BNORM_STRIDE(t);                                                     \
        b->run.t =                                                                                 \
            (char *)a->t.data + (image * a->t.image_stride + group * a->t.group_stride) * (size);  \
        b->strides.t = stride * (size);                                                            \
        b->dense &= stride == a->lanes;                                                            \
    }
    b->lanes = a->lanes;
    b->rows = avx2_axis == avx2_IMAGES ? a->images : avx2_axis == avx2_GROUPS ? a->groups : a->rows;
    b->dense = 1;
    BNORM_TENSOR(x, 1, m->size)
    b->run.dy = b->run.argument = b->run.x;
    b->run.out = b->run.dresidual = (char *)(uintptr_t)b->run.x;
    BNORM_TENSOR(dy, a->dy.data, m->size)
    BNORM_TENSOR(argument, avx2_reads_extra(a->pre), m->size)
    BNORM_TENSOR(out, m->has_out, m->out_size)
    BNORM_TENSOR(dresidual, m->has_dresidual, m->out_size)
    b->run.bit = a->mask.at + image * a->mask.image_stride + group * a->mask.group_stride;
    b->strides.bit = BNORM_STRIDE(mask);
    b->dense &= !m->bits || b->strides.bit == b->lanes;
    avx2_begin_period(b);
#undef BNORM_TENSOR
#undef BNORM_STRIDE
}

/* Whether rows are so short that a vector has whole ones, and follow one another without a gap. */
BNORM_INLINE int are_short_rows(const struct avx2_mapping *m, const bnorm_map_args *a) {
    struct avx2_block b;
    if (!m->spread || VEC_F % a->lanes || a->rows * a->lanes < VEC_F || a->valid < a->lanes)
        return 0;
    avx2_begin_block(&b, m, a, avx2_ROWS, 0, 0);
    return b.dense;
}

static void map_all_rows(const bnorm_map_args *a, enum avx2_direction avx2_direction,
                         const struct avx2_functions *all) {
    struct avx2_mapping m;
    struct avx2_block b;
    avx2_begin_mapping(&m, a, avx2_direction, all);
    if (are_short_rows(&m, a)) {
        for (size_t image = 0; image < a->images; image++) {
            avx2_begin_block(&b, &m, a, avx2_GROUPS, image, 0);
            b.lanes = a->rows * a->lanes;
            b.each = a->lanes;
            avx2_map_form(m.spread, &m, &b);
        }
    } else
        for (size_t group = 0; group < a->groups; group++) {
            for (size_t image = 0; image < a->images; image++) {
                avx2_begin_block(&b, &m, a, avx2_ROWS, image, group);
                if (a->valid < a->lanes)
                    avx2_map_padded(&m, &b, a->valid);
                else
                    map_rows(&m, &b);
            }
            m.p.center += a->lanes;
            m.p.scale += a->lanes;
            m.p.shift += a->lanes;
            m.p.invstd += a->lanes;
            m.p.slope += a->lanes;
            m.p.offset += a->lanes;
        }
    if (m.hints & BNORM_BYPASS)
        avx2_vec_fence();
    avx2_vec_leave();
}

static void map_all_planes(const bnorm_map_args *a, enum avx2_direction avx2_direction,
                           const struct avx2_functions *all) {
    struct avx2_mapping m;
    struct avx2_block b;
    avx2_begin_mapping(&m, a, avx2_direction, all);
    const size_t small = m.loaded == m.any ? BNORM_SMALL_ANY
                         : a->images > 1   ? BNORM_SMALL_PLANES
                                           : BNORM_SMALL_PLANE;
    avx2_begin_block(&b, &m, a, avx2_GROUPS, 0, 0);
    if (a->lanes < small && b.dense) {
        struct avx2_block images;
        avx2_begin_block(&images, &m, a, avx2_IMAGES, 0, 0);
        map_small_planes(&m, &b, &images);
    } else {
        for (size_t image = 0; image < a->images; image++) {
            avx2_begin_block(&b, &m, a, avx2_GROUPS, image, 0);
            map_planes(&m, &b);
        }
    }
    if (m.hints & BNORM_BYPASS)
        avx2_vec_fence();
    avx2_vec_leave();
}

static void avx2_apply_rows(const bnorm_map_args *a) {
    map_all_rows(a, avx2_FORWARD, avx2_forward_functions);
}
static void avx2_apply_span(const bnorm_map_args *a) {
    map_all_planes(a, avx2_FORWARD, avx2_forward_functions);
}
static void avx2_dx_rows(const bnorm_map_args *a) {
    map_all_rows(a, avx2_BACKWARD, avx2_backward_functions);
}
static void avx2_dx_span(const bnorm_map_args *a) {
    map_all_planes(a, avx2_BACKWARD, avx2_backward_functions);
}
/* SPDX-License-Identifier: MIT
 *
 * What lies between the passes of an operation: blocks merged, and per-channel coefficients. In
 * double; src/scalar/scalar.c says what. Channels take a lane each, so that all sets divide and
 * take roots alike. */

/* Vectors of channels that go through the blocks side by side: one alone would wait for its own
 * results. */
#define BNORM_SIDE 4

/* Rounded to floats, n of them. */
BNORM_INLINE void avx2_narrow_lanes(float *p, avx2_vec_d v, size_t n) {
    const avx2_vec_d canonical = avx2_vec_canonical_d(v);
    if (n == VEC_D)
        avx2_vec_narrow_store(p, canonical);
    else
        avx2_vec_narrow_store_n(p, canonical, n);
}

/* A parameter, or its default where the array is absent. */
BNORM_INLINE avx2_vec_d avx2_parameter_d(const float *p, size_t i, size_t n, double otherwise) {
    return p ? avx2_widen_lanes(p + i, n) : avx2_vec_set1_d(otherwise);
}

/* a*b + c, c where a is 0 */
BNORM_INLINE avx2_vec_d avx2_plus_product(avx2_vec_d a, avx2_vec_d b, avx2_vec_d c) {
    return avx2_vec_if_eq_d(a, avx2_vec_set1_d(0), c, avx2_vec_fma_d(a, b, c));
}

/* v, 1 in lanes from the n-th on, which hold no channel. */
BNORM_INLINE avx2_vec_d avx2_or_one(avx2_vec_d v, size_t n) {
    static const double lane[] = {0, 1, 2, 3, 4, 5, 6, 7};
    if (n == VEC_D)
        return v;
    return avx2_vec_if_lt_d(vec_load_d(lane), avx2_vec_set1_d((double)n), v, avx2_vec_set1_d(1));
}

/* body(i, vectors, n) for all channels: n lanes of `vectors` vectors from channel i on. What is
 * large, with vectors side by side, has no body of its own for a single whole one. */
#define BNORM_FOR_CHANNELS(first, c, side, body)                                                   \
    do {                                                                                           \
        const size_t end = (first) + (c);                                                          \
        size_t i = (first);                                                                        \
        for (; i + (side)*VEC_D <= end; i += (side)*VEC_D)                                         \
            body(i, side, VEC_D);                                                                  \
        for (; (side) > 1 && i < end; i += VEC_D)                                                  \
            body(i, 1, avx2_lesser(VEC_D, end - i));                                                    \
        if ((side) == 1 && i < end)                                                                \
            body(i, 1, end - i);                                                                   \
    } while (0)

/* Channels [i, i + vectors*VEC_D), or the first n lanes of one vector, of a part of the batch:
 * their sum and M2, or their two sums. */
struct avx2_nodes {
    avx2_vec_d a[BNORM_SIDE], b[BNORM_SIDE];
};

BNORM_INLINE struct avx2_nodes avx2_load_nodes(const bnorm_partials *p, size_t row, size_t i, size_t vectors,
                                     size_t n) {
    const size_t at = row * p->stride + i;
    struct avx2_nodes all;
    BNORM_UNROLL
    for (size_t v = 0; v < vectors; v++) {
        all.a[v] = load_d_lanes(p->entries[0] + at + v * VEC_D, n);
        all.b[v] = load_d_lanes(p->entries[1] + at + v * VEC_D, n);
    }
    return all;
}

BNORM_INLINE void avx2_store_nodes(const bnorm_partials *p, size_t row, size_t i, size_t vectors,
                              size_t n, const struct avx2_nodes *all) {
    const size_t at = row * p->stride + i;
    BNORM_UNROLL
    for (size_t v = 0; v < vectors; v++) {
        store_d_lanes(p->entries[0] + at + v * VEC_D, all->a[v], n);
        store_d_lanes(p->entries[1] + at + v * VEC_D, all->b[v], n);
    }
}

/* One piece and the one after it, of n_left and n_right values; those of sums are not looked at. */
BNORM_INLINE void avx2_join_nodes(enum avx2_tree avx2_tree, size_t vectors, const struct avx2_nodes *left,
                             struct avx2_nodes *right, double n_left, double n_right) {
    const int merged = avx2_tree == avx2_BNORM_MERGED, halves = n_left == n_right;
    const avx2_vec_d weight = avx2_vec_set1_d(merged ? n_left / (n_right * (n_left + n_right)) : 0);
    const avx2_vec_d count = avx2_vec_set1_d(n_left), minus_next = avx2_vec_set1_d(-n_right);
    BNORM_UNROLL
    for (size_t v = 0; v < vectors; v++) {
        const avx2_vec_d a = left->a[v], next = right->a[v], both = avx2_vec_add_d(left->b[v], right->b[v]);
        right->a[v] = avx2_vec_add_d(a, next);
        right->b[v] = both;
        if (merged) {
            const avx2_vec_d excess =
                halves ? avx2_vec_sub_d(next, a) : avx2_vec_fma_d(minus_next, avx2_vec_div_d(a, count), next);
            right->b[v] = avx2_vec_fma_d(avx2_vec_mul_d(excess, excess), weight, both);
        }
    }
}

/* An image from its blocks, or a leaf of `images`, from this row on. */
BNORM_INLINE struct avx2_nodes avx2_image_nodes(enum avx2_tree avx2_tree, const bnorm_partials *p, size_t row,
                                      size_t images, size_t i, size_t vectors, size_t n) {
    struct avx2_nodes all = avx2_load_nodes(p, row, i, vectors, n);
    double before = p->per_image > 1 ? p->size : p->last * (double)images;
    for (size_t b = 1; b < p->per_image; b++) {
        const double avx2_block = b + 1 < p->per_image ? p->size : p->last;
        struct avx2_nodes next = avx2_load_nodes(p, row + b, i, vectors, n);
        avx2_join_nodes(avx2_tree, vectors, &all, &next, before, avx2_block);
        all = next;
        before += avx2_block;
    }
    return all;
}

/* Images come in order; a subtree waits where its blocks were for the one next to it. */
BNORM_INLINE void avx2_tree_lanes(enum avx2_tree avx2_tree, const bnorm_partials *p, size_t i, size_t vectors,
                             size_t n, double *first, double *second) {
    struct {
        size_t images, row;
    } waiting[BNORM_LEVELS];
    const size_t end = p->first + p->n;
    size_t depth = 0, row = 0;
    struct avx2_nodes all, left;
    for (size_t image = p->first, next; image < end; image = next) {
        size_t images = bnorm_subtree(image, end, p->leaf), begin = image, at = row;
        next = image + images;
        all = avx2_image_nodes(avx2_tree, p, row, images, i, vectors, n);
        row += p->per_image;
        for (; depth && waiting[depth - 1].images == images && (begin & images); images *= 2) {
            at = waiting[--depth].row;
            left = avx2_load_nodes(p, at, i, vectors, n);
            avx2_join_nodes(avx2_tree, vectors, &left, &all, (double)images * p->hw, (double)images * p->hw);
            begin -= images;
        }
        avx2_store_nodes(p, at, i, vectors, n, &all);
        waiting[depth].images = images;
        waiting[depth++].row = at;
    }
    if (!first)
        return;
    double behind = (double)waiting[depth - 1].images;
    while (--depth) {
        const double images = (double)waiting[depth - 1].images;
        left = avx2_load_nodes(p, waiting[depth - 1].row, i, vectors, n);
        avx2_join_nodes(avx2_tree, vectors, &left, &all, images * p->hw, behind * p->hw);
        behind += images;
    }
    const avx2_vec_d count = avx2_vec_set1_d(behind * p->hw);
    BNORM_UNROLL
    for (size_t v = 0; v < vectors; v++) {
        const avx2_vec_d b = avx2_vec_canonical_d(all.b[v]);
        const avx2_vec_d a = avx2_tree == avx2_BNORM_MERGED ? avx2_vec_if_eq_d(b, b, avx2_vec_div_d(all.a[v], count), b)
                                             : avx2_vec_canonical_d(all.a[v]);
        store_d_lanes(first + i + v * VEC_D, a, n);
        store_d_lanes(second + i + v * VEC_D, b, n);
    }
}

static void avx2_merge(const bnorm_partials *p, size_t first, size_t c, double *mean, double *m2) {
#define BNORM_CALL(i, vectors, n) avx2_tree_lanes(avx2_BNORM_MERGED, p, i, vectors, n, mean, m2)
    BNORM_FOR_CHANNELS(first, c, BNORM_SIDE, BNORM_CALL);
#undef BNORM_CALL
    avx2_vec_leave();
}

static void avx2_add_blocks(const bnorm_partials *p, size_t first, size_t c, double *sum_g,
                       double *sum_gx) {
#define BNORM_CALL(i, vectors, n) avx2_tree_lanes(avx2_BNORM_ADDED, p, i, vectors, n, sum_g, sum_gx)
    BNORM_FOR_CHANNELS(first, c, BNORM_SIDE, BNORM_CALL);
#undef BNORM_CALL
    avx2_vec_leave();
}

static void avx2_merge_pair(const bnorm_pair_args *a, size_t c) {
    for (size_t i = 0; i < c; i += VEC_D) {
        const size_t n = avx2_lesser(VEC_D, c - i);
        struct avx2_nodes left, right;
        left.a[0] = load_d_lanes(a->sum + i, n);
        left.b[0] = load_d_lanes(a->m2 + i, n);
        right.a[0] = load_d_lanes(a->next_sum + i, n);
        right.b[0] = load_d_lanes(a->next_m2 + i, n);
        avx2_join_nodes(avx2_BNORM_MERGED, 1, &left, &right, a->n[0], a->n[1]);
        store_d_lanes(a->sum + i, avx2_vec_canonical_d(right.a[0]), n);
        store_d_lanes(a->m2 + i, avx2_vec_canonical_d(right.b[0]), n);
    }
    avx2_vec_leave();
}

/* scale = gamma*invstd and shift = beta - mean_lo*scale; a product of two floats is exact. */
BNORM_INLINE void avx2_scale_and_shift(avx2_vec_d gamma, avx2_vec_d beta, avx2_vec_d mean_lo, avx2_vec_d invstd,
                                  float *scale, float *shift, size_t n) {
    const avx2_vec_d rounded = avx2_vec_round_d(avx2_vec_mul_d(gamma, invstd));
    const avx2_vec_d minus_low = avx2_vec_mul_d(avx2_vec_set1_d(-1), mean_lo);
    avx2_narrow_lanes(scale, rounded, n);
    avx2_narrow_lanes(shift, avx2_plus_product(minus_low, rounded, beta), n);
}

/* old + rate*(batch - old) */
BNORM_INLINE avx2_vec_d avx2_blended(double rate, avx2_vec_d batch, avx2_vec_d old) {
    return avx2_vec_fma_d(avx2_vec_set1_d(rate), avx2_vec_sub_d(batch, old), old);
}

/* The same where some lanes have an infinity or a NaN, whose difference the average does not
 * have. */
BNORM_RARE void avx2_blend_infinite(double rate, double batch[VEC_D], double old[VEC_D]) {
    double average[VEC_D];
    unsigned bits = 0;
    for (size_t i = 0; i < VEC_D; i++) {
        if (!__builtin_isfinite(old[i]) || !__builtin_isfinite(batch[i])) {
            average[i] = (1 - rate) * old[i] + rate * batch[i];
            batch[i] = old[i] = 0;
            bits |= 1u << i;
        }
    }
    vec_store_d(batch, avx2_blended(rate, vec_load_d(batch), vec_load_d(old)));
    avx2_replace_lanes(bits, average, batch);
}

/* (1 - rate)*old + rate*batch. Rate 1 takes the batch's value whatever the old one is, rate 0 keeps
 * the old one whatever the batch's is. */
BNORM_INLINE void avx2_blend_lanes(const float *running, float *updated, double rate, avx2_vec_d batch,
                              size_t n) {
    if (rate != 1) {
        const avx2_vec_d old = avx2_widen_lanes(running, n);
        if (rate == 0) {
            batch = old;
        } else if (avx2_vec_outside_d(old, -DBL_MAX, DBL_MAX) |
                   avx2_vec_outside_d(batch, -DBL_MAX, DBL_MAX)) {
            double values[VEC_D], olds[VEC_D];
            vec_store_d(values, batch);
            vec_store_d(olds, old);
            avx2_blend_infinite(rate, values, olds);
            batch = vec_load_d(values);
        } else {
            batch = avx2_blended(rate, batch, old);
        }
    }
    avx2_narrow_lanes(updated, batch, n);
}

BNORM_INLINE void avx2_coefficient_lanes(const bnorm_coefficient_args *a, size_t i, size_t n) {
    const avx2_vec_d zero = avx2_vec_set1_d(0), count = avx2_vec_set1_d(a->n);
    const avx2_vec_d mean = load_d_lanes(a->mean + i, n), m2 = load_d_lanes(a->m2 + i, n);
    const avx2_vec_d variance = avx2_vec_div_d(m2, count);

    if (a->scale) {
        const avx2_vec_d high = avx2_vec_round_d(mean), low = avx2_vec_round_d(avx2_vec_sub_d(mean, high));
        const avx2_vec_d one = avx2_vec_set1_d(1);
        const avx2_vec_d spread = avx2_or_one(avx2_vec_add_d(variance, avx2_vec_set1_d(a->eps)), n);
        /* 0/1 where the root is 0 */
        const avx2_vec_d root = avx2_vec_if_eq_d(spread, zero, one, avx2_vec_sqrt_d(spread));
        const avx2_vec_d invstd = avx2_vec_round_d(avx2_vec_div_d(avx2_vec_if_eq_d(spread, zero, zero, one), root));
        avx2_narrow_lanes(a->center + i, high, n);
        avx2_scale_and_shift(avx2_parameter_d(a->gamma, i, n, 1), avx2_parameter_d(a->beta, i, n, 0), low, invstd,
                        a->scale + i, a->shift + i, n);
        if (a->save_mean)
            avx2_narrow_lanes(a->save_mean + i, high, n);
        if (a->save_mean_lo)
            avx2_narrow_lanes(a->save_mean_lo + i, low, n);
        if (a->save_invstd)
            avx2_narrow_lanes(a->save_invstd + i, invstd, n);
        if (a->save_var)
            avx2_narrow_lanes(a->save_var + i, variance, n);
    }
    if (a->new_mean)
        avx2_blend_lanes(a->running_mean + i, a->new_mean + i, a->rate, mean, n);
    if (a->new_var)
        avx2_blend_lanes(a->running_var + i, a->new_var + i, a->rate,
                    a->divisor == a->n ? variance : avx2_vec_div_d(m2, avx2_vec_set1_d(a->divisor)), n);
}

static void avx2_coefficients(const bnorm_coefficient_args *a, size_t first, size_t c) {
#define BNORM_CALL(i, vectors, n) avx2_coefficient_lanes(a, i, n)
    BNORM_FOR_CHANNELS(first, c, 1, BNORM_CALL);
#undef BNORM_CALL
    avx2_vec_leave();
}

static void avx2_scale_shift(const bnorm_scale_args *a, size_t c) {
#define BNORM_CALL(i, vectors, n)                                                                  \
    avx2_scale_and_shift(avx2_parameter_d(a->gamma, i, n, 1), avx2_parameter_d(a->beta, i, n, 0),                 \
                    avx2_parameter_d(a->mean_lo, i, n, 0), avx2_widen_lanes(a->invstd + i, n), a->scale + i, \
                    a->shift + i, n)
    BNORM_FOR_CHANNELS((size_t)0, c, 1, BNORM_CALL);
#undef BNORM_CALL
    avx2_vec_leave();
}

BNORM_INLINE void avx2_grad_coefficient_lanes(const bnorm_grad_coefficient_args *a, size_t i, size_t n) {
    const avx2_vec_d sum_g = load_d_lanes(a->sum_g + i, n), sum_gx = load_d_lanes(a->sum_gx + i, n);
    const avx2_vec_d minus_one = avx2_vec_set1_d(-1), zero = avx2_vec_set1_d(0), count = avx2_vec_set1_d(a->n);
    const avx2_vec_d minus_low = avx2_vec_mul_d(minus_one, avx2_parameter_d(a->mean_lo, i, n, 0));
    const avx2_vec_d invstd = avx2_widen_lanes(a->invstd + i, n);
    const avx2_vec_d dgamma = avx2_vec_mul_d(avx2_plus_product(minus_low, sum_g, sum_gx), invstd);

    if (a->dgamma)
        avx2_narrow_lanes(a->dgamma + i, dgamma, n);
    if (a->dbeta)
        avx2_narrow_lanes(a->dbeta + i, sum_g, n);
    if (!a->slope)
        return;
    const avx2_vec_d minus_scale =
        avx2_vec_mul_d(minus_one, avx2_vec_mul_d(avx2_parameter_d(a->gamma, i, n, 1), invstd));
    avx2_vec_d slope = avx2_vec_round_d(avx2_vec_mul_d(minus_scale, avx2_vec_div_d(dgamma, count)));
    avx2_vec_d offset = avx2_plus_product(avx2_vec_mul_d(minus_low, invstd), slope,
                                avx2_vec_mul_d(minus_scale, avx2_vec_div_d(sum_g, count)));
    if (a->n == 1) {
        /* x - x is 0 for what is finite */
        const avx2_vec_d scale = avx2_widen_lanes(a->scale + i, n), none = avx2_vec_sub_d(scale, scale);
        avx2_narrow_lanes(a->scale + i, avx2_vec_if_eq_d(none, zero, zero, scale), n);
        slope = avx2_vec_if_eq_d(none, zero, zero, slope);
        offset = avx2_vec_if_eq_d(none, zero, zero, offset);
    }
    avx2_narrow_lanes(a->slope + i, slope, n);
    avx2_narrow_lanes(a->offset + i, offset, n);
}

static void avx2_grad_coefficients(const bnorm_grad_coefficient_args *a, size_t first, size_t c) {
#define BNORM_CALL(i, vectors, n) avx2_grad_coefficient_lanes(a, i, n)
    BNORM_FOR_CHANNELS(first, c, 1, BNORM_CALL);
#undef BNORM_CALL
    avx2_vec_leave();
}

/* The tables of this kernel set, made from the lists. */
#define BNORM_ENTRY(kernel, args) .kernel = avx2_##kernel,
#define BNORM_INFERENCE_TABLE(set)                                                                 \
    { .name = set, BNORM_INFERENCE_KERNELS(BNORM_ENTRY) }
#define BNORM_TRAINING_TABLE                                                                       \
    { BNORM_TRAINING_KERNELS(BNORM_ENTRY) }

#if defined(__clang__)
#pragma clang attribute pop
#else
#pragma GCC pop_options
/* MinGW's gcc says of vectors that functions return that AVX is off here: they are not called from
 * here. */
#pragma GCC diagnostic ignored "-Wpsabi"
#endif

const struct bnorm_isa bnorm_isa_avx2 = BNORM_INFERENCE_TABLE("avx2");
const bnorm_training bnorm_training_avx2 = BNORM_TRAINING_TABLE;

#endif
#undef add_fours_of_rows
#undef add_other_rows
#undef add_planes
#undef add_rows
#undef add_rows_dy_bf16
#undef add_rows_dy_f16
#undef add_rows_dy_f32
#undef add_rows_limited_mask
#undef add_rows_limited_residual
#undef add_rows_limited_x
#undef add_rows_limited_y
#undef add_rows_squares_bf16
#undef add_rows_squares_f16
#undef add_rows_squares_f32
#undef are_short_rows
#undef backward_any_rows
#undef backward_bf16_planes
#undef backward_bf16_rows
#undef backward_f16_planes
#undef backward_f16_rows
#undef backward_frozen_planes
#undef backward_frozen_rows
#undef backward_identity_planes
#undef backward_identity_rows
#undef backward_relu_planes
#undef backward_relu_rows
#undef block_rows
#undef bnorm_bits_double
#undef bnorm_block
#undef bnorm_block_at
#undef bnorm_block_rows
#undef bnorm_blocks
#undef bnorm_blocks_of
#undef bnorm_ceil_div
#undef bnorm_chains
#undef bnorm_channel_of
#undef bnorm_check_float_shape
#undef bnorm_check_shape
#undef bnorm_check_strides
#undef bnorm_counts_groups
#undef bnorm_dense_tensor
#undef bnorm_double_bits
#undef bnorm_exact_product
#undef bnorm_exact_sum
#undef bnorm_first_position
#undef bnorm_fit_view
#undef bnorm_fma
#undef bnorm_fma_rare
#undef bnorm_fmaf
#undef bnorm_is_empty
#undef bnorm_mantissa
#undef bnorm_min
#undef bnorm_move_to
#undef bnorm_odd_sum
#undef bnorm_offset_of
#undef bnorm_part
#undef bnorm_part_of
#undef bnorm_places
#undef bnorm_positions
#undef bnorm_power_of_2
#undef bnorm_samples
#undef bnorm_set_bits
#undef bnorm_size_of
#undef bnorm_slices
#undef bnorm_some_positions
#undef bnorm_some_slices
#undef bnorm_stored_exponent
#undef bnorm_subtree
#undef bnorm_subtrees
#undef bnorm_sum
#undef bnorm_take_samples
#undef bnorm_unit
#undef bnorm_values_of
#undef bnorm_view
#undef bnorm_view_of
#undef bnorm_whole
#undef chain_rows
#undef clear_rows
#undef forward_any_planes
#undef forward_any_rows
#undef forward_bf16_planes
#undef forward_bf16_rows
#undef forward_clamp_held
#undef forward_clamp_planes
#undef forward_clamp_rows
#undef forward_f16_planes
#undef forward_f16_rows
#undef forward_identity_held
#undef forward_identity_planes
#undef forward_identity_rows
#undef forward_relu_held
#undef forward_relu_planes
#undef forward_relu_rows
#undef join_rows
#undef leaf_rows
#undef load_bf16_lanes
#undef load_d_lanes
#undef load_f16_lanes
#undef load_rows
#undef map_all_planes
#undef map_all_rows
#undef map_held
#undef map_planes
#undef map_rows
#undef map_small_planes
#undef map_whole_rows
#undef reduce_rows
#undef sample_planes
#undef sample_rows
#undef staged_rows
#undef store_bf16_lanes
#undef store_d_lanes
#undef store_f16_lanes
#undef sum_planes
#undef sum_planes_dy_bf16
#undef sum_planes_dy_f16
#undef sum_planes_dy_f32
#undef sum_planes_limited_mask
#undef sum_planes_limited_residual
#undef sum_planes_limited_x
#undef sum_planes_limited_y
#undef sum_planes_squares_bf16
#undef sum_planes_squares_f16
#undef sum_planes_squares_f32
#undef sum_rows
#undef sum_staged_planes
#undef vec_four_bf16
#undef vec_four_f16
#undef vec_load_bf16
#undef vec_load_d
#undef vec_load_d_n
#undef vec_load_f16
#undef vec_load_fours
#undef vec_load_n
#undef vec_load_s8
#undef vec_load_u8
#undef vec_round_bf16
#undef vec_store_8
#undef vec_store_8_4
#undef vec_store_bf16
#undef vec_store_bf16_2
#undef vec_store_d
#undef vec_store_d_n
#undef vec_store_f16
#undef vec_store_n
#undef widen_rows
#undef VEC_F
#undef VEC_D
#undef VEC_SLEEF
#undef BNORM_ORDER_H
#undef BNORM_TENSOR_H
#undef BNORM_GROUP
#undef BNORM_SAMPLES
#undef BNORM_PLACES
#undef BNORM_SPAN_LANES
#undef BNORM_MAX_LANES
#undef BNORM_BLOCK_SPAN
#undef BNORM_TREE
#undef BNORM_LEVELS
#undef BNORM_LEAF
#undef BNORM_INLINE
#undef BNORM_RARE
#undef BNORM_AHEAD
#undef BNORM_UNLIKELY
#undef BNORM_UNROLL
#undef BNORM_UNROLL_SOME
#undef BNORM_NO_UNROLL
#undef BNORM_TILE
#undef BNORM_PAD
#undef BNORM_STAGE
#undef BNORM_HALF_LANES
#undef SMOOTH_REGISTER
#undef SMOOTH_FUNCTION_
#undef SMOOTH_FUNCTION
#undef SMOOTH_EXP_ZERO
#undef SMOOTH_NORMAL_ZERO
#undef SMOOTH_TANH_ONE
#undef BNORM_PLAIN_KINDS
#undef BNORM_FMA_H
#undef BNORM_SQUARES
#undef BNORM_GENERAL
#undef BNORM_SUM_ARGS
#undef BNORM_SUM_TYPES
#undef BNORM_SUM_FORMS
#undef BNORM_GROUP_LANES
#undef BNORM_ROWS_FORM
#undef BNORM_ROWS_ENTRY
#undef BNORM_FOUR_SPAN
#undef BNORM_GROUP_SPAN
#undef BNORM_STAGE_LANES
#undef BNORM_PLANES_FORM
#undef BNORM_PLANES_ENTRY
#undef BNORM_LEAST_SUM
#undef BNORM_FOLD
#undef BNORM_AGAIN
#undef BNORM_TWIG
#undef BNORM_LEAF_TILE
#undef BNORM_VECTORS
#undef BNORM_GROUP_F
#undef BNORM_AHEAD_OUT
#undef BNORM_PART
#undef BNORM_LONG_RUN
#undef BNORM_LONG_ROW
#undef BNORM_ROOM
#undef BNORM_SMALL_PLANE
#undef BNORM_SMALL_PLANES
#undef BNORM_SMALL_ANY
#undef BNORM_ANY
#undef BNORM_FOR_PARAMETERS
#undef BNORM_EACH
#undef BNORM_FORM
#undef BNORM_FORMS
#undef BNORM_FORWARD_F32
#undef BNORM_OTHERS
#undef BNORM_SIDE
#undef BNORM_FOR_CHANNELS
#undef BNORM_ENTRY
#undef BNORM_INFERENCE_TABLE
#undef BNORM_TRAINING_TABLE

/* -------------------------------------------------------------------------- src/avx512/avx512.c */

#include <stdint.h>
#include <float.h>
#include <math.h>
#include <string.h>
#define add_fours_of_rows avx512_add_fours_of_rows
#define add_other_rows avx512_add_other_rows
#define add_planes avx512_add_planes
#define add_rows avx512_add_rows
#define add_rows_dy_bf16 avx512_add_rows_dy_bf16
#define add_rows_dy_f16 avx512_add_rows_dy_f16
#define add_rows_dy_f32 avx512_add_rows_dy_f32
#define add_rows_limited_mask avx512_add_rows_limited_mask
#define add_rows_limited_residual avx512_add_rows_limited_residual
#define add_rows_limited_x avx512_add_rows_limited_x
#define add_rows_limited_y avx512_add_rows_limited_y
#define add_rows_squares_bf16 avx512_add_rows_squares_bf16
#define add_rows_squares_f16 avx512_add_rows_squares_f16
#define add_rows_squares_f32 avx512_add_rows_squares_f32
#define are_short_rows avx512_are_short_rows
#define backward_any_rows avx512_backward_any_rows
#define backward_bf16_planes avx512_backward_bf16_planes
#define backward_bf16_rows avx512_backward_bf16_rows
#define backward_f16_planes avx512_backward_f16_planes
#define backward_f16_rows avx512_backward_f16_rows
#define backward_frozen_planes avx512_backward_frozen_planes
#define backward_frozen_rows avx512_backward_frozen_rows
#define backward_identity_planes avx512_backward_identity_planes
#define backward_identity_rows avx512_backward_identity_rows
#define backward_relu_planes avx512_backward_relu_planes
#define backward_relu_rows avx512_backward_relu_rows
#define block_rows avx512_block_rows
#define bnorm_bits_double avx512_bnorm_bits_double
#define bnorm_block avx512_bnorm_block
#define bnorm_block_at avx512_bnorm_block_at
#define bnorm_block_rows avx512_bnorm_block_rows
#define bnorm_blocks avx512_bnorm_blocks
#define bnorm_blocks_of avx512_bnorm_blocks_of
#define bnorm_ceil_div avx512_bnorm_ceil_div
#define bnorm_chains avx512_bnorm_chains
#define bnorm_channel_of avx512_bnorm_channel_of
#define bnorm_check_float_shape avx512_bnorm_check_float_shape
#define bnorm_check_shape avx512_bnorm_check_shape
#define bnorm_check_strides avx512_bnorm_check_strides
#define bnorm_counts_groups avx512_bnorm_counts_groups
#define bnorm_dense_tensor avx512_bnorm_dense_tensor
#define bnorm_double_bits avx512_bnorm_double_bits
#define bnorm_exact_product avx512_bnorm_exact_product
#define bnorm_exact_sum avx512_bnorm_exact_sum
#define bnorm_first_position avx512_bnorm_first_position
#define bnorm_fit_view avx512_bnorm_fit_view
#define bnorm_fma avx512_bnorm_fma
#define bnorm_fma_rare avx512_bnorm_fma_rare
#define bnorm_fmaf avx512_bnorm_fmaf
#define bnorm_is_empty avx512_bnorm_is_empty
#define bnorm_mantissa avx512_bnorm_mantissa
#define bnorm_min avx512_bnorm_min
#define bnorm_move_to avx512_bnorm_move_to
#define bnorm_odd_sum avx512_bnorm_odd_sum
#define bnorm_offset_of avx512_bnorm_offset_of
#define bnorm_part avx512_bnorm_part
#define bnorm_part_of avx512_bnorm_part_of
#define bnorm_places avx512_bnorm_places
#define bnorm_positions avx512_bnorm_positions
#define bnorm_power_of_2 avx512_bnorm_power_of_2
#define bnorm_samples avx512_bnorm_samples
#define bnorm_set_bits avx512_bnorm_set_bits
#define bnorm_size_of avx512_bnorm_size_of
#define bnorm_slices avx512_bnorm_slices
#define bnorm_some_positions avx512_bnorm_some_positions
#define bnorm_some_slices avx512_bnorm_some_slices
#define bnorm_stored_exponent avx512_bnorm_stored_exponent
#define bnorm_subtree avx512_bnorm_subtree
#define bnorm_subtrees avx512_bnorm_subtrees
#define bnorm_sum avx512_bnorm_sum
#define bnorm_take_samples avx512_bnorm_take_samples
#define bnorm_unit avx512_bnorm_unit
#define bnorm_values_of avx512_bnorm_values_of
#define bnorm_view avx512_bnorm_view
#define bnorm_view_of avx512_bnorm_view_of
#define bnorm_whole avx512_bnorm_whole
#define chain_rows avx512_chain_rows
#define clear_rows avx512_clear_rows
#define forward_any_planes avx512_forward_any_planes
#define forward_any_rows avx512_forward_any_rows
#define forward_bf16_planes avx512_forward_bf16_planes
#define forward_bf16_rows avx512_forward_bf16_rows
#define forward_clamp_held avx512_forward_clamp_held
#define forward_clamp_planes avx512_forward_clamp_planes
#define forward_clamp_rows avx512_forward_clamp_rows
#define forward_f16_planes avx512_forward_f16_planes
#define forward_f16_rows avx512_forward_f16_rows
#define forward_identity_held avx512_forward_identity_held
#define forward_identity_planes avx512_forward_identity_planes
#define forward_identity_rows avx512_forward_identity_rows
#define forward_relu_held avx512_forward_relu_held
#define forward_relu_planes avx512_forward_relu_planes
#define forward_relu_rows avx512_forward_relu_rows
#define join_rows avx512_join_rows
#define leaf_rows avx512_leaf_rows
#define load_bf16_lanes avx512_load_bf16_lanes
#define load_d_lanes avx512_load_d_lanes
#define load_f16_lanes avx512_load_f16_lanes
#define load_rows avx512_load_rows
#define map_all_planes avx512_map_all_planes
#define map_all_rows avx512_map_all_rows
#define map_held avx512_map_held
#define map_planes avx512_map_planes
#define map_rows avx512_map_rows
#define map_small_planes avx512_map_small_planes
#define map_whole_rows avx512_map_whole_rows
#define reduce_rows avx512_reduce_rows
#define sample_planes avx512_sample_planes
#define sample_rows avx512_sample_rows
#define staged_rows avx512_staged_rows
#define store_bf16_lanes avx512_store_bf16_lanes
#define store_d_lanes avx512_store_d_lanes
#define store_f16_lanes avx512_store_f16_lanes
#define sum_planes avx512_sum_planes
#define sum_planes_dy_bf16 avx512_sum_planes_dy_bf16
#define sum_planes_dy_f16 avx512_sum_planes_dy_f16
#define sum_planes_dy_f32 avx512_sum_planes_dy_f32
#define sum_planes_limited_mask avx512_sum_planes_limited_mask
#define sum_planes_limited_residual avx512_sum_planes_limited_residual
#define sum_planes_limited_x avx512_sum_planes_limited_x
#define sum_planes_limited_y avx512_sum_planes_limited_y
#define sum_planes_squares_bf16 avx512_sum_planes_squares_bf16
#define sum_planes_squares_f16 avx512_sum_planes_squares_f16
#define sum_planes_squares_f32 avx512_sum_planes_squares_f32
#define sum_rows avx512_sum_rows
#define sum_staged_planes avx512_sum_staged_planes
#define vec_four_bf16 avx512_vec_four_bf16
#define vec_four_f16 avx512_vec_four_f16
#define vec_load_bf16 avx512_vec_load_bf16
#define vec_load_d avx512_vec_load_d
#define vec_load_d_n avx512_vec_load_d_n
#define vec_load_f16 avx512_vec_load_f16
#define vec_load_fours avx512_vec_load_fours
#define vec_load_n avx512_vec_load_n
#define vec_load_s8 avx512_vec_load_s8
#define vec_load_u8 avx512_vec_load_u8
#define vec_round_bf16 avx512_vec_round_bf16
#define vec_store_8 avx512_vec_store_8
#define vec_store_8_4 avx512_vec_store_8_4
#define vec_store_bf16 avx512_vec_store_bf16
#define vec_store_bf16_2 avx512_vec_store_bf16_2
#define vec_store_d avx512_vec_store_d
#define vec_store_d_n avx512_vec_store_d_n
#define vec_store_f16 avx512_vec_store_f16
#define vec_store_n avx512_vec_store_n
#define widen_rows avx512_widen_rows
/* SPDX-License-Identifier: MIT
 *
 * The AVX-512 kernel set. The target is chosen here, so that no build needs special flags. */

#if BNORM_HAVE_X86

#include <immintrin.h>
#include <stdint.h>
#include <string.h>

#if defined(__clang__)
#pragma clang attribute push(                                                                      \
    __attribute__((target("avx512f,avx512bw,avx512dq,avx512vl,avx2,fma,f16c,prfchw"))),            \
    apply_to = function)
#else
#pragma GCC push_options
#pragma GCC target("avx512f,avx512bw,avx512dq,avx512vl,avx2,fma,f16c,prfchw")
#endif

/* Without optimization gcc's intrinsics with an immediate operand are macros, which convert masks. */
#if !defined(__clang__)
#pragma GCC diagnostic push
#pragma GCC diagnostic ignored "-Wsign-conversion"
#endif
/* SPDX-License-Identifier: MIT
 *
 * The vec_* primitives for AVX-512 (F, BW, DQ, VL): 16 floats or 8 doubles. See
 * src/kernels/kernels.h for their meaning. */
#define VEC_F 16 /* floats per vector */
#define VEC_D 8  /* doubles per vector */

typedef __m512 avx512_vec_f;
typedef __m512d avx512_vec_d;
typedef __m128 avx512_four_floats;

static inline __mmask16 avx512_vec_mask_f(size_t n) {
    return (__mmask16)((1u << n) - 1);
}
static inline __mmask8 avx512_vec_mask_d(size_t n) {
    return (__mmask8)((1u << n) - 1);
}

static inline avx512_vec_f avx512_vec_load(const float *p) {
    return _mm512_loadu_ps(p);
}
static inline avx512_vec_f vec_load_n(const float *p, size_t n) {
    return _mm512_maskz_loadu_ps(avx512_vec_mask_f(n), p);
}
static inline void avx512_vec_store(float *p, avx512_vec_f v) {
    _mm512_storeu_ps(p, v);
}
static inline void vec_store_n(float *p, avx512_vec_f v, size_t n) {
    _mm512_mask_storeu_ps(p, avx512_vec_mask_f(n), v);
}
static inline void avx512_vec_bypass(float *p, avx512_vec_f v) {
    _mm512_stream_ps(p, v);
}
static inline void avx512_vec_fence(void) {
    _mm_sfence();
}
static inline void avx512_vec_fetch(const float *p) {
    __builtin_prefetch(p, 0, 3);
}
static inline void avx512_vec_fetch_out(const float *p) {
    __builtin_prefetch(p, 1, 3);
}
static inline avx512_vec_f avx512_vec_set1(float v) {
    return _mm512_set1_ps(v);
}
static inline avx512_vec_f avx512_vec_repeat(const float *p, size_t n) {
    const __m512i lanes = _mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
    return _mm512_permutexvar_ps(_mm512_and_si512(lanes, _mm512_set1_epi32((int)n - 1)),
                                 vec_load_n(p, n));
}
static inline avx512_vec_f avx512_vec_add(avx512_vec_f a, avx512_vec_f b) {
    return _mm512_add_ps(a, b);
}
static inline avx512_vec_f avx512_vec_sub(avx512_vec_f a, avx512_vec_f b) {
    return _mm512_sub_ps(a, b);
}
static inline avx512_vec_f avx512_vec_mul(avx512_vec_f a, avx512_vec_f b) {
    return _mm512_mul_ps(a, b);
}
static inline avx512_vec_f avx512_vec_fma(avx512_vec_f a, avx512_vec_f b, avx512_vec_f c) {
    return _mm512_fmadd_ps(a, b, c);
}
static inline avx512_vec_f avx512_vec_if_le(avx512_vec_f a, avx512_vec_f b, avx512_vec_f yes, avx512_vec_f no) {
    return _mm512_mask_blend_ps(_mm512_cmp_ps_mask(a, b, _CMP_LE_OQ), no, yes);
}
static inline avx512_vec_f avx512_vec_if_gt(avx512_vec_f a, avx512_vec_f b, avx512_vec_f yes, avx512_vec_f no) {
    return _mm512_mask_blend_ps(_mm512_cmp_ps_mask(a, b, _CMP_GT_OQ), no, yes);
}
static inline avx512_vec_f avx512_vec_zero_if_le(avx512_vec_f a, avx512_vec_f b, avx512_vec_f v) {
    return _mm512_maskz_mov_ps(_mm512_cmp_ps_mask(a, b, _CMP_NLE_UQ), v);
}
static inline avx512_vec_f avx512_vec_zero_from(avx512_vec_f v, avx512_vec_f limit, avx512_vec_f x) {
    return _mm512_maskz_mov_ps(_mm512_cmp_ps_mask(limit, v, _CMP_NLE_UQ), x);
}
static inline avx512_vec_f avx512_vec_zero_unless_gt(avx512_vec_f a, avx512_vec_f b, avx512_vec_f v) {
    return _mm512_maskz_mov_ps(_mm512_cmp_ps_mask(a, b, _CMP_GT_OQ), v);
}
/* What vfixupimm makes of each kind of number, 4 bits each: NaNs become `nan`, others stay (1); for
 * the second table zeros and what is below become +0 (8). */
static inline avx512_vec_f vec_fixup(avx512_vec_f v, int table) {
    const avx512_vec_f nan = _mm512_castsi512_ps(_mm512_set1_epi32(-1));
    return _mm512_fixupimm_ps(nan, v, _mm512_set1_epi32(table), 0);
}
static inline avx512_vec_f avx512_vec_canonical(avx512_vec_f v) {
    return vec_fixup(v, 0x11111100);
}
static inline avx512_vec_f avx512_vec_canonical_result(avx512_vec_f v) {
    return avx512_vec_canonical(v);
}
static inline avx512_vec_f avx512_vec_relu(avx512_vec_f v) {
    return vec_fixup(v, 0x18181800);
}
static inline avx512_vec_f avx512_vec_clamp(avx512_vec_f v, avx512_vec_f a, avx512_vec_f b) {
    const avx512_vec_f nan = _mm512_castsi512_ps(_mm512_set1_epi32(-1));
    return _mm512_mask_mov_ps(_mm512_min_ps(_mm512_max_ps(v, a), b),
                              _mm512_cmp_ps_mask(v, v, _CMP_UNORD_Q), nan);
}

/* The first n lanes of v, zeros behind them. */
static inline avx512_vec_f avx512_vec_first_n(avx512_vec_f v, size_t n) {
    return _mm512_maskz_mov_ps(avx512_vec_mask_f(n), v);
}

static inline avx512_vec_f avx512_vec_div(avx512_vec_f a, avx512_vec_f b) {
    return _mm512_div_ps(a, b);
}
static inline avx512_vec_f avx512_vec_negate(avx512_vec_f v) {
    return _mm512_xor_ps(v, _mm512_set1_ps(-0.0f));
}
static inline avx512_vec_f avx512_vec_minus_abs(avx512_vec_f v) {
    return _mm512_or_ps(v, _mm512_set1_ps(-0.0f));
}
/* a where it is greater, else b. */
static inline avx512_vec_f avx512_vec_max(avx512_vec_f a, avx512_vec_f b) {
    return _mm512_max_ps(a, b);
}
static inline avx512_vec_f avx512_vec_min(avx512_vec_f a, avx512_vec_f b) {
    return _mm512_min_ps(a, b);
}
static inline avx512_vec_f avx512_vec_power_of_2(avx512_vec_f v) {
    return _mm512_and_ps(v, _mm512_castsi512_ps(_mm512_set1_epi32(0x7f800000)));
}
static inline avx512_vec_f avx512_vec_zero_nan(avx512_vec_f v) {
    return _mm512_maskz_mov_ps(_mm512_cmp_ps_mask(v, v, _CMP_ORD_Q), v);
}
#define VEC_SLEEF(function, ulp) Sleef_finz_##function##f16_##ulp##avx512f

static inline avx512_vec_f vec_load_bf16(const uint16_t *p) {
    const __m256i h = _mm256_loadu_si256((const __m256i *)(const void *)p);
    return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(h), 16));
}
/* Rounded in the upper halves; a NaN, all of whose bits are set, would overflow. */
static inline __m512i vec_round_bf16(avx512_vec_f v) {
    const __m512i bits = _mm512_castps_si512(v),
                  odd = _mm512_and_si512(_mm512_srli_epi32(bits, 16), _mm512_set1_epi32(1)),
                  least = _mm512_min_epu32(bits, _mm512_set1_epi32(-0x8001));
    return _mm512_add_epi32(_mm512_add_epi32(least, _mm512_set1_epi32(0x7fff)), odd);
}
static inline void vec_store_bf16(uint16_t *p, avx512_vec_f v) {
    _mm256_storeu_si256((__m256i *)(void *)p,
                        _mm512_cvtepi32_epi16(_mm512_srli_epi32(vec_round_bf16(v), 16)));
}
static inline void vec_store_bf16_2(uint16_t *p, avx512_vec_f a, avx512_vec_f b) {
    static const uint16_t upper[32] = {1,  3,  5,  7,  9,  11, 13, 15, 17, 19, 21,
                                       23, 25, 27, 29, 31, 33, 35, 37, 39, 41, 43,
                                       45, 47, 49, 51, 53, 55, 57, 59, 61, 63};
    _mm512_storeu_si512(p, _mm512_permutex2var_epi16(vec_round_bf16(a), _mm512_loadu_si512(upper),
                                                     vec_round_bf16(b)));
}
static inline avx512_vec_f vec_load_f16(const uint16_t *p) {
    return _mm512_cvtph_ps(_mm256_loadu_si256((const __m256i *)(const void *)p));
}
static inline void vec_store_f16(uint16_t *p, avx512_vec_f v) {
    _mm256_storeu_si256((__m256i *)(void *)p,
                        _mm512_cvtps_ph(v, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC));
}
static inline avx512_vec_f vec_load_s8(const uint8_t *p) {
    return _mm512_cvtepi32_ps(
        _mm512_cvtepi8_epi32(_mm_loadu_si128((const __m128i *)(const void *)p)));
}
static inline avx512_vec_f vec_load_u8(const uint8_t *p) {
    return _mm512_cvtepi32_ps(
        _mm512_cvtepu8_epi32(_mm_loadu_si128((const __m128i *)(const void *)p)));
}
static inline void vec_store_8(uint8_t *p, avx512_vec_f v, int zero_point, int is_signed) {
    const __m512i whole = _mm512_add_epi32(_mm512_cvtps_epi32(v), _mm512_set1_epi32(zero_point));
    _mm_storeu_si128((__m128i *)(void *)p,
                     is_signed
                         ? _mm512_cvtsepi32_epi8(whole)
                         : _mm512_cvtusepi32_epi8(_mm512_max_epi32(whole, _mm512_setzero_si512())));
}
static inline void vec_store_8_4(uint8_t *p, const avx512_vec_f *v, int zero_point, int is_signed) {
    for (int q = 0; q < 4; q++)
        vec_store_8(p + 16 * q, v[q], zero_point, is_signed);
}
static inline avx512_vec_f avx512_vec_from_bits(unsigned bits) {
    return _mm512_maskz_mov_ps((__mmask16)bits, _mm512_set1_ps(1));
}
static inline unsigned avx512_vec_bits_gt(avx512_vec_f a, avx512_vec_f b) {
    return _mm512_cmp_ps_mask(a, b, _CMP_GT_OQ);
}

static inline avx512_vec_d vec_load_d(const double *p) {
    return _mm512_loadu_pd(p);
}
static inline avx512_vec_d vec_load_d_n(const double *p, size_t n) {
    return _mm512_maskz_loadu_pd(avx512_vec_mask_d(n), p);
}
static inline void vec_store_d(double *p, avx512_vec_d v) {
    _mm512_storeu_pd(p, v);
}
static inline void vec_store_d_n(double *p, avx512_vec_d v, size_t n) {
    _mm512_mask_storeu_pd(p, avx512_vec_mask_d(n), v);
}
static inline avx512_vec_d avx512_vec_set1_d(double v) {
    return _mm512_set1_pd(v);
}
static inline avx512_vec_d avx512_vec_add_d(avx512_vec_d a, avx512_vec_d b) {
    return _mm512_add_pd(a, b);
}
static inline avx512_vec_d avx512_vec_sub_d(avx512_vec_d a, avx512_vec_d b) {
    return _mm512_sub_pd(a, b);
}
static inline avx512_vec_d avx512_vec_mul_d(avx512_vec_d a, avx512_vec_d b) {
    return _mm512_mul_pd(a, b);
}
static inline avx512_vec_d avx512_vec_div_d(avx512_vec_d a, avx512_vec_d b) {
    return _mm512_div_pd(a, b);
}
static inline avx512_vec_d avx512_vec_sqrt_d(avx512_vec_d v) {
    return _mm512_sqrt_pd(v);
}
static inline avx512_vec_d avx512_vec_fma_d(avx512_vec_d a, avx512_vec_d b, avx512_vec_d c) {
    return _mm512_fmadd_pd(a, b, c);
}
static inline avx512_vec_d avx512_vec_if_eq_d(avx512_vec_d a, avx512_vec_d b, avx512_vec_d yes, avx512_vec_d no) {
    return _mm512_mask_blend_pd(_mm512_cmp_pd_mask(a, b, _CMP_EQ_OQ), no, yes);
}
static inline avx512_vec_d avx512_vec_if_lt_d(avx512_vec_d a, avx512_vec_d b, avx512_vec_d yes, avx512_vec_d no) {
    return _mm512_mask_blend_pd(_mm512_cmp_pd_mask(a, b, _CMP_LT_OQ), no, yes);
}
static inline avx512_vec_d avx512_vec_canonical_d(avx512_vec_d v) {
    const avx512_vec_d nan = _mm512_castsi512_pd(_mm512_set1_epi32(-1));
    return _mm512_mask_mov_pd(v, _mm512_cmp_pd_mask(v, v, _CMP_UNORD_Q), nan);
}
/* Lanes of v outside [low, high], NaN included, one bit each. */
static inline unsigned avx512_vec_outside_d(avx512_vec_d v, double low, double high) {
    return (unsigned)(_mm512_cmp_pd_mask(v, avx512_vec_set1_d(low), _CMP_NGE_UQ) |
                      _mm512_cmp_pd_mask(v, avx512_vec_set1_d(high), _CMP_NLE_UQ));
}

/* float -> double: from memory, and the lower and upper half of a vector. */
static inline avx512_vec_d avx512_vec_widen(const float *p) {
    return _mm512_cvtps_pd(_mm256_loadu_ps(p));
}
static inline avx512_vec_d avx512_vec_widen_n(const float *p, size_t n) {
    return _mm512_cvtps_pd(_mm256_maskz_loadu_ps(avx512_vec_mask_d(n), p));
}
static inline avx512_vec_d avx512_vec_low(avx512_vec_f v) {
    return _mm512_cvtps_pd(_mm512_castps512_ps256(v));
}
static inline avx512_vec_d avx512_vec_high(avx512_vec_f v) {
    return _mm512_cvtps_pd(_mm512_extractf32x8_ps(v, 1));
}
static inline void avx512_vec_fold_fours(float *to_a, float *to_b, avx512_vec_f a, avx512_vec_f b) {
    /* 8 lanes of a, 8 of b; then 4 of each. */
    const avx512_vec_f eight = _mm512_add_ps(_mm512_shuffle_f32x4(a, b, 0x44),
                                      _mm512_shuffle_f32x4(a, b, 0xee)),
                even = _mm512_shuffle_f32x4(eight, eight, 0x08),
                odd = _mm512_shuffle_f32x4(eight, eight, 0x0d);
    const __m256 fours = _mm256_add_ps(_mm512_castps512_ps256(even), _mm512_castps512_ps256(odd));
    _mm_store_ps(to_a, _mm256_castps256_ps128(fours));
    _mm_store_ps(to_b, _mm256_extractf128_ps(fours, 1));
}
static inline avx512_four_floats avx512_vec_four(const void *p) {
    return _mm_loadu_ps(p);
}
static inline avx512_four_floats vec_four_bf16(const void *p) {
    return _mm_castsi128_ps(_mm_slli_epi32(_mm_cvtepu16_epi32(_mm_loadl_epi64(p)), 16));
}
static inline avx512_four_floats vec_four_f16(const void *p) {
    return _mm_cvtph_ps(_mm_loadl_epi64(p));
}
static inline void vec_load_fours(const float *p, avx512_vec_f v[4]) {
    const __m512i every_fourth =
                      _mm512_setr_epi32(0, 4, 8, 12, 16, 20, 24, 28, 1, 5, 9, 13, 17, 21, 25, 29),
                  third = _mm512_add_epi32(every_fourth, _mm512_set1_epi32(2));
    const avx512_vec_f a = avx512_vec_load(p), b = avx512_vec_load(p + 16), c = avx512_vec_load(p + 32), d = avx512_vec_load(p + 48);
    /* The first and second of 8 fours; their third and last. */
    const avx512_vec_f low = _mm512_permutex2var_ps(a, every_fourth, b),
                high = _mm512_permutex2var_ps(c, every_fourth, d),
                low_3 = _mm512_permutex2var_ps(a, third, b),
                high_3 = _mm512_permutex2var_ps(c, third, d);
    v[0] = _mm512_shuffle_f32x4(low, high, 0x44);
    v[1] = _mm512_shuffle_f32x4(low, high, 0xee);
    v[2] = _mm512_shuffle_f32x4(low_3, high_3, 0x44);
    v[3] = _mm512_shuffle_f32x4(low_3, high_3, 0xee);
}
/* double -> float, rounded: VEC_D floats to memory. */
static inline void avx512_vec_narrow_store(float *p, avx512_vec_d v) {
    _mm256_storeu_ps(p, _mm512_cvtpd_ps(v));
}
static inline void avx512_vec_narrow_store_n(float *p, avx512_vec_d v, size_t n) {
    _mm256_mask_storeu_ps(p, avx512_vec_mask_d(n), _mm512_cvtpd_ps(v));
}
/* Rounded to floats, and back. */
static inline avx512_vec_d avx512_vec_round_d(avx512_vec_d v) {
    return _mm512_cvtps_pd(_mm512_cvtpd_ps(v));
}
/* gcc inserts this only when it optimizes, and not for size; without it all SSE code that follows
 * is slow. */
static inline void avx512_vec_leave(void) {
    _mm256_zeroupper();
}
#if !defined(__clang__)
#pragma GCC diagnostic pop
#endif
/* SPDX-License-Identifier: MIT
 *
 * The SIMD kernels, one source for every instruction set. Included once by each ISA folder's .c,
 * after its vec.h, never compiled alone. vec.h provides, for vectors of VEC_F floats (vec_f) and
 * VEC_D = VEC_F/2 doubles (vec_d):
 *   vec_load, vec_store, vec_set1, vec_add, vec_sub, vec_mul
 *   vec_bypass                    vec_store of part of a line past the caches, p aligned; vec_fence
 *                                 when all is stored
 *   vec_fetch, vec_fetch_out      ask for the line of p, to be read or written
 *   vec_repeat                    (p, n): n floats, a power of two, again and again
 *   vec_fma(a, b, c)              a*b + c rounded once
 *   vec_load_n, vec_store_n       the first n lanes, of 1 when stored; memory behind them is not
 *                                 touched, other lanes load as 0
 *   vec_first_n                   the first n lanes, zeros behind them
 *   vec_if_le, vec_if_gt          (a, b, yes, no) per lane; a NaN compares false
 *   vec_zero_if_le                (a, b, v): 0 where a <= b, else v
 *   vec_zero_unless_gt            (a, b, v): v where a > b, else 0
 *   vec_zero_from                 (v, limit, x): 0 where v >= limit, else x; a NaN as the limit raises
 *                                 no exception
 *   vec_canonical                 every NaN becomes 0xffffffff
 *   vec_canonical_result          the same, of what arithmetic gave: no NaN is a signalling one
 *   vec_relu, vec_clamp           vec_canonical_result of these activations
 *   vec_div, vec_negate, vec_minus_abs
 *   vec_max, vec_min              (a, b): a where it is greater, or less, else b
 *   vec_power_of_2                v >= 0 with its fraction cut off, 0 for denormals
 *   vec_zero_nan                  0 for every NaN
 *   vec_load_..., vec_store_...   bf16, f16, and VEC_F bytes: s8, u8; a NaN that is stored is that
 *                                 of vec_canonical
 *   vec_store_8                   (p, v, zero_point, is_signed): v of at most 2^14 rounded to whole
 *                                 numbers, ties to even, zero_point added, limited to s8 or u8
 *   vec_store_bf16_2, ..._8_4     two or four vectors, one behind the other
 *   vec_from_bits                 1 where one of the lowest VEC_F bits is set, else 0
 *   vec_bits_gt                   (a, b): a bit per lane
 *   ..._d                         the same for doubles, and vec_div_d, vec_sqrt_d, vec_if_eq_d,
 *                                 vec_if_lt_d, vec_outside_d
 *   vec_widen, vec_widen_n        floats from memory as doubles
 *   vec_low, vec_high             the halves of a vec_f as doubles
 *   vec_narrow_store, ..._n       VEC_D doubles rounded to floats, or the first n of them
 *   vec_round_d                   doubles rounded to floats, and back
 *   vec_fold_fours                (to_a, to_b, a, b): the lanes of each folded to 4, upper half onto
 *                                 lower half, to aligned memory
 *   four_floats, vec_four, ..._bf16, ..._f16
 *                                 a vector of 4 floats, which + adds; from memory
 *   vec_load_fours                VEC_F times 4 floats from aligned memory: the first, second, third
 *                                 and last of each
 *   vec_leave                     before a kernel returns to code that is not of this set
 * Wherever a product is added to something, it is written as a fma: a compiler that contracts finds
 * nothing to do. */
/* SPDX-License-Identifier: MIT
 *
 * How a tensor is cut for the reductions. Everything here depends on the shape alone, so that the
 * result has the same bits for every kernel set, schedule, stride and alignment. docs/numerics.md
 * explains the order. */
#ifndef BNORM_ORDER_H
#define BNORM_ORDER_H

/* SPDX-License-Identifier: MIT
 *
 * How tensors of every layout are counted through, and the memory of one. All that follows from
 * the layout of a shape is in here. */
#ifndef BNORM_TENSOR_H
#define BNORM_TENSOR_H

static inline size_t bnorm_min(size_t a, size_t b) {
    return a < b ? a : b;
}

static inline size_t bnorm_ceil_div(size_t a, size_t b) {
    return a / b + (a % b != 0);
}

/* Bytes of an element. */
static inline size_t bnorm_size_of(bnorm_dtype type) {
    return type == BNORM_F32 ? 4 : type == BNORM_BF16 || type == BNORM_F16 ? 2 : 1;
}

static inline int bnorm_is_empty(const bnorm_shape *shape) {
    return shape->n == 0 || shape->hw == 0;
}

/* A shape as images of groups of rows of lanes; see bnorm_tensor. There are two families:
 *   rows     a lane is a channel: lane i of group g is channel g*lanes + i, or padding.
 *            NHWC has one group, a blocked tensor one per block. (N, C) data is one image of n
 *            rows, one group where channels are next to each other, else one per channel
 *   planes   a group is a channel, of one row: NCHW */
typedef struct bnorm_view {
    int planes;
    int leaves; /* rows are samples: (N, C) data */
    size_t images, groups, rows, lanes;
    size_t c;         /* channels */
    size_t positions; /* of a channel in an image: rows, or lanes of planes */
} bnorm_view;

bnorm_view bnorm_view_of(const bnorm_shape *shape);

/* Values per channel. */
static inline double bnorm_values_of(const bnorm_view *view) {
    return (double)view->images * (double)view->positions;
}

/* A rectangle of a view. */
typedef struct bnorm_part {
    size_t image, images, group, groups, row, rows, lane, lanes;
} bnorm_part;

static inline bnorm_part bnorm_whole(const bnorm_view *view) {
    return (bnorm_part){
        .images = view->images, .groups = view->groups, .rows = view->rows, .lanes = view->lanes};
}

/* Whether channels are counted by groups, not by the lanes of the only one. */
static inline int bnorm_counts_groups(const bnorm_view *view) {
    return view->planes || view->groups > 1;
}

/* Channels of a group. */
static inline size_t bnorm_unit(const bnorm_view *view) {
    return view->planes ? 1 : view->lanes;
}

/* The first channel of a part, for its parameters. */
static inline size_t bnorm_channel_of(const bnorm_view *view, const bnorm_part *part) {
    return part->group * bnorm_unit(view) + (view->planes ? 0 : part->lane);
}

/* Positions of each image of a part: the first, and how many. */
static inline size_t bnorm_first_position(const bnorm_view *view, const bnorm_part *part) {
    return view->planes ? part->lane : part->row;
}
static inline size_t bnorm_positions(const bnorm_view *view, const bnorm_part *part) {
    return view->planes ? part->lanes : part->rows;
}
/* The n positions of a part from number `at` on. */
static inline bnorm_part bnorm_some_positions(const bnorm_view *view, const bnorm_part *whole,
                                              size_t at, size_t n) {
    bnorm_part part = *whole;
    *(view->planes ? &part.lane : &part.row) += at;
    *(view->planes ? &part.lanes : &part.rows) = n;
    return part;
}

/* Groups of a part, where channels are counted by these, or lanes: how many, and n of them from
 * number `at` on. */
static inline size_t bnorm_slices(const bnorm_view *view, const bnorm_part *part) {
    return bnorm_counts_groups(view) ? part->groups : part->lanes;
}
static inline bnorm_part bnorm_some_slices(const bnorm_view *view, const bnorm_part *whole,
                                           size_t at, size_t n) {
    const int groups = bnorm_counts_groups(view);
    bnorm_part part = *whole;
    *(groups ? &part.group : &part.lane) += at;
    *(groups ? &part.groups : &part.lanes) = n;
    return part;
}

/* Channels [channel, channel + channels) of positions [from, from + len) of one image: whole groups
 * where there are several. */
static inline bnorm_part bnorm_part_of(const bnorm_view *view, size_t channel, size_t channels,
                                       size_t image, size_t from, size_t len) {
    bnorm_part part = {.image = image, .images = 1, .groups = 1, .rows = 1};
    if (view->planes) {
        part.group = channel;
        part.groups = channels;
        part.lane = from;
        part.lanes = len;
        return part;
    }
    part.row = from;
    part.rows = len;
    part.lane = channel;
    part.lanes = channels;
    if (view->groups > 1) {
        part.group = channel / view->lanes;
        part.groups = bnorm_ceil_div(channels, view->lanes);
        part.lane = 0;
        part.lanes = view->lanes;
    } else if (channel + channels == view->c) {
        part.lanes = view->lanes - channel; /* with the padding */
    }
    return part;
}

/* Where a part begins, in elements. */
static inline size_t bnorm_offset_of(const bnorm_tensor *tensor, const bnorm_part *part) {
    return part->image * tensor->image_stride + part->group * tensor->group_stride +
           part->row * tensor->row_stride + (tensor->same_lanes ? 0 : part->lane);
}

/* Moves a tensor to where a part begins. */
static inline void bnorm_move_to(bnorm_tensor *tensor, const bnorm_part *part) {
    if (tensor->data)
        tensor->data =
            (char *)tensor->data + bnorm_offset_of(tensor, part) * bnorm_size_of(tensor->type);
}

/* Moves a tensor to sample `first`, from which it has every `step`th one. */
void bnorm_take_samples(const bnorm_view *view, bnorm_tensor *tensor, size_t first, size_t step);

bnorm_status bnorm_check_shape(const bnorm_shape *shape);
/* The shape of an operation with statistics: not for quantized tensors. */
bnorm_status bnorm_check_float_shape(const bnorm_shape *shape);

/* The dense tensor of a shape, without data: quantized by 1 and 0; returns its elements. The shape
 * has been checked and is not empty. */
size_t bnorm_dense_tensor(const bnorm_shape *shape, bnorm_tensor *tensor);

/* Makes it one with other strides, or with one value only along the axes `broadcast`. Fills *extent,
 * the elements from the first to one past the last. */
bnorm_status bnorm_check_strides(const bnorm_shape *shape, bnorm_in in, unsigned broadcast,
                                 bnorm_tensor *tensor, size_t *extent);

/* The bits of a mask, or none: those of the dense tensor. */
void bnorm_set_bits(const bnorm_shape *shape, unsigned char *mask, bnorm_bits *bits);

/* Changes the view where the channels of a tensor of (N, C) data are not next to each other. */
static inline void bnorm_fit_view(bnorm_view *view, const bnorm_tensor *tensor) {
    if (view->leaves && view->groups == 1 && tensor->data && tensor->group_stride != 1) {
        view->groups = view->c;
        view->lanes = 1;
    }
}

#endif

/* Partial sums per channel in the rows family. Where c is no whole number of vectors several rows
 * share the lanes: the smallest power of two that makes c*chains at least 32 and leaves at most an
 * eighth of the vectors of 16 lanes empty. */
static inline size_t bnorm_chains(size_t c) {
    size_t chains = 1;
    while (c * chains < 32 || c * chains * 8 < (c * chains + 15) / 16 * 16 * 7)
        chains *= 2;
    return chains;
}

/* Rows are taken in groups of 16 per chain, which are added up in float. */
#define BNORM_GROUP 16
/* Rows of a block, spread over it, that its pivots are taken from: a power of two, up to 16. */
#define BNORM_SAMPLES 16
static inline size_t bnorm_samples(size_t rows) {
    return rows >= 16 ? 16 : rows >= 8 ? 8 : rows >= 4 ? 4 : rows >= 2 ? 2 : 1;
}

/* Places of a block of a plane, spread over it, that its pivot is taken from, four neighbours each:
 * neighbours are much alike, so that larger planes have more places. */
#define BNORM_PLACES 16
static inline size_t bnorm_places(size_t len) {
    return len >= 512 ? 16 : len >= 128 ? 8 : len >= 16 ? 4 : len >= 8 ? 2 : 1;
}

/* Chains of a block of a plane. */
#define BNORM_SPAN_LANES 32
/* Room for c*chains with more than one chain: the largest is 194, for c = 97. */
#define BNORM_MAX_LANES 208

/* Rows (pixels) of one image that form a block: a 64th of the image, but 64 to 128 KiB, whole
 * groups, and at least 64 rows. It depends on the image alone, so that batches can be cut anywhere
 * between images. */
static inline size_t bnorm_block_rows(size_t c, size_t hw) {
    const size_t group = BNORM_GROUP * bnorm_chains(c), least = 16384 / c, most = 32768 / c;
    size_t rows = hw / 64;
    if (rows < least)
        rows = least;
    if (rows > most)
        rows = most;
    if (rows < 64)
        rows = 64;
    return (rows + group - 1) / group * group;
}

/* Pixels of one plane that form a block. */
#define BNORM_BLOCK_SPAN 2048

/* Images are merged along a binary tree over their numbers in the whole batch. The largest whole
 * subtree of at most `most` images, a power of two, that begins with image i and ends before `end`:
 * its images. */
static inline size_t bnorm_subtree(size_t i, size_t end, size_t most) {
    const size_t aligned = i ? i & (0 - i) : most;
    size_t images = aligned < most ? aligned : most;
    while (images > end - i)
        images /= 2;
    return images;
}

/* How many of them images [first, first + n) are. */
static inline size_t bnorm_subtrees(size_t first, size_t n, size_t most) {
    const size_t end = first + n;
    size_t i = first, count = 0;
    for (; i < end && i % most; count++)
        i += bnorm_subtree(i, end, most);
    count += (end - i) / most;
    for (size_t rest = (end - i) % most; rest; rest &= rest - 1)
        count++;
    return count;
}

/* The largest subtree there can be, and the most levels. */
#define BNORM_TREE   (~(~(size_t)0 >> 1))
#define BNORM_LEVELS (2 * sizeof(size_t) * 8)

/* Images of one position, as those of (N, C) data, are reduced in leaves of up to so many. */
#define BNORM_LEAF ((size_t)64)

/* Blocks of the reductions per image and altogether; with leaves, those. */
typedef struct bnorm_blocks {
    size_t size; /* positions of a channel per block; the last one of an image may have fewer */
    size_t per_image;
    size_t count;
    size_t chains;
    size_t first; /* number of the first image in the whole batch */
} bnorm_blocks;

/* For images [first, first + n) of a batch. */
static inline bnorm_blocks bnorm_blocks_of(const bnorm_view *view, size_t first) {
    bnorm_blocks blocks = {BNORM_BLOCK_SPAN, 1, 0, BNORM_SPAN_LANES, first};
    if (view->leaves) {
        blocks.size = BNORM_LEAF;
        blocks.chains = 1;
        blocks.count = bnorm_subtrees(first, view->positions, BNORM_LEAF);
        return blocks;
    }
    if (!view->planes) {
        blocks.size = bnorm_block_rows(view->lanes, view->positions);
        blocks.chains = bnorm_chains(view->lanes);
    }
    blocks.per_image = bnorm_ceil_div(view->positions, blocks.size);
    blocks.count = blocks.per_image * view->images;
    return blocks;
}

/* Positions [from, from + len) of one image. */
typedef struct bnorm_block {
    size_t image, from, len;
} bnorm_block;

/* Block b, counted through all images. */
static inline bnorm_block bnorm_block_at(const bnorm_view *view, const bnorm_blocks *blocks,
                                         size_t b) {
    bnorm_block avx512_block = {b, 0, view->positions};
    if (view->leaves) {
        const size_t first = blocks->first, end = first + view->positions;
        size_t at = first, before = 0;
        avx512_block.image = 0;
        if (first % BNORM_LEAF == 0) { /* leaves of full size come first */
            before = bnorm_min(b, view->positions / BNORM_LEAF);
            at += before * BNORM_LEAF;
        }
        for (; before < b; before++) {
            at += bnorm_subtree(at, end, BNORM_LEAF);
            if (at % BNORM_LEAF == 0) {
                const size_t whole = bnorm_min(b - before - 1, (end - at) / BNORM_LEAF);
                before += whole;
                at += whole * BNORM_LEAF;
            }
        }
        avx512_block.from = at - first;
        avx512_block.len = bnorm_subtree(at, end, BNORM_LEAF);
        return avx512_block;
    }
    if (blocks->per_image > 1) {
        avx512_block.image = b / blocks->per_image;
        avx512_block.from = b % blocks->per_image * blocks->size;
        avx512_block.len = bnorm_min(blocks->size, view->positions - avx512_block.from);
    }
    return avx512_block;
}

#endif

#define BNORM_INLINE static inline __attribute__((always_inline))
#define BNORM_RARE   static __attribute__((noinline)) /* costs nothing where it is not called */
/* How far ahead of their use lines are asked for, in bytes. */
#define BNORM_AHEAD       ((size_t)2048)
#define BNORM_UNLIKELY(c) __builtin_expect(!!(c), 0)
#if defined(__clang__)
#define BNORM_UNROLL /* clang unrolls short constant loops by itself */
#define BNORM_UNROLL_SOME
#define BNORM_NO_UNROLL _Pragma("clang loop unroll(disable)")
#else
#define BNORM_UNROLL      _Pragma("GCC unroll 32")
#define BNORM_UNROLL_SOME _Pragma("GCC unroll 4")
#define BNORM_NO_UNROLL   _Pragma("GCC unroll 1")
#endif

/* Channels that a reduction kernel takes at a time, and room for the lanes of one vector behind
 * them. */
#define BNORM_TILE 256
#define BNORM_PAD  16

BNORM_INLINE size_t avx512_lesser(size_t a, size_t b) {
    return a < b ? a : b;
}

BNORM_INLINE avx512_vec_f avx512_load_lanes(const float *p, size_t n) {
    return n == VEC_F ? avx512_vec_load(p) : vec_load_n(p, n);
}

BNORM_INLINE void avx512_store_lanes(float *p, avx512_vec_f v, size_t n) {
    if (n == VEC_F)
        avx512_vec_store(p, v);
    else
        vec_store_n(p, v, n);
}

/* The first n lanes, zeros behind them. */
BNORM_INLINE avx512_vec_f avx512_first_lanes(avx512_vec_f v, size_t n) {
    return n == VEC_F ? v : avx512_vec_first_n(v, n);
}

/* s[0..n) = 0; writes whole vectors. */
BNORM_INLINE void avx512_zero_lanes(double *s, size_t n) {
    for (size_t i = 0; i < n; i += VEC_D)
        vec_store_d(s + i, avx512_vec_set1_d(0));
}

/* p[0..c) again behind itself, `times` times altogether; writes up to a vector more. */
BNORM_INLINE void avx512_repeat_lanes(float *p, size_t c, size_t times) {
    for (size_t j = 1; j < times; j++)
        for (size_t i = 0; i < c; i += VEC_F)
            avx512_vec_store(p + j * c + i, avx512_vec_load(p + i));
}

/* A parameter of each lane, or one for all n lanes. */
BNORM_INLINE avx512_vec_f avx512_parameter_lanes(const float *p, int spread, size_t i, size_t n) {
    if (!spread)
        return avx512_load_lanes(p + i, n);
    return avx512_first_lanes(avx512_vec_set1(*p), n);
}

BNORM_INLINE avx512_vec_d avx512_widen_lanes(const float *p, size_t n) {
    return n == VEC_D ? avx512_vec_widen(p) : avx512_vec_widen_n(p, n);
}

BNORM_INLINE avx512_vec_d load_d_lanes(const double *p, size_t n) {
    return n == VEC_D ? vec_load_d(p) : vec_load_d_n(p, n);
}

BNORM_INLINE void store_d_lanes(double *p, avx512_vec_d v, size_t n) {
    if (n == VEC_D)
        vec_store_d(p, v);
    else
        vec_store_d_n(p, v, n);
}

/* s[i] for i < c: the chains of channel i, which lie c apart, folded upper half onto lower half. */
BNORM_INLINE void avx512_fold_chains(double *s, size_t c, size_t chains) {
    for (size_t half = chains / 2; half > 0; half /= 2) {
        const size_t n = half * c;
        size_t i = 0;
        for (; i + VEC_D <= n; i += VEC_D)
            vec_store_d(s + i, avx512_vec_add_d(vec_load_d(s + i), vec_load_d(s + n + i)));
        for (; i < n; i++)
            s[i] += s[n + i];
    }
}

/* Lanes of `to` whose bits are set. */
BNORM_INLINE void avx512_replace_lanes(unsigned bits, const double *from, double *to) {
    for (size_t i = 0; bits; i++, bits >>= 1)
        if (bits & 1)
            to[i] = from[i];
}

/* SPDX-License-Identifier: MIT
 *
 * Elements of all types to floats and back, and masks of bits. Kernels that meet anything but
 * floats take it through memory of floats in the first-level cache: the loops that compute exist
 * once. What is widened is written in whole vectors, so the memory has room for one more. */

/* Elements that pass through such memory at a time. */
#define BNORM_STAGE 1024

BNORM_INLINE size_t avx512_size_of(bnorm_dtype type) {
    return type == BNORM_F32 ? 4 : type == BNORM_BF16 || type == BNORM_F16 ? 2 : 1;
}

/* Element i of an array. */
BNORM_INLINE const void *avx512_element_at(const void *p, bnorm_dtype type, size_t i) {
    return (const char *)p + i * avx512_size_of(type);
}

/* n < VEC_F elements of 16 bits; a loop over them takes longer. */
BNORM_INLINE void avx512_copy_halves(uint16_t *to, const uint16_t *p, size_t n) {
    if (VEC_F > 8 && n & 8)
        memcpy(to, p, 16);
    if (VEC_F > 4 && n & 4)
        memcpy(to + (n & 8), p + (n & 8), 8);
    if (n & 2)
        memcpy(to + (n & 12), p + (n & 12), 4);
    if (n & 1)
        to[n & 14] = p[n & 14];
}

/* n lanes of 16 bits, as load_lanes and store_lanes. */
#define BNORM_HALF_LANES(type)                                                                     \
    BNORM_INLINE avx512_vec_f load_##type##_lanes(const uint16_t *p, size_t n) {                          \
        uint16_t all[VEC_F] = {0};                                                                 \
        if (n == VEC_F)                                                                            \
            return vec_load_##type(p);                                                             \
        avx512_copy_halves(all, p, n);                                                                    \
        return vec_load_##type(all);                                                               \
    }                                                                                              \
    BNORM_INLINE void store_##type##_lanes(uint16_t *p, avx512_vec_f v, size_t n) {                       \
        uint16_t all[VEC_F];                                                                       \
        if (n == VEC_F) {                                                                          \
            vec_store_##type(p, v);                                                                \
            return;                                                                                \
        }                                                                                          \
        vec_store_##type(all, v);                                                                  \
        avx512_copy_halves(p, all, n);                                                                    \
    }
BNORM_HALF_LANES(bf16)
BNORM_HALF_LANES(f16)

/* A quantization as kernels use it. */
struct avx512_quant {
    float scale, zero_point;
    float inverse; /* 1/scale, or 0 where quotients must be divided for */
    float limit;   /* what is beyond it lies beyond all of a type's values */
};

BNORM_INLINE void avx512_begin_quant(struct avx512_quant *to, const bnorm_quant *from) {
    const float scale = from->scale;
    const int usual = scale > 0x1p-90f && scale < 0x1p90f;
    to->scale = scale;
    to->zero_point = (float)from->zero_point;
    to->inverse = usual ? 1 / scale : 0;
    to->limit = scale < 0x1p117f ? 1024 * scale : FLT_MAX;
}

/* v/scale, rounded once, but that NaN gives 0 and what is beyond the limit is not exact. The
 * quotient by the rounded inverse, corrected by its remainder, is the rounded quotient: P. Markstein,
 * "Computation of elementary functions on the IBM RISC System/6000 processor" (1990), theorem 8.5 of
 * J.-M. Muller et al., "Handbook of floating-point arithmetic". */
BNORM_INLINE avx512_vec_f avx512_quotient(avx512_vec_f v, const struct avx512_quant *avx512_quant) {
    const avx512_vec_f limit = avx512_vec_set1(avx512_quant->limit), inverse = avx512_vec_set1(avx512_quant->inverse);
    v = avx512_vec_zero_nan(v);
    v = avx512_vec_min(avx512_vec_max(v, avx512_vec_negate(limit)), limit);
    if (BNORM_UNLIKELY(avx512_quant->inverse == 0))
        return avx512_vec_div(v, avx512_vec_set1(avx512_quant->scale));
    const avx512_vec_f q = avx512_vec_mul(v, inverse), remainder = avx512_vec_fma(q, avx512_vec_set1(-avx512_quant->scale), v);
    return avx512_vec_fma(remainder, inverse, q);
}

/* n <= VEC_F elements; not for S8 and U8. */
BNORM_INLINE avx512_vec_f avx512_widened_lanes(const void *p, bnorm_dtype type, size_t n) {
    if (type == BNORM_F32)
        return avx512_load_lanes(p, n);
    return type == BNORM_BF16 ? load_bf16_lanes(p, n) : load_f16_lanes(p, n);
}

/* `rows` rows of n elements, `stride` apart, to rows of floats without gaps, and zeros up to the end
 * of a vector; not for S8 and U8. */
static void widen_rows(float *to, const void *from, bnorm_dtype type, size_t stride, size_t rows,
                       size_t n) {
    if (stride == n)
        n *= rows, rows = 1;
#define BNORM_WIDEN(element, load)                                                                 \
    for (const element *row = from; rows > 0; rows--, row += stride, to += n) {                    \
        size_t i = 0;                                                                              \
        for (; i + VEC_F <= n; i += VEC_F)                                                         \
            avx512_vec_store(to + i, load(row + i));                                                      \
        if (i < n)                                                                                 \
            avx512_vec_store(to + i, avx512_widened_lanes(row + i, type, n - i));                                \
    }
    if (type == BNORM_F32) {
        BNORM_WIDEN(float, avx512_vec_load)
    } else if (type == BNORM_BF16) {
        BNORM_WIDEN(uint16_t, vec_load_bf16)
    } else {
        BNORM_WIDEN(uint16_t, vec_load_f16)
    }
#undef BNORM_WIDEN
}

/* ---------------------------------------------------------------------------------------------- */
/* Bits. Those of one call lie next to each other, or in runs; bytes that they fill are read and
 * written as such, others may be shared with another thread. */

/* Bits [at, at + n) as the lowest of the result, n <= 16. */
BNORM_INLINE unsigned avx512_bit_window(const unsigned char *bits, size_t at, size_t n) {
    const size_t first = at / 8, last = (at + n - 1) / 8;
    unsigned window = bits[first];
    if (last > first)
        window |= (unsigned)bits[first + 1] << 8;
    if (last > first + 1)
        window |= (unsigned)bits[first + 2] << 16;
    return window >> at % 8;
}

/* The bits of a byte that `own` says. */
BNORM_INLINE void avx512_store_some_bits(unsigned char *byte, unsigned bits, unsigned own) {
    __atomic_fetch_and(byte, (unsigned char)(bits | ~own), __ATOMIC_RELAXED);
    __atomic_fetch_or(byte, (unsigned char)(bits & own), __ATOMIC_RELAXED);
}

/* n bits from bit `at` on, n a multiple of 8 up to 64, or at most 8. */
BNORM_INLINE uint64_t avx512_read_bits(const unsigned char *bits, size_t at, size_t n) {
    const size_t shift = at % 8;
    uint64_t word = 0;
    if (n <= 8)
        return avx512_bit_window(bits, at, n);
    memcpy(&word, bits + at / 8, n / 8);
    word >>= shift;
    if (shift)
        word |= (uint64_t)bits[at / 8 + n / 8] << (n - shift);
    return word;
}

/* Writes bits one behind the other. */
struct avx512_bit_writer {
    unsigned char *bits;
    size_t at;        /* of the next bit */
    uint64_t waiting; /* those of the byte that is not full */
    unsigned others;  /* bits of that byte that are not of this call */
};

BNORM_INLINE void avx512_begin_bits(struct avx512_bit_writer *w, unsigned char *bits, size_t at) {
    w->bits = bits;
    w->at = at;
    w->waiting = 0;
    w->others = (1u << at % 8) - 1;
}

BNORM_INLINE void avx512_end_bits(struct avx512_bit_writer *w) {
    const unsigned mine = ((1u << w->at % 8) - 1) & ~w->others;
    if (mine)
        avx512_store_some_bits(w->bits + w->at / 8, (unsigned)w->waiting, mine);
}

/* The next bit is number `at`. */
BNORM_INLINE void avx512_seek_bits(struct avx512_bit_writer *w, size_t at) {
    if (w->at == at)
        return;
    avx512_end_bits(w);
    avx512_begin_bits(w, w->bits, at);
}

/* The n lowest bits of a word, n at most 64. */
BNORM_INLINE void avx512_put_bits(struct avx512_bit_writer *w, uint64_t word, size_t n) {
    if (w->at % 8 == 0 && n % 8 == 0) {
        memcpy(w->bits + w->at / 8, &word, n / 8);
        w->at += n;
        return;
    }
    for (; n > 0; n -= avx512_lesser(n, 32), word >>= 32) {
        const size_t k = avx512_lesser(n, 32), avx512_held = w->at % 8;
        unsigned char *byte = w->bits + w->at / 8;
        uint64_t bits = w->waiting | (word & ((UINT64_C(1) << k) - 1)) << avx512_held;
        size_t count = avx512_held + k;
        for (; count >= 8; count -= 8, bits >>= 8, byte++) {
            if (w->others)
                avx512_store_some_bits(byte, (unsigned)bits & 255, 255 & ~w->others);
            else
                *byte = (unsigned char)bits;
            w->others = 0;
        }
        w->waiting = bits;
        w->at += k;
    }
}
#if BNORM_SLEEF
/* SPDX-License-Identifier: MIT
 *
 * The activations that need exp and its kin, and their derivatives, with SLEEF's functions: those
 * with "finz" in their name give the same bits on every instruction set that has fma. They are
 * called by their full names: SLEEF's own dispatcher would choose for the machine, not for this
 * kernel set. docs/numerics.md has the errors, which `make activations` measures.
 *
 * What all have in common: e = exp(-|v|) lies in [0, 1], so that nothing overflows and nothing
 * cancels where v is far from 0. v is cut off behind the point where the result is the same to the
 * last bit: where the formula would be 0*inf at an infinity, and as SLEEF's functions raise
 * exceptions at numbers that are far too large for them. */
#if BNORM_SLEEF

/* sleef_exp(v) and so on. */
#if defined(__clang__) && defined(__x86_64__)
/* clang passes vectors in memory unless its command line, not just the function, chooses a target
 * that has them; SLEEF expects them in registers. A few instructions take them from there. */
#if !defined(__ELF__)
#error "with clang on x86, bnorm can call SLEEF on ELF systems only: build it with SLEEF=0"
#endif
#if VEC_F == 16
#define SMOOTH_REGISTER "%zmm0"
#else
#define SMOOTH_REGISTER "%ymm0"
#endif
#define SMOOTH_FUNCTION_(name, symbol)                                                             \
    __asm__(".pushsection .text\n"                                                                 \
            ".globl bnorm_" #symbol "\n"                                                           \
            ".hidden bnorm_" #symbol "\n"                                                          \
            ".type bnorm_" #symbol ", @function\n"                                                 \
            ".p2align 4\n"                                                                         \
            "bnorm_" #symbol ":\n"                                                                 \
            "vmovups (%rdi), " SMOOTH_REGISTER "\n"                                                \
            "jmp " #symbol "@PLT\n"                                                                \
            ".size bnorm_" #symbol ", .-bnorm_" #symbol "\n"                                       \
            ".popsection");                                                                        \
    __attribute__((visibility("hidden"))) avx512_vec_f bnorm_##symbol(const avx512_vec_f *v);                    \
    BNORM_INLINE avx512_vec_f name(avx512_vec_f v) {                                                             \
        return bnorm_##symbol(&v);                                                                 \
    }
#else
#define SMOOTH_FUNCTION_(name, symbol)                                                             \
    avx512_vec_f symbol(avx512_vec_f v);                                                                         \
    BNORM_INLINE avx512_vec_f name(avx512_vec_f v) {                                                             \
        return symbol(v);                                                                          \
    }
#endif
#define SMOOTH_FUNCTION(name, symbol) SMOOTH_FUNCTION_(name, symbol)
SMOOTH_FUNCTION(avx512_sleef_exp, VEC_SLEEF(exp, u10))
SMOOTH_FUNCTION(avx512_sleef_expm1, VEC_SLEEF(expm1, u10))
SMOOTH_FUNCTION(avx512_sleef_log1p, VEC_SLEEF(log1p, u10))
SMOOTH_FUNCTION(avx512_sleef_tanh, VEC_SLEEF(tanh, u35))

/* Where SLEEF's exp(v) and exp(-v^2/2) are 0. */
#define SMOOTH_EXP_ZERO    (-104)
#define SMOOTH_NORMAL_ZERO (-15)

/* Where SLEEF's tanh(v) is 1. */
#define SMOOTH_TANH_ONE 9

/* The greater of -|v| and the limit; a NaN stays. */
BNORM_INLINE avx512_vec_f avx512_minus_abs_from(avx512_vec_f v, float limit) {
    return avx512_vec_max(avx512_vec_set1(limit), avx512_vec_minus_abs(v));
}

/* exp(-|v|) */
BNORM_INLINE avx512_vec_f avx512_exp_minus_abs(avx512_vec_f v) {
    return avx512_sleef_exp(avx512_minus_abs_from(v, SMOOTH_EXP_ZERO));
}

/* The lesser of v and 0, -0 for -0; a NaN stays. */
BNORM_INLINE avx512_vec_f avx512_negative_part(avx512_vec_f v) {
    return avx512_vec_if_gt(v, avx512_vec_set1(0), avx512_vec_set1(0), v);
}

/* 1/(1 + exp(-v)) */
BNORM_INLINE avx512_vec_f avx512_sigmoid_value(avx512_vec_f v) {
    const avx512_vec_f one = avx512_vec_set1(1), e = avx512_exp_minus_abs(v);
    return avx512_vec_div(avx512_vec_if_gt(v, avx512_vec_set1(0), one, e), avx512_vec_add(one, e));
}

BNORM_INLINE avx512_vec_f avx512_sigmoid_slope(avx512_vec_f v) {
    const avx512_vec_f e = avx512_exp_minus_abs(v), d = avx512_vec_add(avx512_vec_set1(1), e);
    return avx512_vec_div(e, avx512_vec_mul(d, d));
}

/* v*sigmoid(v) */
BNORM_INLINE avx512_vec_f avx512_silu_value(avx512_vec_f v) {
    const avx512_vec_f one = avx512_vec_set1(1), e = avx512_exp_minus_abs(v);
    const avx512_vec_f factor = avx512_vec_if_gt(v, avx512_vec_set1(0), one, e);
    return avx512_vec_div(avx512_vec_mul(avx512_vec_max(v, avx512_vec_set1(SMOOTH_EXP_ZERO)), factor), avx512_vec_add(one, e));
}

/* s*(1 + v*(1 - s)) with s = sigmoid(v); at -v it is 1 less that. */
BNORM_INLINE avx512_vec_f avx512_silu_slope(avx512_vec_f v) {
    const avx512_vec_f one = avx512_vec_set1(1), n = avx512_minus_abs_from(v, SMOOTH_EXP_ZERO);
    const avx512_vec_f e = avx512_sleef_exp(n), inverse = avx512_vec_div(one, avx512_vec_add(one, e));
    const avx512_vec_f s = avx512_vec_mul(e, inverse), factor = avx512_vec_fma(n, inverse, one);
    return avx512_vec_if_gt(v, avx512_vec_set1(0), avx512_vec_fma(avx512_vec_negate(s), factor, one), avx512_vec_mul(s, factor));
}

/* 1 - tanh(v)^2 = 4q/(1 + q)^2 with q = exp(-2|v|) */
BNORM_INLINE avx512_vec_f avx512_tanh_slope(avx512_vec_f v) {
    const avx512_vec_f n = avx512_minus_abs_from(v, .5f * SMOOTH_EXP_ZERO), q = avx512_sleef_exp(avx512_vec_add(n, n));
    const avx512_vec_f d = avx512_vec_add(avx512_vec_set1(1), q);
    return avx512_vec_div(avx512_vec_mul(q, avx512_vec_set1(4)), avx512_vec_mul(d, d));
}

/* The normal distribution: Phi(n) = exp(-n^2/2)*(ratio + low) for n <= 0, where low is what
 * rounding took from exp(-n^2/2) and ratio. */
struct avx512_normal_parts {
    avx512_vec_f n, exp, ratio, low;
};

/* For n = -|v|. ratio*(k - n) is nearly constant: a polynomial of s = (-n - k)/(k - n) in [-1, 1),
 * the substitution of Shepherd and Laframboise, "Chebyshev approximation of (1 + 2x)exp(x^2)erfc x"
 * (Mathematics of Computation 36, 1981). Its coefficients are those of mpmath's chebyfit for n from
 * -15 to 0, rounded to float; k = 75/32 is the one for which rounding hurts least. In exact
 * arithmetic ratio then is right to 0.13*2^-24. SLEEF's erfc would take 4 times as long. */
BNORM_INLINE struct avx512_normal_parts avx512_normal_parts(avx512_vec_f v) {
    static const float c[] = {0x1.6523p-1f,    -0x1.9eaf7ep-2f,  0x1.982a14p-4f,  0x1.664226p-6f,
                              -0x1.b5d34cp-7f, -0x1.1df5a6p-8f,  0x1.af9714p-10f, 0x1.427392p-10f,
                              0x1.70788ep-17f, -0x1.f532c8p-13f, -0x1.3c7de2p-14f};
    enum { DEGREE = sizeof c / sizeof c[0] - 1 };
    const avx512_vec_f one = avx512_vec_set1(1), k = avx512_vec_set1(2.34375f);
    const avx512_vec_f n = avx512_minus_abs_from(v, SMOOTH_NORMAL_ZERO),
                minus_half_n = avx512_vec_mul(n, avx512_vec_set1(-0.5f));
    const avx512_vec_f exponent = avx512_vec_mul(n, minus_half_n), exp = avx512_sleef_exp(exponent);

    const avx512_vec_f d = avx512_vec_sub(k, n), inverse = avx512_vec_div(one, d);
    const avx512_vec_f s = avx512_vec_fma(inverse, avx512_vec_set1(-2 * 2.34375f), one);
    avx512_vec_f sum = avx512_vec_set1(c[DEGREE]);
    BNORM_UNROLL
    for (size_t i = DEGREE; i-- > 0;)
        sum = avx512_vec_fma(sum, s, avx512_vec_set1(c[i]));
    const avx512_vec_f ratio = avx512_vec_mul(sum, inverse);

    /* The relative errors of exp and 1/d; d_error is exact. */
    const avx512_vec_f exp_error = avx512_vec_fma(n, minus_half_n, avx512_vec_negate(exponent));
    const avx512_vec_f d_error = avx512_vec_sub(n, avx512_vec_sub(k, d));
    const avx512_vec_f inverse_error = avx512_vec_fma(d_error, inverse, avx512_vec_fma(avx512_vec_negate(d), inverse, one));
    const avx512_vec_f ratio_error = avx512_vec_fma(sum, inverse, avx512_vec_negate(ratio));
    const struct avx512_normal_parts p = {n, exp, ratio,
                                   avx512_vec_fma(ratio, avx512_vec_add(exp_error, inverse_error), ratio_error)};
    return p;
}

/* v*Phi(v) = max(v, 0) - |v|*Phi(-|v|) */
BNORM_INLINE avx512_vec_f avx512_gelu_value(avx512_vec_f v) {
    const struct avx512_normal_parts p = avx512_normal_parts(v);
    const avx512_vec_f normal = avx512_vec_fma(p.exp, p.ratio, avx512_vec_mul(p.exp, p.low));
    return avx512_vec_fma(p.n, normal, avx512_vec_zero_unless_gt(v, avx512_vec_set1(0), v));
}

/* Phi(v) + v*exp(-v^2/2)/sqrt(2*pi); at -v it is 1 less that. */
BNORM_INLINE avx512_vec_f avx512_gelu_slope(avx512_vec_f v) {
    const struct avx512_normal_parts p = avx512_normal_parts(v);
    const avx512_vec_f factor = avx512_vec_add(avx512_vec_fma(p.n, avx512_vec_set1(0x1.988454p-2f), p.ratio), p.low);
    return avx512_vec_if_gt(v, avx512_vec_set1(0), avx512_vec_fma(avx512_vec_negate(p.exp), factor, avx512_vec_set1(1)),
                     avx512_vec_mul(p.exp, factor));
}

/* tanh(v) */
BNORM_INLINE avx512_vec_f avx512_tanh_value(avx512_vec_f v) {
    const avx512_vec_f one = avx512_vec_set1(SMOOTH_TANH_ONE);
    return avx512_sleef_tanh(avx512_vec_max(avx512_vec_negate(one), avx512_vec_if_gt(v, one, one, v)));
}

/* a*(exp(v) - 1) below 0 */
BNORM_INLINE avx512_vec_f avx512_elu_value(avx512_vec_f v, avx512_vec_f a) {
    const avx512_vec_f n = avx512_vec_max(avx512_vec_set1(SMOOTH_EXP_ZERO), avx512_negative_part(v));
    return avx512_vec_if_gt(v, avx512_vec_set1(0), v, avx512_vec_mul(avx512_sleef_expm1(n), a));
}

BNORM_INLINE avx512_vec_f avx512_elu_slope(avx512_vec_f v, avx512_vec_f a) {
    const avx512_vec_f n = avx512_vec_max(avx512_vec_set1(SMOOTH_EXP_ZERO), avx512_negative_part(v));
    return avx512_vec_if_gt(v, avx512_vec_set1(0), avx512_vec_set1(1), avx512_vec_mul(avx512_sleef_exp(n), a));
}

/* log(1 + exp(v)) = max(v, 0) + log(1 + e) */
BNORM_INLINE avx512_vec_f avx512_softplus_value(avx512_vec_f v) {
    const avx512_vec_f log1p = avx512_sleef_log1p(avx512_exp_minus_abs(v));
    return avx512_vec_add(avx512_vec_zero_unless_gt(v, avx512_vec_set1(0), v), log1p);
}

/* tanh(log(1 + E)) = ((1 + E)^2 - 1)/((1 + E)^2 + 1) with E = exp(v) as numerator/denominator,
 * both of them divided by E^2 where v > 0. e = exp(-|v|). */
struct avx512_mish_fraction {
    avx512_vec_f numerator, denominator;
};

BNORM_INLINE struct avx512_mish_fraction avx512_mish_fraction(avx512_vec_f v, avx512_vec_f e) {
    const avx512_vec_f zero = avx512_vec_set1(0), two = avx512_vec_set1(2), twice = avx512_vec_add(e, e);
    const avx512_vec_f numerator = avx512_vec_if_gt(v, zero, avx512_vec_fma(e, two, avx512_vec_set1(1)), avx512_vec_fma(e, e, twice));
    const struct avx512_mish_fraction f = {
        numerator,
        avx512_vec_if_gt(v, zero, avx512_vec_fma(e, twice, numerator), avx512_vec_add(numerator, two)),
    };
    return f;
}

/* v*tanh(log(1 + exp(v))) */
BNORM_INLINE avx512_vec_f avx512_mish_value(avx512_vec_f v) {
    const avx512_vec_f least = avx512_vec_set1(SMOOTH_EXP_ZERO);
    const struct avx512_mish_fraction f = avx512_mish_fraction(v, avx512_exp_minus_abs(v));
    return avx512_vec_div(avx512_vec_zero_if_le(v, least, avx512_vec_mul(avx512_vec_max(v, least), f.numerator)),
                   f.denominator);
}

/* t + v*(1 - t^2)*sigmoid(v) with t = numerator/denominator: the second term is
 * 4*e*(1 + e)*v/denominator^2, times e where v > 0. */
BNORM_INLINE avx512_vec_f avx512_mish_slope(avx512_vec_f v) {
    const avx512_vec_f four = avx512_vec_set1(4), n = avx512_minus_abs_from(v, SMOOTH_EXP_ZERO);
    const avx512_vec_f e = avx512_sleef_exp(n);
    const struct avx512_mish_fraction f = avx512_mish_fraction(v, e);
    const avx512_vec_f inverse = avx512_vec_div(avx512_vec_set1(1), f.denominator);
    const avx512_vec_f scaled_v = avx512_vec_if_gt(v, avx512_vec_set1(0), avx512_vec_mul(avx512_vec_negate(n), e), n);
    const avx512_vec_f second = avx512_vec_mul(avx512_vec_mul(scaled_v, e), avx512_vec_fma(e, four, four));
    return avx512_vec_mul(inverse, avx512_vec_fma(inverse, second, f.numerator));
}

/* The activation at v. */
BNORM_INLINE avx512_vec_f avx512_smooth_value(bnorm_act_kind kind, avx512_vec_f v, avx512_vec_f a) {
    switch (kind) {
    case BNORM_ACT_SIGMOID:
        return avx512_sigmoid_value(v);
    case BNORM_ACT_SILU:
        return avx512_silu_value(v);
    case BNORM_ACT_TANH:
        return avx512_tanh_value(v);
    case BNORM_ACT_GELU:
        return avx512_gelu_value(v);
    case BNORM_ACT_ELU:
        return avx512_elu_value(v, a);
    case BNORM_ACT_SOFTPLUS:
        return avx512_softplus_value(v);
    case BNORM_ACT_MISH:
        return avx512_mish_value(v);
    default:
        return v;
    }
}

/* Its derivative at v. */
BNORM_INLINE avx512_vec_f avx512_smooth_slope(bnorm_act_kind kind, avx512_vec_f v, avx512_vec_f a) {
    switch (kind) {
    case BNORM_ACT_SIGMOID:
        return avx512_sigmoid_slope(v);
    case BNORM_ACT_SILU:
        return avx512_silu_slope(v);
    case BNORM_ACT_TANH:
        return avx512_tanh_slope(v);
    case BNORM_ACT_GELU:
        return avx512_gelu_slope(v);
    case BNORM_ACT_ELU:
        return avx512_elu_slope(v, a);
    case BNORM_ACT_SOFTPLUS: /* of which the sigmoid is the derivative */
        return avx512_sigmoid_value(v);
    case BNORM_ACT_MISH:
        return avx512_mish_slope(v);
    default:
        return avx512_vec_set1(1);
    }
}

#define SMOOTH_KINDS(body)                                                                         \
    switch (kind) {                                                                                \
    case BNORM_ACT_SIGMOID:                                                                        \
        body(BNORM_ACT_SIGMOID);                                                                   \
        break;                                                                                     \
    case BNORM_ACT_SILU:                                                                           \
        body(BNORM_ACT_SILU);                                                                      \
        break;                                                                                     \
    case BNORM_ACT_TANH:                                                                           \
        body(BNORM_ACT_TANH);                                                                      \
        break;                                                                                     \
    case BNORM_ACT_GELU:                                                                           \
        body(BNORM_ACT_GELU);                                                                      \
        break;                                                                                     \
    case BNORM_ACT_ELU:                                                                            \
        body(BNORM_ACT_ELU);                                                                       \
        break;                                                                                     \
    case BNORM_ACT_SOFTPLUS:                                                                       \
        body(BNORM_ACT_SOFTPLUS);                                                                  \
        break;                                                                                     \
    case BNORM_ACT_MISH:                                                                           \
        body(BNORM_ACT_MISH);                                                                      \
        break;                                                                                     \
    default:                                                                                       \
        break;                                                                                     \
    }

/* dy[i] *= act'(v[i]) in whole vectors: up to VEC_F - 1 elements behind n are computed too. */
static void avx512_smooth_gradients(bnorm_act_kind kind, float a, const float *v, float *dy, size_t n) {
#define SMOOTH_GRADIENTS(kind)                                                                     \
    for (size_t i = 0; i < n; i += VEC_F)                                                          \
    avx512_vec_store(dy + i, avx512_vec_mul(avx512_vec_load(dy + i), avx512_smooth_slope(kind, avx512_vec_load(v + i), avx512_vec_set1(a))))
    SMOOTH_KINDS(SMOOTH_GRADIENTS)
#undef SMOOTH_GRADIENTS
}

#undef SMOOTH_KINDS

#endif
#else
/* Never called: the drivers refuse these activations. */
BNORM_INLINE avx512_vec_f avx512_smooth_value(bnorm_act_kind kind, avx512_vec_f v, avx512_vec_f a) {
    (void)kind, (void)a;
    return v;
}
static void avx512_smooth_gradients(bnorm_act_kind kind, float a, const float *v, float *dy, size_t n) {
    (void)kind, (void)a, (void)v, (void)dy, (void)n;
}
#endif
/* SPDX-License-Identifier: MIT
 *
 * What the passes of backward share: g = dy*act'(v). The kind of activation is a constant of an
 * inlined body. */

/* v where -3 < v < 3, else 0; a NaN stays. So no result that hard swish does not take overflows. */
BNORM_INLINE avx512_vec_f avx512_within_three(avx512_vec_f v) {
    return avx512_vec_zero_if_le(avx512_vec_minus_abs(v), avx512_vec_set1(-3), v);
}

/* dy times the derivative at v. */
BNORM_INLINE avx512_vec_f avx512_gradient(bnorm_act_kind kind, avx512_vec_f v, avx512_vec_f dy, avx512_vec_f a, avx512_vec_f b) {
    const avx512_vec_f zero = avx512_vec_set1(0), three = avx512_vec_set1(3);
    switch (kind) {
    case BNORM_ACT_IDENTITY:
        break;
    case BNORM_ACT_RELU:
        return avx512_vec_zero_unless_gt(v, zero, dy);
    case BNORM_ACT_CLAMP:
        return avx512_vec_zero_unless_gt(v, a, avx512_vec_zero_unless_gt(b, v, dy));
    case BNORM_ACT_LEAKY_RELU:
        return avx512_vec_if_gt(v, zero, dy, avx512_vec_mul(dy, avx512_vec_if_gt(v, zero, avx512_vec_set1(1), a)));
    case BNORM_ACT_HARD_SWISH: {
        const avx512_vec_f slope = avx512_vec_fma(avx512_within_three(v), avx512_vec_set1(1.0f / 3), avx512_vec_set1(0.5f));
        const avx512_vec_f between = avx512_vec_mul(dy, slope);
        return avx512_vec_zero_if_le(v, avx512_vec_set1(-3), avx512_vec_if_le(three, v, dy, between));
    }
    default: /* in smooth.h */
        break;
    }
    return dy;
}

BNORM_INLINE int avx512_reads_extra(enum bnorm_pre pre) {
    return pre == BNORM_PRE_RESIDUAL || pre == BNORM_PRE_Y;
}

/* Whether v is computed from x. */
BNORM_INLINE int avx512_reads_x(enum bnorm_pre pre) {
    return pre == BNORM_PRE_X || pre == BNORM_PRE_RESIDUAL;
}

BNORM_INLINE size_t avx512_whole_vectors(size_t n) {
    return (n + VEC_F - 1) / VEC_F * VEC_F;
}

/* The activations that are a few operations; the others are in smooth.h. */
#define BNORM_PLAIN_KINDS(X)                                                                       \
    X(BNORM_ACT_IDENTITY)                                                                          \
    X(BNORM_ACT_RELU)                                                                              \
    X(BNORM_ACT_CLAMP)                                                                             \
    X(BNORM_ACT_LEAKY_RELU)                                                                        \
    X(BNORM_ACT_HARD_SWISH)

/* dy times the derivative at v, in place, n of them; whole vectors are written. */
static void avx512_gradient_values(const bnorm_act *act, const float *v, float *dy, size_t n) {
    const avx512_vec_f a = avx512_vec_set1(act->a), b = avx512_vec_set1(act->b);
#define BNORM_CASE(kind)                                                                           \
    case kind:                                                                                     \
        for (size_t i = 0; i < n; i += VEC_F)                                                      \
            avx512_vec_store(dy + i, avx512_gradient(kind, avx512_vec_load(v + i), avx512_vec_load(dy + i), a, b));            \
        break;
    switch (act->kind) {
        BNORM_PLAIN_KINDS(BNORM_CASE)
    default:
        avx512_smooth_gradients(act->kind, act->a, v, dy, avx512_whole_vectors(n));
    }
#undef BNORM_CASE
}
/* SPDX-License-Identifier: MIT
 *
 * The reductions of a block: of the statistics, sum(d) and sum(d*d) with d = x - pivot; of backward,
 * sum(g) and sum(g*d) with d = x - center, by way of a pivot near it. src/scalar/scalar.c says what, docs/numerics.md why.
 *
 * Rows of lanes are added up in groups of 16 rows, in float, four rows at a time; groups in double.
 * A lane is a chain of a channel (several where few channels share a row), or every 32nd element of
 * a plane. A form has two parameters, constants of an inlined body:
 *   g     where the first of the two terms comes from: BNORM_SQUARES = from d; of backward an enum
 *         bnorm_pre: dy alone for BNORM_PRE_NONE, else dy where RELU or CLAMP let it pass
 *   type  of the tensors: F32, and BF16 and F16 for BNORM_SQUARES and BNORM_PRE_NONE
 * Everything else, and rows of less than a vector of lanes, becomes x and g in floats first, in
 * memory that stays in the first-level cache. */
/* SPDX-License-Identifier: MIT
 *
 * a*b + c rounded once. Where the compiler has no instruction for it, fma is a call into the C
 * library, which is slow on CPUs without FMA and on some systems rounds more than once. So it is
 * made of additions and products then: S. Boldo, G. Melquiond, "Emulation of FMA and correctly
 * rounded sums: proved algorithms using rounding to odd" (2008). For the default rounding mode.
 *
 * A compiler that contracts changes nothing here: every product that something is added to is
 * exact. */
#ifndef BNORM_FMA_H
#define BNORM_FMA_H

/* gcc says so of all CPUs, clang of some. BNORM_OWN_FMA is for the tests. */
#if !defined(BNORM_OWN_FMA) && ((defined(__FP_FAST_FMA) && defined(__FP_FAST_FMAF)) ||             \
                                defined(__FMA__) || defined(__FMA4__) || defined(__aarch64__))

static inline float bnorm_fmaf(float a, float b, float c) {
    return __builtin_fmaf(a, b, c);
}

static inline double bnorm_fma(double a, double b, double c) {
    return __builtin_fma(a, b, c);
}

#else

static inline uint64_t bnorm_double_bits(double v) {
    uint64_t bits;
    memcpy(&bits, &v, sizeof bits);
    return bits;
}

static inline double bnorm_bits_double(uint64_t bits) {
    double v;
    memcpy(&v, &bits, sizeof v);
    return v;
}

/* high + low = a + b exactly, high being a + b rounded. */
struct bnorm_sum {
    double high, low;
};

static inline struct bnorm_sum bnorm_exact_sum(double a, double b) {
    const double high = a + b, of_b = high - a, of_a = high - of_b;
    return (struct bnorm_sum){high, (a - of_a) + (b - of_b)};
}

/* a + b, finite, rounded to odd: of the two neighbours of an inexact sum, the one whose last bit is
 * set. Rounded to fewer bits afterwards (2 less will do), it gives what a + b itself would. */
static inline double bnorm_odd_sum(double a, double b) {
    const struct bnorm_sum sum = bnorm_exact_sum(a, b);
    const uint64_t bits = bnorm_double_bits(sum.high);
    if (sum.low == 0 || bits % 2)
        return sum.high;
    return bnorm_bits_double((sum.low > 0) == (sum.high > 0) ? bits + 1 : bits - 1);
}

/* The product is exact in double. Their sum, rounded to double, is as good as rounded to odd unless
 * it lies half-way between two floats: one 1 behind the last bit of a float, or, where the float is
 * denormal, somewhere else. Infinities and NaNs never get to the sum that subtracts. */
static inline float bnorm_fmaf(float a, float b, float c) {
    const double product = (double)a * (double)b, sum = product + (double)c;
    const uint64_t bits = bnorm_double_bits(sum);
    if ((bits & 0x1fffffff) != 0x10000000 && (bits >> 52 & 0x7ff) >= 1023 - 126)
        return (float)sum;
    return (float)bnorm_odd_sum(product, (double)c);
}

/* 2^exponent, for exponents of -1022 to 1023. */
static inline double bnorm_power_of_2(int exponent) {
    return bnorm_bits_double((uint64_t)(exponent + 1023) << 52);
}

/* As stored: 0 for zeros and denormals, 2047 for infinities and NaNs. */
static inline int bnorm_stored_exponent(double v) {
    return (int)(bnorm_double_bits(v) >> 52 & 0x7ff);
}

/* high + low = a*b exactly, high being a*b rounded; nothing on the way may over- or underflow. */
static inline struct bnorm_sum bnorm_exact_product(double a, double b) {
    /* Halves of 26 bits and a sign: their products are exact, and so are `middle` and what is added
     * to the low part, in 53 bits. */
    const uint64_t half = (uint64_t)1 << 26, upper = ~(2 * half - 1);
    const double a1 = bnorm_bits_double((bnorm_double_bits(a) + half) & upper), a2 = a - a1;
    const double b1 = bnorm_bits_double((bnorm_double_bits(b) + half) & upper), b2 = b - b1;
    const double middle = a1 * b2 + a2 * b1;
    const struct bnorm_sum most = bnorm_exact_sum(a1 * b1, middle);
    return bnorm_exact_sum(most.high, most.low + a2 * b2);
}

/* v = m*2^exponent with 1 <= |m| < 2, for finite numbers other than 0. */
static inline double bnorm_mantissa(double v, int *exponent) {
    const int denormal = bnorm_stored_exponent(v) == 0;
    const double normal = denormal ? v * 0x1p54 : v;
    *exponent = bnorm_stored_exponent(normal) - 1023 - (denormal ? 54 : 0);
    return bnorm_bits_double((bnorm_double_bits(normal) & ~((uint64_t)0x7ff << 52)) | (uint64_t)1023
                                                                                          << 52);
}

/* bnorm_fma of any numbers: the work is done on mantissas. */
__attribute__((noinline, unused)) static double bnorm_fma_rare(double a, double b, double c) {
    if (a == 0 || b == 0 || bnorm_stored_exponent(a) == 2047 || bnorm_stored_exponent(b) == 2047)
        return a * b + c;
    if (bnorm_stored_exponent(c) == 2047)
        return c;
    int exponent_a, exponent_b, exponent_c = 0;
    const double ma = bnorm_mantissa(a, &exponent_a), mb = bnorm_mantissa(b, &exponent_b);
    const int scale = exponent_a + exponent_b; /* 2^scale <= |a*b| < 2^(scale + 2) */
    if (scale < -1080)                         /* less than half the least denormal */
        return c == 0 ? a * b : c;
    double mc = 0;
    if (c != 0) {
        mc = bnorm_mantissa(c, &exponent_c);
        if (exponent_c - scale > 110)
            return c;
        /* Further down it matters only that it is not 0. */
        const int apart = exponent_c - scale;
        mc *= bnorm_power_of_2(apart < -200 ? -200 : apart);
    }

    const struct bnorm_sum product = bnorm_exact_product(ma, mb);
    const struct bnorm_sum low = bnorm_exact_sum(mc, product.low);
    const struct bnorm_sum high = bnorm_exact_sum(product.high, low.high);
    const double rest = bnorm_odd_sum(low.low, high.low);
    double result = high.high + rest;
    if (result == 0)
        return result;
    if (bnorm_stored_exponent(result) - 1023 + scale < -1022) {
        /* Rounded to a multiple of 2^-1074/2^scale, as that is the last bit of what it is added
         * to. */
        const double big = bnorm_power_of_2(-1022 - scale) * (result < 0 ? -1 : 1);
        const struct bnorm_sum moved = bnorm_exact_sum(big, high.high);
        result = moved.high + bnorm_odd_sum(moved.low, rest);
        result = bnorm_bits_double(bnorm_double_bits(result - big) |
                                   (bnorm_double_bits(big) & (uint64_t)1 << 63));
    }
    return result * bnorm_power_of_2(scale / 2) * bnorm_power_of_2(scale - scale / 2);
}

/* Not inlined, so that no operation on a, b or c is contracted with the one that they come from. */
__attribute__((noinline, unused)) static double bnorm_fma(double a, double b, double c) {
    const int exponent_a = bnorm_stored_exponent(a), exponent_b = bnorm_stored_exponent(b);
    if ((unsigned)(exponent_a - 543) > 980 || (unsigned)(exponent_b - 543) > 980 ||
        bnorm_stored_exponent(c) > 2023)
        return bnorm_fma_rare(a, b, c);
    const struct bnorm_sum product = bnorm_exact_product(a, b);
    const struct bnorm_sum sum = bnorm_exact_sum(product.high, c);
    if (product.low == 0)
        return sum.high;
    /* What rounding `low` took matters only if the rest is half a unit, a power of 2. */
    const double low = sum.low + product.low, result = sum.high + low;
    const double rest = low - (result - sum.high);
    if (rest == 0 || bnorm_double_bits(rest) << 12 != 0)
        return result;
    return bnorm_fma_rare(a, b, c);
}

#endif

#endif

#define BNORM_SQUARES (-1)
#define BNORM_GENERAL (-2) /* has no form: by way of memory */

struct avx512_sum_form {
    int g;
    bnorm_dtype type;
    int plane; /* rows are those of a plane */
};

/* Rows of lanes in memory. Steps are bytes from one row to the next. */
struct sum_rows {
    const bnorm_map_args *a; /* pre and act of backward; NULL = statistics */
    bnorm_dtype type;
    int spread; /* parameters: one for all lanes, or one per lane */
    int fetch;  /* lines are asked for ahead of their use */
    const char *x, *dy, *argument;
    size_t x_step, dy_step, argument_step, bit, bit_step;
    const float *pivot;                           /* d = x - pivot */
    const float *center, *scale, *shift, *invstd; /* NULL for statistics */
};

/* From lane i of row `row` on, every `every`th row; parameters from lane `p` on. */
BNORM_INLINE struct sum_rows avx512_sum_rows_from(const struct sum_rows *s, size_t row, size_t i,
                                           size_t every, size_t p) {
    const size_t size = avx512_size_of(s->type);
    struct sum_rows t = *s;
    t.x += row * s->x_step + i * size;
    t.x_step *= every;
    if (s->pivot)
        t.pivot += p;
    if (s->a) {
        t.center += p;
        t.invstd += p;
        t.dy += row * s->dy_step + i * size;
        t.dy_step *= every;
        if (avx512_reads_extra(s->a->pre)) {
            t.argument += row * s->argument_step + i * size;
            t.argument_step *= every;
        }
        t.bit += row * s->bit_step + i;
        t.bit_step *= every;
        if (avx512_reads_x(s->a->pre)) {
            t.scale += p;
            t.shift += p;
        }
    }
    return t;
}

/* ---------------------------------------------------------------------------------------------- */
/* Trees of vectors */

struct avx512_sums {
    avx512_vec_f a, b;
};

/* The parameters of a vector of lanes. */
struct avx512_sum_parameters {
    avx512_vec_f pivot, center, scale, shift, low, high;
};

BNORM_INLINE struct avx512_sums avx512_no_sums(void) {
    return (struct avx512_sums){avx512_vec_set1(0), avx512_vec_set1(0)};
}

BNORM_INLINE struct avx512_sums avx512_add_sums(struct avx512_sums s, struct avx512_sums t) {
    return (struct avx512_sums){avx512_vec_add(s.a, t.a), avx512_vec_add(s.b, t.b)};
}

/* RELU and CLAMP pass dy where low < v, unless high <= v: never for RELU, whose limit is a NaN. */
BNORM_INLINE struct avx512_sum_parameters
avx512_sum_parameters_at(const struct avx512_sum_form f, const struct sum_rows *s, int spread, size_t i) {
    struct avx512_sum_parameters p;
    const avx512_vec_f zero = avx512_vec_set1(0);
    p.pivot = avx512_parameter_lanes(s->pivot, spread, i, VEC_F);
    p.center = p.scale = p.shift = p.low = p.high = zero;
    if (f.g > BNORM_PRE_NONE) {
        const int clamp = s->a->act.kind == BNORM_ACT_CLAMP;
        p.low = clamp ? avx512_vec_set1(s->a->act.a) : zero;
        p.high = clamp ? avx512_vec_set1(s->a->act.b) : avx512_vec_set1(NAN);
    }
    if (f.g == BNORM_PRE_X || f.g == BNORM_PRE_RESIDUAL) {
        p.center = avx512_parameter_lanes(s->center, spread, i, VEC_F);
        p.scale = avx512_parameter_lanes(s->scale, spread, i, VEC_F);
        p.shift = avx512_parameter_lanes(s->shift, spread, i, VEC_F);
    }
    return p;
}

/* Lanes of a vector, from lane i on, that lie before `end`. */
BNORM_INLINE size_t avx512_lanes_before(size_t end, size_t i) {
    return end > i ? avx512_lesser(VEC_F, end - i) : 0;
}

/* n <= VEC_F elements, 0 behind them. */
BNORM_RARE avx512_vec_f avx512_half_lanes(const void *p, bnorm_dtype type, size_t n) {
    return avx512_widened_lanes(p, type, n);
}
BNORM_INLINE avx512_vec_f avx512_form_lanes(const struct avx512_sum_form f, const char *p, size_t n) {
    const void *const at = p;
    if (__builtin_constant_p(n) && n == VEC_F)
        return avx512_widened_lanes(at, f.type, VEC_F);
    return f.type == BNORM_F32 ? vec_load_n(at, n) : avx512_half_lanes(at, f.type, n);
}

/* Where rows of lanes are read. */
struct avx512_cursor {
    const char *x, *dy, *argument;
    size_t bit;
};

/* Lane i of row `row` behind a cursor. */
BNORM_INLINE struct avx512_cursor avx512_cursor_at(const struct avx512_sum_form f, const struct sum_rows *s,
                                     struct avx512_cursor c, size_t row, size_t i) {
    const size_t at = i * avx512_size_of(f.type), step = BNORM_SPAN_LANES * avx512_size_of(f.type);
    c.x += row * (f.plane ? step : s->x_step) + at;
    if (f.g >= BNORM_PRE_NONE)
        c.dy += row * (f.plane ? step : s->dy_step) + at;
    if (f.g == BNORM_PRE_RESIDUAL || f.g == BNORM_PRE_Y)
        c.argument += row * (f.plane ? step : s->argument_step) + at;
    if (f.g == BNORM_PRE_MASK)
        c.bit += row * (f.plane ? BNORM_SPAN_LANES : s->bit_step) + i;
    return c;
}

BNORM_INLINE struct avx512_cursor avx512_cursor_of(const struct sum_rows *s) {
    return (struct avx512_cursor){s->x, s->dy, s->argument, s->bit};
}

/* The two factors of a row: their product is the second term, the first of them the first term. */
struct avx512_terms {
    avx512_vec_f a, d;
};

/* What the sums of rows take: `row` and `i` are counted from the cursor. */
#define BNORM_SUM_ARGS                                                                             \
    const struct avx512_sum_form f, const struct sum_rows *s, const struct avx512_sum_parameters *p,             \
        struct avx512_cursor from, size_t row, size_t i

/* x - from in the first n lanes, zeros behind them. */
BNORM_INLINE avx512_vec_f avx512_difference(avx512_vec_f x, avx512_vec_f from, size_t n) {
    const avx512_vec_f all = avx512_vec_sub(x, from);
    return __builtin_constant_p(n) && n == VEC_F ? all : avx512_vec_first_n(all, n);
}

/* n lanes of a row, zeros behind them. */
BNORM_INLINE struct avx512_terms avx512_terms_at(BNORM_SUM_ARGS, size_t n) {
    const struct avx512_cursor at = avx512_cursor_at(f, s, from, row, i);
    const avx512_vec_f x = avx512_form_lanes(f, at.x, n), d = avx512_difference(x, p->pivot, n);
    if (f.g == BNORM_SQUARES)
        return (struct avx512_terms){d, d};
    const avx512_vec_f dy = avx512_form_lanes(f, at.dy, n);
    avx512_vec_f v = avx512_vec_set1(0);
    if (f.g == BNORM_PRE_NONE)
        return (struct avx512_terms){dy, d};
    if (f.g == BNORM_PRE_RESIDUAL || f.g == BNORM_PRE_Y)
        v = avx512_form_lanes(f, at.argument, n);
    if (f.g == BNORM_PRE_MASK)
        v = avx512_vec_from_bits(n ? avx512_bit_window(s->a->mask.bits, at.bit, n) : 0);
    if (f.g == BNORM_PRE_X)
        v = avx512_vec_fma(avx512_difference(x, p->center, n), p->scale, p->shift);
    if (f.g == BNORM_PRE_RESIDUAL)
        v = avx512_vec_add(avx512_vec_fma(avx512_difference(x, p->center, n), p->scale, p->shift), v);
    return (struct avx512_terms){avx512_vec_zero_from(v, p->high, avx512_vec_zero_unless_gt(v, p->low, dy)), d};
}

/* Sums of one row and of two. 0 is added to a product that compilers can't make one operation with
 * what it is added to. */
BNORM_INLINE struct avx512_sums avx512_sum_of_one(struct avx512_terms t) {
    return (struct avx512_sums){t.a, avx512_vec_fma(t.a, t.d, avx512_vec_set1(0))};
}
BNORM_INLINE struct avx512_sums avx512_sum_of_two(struct avx512_terms t, struct avx512_terms u) {
    return (struct avx512_sums){avx512_vec_add(t.a, u.a), avx512_vec_fma(u.a, u.d, avx512_vec_mul(t.a, t.d))};
}

/* Sums of 1, 2 and 4 rows, the last one of n lanes. */
BNORM_INLINE struct avx512_sums avx512_sum_1(BNORM_SUM_ARGS, size_t n) {
    return avx512_sum_of_one(avx512_terms_at(f, s, p, from, row, i, n));
}
BNORM_INLINE struct avx512_sums avx512_sum_2(BNORM_SUM_ARGS, size_t n) {
    return avx512_sum_of_two(avx512_terms_at(f, s, p, from, row, i, VEC_F),
                      avx512_terms_at(f, s, p, from, row + 1, i, n));
}
BNORM_INLINE struct avx512_sums avx512_sum_4(BNORM_SUM_ARGS) {
    return avx512_add_sums(avx512_sum_2(f, s, p, from, row, i, VEC_F), avx512_sum_2(f, s, p, from, row + 2, i, VEC_F));
}

/* Asks for the lines of `bytes` bytes of each tensor, `ahead` behind a cursor. The CPU's own
 * prefetching begins anew with each row of a few lines, and with each page. */
BNORM_INLINE void avx512_fetch_ahead(const struct avx512_sum_form f, struct avx512_cursor at, size_t ahead,
                              size_t bytes) {
#define BNORM_FETCH(t) avx512_vec_fetch((const float *)(const void *)(at.t + ahead + k))
    for (size_t k = 0; k < bytes; k += 64) {
        BNORM_FETCH(x);
        if (f.g >= BNORM_PRE_NONE)
            BNORM_FETCH(dy);
        if (f.g == BNORM_PRE_RESIDUAL || f.g == BNORM_PRE_Y)
            BNORM_FETCH(argument);
    }
#undef BNORM_FETCH
}

/* Adds the sums of four rows of `count` vectors side by side to theirs, `fours` times. */
BNORM_INLINE void avx512_add_fours(const struct avx512_sum_form f, const struct sum_rows *s,
                            const struct avx512_sum_parameters *p, struct avx512_cursor at, size_t fours,
                            size_t count, struct avx512_sums *avx512_sums) {
    BNORM_NO_UNROLL
    for (; fours > 0; fours--) {
        BNORM_UNROLL
        for (size_t k = 0; k < count; k++)
            avx512_sums[k] = avx512_add_sums(avx512_sums[k], avx512_sum_4(f, s, p, at, 0, k * VEC_F));
        if (BNORM_UNLIKELY(s->fetch))
            avx512_fetch_ahead(f, at, BNORM_AHEAD, 4 * BNORM_SPAN_LANES * avx512_size_of(f.type));
        at = avx512_cursor_at(f, s, at, 4, 0);
    }
}

/* Sums of `rows` < 4 rows, and the first `extra` lanes of one more. Rows that are not there count
 * as 0. */
BNORM_INLINE struct avx512_sums avx512_sum_rest(BNORM_SUM_ARGS, size_t rows, size_t extra) {
    struct avx512_sums two, one;
    if (rows & 2) {
        two = avx512_sum_2(f, s, p, from, row, i, VEC_F);
        if (rows == 2 && !extra)
            return two;
    }
    if (extra)
        one = rows & 1 ? avx512_sum_2(f, s, p, from, row + (rows & 2), i, extra)
                       : avx512_sum_1(f, s, p, from, row + (rows & 2), i, extra);
    else if (rows & 1)
        one = avx512_sum_1(f, s, p, from, row + (rows & 2), i, VEC_F);
    else
        return avx512_no_sums();
    return rows & 2 ? avx512_add_sums(two, one) : one;
}

/* ---------------------------------------------------------------------------------------------- */
/* Everything, by way of memory */

/* `rows` rows of n lanes as floats without gaps, whole vectors each. */
BNORM_INLINE void avx512_load_tensor(float *to, const char *from, size_t step, bnorm_dtype type,
                              size_t rows, size_t n) {
    if (n % VEC_F == 0) {
        widen_rows(to, from, type, step / avx512_size_of(type), rows, n);
        return;
    }
    for (; rows > 0; rows--, from += step)
        for (size_t i = 0; i < n; i += VEC_F, to += VEC_F)
            avx512_vec_store(to, avx512_widened_lanes(avx512_element_at(from, type, i), type, avx512_lesser(VEC_F, n - i)));
}

/* Arguments of the activation, n <= VEC_F from lane i of row r on; `one` are the parameters of a
 * plane. */
BNORM_INLINE avx512_vec_f avx512_argument_lanes(enum bnorm_pre pre, const struct sum_rows *s,
                                  const struct avx512_sum_parameters *one, avx512_vec_f x, size_t r, size_t i,
                                  size_t n) {
    struct avx512_sum_parameters p = *one;
    const char *const argument =
        avx512_reads_extra(pre) ? s->argument + r * s->argument_step + i * avx512_size_of(s->type) : NULL;
    if (pre == BNORM_PRE_MASK) {
        const size_t bit = s->bit + r * s->bit_step + i;
        return avx512_vec_from_bits(avx512_bit_window(s->a->mask.bits, bit, n) & ((1u << n) - 1));
    }
    if (pre == BNORM_PRE_Y)
        return avx512_widened_lanes(argument, s->type, n);
    if (!s->spread) {
        p.center = avx512_load_lanes(s->center + i, n);
        p.scale = avx512_load_lanes(s->scale + i, n);
        p.shift = avx512_load_lanes(s->shift + i, n);
    }
    /* Lanes behind them hold 0, as do their parameters where they are not those of a plane. */
    const avx512_vec_f v = avx512_vec_fma(avx512_first_lanes(avx512_vec_sub(x, p.center), n), p.scale, p.shift);
    if (pre == BNORM_PRE_X)
        return v;
    return avx512_vec_add(v, avx512_widened_lanes(argument, s->type, n));
}

BNORM_INLINE void avx512_load_arguments(enum bnorm_pre pre, const struct sum_rows *s, const float *x,
                                 size_t r, size_t i, size_t end, float *v) {
    struct avx512_sum_parameters one = {.center = avx512_vec_set1(0), .scale = avx512_vec_set1(0)};
    if (avx512_reads_x(pre) && s->spread) {
        one.center = avx512_vec_set1(s->center[r]);
        one.scale = avx512_vec_set1(s->scale[r]);
        one.shift = avx512_vec_set1(s->shift[r]);
    }
    for (; i + VEC_F <= end; i += VEC_F, v += VEC_F)
        avx512_vec_store(v, avx512_argument_lanes(pre, s, &one, avx512_vec_load(x + i), r, i, VEC_F));
    if (i < end)
        avx512_vec_store(v, avx512_argument_lanes(pre, s, &one, avx512_vec_load(x + i), r, i, end - i));
}

/* Rows [0, rows) of n lanes as floats without gaps, whole vectors each: x, and g, which is not
 * written for statistics. */
static void load_rows(const struct sum_rows *s, size_t rows, size_t n, float *x, float *g) {
    enum { ROOM = 128 };
    float v[ROOM];
    size_t count = 0;
    avx512_load_tensor(x, s->x, s->x_step, s->type, rows, n);
    if (!s->a)
        return;
    avx512_load_tensor(g, s->dy, s->dy_step, s->type, rows, n);
    if (s->a->pre == BNORM_PRE_NONE)
        return;
    const struct sum_rows own = *s; /* that no store can change */
    for (size_t r = 0; r < rows; r++, x += avx512_whole_vectors(n))
        for (size_t i = 0, end; i < n; i = end) {
            end = avx512_lesser(n, i + ROOM);
            if (count + avx512_whole_vectors(end - i) > ROOM) {
                avx512_gradient_values(&s->a->act, v, g, count);
                g += count;
                count = 0;
            }
#define BNORM_CASE(pre)                                                                            \
    case pre:                                                                                      \
        avx512_load_arguments(pre, &own, x, r, i, end, v + count);                                        \
        break;
            switch (s->a->pre) {
                BNORM_CASE(BNORM_PRE_X)
                BNORM_CASE(BNORM_PRE_RESIDUAL)
                BNORM_CASE(BNORM_PRE_Y)
                BNORM_CASE(BNORM_PRE_MASK)
            default:
                break;
            }
#undef BNORM_CASE
            count += avx512_whole_vectors(end - i);
        }
    avx512_gradient_values(&s->a->act, v, g, count);
}

/* ---------------------------------------------------------------------------------------------- */
/* Rows */

/* Adds the sums of a group to as many doubles; the first group's are stored. */
BNORM_INLINE void avx512_add_group(struct avx512_sums s, int first, double *a, double *b) {
    static const double none[VEC_F];
    const double *const from_a = first ? none : a, *const from_b = first ? none : b;
    vec_store_d(a, avx512_vec_add_d(vec_load_d(from_a), avx512_vec_low(s.a)));
    vec_store_d(a + VEC_D, avx512_vec_add_d(vec_load_d(from_a + VEC_D), avx512_vec_high(s.a)));
    vec_store_d(b, avx512_vec_add_d(vec_load_d(from_b), avx512_vec_low(s.b)));
    vec_store_d(b + VEC_D, avx512_vec_add_d(vec_load_d(from_b + VEC_D), avx512_vec_high(s.b)));
}

/* X(name, g, type) for all forms. */
#define BNORM_SUM_TYPES(X, name, g)                                                                \
    X(name##_f32, g, BNORM_F32)                                                                    \
    X(name##_bf16, g, BNORM_BF16)                                                                  \
    X(name##_f16, g, BNORM_F16)
#define BNORM_SUM_FORMS(X)                                                                         \
    BNORM_SUM_TYPES(X, squares, BNORM_SQUARES)                                                     \
    BNORM_SUM_TYPES(X, dy, BNORM_PRE_NONE)                                                         \
    X(limited_x, BNORM_PRE_X, BNORM_F32)                                                           \
    X(limited_residual, BNORM_PRE_RESIDUAL, BNORM_F32)                                             \
    X(limited_y, BNORM_PRE_Y, BNORM_F32)                                                           \
    X(limited_mask, BNORM_PRE_MASK, BNORM_F32)

/* Which of them s has, or BNORM_GENERAL. */
static int avx512_form_of(const struct sum_rows *s) {
    const enum bnorm_pre pre = s->a ? s->a->pre : BNORM_PRE_NONE;
    if (pre == BNORM_PRE_NONE)
        return (s->a ? 3 : 0) + (int)s->type;
    if (s->type == BNORM_F32 &&
        (s->a->act.kind == BNORM_ACT_RELU || s->a->act.kind == BNORM_ACT_CLAMP))
        return 6 + (int)pre - (int)BNORM_PRE_X;
    return BNORM_GENERAL;
}

/* Sums of a group in float, whole vectors of lanes: those of b behind those of a. */
#define BNORM_GROUP_LANES (BNORM_TILE + BNORM_PAD)
BNORM_INLINE void avx512_add_to_group(struct avx512_sums s, int first, float *to) {
    float *const b = to + BNORM_GROUP_LANES;
    if (!first)
        s = avx512_add_sums((struct avx512_sums){avx512_vec_load(to), avx512_vec_load(b)}, s);
    avx512_vec_store(to, s.a);
    avx512_vec_store(b, s.b);
}

/* Four rows of len lanes. Where these are not whole vectors, the last one begins so much earlier.
 * With each vector the next lines of the row `ahead` rows behind are asked for. */
BNORM_INLINE void add_fours_of_rows(const struct avx512_sum_form f, const struct sum_rows *s,
                                    struct avx512_cursor at, size_t len, size_t ahead, int first,
                                    float *to) {
    const size_t rest = len % VEC_F;
    size_t i = 0, end = len - rest, lane = 0;
    struct avx512_cursor next = avx512_cursor_at(f, s, at, ahead, 0);
    for (;;) {
        do {
            const struct avx512_sum_parameters p = avx512_sum_parameters_at(f, s, 0, i);
            if (BNORM_UNLIKELY(s->fetch)) {
                avx512_fetch_ahead(f, next, 0, 4 * VEC_F * avx512_size_of(f.type));
                next = avx512_cursor_at(f, s, next, 0, 4 * VEC_F);
                lane += 4 * VEC_F;
                if (lane >= len) {
                    next = avx512_cursor_at(f, s, next, 1, -lane);
                    lane = 0;
                }
            }
            avx512_add_to_group(avx512_sum_4(f, s, &p, at, 0, 0), first, to + i);
            at = avx512_cursor_at(f, s, at, 0, VEC_F);
            i += VEC_F;
        } while (i < end);
        if (end == len)
            return;
        i = len - VEC_F;
        end = len;
        to += VEC_F - rest;
        at = avx512_cursor_at(f, s, at, 0, rest - VEC_F);
    }
}

/* `rows` < 4 rows of len lanes, and of one more the lanes before `tail`. */
BNORM_INLINE void add_other_rows(const struct avx512_sum_form f, const struct sum_rows *s,
                                 struct avx512_cursor at, size_t len, size_t rows, size_t tail, int first,
                                 float *to) {
    for (size_t i = 0; i < len; i += VEC_F) {
        const size_t lane = avx512_lesser(i, len - VEC_F), extra = avx512_lanes_before(tail, lane);
        const struct avx512_sum_parameters p = avx512_sum_parameters_at(f, s, 0, lane);
        avx512_add_to_group(avx512_sum_rest(f, s, &p, at, 0, lane, rows, extra), first, to + i);
    }
}

/* The last `rest` doubles of a vector to its front, zeros behind them. */
BNORM_INLINE void avx512_move_rest(double *p, size_t rest) {
    memmove(p, p + (VEC_F - rest), rest * sizeof *p);
    memset(p + rest, 0, (VEC_F - rest) * sizeof *p);
}

/* Sums of `rows` rows of len >= VEC_F lanes, and the first `tail` lanes of one more; whole vectors
 * are written. */
BNORM_INLINE void avx512_add_lanes(const struct avx512_sum_form f, const struct sum_rows *from, size_t rows,
                            size_t tail, size_t len, double *a, double *b) {
    float group[2 * BNORM_GROUP_LANES];
    const struct sum_rows own = *from, *const s = &own; /* that no store can change */
    const size_t rest = len % VEC_F, whole = len - rest, four = 4 * len * avx512_size_of(f.type),
                 ahead = s->fetch ? 4 * ((BNORM_AHEAD + four - 1) / four) : 0;
    for (size_t r = 0; r < rows + (tail > 0); r += BNORM_GROUP) {
        const size_t count = avx512_lesser(BNORM_GROUP, rows - r), last = count < BNORM_GROUP ? tail : 0;
        struct avx512_cursor at = avx512_cursor_at(f, s, avx512_cursor_of(s), r, 0);
        size_t q = 0;
        for (; q + 4 <= count; q += 4, at = avx512_cursor_at(f, s, at, 4, 0)) {
            if (q == 0)
                add_fours_of_rows(f, s, at, len, ahead, 1, group);
            else
                add_fours_of_rows(f, s, at, len, ahead, 0, group);
        }
        if (q < count || last)
            add_other_rows(f, s, at, len, count - q, last, q == 0, group);
        for (size_t i = 0; i < len; i += VEC_F)
            avx512_add_group((struct avx512_sums){avx512_vec_load(group + i), avx512_vec_load(group + BNORM_GROUP_LANES + i)},
                      r == 0, a + i, b + i);
    }
    if (rest) {
        avx512_move_rest(a + whole, rest);
        avx512_move_rest(b + whole, rest);
    }
}

#define BNORM_ROWS_FORM(name, g, type)                                                             \
    static void add_rows_##name(const struct sum_rows *s, size_t rows, size_t tail, size_t len,    \
                                double *a, double *b) {                                            \
        avx512_add_lanes((struct avx512_sum_form){g, type, 0}, s, rows, tail, len, a, b);                        \
    }
BNORM_SUM_FORMS(BNORM_ROWS_FORM)

/* What has a form, of len >= VEC_F. */
BNORM_INLINE void avx512_add_form(const struct sum_rows *s, size_t rows, size_t tail, size_t len,
                           double *a, double *b) {
#define BNORM_ROWS_ENTRY(name, g, type) add_rows_##name,
    static void (*const forms[])(const struct sum_rows *, size_t, size_t, size_t, double *,
                                 double *) = {BNORM_SUM_FORMS(BNORM_ROWS_ENTRY)};
    forms[avx512_form_of(s)](s, rows, tail, len, a, b);
}

/* Elements of four rows of a plane, and of a group. */
#define BNORM_FOUR_SPAN  ((size_t)4 * BNORM_SPAN_LANES)
#define BNORM_GROUP_SPAN (BNORM_GROUP * BNORM_SPAN_LANES)
/* Floats of x and g that are made at a time: a group of a plane; of rows a group of so many lanes. */
#define BNORM_STAGE_LANES ((size_t)32)

/* Rows of `row` floats at x, and at g. */
BNORM_INLINE struct sum_rows staged_rows(const struct sum_rows *s, bnorm_map_args *args,
                                         const float *x, const float *g, const float *pivot,
                                         size_t row) {
    args->pre = BNORM_PRE_NONE;
    return (struct sum_rows){.a = s->a ? args : NULL,
                             .type = BNORM_F32,
                             .spread = s->spread,
                             .x = (const char *)x,
                             .dy = (const char *)g,
                             .x_step = row * sizeof *x,
                             .dy_step = row * sizeof *g,
                             .pivot = pivot,
                             .center = pivot,
                             .invstd = pivot};
}

/* What has none, and any len: a group of few lanes at a time. */
BNORM_RARE void avx512_add_staged(const struct sum_rows *s, size_t rows, size_t tail, size_t len,
                           double *a, double *b) {
    enum { ROOM = BNORM_GROUP * BNORM_STAGE_LANES };
    float x[ROOM], g[ROOM], pivot[BNORM_STAGE_LANES];
    double sums_a[BNORM_STAGE_LANES + VEC_F], sums_b[BNORM_STAGE_LANES + VEC_F];
    bnorm_map_args args;
    for (size_t r = 0; r < rows + (tail > 0); r += BNORM_GROUP) {
        const size_t count = avx512_lesser(BNORM_GROUP, rows - r), last = count < BNORM_GROUP ? tail : 0,
                     end = count ? len : last;
        for (size_t i = 0; i < end; i += BNORM_STAGE_LANES) {
            const size_t n = avx512_lesser(BNORM_STAGE_LANES, end - i), row = avx512_whole_vectors(n),
                         extra = last > i ? avx512_lesser(n, last - i) : 0, behind = count * row;
            const struct sum_rows at = avx512_sum_rows_from(s, r, i, 1, i),
                                  after = avx512_sum_rows_from(&at, count, 0, 1, 0),
                                  t = staged_rows(s, &args, x, g, pivot, row);
            memset(pivot, 0, sizeof pivot);
            memcpy(pivot, at.pivot, n * sizeof *pivot);
            load_rows(&at, count, n, x, g);
            if (extra)
                load_rows(&after, 1, extra, x + behind, g + behind);
            avx512_add_form(&t, count, extra, row, sums_a, sums_b);
            for (size_t k = 0; k < row; k++) {
                a[i + k] = (r ? a[i + k] : 0) + sums_a[k];
                b[i + k] = (r ? b[i + k] : 0) + sums_b[k];
            }
        }
    }
}

BNORM_INLINE void add_rows(const struct sum_rows *s, size_t rows, size_t tail, size_t len,
                           double *a, double *b) {
    if (len >= VEC_F && avx512_form_of(s) != BNORM_GENERAL)
        avx512_add_form(s, rows, tail, len, a, b);
    else
        avx512_add_staged(s, rows, tail, len, a, b);
}

/* c channels of a block of `count` positions: of rows, or, where parameters are spread, with c = 1
 * and 32 chains, of a plane. */
struct avx512_sum_block {
    struct sum_rows s; /* a row is a position, and c*chains lanes have parameters */
    size_t count, c, chains;
};

/* Rows without gaps are joined, so that chain j of channel i is lane j*c + i of longer rows;
 * otherwise each chain has rows of its own. */
struct chain_rows {
    struct sum_rows s;
    size_t rows, tail, len;
};
BNORM_INLINE size_t avx512_chain_count(const struct avx512_sum_block *k) {
    const struct sum_rows *s = &k->s;
    const size_t bytes = k->c * avx512_size_of(s->type);
    const int joined =
        s->x_step == bytes &&
        (!s->a || (s->dy_step == bytes && (!avx512_reads_extra(s->a->pre) || s->argument_step == bytes) &&
                   (s->a->pre != BNORM_PRE_MASK || s->bit_step == k->c)));
    return k->chains == 1 || joined ? 1 : avx512_lesser(k->chains, k->count);
}
BNORM_INLINE struct chain_rows avx512_chain_at(const struct avx512_sum_block *k, size_t chains, size_t j) {
    struct chain_rows r = {.s = avx512_sum_rows_from(&k->s, j, 0, k->chains, k->s.spread ? 0 : j * k->c)};
    if (chains == 1 && k->chains > 1) {
        r.rows = k->count / k->chains;
        r.tail = k->count % k->chains * k->c;
        r.len = r.rows ? k->c * k->chains : r.tail;
    } else {
        r.rows = (k->count - j + k->chains - 1) / k->chains;
        r.len = k->c;
    }
    return r;
}

/* Both sums of c channels; room for c*chains lanes and a vector more. */
static void avx512_sum_channels(const struct avx512_sum_block *k, double *a, double *b) {
    const size_t chains = avx512_chain_count(k);
    if (k->count < k->chains) { /* not all chains have a row */
        avx512_zero_lanes(a, k->c * k->chains);
        avx512_zero_lanes(b, k->c * k->chains);
    }
    for (size_t j = 0; j < chains; j++) {
        const struct chain_rows r = avx512_chain_at(k, chains, j);
        add_rows(&r.s, r.rows, r.tail, r.len, a + j * k->c, b + j * k->c);
    }
    avx512_fold_chains(a, k->c, k->chains);
    avx512_fold_chains(b, k->c, k->chains);
}

/* ---------------------------------------------------------------------------------------------- */
/* Planes: rows of BNORM_SPAN_LANES elements. The lanes of a group are folded in float, upper half
 * onto lower half, to four, which are added up in double. */

enum { avx512_SPAN_VECTORS = BNORM_SPAN_LANES / VEC_F };

/* Of up to VEC_F planes: the sums of a group, four each, and those of planes of more groups. */
struct avx512_plane_sums {
    _Alignas(64) float a[VEC_F][4], b[VEC_F][4];
    double all_a[VEC_F][4], all_b[VEC_F][4];
};

/* Adds four floats. */
BNORM_INLINE void avx512_add_four(double *avx512_sums, const float *fours) {
    const size_t lanes = avx512_lesser(VEC_D, 4);
    for (size_t k = 0; k < 4; k += lanes)
        store_d_lanes(avx512_sums + k,
                      avx512_vec_add_d(load_d_lanes(avx512_sums + k, lanes), avx512_widen_lanes(fours + k, lanes)),
                      lanes);
}

/* Planes of `len` elements; `adds`: the sums of groups are added to those of planes. */
BNORM_INLINE void sum_planes(const struct avx512_sum_form f, const struct sum_rows *s, size_t planes,
                             size_t len, int adds, struct avx512_plane_sums *to) {
    const struct avx512_sum_form apart = {f.g, f.type, 0};
    const size_t rows = len % BNORM_FOUR_SPAN / BNORM_SPAN_LANES;
    size_t last[avx512_SPAN_VECTORS]; /* lanes of the row that is not whole */
    struct avx512_cursor plane = avx512_cursor_of(s);
    for (size_t k = 0; k < avx512_SPAN_VECTORS; k++)
        last[k] = avx512_lanes_before(len % BNORM_SPAN_LANES, k * VEC_F);
    for (size_t i = 0; i < planes; i++, plane = avx512_cursor_at(apart, s, plane, 1, 0)) {
        const struct sum_rows here = avx512_sum_rows_from(s, 0, 0, 1, i);
        const struct avx512_sum_parameters p = avx512_sum_parameters_at(f, &here, 1, 0);
        struct avx512_cursor at = plane;
        size_t left = len;
        do {
            const size_t count = avx512_lesser(left, BNORM_GROUP_SPAN), fours = count / BNORM_FOUR_SPAN;
            struct avx512_sums t[avx512_SPAN_VECTORS], u[avx512_SPAN_VECTORS];
            struct avx512_terms rest[avx512_SPAN_VECTORS];
#define BNORM_VECTORS_OF(array, value)                                                             \
    {                                                                                              \
        BNORM_UNROLL                                                                               \
        for (size_t k = 0; k < avx512_SPAN_VECTORS; k++)                                                  \
            array[k] = value;                                                                      \
    }
#define BNORM_TERMS(row) avx512_terms_at(f, s, &p, behind, row, k *VEC_F, VEC_F)
            if (count % BNORM_FOUR_SPAN) {
                const struct avx512_cursor behind = avx512_cursor_at(f, s, at, 4 * fours, 0);
                BNORM_VECTORS_OF(rest, avx512_terms_at(f, s, &p, behind, rows, k * VEC_F, last[k]))
                if (rows & 1)
                    BNORM_VECTORS_OF(u, avx512_sum_of_two(BNORM_TERMS(rows - 1), rest[k]))
                else
                    BNORM_VECTORS_OF(u, avx512_sum_of_one(rest[k]))
                if (rows & 2)
                    BNORM_VECTORS_OF(u, avx512_add_sums(avx512_sum_of_two(BNORM_TERMS(0), BNORM_TERMS(1)), u[k]))
            } else {
                BNORM_VECTORS_OF(u, avx512_no_sums())
            }
            if (fours) {
                BNORM_VECTORS_OF(t, avx512_no_sums())
                avx512_add_fours(f, s, &p, at, fours, avx512_SPAN_VECTORS, t);
                BNORM_VECTORS_OF(u, avx512_add_sums(t[k], u[k]))
            }
#undef BNORM_TERMS
#undef BNORM_VECTORS_OF
            BNORM_UNROLL
            for (size_t half = avx512_SPAN_VECTORS / 2; half > 0; half /= 2) {
                BNORM_UNROLL
                for (size_t k = 0; k < half; k++)
                    u[k] = avx512_add_sums(u[k], u[half + k]);
            }
            avx512_vec_fold_fours(to->a[i], to->b[i], u[0].a, u[0].b);
            if (adds) {
                avx512_add_four(to->all_a[i], to->a[i]);
                avx512_add_four(to->all_b[i], to->b[i]);
            }
            at = avx512_cursor_at(f, s, at, BNORM_GROUP, 0);
            left -= count;
        } while (left);
    }
}

typedef void avx512_planes_form(const struct sum_rows *s, size_t planes, size_t len, int adds,
                         struct avx512_plane_sums *to);
#define BNORM_PLANES_FORM(name, g, type)                                                           \
    static void sum_planes_##name(const struct sum_rows *s, size_t planes, size_t len, int adds,   \
                                  struct avx512_plane_sums *to) {                                         \
        sum_planes((struct avx512_sum_form){g, type, 1}, s, planes, len, adds, to);                       \
    }
BNORM_SUM_FORMS(BNORM_PLANES_FORM)
#define BNORM_PLANES_ENTRY(name, g, type) sum_planes_##name,
static avx512_planes_form *const avx512_planes_forms[] = {BNORM_SUM_FORMS(BNORM_PLANES_ENTRY)};

/* What has no form, a group after the other. */
BNORM_RARE void sum_staged_planes(const struct sum_rows *s, size_t planes, size_t len,
                                  struct avx512_plane_sums *to) {
    float x[BNORM_GROUP_SPAN], g[BNORM_GROUP_SPAN];
    bnorm_map_args args;
    for (size_t i = 0; i < planes; i++) {
        struct avx512_plane_sums one;
        memset(&one, 0, sizeof one);
        for (size_t e = 0, n; e < len; e += n) {
            const struct sum_rows part = avx512_sum_rows_from(s, i, e, 1, i),
                                  t = staged_rows(&part, &args, x, g, part.pivot, 0);
            n = avx512_lesser(len - e, BNORM_GROUP_SPAN);
            load_rows(&part, 1, n, x, g);
            avx512_planes_forms[avx512_form_of(&t)](&t, 1, n, 1, &one);
        }
        memcpy(to->all_a[i], one.all_a[0], sizeof one.all_a[0]);
        memcpy(to->all_b[i], one.all_b[0], sizeof one.all_b[0]);
    }
}

/* In double, of the four sums of each of VEC_F planes. */
BNORM_INLINE void avx512_fold_fours(const float *fours, double *avx512_sums, size_t planes) {
    double all[VEC_F];
    avx512_vec_f v[4];
    vec_load_fours(fours, v);
#define BNORM_FOLDED(half)                                                                         \
    avx512_vec_add_d(avx512_vec_add_d(avx512_vec_add_d(half(v[0]), half(v[2])), avx512_vec_add_d(half(v[1]), half(v[3]))),     \
              avx512_vec_set1_d(0)) /* no -0 */
    vec_store_d(all, BNORM_FOLDED(avx512_vec_low));
    vec_store_d(all + VEC_D, BNORM_FOLDED(avx512_vec_high));
#undef BNORM_FOLDED
    memcpy(avx512_sums, all, planes * sizeof *avx512_sums);
}

/* Both sums of up to VEC_F planes. */
static void add_planes(const struct sum_rows *s, size_t planes, size_t len, double *a, double *b) {
    const int avx512_form = avx512_form_of(s), adds = avx512_form == BNORM_GENERAL || len > BNORM_GROUP_SPAN;
    struct avx512_plane_sums avx512_sums;
    if (adds || planes < VEC_F)
        memset(&avx512_sums, 0, sizeof avx512_sums);
    if (avx512_form == BNORM_GENERAL)
        sum_staged_planes(s, planes, len, &avx512_sums);
    else
        avx512_planes_forms[avx512_form](s, planes, len, adds, &avx512_sums);
    if (!adds) {
        avx512_fold_fours(avx512_sums.a[0], a, planes);
        avx512_fold_fours(avx512_sums.b[0], b, planes);
        return;
    }
    for (size_t i = 0; i < planes; i++) {
        const double *const p = avx512_sums.all_a[i], *const q = avx512_sums.all_b[i];
        a[i] = (p[0] + p[2]) + (p[1] + p[3]);
        b[i] = (q[0] + q[2]) + (q[1] + q[3]);
    }
}

/* ---------------------------------------------------------------------------------------------- */
/* In double */

/* Sums of x, or of g, in a, and of (x - center)^2, or g*(x - center), in b; either may be absent.
 * Chains are added up in order. */
BNORM_RARE void avx512_double_channels(const struct avx512_sum_block *k, const double *center, double *a,
                                double *b) {
    enum { LANES = 16 };
    float x[LANES], g[LANES];
    const size_t lanes = k->c * k->chains, chains = avx512_chain_count(k);
    if (a)
        avx512_zero_lanes(a, lanes);
    if (b)
        avx512_zero_lanes(b, lanes);
    for (size_t j = 0; j < chains; j++) {
        const struct chain_rows r = avx512_chain_at(k, chains, j);
        for (size_t row = 0; row < r.rows + (r.tail > 0); row++) {
            const size_t len = row < r.rows ? r.len : r.tail;
            for (size_t i = 0; i < len; i += LANES) {
                const size_t n = avx512_lesser(LANES, len - i), at = j * k->c + i;
                const struct sum_rows here = avx512_sum_rows_from(&r.s, row, i, 1, r.s.spread ? 0 : i);
                load_rows(&here, 1, n, x, g);
                for (size_t q = 0; q < n; q++) {
                    const double value = (double)x[q], of_g = k->s.a ? (double)g[q] : 0;
                    const double d = b ? value - center[(at + q) % k->c] : 0;
                    if (a)
                        a[at + q] += k->s.a ? of_g : value;
                    if (b)
                        b[at + q] = bnorm_fma(k->s.a ? of_g : d, d, b[at + q]);
                }
            }
        }
    }
    if (a)
        avx512_fold_chains(a, k->c, k->chains);
    if (b)
        avx512_fold_chains(b, k->c, k->chains);
}

/* Sums in float are accurate within these limits of the second one. */
#define BNORM_LEAST_SUM 0x1p-90

/* ---------------------------------------------------------------------------------------------- */
/* Statistics */

/* Upper half of n vectors onto lower half. */
#define BNORM_FOLD(v, n)                                                                           \
    for (size_t j = 0; j < (n) / 2; j++)                                                           \
        (v)[j] = avx512_vec_add((v)[j], (v)[(n) / 2 + j]);

/* Pivots of VEC_F channels from `samples` values each, folded to at most 4: their mean, rounded to
 * a unit of about an eighth of their spread. So values of a grid have differences on it, with few
 * digits, whose sums are exact. */
BNORM_INLINE avx512_vec_f avx512_pivots_of(avx512_vec_f *v, size_t samples) {
    avx512_vec_f least = v[0], most = v[0];
    if (samples > 1) {
        least = avx512_vec_min(v[1], v[0]);
        most = avx512_vec_max(v[1], v[0]);
    }
    if (samples > 2) {
        least = avx512_vec_min(avx512_vec_min(v[3], v[2]), least);
        most = avx512_vec_max(avx512_vec_max(v[3], v[2]), most);
        BNORM_UNROLL
        BNORM_FOLD(v, 4)
    }
    if (samples > 1)
        v[0] = avx512_vec_add(v[0], v[1]);
    /* 3*2^22 units: the last digit of a sum with it is a unit. */
    const avx512_vec_f unit = avx512_vec_power_of_2(avx512_vec_sub(most, least)),
                magic = avx512_vec_mul(unit, avx512_vec_set1(0x3p17f));
    return avx512_vec_sub(avx512_vec_fma(v[0], avx512_vec_set1(1 / (float)samples), magic), magic);
}

/* n <= 4 elements. */
BNORM_INLINE avx512_four_floats avx512_load_four(const void *p, bnorm_dtype type, size_t n) {
    avx512_four_floats four;
    float lanes[VEC_F];
    avx512_vec_store(lanes, avx512_widened_lanes(p, type, n));
    memcpy(&four, lanes, sizeof four);
    return four;
}

/* Pivots of channels [0, c) of rows; writes up to a vector more. */
BNORM_INLINE void sample_rows(const struct sum_rows *s, size_t count, size_t c, float *pivot) {
    const size_t samples = bnorm_samples(count);
    const int shift = __builtin_ctzll(samples);
    const char *row[BNORM_SAMPLES];
    avx512_vec_f v[BNORM_SAMPLES];
    size_t i = 0;
    for (size_t j = 0; j < samples; j++)
        row[j] = s->x + (j * count >> shift) * s->x_step;
    for (; s->type == BNORM_F32 && samples == BNORM_SAMPLES && i + VEC_F <= c; i += VEC_F) {
        BNORM_UNROLL
        for (size_t j = 0; j < BNORM_SAMPLES / 2; j++)
            v[j] = avx512_vec_add(avx512_vec_load((const float *)(const void *)row[j] + i),
                           avx512_vec_load((const float *)(const void *)row[BNORM_SAMPLES / 2 + j] + i));
        BNORM_UNROLL
        BNORM_FOLD(v, BNORM_SAMPLES / 2)
        avx512_vec_store(pivot + i, avx512_pivots_of(v, BNORM_SAMPLES));
    }
    for (; i < c; i += VEC_F) {
        for (size_t j = 0; j < samples; j++)
            v[j] = avx512_widened_lanes(avx512_element_at(row[j], s->type, i), s->type, avx512_lesser(VEC_F, c - i));
        for (size_t n = samples; n > 4; n /= 2)
            BNORM_FOLD(v, n)
        avx512_vec_store(pivot + i, avx512_pivots_of(v, samples));
    }
}

/* Upper half of n places onto lower half, down to one. */
BNORM_INLINE avx512_four_floats avx512_fold_places(avx512_four_floats *place, size_t n) {
    BNORM_UNROLL
    for (size_t half = BNORM_PLACES / 2; half > 0; half /= 2)
        if (n > half) {
            BNORM_UNROLL
            for (size_t q = 0; q < half; q++)
                place[q] += place[half + q];
        }
    return place[0];
}

/* The sum of a plane's places, four lanes; at[q] is the offset of a place. */
BNORM_INLINE avx512_four_floats avx512_sample_plane(const char *plane, bnorm_dtype type, size_t places,
                                      const size_t *at, size_t avx512_run) {
    avx512_four_floats place[BNORM_PLACES];
    if (type == BNORM_BF16 && avx512_run == 4) {
        for (size_t q = 0; q < places; q++)
            place[q] = vec_four_bf16((const void *)(plane + at[q]));
    } else if (type == BNORM_F16 && avx512_run == 4) {
        for (size_t q = 0; q < places; q++)
            place[q] = vec_four_f16((const void *)(plane + at[q]));
    } else {
        for (size_t q = 0; q < places; q++)
            place[q] = avx512_load_four(plane + at[q], type, avx512_run);
    }
    return avx512_fold_places(place, places);
}
/* Of floats, and a number of places that is a constant. */
BNORM_INLINE avx512_four_floats avx512_sample_floats(const char *plane, size_t places, const size_t *at) {
    avx512_four_floats place[BNORM_PLACES];
    BNORM_UNROLL
    for (size_t q = 0; q < places; q++)
        place[q] = avx512_vec_four((const void *)(plane + at[q]));
    return avx512_fold_places(place, places);
}

/* Those of planes, up to VEC_F of them: from places of four neighbours, spread over the plane. */
BNORM_INLINE void sample_planes(const struct sum_rows *s, size_t planes, size_t len, float *pivot) {
    const size_t places = bnorm_places(len), avx512_run = len < 4 ? bnorm_samples(len) : 4;
    const int shift = __builtin_ctzll(places);
    _Alignas(64) float fours[VEC_F][4] = {{0}};
    size_t at[BNORM_PLACES];
    avx512_vec_f v[4];
    for (size_t q = 0; q < places; q++)
        at[q] = (q * len >> shift) * avx512_size_of(s->type);
    for (size_t i = 0; i < planes; i++) {
        const char *const plane = s->x + i * s->x_step;
        const avx512_four_floats sum = s->type != BNORM_F32 || places < 4
                                    ? avx512_sample_plane(plane, s->type, places, at, avx512_run)
                                : places == 4 ? avx512_sample_floats(plane, 4, at)
                                : places == 8 ? avx512_sample_floats(plane, 8, at)
                                              : avx512_sample_floats(plane, 16, at);
        memcpy(fours[i], &sum, sizeof fours[i]);
    }
    vec_load_fours(fours[0], v);
    avx512_vec_store(pivot, avx512_pivots_of(v, places * avx512_run));
}

/* Pivots of backward, of n channels whose first values are x: their centers, rounded to a unit of
 * about 2^-16/invstd. */
BNORM_INLINE avx512_vec_f avx512_rounded_centers(avx512_vec_f x, const struct sum_rows *s, size_t i, size_t n) {
    const avx512_vec_f center = avx512_load_lanes(s->center + i, n), least = avx512_vec_set1(0x1p-90f),
                most = avx512_vec_set1(0x1p126f),
                inverse = avx512_vec_min(avx512_vec_max(avx512_load_lanes(s->invstd + i, n), least), most),
                unit = avx512_vec_power_of_2(avx512_vec_div(avx512_vec_set1(1), inverse)),
                magic = avx512_vec_mul(unit, avx512_vec_set1(0x3p6f)),
                rounded = avx512_vec_sub(avx512_vec_add(center, magic), magic);
    return avx512_vec_if_le(avx512_vec_set1(0), avx512_vec_minus_abs(avx512_vec_sub(x, center)), center, rounded);
}

/* Of rows of c lanes, of which `valid` have a center; whole vectors are written. */
BNORM_INLINE void avx512_round_centers(const struct sum_rows *s, size_t c, size_t valid, float *pivot) {
    size_t i = 0;
    for (; s->type == BNORM_F32 && i + VEC_F <= valid; i += VEC_F)
        avx512_vec_store(pivot + i,
                  avx512_rounded_centers(avx512_vec_load((const float *)(const void *)s->x + i), s, i, VEC_F));
    for (; i < c; i += VEC_F) {
        const size_t n = avx512_lanes_before(valid, i);
        const avx512_vec_f x = avx512_widened_lanes(avx512_element_at(s->x, s->type, i), s->type, n);
        avx512_vec_store(pivot + i, avx512_rounded_centers(x, s, i, n));
    }
}

BNORM_INLINE void avx512_round_plane_centers(const struct sum_rows *s, size_t planes, float *pivot) {
    memset(pivot, 0, VEC_F * sizeof *pivot);
    for (size_t i = 0; i < planes; i++) {
        float lanes[VEC_F];
        if (s->type == BNORM_F32)
            memcpy(lanes, s->x + i * s->x_step, sizeof *lanes);
        else
            avx512_vec_store(lanes, avx512_half_lanes(s->x + i * s->x_step, s->type, 1));
        pivot[i] = lanes[0];
    }
    avx512_vec_store(pivot, avx512_rounded_centers(avx512_vec_load(pivot), s, 0, planes));
}

/* Room for the lanes that are done again together: BNORM_MAX_LANES at most. */
#define BNORM_AGAIN (BNORM_MAX_LANES + BNORM_PAD)

/* Not 0 where a channel has a value that is not its pivot. */
static void avx512_sum_distances(const struct avx512_sum_block *k, double *b) {
    const size_t chains = avx512_chain_count(k);
    avx512_zero_lanes(b, k->c * k->chains);
    for (size_t j = 0; j < chains; j++) {
        const struct chain_rows r = avx512_chain_at(k, chains, j);
        for (size_t i = 0; i < r.len; i += VEC_F) {
            const size_t p = r.s.spread ? 0 : i;
            struct avx512_sums t = avx512_no_sums();
            for (size_t row = 0; row < r.rows + (r.tail > i); row++) {
                const size_t n = avx512_lesser(VEC_F, (row < r.rows ? r.len : r.tail) - i);
                const avx512_vec_f x = avx512_widened_lanes(avx512_element_at(r.s.x + row * r.s.x_step, r.s.type, i),
                                              r.s.type, n),
                            pivot = avx512_parameter_lanes(r.s.pivot + p, r.s.spread, 0, n);
                t.b = avx512_vec_add(t.b, avx512_vec_minus_abs(avx512_first_lanes(avx512_vec_sub(x, pivot), n)));
            }
            avx512_add_group(t, 1, b + j * k->c + i, b + j * k->c + i);
        }
    }
    avx512_fold_chains(b, k->c, k->chains);
}

static float avx512_power_of_2(float v) {
    uint32_t bits;
    memcpy(&bits, &v, sizeof bits);
    bits &= 0x7f800000;
    memcpy(&v, &bits, sizeof v);
    return v;
}

/* A pivot from the sums about another one: the mean, rounded to an eighth of the deviation where
 * these say enough of it. 0 where they say nothing. */
static float avx512_better_pivot(double n, float pivot, double a, double b) {
    const float mean = (float)bnorm_fma(a, 1 / n, (double)pivot);
    const double squares = bnorm_fma(a * (-1 / n), a, b);
    if (!(mean >= -FLT_MAX && mean <= FLT_MAX))
        return 0;
    if (!(squares > b * 0x1p-10 && b <= DBL_MAX))
        return mean;
    const float magic = avx512_power_of_2((float)sqrt(squares * (1 / n))) * 0x3p19f, sum = mean + magic;
    return sum - magic;
}

/* Both sums of the channels of rows, or of a plane. */
BNORM_INLINE void avx512_sum_block(const struct avx512_sum_block *k, double *a, double *b) {
    if (k->s.spread)
        add_planes(&k->s, 1, k->count, a, b);
    else
        avx512_sum_channels(k, a, b);
}

/* Lanes whose pivot is more than a deviation off the mean, or whose squares leave the range of a
 * float: one bit each. */
BNORM_INLINE unsigned avx512_inaccurate_moments(double n, avx512_vec_d a, avx512_vec_d b) {
    const avx512_vec_d half = avx512_vec_mul_d(b, avx512_vec_set1_d(0.5)),
                margin = avx512_vec_fma_d(avx512_vec_mul_d(a, avx512_vec_set1_d(-1 / n)), a, half);
    return avx512_vec_outside_d(margin, 0, DBL_MAX) | avx512_vec_outside_d(b, BNORM_LEAST_SUM, DBL_MAX);
}

/* Lanes whose second sum in float is out of range, unless all g are 0, or whose first one is. */
BNORM_INLINE unsigned avx512_inaccurate_sums(avx512_vec_d a, avx512_vec_d b) {
    const avx512_vec_d zero = avx512_vec_set1_d(0), one = avx512_vec_set1_d(1);
    unsigned bits =
        avx512_vec_outside_d(b, BNORM_LEAST_SUM, DBL_MAX) & avx512_vec_outside_d(b, -DBL_MAX, -BNORM_LEAST_SUM);
    if (bits)
        bits &= avx512_vec_outside_d(avx512_vec_if_eq_d(b, zero, avx512_vec_if_eq_d(a, zero, zero, one), one), 0, 0);
    return bits | avx512_vec_outside_d(a, -DBL_MAX, DBL_MAX);
}

/* Lanes of the first `lanes` whose sums, of n values, are no good. */
BNORM_INLINE unsigned avx512_inaccurate(int backward, double n, avx512_vec_d a, avx512_vec_d b, size_t lanes) {
    return (backward ? avx512_inaccurate_sums(a, b) : avx512_inaccurate_moments(n, a, b)) & ((1u << lanes) - 1);
}

/* What is wanted of channel i, made of its sums in double. */
BNORM_INLINE void avx512_store_again(const double *a, const double *b, size_t i, double *first,
                              double *second) {
    if (first)
        vec_store_d_n(first + i, avx512_vec_canonical_d(avx512_vec_set1_d(a[i])), 1);
    vec_store_d_n(second + i, avx512_vec_canonical_d(avx512_vec_set1_d(b[i])), 1);
}

/* Does those of the first `valid` channels again whose sums a and b about their pivots are
 * inaccurate: about another pivot, and if they still are, in double about the mean itself. Where all
 * values are the pivot, nothing is inaccurate. */
BNORM_RARE void avx512_moments_again(struct avx512_sum_block k, size_t valid, const double *a, const double *b,
                              double *sum, double *m2) {
    float other[BNORM_AGAIN];
    double again_a[BNORM_AGAIN], again_b[BNORM_AGAIN];
    const double n = (double)k.count;
    unsigned char wanted[BNORM_AGAIN];
    size_t count = 0;
    int same = 0;
    for (size_t i = 0; i < valid; i++)
        same |= b[i] == 0;
    if (same)
        avx512_sum_distances(&k, again_b);
    for (size_t i = 0; i < k.c; i++) {
        const float pivot = k.s.pivot[i];
        wanted[i] = i < valid && avx512_inaccurate(0, n, avx512_vec_set1_d(a[i]), avx512_vec_set1_d(b[i]), 1) &&
                    !(b[i] == 0 && again_b[i] == 0);
        other[i] = wanted[i] ? avx512_better_pivot(n, pivot, a[i], b[i]) : pivot;
        count += wanted[i];
    }
    if (!count)
        return;
    avx512_repeat_lanes(other, k.c, k.s.spread ? 1 : k.chains);
    k.s.pivot = other;
    avx512_sum_block(&k, again_a, again_b);
    for (size_t i = 0; i < k.c; i++) {
        const double squares = bnorm_fma(again_a[i] * (-1 / n), again_a[i], again_b[i]);
        if (!(wanted[i] && again_b[i] >= BNORM_LEAST_SUM && again_b[i] <= DBL_MAX))
            continue;
        sum[i] = bnorm_fma(n, (double)other[i], again_a[i]);
        m2[i] = squares < 0 ? 0 : squares;
        wanted[i] = 0;
        count--;
    }
    if (!count)
        return;
    avx512_double_channels(&k, NULL, again_a, NULL);
    for (size_t i = 0; i < k.c; i++)
        if (wanted[i])
            avx512_store_again(again_a, again_a, i, sum, sum);
    for (size_t i = 0; i < k.c; i++)
        again_a[i] /= n;
    avx512_double_channels(&k, again_a, NULL, again_b);
    for (size_t i = 0; i < k.c; i++)
        if (wanted[i])
            avx512_store_again(again_b, again_b, i, NULL, m2);
}

/* The same of backward: in double. A first sum that is finite stays, so that it does not depend on
 * x. */
BNORM_RARE void avx512_sums_again(const struct avx512_sum_block *k, size_t valid, const double *a,
                           const double *b, double *sum_g, double *sum_gx) {
    double again_a[BNORM_AGAIN], again_b[BNORM_AGAIN], center[BNORM_MAX_LANES] = {0};
    for (size_t i = 0; i < valid; i++)
        center[i] = (double)k->s.center[i];
    avx512_double_channels(k, center, again_a, again_b);
    for (size_t i = 0; i < valid; i++)
        if (avx512_inaccurate(1, 1, avx512_vec_set1_d(a[i]), avx512_vec_set1_d(b[i]), 1))
            avx512_store_again(again_a, again_b, i, fabs(a[i]) <= DBL_MAX ? NULL : sum_g, sum_gx);
}

/* ---------------------------------------------------------------------------------------------- */
/* From the sums about pivots to what is wanted of the first `valid` channels: sum(x) and M2, or both
 * sums about the center */

/* Those of `lanes` channels; which are inaccurate. b becomes about the center. */
BNORM_INLINE unsigned avx512_store_channels(int backward, double n, const float *pivot,
                                     const float *center, size_t lanes, const double *a, double *b,
                                     double *first, double *second) {
    const avx512_vec_d of_a = vec_load_d(a), of_pivot = avx512_vec_widen(pivot), zero = avx512_vec_set1_d(0);
    avx512_vec_d of_b = vec_load_d(b), total = of_a, result;
    if (backward) {
        const avx512_vec_d off = avx512_vec_sub_d(of_pivot, avx512_widen_lanes(center, lanes));
        result = of_b = avx512_vec_fma_d(off, of_a, of_b);
        vec_store_d(b, of_b);
    } else {
        const avx512_vec_d m2 = avx512_vec_fma_d(avx512_vec_mul_d(of_a, avx512_vec_set1_d(-1 / n)), of_a, of_b);
        total = avx512_vec_fma_d(avx512_vec_set1_d(n), of_pivot, of_a);
        result = avx512_vec_if_lt_d(m2, zero, zero, m2);
    }
    store_d_lanes(first, avx512_vec_canonical_d(total), lanes);
    store_d_lanes(second, avx512_vec_canonical_d(result), lanes);
    return avx512_inaccurate(backward, n, of_a, of_b, lanes);
}

/* Whether any is inaccurate. */
BNORM_INLINE unsigned avx512_store_block(int backward, const struct avx512_sum_block *k, size_t valid,
                                  const double *a, double *b, double *first, double *second) {
    const float *const pivot = k->s.pivot, *const center = k->s.center;
    const double n = (double)k->count;
    unsigned any = 0;
    size_t i = 0;
#define BNORM_CALL(lanes)                                                                          \
    any |= avx512_store_channels(backward, n, pivot + i, backward ? center + i : NULL, lanes, a + i,      \
                          b + i, first + i, second + i)
    for (; i + VEC_D <= valid; i += VEC_D)
        BNORM_CALL(VEC_D);
    if (i < valid)
        BNORM_CALL(valid - i);
#undef BNORM_CALL
    return any;
}

/* Channels that are done again together, from the i-th on: a plane; else vectors of channels, or all
 * that share rows. */
BNORM_INLINE struct avx512_sum_block avx512_slice_of(const struct avx512_sum_block *k, size_t i) {
    struct avx512_sum_block slice = *k;
    if (k->s.spread) {
        slice.s = avx512_sum_rows_from(&k->s, i, 0, 1, i);
        slice.s.x_step = slice.s.dy_step = slice.s.argument_step = avx512_size_of(k->s.type);
        slice.s.bit_step = 1;
        slice.c = 1;
        slice.chains = BNORM_SPAN_LANES;
    } else if (k->chains == 1) {
        slice.s = avx512_sum_rows_from(&k->s, 0, i, 1, i);
        slice.c = avx512_lesser(VEC_F, k->c - i);
    }
    return slice;
}

/* There is room for a vector behind a and b. */
static void avx512_finish_block(const struct avx512_sum_block *k, size_t valid, const double *a, double *b,
                         double *first, double *second) {
    const int backward = k->s.a != NULL;
    if (!(backward ? avx512_store_block(1, k, valid, a, b, first, second)
                   : avx512_store_block(0, k, valid, a, b, first, second)))
        return;
    for (size_t i = 0, n; i < valid; i += n) {
        const struct avx512_sum_block slice = avx512_slice_of(k, i);
        unsigned any = 0;
        n = avx512_lesser(slice.c, valid - i);
        for (size_t j = i; j < i + n; j += VEC_D)
            any |= avx512_inaccurate(backward, (double)k->count, vec_load_d(a + j), vec_load_d(b + j),
                              avx512_lesser(VEC_D, i + n - j));
        if (any && backward)
            avx512_sums_again(&slice, n, a + i, b + i, first + i, second + i);
        else if (any)
            avx512_moments_again(slice, n, a + i, b + i, first + i, second + i);
    }
}

/* Parameters of `chains` rows of c channels, those behind the first `valid` 0. */
BNORM_INLINE const float *avx512_repeat(float *pattern, const float *p, size_t c, size_t valid,
                                 size_t chains) {
    for (size_t j = 0; j < chains; j++) {
        memcpy(pattern + j * c, p, valid * sizeof *p);
        if (valid < c)
            memset(pattern + j * c + valid, 0, (c - valid) * sizeof *p);
    }
    return pattern;
}

static void avx512_sum_tile(const struct avx512_sum_block *k, size_t valid, double *a, double *b, double *first,
                     double *second) {
    avx512_sum_channels(k, a, b);
    avx512_finish_block(k, valid, a, b, first, second);
}

/* Where v is computed of several rows in one, or beside padding. Not inlined: what it takes of stack
 * is for few channels. */
BNORM_RARE void avx512_sum_repeated(const struct avx512_sum_block *k, size_t valid, double *a, double *b,
                             double *first, double *second) {
    float center[BNORM_MAX_LANES], scale[BNORM_MAX_LANES], shift[BNORM_MAX_LANES];
    struct avx512_sum_block repeated = *k;
    repeated.s.center = avx512_repeat(center, k->s.center, k->c, valid, k->chains);
    repeated.s.scale = avx512_repeat(scale, k->s.scale, k->c, valid, k->chains);
    repeated.s.shift = avx512_repeat(shift, k->s.shift, k->c, valid, k->chains);
    avx512_sum_tile(&repeated, valid, a, b, first, second);
}

/* A block of c <= BNORM_TILE channels. */
static void avx512_reduce_tile(const struct sum_rows *s, size_t count, size_t c, size_t valid,
                        size_t chains, double *first, double *second) {
    double a[BNORM_TILE + BNORM_PAD], b[BNORM_TILE + BNORM_PAD];
    float pivot[BNORM_TILE + BNORM_PAD];
    struct avx512_sum_block k = {*s, count, c, chains};
    if (s->a)
        avx512_round_centers(s, c, valid, pivot);
    else
        sample_rows(s, count, c, pivot);
    avx512_repeat_lanes(pivot, c, chains);
    k.s.pivot = pivot;
    if (s->a && avx512_reads_x(s->a->pre) && (chains > 1 || valid < c))
        avx512_sum_repeated(&k, valid, a, b, first, second);
    else
        avx512_sum_tile(&k, valid, a, b, first, second);
}

/* Of c lanes in memory: padding of rows without gaps is added up too, for nothing. */
BNORM_INLINE void reduce_rows(const struct sum_rows *s, size_t count, size_t c, size_t valid,
                              size_t chains, double *first, double *second) {
    for (size_t i = 0; i < valid; i += BNORM_TILE) {
        const struct sum_rows tile = avx512_sum_rows_from(s, 0, i, 1, i);
        avx512_reduce_tile(&tile, count, avx512_lesser(BNORM_TILE, c - i), avx512_lesser(BNORM_TILE, valid - i), chains,
                    first + i, second + i);
    }
    avx512_vec_leave();
}

static void avx512_reduce_span(const struct sum_rows *all, size_t planes, size_t len, double *first,
                        double *second) {
    for (size_t i = 0; i < planes; i += VEC_F) {
        double a[2 * VEC_F] = {0}, b[2 * VEC_F] = {0};
        float pivot[VEC_F];
        const size_t n = avx512_lesser(VEC_F, planes - i);
        struct avx512_sum_block k = {avx512_sum_rows_from(all, i, 0, 1, i), len, n, 1};
        if (all->a)
            avx512_round_plane_centers(&k.s, n, pivot);
        else
            sample_planes(&k.s, n, len, pivot);
        k.s.pivot = pivot;
        add_planes(&k.s, n, len, a, b);
        avx512_finish_block(&k, n, a, b, first + i, second + i);
    }
    avx512_vec_leave();
}

/* ---------------------------------------------------------------------------------------------- */
/* The kernels */

BNORM_INLINE struct sum_rows block_rows(const bnorm_block_args *a, int planes) {
    return (struct sum_rows){.type = a->type,
                             .spread = planes,
                             .fetch = (a->hints & BNORM_FETCH_IN) != 0,
                             .x = a->x,
                             .x_step = a->stride * avx512_size_of(a->type)};
}

static void avx512_moments_rows(const bnorm_block_args *a, size_t chains, double *sum, double *m2) {
    const struct sum_rows s = block_rows(a, 0);
    reduce_rows(&s, a->runs, a->stride == a->len ? a->len : a->valid, a->valid, chains, sum, m2);
}

static void avx512_moments_span(const bnorm_block_args *a, double *sum, double *m2) {
    const struct sum_rows s = block_rows(a, 1);
    avx512_reduce_span(&s, a->runs, a->len, sum, m2);
}

/* Where backward reads; strides are those of rows, or of planes. */
BNORM_INLINE struct sum_rows avx512_sum_rows_at(const bnorm_map_args *a, int planes) {
    const size_t size = avx512_size_of(a->x.type);
    return (struct sum_rows){
        .a = a,
        .type = a->x.type,
        .spread = planes,
        .fetch = (a->hints & BNORM_FETCH_IN) != 0,
        .x = a->x.data,
        .dy = a->dy.data,
        .argument = a->argument.data,
        .x_step = size * (planes ? a->x.group_stride : a->x.row_stride),
        .dy_step = size * (planes ? a->dy.group_stride : a->dy.row_stride),
        .argument_step = size * (planes ? a->argument.group_stride : a->argument.row_stride),
        .bit = a->mask.at,
        .bit_step = planes ? a->mask.group_stride : a->mask.row_stride,
        .center = a->center,
        .scale = a->scale,
        .shift = a->shift,
        .invstd = a->invstd,
    };
}

static void avx512_sums_rows(const bnorm_map_args *a, size_t chains, double *sum_g, double *sum_gx) {
    const int gaps = a->x.row_stride != a->lanes || a->dy.row_stride != a->lanes ||
                     (avx512_reads_extra(a->pre) && a->argument.row_stride != a->lanes);
    const struct sum_rows s = avx512_sum_rows_at(a, 0);
    reduce_rows(&s, a->rows, gaps ? a->valid : a->lanes, a->valid, chains, sum_g, sum_gx);
}

static void avx512_sums_span(const bnorm_map_args *a, double *sum_g, double *sum_gx) {
    const struct sum_rows s = avx512_sum_rows_at(a, 1);
    avx512_reduce_span(&s, a->groups, a->lanes, sum_g, sum_gx);
}
/* SPDX-License-Identifier: MIT
 *
 * Rows that are images of their own: whole subtrees of up to BNORM_LEAF of them. */

/* How the two numbers per channel of neighbours become one: as statistics, or as two sums. */
enum avx512_tree { avx512_BNORM_MERGED, avx512_BNORM_ADDED };

/* Of some rows: sum and M2, or the sums of g and g*(x - center). */
struct avx512_leaf {
    avx512_vec_d a, b;
};

/* Two neighbours of `rows` rows each. */
BNORM_INLINE struct avx512_leaf avx512_join_leaves(enum avx512_tree avx512_tree, struct avx512_leaf left, struct avx512_leaf right,
                                     size_t rows) {
    avx512_vec_d b = avx512_vec_add_d(left.b, right.b);
    if (avx512_tree == avx512_BNORM_MERGED) {
        const avx512_vec_d d = avx512_vec_sub_d(right.a, left.a);
        b = avx512_vec_fma_d(avx512_vec_mul_d(d, d), avx512_vec_set1_d(0.5 / (double)rows), b);
    }
    return (struct avx512_leaf){avx512_vec_add_d(left.a, right.a), b};
}

/* Rows of floats; g and center are for sums only. */
struct leaf_rows {
    const float *x, *g, *center;
    size_t x_stride, g_stride;
};

BNORM_INLINE struct leaf_rows avx512_leaf_rows_from(enum avx512_tree avx512_tree, struct leaf_rows r, size_t row,
                                             size_t i) {
    r.x += row * r.x_stride + i;
    if (avx512_tree == avx512_BNORM_ADDED) {
        r.g += row * r.g_stride + i;
        r.center += i;
    }
    return r;
}

BNORM_INLINE struct avx512_leaf avx512_leaf_1(enum avx512_tree avx512_tree, struct leaf_rows r, size_t row, size_t n) {
    const avx512_vec_d x = avx512_widen_lanes(r.x + row * r.x_stride, n);
    if (avx512_tree == avx512_BNORM_MERGED)
        return (struct avx512_leaf){x, avx512_vec_set1_d(0)};
    /* 0 added: a product that compilers can't make one operation with what it is added to. */
    const avx512_vec_d g = avx512_widen_lanes(r.g + row * r.g_stride, n),
                d = avx512_vec_sub_d(x, avx512_widen_lanes(r.center, n));
    return (struct avx512_leaf){g, avx512_vec_fma_d(g, d, avx512_vec_set1_d(0))};
}

BNORM_INLINE struct avx512_leaf avx512_leaf_2(enum avx512_tree avx512_tree, struct leaf_rows r, size_t row, size_t n) {
    return avx512_join_leaves(avx512_tree, avx512_leaf_1(avx512_tree, r, row, n), avx512_leaf_1(avx512_tree, r, row + 1, n), 1);
}

BNORM_INLINE struct avx512_leaf avx512_leaf_4(enum avx512_tree avx512_tree, struct leaf_rows r, size_t row, size_t n) {
    return avx512_join_leaves(avx512_tree, avx512_leaf_2(avx512_tree, r, row, n), avx512_leaf_2(avx512_tree, r, row + 2, n), 2);
}

/* Rows of the smallest subtrees, but for those that are smaller altogether. */
#define BNORM_TWIG 8

BNORM_INLINE struct avx512_leaf avx512_leaf_of(enum avx512_tree avx512_tree, struct leaf_rows r, size_t rows, size_t n) {
    switch (rows) {
    case 1:
        return avx512_leaf_1(avx512_tree, r, 0, n);
    case 2:
        return avx512_leaf_2(avx512_tree, r, 0, n);
    case 4:
        return avx512_leaf_4(avx512_tree, r, 0, n);
    default:
        return avx512_join_leaves(avx512_tree, avx512_leaf_4(avx512_tree, r, 0, n), avx512_leaf_4(avx512_tree, r, 4, n), 4);
    }
}

/* Lanes that go through their rows side by side: long pieces of each row are read. */
#define BNORM_LEAF_TILE 64

/* Two numbers per lane. */
struct avx512_leaf_lanes {
    double a[BNORM_LEAF_TILE + VEC_D], b[BNORM_LEAF_TILE + VEC_D];
};

BNORM_INLINE struct avx512_leaf avx512_load_leaf(const struct avx512_leaf_lanes *lanes, size_t i) {
    return (struct avx512_leaf){vec_load_d(lanes->a + i), vec_load_d(lanes->b + i)};
}

BNORM_INLINE void avx512_store_leaf(struct avx512_leaf_lanes *lanes, size_t i, struct avx512_leaf avx512_leaf) {
    vec_store_d(lanes->a + i, avx512_leaf.a);
    vec_store_d(lanes->b + i, avx512_leaf.b);
}

/* Rows as floats: where they are, or all but the plainest by way of L1. */
struct avx512_leaf_floats {
    float x[BNORM_TWIG * BNORM_LEAF_TILE + VEC_F], g[BNORM_TWIG * BNORM_LEAF_TILE];
};
BNORM_INLINE struct leaf_rows avx512_leaf_rows_at(const struct sum_rows *s, size_t row, size_t rows,
                                           size_t c, struct avx512_leaf_floats *to) {
    const struct sum_rows from = avx512_sum_rows_from(s, row, 0, 1, 0);
    const size_t n = avx512_whole_vectors(c);
    if (s->type == BNORM_F32 && (!s->a || s->a->pre == BNORM_PRE_NONE))
        return (struct leaf_rows){(const void *)from.x, (const void *)from.dy, s->center,
                                  s->x_step / sizeof *to->x, s->dy_step / sizeof *to->g};
    if (!s->a) {
        widen_rows(to->x, from.x, s->type, s->x_step / avx512_size_of(s->type), rows, c);
        return (struct leaf_rows){to->x, NULL, NULL, c, 0};
    }
    load_rows(&from, rows, c, to->x, to->g);
    return (struct leaf_rows){to->x, to->g, s->center, n, n};
}

/* c <= BNORM_LEAF_TILE lanes of `rows` rows. Subtrees wait for their neighbours. */
BNORM_INLINE void avx512_leaf_tile(enum avx512_tree avx512_tree, const struct sum_rows *s, size_t rows, size_t c,
                            struct avx512_leaf_lanes *all) {
    struct avx512_leaf_floats floats;
    struct avx512_leaf_lanes waiting[3];
    const size_t step = avx512_lesser(rows, BNORM_TWIG), twigs = rows / step;
    size_t depth = 0;
    for (size_t q = 0; q < twigs; q++) {
        const struct leaf_rows r = avx512_leaf_rows_at(s, q * step, step, c, &floats);
        size_t left = depth;
        for (size_t i = 0; i < c; i += VEC_D) {
            const struct leaf_rows here = avx512_leaf_rows_from(avx512_tree, r, 0, i);
            struct avx512_leaf avx512_leaf = avx512_leaf_of(avx512_tree, here, step, avx512_lesser(VEC_D, c - i));
            left = depth;
            for (size_t joined = 1; q & joined; joined *= 2)
                avx512_leaf = avx512_join_leaves(avx512_tree, avx512_load_leaf(&waiting[--left], i), avx512_leaf, step * joined);
            avx512_store_leaf(q + 1 == twigs ? all : &waiting[left], i, avx512_leaf);
        }
        depth = left + 1;
    }
}

BNORM_INLINE void avx512_reduce_leaves(enum avx512_tree avx512_tree, const struct sum_rows *s, size_t rows, size_t c,
                                double *a, double *b) {
    struct avx512_leaf_lanes all;
    for (size_t i = 0; i < c; i += BNORM_LEAF_TILE) {
        const size_t n = avx512_lesser(BNORM_LEAF_TILE, c - i);
        const struct sum_rows tile = avx512_sum_rows_from(s, 0, i, 1, i);
        avx512_leaf_tile(avx512_tree, &tile, rows, n, &all);
        for (size_t k = 0; k < n; k += VEC_D) {
            struct avx512_leaf avx512_leaf = avx512_load_leaf(&all, k);
            if (avx512_tree == avx512_BNORM_MERGED) /* an infinity leaves no squares either */
                avx512_leaf.b = avx512_vec_add_d(avx512_leaf.b, avx512_vec_sub_d(avx512_leaf.a, avx512_leaf.a));
            store_d_lanes(a + i + k, avx512_vec_canonical_d(avx512_leaf.a), avx512_lesser(VEC_D, n - k));
            store_d_lanes(b + i + k, avx512_vec_canonical_d(avx512_leaf.b), avx512_lesser(VEC_D, n - k));
        }
    }
    avx512_vec_leave();
}

static void avx512_moments_tree(const bnorm_block_args *a, double *sum, double *m2) {
    const struct sum_rows s = block_rows(a, 0);
    avx512_reduce_leaves(avx512_BNORM_MERGED, &s, a->runs, a->valid, sum, m2);
}

static void avx512_sums_tree(const bnorm_map_args *a, double *sum_g, double *sum_gx) {
    const struct sum_rows s = avx512_sum_rows_at(a, 0);
    avx512_reduce_leaves(avx512_BNORM_ADDED, &s, a->rows, a->valid, sum_g, sum_gx);
}
/* SPDX-License-Identifier: MIT
 *
 * Elementwise work: y of forward, dx and dresidual of backward. A run is a row, a plane, or rows
 * that follow one another without a gap. It is taken in groups of BNORM_VECTORS vectors, which are
 * loaded, computed and stored together, then in single vectors; types, activation and options are
 * asked for once a group. Where a run ends within a vector, the last vector begins so much earlier
 * that it is whole.
 *
 * There is one loop, map_runs, of which a form is an instance. It has three parameters:
 *   direction   FORWARD, BACKWARD
 *   source      of a vector's parameters: SPREAD, the same for all vectors of a run (planes, and
 *               blocks of channels that fit into a vector);
 *               HELD, those of a group, which are the same in all groups (few channels, or a strip
 *               of channels through all rows); LOADED, from arrays
 *   sloped      whether dx has the terms of batch statistics, of forms of backward with a type
 *   type        of all tensors, without a mask, with IDENTITY, RELU or CLAMP in forward and with
 *               RELU or no activation in backward; BNORM_ANY: everything else */

/* Vectors of a group: their latencies overlap, also where a compiler must assume that a store
 * changes what a later load reads. */
#define BNORM_VECTORS ((size_t)4)
#define BNORM_GROUP_F (BNORM_VECTORS * VEC_F)
/* The same of lines of outputs. */
#define BNORM_AHEAD_OUT 1024
/* Bytes of output that pass the caches at a time. Lines of runs of more bytes are asked for. */
#define BNORM_PART ((size_t)4096)
/* Runs of so many elements are aligned to lines of the cache, and follow hints. */
#define BNORM_LONG_RUN 512
/* Rows of few channels are joined to rows of about BNORM_LONG_ROW floats, for which the parameters
 * are written one behind the other; all arrays together have room for BNORM_ROOM floats. */
#define BNORM_LONG_ROW 256
#define BNORM_ROOM     ((size_t)3072)
/* Planes of fewer elements are joined to rows: of one image, of several, and of types and
 * activations without a form of their own. */
#define BNORM_SMALL_PLANE  ((size_t)2 * VEC_F)
#define BNORM_SMALL_PLANES ((size_t)4 * VEC_F)
#define BNORM_SMALL_ANY    ((size_t)128)

enum avx512_direction { avx512_FORWARD, avx512_BACKWARD };
enum avx512_source { avx512_SPREAD, avx512_HELD, avx512_LOADED };

/* No type, no kind. */
#define BNORM_ANY (-1)

struct avx512_form {
    enum avx512_direction direction;
    enum avx512_source source;
    int type, kind;
    int sloped;
};

/* Arrays of parameters; those that are not wanted are any readable memory. */
struct avx512_parameters {
    const float *center, *scale, *shift, *invstd, *slope, *offset;
};

#define BNORM_FOR_PARAMETERS(m, X)                                                                 \
    if ((m)->centred) {                                                                            \
        X(0, center);                                                                              \
    }                                                                                              \
    X(1, scale);                                                                                   \
    X(2, shift);                                                                                   \
    if ((m)->sloped) {                                                                             \
        X(3, invstd);                                                                              \
        X(4, slope);                                                                               \
        X(5, offset);                                                                              \
    }

struct avx512_mapping;
struct avx512_block;
typedef void avx512_map_function(const struct avx512_mapping *m, const struct avx512_block *b);

/* What holds for a whole call. */
struct avx512_mapping {
    enum avx512_direction direction;
    bnorm_dtype type, out_type;
    size_t size, out_size; /* bytes of an element */
    enum bnorm_pre pre;
    bnorm_act act;
    int centred, sloped;
    int reads_x; /* for more than its own sake; always in forward */
    int has_out, has_dresidual, writes_bits;
    int in_place; /* an output is an input */
    unsigned hints;
    int strips;
    unsigned char *bits; /* the mask, or NULL */
    struct avx512_quant x_quant, argument_quant, out_quant;
    struct avx512_parameters p;
    avx512_map_function *spread, *held, *loaded, *any; /* the forms; the first two may be NULL */
};

/* Where the elements of a run are. Absent tensors are any memory, which is not looked at. */
struct avx512_run {
    const char *x, *dy, *argument;
    char *out, *dresidual;
    size_t bit;
};

/* Bytes from a run to the next of each tensor; 0 of absent ones. */
struct avx512_strides {
    size_t x, dy, argument, out, dresidual, bit;
};

/* Rows of one group, or planes of one image. */
struct avx512_block {
    struct avx512_run run;
    struct avx512_strides strides;
    size_t rows, lanes;
    unsigned fetch; /* which hints are followed */
    int dense;      /* rows follow one another without a gap */
    /* The parameters of the first element have number `first`. Loaded ones repeat after `period`
     * elements, and `step` = BNORM_GROUP_F % period. Where nothing can be read behind these (exact),
     * groups begin with the first element. Spread ones are `each` per run. */
    size_t first, period, step, each;
    int exact;
};

/* Parameters that stay in registers. */
struct avx512_held {
    avx512_vec_f center[BNORM_VECTORS], scale[BNORM_VECTORS], shift[BNORM_VECTORS];
    avx512_vec_f invstd[BNORM_VECTORS], slope[BNORM_VECTORS], offset[BNORM_VECTORS];
};

#define BNORM_EACH                                                                                 \
    BNORM_UNROLL                                                                                   \
    for (size_t q = 0; q < count; q++)

/* ---------------------------------------------------------------------------------------------- */
/* Groups */

BNORM_INLINE void avx512_load_vectors(avx512_vec_f *to, bnorm_dtype type, const char *p,
                               const struct avx512_quant *avx512_quant, size_t count) {
    const avx512_vec_f scale = avx512_vec_set1(avx512_quant->scale), zero = avx512_vec_set1(avx512_quant->zero_point);
#define BNORM_AT(element) ((const element *)(const void *)p + q * VEC_F)
    switch (type) {
    case BNORM_F32:
        BNORM_EACH to[q] = avx512_vec_load(BNORM_AT(float));
        break;
    case BNORM_BF16:
        BNORM_EACH to[q] = vec_load_bf16(BNORM_AT(uint16_t));
        break;
    case BNORM_F16:
        BNORM_EACH to[q] = vec_load_f16(BNORM_AT(uint16_t));
        break;
    case BNORM_S8:
        BNORM_EACH to[q] = avx512_vec_mul(avx512_vec_sub(vec_load_s8(BNORM_AT(uint8_t)), zero), scale);
        break;
    case BNORM_U8:
        BNORM_EACH to[q] = avx512_vec_mul(avx512_vec_sub(vec_load_u8(BNORM_AT(uint8_t)), zero), scale);
        break;
    }
#undef BNORM_AT
}

/* Canonical values. */
BNORM_INLINE void avx512_store_vectors(char *p, bnorm_dtype type, const struct avx512_quant *avx512_quant,
                                const avx512_vec_f *v, size_t count) {
#define BNORM_AT(element) ((element *)(void *)p + q * VEC_F)
    switch (type) {
    case BNORM_F32:
        BNORM_EACH avx512_vec_store(BNORM_AT(float), v[q]);
        break;
    case BNORM_BF16:
        if (count % 2 == 0) {
            BNORM_UNROLL
            for (size_t q = 0; q + 1 < count; q += 2)
                vec_store_bf16_2(BNORM_AT(uint16_t), v[q], v[q + 1]);
        } else {
            BNORM_EACH vec_store_bf16(BNORM_AT(uint16_t), v[q]);
        }
        break;
    case BNORM_F16:
        BNORM_EACH vec_store_f16(BNORM_AT(uint16_t), v[q]);
        break;
    case BNORM_S8:
    case BNORM_U8: {
        const int zero = (int)avx512_quant->zero_point, is_signed = type == BNORM_S8;
        avx512_vec_f steps[BNORM_VECTORS];
        BNORM_EACH steps[q] = avx512_quotient(v[q], avx512_quant);
        if (count == 4)
            vec_store_8_4((uint8_t *)p, steps, zero, is_signed);
        else
            BNORM_EACH vec_store_8(BNORM_AT(uint8_t), steps[q], zero, is_signed);
        break;
    }
    }
#undef BNORM_AT
}

/* y, canonical. */
BNORM_INLINE avx512_vec_f avx512_activate(bnorm_act_kind kind, avx512_vec_f v, avx512_vec_f a, avx512_vec_f b) {
    const avx512_vec_f zero = avx512_vec_set1(0), three = avx512_vec_set1(3);
    switch (kind) {
    case BNORM_ACT_RELU:
        return avx512_vec_relu(v);
    case BNORM_ACT_CLAMP:
        return avx512_vec_clamp(v, a, b);
    case BNORM_ACT_LEAKY_RELU:
        v = avx512_vec_mul(v, avx512_vec_if_gt(v, zero, avx512_vec_set1(1), a));
        break;
    case BNORM_ACT_HARD_SWISH: {
        const avx512_vec_f m = avx512_within_three(v);
        v = avx512_vec_if_le(three, v, v, avx512_vec_mul(avx512_vec_mul(m, avx512_vec_add(m, three)), avx512_vec_set1(1.0f / 6)));
        break;
    }
    default:
        break;
    }
    return avx512_vec_canonical_result(v);
}

/* Out of line, as are SLEEF's functions. */
BNORM_RARE void avx512_smooth_values(bnorm_act_kind kind, float a, float *v, size_t n) {
    for (size_t i = 0; i < n; i += VEC_F)
        avx512_vec_store(v + i, avx512_vec_canonical(avx512_smooth_value(kind, avx512_vec_load(v + i), avx512_vec_set1(a))));
}

#define BNORM_CASE(kind)                                                                           \
    case kind:                                                                                     \
        BNORM_EACH BNORM_OF(kind);                                                                 \
        break;

BNORM_INLINE void avx512_activate_vectors(const struct avx512_form f, const bnorm_act *act, avx512_vec_f *v,
                                   size_t count) {
    const avx512_vec_f a = avx512_vec_set1(act->a), b = avx512_vec_set1(act->b);
#define BNORM_OF(kind) v[q] = avx512_activate(kind, v[q], a, b)
    if (f.type != BNORM_ANY) {
        switch (f.kind == BNORM_ANY ? (int)act->kind : f.kind) {
            BNORM_CASE(BNORM_ACT_RELU)
            BNORM_CASE(BNORM_ACT_CLAMP)
        default:
            BNORM_EACH BNORM_OF(BNORM_ACT_IDENTITY);
        }
        return;
    }
    switch (act->kind) {
        BNORM_PLAIN_KINDS(BNORM_CASE)
    default: {
        float values[BNORM_GROUP_F];
        BNORM_EACH avx512_vec_store(values + q * VEC_F, v[q]);
        avx512_smooth_values(act->kind, act->a, values, count * VEC_F);
        BNORM_EACH v[q] = avx512_vec_load(values + q * VEC_F);
    }
    }
#undef BNORM_OF
}

/* g = dy*act'(v) */
BNORM_INLINE void avx512_gradient_vectors(const struct avx512_form f, const bnorm_act *act, const avx512_vec_f *v,
                                   avx512_vec_f *g, size_t count) {
    const avx512_vec_f a = avx512_vec_set1(act->a), b = avx512_vec_set1(act->b);
#define BNORM_OF(kind) g[q] = avx512_gradient(kind, v[q], g[q], a, b)
    if (f.type != BNORM_ANY) {
        BNORM_EACH BNORM_OF(BNORM_ACT_RELU);
        return;
    }
    switch (act->kind) {
        BNORM_PLAIN_KINDS(BNORM_CASE)
    default: {
        float values[2][BNORM_GROUP_F];
        BNORM_EACH avx512_vec_store(values[0] + q * VEC_F, v[q]);
        BNORM_EACH avx512_vec_store(values[1] + q * VEC_F, g[q]);
        avx512_smooth_gradients(act->kind, act->a, values[0], values[1], count * VEC_F);
        BNORM_EACH g[q] = avx512_vec_load(values[1] + q * VEC_F);
    }
    }
#undef BNORM_OF
}
#undef BNORM_CASE

/* A bit per element: whether the derivative is that of the upper branch. */
BNORM_INLINE uint64_t avx512_branch_bits(const bnorm_act *act, const avx512_vec_f *v, size_t count) {
    const avx512_vec_f zero = avx512_vec_set1(0), low = avx512_vec_set1(act->a), high = avx512_vec_set1(act->b);
    uint64_t word = 0;
    BNORM_EACH {
        const unsigned bits = act->kind == BNORM_ACT_CLAMP
                                  ? avx512_vec_bits_gt(v[q], low) & avx512_vec_bits_gt(high, v[q])
                                  : avx512_vec_bits_gt(v[q], zero);
        word |= (uint64_t)bits << (q * VEC_F);
    }
    return word;
}

/* The type of a tensor that has this one in the call; backward has no quantized ones. */
BNORM_INLINE bnorm_dtype avx512_type_of(const struct avx512_form f, bnorm_dtype type) {
    if (f.direction == avx512_BACKWARD && type > BNORM_F16)
        __builtin_unreachable();
    return f.type == BNORM_ANY ? type : (bnorm_dtype)f.type;
}

/* Which outputs there are. */
BNORM_INLINE int avx512_has_out(const struct avx512_form f, const struct avx512_mapping *m) {
    return f.type == BNORM_ANY && f.direction == avx512_BACKWARD ? m->has_out : 1;
}
BNORM_INLINE int avx512_has_dresidual(const struct avx512_form f, const struct avx512_mapping *m) {
    const int never = f.direction == avx512_FORWARD || f.kind == BNORM_ACT_IDENTITY;
    return never ? 0 : m->has_dresidual;
}

/* What is stored; canonical. */
struct avx512_results {
    avx512_vec_f out[BNORM_VECTORS], dresidual[BNORM_VECTORS];
    uint64_t bits; /* of a mask that is written */
};

/* `count` vectors from element e of a run on, whose parameters begin with number i. */
BNORM_INLINE void avx512_compute(const struct avx512_form f, const struct avx512_mapping *m, const struct avx512_run *r,
                          const struct avx512_held *h, size_t i, size_t e, size_t count,
                          struct avx512_results *to) {
    avx512_vec_f x[BNORM_VECTORS] = {0}, v[BNORM_VECTORS] = {0}, g[BNORM_VECTORS] = {0};
    const int any = f.type == BNORM_ANY, forward = f.direction == avx512_FORWARD;
    const int sloped = any ? m->sloped : f.sloped, centred = any || forward ? m->centred : 1;
    const bnorm_dtype type = avx512_type_of(f, m->type);
    const size_t at = e * (any ? m->size : avx512_size_of(type));
#define BNORM_P(name)                                                                              \
    (f.source == avx512_LOADED ? avx512_vec_load(m->p.name + i + q * VEC_F)                                      \
     : f.source == avx512_HELD ? h->name[q]                                                               \
                        : h->name[0])
    if (forward || sloped || m->reads_x) {
        avx512_load_vectors(x, type, r->x + at, &m->x_quant, count);
        if (centred)
            BNORM_EACH x[q] = avx512_vec_sub(x[q], BNORM_P(center));
    }
    if (forward) {
        BNORM_EACH v[q] = avx512_vec_fma(x[q], BNORM_P(scale), BNORM_P(shift));
        if (BNORM_UNLIKELY(m->pre == BNORM_PRE_RESIDUAL)) {
            avx512_load_vectors(g, type, r->argument + at, &m->argument_quant, count);
            BNORM_EACH v[q] = avx512_vec_add(v[q], g[q]);
        }
        if (any && m->bits)
            to->bits = avx512_branch_bits(&m->act, v, count);
        avx512_activate_vectors(f, &m->act, v, count);
        BNORM_EACH to->out[q] = v[q];
        return;
    }
    const int has_argument =
        (f.kind == BNORM_ANY ? (int)m->act.kind : f.kind) != BNORM_ACT_IDENTITY;
    if (has_argument) {
        if (m->pre == BNORM_PRE_Y) {
            avx512_load_vectors(v, type, r->argument + at, &m->x_quant, count);
        } else if (any && m->pre == BNORM_PRE_MASK) {
            const uint64_t word = avx512_read_bits(m->bits, r->bit + e, count * VEC_F);
            BNORM_EACH v[q] = avx512_vec_from_bits((unsigned)(word >> (q * VEC_F)));
        } else {
            BNORM_EACH v[q] = avx512_vec_fma(x[q], BNORM_P(scale), BNORM_P(shift));
            if (m->pre == BNORM_PRE_RESIDUAL) {
                avx512_load_vectors(g, type, r->argument + at, &m->x_quant, count);
                BNORM_EACH v[q] = avx512_vec_add(v[q], g[q]);
            }
        }
    }
    avx512_load_vectors(g, type, r->dy + at, &m->x_quant, count);
    if (has_argument)
        avx512_gradient_vectors(f, &m->act, v, g, count);
    if (avx512_has_dresidual(f, m))
        BNORM_EACH to->dresidual[q] = avx512_vec_canonical(g[q]);
    if (sloped) {
        BNORM_EACH g[q] = avx512_vec_fma(g[q], BNORM_P(scale), BNORM_P(offset));
        BNORM_EACH x[q] = avx512_vec_mul(x[q], BNORM_P(invstd));
        BNORM_EACH g[q] = avx512_vec_fma(x[q], BNORM_P(slope), g[q]);
    } else {
        BNORM_EACH g[q] = avx512_vec_mul(g[q], BNORM_P(scale));
    }
    BNORM_EACH to->out[q] = avx512_vec_canonical_result(g[q]);
#undef BNORM_P
}

BNORM_INLINE void avx512_store_results(const struct avx512_form f, const struct avx512_mapping *m, const struct avx512_run *r,
                                size_t e, size_t count, const struct avx512_results *from) {
    const int any = f.type == BNORM_ANY;
    const bnorm_dtype type = avx512_type_of(f, m->out_type);
    const size_t at = e * (any ? m->out_size : avx512_size_of(type));
    if (avx512_has_out(f, m))
        avx512_store_vectors(r->out + at, type, &m->out_quant, from->out, count);
    if (avx512_has_dresidual(f, m))
        avx512_store_vectors(r->dresidual + at, type, &m->out_quant, from->dresidual, count);
}

/* ---------------------------------------------------------------------------------------------- */
/* Runs */

BNORM_INLINE void avx512_skip_row(const struct avx512_form f, struct avx512_run *r, const struct avx512_strides *s) {
    r->x += s->x;
    r->argument += s->argument;
    r->out += s->out;
    r->bit += s->bit;
    if (f.direction == avx512_BACKWARD) {
        r->dy += s->dy;
        r->dresidual += s->dresidual;
    }
}

BNORM_INLINE void avx512_skip_elements(struct avx512_run *r, const struct avx512_form f, const struct avx512_mapping *m,
                                size_t n) {
    const size_t in = f.type == BNORM_ANY ? m->size : avx512_size_of((bnorm_dtype)f.type),
                 out = f.type == BNORM_ANY ? m->out_size : in;
    r->x += n * in;
    r->dy += n * in;
    r->argument += n * in;
    r->out += n * out;
    r->dresidual += n * out;
    r->bit += n;
}

/* The parameters that all groups have, or all vectors of a run: `each` of them, from number i on. */
BNORM_INLINE void avx512_hold(const struct avx512_form f, const struct avx512_parameters *p, size_t i, size_t each,
                       struct avx512_held *h) {
    const size_t count = f.source == avx512_HELD ? BNORM_VECTORS : 1;
#define BNORM_HOLD(load)                                                                           \
    {                                                                                              \
        BNORM_EACH h->center[q] = load(p->center);                                                 \
        BNORM_EACH h->scale[q] = load(p->scale);                                                   \
        BNORM_EACH h->shift[q] = load(p->shift);                                                   \
        if (f.direction == avx512_BACKWARD) {                                                             \
            BNORM_EACH h->invstd[q] = load(p->invstd);                                             \
            BNORM_EACH h->slope[q] = load(p->slope);                                               \
            BNORM_EACH h->offset[q] = load(p->offset);                                             \
        }                                                                                          \
    }
#define BNORM_GROUP_OF(array) avx512_vec_load((array) + q * VEC_F)
#define BNORM_ONE_OF(array)   avx512_vec_set1((array)[i])
#define BNORM_SOME_OF(array)  avx512_vec_repeat((array) + i, each)
    if (f.source == avx512_HELD)
        BNORM_HOLD(BNORM_GROUP_OF)
    else if (each == 1)
        BNORM_HOLD(BNORM_ONE_OF)
    else
        BNORM_HOLD(BNORM_SOME_OF)
#undef BNORM_GROUP_OF
#undef BNORM_ONE_OF
#undef BNORM_SOME_OF
#undef BNORM_HOLD
}

/* Asks for the lines that a group from element e of r on will be followed by. */
BNORM_INLINE void avx512_fetch_group(const struct avx512_form f, const struct avx512_mapping *m, const struct avx512_run *r,
                              size_t e, unsigned hints) {
    const size_t size = f.type == BNORM_ANY ? m->size : avx512_size_of((bnorm_dtype)f.type),
                 out_size = f.type == BNORM_ANY ? m->out_size : size, in = BNORM_GROUP_F * size,
                 out = BNORM_GROUP_F * out_size;
    const int argument = avx512_reads_extra(m->pre);
#define BNORM_FETCH(t) avx512_vec_fetch((const float *)(const void *)(r->t + e * size + BNORM_AHEAD + k))
#define BNORM_FETCH_TO(t)                                                                          \
    avx512_vec_fetch_out((const float *)(const void *)(r->t + e * out_size + BNORM_AHEAD_OUT + k))
    for (size_t k = 0; (hints & BNORM_FETCH_IN) && k < in; k += 64) {
        BNORM_FETCH(x);
        if (f.direction == avx512_BACKWARD)
            BNORM_FETCH(dy);
        if (argument)
            BNORM_FETCH(argument);
    }
    for (size_t k = 0; (hints & BNORM_FETCH_OUT) && k < out; k += 64) {
        if (avx512_has_out(f, m))
            BNORM_FETCH_TO(out);
        if (avx512_has_dresidual(f, m))
            BNORM_FETCH_TO(dresidual);
    }
#undef BNORM_FETCH
#undef BNORM_FETCH_TO
}

/* Inputs of a vector. */
struct avx512_inputs {
    _Alignas(64) char x[VEC_F * sizeof(float)], dy[VEC_F * sizeof(float)],
        argument[VEC_F * sizeof(float)];
};

/* Copies those of a run from element e on; the result is a run of them. */
BNORM_INLINE struct avx512_run avx512_keep_inputs(const struct avx512_form f, const struct avx512_mapping *m, struct avx512_run r,
                                    size_t e, struct avx512_inputs *to) {
    const size_t bytes = VEC_F * m->size;
    avx512_skip_elements(&r, f, m, e);
    memcpy(to->x, r.x, bytes);
    memcpy(to->argument, r.argument, bytes);
    if (f.direction == avx512_BACKWARD)
        memcpy(to->dy, r.dy, bytes);
    return (struct avx512_run){to->x, to->dy, to->argument, NULL, NULL, r.bit};
}

/* Runs of at least a vector. Where a run ends within a vector, the last vector is computed first, as
 * its elements may be overwritten before their turn, and stored last; in the form for everything
 * else its inputs are copied, which takes less code. What is copied first has no other name
 * afterwards, so that it stays in registers while outputs are stored. */
BNORM_INLINE void avx512_map_runs(const struct avx512_form f, const struct avx512_mapping *given,
                           const struct avx512_block *avx512_block) {
    const struct avx512_mapping mine = *given, *const m = &mine;
    const struct avx512_strides avx512_strides = avx512_block->strides;
    const size_t len = avx512_block->lanes, first = avx512_block->first, period = avx512_block->period,
                 step = avx512_block->step, each = avx512_block->each, tail = len % VEC_F, whole = len - tail,
                 grouped = len - len % BNORM_GROUP_F;
    const int any = f.type == BNORM_ANY, writes_bits = any && f.direction == avx512_FORWARD && m->bits;
    struct avx512_run r = avx512_block->run;
    const unsigned fetch = avx512_block->fetch;
    struct avx512_bit_writer w = {0};
    struct avx512_held h;
/* Which parameters element e has. */
#define BNORM_INDEX(e)                                                                             \
    (f.source == avx512_SPREAD ? 0 : first + (e) < period ? first + (e) : (first + (e)) % period)
    if (writes_bits)
        avx512_begin_bits(&w, m->bits, r.bit);
    for (size_t row = 0; row < avx512_block->rows; row++, avx512_skip_row(f, &r, &avx512_strides)) {
        struct avx512_results last = {.bits = 0};
        struct avx512_inputs avx512_inputs;
        struct avx512_run kept = {0};
        size_t e = 0, i = BNORM_INDEX(0);
        if (f.source == avx512_SPREAD)
            avx512_hold(f, &m->p, (first + row) * each, each, &h);
        if (writes_bits)
            avx512_seek_bits(&w, r.bit);
        if (tail && any)
            kept = avx512_keep_inputs(f, m, r, len - VEC_F, &avx512_inputs);
        else if (tail)
            avx512_compute(f, m, &r, &h, BNORM_INDEX(len - VEC_F), len - VEC_F, 1, &last);
        for (; e < grouped; e += BNORM_GROUP_F) {
            struct avx512_results avx512_results = {.bits = 0};
            if (BNORM_UNLIKELY(fetch))
                avx512_fetch_group(f, m, &r, e, fetch);
            avx512_compute(f, m, &r, &h, i, e, BNORM_VECTORS, &avx512_results);
            avx512_store_results(f, m, &r, e, BNORM_VECTORS, &avx512_results);
            if (writes_bits)
                avx512_put_bits(&w, avx512_results.bits, BNORM_GROUP_F);
            if (f.source == avx512_LOADED) {
                i += step;
                i = i >= period ? i - period : i;
            }
        }
        for (; e < (any ? len : whole); e += VEC_F) {
            struct avx512_results avx512_results = {.bits = 0};
            const size_t again = any && e >= whole ? VEC_F - tail : 0;
            e -= again;
            avx512_compute(f, m, again ? &kept : &r, &h, BNORM_INDEX(e), again ? 0 : e, 1, &avx512_results);
            avx512_store_results(f, m, &r, e, 1, &avx512_results);
            if (writes_bits)
                avx512_put_bits(&w, avx512_results.bits >> again, VEC_F - again);
        }
        if (tail && !any)
            avx512_store_results(f, m, &r, len - VEC_F, 1, &last);
    }
    if (writes_bits)
        avx512_end_bits(&w);
#undef BNORM_INDEX
}

/* The elements of a group in each row. */
BNORM_INLINE void map_held(const struct avx512_form f, const struct avx512_mapping *given,
                           const struct avx512_block *avx512_block) {
    const struct avx512_mapping mine = *given, *const m = &mine;
    const struct avx512_strides avx512_strides = avx512_block->strides;
    struct avx512_run r = avx512_block->run;
    struct avx512_held h;
    avx512_hold(f, &m->p, 0, 0, &h);
    for (size_t rows = avx512_block->rows; rows > 0; rows--, avx512_skip_row(f, &r, &avx512_strides)) {
        struct avx512_results avx512_results = {.bits = 0};
        avx512_compute(f, m, &r, &h, 0, 0, BNORM_VECTORS, &avx512_results);
        avx512_store_results(f, m, &r, 0, BNORM_VECTORS, &avx512_results);
    }
}

/* What moves by the size of elements that a call has. */
static const struct avx512_form avx512_all_forms = {avx512_BACKWARD, avx512_LOADED, BNORM_ANY, BNORM_ANY, 0};

#define BNORM_FORM(name, map, avx512_direction, avx512_source, type, kind, sloped)                               \
    static void name(const struct avx512_mapping *m, const struct avx512_block *b) {                             \
        map((struct avx512_form){avx512_direction, avx512_source, type, kind, sloped}, m, b);                           \
    }
/* Those of one type and kind: of planes and of rows. */
#define BNORM_FORMS(name, avx512_direction, type, kind, sloped)                                           \
    BNORM_FORM(name##_planes, avx512_map_runs, avx512_direction, avx512_SPREAD, type, kind, sloped)                     \
    BNORM_FORM(name##_rows, avx512_map_runs, avx512_direction, avx512_LOADED, type, kind, sloped)
#define BNORM_FORWARD_F32(name, kind)                                                              \
    BNORM_FORMS(name, avx512_FORWARD, BNORM_F32, kind, 0)                                                 \
    BNORM_FORM(name##_held, map_held, avx512_FORWARD, avx512_HELD, BNORM_F32, kind, 0)
BNORM_FORWARD_F32(forward_identity, BNORM_ACT_IDENTITY)
BNORM_FORWARD_F32(forward_relu, BNORM_ACT_RELU)
BNORM_FORWARD_F32(forward_clamp, BNORM_ACT_CLAMP)
BNORM_FORMS(forward_bf16, avx512_FORWARD, BNORM_BF16, BNORM_ANY, 0)
BNORM_FORMS(forward_f16, avx512_FORWARD, BNORM_F16, BNORM_ANY, 0)
BNORM_FORMS(forward_any, avx512_FORWARD, BNORM_ANY, BNORM_ANY, 0)
BNORM_FORMS(backward_identity, avx512_BACKWARD, BNORM_F32, BNORM_ACT_IDENTITY, 1)
BNORM_FORMS(backward_relu, avx512_BACKWARD, BNORM_F32, BNORM_ACT_RELU, 1)
BNORM_FORMS(backward_frozen, avx512_BACKWARD, BNORM_F32, BNORM_ANY, 0)
BNORM_FORMS(backward_bf16, avx512_BACKWARD, BNORM_BF16, BNORM_ANY, 1)
BNORM_FORMS(backward_f16, avx512_BACKWARD, BNORM_F16, BNORM_ANY, 1)
BNORM_FORM(backward_any_rows, avx512_map_runs, avx512_BACKWARD, avx512_LOADED, BNORM_ANY, BNORM_ANY, 0)

struct avx512_functions {
    avx512_map_function *planes, *rows, *held;
};
/* Of floats by kind of activation, in backward without slope instead of clamp; of BF16, of F16, of
 * others. */
#define BNORM_OTHERS 5
static const struct avx512_functions avx512_forward_functions[BNORM_OTHERS + 1] = {
    {forward_identity_planes, forward_identity_rows, forward_identity_held},
    {forward_relu_planes, forward_relu_rows, forward_relu_held},
    {forward_clamp_planes, forward_clamp_rows, forward_clamp_held},
    {forward_bf16_planes, forward_bf16_rows, NULL},
    {forward_f16_planes, forward_f16_rows, NULL},
    {forward_any_planes, forward_any_rows, NULL}};
static const struct avx512_functions avx512_backward_functions[BNORM_OTHERS + 1] = {
    {backward_identity_planes, backward_identity_rows, NULL},
    {backward_relu_planes, backward_relu_rows, NULL},
    {backward_frozen_planes, backward_frozen_rows, NULL},
    {backward_bf16_planes, backward_bf16_rows, NULL},
    {backward_f16_planes, backward_f16_rows, NULL},
    {NULL, backward_any_rows, NULL}};

/* The forms of a call. */
BNORM_INLINE const struct avx512_functions *avx512_functions_of(const struct avx512_mapping *m,
                                                  const struct avx512_functions *avx512_functions) {
    const int identity = m->act.kind == BNORM_ACT_IDENTITY, float32 = m->type == BNORM_F32;
    const int frozen = m->direction == avx512_BACKWARD && !m->sloped;
    size_t which = float32 ? (size_t)m->act.kind : 2 + (size_t)m->type;
    int typed = m->type <= BNORM_F16 && m->type == m->out_type && !m->bits;
    if (m->direction == avx512_FORWARD)
        typed &= m->act.kind <= BNORM_ACT_CLAMP;
    else
        typed &= m->act.kind <= BNORM_ACT_RELU && m->has_out && m->centred &&
                 !(identity && float32 && m->has_dresidual) && (float32 || !frozen);
    if (frozen)
        which = BNORM_ACT_CLAMP;
    return &avx512_functions[typed ? which : BNORM_OTHERS];
}

/* ---------------------------------------------------------------------------------------------- */
/* Long runs: lines of the caches */

/* Whole lines past the caches. */
BNORM_INLINE void avx512_pass_on(char *to, const float *from, size_t bytes) {
    for (size_t k = 0; k < bytes; k += sizeof(avx512_vec_f), from += VEC_F)
        avx512_vec_bypass((float *)(void *)(to + k), avx512_vec_load(from));
}

BNORM_INLINE size_t avx512_to_line(const char *p) {
    return -(uintptr_t)p % 64;
}

/* A run from a line of the output on, and whole lines past the caches where that is wanted. */
BNORM_RARE void avx512_map_long(avx512_map_function *avx512_form, const struct avx512_mapping *m, const struct avx512_block *avx512_run) {
    _Alignas(64) float lines[2][BNORM_PART / sizeof(float)];
    const size_t most = BNORM_PART / m->out_size, line = 64 / m->out_size, len = avx512_run->lanes;
    struct avx512_block b = *avx512_run;
    size_t e = 0;
    if (!b.exact && !m->in_place && !m->writes_bits) {
        e = avx512_to_line(m->has_out ? b.run.out : b.run.dresidual) / m->out_size;
        e = e % b.each == 0 ? e : 0;
        b.lanes = e < VEC_F ? VEC_F : e; /* what goes beyond it is computed again */
        if (e)
            avx512_form(m, &b);
        avx512_skip_elements(&b.run, avx512_all_forms, m, e);
    }
    while (e < len) {
        struct avx512_run r = b.run;
        size_t n = len - e, skip = n;
        const int bypass = (m->hints & BNORM_BYPASS) && n >= line &&
                           (!m->has_out || avx512_to_line(r.out) == 0) &&
                           (!m->has_dresidual || avx512_to_line(r.dresidual) == 0);
        if (avx512_form != m->spread)
            b.first = e < b.period ? e : e % b.period;
        if (bypass) {
            n = skip = avx512_lesser(n / line * line, most);
            b.run.out = (char *)lines[0];
            b.run.dresidual = (char *)lines[1];
        } else if (n < VEC_F) { /* nor is that in place */
            b = *avx512_run;
            n = VEC_F;
            avx512_skip_elements(&b.run, avx512_all_forms, m, len - n);
            if (avx512_form != m->spread)
                b.first = len - n < b.period ? len - n : (len - n) % b.period;
        }
        b.lanes = n;
        avx512_form(m, &b);
        if (bypass && m->has_out)
            avx512_pass_on(r.out, lines[0], n * m->out_size);
        if (bypass && m->has_dresidual)
            avx512_pass_on(r.dresidual, lines[1], n * m->out_size);
        b.run = r;
        e += skip;
        avx512_skip_elements(&b.run, avx512_all_forms, m, skip);
    }
}

/* Runs of at least a vector. */
static void avx512_map_form(avx512_map_function *avx512_form, const struct avx512_mapping *m, struct avx512_block *b) {
    const char *out = m->has_out ? b->run.out : b->run.dresidual;
    const size_t stride = m->has_out ? b->strides.out : b->strides.dresidual;
    const size_t least = avx512_form == m->spread ? 4 * BNORM_LONG_RUN : BNORM_LONG_RUN;
    const int lies_well = avx512_to_line(out) == 0 && (b->rows == 1 || stride % 64 == 0);
    b->fetch = b->lanes * m->out_size > BNORM_PART || (m->hints & BNORM_BYPASS)
                   ? m->hints & ~(unsigned)BNORM_BYPASS
                   : 0;
    if (b->lanes < BNORM_LONG_RUN ||
        (!(m->hints & BNORM_BYPASS) && (lies_well || m->in_place || b->lanes < least))) {
        avx512_form(m, b);
        return;
    }
    struct avx512_block avx512_run = *b;
    avx512_run.rows = 1;
    for (size_t row = 0; row < b->rows; row++, avx512_skip_row(avx512_all_forms, &avx512_run.run, &b->strides)) {
        avx512_run.first = avx512_form == m->spread ? b->first + row : b->first;
        avx512_map_long(avx512_form, m, &avx512_run);
    }
}

/* ---------------------------------------------------------------------------------------------- */
/* Rows and planes */

/* No period. */
BNORM_INLINE void avx512_begin_period(struct avx512_block *b) {
    b->first = 0;
    b->period = SIZE_MAX;
    b->step = BNORM_GROUP_F;
    b->each = 1;
    b->exact = 0;
}

/* Runs of fewer elements than a vector: each as one vector in memory, the other elements of which
 * are 0, as are their parameters, so that nothing comes of them. */
BNORM_RARE void avx512_map_few(const struct avx512_mapping *m, const struct avx512_block *b, int planes) {
    struct {
        _Alignas(64) char x[64], dy[64], argument[64], out[64], dresidual[64];
        float p[6][VEC_F];
    } lanes;
    const size_t n = b->lanes;
    const int reads_bits = m->pre == BNORM_PRE_MASK;
    unsigned char bits[8] = {0};
    struct avx512_mapping few = *m;
    struct avx512_block vector;
    struct avx512_run r = b->run;
    memset(&lanes, 0, sizeof lanes);
    vector.run = (struct avx512_run){lanes.x, lanes.dy, lanes.argument, lanes.out, lanes.dresidual, 0};
    vector.strides = (struct avx512_strides){0};
    vector.rows = 1;
    vector.fetch = 0;
    vector.lanes = VEC_F;
    avx512_begin_period(&vector);
    few.bits = m->bits ? bits : NULL;
    few.hints = 0;
    if (m->type >= BNORM_S8) { /* what stands for 0 */
        memset(lanes.x, (int)m->x_quant.zero_point, sizeof lanes.x);
        memset(lanes.argument, (int)m->argument_quant.zero_point, sizeof lanes.argument);
    }
    for (size_t row = 0; row < b->rows; row++, avx512_skip_row(avx512_all_forms, &r, &b->strides)) {
#define BNORM_FEW(k, name)                                                                         \
    for (size_t i = 0; i < n; i++)                                                                 \
        lanes.p[k][i] = m->p.name[planes ? row : i];                                               \
    few.p.name = lanes.p[k];
        if (row == 0 || planes)
            BNORM_FOR_PARAMETERS(m, BNORM_FEW)
#undef BNORM_FEW
        memcpy(lanes.x, r.x, n * m->size);
        memcpy(lanes.dy, r.dy, n * m->size);
        memcpy(lanes.argument, r.argument, n * m->size);
        if (reads_bits) {
            const unsigned window = avx512_bit_window(m->bits, r.bit, n) & ((1u << n) - 1);
            bits[0] = (unsigned char)window;
            bits[1] = (unsigned char)(window >> 8);
        }
        m->any(&few, &vector);
        if (m->bits && !reads_bits) {
            struct avx512_bit_writer w;
            avx512_begin_bits(&w, m->bits, r.bit);
            avx512_put_bits(&w, bits[0] | (uint64_t)bits[1] << 8, n);
            avx512_end_bits(&w);
        }
        if (m->has_out)
            memcpy(r.out, lanes.out, n * m->out_size);
        if (m->has_dresidual)
            memcpy(r.dresidual, lanes.dresidual, n * m->out_size);
    }
}

/* p[0..n) over and over, `end` floats, in whole vectors. */
BNORM_INLINE void avx512_repeat_floats(float *to, const float *p, size_t n, size_t end) {
    size_t done = 0;
    for (; done < end && done < n; done += VEC_F)
        avx512_store_lanes(to + done, avx512_load_lanes(p + done, avx512_lesser(VEC_F, n - done)), VEC_F);
    while (n < VEC_F) {
        avx512_vec_store(to + n, avx512_vec_load(to));
        n *= 2;
    }
    for (size_t i = n; i < end; i += VEC_F)
        avx512_vec_store(to + i, avx512_vec_load(to + i - n));
}

/* Floats of `room` for each array. */
BNORM_INLINE size_t avx512_room_of(const struct avx512_mapping *m) {
    return BNORM_ROOM / (m->sloped ? 6 : 3) / VEC_F * VEC_F;
}

/* The parameters of rows that follow one another, repeated in `room`. */
BNORM_RARE void avx512_repeat_parameters(struct avx512_mapping *m, size_t lanes, size_t end, float *room) {
    const size_t each = avx512_room_of(m);
#define BNORM_REPEAT(k, name)                                                                      \
    avx512_repeat_floats(room + (k)*each, m->p.name, lanes, end);                                         \
    m->p.name = room + (k)*each;
    BNORM_FOR_PARAMETERS(m, BNORM_REPEAT)
#undef BNORM_REPEAT
    if (!m->centred)
        m->p.center = m->p.scale;
}

/* Rows that follow one another become one run. The parameters are written one behind the other in
 * `room`, but where groups are whole in each row. */
BNORM_RARE void join_rows(struct avx512_mapping *m, struct avx512_block *b, float *room) {
    const size_t total = b->rows * b->lanes, most = avx512_room_of(m) - BNORM_GROUP_F;
    size_t period = b->lanes;
    b->exact = b->lanes >= BNORM_LONG_ROW && b->lanes % BNORM_GROUP_F == 0;
    if (!b->exact) {
        while (period % VEC_F)
            period *= 2;
        if (period > most || (b->lanes >= VEC_F && total < 4 * period))
            return;
        while (period < BNORM_LONG_ROW && 8 * period <= total && 2 * period <= most)
            period *= 2;
        avx512_repeat_parameters(m, b->lanes, period + BNORM_GROUP_F, room);
    }
    b->lanes = total;
    b->rows = 1;
    b->period = period;
    b->step = BNORM_GROUP_F % period;
}

/* A strip of channels after the other, whose parameters are held while all rows pass. */
BNORM_RARE void avx512_map_strips(struct avx512_mapping *m, const struct avx512_block *b) {
    struct avx512_block strip = *b;
    for (size_t e = 0; e < b->lanes; e += BNORM_GROUP_F) {
        m->held(m, &strip);
        m->p.center += BNORM_GROUP_F;
        m->p.scale += BNORM_GROUP_F;
        m->p.shift += BNORM_GROUP_F;
        avx512_skip_elements(&strip.run, avx512_all_forms, m, BNORM_GROUP_F);
    }
}

/* Groups that have whole rows. Leaves at least a vector of what follows them. */
BNORM_RARE void map_whole_rows(struct avx512_mapping *m, struct avx512_block *b, float *room) {
    const struct avx512_strides *s = &b->strides;
    const size_t total = b->rows * b->lanes, times = BNORM_GROUP_F / b->lanes;
    struct avx512_block groups = *b;
    groups.rows = (total - VEC_F) / BNORM_GROUP_F;
    groups.strides.x = times * s->x;
    groups.strides.argument = times * s->argument;
    groups.strides.out = times * s->out;
    avx512_repeat_parameters(m, b->lanes, 2 * BNORM_GROUP_F, room);
    m->held(m, &groups);
    avx512_skip_elements(&b->run, avx512_all_forms, m, groups.rows * BNORM_GROUP_F);
    b->lanes = total - groups.rows * BNORM_GROUP_F;
    b->rows = 1;
    b->period = BNORM_GROUP_F;
    b->step = 0;
}

static void map_rows(struct avx512_mapping *m, struct avx512_block *b) {
    _Alignas(64) float room[BNORM_ROOM + BNORM_PAD];
    const struct avx512_parameters p = m->p;
    const size_t total = b->rows * b->lanes;
    if (m->held && b->lanes % BNORM_GROUP_F == 0 && b->rows >= 4 && m->strips) {
        avx512_map_strips(m, b);
        m->p = p;
        return;
    }
    if (b->dense && b->rows > 1) {
        if (m->held && m->hints == 0 && BNORM_GROUP_F % b->lanes == 0 && total >= 2 * BNORM_GROUP_F)
            map_whole_rows(m, b, room);
        else
            join_rows(m, b, room);
    }
    if (b->lanes < VEC_F)
        avx512_map_few(m, b, 0);
    else
        avx512_map_form(m->loaded, m, b);
    m->p = p;
}

/* Planes. */
static void map_planes(struct avx512_mapping *m, struct avx512_block *b) {
    float room[6][BNORM_GROUP_F];
    const struct avx512_parameters p = m->p;
    const size_t planes = b->rows;
    if (b->lanes < VEC_F) {
        avx512_map_few(m, b, 1);
        return;
    }
    if (m->spread) {
        avx512_map_form(m->spread, m, b);
        return;
    }
    b->rows = 1;
    b->period = 1;
    b->step = 0;
    for (size_t plane = 0; plane < planes; plane++, avx512_skip_row(avx512_all_forms, &b->run, &b->strides)) {
#define BNORM_SPREAD(k, name)                                                                      \
    for (size_t i = 0; i < BNORM_GROUP_F; i += VEC_F)                                              \
        avx512_vec_store(room[k] + i, avx512_vec_set1(p.name[plane]));                                           \
    m->p.name = room[k];
        BNORM_FOR_PARAMETERS(m, BNORM_SPREAD)
#undef BNORM_SPREAD
        avx512_map_form(m->loaded, m, b);
    }
    m->p = p;
}

BNORM_RARE void clear_rows(char *p, size_t stride, size_t rows, size_t bytes, int zero) {
    const uint32_t four = (uint32_t)(zero & 255) * 0x01010101u;
    for (; rows > 0; rows--, p += stride) {
        size_t k = 0;
        for (; k + 4 <= bytes; k += 4)
            memcpy(p + k, &four, 4);
        for (; k < bytes; k++)
            p[k] = (char)zero;
    }
}

/* Rows whose lanes behind the first `valid` are padding, which gets zeros. Whatever is in it gives
 * NaN in forward, which has no bit. */
BNORM_RARE void avx512_map_padded(const struct avx512_mapping *m, struct avx512_block *b, size_t valid) {
    const struct avx512_run r = b->run;
    const size_t rows = b->rows, n = b->lanes - valid, at = valid * m->out_size;
    float p[6][32];
    struct avx512_mapping padded = *m;
#define BNORM_PAD_ARRAY(k, name)                                                                   \
    for (size_t i = 0; i < b->lanes; i++)                                                          \
        p[k][i] = i < valid ? m->p.name[i] : 0;                                                    \
    padded.p.name = p[k];
    BNORM_FOR_PARAMETERS(m, BNORM_PAD_ARRAY)
#undef BNORM_PAD_ARRAY
    if (!m->centred)
        padded.p.center = padded.p.scale;
    for (size_t i = valid; i < b->lanes; i++)
        p[2][i] = NAN;
    map_rows(&padded, b);
    const int zero = m->out_type >= BNORM_S8 ? (int)m->out_quant.zero_point : 0;
    if (m->has_out)
        clear_rows(r.out + at, b->strides.out, rows, n * m->out_size, zero);
    if (m->has_dresidual)
        clear_rows(r.dresidual + at, b->strides.dresidual, rows, n * m->out_size, 0);
}

/* Planes that follow one another are rows of as many channels, each with its parameter. */
BNORM_RARE void map_small_planes(const struct avx512_mapping *whole, const struct avx512_block *planes,
                                 const struct avx512_block *images) {
    _Alignas(64) float room[BNORM_ROOM + BNORM_PAD];
    const size_t len = planes->lanes, each = avx512_room_of(whole), most = (each - VEC_F) / len;
    struct avx512_mapping m = *whole;
    struct avx512_block b = *images;
    for (size_t first = 0, n; first < planes->rows; first += n) {
        struct avx512_block these = b;
        n = avx512_lesser(most, planes->rows - first);
        these.lanes = n * len;
        these.dense &= n == planes->rows;
#define BNORM_STRETCH(k, name)                                                                     \
    for (size_t j = 0; j < n; j++) {                                                               \
        const avx512_vec_f p = avx512_vec_set1(whole->p.name[first + j]);                                        \
        for (size_t i = 0; i < len; i += VEC_F)                                                    \
            avx512_vec_store(room + (k)*each + j * len + i, p);                                           \
    }                                                                                              \
    m.p.name = room + (k)*each;
        BNORM_FOR_PARAMETERS(whole, BNORM_STRETCH)
#undef BNORM_STRETCH
        if (!m.centred)
            m.p.center = m.p.scale;
        map_rows(&m, &these);
        avx512_skip_elements(&b.run, avx512_all_forms, &m, n * len);
    }
}

/* ---------------------------------------------------------------------------------------------- */
/* The kernels */

/* Member by member, as compilers clear whole structs first. */
BNORM_INLINE void avx512_begin_mapping(struct avx512_mapping *m, const bnorm_map_args *a,
                                enum avx512_direction avx512_direction, const struct avx512_functions *all) {
    const float *const any = a->scale;
    const int backward = avx512_direction == avx512_BACKWARD, sloped = backward && a->slope != NULL;
    m->type = a->x.type;
    m->out_type = backward ? a->x.type : a->out.type;
    m->size = avx512_size_of(m->type);
    m->out_size = avx512_size_of(m->out_type);
    m->pre = a->pre;
    m->act = a->act;
    m->centred = a->center != NULL;
    m->sloped = sloped;
    m->reads_x = sloped || avx512_reads_x(a->pre);
    m->has_out = a->out.data != NULL;
    m->has_dresidual = backward && a->dresidual.data;
    m->hints = a->hints & ~(unsigned)BNORM_STRIPS;
    m->strips = (a->hints & BNORM_STRIPS) != 0;
    m->in_place = 0;
    const void *const outs[2] = {a->out.data, a->dresidual.data};
    for (size_t k = 0; k < 2; k++)
        m->in_place |= outs[k] && (outs[k] == a->x.data || outs[k] == a->dy.data ||
                                   outs[k] == a->argument.data);
    if (m->in_place) /* what is past the caches would be computed again */
        m->hints &= ~(unsigned)BNORM_BYPASS;
    m->bits = a->mask.bits;
    /* Compilers may convert a zero point before they ask for the type. */
    m->x_quant = m->argument_quant = m->out_quant = (struct avx512_quant){1, 0, 1, 0};
    if (m->type >= BNORM_S8 || m->out_type >= BNORM_S8) {
        avx512_begin_quant(&m->x_quant, &a->x.quant);
        avx512_begin_quant(&m->argument_quant, &a->argument.quant);
        avx512_begin_quant(&m->out_quant, &a->out.quant);
    }
    m->p.center = a->center ? a->center : any;
    m->p.scale = a->scale;
    m->p.shift = a->shift ? a->shift : any;
    m->p.invstd = sloped ? a->invstd : any;
    m->p.slope = sloped ? a->slope : any;
    m->p.offset = sloped ? a->offset : any;
    const bnorm_act_kind kind =
        backward && m->pre == BNORM_PRE_NONE ? BNORM_ACT_IDENTITY : m->act.kind;
    m->act.kind = kind;
    m->direction = avx512_direction;
    m->writes_bits = !backward && m->bits;
    m->any = all[BNORM_OTHERS].rows;
    const struct avx512_functions *const avx512_functions = avx512_functions_of(m, all);
    m->spread = avx512_functions->planes;
    m->loaded = avx512_functions->rows;
    m->held = avx512_functions->held;
}

/* Axes of a tensor. */
enum avx512_axis { avx512_IMAGES, avx512_GROUPS, avx512_ROWS };

/* Element 0 of a group, and runs of `lanes` that follow one another along an axis. */
BNORM_INLINE void avx512_begin_block(struct avx512_block *b, const struct avx512_mapping *m, const bnorm_map_args *a,
                              enum avx512_axis avx512_axis, size_t image, size_t group) {
#define BNORM_STRIDE(t)                                                                            \
    (avx512_axis == avx512_IMAGES ? a->t.image_stride : avx512_axis == avx512_GROUPS ? a->t.group_stride : a->t.row_stride)
#define BNORM_TENSOR(t, present, size)                                                             \
    b->strides.t = 0;                                                                              \
    if (present) {                                                                                 \
        const size_t stride = BNORM_STRIDE(t);                                                     \
        b->run.t =                                                                                 \
            (char *)a->t.data + (image * a->t.image_stride + group * a->t.group_stride) * (size);  \
        b->strides.t = stride * (size);                                                            \
        b->dense &= stride == a->lanes;                                                            \
    }
    b->lanes = a->lanes;
    b->rows = avx512_axis == avx512_IMAGES ? a->images : avx512_axis == avx512_GROUPS ? a->groups : a->rows;
    b->dense = 1;
    BNORM_TENSOR(x, 1, m->size)
    b->run.dy = b->run.argument = b->run.x;
    b->run.out = b->run.dresidual = (char *)(uintptr_t)b->run.x;
    BNORM_TENSOR(dy, a->dy.data, m->size)
    BNORM_TENSOR(argument, avx512_reads_extra(a->pre), m->size)
    BNORM_TENSOR(out, m->has_out, m->out_size)
    BNORM_TENSOR(dresidual, m->has_dresidual, m->out_size)
    b->run.bit = a->mask.at + image * a->mask.image_stride + group * a->mask.group_stride;
    b->strides.bit = BNORM_STRIDE(mask);
    b->dense &= !m->bits || b->strides.bit == b->lanes;
    avx512_begin_period(b);
#undef BNORM_TENSOR
#undef BNORM_STRIDE
}

/* Whether rows are so short that a vector has whole ones, and follow one another without a gap. */
BNORM_INLINE int are_short_rows(const struct avx512_mapping *m, const bnorm_map_args *a) {
    struct avx512_block b;
    if (!m->spread || VEC_F % a->lanes || a->rows * a->lanes < VEC_F || a->valid < a->lanes)
        return 0;
    avx512_begin_block(&b, m, a, avx512_ROWS, 0, 0);
    return b.dense;
}

static void map_all_rows(const bnorm_map_args *a, enum avx512_direction avx512_direction,
                         const struct avx512_functions *all) {
    struct avx512_mapping m;
    struct avx512_block b;
    avx512_begin_mapping(&m, a, avx512_direction, all);
    if (are_short_rows(&m, a)) {
        for (size_t image = 0; image < a->images; image++) {
            avx512_begin_block(&b, &m, a, avx512_GROUPS, image, 0);
            b.lanes = a->rows * a->lanes;
            b.each = a->lanes;
            avx512_map_form(m.spread, &m, &b);
        }
    } else
        for (size_t group = 0; group < a->groups; group++) {
            for (size_t image = 0; image < a->images; image++) {
                avx512_begin_block(&b, &m, a, avx512_ROWS, image, group);
                if (a->valid < a->lanes)
                    avx512_map_padded(&m, &b, a->valid);
                else
                    map_rows(&m, &b);
            }
            m.p.center += a->lanes;
            m.p.scale += a->lanes;
            m.p.shift += a->lanes;
            m.p.invstd += a->lanes;
            m.p.slope += a->lanes;
            m.p.offset += a->lanes;
        }
    if (m.hints & BNORM_BYPASS)
        avx512_vec_fence();
    avx512_vec_leave();
}

static void map_all_planes(const bnorm_map_args *a, enum avx512_direction avx512_direction,
                           const struct avx512_functions *all) {
    struct avx512_mapping m;
    struct avx512_block b;
    avx512_begin_mapping(&m, a, avx512_direction, all);
    const size_t small = m.loaded == m.any ? BNORM_SMALL_ANY
                         : a->images > 1   ? BNORM_SMALL_PLANES
                                           : BNORM_SMALL_PLANE;
    avx512_begin_block(&b, &m, a, avx512_GROUPS, 0, 0);
    if (a->lanes < small && b.dense) {
        struct avx512_block images;
        avx512_begin_block(&images, &m, a, avx512_IMAGES, 0, 0);
        map_small_planes(&m, &b, &images);
    } else {
        for (size_t image = 0; image < a->images; image++) {
            avx512_begin_block(&b, &m, a, avx512_GROUPS, image, 0);
            map_planes(&m, &b);
        }
    }
    if (m.hints & BNORM_BYPASS)
        avx512_vec_fence();
    avx512_vec_leave();
}

static void avx512_apply_rows(const bnorm_map_args *a) {
    map_all_rows(a, avx512_FORWARD, avx512_forward_functions);
}
static void avx512_apply_span(const bnorm_map_args *a) {
    map_all_planes(a, avx512_FORWARD, avx512_forward_functions);
}
static void avx512_dx_rows(const bnorm_map_args *a) {
    map_all_rows(a, avx512_BACKWARD, avx512_backward_functions);
}
static void avx512_dx_span(const bnorm_map_args *a) {
    map_all_planes(a, avx512_BACKWARD, avx512_backward_functions);
}
/* SPDX-License-Identifier: MIT
 *
 * What lies between the passes of an operation: blocks merged, and per-channel coefficients. In
 * double; src/scalar/scalar.c says what. Channels take a lane each, so that all sets divide and
 * take roots alike. */

/* Vectors of channels that go through the blocks side by side: one alone would wait for its own
 * results. */
#define BNORM_SIDE 4

/* Rounded to floats, n of them. */
BNORM_INLINE void avx512_narrow_lanes(float *p, avx512_vec_d v, size_t n) {
    const avx512_vec_d canonical = avx512_vec_canonical_d(v);
    if (n == VEC_D)
        avx512_vec_narrow_store(p, canonical);
    else
        avx512_vec_narrow_store_n(p, canonical, n);
}

/* A parameter, or its default where the array is absent. */
BNORM_INLINE avx512_vec_d avx512_parameter_d(const float *p, size_t i, size_t n, double otherwise) {
    return p ? avx512_widen_lanes(p + i, n) : avx512_vec_set1_d(otherwise);
}

/* a*b + c, c where a is 0 */
BNORM_INLINE avx512_vec_d avx512_plus_product(avx512_vec_d a, avx512_vec_d b, avx512_vec_d c) {
    return avx512_vec_if_eq_d(a, avx512_vec_set1_d(0), c, avx512_vec_fma_d(a, b, c));
}

/* v, 1 in lanes from the n-th on, which hold no channel. */
BNORM_INLINE avx512_vec_d avx512_or_one(avx512_vec_d v, size_t n) {
    static const double lane[] = {0, 1, 2, 3, 4, 5, 6, 7};
    if (n == VEC_D)
        return v;
    return avx512_vec_if_lt_d(vec_load_d(lane), avx512_vec_set1_d((double)n), v, avx512_vec_set1_d(1));
}

/* body(i, vectors, n) for all channels: n lanes of `vectors` vectors from channel i on. What is
 * large, with vectors side by side, has no body of its own for a single whole one. */
#define BNORM_FOR_CHANNELS(first, c, side, body)                                                   \
    do {                                                                                           \
        const size_t end = (first) + (c);                                                          \
        size_t i = (first);                                                                        \
        for (; i + (side)*VEC_D <= end; i += (side)*VEC_D)                                         \
            body(i, side, VEC_D);                                                                  \
        for (; (side) > 1 && i < end; i += VEC_D)                                                  \
            body(i, 1, avx512_lesser(VEC_D, end - i));                                                    \
        if ((side) == 1 && i < end)                                                                \
            body(i, 1, end - i);                                                                   \
    } while (0)

/* Channels [i, i + vectors*VEC_D), or the first n lanes of one vector, of a part of the batch:
 * their sum and M2, or their two sums. */
struct avx512_nodes {
    avx512_vec_d a[BNORM_SIDE], b[BNORM_SIDE];
};

BNORM_INLINE struct avx512_nodes avx512_load_nodes(const bnorm_partials *p, size_t row, size_t i, size_t vectors,
                                     size_t n) {
    const size_t at = row * p->stride + i;
    struct avx512_nodes all;
    BNORM_UNROLL
    for (size_t v = 0; v < vectors; v++) {
        all.a[v] = load_d_lanes(p->entries[0] + at + v * VEC_D, n);
        all.b[v] = load_d_lanes(p->entries[1] + at + v * VEC_D, n);
    }
    return all;
}

BNORM_INLINE void avx512_store_nodes(const bnorm_partials *p, size_t row, size_t i, size_t vectors,
                              size_t n, const struct avx512_nodes *all) {
    const size_t at = row * p->stride + i;
    BNORM_UNROLL
    for (size_t v = 0; v < vectors; v++) {
        store_d_lanes(p->entries[0] + at + v * VEC_D, all->a[v], n);
        store_d_lanes(p->entries[1] + at + v * VEC_D, all->b[v], n);
    }
}

/* One piece and the one after it, of n_left and n_right values; those of sums are not looked at. */
BNORM_INLINE void avx512_join_nodes(enum avx512_tree avx512_tree, size_t vectors, const struct avx512_nodes *left,
                             struct avx512_nodes *right, double n_left, double n_right) {
    const int merged = avx512_tree == avx512_BNORM_MERGED, halves = n_left == n_right;
    const avx512_vec_d weight = avx512_vec_set1_d(merged ? n_left / (n_right * (n_left + n_right)) : 0);
    const avx512_vec_d count = avx512_vec_set1_d(n_left), minus_next = avx512_vec_set1_d(-n_right);
    BNORM_UNROLL
    for (size_t v = 0; v < vectors; v++) {
        const avx512_vec_d a = left->a[v], next = right->a[v], both = avx512_vec_add_d(left->b[v], right->b[v]);
        right->a[v] = avx512_vec_add_d(a, next);
        right->b[v] = both;
        if (merged) {
            const avx512_vec_d excess =
                halves ? avx512_vec_sub_d(next, a) : avx512_vec_fma_d(minus_next, avx512_vec_div_d(a, count), next);
            right->b[v] = avx512_vec_fma_d(avx512_vec_mul_d(excess, excess), weight, both);
        }
    }
}

/* An image from its blocks, or a leaf of `images`, from this row on. */
BNORM_INLINE struct avx512_nodes avx512_image_nodes(enum avx512_tree avx512_tree, const bnorm_partials *p, size_t row,
                                      size_t images, size_t i, size_t vectors, size_t n) {
    struct avx512_nodes all = avx512_load_nodes(p, row, i, vectors, n);
    double before = p->per_image > 1 ? p->size : p->last * (double)images;
    for (size_t b = 1; b < p->per_image; b++) {
        const double avx512_block = b + 1 < p->per_image ? p->size : p->last;
        struct avx512_nodes next = avx512_load_nodes(p, row + b, i, vectors, n);
        avx512_join_nodes(avx512_tree, vectors, &all, &next, before, avx512_block);
        all = next;
        before += avx512_block;
    }
    return all;
}

/* Images come in order; a subtree waits where its blocks were for the one next to it. */
BNORM_INLINE void avx512_tree_lanes(enum avx512_tree avx512_tree, const bnorm_partials *p, size_t i, size_t vectors,
                             size_t n, double *first, double *second) {
    struct {
        size_t images, row;
    } waiting[BNORM_LEVELS];
    const size_t end = p->first + p->n;
    size_t depth = 0, row = 0;
    struct avx512_nodes all, left;
    for (size_t image = p->first, next; image < end; image = next) {
        size_t images = bnorm_subtree(image, end, p->leaf), begin = image, at = row;
        next = image + images;
        all = avx512_image_nodes(avx512_tree, p, row, images, i, vectors, n);
        row += p->per_image;
        for (; depth && waiting[depth - 1].images == images && (begin & images); images *= 2) {
            at = waiting[--depth].row;
            left = avx512_load_nodes(p, at, i, vectors, n);
            avx512_join_nodes(avx512_tree, vectors, &left, &all, (double)images * p->hw, (double)images * p->hw);
            begin -= images;
        }
        avx512_store_nodes(p, at, i, vectors, n, &all);
        waiting[depth].images = images;
        waiting[depth++].row = at;
    }
    if (!first)
        return;
    double behind = (double)waiting[depth - 1].images;
    while (--depth) {
        const double images = (double)waiting[depth - 1].images;
        left = avx512_load_nodes(p, waiting[depth - 1].row, i, vectors, n);
        avx512_join_nodes(avx512_tree, vectors, &left, &all, images * p->hw, behind * p->hw);
        behind += images;
    }
    const avx512_vec_d count = avx512_vec_set1_d(behind * p->hw);
    BNORM_UNROLL
    for (size_t v = 0; v < vectors; v++) {
        const avx512_vec_d b = avx512_vec_canonical_d(all.b[v]);
        const avx512_vec_d a = avx512_tree == avx512_BNORM_MERGED ? avx512_vec_if_eq_d(b, b, avx512_vec_div_d(all.a[v], count), b)
                                             : avx512_vec_canonical_d(all.a[v]);
        store_d_lanes(first + i + v * VEC_D, a, n);
        store_d_lanes(second + i + v * VEC_D, b, n);
    }
}

static void avx512_merge(const bnorm_partials *p, size_t first, size_t c, double *mean, double *m2) {
#define BNORM_CALL(i, vectors, n) avx512_tree_lanes(avx512_BNORM_MERGED, p, i, vectors, n, mean, m2)
    BNORM_FOR_CHANNELS(first, c, BNORM_SIDE, BNORM_CALL);
#undef BNORM_CALL
    avx512_vec_leave();
}

static void avx512_add_blocks(const bnorm_partials *p, size_t first, size_t c, double *sum_g,
                       double *sum_gx) {
#define BNORM_CALL(i, vectors, n) avx512_tree_lanes(avx512_BNORM_ADDED, p, i, vectors, n, sum_g, sum_gx)
    BNORM_FOR_CHANNELS(first, c, BNORM_SIDE, BNORM_CALL);
#undef BNORM_CALL
    avx512_vec_leave();
}

static void avx512_merge_pair(const bnorm_pair_args *a, size_t c) {
    for (size_t i = 0; i < c; i += VEC_D) {
        const size_t n = avx512_lesser(VEC_D, c - i);
        struct avx512_nodes left, right;
        left.a[0] = load_d_lanes(a->sum + i, n);
        left.b[0] = load_d_lanes(a->m2 + i, n);
        right.a[0] = load_d_lanes(a->next_sum + i, n);
        right.b[0] = load_d_lanes(a->next_m2 + i, n);
        avx512_join_nodes(avx512_BNORM_MERGED, 1, &left, &right, a->n[0], a->n[1]);
        store_d_lanes(a->sum + i, avx512_vec_canonical_d(right.a[0]), n);
        store_d_lanes(a->m2 + i, avx512_vec_canonical_d(right.b[0]), n);
    }
    avx512_vec_leave();
}

/* scale = gamma*invstd and shift = beta - mean_lo*scale; a product of two floats is exact. */
BNORM_INLINE void avx512_scale_and_shift(avx512_vec_d gamma, avx512_vec_d beta, avx512_vec_d mean_lo, avx512_vec_d invstd,
                                  float *scale, float *shift, size_t n) {
    const avx512_vec_d rounded = avx512_vec_round_d(avx512_vec_mul_d(gamma, invstd));
    const avx512_vec_d minus_low = avx512_vec_mul_d(avx512_vec_set1_d(-1), mean_lo);
    avx512_narrow_lanes(scale, rounded, n);
    avx512_narrow_lanes(shift, avx512_plus_product(minus_low, rounded, beta), n);
}

/* old + rate*(batch - old) */
BNORM_INLINE avx512_vec_d avx512_blended(double rate, avx512_vec_d batch, avx512_vec_d old) {
    return avx512_vec_fma_d(avx512_vec_set1_d(rate), avx512_vec_sub_d(batch, old), old);
}

/* The same where some lanes have an infinity or a NaN, whose difference the average does not
 * have. */
BNORM_RARE void avx512_blend_infinite(double rate, double batch[VEC_D], double old[VEC_D]) {
    double average[VEC_D];
    unsigned bits = 0;
    for (size_t i = 0; i < VEC_D; i++) {
        if (!__builtin_isfinite(old[i]) || !__builtin_isfinite(batch[i])) {
            average[i] = (1 - rate) * old[i] + rate * batch[i];
            batch[i] = old[i] = 0;
            bits |= 1u << i;
        }
    }
    vec_store_d(batch, avx512_blended(rate, vec_load_d(batch), vec_load_d(old)));
    avx512_replace_lanes(bits, average, batch);
}

/* (1 - rate)*old + rate*batch. Rate 1 takes the batch's value whatever the old one is, rate 0 keeps
 * the old one whatever the batch's is. */
BNORM_INLINE void avx512_blend_lanes(const float *running, float *updated, double rate, avx512_vec_d batch,
                              size_t n) {
    if (rate != 1) {
        const avx512_vec_d old = avx512_widen_lanes(running, n);
        if (rate == 0) {
            batch = old;
        } else if (avx512_vec_outside_d(old, -DBL_MAX, DBL_MAX) |
                   avx512_vec_outside_d(batch, -DBL_MAX, DBL_MAX)) {
            double values[VEC_D], olds[VEC_D];
            vec_store_d(values, batch);
            vec_store_d(olds, old);
            avx512_blend_infinite(rate, values, olds);
            batch = vec_load_d(values);
        } else {
            batch = avx512_blended(rate, batch, old);
        }
    }
    avx512_narrow_lanes(updated, batch, n);
}

BNORM_INLINE void avx512_coefficient_lanes(const bnorm_coefficient_args *a, size_t i, size_t n) {
    const avx512_vec_d zero = avx512_vec_set1_d(0), count = avx512_vec_set1_d(a->n);
    const avx512_vec_d mean = load_d_lanes(a->mean + i, n), m2 = load_d_lanes(a->m2 + i, n);
    const avx512_vec_d variance = avx512_vec_div_d(m2, count);

    if (a->scale) {
        const avx512_vec_d high = avx512_vec_round_d(mean), low = avx512_vec_round_d(avx512_vec_sub_d(mean, high));
        const avx512_vec_d one = avx512_vec_set1_d(1);
        const avx512_vec_d spread = avx512_or_one(avx512_vec_add_d(variance, avx512_vec_set1_d(a->eps)), n);
        /* 0/1 where the root is 0 */
        const avx512_vec_d root = avx512_vec_if_eq_d(spread, zero, one, avx512_vec_sqrt_d(spread));
        const avx512_vec_d invstd = avx512_vec_round_d(avx512_vec_div_d(avx512_vec_if_eq_d(spread, zero, zero, one), root));
        avx512_narrow_lanes(a->center + i, high, n);
        avx512_scale_and_shift(avx512_parameter_d(a->gamma, i, n, 1), avx512_parameter_d(a->beta, i, n, 0), low, invstd,
                        a->scale + i, a->shift + i, n);
        if (a->save_mean)
            avx512_narrow_lanes(a->save_mean + i, high, n);
        if (a->save_mean_lo)
            avx512_narrow_lanes(a->save_mean_lo + i, low, n);
        if (a->save_invstd)
            avx512_narrow_lanes(a->save_invstd + i, invstd, n);
        if (a->save_var)
            avx512_narrow_lanes(a->save_var + i, variance, n);
    }
    if (a->new_mean)
        avx512_blend_lanes(a->running_mean + i, a->new_mean + i, a->rate, mean, n);
    if (a->new_var)
        avx512_blend_lanes(a->running_var + i, a->new_var + i, a->rate,
                    a->divisor == a->n ? variance : avx512_vec_div_d(m2, avx512_vec_set1_d(a->divisor)), n);
}

static void avx512_coefficients(const bnorm_coefficient_args *a, size_t first, size_t c) {
#define BNORM_CALL(i, vectors, n) avx512_coefficient_lanes(a, i, n)
    BNORM_FOR_CHANNELS(first, c, 1, BNORM_CALL);
#undef BNORM_CALL
    avx512_vec_leave();
}

static void avx512_scale_shift(const bnorm_scale_args *a, size_t c) {
#define BNORM_CALL(i, vectors, n)                                                                  \
    avx512_scale_and_shift(avx512_parameter_d(a->gamma, i, n, 1), avx512_parameter_d(a->beta, i, n, 0),                 \
                    avx512_parameter_d(a->mean_lo, i, n, 0), avx512_widen_lanes(a->invstd + i, n), a->scale + i, \
                    a->shift + i, n)
    BNORM_FOR_CHANNELS((size_t)0, c, 1, BNORM_CALL);
#undef BNORM_CALL
    avx512_vec_leave();
}

BNORM_INLINE void avx512_grad_coefficient_lanes(const bnorm_grad_coefficient_args *a, size_t i, size_t n) {
    const avx512_vec_d sum_g = load_d_lanes(a->sum_g + i, n), sum_gx = load_d_lanes(a->sum_gx + i, n);
    const avx512_vec_d minus_one = avx512_vec_set1_d(-1), zero = avx512_vec_set1_d(0), count = avx512_vec_set1_d(a->n);
    const avx512_vec_d minus_low = avx512_vec_mul_d(minus_one, avx512_parameter_d(a->mean_lo, i, n, 0));
    const avx512_vec_d invstd = avx512_widen_lanes(a->invstd + i, n);
    const avx512_vec_d dgamma = avx512_vec_mul_d(avx512_plus_product(minus_low, sum_g, sum_gx), invstd);

    if (a->dgamma)
        avx512_narrow_lanes(a->dgamma + i, dgamma, n);
    if (a->dbeta)
        avx512_narrow_lanes(a->dbeta + i, sum_g, n);
    if (!a->slope)
        return;
    const avx512_vec_d minus_scale =
        avx512_vec_mul_d(minus_one, avx512_vec_mul_d(avx512_parameter_d(a->gamma, i, n, 1), invstd));
    avx512_vec_d slope = avx512_vec_round_d(avx512_vec_mul_d(minus_scale, avx512_vec_div_d(dgamma, count)));
    avx512_vec_d offset = avx512_plus_product(avx512_vec_mul_d(minus_low, invstd), slope,
                                avx512_vec_mul_d(minus_scale, avx512_vec_div_d(sum_g, count)));
    if (a->n == 1) {
        /* x - x is 0 for what is finite */
        const avx512_vec_d scale = avx512_widen_lanes(a->scale + i, n), none = avx512_vec_sub_d(scale, scale);
        avx512_narrow_lanes(a->scale + i, avx512_vec_if_eq_d(none, zero, zero, scale), n);
        slope = avx512_vec_if_eq_d(none, zero, zero, slope);
        offset = avx512_vec_if_eq_d(none, zero, zero, offset);
    }
    avx512_narrow_lanes(a->slope + i, slope, n);
    avx512_narrow_lanes(a->offset + i, offset, n);
}

static void avx512_grad_coefficients(const bnorm_grad_coefficient_args *a, size_t first, size_t c) {
#define BNORM_CALL(i, vectors, n) avx512_grad_coefficient_lanes(a, i, n)
    BNORM_FOR_CHANNELS(first, c, 1, BNORM_CALL);
#undef BNORM_CALL
    avx512_vec_leave();
}

/* The tables of this kernel set, made from the lists. */
#define BNORM_ENTRY(kernel, args) .kernel = avx512_##kernel,
#define BNORM_INFERENCE_TABLE(set)                                                                 \
    { .name = set, BNORM_INFERENCE_KERNELS(BNORM_ENTRY) }
#define BNORM_TRAINING_TABLE                                                                       \
    { BNORM_TRAINING_KERNELS(BNORM_ENTRY) }

#if defined(__clang__)
#pragma clang attribute pop
#else
#pragma GCC pop_options
/* MinGW's gcc says of vectors that functions return that AVX is off here: they are not called from
 * here. */
#pragma GCC diagnostic ignored "-Wpsabi"
#endif

const struct bnorm_isa bnorm_isa_avx512 = BNORM_INFERENCE_TABLE("avx512");
const bnorm_training bnorm_training_avx512 = BNORM_TRAINING_TABLE;

#endif
#undef add_fours_of_rows
#undef add_other_rows
#undef add_planes
#undef add_rows
#undef add_rows_dy_bf16
#undef add_rows_dy_f16
#undef add_rows_dy_f32
#undef add_rows_limited_mask
#undef add_rows_limited_residual
#undef add_rows_limited_x
#undef add_rows_limited_y
#undef add_rows_squares_bf16
#undef add_rows_squares_f16
#undef add_rows_squares_f32
#undef are_short_rows
#undef backward_any_rows
#undef backward_bf16_planes
#undef backward_bf16_rows
#undef backward_f16_planes
#undef backward_f16_rows
#undef backward_frozen_planes
#undef backward_frozen_rows
#undef backward_identity_planes
#undef backward_identity_rows
#undef backward_relu_planes
#undef backward_relu_rows
#undef block_rows
#undef bnorm_bits_double
#undef bnorm_block
#undef bnorm_block_at
#undef bnorm_block_rows
#undef bnorm_blocks
#undef bnorm_blocks_of
#undef bnorm_ceil_div
#undef bnorm_chains
#undef bnorm_channel_of
#undef bnorm_check_float_shape
#undef bnorm_check_shape
#undef bnorm_check_strides
#undef bnorm_counts_groups
#undef bnorm_dense_tensor
#undef bnorm_double_bits
#undef bnorm_exact_product
#undef bnorm_exact_sum
#undef bnorm_first_position
#undef bnorm_fit_view
#undef bnorm_fma
#undef bnorm_fma_rare
#undef bnorm_fmaf
#undef bnorm_is_empty
#undef bnorm_mantissa
#undef bnorm_min
#undef bnorm_move_to
#undef bnorm_odd_sum
#undef bnorm_offset_of
#undef bnorm_part
#undef bnorm_part_of
#undef bnorm_places
#undef bnorm_positions
#undef bnorm_power_of_2
#undef bnorm_samples
#undef bnorm_set_bits
#undef bnorm_size_of
#undef bnorm_slices
#undef bnorm_some_positions
#undef bnorm_some_slices
#undef bnorm_stored_exponent
#undef bnorm_subtree
#undef bnorm_subtrees
#undef bnorm_sum
#undef bnorm_take_samples
#undef bnorm_unit
#undef bnorm_values_of
#undef bnorm_view
#undef bnorm_view_of
#undef bnorm_whole
#undef chain_rows
#undef clear_rows
#undef forward_any_planes
#undef forward_any_rows
#undef forward_bf16_planes
#undef forward_bf16_rows
#undef forward_clamp_held
#undef forward_clamp_planes
#undef forward_clamp_rows
#undef forward_f16_planes
#undef forward_f16_rows
#undef forward_identity_held
#undef forward_identity_planes
#undef forward_identity_rows
#undef forward_relu_held
#undef forward_relu_planes
#undef forward_relu_rows
#undef join_rows
#undef leaf_rows
#undef load_bf16_lanes
#undef load_d_lanes
#undef load_f16_lanes
#undef load_rows
#undef map_all_planes
#undef map_all_rows
#undef map_held
#undef map_planes
#undef map_rows
#undef map_small_planes
#undef map_whole_rows
#undef reduce_rows
#undef sample_planes
#undef sample_rows
#undef staged_rows
#undef store_bf16_lanes
#undef store_d_lanes
#undef store_f16_lanes
#undef sum_planes
#undef sum_planes_dy_bf16
#undef sum_planes_dy_f16
#undef sum_planes_dy_f32
#undef sum_planes_limited_mask
#undef sum_planes_limited_residual
#undef sum_planes_limited_x
#undef sum_planes_limited_y
#undef sum_planes_squares_bf16
#undef sum_planes_squares_f16
#undef sum_planes_squares_f32
#undef sum_rows
#undef sum_staged_planes
#undef vec_four_bf16
#undef vec_four_f16
#undef vec_load_bf16
#undef vec_load_d
#undef vec_load_d_n
#undef vec_load_f16
#undef vec_load_fours
#undef vec_load_n
#undef vec_load_s8
#undef vec_load_u8
#undef vec_round_bf16
#undef vec_store_8
#undef vec_store_8_4
#undef vec_store_bf16
#undef vec_store_bf16_2
#undef vec_store_d
#undef vec_store_d_n
#undef vec_store_f16
#undef vec_store_n
#undef widen_rows
#undef VEC_F
#undef VEC_D
#undef VEC_SLEEF
#undef BNORM_ORDER_H
#undef BNORM_TENSOR_H
#undef BNORM_GROUP
#undef BNORM_SAMPLES
#undef BNORM_PLACES
#undef BNORM_SPAN_LANES
#undef BNORM_MAX_LANES
#undef BNORM_BLOCK_SPAN
#undef BNORM_TREE
#undef BNORM_LEVELS
#undef BNORM_LEAF
#undef BNORM_INLINE
#undef BNORM_RARE
#undef BNORM_AHEAD
#undef BNORM_UNLIKELY
#undef BNORM_UNROLL
#undef BNORM_UNROLL_SOME
#undef BNORM_NO_UNROLL
#undef BNORM_TILE
#undef BNORM_PAD
#undef BNORM_STAGE
#undef BNORM_HALF_LANES
#undef SMOOTH_REGISTER
#undef SMOOTH_FUNCTION_
#undef SMOOTH_FUNCTION
#undef SMOOTH_EXP_ZERO
#undef SMOOTH_NORMAL_ZERO
#undef SMOOTH_TANH_ONE
#undef BNORM_PLAIN_KINDS
#undef BNORM_FMA_H
#undef BNORM_SQUARES
#undef BNORM_GENERAL
#undef BNORM_SUM_ARGS
#undef BNORM_SUM_TYPES
#undef BNORM_SUM_FORMS
#undef BNORM_GROUP_LANES
#undef BNORM_ROWS_FORM
#undef BNORM_ROWS_ENTRY
#undef BNORM_FOUR_SPAN
#undef BNORM_GROUP_SPAN
#undef BNORM_STAGE_LANES
#undef BNORM_PLANES_FORM
#undef BNORM_PLANES_ENTRY
#undef BNORM_LEAST_SUM
#undef BNORM_FOLD
#undef BNORM_AGAIN
#undef BNORM_TWIG
#undef BNORM_LEAF_TILE
#undef BNORM_VECTORS
#undef BNORM_GROUP_F
#undef BNORM_AHEAD_OUT
#undef BNORM_PART
#undef BNORM_LONG_RUN
#undef BNORM_LONG_ROW
#undef BNORM_ROOM
#undef BNORM_SMALL_PLANE
#undef BNORM_SMALL_PLANES
#undef BNORM_SMALL_ANY
#undef BNORM_ANY
#undef BNORM_FOR_PARAMETERS
#undef BNORM_EACH
#undef BNORM_FORM
#undef BNORM_FORMS
#undef BNORM_FORWARD_F32
#undef BNORM_OTHERS
#undef BNORM_SIDE
#undef BNORM_FOR_CHANNELS
#undef BNORM_ENTRY
#undef BNORM_INFERENCE_TABLE
#undef BNORM_TRAINING_TABLE

/* --------------------------------------------------------------------------------- src/tensor.h */

/*
 * How tensors of every layout are counted through, and the memory of one. All that follows from
 * the layout of a shape is in here. */
#ifndef BNORM_TENSOR_H
#define BNORM_TENSOR_H

#include <stdint.h>

static inline size_t bnorm_min(size_t a, size_t b) {
    return a < b ? a : b;
}

static inline size_t bnorm_ceil_div(size_t a, size_t b) {
    return a / b + (a % b != 0);
}

/* Bytes of an element. */
static inline size_t bnorm_size_of(bnorm_dtype type) {
    return type == BNORM_F32 ? 4 : type == BNORM_BF16 || type == BNORM_F16 ? 2 : 1;
}

static inline int bnorm_is_empty(const bnorm_shape *shape) {
    return shape->n == 0 || shape->hw == 0;
}

/* A shape as images of groups of rows of lanes; see bnorm_tensor. There are two families:
 *   rows     a lane is a channel: lane i of group g is channel g*lanes + i, or padding.
 *            NHWC has one group, a blocked tensor one per block. (N, C) data is one image of n
 *            rows, one group where channels are next to each other, else one per channel
 *   planes   a group is a channel, of one row: NCHW */
typedef struct bnorm_view {
    int planes;
    int leaves; /* rows are samples: (N, C) data */
    size_t images, groups, rows, lanes;
    size_t c;         /* channels */
    size_t positions; /* of a channel in an image: rows, or lanes of planes */
} bnorm_view;

bnorm_view bnorm_view_of(const bnorm_shape *shape);

/* Values per channel. */
static inline double bnorm_values_of(const bnorm_view *view) {
    return (double)view->images * (double)view->positions;
}

/* A rectangle of a view. */
typedef struct bnorm_part {
    size_t image, images, group, groups, row, rows, lane, lanes;
} bnorm_part;

static inline bnorm_part bnorm_whole(const bnorm_view *view) {
    return (bnorm_part){
        .images = view->images, .groups = view->groups, .rows = view->rows, .lanes = view->lanes};
}

/* Whether channels are counted by groups, not by the lanes of the only one. */
static inline int bnorm_counts_groups(const bnorm_view *view) {
    return view->planes || view->groups > 1;
}

/* Channels of a group. */
static inline size_t bnorm_unit(const bnorm_view *view) {
    return view->planes ? 1 : view->lanes;
}

/* The first channel of a part, for its parameters. */
static inline size_t bnorm_channel_of(const bnorm_view *view, const bnorm_part *part) {
    return part->group * bnorm_unit(view) + (view->planes ? 0 : part->lane);
}

/* Positions of each image of a part: the first, and how many. */
static inline size_t bnorm_first_position(const bnorm_view *view, const bnorm_part *part) {
    return view->planes ? part->lane : part->row;
}
static inline size_t bnorm_positions(const bnorm_view *view, const bnorm_part *part) {
    return view->planes ? part->lanes : part->rows;
}
/* The n positions of a part from number `at` on. */
static inline bnorm_part bnorm_some_positions(const bnorm_view *view, const bnorm_part *whole,
                                              size_t at, size_t n) {
    bnorm_part part = *whole;
    *(view->planes ? &part.lane : &part.row) += at;
    *(view->planes ? &part.lanes : &part.rows) = n;
    return part;
}

/* Groups of a part, where channels are counted by these, or lanes: how many, and n of them from
 * number `at` on. */
static inline size_t bnorm_slices(const bnorm_view *view, const bnorm_part *part) {
    return bnorm_counts_groups(view) ? part->groups : part->lanes;
}
static inline bnorm_part bnorm_some_slices(const bnorm_view *view, const bnorm_part *whole,
                                           size_t at, size_t n) {
    const int groups = bnorm_counts_groups(view);
    bnorm_part part = *whole;
    *(groups ? &part.group : &part.lane) += at;
    *(groups ? &part.groups : &part.lanes) = n;
    return part;
}

/* Channels [channel, channel + channels) of positions [from, from + len) of one image: whole groups
 * where there are several. */
static inline bnorm_part bnorm_part_of(const bnorm_view *view, size_t channel, size_t channels,
                                       size_t image, size_t from, size_t len) {
    bnorm_part part = {.image = image, .images = 1, .groups = 1, .rows = 1};
    if (view->planes) {
        part.group = channel;
        part.groups = channels;
        part.lane = from;
        part.lanes = len;
        return part;
    }
    part.row = from;
    part.rows = len;
    part.lane = channel;
    part.lanes = channels;
    if (view->groups > 1) {
        part.group = channel / view->lanes;
        part.groups = bnorm_ceil_div(channels, view->lanes);
        part.lane = 0;
        part.lanes = view->lanes;
    } else if (channel + channels == view->c) {
        part.lanes = view->lanes - channel; /* with the padding */
    }
    return part;
}

/* Where a part begins, in elements. */
static inline size_t bnorm_offset_of(const bnorm_tensor *tensor, const bnorm_part *part) {
    return part->image * tensor->image_stride + part->group * tensor->group_stride +
           part->row * tensor->row_stride + (tensor->same_lanes ? 0 : part->lane);
}

/* Moves a tensor to where a part begins. */
static inline void bnorm_move_to(bnorm_tensor *tensor, const bnorm_part *part) {
    if (tensor->data)
        tensor->data =
            (char *)tensor->data + bnorm_offset_of(tensor, part) * bnorm_size_of(tensor->type);
}

/* Moves a tensor to sample `first`, from which it has every `step`th one. */
void bnorm_take_samples(const bnorm_view *view, bnorm_tensor *tensor, size_t first, size_t step);

bnorm_status bnorm_check_shape(const bnorm_shape *shape);
/* The shape of an operation with statistics: not for quantized tensors. */
bnorm_status bnorm_check_float_shape(const bnorm_shape *shape);

/* The dense tensor of a shape, without data: quantized by 1 and 0; returns its elements. The shape
 * has been checked and is not empty. */
size_t bnorm_dense_tensor(const bnorm_shape *shape, bnorm_tensor *tensor);

/* Makes it one with other strides, or with one value only along the axes `broadcast`. Fills *extent,
 * the elements from the first to one past the last. */
bnorm_status bnorm_check_strides(const bnorm_shape *shape, bnorm_in in, unsigned broadcast,
                                 bnorm_tensor *tensor, size_t *extent);

/* The bits of a mask, or none: those of the dense tensor. */
void bnorm_set_bits(const bnorm_shape *shape, unsigned char *mask, bnorm_bits *bits);

/* Changes the view where the channels of a tensor of (N, C) data are not next to each other. */
static inline void bnorm_fit_view(bnorm_view *view, const bnorm_tensor *tensor) {
    if (view->leaves && view->groups == 1 && tensor->data && tensor->group_stride != 1) {
        view->groups = view->c;
        view->lanes = 1;
    }
}

#endif

/* ---------------------------------------------------------------------------------- src/order.h */

/*
 * How a tensor is cut for the reductions. Everything here depends on the shape alone, so that the
 * result has the same bits for every kernel set, schedule, stride and alignment. docs/numerics.md
 * explains the order. */
#ifndef BNORM_ORDER_H
#define BNORM_ORDER_H

/* Partial sums per channel in the rows family. Where c is no whole number of vectors several rows
 * share the lanes: the smallest power of two that makes c*chains at least 32 and leaves at most an
 * eighth of the vectors of 16 lanes empty. */
static inline size_t bnorm_chains(size_t c) {
    size_t chains = 1;
    while (c * chains < 32 || c * chains * 8 < (c * chains + 15) / 16 * 16 * 7)
        chains *= 2;
    return chains;
}

/* Rows are taken in groups of 16 per chain, which are added up in float. */
#define BNORM_GROUP 16
/* Rows of a block, spread over it, that its pivots are taken from: a power of two, up to 16. */
#define BNORM_SAMPLES 16
static inline size_t bnorm_samples(size_t rows) {
    return rows >= 16 ? 16 : rows >= 8 ? 8 : rows >= 4 ? 4 : rows >= 2 ? 2 : 1;
}

/* Places of a block of a plane, spread over it, that its pivot is taken from, four neighbours each:
 * neighbours are much alike, so that larger planes have more places. */
#define BNORM_PLACES 16
static inline size_t bnorm_places(size_t len) {
    return len >= 512 ? 16 : len >= 128 ? 8 : len >= 16 ? 4 : len >= 8 ? 2 : 1;
}

/* Chains of a block of a plane. */
#define BNORM_SPAN_LANES 32
/* Room for c*chains with more than one chain: the largest is 194, for c = 97. */
#define BNORM_MAX_LANES 208

/* Rows (pixels) of one image that form a block: a 64th of the image, but 64 to 128 KiB, whole
 * groups, and at least 64 rows. It depends on the image alone, so that batches can be cut anywhere
 * between images. */
static inline size_t bnorm_block_rows(size_t c, size_t hw) {
    const size_t group = BNORM_GROUP * bnorm_chains(c), least = 16384 / c, most = 32768 / c;
    size_t rows = hw / 64;
    if (rows < least)
        rows = least;
    if (rows > most)
        rows = most;
    if (rows < 64)
        rows = 64;
    return (rows + group - 1) / group * group;
}

/* Pixels of one plane that form a block. */
#define BNORM_BLOCK_SPAN 2048

/* Images are merged along a binary tree over their numbers in the whole batch. The largest whole
 * subtree of at most `most` images, a power of two, that begins with image i and ends before `end`:
 * its images. */
static inline size_t bnorm_subtree(size_t i, size_t end, size_t most) {
    const size_t aligned = i ? i & (0 - i) : most;
    size_t images = aligned < most ? aligned : most;
    while (images > end - i)
        images /= 2;
    return images;
}

/* How many of them images [first, first + n) are. */
static inline size_t bnorm_subtrees(size_t first, size_t n, size_t most) {
    const size_t end = first + n;
    size_t i = first, count = 0;
    for (; i < end && i % most; count++)
        i += bnorm_subtree(i, end, most);
    count += (end - i) / most;
    for (size_t rest = (end - i) % most; rest; rest &= rest - 1)
        count++;
    return count;
}

/* The largest subtree there can be, and the most levels. */
#define BNORM_TREE   (~(~(size_t)0 >> 1))
#define BNORM_LEVELS (2 * sizeof(size_t) * 8)

/* Images of one position, as those of (N, C) data, are reduced in leaves of up to so many. */
#define BNORM_LEAF ((size_t)64)

/* Blocks of the reductions per image and altogether; with leaves, those. */
typedef struct bnorm_blocks {
    size_t size; /* positions of a channel per block; the last one of an image may have fewer */
    size_t per_image;
    size_t count;
    size_t chains;
    size_t first; /* number of the first image in the whole batch */
} bnorm_blocks;

/* For images [first, first + n) of a batch. */
static inline bnorm_blocks bnorm_blocks_of(const bnorm_view *view, size_t first) {
    bnorm_blocks blocks = {BNORM_BLOCK_SPAN, 1, 0, BNORM_SPAN_LANES, first};
    if (view->leaves) {
        blocks.size = BNORM_LEAF;
        blocks.chains = 1;
        blocks.count = bnorm_subtrees(first, view->positions, BNORM_LEAF);
        return blocks;
    }
    if (!view->planes) {
        blocks.size = bnorm_block_rows(view->lanes, view->positions);
        blocks.chains = bnorm_chains(view->lanes);
    }
    blocks.per_image = bnorm_ceil_div(view->positions, blocks.size);
    blocks.count = blocks.per_image * view->images;
    return blocks;
}

/* Positions [from, from + len) of one image. */
typedef struct bnorm_block {
    size_t image, from, len;
} bnorm_block;

/* Block b, counted through all images. */
static inline bnorm_block bnorm_block_at(const bnorm_view *view, const bnorm_blocks *blocks,
                                         size_t b) {
    bnorm_block block = {b, 0, view->positions};
    if (view->leaves) {
        const size_t first = blocks->first, end = first + view->positions;
        size_t at = first, before = 0;
        block.image = 0;
        if (first % BNORM_LEAF == 0) { /* leaves of full size come first */
            before = bnorm_min(b, view->positions / BNORM_LEAF);
            at += before * BNORM_LEAF;
        }
        for (; before < b; before++) {
            at += bnorm_subtree(at, end, BNORM_LEAF);
            if (at % BNORM_LEAF == 0) {
                const size_t whole = bnorm_min(b - before - 1, (end - at) / BNORM_LEAF);
                before += whole;
                at += whole * BNORM_LEAF;
            }
        }
        block.from = at - first;
        block.len = bnorm_subtree(at, end, BNORM_LEAF);
        return block;
    }
    if (blocks->per_image > 1) {
        block.image = b / blocks->per_image;
        block.from = b % blocks->per_image * blocks->size;
        block.len = bnorm_min(blocks->size, view->positions - block.from);
    }
    return block;
}

#endif

/* ------------------------------------------------------------------------------------ src/fma.h */

/*
 * a*b + c rounded once. Where the compiler has no instruction for it, fma is a call into the C
 * library, which is slow on CPUs without FMA and on some systems rounds more than once. So it is
 * made of additions and products then: S. Boldo, G. Melquiond, "Emulation of FMA and correctly
 * rounded sums: proved algorithms using rounding to odd" (2008). For the default rounding mode.
 *
 * A compiler that contracts changes nothing here: every product that something is added to is
 * exact. */
#ifndef BNORM_FMA_H
#define BNORM_FMA_H

#include <stdint.h>
#include <string.h>

/* gcc says so of all CPUs, clang of some. BNORM_OWN_FMA is for the tests. */
#if !defined(BNORM_OWN_FMA) && ((defined(__FP_FAST_FMA) && defined(__FP_FAST_FMAF)) ||             \
                                defined(__FMA__) || defined(__FMA4__) || defined(__aarch64__))

static inline float bnorm_fmaf(float a, float b, float c) {
    return __builtin_fmaf(a, b, c);
}

static inline double bnorm_fma(double a, double b, double c) {
    return __builtin_fma(a, b, c);
}

#else

static inline uint64_t bnorm_double_bits(double v) {
    uint64_t bits;
    memcpy(&bits, &v, sizeof bits);
    return bits;
}

static inline double bnorm_bits_double(uint64_t bits) {
    double v;
    memcpy(&v, &bits, sizeof v);
    return v;
}

/* high + low = a + b exactly, high being a + b rounded. */
struct bnorm_sum {
    double high, low;
};

static inline struct bnorm_sum bnorm_exact_sum(double a, double b) {
    const double high = a + b, of_b = high - a, of_a = high - of_b;
    return (struct bnorm_sum){high, (a - of_a) + (b - of_b)};
}

/* a + b, finite, rounded to odd: of the two neighbours of an inexact sum, the one whose last bit is
 * set. Rounded to fewer bits afterwards (2 less will do), it gives what a + b itself would. */
static inline double bnorm_odd_sum(double a, double b) {
    const struct bnorm_sum sum = bnorm_exact_sum(a, b);
    const uint64_t bits = bnorm_double_bits(sum.high);
    if (sum.low == 0 || bits % 2)
        return sum.high;
    return bnorm_bits_double((sum.low > 0) == (sum.high > 0) ? bits + 1 : bits - 1);
}

/* The product is exact in double. Their sum, rounded to double, is as good as rounded to odd unless
 * it lies half-way between two floats: one 1 behind the last bit of a float, or, where the float is
 * denormal, somewhere else. Infinities and NaNs never get to the sum that subtracts. */
static inline float bnorm_fmaf(float a, float b, float c) {
    const double product = (double)a * (double)b, sum = product + (double)c;
    const uint64_t bits = bnorm_double_bits(sum);
    if ((bits & 0x1fffffff) != 0x10000000 && (bits >> 52 & 0x7ff) >= 1023 - 126)
        return (float)sum;
    return (float)bnorm_odd_sum(product, (double)c);
}

/* 2^exponent, for exponents of -1022 to 1023. */
static inline double bnorm_power_of_2(int exponent) {
    return bnorm_bits_double((uint64_t)(exponent + 1023) << 52);
}

/* As stored: 0 for zeros and denormals, 2047 for infinities and NaNs. */
static inline int bnorm_stored_exponent(double v) {
    return (int)(bnorm_double_bits(v) >> 52 & 0x7ff);
}

/* high + low = a*b exactly, high being a*b rounded; nothing on the way may over- or underflow. */
static inline struct bnorm_sum bnorm_exact_product(double a, double b) {
    /* Halves of 26 bits and a sign: their products are exact, and so are `middle` and what is added
     * to the low part, in 53 bits. */
    const uint64_t half = (uint64_t)1 << 26, upper = ~(2 * half - 1);
    const double a1 = bnorm_bits_double((bnorm_double_bits(a) + half) & upper), a2 = a - a1;
    const double b1 = bnorm_bits_double((bnorm_double_bits(b) + half) & upper), b2 = b - b1;
    const double middle = a1 * b2 + a2 * b1;
    const struct bnorm_sum most = bnorm_exact_sum(a1 * b1, middle);
    return bnorm_exact_sum(most.high, most.low + a2 * b2);
}

/* v = m*2^exponent with 1 <= |m| < 2, for finite numbers other than 0. */
static inline double bnorm_mantissa(double v, int *exponent) {
    const int denormal = bnorm_stored_exponent(v) == 0;
    const double normal = denormal ? v * 0x1p54 : v;
    *exponent = bnorm_stored_exponent(normal) - 1023 - (denormal ? 54 : 0);
    return bnorm_bits_double((bnorm_double_bits(normal) & ~((uint64_t)0x7ff << 52)) | (uint64_t)1023
                                                                                          << 52);
}

/* bnorm_fma of any numbers: the work is done on mantissas. */
__attribute__((noinline, unused)) static double bnorm_fma_rare(double a, double b, double c) {
    if (a == 0 || b == 0 || bnorm_stored_exponent(a) == 2047 || bnorm_stored_exponent(b) == 2047)
        return a * b + c;
    if (bnorm_stored_exponent(c) == 2047)
        return c;
    int exponent_a, exponent_b, exponent_c = 0;
    const double ma = bnorm_mantissa(a, &exponent_a), mb = bnorm_mantissa(b, &exponent_b);
    const int scale = exponent_a + exponent_b; /* 2^scale <= |a*b| < 2^(scale + 2) */
    if (scale < -1080)                         /* less than half the least denormal */
        return c == 0 ? a * b : c;
    double mc = 0;
    if (c != 0) {
        mc = bnorm_mantissa(c, &exponent_c);
        if (exponent_c - scale > 110)
            return c;
        /* Further down it matters only that it is not 0. */
        const int apart = exponent_c - scale;
        mc *= bnorm_power_of_2(apart < -200 ? -200 : apart);
    }

    const struct bnorm_sum product = bnorm_exact_product(ma, mb);
    const struct bnorm_sum low = bnorm_exact_sum(mc, product.low);
    const struct bnorm_sum high = bnorm_exact_sum(product.high, low.high);
    const double rest = bnorm_odd_sum(low.low, high.low);
    double result = high.high + rest;
    if (result == 0)
        return result;
    if (bnorm_stored_exponent(result) - 1023 + scale < -1022) {
        /* Rounded to a multiple of 2^-1074/2^scale, as that is the last bit of what it is added
         * to. */
        const double big = bnorm_power_of_2(-1022 - scale) * (result < 0 ? -1 : 1);
        const struct bnorm_sum moved = bnorm_exact_sum(big, high.high);
        result = moved.high + bnorm_odd_sum(moved.low, rest);
        result = bnorm_bits_double(bnorm_double_bits(result - big) |
                                   (bnorm_double_bits(big) & (uint64_t)1 << 63));
    }
    return result * bnorm_power_of_2(scale / 2) * bnorm_power_of_2(scale - scale / 2);
}

/* Not inlined, so that no operation on a, b or c is contracted with the one that they come from. */
__attribute__((noinline, unused)) static double bnorm_fma(double a, double b, double c) {
    const int exponent_a = bnorm_stored_exponent(a), exponent_b = bnorm_stored_exponent(b);
    if ((unsigned)(exponent_a - 543) > 980 || (unsigned)(exponent_b - 543) > 980 ||
        bnorm_stored_exponent(c) > 2023)
        return bnorm_fma_rare(a, b, c);
    const struct bnorm_sum product = bnorm_exact_product(a, b);
    const struct bnorm_sum sum = bnorm_exact_sum(product.high, c);
    if (product.low == 0)
        return sum.high;
    /* What rounding `low` took matters only if the rest is half a unit, a power of 2. */
    const double low = sum.low + product.low, result = sum.high + low;
    const double rest = low - (result - sum.high);
    if (rest == 0 || bnorm_double_bits(rest) << 12 != 0)
        return result;
    return bnorm_fma_rare(a, b, c);
}

#endif

#endif

/* ------------------------------------------------------------------------------ src/neon/neon.c */

#define add_fours_of_rows neon_add_fours_of_rows
#define add_other_rows neon_add_other_rows
#define add_planes neon_add_planes
#define add_rows neon_add_rows
#define add_rows_dy_bf16 neon_add_rows_dy_bf16
#define add_rows_dy_f16 neon_add_rows_dy_f16
#define add_rows_dy_f32 neon_add_rows_dy_f32
#define add_rows_limited_mask neon_add_rows_limited_mask
#define add_rows_limited_residual neon_add_rows_limited_residual
#define add_rows_limited_x neon_add_rows_limited_x
#define add_rows_limited_y neon_add_rows_limited_y
#define add_rows_squares_bf16 neon_add_rows_squares_bf16
#define add_rows_squares_f16 neon_add_rows_squares_f16
#define add_rows_squares_f32 neon_add_rows_squares_f32
#define are_short_rows neon_are_short_rows
#define backward_any_rows neon_backward_any_rows
#define backward_bf16_planes neon_backward_bf16_planes
#define backward_bf16_rows neon_backward_bf16_rows
#define backward_f16_planes neon_backward_f16_planes
#define backward_f16_rows neon_backward_f16_rows
#define backward_frozen_planes neon_backward_frozen_planes
#define backward_frozen_rows neon_backward_frozen_rows
#define backward_identity_planes neon_backward_identity_planes
#define backward_identity_rows neon_backward_identity_rows
#define backward_relu_planes neon_backward_relu_planes
#define backward_relu_rows neon_backward_relu_rows
#define block_rows neon_block_rows
#define chain_rows neon_chain_rows
#define clear_rows neon_clear_rows
#define forward_any_planes neon_forward_any_planes
#define forward_any_rows neon_forward_any_rows
#define forward_bf16_planes neon_forward_bf16_planes
#define forward_bf16_rows neon_forward_bf16_rows
#define forward_clamp_held neon_forward_clamp_held
#define forward_clamp_planes neon_forward_clamp_planes
#define forward_clamp_rows neon_forward_clamp_rows
#define forward_f16_planes neon_forward_f16_planes
#define forward_f16_rows neon_forward_f16_rows
#define forward_identity_held neon_forward_identity_held
#define forward_identity_planes neon_forward_identity_planes
#define forward_identity_rows neon_forward_identity_rows
#define forward_relu_held neon_forward_relu_held
#define forward_relu_planes neon_forward_relu_planes
#define forward_relu_rows neon_forward_relu_rows
#define join_rows neon_join_rows
#define leaf_rows neon_leaf_rows
#define load_bf16_lanes neon_load_bf16_lanes
#define load_d_lanes neon_load_d_lanes
#define load_f16_lanes neon_load_f16_lanes
#define load_rows neon_load_rows
#define map_all_planes neon_map_all_planes
#define map_all_rows neon_map_all_rows
#define map_held neon_map_held
#define map_planes neon_map_planes
#define map_rows neon_map_rows
#define map_small_planes neon_map_small_planes
#define map_whole_rows neon_map_whole_rows
#define reduce_rows neon_reduce_rows
#define sample_planes neon_sample_planes
#define sample_rows neon_sample_rows
#define staged_rows neon_staged_rows
#define store_bf16_lanes neon_store_bf16_lanes
#define store_d_lanes neon_store_d_lanes
#define store_f16_lanes neon_store_f16_lanes
#define sum_planes neon_sum_planes
#define sum_planes_dy_bf16 neon_sum_planes_dy_bf16
#define sum_planes_dy_f16 neon_sum_planes_dy_f16
#define sum_planes_dy_f32 neon_sum_planes_dy_f32
#define sum_planes_limited_mask neon_sum_planes_limited_mask
#define sum_planes_limited_residual neon_sum_planes_limited_residual
#define sum_planes_limited_x neon_sum_planes_limited_x
#define sum_planes_limited_y neon_sum_planes_limited_y
#define sum_planes_squares_bf16 neon_sum_planes_squares_bf16
#define sum_planes_squares_f16 neon_sum_planes_squares_f16
#define sum_planes_squares_f32 neon_sum_planes_squares_f32
#define sum_rows neon_sum_rows
#define sum_staged_planes neon_sum_staged_planes
#define vec_four_bf16 neon_vec_four_bf16
#define vec_four_f16 neon_vec_four_f16
#define vec_load_bf16 neon_vec_load_bf16
#define vec_load_d neon_vec_load_d
#define vec_load_d_n neon_vec_load_d_n
#define vec_load_f16 neon_vec_load_f16
#define vec_load_fours neon_vec_load_fours
#define vec_load_n neon_vec_load_n
#define vec_load_s8 neon_vec_load_s8
#define vec_load_u8 neon_vec_load_u8
#define vec_round_bf16 neon_vec_round_bf16
#define vec_store_8 neon_vec_store_8
#define vec_store_8_4 neon_vec_store_8_4
#define vec_store_bf16 neon_vec_store_bf16
#define vec_store_bf16_2 neon_vec_store_bf16_2
#define vec_store_d neon_vec_store_d
#define vec_store_d_n neon_vec_store_d_n
#define vec_store_f16 neon_vec_store_f16
#define vec_store_n neon_vec_store_n
#define widen_rows neon_widen_rows
/* SPDX-License-Identifier: MIT
 *
 * The NEON kernel set: Advanced SIMD, which every AArch64 CPU has. */

#if BNORM_HAVE_NEON

#include <arm_neon.h>
#include <stdint.h>
#include <string.h>

/* SPDX-License-Identifier: MIT
 *
 * The vec_* primitives for AArch64 Advanced SIMD: 4 floats or 2 doubles. See src/kernels/kernels.h
 * for their meaning. */
#define VEC_F 4 /* floats per vector */
#define VEC_D 2 /* doubles per vector */

typedef float32x4_t neon_vec_f;
typedef float64x2_t neon_vec_d;
typedef float32x4_t neon_four_floats;

static inline neon_vec_f neon_vec_load(const float *p) {
    return vld1q_f32(p);
}
/* n <= 4 */
static inline neon_vec_f vec_load_n(const float *p, size_t n) {
    neon_vec_f v = vdupq_n_f32(0);
    if (n >= 4)
        return vld1q_f32(p);
    if (n == 0)
        return v;
    if (n & 2) {
        v = vcombine_f32(vld1_f32(p), vget_low_f32(v));
        return n & 1 ? vld1q_lane_f32(p + 2, v, 2) : v;
    }
    return vld1q_lane_f32(p, v, 0);
}
static inline void neon_vec_store(float *p, neon_vec_f v) {
    vst1q_f32(p, v);
}
static inline void vec_store_n(float *p, neon_vec_f v, size_t n) {
    if (n >= 4) {
        vst1q_f32(p, v);
    } else if (n & 2) {
        vst1_f32(p, vget_low_f32(v));
        if (n & 1)
            vst1q_lane_f32(p + 2, v, 2);
    } else {
        vst1q_lane_f32(p, v, 0);
    }
}
/* Arm cores find streams by themselves and do not read lines that are about to be overwritten. */
static inline void neon_vec_bypass(float *p, neon_vec_f v) {
    vst1q_f32(p, v);
}
static inline void neon_vec_fence(void) {}
static inline void neon_vec_fetch(const float *p) {
    (void)p;
}
static inline void neon_vec_fetch_out(const float *p) {
    (void)p;
}
static inline neon_vec_f neon_vec_set1(float v) {
    return vdupq_n_f32(v);
}
static inline neon_vec_f neon_vec_repeat(const float *p, size_t n) {
    switch (n) {
    case 4:
        return vld1q_f32(p);
    case 2:
        return vcombine_f32(vld1_f32(p), vld1_f32(p));
    default:
        return vdupq_n_f32(*p);
    }
}
static inline neon_vec_f neon_vec_add(neon_vec_f a, neon_vec_f b) {
    return vaddq_f32(a, b);
}
static inline neon_vec_f neon_vec_sub(neon_vec_f a, neon_vec_f b) {
    return vsubq_f32(a, b);
}
static inline neon_vec_f neon_vec_mul(neon_vec_f a, neon_vec_f b) {
    return vmulq_f32(a, b);
}
static inline neon_vec_f neon_vec_fma(neon_vec_f a, neon_vec_f b, neon_vec_f c) {
    return vfmaq_f32(c, a, b);
}
static inline neon_vec_f neon_vec_if_le(neon_vec_f a, neon_vec_f b, neon_vec_f yes, neon_vec_f no) {
    return vbslq_f32(vcleq_f32(a, b), yes, no);
}
static inline neon_vec_f neon_vec_if_gt(neon_vec_f a, neon_vec_f b, neon_vec_f yes, neon_vec_f no) {
    return vbslq_f32(vcgtq_f32(a, b), yes, no);
}
static inline neon_vec_f neon_vec_zero_if_le(neon_vec_f a, neon_vec_f b, neon_vec_f v) {
    return vreinterpretq_f32_u32(vbicq_u32(vreinterpretq_u32_f32(v), vcleq_f32(a, b)));
}
/* Only the comparison for equality leaves quiet NaN alone. */
static inline neon_vec_f neon_vec_zero_from(neon_vec_f v, neon_vec_f limit, neon_vec_f x) {
    const uint32x4_t reached = vceqq_f32(vmaxq_f32(limit, v), v);
    return vreinterpretq_f32_u32(vbicq_u32(vreinterpretq_u32_f32(x), reached));
}
static inline neon_vec_f neon_vec_zero_unless_gt(neon_vec_f a, neon_vec_f b, neon_vec_f v) {
    return vreinterpretq_f32_u32(vandq_u32(vreinterpretq_u32_f32(v), vcgtq_f32(a, b)));
}
static inline neon_vec_f neon_vec_canonical(neon_vec_f v) {
    return vreinterpretq_f32_u32(vornq_u32(vreinterpretq_u32_f32(v), vceqq_f32(v, v)));
}

/* FMAXNM takes a lone quiet NaN for less than any number and, of two, the first. */
static inline neon_vec_f neon_vec_canonical_result(neon_vec_f v) {
    return vmaxnmq_f32(vreinterpretq_f32_u32(vdupq_n_u32(~0u)), v);
}
static inline neon_vec_f neon_vec_relu(neon_vec_f v) {
    return neon_vec_canonical_result(vmaxq_f32(v, vdupq_n_f32(0)));
}
static inline neon_vec_f neon_vec_clamp(neon_vec_f v, neon_vec_f a, neon_vec_f b) {
    v = neon_vec_if_le(v, a, a, v);
    return neon_vec_canonical_result(neon_vec_if_le(b, v, b, v));
}

/* The first n lanes of v, zeros behind them. */
static inline neon_vec_f neon_vec_first_n(neon_vec_f v, size_t n) {
    static const uint32_t window[8] = {~0u, ~0u, ~0u, ~0u};
    return vreinterpretq_f32_u32(vandq_u32(vreinterpretq_u32_f32(v), vld1q_u32(window + 4 - n)));
}

static inline neon_vec_f neon_vec_div(neon_vec_f a, neon_vec_f b) {
    return vdivq_f32(a, b);
}
static inline neon_vec_f neon_vec_negate(neon_vec_f v) {
    return vnegq_f32(v);
}
static inline neon_vec_f neon_vec_minus_abs(neon_vec_f v) {
    return vnegq_f32(vabsq_f32(v));
}
/* a where it is greater, else b. */
static inline neon_vec_f neon_vec_max(neon_vec_f a, neon_vec_f b) {
    return vbslq_f32(vcgtq_f32(a, b), a, b);
}
static inline neon_vec_f neon_vec_min(neon_vec_f a, neon_vec_f b) {
    return vbslq_f32(vcltq_f32(a, b), a, b);
}
static inline neon_vec_f neon_vec_power_of_2(neon_vec_f v) {
    return vreinterpretq_f32_u32(vandq_u32(vreinterpretq_u32_f32(v), vdupq_n_u32(0x7f800000)));
}
static inline neon_vec_f neon_vec_zero_nan(neon_vec_f v) {
    return vreinterpretq_f32_u32(vandq_u32(vreinterpretq_u32_f32(v), vceqq_f32(v, v)));
}
#define VEC_SLEEF(function, ulp) Sleef_finz_##function##f4_##ulp##advsimd

static inline neon_vec_f vec_load_bf16(const uint16_t *p) {
    return vreinterpretq_f32_u32(vshll_n_u16(vld1_u16(p), 16));
}
/* Rounded in the upper halves; a NaN, all of whose bits are set, would overflow. */
static inline uint16x8_t vec_round_bf16(neon_vec_f v) {
    const uint32x4_t bits = vreinterpretq_u32_f32(v),
                     odd = vandq_u32(vshrq_n_u32(bits, 16), vdupq_n_u32(1)),
                     least = vminq_u32(bits, vdupq_n_u32(0xffff7fff));
    return vreinterpretq_u16_u32(vaddq_u32(vaddq_u32(least, vdupq_n_u32(0x7fff)), odd));
}
static inline void vec_store_bf16(uint16_t *p, neon_vec_f v) {
    vst1_u16(p, vshrn_n_u32(vreinterpretq_u32_u16(vec_round_bf16(v)), 16));
}
static inline void vec_store_bf16_2(uint16_t *p, neon_vec_f a, neon_vec_f b) {
    vst1q_u16(p, vuzp2q_u16(vec_round_bf16(a), vec_round_bf16(b)));
}
static inline neon_vec_f vec_load_f16(const uint16_t *p) {
    return vcvt_f32_f16(vreinterpret_f16_u16(vld1_u16(p)));
}
static inline void vec_store_f16(uint16_t *p, neon_vec_f v) {
    vst1_u16(p, vreinterpret_u16_f16(vcvt_f16_f32(v)));
}
/* 4 bytes. */
static inline uint8x8_t vec_load_8(const uint8_t *p) {
    uint32_t bytes;
    memcpy(&bytes, p, sizeof bytes);
    return vreinterpret_u8_u32(vdup_n_u32(bytes));
}
static inline neon_vec_f vec_load_s8(const uint8_t *p) {
    return vcvtq_f32_s32(vmovl_s16(vget_low_s16(vmovl_s8(vreinterpret_s8_u8(vec_load_8(p))))));
}
static inline neon_vec_f vec_load_u8(const uint8_t *p) {
    return vcvtq_f32_u32(vmovl_u16(vget_low_u16(vmovl_u8(vec_load_8(p)))));
}
static inline uint8x8_t vec_whole_8(neon_vec_f a, neon_vec_f b, int zero_point, int is_signed) {
    const int16x8_t words =
                        vcombine_s16(vqmovn_s32(vcvtnq_s32_f32(a)), vqmovn_s32(vcvtnq_s32_f32(b))),
                    whole = vqaddq_s16(words, vdupq_n_s16((short)zero_point));
    return is_signed ? vreinterpret_u8_s8(vqmovn_s16(whole)) : vqmovun_s16(whole);
}
static inline void vec_store_8(uint8_t *p, neon_vec_f v, int zero_point, int is_signed) {
    const uint8x8_t whole = vec_whole_8(v, v, zero_point, is_signed);
    const uint32_t bytes = vget_lane_u32(vreinterpret_u32_u8(whole), 0);
    memcpy(p, &bytes, sizeof bytes);
}
static inline void vec_store_8_4(uint8_t *p, const neon_vec_f *v, int zero_point, int is_signed) {
    vst1q_u8(p, vcombine_u8(vec_whole_8(v[0], v[1], zero_point, is_signed),
                            vec_whole_8(v[2], v[3], zero_point, is_signed)));
}
static inline neon_vec_f neon_vec_from_bits(unsigned bits) {
    const uint32_t places[4] = {1, 2, 4, 8};
    const uint32x4_t set = vtstq_u32(vdupq_n_u32(bits), vld1q_u32(places));
    return vreinterpretq_f32_u32(vandq_u32(set, vreinterpretq_u32_f32(vdupq_n_f32(1))));
}
static inline unsigned neon_vec_bits_gt(neon_vec_f a, neon_vec_f b) {
    const uint32_t places[4] = {1, 2, 4, 8};
    return vaddvq_u32(vandq_u32(vcgtq_f32(a, b), vld1q_u32(places)));
}

static inline neon_vec_d vec_load_d(const double *p) {
    return vld1q_f64(p);
}
/* 1 <= n <= 2 */
static inline neon_vec_d vec_load_d_n(const double *p, size_t n) {
    return n >= 2 ? vld1q_f64(p) : vcombine_f64(vld1_f64(p), vdup_n_f64(0));
}
static inline void vec_store_d(double *p, neon_vec_d v) {
    vst1q_f64(p, v);
}
static inline void vec_store_d_n(double *p, neon_vec_d v, size_t n) {
    if (n >= 2)
        vst1q_f64(p, v);
    else
        vst1q_lane_f64(p, v, 0);
}
static inline neon_vec_d neon_vec_set1_d(double v) {
    return vdupq_n_f64(v);
}
static inline neon_vec_d neon_vec_add_d(neon_vec_d a, neon_vec_d b) {
    return vaddq_f64(a, b);
}
static inline neon_vec_d neon_vec_sub_d(neon_vec_d a, neon_vec_d b) {
    return vsubq_f64(a, b);
}
static inline neon_vec_d neon_vec_mul_d(neon_vec_d a, neon_vec_d b) {
    return vmulq_f64(a, b);
}
static inline neon_vec_d neon_vec_div_d(neon_vec_d a, neon_vec_d b) {
    return vdivq_f64(a, b);
}
static inline neon_vec_d neon_vec_sqrt_d(neon_vec_d v) {
    return vsqrtq_f64(v);
}
static inline neon_vec_d neon_vec_fma_d(neon_vec_d a, neon_vec_d b, neon_vec_d c) {
    return vfmaq_f64(c, a, b);
}
static inline neon_vec_d neon_vec_if_eq_d(neon_vec_d a, neon_vec_d b, neon_vec_d yes, neon_vec_d no) {
    return vbslq_f64(vceqq_f64(a, b), yes, no);
}
static inline neon_vec_d neon_vec_if_lt_d(neon_vec_d a, neon_vec_d b, neon_vec_d yes, neon_vec_d no) {
    return vbslq_f64(vcltq_f64(a, b), yes, no);
}
static inline neon_vec_d neon_vec_canonical_d(neon_vec_d v) {
    return vreinterpretq_f64_u64(vornq_u64(vreinterpretq_u64_f64(v), vceqq_f64(v, v)));
}
/* Lanes of v outside [low, high], NaN included, one bit each. */
static inline unsigned neon_vec_outside_d(neon_vec_d v, double low, double high) {
    const uint64x2_t inside =
        vandq_u64(vcgeq_f64(v, vdupq_n_f64(low)), vcleq_f64(v, vdupq_n_f64(high)));
    return (unsigned)(~vgetq_lane_u64(inside, 0) & 1) | (unsigned)(~vgetq_lane_u64(inside, 1) & 2);
}

/* float -> double: from memory, and the lower and upper half of a vector. */
static inline neon_vec_d neon_vec_widen(const float *p) {
    return vcvt_f64_f32(vld1_f32(p));
}
static inline neon_vec_d neon_vec_widen_n(const float *p, size_t n) {
    return vcvt_f64_f32(n >= 2 ? vld1_f32(p) : vld1_lane_f32(p, vdup_n_f32(0), 0));
}
static inline neon_vec_d neon_vec_low(neon_vec_f v) {
    return vcvt_f64_f32(vget_low_f32(v));
}
static inline neon_vec_d neon_vec_high(neon_vec_f v) {
    return vcvt_high_f64_f32(v);
}
static inline void neon_vec_fold_fours(float *to_a, float *to_b, neon_vec_f a, neon_vec_f b) {
    neon_vec_store(to_a, a);
    neon_vec_store(to_b, b);
}
static inline neon_four_floats neon_vec_four(const void *p) {
    return vld1q_f32(p);
}
static inline neon_four_floats vec_four_bf16(const void *p) {
    return vec_load_bf16(p);
}
static inline neon_four_floats vec_four_f16(const void *p) {
    return vec_load_f16(p);
}
static inline void vec_load_fours(const float *p, neon_vec_f v[4]) {
    const float32x4x4_t fours = vld4q_f32(p);
    for (int i = 0; i < 4; i++)
        v[i] = fours.val[i];
}
/* double -> float, rounded: VEC_D floats to memory. */
static inline void neon_vec_narrow_store(float *p, neon_vec_d v) {
    vst1_f32(p, vcvt_f32_f64(v));
}
static inline void neon_vec_narrow_store_n(float *p, neon_vec_d v, size_t n) {
    if (n >= 2)
        vst1_f32(p, vcvt_f32_f64(v));
    else
        vst1_lane_f32(p, vcvt_f32_f64(v), 0);
}
/* Rounded to floats, and back. */
static inline neon_vec_d neon_vec_round_d(neon_vec_d v) {
    return vcvt_f64_f32(vcvt_f32_f64(v));
}
static inline void neon_vec_leave(void) {}
/* SPDX-License-Identifier: MIT
 *
 * The SIMD kernels, one source for every instruction set. Included once by each ISA folder's .c,
 * after its vec.h, never compiled alone. vec.h provides, for vectors of VEC_F floats (vec_f) and
 * VEC_D = VEC_F/2 doubles (vec_d):
 *   vec_load, vec_store, vec_set1, vec_add, vec_sub, vec_mul
 *   vec_bypass                    vec_store of part of a line past the caches, p aligned; vec_fence
 *                                 when all is stored
 *   vec_fetch, vec_fetch_out      ask for the line of p, to be read or written
 *   vec_repeat                    (p, n): n floats, a power of two, again and again
 *   vec_fma(a, b, c)              a*b + c rounded once
 *   vec_load_n, vec_store_n       the first n lanes, of 1 when stored; memory behind them is not
 *                                 touched, other lanes load as 0
 *   vec_first_n                   the first n lanes, zeros behind them
 *   vec_if_le, vec_if_gt          (a, b, yes, no) per lane; a NaN compares false
 *   vec_zero_if_le                (a, b, v): 0 where a <= b, else v
 *   vec_zero_unless_gt            (a, b, v): v where a > b, else 0
 *   vec_zero_from                 (v, limit, x): 0 where v >= limit, else x; a NaN as the limit raises
 *                                 no exception
 *   vec_canonical                 every NaN becomes 0xffffffff
 *   vec_canonical_result          the same, of what arithmetic gave: no NaN is a signalling one
 *   vec_relu, vec_clamp           vec_canonical_result of these activations
 *   vec_div, vec_negate, vec_minus_abs
 *   vec_max, vec_min              (a, b): a where it is greater, or less, else b
 *   vec_power_of_2                v >= 0 with its fraction cut off, 0 for denormals
 *   vec_zero_nan                  0 for every NaN
 *   vec_load_..., vec_store_...   bf16, f16, and VEC_F bytes: s8, u8; a NaN that is stored is that
 *                                 of vec_canonical
 *   vec_store_8                   (p, v, zero_point, is_signed): v of at most 2^14 rounded to whole
 *                                 numbers, ties to even, zero_point added, limited to s8 or u8
 *   vec_store_bf16_2, ..._8_4     two or four vectors, one behind the other
 *   vec_from_bits                 1 where one of the lowest VEC_F bits is set, else 0
 *   vec_bits_gt                   (a, b): a bit per lane
 *   ..._d                         the same for doubles, and vec_div_d, vec_sqrt_d, vec_if_eq_d,
 *                                 vec_if_lt_d, vec_outside_d
 *   vec_widen, vec_widen_n        floats from memory as doubles
 *   vec_low, vec_high             the halves of a vec_f as doubles
 *   vec_narrow_store, ..._n       VEC_D doubles rounded to floats, or the first n of them
 *   vec_round_d                   doubles rounded to floats, and back
 *   vec_fold_fours                (to_a, to_b, a, b): the lanes of each folded to 4, upper half onto
 *                                 lower half, to aligned memory
 *   four_floats, vec_four, ..._bf16, ..._f16
 *                                 a vector of 4 floats, which + adds; from memory
 *   vec_load_fours                VEC_F times 4 floats from aligned memory: the first, second, third
 *                                 and last of each
 *   vec_leave                     before a kernel returns to code that is not of this set
 * Wherever a product is added to something, it is written as a fma: a compiler that contracts finds
 * nothing to do. */

#include <float.h>
#include <math.h>
#include <stdint.h>
#include <string.h>

#define BNORM_INLINE static inline __attribute__((always_inline))
#define BNORM_RARE   static __attribute__((noinline)) /* costs nothing where it is not called */
/* How far ahead of their use lines are asked for, in bytes. */
#define BNORM_AHEAD       ((size_t)2048)
#define BNORM_UNLIKELY(c) __builtin_expect(!!(c), 0)
#if defined(__clang__)
#define BNORM_UNROLL /* clang unrolls short constant loops by itself */
#define BNORM_UNROLL_SOME
#define BNORM_NO_UNROLL _Pragma("clang loop unroll(disable)")
#else
#define BNORM_UNROLL      _Pragma("GCC unroll 32")
#define BNORM_UNROLL_SOME _Pragma("GCC unroll 4")
#define BNORM_NO_UNROLL   _Pragma("GCC unroll 1")
#endif

/* Channels that a reduction kernel takes at a time, and room for the lanes of one vector behind
 * them. */
#define BNORM_TILE 256
#define BNORM_PAD  16

BNORM_INLINE size_t neon_lesser(size_t a, size_t b) {
    return a < b ? a : b;
}

BNORM_INLINE neon_vec_f neon_load_lanes(const float *p, size_t n) {
    return n == VEC_F ? neon_vec_load(p) : vec_load_n(p, n);
}

BNORM_INLINE void neon_store_lanes(float *p, neon_vec_f v, size_t n) {
    if (n == VEC_F)
        neon_vec_store(p, v);
    else
        vec_store_n(p, v, n);
}

/* The first n lanes, zeros behind them. */
BNORM_INLINE neon_vec_f neon_first_lanes(neon_vec_f v, size_t n) {
    return n == VEC_F ? v : neon_vec_first_n(v, n);
}

/* s[0..n) = 0; writes whole vectors. */
BNORM_INLINE void neon_zero_lanes(double *s, size_t n) {
    for (size_t i = 0; i < n; i += VEC_D)
        vec_store_d(s + i, neon_vec_set1_d(0));
}

/* p[0..c) again behind itself, `times` times altogether; writes up to a vector more. */
BNORM_INLINE void neon_repeat_lanes(float *p, size_t c, size_t times) {
    for (size_t j = 1; j < times; j++)
        for (size_t i = 0; i < c; i += VEC_F)
            neon_vec_store(p + j * c + i, neon_vec_load(p + i));
}

/* A parameter of each lane, or one for all n lanes. */
BNORM_INLINE neon_vec_f neon_parameter_lanes(const float *p, int spread, size_t i, size_t n) {
    if (!spread)
        return neon_load_lanes(p + i, n);
    return neon_first_lanes(neon_vec_set1(*p), n);
}

BNORM_INLINE neon_vec_d neon_widen_lanes(const float *p, size_t n) {
    return n == VEC_D ? neon_vec_widen(p) : neon_vec_widen_n(p, n);
}

BNORM_INLINE neon_vec_d load_d_lanes(const double *p, size_t n) {
    return n == VEC_D ? vec_load_d(p) : vec_load_d_n(p, n);
}

BNORM_INLINE void store_d_lanes(double *p, neon_vec_d v, size_t n) {
    if (n == VEC_D)
        vec_store_d(p, v);
    else
        vec_store_d_n(p, v, n);
}

/* s[i] for i < c: the chains of channel i, which lie c apart, folded upper half onto lower half. */
BNORM_INLINE void neon_fold_chains(double *s, size_t c, size_t chains) {
    for (size_t half = chains / 2; half > 0; half /= 2) {
        const size_t n = half * c;
        size_t i = 0;
        for (; i + VEC_D <= n; i += VEC_D)
            vec_store_d(s + i, neon_vec_add_d(vec_load_d(s + i), vec_load_d(s + n + i)));
        for (; i < n; i++)
            s[i] += s[n + i];
    }
}

/* Lanes of `to` whose bits are set. */
BNORM_INLINE void neon_replace_lanes(unsigned bits, const double *from, double *to) {
    for (size_t i = 0; bits; i++, bits >>= 1)
        if (bits & 1)
            to[i] = from[i];
}

/* SPDX-License-Identifier: MIT
 *
 * Elements of all types to floats and back, and masks of bits. Kernels that meet anything but
 * floats take it through memory of floats in the first-level cache: the loops that compute exist
 * once. What is widened is written in whole vectors, so the memory has room for one more. */

/* Elements that pass through such memory at a time. */
#define BNORM_STAGE 1024

BNORM_INLINE size_t neon_size_of(bnorm_dtype type) {
    return type == BNORM_F32 ? 4 : type == BNORM_BF16 || type == BNORM_F16 ? 2 : 1;
}

/* Element i of an array. */
BNORM_INLINE const void *neon_element_at(const void *p, bnorm_dtype type, size_t i) {
    return (const char *)p + i * neon_size_of(type);
}

/* n < VEC_F elements of 16 bits; a loop over them takes longer. */
BNORM_INLINE void neon_copy_halves(uint16_t *to, const uint16_t *p, size_t n) {
    if (VEC_F > 8 && n & 8)
        memcpy(to, p, 16);
    if (VEC_F > 4 && n & 4)
        memcpy(to + (n & 8), p + (n & 8), 8);
    if (n & 2)
        memcpy(to + (n & 12), p + (n & 12), 4);
    if (n & 1)
        to[n & 14] = p[n & 14];
}

/* n lanes of 16 bits, as load_lanes and store_lanes. */
#define BNORM_HALF_LANES(type)                                                                     \
    BNORM_INLINE neon_vec_f load_##type##_lanes(const uint16_t *p, size_t n) {                          \
        uint16_t all[VEC_F] = {0};                                                                 \
        if (n == VEC_F)                                                                            \
            return vec_load_##type(p);                                                             \
        neon_copy_halves(all, p, n);                                                                    \
        return vec_load_##type(all);                                                               \
    }                                                                                              \
    BNORM_INLINE void store_##type##_lanes(uint16_t *p, neon_vec_f v, size_t n) {                       \
        uint16_t all[VEC_F];                                                                       \
        if (n == VEC_F) {                                                                          \
            vec_store_##type(p, v);                                                                \
            return;                                                                                \
        }                                                                                          \
        vec_store_##type(all, v);                                                                  \
        neon_copy_halves(p, all, n);                                                                    \
    }
BNORM_HALF_LANES(bf16)
BNORM_HALF_LANES(f16)

/* A quantization as kernels use it. */
struct neon_quant {
    float scale, zero_point;
    float inverse; /* 1/scale, or 0 where quotients must be divided for */
    float limit;   /* what is beyond it lies beyond all of a type's values */
};

BNORM_INLINE void neon_begin_quant(struct neon_quant *to, const bnorm_quant *from) {
    const float scale = from->scale;
    const int usual = scale > 0x1p-90f && scale < 0x1p90f;
    to->scale = scale;
    to->zero_point = (float)from->zero_point;
    to->inverse = usual ? 1 / scale : 0;
    to->limit = scale < 0x1p117f ? 1024 * scale : FLT_MAX;
}

/* v/scale, rounded once, but that NaN gives 0 and what is beyond the limit is not exact. The
 * quotient by the rounded inverse, corrected by its remainder, is the rounded quotient: P. Markstein,
 * "Computation of elementary functions on the IBM RISC System/6000 processor" (1990), theorem 8.5 of
 * J.-M. Muller et al., "Handbook of floating-point arithmetic". */
BNORM_INLINE neon_vec_f neon_quotient(neon_vec_f v, const struct neon_quant *neon_quant) {
    const neon_vec_f limit = neon_vec_set1(neon_quant->limit), inverse = neon_vec_set1(neon_quant->inverse);
    v = neon_vec_zero_nan(v);
    v = neon_vec_min(neon_vec_max(v, neon_vec_negate(limit)), limit);
    if (BNORM_UNLIKELY(neon_quant->inverse == 0))
        return neon_vec_div(v, neon_vec_set1(neon_quant->scale));
    const neon_vec_f q = neon_vec_mul(v, inverse), remainder = neon_vec_fma(q, neon_vec_set1(-neon_quant->scale), v);
    return neon_vec_fma(remainder, inverse, q);
}

/* n <= VEC_F elements; not for S8 and U8. */
BNORM_INLINE neon_vec_f neon_widened_lanes(const void *p, bnorm_dtype type, size_t n) {
    if (type == BNORM_F32)
        return neon_load_lanes(p, n);
    return type == BNORM_BF16 ? load_bf16_lanes(p, n) : load_f16_lanes(p, n);
}

/* `rows` rows of n elements, `stride` apart, to rows of floats without gaps, and zeros up to the end
 * of a vector; not for S8 and U8. */
static void widen_rows(float *to, const void *from, bnorm_dtype type, size_t stride, size_t rows,
                       size_t n) {
    if (stride == n)
        n *= rows, rows = 1;
#define BNORM_WIDEN(element, load)                                                                 \
    for (const element *row = from; rows > 0; rows--, row += stride, to += n) {                    \
        size_t i = 0;                                                                              \
        for (; i + VEC_F <= n; i += VEC_F)                                                         \
            neon_vec_store(to + i, load(row + i));                                                      \
        if (i < n)                                                                                 \
            neon_vec_store(to + i, neon_widened_lanes(row + i, type, n - i));                                \
    }
    if (type == BNORM_F32) {
        BNORM_WIDEN(float, neon_vec_load)
    } else if (type == BNORM_BF16) {
        BNORM_WIDEN(uint16_t, vec_load_bf16)
    } else {
        BNORM_WIDEN(uint16_t, vec_load_f16)
    }
#undef BNORM_WIDEN
}

/* ---------------------------------------------------------------------------------------------- */
/* Bits. Those of one call lie next to each other, or in runs; bytes that they fill are read and
 * written as such, others may be shared with another thread. */

/* Bits [at, at + n) as the lowest of the result, n <= 16. */
BNORM_INLINE unsigned neon_bit_window(const unsigned char *bits, size_t at, size_t n) {
    const size_t first = at / 8, last = (at + n - 1) / 8;
    unsigned window = bits[first];
    if (last > first)
        window |= (unsigned)bits[first + 1] << 8;
    if (last > first + 1)
        window |= (unsigned)bits[first + 2] << 16;
    return window >> at % 8;
}

/* The bits of a byte that `own` says. */
BNORM_INLINE void neon_store_some_bits(unsigned char *byte, unsigned bits, unsigned own) {
    __atomic_fetch_and(byte, (unsigned char)(bits | ~own), __ATOMIC_RELAXED);
    __atomic_fetch_or(byte, (unsigned char)(bits & own), __ATOMIC_RELAXED);
}

/* n bits from bit `at` on, n a multiple of 8 up to 64, or at most 8. */
BNORM_INLINE uint64_t neon_read_bits(const unsigned char *bits, size_t at, size_t n) {
    const size_t shift = at % 8;
    uint64_t word = 0;
    if (n <= 8)
        return neon_bit_window(bits, at, n);
    memcpy(&word, bits + at / 8, n / 8);
    word >>= shift;
    if (shift)
        word |= (uint64_t)bits[at / 8 + n / 8] << (n - shift);
    return word;
}

/* Writes bits one behind the other. */
struct neon_bit_writer {
    unsigned char *bits;
    size_t at;        /* of the next bit */
    uint64_t waiting; /* those of the byte that is not full */
    unsigned others;  /* bits of that byte that are not of this call */
};

BNORM_INLINE void neon_begin_bits(struct neon_bit_writer *w, unsigned char *bits, size_t at) {
    w->bits = bits;
    w->at = at;
    w->waiting = 0;
    w->others = (1u << at % 8) - 1;
}

BNORM_INLINE void neon_end_bits(struct neon_bit_writer *w) {
    const unsigned mine = ((1u << w->at % 8) - 1) & ~w->others;
    if (mine)
        neon_store_some_bits(w->bits + w->at / 8, (unsigned)w->waiting, mine);
}

/* The next bit is number `at`. */
BNORM_INLINE void neon_seek_bits(struct neon_bit_writer *w, size_t at) {
    if (w->at == at)
        return;
    neon_end_bits(w);
    neon_begin_bits(w, w->bits, at);
}

/* The n lowest bits of a word, n at most 64. */
BNORM_INLINE void neon_put_bits(struct neon_bit_writer *w, uint64_t word, size_t n) {
    if (w->at % 8 == 0 && n % 8 == 0) {
        memcpy(w->bits + w->at / 8, &word, n / 8);
        w->at += n;
        return;
    }
    for (; n > 0; n -= neon_lesser(n, 32), word >>= 32) {
        const size_t k = neon_lesser(n, 32), neon_held = w->at % 8;
        unsigned char *byte = w->bits + w->at / 8;
        uint64_t bits = w->waiting | (word & ((UINT64_C(1) << k) - 1)) << neon_held;
        size_t count = neon_held + k;
        for (; count >= 8; count -= 8, bits >>= 8, byte++) {
            if (w->others)
                neon_store_some_bits(byte, (unsigned)bits & 255, 255 & ~w->others);
            else
                *byte = (unsigned char)bits;
            w->others = 0;
        }
        w->waiting = bits;
        w->at += k;
    }
}
#if BNORM_SLEEF
/* SPDX-License-Identifier: MIT
 *
 * The activations that need exp and its kin, and their derivatives, with SLEEF's functions: those
 * with "finz" in their name give the same bits on every instruction set that has fma. They are
 * called by their full names: SLEEF's own dispatcher would choose for the machine, not for this
 * kernel set. docs/numerics.md has the errors, which `make activations` measures.
 *
 * What all have in common: e = exp(-|v|) lies in [0, 1], so that nothing overflows and nothing
 * cancels where v is far from 0. v is cut off behind the point where the result is the same to the
 * last bit: where the formula would be 0*inf at an infinity, and as SLEEF's functions raise
 * exceptions at numbers that are far too large for them. */
#if BNORM_SLEEF

/* sleef_exp(v) and so on. */
#if defined(__clang__) && defined(__x86_64__)
/* clang passes vectors in memory unless its command line, not just the function, chooses a target
 * that has them; SLEEF expects them in registers. A few instructions take them from there. */
#if !defined(__ELF__)
#error "with clang on x86, bnorm can call SLEEF on ELF systems only: build it with SLEEF=0"
#endif
#if VEC_F == 16
#define SMOOTH_REGISTER "%zmm0"
#else
#define SMOOTH_REGISTER "%ymm0"
#endif
#define SMOOTH_FUNCTION_(name, symbol)                                                             \
    __asm__(".pushsection .text\n"                                                                 \
            ".globl bnorm_" #symbol "\n"                                                           \
            ".hidden bnorm_" #symbol "\n"                                                          \
            ".type bnorm_" #symbol ", @function\n"                                                 \
            ".p2align 4\n"                                                                         \
            "bnorm_" #symbol ":\n"                                                                 \
            "vmovups (%rdi), " SMOOTH_REGISTER "\n"                                                \
            "jmp " #symbol "@PLT\n"                                                                \
            ".size bnorm_" #symbol ", .-bnorm_" #symbol "\n"                                       \
            ".popsection");                                                                        \
    __attribute__((visibility("hidden"))) neon_vec_f bnorm_##symbol(const neon_vec_f *v);                    \
    BNORM_INLINE neon_vec_f name(neon_vec_f v) {                                                             \
        return bnorm_##symbol(&v);                                                                 \
    }
#else
#define SMOOTH_FUNCTION_(name, symbol)                                                             \
    neon_vec_f symbol(neon_vec_f v);                                                                         \
    BNORM_INLINE neon_vec_f name(neon_vec_f v) {                                                             \
        return symbol(v);                                                                          \
    }
#endif
#define SMOOTH_FUNCTION(name, symbol) SMOOTH_FUNCTION_(name, symbol)
SMOOTH_FUNCTION(neon_sleef_exp, VEC_SLEEF(exp, u10))
SMOOTH_FUNCTION(neon_sleef_expm1, VEC_SLEEF(expm1, u10))
SMOOTH_FUNCTION(neon_sleef_log1p, VEC_SLEEF(log1p, u10))
SMOOTH_FUNCTION(neon_sleef_tanh, VEC_SLEEF(tanh, u35))

/* Where SLEEF's exp(v) and exp(-v^2/2) are 0. */
#define SMOOTH_EXP_ZERO    (-104)
#define SMOOTH_NORMAL_ZERO (-15)

/* Where SLEEF's tanh(v) is 1. */
#define SMOOTH_TANH_ONE 9

/* The greater of -|v| and the limit; a NaN stays. */
BNORM_INLINE neon_vec_f neon_minus_abs_from(neon_vec_f v, float limit) {
    return neon_vec_max(neon_vec_set1(limit), neon_vec_minus_abs(v));
}

/* exp(-|v|) */
BNORM_INLINE neon_vec_f neon_exp_minus_abs(neon_vec_f v) {
    return neon_sleef_exp(neon_minus_abs_from(v, SMOOTH_EXP_ZERO));
}

/* The lesser of v and 0, -0 for -0; a NaN stays. */
BNORM_INLINE neon_vec_f neon_negative_part(neon_vec_f v) {
    return neon_vec_if_gt(v, neon_vec_set1(0), neon_vec_set1(0), v);
}

/* 1/(1 + exp(-v)) */
BNORM_INLINE neon_vec_f neon_sigmoid_value(neon_vec_f v) {
    const neon_vec_f one = neon_vec_set1(1), e = neon_exp_minus_abs(v);
    return neon_vec_div(neon_vec_if_gt(v, neon_vec_set1(0), one, e), neon_vec_add(one, e));
}

BNORM_INLINE neon_vec_f neon_sigmoid_slope(neon_vec_f v) {
    const neon_vec_f e = neon_exp_minus_abs(v), d = neon_vec_add(neon_vec_set1(1), e);
    return neon_vec_div(e, neon_vec_mul(d, d));
}

/* v*sigmoid(v) */
BNORM_INLINE neon_vec_f neon_silu_value(neon_vec_f v) {
    const neon_vec_f one = neon_vec_set1(1), e = neon_exp_minus_abs(v);
    const neon_vec_f factor = neon_vec_if_gt(v, neon_vec_set1(0), one, e);
    return neon_vec_div(neon_vec_mul(neon_vec_max(v, neon_vec_set1(SMOOTH_EXP_ZERO)), factor), neon_vec_add(one, e));
}

/* s*(1 + v*(1 - s)) with s = sigmoid(v); at -v it is 1 less that. */
BNORM_INLINE neon_vec_f neon_silu_slope(neon_vec_f v) {
    const neon_vec_f one = neon_vec_set1(1), n = neon_minus_abs_from(v, SMOOTH_EXP_ZERO);
    const neon_vec_f e = neon_sleef_exp(n), inverse = neon_vec_div(one, neon_vec_add(one, e));
    const neon_vec_f s = neon_vec_mul(e, inverse), factor = neon_vec_fma(n, inverse, one);
    return neon_vec_if_gt(v, neon_vec_set1(0), neon_vec_fma(neon_vec_negate(s), factor, one), neon_vec_mul(s, factor));
}

/* 1 - tanh(v)^2 = 4q/(1 + q)^2 with q = exp(-2|v|) */
BNORM_INLINE neon_vec_f neon_tanh_slope(neon_vec_f v) {
    const neon_vec_f n = neon_minus_abs_from(v, .5f * SMOOTH_EXP_ZERO), q = neon_sleef_exp(neon_vec_add(n, n));
    const neon_vec_f d = neon_vec_add(neon_vec_set1(1), q);
    return neon_vec_div(neon_vec_mul(q, neon_vec_set1(4)), neon_vec_mul(d, d));
}

/* The normal distribution: Phi(n) = exp(-n^2/2)*(ratio + low) for n <= 0, where low is what
 * rounding took from exp(-n^2/2) and ratio. */
struct neon_normal_parts {
    neon_vec_f n, exp, ratio, low;
};

/* For n = -|v|. ratio*(k - n) is nearly constant: a polynomial of s = (-n - k)/(k - n) in [-1, 1),
 * the substitution of Shepherd and Laframboise, "Chebyshev approximation of (1 + 2x)exp(x^2)erfc x"
 * (Mathematics of Computation 36, 1981). Its coefficients are those of mpmath's chebyfit for n from
 * -15 to 0, rounded to float; k = 75/32 is the one for which rounding hurts least. In exact
 * arithmetic ratio then is right to 0.13*2^-24. SLEEF's erfc would take 4 times as long. */
BNORM_INLINE struct neon_normal_parts neon_normal_parts(neon_vec_f v) {
    static const float c[] = {0x1.6523p-1f,    -0x1.9eaf7ep-2f,  0x1.982a14p-4f,  0x1.664226p-6f,
                              -0x1.b5d34cp-7f, -0x1.1df5a6p-8f,  0x1.af9714p-10f, 0x1.427392p-10f,
                              0x1.70788ep-17f, -0x1.f532c8p-13f, -0x1.3c7de2p-14f};
    enum { DEGREE = sizeof c / sizeof c[0] - 1 };
    const neon_vec_f one = neon_vec_set1(1), k = neon_vec_set1(2.34375f);
    const neon_vec_f n = neon_minus_abs_from(v, SMOOTH_NORMAL_ZERO),
                minus_half_n = neon_vec_mul(n, neon_vec_set1(-0.5f));
    const neon_vec_f exponent = neon_vec_mul(n, minus_half_n), exp = neon_sleef_exp(exponent);

    const neon_vec_f d = neon_vec_sub(k, n), inverse = neon_vec_div(one, d);
    const neon_vec_f s = neon_vec_fma(inverse, neon_vec_set1(-2 * 2.34375f), one);
    neon_vec_f sum = neon_vec_set1(c[DEGREE]);
    BNORM_UNROLL
    for (size_t i = DEGREE; i-- > 0;)
        sum = neon_vec_fma(sum, s, neon_vec_set1(c[i]));
    const neon_vec_f ratio = neon_vec_mul(sum, inverse);

    /* The relative errors of exp and 1/d; d_error is exact. */
    const neon_vec_f exp_error = neon_vec_fma(n, minus_half_n, neon_vec_negate(exponent));
    const neon_vec_f d_error = neon_vec_sub(n, neon_vec_sub(k, d));
    const neon_vec_f inverse_error = neon_vec_fma(d_error, inverse, neon_vec_fma(neon_vec_negate(d), inverse, one));
    const neon_vec_f ratio_error = neon_vec_fma(sum, inverse, neon_vec_negate(ratio));
    const struct neon_normal_parts p = {n, exp, ratio,
                                   neon_vec_fma(ratio, neon_vec_add(exp_error, inverse_error), ratio_error)};
    return p;
}

/* v*Phi(v) = max(v, 0) - |v|*Phi(-|v|) */
BNORM_INLINE neon_vec_f neon_gelu_value(neon_vec_f v) {
    const struct neon_normal_parts p = neon_normal_parts(v);
    const neon_vec_f normal = neon_vec_fma(p.exp, p.ratio, neon_vec_mul(p.exp, p.low));
    return neon_vec_fma(p.n, normal, neon_vec_zero_unless_gt(v, neon_vec_set1(0), v));
}

/* Phi(v) + v*exp(-v^2/2)/sqrt(2*pi); at -v it is 1 less that. */
BNORM_INLINE neon_vec_f neon_gelu_slope(neon_vec_f v) {
    const struct neon_normal_parts p = neon_normal_parts(v);
    const neon_vec_f factor = neon_vec_add(neon_vec_fma(p.n, neon_vec_set1(0x1.988454p-2f), p.ratio), p.low);
    return neon_vec_if_gt(v, neon_vec_set1(0), neon_vec_fma(neon_vec_negate(p.exp), factor, neon_vec_set1(1)),
                     neon_vec_mul(p.exp, factor));
}

/* tanh(v) */
BNORM_INLINE neon_vec_f neon_tanh_value(neon_vec_f v) {
    const neon_vec_f one = neon_vec_set1(SMOOTH_TANH_ONE);
    return neon_sleef_tanh(neon_vec_max(neon_vec_negate(one), neon_vec_if_gt(v, one, one, v)));
}

/* a*(exp(v) - 1) below 0 */
BNORM_INLINE neon_vec_f neon_elu_value(neon_vec_f v, neon_vec_f a) {
    const neon_vec_f n = neon_vec_max(neon_vec_set1(SMOOTH_EXP_ZERO), neon_negative_part(v));
    return neon_vec_if_gt(v, neon_vec_set1(0), v, neon_vec_mul(neon_sleef_expm1(n), a));
}

BNORM_INLINE neon_vec_f neon_elu_slope(neon_vec_f v, neon_vec_f a) {
    const neon_vec_f n = neon_vec_max(neon_vec_set1(SMOOTH_EXP_ZERO), neon_negative_part(v));
    return neon_vec_if_gt(v, neon_vec_set1(0), neon_vec_set1(1), neon_vec_mul(neon_sleef_exp(n), a));
}

/* log(1 + exp(v)) = max(v, 0) + log(1 + e) */
BNORM_INLINE neon_vec_f neon_softplus_value(neon_vec_f v) {
    const neon_vec_f log1p = neon_sleef_log1p(neon_exp_minus_abs(v));
    return neon_vec_add(neon_vec_zero_unless_gt(v, neon_vec_set1(0), v), log1p);
}

/* tanh(log(1 + E)) = ((1 + E)^2 - 1)/((1 + E)^2 + 1) with E = exp(v) as numerator/denominator,
 * both of them divided by E^2 where v > 0. e = exp(-|v|). */
struct neon_mish_fraction {
    neon_vec_f numerator, denominator;
};

BNORM_INLINE struct neon_mish_fraction neon_mish_fraction(neon_vec_f v, neon_vec_f e) {
    const neon_vec_f zero = neon_vec_set1(0), two = neon_vec_set1(2), twice = neon_vec_add(e, e);
    const neon_vec_f numerator = neon_vec_if_gt(v, zero, neon_vec_fma(e, two, neon_vec_set1(1)), neon_vec_fma(e, e, twice));
    const struct neon_mish_fraction f = {
        numerator,
        neon_vec_if_gt(v, zero, neon_vec_fma(e, twice, numerator), neon_vec_add(numerator, two)),
    };
    return f;
}

/* v*tanh(log(1 + exp(v))) */
BNORM_INLINE neon_vec_f neon_mish_value(neon_vec_f v) {
    const neon_vec_f least = neon_vec_set1(SMOOTH_EXP_ZERO);
    const struct neon_mish_fraction f = neon_mish_fraction(v, neon_exp_minus_abs(v));
    return neon_vec_div(neon_vec_zero_if_le(v, least, neon_vec_mul(neon_vec_max(v, least), f.numerator)),
                   f.denominator);
}

/* t + v*(1 - t^2)*sigmoid(v) with t = numerator/denominator: the second term is
 * 4*e*(1 + e)*v/denominator^2, times e where v > 0. */
BNORM_INLINE neon_vec_f neon_mish_slope(neon_vec_f v) {
    const neon_vec_f four = neon_vec_set1(4), n = neon_minus_abs_from(v, SMOOTH_EXP_ZERO);
    const neon_vec_f e = neon_sleef_exp(n);
    const struct neon_mish_fraction f = neon_mish_fraction(v, e);
    const neon_vec_f inverse = neon_vec_div(neon_vec_set1(1), f.denominator);
    const neon_vec_f scaled_v = neon_vec_if_gt(v, neon_vec_set1(0), neon_vec_mul(neon_vec_negate(n), e), n);
    const neon_vec_f second = neon_vec_mul(neon_vec_mul(scaled_v, e), neon_vec_fma(e, four, four));
    return neon_vec_mul(inverse, neon_vec_fma(inverse, second, f.numerator));
}

/* The activation at v. */
BNORM_INLINE neon_vec_f neon_smooth_value(bnorm_act_kind kind, neon_vec_f v, neon_vec_f a) {
    switch (kind) {
    case BNORM_ACT_SIGMOID:
        return neon_sigmoid_value(v);
    case BNORM_ACT_SILU:
        return neon_silu_value(v);
    case BNORM_ACT_TANH:
        return neon_tanh_value(v);
    case BNORM_ACT_GELU:
        return neon_gelu_value(v);
    case BNORM_ACT_ELU:
        return neon_elu_value(v, a);
    case BNORM_ACT_SOFTPLUS:
        return neon_softplus_value(v);
    case BNORM_ACT_MISH:
        return neon_mish_value(v);
    default:
        return v;
    }
}

/* Its derivative at v. */
BNORM_INLINE neon_vec_f neon_smooth_slope(bnorm_act_kind kind, neon_vec_f v, neon_vec_f a) {
    switch (kind) {
    case BNORM_ACT_SIGMOID:
        return neon_sigmoid_slope(v);
    case BNORM_ACT_SILU:
        return neon_silu_slope(v);
    case BNORM_ACT_TANH:
        return neon_tanh_slope(v);
    case BNORM_ACT_GELU:
        return neon_gelu_slope(v);
    case BNORM_ACT_ELU:
        return neon_elu_slope(v, a);
    case BNORM_ACT_SOFTPLUS: /* of which the sigmoid is the derivative */
        return neon_sigmoid_value(v);
    case BNORM_ACT_MISH:
        return neon_mish_slope(v);
    default:
        return neon_vec_set1(1);
    }
}

#define SMOOTH_KINDS(body)                                                                         \
    switch (kind) {                                                                                \
    case BNORM_ACT_SIGMOID:                                                                        \
        body(BNORM_ACT_SIGMOID);                                                                   \
        break;                                                                                     \
    case BNORM_ACT_SILU:                                                                           \
        body(BNORM_ACT_SILU);                                                                      \
        break;                                                                                     \
    case BNORM_ACT_TANH:                                                                           \
        body(BNORM_ACT_TANH);                                                                      \
        break;                                                                                     \
    case BNORM_ACT_GELU:                                                                           \
        body(BNORM_ACT_GELU);                                                                      \
        break;                                                                                     \
    case BNORM_ACT_ELU:                                                                            \
        body(BNORM_ACT_ELU);                                                                       \
        break;                                                                                     \
    case BNORM_ACT_SOFTPLUS:                                                                       \
        body(BNORM_ACT_SOFTPLUS);                                                                  \
        break;                                                                                     \
    case BNORM_ACT_MISH:                                                                           \
        body(BNORM_ACT_MISH);                                                                      \
        break;                                                                                     \
    default:                                                                                       \
        break;                                                                                     \
    }

/* dy[i] *= act'(v[i]) in whole vectors: up to VEC_F - 1 elements behind n are computed too. */
static void neon_smooth_gradients(bnorm_act_kind kind, float a, const float *v, float *dy, size_t n) {
#define SMOOTH_GRADIENTS(kind)                                                                     \
    for (size_t i = 0; i < n; i += VEC_F)                                                          \
    neon_vec_store(dy + i, neon_vec_mul(neon_vec_load(dy + i), neon_smooth_slope(kind, neon_vec_load(v + i), neon_vec_set1(a))))
    SMOOTH_KINDS(SMOOTH_GRADIENTS)
#undef SMOOTH_GRADIENTS
}

#undef SMOOTH_KINDS

#endif
#else
/* Never called: the drivers refuse these activations. */
BNORM_INLINE neon_vec_f neon_smooth_value(bnorm_act_kind kind, neon_vec_f v, neon_vec_f a) {
    (void)kind, (void)a;
    return v;
}
static void neon_smooth_gradients(bnorm_act_kind kind, float a, const float *v, float *dy, size_t n) {
    (void)kind, (void)a, (void)v, (void)dy, (void)n;
}
#endif
/* SPDX-License-Identifier: MIT
 *
 * What the passes of backward share: g = dy*act'(v). The kind of activation is a constant of an
 * inlined body. */

/* v where -3 < v < 3, else 0; a NaN stays. So no result that hard swish does not take overflows. */
BNORM_INLINE neon_vec_f neon_within_three(neon_vec_f v) {
    return neon_vec_zero_if_le(neon_vec_minus_abs(v), neon_vec_set1(-3), v);
}

/* dy times the derivative at v. */
BNORM_INLINE neon_vec_f neon_gradient(bnorm_act_kind kind, neon_vec_f v, neon_vec_f dy, neon_vec_f a, neon_vec_f b) {
    const neon_vec_f zero = neon_vec_set1(0), three = neon_vec_set1(3);
    switch (kind) {
    case BNORM_ACT_IDENTITY:
        break;
    case BNORM_ACT_RELU:
        return neon_vec_zero_unless_gt(v, zero, dy);
    case BNORM_ACT_CLAMP:
        return neon_vec_zero_unless_gt(v, a, neon_vec_zero_unless_gt(b, v, dy));
    case BNORM_ACT_LEAKY_RELU:
        return neon_vec_if_gt(v, zero, dy, neon_vec_mul(dy, neon_vec_if_gt(v, zero, neon_vec_set1(1), a)));
    case BNORM_ACT_HARD_SWISH: {
        const neon_vec_f slope = neon_vec_fma(neon_within_three(v), neon_vec_set1(1.0f / 3), neon_vec_set1(0.5f));
        const neon_vec_f between = neon_vec_mul(dy, slope);
        return neon_vec_zero_if_le(v, neon_vec_set1(-3), neon_vec_if_le(three, v, dy, between));
    }
    default: /* in smooth.h */
        break;
    }
    return dy;
}

BNORM_INLINE int neon_reads_extra(enum bnorm_pre pre) {
    return pre == BNORM_PRE_RESIDUAL || pre == BNORM_PRE_Y;
}

/* Whether v is computed from x. */
BNORM_INLINE int neon_reads_x(enum bnorm_pre pre) {
    return pre == BNORM_PRE_X || pre == BNORM_PRE_RESIDUAL;
}

BNORM_INLINE size_t neon_whole_vectors(size_t n) {
    return (n + VEC_F - 1) / VEC_F * VEC_F;
}

/* The activations that are a few operations; the others are in smooth.h. */
#define BNORM_PLAIN_KINDS(X)                                                                       \
    X(BNORM_ACT_IDENTITY)                                                                          \
    X(BNORM_ACT_RELU)                                                                              \
    X(BNORM_ACT_CLAMP)                                                                             \
    X(BNORM_ACT_LEAKY_RELU)                                                                        \
    X(BNORM_ACT_HARD_SWISH)

/* dy times the derivative at v, in place, n of them; whole vectors are written. */
static void neon_gradient_values(const bnorm_act *act, const float *v, float *dy, size_t n) {
    const neon_vec_f a = neon_vec_set1(act->a), b = neon_vec_set1(act->b);
#define BNORM_CASE(kind)                                                                           \
    case kind:                                                                                     \
        for (size_t i = 0; i < n; i += VEC_F)                                                      \
            neon_vec_store(dy + i, neon_gradient(kind, neon_vec_load(v + i), neon_vec_load(dy + i), a, b));            \
        break;
    switch (act->kind) {
        BNORM_PLAIN_KINDS(BNORM_CASE)
    default:
        neon_smooth_gradients(act->kind, act->a, v, dy, neon_whole_vectors(n));
    }
#undef BNORM_CASE
}
/* SPDX-License-Identifier: MIT
 *
 * The reductions of a block: of the statistics, sum(d) and sum(d*d) with d = x - pivot; of backward,
 * sum(g) and sum(g*d) with d = x - center, by way of a pivot near it. src/scalar/scalar.c says what, docs/numerics.md why.
 *
 * Rows of lanes are added up in groups of 16 rows, in float, four rows at a time; groups in double.
 * A lane is a chain of a channel (several where few channels share a row), or every 32nd element of
 * a plane. A form has two parameters, constants of an inlined body:
 *   g     where the first of the two terms comes from: BNORM_SQUARES = from d; of backward an enum
 *         bnorm_pre: dy alone for BNORM_PRE_NONE, else dy where RELU or CLAMP let it pass
 *   type  of the tensors: F32, and BF16 and F16 for BNORM_SQUARES and BNORM_PRE_NONE
 * Everything else, and rows of less than a vector of lanes, becomes x and g in floats first, in
 * memory that stays in the first-level cache. */

#define BNORM_SQUARES (-1)
#define BNORM_GENERAL (-2) /* has no form: by way of memory */

struct neon_sum_form {
    int g;
    bnorm_dtype type;
    int plane; /* rows are those of a plane */
};

/* Rows of lanes in memory. Steps are bytes from one row to the next. */
struct sum_rows {
    const bnorm_map_args *a; /* pre and act of backward; NULL = statistics */
    bnorm_dtype type;
    int spread; /* parameters: one for all lanes, or one per lane */
    int fetch;  /* lines are asked for ahead of their use */
    const char *x, *dy, *argument;
    size_t x_step, dy_step, argument_step, bit, bit_step;
    const float *pivot;                           /* d = x - pivot */
    const float *center, *scale, *shift, *invstd; /* NULL for statistics */
};

/* From lane i of row `row` on, every `every`th row; parameters from lane `p` on. */
BNORM_INLINE struct sum_rows neon_sum_rows_from(const struct sum_rows *s, size_t row, size_t i,
                                           size_t every, size_t p) {
    const size_t size = neon_size_of(s->type);
    struct sum_rows t = *s;
    t.x += row * s->x_step + i * size;
    t.x_step *= every;
    if (s->pivot)
        t.pivot += p;
    if (s->a) {
        t.center += p;
        t.invstd += p;
        t.dy += row * s->dy_step + i * size;
        t.dy_step *= every;
        if (neon_reads_extra(s->a->pre)) {
            t.argument += row * s->argument_step + i * size;
            t.argument_step *= every;
        }
        t.bit += row * s->bit_step + i;
        t.bit_step *= every;
        if (neon_reads_x(s->a->pre)) {
            t.scale += p;
            t.shift += p;
        }
    }
    return t;
}

/* ---------------------------------------------------------------------------------------------- */
/* Trees of vectors */

struct neon_sums {
    neon_vec_f a, b;
};

/* The parameters of a vector of lanes. */
struct neon_sum_parameters {
    neon_vec_f pivot, center, scale, shift, low, high;
};

BNORM_INLINE struct neon_sums neon_no_sums(void) {
    return (struct neon_sums){neon_vec_set1(0), neon_vec_set1(0)};
}

BNORM_INLINE struct neon_sums neon_add_sums(struct neon_sums s, struct neon_sums t) {
    return (struct neon_sums){neon_vec_add(s.a, t.a), neon_vec_add(s.b, t.b)};
}

/* RELU and CLAMP pass dy where low < v, unless high <= v: never for RELU, whose limit is a NaN. */
BNORM_INLINE struct neon_sum_parameters
neon_sum_parameters_at(const struct neon_sum_form f, const struct sum_rows *s, int spread, size_t i) {
    struct neon_sum_parameters p;
    const neon_vec_f zero = neon_vec_set1(0);
    p.pivot = neon_parameter_lanes(s->pivot, spread, i, VEC_F);
    p.center = p.scale = p.shift = p.low = p.high = zero;
    if (f.g > BNORM_PRE_NONE) {
        const int clamp = s->a->act.kind == BNORM_ACT_CLAMP;
        p.low = clamp ? neon_vec_set1(s->a->act.a) : zero;
        p.high = clamp ? neon_vec_set1(s->a->act.b) : neon_vec_set1(NAN);
    }
    if (f.g == BNORM_PRE_X || f.g == BNORM_PRE_RESIDUAL) {
        p.center = neon_parameter_lanes(s->center, spread, i, VEC_F);
        p.scale = neon_parameter_lanes(s->scale, spread, i, VEC_F);
        p.shift = neon_parameter_lanes(s->shift, spread, i, VEC_F);
    }
    return p;
}

/* Lanes of a vector, from lane i on, that lie before `end`. */
BNORM_INLINE size_t neon_lanes_before(size_t end, size_t i) {
    return end > i ? neon_lesser(VEC_F, end - i) : 0;
}

/* n <= VEC_F elements, 0 behind them. */
BNORM_RARE neon_vec_f neon_half_lanes(const void *p, bnorm_dtype type, size_t n) {
    return neon_widened_lanes(p, type, n);
}
BNORM_INLINE neon_vec_f neon_form_lanes(const struct neon_sum_form f, const char *p, size_t n) {
    const void *const at = p;
    if (__builtin_constant_p(n) && n == VEC_F)
        return neon_widened_lanes(at, f.type, VEC_F);
    return f.type == BNORM_F32 ? vec_load_n(at, n) : neon_half_lanes(at, f.type, n);
}

/* Where rows of lanes are read. */
struct neon_cursor {
    const char *x, *dy, *argument;
    size_t bit;
};

/* Lane i of row `row` behind a cursor. */
BNORM_INLINE struct neon_cursor neon_cursor_at(const struct neon_sum_form f, const struct sum_rows *s,
                                     struct neon_cursor c, size_t row, size_t i) {
    const size_t at = i * neon_size_of(f.type), step = BNORM_SPAN_LANES * neon_size_of(f.type);
    c.x += row * (f.plane ? step : s->x_step) + at;
    if (f.g >= BNORM_PRE_NONE)
        c.dy += row * (f.plane ? step : s->dy_step) + at;
    if (f.g == BNORM_PRE_RESIDUAL || f.g == BNORM_PRE_Y)
        c.argument += row * (f.plane ? step : s->argument_step) + at;
    if (f.g == BNORM_PRE_MASK)
        c.bit += row * (f.plane ? BNORM_SPAN_LANES : s->bit_step) + i;
    return c;
}

BNORM_INLINE struct neon_cursor neon_cursor_of(const struct sum_rows *s) {
    return (struct neon_cursor){s->x, s->dy, s->argument, s->bit};
}

/* The two factors of a row: their product is the second term, the first of them the first term. */
struct neon_terms {
    neon_vec_f a, d;
};

/* What the sums of rows take: `row` and `i` are counted from the cursor. */
#define BNORM_SUM_ARGS                                                                             \
    const struct neon_sum_form f, const struct sum_rows *s, const struct neon_sum_parameters *p,             \
        struct neon_cursor from, size_t row, size_t i

/* x - from in the first n lanes, zeros behind them. */
BNORM_INLINE neon_vec_f neon_difference(neon_vec_f x, neon_vec_f from, size_t n) {
    const neon_vec_f all = neon_vec_sub(x, from);
    return __builtin_constant_p(n) && n == VEC_F ? all : neon_vec_first_n(all, n);
}

/* n lanes of a row, zeros behind them. */
BNORM_INLINE struct neon_terms neon_terms_at(BNORM_SUM_ARGS, size_t n) {
    const struct neon_cursor at = neon_cursor_at(f, s, from, row, i);
    const neon_vec_f x = neon_form_lanes(f, at.x, n), d = neon_difference(x, p->pivot, n);
    if (f.g == BNORM_SQUARES)
        return (struct neon_terms){d, d};
    const neon_vec_f dy = neon_form_lanes(f, at.dy, n);
    neon_vec_f v = neon_vec_set1(0);
    if (f.g == BNORM_PRE_NONE)
        return (struct neon_terms){dy, d};
    if (f.g == BNORM_PRE_RESIDUAL || f.g == BNORM_PRE_Y)
        v = neon_form_lanes(f, at.argument, n);
    if (f.g == BNORM_PRE_MASK)
        v = neon_vec_from_bits(n ? neon_bit_window(s->a->mask.bits, at.bit, n) : 0);
    if (f.g == BNORM_PRE_X)
        v = neon_vec_fma(neon_difference(x, p->center, n), p->scale, p->shift);
    if (f.g == BNORM_PRE_RESIDUAL)
        v = neon_vec_add(neon_vec_fma(neon_difference(x, p->center, n), p->scale, p->shift), v);
    return (struct neon_terms){neon_vec_zero_from(v, p->high, neon_vec_zero_unless_gt(v, p->low, dy)), d};
}

/* Sums of one row and of two. 0 is added to a product that compilers can't make one operation with
 * what it is added to. */
BNORM_INLINE struct neon_sums neon_sum_of_one(struct neon_terms t) {
    return (struct neon_sums){t.a, neon_vec_fma(t.a, t.d, neon_vec_set1(0))};
}
BNORM_INLINE struct neon_sums neon_sum_of_two(struct neon_terms t, struct neon_terms u) {
    return (struct neon_sums){neon_vec_add(t.a, u.a), neon_vec_fma(u.a, u.d, neon_vec_mul(t.a, t.d))};
}

/* Sums of 1, 2 and 4 rows, the last one of n lanes. */
BNORM_INLINE struct neon_sums neon_sum_1(BNORM_SUM_ARGS, size_t n) {
    return neon_sum_of_one(neon_terms_at(f, s, p, from, row, i, n));
}
BNORM_INLINE struct neon_sums neon_sum_2(BNORM_SUM_ARGS, size_t n) {
    return neon_sum_of_two(neon_terms_at(f, s, p, from, row, i, VEC_F),
                      neon_terms_at(f, s, p, from, row + 1, i, n));
}
BNORM_INLINE struct neon_sums neon_sum_4(BNORM_SUM_ARGS) {
    return neon_add_sums(neon_sum_2(f, s, p, from, row, i, VEC_F), neon_sum_2(f, s, p, from, row + 2, i, VEC_F));
}

/* Asks for the lines of `bytes` bytes of each tensor, `ahead` behind a cursor. The CPU's own
 * prefetching begins anew with each row of a few lines, and with each page. */
BNORM_INLINE void neon_fetch_ahead(const struct neon_sum_form f, struct neon_cursor at, size_t ahead,
                              size_t bytes) {
#define BNORM_FETCH(t) neon_vec_fetch((const float *)(const void *)(at.t + ahead + k))
    for (size_t k = 0; k < bytes; k += 64) {
        BNORM_FETCH(x);
        if (f.g >= BNORM_PRE_NONE)
            BNORM_FETCH(dy);
        if (f.g == BNORM_PRE_RESIDUAL || f.g == BNORM_PRE_Y)
            BNORM_FETCH(argument);
    }
#undef BNORM_FETCH
}

/* Adds the sums of four rows of `count` vectors side by side to theirs, `fours` times. */
BNORM_INLINE void neon_add_fours(const struct neon_sum_form f, const struct sum_rows *s,
                            const struct neon_sum_parameters *p, struct neon_cursor at, size_t fours,
                            size_t count, struct neon_sums *neon_sums) {
    BNORM_NO_UNROLL
    for (; fours > 0; fours--) {
        BNORM_UNROLL
        for (size_t k = 0; k < count; k++)
            neon_sums[k] = neon_add_sums(neon_sums[k], neon_sum_4(f, s, p, at, 0, k * VEC_F));
        if (BNORM_UNLIKELY(s->fetch))
            neon_fetch_ahead(f, at, BNORM_AHEAD, 4 * BNORM_SPAN_LANES * neon_size_of(f.type));
        at = neon_cursor_at(f, s, at, 4, 0);
    }
}

/* Sums of `rows` < 4 rows, and the first `extra` lanes of one more. Rows that are not there count
 * as 0. */
BNORM_INLINE struct neon_sums neon_sum_rest(BNORM_SUM_ARGS, size_t rows, size_t extra) {
    struct neon_sums two, one;
    if (rows & 2) {
        two = neon_sum_2(f, s, p, from, row, i, VEC_F);
        if (rows == 2 && !extra)
            return two;
    }
    if (extra)
        one = rows & 1 ? neon_sum_2(f, s, p, from, row + (rows & 2), i, extra)
                       : neon_sum_1(f, s, p, from, row + (rows & 2), i, extra);
    else if (rows & 1)
        one = neon_sum_1(f, s, p, from, row + (rows & 2), i, VEC_F);
    else
        return neon_no_sums();
    return rows & 2 ? neon_add_sums(two, one) : one;
}

/* ---------------------------------------------------------------------------------------------- */
/* Everything, by way of memory */

/* `rows` rows of n lanes as floats without gaps, whole vectors each. */
BNORM_INLINE void neon_load_tensor(float *to, const char *from, size_t step, bnorm_dtype type,
                              size_t rows, size_t n) {
    if (n % VEC_F == 0) {
        widen_rows(to, from, type, step / neon_size_of(type), rows, n);
        return;
    }
    for (; rows > 0; rows--, from += step)
        for (size_t i = 0; i < n; i += VEC_F, to += VEC_F)
            neon_vec_store(to, neon_widened_lanes(neon_element_at(from, type, i), type, neon_lesser(VEC_F, n - i)));
}

/* Arguments of the activation, n <= VEC_F from lane i of row r on; `one` are the parameters of a
 * plane. */
BNORM_INLINE neon_vec_f neon_argument_lanes(enum bnorm_pre pre, const struct sum_rows *s,
                                  const struct neon_sum_parameters *one, neon_vec_f x, size_t r, size_t i,
                                  size_t n) {
    struct neon_sum_parameters p = *one;
    const char *const argument =
        neon_reads_extra(pre) ? s->argument + r * s->argument_step + i * neon_size_of(s->type) : NULL;
    if (pre == BNORM_PRE_MASK) {
        const size_t bit = s->bit + r * s->bit_step + i;
        return neon_vec_from_bits(neon_bit_window(s->a->mask.bits, bit, n) & ((1u << n) - 1));
    }
    if (pre == BNORM_PRE_Y)
        return neon_widened_lanes(argument, s->type, n);
    if (!s->spread) {
        p.center = neon_load_lanes(s->center + i, n);
        p.scale = neon_load_lanes(s->scale + i, n);
        p.shift = neon_load_lanes(s->shift + i, n);
    }
    /* Lanes behind them hold 0, as do their parameters where they are not those of a plane. */
    const neon_vec_f v = neon_vec_fma(neon_first_lanes(neon_vec_sub(x, p.center), n), p.scale, p.shift);
    if (pre == BNORM_PRE_X)
        return v;
    return neon_vec_add(v, neon_widened_lanes(argument, s->type, n));
}

BNORM_INLINE void neon_load_arguments(enum bnorm_pre pre, const struct sum_rows *s, const float *x,
                                 size_t r, size_t i, size_t end, float *v) {
    struct neon_sum_parameters one = {.center = neon_vec_set1(0), .scale = neon_vec_set1(0)};
    if (neon_reads_x(pre) && s->spread) {
        one.center = neon_vec_set1(s->center[r]);
        one.scale = neon_vec_set1(s->scale[r]);
        one.shift = neon_vec_set1(s->shift[r]);
    }
    for (; i + VEC_F <= end; i += VEC_F, v += VEC_F)
        neon_vec_store(v, neon_argument_lanes(pre, s, &one, neon_vec_load(x + i), r, i, VEC_F));
    if (i < end)
        neon_vec_store(v, neon_argument_lanes(pre, s, &one, neon_vec_load(x + i), r, i, end - i));
}

/* Rows [0, rows) of n lanes as floats without gaps, whole vectors each: x, and g, which is not
 * written for statistics. */
static void load_rows(const struct sum_rows *s, size_t rows, size_t n, float *x, float *g) {
    enum { ROOM = 128 };
    float v[ROOM];
    size_t count = 0;
    neon_load_tensor(x, s->x, s->x_step, s->type, rows, n);
    if (!s->a)
        return;
    neon_load_tensor(g, s->dy, s->dy_step, s->type, rows, n);
    if (s->a->pre == BNORM_PRE_NONE)
        return;
    const struct sum_rows own = *s; /* that no store can change */
    for (size_t r = 0; r < rows; r++, x += neon_whole_vectors(n))
        for (size_t i = 0, end; i < n; i = end) {
            end = neon_lesser(n, i + ROOM);
            if (count + neon_whole_vectors(end - i) > ROOM) {
                neon_gradient_values(&s->a->act, v, g, count);
                g += count;
                count = 0;
            }
#define BNORM_CASE(pre)                                                                            \
    case pre:                                                                                      \
        neon_load_arguments(pre, &own, x, r, i, end, v + count);                                        \
        break;
            switch (s->a->pre) {
                BNORM_CASE(BNORM_PRE_X)
                BNORM_CASE(BNORM_PRE_RESIDUAL)
                BNORM_CASE(BNORM_PRE_Y)
                BNORM_CASE(BNORM_PRE_MASK)
            default:
                break;
            }
#undef BNORM_CASE
            count += neon_whole_vectors(end - i);
        }
    neon_gradient_values(&s->a->act, v, g, count);
}

/* ---------------------------------------------------------------------------------------------- */
/* Rows */

/* Adds the sums of a group to as many doubles; the first group's are stored. */
BNORM_INLINE void neon_add_group(struct neon_sums s, int first, double *a, double *b) {
    static const double none[VEC_F];
    const double *const from_a = first ? none : a, *const from_b = first ? none : b;
    vec_store_d(a, neon_vec_add_d(vec_load_d(from_a), neon_vec_low(s.a)));
    vec_store_d(a + VEC_D, neon_vec_add_d(vec_load_d(from_a + VEC_D), neon_vec_high(s.a)));
    vec_store_d(b, neon_vec_add_d(vec_load_d(from_b), neon_vec_low(s.b)));
    vec_store_d(b + VEC_D, neon_vec_add_d(vec_load_d(from_b + VEC_D), neon_vec_high(s.b)));
}

/* X(name, g, type) for all forms. */
#define BNORM_SUM_TYPES(X, name, g)                                                                \
    X(name##_f32, g, BNORM_F32)                                                                    \
    X(name##_bf16, g, BNORM_BF16)                                                                  \
    X(name##_f16, g, BNORM_F16)
#define BNORM_SUM_FORMS(X)                                                                         \
    BNORM_SUM_TYPES(X, squares, BNORM_SQUARES)                                                     \
    BNORM_SUM_TYPES(X, dy, BNORM_PRE_NONE)                                                         \
    X(limited_x, BNORM_PRE_X, BNORM_F32)                                                           \
    X(limited_residual, BNORM_PRE_RESIDUAL, BNORM_F32)                                             \
    X(limited_y, BNORM_PRE_Y, BNORM_F32)                                                           \
    X(limited_mask, BNORM_PRE_MASK, BNORM_F32)

/* Which of them s has, or BNORM_GENERAL. */
static int neon_form_of(const struct sum_rows *s) {
    const enum bnorm_pre pre = s->a ? s->a->pre : BNORM_PRE_NONE;
    if (pre == BNORM_PRE_NONE)
        return (s->a ? 3 : 0) + (int)s->type;
    if (s->type == BNORM_F32 &&
        (s->a->act.kind == BNORM_ACT_RELU || s->a->act.kind == BNORM_ACT_CLAMP))
        return 6 + (int)pre - (int)BNORM_PRE_X;
    return BNORM_GENERAL;
}

/* Sums of a group in float, whole vectors of lanes: those of b behind those of a. */
#define BNORM_GROUP_LANES (BNORM_TILE + BNORM_PAD)
BNORM_INLINE void neon_add_to_group(struct neon_sums s, int first, float *to) {
    float *const b = to + BNORM_GROUP_LANES;
    if (!first)
        s = neon_add_sums((struct neon_sums){neon_vec_load(to), neon_vec_load(b)}, s);
    neon_vec_store(to, s.a);
    neon_vec_store(b, s.b);
}

/* Four rows of len lanes. Where these are not whole vectors, the last one begins so much earlier.
 * With each vector the next lines of the row `ahead` rows behind are asked for. */
BNORM_INLINE void add_fours_of_rows(const struct neon_sum_form f, const struct sum_rows *s,
                                    struct neon_cursor at, size_t len, size_t ahead, int first,
                                    float *to) {
    const size_t rest = len % VEC_F;
    size_t i = 0, end = len - rest, lane = 0;
    struct neon_cursor next = neon_cursor_at(f, s, at, ahead, 0);
    for (;;) {
        do {
            const struct neon_sum_parameters p = neon_sum_parameters_at(f, s, 0, i);
            if (BNORM_UNLIKELY(s->fetch)) {
                neon_fetch_ahead(f, next, 0, 4 * VEC_F * neon_size_of(f.type));
                next = neon_cursor_at(f, s, next, 0, 4 * VEC_F);
                lane += 4 * VEC_F;
                if (lane >= len) {
                    next = neon_cursor_at(f, s, next, 1, -lane);
                    lane = 0;
                }
            }
            neon_add_to_group(neon_sum_4(f, s, &p, at, 0, 0), first, to + i);
            at = neon_cursor_at(f, s, at, 0, VEC_F);
            i += VEC_F;
        } while (i < end);
        if (end == len)
            return;
        i = len - VEC_F;
        end = len;
        to += VEC_F - rest;
        at = neon_cursor_at(f, s, at, 0, rest - VEC_F);
    }
}

/* `rows` < 4 rows of len lanes, and of one more the lanes before `tail`. */
BNORM_INLINE void add_other_rows(const struct neon_sum_form f, const struct sum_rows *s,
                                 struct neon_cursor at, size_t len, size_t rows, size_t tail, int first,
                                 float *to) {
    for (size_t i = 0; i < len; i += VEC_F) {
        const size_t lane = neon_lesser(i, len - VEC_F), extra = neon_lanes_before(tail, lane);
        const struct neon_sum_parameters p = neon_sum_parameters_at(f, s, 0, lane);
        neon_add_to_group(neon_sum_rest(f, s, &p, at, 0, lane, rows, extra), first, to + i);
    }
}

/* The last `rest` doubles of a vector to its front, zeros behind them. */
BNORM_INLINE void neon_move_rest(double *p, size_t rest) {
    memmove(p, p + (VEC_F - rest), rest * sizeof *p);
    memset(p + rest, 0, (VEC_F - rest) * sizeof *p);
}

/* Sums of `rows` rows of len >= VEC_F lanes, and the first `tail` lanes of one more; whole vectors
 * are written. */
BNORM_INLINE void neon_add_lanes(const struct neon_sum_form f, const struct sum_rows *from, size_t rows,
                            size_t tail, size_t len, double *a, double *b) {
    float group[2 * BNORM_GROUP_LANES];
    const struct sum_rows own = *from, *const s = &own; /* that no store can change */
    const size_t rest = len % VEC_F, whole = len - rest, four = 4 * len * neon_size_of(f.type),
                 ahead = s->fetch ? 4 * ((BNORM_AHEAD + four - 1) / four) : 0;
    for (size_t r = 0; r < rows + (tail > 0); r += BNORM_GROUP) {
        const size_t count = neon_lesser(BNORM_GROUP, rows - r), last = count < BNORM_GROUP ? tail : 0;
        struct neon_cursor at = neon_cursor_at(f, s, neon_cursor_of(s), r, 0);
        size_t q = 0;
        for (; q + 4 <= count; q += 4, at = neon_cursor_at(f, s, at, 4, 0)) {
            if (q == 0)
                add_fours_of_rows(f, s, at, len, ahead, 1, group);
            else
                add_fours_of_rows(f, s, at, len, ahead, 0, group);
        }
        if (q < count || last)
            add_other_rows(f, s, at, len, count - q, last, q == 0, group);
        for (size_t i = 0; i < len; i += VEC_F)
            neon_add_group((struct neon_sums){neon_vec_load(group + i), neon_vec_load(group + BNORM_GROUP_LANES + i)},
                      r == 0, a + i, b + i);
    }
    if (rest) {
        neon_move_rest(a + whole, rest);
        neon_move_rest(b + whole, rest);
    }
}

#define BNORM_ROWS_FORM(name, g, type)                                                             \
    static void add_rows_##name(const struct sum_rows *s, size_t rows, size_t tail, size_t len,    \
                                double *a, double *b) {                                            \
        neon_add_lanes((struct neon_sum_form){g, type, 0}, s, rows, tail, len, a, b);                        \
    }
BNORM_SUM_FORMS(BNORM_ROWS_FORM)

/* What has a form, of len >= VEC_F. */
BNORM_INLINE void neon_add_form(const struct sum_rows *s, size_t rows, size_t tail, size_t len,
                           double *a, double *b) {
#define BNORM_ROWS_ENTRY(name, g, type) add_rows_##name,
    static void (*const forms[])(const struct sum_rows *, size_t, size_t, size_t, double *,
                                 double *) = {BNORM_SUM_FORMS(BNORM_ROWS_ENTRY)};
    forms[neon_form_of(s)](s, rows, tail, len, a, b);
}

/* Elements of four rows of a plane, and of a group. */
#define BNORM_FOUR_SPAN  ((size_t)4 * BNORM_SPAN_LANES)
#define BNORM_GROUP_SPAN (BNORM_GROUP * BNORM_SPAN_LANES)
/* Floats of x and g that are made at a time: a group of a plane; of rows a group of so many lanes. */
#define BNORM_STAGE_LANES ((size_t)32)

/* Rows of `row` floats at x, and at g. */
BNORM_INLINE struct sum_rows staged_rows(const struct sum_rows *s, bnorm_map_args *args,
                                         const float *x, const float *g, const float *pivot,
                                         size_t row) {
    args->pre = BNORM_PRE_NONE;
    return (struct sum_rows){.a = s->a ? args : NULL,
                             .type = BNORM_F32,
                             .spread = s->spread,
                             .x = (const char *)x,
                             .dy = (const char *)g,
                             .x_step = row * sizeof *x,
                             .dy_step = row * sizeof *g,
                             .pivot = pivot,
                             .center = pivot,
                             .invstd = pivot};
}

/* What has none, and any len: a group of few lanes at a time. */
BNORM_RARE void neon_add_staged(const struct sum_rows *s, size_t rows, size_t tail, size_t len,
                           double *a, double *b) {
    enum { ROOM = BNORM_GROUP * BNORM_STAGE_LANES };
    float x[ROOM], g[ROOM], pivot[BNORM_STAGE_LANES];
    double sums_a[BNORM_STAGE_LANES + VEC_F], sums_b[BNORM_STAGE_LANES + VEC_F];
    bnorm_map_args args;
    for (size_t r = 0; r < rows + (tail > 0); r += BNORM_GROUP) {
        const size_t count = neon_lesser(BNORM_GROUP, rows - r), last = count < BNORM_GROUP ? tail : 0,
                     end = count ? len : last;
        for (size_t i = 0; i < end; i += BNORM_STAGE_LANES) {
            const size_t n = neon_lesser(BNORM_STAGE_LANES, end - i), row = neon_whole_vectors(n),
                         extra = last > i ? neon_lesser(n, last - i) : 0, behind = count * row;
            const struct sum_rows at = neon_sum_rows_from(s, r, i, 1, i),
                                  after = neon_sum_rows_from(&at, count, 0, 1, 0),
                                  t = staged_rows(s, &args, x, g, pivot, row);
            memset(pivot, 0, sizeof pivot);
            memcpy(pivot, at.pivot, n * sizeof *pivot);
            load_rows(&at, count, n, x, g);
            if (extra)
                load_rows(&after, 1, extra, x + behind, g + behind);
            neon_add_form(&t, count, extra, row, sums_a, sums_b);
            for (size_t k = 0; k < row; k++) {
                a[i + k] = (r ? a[i + k] : 0) + sums_a[k];
                b[i + k] = (r ? b[i + k] : 0) + sums_b[k];
            }
        }
    }
}

BNORM_INLINE void add_rows(const struct sum_rows *s, size_t rows, size_t tail, size_t len,
                           double *a, double *b) {
    if (len >= VEC_F && neon_form_of(s) != BNORM_GENERAL)
        neon_add_form(s, rows, tail, len, a, b);
    else
        neon_add_staged(s, rows, tail, len, a, b);
}

/* c channels of a block of `count` positions: of rows, or, where parameters are spread, with c = 1
 * and 32 chains, of a plane. */
struct neon_sum_block {
    struct sum_rows s; /* a row is a position, and c*chains lanes have parameters */
    size_t count, c, chains;
};

/* Rows without gaps are joined, so that chain j of channel i is lane j*c + i of longer rows;
 * otherwise each chain has rows of its own. */
struct chain_rows {
    struct sum_rows s;
    size_t rows, tail, len;
};
BNORM_INLINE size_t neon_chain_count(const struct neon_sum_block *k) {
    const struct sum_rows *s = &k->s;
    const size_t bytes = k->c * neon_size_of(s->type);
    const int joined =
        s->x_step == bytes &&
        (!s->a || (s->dy_step == bytes && (!neon_reads_extra(s->a->pre) || s->argument_step == bytes) &&
                   (s->a->pre != BNORM_PRE_MASK || s->bit_step == k->c)));
    return k->chains == 1 || joined ? 1 : neon_lesser(k->chains, k->count);
}
BNORM_INLINE struct chain_rows neon_chain_at(const struct neon_sum_block *k, size_t chains, size_t j) {
    struct chain_rows r = {.s = neon_sum_rows_from(&k->s, j, 0, k->chains, k->s.spread ? 0 : j * k->c)};
    if (chains == 1 && k->chains > 1) {
        r.rows = k->count / k->chains;
        r.tail = k->count % k->chains * k->c;
        r.len = r.rows ? k->c * k->chains : r.tail;
    } else {
        r.rows = (k->count - j + k->chains - 1) / k->chains;
        r.len = k->c;
    }
    return r;
}

/* Both sums of c channels; room for c*chains lanes and a vector more. */
static void neon_sum_channels(const struct neon_sum_block *k, double *a, double *b) {
    const size_t chains = neon_chain_count(k);
    if (k->count < k->chains) { /* not all chains have a row */
        neon_zero_lanes(a, k->c * k->chains);
        neon_zero_lanes(b, k->c * k->chains);
    }
    for (size_t j = 0; j < chains; j++) {
        const struct chain_rows r = neon_chain_at(k, chains, j);
        add_rows(&r.s, r.rows, r.tail, r.len, a + j * k->c, b + j * k->c);
    }
    neon_fold_chains(a, k->c, k->chains);
    neon_fold_chains(b, k->c, k->chains);
}

/* ---------------------------------------------------------------------------------------------- */
/* Planes: rows of BNORM_SPAN_LANES elements. The lanes of a group are folded in float, upper half
 * onto lower half, to four, which are added up in double. */

enum { neon_SPAN_VECTORS = BNORM_SPAN_LANES / VEC_F };

/* Of up to VEC_F planes: the sums of a group, four each, and those of planes of more groups. */
struct neon_plane_sums {
    _Alignas(64) float a[VEC_F][4], b[VEC_F][4];
    double all_a[VEC_F][4], all_b[VEC_F][4];
};

/* Adds four floats. */
BNORM_INLINE void neon_add_four(double *neon_sums, const float *fours) {
    const size_t lanes = neon_lesser(VEC_D, 4);
    for (size_t k = 0; k < 4; k += lanes)
        store_d_lanes(neon_sums + k,
                      neon_vec_add_d(load_d_lanes(neon_sums + k, lanes), neon_widen_lanes(fours + k, lanes)),
                      lanes);
}

/* Planes of `len` elements; `adds`: the sums of groups are added to those of planes. */
BNORM_INLINE void sum_planes(const struct neon_sum_form f, const struct sum_rows *s, size_t planes,
                             size_t len, int adds, struct neon_plane_sums *to) {
    const struct neon_sum_form apart = {f.g, f.type, 0};
    const size_t rows = len % BNORM_FOUR_SPAN / BNORM_SPAN_LANES;
    size_t last[neon_SPAN_VECTORS]; /* lanes of the row that is not whole */
    struct neon_cursor plane = neon_cursor_of(s);
    for (size_t k = 0; k < neon_SPAN_VECTORS; k++)
        last[k] = neon_lanes_before(len % BNORM_SPAN_LANES, k * VEC_F);
    for (size_t i = 0; i < planes; i++, plane = neon_cursor_at(apart, s, plane, 1, 0)) {
        const struct sum_rows here = neon_sum_rows_from(s, 0, 0, 1, i);
        const struct neon_sum_parameters p = neon_sum_parameters_at(f, &here, 1, 0);
        struct neon_cursor at = plane;
        size_t left = len;
        do {
            const size_t count = neon_lesser(left, BNORM_GROUP_SPAN), fours = count / BNORM_FOUR_SPAN;
            struct neon_sums t[neon_SPAN_VECTORS], u[neon_SPAN_VECTORS];
            struct neon_terms rest[neon_SPAN_VECTORS];
#define BNORM_VECTORS_OF(array, value)                                                             \
    {                                                                                              \
        BNORM_UNROLL                                                                               \
        for (size_t k = 0; k < neon_SPAN_VECTORS; k++)                                                  \
            array[k] = value;                                                                      \
    }
#define BNORM_TERMS(row) neon_terms_at(f, s, &p, behind, row, k *VEC_F, VEC_F)
            if (count % BNORM_FOUR_SPAN) {
                const struct neon_cursor behind = neon_cursor_at(f, s, at, 4 * fours, 0);
                BNORM_VECTORS_OF(rest, neon_terms_at(f, s, &p, behind, rows, k * VEC_F, last[k]))
                if (rows & 1)
                    BNORM_VECTORS_OF(u, neon_sum_of_two(BNORM_TERMS(rows - 1), rest[k]))
                else
                    BNORM_VECTORS_OF(u, neon_sum_of_one(rest[k]))
                if (rows & 2)
                    BNORM_VECTORS_OF(u, neon_add_sums(neon_sum_of_two(BNORM_TERMS(0), BNORM_TERMS(1)), u[k]))
            } else {
                BNORM_VECTORS_OF(u, neon_no_sums())
            }
            if (fours) {
                BNORM_VECTORS_OF(t, neon_no_sums())
                neon_add_fours(f, s, &p, at, fours, neon_SPAN_VECTORS, t);
                BNORM_VECTORS_OF(u, neon_add_sums(t[k], u[k]))
            }
#undef BNORM_TERMS
#undef BNORM_VECTORS_OF
            BNORM_UNROLL
            for (size_t half = neon_SPAN_VECTORS / 2; half > 0; half /= 2) {
                BNORM_UNROLL
                for (size_t k = 0; k < half; k++)
                    u[k] = neon_add_sums(u[k], u[half + k]);
            }
            neon_vec_fold_fours(to->a[i], to->b[i], u[0].a, u[0].b);
            if (adds) {
                neon_add_four(to->all_a[i], to->a[i]);
                neon_add_four(to->all_b[i], to->b[i]);
            }
            at = neon_cursor_at(f, s, at, BNORM_GROUP, 0);
            left -= count;
        } while (left);
    }
}

typedef void neon_planes_form(const struct sum_rows *s, size_t planes, size_t len, int adds,
                         struct neon_plane_sums *to);
#define BNORM_PLANES_FORM(name, g, type)                                                           \
    static void sum_planes_##name(const struct sum_rows *s, size_t planes, size_t len, int adds,   \
                                  struct neon_plane_sums *to) {                                         \
        sum_planes((struct neon_sum_form){g, type, 1}, s, planes, len, adds, to);                       \
    }
BNORM_SUM_FORMS(BNORM_PLANES_FORM)
#define BNORM_PLANES_ENTRY(name, g, type) sum_planes_##name,
static neon_planes_form *const neon_planes_forms[] = {BNORM_SUM_FORMS(BNORM_PLANES_ENTRY)};

/* What has no form, a group after the other. */
BNORM_RARE void sum_staged_planes(const struct sum_rows *s, size_t planes, size_t len,
                                  struct neon_plane_sums *to) {
    float x[BNORM_GROUP_SPAN], g[BNORM_GROUP_SPAN];
    bnorm_map_args args;
    for (size_t i = 0; i < planes; i++) {
        struct neon_plane_sums one;
        memset(&one, 0, sizeof one);
        for (size_t e = 0, n; e < len; e += n) {
            const struct sum_rows part = neon_sum_rows_from(s, i, e, 1, i),
                                  t = staged_rows(&part, &args, x, g, part.pivot, 0);
            n = neon_lesser(len - e, BNORM_GROUP_SPAN);
            load_rows(&part, 1, n, x, g);
            neon_planes_forms[neon_form_of(&t)](&t, 1, n, 1, &one);
        }
        memcpy(to->all_a[i], one.all_a[0], sizeof one.all_a[0]);
        memcpy(to->all_b[i], one.all_b[0], sizeof one.all_b[0]);
    }
}

/* In double, of the four sums of each of VEC_F planes. */
BNORM_INLINE void neon_fold_fours(const float *fours, double *neon_sums, size_t planes) {
    double all[VEC_F];
    neon_vec_f v[4];
    vec_load_fours(fours, v);
#define BNORM_FOLDED(half)                                                                         \
    neon_vec_add_d(neon_vec_add_d(neon_vec_add_d(half(v[0]), half(v[2])), neon_vec_add_d(half(v[1]), half(v[3]))),     \
              neon_vec_set1_d(0)) /* no -0 */
    vec_store_d(all, BNORM_FOLDED(neon_vec_low));
    vec_store_d(all + VEC_D, BNORM_FOLDED(neon_vec_high));
#undef BNORM_FOLDED
    memcpy(neon_sums, all, planes * sizeof *neon_sums);
}

/* Both sums of up to VEC_F planes. */
static void add_planes(const struct sum_rows *s, size_t planes, size_t len, double *a, double *b) {
    const int neon_form = neon_form_of(s), adds = neon_form == BNORM_GENERAL || len > BNORM_GROUP_SPAN;
    struct neon_plane_sums neon_sums;
    if (adds || planes < VEC_F)
        memset(&neon_sums, 0, sizeof neon_sums);
    if (neon_form == BNORM_GENERAL)
        sum_staged_planes(s, planes, len, &neon_sums);
    else
        neon_planes_forms[neon_form](s, planes, len, adds, &neon_sums);
    if (!adds) {
        neon_fold_fours(neon_sums.a[0], a, planes);
        neon_fold_fours(neon_sums.b[0], b, planes);
        return;
    }
    for (size_t i = 0; i < planes; i++) {
        const double *const p = neon_sums.all_a[i], *const q = neon_sums.all_b[i];
        a[i] = (p[0] + p[2]) + (p[1] + p[3]);
        b[i] = (q[0] + q[2]) + (q[1] + q[3]);
    }
}

/* ---------------------------------------------------------------------------------------------- */
/* In double */

/* Sums of x, or of g, in a, and of (x - center)^2, or g*(x - center), in b; either may be absent.
 * Chains are added up in order. */
BNORM_RARE void neon_double_channels(const struct neon_sum_block *k, const double *center, double *a,
                                double *b) {
    enum { LANES = 16 };
    float x[LANES], g[LANES];
    const size_t lanes = k->c * k->chains, chains = neon_chain_count(k);
    if (a)
        neon_zero_lanes(a, lanes);
    if (b)
        neon_zero_lanes(b, lanes);
    for (size_t j = 0; j < chains; j++) {
        const struct chain_rows r = neon_chain_at(k, chains, j);
        for (size_t row = 0; row < r.rows + (r.tail > 0); row++) {
            const size_t len = row < r.rows ? r.len : r.tail;
            for (size_t i = 0; i < len; i += LANES) {
                const size_t n = neon_lesser(LANES, len - i), at = j * k->c + i;
                const struct sum_rows here = neon_sum_rows_from(&r.s, row, i, 1, r.s.spread ? 0 : i);
                load_rows(&here, 1, n, x, g);
                for (size_t q = 0; q < n; q++) {
                    const double value = (double)x[q], of_g = k->s.a ? (double)g[q] : 0;
                    const double d = b ? value - center[(at + q) % k->c] : 0;
                    if (a)
                        a[at + q] += k->s.a ? of_g : value;
                    if (b)
                        b[at + q] = bnorm_fma(k->s.a ? of_g : d, d, b[at + q]);
                }
            }
        }
    }
    if (a)
        neon_fold_chains(a, k->c, k->chains);
    if (b)
        neon_fold_chains(b, k->c, k->chains);
}

/* Sums in float are accurate within these limits of the second one. */
#define BNORM_LEAST_SUM 0x1p-90

/* ---------------------------------------------------------------------------------------------- */
/* Statistics */

/* Upper half of n vectors onto lower half. */
#define BNORM_FOLD(v, n)                                                                           \
    for (size_t j = 0; j < (n) / 2; j++)                                                           \
        (v)[j] = neon_vec_add((v)[j], (v)[(n) / 2 + j]);

/* Pivots of VEC_F channels from `samples` values each, folded to at most 4: their mean, rounded to
 * a unit of about an eighth of their spread. So values of a grid have differences on it, with few
 * digits, whose sums are exact. */
BNORM_INLINE neon_vec_f neon_pivots_of(neon_vec_f *v, size_t samples) {
    neon_vec_f least = v[0], most = v[0];
    if (samples > 1) {
        least = neon_vec_min(v[1], v[0]);
        most = neon_vec_max(v[1], v[0]);
    }
    if (samples > 2) {
        least = neon_vec_min(neon_vec_min(v[3], v[2]), least);
        most = neon_vec_max(neon_vec_max(v[3], v[2]), most);
        BNORM_UNROLL
        BNORM_FOLD(v, 4)
    }
    if (samples > 1)
        v[0] = neon_vec_add(v[0], v[1]);
    /* 3*2^22 units: the last digit of a sum with it is a unit. */
    const neon_vec_f unit = neon_vec_power_of_2(neon_vec_sub(most, least)),
                magic = neon_vec_mul(unit, neon_vec_set1(0x3p17f));
    return neon_vec_sub(neon_vec_fma(v[0], neon_vec_set1(1 / (float)samples), magic), magic);
}

/* n <= 4 elements. */
BNORM_INLINE neon_four_floats neon_load_four(const void *p, bnorm_dtype type, size_t n) {
    neon_four_floats four;
    float lanes[VEC_F];
    neon_vec_store(lanes, neon_widened_lanes(p, type, n));
    memcpy(&four, lanes, sizeof four);
    return four;
}

/* Pivots of channels [0, c) of rows; writes up to a vector more. */
BNORM_INLINE void sample_rows(const struct sum_rows *s, size_t count, size_t c, float *pivot) {
    const size_t samples = bnorm_samples(count);
    const int shift = __builtin_ctzll(samples);
    const char *row[BNORM_SAMPLES];
    neon_vec_f v[BNORM_SAMPLES];
    size_t i = 0;
    for (size_t j = 0; j < samples; j++)
        row[j] = s->x + (j * count >> shift) * s->x_step;
    for (; s->type == BNORM_F32 && samples == BNORM_SAMPLES && i + VEC_F <= c; i += VEC_F) {
        BNORM_UNROLL
        for (size_t j = 0; j < BNORM_SAMPLES / 2; j++)
            v[j] = neon_vec_add(neon_vec_load((const float *)(const void *)row[j] + i),
                           neon_vec_load((const float *)(const void *)row[BNORM_SAMPLES / 2 + j] + i));
        BNORM_UNROLL
        BNORM_FOLD(v, BNORM_SAMPLES / 2)
        neon_vec_store(pivot + i, neon_pivots_of(v, BNORM_SAMPLES));
    }
    for (; i < c; i += VEC_F) {
        for (size_t j = 0; j < samples; j++)
            v[j] = neon_widened_lanes(neon_element_at(row[j], s->type, i), s->type, neon_lesser(VEC_F, c - i));
        for (size_t n = samples; n > 4; n /= 2)
            BNORM_FOLD(v, n)
        neon_vec_store(pivot + i, neon_pivots_of(v, samples));
    }
}

/* Upper half of n places onto lower half, down to one. */
BNORM_INLINE neon_four_floats neon_fold_places(neon_four_floats *place, size_t n) {
    BNORM_UNROLL
    for (size_t half = BNORM_PLACES / 2; half > 0; half /= 2)
        if (n > half) {
            BNORM_UNROLL
            for (size_t q = 0; q < half; q++)
                place[q] += place[half + q];
        }
    return place[0];
}

/* The sum of a plane's places, four lanes; at[q] is the offset of a place. */
BNORM_INLINE neon_four_floats neon_sample_plane(const char *plane, bnorm_dtype type, size_t places,
                                      const size_t *at, size_t neon_run) {
    neon_four_floats place[BNORM_PLACES];
    if (type == BNORM_BF16 && neon_run == 4) {
        for (size_t q = 0; q < places; q++)
            place[q] = vec_four_bf16((const void *)(plane + at[q]));
    } else if (type == BNORM_F16 && neon_run == 4) {
        for (size_t q = 0; q < places; q++)
            place[q] = vec_four_f16((const void *)(plane + at[q]));
    } else {
        for (size_t q = 0; q < places; q++)
            place[q] = neon_load_four(plane + at[q], type, neon_run);
    }
    return neon_fold_places(place, places);
}
/* Of floats, and a number of places that is a constant. */
BNORM_INLINE neon_four_floats neon_sample_floats(const char *plane, size_t places, const size_t *at) {
    neon_four_floats place[BNORM_PLACES];
    BNORM_UNROLL
    for (size_t q = 0; q < places; q++)
        place[q] = neon_vec_four((const void *)(plane + at[q]));
    return neon_fold_places(place, places);
}

/* Those of planes, up to VEC_F of them: from places of four neighbours, spread over the plane. */
BNORM_INLINE void sample_planes(const struct sum_rows *s, size_t planes, size_t len, float *pivot) {
    const size_t places = bnorm_places(len), neon_run = len < 4 ? bnorm_samples(len) : 4;
    const int shift = __builtin_ctzll(places);
    _Alignas(64) float fours[VEC_F][4] = {{0}};
    size_t at[BNORM_PLACES];
    neon_vec_f v[4];
    for (size_t q = 0; q < places; q++)
        at[q] = (q * len >> shift) * neon_size_of(s->type);
    for (size_t i = 0; i < planes; i++) {
        const char *const plane = s->x + i * s->x_step;
        const neon_four_floats sum = s->type != BNORM_F32 || places < 4
                                    ? neon_sample_plane(plane, s->type, places, at, neon_run)
                                : places == 4 ? neon_sample_floats(plane, 4, at)
                                : places == 8 ? neon_sample_floats(plane, 8, at)
                                              : neon_sample_floats(plane, 16, at);
        memcpy(fours[i], &sum, sizeof fours[i]);
    }
    vec_load_fours(fours[0], v);
    neon_vec_store(pivot, neon_pivots_of(v, places * neon_run));
}

/* Pivots of backward, of n channels whose first values are x: their centers, rounded to a unit of
 * about 2^-16/invstd. */
BNORM_INLINE neon_vec_f neon_rounded_centers(neon_vec_f x, const struct sum_rows *s, size_t i, size_t n) {
    const neon_vec_f center = neon_load_lanes(s->center + i, n), least = neon_vec_set1(0x1p-90f),
                most = neon_vec_set1(0x1p126f),
                inverse = neon_vec_min(neon_vec_max(neon_load_lanes(s->invstd + i, n), least), most),
                unit = neon_vec_power_of_2(neon_vec_div(neon_vec_set1(1), inverse)),
                magic = neon_vec_mul(unit, neon_vec_set1(0x3p6f)),
                rounded = neon_vec_sub(neon_vec_add(center, magic), magic);
    return neon_vec_if_le(neon_vec_set1(0), neon_vec_minus_abs(neon_vec_sub(x, center)), center, rounded);
}

/* Of rows of c lanes, of which `valid` have a center; whole vectors are written. */
BNORM_INLINE void neon_round_centers(const struct sum_rows *s, size_t c, size_t valid, float *pivot) {
    size_t i = 0;
    for (; s->type == BNORM_F32 && i + VEC_F <= valid; i += VEC_F)
        neon_vec_store(pivot + i,
                  neon_rounded_centers(neon_vec_load((const float *)(const void *)s->x + i), s, i, VEC_F));
    for (; i < c; i += VEC_F) {
        const size_t n = neon_lanes_before(valid, i);
        const neon_vec_f x = neon_widened_lanes(neon_element_at(s->x, s->type, i), s->type, n);
        neon_vec_store(pivot + i, neon_rounded_centers(x, s, i, n));
    }
}

BNORM_INLINE void neon_round_plane_centers(const struct sum_rows *s, size_t planes, float *pivot) {
    memset(pivot, 0, VEC_F * sizeof *pivot);
    for (size_t i = 0; i < planes; i++) {
        float lanes[VEC_F];
        if (s->type == BNORM_F32)
            memcpy(lanes, s->x + i * s->x_step, sizeof *lanes);
        else
            neon_vec_store(lanes, neon_half_lanes(s->x + i * s->x_step, s->type, 1));
        pivot[i] = lanes[0];
    }
    neon_vec_store(pivot, neon_rounded_centers(neon_vec_load(pivot), s, 0, planes));
}

/* Room for the lanes that are done again together: BNORM_MAX_LANES at most. */
#define BNORM_AGAIN (BNORM_MAX_LANES + BNORM_PAD)

/* Not 0 where a channel has a value that is not its pivot. */
static void neon_sum_distances(const struct neon_sum_block *k, double *b) {
    const size_t chains = neon_chain_count(k);
    neon_zero_lanes(b, k->c * k->chains);
    for (size_t j = 0; j < chains; j++) {
        const struct chain_rows r = neon_chain_at(k, chains, j);
        for (size_t i = 0; i < r.len; i += VEC_F) {
            const size_t p = r.s.spread ? 0 : i;
            struct neon_sums t = neon_no_sums();
            for (size_t row = 0; row < r.rows + (r.tail > i); row++) {
                const size_t n = neon_lesser(VEC_F, (row < r.rows ? r.len : r.tail) - i);
                const neon_vec_f x = neon_widened_lanes(neon_element_at(r.s.x + row * r.s.x_step, r.s.type, i),
                                              r.s.type, n),
                            pivot = neon_parameter_lanes(r.s.pivot + p, r.s.spread, 0, n);
                t.b = neon_vec_add(t.b, neon_vec_minus_abs(neon_first_lanes(neon_vec_sub(x, pivot), n)));
            }
            neon_add_group(t, 1, b + j * k->c + i, b + j * k->c + i);
        }
    }
    neon_fold_chains(b, k->c, k->chains);
}

static float neon_power_of_2(float v) {
    uint32_t bits;
    memcpy(&bits, &v, sizeof bits);
    bits &= 0x7f800000;
    memcpy(&v, &bits, sizeof v);
    return v;
}

/* A pivot from the sums about another one: the mean, rounded to an eighth of the deviation where
 * these say enough of it. 0 where they say nothing. */
static float neon_better_pivot(double n, float pivot, double a, double b) {
    const float mean = (float)bnorm_fma(a, 1 / n, (double)pivot);
    const double squares = bnorm_fma(a * (-1 / n), a, b);
    if (!(mean >= -FLT_MAX && mean <= FLT_MAX))
        return 0;
    if (!(squares > b * 0x1p-10 && b <= DBL_MAX))
        return mean;
    const float magic = neon_power_of_2((float)sqrt(squares * (1 / n))) * 0x3p19f, sum = mean + magic;
    return sum - magic;
}

/* Both sums of the channels of rows, or of a plane. */
BNORM_INLINE void neon_sum_block(const struct neon_sum_block *k, double *a, double *b) {
    if (k->s.spread)
        add_planes(&k->s, 1, k->count, a, b);
    else
        neon_sum_channels(k, a, b);
}

/* Lanes whose pivot is more than a deviation off the mean, or whose squares leave the range of a
 * float: one bit each. */
BNORM_INLINE unsigned neon_inaccurate_moments(double n, neon_vec_d a, neon_vec_d b) {
    const neon_vec_d half = neon_vec_mul_d(b, neon_vec_set1_d(0.5)),
                margin = neon_vec_fma_d(neon_vec_mul_d(a, neon_vec_set1_d(-1 / n)), a, half);
    return neon_vec_outside_d(margin, 0, DBL_MAX) | neon_vec_outside_d(b, BNORM_LEAST_SUM, DBL_MAX);
}

/* Lanes whose second sum in float is out of range, unless all g are 0, or whose first one is. */
BNORM_INLINE unsigned neon_inaccurate_sums(neon_vec_d a, neon_vec_d b) {
    const neon_vec_d zero = neon_vec_set1_d(0), one = neon_vec_set1_d(1);
    unsigned bits =
        neon_vec_outside_d(b, BNORM_LEAST_SUM, DBL_MAX) & neon_vec_outside_d(b, -DBL_MAX, -BNORM_LEAST_SUM);
    if (bits)
        bits &= neon_vec_outside_d(neon_vec_if_eq_d(b, zero, neon_vec_if_eq_d(a, zero, zero, one), one), 0, 0);
    return bits | neon_vec_outside_d(a, -DBL_MAX, DBL_MAX);
}

/* Lanes of the first `lanes` whose sums, of n values, are no good. */
BNORM_INLINE unsigned neon_inaccurate(int backward, double n, neon_vec_d a, neon_vec_d b, size_t lanes) {
    return (backward ? neon_inaccurate_sums(a, b) : neon_inaccurate_moments(n, a, b)) & ((1u << lanes) - 1);
}

/* What is wanted of channel i, made of its sums in double. */
BNORM_INLINE void neon_store_again(const double *a, const double *b, size_t i, double *first,
                              double *second) {
    if (first)
        vec_store_d_n(first + i, neon_vec_canonical_d(neon_vec_set1_d(a[i])), 1);
    vec_store_d_n(second + i, neon_vec_canonical_d(neon_vec_set1_d(b[i])), 1);
}

/* Does those of the first `valid` channels again whose sums a and b about their pivots are
 * inaccurate: about another pivot, and if they still are, in double about the mean itself. Where all
 * values are the pivot, nothing is inaccurate. */
BNORM_RARE void neon_moments_again(struct neon_sum_block k, size_t valid, const double *a, const double *b,
                              double *sum, double *m2) {
    float other[BNORM_AGAIN];
    double again_a[BNORM_AGAIN], again_b[BNORM_AGAIN];
    const double n = (double)k.count;
    unsigned char wanted[BNORM_AGAIN];
    size_t count = 0;
    int same = 0;
    for (size_t i = 0; i < valid; i++)
        same |= b[i] == 0;
    if (same)
        neon_sum_distances(&k, again_b);
    for (size_t i = 0; i < k.c; i++) {
        const float pivot = k.s.pivot[i];
        wanted[i] = i < valid && neon_inaccurate(0, n, neon_vec_set1_d(a[i]), neon_vec_set1_d(b[i]), 1) &&
                    !(b[i] == 0 && again_b[i] == 0);
        other[i] = wanted[i] ? neon_better_pivot(n, pivot, a[i], b[i]) : pivot;
        count += wanted[i];
    }
    if (!count)
        return;
    neon_repeat_lanes(other, k.c, k.s.spread ? 1 : k.chains);
    k.s.pivot = other;
    neon_sum_block(&k, again_a, again_b);
    for (size_t i = 0; i < k.c; i++) {
        const double squares = bnorm_fma(again_a[i] * (-1 / n), again_a[i], again_b[i]);
        if (!(wanted[i] && again_b[i] >= BNORM_LEAST_SUM && again_b[i] <= DBL_MAX))
            continue;
        sum[i] = bnorm_fma(n, (double)other[i], again_a[i]);
        m2[i] = squares < 0 ? 0 : squares;
        wanted[i] = 0;
        count--;
    }
    if (!count)
        return;
    neon_double_channels(&k, NULL, again_a, NULL);
    for (size_t i = 0; i < k.c; i++)
        if (wanted[i])
            neon_store_again(again_a, again_a, i, sum, sum);
    for (size_t i = 0; i < k.c; i++)
        again_a[i] /= n;
    neon_double_channels(&k, again_a, NULL, again_b);
    for (size_t i = 0; i < k.c; i++)
        if (wanted[i])
            neon_store_again(again_b, again_b, i, NULL, m2);
}

/* The same of backward: in double. A first sum that is finite stays, so that it does not depend on
 * x. */
BNORM_RARE void neon_sums_again(const struct neon_sum_block *k, size_t valid, const double *a,
                           const double *b, double *sum_g, double *sum_gx) {
    double again_a[BNORM_AGAIN], again_b[BNORM_AGAIN], center[BNORM_MAX_LANES] = {0};
    for (size_t i = 0; i < valid; i++)
        center[i] = (double)k->s.center[i];
    neon_double_channels(k, center, again_a, again_b);
    for (size_t i = 0; i < valid; i++)
        if (neon_inaccurate(1, 1, neon_vec_set1_d(a[i]), neon_vec_set1_d(b[i]), 1))
            neon_store_again(again_a, again_b, i, fabs(a[i]) <= DBL_MAX ? NULL : sum_g, sum_gx);
}

/* ---------------------------------------------------------------------------------------------- */
/* From the sums about pivots to what is wanted of the first `valid` channels: sum(x) and M2, or both
 * sums about the center */

/* Those of `lanes` channels; which are inaccurate. b becomes about the center. */
BNORM_INLINE unsigned neon_store_channels(int backward, double n, const float *pivot,
                                     const float *center, size_t lanes, const double *a, double *b,
                                     double *first, double *second) {
    const neon_vec_d of_a = vec_load_d(a), of_pivot = neon_vec_widen(pivot), zero = neon_vec_set1_d(0);
    neon_vec_d of_b = vec_load_d(b), total = of_a, result;
    if (backward) {
        const neon_vec_d off = neon_vec_sub_d(of_pivot, neon_widen_lanes(center, lanes));
        result = of_b = neon_vec_fma_d(off, of_a, of_b);
        vec_store_d(b, of_b);
    } else {
        const neon_vec_d m2 = neon_vec_fma_d(neon_vec_mul_d(of_a, neon_vec_set1_d(-1 / n)), of_a, of_b);
        total = neon_vec_fma_d(neon_vec_set1_d(n), of_pivot, of_a);
        result = neon_vec_if_lt_d(m2, zero, zero, m2);
    }
    store_d_lanes(first, neon_vec_canonical_d(total), lanes);
    store_d_lanes(second, neon_vec_canonical_d(result), lanes);
    return neon_inaccurate(backward, n, of_a, of_b, lanes);
}

/* Whether any is inaccurate. */
BNORM_INLINE unsigned neon_store_block(int backward, const struct neon_sum_block *k, size_t valid,
                                  const double *a, double *b, double *first, double *second) {
    const float *const pivot = k->s.pivot, *const center = k->s.center;
    const double n = (double)k->count;
    unsigned any = 0;
    size_t i = 0;
#define BNORM_CALL(lanes)                                                                          \
    any |= neon_store_channels(backward, n, pivot + i, backward ? center + i : NULL, lanes, a + i,      \
                          b + i, first + i, second + i)
    for (; i + VEC_D <= valid; i += VEC_D)
        BNORM_CALL(VEC_D);
    if (i < valid)
        BNORM_CALL(valid - i);
#undef BNORM_CALL
    return any;
}

/* Channels that are done again together, from the i-th on: a plane; else vectors of channels, or all
 * that share rows. */
BNORM_INLINE struct neon_sum_block neon_slice_of(const struct neon_sum_block *k, size_t i) {
    struct neon_sum_block slice = *k;
    if (k->s.spread) {
        slice.s = neon_sum_rows_from(&k->s, i, 0, 1, i);
        slice.s.x_step = slice.s.dy_step = slice.s.argument_step = neon_size_of(k->s.type);
        slice.s.bit_step = 1;
        slice.c = 1;
        slice.chains = BNORM_SPAN_LANES;
    } else if (k->chains == 1) {
        slice.s = neon_sum_rows_from(&k->s, 0, i, 1, i);
        slice.c = neon_lesser(VEC_F, k->c - i);
    }
    return slice;
}

/* There is room for a vector behind a and b. */
static void neon_finish_block(const struct neon_sum_block *k, size_t valid, const double *a, double *b,
                         double *first, double *second) {
    const int backward = k->s.a != NULL;
    if (!(backward ? neon_store_block(1, k, valid, a, b, first, second)
                   : neon_store_block(0, k, valid, a, b, first, second)))
        return;
    for (size_t i = 0, n; i < valid; i += n) {
        const struct neon_sum_block slice = neon_slice_of(k, i);
        unsigned any = 0;
        n = neon_lesser(slice.c, valid - i);
        for (size_t j = i; j < i + n; j += VEC_D)
            any |= neon_inaccurate(backward, (double)k->count, vec_load_d(a + j), vec_load_d(b + j),
                              neon_lesser(VEC_D, i + n - j));
        if (any && backward)
            neon_sums_again(&slice, n, a + i, b + i, first + i, second + i);
        else if (any)
            neon_moments_again(slice, n, a + i, b + i, first + i, second + i);
    }
}

/* Parameters of `chains` rows of c channels, those behind the first `valid` 0. */
BNORM_INLINE const float *neon_repeat(float *pattern, const float *p, size_t c, size_t valid,
                                 size_t chains) {
    for (size_t j = 0; j < chains; j++) {
        memcpy(pattern + j * c, p, valid * sizeof *p);
        if (valid < c)
            memset(pattern + j * c + valid, 0, (c - valid) * sizeof *p);
    }
    return pattern;
}

static void neon_sum_tile(const struct neon_sum_block *k, size_t valid, double *a, double *b, double *first,
                     double *second) {
    neon_sum_channels(k, a, b);
    neon_finish_block(k, valid, a, b, first, second);
}

/* Where v is computed of several rows in one, or beside padding. Not inlined: what it takes of stack
 * is for few channels. */
BNORM_RARE void neon_sum_repeated(const struct neon_sum_block *k, size_t valid, double *a, double *b,
                             double *first, double *second) {
    float center[BNORM_MAX_LANES], scale[BNORM_MAX_LANES], shift[BNORM_MAX_LANES];
    struct neon_sum_block repeated = *k;
    repeated.s.center = neon_repeat(center, k->s.center, k->c, valid, k->chains);
    repeated.s.scale = neon_repeat(scale, k->s.scale, k->c, valid, k->chains);
    repeated.s.shift = neon_repeat(shift, k->s.shift, k->c, valid, k->chains);
    neon_sum_tile(&repeated, valid, a, b, first, second);
}

/* A block of c <= BNORM_TILE channels. */
static void neon_reduce_tile(const struct sum_rows *s, size_t count, size_t c, size_t valid,
                        size_t chains, double *first, double *second) {
    double a[BNORM_TILE + BNORM_PAD], b[BNORM_TILE + BNORM_PAD];
    float pivot[BNORM_TILE + BNORM_PAD];
    struct neon_sum_block k = {*s, count, c, chains};
    if (s->a)
        neon_round_centers(s, c, valid, pivot);
    else
        sample_rows(s, count, c, pivot);
    neon_repeat_lanes(pivot, c, chains);
    k.s.pivot = pivot;
    if (s->a && neon_reads_x(s->a->pre) && (chains > 1 || valid < c))
        neon_sum_repeated(&k, valid, a, b, first, second);
    else
        neon_sum_tile(&k, valid, a, b, first, second);
}

/* Of c lanes in memory: padding of rows without gaps is added up too, for nothing. */
BNORM_INLINE void reduce_rows(const struct sum_rows *s, size_t count, size_t c, size_t valid,
                              size_t chains, double *first, double *second) {
    for (size_t i = 0; i < valid; i += BNORM_TILE) {
        const struct sum_rows tile = neon_sum_rows_from(s, 0, i, 1, i);
        neon_reduce_tile(&tile, count, neon_lesser(BNORM_TILE, c - i), neon_lesser(BNORM_TILE, valid - i), chains,
                    first + i, second + i);
    }
    neon_vec_leave();
}

static void neon_reduce_span(const struct sum_rows *all, size_t planes, size_t len, double *first,
                        double *second) {
    for (size_t i = 0; i < planes; i += VEC_F) {
        double a[2 * VEC_F] = {0}, b[2 * VEC_F] = {0};
        float pivot[VEC_F];
        const size_t n = neon_lesser(VEC_F, planes - i);
        struct neon_sum_block k = {neon_sum_rows_from(all, i, 0, 1, i), len, n, 1};
        if (all->a)
            neon_round_plane_centers(&k.s, n, pivot);
        else
            sample_planes(&k.s, n, len, pivot);
        k.s.pivot = pivot;
        add_planes(&k.s, n, len, a, b);
        neon_finish_block(&k, n, a, b, first + i, second + i);
    }
    neon_vec_leave();
}

/* ---------------------------------------------------------------------------------------------- */
/* The kernels */

BNORM_INLINE struct sum_rows block_rows(const bnorm_block_args *a, int planes) {
    return (struct sum_rows){.type = a->type,
                             .spread = planes,
                             .fetch = (a->hints & BNORM_FETCH_IN) != 0,
                             .x = a->x,
                             .x_step = a->stride * neon_size_of(a->type)};
}

static void neon_moments_rows(const bnorm_block_args *a, size_t chains, double *sum, double *m2) {
    const struct sum_rows s = block_rows(a, 0);
    reduce_rows(&s, a->runs, a->stride == a->len ? a->len : a->valid, a->valid, chains, sum, m2);
}

static void neon_moments_span(const bnorm_block_args *a, double *sum, double *m2) {
    const struct sum_rows s = block_rows(a, 1);
    neon_reduce_span(&s, a->runs, a->len, sum, m2);
}

/* Where backward reads; strides are those of rows, or of planes. */
BNORM_INLINE struct sum_rows neon_sum_rows_at(const bnorm_map_args *a, int planes) {
    const size_t size = neon_size_of(a->x.type);
    return (struct sum_rows){
        .a = a,
        .type = a->x.type,
        .spread = planes,
        .fetch = (a->hints & BNORM_FETCH_IN) != 0,
        .x = a->x.data,
        .dy = a->dy.data,
        .argument = a->argument.data,
        .x_step = size * (planes ? a->x.group_stride : a->x.row_stride),
        .dy_step = size * (planes ? a->dy.group_stride : a->dy.row_stride),
        .argument_step = size * (planes ? a->argument.group_stride : a->argument.row_stride),
        .bit = a->mask.at,
        .bit_step = planes ? a->mask.group_stride : a->mask.row_stride,
        .center = a->center,
        .scale = a->scale,
        .shift = a->shift,
        .invstd = a->invstd,
    };
}

static void neon_sums_rows(const bnorm_map_args *a, size_t chains, double *sum_g, double *sum_gx) {
    const int gaps = a->x.row_stride != a->lanes || a->dy.row_stride != a->lanes ||
                     (neon_reads_extra(a->pre) && a->argument.row_stride != a->lanes);
    const struct sum_rows s = neon_sum_rows_at(a, 0);
    reduce_rows(&s, a->rows, gaps ? a->valid : a->lanes, a->valid, chains, sum_g, sum_gx);
}

static void neon_sums_span(const bnorm_map_args *a, double *sum_g, double *sum_gx) {
    const struct sum_rows s = neon_sum_rows_at(a, 1);
    neon_reduce_span(&s, a->groups, a->lanes, sum_g, sum_gx);
}
/* SPDX-License-Identifier: MIT
 *
 * Rows that are images of their own: whole subtrees of up to BNORM_LEAF of them. */

/* How the two numbers per channel of neighbours become one: as statistics, or as two sums. */
enum neon_tree { neon_BNORM_MERGED, neon_BNORM_ADDED };

/* Of some rows: sum and M2, or the sums of g and g*(x - center). */
struct neon_leaf {
    neon_vec_d a, b;
};

/* Two neighbours of `rows` rows each. */
BNORM_INLINE struct neon_leaf neon_join_leaves(enum neon_tree neon_tree, struct neon_leaf left, struct neon_leaf right,
                                     size_t rows) {
    neon_vec_d b = neon_vec_add_d(left.b, right.b);
    if (neon_tree == neon_BNORM_MERGED) {
        const neon_vec_d d = neon_vec_sub_d(right.a, left.a);
        b = neon_vec_fma_d(neon_vec_mul_d(d, d), neon_vec_set1_d(0.5 / (double)rows), b);
    }
    return (struct neon_leaf){neon_vec_add_d(left.a, right.a), b};
}

/* Rows of floats; g and center are for sums only. */
struct leaf_rows {
    const float *x, *g, *center;
    size_t x_stride, g_stride;
};

BNORM_INLINE struct leaf_rows neon_leaf_rows_from(enum neon_tree neon_tree, struct leaf_rows r, size_t row,
                                             size_t i) {
    r.x += row * r.x_stride + i;
    if (neon_tree == neon_BNORM_ADDED) {
        r.g += row * r.g_stride + i;
        r.center += i;
    }
    return r;
}

BNORM_INLINE struct neon_leaf neon_leaf_1(enum neon_tree neon_tree, struct leaf_rows r, size_t row, size_t n) {
    const neon_vec_d x = neon_widen_lanes(r.x + row * r.x_stride, n);
    if (neon_tree == neon_BNORM_MERGED)
        return (struct neon_leaf){x, neon_vec_set1_d(0)};
    /* 0 added: a product that compilers can't make one operation with what it is added to. */
    const neon_vec_d g = neon_widen_lanes(r.g + row * r.g_stride, n),
                d = neon_vec_sub_d(x, neon_widen_lanes(r.center, n));
    return (struct neon_leaf){g, neon_vec_fma_d(g, d, neon_vec_set1_d(0))};
}

BNORM_INLINE struct neon_leaf neon_leaf_2(enum neon_tree neon_tree, struct leaf_rows r, size_t row, size_t n) {
    return neon_join_leaves(neon_tree, neon_leaf_1(neon_tree, r, row, n), neon_leaf_1(neon_tree, r, row + 1, n), 1);
}

BNORM_INLINE struct neon_leaf neon_leaf_4(enum neon_tree neon_tree, struct leaf_rows r, size_t row, size_t n) {
    return neon_join_leaves(neon_tree, neon_leaf_2(neon_tree, r, row, n), neon_leaf_2(neon_tree, r, row + 2, n), 2);
}

/* Rows of the smallest subtrees, but for those that are smaller altogether. */
#define BNORM_TWIG 8

BNORM_INLINE struct neon_leaf neon_leaf_of(enum neon_tree neon_tree, struct leaf_rows r, size_t rows, size_t n) {
    switch (rows) {
    case 1:
        return neon_leaf_1(neon_tree, r, 0, n);
    case 2:
        return neon_leaf_2(neon_tree, r, 0, n);
    case 4:
        return neon_leaf_4(neon_tree, r, 0, n);
    default:
        return neon_join_leaves(neon_tree, neon_leaf_4(neon_tree, r, 0, n), neon_leaf_4(neon_tree, r, 4, n), 4);
    }
}

/* Lanes that go through their rows side by side: long pieces of each row are read. */
#define BNORM_LEAF_TILE 64

/* Two numbers per lane. */
struct neon_leaf_lanes {
    double a[BNORM_LEAF_TILE + VEC_D], b[BNORM_LEAF_TILE + VEC_D];
};

BNORM_INLINE struct neon_leaf neon_load_leaf(const struct neon_leaf_lanes *lanes, size_t i) {
    return (struct neon_leaf){vec_load_d(lanes->a + i), vec_load_d(lanes->b + i)};
}

BNORM_INLINE void neon_store_leaf(struct neon_leaf_lanes *lanes, size_t i, struct neon_leaf neon_leaf) {
    vec_store_d(lanes->a + i, neon_leaf.a);
    vec_store_d(lanes->b + i, neon_leaf.b);
}

/* Rows as floats: where they are, or all but the plainest by way of L1. */
struct neon_leaf_floats {
    float x[BNORM_TWIG * BNORM_LEAF_TILE + VEC_F], g[BNORM_TWIG * BNORM_LEAF_TILE];
};
BNORM_INLINE struct leaf_rows neon_leaf_rows_at(const struct sum_rows *s, size_t row, size_t rows,
                                           size_t c, struct neon_leaf_floats *to) {
    const struct sum_rows from = neon_sum_rows_from(s, row, 0, 1, 0);
    const size_t n = neon_whole_vectors(c);
    if (s->type == BNORM_F32 && (!s->a || s->a->pre == BNORM_PRE_NONE))
        return (struct leaf_rows){(const void *)from.x, (const void *)from.dy, s->center,
                                  s->x_step / sizeof *to->x, s->dy_step / sizeof *to->g};
    if (!s->a) {
        widen_rows(to->x, from.x, s->type, s->x_step / neon_size_of(s->type), rows, c);
        return (struct leaf_rows){to->x, NULL, NULL, c, 0};
    }
    load_rows(&from, rows, c, to->x, to->g);
    return (struct leaf_rows){to->x, to->g, s->center, n, n};
}

/* c <= BNORM_LEAF_TILE lanes of `rows` rows. Subtrees wait for their neighbours. */
BNORM_INLINE void neon_leaf_tile(enum neon_tree neon_tree, const struct sum_rows *s, size_t rows, size_t c,
                            struct neon_leaf_lanes *all) {
    struct neon_leaf_floats floats;
    struct neon_leaf_lanes waiting[3];
    const size_t step = neon_lesser(rows, BNORM_TWIG), twigs = rows / step;
    size_t depth = 0;
    for (size_t q = 0; q < twigs; q++) {
        const struct leaf_rows r = neon_leaf_rows_at(s, q * step, step, c, &floats);
        size_t left = depth;
        for (size_t i = 0; i < c; i += VEC_D) {
            const struct leaf_rows here = neon_leaf_rows_from(neon_tree, r, 0, i);
            struct neon_leaf neon_leaf = neon_leaf_of(neon_tree, here, step, neon_lesser(VEC_D, c - i));
            left = depth;
            for (size_t joined = 1; q & joined; joined *= 2)
                neon_leaf = neon_join_leaves(neon_tree, neon_load_leaf(&waiting[--left], i), neon_leaf, step * joined);
            neon_store_leaf(q + 1 == twigs ? all : &waiting[left], i, neon_leaf);
        }
        depth = left + 1;
    }
}

BNORM_INLINE void neon_reduce_leaves(enum neon_tree neon_tree, const struct sum_rows *s, size_t rows, size_t c,
                                double *a, double *b) {
    struct neon_leaf_lanes all;
    for (size_t i = 0; i < c; i += BNORM_LEAF_TILE) {
        const size_t n = neon_lesser(BNORM_LEAF_TILE, c - i);
        const struct sum_rows tile = neon_sum_rows_from(s, 0, i, 1, i);
        neon_leaf_tile(neon_tree, &tile, rows, n, &all);
        for (size_t k = 0; k < n; k += VEC_D) {
            struct neon_leaf neon_leaf = neon_load_leaf(&all, k);
            if (neon_tree == neon_BNORM_MERGED) /* an infinity leaves no squares either */
                neon_leaf.b = neon_vec_add_d(neon_leaf.b, neon_vec_sub_d(neon_leaf.a, neon_leaf.a));
            store_d_lanes(a + i + k, neon_vec_canonical_d(neon_leaf.a), neon_lesser(VEC_D, n - k));
            store_d_lanes(b + i + k, neon_vec_canonical_d(neon_leaf.b), neon_lesser(VEC_D, n - k));
        }
    }
    neon_vec_leave();
}

static void neon_moments_tree(const bnorm_block_args *a, double *sum, double *m2) {
    const struct sum_rows s = block_rows(a, 0);
    neon_reduce_leaves(neon_BNORM_MERGED, &s, a->runs, a->valid, sum, m2);
}

static void neon_sums_tree(const bnorm_map_args *a, double *sum_g, double *sum_gx) {
    const struct sum_rows s = neon_sum_rows_at(a, 0);
    neon_reduce_leaves(neon_BNORM_ADDED, &s, a->rows, a->valid, sum_g, sum_gx);
}
/* SPDX-License-Identifier: MIT
 *
 * Elementwise work: y of forward, dx and dresidual of backward. A run is a row, a plane, or rows
 * that follow one another without a gap. It is taken in groups of BNORM_VECTORS vectors, which are
 * loaded, computed and stored together, then in single vectors; types, activation and options are
 * asked for once a group. Where a run ends within a vector, the last vector begins so much earlier
 * that it is whole.
 *
 * There is one loop, map_runs, of which a form is an instance. It has three parameters:
 *   direction   FORWARD, BACKWARD
 *   source      of a vector's parameters: SPREAD, the same for all vectors of a run (planes, and
 *               blocks of channels that fit into a vector);
 *               HELD, those of a group, which are the same in all groups (few channels, or a strip
 *               of channels through all rows); LOADED, from arrays
 *   sloped      whether dx has the terms of batch statistics, of forms of backward with a type
 *   type        of all tensors, without a mask, with IDENTITY, RELU or CLAMP in forward and with
 *               RELU or no activation in backward; BNORM_ANY: everything else */

/* Vectors of a group: their latencies overlap, also where a compiler must assume that a store
 * changes what a later load reads. */
#define BNORM_VECTORS ((size_t)4)
#define BNORM_GROUP_F (BNORM_VECTORS * VEC_F)
/* The same of lines of outputs. */
#define BNORM_AHEAD_OUT 1024
/* Bytes of output that pass the caches at a time. Lines of runs of more bytes are asked for. */
#define BNORM_PART ((size_t)4096)
/* Runs of so many elements are aligned to lines of the cache, and follow hints. */
#define BNORM_LONG_RUN 512
/* Rows of few channels are joined to rows of about BNORM_LONG_ROW floats, for which the parameters
 * are written one behind the other; all arrays together have room for BNORM_ROOM floats. */
#define BNORM_LONG_ROW 256
#define BNORM_ROOM     ((size_t)3072)
/* Planes of fewer elements are joined to rows: of one image, of several, and of types and
 * activations without a form of their own. */
#define BNORM_SMALL_PLANE  ((size_t)2 * VEC_F)
#define BNORM_SMALL_PLANES ((size_t)4 * VEC_F)
#define BNORM_SMALL_ANY    ((size_t)128)

enum neon_direction { neon_FORWARD, neon_BACKWARD };
enum neon_source { neon_SPREAD, neon_HELD, neon_LOADED };

/* No type, no kind. */
#define BNORM_ANY (-1)

struct neon_form {
    enum neon_direction direction;
    enum neon_source source;
    int type, kind;
    int sloped;
};

/* Arrays of parameters; those that are not wanted are any readable memory. */
struct neon_parameters {
    const float *center, *scale, *shift, *invstd, *slope, *offset;
};

#define BNORM_FOR_PARAMETERS(m, X)                                                                 \
    if ((m)->centred) {                                                                            \
        X(0, center);                                                                              \
    }                                                                                              \
    X(1, scale);                                                                                   \
    X(2, shift);                                                                                   \
    if ((m)->sloped) {                                                                             \
        X(3, invstd);                                                                              \
        X(4, slope);                                                                               \
        X(5, offset);                                                                              \
    }

struct neon_mapping;
struct neon_block;
typedef void neon_map_function(const struct neon_mapping *m, const struct neon_block *b);

/* What holds for a whole call. */
struct neon_mapping {
    enum neon_direction direction;
    bnorm_dtype type, out_type;
    size_t size, out_size; /* bytes of an element */
    enum bnorm_pre pre;
    bnorm_act act;
    int centred, sloped;
    int reads_x; /* for more than its own sake; always in forward */
    int has_out, has_dresidual, writes_bits;
    int in_place; /* an output is an input */
    unsigned hints;
    int strips;
    unsigned char *bits; /* the mask, or NULL */
    struct neon_quant x_quant, argument_quant, out_quant;
    struct neon_parameters p;
    neon_map_function *spread, *held, *loaded, *any; /* the forms; the first two may be NULL */
};

/* Where the elements of a run are. Absent tensors are any memory, which is not looked at. */
struct neon_run {
    const char *x, *dy, *argument;
    char *out, *dresidual;
    size_t bit;
};

/* Bytes from a run to the next of each tensor; 0 of absent ones. */
struct neon_strides {
    size_t x, dy, argument, out, dresidual, bit;
};

/* Rows of one group, or planes of one image. */
struct neon_block {
    struct neon_run run;
    struct neon_strides strides;
    size_t rows, lanes;
    unsigned fetch; /* which hints are followed */
    int dense;      /* rows follow one another without a gap */
    /* The parameters of the first element have number `first`. Loaded ones repeat after `period`
     * elements, and `step` = BNORM_GROUP_F % period. Where nothing can be read behind these (exact),
     * groups begin with the first element. Spread ones are `each` per run. */
    size_t first, period, step, each;
    int exact;
};

/* Parameters that stay in registers. */
struct neon_held {
    neon_vec_f center[BNORM_VECTORS], scale[BNORM_VECTORS], shift[BNORM_VECTORS];
    neon_vec_f invstd[BNORM_VECTORS], slope[BNORM_VECTORS], offset[BNORM_VECTORS];
};

#define BNORM_EACH                                                                                 \
    BNORM_UNROLL                                                                                   \
    for (size_t q = 0; q < count; q++)

/* ---------------------------------------------------------------------------------------------- */
/* Groups */

BNORM_INLINE void neon_load_vectors(neon_vec_f *to, bnorm_dtype type, const char *p,
                               const struct neon_quant *neon_quant, size_t count) {
    const neon_vec_f scale = neon_vec_set1(neon_quant->scale), zero = neon_vec_set1(neon_quant->zero_point);
#define BNORM_AT(element) ((const element *)(const void *)p + q * VEC_F)
    switch (type) {
    case BNORM_F32:
        BNORM_EACH to[q] = neon_vec_load(BNORM_AT(float));
        break;
    case BNORM_BF16:
        BNORM_EACH to[q] = vec_load_bf16(BNORM_AT(uint16_t));
        break;
    case BNORM_F16:
        BNORM_EACH to[q] = vec_load_f16(BNORM_AT(uint16_t));
        break;
    case BNORM_S8:
        BNORM_EACH to[q] = neon_vec_mul(neon_vec_sub(vec_load_s8(BNORM_AT(uint8_t)), zero), scale);
        break;
    case BNORM_U8:
        BNORM_EACH to[q] = neon_vec_mul(neon_vec_sub(vec_load_u8(BNORM_AT(uint8_t)), zero), scale);
        break;
    }
#undef BNORM_AT
}

/* Canonical values. */
BNORM_INLINE void neon_store_vectors(char *p, bnorm_dtype type, const struct neon_quant *neon_quant,
                                const neon_vec_f *v, size_t count) {
#define BNORM_AT(element) ((element *)(void *)p + q * VEC_F)
    switch (type) {
    case BNORM_F32:
        BNORM_EACH neon_vec_store(BNORM_AT(float), v[q]);
        break;
    case BNORM_BF16:
        if (count % 2 == 0) {
            BNORM_UNROLL
            for (size_t q = 0; q + 1 < count; q += 2)
                vec_store_bf16_2(BNORM_AT(uint16_t), v[q], v[q + 1]);
        } else {
            BNORM_EACH vec_store_bf16(BNORM_AT(uint16_t), v[q]);
        }
        break;
    case BNORM_F16:
        BNORM_EACH vec_store_f16(BNORM_AT(uint16_t), v[q]);
        break;
    case BNORM_S8:
    case BNORM_U8: {
        const int zero = (int)neon_quant->zero_point, is_signed = type == BNORM_S8;
        neon_vec_f steps[BNORM_VECTORS];
        BNORM_EACH steps[q] = neon_quotient(v[q], neon_quant);
        if (count == 4)
            vec_store_8_4((uint8_t *)p, steps, zero, is_signed);
        else
            BNORM_EACH vec_store_8(BNORM_AT(uint8_t), steps[q], zero, is_signed);
        break;
    }
    }
#undef BNORM_AT
}

/* y, canonical. */
BNORM_INLINE neon_vec_f neon_activate(bnorm_act_kind kind, neon_vec_f v, neon_vec_f a, neon_vec_f b) {
    const neon_vec_f zero = neon_vec_set1(0), three = neon_vec_set1(3);
    switch (kind) {
    case BNORM_ACT_RELU:
        return neon_vec_relu(v);
    case BNORM_ACT_CLAMP:
        return neon_vec_clamp(v, a, b);
    case BNORM_ACT_LEAKY_RELU:
        v = neon_vec_mul(v, neon_vec_if_gt(v, zero, neon_vec_set1(1), a));
        break;
    case BNORM_ACT_HARD_SWISH: {
        const neon_vec_f m = neon_within_three(v);
        v = neon_vec_if_le(three, v, v, neon_vec_mul(neon_vec_mul(m, neon_vec_add(m, three)), neon_vec_set1(1.0f / 6)));
        break;
    }
    default:
        break;
    }
    return neon_vec_canonical_result(v);
}

/* Out of line, as are SLEEF's functions. */
BNORM_RARE void neon_smooth_values(bnorm_act_kind kind, float a, float *v, size_t n) {
    for (size_t i = 0; i < n; i += VEC_F)
        neon_vec_store(v + i, neon_vec_canonical(neon_smooth_value(kind, neon_vec_load(v + i), neon_vec_set1(a))));
}

#define BNORM_CASE(kind)                                                                           \
    case kind:                                                                                     \
        BNORM_EACH BNORM_OF(kind);                                                                 \
        break;

BNORM_INLINE void neon_activate_vectors(const struct neon_form f, const bnorm_act *act, neon_vec_f *v,
                                   size_t count) {
    const neon_vec_f a = neon_vec_set1(act->a), b = neon_vec_set1(act->b);
#define BNORM_OF(kind) v[q] = neon_activate(kind, v[q], a, b)
    if (f.type != BNORM_ANY) {
        switch (f.kind == BNORM_ANY ? (int)act->kind : f.kind) {
            BNORM_CASE(BNORM_ACT_RELU)
            BNORM_CASE(BNORM_ACT_CLAMP)
        default:
            BNORM_EACH BNORM_OF(BNORM_ACT_IDENTITY);
        }
        return;
    }
    switch (act->kind) {
        BNORM_PLAIN_KINDS(BNORM_CASE)
    default: {
        float values[BNORM_GROUP_F];
        BNORM_EACH neon_vec_store(values + q * VEC_F, v[q]);
        neon_smooth_values(act->kind, act->a, values, count * VEC_F);
        BNORM_EACH v[q] = neon_vec_load(values + q * VEC_F);
    }
    }
#undef BNORM_OF
}

/* g = dy*act'(v) */
BNORM_INLINE void neon_gradient_vectors(const struct neon_form f, const bnorm_act *act, const neon_vec_f *v,
                                   neon_vec_f *g, size_t count) {
    const neon_vec_f a = neon_vec_set1(act->a), b = neon_vec_set1(act->b);
#define BNORM_OF(kind) g[q] = neon_gradient(kind, v[q], g[q], a, b)
    if (f.type != BNORM_ANY) {
        BNORM_EACH BNORM_OF(BNORM_ACT_RELU);
        return;
    }
    switch (act->kind) {
        BNORM_PLAIN_KINDS(BNORM_CASE)
    default: {
        float values[2][BNORM_GROUP_F];
        BNORM_EACH neon_vec_store(values[0] + q * VEC_F, v[q]);
        BNORM_EACH neon_vec_store(values[1] + q * VEC_F, g[q]);
        neon_smooth_gradients(act->kind, act->a, values[0], values[1], count * VEC_F);
        BNORM_EACH g[q] = neon_vec_load(values[1] + q * VEC_F);
    }
    }
#undef BNORM_OF
}
#undef BNORM_CASE

/* A bit per element: whether the derivative is that of the upper branch. */
BNORM_INLINE uint64_t neon_branch_bits(const bnorm_act *act, const neon_vec_f *v, size_t count) {
    const neon_vec_f zero = neon_vec_set1(0), low = neon_vec_set1(act->a), high = neon_vec_set1(act->b);
    uint64_t word = 0;
    BNORM_EACH {
        const unsigned bits = act->kind == BNORM_ACT_CLAMP
                                  ? neon_vec_bits_gt(v[q], low) & neon_vec_bits_gt(high, v[q])
                                  : neon_vec_bits_gt(v[q], zero);
        word |= (uint64_t)bits << (q * VEC_F);
    }
    return word;
}

/* The type of a tensor that has this one in the call; backward has no quantized ones. */
BNORM_INLINE bnorm_dtype neon_type_of(const struct neon_form f, bnorm_dtype type) {
    if (f.direction == neon_BACKWARD && type > BNORM_F16)
        __builtin_unreachable();
    return f.type == BNORM_ANY ? type : (bnorm_dtype)f.type;
}

/* Which outputs there are. */
BNORM_INLINE int neon_has_out(const struct neon_form f, const struct neon_mapping *m) {
    return f.type == BNORM_ANY && f.direction == neon_BACKWARD ? m->has_out : 1;
}
BNORM_INLINE int neon_has_dresidual(const struct neon_form f, const struct neon_mapping *m) {
    const int never = f.direction == neon_FORWARD || f.kind == BNORM_ACT_IDENTITY;
    return never ? 0 : m->has_dresidual;
}

/* What is stored; canonical. */
struct neon_results {
    neon_vec_f out[BNORM_VECTORS], dresidual[BNORM_VECTORS];
    uint64_t bits; /* of a mask that is written */
};

/* `count` vectors from element e of a run on, whose parameters begin with number i. */
BNORM_INLINE void neon_compute(const struct neon_form f, const struct neon_mapping *m, const struct neon_run *r,
                          const struct neon_held *h, size_t i, size_t e, size_t count,
                          struct neon_results *to) {
    neon_vec_f x[BNORM_VECTORS] = {0}, v[BNORM_VECTORS] = {0}, g[BNORM_VECTORS] = {0};
    const int any = f.type == BNORM_ANY, forward = f.direction == neon_FORWARD;
    const int sloped = any ? m->sloped : f.sloped, centred = any || forward ? m->centred : 1;
    const bnorm_dtype type = neon_type_of(f, m->type);
    const size_t at = e * (any ? m->size : neon_size_of(type));
#define BNORM_P(name)                                                                              \
    (f.source == neon_LOADED ? neon_vec_load(m->p.name + i + q * VEC_F)                                      \
     : f.source == neon_HELD ? h->name[q]                                                               \
                        : h->name[0])
    if (forward || sloped || m->reads_x) {
        neon_load_vectors(x, type, r->x + at, &m->x_quant, count);
        if (centred)
            BNORM_EACH x[q] = neon_vec_sub(x[q], BNORM_P(center));
    }
    if (forward) {
        BNORM_EACH v[q] = neon_vec_fma(x[q], BNORM_P(scale), BNORM_P(shift));
        if (BNORM_UNLIKELY(m->pre == BNORM_PRE_RESIDUAL)) {
            neon_load_vectors(g, type, r->argument + at, &m->argument_quant, count);
            BNORM_EACH v[q] = neon_vec_add(v[q], g[q]);
        }
        if (any && m->bits)
            to->bits = neon_branch_bits(&m->act, v, count);
        neon_activate_vectors(f, &m->act, v, count);
        BNORM_EACH to->out[q] = v[q];
        return;
    }
    const int has_argument =
        (f.kind == BNORM_ANY ? (int)m->act.kind : f.kind) != BNORM_ACT_IDENTITY;
    if (has_argument) {
        if (m->pre == BNORM_PRE_Y) {
            neon_load_vectors(v, type, r->argument + at, &m->x_quant, count);
        } else if (any && m->pre == BNORM_PRE_MASK) {
            const uint64_t word = neon_read_bits(m->bits, r->bit + e, count * VEC_F);
            BNORM_EACH v[q] = neon_vec_from_bits((unsigned)(word >> (q * VEC_F)));
        } else {
            BNORM_EACH v[q] = neon_vec_fma(x[q], BNORM_P(scale), BNORM_P(shift));
            if (m->pre == BNORM_PRE_RESIDUAL) {
                neon_load_vectors(g, type, r->argument + at, &m->x_quant, count);
                BNORM_EACH v[q] = neon_vec_add(v[q], g[q]);
            }
        }
    }
    neon_load_vectors(g, type, r->dy + at, &m->x_quant, count);
    if (has_argument)
        neon_gradient_vectors(f, &m->act, v, g, count);
    if (neon_has_dresidual(f, m))
        BNORM_EACH to->dresidual[q] = neon_vec_canonical(g[q]);
    if (sloped) {
        BNORM_EACH g[q] = neon_vec_fma(g[q], BNORM_P(scale), BNORM_P(offset));
        BNORM_EACH x[q] = neon_vec_mul(x[q], BNORM_P(invstd));
        BNORM_EACH g[q] = neon_vec_fma(x[q], BNORM_P(slope), g[q]);
    } else {
        BNORM_EACH g[q] = neon_vec_mul(g[q], BNORM_P(scale));
    }
    BNORM_EACH to->out[q] = neon_vec_canonical_result(g[q]);
#undef BNORM_P
}

BNORM_INLINE void neon_store_results(const struct neon_form f, const struct neon_mapping *m, const struct neon_run *r,
                                size_t e, size_t count, const struct neon_results *from) {
    const int any = f.type == BNORM_ANY;
    const bnorm_dtype type = neon_type_of(f, m->out_type);
    const size_t at = e * (any ? m->out_size : neon_size_of(type));
    if (neon_has_out(f, m))
        neon_store_vectors(r->out + at, type, &m->out_quant, from->out, count);
    if (neon_has_dresidual(f, m))
        neon_store_vectors(r->dresidual + at, type, &m->out_quant, from->dresidual, count);
}

/* ---------------------------------------------------------------------------------------------- */
/* Runs */

BNORM_INLINE void neon_skip_row(const struct neon_form f, struct neon_run *r, const struct neon_strides *s) {
    r->x += s->x;
    r->argument += s->argument;
    r->out += s->out;
    r->bit += s->bit;
    if (f.direction == neon_BACKWARD) {
        r->dy += s->dy;
        r->dresidual += s->dresidual;
    }
}

BNORM_INLINE void neon_skip_elements(struct neon_run *r, const struct neon_form f, const struct neon_mapping *m,
                                size_t n) {
    const size_t in = f.type == BNORM_ANY ? m->size : neon_size_of((bnorm_dtype)f.type),
                 out = f.type == BNORM_ANY ? m->out_size : in;
    r->x += n * in;
    r->dy += n * in;
    r->argument += n * in;
    r->out += n * out;
    r->dresidual += n * out;
    r->bit += n;
}

/* The parameters that all groups have, or all vectors of a run: `each` of them, from number i on. */
BNORM_INLINE void neon_hold(const struct neon_form f, const struct neon_parameters *p, size_t i, size_t each,
                       struct neon_held *h) {
    const size_t count = f.source == neon_HELD ? BNORM_VECTORS : 1;
#define BNORM_HOLD(load)                                                                           \
    {                                                                                              \
        BNORM_EACH h->center[q] = load(p->center);                                                 \
        BNORM_EACH h->scale[q] = load(p->scale);                                                   \
        BNORM_EACH h->shift[q] = load(p->shift);                                                   \
        if (f.direction == neon_BACKWARD) {                                                             \
            BNORM_EACH h->invstd[q] = load(p->invstd);                                             \
            BNORM_EACH h->slope[q] = load(p->slope);                                               \
            BNORM_EACH h->offset[q] = load(p->offset);                                             \
        }                                                                                          \
    }
#define BNORM_GROUP_OF(array) neon_vec_load((array) + q * VEC_F)
#define BNORM_ONE_OF(array)   neon_vec_set1((array)[i])
#define BNORM_SOME_OF(array)  neon_vec_repeat((array) + i, each)
    if (f.source == neon_HELD)
        BNORM_HOLD(BNORM_GROUP_OF)
    else if (each == 1)
        BNORM_HOLD(BNORM_ONE_OF)
    else
        BNORM_HOLD(BNORM_SOME_OF)
#undef BNORM_GROUP_OF
#undef BNORM_ONE_OF
#undef BNORM_SOME_OF
#undef BNORM_HOLD
}

/* Asks for the lines that a group from element e of r on will be followed by. */
BNORM_INLINE void neon_fetch_group(const struct neon_form f, const struct neon_mapping *m, const struct neon_run *r,
                              size_t e, unsigned hints) {
    const size_t size = f.type == BNORM_ANY ? m->size : neon_size_of((bnorm_dtype)f.type),
                 out_size = f.type == BNORM_ANY ? m->out_size : size, in = BNORM_GROUP_F * size,
                 out = BNORM_GROUP_F * out_size;
    const int argument = neon_reads_extra(m->pre);
#define BNORM_FETCH(t) neon_vec_fetch((const float *)(const void *)(r->t + e * size + BNORM_AHEAD + k))
#define BNORM_FETCH_TO(t)                                                                          \
    neon_vec_fetch_out((const float *)(const void *)(r->t + e * out_size + BNORM_AHEAD_OUT + k))
    for (size_t k = 0; (hints & BNORM_FETCH_IN) && k < in; k += 64) {
        BNORM_FETCH(x);
        if (f.direction == neon_BACKWARD)
            BNORM_FETCH(dy);
        if (argument)
            BNORM_FETCH(argument);
    }
    for (size_t k = 0; (hints & BNORM_FETCH_OUT) && k < out; k += 64) {
        if (neon_has_out(f, m))
            BNORM_FETCH_TO(out);
        if (neon_has_dresidual(f, m))
            BNORM_FETCH_TO(dresidual);
    }
#undef BNORM_FETCH
#undef BNORM_FETCH_TO
}

/* Inputs of a vector. */
struct neon_inputs {
    _Alignas(64) char x[VEC_F * sizeof(float)], dy[VEC_F * sizeof(float)],
        argument[VEC_F * sizeof(float)];
};

/* Copies those of a run from element e on; the result is a run of them. */
BNORM_INLINE struct neon_run neon_keep_inputs(const struct neon_form f, const struct neon_mapping *m, struct neon_run r,
                                    size_t e, struct neon_inputs *to) {
    const size_t bytes = VEC_F * m->size;
    neon_skip_elements(&r, f, m, e);
    memcpy(to->x, r.x, bytes);
    memcpy(to->argument, r.argument, bytes);
    if (f.direction == neon_BACKWARD)
        memcpy(to->dy, r.dy, bytes);
    return (struct neon_run){to->x, to->dy, to->argument, NULL, NULL, r.bit};
}

/* Runs of at least a vector. Where a run ends within a vector, the last vector is computed first, as
 * its elements may be overwritten before their turn, and stored last; in the form for everything
 * else its inputs are copied, which takes less code. What is copied first has no other name
 * afterwards, so that it stays in registers while outputs are stored. */
BNORM_INLINE void neon_map_runs(const struct neon_form f, const struct neon_mapping *given,
                           const struct neon_block *neon_block) {
    const struct neon_mapping mine = *given, *const m = &mine;
    const struct neon_strides neon_strides = neon_block->strides;
    const size_t len = neon_block->lanes, first = neon_block->first, period = neon_block->period,
                 step = neon_block->step, each = neon_block->each, tail = len % VEC_F, whole = len - tail,
                 grouped = len - len % BNORM_GROUP_F;
    const int any = f.type == BNORM_ANY, writes_bits = any && f.direction == neon_FORWARD && m->bits;
    struct neon_run r = neon_block->run;
    const unsigned fetch = neon_block->fetch;
    struct neon_bit_writer w = {0};
    struct neon_held h;
/* Which parameters element e has. */
#define BNORM_INDEX(e)                                                                             \
    (f.source == neon_SPREAD ? 0 : first + (e) < period ? first + (e) : (first + (e)) % period)
    if (writes_bits)
        neon_begin_bits(&w, m->bits, r.bit);
    for (size_t row = 0; row < neon_block->rows; row++, neon_skip_row(f, &r, &neon_strides)) {
        struct neon_results last = {.bits = 0};
        struct neon_inputs neon_inputs;
        struct neon_run kept = {0};
        size_t e = 0, i = BNORM_INDEX(0);
        if (f.source == neon_SPREAD)
            neon_hold(f, &m->p, (first + row) * each, each, &h);
        if (writes_bits)
            neon_seek_bits(&w, r.bit);
        if (tail && any)
            kept = neon_keep_inputs(f, m, r, len - VEC_F, &neon_inputs);
        else if (tail)
            neon_compute(f, m, &r, &h, BNORM_INDEX(len - VEC_F), len - VEC_F, 1, &last);
        for (; e < grouped; e += BNORM_GROUP_F) {
            struct neon_results neon_results = {.bits = 0};
            if (BNORM_UNLIKELY(fetch))
                neon_fetch_group(f, m, &r, e, fetch);
            neon_compute(f, m, &r, &h, i, e, BNORM_VECTORS, &neon_results);
            neon_store_results(f, m, &r, e, BNORM_VECTORS, &neon_results);
            if (writes_bits)
                neon_put_bits(&w, neon_results.bits, BNORM_GROUP_F);
            if (f.source == neon_LOADED) {
                i += step;
                i = i >= period ? i - period : i;
            }
        }
        for (; e < (any ? len : whole); e += VEC_F) {
            struct neon_results neon_results = {.bits = 0};
            const size_t again = any && e >= whole ? VEC_F - tail : 0;
            e -= again;
            neon_compute(f, m, again ? &kept : &r, &h, BNORM_INDEX(e), again ? 0 : e, 1, &neon_results);
            neon_store_results(f, m, &r, e, 1, &neon_results);
            if (writes_bits)
                neon_put_bits(&w, neon_results.bits >> again, VEC_F - again);
        }
        if (tail && !any)
            neon_store_results(f, m, &r, len - VEC_F, 1, &last);
    }
    if (writes_bits)
        neon_end_bits(&w);
#undef BNORM_INDEX
}

/* The elements of a group in each row. */
BNORM_INLINE void map_held(const struct neon_form f, const struct neon_mapping *given,
                           const struct neon_block *neon_block) {
    const struct neon_mapping mine = *given, *const m = &mine;
    const struct neon_strides neon_strides = neon_block->strides;
    struct neon_run r = neon_block->run;
    struct neon_held h;
    neon_hold(f, &m->p, 0, 0, &h);
    for (size_t rows = neon_block->rows; rows > 0; rows--, neon_skip_row(f, &r, &neon_strides)) {
        struct neon_results neon_results = {.bits = 0};
        neon_compute(f, m, &r, &h, 0, 0, BNORM_VECTORS, &neon_results);
        neon_store_results(f, m, &r, 0, BNORM_VECTORS, &neon_results);
    }
}

/* What moves by the size of elements that a call has. */
static const struct neon_form neon_all_forms = {neon_BACKWARD, neon_LOADED, BNORM_ANY, BNORM_ANY, 0};

#define BNORM_FORM(name, map, neon_direction, neon_source, type, kind, sloped)                               \
    static void name(const struct neon_mapping *m, const struct neon_block *b) {                             \
        map((struct neon_form){neon_direction, neon_source, type, kind, sloped}, m, b);                           \
    }
/* Those of one type and kind: of planes and of rows. */
#define BNORM_FORMS(name, neon_direction, type, kind, sloped)                                           \
    BNORM_FORM(name##_planes, neon_map_runs, neon_direction, neon_SPREAD, type, kind, sloped)                     \
    BNORM_FORM(name##_rows, neon_map_runs, neon_direction, neon_LOADED, type, kind, sloped)
#define BNORM_FORWARD_F32(name, kind)                                                              \
    BNORM_FORMS(name, neon_FORWARD, BNORM_F32, kind, 0)                                                 \
    BNORM_FORM(name##_held, map_held, neon_FORWARD, neon_HELD, BNORM_F32, kind, 0)
BNORM_FORWARD_F32(forward_identity, BNORM_ACT_IDENTITY)
BNORM_FORWARD_F32(forward_relu, BNORM_ACT_RELU)
BNORM_FORWARD_F32(forward_clamp, BNORM_ACT_CLAMP)
BNORM_FORMS(forward_bf16, neon_FORWARD, BNORM_BF16, BNORM_ANY, 0)
BNORM_FORMS(forward_f16, neon_FORWARD, BNORM_F16, BNORM_ANY, 0)
BNORM_FORMS(forward_any, neon_FORWARD, BNORM_ANY, BNORM_ANY, 0)
BNORM_FORMS(backward_identity, neon_BACKWARD, BNORM_F32, BNORM_ACT_IDENTITY, 1)
BNORM_FORMS(backward_relu, neon_BACKWARD, BNORM_F32, BNORM_ACT_RELU, 1)
BNORM_FORMS(backward_frozen, neon_BACKWARD, BNORM_F32, BNORM_ANY, 0)
BNORM_FORMS(backward_bf16, neon_BACKWARD, BNORM_BF16, BNORM_ANY, 1)
BNORM_FORMS(backward_f16, neon_BACKWARD, BNORM_F16, BNORM_ANY, 1)
BNORM_FORM(backward_any_rows, neon_map_runs, neon_BACKWARD, neon_LOADED, BNORM_ANY, BNORM_ANY, 0)

struct neon_functions {
    neon_map_function *planes, *rows, *held;
};
/* Of floats by kind of activation, in backward without slope instead of clamp; of BF16, of F16, of
 * others. */
#define BNORM_OTHERS 5
static const struct neon_functions neon_forward_functions[BNORM_OTHERS + 1] = {
    {forward_identity_planes, forward_identity_rows, forward_identity_held},
    {forward_relu_planes, forward_relu_rows, forward_relu_held},
    {forward_clamp_planes, forward_clamp_rows, forward_clamp_held},
    {forward_bf16_planes, forward_bf16_rows, NULL},
    {forward_f16_planes, forward_f16_rows, NULL},
    {forward_any_planes, forward_any_rows, NULL}};
static const struct neon_functions neon_backward_functions[BNORM_OTHERS + 1] = {
    {backward_identity_planes, backward_identity_rows, NULL},
    {backward_relu_planes, backward_relu_rows, NULL},
    {backward_frozen_planes, backward_frozen_rows, NULL},
    {backward_bf16_planes, backward_bf16_rows, NULL},
    {backward_f16_planes, backward_f16_rows, NULL},
    {NULL, backward_any_rows, NULL}};

/* The forms of a call. */
BNORM_INLINE const struct neon_functions *neon_functions_of(const struct neon_mapping *m,
                                                  const struct neon_functions *neon_functions) {
    const int identity = m->act.kind == BNORM_ACT_IDENTITY, float32 = m->type == BNORM_F32;
    const int frozen = m->direction == neon_BACKWARD && !m->sloped;
    size_t which = float32 ? (size_t)m->act.kind : 2 + (size_t)m->type;
    int typed = m->type <= BNORM_F16 && m->type == m->out_type && !m->bits;
    if (m->direction == neon_FORWARD)
        typed &= m->act.kind <= BNORM_ACT_CLAMP;
    else
        typed &= m->act.kind <= BNORM_ACT_RELU && m->has_out && m->centred &&
                 !(identity && float32 && m->has_dresidual) && (float32 || !frozen);
    if (frozen)
        which = BNORM_ACT_CLAMP;
    return &neon_functions[typed ? which : BNORM_OTHERS];
}

/* ---------------------------------------------------------------------------------------------- */
/* Long runs: lines of the caches */

/* Whole lines past the caches. */
BNORM_INLINE void neon_pass_on(char *to, const float *from, size_t bytes) {
    for (size_t k = 0; k < bytes; k += sizeof(neon_vec_f), from += VEC_F)
        neon_vec_bypass((float *)(void *)(to + k), neon_vec_load(from));
}

BNORM_INLINE size_t neon_to_line(const char *p) {
    return -(uintptr_t)p % 64;
}

/* A run from a line of the output on, and whole lines past the caches where that is wanted. */
BNORM_RARE void neon_map_long(neon_map_function *neon_form, const struct neon_mapping *m, const struct neon_block *neon_run) {
    _Alignas(64) float lines[2][BNORM_PART / sizeof(float)];
    const size_t most = BNORM_PART / m->out_size, line = 64 / m->out_size, len = neon_run->lanes;
    struct neon_block b = *neon_run;
    size_t e = 0;
    if (!b.exact && !m->in_place && !m->writes_bits) {
        e = neon_to_line(m->has_out ? b.run.out : b.run.dresidual) / m->out_size;
        e = e % b.each == 0 ? e : 0;
        b.lanes = e < VEC_F ? VEC_F : e; /* what goes beyond it is computed again */
        if (e)
            neon_form(m, &b);
        neon_skip_elements(&b.run, neon_all_forms, m, e);
    }
    while (e < len) {
        struct neon_run r = b.run;
        size_t n = len - e, skip = n;
        const int bypass = (m->hints & BNORM_BYPASS) && n >= line &&
                           (!m->has_out || neon_to_line(r.out) == 0) &&
                           (!m->has_dresidual || neon_to_line(r.dresidual) == 0);
        if (neon_form != m->spread)
            b.first = e < b.period ? e : e % b.period;
        if (bypass) {
            n = skip = neon_lesser(n / line * line, most);
            b.run.out = (char *)lines[0];
            b.run.dresidual = (char *)lines[1];
        } else if (n < VEC_F) { /* nor is that in place */
            b = *neon_run;
            n = VEC_F;
            neon_skip_elements(&b.run, neon_all_forms, m, len - n);
            if (neon_form != m->spread)
                b.first = len - n < b.period ? len - n : (len - n) % b.period;
        }
        b.lanes = n;
        neon_form(m, &b);
        if (bypass && m->has_out)
            neon_pass_on(r.out, lines[0], n * m->out_size);
        if (bypass && m->has_dresidual)
            neon_pass_on(r.dresidual, lines[1], n * m->out_size);
        b.run = r;
        e += skip;
        neon_skip_elements(&b.run, neon_all_forms, m, skip);
    }
}

/* Runs of at least a vector. */
static void neon_map_form(neon_map_function *neon_form, const struct neon_mapping *m, struct neon_block *b) {
    const char *out = m->has_out ? b->run.out : b->run.dresidual;
    const size_t stride = m->has_out ? b->strides.out : b->strides.dresidual;
    const size_t least = neon_form == m->spread ? 4 * BNORM_LONG_RUN : BNORM_LONG_RUN;
    const int lies_well = neon_to_line(out) == 0 && (b->rows == 1 || stride % 64 == 0);
    b->fetch = b->lanes * m->out_size > BNORM_PART || (m->hints & BNORM_BYPASS)
                   ? m->hints & ~(unsigned)BNORM_BYPASS
                   : 0;
    if (b->lanes < BNORM_LONG_RUN ||
        (!(m->hints & BNORM_BYPASS) && (lies_well || m->in_place || b->lanes < least))) {
        neon_form(m, b);
        return;
    }
    struct neon_block neon_run = *b;
    neon_run.rows = 1;
    for (size_t row = 0; row < b->rows; row++, neon_skip_row(neon_all_forms, &neon_run.run, &b->strides)) {
        neon_run.first = neon_form == m->spread ? b->first + row : b->first;
        neon_map_long(neon_form, m, &neon_run);
    }
}

/* ---------------------------------------------------------------------------------------------- */
/* Rows and planes */

/* No period. */
BNORM_INLINE void neon_begin_period(struct neon_block *b) {
    b->first = 0;
    b->period = SIZE_MAX;
    b->step = BNORM_GROUP_F;
    b->each = 1;
    b->exact = 0;
}

/* Runs of fewer elements than a vector: each as one vector in memory, the other elements of which
 * are 0, as are their parameters, so that nothing comes of them. */
BNORM_RARE void neon_map_few(const struct neon_mapping *m, const struct neon_block *b, int planes) {
    struct {
        _Alignas(64) char x[64], dy[64], argument[64], out[64], dresidual[64];
        float p[6][VEC_F];
    } lanes;
    const size_t n = b->lanes;
    const int reads_bits = m->pre == BNORM_PRE_MASK;
    unsigned char bits[8] = {0};
    struct neon_mapping few = *m;
    struct neon_block vector;
    struct neon_run r = b->run;
    memset(&lanes, 0, sizeof lanes);
    vector.run = (struct neon_run){lanes.x, lanes.dy, lanes.argument, lanes.out, lanes.dresidual, 0};
    vector.strides = (struct neon_strides){0};
    vector.rows = 1;
    vector.fetch = 0;
    vector.lanes = VEC_F;
    neon_begin_period(&vector);
    few.bits = m->bits ? bits : NULL;
    few.hints = 0;
    if (m->type >= BNORM_S8) { /* what stands for 0 */
        memset(lanes.x, (int)m->x_quant.zero_point, sizeof lanes.x);
        memset(lanes.argument, (int)m->argument_quant.zero_point, sizeof lanes.argument);
    }
    for (size_t row = 0; row < b->rows; row++, neon_skip_row(neon_all_forms, &r, &b->strides)) {
#define BNORM_FEW(k, name)                                                                         \
    for (size_t i = 0; i < n; i++)                                                                 \
        lanes.p[k][i] = m->p.name[planes ? row : i];                                               \
    few.p.name = lanes.p[k];
        if (row == 0 || planes)
            BNORM_FOR_PARAMETERS(m, BNORM_FEW)
#undef BNORM_FEW
        memcpy(lanes.x, r.x, n * m->size);
        memcpy(lanes.dy, r.dy, n * m->size);
        memcpy(lanes.argument, r.argument, n * m->size);
        if (reads_bits) {
            const unsigned window = neon_bit_window(m->bits, r.bit, n) & ((1u << n) - 1);
            bits[0] = (unsigned char)window;
            bits[1] = (unsigned char)(window >> 8);
        }
        m->any(&few, &vector);
        if (m->bits && !reads_bits) {
            struct neon_bit_writer w;
            neon_begin_bits(&w, m->bits, r.bit);
            neon_put_bits(&w, bits[0] | (uint64_t)bits[1] << 8, n);
            neon_end_bits(&w);
        }
        if (m->has_out)
            memcpy(r.out, lanes.out, n * m->out_size);
        if (m->has_dresidual)
            memcpy(r.dresidual, lanes.dresidual, n * m->out_size);
    }
}

/* p[0..n) over and over, `end` floats, in whole vectors. */
BNORM_INLINE void neon_repeat_floats(float *to, const float *p, size_t n, size_t end) {
    size_t done = 0;
    for (; done < end && done < n; done += VEC_F)
        neon_store_lanes(to + done, neon_load_lanes(p + done, neon_lesser(VEC_F, n - done)), VEC_F);
    while (n < VEC_F) {
        neon_vec_store(to + n, neon_vec_load(to));
        n *= 2;
    }
    for (size_t i = n; i < end; i += VEC_F)
        neon_vec_store(to + i, neon_vec_load(to + i - n));
}

/* Floats of `room` for each array. */
BNORM_INLINE size_t neon_room_of(const struct neon_mapping *m) {
    return BNORM_ROOM / (m->sloped ? 6 : 3) / VEC_F * VEC_F;
}

/* The parameters of rows that follow one another, repeated in `room`. */
BNORM_RARE void neon_repeat_parameters(struct neon_mapping *m, size_t lanes, size_t end, float *room) {
    const size_t each = neon_room_of(m);
#define BNORM_REPEAT(k, name)                                                                      \
    neon_repeat_floats(room + (k)*each, m->p.name, lanes, end);                                         \
    m->p.name = room + (k)*each;
    BNORM_FOR_PARAMETERS(m, BNORM_REPEAT)
#undef BNORM_REPEAT
    if (!m->centred)
        m->p.center = m->p.scale;
}

/* Rows that follow one another become one run. The parameters are written one behind the other in
 * `room`, but where groups are whole in each row. */
BNORM_RARE void join_rows(struct neon_mapping *m, struct neon_block *b, float *room) {
    const size_t total = b->rows * b->lanes, most = neon_room_of(m) - BNORM_GROUP_F;
    size_t period = b->lanes;
    b->exact = b->lanes >= BNORM_LONG_ROW && b->lanes % BNORM_GROUP_F == 0;
    if (!b->exact) {
        while (period % VEC_F)
            period *= 2;
        if (period > most || (b->lanes >= VEC_F && total < 4 * period))
            return;
        while (period < BNORM_LONG_ROW && 8 * period <= total && 2 * period <= most)
            period *= 2;
        neon_repeat_parameters(m, b->lanes, period + BNORM_GROUP_F, room);
    }
    b->lanes = total;
    b->rows = 1;
    b->period = period;
    b->step = BNORM_GROUP_F % period;
}

/* A strip of channels after the other, whose parameters are held while all rows pass. */
BNORM_RARE void neon_map_strips(struct neon_mapping *m, const struct neon_block *b) {
    struct neon_block strip = *b;
    for (size_t e = 0; e < b->lanes; e += BNORM_GROUP_F) {
        m->held(m, &strip);
        m->p.center += BNORM_GROUP_F;
        m->p.scale += BNORM_GROUP_F;
        m->p.shift += BNORM_GROUP_F;
        neon_skip_elements(&strip.run, neon_all_forms, m, BNORM_GROUP_F);
    }
}

/* Groups that have whole rows. Leaves at least a vector of what follows them. */
BNORM_RARE void map_whole_rows(struct neon_mapping *m, struct neon_block *b, float *room) {
    const struct neon_strides *s = &b->strides;
    const size_t total = b->rows * b->lanes, times = BNORM_GROUP_F / b->lanes;
    struct neon_block groups = *b;
    groups.rows = (total - VEC_F) / BNORM_GROUP_F;
    groups.strides.x = times * s->x;
    groups.strides.argument = times * s->argument;
    groups.strides.out = times * s->out;
    neon_repeat_parameters(m, b->lanes, 2 * BNORM_GROUP_F, room);
    m->held(m, &groups);
    neon_skip_elements(&b->run, neon_all_forms, m, groups.rows * BNORM_GROUP_F);
    b->lanes = total - groups.rows * BNORM_GROUP_F;
    b->rows = 1;
    b->period = BNORM_GROUP_F;
    b->step = 0;
}

static void map_rows(struct neon_mapping *m, struct neon_block *b) {
    _Alignas(64) float room[BNORM_ROOM + BNORM_PAD];
    const struct neon_parameters p = m->p;
    const size_t total = b->rows * b->lanes;
    if (m->held && b->lanes % BNORM_GROUP_F == 0 && b->rows >= 4 && m->strips) {
        neon_map_strips(m, b);
        m->p = p;
        return;
    }
    if (b->dense && b->rows > 1) {
        if (m->held && m->hints == 0 && BNORM_GROUP_F % b->lanes == 0 && total >= 2 * BNORM_GROUP_F)
            map_whole_rows(m, b, room);
        else
            join_rows(m, b, room);
    }
    if (b->lanes < VEC_F)
        neon_map_few(m, b, 0);
    else
        neon_map_form(m->loaded, m, b);
    m->p = p;
}

/* Planes. */
static void map_planes(struct neon_mapping *m, struct neon_block *b) {
    float room[6][BNORM_GROUP_F];
    const struct neon_parameters p = m->p;
    const size_t planes = b->rows;
    if (b->lanes < VEC_F) {
        neon_map_few(m, b, 1);
        return;
    }
    if (m->spread) {
        neon_map_form(m->spread, m, b);
        return;
    }
    b->rows = 1;
    b->period = 1;
    b->step = 0;
    for (size_t plane = 0; plane < planes; plane++, neon_skip_row(neon_all_forms, &b->run, &b->strides)) {
#define BNORM_SPREAD(k, name)                                                                      \
    for (size_t i = 0; i < BNORM_GROUP_F; i += VEC_F)                                              \
        neon_vec_store(room[k] + i, neon_vec_set1(p.name[plane]));                                           \
    m->p.name = room[k];
        BNORM_FOR_PARAMETERS(m, BNORM_SPREAD)
#undef BNORM_SPREAD
        neon_map_form(m->loaded, m, b);
    }
    m->p = p;
}

BNORM_RARE void clear_rows(char *p, size_t stride, size_t rows, size_t bytes, int zero) {
    const uint32_t four = (uint32_t)(zero & 255) * 0x01010101u;
    for (; rows > 0; rows--, p += stride) {
        size_t k = 0;
        for (; k + 4 <= bytes; k += 4)
            memcpy(p + k, &four, 4);
        for (; k < bytes; k++)
            p[k] = (char)zero;
    }
}

/* Rows whose lanes behind the first `valid` are padding, which gets zeros. Whatever is in it gives
 * NaN in forward, which has no bit. */
BNORM_RARE void neon_map_padded(const struct neon_mapping *m, struct neon_block *b, size_t valid) {
    const struct neon_run r = b->run;
    const size_t rows = b->rows, n = b->lanes - valid, at = valid * m->out_size;
    float p[6][32];
    struct neon_mapping padded = *m;
#define BNORM_PAD_ARRAY(k, name)                                                                   \
    for (size_t i = 0; i < b->lanes; i++)                                                          \
        p[k][i] = i < valid ? m->p.name[i] : 0;                                                    \
    padded.p.name = p[k];
    BNORM_FOR_PARAMETERS(m, BNORM_PAD_ARRAY)
#undef BNORM_PAD_ARRAY
    if (!m->centred)
        padded.p.center = padded.p.scale;
    for (size_t i = valid; i < b->lanes; i++)
        p[2][i] = NAN;
    map_rows(&padded, b);
    const int zero = m->out_type >= BNORM_S8 ? (int)m->out_quant.zero_point : 0;
    if (m->has_out)
        clear_rows(r.out + at, b->strides.out, rows, n * m->out_size, zero);
    if (m->has_dresidual)
        clear_rows(r.dresidual + at, b->strides.dresidual, rows, n * m->out_size, 0);
}

/* Planes that follow one another are rows of as many channels, each with its parameter. */
BNORM_RARE void map_small_planes(const struct neon_mapping *whole, const struct neon_block *planes,
                                 const struct neon_block *images) {
    _Alignas(64) float room[BNORM_ROOM + BNORM_PAD];
    const size_t len = planes->lanes, each = neon_room_of(whole), most = (each - VEC_F) / len;
    struct neon_mapping m = *whole;
    struct neon_block b = *images;
    for (size_t first = 0, n; first < planes->rows; first += n) {
        struct neon_block these = b;
        n = neon_lesser(most, planes->rows - first);
        these.lanes = n * len;
        these.dense &= n == planes->rows;
#define BNORM_STRETCH(k, name)                                                                     \
    for (size_t j = 0; j < n; j++) {                                                               \
        const neon_vec_f p = neon_vec_set1(whole->p.name[first + j]);                                        \
        for (size_t i = 0; i < len; i += VEC_F)                                                    \
            neon_vec_store(room + (k)*each + j * len + i, p);                                           \
    }                                                                                              \
    m.p.name = room + (k)*each;
        BNORM_FOR_PARAMETERS(whole, BNORM_STRETCH)
#undef BNORM_STRETCH
        if (!m.centred)
            m.p.center = m.p.scale;
        map_rows(&m, &these);
        neon_skip_elements(&b.run, neon_all_forms, &m, n * len);
    }
}

/* ---------------------------------------------------------------------------------------------- */
/* The kernels */

/* Member by member, as compilers clear whole structs first. */
BNORM_INLINE void neon_begin_mapping(struct neon_mapping *m, const bnorm_map_args *a,
                                enum neon_direction neon_direction, const struct neon_functions *all) {
    const float *const any = a->scale;
    const int backward = neon_direction == neon_BACKWARD, sloped = backward && a->slope != NULL;
    m->type = a->x.type;
    m->out_type = backward ? a->x.type : a->out.type;
    m->size = neon_size_of(m->type);
    m->out_size = neon_size_of(m->out_type);
    m->pre = a->pre;
    m->act = a->act;
    m->centred = a->center != NULL;
    m->sloped = sloped;
    m->reads_x = sloped || neon_reads_x(a->pre);
    m->has_out = a->out.data != NULL;
    m->has_dresidual = backward && a->dresidual.data;
    m->hints = a->hints & ~(unsigned)BNORM_STRIPS;
    m->strips = (a->hints & BNORM_STRIPS) != 0;
    m->in_place = 0;
    const void *const outs[2] = {a->out.data, a->dresidual.data};
    for (size_t k = 0; k < 2; k++)
        m->in_place |= outs[k] && (outs[k] == a->x.data || outs[k] == a->dy.data ||
                                   outs[k] == a->argument.data);
    if (m->in_place) /* what is past the caches would be computed again */
        m->hints &= ~(unsigned)BNORM_BYPASS;
    m->bits = a->mask.bits;
    /* Compilers may convert a zero point before they ask for the type. */
    m->x_quant = m->argument_quant = m->out_quant = (struct neon_quant){1, 0, 1, 0};
    if (m->type >= BNORM_S8 || m->out_type >= BNORM_S8) {
        neon_begin_quant(&m->x_quant, &a->x.quant);
        neon_begin_quant(&m->argument_quant, &a->argument.quant);
        neon_begin_quant(&m->out_quant, &a->out.quant);
    }
    m->p.center = a->center ? a->center : any;
    m->p.scale = a->scale;
    m->p.shift = a->shift ? a->shift : any;
    m->p.invstd = sloped ? a->invstd : any;
    m->p.slope = sloped ? a->slope : any;
    m->p.offset = sloped ? a->offset : any;
    const bnorm_act_kind kind =
        backward && m->pre == BNORM_PRE_NONE ? BNORM_ACT_IDENTITY : m->act.kind;
    m->act.kind = kind;
    m->direction = neon_direction;
    m->writes_bits = !backward && m->bits;
    m->any = all[BNORM_OTHERS].rows;
    const struct neon_functions *const neon_functions = neon_functions_of(m, all);
    m->spread = neon_functions->planes;
    m->loaded = neon_functions->rows;
    m->held = neon_functions->held;
}

/* Axes of a tensor. */
enum neon_axis { neon_IMAGES, neon_GROUPS, neon_ROWS };

/* Element 0 of a group, and runs of `lanes` that follow one another along an axis. */
BNORM_INLINE void neon_begin_block(struct neon_block *b, const struct neon_mapping *m, const bnorm_map_args *a,
                              enum neon_axis neon_axis, size_t image, size_t group) {
#define BNORM_STRIDE(t)                                                                            \
    (neon_axis == neon_IMAGES ? a->t.image_stride : neon_axis == neon_GROUPS ? a->t.group_stride : a->t.row_stride)
#define BNORM_TENSOR(t, present, size)                                                             \
    b->strides.t = 0;                                                                              \
    if (present) {                                                                                 \
        const size_t stride = BNORM_STRIDE(t);                                                     \
        b->run.t =                                                                                 \
            (char *)a->t.data + (image * a->t.image_stride + group * a->t.group_stride) * (size);  \
        b->strides.t = stride * (size);                                                            \
        b->dense &= stride == a->lanes;                                                            \
    }
    b->lanes = a->lanes;
    b->rows = neon_axis == neon_IMAGES ? a->images : neon_axis == neon_GROUPS ? a->groups : a->rows;
    b->dense = 1;
    BNORM_TENSOR(x, 1, m->size)
    b->run.dy = b->run.argument = b->run.x;
    b->run.out = b->run.dresidual = (char *)(uintptr_t)b->run.x;
    BNORM_TENSOR(dy, a->dy.data, m->size)
    BNORM_TENSOR(argument, neon_reads_extra(a->pre), m->size)
    BNORM_TENSOR(out, m->has_out, m->out_size)
    BNORM_TENSOR(dresidual, m->has_dresidual, m->out_size)
    b->run.bit = a->mask.at + image * a->mask.image_stride + group * a->mask.group_stride;
    b->strides.bit = BNORM_STRIDE(mask);
    b->dense &= !m->bits || b->strides.bit == b->lanes;
    neon_begin_period(b);
#undef BNORM_TENSOR
#undef BNORM_STRIDE
}

/* Whether rows are so short that a vector has whole ones, and follow one another without a gap. */
BNORM_INLINE int are_short_rows(const struct neon_mapping *m, const bnorm_map_args *a) {
    struct neon_block b;
    if (!m->spread || VEC_F % a->lanes || a->rows * a->lanes < VEC_F || a->valid < a->lanes)
        return 0;
    neon_begin_block(&b, m, a, neon_ROWS, 0, 0);
    return b.dense;
}

static void map_all_rows(const bnorm_map_args *a, enum neon_direction neon_direction,
                         const struct neon_functions *all) {
    struct neon_mapping m;
    struct neon_block b;
    neon_begin_mapping(&m, a, neon_direction, all);
    if (are_short_rows(&m, a)) {
        for (size_t image = 0; image < a->images; image++) {
            neon_begin_block(&b, &m, a, neon_GROUPS, image, 0);
            b.lanes = a->rows * a->lanes;
            b.each = a->lanes;
            neon_map_form(m.spread, &m, &b);
        }
    } else
        for (size_t group = 0; group < a->groups; group++) {
            for (size_t image = 0; image < a->images; image++) {
                neon_begin_block(&b, &m, a, neon_ROWS, image, group);
                if (a->valid < a->lanes)
                    neon_map_padded(&m, &b, a->valid);
                else
                    map_rows(&m, &b);
            }
            m.p.center += a->lanes;
            m.p.scale += a->lanes;
            m.p.shift += a->lanes;
            m.p.invstd += a->lanes;
            m.p.slope += a->lanes;
            m.p.offset += a->lanes;
        }
    if (m.hints & BNORM_BYPASS)
        neon_vec_fence();
    neon_vec_leave();
}

static void map_all_planes(const bnorm_map_args *a, enum neon_direction neon_direction,
                           const struct neon_functions *all) {
    struct neon_mapping m;
    struct neon_block b;
    neon_begin_mapping(&m, a, neon_direction, all);
    const size_t small = m.loaded == m.any ? BNORM_SMALL_ANY
                         : a->images > 1   ? BNORM_SMALL_PLANES
                                           : BNORM_SMALL_PLANE;
    neon_begin_block(&b, &m, a, neon_GROUPS, 0, 0);
    if (a->lanes < small && b.dense) {
        struct neon_block images;
        neon_begin_block(&images, &m, a, neon_IMAGES, 0, 0);
        map_small_planes(&m, &b, &images);
    } else {
        for (size_t image = 0; image < a->images; image++) {
            neon_begin_block(&b, &m, a, neon_GROUPS, image, 0);
            map_planes(&m, &b);
        }
    }
    if (m.hints & BNORM_BYPASS)
        neon_vec_fence();
    neon_vec_leave();
}

static void neon_apply_rows(const bnorm_map_args *a) {
    map_all_rows(a, neon_FORWARD, neon_forward_functions);
}
static void neon_apply_span(const bnorm_map_args *a) {
    map_all_planes(a, neon_FORWARD, neon_forward_functions);
}
static void neon_dx_rows(const bnorm_map_args *a) {
    map_all_rows(a, neon_BACKWARD, neon_backward_functions);
}
static void neon_dx_span(const bnorm_map_args *a) {
    map_all_planes(a, neon_BACKWARD, neon_backward_functions);
}
/* SPDX-License-Identifier: MIT
 *
 * What lies between the passes of an operation: blocks merged, and per-channel coefficients. In
 * double; src/scalar/scalar.c says what. Channels take a lane each, so that all sets divide and
 * take roots alike. */

/* Vectors of channels that go through the blocks side by side: one alone would wait for its own
 * results. */
#define BNORM_SIDE 4

/* Rounded to floats, n of them. */
BNORM_INLINE void neon_narrow_lanes(float *p, neon_vec_d v, size_t n) {
    const neon_vec_d canonical = neon_vec_canonical_d(v);
    if (n == VEC_D)
        neon_vec_narrow_store(p, canonical);
    else
        neon_vec_narrow_store_n(p, canonical, n);
}

/* A parameter, or its default where the array is absent. */
BNORM_INLINE neon_vec_d neon_parameter_d(const float *p, size_t i, size_t n, double otherwise) {
    return p ? neon_widen_lanes(p + i, n) : neon_vec_set1_d(otherwise);
}

/* a*b + c, c where a is 0 */
BNORM_INLINE neon_vec_d neon_plus_product(neon_vec_d a, neon_vec_d b, neon_vec_d c) {
    return neon_vec_if_eq_d(a, neon_vec_set1_d(0), c, neon_vec_fma_d(a, b, c));
}

/* v, 1 in lanes from the n-th on, which hold no channel. */
BNORM_INLINE neon_vec_d neon_or_one(neon_vec_d v, size_t n) {
    static const double lane[] = {0, 1, 2, 3, 4, 5, 6, 7};
    if (n == VEC_D)
        return v;
    return neon_vec_if_lt_d(vec_load_d(lane), neon_vec_set1_d((double)n), v, neon_vec_set1_d(1));
}

/* body(i, vectors, n) for all channels: n lanes of `vectors` vectors from channel i on. What is
 * large, with vectors side by side, has no body of its own for a single whole one. */
#define BNORM_FOR_CHANNELS(first, c, side, body)                                                   \
    do {                                                                                           \
        const size_t end = (first) + (c);                                                          \
        size_t i = (first);                                                                        \
        for (; i + (side)*VEC_D <= end; i += (side)*VEC_D)                                         \
            body(i, side, VEC_D);                                                                  \
        for (; (side) > 1 && i < end; i += VEC_D)                                                  \
            body(i, 1, neon_lesser(VEC_D, end - i));                                                    \
        if ((side) == 1 && i < end)                                                                \
            body(i, 1, end - i);                                                                   \
    } while (0)

/* Channels [i, i + vectors*VEC_D), or the first n lanes of one vector, of a part of the batch:
 * their sum and M2, or their two sums. */
struct neon_nodes {
    neon_vec_d a[BNORM_SIDE], b[BNORM_SIDE];
};

BNORM_INLINE struct neon_nodes neon_load_nodes(const bnorm_partials *p, size_t row, size_t i, size_t vectors,
                                     size_t n) {
    const size_t at = row * p->stride + i;
    struct neon_nodes all;
    BNORM_UNROLL
    for (size_t v = 0; v < vectors; v++) {
        all.a[v] = load_d_lanes(p->entries[0] + at + v * VEC_D, n);
        all.b[v] = load_d_lanes(p->entries[1] + at + v * VEC_D, n);
    }
    return all;
}

BNORM_INLINE void neon_store_nodes(const bnorm_partials *p, size_t row, size_t i, size_t vectors,
                              size_t n, const struct neon_nodes *all) {
    const size_t at = row * p->stride + i;
    BNORM_UNROLL
    for (size_t v = 0; v < vectors; v++) {
        store_d_lanes(p->entries[0] + at + v * VEC_D, all->a[v], n);
        store_d_lanes(p->entries[1] + at + v * VEC_D, all->b[v], n);
    }
}

/* One piece and the one after it, of n_left and n_right values; those of sums are not looked at. */
BNORM_INLINE void neon_join_nodes(enum neon_tree neon_tree, size_t vectors, const struct neon_nodes *left,
                             struct neon_nodes *right, double n_left, double n_right) {
    const int merged = neon_tree == neon_BNORM_MERGED, halves = n_left == n_right;
    const neon_vec_d weight = neon_vec_set1_d(merged ? n_left / (n_right * (n_left + n_right)) : 0);
    const neon_vec_d count = neon_vec_set1_d(n_left), minus_next = neon_vec_set1_d(-n_right);
    BNORM_UNROLL
    for (size_t v = 0; v < vectors; v++) {
        const neon_vec_d a = left->a[v], next = right->a[v], both = neon_vec_add_d(left->b[v], right->b[v]);
        right->a[v] = neon_vec_add_d(a, next);
        right->b[v] = both;
        if (merged) {
            const neon_vec_d excess =
                halves ? neon_vec_sub_d(next, a) : neon_vec_fma_d(minus_next, neon_vec_div_d(a, count), next);
            right->b[v] = neon_vec_fma_d(neon_vec_mul_d(excess, excess), weight, both);
        }
    }
}

/* An image from its blocks, or a leaf of `images`, from this row on. */
BNORM_INLINE struct neon_nodes neon_image_nodes(enum neon_tree neon_tree, const bnorm_partials *p, size_t row,
                                      size_t images, size_t i, size_t vectors, size_t n) {
    struct neon_nodes all = neon_load_nodes(p, row, i, vectors, n);
    double before = p->per_image > 1 ? p->size : p->last * (double)images;
    for (size_t b = 1; b < p->per_image; b++) {
        const double neon_block = b + 1 < p->per_image ? p->size : p->last;
        struct neon_nodes next = neon_load_nodes(p, row + b, i, vectors, n);
        neon_join_nodes(neon_tree, vectors, &all, &next, before, neon_block);
        all = next;
        before += neon_block;
    }
    return all;
}

/* Images come in order; a subtree waits where its blocks were for the one next to it. */
BNORM_INLINE void neon_tree_lanes(enum neon_tree neon_tree, const bnorm_partials *p, size_t i, size_t vectors,
                             size_t n, double *first, double *second) {
    struct {
        size_t images, row;
    } waiting[BNORM_LEVELS];
    const size_t end = p->first + p->n;
    size_t depth = 0, row = 0;
    struct neon_nodes all, left;
    for (size_t image = p->first, next; image < end; image = next) {
        size_t images = bnorm_subtree(image, end, p->leaf), begin = image, at = row;
        next = image + images;
        all = neon_image_nodes(neon_tree, p, row, images, i, vectors, n);
        row += p->per_image;
        for (; depth && waiting[depth - 1].images == images && (begin & images); images *= 2) {
            at = waiting[--depth].row;
            left = neon_load_nodes(p, at, i, vectors, n);
            neon_join_nodes(neon_tree, vectors, &left, &all, (double)images * p->hw, (double)images * p->hw);
            begin -= images;
        }
        neon_store_nodes(p, at, i, vectors, n, &all);
        waiting[depth].images = images;
        waiting[depth++].row = at;
    }
    if (!first)
        return;
    double behind = (double)waiting[depth - 1].images;
    while (--depth) {
        const double images = (double)waiting[depth - 1].images;
        left = neon_load_nodes(p, waiting[depth - 1].row, i, vectors, n);
        neon_join_nodes(neon_tree, vectors, &left, &all, images * p->hw, behind * p->hw);
        behind += images;
    }
    const neon_vec_d count = neon_vec_set1_d(behind * p->hw);
    BNORM_UNROLL
    for (size_t v = 0; v < vectors; v++) {
        const neon_vec_d b = neon_vec_canonical_d(all.b[v]);
        const neon_vec_d a = neon_tree == neon_BNORM_MERGED ? neon_vec_if_eq_d(b, b, neon_vec_div_d(all.a[v], count), b)
                                             : neon_vec_canonical_d(all.a[v]);
        store_d_lanes(first + i + v * VEC_D, a, n);
        store_d_lanes(second + i + v * VEC_D, b, n);
    }
}

static void neon_merge(const bnorm_partials *p, size_t first, size_t c, double *mean, double *m2) {
#define BNORM_CALL(i, vectors, n) neon_tree_lanes(neon_BNORM_MERGED, p, i, vectors, n, mean, m2)
    BNORM_FOR_CHANNELS(first, c, BNORM_SIDE, BNORM_CALL);
#undef BNORM_CALL
    neon_vec_leave();
}

static void neon_add_blocks(const bnorm_partials *p, size_t first, size_t c, double *sum_g,
                       double *sum_gx) {
#define BNORM_CALL(i, vectors, n) neon_tree_lanes(neon_BNORM_ADDED, p, i, vectors, n, sum_g, sum_gx)
    BNORM_FOR_CHANNELS(first, c, BNORM_SIDE, BNORM_CALL);
#undef BNORM_CALL
    neon_vec_leave();
}

static void neon_merge_pair(const bnorm_pair_args *a, size_t c) {
    for (size_t i = 0; i < c; i += VEC_D) {
        const size_t n = neon_lesser(VEC_D, c - i);
        struct neon_nodes left, right;
        left.a[0] = load_d_lanes(a->sum + i, n);
        left.b[0] = load_d_lanes(a->m2 + i, n);
        right.a[0] = load_d_lanes(a->next_sum + i, n);
        right.b[0] = load_d_lanes(a->next_m2 + i, n);
        neon_join_nodes(neon_BNORM_MERGED, 1, &left, &right, a->n[0], a->n[1]);
        store_d_lanes(a->sum + i, neon_vec_canonical_d(right.a[0]), n);
        store_d_lanes(a->m2 + i, neon_vec_canonical_d(right.b[0]), n);
    }
    neon_vec_leave();
}

/* scale = gamma*invstd and shift = beta - mean_lo*scale; a product of two floats is exact. */
BNORM_INLINE void neon_scale_and_shift(neon_vec_d gamma, neon_vec_d beta, neon_vec_d mean_lo, neon_vec_d invstd,
                                  float *scale, float *shift, size_t n) {
    const neon_vec_d rounded = neon_vec_round_d(neon_vec_mul_d(gamma, invstd));
    const neon_vec_d minus_low = neon_vec_mul_d(neon_vec_set1_d(-1), mean_lo);
    neon_narrow_lanes(scale, rounded, n);
    neon_narrow_lanes(shift, neon_plus_product(minus_low, rounded, beta), n);
}

/* old + rate*(batch - old) */
BNORM_INLINE neon_vec_d neon_blended(double rate, neon_vec_d batch, neon_vec_d old) {
    return neon_vec_fma_d(neon_vec_set1_d(rate), neon_vec_sub_d(batch, old), old);
}

/* The same where some lanes have an infinity or a NaN, whose difference the average does not
 * have. */
BNORM_RARE void neon_blend_infinite(double rate, double batch[VEC_D], double old[VEC_D]) {
    double average[VEC_D];
    unsigned bits = 0;
    for (size_t i = 0; i < VEC_D; i++) {
        if (!__builtin_isfinite(old[i]) || !__builtin_isfinite(batch[i])) {
            average[i] = (1 - rate) * old[i] + rate * batch[i];
            batch[i] = old[i] = 0;
            bits |= 1u << i;
        }
    }
    vec_store_d(batch, neon_blended(rate, vec_load_d(batch), vec_load_d(old)));
    neon_replace_lanes(bits, average, batch);
}

/* (1 - rate)*old + rate*batch. Rate 1 takes the batch's value whatever the old one is, rate 0 keeps
 * the old one whatever the batch's is. */
BNORM_INLINE void neon_blend_lanes(const float *running, float *updated, double rate, neon_vec_d batch,
                              size_t n) {
    if (rate != 1) {
        const neon_vec_d old = neon_widen_lanes(running, n);
        if (rate == 0) {
            batch = old;
        } else if (neon_vec_outside_d(old, -DBL_MAX, DBL_MAX) |
                   neon_vec_outside_d(batch, -DBL_MAX, DBL_MAX)) {
            double values[VEC_D], olds[VEC_D];
            vec_store_d(values, batch);
            vec_store_d(olds, old);
            neon_blend_infinite(rate, values, olds);
            batch = vec_load_d(values);
        } else {
            batch = neon_blended(rate, batch, old);
        }
    }
    neon_narrow_lanes(updated, batch, n);
}

BNORM_INLINE void neon_coefficient_lanes(const bnorm_coefficient_args *a, size_t i, size_t n) {
    const neon_vec_d zero = neon_vec_set1_d(0), count = neon_vec_set1_d(a->n);
    const neon_vec_d mean = load_d_lanes(a->mean + i, n), m2 = load_d_lanes(a->m2 + i, n);
    const neon_vec_d variance = neon_vec_div_d(m2, count);

    if (a->scale) {
        const neon_vec_d high = neon_vec_round_d(mean), low = neon_vec_round_d(neon_vec_sub_d(mean, high));
        const neon_vec_d one = neon_vec_set1_d(1);
        const neon_vec_d spread = neon_or_one(neon_vec_add_d(variance, neon_vec_set1_d(a->eps)), n);
        /* 0/1 where the root is 0 */
        const neon_vec_d root = neon_vec_if_eq_d(spread, zero, one, neon_vec_sqrt_d(spread));
        const neon_vec_d invstd = neon_vec_round_d(neon_vec_div_d(neon_vec_if_eq_d(spread, zero, zero, one), root));
        neon_narrow_lanes(a->center + i, high, n);
        neon_scale_and_shift(neon_parameter_d(a->gamma, i, n, 1), neon_parameter_d(a->beta, i, n, 0), low, invstd,
                        a->scale + i, a->shift + i, n);
        if (a->save_mean)
            neon_narrow_lanes(a->save_mean + i, high, n);
        if (a->save_mean_lo)
            neon_narrow_lanes(a->save_mean_lo + i, low, n);
        if (a->save_invstd)
            neon_narrow_lanes(a->save_invstd + i, invstd, n);
        if (a->save_var)
            neon_narrow_lanes(a->save_var + i, variance, n);
    }
    if (a->new_mean)
        neon_blend_lanes(a->running_mean + i, a->new_mean + i, a->rate, mean, n);
    if (a->new_var)
        neon_blend_lanes(a->running_var + i, a->new_var + i, a->rate,
                    a->divisor == a->n ? variance : neon_vec_div_d(m2, neon_vec_set1_d(a->divisor)), n);
}

static void neon_coefficients(const bnorm_coefficient_args *a, size_t first, size_t c) {
#define BNORM_CALL(i, vectors, n) neon_coefficient_lanes(a, i, n)
    BNORM_FOR_CHANNELS(first, c, 1, BNORM_CALL);
#undef BNORM_CALL
    neon_vec_leave();
}

static void neon_scale_shift(const bnorm_scale_args *a, size_t c) {
#define BNORM_CALL(i, vectors, n)                                                                  \
    neon_scale_and_shift(neon_parameter_d(a->gamma, i, n, 1), neon_parameter_d(a->beta, i, n, 0),                 \
                    neon_parameter_d(a->mean_lo, i, n, 0), neon_widen_lanes(a->invstd + i, n), a->scale + i, \
                    a->shift + i, n)
    BNORM_FOR_CHANNELS((size_t)0, c, 1, BNORM_CALL);
#undef BNORM_CALL
    neon_vec_leave();
}

BNORM_INLINE void neon_grad_coefficient_lanes(const bnorm_grad_coefficient_args *a, size_t i, size_t n) {
    const neon_vec_d sum_g = load_d_lanes(a->sum_g + i, n), sum_gx = load_d_lanes(a->sum_gx + i, n);
    const neon_vec_d minus_one = neon_vec_set1_d(-1), zero = neon_vec_set1_d(0), count = neon_vec_set1_d(a->n);
    const neon_vec_d minus_low = neon_vec_mul_d(minus_one, neon_parameter_d(a->mean_lo, i, n, 0));
    const neon_vec_d invstd = neon_widen_lanes(a->invstd + i, n);
    const neon_vec_d dgamma = neon_vec_mul_d(neon_plus_product(minus_low, sum_g, sum_gx), invstd);

    if (a->dgamma)
        neon_narrow_lanes(a->dgamma + i, dgamma, n);
    if (a->dbeta)
        neon_narrow_lanes(a->dbeta + i, sum_g, n);
    if (!a->slope)
        return;
    const neon_vec_d minus_scale =
        neon_vec_mul_d(minus_one, neon_vec_mul_d(neon_parameter_d(a->gamma, i, n, 1), invstd));
    neon_vec_d slope = neon_vec_round_d(neon_vec_mul_d(minus_scale, neon_vec_div_d(dgamma, count)));
    neon_vec_d offset = neon_plus_product(neon_vec_mul_d(minus_low, invstd), slope,
                                neon_vec_mul_d(minus_scale, neon_vec_div_d(sum_g, count)));
    if (a->n == 1) {
        /* x - x is 0 for what is finite */
        const neon_vec_d scale = neon_widen_lanes(a->scale + i, n), none = neon_vec_sub_d(scale, scale);
        neon_narrow_lanes(a->scale + i, neon_vec_if_eq_d(none, zero, zero, scale), n);
        slope = neon_vec_if_eq_d(none, zero, zero, slope);
        offset = neon_vec_if_eq_d(none, zero, zero, offset);
    }
    neon_narrow_lanes(a->slope + i, slope, n);
    neon_narrow_lanes(a->offset + i, offset, n);
}

static void neon_grad_coefficients(const bnorm_grad_coefficient_args *a, size_t first, size_t c) {
#define BNORM_CALL(i, vectors, n) neon_grad_coefficient_lanes(a, i, n)
    BNORM_FOR_CHANNELS(first, c, 1, BNORM_CALL);
#undef BNORM_CALL
    neon_vec_leave();
}

/* The tables of this kernel set, made from the lists. */
#define BNORM_ENTRY(kernel, args) .kernel = neon_##kernel,
#define BNORM_INFERENCE_TABLE(set)                                                                 \
    { .name = set, BNORM_INFERENCE_KERNELS(BNORM_ENTRY) }
#define BNORM_TRAINING_TABLE                                                                       \
    { BNORM_TRAINING_KERNELS(BNORM_ENTRY) }

const struct bnorm_isa bnorm_isa_neon = BNORM_INFERENCE_TABLE("neon");
const bnorm_training bnorm_training_neon = BNORM_TRAINING_TABLE;

#endif
#undef add_fours_of_rows
#undef add_other_rows
#undef add_planes
#undef add_rows
#undef add_rows_dy_bf16
#undef add_rows_dy_f16
#undef add_rows_dy_f32
#undef add_rows_limited_mask
#undef add_rows_limited_residual
#undef add_rows_limited_x
#undef add_rows_limited_y
#undef add_rows_squares_bf16
#undef add_rows_squares_f16
#undef add_rows_squares_f32
#undef are_short_rows
#undef backward_any_rows
#undef backward_bf16_planes
#undef backward_bf16_rows
#undef backward_f16_planes
#undef backward_f16_rows
#undef backward_frozen_planes
#undef backward_frozen_rows
#undef backward_identity_planes
#undef backward_identity_rows
#undef backward_relu_planes
#undef backward_relu_rows
#undef block_rows
#undef chain_rows
#undef clear_rows
#undef forward_any_planes
#undef forward_any_rows
#undef forward_bf16_planes
#undef forward_bf16_rows
#undef forward_clamp_held
#undef forward_clamp_planes
#undef forward_clamp_rows
#undef forward_f16_planes
#undef forward_f16_rows
#undef forward_identity_held
#undef forward_identity_planes
#undef forward_identity_rows
#undef forward_relu_held
#undef forward_relu_planes
#undef forward_relu_rows
#undef join_rows
#undef leaf_rows
#undef load_bf16_lanes
#undef load_d_lanes
#undef load_f16_lanes
#undef load_rows
#undef map_all_planes
#undef map_all_rows
#undef map_held
#undef map_planes
#undef map_rows
#undef map_small_planes
#undef map_whole_rows
#undef reduce_rows
#undef sample_planes
#undef sample_rows
#undef staged_rows
#undef store_bf16_lanes
#undef store_d_lanes
#undef store_f16_lanes
#undef sum_planes
#undef sum_planes_dy_bf16
#undef sum_planes_dy_f16
#undef sum_planes_dy_f32
#undef sum_planes_limited_mask
#undef sum_planes_limited_residual
#undef sum_planes_limited_x
#undef sum_planes_limited_y
#undef sum_planes_squares_bf16
#undef sum_planes_squares_f16
#undef sum_planes_squares_f32
#undef sum_rows
#undef sum_staged_planes
#undef vec_four_bf16
#undef vec_four_f16
#undef vec_load_bf16
#undef vec_load_d
#undef vec_load_d_n
#undef vec_load_f16
#undef vec_load_fours
#undef vec_load_n
#undef vec_load_s8
#undef vec_load_u8
#undef vec_round_bf16
#undef vec_store_8
#undef vec_store_8_4
#undef vec_store_bf16
#undef vec_store_bf16_2
#undef vec_store_d
#undef vec_store_d_n
#undef vec_store_f16
#undef vec_store_n
#undef widen_rows
#undef VEC_F
#undef VEC_D
#undef VEC_SLEEF
#undef BNORM_INLINE
#undef BNORM_RARE
#undef BNORM_AHEAD
#undef BNORM_UNLIKELY
#undef BNORM_UNROLL
#undef BNORM_UNROLL_SOME
#undef BNORM_NO_UNROLL
#undef BNORM_TILE
#undef BNORM_PAD
#undef BNORM_STAGE
#undef BNORM_HALF_LANES
#undef SMOOTH_REGISTER
#undef SMOOTH_FUNCTION_
#undef SMOOTH_FUNCTION
#undef SMOOTH_EXP_ZERO
#undef SMOOTH_NORMAL_ZERO
#undef SMOOTH_TANH_ONE
#undef BNORM_PLAIN_KINDS
#undef BNORM_SQUARES
#undef BNORM_GENERAL
#undef BNORM_SUM_ARGS
#undef BNORM_SUM_TYPES
#undef BNORM_SUM_FORMS
#undef BNORM_GROUP_LANES
#undef BNORM_ROWS_FORM
#undef BNORM_ROWS_ENTRY
#undef BNORM_FOUR_SPAN
#undef BNORM_GROUP_SPAN
#undef BNORM_STAGE_LANES
#undef BNORM_PLANES_FORM
#undef BNORM_PLANES_ENTRY
#undef BNORM_LEAST_SUM
#undef BNORM_FOLD
#undef BNORM_AGAIN
#undef BNORM_TWIG
#undef BNORM_LEAF_TILE
#undef BNORM_VECTORS
#undef BNORM_GROUP_F
#undef BNORM_AHEAD_OUT
#undef BNORM_PART
#undef BNORM_LONG_RUN
#undef BNORM_LONG_ROW
#undef BNORM_ROOM
#undef BNORM_SMALL_PLANE
#undef BNORM_SMALL_PLANES
#undef BNORM_SMALL_ANY
#undef BNORM_ANY
#undef BNORM_FOR_PARAMETERS
#undef BNORM_EACH
#undef BNORM_FORM
#undef BNORM_FORMS
#undef BNORM_FORWARD_F32
#undef BNORM_OTHERS
#undef BNORM_SIDE
#undef BNORM_FOR_CHANNELS
#undef BNORM_ENTRY
#undef BNORM_INFERENCE_TABLE
#undef BNORM_TRAINING_TABLE

/* -------------------------------------------------------------------------- src/scalar/scalar.c */

/*
 * The scalar kernel set: the readable specification of every kernel, bit for bit. It shares no code
 * with the SIMD templates, so that a bug there can't hide here. docs/numerics.md explains the order
 * of the sums. */

#include <float.h>
#include <math.h>
#include <stdint.h>
#include <string.h>

#if BNORM_SLEEF
/* SPDX-License-Identifier: MIT
 *
 * The activations that need exp and its kin, and their derivatives: the specification of
 * src/kernels/smooth.h, with which it shares no code. SLEEF's functions for one float with fma have
 * the bits of its vector functions. */
#if BNORM_SLEEF

float Sleef_finz_expf1_u10purecfma(float v);
float Sleef_finz_expm1f1_u10purecfma(float v);
float Sleef_finz_log1pf1_u10purecfma(float v);
float Sleef_finz_tanhf1_u35purecfma(float v);

/* SLEEF computes on all lanes of the register that the float is in, and whatever else lies there
 * may raise exceptions. A load clears it. */
static float alone(float v) {
    const volatile float memory = v;
    return memory;
}

/* SLEEF's functions raise exceptions at numbers that are far too large for them: v is cut off
 * behind the point where the result is the same. NaN stays. */
static float at_least(float v, float least) {
    return v <= least ? least : v;
}

/* Where exp(v) is 0. */
#define EXP_ZERO (-104)

/* In [0, 1]: exp of the other sign might overflow. */
static float scalar_exp_minus_abs(float v) {
    return Sleef_finz_expf1_u10purecfma(alone(at_least(-fabsf(v), EXP_ZERO)));
}

static float sigmoid(float v) {
    const float e = scalar_exp_minus_abs(v);
    return (v > 0 ? 1 : e) / (1 + e);
}

static float scalar_sigmoid_slope(float v) {
    const float e = scalar_exp_minus_abs(v), d = 1 + e;
    return e / (d * d);
}

/* Below -104 e is 0, and -inf*0 would be NaN. */
static float silu(float v) {
    const float e = scalar_exp_minus_abs(v);
    return at_least(v, EXP_ZERO) * (v > 0 ? 1 : e) / (1 + e);
}

/* s*(1 + v*(1 - s)) with s = sigmoid(v), for v <= 0; at -v it is 1 less that. */
static float scalar_silu_slope(float v) {
    const float n = fabsf(v) >= 104 ? -104 : -fabsf(v);
    const float e = scalar_exp_minus_abs(n), inverse = 1 / (1 + e), s = e * inverse;
    const float factor = bnorm_fmaf(n, inverse, 1);
    return v > 0 ? bnorm_fmaf(-s, factor, 1) : s * factor;
}

/* 1 - tanh(v)^2 */
static float scalar_tanh_slope(float v) {
    const float q = scalar_exp_minus_abs(2 * at_least(-fabsf(v), EXP_ZERO)), d = 1 + q;
    return 4 * q / (d * d);
}

/* The normal distribution: Phi(n) = exp*(ratio + low) with exp = exp(-n^2/2), for n = -|v| or -15.
 * low is what rounding took from exp and ratio. */
struct scalar_normal_parts {
    float n, exp, ratio, low;
};

static struct scalar_normal_parts scalar_normal_parts(float v) {
    struct scalar_normal_parts p;
    const float n = fabsf(v) >= 15 ? -15 : -fabsf(v);
    const float exponent = n * (n * -0.5f);

    /* ratio*d as a polynomial of s; src/kernels/smooth.h says where it is from. */
    const float k = 2.34375f, d = k - n, inverse = 1 / d, s = bnorm_fmaf(inverse, -2 * k, 1);
    float sum = -0x1.3c7de2p-14f;
    sum = bnorm_fmaf(sum, s, -0x1.f532c8p-13f);
    sum = bnorm_fmaf(sum, s, 0x1.70788ep-17f);
    sum = bnorm_fmaf(sum, s, 0x1.427392p-10f);
    sum = bnorm_fmaf(sum, s, 0x1.af9714p-10f);
    sum = bnorm_fmaf(sum, s, -0x1.1df5a6p-8f);
    sum = bnorm_fmaf(sum, s, -0x1.b5d34cp-7f);
    sum = bnorm_fmaf(sum, s, 0x1.664226p-6f);
    sum = bnorm_fmaf(sum, s, 0x1.982a14p-4f);
    sum = bnorm_fmaf(sum, s, -0x1.9eaf7ep-2f);
    sum = bnorm_fmaf(sum, s, 0x1.6523p-1f);
    p.n = n;
    p.exp = Sleef_finz_expf1_u10purecfma(alone(exponent));
    p.ratio = sum * inverse;

    /* Relative errors, and that of the last product. */
    const float exp_error = bnorm_fmaf(n, n * -0.5f, -exponent);
    const float inverse_error = bnorm_fmaf(n - (k - d), inverse, bnorm_fmaf(-d, inverse, 1));
    p.low = bnorm_fmaf(p.ratio, exp_error + inverse_error, bnorm_fmaf(sum, inverse, -p.ratio));
    return p;
}

/* v*Phi(v) = max(v, 0) - |v|*Phi(-|v|) */
static float gelu(float v) {
    const struct scalar_normal_parts p = scalar_normal_parts(v);
    return bnorm_fmaf(p.n, bnorm_fmaf(p.exp, p.ratio, p.exp * p.low), v > 0 ? v : 0);
}

/* Phi(v) + v*exp(-v^2/2)/sqrt(2*pi), for v <= 0; at -v it is 1 less that. */
static float scalar_gelu_slope(float v) {
    const struct scalar_normal_parts p = scalar_normal_parts(v);
    const float factor = bnorm_fmaf(p.n, 0x1.988454p-2f, p.ratio) + p.low;
    return v > 0 ? bnorm_fmaf(-p.exp, factor, 1) : p.exp * factor;
}

/* tanh(log(1 + exp(v))) is numerator/denominator. */
struct mish_parts {
    float numerator, denominator;
};

/* With E = exp(v), ((1 + E)^2 - 1)/((1 + E)^2 + 1), both divided by E^2 where v > 0. */
static struct mish_parts mish_parts(float v, float e) {
    struct mish_parts p;
    if (v > 0) {
        p.numerator = bnorm_fmaf(e, 2, 1);
        p.denominator = bnorm_fmaf(e, 2 * e, p.numerator);
    } else {
        p.numerator = bnorm_fmaf(e, e, 2 * e);
        p.denominator = p.numerator + 2;
    }
    return p;
}

static float mish(float v) {
    const struct mish_parts p = mish_parts(v, scalar_exp_minus_abs(v));
    if (v <= EXP_ZERO)
        return 0;
    return at_least(v, EXP_ZERO) * p.numerator / p.denominator;
}

/* t + v*(1 - t^2)*sigmoid(v), t = numerator/denominator */
static float scalar_mish_slope(float v) {
    const float size = fabsf(v) >= 104 ? 104 : fabsf(v), e = scalar_exp_minus_abs(size);
    const struct mish_parts p = mish_parts(v, e);
    const float scaled_v = v > 0 ? size * e : -size;
    const float second = scaled_v * e * bnorm_fmaf(e, 4, 4);
    const float inverse = 1 / p.denominator;
    return inverse * bnorm_fmaf(inverse, second, p.numerator);
}

/* The activation at v; v itself for kinds that are not of these. */
static float scalar_smooth_value(const bnorm_act *act, float v) {
    switch (act->kind) {
    case BNORM_ACT_SIGMOID:
        return sigmoid(v);
    case BNORM_ACT_SILU:
        return silu(v);
    case BNORM_ACT_TANH:
        return Sleef_finz_tanhf1_u35purecfma(
            alone(v >= 9 ? 9 : at_least(v, -9))); /* 1 from there on */
    case BNORM_ACT_GELU:
        return gelu(v);
    case BNORM_ACT_ELU:
        return v > 0 ? v : Sleef_finz_expm1f1_u10purecfma(alone(at_least(v, EXP_ZERO))) * act->a;
    case BNORM_ACT_SOFTPLUS:
        return (v > 0 ? v : 0) + Sleef_finz_log1pf1_u10purecfma(alone(scalar_exp_minus_abs(v)));
    case BNORM_ACT_MISH:
        return mish(v);
    default:
        return v;
    }
}

/* Its derivative at v. */
static float scalar_smooth_slope(const bnorm_act *act, float v) {
    switch (act->kind) {
    case BNORM_ACT_SIGMOID:
        return scalar_sigmoid_slope(v);
    case BNORM_ACT_SILU:
        return scalar_silu_slope(v);
    case BNORM_ACT_TANH:
        return scalar_tanh_slope(v);
    case BNORM_ACT_GELU:
        return scalar_gelu_slope(v);
    case BNORM_ACT_ELU:
        return v > 0 ? 1 : Sleef_finz_expf1_u10purecfma(alone(at_least(v, EXP_ZERO))) * act->a;
    case BNORM_ACT_SOFTPLUS:
        return sigmoid(v);
    case BNORM_ACT_MISH:
        return scalar_mish_slope(v);
    default:
        return 1;
    }
}

#endif
#else
/* Never called: the drivers refuse these activations. */
static float scalar_smooth_value(const bnorm_act *act, float v) {
    (void)act;
    return v;
}
static float scalar_smooth_slope(const bnorm_act *act, float v) {
    (void)act, (void)v;
    return 1;
}
#endif

/* Small functions called from many loops: compilers leave some of them out of line by their size. */
#define ALWAYS_INLINE static inline __attribute__((always_inline))

/* Every NaN that bnorm writes is this one, so that the bits do not depend on how a CPU propagates
 * payloads. */
static float scalar_canonical(float v) {
    const unsigned bits = 0xffffffffu;
    float nan_value;
    memcpy(&nan_value, &bits, sizeof nan_value);
    return v == v ? v : nan_value;
}

static double canonical_double(double v) {
    const unsigned long long bits = 0xffffffffffffffffu;
    double nan_value;
    memcpy(&nan_value, &bits, sizeof nan_value);
    return v == v ? v : nan_value;
}

/* ---------------------------------------------------------------------------------------------- */
/* Elements of all types */

static float float_of(uint32_t bits) {
    float v;
    memcpy(&v, &bits, sizeof v);
    return v;
}

static uint32_t bits_of(float v) {
    uint32_t bits;
    memcpy(&bits, &v, sizeof bits);
    return bits;
}

/* The upper bits of a number whose lower `drop` bits are rounded off, to nearest even. */
static uint32_t round_off(uint32_t bits, unsigned drop) {
    const uint32_t half = (uint32_t)1 << (drop - 1);
    return (bits + half - 1 + (bits >> drop & 1)) >> drop;
}

static uint16_t to_bf16(float v) {
    return v == v ? (uint16_t)round_off(bits_of(v), 16) : 0xffff;
}

/* Sign, 5 bits of exponent (bias 15), 10 of fraction. */
static float from_f16(uint16_t h) {
    const uint32_t sign = (uint32_t)(h & 0x8000) << 16, exponent = h >> 10 & 31,
                   fraction = h & 1023;
    if (exponent == 31)
        return float_of(sign | 0x7f800000 | fraction << 13);
    if (exponent == 0) { /* a multiple of 2^-24 */
        const float v = (float)fraction * 0x1p-24f;
        return sign ? -v : v;
    }
    return float_of(sign | (exponent + 112) << 23 | fraction << 13);
}

static uint16_t to_f16(float v) {
    const uint32_t bits = bits_of(v), sign = bits >> 16 & 0x8000, size = bits & 0x7fffffff;
    if (v != v)
        return 0xffff;
    if (size >= 0x47800000) /* 65536 */
        return (uint16_t)(sign | 0x7c00);
    if (size >= 0x38800000) /* 2^-14; rounding up may reach infinity */
        return (uint16_t)(sign | round_off(size - (112u << 23), 13));
    if (size < 0x33000000) /* 2^-25 */
        return (uint16_t)sign;
    /* A multiple of 2^-24: the fraction with its hidden bit, shifted. */
    return (uint16_t)(sign | round_off((size & 0x7fffff) | 0x800000, 126 - (size >> 23)));
}

/* For types that are not quantized. */
static const bnorm_quant no_quant = {1, 0};

static float lower_limit(bnorm_dtype type) {
    return type == BNORM_S8 ? -128 : 0;
}

static float upper_limit(bnorm_dtype type) {
    return type == BNORM_S8 ? 127 : 255;
}

static float load_converted(const void *data, bnorm_dtype type, const bnorm_quant *quant,
                            size_t i) {
    switch (type) {
    case BNORM_F32:
        break;
    case BNORM_BF16:
        return float_of((uint32_t)((const uint16_t *)data)[i] << 16);
    case BNORM_F16:
        return from_f16(((const uint16_t *)data)[i]);
    case BNORM_S8:
        return (float)(((const int8_t *)data)[i] - quant->zero_point) * quant->scale;
    case BNORM_U8:
        return (float)(((const uint8_t *)data)[i] - quant->zero_point) * quant->scale;
    }
    return 0;
}

/* Element i; quant is that of S8 and U8. Inline for floats, which are most. */
ALWAYS_INLINE float load(const void *data, bnorm_dtype type, const bnorm_quant *quant, size_t i) {
    return type == BNORM_F32 ? ((const float *)data)[i] : load_converted(data, type, quant, i);
}

/* v/scale, to the nearest whole number, ties to even. */
static float quantize(bnorm_dtype type, const bnorm_quant *quant, float v) {
    const float steps = v / quant->scale, whole = steps == steps ? rintf(steps) : 0;
    const float q = whole + (float)quant->zero_point;
    if (q <= lower_limit(type))
        return lower_limit(type);
    return q >= upper_limit(type) ? upper_limit(type) : q;
}

static void store_converted(void *data, bnorm_dtype type, const bnorm_quant *quant, size_t i,
                            float v) {
    switch (type) {
    case BNORM_F32:
        break;
    case BNORM_BF16:
        ((uint16_t *)data)[i] = to_bf16(v);
        break;
    case BNORM_F16:
        ((uint16_t *)data)[i] = to_f16(v);
        break;
    case BNORM_S8:
        ((int8_t *)data)[i] = (int8_t)quantize(type, quant, v);
        break;
    case BNORM_U8:
        ((uint8_t *)data)[i] = (uint8_t)quantize(type, quant, v);
        break;
    }
}

ALWAYS_INLINE void store(void *data, bnorm_dtype type, const bnorm_quant *quant, size_t i,
                         float v) {
    if (type == BNORM_F32)
        ((float *)data)[i] = scalar_canonical(v);
    else
        store_converted(data, type, quant, i, v);
}

static size_t bit_of(const bnorm_bits *mask, size_t r, size_t i) {
    return mask->at + r * mask->row_stride + i;
}

static float load_bit(const bnorm_bits *mask, size_t r, size_t i) {
    const size_t n = bit_of(mask, r, i);
    return (float)(mask->bits[n / 8] >> n % 8 & 1);
}

/* Other threads may write the other bits of the byte. */
static void store_bit(const bnorm_bits *mask, size_t r, size_t i, int bit) {
    const size_t n = bit_of(mask, r, i);
    unsigned char *const byte = mask->bits + n / 8;
#if __GCC_ATOMIC_CHAR_LOCK_FREE == 2
    const unsigned char own = (unsigned char)(1u << n % 8);
    if (bit)
        __atomic_fetch_or(byte, own, __ATOMIC_RELAXED);
    else
        __atomic_fetch_and(byte, (unsigned char)~own, __ATOMIC_RELAXED);
#else /* RISC-V (little-endian) has atomics of words, which never cross a page */
    const size_t within = (uintptr_t)byte % 4;
    uint32_t *const word = (uint32_t *)(void *)(byte - within);
    const uint32_t own = (uint32_t)1 << (8 * within + n % 8);
    if (bit)
        __atomic_fetch_or(word, own, __ATOMIC_RELAXED);
    else
        __atomic_fetch_and(word, ~own, __ATOMIC_RELAXED);
#endif
}

/* ---------------------------------------------------------------------------------------------- */
/* Reductions. Chain j of a channel holds positions j, j + chains, j + 2*chains, ... It is added up in
 * groups of 16, in float, and groups in double. What chains add up to is folded, upper half onto
 * lower half. */

/* A channel of a block; of backward where there is dy. */
struct channel {
    bnorm_map_args args; /* rows of one element for statistics */
    size_t ch;
    int along_plane;
    size_t count, chains;
};

static float grad_element(const bnorm_map_args *a, size_t r, size_t i, size_t ch);

ALWAYS_INLINE float value_of(const struct channel *c, size_t q) {
    const bnorm_tensor *x = &c->args.x;
    return load(x->data, x->type, &no_quant,
                c->along_plane ? c->ch * x->row_stride + q : q * x->row_stride + c->ch);
}

static float grad_of(const struct channel *c, size_t q) {
    return c->along_plane ? grad_element(&c->args, c->ch, q, c->ch)
                          : grad_element(&c->args, q, c->ch, c->ch);
}

/* Of a: sum of d = x - pivot, or of g; of b: of d*d, or of g*d. */
struct two_sums {
    double a, b;
};

/* `count` positions, every `chains`th from q on: a pair at a time, two pairs together, and these one
 * after the other. */
ALWAYS_INLINE void sum_group(const struct channel *c, int backward, float pivot, size_t q,
                             size_t count, float *sum_a, float *sum_b) {
    *sum_a = *sum_b = 0;
    for (size_t i = 0; i < count; i += 4) {
        float a[2] = {0, 0}, b[2] = {0, 0};
        for (size_t k = 0; k < 4 && i + k < count; k++) {
            const size_t at = q + (i + k) * c->chains;
            const float d = value_of(c, at) - pivot, first = backward ? grad_of(c, at) : d;
            a[k / 2] += first;
            b[k / 2] = bnorm_fmaf(first, d, b[k / 2]);
        }
        /* Variables round, where expressions of floats are computed in double. */
        const float four_a = a[0] + a[1], four_b = b[0] + b[1];
        *sum_a += four_a;
        *sum_b += four_b;
    }
}

static size_t group_size(const struct channel *c, size_t q) {
    const size_t left = q < c->count ? (c->count - q + c->chains - 1) / c->chains : 0;
    return left < BNORM_GROUP ? left : BNORM_GROUP;
}

static double fold(double *partial, size_t chains) {
    for (size_t half = chains / 2; half > 0; half /= 2)
        for (size_t j = 0; j < half; j++)
            partial[j] += partial[j + half];
    return partial[0];
}

/* Of rows: each chain in double. Of a plane: the chains of a group are folded in float to four. */
ALWAYS_INLINE struct two_sums float_sums(const struct channel *c, int backward, float pivot) {
    double a[BNORM_SPAN_LANES] = {0}, b[BNORM_SPAN_LANES] = {0};
    const size_t lanes = c->along_plane ? 4 : c->chains;
    for (size_t group = 0; group < c->count; group += BNORM_GROUP * c->chains) {
        float group_a[BNORM_SPAN_LANES], group_b[BNORM_SPAN_LANES];
        for (size_t j = 0; j < c->chains; j++)
            sum_group(c, backward, pivot, group + j, group_size(c, group + j), &group_a[j],
                      &group_b[j]);
        for (size_t half = c->chains / 2; half >= lanes; half /= 2)
            for (size_t j = 0; j < half; j++) {
                group_a[j] += group_a[j + half];
                group_b[j] += group_b[j + half];
            }
        for (size_t j = 0; j < lanes; j++) {
            a[j] += (double)group_a[j];
            b[j] += (double)group_b[j];
        }
    }
    return (struct two_sums){fold(a, lanes), fold(b, lanes)};
}

static struct two_sums sums_of(const struct channel *c, float pivot) {
    return c->args.dy.data ? float_sums(c, 1, pivot) : float_sums(c, 0, pivot);
}

/* All in double, each chain in order: where floats do not do. Statistics have the values themselves
 * in a. */
static struct two_sums double_sums_of(const struct channel *c, double center) {
    double a[BNORM_SPAN_LANES] = {0}, b[BNORM_SPAN_LANES] = {0};
    for (size_t q = 0; q < c->count; q++) {
        const double x = (double)value_of(c, q), d = x - center;
        const double first = c->args.dy.data ? (double)grad_of(c, q) : d;
        a[q % c->chains] += c->args.dy.data ? first : x;
        b[q % c->chains] = bnorm_fma(first, d, b[q % c->chains]);
    }
    return (struct two_sums){fold(a, c->chains), fold(b, c->chains)};
}

static float scalar_power_of_2(float v) {
    return float_of(bits_of(v) & 0x7f800000);
}

/* A whole number of units, which are 2^-23 times 2/3 of magic. */
static float round_to(float v, float magic) {
    const float sum = v + magic;
    return sum - magic;
}

/* The mean of values that are spread over the block (of a plane: places of four neighbours),
 * rounded to an eighth or so of their spread. */
static float sample_pivot(const struct channel *c) {
    float v[4 * BNORM_PLACES], least, most;
    size_t samples = bnorm_samples(c->count), n;
    if (c->along_plane && c->count >= 4)
        samples = 4 * bnorm_places(c->count);
    for (size_t j = 0; j < samples; j++) {
        size_t q = j * c->count / samples;
        if (c->along_plane)
            q = samples < 4 ? j : j / 4 * c->count / (samples / 4) + j % 4;
        v[j] = value_of(c, q);
    }
    for (n = samples; n > 4; n /= 2)
        for (size_t j = 0; j < n / 2; j++)
            v[j] += v[j + n / 2];
    least = most = v[0];
    for (size_t j = 1; j < n; j++) {
        least = v[j] < least ? v[j] : least;
        most = v[j] > most ? v[j] : most;
    }
    for (; n > 1; n /= 2)
        for (size_t j = 0; j < n / 2; j++)
            v[j] += v[j + n / 2];
    const float mean = v[0] * (1 / (float)samples);
    return round_to(mean, scalar_power_of_2(most - least) * 0x3p17f);
}

/* A pivot from the sums about another one: the mean, rounded to an eighth or so of the deviation
 * where these say enough of it. 0 where they say nothing. */
static float scalar_better_pivot(double n, float pivot, struct two_sums sums) {
    const float mean = (float)bnorm_fma(sums.a, 1 / n, (double)pivot);
    const double squares = bnorm_fma(sums.a * (-1 / n), sums.a, sums.b);
    if (!(mean >= -FLT_MAX && mean <= FLT_MAX))
        return 0;
    if (!(squares > sums.b * 0x1p-10 && sums.b <= DBL_MAX))
        return mean;
    return round_to(mean, scalar_power_of_2((float)sqrt(squares * (1 / n))) * 0x3p19f);
}

static int all_values_are(const struct channel *c, float pivot) {
    for (size_t q = 0; q < c->count; q++)
        if (!(value_of(c, q) - pivot == 0))
            return 0;
    return 1;
}

/* Squares that leave the range of a float. */
static int in_range(double squares) {
    return squares >= 0x1p-90 && squares <= DBL_MAX;
}

/* Sum and sum of squared deviations of one channel's block, from the sums of d = x - pivot and its
 * square. The pivot must be within a deviation of the mean, or be as near as a float can. */
static void moments_channel(const struct channel *c, double *sum, double *m2) {
    const double n = (double)c->count;
    float pivot = sample_pivot(c);
    struct two_sums sums = sums_of(c, pivot);
    const double margin = bnorm_fma(sums.a * (-1 / n), sums.a, sums.b * 0.5);
    if (!(margin >= 0 && margin <= DBL_MAX && in_range(sums.b)) && !all_values_are(c, pivot)) {
        pivot = scalar_better_pivot(n, pivot, sums);
        sums = sums_of(c, pivot);
        if (!in_range(sums.b)) {
            const double total = double_sums_of(c, 0).a;
            *sum = canonical_double(total);
            *m2 = canonical_double(double_sums_of(c, total / n).b);
            return;
        }
    }
    const double squares = bnorm_fma(sums.a * (-1 / n), sums.a, sums.b);
    *sum = canonical_double(bnorm_fma(n, (double)pivot, sums.a));
    *m2 = canonical_double(squares < 0 ? 0 : squares);
}

static struct channel channel_of(const bnorm_block_args *a, size_t ch, int along_plane) {
    struct channel c = {.ch = ch, .along_plane = along_plane};
    c.args.x = (bnorm_tensor){.data = (void *)(uintptr_t)a->x, .row_stride = a->stride};
    c.args.x.type = a->type;
    c.count = along_plane ? a->len : a->runs;
    c.chains = BNORM_SPAN_LANES;
    return c;
}

static void scalar_moments_rows(const bnorm_block_args *a, size_t chains, double *sum, double *m2) {
    for (size_t i = 0; i < a->valid; i++) {
        struct channel c = channel_of(a, i, 0);
        c.chains = chains;
        moments_channel(&c, &sum[i], &m2[i]);
    }
}

static void scalar_moments_span(const bnorm_block_args *a, double *sum, double *m2) {
    for (size_t i = 0; i < a->runs; i++) {
        const struct channel c = channel_of(a, i, 1);
        moments_channel(&c, &sum[i], &m2[i]);
    }
}

/* Rows [r, r + rows) of one channel: sums, and squares about the mean of two halves. */
static void tree_sums(const bnorm_block_args *a, size_t i, size_t r, size_t rows, double *sum,
                      double *m2) {
    double left, right, left_m2, right_m2;
    if (rows == 1) {
        *sum = (double)load(a->x, a->type, &no_quant, r * a->stride + i);
        *m2 = 0;
        return;
    }
    tree_sums(a, i, r, rows / 2, &left, &left_m2);
    tree_sums(a, i, r + rows / 2, rows / 2, &right, &right_m2);
    const double d = right - left;
    *sum = left + right;
    const double between = d * d * (1 / (double)rows); /* by a power of two: exact */
    *m2 = between + (left_m2 + right_m2);
}

static void scalar_moments_tree(const bnorm_block_args *a, double *sum, double *m2) {
    for (size_t i = 0; i < a->valid; i++) {
        double total, squares;
        tree_sums(a, i, 0, a->runs, &total, &squares);
        sum[i] = canonical_double(total);
        m2[i] = canonical_double(squares + (total - total)); /* NaN where an infinity is */
    }
}

/* What a tree is made of: statistics of n values. */
struct scalar_node {
    double sum, m2, n;
};

/* Chan, Golub, LeVeque: "Updating formulae and a pairwise algorithm for computing sample variances"
 * (1979), with excess = b.n*(mean of b - mean of a). It is exactly 0 for equal means, and sums that
 * fit into a double stay exact. */
static struct scalar_node pair_of(struct scalar_node a, struct scalar_node b) {
    const double excess = a.n == b.n ? b.sum - a.sum : bnorm_fma(-b.n, a.sum / a.n, b.sum);
    const double weight = a.n / (b.n * (a.n + b.n));
    return (struct scalar_node){a.sum + b.sum, bnorm_fma(excess * excess, weight, a.m2 + b.m2), a.n + b.n};
}

/* The row of the tables with the first block of image i. */
static size_t row_of(const bnorm_partials *p, size_t i) {
    return bnorm_subtrees(p->first, i - p->first, p->leaf) * p->per_image * p->stride;
}

/* An image, or a leaf of several. Blocks come in order. */
static struct scalar_node image_node(const bnorm_partials *p, size_t row, size_t images) {
    const double *const sum = p->entries[0] + row, *const m2 = p->entries[1] + row;
    struct scalar_node all = {sum[0], m2[0], p->per_image > 1 ? p->size : p->last * (double)images};
    for (size_t b = 1; b < p->per_image; b++) {
        const double n = b + 1 < p->per_image ? p->size : p->last;
        all = pair_of(all, (struct scalar_node){sum[b * p->stride], m2[b * p->stride], n});
    }
    return all;
}

/* Images [i, end): the largest whole subtree that they begin with, and what is behind it. Whole
 * subtrees are two halves. */
static struct scalar_node merge_images(const bnorm_partials *p, size_t channel, size_t i, size_t end) {
    const size_t images = bnorm_subtree(i, end, BNORM_TREE), row = row_of(p, i) + channel;
    struct scalar_node all;
    if (images < end - i)
        return pair_of(merge_images(p, channel, i, i + images),
                       merge_images(p, channel, i + images, end));
    if (images <= p->leaf)
        all = image_node(p, row, images);
    else
        all = pair_of(merge_images(p, channel, i, i + images / 2),
                      merge_images(p, channel, i + images / 2, end));
    p->entries[0][row] = all.sum;
    p->entries[1][row] = all.m2;
    return all;
}

static void scalar_merge(const bnorm_partials *p, size_t first, size_t c, double *mean, double *m2) {
    for (size_t i = first; i < first + c; i++) {
        const struct scalar_node all = merge_images(p, i, p->first, p->first + p->n);
        if (!mean)
            continue;
        m2[i] = canonical_double(all.m2);
        /* an infinity among the data leaves no mean either */
        mean[i] = all.m2 != all.m2 ? m2[i] : all.sum / all.n;
    }
}

static void scalar_merge_pair(const bnorm_pair_args *a, size_t c) {
    for (size_t i = 0; i < c; i++) {
        const struct scalar_node left = {a->sum[i], a->m2[i], a->n[0]},
                          right = {a->next_sum[i], a->next_m2[i], a->n[1]},
                          both = pair_of(left, right);
        a->sum[i] = canonical_double(both.sum);
        a->m2[i] = canonical_double(both.m2);
    }
}

/* ---------------------------------------------------------------------------------------------- */
/* Elementwise */

/* 1/6 and 1/3 to the bit: where FLT_EVAL_METHOD is not 0, 1.0f / 6 is no float. */
#define SIXTH 0x1.555556p-3f
#define THIRD 0x1.555556p-2f

static float scalar_activate(const bnorm_act *act, float v) {
    switch (act->kind) {
    case BNORM_ACT_IDENTITY:
        break;
    case BNORM_ACT_RELU:
        return v <= 0 ? 0 : v;
    case BNORM_ACT_CLAMP:
        v = v <= act->a ? act->a : v;
        return v >= act->b ? act->b : v;
    case BNORM_ACT_LEAKY_RELU:
        return v > 0 ? v : v * act->a;
    case BNORM_ACT_HARD_SWISH: {
        if (v <= -3)
            return 0;
        if (v >= 3)
            return v;
        const float shifted = v + 3, product = v * shifted;
        return product * SIXTH;
    }
    default:
        return scalar_smooth_value(act, v);
    }
    return v;
}

/* dy times the derivative of the activation at v. */
static float scalar_gradient(const bnorm_act *act, float v, float dy) {
    switch (act->kind) {
    case BNORM_ACT_IDENTITY:
        break;
    case BNORM_ACT_RELU:
        return v > 0 ? dy : 0;
    case BNORM_ACT_CLAMP:
        return v > act->a && v < act->b ? dy : 0;
    case BNORM_ACT_LEAKY_RELU:
        return v > 0 ? dy : dy * act->a;
    case BNORM_ACT_HARD_SWISH: {
        if (v <= -3)
            return 0;
        if (v >= 3)
            return dy;
        const float slope = bnorm_fmaf(v, THIRD, 0.5f);
        return dy * slope;
    }
    default:
        return dy * scalar_smooth_slope(act, v);
    }
    return dy;
}

/* What a mask says: whether the derivative is that of the upper branch. */
static int passes(const bnorm_act *act, float v) {
    return act->kind == BNORM_ACT_CLAMP ? v > act->a && v < act->b : v > 0;
}

/* A tensor from one of its groups on. */
static bnorm_tensor group_of(bnorm_tensor t, size_t image, size_t group, int planes) {
    static const size_t sizes[] = {4, 2, 2, 1, 1}; /* by bnorm_dtype */
    if (t.data)
        t.data = (char *)t.data + (image * t.image_stride + group * t.group_stride) * sizes[t.type];
    if (planes)
        t.row_stride = t.group_stride;
    return t;
}

/* The rows of one group alone; or the planes of one image, as rows. */
static bnorm_map_args rows_of(const bnorm_map_args *whole, size_t image, size_t group, int planes) {
    bnorm_map_args a = *whole;
    a.x = group_of(a.x, image, group, planes);
    a.dy = group_of(a.dy, image, group, planes);
    a.argument = group_of(a.argument, image, group, planes);
    a.out = group_of(a.out, image, group, planes);
    a.dresidual = group_of(a.dresidual, image, group, planes);
    a.mask.at += image * a.mask.image_stride + group * a.mask.group_stride;
    if (planes) {
        a.mask.row_stride = a.mask.group_stride;
        a.rows = a.groups;
    }
    return a;
}

ALWAYS_INLINE float load_at(const bnorm_tensor *t, size_t r, size_t i) {
    return load(t->data, t->type, &t->quant, r * t->row_stride + i);
}

ALWAYS_INLINE void store_at(const bnorm_tensor *t, size_t r, size_t i, float v) {
    store(t->data, t->type, &t->quant, r * t->row_stride + i, v);
}

/* Element i of row r; parameters of channel ch. */
typedef void element_function(const bnorm_map_args *a, size_t r, size_t i, size_t ch);

ALWAYS_INLINE void each_row(const bnorm_map_args *whole, element_function *element,
                            element_function *padding) {
    for (size_t image = 0; image < whole->images; image++)
        for (size_t group = 0; group < whole->groups; group++) {
            const bnorm_map_args a = rows_of(whole, image, group, 0);
            for (size_t r = 0; r < a.rows; r++) {
                for (size_t i = 0; i < a.valid; i++)
                    element(&a, r, i, group * a.lanes + i);
                for (size_t i = a.valid; i < a.lanes; i++)
                    padding(&a, r, i, 0);
            }
        }
}

ALWAYS_INLINE void each_plane(const bnorm_map_args *whole, element_function *element) {
    for (size_t image = 0; image < whole->images; image++) {
        const bnorm_map_args a = rows_of(whole, image, 0, 1);
        for (size_t r = 0; r < a.rows; r++)
            for (size_t i = 0; i < a.lanes; i++)
                element(&a, r, i, r);
    }
}

ALWAYS_INLINE void apply_element(const bnorm_map_args *a, size_t r, size_t i, size_t ch) {
    float v = load_at(&a->x, r, i);
    if (a->center)
        v = v - a->center[ch];
    v = bnorm_fmaf(v, a->scale[ch], a->shift[ch]);
    if (a->argument.data)
        v = v + load_at(&a->argument, r, i);
    if (a->mask.bits)
        store_bit(&a->mask, r, i, passes(&a->act, v));
    store_at(&a->out, r, i, scalar_activate(&a->act, v));
}

/* Its bits in a mask are 0. */
static void apply_padding(const bnorm_map_args *a, size_t r, size_t i, size_t ch) {
    (void)ch;
    if (a->mask.bits)
        store_bit(&a->mask, r, i, 0);
    store_at(&a->out, r, i, 0);
}

static void scalar_apply_rows(const bnorm_map_args *a) {
    each_row(a, apply_element, apply_padding);
}

static void scalar_apply_span(const bnorm_map_args *a) {
    each_plane(a, apply_element);
}

ALWAYS_INLINE float x_minus_center(const bnorm_map_args *a, size_t r, size_t i, size_t ch) {
    return load_at(&a->x, r, i) - a->center[ch];
}

static float grad_element(const bnorm_map_args *a, size_t r, size_t i, size_t ch) {
    const float dy = load_at(&a->dy, r, i);
    float v = 0;
    switch (a->pre) {
    case BNORM_PRE_NONE:
        return dy;
    case BNORM_PRE_X:
        v = bnorm_fmaf(x_minus_center(a, r, i, ch), a->scale[ch], a->shift[ch]);
        break;
    case BNORM_PRE_RESIDUAL:
        v = bnorm_fmaf(x_minus_center(a, r, i, ch), a->scale[ch], a->shift[ch]);
        v = v + load_at(&a->argument, r, i);
        break;
    case BNORM_PRE_Y:
        v = load_at(&a->argument, r, i);
        break;
    case BNORM_PRE_MASK:
        v = load_bit(&a->mask, r, i);
        break;
    }
    return scalar_gradient(&a->act, v, dy);
}

/* The center, rounded to a unit of about 2^-16/invstd: x - center rounds alike for all x of similar
 * size, which adds up. A constant channel stays at its value. */
static float round_center(const struct channel *c) {
    const float center = c->args.center[c->ch], invstd = c->args.invstd[c->ch];
    float inverse = invstd > 0x1p-90f ? invstd : 0x1p-90f;
    inverse = inverse < 0x1p126f ? inverse : 0x1p126f;
    if (value_of(c, 0) - center == 0)
        return center;
    return round_to(center, scalar_power_of_2(1 / inverse) * 0x3p6f);
}

/* Sums of a channel in float, or in double where they are out of range: 0 is right where all g are
 * 0, and the sum of g does not depend on x. */
static void sums_channel(const struct channel *c, double *sum_g, double *sum_gx) {
    const float center = c->args.center[c->ch], pivot = round_center(c);
    struct two_sums sums = sums_of(c, pivot);
    sums.b = bnorm_fma((double)pivot - (double)center, sums.a, sums.b);
    const int finite = fabs(sums.a) <= DBL_MAX;
    if (!(finite && in_range(fabs(sums.b))) && !(sums.a == 0 && sums.b == 0)) {
        const struct two_sums again = double_sums_of(c, (double)center);
        if (!finite)
            sums.a = again.a;
        sums.b = again.b;
    }
    *sum_g = canonical_double(sums.a);
    *sum_gx = canonical_double(sums.b);
}

static void scalar_sums_rows(const bnorm_map_args *a, size_t chains, double *sum_g, double *sum_gx) {
    for (size_t ch = 0; ch < a->valid; ch++) {
        const struct channel c = {*a, ch, 0, a->rows, chains};
        sums_channel(&c, &sum_g[ch], &sum_gx[ch]);
    }
}

static void scalar_sums_span(const bnorm_map_args *whole, double *sum_g, double *sum_gx) {
    const bnorm_map_args a = rows_of(whole, 0, 0, 1);
    for (size_t ch = 0; ch < a.rows; ch++) {
        const struct channel c = {a, ch, 1, a.lanes, BNORM_SPAN_LANES};
        sums_channel(&c, &sum_g[ch], &sum_gx[ch]);
    }
}

/* Rows [r, r + rows) of one channel, two halves; products in double. */
static void tree_products(const bnorm_map_args *a, size_t i, size_t r, size_t rows, double *sum_g,
                          double *sum_gx) {
    double next_g, next_gx;
    if (rows == 1) {
        const float x = load_at(&a->x, r, i);
        *sum_g = (double)grad_element(a, r, i, i);
        /* + 0 is what a compiler may contract the product with, instead of the sum of two. */
        *sum_gx = *sum_g * ((double)x - (double)a->center[i]) + 0;
        return;
    }
    tree_products(a, i, r, rows / 2, sum_g, sum_gx);
    tree_products(a, i, r + rows / 2, rows / 2, &next_g, &next_gx);
    *sum_g += next_g;
    *sum_gx += next_gx;
}

static void scalar_sums_tree(const bnorm_map_args *a, double *sum_g, double *sum_gx) {
    for (size_t i = 0; i < a->valid; i++) {
        double g, gx;
        tree_products(a, i, 0, a->rows, &g, &gx);
        sum_g[i] = canonical_double(g);
        sum_gx[i] = canonical_double(gx);
    }
}

ALWAYS_INLINE void dx_element(const bnorm_map_args *a, size_t r, size_t i, size_t ch) {
    const float g = grad_element(a, r, i, ch);
    if (a->out.data && a->slope) {
        const float xh = x_minus_center(a, r, i, ch) * a->invstd[ch];
        const float dx = bnorm_fmaf(xh, a->slope[ch], bnorm_fmaf(g, a->scale[ch], a->offset[ch]));
        store_at(&a->out, r, i, dx);
    } else if (a->out.data) {
        store_at(&a->out, r, i, g * a->scale[ch]);
    }
    if (a->dresidual.data)
        store_at(&a->dresidual, r, i, g);
}

static void dx_padding(const bnorm_map_args *a, size_t r, size_t i, size_t ch) {
    (void)ch;
    if (a->out.data)
        store_at(&a->out, r, i, 0);
    if (a->dresidual.data)
        store_at(&a->dresidual, r, i, 0);
}

static void scalar_dx_rows(const bnorm_map_args *a) {
    each_row(a, dx_element, dx_padding);
}

static void scalar_dx_span(const bnorm_map_args *a) {
    each_plane(a, dx_element);
}

/* ---------------------------------------------------------------------------------------------- */
/* Coefficients. NULL stands for an array of the default. */

static double parameter(const float *array, size_t i, double otherwise) {
    return array ? (double)array[i] : otherwise;
}

static float to_float(double v) {
    return scalar_canonical((float)v);
}

/* a*b + c rounded once, for an a that is mostly 0. */
static double scalar_plus_product(double a, double b, double c) {
    return a == 0 ? c : bnorm_fma(a, b, c);
}

static float scale_of(const float *gamma, size_t i, float invstd) {
    return to_float(parameter(gamma, i, 1) * (double)invstd);
}

/* beta less what the low part of the mean contributes; the product of two floats is exact. */
static float shift_of(const float *beta, size_t i, double mean_lo, float scale) {
    const double b = parameter(beta, i, 0);
    return to_float(mean_lo == 0 ? b : b - mean_lo * (double)scale);
}

/* (1 - rate)*old + rate*batch, as old + rate*(batch - old) unless one of them is infinite or NaN.
 * Rate 1 takes the batch's value whatever the old one is, rate 0 keeps the old one. */
static float blend(const float *running, double rate, double batch) {
    if (rate == 1)
        return to_float(batch);
    const double old = (double)*running;
    if (rate == 0)
        return to_float(old);
    if (__builtin_isfinite(old) && __builtin_isfinite(batch))
        return to_float(bnorm_fma(rate, batch - old, old));
    return to_float((1 - rate) * old + rate * batch);
}

static void scalar_coefficients(const bnorm_coefficient_args *a, size_t first, size_t c) {
    for (size_t i = first; i < first + c; i++) {
        const double mean = a->mean[i], m2 = a->m2[i];
        if (a->scale) {
            const double spread = m2 / a->n + a->eps;
            const float high = to_float(mean), low = to_float(mean - (double)high);
            const float invstd = spread == 0 ? 0 : to_float(1 / sqrt(spread));
            a->center[i] = high;
            a->scale[i] = scale_of(a->gamma, i, invstd);
            a->shift[i] = shift_of(a->beta, i, (double)low, a->scale[i]);
            if (a->save_mean)
                a->save_mean[i] = high;
            if (a->save_mean_lo)
                a->save_mean_lo[i] = low;
            if (a->save_invstd)
                a->save_invstd[i] = invstd;
            if (a->save_var)
                a->save_var[i] = to_float(m2 / a->n);
        }
        if (a->new_mean)
            a->new_mean[i] = blend(&a->running_mean[i], a->rate, mean);
        if (a->new_var)
            a->new_var[i] = blend(&a->running_var[i], a->rate, m2 / a->divisor);
    }
}

/* As merge_images. */
static void add_images(const bnorm_partials *p, size_t channel, size_t i, size_t end, double *g,
                       double *gx) {
    const size_t images = bnorm_subtree(i, end, BNORM_TREE), row = row_of(p, i) + channel;
    const int whole = images == end - i;
    double *const block_g = p->entries[0] + row, *const block_gx = p->entries[1] + row;
    if (whole && images <= p->leaf) {
        *g = block_g[0];
        *gx = block_gx[0];
        for (size_t b = 1; b < p->per_image; b++) {
            *g += block_g[b * p->stride];
            *gx += block_gx[b * p->stride];
        }
    } else {
        const size_t middle = i + (whole ? images / 2 : images);
        double next_g, next_gx;
        add_images(p, channel, i, middle, g, gx);
        add_images(p, channel, middle, end, &next_g, &next_gx);
        *g += next_g;
        *gx += next_gx;
    }
    if (whole) {
        *block_g = *g;
        *block_gx = *gx;
    }
}

static void scalar_add_blocks(const bnorm_partials *p, size_t first, size_t c, double *sum_g,
                       double *sum_gx) {
    for (size_t i = first; i < first + c; i++) {
        double g, gx;
        add_images(p, i, p->first, p->first + p->n, &g, &gx);
        if (!sum_g)
            continue;
        sum_g[i] = canonical_double(g);
        sum_gx[i] = canonical_double(gx);
    }
}

static void scalar_scale_shift(const bnorm_scale_args *a, size_t c) {
    for (size_t i = 0; i < c; i++) {
        a->scale[i] = scale_of(a->gamma, i, a->invstd[i]);
        a->shift[i] = shift_of(a->beta, i, parameter(a->mean_lo, i, 0), a->scale[i]);
    }
}

static void scalar_grad_coefficients(const bnorm_grad_coefficient_args *a, size_t first, size_t c) {
    for (size_t i = first; i < first + c; i++) {
        const double low = parameter(a->mean_lo, i, 0), invstd = (double)a->invstd[i];
        const double scale = parameter(a->gamma, i, 1) * invstd;
        const double dgamma = scalar_plus_product(-low, a->sum_g[i], a->sum_gx[i]) * invstd;
        if (a->dgamma)
            a->dgamma[i] = to_float(dgamma);
        if (a->dbeta)
            a->dbeta[i] = to_float(a->sum_g[i]);
        if (!a->slope)
            continue;
        /* dx = scale*(g - dbeta/n - (x - mean)*invstd*dgamma/n) */
        a->slope[i] = to_float(-scale * (dgamma / a->n));
        a->offset[i] = to_float(
            scalar_plus_product(-low * invstd, (double)a->slope[i], -scale * (a->sum_g[i] / a->n)));
        if (a->n == 1 && __builtin_isfinite(a->scale[i]))
            a->scale[i] = a->slope[i] = a->offset[i] = 0;
    }
}

#define X(kernel, args) .kernel = scalar_##kernel,
const struct bnorm_isa bnorm_isa_scalar = {.name = "scalar", BNORM_INFERENCE_KERNELS(X)};
const bnorm_training bnorm_training_scalar = {BNORM_TRAINING_KERNELS(X)};
#undef X
#undef EXP_ZERO
#undef ALWAYS_INLINE
#undef SIXTH
#undef THIRD

/* ------------------------------------------------------------------------------- dispatch/cpu.c */

#include <stdint.h>

/* Intel SDM volume 1, 14.3 and 15.2: the feature bits alone do not say that the OS saves the
 * registers. */
unsigned bnorm_cpu_x86(unsigned leaf1_ecx, unsigned leaf7_ebx, unsigned xcr0) {
    const unsigned fma = 1u << 12, osxsave = 1u << 27, avx = 1u << 28, f16c = 1u << 29;
    const unsigned avx2 = 1u << 5;
    const unsigned avx512 = 1u << 16 | 1u << 17 | 1u << 30 | 1u << 31; /* F, DQ, BW, VL */
    const unsigned ymm = 0x6, zmm = 0xe6;
    const unsigned need1 = fma | osxsave | avx | f16c;
    unsigned features = BNORM_CPU_SCALAR;
    if ((leaf1_ecx & need1) != need1 || !(leaf7_ebx & avx2))
        return features;
    if ((xcr0 & ymm) == ymm)
        features |= BNORM_CPU_AVX2;
    if ((xcr0 & zmm) == zmm && (leaf7_ebx & avx512) == avx512)
        features |= BNORM_CPU_AVX512;
    return features;
}

/* Of CPUs that nothing is known about. Few have more than 2 MiB of L2; outputs that bypass the caches
 * began to gain between 48 and 96 MiB on a Sapphire Rapids, 1.15 to 1.3 times there. */
static const bnorm_limits usual = {BNORM_LEAST_PREFETCH, BNORM_LEAST_PREFETCH, 48, 256};

#define KIB ((uint64_t)1 << 10)
#define MIB ((uint64_t)1 << 20)

/* Sizes of the L2 and the L3 in bytes, as leaf 4 of Intel and leaf 0x8000001D of AMD list all
 * caches. 0 where they say nothing, or what no CPU has: emulators and virtual machines may answer
 * anything. Which threads share a cache is left out, as virtual machines make it up. */
static void find_caches(bnorm_cpuid *ask, unsigned leaf, uint64_t *l2, uint64_t *l3) {
    uint64_t sizes[8] = {0}; /* by level */
    for (unsigned i = 0; i < 8; i++) {
        unsigned answer[4];
        ask(leaf, i, answer);
        const unsigned type = answer[0] & 31, level = answer[0] >> 5 & 7;
        const unsigned line = (answer[1] & 4095) + 1, partitions = (answer[1] >> 12 & 1023) + 1,
                       ways = (answer[1] >> 22) + 1;
        if (!type)
            break;
        if (type == 3) /* unified */
            sizes[level] = (uint64_t)line * partitions * ways * ((uint64_t)answer[2] + 1);
    }
    const int sane = sizes[2] >= 128 * KIB && sizes[2] <= 16 * MIB && sizes[3] > sizes[2] &&
                     sizes[3] >= 2 * MIB && sizes[3] <= 1024 * MIB;
    *l2 = sane ? sizes[2] : 0;
    *l3 = sane ? sizes[3] : 0;
}

/* In whole MiB, and such that it can be remembered. */
static unsigned limit(uint64_t bytes) {
    const uint64_t least = BNORM_LEAST_PREFETCH, most = 255, n = bytes / MIB;
    return (unsigned)(n < least ? least : n > most ? most : n);
}

/* Strips of rows jump through their tensors, which the L2 must hold: on a Zen 3 of 512 KiB they gained
 * 1.1 to 1.4 times up to 490 KiB and lost up to 2 from 800 KiB on. */
static unsigned strips(uint64_t l2) {
    return (unsigned)(l2 / KIB);
}

/* A core of Zen reaches its L3 at full speed without being told what comes, and a prefetch of what is
 * there costs more than it brings: 1.3 to 2.6 times slower on a Zen 3. Other cores, and strangers on
 * a virtual machine, use the L3, too: from half of it on prefetching gained up to 1.15, in place and
 * out of place. Outputs that bypass the caches made calls of more than twice the L3 0.9 to 1.35
 * times as fast, 1.15 in the middle; with less, the next call finds part of them there. */
static bnorm_limits limits_of_zen(uint64_t l2, uint64_t l3) {
    const bnorm_limits limits = {limit(l3 / 2), limit(l3 / 2), (unsigned)(2 * l3 / MIB),
                                 strips(l2)};
    return limits;
}

/* Intel's L3 is far from its cores. Out of place, 6 times the L2 is where prefetching began to gain
 * on a Cascade Lake (1 MiB, between 4 and 6 MiB), and does not matter on a Sapphire Rapids (2 MiB,
 * equal from 8 MiB to 48). In place the lines are there when they are written: on a Cascade Lake
 * prefetching still lost 1.43 times at 8 MiB.
 * A store that bypasses the caches holds one of a core's few fill buffers until it reaches memory:
 * where there are 12 of them, in the cores of Skylake-X, Cascade Lake and Cooper Lake, all of model
 * 0x55, it lost 1.08 to 1.21 times at 51 MB and gained nowhere. */
static bnorm_limits limits_of_intel(unsigned model, uint64_t l2, uint64_t l3) {
    const bnorm_limits limits = {limit(6 * l2), limit(16 * l2 < l3 / 2 ? 16 * l2 : l3 / 2),
                                 model == 0x55 ? 0 : usual.stream, strips(l2)};
    return limits;
}

bnorm_limits bnorm_limits_x86(bnorm_cpuid *ask) {
    enum { EAX, EBX, ECX, EDX };
    unsigned first[4], one[4], extended[4];
    uint64_t l2, l3;
    ask(0, 0, first);
    ask(1, 0, one);
    ask(0x80000000u, 0, extended);
    /* Models and families of two digits are in two places. */
    unsigned family = one[EAX] >> 8 & 15, model = one[EAX] >> 4 & 15;
    if (family == 15)
        family += one[EAX] >> 20 & 255;
    if (family == 6 || family >= 15)
        model |= one[EAX] >> 12 & 0xf0;
    /* GenuineIntel */
    if (first[EBX] == 0x756e6547u && first[EDX] == 0x49656e69u && first[ECX] == 0x6c65746eu &&
        first[EAX] >= 4 && family == 6) {
        find_caches(ask, 4, &l2, &l3);
        return l2 ? limits_of_intel(model, l2, l3) : usual;
    }
    /* AuthenticAMD, Zen and later */
    if (first[EBX] == 0x68747541u && first[EDX] == 0x69746e65u && first[ECX] == 0x444d4163u &&
        extended[EAX] >= 0x8000001du && family >= 0x17) {
        find_caches(ask, 0x8000001du, &l2, &l3);
        return l3 ? limits_of_zen(l2, l3) : usual;
    }
    return usual;
}

#if BNORM_HAVE_X86

#include <cpuid.h>
#include <stdatomic.h>

/* The instruction is there where the OS says that it uses it. */
static unsigned xcr0_if(unsigned osxsave) {
    unsigned eax = 0, edx;
    if (osxsave)
        __asm__ volatile("xgetbv" : "=a"(eax), "=d"(edx) : "c"(0));
    return eax;
}

static void ask_cpuid(unsigned leaf, unsigned subleaf, unsigned answer[4]) {
    if (!__get_cpuid_count(leaf, subleaf, &answer[0], &answer[1], &answer[2], &answer[3]))
        answer[0] = answer[1] = answer[2] = answer[3] = 0;
}

/* Where each limit begins behind the features: two of up to 255, of up to 4095, and of any size. */
enum {
    PREFETCH_AT = 4,
    IN_PLACE_AT = PREFETCH_AT + 8,
    STREAM_AT = IN_PLACE_AT + 8,
    STRIPS_AT = 32
};

/* Asked once, as a virtual machine takes many microseconds over each cpuid. First calls that race
 * all store the same value, which is not 0. */
static uint64_t this_cpu(void) {
    static _Atomic(uint64_t) known;
    uint64_t cpu = atomic_load_explicit(&known, memory_order_relaxed);
    if (!cpu) {
        unsigned leaf1[4], leaf7[4];
        ask_cpuid(1, 0, leaf1);
        ask_cpuid(7, 0, leaf7);
        const bnorm_limits limits = bnorm_limits_x86(ask_cpuid);
        cpu = bnorm_cpu_x86(leaf1[2], leaf7[1], xcr0_if(leaf1[2] & 1u << 27)) |
              limits.prefetch << PREFETCH_AT | limits.prefetch_in_place << IN_PLACE_AT |
              limits.stream << STREAM_AT | (uint64_t)limits.strips << STRIPS_AT;
        atomic_store_explicit(&known, cpu, memory_order_relaxed);
    }
    return cpu;
}

unsigned bnorm_cpu_features(void) {
    return (unsigned)this_cpu() & ((1u << PREFETCH_AT) - 1);
}

bnorm_limits bnorm_cpu_limits(void) {
    const uint64_t cpu = this_cpu();
    const bnorm_limits limits = {cpu >> PREFETCH_AT & 255, cpu >> IN_PLACE_AT & 255,
                                 cpu >> STREAM_AT & 4095, (unsigned)(cpu >> STRIPS_AT)};
    return limits;
}

#else

unsigned bnorm_cpu_features(void) {
    return BNORM_CPU_SCALAR | (BNORM_HAVE_NEON ? BNORM_CPU_NEON : 0);
}

bnorm_limits bnorm_cpu_limits(void) {
    return usual;
}

#endif
#undef KIB
#undef MIB

/* ------------------------------------------------------------------------------- dispatch/isa.c */

#ifndef _GNU_SOURCE
#endif

#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>

/* The kernel sets, best first. */
static const struct {
    unsigned cpu;
    const bnorm_isa *isa;
} sets[] = {
#if BNORM_HAVE_X86
    {BNORM_CPU_AVX512, &bnorm_isa_avx512},
    {BNORM_CPU_AVX2, &bnorm_isa_avx2},
#endif
#if BNORM_HAVE_NEON
    {BNORM_CPU_NEON, &bnorm_isa_neon},
#endif
    {BNORM_CPU_SCALAR, &bnorm_isa_scalar},
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

/* SLEEF's scalar functions need fma. */
int bnorm_isa_has_sleef(const bnorm_isa *isa) {
    return BNORM_SLEEF &&
           (!BNORM_HAVE_X86 || isa != &bnorm_isa_scalar || (bnorm_cpu_features() & BNORM_CPU_AVX2));
}

const char *bnorm_isa_name(const bnorm_isa *isa) {
    return (isa ? isa : bnorm_isa_best())->name;
}

/* -------------------------------------------------------------------------- dispatch/training.c */

const bnorm_training *bnorm_training_of(const bnorm_isa *isa) {
#if BNORM_HAVE_X86
    if (isa == &bnorm_isa_avx512)
        return &bnorm_training_avx512;
    if (isa == &bnorm_isa_avx2)
        return &bnorm_training_avx2;
#endif
#if BNORM_HAVE_NEON
    if (isa == &bnorm_isa_neon)
        return &bnorm_training_neon;
#endif
    return isa == &bnorm_isa_scalar ? &bnorm_training_scalar : isa->training;
}

/* ----------------------------------------------------------------------------------- src/call.h */

/*
 * The operations as calls: a job says what, exec says how. */
#ifndef BNORM_CALL_H
#define BNORM_CALL_H

/* What is wanted of an operation with statistics. */
enum bnorm_stage {
    BNORM_STAGE_SUMS,   /* whole subtrees of the tables, for a piece of a batch */
    BNORM_STAGE_FINISH, /* ... and what follows from them per channel */
    BNORM_STAGE_ALL,    /* ... and the elements */
    BNORM_STAGE_MAP     /* the elements alone, with coefficients that are given */
};

/* Which images of a batch a call has, and what for. */
typedef struct bnorm_batch {
    enum bnorm_stage stage;
    size_t ghosts;              /* groups of images with save_* arrays of their own; else 1 */
    const bnorm_partial *piece; /* of BNORM_STAGE_SUMS: takes them */
    const float *coefficients;  /* of BNORM_STAGE_MAP: as bnorm_partial_finish_grad gives them */
} bnorm_batch;

static inline size_t bnorm_first_image(const bnorm_batch *batch) {
    return batch->piece ? batch->piece->first + batch->piece->n : 0;
}

/* What a job's function would say, without running it. */
bnorm_status bnorm_check_apply(const bnorm_job *job, const bnorm_exec *exec);
bnorm_status bnorm_check_forward(const bnorm_job *job, const bnorm_exec *exec);
bnorm_status bnorm_check_backward(const bnorm_job *job, const bnorm_exec *exec);

#endif

/* ---------------------------------------------------------------------------------- src/check.h */

/*
 * Checks of options. They run before anything is written. */
#ifndef BNORM_CHECK_H
#define BNORM_CHECK_H

bnorm_status bnorm_check_exec(const bnorm_exec *exec);
bnorm_status bnorm_check_act(const bnorm_act *act, const bnorm_exec *exec);
/* A mask goes with these kinds only; where none is needed, *mask becomes NULL. */
bnorm_status bnorm_check_mask(const bnorm_act *act, unsigned char **mask);
bnorm_status bnorm_check_eps(double eps);
/* Whether var + eps of all c channels is at least 0, or NaN. */
bnorm_status bnorm_check_variance(size_t c, const float *var, double eps);
bnorm_status bnorm_check_running(const bnorm_running *running);
bnorm_status bnorm_check_renorm(const bnorm_renorm *renorm, const bnorm_running *running);
/* What can be checked of weights for any batch, and of one that is not empty. */
bnorm_status bnorm_check_weights(const bnorm_weights *weights);
bnorm_status bnorm_check_weight_values(const bnorm_shape *shape, const bnorm_weights *weights);
bnorm_status bnorm_check_train(const bnorm_train *train, const bnorm_exec *exec);

#endif

/* ------------------------------------------------------------------------------------ src/map.h */

/*
 * Elementwise work: y of forward, dx and dresidual of backward. */
#ifndef BNORM_MAP_H
#define BNORM_MAP_H

typedef struct bnorm_map {
    bnorm_view view;
    bnorm_map_args args; /* of the whole view */
    const bnorm_isa *isa;
    void (*kernel)(const bnorm_map_args *args);
} bnorm_map;

/* Channels of a part that the arrays that stand for an absent scale or shift have room for. */
#define BNORM_DEFAULTS ((size_t)64)

/* When the view is there, and tensors and parameters are in `args`: fills in what follows for the
 * whole view. Images that follow one another without a gap become one. */
void bnorm_plan_map(bnorm_map *map, const bnorm_exec *exec);

/* What the kernels do about the caches (enum bnorm_hint) in a call on so many different tensors of
 * so many bytes altogether; in_place: an output is an input. limits are for BNORM_MEMORY_AUTO. */
unsigned bnorm_hints(bnorm_memory memory, bnorm_limits limits, size_t bytes, size_t tensors,
                     int in_place);

/* The arguments for a part; near: it is in cache. */
void bnorm_take_part(const bnorm_map *map, const bnorm_part *part, int near, bnorm_map_args *args);
void bnorm_run_map(const bnorm_map *map, const bnorm_map_args *args);
/* Without absent parameters. */
void bnorm_map_whole(const bnorm_map *map);
void bnorm_map_part(const bnorm_map *map, const bnorm_part *part, int near);

/* Sets the bits of a mask behind the last element, before the others are written. */
void bnorm_end_mask(const bnorm_shape *shape, const bnorm_bits *mask);

#endif

/* -------------------------------------------------------------------------------- src/fp_mode.h */

/*
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

/* ------------------------------------------------------------------------------------ src/run.h */

/*
 * How a call is run: on which threads, in which floating-point mode, in which tasks. */
#ifndef BNORM_RUN_H
#define BNORM_RUN_H

static inline const bnorm_isa *bnorm_exec_isa(const bnorm_exec *exec) {
    return exec && exec->isa ? exec->isa : bnorm_isa_best();
}

/* Whether a call runs on this thread alone, in its mode. */
static inline int bnorm_is_plain(const bnorm_exec *exec) {
    return !exec || (!exec->parallel && exec->denormals == BNORM_DENORMALS_CALLER);
}

/* Kernels compute on padding along with the elements beside it, which is faster than to leave it
 * out. It may hold anything: exceptions are held meanwhile, those of the elements too. */
#define BNORM_HELD(call, padded)                                                                   \
    do {                                                                                           \
        if (padded) {                                                                              \
            const bnorm_exceptions held = bnorm_hold_exceptions();                                 \
            call;                                                                                  \
            bnorm_release_exceptions(held);                                                        \
        } else {                                                                                   \
            call;                                                                                  \
        }                                                                                          \
    } while (0)

/* task(arg, i) for all i < count, in the mode and on the threads that exec asks for. */
void bnorm_run(const bnorm_exec *exec, void (*task)(void *arg, size_t i), void *arg, size_t count);

/* Tasks to cut so much work into: a whole number per thread, 1 where it is not worth sharing. No
 * result depends on it. A float that is read or written is 1. */
size_t bnorm_parts(const bnorm_exec *exec, size_t work);

/* Work per element of an operation on so many tensors: sums cost more than what they read. */
static inline size_t bnorm_reduce_work(size_t tensors, bnorm_act_kind kind) {
    return 2 + tensors + (kind > BNORM_ACT_HARD_SWISH ? 16 : 0);
}
static inline size_t bnorm_map_work(size_t tensors, bnorm_act_kind kind) {
    return tensors + (kind > BNORM_ACT_HARD_SWISH ? 16 : 0);
}

/* A pass over all channels, which every operation is:
 *   reduce  fills a table of partial results, one entry per block and channel; in any order
 *   finish  merges the entries of a channel in a fixed order and derives its coefficients
 *   map     computes elements with the coefficients
 * The blocks depend on the shape alone; how they are grouped into tasks changes nothing but the
 * time. */
typedef struct bnorm_pass {
    const void *self;       /* first argument of the functions */
    const bnorm_view *view; /* of the statistics */
    const bnorm_blocks *blocks;
    const bnorm_view *map_view;
    size_t tensors;               /* that reduce reads: 1 or 2 */
    size_t reduce_work, map_work; /* per element */
    /* Table entries of block b for channels [channel, channel + channels); NULL = nothing to
     * reduce, and nothing to finish. */
    void (*reduce)(const void *self, size_t b, size_t channel, size_t channels);
    void (*finish)(const void *self, size_t channel, size_t channels);
    /* NULL = nothing. near: the part has just been reduced. */
    void (*map)(const void *self, const bnorm_part *part, int near);
    /* The same for everything, where that is simpler; NULL = as a part. */
    void (*map_whole)(const void *self);
} bnorm_pass;

void bnorm_run_pass(const bnorm_pass *pass, const bnorm_exec *exec);

#endif

/* ----------------------------------------------------------------------------------- src/uses.h */

/*
 * What a call reads and writes. A function names its buffers one after the other, as their data
 * are required, checked and known; then one check says what is wrong with them. */
#ifndef BNORM_USES_H
#define BNORM_USES_H

enum { BNORM_MOST_WRITES = 12, BNORM_MOST_READS = 16 };

/* Outputs that may be the same as an input of their kind; those of no kind overlap nothing. */
enum bnorm_kind { BNORM_KIND_NONE, BNORM_KIND_TENSOR, BNORM_KIND_PARAMETER, BNORM_KIND_WEIGHTS };

/* Memory [begin, end). */
typedef struct bnorm_use {
    uintptr_t begin, end;
    const bnorm_tensor *tensor; /* of BNORM_KIND_TENSOR */
    enum bnorm_kind kind;
} bnorm_use;

typedef struct bnorm_uses {
    const bnorm_shape *shape; /* of the tensors; NULL = only arrays */
    bnorm_view *view;         /* is changed so that it suits all tensors */
    bnorm_status status;      /* the first fault */
    size_t elements;          /* of a dense tensor, most tensors are like which */
    bnorm_tensor dense;
    bnorm_use *begin, *end; /* outputs, from the last one on, then inputs */
    bnorm_use all[BNORM_MOST_WRITES + BNORM_MOST_READS];
} bnorm_uses;

static inline void bnorm_begin_uses(bnorm_uses *uses, const bnorm_shape *shape, bnorm_view *view) {
    uses->shape = shape;
    uses->view = view;
    uses->status = BNORM_OK;
    uses->begin = uses->end = uses->all + BNORM_MOST_WRITES;
    if (shape)
        uses->elements = bnorm_dense_tensor(shape, &uses->dense);
}

/* Member by member, as compilers fill a whole struct aside and copy it. */
static inline void bnorm_set_use(bnorm_use *use, const void *memory, size_t bytes,
                                 enum bnorm_kind kind) {
    use->begin = (uintptr_t)memory;
    use->end = use->begin + bytes;
    use->kind = kind;
}

/* Absent arrays, NULL, meet nothing. */
static inline void bnorm_writes(bnorm_uses *uses, const void *array, size_t bytes,
                                enum bnorm_kind kind) {
    if (array && bytes)
        bnorm_set_use(--uses->begin, array, bytes, kind);
}
static inline void bnorm_reads(bnorm_uses *uses, const void *array, size_t bytes,
                               enum bnorm_kind kind) {
    if (array && bytes)
        bnorm_set_use(uses->end++, array, bytes, kind);
}
/* At least one float. */
static inline void bnorm_writes_floats(bnorm_uses *uses, const float *array, size_t count) {
    if (array)
        bnorm_set_use(--uses->begin, array, count * sizeof *array, BNORM_KIND_NONE);
}
static inline void bnorm_reads_floats(bnorm_uses *uses, const float *array, size_t count) {
    if (array)
        bnorm_set_use(uses->end++, array, count * sizeof *array, BNORM_KIND_NONE);
}

void bnorm_writes_mask(bnorm_uses *uses, const unsigned char *mask);

static inline void bnorm_requires(bnorm_uses *uses, const void *pointer) {
    if (!pointer && !uses->status)
        uses->status = BNORM_NULL_POINTER;
}

/* The workspace, of ws_size bytes of which `need` are used; need 0 = more than there can be. */
void bnorm_uses_workspace(bnorm_uses *uses, const void *ws, size_t ws_size, size_t need);

/* These fill *tensor, which has to stay where it is until the check. */
void bnorm_writes_tensor(bnorm_uses *uses, const bnorm_out *out, bnorm_dtype type,
                         bnorm_tensor *tensor);
/* One that has one value along some axes is the same tensor as no output. */
void bnorm_reads_broadcast(bnorm_uses *uses, const bnorm_in *in, unsigned broadcast,
                           bnorm_tensor *tensor);
static inline void bnorm_reads_tensor(bnorm_uses *uses, const bnorm_in *in, bnorm_tensor *tensor) {
    if (in->data)
        bnorm_reads_broadcast(uses, in, 0, tensor);
    else
        tensor->data = NULL;
}

/* The first fault; BNORM_BAD_OVERLAP where an output meets another buffer. An output tensor may be
 * the same tensor as an input ("in place"), two outputs may not be the same. */
bnorm_status bnorm_check_uses(const bnorm_uses *uses);

/* Says to the compiler that errors are rare. By its own guesses what comes after many checks is
 * hardly ever reached, and is compiled for size. */
static inline int bnorm_failed(bnorm_status status) {
    return __builtin_expect(status != BNORM_OK, 0) != 0;
}

#endif

/* ---------------------------------------------------------------------------------- src/apply.c */

/*
 * Inference: a pass without statistics. The course of a call: check, which names all buffers and
 * fills the arguments of the kernels; then one kernel call for each task. */

/* The parameters of a tensor of S8 or U8. */
static bnorm_status check_quant(bnorm_dtype type, const bnorm_quant *quant) {
    const int least = type == BNORM_S8 ? -128 : 0;
    const float scale = quant->scale;
    return __builtin_isfinite(scale) && scale >= 0 && quant->zero_point >= least &&
                   quant->zero_point <= least + 255
               ? BNORM_OK
               : BNORM_BAD_QUANTIZATION;
}

/* ... with the default filled in. */
static void set_quant(const bnorm_quant *quant, bnorm_tensor *tensor) {
    if (tensor->type <= BNORM_F16)
        return;
    tensor->quant = *quant;
    if (quant->scale == 0)
        tensor->quant.scale = 1;
}

static bnorm_dtype y_type_of(const bnorm_shape *shape, const bnorm_affine *affine) {
    return affine->y_dtype == BNORM_Y_SAME ? shape->dtype
                                           : (bnorm_dtype)(affine->y_dtype - BNORM_Y_F32);
}

/* What is asked of any batch; *mask becomes NULL where none is needed. */
static bnorm_status apply_check_options(const bnorm_shape *shape, const bnorm_exec *exec,
                                  const bnorm_affine *affine, unsigned char **mask) {
    bnorm_status status = bnorm_check_shape(shape);
    if (!status)
        status = bnorm_check_exec(exec);
    if (!status)
        status = bnorm_check_act(&affine->act, exec);
    if (bnorm_failed(status))
        return status;
    if ((unsigned)affine->y_dtype > BNORM_Y_U8)
        return BNORM_BAD_ENUM;
    if (shape->dtype > BNORM_F16)
        status = check_quant(shape->dtype, &affine->x_quant);
    if (!status && shape->dtype > BNORM_F16 && affine->residual.data)
        status = check_quant(shape->dtype, &affine->residual_quant);
    if (!status && y_type_of(shape, affine) > BNORM_F16)
        status = check_quant(y_type_of(shape, affine), &affine->y_quant);
    if (!status && *mask)
        status = bnorm_check_mask(&affine->act, mask);
    return status;
}

/* Where the checks pass, *map says what there is to do; x absent = nothing. */
static bnorm_status plan(const bnorm_shape *shape, const bnorm_in *x, const bnorm_out *y,
                         const bnorm_affine *affine, const bnorm_exec *exec, bnorm_map *map) {
    static const bnorm_affine copy = {0};
    bnorm_map_args *const args = &map->args;
    bnorm_uses uses;
    if (!affine)
        affine = &copy;
    unsigned char *mask = affine->mask;
    bnorm_status status = apply_check_options(shape, exec, affine, &mask);
    args->x.data = NULL;
    if (bnorm_failed(status) || bnorm_is_empty(shape))
        return status;
    const size_t c = shape->c;
    map->view = bnorm_view_of(shape);
    bnorm_begin_uses(&uses, shape, &map->view);
    bnorm_requires(&uses, x->data);
    bnorm_requires(&uses, y->data);
    bnorm_reads_tensor(&uses, x, &args->x);
    bnorm_writes_tensor(&uses, y, y_type_of(shape, affine), &args->out);
    bnorm_reads_tensor(&uses, &affine->residual, &args->argument);
    bnorm_writes_mask(&uses, mask);
    bnorm_reads_floats(&uses, affine->center, c);
    bnorm_reads_floats(&uses, affine->scale, c);
    bnorm_reads_floats(&uses, affine->shift, c);
    status = bnorm_check_uses(&uses);
    if (bnorm_failed(status)) {
        args->x.data = NULL;
        return status;
    }
    set_quant(&affine->x_quant, &args->x);
    set_quant(&affine->residual_quant, &args->argument);
    set_quant(&affine->y_quant, &args->out);
    args->dy.data = args->dresidual.data = NULL;
    bnorm_set_bits(shape, mask, &args->mask);
    args->pre = affine->residual.data ? BNORM_PRE_RESIDUAL : BNORM_PRE_X;
    args->act = affine->act;
    args->center = affine->center;
    args->scale = affine->scale;
    args->shift = affine->shift;
    args->invstd = args->slope = args->offset = NULL;
    bnorm_plan_map(map, exec);
    return BNORM_OK;
}

static void apply_map_whole(const void *self) {
    bnorm_map_whole(self);
}

static void map_part(const void *self, const bnorm_part *part, int near) {
    bnorm_map_part(self, part, near);
}

/* Where a parameter is absent, as many channels at a time as there are defaults. */
static void map_with_defaults(const void *self, const bnorm_part *whole, int near) {
    const bnorm_map *map = self;
    const bnorm_view *view = &map->view;
    const size_t unit = bnorm_counts_groups(view) ? bnorm_unit(view) : 1,
                 step = BNORM_DEFAULTS / unit, count = bnorm_slices(view, whole);
    for (size_t at = 0; at < count; at += step) {
        const bnorm_part part = bnorm_some_slices(view, whole, at, bnorm_min(step, count - at));
        bnorm_map_part(map, &part, near);
    }
}

bnorm_status bnorm_check_apply(const bnorm_job *job, const bnorm_exec *exec) {
    bnorm_map map;
    return plan(job->shape, &job->x, &job->out, job->affine, exec, &map);
}

bnorm_status bnorm_apply(const bnorm_shape *shape, bnorm_in x, bnorm_out y,
                         const bnorm_affine *affine, const bnorm_exec *exec) {
    bnorm_map map;
    const bnorm_status status = plan(shape, &x, &y, affine, exec, &map);
    if (status || !map.args.x.data)
        return status;
    const int complete = map.args.scale && map.args.shift;
    bnorm_end_mask(shape, &map.args.mask);
    if (complete && bnorm_is_plain(exec)) { /* nothing that a pass is for */
        bnorm_map_whole(&map);
        return BNORM_OK;
    }
    const bnorm_pass pass = {
        .self = &map,
        .view = &map.view,
        .map_view = &map.view,
        .tensors = 1,
        .map_work = bnorm_map_work(2, map.args.act.kind),
        .map = complete ? map_part : map_with_defaults,
        .map_whole = complete ? apply_map_whole : NULL,
    };
    bnorm_run_pass(&pass, exec);
    return BNORM_OK;
}

/* ------------------------------------------------------------------------------ src/workspace.h */

/*
 * What lies in the workspace of an operation with statistics. */
#ifndef BNORM_WORKSPACE_H
#define BNORM_WORKSPACE_H

/* Two tables of partial results (blocks x c), two merged results, up to five coefficients and, for
 * variants of the operations, two totals and two parameters per channel and a sum of weights per
 * block. */
typedef struct bnorm_tables {
    double *entries[2];
    double *merged[2];
    double *totals[2];
    float *coefficients[5];
    float *params[2];
    double *weights;
} bnorm_tables;

/* Bytes, wherever in the batch the images are; 0 where that overflows. */
size_t bnorm_workspace_need(const bnorm_view *view, const bnorm_blocks *blocks);
bnorm_tables bnorm_tables_of(const bnorm_view *view, const bnorm_blocks *blocks, void *ws);
/* The entries as the merging kernels take them. */
bnorm_partials bnorm_partials_of(const bnorm_view *view, const bnorm_blocks *blocks,
                                 const bnorm_tables *tables);

/* Floats of an array that is saved for every group of images. */
static inline size_t bnorm_saved_floats(bnorm_uses *uses, const bnorm_batch *batch) {
    size_t saved;
    if (__builtin_mul_overflow(batch->ghosts, uses->shape->c, &saved) ||
        saved > (size_t)PTRDIFF_MAX / sizeof(float)) {
        uses->status = uses->status ? uses->status : BNORM_BAD_SHAPE;
        return 0;
    }
    return saved;
}

/* What n more images may change of a piece. */
static inline size_t bnorm_piece_bytes(const bnorm_partial *piece, size_t n) {
    return bnorm_partial_size(piece->c, piece->n + n);
}

/* What a call with sums writes beside its results: the workspace, and the piece that takes them. */
static inline void bnorm_uses_memory(bnorm_uses *uses, const bnorm_job *job,
                                     const bnorm_batch *batch) {
    const bnorm_partial *piece = batch->piece;
    const bnorm_blocks blocks = bnorm_blocks_of(uses->view, bnorm_first_image(batch));
    bnorm_uses_workspace(uses, job->ws, job->ws_size, bnorm_workspace_need(uses->view, &blocks));
    if (piece)
        bnorm_writes(uses, piece->nodes, bnorm_piece_bytes(piece, job->shape->n), BNORM_KIND_NONE);
}

#endif

/* --------------------------------------------------------------------------------- src/reduce.h */

/*
 * The blocks of a tensor, reduced by the kernels into tables of the workspace. */
#ifndef BNORM_REDUCE_H
#define BNORM_REDUCE_H

typedef struct bnorm_reduction {
    const bnorm_isa *isa;
    const bnorm_training *kernels; /* of the set */
    bnorm_view view;
    bnorm_blocks blocks;
    bnorm_partials partials; /* an entry per block and channel */
    unsigned hints;          /* those of the map, for statistics */
} bnorm_reduction;

/* For images [first, first + n) of a batch. */
static inline bnorm_tables bnorm_plan_reduction(bnorm_reduction *r, const bnorm_view *view,
                                                size_t first, void *ws, const bnorm_isa *isa) {
    r->isa = isa;
    r->kernels = bnorm_training_of(isa);
    r->view = *view;
    r->blocks = bnorm_blocks_of(view, first);
    const bnorm_tables tables = bnorm_tables_of(view, &r->blocks, ws);
    r->partials = bnorm_partials_of(view, &r->blocks, &tables);
    return tables;
}

/* The entry of block b for a channel, in the first and in the second table. */
static inline double *bnorm_entry(const bnorm_reduction *r, size_t table, size_t b,
                                  size_t channel) {
    return r->partials.entries[table] + b * r->partials.stride + channel;
}

/* Sums and M2 of block b of x, for channels [channel, channel + channels). */
void bnorm_reduce_moments(const bnorm_reduction *r, const bnorm_tensor *x, size_t b, size_t channel,
                          size_t channels);
/* Sums of g and g*(x - center). */
void bnorm_reduce_sums(const bnorm_reduction *r, const bnorm_map_args *whole, size_t b,
                       size_t channel, size_t channels);

/* Most elements that a dy with the same lanes is written out to at a time. */
#define BNORM_COPIES ((size_t)BNORM_BLOCK_SPAN)
/* n copies of one element. */
void bnorm_copy_element(const void *element, bnorm_dtype type, size_t n, float *copies);

#endif

/* --------------------------------------------------------------------------------- src/renorm.h */

/*
 * Batch renormalization: gamma*r and gamma*d + beta take the place of gamma and beta. */
#ifndef BNORM_RENORM_H
#define BNORM_RENORM_H

/* Where they are derived from and where they go; gamma and beta NULL = 1 and 0. */
typedef struct bnorm_renorm_args {
    const float *gamma, *beta;
    float *new_gamma, *new_beta;
} bnorm_renorm_args;

/* From the merged statistics and the running ones, which are still those before the update. */
void bnorm_renorm_forward(const bnorm_renorm *renorm, const bnorm_renorm_args *args,
                          const bnorm_coefficient_args *derived, size_t channel, size_t channels);

/* From what forward has saved. */
void bnorm_renorm_backward(const float *r, const float *d, const bnorm_renorm_args *args, size_t c);
/* dgamma = r*sum(g*xh) + d*sum(g) */
void bnorm_renorm_dgamma(const float *r, const float *d, const bnorm_grad_coefficient_args *derived,
                         size_t channel, size_t channels);

#endif

/* -------------------------------------------------------------------------------- src/weights.h */

/*
 * Weights of positions: the statistics of what has a weight, and its share in the gradient. */
#ifndef BNORM_WEIGHTS_H
#define BNORM_WEIGHTS_H

/* The weights of a call; values NULL = none. */
typedef struct bnorm_weighing {
    const float *values; /* of position p of image n: [n*positions + p] */
    double epsilon;
    double *sums;   /* of the weights of each block; NULL = not wanted */
    double total;   /* of all weights */
    double divisor; /* total + epsilon, which takes the place of N*HW */
} bnorm_weighing;

/* Adds up the weights, in exec's mode: fills what follows from values and epsilon. */
void bnorm_weigh(bnorm_weighing *w, const bnorm_reduction *r, const bnorm_exec *exec);

/* Means and weighted M2 of block b of x, and of all blocks. */
void bnorm_weighted_moments_of(const bnorm_reduction *r, const bnorm_weighing *w,
                               const bnorm_tensor *x, size_t b, size_t channel, size_t channels);
void bnorm_weighted_merge(const bnorm_reduction *r, const bnorm_weighing *w, size_t channel,
                          size_t channels, double *mean, double *m2);

/* The coefficients of a position of weight 1. */
void bnorm_weighted_coefficients(const bnorm_reduction *r, const bnorm_weighing *w,
                                 const bnorm_grad_coefficient_args *derived, const float *save_mean,
                                 size_t channel, size_t channels);
/* dx and dresidual. */
void bnorm_weighted_map(const bnorm_map *map, const bnorm_weighing *w, const bnorm_part *part,
                        int near);

#endif

/* ------------------------------------------------------------------------------- src/backward.h */

/*
 * The training backward pass, for batch and for frozen statistics. The course of a call: as that of
 * a forward one, with sums of g and g*(x - mean) for the statistics and dx and dresidual for y.
 * Where the activation's argument is computed anew, its scale and shift come before all that. */
#ifndef BNORM_BACKWARD_H
#define BNORM_BACKWARD_H

typedef struct bnorm_backward_plan {
    enum bnorm_stage stage;
    bnorm_reduction sums;
    bnorm_map map;                       /* x absent = only dgamma and dbeta are to be cleared */
    double *sum_g, *sum_gx;              /* c each: merged */
    double *totals[2];                   /* c each: room of ghost batches */
    bnorm_scale_args prepared;           /* what the sums need already */
    bnorm_grad_coefficient_args derived; /* slope NULL = frozen, or dx not wanted */
    int frozen;
    const float *save_var; /* invstd is computed of it and eps; NULL = invstd is given */
    double eps;
    float *invstd;
    bnorm_weighing weights;
    const float *renorm_r, *renorm_d; /* NULL = none */
    bnorm_renorm_args renormed;
    const float *coefficients; /* of BNORM_STAGE_MAP */
    void *ws;
} bnorm_backward_plan;

/* A job with `grad`. Changes nothing but *b. */
bnorm_status bnorm_plan_backward(const bnorm_job *job, const bnorm_batch *batch,
                                 const bnorm_exec *exec, bnorm_backward_plan *b);
/* What follows from the view, the tensors, the parameters and the number of the first image. */
void bnorm_lay_out_backward(bnorm_backward_plan *b, const bnorm_view *view, size_t first,
                            const bnorm_exec *exec);
void bnorm_run_backward(bnorm_backward_plan *b, const bnorm_exec *exec);

#endif

/* -------------------------------------------------------------------------------- src/channel.h */

/*
 * Arithmetic on one channel's parameters in plain C: in double, with fma where something is added
 * to a product that is not exact, so that the bits do not depend on the compiler. */
#ifndef BNORM_CHANNEL_H
#define BNORM_CHANNEL_H

#include <math.h>
#include <stdint.h>
#include <string.h>

/* Rounds to float; every NaN becomes the one that bnorm writes. */
static inline float bnorm_round(double v) {
    const uint32_t bits = 0xffffffffu;
    float result = (float)v;
    if (v != v)
        memcpy(&result, &bits, sizeof result);
    return result;
}

/* A per-channel parameter, or its default where the array is absent. */
static inline double bnorm_parameter(const float *array, size_t i, double otherwise) {
    return array ? (double)array[i] : otherwise;
}

/* Where an array, or none, has the parameters of channel i. */
static inline const float *bnorm_from(const float *array, size_t i) {
    return array ? array + i : NULL;
}
static inline float *bnorm_to(float *array, size_t i) {
    return array ? array + i : NULL;
}

static inline void bnorm_clear(float *array, size_t c) {
    if (array)
        memset(array, 0, c * sizeof *array);
}

/* gamma/sqrt(var + eps), 0 where var + eps = 0. */
static inline double bnorm_fold_scale(double gamma, float var, double eps) {
    const double variance = (double)var + eps;
    return variance == 0 ? 0 : gamma / sqrt(variance);
}
static inline float bnorm_invstd(float var, double eps) {
    return bnorm_round(bnorm_fold_scale(1, var, eps));
}

/* a*b + c rounded once, for an a that is mostly 0. */
static inline double bnorm_plus_product(double a, double b, double c) {
    return a == 0 ? c : bnorm_fma(a, b, c);
}

/* sum(g*(x - mean)) with the whole mean; times invstd it is sum(g*xh). */
static inline double bnorm_centred_sum(const bnorm_grad_coefficient_args *a, size_t i) {
    return bnorm_plus_product(-bnorm_parameter(a->mean_lo, i, 0), a->sum_g[i], a->sum_gx[i]);
}

#endif

/* ------------------------------------------------------------------------------- src/backward.c */

/* ---------------------------------------------------------------------------------------------- */
/* The plan */

/* How the activation's argument is recovered, or why it can't be. */
static bnorm_status check_argument(const bnorm_grad *grad, enum bnorm_pre *pre) {
    const bnorm_act *act = &grad->act;
    unsigned char *mask = (unsigned char *)(uintptr_t)grad->mask;
    *pre = BNORM_PRE_NONE;
    if (act->kind == BNORM_ACT_IDENTITY)
        return BNORM_OK;
    if ((grad->residual.data != NULL) + (grad->y.data != NULL) + (mask != NULL) > 1)
        return BNORM_BAD_PARAMETER;
    const bnorm_status status = bnorm_check_mask(act, &mask);
    *pre = BNORM_PRE_X;
    if (grad->residual.data)
        *pre = BNORM_PRE_RESIDUAL;
    else if (grad->y.data)
        *pre = BNORM_PRE_Y;
    else if (mask)
        *pre = BNORM_PRE_MASK;
    if (!status && *pre == BNORM_PRE_Y &&
        (act->kind >= BNORM_ACT_HARD_SWISH || (act->kind == BNORM_ACT_LEAKY_RELU && !(act->a > 0))))
        return BNORM_UNSUPPORTED;
    return status;
}

/* What is asked of any batch. */
static bnorm_status backward_check_options(const bnorm_job *job, const bnorm_batch *batch,
                                  const bnorm_exec *exec, enum bnorm_pre *pre) {
    const bnorm_grad *grad = job->grad;
    bnorm_status status = bnorm_check_float_shape(job->shape);
    if (status)
        return status;
    if (!grad)
        return BNORM_NULL_POINTER;
    if ((status = bnorm_check_act(&grad->act, exec)))
        return status;
    if ((grad->renorm_r || grad->renorm_d) && grad->frozen)
        return BNORM_BAD_PARAMETER;
    if (!grad->renorm_r != !grad->renorm_d)
        return BNORM_NULL_POINTER;
    if (!grad->frozen)
        status = bnorm_check_weights(&grad->weights);
    if (!status)
        status = check_argument(grad, pre);
    if (!status)
        status = bnorm_check_exec(exec);
    if (!status &&
        grad->dy_broadcast > (BNORM_BROADCAST_N | BNORM_BROADCAST_C | BNORM_BROADCAST_HW))
        status = BNORM_BAD_ENUM;
    const int weighted = grad->weights.values && !grad->frozen;
    const int variants = grad->renorm_r || weighted;
    if (!status && ((batch->stage != BNORM_STAGE_ALL && variants) ||
                    (grad->dy_broadcast && (weighted || job->shape->c_block > 1))))
        status = BNORM_UNSUPPORTED;
    return status;
}

/* a and b as a tensor of this type holds them. By the scalar set, which raises no OVERFLOW where
 * one becomes infinite. */
static void round_limits(bnorm_act *act, bnorm_dtype type) {
    const float one = 1, zero = 0, limits[2] = {act->a, act->b};
    float held[2], back[2];
    bnorm_map_args args = {.images = 1, .groups = 1, .rows = 1, .lanes = 2, .valid = 2};
    args.pre = BNORM_PRE_X;
    args.scale = &one;
    args.shift = &zero;
    args.x.data = (void *)(uintptr_t)limits;
    args.out.data = held;
    args.out.type = type;
    bnorm_isa_scalar.apply_span(&args);
    args.x.data = held;
    args.x.type = type;
    args.out.data = back;
    args.out.type = BNORM_F32;
    bnorm_isa_scalar.apply_span(&args);
    act->a = back[0];
    act->b = back[1];
}

/* What the kernels take for it: a mask's bits are 0 and 1 on either side of RELU's limit; a y that
 * was rounded is compared with limits that are. */
static bnorm_act act_of(const bnorm_grad *grad, enum bnorm_pre pre, bnorm_dtype type) {
    bnorm_act act = grad->act;
    if (pre == BNORM_PRE_MASK && act.kind == BNORM_ACT_CLAMP)
        act.kind = BNORM_ACT_RELU;
    if (pre == BNORM_PRE_Y && act.kind == BNORM_ACT_CLAMP && type != BNORM_F32)
        round_limits(&act, type);
    return act;
}

static void uses_parameters(bnorm_uses *uses, const bnorm_grad *grad, enum bnorm_stage stage,
                            size_t c, size_t saved) {
    if (stage == BNORM_STAGE_ALL) {
        bnorm_writes_floats(uses, grad->dgamma, c);
        bnorm_writes_floats(uses, grad->dbeta, c);
    }
    bnorm_reads_floats(uses, grad->gamma, c);
    bnorm_reads_floats(uses, grad->beta, c);
    bnorm_reads_floats(uses, grad->save_mean, saved);
    bnorm_reads_floats(uses, grad->save_invstd, saved);
    bnorm_reads_floats(uses, grad->save_invstd ? NULL : grad->save_var, saved);
    bnorm_reads_floats(uses, grad->save_mean_lo, saved);
    bnorm_reads_floats(uses, grad->renorm_r, c);
    bnorm_reads_floats(uses, grad->renorm_d, c);
}

/* What the call reads and writes; fills in the tensors. */
static bnorm_status backward_check_uses(const bnorm_job *job, const bnorm_batch *batch, bnorm_view *view,
                               bnorm_backward_plan *b) {
    const bnorm_shape *shape = job->shape;
    const bnorm_grad *grad = job->grad;
    const int sums_only = b->stage == BNORM_STAGE_SUMS, has_sums = b->stage != BNORM_STAGE_MAP;
    static const bnorm_in none = {NULL, 0, 0};
    static const bnorm_out nowhere = {NULL, 0, 0};
    bnorm_map_args *const args = &b->map.args;
    bnorm_uses uses;
    bnorm_begin_uses(&uses, shape, view);
    bnorm_requires(&uses, job->x.data);
    bnorm_requires(&uses, job->dy.data);
    bnorm_requires(&uses, grad->save_mean);
    bnorm_requires(&uses, has_sums ? job->ws : batch->coefficients);
    const size_t saved = bnorm_saved_floats(&uses, batch);
    if (!uses.status && !grad->save_invstd)
        uses.status = bnorm_check_variance(saved, grad->save_var, grad->eps);
    bnorm_reads_tensor(&uses, &job->x, &args->x);
    bnorm_reads_broadcast(&uses, &job->dy, grad->dy_broadcast, &args->dy);
    bnorm_reads_tensor(&uses,
                       args->pre == BNORM_PRE_RESIDUAL ? &grad->residual
                       : args->pre == BNORM_PRE_Y      ? &grad->y
                                                       : &none,
                       &args->argument);
    bnorm_writes_tensor(&uses, &job->out, shape->dtype, &args->out);
    bnorm_writes_tensor(&uses, sums_only ? &nowhere : &grad->dresidual, shape->dtype,
                        &args->dresidual);
    if (has_sums)
        bnorm_uses_memory(&uses, job, batch);
    if (args->mask.bits)
        bnorm_reads(&uses, args->mask.bits, bnorm_mask_size(shape), BNORM_KIND_NONE);
    bnorm_reads_floats(&uses, batch->coefficients, 5 * shape->c);
    bnorm_reads_floats(&uses, b->weights.values, shape->n * shape->hw);
    uses_parameters(&uses, grad, b->stage, shape->c, saved);
    const bnorm_status status = bnorm_check_uses(&uses);
    return status || !b->weights.values ? status : bnorm_check_weight_values(shape, &grad->weights);
}

/* Member by member, as in forward.c. */
static void backward_take_parameters(const bnorm_grad *grad, bnorm_backward_plan *b) {
    bnorm_map_args *const args = &b->map.args;
    b->prepared.gamma = b->derived.gamma = b->renormed.gamma = grad->gamma;
    b->prepared.beta = b->renormed.beta = grad->beta;
    b->prepared.mean_lo = b->derived.mean_lo = grad->save_mean_lo;
    b->prepared.invstd = grad->save_invstd;
    const int all = b->stage == BNORM_STAGE_ALL;
    b->derived.dgamma = all ? grad->dgamma : NULL;
    b->derived.dbeta = all ? grad->dbeta : NULL;
    b->save_var = grad->save_invstd ? NULL : grad->save_var;
    b->eps = grad->eps;
    b->renorm_r = grad->renorm_r;
    b->renorm_d = grad->renorm_d;
    args->act = act_of(grad, args->pre, args->x.type);
    args->center = grad->save_mean;
}

/* Coefficients alone, as bnorm_partial_finish_grad has given them; they are only read. */
static bnorm_tables given_tables(bnorm_backward_plan *b, const bnorm_view *view) {
    bnorm_tables tables = {.entries = {NULL, NULL}};
    b->sums.view = *view;
    for (size_t i = 0; i < 5; i++)
        tables.coefficients[i] = (float *)(uintptr_t)b->coefficients + i * view->c;
    return tables;
}

void bnorm_lay_out_backward(bnorm_backward_plan *b, const bnorm_view *view, size_t first,
                            const bnorm_exec *exec) {
    bnorm_map_args *const args = &b->map.args;
    const bnorm_tables tables =
        b->stage == BNORM_STAGE_MAP
            ? given_tables(b, view)
            : bnorm_plan_reduction(&b->sums, view, first, b->ws, bnorm_exec_isa(exec));
    b->totals[0] = tables.totals[0];
    b->totals[1] = tables.totals[1];
    b->invstd = tables.coefficients[4];
    if (b->save_var)
        b->prepared.invstd = b->invstd;
    b->prepared.scale = tables.coefficients[0];
    b->prepared.shift = tables.coefficients[1];
    b->derived.sum_g = b->sum_g = tables.merged[0];
    b->derived.sum_gx = b->sum_gx = tables.merged[1];
    b->derived.n = bnorm_values_of(view);
    b->derived.invstd = b->prepared.invstd;
    b->derived.scale = tables.coefficients[0];
    b->derived.slope = b->frozen || !args->out.data ? NULL : tables.coefficients[2];
    b->derived.offset = tables.coefficients[3];
    if (b->renorm_r) {
        b->renormed.new_gamma = tables.params[0];
        b->renormed.new_beta = tables.params[1];
        b->prepared.gamma = b->derived.gamma = tables.params[0];
        b->prepared.beta = tables.params[1];
    }
    args->scale = b->prepared.scale;
    args->shift = b->prepared.shift;
    args->slope = b->derived.slope;
    args->invstd = b->derived.invstd;
    args->offset = args->slope ? b->derived.offset : NULL;
    b->map.view = *view;
    bnorm_plan_map(&b->map, exec);
    const bnorm_training *const kernels = bnorm_training_of(b->map.isa);
    b->map.kernel = view->planes ? kernels->dx_span : kernels->dx_rows;
}

bnorm_status bnorm_plan_backward(const bnorm_job *job, const bnorm_batch *batch,
                                 const bnorm_exec *exec, bnorm_backward_plan *b) {
    const bnorm_shape *shape = job->shape;
    const bnorm_grad *grad = job->grad;
    bnorm_map_args *const args = &b->map.args;
    bnorm_status status = backward_check_options(job, batch, exec, &args->pre);
    args->x.data = NULL;
    if (bnorm_failed(status) || bnorm_is_empty(shape))
        return status;
    bnorm_view view = bnorm_view_of(shape);
    b->stage = batch->stage;
    b->ws = job->ws;
    b->coefficients = batch->coefficients;
    b->frozen = grad->frozen;
    b->weights.values = grad->frozen ? NULL : grad->weights.values;
    b->weights.epsilon = grad->weights.epsilon;
    b->weights.sums = NULL;
    const void *const mask = args->pre == BNORM_PRE_MASK ? grad->mask : NULL;
    bnorm_set_bits(shape, (unsigned char *)(uintptr_t)mask, &args->mask);
    if (bnorm_failed(status = backward_check_uses(job, batch, &view, b))) {
        args->x.data = NULL;
        return status;
    }
    backward_take_parameters(grad, b);
    bnorm_lay_out_backward(b, &view, bnorm_first_image(batch), exec);
    return BNORM_OK;
}

/* ---------------------------------------------------------------------------------------------- */
/* The pass */

static void backward_reduce(const void *self, size_t block, size_t channel, size_t channels) {
    const bnorm_backward_plan *b = self;
    bnorm_reduce_sums(&b->sums, &b->map.args, block, channel, channels);
}

/* A task, so that it runs in exec's mode. */
static void prepare(void *arg, size_t task) {
    const bnorm_backward_plan *b = arg;
    const size_t c = b->map.view.c;
    (void)task;
    for (size_t i = 0; b->save_var && i < c; i++)
        b->invstd[i] = bnorm_invstd(b->save_var[i], b->eps);
    if (b->renorm_r)
        bnorm_renorm_backward(b->renorm_r, b->renorm_d, &b->renormed, c);
    bnorm_training_of(b->map.isa)->scale_shift(&b->prepared, c);
}

static void backward_finish(const void *self, size_t channel, size_t channels) {
    const bnorm_backward_plan *b = self;
    const bnorm_training *const kernels = bnorm_training_of(b->map.isa);
    if (b->stage == BNORM_STAGE_SUMS) {
        kernels->add_blocks(&b->sums.partials, channel, channels, NULL, NULL);
        return;
    }
    kernels->add_blocks(&b->sums.partials, channel, channels, b->sum_g, b->sum_gx);
    if (b->weights.values)
        bnorm_weighted_coefficients(&b->sums, &b->weights, &b->derived, b->map.args.center, channel,
                                    channels);
    else
        kernels->grad_coefficients(&b->derived, channel, channels);
    if (b->renorm_r)
        bnorm_renorm_dgamma(b->renorm_r, b->renorm_d, &b->derived, channel, channels);
}

/* Elements that a dy with the same lanes is written out to at a time. */
#define COPIES ((size_t)512)

/* Part of an image whose dy has one value for all lanes of a row or plane, or of all of them. */
static void map_same_lanes(const bnorm_map *backward_map, const bnorm_part *image, int near) {
    const int planes = backward_map->view.planes;
    const bnorm_tensor *dy = &backward_map->args.dy;
    const size_t count = planes ? image->groups : image->rows,
                 stride = planes ? dy->group_stride : dy->row_stride, at_once = stride ? 1 : count;
    float copies[COPIES];
    bnorm_part part = *image;
    for (size_t i = 0; i < count; i += at_once) {
        *(planes ? &part.group : &part.row) = (planes ? image->group : image->row) + i;
        *(planes ? &part.groups : &part.rows) = at_once;
        for (size_t at = 0; at < image->lanes; at += COPIES) {
            bnorm_map_args args;
            part.lane = image->lane + at;
            part.lanes = bnorm_min(COPIES, image->lanes - at);
            bnorm_take_part(backward_map, &part, near, &args);
            bnorm_copy_element(args.dy.data, args.dy.type, part.lanes, copies);
            args.dy.data = copies;
            bnorm_run_map(backward_map, &args);
        }
    }
}

static __attribute__((noinline)) void map_broadcast(const bnorm_map *backward_map, const bnorm_part *part,
                                                    int near) {
    bnorm_part image = *part;
    for (image.images = 1; image.image < part->image + part->images; image.image++)
        map_same_lanes(backward_map, &image, near);
}

static void backward_map(const void *self, const bnorm_part *part, int near) {
    const bnorm_backward_plan *b = self;
    if (b->map.args.dy.same_lanes)
        map_broadcast(&b->map, part, near);
    else if (b->weights.values)
        bnorm_weighted_map(&b->map, &b->weights, part, near);
    else
        bnorm_map_part(&b->map, part, near);
}

static void backward_map_whole(const void *self) {
    const bnorm_backward_plan *b = self;
    bnorm_map_whole(&b->map);
}

void bnorm_run_backward(bnorm_backward_plan *b, const bnorm_exec *exec) {
    const bnorm_map_args *args = &b->map.args;
    const int has_sums =
        b->stage != BNORM_STAGE_MAP &&
        (b->stage == BNORM_STAGE_SUMS || b->derived.slope || b->derived.dgamma || b->derived.dbeta);
    const bnorm_pass pass = {
        .self = b,
        .view = &b->sums.view,
        .blocks = &b->sums.blocks,
        .map_view = &b->map.view,
        .tensors = 2,
        .reduce_work = bnorm_reduce_work(2, args->act.kind),
        .map_work = bnorm_map_work(3, args->act.kind),
        .reduce = has_sums ? backward_reduce : NULL,
        .finish = backward_finish,
        .map = args->out.data || args->dresidual.data ? backward_map : NULL,
        .map_whole = args->dy.same_lanes || b->weights.values ? NULL : backward_map_whole,
    };
    if (b->weights.values)
        bnorm_weigh(&b->weights, &b->sums, exec);
    if (b->stage != BNORM_STAGE_MAP)
        bnorm_run(exec, prepare, b, 1);
    bnorm_run_pass(&pass, exec);
}

/* ---------------------------------------------------------------------------------------------- */
/* The function */

static const bnorm_batch backward_whole = {.stage = BNORM_STAGE_ALL, .ghosts = 1};

bnorm_status bnorm_check_backward(const bnorm_job *job, const bnorm_exec *exec) {
    bnorm_backward_plan b;
    return bnorm_plan_backward(job, &backward_whole, exec, &b);
}

bnorm_status bnorm_backward(const bnorm_shape *shape, bnorm_in x, bnorm_in dy, bnorm_out dx,
                            const bnorm_grad *grad, void *ws, size_t ws_size,
                            const bnorm_exec *exec) {
    const bnorm_job job = {
        .shape = shape, .x = x, .dy = dy, .out = dx, .grad = grad, .ws = ws, .ws_size = ws_size};
    bnorm_backward_plan b;
    const bnorm_status status = bnorm_plan_backward(&job, &backward_whole, exec, &b);
    if (status)
        return status;
    if (b.map.args.x.data) {
        bnorm_run_backward(&b, exec);
    } else {
        bnorm_clear(grad->dgamma, shape->c);
        bnorm_clear(grad->dbeta, shape->c);
    }
    return BNORM_OK;
}
#undef COPIES

/* ---------------------------------------------------------------------------------- src/check.c */

#include <float.h>

bnorm_status bnorm_check_exec(const bnorm_exec *exec) {
    const int good = !exec || ((unsigned)exec->denormals <= BNORM_DENORMALS_FLUSH &&
                               (unsigned)exec->memory <= BNORM_MEMORY_STREAM);
    return good ? BNORM_OK : BNORM_BAD_ENUM;
}

bnorm_status bnorm_check_act(const bnorm_act *act, const bnorm_exec *exec) {
    const bnorm_act_kind kind = act->kind;
    if ((unsigned)kind > BNORM_ACT_MISH)
        return BNORM_BAD_ENUM;
    if (kind == BNORM_ACT_CLAMP && !__builtin_isless(act->a, act->b))
        return BNORM_BAD_ACTIVATION;
    if ((kind == BNORM_ACT_LEAKY_RELU || kind == BNORM_ACT_ELU) && !__builtin_isfinite(act->a))
        return BNORM_BAD_ACTIVATION;
    if (kind > BNORM_ACT_HARD_SWISH && !bnorm_isa_has_sleef(bnorm_exec_isa(exec)))
        return BNORM_UNSUPPORTED;
    return BNORM_OK;
}

bnorm_status bnorm_check_mask(const bnorm_act *act, unsigned char **mask) {
    if (act->kind == BNORM_ACT_IDENTITY)
        *mask = NULL;
    return *mask && act->kind > BNORM_ACT_LEAKY_RELU ? BNORM_UNSUPPORTED : BNORM_OK;
}

bnorm_status bnorm_check_eps(double eps) {
    return __builtin_isfinite(eps) && eps >= 0 ? BNORM_OK : BNORM_BAD_EPSILON;
}

bnorm_status bnorm_check_variance(size_t c, const float *var, double eps) {
    const bnorm_status status = var ? bnorm_check_eps(eps) : BNORM_NULL_POINTER;
    for (size_t i = 0; !status && i < c; i++)
        if ((double)var[i] + eps < 0)
            return BNORM_BAD_VARIANCE;
    return status;
}

bnorm_status bnorm_check_running(const bnorm_running *running) {
    if ((unsigned)running->variance > BNORM_VARIANCE_SAMPLE)
        return BNORM_BAD_ENUM;
    if ((!running->mean && running->new_mean) || (!running->var && running->new_var))
        return BNORM_NULL_POINTER;
    const int tracked = running->mean || running->var;
    return tracked && !__builtin_isfinite(running->rate) ? BNORM_BAD_RATE : BNORM_OK;
}

bnorm_status bnorm_check_renorm(const bnorm_renorm *renorm, const bnorm_running *running) {
    if (!running->mean || !running->var)
        return BNORM_NULL_POINTER;
    return __builtin_isgreaterequal(renorm->r_min, 0) &&
                   __builtin_islessequal(renorm->r_min, renorm->r_max) &&
                   __builtin_isgreaterequal(renorm->d_max, 0)
               ? BNORM_OK
               : BNORM_BAD_RENORM;
}

bnorm_status bnorm_check_weights(const bnorm_weights *weights) {
    return weights->values ? bnorm_check_eps(weights->epsilon) : BNORM_OK;
}

bnorm_status bnorm_check_weight_values(const bnorm_shape *shape, const bnorm_weights *weights) {
    const size_t n = shape->n * shape->hw;
    int good = 1;
    for (size_t i = 0; i < n; i++)
        good &= weights->values[i] >= 0 && weights->values[i] <= FLT_MAX;
    return good ? BNORM_OK : BNORM_BAD_WEIGHTS;
}

bnorm_status bnorm_check_train(const bnorm_train *train, const bnorm_exec *exec) {
    const bnorm_running *running = &train->running;
    bnorm_status status = bnorm_check_act(&train->act, exec);
    if (!status)
        status = bnorm_check_eps(train->eps);
    if (!status)
        status = bnorm_check_running(running);
    if (!status && train->renorm)
        status = bnorm_check_renorm(train->renorm, running);
    return status ? status : bnorm_check_weights(&train->weights);
}

/* ------------------------------------------------------------------------------- src/describe.c */

/*
 * Tensors of any rank, as other libraries describe them: which of their axes are images and which
 * positions, so that each tensor needs two strides only. */

#include <stdint.h>

/* One way to see the axes. Those of size 1 have no part in it, nor has the channels'. */
typedef struct axis_cut {
    unsigned char order[BNORM_MAX_DIMS]; /* axes, from the outermost on */
    size_t count;
    size_t images; /* so many of them are the images, the rest are the positions */
    size_t channel;
    bnorm_layout layout;
} axis_cut;

/* What stands in the way: the axis, and how many arrays had been looked at. */
typedef struct axis_obstacle {
    size_t arrays, axis;
} axis_obstacle;

static int is_absent(const bnorm_ndarray *arrays, size_t i) {
    return i > 0 && !arrays[i].data && !arrays[i].strides;
}

/* In elements. Strides have been checked, and the shape is not empty. */
static size_t stride_of(const bnorm_axes *axes, const bnorm_ndarray *array, size_t axis) {
    if (array->strides)
        return (size_t)array->strides[axis] / (array->itemsize ? array->itemsize : 1);
    size_t stride = 1;
    for (size_t i = axes->ndim - 1; i > axis; i--)
        stride *= (size_t)axes->sizes[i];
    return stride;
}

/* Fills *cut with the order that the axes have and the samples as its images. Where a size is to
 * blame, *bad is its axis. */
static bnorm_status check_axes(const bnorm_axes *axes, axis_cut *cut, size_t *bad) {
    if (!axes->sizes)
        return BNORM_NULL_POINTER;
    if ((unsigned)axes->dtype > BNORM_U8)
        return BNORM_BAD_ENUM;
    if (axes->ndim < 1 || axes->ndim > BNORM_MAX_DIMS)
        return BNORM_BAD_SHAPE;
    const int ndim = (int)axes->ndim, from_end = axes->channel_axis < 0 ? ndim : 0;
    if (axes->channel_axis < -ndim || axes->channel_axis >= ndim)
        return BNORM_BAD_PARAMETER;
    const int channel = axes->channel_axis + from_end;
    cut->channel = (size_t)channel;
    cut->count = 0;
    /* An empty batch must not hide that other sizes overflow. */
    bnorm_shape all = {.n = 1, .c = 1, .hw = 1};
    for (size_t axis = 0; axis < axes->ndim; axis++) {
        const int64_t size = axes->sizes[axis];
        *bad = axis;
        if (size < 0 || (size == 0 && axis == cut->channel) ||
            __builtin_mul_overflow(all.n, size > 0 ? size : 1, &all.n) || bnorm_check_shape(&all))
            return BNORM_BAD_SHAPE;
        if (axis != cut->channel && size != 1)
            cut->order[cut->count++] = (unsigned char)axis;
    }
    const size_t samples = cut->channel == 0;
    cut->images = samples < axes->ndim && axes->sizes[samples] != 1;
    return BNORM_OK;
}

/* Whether each stride on its own is one that can be expressed. */
static int check_strides(const bnorm_axes *axes, const bnorm_ndarray *array, size_t *bad) {
    for (size_t axis = 0; array->strides && axis < axes->ndim; axis++) {
        const int64_t stride = array->strides[axis];
        *bad = axis;
        /* A negative one exceeds PTRDIFF_MAX, too. */
        if (axes->sizes[axis] > 1 &&
            ((uint64_t)stride > PTRDIFF_MAX || (!stride && !array->may_broadcast) ||
             (array->itemsize && (size_t)stride % array->itemsize)))
            return 0;
    }
    return 1;
}

/* Whether axes [begin, end) of the order are a single one in memory, of this stride: that of the
 * innermost. 0 where all strides are, or where there are none. */
static int fold_axes(const bnorm_axes *axes, const bnorm_ndarray *array, const unsigned char *begin,
                     const unsigned char *end, size_t *stride, size_t *bad) {
    size_t inner = 0;
    *stride = begin < end ? inner = stride_of(axes, array, end[-1]) : 0;
    while (end - begin > 1) {
        const size_t size = (size_t)axes->sizes[*--end], outer = stride_of(axes, array, end[-1]);
        *bad = end[-1];
        if (outer % size || outer / size != inner)
            return 0;
        inner = outer;
    }
    return 1;
}

/* Fills in, out and broadcast of *array; 0, and *bad, where this cut does not allow it. */
static int express(const bnorm_axes *axes, const axis_cut *cut, bnorm_ndarray *array, size_t *bad) {
    const unsigned char *const order = cut->order, *const end = order + cut->count;
    const int has_channels = axes->sizes[cut->channel] > 1;
    const size_t channel = has_channels ? stride_of(axes, array, cut->channel) : 0;
    size_t image, position;
    if (!fold_axes(axes, array, order, order + cut->images, &image, bad) ||
        !fold_axes(axes, array, order + cut->images, end, &position, bad))
        return 0;
    *bad = cut->layout == BNORM_NHWC ? cut->channel : cut->count ? end[-1] : 0;
    if ((cut->layout == BNORM_NHWC ? channel : position) > 1)
        return 0;
    const size_t run = cut->layout == BNORM_NHWC ? position : channel;
    array->in = (bnorm_in){array->data, run, image};
    array->out = (bnorm_out){array->data, run, image};
    array->broadcast = (cut->images && !image ? BNORM_BROADCAST_N : 0u) |
                       (has_channels && !channel ? BNORM_BROADCAST_C : 0u) |
                       (cut->images < cut->count && !position ? BNORM_BROADCAST_HW : 0u);
    return 1;
}

static int all_fit(const bnorm_axes *axes, const axis_cut *cut, const bnorm_ndarray *arrays,
                   size_t count, axis_obstacle *obstacle) {
    for (size_t i = 0; i < count; i++) {
        bnorm_ndarray array = arrays[i];
        size_t axis;
        if (is_absent(arrays, i) || express(axes, cut, &array, &axis))
            continue;
        if (i >= obstacle->arrays) {
            obstacle->arrays = i + 1;
            obstacle->axis = axis;
        }
        return 0;
    }
    return 1;
}

/* The layout to try first: that of the first array, which with one channel or one position, or
 * where it is broadcast, may fit both. */
static bnorm_layout likely_layout(const bnorm_axes *axes, const axis_cut *cut,
                                  const bnorm_ndarray *array) {
    if (cut->images == cut->count)
        return BNORM_NHWC;
    if (axes->sizes[cut->channel] == 1)
        return BNORM_NCHW;
    const size_t channel = stride_of(axes, array, cut->channel);
    const size_t position = stride_of(axes, array, cut->order[cut->count - 1]);
    return channel > 1 && channel > position ? BNORM_NCHW : BNORM_NHWC;
}

/* Tries the order of *cut with its number of images, and then with ever more. */
static int find_cut(const bnorm_axes *axes, axis_cut *cut, const bnorm_ndarray *arrays,
                    size_t count, axis_obstacle *obstacle) {
    for (; cut->images <= cut->count; cut->images++) {
        const bnorm_layout likely = likely_layout(axes, cut, &arrays[0]);
        cut->layout = likely;
        if (all_fit(axes, cut, arrays, count, obstacle))
            return 1;
        cut->layout = likely == BNORM_NHWC ? BNORM_NCHW : BNORM_NHWC;
        if (all_fit(axes, cut, arrays, count, obstacle))
            return 1;
    }
    return 0;
}

/* Sorts the axes of an order, from `first` on, by an array's strides, the largest first. */
static void sort_axes(const bnorm_axes *axes, const bnorm_ndarray *array, axis_cut *cut,
                      size_t first) {
    for (size_t i = first; i < cut->count; i++) {
        const unsigned char axis = cut->order[i];
        const size_t stride = stride_of(axes, array, axis);
        size_t at = i;
        for (; at > first && stride_of(axes, array, cut->order[at - 1]) < stride; at--)
            cut->order[at] = cut->order[at - 1];
        cut->order[at] = axis;
    }
}

/* The first of the orders that all arrays agree on: as given, the samples and then the rest as in
 * memory, all as in memory. Elements of distinct addresses that fit a cut in any order fit one of
 * these: the axes that form one are sorted, and do not interleave with those of the other. */
static int find_order(const bnorm_axes *axes, axis_cut *cut, const bnorm_ndarray *arrays,
                      size_t count, axis_obstacle *obstacle) {
    const size_t samples = cut->images;
    if (find_cut(axes, cut, arrays, count, obstacle))
        return 1;
    if (!axes->any_order)
        return 0;
    cut->images = samples;
    sort_axes(axes, &arrays[0], cut, samples);
    if (find_cut(axes, cut, arrays, count, obstacle))
        return 1;
    cut->images = 0;
    sort_axes(axes, &arrays[0], cut, 0);
    return find_cut(axes, cut, arrays, count, obstacle);
}

static size_t product(const bnorm_axes *axes, const axis_cut *cut, size_t first, size_t end) {
    size_t size = 1;
    for (size_t i = first; i < end; i++)
        size *= (size_t)axes->sizes[cut->order[i]];
    return size;
}

/* bnorm_describe, but for where it writes what is wrong. */
static bnorm_status describe(const bnorm_axes *axes, bnorm_ndarray *arrays, size_t count,
                             bnorm_shape *shape, axis_obstacle *obstacle) {
    axis_cut cut;
    if (!axes || !arrays || !shape)
        return BNORM_NULL_POINTER;
    if (count == 0)
        return BNORM_BAD_SHAPE;
    const bnorm_status status = check_axes(axes, &cut, &obstacle->axis);
    if (status)
        return status;

    bnorm_shape found = {.dtype = axes->dtype, .c = (size_t)axes->sizes[cut.channel]};
    const int is_empty = !product(axes, &cut, 0, cut.count);
    if (is_empty) {
        cut.layout = cut.channel + 1 == axes->ndim ? BNORM_NHWC : BNORM_NCHW;
    } else {
        for (size_t i = 0; i < count; i++) {
            obstacle->arrays = i + 1;
            if (!check_strides(axes, &arrays[i], &obstacle->axis))
                return BNORM_BAD_STRIDE;
        }
        obstacle->arrays = 0;
        if (!find_order(axes, &cut, arrays, count, obstacle))
            return BNORM_BAD_STRIDE;
    }
    found.layout = cut.layout;
    found.n = product(axes, &cut, 0, cut.images);
    found.hw = product(axes, &cut, cut.images, cut.count);
    for (size_t i = 0; i < count; i++) {
        size_t axis;
        arrays[i].in = (bnorm_in){arrays[i].data, 0, 0};
        arrays[i].out = (bnorm_out){arrays[i].data, 0, 0};
        arrays[i].broadcast = 0;
        if (!is_empty && !is_absent(arrays, i))
            express(axes, &cut, &arrays[i], &axis);
    }
    *shape = found;
    return BNORM_OK;
}

bnorm_status bnorm_describe(const bnorm_axes *axes, bnorm_ndarray *arrays, size_t count,
                            bnorm_shape *shape, size_t *bad_array, size_t *bad_axis) {
    axis_obstacle obstacle = {0, 0};
    const bnorm_status status = describe(axes, arrays, count, shape, &obstacle);
    if (status && bad_array)
        *bad_array = obstacle.arrays ? obstacle.arrays - 1 : 0;
    if (status && bad_axis)
        *bad_axis = obstacle.axis;
    return status;
}

/* ----------------------------------------------------------------------------------- src/fold.c */

/*
 * Inference parameters from statistics, alone or folded into the layer before. */

#include <math.h>

static double fold_scale(const float *gamma, const float *var, double eps, size_t i) {
    return bnorm_fold_scale(bnorm_parameter(gamma, i, 1), var[i], eps);
}

static int is_count(size_t c) {
    return c > 0 && c <= (size_t)PTRDIFF_MAX / sizeof(float);
}

bnorm_status bnorm_check_statistics(size_t c, const float *mean, const float *var, double eps,
                                    size_t *channel) {
    if (!is_count(c))
        return BNORM_BAD_SHAPE;
    if (!var)
        return BNORM_NULL_POINTER;
    const bnorm_status status = bnorm_check_eps(eps);
    for (size_t i = 0; !status && i < c; i++) {
        if ((!mean || __builtin_isfinite(mean[i])) && __builtin_isfinite(var[i]) &&
            (double)var[i] + eps >= 0)
            continue;
        if (channel)
            *channel = i;
        return BNORM_BAD_VARIANCE;
    }
    return status;
}

static void reads_parameters(bnorm_uses *uses, const float *const *arrays, size_t count, size_t c) {
    for (size_t i = 0; i < count; i++)
        bnorm_reads(uses, arrays[i], c * sizeof(float), BNORM_KIND_PARAMETER);
}

bnorm_status bnorm_fold(size_t c, const float *gamma, const float *beta, const float *mean,
                        const float *var, double eps, float *scale, float *shift) {
    const float *const inputs[] = {gamma, beta, mean, var};
    bnorm_uses uses;
    if (!is_count(c))
        return BNORM_BAD_SHAPE;
    if (!scale || (shift && !mean))
        return BNORM_NULL_POINTER;
    bnorm_begin_uses(&uses, NULL, NULL);
    uses.status = bnorm_check_variance(c, var, eps);
    bnorm_writes(&uses, scale, c * sizeof *scale, BNORM_KIND_PARAMETER);
    bnorm_writes(&uses, shift, c * sizeof *shift, BNORM_KIND_PARAMETER);
    reads_parameters(&uses, inputs, 4, c);
    const bnorm_status status = bnorm_check_uses(&uses);
    if (status)
        return status;

    for (size_t i = 0; i < c; i++) {
        /* With the rounded scale, x = mean gives beta as exactly as a float can. The product of two
         * floats is exact in double. scale may be mean, which is read first. */
        const float s = bnorm_round(fold_scale(gamma, var, eps, i));
        const double b = shift ? bnorm_parameter(beta, i, 0) - (double)mean[i] * (double)s : 0;
        scale[i] = s;
        if (shift)
            shift[i] = bnorm_round(b);
    }
    return BNORM_OK;
}

/* Weights seen as [outer][out_channel][inner] for each group: the channel of an element follows
 * from its index. */
struct weights_view {
    size_t outer, channels, inner; /* outer*channels*inner elements */
    size_t group_outer;            /* outer indices per group; 0 = all channels in one */
};

static struct weights_view view_of(const bnorm_conv *conv, size_t groups) {
    const size_t o = conv->out_channels, i = conv->in_channels, k = conv->kernel;
    switch (conv->layout) {
    case BNORM_CONV_OIHW:
    case BNORM_CONV_OHWI:
        return (struct weights_view){1, o, i / groups * k, 0};
    case BNORM_CONV_HWIO:
        return (struct weights_view){k * (i / groups), o, 1, 0};
    case BNORM_CONV_IOHW:
        /* Input channels are cut into groups; each has its own o/groups output channels. */
        return (struct weights_view){i, o / groups, k, i / groups};
    case BNORM_CONV_HWOI:
        break;
    }
    return (struct weights_view){k, o, i, 0};
}

/* in_channels*out_channels*kernel elements must be addressable; groups only makes it fewer. */
static int conv_overflows(const bnorm_conv *conv) {
    const size_t most = (size_t)PTRDIFF_MAX / sizeof(float);
    return conv->in_channels > most / conv->out_channels ||
           conv->kernel > most / (conv->in_channels * conv->out_channels);
}

bnorm_status bnorm_fold_conv(const bnorm_conv *conv, const float *gamma, const float *beta,
                             const float *mean, const float *var, double eps, const float *weights,
                             const float *bias, float *out_weights, float *out_bias) {
    if (!conv || !weights || !out_weights || !out_bias)
        return BNORM_NULL_POINTER;
    if ((unsigned)conv->layout > BNORM_CONV_HWOI)
        return BNORM_BAD_ENUM;
    const size_t groups = conv->groups ? conv->groups : 1, c = conv->out_channels;
    if (c == 0 || conv->in_channels == 0 || conv->kernel == 0 || c % groups ||
        conv->in_channels % groups || conv_overflows(conv))
        return BNORM_BAD_SHAPE;
    if (conv->layout == BNORM_CONV_HWOI && groups != 1)
        return BNORM_UNSUPPORTED;
    if (!mean)
        return BNORM_NULL_POINTER;
    const struct weights_view view = view_of(conv, groups);
    const float *const inputs[] = {gamma, beta, mean, var, bias};
    bnorm_uses uses;
    bnorm_begin_uses(&uses, NULL, NULL);
    uses.status = bnorm_check_variance(c, var, eps);
    const size_t bytes = view.outer * view.channels * view.inner * sizeof(float);
    bnorm_writes(&uses, out_weights, bytes, BNORM_KIND_WEIGHTS);
    bnorm_writes(&uses, out_bias, c * sizeof *out_bias, BNORM_KIND_PARAMETER);
    bnorm_reads(&uses, weights, bytes, BNORM_KIND_WEIGHTS);
    reads_parameters(&uses, inputs, 5, c);
    const bnorm_status status = bnorm_check_uses(&uses);
    if (status)
        return status;

    for (size_t outer = 0; outer < view.outer; outer++) {
        const size_t first = view.group_outer ? outer / view.group_outer * view.channels : 0;
        for (size_t o = 0; o < view.channels; o++) {
            const double s = fold_scale(gamma, var, eps, first + o);
            const size_t at = (outer * view.channels + o) * view.inner;
            for (size_t i = 0; i < view.inner; i++)
                out_weights[at + i] = bnorm_round((double)weights[at + i] * s);
        }
    }
    for (size_t o = 0; o < c; o++) {
        const double s = fold_scale(gamma, var, eps, o);
        const double b = bnorm_parameter(bias, o, 0) - (double)mean[o];
        out_bias[o] = bnorm_round(bnorm_fma(b, s, bnorm_parameter(beta, o, 0)));
    }
    return BNORM_OK;
}

/* -------------------------------------------------------------------------------- src/forward.h */

/*
 * Batch statistics and the training forward pass. The course of a call: bnorm_plan_forward checks
 * it and says in a bnorm_forward what there is to do; nothing has been written so far. Then
 * bnorm_run_forward runs the pass: blocks are reduced to sums and M2, these are merged along the
 * tree, coefficients follow from them, y from those. */
#ifndef BNORM_FORWARD_H
#define BNORM_FORWARD_H

typedef struct bnorm_forward {
    enum bnorm_stage stage;
    bnorm_reduction sums;
    bnorm_map map;     /* x and, for BNORM_STAGE_ALL, the others; x absent = nothing to do */
    double *mean, *m2; /* c each: merged */
    double *totals[2]; /* c each: room of ghost batches */
    bnorm_coefficient_args derived;
    bnorm_running running;
    bnorm_weighing weights;
    const bnorm_renorm *renorm; /* NULL = none */
    bnorm_renorm_args renormed;
    void *ws;
} bnorm_forward;

/* A job with `train`, of which the running statistics of bnorm_moments are a case: mean and var
 * that take the values of the batch. Changes nothing but *f. */
bnorm_status bnorm_plan_forward(const bnorm_job *job, const bnorm_batch *batch,
                                const bnorm_exec *exec, bnorm_forward *f);
/* What follows from the view, the tensors, the parameters and the number of the first image. */
void bnorm_lay_out_forward(bnorm_forward *f, const bnorm_view *view, size_t first,
                           const bnorm_exec *exec);
void bnorm_run_forward(bnorm_forward *f, const bnorm_exec *exec);

/* The arrays of training's options; those that are saved have `saved` floats. */
void bnorm_uses_train(bnorm_uses *uses, const bnorm_train *train, size_t c, size_t saved);

#endif

/* -------------------------------------------------------------------------------- src/running.h */

/*
 * Running statistics, as training and functions of their own update them. */
#ifndef BNORM_RUNNING_H
#define BNORM_RUNNING_H

/* Of M2, in the running variance. */
double bnorm_running_divisor(const bnorm_running *running, double n);
/* What an empty batch leaves of running statistics that go elsewhere. */
void bnorm_keep_running(const bnorm_running *running, size_t c);
/* Where an array of running statistics is updated. */
static inline float *bnorm_updated(float *running, float *elsewhere) {
    return elsewhere ? elsewhere : running;
}
/* What running statistics read and write. */
void bnorm_uses_running(bnorm_uses *uses, const bnorm_running *running, size_t c);

#endif

/* -------------------------------------------------------------------------------- src/forward.c */

/* ---------------------------------------------------------------------------------------------- */
/* The plan */

/* Without weights values are counted, with them their sum and epsilon are. */
static void count_values(bnorm_forward *f, double n, double sample_n) {
    f->derived.n = n;
    f->derived.divisor = f->running.variance == BNORM_VARIANCE_POPULATION
                             ? n
                             : bnorm_running_divisor(&f->running, sample_n);
}

void bnorm_lay_out_forward(bnorm_forward *f, const bnorm_view *view, size_t first,
                           const bnorm_exec *exec) {
    bnorm_map_args *const args = &f->map.args;
    const bnorm_tables tables =
        bnorm_plan_reduction(&f->sums, view, first, f->ws, bnorm_exec_isa(exec));
    const double n = bnorm_values_of(view);
    f->totals[0] = tables.totals[0];
    f->totals[1] = tables.totals[1];
    f->weights.sums = tables.weights;
    f->mean = tables.merged[0];
    f->m2 = tables.merged[1];
    f->derived.mean = f->mean;
    f->derived.m2 = f->m2;
    count_values(f, n, n);
    f->map.view = *view;
    if (f->stage < BNORM_STAGE_ALL) {
        f->derived.scale = NULL; /* running statistics only */
        return;
    }
    if (f->renorm) {
        f->renormed.new_gamma = tables.params[0];
        f->renormed.new_beta = tables.params[1];
        f->derived.gamma = tables.params[0];
        f->derived.beta = tables.params[1];
    }
    args->center = f->derived.center = tables.coefficients[0];
    args->scale = f->derived.scale = tables.coefficients[1];
    args->shift = f->derived.shift = tables.coefficients[2];
    bnorm_plan_map(&f->map, exec);
    f->sums.hints = args->hints;
}

void bnorm_uses_train(bnorm_uses *uses, const bnorm_train *train, size_t c, size_t saved) {
    const bnorm_renorm *const renorm = train->renorm;
    bnorm_uses_running(uses, &train->running, c);
    bnorm_writes_floats(uses, train->save_mean, saved);
    bnorm_writes_floats(uses, train->save_invstd, saved);
    bnorm_writes_floats(uses, train->save_mean_lo, saved);
    bnorm_writes_floats(uses, train->save_var, saved);
    if (renorm) {
        bnorm_writes_floats(uses, renorm->save_r, c);
        bnorm_writes_floats(uses, renorm->save_d, c);
    }
    bnorm_reads_floats(uses, train->gamma, c);
    bnorm_reads_floats(uses, train->beta, c);
}

/* What the call reads and writes; fills in the tensors. */
static bnorm_status forward_check_uses(const bnorm_job *job, const bnorm_batch *batch, bnorm_view *view,
                               bnorm_forward *f) {
    const bnorm_shape *shape = job->shape;
    const bnorm_train *train = job->train;
    static const bnorm_in none = {NULL, 0, 0};
    const int all = f->stage == BNORM_STAGE_ALL;
    const size_t n = shape->n * shape->hw;
    bnorm_map_args *const args = &f->map.args;
    bnorm_uses uses;
    bnorm_begin_uses(&uses, shape, view);
    bnorm_requires(&uses, job->x.data);
    bnorm_requires(&uses, all ? job->out.data : job->x.data);
    bnorm_requires(&uses, job->ws);
    bnorm_reads_tensor(&uses, &job->x, &args->x);
    if (all)
        bnorm_writes_tensor(&uses, &job->out, shape->dtype, &args->out);
    bnorm_reads_tensor(&uses, all ? &train->residual : &none, &args->argument);
    const size_t saved = bnorm_saved_floats(&uses, batch);
    bnorm_uses_memory(&uses, job, batch);
    bnorm_writes_mask(&uses, args->mask.bits);
    bnorm_reads_floats(&uses, train->weights.values, n);
    bnorm_uses_train(&uses, train, shape->c, saved);
    bnorm_status status = bnorm_check_uses(&uses);
    if (!status && train->weights.values)
        status = bnorm_check_weight_values(shape, &train->weights);
    if (!status && train->renorm)
        status = bnorm_check_variance(shape->c, train->running.var, train->eps);
    return status;
}

/* Member by member: a compiler fills a whole struct aside and copies it, which takes as long as a
 * small batch. */
static void forward_take_parameters(const bnorm_train *train, bnorm_forward *f) {
    const bnorm_running *const running = &train->running;
    bnorm_map_args *const args = &f->map.args;
    f->running = *running;
    f->weights.values = train->weights.values;
    f->weights.epsilon = train->weights.epsilon;
    f->renorm = train->renorm;
    f->renormed.gamma = f->derived.gamma = train->gamma;
    f->renormed.beta = f->derived.beta = train->beta;
    f->derived.eps = train->eps;
    f->derived.save_mean = train->save_mean;
    f->derived.save_mean_lo = train->save_mean_lo;
    f->derived.save_invstd = train->save_invstd;
    f->derived.save_var = train->save_var;
    f->derived.running_mean = running->mean;
    f->derived.running_var = running->var;
    f->derived.new_mean = bnorm_updated(running->mean, running->new_mean);
    f->derived.new_var = bnorm_updated(running->var, running->new_var);
    f->derived.rate = running->rate;
    args->dy.data = args->dresidual.data = NULL;
    args->pre = args->argument.data ? BNORM_PRE_RESIDUAL : BNORM_PRE_X;
    args->act = train->act;
    args->invstd = args->slope = args->offset = NULL;
}

bnorm_status bnorm_plan_forward(const bnorm_job *job, const bnorm_batch *batch,
                                const bnorm_exec *exec, bnorm_forward *f) {
    const bnorm_shape *shape = job->shape;
    const bnorm_train *train = job->train;
    bnorm_status status = bnorm_check_float_shape(shape);
    f->map.args.x.data = NULL;
    if (bnorm_failed(status))
        return status;
    if (!train)
        return BNORM_NULL_POINTER;
    unsigned char *mask = train->mask;
    status = bnorm_check_train(train, exec);
    if (!status)
        status = bnorm_check_mask(&train->act, &mask);
    if (!status)
        status = bnorm_check_exec(exec);
    if (bnorm_failed(status) || bnorm_is_empty(shape))
        return status;
    bnorm_view view = bnorm_view_of(shape);
    f->stage = batch->stage;
    f->ws = job->ws;
    bnorm_set_bits(shape, mask, &f->map.args.mask);
    if (bnorm_failed(status = forward_check_uses(job, batch, &view, f))) {
        f->map.args.x.data = NULL;
        return status;
    }
    forward_take_parameters(train, f);
    bnorm_lay_out_forward(f, &view, bnorm_first_image(batch), exec);
    return BNORM_OK;
}

/* ---------------------------------------------------------------------------------------------- */
/* The pass */

static void forward_reduce(const void *self, size_t b, size_t channel, size_t channels) {
    const bnorm_forward *f = self;
    if (f->weights.values)
        bnorm_weighted_moments_of(&f->sums, &f->weights, &f->map.args.x, b, channel, channels);
    else
        bnorm_reduce_moments(&f->sums, &f->map.args.x, b, channel, channels);
}

static void forward_finish(const void *self, size_t channel, size_t channels) {
    const bnorm_forward *f = self;
    const bnorm_training *const kernels = f->sums.kernels;
    if (f->stage == BNORM_STAGE_SUMS) {
        kernels->merge(&f->sums.partials, channel, channels, NULL, NULL);
        return;
    }
    if (f->weights.values)
        bnorm_weighted_merge(&f->sums, &f->weights, channel, channels, f->mean, f->m2);
    else
        kernels->merge(&f->sums.partials, channel, channels, f->mean, f->m2);
    if (f->renorm)
        bnorm_renorm_forward(f->renorm, &f->renormed, &f->derived, channel, channels);
    kernels->coefficients(&f->derived, channel, channels);
}

static void forward_map(const void *self, const bnorm_part *part, int near) {
    const bnorm_forward *f = self;
    bnorm_map_part(&f->map, part, near);
}

static void forward_map_whole(const void *self) {
    const bnorm_forward *f = self;
    bnorm_map_whole(&f->map);
}

void bnorm_run_forward(bnorm_forward *f, const bnorm_exec *exec) {
    const bnorm_pass pass = {
        .self = f,
        .view = &f->sums.view,
        .blocks = &f->sums.blocks,
        .map_view = &f->map.view,
        .tensors = 1,
        .reduce_work = bnorm_reduce_work(1, BNORM_ACT_IDENTITY),
        .map_work = bnorm_map_work(2, f->map.args.act.kind),
        .reduce = forward_reduce,
        .finish = forward_finish,
        .map = f->stage == BNORM_STAGE_ALL ? forward_map : NULL,
        .map_whole = forward_map_whole,
    };
    if (f->weights.values) {
        bnorm_weigh(&f->weights, &f->sums, exec);
        count_values(f, f->weights.divisor, f->weights.total);
        if (f->derived.n == 0 && f->stage == BNORM_STAGE_ALL) /* there is nothing to be averaged */
            f->derived.rate = 0;
    }
    bnorm_run_pass(&pass, exec);
}

/* ---------------------------------------------------------------------------------------------- */
/* The functions */

static const bnorm_batch forward_whole = {.stage = BNORM_STAGE_ALL, .ghosts = 1};
static const bnorm_batch statistics = {.stage = BNORM_STAGE_FINISH, .ghosts = 1};

/* mean and var of bnorm_moments are running statistics that take the batch's values. */
static bnorm_train as_running(float *mean, float *var, const bnorm_weights *weights) {
    bnorm_train train = {.running = {.mean = mean, .var = var, .rate = 1}};
    if (weights)
        train.weights = *weights;
    return train;
}

bnorm_status bnorm_check_forward(const bnorm_job *job, const bnorm_exec *exec) {
    bnorm_forward f;
    if (job->op == BNORM_OP_FORWARD_TRAIN)
        return bnorm_plan_forward(job, &forward_whole, exec, &f);
    const bnorm_train train = as_running(job->mean, job->var, NULL);
    bnorm_job moments = *job;
    moments.train = &train;
    return bnorm_plan_forward(&moments, &statistics, exec, &f);
}

bnorm_status bnorm_moments(const bnorm_shape *shape, bnorm_in x, float *mean, float *var, void *ws,
                           size_t ws_size, const bnorm_exec *exec) {
    return bnorm_weighted_moments(shape, x, NULL, mean, var, ws, ws_size, exec);
}

bnorm_status bnorm_weighted_moments(const bnorm_shape *shape, bnorm_in x,
                                    const bnorm_weights *weights, float *mean, float *var, void *ws,
                                    size_t ws_size, const bnorm_exec *exec) {
    const bnorm_train train = as_running(mean, var, weights);
    const bnorm_job job = {.shape = shape, .x = x, .train = &train, .ws = ws, .ws_size = ws_size};
    bnorm_forward f;
    const bnorm_status status = bnorm_plan_forward(&job, &statistics, exec, &f);
    if (!status && f.map.args.x.data)
        bnorm_run_forward(&f, exec);
    return status;
}

bnorm_status bnorm_forward_train(const bnorm_shape *shape, bnorm_in x, bnorm_out y,
                                 const bnorm_train *train, void *ws, size_t ws_size,
                                 const bnorm_exec *exec) {
    const bnorm_job job = {
        .shape = shape, .x = x, .out = y, .train = train, .ws = ws, .ws_size = ws_size};
    bnorm_forward f;
    const bnorm_status status = bnorm_plan_forward(&job, &forward_whole, exec, &f);
    if (status)
        return status;
    if (f.map.args.x.data) {
        bnorm_end_mask(shape, &f.map.args.mask);
        bnorm_run_forward(&f, exec);
    } else {
        bnorm_keep_running(&train->running, shape->c);
    }
    return BNORM_OK;
}

/* ---------------------------------------------------------------------------------- src/ghost.c */

/*
 * Ghost batches: one plan for the whole batch, of which each group is a part, and a pass per group,
 * one after the other. */

static bnorm_status check_ghost(const bnorm_shape *shape, const bnorm_ghost *ghost) {
    if (!shape || !ghost)
        return BNORM_NULL_POINTER;
    if ((unsigned)ghost->order > BNORM_GHOST_INTERLEAVED ||
        (unsigned)ghost->running > BNORM_GHOST_SUCCESSIVE)
        return BNORM_BAD_ENUM;
    return ghost->groups == 0 || shape->n % ghost->groups ? BNORM_BAD_SHAPE : BNORM_OK;
}

/* A mask that is not ignored. */
static int has_mask(const void *mask, const bnorm_act *act) {
    return mask && act->kind != BNORM_ACT_IDENTITY;
}

/* The images of one group, in the tensors of all of them. */
static bnorm_view take_group(const bnorm_shape *shape, const bnorm_ghost *ghost, size_t k,
                             const bnorm_view *whole, bnorm_map_args *args) {
    const int interleaved = ghost->order == BNORM_GHOST_INTERLEAVED;
    const size_t n = shape->n / ghost->groups, first = interleaved ? k : k * n,
                 step = interleaved ? ghost->groups : 1;
    bnorm_tensor *const tensors[] = {&args->x, &args->dy, &args->argument, &args->out,
                                     &args->dresidual};
    bnorm_view view = *whole;
    for (size_t i = 0; i < sizeof tensors / sizeof tensors[0]; i++)
        bnorm_take_samples(whole, tensors[i], first, step);
    if (view.leaves)
        view.rows = view.positions = n;
    else
        view.images = n;
    return view;
}

/* ---------------------------------------------------------------------------------------------- */
/* Forward */

/* Two sums per channel over the groups, in double: tasks, so that they run in exec's mode. */
struct averaging {
    const bnorm_forward *f;
    const bnorm_running *running;
    size_t group;
};

/* The first group is not added to 0, so that one group has the bits of a plain call. */
static void add_statistics(void *arg, size_t task) {
    const struct averaging *job = arg;
    const bnorm_forward *f = job->f;
    (void)task;
    for (size_t i = 0; i < f->map.view.c; i++) {
        const double mean = f->mean[i], var = f->m2[i] / f->derived.divisor;
        f->totals[0][i] = job->group ? f->totals[0][i] + mean : mean;
        f->totals[1][i] = job->group ? f->totals[1][i] + var : var;
    }
}

static void update_running(void *arg, size_t task) {
    const struct averaging *job = arg;
    const bnorm_forward *f = job->f;
    const bnorm_running *running = job->running;
    const double groups = (double)(job->group + 1);
    (void)task;
    for (size_t i = 0; i < f->map.view.c; i++) {
        f->totals[0][i] /= groups;
        f->totals[1][i] /= groups;
    }
    const bnorm_coefficient_args args = {
        .mean = f->totals[0],
        .m2 = f->totals[1],
        .n = 1,
        .running_mean = running->mean,
        .running_var = running->var,
        .new_mean = bnorm_updated(running->mean, running->new_mean),
        .new_var = bnorm_updated(running->var, running->new_var),
        .rate = running->rate,
        .divisor = 1,
    };
    f->sums.kernels->coefficients(&args, 0, f->map.view.c);
}

/* Group k of a planned call, all of whose images share the workspace. */
static bnorm_forward forward_group(const bnorm_forward *all, const bnorm_shape *shape,
                                   const bnorm_ghost *ghost, size_t k, const bnorm_exec *exec) {
    const size_t at = k * shape->c;
    const bnorm_running *const running = &all->running;
    bnorm_forward group = *all;
    bnorm_coefficient_args *const derived = &group.derived;
    derived->save_mean = bnorm_to(derived->save_mean, at);
    derived->save_mean_lo = bnorm_to(derived->save_mean_lo, at);
    derived->save_invstd = bnorm_to(derived->save_invstd, at);
    derived->save_var = bnorm_to(derived->save_var, at);
    if (ghost->running == BNORM_GHOST_AVERAGE) {
        derived->new_mean = derived->new_var = NULL;
    } else if (k > 0) {
        derived->running_mean = bnorm_updated(running->mean, running->new_mean);
        derived->running_var = bnorm_updated(running->var, running->new_var);
    }
    const bnorm_view view = take_group(shape, ghost, k, &all->sums.view, &group.map.args);
    bnorm_lay_out_forward(&group, &view, 0, exec);
    return group;
}

bnorm_status bnorm_forward_train_ghost(const bnorm_shape *shape, bnorm_in x, bnorm_out y,
                                       const bnorm_train *train, const bnorm_ghost *ghost, void *ws,
                                       size_t ws_size, const bnorm_exec *exec) {
    const bnorm_job job = {
        .shape = shape, .x = x, .out = y, .train = train, .ws = ws, .ws_size = ws_size};
    bnorm_forward all;
    bnorm_status status = check_ghost(shape, ghost);
    if (!status) {
        const bnorm_batch batch = {.stage = BNORM_STAGE_ALL, .ghosts = ghost->groups};
        status = bnorm_plan_forward(&job, &batch, exec, &all);
    }
    if (status)
        return status;
    if (has_mask(train->mask, &train->act) || train->weights.values || train->renorm)
        return BNORM_UNSUPPORTED;
    if (bnorm_is_empty(shape)) {
        bnorm_keep_running(&train->running, shape->c);
        return BNORM_OK;
    }
    const int tracked = train->running.mean || train->running.var;
    const int averaged = ghost->running == BNORM_GHOST_AVERAGE && tracked;
    for (size_t k = 0; k < ghost->groups; k++) {
        bnorm_forward group = forward_group(&all, shape, ghost, k, exec);
        struct averaging averaging = {&group, &train->running, k};
        bnorm_run_forward(&group, exec);
        if (averaged)
            bnorm_run(exec, add_statistics, &averaging, 1);
        if (averaged && k + 1 == ghost->groups)
            bnorm_run(exec, update_running, &averaging, 1);
    }
    return BNORM_OK;
}

/* ---------------------------------------------------------------------------------------------- */
/* Backward */

struct gradient_sums {
    const bnorm_backward_plan *b;
    size_t group;
};

/* dgamma and dbeta. */
static void add_gradients(void *arg, size_t task) {
    const struct gradient_sums *job = arg;
    const bnorm_grad_coefficient_args *derived = &job->b->derived;
    double *const gx = job->b->totals[0], *const g = job->b->totals[1];
    (void)task;
    for (size_t i = 0; i < job->b->map.view.c; i++) {
        const double centred = bnorm_centred_sum(derived, i), invstd = (double)derived->invstd[i];
        gx[i] = job->group ? bnorm_fma(centred, invstd, gx[i]) : centred * invstd;
        g[i] = job->group ? g[i] + derived->sum_g[i] : derived->sum_g[i];
        if (derived->dgamma)
            derived->dgamma[i] = bnorm_round(gx[i]);
        if (derived->dbeta)
            derived->dbeta[i] = bnorm_round(g[i]);
    }
}

static bnorm_backward_plan backward_group(const bnorm_backward_plan *all, const bnorm_shape *shape,
                                          const bnorm_ghost *ghost, size_t k,
                                          const bnorm_exec *exec) {
    const size_t at = k * shape->c;
    bnorm_backward_plan group = *all;
    group.map.args.center = bnorm_from(group.map.args.center, at);
    group.save_var = bnorm_from(group.save_var, at);
    group.prepared.invstd = bnorm_from(group.prepared.invstd, at);
    group.prepared.mean_lo = group.derived.mean_lo = bnorm_from(group.derived.mean_lo, at);
    const bnorm_view view = take_group(shape, ghost, k, &all->sums.view, &group.map.args);
    bnorm_lay_out_backward(&group, &view, 0, exec);
    return group;
}

bnorm_status bnorm_backward_ghost(const bnorm_shape *shape, bnorm_in x, bnorm_in dy, bnorm_out dx,
                                  const bnorm_grad *grad, const bnorm_ghost *ghost, void *ws,
                                  size_t ws_size, const bnorm_exec *exec) {
    const bnorm_job job = {
        .shape = shape, .x = x, .dy = dy, .out = dx, .grad = grad, .ws = ws, .ws_size = ws_size};
    bnorm_backward_plan all;
    bnorm_status status = check_ghost(shape, ghost);
    if (!status) {
        const bnorm_batch batch = {.stage = BNORM_STAGE_ALL, .ghosts = ghost->groups};
        status = bnorm_plan_backward(&job, &batch, exec, &all);
    }
    if (status)
        return status;
    if (has_mask(grad->mask, &grad->act) || (grad->weights.values && !grad->frozen) ||
        grad->renorm_r)
        return BNORM_UNSUPPORTED;
    if (bnorm_is_empty(shape)) /* clears dgamma and dbeta */
        return bnorm_backward(shape, x, dy, dx, grad, ws, ws_size, exec);
    for (size_t k = 0; k < ghost->groups; k++) {
        bnorm_backward_plan group = backward_group(&all, shape, ghost, k, exec);
        struct gradient_sums sums = {&group, k};
        bnorm_run_backward(&group, exec);
        if (group.derived.dgamma || group.derived.dbeta)
            bnorm_run(exec, add_gradients, &sums, 1);
    }
    return BNORM_OK;
}

/* ----------------------------------------------------------------------------------- src/jobs.c */

/*
 * Many small batch norms in one call: all are checked by their own functions, then shared out by
 * their work, each run by its own function on the thread that takes it. */

/* What a job's own function would say, without running it. */
static bnorm_status check_job(const bnorm_job *job, const bnorm_exec *exec) {
    switch (job->op) {
    case BNORM_OP_APPLY:
        return bnorm_check_apply(job, exec);
    case BNORM_OP_MOMENTS:
    case BNORM_OP_FORWARD_TRAIN:
        return bnorm_check_forward(job, exec);
    case BNORM_OP_BACKWARD:
        return bnorm_check_backward(job, exec);
    }
    return BNORM_BAD_ENUM;
}

static void run_job(const bnorm_job *job, const bnorm_exec *exec) {
    switch (job->op) {
    case BNORM_OP_APPLY:
        bnorm_apply(job->shape, job->x, job->out, job->affine, exec);
        break;
    case BNORM_OP_MOMENTS:
        bnorm_moments(job->shape, job->x, job->mean, job->var, job->ws, job->ws_size, exec);
        break;
    case BNORM_OP_FORWARD_TRAIN:
        bnorm_forward_train(job->shape, job->x, job->out, job->train, job->ws, job->ws_size, exec);
        break;
    case BNORM_OP_BACKWARD:
        bnorm_backward(job->shape, job->x, job->dy, job->out, job->grad, job->ws, job->ws_size,
                       exec);
        break;
    }
}

/* Of a call, beside its elements. */
#define JOB_WORK ((size_t)2048)

static size_t work_of(const bnorm_job *job) {
    static const size_t per_element[] = {
        [BNORM_OP_MOMENTS] = 3,
        [BNORM_OP_FORWARD_TRAIN] = 5,
        [BNORM_OP_BACKWARD] = 7,
        [BNORM_OP_APPLY] = 2,
    };
    return JOB_WORK + job->shape->n * job->shape->c * job->shape->hw * per_element[job->op];
}

struct batch {
    const bnorm_job *jobs;
    size_t count;
    size_t work, parts; /* of all jobs together; tasks */
    bnorm_exec exec;    /* of one job: on the thread that took it */
};

/* The jobs whose first element falls into this part. */
static void run_part(void *arg, size_t i) {
    const struct batch *batch = arg;
    const size_t share = batch->work / batch->parts, last = i + 1 == batch->parts;
    size_t at = 0;
    for (size_t k = 0; k < batch->count; k++) {
        if (at >= i * share && (last || at < (i + 1) * share))
            run_job(&batch->jobs[k], &batch->exec);
        at += work_of(&batch->jobs[k]);
    }
}

bnorm_status bnorm_run_jobs(const bnorm_job *jobs, size_t count, size_t *failed,
                            const bnorm_exec *exec) {
    struct batch batch = {.jobs = jobs, .count = count, .parts = 1};
    bnorm_status status = bnorm_check_exec(exec);
    if (!status && count && !jobs)
        status = BNORM_NULL_POINTER;
    if (exec)
        batch.exec = *exec;
    batch.exec.parallel = NULL;
    for (size_t i = 0; !status && i < count; i++) {
        status = check_job(&jobs[i], &batch.exec);
        if (status && failed)
            *failed = i;
        else if (!status)
            batch.work += work_of(&jobs[i]);
    }
    if (status)
        return status;
    batch.parts = bnorm_min(bnorm_parts(exec, batch.work), count ? count : 1);
    if (exec && batch.parts > 1) {
        exec->parallel(exec->pool, run_part, &batch, batch.parts);
        return BNORM_OK;
    }
    for (size_t i = 0; i < count; i++)
        run_job(&jobs[i], &batch.exec);
    return BNORM_OK;
}
#undef JOB_WORK

/* ------------------------------------------------------------------------------------ src/map.c */

/*
 * One kernel call for a part of a view: what a call has planned, moved to where the part begins. */

/* Images without gaps are one: long parts, in which there is time to look ahead. */
static int is_dense(const bnorm_view *view, const bnorm_tensor *tensor) {
    return !tensor->data || tensor->image_stride == view->rows * tensor->row_stride;
}

/* MiB per tensor: outputs below are left to the caches, for whoever reads them next. */
#define LEAST_STREAM ((size_t)24)

unsigned bnorm_hints(bnorm_memory memory, bnorm_limits limits, size_t bytes, size_t tensors,
                     int in_place) {
    const size_t mib = (size_t)1 << 20,
                 prefetch = in_place ? limits.prefetch_in_place : limits.prefetch;
    if (memory == BNORM_MEMORY_AUTO) {
        if (limits.stream && !in_place && bytes >= limits.stream * mib &&
            bytes >= LEAST_STREAM * mib * tensors)
            memory = BNORM_MEMORY_STREAM;
        else
            memory = bytes > prefetch * mib ? BNORM_MEMORY_PREFETCH : BNORM_MEMORY_CACHED;
    }
    const unsigned strips = bytes <= (size_t)limits.strips << 10 ? BNORM_STRIPS : 0;
    if (memory == BNORM_MEMORY_CACHED)
        return strips;
    return strips | BNORM_FETCH_IN |
           (memory == BNORM_MEMORY_STREAM && !in_place ? BNORM_BYPASS : BNORM_FETCH_OUT);
}

#define MOST_TENSORS ((size_t)5)
/* As exec->memory says. */
static unsigned hints_of(const bnorm_map *map, const bnorm_exec *exec) {
    const bnorm_map_args *args = &map->args;
    const bnorm_tensor *const tensors[MOST_TENSORS] = {&args->x, &args->dy, &args->argument,
                                                       &args->out, &args->dresidual};
    const bnorm_view *view = &map->view;
    const size_t elements = view->images * view->groups * view->rows * view->lanes;
    const bnorm_memory memory = exec ? exec->memory : BNORM_MEMORY_AUTO;
    const bnorm_limits limits = bnorm_cpu_limits();
    size_t count = 0, element_bytes = 0; /* of different tensors */
    int in_place = 0;
    /* Below all limits, whatever the tensors. */
    if (memory == BNORM_MEMORY_AUTO &&
        elements * (MOST_TENSORS * sizeof(float)) <= (size_t)limits.strips << 10)
        return BNORM_STRIPS;
    for (size_t i = 0; i < MOST_TENSORS; i++) {
        int again = 0;
        if (!tensors[i]->data)
            continue;
        for (size_t k = 0; k < i; k++)
            again |= tensors[i]->data == tensors[k]->data;
        in_place |= again;
        if (again)
            continue;
        count++;
        element_bytes += bnorm_size_of(tensors[i]->type);
    }
    return bnorm_hints(memory, limits, elements * element_bytes, count, in_place);
}

void bnorm_plan_map(bnorm_map *map, const bnorm_exec *exec) {
    bnorm_map_args *const args = &map->args;
    bnorm_view *const view = &map->view;
    const bnorm_isa *const isa = bnorm_exec_isa(exec);
    map->isa = isa;
    map->kernel = view->planes ? isa->apply_span : isa->apply_rows;
    if (view->groups == 1 && !view->planes && view->images > 1 && is_dense(view, &args->x) &&
        is_dense(view, &args->dy) && is_dense(view, &args->argument) &&
        is_dense(view, &args->out) && is_dense(view, &args->dresidual)) {
        view->rows *= view->images;
        view->images = 1;
    }
    args->images = view->images;
    args->groups = view->groups;
    args->rows = view->rows;
    args->lanes = args->valid = view->lanes;
    args->hints = hints_of(map, exec);
}

/* Stand-ins for absent parameters. */
#define EIGHT(v) v, v, v, v, v, v, v, v
static const float ones[BNORM_DEFAULTS] = {EIGHT(1), EIGHT(1), EIGHT(1), EIGHT(1),
                                           EIGHT(1), EIGHT(1), EIGHT(1), EIGHT(1)};
static const float zeros[BNORM_DEFAULTS] = {0};

static const float *from(const float *array, size_t channel, const float *otherwise) {
    return array ? array + channel : otherwise;
}

void bnorm_take_part(const bnorm_map *map, const bnorm_part *part, int near, bnorm_map_args *args) {
    const bnorm_view *view = &map->view;
    const size_t channel = bnorm_channel_of(view, part);
    *args = map->args;
    args->images = part->images;
    args->groups = part->groups;
    args->rows = part->rows;
    args->lanes = args->valid = part->lanes;
    if (!view->planes && part->groups == 1)
        args->valid = bnorm_min(part->lanes, view->c - channel);
    bnorm_move_to(&args->x, part);
    bnorm_move_to(&args->dy, part);
    bnorm_move_to(&args->argument, part);
    bnorm_move_to(&args->out, part);
    bnorm_move_to(&args->dresidual, part);
    args->mask.at = part->image * args->mask.image_stride + part->group * args->mask.group_stride +
                    part->row * args->mask.row_stride + part->lane;
    args->center = from(args->center, channel, NULL);
    args->scale = from(args->scale, channel, ones);
    args->shift = from(args->shift, channel, zeros);
    args->invstd = from(args->invstd, channel, NULL);
    args->slope = from(args->slope, channel, NULL);
    args->offset = from(args->offset, channel, NULL);
    if (near)
        args->hints &= ~(unsigned)BNORM_FETCH_IN;
}

void bnorm_run_map(const bnorm_map *map, const bnorm_map_args *args) {
    BNORM_HELD(map->kernel(args), args->valid < args->lanes);
}

static void map_rectangle(const bnorm_map *map, const bnorm_part *part, int near) {
    bnorm_map_args args;
    bnorm_take_part(map, part, near, &args);
    bnorm_run_map(map, &args);
}

void bnorm_map_whole(const bnorm_map *map) {
    const bnorm_view *view = &map->view;
    const bnorm_part part = bnorm_whole(view);
    if (view->planes || view->groups * view->lanes == view->c)
        map->kernel(&map->args);
    else
        bnorm_map_part(map, &part, 0);
}

void bnorm_map_part(const bnorm_map *map, const bnorm_part *part, int near) {
    const bnorm_view *view = &map->view;
    const int padded = !view->planes && (part->group + part->groups) * view->lanes > view->c;
    if (padded && part->groups > 1) { /* the block that has padding on its own */
        bnorm_part whole = *part, last = *part;
        whole.groups--;
        last.group += whole.groups;
        last.groups = 1;
        map_rectangle(map, &whole, near);
        map_rectangle(map, &last, near);
    } else {
        map_rectangle(map, part, near);
    }
}

void bnorm_end_mask(const bnorm_shape *shape, const bnorm_bits *mask) {
    if (mask->bits)
        mask->bits[bnorm_mask_size(shape) - 1] = 0;
}
#undef LEAST_STREAM
#undef MOST_TENSORS
#undef EIGHT

/* --------------------------------------------------------------------------------- src/pieces.c */

/*
 * Batches in pieces: whole subtrees of the tree that images are merged along. Collecting is a call
 * of forward or backward that ends with these; each is appended and merged with its neighbour as
 * soon as both are there. Merging two pieces appends those of the second. Finishing merges what is
 * left, from the last to the first, and derives the coefficients, with which y or dx is a call of
 * its own. */

#include <string.h>

/* Channels whose totals lie on the stack. */
#define CHANNELS ((size_t)32)

static size_t nodes_of(const bnorm_partial *piece) {
    return bnorm_subtrees(piece->first, piece->n, BNORM_TREE);
}

size_t bnorm_partial_used(const bnorm_partial *piece) {
    return piece ? nodes_of(piece) * 2 * piece->c * sizeof(double) : 0;
}

static double *node_at(const bnorm_partial *piece, size_t k) {
    return piece->nodes + k * 2 * piece->c;
}

static double values_of(const bnorm_partial *piece, size_t images) {
    return (double)images * (double)piece->hw;
}

static void pieces_canonical(double *array, size_t n) {
    for (size_t i = 0; i < n; i++)
        if (array[i] != array[i])
            memset(&array[i], 0xff, sizeof array[i]);
}

/* Two arrays of one node: n values, c channels. */
struct pieces_node {
    double *a, *b;
    double n;
};

/* left and the node after it. */
static void pieces_join(bnorm_op op, struct pieces_node left, struct pieces_node right, size_t c) {
    if (op == BNORM_OP_MOMENTS) {
        const bnorm_pair_args args = {
            .n = {left.n, right.n},
            .sum = left.a,
            .m2 = left.b,
            .next_sum = right.a,
            .next_m2 = right.b,
        };
        bnorm_training_of(bnorm_isa_best())->merge_pair(&args, c);
        return;
    }
    for (size_t i = 0; i < c; i++) {
        left.a[i] += right.a[i];
        left.b[i] += right.b[i];
    }
    pieces_canonical(left.a, c);
    pieces_canonical(left.b, c);
}

/* Appends a subtree of so many images and merges what has become whole. */
static void push(bnorm_partial *piece, size_t images, const double *a, const double *b) {
    const size_t c = piece->c, count = nodes_of(piece);
    size_t begin = piece->first + piece->n, k = count, size = images;
    struct pieces_node right = {(double *)(uintptr_t)a, (double *)(uintptr_t)b, 0};
    for (; (begin & size) && begin - piece->first >= size; begin -= size, size *= 2) {
        double *const at = node_at(piece, --k);
        struct pieces_node left = {at, at + c, values_of(piece, size)};
        right.n = left.n;
        pieces_join(piece->op, left, right, c);
        right = left;
    }
    if (k == count) {
        double *const at = node_at(piece, k);
        memcpy(at, a, c * sizeof *a);
        memcpy(at + c, b, c * sizeof *b);
        pieces_canonical(at, 2 * c);
    }
    piece->n += images;
}

/* The subtrees that the merging kernel has left in the tables. */
static void push_all(bnorm_partial *piece, const bnorm_partials *p) {
    const size_t end = p->first + p->n;
    for (size_t i = p->first, images; i < end; i += images) {
        const size_t row = bnorm_subtrees(p->first, i - p->first, p->leaf) * p->per_image;
        images = bnorm_subtree(i, end, BNORM_TREE);
        push(piece, images, p->entries[0] + row * p->stride, p->entries[1] + row * p->stride);
    }
}

static bnorm_status check_piece(const bnorm_partial *piece, bnorm_op op) {
    if (!piece)
        return BNORM_NULL_POINTER;
    if (piece->op != op)
        return BNORM_BAD_ENUM;
    if (piece->c == 0 || piece->first + piece->n < piece->first)
        return BNORM_BAD_SHAPE;
    if (piece->n == 0)
        return BNORM_OK;
    size_t bytes;
    if (piece->hw == 0 ||
        __builtin_mul_overflow(nodes_of(piece) * 2 * sizeof(double), piece->c, &bytes))
        return BNORM_BAD_SHAPE;
    if (!piece->nodes)
        return BNORM_NULL_POINTER;
    return piece->size < bytes ? BNORM_WORKSPACE_TOO_SMALL : BNORM_OK;
}

/* Whether n more images of hw positions fit. */
static bnorm_status check_room(const bnorm_partial *piece, size_t n, size_t hw) {
    const size_t all = piece->n + n;
    if ((piece->n && piece->hw != hw) || all < n || piece->first + all < all)
        return BNORM_BAD_SHAPE;
    if (!piece->nodes)
        return BNORM_NULL_POINTER;
    const size_t need = bnorm_partial_size(piece->c, all);
    if (need == 0)
        return BNORM_BAD_SHAPE;
    return piece->size < need ? BNORM_WORKSPACE_TOO_SMALL : BNORM_OK;
}

/* The piece that a collecting function appends to. */
static bnorm_status check_target(const bnorm_shape *shape, const bnorm_partial *piece,
                                 bnorm_op op) {
    bnorm_status status = bnorm_check_float_shape(shape);
    if (!status)
        status = check_piece(piece, op);
    if (!status && piece->c != shape->c)
        status = BNORM_BAD_SHAPE;
    return status || bnorm_is_empty(shape) ? status : check_room(piece, shape->n, shape->hw);
}

static void append(bnorm_partial *piece, size_t hw, const bnorm_partials *p) {
    piece->hw = hw;
    push_all(piece, p);
}

struct appending {
    bnorm_partial *piece;
    size_t hw;
    const bnorm_partials *p;
};

/* A task, so that it runs in exec's mode. */
static void append_task(void *arg, size_t i) {
    const struct appending *a = arg;
    (void)i;
    append(a->piece, a->hw, a->p);
}

bnorm_status bnorm_partial_collect(const bnorm_shape *shape, bnorm_in x, bnorm_partial *piece,
                                   void *ws, size_t ws_size, const bnorm_exec *exec) {
    const bnorm_train none = {.gamma = NULL};
    const bnorm_job job = {.shape = shape, .x = x, .train = &none, .ws = ws, .ws_size = ws_size};
    const bnorm_batch batch = {.stage = BNORM_STAGE_SUMS, .ghosts = 1, .piece = piece};
    bnorm_forward f;
    bnorm_status status = check_target(shape, piece, BNORM_OP_MOMENTS);
    if (!status)
        status = bnorm_plan_forward(&job, &batch, exec, &f);
    if (status || !f.map.args.x.data)
        return status;
    bnorm_run_forward(&f, exec);
    struct appending a = {piece, shape->hw, &f.sums.partials};
    bnorm_run(exec, append_task, &a, 1);
    return BNORM_OK;
}

bnorm_status bnorm_partial_collect_grad(const bnorm_shape *shape, bnorm_in x, bnorm_in dy,
                                        const bnorm_grad *grad, bnorm_partial *piece, void *ws,
                                        size_t ws_size, const bnorm_exec *exec) {
    const bnorm_job job = {
        .shape = shape, .x = x, .dy = dy, .grad = grad, .ws = ws, .ws_size = ws_size};
    const bnorm_batch batch = {.stage = BNORM_STAGE_SUMS, .ghosts = 1, .piece = piece};
    bnorm_backward_plan b;
    bnorm_status status = check_target(shape, piece, BNORM_OP_BACKWARD);
    if (!status)
        status = bnorm_plan_backward(&job, &batch, exec, &b);
    if (status || !b.map.args.x.data)
        return status;
    bnorm_run_backward(&b, exec);
    struct appending a = {piece, shape->hw, &b.sums.partials};
    bnorm_run(exec, append_task, &a, 1);
    return BNORM_OK;
}

bnorm_status bnorm_partial_apply_grad(const bnorm_shape *shape, bnorm_in x, bnorm_in dy,
                                      bnorm_out dx, const bnorm_grad *grad,
                                      const float *coefficients, const bnorm_exec *exec) {
    const bnorm_job job = {.shape = shape, .x = x, .dy = dy, .out = dx, .grad = grad};
    const bnorm_batch batch = {.stage = BNORM_STAGE_MAP, .ghosts = 1, .coefficients = coefficients};
    bnorm_backward_plan b;
    const bnorm_status status = bnorm_plan_backward(&job, &batch, exec, &b);
    if (!status && b.map.args.x.data)
        bnorm_run_backward(&b, exec);
    return status;
}

/* What a piece holds. */
static void reads_piece(bnorm_uses *uses, const bnorm_partial *piece) {
    bnorm_reads(uses, piece->nodes, bnorm_partial_used(piece), BNORM_KIND_NONE);
}

bnorm_status bnorm_partial_merge(bnorm_partial *left, const bnorm_partial *right) {
    if (!left || !right)
        return BNORM_NULL_POINTER;
    bnorm_status status =
        (unsigned)left->op > BNORM_OP_BACKWARD || left->op == BNORM_OP_FORWARD_TRAIN
            ? BNORM_BAD_ENUM
            : check_piece(left, left->op);
    if (!status)
        status = check_piece(right, left->op);
    if (status)
        return status;
    if (left->c != right->c || left->first + left->n != right->first)
        return BNORM_BAD_SHAPE;
    if (right->n == 0)
        return BNORM_OK;
    if ((status = check_room(left, right->n, right->hw)))
        return status;
    bnorm_uses uses;
    bnorm_begin_uses(&uses, NULL, NULL);
    bnorm_writes(&uses, left->nodes, bnorm_piece_bytes(left, right->n), BNORM_KIND_NONE);
    reads_piece(&uses, right);
    if ((status = bnorm_check_uses(&uses)))
        return status;
    const size_t end = right->first + right->n;
    left->hw = right->hw;
    for (size_t k = 0, i = right->first, images; i < end; i += images, k++) {
        images = bnorm_subtree(i, end, BNORM_TREE);
        push(left, images, node_at(right, k), node_at(right, k) + right->c);
    }
    return BNORM_OK;
}

static void copy_node(const bnorm_partial *piece, size_t k, size_t first, size_t c,
                      struct pieces_node *pieces_node) {
    memcpy(pieces_node->a, node_at(piece, k) + first, c * sizeof(double));
    memcpy(pieces_node->b, node_at(piece, k) + piece->c + first, c * sizeof(double));
}

/* The totals of channels [first, first + c), c <= CHANNELS, of a piece that is not empty: nodes are
 * merged from the last to the first. */
static void total_of(const bnorm_partial *piece, size_t first, size_t c, double *mean, double *m2) {
    double memory[2][2][CHANNELS];
    const size_t end = piece->first + piece->n;
    size_t sizes[BNORM_LEVELS], count = 0;
    size_t i = piece->first;
    do {
        sizes[count] = bnorm_subtree(i, end, BNORM_TREE);
        i += sizes[count++];
    } while (i < end);
    struct pieces_node all = {memory[0][0], memory[0][1], 0}, left = {memory[1][0], memory[1][1], 0};
    size_t k = count - 1, behind = sizes[k];
    copy_node(piece, k, first, c, &all);
    while (k-- > 0) {
        const struct pieces_node right = all;
        copy_node(piece, k, first, c, &left);
        all = left;
        left = right;
        all.n = values_of(piece, sizes[k]);
        pieces_join(piece->op, all, (struct pieces_node){right.a, right.b, values_of(piece, behind)}, c);
        behind += sizes[k];
    }
    const double values = values_of(piece, piece->n);
    for (i = 0; i < c; i++) {
        m2[i] = all.b[i];
        if (piece->op == BNORM_OP_MOMENTS) /* as in the kernel `merge` */
            mean[i] = all.b[i] != all.b[i] ? all.b[i] : all.a[i] / values;
        else
            mean[i] = all.a[i];
    }
}

bnorm_status bnorm_partial_total(const bnorm_partial *piece, double *count, double *mean,
                                 double *m2) {
    if (!piece)
        return BNORM_NULL_POINTER;
    if (piece->op != BNORM_OP_MOMENTS && piece->op != BNORM_OP_BACKWARD)
        return BNORM_BAD_ENUM;
    bnorm_uses uses;
    bnorm_begin_uses(&uses, NULL, NULL);
    uses.status = check_piece(piece, piece->op);
    bnorm_writes(&uses, count, sizeof *count, BNORM_KIND_NONE);
    bnorm_writes(&uses, mean, piece->c * sizeof *mean, BNORM_KIND_NONE);
    bnorm_writes(&uses, m2, piece->c * sizeof *m2, BNORM_KIND_NONE);
    if (!uses.status)
        reads_piece(&uses, piece);
    const bnorm_status status = bnorm_check_uses(&uses);
    if (status)
        return status;
    if (count)
        *count = piece->n ? values_of(piece, piece->n) : 0;
    for (size_t i = 0, n; i < piece->c; i += n) {
        double a[CHANNELS] = {0}, b[CHANNELS] = {0};
        n = bnorm_min(CHANNELS, piece->c - i);
        if (piece->n)
            total_of(piece, i, n, a, b);
        if (mean)
            memcpy(mean + i, a, n * sizeof *a);
        if (m2)
            memcpy(m2 + i, b, n * sizeof *b);
    }
    return BNORM_OK;
}

static bnorm_status check_finish(const bnorm_partial *piece, const bnorm_train *train,
                                 const float *coefficients) {
    bnorm_uses uses;
    bnorm_status status = check_piece(piece, BNORM_OP_MOMENTS);
    if (status)
        return status;
    if (!train || !coefficients)
        return BNORM_NULL_POINTER;
    if ((status = bnorm_check_train(train, NULL)))
        return status;
    if (train->weights.values || train->renorm)
        return BNORM_UNSUPPORTED;
    bnorm_begin_uses(&uses, NULL, NULL);
    bnorm_writes_floats(&uses, coefficients, 3 * piece->c);
    bnorm_uses_train(&uses, train, piece->c, piece->c);
    reads_piece(&uses, piece);
    return bnorm_check_uses(&uses);
}

/* The coefficients of channels [i, i + n), n <= CHANNELS. */
static void finish_channels(const bnorm_partial *piece, const bnorm_train *train, size_t i,
                            size_t n, float *coefficients) {
    const bnorm_running *const running = &train->running;
    const size_t c = piece->c;
    const double count = values_of(piece, piece->n);
    double mean[CHANNELS], m2[CHANNELS];
    total_of(piece, i, n, mean, m2);
    const bnorm_coefficient_args args = {
        .mean = mean,
        .m2 = m2,
        .n = count,
        .eps = train->eps,
        .gamma = bnorm_from(train->gamma, i),
        .beta = bnorm_from(train->beta, i),
        .center = coefficients + i,
        .scale = coefficients + c + i,
        .shift = coefficients + 2 * c + i,
        .save_mean = bnorm_to(train->save_mean, i),
        .save_mean_lo = bnorm_to(train->save_mean_lo, i),
        .save_invstd = bnorm_to(train->save_invstd, i),
        .save_var = bnorm_to(train->save_var, i),
        .running_mean = bnorm_from(running->mean, i),
        .running_var = bnorm_from(running->var, i),
        .new_mean = bnorm_to(bnorm_updated(running->mean, running->new_mean), i),
        .new_var = bnorm_to(bnorm_updated(running->var, running->new_var), i),
        .rate = running->rate,
        .divisor = bnorm_running_divisor(running, count),
    };
    bnorm_training_of(bnorm_isa_best())->coefficients(&args, 0, n);
}

bnorm_status bnorm_partial_finish(const bnorm_partial *piece, const bnorm_train *train,
                                  float *coefficients) {
    const bnorm_status status = check_finish(piece, train, coefficients);
    if (status)
        return status;
    const size_t c = piece->c;
    if (piece->n == 0) {
        bnorm_clear(coefficients, 3 * c);
        bnorm_clear(train->save_mean, c);
        bnorm_clear(train->save_mean_lo, c);
        bnorm_clear(train->save_invstd, c);
        bnorm_clear(train->save_var, c);
        bnorm_keep_running(&train->running, c);
        return BNORM_OK;
    }
    for (size_t i = 0; i < c; i += CHANNELS)
        finish_channels(piece, train, i, bnorm_min(CHANNELS, c - i), coefficients);
    return BNORM_OK;
}

/* dgamma, dbeta and the coefficients of channels [i, i + n), n <= CHANNELS. */
static void finish_grad_channels(const bnorm_partial *piece, const bnorm_grad *grad, size_t i,
                                 size_t n, float *coefficients) {
    const bnorm_training *const kernels = bnorm_training_of(bnorm_isa_best());
    const size_t c = piece->c;
    double sum_g[CHANNELS], sum_gx[CHANNELS];
    float invstd[CHANNELS];
    total_of(piece, i, n, sum_g, sum_gx);
    for (size_t k = 0; k < n; k++)
        invstd[k] = grad->save_invstd ? grad->save_invstd[i + k]
                                      : bnorm_invstd(grad->save_var[i + k], grad->eps);
    if (coefficients) {
        const bnorm_scale_args args = {
            .gamma = bnorm_from(grad->gamma, i),
            .beta = bnorm_from(grad->beta, i),
            .mean_lo = bnorm_from(grad->save_mean_lo, i),
            .invstd = invstd,
            .scale = coefficients + i,
            .shift = coefficients + c + i,
        };
        kernels->scale_shift(&args, n);
        memcpy(coefficients + 4 * c + i, invstd, n * sizeof *invstd);
    }
    const bnorm_grad_coefficient_args args = {
        .sum_g = sum_g,
        .sum_gx = sum_gx,
        .n = values_of(piece, piece->n),
        .gamma = bnorm_from(grad->gamma, i),
        .mean_lo = bnorm_from(grad->save_mean_lo, i),
        .invstd = invstd,
        .dgamma = bnorm_to(grad->dgamma, i),
        .dbeta = bnorm_to(grad->dbeta, i),
        .scale = bnorm_to(coefficients, i),
        .slope = grad->frozen ? NULL : bnorm_to(coefficients, 2 * c + i),
        .offset = bnorm_to(coefficients, 3 * c + i),
    };
    kernels->grad_coefficients(&args, 0, n);
}

bnorm_status bnorm_partial_finish_grad(const bnorm_partial *piece, const bnorm_grad *grad,
                                       float *coefficients) {
    bnorm_status status = check_piece(piece, BNORM_OP_BACKWARD);
    if (status)
        return status;
    if (!grad)
        return BNORM_NULL_POINTER;
    const size_t c = piece->c;
    const float *const save_var = grad->save_invstd ? NULL : grad->save_var;
    if (piece->n && !grad->save_invstd && (status = bnorm_check_variance(c, save_var, grad->eps)))
        return status;
    if ((!grad->frozen && grad->weights.values) || grad->renorm_r || grad->renorm_d)
        return BNORM_UNSUPPORTED;
    bnorm_uses uses;
    bnorm_begin_uses(&uses, NULL, NULL);
    bnorm_writes_floats(&uses, coefficients, 5 * c);
    bnorm_writes_floats(&uses, grad->dgamma, c);
    bnorm_writes_floats(&uses, grad->dbeta, c);
    bnorm_reads_floats(&uses, grad->gamma, c);
    bnorm_reads_floats(&uses, grad->beta, c);
    bnorm_reads_floats(&uses, grad->save_invstd, c);
    bnorm_reads_floats(&uses, save_var, c);
    bnorm_reads_floats(&uses, grad->save_mean_lo, c);
    reads_piece(&uses, piece);
    if ((status = bnorm_check_uses(&uses)))
        return status;
    if (piece->n == 0) {
        bnorm_clear(coefficients, 5 * c);
        bnorm_clear(grad->dgamma, c);
        bnorm_clear(grad->dbeta, c);
        return BNORM_OK;
    }
    for (size_t i = 0, n; i < c; i += n) {
        n = bnorm_min(CHANNELS, c - i);
        finish_grad_channels(piece, grad, i, n, coefficients);
    }
    if (coefficients && grad->frozen)
        bnorm_clear(coefficients + 2 * c, 2 * c);
    return BNORM_OK;
}
#undef CHANNELS

/* --------------------------------------------------------------------------------- src/reduce.c */

#include <string.h>

void bnorm_reduce_moments(const bnorm_reduction *r, const bnorm_tensor *x, size_t b, size_t channel,
                          size_t channels) {
    const bnorm_view *view = &r->view;
    const bnorm_block block = bnorm_block_at(view, &r->blocks, b);
    bnorm_part part = bnorm_part_of(view, channel, channels, block.image, block.from, block.len);
    double *sum = bnorm_entry(r, 0, b, channel), *m2 = bnorm_entry(r, 1, b, channel);
    const char *data = (const char *)x->data + bnorm_offset_of(x, &part) * bnorm_size_of(x->type);
    if (view->planes) {
        const bnorm_block_args args = {.x = data,
                                       .type = x->type,
                                       .runs = part.groups,
                                       .len = part.lanes,
                                       .stride = x->group_stride,
                                       .valid = part.lanes,
                                       .hints = r->hints};
        r->kernels->moments_span(&args, sum, m2);
        return;
    }
    for (size_t i = 0; i < channels; i += part.lanes) {
        const bnorm_block_args args = {.x = data,
                                       .type = x->type,
                                       .runs = part.rows,
                                       .len = part.lanes,
                                       .stride = x->row_stride,
                                       .valid = bnorm_min(part.lanes, channels - i),
                                       .hints = r->hints};
        if (view->leaves)
            r->kernels->moments_tree(&args, sum + i, m2 + i);
        else
            BNORM_HELD(r->kernels->moments_rows(&args, r->blocks.chains, sum + i, m2 + i),
                       args.valid < args.len);
        data += x->group_stride * bnorm_size_of(x->type);
    }
}

void bnorm_copy_element(const void *element, bnorm_dtype type, size_t n, float *copies) {
    if (bnorm_size_of(type) == sizeof(float)) {
        for (size_t i = 0; i < n; i++)
            memcpy(copies + i, element, sizeof(float));
    } else {
        for (size_t i = 0; i < n; i++)
            memcpy((uint16_t *)(void *)copies + i, element, sizeof(uint16_t));
    }
}

static void run_sums(const bnorm_reduction *r, const bnorm_map_args *args, double *sum_g,
                     double *sum_gx) {
    if (r->view.planes)
        r->kernels->sums_span(args, sum_g, sum_gx);
    else if (r->view.leaves)
        r->kernels->sums_tree(args, sum_g, sum_gx);
    else
        BNORM_HELD(r->kernels->sums_rows(args, r->blocks.chains, sum_g, sum_gx),
                   args->valid < args->lanes);
}

/* All rows or planes of the call have one value of dy. Not inlined, as few calls need that much of
 * stack. */
static __attribute__((noinline)) void same_sums(const bnorm_reduction *r, bnorm_map_args *args,
                                                double *sum_g, double *sum_gx) {
    float copies[BNORM_COPIES];
    bnorm_copy_element(args->dy.data, args->dy.type, args->lanes, copies);
    args->dy.data = copies;
    run_sums(r, args, sum_g, sum_gx);
}

/* What the kernels take for one slice; those of rows take one group at a time. */
static void take_slice(const bnorm_view *view, const bnorm_map_args *whole, const bnorm_part *part,
                       size_t channels, bnorm_map_args *args) {
    const size_t channel = bnorm_channel_of(view, part);
    *args = *whole;
    args->images = 1;
    args->groups = view->planes ? part->groups : 1;
    args->rows = part->rows;
    args->lanes = part->lanes;
    args->valid = channels;
    bnorm_move_to(&args->x, part);
    bnorm_move_to(&args->dy, part);
    bnorm_move_to(&args->argument, part);
    args->mask.at = part->image * args->mask.image_stride + part->group * args->mask.group_stride +
                    part->row * args->mask.row_stride + part->lane;
    args->center += channel;
    args->scale += channel;
    args->shift += channel;
    args->invstd += channel;
}

void bnorm_reduce_sums(const bnorm_reduction *r, const bnorm_map_args *whole, size_t b,
                       size_t channel, size_t channels) {
    const bnorm_view *view = &r->view;
    const bnorm_block block = bnorm_block_at(view, &r->blocks, b);
    /* A dy that is written out comes one row, or plane, at a time, unless it is the same in all. */
    const size_t dy_stride = view->planes ? whole->dy.group_stride : whole->dy.row_stride;
    const int same_dy = whole->dy.same_lanes;
    size_t at_once = channels;
    if (same_dy)
        at_once = dy_stride != 0 ? 1 : view->planes ? channels : bnorm_min(channels, BNORM_COPIES);
    else if (!view->planes && view->groups > 1)
        at_once = view->lanes;
    for (size_t i = 0; i < channels; i += at_once) {
        const size_t count = bnorm_min(at_once, channels - i);
        const bnorm_part part =
            bnorm_part_of(view, channel + i, count, block.image, block.from, block.len);
        double *const sum_g = bnorm_entry(r, 0, b, channel + i), *const sum_gx = bnorm_entry(
                                                                     r, 1, b, channel + i);
        bnorm_map_args args;
        take_slice(view, whole, &part, count, &args);
        if (same_dy && args.lanes > 1)
            same_sums(r, &args, sum_g, sum_gx);
        else
            run_sums(r, &args, sum_g, sum_gx);
    }
}

/* --------------------------------------------------------------------------------- src/renorm.c */

/* v between two limits, rounded; NaN stays. */
static float clip(double v, double least, double most) {
    return bnorm_round(v < least ? least : v > most ? most : v);
}

/* Products of two floats are exact in double. */
static void substitute(const bnorm_renorm_args *args, size_t i, float r, float d) {
    const double gamma = bnorm_parameter(args->gamma, i, 1);
    args->new_gamma[i] = bnorm_round(gamma * (double)r);
    args->new_beta[i] = bnorm_round(gamma * (double)d + bnorm_parameter(args->beta, i, 0));
}

void bnorm_renorm_forward(const bnorm_renorm *renorm, const bnorm_renorm_args *args,
                          const bnorm_coefficient_args *derived, size_t channel, size_t channels) {
    for (size_t i = channel; i < channel + channels; i++) {
        const double running_mean = (double)derived->running_mean[i];
        const double running_deviation = sqrt((double)derived->running_var[i] + derived->eps);
        const double deviation = sqrt(derived->m2[i] / derived->n + derived->eps);
        const float r = clip(deviation / running_deviation, renorm->r_min, renorm->r_max);
        const float d = clip((derived->mean[i] - running_mean) / running_deviation, -renorm->d_max,
                             renorm->d_max);
        substitute(args, i, r, d);
        if (renorm->save_r)
            renorm->save_r[i] = r;
        if (renorm->save_d)
            renorm->save_d[i] = d;
    }
}

void bnorm_renorm_backward(const float *r, const float *d, const bnorm_renorm_args *args,
                           size_t c) {
    for (size_t i = 0; i < c; i++)
        substitute(args, i, r[i], d[i]);
}

void bnorm_renorm_dgamma(const float *r, const float *d, const bnorm_grad_coefficient_args *derived,
                         size_t channel, size_t channels) {
    for (size_t i = channel; derived->dgamma && i < channel + channels; i++) {
        const double sum_gxh = bnorm_centred_sum(derived, i) * (double)derived->invstd[i];
        derived->dgamma[i] =
            bnorm_round(bnorm_fma((double)d[i], derived->sum_g[i], sum_gxh * (double)r[i]));
    }
}

/* ------------------------------------------------------------------------------------ src/run.c */

/*
 * The course of a call: its work is estimated. Too little to share goes through the phases at once,
 * on this thread. Else groups of channels that stay in a thread's cache ("waves") go through all
 * phases in one task each, while every thread gets as many of them. The other channels are reduced
 * in units, a block or some channels of one; finished; and mapped in parts of equal size: a round of
 * tasks each, but for a finish that is too short for that. */

/* ---------------------------------------------------------------------------------------------- */
/* Threads */

/* A task in the floating-point mode that exec asks for, on whatever thread it runs. */
struct flushed {
    void (*task)(void *arg, size_t i);
    void *arg;
};

static void run_flushed(void *arg, size_t i) {
    const struct flushed *flushed = arg;
    const bnorm_fp_mode mode = bnorm_flush_denormals();
    flushed->task(flushed->arg, i);
    bnorm_restore_mode(mode);
}

void bnorm_run(const bnorm_exec *exec, void (*task)(void *arg, size_t i), void *arg, size_t count) {
    struct flushed flushed = {task, arg};
    if (exec && exec->denormals == BNORM_DENORMALS_FLUSH) {
        task = run_flushed;
        arg = &flushed;
    }
    if (count > 1 && exec && exec->parallel) {
        exec->parallel(exec->pool, task, arg, count);
        return;
    }
    for (size_t i = 0; i < count; i++)
        task(arg, i);
}

/* Work is counted in floats of the tensors that are read or written, one of which takes 0.05 to 0.1
 * ns on one thread. Waking a pool that spins takes about 1 us, and passing on what another core has
 * in its cache as long again, so that calls of 10 us gain from a second thread. */
#define CALL_WORK ((size_t)131072)
/* A task that is as good as any other, and one that is too small: 2 us and half of one. */
#define TASK_WORK  ((size_t)32768)
#define LEAST_WORK ((size_t)8192)
/* Tasks per thread, of which those that are ahead take more. */
#define MOST_ROUNDS ((size_t)8)
/* More threads than this get no tasks of their own. */
#define MOST_THREADS ((size_t)1024)
/* Threads to cut for where the caller does not say, and most tasks. */
#define SOME_THREADS ((size_t)16)
#define SOME_TASKS   ((size_t)256)

size_t bnorm_parts(const bnorm_exec *exec, size_t work) {
    if (!exec || !exec->parallel || exec->threads == 1 || work < CALL_WORK)
        return 1;
    const size_t threads = bnorm_min(exec->threads, MOST_THREADS);
    if (!threads)
        return bnorm_min(work / TASK_WORK, SOME_TASKS);
    const size_t rounds = bnorm_min(work / TASK_WORK / threads, MOST_ROUNDS);
    return bnorm_min(threads * (rounds ? rounds : 1), work / LEAST_WORK);
}

/* ---------------------------------------------------------------------------------------------- */
/* Elementwise work in parts of equal size */

/* A view, or its groups from `first_group` on. Positions are counted through all images, groups,
 * rows and lanes; a part may begin and end within a group, or within a row of the only one. */
struct cut {
    const bnorm_view *view;
    size_t first_group;
    size_t runs, len;          /* per image: groups, or rows of the only one; elements of each */
    size_t total, parts, step; /* positions; parts begin at multiples of step */
};

static struct cut cut_view(const bnorm_view *view, size_t first_group, size_t parts) {
    const int one = view->groups == 1;
    struct cut cut = {.view = view, .first_group = first_group, .parts = parts, .step = 64};
    cut.runs = one ? view->rows : view->groups - first_group;
    cut.len = one ? view->lanes : view->rows * view->lanes;
    cut.total = view->images * cut.runs * cut.len;
    /* Whole runs where they are short. */
    if (cut.len <= cut.total / parts / 16)
        cut.step = cut.len;
    return cut;
}

/* Where part i begins. */
static size_t cut_at(const struct cut *cut, size_t i) {
    if (i == cut->parts)
        return cut->total;
    const size_t at = cut->total / cut->parts * i + cut->total % cut->parts * i / cut->parts;
    return at - at % cut->step;
}

/* Elements [from, from + len) of `runs` runs of an image. */
static bnorm_part rectangle(const struct cut *cut, size_t image, size_t run, size_t runs,
                            size_t from, size_t len) {
    const bnorm_view *view = cut->view;
    bnorm_part part = {
        .image = image, .images = 1, .groups = 1, .rows = 1, .lane = from, .lanes = len};
    if (view->groups == 1) {
        part.row = run;
        part.rows = runs;
        return part;
    }
    part.group = cut->first_group + run;
    part.groups = runs;
    if (!view->planes) {
        part.row = from / view->lanes;
        part.rows = len / view->lanes;
        part.lane = 0;
        part.lanes = view->lanes;
    }
    return part;
}

static void map_cut(const bnorm_pass *pass, const struct cut *cut, size_t i) {
    const size_t len = cut->len, image_size = cut->runs * len, end = cut_at(cut, i + 1);
    for (size_t at = cut_at(cut, i); at < end;) {
        const size_t within = at % image_size, run = within / len, from = within % len;
        size_t runs = 1, n = len;
        if (from || end - at < len)
            n = bnorm_min(len - from, end - at);
        else
            runs = bnorm_min((end - at) / len, cut->runs - run);
        const bnorm_part part = rectangle(cut, at / image_size, run, runs, from, n);
        pass->map(pass->self, &part, 0);
        at += runs * n;
    }
}

/* ---------------------------------------------------------------------------------------------- */
/* Passes */

/* Elements of a wave, which is reduced and then mapped while it is in cache (512 KiB, over all
 * tensors). */
#define WAVE_ELEMENTS ((size_t)131072)
/* Elements of a wave that are mapped together at least: the same of several small images. */
#define MAP_ELEMENTS ((size_t)8192)
/* Least elements of a block's slice. */
#define SLICE_ELEMENTS ((size_t)4096)
/* Channels of rows that are sliced: so many at least, in whole lines of the caches. */
#define SLICE_LANES ((size_t)64)
#define LINE_LANES  ((size_t)16)
/* Work of finish: of a channel, and of each of its entries. */
#define CHANNEL_WORK ((size_t)100)
#define ENTRY_WORK   ((size_t)8)

/* What is shared out. Whole waves of channels come first, with all three phases or, where they are
 * slices of rows, with the first two; the channels from `first` on, else all, go through the phases
 * one after the other. */
struct shares {
    const bnorm_pass *pass;
    size_t threads;     /* to cut for; 0 = not shared */
    size_t wave, waves; /* channels per wave */
    int maps_waves;
    size_t first;
    size_t slice, slices; /* channels per slice of a block */
    size_t units, unit_parts;
    size_t finish_step;
    struct cut cut; /* of the map */
    size_t turn;    /* parts that are done last to first: those of one thread */
};

static size_t elements_of(const bnorm_view *view) {
    return view->images * view->groups * view->rows * view->lanes;
}

/* Whole groups where channels are counted by these, else whole lines. */
static size_t round_channels(const bnorm_view *view, size_t channels) {
    const size_t unit = bnorm_counts_groups(view) ? bnorm_unit(view) : LINE_LANES;
    return bnorm_min(bnorm_ceil_div(channels, unit) * unit, view->c);
}

/* The last image, reduced last, is mapped first. */
static void run_wave(const struct shares *shares, size_t channel, size_t channels) {
    const bnorm_pass *pass = shares->pass;
    const bnorm_view *view = pass->map_view;
    const size_t positions = view->planes ? view->lanes : view->rows,
                 step = 1 + MAP_ELEMENTS / (channels * positions);
    for (size_t b = 0; b < pass->blocks->count; b++)
        pass->reduce(pass->self, b, channel, channels);
    pass->finish(pass->self, channel, channels);
    for (size_t end = shares->maps_waves ? view->images : 0, n; end > 0; end -= n) {
        n = bnorm_min(step, end);
        bnorm_part part = bnorm_part_of(view, channel, channels, end - n, 0, positions);
        part.images = n;
        pass->map(pass->self, &part, 1);
    }
}

static void reduce_task(void *arg, size_t i) {
    const struct shares *shares = arg;
    const bnorm_pass *pass = shares->pass;
    const size_t c = pass->view->c;
    if (i < shares->waves) {
        const size_t channel = i * shares->wave;
        run_wave(shares, channel, bnorm_min(shares->wave, c - channel));
        return;
    }
    i -= shares->waves;
    const size_t last = (i + 1) * shares->units / shares->unit_parts;
    for (size_t u = i * shares->units / shares->unit_parts; u < last; u++) {
        const size_t channel = shares->first + u % shares->slices * shares->slice;
        pass->reduce(pass->self, u / shares->slices, channel,
                     bnorm_min(shares->slice, c - channel));
    }
}

static void finish_task(void *arg, size_t i) {
    const struct shares *shares = arg;
    const bnorm_pass *pass = shares->pass;
    const size_t channel = shares->first + i * shares->finish_step;
    pass->finish(pass->self, channel, bnorm_min(shares->finish_step, pass->view->c - channel));
}

/* What was reduced last comes first: it is still in cache. Pools that give each thread a range of
 * tasks give it the same range of the tensor in every pass, so the order turns within a range. */
static void map_task(void *arg, size_t i) {
    const struct shares *shares = arg;
    const size_t within = i % shares->turn, begin = i - within,
                 turn = bnorm_min(shares->turn, shares->cut.parts - begin);
    map_cut(shares->pass, &shares->cut, begin + turn - 1 - within);
}

static void run_map_whole(const bnorm_pass *pass) {
    const bnorm_view *view = pass->map_view;
    const bnorm_part part = bnorm_whole(view);
    if (pass->map && pass->map_whole)
        pass->map_whole(pass->self);
    else if (pass->map)
        pass->map(pass->self, &part, 0);
}

static void map_whole_task(void *arg, size_t i) {
    const struct shares *shares = arg;
    (void)i;
    run_map_whole(shares->pass);
}

/* All phases on one thread, while everything is in cache. */
static void small_task(void *arg, size_t i) {
    const bnorm_pass *pass = arg;
    (void)i;
    if (pass->reduce) {
        const size_t c = pass->view->c;
        for (size_t b = 0; b < pass->blocks->count; b++)
            pass->reduce(pass->self, b, 0, c);
        pass->finish(pass->self, 0, c);
    }
    run_map_whole(pass);
}

/* One wave for each thread, which stays in its cache, so that the call is one round of tasks, or two
 * with slices of rows, which are mapped as whole rows. Not where the largest is an eighth larger than
 * a fair share, nor for narrow slices. */
static int cut_one_wave_each(struct shares *shares, size_t per_channel) {
    const bnorm_view *view = shares->pass->view;
    const size_t c = view->c;
    if (!bnorm_counts_groups(view) &&
        (shares->pass->blocks->chains > 1 || c < shares->threads * SLICE_LANES))
        return 0;
    shares->wave = round_channels(view, bnorm_ceil_div(c, shares->threads));
    shares->waves = bnorm_ceil_div(c, shares->wave);
    shares->first = c;
    return shares->wave * per_channel <= WAVE_ELEMENTS &&
           shares->wave * shares->threads <= c + c / 8;
}

/* With threads, as many waves as give each thread the same number. */
static void cut_waves(struct shares *shares, int known) {
    const bnorm_view *view = shares->pass->view;
    const size_t c = view->c, threads = shares->threads;
    const size_t per_channel = view->images * view->positions * shares->pass->tensors;
    const int by_lanes = !bnorm_counts_groups(view);
    size_t wave = per_channel < WAVE_ELEMENTS ? WAVE_ELEMENTS / per_channel : 1;
    shares->maps_waves = shares->pass->map && !by_lanes;
    if (known && cut_one_wave_each(shares, per_channel))
        return;
    shares->waves = shares->first = 0;
    if (by_lanes)
        return;
    if (threads) {
        const size_t fair = c / (4 * threads), least = bnorm_ceil_div(TASK_WORK / 2, per_channel);
        wave = bnorm_min(wave, fair > least ? fair : least);
    }
    shares->wave = round_channels(view, wave);
    shares->waves = bnorm_ceil_div(c, shares->wave);
    if (threads && shares->waves < threads)
        shares->waves = 0;
    else if (threads && known && shares->waves < 8 * threads)
        shares->waves -= shares->waves % threads;
    shares->first = bnorm_min(shares->waves * shares->wave, c);
}

/* Blocks, or slices of them where there are few. */
static void cut_units(struct shares *shares) {
    const bnorm_view *view = shares->pass->view;
    const bnorm_blocks *blocks = shares->pass->blocks;
    const size_t c = view->c - shares->first, block = bnorm_min(blocks->size, view->positions);
    const int by_lanes = !bnorm_counts_groups(view);
    size_t least = 1; /* channels per slice */
    if (!shares->threads || (by_lanes && blocks->chains > 1))
        least = c;
    else if (by_lanes)
        least = LINE_LANES;
    if (least < SLICE_ELEMENTS / block)
        least = SLICE_ELEMENTS / block;
    const size_t wanted = bnorm_ceil_div(8 * shares->threads, blocks->count);
    shares->slice = wanted > 1 ? bnorm_ceil_div(c, wanted) : c;
    if (shares->slice < least)
        shares->slice = least;
    shares->slice = bnorm_min(round_channels(view, shares->slice), c);
    shares->slices = bnorm_ceil_div(c, shares->slice);
    shares->units = blocks->count * shares->slices;
    shares->unit_parts = shares->threads ? bnorm_min(shares->units, 16 * shares->threads) : 1;
}

/* Channels from shares->first on. Alone, but where it takes longer than another round of tasks. */
static void run_finish(struct shares *shares, const bnorm_exec *exec) {
    const size_t rest = shares->pass->view->c - shares->first;
    const size_t work = rest * (CHANNEL_WORK + shares->pass->blocks->count * ENTRY_WORK);
    shares->finish_step = rest;
    if (shares->threads && work >= TASK_WORK)
        shares->finish_step = (bnorm_ceil_div(rest, shares->threads) + 7) / 8 * 8;
    bnorm_run(exec, finish_task, shares, bnorm_ceil_div(rest, shares->finish_step));
}

static void run_map(struct shares *shares, const bnorm_exec *exec) {
    const bnorm_view *view = shares->pass->view, *map_view = shares->pass->map_view;
    const size_t group = shares->first / bnorm_unit(view), threads = shares->threads;
    const size_t elements = elements_of(map_view) / map_view->groups * (map_view->groups - group);
    const size_t work = elements * shares->pass->map_work;
    size_t parts = threads ? bnorm_parts(exec, work) : elements / WAVE_ELEMENTS;
    if (parts < threads) /* what is left of a large tensor, or of all phases */
        parts = bnorm_min(threads, work / LEAST_WORK);
    if (parts <= 1 && shares->first == 0) {
        bnorm_run(exec, map_whole_task, shares, 1);
        return;
    }
    parts = parts ? parts : 1;
    shares->cut = cut_view(map_view, group, parts);
    shares->turn = parts;
    if (threads) /* not known: each part on its own */
        shares->turn = exec->threads && shares->pass->reduce ? bnorm_ceil_div(parts, threads) : 1;
    bnorm_run(exec, map_task, shares, parts);
}

void bnorm_run_pass(const bnorm_pass *pass, const bnorm_exec *exec) {
    const size_t elements = elements_of(pass->map_view);
    if (bnorm_is_plain(exec) && elements * pass->tensors <= WAVE_ELEMENTS) {
        small_task((void *)(uintptr_t)pass, 0);
        return;
    }
    const size_t work = (pass->reduce ? pass->reduce_work : 0) + (pass->map ? pass->map_work : 0);
    const int shared = bnorm_parts(exec, elements * work) > 1;
    struct shares shares;
    if (!shared && (!pass->reduce || elements * pass->tensors <= WAVE_ELEMENTS)) {
        bnorm_run(exec, small_task, (void *)(uintptr_t)pass, 1);
        return;
    }
    shares.pass = pass;
    shares.threads = 0;
    if (shared) {
        const size_t most = elements * work / LEAST_WORK;
        shares.threads = bnorm_min(exec->threads ? exec->threads : SOME_THREADS, most);
        shares.threads = bnorm_min(shares.threads, MOST_THREADS);
    }
    shares.first = shares.waves = shares.unit_parts = 0;
    if (pass->reduce) {
        cut_waves(&shares, shared && exec->threads);
        if (shares.first < pass->view->c)
            cut_units(&shares);
        bnorm_run(exec, reduce_task, &shares, shares.waves + shares.unit_parts);
        if (shares.first < pass->view->c)
            run_finish(&shares, exec);
        else if (shares.maps_waves)
            return;
        else
            shares.first = 0;
    }
    if (pass->map)
        run_map(&shares, exec);
}
#undef CALL_WORK
#undef TASK_WORK
#undef LEAST_WORK
#undef MOST_ROUNDS
#undef MOST_THREADS
#undef SOME_THREADS
#undef SOME_TASKS
#undef WAVE_ELEMENTS
#undef MAP_ELEMENTS
#undef SLICE_ELEMENTS
#undef SLICE_LANES
#undef LINE_LANES
#undef CHANNEL_WORK
#undef ENTRY_WORK

/* -------------------------------------------------------------------------------- src/running.c */

/*
 * Presets: what each framework means by "momentum". The update of running statistics alone. */

/* Channels whose statistics lie on the stack in double. */
#define CHANNELS ((size_t)32)

static bnorm_running running(float *mean, float *var, double rate, bnorm_variance variance) {
    return (bnorm_running){.mean = mean, .var = var, .rate = rate, .variance = variance};
}

bnorm_running bnorm_running_keras(float *mean, float *var, double momentum) {
    return running(mean, var, 1 - momentum, BNORM_VARIANCE_POPULATION);
}

bnorm_running bnorm_running_tensorflow(float *mean, float *var, double momentum) {
    return running(mean, var, 1 - momentum, BNORM_VARIANCE_SAMPLE);
}

bnorm_running bnorm_running_pytorch(float *mean, float *var, double momentum) {
    return running(mean, var, momentum, BNORM_VARIANCE_SAMPLE);
}

bnorm_running bnorm_running_pytorch_cumulative(float *mean, float *var, size_t step) {
    return running(mean, var, step > 1 ? 1 / (double)step : 1, BNORM_VARIANCE_SAMPLE);
}

bnorm_running bnorm_running_onnx(float *mean, float *var, double momentum) {
    return running(mean, var, 1 - momentum, BNORM_VARIANCE_POPULATION);
}

/* Caffe keeps S = f*S + statistic and W = f*W + 1 and reads S/W. For the quotient that is a running
 * average whose rate is 1/W = 1/(1 + f + ... + f^(step - 1)). */
bnorm_running bnorm_running_caffe(float *mean, float *var, double fraction, size_t step) {
    double weight = 0, terms = 1, power = fraction; /* sum and product over 2^k terms, doubling k */
    double scale = 1;                               /* f^(terms already in weight) */
    for (size_t left = step > 1 ? step : 1; left > 0; left /= 2) {
        if (left % 2) {
            weight = bnorm_fma(scale, terms, weight);
            scale *= power;
        }
        terms = bnorm_fma(power, terms, terms);
        power *= power;
    }
    return running(mean, var, 1 / weight, BNORM_VARIANCE_SAMPLE);
}

static void keep(const float *running, float *elsewhere, size_t c) {
    if (elsewhere)
        memmove(elsewhere, running, c * sizeof *running);
}

void bnorm_keep_running(const bnorm_running *running, size_t c) {
    keep(running->mean, running->new_mean, c);
    keep(running->var, running->new_var, c);
}

double bnorm_running_divisor(const bnorm_running *running, double n) {
    if (running->variance == BNORM_VARIANCE_POPULATION)
        return n;
    return n > 2 ? n - 1 : 1; /* a sum of weights may be no whole number */
}

static void uses_array(bnorm_uses *uses, const float *running, const float *elsewhere, size_t c) {
    bnorm_writes_floats(uses, elsewhere ? elsewhere : running, c);
    if (elsewhere && elsewhere != running)
        bnorm_reads_floats(uses, running, c);
}

void bnorm_uses_running(bnorm_uses *uses, const bnorm_running *running, size_t c) {
    uses_array(uses, running->mean, running->new_mean, c);
    uses_array(uses, running->var, running->new_var, c);
}

bnorm_status bnorm_running_update(size_t c, const float *mean, const float *var, double n,
                                  const bnorm_running *running) {
    if (c == 0 || c > (size_t)PTRDIFF_MAX / sizeof(float))
        return BNORM_BAD_SHAPE;
    if (!running)
        return BNORM_NULL_POINTER;
    const bnorm_status status = bnorm_check_running(running);
    if (status)
        return status;
    if ((running->mean && !mean) || (running->var && !var))
        return BNORM_NULL_POINTER;
    if (!__builtin_isfinite(n) || n < 1)
        return BNORM_BAD_PARAMETER;
    float *const new_mean = bnorm_updated(running->mean, running->new_mean);
    float *const new_var = bnorm_updated(running->var, running->new_var);
    bnorm_uses uses;
    bnorm_begin_uses(&uses, NULL, NULL);
    bnorm_uses_running(&uses, running, c);
    bnorm_reads_floats(&uses, mean, c);
    bnorm_reads_floats(&uses, var, c);
    if (bnorm_check_uses(&uses))
        return BNORM_BAD_OVERLAP;
    for (size_t first = 0; first < c; first += CHANNELS) {
        double means[CHANNELS], vars[CHANNELS];
        const size_t count = bnorm_min(CHANNELS, c - first);
        for (size_t i = 0; i < count; i++) {
            means[i] = new_mean ? (double)mean[first + i] : 0;
            vars[i] = new_var ? (double)var[first + i] : 0;
        }
        const bnorm_coefficient_args args = {
            .mean = means,
            .m2 = vars,
            .n = 1,
            .running_mean = new_mean ? running->mean + first : NULL,
            .running_var = new_var ? running->var + first : NULL,
            .new_mean = new_mean ? new_mean + first : NULL,
            .new_var = new_var ? new_var + first : NULL,
            .rate = running->rate,
            .divisor = bnorm_running_divisor(running, n) / n,
        };
        bnorm_training_of(bnorm_isa_best())->coefficients(&args, 0, count);
    }
    return BNORM_OK;
}
#undef CHANNELS

/* --------------------------------------------------------------------------------- src/status.c */

#define STRING(x)                    #x
#define VERSION(major, minor, patch) STRING(major) "." STRING(minor) "." STRING(patch)

const char *bnorm_version(void) {
    return VERSION(BNORM_VERSION_MAJOR, BNORM_VERSION_MINOR, BNORM_VERSION_PATCH);
}

const char *bnorm_strerror(bnorm_status status) {
    switch (status) {
    case BNORM_OK:
        return "The call succeeded.";
    case BNORM_NULL_POINTER:
        return "A required pointer is NULL.";
    case BNORM_BAD_ENUM:
        return "A layout, data type, activation, variance kind, weight layout, operation or order "
               "of groups does not exist.";
    case BNORM_BAD_SHAPE:
        return "The shape has no channels, its size overflows, groups do not divide channels or "
               "samples, or pieces of a batch do not fit together.";
    case BNORM_BAD_STRIDE:
        return "A stride is so small that elements of one tensor share an address, so large that "
               "it overflows, or belongs to axes that two strides cannot express.";
    case BNORM_BAD_OVERLAP:
        return "An output overlaps another buffer without being the same tensor, or in-place is "
               "not allowed there.";
    case BNORM_BAD_PARAMETER:
        return "Options exclude each other, or a count or a channel axis is out of range.";
    case BNORM_UNSUPPORTED:
        return "This combination is valid but not supported by this build of bnorm.";
    case BNORM_WORKSPACE_TOO_SMALL:
        return "The workspace is smaller than bnorm_workspace() says.";
    case BNORM_BAD_EPSILON:
        return "Epsilon is negative or not finite.";
    case BNORM_BAD_VARIANCE:
        return "The variance of a channel is negative by more than epsilon or, where that is "
               "asked, "
               "its statistics are not finite: bnorm_check_statistics() tells which channel.";
    case BNORM_BAD_RATE:
        return "The rate of the running statistics is not finite.";
    case BNORM_BAD_ACTIVATION:
        return "A bound or slope of the activation is out of range.";
    case BNORM_BAD_QUANTIZATION:
        return "The scale of a quantized tensor is not positive and finite, or its zero point is "
               "no "
               "value of its type.";
    case BNORM_BAD_WEIGHTS:
        return "A weight is negative or not finite.";
    case BNORM_BAD_RENORM:
        return "The limits of batch renormalization are out of range or not in order.";
    }
    return "This is not a status of bnorm.";
}
#undef STRING
#undef VERSION

/* --------------------------------------------------------------------------------- src/tensor.c */

/* No object is larger than this, whatever its type; pointer differences inside it are
 * representable. */
#define MAX_ELEMENTS ((size_t)PTRDIFF_MAX / sizeof(float))

/* The product of three smaller sizes is far below that. */
#define FEW ((size_t)1 << 20)

/* *product = a*b; false where that exceeds MAX_ELEMENTS. */
static int multiply(size_t a, size_t b, size_t *product) {
    return !__builtin_mul_overflow(a, b, product) && *product <= MAX_ELEMENTS;
}

/* Channels per block; 1 where there are none. */
static size_t block_of(const bnorm_shape *shape) {
    return shape->c_block ? shape->c_block : 1;
}

/* Blocks of channels; c where there are none. */
static size_t blocks_of(const bnorm_shape *shape) {
    const size_t b = block_of(shape);
    return b == 1 ? shape->c : (shape->c - 1) / b + 1;
}

static int is_nhwc(const bnorm_shape *shape) {
    return shape->layout == BNORM_NHWC;
}

bnorm_view bnorm_view_of(const bnorm_shape *shape) {
    const size_t n = shape->n, c = shape->c, hw = shape->hw, b = block_of(shape);
    bnorm_view view = {.images = n, .groups = 1, .rows = hw, .lanes = c, .c = c, .positions = hw};
    if (b > 1) {
        view.groups = blocks_of(shape);
        view.lanes = b;
    } else if (hw > 1 && !is_nhwc(shape)) {
        view.planes = 1;
        view.groups = c;
        view.rows = 1;
        view.lanes = hw;
    }
    if (hw == 1) {
        view.leaves = 1;
        view.images = 1;
        view.rows = view.positions = n;
    }
    return view;
}

void bnorm_take_samples(const bnorm_view *view, bnorm_tensor *tensor, size_t first, size_t step) {
    size_t *const sample_stride = view->leaves ? &tensor->row_stride : &tensor->image_stride;
    if (!tensor->data)
        return;
    tensor->data = (char *)tensor->data + first * *sample_stride * bnorm_size_of(tensor->type);
    *sample_stride *= step;
}

bnorm_status bnorm_check_shape(const bnorm_shape *shape) {
    size_t elements, c;
    if (!shape)
        return BNORM_NULL_POINTER;
    if ((unsigned)shape->layout > BNORM_NCHW || (unsigned)shape->dtype > BNORM_U8)
        return BNORM_BAD_ENUM;
    const size_t b = block_of(shape);
    if (b > 1 && (is_nhwc(shape) || (b != 4 && b != 8 && b != 16 && b != 32)))
        return BNORM_UNSUPPORTED;
    if (shape->c && sizeof(size_t) == 8 && (shape->n | shape->c | shape->hw) < FEW)
        return BNORM_OK;
    if (shape->c == 0 || !multiply(blocks_of(shape), b, &c) || !multiply(shape->n, c, &elements) ||
        !multiply(elements, shape->hw, &elements) || !multiply(c, shape->hw, &elements))
        return BNORM_BAD_SHAPE;
    return BNORM_OK;
}

bnorm_status bnorm_check_float_shape(const bnorm_shape *shape) {
    const bnorm_status status = bnorm_check_shape(shape);
    return !status && shape->dtype > BNORM_F16 ? BNORM_UNSUPPORTED : status;
}

size_t bnorm_mask_size(const bnorm_shape *shape) {
    if (bnorm_check_shape(shape) || bnorm_is_empty(shape))
        return 0;
    return (shape->n * blocks_of(shape) * block_of(shape) * shape->hw - 1) / 8 + 1;
}

/* ---------------------------------------------------------------------------------------------- */
/* Strides */

/* Elements of a run, padding included, and runs of an image. */
static size_t run_length(const bnorm_shape *shape) {
    return is_nhwc(shape) ? shape->c : shape->hw * block_of(shape);
}
static size_t runs_of(const bnorm_shape *shape) {
    return is_nhwc(shape) ? shape->hw : blocks_of(shape);
}

/* Elements from the first to one past the last of `count` times `extent` elements, `step` apart. */
static int span(size_t count, size_t step, size_t extent, size_t *total) {
    size_t before;
    if (!multiply(count - 1, step, &before) || before > MAX_ELEMENTS - extent)
        return 0;
    *total = before + extent;
    return 1;
}

/* The strides of a tensor with the defaults filled in; 0 where none is used. */
static bnorm_status resolve(const bnorm_shape *shape, bnorm_in *in, size_t *extent) {
    const size_t run = run_length(shape), runs = runs_of(shape);
    const size_t run_stride = in->run_stride, image_stride = in->image_stride;
    size_t image, batch;
    in->run_stride = runs > 1 ? (run_stride ? run_stride : run) : 0;
    in->image_stride = *extent = 0;
    if (!span(runs, in->run_stride, run, &image))
        return BNORM_BAD_STRIDE;
    if (shape->n > 1 && !(in->image_stride = image_stride)) {
        /* Dense images: a run's padding belongs to the image. */
        if (!multiply(runs, run_stride ? run_stride : run, &in->image_stride))
            return BNORM_BAD_STRIDE;
    }
    if (!span(shape->n, in->image_stride, run, &batch) ||
        !span(runs, in->run_stride, batch, extent))
        return BNORM_BAD_STRIDE;
    /* Distinct addresses: runs inside images that follow one another, or images inside runs, as
     * in (C, N, HW) order. */
    const int images_outside =
        (runs == 1 || in->run_stride >= run) && (shape->n == 1 || in->image_stride >= image);
    const int runs_outside =
        (shape->n == 1 || in->image_stride >= run) && (runs == 1 || in->run_stride >= batch);
    return images_outside || runs_outside ? BNORM_OK : BNORM_BAD_STRIDE;
}

/* Strides of runs and images as those of the view's axes. That of a single run is 1, as that of the
 * channels of dense (N, C) data. */
static void set_strides(const bnorm_shape *shape, size_t run_stride, size_t image_stride,
                        bnorm_tensor *tensor) {
    const size_t b = block_of(shape);
    tensor->image_stride = image_stride;
    tensor->group_stride = is_nhwc(shape) || runs_of(shape) == 1 ? 1 : run_stride;
    tensor->row_stride = is_nhwc(shape) ? run_stride : b;
    if (shape->hw == 1) {
        tensor->image_stride = 0;
        tensor->row_stride = image_stride;
    }
}

size_t bnorm_dense_tensor(const bnorm_shape *shape, bnorm_tensor *tensor) {
    const size_t run = run_length(shape), image = runs_of(shape) * run;
    tensor->data = NULL;
    tensor->type = shape->dtype;
    tensor->same_lanes = 0;
    tensor->quant.scale = 1;
    tensor->quant.zero_point = 0;
    set_strides(shape, run, shape->n > 1 ? image : 0, tensor);
    return shape->n * image;
}

bnorm_status bnorm_check_strides(const bnorm_shape *shape, bnorm_in in, unsigned broadcast,
                                 bnorm_tensor *tensor, size_t *extent) {
    tensor->same_lanes = run_length(shape) > 1 &&
                         (broadcast & (is_nhwc(shape) ? BNORM_BROADCAST_C : BNORM_BROADCAST_HW));
    bnorm_shape stored = *shape; /* one value along the axes that it is expanded along */
    if (broadcast & BNORM_BROADCAST_N)
        stored.n = 1;
    if (broadcast & BNORM_BROADCAST_C)
        stored.c = 1;
    if (broadcast & BNORM_BROADCAST_HW)
        stored.hw = 1;
    const bnorm_status status = resolve(&stored, &in, extent);
    set_strides(shape, in.run_stride, in.image_stride, tensor);
    return status;
}

void bnorm_set_bits(const bnorm_shape *shape, unsigned char *mask, bnorm_bits *bits) {
    bnorm_tensor dense;
    bits->bits = mask;
    bits->at = 0;
    if (!mask)
        return;
    const size_t run = run_length(shape);
    set_strides(shape, run, runs_of(shape) * run, &dense);
    bits->image_stride = dense.image_stride;
    bits->group_stride = dense.group_stride;
    bits->row_stride = dense.row_stride;
}
#undef MAX_ELEMENTS
#undef FEW

/* ----------------------------------------------------------------------------------- src/uses.c */

void bnorm_uses_workspace(bnorm_uses *uses, const void *ws, size_t ws_size, size_t need) {
    if (uses->status)
        return;
    if (need == 0)
        uses->status = BNORM_BAD_SHAPE;
    else if (ws_size < need)
        uses->status = BNORM_WORKSPACE_TOO_SMALL;
    bnorm_writes(uses, ws, need, BNORM_KIND_NONE);
}

/* Other strides than those of a dense tensor. */
static __attribute__((noinline)) void take_strides(bnorm_uses *uses, bnorm_in in,
                                                   unsigned broadcast, bnorm_use *use,
                                                   bnorm_tensor *tensor) {
    size_t extent;
    const bnorm_status status = bnorm_check_strides(uses->shape, in, broadcast, tensor, &extent);
    if (status && !uses->status)
        uses->status = status;
    bnorm_fit_view(uses->view, tensor);
    bnorm_set_use(use, in.data, extent * bnorm_size_of(tensor->type),
                  broadcast ? BNORM_KIND_NONE : BNORM_KIND_TENSOR);
}

static inline void add_tensor(bnorm_uses *uses, const void *data, size_t other_strides,
                              bnorm_dtype type, bnorm_use *use, bnorm_tensor *tensor) {
    *tensor = uses->dense;
    tensor->data = (void *)(uintptr_t)data;
    tensor->type = type;
    use->tensor = tensor;
    if (!other_strides)
        bnorm_set_use(use, data, uses->elements * bnorm_size_of(type), BNORM_KIND_TENSOR);
}

void bnorm_reads_broadcast(bnorm_uses *uses, const bnorm_in *in, unsigned broadcast,
                           bnorm_tensor *tensor) {
    const size_t other_strides = in->run_stride | in->image_stride | broadcast;
    bnorm_use *const use = uses->end;
    tensor->data = NULL;
    if (!in->data)
        return;
    uses->end++;
    add_tensor(uses, in->data, other_strides, uses->shape->dtype, use, tensor);
    if (other_strides)
        take_strides(uses, *in, broadcast, use, tensor);
}

void bnorm_writes_tensor(bnorm_uses *uses, const bnorm_out *out, bnorm_dtype type,
                         bnorm_tensor *tensor) {
    const size_t other_strides = out->run_stride | out->image_stride;
    tensor->data = NULL;
    if (!out->data)
        return;
    uses->begin--;
    add_tensor(uses, out->data, other_strides, type, uses->begin, tensor);
    if (other_strides)
        take_strides(uses, (bnorm_in){out->data, out->run_stride, out->image_stride}, 0,
                     uses->begin, tensor);
}

void bnorm_writes_mask(bnorm_uses *uses, const unsigned char *mask) {
    if (mask)
        bnorm_writes(uses, mask, bnorm_mask_size(uses->shape), BNORM_KIND_NONE);
}

static int same_strides(const bnorm_tensor *a, const bnorm_tensor *b) {
    return a->image_stride == b->image_stride && a->group_stride == b->group_stride &&
           a->row_stride == b->row_stride;
}

/* Whether two tensors with the same strides, b `distance` elements behind a, have an element in
 * common: is there a difference of indices (outer, inner, position) that makes up the distance?
 * Tensors do not overlap themselves, so at each level only the two multiples of the stride around
 * the distance can. Of images, groups and rows, one has a single element, or rows lie end to end. */
static int elements_meet(const bnorm_view *view, const bnorm_tensor *a, size_t distance) {
    size_t run = view->lanes, rows = view->rows;
    if (a->row_stride == run) {
        run *= rows;
        rows = 1;
    }
    size_t outer_stride = view->images > 1 ? a->image_stride : a->row_stride,
           outer_count = view->images > 1 ? view->images : rows,
           inner_stride = view->groups > 1 ? a->group_stride : a->row_stride,
           inner_count = view->groups > 1   ? view->groups
                         : view->images > 1 ? rows
                                            : 1;
    if (inner_count > 1 && inner_stride > outer_stride) {
        const size_t other_stride = outer_stride, other_count = outer_count;
        outer_stride = inner_stride;
        outer_count = inner_count;
        inner_stride = other_stride;
        inner_count = other_count;
    }
    for (size_t up = 0; up < 2; up++) {
        const size_t outer = (outer_count > 1 ? distance / outer_stride : 0) + up;
        if (outer >= outer_count)
            break;
        const size_t reached = outer * outer_stride;
        const size_t rest = up ? reached - distance : distance - reached;
        for (size_t next = 0; next < 2; next++) {
            const size_t inner = (inner_count > 1 ? rest / inner_stride : 0) + next;
            if (inner >= inner_count)
                break;
            const size_t at = inner * inner_stride;
            if ((next ? at - rest : rest - at) < run)
                return 1;
        }
    }
    return 0;
}

/* Whether an output and another buffer whose ranges meet do so in a way that is not allowed. Out of
 * line, so that calls in which none meet save no registers for it. */
static __attribute__((noinline)) int clash(const bnorm_uses *uses, const bnorm_use *one,
                                           const bnorm_use *two, int is_input) {
    const bnorm_tensor *a = one->tensor, *b = two->tensor;
    if (one->kind == BNORM_KIND_NONE || one->kind != two->kind)
        return 1;
    if (one->kind != BNORM_KIND_TENSOR)
        return !is_input || one->begin != two->begin || one->end != two->end;
    const size_t size = bnorm_size_of(a->type);
    /* Different strides inside one range are not followed up: refuse. */
    if (size != bnorm_size_of(b->type) || !same_strides(a, b))
        return 1;
    if (a->data == b->data)
        return !is_input;
    const size_t distance =
        one->begin < two->begin ? two->begin - one->begin : one->begin - two->begin;
    return distance % size || elements_meet(uses->view, a, distance / size);
}

bnorm_status bnorm_check_uses(const bnorm_uses *uses) {
    const bnorm_use *const inputs = uses->all + BNORM_MOST_WRITES, *const end = uses->end;
    if (uses->status)
        return uses->status;
    for (const bnorm_use *output = uses->begin; output < inputs; output++) {
        const uintptr_t output_begin = output->begin, output_end = output->end;
        for (const bnorm_use *other = output + 1; other < end; other++)
            if (other->begin < output_end && output_begin < other->end &&
                clash(uses, output, other, other >= inputs))
                return BNORM_BAD_OVERLAP;
    }
    return BNORM_OK;
}

/* -------------------------------------------------------------------------------- src/weights.c */

/*
 * The course of a call with weights: they are added up, per block. Blocks of one weight are reduced
 * as without weights, and their sums scaled; of others, tiles of positions become floats without
 * those of weight 0, which are reduced on their own and joined (Chan), as blocks are. Then y is that
 * of any call, and dx too where a weight is 1 or 0, with coefficients times the weight elsewhere. */

/* How many weights from the first on are like it. */
static size_t equal_weights(const float *weights, size_t n) {
    size_t i = 1;
    if (memcmp(weights, weights + 1, (n - 1) * sizeof *weights) == 0)
        return n;
    while (i < n && weights[i] == weights[0]) /* -0 is 0 */
        i++;
    return i;
}

/* ---------------------------------------------------------------------------------------------- */
/* Statistics */

static const float *weights_at(const bnorm_weighing *w, const bnorm_view *view,
                               const bnorm_block *block) {
    return w->values + block->image * view->positions + block->from;
}

struct adding {
    bnorm_weighing *w;
    const bnorm_reduction *r;
};

/* A task, so that it runs in exec's mode: weights that are denormal may count as 0. */
static void add_up(void *arg, size_t task) {
    const struct adding *job = arg;
    const bnorm_view *view = &job->r->view;
    double total = 0;
    (void)task;
    for (size_t b = 0; b < job->r->blocks.count; b++) {
        const bnorm_block block = bnorm_block_at(view, &job->r->blocks, b);
        const float *const weights = weights_at(job->w, view, &block);
        double sums[4] = {0, 0, 0, 0};
        for (size_t i = 0; i < block.len; i++)
            sums[i % 4] += (double)weights[i];
        const double sum = (sums[0] + sums[1]) + (sums[2] + sums[3]);
        if (job->w->sums)
            job->w->sums[b] = sum;
        total += sum;
    }
    job->w->total = total;
}

void bnorm_weigh(bnorm_weighing *w, const bnorm_reduction *r, const bnorm_exec *exec) {
    struct adding job = {w, r};
    bnorm_run(exec, add_up, &job, 1);
    w->divisor = w->total + w->epsilon;
}

/* Positions of a block that are reduced together, as floats, without those of weight 0: all of a
 * block of a plane, or some rows of up to LANES channels. */
#define ROWS  64
#define LANES 32
_Static_assert(ROWS *LANES >= BNORM_BLOCK_SPAN, "a block of a plane is one tile");

struct tile {
    const float *weights;      /* of all positions */
    size_t n;                  /* positions that have a weight */
    uint16_t at[ROWS * LANES]; /* which these are */
    double total;              /* of the weights */
    int equal;                 /* not 0: all of these have one weight */
    size_t lanes;              /* channels */
    float x[ROWS * LANES];
};

static double weight_of(const struct tile *tile, size_t k) {
    return (double)tile->weights[tile->at[k]];
}

static void pick_positions(struct tile *tile, const float *weights, size_t count) {
    float first = 0;
    tile->weights = weights;
    tile->n = 0;
    tile->total = 0;
    tile->equal = 1;
    for (size_t i = 0; i < count; i++) {
        const float weight = weights[i];
        first = first > 0 ? first : weight;
        tile->at[tile->n] = (uint16_t)i;
        tile->n += weight > 0;
        tile->total += (double)weight;
        tile->equal &= weight == first || !(weight > 0);
    }
}

/* A tensor of which a block is reduced. */
struct weights_source {
    const bnorm_reduction *r;
    const bnorm_tensor *x;
    size_t image, channel, valid;
};

/* Elements of the tile's channels in positions [from, from + count) of an image. */
static void load_tile(const struct weights_source *s, size_t from, size_t count, struct tile *tile) {
    static const float ones[LANES] = {1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1,
                                      1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1};
    static const float zeros[LANES] = {0};
    const bnorm_view *view = &s->r->view;
    bnorm_part part = bnorm_part_of(view, s->channel, s->valid, s->image, from, count);
    bnorm_map map = {.view = *view,
                     .kernel = view->planes ? s->r->isa->apply_span : s->r->isa->apply_rows};
    map.args.x = *s->x;
    bnorm_move_to(&map.args.x, &part);
    tile->lanes = view->planes ? 1 : part.lanes; /* with the padding of a block of channels */
    map.args.pre = BNORM_PRE_X;
    map.args.images = map.args.groups = 1;
    map.args.rows = part.rows;
    map.args.lanes = part.lanes;
    map.args.valid = s->valid;
    map.args.scale = ones;
    map.args.shift = zeros;
    map.args.out.data = tile->x;
    map.args.out.row_stride = tile->lanes;
    bnorm_run_map(&map, &map.args);
    const size_t lanes = tile->n < count ? tile->lanes : 0;
    for (size_t k = 0; lanes == 1 && k < tile->n; k++)
        tile->x[k] = tile->x[tile->at[k]];
    for (size_t k = 0; lanes > 1 && k < tile->n; k++)
        memmove(tile->x + k * lanes, tile->x + tile->at[k] * lanes, lanes * sizeof *tile->x);
}

/* With fma, as said in channel.h. */
static void lane_moments(const struct tile *tile, size_t lane, double *mean, double *m2) {
    const float *const x = tile->x + lane;
    const double pivot = (double)x[0];
    double excess = 0, squares = 0;
    for (size_t k = 0; k < tile->n; k++)
        excess = bnorm_fma(weight_of(tile, k), (double)x[k * tile->lanes] - pivot, excess);
    const double centre = pivot + excess / tile->total;
    for (size_t k = 0; k < tile->n; k++) {
        const double d = (double)x[k * tile->lanes] - centre;
        squares = bnorm_fma(weight_of(tile, k) * d, d, squares);
    }
    *mean = centre;
    *m2 = squares;
}

/* Sums and M2 of n values of equal weight, as means and weighted M2. */
static void weight_moments(double *mean, double *m2, size_t channels, size_t n, double weight) {
    for (size_t i = 0; i < channels; i++) {
        mean[i] /= (double)n;
        m2[i] *= weight;
    }
}

/* Means and M2 of the tile's first `valid` channels. */
static void tile_moments(const struct weights_source *s, const struct tile *tile, double *mean,
                         double *m2) {
    const size_t lanes = tile->lanes, valid = s->valid;
    if (!tile->equal) {
        for (size_t i = 0; i < valid; i++)
            lane_moments(tile, i, &mean[i], &m2[i]);
        return;
    }
    if (s->r->view.planes) {
        const bnorm_block_args args = {
            .x = tile->x, .runs = 1, .len = tile->n, .stride = tile->n, .valid = 1};
        s->r->kernels->moments_span(&args, mean, m2);
    } else {
        const bnorm_block_args args = {
            .x = tile->x, .runs = tile->n, .len = lanes, .stride = lanes, .valid = valid};
        s->r->kernels->moments_rows(&args, 1, mean, m2); /* whatever channels come together */
    }
    weight_moments(mean, m2, valid, tile->n, weight_of(tile, 0));
}

/* Chan, Golub, LeVeque (1979): `before` and `weight` are how much weight either side has. */
static void weights_join(double before, double weight, double *mean, double *m2, double next_mean,
                 double next_m2) {
    const double share = weight / (before + weight), d = next_mean - *mean;
    *m2 = bnorm_fma(d * d, before * share, *m2 + next_m2);
    *mean = bnorm_fma(d, share, *mean);
}

void bnorm_weighted_moments_of(const bnorm_reduction *r, const bnorm_weighing *w,
                               const bnorm_tensor *x, size_t b, size_t channel, size_t channels) {
    const bnorm_view *view = &r->view;
    const bnorm_block block = bnorm_block_at(view, &r->blocks, b);
    const float *const weights = weights_at(w, view, &block);
    double *const mean = bnorm_entry(r, 0, b, channel), *const m2 = bnorm_entry(r, 1, b, channel);
    if (w->sums[b] == 0)
        return;
    if (equal_weights(weights, block.len) == block.len) {
        bnorm_reduce_moments(r, x, b, channel, channels);
        weight_moments(mean, m2, channels, block.len, (double)weights[0]);
        return;
    }
    const size_t most = view->planes ? BNORM_BLOCK_SPAN : ROWS;
    const size_t at_once = view->planes ? 1 : bnorm_min(view->lanes, LANES);
    struct tile tile;
    double before = 0;
    for (size_t i = 0; i < channels; i++)
        mean[i] = m2[i] = 0;
    for (size_t at = 0; at < block.len; at += most) {
        const size_t count = bnorm_min(most, block.len - at);
        pick_positions(&tile, weights + at, count);
        for (size_t i = 0; tile.n && i < channels; i += at_once) {
            const size_t valid = bnorm_min(at_once, channels - i);
            const struct weights_source s = {
                .r = r, .x = x, .image = block.image, .channel = channel + i, .valid = valid};
            double next_mean[LANES], next_m2[LANES];
            load_tile(&s, block.from + at, count, &tile);
            tile_moments(&s, &tile, next_mean, next_m2);
            for (size_t k = 0; k < valid; k++)
                weights_join(before, tile.total, &mean[i + k], &m2[i + k], next_mean[k], next_m2[k]);
        }
        before += tile.total;
    }
}

void bnorm_weighted_merge(const bnorm_reduction *r, const bnorm_weighing *w, size_t channel,
                          size_t channels, double *mean, double *m2) {
    double before = 0;
    mean += channel;
    m2 += channel;
    for (size_t i = 0; i < channels; i++)
        mean[i] = m2[i] = 0;
    for (size_t b = 0; b < r->blocks.count; b++) {
        const double *const next_mean = bnorm_entry(r, 0, b, channel), *const next_m2 = bnorm_entry(
                                                                           r, 1, b, channel);
        for (size_t i = 0; w->sums[b] > 0 && i < channels; i++)
            weights_join(before, w->sums[b], &mean[i], &m2[i], next_mean[i], next_m2[i]);
        before += w->sums[b];
    }
    /* So far about the weighted mean; the one that is wanted is off by some of epsilon. */
    for (size_t i = 0; i < channels; i++) {
        const double off = mean[i] * (w->epsilon / w->divisor);
        m2[i] = bnorm_fma(off * off, w->total, m2[i]);
        mean[i] *= w->total / w->divisor;
        if (m2[i] != m2[i]) /* as in the kernel `merge` */
            mean[i] = m2[i];
    }
}

/* ---------------------------------------------------------------------------------------------- */
/* Gradients */

void bnorm_weighted_coefficients(const bnorm_reduction *r, const bnorm_weighing *w,
                                 const bnorm_grad_coefficient_args *derived, const float *save_mean,
                                 size_t channel, size_t channels) {
    const double divisor = w->divisor;
    bnorm_grad_coefficient_args sums = *derived;
    sums.slope = NULL; /* dgamma and dbeta only */
    r->kernels->grad_coefficients(&sums, channel, channels);
    for (size_t i = channel; derived->slope && i < channel + channels; i++) {
        const double low = bnorm_parameter(derived->mean_lo, i, 0);
        const double invstd = (double)derived->invstd[i];
        const double scale = bnorm_parameter(derived->gamma, i, 1) * invstd;
        const double sum_gxh = bnorm_centred_sum(derived, i) * invstd;
        /* What epsilon takes off the mean, in deviations. */
        const double off = ((double)save_mean[i] + low) * (w->epsilon / divisor);
        const double sum = bnorm_fma(-off * invstd, sum_gxh, derived->sum_g[i]);
        derived->slope[i] = bnorm_round(-scale * (sum_gxh / divisor));
        derived->offset[i] = bnorm_round(
            bnorm_plus_product(-low * invstd, (double)derived->slope[i], -scale * (sum / divisor)));
    }
}

/* Coefficients that are weighted at once. */
#define AT_ONCE ((size_t)96)
/* Positions of equal weight that are worth a call of their own. */
#define LEAST_RUN ((size_t)16)

static void weight_floats(const float *values, size_t n, float weight, float *products) {
    for (size_t i = 0; i < n; i++)
        products[i] = weight * values[i];
}

/* A part all of whose positions have one weight; of one group, or of planes. */
static void equal_positions(const bnorm_map *map, const bnorm_part *whole, float weight, int near) {
    const bnorm_view *view = &map->view;
    const int plain = weight == 0 || weight == 1 || !map->args.slope;
    /* Planes are counted by groups, and a single group by its channels. */
    const size_t channels = view->planes ? whole->groups : whole->lanes;
    const size_t step = plain ? channels : AT_ONCE;
    float slope[AT_ONCE], offset[AT_ONCE];
    for (size_t at = 0; at < channels; at += step) {
        const size_t count = bnorm_min(step, channels - at);
        /* Other groups have fewer channels than that. */
        const bnorm_part part =
            step < channels ? bnorm_some_slices(view, whole, at, count) : *whole;
        bnorm_map_args args;
        bnorm_take_part(map, &part, near, &args);
        if (weight == 0) {
            args.slope = NULL;
        } else if (!plain) {
            const size_t known = bnorm_min(count, view->c - bnorm_channel_of(view, &part));
            weight_floats(args.slope, known, weight, slope);
            weight_floats(args.offset, known, weight, offset);
            args.slope = slope;
            args.offset = offset;
        }
        bnorm_run_map(map, &args);
    }
}

/* Positions of one group, in runs of equal weight. */
static void equal_runs(const bnorm_map *map, const bnorm_part *whole, const float *weights,
                       int near) {
    const size_t count = bnorm_positions(&map->view, whole);
    for (size_t at = 0, n; at < count; at += n) {
        n = equal_weights(weights + at, count - at);
        const bnorm_part part = bnorm_some_positions(&map->view, whole, at, n);
        equal_positions(map, &part, weights[at], near);
    }
}

/* Positions of different weights of one plane, or of whole rows of a block, which follow one
 * another: the elements are taken for the channels of one row. */
static void mixed_positions(const bnorm_map *map, const bnorm_part *part, const float *weights,
                            int near) {
    float center[AT_ONCE], scale[AT_ONCE], shift[AT_ONCE], invstd[AT_ONCE], slope[AT_ONCE],
        offset[AT_ONCE], dx[AT_ONCE], frozen[AT_ONCE];
    const size_t unit = bnorm_unit(&map->view), len = part->rows * part->lanes;
    bnorm_map rows = *map;
    bnorm_map_args *const args = &rows.args;
    bnorm_take_part(map, part, near, args);
    rows.kernel = bnorm_training_of(map->isa)->dx_rows;
    char *const out = args->out.data;
    int zeros = 0;
    for (size_t at = 0, p = 0; at < len; at += unit, p++) {
        zeros |= weights[p] == 0;
        for (size_t i = 0; i < unit; i++) {
            center[at + i] = args->center[i];
            scale[at + i] = args->scale[i];
            shift[at + i] = args->shift[i];
            invstd[at + i] = args->invstd[i];
            slope[at + i] = weights[p] * args->slope[i];
            offset[at + i] = weights[p] * args->offset[i];
        }
    }
    args->rows = args->groups = 1;
    args->lanes = args->valid = len;
    args->center = center;
    args->scale = scale;
    args->shift = shift;
    args->invstd = invstd;
    args->slope = slope;
    args->offset = offset;
    if (!zeros) {
        bnorm_run_map(&rows, args);
        return;
    }
    /* Both forms, of which each position takes one. Outputs may be inputs: they come last. */
    void *const dresidual = args->dresidual.data;
    args->out.data = dx;
    args->dresidual.data = NULL;
    bnorm_run_map(&rows, args);
    args->out.data = frozen;
    args->dresidual.data = dresidual;
    args->slope = NULL;
    bnorm_run_map(&rows, args);
    const size_t bytes = unit * bnorm_size_of(args->x.type);
    for (size_t at = 0, p = 0; at < len; at += unit, p++) {
        const char *const from = (const char *)(weights[p] == 0 ? frozen : dx) + p * bytes;
        if (bytes == sizeof *dx) /* not worth a call */
            memcpy(out + p * bytes, from, sizeof *dx);
        else
            memcpy(out + p * bytes, from, bytes);
    }
}

/* Several planes, or groups of channels, of the same positions. */
static void mapped_groups(const bnorm_map *map, const bnorm_part *whole, const float *weights,
                          int near) {
    const bnorm_view *view = &map->view;
    const size_t unit = bnorm_unit(view), count = bnorm_positions(view, whole);
    const int mixes = map->args.slope && !view->leaves; /* rows of (N, C) data may have gaps */
    for (size_t at = 0, n; at < count; at += n) {
        const size_t rest = count - at, equal = equal_weights(weights + at, rest);
        const int mixed = mixes && equal < LEAST_RUN && equal < rest;
        n = mixed ? bnorm_min(rest, AT_ONCE / unit) : equal;
        bnorm_part part = bnorm_some_positions(view, whole, at, n);
        if (!mixed && view->planes) {
            equal_positions(map, &part, weights[at], near);
            continue;
        }
        for (part.groups = 1; part.group < whole->group + whole->groups; part.group++) {
            if (mixed && (part.group + 1) * unit <= view->c)
                mixed_positions(map, &part, weights + at, near);
            else
                equal_runs(map, &part, weights + at, near);
        }
    }
}

void bnorm_weighted_map(const bnorm_map *map, const bnorm_weighing *w, const bnorm_part *part,
                        int near) {
    const bnorm_view *const view = &map->view;
    const size_t positions = view->planes ? view->lanes : view->rows,
                 count = bnorm_positions(view, part);
    bnorm_map cached;
    for (size_t i = 0; i < part->images; i++) {
        const float *const weights =
            w->values + (part->image + i) * positions + bnorm_first_position(view, part);
        bnorm_part image = *part;
        image.image += i;
        image.images = 1;
        if ((map->args.hints & BNORM_BYPASS) && equal_weights(weights, count) < count) {
            cached = *map; /* past the caches in long runs only */
            cached.args.hints &= ~(unsigned)BNORM_BYPASS;
            map = &cached;
        }
        if (bnorm_counts_groups(view))
            mapped_groups(map, &image, weights, near);
        else
            equal_runs(map, &image, weights, near);
    }
}
#undef ROWS
#undef LANES
#undef AT_ONCE
#undef LEAST_RUN

/* ------------------------------------------------------------------------------ src/workspace.c */

#define WS_ALIGN 64

size_t bnorm_workspace_need(const bnorm_view *view, const bnorm_blocks *blocks) {
    const size_t fixed = 4 * sizeof(double) + 7 * sizeof(float), entry = 2 * sizeof(double);
    size_t bytes, count = blocks->count;
    if (view->leaves) /* at either end up to one of each smaller size */
        count = bnorm_min(view->positions, view->positions / BNORM_LEAF + 12);
    if (__builtin_mul_overflow(count, entry, &bytes) ||
        __builtin_add_overflow(bytes, fixed, &bytes) ||
        __builtin_mul_overflow(bytes, view->c, &bytes) || bytes > (size_t)PTRDIFF_MAX / 2)
        return 0;
    return bytes + count * sizeof(double) + WS_ALIGN;
}

bnorm_tables bnorm_tables_of(const bnorm_view *view, const bnorm_blocks *blocks, void *ws) {
    const size_t c = view->c, entries = blocks->count * c, off = (size_t)((uintptr_t)ws % WS_ALIGN);
    double *const begin = (double *)(void *)((char *)ws + (off ? WS_ALIGN - off : 0)),
                  *merged = begin + 2 * entries;
    float *const floats = (float *)(void *)(merged + 4 * c + blocks->count);
    return (bnorm_tables){
        .entries = {begin, begin + entries},
        .merged = {merged, merged + c},
        .totals = {merged + 2 * c, merged + 3 * c},
        .coefficients = {floats, floats + c, floats + 2 * c, floats + 3 * c, floats + 4 * c},
        .params = {floats + 5 * c, floats + 6 * c},
        .weights = merged + 4 * c,
    };
}

bnorm_partials bnorm_partials_of(const bnorm_view *view, const bnorm_blocks *blocks,
                                 const bnorm_tables *tables) {
    const size_t hw = view->leaves ? 1 : view->positions;
    return (bnorm_partials){
        .entries = {tables->entries[0], tables->entries[1]},
        .stride = view->c,
        .first = blocks->first,
        .n = view->leaves ? view->positions : view->images,
        .leaf = view->leaves ? BNORM_LEAF : 1,
        .per_image = blocks->per_image,
        .size = (double)blocks->size,
        .last = (double)(hw - (blocks->per_image - 1) * blocks->size),
        .hw = (double)hw,
    };
}

size_t bnorm_workspace(bnorm_op op, const bnorm_shape *shape) {
    if ((unsigned)op > BNORM_OP_BACKWARD || bnorm_check_float_shape(shape) || bnorm_is_empty(shape))
        return 0;
    const bnorm_view view = bnorm_view_of(shape);
    const bnorm_blocks blocks = bnorm_blocks_of(&view, 0);
    return bnorm_workspace_need(&view, &blocks);
}

size_t bnorm_partial_size(size_t c, size_t n) {
    size_t nodes = 0, bytes;
    for (; n; n /= 2)
        nodes += 2;
    return __builtin_mul_overflow(c, nodes * 2 * sizeof(double), &bytes) ? 0 : bytes;
}
#undef WS_ALIGN
