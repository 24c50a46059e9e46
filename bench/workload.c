/* SPDX-License-Identifier: MIT */
#include "workload.h"

#include <math.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "plain.h"
#include "reference.h"
#include "../tests/call.h"

const bench_op_info bench_ops[BENCH_ALL_OPS] = {
    [BENCH_INFERENCE] = {"inference", 2, 0, 0},
    [BENCH_INFERENCE_RELU] = {"inference_relu", 2, 1, 0},
    [BENCH_TRAINING] = {"training", 2, 0, 1},
    [BENCH_BACKWARD] = {"backward", 3, 0, 0},
    [BENCH_RESIDUAL_RELU] = {"residual_relu", 3, 1, 0},
    [BENCH_TRAINING_RELU] = {"training_relu", 2, 1, 1},
};

const char *const bench_layouts[2] = {[BNORM_NHWC] = "nhwc", [BNORM_NCHW] = "nchw"};

static const double eps = 1e-5;

const bnorm_isa *bench_isa_at(size_t i) {
    enum { SETS = 8 };
    static const bnorm_isa *sets[SETS];
    static int known;
    for (size_t k = 0; !known && k + 1 < SETS && (sets[k] = bnorm_isa_at(k)) != NULL; k++)
        ;
    known = 1;
    return i < SETS ? sets[i] : NULL;
}

enum { TENSORS = 4, PAGE = 4096, LINE = 64, MAX_BLOCKS = 32 };

/* Every block starts on another cache line of its page. At equal offsets loads would wait for
 * stores to other tensors (4 KiB aliasing), on some calls only, as chance has it. */
static void *new_block(bench_memory *memory, size_t bytes) {
    const size_t offset = (memory->block_count * 5 % 64) * LINE;
    char *block = memory->block_count < MAX_BLOCKS ? malloc(bytes + 2 * PAGE) : NULL;
    if (!block)
        return NULL;
    memory->blocks[memory->block_count++] = block;
    return block + (PAGE - (uintptr_t)block % PAGE) + offset;
}

size_t bench_memory_bytes(size_t elements) {
    return TENSORS * elements * sizeof(float);
}

/* Uniform in [-1, 1). */
static float next_random(unsigned *state) {
    *state = *state * 1664525U + 1013904223U;
    return (float)(*state >> 8) * 0x1p-23F - 1;
}

int bench_memory_create(bench_memory *memory, size_t elements, size_t channels, size_t ws_size) {
    *memory = (bench_memory){.random = 1};
    float **const tensors[] = {&memory->x, &memory->dy, &memory->timed.tensor,
                               &memory->expected.tensor};
    for (size_t i = 0; i < TENSORS; i++)
        if (!(*tensors[i] = new_block(memory, elements * sizeof(float))))
            return 0;
    float **const arrays[] = {
        &memory->gamma,
        &memory->beta,
        &memory->mean,
        &memory->invstd,
        &memory->scale,
        &memory->var,
        &memory->timed.mean,
        &memory->timed.invstd,
        &memory->timed.running_mean,
        &memory->timed.running_var,
        &memory->timed.dgamma,
        &memory->timed.dbeta,
    };
    const size_t array_count = sizeof arrays / sizeof arrays[0];
    const size_t array_size = (channels + 15) / 16 * 16; /* whole cache lines */
    float *const block = new_block(memory, (array_count + 6) * array_size * sizeof(float));
    if (!block || !(memory->ws = new_block(memory, ws_size)))
        return 0;
    for (size_t i = 0; i < array_count; i++)
        *arrays[i] = block + i * array_size;
    float **const expected[] = {
        &memory->expected.mean,        &memory->expected.invstd, &memory->expected.running_mean,
        &memory->expected.running_var, &memory->expected.dgamma, &memory->expected.dbeta,
    };
    for (size_t i = 0; i < 6; i++)
        *expected[i] = block + (array_count + i) * array_size;
    for (size_t c = 0; c < channels; c++) {
        memory->gamma[c] = 1 + next_random(&memory->random) / 2;
        memory->beta[c] = next_random(&memory->random);
        memory->mean[c] = 0.25F + next_random(&memory->random) / 8;
        memory->invstd[c] = 1 + next_random(&memory->random) / 8;
        memory->scale[c] = memory->gamma[c] * memory->invstd[c];
        memory->var[c] = (float)(1 / ((double)memory->invstd[c] * memory->invstd[c]) - eps);
    }
    return 1;
}

int bench_memory_add_forms(bench_memory *memory, const size_t elements[BENCH_DTYPES]) {
    size_t most = 1;
    for (size_t t = 0; t < BENCH_DTYPES; t++) {
        most = elements[t] > most ? elements[t] : most;
        if (t == BNORM_F32 || elements[t] == 0)
            continue;
        const size_t bytes = elements[t] * bench_dtype_size((bnorm_dtype)t);
        if (!(memory->typed[t].x = new_block(memory, bytes)) ||
            !(memory->typed[t].dy = new_block(memory, bytes)))
            return 0;
    }
    memory->mask = new_block(memory, most / 8 + 1);
    for (int i = 0; i < 2; i++) {
        bench_result *r = i == 0 ? &memory->timed : &memory->expected;
        r->mask = new_block(memory, most / 8 + 1);
        r->dresidual = new_block(memory, most * sizeof(float));
        if (!r->mask || !r->dresidual)
            return 0;
    }
    return memory->mask != NULL;
}

void bench_memory_destroy(bench_memory *memory) {
    for (size_t i = 0; i < memory->block_count; i++)
        free(memory->blocks[i]);
}

/* Initialises, and so touches, the front of the tensors as far as it is needed: what the largest
 * shape of a full run needs costs a quick one nothing. */
static void fill(bench_memory *memory, size_t elements) {
    for (size_t i = memory->filled; i < elements; i++) {
        memory->x[i] = 0.25F + 1.75F * next_random(&memory->random);
        memory->dy[i] = next_random(&memory->random);
        memory->timed.tensor[i] = memory->expected.tensor[i] = 0;
    }
    if (memory->filled < elements)
        memory->filled = elements;
}

/* The same for another type, and for the mask. */
static void fill_form(bench_memory *memory, bnorm_dtype dtype, size_t elements) {
    for (size_t i = memory->typed[dtype].filled; dtype != BNORM_F32 && i < elements; i++) {
        bench_element_set(dtype, memory->typed[dtype].x, i,
                          0.25F + 1.75F * next_random(&memory->random));
        bench_element_set(dtype, memory->typed[dtype].dy, i, next_random(&memory->random));
        memory->typed[dtype].filled = i + 1;
    }
    for (; memory->mask && memory->mask_filled <= elements / 8; memory->mask_filled++)
        memory->mask[memory->mask_filled] =
            (unsigned char)(128 + 128 * next_random(&memory->random));
}

static bench_tensor tensor_of(const bench_problem *p) {
    return (bench_tensor){.layout = p->layout,
                          .n = p->n,
                          .c = p->c,
                          .hw = p->hw,
                          .c_block = p->form.c_block,
                          .place = p->form.place};
}

static bnorm_shape shape_of(const bench_problem *p) {
    return (bnorm_shape){.layout = p->layout,
                         .dtype = p->form.dtype,
                         .n = p->n,
                         .c = p->c,
                         .hw = p->hw,
                         .c_block = p->form.c_block};
}

static bnorm_dtype result_dtype(const bench_problem *p) {
    switch (p->form.y_dtype) {
    case BNORM_Y_SAME:
        break;
    case BNORM_Y_F32:
        return BNORM_F32;
    case BNORM_Y_BF16:
        return BNORM_BF16;
    case BNORM_Y_F16:
        return BNORM_F16;
    case BNORM_Y_S8:
        return BNORM_S8;
    case BNORM_Y_U8:
        return BNORM_U8;
    }
    return p->form.dtype;
}

bnorm_act bench_act(const bench_problem *p) {
    if (p->form.act.kind == BNORM_ACT_IDENTITY && bench_ops[p->op].relu)
        return (bnorm_act){.kind = BNORM_ACT_RELU};
    return p->form.act;
}

int bench_has_residual(const bench_problem *p) {
    return p->op == BENCH_RESIDUAL_RELU || p->form.residual;
}

/* bench_ops counts the residual of BENCH_RESIDUAL_RELU. */
size_t bench_tensors(const bench_problem *p) {
    return bench_ops[p->op].tensors + (p->form.residual ? 1 : 0);
}

double bench_traffic(const bench_problem *p) {
    const bench_tensor tensor = tensor_of(p);
    const size_t size = bench_dtype_size(p->form.dtype);
    const size_t bytes = (bench_tensors(p) - 1) * size + bench_dtype_size(result_dtype(p));
    const double elements = (double)bench_elements(&tensor);
    return elements * (double)bytes + (p->form.mask ? elements / 8 : 0);
}

static bnorm_op library_op(enum bench_op op) {
    return bench_ops[op].training ? BNORM_OP_FORWARD_TRAIN
           : op == BENCH_BACKWARD ? BNORM_OP_BACKWARD
                                  : BNORM_OP_APPLY;
}

static size_t workspace_of(const bench_problem *p) {
    const bnorm_shape shape = shape_of(p);
    return bnorm_workspace(library_op(p->op), &shape);
}

size_t bench_workspace(enum bench_op op, bnorm_layout layout, size_t n, size_t c, size_t hw) {
    const bench_problem problem = {.op = op, .layout = layout, .n = n, .c = c, .hw = hw};
    return workspace_of(&problem);
}

bench_problem bench_problem_form(bench_memory *memory, enum bench_op op, bnorm_layout layout,
                                 size_t n, size_t c, size_t hw, const bench_form *form) {
    bench_problem p = {
        .op = op,
        .layout = layout,
        .n = n,
        .c = c,
        .hw = hw,
        .form = *form,
        .eps = eps,
        .x = memory->x,
        .dy = memory->dy,
        .typed_x = memory->typed[form->dtype].x,
        .typed_dy = memory->typed[form->dtype].dy,
        .mask = memory->mask,
        .gamma = memory->gamma,
        .beta = memory->beta,
        .mean = memory->mean,
        .invstd = memory->invstd,
        .scale = memory->scale,
        .var = memory->var,
        .ws = memory->ws,
    };
    const bench_tensor tensor = tensor_of(&p);
    /* Floats in any case, as results and roofs take their pages. */
    fill(memory, bench_span(&tensor) * bench_dtype_size(form->dtype) / sizeof(float) + 1);
    if (form->dtype != BNORM_F32 || form->mask)
        fill_form(memory, form->dtype, bench_span(&tensor));
    p.ws_size = workspace_of(&p);
    return p;
}

bench_problem bench_problem_make(bench_memory *memory, enum bench_op op, bnorm_layout layout,
                                 size_t n, size_t c, size_t hw) {
    const bench_form plain = {0};
    return bench_problem_form(memory, op, layout, n, c, hw, &plain);
}

void bench_call_make(bench_call *call, const bench_problem *p, const bench_result *r) {
    const bench_tensor tensor = tensor_of(p);
    const int typed = p->form.dtype != BNORM_F32;
    const size_t stride = bench_run_stride(&tensor);
    const bnorm_in dy = {typed ? p->typed_dy : p->dy, stride, 0}, none = {0};
    const bnorm_in residual = bench_has_residual(p) ? dy : none;
    const bnorm_act act = bench_act(p);
    unsigned char *const written = p->form.mask ? r->mask : NULL;
    call->shape = shape_of(p);
    call->job = (bnorm_job){
        .op = library_op(p->op),
        .shape = &call->shape,
        .x = {typed ? p->typed_x : p->x, stride, 0},
        .dy = dy,
        .out = {r->tensor, stride, 0},
        .affine = &call->affine,
        .train = &call->train,
        .grad = &call->grad,
        .ws = p->ws,
        .ws_size = p->ws_size,
    };
    switch (call->job.op) {
    case BNORM_OP_FORWARD_TRAIN:
        call->train = (bnorm_train){
            .gamma = p->gamma,
            .beta = p->beta,
            .eps = p->eps,
            .running = bnorm_running_pytorch(r->running_mean, r->running_var, BENCH_RATE),
            .save_mean = r->mean,
            .save_invstd = r->invstd,
            .residual = residual,
            .act = act,
            .mask = written,
        };
        break;
    case BNORM_OP_BACKWARD:
        call->grad = (bnorm_grad){
            .gamma = p->gamma,
            .beta = p->beta,
            .save_mean = p->mean,
            .save_invstd = p->invstd,
            .act = act,
            .mask = p->form.mask ? p->mask : NULL,
            .dresidual = {p->form.residual ? r->dresidual : NULL, stride, 0},
            .dgamma = r->dgamma,
            .dbeta = r->dbeta,
        };
        break;
    default:
        call->affine = (bnorm_affine){
            .center = p->mean,
            .scale = p->scale,
            .shift = p->beta,
            .residual = residual,
            .act = act,
            .y_dtype = p->form.y_dtype,
            .x_quant = bench_quant(p->form.dtype),
            .residual_quant = bench_quant(p->form.dtype),
            .y_quant = bench_quant(result_dtype(p)),
            .mask = written,
        };
    }
}

bnorm_status bench_run(const bench_problem *p, const bnorm_isa *isa, const bnorm_exec *exec,
                       const bench_result *r) {
    bench_call call;
    bnorm_exec how = *exec;
    how.isa = isa;
    bench_call_make(&call, p, r);
    return run_job(&call.job, &how);
}

/* Bytes of the result, gaps included, and of a mask. */
static size_t result_bytes(const bench_problem *p) {
    const bench_tensor tensor = tensor_of(p);
    return bench_span(&tensor) * bench_dtype_size(result_dtype(p));
}

static size_t mask_bytes(const bench_problem *p) {
    const bnorm_shape shape = shape_of(p);
    return bnorm_mask_size(&shape);
}

static int writes_mask(const bench_problem *p) {
    return p->form.mask && p->op != BENCH_BACKWARD;
}

static int writes_dresidual(const bench_problem *p) {
    return p->form.residual && p->op == BENCH_BACKWARD;
}

void bench_result_reset(const bench_problem *p, const bench_result *r) {
    float *const arrays[] = {r->mean, r->invstd, r->dgamma, r->dbeta};
    memset(r->tensor, 0xff, result_bytes(p));
    if (writes_mask(p))
        memset(r->mask, 0xff, mask_bytes(p));
    if (writes_dresidual(p))
        memset(r->dresidual, 0xff, result_bytes(p));
    for (size_t i = 0; i < sizeof arrays / sizeof arrays[0]; i++)
        memset(arrays[i], 0xff, p->c * sizeof(float));
    for (size_t c = 0; c < p->c; c++) {
        r->running_mean[c] = 0;
        r->running_var[c] = 1;
    }
}

static int run_fresh(const bench_problem *p, const bnorm_isa *isa, const bnorm_exec *exec,
                     const bench_result *r) {
    bench_result_reset(p, r);
    const bnorm_status status = bench_run(p, isa, exec, r);
    if (status != BNORM_OK)
        fprintf(stderr, "bnorm-bench: %s: %s\n", bnorm_isa_name(isa), bnorm_strerror(status));
    return status == BNORM_OK;
}

static int same_bits(const bench_problem *p, const bench_result *a, const bench_result *b,
                     const char *who) {
    const size_t array = p->c * sizeof(float);
    const struct {
        const char *name;
        const void *a, *b;
        size_t bytes;
    } arrays[] = {
        {"the output tensor", a->tensor, b->tensor, result_bytes(p)},
        {"the mask", a->mask, b->mask, writes_mask(p) ? mask_bytes(p) : 0},
        {"dresidual", a->dresidual, b->dresidual, writes_dresidual(p) ? result_bytes(p) : 0},
        {"save_mean", a->mean, b->mean, array},
        {"save_invstd", a->invstd, b->invstd, array},
        {"running_mean", a->running_mean, b->running_mean, array},
        {"running_var", a->running_var, b->running_var, array},
        {"dgamma", a->dgamma, b->dgamma, array},
        {"dbeta", a->dbeta, b->dbeta, array},
    };
    for (size_t i = 0; i < sizeof arrays / sizeof arrays[0]; i++) {
        if (arrays[i].bytes && memcmp(arrays[i].a, arrays[i].b, arrays[i].bytes) != 0) {
            size_t byte = 0;
            while (((const char *)arrays[i].a)[byte] == ((const char *)arrays[i].b)[byte])
                byte++;
            fprintf(stderr, "bnorm-bench: %s differs from the scalar set in byte %zu of %s.\n", who,
                    byte, arrays[i].name);
            return 0;
        }
    }
    return 1;
}

static void say_wrong(const bench_problem *p) {
    fprintf(stderr,
            "bnorm-bench: the wrong result is of %s %s %s, N %zu, C %zu, HW %zu, block %zu, place "
            "%d, activation %d, residual %d, mask %d. Run `make test`.\n",
            bench_ops[p->op].name, bench_layouts[p->layout], bench_dtype_names[p->form.dtype], p->n,
            p->c, p->hw, p->form.c_block, (int)p->form.place, (int)bench_act(p).kind,
            bench_has_residual(p), p->form.mask);
}

int bench_form_is_plain(const bench_form *f) {
    return f->dtype == BNORM_F32 && f->y_dtype == BNORM_Y_SAME && !f->c_block &&
           f->place == BENCH_DENSE && f->act.kind == BNORM_ACT_IDENTITY && !f->residual && !f->mask;
}

/* What the type of the result can hold, per term: half a step, and what the arithmetic loses. For
 * floats, which have 2^-24, a few roundings. */
static double form_tolerance(const bench_problem *p) {
    static const double tolerances[BENCH_DTYPES] = {
        [BNORM_F32] = 1e-6,       [BNORM_BF16] = 1 / 256.0, [BNORM_F16] = 1 / 1024.0,
        [BNORM_S8] = 1.01 / 32.0, [BNORM_U8] = 1.01 / 32.0,
    };
    return tolerances[result_dtype(p)];
}

/* The scalar set's result in the plain layout and in floats, against the reference. */
static int form_is_right(const bench_problem *p, const bench_result *r) {
    const bench_tensor tensor = tensor_of(p);
    const size_t elements = p->n * p->c * p->hw;
    const int typed = p->form.dtype != BNORM_F32;
    if (bench_form_is_plain(&p->form))
        return reference_check(p, r, form_tolerance(p), "scalar");
    float *const dense = calloc(4 * elements, sizeof *dense);
    if (!dense) {
        fprintf(stderr, "bnorm-bench: out of memory while checking.\n");
        return 0;
    }
    float *const x = dense, *const dy = x + elements, *const y = dy + elements;
    bench_problem plain = *p;
    bench_result result = *r;
    bench_unpack(&tensor, p->form.dtype, typed ? p->typed_x : p->x, x);
    bench_unpack(&tensor, p->form.dtype, typed ? p->typed_dy : p->dy, dy);
    bench_unpack(&tensor, result_dtype(p), r->tensor, y);
    if (p->op == BENCH_BACKWARD && p->form.mask)
        bench_unpack_mask(&tensor, p->mask, y + elements);
    plain.x = x;
    plain.dy = dy;
    plain.passed = y + elements;
    result.tensor = y;
    const int good = reference_check(&plain, &result, form_tolerance(p), "scalar");
    free(dense);
    return good;
}

int bench_check(const bench_problem *p, bench_memory *memory, const bnorm_exec *exec) {
    /* Plain sums of floats lose 0.1 % of the variance over the 3 million elements of a YOLO
     * channel. */
    const double plain_tolerance = 1e-2;
    const bnorm_isa *scalar = bnorm_isa_find("scalar"), *isa;
    int good = run_fresh(p, scalar, exec, &memory->expected) && form_is_right(p, &memory->expected);
    for (size_t i = 0; good && (isa = bench_isa_at(i)) != NULL; i++)
        if (isa != scalar)
            good = run_fresh(p, isa, exec, &memory->timed) &&
                   same_bits(p, &memory->timed, &memory->expected, bnorm_isa_name(isa));
    if (good && bench_form_is_plain(&p->form)) {
        bench_result_reset(p, &memory->timed);
        plain_run(p, &memory->timed);
        good = reference_check(p, &memory->timed, plain_tolerance, "plain C");
    }
    if (!good)
        say_wrong(p);
    return good;
}
