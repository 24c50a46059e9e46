/* SPDX-License-Identifier: MIT
 *
 * What must be refused, as bnorm.h and docs/embedding.md say it. Nothing here is taken from the
 * library's sources, and nothing of it is called but bnorm_workspace, which is what the header
 * defines the size of a workspace by. */
#include "fuzz.h"

#define BIT(status)  (1u << (status))
#define IS_FINITE(v) ((v) - (v) == 0)

size_t size_of_type(bnorm_dtype type) {
    return type == BNORM_F32 ? 4 : type == BNORM_BF16 || type == BNORM_F16 ? 2 : 1;
}

int shape_is_empty(const bnorm_shape *shape) {
    return shape->n == 0 || shape->hw == 0;
}

static size_t block_of(const bnorm_shape *shape) {
    return shape->c_block > 1 ? shape->c_block : 1;
}

struct geometry geometry_of(const bnorm_shape *shape, size_t run_stride, size_t image_stride,
                            unsigned broadcast) {
    const size_t b = block_of(shape), n = broadcast & BNORM_BROADCAST_N ? 1 : shape->n,
                 c = broadcast & BNORM_BROADCAST_C ? 1 : shape->c,
                 hw = broadcast & BNORM_BROADCAST_HW ? 1 : shape->hw, blocks = (c + b - 1) / b;
    struct geometry g = {n,
                         shape->layout == BNORM_NHWC ? hw : blocks,
                         shape->layout == BNORM_NHWC ? c : hw * b,
                         0,
                         0,
                         0};
    if (!run_stride)
        run_stride = g.run;
    if (!image_stride)
        image_stride = run_stride * g.runs;
    g.image_stride = n > 1 ? image_stride : 0;
    g.run_stride = g.runs > 1 ? run_stride : 0;
    if (n && hw)
        g.extent = (n - 1) * g.image_stride + (g.runs - 1) * g.run_stride + g.run;
    return g;
}

/* Strides of 2^60 and more are the only ones that are drawn that overflow. */
static int strides_are_bad(const struct geometry *g) {
    const size_t huge = (size_t)1 << 60;
    if (g->run_stride >= huge || g->image_stride >= huge)
        return 1;
    const int images_outside =
        (g->images == 1 || g->image_stride >= (g->runs - 1) * g->run_stride + g->run) &&
        (g->runs == 1 || g->run_stride >= g->run);
    const int images_inside =
        (g->runs == 1 || g->run_stride >= (g->images - 1) * g->image_stride + g->run) &&
        (g->images == 1 || g->image_stride >= g->run);
    return !images_outside && !images_inside;
}

/* Roles by operation: moments, forward_train, backward, apply. */
static const char roles[BUFFERS][5] = {
    [X] = "RRRR",       [DY] = "  R ",           [RESIDUAL] = " rrr",    [Y] = "  r ",
    [OUT] = " WwW",     [DRESIDUAL] = "  w ",    [GAMMA] = " rr ",       [BETA] = " rrr",
    [SCALE] = "   r",   [MEAN] = "wwRr",         [LO] = " wr ",          [INVSTD] = " wr ",
    [VAR] = "wwr ",     [RUNNING_MEAN] = " w  ", [RUNNING_VAR] = " w  ", [NEW_MEAN] = " w  ",
    [NEW_VAR] = " w  ", [WEIGHTS] = "rrr ",      [RENORM_R] = " wr ",    [RENORM_D] = " wr ",
    [DGAMMA] = "  w ",  [DBETA] = "  w ",        [MASK] = " wrw",        [WS] = "WWW ",
};

/* With pieces: collect for moments and backward, finish forward_train and backward, apply_grad.
 * Weights and renormalization only make them be refused. */
static const char piece_roles[BUFFERS][6] = {
    [X] = "RR  R",       [DY] = " R  R",           [RESIDUAL] = " r  r",    [Y] = " r  r",
    [OUT] = "    w",     [DRESIDUAL] = "    w",    [GAMMA] = " rrrr",       [BETA] = " rrrr",
    [SCALE] = "     ",   [MEAN] = " Rw R",         [LO] = " rwrr",          [INVSTD] = " rwrr",
    [VAR] = " rwrr",     [RUNNING_MEAN] = "  w  ", [RUNNING_VAR] = "  w  ", [NEW_MEAN] = "  w  ",
    [NEW_VAR] = "  w  ", [WEIGHTS] = " rrrr",      [RENORM_R] = " rwrr",    [RENORM_D] = " rwrr",
    [DGAMMA] = "   w ",  [DBETA] = "   w ",        [MASK] = " r  r",        [WS] = "WW   ",
    [NODES] = "WWRR ",   [COEFFICIENTS] = "  WwR",
};

static char listed_role(const struct subject *s, size_t buffer) {
    const size_t backward = s->call.op == BNORM_OP_BACKWARD;
    switch (s->stage) {
    case WHOLE:
        break;
    case COLLECT:
        return piece_roles[buffer][backward];
    case FINISH:
        return piece_roles[buffer][2 + backward];
    case APPLY_GRAD:
        return piece_roles[buffer][4];
    }
    return buffer < NODES ? roles[buffer][s->call.op] : ' ';
}

char role_of(const struct subject *s, size_t buffer) {
    const struct call *call = &s->call;
    const int backward = call->op == BNORM_OP_BACKWARD;
    const int identity = call->act.kind == BNORM_ACT_IDENTITY;
    switch (buffer) {
    case NODES: /* are not looked at */
        if (s->stage == FINISH && s->piece.n == 0)
            return ' ';
        break;
    case RUNNING_MEAN:
    case RUNNING_VAR:
        if (s->buffers[buffer + NEW_MEAN - RUNNING_MEAN].present && call->op == 1)
            return 'r';
        break;
    case RESIDUAL:
    case Y:
        if (backward && identity)
            return ' ';
        break;
    case MASK:
        if (identity)
            return ' ';
        break;
    case WEIGHTS:
        if (backward && call->frozen)
            return ' ';
        break;
    case VAR:
        if (backward && s->buffers[INVSTD].present)
            return ' ';
        break;
    case RENORM_R:
    case RENORM_D:
        if (!backward && !call->renorm)
            return ' ';
        break;
    default:
        break;
    }
    return listed_role(s, buffer);
}

static unsigned shape_faults(const bnorm_shape *shape, bnorm_op op) {
    unsigned faults = 0;
    if ((unsigned)shape->layout > BNORM_NCHW || (unsigned)shape->dtype > BNORM_U8)
        faults |= BIT(BNORM_BAD_ENUM);
    const size_t b = block_of(shape), huge = (size_t)1 << 60;
    if (b > 1 && (shape->layout != BNORM_NCHW || (b != 4 && b != 8 && b != 16 && b != 32)))
        faults |= BIT(BNORM_UNSUPPORTED);
    /* Sizes that overflow do so by far. */
    if (shape->c == 0 || shape->n >= huge || shape->c >= huge || shape->hw >= huge)
        faults |= BIT(BNORM_BAD_SHAPE);
    if (shape->dtype > BNORM_F16 && op != BNORM_OP_APPLY)
        faults |= BIT(BNORM_UNSUPPORTED);
    return faults;
}

static unsigned act_faults(const bnorm_act *act, int has_sleef) {
    if ((unsigned)act->kind > BNORM_ACT_MISH)
        return BIT(BNORM_BAD_ENUM);
    unsigned faults = 0;
    if (act->kind == BNORM_ACT_CLAMP && !(act->a < act->b))
        faults |= BIT(BNORM_BAD_ACTIVATION);
    if ((act->kind == BNORM_ACT_LEAKY_RELU || act->kind == BNORM_ACT_ELU) && !IS_FINITE(act->a))
        faults |= BIT(BNORM_BAD_ACTIVATION);
    if (act->kind >= BNORM_ACT_SIGMOID && !has_sleef)
        faults |= BIT(BNORM_UNSUPPORTED);
    return faults;
}

static int mask_fits(bnorm_act_kind kind) {
    return kind == BNORM_ACT_IDENTITY || kind == BNORM_ACT_RELU || kind == BNORM_ACT_CLAMP ||
           kind == BNORM_ACT_LEAKY_RELU;
}

static int eps_is_bad(double eps) {
    return !IS_FINITE(eps) || eps < 0;
}

static int quant_is_bad(const struct subject *s, const bnorm_quant *quant, bnorm_dtype type) {
    const int least = type == BNORM_S8 ? -128 : 0;
    const int is_denormal = quant->scale > 0 && quant->scale < 0x1p-126f;
    return !IS_FINITE(quant->scale) || quant->scale < 0 ||
           (is_denormal && s->denormals == BNORM_DENORMALS_FLUSH) || quant->zero_point < least ||
           quant->zero_point > least + 255;
}

static unsigned apply_faults(const struct subject *s) {
    const struct call *call = &s->call;
    unsigned faults = 0;
    if ((unsigned)call->y_dtype > BNORM_Y_U8)
        return BIT(BNORM_BAD_ENUM);
    const bnorm_dtype x = call->shape.dtype,
                      y = call->y_dtype ? (bnorm_dtype)(call->y_dtype - 1) : x;
    if ((x > BNORM_F16 && quant_is_bad(s, &call->x_quant, x)) ||
        (x > BNORM_F16 && s->buffers[RESIDUAL].present &&
         quant_is_bad(s, &call->residual_quant, x)) ||
        (y > BNORM_F16 && quant_is_bad(s, &call->y_quant, y)))
        faults |= BIT(BNORM_BAD_QUANTIZATION);
    if (s->buffers[MASK].present && !mask_fits(call->act.kind))
        faults |= BIT(BNORM_UNSUPPORTED);
    return faults;
}

static unsigned running_faults(const struct subject *s, struct verdict *verdict) {
    const struct buffer *b = s->buffers;
    unsigned faults = 0;
    if ((unsigned)s->call.variance > BNORM_VARIANCE_SAMPLE)
        faults |= BIT(BNORM_BAD_ENUM);
    for (size_t i = 0; i < 2; i++)
        if (b[NEW_MEAN + i].present && !b[RUNNING_MEAN + i].present)
            faults |= BIT(BNORM_NULL_POINTER);
    if (!IS_FINITE(s->call.rate)) {
        if (b[RUNNING_MEAN].present || b[RUNNING_VAR].present)
            faults |= BIT(BNORM_BAD_RATE);
        else
            verdict->may |= BIT(BNORM_BAD_RATE);
    }
    return faults;
}

static unsigned train_faults(const struct subject *s, struct verdict *verdict) {
    const struct call *call = &s->call;
    const struct buffer *b = s->buffers;
    unsigned faults = running_faults(s, verdict);
    if (eps_is_bad(call->eps))
        faults |= BIT(BNORM_BAD_EPSILON);
    if (call->renorm) {
        const bnorm_renorm *r = call->renorm;
        if (!b[RUNNING_MEAN].present || !b[RUNNING_VAR].present)
            faults |= BIT(BNORM_NULL_POINTER);
        if (!(r->r_min >= 0) || !(r->r_max >= r->r_min) || !(r->d_max >= 0))
            faults |= BIT(BNORM_BAD_RENORM);
    }
    if (b[MASK].present && !mask_fits(call->act.kind))
        faults |= BIT(BNORM_UNSUPPORTED);
    return faults;
}

static unsigned grad_faults(const struct subject *s) {
    const struct call *call = &s->call;
    const struct buffer *b = s->buffers;
    const bnorm_act_kind kind = call->act.kind;
    unsigned faults = 0;
    if (kind != BNORM_ACT_IDENTITY) {
        if (b[RESIDUAL].present + b[Y].present + b[MASK].present > 1)
            faults |= BIT(BNORM_BAD_PARAMETER);
        if (b[Y].present && kind != BNORM_ACT_RELU && kind != BNORM_ACT_CLAMP &&
            !(kind == BNORM_ACT_LEAKY_RELU && call->act.a > 0))
            faults |= BIT(BNORM_UNSUPPORTED);
        if (b[MASK].present && !mask_fits(kind))
            faults |= BIT(BNORM_UNSUPPORTED);
    }
    if (call->frozen && (b[RENORM_R].present || b[RENORM_D].present))
        faults |= BIT(BNORM_BAD_PARAMETER);
    if (b[RENORM_R].present != b[RENORM_D].present)
        faults |= BIT(BNORM_NULL_POINTER);
    if (call->dy_broadcast > 7)
        faults |= BIT(BNORM_BAD_ENUM);
    if (call->dy_broadcast && (block_of(&call->shape) > 1 || (b[WEIGHTS].present && !call->frozen)))
        faults |= BIT(BNORM_UNSUPPORTED);
    return faults;
}

static int is_varied(const struct subject *s) {
    const struct buffer *b = s->buffers;
    return (b[WEIGHTS].present && role_of(s, WEIGHTS) != ' ') || s->call.renorm ||
           b[RENORM_R].present || b[RENORM_D].present;
}

static unsigned piece_faults(const struct subject *s, struct verdict *verdict) {
    const bnorm_partial *p = &s->piece;
    const bnorm_shape *shape = &s->call.shape;
    const size_t more = s->stage == COLLECT ? shape->n : 0;
    unsigned faults = 0;
    if (s->no_piece)
        return BIT(BNORM_NULL_POINTER);
    if (p->op != (s->call.op == BNORM_OP_BACKWARD ? BNORM_OP_BACKWARD : BNORM_OP_MOMENTS))
        faults |= BIT(BNORM_BAD_ENUM);
    if (p->c == 0 || p->first + p->n < p->n || (p->n && p->hw == 0))
        faults |= BIT(BNORM_BAD_SHAPE);
    if (s->stage == COLLECT && p->c != s->safe.c)
        faults |= BIT(BNORM_BAD_SHAPE);
    /* What an empty batch is not added to. */
    unsigned *const of_images = more && shape->hw ? &faults : &verdict->may;
    if (p->first + p->n + more < more || (p->n && p->hw != shape->hw && s->stage == COLLECT))
        *of_images |= BIT(BNORM_BAD_SHAPE);
    if (p->size < bnorm_partial_used(p))
        faults |= BIT(BNORM_WORKSPACE_TOO_SMALL);
    if (s->stage == COLLECT && p->size < bnorm_partial_size(p->c, p->n + more))
        *of_images |= BIT(BNORM_WORKSPACE_TOO_SMALL);
    return faults;
}

static unsigned ghost_faults(const struct subject *s) {
    const struct call *call = &s->call;
    const struct buffer *b = s->buffers;
    unsigned faults = 0;
    if (s->no_ghost)
        return BIT(BNORM_NULL_POINTER);
    if ((unsigned)s->ghost.order > BNORM_GHOST_INTERLEAVED ||
        (unsigned)s->ghost.running > BNORM_GHOST_SUCCESSIVE)
        faults |= BIT(BNORM_BAD_ENUM);
    if (s->ghost.groups == 0 || call->shape.n % s->ghost.groups)
        faults |= BIT(BNORM_BAD_SHAPE);
    const int backward = call->op == BNORM_OP_BACKWARD;
    if ((b[MASK].present && role_of(s, MASK) != ' ') ||
        (b[WEIGHTS].present && role_of(s, WEIGHTS) != ' ') ||
        (backward ? b[RENORM_R].present : call->renorm != NULL))
        faults |= BIT(BNORM_UNSUPPORTED);
    return faults;
}

/* ---------------------------------------------------------------------------------------------- */
/* Buffers */

static const float *floats_at(const struct subject *s, size_t buffer) {
    const struct buffer *b = &s->buffers[buffer];
    return (const float *)(const void *)(s->blocks[b->block].data + b->offset);
}

static unsigned value_faults(const struct subject *s) {
    const struct call *call = &s->call;
    const struct buffer *b = s->buffers;
    const size_t c = s->safe.c;
    unsigned faults = 0;
    size_t variance = BUFFERS, count = c;
    if (call->op == BNORM_OP_BACKWARD && !b[INVSTD].present) {
        variance = VAR;
        count = c * s->groups;
        if (!b[VAR].present)
            faults |= BIT(BNORM_NULL_POINTER);
        else if (eps_is_bad(call->eps))
            faults |= BIT(BNORM_BAD_EPSILON);
    }
    if (call->op == BNORM_OP_FORWARD_TRAIN && call->renorm)
        variance = RUNNING_VAR;
    for (size_t i = 0; variance < BUFFERS && b[variance].present && i < count; i++)
        if ((double)floats_at(s, variance)[i] + call->eps < 0)
            faults |= BIT(BNORM_BAD_VARIANCE);
    if (b[WEIGHTS].present && role_of(s, WEIGHTS) == 'r')
        for (size_t i = 0; i < s->safe.n * s->safe.hw; i++)
            if (!IS_FINITE(floats_at(s, WEIGHTS)[i]) || floats_at(s, WEIGHTS)[i] < 0)
                faults |= BIT(BNORM_BAD_WEIGHTS);
    return faults;
}

UNWATCHED void mark_elements(unsigned char *map, const struct buffer *b, int is_tensor,
                             unsigned bit) {
    const struct geometry whole = {1, 1, b->bytes / b->element, 0, 0, 0};
    const struct geometry *g = is_tensor ? &b->geometry : &whole;
    for (size_t image = 0; image < g->images; image++)
        for (size_t run = 0; run < g->runs; run++) {
            const size_t begin = image * g->image_stride + run * g->run_stride;
            unsigned char *const at = map + b->offset + begin * b->element;
            for (size_t i = 0; i < g->run * b->element; i++)
                at[i] |= (unsigned char)bit;
        }
}

UNWATCHED static int share_elements(const struct subject *s, const struct buffer *a,
                                    int a_is_tensor, const struct buffer *b, int b_is_tensor) {
    unsigned char *const map = calloc(1, s->blocks[a->block].size);
    int shared = 0;
    mark_elements(map, a, a_is_tensor, 1);
    mark_elements(map, b, b_is_tensor, 2);
    for (size_t i = 0; i < s->blocks[a->block].size; i++)
        shared |= map[i] == 3;
    free(map);
    return shared;
}

/* An output and another buffer. */
static void check_pair(const struct subject *s, size_t output, size_t other,
                       struct verdict *verdict) {
    const struct buffer *o = &s->buffers[output], *p = &s->buffers[other];
    const int o_is_tensor = output < TENSORS, p_is_tensor = other < TENSORS;
    const int p_is_output = (role_of(s, other) | 32) == 'w';
    if (o->block != p->block || o->offset >= p->offset + p->bytes ||
        p->offset >= o->offset + o->bytes)
        return;
    if (o_is_tensor && p_is_tensor) {
        const int alike = o->element == p->element &&
                          o->geometry.run_stride == p->geometry.run_stride &&
                          o->geometry.image_stride == p->geometry.image_stride;
        const int broadcast = other == DY && s->call.dy_broadcast;
        const int same = alike && o->offset == p->offset && !broadcast;
        if (same ? p_is_output : broadcast || !alike || share_elements(s, o, 1, p, 1))
            verdict->must |= BIT(BNORM_BAD_OVERLAP);
        return;
    }
    /* The header does not say whether new_mean may be mean. */
    if (o->offset == p->offset && output >= NEW_MEAN && output <= NEW_VAR &&
        other == output - NEW_MEAN + RUNNING_MEAN)
        verdict->may |= BIT(BNORM_BAD_OVERLAP);
    /* Nor whether a parameter may lie in the gaps of an output tensor. */
    else if (o_is_tensor && !p_is_output && !share_elements(s, o, 1, p, 0))
        verdict->may |= BIT(BNORM_BAD_OVERLAP);
    else
        verdict->must |= BIT(BNORM_BAD_OVERLAP);
}

static void check_buffers(const struct subject *s, struct verdict *verdict) {
    for (size_t i = 0; i < BUFFERS; i++) {
        const struct buffer *b = &s->buffers[i];
        const char role = role_of(s, i);
        if (!b->present) {
            if (role == 'R' || role == 'W')
                verdict->must |= BIT(BNORM_NULL_POINTER);
            continue;
        }
        if (role == ' ')
            continue;
        if (i < TENSORS && strides_are_bad(&b->geometry)) {
            verdict->must |= BIT(BNORM_BAD_STRIDE);
            continue;
        }
        for (size_t k = 0; (role | 32) == 'w' && k < BUFFERS; k++)
            if (k != i && s->buffers[k].present && role_of(s, k) != ' ' &&
                !(k < TENSORS && strides_are_bad(&s->buffers[k].geometry)))
                check_pair(s, i, k, verdict);
    }
    if (s->operands.ws && s->operands.ws_size < s->ws_need)
        verdict->must |= BIT(BNORM_WORKSPACE_TOO_SMALL);
    verdict->must |= value_faults(s);
}

struct verdict verdict_of(const struct subject *s, int has_sleef) {
    struct verdict verdict = {0, 0};
    const struct call *call = &s->call;
    const bnorm_op op = call->op;
    const int has_options = op != BNORM_OP_MOMENTS, finish = s->stage == FINISH;
    unsigned shape = 0, options = 0;
    if (!finish)
        shape = s->no_shape ? BIT(BNORM_NULL_POINTER) : shape_faults(&call->shape, op);
    if (s->stage == COLLECT || finish)
        shape |= piece_faults(s, &verdict);
    if (!s->no_options) {
        /* Finishing is not about the activation. */
        if (has_options)
            *(finish ? &verdict.may : &options) |= act_faults(&call->act, has_sleef);
        if (op == BNORM_OP_APPLY)
            options |= apply_faults(s);
        if (op == BNORM_OP_FORWARD_TRAIN)
            options |= train_faults(s, &verdict);
        if (op == BNORM_OP_BACKWARD)
            *(finish ? &verdict.may : &options) |= grad_faults(s);
        if (role_of(s, WEIGHTS) == 'r' && s->buffers[WEIGHTS].present && eps_is_bad(call->epsilon))
            options |= BIT(BNORM_BAD_EPSILON);
        if (s->stage && is_varied(s))
            options |= BIT(BNORM_UNSUPPORTED);
    } else if (op != BNORM_OP_APPLY) {
        options = BIT(BNORM_NULL_POINTER);
    }
    if (call->ghost)
        options |= ghost_faults(s);
    if (!finish && ((unsigned)s->denormals > BNORM_DENORMALS_FLUSH ||
                    (unsigned)s->memory > BNORM_MEMORY_STREAM))
        options |= BIT(BNORM_BAD_ENUM);
    verdict.must |= shape | options;
    struct verdict buffers = {0, 0};
    check_buffers(s, &buffers);
    /* Buffers of an empty batch may be absent, and nothing says that they are looked at; with a bad
     * shape it is not known where they end. */
    if (shape || (finish ? s->piece.n == 0 : shape_is_empty(&call->shape)) || s->no_options) {
        verdict.may |= buffers.must | buffers.may;
    } else {
        verdict.must |= buffers.must;
        verdict.may |= buffers.may;
    }
    return verdict;
}
