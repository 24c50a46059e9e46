/* SPDX-License-Identifier: MIT
 *
 * The course of a call: its work is estimated. Too little to share goes through the phases at once,
 * on this thread. Else groups of channels that stay in a thread's cache ("waves") go through all
 * phases in one task each, while every thread gets as many of them. The other channels are reduced
 * in units, a block or some channels of one; finished; and mapped in parts of equal size: a round of
 * tasks each, but for a finish that is too short for that. */
#include "base.h"

#include "../dispatch/cpu.h"
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

/* Work is counted in floats of the tensors that are read or written. A task that is as good as any
 * other takes 2 us or more, and one that is too small half of one. */
#define TASK_WORK  ((size_t)32768)
#define LEAST_WORK ((size_t)8192)
/* Tasks per thread, of which those that are ahead take more. */
#define MOST_ROUNDS ((size_t)8)
/* More threads than this get no tasks of their own. */
#define MOST_THREADS ((size_t)1024)
/* Threads to cut for where the caller does not say, and most tasks. */
#define SOME_THREADS ((size_t)16)
#define SOME_TASKS   ((size_t)256)

size_t bnorm_parts(const bnorm_exec *exec, size_t work) {
    if (!exec || !exec->parallel || exec->threads == 1 ||
        work < (size_t)bnorm_cpu_limits().work * 1024)
        return 1;
    const size_t threads = bnorm_min(exec->threads, MOST_THREADS);
    if (!threads)
        return bnorm_min(work / TASK_WORK, SOME_TASKS);
    const size_t rounds = bnorm_min(work / TASK_WORK / threads, MOST_ROUNDS);
    return bnorm_min(threads * (rounds ? rounds : 1), work / LEAST_WORK);
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
    /* Whole runs where they are short, and so many that the next part begins a line as the first one
     * does. */
    const size_t most = cut.total / parts / 16;
    size_t runs = 1;
    while (cut.len * runs % 64 && cut.len * runs <= most / 2)
        runs *= 2;
    if (cut.len <= most)
        cut.step = cut.len * runs;
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
    bnorm_part part = {
        .image = image, .images = 1, .groups = 1, .rows = 1, .lane = from, .lanes = len};
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
 * tensors). A CPU that reads as well from its L3 takes of each image so many as have 16 pages of
 * memory, as short runs in all images cost more than they save; or of many images everything, if 6
 * of its largest waves hold what is read and what is written. */
#define WAVE_ELEMENTS  ((size_t)131072)
#define IMAGE_ELEMENTS ((size_t)16384)
#define MANY_IMAGES    ((size_t)16)
#define MOST_WAVES     ((size_t)6)
/* So many images that stay in the caches are shared out themselves: of threads that share channels,
 * each writes lines in every image that its neighbour writes, too. */
#define SHARED_IMAGES ((size_t)8)
/* Elements of a wave that are mapped together at least: the same of several small images. */
#define MAP_ELEMENTS ((size_t)8192)
/* Least elements of a block's slice. */
#define SLICE_ELEMENTS ((size_t)4096)
/* Channels of rows that are sliced: so many at least, in whole lines of the caches. */
#define SLICE_LANES ((size_t)64)
#define LINE_LANES  ((size_t)16)
/* Work of finish: of a channel, and of each of its entries. */
#define CHANNEL_WORK ((size_t)100)
#define ENTRY_WORK   ((size_t)8)

/* What is shared out. Whole waves of channels come first, with all three phases or, where they are
 * slices of rows, with the first two; the channels from `first` on, else all, go through the phases
 * one after the other. */
struct shares {
    const bnorm_pass *pass;
    size_t threads;     /* to cut for; 0 = not shared */
    size_t wave, waves; /* channels per wave */
    int maps_waves;
    size_t first;
    size_t slice, slices; /* channels per slice of a block */
    size_t units, unit_parts;
    size_t finish_step;
    struct cut cut; /* of the map */
    size_t turn;    /* parts that are done last to first: those of one thread */
};

static size_t elements_of(const bnorm_view *view) {
    return view->images * view->groups * view->rows * view->lanes;
}

/* Whole groups where channels are counted by these, else whole lines. */
static size_t round_channels(const bnorm_view *view, size_t channels) {
    const size_t unit = bnorm_counts_groups(view) ? bnorm_unit(view) : LINE_LANES;
    return bnorm_min(bnorm_ceil_div(channels, unit) * unit, view->c);
}

/* The last image, reduced last, is mapped first. */
static void run_wave(const struct shares *shares, size_t channel, size_t channels) {
    const bnorm_pass *pass = shares->pass;
    const bnorm_view *view = pass->map_view;
    const size_t positions = view->planes ? view->lanes : view->rows,
                 step = 1 + MAP_ELEMENTS / (channels * positions);
    for (size_t b = 0; b < pass->blocks->count; b++)
        pass->reduce(pass->self, b, channel, channels);
    pass->finish(pass->self, channel, channels);
    for (size_t end = shares->maps_waves ? view->images : 0, n; end > 0; end -= n) {
        n = bnorm_min(step, end);
        bnorm_part part = bnorm_part_of(view, channel, channels, end - n, 0, positions);
        part.images = n;
        pass->map(pass->self, &part, 1);
    }
}

static void reduce_task(void *arg, size_t i) {
    const struct shares *shares = arg;
    const bnorm_pass *pass = shares->pass;
    const size_t c = pass->view->c;
    if (i < shares->waves) {
        const size_t channel = i * shares->wave;
        run_wave(shares, channel, bnorm_min(shares->wave, c - channel));
        return;
    }
    i -= shares->waves;
    const size_t last = (i + 1) * shares->units / shares->unit_parts;
    for (size_t u = i * shares->units / shares->unit_parts; u < last; u++) {
        const size_t channel = shares->first + u % shares->slices * shares->slice;
        pass->reduce(pass->self, u / shares->slices, channel,
                     bnorm_min(shares->slice, c - channel));
    }
}

static void finish_task(void *arg, size_t i) {
    const struct shares *shares = arg;
    const bnorm_pass *pass = shares->pass;
    const size_t channel = shares->first + i * shares->finish_step;
    pass->finish(pass->self, channel, bnorm_min(shares->finish_step, pass->view->c - channel));
}

/* What was reduced last comes first: it is still in cache. Pools that give each thread a range of
 * tasks give it the same range of the tensor in every pass, so the order turns within a range. */
static void map_task(void *arg, size_t i) {
    const struct shares *shares = arg;
    const size_t within = i % shares->turn, begin = i - within,
                 turn = bnorm_min(shares->turn, shares->cut.parts - begin);
    map_cut(shares->pass, &shares->cut, begin + turn - 1 - within);
}

static void map_whole(const bnorm_pass *pass) {
    const bnorm_view *view = pass->map_view;
    const bnorm_part part = bnorm_whole(view);
    if (pass->map && pass->map_whole)
        pass->map_whole(pass->self);
    else if (pass->map)
        pass->map(pass->self, &part, 0);
}

static void map_whole_task(void *arg, size_t i) {
    const struct shares *shares = arg;
    (void)i;
    map_whole(shares->pass);
}

/* All phases on one thread, while everything is in cache. */
static void small_task(void *arg, size_t i) {
    const bnorm_pass *pass = arg;
    const size_t c = pass->view->c;
    (void)i;
    for (size_t b = 0; b < pass->blocks->count; b++)
        pass->reduce(pass->self, b, 0, c);
    pass->finish(pass->self, 0, c);
    map_whole(pass);
}

/* One wave for each thread, which stays in its cache, so that the call is one round of tasks, or two
 * with slices of rows, which are mapped as whole rows. Not where the largest is an eighth larger than
 * a fair share, nor for narrow slices. */
static int cut_one_wave_each(struct shares *shares, size_t per_channel) {
    const bnorm_view *view = shares->pass->view;
    const size_t c = view->c;
    if (!bnorm_counts_groups(view) &&
        (shares->pass->blocks->chains > 1 || c < shares->threads * SLICE_LANES))
        return 0;
    shares->wave = round_channels(view, bnorm_ceil_div(c, shares->threads));
    shares->waves = bnorm_ceil_div(c, shares->wave);
    shares->first = c;
    return shares->wave * per_channel <= WAVE_ELEMENTS &&
           shares->wave * shares->threads <= c + c / 8;
}

/* Elements of a wave; SIZE_MAX: of all channels. */
static size_t wave_elements(const bnorm_pass *pass, size_t threads) {
    const size_t images = pass->view->images,
                 most = (size_t)bnorm_cpu_limits().wave * (1024 / sizeof(float));
    if (most <= WAVE_ELEMENTS)
        return WAVE_ELEMENTS;
    if (images >= MANY_IMAGES && elements_of(pass->view) <= MOST_WAVES * most / (pass->tensors + 1))
        return SIZE_MAX;
    const size_t wanted = bnorm_min(images * IMAGE_ELEMENTS, threads ? most / threads : most);
    return wanted > WAVE_ELEMENTS ? wanted : WAVE_ELEMENTS;
}

/* With threads, as many waves as give each thread the same number, or none. */
static void cut_waves(struct shares *shares, int known) {
    const bnorm_view *view = shares->pass->view;
    const size_t c = view->c, threads = shares->threads;
    const size_t per_channel = view->images * view->positions * shares->pass->tensors;
    const int by_lanes = !bnorm_counts_groups(view);
    const size_t most = wave_elements(shares->pass, threads);
    size_t wave = per_channel < most ? most / per_channel : 1;
    const int stays = most == SIZE_MAX || c * per_channel <= threads * WAVE_ELEMENTS;
    shares->maps_waves = shares->pass->map && !by_lanes;
    if (known && view->images >= SHARED_IMAGES && stays)
        return;
    if (known && cut_one_wave_each(shares, per_channel))
        return;
    shares->waves = shares->first = 0;
    if (by_lanes)
        return;
    if (threads) {
        const size_t fair = c / (4 * threads), least = bnorm_ceil_div(TASK_WORK / 2, per_channel);
        wave = bnorm_min(wave, fair > least ? fair : least);
    }
    shares->wave = round_channels(view, wave);
    shares->waves = bnorm_ceil_div(c, shares->wave);
    if (threads && shares->waves < threads)
        shares->waves = 0;
    else if (threads && known && shares->waves < 8 * threads)
        shares->waves -= shares->waves % threads;
    shares->first = bnorm_min(shares->waves * shares->wave, c);
}

/* Blocks, or slices of them where there are few. */
static void cut_units(struct shares *shares) {
    const bnorm_view *view = shares->pass->view;
    const bnorm_blocks *blocks = shares->pass->blocks;
    const size_t c = view->c - shares->first, block = bnorm_min(blocks->size, view->positions);
    const int by_lanes = !bnorm_counts_groups(view);
    size_t least = 1; /* channels per slice */
    if (!shares->threads || (by_lanes && blocks->chains > 1))
        least = c;
    else if (by_lanes)
        least = LINE_LANES;
    if (least < SLICE_ELEMENTS / block)
        least = SLICE_ELEMENTS / block;
    const size_t wanted = bnorm_ceil_div(8 * shares->threads, blocks->count);
    shares->slice = wanted > 1 ? bnorm_ceil_div(c, wanted) : c;
    if (shares->slice < least)
        shares->slice = least;
    shares->slice = bnorm_min(round_channels(view, shares->slice), c);
    shares->slices = bnorm_ceil_div(c, shares->slice);
    shares->units = blocks->count * shares->slices;
    shares->unit_parts = shares->threads ? bnorm_min(shares->units, 16 * shares->threads) : 1;
}

/* Channels from shares->first on. Alone, but where it takes longer than another round of tasks. */
static void run_finish(struct shares *shares, const bnorm_exec *exec) {
    const size_t rest = shares->pass->view->c - shares->first;
    const size_t work = rest * (CHANNEL_WORK + shares->pass->blocks->count * ENTRY_WORK);
    shares->finish_step = rest;
    if (shares->threads && work >= TASK_WORK)
        shares->finish_step = (bnorm_ceil_div(rest, shares->threads) + 7) / 8 * 8;
    bnorm_run(exec, finish_task, shares, bnorm_ceil_div(rest, shares->finish_step));
}

static void run_map(struct shares *shares, const bnorm_exec *exec) {
    const bnorm_view *view = shares->pass->view, *map_view = shares->pass->map_view;
    const size_t group = shares->first / bnorm_unit(view), threads = shares->threads;
    const size_t elements = elements_of(map_view) / map_view->groups * (map_view->groups - group);
    const size_t work = elements * shares->pass->map_work;
    size_t parts = threads ? bnorm_parts(exec, work) : elements / WAVE_ELEMENTS;
    if (parts < threads) /* what is left of a large tensor, or of all phases */
        parts = bnorm_min(threads, work / LEAST_WORK);
    if (parts <= 1 && shares->first == 0) {
        bnorm_run(exec, map_whole_task, shares, 1);
        return;
    }
    parts = parts ? parts : 1;
    shares->cut = cut_view(map_view, group, parts);
    shares->turn = parts;
    if (threads) /* not known: each part on its own */
        shares->turn = exec->threads && shares->pass->reduce ? bnorm_ceil_div(parts, threads) : 1;
    bnorm_run(exec, map_task, shares, parts);
}

/* Threads that share so much work, 0 where it is left to this one; so many times as much as usual has
 * to be worth it. */
static size_t threads_for(const bnorm_exec *exec, size_t work, size_t times) {
    if (bnorm_parts(exec, work / times) <= 1)
        return 0;
    const size_t threads =
        bnorm_min(exec->threads ? exec->threads : SOME_THREADS, work / LEAST_WORK);
    return bnorm_min(threads, MOST_THREADS);
}

void bnorm_run_map_pass(const bnorm_pass *pass, const bnorm_exec *exec) {
    struct shares shares;
    if (!pass->map)
        return;
    shares.pass = pass;
    shares.first = 0;
    shares.threads = threads_for(exec, elements_of(pass->map_view) * pass->map_work, 1);
    if (shares.threads)
        run_map(&shares, exec);
    else
        bnorm_run(exec, map_whole_task, &shares, 1);
}

void bnorm_run_pass(const bnorm_pass *pass, const bnorm_exec *exec) {
    const size_t elements = elements_of(pass->map_view);
    const int small = elements * pass->tensors <= WAVE_ELEMENTS;
    if (bnorm_is_plain(exec) && small) {
        small_task((void *)(uintptr_t)pass, 0);
        return;
    }
    /* Rows of few images are reduced by channels and mapped by positions, so that the coefficients go
     * from core to core. */
    const int crosses = !bnorm_counts_groups(pass->view) && pass->view->images < SHARED_IMAGES;
    struct shares shares;
    shares.pass = pass;
    shares.threads = threads_for(
        exec, elements * (pass->reduce_work + (pass->map ? pass->map_work : 0)), crosses ? 2 : 1);
    if (!shares.threads && small) {
        bnorm_run(exec, small_task, (void *)(uintptr_t)pass, 1);
        return;
    }
    shares.first = shares.waves = shares.unit_parts = 0;
    cut_waves(&shares, shares.threads && exec->threads);
    if (shares.first < pass->view->c)
        cut_units(&shares);
    bnorm_run(exec, reduce_task, &shares, shares.waves + shares.unit_parts);
    if (shares.first < pass->view->c)
        run_finish(&shares, exec);
    else if (shares.maps_waves)
        return;
    else
        shares.first = 0;
    if (pass->map)
        run_map(&shares, exec);
}
