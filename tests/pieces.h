/* SPDX-License-Identifier: MIT
 *
 * Batches in pieces, for their tests: ways to cut a batch and to put the pieces together again,
 * pieces between guard pages, and a training step with what single calls make of it. */
#ifndef BNORM_TESTS_PIECES_H
#define BNORM_TESTS_PIECES_H

#include "calls.h"

/* ---------------------------------------------------------------------------------------------- */
/* Cuts                                                                                           */

/* Part i of a batch: images [at[i], at[i + 1]). */
struct cut {
    size_t parts;
    size_t *at;
};

enum cut_kind {
    CUT_WHOLE = 0,
    CUT_HALVES,
    CUT_IMAGES, /* each on its own */
    CUT_RANDOM,
    CUT_EMPTY, /* random, with empty parts between them and at the ends */
    CUT_KINDS
};

struct cut cut_new(struct test *t, enum cut_kind kind, size_t n);
/* Bit i: a part ends after image i. */
struct cut cut_by_bits(struct test *t, size_t n, size_t bits);
const char *cut_text(const struct cut *cut, char text[96]); /* "3+0+4", with dots where too long */

/* How what has been collected of the parts becomes one piece. */
enum joining {
    JOIN_APPEND = 0, /* collected into one piece */
    JOIN_LEFT,       /* a piece each, merged as ((ab)c)d */
    JOIN_RIGHT,      /* as a(b(cd)) */
    JOIN_TREE,       /* in random order */
    JOIN_MIXED,      /* some parts appended, then in random order */
    JOIN_COUNT
};
const char *joining_text(enum joining joining);

/* ---------------------------------------------------------------------------------------------- */
/* Pieces                                                                                         */

/* Whole subtrees that images [first, first + n) consist of: found from the root down. */
size_t subtree_count(size_t first, size_t n);
size_t used_bytes(const bnorm_partial *piece);

/* Pieces are kept as they would be sent: `nodes` holds what is used and no more. */
bnorm_partial piece_empty(bnorm_op op, size_t c, size_t first);

/* A copy of a piece with so many bytes between guard pages. */
struct placed {
    bnorm_partial piece;
    struct buffer nodes;
    const bnorm_partial *from;
};
void placed_new(struct test *t, struct placed *p, const bnorm_partial *from, size_t bytes);
/* It is as it was. */
void placed_unchanged(struct test *t, struct placed *p);
/* It has got `more` images of hw positions and is otherwise as it must be: among others, no node
 * was written that it did not need on the way. */
bnorm_partial placed_grown(struct test *t, struct placed *p, size_t more, size_t hw);

/* bnorm_partial_merge() of copies. */
bnorm_partial piece_merged(struct test *t, const bnorm_partial *left, const bnorm_partial *right);
/* bnorm_partial_total(), each array between guard pages. */
struct totals {
    double count, *mean, *m2;
};
struct totals piece_totals(struct test *t, const bnorm_partial *piece);
void check_same_piece(struct test *t, const bnorm_partial *got, const bnorm_partial *want);

/* ---------------------------------------------------------------------------------------------- */
/* Calls in pieces                                                                                */

/* The images of a call, collected: op is BNORM_OP_MOMENTS (of x) or BNORM_OP_BACKWARD; the first
 * image has the number `first`. An exec without kernel set: each part on a random one. */
bnorm_partial collect_parts(struct test *t, const struct ready *r, bnorm_op op,
                            const struct cut *cut, enum joining joining, size_t first,
                            const bnorm_exec *exec);
/* In place of run_job(), for BNORM_OP_FORWARD_TRAIN and BNORM_OP_BACKWARD. */
void run_in_pieces(struct test *t, struct ready *r, const struct cut *cut, enum joining joining,
                   const bnorm_exec *exec);

/* ---------------------------------------------------------------------------------------------- */
/* A training step                                                                                */

/* Forward and backward of one batch with random options, and the results of single calls of the
 * scalar set. */
struct step {
    struct data forward_data, backward_data;
    struct call forward, backward;
    struct results want_y; /* of forward */
    struct results want_dx;
};

/* values: what x holds, rounded to its type. */
void step_new(struct test *t, struct step *s, const bnorm_shape *shape, enum values values);
/* With x as it is now. */
void step_solve(struct test *t, struct step *s);
/* The step in pieces gives the same bits. */
void step_check(struct test *t, const struct step *s, const struct cut *cut, enum joining joining,
                const bnorm_exec *exec);

#endif
