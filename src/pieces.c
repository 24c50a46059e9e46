/* SPDX-License-Identifier: MIT
 *
 * Batches in pieces: whole subtrees of the tree that images are merged along. Collecting is a call
 * of forward or backward that ends with these; each is appended and merged with its neighbour as
 * soon as both are there. Merging two pieces appends those of the second. Finishing merges what is
 * left, from the last to the first, and derives the coefficients, with which y or dx is a call of
 * its own. */
#include "base.h"

#include "backward.h"
#include "channel.h"
#include "check.h"
#include "forward.h"
#include "run.h"
#include "running.h"
#include "uses.h"

#include <string.h>

/* Channels whose totals lie on the stack. */
#define CHANNELS ((size_t)32)

static size_t nodes_of(const bnorm_partial *piece) {
    return bnorm_subtrees(piece->first, piece->n, BNORM_TREE);
}

size_t bnorm_partial_used(const bnorm_partial *piece) {
    size_t bytes;
    return !piece || __builtin_mul_overflow(nodes_of(piece) * 2 * sizeof(double), piece->c, &bytes)
               ? 0
               : bytes;
}

static double *node_at(const bnorm_partial *piece, size_t k) {
    return piece->nodes + k * 2 * piece->c;
}

static double values_of(const bnorm_partial *piece, size_t images) {
    return (double)images * (double)piece->hw;
}

static void canonical(double *array, size_t n) {
    for (size_t i = 0; i < n; i++)
        if (array[i] != array[i])
            memset(&array[i], 0xff, sizeof array[i]);
}

/* Two arrays of one node: n values, c channels. */
struct node {
    double *a, *b;
    double n;
};

/* left and the node after it. */
static void join(bnorm_op op, struct node left, struct node right, size_t c) {
    if (op == BNORM_OP_MOMENTS) {
        const bnorm_pair_args args = {
            .n = {left.n, right.n},
            .sum = left.a,
            .m2 = left.b,
            .next_sum = right.a,
            .next_m2 = right.b,
        };
        bnorm_training_of(bnorm_isa_best())->merge_pair(&args, c);
        return;
    }
    for (size_t i = 0; i < c; i++) {
        left.a[i] += right.a[i];
        left.b[i] += right.b[i];
    }
    canonical(left.a, c);
    canonical(left.b, c);
}

/* Appends a subtree of so many images and merges what has become whole. */
static void push(bnorm_partial *piece, size_t images, const double *a, const double *b) {
    const size_t c = piece->c, count = nodes_of(piece);
    size_t begin = piece->first + piece->n, k = count, size = images;
    struct node right = {(double *)(uintptr_t)a, (double *)(uintptr_t)b, 0};
    for (; (begin & size) && begin - piece->first >= size; begin -= size, size *= 2) {
        double *const at = node_at(piece, --k);
        struct node left = {at, at + c, values_of(piece, size)};
        right.n = left.n;
        join(piece->op, left, right, c);
        right = left;
    }
    if (k == count) {
        double *const at = node_at(piece, k);
        memcpy(at, a, c * sizeof *a);
        memcpy(at + c, b, c * sizeof *b);
        canonical(at, 2 * c);
    }
    piece->n += images;
}

/* The subtrees that the merging kernel has left in the tables. */
static void push_all(bnorm_partial *piece, const bnorm_partials *p) {
    const size_t end = p->first + p->n;
    for (size_t i = p->first, images; i < end; i += images) {
        const size_t row = bnorm_subtrees(p->first, i - p->first, p->leaf) * p->per_image;
        images = bnorm_subtree(i, end, BNORM_TREE);
        push(piece, images, p->entries[0] + row * p->stride, p->entries[1] + row * p->stride);
    }
}

static bnorm_status check_piece(const bnorm_partial *piece, bnorm_op op) {
    if (!piece)
        return BNORM_NULL_POINTER;
    if (piece->op != op)
        return BNORM_BAD_ENUM;
    if (piece->c == 0 || piece->first + piece->n < piece->first)
        return BNORM_BAD_SHAPE;
    if (piece->n == 0)
        return BNORM_OK;
    const size_t bytes = bnorm_partial_used(piece);
    if (piece->hw == 0 || bytes == 0)
        return BNORM_BAD_SHAPE;
    if (!piece->nodes)
        return BNORM_NULL_POINTER;
    return piece->size < bytes ? BNORM_WORKSPACE_TOO_SMALL : BNORM_OK;
}

/* Whether n more images of hw positions fit. */
static bnorm_status check_room(const bnorm_partial *piece, size_t n, size_t hw) {
    const size_t all = piece->n + n;
    if ((piece->n && piece->hw != hw) || all < n || piece->first + all < all)
        return BNORM_BAD_SHAPE;
    if (!piece->nodes)
        return BNORM_NULL_POINTER;
    const size_t need = bnorm_partial_size(piece->c, all);
    if (need == 0)
        return BNORM_BAD_SHAPE;
    return piece->size < need ? BNORM_WORKSPACE_TOO_SMALL : BNORM_OK;
}

/* The piece that a collecting function appends to. */
static bnorm_status check_target(const bnorm_shape *shape, const bnorm_partial *piece,
                                 bnorm_op op) {
    bnorm_status status = bnorm_check_float_shape(shape);
    if (!status)
        status = check_piece(piece, op);
    if (!status && piece->c != shape->c)
        status = BNORM_BAD_SHAPE;
    return status || bnorm_is_empty(shape) ? status : check_room(piece, shape->n, shape->hw);
}

static void append(bnorm_partial *piece, size_t hw, const bnorm_partials *p) {
    piece->hw = hw;
    push_all(piece, p);
}

struct appending {
    bnorm_partial *piece;
    size_t hw;
    const bnorm_partials *p;
};

/* A task, so that it runs in exec's mode. */
static void append_task(void *arg, size_t i) {
    const struct appending *a = arg;
    (void)i;
    append(a->piece, a->hw, a->p);
}

bnorm_status bnorm_partial_collect(const bnorm_shape *shape, bnorm_in x, bnorm_partial *piece,
                                   void *ws, size_t ws_size, const bnorm_exec *exec) {
    const bnorm_train none = {.gamma = NULL};
    const bnorm_job job = {.shape = shape, .x = x, .train = &none, .ws = ws, .ws_size = ws_size};
    const bnorm_batch batch = {.stage = BNORM_STAGE_SUMS, .ghosts = 1, .piece = piece};
    bnorm_forward f;
    bnorm_status status = check_target(shape, piece, BNORM_OP_MOMENTS);
    if (!status)
        status = bnorm_plan_forward(&job, &batch, exec, &f);
    if (status || !f.map.args.x.data)
        return status;
    bnorm_run_forward(&f, exec);
    struct appending a = {piece, shape->hw, &f.sums.partials};
    bnorm_run(exec, append_task, &a, 1);
    return BNORM_OK;
}

bnorm_status bnorm_partial_collect_grad(const bnorm_shape *shape, bnorm_in x, bnorm_in dy,
                                        const bnorm_grad *grad, bnorm_partial *piece, void *ws,
                                        size_t ws_size, const bnorm_exec *exec) {
    const bnorm_job job = {
        .shape = shape, .x = x, .dy = dy, .grad = grad, .ws = ws, .ws_size = ws_size};
    const bnorm_batch batch = {.stage = BNORM_STAGE_SUMS, .ghosts = 1, .piece = piece};
    bnorm_backward_plan b;
    bnorm_status status = check_target(shape, piece, BNORM_OP_BACKWARD);
    if (!status)
        status = bnorm_plan_backward(&job, &batch, exec, &b);
    if (status || !b.map.args.x.data)
        return status;
    bnorm_run_backward(&b, exec);
    struct appending a = {piece, shape->hw, &b.sums.partials};
    bnorm_run(exec, append_task, &a, 1);
    return BNORM_OK;
}

bnorm_status bnorm_partial_apply_grad(const bnorm_shape *shape, bnorm_in x, bnorm_in dy,
                                      bnorm_out dx, const bnorm_grad *grad,
                                      const float *coefficients, const bnorm_exec *exec) {
    const bnorm_job job = {.shape = shape, .x = x, .dy = dy, .out = dx, .grad = grad};
    const bnorm_batch batch = {.stage = BNORM_STAGE_MAP, .ghosts = 1, .coefficients = coefficients};
    bnorm_backward_plan b;
    const bnorm_status status = bnorm_plan_backward(&job, &batch, exec, &b);
    if (!status && b.map.args.x.data)
        bnorm_run_backward(&b, exec);
    return status;
}

/* What a piece holds. */
static void reads_piece(bnorm_uses *uses, const bnorm_partial *piece) {
    bnorm_reads(uses, piece->nodes, bnorm_partial_used(piece), BNORM_KIND_NONE);
}

bnorm_status bnorm_partial_merge(bnorm_partial *left, const bnorm_partial *right) {
    if (!left || !right)
        return BNORM_NULL_POINTER;
    bnorm_status status =
        (unsigned)left->op > BNORM_OP_BACKWARD || left->op == BNORM_OP_FORWARD_TRAIN
            ? BNORM_BAD_ENUM
            : check_piece(left, left->op);
    if (!status)
        status = check_piece(right, left->op);
    if (status)
        return status;
    if (left->c != right->c || left->first + left->n != right->first)
        return BNORM_BAD_SHAPE;
    if (right->n == 0)
        return BNORM_OK;
    if ((status = check_room(left, right->n, right->hw)))
        return status;
    bnorm_uses uses;
    bnorm_begin_uses(&uses, NULL, NULL);
    bnorm_writes(&uses, left->nodes, bnorm_piece_bytes(left, right->n), BNORM_KIND_NONE);
    reads_piece(&uses, right);
    if ((status = bnorm_check_uses(&uses)))
        return status;
    const size_t end = right->first + right->n;
    left->hw = right->hw;
    for (size_t k = 0, i = right->first, images; i < end; i += images, k++) {
        images = bnorm_subtree(i, end, BNORM_TREE);
        push(left, images, node_at(right, k), node_at(right, k) + right->c);
    }
    return BNORM_OK;
}

static void copy_node(const bnorm_partial *piece, size_t k, size_t first, size_t c,
                      struct node *node) {
    memcpy(node->a, node_at(piece, k) + first, c * sizeof(double));
    memcpy(node->b, node_at(piece, k) + piece->c + first, c * sizeof(double));
}

/* The totals of channels [first, first + c), c <= CHANNELS, of a piece that is not empty: nodes are
 * merged from the last to the first. */
static void total_of(const bnorm_partial *piece, size_t first, size_t c, double *mean, double *m2) {
    double memory[2][2][CHANNELS];
    const size_t end = piece->first + piece->n;
    size_t sizes[BNORM_LEVELS], count = 0;
    size_t i = piece->first;
    do {
        sizes[count] = bnorm_subtree(i, end, BNORM_TREE);
        i += sizes[count++];
    } while (i < end);
    struct node all = {memory[0][0], memory[0][1], 0}, left = {memory[1][0], memory[1][1], 0};
    size_t k = count - 1, behind = sizes[k];
    copy_node(piece, k, first, c, &all);
    while (k-- > 0) {
        const struct node right = all;
        copy_node(piece, k, first, c, &left);
        all = left;
        left = right;
        all.n = values_of(piece, sizes[k]);
        join(piece->op, all, (struct node){right.a, right.b, values_of(piece, behind)}, c);
        behind += sizes[k];
    }
    const double values = values_of(piece, piece->n);
    for (i = 0; i < c; i++) {
        m2[i] = all.b[i];
        if (piece->op == BNORM_OP_MOMENTS) /* as in the kernel `merge` */
            mean[i] = all.b[i] != all.b[i] ? all.b[i] : all.a[i] / values;
        else
            mean[i] = all.a[i];
    }
}

bnorm_status bnorm_partial_total(const bnorm_partial *piece, double *count, double *mean,
                                 double *m2) {
    if (!piece)
        return BNORM_NULL_POINTER;
    if (piece->op != BNORM_OP_MOMENTS && piece->op != BNORM_OP_BACKWARD)
        return BNORM_BAD_ENUM;
    bnorm_uses uses;
    bnorm_begin_uses(&uses, NULL, NULL);
    uses.status = check_piece(piece, piece->op);
    bnorm_writes(&uses, count, sizeof *count, BNORM_KIND_NONE);
    bnorm_writes(&uses, mean, piece->c * sizeof *mean, BNORM_KIND_NONE);
    bnorm_writes(&uses, m2, piece->c * sizeof *m2, BNORM_KIND_NONE);
    if (!uses.status)
        reads_piece(&uses, piece);
    const bnorm_status status = bnorm_check_uses(&uses);
    if (status)
        return status;
    if (count)
        *count = piece->n ? values_of(piece, piece->n) : 0;
    for (size_t i = 0, n; i < piece->c; i += n) {
        double a[CHANNELS] = {0}, b[CHANNELS] = {0};
        n = bnorm_min(CHANNELS, piece->c - i);
        if (piece->n)
            total_of(piece, i, n, a, b);
        if (mean)
            memcpy(mean + i, a, n * sizeof *a);
        if (m2)
            memcpy(m2 + i, b, n * sizeof *b);
    }
    return BNORM_OK;
}

static bnorm_status check_finish(const bnorm_partial *piece, const bnorm_train *train,
                                 const float *coefficients) {
    bnorm_uses uses;
    bnorm_status status = check_piece(piece, BNORM_OP_MOMENTS);
    if (status)
        return status;
    if (!train || !coefficients)
        return BNORM_NULL_POINTER;
    if ((status = bnorm_check_train(train, NULL)))
        return status;
    if (train->weights.values || train->renorm)
        return BNORM_UNSUPPORTED;
    bnorm_begin_uses(&uses, NULL, NULL);
    bnorm_writes_floats(&uses, coefficients, 3 * piece->c);
    bnorm_uses_train(&uses, train, piece->c, piece->c);
    reads_piece(&uses, piece);
    return bnorm_check_uses(&uses);
}

/* The coefficients of channels [i, i + n), n <= CHANNELS. */
static void finish_channels(const bnorm_partial *piece, const bnorm_train *train, size_t i,
                            size_t n, float *coefficients) {
    const bnorm_running *const running = &train->running;
    const size_t c = piece->c;
    const double count = values_of(piece, piece->n);
    double mean[CHANNELS], m2[CHANNELS];
    total_of(piece, i, n, mean, m2);
    const bnorm_coefficient_args args = {
        .mean = mean,
        .m2 = m2,
        .n = count,
        .eps = train->eps,
        .gamma = bnorm_from(train->gamma, i),
        .beta = bnorm_from(train->beta, i),
        .center = coefficients + i,
        .scale = coefficients + c + i,
        .shift = coefficients + 2 * c + i,
        .save_mean = bnorm_to(train->save_mean, i),
        .save_mean_lo = bnorm_to(train->save_mean_lo, i),
        .save_invstd = bnorm_to(train->save_invstd, i),
        .save_var = bnorm_to(train->save_var, i),
        .running_mean = bnorm_from(running->mean, i),
        .running_var = bnorm_from(running->var, i),
        .new_mean = bnorm_to(bnorm_updated(running->mean, running->new_mean), i),
        .new_var = bnorm_to(bnorm_updated(running->var, running->new_var), i),
        .rate = running->rate,
        .divisor = bnorm_running_divisor(running, count),
    };
    bnorm_training_of(bnorm_isa_best())->coefficients(&args, 0, n);
}

bnorm_status bnorm_partial_finish(const bnorm_partial *piece, const bnorm_train *train,
                                  float *coefficients) {
    const bnorm_status status = check_finish(piece, train, coefficients);
    if (status)
        return status;
    const size_t c = piece->c;
    if (piece->n == 0) {
        bnorm_clear(coefficients, 3 * c);
        bnorm_clear(train->save_mean, c);
        bnorm_clear(train->save_mean_lo, c);
        bnorm_clear(train->save_invstd, c);
        bnorm_clear(train->save_var, c);
        bnorm_keep_running(&train->running, c);
        return BNORM_OK;
    }
    for (size_t i = 0; i < c; i += CHANNELS)
        finish_channels(piece, train, i, bnorm_min(CHANNELS, c - i), coefficients);
    return BNORM_OK;
}

/* dgamma, dbeta and the coefficients of channels [i, i + n), n <= CHANNELS. */
static void finish_grad_channels(const bnorm_partial *piece, const bnorm_grad *grad, size_t i,
                                 size_t n, float *coefficients) {
    const bnorm_training *const kernels = bnorm_training_of(bnorm_isa_best());
    const size_t c = piece->c;
    double sum_g[CHANNELS], sum_gx[CHANNELS];
    float invstd[CHANNELS];
    total_of(piece, i, n, sum_g, sum_gx);
    for (size_t k = 0; k < n; k++)
        invstd[k] = grad->save_invstd ? grad->save_invstd[i + k]
                                      : bnorm_invstd(grad->save_var[i + k], grad->eps);
    if (coefficients) {
        const bnorm_scale_args args = {
            .gamma = bnorm_from(grad->gamma, i),
            .beta = bnorm_from(grad->beta, i),
            .mean_lo = bnorm_from(grad->save_mean_lo, i),
            .invstd = invstd,
            .scale = coefficients + i,
            .shift = coefficients + c + i,
        };
        kernels->scale_shift(&args, n);
        memcpy(coefficients + 4 * c + i, invstd, n * sizeof *invstd);
    }
    const bnorm_grad_coefficient_args args = {
        .sum_g = sum_g,
        .sum_gx = sum_gx,
        .n = values_of(piece, piece->n),
        .gamma = bnorm_from(grad->gamma, i),
        .mean_lo = bnorm_from(grad->save_mean_lo, i),
        .invstd = invstd,
        .dgamma = bnorm_to(grad->dgamma, i),
        .dbeta = bnorm_to(grad->dbeta, i),
        .scale = bnorm_to(coefficients, i),
        .slope = grad->frozen ? NULL : bnorm_to(coefficients, 2 * c + i),
        .offset = bnorm_to(coefficients, 3 * c + i),
    };
    kernels->grad_coefficients(&args, 0, n);
}

bnorm_status bnorm_partial_finish_grad(const bnorm_partial *piece, const bnorm_grad *grad,
                                       float *coefficients) {
    bnorm_status status = check_piece(piece, BNORM_OP_BACKWARD);
    if (status)
        return status;
    if (!grad)
        return BNORM_NULL_POINTER;
    const size_t c = piece->c;
    const float *const save_var = grad->save_invstd ? NULL : grad->save_var;
    if (piece->n && !grad->save_invstd && (status = bnorm_check_variance(c, save_var, grad->eps)))
        return status;
    if ((!grad->frozen && grad->weights.values) || grad->renorm_r || grad->renorm_d)
        return BNORM_UNSUPPORTED;
    bnorm_uses uses;
    bnorm_begin_uses(&uses, NULL, NULL);
    bnorm_writes_floats(&uses, coefficients, 5 * c);
    bnorm_writes_floats(&uses, grad->dgamma, c);
    bnorm_writes_floats(&uses, grad->dbeta, c);
    bnorm_reads_floats(&uses, grad->gamma, c);
    bnorm_reads_floats(&uses, grad->beta, c);
    bnorm_reads_floats(&uses, grad->save_invstd, c);
    bnorm_reads_floats(&uses, save_var, c);
    bnorm_reads_floats(&uses, grad->save_mean_lo, c);
    reads_piece(&uses, piece);
    if ((status = bnorm_check_uses(&uses)))
        return status;
    if (piece->n == 0) {
        bnorm_clear(coefficients, 5 * c);
        bnorm_clear(grad->dgamma, c);
        bnorm_clear(grad->dbeta, c);
        return BNORM_OK;
    }
    for (size_t i = 0, n; i < c; i += n) {
        n = bnorm_min(CHANNELS, c - i);
        finish_grad_channels(piece, grad, i, n, coefficients);
    }
    if (coefficients && grad->frozen)
        bnorm_clear(coefficients + 2 * c, 2 * c);
    return BNORM_OK;
}
