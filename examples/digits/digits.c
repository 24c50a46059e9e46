/* SPDX-License-Identifier: MIT
 *
 * Trains a small network with and without batch norm on real handwritten digits, and answers what
 * people new to batch norm ask with its accuracy on digits of people it has not seen. The network,
 * and every call of bnorm, is in net.c; README.md shows the output. */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>
#include "data.h"
#include "net.h"
#include "threads.h"

/* ---------------------------------------------------------------------------------------------- */
/* Training and measuring                                                                         */

typedef struct settings {
    uint64_t seed;
    size_t short_steps, long_steps, fine_tune_images;
    bnorm_exec exec;
} settings;

static void progress(const char *what, size_t done, size_t total) {
    if (!isatty(STDERR_FILENO))
        return;
    fprintf(stderr, "\r  training %s: step %zu of %zu ", what, done, total);
    if (done == total)
        fprintf(stderr, "\r%60s\r", "");
    fflush(stderr);
}

static void train_steps(net *n, feed *f, size_t steps, size_t batch, net_stats stats, float rate,
                        const char *what) {
    for (size_t step = 0; step < steps; step++) {
        net_train(n, next_batch(f, batch), batch, stats, rate);
        progress(what, step + 1, steps);
    }
}

static net *train_new(const settings *s, int batch_norm, float rate, size_t steps) {
    net *n = net_create(batch_norm, 0.1, s->seed, &s->exec);
    feed f = {.set = train, .random = s->seed};
    train_steps(n, &f, steps, BATCH, NET_BATCH_STATS, rate,
                batch_norm ? "with batch norm" : "without batch norm");
    return n;
}

/* ---------------------------------------------------------------------------------------------- */
/* The questions                                                                                  */

typedef struct best_rate {
    float rate;
    double validation;
} best_rate;

static uint64_t compare_rates(const settings *s, best_rate best[2], uint64_t hash) {
    static const float rates[] = {0.003f, 0.01f, 0.03f, 0.1f, 0.3f, 1.0f};
    printf("1. Does batch norm help, and at which learning rate? (%zu steps, inference mode)\n\n"
           "                    without batch norm      with batch norm\n"
           "    learning rate   validation    test     validation    test\n",
           s->short_steps);
    for (size_t i = 0; i < sizeof(rates) / sizeof(rates[0]); i++) {
        printf("    %-12g", (double)rates[i]);
        for (int batch_norm = 0; batch_norm < 2; batch_norm++) {
            net *n = train_new(s, batch_norm, rates[i], s->short_steps);
            const double valid = accuracy(n, &validation, NET_RUNNING_STATS);
            printf("    %8.1f %8.1f", valid, accuracy(n, &test, NET_RUNNING_STATS));
            fflush(stdout);
            if (valid > best[batch_norm].validation)
                best[batch_norm] = (best_rate){rates[i], valid};
            hash = net_hash(n, hash);
            net_destroy(n);
        }
        printf("\n");
    }
    printf("\n"
           "   Percent right; guessing gives about 10. Batch norm's main gift is the width of\n"
           "   the range of learning rates that work. At a rate chosen well for each, by\n"
           "   validation, the gap is far smaller. It is no magic: a rate that is too high\n"
           "   still fails.\n\n");
    return hash;
}

static uint64_t compare_best(const settings *s, const best_rate best[2], net **trained,
                             uint64_t hash) {
    printf("2. Each at its best rate, trained longer (%zu steps)\n\n"
           "                          rate   training images   test images\n",
           s->long_steps);
    for (int batch_norm = 0; batch_norm < 2; batch_norm++) {
        net *n = train_new(s, batch_norm, best[batch_norm].rate, s->long_steps);
        printf("    %-19s %6g        %8.1f       %8.1f\n",
               batch_norm ? "with batch norm" : "without batch norm", (double)best[batch_norm].rate,
               accuracy(n, &train, NET_RUNNING_STATS), accuracy(n, &test, NET_RUNNING_STATS));
        hash = net_hash(n, hash);
        if (batch_norm)
            *trained = n;
        else
            net_destroy(n);
    }
    printf("\n"
           "   Where a plain network gets its training images right too, batch norm has\n"
           "   little left to add. With %zu test images a difference below 3 points may be\n"
           "   chance; try --seed.\n\n",
           test.count);
    return hash;
}

static uint64_t warm_up(const settings *s, float rate, uint64_t hash) {
    static const size_t checkpoints[] = {1, 5, 20, 50, 100, 200};
    net *fast = net_create(1, 0.1, s->seed, &s->exec);
    net *slow = net_create(1, 0.01, s->seed, &s->exec);
    feed fast_feed = {.set = train, .random = s->seed}, slow_feed = fast_feed;
    printf("3. Why is my evaluation so much worse than my training? (learning rate %g)\n\n"
           "              training mode   inference mode (running statistics)\n"
           "    steps   (batch statistics)     rate 0.1       rate 0.01\n",
           (double)rate);
    size_t done = 0;
    for (size_t i = 0; i < sizeof(checkpoints) / sizeof(checkpoints[0]); i++) {
        if (checkpoints[i] > s->long_steps)
            break;
        train_steps(fast, &fast_feed, checkpoints[i] - done, BATCH, NET_BATCH_STATS, rate,
                    "at rate 0.1");
        train_steps(slow, &slow_feed, checkpoints[i] - done, BATCH, NET_BATCH_STATS, rate,
                    "at rate 0.01");
        done = checkpoints[i];
        printf("    %5zu        %8.1f          %8.1f        %8.1f\n", done,
               accuracy(fast, &test, NET_BATCH_STATS), accuracy(fast, &test, NET_RUNNING_STATS),
               accuracy(slow, &test, NET_RUNNING_STATS));
        fflush(stdout);
    }
    hash = net_hash(slow, net_hash(fast, hash));
    net_destroy(fast);
    net_destroy(slow);
    printf("\n"
           "   Both networks have the same weights; they differ only in the weight that the\n"
           "   newest batch has in the running statistics (PyTorch's momentum 0.1 and 0.01;\n"
           "   in Keras 0.9 and 0.99). These start at mean 0 and variance 1 and need some\n"
           "   3/rate steps to forget that. Until then inference mode normalizes with the\n"
           "   wrong numbers: train on or raise the rate.\n\n");
    return hash;
}

static void batch_sizes(net *n) {
    static const size_t sizes[] = {1, 2, 4, 8, 32, 128};
    printf("4. What does the batch size do to a trained network?\n\n"
           "    images per call   training mode   inference mode\n");
    for (size_t i = 0; i < sizeof(sizes) / sizeof(sizes[0]); i++)
        printf("    %9zu         %8.1f        %8.1f\n", sizes[i],
               accuracy_in_batches(n, &test, NET_BATCH_STATS, sizes[i]),
               accuracy_in_batches(n, &test, NET_RUNNING_STATS, sizes[i]));
    printf("\n"
           "   In training mode an image's result depends on the images next to it. In the\n"
           "   last layer one image is one value per channel: its mean is itself, so batch\n"
           "   norm returns beta for any image, and a batch of one is guessing. With large\n"
           "   batches training mode may even look better, as it adapts to new handwriting.\n"
           "   Inference mode never looks at the batch.\n\n");
}

static uint64_t fine_tune(const settings *s, const net *trained, uint64_t hash) {
    static const size_t sizes[] = {1, 2, 8, 32};
    net *before = net_clone(trained);
    printf("5. When to freeze the statistics? Fine-tuning on %zu mirrored images\n\n"
           "    images per step   batch statistics   frozen statistics   (before: %.1f)\n",
           s->fine_tune_images, accuracy(before, &mirrored_test, NET_RUNNING_STATS));
    net_destroy(before);
    for (size_t i = 0; i < sizeof(sizes) / sizeof(sizes[0]); i++) {
        double result[2];
        for (int frozen = 0; frozen < 2; frozen++) {
            net *n = net_clone(trained);
            feed f = {.set = mirrored_train, .random = s->seed};
            train_steps(n, &f, s->fine_tune_images / sizes[i], sizes[i],
                        frozen ? NET_RUNNING_STATS : NET_BATCH_STATS, 0.0001f * (float)sizes[i],
                        "on mirrored images");
            result[frozen] = accuracy(n, &mirrored_test, NET_RUNNING_STATS);
            hash = net_hash(n, hash);
            net_destroy(n);
        }
        printf("    %9zu           %8.1f            %8.1f\n", sizes[i], result[0], result[1]);
        fflush(stdout);
    }
    printf("\n"
           "   Accuracy in inference mode on the mirrored test images; learning rate 0.0001\n"
           "   per image of the batch. Statistics of one or two images are noise, and\n"
           "   training on them teaches nothing or worse. Frozen ones (Keras trainable=False,\n"
           "   PyTorch eval) stay as they were learned from larger batches. From a batch of 8\n"
           "   on, both work, and which one is ahead differs from seed to seed.\n\n");
    return hash;
}

static void fold(const net *trained) {
    net *normal = net_clone(trained), *folded = net_clone(trained);
    net_fold(folded);
    size_t same = 0;
    double difference = 0;
    for (size_t i = 0; i < test.count; i++) {
        const float *a = net_predict(normal, test.at + i, 1, NET_RUNNING_STATS);
        const float *b = net_predict(folded, test.at + i, 1, NET_RUNNING_STATS);
        same += best_class(a) == best_class(b);
        for (size_t k = 0; k < NET_CLASSES; k++)
            difference = fmax(difference, fabs((double)a[k] - (double)b[k]));
    }
    printf("6. What does batch norm cost when the network is deployed? Nothing, once folded\n\n"
           "    test accuracy with batch norm   %.1f\n"
           "    folded into the convolutions    %.1f\n"
           "    same prediction on              %zu of %zu test images\n"
           "    largest difference of a logit   %.1e\n\n"
           "   The running statistics are constants, so they fit into the weights of the\n"
           "   convolution before; the tiny difference is rounding.\n\n",
           accuracy(normal, &test, NET_RUNNING_STATS), accuracy(folded, &test, NET_RUNNING_STATS),
           same, test.count, difference);
    net_destroy(normal);
    net_destroy(folded);
}

static void report(const settings *s) {
    best_rate best[2] = {{0, 0}, {0, 0}};
    net *trained;
    uint64_t hash = compare_rates(s, best, NET_HASH);
    hash = compare_best(s, best, &trained, hash);
    hash = warm_up(s, best[1].rate, hash);
    batch_sizes(trained);
    hash = fine_tune(s, trained, hash);
    fold(trained);
    net_destroy(trained);
    printf("hash of all weights: %016llx (the same on every kernel set and for any --threads)\n",
           (unsigned long long)hash);
}

/* ---------------------------------------------------------------------------------------------- */
/* --verify-sets                                                                                  */

/* Trains a little in every way that this program knows. */
static uint64_t short_training(const bnorm_exec *exec) {
    uint64_t hash = NET_HASH;
    for (int batch_norm = 0; batch_norm < 2; batch_norm++) {
        net *n = net_create(batch_norm, 0.1, 1, exec);
        feed f = {.set = train, .random = 1};
        train_steps(n, &f, 8, BATCH, NET_BATCH_STATS, 0.01f, "to compare");
        train_steps(n, &f, 8, 3, NET_RUNNING_STATS, 0.01f, "to compare");
        hash = net_hash(n, hash);
        if (batch_norm) {
            net_fold(n);
            hash = net_hash(n, hash);
        }
        net_destroy(n);
    }
    return hash;
}

static int verify_sets(void) {
    size_t threads[] = {1, 3}, sets = 0;
    uint64_t expected = 0;
    int failed = 0;
    const bnorm_isa *isa;
    for (; (isa = bnorm_isa_at(sets)); sets++)
        for (size_t t = 0; t < sizeof(threads) / sizeof(threads[0]); t++) {
            const bnorm_exec exec = {
                .parallel = threads_run, .pool = &threads[t], .isa = isa, .threads = threads[t]};
            const uint64_t hash = short_training(&exec);
            if (sets == 0 && t == 0)
                expected = hash;
            printf("%-8s %zu thread%s  %016llx  %s\n", bnorm_isa_name(isa), threads[t],
                   threads[t] == 1 ? " " : "s", (unsigned long long)hash,
                   hash == expected ? "ok" : "DIFFERENT");
            failed |= hash != expected;
        }
    if (failed)
        fprintf(stderr, "digits: kernel sets or threads give different weights; run the tests to "
                        "find the kernel\n");
    return failed ? EXIT_FAILURE : EXIT_SUCCESS;
}

/* ---------------------------------------------------------------------------------------------- */

static const char usage[] =
    "usage: digits [--quick] [--seed N] [--threads N]\n"
    "       digits --verify-sets\n"
    "  --quick        a few steps and images, for emulators; the accuracies mean nothing then\n"
    "  --seed N       other initial weights and order of images (1)\n"
    "  --threads N    1 to 64; the numbers stay the same (1)\n"
    "  --verify-sets  train briefly with every kernel set of this CPU and compare the weights\n"
    "BNORM_ISA=scalar in the environment chooses another kernel set; the numbers stay the same.\n";

int main(int argc, char **argv) {
    size_t threads = 1;
    settings s = {
        .seed = 1, .short_steps = 6 * EPOCH, .long_steps = 18 * EPOCH, .fine_tune_images = 512};
    load_images();
    for (int i = 1; i < argc; i++) {
        char *end = NULL;
        if (strcmp(argv[i], "--verify-sets") == 0 && argc == 2)
            return verify_sets();
        if (strcmp(argv[i], "--help") == 0)
            return fputs(usage, stdout) < 0;
        if (strcmp(argv[i], "--quick") == 0) {
            s.short_steps = s.long_steps = 5;
            s.fine_tune_images = 32;
            printf("--quick: the accuracies below mean nothing\n\n");
            train.count = validation.count = test.count = mirrored_test.count = 64;
        } else if (strcmp(argv[i], "--seed") == 0 && i + 1 < argc) {
            s.seed = strtoull(argv[++i], &end, 10);
        } else if (strcmp(argv[i], "--threads") == 0 && i + 1 < argc) {
            threads = strtoul(argv[++i], &end, 10);
        } else {
            end = argv[i];
        }
        if ((end && *end) || threads < 1 || threads > THREADS_MAX) {
            fprintf(stderr, "digits: %s is not understood\n%s", argv[i], usage);
            return 2;
        }
    }
    if (threads > 1)
        s.exec = (bnorm_exec){.parallel = threads_run, .pool = &threads, .threads = threads};

    printf(
        "bnorm %s, kernel set %s: batch norm on %d real handwritten digits\n"
        "Data: 8x8 images; %d to train on, %d for validation, %d for the test (other writers).\n"
        "Network: 8 convolutions 3x3 of 16 channels, each with batch norm (or bias) and ReLU, and\n"
        "a linear layer. SGD with momentum 0.9, batches of %d, the same initial weights for "
        "all.\n\n",
        bnorm_version(), bnorm_isa_name(NULL), IMAGES, TRAIN, VALIDATION, TEST, BATCH);
    report(&s);
    return EXIT_SUCCESS;
}
