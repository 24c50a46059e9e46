/* SPDX-License-Identifier: MIT
 *
 * How evenly the work of a call is shared, for any number of threads, on any machine: the public
 * functions run with kernels that do no arithmetic but add up the elements that they were asked to
 * read and write, and with a `parallel` that runs the tasks one after another and notes the size
 * of each. Threads are then simulated: each takes the next task in index order as soon as it is
 * free, and waits at the end of every `parallel`; what the call does outside is done by one thread.
 *
 *   imbalance = time of the slowest thread / (all work / threads) - 1 */
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include "bnorm.h"
#include "../bench/shapes.h"
#include "../dispatch/isa.h"
#include "../src/order.h"
#include "../tests/call.h"

enum { MAX_THREADS = 64, PHASES = 16 };
/* Smaller tensors are not judged. */
#define JUDGED_MEGABYTES 1.0
/* Lines of the worst that are printed in any case. */
#define SHOWN 12

/* ---------------------------------------------------------------------------------------------- */
/* Kernels that count: a kernel that is added to the list fails to compile until it has its count_
 * function here. */

enum kernel {
#define X(kernel, args) KERNEL_##kernel,
    BNORM_KERNELS(X)
#undef X
        KERNELS
};

static const char *const kernel_names[] = {
#define X(kernel, args) #kernel,
    BNORM_KERNELS(X)
#undef X
};

static size_t work_done; /* elements, since it was last set to 0 */
static unsigned kernels_seen;

static void add_work(enum kernel kernel, size_t elements) {
    work_done += elements;
    kernels_seen |= 1u << kernel;
}

/* A double is two elements. */
enum { DOUBLES = 2 };

static void count_moments_rows(const bnorm_map_args *a, size_t chains, double *sum, double *m2) {
    (void)chains, (void)sum, (void)m2;
    add_work(KERNEL_moments_rows, a->groups * a->rows * a->lanes);
}

static void count_moments_span(const bnorm_map_args *a, double *sum, double *m2) {
    (void)sum, (void)m2;
    add_work(KERNEL_moments_span, a->groups * a->rows * a->lanes);
}

static void count_moments_tree(const bnorm_map_args *a, double *sum, double *m2) {
    (void)sum, (void)m2;
    add_work(KERNEL_moments_tree, a->groups * a->rows * a->lanes);
}

/* Two tables read, one node per image or leaf written, and two results if they are wanted. */
static void count_blocks(enum kernel kernel, const bnorm_partials *p, size_t c,
                         const double *total) {
    const size_t nodes = bnorm_subtrees(p->first, p->n, p->leaf);
    add_work(kernel, 2 * DOUBLES * c * (nodes * (p->per_image + 1) + (total != NULL)));
}

static void count_merge(const bnorm_partials *p, size_t first, size_t c, double *mean, double *m2) {
    (void)first, (void)m2;
    count_blocks(KERNEL_merge, p, c, mean);
}

/* Four arrays read, two written. */
static void count_merge_pair(const bnorm_pair_args *a, size_t c) {
    (void)a;
    add_work(KERNEL_merge_pair, 6 * DOUBLES * c);
}

static void count_add_blocks(const bnorm_partials *p, size_t first, size_t c, double *sum_g,
                             double *sum_gx) {
    (void)first, (void)sum_gx;
    count_blocks(KERNEL_add_blocks, p, c, sum_g);
}

/* What divisions and roots cost, in elements that pass by in that time: about 10 cycles. */
enum { COEFFICIENTS = 16 };

static void count_coefficients(const bnorm_coefficient_args *a, size_t first, size_t c) {
    (void)a, (void)first;
    add_work(KERNEL_coefficients, COEFFICIENTS * c);
}

static void count_scale_shift(const bnorm_scale_args *a, size_t c) {
    (void)a;
    add_work(KERNEL_scale_shift, 6 * c);
}

static void count_grad_coefficients(const bnorm_grad_coefficient_args *a, size_t first, size_t c) {
    (void)a, (void)first;
    add_work(KERNEL_grad_coefficients, COEFFICIENTS * c);
}

static size_t elements(const bnorm_map_args *a) {
    return a->images * a->groups * a->rows * a->lanes;
}

static void count_apply(enum kernel kernel, const bnorm_map_args *a) {
    add_work(kernel, elements(a) * (a->argument.data ? 3 : 2));
}

static void count_apply_rows(const bnorm_map_args *a) {
    count_apply(KERNEL_apply_rows, a);
}

static void count_apply_span(const bnorm_map_args *a) {
    count_apply(KERNEL_apply_span, a);
}

/* Tensors that a gradient kernel reads for the activation's argument, beside x and dy. */
static size_t extra_tensors(const bnorm_map_args *a) {
    return a->pre == BNORM_PRE_RESIDUAL || a->pre == BNORM_PRE_Y;
}

static void count_sums(enum kernel kernel, const bnorm_map_args *a) {
    add_work(kernel, elements(a) * (2 + extra_tensors(a)));
}

static void count_sums_rows(const bnorm_map_args *a, size_t chains, double *sum_g, double *sum_gx) {
    (void)chains, (void)sum_g, (void)sum_gx;
    count_sums(KERNEL_sums_rows, a);
}

static void count_sums_span(const bnorm_map_args *a, double *sum_g, double *sum_gx) {
    (void)sum_g, (void)sum_gx;
    count_sums(KERNEL_sums_span, a);
}

static void count_sums_tree(const bnorm_map_args *a, double *sum_g, double *sum_gx) {
    (void)sum_g, (void)sum_gx;
    count_sums(KERNEL_sums_tree, a);
}

static void count_dx(enum kernel kernel, const bnorm_map_args *a) {
    const size_t x = a->slope || a->pre == BNORM_PRE_X || a->pre == BNORM_PRE_RESIDUAL;
    const size_t outputs = (a->out.data != NULL) + (size_t)(a->dresidual.data != NULL);
    add_work(kernel, elements(a) * (1 + x + extra_tensors(a) + outputs));
}

static void count_dx_rows(const bnorm_map_args *a) {
    count_dx(KERNEL_dx_rows, a);
}

static void count_dx_span(const bnorm_map_args *a) {
    count_dx(KERNEL_dx_span, a);
}

#define X(kernel, args) .kernel = count_##kernel,
static const bnorm_training counting_training = {BNORM_TRAINING_KERNELS(X)};
static const struct bnorm_isa counting_kernels = {
    .name = "counting", .training = &counting_training, BNORM_INFERENCE_KERNELS(X)};
#undef X

/* ---------------------------------------------------------------------------------------------- */
/* What one call did                                                                              */

/* One call of `parallel`. */
typedef struct phase {
    size_t first, tasks; /* in record.sizes */
    size_t largest, smallest, total;
    unsigned kernels;
} phase;

/* Everything that one call of the library did. */
typedef struct record {
    phase phases[PHASES];
    size_t phase_count;
    size_t serial; /* elements outside `parallel` */
    size_t *sizes; /* elements of each task, those of all phases one after another */
    size_t size_count, size_room;
} record;

static void fail(const char *message) {
    fprintf(stderr, "balance: %s\n", message);
    exit(2);
}

static void add_task(record *r, phase *p, size_t elements) {
    if (r->size_count == r->size_room) {
        r->size_room = r->size_room ? 2 * r->size_room : 1024;
        r->sizes = realloc(r->sizes, r->size_room * sizeof *r->sizes);
        if (!r->sizes)
            fail("out of memory; free some and run again.");
    }
    r->sizes[r->size_count++] = elements;
    p->total += elements;
    p->largest = elements > p->largest ? elements : p->largest;
    p->smallest = elements < p->smallest ? elements : p->smallest;
}

/* The bnorm_parallel of the simulation; pool is the record. */
static void run_and_record(void *pool, void (*task)(void *arg, size_t i), void *arg, size_t count) {
    record *r = pool;
    if (r->phase_count == PHASES)
        fail("a call has more phases than PHASES; raise it in tools/balance.c.");
    phase *p = &r->phases[r->phase_count++];
    *p = (phase){.first = r->size_count, .tasks = count, .smallest = SIZE_MAX};
    r->serial += work_done;
    kernels_seen = 0;
    for (size_t i = 0; i < count; i++) {
        work_done = 0;
        task(arg, i);
        add_task(r, p, work_done);
    }
    work_done = 0;
    p->kernels = kernels_seen;
}

/* ---------------------------------------------------------------------------------------------- */
/* The calls                                                                                      */

enum op { INFERENCE, TRAINING, BACKWARD, OPS };
static const char *const op_names[OPS] = {"inference", "training", "backward"};
static const char *const layout_names[2] = {[BNORM_NHWC] = "nhwc", [BNORM_NCHW] = "nchw"};

/* Tensors are never touched, as no kernel does; arrays of C floats are. */
static struct {
    float *x, *y;
    float *ones, *zeros, *results[4];
    void *ws;
    size_t ws_size;
} memory;

/* The one place where the library is told how many threads there are, 0 = it is not. */
static void set_threads(bnorm_exec *exec, size_t threads) {
    exec->threads = threads;
}

static bnorm_shape shape_of(const bench_shape *s, bnorm_layout layout) {
    return (bnorm_shape){.layout = layout, .dtype = BNORM_F32, .n = s->n, .c = s->c, .hw = s->hw};
}

static bnorm_status run_op(enum op op, const bnorm_shape *shape, const bnorm_exec *exec) {
    static const bnorm_op ops[OPS] = {BNORM_OP_APPLY, BNORM_OP_FORWARD_TRAIN, BNORM_OP_BACKWARD};
    const struct call call = {
        .op = ops[op],
        .shape = *shape,
        .eps = 1e-5,
        .rate = 0.1,
        .variance = BNORM_VARIANCE_SAMPLE,
    };
    const struct operands at = {
        .x = {.data = memory.x},
        .dy = {.data = memory.x},
        .out = {.data = memory.y},
        .gamma = memory.ones,
        .beta = memory.zeros,
        .scale = memory.ones,
        .mean = op == TRAINING ? memory.results[2] : memory.zeros,
        .invstd = op == TRAINING ? memory.results[3] : memory.ones,
        .running_mean = memory.results[0],
        .running_var = memory.results[1],
        .dgamma = memory.results[0],
        .dbeta = memory.results[1],
        .ws = memory.ws,
        .ws_size = memory.ws_size,
    };
    struct call_args args;
    call_arguments(&args, &call, &at);
    return call_run(&args, exec);
}

/* Fills the record, whose room for tasks is used again. */
static void run_call(enum op op, const bnorm_shape *shape, size_t threads, record *r) {
    bnorm_exec exec = {.parallel = run_and_record, .pool = r, .isa = &counting_kernels};
    set_threads(&exec, threads);
    r->phase_count = r->size_count = r->serial = 0;
    work_done = 0;
    const bnorm_status status = run_op(op, shape, &exec);
    if (status)
        fail(bnorm_strerror(status));
    r->serial += work_done;
}

static void create_memory(const bench_shape *shapes, size_t count) {
    size_t elements = 0, channels = 0;
    for (size_t i = 0; i < count; i++) {
        const size_t all = shapes[i].n * shapes[i].c * shapes[i].hw;
        elements = all > elements ? all : elements;
        channels = shapes[i].c > channels ? shapes[i].c : channels;
        for (int layout = 0; layout < 2; layout++)
            for (int op = BNORM_OP_MOMENTS; op <= BNORM_OP_BACKWARD; op++) {
                const bnorm_shape shape = shape_of(&shapes[i], (bnorm_layout)layout);
                const size_t size = bnorm_workspace((bnorm_op)op, &shape);
                memory.ws_size = size > memory.ws_size ? size : memory.ws_size;
            }
    }
    float **const arrays[] = {&memory.ones,       &memory.zeros,      &memory.results[0],
                              &memory.results[1], &memory.results[2], &memory.results[3]};
    int good = 1;
    for (size_t i = 0; i < sizeof arrays / sizeof arrays[0]; i++)
        good &= (*arrays[i] = calloc(channels, sizeof(float))) != NULL;
    good &= (memory.x = malloc(elements * sizeof(float))) != NULL;
    good &= (memory.y = malloc(elements * sizeof(float))) != NULL;
    good &= (memory.ws = calloc(1, memory.ws_size)) != NULL;
    if (!good)
        fail("the largest shape does not fit into memory; give a file with smaller ones.");
    for (size_t i = 0; i < channels; i++)
        memory.ones[i] = 1;
}

static void destroy_memory(void) {
    void *const blocks[] = {memory.x,          memory.y,          memory.ones,
                            memory.zeros,      memory.results[0], memory.results[1],
                            memory.results[2], memory.results[3], memory.ws};
    for (size_t i = 0; i < sizeof blocks / sizeof blocks[0]; i++)
        free(blocks[i]);
}

/* ---------------------------------------------------------------------------------------------- */
/* Simulated threads                                                                              */

/* When the last thread is done with a phase that begins at 0: each task goes, in index order, to
 * the thread that is free first. */
static size_t phase_time(const record *r, const phase *p, size_t threads) {
    size_t busy[MAX_THREADS] = {0}, last = 0;
    for (size_t i = 0; i < p->tasks; i++) {
        size_t next = 0;
        for (size_t t = 1; t < threads; t++)
            if (busy[t] < busy[next])
                next = t;
        busy[next] += r->sizes[p->first + i];
        last = busy[next] > last ? busy[next] : last;
    }
    return last;
}

/* Imbalance of the call, and in *culprit the phase (phase_count: what is outside of all) that
 * loses most. */
static double imbalance(const record *r, size_t threads, size_t *culprit) {
    double time = (double)r->serial, total = time;
    double most_lost = time - time / (double)threads;
    *culprit = r->phase_count;
    for (size_t i = 0; i < r->phase_count; i++) {
        const phase *p = &r->phases[i];
        const double t = (double)phase_time(r, p, threads);
        const double lost = t - (double)p->total / (double)threads;
        time += t;
        total += (double)p->total;
        if (lost > most_lost) {
            most_lost = lost;
            *culprit = i;
        }
    }
    return time * (double)threads / total - 1;
}

/* One op on one shape, with every number of threads. */
typedef struct result {
    const bench_shape *shape;
    enum op op;
    bnorm_layout layout;
    int hint; /* was the library told the number of threads? */
    double imbalance[MAX_THREADS + 1];
    size_t worst;     /* number of threads, among those that are judged */
    size_t smallest;  /* elements of the smallest task, whatever the number of threads */
    char phases[96];  /* with the worst number of threads: tasks x elements of the largest */
    char culprit[96]; /* the kernels of the phase that loses most there */
} result;

static double megabytes(const bench_shape *s) {
    return (double)(s->n * s->c * s->hw) * sizeof(float) / 1e6;
}

/* Adds to a string of `size` bytes, which is cut off where it gets too long. */
static void append(char *to, size_t size, const char *separator, const char *word) {
    const size_t used = strlen(to);
    snprintf(to + used, size - used, "%s%s", used ? separator : "", word);
}

static void describe(const record *r, size_t culprit, result *to) {
    char part[64];
    to->phases[0] = to->culprit[0] = '\0';
    for (size_t i = 0; i < r->phase_count; i++) {
        snprintf(part, sizeof part, "%zu x %zu", r->phases[i].tasks, r->phases[i].largest);
        append(to->phases, sizeof to->phases, ", ", part);
    }
    if (r->serial) {
        snprintf(part, sizeof part, "alone %zu", r->serial);
        append(to->phases, sizeof to->phases, ", ", part);
    }
    for (int k = 0; k < KERNELS && culprit < r->phase_count; k++)
        if (r->phases[culprit].kernels >> k & 1)
            append(to->culprit, sizeof to->culprit, "+", kernel_names[k]);
    if (!to->culprit[0])
        append(to->culprit, sizeof to->culprit, "", "one thread alone");
}

/* Runs the call, and with hint does so for each number of threads; up to most_judged threads are
 * judged. */
static void simulate(result *to, size_t most_judged, record *r) {
    const bnorm_shape shape = shape_of(to->shape, to->layout);
    to->smallest = SIZE_MAX;
    for (size_t threads = 1; threads <= MAX_THREADS; threads++) {
        if (to->hint || threads == 1)
            run_call(to->op, &shape, to->hint ? threads : 0, r);
        size_t culprit;
        to->imbalance[threads] = imbalance(r, threads, &culprit);
        for (size_t i = 0; i < r->phase_count; i++)
            if (r->phases[i].smallest < to->smallest)
                to->smallest = r->phases[i].smallest;
        if (threads == 1 ||
            (threads <= most_judged && to->imbalance[threads] > to->imbalance[to->worst])) {
            to->worst = threads;
            describe(r, culprit, to);
        }
    }
    if (to->smallest == SIZE_MAX)
        to->smallest = 0;
}

/* ---------------------------------------------------------------------------------------------- */
/* Report                                                                                         */

static const size_t columns[] = {2, 4, 8, 16, 32, 64};
enum { COLUMNS = sizeof columns / sizeof columns[0] };

static double worst_of(const result *r) {
    return 100 * r->imbalance[r->worst];
}

static int by_value(const void *a, const void *b) {
    const double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

static int by_worst(const void *a, const void *b) {
    const double x = worst_of(a), y = worst_of(b);
    return (x < y) - (x > y);
}

/* Per op and layout: how many lines are above the limit, and median and maximum for some numbers
 * of threads. */
static void print_summary(const result *results, size_t count, int hint, double limit) {
    printf("\n%s the number of threads as a hint: imbalance in %%, median / worst\n\n",
           hint ? "With" : "Without");
    printf("%-10s %-6s %10s", "op", "layout", "over limit");
    for (size_t k = 0; k < COLUMNS; k++)
        printf("   %3zu threads", columns[k]);
    printf("\n");
    double *values = malloc((count + 1) * sizeof *values);
    if (!values)
        fail("out of memory; free some and run again.");
    for (int op = 0; op < OPS; op++)
        for (int layout = 0; layout < 2; layout++) {
            size_t lines = 0, over = 0;
            for (size_t k = 0; k < COLUMNS; k++) {
                lines = over = 0;
                for (size_t i = 0; i < count; i++) {
                    const result *r = &results[i];
                    if ((int)r->op != op || (int)r->layout != layout || r->hint != hint ||
                        megabytes(r->shape) < JUDGED_MEGABYTES)
                        continue;
                    values[lines++] = 100 * r->imbalance[columns[k]];
                    over += worst_of(r) > limit;
                }
                qsort(values, lines, sizeof *values, by_value);
                if (k == 0)
                    printf("%-10s %-6s %3zu of %3zu", op_names[op], layout_names[layout], over,
                           lines);
                if (lines)
                    printf("  %5.1f /%5.0f", values[lines / 2], values[lines - 1]);
            }
            printf("\n");
        }
    free(values);
}

static void print_lines(const result *results, size_t count) {
    printf("%-15s %-9s %-6s %-4s", "shape", "op", "layout", "hint");
    for (size_t k = 0; k < COLUMNS; k++)
        printf("   T=%-2zu", columns[k]);
    printf("  worst at T  smallest  there: tasks x largest; loses most in\n");
    for (size_t i = 0; i < count; i++) {
        const result *r = &results[i];
        printf("%-15s %-9s %-6s %-4s", r->shape->size, op_names[r->op], layout_names[r->layout],
               r->hint ? "yes" : "no");
        for (size_t k = 0; k < COLUMNS; k++)
            printf("%7.1f", 100 * r->imbalance[columns[k]]);
        printf(" %6.1f   %2zu  %8zu  %s; %s\n", worst_of(r), r->worst, r->smallest, r->phases,
               r->culprit);
    }
}

typedef struct options {
    const char *shapes;
    double limit;    /* percent */
    double share_kb; /* kilobytes of the tensor that each thread has at least, else not judged */
    int all;
} options;

static void usage(void) {
    printf(
        "usage: balance [--limit=PERCENT] [--share=KB] [--all] [SHAPES]\n"
        "How evenly bnorm shares its work among 1 to %d threads, simulated: exit status 1 where\n"
        "the imbalance with the number of threads as a hint is above the limit for a tensor of\n"
        "%g MB or more.\n"
        "  --limit=PERCENT  10 if not given\n"
        "  --share=KB       judge only numbers of threads that leave each thread this much of\n"
        "                   the tensor; 0 if not given\n"
        "  --all            list every line, not the worst ones only\n"
        "  SHAPES           bench/shapes.txt if not given\n",
        MAX_THREADS, JUDGED_MEGABYTES);
}

/* The number after an option's name, or fails. */
static double option_value(const char *argument, const char *name) {
    char *end;
    const char *text = argument + strlen(name);
    const double value = strtod(text, &end);
    if (end == text || *end != '\0' || !(value >= 0))
        fail("an option needs a number that is not negative, as in --limit=10.");
    return value;
}

static int is_option(const char *argument, const char *name) {
    return strncmp(argument, name, strlen(name)) == 0;
}

static options read_options(int argc, char **argv) {
    options o = {.shapes = "bench/shapes.txt", .limit = 10};
    for (int i = 1; i < argc; i++) {
        if (is_option(argv[i], "--limit="))
            o.limit = option_value(argv[i], "--limit=");
        else if (is_option(argv[i], "--share="))
            o.share_kb = option_value(argv[i], "--share=");
        else if (strcmp(argv[i], "--all") == 0)
            o.all = 1;
        else if (strcmp(argv[i], "--help") == 0) {
            usage();
            exit(0);
        } else if (argv[i][0] != '-')
            o.shapes = argv[i];
        else
            fail("no such option; see --help.");
    }
    return o;
}

static size_t most_judged(const options *o, const bench_shape *shape) {
    const double most = o->share_kb > 0 ? 1e3 * megabytes(shape) / o->share_kb : MAX_THREADS;
    return most < 1 ? 1 : most < MAX_THREADS ? (size_t)most : MAX_THREADS;
}

int main(int argc, char **argv) {
    const options o = read_options(argc, argv);
    size_t count, lines = 0, failed = 0;
    bench_shape *shapes = bench_shapes_read(o.shapes, &count);
    if (!shapes)
        return 2;
    create_memory(shapes, count);
    result *results = calloc(count * OPS * 4 + 1, sizeof *results);
    if (!results)
        fail("out of memory; free some and run again.");
    record r = {0};
    for (int hint = 1; hint >= 0; hint--)
        for (size_t i = 0; i < count; i++)
            for (int op = 0; op < OPS; op++)
                for (int layout = 0; layout < 2; layout++) {
                    result *to = &results[lines++];
                    *to = (result){.shape = &shapes[i],
                                   .op = (enum op)op,
                                   .layout = (bnorm_layout)layout,
                                   .hint = hint};
                    simulate(to, most_judged(&o, to->shape), &r);
                }
    printf("Elements read and written by each of 1 to %d threads, simulated; tensors of %g MB or "
           "more",
           MAX_THREADS, JUDGED_MEGABYTES);
    if (o.share_kb > 0)
        printf(";\njudged where each thread has %g KB or more", o.share_kb);
    printf("\n");
    print_summary(results, lines, 0, o.limit);
    print_summary(results, lines, 1, o.limit);

    /* The lines that are judged, worst first, go to the front. */
    if (o.all) {
        printf("\nEvery line\n\n");
        print_lines(results, lines);
    }
    size_t judged = 0;
    for (size_t i = 0; i < lines; i++)
        if (results[i].hint && megabytes(results[i].shape) >= JUDGED_MEGABYTES)
            results[judged++] = results[i];
    qsort(results, judged, sizeof *results, by_worst);
    while (failed < judged && worst_of(&results[failed]) > o.limit)
        failed++;
    const size_t shown = failed < SHOWN ? SHOWN < judged ? SHOWN : judged : failed;
    printf("\nThe worst lines with the hint\n\n");
    print_lines(results, shown < 2 * SHOWN ? shown : 2 * SHOWN);
    if (failed)
        printf(
            "\nbalance: FAILED: %zu of %zu lines are above %g %%. The last columns name the phase "
            "that loses most:\nits tasks are too large or too few (src/run.c).\n",
            failed, judged, o.limit);
    else
        printf("\nbalance: all %zu lines are within %g %%.\n", judged, o.limit);

    free(r.sizes);
    free(results);
    free(shapes);
    destroy_memory();
    return failed > 0;
}
