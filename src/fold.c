/* SPDX-License-Identifier: MIT
 *
 * Inference parameters from statistics, alone or folded into the layer before. */
#include "base.h"

#include "channel.h"
#include "check.h"
#include "uses.h"

#include <math.h>

static double fold_scale(const float *gamma, const float *var, double eps, size_t i) {
    return bnorm_fold_scale(bnorm_parameter(gamma, i, 1), var[i], eps);
}

static int is_count(size_t c) {
    return c > 0 && c <= (size_t)PTRDIFF_MAX / sizeof(float);
}

bnorm_status bnorm_check_statistics(size_t c, const float *mean, const float *var, double eps,
                                    size_t *channel) {
    if (!is_count(c))
        return BNORM_BAD_SHAPE;
    if (!var)
        return BNORM_NULL_POINTER;
    const bnorm_status status = bnorm_check_eps(eps);
    for (size_t i = 0; !status && i < c; i++) {
        if ((!mean || __builtin_isfinite(mean[i])) && __builtin_isfinite(var[i]) &&
            (double)var[i] + eps >= 0)
            continue;
        if (channel)
            *channel = i;
        return BNORM_BAD_VARIANCE;
    }
    return status;
}

static void reads_parameters(bnorm_uses *uses, const float *const *arrays, size_t count, size_t c) {
    for (size_t i = 0; i < count; i++)
        bnorm_reads(uses, arrays[i], c * sizeof(float), BNORM_KIND_PARAMETER);
}

bnorm_status bnorm_fold(size_t c, const float *gamma, const float *beta, const float *mean,
                        const float *var, double eps, float *scale, float *shift) {
    const float *const inputs[] = {gamma, beta, mean, var};
    bnorm_uses uses;
    if (!is_count(c))
        return BNORM_BAD_SHAPE;
    if (!scale || (shift && !mean))
        return BNORM_NULL_POINTER;
    bnorm_begin_uses(&uses, NULL, NULL);
    uses.status = bnorm_check_variance(c, var, eps);
    bnorm_writes(&uses, scale, c * sizeof *scale, BNORM_KIND_PARAMETER);
    bnorm_writes(&uses, shift, c * sizeof *shift, BNORM_KIND_PARAMETER);
    reads_parameters(&uses, inputs, 4, c);
    const bnorm_status status = bnorm_check_uses(&uses);
    if (status)
        return status;

    for (size_t i = 0; i < c; i++) {
        /* With the rounded scale, x = mean gives beta as exactly as a float can. The product of two
         * floats is exact in double. scale may be mean, which is read first. */
        const float s = bnorm_round(fold_scale(gamma, var, eps, i));
        const double b = shift ? bnorm_parameter(beta, i, 0) - (double)mean[i] * (double)s : 0;
        scale[i] = s;
        if (shift)
            shift[i] = bnorm_round(b);
    }
    return BNORM_OK;
}

/* Weights seen as [outer][out_channel][inner] for each group: the channel of an element follows
 * from its index. */
struct weights_view {
    size_t outer, channels, inner; /* outer*channels*inner elements */
    size_t group_outer;            /* outer indices per group; 0 = all channels in one */
};

static struct weights_view view_of(const bnorm_conv *conv, size_t groups) {
    const size_t o = conv->out_channels, i = conv->in_channels, k = conv->kernel;
    switch (conv->layout) {
    case BNORM_CONV_OIHW:
    case BNORM_CONV_OHWI:
        return (struct weights_view){1, o, i / groups * k, 0};
    case BNORM_CONV_HWIO:
        return (struct weights_view){k * (i / groups), o, 1, 0};
    case BNORM_CONV_IOHW:
        /* Input channels are cut into groups; each has its own o/groups output channels. */
        return (struct weights_view){i, o / groups, k, i / groups};
    case BNORM_CONV_HWOI:
        break;
    }
    return (struct weights_view){k, o, i, 0};
}

/* in_channels*out_channels*kernel elements must be addressable; groups only makes it fewer. */
static int conv_overflows(const bnorm_conv *conv) {
    const size_t most = (size_t)PTRDIFF_MAX / sizeof(float);
    return conv->in_channels > most / conv->out_channels ||
           conv->kernel > most / (conv->in_channels * conv->out_channels);
}

bnorm_status bnorm_fold_conv(const bnorm_conv *conv, const float *gamma, const float *beta,
                             const float *mean, const float *var, double eps, const float *weights,
                             const float *bias, float *out_weights, float *out_bias) {
    if (!conv || !weights || !out_weights || !out_bias)
        return BNORM_NULL_POINTER;
    if ((unsigned)conv->layout > BNORM_CONV_HWOI)
        return BNORM_BAD_ENUM;
    const size_t groups = conv->groups ? conv->groups : 1, c = conv->out_channels;
    if (c == 0 || conv->in_channels == 0 || conv->kernel == 0 || c % groups ||
        conv->in_channels % groups || conv_overflows(conv))
        return BNORM_BAD_SHAPE;
    if (conv->layout == BNORM_CONV_HWOI && groups != 1)
        return BNORM_UNSUPPORTED;
    if (!mean)
        return BNORM_NULL_POINTER;
    const struct weights_view view = view_of(conv, groups);
    const float *const inputs[] = {gamma, beta, mean, var, bias};
    bnorm_uses uses;
    bnorm_begin_uses(&uses, NULL, NULL);
    uses.status = bnorm_check_variance(c, var, eps);
    const size_t bytes = view.outer * view.channels * view.inner * sizeof(float);
    bnorm_writes(&uses, out_weights, bytes, BNORM_KIND_WEIGHTS);
    bnorm_writes(&uses, out_bias, c * sizeof *out_bias, BNORM_KIND_PARAMETER);
    bnorm_reads(&uses, weights, bytes, BNORM_KIND_WEIGHTS);
    reads_parameters(&uses, inputs, 5, c);
    const bnorm_status status = bnorm_check_uses(&uses);
    if (status)
        return status;

    for (size_t outer = 0; outer < view.outer; outer++) {
        const size_t first = view.group_outer ? outer / view.group_outer * view.channels : 0;
        for (size_t o = 0; o < view.channels; o++) {
            const double s = fold_scale(gamma, var, eps, first + o);
            const size_t at = (outer * view.channels + o) * view.inner;
            for (size_t i = 0; i < view.inner; i++)
                out_weights[at + i] = bnorm_round((double)weights[at + i] * s);
        }
    }
    for (size_t o = 0; o < c; o++) {
        const double s = fold_scale(gamma, var, eps, o);
        const double b = bnorm_parameter(bias, o, 0) - (double)mean[o];
        out_bias[o] = bnorm_round(bnorm_fma(b, s, bnorm_parameter(beta, o, 0)));
    }
    return BNORM_OK;
}
