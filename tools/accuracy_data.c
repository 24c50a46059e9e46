/* SPDX-License-Identifier: MIT
 *
 * The distributions of the accuracy study. */
#include <float.h>
#include <math.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include "accuracy.h"

/* ---------------------------------------------------------------------------------------------- */
/* Random numbers: splitmix64, Box and Muller                                                     */

static uint64_t state;

static uint64_t random_u64(void) {
    state += 0x9e3779b97f4a7c15u;
    uint64_t z = state;
    z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9u;
    z = (z ^ (z >> 27)) * 0x94d049bb133111ebu;
    return z ^ (z >> 31);
}

/* In (0, 1). */
static double random_uniform(void) {
    return ((double)(random_u64() >> 12) + 0.5) * 0x1p-52;
}

static double random_normal(void) {
    const double pi = 3.14159265358979323846;
    const double radius = sqrt(-2 * log(random_uniform()));
    return radius * cos(2 * pi * random_uniform());
}

/* Each channel has its own data, the same in every layout. */
static void seed(size_t channel) {
    state = 0x5eed0000u + channel;
}

/* ---------------------------------------------------------------------------------------------- */
/* Distributions                                                                                  */

/* Deviation 1; the mean is that many deviations. */
static void normal(float *x, size_t n, double mean, size_t channel) {
    seed(channel);
    for (size_t i = 0; i < n; i++)
        x[i] = (float)(mean + random_normal());
}

static void log_normal(float *x, size_t n, double sigma, size_t channel) {
    seed(channel);
    for (size_t i = 0; i < n; i++)
        x[i] = (float)exp(sigma * random_normal());
}

static void cauchy(float *x, size_t n, double unused, size_t channel) {
    (void)unused;
    seed(channel);
    for (size_t i = 0; i < n; i++) {
        const double numerator = random_normal();
        x[i] = (float)(numerator / random_normal());
    }
}

/* Normal but for one value of 1e6 deviations: the first (0), in the middle (0.5), the last (1). */
static void outlier(float *x, size_t n, double where, size_t channel) {
    normal(x, n, 0, channel);
    x[(size_t)((double)(n - 1) * where)] = 1e6f;
}

/* Two narrow clusters, 2000 of their own deviations apart, mixed. */
static void clusters(float *x, size_t n, double unused, size_t channel) {
    (void)unused;
    seed(channel);
    for (size_t i = 0; i < n; i++)
        x[i] = (float)((random_u64() >> 63 ? 1001 : 999) + 1e-3 * random_normal());
}

static int ascending(const void *a, const void *b) {
    const float x = *(const float *)a, y = *(const float *)b;
    return (x > y) - (x < y);
}

static void clusters_in_a_row(float *x, size_t n, double unused, size_t channel) {
    clusters(x, n, unused, channel);
    qsort(x, n, sizeof *x, ascending);
}

static void sorted(float *x, size_t n, double mean, size_t channel) {
    normal(x, n, mean, channel);
    qsort(x, n, sizeof *x, ascending);
}

static void sorted_down(float *x, size_t n, double mean, size_t channel) {
    sorted(x, n, mean, channel);
    for (size_t i = 0; i < n / 2; i++) {
        const float swap = x[i];
        x[i] = x[n - 1 - i];
        x[n - 1 - i] = swap;
    }
}

static void constant(float *x, size_t n, double value, size_t channel) {
    for (size_t i = 0; i < n; i++)
        x[i] = (float)(value * (1 + (double)channel));
}

/* One value is the next float. */
static void almost_constant(float *x, size_t n, double value, size_t channel) {
    constant(x, n, value, channel);
    x[n / 2] = nextafterf(x[n / 2], INFINITY);
}

static void half_constant(float *x, size_t n, double mean, size_t channel) {
    normal(x, n, mean, channel);
    for (size_t i = 0; i < n / 2; i++)
        x[i] = (float)mean;
}

/* Normal, mean 1, times a power of two or ten. */
static void scaled(float *x, size_t n, double scale, size_t channel) {
    seed(channel);
    for (size_t i = 0; i < n; i++)
        x[i] = (float)(scale * (1 + random_normal()));
}

/* Uniform in [low*FLT_MAX, FLT_MAX]. */
static void near_overflow(float *x, size_t n, double low, size_t channel) {
    seed(channel);
    for (size_t i = 0; i < n; i++)
        x[i] = (float)((double)FLT_MAX * (low + (1 - low) * random_uniform()));
}

/* +-FLT_MAX by turns. */
static void extremes(float *x, size_t n, double unused, size_t channel) {
    (void)unused;
    (void)channel;
    for (size_t i = 0; i < n; i++)
        x[i] = i % 2 ? -FLT_MAX : FLT_MAX;
}

void fill_gradient(float *dy, size_t n, size_t channel) {
    normal(dy, n, 0.1, channel + 1000);
}

const distribution distributions[] = {
    {"mean 0", normal, 0},
    {"mean 1", normal, 1},
    {"mean 1e1", normal, 1e1},
    {"mean 1e2", normal, 1e2},
    {"mean 1e3", normal, 1e3},
    {"mean 1e4", normal, 1e4},
    {"mean 1e5", normal, 1e5},
    {"mean 1e6", normal, 1e6},
    {"mean 1e7", normal, 1e7},
    {"log-normal, sigma 1", log_normal, 1},
    {"log-normal, sigma 3", log_normal, 3},
    {"Cauchy", cauchy, 0},
    {"outlier 1e6 first", outlier, 0},
    {"outlier 1e6 middle", outlier, 0.5},
    {"outlier 1e6 last", outlier, 1},
    {"two clusters, mixed", clusters, 0},
    {"two clusters, in a row", clusters_in_a_row, 0},
    {"constant 0.1", constant, 0.1},
    {"constant 1e6", constant, 1e6},
    {"almost constant 0.1", almost_constant, 0.1},
    {"almost constant 1e6", almost_constant, 1e6},
    {"half constant, mean 1e3", half_constant, 1e3},
    {"sorted, mean 0", sorted, 0},
    {"sorted, mean 1e3", sorted, 1e3},
    {"sorted down, mean 1e3", sorted_down, 1e3},
    {"denormal, 1e-40", scaled, 1e-40},
    {"tiny, 1e-30", scaled, 1e-30},
    {"huge, 1e30", scaled, 1e30},
    {"near overflow, one sign", near_overflow, 0.5},
    {"near overflow, both signs", near_overflow, -1},
    {"+-FLT_MAX by turns", extremes, 0},
};
const size_t distribution_count = sizeof distributions / sizeof distributions[0];

const distribution *find_distribution(const char *name) {
    for (size_t i = 0; i < distribution_count; i++)
        if (!strcmp(distributions[i].name, name))
            return &distributions[i];
    return NULL;
}
