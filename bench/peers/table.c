/* SPDX-License-Identifier: MIT */
#include "table.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "onednn.h"

static const char *const modes[PEERS_MODES] = {
    [PEERS_INFERENCE] = "inference", [PEERS_IN_PLACE] = "in place",
    [PEERS_RELU] = "+ReLU",          [PEERS_RESIDUAL_RELU] = "+residual+ReLU",
    [PEERS_TRAINING] = "training",   [PEERS_TRAINING_RELU] = "training+ReLU",
    [PEERS_BACKWARD] = "backward",
};

static const char *const layouts[PEERS_LAYOUTS] = {"NCHW", "NHWC", "nChw8c", "nChw16c"};
static const char *const classes[PEERS_CLASSES] = {"<= 0.5 MB", "0.5-8 MB", "> 8 MB"};

enum peers_class peers_class_of(size_t elements) {
    const double bytes = (double)elements * sizeof(float);
    return bytes <= 0.5e6 ? PEERS_SMALL : bytes <= 8e6 ? PEERS_MIDDLE : PEERS_LARGE;
}

static int is_blocked(const peers_record *r) {
    return r->layout >= PEERS_NCHW8C;
}

/* ---------------------------------------------------------------------------------------------- */
/* Ratios */

/* The faster of oneDNN and PyTorch; 0 = none. */
static double peer_seconds(const peers_times *times) {
    const double a = times->seconds[PEERS_ONEDNN], b = times->seconds[PEERS_TORCH];
    return a > 0 && (b <= 0 || a < b) ? a : b;
}

static double bnorm_seconds(const peers_record *r) {
    return r->times.seconds[PEERS_BNORM];
}

int peers_is_behind(const peers_times *times) {
    return peer_seconds(times) > 0 && peer_seconds(times) < times->seconds[PEERS_BNORM];
}

/* Not by chance: also whenever it was measured again. */
static int is_behind(const peers_record *r) {
    return peers_is_behind(&r->times) && r->behind_again == r->again;
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
        printf(" %9.*f", scale < 1e9 ? 1 : 0, seconds * scale);
    else
        printf(" %9s", "-");
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
/* Sums of lines */

typedef struct setting {
    size_t threads;
    enum peers_cache cache;
} setting;

typedef struct row {
    size_t lines, behind;
    summary peer, onednn, torch, onnxruntime, plain, roof, avx2, in_place, threads;
} row;

static void add_record(row *to, const peers_records *all, const peers_record *r) {
    const double seconds = bnorm_seconds(r);
    if (seconds <= 0)
        return;
    const double *times = r->times.seconds;
    to->lines++;
    to->behind += (size_t)is_behind(r);
    add(&to->peer, ratio(peer_seconds(&r->times), seconds));
    add(&to->onednn, ratio(times[PEERS_ONEDNN], seconds));
    add(&to->torch, ratio(times[PEERS_TORCH], seconds));
    add(&to->onnxruntime, ratio(times[PEERS_ONNXRUNTIME], seconds));
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

static int in_setting(const peers_record *r, const setting *s) {
    return !r->tiny && r->threads == s->threads && r->cache == s->cache;
}

static row sum_of(const peers_records *all, const setting *s, int layout, int mode, int class) {
    row sum = {0};
    for (size_t i = 0; i < all->count; i++) {
        const peers_record *r = &all->list[i];
        if (in_setting(r, s) && (int)r->layout == layout && (int)r->mode == mode &&
            (int)peers_class_of(r->n * r->c * r->hw) == class)
            add_record(&sum, all, r);
    }
    return sum;
}

/* Without blocks of channels. */
static row total_of(const peers_records *all, const setting *s) {
    row sum = {0};
    for (size_t i = 0; i < all->count; i++)
        if (in_setting(&all->list[i], s) && !is_blocked(&all->list[i]))
            add_record(&sum, all, &all->list[i]);
    return sum;
}

/* For every layout and mode. */
static void for_each_kind(const peers_records *all, const setting *s,
                          void (*print)(const peers_records *, const setting *, int, int)) {
    for (int layout = 0; layout < PEERS_LAYOUTS; layout++)
        for (int mode = 0; mode < PEERS_MODES; mode++)
            print(all, s, layout, mode);
}

static void print_setting_title(const setting *s) {
    printf("\n%zu thread%s, %s cache\n", s->threads, s->threads > 1 ? "s" : "",
           s->cache == PEERS_COLD ? "cold" : "warm");
}

/* ---------------------------------------------------------------------------------------------- */
/* The table of classes */

static void print_kind(const peers_records *all, const setting *s, int layout, int mode) {
    row sums[PEERS_CLASSES];
    size_t lines = 0;
    for (int class = 0; class < PEERS_CLASSES; class ++) {
        sums[class] = sum_of(all, s, layout, mode, class);
        lines += sums[class].lines;
    }
    if (!lines)
        return;
    printf("%-7s %-14s", layouts[layout], modes[mode]);
    for (int class = 0; class < PEERS_CLASSES; class ++) {
        const row *r = &sums[class];
        printf(" |");
        print_mean(&r->roof);
        print_pair(&r->peer, r->peer.least);
        printf(" %2zu", r->behind);
    }
    printf("\n");
}

static void print_classes(const peers_records *all, const setting *s) {
    print_setting_title(s);
    printf("%-22s", "");
    for (int class = 0; class < PEERS_CLASSES; class ++)
        printf(" | %-22s", classes[class]);
    printf("\n%-22s", "");
    for (int class = 0; class < PEERS_CLASSES; class ++)
        printf(" | %6s %6s %5s %2s", "roof", "peer", "worst", "<1");
    printf("\n");
    for_each_kind(all, s, print_kind);
}

/* ---------------------------------------------------------------------------------------------- */
/* The details */

static void print_details_row(const char *layout, const char *mode, const char *class,
                              const row *r) {
    printf("%-7s %-14s %-9s %5zu", layout, mode, class, r->lines);
    print_pair(&r->onednn, r->onednn.least);
    print_pair(&r->torch, r->torch.least);
    print_pair(&r->onnxruntime, r->onnxruntime.least);
    print_mean(&r->plain);
    print_pair(&r->roof, r->roof.most);
    print_pair(&r->avx2, r->avx2.most);
    print_mean(&r->in_place);
    print_pair(&r->threads, r->threads.least);
    printf("\n");
}

static void print_details_kind(const peers_records *all, const setting *s, int layout, int mode) {
    for (int class = 0; class < PEERS_CLASSES; class ++) {
        const row sum = sum_of(all, s, layout, mode, class);
        if (sum.lines)
            print_details_row(layouts[layout], modes[mode], classes[class], &sum);
    }
}

static void print_details(const peers_records *all, const setting *s) {
    print_setting_title(s);
    printf("%-32s %5s %12s %12s %12s %6s %12s %12s %6s %12s\n", "", "", "oneDNN", "PyTorch",
           "ONNX Runtime", "plain", "roof", "avx2/best", "in", "threads");
    printf("%-32s %5s %6s %5s %6s %5s %6s %5s %6s %6s %5s %6s %5s %6s %6s %5s\n", "", "lines",
           "mean", "worst", "mean", "worst", "mean", "worst", "mean", "mean", "worst", "mean",
           "worst", "place", "mean", "worst");
    for_each_kind(all, s, print_details_kind);
}

/* ---------------------------------------------------------------------------------------------- */
/* The worst lines */

static double over_peer(const peers_record *r) {
    return ratio(peer_seconds(&r->times), bnorm_seconds(r));
}

static int by_peer(const void *a, const void *b) {
    const peers_record *const *x = a, *const *y = b;
    return (over_peer(*x) > over_peer(*y)) - (over_peer(*x) < over_peer(*y));
}

static void print_worst(const peers_records *all, int blocked, size_t shown) {
    const peers_record **lines = malloc((all->count + 1) * sizeof *lines);
    size_t count = 0;
    for (size_t i = 0; lines && i < all->count; i++)
        if (!all->list[i].tiny && is_blocked(&all->list[i]) == blocked &&
            over_peer(&all->list[i]) > 0)
            lines[count++] = &all->list[i];
    if (count) {
        qsort(lines, count, sizeof *lines, by_peer);
        printf("\n%-44s %6s %6s %9s %9s %9s %9s\n",
               blocked ? "Worst lines of blocks" : "Worst lines (times in microseconds)", "peer",
               "again", "bnorm", "oneDNN", "PyTorch", "roof");
    }
    for (size_t i = 0; i < count && i < shown; i++) {
        const peers_record *r = lines[i];
        const double *t = r->times.seconds;
        char name[96];
        snprintf(name, sizeof name, "%s %s %s %zuT%s", r->size, layouts[r->layout], modes[r->mode],
                 r->threads, r->cache == PEERS_COLD ? " cold" : "");
        printf("%-44s %6.2f", name, over_peer(r));
        if (r->again)
            printf(" %zu of %zu", r->behind_again, r->again);
        else
            printf(" %6s", "-");
        print_time(t[PEERS_BNORM], 1e6);
        print_time(t[PEERS_ONEDNN], 1e6);
        print_time(t[PEERS_TORCH], 1e6);
        print_time(t[PEERS_ROOF], 1e6);
        printf("\n");
    }
    free(lines);
}

/* ---------------------------------------------------------------------------------------------- */

static void print_overhead(const peers_records *all) {
    int any = 0;
    for (size_t i = 0; i < all->count; i++) {
        const peers_record *r = &all->list[i];
        if (!r->tiny)
            continue;
        if (!any++) {
            printf("\nCall overhead: ns per call, %s, 1 thread, warm cache\n%-15s", r->size, "");
            for (int who = 0; who < PEERS_CONTENDERS; who++)
                printf(" %*s", who == PEERS_ONNXRUNTIME ? 12 : 10, peers_names[who]);
            printf("\n");
        }
        printf("%s %-10s", layouts[r->layout], modes[r->mode]);
        for (int who = 0; who < PEERS_CONTENDERS; who++) {
            printf("%s", who == PEERS_ONNXRUNTIME ? "   " : " ");
            print_time(r->times.seconds[who], 1e9);
        }
        printf("\n");
    }
}

static void print_headline(const peers_records *all, const setting *s) {
    const row sum = total_of(all, s);
    if (sum.peer.count == 0)
        return;
    printf("%zu thread%s %s   %5zu %6zu", s->threads, s->threads > 1 ? "s," : ", ",
           s->cache == PEERS_COLD ? "cold" : "warm", sum.lines, sum.behind);
    print_pair(&sum.peer, sum.peer.least);
    print_pair(&sum.onednn, sum.onednn.least);
    print_pair(&sum.torch, sum.torch.least);
    print_pair(&sum.onnxruntime, sum.onnxruntime.least);
    print_pair(&sum.plain, sum.plain.least);
    printf("\n");
}

static void print_disturbance(const peers_records *all) {
    size_t samples = 0, disturbed = 0;
    for (size_t i = 0; i < all->count; i++) {
        samples += all->list[i].times.samples;
        disturbed += all->list[i].times.disturbed;
    }
    if (disturbed * 100 > samples)
        printf("Other programs disturbed %zu of %zu samples: run again on an idle machine.\n",
               disturbed, samples);
}

static void for_each_setting(const peers_records *all,
                             void (*print)(const peers_records *, const setting *)) {
    size_t most = 1;
    for (size_t i = 0; i < all->count; i++)
        most = all->list[i].threads > most ? all->list[i].threads : most;
    for (int cache = PEERS_WARM; cache <= PEERS_COLD; cache++)
        for (size_t threads = 1; threads <= most; threads++) {
            const setting s = {threads, (enum peers_cache)cache};
            size_t lines = 0;
            for (size_t i = 0; i < all->count; i++)
                lines += (size_t)in_setting(&all->list[i], &s);
            if (lines)
                print(all, &s);
        }
}

void peers_print_report(const peers_record *records, size_t count, int details) {
    const peers_records all = {records, count};
    printf(
        "\nroof: bnorm's time over that of the best copy of the same bytes. peer: the time of the\n"
        "faster one of oneDNN and PyTorch over bnorm's. <1: lines where a peer is ahead, also\n"
        "whenever measured again. Means are geometric; classes are by the bytes of x.\n");
    for_each_setting(&all, print_classes);
    if (details) {
        printf(
            "\nDetails: peers' and plain C's time over bnorm's; the time of the AVX2 set over the\n"
            "best set's; out of place over in place; 1 thread's time over that of more.\n");
        for_each_setting(&all, print_details);
    }
    print_overhead(&all);
    print_worst(&all, 0, 10);
    print_worst(&all, 1, 3);
    size_t plain = 0;
    for (size_t i = 0; i < count; i++)
        plain += (size_t)(!records[i].tiny && !is_blocked(&records[i]));
    if (plain)
        printf("\n%-17s %5s %6s %12s %12s %12s %12s %12s\n", "Over bnorm's time", "lines", "behind",
               "faster peer", "oneDNN", "PyTorch", "ONNX Runtime", "plain C");
    for_each_setting(&all, print_headline);
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
    if (peers_onnxruntime_version())
        fprintf(file, "  \"onnxruntime\": \"%s\",\n", peers_onnxruntime_version());
    fprintf(file, "  \"lines\": [\n");
    for (size_t i = 0; i < count; i++) {
        const peers_record *r = &records[i];
        fprintf(file,
                "    {\"mode\": \"%s\", \"layout\": \"%s\", \"n\": %zu, \"c\": %zu, \"hw\": %zu, "
                "\"size\": \"%s\", \"class\": \"%s\", \"threads\": %zu, \"cache\": \"%s\", "
                "\"overhead\": %s, \"again\": %zu, \"behind_again\": %zu, \"seconds\": {",
                modes[r->mode], layouts[r->layout], r->n, r->c, r->hw, r->size,
                classes[peers_class_of(r->n * r->c * r->hw)], r->threads,
                r->cache == PEERS_COLD ? "cold" : "warm", r->tiny ? "true" : "false", r->again,
                r->behind_again);
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
