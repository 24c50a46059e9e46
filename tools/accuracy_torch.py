#!/usr/bin/python3
# SPDX-License-Identifier: MIT
"""PyTorch's side of the accuracy study.

Reads one problem per line on standard input: file, layout (nhwc or nchw), n, c, hw, eps. The file
holds float32 arrays in this order: x, dy (given), y, dx (n*c*hw each), mean, variance, invstd,
dgamma, dbeta (c each); all but x and dy are filled in. Answers "ok" on standard output.

The interpreter is the system's, because Debian's python3-torch is installed for that one.
"""

import sys

import torch


def solve(path, layout, n, c, hw, eps):
    big = n * c * hw
    data = torch.from_file(path, shared=True, size=4 * big + 5 * c, dtype=torch.float32)
    x, dy, y, dx = data[: 4 * big].view(4, big)
    mean, var, invstd, dgamma, dbeta = data[4 * big :].view(5, c)

    def tensor(flat):
        # Logically always (n, c, hw, 1); NHWC data is in PyTorch's channels_last memory format.
        if layout == "nhwc":
            return flat.view(n, hw, 1, c).permute(0, 3, 1, 2)
        return flat.view(n, c, hw, 1)

    weight, bias = torch.ones(c), torch.zeros(c)
    running_mean, running_var = torch.zeros(c), torch.zeros(c)
    out, save_mean, save_invstd = torch.native_batch_norm(
        tensor(x), weight, bias, running_mean, running_var, True, 1.0, eps
    )
    grads = torch.ops.aten.native_batch_norm_backward(
        tensor(dy), tensor(x), weight, None, None, save_mean, save_invstd, True, eps,
        [True, True, True],
    )
    tensor(y).copy_(out)
    tensor(dx).copy_(grads[0])
    mean.copy_(save_mean)
    var.copy_(running_var)
    invstd.copy_(save_invstd)
    dgamma.copy_(grads[1])
    dbeta.copy_(grads[2])


def main():
    print("PyTorch", torch.__version__, flush=True)
    for line in sys.stdin:
        path, layout, n, c, hw, eps = line.split("\t")
        solve(path, layout, int(n), int(c), int(hw), float(eps))
        print("ok", flush=True)


main()
