/* SPDX-License-Identifier: MIT
 *
 * The reference: batch normalization written down as in the textbook, in double, for dense tensors.
 * It shares no code with the library. Where a bound is asked for, it is how far a right
 * implementation in float may be from the value; oracle.c derives it. */
#ifndef BNORM_TESTS_ORACLE_H
#define BNORM_TESTS_ORACLE_H

#include "bnorm.h"

double oracle_act(bnorm_act act, double v);
double oracle_act_derivative(bnorm_act act, double v);
/* Errors allowed of the activations made of exponentials, SIGMOID and those after it: of the value
 * in ulp, of the derivative as it is. */
#define ORACLE_SMOOTH_ULP   8
#define ORACLE_SMOOTH_SLOPE 0x1p-20
double oracle_smooth_bound(double v, double y); /* of the value y at v, which is exact */
/* Of the activation's value, and of dy*act'(v) away from jumps, where v is off by v_bound. */
double oracle_act_bound(bnorm_act act, double v, double v_bound);
double oracle_gradient_bound(bnorm_act act, double v, double v_bound, double dy);
/* Distance from v to the nearest point where the derivative jumps. */
double oracle_kink_distance(bnorm_act act, double v);

/* Arrays of c doubles; NULL where not wanted. Bounds are before the rounding to float. */
struct oracle_stats {
    double *mean, *mean_bound;
    double *var, *var_bound;
};
/* Of a channel with this variance and largest magnitude. */
struct oracle_bounds {
    double mean, var;
};
struct oracle_bounds oracle_moment_bounds(const bnorm_shape *shape, double var, double max);
void oracle_moments(const bnorm_shape *shape, const double *x, const struct oracle_stats *out);

/* y = act((x - center)*scale + shift + residual). Parameters NULL as in bnorm_affine; y_bound and
 * v (the activation's argument) may be NULL. */
struct oracle_affine {
    const double *center, *scale, *shift, *residual;
    bnorm_act act;
};
void oracle_apply(const bnorm_shape *shape, const double *x, const struct oracle_affine *affine,
                  double *v, double *y, double *y_bound);

/* The training forward pass. */
struct oracle_train {
    const double *gamma, *beta, *residual; /* NULL as in bnorm_train */
    double eps;
    bnorm_act act;
};
struct oracle_train_out {
    struct oracle_stats stats;         /* all wanted */
    double *invstd, *invstd_bound;     /* bound before the rounding to float */
    double *v, *v_bound, *y, *y_bound; /* bounds may be NULL */
};
void oracle_train(const bnorm_shape *shape, const double *x, const struct oracle_train *train,
                  const struct oracle_train_out *out);

/* The backward pass for given statistics. v: the activation's argument. */
struct oracle_grad {
    const double *gamma, *beta; /* NULL as in bnorm_grad */
    const double *mean;         /* save_mean + save_mean_lo */
    const double *mean_hi;      /* save_mean */
    const double *invstd;
    const double *v;
    int frozen;
    bnorm_act act;
};
struct oracle_grad_out {
    double *dgamma, *dgamma_bound, *dbeta, *dbeta_bound; /* all wanted */
    double *g, *g_bound, *dx, *dx_bound;
};
/* sum(g) and sum(g*(x - center)) may be off by so much of the sum of the magnitudes. */
double oracle_sum_error(const bnorm_shape *shape);
double oracle_product_error(const bnorm_shape *shape);
void oracle_backward(const bnorm_shape *shape, const double *x, const double *dy,
                     const struct oracle_grad *grad, const struct oracle_grad_out *out);

/* running + rate*(batch - running). */
double oracle_running(double running, double batch, double rate);
/* Factor from the population variance to what the running variance takes. */
double oracle_variance_factor(bnorm_variance kind, double n);

#endif
