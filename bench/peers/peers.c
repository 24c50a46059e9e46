/* SPDX-License-Identifier: MIT
 *
 * bnorm-peers: bnorm, oneDNN, PyTorch, ONNX Runtime, plain C and the roof on the same buffers, in
 * one process, in turn. `make bench-peers` builds and runs it; see usage() below. It shows progress on stderr and
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
    "  --quick               a few shapes\n"
    "  --mode=NAME[,NAME]    inference, in-place, relu, residual-relu, training, training-relu,\n"
    "                        backward (default: all)\n"
    "  --layout=NAME[,NAME]  nchw, nhwc, nchw8c, nchw16c (default: nchw, nhwc and, for inference,\n"
    "                        training and backward, the blocks that oneDNN chooses on this CPU)\n"
    "  --class=NAME[,NAME]   small (x of up to 0.5 MB), middle, large (8 MB and more; default: "
    "all)\n"
    "  --threads=N[,N]       default: 1,2\n"
    "  --cache=NAME[,NAME]   warm, cold (default: warm; cold for tensors up to 4 MB)\n"
    "  --shape=TEXT          sizes that contain this, as in 32x64x56x56 or x7x7\n"
    "  --repetitions=N       rounds per line (default: as many as fit, at least 3)\n"
    "  --budget=MS           milliseconds per line and setting, beyond the least rounds "
    "(default: 20)\n"
    "  --least               takes the shortest sample instead of the median, for a busy machine\n"
    "  --again=N             measures lines with a peer ahead N times more (default: 3)\n"
    "  --details             prints more columns\n"
    "  --lines               prints every line as it is measured\n"
    "  --shapes=FILE         default: bench/shapes.txt\n"
    "Each line is checked first: a peer that differs from bnorm is not timed.\n";

/* Cold lines are for what fits caches. */
static const size_t cold_elements = 1000000;

enum { MAX_THREADS = 64, NAME_SIZE = 128, MAX_AGAIN = BENCH_MEDIAN_OF - 1 };

typedef struct options {
    int quick, lines, details, least;
    const char *modes, *layout, *class, *cache, *shape, *shapes;
    size_t threads[MAX_THREADS], thread_count;
    size_t repetitions, again;
    double budget;
} options;

static const char *const mode_keys[PEERS_MODES] = {
    "inference", "in-place", "relu", "residual-relu", "training", "training-relu", "backward",
};

static const enum bench_op mode_ops[PEERS_MODES] = {
    BENCH_INFERENCE, BENCH_INFERENCE,     BENCH_INFERENCE_RELU, BENCH_RESIDUAL_RELU,
    BENCH_TRAINING,  BENCH_TRAINING_RELU, BENCH_BACKWARD,
};

static const char *const layout_keys[PEERS_LAYOUTS] = {"nchw", "nhwc", "nchw8c", "nchw16c"};
static const size_t layout_blocks[PEERS_LAYOUTS] = {0, 0, 8, 16};
static const char *const class_keys[PEERS_CLASSES] = {"small", "middle", "large"};
static const char *const cache_keys[] = {"warm", "cold"};

static struct {
    options options;
    bench_shape *shapes;
    size_t shape_count;
    bench_memory memory;
    /* In place x' = mean - (x - mean): values stay what they are however often it runs. */
    float *flip_gamma, *flip_scale;
    peers_record *records;
    size_t count, room, done, runs, expected_runs;
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
    const char *value;
    if (strcmp(argument, "--quick") == 0)
        return o->quick = 1;
    if (strcmp(argument, "--lines") == 0)
        return o->lines = 1;
    if (strcmp(argument, "--details") == 0)
        return o->details = 1;
    if (strcmp(argument, "--least") == 0)
        return o->least = 1;
    if ((value = value_of(argument, "--mode=")))
        return all_known(o->modes = value, mode_keys, PEERS_MODES);
    if ((value = value_of(argument, "--layout=")))
        return all_known(o->layout = value, layout_keys, PEERS_LAYOUTS);
    if ((value = value_of(argument, "--class=")))
        return all_known(o->class = value, class_keys, PEERS_CLASSES);
    if ((value = value_of(argument, "--cache=")))
        return all_known(o->cache = value, cache_keys, 2);
    if ((value = value_of(argument, "--shape=")))
        return (o->shape = value) != NULL;
    if ((value = value_of(argument, "--shapes=")))
        return (o->shapes = value) != NULL;
    if ((value = value_of(argument, "--threads=")))
        return parse_threads(value, o);
    if ((value = value_of(argument, "--repetitions=")))
        return (o->repetitions = (size_t)strtoull(value, NULL, 10)) - 1 < BENCH_MEDIAN_OF;
    if ((value = value_of(argument, "--again=")))
        return (o->again = (size_t)strtoull(value, NULL, 10)) <= MAX_AGAIN;
    if ((value = value_of(argument, "--budget=")))
        return (o->budget = strtod(value, NULL) * 1e-3) > 0;
    return 0;
}

static int parse_options(int argc, char **argv, options *o) {
    *o = (options){.cache = "warm",
                   .shapes = "bench/shapes.txt",
                   .threads = {1, 2},
                   .thread_count = 2,
                   .again = 3,
                   .budget = 20e-3};
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
        (o->shape && !strstr(s->size, o->shape)) ||
        (o->class && !in_names(o->class, class_keys[peers_class_of(s->n * s->c * s->hw)])))
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
    return in_names(peers.options.cache, cache_keys[cache]) &&
           (cache == PEERS_WARM || s->n * s->c * s->hw <= cold_elements);
}

static const bench_shape overhead_shape = {.size = "1x16x4x4", .n = 1, .c = 16, .hw = 16};

static int mode_is_selected(enum peers_mode mode) {
    const options *o = &peers.options;
    return !o->modes || in_names(o->modes, mode_keys[mode]);
}

/* Blocks of as many channels as the best vectors have lanes. */
static enum peers_layout own_blocks(void) {
    return bnorm_isa_find("avx512") ? PEERS_NCHW16C : PEERS_NCHW8C;
}

static int layout_is_selected(enum peers_layout layout, const bench_shape *s) {
    const options *o = &peers.options;
    const size_t block = layout_blocks[layout];
    if (block && (s->c % block || !peers_onednn()))
        return 0;
    return o->layout ? in_names(o->layout, layout_keys[layout]) : !block || layout == own_blocks();
}

/* What the call overhead and blocks are measured in. */
static int is_main_mode(enum peers_mode mode) {
    return mode == PEERS_INFERENCE || mode == PEERS_TRAINING || mode == PEERS_BACKWARD;
}

static int add_line(const bench_shape *s, const peers_record *record) {
    if (peers.count == peers.room) {
        const size_t room = 2 * peers.room + 64;
        peers_record *records = realloc(peers.records, room * sizeof *records);
        if (!records)
            return 0;
        peers.records = records;
        peers.room = room;
    }
    peers_record *added = &peers.records[peers.count++];
    *added = *record;
    added->n = s->n;
    added->c = s->c;
    added->hw = s->hw;
    added->size = s->size;
    return 1;
}

static int add_lines(const bench_shape *s, enum peers_cache cache, size_t threads, int tiny) {
    for (int layout = 0; layout < PEERS_LAYOUTS; layout++)
        for (int mode = 0; mode < PEERS_MODES; mode++) {
            const peers_record record = {.mode = (enum peers_mode)mode,
                                         .layout = (enum peers_layout)layout,
                                         .cache = cache,
                                         .threads = threads,
                                         .tiny = tiny};
            const int blocked = layout_blocks[layout] != 0;
            if (mode_is_selected(record.mode) && layout_is_selected(record.layout, s) &&
                (is_main_mode(record.mode) || !(tiny || blocked)) && !(tiny && blocked) &&
                !add_line(s, &record))
                return 0;
        }
    return 1;
}

/* All that will be measured, in this order. */
static int list_lines(void) {
    const options *o = &peers.options;
    int good = 1;
    for (size_t t = 0; good && t < o->thread_count; t++) {
        const size_t threads = o->threads[t];
        if (threads == 1 && !o->shape && !o->class)
            good = add_lines(&overhead_shape, PEERS_WARM, threads, 1);
        for (size_t i = 0; good && i < peers.shape_count; i++)
            for (int cache = PEERS_WARM; good && cache <= PEERS_COLD; cache++)
                if (cache_is_selected((enum peers_cache)cache, &peers.shapes[i]))
                    good = add_lines(&peers.shapes[i], (enum peers_cache)cache, threads, 0);
    }
    peers.expected_runs = peers.count;
    return good;
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

static peers_line make_line(const peers_record *r) {
    const enum bench_op op = mode_ops[r->mode];
    const bench_form form = {.c_block = layout_blocks[r->layout]};
    peers_line line = {
        .problem =
            bench_problem_form(&peers.memory, op, r->layout == PEERS_NHWC ? BNORM_NHWC : BNORM_NCHW,
                               r->n, r->c, r->hw, &form),
        .result = peers.memory.timed,
        .in_place = r->mode == PEERS_IN_PLACE,
        .relu = bench_ops[op].relu,
        .training = bench_ops[op].training,
        .threads = r->threads,
    };
    set_height_and_width(&line, r->hw);
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
            terminal ? "\r" : "", peers.runs, peers.expected_runs, seconds,
            seconds / (double)(peers.runs + 1) * (double)(peers.expected_runs - peers.runs), name,
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

static void measure(const peers_record *r, peers_times *times) {
    char name[NAME_SIZE];
    snprintf(name, sizeof name, "%s %s %s %zuT %s", r->size, layout_keys[r->layout],
             mode_keys[r->mode], r->threads, cache_keys[r->cache]);
    show_progress(name);
    const peers_line line = make_line(r);
    const peers_plan plan = {r->cache, peers.options.budget, peers.options.repetitions,
                             peers.options.least};
    if (!peers_measure(&line, &peers.memory, &plan, name, times))
        peers.wrong = 1;
    if (peers.options.lines)
        print_line(name, times);
    peers.runs++;
}

/* Is a peer ahead by chance? The medians of all measurements then stand for the line. */
static void measure_again(peers_record *r) {
    double values[PEERS_CONTENDERS][MAX_AGAIN + 1];
    const size_t again = peers.options.again;
    for (int who = 0; who < PEERS_CONTENDERS; who++)
        values[who][again] = r->times.seconds[who];
    for (size_t i = 0; i < again; i++) {
        peers_times times;
        measure(r, &times);
        r->again++;
        r->behind_again += (size_t)peers_is_behind(&times);
        for (int who = 0; who < PEERS_CONTENDERS; who++)
            values[who][i] = times.seconds[who];
    }
    for (int who = 0; who < PEERS_CONTENDERS; who++)
        r->times.seconds[who] = bench_median(values[who], again + 1);
}

/* ---------------------------------------------------------------------------------------------- */
/* The whole */

static size_t workspace_of(const peers_record *r) {
    const bnorm_shape shape = {.layout = r->layout == PEERS_NHWC ? BNORM_NHWC : BNORM_NCHW,
                               .n = r->n,
                               .c = r->c,
                               .hw = r->hw,
                               .c_block = layout_blocks[r->layout]};
    const size_t train = bnorm_workspace(BNORM_OP_FORWARD_TRAIN, &shape);
    const size_t backward = bnorm_workspace(BNORM_OP_BACKWARD, &shape);
    return train > backward ? train : backward;
}

static int make_memory(void) {
    size_t elements = 256, channels = 16, ws_size = 1;
    for (size_t i = 0; i < peers.count; i++) {
        const peers_record *r = &peers.records[i];
        ws_size = workspace_of(r) > ws_size ? workspace_of(r) : ws_size;
        elements = r->n * r->c * r->hw > elements ? r->n * r->c * r->hw : elements;
        channels = r->c > channels ? r->c : channels;
    }
    peers.flip_gamma = malloc(channels * sizeof(float));
    peers.flip_scale = malloc(channels * sizeof(float));
    if (!peers.flip_gamma || !peers.flip_scale ||
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

/* The lines from here on that have this many threads: all of them once, then again those where a
 * peer is ahead. */
static int measure_threads(size_t threads) {
    const size_t first = peers.done;
    if (!peers_threads_set(threads)) {
        fprintf(stderr, "bnorm-peers: cannot start %zu threads; try --threads=1.\n", threads);
        return 0;
    }
    for (; peers.done < peers.count && peers.records[peers.done].threads == threads; peers.done++)
        measure(&peers.records[peers.done], &peers.records[peers.done].times);
    for (size_t i = first; i < peers.done; i++)
        peers.expected_runs += peers_is_behind(&peers.records[i].times) ? peers.options.again : 0;
    for (size_t i = first; i < peers.done; i++)
        if (peers_is_behind(&peers.records[i].times))
            measure_again(&peers.records[i]);
    return 1;
}

static int measure_all(void) {
    int good = 1;
    peers.started = bench_seconds(BENCH_WALL);
    while (good && peers.done < peers.count)
        good = measure_threads(peers.records[peers.done].threads);
    clear_progress();
    return good;
}

static void print_contenders(const char *cpu) {
    printf("bnorm %s (%s) on %s\n", bnorm_version(), bnorm_isa_name(NULL), cpu);
    if (peers_onednn())
        printf("oneDNN %s\n", peers_onednn()->version);
    else
        printf("without oneDNN: `make deps-peers` brings it, ONEDNN_ROOT= names another one\n");
#ifdef HAVE_TORCH
    printf("PyTorch %s\n", peers_torch_version());
#else
    printf("without PyTorch: `make deps-peers` brings it, TORCH_ROOT= names another one\n");
#endif
    if (peers_onnxruntime_version())
        printf("ONNX Runtime %s\n", peers_onnxruntime_version());
    else
        printf("without ONNX Runtime: `make deps-peers` brings it\n");
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
    peers_write_json(file, cpu, peers.records, peers.done);
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
    if (!list_lines() || !make_memory()) {
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
    if (peers.done) {
        peers_print_report(peers.records, peers.done, peers.options.details);
        good = write_json(argv[0], cpu) && good;
    }
    if (peers.wrong)
        fprintf(stderr, "bnorm-peers: bnorm is wrong, see above; those lines were not timed.\n");
    good = good && !peers.wrong;
    clean_up();
    return !good;
}
