/* SPDX-License-Identifier: MIT
 *
 * ncnn's BatchNorm by bnorm, in place of its own:
 *
 *   net.register_custom_layer("BatchNorm", bnorm_ncnn::create); // before load_param
 *
 * It takes what ncnn keeps between layers as it is: 1, 4, 8 or 16 channels in a pack, padded planes,
 * bfloat16, several images. Parameter 9, activation_type, may be 1 as in ncnn's Convolution: ReLU. */
#if !defined(BNORM_NCNN_H)
#define BNORM_NCNN_H

#include <bnorm.h>
#include <layer.h>
#include <vector>

namespace bnorm_ncnn {

/* ncnn's threads are OpenMP's, as many as its options say. */
inline void on_openmp(void *threads, void (*task)(void *, size_t), void *arg, size_t count) {
    (void)threads;
#pragma omp parallel for schedule(dynamic) num_threads(*(const int *)threads)
    for (long i = 0; i < (long)count; i++)
        task(arg, (size_t)i);
}

class BatchNorm : public ncnn::Layer {
  public:
    BatchNorm() {
        one_blob_only = true;
        support_inplace = true;
        support_packing = true;
        support_bf16_storage = true;
#if NCNN_BATCH
        support_batch = true;
#endif
    }

    int load_param(const ncnn::ParamDict &params) override {
        channels = params.get(0, 0);
        eps = params.get(1, 0.f);
        activation = params.get(9, 0);
        return activation == 0 || activation == 1 ? 0 : -1;
    }

    int load_model(const ncnn::ModelBin &model) override {
        ncnn::Mat loaded[4]; /* gamma, mean, variance, beta */
        for (ncnn::Mat &values : loaded) {
            values = model.load(channels, 1);
            if (values.empty())
                return -100;
        }
        const float *gamma = loaded[0];
        mean = loaded[1];
        beta = loaded[3];
        scale.resize(channels);
        std::vector<float> variance((const float *)loaded[2], (const float *)loaded[2] + channels);
        for (float &v : variance)
            if (v + eps == 0)
                v = 1e-8f - eps; /* as ncnn, which takes 1e-4 for a deviation of 0 */
        return status(bnorm_fold(channels, gamma, nullptr, nullptr, variance.data(), eps,
                                 scale.data(), nullptr));
    }

    int forward_inplace(ncnn::Mat &blob, const ncnn::Option &option) const override {
        const size_t pack = blob.elempack, axis = blob.dims == 1   ? blob.w
                                                  : blob.dims == 2 ? blob.h
                                                                   : blob.c;
        if (axis * pack != (size_t)channels)
            return -1;
        bnorm_shape shape = {};
        shape.dtype = blob.elembits() == 16 ? BNORM_BF16 : BNORM_F32;
        shape.n = 1;
        shape.c = channels;
        bnorm_out y = {blob.data, 0, 0};
        if (blob.dims == 1) {
            shape.layout = BNORM_NHWC;
            shape.hw = 1;
        } else {
            shape.layout = BNORM_NCHW;
            shape.c_block = pack;
            shape.hw = blob.dims == 2 ? blob.w : (size_t)blob.w * blob.h * blob.d;
            y.run_stride = blob.dims == 2 ? 0 : blob.cstep * pack;
        }
#if NCNN_BATCH
        shape.n = blob.n;
        y.image_stride = blob.nstep * pack;
#endif
        bnorm_affine affine = {};
        affine.center = mean;
        affine.scale = scale.data();
        affine.shift = beta;
        affine.act.kind = activation == 1 ? BNORM_ACT_RELU : BNORM_ACT_IDENTITY;
        int threads = option.num_threads;
        bnorm_exec exec = {};
        exec.parallel = on_openmp;
        exec.pool = &threads;
        exec.threads = threads;
        return status(
            bnorm_apply(&shape, {y.data, y.run_stride, y.image_stride}, y, &affine, &exec));
    }

  private:
    static int status(bnorm_status status) {
        return status == BNORM_OK ? 0 : -1;
    }

    int channels = 0, activation = 0;
    float eps = 0;
    ncnn::Mat mean, beta;
    std::vector<float> scale;
};

inline ncnn::Layer *create(void *) {
    return new BatchNorm;
}

} // namespace bnorm_ncnn
#endif
