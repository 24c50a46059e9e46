# SPDX-License-Identifier: MIT
"""PyTorch: torch.nn.BatchNorm1d, 2d and 3d. Runs on Debian's Python, whose PyTorch it is."""
import numpy as np
import torch

import cases
from cases import Case
from exact import Rules
from judge import Judge

MOMENTA = (0.1, 0.9, 0.99, 0.0, 1.0)
MODES = ('train', 'infer', 'frozen')


def layer_of(case, data, dtype, tracked=True):
    layers = {2: torch.nn.BatchNorm1d, 3: torch.nn.BatchNorm1d, 4: torch.nn.BatchNorm2d, 5: torch.nn.BatchNorm3d}
    layer = layers[len(case.shape)](data.mean.size, eps=case.eps, momentum=case.momentum,
                                    affine=case.center or case.scale, track_running_stats=tracked)
    layer = layer.to(torch.float64 if dtype == np.float64 else torch.float32)
    with torch.no_grad():
        if layer.affine:
            layer.weight[:] = 1 if data.gamma is None else torch.from_numpy(data.gamma)
            layer.bias[:] = 0 if data.beta is None else torch.from_numpy(data.beta)
        if tracked:
            layer.running_mean[:] = torch.from_numpy(data.mean)
            layer.running_var[:] = torch.from_numpy(data.var)
    return layer.train(case.mode == 'train')


def run(case, data, dtype, tracked=True):
    layer = layer_of(case, data, dtype, tracked)
    size = case.shape[0]//max(case.groups, 1)  # of the chunks that a program calls the layer with
    means, variances = [], []
    for values in data.x:
        layer.zero_grad()
        x = torch.from_numpy(values.astype(dtype)).requires_grad_()
        y = torch.cat([layer(chunk) for chunk in torch.split(x, size)])
        if tracked:
            means.append(layer.running_mean.numpy().copy())
            variances.append(layer.running_var.numpy().copy())
    y.backward(torch.from_numpy(data.dy.astype(dtype)))
    results = {'y': y.detach().numpy(), 'dx': x.grad.numpy()}
    if tracked:
        results.update(running_mean=np.array(means), running_var=np.array(variances))
    if layer.affine:
        results.update(dgamma=layer.weight.grad.numpy(), dbeta=layer.bias.grad.numpy())
    return results


def run_untracked(case, data, dtype):
    return run(case, data, dtype, tracked=False)


def measure_function(row):
    """torch.nn.functional refuses one value too; the function below it does not."""
    mean, var = torch.zeros(1), torch.ones(1)
    torch.batch_norm(torch.ones(1, 1), None, None, mean, var, True, 0.5, 1e-5, False)
    row.facts['note'] += f'; torch.batch_norm with n = 1: running variance {var.item():g}'


def channels_second(shape, axis):
    return axis % len(shape) == 1


def main():
    judge = Judge()
    version, eps = torch.__version__, torch.nn.BatchNorm1d(1).eps
    second = {'shape': (4, 2, 3, 5), 'axis': 1}

    row = judge.row('PyTorch', version, Rules('pytorch', momentum='new', sample=True), default_eps=eps)
    row.measure(run, one=(1, 2, 1, 1), **second).measure_clamp(run, **second)
    measure_function(row)
    row.check_all(cases.everything(channels_second, MOMENTA, MODES, one_value=False), run)
    row.check_all(cases.small([((4, 3), 1), ((3, 3, 4), 1), ((2, 3, 2, 2), 1), ((2, 2, 2, 1, 2), 1)], momentum=0.1) +
                  cases.small([((2, 3, 2, 2), 1)], momentum=0.1, center=False, scale=False, eps=1e-9), run)
    row.done()

    row = judge.row('PyTorch, momentum=None', version, Rules('pytorch_cumulative', momentum='average', sample=True),
                    default_eps=eps)
    row.check_all(cases.everything(channels_second, [None], ['train'], one_value=False), run)
    row.check_all(cases.small([((4, 3), 1), ((2, 3, 2, 2), 1)], ['train'], momentum=None), run)
    row.done()

    row = judge.row('PyTorch, track_running_stats=False', version, Rules('pytorch', tracked=False), default_eps=eps)
    row.check_all(cases.everything(channels_second, [0.1], MODES, one_value=False), run_untracked)
    row.check_all(cases.small([((2, 3, 2, 2), 1)], ['infer']), run_untracked)
    row.done()

    row = judge.row('PyTorch, a loop over chunks', version,
                    Rules('pytorch', momentum='new', sample=True, ghost='contiguous'), default_eps=eps,
                    note='BNORM_GHOST_CONTIGUOUS, BNORM_GHOST_SUCCESSIVE')
    every = [Case(shape, 1, groups=groups, momentum=momentum, kind=kind, steps=cases.STEPS)
             for shape, groups in (((12, 5), 3), ((8, 3, 6), 2), ((6, 3, 4, 5), 3), ((4, 5, 2, 3, 2), 2),
                                   ((16, 20, 8, 8), 4), ((5, 4, 3, 3), 1), ((5, 4, 3, 3), 5))
             for momentum in (0.1, 0.9) for kind in ('normal', 'offset')]
    row.check_all(every, run)
    row.check_all(cases.small([((4, 3, 2), 1)], ['train'], groups=2, momentum=0.1), run)
    row.done()
    judge.finish()


main()
