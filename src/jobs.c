/* SPDX-License-Identifier: MIT
 *
 * Many small batch norms in one call. */
#include "backward.h"
#include "train.h"

/* What a job's own function would say, without running it. */
static bnorm_status check_job(const bnorm_job *job, const bnorm_exec *exec) {
    union {
        bnorm_elementwise apply;
        bnorm_statistics statistics;
        bnorm_gradients gradients;
    } plan;
    switch (job->op) {
    case BNORM_OP_APPLY:
        return bnorm_plan_apply(job->shape, job->x, job->out, job->affine, exec, &plan.apply);
    case BNORM_OP_MOMENTS:
        return bnorm_plan_moments(job->shape, job->x, job->mean, job->var, job->ws, job->ws_size,
                                  exec, &plan.statistics);
    case BNORM_OP_FORWARD_TRAIN:
        return bnorm_plan_train(job->shape, job->x, job->out, job->train, job->ws, job->ws_size,
                                exec, &plan.statistics);
    case BNORM_OP_BACKWARD:
        return bnorm_plan_backward(job->shape, job->x, job->dy, job->out, job->grad, job->ws,
                                   job->ws_size, exec, &plan.gradients);
    }
    return BNORM_BAD_ENUM;
}

struct batch {
    const bnorm_job *jobs;
    bnorm_exec exec; /* of one job: on the thread that took it */
};

static void run_job(void *arg, size_t i) {
    const struct batch *batch = arg;
    const bnorm_job *job = &batch->jobs[i];
    const bnorm_exec *exec = &batch->exec;
    switch (job->op) {
    case BNORM_OP_APPLY:
        bnorm_apply(job->shape, job->x, job->out, job->affine, exec);
        break;
    case BNORM_OP_MOMENTS:
        bnorm_moments(job->shape, job->x, job->mean, job->var, job->ws, job->ws_size, exec);
        break;
    case BNORM_OP_FORWARD_TRAIN:
        bnorm_forward_train(job->shape, job->x, job->out, job->train, job->ws, job->ws_size, exec);
        break;
    case BNORM_OP_BACKWARD:
        bnorm_backward(job->shape, job->x, job->dy, job->out, job->grad, job->ws, job->ws_size,
                       exec);
        break;
    }
}

bnorm_status bnorm_run_jobs(const bnorm_job *jobs, size_t count, size_t *failed,
                            const bnorm_exec *exec) {
    struct batch batch = {jobs, {0}};
    bnorm_status status = bnorm_check_exec(exec);
    if (!status && count && !jobs)
        status = BNORM_NULL_POINTER;
    if (failed)
        *failed = 0;
    if (exec)
        batch.exec = *exec;
    batch.exec.parallel = NULL;
    for (size_t i = 0; !status && i < count; i++) {
        status = check_job(&jobs[i], &batch.exec);
        if (status && failed)
            *failed = i;
    }
    if (status)
        return status;
    if (count > 1 && exec && exec->parallel && exec->threads != 1) {
        exec->parallel(exec->pool, run_job, &batch, count);
        return BNORM_OK;
    }
    for (size_t i = 0; i < count; i++)
        run_job(&batch, i);
    return BNORM_OK;
}
