/* SPDX-License-Identifier: MIT */
#include "base.h"

#include "check.h"

#include "run.h"

#include <float.h>

bnorm_status bnorm_check_exec(const bnorm_exec *exec) {
    const int good = !exec || ((unsigned)exec->denormals <= BNORM_DENORMALS_FLUSH &&
                               (unsigned)exec->memory <= BNORM_MEMORY_STREAM);
    return good ? BNORM_OK : BNORM_BAD_ENUM;
}

bnorm_status bnorm_check_act(const bnorm_act *act, const bnorm_exec *exec) {
    const bnorm_act_kind kind = act->kind;
    if ((unsigned)kind > BNORM_ACT_MISH)
        return BNORM_BAD_ENUM;
    if (kind == BNORM_ACT_CLAMP && !__builtin_isless(act->a, act->b))
        return BNORM_BAD_ACTIVATION;
    if ((kind == BNORM_ACT_LEAKY_RELU || kind == BNORM_ACT_ELU) && !__builtin_isfinite(act->a))
        return BNORM_BAD_ACTIVATION;
    if (kind > BNORM_ACT_HARD_SWISH && !bnorm_isa_has_sleef(bnorm_exec_isa(exec)))
        return BNORM_UNSUPPORTED;
    return BNORM_OK;
}

bnorm_status bnorm_check_mask(const bnorm_act *act, unsigned char **mask) {
    if (act->kind == BNORM_ACT_IDENTITY)
        *mask = NULL;
    return *mask && act->kind > BNORM_ACT_LEAKY_RELU ? BNORM_UNSUPPORTED : BNORM_OK;
}

bnorm_status bnorm_check_eps(double eps) {
    return __builtin_isfinite(eps) && eps >= 0 ? BNORM_OK : BNORM_BAD_EPSILON;
}

bnorm_status bnorm_check_variance(size_t c, const float *var, double eps) {
    const bnorm_status status = var ? bnorm_check_eps(eps) : BNORM_NULL_POINTER;
    for (size_t i = 0; !status && i < c; i++)
        if ((double)var[i] + eps < 0)
            return BNORM_BAD_VARIANCE;
    return status;
}

bnorm_status bnorm_check_running(const bnorm_running *running) {
    if ((unsigned)running->variance > BNORM_VARIANCE_SAMPLE)
        return BNORM_BAD_ENUM;
    if ((!running->mean && running->new_mean) || (!running->var && running->new_var))
        return BNORM_NULL_POINTER;
    const int tracked = running->mean || running->var;
    return tracked && !__builtin_isfinite(running->rate) ? BNORM_BAD_RATE : BNORM_OK;
}

bnorm_status bnorm_check_renorm(const bnorm_renorm *renorm, const bnorm_running *running) {
    if (!running->mean || !running->var)
        return BNORM_NULL_POINTER;
    return __builtin_isgreaterequal(renorm->r_min, 0) &&
                   __builtin_islessequal(renorm->r_min, renorm->r_max) &&
                   __builtin_isgreaterequal(renorm->d_max, 0)
               ? BNORM_OK
               : BNORM_BAD_RENORM;
}

bnorm_status bnorm_check_weights(const bnorm_weights *weights) {
    return weights->values ? bnorm_check_eps(weights->epsilon) : BNORM_OK;
}

bnorm_status bnorm_check_weight_values(const bnorm_shape *shape, const bnorm_weights *weights) {
    const size_t n = shape->n * shape->hw;
    int good = 1;
    for (size_t i = 0; i < n; i++)
        good &= weights->values[i] >= 0 && weights->values[i] <= FLT_MAX;
    return good ? BNORM_OK : BNORM_BAD_WEIGHTS;
}

bnorm_status bnorm_check_train(const bnorm_train *train, const bnorm_exec *exec) {
    const bnorm_running *running = &train->running;
    bnorm_status status = bnorm_check_act(&train->act, exec);
    if (!status)
        status = bnorm_check_eps(train->eps);
    if (!status)
        status = bnorm_check_running(running);
    if (!status && train->renorm)
        status = bnorm_check_renorm(train->renorm, running);
    return status ? status : bnorm_check_weights(&train->weights);
}
