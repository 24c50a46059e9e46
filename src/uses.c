/* SPDX-License-Identifier: MIT */
#include "base.h"

#include "uses.h"

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
    bnorm_fit_view(uses->shape, tensor, uses->view);
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
