/* SPDX-License-Identifier: MIT */
#include "table.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "onednn.h"

const char *const peers_modes[PEERS_MODES] = {
    [PEERS_INFERENCE] = "inference", [PEERS_IN_PLACE] = "in place",
    [PEERS_RELU] = "+ReLU",          [PEERS_RESIDUAL_RELU] = "+residual+ReLU",
    [PEERS_TRAINING] = "training",   [PEERS_TRAINING_RELU] = "training+ReLU",
    [PEERS_BACKWARD] = "backward",
};

static const char *const layouts[2] = {[BNORM_NHWC] = "NHWC", [BNORM_NCHW] = "NCHW"};

/* By bytes of x. */
enum size_class { SMALL, MIDDLE, LARGE, CLASSES };
static const char *const classes[CLASSES] = {"<= 0.5 MB", "0.5-8 MB", "> 8 MB"};

static enum size_class class_of(const peers_record *r) {
    const double bytes = (double)(r->n * r->c * r->hw) * sizeof(float);
    return bytes <= 0.5e6 ? SMALL : bytes <= 8e6 ? MIDDLE : LARGE;
}

/* What bnorm is to reach; "peer" is the faster peer's time over bnorm's, "roof" bnorm's over the
 * roof's. In cache: N = 1. */
static const struct {
    const char *large, *cached;
} targets[PEERS_MODES][2] = {
    [PEERS_INFERENCE] = {{"peer 1.25 roof 1.05", "roof 1.15 small: peer 3"},
                         {"peer 1.25 roof 1.05", "roof 1.15 small: peer 2.5"}},
    [PEERS_IN_PLACE] = {{"1.7x out of place", ""}, {"1.7x out of place", ""}},
    [PEERS_RELU] = {{"roof 1.03", "peer 2"}, {"roof 1.03", "peer 2"}},
    [PEERS_RESIDUAL_RELU] = {{"roof 1.03", "peer 2"}, {"roof 1.03", "peer 2"}},
    [PEERS_TRAINING] = {{"peer 1.6 roof 1.05", "peer 2"},
                        {"peer 3.8 roof 1.2 (7x7: 1.5)", "peer 5 roof 1.5"}},
    [PEERS_TRAINING_RELU] = {{"peer 1.6 roof 1.05", "peer 2"},
                             {"peer 3.8 roof 1.2 (7x7: 1.5)", "peer 5 roof 1.5"}},
    [PEERS_BACKWARD] = {{"peer >= 1 roof 1.05", "peer 1.5"}, {"peer 1.45 roof 1.25", "peer 2"}},
};

/* ---------------------------------------------------------------------------------------------- */
/* Ratios */

/* The faster of oneDNN and PyTorch; 0 = none. */
static double peer_seconds(const peers_record *r) {
    const double a = r->times.seconds[PEERS_ONEDNN], b = r->times.seconds[PEERS_TORCH];
    return a > 0 && (b <= 0 || a < b) ? a : b;
}

static double bnorm_seconds(const peers_record *r) {
    return r->times.seconds[PEERS_BNORM];
}

static double ratio(double a, double b) {
    return a > 0 && b > 0 ? a / b : 0;
}

/* Geometric mean and extremes of what is above 0. */
typedef struct summary {
    double logs, least, most;
    size_t count;
} summary;

static void add(summary *s, double value) {
    if (value <= 0)
        return;
    s->least = s->count == 0 || value < s->least ? value : s->least;
    s->most = value > s->most ? value : s->most;
    s->logs += log(value);
    s->count++;
}

static double geomean(const summary *s) {
    return s->count ? exp(s->logs / (double)s->count) : 0;
}

static void print_pair(const summary *s, double worst) {
    if (s->count)
        printf(" %6.2f %5.2f", geomean(s), worst);
    else
        printf(" %6s %5s", "-", "-");
}

static void print_mean(const summary *s) {
    if (s->count)
        printf(" %6.2f", geomean(s));
    else
        printf(" %6s", "-");
}

static void print_time(double seconds, double scale) {
    if (seconds > 0)
        printf(" %10.*f", scale < 1e9 ? 2 : 0, seconds * scale);
    else
        printf(" %10s", "-");
}

typedef struct peers_records {
    const peers_record *list;
    size_t count;
} peers_records;

/* The same line with another mode or number of threads. */
static const peers_record *sibling(const peers_records *all, const peers_record *of,
                                   enum peers_mode mode, size_t threads) {
    for (size_t i = 0; i < all->count; i++) {
        const peers_record *r = &all->list[i];
        if (r->mode == mode && r->threads == threads && r->layout == of->layout &&
            r->cache == of->cache && r->n == of->n && r->c == of->c && r->hw == of->hw &&
            r->tiny == of->tiny)
            return r;
    }
    return NULL;
}

/* ---------------------------------------------------------------------------------------------- */
/* The class table */

typedef struct row {
    size_t lines, behind;
    summary peer, onednn, torch, plain, roof, avx2, in_place, threads;
} row;

static void add_record(row *to, const peers_records *all, const peers_record *r) {
    const double seconds = bnorm_seconds(r);
    if (seconds <= 0)
        return;
    const double *times = r->times.seconds;
    to->lines++;
    to->behind += peer_seconds(r) > 0 && peer_seconds(r) < seconds;
    add(&to->peer, ratio(peer_seconds(r), seconds));
    add(&to->onednn, ratio(times[PEERS_ONEDNN], seconds));
    add(&to->torch, ratio(times[PEERS_TORCH], seconds));
    add(&to->plain, ratio(times[PEERS_PLAIN], seconds));
    add(&to->roof, ratio(seconds, times[PEERS_ROOF]));
    add(&to->avx2, ratio(times[PEERS_BNORM_AVX2], seconds));
    if (r->mode == PEERS_IN_PLACE) {
        const peers_record *other = sibling(all, r, PEERS_INFERENCE, r->threads);
        add(&to->in_place, other ? ratio(bnorm_seconds(other), seconds) : 0);
    }
    if (r->threads > 1) {
        const peers_record *other = sibling(all, r, r->mode, 1);
        add(&to->threads, other ? ratio(bnorm_seconds(other), seconds) : 0);
    }
}

static void print_row(const char *name, const row *r, const char *target) {
    printf("%-24s %5zu %6zu", name, r->lines, r->behind);
    print_pair(&r->peer, r->peer.least);
    print_pair(&r->onednn, r->onednn.least);
    print_pair(&r->torch, r->torch.least);
    print_mean(&r->plain);
    print_pair(&r->roof, r->roof.most);
    print_pair(&r->avx2, r->avx2.most);
    print_mean(&r->in_place);
    print_pair(&r->threads, r->threads.least);
    printf("%s%s\n", *target ? "  " : "", target);
}

static void print_header(void) {
    printf("%-24s %5s %6s %12s %12s %12s %6s %12s %12s %6s %12s  %s\n", "", "", "", "faster peer",
           "oneDNN", "PyTorch", "plain", "roof", "avx2/best", "in", "threads", "");
    printf("%-24s %5s %6s %6s %5s %6s %5s %6s %5s %6s %6s %5s %6s %5s %6s %6s %5s  %s\n", "",
           "lines", "behind", "mean", "worst", "mean", "worst", "mean", "worst", "mean", "mean",
           "worst", "mean", "worst", "place", "mean", "worst", "targets");
}

static int in_setting(const peers_record *r, size_t threads, enum peers_cache cache) {
    return !r->tiny && r->threads == threads && r->cache == cache;
}

static void print_setting(const peers_records *all, size_t threads, enum peers_cache cache) {
    row total = {0};
    for (size_t i = 0; i < all->count; i++)
        if (in_setting(&all->list[i], threads, cache))
            add_record(&total, all, &all->list[i]);
    if (total.lines == 0)
        return;
    printf("\n%zu thread%s, %s cache\n", threads, threads > 1 ? "s" : "",
           cache == PEERS_COLD ? "cold" : "warm");
    print_header();
    for (int class = 0; class < CLASSES; class ++) {
        int titled = 0;
        for (int layout = 1; layout >= 0; layout--)
            for (int mode = 0; mode < PEERS_MODES; mode++) {
                row sum = {0};
                for (size_t i = 0; i < all->count; i++) {
                    const peers_record *r = &all->list[i];
                    if (in_setting(r, threads, cache) && (int)class_of(r) == class &&
                        (int)r->layout == layout && (int)r->mode == mode)
                        add_record(&sum, all, r);
                }
                char name[64];
                snprintf(name, sizeof name, "%s %s", layouts[layout], peers_modes[mode]);
                if (sum.lines == 0)
                    continue;
                if (!titled)
                    printf("%s\n", classes[class]);
                titled = 1;
                print_row(name, &sum,
                          cache == PEERS_COLD ? ""
                          : class == LARGE    ? targets[mode][layout].large
                                              : targets[mode][layout].cached);
            }
    }
    print_row("all", &total, cache == PEERS_COLD ? "" : threads > 1 ? "peer 3.5" : "peer 3.0");
}

/* ---------------------------------------------------------------------------------------------- */
/* The worst lines */

static double over_peer(const peers_record *r) {
    return ratio(peer_seconds(r), bnorm_seconds(r));
}

static double over_roof(const peers_record *r) {
    return ratio(r->times.seconds[PEERS_ROOF], bnorm_seconds(r));
}

static int by_peer(const void *a, const void *b) {
    const peers_record *const *x = a, *const *y = b;
    return (over_peer(*x) > over_peer(*y)) - (over_peer(*x) < over_peer(*y));
}

static int by_roof(const void *a, const void *b) {
    const peers_record *const *x = a, *const *y = b;
    return (over_roof(*x) > over_roof(*y)) - (over_roof(*x) < over_roof(*y));
}

/* The five lines with the least of a measure. */
static void print_worst(const peers_records *all, enum peers_cache cache, const char *title,
                        double (*measure)(const peers_record *),
                        int (*order)(const void *, const void *)) {
    enum { SHOWN = 5 };
    const peers_record **lines = malloc((all->count + 1) * sizeof *lines);
    size_t count = 0;
    for (size_t i = 0; lines && i < all->count; i++)
        if (!all->list[i].tiny && all->list[i].cache == cache && measure(&all->list[i]) > 0)
            lines[count++] = &all->list[i];
    if (count) {
        qsort(lines, count, sizeof *lines, order);
        printf("\n%s, %s cache (microseconds)\n%-44s %7s %10s %10s %10s %10s\n", title,
               cache == PEERS_COLD ? "cold" : "warm", "", "ratio", "bnorm", "oneDNN", "PyTorch",
               "roof");
    }
    for (size_t i = 0; i < count && i < SHOWN; i++) {
        const peers_record *r = lines[i];
        const double *t = r->times.seconds;
        char name[96];
        snprintf(name, sizeof name, "%s %s %s %zuT", r->size, layouts[r->layout],
                 peers_modes[r->mode], r->threads);
        printf("%-44s %7.2f", name, measure == over_peer ? over_peer(r) : 1 / over_roof(r));
        print_time(t[PEERS_BNORM], 1e6);
        print_time(t[PEERS_ONEDNN], 1e6);
        print_time(t[PEERS_TORCH], 1e6);
        print_time(t[PEERS_ROOF], 1e6);
        printf("\n");
    }
    free(lines);
}

static void print_all_worst(const peers_records *all) {
    for (int cache = PEERS_WARM; cache <= PEERS_COLD; cache++)
        print_worst(all, (enum peers_cache)cache,
                    "Worst against the faster peer: its time over bnorm's", over_peer, by_peer);
    print_worst(all, PEERS_WARM, "Furthest from the roof: bnorm's time over the roof's", over_roof,
                by_roof);
}

/* ---------------------------------------------------------------------------------------------- */

static void print_overhead(const peers_records *all) {
    int any = 0;
    for (size_t i = 0; i < all->count; i++) {
        const peers_record *r = &all->list[i];
        if (!r->tiny)
            continue;
        if (!any++) {
            printf("\nCall overhead: ns per call, %s, 1 thread, warm cache (to reach: inference "
                   "150, training 500)\n%-24s",
                   r->size, "");
            for (int who = 0; who < PEERS_CONTENDERS; who++)
                printf(" %10s", peers_names[who]);
            printf("\n");
        }
        printf("%s %-19s", layouts[r->layout], peers_modes[r->mode]);
        for (int who = 0; who < PEERS_CONTENDERS; who++)
            print_time(r->times.seconds[who], 1e9);
        printf("\n");
    }
}

static void print_headline(const peers_records *all, size_t most_threads) {
    int any = 0;
    for (size_t threads = 1; threads <= most_threads; threads++) {
        row sum = {0};
        for (size_t i = 0; i < all->count; i++)
            if (in_setting(&all->list[i], threads, PEERS_WARM))
                add_record(&sum, all, &all->list[i]);
        if (sum.peer.count == 0)
            continue;
        if (!any++)
            printf("\nHeadline: the faster peer's time over bnorm's, geometric mean over all "
                   "lines, warm cache\n");
        printf("  %zu thread%s: %.2fx of %zu lines, %zu behind a peer, worst %.2fx\n", threads,
               threads > 1 ? "s" : "", geomean(&sum.peer), sum.peer.count, sum.behind,
               sum.peer.least);
    }
}

static void print_disturbance(const peers_records *all) {
    size_t samples = 0, disturbed = 0;
    for (size_t i = 0; i < all->count; i++) {
        samples += all->list[i].times.samples;
        disturbed += all->list[i].times.disturbed;
    }
    if (disturbed * 100 > samples)
        printf("\nOther programs disturbed %zu of %zu samples: run again on an idle machine.\n",
               disturbed, samples);
}

void peers_print_report(const peers_record *records, size_t count) {
    const peers_records all = {records, count};
    size_t most_threads = 1;
    for (size_t i = 0; i < count; i++)
        most_threads = records[i].threads > most_threads ? records[i].threads : most_threads;
    printf(
        "\nPeers, plain: their time over bnorm's. Roof: bnorm's time over the roof's. avx2/best: "
        "time of the\nAVX2 set over the best set's. In place: out of place over in place. "
        "Threads: 1 thread's time over theirs.\nMeans are geometric; the worst of avx2/best is "
        "the largest.\n");
    for (int cache = PEERS_WARM; cache <= PEERS_COLD; cache++)
        for (size_t threads = 1; threads <= most_threads; threads++)
            print_setting(&all, threads, (enum peers_cache)cache);
    print_overhead(&all);
    print_all_worst(&all);
    print_headline(&all, most_threads);
    print_disturbance(&all);
}

void peers_write_json(FILE *file, const char *cpu, const peers_record *records, size_t count) {
    fprintf(file, "{\n  \"cpu\": \"%s\",\n  \"bnorm\": \"%s\",\n  \"set\": \"%s\",\n", cpu,
            bnorm_version(), bnorm_isa_name(NULL));
    if (peers_onednn())
        fprintf(file, "  \"onednn\": \"%s\",\n", peers_onednn()->version);
#ifdef HAVE_TORCH
    fprintf(file, "  \"pytorch\": \"%s\",\n", peers_torch_version());
#endif
    fprintf(file, "  \"lines\": [\n");
    for (size_t i = 0; i < count; i++) {
        const peers_record *r = &records[i];
        fprintf(file,
                "    {\"mode\": \"%s\", \"layout\": \"%s\", \"n\": %zu, \"c\": %zu, \"hw\": %zu, "
                "\"size\": \"%s\", \"threads\": %zu, \"cache\": \"%s\", \"overhead\": %s, "
                "\"seconds\": {",
                peers_modes[r->mode], layouts[r->layout], r->n, r->c, r->hw, r->size, r->threads,
                r->cache == PEERS_COLD ? "cold" : "warm", r->tiny ? "true" : "false");
        const char *separator = "";
        for (int who = 0; who < PEERS_CONTENDERS; who++)
            if (r->times.seconds[who] > 0) {
                fprintf(file, "%s\"%s\": %.4g", separator, peers_names[who], r->times.seconds[who]);
                separator = ", ";
            }
        fprintf(file, "}}%s\n", i + 1 < count ? "," : "");
    }
    fprintf(file, "  ]\n}\n");
}
