/* SPDX-License-Identifier: MIT
 *
 * bnorm_describe: known tensors of other libraries by name; random ones against a search through
 * all ways to see their axes, which compares addresses of elements and knows no rule of the
 * library's; refusals; and calls on what was described. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include "cases.h"

enum { DIMS = 6, TENSORS = 3 };

/* ---------------------------------------------------------------------------------------------- */
/* A model: tensors by sizes and strides, and what is found in them by looking at every element   */

struct model {
    int64_t sizes[DIMS], strides[TENSORS][DIMS]; /* in elements, whatever the call is given */
    int64_t given[TENSORS][DIMS];                /* in bytes where itemsize says so */
    size_t channel, count;
    bnorm_axes axes;
    bnorm_ndarray arrays[TENSORS];
};

/* The next index in C order; 0 after the last. */
static int next_index(const struct model *m, int64_t *index) {
    for (size_t axis = m->axes.ndim; axis-- > 0; index[axis] = 0)
        if (++index[axis] < m->sizes[axis])
            return 1;
    return 0;
}

static int64_t address_of(const struct model *m, size_t tensor, const int64_t *index) {
    int64_t address = 0;
    for (size_t axis = 0; axis < m->axes.ndim; axis++)
        if (m->sizes[axis] > 1)
            address += index[axis] * m->strides[tensor][axis];
    return address;
}

/* The place of an index among those of some axes, the last of which is the fastest. */
static int64_t rank_of(const struct model *m, const int64_t *index, const size_t *axes,
                       size_t count) {
    int64_t rank = 0;
    for (size_t i = 0; i < count; i++)
        rank = rank * m->sizes[axes[i]] + index[axes[i]];
    return rank;
}

/* Whether one tensor's addresses are n*image + c*channel + p*position when the first axes of an
 * order are images, with channels or positions next to each other. */
static int is_linear(const struct model *m, size_t tensor, const size_t *order, size_t images,
                     bnorm_layout layout) {
    const size_t count = m->axes.ndim - 1;
    int64_t step[3] = {0, 0, 0}, last[3] = {0, 0, 0}; /* of n, c and p */
    for (int pass = 0; pass < 2; pass++) {
        int64_t index[DIMS] = {0};
        do {
            const int64_t address = address_of(m, tensor, index),
                          at[3] = {rank_of(m, index, order, images), index[m->channel],
                                   rank_of(m, index, order + images, count - images)};
            for (int i = 0; i < 3 && !pass; i++) {
                if (at[i] == 1 && at[(i + 1) % 3] == 0 && at[(i + 2) % 3] == 0)
                    step[i] = address;
                if (at[i] > last[i])
                    last[i] = at[i];
            }
            if (pass && address != at[0] * step[0] + at[1] * step[1] + at[2] * step[2])
                return 0;
        } while (next_index(m, index));
    }
    for (int i = 0; i < 3; i++)
        if (last[i] && (step[i] < 0 || (!step[i] && !m->arrays[tensor].may_broadcast)))
            return 0;
    return step[layout == BNORM_NHWC ? 1 : 2] <= 1;
}

static int are_linear(const struct model *m, size_t tensors, const size_t *order, size_t images) {
    for (int layout = 0; layout < 2; layout++) {
        size_t i = 0;
        while (i < tensors && is_linear(m, i, order, images, (bnorm_layout)layout))
            i++;
        if (i == tensors)
            return 1;
    }
    return 0;
}

/* The axes but for the channels', in their order. */
static void start_order(const struct model *m, size_t *order) {
    for (size_t axis = 0; axis < m->axes.ndim; axis++)
        if (axis != m->channel)
            *order++ = axis;
}

static int next_permutation(size_t *order, size_t count) {
    size_t i = count, j = count;
    while (i > 1 && order[i - 2] > order[i - 1])
        i--;
    if (i < 2)
        return 0;
    while (order[j - 1] < order[i - 2])
        j--;
    const size_t pivot = order[i - 2];
    order[i - 2] = order[j - 1];
    order[j - 1] = pivot;
    for (i--, j = count - 1; i < j; i++, j--) {
        const size_t axis = order[i];
        order[i] = order[j];
        order[j] = axis;
    }
    return 1;
}

/* Whether the first tensors have any expression at all; with samples_only one in which the first
 * axis alone is images. */
static int is_expressible(const struct model *m, size_t tensors, int samples_only) {
    const size_t count = m->axes.ndim - 1;
    size_t order[DIMS] = {0};
    start_order(m, order);
    const size_t samples = order[0];
    do {
        for (size_t images = 0; images <= count; images++)
            if ((!samples_only || (images == 1 && order[0] == samples)) &&
                are_linear(m, tensors, order, images))
                return 1;
    } while (m->axes.any_order && next_permutation(order, count));
    return 0;
}

/* n of the first cut, in the axes' own order, that has the samples, and maybe more, as images. */
static size_t fewest_images(const struct model *m, size_t tensors) {
    const size_t count = m->axes.ndim - 1;
    size_t order[DIMS], n = 1;
    start_order(m, order);
    for (size_t images = count > 0; images <= count; images++) {
        n *= images ? (size_t)m->sizes[order[images - 1]] : 1;
        if (are_linear(m, tensors, order, images))
            return n;
    }
    return 0;
}

/* ---------------------------------------------------------------------------------------------- */
/* What was described, element by element                                                         */

struct place {
    size_t n, c, p;
    int seen;
};

static int64_t described_address(const bnorm_shape *shape, const bnorm_ndarray *array,
                                 const struct place *at) {
    const size_t n = array->broadcast & BNORM_BROADCAST_N ? 0 : at->n;
    const size_t c = array->broadcast & BNORM_BROADCAST_C ? 0 : at->c;
    const size_t p = array->broadcast & BNORM_BROADCAST_HW ? 0 : at->p;
    const size_t run = shape->layout == BNORM_NHWC ? p : c;
    return (int64_t)(n * array->in.image_stride + run * array->in.run_stride +
                     (shape->layout == BNORM_NHWC ? c : p));
}

/* Every element of every tensor is where its shape and strides say, under the same (n, c, p) in all
 * of them. The first tensor, whose elements have distinct addresses, tells that. */
static void check_described(struct test *t, const struct model *m, const bnorm_shape *shape) {
    size_t elements = 1, span = 1;
    for (size_t axis = 0; axis < m->axes.ndim; axis++) {
        elements *= (size_t)m->sizes[axis];
        if (m->sizes[axis] > 1)
            span += (size_t)((m->sizes[axis] - 1) * m->strides[0][axis]);
    }
    if (shape->n * shape->c * shape->hw != elements || shape->c != (size_t)m->sizes[m->channel] ||
        shape->c_block || shape->dtype != m->axes.dtype)
        test_fail(t, "the shape is %zu x %zu x %zu", shape->n, shape->c, shape->hw);

    struct place *places = test_alloc(t, span * sizeof *places);
    for (struct place at = {0, 0, 0, 1}; at.n < shape->n; at.n++)
        for (at.c = 0; at.c < shape->c; at.c++)
            for (at.p = 0; at.p < shape->hw; at.p++) {
                const int64_t address = described_address(shape, &m->arrays[0], &at);
                if ((size_t)address >= span || places[address].seen)
                    test_fail(t, "(%zu, %zu, %zu) of the first tensor is at %lld", at.n, at.c, at.p,
                              (long long)address);
                places[address] = at;
            }
    int64_t index[DIMS] = {0};
    size_t order[DIMS], row = 0;
    start_order(m, order);
    do {
        const struct place *at = &places[address_of(m, 0, index)];
        if (!at->seen || at->c != (size_t)index[m->channel])
            test_fail(t, "channel %lld is seen as %zu", (long long)index[m->channel], at->c);
        row = (size_t)rank_of(m, index, order, m->axes.ndim - 1);
        if (!m->axes.any_order && at->n * shape->hw + at->p != row)
            test_fail(t, "(%zu, %zu) is not position %zu of the batch", at->n, at->p, row);
        for (size_t i = 0; i < m->count; i++)
            if (described_address(shape, &m->arrays[i], at) != address_of(m, i, index))
                test_fail(t, "(%zu, %zu, %zu) of tensor %zu is not at %lld", at->n, at->c, at->p, i,
                          (long long)address_of(m, i, index));
    } while (next_index(m, index));
    for (size_t i = 0; i < m->count; i++) {
        const bnorm_ndarray *a = &m->arrays[i];
        if (a->in.data != a->data || a->out.data != a->data ||
            a->in.run_stride != a->out.run_stride || a->in.image_stride != a->out.image_stride)
            test_fail(t, "in and out of tensor %zu differ", i);
    }
}

/* The second tensor from the first by a call, which takes both as they were described and touches
 * nothing but their elements. */
static void check_apply(struct test *t, struct model *m, const bnorm_shape *shape) {
    struct buffer buffers[2];
    float scale[8], shift[8];
    for (int i = 0; i < 8; i++) {
        scale[i] = (float)(i + 1);
        shift[i] = (float)-i;
    }
    for (size_t i = 0; i < 2; i++) {
        size_t span = 1;
        for (size_t axis = 0; axis < m->axes.ndim; axis++)
            if (m->sizes[axis] > 1)
                span += (size_t)((m->sizes[axis] - 1) * m->strides[i][axis]);
        buffer_new(&buffers[i], span * sizeof(float), (enum side)rng_below(&t->rng, 2), 0);
        for (size_t k = 0; k < span; k++)
            ((float *)(void *)buffers[i].data)[k] = (float)k - (float)i * 1e6f;
        m->arrays[i].in.data = m->arrays[i].out.data = buffers[i].data;
    }
    const bnorm_affine affine = {.scale = scale, .shift = shift};
    check_status(t, "bnorm_apply",
                 bnorm_apply(shape, m->arrays[0].in, m->arrays[1].out, &affine, NULL), BNORM_OK);
    int64_t index[DIMS] = {0};
    float *const y = (float *)(void *)buffers[1].data;
    do {
        float *const got = &y[address_of(m, 1, index)];
        const int64_t c = index[m->channel], from = address_of(m, 0, index);
        const float want = (float)(from * (c + 1) - c);
        check_bits(t, "y", got, &want, 1);
        *got = (float)(got - y) - 1e6f;
    } while (next_index(m, index));
    for (size_t k = 0; k < buffers[1].bytes / sizeof(float); k++)
        if (y[k] != (float)k - 1e6f)
            test_fail(t, "element %zu of y's buffer, which is none of y, was written", k);
    for (int i = 0; i < 2; i++)
        buffer_check(t, &buffers[i], i ? "y" : "x");
}

/* ---------------------------------------------------------------------------------------------- */
/* Random tensors                                                                                 */

/* Which axis is where in memory, the outermost first. */
static void random_memory(struct test *t, const struct model *m, size_t *memory) {
    const size_t ndim = m->axes.ndim, kind = rng_below(&t->rng, 8);
    size_t n = 0;
    start_order(m, memory);
    n = ndim - 1;
    memory[n] = m->channel;      /* channels last */
    if (kind >= 2 && kind < 5) { /* channels behind the samples, or first */
        const size_t at = kind == 4 || ndim < 2 ? 0 : 1;
        memmove(memory + at + 1, memory + at, (n - at) * sizeof *memory);
        memory[at] = m->channel;
    }
    if (kind == 5) /* Fortran's order */
        for (size_t i = 0; i < ndim; i++)
            memory[i] = ndim - 1 - i;
    if (kind >= 6) { /* one axis or all axes anywhere */
        for (size_t i = 0; i < (kind == 6 ? 1 : ndim); i++) {
            const size_t a = rng_below(&t->rng, ndim), b = rng_below(&t->rng, ndim);
            const size_t axis = memory[a];
            memory[a] = memory[b];
            memory[b] = axis;
        }
    }
}

static void random_strides(struct test *t, struct model *m, size_t tensor, const size_t *memory) {
    int64_t *strides = m->strides[tensor], pitch = 1;
    const int may_broadcast = m->arrays[tensor].may_broadcast;
    const int sliced = rng_below(&t->rng, 3) == 0, expanded = rng_below(&t->rng, 2) == 0;
    for (size_t i = m->axes.ndim; i-- > 0;) {
        const size_t axis = memory[i];
        const int64_t gap = sliced && rng_below(&t->rng, 4) == 0,
                      step = sliced && rng_below(&t->rng, 12) == 0 ? 2 : 1;
        strides[axis] = pitch * step;
        if (may_broadcast && expanded && rng_below(&t->rng, 2))
            strides[axis] = 0;
        else
            pitch *= (m->sizes[axis] + gap) * step;
        if (rng_below(&t->rng, 200) == 0)
            strides[axis] = -strides[axis];
    }
}

static void random_model(struct test *t, struct model *m) {
    static const int64_t sizes[] = {1, 1, 2, 2, 3, 3, 4, 5};
    static const int64_t garbage[] = {0, -1, 3, INT64_MAX, INT64_MIN, 1 << 20};
    size_t memory[DIMS];
    memset(m, 0, sizeof *m);
    m->count = 1 + rng_below(&t->rng, TENSORS);
    m->axes.sizes = m->sizes;
    m->axes.ndim = 1 + rng_below(&t->rng, DIMS - 1);
    m->channel = rng_below(&t->rng, m->axes.ndim);
    m->axes.channel_axis = (int)m->channel;
    if (rng_below(&t->rng, 2))
        m->axes.channel_axis -= (int)m->axes.ndim;
    m->axes.any_order = rng_below(&t->rng, 2) != 0;
    for (size_t axis = 0; axis < m->axes.ndim; axis++)
        m->sizes[axis] = sizes[rng_below(&t->rng, sizeof sizes / sizeof sizes[0])];
    for (size_t i = 0; i < m->count; i++) {
        bnorm_ndarray *array = &m->arrays[i];
        array->data = array; /* some address */
        array->may_broadcast = i == 2;
        array->itemsize = rng_below(&t->rng, 3) == 0 ? 4 : 0;
        if (i == 0 || rng_below(&t->rng, 8) == 0)
            random_memory(t, m, memory);
        random_strides(t, m, i, memory);
        for (size_t axis = 0; axis < m->axes.ndim; axis++)
            m->given[i][axis] = m->sizes[axis] == 1
                                    ? garbage[rng_below(&t->rng, 6)]
                                    : m->strides[i][axis] * (array->itemsize ? 4 : 1);
        array->strides = m->given[i];
    }
}

static void say_model(struct test *t, const struct model *m) {
    size_t n = (size_t)snprintf(t->context, sizeof t->context, "channel axis %zu%s, sizes",
                                m->channel, m->axes.any_order ? ", any order" : "");
    for (size_t axis = 0; axis < m->axes.ndim; axis++)
        n += (size_t)snprintf(t->context + n, sizeof t->context - n, " %lld",
                              (long long)m->sizes[axis]);
    for (size_t i = 0; i < m->count; i++) {
        n += (size_t)snprintf(t->context + n, sizeof t->context - n, "; strides");
        for (size_t axis = 0; axis < m->axes.ndim; axis++)
            n += (size_t)snprintf(t->context + n, sizeof t->context - n, " %lld",
                                  (long long)m->strides[i][axis]);
    }
}

/* Refused: there is no expression, and the arrays before the bad one have one. */
static void check_refused(struct test *t, const struct model *m, size_t array, size_t axis) {
    int negative = 0;
    if (is_expressible(m, m->count, 0))
        test_fail(t, "refused for axis %zu of tensor %zu, but it can be expressed", axis, array);
    if (array >= m->count || axis >= m->axes.ndim || m->sizes[axis] == 1)
        test_fail(t, "axis %zu of tensor %zu is to blame", axis, array);
    for (size_t i = 0; i < m->count; i++)
        for (size_t k = 0; k < m->axes.ndim; k++)
            negative |= m->sizes[k] > 1 && m->strides[i][k] < 0;
    if (negative ? m->strides[array][axis] >= 0 : !is_expressible(m, array, 0))
        test_fail(t, "axis %zu of tensor %zu is to blame, but another is", axis, array);
}

static void test_random(struct test *t) {
    enum { IN_ORDER, MORE_IMAGES, REORDERED, BROADCAST, NHWC, NCHW, REFUSED, LATER, KINDS };
    static const char *const names[KINDS] = {"in order",  "more images",  "reordered",
                                             "broadcast", "NHWC",         "NCHW",
                                             "refused",   "refused later"};
    size_t seen[KINDS] = {0};
    for (int i = 0; i < (test_quick() ? 2000 : 20000); i++) {
        struct model m, before;
        bnorm_shape shape = {BNORM_NCHW, BNORM_U8, 77, 77, 77, 77};
        size_t array = 99, axis = 99;
        random_model(t, &m);
        say_model(t, &m);
        memcpy(&before, &m, sizeof m);
        const bnorm_status status =
            bnorm_describe(&m.axes, m.arrays, m.count, &shape, &array, &axis);
        if (status) {
            check_status(t, "bnorm_describe", status, BNORM_BAD_STRIDE);
            if (memcmp(&m, &before, sizeof m) != 0 || shape.n != 77)
                test_fail(t, "a refusal has written something");
            check_refused(t, &m, array, axis);
            seen[array ? LATER : REFUSED]++;
            continue;
        }
        if (array != 99 || axis != 99)
            test_fail(t, "a success has named an axis");
        check_described(t, &m, &shape);
        const size_t fewest = fewest_images(&m, m.count), samples = m.channel == 0;
        const size_t n = samples < m.axes.ndim ? (size_t)m.sizes[samples] : 1;
        if (fewest ? shape.n != fewest : !m.axes.any_order)
            test_fail(t, "%zu images, not %zu", shape.n, fewest);
        if (!fewest && shape.n != n && is_expressible(&m, m.count, 1))
            test_fail(t, "%zu images, though they could be the %zu samples", shape.n, n);
        seen[fewest == n ? IN_ORDER : fewest ? MORE_IMAGES : REORDERED]++;
        seen[shape.layout == BNORM_NHWC ? NHWC : NCHW]++;
        seen[BROADCAST] += m.count == 3 && m.arrays[2].broadcast;
        if (m.count >= 2)
            check_apply(t, &m, &shape);
        test_release(t);
    }
    for (int kind = 0; kind < KINDS; kind++)
        if (seen[kind] < 20)
            test_fail(t, "only %zu models are of the kind: %s", seen[kind], names[kind]);
}

/* ---------------------------------------------------------------------------------------------- */
/* Known tensors                                                                                  */

/* What a tensor of these sizes and strides becomes: "layout n c hw: run_stride image_stride" and
 * the axes along which it is broadcast, which it may be if there are any. */
struct known {
    const char *name;
    int channel_axis;
    const char *sizes, *strides, *result; /* strides NULL: none are given */
};

static const struct known known[] = {
    {"dense (C)", 0, "5", NULL, "NHWC 1 5 1: 0 0"},
    {"dense (N, C)", 1, "7 5", NULL, "NHWC 7 5 1: 0 5"},
    {"axis -1", -1, "7 5", "5 1", "NHWC 7 5 1: 0 5"},
    {"dense (N, C, L)", 1, "7 5 9", NULL, "NCHW 7 5 9: 9 45"},
    {"dense (N, L, C)", -1, "7 9 5", NULL, "NHWC 7 5 9: 5 45"},
    {"NumPy, C order, (N, C, H, W)", 1, "2 3 4 5", "60 20 5 1", "NCHW 2 3 20: 20 60"},
    {"NumPy, C order, (N, H, W, C)", 3, "2 4 5 3", "60 15 3 1", "NHWC 2 3 20: 3 60"},
    {"dense (N, D, H, W, C)", -1, "2 2 4 5 3", NULL, "NHWC 2 3 40: 3 120"},
    {"PyTorch, channels_last", 1, "2 3 4 5", "60 1 15 3", "NHWC 2 3 20: 3 60"},
    {"PyTorch, channels_last_3d", 1, "2 3 2 4 5", "120 1 60 15 3", "NHWC 2 3 40: 3 120"},
    {"(L, N, C) as (N, C, L)", 1, "2 3 5", "3 1 6", "NHWC 2 3 5: 6 3"},
    {"dense (C, N, HW)", 0, "3 2 20", NULL, "NCHW 2 3 20: 40 20"},
    {"(C, N) as (N, C)", 1, "7 5", "1 7", "NCHW 7 5 1: 7 1"},
    {"channels 0..4 of 8, (N, C)", 1, "7 5", "8 1", "NHWC 7 5 1: 0 8"},
    {"channels 0, 2, 4, ... of 10, (N, C)", 1, "7 5", "10 2", "NCHW 7 5 1: 2 10"},
    {"channels 0..2 of 8, NCHW", 1, "2 3 4 5", "160 20 5 1", "NCHW 2 3 20: 20 160"},
    {"channels 0..2 of 8, NHWC", 3, "2 4 5 3", "160 40 8 1", "NHWC 2 3 20: 8 160"},
    {"samples 0, 2, 4, ...", 3, "2 4 5 3", "120 15 3 1", "NHWC 2 3 20: 3 120"},
    {"rows 0..3 of 6, NHWC", 3, "2 4 5 3", "90 15 3 1", "NHWC 2 3 20: 3 90"},
    {"columns 0..4 of 7, NHWC", 3, "2 4 5 3", "84 21 3 1", "NHWC 8 3 5: 3 21"},
    {"columns 0..4 of 7, one sample, NCHW", 1, "1 3 4 5", "84 28 7 1", "NCHW 4 3 5: 28 7"},
    {"positions 0, 2, 4, ... of one sample", 1, "1 3 5", "30 10 2", "NCHW 5 3 1: 10 2"},
    {"size 1: strides are garbage", 1, "1 3 1 5 1", "-7 5 -9223372036854775808 1 0",
     "NCHW 1 3 5: 5 0"},
    {"nothing but size 1", 1, "1 1 1 1", "-1 -1 -1 -1", "NHWC 1 1 1: 0 0"},
    {"(N, 1)", 1, "7 1", "1 1", "NHWC 7 1 1: 0 1"},
    {"one channel", 3, "2 4 5 1", "20 5 1 1", "NCHW 2 1 20: 0 20"},
    {"one channel of three, NHWC", 3, "2 4 5 1", "60 15 3 1", "NHWC 2 1 20: 3 60"},
    {"one position", 1, "2 3 1 1", "3 1 1 1", "NHWC 2 3 1: 0 3"},
    {"no samples", 3, "0 4 5 3", "-1 -1 7 -1", "NHWC 0 3 20: 0 0"},
    {"no samples, NCHW", 1, "0 3 4 5", NULL, "NCHW 0 3 20: 0 0"},
    {"no positions", 1, "2 3 0 5", NULL, "NCHW 2 3 0: 0 0"},
    {"expanded from a number: y.sum()", 1, "2 3 4 5", "0 0 0 0", "NHWC 2 3 20: 0 0, N C HW"},
    {"samples expanded", 1, "2 3 4 5", "0 20 5 1", "NCHW 2 3 20: 20 0, N"},
    {"channels expanded, NCHW", 1, "2 3 4 5", "20 0 5 1", "NHWC 2 3 20: 1 20, C"},
    {"channels expanded, NHWC", 3, "2 4 5 3", "20 5 1 0", "NHWC 2 3 20: 1 20, C"},
    {"positions expanded: global pooling", 1, "2 3 4 5", "3 1 0 0", "NHWC 2 3 20: 0 3, HW"},
    {"parameters expanded", 3, "2 4 5 3", "0 0 0 1", "NHWC 2 3 20: 0 0, N HW"},
    {"rows expanded, one sample", 1, "1 3 4 5", "0 5 0 1", "NCHW 4 3 5: 5 0, N"},
};

/* These fit in no order but that of memory. */
static const struct known known_in_any_order[] = {
    {"NumPy, F order, (N, C, H, W)", 1, "2 3 4 5", "1 2 6 24", "NCHW 20 3 2: 2 6"},
    {"NumPy, F order, (N, H, W, C)", -1, "2 4 5 3", "1 2 8 40", "NCHW 1 3 40: 40 0"},
    {"(N, W, H, C) as (N, H, W, C)", -1, "2 4 5 3", "60 3 12 1", "NHWC 2 3 20: 3 60"},
    {"(W, H, N, C) as (N, C, H, W)", 1, "2 3 4 5", "3 1 6 24", "NHWC 2 3 20: 6 3"},
};

/* Numbers that are separated by spaces. */
static size_t parse(const char *text, int64_t *numbers) {
    size_t count = 0;
    for (char *end; *text; text = end + (*end == ' '))
        numbers[count++] = strtoll(text, &end, 10);
    return count;
}

static void check_known(struct test *t, const struct known *k, size_t itemsize, int any_order,
                        bnorm_status status) {
    int64_t sizes[DIMS], strides[DIMS] = {0};
    const size_t ndim = parse(k->sizes, sizes);
    parse(k->strides ? k->strides : "", strides);
    for (size_t axis = 0; axis < ndim; axis++)
        if (sizes[axis] > 1 && itemsize)
            strides[axis] *= (int64_t)itemsize;
    test_context(t, "%s, itemsize %zu", k->name, itemsize);
    const bnorm_axes axes = {ndim, sizes, k->channel_axis, BNORM_F32, any_order};
    bnorm_ndarray array = {.data = sizes, /* some address */
                           .strides = k->strides ? strides : NULL,
                           .itemsize = itemsize,
                           .may_broadcast = strchr(k->result, ',') != NULL};
    bnorm_shape shape;
    check_status(t, "bnorm_describe", bnorm_describe(&axes, &array, 1, &shape, NULL, NULL), status);
    if (status)
        return;
    char got[128];
    snprintf(got, sizeof got, "%s %zu %zu %zu: %zu %zu%s%s%s%s",
             shape.layout == BNORM_NHWC ? "NHWC" : "NCHW", shape.n, shape.c, shape.hw,
             array.in.run_stride, array.in.image_stride, array.broadcast ? "," : "",
             array.broadcast & BNORM_BROADCAST_N ? " N" : "",
             array.broadcast & BNORM_BROADCAST_C ? " C" : "",
             array.broadcast & BNORM_BROADCAST_HW ? " HW" : "");
    if (strcmp(got, k->result) != 0)
        test_fail(t, "%s, not %s", got, k->result);
    if (array.in.data != sizes || array.out.data != sizes ||
        array.out.run_stride != array.in.run_stride ||
        array.out.image_stride != array.in.image_stride || shape.c_block ||
        shape.dtype != BNORM_F32)
        test_fail(t, "in and out, or the shape, are not complete");
}

static void test_known(struct test *t) {
    for (size_t itemsize = 0; itemsize <= 4; itemsize += 2)
        for (int any_order = 0; any_order < 2; any_order++) {
            for (size_t i = 0; i < COUNT_OF(known); i++)
                check_known(t, &known[i], itemsize, any_order, BNORM_OK);
            for (size_t i = 0; i < COUNT_OF(known_in_any_order); i++)
                check_known(t, &known_in_any_order[i], itemsize, any_order,
                            any_order ? BNORM_OK : BNORM_BAD_STRIDE);
        }
}

/* ---------------------------------------------------------------------------------------------- */
/* Several tensors, and what is refused                                                           */

static const int64_t nchw[] = {60, 20, 5, 1}, channels_last[] = {60, 1, 15, 3},
                     wide[] = {84, 28, 7, 1}, pooled[] = {3, 1, 0, 0}, nothing[] = {0, 0, 0, 0},
                     backwards[] = {60, 20, -5, 1}, thin[] = {120, 40, 10, 2},
                     sparse[] = {200, 2, 30, 6}, half[] = {0, 20, 0, 1}, odd[] = {240, 80, 20, 6};

struct refusal {
    const char *name;
    const int64_t *strides[3];
    size_t count, itemsize, array, axis;
    int may_broadcast; /* the last one */
};

static const struct refusal refusals[] = {
    {"channels first, then last", {nchw, nchw, channels_last}, 3, 0, 2, 3, 0},
    {"channels last, then first", {channels_last, nchw, nchw}, 3, 0, 1, 1, 0},
    {"columns of wider images", {nchw, wide}, 2, 0, 1, 2, 0},
    {"columns of wider images, the first", {wide, nchw}, 2, 0, 0, 2, 0},
    {"stride 0, not allowed", {nchw, pooled}, 2, 0, 1, 2, 0},
    {"stride 0 along half of the positions", {nchw, half}, 2, 0, 1, 2, 1},
    {"rows backwards", {nchw, nchw, backwards}, 3, 0, 2, 2, 0},
    {"every other column", {nchw, thin}, 2, 0, 1, 3, 0},
    {"every other column, the first", {thin}, 1, 0, 0, 3, 0},
    {"every other channel, NHWC", {sparse}, 1, 0, 0, 1, 0},
    {"strides that are no whole elements", {odd}, 1, 4, 0, 3, 0},
    {"elements as bytes", {nchw}, 1, 4, 0, 2, 0},
};

static const int64_t sizes4[] = {2, 3, 4, 5};

static void test_refusals(struct test *t) {
    const bnorm_axes axes = {4, sizes4, 1, BNORM_F32, 0};
    for (size_t i = 0; i < COUNT_OF(refusals); i++) {
        const struct refusal *r = &refusals[i];
        bnorm_ndarray arrays[3] = {{0}}, before[3];
        bnorm_shape shape, untouched;
        size_t array = 99, axis = 99;
        test_context(t, "%s", r->name);
        memset(&shape, 77, sizeof shape);
        untouched = shape;
        for (size_t k = 0; k < r->count; k++) {
            arrays[k].strides = r->strides[k];
            arrays[k].itemsize = r->itemsize;
        }
        arrays[r->count - 1].may_broadcast = r->may_broadcast;
        memcpy(before, arrays, sizeof arrays);
        check_status(t, "bnorm_describe",
                     bnorm_describe(&axes, arrays, r->count, &shape, &array, &axis),
                     BNORM_BAD_STRIDE);
        if (array != r->array || axis != r->axis)
            test_fail(t, "axis %zu of array %zu is to blame", axis, array);
        if (memcmp(arrays, before, sizeof arrays) != 0 || shape.n != untouched.n)
            test_fail(t, "something was written");
        check_status(t, "not asking why",
                     bnorm_describe(&axes, arrays, r->count, &shape, NULL, NULL), BNORM_BAD_STRIDE);
    }
}

/* Tensors that go together: absent ones, planned ones without memory, expanded ones. */
static void test_together(struct test *t) {
    float x[1], dy[1];
    const bnorm_axes axes = {4, sizes4, -3, BNORM_BF16, 0};
    bnorm_ndarray arrays[] = {{.data = x, .strides = channels_last},
                              {.strides = channels_last},
                              {.broadcast = 7, .in = {x, 1, 1}},
                              {.data = dy, .strides = pooled, .may_broadcast = 1},
                              {.data = dy, .strides = nothing, .may_broadcast = 1}};
    bnorm_shape shape;
    check_status(t, "bnorm_describe",
                 bnorm_describe(&axes, arrays, COUNT_OF(arrays), &shape, NULL, NULL), BNORM_OK);
    const size_t strides[][2] = {{3, 60}, {3, 60}, {0, 0}, {0, 3}, {0, 0}};
    const unsigned broadcasts[] = {0, 0, 0, BNORM_BROADCAST_HW, 7};
    void *const data[] = {x, NULL, NULL, dy, dy};
    if (shape.layout != BNORM_NHWC || shape.dtype != BNORM_BF16 || shape.n != 2 || shape.hw != 20)
        test_fail(t, "another shape");
    for (size_t i = 0; i < COUNT_OF(arrays); i++) {
        const bnorm_ndarray *a = &arrays[i];
        if (a->in.data != data[i] || a->out.data != data[i] || a->in.run_stride != strides[i][0] ||
            a->in.image_stride != strides[i][1] || a->out.run_stride != strides[i][0] ||
            a->out.image_stride != strides[i][1] || a->broadcast != broadcasts[i])
            test_fail(t, "array %zu: strides %zu and %zu, broadcast %u", i, a->in.run_stride,
                      a->in.image_stride, a->broadcast);
    }
    /* The first one is there even so: dense. */
    bnorm_ndarray planned = {0};
    check_status(t, "bnorm_describe", bnorm_describe(&axes, &planned, 1, &shape, NULL, NULL),
                 BNORM_OK);
    if (shape.layout != BNORM_NCHW || planned.in.run_stride != 20 || planned.in.image_stride != 60)
        test_fail(t, "a planned tensor: strides %zu and %zu", planned.in.run_stride,
                  planned.in.image_stride);
    arrays[2].data = x; /* is no longer absent, and dense */
    size_t array, axis;
    check_status(t, "bnorm_describe, dense",
                 bnorm_describe(&axes, arrays, COUNT_OF(arrays), &shape, &array, &axis),
                 BNORM_BAD_STRIDE);
    if (array != 2 || axis != 1)
        test_fail(t, "axis %zu of array %zu is to blame", axis, array);
}

static void test_bad_arguments(struct test *t) {
    static const int64_t negative[] = {2, 3, -4, 5}, no_channels[] = {2, 0, 4, 5},
                         both[] = {0, 3, INT64_MAX, INT64_MAX}, huge[] = {2, 3, INT64_MAX / 4, 5};
    static const struct {
        const char *name;
        bnorm_axes axes;
        size_t count;
        bnorm_status status;
        size_t axis;
    } cases[] = {
        {"no sizes", {4, NULL, 1, BNORM_F32, 0}, 1, BNORM_NULL_POINTER, 0},
        {"no dtype", {4, sizes4, 1, (bnorm_dtype)5, 0}, 1, BNORM_BAD_ENUM, 0},
        {"no dtype, negative", {4, sizes4, 1, (bnorm_dtype)-1, 0}, 1, BNORM_BAD_ENUM, 0},
        {"no axes", {0, sizes4, 0, BNORM_F32, 0}, 1, BNORM_BAD_SHAPE, 0},
        {"channel axis 4 of 4", {4, sizes4, 4, BNORM_F32, 0}, 1, BNORM_BAD_PARAMETER, 0},
        {"channel axis -5 of 4", {4, sizes4, -5, BNORM_F32, 0}, 1, BNORM_BAD_PARAMETER, 0},
        {"the least channel axis", {4, sizes4, INT32_MIN, BNORM_F32, 0}, 1, BNORM_BAD_PARAMETER, 0},
        {"no tensors", {4, sizes4, 1, BNORM_F32, 0}, 0, BNORM_BAD_SHAPE, 0},
        {"a negative size", {4, negative, 1, BNORM_F32, 0}, 1, BNORM_BAD_SHAPE, 2},
        {"no channels", {4, no_channels, 1, BNORM_F32, 0}, 1, BNORM_BAD_SHAPE, 1},
        {"sizes that overflow", {4, huge, 1, BNORM_F32, 0}, 1, BNORM_BAD_SHAPE, 2},
        {"sizes that overflow, but empty", {4, both, 1, BNORM_F32, 0}, 1, BNORM_BAD_SHAPE, 2},
    };
    for (size_t i = 0; i < COUNT_OF(cases); i++) {
        bnorm_ndarray array = {0};
        bnorm_shape shape = {.n = 77};
        size_t bad_array = 99, bad_axis = 99;
        test_context(t, "%s", cases[i].name);
        check_status(
            t, "bnorm_describe",
            bnorm_describe(&cases[i].axes, &array, cases[i].count, &shape, &bad_array, &bad_axis),
            cases[i].status);
        if (bad_array != 0 || bad_axis != cases[i].axis || shape.n != 77)
            test_fail(t, "axis %zu of array %zu is to blame", bad_axis, bad_array);
    }
    const bnorm_axes axes = {4, sizes4, 1, BNORM_F32, 0};
    bnorm_ndarray array = {0};
    bnorm_shape shape;
    check_status(t, "no axes", bnorm_describe(NULL, &array, 1, &shape, NULL, NULL),
                 BNORM_NULL_POINTER);
    check_status(t, "no arrays", bnorm_describe(&axes, NULL, 1, &shape, NULL, NULL),
                 BNORM_NULL_POINTER);
    check_status(t, "no shape", bnorm_describe(&axes, &array, 1, NULL, NULL, NULL),
                 BNORM_NULL_POINTER);
}

/* As many axes as there may be, in reverse; and one more. */
static void test_most_axes(struct test *t) {
    int64_t sizes[BNORM_MAX_DIMS + 1] = {0}, strides[BNORM_MAX_DIMS], stride = 1;
    for (size_t i = 0; i < BNORM_MAX_DIMS; i++) {
        sizes[i] = i % 4 == 1 ? 3 : 1;
        strides[i] = sizes[i] > 1 ? stride : -1;
        stride *= sizes[i];
    }
    bnorm_axes axes = {BNORM_MAX_DIMS, sizes, 61, BNORM_F32, 1};
    bnorm_ndarray array = {.data = sizes, .strides = strides};
    bnorm_shape shape;
    check_status(t, "bnorm_describe", bnorm_describe(&axes, &array, 1, &shape, NULL, NULL),
                 BNORM_OK);
    if (shape.layout != BNORM_NCHW || shape.n != 1 || shape.c != 3 || shape.hw != 14348907 ||
        array.in.run_stride != 14348907)
        test_fail(t, "%zu x %zu x %zu", shape.n, shape.c, shape.hw);
    sizes[axes.ndim++] = 1;
    check_status(t, "one more", bnorm_describe(&axes, &array, 1, &shape, NULL, NULL),
                 BNORM_BAD_SHAPE);
}

/* ---------------------------------------------------------------------------------------------- */
/* Training on views: the bits of a copy that is dense in the order of the described shape        */

struct trained {
    float *mean, *invstd;
};

static void train(struct test *t, const bnorm_shape *shape, bnorm_in x, bnorm_out y,
                  struct trained *result) {
    const size_t size = bnorm_workspace(BNORM_OP_FORWARD_TRAIN, shape);
    const bnorm_exec exec = {.isa = t->isa};
    result->mean = test_floats(t, shape->c);
    result->invstd = test_floats(t, shape->c);
    const bnorm_train train = {
        .eps = 1e-5, .save_mean = result->mean, .save_invstd = result->invstd};
    check_status(t, "bnorm_forward_train",
                 bnorm_forward_train(shape, x, y, &train, test_alloc(t, size), size, &exec),
                 BNORM_OK);
}

static void test_train(struct test *t) {
    static const struct {
        const char *name;
        size_t ndim;
        int64_t sizes[4], strides[4];
        int channel_axis;
    } views[] = {
        {"(N, C, L) of (L, N, C)", 3, {6, 37, 50}, {37, 1, 222}, 1},
        {"(N, C, H, W) of (W, H, N, C)", 4, {3, 19, 8, 9}, {19, 1, 57, 456}, 1},
        {"(N, H, W, C) of (C, N, H, W)", 4, {3, 8, 9, 19}, {72, 9, 1, 216}, 3},
        {"columns, (N, H, W, C)", 4, {3, 8, 9, 19}, {1824, 228, 19, 1}, 3},
        {"F order, (N, C, H, W)", 4, {8, 19, 3, 9}, {1, 8, 152, 456}, 1},
        {"(C, N)", 2, {100, 21}, {1, 100}, 1},
    };
    for (size_t v = 0; v < COUNT_OF(views); v++) {
        const bnorm_axes axes = {views[v].ndim, views[v].sizes, views[v].channel_axis, BNORM_F32,
                                 1};
        size_t span = 1;
        for (size_t i = 0; i < axes.ndim; i++)
            span += (size_t)((views[v].sizes[i] - 1) * views[v].strides[i]);
        float *x = test_floats(t, span), *y = test_floats(t, span);
        for (size_t i = 0; i < span; i++)
            x[i] = (float)rng_normal(&t->rng);
        bnorm_ndarray arrays[] = {{.data = x, .strides = views[v].strides},
                                  {.data = y, .strides = views[v].strides}};
        bnorm_shape shape;
        test_context(t, "%s", views[v].name);
        check_status(t, "bnorm_describe", bnorm_describe(&axes, arrays, 2, &shape, NULL, NULL),
                     BNORM_OK);
        const struct tensor view = {.data = x,
                                    .run_stride = arrays[0].in.run_stride,
                                    .image_stride = arrays[0].in.image_stride};
        const size_t count = shape_count(&shape);
        float *dense = test_floats(t, count), *want = test_floats(t, count);
        tensor_get(&view, &shape, dense);
        struct trained there, copied;
        train(t, &shape, arrays[0].in, arrays[1].out, &there);
        train(t, &shape, (bnorm_in){dense, 0, 0}, (bnorm_out){want, 0, 0}, &copied);
        const struct tensor result = {.data = y,
                                      .run_stride = arrays[1].in.run_stride,
                                      .image_stride = arrays[1].in.image_stride};
        tensor_get(&result, &shape, dense);
        check_bits(t, "y", dense, want, count);
        check_bits(t, "mean", there.mean, copied.mean, shape.c);
        check_bits(t, "invstd", there.invstd, copied.invstd, shape.c);
        test_release(t);
    }
}

void add_describe(struct suite *s) {
    suite_add(s, NULL, test_known, NULL, "describe/known");
    suite_add(s, NULL, test_together, NULL, "describe/together");
    suite_add(s, NULL, test_refusals, NULL, "describe/refusals");
    suite_add(s, NULL, test_bad_arguments, NULL, "describe/arguments");
    suite_add(s, NULL, test_most_axes, NULL, "describe/most axes");
    suite_add(s, NULL, test_random, NULL, "describe/random");
    suite_add_per_isa(s, test_train, NULL, "describe/train/%s");
}
