/* SPDX-License-Identifier: MIT
 *
 * What bnorm supports, asked of the built library itself: every operation, layout, type, activation
 * and way to recover an activation's argument is called on tiny tensors, on every kernel set of
 * this CPU. Prints the tables of docs/support.md (make support-update puts them there). The kernels
 * that a call uses are named by a kernel set, made from the one list, that only records. */
#include <stdio.h>
#include <string.h>
#include "bnorm.h"
#include "../dispatch/isa.h"
#include "../tests/call.h"

/* ---------------------------------------------------------------------------------------------- */
/* Kernels that record                                                                            */

enum kernel {
#define X(kernel, args) KERNEL_##kernel,
    BNORM_KERNELS(X)
#undef X
        KERNELS
};

static const char *const kernel_names[] = {
#define X(kernel, args) #kernel,
    BNORM_KERNELS(X)
#undef X
};

static unsigned kernels_seen;

/* The list names all arguments; nobody looks at them here. */
#pragma GCC diagnostic push
#pragma GCC diagnostic ignored "-Wunused-parameter"
#define X(kernel, args)                                                                            \
    static void record_##kernel args {                                                             \
        kernels_seen |= 1u << KERNEL_##kernel;                                                     \
    }
BNORM_KERNELS(X)
#undef X
#pragma GCC diagnostic pop

#define X(kernel, args) .kernel = record_##kernel,
static const bnorm_training recorders = {BNORM_TRAINING_KERNELS(X)};
static const struct bnorm_isa recorder = {
    .name = "recorder", .training = &recorders, BNORM_INFERENCE_KERNELS(X)};
#undef X

/* ---------------------------------------------------------------------------------------------- */
/* What can be asked                                                                              */

enum op { INFERENCE, MOMENTS, TRAINING, BACKWARD, FROZEN, OPS };
static const char *const op_names[OPS] = {"inference", "moments", "training", "backward",
                                          "frozen backward"};

static const struct {
    const char *name;
    bnorm_layout layout;
    size_t c_block;
} layouts[] = {{"NHWC", BNORM_NHWC, 0},   {"NCHW", BNORM_NCHW, 0},     {"nChw4c", BNORM_NCHW, 4},
               {"nChw8c", BNORM_NCHW, 8}, {"nChw16c", BNORM_NCHW, 16}, {"nChw32c", BNORM_NCHW, 32}};
enum { LAYOUTS = sizeof layouts / sizeof layouts[0] };

static const char *const type_names[] = {"F32", "BF16", "F16", "S8", "U8"};
enum { TYPES = BNORM_U8 + 1, FLOAT_TYPES = BNORM_F16 + 1 };

static const char *const act_names[] = {"identity",   "ReLU",    "clamp",    "leaky ReLU",
                                        "hard swish", "sigmoid", "SiLU",     "tanh",
                                        "GELU",       "ELU",     "softplus", "mish"};
enum { ACTS = sizeof act_names / sizeof act_names[0] };

/* What a call has beside its tensors: in inference and training a residual and a mask; in backward
 * how the activation's argument is recovered. */
enum extra { NOTHING, RESIDUAL, MASK, FROM_Y };

struct question {
    enum op op;
    size_t layout;
    bnorm_dtype type, y_type;
    bnorm_act_kind act;
    enum extra extra;
    size_t hw;
};

enum { N = 2, C = 5, HW = 3, ROOM = 1 << 18 };

static bnorm_status run(const struct question *asked, const bnorm_isa *isa) {
    static const bnorm_op ops[OPS] = {BNORM_OP_APPLY, BNORM_OP_MOMENTS, BNORM_OP_FORWARD_TRAIN,
                                      BNORM_OP_BACKWARD, BNORM_OP_BACKWARD};
    static float x[ROOM], extra[ROOM], dy[ROOM], y[ROOM], dresidual[ROOM], workspace[ROOM];
    static float parameters[C], ones[C] = {1, 1, 1, 1, 1}, results[4][C];
    static unsigned char mask[ROOM];
    const int backward = ops[asked->op] == BNORM_OP_BACKWARD;
    const bnorm_exec exec = {.isa = isa};
    const struct call call = {
        .op = ops[asked->op],
        .shape = {layouts[asked->layout].layout, asked->type, N, C, asked->hw,
                  layouts[asked->layout].c_block},
        .act = {asked->act, asked->act == BNORM_ACT_LEAKY_RELU ? 0.1f : 0, 6},
        .y_dtype = (bnorm_y_dtype)(BNORM_Y_F32 + asked->y_type),
        .rate = 0.1,
        .frozen = asked->op == FROZEN,
    };
    const struct operands at = {
        .x = {.data = x},
        .dy = {.data = dy},
        .residual = {.data = asked->extra == RESIDUAL ? extra : NULL},
        .y = {.data = asked->extra == FROM_Y ? extra : NULL},
        .out = {.data = y},
        .dresidual = {.data = asked->extra == RESIDUAL ? dresidual : NULL},
        .gamma = ones,
        .beta = parameters,
        .scale = ones,
        .mean = backward                 ? parameters
                : asked->op == INFERENCE ? NULL
                                         : results[2],
        .invstd = backward ? ones : results[3],
        .running_mean = results[0],
        .running_var = results[1],
        .dgamma = results[0],
        .dbeta = results[1],
        .mask = asked->extra == MASK ? mask : NULL,
        .ws = workspace,
        .ws_size = sizeof workspace,
    };
    struct call_args args;
    call_arguments(&args, &call, &at);
    return call_run(&args, &exec);
}

/* ---------------------------------------------------------------------------------------------- */
/* Answers                                                                                        */

static int complaints;

/* Whether the set does it. */
static int does(const struct question *call, const bnorm_isa *isa) {
    const bnorm_status status = run(call, isa);
    if (status != BNORM_OK && status != BNORM_UNSUPPORTED) {
        fprintf(stderr, "support: %s, %s, %s, %s, extra %d on %s: %s Correct tools/support.c.\n",
                op_names[call->op], layouts[call->layout].name, type_names[call->type],
                act_names[call->act], (int)call->extra, bnorm_isa_name(isa),
                bnorm_strerror(status));
        complaints++;
    }
    return status == BNORM_OK;
}

/* A bit per usable kernel set that does it. */
static unsigned sets_that_do(const struct question *call) {
    unsigned sets = 0;
    for (size_t i = 0; bnorm_isa_at(i); i++)
        sets |= (unsigned)does(call, bnorm_isa_at(i)) << i;
    return sets;
}

static unsigned all_sets(void) {
    size_t count = 0;
    while (bnorm_isa_at(count))
        count++;
    return (1u << count) - 1;
}

static struct question new_question(enum op op, size_t layout, bnorm_dtype type, bnorm_act_kind act,
                                    enum extra extra) {
    return (struct question){op, layout, type, type, act, extra, HW};
}

/* Kernels that the call uses, on tensors of several blocks. */
static unsigned kernels_of(struct question call) {
    call.hw = 2500;
    kernels_seen = 0;
    does(&call, &recorder);
    return kernels_seen;
}

/* Adds to a text of `size` bytes. */
static void append(char *to, size_t size, const char *separator, const char *word) {
    const size_t used = strlen(to);
    if (used + strlen(separator) + strlen(word) >= size) {
        fprintf(stderr, "support: a cell is too long; enlarge TEXT in support.c.\n");
        complaints++;
        return;
    }
    snprintf(to + used, size - used, "%s%s", used ? separator : "", word);
}

enum { TEXT = 400 };

/* The sets that do something: "all", "-" or some. */
static void append_sets(char *to, unsigned sets) {
    char names[TEXT] = "";
    for (size_t i = 0; bnorm_isa_at(i); i++)
        if (sets >> i & 1)
            append(names, sizeof names, ", ", bnorm_isa_name(bnorm_isa_at(i)));
    append(to, TEXT, " | ", sets == all_sets() ? "all" : sets ? names : "-");
}

/* Is the extra there for every type that the operation has? Else the types that have it. */
static void append_extra(char *to, enum op op, size_t layout, enum extra extra) {
    char types[TEXT] = "";
    int lacking = 0;
    for (int type = 0; type < TYPES; type++) {
        const struct question without =
            new_question(op, layout, (bnorm_dtype)type, BNORM_ACT_RELU, NOTHING);
        struct question with = without;
        with.extra = extra;
        if (!sets_that_do(&without))
            continue;
        if (op != MOMENTS && sets_that_do(&with) == sets_that_do(&without))
            append(types, sizeof types, ", ", type_names[type]);
        else
            lacking = 1;
    }
    append(to, TEXT, " | ", !types[0] ? "-" : lacking ? types : "yes");
}

/* All of a row but op and layouts. */
static void describe(enum op op, size_t layout, char *to) {
    char names[TEXT] = "";
    unsigned kernels = 0;
    to[0] = '\0';
    for (int type = 0; type < TYPES; type++) {
        const struct question call =
            new_question(op, layout, (bnorm_dtype)type, BNORM_ACT_RELU, NOTHING);
        append_sets(to, sets_that_do(&call));
        kernels |= kernels_of(call);
    }
    append_extra(to, op, layout, RESIDUAL);
    append_extra(to, op, layout, MASK);
    for (size_t k = 0; k < KERNELS; k++)
        if (kernels >> k & 1)
            append(names, sizeof names, ", ", kernel_names[k]);
    append(to, TEXT, " | ", names);
}

/* Operations and layouts with equal rows share one. */
static void print_types(void) {
    static char rows[OPS][LAYOUTS][TEXT];
    printf("| operation | layouts | F32 | BF16 | F16 | S8 | U8 | residual | mask | kernels |\n"
           "|---|---|---|---|---|---|---|---|---|---|\n");
    for (int op = 0; op < OPS; op++)
        for (size_t layout = 0; layout < LAYOUTS; layout++)
            describe((enum op)op, layout, rows[op][layout]);
    for (int op = 0, next; op < OPS; op = next) {
        char ops[TEXT] = "";
        int done[LAYOUTS] = {0};
        for (next = op; next < OPS && memcmp(rows[next], rows[op], sizeof rows[op]) == 0; next++)
            append(ops, sizeof ops, ", ", op_names[next]);
        for (size_t first = 0; first < LAYOUTS; first++) {
            char names[TEXT] = "";
            for (size_t i = first; i < LAYOUTS && !done[first]; i++)
                if (strcmp(rows[op][i], rows[op][first]) == 0) {
                    append(names, sizeof names, ", ", layouts[i].name);
                    done[i] = i != first;
                }
            if (names[0])
                printf("| %s | %s | %s |\n", ops, names, rows[op][first]);
        }
    }
}

/* Does every set do it, in all layouts and all types that the operation has? */
static void append_everywhere(char *to, enum op op, bnorm_act_kind act, enum extra extra) {
    size_t yes = 0, all = 0;
    for (size_t layout = 0; layout < LAYOUTS; layout++)
        for (int type = 0; type < (op == INFERENCE ? TYPES : FLOAT_TYPES); type++, all++) {
            const struct question call = new_question(op, layout, (bnorm_dtype)type, act, extra);
            yes += sets_that_do(&call) == all_sets();
        }
    append(to, TEXT, " | ", yes == all ? "yes" : yes ? "some" : "-");
}

static void print_acts(void) {
    static char rows[ACTS][TEXT];
    int done[ACTS] = {0};
    for (int i = 0; i < ACTS; i++) {
        static const enum extra extras[] = {NOTHING, RESIDUAL, FROM_Y, MASK};
        const bnorm_act_kind act = (bnorm_act_kind)i;
        rows[i][0] = '\0';
        append(rows[i], TEXT, "", act >= BNORM_ACT_SIGMOID ? "needed" : "-");
        append_everywhere(rows[i], INFERENCE, act, NOTHING);
        append_everywhere(rows[i], TRAINING, act, NOTHING);
        append_everywhere(rows[i], TRAINING, act, MASK);
        for (size_t k = 0; k < sizeof extras / sizeof extras[0]; k++)
            append_everywhere(rows[i], BACKWARD, act, extras[k]);
    }
    printf("| activation | SLEEF | inference | training | training with mask | backward, from x | "
           "from x and residual | from y | from mask |\n"
           "|---|---|---|---|---|---|---|---|---|\n");
    for (size_t first = 0; first < ACTS; first++) {
        char names[TEXT] = "";
        for (size_t i = first; i < ACTS && !done[first]; i++)
            if (strcmp(rows[i], rows[first]) == 0) {
                append(names, sizeof names, ", ", act_names[i]);
                done[i] = i != first;
            }
        if (names[0])
            printf("| %s | %s |\n", names, rows[first]);
    }
}

/* x and y of any two types? */
static int mixes_all_types(void) {
    for (size_t layout = 0; layout < LAYOUTS; layout++)
        for (int x = 0; x < TYPES; x++)
            for (int y = 0; y < TYPES; y++) {
                struct question call =
                    new_question(INFERENCE, layout, (bnorm_dtype)x, BNORM_ACT_RELU, RESIDUAL);
                call.y_type = (bnorm_dtype)y;
                if (sets_that_do(&call) != all_sets())
                    return 0;
            }
    return 1;
}

/* All kernel sets there are; those that this CPU lacks are made from the same list of kernels, by
 * the same sources. */
static void print_sets(void) {
    static const char *const names[] = {"avx512", "avx2", "neon", "scalar"};
    char here[TEXT] = "", elsewhere[TEXT] = "";
    size_t found = 0, usable = 0;
    for (size_t i = 0; i < sizeof names / sizeof names[0]; i++) {
        const int runs = bnorm_isa_find(names[i]) != NULL;
        append(runs ? here : elsewhere, TEXT, ", ", names[i]);
        found += (size_t)runs;
    }
    while (bnorm_isa_at(usable))
        usable++;
    if (found != usable) {
        fprintf(stderr,
                "support: there is a kernel set that print_sets() does not name; add it.\n");
        complaints++;
    }
    fprintf(stderr, "support: asked %s; not on this CPU: %s\n", here, elsewhere);
    printf("*all* means every kernel set: `avx512`, `avx2`, `neon` and `scalar`.%s\n\n",
           mixes_all_types() ? " Inference reads and\nwrites any two of the types." : "");
}

int main(void) {
    const struct question sleef = new_question(INFERENCE, 0, BNORM_F32, BNORM_ACT_SIGMOID, NOTHING);
    if (sets_that_do(&sleef) != all_sets()) {
        fprintf(stderr, "support: the tables are those of a build with SLEEF, on a CPU with FMA: "
                        "make deps, then make SLEEF=1.\n");
        return 2;
    }
    print_sets();
    print_types();
    printf("\n");
    print_acts();
    return complaints != 0;
}
