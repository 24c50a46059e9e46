/* SPDX-License-Identifier: MIT
 *
 * The functions of bnorm.h that have no tensors, and pieces that do not fit together. */
#include "fuzz.h"

#define BIT(status) (1u << (status))

/* Arrays of exactly their size, some of which may lie where others do. */
enum { MOST = 16 };
struct arrays {
    float *at[MOST];
    unsigned char *before[MOST]; /* of arrays that have memory of their own */
    size_t count[MOST];
};

static uint32_t begin(struct bytes *in) {
    return 1 + (uint32_t)pick(in, 256);
}

static float *new_array(struct bytes *in, struct arrays *a, size_t i, size_t count, int positive,
                        uint32_t *state) {
    a->count[i] = count;
    a->at[i] = malloc(count * sizeof(float));
    a->before[i] = malloc(count * sizeof(float));
    fill_elements(a->at[i], count, BNORM_F32, (enum values)pick(in, VALUES_COUNT), state);
    for (size_t k = 0; positive && !is_wrong(in) && k < count; k++)
        a->at[i][k] = fabsf(a->at[i][k]);
    memcpy(a->before[i], a->at[i], count * sizeof(float));
    return a->at[i];
}

/* Frees all; none but `written`, a bit each, may have changed. */
static void end_arrays(struct arrays *a, unsigned written, const char *function) {
    for (size_t i = 0; i < MOST; i++) {
        if (a->at[i] && !(written >> i & 1) &&
            memcmp(a->at[i], a->before[i], a->count[i] * sizeof(float)) != 0)
            fail(function, "wrote where it must not");
        free(a->at[i]);
        free(a->before[i]);
    }
}

static double decode_eps(struct bytes *in) {
    static const double values[] = {1e-5, 1e-3, 0, 1, 1e-300}, wrong[] = {-1e-300, NAN, INFINITY};
    return is_wrong(in) ? PICK(in, wrong) : PICK(in, values);
}

static unsigned variance_faults(const float *var, size_t c, double eps) {
    if (!var)
        return BIT(BNORM_NULL_POINTER);
    if (!(eps >= 0 && eps <= 1e300))
        return BIT(BNORM_BAD_EPSILON);
    for (size_t i = 0; i < c; i++)
        if ((double)var[i] + eps < 0)
            return BIT(BNORM_BAD_VARIANCE);
    return 0;
}

static void check_value(const char *function, float value, double exact) {
    const float expected = (float)exact;
    if (expected == expected ? value != expected : value == value)
        fail(function, "another value");
}

/* var + eps = 0 gives 0, but a NaN stays. */
static double scale_of(double gamma, double var, double eps) {
    return var + eps == 0 && !isnan(gamma) ? 0 : gamma / sqrt(var + eps);
}

static const float *absent(struct bytes *in, const float *array) {
    return pick(in, 4) == 3 ? NULL : array;
}

static const float *missing(struct bytes *in, const float *array) {
    return is_wrong(in) ? NULL : array;
}

static void fuzz_fold(struct bytes *in) {
    struct arrays a = {{NULL}, {NULL}, {0}};
    uint32_t state = begin(in);
    size_t c = 1 + pick(in, 70);
    const double eps = decode_eps(in);
    for (size_t i = 0; i < 6; i++)
        new_array(in, &a, i, c, i == 3, &state);
    const float *const gamma = absent(in, a.at[0]), *const beta = absent(in, a.at[1]);
    const float *const var = missing(in, a.at[3]);
    const int no_shift = pick(in, 4) == 3;
    const float *const mean = no_shift && pick(in, 2) ? NULL : missing(in, a.at[2]);
    unsigned written = 0;
    struct verdict verdict = {variance_faults(var, c, eps), 0};
    /* In place of any input, or where they must not be. */
    const size_t to_scale = pick(in, 6), to_shift = no_shift ? MOST : pick(in, 6);
    float *const scale = is_wrong(in) ? NULL : a.at[to_scale];
    float *const shift = no_shift ? NULL : a.at[to_shift];
    if (scale && scale == shift)
        verdict.must |= BIT(BNORM_BAD_OVERLAP);
    if (!scale || (shift && !mean))
        verdict.must |= BIT(BNORM_NULL_POINTER);
    size_t passed = c;
    if (is_wrong(in)) {
        passed = pick(in, 2) ? SIZE_MAX / (1 + pick(in, 3)) : 0;
        verdict.must |= BIT(BNORM_BAD_SHAPE);
        verdict.may |= BIT(BNORM_BAD_OVERLAP);
    }
    double scales[70], shifts[70];
    for (size_t i = 0; i < c && !verdict.must; i++) {
        scales[i] = scale_of(gamma ? (double)gamma[i] : 1, (double)var[i], eps);
        shifts[i] =
            (beta ? (double)beta[i] : 0) - (shift ? (double)mean[i] : 0) * (double)(float)scales[i];
    }
    const bnorm_status status = bnorm_fold(passed, gamma, beta, mean, var, eps, scale, shift);
    check_status("bnorm_fold", status, verdict);
    for (size_t i = 0; i < c && !status; i++) {
        check_value("bnorm_fold, scale", scale[i], scales[i]);
        if (shift)
            check_value("bnorm_fold, shift", shift[i], shifts[i]);
    }
    if (!status)
        written = 1u << to_scale | (no_shift ? 0 : 1u << to_shift);
    end_arrays(&a, written, "bnorm_fold");
}

static void fuzz_statistics(struct bytes *in) {
    struct arrays a = {{NULL}, {NULL}, {0}};
    uint32_t state = begin(in);
    const size_t c = 1 + pick(in, 40), passed = is_wrong(in) ? pick(in, 2) * SIZE_MAX : c;
    const double eps = decode_eps(in);
    const float *const mean = absent(in, new_array(in, &a, 0, c, 0, &state));
    const float *const var = missing(in, new_array(in, &a, 1, c, 1, &state));
    struct verdict verdict = {passed == c ? 0 : BIT(BNORM_BAD_SHAPE), 0};
    size_t channel = 99, first = 0;
    if (!var)
        verdict.must |= BIT(BNORM_NULL_POINTER);
    if (!(eps >= 0 && eps <= 1e300))
        verdict.must |= BIT(BNORM_BAD_EPSILON);
    while (var && first < c && (!mean || isfinite(mean[first])) && isfinite(var[first]) &&
           (double)var[first] + eps >= 0)
        first++;
    const int bad_channel = !verdict.must && first < c;
    if (bad_channel)
        verdict.must |= BIT(BNORM_BAD_VARIANCE);
    const int wanted = pick(in, 4) != 3;
    check_status("bnorm_check_statistics",
                 bnorm_check_statistics(passed, mean, var, eps, wanted ? &channel : NULL), verdict);
    if (channel != (bad_channel && wanted ? first : 99))
        fail("bnorm_check_statistics", "another channel");
    end_arrays(&a, 0, "bnorm_check_statistics");
}

/* The output channel of a weight, by its index in each layout. */
static size_t channel_of(const bnorm_conv *conv, size_t groups, size_t at) {
    const size_t o = conv->out_channels, i = conv->in_channels, k = conv->kernel;
    switch (conv->layout) {
    case BNORM_CONV_OIHW: /* (O, I/groups, K) */
    case BNORM_CONV_OHWI:
        return at / (i / groups * k);
    case BNORM_CONV_HWIO: /* (K, I/groups, O) */
        return at % o;
    case BNORM_CONV_IOHW: /* (I, O/groups, K) */
        return at / k / (o / groups) / (i / groups) * (o / groups) + at / k % (o / groups);
    case BNORM_CONV_HWOI: /* (K, O, I) */
        break;
    }
    return at / i % o;
}

static void fuzz_fold_conv(struct bytes *in) {
    struct arrays a = {{NULL}, {NULL}, {0}};
    uint32_t state = begin(in);
    const size_t groups = 1 + pick(in, 4);
    bnorm_conv conv = {(bnorm_conv_layout)pick(in, 5), groups * (1 + pick(in, 9)),
                       groups * (1 + pick(in, 9)), 1 + pick(in, 9), groups};
    const bnorm_conv right = conv;
    const size_t c = conv.out_channels, count = conv.in_channels * c * conv.kernel / groups;
    const double eps = decode_eps(in);
    struct verdict verdict = {0, 0};
    if (conv.layout == BNORM_CONV_HWOI && groups > 1)
        verdict.must |= BIT(BNORM_UNSUPPORTED);
    if (groups == 1)
        conv.groups = pick(in, 2);
    if (is_wrong(in)) {
        size_t *const sizes[] = {&conv.out_channels, &conv.in_channels, &conv.kernel};
        const size_t which = pick(in, 5);
        if (which < 3)
            *sizes[which] = pick(in, 2) ? SIZE_MAX / 2 + 1 : 0;
        else if (which == 3)
            conv.groups = c * conv.in_channels + 1;
        else
            conv.layout = (bnorm_conv_layout)(5 + (int)pick(in, 2) * -6);
        verdict.must |= which == 4 ? BIT(BNORM_BAD_ENUM) : BIT(BNORM_BAD_SHAPE);
        if (conv.layout == BNORM_CONV_HWOI && conv.groups > 1)
            verdict.must |= BIT(BNORM_UNSUPPORTED);
    }
    for (size_t i = 0; i < 6; i++) /* gamma, beta, mean, var, bias, out_bias */
        new_array(in, &a, i, c, i == 3, &state);
    new_array(in, &a, 6, count, 0, &state);
    new_array(in, &a, 7, count, 0, &state);
    const float *const gamma = absent(in, a.at[0]), *const beta = absent(in, a.at[1]);
    const float *const mean = missing(in, a.at[2]), *const var = missing(in, a.at[3]);
    const float *const bias = absent(in, a.at[4]), *const weights = missing(in, a.at[6]);
    const size_t to_bias = pick(in, 6), to_weights = 6 + pick(in, 2);
    float *const out_bias = is_wrong(in) ? NULL : a.at[to_bias];
    float *const out_weights = is_wrong(in) ? NULL : a.at[to_weights];
    verdict.must |= variance_faults(var, c, eps);
    if (!mean || !weights || !out_bias || !out_weights)
        verdict.must |= BIT(BNORM_NULL_POINTER);
    double biases[64];
    double *const products = malloc(count * sizeof *products);
    for (size_t i = 0; i < c && !verdict.must; i++)
        biases[i] = fma((bias ? (double)bias[i] : 0) - (double)mean[i],
                        scale_of(gamma ? (double)gamma[i] : 1, (double)var[i], eps),
                        beta ? (double)beta[i] : 0);
    for (size_t i = 0; i < count && !verdict.must; i++) {
        const size_t o = channel_of(&right, groups, i);
        products[i] =
            (double)weights[i] * scale_of(gamma ? (double)gamma[o] : 1, (double)var[o], eps);
    }
    const bnorm_status status =
        bnorm_fold_conv(&conv, gamma, beta, mean, var, eps, weights, bias, out_weights, out_bias);
    check_status("bnorm_fold_conv", status, verdict);
    for (size_t i = 0; i < c && !status; i++)
        check_value("bnorm_fold_conv, bias", out_bias[i], biases[i]);
    for (size_t i = 0; i < count && !status; i++)
        check_value("bnorm_fold_conv, weights", out_weights[i], products[i]);
    free(products);
    end_arrays(&a, status ? 0 : 1u << to_bias | 1u << to_weights, "bnorm_fold_conv");
}

static void fuzz_running_update(struct bytes *in) {
    static const double rates[] = {0.1, 0, 1, 2}, counts[] = {1, 2, 1.5, 1000, 1e300};
    static const double wrong[] = {0, -1, NAN, INFINITY};
    struct arrays a = {{NULL}, {NULL}, {0}};
    uint32_t state = begin(in);
    const size_t c = 1 + pick(in, 70), passed = is_wrong(in) ? pick(in, 2) * SIZE_MAX : c;
    for (size_t i = 0; i < 6; i++) /* mean, var, running, new */
        new_array(in, &a, i, c, i == 1 || i == 3, &state);
    const int tracked = (int)pick(in, 4),
              elsewhere = (int)pick(in, 4) & (tracked | 3 * is_wrong(in));
    const float *const mean = tracked & 1 && !is_wrong(in) ? a.at[0] : NULL;
    const float *const var = tracked & 2 && !is_wrong(in) ? a.at[1] : NULL;
    const double n = is_wrong(in) ? PICK(in, wrong) : PICK(in, counts);
    bnorm_running running = {
        .mean = tracked & 1 ? a.at[2] : NULL,
        .var = tracked & 2 ? a.at[3] : NULL,
        .rate = is_wrong(in) ? (double)NAN : PICK(in, rates),
        .variance = (bnorm_variance)(pick(in, 2) + 2 * (size_t)is_wrong(in)),
        .new_mean = elsewhere & 1 ? a.at[4] : NULL,
        .new_var = elsewhere & 2 ? a.at[5] : NULL,
    };
    struct verdict verdict = {passed == c ? 0 : BIT(BNORM_BAD_SHAPE), 0};
    const int no_running = is_wrong(in);
    if (is_wrong(in) && mean) { /* outputs on inputs */
        running.mean = a.at[0];
        verdict.must |= running.new_mean ? 0 : BIT(BNORM_BAD_OVERLAP);
    }
    if (no_running || (elsewhere & ~tracked) || (tracked & 1 && !mean) || (tracked & 2 && !var))
        verdict.must |= BIT(BNORM_NULL_POINTER);
    if ((unsigned)running.variance > 1)
        verdict.must |= BIT(BNORM_BAD_ENUM);
    if (!isfinite(running.rate))
        *(tracked ? &verdict.must : &verdict.may) |= BIT(BNORM_BAD_RATE);
    if (!isfinite(n) || n < 1)
        verdict.must |= BIT(BNORM_BAD_PARAMETER);
    const bnorm_status status =
        bnorm_running_update(passed, mean, var, n, no_running ? NULL : &running);
    check_status("bnorm_running_update", status, verdict);
    const unsigned written =
        (tracked & 1 ? elsewhere & 1 ? 16u : 4u : 0) | (tracked & 2 ? elsewhere & 2 ? 32u : 8u : 0);
    end_arrays(&a, status ? 0 : written, "bnorm_running_update");
}

/* What takes anything. */
static void fuzz_sizes(struct bytes *in) {
    static const size_t sizes[] = {
        1, 0, 2, 3, 64, 1000, SIZE_MAX, SIZE_MAX / 2, SIZE_MAX / 16, 1u << 31};
    const bnorm_shape shape = {(bnorm_layout)pick(in, 3), (bnorm_dtype)pick(in, 6),
                               PICK(in, sizes),           PICK(in, sizes),
                               PICK(in, sizes),           pick(in, 4) ? 0 : pick(in, 33)};
    const size_t c = PICK(in, sizes), n = PICK(in, sizes);
    const bnorm_partial piece = {BNORM_OP_MOMENTS, c, 1, pick(in, 9), n, NULL, 0};
    if (shape.c * shape.n * shape.hw == 0 && bnorm_mask_size(&shape))
        fail("bnorm_mask_size", "not 0 without elements");
    for (size_t op = 0; op < 5; op++)
        if (bnorm_workspace((bnorm_op)op, &shape) &&
            (op > 2 || shape.dtype > BNORM_F16 || !bnorm_mask_size(&shape)))
            fail("bnorm_workspace", "not 0 for what would be refused");
    const size_t enough = bnorm_partial_size(c, n);
    if (c == 0 && enough)
        fail("bnorm_partial_size", "not 0 without channels");
    if (enough && piece.first + n > n && bnorm_partial_used(&piece) > enough)
        fail("bnorm_partial_used", "more than bnorm_partial_size");
    const char *const sentence = bnorm_strerror((bnorm_status)((int)pick(in, 256) - 100));
    if (!sentence || strlen(sentence) < 9 || sentence[strlen(sentence) - 1] != '.')
        fail("bnorm_strerror", "not a sentence");
    char name[12];
    const size_t length = pick(in, sizeof name);
    for (size_t i = 0; i < sizeof name; i++)
        name[i] = (char)(i < length ? pick(in, 256) : 0);
    const bnorm_isa *const found = bnorm_isa_find(name);
    if (found && strcmp(bnorm_isa_name(found), name) != 0)
        fail("bnorm_isa_find", "another set");
    const double momentum = (double)pick(in, 12) / 10;
    const size_t step = PICK(in, sizes);
    const bnorm_running presets[] = {bnorm_running_keras(NULL, NULL, momentum),
                                     bnorm_running_tensorflow(NULL, NULL, momentum),
                                     bnorm_running_pytorch(NULL, NULL, momentum),
                                     bnorm_running_onnx(NULL, NULL, momentum),
                                     bnorm_running_pytorch_cumulative(NULL, NULL, step),
                                     bnorm_running_caffe(NULL, NULL, momentum, step)};
    for (size_t i = 0; i < sizeof presets / sizeof *presets && momentum <= 1; i++)
        if (!(presets[i].rate >= 0 && presets[i].rate <= 1) || presets[i].new_mean)
            fail("bnorm_running_...", "a rate out of range");
}

void fuzz_parameters(struct bytes *in) {
    static void (*const all[])(struct bytes * in) = {fuzz_fold, fuzz_statistics, fuzz_fold_conv,
                                                     fuzz_running_update, fuzz_sizes};
    PICK(in, all)(in);
}

/* ---------------------------------------------------------------------------------------------- */
/* bnorm_describe, against a search through all that two strides can say */

enum { MOST_DIMS = 5, MOST_ARRAYS = 3 };

/* Axes as three: samples, which the first `images` axes without the channels' are, channels and
 * positions. Strides are those between neighbours along each. */
struct three {
    size_t n, c, p;
};

static struct three sizes_of(const bnorm_axes *axes, size_t channel, size_t images) {
    struct three size = {1, (size_t)axes->sizes[channel], 1};
    for (size_t d = 0, seen = 0; d < axes->ndim; d++)
        if (d != channel)
            *(seen++ < images ? &size.n : &size.p) *= (size_t)axes->sizes[d];
    return size;
}

static size_t address_in(const bnorm_axes *axes, size_t channel, size_t images,
                         const int64_t *strides, struct three at) {
    size_t address = at.c * (size_t)strides[channel], left = axes->ndim - 1;
    for (size_t d = axes->ndim; d-- > 0;) {
        if (d == channel)
            continue;
        size_t *const index = left-- > images ? &at.p : &at.n;
        address += *index % (size_t)axes->sizes[d] * (size_t)strides[d];
        *index /= (size_t)axes->sizes[d];
    }
    return address;
}

/* Whether every element has the address that these strides give. */
static int holds(const bnorm_axes *axes, size_t channel, size_t images, const int64_t *strides,
                 struct three step) {
    const struct three size = sizes_of(axes, channel, images);
    for (size_t n = 0; n < size.n; n++)
        for (size_t c = 0; c < size.c; c++)
            for (size_t p = 0; p < size.p; p++)
                if (address_in(axes, channel, images, strides, (struct three){n, c, p}) !=
                    n * step.n + c * step.c + p * step.p)
                    return 0;
    return 1;
}

/* Whether a tensor of this layout can say it: one stride is 1, or 0 where that is allowed. */
static int fits(const bnorm_axes *axes, size_t channel, size_t images, bnorm_layout layout,
                const bnorm_ndarray *a) {
    const struct three size = sizes_of(axes, channel, images);
    const struct three step = {
        address_in(axes, channel, images, a->strides, (struct three){size.n > 1, 0, 0}),
        address_in(axes, channel, images, a->strides, (struct three){0, size.c > 1, 0}),
        address_in(axes, channel, images, a->strides, (struct three){0, 0, size.p > 1}),
    };
    for (size_t d = 0; d < axes->ndim; d++)
        if (axes->sizes[d] > 1 && (a->strides[d] < 0 || (!a->strides[d] && !a->may_broadcast)))
            return 0;
    return (layout == BNORM_NHWC ? step.c : step.p) <= 1 &&
           holds(axes, channel, images, a->strides, step);
}

void fuzz_describe(struct bytes *in) {
    static const int64_t few[] = {1, 2, 3, 4};
    int64_t sizes[MOST_DIMS] = {0}, strides[MOST_ARRAYS][MOST_DIMS] = {{0}};
    bnorm_ndarray arrays[MOST_ARRAYS] = {{0}}, before[MOST_ARRAYS];
    const size_t ndim = 1 + pick(in, MOST_DIMS), count = 1 + pick(in, MOST_ARRAYS);
    const int axis = (int)pick(in, 2 * ndim) - (int)ndim;
    const size_t channel = (size_t)(axis < 0 ? axis + (int)ndim : axis);
    bnorm_axes axes = {ndim, sizes, axis, (bnorm_dtype)pick(in, 5), pick(in, 4) == 3};
    struct verdict verdict = {0, 0};
    int empty = 0;
    for (size_t d = 0; d < ndim; d++) {
        sizes[d] = PICK(in, few);
        if (is_wrong(in)) {
            sizes[d] = pick(in, 2) ? -1 : pick(in, 2) ? INT64_MAX : 0;
            empty |= sizes[d] == 0;
            if (sizes[d] || d == channel)
                verdict.must |= BIT(BNORM_BAD_SHAPE);
        }
    }
    for (size_t i = 0; i < count; i++) {
        bnorm_ndarray *const a = &arrays[i];
        a->data = &sizes;
        a->strides = strides[i];
        a->may_broadcast = i == 1 && pick(in, 2);
        /* Dense in some order of the axes, with gaps and what else there may be. */
        size_t order[MOST_DIMS];
        int64_t stride = 1;
        for (size_t d = 0; d < ndim; d++)
            order[d] = d;
        for (size_t d = ndim; d-- > 1;) {
            const size_t other = pick(in, d + 1), kept = order[d];
            order[d] = order[d - other];
            order[d - other] = kept;
        }
        for (size_t d = ndim; d-- > 0;) {
            strides[i][order[d]] = stride;
            if (sizes[order[d]] > 0 && sizes[order[d]] < 9)
                stride *= sizes[order[d]];
            stride += pick(in, 8) == 7;
            if (a->may_broadcast && pick(in, 3) == 2)
                strides[i][order[d]] = 0;
            if (is_wrong(in))
                strides[i][order[d]] = pick(in, 2) ? (int64_t)pick(in, 9) - 4 : INT64_MIN;
        }
    }
    if (is_wrong(in)) {
        axes.ndim = pick(in, 2) * (BNORM_MAX_DIMS + 1);
        verdict.must |= BIT(BNORM_BAD_SHAPE);
        axes.channel_axis = 0;
    } else if (is_wrong(in)) {
        axes.channel_axis = (int)ndim - (int)pick(in, 2) * (2 * (int)ndim + 1);
        verdict.must |= BIT(BNORM_BAD_PARAMETER);
    } else if (is_wrong(in)) {
        axes.dtype = (bnorm_dtype)5;
        verdict.must |= BIT(BNORM_BAD_ENUM);
    }
    /* The first cut, with as few images as will do. */
    size_t axes_left = ndim - 1, least = ndim > 1;
    size_t cut = SIZE_MAX;
    for (size_t images = least; !verdict.must && !empty && images <= axes_left && cut == SIZE_MAX;
         images++)
        for (int layout = 0; layout < 2 && cut == SIZE_MAX; layout++) {
            size_t good = 0;
            for (size_t i = 0; i < count; i++)
                good += (size_t)fits(&axes, channel, images, (bnorm_layout)layout, &arrays[i]);
            if (good == count)
                cut = images;
        }
    if (cut == SIZE_MAX && !verdict.must && !empty)
        *(axes.any_order ? &verdict.may : &verdict.must) |= BIT(BNORM_BAD_STRIDE);
    const bnorm_shape untouched = {.c = 77};
    bnorm_shape shape = untouched;
    size_t bad_array = 99, bad_axis = 99;
    memcpy(before, arrays, sizeof arrays);
    const bnorm_status status = bnorm_describe(&axes, arrays, count, &shape, &bad_array, &bad_axis);
    check_status("bnorm_describe", status, verdict);
    if (status) {
        if (memcmp(before, arrays, sizeof arrays) != 0 ||
            memcmp(&shape, &untouched, sizeof shape) != 0)
            fail("bnorm_describe", "wrote where it must not");
        if (bad_array >= count || bad_axis >= MOST_DIMS + BNORM_MAX_DIMS)
            fail("bnorm_describe", "blames nothing");
        return;
    }
    if (bad_array != 99 || bad_axis != 99)
        fail("bnorm_describe", "blames without an error");
    size_t total = 1;
    for (size_t d = 0; d < ndim; d++)
        total *= (size_t)sizes[d];
    if (shape.n * shape.c * shape.hw != total || shape.c != (size_t)sizes[channel] || shape.c_block)
        fail("bnorm_describe", "another shape");
    if (empty || axes.any_order || cut == SIZE_MAX)
        return;
    if (shape.n != sizes_of(&axes, channel, cut).n)
        fail("bnorm_describe", "more images than needed");
    for (size_t i = 0; i < count; i++) {
        const bnorm_ndarray *found = &arrays[i];
        const size_t run = found->in.run_stride, nhwc = shape.layout == BNORM_NHWC;
        const struct three step = {
            found->in.image_stride,
            nhwc ? !(found->broadcast & BNORM_BROADCAST_C) : run,
            nhwc ? run : !(found->broadcast & BNORM_BROADCAST_HW),
        };
        if (!holds(&axes, channel, cut, found->strides, step))
            fail("bnorm_describe", "other addresses");
    }
}

/* ---------------------------------------------------------------------------------------------- */
/* Pieces whose numbers, sizes or memory do not fit */

void fuzz_partials(struct bytes *in) {
    static const size_t counts[] = {1, 0, 2, 3, 4, 5, 7, 8, 13};
    uint32_t state = begin(in);
    const size_t c = 1 + pick(in, 40), hw = 1 + pick(in, 3),
                 first = pick(in, 256) * (1 + pick(in, 5));
    const size_t n[2] = {PICK(in, counts), PICK(in, counts)};
    const bnorm_op op = (bnorm_op)(2 * pick(in, 2));
    bnorm_partial pieces[2];
    double *nodes[2];
    size_t bytes[2];
    struct verdict verdict = {0, 0}, totals = {0, 0};
    for (size_t i = 0; i < 2; i++) {
        const size_t all = i ? n[1] : n[0] + n[1];
        pieces[i] = (bnorm_partial){op, c, hw, first + i * n[0], n[i], NULL, 0};
        bytes[i] = i ? bnorm_partial_used(&pieces[1]) : bnorm_partial_size(c, all);
        if (bytes[i] < bnorm_partial_used(&pieces[i]))
            fail("bnorm_partial_size", "less than what is used");
        nodes[i] = malloc(bytes[i]);
        fill_bytes(nodes[i], bytes[i], &state);
        pieces[i].nodes = nodes[i];
        pieces[i].size = bytes[i];
    }
    unsigned *const must = &verdict.must;
    const size_t which = pick(in, 2);
    bnorm_partial *const wrong = &pieces[which];
    if (is_wrong(in))
        switch (pick(in, 7)) {
        case 0:
            wrong->op = (bnorm_op)(1 + 2 * pick(in, 2));
            *must |= BIT(BNORM_BAD_ENUM);
            totals.must |= which ? 0 : BIT(BNORM_BAD_ENUM);
            break;
        case 1:
            wrong->c = pick(in, 2) ? wrong->c + 1 : 0;
            *must |= BIT(BNORM_BAD_SHAPE) | BIT(BNORM_WORKSPACE_TOO_SMALL);
            totals.may |= BIT(BNORM_BAD_SHAPE) | BIT(BNORM_WORKSPACE_TOO_SMALL);
            break;
        case 2:
            if (n[0] && n[1]) {
                wrong->hw += 1;
                *must |= BIT(BNORM_BAD_SHAPE);
            }
            break;
        case 3:
            wrong->first += 1 + pick(in, 9);
            *must |= BIT(BNORM_BAD_SHAPE) | BIT(BNORM_WORKSPACE_TOO_SMALL);
            totals.may |= BIT(BNORM_WORKSPACE_TOO_SMALL);
            break;
        case 4:
            wrong->first = SIZE_MAX - wrong->n + 1;
            if (wrong->n) {
                *must |= BIT(BNORM_BAD_SHAPE);
                totals.must |= which ? 0 : BIT(BNORM_BAD_SHAPE);
            } else {
                wrong->first = SIZE_MAX / 2;
                *must |= BIT(BNORM_BAD_SHAPE);
            }
            break;
        case 5:
            if (wrong->n) {
                wrong->nodes = NULL;
                *must |= BIT(BNORM_NULL_POINTER);
                totals.must |= which ? 0 : BIT(BNORM_NULL_POINTER);
            }
            break;
        default:
            if (n[1] && (which || bytes[0])) {
                wrong->size -= 1;
                *must |= BIT(BNORM_WORKSPACE_TOO_SMALL);
                totals.may |= BIT(BNORM_WORKSPACE_TOO_SMALL);
            }
            break;
        }
    unsigned char *const before = malloc(bytes[0]);
    if (bytes[0])
        memcpy(before, nodes[0], bytes[0]);
    /* Totals of the left one, which reads no more than it has. */
    double count = -1;
    double *const sums = malloc(2 * c * sizeof *sums);
    const bnorm_partial kept = pieces[0];
    if (!wrong->nodes || wrong->c == c) {
        const int absent = (int)pick(in, 8);
        const int on_nodes = is_wrong(in) && !(absent & 2) && n[0] && bytes[0];
        if (on_nodes)
            totals.must |= BIT(BNORM_BAD_OVERLAP);
        const bnorm_status status = bnorm_partial_total(
            &pieces[0], absent & 1 ? NULL : &count,
            absent & 2 ? NULL : (on_nodes ? nodes[0] : sums), absent & 4 ? NULL : sums + c);
        check_status("bnorm_partial_total", status, totals);
        if (!status && !(absent & 1) &&
            count != (double)pieces[0].n * (double)(n[0] ? pieces[0].hw : 0))
            fail("bnorm_partial_total", "another count");
    }
    if (is_wrong(in) && n[1] && pieces[1].nodes && bytes[0] >= bytes[1]) {
        pieces[1].nodes = nodes[0] + (bytes[0] - bytes[1]) / sizeof(double);
        *must |= BIT(BNORM_BAD_OVERLAP);
    }
    const bnorm_status status = bnorm_partial_merge(&pieces[0], &pieces[1]);
    check_status("bnorm_partial_merge", status, verdict);
    if (status ? !same_piece(&kept, &pieces[0]) ||
                     (bytes[0] && memcmp(before, nodes[0], bytes[0]) != 0)
               : pieces[0].n != n[0] + n[1])
        fail("bnorm_partial_merge", "another piece");
    free(before);
    free(sums);
    free(nodes[0]);
    free(nodes[1]);
}
