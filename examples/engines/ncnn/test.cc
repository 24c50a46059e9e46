/* SPDX-License-Identifier: MIT
 *
 * bnorm's layer for ncnn on every kind of blob, against the formula in double; then in a net, beside
 * ncnn's own layer. */
#include "bnorm_ncnn.h"
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <datareader.h>
#include <net.h>

static int checks, failures;

static void expect(bool ok, const char *what, const ncnn::Mat &blob, int pack, int bits, int n) {
    checks++;
    if (ok)
        return;
    failures++;
    std::printf("FAIL  %s: %d axes (%d, %d, %d, %d), packs of %d, %d bits, %d images\n", what,
                blob.dims, blob.w, blob.h, blob.d, blob.c, pack, bits, n);
}

static float uniform() {
    return (float)std::rand() / (float)RAND_MAX * 2 - 1;
}

static ncnn::Mat blob_of(int dims, int channels) {
    ncnn::Mat blob;
    if (dims == 1)
        blob.create(channels);
    else if (dims == 2)
        blob.create(7, channels);
    else if (dims == 3 && channels == 128)
        blob.create(39, 41, channels); /* enough work to be shared among threads */
    else if (dims == 3)
        blob.create(5, 3, channels);
    else
        blob.create(3, 5, 3, channels);
    return blob;
}

static int positions(const ncnn::Mat &blob) {
    return blob.dims == 1 ? 1 : blob.dims == 2 ? blob.w : blob.w * blob.h * blob.d;
}

/* Where position p of channel c is in a blob that is not packed. */
static float &at(ncnn::Mat &blob, int c, int p) {
    float *data = blob;
    return blob.dims == 1   ? data[c]
           : blob.dims == 2 ? blob.row(c)[p]
                            : ((float *)blob.channel(c))[p];
}

struct model {
    int channels;
    std::vector<float> values; /* gamma, mean, variance, beta */
    ncnn::Mat mats[4];

    explicit model(int c) : channels(c), values(4 * c) {
        for (int i = 0; i < 4 * c; i++)
            values[i] = i / c == 2 ? std::fabs(uniform()) + 0.01f : uniform();
        for (int i = 0; i < 4; i++)
            mats[i] = ncnn::Mat(c, &values[i * c]);
    }

    double expected(float x, int c, bool relu) const {
        const double v = ((double)x - values[channels + c]) /
                             std::sqrt(values[2 * channels + c] + 1e-3) * values[c] +
                         values[3 * channels + c];
        return relu && v < 0 ? 0 : v;
    }
};

/* One kind of blob, straight into the layer. */
static void test_layer(int dims, int channels, int pack, int bits, int n, int threads) {
    const model m(channels);
    ncnn::Option option;
    option.num_threads = threads;
    option.use_bf16_storage = bits == 16;
    ncnn::ParamDict params;
    params.set(0, channels);
    params.set(1, 1e-3f);
    params.set(9, n % 2);
    bnorm_ncnn::BatchNorm layer;
    if (layer.load_param(params) || layer.load_model(ncnn::ModelBinFromMatArray(m.mats)))
        std::abort();

    std::vector<ncnn::Mat> images(n);
    ncnn::Mat batch;
    for (int i = 0; i < n; i++) {
        images[i] = blob_of(dims, channels);
        for (int c = 0; c < channels; c++)
            for (int p = 0; p < positions(images[i]); p++)
                at(images[i], c, p) = (float)(int)(uniform() * 100) / 32; /* exact in bfloat16 */
        ncnn::Mat packed, stored;
        ncnn::convert_packing(images[i], packed, pack, option);
        if (bits == 16)
            ncnn::cast_float32_to_bfloat16(packed, stored, option);
        else
            stored = packed.clone();
        if (n == 1)
            batch = stored;
#if NCNN_BATCH
        else {
            if (i == 0)
                batch.create_like(stored, n);
            ncnn::Mat place = batch.batch(i);
            std::memcpy(place.data, stored.data, stored.total() * stored.elemsize);
        }
#endif
    }
    expect(layer.forward_inplace(batch, option) == 0, "status", images[0], pack, bits, n);

    bool right = true;
    for (int i = 0; i < n; i++) {
        ncnn::Mat stored = batch, wide, y;
#if NCNN_BATCH
        if (n > 1)
            stored = batch.batch(i);
#endif
        if (bits == 16)
            ncnn::cast_bfloat16_to_float32(stored, wide, option);
        else
            wide = stored;
        ncnn::convert_packing(wide, y, 1, option);
        for (int c = 0; c < channels; c++)
            for (int p = 0; p < positions(y); p++) {
                const double wanted = m.expected(at(images[i], c, p), c, n % 2);
                const double error = std::fabs(at(y, c, p) - wanted);
                right = right && error <= std::fabs(wanted) * (bits == 16 ? 1.0 / 256 : 0) + 4e-6;
            }
    }
    expect(right, "values", images[0], pack, bits, n);
}

/* A net of one batch norm, from text and memory, with ncnn's layer or with bnorm's. */
static ncnn::Mat run_net(const model &m, const ncnn::Mat &in, bool bf16, bool with_bnorm) {
    ncnn::Net net;
    net.opt.use_bf16_storage = bf16;
    if (with_bnorm)
        net.register_custom_layer("BatchNorm", bnorm_ncnn::create);
    char text[128];
    std::snprintf(text, sizeof text,
                  "7767517\n2 2\nInput in 0 1 in\nBatchNorm bn 1 1 in out 0=%d 1=0.001\n",
                  m.channels);
    const unsigned char *bytes = (const unsigned char *)m.values.data();
    ncnn::DataReaderFromMemory reader(bytes);
    ncnn::Mat out;
    if (net.load_param_mem(text) || net.load_model(reader))
        std::abort();
    ncnn::Extractor extractor = net.create_extractor();
    if (extractor.input("in", in) || extractor.extract("out", out))
        std::abort();
    return out;
}

static void test_net(int dims, int channels, bool bf16) {
    const model m(channels);
    ncnn::Mat in = blob_of(dims, channels);
    for (int c = 0; c < channels; c++)
        for (int p = 0; p < positions(in); p++)
            at(in, c, p) = uniform() * 3;
    ncnn::Mat theirs = run_net(m, in, bf16, false), ours = run_net(m, in, bf16, true);
    bool right = ours.dims == theirs.dims;
    for (int c = 0; right && c < channels; c++)
        for (int p = 0; p < positions(in); p++) {
            const float wanted = at(theirs, c, p);
            right = right && std::fabs(at(ours, c, p) - wanted) <=
                                 std::fabs(wanted) * (bf16 ? 1.0f / 128 : 0) + 4e-6f;
        }
    expect(right, "as ncnn's own, in a net", in, 1, bf16 ? 16 : 32, 1);
}

int main() {
    for (int dims = 1; dims <= 4; dims++)
        for (int channels : {16, 48, 128})
            for (int pack : {1, 4, 8, 16})
                for (int bits : {32, 16})
#if NCNN_BATCH
                    for (int n : {1, 2, 3})
#else
                    for (int n : {1})
#endif
                        for (int threads : {1, 3})
                            test_layer(dims, channels, pack, bits, n, threads);
    for (int dims = 1; dims <= 4; dims++)
        for (int channels : {13, 12, 24, 32})
            for (bool bf16 : {false, true})
                test_net(dims, channels, bf16);
    std::printf("bnorm's layer for ncnn: %d checks, %d failed\n", checks, failures);
    return failures > 0;
}
