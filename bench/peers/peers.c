/* SPDX-License-Identifier: MIT
 *
 * bnorm-peers: bnorm, oneDNN, PyTorch, plain C and the roof on the same buffers, in one process, in
 * turn. `make bench-peers` builds and runs it; see usage() below. It shows progress on stderr and
 * the report on stdout, and writes all figures to peers.json beside the program. The exit status
 * is 1 where bnorm is wrong or nothing was measured.
 */
#define _GNU_SOURCE /* mallopt's M_MMAP_MAX */

#include <malloc.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "../clock.h"
#include "../cpu_name.h"
#include "../shapes.h"
#include "measure.h"
#include "onednn.h"
#include "table.h"
#include "threads.h"

static const char *const usage =
    "usage: bnorm-peers [options]\n"
    "  --quick               a few shapes, warm cache\n"
    "  --mode=NAME[,NAME]    inference, in-place, relu, residual-relu, training, training-relu,\n"
    "                        backward (default: all)\n"
    "  --layout=NAME         nchw or nhwc (default: both)\n"
    "  --threads=N[,N]       default: 1,2\n"
    "  --cache=NAME          warm or cold (default: both; cold for tensors up to 4 MB)\n"
    "  --shape=TEXT          sizes that contain this, as in 32x64x56x56 or x7x7\n"
    "  --repetitions=N       rounds per line (default: as many as fit, at least 3)\n"
    "  --budget=MS           milliseconds per line and setting, beyond the least rounds "
    "(default: 20)\n"
    "  --lines               prints every line as it is measured\n"
    "  --shapes=FILE         default: bench/shapes.txt\n"
    "Each line is checked first: a peer that differs from bnorm is not timed.\n";

/* Cold lines are for what fits caches. */
static const size_t cold_elements = 1000000;

enum { MAX_THREADS = 64, NAME_SIZE = 128 };

typedef struct options {
    int quick, lines;
    const char *modes, *layout, *cache, *shape, *shapes;
    size_t threads[MAX_THREADS], thread_count;
    size_t repetitions;
    double budget;
} options;

static const char *const mode_keys[PEERS_MODES] = {
    "inference", "in-place", "relu", "residual-relu", "training", "training-relu", "backward",
};

static const enum bench_op mode_ops[PEERS_MODES] = {
    BENCH_INFERENCE, BENCH_INFERENCE,     BENCH_INFERENCE_RELU, BENCH_RESIDUAL_RELU,
    BENCH_TRAINING,  BENCH_TRAINING_RELU, BENCH_BACKWARD,
};

static struct {
    options options;
    bench_shape *shapes;
    size_t shape_count;
    bench_memory memory;
    /* In place x' = mean - (x - mean): values stay what they are however often it runs. */
    float *flip_gamma, *flip_scale;
    peers_record *records;
    size_t count, expected;
    double started;
    int wrong;
} peers;

/* ---------------------------------------------------------------------------------------------- */
/* Options */

static const char *value_of(const char *argument, const char *name) {
    const size_t length = strlen(name);
    return strncmp(argument, name, length) == 0 ? argument + length : NULL;
}

/* Is name one of the names of a list such as "relu,training"? */
static int in_names(const char *list, const char *name) {
    const size_t length = strlen(name);
    for (const char *at = list; at; at = strchr(at, ',')) {
        at += *at == ',';
        if (strncmp(at, name, length) == 0 && (at[length] == ',' || at[length] == '\0'))
            return 1;
    }
    return 0;
}

/* Does every name of the list occur among these? */
static int all_known(const char *list, const char *const *names, size_t count) {
    size_t found = 0, wanted = 1;
    for (const char *at = list; *at; at++)
        wanted += *at == ',';
    for (size_t i = 0; i < count; i++)
        found += (size_t)in_names(list, names[i]);
    return found == wanted;
}

static int parse_threads(const char *list, options *o) {
    o->thread_count = 0;
    for (;;) {
        char *end;
        const unsigned long long n = strtoull(list, &end, 10);
        if (end == list || n == 0 || n > MAX_THREADS || o->thread_count == MAX_THREADS)
            return 0;
        o->threads[o->thread_count++] = (size_t)n;
        if (*end != ',')
            return *end == '\0';
        list = end + 1;
    }
}

static int parse_option(const char *argument, options *o) {
    static const char *const layouts[] = {"nchw", "nhwc"}, *const caches[] = {"warm", "cold"};
    const char *value;
    if (strcmp(argument, "--quick") == 0)
        return o->quick = 1;
    if (strcmp(argument, "--lines") == 0)
        return o->lines = 1;
    if ((value = value_of(argument, "--mode=")))
        return all_known(o->modes = value, mode_keys, PEERS_MODES);
    if ((value = value_of(argument, "--layout=")))
        return all_known(o->layout = value, layouts, 2);
    if ((value = value_of(argument, "--cache=")))
        return all_known(o->cache = value, caches, 2);
    if ((value = value_of(argument, "--shape=")))
        return (o->shape = value) != NULL;
    if ((value = value_of(argument, "--shapes=")))
        return (o->shapes = value) != NULL;
    if ((value = value_of(argument, "--threads=")))
        return parse_threads(value, o);
    if ((value = value_of(argument, "--repetitions=")))
        return (o->repetitions = (size_t)strtoull(value, NULL, 10)) - 1 < BENCH_MEDIAN_OF;
    if ((value = value_of(argument, "--budget=")))
        return (o->budget = strtod(value, NULL) * 1e-3) > 0;
    return 0;
}

static int parse_options(int argc, char **argv, options *o) {
    *o = (options){
        .shapes = "bench/shapes.txt", .threads = {1, 2}, .thread_count = 2, .budget = 20e-3};
    for (int i = 1; i < argc; i++) {
        if (strcmp(argv[i], "--help") == 0) {
            fputs(usage, stdout);
            exit(0);
        }
        if (!parse_option(argv[i], o)) {
            fprintf(stderr, "bnorm-peers: cannot understand %s; --help shows the options.\n",
                    argv[i]);
            return 0;
        }
    }
    return 1;
}

/* ---------------------------------------------------------------------------------------------- */
/* Which lines */

/* Of every kind one: large and small planes, few and many channels, odd sizes. */
static int is_quick(const bench_shape *s) {
    static const struct {
        size_t c, hw;
    } quick[] = {{64, 56 * 56}, {256, 14 * 14}, {1024, 14 * 14}, {2048, 7 * 7},
                 {24, 56 * 56}, {192, 14 * 14}, {960, 7 * 7},    {3, 224 * 224},
                 {17, 13 * 11}, {33, 7 * 7},    {20, 28 * 28},   {1024, 1}};
    for (size_t i = 0; i < sizeof quick / sizeof quick[0]; i++)
        if (quick[i].c == s->c && quick[i].hw == s->hw)
            return 1;
    return 0;
}

static int is_selected(const bench_shape *s) {
    const options *o = &peers.options;
    if (strstr(s->network, "yolo") || (o->quick && !is_quick(s)) ||
        (o->shape && !strstr(s->size, o->shape)))
        return 0;
    for (const bench_shape *other = peers.shapes; other < s; other++)
        if (other->n == s->n && other->c == s->c && other->hw == s->hw)
            return 0;
    return 1;
}

static void keep_selected_shapes(void) {
    size_t kept = 0;
    for (size_t i = 0; i < peers.shape_count; i++)
        if (is_selected(&peers.shapes[i]))
            peers.shapes[kept++] = peers.shapes[i];
    peers.shape_count = kept;
}

static int cache_is_selected(enum peers_cache cache, const bench_shape *s) {
    const options *o = &peers.options;
    if (cache == PEERS_WARM)
        return !o->cache || in_names(o->cache, "warm");
    return (o->cache ? in_names(o->cache, "cold") : !o->quick) &&
           s->n * s->c * s->hw <= cold_elements;
}

static const bench_shape overhead_shape = {.size = "1x16x4x4", .n = 1, .c = 16, .hw = 16};

static int measures_overhead(size_t threads) {
    return threads == 1 && !peers.options.shape;
}

static int mode_is_selected(enum peers_mode mode, int tiny) {
    const options *o = &peers.options;
    const int for_overhead =
        mode == PEERS_INFERENCE || mode == PEERS_TRAINING || mode == PEERS_BACKWARD;
    return (!o->modes || in_names(o->modes, mode_keys[mode])) && (!tiny || for_overhead);
}

static int layout_is_selected(bnorm_layout layout) {
    const options *o = &peers.options;
    return !o->layout || in_names(o->layout, bench_layouts[layout]);
}

static size_t count_lines(void) {
    const options *o = &peers.options;
    size_t settings = 0, modes = 0, tiny_modes = 0, tiny = 0;
    for (size_t i = 0; i < peers.shape_count; i++)
        settings += (size_t)cache_is_selected(PEERS_WARM, &peers.shapes[i]) +
                    (size_t)cache_is_selected(PEERS_COLD, &peers.shapes[i]);
    for (int mode = 0; mode < PEERS_MODES; mode++) {
        modes += (size_t)mode_is_selected((enum peers_mode)mode, 0);
        tiny_modes += (size_t)mode_is_selected((enum peers_mode)mode, 1);
    }
    for (size_t t = 0; t < o->thread_count; t++)
        tiny += (size_t)measures_overhead(o->threads[t]);
    return (settings * o->thread_count * modes + tiny * tiny_modes) *
           (size_t)(layout_is_selected(BNORM_NCHW) + layout_is_selected(BNORM_NHWC));
}

/* ---------------------------------------------------------------------------------------------- */
/* One line */

/* The factors of hw that are nearest to each other. */
static void set_height_and_width(peers_line *line, size_t hw) {
    line->width = 1;
    for (size_t w = 1; w * w <= hw; w++)
        if (hw % w == 0)
            line->width = w;
    line->height = hw / line->width;
}

static peers_line make_line(enum peers_mode mode, bnorm_layout layout, const bench_shape *s,
                            size_t threads) {
    peers_line line = {
        .problem = bench_problem_make(&peers.memory, mode_ops[mode], layout, s->n, s->c, s->hw),
        .result = peers.memory.timed,
        .in_place = mode == PEERS_IN_PLACE,
        .relu = bench_ops[mode_ops[mode]].relu,
        .training = bench_ops[mode_ops[mode]].training,
        .threads = threads,
    };
    set_height_and_width(&line, s->hw);
    if (line.in_place) {
        line.problem.x = line.result.tensor;
        line.problem.gamma = peers.flip_gamma;
        line.problem.scale = peers.flip_scale;
        line.problem.beta = peers.memory.mean;
    }
    return line;
}

/* On a terminal one line that changes, elsewhere a line from time to time. */
static void show_progress(const char *name) {
    static const double interval = 10;
    static double next;
    const int terminal = isatty(STDERR_FILENO);
    const double seconds = bench_seconds(BENCH_WALL) - peers.started;
    if (!terminal && seconds < next)
        return;
    next = seconds + interval;
    fprintf(stderr, "%s%zu of %zu lines, %.0f s, about %.0f s left: %-48.48s%s",
            terminal ? "\r" : "", peers.count, peers.expected, seconds,
            seconds / (double)(peers.count + 1) * (double)(peers.expected - peers.count), name,
            terminal ? "" : "\n");
    fflush(stderr);
}

static void clear_progress(void) {
    if (isatty(STDERR_FILENO))
        fprintf(stderr, "\r%100s\r", "");
}

static void print_line(const char *name, const peers_times *times) {
    printf("%-50s", name);
    for (int who = 0; who < PEERS_CONTENDERS; who++)
        printf(" %s %.2f", peers_names[who], times->seconds[who] * 1e6);
    printf("\n");
    fflush(stdout);
}

static void measure(peers_record *record, const bench_shape *s) {
    char name[NAME_SIZE];
    snprintf(name, sizeof name, "%s %s %s %zuT %s", s->size, bench_layouts[record->layout],
             mode_keys[record->mode], record->threads,
             record->cache == PEERS_COLD ? "cold" : "warm");
    show_progress(name);
    const peers_line line = make_line(record->mode, record->layout, s, record->threads);
    const peers_plan plan = {record->cache, peers.options.budget, peers.options.repetitions};
    if (!peers_measure(&line, &peers.memory, &plan, name, &record->times))
        peers.wrong = 1;
    if (peers.options.lines)
        print_line(name, &record->times);
    peers.count++;
}

static void measure_shape(const bench_shape *s, enum peers_cache cache, size_t threads, int tiny) {
    for (int layout = 1; layout >= 0; layout--) {
        if (!layout_is_selected((bnorm_layout)layout))
            continue;
        for (int mode = 0; mode < PEERS_MODES; mode++) {
            if (!mode_is_selected((enum peers_mode)mode, tiny))
                continue;
            peers_record *record = &peers.records[peers.count];
            *record = (peers_record){.mode = (enum peers_mode)mode,
                                     .layout = (bnorm_layout)layout,
                                     .cache = cache,
                                     .threads = threads,
                                     .n = s->n,
                                     .c = s->c,
                                     .hw = s->hw,
                                     .size = s->size,
                                     .tiny = tiny};
            measure(record, s);
        }
    }
}

/* ---------------------------------------------------------------------------------------------- */
/* The whole */

static int make_memory(void) {
    size_t elements = 256, channels = 16, ws_size = 1;
    for (size_t i = 0; i <= peers.shape_count; i++) {
        const bench_shape *s = i < peers.shape_count ? &peers.shapes[i] : &overhead_shape;
        for (int mode = 0; mode < PEERS_MODES; mode++)
            for (int layout = 0; layout < 2; layout++) {
                const size_t ws =
                    bench_workspace(mode_ops[mode], (bnorm_layout)layout, s->n, s->c, s->hw);
                ws_size = ws > ws_size ? ws : ws_size;
            }
        elements = s->n * s->c * s->hw > elements ? s->n * s->c * s->hw : elements;
        channels = s->c > channels ? s->c : channels;
    }
    peers.expected = count_lines();
    peers.records = calloc(peers.expected + 1, sizeof *peers.records);
    peers.flip_gamma = malloc(channels * sizeof(float));
    peers.flip_scale = malloc(channels * sizeof(float));
    if (!peers.records || !peers.flip_gamma || !peers.flip_scale ||
        !bench_memory_create(&peers.memory, elements, channels, ws_size))
        return 0;
    for (size_t c = 0; c < channels; c++) {
        peers.flip_gamma[c] = -1 / peers.memory.invstd[c];
        peers.flip_scale[c] = peers.flip_gamma[c] * peers.memory.invstd[c];
    }
    return 1;
}

static void clean_up(void) {
    bench_memory_destroy(&peers.memory);
    free(peers.flip_gamma);
    free(peers.flip_scale);
    free(peers.records);
    free(peers.shapes);
}

static int measure_all(void) {
    const options *o = &peers.options;
    peers.started = bench_seconds(BENCH_WALL);
    for (size_t t = 0; t < o->thread_count; t++) {
        if (!peers_threads_set(o->threads[t])) {
            fprintf(stderr, "bnorm-peers: cannot start %zu threads; try --threads=1.\n",
                    o->threads[t]);
            return 0;
        }
        if (measures_overhead(o->threads[t]))
            measure_shape(&overhead_shape, PEERS_WARM, 1, 1);
        for (size_t i = 0; i < peers.shape_count; i++)
            for (int cache = PEERS_WARM; cache <= PEERS_COLD; cache++)
                if (cache_is_selected((enum peers_cache)cache, &peers.shapes[i]))
                    measure_shape(&peers.shapes[i], (enum peers_cache)cache, o->threads[t], 0);
    }
    clear_progress();
    return 1;
}

static void print_contenders(const char *cpu) {
    printf("bnorm %s (%s) on %s\n", bnorm_version(), bnorm_isa_name(NULL), cpu);
    if (peers_onednn())
        printf("oneDNN %s\n", peers_onednn()->version);
    else
        printf("without oneDNN: `make deps-peers` installs it, ONEDNN_ROOT= names another one\n");
#ifdef HAVE_TORCH
    printf("PyTorch %s\n", peers_torch_version());
#else
    printf("without PyTorch: `make deps-peers` installs it\n");
#endif
}

static int write_json(const char *program, const char *cpu) {
    const char *slash = strrchr(program, '/');
    char path[400];
    snprintf(path, sizeof path, "%.*speers.json", slash ? (int)(slash + 1 - program) : 0, program);
    FILE *file = fopen(path, "w");
    if (!file) {
        fprintf(stderr, "bnorm-peers: cannot write %s.\n", path);
        return 0;
    }
    peers_write_json(file, cpu, peers.records, peers.count);
    fclose(file);
    printf("\nAll figures: %s\n", path);
    return 1;
}

int main(int argc, char **argv) {
    if (!parse_options(argc, argv, &peers.options))
        return 1;
    peers_threads_prepare(argv);
    /* Freed memory stays with the program: PyTorch's calls need not ask the system for pages. */
    mallopt(M_MMAP_MAX, 0);
    mallopt(M_TRIM_THRESHOLD, INT_MAX);
    peers.shapes = bench_shapes_read(peers.options.shapes, &peers.shape_count);
    if (!peers.shapes)
        return 1;
    keep_selected_shapes();
    if (!make_memory()) {
        fprintf(stderr, "bnorm-peers: not enough memory; select fewer shapes with --shape.\n");
        clean_up();
        return 1;
    }
    const char *cpu = bench_cpu_name();
    print_contenders(cpu);
    int good = measure_all();
    if (good && peers.count == 0) {
        fprintf(stderr, "bnorm-peers: nothing is selected; --help shows the options.\n");
        good = 0;
    }
    if (peers.count) {
        peers_print_report(peers.records, peers.count);
        good = write_json(argv[0], cpu) && good;
    }
    if (peers.wrong)
        fprintf(stderr, "bnorm-peers: bnorm is wrong, see above; those lines were not timed.\n");
    good = good && !peers.wrong;
    clean_up();
    return !good;
}
