/* SPDX-License-Identifier: MIT
 *
 * Many small batch norms in one call: all are checked by their own functions, then shared out by
 * their work, each run by its own function on the thread that takes it. */
#include "base.h"

#include "call.h"
#include "check.h"
#include "run.h"

/* What a job's own function would say, without running it. */
static bnorm_status check_job(const bnorm_job *job, const bnorm_exec *exec) {
    switch (job->op) {
    case BNORM_OP_APPLY:
        return bnorm_check_apply(job, exec);
    case BNORM_OP_MOMENTS:
    case BNORM_OP_FORWARD_TRAIN:
        return bnorm_check_forward(job, exec);
    case BNORM_OP_BACKWARD:
        return bnorm_check_backward(job, exec);
    }
    return BNORM_BAD_ENUM;
}

static void run_job(const bnorm_job *job, const bnorm_exec *exec) {
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

/* Of a call, beside its elements. */
#define JOB_WORK ((size_t)2048)

static size_t work_of(const bnorm_job *job) {
    const bnorm_act_kind any = BNORM_ACT_IDENTITY;
    const size_t per_element = job->op == BNORM_OP_APPLY     ? bnorm_map_work(2, any)
                               : job->op == BNORM_OP_MOMENTS ? bnorm_reduce_work(1, any)
                               : job->op == BNORM_OP_FORWARD_TRAIN
                                   ? bnorm_reduce_work(1, any) + bnorm_map_work(2, any)
                                   : bnorm_reduce_work(2, any) + bnorm_map_work(3, any);
    return JOB_WORK + job->shape->n * job->shape->c * job->shape->hw * per_element;
}

struct batch {
    const bnorm_job *jobs;
    size_t count;
    size_t work, parts; /* of all jobs together; tasks */
    bnorm_exec exec;    /* of one job: on the thread that took it */
};

/* The jobs whose first element falls into this part. */
static void run_part(void *arg, size_t i) {
    const struct batch *batch = arg;
    const size_t share = batch->work / batch->parts, last = i + 1 == batch->parts;
    size_t at = 0;
    for (size_t k = 0; k < batch->count; k++) {
        if (at >= i * share && (last || at < (i + 1) * share))
            run_job(&batch->jobs[k], &batch->exec);
        at += work_of(&batch->jobs[k]);
    }
}

bnorm_status bnorm_run_jobs(const bnorm_job *jobs, size_t count, size_t *failed,
                            const bnorm_exec *exec) {
    struct batch batch = {.jobs = jobs, .count = count, .parts = 1};
    bnorm_status status = bnorm_check_exec(exec);
    if (!status && count && !jobs)
        status = BNORM_NULL_POINTER;
    if (exec)
        batch.exec = *exec;
    batch.exec.parallel = NULL;
    for (size_t i = 0; !status && i < count; i++) {
        status = check_job(&jobs[i], &batch.exec);
        if (status && failed)
            *failed = i;
        else if (!status)
            batch.work += work_of(&jobs[i]);
    }
    if (status)
        return status;
    batch.parts = bnorm_min(bnorm_parts(exec, batch.work), count ? count : 1);
    if (exec && batch.parts > 1) {
        exec->parallel(exec->pool, run_part, &batch, batch.parts);
        return BNORM_OK;
    }
    for (size_t i = 0; i < count; i++)
        run_job(&jobs[i], &batch.exec);
    return BNORM_OK;
}
