/* SPDX-License-Identifier: MIT
 *
 * Running statistics alone: bnorm_running_update, and averages over many steps. */
#include "variants.h"

#include <math.h>
#include <string.h>

/* Updated in place. */
#define RUNNING(mean_array, var_array, share, kind_of_variance)                                    \
    (bnorm_running) {                                                                              \
        .mean = (mean_array), .var = (var_array), .rate = (share), .variance = (kind_of_variance)  \
    }

static void test_running_update(struct test *t) {
    static const double rates[] = {0, .1, 1, -1.2, 1e-3, 2}, counts[] = {1, 1.5, 2, 7, 100352};
    for (size_t c = 1; c < 70; c++)
        for (int kind = 0; kind < 2; kind++) {
            const double rate = rates[c % COUNT_OF(rates)], n = counts[c % COUNT_OF(counts)];
            float *mean = uniform_floats(t, 1, c, -3, 3), *var = uniform_floats(t, 1, c, 0, 3),
                  *old_mean = uniform_floats(t, 1, c, -2, 2),
                  *old_var = uniform_floats(t, 1, c, 0, 2);
            const size_t bad = rng_below(&t->rng, c);
            if (c > 3) { /* a NaN stays in its channel */
                mean[bad] = bits_float(0x7fa00001u);
                var[bad] = bits_float(0xffc00001u);
            }
            if (rate == 1 && c > 5)
                old_mean[(bad + 1) % c] = old_var[(bad + 1) % c] = NAN;
            test_context(t, "c=%zu n=%g rate=%g%s", c, n, rate, kind ? " sample" : "");
            struct fixture f;
            fixture_start(&f, t, (enum side)(c / 2 % 2));
            const bnorm_running running = RUNNING(
                fixture_output(&f, "running mean", old_mean, c),
                fixture_output(&f, "running variance", old_var, c), rate, (bnorm_variance)kind);
            check_status(t, "bnorm_running_update",
                         bnorm_running_update(c, fixture_input(&f, "mean", mean, c),
                                              fixture_input(&f, "var", var, c), n, &running),
                         BNORM_OK);
            fixture_check(&f);
            const wide factor = kind ? (wide)n / fmaxl((wide)n - 1, 1) : 1;
            for (size_t i = 0; i < c; i++) {
                const float nan_value = bits_float(NAN_BITS);
                const float *const batches[] = {mean, var}, *const olds[] = {old_mean, old_var};
                const float *const got[] = {running.mean, running.var};
                for (int k = 0; k < 2; k++) {
                    const wide old = rate == 1 ? 0 : (wide)olds[k][i];
                    const wide batch = (wide)batches[k][i] * (k ? factor : 1);
                    const wide want = old + (wide)rate * (batch - old);
                    if (rate == 0)
                        check_bits(t, "at rate 0", &got[k][i], &olds[k][i], 1);
                    else if (c > 3 && i == bad)
                        check_bits(t, "a NaN", &got[k][i], &nan_value, 1);
                    else
                        check_wide(t, k ? "running variance" : "running mean", i, got[k][i], want,
                                   0x1p-24L * fabsl(want) + 0x1p-149L +
                                       0x1p-51L * (fabsl(old) + fabsl((wide)rate) *
                                                                    (fabsl(old) + fabsl(batch))));
                    if (rate == 1 && !(c > 3 && i == bad) && (!k || !kind))
                        check_bits(t, "at rate 1", &got[k][i], &batches[k][i], 1);
                }
            }
            test_release(t);
        }
}

/* The same as the update in bnorm_forward_train, but for the rounding of mean and var to floats. */
static void test_update_alone(struct test *t) {
    const bnorm_exec exec = {.isa = t->isa};
    for (int kind = 0; kind < 2; kind++) {
        const bnorm_shape shape = {.n = 5, .c = 37, .hw = 9};
        const size_t ws_size = bnorm_workspace(BNORM_OP_FORWARD_TRAIN, &shape), c = shape.c;
        void *ws = test_alloc(t, ws_size);
        float *x = uniform_floats(t, 1, shape_count(&shape), -2, 2), *mean = test_floats(t, c),
              *var = test_floats(t, c), *a = test_floats(t, 2 * c), *b = test_floats(t, 2 * c);
        const bnorm_running both[] = {RUNNING(a, a + c, .25, (bnorm_variance)kind),
                                      RUNNING(b, b + c, .25, (bnorm_variance)kind)};
        const bnorm_train train = {.eps = 1e-3, .running = both[0]};
        const bnorm_in in = {x, 0, 0};
        check_status(t, "bnorm_moments", bnorm_moments(&shape, in, mean, var, ws, ws_size, &exec),
                     BNORM_OK);
        check_status(t, "bnorm_running_update", bnorm_running_update(c, mean, var, 45, &both[1]),
                     BNORM_OK);
        check_status(
            t, "bnorm_forward_train",
            bnorm_forward_train(&shape, in, (bnorm_out){x, 0, 0}, &train, ws, ws_size, &exec),
            BNORM_OK);
        for (size_t i = 0; i < 2 * c; i++)
            check_near(t, "running statistic", i, b[i], (double)a[i],
                       3 * 0x1p-24 * fabs((double)a[i]));
    }
}

/* Steps 1 to k: the plain average of all batches, whatever was there before. */
static void test_cumulative(struct test *t) {
    const bnorm_exec exec = {.isa = t->isa};
    const bnorm_shape shape = {.layout = BNORM_NCHW, .n = 4, .c = 19, .hw = 6};
    const size_t c = shape.c, count = shape_count(&shape), steps = 20;
    const size_t ws_size = bnorm_workspace(BNORM_OP_FORWARD_TRAIN, &shape);
    for (int alone = 0; alone < 2; alone++) {
        void *ws = test_alloc(t, ws_size);
        float *y = test_floats(t, count), *running = uniform_floats(t, 1, 2 * c, 50, 60);
        wide *sums = test_alloc(t, 2 * c * sizeof(wide));
        wide *bounds = test_alloc(t, 2 * c * sizeof(wide));
        wide *largest = test_alloc(t, 2 * c * sizeof(wide));
        for (size_t step = 1; step <= steps; step++) {
            const bnorm_running now = bnorm_running_pytorch_cumulative(running, running + c, step);
            struct data d;
            const struct call call = {.shape = shape, .eps = 1e-5};
            data_new(t, &d, &shape);
            const struct wide_data w = wide_data(t, &call, &d);
            const struct wide_stats s = wide_stats(t, &w);
            test_context(t, "step %zu%s", step, alone ? ", bnorm_running_update" : "");
            if (alone) {
                float *mean = test_floats(t, c), *var = test_floats(t, c);
                for (size_t i = 0; i < c; i++) {
                    mean[i] = (float)s.mean[i];
                    var[i] = (float)s.var[i];
                }
                check_status(t, "bnorm_running_update",
                             bnorm_running_update(c, mean, var, 24, &now), BNORM_OK);
            } else {
                const bnorm_train train = {.eps = 1e-5, .running = now};
                check_status(t, "bnorm_forward_train",
                             bnorm_forward_train(&shape, (bnorm_in){d.x, 0, 0},
                                                 (bnorm_out){y, 0, 0}, &train, ws, ws_size, &exec),
                             BNORM_OK);
            }
            for (size_t i = 0; i < 2 * c; i++) {
                const wide factor = i < c ? 1 : 24.0L / 23;
                const wide batch = i < c ? s.mean[i] : factor * s.var[i - c];
                const wide bound = i < c ? s.mean_bound[i] : factor * s.var_bound[i - c];
                sums[i] += batch;
                largest[i] = fmaxl(largest[i], fabsl(batch));
                /* A batch's own error and rounding count once among `step`, the update's always. */
                bounds[i] = bounds[i] * (wide)(step - 1) / (wide)step +
                            (bound + 0x1p-24L * fabsl(batch)) / (wide)step +
                            0x1.01p-24L * largest[i];
                check_wide(t, i < c ? "running mean" : "running variance", i % c, running[i],
                           sums[i] / (wide)step, bounds[i]);
            }
        }
        test_release(t);
    }
}

static void test_update_errors(struct test *t) {
    struct {
        float mean[4], var[4], running_mean[4], running_var[4], other[4];
    } m = {{1, 2, 3, 4}, {1, 2, 3, 4}, {5, 6, 7, 8}, {5, 6, 7, 8}, {0}}, before = m;
    const bnorm_running good = RUNNING(m.running_mean, m.running_var, .1, BNORM_VARIANCE_SAMPLE);
    const struct {
        const char *what;
        bnorm_status want;
        size_t c;
        const float *mean, *var;
        double n;
        int no_running;
        bnorm_running running;
    } all[] = {
        {"c = 0", BNORM_BAD_SHAPE, 0, m.mean, m.var, 9, 0, good},
        {"c overflows", BNORM_BAD_SHAPE, SIZE_MAX / 2, m.mean, m.var, 9, 0, good},
        {"mean NULL", BNORM_NULL_POINTER, 4, NULL, m.var, 9, 0, good},
        {"var NULL", BNORM_NULL_POINTER, 4, m.mean, NULL, 9, 0, good},
        {"running NULL", BNORM_NULL_POINTER, 4, m.mean, m.var, 9, 1, good},
        {"running mean NULL, but where it goes",
         BNORM_NULL_POINTER,
         4,
         m.mean,
         m.var,
         9,
         0,
         {.var = m.running_var, .new_mean = m.running_mean}},
        {"running variance NULL, but where it goes",
         BNORM_NULL_POINTER,
         4,
         m.mean,
         m.var,
         9,
         0,
         {.mean = m.running_mean, .new_var = m.running_var}},
        {"the new mean is the running variance",
         BNORM_BAD_OVERLAP,
         4,
         m.mean,
         m.var,
         9,
         0,
         {.mean = m.running_mean, .var = m.running_var, .new_mean = m.running_var}},
        {"the new variance meets the running mean",
         BNORM_BAD_OVERLAP,
         4,
         m.mean,
         m.var,
         9,
         0,
         {.mean = m.running_mean,
          .var = m.running_var,
          .new_mean = m.other,
          .new_var = m.running_mean + 3}},
        {"the new mean meets mean",
         BNORM_BAD_OVERLAP,
         4,
         m.mean,
         m.var,
         9,
         0,
         {.mean = m.running_mean, .var = m.running_var, .new_mean = m.mean}},
        {"n = 0", BNORM_BAD_PARAMETER, 4, m.mean, m.var, 0, 0, good},
        {"n = 0.99", BNORM_BAD_PARAMETER, 4, m.mean, m.var, .99, 0, good},
        {"n = -3", BNORM_BAD_PARAMETER, 4, m.mean, m.var, -3, 0, good},
        {"n NaN", BNORM_BAD_PARAMETER, 4, m.mean, m.var, NAN, 0, good},
        {"n infinite", BNORM_BAD_PARAMETER, 4, m.mean, m.var, INFINITY, 0, good},
        {"n = 0, population", BNORM_BAD_PARAMETER, 4, m.mean, m.var, 0, 0,
         RUNNING(m.running_mean, m.running_var, .1, BNORM_VARIANCE_POPULATION)},
        {"rate NaN", BNORM_BAD_RATE, 4, m.mean, m.var, 9, 0,
         RUNNING(m.running_mean, m.running_var, NAN, BNORM_VARIANCE_SAMPLE)},
        {"rate infinite", BNORM_BAD_RATE, 4, m.mean, m.var, 9, 0,
         RUNNING(m.running_mean, m.running_var, INFINITY, BNORM_VARIANCE_SAMPLE)},
        {"no such variance", BNORM_BAD_ENUM, 4, m.mean, m.var, 9, 0,
         RUNNING(m.running_mean, m.running_var, .1, (bnorm_variance)2)},
        {"running mean is mean", BNORM_BAD_OVERLAP, 4, m.mean, m.var, 9, 0,
         RUNNING(m.mean, m.running_var, .1, BNORM_VARIANCE_SAMPLE)},
        {"running variance meets var", BNORM_BAD_OVERLAP, 4, m.mean, m.running_mean + 2, 9, 0,
         good},
        {"running mean is the variance", BNORM_BAD_OVERLAP, 4, m.mean, m.var, 9, 0,
         RUNNING(m.running_mean, m.running_mean, .1, BNORM_VARIANCE_SAMPLE)},
        {"not tracked", BNORM_OK, 4, m.mean, m.var, 9, 0,
         RUNNING(NULL, NULL, NAN, BNORM_VARIANCE_SAMPLE)},
    };
    for (size_t i = 0; i < COUNT_OF(all); i++) {
        test_context(t, "%s", all[i].what);
        check_status(t, "bnorm_running_update",
                     bnorm_running_update(all[i].c, all[i].mean, all[i].var, all[i].n,
                                          all[i].no_running ? NULL : &all[i].running),
                     all[i].want);
        if (memcmp(&m, &before, sizeof m) != 0)
            test_fail(t, "memory was written");
    }
}

void add_running(struct suite *s) {
    suite_add(s, NULL, test_running_update, NULL, "running/update");
    suite_add(s, NULL, test_update_errors, NULL, "running/update-errors");
    suite_add_per_isa(s, test_update_alone, NULL, "running/%s/alone");
    suite_add_per_isa(s, test_cumulative, NULL, "running/%s/cumulative");
}
