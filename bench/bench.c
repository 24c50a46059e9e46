/* SPDX-License-Identifier: MIT
 *
 * bnorm-bench: how fast bnorm is on this machine, beside the plain C loop and the roof, which is
 * what the memory system does with the same bytes when nothing is computed; on request types,
 * layouts and fusions, each against what it should be compared with.
 *
 * Build: all of bench/; plain.c for this CPU, as a user would build it (without -march=native for
 * another one); the only C++ is the shim.
 *
 *   cc  -std=c11 -O2 -ffp-contract=off -DBNORM_SLEEF=1 -Iinclude -c bench/[!p]*.c bench/pool.c
 *   cc  -std=c11 -O3 -march=native -ffp-contract=fast -Iinclude -c bench/plain.c
 *   c++ -std=c++11 -O2 -c bench/shim.cc
 *   c++ -o build/bnorm-bench *.o libbnorm.a -lbenchmark -lsleef -lpthread -lm
 *
 * Run from the repository root; --help lists the options. It shows progress on stderr and tables on
 * stdout, or what --benchmark_format asks for. The exit status is 1 where a kernel's result is
 * wrong or nothing was measured. */
#define _POSIX_C_SOURCE 200809L /* regcomp, isatty */

#include <errno.h>
#include <regex.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "bnorm.h"
#include "clock.h"
#include "cpu_name.h"
#include "pool.h"
#include "report.h"
#include "roof.h"
#include "rows.h"
#include "shapes.h"
#include "shim.h"

enum { MAX_OWN = 16, SMOKE_ELEMENTS = 4096 };
static const double memory_limit = 2.0 * (1 << 30); /* of the tensors of floats */
/* The scalar set is timed on tensors of up to this size. */
static const size_t scalar_elements = (size_t)1 << 20;

enum selection { QUICK, CLAIMS, FULL, SMOKE };

typedef struct options {
    enum selection selection;
    const char *shapes, *filter, *json;
    bench_shape own[MAX_OWN]; /* --shape */
    size_t own_count;
    size_t threads;
    int listing;   /* --list */
    int formatted; /* --benchmark_format: Google Benchmark writes to stdout, not we */
} options;

typedef struct session {
    options options;
    char *flags[8], **args; /* of Google Benchmark */
    size_t flag_count;
    bench_memory memory;
    bench_pool *pool;
    bnorm_exec exec;
    bench_roof *roof;
    bench_shape *shapes;
    size_t shape_count;
    bench_entry *entries;
    size_t entry_count;
    int unsupported; /* activations of SLEEF */
    bench_row *rows;
    size_t row_count, row_capacity;
    bench_jobs *jobs[BENCH_JOB_LISTS][BENCH_OPS][2];
    bench_pool *two_threads;
    bench_lab lab;
    size_t repetitions;              /* of the flags */
    int repetitions_given;           /* by the user: for all rows */
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
    puts("bnorm-bench: speed of bnorm on this machine, beside plain C and the roof (the\n"
         "fastest copy of the same bytes). Every result is checked before it is timed.\n"
         "\n"
         "What is measured\n"
         "  --shape [NAME:]N,C[,H,W] this shape and no other; several times for several\n"
         "  --filter REGEX           rows by name: op/layout/type/set/network/shape,\n"
         "                           as in training/nchw/bf16; -REGEX for all others\n"
         "  --threads N              threads of bnorm and the roof; $BNORM_THREADS or 1\n"
         "  --full                   all shapes, and all types, layouts and fusions (long)\n"
         "  --claims                 the project's targets: types, layouts, fusions, jobs\n"
         "  --smoke                  a few tiny shapes, to see that it works\n"
         "  --shapes FILE            another list than bench/shapes.txt, which says how\n"
         "\n"
         "What comes out\n"
         "  --json FILE              all figures; bench.json beside the program by default\n"
         "  --list                   the names of the rows, without measuring\n"
         "  --benchmark_...          any flag of Google Benchmark: --benchmark_format=csv,\n"
         "                           --benchmark_repetitions=9, --benchmark_min_time=0.01\n"
         "\n"
         "For example\n"
         "  build/bnorm-bench --shape 8,64,56,56 --shape head:128,1000\n"
         "  make bench BENCH='--shape 1,256,14,14 --filter inference --threads 2'");
}

static int starts_with(const char *text, const char *start) {
    return strncmp(text, start, strlen(start)) == 0;
}

/* Ends the program: nothing has been measured yet. */
static void fail(const char *format, ...) {
    va_list values;
    va_start(values, format);
    fprintf(stderr, "bnorm-bench: ");
    vfprintf(stderr, format, values);
    fprintf(stderr, "\n");
    va_end(values);
    exit(1);
}

static void *required(void *memory) {
    if (!memory)
        fail("not enough memory. Select fewer shapes.");
    return memory;
}

/* The value of argv[*i], if that is the option "--name=value" or "--name value"; else NULL. */
static const char *value_of(char **argv, int *i, const char *name) {
    const size_t length = strlen(name);
    if (strncmp(argv[*i], name, length) != 0)
        return NULL;
    if (argv[*i][length] == '=')
        return argv[*i] + length + 1;
    if (argv[*i][length] != '\0')
        return NULL;
    if (!argv[*i + 1])
        fail("%s needs a value; see --help.", name);
    return argv[++*i];
}

static void parse_threads(const char *text, size_t *threads) {
    char *end;
    const unsigned long value = strtoul(text, &end, 10);
    *threads = value;
    if (end == text || *end != '\0' || value < 1 || value > 256)
        fail("--threads and $BNORM_THREADS take a number from 1 to 256, not %s.", text);
}

static double bytes_of(const bench_shape *shape) {
    return (double)bench_memory_bytes(1) * (double)shape->n * (double)shape->c * (double)shape->hw;
}

static void add_own_shape(const char *text, options *o) {
    if (o->own_count == MAX_OWN)
        fail("more than %d shapes: put them into a file for --shapes.", MAX_OWN);
    bench_shape *shape = &o->own[o->own_count++];
    if (!bench_shape_parse(text, shape))
        fail("%s is no shape: --shape 8,64,56,56 is 8 images of 64 channels of 56x56, 8,1000 is "
             "(N, C) data, and name:8,64,56,56 has a name.",
             text);
    if (shape->n * shape->hw < 2)
        fail("%s has one value per channel, from which there are no statistics: make N larger.",
             text);
    if (bytes_of(shape) > memory_limit)
        fail("the tensors of %s take more than 2 GiB: make N smaller.", text);
}

/* Takes our options out of argv; what is left is Google Benchmark's. */
static void parse_options(int *argc, char **argv, options *o) {
    const char *threads = getenv("BNORM_THREADS"), *value;
    int kept = 1;
    *o = (options){.shapes = "bench/shapes.txt"};
    for (int i = 1; i < *argc; i++) {
        char *const arg = argv[i];
        if (strcmp(arg, "--help") == 0 || strcmp(arg, "-h") == 0) {
            print_help();
            exit(0);
        } else if (strcmp(arg, "--full") == 0)
            o->selection = FULL;
        else if (strcmp(arg, "--claims") == 0)
            o->selection = CLAIMS;
        else if (strcmp(arg, "--smoke") == 0)
            o->selection = SMOKE;
        else if (strcmp(arg, "--list") == 0 || strcmp(arg, "--benchmark_list_tests") == 0 ||
                 strcmp(arg, "--benchmark_list_tests=true") == 0)
            o->listing = 1;
        else if ((value = value_of(argv, &i, "--shapes")) != NULL)
            o->shapes = value;
        else if ((value = value_of(argv, &i, "--shape")) != NULL)
            add_own_shape(value, o);
        else if ((value = value_of(argv, &i, "--threads")) != NULL)
            threads = value;
        else if ((value = value_of(argv, &i, "--filter")) != NULL ||
                 (value = value_of(argv, &i, "--benchmark_filter")) != NULL)
            o->filter = value;
        else if ((value = value_of(argv, &i, "--json")) != NULL ||
                 (value = value_of(argv, &i, "--benchmark_out")) != NULL)
            o->json = value;
        else if (starts_with(arg, "--benchmark_") || starts_with(arg, "--v="))
            argv[kept++] = arg;
        else
            fail("%s is no option; --help lists them.", arg);
    }
    argv[kept] = NULL;
    *argc = kept;
    for (int i = 1; i < kept; i++)
        o->formatted |= starts_with(argv[i], "--benchmark_format=");
    parse_threads(threads && *threads ? threads : "1", &o->threads);
}

/* For Google Benchmark, which takes flags out of its array. */
static char *flag(const char *name, const char *value) {
    const size_t size = strlen(name) + strlen(value) + 1;
    char *text = bench.flags[bench.flag_count++] = required(malloc(size));
    snprintf(text, size, "%s%s", name, value);
    return text;
}

/* Finds out now what would otherwise end a run that has been measured. */
static void check_output(const char *json) {
    FILE *file = fopen(json, "a");
    if (!file)
        fail("cannot write %s: %s. --json FILE puts the figures elsewhere.", json, strerror(errno));
    fclose(file);
}

/* Puts our defaults before the user's flags, whose later values win. The machine is shared with
 * others as a rule: many short repetitions of all rows in random order, and their median. */
static void initialize_benchmark(int argc, char **argv) {
    static const struct {
        const char *min_time, *repetitions;
    } defaults[] = {[QUICK] = {"0.001", "15"},
                    [CLAIMS] = {"0.001", "9"},
                    [FULL] = {"0.002", "7"},
                    [SMOKE] = {"0.0002", "3"}};
    const options *o = &bench.options;
    int count = 0;
    char **args = bench.args = required(calloc((size_t)argc + 8, sizeof *args));
    args[count++] = argv[0];
    args[count++] = flag("--benchmark_min_time=", defaults[o->selection].min_time);
    args[count++] = flag("--benchmark_repetitions=", defaults[o->selection].repetitions);
    args[count++] = flag("--benchmark_enable_random_interleaving=", "true");
    args[count++] = flag("--benchmark_report_aggregates_only=", "true");
    if (o->filter)
        args[count++] = flag("--benchmark_filter=", o->filter);
    args[count++] =
        o->listing ? flag("--benchmark_list_tests=", "true") : flag("--benchmark_out=", o->json);
    for (int i = 1; i < argc; i++)
        args[count++] = argv[i];
    for (int i = 1; i < count; i++)
        if (starts_with(args[i], "--benchmark_repetitions=")) {
            bench.repetitions = strtoul(strchr(args[i], '=') + 1, NULL, 10);
            bench.repetitions_given = i > 2;
        }
    shim_initialize(&count, args, print_help);
    if (shim_unrecognized(count, args))
        fail("--help lists the options.");
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
    } else if (done == 1 || done == expected ||
               done * 10 / expected > bench.runs_shown * 10 / expected) {
        fprintf(stderr, "[%4zu/%zu] %3.0f s\n", done, expected, seconds);
        bench.runs_shown = done;
    }
}

static void clear_progress(void) {
    if (!bench.options.formatted && isatty(STDERR_FILENO))
        fprintf(stderr, "\r\033[K");
}

static void measure(shim_state *state, void *arg) {
    bench_row *row = arg;
    char name[BENCH_ROW_NAME];
    bench_row_name(row, name, sizeof name);
    show_progress(name);
    if (!bench_row_is_checked(row))
        clear_progress(); /* for what the check has to say */
    /* The first runs look for the number of iterations. */
    if (shim_iterations(state) == row->samples.iterations || row->samples.count == 0)
        bench.runs_done++;
    bench.wrong |= !bench_row_measure(row, &bench.lab, state);
}

/* ---------------------------------------------------------------------------------------------- */
/* Rows */

/* Is this shape measured with all entries and all their rivals? */
static int is_in_depth(const bench_shape *shape) {
    switch (bench.options.selection) {
    case QUICK:
        return 0;
    case CLAIMS:
        return shape->forms;
    case SMOKE:
        return shape->quick && shape->n * shape->c * shape->hw <= SMOKE_ELEMENTS;
    case FULL:
        break;
    }
    return shape->forms || shape->quick;
}

static int is_selected(const bench_entry *entry, const bench_shape *shape) {
    switch (bench.options.selection) {
    case QUICK:
        return entry->on_screen && shape->quick;
    case CLAIMS:
        return entry->claims != BENCH_CLAIMS_NOTHING && is_in_depth(shape);
    case SMOKE:
        return is_in_depth(shape);
    case FULL:
        break;
    }
    return entry->on_screen || is_in_depth(shape);
}

static int is_selected_set(const bench_row *row) {
    const bench_entry *entry = row->entry;
    const int on_screen_f32 = entry->on_screen && entry->form.dtype == BNORM_F32;
    if (!row->isa)
        return on_screen_f32;
    /* The scalar set is the specification, not the offer: it is slow. */
    if (strcmp(bnorm_isa_name(row->isa), "scalar") == 0 && bench_isa_at(1))
        return bench.options.selection == FULL && on_screen_f32 && row->shape->quick &&
               row->n * row->c * row->hw <= scalar_elements;
    /* Beyond the caches all sets wait for memory. */
    return bench.options.selection != CLAIMS || entry->claims == BENCH_CLAIMS_ALL_SETS ||
           row->isa == bench_isa_at(0) || row->column == BENCH_CACHE;
}

static void add_row(const bench_row *row) {
    if (!is_selected_set(row))
        return;
    if (bench.row_count == bench.row_capacity) {
        bench.row_capacity = 2 * bench.row_capacity + 256;
        bench.rows = required(realloc(bench.rows, bench.row_capacity * sizeof *bench.rows));
    }
    bench.rows[bench.row_count++] = *row;
}

/* An entry on one shape: all layouts and kernel sets, and plain C. */
static void add_rows(const bench_entry *entry, const bench_shape *shape) {
    for (int layout = 0; layout < 2; layout++)
        for (size_t i = 0; i == 0 || bench_isa_at(i - 1); i++) {
            bench_row row = bench_row_make(entry, (bnorm_layout)layout, shape, bench_isa_at(i));
            if (!is_in_depth(shape))
                row.rivals = 1;
            if (entry->layouts >> layout & 1 && bench_row_is_sensible(&row))
                add_row(&row);
        }
}

/* One thread and two. */
static void add_job_rows(const bench_entry *entry) {
    const bnorm_isa *isa;
    for (int layout = 0; layout < 2; layout++) {
        bench_jobs **jobs = &bench.jobs[entry->jobs][entry->op][layout];
        *jobs = required(bench_jobs_create(entry->jobs, entry->op, (bnorm_layout)layout));
        for (size_t i = 0; (isa = bench_isa_at(i)) != NULL; i++)
            for (int threads = 1; threads <= 2; threads++) {
                const bench_row row = {
                    .entry = entry,
                    .layout = (bnorm_layout)layout,
                    .column = threads == 1 ? BENCH_1_THREAD : BENCH_2_THREADS,
                    .isa = isa,
                    .rivals = 1,
                    .jobs = *jobs,
                };
                add_row(&row);
            }
    }
}

static void make_rows(void) {
    bench.entries = required(bench_entries_create(&bench.entry_count, &bench.unsupported));
    for (size_t s = 0; s < bench.shape_count; s++)
        if (bytes_of(&bench.shapes[s]) > memory_limit) {
            fprintf(stderr, "bnorm-bench: skipped %s/%s, which takes more than 2 GiB.\n",
                    bench.shapes[s].network, bench.shapes[s].size);
            bench.shapes[s--] = bench.shapes[--bench.shape_count];
        }
    for (const bench_entry *e = bench.entries; e < bench.entries + bench.entry_count; e++) {
        if (e->group == BENCH_JOBS && bench.options.own_count == 0 &&
            bench.options.selection != QUICK)
            add_job_rows(e);
        for (size_t s = 0; s < bench.shape_count && e->group != BENCH_JOBS; s++)
            if (is_selected(e, &bench.shapes[s]))
                add_rows(e, &bench.shapes[s]);
    }
    for (size_t i = 0; i < bench.row_count; i++) {
        bench_row *r = &bench.rows[i], *before = &bench.rows[i ? i - 1 : 0];
        const int same = i && !r->jobs && r->entry == before->entry && r->shape == before->shape &&
                         r->layout == before->layout;
        r->first = same ? before->first : r;
    }
}

/* Repetitions of a row: fewer of those that take long. 0 = as the flags say. */
static int repetitions_of(const bench_row *row) {
    const int is_float = row->entry->on_screen && row->entry->form.dtype == BNORM_F32;
    if (bench.repetitions_given || bench.options.selection == SMOKE)
        return 0;
    if (bench.options.selection == FULL)
        return is_float ? 0 : 3;
    return row->jobs || row->column != BENCH_MEMORY ? 0 : 5;
}

/* Registers all rows. Returns how many runs the filter selects: Google Benchmark tells only at the
 * end. */
static size_t register_rows(const char *filter) {
    const int negative = filter[0] == '-', all = !*filter || strcmp(filter, "all") == 0;
    regex_t regex;
    char name[BENCH_ROW_NAME];
    size_t runs = 0;
    const int error = all ? 0 : regcomp(&regex, filter + negative, REG_EXTENDED | REG_NOSUB);
    if (error) {
        regerror(error, &regex, name, sizeof name);
        fail("--filter %s: %s. It takes a regular expression, as grep -E does.", filter, name);
    }
    for (size_t i = 0; i < bench.row_count; i++) {
        const int repetitions = repetitions_of(&bench.rows[i]);
        bench_row_name(&bench.rows[i], name, sizeof name);
        shim_register(name, measure, &bench.rows[i], repetitions);
        if (all || (regexec(&regex, name, 0, NULL, 0) == 0) != negative)
            runs += repetitions ? (size_t)repetitions : bench.repetitions;
    }
    if (!all)
        regfree(&regex);
    return runs;
}

static int make_memory(void) {
    size_t elements[BENCH_DTYPES] = {[BNORM_F32] = 1}, channels = 1, ws_size = 1;
    for (size_t i = 0; i < bench.row_count; i++) {
        const bench_row *row = &bench.rows[i];
        if (!row->jobs)
            bench_row_sizes(row, elements, &ws_size);
        channels = row->c > channels ? row->c : channels;
    }
    return bench_memory_create(&bench.memory, elements[BNORM_F32] + 1, channels, ws_size) &&
           bench_memory_add_forms(&bench.memory, elements);
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

static void print_result(const char *cpu) {
    const options *o = &bench.options;
    const char *threads = o->threads > 1 ? " threads" : " thread";
    printf("bnorm %s on %s, %zu%s%s\n", bnorm_version(), cpu, o->threads, threads,
           o->own_count ? "" : "; geometric means over shapes");
    if (o->selection != CLAIMS) {
        report_screen(bench.rows, bench.row_count, o->own, o->own_count);
        printf("\n"
               "GB/s  of the bytes that have to be read and written, each tensor once\n"
               "roof  percent of the rate of the fastest copy of these bytes in this run; beyond\n"
               "      the caches NHWC training and backward read twice and end at 67 and 60 %%\n"
               "vs C  times as fast as a plain C loop on floats (-O3 -march=native, 1 thread)\n");
    }
    if (o->selection != QUICK) {
        report_groups(bench.rows, bench.row_count);
        if (bench.unsupported)
            printf("\nThis build, or this CPU, has no SLEEF: its activations were not measured.\n");
    }
    if (o->selection == CLAIMS || o->selection == FULL)
        report_claims(bench.rows, bench.row_count);
    printf("\n");
    if (o->selection == QUICK && !o->own_count)
        printf("Your own shape: make bench BENCH='--shape 8,64,56,56'; more: BENCH=--help\n");
    printf("All figures: %s\n", o->json);
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
    for (size_t i = 0; i < bench.flag_count; i++)
        free(bench.flags[i]);
    free(bench.args);
    free(bench.entries);
    free(bench.rows);
    if (bench.shapes != bench.options.own)
        free(bench.shapes);
}

int main(int argc, char **argv) {
    options *o = &bench.options;
    const char *slash = strrchr(argv[0], '/');
    char json[400];
    parse_options(&argc, argv, o);
    snprintf(json, sizeof json, "%.*sbench.json", slash ? (int)(slash + 1 - argv[0]) : 0, argv[0]);
    o->json = o->json ? o->json : json;
    initialize_benchmark(argc, argv);
    bench.shape_count = o->own_count;
    bench.shapes = o->own_count ? o->own : bench_shapes_read(o->shapes, &bench.shape_count);
    if (!bench.shapes)
        return 1;
    make_rows();
    bench.runs_expected = register_rows(shim_filter());
    if (bench.runs_expected == 0)
        fail("the filter selects no row. --list shows the names; --full and --claims have more.");
    if (!o->listing)
        check_output(o->json);
    if (!make_memory() || !make_threads())
        fail("not enough memory or threads. Select fewer shapes.");
    const char *cpu = bench_cpu_name();
    add_context(cpu);
    bench.started = bench_seconds(BENCH_WALL);
    const size_t ran = shim_run(!o->formatted);
    clear_progress();
    if (ran && !o->listing && !o->formatted)
        print_result(cpu);
    if (bench.wrong)
        fprintf(stderr, "bnorm-bench: a result is wrong, see above; its rows were not timed.\n");
    clean_up();
    return ran == 0 || bench.wrong;
}
