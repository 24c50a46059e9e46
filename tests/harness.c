/* SPDX-License-Identifier: MIT */
#define _GNU_SOURCE 1 /* MAP_ANONYMOUS */
#include "harness.h"

#include <float.h>
#include <inttypes.h>
#include <math.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#if !defined(_WIN32)
#include <sys/mman.h>
#include <unistd.h>
#endif

/* ---------------------------------------------------------------------------------------------- */
/* Random numbers: splitmix64                                                                     */

uint64_t rng_u64(struct rng *r) {
    r->state += 0x9e3779b97f4a7c15u;
    uint64_t z = r->state;
    z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9u;
    z = (z ^ (z >> 27)) * 0x94d049bb133111ebu;
    return z ^ (z >> 31);
}

size_t rng_below(struct rng *r, size_t n) {
    return (size_t)(rng_u64(r) % n);
}

double rng_uniform(struct rng *r, double low, double high) {
    return low + (high - low) * ((double)(rng_u64(r) >> 11) * 0x1p-53);
}

/* Sum of twelve uniform values: near enough to normal for test data, and cheap. Three draws give
 * four 16-bit values each. */
double rng_normal(struct rng *r) {
    uint64_t sum = 0;
    for (int i = 0; i < 3; i++) {
        uint64_t u = rng_u64(r);
        sum += (u & 0xffff) + (u >> 16 & 0xffff) + (u >> 32 & 0xffff) + (u >> 48);
    }
    return (double)sum * 0x1p-16 - 6.0;
}

/* ---------------------------------------------------------------------------------------------- */
/* Failing                                                                                        */

void test_context(struct test *t, const char *format, ...) {
    va_list args;
    va_start(args, format);
    vsnprintf(t->context, sizeof t->context, format, args);
    va_end(args);
}

void test_fail(struct test *t, const char *format, ...) {
    char message[512];
    va_list args;
    va_start(args, format);
    vsnprintf(message, sizeof message, format, args);
    va_end(args);
    print_error("%s: %s\n", t->name, message); /* the context follows from main.c */
    _fail(__FILE__, __LINE__);
    abort(); /* not reached */
}

static int is_set(const char *variable) {
    const char *value = getenv(variable);
    return value && *value && strcmp(value, "0") != 0;
}

int test_quick(void) {
    return is_set("BNORM_TEST_QUICK");
}

int test_full(void) {
    return !test_quick() && is_set("BNORM_TEST_FULL");
}

size_t test_repeat(size_t full, size_t normal, size_t quick) {
    return test_quick() ? quick : test_full() ? full : normal;
}

int test_draws(struct test *t, size_t every) {
    return test_full() || rng_below(&t->rng, every) == 0;
}

const char *test_depth_setting(void) {
    return test_quick() ? "BNORM_TEST_QUICK=1 " : test_full() ? "BNORM_TEST_FULL=1 " : "";
}

/* ---------------------------------------------------------------------------------------------- */
/* Buffers between guard pages                                                                    */

#define CANARY_BYTE   0xa5
#define CANARY_MARGIN 256

/* A mapping of `capacity` bytes between two guard pages. Slots are used again and again: mapping
 * one per buffer would dominate the run time. */
struct buffer_slot {
    unsigned char *base;
    size_t capacity;
    int used;
};

static struct buffer_slot slots[512];
static size_t slot_count;

static _Noreturn void die(const char *what) {
    perror(what);
    exit(2);
}

/* `capacity` bytes, of whole pages, between two guard pages. */
#if defined(_WIN32)
static unsigned char *map_guarded(size_t capacity) {
    const size_t page = 4096;
    unsigned char *map = VirtualAlloc(NULL, capacity + 2 * page, MEM_RESERVE, PAGE_NOACCESS);
    if (!map || !VirtualAlloc(map + page, capacity, MEM_COMMIT, PAGE_READWRITE))
        die("VirtualAlloc");
    return map + page;
}
#else
static unsigned char *map_guarded(size_t capacity) {
    const size_t page = (size_t)sysconf(_SC_PAGESIZE);
    /* QEMU 7.2 reads all of a masked AVX load, which no CPU does: there, guards stop only
     * writes. */
    const int guard = getenv("BNORM_TEST_READABLE_GUARDS") ? PROT_READ : PROT_NONE;
    unsigned char *map =
        mmap(NULL, capacity + 2 * page, guard, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (map == MAP_FAILED)
        die("mmap");
    if (mprotect(map + page, capacity, PROT_READ | PROT_WRITE))
        die("mprotect");
    return map + page;
}
#endif

static struct buffer_slot *slot_take(size_t bytes) {
    struct buffer_slot *best = NULL;
    for (size_t i = 0; i < slot_count; i++) {
        struct buffer_slot *s = &slots[i];
        if (!s->used && s->capacity >= bytes && (!best || s->capacity < best->capacity))
            best = s;
    }
    if (!best) {
        if (slot_count == sizeof slots / sizeof slots[0]) {
            fprintf(stderr, "Too many buffers in one case: raise the size of `slots`.\n");
            exit(2);
        }
        size_t capacity = (size_t)1 << 16; /* the largest page */
        while (capacity < bytes)
            capacity *= 2;
        unsigned char *base = map_guarded(capacity);
        best = &slots[slot_count++];
        best->base = base;
        best->capacity = capacity;
    }
    best->used = 1;
    return best;
}

/* The canary bytes before and after the buffer. */
struct canaries {
    unsigned char *before, *after;
    size_t before_bytes, after_bytes;
};

static struct canaries canaries_of(const struct buffer *b) {
    struct canaries c;
    unsigned char *end = b->slot->base + b->slot->capacity;
    size_t before = (size_t)(b->data - b->slot->base);
    size_t after = (size_t)(end - (b->data + b->bytes));
    c.before_bytes = before < CANARY_MARGIN ? before : CANARY_MARGIN;
    c.after_bytes = after < CANARY_MARGIN ? after : CANARY_MARGIN;
    c.before = b->data - c.before_bytes;
    c.after = b->data + b->bytes;
    return c;
}

void buffer_new(struct buffer *b, size_t bytes, enum side side, size_t shift) {
    b->slot = slot_take(bytes + 2 * CANARY_MARGIN);
    b->bytes = bytes;
    b->side = side;
    b->data = side == SIDE_START ? b->slot->base + shift
                                 : b->slot->base + b->slot->capacity - shift - bytes;
    const struct canaries c = canaries_of(b);
    memset(c.before, CANARY_BYTE, c.before_bytes);
    memset(c.after, CANARY_BYTE, c.after_bytes);
    const uint32_t canary = CANARY_BITS;
    size_t i = 0;
    for (; i + 4 <= bytes; i += 4)
        memcpy(b->data + i, &canary, 4);
    memset(b->data + i, CANARY_BYTE, bytes - i);
}

/* What buffer_new() made byte i. */
static unsigned char canary_at(const struct buffer *b, size_t i) {
    const uint32_t canary = CANARY_BITS;
    unsigned char bytes[4];
    memcpy(bytes, &canary, 4);
    return i < b->bytes / 4 * 4 ? bytes[i % 4] : CANARY_BYTE;
}

static void check_canaries(struct test *t, const unsigned char *p, size_t bytes, const char *what,
                           const char *where) {
    for (size_t i = 0; i < bytes; i++)
        if (p[i] != CANARY_BYTE)
            test_fail(t, "%s: byte %zu of %zu %s the buffer was overwritten with 0x%02x", what, i,
                      bytes, where, p[i]);
}

void buffer_check(struct test *t, const struct buffer *b, const char *what) {
    const struct canaries c = canaries_of(b);
    check_canaries(t, c.before, c.before_bytes, what, "before");
    check_canaries(t, c.after, c.after_bytes, what, "after");
}

void buffer_free(struct buffer *b) {
    b->slot->used = 0;
}

/* ---------------------------------------------------------------------------------------------- */
/* Memory of a case                                                                               */

/* A list, so that a case that fails in the middle leaks nothing. */
struct block {
    struct block *next;
    max_align_t data[];
};

static struct block *blocks;

void *test_alloc(struct test *t, size_t bytes) {
    struct block *b = calloc(1, sizeof *b + bytes);
    if (!b)
        test_fail(t, "out of memory: %zu bytes", bytes);
    b->next = blocks;
    blocks = b;
    return b->data;
}

float *test_floats(struct test *t, size_t count) {
    return test_alloc(t, count * sizeof(float));
}

void test_release(struct test *t) {
    (void)t;
    while (blocks) {
        struct block *next = blocks->next;
        free(blocks);
        blocks = next;
    }
    for (size_t i = 0; i < slot_count; i++)
        slots[i].used = 0;
}

/* ---------------------------------------------------------------------------------------------- */
/* Elements of any type                                                                           */

size_t dtype_size(bnorm_dtype dtype) {
    static const size_t sizes[] = {4, 2, 2, 1, 1};
    return sizes[dtype];
}

const char *dtype_name(bnorm_dtype dtype) {
    static const char *const names[] = {"f32", "bf16", "f16", "s8", "u8"};
    return names[dtype];
}

/* With so many bits after the leading one, and no exponent below the least: by arithmetic in
 * double, not by shifting bits as the library does. */
static float round_to(float value, int bits, int least) {
    if (!isfinite(value) || value == 0)
        return value;
    const uint32_t dropped = ((uint32_t)1 << (23 - bits)) - 1;
    const int exponent = (int)(float_bits(value) >> 23 & 0xff) - 127;
    if (exponent >= least && !(float_bits(value) & dropped))
        return value; /* nothing to round, as in most elements of the tests */
    const int own = ilogb((double)value), e = own < least ? least : own;
    return (float)scalbn(nearbyint(scalbn((double)value, bits - e)), e - bits);
}

/* Of a number that is a binary16, or a NaN, which stays signalling where bits are left of it. */
static uint16_t encode_f16(float value) {
    const unsigned sign = float_bits(value) >> 31 << 15;
    const unsigned fraction = float_bits(value) >> 13 & 0x3ff;
    const double v = fabs((double)value);
    unsigned code = 0x7c00;
    if (isnan(value))
        code |= fraction ? fraction : 0x200;
    else if (v < 0x1p-14)
        code = (unsigned)(v * 0x1p24);
    else if (v < 0x1p16)
        code = ((float_bits(value) >> 23 & 0xff) - 112) << 10 | fraction;
    return (uint16_t)(sign | code);
}

static float decode_f16(unsigned code) {
    const unsigned exponent = code >> 10 & 31, mantissa = code & 1023;
    if (exponent == 31)
        return bits_float(code >> 15 << 31 | 0x7f800000u | mantissa << 13);
    const float v =
        exponent ? bits_float((exponent + 112) << 23 | mantissa << 13) : (float)mantissa * 0x1p-24f;
    return code >> 15 ? -v : v;
}

float element_get(bnorm_dtype dtype, const void *data, size_t i) {
    const unsigned char *p = (const unsigned char *)data + i * dtype_size(dtype);
    uint16_t half;
    float value;
    switch (dtype) {
    case BNORM_BF16:
        memcpy(&half, p, sizeof half);
        return bits_float((uint32_t)half << 16);
    case BNORM_F16:
        memcpy(&half, p, sizeof half);
        return decode_f16(half);
    case BNORM_S8:
        return (float)(*p < 128 ? *p : *p - 256);
    case BNORM_U8:
        return (float)*p;
    case BNORM_F32:
        break;
    }
    memcpy(&value, p, sizeof value);
    return value;
}

void element_set(bnorm_dtype dtype, void *data, size_t i, float value) {
    unsigned char *p = (unsigned char *)data + i * dtype_size(dtype);
    uint16_t half;
    switch (dtype) {
    case BNORM_BF16:
        half = (uint16_t)(float_bits(round_to(value, 7, -126)) >> 16);
        if (isnan(value) && !(half & 0x7f))
            half |= 0x40;
        memcpy(p, &half, sizeof half);
        break;
    case BNORM_F16:
        half = encode_f16(round_to(value, 10, -14));
        memcpy(p, &half, sizeof half);
        break;
    case BNORM_S8:
        *p = (unsigned char)(int)fmin(fmax(nearbyint((double)value), -128), 127);
        break;
    case BNORM_U8:
        *p = (unsigned char)fmin(fmax(nearbyint((double)value), 0), 255);
        break;
    case BNORM_F32:
        memcpy(p, &value, sizeof value);
        break;
    }
}

float element_round(bnorm_dtype dtype, float value) {
    float element;
    element_set(dtype, &element, 0, value);
    return element_get(dtype, &element, 0);
}

/* ---------------------------------------------------------------------------------------------- */
/* Strided tensors                                                                                */

size_t shape_runs(const bnorm_shape *shape) {
    if (shape->c_block)
        return (shape->c + shape->c_block - 1) / shape->c_block;
    return shape->layout == BNORM_NHWC ? shape->hw : shape->c;
}

size_t shape_len(const bnorm_shape *shape) {
    if (shape->c_block)
        return shape->hw * shape->c_block;
    return shape->layout == BNORM_NHWC ? shape->c : shape->hw;
}

size_t shape_count(const bnorm_shape *shape) {
    return shape->n * shape_runs(shape) * shape_len(shape);
}

size_t shape_channel(const bnorm_shape *shape, size_t i) {
    if (shape->c_block)
        return i / shape_len(shape) % shape_runs(shape) * shape->c_block + i % shape->c_block;
    return shape->layout == BNORM_NHWC ? i % shape->c : i / shape->hw % shape->c;
}

void tensor_new(struct tensor *t, const bnorm_shape *shape, const struct placement *p) {
    const size_t runs = shape_runs(shape), len = shape_len(shape);
    t->given_run_stride = p->run_stride;
    t->given_image_stride = p->image_stride;
    t->run_stride = p->run_stride ? p->run_stride : len;
    t->image_stride = p->image_stride ? p->image_stride : t->run_stride * runs;
    t->span = shape_count(shape)
                  ? (shape->n - 1) * t->image_stride + (runs - 1) * t->run_stride + len
                  : 0;
    t->dtype = shape->dtype;
    const size_t size = dtype_size(t->dtype);
    buffer_new(&t->buffer, t->span * size, p->side, p->shift * size);
    t->data = t->buffer.data;
}

static unsigned char *run_at(const struct tensor *t, const bnorm_shape *shape, size_t run) {
    const size_t runs = shape_runs(shape);
    const size_t at = run / runs * t->image_stride + run % runs * t->run_stride;
    return (unsigned char *)t->data + at * dtype_size(t->dtype);
}

void tensor_put(struct tensor *t, const bnorm_shape *shape, const float *dense) {
    const size_t len = shape_len(shape), runs = shape->n * shape_runs(shape);
    for (size_t run = 0; len && run < runs; run++) {
        unsigned char *to = run_at(t, shape, run);
        if (t->dtype == BNORM_F32)
            memcpy(to, dense + run * len, len * sizeof(float));
        else
            for (size_t i = 0; i < len; i++)
                element_set(t->dtype, to, i, dense[run * len + i]);
    }
}

void tensor_get(const struct tensor *t, const bnorm_shape *shape, float *dense) {
    const size_t len = shape_len(shape), runs = shape->n * shape_runs(shape);
    for (size_t run = 0; len && run < runs; run++) {
        const unsigned char *from = run_at(t, shape, run);
        if (t->dtype == BNORM_F32)
            memcpy(dense + run * len, from, len * sizeof(float));
        else
            for (size_t i = 0; i < len; i++)
                dense[run * len + i] = element_get(t->dtype, from, i);
    }
}

void tensor_check_gaps(struct test *t, const struct tensor *x, const bnorm_shape *shape,
                       const char *what) {
    buffer_check(t, &x->buffer, what);
    const size_t count = shape_count(shape);
    if (x->span == count)
        return; /* dense: no gaps */
    const size_t size = dtype_size(x->dtype), bytes = x->buffer.bytes;
    const size_t len = shape_len(shape), runs = shape->n * shape_runs(shape);
    unsigned char *element = calloc(bytes, 1);
    if (!element)
        die("calloc");
    for (size_t run = 0; run < runs; run++)
        memset(element + (run_at(x, shape, run) - x->buffer.data), 0xff, len * size);
    size_t i = 0;
    for (; i + sizeof(uint64_t) <= bytes; i += sizeof(uint64_t)) { /* most of them at once */
        uint64_t held, elements;
        memcpy(&held, x->buffer.data + i, sizeof held);
        memcpy(&elements, element + i, sizeof elements);
        if ((held ^ ((uint64_t)CANARY_BITS << 32 | CANARY_BITS)) & ~elements)
            break;
    }
    while (i < bytes && (element[i] || x->buffer.data[i] == canary_at(&x->buffer, i)))
        i++;
    free(element);
    if (i < bytes)
        test_fail(t, "%s: the gap between runs was overwritten at element %zu, byte 0x%02x", what,
                  i / size, x->buffer.data[i]);
}

bnorm_in tensor_in(const struct tensor *t) {
    return (bnorm_in){t->data, t->given_run_stride, t->given_image_stride};
}

bnorm_out tensor_out(const struct tensor *t) {
    return (bnorm_out){t->data, t->given_run_stride, t->given_image_stride};
}

/* ---------------------------------------------------------------------------------------------- */
/* Comparisons                                                                                    */

uint32_t float_bits(float f) {
    uint32_t bits;
    memcpy(&bits, &f, sizeof bits);
    return bits;
}

float bits_float(uint32_t bits) {
    float f;
    memcpy(&f, &bits, sizeof f);
    return f;
}

int test_flushes(void) {
    const volatile float least = FLT_MIN;
    return least / 2 == 0;
}

void check_bits(struct test *t, const char *what, const float *got, const float *want,
                size_t count) {
    if (!count || !memcmp(got, want, count * sizeof(float)))
        return;
    size_t first = count, differ = 0;
    for (size_t i = 0; i < count; i++)
        if (float_bits(got[i]) != float_bits(want[i])) {
            if (!differ)
                first = i;
            differ++;
        }
    test_fail(t,
              "%s[%zu] is %.9g (0x%08" PRIx32 "), expected the bits of %.9g (0x%08" PRIx32
              "); %zu of %zu differ",
              what, first, (double)got[first], float_bits(got[first]), (double)want[first],
              float_bits(want[first]), differ, count);
}

void check_near(struct test *t, const char *what, size_t index, float got, double want,
                double bound) {
    const double g = (double)got;
    int near;
    if (isnan(want))
        near = isnan(g);
    else if (isinf(want))
        near = g == want;
    else if (isinf(g)) /* right where the float nearest to some value within bounds is infinite */
        near = fabs(want) + bound >= 0x1.ffffffp127 && (g > 0) == (want > 0);
    else
        near = fabs(g - want) <= bound; /* false for a NaN */
    if (!near && g == 0 &&
        fabs(want) < 128 * (double)FLT_MIN) /* SiLU is v, up to 104, times exp(v) */
        near = test_flushes();
    if (!near)
        test_fail(t,
                  "%s[%zu] is %.9g (0x%08" PRIx32 "), expected %.17g (0x%08" PRIx32
                  " rounded) within %.3g; it is off by %.3g",
                  what, index, g, float_bits(got), want, float_bits((float)want), bound,
                  fabs(g - want));
}

void check_status(struct test *t, const char *what, bnorm_status got, bnorm_status want) {
    if (got != want)
        test_fail(t, "%s returned %d (%s), expected %d (%s)", what, (int)got, bnorm_strerror(got),
                  (int)want, bnorm_strerror(want));
}

/* ---------------------------------------------------------------------------------------------- */
/* Ways to run tasks                                                                              */

void parallel_serial(void *pool, void (*task)(void *arg, size_t i), void *arg, size_t count) {
    (void)pool;
    for (size_t i = 0; i < count; i++)
        task(arg, i);
}

void parallel_reversed(void *pool, void (*task)(void *arg, size_t i), void *arg, size_t count) {
    (void)pool;
    for (size_t i = count; i-- > 0;)
        task(arg, i);
}

void parallel_shuffled(void *pool, void (*task)(void *arg, size_t i), void *arg, size_t count) {
    struct rng *r = pool;
    size_t *order = malloc((count ? count : 1) * sizeof *order);
    if (!order)
        die("malloc");
    for (size_t i = 0; i < count; i++)
        order[i] = i;
    for (size_t i = count; i > 1; i--) {
        const size_t j = rng_below(r, i), swap = order[i - 1];
        order[i - 1] = order[j];
        order[j] = swap;
    }
    for (size_t i = 0; i < count; i++)
        task(arg, order[i]);
    free(order);
}

struct work {
    void (*task)(void *arg, size_t i);
    void *arg;
    size_t count;
    atomic_size_t next;
};

static void *work_pull(void *arg) {
    struct work *w = arg;
    for (size_t i; (i = atomic_fetch_add_explicit(&w->next, 1, memory_order_relaxed)) < w->count;)
        w->task(w->arg, i);
    return NULL;
}

void parallel_threads(void *pool, void (*task)(void *arg, size_t i), void *arg, size_t count) {
    size_t *calls = pool;
    if (calls)
        ++*calls;
    struct work w = {.task = task, .arg = arg, .count = count};
    atomic_init(&w.next, 0);
    pthread_t threads[4];
    for (size_t i = 0; i < 4; i++)
        if (pthread_create(&threads[i], NULL, work_pull, &w))
            die("pthread_create");
    for (size_t i = 0; i < 4; i++)
        pthread_join(threads[i], NULL);
}
