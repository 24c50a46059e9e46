/* SPDX-License-Identifier: MIT */
#include "rows.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "plain.h"
#include "sleef.h"

/* The roof has counters of its own. */
static const char *const rival_names[BENCH_RIVALS] = {
    [BENCH_OVER_F32] = "over_f32",     [BENCH_OVER_PLAIN] = "over_plain",
    [BENCH_OVER_BARE] = "over_bare",   [BENCH_OVER_BYTES] = "over_bytes",
    [BENCH_OVER_SLEEF] = "over_sleef", [BENCH_OVER_CALLS] = "over_calls",
    [BENCH_OVER_COPY] = "over_copy",
};

enum { MAX_ENTRIES = 256 };
static const size_t cache_bytes = (size_t)1 << 20, memory_bytes = (size_t)64 << 20;
/* The results of larger problems than this are those of smaller ones of the same kind. */
enum { CHECK_N = 3, CHECK_HW = 1000 };
static const size_t warm_up_elements = (size_t)1 << 20;

/* ---------------------------------------------------------------------------------------------- */
/* The list */

enum { NHWC = 1 << BNORM_NHWC, NCHW = 1 << BNORM_NCHW, BOTH = NHWC | NCHW };

static const enum bench_op ops[] = {BENCH_INFERENCE, BENCH_TRAINING, BENCH_BACKWARD};
enum { OPS = sizeof ops / sizeof ops[0] };

static const bnorm_act relu = {.kind = BNORM_ACT_RELU};

typedef struct list {
    bench_entry *entries;
    size_t count;
} list;

static void add(list *l, bench_entry entry) {
    if (l->count < MAX_ENTRIES)
        l->entries[l->count++] = entry;
}

/* One more type of an op that is on the screen. */
static void add_type(list *l, enum bench_op op, bnorm_dtype dtype) {
    const bench_entry e = {
        .group = BENCH_TYPES,
        .op = op,
        .form = {.dtype = dtype},
        .layouts = BOTH,
        .rivals = {BENCH_OVER_ROOF, dtype == BNORM_F32 ? BENCH_OVER_NOTHING : BENCH_OVER_F32},
        .on_screen = 1,
        .claims = dtype == BNORM_F32                            ? BENCH_CLAIMS_NOTHING
                  : op == BENCH_INFERENCE && dtype <= BNORM_F16 ? BENCH_CLAIMS_ALL_SETS
                                                                : BENCH_CLAIMS_BEST};
    add(l, e);
}

static void add_types(list *l) {
    for (int op = 0; op < BENCH_OPS; op++)
        for (bnorm_dtype dtype = BNORM_F32; dtype <= BNORM_S8; dtype++)
            if (dtype == BNORM_F32 || op == BENCH_INFERENCE ||
                (dtype <= BNORM_F16 && op != BENCH_INFERENCE_RELU))
                add_type(l, (enum bench_op)op, dtype);
    bench_entry e = {.group = BENCH_TYPES,
                     .op = BENCH_INFERENCE,
                     .layouts = BOTH,
                     .rivals = {BENCH_OVER_ROOF, BENCH_OVER_F32},
                     .claims = BENCH_CLAIMS_BEST};
    e.form = (bench_form){.dtype = BNORM_U8};
    add(l, e);
    e.form = (bench_form){.dtype = BNORM_BF16, .y_dtype = BNORM_Y_F32};
    add(l, e);
    e.claims = BENCH_CLAIMS_ALL_SETS;
    for (bnorm_dtype dtype = BNORM_BF16; dtype <= BNORM_F16; dtype++)
        for (int residual = 0; residual < 2; residual++) {
            e.form = (bench_form){.dtype = dtype, .act = relu, .residual = residual};
            add(l, e);
        }
}

static void add_blocked(list *l) {
    bench_entry e = {.group = BENCH_BLOCKED, .layouts = NCHW, .rivals = {BENCH_OVER_PLAIN}};
    for (size_t block = 8; block <= 16; block *= 2)
        for (bnorm_dtype dtype = BNORM_F32; dtype <= BNORM_BF16; dtype++)
            for (e.fewer = 0; e.fewer <= 3; e.fewer += 3)
                for (size_t i = 0; i < OPS; i++) {
                    e.op = ops[i];
                    e.form = (bench_form){.dtype = dtype, .c_block = block};
                    /* One combination of each kind. */
                    const int claimed = e.fewer ? block == 16 && dtype == BNORM_F32
                                                : (block == 16) == (dtype == BNORM_F32) || i == 0;
                    e.claims = claimed ? BENCH_CLAIMS_BEST : BENCH_CLAIMS_NOTHING;
                    add(l, e);
                }
}

static void add_places(list *l) {
    bench_entry e = {.group = BENCH_PLACES, .rivals = {BENCH_OVER_PLAIN}};
    for (int padded = 0; padded < 2; padded++)
        for (bnorm_dtype dtype = BNORM_F32; dtype <= BNORM_BF16; dtype++)
            for (size_t i = 0; i < OPS; i++) {
                e.op = ops[i];
                e.layouts = padded ? NCHW : NHWC;
                e.rivals[1] = i == 0 && dtype == BNORM_F32 ? BENCH_OVER_COPY : BENCH_OVER_NOTHING;
                e.form = (bench_form){.dtype = dtype, .place = padded ? BENCH_PADDED : BENCH_SLICE};
                e.claims = dtype == BNORM_F32 ? BENCH_CLAIMS_BEST : BENCH_CLAIMS_NOTHING;
                add(l, e);
            }
}

/* Forms of the op without and with residual and mask. */
static void add_epilogues(list *l) {
    bench_entry e = {.group = BENCH_EPILOGUES,
                     .layouts = BOTH,
                     .rivals = {BENCH_OVER_BARE, BENCH_OVER_BYTES},
                     .claims = BENCH_CLAIMS_BEST};
    const bnorm_act leaky = {.kind = BNORM_ACT_LEAKY_RELU, .a = 0.1F};
    const bnorm_act relu6 = {.kind = BNORM_ACT_CLAMP, .a = 0, .b = 6};
    const bnorm_act hard_swish = {.kind = BNORM_ACT_HARD_SWISH};
    const bench_form inference[] = {
        {.act = relu},
        {.act = leaky},
        {.act = relu6},
        {.act = hard_swish},
        {.residual = 1},
        {.act = relu, .residual = 1},
        {.act = leaky, .residual = 1},
        {.act = relu, .mask = 1},
    };
    const bench_form training[] = {
        {.act = relu}, {.act = relu, .mask = 1}, {.act = relu, .residual = 1, .mask = 1}};
    for (size_t i = 0; i < sizeof inference / sizeof inference[0]; i++) {
        e.op = BENCH_INFERENCE;
        e.form = inference[i];
        add(l, e);
    }
    for (size_t op = 1; op < OPS; op++)
        for (size_t i = 0; i < sizeof training / sizeof training[0]; i++) {
            e.op = ops[op];
            e.form = training[i];
            add(l, e);
        }
}

static void add_smooth(list *l) {
    bench_entry e = {.group = BENCH_SMOOTH, .layouts = BOTH, .claims = BENCH_CLAIMS_BEST};
    for (bnorm_act_kind kind = BNORM_ACT_SIGMOID; kind <= BNORM_ACT_MISH; kind++)
        for (size_t i = 0; i < OPS; i++) {
            e.op = ops[i];
            e.form = (bench_form){.act = {.kind = kind, .a = 1}};
            e.rivals[0] = BENCH_OVER_BARE;
            e.rivals[1] = i == 0 ? BENCH_OVER_SLEEF : BENCH_OVER_NOTHING;
            e.claims = i == 0 || kind == BNORM_ACT_SILU ? BENCH_CLAIMS_BEST : BENCH_CLAIMS_NOTHING;
            add(l, e);
        }
}

static void add_jobs(list *l) {
    bench_entry e = {.group = BENCH_JOBS, .layouts = BOTH, .rivals = {BENCH_OVER_CALLS}};
    for (int jobs = 0; jobs < BENCH_JOB_LISTS; jobs++)
        for (size_t i = 0; i < OPS; i++) {
            e.op = ops[i];
            e.jobs = (enum bench_job_list)jobs;
            e.claims = BENCH_CLAIMS_BEST;
            add(l, e);
        }
}

static int has_sleef(void) {
    const bnorm_shape shape = {.n = 1, .c = 1, .hw = 1};
    const bnorm_affine affine = {.act.kind = BNORM_ACT_SILU};
    float x = 0, y;
    return bnorm_apply(&shape, (bnorm_in){.data = &x}, (bnorm_out){.data = &y}, &affine, NULL) ==
           BNORM_OK;
}

bench_entry *bench_entries_create(size_t *count, int *unsupported) {
    list l = {calloc(MAX_ENTRIES, sizeof *l.entries), 0};
    if (!l.entries)
        return NULL;
    *unsupported = !has_sleef();
    add_types(&l);
    add_blocked(&l);
    add_places(&l);
    add_epilogues(&l);
    if (!*unsupported)
        add_smooth(&l);
    add_jobs(&l);
    *count = l.count;
    return l.entries;
}

/* ---------------------------------------------------------------------------------------------- */
/* Pairs */

static enum bench_column column_of(size_t elements) {
    const size_t bytes = elements * sizeof(float);
    return bytes <= cache_bytes    ? BENCH_CACHE
           : bytes >= memory_bytes ? BENCH_MEMORY
                                   : BENCH_BETWEEN;
}

bench_row bench_row_make(const bench_entry *entry, bnorm_layout layout, const bench_shape *shape,
                         const bnorm_isa *isa) {
    bench_row r = {.entry = entry,
                   .layout = layout,
                   .shape = shape,
                   .n = shape->n,
                   .c = shape->c > entry->fewer ? shape->c - entry->fewer : shape->c,
                   .hw = shape->hw,
                   .isa = isa};
    r.column = column_of(shape->n * shape->c * shape->hw);
    if (entry->form.place == BENCH_SLICE) /* its buffer is four times as large */
        r.n = (r.n + 1) / 2;
    while (r.rivals < BENCH_MAX_RIVALS && entry->rivals[r.rivals])
        r.rivals++;
    return r;
}

int bench_row_is_sensible(const bench_row *r) {
    const bench_form *f = &r->entry->form;
    const size_t run = r->layout == BNORM_NHWC ? r->c : r->hw;
    return f->c_block ? r->c >= 2 * f->c_block : f->place == BENCH_DENSE || run >= 16;
}

static bench_form rival_form(const bench_form *form, enum bench_rival rival) {
    bench_form f = *form;
    switch (rival) {
    case BENCH_OVER_F32:
        f.dtype = BNORM_F32;
        f.y_dtype = BNORM_Y_SAME;
        break;
    case BENCH_OVER_PLAIN:
        f.c_block = 0;
        f.place = BENCH_DENSE;
        break;
    case BENCH_OVER_BARE:
    case BENCH_OVER_BYTES:
        f.act = (bnorm_act){.kind = BNORM_ACT_IDENTITY};
        f.residual = f.mask = 0;
        break;
    default:
        break;
    }
    return f;
}

void bench_row_sizes(const bench_row *r, size_t elements[BENCH_DTYPES], size_t *ws_size) {
    const bench_form *f = &r->entry->form;
    for (size_t i = 0; i <= r->rivals; i++) {
        const bench_form form = i ? rival_form(f, r->entry->rivals[i - 1]) : *f;
        const bench_tensor tensor = {r->layout, r->n, r->c, r->hw, form.c_block, form.place};
        const bnorm_shape shape = {.layout = r->layout,
                                   .dtype = form.dtype,
                                   .n = r->n,
                                   .c = r->c,
                                   .hw = r->hw,
                                   .c_block = form.c_block};
        const size_t span = bench_span(&tensor);
        const size_t train = bnorm_workspace(BNORM_OP_FORWARD_TRAIN, &shape);
        const size_t backward = bnorm_workspace(BNORM_OP_BACKWARD, &shape);
        elements[form.dtype] = span > elements[form.dtype] ? span : elements[form.dtype];
        *ws_size = train > *ws_size ? train : *ws_size;
        *ws_size = backward > *ws_size ? backward : *ws_size;
    }
}

/* ---------------------------------------------------------------------------------------------- */
/* Names */

static const char *const act_names[] = {
    [BNORM_ACT_IDENTITY] = "",
    [BNORM_ACT_RELU] = "_relu",
    [BNORM_ACT_CLAMP] = "_relu6",
    [BNORM_ACT_LEAKY_RELU] = "_leaky_relu",
    [BNORM_ACT_HARD_SWISH] = "_hard_swish",
    [BNORM_ACT_SIGMOID] = "_sigmoid",
    [BNORM_ACT_SILU] = "_silu",
    [BNORM_ACT_TANH] = "_tanh",
    [BNORM_ACT_GELU] = "_gelu",
    [BNORM_ACT_ELU] = "_elu",
    [BNORM_ACT_SOFTPLUS] = "_softplus",
    [BNORM_ACT_MISH] = "_mish",
};

void bench_entry_names(const bench_entry *e, char *op, size_t op_size, char *dtype,
                       size_t dtype_size, char *layout, size_t layout_size) {
    const bench_form *f = &e->form;
    snprintf(op, op_size, "%s%s%s%s", bench_ops[e->op].name, f->residual ? "_residual" : "",
             act_names[f->act.kind], f->mask ? "_mask" : "");
    snprintf(dtype, dtype_size, "%s%s", bench_dtype_names[f->dtype],
             f->y_dtype == BNORM_Y_F32 ? "-f32" : "");
    if (e->group == BENCH_JOBS)
        snprintf(layout, layout_size, "%s", bench_job_list_names[e->jobs]);
    else if (f->c_block)
        snprintf(layout, layout_size, "nChw%zuc%s", f->c_block, e->fewer ? "-part" : "");
    else
        snprintf(layout, layout_size, "%s",
                 f->place == BENCH_SLICE    ? "nhwc-slice"
                 : f->place == BENCH_PADDED ? "nchw-padded"
                                            : "");
}

const char *bench_set_name(const bnorm_isa *isa) {
    return isa ? bnorm_isa_name(isa) : "plain";
}

void bench_row_name(const bench_row *r, char *name, size_t size) {
    char op[64], dtype[16], layout[32];
    bench_entry_names(r->entry, op, sizeof op, dtype, sizeof dtype, layout, sizeof layout);
    if (r->jobs) {
        snprintf(name, size, "jobs_%s/%s/%s/%s/%s/%s-%d-thread%s", op, bench_layouts[r->layout],
                 dtype, bnorm_isa_name(r->isa), layout, bench_jobs_size(r->jobs),
                 r->column == BENCH_1_THREAD ? 1 : 2, r->column == BENCH_1_THREAD ? "" : "s");
        return;
    }
    const char *hw = strchr(r->shape->size, 'x'); /* of "NxC" or "NxCxHxW" */
    hw = hw ? strchr(hw + 1, 'x') : NULL;
    snprintf(name, size, "%s/%s/%s/%s/%s/%zux%zu%s", op,
             layout[0] ? layout : bench_layouts[r->layout], dtype, bench_set_name(r->isa),
             r->shape->network, r->n, r->c, hw ? hw : "");
}

/* ---------------------------------------------------------------------------------------------- */
/* Measuring */

/* What is run against what. */
typedef struct contestant {
    enum { ONE_CALL, PLAIN_LOOP, SLEEF_LOOP, ALL_JOBS, CALL_EACH, COPY_RUNS } kind;
    const bench_row *row;
    const bench_lab *lab;
    bnorm_exec exec;
    bench_problem problem;
    sleef_loop loop;
    roof_traffic copy;
    size_t elements;
} contestant;

static bench_problem make_problem(const bench_row *r, const bench_lab *lab, size_t n, size_t hw,
                                  enum bench_rival rival) {
    const bench_form form = rival_form(&r->entry->form, rival);
    return bench_problem_form(lab->memory, r->entry->op, r->layout, n, r->c, hw, &form);
}

static contestant make_contestant(const bench_row *r, const bench_lab *lab,
                                  enum bench_rival rival) {
    contestant c = {.row = r, .lab = lab, .exec = *lab->exec, .elements = r->n * r->c * r->hw};
    c.exec.isa = r->isa;
    if (r->jobs) {
        const bnorm_exec alone = {.isa = r->isa};
        c.kind = rival == BENCH_OVER_NOTHING ? ALL_JOBS : CALL_EACH;
        c.exec = r->column == BENCH_2_THREADS ? lab->two_threads : alone;
        c.exec.isa = r->isa;
    } else if (rival == BENCH_OVER_SLEEF) {
        c.kind = SLEEF_LOOP;
        c.loop = sleef_loop_of(r->isa, r->entry->form.act.kind);
    } else if (rival == BENCH_OVER_COPY) {
        c.kind = COPY_RUNS;
    } else {
        c.kind = r->isa ? ONE_CALL : PLAIN_LOOP;
        c.problem = make_problem(r, lab, r->n, r->hw, rival);
    }
    return c;
}

/* Of floats. */
static bench_tensor copied_tensor(const bench_row *r) {
    return (bench_tensor){
        .layout = r->layout, .n = r->n, .c = r->c, .hw = r->hw, .place = r->entry->form.place};
}

static void copy_runs(const contestant *c) {
    const bench_memory *memory = c->lab->memory;
    const bench_tensor tensor = copied_tensor(c->row);
    const size_t length = tensor.layout == BNORM_NHWC ? tensor.c : tensor.hw;
    const size_t stride = bench_run_stride(&tensor), end = bench_span(&tensor);
    for (size_t i = 0; i < end; i += stride)
        c->copy(memory->timed.tensor + i, memory->x + i, NULL, length);
}

static void run(const contestant *c) {
    bench_memory *memory = c->lab->memory;
    switch (c->kind) {
    case ONE_CALL:
        bench_run(&c->problem, c->row->isa, &c->exec, &memory->timed);
        break;
    case PLAIN_LOOP:
        plain_run(&c->problem, &memory->timed);
        break;
    case SLEEF_LOOP:
        c->loop(memory->timed.tensor, memory->x, c->elements);
        break;
    case ALL_JOBS:
        bench_jobs_run(c->row->jobs, &c->exec);
        break;
    case CALL_EACH:
        bench_jobs_call_each(c->row->jobs, &c->exec);
        break;
    case COPY_RUNS:
        copy_runs(c);
        break;
    }
}

static enum bench_clock clock_of(const contestant *c) {
    const size_t threads = !c->row->jobs                       ? c->lab->threads
                           : c->row->column == BENCH_2_THREADS ? 2
                                                               : 1;
    return threads == 1 ? BENCH_THREAD : BENCH_WALL;
}

/* By the wall clock, others last as long as other programs keep the cores. What is compared with the
 * roof is a mean all the same, as the roof is one. */
static int fastest_run_counts(const contestant *c) {
    return clock_of(c) == BENCH_WALL && !c->row->entry->on_screen;
}

/* Leaves the caches as its own calls do, and threads awake: on a busy machine the system takes some
 * milliseconds to give them a core. */
static void warm_up(const contestant *c) {
    const double until = bench_seconds(BENCH_WALL) + (fastest_run_counts(c) ? 5e-3 : 0);
    if (c->elements > warm_up_elements)
        return;
    do
        run(c);
    while (bench_seconds(BENCH_WALL) < until);
}

/* Seconds per run while "next" says so. */
static double time_runs(const contestant *c, int (*next)(void *state), void *state) {
    const enum bench_clock clock = clock_of(c);
    const int fastest = fastest_run_counts(c);
    double least = 0;
    size_t runs = 0;
    const double start = bench_seconds(clock);
    for (; next(state); runs++) {
        const double before = fastest ? bench_seconds(clock) : 0;
        run(c);
        if (fastest) {
            const double seconds = bench_seconds(clock) - before;
            least = runs == 0 || seconds < least ? seconds : least;
        }
    }
    return fastest ? least : (bench_seconds(clock) - start) / (double)runs;
}

static int next_of_benchmark(void *state) {
    return shim_keep_running(state);
}

static int next_of_count(void *left) {
    size_t *count = left;
    return (*count)-- > 0;
}

static double time_rival(const contestant *c, size_t iterations) {
    warm_up(c);
    return time_runs(c, next_of_count, &iterations);
}

/* By the fastest method; those that stream need aligned runs. */
static double time_copy(contestant *c, size_t iterations) {
    const bench_tensor tensor = copied_tensor(c->row);
    const int aligned = bench_run_stride(&tensor) % 16 == 0;
    double least = 0;
    const roof_method *method;
    for (size_t i = 0; (method = roof_method_at(i)) != NULL; i++) {
        if (method->triad || !method->usable() || (!aligned && strstr(method->name, "stream")))
            continue;
        c->copy = method->run;
        const double seconds = time_rival(c, iterations);
        least = least <= 0 || seconds < least ? seconds : least;
    }
    return least;
}

static size_t lesser(size_t a, size_t b) {
    return a < b ? a : b;
}

static int is_right(const bench_row *r, const bench_lab *lab, const contestant *c) {
    if (r->jobs)
        return bench_jobs_check(r->jobs, &c->exec);
    if (bench_form_is_plain(&r->entry->form))
        return bench_check(&c->problem, lab->memory, &c->exec);
    const bench_problem problem =
        make_problem(r, lab, lesser(r->n, CHECK_N), lesser(r->hw, CHECK_HW), BENCH_OVER_NOTHING);
    return bench_check(&problem, lab->memory, &c->exec);
}

/* Seconds for the bytes that the form has more than the bare op. */
static double roof_seconds_of_more(const contestant *c, const contestant *bare) {
    const double more = bench_traffic(&c->problem) - bench_traffic(&bare->problem);
    const double rate =
        more > 0 ? roof_measure(c->lab->roof, &bare->problem, c->lab->memory->timed.tensor) : 0;
    return rate > 0 ? more / rate : 0;
}

int bench_row_is_checked(const bench_row *r) {
    return r->first->state != BENCH_UNCHECKED;
}

int bench_row_measure(bench_row *r, const bench_lab *lab, shim_state *state) {
    const size_t iterations = shim_iterations(state);
    const contestant own = make_contestant(r, lab, BENCH_OVER_NOTHING);
    if (!bench_row_is_checked(r))
        r->first->state = is_right(r, lab, &own) ? BENCH_RIGHT : BENCH_WRONG;
    if (r->first->state == BENCH_WRONG) {
        shim_error(state, "wrong result");
        return 0;
    }
    const double bytes = r->jobs ? bench_jobs_traffic(r->jobs) : bench_traffic(&own.problem);
    const double roof = r->entry->rivals[0] == BENCH_OVER_ROOF
                            ? roof_measure(lab->roof, &own.problem, lab->memory->timed.tensor)
                            : 0;
    warm_up(&own);
    const double seconds = time_runs(&own, next_of_benchmark, state);
    double figures[BENCH_FIGURES] = {0}, bare_seconds = 0;
    for (size_t i = 0; i < r->rivals; i++) {
        const enum bench_rival kind = r->entry->rivals[i];
        contestant rival = make_contestant(r, lab, kind);
        if ((rival.kind == SLEEF_LOOP && !rival.loop) || (kind == BENCH_OVER_ROOF && roof <= 0))
            continue;
        double other;
        if (kind == BENCH_OVER_ROOF)
            other = bytes / roof;
        else if (kind == BENCH_OVER_BYTES)
            other = bare_seconds + roof_seconds_of_more(&own, &rival);
        else if (kind == BENCH_OVER_COPY)
            other = time_copy(&rival, iterations);
        else
            other = time_rival(&rival, iterations);
        if (kind == BENCH_OVER_BARE)
            bare_seconds = other;
        figures[i] = seconds / other;
        if (rival_names[kind])
            shim_counter(state, rival_names[kind], figures[i]);
    }
    bench_samples_add(&r->samples, iterations, seconds, figures);
    shim_counter(state, "GB/s", bytes / seconds * 1e-9);
    shim_counter(state, "traffic_bytes", bytes);
    if (roof > 0) {
        shim_counter(state, "roof_GB/s", roof * 1e-9);
        shim_counter(state, "roof_pct", 100 * bytes / seconds / roof);
        shim_counter(state, "tensor_bytes", bytes / (double)bench_tensors(&own.problem));
    }
    shim_label(state, r->shape ? r->shape->layer : "");
    return 1;
}

double bench_row_traffic(const bench_row *r) {
    const bench_problem problem = {.op = r->entry->op,
                                   .layout = r->layout,
                                   .n = r->n,
                                   .c = r->c,
                                   .hw = r->hw,
                                   .form = r->entry->form};
    return bench_traffic(&problem);
}
