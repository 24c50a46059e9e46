/* SPDX-License-Identifier: MIT
 *
 * One call: decoded, judged by the model, run, and run again in every way that has to give the same
 * bits. */
#include "fuzz.h"

bnorm_parallel fuzz_parallel;

/* What is decoded, for reports. */
static _Thread_local struct bytes input;

static const char *const functions[] = {"bnorm_moments", "bnorm_forward_train", "bnorm_backward",
                                        "bnorm_apply"};
static const char *const of_pieces[] = {"", "bnorm_partial_collect", "bnorm_partial_finish",
                                        "bnorm_partial_apply_grad"};

static const char *function_of(const struct subject *s) {
    return s->stage ? of_pieces[s->stage] : functions[s->call.op];
}

void fail(const char *function, const char *what) {
    fprintf(stderr,
            "%s: %s\nA line for fuzz/corpus.txt, from which make fuzz-corpus runs it again:\n",
            function, what);
    for (const unsigned char *at = input.at; at < input.end; at++)
        fprintf(stderr, "%02x", *at);
    fputc('\n', stderr);
    abort();
}

static int is_expected(bnorm_status status, struct verdict verdict) {
    const unsigned expected = verdict.must ? 0 : 1u << BNORM_OK;
    return (verdict.must | verdict.may | expected) >> status & 1;
}

void check_status(const char *function, bnorm_status status, struct verdict verdict) {
    if (is_expected(status, verdict))
        return;
    fprintf(stderr, "expected statuses %#x or %#x, not %d\n", verdict.must, verdict.may, status);
    fail(function, bnorm_strerror(status));
}

/* ---------------------------------------------------------------------------------------------- */
/* Decoding */

UNWATCHED void fill_elements(void *memory, size_t count, bnorm_dtype type, enum values values,
                             uint32_t *state) {
    const size_t size = size_of_type(type);
    const unsigned mantissa = type == BNORM_F32 ? 23 : type == BNORM_BF16 ? 7 : 10;
    const unsigned bias = type == BNORM_F16 ? 15 : 127, sign = (unsigned)size * 8 - 1;
    unsigned char *at = memory;
    if (size == 1)
        values = ANY_BITS;
    for (size_t i = 0; i < count; i++, at += size) {
        uint32_t bits = next_number(state);
        const uint32_t r = next_number(state), fraction = bits & ((1u << mantissa) - 1);
        if (values == MODERATE || (values == MIXED && r % 32))
            bits = (r >> 8 & 1) << sign | (bias - 4 + (r >> 9) % 8) << mantissa | fraction;
        else if (values == NEAR)
            bits = (bias + 6) << mantissa | fraction >> (mantissa - 4);
        for (size_t k = 0; k < size; k++)
            at[k] = (unsigned char)(bits >> 8 * k);
    }
}

static void decode_shape(struct bytes *in, struct subject *s) {
    static const size_t images[] = {1, 2, 3, 0, 4, 5, 8, 65, 130};
    static const size_t channels[] = {1,  2,  3,  4,  5,  7,  8,  9,  15,
                                      16, 17, 31, 32, 33, 48, 64, 97, 256};
    static const size_t positions[] = {1,  2,  3,  0,  4,   6,   7,    9,
                                       16, 25, 33, 64, 127, 300, 2049, 4097};
    static const size_t blocks[] = {0, 8, 1, 4, 16, 32};
    bnorm_shape *const shape = &s->call.shape;
    shape->layout = (bnorm_layout)pick(in, 2);
    shape->dtype = (bnorm_dtype)pick(in, s->call.op == BNORM_OP_APPLY ? 5 : 3);
    shape->c = PICK(in, channels);
    shape->hw = PICK(in, positions);
    shape->n = PICK(in, images);
    if (shape->layout == BNORM_NCHW)
        shape->c_block = PICK(in, blocks);
    /* Now and then large enough to be shared, and for several blocks of the reductions. */
    const size_t most = pick(in, 32) == 31 ? 40000 : 2000;
    while (shape->n > 1 && shape->n * shape->c * shape->hw > most)
        shape->n = (shape->n + 1) / 2;
    while (shape->c > 1 && shape->n * shape->c * shape->hw > most)
        shape->c = (shape->c + 1) / 2;
    s->safe = *shape;
    if (!is_wrong(in))
        return;
    switch (pick(in, 8)) {
    case 0:
        s->no_shape = 1;
        break;
    case 1:
        shape->layout = (bnorm_layout)(2 + (int)pick(in, 3) * -3);
        break;
    case 2:
        shape->dtype = (bnorm_dtype)(5 + (int)pick(in, 3) * -6);
        break;
    case 3:
        shape->c = pick(in, 2) ? SIZE_MAX - pick(in, 32) : 0;
        break;
    case 4:
        shape->n = SIZE_MAX - pick(in, 2) * (SIZE_MAX / 2);
        break;
    case 5:
        shape->hw = SIZE_MAX - pick(in, 2) * (SIZE_MAX / 2);
        break;
    case 6:
        shape->c_block = pick(in, 2) ? SIZE_MAX - pick(in, 4) : 2 + pick(in, 40);
        if (shape->c_block <= 32 &&
            !(32 % shape->c_block)) /* 2 is the only one of these that is wrong */
            s->safe.c_block = shape->c_block > 2 ? shape->c_block : 0;
        break;
    default:
        s->safe.dtype = shape->dtype = (bnorm_dtype)pick(in, 5);
        break;
    }
}

static void decode_act(struct bytes *in, bnorm_act *act) {
    static const float as[] = {0, 0.1f, -1, 2, -0.5f, 1e-30f}, bs[] = {6, 1, 2.5f, INFINITY};
    static const float wrong[] = {NAN, INFINITY, -INFINITY, 6};
    act->kind = (bnorm_act_kind)pick(in, BNORM_ACT_MISH + 1);
    if (act->kind) {
        act->a = PICK(in, as);
        act->b = act->a >= 1 ? 6 : PICK(in, bs);
    }
    if (!is_wrong(in))
        return;
    if (!act->kind)
        act->kind = (bnorm_act_kind)(BNORM_ACT_MISH + 1 + (int)pick(in, 2) * -20);
    else
        *(pick(in, 2) ? &act->b : &act->a) = PICK(in, wrong);
}

static void decode_quant(struct bytes *in, bnorm_dtype type, bnorm_quant *quant) {
    static const float scales[] = {0, 1, 0.05f, 3e-5f, 1e30f, 1e-40f};
    static const float wrong[] = {-1, NAN, INFINITY, -1e-40f};
    if (size_of_type(type) > 1)
        return;
    quant->scale = PICK(in, scales);
    quant->zero_point = (int)pick(in, 256) - (type == BNORM_S8 ? 128 : 0);
    if (!is_wrong(in))
        return;
    if (pick(in, 2))
        quant->scale = PICK(in, wrong);
    else
        quant->zero_point = (int)pick(in, 2) * 1000 - 300;
}

static double decode_eps(struct bytes *in) {
    static const double values[] = {1e-5, 1e-3, 0, 1, 1e-300, 1e300},
                        wrong[] = {-1e-300, NAN, INFINITY, -1};
    return is_wrong(in) ? PICK(in, wrong) : PICK(in, values);
}

static void decode_options(struct bytes *in, struct subject *s) {
    static const double rates[] = {0.1, 0, 1, 0.01, -0.5, 2};
    static const double limits[] = {1, 0, 0.5, 3, INFINITY}, wrong[] = {-1, NAN, -INFINITY};
    struct call *const call = &s->call;
    bnorm_renorm *const r = &s->renorm;
    if (call->op != BNORM_OP_MOMENTS)
        decode_act(in, &call->act);
    switch (call->op) {
    case BNORM_OP_APPLY:
        call->y_dtype = (bnorm_y_dtype)pick(in, 6);
        if (is_wrong(in))
            call->y_dtype = (bnorm_y_dtype)(6 + (int)pick(in, 2) * -7);
        decode_quant(in, call->shape.dtype, &call->x_quant);
        decode_quant(in, call->shape.dtype, &call->residual_quant);
        decode_quant(in, call->y_dtype ? (bnorm_dtype)(call->y_dtype - 1) : call->shape.dtype,
                     &call->y_quant);
        break;
    case BNORM_OP_FORWARD_TRAIN:
        call->eps = decode_eps(in);
        call->rate = is_wrong(in) ? (double)NAN : PICK(in, rates);
        call->variance = (bnorm_variance)(pick(in, 2) + 7 * (size_t)is_wrong(in));
        if (pick(in, 8) == 7) {
            call->renorm = r;
            r->r_min = PICK(in, limits);
            r->r_max = r->r_min + PICK(in, limits);
            r->d_max = PICK(in, limits);
            if (is_wrong(in))
                *(pick(in, 3) ? pick(in, 2) ? &r->d_max : &r->r_max : &r->r_min) = PICK(in, wrong);
        }
        break;
    case BNORM_OP_BACKWARD:
        call->eps = decode_eps(in);
        call->frozen = pick(in, 4) == 3;
        if (pick(in, 4) == 3 && (s->safe.c_block < 2 || is_wrong(in)))
            call->dy_broadcast = (unsigned)pick(in, 8);
        if (is_wrong(in))
            call->dy_broadcast = 8u << pick(in, 28);
        break;
    default:
        break;
    }
    if (call->op != BNORM_OP_APPLY)
        call->epsilon = decode_eps(in);
    s->groups = 1;
    if (!s->stage && (call->op == BNORM_OP_FORWARD_TRAIN || call->op == BNORM_OP_BACKWARD) &&
        pick(in, 6) == 5) {
        size_t groups = 1 + pick(in, 4);
        while (call->shape.n % groups)
            groups--;
        s->ghost = (bnorm_ghost){s->groups = groups, (bnorm_ghost_order)pick(in, 2),
                                 (bnorm_ghost_running)pick(in, 2)};
        call->ghost = &s->ghost;
        if (is_wrong(in)) {
            const size_t which = pick(in, 4);
            s->no_ghost = which == 0;
            if (which == 1)
                s->ghost.groups = pick(in, 2) ? call->shape.n + 1 : 0;
            if (which == 2)
                s->ghost.order = (bnorm_ghost_order)2;
            if (which == 3)
                s->ghost.running = (bnorm_ghost_running)-1;
        }
    }
    s->no_options = call->op != BNORM_OP_MOMENTS && is_wrong(in);
    if (s->no_options && call->op == BNORM_OP_APPLY) { /* a copy */
        call->act.kind = BNORM_ACT_IDENTITY;
        call->y_dtype = BNORM_Y_SAME;
        call->x_quant = call->y_quant = (bnorm_quant){0, 0};
    }
    s->denormals = (bnorm_denormals)(pick(in, 8) == 7);
    if (is_wrong(in))
        s->denormals = (bnorm_denormals)(2 - (int)pick(in, 2) * 3);
    if (is_wrong(in))
        s->memory = (bnorm_memory)(4 - (int)pick(in, 2) * 5);
}

static void decode_strides(struct bytes *in, const struct subject *s, struct buffer *b,
                           unsigned broadcast) {
    const struct geometry dense = geometry_of(&s->safe, 0, 0, broadcast);
    const size_t gap = 1 + pick(in, 9);
    switch (pick(in, 6)) {
    case 1: /* a slice of longer runs */
        b->run_stride = dense.run + gap;
        break;
    case 2: /* images with something between them */
        b->image_stride = dense.run * dense.runs + gap;
        break;
    case 3:
        b->run_stride = dense.run + gap;
        b->image_stride = b->run_stride * dense.runs + gap;
        break;
    case 4: /* (C, N, HW) order */
        b->image_stride = dense.run + gap % 3;
        b->run_stride = b->image_stride * (dense.images ? dense.images : 1) + gap % 2;
        break;
    default:
        break;
    }
    if (is_wrong(in))
        *(pick(in, 2) ? &b->run_stride : &b->image_stride) =
            pick(in, 2) ? SIZE_MAX / 2 + gap : pick(in, 2 * dense.run + 1);
    b->geometry = geometry_of(&s->safe, b->run_stride, b->image_stride, broadcast);
    const int is_huge =
        b->geometry.run_stride > SIZE_MAX / 4 || b->geometry.image_stride > SIZE_MAX / 4;
    b->bytes = (is_huge ? dense.extent : b->geometry.extent) * b->element;
}

static size_t size_of_array(const struct subject *s, size_t buffer) {
    const bnorm_shape *shape = &s->safe;
    const size_t b = shape->c_block > 1 ? shape->c_block : 1,
                 elements = shape->n * ((shape->c + b - 1) / b * b) * shape->hw;
    switch (buffer) {
    case WS:
        return s->operands.ws_size;
    case NODES:
        return s->piece.size;
    case COEFFICIENTS:
        return shape->c * (s->call.op == BNORM_OP_BACKWARD ? 5 : 3) * sizeof(float);
    case MASK:
        return (elements + 7) / 8;
    case WEIGHTS:
        return shape->n * shape->hw * sizeof(float);
    case MEAN:
    case LO:
    case INVSTD:
    case VAR:
        return shape->c * s->groups * sizeof(float);
    default:
        return shape->c * sizeof(float);
    }
}

/* Where buffer i lies: alone, as the same tensor as another one or beside it, or where it must not. */
static void decode_place(struct bytes *in, struct subject *s, size_t i) {
    struct buffer *const b = &s->buffers[i];
    b->block = i;
    b->offset = b->element * pick(in, 4);
    if (i == 0)
        return;
    const size_t how = i < TENSORS ? pick(in, 4) : 0;
    const int wrong = is_wrong(in);
    if (!how && !wrong)
        return;
    const struct buffer *other = &s->buffers[pick(in, i)];
    if (!other->present)
        return;
    const size_t least = i == NODES ? 8 : b->element < 4 && i < TENSORS ? b->element : 4;
    if (how == 1 || how == 2) {
        const int broadcast = i == DY || other == &s->buffers[DY] ? s->call.dy_broadcast != 0 : 0;
        if (other >= s->buffers + TENSORS || broadcast)
            return;
        b->geometry = other->geometry;
        b->run_stride = other->run_stride;
        b->image_stride = other->image_stride;
        b->bytes = other->bytes / other->element * b->element;
    }
    const size_t shift = how == 2   ? b->geometry.run + pick(in, 3)
                         : how == 3 ? pick(in, 64)
                         : wrong    ? pick(in, 256)
                                    : 0;
    b->block = other->block;
    b->offset = (other->offset + shift * b->element) / least * least;
}

static void decode_buffers(struct bytes *in, struct subject *s) {
    struct call *const call = &s->call;
    const bnorm_dtype y = call->y_dtype && (unsigned)call->y_dtype <= BNORM_Y_U8
                              ? (bnorm_dtype)(call->y_dtype - 1)
                              : s->safe.dtype;
    const int no_affine = s->no_options && call->op == BNORM_OP_APPLY;
    for (size_t i = 0; i < BUFFERS; i++) {
        struct buffer *const b = &s->buffers[i];
        const char role = role_of(s, i);
        const int rare = i == WEIGHTS || i == RENORM_R || i == Y;
        if (role == ' ' || (no_affine && i != X && i != OUT))
            continue;
        if (role == 'R' || role == 'W')
            b->present = !is_wrong(in);
        else if (i == RENORM_D)
            b->present = s->buffers[RENORM_R].present != is_wrong(in);
        else
            b->present = rare ? pick(in, 6) == 5 : (int)pick(in, 2);
        if ((i == RUNNING_MEAN || i == RUNNING_VAR) && call->renorm)
            b->present = !is_wrong(in);
        if ((i == NEW_MEAN || i == NEW_VAR) && !s->buffers[i + RUNNING_MEAN - NEW_MEAN].present)
            b->present = is_wrong(in);
        if (i == VAR && call->op == BNORM_OP_BACKWARD && !s->buffers[INVSTD].present)
            b->present = !is_wrong(in);
        if (!b->present)
            continue;
        b->element = i == MASK || i == WS ? 1
                     : i == OUT           ? size_of_type(y)
                     : i < TENSORS        ? size_of_type(s->safe.dtype)
                     : i == NODES         ? sizeof(double)
                                          : sizeof(float);
        if (i < TENSORS)
            decode_strides(in, s, b, i == DY ? call->dy_broadcast & 7 : 0);
        else
            b->bytes = size_of_array(s, i);
        decode_place(in, s, i);
    }
}

static void *address_of(struct subject *s, size_t i) {
    const struct buffer *b = &s->buffers[i];
    return b->present ? s->blocks[b->block].data + b->offset : NULL;
}

static bnorm_in in_of(struct subject *s, size_t i) {
    return (bnorm_in){address_of(s, i), s->buffers[i].run_stride, s->buffers[i].image_stride};
}

static bnorm_out out_of(struct subject *s, size_t i) {
    return (bnorm_out){address_of(s, i), s->buffers[i].run_stride, s->buffers[i].image_stride};
}

static void set_operands(struct subject *s) {
    s->operands = (struct operands){
        .x = in_of(s, X),
        .dy = in_of(s, DY),
        .residual = in_of(s, RESIDUAL),
        .y = in_of(s, Y),
        .out = out_of(s, OUT),
        .dresidual = out_of(s, DRESIDUAL),
        .gamma = address_of(s, GAMMA),
        .beta = address_of(s, BETA),
        .scale = address_of(s, SCALE),
        .mean = address_of(s, MEAN),
        .lo = address_of(s, LO),
        .invstd = address_of(s, INVSTD),
        .var = address_of(s, VAR),
        .running_mean = address_of(s, RUNNING_MEAN),
        .running_var = address_of(s, RUNNING_VAR),
        .new_mean = address_of(s, NEW_MEAN),
        .new_var = address_of(s, NEW_VAR),
        .weights = address_of(s, WEIGHTS),
        .r = address_of(s, RENORM_R),
        .d = address_of(s, RENORM_D),
        .dgamma = address_of(s, DGAMMA),
        .dbeta = address_of(s, DBETA),
        .mask = address_of(s, MASK),
        .ws = address_of(s, WS),
        .ws_size = s->operands.ws_size,
    };
}

/* The structs that are passed. */
static void set_arguments(struct subject *s) {
    call_arguments(&s->args, &s->call, &s->operands);
    if (s->no_shape)
        s->args.job.shape = NULL;
    if (s->no_options) {
        s->args.job.affine = NULL;
        s->args.job.train = NULL;
        s->args.job.grad = NULL;
    }
}

/* The content of a buffer that is read. */
UNWATCHED static void fill_input(struct bytes *in, struct subject *s, size_t i, uint32_t *state) {
    const struct buffer *b = &s->buffers[i];
    const int positive = i == INVSTD || i == VAR || i == RUNNING_VAR || i == WEIGHTS;
    enum values values = (enum values)pick(in, VALUES_COUNT);
    void *const at = address_of(s, i);
    const size_t count = b->bytes / b->element;
    const int wrong = positive && is_wrong(in);
    /* Which denormals that are only passed on are flushed no set promises. */
    if ((s->denormals || (i == WEIGHTS && !wrong)) && values > NEAR)
        values = MODERATE;
    if (b->element == 1 && i >= TENSORS)
        fill_bytes(at, b->bytes, state);
    else if (i < TENSORS)
        fill_elements(at, count, s->safe.dtype, values, state);
    else
        fill_elements(at, count, BNORM_F32, values, state);
    float *const floats = at;
    const size_t zeros = i == WEIGHTS ? pick(in, 4) : 0; /* of 4 */
    for (size_t k = 0; positive && !wrong && k < count; k++)
        floats[k] = next_number(state) % 4 < zeros ? 0 : fabsf(floats[k]);
}

/* A piece that has some images, of which a call that collects appends more. */
static void decode_piece(struct bytes *in, struct subject *s) {
    static const size_t counts[] = {1, 0, 2, 3, 5, 8};
    bnorm_partial *const p = &s->piece;
    p->op = s->call.op == BNORM_OP_BACKWARD ? BNORM_OP_BACKWARD : BNORM_OP_MOMENTS;
    p->c = s->safe.c;
    p->hw = s->safe.hw + !s->safe.hw;
    p->first = pick(in, 256) * (1 + pick(in, 9));
    p->n = PICK(in, counts);
    p->size =
        s->stage == COLLECT ? bnorm_partial_size(p->c, p->n + s->safe.n) : bnorm_partial_used(p);
    if (!is_wrong(in))
        return;
    switch (pick(in, 6)) {
    case 0:
        s->no_piece = 1;
        break;
    case 1:
        p->op = (bnorm_op)(1 + 2 * pick(in, 2));
        break;
    case 2:
        p->c = pick(in, 2) && p->n ? p->c + 1 : 0;
        break;
    case 3:
        p->hw = s->stage == COLLECT && pick(in, 2) ? p->hw + 1 : 0;
        break;
    case 4:
        p->first = SIZE_MAX - p->n - s->safe.n + 1 + pick(in, 3);
        break;
    default:
        p->size -= p->size ? 1 + pick(in, 9) : 0;
        break;
    }
}

/* Runs it, on a piece like the one that is given. */
static bnorm_status run_subject(struct subject *s, const bnorm_exec *exec) {
    const bnorm_job *const job = &s->args.job;
    const struct buffer *const nodes = &s->buffers[NODES], *const c = &s->buffers[COEFFICIENTS];
    float *const coefficients = c->present ? (void *)(s->blocks[c->block].data + c->offset) : NULL;
    const int backward = s->call.op == BNORM_OP_BACKWARD;
    if (!s->stage)
        return call_run(&s->args, exec);
    if (s->stage == APPLY_GRAD)
        return bnorm_partial_apply_grad(job->shape, job->x, job->dy, job->out, job->grad,
                                        coefficients, exec);
    bnorm_partial piece = s->piece, *const at = s->no_piece ? NULL : &piece;
    if (nodes->present)
        piece.nodes = (void *)(s->blocks[nodes->block].data + nodes->offset);
    bnorm_partial want = piece;
    bnorm_status status;
    if (s->stage == FINISH)
        status = backward ? bnorm_partial_finish_grad(at, job->grad, coefficients)
                          : bnorm_partial_finish(at, job->train, coefficients);
    else
        status = backward
                     ? bnorm_partial_collect_grad(job->shape, job->x, job->dy, job->grad, at,
                                                  job->ws, job->ws_size, exec)
                     : bnorm_partial_collect(job->shape, job->x, at, job->ws, job->ws_size, exec);
    if (!status && s->stage == COLLECT && !shape_is_empty(&s->call.shape)) {
        want.n += s->call.shape.n;
        want.hw = s->call.shape.hw;
    }
    if (!same_piece(&piece, &want))
        fail(function_of(s), "another piece");
    return status;
}

static void decode_call(struct bytes *in, struct subject *s, enum stage stage, bnorm_op op) {
    memset(s, 0, sizeof *s);
    s->call.op = op;
    s->stage = stage;
    decode_shape(in, s);
    decode_options(in, s);
    if (stage == COLLECT || stage == FINISH)
        decode_piece(in, s);
    s->ws_need = bnorm_workspace(op, &s->safe);
    s->operands.ws_size = s->ws_need + pick(in, 3);
    if (is_wrong(in) && s->ws_need)
        s->operands.ws_size = s->ws_need - 1 - pick(in, 64) * (s->ws_need - 1) / 64;
    decode_buffers(in, s);
    for (size_t i = 0; i < BUFFERS; i++) {
        const struct buffer *b = &s->buffers[i];
        struct block *const block = &s->blocks[b->block];
        if (b->present && b->offset + b->bytes >= block->size)
            block->size = b->offset + b->bytes + !b->bytes;
    }
    uint32_t state = 1 + (uint32_t)pick(in, 256);
    for (size_t i = 0; i < BUFFERS; i++) {
        struct block *const block = &s->blocks[i];
        if (!block->size)
            continue;
        block->data = malloc(block->size);
        block->before = malloc(block->size);
        block->filled = malloc(block->size);
        block->after = malloc(block->size);
        block->use = calloc(1, block->size);
        fill_bytes(block->data, block->size, &state);
    }
    for (size_t i = 0; i < BUFFERS; i++)
        if (s->buffers[i].present &&
            ((role_of(s, i) | 32) == 'r' || i == RUNNING_MEAN || i == RUNNING_VAR || i == NODES))
            fill_input(in, s, i, &state);
    for (size_t i = 0; i < BUFFERS; i++)
        if (s->blocks[i].size)
            memcpy(s->blocks[i].before, s->blocks[i].data, s->blocks[i].size);
    set_operands(s);
    set_arguments(s);
}

static void free_call(struct subject *s) {
    for (size_t i = 0; i < BUFFERS; i++) {
        free(s->blocks[i].data);
        free(s->blocks[i].before);
        free(s->blocks[i].filled);
        free(s->blocks[i].after);
        free(s->blocks[i].use);
    }
}

/* ---------------------------------------------------------------------------------------------- */
/* Runs, and what they must not change */

/* Of a piece that images are appended to: what it holds before and after, the rest being scratch. */
static void mark_nodes(struct subject *s, int empty) {
    struct buffer b = s->buffers[NODES];
    unsigned char *const use = s->blocks[b.block].use;
    bnorm_partial piece = s->piece;
    if (!b.present)
        return;
    b.bytes = bnorm_partial_used(&piece);
    mark_elements(use, &b, 0, IS_READ);
    if (empty)
        return;
    piece.n += s->call.shape.n;
    b.bytes = s->buffers[NODES].bytes;
    mark_elements(use, &b, 0, IS_SCRATCH);
    b.bytes = bnorm_partial_used(&piece);
    for (size_t i = 0; i < b.bytes; i++)
        use[b.offset + i] = (unsigned char)((use[b.offset + i] & ~IS_SCRATCH) | IS_WRITTEN);
}

/* What a call that is not refused may read and write. */
static void mark_uses(struct subject *s) {
    const int empty = s->stage != FINISH && shape_is_empty(&s->call.shape);
    for (size_t i = 0; i < BUFFERS; i++) {
        const struct buffer *b = &s->buffers[i];
        const char role = (char)(role_of(s, i) | 32);
        unsigned use = role == 'r' ? IS_READ : role == 'w' ? IS_WRITTEN : 0;
        if (i == WS)
            use = IS_SCRATCH;
        if (role == 'w' && (i == RUNNING_MEAN || i == RUNNING_VAR))
            use = IS_READ | IS_WRITTEN;
        if (empty && role == 'w' && i != DGAMMA && i != DBETA && i != NEW_MEAN && i != NEW_VAR)
            use = 0;
        if (i == NODES && use && s->stage == COLLECT) {
            mark_nodes(s, empty);
            continue;
        }
        if (b->present && use && !(empty && i < TENSORS))
            mark_elements(s->blocks[b->block].use, b, i < TENSORS, use);
    }
}

/* Runs of bytes with this use, or without it. */
UNWATCHED static size_t bytes_alike(const struct block *b, size_t at, unsigned use) {
    size_t end = at + 1;
    while (end < b->size && !(b->use[end] & use) == !(b->use[at] & use))
        end++;
    return end - at;
}

/* The content as before the first run, but for what is not read, which is something else, and as if
 * it had never been written. */
UNWATCHED static void refill(struct subject *s, uint32_t state) {
    for (size_t i = 0; i < BUFFERS; i++) {
        struct block *const b = &s->blocks[i];
        fill_bytes(b->data, b->size, &state);
        for (size_t k = 0; k < b->size; k++)
            if (b->use[k] & IS_READ)
                b->data[k] = b->before[k];
        if (b->size)
            memcpy(b->filled, b->data, b->size);
        for (size_t k = 0, n; k < b->size; k += n) {
            n = bytes_alike(b, k, IS_READ);
            if (!(b->use[k] & IS_READ))
                FORGET(b->data + k, n);
        }
    }
}

/* For a report. */
static void say_call(const struct subject *s) {
    const struct call *c = &s->call;
    fprintf(stderr, "layout %d dtype %d n %zu c %zu hw %zu c_block %zu, act %d %g %g, y_dtype %d, ",
            c->shape.layout, c->shape.dtype, c->shape.n, c->shape.c, c->shape.hw, c->shape.c_block,
            c->act.kind, (double)c->act.a, (double)c->act.b, c->y_dtype);
    fprintf(stderr, "eps %g rate %g variance %d epsilon %g renorm %d groups %zu frozen %d ", c->eps,
            c->rate, c->variance, c->epsilon, c->renorm != NULL, c->ghost ? s->ghost.groups : 0,
            c->frozen);
    fprintf(stderr, "dy_broadcast %u denormals %d\n", c->dy_broadcast, s->denormals);
    if (s->stage)
        fprintf(stderr, "stage %d, piece op %d c %zu hw %zu first %zu n %zu size %zu\n", s->stage,
                s->piece.op, s->piece.c, s->piece.hw, s->piece.first, s->piece.n, s->piece.size);
    for (size_t i = 0; i < BUFFERS; i++) {
        const struct buffer *b = &s->buffers[i];
        if (b->present)
            fprintf(stderr, "buffer %zu '%c': block %zu + %zu, %zu bytes, strides %zu %zu\n", i,
                    role_of(s, i), b->block, b->offset, b->bytes, b->run_stride, b->image_stride);
    }
}

UNWATCHED static void check_memory(struct subject *s, int is_first, const char *function,
                                   const char *how) {
    for (size_t i = 0; i < BUFFERS; i++) {
        struct block *const b = &s->blocks[i];
        if (is_first && b->size)
            memcpy(b->after, b->data, b->size);
        for (size_t k = 0, n; k < b->size; k += n) {
            n = bytes_alike(b, k, IS_WRITTEN);
            if (!(b->use[k] & IS_WRITTEN))
                KNOW(b->data + k, n);
        }
        for (size_t k = 0; k < b->size; k++) {
            const int written = b->use[k] & IS_WRITTEN;
            if (b->use[k] & IS_SCRATCH || b->data[k] == (written ? b->after[k] : b->filled[k]))
                continue;
            say_call(s);
            fprintf(stderr, "byte %zu of %zu of block %zu, %s\n", k, b->size, i, how);
            fail(function, written ? "other bits" : "wrote where it must not");
        }
    }
}

static int has_sleef(const bnorm_isa *isa) {
    float x = 0;
    const bnorm_shape shape = {.n = 1, .c = 1, .hw = 1};
    const bnorm_affine affine = {.act = {.kind = BNORM_ACT_SIGMOID}};
    const bnorm_exec exec = {.isa = isa};
    return !bnorm_apply(&shape, BNORM_IN(&x), BNORM_OUT(&x), &affine, &exec);
}

/* Tasks in another order: a permutation that `pool` says. */
static void in_other_order(void *pool, void (*task)(void *arg, size_t i), void *arg, size_t count) {
    const unsigned order = *(const unsigned *)pool;
    for (size_t i = 0; i < count; i++) {
        const size_t at =
            order % 3 == 1 ? (i * 2 < count ? i * 2 : (i - (count + 1) / 2) * 2 + 1) : i;
        task(arg, order % 2 ? at : count - 1 - at);
    }
}

static bnorm_exec exec_of(const struct subject *s, const bnorm_isa *isa) {
    return (bnorm_exec){.isa = isa, .denormals = s->denormals, .memory = s->memory};
}

/* Image `first` of a tensor of which every step-th is seen. */
static void take_images(struct subject *s, size_t i, size_t first, size_t step,
                        size_t *image_stride, const void **data) {
    const struct buffer *b = &s->buffers[i];
    if (!*data)
        return;
    *data = (const char *)*data + first * b->geometry.image_stride * b->element;
    if (step > 1)
        *image_stride = b->geometry.image_stride * step;
}

/* The operands of images first, first + step, ... */
static struct operands operands_of(struct subject *s, size_t first, size_t step) {
    struct operands o = s->operands;
    take_images(s, X, first, step, &o.x.image_stride, &o.x.data);
    take_images(s, DY, first, step, &o.dy.image_stride, &o.dy.data);
    take_images(s, RESIDUAL, first, step, &o.residual.image_stride, &o.residual.data);
    take_images(s, Y, first, step, &o.y.image_stride, &o.y.data);
    take_images(s, OUT, first, step, &o.out.image_stride, (const void **)&o.out.data);
    take_images(s, DRESIDUAL, first, step, &o.dresidual.image_stride,
                (const void **)&o.dresidual.data);
    return o;
}

/* On dense tensors of their own, which are copied from where the others lie, and back. */
UNWATCHED static bnorm_status run_dense(struct subject *s, const bnorm_exec *exec) {
    struct operands o = s->operands;
    struct call call = s->call;
    bnorm_in *const ins[] = {&o.x, &o.dy, &o.residual, &o.y};
    bnorm_out *const outs[] = {&o.out, &o.dresidual};
    unsigned char *copies[TENSORS] = {NULL};
    const struct geometry full = geometry_of(&s->call.shape, 0, 0, 0);
    call.dy_broadcast = 0;
    for (size_t i = 0; i < TENSORS; i++) {
        const struct buffer *b = &s->buffers[i];
        const unsigned broadcast = i == DY ? s->call.dy_broadcast : 0;
        if (!b->present)
            continue;
        const struct geometry *g = &b->geometry;
        unsigned char *to = copies[i] = malloc(full.extent * b->element);
        for (size_t image = 0; image < full.images && i < OUT; image++)
            for (size_t run = 0; run < full.runs; run++)
                for (size_t k = 0; k < full.run; k++, to += b->element) {
                    const size_t one = g->run == 1 && broadcast ? 0 : k;
                    const size_t at = image * g->image_stride + run * g->run_stride + one;
                    memcpy(to, (const char *)address_of(s, i) + at * b->element, b->element);
                }
        if (i < OUT)
            *ins[i] = BNORM_IN(copies[i]);
        else
            *outs[i - OUT] = BNORM_OUT(copies[i]);
    }
    call_arguments(&s->args, &call, &o);
    const bnorm_status status = run_subject(s, exec);
    for (size_t i = OUT; i < TENSORS; i++) {
        const struct buffer *b = &s->buffers[i];
        const unsigned char *from = copies[i];
        for (size_t image = 0; from && image < full.images; image++)
            for (size_t run = 0; run < full.runs; run++, from += full.run * b->element)
                memcpy((char *)address_of(s, i) +
                           (image * b->geometry.image_stride + run * b->geometry.run_stride) *
                               b->element,
                       from, full.run * b->element);
    }
    for (size_t i = 0; i < TENSORS; i++)
        free(copies[i]);
    set_arguments(s);
    return status;
}

/* A call for images [first, first + n) alone. */
static void take_piece(struct subject *s, size_t first, size_t n, struct call *call,
                       struct operands *o) {
    const struct geometry g = geometry_of(&s->call.shape, 0, 0, 0);
    *call = s->call;
    *o = operands_of(s, first, 1);
    call->shape.n = n;
    if (o->mask)
        o->mask = (char *)o->mask + first * g.runs * g.run / 8;
    call_arguments(&s->args, call, o);
}

/* Three pieces, collected in any order, merged from either end. */
static int run_in_pieces(struct subject *s, uint32_t order, const bnorm_exec *exec) {
    const size_t n = s->call.shape.n, c = s->call.shape.c;
    const size_t a = order % (n + 1), b = a + order / 64 % (n - a + 1), cuts[] = {0, a, b, n};
    const struct geometry g = geometry_of(&s->call.shape, 0, 0, 0);
    const size_t bytes = bnorm_partial_size(c, n);
    const int backward = s->call.op == BNORM_OP_BACKWARD;
    bnorm_partial pieces[3];
    struct call call;
    struct operands o;
    bnorm_status status = BNORM_OK;
    /* dx of a single value is 0 by a scale of 0, with which v is right where save_mean is that value. */
    if (backward && n * s->call.shape.hw == 1 && !s->call.frozen)
        return 0;
    if (s->buffers[MASK].present && (a * g.runs * g.run % 8 || b * g.runs * g.run % 8))
        return 0;
    float *const coefficients = malloc((backward ? 5 : 3) * c * sizeof(float));
    for (size_t i = 0; i < 3; i++)
        pieces[i] = (bnorm_partial){.op = backward ? BNORM_OP_BACKWARD : BNORM_OP_MOMENTS,
                                    .c = c,
                                    .first = cuts[i],
                                    .nodes = malloc(bytes),
                                    .size = bytes};
    for (size_t k = 0; k < 3 && !status; k++) {
        const size_t i = (k + order) % 3;
        take_piece(s, cuts[i], cuts[i + 1] - cuts[i], &call, &o);
        const size_t need = bnorm_workspace(call.op, &call.shape);
        void *const ws = malloc(need);
        const bnorm_job *job = &s->args.job;
        status = backward ? bnorm_partial_collect_grad(job->shape, job->x, job->dy, job->grad,
                                                       &pieces[i], ws, need, exec)
                          : bnorm_partial_collect(job->shape, job->x, &pieces[i], ws, need, exec);
        free(ws);
    }
    for (size_t k = 0; k < 2 && !status; k++) {
        const size_t left = order % 2 ? 1 - k : 0, right = order % 2 ? 2 - k : k + 1;
        pieces[right].size = bnorm_partial_used(&pieces[right]);
        status = bnorm_partial_merge(&pieces[left], &pieces[right]);
        pieces[left].size = bytes;
    }
    take_piece(s, 0, n, &call, &o);
    if (!status)
        status = backward ? bnorm_partial_finish_grad(&pieces[0], s->args.job.grad, coefficients)
                          : bnorm_partial_finish(&pieces[0], s->args.job.train, coefficients);
    for (size_t i = 0; i < 3 && !status; i++) {
        take_piece(s, cuts[i], cuts[i + 1] - cuts[i], &call, &o);
        const bnorm_job *job = &s->args.job;
        const bnorm_affine affine = {
            .center = coefficients,
            .scale = coefficients + c,
            .shift = coefficients + 2 * c,
            .residual = o.residual,
            .act = call.act,
            .mask = o.mask,
        };
        status = backward ? bnorm_partial_apply_grad(job->shape, job->x, job->dy, job->out,
                                                     job->grad, coefficients, exec)
                          : bnorm_apply(job->shape, job->x, job->out, &affine, exec);
    }
    if (status)
        fail("a batch in pieces", bnorm_strerror(status));
    for (size_t i = 0; i < 3; i++)
        free(pieces[i].nodes);
    free(coefficients);
    set_arguments(s);
    return 1;
}

static float *move(float *array, size_t by) {
    return array ? array + by : NULL;
}

/* Ghost batches as one call per group. */
static int run_by_group(struct subject *s, const bnorm_exec *exec) {
    const bnorm_ghost *ghost = &s->ghost;
    const size_t groups = ghost->groups, n = s->call.shape.n / groups, c = s->call.shape.c;
    const int tracked = s->buffers[RUNNING_MEAN].present || s->buffers[RUNNING_VAR].present;
    const int interleaved = ghost->order == BNORM_GHOST_INTERLEAVED;
    if (groups > 1 && ghost->running == BNORM_GHOST_AVERAGE && tracked)
        return 0;
    for (size_t k = 0; k < groups; k++) {
        struct call call = s->call;
        struct operands o = operands_of(s, interleaved ? k : k * n, interleaved ? groups : 1);
        call.ghost = NULL;
        call.shape.n = n;
        o.mean = move(o.mean, k * c);
        o.lo = move(o.lo, k * c);
        o.invstd = move(o.invstd, k * c);
        o.var = move(o.var, k * c);
        if (k && o.new_mean)
            o.running_mean = o.new_mean;
        if (k && o.new_var)
            o.running_var = o.new_var;
        call_arguments(&s->args, &call, &o);
        const bnorm_status status = call_run(&s->args, exec);
        if (status)
            fail("one call per group", bnorm_strerror(status));
    }
    /* Their sums over all groups no call per group has. */
    for (size_t i = DGAMMA; groups > 1 && i <= DBETA; i++)
        if (s->buffers[i].present)
            memcpy(address_of(s, i), s->blocks[s->buffers[i].block].after + s->buffers[i].offset,
                   s->buffers[i].bytes);
    set_arguments(s);
    return 1;
}

/* A call that is right, in every other way. */
static void run_again(struct subject *s, uint32_t seed) {
    const char *const function = function_of(s);
    const bnorm_isa *const scalar = bnorm_isa_find("scalar");
    const bnorm_exec plain = exec_of(s, scalar), best = exec_of(s, NULL);
    const struct verdict good = {0, 0};
    /* $BNORM_ISA leaves out the sets before the one that it names. */
    size_t first = 0;
    while (bnorm_isa_at(first) != bnorm_isa_best())
        first++;
    for (size_t i = first; bnorm_isa_at(i); i++) {
        static const size_t threads[] = {0, 2, 3, 8};
        unsigned order = seed % 5;
        bnorm_exec exec = exec_of(s, bnorm_isa_at(i));
        if (s->call.act.kind >= BNORM_ACT_SIGMOID && !has_sleef(exec.isa))
            continue;
        exec.parallel = fuzz_parallel ? fuzz_parallel : in_other_order;
        exec.pool = &order;
        exec.threads = threads[seed / 5 % 4];
        exec.memory = (bnorm_memory)(seed / 20 % 4);
        refill(s, seed + (uint32_t)i);
        check_status(function, run_subject(s, &exec), good);
        check_memory(s, 0, function, bnorm_isa_name(exec.isa));
    }
    if (s->stage == FINISH || shape_is_empty(&s->call.shape))
        return;
    refill(s, seed + 7);
    if (run_dense(s, seed % 2 ? &best : &plain))
        fail(function, "refuses dense tensors of their own");
    check_memory(s, 0, function, "on dense tensors of their own");
    const int weighted = s->buffers[WEIGHTS].present && role_of(s, WEIGHTS) == 'r';
    const int varied = weighted || s->call.renorm || s->buffers[RENORM_R].present;
    refill(s, seed + 8);
    if (s->call.ghost && run_by_group(s, seed % 2 ? &plain : &best))
        check_memory(s, 0, function, "group by group");
    /* Merging and finishing are in the caller's mode. */
    if (s->stage || s->call.ghost || varied || s->denormals ||
        (s->call.op != BNORM_OP_BACKWARD && s->call.op != BNORM_OP_FORWARD_TRAIN))
        return;
    refill(s, seed + 9);
    if (run_in_pieces(s, seed, seed % 2 ? &best : &plain))
        check_memory(s, 0, function, "in pieces");
}

/* Whether it was not refused. */
static int fuzz_call(struct subject *s, uint32_t seed) {
    const bnorm_isa *const scalar = bnorm_isa_find("scalar");
    const struct verdict verdict = verdict_of(s, has_sleef(scalar));
    const bnorm_exec exec = exec_of(s, scalar);
    const char *const function = function_of(s);
    for (size_t i = 0; i < BUFFERS; i++)
        if (s->blocks[i].size)
            memcpy(s->blocks[i].filled, s->blocks[i].data, s->blocks[i].size);
    const bnorm_job *const job = &s->args.job;
    bnorm_status status;
    if (!s->no_ghost)
        status = run_subject(s, &exec);
    else if (s->call.op == BNORM_OP_BACKWARD)
        status = bnorm_backward_ghost(job->shape, job->x, job->dy, job->out, job->grad, NULL,
                                      job->ws, job->ws_size, &exec);
    else
        status = bnorm_forward_train_ghost(job->shape, job->x, job->out, job->train, NULL, job->ws,
                                           job->ws_size, &exec);
    if (!is_expected(status, verdict))
        say_call(s);
    check_status(function, status, verdict);
    if (!status)
        mark_uses(s);
    check_memory(s, 1, function, "at first");
    if (!status)
        run_again(s, seed);
    return !status;
}

/* Some calls as jobs. */
static void fuzz_jobs(struct subject *s, size_t count, const int *good, uint32_t seed) {
    bnorm_job jobs[3];
    unsigned order = seed % 5;
    size_t failed = 99, bad = count;
    bnorm_exec exec = exec_of(&s[0], NULL);
    exec.parallel = fuzz_parallel ? fuzz_parallel : in_other_order;
    exec.pool = &order;
    for (size_t i = count; i-- > 0;) {
        const int no_job = s[i].call.ghost || s[i].denormals != exec.denormals ||
                           s[i].memory != exec.memory ||
                           (s[i].call.op == BNORM_OP_MOMENTS && s[i].buffers[WEIGHTS].present);
        if (no_job)
            return;
        jobs[i] = s[i].args.job;
        if (!good[i])
            bad = i;
    }
    if ((unsigned)exec.denormals > 1 || (unsigned)exec.memory > 3)
        bad = 99;
    if (bad == count && seed % 16 == 15) {
        jobs[bad = seed / 16 % count].op = (bnorm_op)(4 + (int)(seed / 64 % 2) * -9);
    }
    for (size_t i = 0; i < count; i++) {
        if (good[i])
            refill(&s[i], seed + 10 + (uint32_t)i);
        for (size_t k = 0; k < BUFFERS && bad < count; k++)
            if (s[i].blocks[k].size)
                memset(s[i].blocks[k].use, 0, s[i].blocks[k].size);
    }
    const bnorm_status status = bnorm_run_jobs(jobs, count, &failed, &exec);
    if (!status != (bad == count) || failed != (bad < count ? bad : 99))
        fail("bnorm_run_jobs", "another job failed");
    for (size_t i = 0; i < count; i++)
        check_memory(&s[i], 0, "bnorm_run_jobs", "as a job");
}

/* Byte 0 says what is called, byte 1 how many faults there may be; how all of them are read is in
 * the functions above, from decode_call on. */
int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    static const int faults[] = {0, 0, 1, 2};
    struct bytes in = {data, data + size, 0};
    input = in;
    struct subject subjects[3];
    int good[3];
    const size_t what = pick(&in, 9);
    in.faults = faults[pick(&in, 4)];
    if (what == 5) {
        fuzz_parameters(&in);
    } else if (what == 6) {
        fuzz_describe(&in);
    } else if (what == 7) {
        fuzz_partials(&in);
    } else {
        static const bnorm_op ops[][2] = {{BNORM_OP_MOMENTS, BNORM_OP_BACKWARD},
                                          {BNORM_OP_FORWARD_TRAIN, BNORM_OP_BACKWARD},
                                          {BNORM_OP_BACKWARD, BNORM_OP_BACKWARD}};
        const size_t count = what == 4 ? 1 + pick(&in, 3) : 1;
        const enum stage stage = what == 8 ? (enum stage)(1 + pick(&in, 3)) : WHOLE;
        const uint32_t seed = (uint32_t)(pick(&in, 256) * 256 + pick(&in, 256));
        for (size_t i = 0; i < count; i++)
            decode_call(&in, &subjects[i], stage,
                        stage       ? ops[stage - 1][pick(&in, 2)]
                        : what == 4 ? (bnorm_op)pick(&in, 4)
                                    : (bnorm_op)what);
        for (size_t i = 0; i < count; i++)
            good[i] = fuzz_call(&subjects[i], seed);
        if (what == 4)
            fuzz_jobs(subjects, count, good, seed);
        for (size_t i = 0; i < count; i++)
            free_call(&subjects[i]);
    }
    return 0;
}
