/* SPDX-License-Identifier: MIT
 *
 * What the tests need of POSIX and cmocka, on Windows: the cases run one after the other in one
 * process there. A case that fails jumps out of itself; one that crashes ends the run. */
#ifndef BNORM_TESTS_ON_WINDOWS_H
#define BNORM_TESTS_ON_WINDOWS_H

#define WIN32_LEAN_AND_MEAN
#include <windows.h>

#include <io.h>
#include <setjmp.h>
#include <shlwapi.h>
#include <stdio.h>
#undef near
#undef far

enum { CASE_FAILED = 1, CASE_SKIPPED };
extern jmp_buf case_left;

#define print_error(...)   fprintf(stderr, __VA_ARGS__)
#define print_message(...) printf(__VA_ARGS__)
#define _fail(file, line)  longjmp(case_left, CASE_FAILED)
#define skip()             longjmp(case_left, CASE_SKIPPED)

/* The status of a case is that which it left with. */
#define WIFEXITED(status)   1
#define WEXITSTATUS(status) (status)
#define WIFSIGNALED(status) 0
#define WTERMSIG(status)    0
#define strsignal(number)   ""
#define SIGALRM             1

static inline int fnmatch(const char *pattern, const char *name, int flags) {
    (void)flags;
    return !PathMatchSpecA(name, pattern);
}

#endif
