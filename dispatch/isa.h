/* SPDX-License-Identifier: MIT
 *
 * The lists of kernels and of their sets. Prototypes, the tables' types, every set's tables, the
 * tests and the benches come from them.
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
#include "bnorm.h"
#include "cpu.h"

#pragma GCC visibility push(hidden)

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

/* What kernels do about the caches; changes nothing but the time. NEON's ignore it. */
enum bnorm_hint {
    BNORM_PREFETCH_IN = 1,  /* ask for lines of the inputs ahead of their use */
    BNORM_PREFETCH_OUT = 2, /* and for lines of the outputs */
    BNORM_STREAM = 4,       /* store whole lines past the caches; not for outputs that are inputs */
    BNORM_PREFETCH_SUMS = 8 /* reductions may ask for lines ahead */
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
    int same_lanes;    /* not 0: a row has one element, which stands for all lanes. Kernels that
                          reduce see BNORM_COPIES of it, for as many lanes or any plane; others
                          see such a tensor written out */
    bnorm_quant quant; /* S8 and U8; complete */
} bnorm_tensor;

/* Bits of elements, bit n of an array being (bits[n/8] >> n%8) & 1: that of an element is at `at` +
 * its offset by these strides. Bits of other elements that share a byte may belong to other
 * threads. */
typedef struct bnorm_bits {
    unsigned char *bits; /* NULL = none */
    size_t at, image_stride, group_stride, row_stride;
} bnorm_bits;

/* What an elementwise kernel and a reduction take.
 *   apply_*  out = act(fma(x - center, scale, shift) + argument)
 *   moments_* statistics of x; dy is absent, the parameters are not looked at
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
     * them. Fewer than `lanes` only where lanes is at most 32 and groups 1. Reductions take one
     * image, planes of at most BNORM_BLOCK_SPAN unless of F32, and have results for the first
     * `valid` channels of all groups. */
    size_t valid;
    bnorm_tensor x, dy;
    bnorm_tensor argument; /* residual; or y, where `pre` says so; absent = none */
    bnorm_tensor out;      /* y or dx; may be absent in dx_* */
    bnorm_tensor dresidual;
    bnorm_bits mask; /* written by apply_*, for RELU, CLAMP and LEAKY_RELU; read by others */
    enum bnorm_pre pre;
    bnorm_act act;
    unsigned hints;      /* sum of enum bnorm_hint */
    size_t ahead;        /* apply_* and dx_* ask for inputs so many bytes ahead; 0 = a little */
    const float *center; /* NULL in apply_* = no subtraction */
    const float *scale, *shift, *invstd, *slope, *offset;
} bnorm_map_args;

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
    X(moments_rows, (const bnorm_map_args *a, size_t chains, double *sum, double *m2))             \
    /* One block of each plane: 32 chains. */                                                      \
    X(moments_span, (const bnorm_map_args *a, double *sum, double *m2))                            \
    /* The same for up to BNORM_LEAF rows, a power of two: merged pair by pair, each an image. */  \
    X(moments_tree, (const bnorm_map_args *a, double *sum, double *m2))                            \
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

/* The kernel sets of this architecture, one per ISA folder, best first: X(bit, name). */
#if BNORM_HAVE_X86
#define BNORM_SETS(X)                                                                              \
    X(BNORM_CPU_AVX512, avx512) X(BNORM_CPU_AVX2, avx2) X(BNORM_CPU_SCALAR, scalar)
#elif BNORM_HAVE_NEON
#define BNORM_SETS(X) X(BNORM_CPU_NEON, neon) X(BNORM_CPU_SCALAR, scalar)
#else
#define BNORM_SETS(X) X(BNORM_CPU_SCALAR, scalar)
#endif
#define BNORM_TABLES(cpu, name)                                                                    \
    extern const struct bnorm_isa bnorm_isa_##name;                                                \
    extern const bnorm_training bnorm_training_##name;
BNORM_SETS(BNORM_TABLES)
#undef BNORM_TABLES

/* The kernels of training of a set. */
const bnorm_training *bnorm_training_of(const bnorm_isa *isa);

/* Whether the set has the activations from BNORM_ACT_SIGMOID on. */
int bnorm_isa_has_sleef(const bnorm_isa *isa);

#pragma GCC visibility pop

#endif
