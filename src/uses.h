/* SPDX-License-Identifier: MIT
 *
 * What a call reads and writes. A function names its buffers one after the other, as their data
 * are required, checked and known; then one check says what is wrong with them. */
#ifndef BNORM_USES_H
#define BNORM_USES_H

#include "tensor.h"

#pragma GCC visibility push(hidden)

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

#pragma GCC visibility pop

#endif
