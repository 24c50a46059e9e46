/* SPDX-License-Identifier: MIT
 *
 * Runs every kernel of one kernel set, and a few whole calls, between two marks, for count.py to
 * count the instructions there. Where an emulator logs each instruction the marks are enough; with
 * --step, for sets that no emulator has, the program counts by itself: the CPU's trap flag raises
 * SIGTRAP behind every instruction (x86).
 *
 * Prints the compiler, then per case set, name, variant and size, and with --step the count. Linked
 * static and with the memory functions below, so that the same instructions run on every CPU. */
#define _POSIX_C_SOURCE 200809L /* sigaction */
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>
#include "bnorm.h"
#include "../dispatch/isa.h"
#include "../src/order.h"
#include "../tests/call.h"
#if defined(__x86_64__)
#include <x86intrin.h>
#endif

#define ALIGNED  _Alignas(64)
#define NOINLINE __attribute__((noinline))

enum {
    ELEMENTS = 64 * 28 * 28, /* of the largest case */
    CHANNELS = 256,
    WORKSPACE = 1 << 20
};

static ALIGNED float x[ELEMENTS], dy[ELEMENTS], residual[ELEMENTS], y[ELEMENTS],
    dresidual[ELEMENTS];
enum { KERNEL_ELEMENTS = 16 * 256 }; /* of the largest case of a kernel alone */
static ALIGNED uint16_t x_bf16[KERNEL_ELEMENTS], dy_bf16[KERNEL_ELEMENTS];
static ALIGNED unsigned char mask[KERNEL_ELEMENTS / 8];
static ALIGNED float center[CHANNELS], scale[CHANNELS], shift[CHANNELS], invstd[CHANNELS];
static ALIGNED float slope[CHANNELS], offset[CHANNELS], results[4][CHANNELS];
static ALIGNED double sums[4][CHANNELS];
static ALIGNED char ws[WORKSPACE];

/* ---------------------------------------------------------------------------------------------- */
/* Marks                                                                                          */

/* libc's choose by CPU. --wrap puts these in their place, 16 bytes at a time, as every CPU can; the
 * asm keeps a compiler from turning the loops into calls of themselves. */
void *__wrap_memcpy(void *to, const void *from, size_t size);
void *__wrap_memset(void *to, int value, size_t size);

typedef unsigned char chunk __attribute__((vector_size(16), aligned(1), may_alias));
#define NO_LIBRARY_CALL() __asm__ volatile("" ::: "memory")

void *__wrap_memcpy(void *to, const void *from, size_t size) {
    unsigned char *t = to;
    const unsigned char *f = from;
    size_t i = 0;
    for (; i + sizeof(chunk) <= size; i += sizeof(chunk)) {
        *(chunk *)(void *)(t + i) = *(const chunk *)(const void *)(f + i);
        NO_LIBRARY_CALL();
    }
    for (; i < size; i++) {
        t[i] = f[i];
        NO_LIBRARY_CALL();
    }
    return to;
}

void *__wrap_memset(void *to, int value, size_t size) {
    unsigned char *t = to;
    const chunk all = (chunk){0} + (unsigned char)value;
    size_t i = 0;
    for (; i + sizeof(chunk) <= size; i += sizeof(chunk)) {
        *(chunk *)(void *)(t + i) = all;
        NO_LIBRARY_CALL();
    }
    for (; i < size; i++) {
        t[i] = (unsigned char)value;
        NO_LIBRARY_CALL();
    }
    return to;
}

/* count.py finds them by name. */
NOINLINE void count_mark_begin(void);
NOINLINE void count_mark_end(void);

void count_mark_begin(void) {
    __asm__ volatile("" ::: "memory");
}

void count_mark_end(void) {
    __asm__ volatile("" ::: "memory");
}

static int stepping;
static volatile sig_atomic_t steps;

static void on_step(int signal_number) {
    (void)signal_number;
    steps++;
}

#if defined(__x86_64__)
enum { CAN_STEP = 1, TRAP_FLAG = 0x100 };

static void start_steps(void) {
    __writeeflags(__readeflags() | TRAP_FLAG);
}

static void stop_steps(void) {
    __writeeflags(__readeflags() & ~(unsigned long long)TRAP_FLAG);
}
#else
enum { CAN_STEP = 0 };

static void start_steps(void) {}
static void stop_steps(void) {}
#endif

static const struct bnorm_isa *isa;
static const bnorm_training *training; /* of isa */

/* The scalar set is the specification, which nobody waits for: counted in less detail. */
static int is_scalar(void) {
    return isa == &bnorm_isa_scalar;
}

static NOINLINE void begin(void) {
    steps = 0;
    count_mark_begin();
    if (stepping)
        start_steps();
}

static NOINLINE void end(const char *name, const char *variant, const char *size) {
    if (stepping)
        stop_steps();
    count_mark_end();
    printf("%s\t%s\t%s\t%s", isa->name, name, variant, size);
    if (stepping)
        printf("\t%ld", (long)steps);
    printf("\n");
}

/* ---------------------------------------------------------------------------------------------- */
/* Kernels: one that is added to the list fails to compile until it has its count_ function here  */

/* Rows of few, odd, and many channels, so many as make whole groups of each set's loops; planes as
 * in the networks' last stages, and a larger one; a block of channels, of which 5 exist. */
static const struct size {
    int rows; /* the family */
    size_t runs, len, valid;
    const char *name;
} sizes[] = {
    {1, 256, 3, 3, "256 rows of 3"},        {1, 128, 17, 17, "128 rows of 17"},
    {1, 32, 64, 64, "32 rows of 64"},       {1, 16, 256, 256, "16 rows of 256"},
    {0, 16, 7 * 7, 0, "16 planes of 7x7"},  {0, 4, 14 * 14, 0, "4 planes of 14x14"},
    {0, 1, 56 * 56, 0, "1 plane of 56x56"}, {1, 196, 8, 5, "196 rows of 8, 5 valid"},
};
enum { SIZES = sizeof sizes / sizeof sizes[0] };

/* What is fused; forward and backward have the same. */
static const struct variant {
    const char *name;
    bnorm_act act;
    enum bnorm_pre pre;
    int has_residual, frozen;
    bnorm_dtype type;
} variants[] = {
    {"plain", {BNORM_ACT_IDENTITY, 0, 0}, BNORM_PRE_NONE, 0, 0, BNORM_F32},
    {"relu", {BNORM_ACT_RELU, 0, 0}, BNORM_PRE_X, 0, 0, BNORM_F32},
    {"residual relu", {BNORM_ACT_RELU, 0, 0}, BNORM_PRE_RESIDUAL, 1, 0, BNORM_F32},
    {"relu frozen", {BNORM_ACT_RELU, 0, 0}, BNORM_PRE_X, 0, 1, BNORM_F32},
    {"relu mask", {BNORM_ACT_RELU, 0, 0}, BNORM_PRE_MASK, 0, 0, BNORM_F32},
    {"relu bf16", {BNORM_ACT_RELU, 0, 0}, BNORM_PRE_X, 0, 0, BNORM_BF16},
};

static size_t variant_count(void) {
    return is_scalar() ? 1 : sizeof variants / sizeof variants[0];
}

static const void *x_of(bnorm_dtype type) {
    return type == BNORM_BF16 ? (const void *)x_bf16 : x;
}

static bnorm_bits mask_of(const struct size *s, const struct variant *v) {
    return (bnorm_bits){.bits = v->pre == BNORM_PRE_MASK ? mask : NULL,
                        .group_stride = s->len,
                        .row_stride = s->len};
}

static const struct {
    const char *name;
    bnorm_dtype type;
} moments_variants[] = {{"plain", BNORM_F32}, {"bf16", BNORM_BF16}};

static size_t moments_variant_count(void) {
    return is_scalar() ? 1 : sizeof moments_variants / sizeof moments_variants[0];
}

static bnorm_map_args moments_args(const struct size *s, bnorm_dtype type) {
    bnorm_map_args args = {.groups = s->rows ? 1 : s->runs,
                           .rows = s->rows ? s->runs : 1,
                           .lanes = s->len,
                           .valid = s->rows ? s->valid : s->runs};
    args.x = (bnorm_tensor){.data = (void *)(uintptr_t)x_of(type), .type = type};
    args.x.group_stride = args.x.row_stride = s->len;
    return args;
}

static void count_moments(int rows) {
    for (size_t v = 0; v < moments_variant_count(); v++)
        for (size_t i = 0; i < SIZES; i++) {
            const bnorm_map_args args = moments_args(&sizes[i], moments_variants[v].type);
            if (sizes[i].rows != rows)
                continue;
            begin();
            if (rows)
                training->moments_rows(&args, bnorm_chains(args.lanes), sums[0], sums[1]);
            else
                training->moments_span(&args, sums[0], sums[1]);
            end(rows ? "moments_rows" : "moments_span", moments_variants[v].name, sizes[i].name);
        }
}

static void count_moments_rows(void) {
    count_moments(1);
}

static void count_moments_span(void) {
    count_moments(0);
}

/* Leaves of (N, C) data. */
static const struct size leaves[] = {{1, 64, 17, 17, "64 rows of 17"},
                                     {1, 64, 64, 64, "64 rows of 64"},
                                     {1, 4, 256, 256, "4 rows of 256"}};
enum { LEAVES = sizeof leaves / sizeof leaves[0] };

static void count_moments_tree(void) {
    for (size_t v = 0; v < moments_variant_count(); v++)
        for (size_t i = 0; i < LEAVES; i++) {
            const bnorm_map_args args = moments_args(&leaves[i], moments_variants[v].type);
            begin();
            training->moments_tree(&args, sums[0], sums[1]);
            end("moments_tree", moments_variants[v].name, leaves[i].name);
        }
}

static const struct {
    size_t c;
    const char *name;
} widths[] = {{3, "3 channels"}, {17, "17 channels"}, {256, "256 channels"}};
enum { WIDTHS = sizeof widths / sizeof widths[0] };

static const struct {
    size_t images, blocks;
    const char *name;
} depths[] = {{1, 1, "1 block"}, {1, 8, "8 blocks"}, {8, 1, "8 images"}};
enum { DEPTHS = sizeof depths / sizeof depths[0], MOST_BLOCKS = 8 };

/* The partial results of `images` images of `blocks` blocks each, of c channels. */
static bnorm_partials partials(size_t c, size_t images, size_t blocks) {
    static ALIGNED double tables[2][MOST_BLOCKS * CHANNELS];
    return (bnorm_partials){
        .entries = {tables[0], tables[1]},
        .stride = c,
        .n = images,
        .leaf = 1,
        .per_image = blocks,
        .size = 4096,
        .last = 1000,
        .hw = 4096 * (double)(blocks - 1) + 1000,
    };
}

static void count_blocks(void (*kernel)(const bnorm_partials *, size_t, size_t, double *, double *),
                         const char *name) {
    for (size_t i = 0; i < WIDTHS; i++)
        for (size_t d = 0; d < DEPTHS; d++) {
            const bnorm_partials p = partials(widths[i].c, depths[d].images, depths[d].blocks);
            begin();
            kernel(&p, 0, widths[i].c, sums[0], sums[1]);
            end(name, depths[d].name, widths[i].name);
        }
}

static void count_merge(void) {
    count_blocks(training->merge, "merge");
}

static void count_merge_pair(void) {
    const bnorm_pair_args args = {
        .n = {4096, 1000}, .sum = sums[0], .m2 = sums[1], .next_sum = sums[2], .next_m2 = sums[3]};
    for (size_t i = 0; i < WIDTHS; i++) {
        begin();
        training->merge_pair(&args, widths[i].c);
        end("merge_pair", "plain", widths[i].name);
    }
}

static void count_add_blocks(void) {
    count_blocks(training->add_blocks, "add_blocks");
}

static void count_coefficients(void) {
    const bnorm_coefficient_args args = {
        .mean = sums[0],
        .m2 = sums[1],
        .n = 4096,
        .eps = 1e-5,
        .gamma = invstd,
        .center = center,
        .scale = scale,
        .shift = shift,
        .save_mean = results[0],
        .save_invstd = results[1],
        .running_mean = results[2],
        .new_mean = results[2],
        .running_var = results[3],
        .rate = 0.1,
        .divisor = 4095,
    };
    for (size_t i = 0; i < WIDTHS; i++) {
        begin();
        training->coefficients(&args, 0, widths[i].c);
        end("coefficients", "plain", widths[i].name);
    }
}

static void count_scale_shift(void) {
    const bnorm_scale_args args = {
        .gamma = center, .invstd = invstd, .scale = scale, .shift = shift};
    for (size_t i = 0; i < WIDTHS; i++) {
        begin();
        training->scale_shift(&args, widths[i].c);
        end("scale_shift", "plain", widths[i].name);
    }
}

static void count_grad_coefficients(void) {
    const bnorm_grad_coefficient_args args = {
        .sum_g = sums[0],
        .sum_gx = sums[1],
        .n = 4096,
        .gamma = center,
        .invstd = invstd,
        .dgamma = results[0],
        .dbeta = results[1],
        .scale = scale,
        .slope = slope,
        .offset = offset,
    };
    for (size_t i = 0; i < WIDTHS; i++) {
        begin();
        training->grad_coefficients(&args, 0, widths[i].c);
        end("grad_coefficients", "plain", widths[i].name);
    }
}

static bnorm_tensor tensor_of(const void *data, const struct size *s, bnorm_dtype type) {
    return (bnorm_tensor){.data = (void *)(uintptr_t)data,
                          .image_stride = s->runs * s->len,
                          .group_stride = s->len,
                          .row_stride = s->len,
                          .type = type,
                          .quant = {1, 0}};
}

static bnorm_map_args map_sizes(const struct size *s, const struct variant *v) {
    return (bnorm_map_args){
        .images = 1,
        .groups = s->rows ? 1 : s->runs,
        .rows = s->rows ? s->runs : 1,
        .lanes = s->len,
        .valid = s->valid,
        .x = tensor_of(x_of(v->type), s, v->type),
        .act = v->act,
        .center = center,
        .scale = scale,
        .shift = shift,
        .mask = mask_of(s, v),
    };
}

static void count_apply(int rows, void (*kernel)(const bnorm_map_args *), const char *name) {
    for (size_t v = 0; v < variant_count(); v++)
        for (size_t i = 0; i < SIZES; i++) {
            const struct size s = sizes[i];
            if (s.rows != rows || variants[v].frozen)
                continue;
            const struct variant *const variant = &variants[v];
            bnorm_map_args args = map_sizes(&s, variant);
            args.argument = tensor_of(variant->has_residual ? residual : NULL, &s, variant->type);
            args.pre = variant->has_residual ? BNORM_PRE_RESIDUAL : BNORM_PRE_X;
            args.out = tensor_of(y, &s, variant->type);
            begin();
            kernel(&args);
            end(name, variants[v].name, s.name);
        }
}

static void count_apply_rows(void) {
    count_apply(1, isa->apply_rows, "apply_rows");
}

static void count_apply_span(void) {
    count_apply(0, isa->apply_span, "apply_span");
}

static bnorm_map_args grad_args(const struct size *s, const struct variant *v) {
    bnorm_map_args args = map_sizes(s, v);
    args.dy = tensor_of(v->type == BNORM_BF16 ? (const void *)dy_bf16 : dy, s, v->type);
    args.argument = tensor_of(v->has_residual ? residual : NULL, s, v->type);
    args.pre = v->pre;
    args.invstd = invstd;
    return args;
}

static void count_sums_rows(void) {
    for (size_t v = 0; v < variant_count(); v++)
        for (size_t i = 0; i < SIZES; i++) {
            const bnorm_map_args args = grad_args(&sizes[i], &variants[v]);
            if (!sizes[i].rows || variants[v].frozen)
                continue;
            begin();
            training->sums_rows(&args, bnorm_chains(args.lanes), sums[0], sums[1]);
            end("sums_rows", variants[v].name, sizes[i].name);
        }
}

static void count_sums_span(void) {
    for (size_t v = 0; v < variant_count(); v++)
        for (size_t i = 0; i < SIZES; i++) {
            const bnorm_map_args args = grad_args(&sizes[i], &variants[v]);
            const int staged = args.x.type != BNORM_F32 || args.mask.bits;
            if (sizes[i].rows || variants[v].frozen)
                continue;
            if (staged && args.lanes > BNORM_BLOCK_SPAN) /* no block of a plane is longer */
                continue;
            begin();
            training->sums_span(&args, sums[0], sums[1]);
            end("sums_span", variants[v].name, sizes[i].name);
        }
}

static void count_sums_tree(void) {
    for (size_t v = 0; v < variant_count(); v++)
        for (size_t i = 0; i < LEAVES; i++) {
            const bnorm_map_args args = grad_args(&leaves[i], &variants[v]);
            if (variants[v].frozen)
                continue;
            begin();
            training->sums_tree(&args, sums[0], sums[1]);
            end("sums_tree", variants[v].name, leaves[i].name);
        }
}

static void count_dx(int rows, void (*kernel)(const bnorm_map_args *), const char *name) {
    for (size_t v = 0; v < variant_count(); v++)
        for (size_t i = 0; i < SIZES; i++) {
            bnorm_map_args args = grad_args(&sizes[i], &variants[v]);
            if (sizes[i].rows != rows)
                continue;
            args.out = tensor_of(y, &sizes[i], variants[v].type);
            args.dresidual =
                tensor_of(variants[v].has_residual ? dresidual : NULL, &sizes[i], variants[v].type);
            if (!variants[v].frozen) {
                args.slope = slope;
                args.offset = offset;
            }
            begin();
            kernel(&args);
            end(name, variants[v].name, sizes[i].name);
        }
}

static void count_dx_rows(void) {
    count_dx(1, training->dx_rows, "dx_rows");
}

static void count_dx_span(void) {
    count_dx(0, training->dx_span, "dx_span");
}

static void (*const kernels[])(void) = {
#define X(kernel, args) count_##kernel,
    BNORM_KERNELS(X)
#undef X
};

/* ---------------------------------------------------------------------------------------------- */
/* Whole calls                                                                                    */

static void count_call(const struct call *call, const char *name, const char *layout,
                       const char *size) {
    const int trains = call->op == BNORM_OP_FORWARD_TRAIN;
    const struct operands at = {
        .x = {.data = x},
        .dy = {.data = dy},
        .out = {.data = y},
        .gamma = scale,
        .beta = shift,
        .scale = scale,
        .mean = trains ? results[2] : center,
        .invstd = trains ? results[3] : invstd,
        .running_mean = results[0],
        .running_var = results[1],
        .dgamma = results[0],
        .dbeta = results[1],
        .ws = ws,
        .ws_size = sizeof ws,
    };
    const bnorm_exec exec = {.isa = isa};
    struct call_args args;
    call_arguments(&args, call, &at);
    begin();
    const bnorm_status status = run_job(&args.job, &exec);
    end(name, layout, size);
    if (status)
        fprintf(stderr, "count: a call on %s was refused; is WORKSPACE too small?\n", size);
}

static void count_calls(size_t c, size_t hw, const char *size) {
    static const char *const layouts[] = {[BNORM_NHWC] = "nhwc", [BNORM_NCHW] = "nchw"};
    for (int layout = 1; layout >= 0; layout--) {
        struct call call = {
            .op = BNORM_OP_APPLY,
            .shape = {.layout = (bnorm_layout)layout, .n = 1, .c = c, .hw = hw},
            .eps = 1e-5,
            .rate = 0.1,
            .variance = BNORM_VARIANCE_SAMPLE,
        };
        count_call(&call, "bnorm_apply", layouts[layout], size);
        call.op = BNORM_OP_FORWARD_TRAIN;
        count_call(&call, "bnorm_forward_train", layouts[layout], size);
        call.op = BNORM_OP_BACKWARD;
        count_call(&call, "bnorm_backward", layouts[layout], size);
    }
}

/* A bfloat16, rounded towards zero. */
static uint16_t upper_half(float value) {
    uint32_t bits;
    memcpy(&bits, &value, sizeof bits);
    return (uint16_t)(bits >> 16);
}

static void fill(void) {
    unsigned state = 1;
    for (size_t i = 0; i < ELEMENTS; i++) {
        state = state * 1664525u + 1013904223u;
        x[i] = (float)(state >> 8) * 0x1p-23f - 1;
        dy[i] = x[i] * x[i] - 0.5f;
        residual[i] = 0.25f - x[i];
    }
    for (size_t i = 0; i < KERNEL_ELEMENTS; i++) {
        x_bf16[i] = upper_half(x[i]);
        dy_bf16[i] = upper_half(dy[i]);
    }
    for (size_t i = 0; i < CHANNELS; i++) {
        center[i] = shift[i] = slope[i] = offset[i] = x[i] / 4;
        scale[i] = invstd[i] = 1 + x[i] / 4;
    }
}

int main(int argc, char **argv) {
    stepping = argc == 3 && strcmp(argv[2], "--step") == 0;
    if (argc != 2 + stepping) {
        fprintf(stderr, "usage: count SET [--step]; run by tools/count.py\n");
        return 2;
    }
#if defined(__clang__)
    printf("clang %d.%d\n", __clang_major__, __clang_minor__);
#else
    printf("gcc %d.%d\n", __GNUC__, __GNUC_MINOR__);
#endif
    isa = bnorm_isa_find(argv[1]);
    training = isa ? bnorm_training_of(isa) : NULL;
    if (!isa || (stepping && !CAN_STEP))
        return 0; /* no case: count.py says so */
    const struct sigaction action = {.sa_handler = on_step};
    sigaction(SIGTRAP, &action, NULL);
    fill();

    /* What the marks themselves take; count.py subtracts it. */
    begin();
    end("nothing", "", "");
    for (size_t k = 0; k < sizeof kernels / sizeof kernels[0]; k++)
        kernels[k]();
    count_calls(16, 16, "1x16x4x4");
    if (!is_scalar())
        count_calls(64, 28 * 28, "1x64x28x28");
    return 0;
}
