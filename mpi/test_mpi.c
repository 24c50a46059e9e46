/* SPDX-License-Identifier: MIT
 *
 * The tests of bnorm over MPI: every rank makes the whole batch, has bnorm compute it in one call,
 * and compares its shard and all arrays with what the ranks compute together, by memcmp. Ends with
 * "N passed, N failed" and an exit status of 1 where any failed.
 *
 * With --die exit|kill the last rank ends in the middle instead: the run must end, and fail. With
 * --version it says which MPI this is. */
#define _POSIX_C_SOURCE 200809L /* kill */

#include "bnorm_mpi.h"

#include <math.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include "../tests/harness.h"

#define COUNT_OF(array) (sizeof(array) / sizeof((array)[0]))

static int rank, ranks;

/* ---------------------------------------------------------------------------------------------- */
/* MPI under observation                                                                          */

static size_t allgathers; /* calls */
static int allgather_error;

/* There are more ranks here than cores, and MPI waits in a loop, on the core that the rank it waits
 * for needs: runs would take minutes. So a run of many ranks waits asleep. */
static int sleep_until_done(MPI_Request *request) {
    const struct timespec moment = {.tv_nsec = 20000};
    int done = 0, error = MPI_SUCCESS;
    while (!error && !(error = MPI_Test(request, &done, MPI_STATUS_IGNORE)) && !done)
        nanosleep(&moment, NULL);
    return error;
}

/* ---------------------------------------------------------------------------------------------- */
/* Cases                                                                                          */

static size_t passed, failed;
static size_t problems; /* of this rank in this case */
static char context[256];

__attribute__((format(printf, 1, 2))) static void problem(const char *format, ...) {
    if (problems++ < 3) {
        char text[512];
        va_list arguments;
        va_start(arguments, format);
        vsnprintf(text, sizeof text, format, arguments);
        va_end(arguments);
        fprintf(stderr, "rank %d of %d, %s: %s\n", rank, ranks, context, text);
    }
}

/* In place of MPI's own, which remains as PMPI_Allgather: counts, and fails afterwards if told. */
int MPI_Allgather(const void *send, int send_count, MPI_Datatype send_type, void *receive,
                  int receive_count, MPI_Datatype receive_type, MPI_Comm comm) {
    MPI_Request request;
    int error;
    allgathers++;
    if (ranks <= 2)
        error =
            PMPI_Allgather(send, send_count, send_type, receive, receive_count, receive_type, comm);
    else if (!(error = MPI_Iallgather(send, send_count, send_type, receive, receive_count,
                                      receive_type, comm, &request)))
        error = sleep_until_done(&request);
    return allgather_error ? allgather_error : error;
}

int MPI_Allreduce(const void *send, void *receive, int count, MPI_Datatype type, MPI_Op op,
                  MPI_Comm comm) {
    MPI_Request request;
    if (count != 1) /* what it writes behind its variable, nobody else would see */
        problem("%d words are reduced instead of 1", count);
    if (ranks <= 2)
        return PMPI_Allreduce(send, receive, count, type, op, comm);
    const int error = MPI_Iallreduce(send, receive, count, type, op, comm, &request);
    return error ? error : sleep_until_done(&request);
}

/* All ranks end a case together: one that fails anywhere has failed. */
static void end_case(struct test *t, const char *name) {
    unsigned long mine = problems, all = 0;
    MPI_Allreduce(&mine, &all, 1, MPI_UNSIGNED_LONG, MPI_SUM, MPI_COMM_WORLD);
    if (all == 0)
        passed++;
    else
        failed++;
    if (all && rank == 0)
        fprintf(stderr, "FAILED  %s, on %d ranks: %lu differences or wrong results\n", name, ranks,
                all);
    problems = 0;
    test_release(t);
}

static void check_equal(const char *what, const void *got, const void *want, size_t bytes) {
    const unsigned char *const a = got, *const b = want;
    size_t i = 0;
    if (!got || !want || memcmp(got, want, bytes) == 0)
        return;
    while (a[i] == b[i])
        i++;
    problem("%s differs from that of one process, first in byte %zu of %zu", what, i, bytes);
}

static const char *text_of(bnorm_mpi_result result) {
    static char text[BNORM_MPI_MAX_ERROR_STRING];
    return bnorm_mpi_strerror(result, text, sizeof text);
}

static void check_ok(const char *what, bnorm_mpi_result result) {
    if (result.status)
        problem("%s: %s", what, text_of(result));
}

/* ---------------------------------------------------------------------------------------------- */
/* Cuts                                                                                           */

enum cut { CUT_EVEN = 0, CUT_UNEVEN, CUT_RANDOM, CUT_FIRST_EMPTY, CUT_ONE_RANK, CUT_COUNT };
static const char *const cut_names[CUT_COUNT] = {"even", "uneven", "random", "some-empty",
                                                 "one-rank"};

/* The images of this rank; all ranks draw the same numbers. */
struct shard {
    size_t first, n;
};

static struct shard cut_batch(struct rng *r, enum cut cut, size_t n) {
    size_t cuts[65] = {0};
    const size_t count = (size_t)ranks < 64 ? (size_t)ranks : 64;
    const size_t one = rng_below(r, count);
    for (size_t i = 1; i < count; i++)
        switch (cut) {
        case CUT_UNEVEN: /* each a bit more than the one before */
            cuts[i] = n * i * i / (count * count);
            break;
        case CUT_RANDOM:
            cuts[i] = rng_below(r, n + 1);
            break;
        case CUT_FIRST_EMPTY: /* every second one */
            cuts[i] = n * (i / 2) / ((count + 1) / 2);
            break;
        case CUT_ONE_RANK:
            cuts[i] = i > one ? n : 0;
            break;
        default:
            cuts[i] = n * i / count;
        }
    cuts[count] = n;
    for (size_t i = 1; i < count; i++) /* random ones come in any order */
        for (size_t j = i; j > 1 && cuts[j - 1] > cuts[j]; j--) {
            const size_t swap = cuts[j];
            cuts[j] = cuts[j - 1];
            cuts[j - 1] = swap;
        }
    const size_t own = (size_t)rank;
    return own < count ? (struct shard){cuts[own], cuts[own + 1] - cuts[own]}
                       : (struct shard){n, 0};
}

/* ---------------------------------------------------------------------------------------------- */
/* One forward and backward pass, by one process and by all                                       */

/* A layer of a network on a whole batch, and what is fused. */
struct layer {
    bnorm_shape shape;
    bnorm_act act;
    int residual, mask, lo, running, frozen, in_place;
    int given; /* to backward: 0 nothing or the residual, 1 y, 2 the mask */
    bnorm_variance variance;
};

/* What forward and backward write, for channels; the same on all ranks. */
struct arrays {
    float *running_mean, *running_var, *save_mean, *save_invstd, *save_lo, *dgamma, *dbeta;
};

/* Tensors have room for the whole batch, also where only a shard is computed. */
struct pass {
    struct tensor x, residual, y, dy, dx, dresidual;
    struct arrays arrays;
    unsigned char *mask;
};

static float *filled(struct test *t, size_t count, float value) {
    float *array = test_floats(t, count);
    for (size_t i = 0; i < count; i++)
        array[i] = value;
    return array;
}

/* Of this rank alone: strides and threads must not matter. */
static struct rng own_rng;

static struct placement any_placement(const bnorm_shape *shape) {
    struct placement place = {.shift = rng_below(&own_rng, 4)};
    const size_t runs = shape_runs(shape), len = shape_len(shape);
    switch (rng_below(&own_rng, 4)) {
    case 0:
        place.run_stride = len + rng_below(&own_rng, 9);
        place.image_stride = place.run_stride * runs + rng_below(&own_rng, 9);
        break;
    case 1: /* images between the runs */
        place.image_stride = len;
        place.run_stride = len * shape->n;
        break;
    default: /* dense */
        break;
    }
    return place;
}

static void new_tensor(struct tensor *tensor, const bnorm_shape *shape, const float *values) {
    const struct placement place = any_placement(shape);
    tensor_new(tensor, shape, &place);
    if (values)
        tensor_put(tensor, shape, values);
}

static void *image_at(const struct tensor *tensor, size_t image) {
    return (char *)tensor->data + image * tensor->image_stride * dtype_size(tensor->dtype);
}

/* The tensor from this image on, where it lies; strides as in the whole. */
static bnorm_in in_from(const struct tensor *tensor, size_t image) {
    return (bnorm_in){image_at(tensor, image), tensor->run_stride, tensor->image_stride};
}

static bnorm_out out_from(const struct tensor *tensor, size_t image) {
    return (bnorm_out){image_at(tensor, image), tensor->run_stride, tensor->image_stride};
}

/* What both sides start from. */
struct inputs {
    float *x, *dy, *residual, *gamma, *beta;
};

static struct inputs make_inputs(struct test *t, const struct layer *layer) {
    const bnorm_shape *const shape = &layer->shape;
    const size_t count = shape_count(shape), c = shape->c;
    struct inputs in = {test_floats(t, count), test_floats(t, count), test_floats(t, count),
                        test_floats(t, c), test_floats(t, c)};
    const double mean = rng_below(&t->rng, 3) ? 1 : 1000;
    for (size_t i = 0; i < count; i++) {
        const double channel = (double)shape_channel(shape, i);
        in.x[i] = (float)(mean * (channel - 1) + rng_normal(&t->rng) * (channel + 1));
        in.dy[i] = (float)rng_uniform(&t->rng, -2, 2);
        in.residual[i] = (float)rng_uniform(&t->rng, -2, 2);
    }
    for (size_t i = 0; i < c; i++) {
        in.gamma[i] = (float)rng_uniform(&t->rng, -2, 2);
        in.beta[i] = (float)rng_uniform(&t->rng, -1, 1);
    }
    return in;
}

static void new_pass(struct test *t, struct pass *p, const struct layer *layer,
                     const struct inputs *in) {
    const bnorm_shape *const shape = &layer->shape;
    const size_t c = shape->c;
    new_tensor(&p->x, shape, in->x);
    new_tensor(&p->residual, shape, in->residual);
    new_tensor(&p->y, shape, layer->in_place ? in->x : in->residual);
    new_tensor(&p->dy, shape, in->dy);
    new_tensor(&p->dx, shape, layer->in_place ? in->dy : in->residual);
    new_tensor(&p->dresidual, shape, in->residual);
    p->arrays =
        (struct arrays){filled(t, c, 0),  filled(t, c, 1),  filled(t, c, -1), filled(t, c, -1),
                        filled(t, c, -1), filled(t, c, -1), filled(t, c, -1)};
    p->mask = test_alloc(t, bnorm_mask_size(shape) + 1);
}

static void end_pass(struct pass *p) {
    struct tensor *const tensors[] = {&p->x, &p->residual, &p->y, &p->dy, &p->dx, &p->dresidual};
    for (size_t i = 0; i < COUNT_OF(tensors); i++)
        buffer_free(&tensors[i]->buffer);
}

static bnorm_train train_of(const struct layer *layer, const struct inputs *in,
                            const struct pass *p, size_t first) {
    bnorm_train train = {.gamma = in->gamma,
                         .beta = in->beta,
                         .eps = 1e-3,
                         .save_mean = p->arrays.save_mean,
                         .save_invstd = p->arrays.save_invstd,
                         .save_mean_lo = layer->lo ? p->arrays.save_lo : NULL,
                         .act = layer->act,
                         .mask = layer->mask ? p->mask : NULL};
    if (layer->running)
        train.running = (bnorm_running){.mean = p->arrays.running_mean,
                                        .var = p->arrays.running_var,
                                        .rate = .1,
                                        .variance = layer->variance};
    if (layer->residual)
        train.residual = in_from(&p->residual, first);
    return train;
}

/* saved: what forward left, in one process. */
static bnorm_grad grad_of(const struct layer *layer, const struct inputs *in, const struct pass *p,
                          const struct pass *saved, size_t first, const unsigned char *mask) {
    bnorm_grad grad = {.gamma = in->gamma,
                       .beta = in->beta,
                       .save_mean = saved->arrays.save_mean,
                       .save_invstd = saved->arrays.save_invstd,
                       .save_mean_lo = layer->lo || layer->residual ? saved->arrays.save_lo : NULL,
                       .frozen = layer->frozen,
                       .act = layer->act,
                       .dgamma = p->arrays.dgamma,
                       .dbeta = p->arrays.dbeta,
                       .dresidual = out_from(&p->dresidual, first)};
    if (layer->given == 1)
        grad.y = in_from(&saved->y, first);
    else if (layer->given == 2)
        grad.mask = mask;
    else if (layer->residual)
        grad.residual = in_from(&p->residual, first);
    return grad;
}

/* The mask's bits from this element on, as a mask of its own. */
static unsigned char *mask_from(struct test *t, const unsigned char *mask, size_t element,
                                size_t elements) {
    unsigned char *own = test_alloc(t, elements / 8 + 1);
    for (size_t i = 0; i < elements; i++) {
        const size_t e = element + i;
        own[i / 8] |= (unsigned char)((mask[e / 8] >> e % 8 & 1) << i % 8);
    }
    return own;
}

/* The shard's images are those of one process, all others are as they were. */
static void check_tensor(struct test *t, const char *what, const struct layer *layer,
                         const struct shard *shard, const struct tensor *got,
                         const struct tensor *want, const float *before) {
    const bnorm_shape *const shape = &layer->shape;
    const size_t count = shape_count(shape), image = shape->n ? count / shape->n : 0;
    float *all = test_floats(t, count), *expected = test_floats(t, count);
    float *untouched = test_floats(t, count);
    struct tensor rounded;
    tensor_get(got, shape, all);
    tensor_get(want, shape, expected);
    new_tensor(&rounded, shape, before);
    tensor_get(&rounded, shape, untouched);
    buffer_free(&rounded.buffer);
    memcpy(expected, untouched, shard->first * image * sizeof *all);
    const size_t end = (shard->first + shard->n) * image;
    memcpy(expected + end, untouched + end, (count - end) * sizeof *all);
    check_equal(what, all, expected, count * sizeof *all);
}

static void check_arrays(const struct arrays *got, const struct arrays *want, size_t c) {
    const size_t bytes = c * sizeof(float);
    check_equal("running mean", got->running_mean, want->running_mean, bytes);
    check_equal("running variance", got->running_var, want->running_var, bytes);
    check_equal("save_mean", got->save_mean, want->save_mean, bytes);
    check_equal("save_mean_lo", got->save_lo, want->save_lo, bytes);
    check_equal("save_invstd", got->save_invstd, want->save_invstd, bytes);
    check_equal("dgamma", got->dgamma, want->dgamma, bytes);
    check_equal("dbeta", got->dbeta, want->dbeta, bytes);
}

static void *workspace_for(struct test *t, size_t bytes) {
    return (char *)test_alloc(t, bytes + 16) + rng_below(&own_rng, 16);
}

/* Another kernel set, and threads, on every rank. */
static bnorm_exec any_exec(void) {
    size_t sets = 0;
    while (bnorm_isa_at(sets))
        sets++;
    bnorm_exec exec = {.isa = bnorm_isa_at(rng_below(&own_rng, sets))};
    if (rng_below(&own_rng, 8) == 0) {
        exec.parallel = parallel_threads;
        exec.threads = 4;
    }
    return exec;
}

static void compare_layer(struct test *t, const struct layer *layer, const struct shard *shard,
                          bnorm_mpi_batch *batch) {
    const bnorm_shape *const shape = &layer->shape;
    const struct inputs in = make_inputs(t, layer);
    struct pass one, all;
    new_pass(t, &one, layer, &in);
    new_pass(t, &all, layer, &in);
    const size_t size = bnorm_workspace(BNORM_OP_FORWARD_TRAIN, shape),
                 backward_size = bnorm_workspace(BNORM_OP_BACKWARD, shape);

    const bnorm_train train = train_of(layer, &in, &one, 0);
    const bnorm_in x = tensor_in(layer->in_place ? &one.y : &one.x);
    bnorm_status status = bnorm_forward_train(shape, x, tensor_out(&one.y), &train,
                                              workspace_for(t, size), size, NULL);
    const bnorm_grad grad = grad_of(layer, &in, &one, &one, 0, one.mask);
    const bnorm_in dy = tensor_in(layer->in_place ? &one.dx : &one.dy);
    if (!status)
        status = bnorm_backward(shape, tensor_in(&one.x), dy, tensor_out(&one.dx), &grad,
                                workspace_for(t, backward_size), backward_size, NULL);
    if (status)
        problem("one process: %s", bnorm_strerror(status));

    bnorm_shape part = *shape;
    part.n = shard->n;
    const size_t first = shard->first,
                 part_size = bnorm_mpi_workspace(BNORM_OP_FORWARD_TRAIN, &part, batch);
    const bnorm_exec exec = any_exec();
    const bnorm_train part_train = train_of(layer, &in, &all, first);
    const struct tensor *const from = layer->in_place ? &all.y : &all.x;
    const size_t calls = allgathers;
    check_ok("forward", bnorm_mpi_forward_train(&part, in_from(from, first),
                                                out_from(&all.y, first), &part_train, batch,
                                                workspace_for(t, part_size), part_size, &exec));

    const size_t image = shape->n ? shape_count(shape) / shape->n : 0;
    unsigned char *const mask = mask_from(t, one.mask, first * image, shard->n * image);
    if (layer->mask)
        check_equal("mask", all.mask, mask, bnorm_mask_size(&part));
    const bnorm_grad part_grad = grad_of(layer, &in, &all, &one, first, mask);
    const struct tensor *const dy_from = layer->in_place ? &all.dx : &all.dy;
    const size_t grad_size = bnorm_mpi_workspace(BNORM_OP_BACKWARD, &part, batch);
    check_ok("backward", bnorm_mpi_backward(&part, in_from(&all.x, first), in_from(dy_from, first),
                                            out_from(&all.dx, first), &part_grad, batch,
                                            workspace_for(t, grad_size), grad_size, &exec));
    if (allgathers != calls + 2)
        problem("%zu collectives instead of 2", allgathers - calls);

    check_tensor(t, "y", layer, shard, &all.y, &one.y, layer->in_place ? in.x : in.residual);
    check_tensor(t, "dx", layer, shard, &all.dx, &one.dx, layer->in_place ? in.dy : in.residual);
    check_tensor(t, "dresidual", layer, shard, &all.dresidual, &one.dresidual, in.residual);
    check_arrays(&all.arrays, &one.arrays, shape->c);
    end_pass(&one);
    end_pass(&all);
}

static int act_usable(bnorm_act_kind kind) {
    const bnorm_shape shape = {.n = 1, .c = 1, .hw = 1};
    float v = 0;
    for (size_t i = 0; bnorm_isa_at(i); i++) {
        const bnorm_affine affine = {.act = {.kind = kind, .a = 0, .b = 1}};
        const bnorm_exec exec = {.isa = bnorm_isa_at(i)};
        if (bnorm_apply(&shape, (bnorm_in){&v, 0, 0}, (bnorm_out){&v, 0, 0}, &affine, &exec))
            return 0;
    }
    return 1;
}

/* All ranks draw the same; what cannot be combined is left out. */
static void draw_options(struct rng *r, struct layer *layer) {
    bnorm_act_kind kind = (bnorm_act_kind)rng_below(r, BNORM_ACT_MISH + 1);
    kind = act_usable(kind) ? kind : BNORM_ACT_RELU;
    layer->act = (bnorm_act){.kind = kind, .a = kind == BNORM_ACT_CLAMP ? -.5f : .1f, .b = 1};
    const int branches =
        kind == BNORM_ACT_RELU || kind == BNORM_ACT_CLAMP || kind == BNORM_ACT_LEAKY_RELU;
    layer->residual = rng_below(r, 2) != 0;
    layer->mask = branches && rng_below(r, 2);
    layer->given = branches ? (int)rng_below(r, layer->mask ? 3 : 2) : 0;
    layer->lo = layer->residual || rng_below(r, 2);
    layer->running = rng_below(r, 4) != 0;
    layer->variance = rng_below(r, 2) ? BNORM_VARIANCE_SAMPLE : BNORM_VARIANCE_POPULATION;
    layer->frozen = rng_below(r, 4) == 0;
    layer->in_place = rng_below(r, 3) == 0;
}

static bnorm_mpi_batch *new_batch(const struct shard *shard, size_t c) {
    bnorm_mpi_batch *batch = NULL;
    const bnorm_mpi_result result = bnorm_mpi_batch_create(MPI_COMM_WORLD, shard->n, c, &batch);
    if (result.status) {
        fprintf(stderr, "rank %d: %s\n", rank, text_of(result));
        MPI_Abort(MPI_COMM_WORLD, 1);
    }
    return batch;
}

/* ---------------------------------------------------------------------------------------------- */
/* The same bits                                                                                  */

static const struct {
    const char *name;
    bnorm_layout layout;
    size_t c_block, hw; /* hw 0: any */
} layouts[] = {{"nhwc", BNORM_NHWC, 0, 0},
               {"nchw", BNORM_NCHW, 0, 0},
               {"blocked", BNORM_NCHW, 8, 0},
               {"nc", BNORM_NHWC, 0, 1}};

static const size_t batches[] = {1, 2, 5, 8, 16, 29};
enum { MAX_C = 37 };

static void test_bits(size_t layout, bnorm_dtype dtype, enum cut cut, size_t repetitions,
                      uint64_t seed) {
    struct test t = {.name = "bits", .rng = {seed}};
    char name[96];
    snprintf(name, sizeof name, "bits/%s/%s/%s", layouts[layout].name, dtype_name(dtype),
             cut_names[cut]);
    for (size_t b = 0; b < COUNT_OF(batches); b++) {
        const struct shard shard = cut_batch(&t.rng, cut, batches[b]);
        bnorm_mpi_batch *batch = new_batch(&shard, MAX_C);
        for (size_t i = 0; i < repetitions; i++) {
            struct layer layer = {.shape = {.layout = layouts[layout].layout,
                                            .dtype = dtype,
                                            .n = batches[b],
                                            .c = 1 + rng_below(&t.rng, MAX_C),
                                            .hw = 1 + rng_below(&t.rng, 50),
                                            .c_block = layouts[layout].c_block}};
            if (layouts[layout].hw)
                layer.shape.hw = layouts[layout].hw;
            draw_options(&t.rng, &layer);
            const bnorm_shape *const s = &layer.shape;
            snprintf(context, sizeof context,
                     "%s n=%zu c=%zu hw=%zu act=%d%s%s%s%s%s given=%d, images %zu to %zu", name,
                     s->n, s->c, s->hw, (int)layer.act.kind, layer.residual ? " residual" : "",
                     layer.mask ? " mask" : "", layer.lo ? " lo" : "",
                     layer.frozen ? " frozen" : "", layer.in_place ? " in place" : "", layer.given,
                     shard.first, shard.first + shard.n);
            compare_layer(&t, &layer, &shard, batch);
            test_release(&t);
        }
        bnorm_mpi_batch_destroy(batch);
    }
    end_case(&t, name);
}

/* A larger tensor, so that one image is worth several blocks and tasks; many cuts of one batch. */
static void test_cuts(size_t cuts) {
    struct test t = {.name = "cuts", .rng = {77}};
    for (size_t i = 0; i < cuts; i++) {
        const size_t n = 1 + rng_below(&t.rng, 40);
        const struct shard shard = cut_batch(&t.rng, CUT_RANDOM, n);
        struct layer layer = {
            .shape = {.layout = i % 2 ? BNORM_NCHW : BNORM_NHWC, .n = n, .c = 20, .hw = 300}};
        draw_options(&t.rng, &layer);
        snprintf(context, sizeof context, "cuts: cut %zu, n=%zu, images %zu to %zu", i, n,
                 shard.first, shard.first + shard.n);
        bnorm_mpi_batch *batch = new_batch(&shard, layer.shape.c);
        compare_layer(&t, &layer, &shard, batch);
        bnorm_mpi_batch_destroy(batch);
        test_release(&t);
    }
    end_case(&t, "cuts");
}

/* No images, or images without positions: nothing is touched but dgamma and dbeta. */
static void test_empty(size_t n, size_t hw) {
    struct test t = {.name = "empty", .rng = {5}};
    const struct shard shard = cut_batch(&t.rng, CUT_EVEN, n);
    const bnorm_shape shape = {.n = shard.n, .c = 3, .hw = hw};
    bnorm_mpi_batch *batch = new_batch(&shard, 3);
    float *const mean = filled(&t, 3, 7), *const var = filled(&t, 3, 7);
    float *const dgamma = filled(&t, 3, 7), *const dbeta = filled(&t, 3, 7);
    float *const saved = filled(&t, 3, 7);
    const float sevens[] = {7, 7, 7}, zeros[] = {0, 0, 0};
    const bnorm_train train = {
        .running = {.mean = mean, .var = var, .rate = .5, .variance = BNORM_VARIANCE_SAMPLE},
        .save_mean = saved};
    const bnorm_grad grad = {
        .save_mean = sevens, .save_invstd = sevens, .dgamma = dgamma, .dbeta = dbeta};
    const bnorm_in in = {0};
    const bnorm_out out = {0};
    snprintf(context, sizeof context, "empty n=%zu hw=%zu", n, hw);
    const size_t size = bnorm_mpi_workspace(BNORM_OP_FORWARD_TRAIN, &shape, batch),
                 grad_size = bnorm_mpi_workspace(BNORM_OP_BACKWARD, &shape, batch);
    check_ok("forward", bnorm_mpi_forward_train(&shape, in, out, &train, batch,
                                                workspace_for(&t, size), size, NULL));
    check_ok("backward", bnorm_mpi_backward(&shape, in, in, out, &grad, batch,
                                            workspace_for(&t, grad_size), grad_size, NULL));
    check_equal("running mean", mean, sevens, sizeof sevens);
    check_equal("running variance", var, sevens, sizeof sevens);
    check_equal("save_mean", saved, sevens, sizeof sevens);
    check_equal("dgamma", dgamma, zeros, sizeof zeros);
    check_equal("dbeta", dbeta, zeros, sizeof zeros);
    bnorm_mpi_batch_destroy(batch);
    end_case(&t, "empty");
}

/* Any communicator: the ranks in reverse order, and every second one. */
static void test_communicators(void) {
    struct test t = {.name = "communicators", .rng = {9}};
    const int world_rank = rank, world_ranks = ranks;
    for (int split = 1; split < 3; split++) {
        MPI_Comm comm;
        MPI_Comm_split(MPI_COMM_WORLD, world_rank % split, -world_rank, &comm);
        MPI_Comm_rank(comm, &rank);
        MPI_Comm_size(comm, &ranks);
        struct rng r = {3};
        const struct shard shard = cut_batch(&r, CUT_UNEVEN, 11);
        struct layer layer = {.shape = {.layout = BNORM_NCHW, .n = 11, .c = 6, .hw = 20}};
        draw_options(&r, &layer);
        snprintf(context, sizeof context, "communicators, split in %d", split);
        bnorm_mpi_batch *batch = NULL;
        check_ok("create", bnorm_mpi_batch_create(comm, shard.n, 6, &batch));
        MPI_Comm_free(&comm); /* the batch has its own */
        if (batch)
            compare_layer(&t, &layer, &shard, batch);
        bnorm_mpi_batch_destroy(batch);
        rank = world_rank;
        ranks = world_ranks;
    }
    end_case(&t, "communicators");
}

/* ---------------------------------------------------------------------------------------------- */
/* Errors                                                                                         */

enum { ERROR_N = 2, ERROR_C = 4, ERROR_HW = 9, ERROR_COUNT = ERROR_N * ERROR_C * ERROR_HW };

/* Arguments of both functions, all good at first; what they write is all 7. */
struct arguments {
    bnorm_shape shape;
    float x_data[ERROR_COUNT], dy_data[ERROR_COUNT], out_data[ERROR_COUNT];
    float dresidual[ERROR_COUNT];
    float arrays[8][ERROR_C]; /* outputs */
    float invstd[ERROR_C];
    bnorm_in x, dy;
    bnorm_out out;
    bnorm_train train;
    bnorm_grad grad;
    bnorm_renorm renorm;
    bnorm_exec exec;
    bnorm_mpi_batch *batch;
    const bnorm_shape *shape_given;
    const bnorm_train *train_given;
    const bnorm_grad *grad_given;
    _Alignas(16) char memory[1 << 16];
    void *ws;
    size_t ws_size;
};

/* With n images on this rank, 0 or ERROR_N. */
static void good_arguments(struct arguments *a, size_t n, bnorm_mpi_batch *batch) {
    memset(a, 0, sizeof *a);
    a->shape = (bnorm_shape){.n = n, .c = ERROR_C, .hw = ERROR_HW};
    for (size_t i = 0; i < ERROR_COUNT; i++) {
        a->x_data[i] = a->dy_data[i] = (float)(i % 7);
        a->out_data[i] = a->dresidual[i] = 7;
    }
    for (size_t i = 0; i < ERROR_C; i++) {
        a->invstd[i] = 1;
        for (size_t k = 0; k < COUNT_OF(a->arrays); k++)
            a->arrays[k][i] = 7;
    }
    a->x.data = a->x_data;
    a->dy.data = a->dy_data;
    a->out.data = a->out_data;
    a->train = (bnorm_train){.running = {.mean = a->arrays[0],
                                         .var = a->arrays[1],
                                         .rate = .1,
                                         .variance = BNORM_VARIANCE_SAMPLE},
                             .save_mean = a->arrays[2],
                             .save_invstd = a->arrays[3],
                             .save_mean_lo = a->arrays[4]};
    a->grad = (bnorm_grad){.save_mean = a->invstd,
                           .save_invstd = a->invstd,
                           .dresidual = {.data = a->dresidual},
                           .dgamma = a->arrays[5],
                           .dbeta = a->arrays[6]};
    a->renorm = (bnorm_renorm){1, 1, 0, NULL, NULL};
    a->batch = batch;
    a->shape_given = &a->shape;
    a->train_given = &a->train;
    a->grad_given = &a->grad;
    a->ws = a->memory;
    a->ws_size = sizeof a->memory;
}

static bnorm_mpi_result forward_with(struct arguments *a) {
    return bnorm_mpi_forward_train(a->shape_given, a->x, a->out, a->train_given, a->batch, a->ws,
                                   a->ws_size, &a->exec);
}

static bnorm_mpi_result backward_with(struct arguments *a) {
    return bnorm_mpi_backward(a->shape_given, a->x, a->dy, a->out, a->grad_given, a->batch, a->ws,
                              a->ws_size, &a->exec);
}

static void check_untouched(const struct arguments *a) {
    size_t touched = 0;
    for (size_t i = 0; i < ERROR_COUNT; i++)
        touched += a->out_data[i] != 7 || a->dresidual[i] != 7;
    for (size_t k = 0; k < COUNT_OF(a->arrays); k++)
        for (size_t i = 0; i < ERROR_C; i++)
            touched += a->arrays[k][i] != 7;
    if (touched)
        problem("%zu values were written although the call failed", touched);
}

static void check_result(bnorm_mpi_result got, bnorm_mpi_status status, int at,
                         bnorm_status cause) {
    if (got.status != status || got.rank != at || got.cause != cause)
        problem("status %d of rank %d, cause %d, where status %d of rank %d, cause %d were "
                "expected: %s",
                (int)got.status, got.rank, (int)got.cause, (int)status, at, (int)cause,
                text_of(got));
    if (status && strlen(text_of(got)) < 20)
        problem("no text for status %d", (int)status);
}

/* Ways to make a call wrong. which: 0 both functions, 1 forward, 2 backward; empty: also on a rank
 * without images. */
struct mistake {
    const char *name;
    void (*make)(struct arguments *a);
    bnorm_status cause;
    int which, empty;
};

static void no_shape(struct arguments *a) {
    a->shape_given = NULL;
}
static void no_x(struct arguments *a) {
    a->x.data = NULL;
}
static void no_y(struct arguments *a) {
    a->out.data = NULL;
}
static void no_options(struct arguments *a) {
    a->train_given = NULL;
    a->grad_given = NULL;
}
static void no_workspace(struct arguments *a) {
    a->ws = NULL;
}
static void small_workspace(struct arguments *a) {
    const size_t forward = bnorm_mpi_workspace(BNORM_OP_FORWARD_TRAIN, &a->shape, a->batch),
                 backward = bnorm_mpi_workspace(BNORM_OP_BACKWARD, &a->shape, a->batch);
    a->ws_size = (forward < backward ? forward : backward) - 1;
}
static void workspace_on_y(struct arguments *a) {
    a->out.data = a->memory + 100;
}
/* With its last element alone. */
static void x_into_workspace(struct arguments *a) {
    a->shape.layout = BNORM_NCHW;
    a->x.data = (char *)a + offsetof(struct arguments, memory) - (ERROR_COUNT - 1) * sizeof(float);
}
static void workspace_on_array(struct arguments *a) {
    a->train.save_mean = a->grad.dgamma = (float *)(void *)(a->memory + 64);
}
static void workspace_on_x(struct arguments *a) {
    a->x.data = a->memory + 256;
}
static void bad_layout(struct arguments *a) {
    a->shape.layout = (bnorm_layout)9;
}
static void quantized(struct arguments *a) {
    a->shape.dtype = BNORM_S8;
}
static void no_channels(struct arguments *a) {
    a->shape.c = 0;
}
static void many_channels(struct arguments *a) {
    a->shape.c = 3 * ERROR_C;
}
static void other_n(struct arguments *a) {
    a->shape.n++;
}
static void bad_stride(struct arguments *a) {
    a->x.run_stride = 1;
}
static void overlap(struct arguments *a) {
    a->out.data = a->x_data + 1;
    a->grad.dresidual.data = NULL;
}
static void bad_eps(struct arguments *a) {
    a->train.eps = -1;
}
static void bad_rate(struct arguments *a) {
    a->train.running.rate = INFINITY;
}
static void half_running(struct arguments *a) {
    a->train.running.new_var = a->train.running.var;
    a->train.running.var = NULL;
}
static void same_arrays(struct arguments *a) {
    a->train.save_invstd = a->train.save_mean;
    a->grad.dbeta = a->grad.dgamma;
}
static void bad_act(struct arguments *a) {
    a->train.act = a->grad.act = (bnorm_act){BNORM_ACT_CLAMP, 1, 0};
}
static void bad_exec(struct arguments *a) {
    a->exec.denormals = (bnorm_denormals)9;
}
static void weighted(struct arguments *a) {
    a->train.weights.values = a->grad.weights.values = a->x_data;
}
static void renormalized(struct arguments *a) {
    a->train.renorm = &a->renorm;
    a->grad.renorm_r = a->grad.renorm_d = a->invstd;
}
static void no_saved(struct arguments *a) {
    a->grad.save_mean = NULL;
}
static void residual_and_y(struct arguments *a) {
    a->grad.act.kind = BNORM_ACT_RELU;
    a->grad.residual = a->grad.y = a->x;
}

static const struct mistake mistakes[] = {
    {"shape NULL", no_shape, BNORM_NULL_POINTER, 0, 1},
    {"x NULL", no_x, BNORM_NULL_POINTER, 0, 0},
    {"y NULL", no_y, BNORM_NULL_POINTER, 1, 0},
    {"options NULL", no_options, BNORM_NULL_POINTER, 0, 1},
    {"workspace NULL", no_workspace, BNORM_NULL_POINTER, 0, 1},
    {"workspace too small", small_workspace, BNORM_WORKSPACE_TOO_SMALL, 0, 1},
    {"workspace on y", workspace_on_y, BNORM_BAD_OVERLAP, 0, 0},
    {"workspace on x", workspace_on_x, BNORM_BAD_OVERLAP, 0, 0},
    {"workspace on the last of x", x_into_workspace, BNORM_BAD_OVERLAP, 0, 0},
    {"workspace on an array", workspace_on_array, BNORM_BAD_OVERLAP, 0, 1},
    {"layout", bad_layout, BNORM_BAD_ENUM, 0, 1},
    {"quantized", quantized, BNORM_UNSUPPORTED, 0, 1},
    {"c = 0", no_channels, BNORM_BAD_SHAPE, 0, 1},
    {"c too large", many_channels, BNORM_BAD_SHAPE, 0, 1},
    {"n not of the batch", other_n, BNORM_BAD_SHAPE, 0, 1},
    {"stride", bad_stride, BNORM_BAD_STRIDE, 0, 0},
    {"overlap", overlap, BNORM_BAD_OVERLAP, 0, 0},
    {"eps", bad_eps, BNORM_BAD_EPSILON, 1, 1},
    {"rate", bad_rate, BNORM_BAD_RATE, 1, 1},
    {"half of running", half_running, BNORM_NULL_POINTER, 1, 1},
    {"one array for two", same_arrays, BNORM_BAD_OVERLAP, 0, 1},
    {"activation", bad_act, BNORM_BAD_ACTIVATION, 0, 1},
    {"exec", bad_exec, BNORM_BAD_ENUM, 0, 1},
    {"weights", weighted, BNORM_UNSUPPORTED, 0, 1},
    {"renorm", renormalized, BNORM_UNSUPPORTED, 0, 1},
    {"save_mean NULL", no_saved, BNORM_NULL_POINTER, 2, 1},
    {"residual and y", residual_and_y, BNORM_BAD_PARAMETER, 2, 0},
};

/* One rank makes a mistake: all get its reason, and the batch goes on working. */
static void test_mistakes(int empty) {
    static struct arguments a;
    struct test t = {.name = "mistakes", .rng = {1}};
    const int bad = ranks / 2;
    const size_t n = (empty && rank == bad) ? 0 : ERROR_N;
    bnorm_mpi_batch *batch = new_batch(&(struct shard){0, n}, 2 * ERROR_C);
    for (size_t i = 0; i < COUNT_OF(mistakes); i++) {
        const struct mistake *const m = &mistakes[i];
        if (empty && (!m->empty || ranks == 1))
            continue;
        snprintf(context, sizeof context, "%s%s", m->name, empty ? ", without images" : "");
        for (int backward = 0; backward < 2; backward++) {
            if (m->which == 2 - backward)
                continue;
            good_arguments(&a, n, batch);
            if (rank == bad)
                m->make(&a);
            const size_t calls = allgathers;
            check_result(backward ? backward_with(&a) : forward_with(&a), BNORM_MPI_REFUSED, bad,
                         m->cause);
            check_untouched(&a);
            if (allgathers != calls + 1)
                problem("%zu collectives instead of 1", allgathers - calls);
        }
        good_arguments(&a, n, batch);
        check_ok("forward after an error", forward_with(&a));
        check_ok("backward after an error", backward_with(&a));
    }
    bnorm_mpi_batch_destroy(batch);
    end_case(&t, empty ? "mistakes without images" : "mistakes");
}

/* Every rank makes one: each gets its own reason. */
static void test_all_mistaken(void) {
    static struct arguments a;
    struct test t = {.name = "all mistaken", .rng = {1}};
    bnorm_mpi_batch *batch = new_batch(&(struct shard){0, ERROR_N}, ERROR_C);
    snprintf(context, sizeof context, "all mistaken");
    good_arguments(&a, ERROR_N, batch);
    if (rank % 2)
        bad_eps(&a);
    else
        no_shape(&a);
    check_result(forward_with(&a), BNORM_MPI_REFUSED, rank,
                 rank % 2 ? BNORM_BAD_EPSILON : BNORM_NULL_POINTER);
    check_untouched(&a);
    bnorm_mpi_batch_destroy(batch);
    end_case(&t, "all mistaken");
}

static void other_c(struct arguments *a) {
    a->shape.c--;
}
static void other_hw(struct arguments *a) {
    a->shape.hw--;
}
static void empty_hw(struct arguments *a) {
    a->shape.hw = 0;
}

/* Calls that are good, but not the same ones. */
static void test_mismatches(void) {
    static struct arguments a;
    static void (*const make[])(struct arguments *) = {other_c, other_hw, empty_hw, NULL};
    static const char *const names[] = {"c", "hw", "hw = 0", "function"};
    struct test t = {.name = "mismatches", .rng = {1}};
    bnorm_mpi_batch *batch = new_batch(&(struct shard){0, ERROR_N}, 2 * ERROR_C);
    for (size_t i = 0; i < COUNT_OF(make); i++)
        for (int bad = 0; bad < ranks && ranks > 1; bad++) {
            snprintf(context, sizeof context, "mismatch of %s on rank %d", names[i], bad);
            for (int backward = 0; backward < 2; backward++) {
                good_arguments(&a, ERROR_N, batch);
                if (rank == bad && make[i])
                    make[i](&a);
                const int other = rank == bad && !make[i];
                check_result(backward != other ? backward_with(&a) : forward_with(&a),
                             BNORM_MPI_MISMATCH, bad ? bad : 1, BNORM_OK);
                check_untouched(&a);
            }
        }
    bnorm_mpi_batch_destroy(batch);
    end_case(&t, "mismatches");
}

static void test_create(void) {
    struct test t = {.name = "create", .rng = {1}};
    const int bad = ranks - 1;
    bnorm_mpi_batch *batch = NULL;
    snprintf(context, sizeof context, "create");
    check_result(bnorm_mpi_batch_create(MPI_COMM_WORLD, 3, rank == bad ? 0 : 5, &batch),
                 BNORM_MPI_REFUSED, bad, BNORM_BAD_SHAPE);
    check_result(bnorm_mpi_batch_create(MPI_COMM_WORLD, 3, 5, rank == bad ? NULL : &batch),
                 BNORM_MPI_REFUSED, bad, BNORM_NULL_POINTER);
    check_result(bnorm_mpi_batch_create(MPI_COMM_NULL, 3, 5, &batch), BNORM_MPI_REFUSED, 0,
                 BNORM_NULL_POINTER);
    /* Messages of more than INT_MAX words, everywhere. */
    check_result(bnorm_mpi_batch_create(MPI_COMM_WORLD, 3, SIZE_MAX / 4, &batch), BNORM_MPI_REFUSED,
                 0, BNORM_BAD_SHAPE);
    if (ranks > 1) {
        check_result(bnorm_mpi_batch_create(MPI_COMM_WORLD, 3, rank == bad ? 6 : 5, &batch),
                     BNORM_MPI_MISMATCH, bad, BNORM_OK);
        check_result(bnorm_mpi_batch_create(MPI_COMM_WORLD, SIZE_MAX, 5, &batch), BNORM_MPI_REFUSED,
                     1, BNORM_BAD_SHAPE);
        MPI_Comm half, inter;
        MPI_Comm_split(MPI_COMM_WORLD, rank ? 1 : 0, 0, &half);
        MPI_Intercomm_create(half, 0, MPI_COMM_WORLD, rank ? 0 : 1, 0, &inter);
        const bnorm_mpi_result result = bnorm_mpi_batch_create(inter, 3, 5, &batch);
        check_result(result, BNORM_MPI_REFUSED, rank ? rank - 1 : 0, BNORM_UNSUPPORTED);
        MPI_Comm_free(&inter);
        MPI_Comm_free(&half);
    }
    if (batch)
        problem("a batch was given out although the call failed");
    bnorm_mpi_batch_destroy(NULL);
    const bnorm_shape shape = {.n = 1, .c = 1, .hw = 1};
    if (bnorm_mpi_workspace(BNORM_OP_BACKWARD, &shape, NULL) ||
        bnorm_mpi_workspace(BNORM_OP_BACKWARD, NULL, NULL))
        problem("workspace without a shape or batch");
    check_result(
        bnorm_mpi_forward_train(&shape, (bnorm_in){0}, (bnorm_out){0}, NULL, NULL, NULL, 0, NULL),
        BNORM_MPI_REFUSED, 0, BNORM_NULL_POINTER);
    end_case(&t, "create");
}

/* MPI fails: that is returned, and nothing is written here. */
static void test_mpi_error(void) {
    static struct arguments a;
    struct test t = {.name = "MPI error", .rng = {1}};
    bnorm_mpi_batch *batch = new_batch(&(struct shard){0, ERROR_N}, ERROR_C);
    snprintf(context, sizeof context, "MPI error");
    good_arguments(&a, ERROR_N, batch);
    allgather_error = MPI_ERR_TRUNCATE;
    bnorm_mpi_result result = forward_with(&a);
    check_result(result, BNORM_MPI_FAILED, rank, BNORM_OK);
    if (result.mpi_error != MPI_ERR_TRUNCATE)
        problem("MPI's error was lost");
    check_result(backward_with(&a), BNORM_MPI_FAILED, rank, BNORM_OK);
    bnorm_mpi_batch *none = NULL;
    check_result(bnorm_mpi_batch_create(MPI_COMM_WORLD, 1, 1, &none), BNORM_MPI_FAILED, rank,
                 BNORM_OK);
    allgather_error = MPI_SUCCESS;
    check_untouched(&a);
    bnorm_mpi_batch_destroy(batch);
    end_case(&t, "MPI error");
}

/* ---------------------------------------------------------------------------------------------- */

/* The other ranks go on until they wait for the one that is no more. */
static void die(const char *how) {
    static struct arguments a;
    bnorm_mpi_batch *batch = new_batch(&(struct shard){0, ERROR_N}, ERROR_C);
    for (int step = 0;; step++) {
        if (step == 3 && rank == ranks - 1) {
            printf("rank %d dies\n", rank); /* so that a run that never began does not count */
            fflush(stdout);
            if (strcmp(how, "exit") == 0)
                exit(3);
            kill(getpid(), SIGKILL);
        }
        good_arguments(&a, ERROR_N, batch);
        const bnorm_mpi_result result = forward_with(&a);
        if (result.status) {
            fprintf(stderr, "rank %d: %s\n", rank, text_of(result));
            MPI_Abort(MPI_COMM_WORLD, 4);
        }
    }
}

/* The first words of what the MPI says of itself. */
static void print_version(void) {
    char text[MPI_MAX_LIBRARY_VERSION_STRING];
    int length;
    MPI_Get_library_version(text, &length);
    for (char *c = text; *c; c++)
        *c = *c == '\t' ? ' ' : *c;
    printf("%.*s\n", (int)strcspn(text, ",\n"), text);
}

int main(int argc, char **argv) {
    int provided;
    MPI_Init_thread(&argc, &argv, MPI_THREAD_FUNNELED, &provided);
    MPI_Comm_rank(MPI_COMM_WORLD, &rank);
    MPI_Comm_size(MPI_COMM_WORLD, &ranks);
    own_rng.state = 1000 + (uint64_t)rank;
    if (argc == 3 && strcmp(argv[1], "--die") == 0)
        die(argv[2]);
    if (argc == 2 && strcmp(argv[1], "--version") == 0) {
        print_version();
        MPI_Finalize();
        return 0;
    }
    const size_t repetitions = test_quick() ? 2 : 6;
    const bnorm_dtype dtypes[] = {BNORM_F32, BNORM_BF16, BNORM_F16};
    for (size_t layout = 0; layout < COUNT_OF(layouts); layout++)
        for (size_t dtype = 0; dtype < COUNT_OF(dtypes); dtype++)
            for (int cut = 0; cut < CUT_COUNT; cut++)
                test_bits(layout, dtypes[dtype], (enum cut)cut, repetitions,
                          1 + layout * 100 + dtype * 10 + (size_t)cut);
    test_cuts(test_quick() ? 20 : 100);
    test_empty(0, 5);
    test_empty(3, 0);
    test_communicators();
    test_mistakes(0);
    test_mistakes(1);
    test_all_mistaken();
    test_mismatches();
    test_create();
    test_mpi_error();
    if (rank == 0)
        printf("%d ranks: %zu passed, %zu failed\n", ranks, passed, failed);
    MPI_Finalize();
    return failed != 0;
}
