/* SPDX-License-Identifier: MIT
 *
 * Presets: what each framework means by "momentum". */
#include "bnorm.h"

#include <math.h>

static bnorm_running running(float *mean, float *var, double rate, bnorm_variance variance) {
    const bnorm_running preset = {mean, var, rate, variance};
    return preset;
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
            weight = fma(scale, terms, weight);
            scale *= power;
        }
        terms = fma(power, terms, terms);
        power *= power;
    }
    return running(mean, var, 1 / weight, BNORM_VARIANCE_SAMPLE);
}
