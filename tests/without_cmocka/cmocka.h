/* SPDX-License-Identifier: MIT
 *
 * What the tests need of cmocka, for systems that have none: a C library of another kind, such as musl. Each
 * case has a process of its own; one that fails or is skipped jumps out of itself. */
#ifndef BNORM_TESTS_CMOCKA_H
#define BNORM_TESTS_CMOCKA_H

#include <setjmp.h>
#include <stdio.h>

enum { CASE_FAILED = 1, CASE_SKIPPED };
/* One for all files that include this. */
__attribute__((weak)) jmp_buf case_left;

#define print_error(...)   fprintf(stderr, __VA_ARGS__)
#define print_message(...) printf(__VA_ARGS__)
#define _fail(file, line)  longjmp(case_left, CASE_FAILED)
#define skip()             longjmp(case_left, CASE_SKIPPED)

struct CMUnitTest {
    const char *name;
    void (*test)(void **state);
    int (*setup)(void **state), (*teardown)(void **state);
    void *state;
};

static inline int _cmocka_run_group_tests(const char *group, const struct CMUnitTest *test,
                                          size_t count, int (*setup)(void **state),
                                          int (*teardown)(void **state)) {
    (void)group, (void)count, (void)setup, (void)teardown;
    void *state = test->state;
    const int left = setjmp(case_left);
    if (!left)
        test->test(&state);
    test->teardown(&state);
    return left == CASE_FAILED;
}

#endif
