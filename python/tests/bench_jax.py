# SPDX-License-Identifier: MIT
"""Batch norm layers in JAX, as XLA compiles the formula and by bnorm.jax, call by call in turn.

    python bench_jax.py [--threads 1] [--calls 15] [--shapes 8x56x56x64,...] [--types f32,bf16] [--markdown FILE]

A call is training, forward and backward: y, dx, dgamma and dbeta of x and dy, in one jit. The formula is Flax's, with
var = mean(x*x) - mean*mean in float. Shapes are N x H x W x C; the layout nchw has C moved to the front. What is
printed is XLA's time, the median of the calls, and the median of the quotients of neighbouring calls. Of one thread it
is the processor's time, which others on the machine disturb less."""
import argparse
import os
import platform
import statistics
import time


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--calls", type=int, default=15)
    parser.add_argument("--shapes", default="8x112x112x64,8x56x56x64,8x56x56x256,8x28x28x512,8x14x14x1024,8x7x7x2048,1024x256")
    parser.add_argument("--types", default="f32,bf16")
    parser.add_argument("--markdown")
    options = parser.parse_args()

    # XLA has as many threads as it may use processors when it starts.
    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:options.threads])
    import jax
    import jax.numpy as jnp

    import bnorm
    import bnorm.jax

    def formula(x, gamma, beta, axis, relu):
        others = tuple(i for i in range(x.ndim) if i != axis % x.ndim)
        v = x.astype(jnp.float32)
        mean, square = v.mean(others, keepdims=True), (v * v).mean(others, keepdims=True)
        scale = jax.lax.rsqrt(jnp.maximum(square - mean * mean, 0) + 1e-5) * gamma.reshape(mean.shape)
        y = (v - mean) * scale + beta.reshape(mean.shape)
        return (jax.nn.relu(y) if relu else y).astype(x.dtype)

    def by_bnorm(x, gamma, beta, axis, relu):
        return bnorm.jax.batch_norm_train(x, gamma, beta, axis=axis, activation="relu" if relu else None)[0]

    def step(batch_norm, axis, relu):
        def call(x, gamma, beta, dy):
            y, back = jax.vjp(lambda *a: batch_norm(*a, axis, relu), x, gamma, beta)
            return y, *back(dy)
        return jax.jit(call)

    clock = time.process_time if options.threads == 1 else time.perf_counter
    rows = [f"bnorm {bnorm.__version__} ({bnorm.isa()}), JAX {jax.__version__}, Python {platform.python_version()}; "
            f"threads: {options.threads}", "", "| shape | layout | type | XLA, ms | times as fast | with ReLU |",
            "|---|---|---|---|---|---|"]
    print("\n".join(rows), flush=True)
    quotients = {}
    for shape in options.shapes.split(","):
        sizes = tuple(map(int, shape.split("x")))
        for layout in ("nhwc", "nchw") if len(sizes) > 2 else ("nc",):
            for kind in options.types.split(","):
                x, dy = jax.random.normal(jax.random.key(1), (2, *sizes), jnp.bfloat16 if kind == "bf16" else jnp.float32)
                if layout == "nchw":
                    x, dy = jnp.moveaxis(x, -1, 1), jnp.moveaxis(dy, -1, 1)
                gamma, beta = jnp.ones(sizes[-1]), jnp.zeros(sizes[-1])
                results = []
                for relu in (False, True):
                    calls = [step(b, 1 if layout == "nchw" else -1, relu) for b in (formula, by_bnorm)]
                    times = [[], []]
                    for i in range(options.calls + 2):
                        # Neither always goes first.
                        for which in ((0, 1), (1, 0))[i % 2]:
                            began = clock()
                            jax.block_until_ready(calls[which](x, gamma, beta, dy))
                            if i >= 2:
                                times[which].append(clock() - began)
                    results.append((statistics.median(times[0]), statistics.median(a / b for a, b in zip(*times))))
                    quotients.setdefault((layout, kind), []).append(results[-1][1])
                rows.append(f"| {shape} | {layout} | {kind} | {results[0][0] * 1e3:.1f} | {results[0][1]:.2f} | "
                            f"{results[1][1]:.2f} |")
                print(rows[-1], flush=True)
    rows += ["", "Geometric means: " + ", ".join(f"{layout} {kind} {statistics.geometric_mean(q):.2f}"
                                                  for (layout, kind), q in quotients.items())]
    print("\n".join(rows[-2:]))
    if options.markdown:
        with open(options.markdown, "w", encoding="utf-8") as out:
            out.write("\n".join(rows) + "\n")


main()
