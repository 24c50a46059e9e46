/* SPDX-License-Identifier: MIT
 *
 * The fuzzer's calls from random bytes, for as long as is wished: from two threads at a time, each
 * of which also shares its calls with a thread of its own, without sanitizers. Fails where a result
 * differs from the scalar set's, or where memory grows. Given files, runs each of them once. */
#include "fuzz.h"

#include <pthread.h>
#include <stdatomic.h>
#include <time.h>
#include <unistd.h>

static _Atomic unsigned long long calls;
static _Atomic int stop;

struct share {
    void (*task)(void *arg, size_t i);
    void *arg;
    _Atomic size_t next;
    size_t count;
};

static void *take_tasks(void *arg) {
    struct share *const share = arg;
    for (size_t i; (i = share->next++) < share->count;)
        share->task(share->arg, i);
    return NULL;
}

static void on_two_threads(void *pool, void (*task)(void *arg, size_t i), void *arg, size_t count) {
    struct share share = {task, arg, 0, count};
    pthread_t other;
    (void)pool;
    if (pthread_create(&other, NULL, take_tasks, &share))
        fail("pthread_create", "no thread");
    take_tasks(&share);
    pthread_join(other, NULL);
}

static void *work(void *arg) {
    uint32_t state = *(const uint32_t *)arg;
    unsigned char bytes[400];
    while (!stop) {
        fill_bytes(bytes, sizeof bytes, &state);
        bytes[1] = (unsigned char)(state >> 16 & 7 ? 0 : 2); /* faults are the fuzzer's */
        LLVMFuzzerTestOneInput(bytes, sizeof bytes);
        calls++;
    }
    return NULL;
}

static size_t resident_kib(void) {
    FILE *const file = fopen("/proc/self/status", "r");
    char line[256];
    size_t kib = 0;
    while (file && fgets(line, sizeof line, file))
        if (sscanf(line, "VmRSS: %zu", &kib) == 1)
            break;
    if (file)
        fclose(file);
    return kib;
}

static void run_file(const char *path) {
    static unsigned char bytes[1 << 16];
    FILE *const file = fopen(path, "rb");
    if (!file)
        fail(path, "cannot be read");
    const size_t size = fread(bytes, 1, sizeof bytes, file);
    fclose(file);
    LLVMFuzzerTestOneInput(bytes, size);
}

int main(int argc, char **argv) {
    if (argc < 2) {
        fputs("usage: bnorm-soak SECONDS [SEED], or bnorm-soak FILE ...\n", stderr);
        return 2;
    }
    char *end;
    const unsigned long seconds = strtoul(argv[1], &end, 10);
    if (*end) {
        for (int i = 1; i < argc; i++)
            run_file(argv[i]);
        return 0;
    }
    uint32_t seeds[2] = {argc > 2 ? (uint32_t)strtoul(argv[2], NULL, 10) : 1, 0};
    seeds[1] = seeds[0] + 0x9e3779b9u;
    fuzz_parallel = on_two_threads;
    pthread_t threads[2];
    for (size_t i = 0; i < 2; i++)
        if (pthread_create(&threads[i], NULL, work, &seeds[i]))
            fail("pthread_create", "no thread");
    const time_t begin = time(NULL);
    size_t most[2] = {0, 0}; /* in either half of the time, as calls come and go */
    for (unsigned long next = 0;; sleep(1)) {
        const unsigned long passed = (unsigned long)(time(NULL) - begin);
        const size_t now = resident_kib();
        size_t *const half = &most[passed * 2 > seconds];
        *half = *half > now ? *half : now;
        if (passed >= next || passed >= seconds) {
            printf("%6lu s  %llu calls  %zu KiB\n", passed, (unsigned long long)calls, now);
            fflush(stdout);
            next = passed + (seconds / 20 ? seconds / 20 : 1);
        }
        if (passed >= seconds)
            break;
    }
    stop = 1;
    for (size_t i = 0; i < 2; i++)
        pthread_join(threads[i], NULL);
    if (most[1] > most[0] + most[0] / 4 + 32768) {
        printf("Memory has grown from %zu to %zu KiB: look for what is not freed with valgrind.\n",
               most[0], most[1]);
        return 1;
    }
    printf("All bits equal, memory flat: at most %zu KiB, then %zu.\n", most[0], most[1]);
    return 0;
}
