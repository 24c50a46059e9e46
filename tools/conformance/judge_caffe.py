# SPDX-License-Identifier: MIT
"""Caffe's layer BatchNorm by the formulas of its batch_norm_layer.cpp, which is all that is to be had of it."""
import numpy as np

import cases
from exact import Rules
from judge import Judge

FRACTIONS = (0.999, 0.9, 0.1, 0.0, 1.0)


def run(case, data, dtype):
    """Caffe keeps sums S = f*S + statistic and their weight W = f*W + 1, and reads S/W."""
    along = [-1 if axis == 1 else 1 for axis in range(len(case.shape))]
    others = tuple(axis for axis in range(len(case.shape)) if axis != 1)
    fraction, eps = dtype(case.momentum), dtype(case.eps)
    sums = [np.zeros_like(data.mean, dtype), np.zeros_like(data.mean, dtype)]
    weight = dtype(0)
    means, variances = [], []
    for x in data.x.astype(dtype):
        count = x.size//data.mean.size
        mean = x.mean(others, dtype=dtype)
        centred = x - mean.reshape(along)
        var = (centred*centred).mean(others, dtype=dtype)
        correction = dtype(count)/dtype(count - 1) if count > 1 else dtype(1)
        weight = fraction*weight + dtype(1)
        sums = [mean + fraction*sums[0], correction*var + fraction*sums[1]]
        means.append(sums[0]/weight)
        variances.append(sums[1]/weight)
    y = centred/np.sqrt(var + eps).reshape(along)
    for values, combine in ((data.gamma, np.multiply), (data.beta, np.add)):  # Caffe's layer Scale
        y = y if values is None else combine(y, values.astype(dtype).reshape(along))
    return {'y': y, 'running_mean': np.array(means), 'running_var': np.array(variances)}


def main():
    judge = Judge()
    row = judge.row('Caffe, by its formulas', '-', Rules('caffe', momentum='caffe', sample=True), default_eps=1e-5)
    row.facts |= {'momentum': 'factor of the sums', 'variance': 'sample', 'one': 'variance 0'}
    row.check_all(cases.everything(lambda shape, axis: axis % len(shape) == 1, FRACTIONS, ['train']), run)
    row.check_all(cases.small([((4, 3), 1), ((2, 3, 2, 2), 1)], ['train'], eps=1e-5), run)
    row.done()
    judge.finish()


main()
