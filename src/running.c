/* SPDX-License-Identifier: MIT
 *
 * Presets: what each framework means by "momentum". The update of running statistics alone. */
#include "base.h"

#include "running.h"

#include "check.h"
#include "fma.h"

/* Channels whose statistics lie on the stack in double. */
#define CHANNELS ((size_t)32)

static bnorm_running running(float *mean, float *var, double rate, bnorm_variance variance) {
    return (bnorm_running){.mean = mean, .var = var, .rate = rate, .variance = variance};
}

bnorm_running bnorm_running_keras(float *mean, float *var, double momentum) {
    return running(mean, var, 1 - momentum, BNORM_VARIANCE_POPULATION);
}

bnorm_running bnorm_running_tensorflow(float *mean, float *var, double momentum) {
    return running(mean, var, 1 - momentum, BNORM_VARIANCE_SAMPLE);
}

bnorm_running bnorm_running_pytorch(float *mean, float *var, double momentum) {
    return running(mean, var, momentum, BNORM_VARIANCE_SAMPLE);
}

bnorm_running bnorm_running_pytorch_cumulative(float *mean, float *var, size_t step) {
    return running(mean, var, step > 1 ? 1 / (double)step : 1, BNORM_VARIANCE_SAMPLE);
}

bnorm_running bnorm_running_onnx(float *mean, float *var, double momentum) {
    return running(mean, var, 1 - momentum, BNORM_VARIANCE_POPULATION);
}

/* Caffe keeps S = f*S + statistic and W = f*W + 1 and reads S/W. For the quotient that is a running
 * average whose rate is 1/W = 1/(1 + f + ... + f^(step - 1)). */
bnorm_running bnorm_running_caffe(float *mean, float *var, double fraction, size_t step) {
    double weight = 0, terms = 1, power = fraction; /* sum and product over 2^k terms, doubling k */
    double scale = 1;                               /* f^(terms already in weight) */
    for (size_t left = step > 1 ? step : 1; left > 0; left /= 2) {
        if (left % 2) {
            weight = bnorm_fma(scale, terms, weight);
            scale *= power;
        }
        terms = bnorm_fma(power, terms, terms);
        power *= power;
    }
    return running(mean, var, 1 / weight, BNORM_VARIANCE_SAMPLE);
}

static void keep(const float *running, float *elsewhere, size_t c) {
    if (elsewhere)
        memmove(elsewhere, running, c * sizeof *running);
}

void bnorm_keep_running(const bnorm_running *running, size_t c) {
    keep(running->mean, running->new_mean, c);
    keep(running->var, running->new_var, c);
}

double bnorm_running_divisor(const bnorm_running *running, double n) {
    if (running->variance == BNORM_VARIANCE_POPULATION)
        return n;
    return n > 2 ? n - 1 : 1; /* a sum of weights may be no whole number */
}

static void uses_array(bnorm_uses *uses, const float *running, const float *elsewhere, size_t c) {
    bnorm_writes_floats(uses, elsewhere ? elsewhere : running, c);
    if (elsewhere && elsewhere != running)
        bnorm_reads_floats(uses, running, c);
}

void bnorm_uses_running(bnorm_uses *uses, const bnorm_running *running, size_t c) {
    uses_array(uses, running->mean, running->new_mean, c);
    uses_array(uses, running->var, running->new_var, c);
}

bnorm_status bnorm_running_update(size_t c, const float *mean, const float *var, double n,
                                  const bnorm_running *running) {
    if (c == 0 || c > (size_t)PTRDIFF_MAX / sizeof(float))
        return BNORM_BAD_SHAPE;
    if (!running)
        return BNORM_NULL_POINTER;
    const bnorm_status status = bnorm_check_running(running);
    if (status)
        return status;
    if ((running->mean && !mean) || (running->var && !var))
        return BNORM_NULL_POINTER;
    if (!__builtin_isfinite(n) || n < 1)
        return BNORM_BAD_PARAMETER;
    float *const new_mean = bnorm_updated(running->mean, running->new_mean);
    float *const new_var = bnorm_updated(running->var, running->new_var);
    bnorm_uses uses;
    bnorm_begin_uses(&uses, NULL, NULL);
    bnorm_uses_running(&uses, running, c);
    bnorm_reads_floats(&uses, mean, c);
    bnorm_reads_floats(&uses, var, c);
    if (bnorm_check_uses(&uses))
        return BNORM_BAD_OVERLAP;
    for (size_t first = 0; first < c; first += CHANNELS) {
        double means[CHANNELS], vars[CHANNELS];
        const size_t count = bnorm_min(CHANNELS, c - first);
        for (size_t i = 0; i < count; i++) {
            means[i] = new_mean ? (double)mean[first + i] : 0;
            vars[i] = new_var ? (double)var[first + i] : 0;
        }
        const bnorm_coefficient_args args = {
            .mean = means,
            .m2 = vars,
            .n = 1,
            .running_mean = new_mean ? running->mean + first : NULL,
            .running_var = new_var ? running->var + first : NULL,
            .new_mean = new_mean ? new_mean + first : NULL,
            .new_var = new_var ? new_var + first : NULL,
            .rate = running->rate,
            .divisor = bnorm_running_divisor(running, n) / n,
        };
        bnorm_training_of(bnorm_isa_best())->coefficients(&args, 0, count);
    }
    return BNORM_OK;
}
