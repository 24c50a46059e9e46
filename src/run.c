/* SPDX-License-Identifier: MIT */
#include "base.h"

#include "run.h"

/* ---------------------------------------------------------------------------------------------- */
/* Threads */

/* A task in the floating-point mode that exec asks for, on whatever thread it runs. */
struct flushed {
    void (*task)(void *arg, size_t i);
    void *arg;
};

static void run_flushed(void *arg, size_t i) {
    const struct flushed *flushed = arg;
    const bnorm_fp_mode mode = bnorm_flush_denormals();
    flushed->task(flushed->arg, i);
    bnorm_restore_mode(mode);
}

void bnorm_run(const bnorm_exec *exec, void (*task)(void *arg, size_t i), void *arg, size_t count) {
    struct flushed flushed = {task, arg};
    if (exec && exec->denormals == BNORM_DENORMALS_FLUSH) {
        task = run_flushed;
        arg = &flushed;
    }
    if (count > 1 && exec && exec->parallel) {
        exec->parallel(exec->pool, task, arg, count);
        return;
    }
    for (size_t i = 0; i < count; i++)
        task(arg, i);
}

/* Elements that a task should have to be worth sharing (64 KiB), those that it must have, and those
 * of a call (256 KiB). */
#define TASK_ELEMENTS  ((size_t)16384)
#define LEAST_ELEMENTS ((size_t)1024)
#define CALL_ELEMENTS  (4 * TASK_ELEMENTS)
/* More threads than this get no tasks of their own. */
#define MOST_THREADS ((size_t)1024)
/* Threads to cut for where the caller does not say. */
#define SOME_THREADS ((size_t)16)

size_t bnorm_parts(const bnorm_exec *exec, size_t elements) {
    if (!exec || !exec->parallel || exec->threads == 1 || elements < CALL_ELEMENTS)
        return 1;
    const size_t parts = elements / TASK_ELEMENTS, threads = bnorm_min(exec->threads, MOST_THREADS);
    if (!threads)
        return bnorm_min(parts, 256);
    const size_t rounds = parts / threads;
    return bnorm_min(threads * (rounds < 1 ? 1 : bnorm_min(rounds, 8)), elements / LEAST_ELEMENTS);
}

/* ---------------------------------------------------------------------------------------------- */
/* Elementwise work in parts of equal size */

/* A view, or its groups from `first_group` on. Positions are counted through all images, groups,
 * rows and lanes; a part may begin and end within a group, or within a row of the only one. */
struct cut {
    const bnorm_view *view;
    size_t first_group;
    size_t runs, len;          /* per image: groups, or rows of the only one; elements of each */
    size_t total, parts, step; /* positions; parts begin at multiples of step */
};

static struct cut cut_view(const bnorm_view *view, size_t first_group, size_t parts) {
    const int one = view->groups == 1;
    struct cut cut = {.view = view, .first_group = first_group, .parts = parts, .step = 64};
    cut.runs = one ? view->rows : view->groups - first_group;
    cut.len = one ? view->lanes : view->rows * view->lanes;
    cut.total = view->images * cut.runs * cut.len;
    /* Whole runs where they are short. */
    if (cut.len <= cut.total / parts / 16)
        cut.step = cut.len;
    return cut;
}

/* Where part i begins. */
static size_t cut_at(const struct cut *cut, size_t i) {
    if (i == cut->parts)
        return cut->total;
    const size_t at = cut->total / cut->parts * i + cut->total % cut->parts * i / cut->parts;
    return at - at % cut->step;
}

/* Elements [from, from + len) of `runs` runs of an image. */
static bnorm_part rectangle(const struct cut *cut, size_t image, size_t run, size_t runs,
                            size_t from, size_t len) {
    const bnorm_view *view = cut->view;
    bnorm_part part = {image, 1, 0, 1, 0, 1, from, len};
    if (view->groups == 1) {
        part.row = run;
        part.rows = runs;
        return part;
    }
    part.group = cut->first_group + run;
    part.groups = runs;
    if (!view->planes) {
        part.row = from / view->lanes;
        part.rows = len / view->lanes;
        part.lane = 0;
        part.lanes = view->lanes;
    }
    return part;
}

static void map_cut(const bnorm_pass *pass, const struct cut *cut, size_t i) {
    const size_t len = cut->len, image_size = cut->runs * len, end = cut_at(cut, i + 1);
    for (size_t at = cut_at(cut, i); at < end;) {
        const size_t within = at % image_size, run = within / len, from = within % len;
        size_t runs = 1, n = len;
        if (from || end - at < len)
            n = bnorm_min(len - from, end - at);
        else
            runs = bnorm_min((end - at) / len, cut->runs - run);
        const bnorm_part part = rectangle(cut, at / image_size, run, runs, from, n);
        pass->map(pass->self, &part, 0);
        at += runs * n;
    }
}

/* ---------------------------------------------------------------------------------------------- */
/* Passes */

/* Elements of a wave, which is reduced and then mapped while it is in cache (512 KiB, over all
 * tensors). */
#define WAVE_ELEMENTS ((size_t)131072)
/* Least elements of a block's slice. */
#define SLICE_ELEMENTS ((size_t)4096)

/* What is shared out. Where channels are counted by groups, whole waves of channels come first,
 * with all three phases; the channels from `first` on, else all, go through the phases one after
 * the other. */
struct job {
    const bnorm_pass *pass;
    size_t wave, waves; /* channels per wave */
    size_t first;
    size_t slice, slices; /* channels per slice of a block */
    size_t units, unit_parts;
    size_t finish_step;
    struct cut cut; /* of the map */
    size_t turn;    /* parts that are done last to first: those of one thread */
};

/* The last image, reduced last, is mapped first. */
static void run_wave(const bnorm_pass *pass, size_t channel, size_t channels) {
    const bnorm_view *view = pass->view;
    for (size_t b = 0; b < pass->blocks->count; b++)
        pass->reduce(pass->self, b, channel, channels);
    pass->finish(pass->self, channel, channels);
    for (size_t image = view->images; pass->map && image-- > 0;) {
        const bnorm_part part = bnorm_part_of(view, channel, channels, image, 0, view->positions);
        pass->map(pass->self, &part, 1);
    }
}

static void reduce_task(void *arg, size_t i) {
    const struct job *job = arg;
    const bnorm_pass *pass = job->pass;
    const size_t c = pass->view->c;
    if (i < job->waves) {
        const size_t channel = i * job->wave;
        run_wave(pass, channel, bnorm_min(job->wave, c - channel));
        return;
    }
    i -= job->waves;
    const size_t last = (i + 1) * job->units / job->unit_parts;
    for (size_t u = i * job->units / job->unit_parts; u < last; u++) {
        const size_t channel = job->first + u % job->slices * job->slice;
        pass->reduce(pass->self, u / job->slices, channel, bnorm_min(job->slice, c - channel));
    }
}

static void finish_task(void *arg, size_t i) {
    const struct job *job = arg;
    const bnorm_pass *pass = job->pass;
    const size_t channel = job->first + i * job->finish_step;
    pass->finish(pass->self, channel, bnorm_min(job->finish_step, pass->view->c - channel));
}

/* What was reduced last comes first: it is still in cache. Pools that give each thread a range of
 * tasks give it the same range of the tensor in every pass, so the order turns within a range. */
static void map_task(void *arg, size_t i) {
    const struct job *job = arg;
    const size_t within = i % job->turn, begin = i - within,
                 turn = bnorm_min(job->turn, job->cut.parts - begin);
    map_cut(job->pass, &job->cut, begin + turn - 1 - within);
}

/* All at once, without statistics. */
static void map_whole(void *arg, size_t i) {
    const struct job *job = arg;
    const bnorm_view *view = job->pass->map_view;
    const bnorm_part part = {0, view->images, 0, view->groups, 0, view->rows, 0, view->lanes};
    (void)i;
    if (job->pass->map_whole)
        job->pass->map_whole(job->pass->self);
    else
        job->pass->map(job->pass->self, &part, 0);
}

/* Waves stay in cache between the phases; with threads, as many as give each thread the same
 * number. threads 0 = not shared. */
static void cut_waves(struct job *job, size_t threads, int known) {
    const bnorm_view *view = job->pass->view;
    const size_t c = view->c, unit = bnorm_unit(view);
    const size_t per_channel = view->images * view->positions * job->pass->tensors;
    size_t wave = per_channel < WAVE_ELEMENTS ? WAVE_ELEMENTS / per_channel : 1;
    if (threads) {
        const size_t fair = c / (4 * threads), least = bnorm_ceil_div(TASK_ELEMENTS, per_channel);
        wave = bnorm_min(wave, fair > least ? fair : least);
    }
    job->wave = bnorm_min(bnorm_ceil_div(wave, unit) * unit, c);
    job->waves = bnorm_ceil_div(c, job->wave);
    if (threads && job->waves < threads)
        job->waves = 0;
    else if (threads && known && job->waves < 8 * threads)
        job->waves -= job->waves % threads;
    job->first = bnorm_min(job->waves * job->wave, c);
}

/* Blocks, or slices of them where there are few. */
static void cut_units(struct job *job, size_t threads) {
    const bnorm_view *view = job->pass->view;
    const bnorm_blocks *blocks = job->pass->blocks;
    const size_t c = view->c - job->first, block = bnorm_min(blocks->size, view->positions);
    const int by_lanes = !bnorm_counts_groups(view);
    size_t least = 1; /* channels per slice */
    if (!threads || (by_lanes && blocks->chains > 1))
        least = c;
    else if (by_lanes)
        least = 16;
    if (least < SLICE_ELEMENTS / block)
        least = SLICE_ELEMENTS / block;
    const size_t wanted = bnorm_ceil_div(8 * threads, blocks->count);
    job->slice = wanted > 1 ? bnorm_ceil_div(c, wanted) : c;
    if (job->slice < least)
        job->slice = least;
    const size_t whole = by_lanes ? 16 : bnorm_unit(view);
    job->slice = bnorm_min(bnorm_ceil_div(job->slice, whole) * whole, c);
    job->slices = bnorm_ceil_div(c, job->slice);
    job->units = blocks->count * job->slices;
    job->unit_parts = threads ? bnorm_min(job->units, 16 * threads) : 1;
}

/* Channels from job->first on: few entries per channel are not worth sharing. */
static void run_finish(struct job *job, size_t threads, const bnorm_exec *exec) {
    const size_t rest = job->pass->view->c - job->first;
    job->finish_step = rest;
    if (threads && job->pass->blocks->count * rest >= SLICE_ELEMENTS / 4)
        job->finish_step = (bnorm_ceil_div(rest, threads) + 7) / 8 * 8;
    bnorm_run(exec, finish_task, job, bnorm_ceil_div(rest, job->finish_step));
}

static void run_map(struct job *job, size_t threads, const bnorm_exec *exec) {
    const bnorm_view *view = job->pass->view, *map_view = job->pass->map_view;
    const size_t group = job->first / bnorm_unit(view);
    const size_t elements =
        map_view->images * map_view->rows * map_view->lanes * (map_view->groups - group);
    size_t parts = threads ? bnorm_parts(exec, elements) : elements / WAVE_ELEMENTS;
    if (parts < threads) /* what is left of a large tensor */
        parts = bnorm_min(threads, elements / LEAST_ELEMENTS);
    if (parts <= 1 && job->first == 0) {
        bnorm_run(exec, map_whole, job, 1);
        return;
    }
    parts = parts ? parts : 1;
    job->cut = cut_view(map_view, group, parts);
    job->turn = parts;
    if (threads) /* not known: each part on its own */
        job->turn = exec->threads && job->pass->reduce ? bnorm_ceil_div(parts, threads) : 1;
    bnorm_run(exec, map_task, job, parts);
}

void bnorm_run_pass(const bnorm_pass *pass, const bnorm_exec *exec) {
    const bnorm_view *view = pass->map_view;
    const size_t total = view->images * view->groups * view->rows * view->lanes;
    const int shared = bnorm_parts(exec, total * pass->tensors) > 1;
    const size_t known = shared ? bnorm_min(exec->threads, MOST_THREADS) : 0,
                 threads = shared && !known ? SOME_THREADS : known;
    struct job job;
    job.pass = pass;
    if (!shared && !pass->reduce) {
        if (pass->map)
            bnorm_run(exec, map_whole, &job, 1);
        return;
    }
    job.first = job.waves = job.unit_parts = 0;
    if (pass->reduce) {
        if (bnorm_counts_groups(pass->view))
            cut_waves(&job, threads, known > 0);
        if (job.first < pass->view->c)
            cut_units(&job, threads);
        bnorm_run(exec, reduce_task, &job, job.waves + job.unit_parts);
        if (job.first == pass->view->c)
            return;
        run_finish(&job, threads, exec);
    }
    if (pass->map)
        run_map(&job, threads, exec);
}
