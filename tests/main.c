/* SPDX-License-Identifier: MIT
 *
 * The test runner: all cases of all files, on every kernel set that this CPU runs. Each case is a
 * cmocka test in a process of its own, so that one that crashes, hangs or ruins the heap fails by
 * its name while the others go on; as many processes as there are cores run side by side.
 * `bnorm-tests --help` has the options. */
#define _GNU_SOURCE 1 /* asprintf, MAP_ANONYMOUS, wait4 */
#include "../src/fp_mode.h"
#include "harness.h"

#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#if !defined(_WIN32)
#include <fnmatch.h>
#include <signal.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/wait.h>
#include <unistd.h>
#endif

/* What dispatch may offer on this architecture, fastest first. */
static const char *const known_sets[] = {
#if defined(__x86_64__) || defined(__i386__)
    "avx512",
    "avx2",
#elif defined(__aarch64__) || defined(__arm__)
    "neon",
#endif
    "scalar",
};
#define KNOWN_SETS (sizeof known_sets / sizeof known_sets[0])

/* The cases whose names begin alike, up to the first slash. */
struct family {
    const char *name; /* of its first case */
    int length;
    size_t count, done, failed;
    double seconds; /* of CPU time */
};

struct test_case {
    struct test test; /* as the process that runs it finds it */
    test_fn run;
    struct family *family;
};

struct suite {
    const char *program;
    struct test_case *cases;
    size_t count, capacity;
    size_t registered; /* before filtering */
    char **filters;
    int filter_count;
    uint64_t seed;
    struct family families[64];
    size_t family_count;
    size_t passed, failed, skipped;
    size_t passed_on[KNOWN_SETS], passed_without_set;
    int verbose;
};

/* Shared with the process that runs the case: what is left of it after a crash. */
struct running {
    struct test test;
    test_fn run;
    int finished; /* the case has come to its end: it was neither failed nor skipped */
    int closed;   /* and cmocka to its own: the process did not leave on the way */
};

/* One of the processes that run side by side; pid 0 = none now. */
struct worker {
    long pid;
    const struct test_case *current;
    struct running *running;
    FILE *output;
};

static _Noreturn void die(const char *what) {
    perror(what);
    exit(2);
}

/* ---------------------------------------------------------------------------------------------- */
/* Registering                                                                                    */

/* The last filter that matches decides; all are in where the first one leaves something out. */
static int selected(const struct suite *s, const char *name) {
    int in = s->filter_count == 0 || s->filters[0][0] == '!';
    for (int i = 0; i < s->filter_count; i++) {
        const int leave_out = s->filters[i][0] == '!';
        const char *filter = s->filters[i] + leave_out;
        if (strstr(name, filter) || fnmatch(filter, name, 0) == 0)
            in = !leave_out;
    }
    return in;
}

static size_t set_index(const char *name) {
    size_t i = 0;
    while (i < KNOWN_SETS && strcmp(known_sets[i], name) != 0)
        i++;
    return i;
}

/* FNV-1a: each case has its own data, whatever the filter. */
static uint64_t hash(const char *s) {
    uint64_t h = 0xcbf29ce484222325u;
    for (; *s; s++)
        h = (h ^ (unsigned char)*s) * 0x100000001b3u;
    return h;
}

static struct family *family_of(struct suite *s, const char *name) {
    const int length = (int)strcspn(name, "/");
    for (size_t i = 0; i < s->family_count; i++)
        if (s->families[i].length == length && !strncmp(s->families[i].name, name, (size_t)length))
            return &s->families[i];
    if (s->family_count == sizeof s->families / sizeof s->families[0]) {
        fprintf(stderr, "bnorm-tests: too many families: raise the size of `families`\n");
        exit(2);
    }
    struct family *f = &s->families[s->family_count++];
    f->name = name;
    f->length = length;
    return f;
}

void suite_add(struct suite *s, const bnorm_isa *isa, test_fn run, const void *param,
               const char *name, ...) {
    char *full_name;
    va_list args;
    va_start(args, name);
    if (vasprintf(&full_name, name, args) < 0)
        die("vasprintf");
    va_end(args);
    s->registered++;
    if (!selected(s, full_name)) {
        free(full_name);
        return;
    }
    if (s->count == s->capacity) {
        s->capacity = s->capacity ? 2 * s->capacity : 64;
        s->cases = realloc(s->cases, s->capacity * sizeof *s->cases);
        if (!s->cases)
            die("realloc");
    }
    struct test_case *c = &s->cases[s->count++];
    memset(c, 0, sizeof *c);
    c->test.name = full_name;
    c->test.isa = isa;
    c->test.param = param;
    c->test.rng.state = s->seed ^ hash(full_name);
    c->run = run;
    c->family = family_of(s, full_name);
    c->family->count++;
}

void suite_add_per_isa(struct suite *s, test_fn run, const void *param, const char *name) {
    const char *hole = strstr(name, "%s");
    if (!hole) {
        fprintf(stderr, "bnorm-tests: the name \"%s\" lacks %%s for the kernel set\n", name);
        exit(2);
    }
    const bnorm_isa *isa;
    for (size_t i = 0; (isa = bnorm_isa_at(i)) != NULL; i++)
        suite_add(s, isa, run, param, "%.*s%s%s", (int)(hole - name), name, bnorm_isa_name(isa),
                  hole + 2);
}

/* ---------------------------------------------------------------------------------------------- */
/* The end of a case                                                                              */

static unsigned time_limit(void) {
    const char *seconds = getenv("BNORM_TEST_TIMEOUT");
    return seconds && *seconds ? (unsigned)strtoul(seconds, NULL, 10) : 600;
}

static void print_failure(const struct suite *s, const struct worker *w, int status) {
    const struct test *test = &w->running->test;
    fflush(stdout);
    char text[4096];
    if (w->output)
        rewind(w->output);
    for (size_t size; w->output && (size = fread(text, 1, sizeof text, w->output)) > 0;)
        fwrite(text, 1, size, stdout);
    if (WIFSIGNALED(status) && WTERMSIG(status) == SIGALRM)
        printf("%s: not done after %u s (BNORM_TEST_TIMEOUT=)\n", test->name, time_limit());
    else if (WIFSIGNALED(status))
        printf("%s: ended by signal %d (%s)\n", test->name, WTERMSIG(status),
               strsignal(WTERMSIG(status)));
    else if (!w->running->closed)
        printf("%s: ended with exit status %d\n", test->name, WEXITSTATUS(status));
    printf("%s: failed at: %s\n", test->name, test->context[0] ? test->context : "(no context)");
    printf("Run it again: %sBNORM_SEED=%" PRIu64 " %s '%s'\n\n", test_depth_setting(), s->seed,
           s->program, test->name);
}

static void finish(struct suite *s, const struct worker *w, int status, double seconds) {
    const struct test_case *c = w->current;
    struct family *f = c->family;
    const int good = WIFEXITED(status) && WEXITSTATUS(status) == 0 && w->running->closed;
    f->done++;
    f->seconds += seconds;
    if (!good) {
        s->failed++;
        f->failed++;
        print_failure(s, w, status);
    } else if (!w->running->finished) {
        s->skipped++;
    } else {
        s->passed++;
        if (c->test.isa)
            s->passed_on[set_index(bnorm_isa_name(c->test.isa))]++;
        else
            s->passed_without_set++;
    }
    if (s->verbose)
        printf("%-7s %7.2f s  %s\n",
               !good                  ? "FAILED"
               : w->running->finished ? "passed"
                                      : "skipped",
               seconds, c->test.name);
    if (f->done == f->count) {
        printf("  %-12.*s %5zu cases %8.1f s", f->length, f->name, f->count, f->seconds);
        if (f->failed)
            printf("  %zu FAILED", f->failed);
        putchar('\n');
    }
}

#if defined(_WIN32)

/* ---------------------------------------------------------------------------------------------- */
/* One process                                                                                    */

jmp_buf case_left;

static void run_all(struct suite *s, size_t jobs) {
    static struct running running;
    (void)jobs;
    for (size_t i = 0; i < s->count; i++) {
        const struct worker w = {.current = &s->cases[i], .running = &running};
        running = (struct running){.test = w.current->test, .run = w.current->run, .closed = 1};
        const ULONGLONG began = GetTickCount64();
        const int left = setjmp(case_left);
        if (!left) {
            running.run(&running.test);
            running.finished = 1;
        }
        test_release(&running.test);
        finish(s, &w, left == CASE_FAILED, 1e-3 * (double)(GetTickCount64() - began));
        fflush(stdout);
    }
}

#else

/* ---------------------------------------------------------------------------------------------- */
/* In the process of a case                                                                       */

/* cmocka takes these signals for failures and goes on in the same process, which a ruined heap or
 * a lock that is held may stop for ever: what was set before is better. That ends the process, and
 * a sanitizer reports first. */
static const int crashes[] = {SIGSEGV, SIGBUS, SIGILL, SIGFPE, SIGSYS};
#define CRASHES (sizeof crashes / sizeof crashes[0])
static struct sigaction on_crash[CRASHES];

static void run_case(void **state) {
    struct running *r = *state;
    for (size_t i = 0; i < CRASHES; i++)
        sigaction(crashes[i], &on_crash[i], NULL);
    r->run(&r->test);
    r->finished = 1;
}

/* cmocka runs this after failed cases too. */
static int close_case(void **state) {
    struct running *r = *state;
    test_release(&r->test);
    r->closed = 1;
    return 0;
}

static _Noreturn void run_in_child(const struct worker *w) {
    if (dup2(fileno(w->output), STDOUT_FILENO) < 0 || dup2(fileno(w->output), STDERR_FILENO) < 0)
        die("dup2");
    setvbuf(stdout, NULL, _IOLBF, BUFSIZ); /* a crash loses nothing */
    for (size_t i = 0; i < CRASHES; i++)
        sigaction(crashes[i], NULL, &on_crash[i]);
    alarm(time_limit());
    const struct CMUnitTest test = {w->running->test.name, run_case, NULL, close_case, w->running};
    exit(_cmocka_run_group_tests("bnorm", &test, 1, NULL, NULL) != 0);
}

/* ---------------------------------------------------------------------------------------------- */
/* Many processes                                                                                 */

static void start(struct worker *w, const struct test_case *c) {
    w->current = c;
    *w->running = (struct running){.test = c->test, .run = c->run};
    rewind(w->output);
    if (ftruncate(fileno(w->output), 0))
        die("ftruncate");
    fflush(stdout);
    w->pid = fork();
    if (w->pid < 0)
        die("fork");
    if (w->pid == 0)
        run_in_child(w);
}

static double seconds_of(const struct rusage *usage) {
    return (double)usage->ru_utime.tv_sec + (double)usage->ru_stime.tv_sec +
           1e-6 * (double)(usage->ru_utime.tv_usec + usage->ru_stime.tv_usec);
}

static struct worker *worker_of(struct worker *workers, size_t jobs, long pid) {
    for (size_t i = 0; i < jobs; i++)
        if (workers[i].pid == pid)
            return &workers[i];
    return NULL;
}

static void run_all(struct suite *s, size_t jobs) {
    const int terminal = isatty(STDOUT_FILENO);
    struct worker *workers = calloc(jobs, sizeof *workers);
    if (!workers)
        die("calloc");
    for (size_t i = 0; i < jobs; i++) {
        workers[i].running = mmap(NULL, sizeof *workers[i].running, PROT_READ | PROT_WRITE,
                                  MAP_SHARED | MAP_ANONYMOUS, -1, 0);
        workers[i].output = tmpfile();
        if (workers[i].running == MAP_FAILED || !workers[i].output)
            die("bnorm-tests: what a process needs");
    }
    for (size_t started = 0, done = 0; done < s->count;) {
        struct worker *w = started < s->count ? worker_of(workers, jobs, 0) : NULL;
        if (w) {
            start(w, &s->cases[started++]);
            continue;
        }
        int status;
        struct rusage usage;
        const long pid = wait4(-1, &status, 0, &usage);
        if (pid < 0 && errno != EINTR)
            die("wait4");
        w = pid > 0 ? worker_of(workers, jobs, pid) : NULL;
        if (!w)
            continue;
        if (terminal)
            printf("\r\033[K");
        finish(s, w, status, seconds_of(&usage));
        w->pid = 0;
        done++;
        if (terminal && done < s->count)
            printf("%zu of %zu cases, %zu failed: %s", done, s->count, s->failed,
                   w->current->test.name);
    }
    for (size_t i = 0; i < jobs; i++) {
        munmap(workers[i].running, sizeof *workers[i].running);
        fclose(workers[i].output);
    }
    free(workers);
}

#endif

/* ---------------------------------------------------------------------------------------------- */
/* What ran, and what did not                                                                     */

/* Calls f for each name in $BNORM_REQUIRE; returns how many f refused. */
static int for_each_required(const struct suite *s,
                             int (*refuses)(const struct suite *s, const char *name)) {
    const char *list = getenv("BNORM_REQUIRE");
    int refused = 0;
    while (list && *list) {
        const size_t length = strcspn(list, ", ");
        if (length) {
            char name[64];
            snprintf(name, sizeof name, "%.*s", (int)length, list);
            refused += refuses(s, name);
        }
        list += length;
        list += strspn(list, ", ");
    }
    return refused;
}

static int not_usable(const struct suite *s, const char *name) {
    (void)s;
    if (bnorm_isa_find(name))
        return 0;
    fprintf(stderr,
            "bnorm-tests: BNORM_REQUIRE names the kernel set \"%s\", which is not usable here: run "
            "on a CPU that has it, or take it off the list.\n",
            name);
    return 1;
}

static int did_not_run(const struct suite *s, const char *name) {
    const size_t set = set_index(name);
    if (set < KNOWN_SETS && s->passed_on[set])
        return 0;
    printf("bnorm-tests: BNORM_REQUIRE names the kernel set \"%s\", but no case passed on it: "
           "widen the filter or see the failures above.\n",
           name);
    return 1;
}

static void print_sets(const struct suite *s) {
    printf("Passed per kernel set, best here %s:\n", bnorm_isa_name(bnorm_isa_best()));
    for (size_t i = 0; i < KNOWN_SETS; i++)
        if (bnorm_isa_find(known_sets[i]))
            printf("  %-12s %5zu\n", known_sets[i], s->passed_on[i]);
        else
            printf("  %-12s SKIPPED: bnorm has it, but this CPU does not run it. NO TEST COVERS IT "
                   "HERE.\n",
                   known_sets[i]);
    printf("  %-12s %5zu\n", "(no set)", s->passed_without_set);
}

static int usage(FILE *stream, int status) {
    fputs("usage: bnorm-tests [-v] [-j JOBS] [--list] [FILTER ...]\n"
          "Runs the cases whose name contains a filter or matches it as a glob ('apply/*/avx2').\n"
          "After '!' a filter leaves cases out; the last one that matches a name decides.\n"
          "  -v       a line for every case, with its CPU time\n"
          "  -j JOBS  so many processes side by side (default: one per core)\n"
          "  --list   names the cases and runs none\n"
          "  BNORM_REQUIRE=avx2,avx512  fail unless cases ran on these sets\n"
          "  BNORM_SEED=7               other random data (default 1)\n"
          "  BNORM_TEST_FULL=1          more repetitions and sizes, 5 to 10 times as long\n"
          "  BNORM_TEST_QUICK=1         fewer, for emulators and sanitizers\n"
          "  BNORM_TEST_TIMEOUT=600     seconds after which a case is ended, and has failed\n"
          "  BNORM_ONNX_TESTDATA=DIR    where ONNX's test data lies\n"
          "In gdb: set follow-fork-mode child.\n",
          stream);
    return status;
}

static void add_all(struct suite *s) {
    add_kernels(s);
    add_apply(s);
    add_train(s);
    add_backward(s);
    add_blocked(s);
    add_mask(s);
    add_smooth(s);
    add_threads(s);
    add_jobs(s);
    add_pieces(s);
    add_types(s);
    add_types_train(s);
    add_quantized(s);
    add_properties(s);
    add_variants(s);
    add_variant_calls(s);
    add_running(s);
    add_options(s);
    add_fold(s);
    add_errors(s);
    add_describe(s);
    add_fma(s);
    add_cpu(s);
    add_exceptions(s);
    add_onnx(s);
    add_frameworks(s);
}

int main(int argc, char **argv) {
    static struct suite suite;
    (void)argc;
    suite.program = argv[0];
    unsigned long jobs = 1;
#if !defined(_WIN32)
    const long cores = sysconf(_SC_NPROCESSORS_ONLN);
    jobs = cores > 0 ? (unsigned long)cores : 1;
#endif
    int list = 0;
    for (argv++; *argv && **argv == '-'; argv++) {
        if (!strcmp(*argv, "-v")) {
            suite.verbose = 1;
        } else if (!strcmp(*argv, "--list")) {
            list = 1;
        } else if (!strcmp(*argv, "-j") && argv[1] && strtoul(argv[1], NULL, 10)) {
            jobs = strtoul(*++argv, NULL, 10);
        } else if (!strcmp(*argv, "-h") || !strcmp(*argv, "--help")) {
            return usage(stdout, 0);
        } else {
            fprintf(stderr, "bnorm-tests: %s is not understood\n", *argv);
            return usage(stderr, 2);
        }
    }
    suite.filters = argv;
    while (argv[suite.filter_count])
        suite.filter_count++;
    const char *seed = getenv("BNORM_SEED");
    suite.seed = seed && *seed ? strtoull(seed, NULL, 0) : 1;
    race_first_calls();
#if defined(__arm__)
    /* Its Advanced SIMD takes denormals for zero: the other sets can have the same bits if they do, too.
     * Without NEON nothing flushes. */
    if (bnorm_isa_find("neon"))
        bnorm_flush_denormals();
#endif
    if (for_each_required(&suite, not_usable))
        return 1;
    add_all(&suite);
    if (!suite.count) {
        fprintf(stderr,
                "bnorm-tests: none of the %zu cases matches; a filter is a part of a name "
                "or a glob such as 'apply/*/avx2'.\n",
                suite.registered);
        return 1;
    }
    for (size_t i = 0; list && i < suite.count; i++)
        puts(suite.cases[i].test.name);
    if (list)
        return 0;

    printf("bnorm %s: %zu of %zu cases in %lu processes, seed %" PRIu64
           "; CPU time of each family\n",
           bnorm_version(), suite.count, suite.registered, jobs, suite.seed);
    run_all(&suite, jobs);
    print_sets(&suite);
    if (suite.skipped)
        printf("SKIPPED: %zu cases, see -v\n", suite.skipped);
    if (!test_full())
        puts("Not run: more repetitions and sizes of these cases. Run them with: make test-full");
    const int missing = for_each_required(&suite, did_not_run);
    printf("\n%zu passed, %zu failed\n", suite.passed, suite.failed);
    return suite.failed || missing;
}
