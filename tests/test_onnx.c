/* SPDX-License-Identifier: MIT
 *
 * ONNX's own test data for BatchNormalization, as Debian's package libonnx-testdata installs it:
 * the node tests (opset 15, two of them in training mode) and the models converted from PyTorch.
 * $BNORM_ONNX_TESTDATA says where else the data is; if set, it has to be there. */
#include <float.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include "harness.h"

#define DEFAULT_TESTDATA "/usr/share/libonnx-testdata/data"

static const char *testdata(void) {
    const char *dir = getenv("BNORM_ONNX_TESTDATA");
    return dir && *dir ? dir : DEFAULT_TESTDATA;
}

/* ---------------------------------------------------------------------------------------------- */
/* Protocol buffers: just the wire format, every length checked.
 * https://protobuf.dev/programming-guides/encoding                                               */

struct span {
    const unsigned char *p, *end;
};

enum wire { WIRE_VARINT = 0, WIRE_64 = 1, WIRE_BYTES = 2, WIRE_32 = 5 };

/* One field: its number, and its value as bytes or as an integer. */
struct field {
    uint64_t number;
    enum wire wire;
    uint64_t integer;  /* WIRE_VARINT, WIRE_32, WIRE_64 */
    struct span bytes; /* WIRE_BYTES */
};

static uint64_t read_varint(struct test *t, struct span *s) {
    uint64_t value = 0;
    for (unsigned shift = 0; shift < 64; shift += 7) {
        if (s->p == s->end)
            test_fail(t, "protobuf: the data ends inside a varint");
        const unsigned char byte = *s->p++;
        value |= (uint64_t)(byte & 0x7f) << shift;
        if (byte < 0x80)
            return value;
    }
    test_fail(t, "protobuf: a varint of more than 10 bytes");
}

static struct span read_bytes(struct test *t, struct span *s, uint64_t count) {
    if (count > (uint64_t)(s->end - s->p))
        test_fail(t, "protobuf: a length past the end of the data");
    const struct span bytes = {s->p, s->p + count};
    s->p = bytes.end;
    return bytes;
}

static uint64_t little_endian(struct span bytes) {
    uint64_t value = 0;
    while (bytes.end != bytes.p)
        value = value << 8 | *--bytes.end;
    return value;
}

/* The next field of a message; 0 at its end. */
static int next_field(struct test *t, struct span *message, struct field *field) {
    if (message->p == message->end)
        return 0;
    const uint64_t tag = read_varint(t, message);
    *field = (struct field){.number = tag >> 3, .wire = (enum wire)(tag & 7)};
    switch (field->wire) {
    case WIRE_VARINT:
        field->integer = read_varint(t, message);
        return 1;
    case WIRE_64:
        field->integer = little_endian(read_bytes(t, message, 8));
        return 1;
    case WIRE_BYTES:
        field->bytes = read_bytes(t, message, read_varint(t, message));
        return 1;
    case WIRE_32:
        field->integer = little_endian(read_bytes(t, message, 4));
        return 1;
    }
    test_fail(t, "protobuf: wire type %d", (int)field->wire);
}

static int equals(struct span bytes, const char *text) {
    const size_t length = strlen(text);
    return (size_t)(bytes.end - bytes.p) == length && memcmp(bytes.p, text, length) == 0;
}

static struct span read_file(struct test *t, const char *path) {
    FILE *file = fopen(path, "rb");
    if (!file)
        test_fail(t, "can't open %s", path);
    const size_t room = 1 << 20;
    unsigned char *data = test_alloc(t, room);
    const size_t size = fread(data, 1, room, file);
    fclose(file);
    if (size == 0 || size == room)
        test_fail(t, "%s is empty or larger than expected", path);
    return (struct span){data, data + size};
}

/* ---------------------------------------------------------------------------------------------- */
/* The parts of onnx.proto that the data uses                                                     */

enum { MAX_DIMS = 8, ONNX_FLOAT = 1 };

struct onnx_tensor {
    struct span name;
    uint64_t dims[MAX_DIMS];
    size_t rank;
    float *data;
    size_t count;
};

static float float_of(uint64_t integer) {
    return bits_float((uint32_t)integer);
}

/* TensorProto: dims 1, data_type 2, float_data 4, name 8, raw_data 9. Repeated numbers come packed
 * or one by one. */
static struct onnx_tensor parse_tensor(struct test *t, struct span message) {
    struct onnx_tensor tensor = {.count = 1};
    struct span packed = {NULL, NULL};
    uint64_t type = 0;
    size_t room = (size_t)(message.end - message.p) / 4, found = 0;
    float *values = test_floats(t, room + 1);
    struct field f;
    while (next_field(t, &message, &f)) {
        if (f.number == 1) {
            struct span dims = f.bytes;
            do {
                if (tensor.rank == MAX_DIMS)
                    test_fail(t, "onnx: more than %d dimensions", MAX_DIMS);
                tensor.dims[tensor.rank++] =
                    f.wire == WIRE_BYTES ? read_varint(t, &dims) : f.integer;
            } while (f.wire == WIRE_BYTES && dims.p != dims.end);
        } else if (f.number == 2) {
            type = f.integer;
        } else if (f.number == 4 && f.wire == WIRE_32) {
            values[found++] = float_of(f.integer);
        } else if (f.number == 4 || f.number == 9) {
            packed = f.bytes;
        } else if (f.number == 8) {
            tensor.name = f.bytes;
        }
    }
    while (packed.end - packed.p >= 4)
        values[found++] = float_of(little_endian(read_bytes(t, &packed, 4)));
    if (type != ONNX_FLOAT || packed.p != packed.end)
        test_fail(t, "onnx: data type %d, expected floats", (int)type);
    for (size_t i = 0; i < tensor.rank; i++) {
        if (tensor.dims[i] == 0 || tensor.dims[i] > room / tensor.count)
            test_fail(t, "onnx: a dimension of %llu", (unsigned long long)tensor.dims[i]);
        tensor.count *= (size_t)tensor.dims[i];
    }
    if (found != tensor.count)
        test_fail(t, "onnx: %zu values for a shape of %zu", found, tensor.count);
    tensor.data = values;
    return tensor;
}

enum { INPUTS = 5, OUTPUTS = 3 };

/* A model of one BatchNormalization node. */
struct onnx_model {
    double epsilon, momentum;
    int training;
    struct span inputs[INPUTS]; /* names of x, scale, bias, mean, var */
    size_t input_count, output_count;
    struct onnx_tensor initializers[INPUTS];
    size_t initializer_count;
};

/* AttributeProto: name 1, f 2, i 3. Attributes that opset 15 doesn't know (is_test) are passed. */
static void parse_attribute(struct test *t, struct span message, struct onnx_model *model) {
    struct span name = {NULL, NULL};
    uint64_t integer = 0;
    float real = 0;
    struct field f;
    while (next_field(t, &message, &f)) {
        if (f.number == 1)
            name = f.bytes;
        else if (f.number == 2)
            real = float_of(f.integer);
        else if (f.number == 3)
            integer = f.integer;
    }
    if (name.p && equals(name, "epsilon"))
        model->epsilon = (double)real;
    else if (name.p && equals(name, "momentum"))
        model->momentum = (double)real;
    else if (name.p && equals(name, "training_mode"))
        model->training = integer != 0;
}

/* NodeProto: input 1, output 2, op_type 4, attribute 5. */
static void parse_node(struct test *t, struct span message, struct onnx_model *model) {
    int is_batchnorm = 0;
    struct field f;
    while (next_field(t, &message, &f)) {
        if (f.number == 1 && model->input_count < INPUTS)
            model->inputs[model->input_count++] = f.bytes;
        else if (f.number == 2)
            model->output_count++;
        else if (f.number == 4)
            is_batchnorm = equals(f.bytes, "BatchNormalization");
        else if (f.number == 5)
            parse_attribute(t, f.bytes, model);
    }
    if (!is_batchnorm || model->input_count != INPUTS || model->output_count > OUTPUTS)
        test_fail(t, "onnx: the model is not one BatchNormalization with five inputs");
}

/* ModelProto: graph 7. GraphProto: node 1, initializer 5. */
static struct onnx_model parse_model(struct test *t, struct span message) {
    struct onnx_model model = {.epsilon = (double)1e-5f, .momentum = (double)0.9f};
    struct field f, g;
    while (next_field(t, &message, &f)) {
        while (f.number == 7 && next_field(t, &f.bytes, &g)) {
            if (g.number == 1)
                parse_node(t, g.bytes, &model);
            else if (g.number == 5 && model.initializer_count < INPUTS)
                model.initializers[model.initializer_count++] = parse_tensor(t, g.bytes);
        }
    }
    if (model.input_count == 0)
        test_fail(t, "onnx: the model has no node");
    return model;
}

/* ---------------------------------------------------------------------------------------------- */
/* The cases                                                                                      */

struct onnx_case {
    const char *dir;
    int training;
};

static struct onnx_tensor load(struct test *t, const char *dir, const char *kind, size_t i) {
    char path[1024];
    snprintf(path, sizeof path, "%s/%s/test_data_set_0/%s_%zu.pb", testdata(), dir, kind, i);
    test_context(t, "%s", path);
    return parse_tensor(t, read_file(t, path));
}

/* The node's inputs come from the data set, in order, or from the model's initializers by name. */
static void load_inputs(struct test *t, const char *dir, const struct onnx_model *model,
                        struct onnx_tensor inputs[INPUTS]) {
    size_t from_data = 0;
    for (size_t i = 0; i < INPUTS; i++) {
        const struct onnx_tensor *initializer = NULL;
        for (size_t k = 0; k < model->initializer_count; k++) {
            const struct onnx_tensor *c = &model->initializers[k];
            const size_t length = (size_t)(c->name.end - c->name.p);
            if (length && length == (size_t)(model->inputs[i].end - model->inputs[i].p) &&
                memcmp(c->name.p, model->inputs[i].p, length) == 0)
                initializer = c;
        }
        inputs[i] = initializer ? *initializer : load(t, dir, "input", from_data++);
    }
}

/* ONNX's own criterion, |got - want| <= atol + rtol*|want|, and what is found. */
static const double onnx_rtol = 1e-3, onnx_atol = 1e-7;

/* A float computation of y without cancellation in the statistics has a handful of roundings, each
 * at most 2^-24 of the largest term; the terms are |x - mean|*scale and |bias|. ONNX's expected
 * values come from such a computation too, so twice eight roundings bound the difference. */
static const double ROUNDINGS = 16;

struct comparison {
    double worst; /* largest |got - want| in units of 2^-24 of the largest term */
};

static void compare(struct test *t, struct comparison *c, const char *what, size_t i, float got,
                    float want, double terms) {
    const double error = fabs((double)got - (double)want);
    check_near(t, what, i, got, (double)want, onnx_atol + onnx_rtol * fabs((double)want));
    check_near(t, what, i, got, (double)want, ROUNDINGS * 0x1p-24 * terms);
    if (terms > 0)
        c->worst = fmax(c->worst, error / (0x1p-24 * terms));
}

static void test_case(struct test *t) {
    const struct onnx_case *cc = t->param;
    char path[1024];
    snprintf(path, sizeof path, "%s/%s/model.onnx", testdata(), cc->dir);
    test_context(t, "%s", path);
    const struct onnx_model model = parse_model(t, read_file(t, path));
    if (model.training != cc->training)
        test_fail(t, "training_mode is %d", model.training);
    struct onnx_tensor in[INPUTS];
    load_inputs(t, cc->dir, &model, in);
    if (in[0].rank < 2)
        test_fail(t, "x has %zu dimensions", in[0].rank);
    const size_t n = (size_t)in[0].dims[0], c = (size_t)in[0].dims[1];
    const bnorm_shape shape = {.layout = BNORM_NCHW, .n = n, .c = c, .hw = in[0].count / n / c};
    for (size_t i = 1; i < INPUTS; i++)
        if (in[i].count != c)
            test_fail(t, "input %zu has %zu values for %zu channels", i, in[i].count, c);

    const bnorm_exec exec = {.isa = t->isa};
    const float *gamma = in[1].data, *beta = in[2].data;
    float *mean = test_floats(t, c), *var = test_floats(t, c);
    float *scale = test_floats(t, c), *center = test_floats(t, c), *y = test_floats(t, in[0].count);
    memcpy(mean, in[3].data, c * sizeof *mean);
    memcpy(var, in[4].data, c * sizeof *var);
    const bnorm_in x = {.data = in[0].data};
    if (model.training) {
        const size_t size = bnorm_workspace(BNORM_OP_FORWARD_TRAIN, &shape);
        const bnorm_train train = {.gamma = gamma,
                                   .beta = beta,
                                   .eps = model.epsilon,
                                   .running = bnorm_running_onnx(mean, var, model.momentum),
                                   .save_mean = center,
                                   .save_invstd = scale};
        check_status(t, "bnorm_forward_train",
                     bnorm_forward_train(&shape, x, (bnorm_out){.data = y}, &train,
                                         test_alloc(t, size), size, &exec),
                     BNORM_OK);
        for (size_t i = 0; i < c; i++)
            scale[i] *= gamma[i];
    } else {
        float *shift = test_floats(t, c);
        check_status(t, "bnorm_fold",
                     bnorm_fold(c, gamma, beta, mean, var, model.epsilon, scale, shift), BNORM_OK);
        memcpy(center, mean, c * sizeof *center);
        const bnorm_affine affine = {.center = center, .scale = scale, .shift = beta};
        check_status(t, "bnorm_apply",
                     bnorm_apply(&shape, x, (bnorm_out){.data = y}, &affine, &exec), BNORM_OK);
    }

    struct comparison found = {0};
    const struct onnx_tensor want = load(t, cc->dir, "output", 0);
    if (want.count != in[0].count)
        test_fail(t, "y has %zu values, x %zu", want.count, in[0].count);
    for (size_t i = 0; i < want.count; i++) {
        const size_t ch = shape_channel(&shape, i);
        const double magnitude = fabs((double)in[0].data[i]) + fabs((double)center[ch]);
        const double terms = magnitude * fabs((double)scale[ch]) + fabs((double)beta[ch]);
        compare(t, &found, "y", i, y[i], want.data[i], terms);
    }
    if (model.training) {
        if (model.output_count != 3)
            test_fail(t, "training mode with %zu outputs", model.output_count);
        const struct onnx_tensor want_mean = load(t, cc->dir, "output", 1);
        const struct onnx_tensor want_var = load(t, cc->dir, "output", 2);
        if (want_mean.count != c || want_var.count != c)
            test_fail(t, "running statistics of another size");
        for (size_t i = 0; i < c; i++) {
            compare(t, &found, "running mean", i, mean[i], want_mean.data[i],
                    fabs((double)in[3].data[i]) + fabs((double)center[i]));
            compare(t, &found, "running variance", i, var[i], want_var.data[i],
                    fabs((double)want_var.data[i]));
        }
    }
    print_message("           largest difference from ONNX: %.2f * 2^-24 of the terms\n",
                  found.worst);
}

static void test_absent(struct test *t) {
    print_message("SKIPPED: ONNX's test data is not in %s: install Debian's libonnx-testdata "
                  "or set BNORM_ONNX_TESTDATA. NO TEST COMPARES WITH ONNX HERE.\n",
                  testdata());
    if (getenv("BNORM_ONNX_TESTDATA"))
        test_fail(t, "BNORM_ONNX_TESTDATA names a folder without the test data");
    skip();
}

void add_onnx(struct suite *s) {
    static const struct onnx_case cases[] = {
        {"node/test_batchnorm_epsilon", 0},
        {"node/test_batchnorm_epsilon_training_mode", 1},
        {"node/test_batchnorm_example", 0},
        {"node/test_batchnorm_example_training_mode", 1},
        {"pytorch-converted/test_BatchNorm1d_3d_input_eval", 0},
        {"pytorch-converted/test_BatchNorm2d_eval", 0},
        {"pytorch-converted/test_BatchNorm2d_momentum_eval", 0},
        {"pytorch-converted/test_BatchNorm3d_eval", 0},
        {"pytorch-converted/test_BatchNorm3d_momentum_eval", 0},
    };
    char path[1024];
    snprintf(path, sizeof path, "%s/%s/model.onnx", testdata(), cases[0].dir);
    FILE *file = fopen(path, "rb");
    if (!file) {
        suite_add(s, NULL, test_absent, NULL, "onnx/SKIPPED");
        return;
    }
    fclose(file);
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        const char *slash = strchr(cases[i].dir, '/');
        char name[128];
        snprintf(name, sizeof name, "onnx/%s/%%s", slash + 1);
        suite_add_per_isa(s, test_case, &cases[i], name);
    }
}
