/* SPDX-License-Identifier: MIT */
#include "pairs.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "sleef.h"

const char *const bench_rival_names[BENCH_RIVALS] = {
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

static void add_types(list *l) {
    bench_entry e = {.group = BENCH_TYPES, .layouts = BOTH, .rivals = {BENCH_OVER_F32}};
    for (bnorm_dtype dtype = BNORM_BF16; dtype <= BNORM_F16; dtype++) {
        e.op = BENCH_INFERENCE;
        e.when = BENCH_WHEN_QUICK_ALL_SETS;
        e.form = (bench_form){.dtype = dtype};
        add(l, e);
        e.form.act = relu;
        add(l, e);
        e.form.residual = 1;
        add(l, e);
        e.form = (bench_form){.dtype = dtype};
        e.when = BENCH_WHEN_QUICK;
        for (size_t i = 1; i < OPS; i++) {
            e.op = ops[i];
            add(l, e);
        }
    }
    e.op = BENCH_INFERENCE;
    e.form = (bench_form){.dtype = BNORM_BF16, .y_dtype = BNORM_Y_F32};
    add(l, e);
    e.form = (bench_form){.dtype = BNORM_S8};
    add(l, e);
    e.form = (bench_form){.dtype = BNORM_U8};
    add(l, e);
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
                    const int quick = e.fewer ? block == 16 && dtype == BNORM_F32
                                              : (block == 16) == (dtype == BNORM_F32) || i == 0;
                    e.when = quick ? BENCH_WHEN_QUICK : BENCH_WHEN_FULL;
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
                e.when = dtype == BNORM_F32 ? BENCH_WHEN_QUICK : BENCH_WHEN_FULL;
                add(l, e);
            }
}

/* Forms of the op without and with residual and mask. */
static void add_epilogues(list *l) {
    bench_entry e = {.group = BENCH_EPILOGUES,
                     .layouts = BOTH,
                     .rivals = {BENCH_OVER_BARE, BENCH_OVER_BYTES},
                     .when = BENCH_WHEN_QUICK};
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
    bench_entry e = {.group = BENCH_SMOOTH, .layouts = BOTH, .when = BENCH_WHEN_QUICK};
    for (bnorm_act_kind kind = BNORM_ACT_SIGMOID; kind <= BNORM_ACT_MISH; kind++)
        for (size_t i = 0; i < OPS; i++) {
            e.op = ops[i];
            e.form = (bench_form){.act = {.kind = kind, .a = 1}};
            e.rivals[0] = BENCH_OVER_BARE;
            e.rivals[1] = i == 0 ? BENCH_OVER_SLEEF : BENCH_OVER_NOTHING;
            e.when = i == 0 || kind == BNORM_ACT_SILU ? BENCH_WHEN_QUICK : BENCH_WHEN_FULL;
            add(l, e);
        }
}

static void add_jobs(list *l) {
    bench_entry e = {.group = BENCH_JOBS, .layouts = BOTH, .rivals = {BENCH_OVER_CALLS}};
    for (int jobs = 0; jobs < BENCH_JOB_LISTS; jobs++)
        for (size_t i = 0; i < OPS; i++) {
            e.op = ops[i];
            e.jobs = (enum bench_job_list)jobs;
            e.when = BENCH_WHEN_QUICK;
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

bench_pair bench_pair_make(const bench_entry *entry, bnorm_layout layout, const bench_shape *shape,
                           const bnorm_isa *isa) {
    bench_pair p = {.entry = entry,
                    .layout = layout,
                    .shape = shape,
                    .n = shape->n,
                    .c = shape->c > entry->fewer ? shape->c - entry->fewer : shape->c,
                    .hw = shape->hw,
                    .isa = isa};
    p.column = column_of(shape->n * shape->c * shape->hw);
    if (entry->form.place == BENCH_SLICE) /* its buffer is four times as large */
        p.n = (p.n + 1) / 2;
    return p;
}

int bench_pair_is_sensible(const bench_pair *p) {
    const bench_form *f = &p->entry->form;
    const size_t run = p->layout == BNORM_NHWC ? p->c : p->hw;
    return f->c_block ? p->c >= 2 * f->c_block : f->place == BENCH_DENSE || run >= 16;
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

void bench_pair_sizes(const bench_pair *p, size_t elements[BENCH_DTYPES], size_t *ws_size) {
    const bench_form *f = &p->entry->form;
    for (int rival = 0; rival < 2; rival++) {
        const bench_form form = rival ? rival_form(f, p->entry->rivals[0]) : *f;
        const bench_tensor tensor = {p->layout, p->n, p->c, p->hw, form.c_block, form.place};
        const bnorm_shape shape = {.layout = p->layout,
                                   .dtype = form.dtype,
                                   .n = p->n,
                                   .c = p->c,
                                   .hw = p->hw,
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

void bench_pair_name(const bench_pair *p, char *name, size_t size) {
    char op[64], dtype[16], layout[32];
    bench_entry_names(p->entry, op, sizeof op, dtype, sizeof dtype, layout, sizeof layout);
    if (p->entry->group == BENCH_JOBS) {
        snprintf(name, size, "jobs_%s/%s/%s/%s/%s/%s-%d-thread%s", op, bench_layouts[p->layout],
                 dtype, bnorm_isa_name(p->isa), layout, bench_jobs_size(p->jobs),
                 p->column == BENCH_1_THREAD ? 1 : 2, p->column == BENCH_1_THREAD ? "" : "s");
        return;
    }
    const char *hw = strchr(p->shape->size, 'x'); /* of "NxC" or "NxCxHxW" */
    hw = hw ? strchr(hw + 1, 'x') : NULL;
    snprintf(name, size, "%s/%s/%s/%s/%s/%zux%zu%s", op,
             layout[0] ? layout : bench_layouts[p->layout], dtype, bnorm_isa_name(p->isa),
             p->shape->network, p->n, p->c, hw ? hw : "");
}

/* ---------------------------------------------------------------------------------------------- */
/* Measuring */

/* What is run against what. */
typedef struct contestant {
    enum { ONE_CALL, SLEEF_LOOP, ALL_JOBS, CALL_EACH, COPY_RUNS } kind;
    const bench_pair *pair;
    const bench_lab *lab;
    bnorm_exec exec;
    bench_problem problem;
    sleef_loop loop;
    roof_traffic copy;
    size_t elements;
} contestant;

static bench_problem make_problem(const bench_pair *p, const bench_lab *lab, size_t n, size_t hw,
                                  enum bench_rival rival) {
    const bench_form form = rival_form(&p->entry->form, rival);
    return bench_problem_form(lab->memory, p->entry->op, p->layout, n, p->c, hw, &form);
}

static contestant make_contestant(const bench_pair *p, const bench_lab *lab,
                                  enum bench_rival rival) {
    contestant c = {.pair = p, .lab = lab, .exec = *lab->exec, .elements = p->n * p->c * p->hw};
    c.exec.isa = p->isa;
    if (p->jobs) {
        const bnorm_exec alone = {.isa = p->isa};
        c.kind = rival == BENCH_OVER_NOTHING ? ALL_JOBS : CALL_EACH;
        c.exec = p->column == BENCH_2_THREADS ? lab->two_threads : alone;
        c.exec.isa = p->isa;
    } else if (rival == BENCH_OVER_SLEEF) {
        c.kind = SLEEF_LOOP;
        c.loop = sleef_loop_of(p->isa, p->entry->form.act.kind);
    } else if (rival == BENCH_OVER_COPY) {
        c.kind = COPY_RUNS;
    } else {
        c.problem = make_problem(p, lab, p->n, p->hw, rival);
    }
    return c;
}

/* Of floats. */
static bench_tensor copied_tensor(const bench_pair *p) {
    return (bench_tensor){
        .layout = p->layout, .n = p->n, .c = p->c, .hw = p->hw, .place = p->entry->form.place};
}

static void copy_runs(const contestant *c) {
    const bench_memory *memory = c->lab->memory;
    const bench_tensor tensor = copied_tensor(c->pair);
    const size_t length = tensor.layout == BNORM_NHWC ? tensor.c : tensor.hw;
    const size_t stride = bench_run_stride(&tensor), end = bench_span(&tensor);
    for (size_t i = 0; i < end; i += stride)
        c->copy(memory->timed.tensor + i, memory->x + i, NULL, length);
}

static void run(const contestant *c) {
    bench_memory *memory = c->lab->memory;
    switch (c->kind) {
    case ONE_CALL:
        bench_run(&c->problem, c->pair->isa, &c->exec, &memory->timed);
        break;
    case SLEEF_LOOP:
        c->loop(memory->timed.tensor, memory->x, c->elements);
        break;
    case ALL_JOBS:
        bench_jobs_run(c->pair->jobs, &c->exec);
        break;
    case CALL_EACH:
        bench_jobs_call_each(c->pair->jobs, &c->exec);
        break;
    case COPY_RUNS:
        copy_runs(c);
        break;
    }
}

static enum bench_clock clock_of(const contestant *c) {
    const size_t threads = !c->pair->jobs                       ? c->lab->threads
                           : c->pair->column == BENCH_2_THREADS ? 2
                                                                : 1;
    return threads == 1 ? BENCH_THREAD : BENCH_WALL;
}

/* Leaves the caches as its own calls do, and threads awake: on a busy machine the system takes some
 * milliseconds to give them a core. */
static void warm_up(const contestant *c) {
    const double until = bench_seconds(BENCH_WALL) + (clock_of(c) == BENCH_WALL ? 5e-3 : 0);
    if (c->elements > warm_up_elements)
        return;
    do
        run(c);
    while (bench_seconds(BENCH_WALL) < until);
}

/* Seconds per run while "next" says so. By the wall clock it is the fastest run that counts, as
 * others last as long as other programs keep the cores. */
static double time_runs(const contestant *c, int (*next)(void *state), void *state) {
    const enum bench_clock clock = clock_of(c);
    double least = 0;
    size_t runs = 0;
    const double start = bench_seconds(clock);
    for (; next(state); runs++) {
        const double before = clock == BENCH_WALL ? bench_seconds(clock) : 0;
        run(c);
        if (clock == BENCH_WALL) {
            const double seconds = bench_seconds(clock) - before;
            least = runs == 0 || seconds < least ? seconds : least;
        }
    }
    return clock == BENCH_WALL ? least : (bench_seconds(clock) - start) / (double)runs;
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
    const bench_tensor tensor = copied_tensor(c->pair);
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

static int is_right(const bench_pair *p, const bench_lab *lab, const contestant *c) {
    if (p->jobs)
        return bench_jobs_check(p->jobs, &c->exec);
    const bench_problem problem =
        make_problem(p, lab, lesser(p->n, CHECK_N), lesser(p->hw, CHECK_HW), BENCH_OVER_NOTHING);
    return bench_check_form(&problem, p->isa, lab->memory, &c->exec);
}

/* Seconds for the bytes that the form has more than the bare op. */
static double roof_seconds_of_more(const contestant *c, const contestant *bare) {
    const double more = bench_traffic(&c->problem) - bench_traffic(&bare->problem);
    const double rate =
        more > 0 ? roof_measure(c->lab->roof, &bare->problem, c->lab->memory->timed.tensor) : 0;
    return rate > 0 ? more / rate : 0;
}

int bench_pair_measure(bench_pair *p, const bench_lab *lab, shim_state *state) {
    const size_t iterations = shim_iterations(state);
    const contestant own = make_contestant(p, lab, BENCH_OVER_NOTHING);
    if (p->state == BENCH_PAIR_UNCHECKED)
        p->state = is_right(p, lab, &own) ? BENCH_PAIR_RIGHT : BENCH_PAIR_WRONG;
    if (p->state == BENCH_PAIR_WRONG) {
        shim_error(state, "wrong result");
        return 0;
    }
    warm_up(&own);
    const double seconds = time_runs(&own, next_of_benchmark, state);
    double figures[BENCH_FIGURES] = {0}, bare_seconds = 0;
    for (size_t i = 0; i < BENCH_MAX_RIVALS && p->entry->rivals[i]; i++) {
        const enum bench_rival kind = p->entry->rivals[i];
        contestant rival = make_contestant(p, lab, kind);
        if (rival.kind == SLEEF_LOOP && !rival.loop)
            continue;
        double other;
        if (kind == BENCH_OVER_BYTES)
            other = bare_seconds + roof_seconds_of_more(&own, &rival);
        else if (kind == BENCH_OVER_COPY)
            other = time_copy(&rival, iterations);
        else
            other = time_rival(&rival, iterations);
        if (kind == BENCH_OVER_BARE)
            bare_seconds = other;
        figures[i] = seconds / other;
        shim_counter(state, bench_rival_names[kind], figures[i]);
    }
    bench_samples_add(&p->samples, iterations, seconds, figures);
    const double bytes = p->jobs ? bench_jobs_traffic(p->jobs) : bench_traffic(&own.problem);
    shim_counter(state, "GB/s", bytes / seconds * 1e-9);
    shim_counter(state, "traffic_bytes", bytes);
    shim_label(state, p->shape ? p->shape->layer : "");
    return 1;
}
