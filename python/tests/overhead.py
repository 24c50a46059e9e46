# SPDX-License-Identifier: MIT
"""What a call costs beside the work: CPU time per call on 256 elements, the least of ten runs."""
import time

import numpy as np

import bnorm

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
for name, call in CALLS.items():
    times = []
    for _ in range(10):
        began = time.process_time()
        for _ in range(10000):
            call()
        times.append((time.process_time() - began) / 10000 * 1e6)
    print(f"{name:20} {min(times):5.2f} us")
