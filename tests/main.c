/* SPDX-License-Identifier: MIT
 *
 * The test runner: all cases of all files, on every kernel set that this CPU runs.
 *
 *   bnorm-tests [FILTER ...]   runs the cases whose name contains a filter or matches it as a glob
 *
 *   BNORM_REQUIRE=avx2,avx512  fail unless cases ran on these sets
 *   BNORM_SEED=7               other random data (default 1)
 *   BNORM_TEST_QUICK=1         fewer repetitions, for emulators and sanitizers */
#define _GNU_SOURCE 1 /* asprintf */
#include "harness.h"

#include <fnmatch.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* What dispatch may offer on this architecture, fastest first. */
static const char *const known_sets[] = {
#if defined(__x86_64__) || defined(__i386__)
    "avx512",
    "avx2",
#elif defined(__aarch64__)
    "neon",
#endif
    "scalar",
};
#define KNOWN_SETS (sizeof known_sets / sizeof known_sets[0])

struct test_case {
    struct test test;
    test_fn run;
    int finished;
};

struct suite {
    struct CMUnitTest *tests; /* as cmocka wants them; initial_state is the test_case */
    size_t count, capacity;
    size_t registered; /* before filtering */
    char **filters;
    int filter_count;
    uint64_t seed;
    size_t ran[KNOWN_SETS];
    size_t ran_without_set;
};

static struct suite suite; /* cmocka hands no argument to a group's teardown but through globals */

static _Noreturn void out_of_memory(void) {
    fprintf(stderr, "bnorm-tests: out of memory\n");
    exit(2);
}

static int selected(const struct suite *s, const char *name) {
    for (int i = 0; i < s->filter_count; i++)
        if (strstr(name, s->filters[i]) || fnmatch(s->filters[i], name, 0) == 0)
            return 1;
    return s->filter_count == 0;
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

static void run_case(void **state) {
    struct test_case *c = *state;
    c->run(&c->test);
    c->finished = 1;
    if (c->test.isa) {
        const size_t set = set_index(bnorm_isa_name(c->test.isa));
        if (set < KNOWN_SETS)
            suite.ran[set]++;
    } else {
        suite.ran_without_set++;
    }
}

/* cmocka runs this after failed cases too. */
static int close_case(void **state) {
    struct test_case *c = *state;
    if (!c->finished)
        print_error("%s: failed at: %s\n%s: run it again with BNORM_SEED=%" PRIu64
                    " and its name as argument\n",
                    c->test.name, c->test.context[0] ? c->test.context : "(no context)",
                    c->test.name, suite.seed);
    test_release(&c->test);
    return 0;
}

void suite_add(struct suite *s, const bnorm_isa *isa, test_fn run, const void *param,
               const char *name, ...) {
    char *full_name;
    va_list args;
    va_start(args, name);
    if (vasprintf(&full_name, name, args) < 0)
        out_of_memory();
    va_end(args);
    s->registered++;
    if (!selected(s, full_name)) {
        free(full_name);
        return;
    }
    if (s->count == s->capacity) {
        s->capacity = s->capacity ? 2 * s->capacity : 64;
        s->tests = realloc(s->tests, s->capacity * sizeof *s->tests);
        if (!s->tests)
            out_of_memory();
    }
    struct test_case *c = calloc(1, sizeof *c);
    if (!c)
        out_of_memory();
    c->test.name = full_name;
    c->test.isa = isa;
    c->test.param = param;
    c->test.rng.state = s->seed ^ hash(full_name);
    c->run = run;
    s->tests[s->count++] = (struct CMUnitTest){full_name, run_case, NULL, close_case, c};
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

static void print_usable_sets(void) {
    printf("bnorm %s, kernel sets that this CPU runs:", bnorm_version());
    const bnorm_isa *isa;
    for (size_t i = 0; (isa = bnorm_isa_at(i)) != NULL; i++)
        printf(" %s", bnorm_isa_name(isa));
    printf(" (best: %s)\n", bnorm_isa_name(bnorm_isa_best()));
    for (size_t i = 0; i < KNOWN_SETS; i++)
        if (!bnorm_isa_find(known_sets[i]))
            printf("SKIPPED: %s: bnorm has this kernel set, but this CPU does not run it. NO TEST "
                   "COVERS IT HERE.\n",
                   known_sets[i]);
}

/* Calls f for each name in $BNORM_REQUIRE; returns how many f refused. */
static int for_each_required(int (*refuses)(const char *name)) {
    const char *list = getenv("BNORM_REQUIRE");
    int refused = 0;
    while (list && *list) {
        const size_t length = strcspn(list, ", ");
        if (length) {
            char name[64];
            snprintf(name, sizeof name, "%.*s", (int)length, list);
            refused += refuses(name);
        }
        list += length;
        list += strspn(list, ", ");
    }
    return refused;
}

static int not_usable(const char *name) {
    if (bnorm_isa_find(name))
        return 0;
    fprintf(stderr,
            "bnorm-tests: BNORM_REQUIRE names the kernel set \"%s\", which is not usable here: run "
            "on a CPU that has it, or take it off the list.\n",
            name);
    return 1;
}

static int did_not_run(const char *name) {
    const size_t set = set_index(name);
    if (set < KNOWN_SETS && suite.ran[set])
        return 0;
    print_error("bnorm-tests: BNORM_REQUIRE names the kernel set \"%s\", but no case passed on it: "
                "widen the filter or see the failures above.\n",
                name);
    return 1;
}

static int required_missing;

/* Before cmocka's own summary, which thus stays the last thing printed. */
static int print_sets(void **state) {
    (void)state;
    print_message("Cases passed per kernel set:");
    for (size_t i = 0; i < KNOWN_SETS; i++) {
        if (bnorm_isa_find(known_sets[i]))
            print_message(" %s %zu,", known_sets[i], suite.ran[i]);
        else
            print_message(" %s SKIPPED (not usable on this CPU),", known_sets[i]);
    }
    print_message(" without a set %zu; seed %" PRIu64 "\n", suite.ran_without_set, suite.seed);
    required_missing = for_each_required(did_not_run);
    return 0;
}

static void suite_free(struct suite *s) {
    for (size_t i = 0; i < s->count; i++) {
        struct test_case *c = s->tests[i].initial_state;
        free((char *)(uintptr_t)c->test.name);
        free(c);
    }
    free(s->tests);
}

static int usage(FILE *stream, int status) {
    fputs("usage: bnorm-tests [FILTER ...]\n"
          "Runs the cases whose name contains a filter or matches it as a glob ('apply/*/avx2').\n"
          "  BNORM_REQUIRE=avx2,avx512  fail unless cases ran on these sets\n"
          "  BNORM_SEED=7               other random data (default 1)\n"
          "  BNORM_TEST_QUICK=1         fewer repetitions, for emulators and sanitizers\n"
          "  BNORM_ONNX_TESTDATA=DIR    where ONNX's test data lies\n",
          stream);
    return status;
}

int main(int argc, char **argv) {
    if (argc > 1 && argv[1][0] == '-') {
        const int help = !strcmp(argv[1], "-h") || !strcmp(argv[1], "--help");
        if (!help)
            fprintf(stderr, "bnorm-tests: %s is not understood\n", argv[1]);
        return usage(help ? stdout : stderr, help ? 0 : 2);
    }
    race_first_calls();
    const char *seed = getenv("BNORM_SEED");
    suite.seed = seed && *seed ? strtoull(seed, NULL, 0) : 1;
    suite.filters = argv + 1;
    suite.filter_count = argc - 1;

    print_usable_sets();
    if (for_each_required(not_usable))
        return 1;
    fflush(stdout);

    add_kernels(&suite);
    add_apply(&suite);
    add_train(&suite);
    add_backward(&suite);
    add_blocked(&suite);
    add_mask(&suite);
    add_smooth(&suite);
    add_threads(&suite);
    add_jobs(&suite);
    add_pieces(&suite);
    add_types(&suite);
    add_types_train(&suite);
    add_quantized(&suite);
    add_properties(&suite);
    add_variants(&suite);
    add_variant_calls(&suite);
    add_running(&suite);
    add_options(&suite);
    add_fma(&suite);
    add_fold(&suite);
    add_errors(&suite);
    add_describe(&suite);
    add_onnx(&suite);
    add_frameworks(&suite);
    if (!suite.count) {
        fprintf(stderr,
                "bnorm-tests: none of the %zu cases matches; a filter is a part of a name "
                "or a glob such as 'apply/*/avx2'.\n",
                suite.registered);
        return 1;
    }

    const int failed = _cmocka_run_group_tests("bnorm", suite.tests, suite.count, NULL, print_sets);
    suite_free(&suite);
    return failed || required_missing;
}
