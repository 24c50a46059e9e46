# SPDX-License-Identifier: MIT
"""Keras 3 on TensorFlow: keras.layers.BatchNormalization."""
import os

os.environ['TF_CPP_MIN_LOG_LEVEL'] = '3'
os.environ['KERAS_BACKEND'] = 'tensorflow'

import keras  # noqa: E402

import cases  # noqa: E402
import keras_layer  # noqa: E402
from cases import Case  # noqa: E402
from exact import Rules  # noqa: E402
from judge import Judge  # noqa: E402

MOMENTA = (0.99, 0.9, 0.1, 0.0, 1.0)
MODES = ('train', 'infer', 'frozen')


def run(case, data, dtype):
    return keras_layer.run(keras.layers.BatchNormalization, case, data, dtype)


def main():
    judge = Judge()
    layer = keras.layers.BatchNormalization
    version = keras.__version__

    row = judge.row('Keras 3', version, Rules('keras'), default_eps=layer().epsilon)
    row.measure(run).measure_clamp(run)
    row.check_all(cases.everything(lambda shape, axis: True, MOMENTA, MODES), run)
    row.check_all(cases.small([((4, 3), -1), ((3, 2, 2, 3), -1), ((2, 3, 4), 1), ((3, 2, 2), 0)]) +
                  cases.small([((3, 2, 2, 3), -1)], center=False, scale=False, eps=1e-9, momentum=0.1) +
                  cases.small([((1, 3), -1)], ['train'], momentum=0.99), run)
    row.done()

    epsilon = keras.backend.epsilon()
    row = judge.row('Keras 3, mask', version, Rules('keras', weight_eps=epsilon), default_eps=layer().epsilon,
                    note=f'bnorm_weights.epsilon {epsilon:g}')
    shapes = [(24, 5), (4, 9, 6), (3, 5, 4, 7), (2, 3, 2, 4, 5), (16, 40, 33)]
    row.check_all([Case(shape, eps=eps, weights='mask', kind=kind, steps=cases.STEPS) for shape in shapes
                   for eps in cases.ALL_EPS for kind in ('normal', 'offset')], run)
    row.check_all([Case((4, 9, 6), weights='nothing', steps=cases.STEPS)], run)
    row.check_all([Case((4, 9, 6), weights='mask', mode=mode) for mode in MODES[1:]], run)
    row.check_all(cases.small([((3, 4, 3), -1)], ['train'], weights='mask') +
                  cases.small([((3, 2, 3), -1)], ['train'], weights='nothing'), run)
    row.done()

    row = judge.row('Keras 3, renorm', version, Rules('keras'), default_eps=layer().epsilon,
                    note=keras_layer.RENORM_NOTE)
    row.check_all(keras_layer.renorm_cases(), run)
    row.done()
    judge.finish()


main()
