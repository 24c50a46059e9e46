/* SPDX-License-Identifier: MIT */
#include "calls.h"

#include <math.h>
#include <stdio.h>
#include <string.h>

#include "oracle.h"
#include "types.h"

/* ---------------------------------------------------------------------------------------------- */
/* Data                                                                                           */

size_t data_count(const struct data *d) {
    return d->n * d->c * d->hw;
}

bnorm_shape plain_shape(const bnorm_shape *shape) {
    return (bnorm_shape){.layout = BNORM_NCHW, .n = shape->n, .c = shape->c, .hw = shape->hw};
}

bnorm_shape narrow_shape(const bnorm_shape *shape, unsigned dy_broadcast) {
    bnorm_shape narrow = *shape;
    narrow.n = dy_broadcast & BNORM_BROADCAST_N ? 1 : narrow.n;
    narrow.c = dy_broadcast & BNORM_BROADCAST_C ? 1 : narrow.c;
    narrow.hw = dy_broadcast & BNORM_BROADCAST_HW ? 1 : narrow.hw;
    return narrow;
}

void round_floats(bnorm_dtype dtype, float *x, size_t count) {
    for (size_t i = 0; x && dtype != BNORM_F32 && i < count; i++)
        x[i] = element_round(dtype, x[i]);
}

void data_fill(struct test *t, struct data *d, enum values kind, bnorm_dtype dtype) {
    const bnorm_shape plain = {.layout = BNORM_NCHW, .n = d->n, .c = d->c, .hw = d->hw};
    fill_values(&t->rng, &plain, kind, d->x);
    round_floats(dtype, d->x, data_count(d));
}

void data_new(struct test *t, struct data *d, const bnorm_shape *shape) {
    *d = (struct data){.n = shape->n, .c = shape->c, .hw = shape->hw};
    const size_t count = data_count(d), c = d->c;
    d->x = test_floats(t, count);
    data_fill(t, d, VALUES_NORMAL, shape->dtype);
    d->dy = uniform_floats(t, 1, count, -2, 2);
    d->residual = uniform_floats(t, 1, count, -2, 2);
    round_floats(shape->dtype, d->dy, count);
    round_floats(shape->dtype, d->residual, count);
    d->gamma = uniform_floats(t, rng_below(&t->rng, 4) != 0, c, -2, 2);
    d->beta = uniform_floats(t, rng_below(&t->rng, 4) != 0, c, -2, 2);
    d->mean = uniform_floats(t, 1, c, -2, 2);
    d->invstd = uniform_floats(t, 1, c, .3, 2);
    d->lo = uniform_floats(t, 1, c, -0x1p-26, 0x1p-26);
    d->running_mean = uniform_floats(t, 1, c, -2, 2);
    d->running_var = uniform_floats(t, 1, c, .2, 3);
}

float *take_channels(struct test *t, const float *from, const struct data *shape,
                     const struct channels *which) {
    if (!from)
        return NULL;
    const size_t hw = shape->hw;
    float *taken = test_floats(t, shape->n * which->width * hw);
    for (size_t image = 0; image < shape->n; image++)
        memcpy(taken + image * which->width * hw, from + (image * shape->c + which->first) * hw,
               which->count * hw * sizeof(float));
    return taken;
}

size_t plain_index(const bnorm_shape *shape, size_t i) {
    const size_t len = shape_len(shape), image = i / (len * shape_runs(shape));
    const size_t channel = shape_channel(shape, i);
    size_t position = i % len; /* NCHW */
    if (shape->c_block)
        position /= shape->c_block;
    else if (shape->layout == BNORM_NHWC)
        position = i / len % shape->hw;
    return channel < shape->c ? (image * shape->c + channel) * shape->hw + position : SIZE_MAX;
}

/* Where channel c of an image begins in a dense one, and how far apart its positions are. */
static size_t channel_start(const bnorm_shape *shape, size_t c, size_t *step) {
    const size_t b = shape->c_block ? shape->c_block : 1;
    if (shape->layout == BNORM_NHWC) {
        *step = shape->c;
        return c;
    }
    *step = b;
    return c / b * b * shape->hw + c % b;
}

/* From (n, c, hw) order into the shape's, padding included, and back. */
static float *arrange(struct test *t, const bnorm_shape *shape, const float *plain, float padding) {
    const size_t count = shape_count(shape), image = shape_runs(shape) * shape_len(shape);
    float *dense = test_floats(t, count);
    for (size_t i = 0; shape->c_block && i < count; i++)
        dense[i] = padding;
    for (size_t n = 0; n < shape->n; n++)
        for (size_t c = 0; c < shape->c; c++) {
            size_t step;
            float *to = dense + n * image + channel_start(shape, c, &step);
            for (size_t p = 0; p < shape->hw; p++)
                to[p * step] = *plain++;
        }
    return dense;
}

static float *rearrange(struct test *t, const bnorm_shape *shape, const struct tensor *tensor,
                        float padding, const char *what) {
    const size_t count = shape_count(shape), image = shape_runs(shape) * shape_len(shape);
    const size_t channels = shape->hw ? image / shape->hw : 0; /* with those that pad */
    float *dense = test_floats(t, count), *plain = test_floats(t, shape->n * shape->c * shape->hw);
    float *to = plain;
    tensor_get(tensor, shape, dense);
    for (size_t n = 0; n < shape->n; n++)
        for (size_t c = 0; c < channels; c++) {
            size_t step;
            const float *from = dense + n * image + channel_start(shape, c, &step);
            for (size_t p = 0; p < shape->hw; p++) {
                if (c < shape->c)
                    *to++ = from[p * step];
                else if (float_bits(from[p * step]) != float_bits(padding))
                    test_fail(t, "%s: position %zu of padding channel %zu is %g, expected %g", what,
                              n * shape->hw + p, c, (double)from[p * step], (double)padding);
            }
        }
    return plain;
}

/* ---------------------------------------------------------------------------------------------- */
/* Calls                                                                                          */

static const char *const target_names[TARGET_COUNT] = {"its own", "x", "dy", "the residual or y",
                                                       "nowhere"};

const char *call_text(const struct call *call, char text[320]) {
    static const char *const ops[] = {"moments", "forward_train", "backward", "apply"};
    static const char *const paddings[] = {"signalling NaN", "huge", "zero"};
    char shape[96];
    int used =
        snprintf(text, 320, "%s%s%s %s act=%d(%.9g, %.9g)%s%s%s%s%s%s%s omit=%u",
                 call->what ? call->what : "", call->what ? ": " : "", ops[call->op],
                 shape_text(&call->shape, shape), (int)call->act.kind, (double)call->act.a,
                 (double)call->act.b, call->residual ? " residual" : "", call->lo ? " lo" : "",
                 call->frozen ? " frozen" : "", call->mask ? " writes mask" : "",
                 call->given_y ? " given y" : "", call->given_mask ? " given mask" : "",
                 call->renorm ? " renorm" : "", call->omit);
    if (call->op == BNORM_OP_APPLY && used < 320)
        used += snprintf(text + used, 320 - (size_t)used,
                         " y_dtype=%d quant (%.9g, %d) (%.9g, %d) (%.9g, %d)", (int)call->y_dtype,
                         (double)call->x_quant.scale, call->x_quant.zero_point,
                         (double)call->residual_quant.scale, call->residual_quant.zero_point,
                         (double)call->y_quant.scale, call->y_quant.zero_point);
    if (call->op == BNORM_OP_FORWARD_TRAIN && used < 320)
        used += snprintf(text + used, 320 - (size_t)used, " eps=%g rate=%g%s", call->eps,
                         call->rate, call->variance == BNORM_VARIANCE_SAMPLE ? " sample" : "");
    if (used < 320)
        snprintf(text + used, 320 - (size_t)used, ", onto %s, dresidual %s, padding %s",
                 target_names[call->out], target_names[call->dresidual], paddings[call->padding]);
    return text;
}

static bnorm_dtype y_type(const struct call *call) {
    return call->op == BNORM_OP_APPLY ? y_type_of(call->y_dtype, call->shape.dtype)
                                      : call->shape.dtype;
}

/* What lies at ONTO_EXTRA. */
static int has_extra(const struct call *call) {
    return call->residual || (call->op == BNORM_OP_BACKWARD && call->given_y);
}

static int target_fits(const struct call *call, enum target target) {
    switch (target) {
    case ONTO_EXTRA:
        if (!has_extra(call))
            return 0;
        break;
    case ONTO_DY:
        return call->op == BNORM_OP_BACKWARD && !call->dy_broadcast;
    case ONTO_X:
        break;
    default:
        return 1;
    }
    return dtype_size(y_type(call)) == dtype_size(call->shape.dtype);
}

int targets_fit(const struct call *call) {
    const int backward = call->op == BNORM_OP_BACKWARD;
    return target_fits(call, call->out) && (backward || call->out != NOWHERE) &&
           (!backward ||
            (target_fits(call, call->dresidual) &&
             (call->out == OWN || call->out == NOWHERE || call->out != call->dresidual)));
}

void random_targets(struct rng *r, struct call *call) {
    do {
        call->out = (enum target)rng_below(r, NOWHERE);
        call->dresidual = (enum target)rng_below(r, NOWHERE);
    } while (!targets_fit(call));
}

void random_outputs(struct rng *r, struct call *call) {
    do {
        call->out = (enum target)rng_below(r, TARGET_COUNT);
        call->dresidual = (enum target)rng_below(r, TARGET_COUNT);
    } while (!targets_fit(call));
    call->omit = (rng_below(r, 4) ? 0 : OMIT_DGAMMA) | (rng_below(r, 4) ? 0 : OMIT_DBETA);
    call->side = (int)rng_below(r, 2);
}

static struct tensor *add_tensor(struct ready *r, const char *name, const bnorm_shape *shape,
                                 enum call_place place, const float *dense) {
    const struct placement aligned = {.side = r->fixture.side};
    return fixture_tensor(&r->fixture, name, shape,
                          r->call.at      ? &r->call.at[place]
                          : r->call.dense ? &aligned
                                          : NULL,
                          dense);
}

static struct tensor *add_input(struct ready *r, const char *name, enum call_place place,
                                const float *plain) {
    const float paddings[] = {bits_float(0xffa54321u), 1e30f, 0};
    const bnorm_shape shape =
        narrow_shape(&r->call.shape, place == AT_DY ? r->call.dy_broadcast : 0);
    return add_tensor(r, name, &shape, place,
                      arrange(r->fixture.t, &shape, plain, paddings[r->call.padding]));
}

static struct tensor *add_output(struct ready *r, const char *name, enum call_place place,
                                 enum target target, struct tensor *x, struct tensor *dy,
                                 struct tensor *extra) {
    struct tensor *const inputs[] = {[ONTO_X] = x, [ONTO_DY] = dy, [ONTO_EXTRA] = extra};
    bnorm_shape shape = r->call.shape;
    if (target == NOWHERE)
        return NULL;
    shape.dtype = y_type(&r->call);
    struct tensor *tensor = target == OWN ? NULL : inputs[target];
    if (!tensor)
        tensor = add_tensor(r, name, &shape, place, NULL);
    fixture_writes(&r->fixture, tensor);
    return tensor;
}

/* NULL stays NULL. Inputs lie in writable memory. */
static float *add_array(struct ready *r, const char *name, const float *values, size_t count) {
    return values ? (float *)(uintptr_t)fixture_input(&r->fixture, name, values, count) : NULL;
}

static float *add_result(struct ready *r, const char *name, int wanted, const float *before,
                         size_t count) {
    return wanted ? fixture_output(&r->fixture, name, before, count) : NULL;
}

static size_t groups_of(const struct call *call) {
    return call->ghost ? call->ghost->groups : 1;
}

static void ready_mask(struct ready *r) {
    struct test *t = r->fixture.t;
    const size_t bytes = bnorm_mask_size(&r->call.shape);
    const int given = r->call.op == BNORM_OP_BACKWARD;
    if (given ? !r->call.given_mask : !r->call.mask || r->call.op == BNORM_OP_MOMENTS)
        return;
    r->at.mask = fixture_bytes(&r->fixture, "mask", bytes);
    if (given)
        memcpy(r->at.mask, r->call.given_mask, bytes);
    else /* every bit is to be written, whatever it was */
        memset(r->at.mask, rng_below(&t->rng, 2) ? 0xff : 0, bytes);
}

static void ready_backward(struct ready *r) {
    const struct data *d = r->data;
    const struct call *call = &r->call;
    const size_t c = d->c, saved = groups_of(call) * c;
    const unsigned omit = call->omit;
    r->at.gamma = add_array(r, "gamma", d->gamma, c);
    r->at.beta = add_array(r, "beta", d->beta, c);
    r->at.mean = add_array(r, "save_mean", d->mean, saved);
    if (call->save_var && d->var)
        r->at.var = add_array(r, "save_var", d->var, saved);
    else
        r->at.invstd = add_array(r, "save_invstd", d->invstd, saved);
    r->at.lo = call->lo ? add_array(r, "save_mean_lo", d->lo, saved) : NULL;
    r->at.r = add_array(r, "renorm_r", d->r, c);
    r->at.d = add_array(r, "renorm_d", d->d, c);
    r->at.dgamma = add_result(r, "dgamma", !(omit & OMIT_DGAMMA), NULL, c);
    r->at.dbeta = add_result(r, "dbeta", !(omit & OMIT_DBETA), NULL, c);
}

static void track(struct ready *r, const char *name, const float *old, float **running,
                  float **updated) {
    const size_t c = r->data->c;
    if (r->call.elsewhere) {
        *running = add_array(r, name, old, c);
        *updated = add_result(r, name, old != NULL, NULL, c);
    } else {
        *running = add_result(r, name, old != NULL, old, c);
    }
}

static void ready_forward(struct ready *r) {
    const struct data *d = r->data;
    const struct call *call = &r->call;
    const size_t c = d->c, saved = groups_of(call) * c;
    r->at.gamma = add_array(r, "gamma", d->gamma, c);
    r->at.beta = add_array(r, "beta", d->beta, c);
    r->at.mean = add_result(r, "save_mean", !(call->omit & OMIT_MEAN), NULL, saved);
    r->at.invstd = add_result(r, "save_invstd", !(call->omit & OMIT_INVSTD), NULL, saved);
    r->at.lo = add_result(r, "save_mean_lo", call->lo, NULL, saved);
    r->at.var = add_result(r, "save_var", call->save_var, NULL, saved);
    if (!(call->omit & OMIT_RUNNING_MEAN))
        track(r, "running mean", d->running_mean, &r->at.running_mean, &r->at.new_mean);
    if (!(call->omit & OMIT_RUNNING_VAR))
        track(r, "running variance", d->running_var, &r->at.running_var, &r->at.new_var);
    r->at.r = add_result(r, "save_r", call->renorm != NULL, NULL, c);
    r->at.d = add_result(r, "save_d", call->renorm != NULL, NULL, c);
}

/* Both factors of the scale may be missing. */
static void ready_apply(struct ready *r) {
    const struct data *d = r->data;
    const size_t c = d->c;
    float *scale = d->gamma || d->invstd ? test_floats(r->fixture.t, c) : NULL;
    for (size_t i = 0; scale && i < c; i++)
        scale[i] = (d->gamma ? d->gamma[i] : 1) * (d->invstd ? d->invstd[i] : 1);
    r->at.mean = add_array(r, "center", d->mean, c);
    r->at.scale = add_array(r, "scale", scale, c);
    r->at.beta = add_array(r, "shift", d->beta, c);
}

static void ready_tensors(struct ready *r) {
    const struct call *call = &r->call;
    const int backward = call->op == BNORM_OP_BACKWARD;
    struct tensor *x = add_input(r, "x", AT_X, r->data->x), *dy = NULL, *extra = NULL;
    r->at.x = tensor_in(x);
    if (backward) {
        dy = add_input(r, "dy", AT_DY, r->data->dy);
        r->at.dy = tensor_in(dy);
    }
    if (call->op == BNORM_OP_MOMENTS)
        return;
    if (call->residual) {
        extra = add_input(r, "residual", AT_EXTRA, r->data->residual);
        r->at.residual = tensor_in(extra);
    }
    if (backward && call->given_y) {
        extra = add_input(r, "y", AT_EXTRA, call->given_y);
        r->at.y = tensor_in(extra);
    }
    r->y = add_output(r, backward ? "dx" : "y", AT_OUT, call->out, x, dy, extra);
    if (r->y)
        r->at.out = tensor_out(r->y);
    if (backward)
        r->dresidual = add_output(r, "dresidual", AT_DRESIDUAL, call->dresidual, x, dy, extra);
    if (r->dresidual)
        r->at.dresidual = tensor_out(r->dresidual);
}

void ready_new(struct test *t, struct ready *r, const struct call *call, const struct data *data) {
    const size_t c = data->c;
    *r = (struct ready){.call = *call, .data = data};
    fixture_start(&r->fixture, t, (enum side)call->side);
    if (!target_fits(call, call->out))
        r->call.out = OWN;
    if (!target_fits(call, call->dresidual) || call->dresidual == call->out)
        r->call.dresidual = call->dresidual == NOWHERE ? NOWHERE : OWN;
    ready_tensors(r);
    ready_mask(r);
    switch (call->op) {
    case BNORM_OP_MOMENTS:
        r->at.mean = add_result(r, "mean", !(call->omit & OMIT_MEAN), NULL, c);
        r->at.var = add_result(r, "var", !(call->omit & OMIT_VAR), NULL, c);
        break;
    case BNORM_OP_FORWARD_TRAIN:
        ready_forward(r);
        break;
    case BNORM_OP_BACKWARD:
        ready_backward(r);
        break;
    case BNORM_OP_APPLY:
        ready_apply(r);
        break;
    }
    r->at.weights = add_array(r, "weights", data->weights, data->n * data->hw);
    r->at.ws_size = bnorm_workspace(call->op, &call->shape);
    r->at.ws = fixture_workspace(&r->fixture, r->at.ws_size);
    call_arguments(&r->args, &r->call, &r->at);
}

struct results ready_finish(struct test *t, struct ready *r) {
    const struct call *call = &r->call;
    const size_t c = r->data->c, saved = groups_of(call) * c;
    const struct operands *at = &r->at;
    struct results got = {.groups = groups_of(call)};
    fixture_check(&r->fixture);
    if (call->op == BNORM_OP_BACKWARD) {
        if (at->mask && memcmp(at->mask, call->given_mask, bnorm_mask_size(&call->shape)) != 0)
            test_fail(t, "bnorm_backward changed the mask");
    } else if (at->mask) {
        got.mask_bytes = bnorm_mask_size(&call->shape);
        got.mask = test_alloc(t, got.mask_bytes);
        memcpy(got.mask, at->mask, got.mask_bytes);
    }
    const int forward = call->op == BNORM_OP_FORWARD_TRAIN || call->op == BNORM_OP_MOMENTS;
    const struct {
        const float *from;
        float **to;
        size_t count;
    } arrays[] = {
        {forward ? at->mean : NULL, &got.mean, saved},
        {forward ? at->var : NULL, &got.var, saved},
        {forward ? at->lo : NULL, &got.lo, saved},
        {forward ? at->invstd : NULL, &got.invstd, saved},
        {forward ? at->r : NULL, &got.r, c},
        {forward ? at->d : NULL, &got.d, c},
        {at->new_mean ? at->new_mean : at->running_mean, &got.running_mean, c},
        {at->new_var ? at->new_var : at->running_var, &got.running_var, c},
        {at->dgamma, &got.dgamma, c},
        {at->dbeta, &got.dbeta, c},
    };
    for (size_t i = 0; i < COUNT_OF(arrays); i++)
        if (arrays[i].from)
            *arrays[i].to = copy_floats(t, arrays[i].from, arrays[i].count);
    if (r->y) {
        struct tensor y = *r->y; /* which may lie on a tensor of another type */
        bnorm_shape shape = call->shape;
        y.dtype = shape.dtype = y_type(call);
        const int zero = y.dtype > BNORM_F16 ? call->y_quant.zero_point : 0;
        *(call->op == BNORM_OP_BACKWARD ? &got.dx : &got.y) =
            rearrange(t, &shape, &y, (float)zero, "y or dx");
    }
    if (r->dresidual)
        got.dresidual = rearrange(t, &call->shape, r->dresidual, 0, "dresidual");
    fixture_end(&r->fixture);
    return got;
}

static const char *place_text(const struct tensor *x, char text[64]) {
    if (!x)
        return "none";
    snprintf(text, 64, "(%zu, %zu, %zu)", x->run_stride, x->image_stride,
             (size_t)((uintptr_t)x->data % 64));
    return text;
}

void ready_say(struct test *t, const struct ready *r, const bnorm_exec *exec) {
    char text[320], x[64], y[64];
    test_context(t,
                 "%s, %s memory=%d threads=%zu%s, guard %s, strides (run, image, address mod 64) x "
                 "%s %s %s",
                 call_text(&r->call, text), bnorm_isa_name(exec->isa), (int)exec->memory,
                 exec->threads, exec->denormals ? " flush" : "",
                 r->fixture.side == SIDE_START ? "before" : "after",
                 place_text(&r->fixture.items[0].tensor, x),
                 r->call.op == BNORM_OP_BACKWARD ? "dx" : "y", place_text(r->y, y));
}

struct results run_call(struct test *t, const struct call *call, const struct data *data,
                        const bnorm_exec *exec) {
    struct ready r;
    ready_new(t, &r, call, data);
    ready_say(t, &r, exec);
    check_status(t, "the call", call_run(&r.args, exec), BNORM_OK);
    return ready_finish(t, &r);
}

struct call on_floats(const struct call *call) {
    struct call plain = *call;
    plain.shape.dtype = BNORM_F32;
    plain.y_dtype = BNORM_Y_SAME;
    plain.out = plain.dresidual = OWN;
    plain.dense = 1;
    plain.at = NULL;
    return plain;
}

struct results run_scalar(struct test *t, const struct call *call, const struct data *data) {
    const bnorm_exec scalar = {.isa = scalar_isa()};
    const struct call plain = on_floats(call);
    return run_call(t, &plain, data, &scalar);
}

struct results run_sliced(struct test *t, const struct call *call, const struct data *data,
                          const bnorm_exec *exec) {
    const bnorm_shape *shape = &call->shape;
    const size_t count = shape_count(shape), image = shape_runs(shape) * shape_len(shape);
    const size_t step = shape->layout == BNORM_NHWC ? shape->c : image;
    const struct placement place = {.side = (enum side)call->side};
    const float nan_value = bits_float(NAN_BITS);
    float *const dense[3] = {arrange(t, shape, data->x, nan_value), NULL,
                             arrange(t, shape, data->residual, nan_value)};
    struct ready r;
    struct tensor slices[3];
    bnorm_shape wide = *shape;
    wide.c = 3 * (shape->c_block ? shape_runs(shape) * shape->c_block : shape->c);
    ready_new(t, &r, call, data);
    struct tensor *const all = fixture_tensor(&r.fixture, "wide", &wide, &place, NULL);
    for (size_t k = 0; k < 3; k++) {
        slices[k] = *all;
        slices[k].data = (char *)all->data + k * step * dtype_size(shape->dtype);
        slices[k].given_run_stride = all->run_stride;
        slices[k].given_image_stride = all->image_stride;
        if (dense[k])
            tensor_put(&slices[k], shape, dense[k]);
    }
    r.at.x = tensor_in(&slices[0]);
    r.at.out = tensor_out(&slices[1]);
    r.at.residual = tensor_in(&slices[2]);
    r.y = &slices[1];
    call_arguments(&r.args, &r.call, &r.at);
    ready_say(t, &r, exec);
    check_status(t, "the call", call_run(&r.args, exec), BNORM_OK);
    float *got = test_floats(t, count);
    for (size_t k = 0; k < 3; k += 2) {
        tensor_get(&slices[k], shape, got);
        check_bits(t, k ? "the residual" : "x", got, dense[k], count);
    }
    return ready_finish(t, &r);
}

unsigned char *snapshot(struct test *t, const struct fixture *f) {
    size_t size = 1;
    for (size_t i = 0; i < f->count; i++)
        size += f->items[i].tensor.buffer.bytes;
    unsigned char *bytes = test_alloc(t, size), *p = bytes;
    for (size_t i = 0; i < f->count; i++) {
        const struct buffer *b = &f->items[i].tensor.buffer;
        memcpy(p, b->data, b->bytes);
        p += b->bytes;
    }
    return bytes;
}

void check_snapshot(struct test *t, const struct fixture *f, const unsigned char *before) {
    for (size_t i = 0; i < f->count; i++) {
        const struct buffer *b = &f->items[i].tensor.buffer;
        if (memcmp(before, b->data, b->bytes) != 0)
            test_fail(t, "the call was refused but wrote %s", f->items[i].name);
        buffer_check(t, b, f->items[i].name);
        before += b->bytes;
    }
}

static void check_both(struct test *t, const char *what, const float *got, const float *want,
                       size_t count) {
    if (got && want)
        check_bits(t, what, got, want, count);
}

void check_results(struct test *t, const struct results *got, const struct results *want,
                   const struct data *data) {
    const size_t count = data_count(data), c = data->c;
    const size_t saved = c * (got->groups ? got->groups : 1);
    check_both(t, "mean", got->mean, want->mean, saved);
    check_both(t, "var", got->var, want->var, saved);
    check_both(t, "mean_lo", got->lo, want->lo, saved);
    check_both(t, "invstd", got->invstd, want->invstd, saved);
    check_both(t, "r", got->r, want->r, c);
    check_both(t, "d", got->d, want->d, c);
    check_both(t, "running mean", got->running_mean, want->running_mean, c);
    check_both(t, "running variance", got->running_var, want->running_var, c);
    check_both(t, "dgamma", got->dgamma, want->dgamma, c);
    check_both(t, "dbeta", got->dbeta, want->dbeta, c);
    check_both(t, "y", got->y, want->y, count);
    check_both(t, "dresidual", got->dresidual, want->dresidual, count);
    check_both(t, "dx", got->dx, want->dx, count);
    if (got->mask && want->mask)
        check_bytes(t, "mask", got->mask, want->mask, want->mask_bytes);
}

void round_results(struct results *results, const struct data *data, bnorm_dtype dtype) {
    round_floats(dtype, results->y, data_count(data));
    round_floats(dtype, results->dx, data_count(data));
    round_floats(dtype, results->dresidual, data_count(data));
}

void data_take(struct data *d, const struct results *saved) {
    d->mean = saved->mean;
    d->invstd = saved->invstd;
    d->lo = saved->lo;
    d->r = saved->r;
    d->d = saved->d;
}

struct call random_call(struct test *t, bnorm_op op, const bnorm_shape *shape) {
    struct rng *r = &t->rng;
    struct call call = {
        .op = op,
        .shape = *shape,
        .act = type_act(t, rng_below(r, ALL_ACT_KINDS)),
        .eps = 1e-5,
        .rate = .1,
        .variance = BNORM_VARIANCE_SAMPLE,
        .frozen = op == BNORM_OP_BACKWARD && rng_below(r, 4) == 0,
        .residual = (int)rng_below(r, 2),
        .lo = (int)rng_below(r, 2),
        .dense = rng_below(r, 3) == 0,
        .side = (int)rng_below(r, 2),
        .padding = (int)rng_below(r, 3),
    };
    random_targets(r, &call);
    return call;
}

bnorm_act random_mask_act(struct rng *r) {
    static const bnorm_act_kind kinds[] = {BNORM_ACT_RELU, BNORM_ACT_CLAMP, BNORM_ACT_LEAKY_RELU};
    bnorm_act act = random_act(r, kinds[rng_below(r, 3)]);
    if (act.kind == BNORM_ACT_LEAKY_RELU) {
        static const float slopes[] = {0, -.25f, .125f, 3};
        const size_t i = rng_below(r, 6);
        act.a = i < 4 ? slopes[i] : act.a;
    }
    return act;
}

int act_has_mask(bnorm_act act) {
    return act.kind == BNORM_ACT_RELU || act.kind == BNORM_ACT_CLAMP ||
           act.kind == BNORM_ACT_LEAKY_RELU;
}

int y_tells_argument(bnorm_act act) {
    return act_has_mask(act) && (act.kind != BNORM_ACT_LEAKY_RELU || act.a > 0);
}

/* ---------------------------------------------------------------------------------------------- */
/* Problems                                                                                       */

void problem_solve(struct test *t, struct problem *p) {
    p->want = run_scalar(t, &p->call, &p->data);
    if (is_scalar(t))
        check_oracle(t, &p->call, &p->data, NULL, &p->want);
}

void problem_check(struct test *t, const struct problem *p, const struct call *call,
                   const bnorm_exec *exec) {
    bnorm_exec own = *exec;
    own.denormals = p->denormals;
    const struct results got = run_call(t, call, &p->data, &own);
    check_results(t, &got, &p->want, &p->data);
}

void problem_check_sides(struct test *t, const struct problem *p, const struct call *call) {
    struct call one = *call;
    for (one.side = SIDE_START; one.side <= SIDE_END; one.side++) {
        const bnorm_exec exec = type_exec(t, rng_below(&t->rng, 20));
        problem_check(t, p, &one, &exec);
    }
}

void problem_check_shifts(struct test *t, const struct problem *p, size_t shifts, size_t step) {
    const bnorm_exec exec = {.isa = t->isa};
    struct placement at[AT_COUNT];
    struct call one = p->call;
    size_t i = rng_below(&t->rng, step);
    one.out = one.dresidual = OWN;
    one.at = at;
    for (one.side = SIDE_START; one.side <= SIDE_END; one.side++)
        for (size_t which = 0; which <= AT_COUNT; which++)
            for (size_t shift = 0; shift < shifts; shift++, i++) {
                if (p->call.op != BNORM_OP_BACKWARD && (which == AT_DY || which == AT_DRESIDUAL))
                    break;
                if (i % step)
                    continue;
                for (size_t k = 0; k < AT_COUNT; k++)
                    at[k] =
                        (struct placement){.side = (enum side)one.side,
                                           .shift = which == k || which == AT_COUNT ? shift : 0};
                problem_check(t, p, &one, &exec);
            }
}

/* ---------------------------------------------------------------------------------------------- */
/* The oracle                                                                                     */

#define U   0x1p-24
#define ETA 0x1p-149 /* what a rounding loses to underflow */

/* The data's order with the bounds of the call's own layout: of rows where it has rows, as blocks
 * of channels are, whatever their number. */
static bnorm_shape oracle_shape(const bnorm_shape *shape) {
    bnorm_shape plain = plain_shape(shape);
    plain.c_block = shape->layout == BNORM_NHWC || shape->c_block > 1;
    return plain;
}

double *exact_argument(struct test *t, const struct call *call, const struct data *d) {
    const bnorm_shape plain = plain_shape(&call->shape);
    const size_t count = data_count(d), c = d->c;
    double *v = test_doubles(t, count);
    double *const center = d->mean ? to_double(t, d->mean, c) : test_doubles(t, c);
    double *const scale = test_doubles(t, 2 * c), *const shift = scale + c;
    for (size_t i = 0; i < c; i++) {
        const double gamma = d->gamma ? (double)d->gamma[i] : 1;
        center[i] += d->lo && call->lo ? (double)d->lo[i] : 0;
        scale[i] = gamma * (d->r ? (double)d->r[i] : 1) * (d->invstd ? (double)d->invstd[i] : 1);
        shift[i] = (d->d ? gamma * (double)d->d[i] : 0) + (d->beta ? (double)d->beta[i] : 0);
    }
    const struct oracle_affine affine = {
        .center = center,
        .scale = scale,
        .shift = shift,
        .residual = call->residual ? to_double(t, d->residual, count) : NULL,
    };
    oracle_apply(&plain, to_double(t, d->x, count), &affine, v, test_doubles(t, count), NULL);
    return v;
}

void avoid_kinks(struct test *t, const struct call *call, struct data *d, double margin) {
    const double *v = exact_argument(t, call, d);
    for (size_t i = 0; i < data_count(d); i++) {
        const size_t c = i / d->hw % d->c;
        const double gamma = d->gamma ? (double)d->gamma[c] : 1;
        const double scale = fabs(gamma * (d->r ? (double)d->r[c] : 1) * (double)d->invstd[c]);
        const double shift =
            fabs(d->d ? gamma * (double)d->d[c] : 0) + fabs(d->beta ? (double)d->beta[c] : 0);
        /* Forward may have used a mean that is better by its rounding to float. */
        const double rounding =
            0x1p-20 *
            (scale * (fabs((double)d->x[i]) + fabs((double)d->mean[c])) + shift + fabs(v[i]) + 1);
        if (oracle_kink_distance(call->act, v[i]) <= fmax(rounding, margin))
            d->dy[i] = 0;
    }
}

static struct oracle_stats new_stats(struct test *t, size_t c) {
    return (struct oracle_stats){test_doubles(t, c), test_doubles(t, c), test_doubles(t, c),
                                 test_doubles(t, c)};
}

static void check_apply(struct test *t, const struct call *call, const struct data *d,
                        const struct results *got) {
    const bnorm_shape shape = oracle_shape(&call->shape);
    const size_t count = data_count(d), c = d->c;
    double *y = test_doubles(t, count), *bound = test_doubles(t, count);
    double *scale = to_double(t, d->gamma ? d->gamma : d->invstd, c);
    for (size_t i = 0; d->gamma && d->invstd && i < c; i++)
        scale[i] = (double)(d->gamma[i] * d->invstd[i]);
    const struct oracle_affine affine = {
        .center = to_double(t, d->mean, c),
        .scale = scale,
        .shift = to_double(t, d->beta, c),
        .residual = call->residual ? to_double(t, d->residual, count) : NULL,
        .act = call->act,
    };
    oracle_apply(&shape, to_double(t, d->x, count), &affine, NULL, y, bound);
    for (size_t i = 0; i < count; i++)
        check_near(t, "y", i, got->y[i], y[i], bound[i]);
}

/* With the rounding to float. */
static void check_rounded(struct test *t, const char *what, size_t i, const float *got, double want,
                          double bound) {
    if (got)
        check_near(t, what, i, got[i], want, bound + U * fabs(want) + ETA);
}

static void check_moments(struct test *t, const struct call *call, const struct data *d,
                          const struct results *got) {
    const bnorm_shape shape = oracle_shape(&call->shape);
    const struct oracle_stats e = new_stats(t, d->c);
    oracle_moments(&shape, to_double(t, d->x, data_count(d)), &e);
    for (size_t i = 0; i < d->c; i++) {
        check_rounded(t, "mean", i, got->mean, e.mean[i], e.mean_bound[i]);
        check_rounded(t, "var", i, got->var, e.var[i], e.var_bound[i]);
    }
}

/* Four roundings in double, one to float. */
static void check_running(struct test *t, const char *what, size_t i, const float *got,
                          const float *before, double batch, double bound, double rate) {
    const double old = before ? (double)before[i] : 0;
    check_rounded(t, what, i, got, oracle_running(old, batch, rate),
                  fabs(rate) * bound +
                      0x1p-51 * (fabs(old) + fabs(rate) * (fabs(old) + fabs(batch))));
}

static void check_train(struct test *t, const struct call *call, const struct data *d,
                        const struct results *got) {
    const bnorm_shape shape = oracle_shape(&call->shape);
    const size_t count = data_count(d), c = d->c;
    const struct oracle_train train = {
        .gamma = to_double(t, d->gamma, c),
        .beta = to_double(t, d->beta, c),
        .residual = call->residual ? to_double(t, d->residual, count) : NULL,
        .eps = call->eps,
        .act = call->act,
    };
    const struct oracle_train_out e = {
        .stats = new_stats(t, c),
        .invstd = test_doubles(t, c),
        .invstd_bound = test_doubles(t, c),
        .y = test_doubles(t, count),
        .y_bound = test_doubles(t, count),
    };
    oracle_train(&shape, to_double(t, d->x, count), &train, &e);
    const double factor = oracle_variance_factor(call->variance, (double)d->n * (double)d->hw);
    for (size_t i = 0; i < c; i++) {
        const double mean = e.stats.mean[i], mean_bound = e.stats.mean_bound[i];
        check_rounded(t, "save_invstd", i, got->invstd, e.invstd[i], e.invstd_bound[i]);
        check_rounded(t, "save_mean", i, got->mean, mean, mean_bound);
        check_rounded(t, "save_var", i, got->var, e.stats.var[i], e.stats.var_bound[i]);
        if (got->mean && got->lo) {
            const double both = (double)got->mean[i] + (double)got->lo[i];
            const double bound = mean_bound + 2 * U * U * fabs(mean) + 2 * ETA;
            if (!(fabs(both - mean) <= bound))
                test_fail(t, "save_mean + save_mean_lo[%zu] is %.17g, expected %.17g within %.3g",
                          i, both, mean, bound);
        }
        check_running(t, "running mean", i, got->running_mean, d->running_mean, mean, mean_bound,
                      call->rate);
        check_running(t, "running variance", i, got->running_var, d->running_var,
                      e.stats.var[i] * factor, e.stats.var_bound[i] * factor, call->rate);
    }
    for (size_t i = 0; i < count; i++)
        check_near(t, "y", i, got->y[i], e.y[i], e.y_bound[i]);
}

struct oracle_grad_out oracle_gradient(struct test *t, const struct call *call,
                                       const struct data *d, const double *v) {
    const bnorm_shape shape = oracle_shape(&call->shape);
    const size_t count = data_count(d), c = d->c;
    double *mean = to_double(t, d->mean, c);
    for (size_t i = 0; i < c; i++)
        mean[i] += call->lo && d->lo ? (double)d->lo[i] : 0;
    const struct oracle_grad grad = {
        .gamma = to_double(t, d->gamma, c),
        .beta = to_double(t, d->beta, c),
        .mean = mean,
        .mean_hi = to_double(t, d->mean, c),
        .invstd = to_double(t, d->invstd, c),
        .v = v ? v : exact_argument(t, call, d),
        .frozen = call->frozen,
        .act = call->act,
    };
    const struct oracle_grad_out out = {
        test_doubles(t, c),     test_doubles(t, c),     test_doubles(t, c),
        test_doubles(t, c),     test_doubles(t, count), test_doubles(t, count),
        test_doubles(t, count), test_doubles(t, count),
    };
    oracle_backward(&shape, to_double(t, d->x, count), to_double(t, d->dy, count), &grad, &out);
    return out;
}

static void check_near_all(struct test *t, const char *what, const float *got, const double *want,
                           const double *bound, size_t count) {
    for (size_t i = 0; got && i < count; i++)
        check_near(t, what, i, got[i], want[i], bound[i]);
}

void check_oracle(struct test *t, const struct call *call, const struct data *data, const double *v,
                  const struct results *got) {
    switch (call->op) {
    case BNORM_OP_MOMENTS:
        check_moments(t, call, data, got);
        return;
    case BNORM_OP_FORWARD_TRAIN:
        check_train(t, call, data, got);
        return;
    case BNORM_OP_APPLY:
        check_apply(t, call, data, got);
        return;
    case BNORM_OP_BACKWARD:
        break;
    }
    const struct oracle_grad_out e = oracle_gradient(t, call, data, v);
    check_near_all(t, "dbeta", got->dbeta, e.dbeta, e.dbeta_bound, data->c);
    check_near_all(t, "dgamma", got->dgamma, e.dgamma, e.dgamma_bound, data->c);
    check_near_all(t, "dresidual", got->dresidual, e.g, e.g_bound, data_count(data));
    check_near_all(t, "dx", got->dx, e.dx, e.dx_bound, data_count(data));
}
