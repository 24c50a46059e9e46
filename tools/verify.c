/* SPDX-License-Identifier: MIT
 *
 * bnorm-verify: does this machine compute the same bits as every other?
 *
 * Every function of bnorm.h runs on made-up data, on every kernel set that this CPU has. Each group
 * of cases gives one hash of all that was written, gaps between runs included; the hashes that
 * belong to this version of the library are in verify_hashes.inc. One program without other files,
 * so that it can be copied to a device and run there; static, unless SLEEF is at hand as a shared
 * library only: then the device needs that, too, or a build with SLEEF=0.
 *
 * The data comes from integers alone, so that no libm and no compiler has a say in it. How cases
 * are executed (alignment of buffers, one thread or tasks in shuffled order) differs from set to
 * set on purpose: the bits must not. */
#include "bnorm.h"
#include "../src/fp_mode.h"
#include "../tests/call.h"

#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#if (defined(__x86_64__) || defined(__i386__)) && defined(__GNUC__)
#include <cpuid.h>
#endif

/* The hashes of one group: of the small shapes alone (--quick), and of all. */
struct hashes {
    const char *name;
    uint64_t quick, all;
};

static const struct hashes expected[] = {
#include "verify_hashes.inc"
};
enum { EXPECTED = sizeof expected / sizeof expected[0] };

/* ---------------------------------------------------------------------------------------------- */
/* Shapes: the smallest first. They have every number of chains, whole and partial blocks, one and
 * many images, channels beyond one tile, and work enough to be shared out. */

static const struct {
    size_t n, c, hw;
} shapes[] = {{1, 1, 1},    {1, 17, 1},   {9, 3, 1},     {0, 5, 9},    {4, 5, 0},
              {3, 17, 49},  {2, 520, 2},  {2, 1, 4097},  {130, 65, 1}, {2, 24, 196},
              {5, 33, 64},  {1, 3, 5600}, {2, 130, 65},  {1, 520, 33}, {1, 2, 9000},
              {17, 320, 4}, {1, 64, 520}, {1, 31, 1100}, {34, 1024, 1}};
enum {
    SHAPES = sizeof shapes / sizeof shapes[0],
    SMALL_SHAPES = 11,
    SOME_SHAPES = 14,
    SOME_SMALL_SHAPES = 8,
    MAX_C = 1024,
    MAX_JOB_C = 40,
    CAPACITY = 1 << 17, /* elements of a tensor, gaps included */
    GUARD = 16,         /* elements behind it that must stay as they are */
    PLACES = 16,        /* different alignments, in elements */
    JOBS = 12,          /* that share the memory */
    JOB_ROOM = CAPACITY / JOBS,
    JOB_CAPACITY = JOB_ROOM - GUARD - PLACES
};

/* ---------------------------------------------------------------------------------------------- */
/* Groups of cases */

enum op {
    OP_FOLD,
    OP_FOLD_CONV,
    OP_RUNNING,
    OP_UPDATE,
    OP_JOBS,
    OP_MOMENTS,
    OP_APPLY,
    OP_FORWARD,
    OP_BACKWARD,
    OP_GHOST,
    OP_PIECES
};

/* Layouts that a group runs in, each under a name of its own. */
static const struct layout {
    const char *name;
    bnorm_layout layout;
    size_t c_block;
} layouts[] = {{"nhwc", BNORM_NHWC, 0},   {"nchw", BNORM_NCHW, 0},     {"nchw4c", BNORM_NCHW, 4},
               {"nchw8c", BNORM_NCHW, 8}, {"nchw16c", BNORM_NCHW, 16}, {"nchw32c", BNORM_NCHW, 32}};
enum { LAYOUTS = sizeof layouts / sizeof layouts[0], PLAIN_LAYOUTS = 2 };

enum where { ONCE, PLAIN, BLOCKED };

/* CANCELLING data has large pairs that cancel in a sum, so that the rounding of partial sums in
 * double, which floats can't show otherwise, is seen; under SYMMETRIC x it cancels in sum(g*x) too.
 */
enum data { NORMAL, SYMMETRIC, CANCELLING, OFFSET, OUTLIER, CONSTANT, EXTREME, SPECIAL };

enum {
    STRIDED = 1,
    IN_PLACE = 2,
    WITH_RESIDUAL = 4,
    FROM_Y = 8,
    FROZEN = 16,
    ANY_ACT = 32,      /* each case has another activation */
    ANY_RECOVERY = 64, /* ... and another way to recover its argument in backward */
    ANY_PLACE = 128,   /* in place or not */
    ANY_TYPE = 256,    /* F32, BF16 or F16 */
    ANY_Y = 512,       /* y has any type, S8 and U8 too */
    ANY_X = 1024,      /* and x */
    MASKED = 2048,     /* an activation with a mask */
    SLEEF = 4096,      /* activations that need it; `which` = 0: each case another */
    SOME = 8192,       /* not the larger shapes */
    WEIGHTED = 16384,  /* with weights */
    RENORM = 32768,    /* batch renormalization */
    ELSEWHERE = 65536, /* the variance is saved, and the running statistics go elsewhere */
    FROM_VAR = 131072, /* backward has a variance instead of an inverse deviation */
    EXPANDED = 262144  /* dy has one value along some axes */
};

/* `which` is an activation, a weight layout or a preset, as the op has it. */
struct group {
    enum op op;
    enum where where;
    const char *label;
    unsigned which;
    enum data data;
    unsigned flags;
    bnorm_dtype type;
};

enum preset { KERAS, TENSORFLOW, PYTORCH, PYTORCH_CUMULATIVE, ONNX, CAFFE };

static const struct group groups[] = {
    {OP_FOLD, ONCE, "normal", 0, NORMAL, 0, BNORM_F32},
    {OP_FOLD, ONCE, "special", 0, SPECIAL, 0, BNORM_F32},
    {OP_FOLD_CONV, ONCE, "oihw", BNORM_CONV_OIHW, NORMAL, 0, BNORM_F32},
    {OP_FOLD_CONV, ONCE, "ohwi", BNORM_CONV_OHWI, NORMAL, 0, BNORM_F32},
    {OP_FOLD_CONV, ONCE, "hwio", BNORM_CONV_HWIO, NORMAL, 0, BNORM_F32},
    {OP_FOLD_CONV, ONCE, "iohw", BNORM_CONV_IOHW, NORMAL, 0, BNORM_F32},
    {OP_FOLD_CONV, ONCE, "hwoi", BNORM_CONV_HWOI, NORMAL, 0, BNORM_F32},
    {OP_RUNNING, ONCE, "keras", KERAS, NORMAL, 0, BNORM_F32},
    {OP_RUNNING, ONCE, "tensorflow", TENSORFLOW, NORMAL, 0, BNORM_F32},
    {OP_RUNNING, ONCE, "pytorch", PYTORCH, NORMAL, 0, BNORM_F32},
    {OP_RUNNING, ONCE, "pytorch_cumulative", PYTORCH_CUMULATIVE, NORMAL, 0, BNORM_F32},
    {OP_RUNNING, ONCE, "onnx", ONNX, NORMAL, 0, BNORM_F32},
    {OP_RUNNING, ONCE, "caffe", CAFFE, NORMAL, 0, BNORM_F32},
    {OP_UPDATE, ONCE, "presets", 0, NORMAL, 0, BNORM_F32},
    {OP_MOMENTS, PLAIN, "normal", 0, NORMAL, 0, BNORM_F32},
    {OP_MOMENTS, PLAIN, "cancelling", 0, CANCELLING, 0, BNORM_F32},
    {OP_MOMENTS, PLAIN, "offset", 0, OFFSET, 0, BNORM_F32},
    {OP_MOMENTS, PLAIN, "outlier", 0, OUTLIER, 0, BNORM_F32},
    {OP_MOMENTS, PLAIN, "constant", 0, CONSTANT, 0, BNORM_F32},
    {OP_MOMENTS, PLAIN, "extreme", 0, EXTREME, 0, BNORM_F32},
    {OP_MOMENTS, PLAIN, "special", 0, SPECIAL, 0, BNORM_F32},
    {OP_MOMENTS, PLAIN, "strided", 0, CANCELLING, STRIDED, BNORM_F32},
    {OP_APPLY, PLAIN, "identity", BNORM_ACT_IDENTITY, NORMAL, 0, BNORM_F32},
    {OP_APPLY, PLAIN, "relu", BNORM_ACT_RELU, NORMAL, 0, BNORM_F32},
    {OP_APPLY, PLAIN, "clamp", BNORM_ACT_CLAMP, NORMAL, 0, BNORM_F32},
    {OP_APPLY, PLAIN, "leaky_relu", BNORM_ACT_LEAKY_RELU, NORMAL, 0, BNORM_F32},
    {OP_APPLY, PLAIN, "hard_swish", BNORM_ACT_HARD_SWISH, NORMAL, 0, BNORM_F32},
    {OP_APPLY, PLAIN, "special", 0, SPECIAL, ANY_ACT, BNORM_F32},
    {OP_APPLY, PLAIN, "strided", 0, NORMAL, ANY_ACT | STRIDED, BNORM_F32},
    {OP_APPLY, PLAIN, "in_place", 0, NORMAL, ANY_ACT | IN_PLACE, BNORM_F32},
    {OP_FORWARD, PLAIN, "identity", BNORM_ACT_IDENTITY, NORMAL, 0, BNORM_F32},
    {OP_FORWARD, PLAIN, "relu", BNORM_ACT_RELU, NORMAL, 0, BNORM_F32},
    {OP_FORWARD, PLAIN, "clamp", BNORM_ACT_CLAMP, NORMAL, 0, BNORM_F32},
    {OP_FORWARD, PLAIN, "leaky_relu", BNORM_ACT_LEAKY_RELU, NORMAL, 0, BNORM_F32},
    {OP_FORWARD, PLAIN, "hard_swish", BNORM_ACT_HARD_SWISH, NORMAL, 0, BNORM_F32},
    {OP_FORWARD, PLAIN, "offset", 0, OFFSET, ANY_ACT, BNORM_F32},
    {OP_FORWARD, PLAIN, "extreme", 0, EXTREME, ANY_ACT, BNORM_F32},
    {OP_FORWARD, PLAIN, "special", 0, SPECIAL, ANY_ACT, BNORM_F32},
    {OP_FORWARD, PLAIN, "strided", 0, NORMAL, ANY_ACT | STRIDED, BNORM_F32},
    {OP_FORWARD, PLAIN, "in_place", 0, NORMAL, ANY_ACT | IN_PLACE, BNORM_F32},
    {OP_BACKWARD, PLAIN, "identity", BNORM_ACT_IDENTITY, SYMMETRIC, 0, BNORM_F32},
    {OP_BACKWARD, PLAIN, "relu", BNORM_ACT_RELU, SYMMETRIC, 0, BNORM_F32},
    {OP_BACKWARD, PLAIN, "clamp", BNORM_ACT_CLAMP, SYMMETRIC, 0, BNORM_F32},
    {OP_BACKWARD, PLAIN, "leaky_relu", BNORM_ACT_LEAKY_RELU, SYMMETRIC, 0, BNORM_F32},
    {OP_BACKWARD, PLAIN, "hard_swish", BNORM_ACT_HARD_SWISH, SYMMETRIC, 0, BNORM_F32},
    {OP_BACKWARD, PLAIN, "residual", 0, SYMMETRIC, ANY_ACT | WITH_RESIDUAL, BNORM_F32},
    {OP_BACKWARD, PLAIN, "from_y", 0, SYMMETRIC, ANY_ACT | FROM_Y, BNORM_F32},
    {OP_BACKWARD, PLAIN, "frozen", 0, SYMMETRIC, ANY_ACT | FROZEN, BNORM_F32},
    {OP_BACKWARD, PLAIN, "extreme", 0, EXTREME, ANY_ACT | ANY_RECOVERY, BNORM_F32},
    {OP_BACKWARD, PLAIN, "special", 0, SPECIAL, ANY_ACT | ANY_RECOVERY, BNORM_F32},
    {OP_BACKWARD, PLAIN, "strided", 0, SYMMETRIC, ANY_ACT | ANY_RECOVERY | STRIDED, BNORM_F32},
    {OP_BACKWARD, PLAIN, "in_place", 0, SYMMETRIC, ANY_ACT | ANY_RECOVERY | IN_PLACE, BNORM_F32},

    /* Other types. */
    {OP_MOMENTS, PLAIN, "bf16", 0, CANCELLING, STRIDED | SOME, BNORM_BF16},
    {OP_MOMENTS, PLAIN, "bf16_extreme", 0, EXTREME, STRIDED | SOME, BNORM_BF16},
    {OP_MOMENTS, PLAIN, "bf16_special", 0, SPECIAL, STRIDED | SOME, BNORM_BF16},
    {OP_MOMENTS, PLAIN, "f16", 0, NORMAL, STRIDED | SOME, BNORM_F16},
    {OP_MOMENTS, PLAIN, "f16_special", 0, SPECIAL, STRIDED | SOME, BNORM_F16},
    {OP_APPLY, PLAIN, "bf16", 0, NORMAL, ANY_ACT | ANY_PLACE | STRIDED | SOME, BNORM_BF16},
    {OP_APPLY, PLAIN, "bf16_special", 0, SPECIAL, ANY_ACT | SOME, BNORM_BF16},
    {OP_APPLY, PLAIN, "f16", 0, NORMAL, ANY_ACT | ANY_PLACE | STRIDED | SOME, BNORM_F16},
    {OP_APPLY, PLAIN, "f16_special", 0, SPECIAL, ANY_ACT | SOME, BNORM_F16},
    {OP_APPLY, PLAIN, "types", 0, NORMAL, ANY_ACT | ANY_PLACE | STRIDED | SOME | ANY_X | ANY_Y,
     BNORM_F32},
    {OP_APPLY, PLAIN, "types_special", 0, SPECIAL, ANY_ACT | SOME | ANY_X | ANY_Y, BNORM_F32},
    {OP_APPLY, PLAIN, "s8", 0, NORMAL, ANY_ACT | ANY_PLACE | STRIDED | SOME, BNORM_S8},
    {OP_APPLY, PLAIN, "u8", 0, NORMAL, ANY_ACT | ANY_PLACE | STRIDED | SOME, BNORM_U8},
    {OP_FORWARD, PLAIN, "bf16", 0, NORMAL, ANY_ACT | ANY_PLACE | STRIDED | SOME, BNORM_BF16},
    {OP_FORWARD, PLAIN, "bf16_special", 0, SPECIAL, ANY_ACT | SOME, BNORM_BF16},
    {OP_FORWARD, PLAIN, "f16", 0, NORMAL, ANY_ACT | ANY_PLACE | STRIDED | SOME, BNORM_F16},
    {OP_FORWARD, PLAIN, "f16_special", 0, SPECIAL, ANY_ACT | SOME, BNORM_F16},
    {OP_BACKWARD, PLAIN, "bf16", 0, SYMMETRIC, ANY_ACT | ANY_PLACE | STRIDED | SOME | ANY_RECOVERY,
     BNORM_BF16},
    {OP_BACKWARD, PLAIN, "bf16_special", 0, SPECIAL, ANY_ACT | ANY_RECOVERY | SOME, BNORM_BF16},
    {OP_BACKWARD, PLAIN, "f16", 0, SYMMETRIC, ANY_ACT | ANY_PLACE | STRIDED | SOME | ANY_RECOVERY,
     BNORM_F16},
    {OP_BACKWARD, PLAIN, "f16_special", 0, SPECIAL, ANY_ACT | ANY_RECOVERY | SOME, BNORM_F16},

    /* Masks. */
    {OP_APPLY, PLAIN, "mask", 0, NORMAL, MASKED | ANY_TYPE | ANY_PLACE | STRIDED | SOME, BNORM_F32},
    {OP_FORWARD, PLAIN, "mask", 0, NORMAL, MASKED | ANY_TYPE | ANY_PLACE | STRIDED | SOME,
     BNORM_F32},
    {OP_BACKWARD, PLAIN, "mask", 0, SYMMETRIC, MASKED | ANY_TYPE | ANY_PLACE | STRIDED | SOME,
     BNORM_F32},

    /* Channel-blocked. */
    {OP_MOMENTS, BLOCKED, "normal", 0, NORMAL, STRIDED | SOME, BNORM_F32},
    {OP_MOMENTS, BLOCKED, "bf16", 0, NORMAL, STRIDED | SOME, BNORM_BF16},
    {OP_APPLY, BLOCKED, "normal", 0, NORMAL, ANY_ACT | ANY_PLACE | STRIDED | SOME, BNORM_F32},
    {OP_APPLY, BLOCKED, "bf16", 0, NORMAL, ANY_ACT | ANY_PLACE | STRIDED | SOME, BNORM_BF16},
    {OP_APPLY, BLOCKED, "types", 0, NORMAL, ANY_ACT | ANY_PLACE | STRIDED | SOME | ANY_X | ANY_Y,
     BNORM_F32},
    {OP_FORWARD, BLOCKED, "normal", 0, NORMAL, ANY_ACT | ANY_PLACE | STRIDED | SOME, BNORM_F32},
    {OP_FORWARD, BLOCKED, "bf16", 0, NORMAL, ANY_ACT | ANY_PLACE | STRIDED | SOME, BNORM_BF16},
    {OP_FORWARD, BLOCKED, "mask", 0, NORMAL, MASKED | ANY_TYPE | ANY_PLACE | STRIDED | SOME,
     BNORM_F32},
    {OP_BACKWARD, BLOCKED, "normal", 0, SYMMETRIC,
     ANY_ACT | ANY_PLACE | STRIDED | SOME | ANY_RECOVERY, BNORM_F32},
    {OP_BACKWARD, BLOCKED, "bf16", 0, SYMMETRIC,
     ANY_ACT | ANY_PLACE | STRIDED | SOME | ANY_RECOVERY, BNORM_BF16},
    {OP_BACKWARD, BLOCKED, "mask", 0, SYMMETRIC, MASKED | ANY_TYPE | ANY_PLACE | STRIDED | SOME,
     BNORM_F32},

    {OP_JOBS, ONCE, "all_ops", 0, NORMAL, STRIDED, BNORM_F32},

    {OP_FORWARD, PLAIN, "elsewhere", 0, NORMAL, ELSEWHERE | ANY_ACT | ANY_TYPE | SOME, BNORM_F32},
    {OP_BACKWARD, PLAIN, "from_var", 0, SYMMETRIC,
     FROM_VAR | ELSEWHERE | ANY_ACT | ANY_TYPE | SOME | ANY_RECOVERY, BNORM_F32},
    {OP_BACKWARD, PLAIN, "expanded", 0, SYMMETRIC,
     EXPANDED | ANY_ACT | ANY_TYPE | SOME | ANY_RECOVERY, BNORM_F32},

    /* Variants of the frameworks, and batches in pieces. */
    {OP_MOMENTS, PLAIN, "weights", 0, CANCELLING, WEIGHTED | STRIDED | SOME, BNORM_F32},
    {OP_MOMENTS, PLAIN, "weights_special", 0, SPECIAL, WEIGHTED | STRIDED | SOME, BNORM_F32},
    {OP_MOMENTS, BLOCKED, "weights", 0, CANCELLING, WEIGHTED | STRIDED | SOME, BNORM_F32},
    {OP_FORWARD, PLAIN, "weights", 0, NORMAL, WEIGHTED | ANY_ACT | ANY_TYPE | ANY_PLACE | SOME,
     BNORM_F32},
    {OP_BACKWARD, PLAIN, "weights", 0, SYMMETRIC,
     WEIGHTED | ANY_ACT | ANY_TYPE | ANY_PLACE | STRIDED | SOME | ANY_RECOVERY, BNORM_F32},
    {OP_BACKWARD, PLAIN, "weights_special", 0, SPECIAL, WEIGHTED | ANY_ACT | SOME | ANY_RECOVERY,
     BNORM_F32},
    {OP_BACKWARD, BLOCKED, "weights", 0, SYMMETRIC,
     WEIGHTED | ANY_ACT | ANY_TYPE | ANY_PLACE | STRIDED | SOME | ANY_RECOVERY, BNORM_F32},
    {OP_FORWARD, PLAIN, "renorm", 0, NORMAL, RENORM | ANY_ACT | ANY_TYPE | ANY_PLACE | SOME,
     BNORM_F32},
    {OP_FORWARD, PLAIN, "renorm_special", 0, SPECIAL, RENORM | WEIGHTED | ANY_ACT | SOME,
     BNORM_F32},
    {OP_BACKWARD, PLAIN, "renorm", 0, SYMMETRIC,
     RENORM | ANY_ACT | ANY_TYPE | ANY_PLACE | STRIDED | SOME | ANY_RECOVERY, BNORM_F32},
    {OP_GHOST, PLAIN, "normal", 0, SYMMETRIC, ANY_ACT | ANY_TYPE | STRIDED | SOME, BNORM_F32},
    {OP_GHOST, PLAIN, "special", 0, SPECIAL, ANY_ACT | SOME, BNORM_F32},
    {OP_GHOST, BLOCKED, "normal", 0, SYMMETRIC, ANY_ACT | ANY_TYPE | STRIDED | SOME, BNORM_F32},
    {OP_PIECES, PLAIN, "normal", 0, SYMMETRIC, ANY_ACT | STRIDED, BNORM_F32},
    {OP_PIECES, PLAIN, "offset", 0, OFFSET, ANY_ACT, BNORM_F32},
    {OP_PIECES, PLAIN, "cancelling", 0, CANCELLING, ANY_ACT, BNORM_F32},
    {OP_PIECES, PLAIN, "special", 0, SPECIAL, ANY_ACT, BNORM_F32},
    {OP_PIECES, BLOCKED, "normal", 0, SYMMETRIC, ANY_ACT | ANY_TYPE | STRIDED | SOME, BNORM_F32},

    /* Activations that need SLEEF. */
    {OP_APPLY, PLAIN, "sigmoid", BNORM_ACT_SIGMOID, NORMAL, SLEEF | SOME, BNORM_F32},
    {OP_APPLY, PLAIN, "silu", BNORM_ACT_SILU, NORMAL, SLEEF | SOME, BNORM_F32},
    {OP_APPLY, PLAIN, "tanh", BNORM_ACT_TANH, NORMAL, SLEEF | SOME, BNORM_F32},
    {OP_APPLY, PLAIN, "gelu", BNORM_ACT_GELU, NORMAL, SLEEF | SOME, BNORM_F32},
    {OP_APPLY, PLAIN, "elu", BNORM_ACT_ELU, NORMAL, SLEEF | SOME, BNORM_F32},
    {OP_APPLY, PLAIN, "softplus", BNORM_ACT_SOFTPLUS, NORMAL, SLEEF | SOME, BNORM_F32},
    {OP_APPLY, PLAIN, "mish", BNORM_ACT_MISH, NORMAL, SLEEF | SOME, BNORM_F32},
    {OP_APPLY, PLAIN, "sleef_special", 0, SPECIAL, SLEEF | SOME, BNORM_F32},
    {OP_APPLY, PLAIN, "sleef_bf16", 0, NORMAL, SLEEF | ANY_PLACE | STRIDED | SOME, BNORM_BF16},
    {OP_APPLY, PLAIN, "sleef_types", 0, NORMAL, SLEEF | ANY_X | ANY_Y | SOME, BNORM_F32},
    {OP_APPLY, BLOCKED, "sleef", 0, NORMAL, SLEEF | ANY_TYPE | ANY_PLACE | STRIDED | SOME,
     BNORM_F32},
    {OP_FORWARD, PLAIN, "sleef", 0, NORMAL, SLEEF | ANY_TYPE | ANY_PLACE | STRIDED | SOME,
     BNORM_F32},
    {OP_BACKWARD, PLAIN, "sigmoid", BNORM_ACT_SIGMOID, SYMMETRIC, SLEEF | ANY_RECOVERY | SOME,
     BNORM_F32},
    {OP_BACKWARD, PLAIN, "silu", BNORM_ACT_SILU, SYMMETRIC, SLEEF | ANY_RECOVERY | SOME, BNORM_F32},
    {OP_BACKWARD, PLAIN, "tanh", BNORM_ACT_TANH, SYMMETRIC, SLEEF | ANY_RECOVERY | SOME, BNORM_F32},
    {OP_BACKWARD, PLAIN, "gelu", BNORM_ACT_GELU, SYMMETRIC, SLEEF | ANY_RECOVERY | SOME, BNORM_F32},
    {OP_BACKWARD, PLAIN, "elu", BNORM_ACT_ELU, SYMMETRIC, SLEEF | ANY_RECOVERY | SOME, BNORM_F32},
    {OP_BACKWARD, PLAIN, "softplus", BNORM_ACT_SOFTPLUS, SYMMETRIC, SLEEF | ANY_RECOVERY | SOME,
     BNORM_F32},
    {OP_BACKWARD, PLAIN, "mish", BNORM_ACT_MISH, SYMMETRIC, SLEEF | ANY_RECOVERY | SOME, BNORM_F32},
    {OP_BACKWARD, PLAIN, "sleef_special", 0, SPECIAL, SLEEF | ANY_RECOVERY | SOME, BNORM_F32},
    {OP_BACKWARD, PLAIN, "sleef_bf16", 0, SYMMETRIC,
     SLEEF | ANY_RECOVERY | ANY_PLACE | STRIDED | SOME, BNORM_BF16},
    {OP_BACKWARD, BLOCKED, "sleef", 0, SYMMETRIC,
     SLEEF | ANY_RECOVERY | ANY_TYPE | ANY_PLACE | STRIDED | SOME, BNORM_F32},
};
enum { GROUPS = sizeof groups / sizeof groups[0] };

/* Each group in each of its layouts. */
static const struct {
    size_t first, end;
} layouts_of[] = {
    [ONCE] = {0, 1}, [PLAIN] = {0, PLAIN_LAYOUTS}, [BLOCKED] = {PLAIN_LAYOUTS, LAYOUTS}};
#define FOR_GROUPS(g, layout)                                                                      \
    for (size_t g = 0; g < GROUPS; g++)                                                            \
        for (size_t layout = layouts_of[groups[g].where].first;                                    \
             layout < layouts_of[groups[g].where].end; layout++)

/* What the hashes of groups with SLEEF belong to. */
#define SLEEF_VERSION "SLEEF 3.5.1"

/* ---------------------------------------------------------------------------------------------- */
/* One case, and the memory that all cases use in turn */

enum role { X, RESIDUAL, DY, Y, DX, DRESIDUAL, ROLES };
static float memory[ROLES][CAPACITY + GUARD + PLACES];

enum array {
    GAMMA,
    BETA,
    MEAN,
    VAR,
    BATCH_MEAN,
    INVSTD,
    MEAN_LO,
    OUT_A,
    OUT_B,
    RENORM_R,
    RENORM_D,
    SAVED_VAR,
    NEW_MEAN,
    NEW_VAR,
    ARRAYS
};
static float arrays[ARRAYS][MAX_C + GUARD];

static unsigned char mask_memory[CAPACITY / 8 + GUARD + PLACES];

enum { MAX_POSITIONS = 1 << 14 };
static float weight_memory[MAX_POSITIONS + PLACES];

static union {
    double align;
    unsigned char bytes[1 << 20];
} workspace;

/* Every element that is neither filled nor written holds this, the upper bits of it where it has
 * fewer: a NaN, so that reading it shows. Padding of inputs too. */
#define UNTOUCHED 0x7fa5a5a5u

struct test {
    const struct group *group;
    bnorm_shape shape;
    size_t index; /* of the shape, or of the case in groups without shapes */
    uint64_t random;
    bnorm_exec exec;
    size_t place; /* alignment of buffers */
    size_t job;   /* which part of the memory is used */
    /* parameters that forward and backward share */
    const float *gamma, *beta;
    double eps;
    bnorm_act act;
    unsigned char *mask; /* NULL = none */
    bnorm_weights weights;
    bnorm_renorm renorm;
    size_t set; /* number of the kernel set; results must not depend on it */
    uint64_t hash;
};

/* "splitmix64": Steele, Lea, Flood (2014) */
static uint64_t random_bits(uint64_t *state) {
    uint64_t v = *state += 0x9e3779b97f4a7c15u;
    v = (v ^ v >> 30) * 0xbf58476d1ce4e5b9u;
    v = (v ^ v >> 27) * 0x94d049bb133111ebu;
    return v ^ v >> 31;
}

/* One of 0 ... count - 1. */
static unsigned pick(struct test *t, unsigned count) {
    return (unsigned)(random_bits(&t->random) >> 32) % count;
}

/* FNV-1a over 32-bit values, low byte first whatever the byte order of the machine. */
#define HASH_START 0xcbf29ce484222325u
static uint64_t hash_bits(uint64_t hash, uint32_t bits) {
    for (int shift = 0; shift < 32; shift += 8)
        hash = (hash ^ (bits >> shift & 0xff)) * 0x100000001b3u;
    return hash;
}

static void hash_floats(struct test *t, const float *values, size_t count) {
    for (size_t i = 0; i < count; i++) {
        uint32_t bits;
        memcpy(&bits, &values[i], sizeof bits);
        t->hash = hash_bits(t->hash, bits);
    }
}

static void hash_double(struct test *t, double value) {
    uint64_t bits;
    memcpy(&bits, &value, sizeof bits);
    t->hash = hash_bits(hash_bits(t->hash, (uint32_t)bits), (uint32_t)(bits >> 32));
}

/* `count` outputs and the guard behind them. */
static void hash_array(struct test *t, enum array array, size_t count) {
    hash_floats(t, arrays[array], count + GUARD);
}

static void hash_bytes(struct test *t, const unsigned char *bytes, size_t count) {
    for (size_t i = 0; i < count; i++)
        t->hash = hash_bits(t->hash, bytes[i]);
}

static void set_bits(float *value, uint32_t bits) {
    memcpy(value, &bits, sizeof bits);
}

static void untouch(float *values, size_t count) {
    for (size_t i = 0; i < count; i++)
        set_bits(&values[i], UNTOUCHED);
}

static size_t size_of(bnorm_dtype type) {
    static const size_t sizes[] = {4, 2, 2, 1, 1};
    return sizes[type];
}

/* IEEE binary16, rounded towards zero; too large a value becomes infinite. */
static uint32_t half_bits(float value) {
    uint32_t bits;
    memcpy(&bits, &value, sizeof bits);
    const uint32_t sign = bits >> 16 & 0x8000, fraction = bits & 0x7fffff,
                   exponent = bits >> 23 & 0xff;
    if (exponent == 255)
        return sign | 0x7c00 | fraction >> 13;
    if (exponent > 142)
        return sign | 0x7c00;
    if (exponent > 112)
        return sign | (exponent - 112) << 10 | fraction >> 13;
    return exponent < 102 ? sign : sign | (fraction | 0x800000) >> (126 - exponent);
}

/* The middle of the type's range is 0; a NaN is the lowest value. */
static uint32_t byte_bits(float value, int middle) {
    const float q = value * 40;
    const int whole = q > 127 ? 127 : q > -128 ? (int)q : -128;
    return (uint32_t)(whole + middle) & 0xff;
}

/* The bits of an element for a value, which need not be the nearest one. */
static uint32_t encode(bnorm_dtype type, float value) {
    uint32_t bits;
    memcpy(&bits, &value, sizeof bits);
    switch (type) {
    case BNORM_F32:
        break;
    case BNORM_BF16:
        return bits >> 16;
    case BNORM_F16:
        return half_bits(value);
    case BNORM_S8:
        return byte_bits(value, 0);
    case BNORM_U8:
        return byte_bits(value, 128);
    }
    return bits;
}

static void expect_ok(bnorm_status status, const char *function) {
    if (status == BNORM_OK)
        return;
    printf("bnorm-verify: %s refused a valid call: %s\n"
           "Please report this line as a bug of bnorm %s.\n",
           function, bnorm_strerror(status), bnorm_version());
    exit(1);
}

/* For those who add shapes. */
static void too_small(const char *what, size_t wanted) {
    printf("bnorm-verify: %s is too small for a shape that needs %lu; enlarge it in verify.c\n",
           what, (unsigned long)wanted);
    exit(1);
}

/* Every task once, in an order that depends on *pool. */
static void shuffled(void *pool, void (*task)(void *arg, size_t i), void *arg, size_t count) {
    const size_t step = count % 7919 ? 7919 : 1; /* 7919 is a prime */
    size_t i = *(const size_t *)pool % count;
    for (size_t k = 0; k < count; k++, i = (i + step) % count)
        task(arg, i);
}

/* ---------------------------------------------------------------------------------------------- */
/* Data */

static float power_of_two(int exponent) {
    float value;
    set_bits(&value, (uint32_t)(exponent + 127) << 23);
    return value;
}

/* An integer with mean 0 and standard deviation 2^20: the sum of three uniform ones of 21 bits. It
 * has at most 23 bits and so is exact as a float. */
static float normal_integer(uint64_t *random) {
    const uint64_t bits = random_bits(random);
    const uint32_t sum = (uint32_t)(bits & 0x1fffff) + (uint32_t)(bits >> 21 & 0x1fffff) +
                         (uint32_t)(bits >> 42 & 0x1fffff);
    return (float)((int32_t)sum - 3 * (1 << 20));
}

static float normal(uint64_t *random) {
    return normal_integer(random) * 0x1p-20f;
}

/* `odd` is where an outlier is. */
struct channel {
    size_t number, count, odd;
    float constant;
    uint64_t seed;
};

/* Elements i and count - 1 - i share their random bits: large ones, one in four, cancel. */
static float cancelling(const struct channel *channel, size_t i, uint64_t *random) {
    const size_t mirror = channel->count - 1 - i;
    const uint64_t bits = random_bits(random);
    const float value = normal(random);
    if (i == mirror || bits % 4)
        return value * power_of_two(-(int)(bits >> 8 & 15));
    return i < mirror ? value * 0x1p32f : -value * 0x1p32f;
}

/* Channels with zeros only, without a special element, and with one of each. */
enum { SPECIAL_KINDS = 9 };

static void set_special(float *value, const struct channel *channel, size_t i, uint64_t *random) {
    static const uint32_t odd[SPECIAL_KINDS - 2] = {
        0x7fc12345u, /* NaN with a payload */
        0x7f800000u, /* infinity */
        0xff800000u, /* -infinity */
        0xffa00001u, /* signalling NaN */
        0x7f7fffffu, /* the largest float */
        0x00000001u, /* the smallest */
        0x80000000u, /* -0 */
    };
    const size_t kind = channel->number % SPECIAL_KINDS;
    *value = normal(random);
    if (kind == 0)
        set_bits(value, (uint32_t)i % 2 << 31); /* +0 and -0 in turn */
    else if (kind > 1 && i == channel->odd)
        set_bits(value, odd[kind - 2]);
}

/* Element i of a channel. */
static void set_value(float *value, enum data data, const struct channel *channel, size_t i,
                      uint64_t *random) {
    const int even = channel->number % 2 == 0;
    switch (data) {
    case NORMAL:
    case SYMMETRIC:
        *value = normal(random);
        break;
    case CANCELLING:
        *value = cancelling(channel, i, random);
        break;
    case OFFSET: /* 1e6 +- 4, in steps of 1/16 */
        *value = (16000000 + (float)(int)(normal(random) * 16)) * 0x1p-4f;
        break;
    case OUTLIER:
        *value = i == channel->odd ? 0x1p20f : normal(random);
        break;
    case CONSTANT: /* or but for one element */
        *value = even || i != channel->odd ? channel->constant : channel->constant * 1.5f;
        break;
    case EXTREME:
        if (channel->number % 4 < 2)
            *value = normal(random) * (even ? 0x1p122f : 0x1p66f);
        else if (even)
            *value = normal(random) * 0x1p-70f;
        else
            set_bits(value, (uint32_t)(random_bits(random) & 0x80ffffff)); /* denormal */
        break;
    case SPECIAL:
        set_special(value, channel, i, random);
        break;
    }
}

struct tensor {
    unsigned char *data;
    bnorm_dtype type;
    size_t run_stride, image_stride, extent;
};

static const struct tensor absent = {NULL, BNORM_F32, 0, 0, 0};

static void set_element(struct tensor tensor, size_t i, uint32_t bits) {
    const uint16_t two = (uint16_t)bits;
    unsigned char *p = tensor.data + i * size_of(tensor.type);
    if (tensor.type == BNORM_F32)
        memcpy(p, &bits, sizeof bits);
    else if (size_of(tensor.type) == 2)
        memcpy(p, &two, sizeof two);
    else
        *p = (unsigned char)bits;
}

static uint32_t element(struct tensor tensor, size_t i) {
    uint16_t two;
    uint32_t bits;
    const unsigned char *p = tensor.data + i * size_of(tensor.type);
    if (size_of(tensor.type) == 1)
        return *p;
    if (size_of(tensor.type) == 2) {
        memcpy(&two, p, sizeof two);
        return two;
    }
    memcpy(&bits, p, sizeof bits);
    return bits;
}

static size_t blocks_of(const bnorm_shape *s) {
    return (s->c + s->c_block - 1) / s->c_block;
}

/* The place of a tensor of the type in memory; nothing there is touched yet. */
static struct tensor tensor_of(const struct test *t, enum role role, bnorm_dtype type) {
    const bnorm_shape *s = &t->shape;
    size_t len = s->layout == BNORM_NHWC ? s->c : s->hw,
           runs = s->layout == BNORM_NHWC ? s->hw : s->c;
    if (s->c_block) {
        len = s->hw * s->c_block;
        runs = blocks_of(s);
    }
    const size_t gap = t->group->flags & STRIDED ? ((size_t)role + t->index) % 3 : 0;
    const size_t capacity = t->group->op == OP_JOBS ? JOB_CAPACITY : CAPACITY;
    struct tensor tensor = {.type = type, .run_stride = len + gap};
    tensor.data = (unsigned char *)(memory[role] + t->job * JOB_ROOM) +
                  (t->place + 3 * (size_t)role) % PLACES * size_of(type);
    tensor.image_stride = tensor.run_stride * runs + 2 * gap;
    if (s->n && s->hw)
        tensor.extent = (s->n - 1) * tensor.image_stride + (runs - 1) * tensor.run_stride + len;
    if (tensor.extent > capacity)
        too_small("CAPACITY", tensor.extent);
    for (size_t i = 0; i < tensor.extent + GUARD; i++)
        set_element(tensor, i, UNTOUCHED >> (32 - 8 * size_of(type)));
    return tensor;
}

static struct tensor tensor_at(const struct test *t, enum role role) {
    return tensor_of(t, role, t->shape.dtype);
}

/* A tensor with data in it. */
static struct tensor input(struct test *t, enum role role, enum data data) {
    const bnorm_shape *s = &t->shape;
    const struct tensor tensor = tensor_at(t, role);
    const int mirrored = data == SYMMETRIC || data == CANCELLING;
    const size_t run_step = s->layout == BNORM_NHWC ? 1 : tensor.run_stride,
                 pixel_step = s->c_block                ? s->c_block
                              : s->layout == BNORM_NHWC ? tensor.run_stride
                                                        : 1;
    for (size_t c = 0; c < s->c; c++) {
        /* Another kind of data for the first channels of each shape, the odd element at either end
         * or in between. */
        struct channel channel = {.number = c + t->index + (size_t)role, .count = s->n * s->hw};
        if (channel.count && c % 3)
            channel.odd = c % 3 == 1 ? channel.count - 1 : channel.count / 2;
        channel.constant = normal(&t->random);
        channel.seed = random_bits(&t->random);
        const size_t first = s->c_block ? c / s->c_block * run_step + c % s->c_block : c * run_step;
        for (size_t i = 0; i < channel.count; i++) {
            const size_t at = i / s->hw * tensor.image_stride + first + i % s->hw * pixel_step;
            const size_t mirror = channel.count - 1 - i;
            const size_t pair = mirrored && mirror < i ? mirror : i;
            uint64_t random = channel.seed + pair;
            float value;
            set_value(&value, data, &channel, i, &random);
            set_element(tensor, at, encode(tensor.type, value));
        }
    }
    return tensor;
}

static void hash_tensor(struct test *t, struct tensor tensor) {
    for (size_t i = 0; tensor.data && i < tensor.extent + GUARD; i++)
        t->hash = hash_bits(t->hash, element(tensor, i));
}

/* Dense tensors are given without strides. */
static bnorm_in as_in(const struct test *t, struct tensor tensor) {
    bnorm_in in = {tensor.data, 0, 0};
    if (t->group->flags & STRIDED) {
        in.run_stride = tensor.run_stride;
        in.image_stride = tensor.image_stride;
    }
    return in;
}

static bnorm_out as_out(const struct test *t, struct tensor tensor) {
    const bnorm_in in = as_in(t, tensor);
    const bnorm_out out = {tensor.data, in.run_stride, in.image_stride};
    return out;
}

/* Of the job. */
static float *array_of(const struct test *t, enum array array) {
    return arrays[array] + t->job * (MAX_JOB_C + GUARD);
}

static void fill_array(struct test *t, enum array array, size_t count) {
    float *values = array_of(t, array);
    for (size_t i = 0; i < count; i++) {
        const float value = normal(&t->random);
        values[i] = array == VAR && value < 0 ? -value : value;
    }
    untouch(values + count, GUARD);
}

static void *ws_of(const struct test *t, bnorm_op op, size_t *size) {
    const size_t room = sizeof workspace.bytes / (t->group->op == OP_JOBS ? JOBS : 1);
    *size = bnorm_workspace(op, &t->shape);
    if (*size > room - PLACES)
        too_small("the workspace", *size);
    return workspace.bytes + t->job * room + t->place;
}

static const bnorm_act_kind masked_acts[] = {BNORM_ACT_RELU, BNORM_ACT_CLAMP, BNORM_ACT_LEAKY_RELU};

/* The kind of activation of a case. */
static bnorm_act_kind act_kind(const struct test *t) {
    const struct group *group = t->group;
    const size_t number = t->index + (size_t)t->shape.layout;
    if (group->flags & ANY_ACT)
        return (bnorm_act_kind)(number % (BNORM_ACT_HARD_SWISH + 1));
    if (group->flags & MASKED)
        return masked_acts[(number + t->index / 3) % 3];
    if (group->flags & SLEEF && !group->which)
        return (bnorm_act_kind)(BNORM_ACT_SIGMOID +
                                number % (BNORM_ACT_MISH - BNORM_ACT_SIGMOID + 1));
    return group->op >= OP_APPLY ? (bnorm_act_kind)group->which : BNORM_ACT_IDENTITY;
}

/* A mask, runs of it, any weights, or weights that are all 1 or all 0. */
static void fill_weights(struct test *t) {
    static const double epsilons[] = {0, 1e-7, 0.5};
    const size_t count = t->shape.n * t->shape.hw;
    const unsigned kind = pick(t, 8), length = 1 + pick(t, 40);
    float *const values = weight_memory + t->place;
    if (count > MAX_POSITIONS)
        too_small("weight_memory", count);
    for (size_t i = 0; i < count; i++) {
        const float value = normal(&t->random);
        if (kind < 3)
            values[i] = (float)(value > 0);
        else if (kind < 5)
            values[i] = (float)(i / length % 2);
        else if (kind < 7)
            values[i] = value > -0.5f ? value + 0.5f : 0;
        else
            values[i] = (float)(t->index % 2);
    }
    t->weights.values = values;
    t->weights.epsilon = epsilons[pick(t, 3)];
}

static void set_renorm(struct test *t) {
    static const double limits[][3] = {{0.3, 3, 5}, {1, 1, 0}, {0.9, 1.1, 0.1}, {0, 1e30, 1e30}};
    const double *limit = limits[pick(t, 4)];
    t->renorm.r_min = limit[0];
    t->renorm.r_max = limit[1];
    t->renorm.d_max = limit[2];
    t->renorm.save_r = arrays[RENORM_R];
    t->renorm.save_d = arrays[RENORM_D];
}

static void clear_mask(struct test *t) {
    const size_t size = bnorm_mask_size(&t->shape);
    t->mask = mask_memory + t->place;
    if (size + PLACES + GUARD > sizeof mask_memory)
        too_small("mask_memory", size);
    memset(t->mask, 0xa5, size + GUARD);
}

static void hash_mask(struct test *t) {
    if (t->mask)
        hash_bytes(t, t->mask, bnorm_mask_size(&t->shape) + GUARD);
}

/* ---------------------------------------------------------------------------------------------- */
/* What each case runs */

/* Draws what all ops of a case have in common. */
static void prepare(struct test *t) {
    static const double epsilons[] = {1e-3, 1e-5, 0};
    const struct group *group = t->group;
    const size_t c = t->shape.c;

    for (int a = GAMMA; a <= VAR; a++)
        fill_array(t, (enum array)a, c);
    for (int a = BATCH_MEAN; a < ARRAYS; a++)
        untouch(arrays[a], c + GUARD);
    if (group->data == SPECIAL) {
        /* -0 where x is +0 or -0, so that the activation's argument is too */
        for (size_t i = 0; i < c; i++)
            if ((i + t->index + (size_t)X) % SPECIAL_KINDS == 0)
                set_bits(&arrays[BETA][i], 0x80000000u);
        /* channels of their own: a NaN or 0 in each parameter */
        set_bits(&arrays[GAMMA][5 % c], 0xffc00001u);
        set_bits(&arrays[BETA][6 % c], 0x7f800000u);
        set_bits(&arrays[MEAN][7 % c], 0xff800001u);
        set_bits(&arrays[VAR][8 % c], 0x7f800000u);
        arrays[VAR][9 % c] = 0;
    }
    t->gamma = pick(t, 4) ? arrays[GAMMA] : NULL;
    t->beta = pick(t, 4) || group->data == SPECIAL ? arrays[BETA] : NULL;
    t->eps = epsilons[pick(t, 3)];

    const int other = pick(t, 2) == 0;
    const bnorm_act act = {act_kind(t), 0, 0};
    t->act = act;
    if (t->act.kind == BNORM_ACT_CLAMP) {
        t->act.a = other ? -1.5f : 0;
        t->act.b = other ? 0.75f : 6;
    } else if (t->act.kind == BNORM_ACT_LEAKY_RELU) {
        t->act.a = other && !(group->flags & FROM_Y) ? -0.25f : 0.1f;
    } else if (t->act.kind == BNORM_ACT_ELU) {
        t->act.a = other ? 1 : 0.3f;
    }
    if (group->flags & MASKED)
        clear_mask(t);
    if (group->flags & WEIGHTED)
        fill_weights(t);
    if (group->flags & RENORM)
        set_renorm(t);
}

static void run_fold(struct test *t) {
    const size_t c = t->shape.c;
    float *scale = arrays[OUT_A], *shift = arrays[OUT_B];
    enum array scale_at = OUT_A, shift_at = OUT_B;
    if (pick(t, 3) == 0) { /* in place */
        scale_at = VAR;
        shift_at = MEAN;
        scale = arrays[VAR];
        shift = arrays[MEAN];
    }
    expect_ok(bnorm_fold(c, t->gamma, t->beta, arrays[MEAN], arrays[VAR], t->eps, scale, shift),
              "bnorm_fold");
    hash_array(t, scale_at, c);
    hash_array(t, shift_at, c);
}

static const bnorm_conv convs[] = {
    {BNORM_CONV_OIHW, 1, 1, 1, 0},   {BNORM_CONV_OIHW, 5, 3, 9, 1},
    {BNORM_CONV_OIHW, 6, 4, 4, 2},   {BNORM_CONV_OIHW, 12, 12, 9, 12},
    {BNORM_CONV_OIHW, 65, 33, 1, 1}, {BNORM_CONV_OIHW, 24, 12, 3, 4},
};
enum { CONVS = sizeof convs / sizeof convs[0] };

static void run_fold_conv(struct test *t) {
    bnorm_conv conv = convs[t->index];
    conv.layout = (bnorm_conv_layout)t->group->which;
    if (conv.layout == BNORM_CONV_HWOI)
        conv.groups = 1;
    const size_t c = conv.out_channels,
                 count = c * conv.in_channels * conv.kernel / (conv.groups ? conv.groups : 1);
    t->shape.c = count; /* the weights: one run of as many elements */
    const struct tensor weights = input(t, X, CANCELLING);
    const int in_place = pick(t, 2) == 0;
    const struct tensor out = in_place ? weights : tensor_at(t, Y);
    const float *bias = pick(t, 3) ? arrays[BATCH_MEAN] : NULL;
    fill_array(t, BATCH_MEAN, c);
    const enum array out_bias = in_place && bias ? BATCH_MEAN : OUT_A;
    expect_ok(bnorm_fold_conv(&conv, t->gamma, t->beta, arrays[MEAN], arrays[VAR], t->eps,
                              (const float *)(const void *)weights.data, bias,
                              (float *)(void *)out.data, arrays[out_bias]),
              "bnorm_fold_conv");
    hash_tensor(t, out);
    hash_array(t, out_bias, c);
}

static bnorm_running running_of(enum preset preset, double momentum, size_t step) {
    float *mean = arrays[MEAN], *var = arrays[VAR];
    switch (preset) {
    case KERAS:
        return bnorm_running_keras(mean, var, momentum);
    case TENSORFLOW:
        return bnorm_running_tensorflow(mean, var, momentum);
    case PYTORCH:
        return bnorm_running_pytorch(mean, var, momentum);
    case PYTORCH_CUMULATIVE:
        return bnorm_running_pytorch_cumulative(mean, var, step);
    case ONNX:
        return bnorm_running_onnx(mean, var, momentum);
    case CAFFE:
        break;
    }
    return bnorm_running_caffe(mean, var, momentum, step);
}

/* What the calls of a case have in common. */
static struct call call_of(const struct test *t, bnorm_op op) {
    const struct call call = {
        .op = op,
        .shape = t->shape,
        .act = t->act,
        .eps = t->eps,
        .epsilon = t->weights.epsilon,
        .renorm = t->renorm.save_r ? &t->renorm : NULL,
    };
    return call;
}

static struct operands operands_of(const struct test *t, bnorm_op op) {
    struct operands at = {.gamma = t->gamma,
                          .beta = t->beta,
                          .mask = t->mask,
                          .weights = t->weights.values,
                          .r = t->renorm.save_r,
                          .d = t->renorm.save_d};
    if (op != BNORM_OP_APPLY)
        at.ws = ws_of(t, op, &at.ws_size);
    return at;
}

static void run_call(const struct test *t, const struct call *call, const struct operands *at,
                     const char *function) {
    struct call_args args;
    call_arguments(&args, call, at);
    expect_ok(call_run(&args, &t->exec), function);
}

/* Running statistics, NULL = none, and what belongs to them. */
static void track(struct call *call, struct operands *at, const bnorm_running *running) {
    call->rate = running->rate;
    call->variance = running->variance;
    at->running_mean = running->mean;
    at->running_var = running->var;
}

/* Writes the mask too, where there is one. */
static void train(struct test *t, struct tensor x, struct tensor y, struct tensor residual,
                  const bnorm_running *running, int low) {
    struct call call = call_of(t, BNORM_OP_FORWARD_TRAIN);
    struct operands at = operands_of(t, BNORM_OP_FORWARD_TRAIN);
    track(&call, &at, running);
    at.x = as_in(t, x);
    at.out = as_out(t, y);
    at.residual = as_in(t, residual);
    at.mean = arrays[BATCH_MEAN];
    at.invstd = arrays[INVSTD];
    at.lo = low ? arrays[MEAN_LO] : NULL;
    if (t->group->flags & ELSEWHERE) {
        at.var = arrays[SAVED_VAR];
        at.new_mean = running->mean ? arrays[NEW_MEAN] : NULL;
        at.new_var = running->mean ? arrays[NEW_VAR] : NULL;
    }
    run_call(t, &call, &at, "bnorm_forward_train");
}

static const double momenta[] = {0.1, 0.9, 0.99, 0.001, 0, 1, -1.2};
static const size_t steps[] = {0, 1, 2, 3, 10, 1000, 65537};
enum { RUNNING_CASES = sizeof momenta / sizeof momenta[0] };

/* The preset itself, and three steps with it. */
static void run_running(struct test *t) {
    for (size_t k = 0; k < 3; k++) {
        const struct tensor x = input(t, X, NORMAL), y = tensor_at(t, Y);
        const bnorm_running running =
            running_of((enum preset)t->group->which, momenta[t->index], steps[t->index] + k);
        hash_double(t, running.rate);
        t->hash = hash_bits(t->hash, (uint32_t)running.variance);
        train(t, x, y, absent, &running, 0);
        hash_array(t, MEAN, t->shape.c);
        hash_array(t, VAR, t->shape.c);
    }
}

/* Statistics from elsewhere. */
static void run_update(struct test *t) {
    static const double counts[] = {1, 1.5, 2, 3, 100, 0x1p24, 1e9};
    for (int preset = KERAS; preset <= CAFFE; preset++) {
        const bnorm_running running = running_of((enum preset)preset, momenta[t->index], 3);
        fill_array(t, OUT_A, t->shape.c);
        fill_array(t, OUT_B, t->shape.c);
        expect_ok(bnorm_running_update(t->shape.c, arrays[OUT_A], arrays[OUT_B], counts[t->index],
                                       &running),
                  "bnorm_running_update");
        hash_array(t, MEAN, t->shape.c);
        hash_array(t, VAR, t->shape.c);
    }
}

static void run_moments(struct test *t) {
    const struct tensor x = input(t, X, t->group->data);
    const unsigned wanted = pick(t, 6); /* the mean or the variance alone, or both */
    const struct call call = call_of(t, BNORM_OP_MOMENTS);
    struct operands at = operands_of(t, BNORM_OP_MOMENTS);
    at.x = as_in(t, x);
    at.mean = wanted == 0 ? NULL : arrays[OUT_A];
    at.var = wanted == 1 ? NULL : arrays[OUT_B];
    run_call(t, &call, &at, t->weights.values ? "bnorm_weighted_moments" : "bnorm_moments");
    hash_array(t, OUT_A, t->shape.c);
    hash_array(t, OUT_B, t->shape.c);
}

/* Data of the other inputs of a case. */
static enum data companion(const struct test *t, enum data usual) {
    if (t->group->data == SPECIAL)
        return SPECIAL;
    return t->shape.dtype == BNORM_F16 ? SYMMETRIC : usual;
}

static struct tensor maybe_residual(struct test *t, int wanted) {
    return wanted ? input(t, RESIDUAL, companion(t, NORMAL)) : absent;
}

/* y = x, y = residual or a tensor of its own. */
static struct tensor output_y(struct test *t, struct tensor x, struct tensor residual,
                              bnorm_dtype type) {
    const unsigned flags = t->group->flags;
    const int in_place = flags & IN_PLACE || (flags & ANY_PLACE && pick(t, 2));
    if (!in_place || size_of(type) != size_of(x.type))
        return tensor_of(t, Y, type);
    struct tensor y = residual.data && pick(t, 2) ? residual : x;
    y.type = type;
    return y;
}

/* The zero means 1; types of floats have none. */
static bnorm_quant some_quant(struct test *t, bnorm_dtype type) {
    static const float scales[] = {0.025f, 0.025f, 0.0117f, 1, 0};
    bnorm_quant quant = {0, 0};
    if (type < BNORM_S8)
        return quant;
    quant.scale = scales[pick(t, 5)];
    quant.zero_point = (int)pick(t, 256) - (type == BNORM_S8 ? 128 : 0);
    return quant;
}

static void run_apply(struct test *t) {
    const bnorm_y_dtype y_dtype =
        t->group->flags & ANY_Y ? (bnorm_y_dtype)pick(t, BNORM_Y_U8 + 1) : BNORM_Y_SAME;
    const bnorm_dtype y_type =
        y_dtype == BNORM_Y_SAME ? t->shape.dtype : (bnorm_dtype)(y_dtype - BNORM_Y_F32);
    const struct tensor x = input(t, X, t->group->data),
                        residual = maybe_residual(t, pick(t, 2) == 0),
                        y = output_y(t, x, residual, y_type);
    struct call call = call_of(t, BNORM_OP_APPLY);
    struct operands at = operands_of(t, BNORM_OP_APPLY);
    struct call_args args;
    at.x = as_in(t, x);
    at.out = as_out(t, y);
    at.residual = as_in(t, residual);
    at.mean = pick(t, 2) && t->group->data != SPECIAL ? arrays[MEAN] : NULL;
    at.scale = t->gamma;
    call.y_dtype = y_dtype;
    call.x_quant = some_quant(t, x.type);
    call.residual_quant = some_quant(t, residual.type);
    call.y_quant = some_quant(t, y.type);
    call_arguments(&args, &call, &at);
    /* Without parameters at all. */
    const int copy = t->act.kind == BNORM_ACT_IDENTITY && pick(t, 6) == 0;
    if (copy && y_dtype == BNORM_Y_SAME)
        args.job.affine = NULL;
    expect_ok(call_run(&args, &t->exec), "bnorm_apply");
    hash_tensor(t, y);
    hash_mask(t);
}

static void run_forward(struct test *t) {
    const struct tensor x = input(t, X, t->group->data),
                        residual = maybe_residual(t, pick(t, 3) == 0),
                        y = output_y(t, x, residual, x.type);
    const bnorm_running none = {.mean = NULL};
    const bnorm_running running =
        pick(t, 3) || t->renorm.save_r ? running_of((enum preset)pick(t, CAFFE + 1), 0.1, 2) : none;
    train(t, x, y, residual, &running, pick(t, 3) > 0);
    hash_tensor(t, y);
    hash_mask(t);
    for (int a = MEAN; a <= MEAN_LO; a++)
        hash_array(t, (enum array)a, t->shape.c);
    if (t->renorm.save_r) {
        hash_array(t, RENORM_R, t->shape.c);
        hash_array(t, RENORM_D, t->shape.c);
    }
    for (int a = SAVED_VAR; t->group->flags & ELSEWHERE && a <= NEW_VAR; a++)
        hash_array(t, (enum array)a, t->shape.c);
}

static int y_tells(const bnorm_act *act) {
    return act->kind == BNORM_ACT_RELU || act->kind == BNORM_ACT_CLAMP ||
           (act->kind == BNORM_ACT_LEAKY_RELU && act->a > 0);
}

static void run_backward(struct test *t) {
    static const unsigned recoveries[] = {0, WITH_RESIDUAL, FROM_Y, FROZEN};
    const bnorm_running none = {.mean = NULL};
    const size_t c = t->shape.c;
    unsigned how = t->group->flags;
    if (how & ANY_RECOVERY)
        how |= recoveries[pick(t, 4)];
    if (how & MASKED)
        how |= pick(t, 3) ? 0 : FROZEN;
    if (how & ANY_PLACE)
        how |= pick(t, 2) ? IN_PLACE : 0;
    const int from_y = (how & FROM_Y) && y_tells(&t->act), low = pick(t, 3) > 0;
    const struct tensor x = input(t, X, t->group->data),
                        dy = input(t, DY, companion(t, CANCELLING)),
                        added = maybe_residual(t, how & WITH_RESIDUAL ||
                                                      ((from_y || t->mask) && pick(t, 2))),
                        y = tensor_at(t, Y);
    float *mean = arrays[BATCH_MEAN];

    if (how & FROZEN) {
        mean = arrays[MEAN];
        expect_ok(
            bnorm_fold(c, NULL, NULL, mean, arrays[VAR], t->eps, arrays[INVSTD], arrays[OUT_A]),
            "bnorm_fold");
        untouch(arrays[OUT_A], c + GUARD);
        if (t->mask) /* bits from somewhere else */
            for (size_t i = 0; i < bnorm_mask_size(&t->shape); i++)
                t->mask[i] = (unsigned char)random_bits(&t->random);
    } else {
        const bnorm_running keras = bnorm_running_keras(arrays[MEAN], arrays[VAR], 0.99);
        train(t, x, y, added, t->renorm.save_r ? &keras : &none, low);
    }
    float *const var = how & FROZEN ? arrays[VAR] : arrays[SAVED_VAR];
    const struct tensor residual = from_y || t->mask ? absent : added;
    const struct tensor extra = from_y ? y : residual;

    struct tensor dx, dresidual = absent;
    if (how & IN_PLACE) {
        const struct tensor over[] = {dy, x, extra.data ? extra : dy};
        dx = over[pick(t, 3)];
        if (pick(t, 2))
            dresidual = dx.data == dy.data ? tensor_at(t, DRESIDUAL) : dy;
    } else {
        dx = pick(t, 8) ? tensor_at(t, DX) : absent;
        if (pick(t, 2))
            dresidual = tensor_at(t, DRESIDUAL);
    }

    struct call call = call_of(t, BNORM_OP_BACKWARD);
    struct operands at = operands_of(t, BNORM_OP_BACKWARD);
    call.frozen = (how & FROZEN) != 0;
    at.x = as_in(t, x);
    at.dy = as_in(t, dy);
    at.residual = as_in(t, residual);
    at.y = as_in(t, from_y ? y : absent);
    at.out = as_out(t, dx);
    at.dresidual = as_out(t, dresidual);
    at.mean = mean;
    at.invstd = how & FROM_VAR ? NULL : arrays[INVSTD];
    at.var = how & FROM_VAR ? var : NULL;
    at.lo = low && !call.frozen ? arrays[MEAN_LO] : NULL;
    at.dgamma = pick(t, 5) ? arrays[OUT_A] : NULL;
    at.dbeta = pick(t, 5) ? arrays[OUT_B] : NULL;
    if (call.frozen)
        at.r = at.d = NULL;
    if (how & EXPANDED) {
        call.dy_broadcast = 1 + pick(t, 7);
        at.dy.run_stride = at.dy.image_stride = 0;
    }
    run_call(t, &call, &at, "bnorm_backward");
    hash_tensor(t, dx);
    hash_tensor(t, dresidual);
    hash_mask(t);
    hash_array(t, OUT_A, c);
    hash_array(t, OUT_B, c);
}

/* ---------------------------------------------------------------------------------------------- */
/* Ghost batches */

enum { MAX_SAVED = 1 << 14 }; /* statistics of all groups */
static float saved_by_groups[3][MAX_SAVED];

static size_t divisor_of(size_t n, size_t most) {
    size_t d = most < n ? most : n;
    while (d > 1 && n % d)
        d--;
    return d ? d : 1;
}

static void run_ghost(struct test *t) {
    const size_t parts = divisor_of(t->shape.n, 1 + pick(t, 7)), count = parts * t->shape.c;
    const bnorm_ghost_order order = (bnorm_ghost_order)pick(t, 2);
    const bnorm_ghost ghost = {parts, order, (bnorm_ghost_running)pick(t, 2)};
    const struct tensor x = input(t, X, t->group->data), residual = maybe_residual(t, !pick(t, 3)),
                        y = tensor_at(t, Y);
    const bnorm_running running = running_of((enum preset)pick(t, CAFFE + 1), 0.1, 2);
    struct call call = call_of(t, BNORM_OP_FORWARD_TRAIN);
    struct operands at = operands_of(t, BNORM_OP_FORWARD_TRAIN);
    if (count + GUARD > MAX_SAVED)
        too_small("saved_by_groups", count);
    for (size_t a = 0; a < 3; a++)
        untouch(saved_by_groups[a], count + GUARD);
    call.ghost = &ghost;
    track(&call, &at, &running);
    at.x = as_in(t, x);
    at.out = as_out(t, y);
    at.residual = as_in(t, residual);
    at.mean = saved_by_groups[0];
    at.invstd = saved_by_groups[1];
    at.lo = saved_by_groups[2];
    run_call(t, &call, &at, "bnorm_forward_train_ghost");
    hash_tensor(t, y);
    for (size_t a = 0; a < 3; a++)
        hash_floats(t, saved_by_groups[a], count + GUARD);
    hash_array(t, MEAN, t->shape.c);
    hash_array(t, VAR, t->shape.c);

    const struct tensor dy = input(t, DY, companion(t, CANCELLING)), dx = tensor_at(t, DX),
                        dresidual = tensor_at(t, DRESIDUAL);
    call.op = BNORM_OP_BACKWARD;
    at.ws = ws_of(t, BNORM_OP_BACKWARD, &at.ws_size);
    at.dy = as_in(t, dy);
    at.out = as_out(t, dx);
    at.dresidual = as_out(t, dresidual);
    at.dgamma = arrays[OUT_A];
    at.dbeta = arrays[OUT_B];
    run_call(t, &call, &at, "bnorm_backward_ghost");
    hash_tensor(t, dx);
    hash_tensor(t, dresidual);
    hash_array(t, OUT_A, t->shape.c);
    hash_array(t, OUT_B, t->shape.c);
}

/* ---------------------------------------------------------------------------------------------- */
/* Pieces: sets cut the batch in different ways, or make one call of it */

enum { NODES = 2 * 2 * 8, MAX_NODES = 2 * NODES * MAX_C }; /* for up to 8 binary digits */
static double piece_memory[2][MAX_NODES];
static double totals[2][MAX_C];

/* Tensors of a case, and both calls in one. */
struct pieces {
    struct tensor x, residual, y, dy, dx;
    struct call_args train, grad;
};

static struct tensor images_of(struct tensor tensor, size_t first) {
    if (tensor.data)
        tensor.data += first * tensor.image_stride * size_of(tensor.type);
    return tensor;
}

/* A case of `count` images of t. */
static struct test part_of(const struct test *t, size_t count) {
    struct test part = *t;
    part.shape.n = count;
    return part;
}

static bnorm_partial empty_piece(const struct test *t, bnorm_op op, size_t first, double *nodes) {
    const bnorm_partial piece = {
        .op = op, .c = t->shape.c, .first = first, .nodes = nodes, .size = sizeof piece_memory[0]};
    if (bnorm_partial_size(t->shape.c, t->shape.n) > piece.size)
        too_small("piece_memory", bnorm_partial_size(t->shape.c, t->shape.n));
    return piece;
}

/* Backward's options for the images from `first` on. */
static bnorm_grad grad_of(const struct test *t, const struct pieces *all, size_t first) {
    bnorm_grad grad = all->grad.grad;
    grad.residual = as_in(t, images_of(all->residual, first));
    return grad;
}

static void collect(const struct test *t, const struct pieces *all, size_t first,
                    bnorm_partial *piece) {
    size_t size;
    void *const ws = ws_of(t, piece->op, &size);
    const bnorm_in x = as_in(t, images_of(all->x, first));
    if (piece->op == BNORM_OP_BACKWARD) {
        const bnorm_grad grad = grad_of(t, all, first);
        expect_ok(bnorm_partial_collect_grad(&t->shape, x, as_in(t, images_of(all->dy, first)),
                                             &grad, piece, ws, size, &t->exec),
                  "bnorm_partial_collect_grad");
    } else {
        expect_ok(bnorm_partial_collect(&t->shape, x, piece, ws, size, &t->exec),
                  "bnorm_partial_collect");
    }
}

/* How many images the next piece of the set has. */
static size_t next_count(const struct test *t, size_t first) {
    const size_t left = t->shape.n - first, step = 1 + (first + 3 * t->set + t->index) % 37;
    return t->set % 3 == 1 && first == 0 ? (left + 1) / 2 : step < left ? step : left;
}

/* The whole batch, appended or merged piece by piece. */
static bnorm_partial collect_all(const struct test *t, const struct pieces *all, bnorm_op op) {
    bnorm_partial whole = empty_piece(t, op, 0, piece_memory[0]);
    for (size_t first = 0, count; first < t->shape.n; first += count) {
        count = next_count(t, first);
        const struct test part = part_of(t, count);
        bnorm_partial piece = empty_piece(t, op, first, piece_memory[1]);
        if ((first + t->set) % 3 == 0) {
            collect(&part, all, first, &whole);
        } else {
            collect(&part, all, first, &piece);
            expect_ok(bnorm_partial_merge(&whole, &piece), "bnorm_partial_merge");
        }
    }
    return whole;
}

static void hash_total(struct test *t, const bnorm_partial *piece) {
    double count;
    expect_ok(bnorm_partial_total(piece, &count, totals[0], totals[1]), "bnorm_partial_total");
    hash_double(t, count);
    for (size_t i = 0; i < 2 * t->shape.c; i++)
        hash_double(t, totals[i / t->shape.c][i % t->shape.c]);
}

/* y, or dx, of the images of one piece. */
static void apply_piece(const struct test *t, const struct pieces *all, size_t first, bnorm_op op,
                        const float *coefficients) {
    const bnorm_in x = as_in(t, images_of(all->x, first));
    if (op == BNORM_OP_BACKWARD) {
        const bnorm_grad grad = grad_of(t, all, first);
        expect_ok(bnorm_partial_apply_grad(&t->shape, x, as_in(t, images_of(all->dy, first)),
                                           as_out(t, images_of(all->dx, first)), &grad,
                                           coefficients, &t->exec),
                  "bnorm_partial_apply_grad");
    } else {
        const bnorm_affine affine = {
            .center = coefficients,
            .scale = coefficients + t->shape.c,
            .shift = coefficients + 2 * t->shape.c,
            .residual = as_in(t, images_of(all->residual, first)),
            .act = t->act,
        };
        expect_ok(bnorm_apply(&t->shape, x, as_out(t, images_of(all->y, first)), &affine, &t->exec),
                  "bnorm_apply");
    }
}

/* What one call does after its reduction. */
static void finish_in_pieces(const struct test *t, const struct pieces *all,
                             const bnorm_partial *whole) {
    static float coefficients[5 * MAX_C];
    if (whole->op == BNORM_OP_BACKWARD)
        expect_ok(bnorm_partial_finish_grad(whole, &all->grad.grad, coefficients),
                  "bnorm_partial_finish_grad");
    else
        expect_ok(bnorm_partial_finish(whole, &all->train.train, coefficients),
                  "bnorm_partial_finish");
    for (size_t first = 0, count; first < t->shape.n; first += count) {
        count = next_count(t, first);
        const struct test part = part_of(t, count);
        apply_piece(&part, all, first, whole->op, coefficients);
    }
}

static void run_pieces(struct test *t) {
    const size_t c = t->shape.c;
    /* Of an empty batch, bnorm_partial_finish() clears what one call leaves as it is. */
    const int one_call = t->shape.n && t->shape.hw && (t->set + t->index) % 3 == 0;
    struct pieces all;
    /* One after the other: they draw from one sequence. */
    all.x = input(t, X, t->group->data);
    all.residual = maybe_residual(t, !pick(t, 3));
    all.dy = input(t, DY, companion(t, CANCELLING));
    all.y = tensor_at(t, Y);
    all.dx = tensor_at(t, DX);
    const bnorm_running running = running_of((enum preset)pick(t, CAFFE + 1), 0.1, 2);
    struct call call = call_of(t, BNORM_OP_FORWARD_TRAIN);
    struct operands at = operands_of(t, BNORM_OP_FORWARD_TRAIN);
    track(&call, &at, &running);
    at.x = as_in(t, all.x);
    at.out = as_out(t, all.y);
    at.residual = as_in(t, all.residual);
    at.mean = arrays[BATCH_MEAN];
    at.invstd = arrays[INVSTD];
    at.lo = arrays[MEAN_LO];
    call_arguments(&all.train, &call, &at);
    call.op = BNORM_OP_BACKWARD;
    at.ws = ws_of(t, BNORM_OP_BACKWARD, &at.ws_size);
    at.dy = as_in(t, all.dy);
    at.out = as_out(t, all.dx);
    at.dgamma = arrays[OUT_A];
    at.dbeta = arrays[OUT_B];
    call_arguments(&all.grad, &call, &at);
    const bnorm_partial statistics = collect_all(t, &all, BNORM_OP_MOMENTS);
    hash_total(t, &statistics);
    if (one_call)
        expect_ok(call_run(&all.train, &t->exec), "bnorm_forward_train");
    else
        finish_in_pieces(t, &all, &statistics);
    hash_tensor(t, all.y);
    for (int a = MEAN; a <= MEAN_LO; a++)
        hash_array(t, (enum array)a, c);

    const bnorm_partial sums = collect_all(t, &all, BNORM_OP_BACKWARD);
    hash_total(t, &sums);
    if (one_call)
        expect_ok(call_run(&all.grad, &t->exec), "bnorm_backward");
    else
        finish_in_pieces(t, &all, &sums);
    hash_tensor(t, all.dx);
    hash_array(t, OUT_A, c);
    hash_array(t, OUT_B, c);
}

/* ---------------------------------------------------------------------------------------------- */
/* Jobs: each has its part of the memory */

struct job {
    struct call_args args;
    struct tensor out;
};

/* Fills the memory of job t->job. */
static void new_job(struct test *t, struct job *job) {
    static const size_t sizes[][3] = {{1, 1, 1}, {3, 17, 49}, {2, 40, 9},
                                      {0, 5, 9}, {1, 3, 300}, {8, 33, 1}};
    static const bnorm_op ops[] = {BNORM_OP_APPLY, BNORM_OP_FORWARD_TRAIN, BNORM_OP_BACKWARD,
                                   BNORM_OP_MOMENTS};
    const size_t *size = sizes[(t->job + t->index) % 6];
    const struct layout *layout = &layouts[(t->job + t->index / 2) % LAYOUTS];
    const bnorm_act act = {masked_acts[pick(t, 2) * 2], 0.1f, 0};
    bnorm_shape *s = &t->shape;

    s->layout = layout->layout;
    s->c_block = layout->c_block;
    s->n = size[0];
    s->c = size[1];
    s->hw = size[2];
    s->dtype = (bnorm_dtype)pick(t, BNORM_F16 + 1);
    for (int a = GAMMA; a < ARRAYS; a++)
        if (a <= VAR)
            fill_array(t, (enum array)a, s->c);
        else
            untouch(array_of(t, (enum array)a), s->c + GUARD);
    const struct tensor x = input(t, X, NORMAL), dy = input(t, DY, NORMAL);
    job->out = tensor_at(t, Y);
    const struct call call = {
        .op = ops[pick(t, 4)],
        .shape = *s,
        .act = act,
        .eps = 1e-3,
        .rate = 0.1,
        .variance = BNORM_VARIANCE_SAMPLE,
    };
    const int training = call.op == BNORM_OP_FORWARD_TRAIN;
    struct operands at = {
        .x = as_in(t, x),
        .dy = as_in(t, dy),
        .out = as_out(t, job->out),
        .gamma = array_of(t, GAMMA),
        .beta = array_of(t, BETA),
        .scale = array_of(t, GAMMA),
        .running_mean = array_of(t, MEAN),
        .running_var = array_of(t, VAR),
        .dgamma = array_of(t, OUT_A),
        .dbeta = array_of(t, OUT_B),
    };
    if (call.op == BNORM_OP_MOMENTS) {
        at.mean = array_of(t, OUT_A);
        at.var = array_of(t, OUT_B);
    } else if (call.op != BNORM_OP_APPLY) {
        at.mean = array_of(t, training ? BATCH_MEAN : MEAN);
        at.invstd = array_of(t, training ? INVSTD : VAR);
    }
    at.ws = ws_of(t, call.op, &at.ws_size);
    call_arguments(&job->args, &call, &at);
}

static void run_jobs(struct test *t) {
    static struct job jobs[JOBS];
    static bnorm_job calls[JOBS];
    for (t->job = 0; t->job < JOBS; t->job++) {
        new_job(t, &jobs[t->job]);
        calls[t->job] = jobs[t->job].args.job;
    }
    expect_ok(bnorm_run_jobs(calls, JOBS, NULL, &t->exec), "bnorm_run_jobs");
    for (t->job = 0; t->job < JOBS; t->job++) {
        hash_tensor(t, jobs[t->job].out);
        for (int a = MEAN; a <= OUT_B; a++)
            hash_floats(t, array_of(t, (enum array)a), jobs[t->job].args.shape.c + GUARD);
    }
}

/* ---------------------------------------------------------------------------------------------- */
/* Running a group on a set */

enum { MAX_CASES = SHAPES, MAX_NAME = 64 };

/* The hash after each case, so that the first one that differs can be named. */
struct result {
    uint64_t after[MAX_CASES];
    uint64_t quick, all;
};

static size_t case_count(const struct group *group) {
    if (group->op == OP_FOLD_CONV)
        return CONVS;
    if (group->op >= OP_RUNNING && group->op <= OP_JOBS)
        return RUNNING_CASES;
    return group->flags & SOME ? (size_t)SOME_SHAPES : (size_t)SHAPES;
}

static size_t quick_count(const struct group *group) {
    const size_t count = case_count(group),
                 small = group->flags & SOME ? (size_t)SOME_SMALL_SHAPES : (size_t)SMALL_SHAPES;
    return count < small ? count : small;
}

static void name_of(const struct group *group, const struct layout *layout, char *name) {
    static const char *const ops[] = {"fold",     "fold_conv", "running", "running_update",
                                      "jobs",     "moments",   "apply",   "forward_train",
                                      "backward", "ghost",     "pieces"};
    if (group->where != ONCE)
        snprintf(name, MAX_NAME, "%s/%s/%s", ops[group->op], layout->name, group->label);
    else
        snprintf(name, MAX_NAME, "%s/%s", ops[group->op], group->label);
}

static bnorm_shape shape_of(const struct group *group, const struct layout *layout, size_t k) {
    bnorm_shape shape = {.layout = layout->layout,
                         .dtype = group->type,
                         .n = 1,
                         .hw = 1,
                         .c_block = layout->c_block};
    if (group->flags & ANY_TYPE)
        shape.dtype = (bnorm_dtype)(k % (BNORM_F16 + 1));
    if (group->flags & ANY_X)
        shape.dtype = (bnorm_dtype)(k % (BNORM_U8 + 1));
    if (group->op == OP_FOLD_CONV) {
        shape.c = convs[k].out_channels;
    } else if (group->op == OP_RUNNING || group->op == OP_UPDATE) {
        shape.n = 1 + k;
        shape.c = 5;
        shape.hw = 1 + k % 3;
    } else {
        shape.n = shapes[k].n;
        shape.c = shapes[k].c;
        shape.hw = shapes[k].hw;
    }
    /* More than one block of the reductions, but no more, as padding takes room too. */
    if (shape.c_block && shape.hw > 17000 / shape.c_block)
        shape.hw = 17000 / shape.c_block;
    return shape;
}

static void run_case(struct test *t) {
    prepare(t);
    switch (t->group->op) {
    case OP_FOLD:
        run_fold(t);
        break;
    case OP_FOLD_CONV:
        run_fold_conv(t);
        break;
    case OP_RUNNING:
        run_running(t);
        break;
    case OP_UPDATE:
        run_update(t);
        break;
    case OP_JOBS:
        run_jobs(t);
        break;
    case OP_MOMENTS:
        run_moments(t);
        break;
    case OP_APPLY:
        run_apply(t);
        break;
    case OP_FORWARD:
        run_forward(t);
        break;
    case OP_BACKWARD:
        run_backward(t);
        break;
    case OP_GHOST:
        run_ghost(t);
        break;
    case OP_PIECES:
        run_pieces(t);
        break;
    }
}

/* The data depends on the name of the group and the case alone; the way it is executed also on
 * `set`, the number of the kernel set. */
static void run_group(const struct group *group, const struct layout *layout, size_t set, int quick,
                      int flush, struct result *result) {
    const size_t count = quick ? quick_count(group) : case_count(group);
    char name[MAX_NAME];
    uint64_t seed = HASH_START, hash = HASH_START;

    name_of(group, layout, name);
    for (const char *s = name; *s; s++)
        seed = hash_bits(seed, (unsigned char)*s);
    const bnorm_fp_mode mode = flush ? bnorm_flush_denormals() : 0;
    for (size_t k = 0; k < count; k++) {
        size_t start = 1 + k + 3 * set; /* of the shuffled order */
        struct test t = {.group = group, .index = k, .hash = hash};
        t.shape = shape_of(group, layout, k);
        t.random = seed + k;
        t.place = (k + 5 * set) % PLACES;
        t.set = set;
        t.exec.isa = bnorm_isa_at(set);
        t.exec.memory = (bnorm_memory)((k / 3 + set) % 4);
        if ((k + set) % 2) {
            t.exec.parallel = shuffled;
            t.exec.pool = &start;
            t.exec.threads = (k / 2 + set) % 6;
        }
        run_case(&t);
        hash = result->after[k] = t.hash;
    }
    if (flush)
        bnorm_restore_mode(mode);
    result->quick = result->after[quick_count(group) - 1];
    result->all = result->after[count - 1];
}

/* ---------------------------------------------------------------------------------------------- */
/* What is said */

#if (defined(__x86_64__) || defined(__i386__)) && defined(__GNUC__)
/* From the CPU itself: right under an emulator too. */
static void cpu_name(char *name, size_t size) {
    unsigned words[13] = {0};
    for (unsigned i = 0; i < 3; i++)
        if (!__get_cpuid(0x80000002u + i, &words[4 * i], &words[4 * i + 1], &words[4 * i + 2],
                         &words[4 * i + 3]))
            break;
    const char *text = (const char *)words;
    text += strspn(text, " ");
    snprintf(name, size, "%s", *text ? text : "x86 without a name");
}
#else
static void cpu_name(char *name, size_t size) {
    /* As Linux names it: Arm boards, RISC-V, s390, Power; Arm cores by number. */
    static const char *const keys[] = {"model name", "Model",    "uarch",   "processor 0",
                                       "cpu",        "CPU part", "Hardware"};
    size_t best = sizeof keys / sizeof keys[0];
    char line[256];
    FILE *file = fopen("/proc/cpuinfo", "r");
    snprintf(name, size, "unknown; please add it to a report");
    while (file && fgets(line, sizeof line, file))
        for (size_t k = 0; k < best; k++)
            if (strncmp(line, keys[k], strlen(keys[k])) == 0 && strchr(line, ':')) {
                const char *value = strchr(line, ':') + 1;
                snprintf(name, size, "%s", value + strspn(value, " \t"));
                name[strcspn(name, "\n")] = 0;
                best = k;
            }
    if (file)
        fclose(file);
}
#endif

#define TEXT_(x) #x
#define TEXT(x)  TEXT_(x)
#if defined(__clang__)
#define COMPILER "clang " __clang_version__
#elif defined(__GNUC__)
#define COMPILER "gcc " __VERSION__
#elif defined(_MSC_VER)
#define COMPILER "MSVC " TEXT(_MSC_VER)
#else
#define COMPILER "an unknown compiler"
#endif

static void print_machine(void) {
    const uint16_t one = 1;
    unsigned char first;
    char cpu[300];
    volatile float small = 0x1p-126f, half = 0.5f;

    memcpy(&first, &one, 1);
    cpu_name(cpu, sizeof cpu);
    printf("bnorm %s, built by %s; %d-bit, %s-endian\n", bnorm_version(), COMPILER,
           (int)(8 * sizeof(void *)), first ? "little" : "big");
    printf("CPU: %s\nKernel sets:", cpu);
    for (size_t i = 0; bnorm_isa_at(i); i++)
        printf(" %s", bnorm_isa_name(bnorm_isa_at(i)));
    printf("\n");
    small *= half;
    if (small == 0)
        printf("This program runs with denormals flushed to zero, as -ffast-math at its linking "
               "does;\nresults that involve them will differ.\n");
    printf("\n");
}

/* The case after which a set went another way than the last set, which is scalar. */
static void print_first_case(const struct group *group, const struct layout *layout,
                             const struct result *result, const struct result *scalar,
                             size_t count) {
    size_t k = 0;
    while (k < count && result->after[k] == scalar->after[k])
        k++;
    if (k == count)
        return;
    printf("    first case that scalar computes otherwise on this machine: number %lu",
           (unsigned long)k);
    if (group->op >= OP_MOMENTS) {
        const bnorm_shape s = shape_of(group, layout, k);
        printf(", %s type %d n=%lu c=%lu hw=%lu", layout->name, (int)s.dtype, (unsigned long)s.n,
               (unsigned long)s.c, (unsigned long)s.hw);
    }
    printf("\n");
}

static const struct hashes *find(const char *name) {
    for (size_t i = 0; i < EXPECTED; i++)
        if (strcmp(expected[i].name, name) == 0)
            return &expected[i];
    return NULL;
}

enum { MAX_SETS = 16 };

/* Runs one group on all sets and prints its line; 0 where all are as they should be. */
/* Can the set compute the group? 0 where that needs SLEEF and this build or CPU can't have it. */
static int computes(const struct group *group, size_t set) {
    float v = 1;
    const bnorm_shape shape = {.layout = BNORM_NCHW, .n = 1, .c = 1, .hw = 1};
    const bnorm_affine affine = {.act = {BNORM_ACT_SIGMOID, 0, 0}};
    const bnorm_exec exec = {.isa = bnorm_isa_at(set)};
    const bnorm_in in = {&v, 0, 0};
    const bnorm_out out = {&v, 0, 0};
    return !(group->flags & SLEEF) ||
           bnorm_apply(&shape, in, out, &affine, &exec) != BNORM_UNSUPPORTED;
}

/* Advanced SIMD of 32-bit Arm takes denormals for zero, which the data of some groups has: there it
 * has to have the bits of the scalar set in a thread that flushes them. */
static int flushes(const struct group *group, size_t set) {
#if defined(__arm__)
    return group->data >= EXTREME && strcmp(bnorm_isa_name(bnorm_isa_at(set)), "neon") == 0;
#else
    (void)group;
    (void)set;
    return 0;
#endif
}

struct outcome {
    int brief; /* groups that are the same have no line */
    int groups, flushed, absent, failed, sleef_failed;
    char first[2 * MAX_NAME]; /* failure */
};

/* Runs one group on all sets that compute it and prints its line. */
static void verify(const struct group *group, const struct layout *layout, size_t sets, int quick,
                   struct outcome *outcome) {
    static struct result results[MAX_SETS], flushed;
    char name[MAX_NAME];
    int failed = 0, ran = 0, flush = 0;

    name_of(group, layout, name);
    const struct hashes *want = find(name);
    const uint64_t hash = !want ? 0 : quick ? want->quick : want->all;
    if (!outcome->brief)
        printf("%-30s %016llx", name, (unsigned long long)hash);
    fflush(stdout);
    for (size_t i = 0; i < sets; i++)
        if (computes(group, i))
            run_group(group, layout, i, quick, flushes(group, i), &results[i]);
    for (size_t i = 0; i < sets; i++) {
        if (!computes(group, i))
            continue;
        ran = 1;
        if (flushes(group, i)) {
            flush = 1;
            run_group(group, layout, sets - 1, quick, 1, &flushed);
            if (results[i].all == flushed.all)
                continue;
        } else if (want && (quick || results[i].all == hash) && results[i].quick == want->quick) {
            continue;
        }
        const char *set = bnorm_isa_name(bnorm_isa_at(i));
        printf("%s\n  DIFFERENT on %s: %016llx\n", outcome->brief ? name : "", set,
               (unsigned long long)(quick ? results[i].quick : results[i].all));
        if (computes(group, sets - 1))
            print_first_case(group, layout, &results[i],
                             flushes(group, i) ? &flushed : &results[sets - 1],
                             quick ? quick_count(group) : case_count(group));
        if (!failed && !outcome->first[0])
            snprintf(outcome->first, sizeof outcome->first, "%s on %s", name, set);
        failed = 1;
    }
    if (!ran && !outcome->brief)
        printf("  not in this build\n");
    else if (!failed && !outcome->brief)
        printf("  same%s%s\n", group->flags & SLEEF ? ", by " SLEEF_VERSION : "",
               flush ? ", neon with denormals flushed" : "");
    outcome->groups += ran;
    outcome->flushed += flush;
    outcome->absent += !ran;
    outcome->failed += failed;
    outcome->sleef_failed += failed && group->flags & SLEEF;
}

static void write_hashes(const struct group *group, const struct layout *layout, size_t scalar) {
    static struct result result;
    char name[MAX_NAME];
    name_of(group, layout, name);
    run_group(group, layout, scalar, 0, 0, &result);
    printf("{\"%s\", 0x%016llxu, 0x%016llxu},\n", name, (unsigned long long)result.quick,
           (unsigned long long)result.all);
}

static void list_group(const struct group *group, const struct layout *layout) {
    char name[MAX_NAME];
    name_of(group, layout, name);
    printf("%s\n", name);
}

/* The last set is scalar, which the hashes are taken from. */
static int write_all(size_t sets) {
    for (size_t g = 0; g < GROUPS; g++)
        if (!computes(&groups[g], sets - 1)) {
            fprintf(stderr,
                    "bnorm-verify: the list must have the hashes of activations that need SLEEF:\n"
                    "build with SLEEF (" SLEEF_VERSION "), on a CPU with FMA\n");
            return 2;
        }
    printf("/* SPDX-License-Identifier: MIT\n *\n"
           " * Written by bnorm-verify --write: name, hash of the small shapes, hash of all. "
           "*/\n");
    FOR_GROUPS(g, layout)
    write_hashes(&groups[g], &layouts[layout], sets - 1);
    return 0;
}

static int verify_all(size_t sets, int quick, int brief) {
    struct outcome outcome = {.brief = brief};
    print_machine();
    FOR_GROUPS(g, layout)
    verify(&groups[g], &layouts[layout], sets, quick, &outcome);
    if (outcome.flushed)
        printf("\n%d groups have denormals, which neon takes for zero on 32-bit Arm: there it was\n"
               "compared with scalar in a thread that flushes them (FPSCR.FZ).\n",
               outcome.flushed);
    if (outcome.absent)
        printf(
            "\n%d groups are not in this build: their activations need SLEEF (make SLEEF=1, on a "
            "CPU with FMA).\n",
            outcome.absent);
    if (outcome.sleef_failed)
        printf(
            "\n%d of the groups that differ have activations computed by SLEEF. Their hashes are "
            "of " SLEEF_VERSION ":\nanother version may give other bits, which must be the "
            "same on all kernel sets.\n",
            outcome.sleef_failed);
    if (outcome.failed) {
        printf("\nNOT the same bits as everywhere: %d of %d groups differ, the first is %s.\n"
               "Please report this whole output: bnorm promises that it can't happen. If you "
               "built bnorm\nyourself, add the compiler's flags, and see whether a build without "
               "them does it too.\n",
               outcome.failed, outcome.groups, outcome.first);
        return 1;
    }
    printf("\nsame bits as everywhere: %d groups on", outcome.groups);
    for (size_t i = sets; i-- > 0;)
        printf(" %s%s", bnorm_isa_name(bnorm_isa_at(i)), i ? "," : "\n");
    return 0;
}

static int usage(const char *program, int status) {
    fprintf(status ? stderr : stdout,
            "usage: %s [--quick | --brief | --list | --write]\n"
            "Runs every function of bnorm on every kernel set of this CPU and compares the bits\n"
            "with those of all other machines. Exit status 0: the same; 1: not.\n"
            "  --quick  small shapes only, as for slow devices\n"
            "  --brief  the same, without a line for each group\n"
            "  --list   names of the groups of cases\n"
            "  --write  a new verify_hashes.inc, from the scalar set; for a version of bnorm that\n"
            "           changes results on purpose\n",
            program);
    return status;
}

int main(int argc, char **argv) {
    const char *option = argc == 2 ? argv[1] : "";
    size_t sets = 0;
    while (sets < MAX_SETS && bnorm_isa_at(sets))
        sets++;

    if (argc == 1 || strcmp(option, "--quick") == 0)
        return verify_all(sets, argc > 1, 0);
    if (strcmp(option, "--brief") == 0)
        return verify_all(sets, 1, 1);
    if (strcmp(option, "--write") == 0)
        return write_all(sets);
    if (strcmp(option, "--help") == 0)
        return usage(argv[0], 0);
    if (strcmp(option, "--list") != 0) {
        fprintf(stderr, "bnorm-verify: %s is not understood\n", argv[1]);
        return usage(argv[0], 2);
    }
    FOR_GROUPS(g, layout)
    list_group(&groups[g], &layouts[layout]);
    return 0;
}
