/* SPDX-License-Identifier: MIT
 *
 * Fuzzing of every function of bnorm.h. A string of bytes is decoded to one call, which
 *   - is refused if and only if a model, written from the header's text, finds a fault in it, with
 *     the status of one of the faults that the model finds;
 *   - changes nothing where it is refused;
 *   - else writes all of its outputs and nothing else, whatever lies between and behind the inputs;
 *   - gives the same bits on every kernel set, in any order of tasks, on dense tensors of their
 *     own, in pieces, group by group and as a job.
 * The functions for batches in pieces are such calls, too, each alone.
 * What does not hold is said on stderr, and the process aborts. */
#ifndef BNORM_FUZZ_H
#define BNORM_FUZZ_H

#include "../tests/call.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* ---------------------------------------------------------------------------------------------- */
/* Decoding: each choice takes a byte, 0 where there is none left, which stands for the default. */

struct bytes {
    const unsigned char *at, *end;
    int faults; /* how many may still be put in */
};

static inline size_t pick(struct bytes *in, size_t count) {
    return in->at < in->end ? *in->at++ % count : 0;
}

/* Whether something is to be wrong here. Takes no byte where all is to be right. */
static inline int is_wrong(struct bytes *in) {
    if (!in->faults || pick(in, 256) < 216)
        return 0;
    in->faults--;
    return 1;
}

#define PICK(in, values) ((values)[pick((in), sizeof(values) / sizeof *(values))])

/* Of loops over bytes, each of which libFuzzer would count and compare. */
#if defined(__clang__)
#define UNWATCHED __attribute__((no_sanitize("coverage")))
#else
#define UNWATCHED
#endif

/* What was never written, for clang's MemorySanitizer and for valgrind; and what was. */
#if defined(__has_feature)
#if __has_feature(memory_sanitizer)
#include <sanitizer/msan_interface.h>
#define FORGET(memory, size) __msan_allocated_memory((memory), (size))
#define KNOW(memory, size)   __msan_unpoison((memory), (size))
#endif
#endif
#if !defined(FORGET) && defined(__has_include)
#if __has_include(<valgrind/memcheck.h>)
#include <valgrind/memcheck.h>
#define FORGET(memory, size) VALGRIND_MAKE_MEM_UNDEFINED((memory), (size))
#define KNOW(memory, size)   VALGRIND_MAKE_MEM_DEFINED((memory), (size))
#endif
#endif
#if !defined(FORGET)
#define FORGET(memory, size) ((void)0)
#define KNOW(memory, size)   ((void)0)
#endif

/* Numbers that look random. */
UNWATCHED static inline uint32_t next_number(uint32_t *state) {
    *state = *state * 1664525u + 1013904223u;
    return *state >> 8 ^ *state << 16;
}

UNWATCHED static inline void fill_bytes(void *memory, size_t size, uint32_t *state) {
    unsigned char *const bytes = memory;
    for (size_t i = 0; i < size; i += 4) {
        const uint32_t number = next_number(state);
        memcpy(bytes + i, &number, size - i < 4 ? size - i : 4);
    }
}

/* How the elements of a tensor or an array are drawn. */
enum values { MODERATE, NEAR, MIXED, ANY_BITS, VALUES_COUNT };
void fill_elements(void *memory, size_t count, bnorm_dtype type, enum values values,
                   uint32_t *state);

/* ---------------------------------------------------------------------------------------------- */
/* Calls of bnorm_apply, moments, forward_train and backward, also as ghost batches */

/* What a call may have; tensors come first. */
enum {
    X,
    DY,
    RESIDUAL,
    Y,
    OUT,
    DRESIDUAL,
    TENSORS,
    GAMMA = TENSORS,
    BETA,
    SCALE,
    MEAN,
    LO,
    INVSTD,
    VAR,
    RUNNING_MEAN,
    RUNNING_VAR,
    NEW_MEAN,
    NEW_VAR,
    WEIGHTS,
    RENORM_R,
    RENORM_D,
    DGAMMA,
    DBETA,
    MASK,
    WS,
    NODES, /* of a piece */
    COEFFICIENTS,
    BUFFERS
};

/* A whole call, or what of it is done with a piece: bnorm_partial_collect, _finish, _apply_grad. */
enum stage { WHOLE, COLLECT, FINISH, APPLY_GRAD };

/* A tensor seen as images of runs; strides are those of its axes that are longer than 1, else 0. */
struct geometry {
    size_t images, runs, run;
    size_t image_stride, run_stride;
    size_t extent; /* elements from the first to the last one */
};

struct buffer {
    int present;
    size_t block, offset; /* where it lies */
    size_t bytes;
    size_t element;                  /* bytes of one */
    size_t run_stride, image_stride; /* as they are given */
    struct geometry geometry;        /* of tensors */
};

/* Memory that buffers lie in, of exactly their size. */
struct block {
    unsigned char *data;
    size_t size;
    unsigned char *use;    /* of each byte: a sum of enum use */
    unsigned char *before; /* the content before the first run */
    unsigned char *filled; /* ... before this run */
    unsigned char *after;  /* what the first run left */
};
enum use { IS_READ = 1, IS_WRITTEN = 2, IS_SCRATCH = 4 };

struct subject {
    struct call call;
    bnorm_shape safe; /* the shape that memory is made for: call.shape may be bad */
    struct operands operands;
    struct call_args args;
    bnorm_ghost ghost;
    bnorm_renorm renorm;
    enum stage stage;
    bnorm_partial piece;                          /* before the call */
    int no_shape, no_options, no_ghost, no_piece; /* these pointers are NULL */
    bnorm_denormals denormals;
    bnorm_memory memory;
    size_t groups; /* that save arrays have room for */
    size_t ws_need;
    struct buffer buffers[BUFFERS];
    struct block blocks[BUFFERS];
};

/* What the header says of a call, a bit per status: it has to be refused with one of these, if
 * there are any; it may be with those. */
struct verdict {
    unsigned must, may;
};

struct verdict verdict_of(const struct subject *s, int has_sleef);
/* 'r' or 'w', 'R' or 'W' where it is required, ' ' where it is ignored. */
char role_of(const struct subject *s, size_t buffer);
struct geometry geometry_of(const bnorm_shape *shape, size_t run_stride, size_t image_stride,
                            unsigned broadcast);
/* Sets a bit of every byte of the elements, in a map of the block. */
void mark_elements(unsigned char *map, const struct buffer *b, int is_tensor, unsigned bit);
int shape_is_empty(const bnorm_shape *shape);
size_t size_of_type(bnorm_dtype type);

/* Without the padding of the struct. */
static inline int same_piece(const bnorm_partial *a, const bnorm_partial *b) {
    return a->op == b->op && a->c == b->c && a->hw == b->hw && a->first == b->first &&
           a->n == b->n && a->nodes == b->nodes && a->size == b->size;
}

/* Is fatal where a call answers something else. */
void check_status(const char *function, bnorm_status status, struct verdict verdict);
_Noreturn void fail(const char *function, const char *what);

/* The rest of bnorm.h. */
void fuzz_parameters(struct bytes *in); /* fold, fold_conv, check_statistics, running_update, ... */
void fuzz_describe(struct bytes *in);
void fuzz_partials(struct bytes *in); /* pieces that do not fit */

/* How tasks are run; soak.c has one with threads. */
extern bnorm_parallel fuzz_parallel;

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

#endif
