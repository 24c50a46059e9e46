// SPDX-License-Identifier: MIT
//
// PyTorch's batch norm through ATen, without autograd. Its CPU kernels have no out variant: every
// call allocates its results, which is part of what PyTorch's users pay. (The program tells malloc
// to keep freed memory, so that no call pays for fresh pages.) It has no fused modes either:
// relu_ and add_ follow in place, as torch.nn.ReLU(inplace=True) does.
#include "contender.h"

#ifdef HAVE_TORCH

#include <cstdio>
#include <cstring>
#include <exception>
#include <memory>
#include <tuple>

// PyTorch's headers are not written for these.
#pragma GCC diagnostic push
#pragma GCC diagnostic ignored "-Wpedantic"
#pragma GCC diagnostic ignored "-Wshadow"
#pragma GCC diagnostic ignored "-Wconversion"
#pragma GCC diagnostic ignored "-Wsign-conversion"
#pragma GCC diagnostic ignored "-Wunused-parameter"
#include <ATen/ATen.h>
#include <ATen/Parallel.h>
#include <c10/core/InferenceMode.h>
#if __has_include(<torch/version.h>)
#include <torch/version.h>
#else
#include <torch/csrc/api/include/torch/version.h>
#endif
#pragma GCC diagnostic pop

namespace {

struct torch_state {
    bench_problem problem;
    int relu, training;
    at::Tensor x, dy, gamma, beta, mean, var, invstd, running_mean, running_var;
    // Kept until the next call, so that the output can be compared and evicted.
    std::tuple<at::Tensor, at::Tensor, at::Tensor> results;
};

// PyTorch takes no pointers to const; inputs are only read.
at::Tensor wrap(const float *data, at::IntArrayRef sizes, at::IntArrayRef strides) {
    return at::from_blob(const_cast<float *>(data), sizes, strides, at::kFloat);
}

at::Tensor wrap_tensor(const peers_line *line, const float *data) {
    const auto n = static_cast<int64_t>(line->problem.n), c = static_cast<int64_t>(line->problem.c);
    const auto h = static_cast<int64_t>(line->height), w = static_cast<int64_t>(line->width);
    if (h * w == 1)
        return wrap(data, {n, c}, {c, 1});
    if (line->problem.layout == BNORM_NHWC)
        return wrap(data, {n, c, h, w}, {h * w * c, 1, w * c, c});
    return wrap(data, {n, c, h, w}, {c * h * w, h * w, w, 1});
}

// One variant: what PyTorch's users call. It has no blocks of channels.
size_t variants(const peers_line *line) {
    return line->problem.form.c_block ? 0 : 1;
}

void *create(const peers_line *line, size_t) {
    const bench_problem &p = line->problem;
    const auto c = static_cast<int64_t>(p.c);
    const c10::InferenceMode guard;
    auto state = std::make_unique<torch_state>();
    state->problem = p;
    state->relu = line->relu;
    state->training = line->training;
    state->x = wrap_tensor(line, p.x);
    state->dy = wrap_tensor(line, p.dy);
    state->gamma = wrap(p.gamma, {c}, {1});
    state->beta = wrap(p.beta, {c}, {1});
    state->mean = wrap(p.mean, {c}, {1});
    state->var = wrap(p.var, {c}, {1});
    state->invstd = wrap(p.invstd, {c}, {1});
    state->running_mean = wrap(line->result.running_mean, {c}, {1});
    state->running_var = wrap(line->result.running_var, {c}, {1});
    return state.release();
}

void compute(torch_state *s) {
    const c10::InferenceMode guard;
    const bench_problem &p = s->problem;
    s->results = {}; // frees the last call's memory
    if (p.op == BENCH_BACKWARD)
        s->results = at::native_batch_norm_backward(s->dy, s->x, s->gamma, {}, {}, s->mean,
                                                    s->invstd, true, p.eps, {true, true, true});
    else if (s->training)
        s->results = at::native_batch_norm(s->x, s->gamma, s->beta, s->running_mean, s->running_var,
                                           true, BENCH_RATE, p.eps);
    else
        s->results = at::native_batch_norm(s->x, s->gamma, s->beta, s->mean, s->var, false,
                                           BENCH_RATE, p.eps);
    if (p.op == BENCH_RESIDUAL_RELU)
        std::get<0>(s->results).add_(s->dy);
    if (s->relu)
        std::get<0>(s->results).relu_();
}

int run(void *state) {
    try {
        compute(static_cast<torch_state *>(state));
        return 0;
    } catch (const std::exception &e) {
        std::fprintf(stderr, "bnorm-peers: PyTorch says: %s\n", e.what());
        return 1;
    }
}

void collect(void *state, const peers_line *line) {
    const auto *s = static_cast<torch_state *>(state);
    const bench_problem &p = s->problem;
    const auto copy = [](float *to, const at::Tensor &from, size_t count) {
        std::memcpy(to, from.data_ptr<float>(), count * sizeof(float));
    };
    copy(line->result.tensor, std::get<0>(s->results), p.n * p.c * p.hw);
    if (s->training) {
        copy(line->result.mean, std::get<1>(s->results), p.c);
        copy(line->result.invstd, std::get<2>(s->results), p.c);
    } else if (p.op == BENCH_BACKWARD) {
        copy(line->result.dgamma, std::get<1>(s->results), p.c);
        copy(line->result.dbeta, std::get<2>(s->results), p.c);
    }
}

const float *output(void *state) {
    const at::Tensor &tensor = std::get<0>(static_cast<torch_state *>(state)->results);
    return tensor.defined() ? tensor.data_ptr<float>() : nullptr;
}

void destroy(void *state) {
    delete static_cast<torch_state *>(state);
}

} // namespace

extern "C" {

const contender peers_torch = {
    "PyTorch", contender::PEERS_OPENMP, variants, nullptr, create, run, collect, output, destroy};

const char *peers_torch_version(void) {
    return TORCH_VERSION;
}

void peers_torch_set_threads(size_t threads) {
    at::set_num_threads(static_cast<int>(threads));
}
}

#endif
