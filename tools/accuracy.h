/* SPDX-License-Identifier: MIT
 *
 * The accuracy study: the same data through bnorm and other libraries, measured against the exact
 * result. accuracy.c runs it and prints the table. */
#ifndef BNORM_TOOLS_ACCURACY_H
#define BNORM_TOOLS_ACCURACY_H

#include <stddef.h>
#include "bnorm.h"

/* ---------------------------------------------------------------------------------------------- */
/* Data (accuracy_data.c)                                                                         */

typedef struct distribution {
    const char *name;
    /* Fills the n values of one channel. */
    void (*fill)(float *x, size_t n, double parameter, size_t channel);
    double parameter;
} distribution;

extern const distribution distributions[];
extern const size_t distribution_count;
/* By name; never NULL for a name in the list. */
const distribution *find_distribution(const char *name);

/* Incoming gradients: normal, deviation 1, mean 0.1. */
void fill_gradient(float *dy, size_t n, size_t channel);

/* ---------------------------------------------------------------------------------------------- */
/* Libraries under test                                                                           */

/* Training forward and backward, gamma 1, beta 0, tensors dense. */
struct problem {
    bnorm_layout layout;
    size_t n, c, hw;
    double eps; /* a float's value, so that all libraries use the same */
    const float *x, *dy;
};

/* Arrays given by the caller, c values or one per element. A library that does not hand out a
 * quantity leaves it as it is and clears its pointer. */
struct answer {
    float *mean, *var, *invstd, *y, *dx, *dgamma, *dbeta;
    int sample_variance; /* not 0: var is sum((x - mean)^2)/(n - 1) */
};

struct library {
    const char *name;
    const char *missing; /* how to get it, for a library that is not there */
    /* Starts the library; 0 = not installed. */
    int (*start)(void);
    /* 0 = failed. */
    int (*run)(const struct problem *p, struct answer *a);
    void (*stop)(void);
};

extern const struct library library_dnnl;  /* accuracy_dnnl.c */
extern const struct library library_torch; /* accuracy_torch.c */

/* ---------------------------------------------------------------------------------------------- */
/* Exact results (accuracy_exact.c)                                                               */

/* One channel. Each value is right to about 2^-50 of itself, the last two to 2^-30. */
struct exact {
    double mean, mean_lo; /* mean = mean + mean_lo */
    double var, sample_var, deviation, invstd;
    double dgamma, dbeta;
    double dbeta_terms, dgamma_terms; /* the root of the sum of their terms' squares */
    double n;
};

/* Where the elements of a channel lie. */
struct channel {
    const float *x, *dy;
    size_t images, positions;           /* n = images*positions */
    size_t image_stride, position_step; /* in floats */
};

struct exact exact_channel(const struct channel *ch, double eps);
double exact_y(const struct exact *e, float x);
/* *magnitude: the sum of the magnitudes of dx's three terms. */
double exact_dx(const struct exact *e, float x, float dy, double *magnitude);

#endif
