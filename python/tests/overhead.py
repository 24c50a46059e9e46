# SPDX-License-Identifier: MIT
"""What a call costs beside the work: CPU time per call on 256 elements, the least of ten runs. Also of PyTorch, where it
is installed."""
import copy
import time

import numpy as np

import bnorm

CALLS_PER_RUN = 2000
RNG = np.random.default_rng(1)
x = RNG.standard_normal((2, 8, 4, 4)).astype(np.float32)
gamma, beta, mean, var = np.ones(8, np.float32), np.zeros(8, np.float32), np.zeros(8, np.float32), np.ones(8, np.float32)
saved = bnorm.batch_norm_train(x, gamma, beta, axis=1)[1]

CALLS = {
    "batch_norm": lambda: bnorm.batch_norm(x, mean, var, gamma, beta, axis=1),
    "batch_norm_train": lambda: bnorm.batch_norm_train(x, gamma, beta, axis=1),
    "batch_norm_backward": lambda: bnorm.batch_norm_backward(x, x, saved, gamma, beta, axis=1),
    "NumPy's x*2": lambda: x * 2,
}
try:
    import torch
    import bnorm.torch

    torch.set_num_threads(1)
    t = torch.from_numpy(x).requires_grad_()
    for name, bn in ("PyTorch's", torch.nn.BatchNorm2d(8)), ("bnorm's", bnorm.torch.BatchNorm2d(8)):
        evaluation, training = bn, copy.deepcopy(bn).train()
        evaluation.eval().requires_grad_(False)
        CALLS[f"{name} evaluation"] = lambda bn=evaluation: bn(t.detach())
        CALLS[f"{name} training, forward"] = lambda bn=training: bn(t)
        CALLS[f"{name} forward and backward"] = lambda bn=training: bn(t).sum().backward()
except ImportError:
    pass
for name, call in CALLS.items():
    times = []
    for _ in range(10):
        began = time.process_time()
        for _ in range(CALLS_PER_RUN):
            call()
        times.append((time.process_time() - began) / CALLS_PER_RUN * 1e6)
    print(f"{name:30} {min(times):6.2f} us")
