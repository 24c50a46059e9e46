/* SPDX-License-Identifier: MIT */
#include "base.h"

#include "workspace.h"

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
    bnorm_view view;
    bnorm_view_of(shape, &view);
    const bnorm_blocks blocks = bnorm_blocks_of(&view, 0);
    return bnorm_workspace_need(&view, &blocks);
}

size_t bnorm_partial_size(size_t c, size_t n) {
    size_t nodes = 0, bytes;
    for (; n; n /= 2)
        nodes += 2;
    return __builtin_mul_overflow(c, nodes * 2 * sizeof(double), &bytes) ? 0 : bytes;
}
