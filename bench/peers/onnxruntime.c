/* SPDX-License-Identifier: MIT
 *
 * ONNX Runtime through its C API, on one thread: inference in NCHW, a graph of BatchNormalization
 * and, as nodes of their own which it may fuse, Add and Relu. ONNX has no NHWC and no operator for
 * backward. With more threads each session has a pool that goes on to spin after a call, so that it
 * is left out there.
 *
 * Its wheel has the library without the header, so what is used is declared here: the API is a
 * struct of pointers to functions whose places never change. */
#include "contender.h"

#include <dlfcn.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#ifndef ONNXRUNTIME_LIBRARY
#define ONNXRUNTIME_LIBRARY ""
#endif

enum { API_VERSION = 1, FLOAT = 1, ARENA = 1, WARNING = 2 };

enum { X, GAMMA, BETA, MEAN, VAR, RESIDUAL, INPUTS };

typedef void *status; /* NULL = good */

/* The functions in their places. */
typedef struct api {
    void *to_create_env[3];
    status (*create_env)(int level, const char *name, void **env);
    void *to_create_session[4];
    status (*create_session)(void *env, const void *model, size_t size, void *options, void **out);
    status (*run)(void *session, void *options, const char *const *names, void *const *inputs,
                  size_t count, const char *const *output_names, size_t outputs, void **output);
    status (*create_options)(void **options);
    void *to_set_threads[13];
    status (*set_threads)(void *options, int count);
    void *to_create_tensor[24];
    status (*create_tensor)(void *memory, void *data, size_t bytes, const int64_t *sizes,
                            size_t rank, int type, void **tensor);
    void *to_create_memory[19];
    status (*create_memory)(int allocator, int kind, void **memory);
    void *to_release_session[25];
    void (*release_session)(void *session);
    void (*release_tensor)(void *tensor);
    void *to_release_options[3];
    void (*release_options)(void *options);
} api;

typedef struct api_base {
    const api *(*get_api)(uint32_t version);
    const char *(*get_version)(void);
} api_base;

static const api *ort;
static void *environment, *memory_info;

const char *peers_onnxruntime_version(void) {
    static const char *version;
    static int tried;
    if (tried++ || !*ONNXRUNTIME_LIBRARY)
        return version;
    void *const library = dlopen(ONNXRUNTIME_LIBRARY, RTLD_NOW | RTLD_LOCAL);
    void *const symbol = library ? dlsym(library, "OrtGetApiBase") : NULL;
    const api_base *(*get_base)(void);
    if (!symbol) {
        fprintf(stderr, "bnorm-peers: cannot load ONNX Runtime: %s\n", dlerror());
        return NULL;
    }
    memcpy(&get_base, &symbol, sizeof get_base);
    const api_base *base = get_base();
    ort = base->get_api(API_VERSION);
    if (ort && !ort->create_env(WARNING, "bnorm-peers", &environment) &&
        !ort->create_memory(ARENA, 0, &memory_info))
        version = base->get_version();
    return version;
}

/* ---------------------------------------------------------------------------------------------- */
/* The model, in the wire format of protocol buffers: fields of a tag, a length and bytes */

/* Each name is one letter. */
#define IN(name)   "\012\001" name
#define OUT(name)  "\022\001" name
#define OP(length) "\042" length
/* Of floats, of any sizes. */
#define VALUE(name) "\012\001" name "\022\004\012\002\010\001"

enum { NODE = 012, INPUT = 0132, OUTPUT = 0142, GRAPH_NAME = 022, GRAPH = 072, OPSETS = 0102 };

typedef struct message {
    char bytes[400];
    size_t size;
} message;

static void put(message *m, int tag, const char *data, size_t size) {
    m->bytes[m->size++] = (char)tag;
    m->bytes[m->size++] = (char)(size % 128 | 128);
    m->bytes[m->size++] = (char)(size / 128);
    memcpy(m->bytes + m->size, data, size);
    m->size += size;
}

static void put_text(message *m, int tag, const char *text) {
    put(m, tag, text, strlen(text));
}

/* ONNX's own epsilon is the one that is measured, 1e-5. */
static message make_model(const peers_line *line) {
    static const char *const values[INPUTS] = {VALUE("x"), VALUE("g"), VALUE("b"),
                                               VALUE("m"), VALUE("v"), VALUE("r")};
    const int residual = line->problem.op == BENCH_RESIDUAL_RELU;
    message graph = {0}, model = {"\010\010", 2}; /* version 8 of the format */
    put_text(&graph, NODE,
             IN("x") IN("g") IN("b") IN("m") IN("v") OUT("n") OP("\022") "BatchNormalization");
    if (residual)
        put_text(&graph, NODE, IN("n") IN("r") OUT("s") OP("\003") "Add");
    if (line->relu)
        put_text(&graph, NODE,
                 residual ? IN("s") OUT("y") OP("\004") "Relu"
                          : IN("n") OUT("y") OP("\004") "Relu");
    put_text(&graph, GRAPH_NAME, "g");
    for (int i = X; i < (residual ? INPUTS : RESIDUAL); i++)
        put_text(&graph, INPUT, values[i]);
    put_text(&graph, OUTPUT, line->relu ? VALUE("y") : VALUE("n"));
    put(&model, GRAPH, graph.bytes, graph.size);
    put_text(&model, OPSETS, "\020\017"); /* operators of version 15 */
    return model;
}

/* ---------------------------------------------------------------------------------------------- */
/* The contender */

typedef struct ort_state {
    void *session, *inputs[INPUTS], *output;
    size_t count;
    const char *output_name;
} ort_state;

static size_t variants(const peers_line *line) {
    const bench_problem *p = &line->problem;
    return p->layout == BNORM_NCHW && !p->form.c_block && !line->training && !line->in_place &&
           p->op != BENCH_BACKWARD && line->threads == 1;
}

static void destroy(void *state) {
    ort_state *s = state;
    for (size_t i = 0; i < s->count; i++)
        ort->release_tensor(s->inputs[i]);
    ort->release_tensor(s->output);
    ort->release_session(s->session);
    free(s);
}

static void *create(const peers_line *line, size_t variant) {
    const bench_problem *p = &line->problem;
    const message model = make_model(line);
    const int64_t sizes[] = {(int64_t)p->n, (int64_t)p->c, (int64_t)line->height,
                             (int64_t)line->width};
    const size_t elements = p->n * p->c * p->hw;
    const float *const data[INPUTS] = {p->x, p->gamma, p->beta, p->mean, p->var, p->dy};
    ort_state *s = calloc(1, sizeof *s);
    void *options = NULL;
    (void)variant;
    int good = s && !ort->create_options(&options) && !ort->set_threads(options, 1) &&
               !ort->create_session(environment, model.bytes, model.size, options, &s->session);
    if (options)
        ort->release_options(options);
    for (size_t i = 0; good && i < (p->op == BENCH_RESIDUAL_RELU ? INPUTS : RESIDUAL); i++) {
        const int whole = i == X || i == RESIDUAL;
        /* It takes no pointers to const; inputs are only read. */
        good = !ort->create_tensor(memory_info, (void *)(size_t)data[i],
                                   (whole ? elements : p->c) * sizeof(float),
                                   whole ? sizes : sizes + 1, whole ? 4 : 1, FLOAT, &s->inputs[i]);
        s->count += (size_t)good;
    }
    good = good && !ort->create_tensor(memory_info, line->result.tensor, elements * sizeof(float),
                                       sizes, 4, FLOAT, &s->output);
    if (good) {
        s->output_name = line->relu ? "y" : "n";
        return s;
    }
    if (s)
        destroy(s);
    return NULL;
}

static int run(void *state) {
    ort_state *s = state;
    static const char *const names[INPUTS] = {"x", "g", "b", "m", "v", "r"};
    return ort->run(s->session, NULL, names, s->inputs, s->count, &s->output_name, 1, &s->output) !=
           NULL;
}

const contender peers_onnxruntime = {
    .name = "ONNX Runtime", .variants = variants, .create = create, .run = run, .destroy = destroy};
