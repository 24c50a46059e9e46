/* SPDX-License-Identifier: MIT
 *
 * bnorm: batch normalization on CPUs, the same bits on any instruction set and number of threads.
 *
 * Conventions that hold for every function (docs/embedding.md, "Conventions", has the details)
 *
 *   Tensors      N samples ("images"), C channels and HW positions: H*W, D*H*W, L, or 1 for (N, C)
 *                data. One bnorm_shape describes all tensors of a call, two strides each buffer.
 *                Sizes and strides count elements, never bytes. Any alignment that suits the type.
 *   Parameters   gamma, beta, mean, var, ... are arrays of C floats.
 *   Zero         Initialise whole structs, "= {0}" in C, "= {}" in C++. A zero or NULL member means
 *                the documented default; a member that a later version adds, today's behaviour.
 *   Aliasing     Inputs may overlap. An output tensor either is another tensor of the call ("in
 *                place", where the function allows it) or shares no element with it. Output arrays
 *                and the workspace overlap nothing.
 *   Errors       Arguments are checked first. On any status but BNORM_OK no output has been
 *                written. Pointers are required unless their NULL is documented.
 *   Threads      Call from any number of threads at once, on different outputs and workspaces.
 *                bnorm creates no thread, allocates nothing, and keeps nothing from call to call.
 *   Stack        A call takes at most 16 KiB, built with -O1 or more, on each thread that it uses.
 *   Empty batch  N = 0 or HW = 0 is BNORM_OK: statistics stay, dgamma and dbeta become 0.
 *   NaN          A NaN or infinity in x reaches its channel only, in bnorm_apply its element only.
 *   FP mode      The caller's. Equal bits are promised for the default mode.
 *
 * Start here: batch norm with stored statistics, then ReLU, in place (examples/hello.c)
 *
 *    float x[] = {5, 10, -1, 3, 20, 5}, scale[3], shift[3];
 *    const float gamma[] = {1, 2, 1}, beta[] = {0, 1, 0}, mean[] = {4, 15, 2}, var[] = {4, 25, 9};
 *    bnorm_fold(3, gamma, beta, mean, var, 1e-5, scale, shift);
 *    const bnorm_shape shape = {.layout = BNORM_NHWC, .n = 1, .c = 3, .hw = 2};
 *    const bnorm_affine affine = {.scale = scale, .shift = shift, .act = {.kind = BNORM_ACT_RELU}};
 *    const bnorm_in in = {.data = x};
 *    const bnorm_out out = {.data = x};
 *    const bnorm_status status = bnorm_apply(&shape, in, out, &affine, NULL);
 *
 * Which function serves which need, in the order of this file
 *
 *   inference with stored statistics      bnorm_fold once, then bnorm_apply
 *   no batch norm left at inference       bnorm_fold_conv, into the convolution before it
 *   can stored statistics be used?        bnorm_check_statistics
 *   threads, denormals, kernel sets       bnorm_exec, the last argument; NULL will do
 *   scratch memory; memory for a mask     bnorm_workspace; bnorm_mask_size
 *   mean and variance alone               bnorm_moments
 *   what a framework means by momentum    bnorm_running_keras, bnorm_running_pytorch, ...
 *   training                              bnorm_forward_train, bnorm_backward
 *   fine-tuning with frozen statistics    bnorm_apply, bnorm_backward with bnorm_grad.frozen
 *   running statistics alone              bnorm_running_update
 *   masked data, batch renormalization    .weights and .renorm of bnorm_train
 *   ghost (virtual) batches               bnorm_forward_train_ghost, bnorm_backward_ghost
 *   instance, group and layer norm        a few lines around these: docs/frameworks.md
 *   a batch larger than memory            bnorm_partial_collect, bnorm_partial_finish, ...
 *   a batch on several machines           the same with bnorm_partial_merge, or mpi/bnorm_mpi.h
 *   many small tensors                    bnorm_run_jobs
 *   tensors of NumPy, PyTorch or DLPack   bnorm_describe
 */
#if !defined(BNORM_H)
#define BNORM_H

#include <stddef.h>
#include <stdint.h>

/* BNORM_SHARED is for the build of the library itself; programs need not define it. Enums are as
 * large as an int, whatever -fshort-enums says, so that no struct depends on it. */
#if defined(BNORM_SHARED) && defined(_WIN32)
#define BNORM_API __declspec(dllexport)
#elif defined(BNORM_SHARED) && defined(__GNUC__)
#define BNORM_API __attribute__((visibility("default")))
#else
#define BNORM_API
#endif
#if defined(__GNUC__)
#define BNORM_INT __attribute__((mode(SI)))
#else
#define BNORM_INT
#endif

#if defined(BNORM_PREFIX)
#include "bnorm.h" /* for the list of names at the end: what is above it is skipped this time */
#endif

#ifdef __cplusplus
extern "C" {
#endif

/* ---- Status ---------------------------------------------------------------------------------- */

typedef enum BNORM_INT bnorm_status {
    BNORM_OK = 0,
    BNORM_NULL_POINTER,        /* a required pointer is NULL */
    BNORM_BAD_ENUM,            /* no such layout, dtype, activation, memory, ... */
    BNORM_BAD_SHAPE,           /* a size that must not be 0 is, does not divide, or overflows */
    BNORM_BAD_STRIDE,          /* elements could share an address; overflow; see bnorm_describe */
    BNORM_BAD_OVERLAP,         /* an output breaks the rules on aliasing */
    BNORM_BAD_PARAMETER,       /* options that exclude each other; a count or axis out of range */
    BNORM_UNSUPPORTED,         /* valid, but not in this build or not for this combination */
    BNORM_WORKSPACE_TOO_SMALL, /* ws_size is less than bnorm_workspace() says */
    BNORM_BAD_EPSILON,         /* eps, or epsilon of weights, is negative or not finite */
    BNORM_BAD_VARIANCE,        /* var + eps of a channel is negative: bnorm_check_statistics() */
    BNORM_BAD_RATE,            /* the rate of running statistics is not finite */
    BNORM_BAD_ACTIVATION,      /* an activation's a or b is out of range */
    BNORM_BAD_QUANTIZATION,    /* a quantization's scale or zero point is out of range */
    BNORM_BAD_WEIGHTS,         /* a weight is negative or not finite */
    BNORM_BAD_RENORM           /* limits of batch renormalization are out of range */
} bnorm_status;

/* ---- Shapes and tensors ---------------------------------------------------------------------- */

typedef enum BNORM_INT bnorm_layout {
    BNORM_NHWC = 0, /* channels last:  (N, H, W, C) in Keras/TensorFlow; (N, C) data */
    BNORM_NCHW      /* channels first: (N, C, H, W) in PyTorch and ONNX */
} bnorm_layout;

/* Type of elements. All arithmetic is in float: results are those of the same call on floats,
 * rounded once, to nearest even, when stored. What is too large becomes infinite in F16. */
typedef enum BNORM_INT bnorm_dtype {
    BNORM_F32 = 0, /* IEEE 754 binary32 */
    BNORM_BF16,    /* bfloat16: the upper half of an F32 */
    BNORM_F16,     /* IEEE 754 binary16 */
    BNORM_S8,      /* quantized, see bnorm_quant: bnorm_apply only, else BNORM_UNSUPPORTED */
    BNORM_U8
} bnorm_dtype;

typedef struct bnorm_shape {
    bnorm_layout layout;
    bnorm_dtype dtype;
    size_t n;       /* samples; may be 0 */
    size_t c;       /* channels; at least 1 */
    size_t hw;      /* positions per sample: H*W, D*H*W, L, or 1; may be 0 */
    size_t c_block; /* 0 or 1 = plain; NCHW with b = 4, 8, 16 or 32: (N, C/b, H, W, b) */
} bnorm_shape;

/* A run is the contiguous axis: the C values of one pixel (NHWC), the HW values of one plane (NCHW)
 * or the HW*b values of one block of channels. Element (n, c, p) is
 *   NHWC     data[n*image_stride + p*run_stride + c]
 *   NCHW     data[n*image_stride + c*run_stride + p]
 *   blocked  data[n*image_stride + c/b*run_stride + p*b + c%b]
 * run_stride 0 = dense (C, HW or HW*b); image_stride 0 = run_stride times the number of runs per
 * image (HW, C or C/b rounded up). With strides a channel slice of a wider buffer is read, or
 * written, where it lies; elements between runs are neither. No two elements may share an address:
 * image_stride spans a whole image, or, as in (C, N, HW) order, run_stride a run of every image. */
typedef struct bnorm_in {
    const void *data;
    size_t run_stride;
    size_t image_stride;
} bnorm_in;

typedef struct bnorm_out {
    void *data;
    size_t run_stride;
    size_t image_stride;
} bnorm_out;

/* ---- Activations ----------------------------------------------------------------------------- */

typedef enum BNORM_INT bnorm_act_kind {
    BNORM_ACT_IDENTITY = 0, /* v */
    BNORM_ACT_RELU,         /* v <= 0 ? +0 : v */
    BNORM_ACT_CLAMP,        /* min(max(v, a), b), a < b, may be infinite; ReLU6 is a = 0, b = 6 */
    BNORM_ACT_LEAKY_RELU,   /* v > 0 ? v : a*v, a finite */
    BNORM_ACT_HARD_SWISH,   /* v*min(max(v + 3, 0), 6)/6; exactly 0 for v <= -3 and v for v >= 3 */
    BNORM_ACT_SIGMOID,      /* 1/(1 + exp(-v)); this one and those below need a build with SLEEF */
    BNORM_ACT_SILU,         /* v/(1 + exp(-v)), also called swish */
    BNORM_ACT_TANH,         /* tanh(v) */
    BNORM_ACT_GELU,         /* v/2*(1 + erf(v/sqrt(2))) */
    BNORM_ACT_ELU,          /* v > 0 ? v : a*(exp(v) - 1), a finite */
    BNORM_ACT_SOFTPLUS,     /* log(1 + exp(v)) */
    BNORM_ACT_MISH          /* v*tanh(log(1 + exp(v))) */
} bnorm_act_kind;

/* Kinds that do not name a or b ignore them; BNORM_BAD_ACTIVATION where one is not as said above.
 * All keep NaN. Derivatives: RELU's is 1 where v > 0, CLAMP's where a < v < b, both strictly, else
 * 0; LEAKY_RELU's 1 where v > 0, else a; the others' the mathematical ones (docs/embedding.md). */
typedef struct bnorm_act {
    bnorm_act_kind kind;
    float a, b;
} bnorm_act;

/* ---- Inference ------------------------------------------------------------------------------- */

typedef struct bnorm_affine bnorm_affine; /* options of bnorm_apply: below */
typedef struct bnorm_exec bnorm_exec;     /* threads and kernel set: see "Execution" */

/* Statistics and parameters into one multiplication and one addition per element:
 *   scale[i] = gamma[i]/sqrt(var[i] + eps)      0 where var[i] + eps = 0
 *   shift[i] = beta[i] - mean[i]*scale[i]       with the rounded scale
 * computed in double, each rounded once. gamma NULL = 1, beta NULL = 0; shift NULL = not wanted,
 * and mean may then be NULL. scale and shift must be two arrays, each of which may be any of the
 * inputs. A NaN in channel i makes its results NaN. BNORM_BAD_SHAPE: c = 0; BNORM_BAD_EPSILON: eps <
 * 0 or not finite; BNORM_BAD_VARIANCE: var[i] + eps < 0 for any i. */
BNORM_API bnorm_status bnorm_fold(size_t c, const float *gamma, const float *beta,
                                  const float *mean, const float *var, double eps, float *scale,
                                  float *shift);

/* Inference, or any per-channel affine map, and what follows it:
 *   y = act(fma(x - center, scale, shift) + residual)
 * y may be x or the residual where its elements have their size. affine NULL = copy, except that -0
 * becomes +0 and every NaN the one of bnorm. Needs no workspace. */
BNORM_API bnorm_status bnorm_apply(const bnorm_shape *shape, bnorm_in x, bnorm_out y,
                                   const bnorm_affine *affine, const bnorm_exec *exec);

/* A dense tensor as an argument. All members are there, as compilers of C++ warn of some alone. */
#if defined(__cplusplus)
#define BNORM_IN(data)  (bnorm_in({(data), 0, 0}))
#define BNORM_OUT(data) (bnorm_out({(data), 0, 0}))
#else
#define BNORM_IN(data)  ((bnorm_in){(data), 0, 0})
#define BNORM_OUT(data) ((bnorm_out){(data), 0, 0})
#endif

/* Type of y where it is not that of x. */
typedef enum BNORM_INT bnorm_y_dtype {
    BNORM_Y_SAME = 0, /* the dtype of the shape */
    BNORM_Y_F32,
    BNORM_Y_BF16,
    BNORM_Y_F16,
    BNORM_Y_S8,
    BNORM_Y_U8
} bnorm_y_dtype;

/* What an element q of an S8 or U8 tensor means, as in ONNX's QuantizeLinear:
 *   v = (q - zero_point)*scale
 *   q = saturate(round_half_to_even(v/scale) + zero_point), NaN gives zero_point
 * in floats, v/scale rounded to one. scale is positive and finite, 0 = 1, and not denormal where
 * exec flushes denormals; zero_point is a value of the type. Else BNORM_BAD_QUANTIZATION. */
typedef struct bnorm_quant {
    float scale;
    int zero_point;
} bnorm_quant;

/* Options of bnorm_apply. Two ways to fill them for inference:
 *   center = mean, scale = gamma*invstd, shift = beta      accurate
 *   center NULL, scale and shift from bnorm_fold           the folded form; loses accuracy where
 *                                                          |mean| is far above the deviation */
struct bnorm_affine {
    const float *center; /* NULL = 0 */
    const float *scale;  /* NULL = 1 */
    const float *shift;  /* NULL = 0 */
    bnorm_in residual;   /* data NULL = none; has the type of x */
    bnorm_act act;
    bnorm_y_dtype y_dtype;
    bnorm_quant x_quant, residual_quant, y_quant; /* only for tensors of S8 or U8 */
    void *mask; /* NULL = not wanted; bnorm_mask_size() bytes, for a frozen bnorm_backward */
};

/* Order of a convolution's weights, outermost axis first. O/I: output/input channels; HW: all
 * kernel positions. Depthwise weights (H, W, I, M) of Keras and (1, H, W, O) of TensorFlow Lite are
 * HWIO with groups = I and O = I*M. */
typedef enum BNORM_INT bnorm_conv_layout {
    BNORM_CONV_OIHW = 0, /* PyTorch and ONNX Conv: (O, I/groups, H, W); Linear: (O, I) */
    BNORM_CONV_OHWI,     /* TensorFlow Lite: (O, H, W, I/groups) */
    BNORM_CONV_HWIO,     /* Keras and TensorFlow Conv: (H, W, I/groups, O); Dense: (I, O) */
    BNORM_CONV_IOHW,     /* PyTorch and ONNX ConvTranspose: (I, O/groups, H, W) */
    BNORM_CONV_HWOI      /* Keras and TensorFlow Conv2DTranspose: (H, W, O, I), groups = 1 */
} bnorm_conv_layout;

typedef struct bnorm_conv {
    bnorm_conv_layout layout;
    size_t out_channels; /* all groups together; the c of the batch norm */
    size_t in_channels;  /* all groups together */
    size_t kernel;       /* kernel positions: H*W, D*H*W, L; 1 for a linear layer */
    size_t groups;       /* 0 = 1; must divide both channel counts */
} bnorm_conv;

/* Folds a batch norm into the convolution or linear layer before it, so that it costs nothing at
 * inference:
 *   s[o]                = gamma[o]/sqrt(var[o] + eps)      0 where var[o] + eps = 0
 *   out_weights[o, ...] = weights[o, ...]*s[o]
 *   out_bias[o]         = (bias[o] - mean[o])*s[o] + beta[o]
 * computed in double, each rounded once. bias NULL = 0 (a layer without bias), gamma NULL = 1, beta
 * NULL = 0. weights and out_weights have out_channels*in_channels/groups*kernel floats.
 * out_weights may be weights; out_bias may be bias or any of the per-channel inputs. The layer must
 * feed the batch norm directly, without an activation between.
 *   BNORM_BAD_SHAPE     a count other than groups is 0, groups does not divide, or overflow
 *   BNORM_BAD_EPSILON, BNORM_BAD_VARIANCE   as in bnorm_fold
 *   BNORM_UNSUPPORTED   BNORM_CONV_HWOI with groups > 1 */
BNORM_API bnorm_status bnorm_fold_conv(const bnorm_conv *conv, const float *gamma,
                                       const float *beta, const float *mean, const float *var,
                                       double eps, const float *weights, const float *bias,
                                       float *out_weights, float *out_bias);

/* Whether stored statistics can be used, for programs that load them: the first channel, in
 * *channel (NULL = not wanted), whose mean is not finite (mean NULL = not looked at), whose
 * variance is not, or whose var + eps is negative.
 *   BNORM_OK             there is none; *channel is not written
 *   BNORM_BAD_VARIANCE   there is one
 *   BNORM_BAD_SHAPE, BNORM_BAD_EPSILON   as in bnorm_fold */
BNORM_API bnorm_status bnorm_check_statistics(size_t c, const float *mean, const float *var,
                                              double eps, size_t *channel);

/* ---- Execution: threads, instruction sets, memory -------------------------------------------- */

/* A kernel set: "scalar", "avx2", "avx512" or "neon". A handle is only ever given out for a set
 * that runs on this CPU; it is never freed. */
typedef struct bnorm_isa bnorm_isa;

/* The set that the environment variable BNORM_ISA names, if usable, else the fastest. Never NULL.
 * Decided at the first call, which may be one made inside bnorm. With glibc the variable is ignored
 * where the program has more rights than its user, as under setuid. */
BNORM_API const bnorm_isa *bnorm_isa_best(void);

/* The i-th usable set, fastest first; NULL past the end. */
BNORM_API const bnorm_isa *bnorm_isa_at(size_t i);

/* NULL if the name is NULL, unknown or not usable on this CPU. */
BNORM_API const bnorm_isa *bnorm_isa_find(const char *name);

/* NULL isa = bnorm_isa_best(). */
BNORM_API const char *bnorm_isa_name(const bnorm_isa *isa);

/* Must call task(arg, i) exactly once for each i < count, in any order, on any threads, also
 * concurrently, and return when all are done and what they wrote is visible to the caller. task has
 * the type of pthreadpool's 1-D task. One call of bnorm may call it several times, one after the
 * other, or, where there is too little to share, not at all. */
typedef void (*bnorm_parallel)(void *pool, void (*task)(void *arg, size_t i), void *arg,
                               size_t count);

/* Denormals (below 1.2e-38) take x86 CPUs many times as long as other numbers. FLUSH takes them for
 * zero, on every thread that works on the call, and restores each thread's mode; values that are
 * only passed on, as dy to dresidual, may stay denormal. On 32-bit Arm the NEON set takes denormal
 * floats for zero in either case: its bits are those of the other sets where no float that is read,
 * computed or written is denormal; BNORM_ISA=scalar has them everywhere. */
typedef enum BNORM_INT bnorm_denormals {
    BNORM_DENORMALS_CALLER = 0, /* whatever mode the thread is in */
    BNORM_DENORMALS_FLUSH
} bnorm_denormals;

/* How a call treats the caches. AUTO is meant to be right; the others are for engines that know more
 * than one call shows (docs/embedding.md, "Caches"). Without effect on Arm, whose cores find streams
 * by themselves. */
typedef enum BNORM_INT bnorm_memory {
    BNORM_MEMORY_AUTO = 0, /* one of these, by the tensors' sizes and this CPU's caches */
    BNORM_MEMORY_CACHED,   /* plain loads and stores: tensors are in a cache near their core */
    BNORM_MEMORY_PREFETCH, /* asks for lines some KiB ahead: tensors are in L3 or in memory */
    BNORM_MEMORY_STREAM    /* as PREFETCH, and outputs that are no inputs past the caches */
} bnorm_memory;

/* How to run a call; a NULL bnorm_exec pointer, like NULL members, means: on this thread, with the
 * best kernel set. The result has the same bits whatever parallel, pool, threads, isa and memory
 * are. threads is how many threads work for `parallel`, the caller's included; 0 = not known, 1 =
 * parallel is not called. With it the work is cut so that every thread gets an equal share, without
 * it into pieces of about 64 KiB. Calls of less than 5 to 10 us are not shared. */
struct bnorm_exec {
    bnorm_parallel parallel;
    void *pool; /* first argument of parallel */
    const bnorm_isa *isa;
    bnorm_denormals denormals;
    bnorm_memory memory;
    size_t threads;
};

/* ---- Workspace and mask ---------------------------------------------------------------------- */

typedef enum BNORM_INT bnorm_op {
    BNORM_OP_MOMENTS = 0,
    BNORM_OP_FORWARD_TRAIN,
    BNORM_OP_BACKWARD,
    BNORM_OP_APPLY /* needs no workspace */
} bnorm_op;

/* Bytes of scratch memory that an operation on this shape needs; depends on the shape alone, never
 * on threads, strides or kernel set. 0 for an empty batch and for an op or shape that the operation
 * itself would refuse. The workspace may have any alignment, its content need not be initialised
 * and is garbage afterwards, and it must not overlap any other buffer. Calls that run at the same
 * time need one each. */
BNORM_API size_t bnorm_workspace(bnorm_op op, const bnorm_shape *shape);

/* A mask is one bit per element, which forward writes and backward reads instead of the residual or
 * y: where the activation's derivative is that of the upper branch.
 *   RELU, LEAKY_RELU   v > 0
 *   CLAMP              a < v < b
 *   IDENTITY           ignores it; with other activations a mask is BNORM_UNSUPPORTED
 * Element e of the dense tensor of this shape, whatever the strides, is bit e%8 (1 << e%8) of byte
 * e/8; all bits are written, those behind the last element as 0:
 *   NHWC     e = (n*HW + p)*C + c
 *   NCHW     e = (n*C + c)*HW + p
 *   blocked  e = ((n*B + c/b)*HW + p)*b + c%b, B = C/b rounded up; padding's bits are not read
 * It is an output array like others: it overlaps nothing. Its size in bytes: N*C*HW/8 rounded up,
 * where C of a blocked tensor counts its padding; 0 for a bad shape or an empty batch. */
BNORM_API size_t bnorm_mask_size(const bnorm_shape *shape);

/* ---- Training -------------------------------------------------------------------------------- */

/* Per-channel mean and population variance:
 *   mean = sum(x)/(N*HW)
 *   var  = sum((x - mean)^2)/(N*HW)
 * mean or var may be NULL. Robust for |mean| far above the deviation and for outliers; a constant
 * channel gives exactly its value and exactly 0. docs/numerics.md has the errors. */
BNORM_API bnorm_status bnorm_moments(const bnorm_shape *shape, bnorm_in x, float *mean, float *var,
                                     void *ws, size_t ws_size, const bnorm_exec *exec);

typedef enum BNORM_INT bnorm_variance {
    BNORM_VARIANCE_POPULATION = 0, /* sum((x - mean)^2)/n, n = N*HW */
    BNORM_VARIANCE_SAMPLE          /* sum((x - mean)^2)/max(n - 1, 1) */
} bnorm_variance;

/* Running statistics, computed in double and rounded once:
 *   new = (1 - rate)*running + rate*batch
 * rate is the weight of the batch's value and must be finite (else BNORM_BAD_RATE): 0 keeps the old
 * value whatever the batch's is, 1 takes the batch's whatever the old one is, values outside [0, 1]
 * are computed as given. An infinite value stays infinite. mean and var may each be NULL: not
 * tracked. They are updated in place, or, for frameworks whose arrays are constant, only read where
 * new_mean and new_var say where the updated ones go (a NULL mean with new_mean, or var with
 * new_var, is BNORM_NULL_POINTER). Normalization always uses the population variance of the batch;
 * "variance" says only what goes into var. */
typedef struct bnorm_running {
    float *mean;
    float *var;
    double rate;
    bnorm_variance variance;
    float *new_mean; /* NULL = mean, in place */
    float *new_var;  /* NULL = var, in place */
} bnorm_running;

/* What each framework means by "momentum", as a bnorm_running: the value whose weight it is, and
 * the variance that is averaged (docs/frameworks.md). No checks are made here. step counts from 1,
 * 0 is taken as 1.
 *   keras, onnx   old value; population variance
 *   tensorflow    old value; sample variance, as tf-keras where it fuses, else keras
 *   pytorch       new value; sample variance. _cumulative: plain average over all steps
 *   caffe         fraction f, rate = (1 - f)/(1 - f^step), 1/step for f = 1; sample variance. mean
 *                 and var hold the quotient of Caffe's sums and its scale factor */
BNORM_API bnorm_running bnorm_running_keras(float *mean, float *var, double momentum);
BNORM_API bnorm_running bnorm_running_tensorflow(float *mean, float *var, double momentum);
BNORM_API bnorm_running bnorm_running_pytorch(float *mean, float *var, double momentum);
BNORM_API bnorm_running bnorm_running_pytorch_cumulative(float *mean, float *var, size_t step);
BNORM_API bnorm_running bnorm_running_onnx(float *mean, float *var, double momentum);
BNORM_API bnorm_running bnorm_running_caffe(float *mean, float *var, double fraction, size_t step);

/* Weights of positions, for masked statistics: see bnorm_weighted_moments. */
typedef struct bnorm_weights {
    const float *values; /* NULL = none: all weights 1, epsilon 0 */
    double epsilon;
} bnorm_weights;

typedef struct bnorm_renorm bnorm_renorm; /* batch renormalization, see "Variants" */

/* Options of bnorm_forward_train. */
typedef struct bnorm_train {
    const float *gamma; /* NULL = 1 */
    const float *beta;  /* NULL = 0 */
    double eps;         /* >= 0, finite */
    bnorm_running running;
    float *save_mean;    /* NULL = not wanted; the batch mean, for bnorm_backward */
    float *save_invstd;  /* NULL = not wanted; 1/sqrt(var + eps), 0 where var + eps = 0 */
    float *save_var;     /* NULL = not wanted; the population variance of the batch */
    float *save_mean_lo; /* NULL = not wanted; see below */
    bnorm_in residual;   /* data NULL = none */
    bnorm_act act;
    void *mask; /* NULL = not wanted; bnorm_mask_size() bytes */
    bnorm_weights weights;
    const bnorm_renorm *renorm; /* NULL = none */
} bnorm_train;

/* Training forward pass: batch statistics, then
 *   y = act(fma(x - mean, gamma*invstd, beta) + residual)
 * with gamma*invstd rounded to a float. y may be x or the residual, but bnorm_backward needs x as
 * it was. The statistics are those of x alone.
 *
 * The mean has about 48 bits, save_mean + save_mean_lo, and y is normalised with all of them. Save
 * both where bnorm_backward is to recompute the argument of a fused activation from x: with
 * save_mean alone that is off by up to |mean|/deviation*2^-24. */
BNORM_API bnorm_status bnorm_forward_train(const bnorm_shape *shape, bnorm_in x, bnorm_out y,
                                           const bnorm_train *train, void *ws, size_t ws_size,
                                           const bnorm_exec *exec);

/* Axes along which a gradient has one value only, as one that a framework has expanded: a stride of
 * 0. Of bnorm_grad.dy_broadcast. */
typedef enum BNORM_INT bnorm_broadcast {
    BNORM_BROADCAST_N = 1,
    BNORM_BROADCAST_C = 2,
    BNORM_BROADCAST_HW = 4
} bnorm_broadcast;

/* Options of bnorm_backward. */
typedef struct bnorm_grad {
    const float *gamma;        /* NULL = 1; as in forward */
    const float *beta;         /* NULL = 0; as in forward; only to recompute the argument of act */
    const float *save_mean;    /* required: forward's; frozen: the running mean */
    const float *save_invstd;  /* forward's; frozen: 1/sqrt(running var + eps); or NULL with */
    const float *save_var;     /* ... forward's variance, frozen: the running one, which stand */
    double eps;                /* ... for 1/sqrt(save_var + eps), 0 where that is 0 */
    const float *save_mean_lo; /* NULL = 0; forward's */
    int frozen;                /* not 0: statistics are constants (Keras trainable=False, PyTorch
                                  eval mode) */
    bnorm_act act;             /* as in forward */
    bnorm_in residual;         /* forward's residual, for activations after a residual (any kind) */
    bnorm_in y;                /* instead of residual: forward's y; not for all kinds, see below */
    const void *mask;          /* instead of both: forward's mask; RELU, CLAMP and LEAKY_RELU */
    bnorm_out dresidual;       /* data NULL = not wanted */
    float *dgamma;             /* NULL = not wanted */
    float *dbeta;              /* NULL = not wanted */
    bnorm_weights weights;     /* as in forward; frozen: ignored */
    const float *renorm_r;     /* forward's save_r and save_d: both or none (else */
    const float *renorm_d;     /* BNORM_NULL_POINTER); frozen: must be NULL, BNORM_BAD_PARAMETER */
    unsigned dy_broadcast;     /* sum of enum bnorm_broadcast: dy has one value along these axes */
} bnorm_grad;

/* Training backward pass. With g = dy*act'(v), xh = (x - mean)*invstd and n = N*HW:
 *   dbeta     = sum(g)
 *   dgamma    = sum(g*xh)
 *   dresidual = g
 *   dx        = gamma*invstd*(g - dbeta/n - xh*dgamma/n)
 *   dx        = gamma*invstd*g                               frozen
 * Results are overwritten, never added to. x (forward's input), dy and the workspace are always
 * required. dx.data NULL = not wanted. dx may be dy, x, residual or y, and so may dresidual, but
 * the two must not be the same tensor. docs/numerics.md has the errors of dbeta and dgamma.
 *
 * save_var and eps are for frameworks that keep a variance: give them instead of save_invstd, which
 * is used where both are given. BNORM_NULL_POINTER where neither is; BNORM_BAD_EPSILON and
 * BNORM_BAD_VARIANCE as in bnorm_fold, whose scale is a frozen save_invstd where gamma is NULL.
 *
 * dy_broadcast: dy is read as a tensor whose axes named there have size 1, for its strides too, and
 * gives the results of the tensor that is written out. BNORM_UNSUPPORTED for blocks of channels,
 * and with weights unless frozen; other bits are BNORM_BAD_ENUM. dx and dresidual must not overlap
 * it.
 *
 * act IDENTITY ignores residual, y and mask. Otherwise the activation's argument v, or what of it
 * matters, is recovered from at most one of them (from more: BNORM_BAD_PARAMETER):
 *   - none: v is recomputed from x, to the same bits as in forward (gamma, beta, save_mean,
 *     save_invstd and save_mean_lo as in forward; of bnorm_apply: center = mean, scale =
 *     gamma*invstd rounded once, shift = beta);
 *   - residual, the tensor that forward added: the same, for every activation; give save_mean_lo
 *     here, as forward with a residual always uses it;
 *   - y, what forward wrote, after a residual or without one: v > 0 or a < v < b is read off it.
 *     For RELU, CLAMP and LEAKY_RELU with a > 0, else BNORM_UNSUPPORTED. In BF16 and F16 a v next
 *     to 0, a or b may have been rounded to it, and counts as that;
 *   - mask, what forward wrote or any bits, after a residual or without one: for RELU, CLAMP and
 *     LEAKY_RELU. */
BNORM_API bnorm_status bnorm_backward(const bnorm_shape *shape, bnorm_in x, bnorm_in dy,
                                      bnorm_out dx, const bnorm_grad *grad, void *ws,
                                      size_t ws_size, const bnorm_exec *exec);

/* The update of running statistics alone, an exponential moving average over given statistics. mean
 * and var (population variance) are those of a batch of n values per channel; n is used for
 * BNORM_VARIANCE_SAMPLE, where var counts n/max(n - 1, 1) times. Where running.mean or running.var
 * is NULL, mean or var may be. The arrays of `running` must not overlap mean and var.
 *   BNORM_BAD_SHAPE       c = 0
 *   BNORM_BAD_RATE        rate is not finite
 *   BNORM_BAD_PARAMETER   n < 1 or not finite */
BNORM_API bnorm_status bnorm_running_update(size_t c, const float *mean, const float *var, double n,
                                            const bnorm_running *running);

/* ---- Variants: weights, batch renormalization, ghost batches --------------------------------- */

/* bnorm_moments with weights; weights NULL = none. `weights` of bnorm_train and bnorm_grad are the
 * same. The weight of position p of sample n is values[n*HW + p], whatever the layout; a mask has 0
 * and 1. With W = sum(w) over all positions and D = W + epsilon:
 *   mean = sum(w*x)/D
 *   var  = sum(w*(x - mean)^2)/D
 *   dx   = gamma*invstd*(g - w*(dbeta + xh*dgamma - mean*epsilon/D*invstd*dgamma)/D)
 * (docs/numerics.md derives the last term of dx, that of a position of weight w). Keras 3 with a
 * mask: epsilon = 1e-7; tf.nn.weighted_moments: 0. Weights must be finite and not negative (else
 * BNORM_BAD_WEIGHTS), epsilon >= 0 and finite (else BNORM_BAD_EPSILON). x where the weight is 0 is
 * not looked at for the statistics, but normalised like the rest, as in Keras. Where D is 0
 * statistics are NaN, as 0/0 gives, and running statistics stay as they are. BNORM_VARIANCE_SAMPLE
 * counts W for n. dx loses accuracy where D is below 1e-30 or above 1e30. */
BNORM_API bnorm_status bnorm_weighted_moments(const bnorm_shape *shape, bnorm_in x,
                                              const bnorm_weights *weights, float *mean, float *var,
                                              void *ws, size_t ws_size, const bnorm_exec *exec);

/* Batch renormalization (Ioffe 2017), member `renorm` of bnorm_train. With the batch's standard
 * deviation sd = sqrt(var + eps) and those of the running statistics as they were before the
 * update, rs = sqrt(running var + eps), all in double:
 *   r  = min(max(sd/rs, r_min), r_max)                          rounded to a float
 *   d  = min(max((mean - running mean)/rs, -d_max), d_max)      rounded to a float
 *   y  = act(gamma*((x - mean)*invstd*r + d) + beta + residual)
 * that is, training with gamma*r and gamma*d + beta (each rounded once) for gamma and beta. In
 * backward r and d are constants:
 *   dgamma = r*sum(g*xh) + d*sum(g)
 *   dx     = gamma*r*invstd*(g - dbeta/n - xh*sum(g*xh)/n)
 * Needs both running statistics. INFINITY = not clipped; r_min = r_max = 1 with d_max = 0 is plain
 * batch normalization, the usual beginning. NaN, r_min < 0, r_min > r_max or d_max < 0 are
 * BNORM_BAD_RENORM, a running var + eps < 0 is BNORM_BAD_VARIANCE. */
struct bnorm_renorm {
    double r_min, r_max, d_max;
    float *save_r, *save_d; /* NULL = not wanted; for bnorm_backward */
};

typedef enum BNORM_INT bnorm_ghost_order {
    BNORM_GHOST_CONTIGUOUS = 0, /* group k: samples k*N/G to (k + 1)*N/G - 1 */
    BNORM_GHOST_INTERLEAVED     /* group k: samples k, k + G, k + 2G, ... as in tf-keras */
} bnorm_ghost_order;

typedef enum BNORM_INT bnorm_ghost_running {
    BNORM_GHOST_AVERAGE = 0, /* one update, with the averages of the groups' statistics: tf-keras */
    BNORM_GHOST_SUCCESSIVE   /* one update per group, in order: a loop over chunks in PyTorch */
} bnorm_ghost_running;

/* Ghost (virtual) batches: G groups of N/G samples, each normalised with its own statistics. G must
 * divide N and not be 0 (else BNORM_BAD_SHAPE). */
typedef struct bnorm_ghost {
    size_t groups;
    bnorm_ghost_order order;
    bnorm_ghost_running running;
} bnorm_ghost;

/* bnorm_forward_train and bnorm_backward for ghost batches; results are those of one call per
 * group. save_mean, save_mean_lo, save_invstd and save_var have G*C floats, group after group;
 * dgamma and dbeta are the sums over all groups, in double, rounded once. The workspace is that of
 * the whole shape. A mask, weights and renorm are BNORM_UNSUPPORTED here: call once per group
 * instead. */
BNORM_API bnorm_status bnorm_forward_train_ghost(const bnorm_shape *shape, bnorm_in x, bnorm_out y,
                                                 const bnorm_train *train, const bnorm_ghost *ghost,
                                                 void *ws, size_t ws_size, const bnorm_exec *exec);
BNORM_API bnorm_status bnorm_backward_ghost(const bnorm_shape *shape, bnorm_in x, bnorm_in dy,
                                            bnorm_out dx, const bnorm_grad *grad,
                                            const bnorm_ghost *ghost, void *ws, size_t ws_size,
                                            const bnorm_exec *exec);

/* ---- Batches in pieces ----------------------------------------------------------------------- */

/* What the batch's images [first, first + n), numbered from 0 in the whole batch, contribute to its
 * statistics, or to the sums of backward: for a batch that lies in several calls, in threads of
 * another runtime or in processes. The bits are those of one call over the whole batch, wherever
 * between images it is cut and in whatever order neighbours are merged (docs/numerics.md, "What is
 * computed", has the tree that makes it so). A piece keeps the whole subtrees it consists of
 * ("nodes"), at most two per binary digit of n. Each has two doubles per channel: the sum of the
 * values and M2, the sum of squared deviations from their mean; or sum(g) and sum(g*(x -
 * save_mean)).
 *
 * A plain struct: to send a piece elsewhere, send these numbers and bnorm_partial_used() bytes of
 * `nodes`. An empty piece (n = 0) may be used everywhere; hw and nodes are then not looked at. */
typedef struct bnorm_partial {
    bnorm_op op;     /* BNORM_OP_MOMENTS (0): statistics; BNORM_OP_BACKWARD: sums of backward */
    size_t c;        /* channels */
    size_t hw;       /* positions per image; collecting into an empty piece sets it */
    size_t first, n; /* images */
    double *nodes;   /* the caller's memory: nodes*2*c doubles, (node, which of two, channel) */
    size_t size;     /* bytes at nodes */
} bnorm_partial;

/* Bytes of `nodes` that are enough for any n images of c channels, wherever they begin: at most
 * 2*c*sizeof(double) times two per binary digit of n. 0 where c is 0 or that overflows. */
BNORM_API size_t bnorm_partial_size(size_t c, size_t n);

/* Bytes of `nodes` that a piece fills; they depend on c, first and n alone. 0 where that overflows. */
BNORM_API size_t bnorm_partial_used(const bnorm_partial *piece);

/* Appends the statistics of shape->n images to a piece, as its images n, n + 1, ... A piece begins
 * empty, with op, c, first, nodes and size set. Workspace: BNORM_OP_MOMENTS. An empty batch leaves
 * it as it is.
 *   BNORM_BAD_ENUM              piece->op is not BNORM_OP_MOMENTS
 *   BNORM_BAD_SHAPE             c or hw is not that of the piece; first + n overflows
 *   BNORM_WORKSPACE_TOO_SMALL   also: piece->size is less than bnorm_partial_size() of all its
 *                               images */
BNORM_API bnorm_status bnorm_partial_collect(const bnorm_shape *shape, bnorm_in x,
                                             bnorm_partial *piece, void *ws, size_t ws_size,
                                             const bnorm_exec *exec);

/* The same for the sums of backward. Of grad, what the sums depend on is used: save_mean,
 * save_invstd, gamma, beta, save_mean_lo, act and residual, y or mask of these images. Workspace:
 * BNORM_OP_BACKWARD. Weights and renorm: BNORM_UNSUPPORTED. */
BNORM_API bnorm_status bnorm_partial_collect_grad(const bnorm_shape *shape, bnorm_in x, bnorm_in dy,
                                                  const bnorm_grad *grad, bnorm_partial *piece,
                                                  void *ws, size_t ws_size, const bnorm_exec *exec);

/* left = left and right, where right begins with the image after the last one of left (also where
 * one is empty; else BNORM_BAD_SHAPE). Both are of one op, c and hw. left->size must be
 * bnorm_partial_size() of all their images, right->size what is used. The two do not overlap. */
BNORM_API bnorm_status bnorm_partial_merge(bnorm_partial *left, const bnorm_partial *right);

/* A piece's totals: *count values per channel, and c doubles each: the mean and M2, or the two
 * sums. Each may be NULL. Of an empty piece all are 0. */
BNORM_API bnorm_status bnorm_partial_total(const bnorm_partial *piece, double *count, double *mean,
                                           double *m2);

/* What bnorm_forward_train does with its statistics, once for the whole batch: writes save_mean,
 * save_mean_lo, save_invstd and save_var, updates running statistics (all in `train`), and gives
 * 3*c floats: center, scale and shift. y of each piece is then
 *   bnorm_apply(shape, x, y, &affine, exec), affine = {center, scale, shift, residual, act, ...}
 * to the same bits, also for another type of y. An empty piece updates nothing: coefficients and
 * save arrays become 0. Weights and renorm: BNORM_UNSUPPORTED. */
BNORM_API bnorm_status bnorm_partial_finish(const bnorm_partial *piece, const bnorm_train *train,
                                            float *coefficients);

/* What bnorm_backward does with its sums, once for the whole batch: writes dgamma and dbeta where
 * wanted, and gives the 5*c floats that bnorm_partial_apply_grad takes (NULL = not wanted). Of
 * grad, gamma, beta, save_invstd (or save_var and eps), save_mean_lo and frozen are used. An empty
 * piece: dgamma, dbeta and coefficients become 0. */
BNORM_API bnorm_status bnorm_partial_finish_grad(const bnorm_partial *piece, const bnorm_grad *grad,
                                                 float *coefficients);

/* The rest of bnorm_backward for one piece: dx and grad->dresidual, each if wanted. grad as for
 * bnorm_partial_collect_grad; dgamma and dbeta are not touched. Needs no workspace. Aliasing as in
 * bnorm_backward. */
BNORM_API bnorm_status bnorm_partial_apply_grad(const bnorm_shape *shape, bnorm_in x, bnorm_in dy,
                                                bnorm_out dx, const bnorm_grad *grad,
                                                const float *coefficients, const bnorm_exec *exec);

/* ---- Many small batch norms ------------------------------------------------------------------ */

/* One call of bnorm_apply, bnorm_moments, bnorm_forward_train or bnorm_backward; members that the
 * op does not name are ignored.
 *   BNORM_OP_APPLY           x, out = y, affine
 *   BNORM_OP_MOMENTS         x, mean, var, ws, ws_size
 *   BNORM_OP_FORWARD_TRAIN   x, out = y, train, ws, ws_size
 *   BNORM_OP_BACKWARD        x, dy, out = dx, grad, ws, ws_size */
typedef struct bnorm_job {
    bnorm_op op;
    const bnorm_shape *shape;
    bnorm_in x, dy;
    bnorm_out out;
    const bnorm_affine *affine;
    const bnorm_train *train;
    const bnorm_grad *grad;
    float *mean, *var;
    void *ws;
    size_t ws_size;
} bnorm_job;

/* Runs count independent jobs, with the same results as one call each. Each runs on one thread, and
 * exec->parallel is called once for all of them, if they are worth sharing. All jobs are checked
 * before the first one runs: on any status but BNORM_OK none has, and *failed (NULL = not wanted)
 * is the index of the first bad one, if it is a job that is bad. No output of a job may overlap any
 * buffer of another job, workspaces included; that is not checked. Jobs with an empty batch are
 * done as their functions say. jobs may be NULL where count is 0. */
BNORM_API bnorm_status bnorm_run_jobs(const bnorm_job *jobs, size_t count, size_t *failed,
                                      const bnorm_exec *exec);

/* ---- Tensors of any rank, as NumPy, PyTorch, JAX and DLPack describe them -------------------- */

#define BNORM_MAX_DIMS 64

/* What all tensors of a call have in common. */
typedef struct bnorm_axes {
    size_t ndim;          /* 1 to BNORM_MAX_DIMS */
    const int64_t *sizes; /* ndim of them */
    int channel_axis;     /* from 0; negative values count from the end: -1 is the last */
    bnorm_dtype dtype;    /* becomes that of the shape */
    int any_order;        /* not 0: images and positions may be numbered in any order, see below */
} bnorm_axes;

typedef struct bnorm_ndarray {
    void *data;             /* of inputs too; only copied */
    const int64_t *strides; /* ndim of them; NULL = dense, the last axis innermost ("C order") */
    size_t itemsize;        /* strides in bytes, as in NumPy: bytes of an element; 0 = strides in
                               elements, as in PyTorch and DLPack */
    int may_broadcast;      /* not 0: strides may be 0, as in expanded gradients; only for a dy,
                               with bnorm_grad.dy_broadcast = broadcast */
    bnorm_in in;            /* results: the tensor for bnorm's calls, as input and as output */
    bnorm_out out;
    unsigned broadcast; /* a sum of enum bnorm_broadcast: axes of stride 0 */
} bnorm_ndarray;

/* Finds one shape for `count` tensors (at least 1), and the two strides of each. The first should
 * be x. Others with neither data nor strides are absent: their `in` and `out` stay NULL. Strides
 * along axes of size 1, and those of tensors without elements, are never looked at. Elements that
 * share an address are left to the calls to find. c_block is 0.
 *
 * n is the first axis that is not the channels' (the samples), and hw the product of the others,
 * wherever all strides allow it; else further axes count as images, as few as will do, in all
 * tensors alike. n*HW + p numbers the positions with the last axis fastest, as weights and masks
 * want it, but where any_order lets axes be in the order of the first tensor's memory, for tensors
 * that fit in no other way: leave it 0 for weights, masks and ghost batches. docs/embedding.md,
 * "Tensors of other libraries", has more.
 *
 * On errors only *bad_array and *bad_axis (NULL = not wanted) are written, 0 where neither is to
 * blame:
 *   BNORM_BAD_SHAPE      ndim or count is out of range; sizes[*bad_axis] is negative, is 0 for the
 *                        channels, or makes the tensors too large
 *   BNORM_BAD_PARAMETER  channel_axis is not an axis
 *   BNORM_BAD_STRIDE     arrays[*bad_array] cannot be expressed, because of strides[*bad_axis]:
 *                        copy this tensor */
BNORM_API bnorm_status bnorm_describe(const bnorm_axes *axes, bnorm_ndarray *arrays, size_t count,
                                      bnorm_shape *shape, size_t *bad_array, size_t *bad_axis);

/* ---- Messages and version -------------------------------------------------------------------- */

/* A full English sentence for a status; never NULL, also for values that are no status. */
BNORM_API const char *bnorm_strerror(bnorm_status status);

#define BNORM_VERSION_MAJOR 0
#define BNORM_VERSION_MINOR 1
#define BNORM_VERSION_PATCH 0

/* Version of the library that runs, "major.minor.patch"; compare with the macros above. */
BNORM_API const char *bnorm_version(void);

#ifdef __cplusplus
}
#endif

/* For several copies of bnorm in one program or process: with -DBNORM_PREFIX=acme_ for the sources
 * of bnorm and for what calls them, every symbol begins with acme_bnorm_ instead of bnorm_. Code
 * keeps the names above. The #include near the top reads this part, before anything is declared. */
#elif defined(BNORM_PREFIX) && !defined(BNORM_NAME)
#define BNORM_JOIN(prefix, name)         prefix##name
#define BNORM_EXPAND_JOIN(prefix, name)  BNORM_JOIN(prefix, name)
#define BNORM_NAME(name)                 BNORM_EXPAND_JOIN(BNORM_PREFIX, name)
#define bnorm_version                    BNORM_NAME(bnorm_version)
#define bnorm_strerror                   BNORM_NAME(bnorm_strerror)
#define bnorm_describe                   BNORM_NAME(bnorm_describe)
#define bnorm_isa_best                   BNORM_NAME(bnorm_isa_best)
#define bnorm_isa_at                     BNORM_NAME(bnorm_isa_at)
#define bnorm_isa_find                   BNORM_NAME(bnorm_isa_find)
#define bnorm_isa_name                   BNORM_NAME(bnorm_isa_name)
#define bnorm_fold                       BNORM_NAME(bnorm_fold)
#define bnorm_check_statistics           BNORM_NAME(bnorm_check_statistics)
#define bnorm_fold_conv                  BNORM_NAME(bnorm_fold_conv)
#define bnorm_apply                      BNORM_NAME(bnorm_apply)
#define bnorm_mask_size                  BNORM_NAME(bnorm_mask_size)
#define bnorm_workspace                  BNORM_NAME(bnorm_workspace)
#define bnorm_moments                    BNORM_NAME(bnorm_moments)
#define bnorm_weighted_moments           BNORM_NAME(bnorm_weighted_moments)
#define bnorm_running_update             BNORM_NAME(bnorm_running_update)
#define bnorm_running_keras              BNORM_NAME(bnorm_running_keras)
#define bnorm_running_tensorflow         BNORM_NAME(bnorm_running_tensorflow)
#define bnorm_running_pytorch            BNORM_NAME(bnorm_running_pytorch)
#define bnorm_running_pytorch_cumulative BNORM_NAME(bnorm_running_pytorch_cumulative)
#define bnorm_running_onnx               BNORM_NAME(bnorm_running_onnx)
#define bnorm_running_caffe              BNORM_NAME(bnorm_running_caffe)
#define bnorm_forward_train              BNORM_NAME(bnorm_forward_train)
#define bnorm_backward                   BNORM_NAME(bnorm_backward)
#define bnorm_forward_train_ghost        BNORM_NAME(bnorm_forward_train_ghost)
#define bnorm_backward_ghost             BNORM_NAME(bnorm_backward_ghost)
#define bnorm_partial_size               BNORM_NAME(bnorm_partial_size)
#define bnorm_partial_used               BNORM_NAME(bnorm_partial_used)
#define bnorm_partial_collect            BNORM_NAME(bnorm_partial_collect)
#define bnorm_partial_collect_grad       BNORM_NAME(bnorm_partial_collect_grad)
#define bnorm_partial_merge              BNORM_NAME(bnorm_partial_merge)
#define bnorm_partial_total              BNORM_NAME(bnorm_partial_total)
#define bnorm_partial_finish             BNORM_NAME(bnorm_partial_finish)
#define bnorm_partial_finish_grad        BNORM_NAME(bnorm_partial_finish_grad)
#define bnorm_partial_apply_grad         BNORM_NAME(bnorm_partial_apply_grad)
#define bnorm_run_jobs                   BNORM_NAME(bnorm_run_jobs)
#endif
