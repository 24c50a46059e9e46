/* SPDX-License-Identifier: MIT
 *
 * bnorm-bench: how fast bnorm is on this machine: floats against the plain C loop and against the
 * roof, which is what the memory system does with the same bytes when nothing is computed; then
 * other types, layouts and fusions, each against what it should be compared with.
 *
 * Build: all of bench/; plain.c for this CPU, as a user would build it (without -march=native for
 * another one); the only C++ is the shim.
 *
 *   cc  -std=c11 -O2 -ffp-contract=off -DBNORM_SLEEF=1 -Iinclude -c bench/[!p]*.c bench/p[ao]*.c
 *   cc  -std=c11 -O3 -march=native -ffp-contract=fast -Iinclude -c bench/plain.c
 *   c++ -std=c++11 -O2 -c bench/shim.cc
 *   c++ -o build/bnorm-bench *.o libbnorm.a -lbenchmark -lsleef -lpthread -lm
 *
 * Run from the repository root:
 *
 *   build/bnorm-bench [--full | --smoke] [--shapes=FILE] [--threads=N] [--benchmark_...]
 *
 * It shows progress on stderr and a table on stdout, or what --benchmark_format asks for. Unless
 * --benchmark_out=FILE says otherwise, the JSON goes to bench.json beside the program. The exit
 * status is 1 where a kernel's result is wrong or nothing was measured. Rows are named
 * op/layout/dtype/set/network/shape, as in training/nchw/f32/avx2/resnet50/32x64x56x56. Counters
 * "over_..." are of pairs: the time divided by that of what pairs.h says.
 */
#define _POSIX_C_SOURCE 200809L /* regcomp, isatty */

#include <regex.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "bnorm.h"
#include "clock.h"
#include "cpu_name.h"
#include "pairs.h"
#include "plain.h"
#include "pool.h"
#include "report.h"
#include "roof.h"
#include "shapes.h"
#include "shim.h"
#include "workload.h"

enum { MAX_ARGS = 64, ROW_NAME = 192, SMOKE_ELEMENTS = 4096 };
static const size_t memory_limit = (size_t)2 << 30;
/* Tensors up to this size are run once before the clock starts; larger ones leave the caches
 * anyway. */
static const size_t warm_up_elements = (size_t)1 << 20;

enum selection { QUICK, FULL, SMOKE };

typedef struct options {
    enum selection selection;
    const char *shapes;
    size_t threads;
    int listing;   /* --benchmark_list_tests */
    int formatted; /* --benchmark_format: Google Benchmark writes to stdout, not we */
    int has_out;
    int repetitions; /* --benchmark_repetitions: for all rows */
} options;

typedef struct session {
    options options;
    bench_memory memory;
    bench_pool *pool;
    bnorm_exec exec;
    bench_roof *roof;
    bench_shape *shapes;
    size_t shape_count;
    bench_case *cases;
    size_t case_count;
    bench_row *rows;
    size_t row_count;
    bench_entry *entries;
    size_t entry_count;
    int unsupported; /* activations of SLEEF */
    bench_pair *pairs;
    size_t pair_count;
    bench_jobs *jobs[BENCH_JOB_LISTS][BENCH_OPS][2];
    bench_pool *two_threads;
    bench_lab lab;
    size_t repetitions;              /* of rows, unless a pair has its own */
    size_t runs_done, runs_expected; /* a run is one repetition of one row */
    size_t runs_shown;
    double started;
    int wrong;
} session;

/* The benchmark library hands a row back, nothing else: this is what all rows share. */
static session bench;

/* ---------------------------------------------------------------------------------------------- */
/* Options */

static void print_help(void) {
    printf("bnorm-bench [--full | --smoke] [--shapes=FILE] [--threads=N] [--benchmark_...]\n"
           "          [--full]            all of bench/shapes.txt (minutes), not the quick ones\n"
           "          [--smoke]           a few tiny shapes (seconds), to see that it works\n"
           "          [--shapes=<file>]   another list of shapes\n"
           "          [--threads=<n>]     threads for bnorm and the roof, default $BNORM_THREADS "
           "or 1\n"
           "          [--benchmark_filter=<regex>]   rows by name, "
           "op/layout/dtype/set/network/shape,\n"
           "                              as in --benchmark_filter=training/nchw/.*/resnet50\n"
           "          [--benchmark_list_tests]       the names\n"
           "          [--benchmark_format=<console|json|csv>]   all figures instead of the table\n"
           "          [--benchmark_out=<file>]       default: bench.json beside the program\n"
           "          and every other flag of Google Benchmark: min_time, repetitions, ...\n");
}

static int starts_with(const char *text, const char *start) {
    return strncmp(text, start, strlen(start)) == 0;
}

static int parse_threads(const char *text, size_t *threads) {
    char *end;
    const unsigned long value = strtoul(text, &end, 10);
    *threads = value;
    return end != text && *end == '\0' && value >= 1 && value <= 256;
}

/* Takes our options out of argv; 0 after a message. */
static int parse_options(int *argc, char **argv, options *o) {
    const char *threads = getenv("BNORM_THREADS");
    int kept = 1;
    *o = (options){.shapes = "bench/shapes.txt"};
    for (int i = 1; i < *argc; i++) {
        if (strcmp(argv[i], "--full") == 0)
            o->selection = FULL;
        else if (strcmp(argv[i], "--smoke") == 0)
            o->selection = SMOKE;
        else if (starts_with(argv[i], "--shapes="))
            o->shapes = argv[i] + strlen("--shapes=");
        else if (starts_with(argv[i], "--threads="))
            threads = argv[i] + strlen("--threads=");
        else
            argv[kept++] = argv[i];
    }
    argv[kept] = NULL;
    *argc = kept;
    for (int i = 1; i < kept; i++) {
        o->listing |= starts_with(argv[i], "--benchmark_list_tests") &&
                      strcmp(argv[i], "--benchmark_list_tests=false") != 0;
        o->formatted |= starts_with(argv[i], "--benchmark_format=");
        o->repetitions |= starts_with(argv[i], "--benchmark_repetitions=");
        o->has_out |= starts_with(argv[i], "--benchmark_out=");
    }
    if (!parse_threads(threads && *threads ? threads : "1", &o->threads)) {
        fprintf(stderr, "bnorm-bench: --threads and $BNORM_THREADS take a number from 1 to 256.\n");
        return 0;
    }
    return 1;
}

/* The number in the last "flag=number" of argv. */
static size_t number_of(int argc, char **argv, const char *flag) {
    size_t number = 1;
    for (int i = 1; i < argc; i++)
        if (starts_with(argv[i], flag))
            number = strtoul(argv[i] + strlen(flag), NULL, 10);
    return number;
}

/* Puts our defaults before the user's flags, whose later values win. The machine is shared with
 * others as a rule: many short repetitions of all rows in random order, and their median. */
static void initialize_benchmark(int argc, char **argv, const char *out) {
    static char *args[MAX_ARGS];
    static char out_flag[512], min_time[64], repetitions[64];
    static const struct {
        const char *min_time, *repetitions;
    } defaults[] = {[QUICK] = {"0.001", "15"}, [FULL] = {"0.002", "7"}, [SMOKE] = {"0.0002", "3"}};
    const enum selection selection = bench.options.selection;
    snprintf(min_time, sizeof min_time, "--benchmark_min_time=%s", defaults[selection].min_time);
    snprintf(repetitions, sizeof repetitions, "--benchmark_repetitions=%s",
             defaults[selection].repetitions);
    static char interleave[] = "--benchmark_enable_random_interleaving=true";
    static char aggregates[] = "--benchmark_report_aggregates_only=true";
    int count = 0;
    args[count++] = argv[0];
    args[count++] = min_time;
    args[count++] = repetitions;
    args[count++] = interleave;
    args[count++] = aggregates;
    if (!bench.options.listing && !bench.options.has_out) {
        snprintf(out_flag, sizeof out_flag, "--benchmark_out=%s", out);
        args[count++] = out_flag;
    }
    for (int i = 1; i < argc && count < MAX_ARGS - 1; i++)
        args[count++] = argv[i];
    args[count] = NULL;
    bench.repetitions = number_of(count, args, "--benchmark_repetitions=");
    shim_initialize(&count, args, print_help);
    if (shim_unrecognized(count, args)) {
        fprintf(stderr, "bnorm-bench: see --help.\n");
        exit(1);
    }
}

/* ---------------------------------------------------------------------------------------------- */
/* Progress */

/* Before a run of the row of this name. */
static void show_progress(const char *name) {
    const size_t done = bench.runs_done + 1, expected = bench.runs_expected;
    if (bench.options.formatted || done > expected)
        return;
    const double seconds = bench_seconds(BENCH_WALL) - bench.started;
    if (isatty(STDERR_FILENO)) {
        fprintf(stderr, "\r\033[K[%4zu/%zu] %3.0f s  %.70s", done, expected, seconds, name);
    } else if (done == expected || done * 10 / expected > bench.runs_shown * 10 / expected) {
        fprintf(stderr, "[%4zu/%zu] %3.0f s\n", done, expected, seconds);
        bench.runs_shown = done;
    }
}

static void clear_progress(void) {
    if (!bench.options.formatted && isatty(STDERR_FILENO))
        fprintf(stderr, "\r\033[K");
}

/* ---------------------------------------------------------------------------------------------- */
/* One run of one row */

static void run_once(const bench_row *row, const bench_problem *problem) {
    if (row->isa)
        bench_run(problem, row->isa, &bench.exec, &bench.memory.timed);
    else
        plain_run(problem, &bench.memory.timed);
}

/* All kernel sets and plain C on this case, the first time that one of its rows is run. */
static int is_right(bench_case *test, const bench_problem *problem) {
    if (test->state == BENCH_UNCHECKED) {
        clear_progress(); /* for what bench_check has to say */
        const int right = bench_check(problem, &bench.memory, &bench.exec);
        test->state = right ? BENCH_RIGHT : BENCH_WRONG;
        bench.wrong |= !right;
    }
    return test->state == BENCH_RIGHT;
}

static void row_name(const bench_row *row, char *name) {
    snprintf(name, ROW_NAME, "%s/%s/f32/%s/%s/%s", bench_ops[row->test->op].name,
             bench_layouts[row->test->layout], bench_set_name(row), row->test->shape->network,
             row->test->shape->size);
}

/* The first runs look for the number of iterations. */
static void count_run(const bench_samples *samples, size_t iterations) {
    if (iterations == samples->iterations || samples->count == 0)
        bench.runs_done++;
}

static void measure(shim_state *state, void *arg) {
    bench_row *row = arg;
    const bench_shape *shape = row->test->shape;
    const size_t elements = shape->n * shape->c * shape->hw;
    const size_t iterations = shim_iterations(state);
    const bench_problem problem = bench_problem_make(
        &bench.memory, row->test->op, row->test->layout, shape->n, shape->c, shape->hw);
    char name[ROW_NAME];
    row_name(row, name);
    show_progress(name);
    if (!is_right(row->test, &problem)) {
        shim_error(state, "wrong result");
        return;
    }
    const double peak = roof_measure(bench.roof, &problem, bench.memory.timed.tensor);
    if (elements <= warm_up_elements)
        run_once(row, &problem);

    const enum bench_clock clock = bench.options.threads == 1 ? BENCH_THREAD : BENCH_WALL;
    const double start = bench_seconds(clock);
    while (shim_keep_running(state))
        run_once(row, &problem);
    const double seconds = (bench_seconds(clock) - start) / (double)iterations;

    const double tensor_bytes = (double)(elements * sizeof(float));
    const double rate = (double)bench_ops[row->test->op].tensors * tensor_bytes / seconds;
    const double roof_percent = peak > 0 ? 100 * rate / peak : 0;
    count_run(&row->samples, iterations);
    bench_samples_add(&row->samples, iterations, seconds,
                      (const double[BENCH_FIGURES]){roof_percent});
    shim_counter(state, "GB/s", rate * 1e-9);
    shim_counter(state, "roof_GB/s", 1e-9 * peak);
    shim_counter(state, "roof_pct", roof_percent);
    shim_counter(state, "tensor_bytes", tensor_bytes);
    shim_label(state, shape->layer);
}

static void measure_pair(shim_state *state, void *arg) {
    bench_pair *pair = arg;
    char name[ROW_NAME];
    bench_pair_name(pair, name, sizeof name);
    show_progress(name);
    if (pair->state == BENCH_PAIR_UNCHECKED)
        clear_progress(); /* for what the check has to say */
    count_run(&pair->samples, shim_iterations(state));
    bench.wrong |= !bench_pair_measure(pair, &bench.lab, state);
}

/* ---------------------------------------------------------------------------------------------- */
/* Rows */

static int is_small_enough(const bench_shape *shape) {
    if (bench_memory_bytes(shape->n * shape->c * shape->hw) <= memory_limit)
        return 1;
    fprintf(stderr, "bnorm-bench: skipped %s/%s, which needs more than %zu MiB.\n", shape->network,
            shape->size, memory_limit >> 20);
    return 0;
}

static int is_selected(const bench_shape *shape) {
    switch (bench.options.selection) {
    case QUICK:
        return shape->quick;
    case SMOKE:
        return shape->quick && shape->n * shape->c * shape->hw <= SMOKE_ELEMENTS;
    case FULL:
        break;
    }
    return is_small_enough(shape);
}

/* Is this shape measured with forms? */
static int is_selected_for_forms(const bench_shape *shape) {
    switch (bench.options.selection) {
    case QUICK:
        return shape->forms && is_small_enough(shape);
    case SMOKE:
        return is_selected(shape);
    case FULL:
        break;
    }
    return (shape->forms || shape->quick) && is_small_enough(shape);
}

/* The scalar set is the specification, not the offer: it is slow, and timed on small quick shapes
 * only. */
static void add_case_rows(bench_case *test) {
    const bnorm_isa *isa;
    const bench_shape *shape = test->shape;
    const int time_scalar = shape->quick && shape->n * shape->c * shape->hw <= warm_up_elements;
    for (size_t i = 0; (isa = bench_isa_at(i)) != NULL; i++)
        if (time_scalar || strcmp(bnorm_isa_name(isa), "scalar") != 0)
            bench.rows[bench.row_count++] = (bench_row){.test = test, .isa = isa};
    bench.rows[bench.row_count++] = (bench_row){.test = test};
}

/* The cases and rows of the selected shapes; 0 without memory. */
static int make_rows(void) {
    size_t sets = 1;
    while (bench_isa_at(sets - 1))
        sets++;
    const size_t max_cases = bench.shape_count * BENCH_OPS * 2;
    bench.cases = calloc(max_cases + 1, sizeof *bench.cases);
    bench.rows = calloc(max_cases * sets + 1, sizeof *bench.rows);
    if (!bench.cases || !bench.rows)
        return 0;
    for (size_t s = 0; s < bench.shape_count; s++) {
        if (!is_selected(&bench.shapes[s]))
            continue;
        for (int op = 0; op < BENCH_OPS; op++)
            for (int layout = 0; layout < 2; layout++) {
                bench_case *test = &bench.cases[bench.case_count++];
                *test = (bench_case){.op = (enum bench_op)op,
                                     .layout = (bnorm_layout)layout,
                                     .shape = &bench.shapes[s]};
                add_case_rows(test);
            }
    }
    return 1;
}

/* Beyond the caches all sets wait for memory: a quick run shows that with some entries only. */
static int is_selected_pair(const bench_pair *pair) {
    if (strcmp(bnorm_isa_name(pair->isa), "scalar") == 0 && bench_isa_at(1))
        return 0;
    if (bench.options.selection != QUICK || pair->entry->when == BENCH_WHEN_QUICK_ALL_SETS)
        return 1;
    return pair->entry->when == BENCH_WHEN_QUICK &&
           (pair->isa == bench_isa_at(0) || pair->column == BENCH_CACHE);
}

/* The pairs of an entry on one shape; counts them only while there is no memory for them. */
static size_t add_pairs(const bench_entry *entry, const bench_shape *shape) {
    const bnorm_isa *isa;
    size_t added = 0;
    for (int layout = 0; layout < 2; layout++)
        for (size_t i = 0; (isa = bench_isa_at(i)) != NULL; i++) {
            const bench_pair pair = bench_pair_make(entry, (bnorm_layout)layout, shape, isa);
            if (!(entry->layouts >> layout & 1) || !bench_pair_is_sensible(&pair) ||
                !is_selected_pair(&pair))
                continue;
            if (bench.pairs)
                bench.pairs[bench.pair_count++] = pair;
            added++;
        }
    return added;
}

/* One thread and two. */
static size_t add_job_pairs(const bench_entry *entry) {
    const bnorm_isa *isa;
    size_t added = 0;
    for (int layout = 0; layout < 2; layout++) {
        bench_jobs **jobs = &bench.jobs[entry->jobs][entry->op][layout];
        for (size_t i = 0; (isa = bench_isa_at(i)) != NULL; i++)
            for (int threads = 1; threads <= 2; threads++) {
                const bench_pair pair = {
                    .entry = entry,
                    .layout = (bnorm_layout)layout,
                    .column = threads == 1 ? BENCH_1_THREAD : BENCH_2_THREADS,
                    .isa = isa,
                };
                if (!is_selected_pair(&pair))
                    continue;
                if (bench.pairs) {
                    if (!*jobs)
                        *jobs = bench_jobs_create(entry->jobs, entry->op, pair.layout);
                    if (!*jobs)
                        return 0;
                    bench.pairs[bench.pair_count] = pair;
                    bench.pairs[bench.pair_count++].jobs = *jobs;
                }
                added++;
            }
    }
    return added;
}

static size_t add_all_pairs(void) {
    size_t added = 0;
    for (size_t e = 0; e < bench.entry_count; e++) {
        if (bench.entries[e].group == BENCH_JOBS)
            added += add_job_pairs(&bench.entries[e]);
        else
            for (size_t s = 0; s < bench.shape_count; s++)
                if (is_selected_for_forms(&bench.shapes[s]))
                    added += add_pairs(&bench.entries[e], &bench.shapes[s]);
    }
    return added;
}

/* 0 without memory. */
static int make_pairs(void) {
    bench.entries = bench_entries_create(&bench.entry_count, &bench.unsupported);
    if (!bench.entries)
        return 0;
    const size_t expected = add_all_pairs();
    bench.pairs = calloc(expected + 1, sizeof *bench.pairs);
    return bench.pairs && add_all_pairs() == expected;
}

/* Repetitions of a pair: fewer of those that take long. 0 = as the flags say. */
static int repetitions_of(const bench_pair *pair) {
    if (bench.options.repetitions || bench.options.selection == SMOKE)
        return 0;
    if (bench.options.selection == FULL)
        return 3;
    return pair->column == BENCH_MEMORY ? 5 : 9;
}

/* Does the filter select this name? */
typedef struct name_filter {
    regex_t regex;
    int negative, all;
} name_filter;

static int passes(const name_filter *filter, const char *name) {
    return filter->all || (regexec(&filter->regex, name, 0, NULL, 0) == 0) != filter->negative;
}

/* Registers all rows. Returns how many runs the filter selects, for the progress line: Google
 * Benchmark tells only at the end. */
static size_t register_rows(void) {
    const char *text = shim_filter();
    name_filter filter = {.negative = text[0] == '-'};
    char name[ROW_NAME];
    size_t runs = 0;
    filter.all = !*text || strcmp(text, "all") == 0 ||
                 regcomp(&filter.regex, text + filter.negative, REG_EXTENDED | REG_NOSUB) != 0;
    for (size_t i = 0; i < bench.row_count; i++) {
        row_name(&bench.rows[i], name);
        shim_register(name, measure, &bench.rows[i], 0);
        runs += passes(&filter, name) ? bench.repetitions : 0;
    }
    for (size_t i = 0; i < bench.pair_count; i++) {
        const int repetitions = repetitions_of(&bench.pairs[i]);
        bench_pair_name(&bench.pairs[i], name, sizeof name);
        shim_register(name, measure_pair, &bench.pairs[i], repetitions);
        if (passes(&filter, name))
            runs += repetitions ? (size_t)repetitions : bench.repetitions;
    }
    if (!filter.all)
        regfree(&filter.regex);
    return runs;
}

static int make_memory(void) {
    size_t elements = 1, channels = 1, ws_size = 1;
    for (size_t i = 0; i < bench.case_count; i++) {
        const bench_case *test = &bench.cases[i];
        const bench_shape *s = test->shape;
        const size_t ws = bench_workspace(test->op, test->layout, s->n, s->c, s->hw);
        elements = s->n * s->c * s->hw > elements ? s->n * s->c * s->hw : elements;
        channels = s->c > channels ? s->c : channels;
        ws_size = ws > ws_size ? ws : ws_size;
    }
    size_t form_elements[BENCH_DTYPES] = {0};
    for (size_t i = 0; i < bench.pair_count; i++) {
        const bench_pair *pair = &bench.pairs[i];
        if (!pair->jobs)
            bench_pair_sizes(pair, form_elements, &ws_size);
        channels = pair->c > channels ? pair->c : channels;
    }
    elements = form_elements[BNORM_F32] > elements ? form_elements[BNORM_F32] : elements;
    return bench_memory_create(&bench.memory, elements + 1, channels, ws_size) &&
           bench_memory_add_forms(&bench.memory, form_elements);
}

static int make_threads(void) {
    if (bench.options.threads > 1) {
        bench.pool = bench_pool_create(bench.options.threads);
        if (!bench.pool)
            return 0;
        bench.exec = (bnorm_exec){
            .parallel = bench_pool_parallel, .pool = bench.pool, .threads = bench.options.threads};
    }
    bench.roof = roof_create(bench.options.threads, &bench.exec);
    bench.two_threads = bench_pool_create(2);
    bench.lab = (bench_lab){
        .memory = &bench.memory,
        .roof = bench.roof,
        .exec = &bench.exec,
        .threads = bench.options.threads,
        .two_threads = {.parallel = bench_pool_parallel, .pool = bench.two_threads, .threads = 2},
    };
    return bench.roof && bench.two_threads;
}

/* ---------------------------------------------------------------------------------------------- */
/* The whole */

static void add_context(const char *cpu) {
    char sets[128] = "", threads[32];
    const bnorm_isa *isa;
    for (size_t i = 0; (isa = bench_isa_at(i)) != NULL; i++)
        snprintf(sets + strlen(sets), sizeof sets - strlen(sets), "%s%s", i ? "," : "",
                 bnorm_isa_name(isa));
    snprintf(threads, sizeof threads, "%zu", bench.options.threads);
    shim_context("bnorm_version", bnorm_version());
    shim_context("bnorm_cpu", cpu);
    shim_context("bnorm_sets", sets);
    shim_context("bnorm_threads", threads);
}

static void print_result(const char *program, const char *cpu, const char *out) {
    printf("\nbnorm %s on %s, %zu thread%s (plain C: 1); geometric means over shapes\n",
           bnorm_version(), cpu, bench.options.threads, bench.options.threads > 1 ? "s" : "");
    report_print(bench.rows, bench.row_count);
    printf("\nThe roof is the fastest copy (backward: triad) of the same bytes, measured in this "
           "run:\n");
    roof_print_methods(bench.roof);
    printf("%% of roof counts every tensor once. An NHWC tensor beyond the caches is read twice in "
           "training\nand backward, which then end at 67%% and 60%%.\n");
    report_print_pairs(bench.pairs, bench.pair_count);
    if (bench.unsupported)
        printf("\nThis build, or this CPU, has no SLEEF: its activations were not measured.\n");
    if (bench.options.selection != SMOKE)
        report_print_claims(bench.pairs, bench.pair_count);
    printf("\n");
    if (!bench.options.has_out)
        printf("All figures: %s\n", out);
    printf("Next: `make plot` draws them, `make bench-full` measures all shapes, `%s --help`.\n",
           program);
}

static void clean_up(void) {
    roof_destroy(bench.roof);
    if (bench.pool)
        bench_pool_destroy(bench.pool);
    if (bench.two_threads)
        bench_pool_destroy(bench.two_threads);
    for (int list = 0; list < BENCH_JOB_LISTS; list++)
        for (int op = 0; op < BENCH_OPS; op++)
            for (int layout = 0; layout < 2; layout++)
                bench_jobs_destroy(bench.jobs[list][op][layout]);
    bench_memory_destroy(&bench.memory);
    free(bench.pairs);
    free(bench.entries);
    free(bench.rows);
    free(bench.cases);
    free(bench.shapes);
}

int main(int argc, char **argv) {
    if (!parse_options(&argc, argv, &bench.options))
        return 1;
    const char *slash = strrchr(argv[0], '/');
    char out[400];
    snprintf(out, sizeof out, "%.*sbench.json", slash ? (int)(slash + 1 - argv[0]) : 0, argv[0]);
    initialize_benchmark(argc, argv, out);
    bench.shapes = bench_shapes_read(bench.options.shapes, &bench.shape_count);
    if (!bench.shapes)
        return 1;
    if (!make_rows() || !make_pairs() || !make_memory() || !make_threads()) {
        fprintf(stderr, "bnorm-bench: not enough memory or threads; select fewer shapes.\n");
        clean_up();
        return 1;
    }
    const char *cpu = bench_cpu_name();
    add_context(cpu);
    bench.runs_expected = register_rows();
    bench.started = bench_seconds(BENCH_WALL);
    const size_t ran = shim_run(!bench.options.formatted);
    clear_progress();
    if (ran == 0)
        fprintf(stderr,
                "bnorm-bench: the filter selects no row; --benchmark_list_tests shows the names, "
                "--full adds shapes.\n");
    else if (!bench.options.listing && !bench.options.formatted)
        print_result(argv[0], cpu, out);
    if (bench.wrong)
        fprintf(stderr, "bnorm-bench: a result is wrong, see above; its rows were not timed.\n");
    const int failed = ran == 0 || bench.wrong;
    clean_up();
    return failed;
}
