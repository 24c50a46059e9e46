# SPDX-License-Identifier: MIT
"""Models of torchvision with PyTorch's batch norms and with bnorm's (bnorm.torch.convert), step by step in turn.

    python bench_torch.py [--short] [--models resnet50,densenet121,mobilenet_v2] [--images 8] [--size 128]
                          [--threads 1,2] [--steps 7] [--markdown FILE] [--json FILE]

A step is forward, backward and an optimizer's step in training, forward alone in evaluation. What is printed is
PyTorch's time, the median of the steps; the median of the quotients of neighbouring steps; and the quotient with batch
norms and activations that take no time at all, by PyTorch's profiler. Of one thread it is the processor's time. Steps
of over 3 s are done three times. glibc is told to keep memory that is freed: else it asks the system for the same
pages again and again, which on a virtual machine takes as long as the batch norms do. --short has all rows, with
images so small that the times mean nothing."""
import argparse
import copy
import itertools
import json
import os
import platform
import re
import statistics
import sys
import time

import torch
import torchvision
from torch.profiler import ProfilerActivity, profile

import bnorm
import bnorm.torch

KEEP_MEMORY = {"MALLOC_TRIM_THRESHOLD_": str(1 << 40), "MALLOC_MMAP_MAX_": "0"}


def step(model, optimizer, x, labels, training, bf16):
    # Of one thread the processor's time, which others on the machine disturb less.
    clock = time.process_time if torch.get_num_threads() == 1 else time.perf_counter
    began = clock()
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=bf16), torch.set_grad_enabled(training):
        out = model(x)
        if training:
            loss = torch.nn.functional.cross_entropy(out.float(), labels)
    if training:
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return clock() - began


def most(run):
    """How much faster a step would be without PyTorch's batch norms, ReLU and ReLU6."""
    with profile(activities=[ProfilerActivity.CPU]) as profiled:
        run()
    events = [(e.self_cpu_time_total, re.search("batch_norm|relu|clamp|threshold|hardtanh", e.key))
              for e in profiled.key_averages()]
    return 1 / (1 - sum(t for t, found in events if found) / sum(t for t, found in events))


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--short", action="store_true")
    parser.add_argument("--models", default="resnet50,densenet121,mobilenet_v2")
    parser.add_argument("--images", type=int, default=8)
    parser.add_argument("--size", type=int, default=128)
    parser.add_argument("--threads", default="1,2")
    parser.add_argument("--steps", type=int, default=7)
    parser.add_argument("--modes", default="train,eval")
    parser.add_argument("--layouts", default="nchw,nhwc")
    parser.add_argument("--types", default="f32,bf16")
    parser.add_argument("--markdown")
    parser.add_argument("--json")
    options = parser.parse_args()
    if any(os.environ.get(name) != value for name, value in KEEP_MEMORY.items()):
        os.execve(sys.executable, [sys.executable, *sys.argv], {**os.environ, **KEEP_MEMORY})
    if options.short:
        options.images, options.size, options.steps = 2, 32, 1

    about = {"bnorm": bnorm.__version__, "isa": bnorm.isa(), "torch": torch.__version__,
             "torchvision": torchvision.__version__, "python": platform.python_version(), "images": options.images,
             "size": options.size, "steps": options.steps}
    lines = [f"bnorm {bnorm.__version__} ({bnorm.isa()}), PyTorch {torch.__version__}, torchvision "
             f"{torchvision.__version__}, Python {platform.python_version()}; {options.images} images of "
             f"{options.size} x {options.size}", "",
             "| model | step | layout | type | threads | PyTorch, ms | times as fast | at most |",
             "|---|---|---|---|--:|--:|--:|--:|"]
    print("\n".join(lines), flush=True)
    rows = []
    cases = list(itertools.product(*(o.split(",") for o in (options.models, options.layouts, options.modes,
                                                            options.types, options.threads))))
    started = time.monotonic()
    built = None
    for name, layout, mode, kind, threads in cases:
        if built != (name, layout):
            built = name, layout
            torch.manual_seed(1)
            stock = torchvision.models.get_model(name, weights=None)
            form = torch.channels_last if layout == "nhwc" else torch.contiguous_format
            stock = stock.to(memory_format=form)
            x = torch.randn(options.images, 3, options.size, options.size).to(memory_format=form)
            labels = torch.randint(0, 1000, (options.images,))
            models = [stock, bnorm.torch.convert(copy.deepcopy(stock))]
            optimizers = [torch.optim.SGD(m.parameters(), 1e-3) for m in models]
        for m in models:
            m.train(mode == "train")
        torch.set_num_threads(int(threads))
        times, is_slow = [[], []], False
        for i in range(options.steps + 2):
            if is_slow and len(times[0]) == 3:
                break
            # Neither always goes first.
            for which in ((0, 1), (1, 0))[i % 2]:
                took = step(models[which], optimizers[which], x, labels, mode == "train", kind == "bf16")
                if i >= 2:
                    times[which].append(took)
                is_slow |= i < 2 and took > 3
        at_most = most(lambda: step(models[0], optimizers[0], x, labels, mode == "train", kind == "bf16"))
        quotient = statistics.median(a / b for a, b in zip(*times))
        rows.append({"model": name, "step": mode, "layout": layout, "type": kind, "threads": int(threads),
                     "quotient": quotient, "at_most": at_most, "torch": times[0], "bnorm": times[1]})
        lines.append(f"| {name} | {mode} | {layout} | {kind} | {threads} | {statistics.median(times[0]) * 1e3:.0f} | "
                     f"{quotient:.2f} | {at_most:.2f} |")
        print(lines[-1], flush=True)
        print(f"{len(rows)} of {len(cases)} in {time.monotonic() - started:.0f} s", file=sys.stderr, flush=True)
        # After each row, so that what is interrupted has something to show.
        if options.json:
            with open(options.json, "w", encoding="utf-8") as out:
                json.dump({**about, "rows": rows}, out, indent=1)
        if options.markdown:
            with open(options.markdown, "w", encoding="utf-8") as out:
                out.write("\n".join(lines) + "\n")
    lowest = min(rows, key=lambda row: row["quotient"])
    wanted = [row["quotient"] for row in rows if row["step"] == "train" and row["layout"] == "nchw"]
    print(f"\nLowest: {lowest['quotient']:.2f} ({', '.join(str(v) for v in list(lowest.values())[:5])})" +
          (f"; training NCHW, geometric mean: {statistics.geometric_mean(wanted):.2f}" if wanted else ""))


main()
