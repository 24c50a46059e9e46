/* SPDX-License-Identifier: MIT */
#include "data.h"

static const char rows[IMAGES][NET_PIXELS + 2] = {
#include "digits_data.inc"
};

static sample images[IMAGES], mirrored[IMAGES];
image_set train, validation, test, mirrored_train, mirrored_test;

static image_set images_from(const sample *first, size_t count) {
    image_set set = {.count = count};
    for (size_t i = 0; i < count; i++)
        set.at[i] = first + i;
    return set;
}

void load_images(void) {
    for (size_t i = 0; i < IMAGES; i++) {
        images[i].digit = mirrored[i].digit = rows[i][NET_PIXELS] - '0';
        for (size_t p = 0; p < NET_PIXELS; p++) {
            const char level = rows[i][p];
            const int grey = level <= '9' ? level - '0' : level - 'a' + 10;
            images[i].pixels[p] = (float)grey / 16;
            mirrored[i].pixels[p ^ (NET_SIDE - 1)] = (float)grey / 16;
        }
    }
    train = images_from(images, TRAIN);
    validation = images_from(images + TRAIN, VALIDATION);
    test = images_from(images + TRAIN + VALIDATION, TEST);
    mirrored_train = images_from(mirrored, TRAIN);
    mirrored_test = images_from(mirrored + TRAIN + VALIDATION, TEST);
}

const sample *const *next_batch(feed *f, size_t size) {
    if (f->next == 0 || f->next + size > f->set.count) {
        for (size_t i = f->set.count; i-- > 1;) {
            const size_t j = net_random(&f->random) % (i + 1);
            const sample *swap = f->set.at[i];
            f->set.at[i] = f->set.at[j];
            f->set.at[j] = swap;
        }
        f->next = 0;
    }
    f->next += size;
    return f->set.at + f->next - size;
}

int best_class(const float *logits) {
    int best = 0;
    for (int k = 1; k < NET_CLASSES; k++)
        if (logits[k] > logits[best])
            best = k;
    return best;
}

double accuracy_in_batches(net *n, const image_set *set, net_stats stats, size_t batch) {
    size_t right = 0;
    for (size_t first = 0; first < set->count; first += batch) {
        const size_t left = set->count - first, count = left < batch ? left : batch;
        const float *logits = net_predict(n, set->at + first, count, stats);
        for (size_t i = 0; i < count; i++)
            right += best_class(logits + i * NET_CLASSES) == set->at[first + i]->digit;
    }
    return 100.0 * (double)right / (double)set->count;
}

double accuracy(net *n, const image_set *set, net_stats stats) {
    return accuracy_in_batches(n, set, stats, BATCH);
}
