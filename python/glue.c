/* SPDX-License-Identifier: MIT
 *
 * What Python's package calls: one function per operation, which takes arrays as Python has them,
 * has bnorm_describe look at their strides, and shares the work out among threads. Called by ctypes
 * as a PyDLL, that is with the interpreter's lock, which is given up while much is computed, and
 * with exceptions of Python for what is wrong. All arguments are in one tuple, as each one that
 * ctypes has to convert takes as long as what bnorm does with a small array.
 *
 * Arrays are anything with NumPy's __array_struct__. Only functions of Python's stable ABI are
 * used, by prototypes of its manual: one library is for every version. */
#include "bnorm.h"

#include <limits.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

typedef struct python_object python_object;
extern python_object *PyObject_GetAttrString(python_object *o, const char *name);
extern void *PyCapsule_GetPointer(python_object *capsule, const char *name);
extern python_object *PyTuple_GetItem(python_object *tuple, intptr_t i);
extern long PyLong_AsLong(python_object *o);
extern intptr_t PyTuple_Size(python_object *tuple);
extern void *PyLong_AsVoidPtr(python_object *o);
extern double PyFloat_AsDouble(python_object *o);
extern void Py_DecRef(python_object *o);
extern python_object *PyErr_Occurred(void);
extern void PyErr_Clear(void);
extern python_object *PyErr_Format(python_object *exception, const char *format, ...);
extern python_object *PyErr_NoMemory(void);
extern void *PyEval_SaveThread(void);
extern void PyEval_RestoreThread(void *state);
extern python_object *PyExc_TypeError, *PyExc_ValueError;
extern char _Py_NoneStruct[];

#define EXPORT __attribute__((visibility("default")))

/* ---------------------------------------------------------------------------------------------- */
/* Threads: bnorm's tasks on threads of this library, or of the OpenMP that PyTorch has loaded */

#if defined(__x86_64__) && defined(__GLIBC__)
/* The name it has had since before glibc 2.34, for systems that are older. */
__asm__(".symver pthread_create, pthread_create@GLIBC_2.2.5");
#elif defined(__aarch64__) && defined(__GLIBC__)
__asm__(".symver pthread_create, pthread_create@GLIBC_2.17");
#endif

enum { MAX_THREADS = 256, MAX_RANGES = 64 };

/* Each thread has a range of the tasks, which is the same part of a tensor in every call, so that what
 * one call, or PyTorch, has left in a core's cache is used by the same core; then it takes what others
 * have left of theirs. */
struct range {
    _Alignas(64) atomic_size_t next;
    size_t end;
};

struct work {
    void (*task)(void *arg, size_t i);
    void *arg;
    size_t ranges;
    struct range range[MAX_RANGES];
};

static void begin_work(struct work *work, void (*task)(void *, size_t), void *arg, size_t count,
                       size_t threads) {
    work->task = task;
    work->arg = arg;
    work->ranges = threads < MAX_RANGES ? threads : MAX_RANGES;
    for (size_t i = 0; i < work->ranges; i++) {
        atomic_init(&work->range[i].next, count * i / work->ranges);
        work->range[i].end = count * (i + 1) / work->ranges;
    }
}

static void do_tasks(struct work *work, size_t thread) {
    for (size_t k = 0; k < work->ranges; k++) {
        struct range *const range = &work->range[(thread + k) % work->ranges];
        for (size_t i; (i = atomic_fetch_add(&range->next, 1)) < range->end;)
            work->task(work->arg, i);
    }
}

/* The caller's threads, the one that calls included: `in_use` says that one of them is at it. */
static struct {
    atomic_flag in_use;
    pthread_mutex_t lock;
    pthread_cond_t begin, end;
    size_t threads;    /* that have been started */
    size_t wanted;     /* that may take part in the work that is there */
    size_t running;    /* that do */
    struct work *work; /* NULL = none */
} pool = {.in_use = ATOMIC_FLAG_INIT,
          .lock = PTHREAD_MUTEX_INITIALIZER,
          .begin = PTHREAD_COND_INITIALIZER,
          .end = PTHREAD_COND_INITIALIZER};

static void *run_thread(void *number) {
    pthread_mutex_lock(&pool.lock);
    for (;;) {
        while (!pool.work || !pool.wanted)
            pthread_cond_wait(&pool.begin, &pool.lock);
        struct work *work = pool.work;
        pool.wanted--;
        pool.running++;
        pthread_mutex_unlock(&pool.lock);
        do_tasks(work, (size_t)(uintptr_t)number);
        pthread_mutex_lock(&pool.lock);
        if (--pool.running == 0)
            pthread_cond_signal(&pool.end);
    }
    return NULL;
}

/* A child process has none of the threads, and locks as they happened to be. */
static void forget_threads(void) {
    atomic_flag_clear(&pool.in_use);
    pthread_mutex_init(&pool.lock, NULL);
    pthread_cond_init(&pool.begin, NULL);
    pthread_cond_init(&pool.end, NULL);
    pool.threads = pool.wanted = pool.running = 0;
    pool.work = NULL;
}

static void on_own_threads(void *pointer, void (*task)(void *, size_t), void *arg, size_t count) {
    const size_t threads = *(const size_t *)pointer;
    struct work work;
    begin_work(&work, task, arg, count, threads);
    /* Another thread's call has the threads: this one does its work by itself. */
    if (atomic_flag_test_and_set(&pool.in_use)) {
        do_tasks(&work, 0);
        return;
    }
    pthread_mutex_lock(&pool.lock);
    if (pool.threads == 0)
        pthread_atfork(NULL, NULL, forget_threads);
    for (pthread_t thread; pool.threads + 1 < threads; pool.threads++) {
        if (pthread_create(&thread, NULL, run_thread, (void *)(uintptr_t)(pool.threads + 1)) != 0)
            break;
    }
    pool.work = &work;
    pool.wanted = threads - 1;
    pthread_cond_broadcast(&pool.begin);
    pthread_mutex_unlock(&pool.lock);
    do_tasks(&work, 0);
    pthread_mutex_lock(&pool.lock);
    pool.wanted = 0;
    while (pool.running > 0)
        pthread_cond_wait(&pool.end, &pool.lock);
    pool.work = NULL;
    pthread_mutex_unlock(&pool.lock);
    atomic_flag_clear(&pool.in_use);
}

/* GOMP_parallel and omp_get_thread_num of libgomp, whose threads PyTorch keeps awake for itself. */
static void (*gomp_parallel)(void (*function)(void *), void *data, unsigned threads,
                             unsigned flags);
static int (*gomp_thread)(void);

EXPORT void bnormpy_use_gomp(void *parallel, void *thread) {
    memcpy(&gomp_parallel, &parallel, sizeof parallel);
    memcpy(&gomp_thread, &thread, sizeof thread);
}

static void do_gomp_tasks(void *work) {
    do_tasks(work, (size_t)gomp_thread());
}

static void on_gomp(void *pointer, void (*task)(void *, size_t), void *arg, size_t count) {
    const size_t threads = *(const size_t *)pointer;
    struct work work;
    begin_work(&work, task, arg, count, threads);
    gomp_parallel(do_gomp_tasks, &work, (unsigned)threads, 0);
}

/* ---------------------------------------------------------------------------------------------- */
/* Arrays */

/* What the capsule of __array_struct__ points to. */
typedef struct array_interface {
    int two, nd;
    char kind;
    int itemsize, flags;
    intptr_t *shape, *strides;
    void *data;
    python_object *descr;
} array_interface;

/* Bits of flags. */
enum { DENSE = 1, ALIGNED = 0x100, SWAPPED_NOT = 0x200, WRITEABLE = 0x400 };

enum { MAX_TENSORS = 8, MAX_HELD = 24 };

/* The arrays of one call. */
typedef struct call {
    python_object *arguments;
    intptr_t next;                 /* of them */
    int raw;                       /* not 0: arrays are addresses, see begin */
    python_object *held[MAX_HELD]; /* capsules, which keep the arrays alive */
    size_t held_count;
    int failed;                   /* an exception has been set, or copy */
    int copy;                     /* not 0: what is returned, so that tensors are copied */
    const array_interface *first; /* x */
    int64_t sizes[BNORM_MAX_DIMS], strides[MAX_TENSORS][BNORM_MAX_DIMS];
    bnorm_ndarray tensors[MAX_TENSORS];
    size_t tensor_count;
    bnorm_axes axes;
    bnorm_shape shape;
    size_t threads;
    bnorm_exec exec;
    struct scratch *scratch; /* from start to end */
    void *thread;            /* not NULL: the interpreter's lock has been given up */
    bnorm_status status;
} call;

static python_object *next(call *c) {
    python_object *o = c->failed ? NULL : PyTuple_GetItem(c->arguments, c->next++);
    c->failed |= !o;
    return o;
}

static long next_int(call *c) {
    python_object *o = next(c);
    const long v = o ? PyLong_AsLong(o) : 0;
    c->failed |= v == -1 && PyErr_Occurred();
    return v;
}

static double next_double(call *c) {
    python_object *o = next(c);
    const double v = o ? PyFloat_AsDouble(o) : 0;
    c->failed |= v == -1 && PyErr_Occurred();
    return v;
}

static bnorm_act next_act(call *c) {
    bnorm_act act;
    act.kind = (bnorm_act_kind)next_int(c);
    act.a = (float)next_double(c);
    act.b = (float)next_double(c);
    return act;
}

static int is_none(const python_object *o) {
    return (const void *)o == (const void *)_Py_NoneStruct;
}

static int64_t item(call *c, python_object *tuple, intptr_t i) {
    python_object *o = PyTuple_GetItem(tuple, i);
    const long v = o ? PyLong_AsLong(o) : 0;
    c->failed |= !o || (v == -1 && PyErr_Occurred());
    return v;
}

/* Arguments begin with axis, threads and None, for arrays of NumPy. Or, for tensors that the caller
 * has checked, as PyTorch's, with (type, sizes) instead of None: then a tensor is (address, strides
 * in elements), and an array of floats an address. The large arrays are left as they are. */
static void begin(call *c, python_object *arguments) {
    c->arguments = arguments;
    c->next = 0;
    c->held_count = c->tensor_count = 0;
    c->failed = c->copy = 0;
    memset(c->tensors, 0, sizeof c->tensors);
    c->shape = (bnorm_shape){0};
    c->exec = (bnorm_exec){0};
    c->scratch = NULL;
    c->thread = NULL;
    c->status = BNORM_OK;
    /* What is no int is no axis, either. */
    const long axis = next_int(c);
    c->axes.channel_axis = axis < INT_MIN ? INT_MIN : axis > INT_MAX ? INT_MAX : (int)axis;
    const long threads = next_int(c);
    c->threads = threads < 1 ? 1 : threads > MAX_THREADS ? MAX_THREADS : (size_t)threads;
    python_object *known = next(c);
    c->raw = known && !is_none(known);
    if (!c->raw)
        return;
    c->axes.dtype = (bnorm_dtype)item(c, known, 0);
    python_object *sizes = c->failed ? NULL : PyTuple_GetItem(known, 1);
    const intptr_t count = sizes ? PyTuple_Size(sizes) : -1;
    c->failed |= count < 0;
    if (count > BNORM_MAX_DIMS) {
        PyErr_Format(PyExc_ValueError, "x has too many axes");
        c->failed = 1;
    }
    for (intptr_t i = 0; i < count && !c->failed; i++)
        c->sizes[i] = item(c, sizes, i);
    c->axes.ndim = (size_t)count;
    c->axes.sizes = c->sizes;
    c->axes.any_order = 1;
}

static const array_interface *open_array(call *c, python_object *o, const char *name, int write) {
    python_object *capsule = PyObject_GetAttrString(o, "__array_struct__");
    const array_interface *a = capsule ? PyCapsule_GetPointer(capsule, NULL) : NULL;
    if (!a) {
        PyErr_Clear();
        PyErr_Format(PyExc_TypeError, "%s is no NumPy array: convert it with numpy.asarray", name);
        c->failed = 1;
        return NULL;
    }
    c->held[c->held_count++] = capsule;
    if (write && !(a->flags & WRITEABLE)) {
        PyErr_Format(PyExc_ValueError, "%s is written, but the array is read-only", name);
        c->failed = 1;
    } else if (!(a->flags & ALIGNED) || !(a->flags & SWAPPED_NOT)) {
        PyErr_Format(PyExc_ValueError,
                     "%s is not aligned or has bytes in the other order: copy it, as by "
                     "numpy.array(a, a.dtype.newbyteorder('='))",
                     name);
        c->failed = 1;
    }
    return c->failed ? NULL : a;
}

/* Floats, `rows` for each channel; NULL for None. */
static float *floats(call *c, const char *name, size_t rows, int write) {
    python_object *o = next(c);
    if (!o || is_none(o))
        return NULL;
    if (c->raw) {
        float *p = PyLong_AsVoidPtr(o);
        c->failed |= !p && PyErr_Occurred();
        return p;
    }
    const array_interface *a = open_array(c, o, name, write);
    if (!a)
        return NULL;
    size_t count = 1;
    for (int i = 0; i < a->nd; i++)
        count *= (size_t)a->shape[i];
    if (a->kind != 'f' || a->itemsize != 4 || !(a->flags & DENSE) || count != rows * c->shape.c) {
        PyErr_Format(PyExc_ValueError,
                     "%s has to be a dense array of float32, %zd for each of %zd channels", name,
                     (intptr_t)rows, (intptr_t)c->shape.c);
        c->failed = 1;
        return NULL;
    }
    return a->data;
}

static float *channels(call *c, const char *name, int write) {
    return floats(c, name, 1, write);
}

static const float *required_channels(call *c, const char *name) {
    const float *p = channels(c, name, 0);
    if (!p && !c->failed) {
        PyErr_Format(PyExc_TypeError, "%s is None, but has to be there", name);
        c->failed = 1;
    }
    return p;
}

/* The type of elements, bfloat16 being that of the package ml_dtypes. */
static int dtype_of(const array_interface *a, bnorm_dtype *type) {
    if (a->kind == 'f' && a->itemsize == 4)
        *type = BNORM_F32;
    else if (a->kind == 'f' && a->itemsize == 2)
        *type = BNORM_F16;
    else if (a->kind == 'V' && a->itemsize == 2)
        *type = BNORM_BF16;
    else
        return 0;
    return 1;
}

/* The next tensor; the first one is x. None is an absent one. Returns its number. */
static size_t tensor(call *c, const char *name, int write) {
    const size_t i = c->tensor_count++;
    python_object *o = next(c);
    if (!o || is_none(o))
        return i;
    bnorm_ndarray *t = &c->tensors[i];
    if (c->raw) {
        python_object *address = PyTuple_GetItem(o, 0), *strides = PyTuple_GetItem(o, 1);
        t->data = address ? PyLong_AsVoidPtr(address) : NULL;
        c->failed |= !strides || PyErr_Occurred();
        for (size_t k = 0; k < c->axes.ndim && !c->failed; k++)
            c->strides[i][k] = item(c, strides, (intptr_t)k);
        t->strides = c->strides[i];
        return i;
    }
    const array_interface *a = open_array(c, o, name, write);
    if (!a)
        return i;
    bnorm_dtype type;
    if (!dtype_of(a, &type)) {
        PyErr_Format(PyExc_TypeError,
                     "%s is not of float32, float16 or bfloat16: convert it with astype", name);
        c->failed = 1;
        return i;
    }
    if (a->nd > BNORM_MAX_DIMS) {
        PyErr_Format(PyExc_ValueError, "%s has too many axes", name);
        c->failed = 1;
        return i;
    }
    if (i == 0) {
        c->first = a;
        c->axes.ndim = (size_t)a->nd;
        c->axes.sizes = c->sizes;
        c->axes.dtype = type;
        c->axes.any_order = 1;
        for (int k = 0; k < a->nd; k++)
            c->sizes[k] = a->shape[k];
    } else if (type != c->axes.dtype || a->nd != c->first->nd ||
               memcmp(a->shape, c->first->shape, (size_t)a->nd * sizeof *a->shape) != 0) {
        PyErr_Format(PyExc_ValueError, "%s has not the shape and type of x", name);
        c->failed = 1;
        return i;
    }
    t->data = a->data;
    t->itemsize = (size_t)a->itemsize;
    if (a->strides) {
        for (int k = 0; k < a->nd; k++)
            c->strides[i][k] = a->strides[k];
        t->strides = c->strides[i];
    }
    return i;
}

enum { COPY = 100 }; /* + the number of a tensor that has to be copied first */

/* Shapes and strides of all tensors so far. */
static void describe(call *c) {
    if (c->failed)
        return;
    size_t array, dimension;
    const bnorm_status status =
        bnorm_describe(&c->axes, c->tensors, c->tensor_count, &c->shape, &array, &dimension);
    c->failed = status != BNORM_OK;
    if (status == BNORM_BAD_STRIDE)
        c->copy = COPY + (int)array;
    else if (status == BNORM_BAD_PARAMETER)
        PyErr_Format(PyExc_ValueError, "axis %d is none of x, which has %zd", c->axes.channel_axis,
                     (intptr_t)c->axes.ndim);
    else if (status != BNORM_OK)
        PyErr_Format(PyExc_ValueError, "x: %s", bnorm_strerror(status));
    if (c->threads > 1)
        c->exec = (bnorm_exec){.parallel = gomp_parallel ? on_gomp : on_own_threads,
                               .pool = &c->threads,
                               .threads = c->threads};
}

/* ---------------------------------------------------------------------------------------------- */
/* A call's work, between start and end */

/* Scratch memory: that of the last call, as fresh pages take longer than what is done with them. */
struct scratch {
    size_t size;
    _Alignas(64) char bytes[];
};

static _Atomic(struct scratch *) kept_scratch;

/* Below this the interpreter's lock is kept: others would wait no longer than for an addition. */
enum { LITTLE = 1 << 14 };

/* When all arguments have been taken: scratch memory, and the interpreter's lock given up where
 * there is much to do. 0 where there is nothing to do, but end. */
static int start(call *c, size_t size) {
    if (c->failed)
        return 0;
    c->scratch = atomic_exchange(&kept_scratch, NULL);
    if (!c->scratch || c->scratch->size < size) {
        free(c->scratch);
        c->scratch = malloc(sizeof *c->scratch + size);
        if (!c->scratch) {
            PyErr_NoMemory();
            c->failed = 1;
            return 0;
        }
        c->scratch->size = size;
    }
    if (c->shape.n * c->shape.hw * c->shape.c > LITTLE)
        c->thread = PyEval_SaveThread();
    return 1;
}

/* What a function of this library returns. */
static int end(call *c) {
    if (c->thread)
        PyEval_RestoreThread(c->thread);
    if (c->scratch)
        free(atomic_exchange(&kept_scratch, c->scratch));
    for (size_t i = 0; i < c->held_count; i++)
        Py_DecRef(c->held[i]);
    if (!c->failed && c->status != BNORM_OK)
        PyErr_Format(PyExc_ValueError, "bnorm: %s", bnorm_strerror(c->status));
    return c->copy;
}

/* Statistics of a batch, 4*C floats: mean, its low part, invstd and variance. */
static void save(bnorm_train *train, float *saved, size_t channel_count) {
    train->save_mean = saved;
    train->save_mean_lo = saved + channel_count;
    train->save_invstd = saved + 2 * channel_count;
    train->save_var = saved + 3 * channel_count;
}

static void restore(bnorm_grad *grad, const float *saved, size_t channel_count) {
    grad->save_mean = saved;
    grad->save_mean_lo = saved + channel_count;
    grad->save_invstd = saved + 2 * channel_count;
}

/* ---------------------------------------------------------------------------------------------- */
/* What is called, with a tuple of what begin() takes and what is said at each. Returns 0, with an
 * exception where something is wrong; or COPY + the number of a tensor that needs other strides,
 * counted from 0 in the order of the arguments. */

/* x, out, residual, mean, var, gamma, beta, eps, act, a, b */
EXPORT int bnormpy_apply(python_object *arguments) {
    call c;
    begin(&c, arguments);
    tensor(&c, "x", 0);
    tensor(&c, "out", 1);
    tensor(&c, "residual", 0);
    describe(&c);
    bnorm_affine affine = {.residual = c.tensors[2].in};
    affine.center = required_channels(&c, "mean");
    const float *var = required_channels(&c, "var"), *gamma = channels(&c, "gamma", 0);
    affine.shift = channels(&c, "beta", 0);
    const double eps = next_double(&c);
    affine.act = next_act(&c);
    if (!start(&c, c.shape.c * sizeof(float)))
        return end(&c);
    float *scale = (float *)(void *)c.scratch->bytes;
    c.status = bnorm_fold(c.shape.c, gamma, NULL, NULL, var, eps, scale, NULL);
    affine.scale = scale;
    if (c.status == BNORM_OK)
        c.status = bnorm_apply(&c.shape, c.tensors[0].in, c.tensors[1].out, &affine, &c.exec);
    return end(&c);
}

/* x, out, residual, gamma, beta, running_mean, running_var, saved, eps, rate, sample_variance, act,
 * a, b. saved: as save() has it */
EXPORT int bnormpy_train(python_object *arguments) {
    call c;
    begin(&c, arguments);
    tensor(&c, "x", 0);
    tensor(&c, "out", 1);
    tensor(&c, "residual", 0);
    describe(&c);
    bnorm_train train = {.residual = c.tensors[2].in};
    train.gamma = channels(&c, "gamma", 0);
    train.beta = channels(&c, "beta", 0);
    train.running.mean = channels(&c, "running_mean", 1);
    train.running.var = channels(&c, "running_var", 1);
    float *saved = floats(&c, "saved", 4, 1);
    train.eps = next_double(&c);
    train.running.rate = next_double(&c);
    train.running.variance = next_int(&c) ? BNORM_VARIANCE_SAMPLE : BNORM_VARIANCE_POPULATION;
    train.act = next_act(&c);
    const size_t size = bnorm_workspace(BNORM_OP_FORWARD_TRAIN, &c.shape);
    if (!start(&c, size))
        return end(&c);
    save(&train, saved, c.shape.c);
    /* An empty batch leaves statistics as they are, and these are fresh memory. */
    if (c.shape.n == 0 || c.shape.hw == 0)
        memset(saved, 0, 4 * c.shape.c * sizeof *saved);
    c.status = bnorm_forward_train(&c.shape, c.tensors[0].in, c.tensors[1].out, &train,
                                   c.scratch->bytes, size, &c.exec);
    return end(&c);
}

/* x, dy, dx, residual, y, dresidual, gamma, beta, mean, var, saved, gradients, eps, act, a, b.
 * saved: as above, or None with mean and var, statistics that are constants. gradients: 2*C floats,
 * dgamma and dbeta */
EXPORT int bnormpy_backward(python_object *arguments) {
    call c;
    begin(&c, arguments);
    tensor(&c, "x", 0);
    c.tensors[tensor(&c, "dy", 0)].may_broadcast = 1;
    tensor(&c, "dx", 1);
    tensor(&c, "residual", 0);
    tensor(&c, "y", 0);
    tensor(&c, "dresidual", 1);
    describe(&c);
    bnorm_grad grad = {.residual = c.tensors[3].in,
                       .y = c.tensors[4].in,
                       .dresidual = c.tensors[5].out,
                       .dy_broadcast = c.tensors[1].broadcast};
    grad.gamma = channels(&c, "gamma", 0);
    grad.beta = channels(&c, "beta", 0);
    const float *mean = channels(&c, "mean", 0), *var = channels(&c, "var", 0);
    const float *saved = floats(&c, "saved", 4, 0);
    float *gradients = floats(&c, "gradients", 2, 1);
    grad.eps = next_double(&c);
    grad.act = next_act(&c);
    const size_t size = bnorm_workspace(BNORM_OP_BACKWARD, &c.shape);
    if (!start(&c, size))
        return end(&c);
    if (saved) {
        restore(&grad, saved, c.shape.c);
    } else {
        grad.frozen = 1;
        grad.save_mean = mean;
        grad.save_var = var;
    }
    grad.dgamma = gradients;
    grad.dbeta = gradients + c.shape.c;
    c.status = bnorm_backward(&c.shape, c.tensors[0].in, c.tensors[1].in, c.tensors[2].out, &grad,
                              c.scratch->bytes, size, &c.exec);
    return end(&c);
}

/* x, result. result: 2*C floats, mean and variance */
EXPORT int bnormpy_moments(python_object *arguments) {
    call c;
    begin(&c, arguments);
    tensor(&c, "x", 0);
    describe(&c);
    float *both = floats(&c, "result", 2, 1);
    const size_t size = bnorm_workspace(BNORM_OP_MOMENTS, &c.shape);
    if (start(&c, size))
        c.status = bnorm_moments(&c.shape, c.tensors[0].in, both, both + c.shape.c,
                                 c.scratch->bytes, size, &c.exec);
    return end(&c);
}

/* C, gamma, beta, mean, var, eps, result. result: 2*C floats, scale and shift */
EXPORT int bnormpy_fold(python_object *arguments) {
    call c;
    begin(&c, arguments);
    const size_t count = c.shape.c = (size_t)next_int(&c);
    const float *gamma = channels(&c, "gamma", 0), *beta = channels(&c, "beta", 0);
    const float *mean = required_channels(&c, "mean"), *var = required_channels(&c, "var");
    const double eps = next_double(&c);
    float *both = floats(&c, "result", 2, 1);
    if (!c.failed)
        c.status = bnorm_fold(count, gamma, beta, mean, var, eps, both, both + count);
    return end(&c);
}

/* ---------------------------------------------------------------------------------------------- */
/* Batches in pieces, one per process. Arrays of doubles are the pieces' nodes. */

static double *doubles(call *c, const char *name, int write, size_t *count) {
    python_object *o = next(c);
    const array_interface *a = o ? open_array(c, o, name, write) : NULL;
    if (!a)
        return NULL;
    if (a->kind != 'f' || a->itemsize != 8 || !(a->flags & DENSE) || a->nd != 1) {
        PyErr_Format(PyExc_ValueError, "%s has to be a dense array of float64", name);
        c->failed = 1;
        return NULL;
    }
    *count = (size_t)a->shape[0];
    return a->data;
}

/* Doubles that are enough for a piece of n images. */
EXPORT size_t bnormpy_partial_size(size_t channel_count, size_t n) {
    return bnorm_partial_size(channel_count, n) / sizeof(double);
}

/* Of x, dy, residual and y, which begin with the images; then the number of the first image in the
 * whole batch, nodes, gamma, beta, saved, act, a, b. Without dy, statistics; else sums of backward,
 * for which the others are there. */
EXPORT int bnormpy_collect(python_object *arguments) {
    call c;
    begin(&c, arguments);
    tensor(&c, "x", 0);
    tensor(&c, "dy", 0);
    tensor(&c, "residual", 0);
    tensor(&c, "y", 0);
    describe(&c);
    /* Images that bnorm cuts into more could not be numbered through all pieces. */
    if (!c.failed && c.shape.n != (size_t)c.sizes[0]) {
        c.copy = COPY;
        c.failed = 1;
    }
    bnorm_partial piece = {.c = c.shape.c, .first = (size_t)next_int(&c)};
    size_t room = 0;
    piece.nodes = doubles(&c, "nodes", 1, &room);
    piece.size = room * sizeof(double);
    bnorm_grad grad = {.residual = c.tensors[2].in, .y = c.tensors[3].in};
    grad.gamma = channels(&c, "gamma", 0);
    grad.beta = channels(&c, "beta", 0);
    const float *saved = floats(&c, "saved", 4, 0);
    grad.act = next_act(&c);
    piece.op = saved ? BNORM_OP_BACKWARD : BNORM_OP_MOMENTS;
    const size_t size = bnorm_workspace(piece.op, &c.shape);
    if (!start(&c, size))
        return end(&c);
    if (saved) {
        restore(&grad, saved, c.shape.c);
        c.status = bnorm_partial_collect_grad(&c.shape, c.tensors[0].in, c.tensors[1].in, &grad,
                                              &piece, c.scratch->bytes, size, &c.exec);
    } else {
        c.status = bnorm_partial_collect(&c.shape, c.tensors[0].in, &piece, c.scratch->bytes, size,
                                         &c.exec);
    }
    return end(&c);
}

/* All pieces into one: op, C, HW; counts, the images of each piece; slots, their nodes, all of one
 * size; nodes, of the whole batch. */
static void next_batch(call *c, bnorm_op op, bnorm_partial *whole) {
    c->shape.c = (size_t)next_int(c);
    const size_t hw = (size_t)next_int(c);
    size_t pieces = 0, all = 0, room = 0, first = 0;
    const double *counts = doubles(c, "counts", 0, &pieces);
    double *slots = doubles(c, "slots", 0, &all), *nodes = doubles(c, "nodes", 1, &room);
    if (c->failed)
        return;
    *whole =
        (bnorm_partial){.op = op, .c = c->shape.c, .nodes = nodes, .size = room * sizeof(double)};
    for (size_t i = 0; i < pieces && c->status == BNORM_OK; i++) {
        bnorm_partial piece = *whole;
        piece.hw = hw;
        piece.first = first;
        piece.n = (size_t)counts[i];
        piece.nodes = slots + i * (all / pieces);
        piece.size = all / pieces * sizeof(double);
        if (piece.n > 0)
            c->status = bnorm_partial_merge(whole, &piece);
        first += piece.n;
    }
}

/* A batch's pieces, then gamma, beta, running_mean, running_var, saved, eps, rate, sample_variance,
 * coefficients: 3*C floats for bnormpy_affine. */
EXPORT int bnormpy_finish(python_object *arguments) {
    call c;
    begin(&c, arguments);
    bnorm_partial whole;
    next_batch(&c, BNORM_OP_MOMENTS, &whole);
    bnorm_train train = {0};
    train.gamma = channels(&c, "gamma", 0);
    train.beta = channels(&c, "beta", 0);
    train.running.mean = channels(&c, "running_mean", 1);
    train.running.var = channels(&c, "running_var", 1);
    float *saved = floats(&c, "saved", 4, 1);
    train.eps = next_double(&c);
    train.running.rate = next_double(&c);
    train.running.variance = next_int(&c) ? BNORM_VARIANCE_SAMPLE : BNORM_VARIANCE_POPULATION;
    float *coefficients = floats(&c, "coefficients", 3, 1);
    if (!c.failed && c.status == BNORM_OK) {
        save(&train, saved, c.shape.c);
        c.status = bnorm_partial_finish(&whole, &train, coefficients);
    }
    return end(&c);
}

/* x, out, residual, coefficients, act, a, b */
EXPORT int bnormpy_affine(python_object *arguments) {
    call c;
    begin(&c, arguments);
    tensor(&c, "x", 0);
    tensor(&c, "out", 1);
    tensor(&c, "residual", 0);
    describe(&c);
    const float *coefficients = floats(&c, "coefficients", 3, 0);
    const bnorm_act act = next_act(&c);
    if (!start(&c, 0))
        return end(&c);
    const bnorm_affine affine = {.center = coefficients,
                                 .scale = coefficients + c.shape.c,
                                 .shift = coefficients + 2 * c.shape.c,
                                 .residual = c.tensors[2].in,
                                 .act = act};
    c.status = bnorm_apply(&c.shape, c.tensors[0].in, c.tensors[1].out, &affine, &c.exec);
    return end(&c);
}

/* A batch's pieces, then gamma, saved, gradients, coefficients: 5*C floats for bnormpy_apply_grad. */
EXPORT int bnormpy_finish_grad(python_object *arguments) {
    call c;
    begin(&c, arguments);
    bnorm_partial whole;
    next_batch(&c, BNORM_OP_BACKWARD, &whole);
    bnorm_grad grad = {0};
    grad.gamma = channels(&c, "gamma", 0);
    const float *saved = floats(&c, "saved", 4, 0);
    grad.dgamma = floats(&c, "gradients", 2, 1);
    float *coefficients = floats(&c, "coefficients", 5, 1);
    if (!c.failed && c.status == BNORM_OK) {
        restore(&grad, saved, c.shape.c);
        grad.dbeta = grad.dgamma + c.shape.c;
        c.status = bnorm_partial_finish_grad(&whole, &grad, coefficients);
    }
    return end(&c);
}

/* x, dy, dx, residual, y, dresidual, gamma, beta, saved, coefficients, act, a, b */
EXPORT int bnormpy_apply_grad(python_object *arguments) {
    call c;
    begin(&c, arguments);
    tensor(&c, "x", 0);
    tensor(&c, "dy", 0);
    tensor(&c, "dx", 1);
    tensor(&c, "residual", 0);
    tensor(&c, "y", 0);
    tensor(&c, "dresidual", 1);
    describe(&c);
    bnorm_grad grad = {
        .residual = c.tensors[3].in, .y = c.tensors[4].in, .dresidual = c.tensors[5].out};
    grad.gamma = channels(&c, "gamma", 0);
    grad.beta = channels(&c, "beta", 0);
    const float *saved = floats(&c, "saved", 4, 0);
    const float *coefficients = floats(&c, "coefficients", 5, 0);
    grad.act = next_act(&c);
    if (!start(&c, 0))
        return end(&c);
    restore(&grad, saved, c.shape.c);
    c.status = bnorm_partial_apply_grad(&c.shape, c.tensors[0].in, c.tensors[1].in,
                                        c.tensors[2].out, &grad, coefficients, &c.exec);
    return end(&c);
}

EXPORT const char *bnormpy_version(void) {
    return bnorm_version();
}

EXPORT const char *bnormpy_isa(void) {
    return bnorm_isa_name(NULL);
}
