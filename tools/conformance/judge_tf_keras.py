# SPDX-License-Identifier: MIT
"""tf-keras, the Keras 2 that TensorFlow goes on with, fused and not; and functions of TensorFlow itself."""
import dataclasses
import os

os.environ['TF_CPP_MIN_LOG_LEVEL'] = '3'

import numpy as np  # noqa: E402
import tensorflow as tf  # noqa: E402
import tf_keras  # noqa: E402

import cases  # noqa: E402
import keras_layer  # noqa: E402
from cases import Case  # noqa: E402
from exact import Rules  # noqa: E402
from judge import Judge  # noqa: E402

MOMENTA = (0.99, 0.9, 0.1, 0.0, 1.0)
MODES = ('train', 'infer', 'frozen')


def run_plain(case, data, dtype):
    return keras_layer.run(tf_keras.layers.BatchNormalization, case, data, dtype, fused=False)


def run_fused(case, data, dtype):
    """As it comes: fused on rank 4 and 5 with the channels last or at axis 1."""
    return keras_layer.run(tf_keras.layers.BatchNormalization, case, data, dtype)


def run_operation(case, data, dtype):
    """The operation below the fused layer, which takes the weight of the new value."""
    parameters = [tf.ones(data.mean.size) if data.gamma is None else tf.constant(data.gamma),
                  tf.zeros(data.mean.size) if data.beta is None else tf.constant(data.beta)]
    mean, var, means, variances = tf.constant(data.mean), tf.constant(data.var), [], []
    for values in data.x:
        x = tf.constant(values, dtype)
        with tf.GradientTape() as tape:
            tape.watch([x] + parameters)
            y, new_mean, new_var = tf.compat.v1.nn.fused_batch_norm(
                x, *parameters, mean=mean, variance=var, epsilon=case.eps, is_training=case.mode == 'train',
                data_format='NHWC', exponential_avg_factor=case.momentum if case.mode == 'train' else 1.0)
        if case.mode == 'train':
            mean, var = new_mean, new_var
        means.append(mean.numpy())
        variances.append(var.numpy())
    dx, dgamma, dbeta = tape.gradient(y, [x] + parameters, output_gradients=tf.constant(data.dy))
    return {'y': y.numpy(), 'dx': dx.numpy(), 'dgamma': dgamma.numpy(), 'dbeta': dbeta.numpy(),
            'running_mean': np.array(means), 'running_var': np.array(variances)}


def run_weighted(case, data, dtype):
    """tf.nn.weighted_moments and tf.nn.batch_normalization."""
    x, weights = tf.constant(data.x[-1], dtype), tf.constant(data.weights[..., np.newaxis], dtype)
    parameters = [tf.constant(data.gamma, dtype), tf.constant(data.beta, dtype)]
    with tf.GradientTape() as tape:
        tape.watch([x] + parameters)
        mean, variance = tf.nn.weighted_moments(x, list(range(len(case.shape) - 1)), weights)
        y = tf.nn.batch_normalization(x, mean, variance, parameters[1], parameters[0], case.eps)
    dx, dgamma, dbeta = tape.gradient(y, [x] + parameters, output_gradients=tf.constant(data.dy, dtype))
    return {'y': y.numpy(), 'dx': dx.numpy(), 'dgamma': dgamma.numpy(), 'dbeta': dbeta.numpy()}


def note_of_no_weight(row):
    """0/0 is 0 in TensorFlow."""
    case = Case((4, 9, 6), weights='nothing')
    data = cases.generate(case)
    mean, variance = tf.nn.weighted_moments(data.x[0], [0, 1], data.weights[..., np.newaxis])
    ours = row.judge.library.run(case, data, row.rules)['y']
    if np.all(np.isnan(ours)):
        row.facts['note'] += (f'; where all weights are 0, mean and variance are {mean[0]:g} and {variance[0]:g}, '
                              'in bnorm NaN')


def rounded_rate(case):
    """The layer makes a float32 of 1 - momentum whatever its dtype."""
    rate = float(np.float32(1 - case.momentum))
    return dataclasses.replace(case, momentum=1 - rate,
                               renorm_momentum=1 - float(np.float32(1 - case.renorm_momentum)))


def fused_shape(shape, axis):
    return len(shape) in (4, 5) and axis % len(shape) in (1, len(shape) - 1)


def judge_layer(judge):
    version, eps = tf_keras.__version__, tf_keras.layers.BatchNormalization().epsilon

    row = judge.row('tf-keras, not fused', version, Rules('keras'), default_eps=eps)
    row.measure(run_plain).measure_clamp(run_plain)
    row.check_all(cases.everything(lambda shape, axis: True, MOMENTA, MODES), run_plain, as_double=rounded_rate)
    row.check_all(cases.small([((4, 3), -1), ((3, 2, 4), -1)]), run_plain, as_double=rounded_rate)
    row.done()

    row = judge.row('tf-keras, fused', version, Rules('tensorflow', sample=True), default_eps=eps)
    row.measure(run_fused).measure_clamp(run_fused)
    row.check_all(cases.everything(fused_shape, MOMENTA, MODES), run_fused, double=False)
    row.check_all(cases.small([((3, 2, 2, 3), -1), ((2, 3, 2, 2), 1), ((2, 2, 1, 2, 3), -1)]) +
                  cases.small([((1, 1, 1, 3), -1)], ['train'], momentum=0.99), run_fused, double=False)
    row.done()

    row = judge.row('tf-keras, axis=(1 2 3)', version, Rules('keras'), default_eps=eps)
    every = [Case(shape, axis, mode=mode, steps=cases.STEPS if mode == 'train' else 1) for mode in MODES
             for shape, axis in (((16, 3, 4, 2), (1, 2, 3)), ((8, 5, 6), (1, 2)), ((40, 7, 7, 16), (1, 2, 3)))]
    row.check_all(every, run_plain, as_double=rounded_rate)
    row.check_all(cases.small([((4, 2, 2, 2), (1, 2, 3))], ['train']), run_plain, as_double=rounded_rate)
    row.done()

    row = judge.row('tf-keras, mask', version, Rules('keras'), default_eps=eps, note='bnorm_weights.epsilon 0')
    every = [Case(shape, weights='mask', kind=kind, steps=cases.STEPS)
             for shape in ((24, 5), (4, 9, 6), (3, 5, 4, 7), (16, 40, 33)) for kind in ('normal', 'offset')]
    row.check_all(every, run_plain, as_double=rounded_rate)
    row.check_all(cases.small([((3, 4, 3), -1)], ['train'], weights='mask'), run_plain, as_double=rounded_rate)
    row.done()


def judge_variants(judge):
    version, eps = tf_keras.__version__, tf_keras.layers.BatchNormalization().epsilon

    row = judge.row('tf-keras, renorm', version, Rules('keras'), default_eps=eps, note=keras_layer.RENORM_NOTE)
    row.check_all(keras_layer.renorm_cases(), run_fused, double=False)  # it mixes types in float64
    row.done()

    row = judge.row('tf-keras, virtual_batch_size', version, Rules('keras', ghost='interleaved'), default_eps=eps,
                    note='BNORM_GHOST_INTERLEAVED, BNORM_GHOST_AVERAGE')
    every = [Case(shape, axis, groups=groups, kind=kind, steps=cases.STEPS) for kind in ('normal', 'offset')
             for shape, axis, groups in (((12, 5), -1, 3), ((12, 5), -1, 4), ((12, 5), -1, 1), ((8, 3, 6), -1, 2),
                                         ((6, 4, 5, 3), -1, 3), ((6, 3, 4, 5), 1, 2), ((16, 8, 8, 20), -1, 4),
                                         ((4, 5, 2, 3, 2), 1, 2), ((9, 4), -1, 9))]
    row.check_all(every, run_fused, as_double=rounded_rate)
    row.check_all([Case((6, 4, 5, 3), groups=3, mode=mode) for mode in ('infer', 'frozen')], run_fused,
                  as_double=rounded_rate)
    row.check_all(cases.small([((6, 3), -1), ((4, 3, 2), 1)], ['train'], groups=2), run_fused, as_double=rounded_rate)
    row.done()


def judge_operations(judge):
    version = tf.__version__

    row = judge.row('TensorFlow, fused_batch_norm', version, Rules('tensorflow_factor', momentum='new', sample=True),
                    default_eps=0.001, note='momentum is exponential_avg_factor f, the preset gets 1 - f; ')
    row.measure(run_operation).measure_clamp(run_operation)
    row.check_all(cases.everything(lambda shape, axis: len(shape) == 4 and axis % 4 == 3, MOMENTA, MODES),
                  run_operation, double=False)
    row.check_all(cases.small([((3, 2, 2, 3), -1)], ['train'], momentum=0.1), run_operation, double=False)
    row.done()

    row = judge.row('TensorFlow, nn.weighted_moments', version, Rules('keras', tracked=False),
                    note='bnorm_weights.epsilon 0')
    every = [Case(shape, weights=weights, kind=kind, eps=eps)
             for shape in ((24, 5), (4, 9, 6), (3, 5, 4, 7), (2, 3, 2, 4, 5), (16, 40, 33))
             for weights in ('mask', 'weights') for kind in ('normal', 'offset') for eps in cases.ALL_EPS]
    note_of_no_weight(row)
    row.check_all(every, run_weighted)
    row.check_all(cases.small([((3, 4, 3), -1)], ['train'], weights='weights'), run_weighted)
    row.done()


def main():
    judge = Judge()
    judge_layer(judge)
    judge_variants(judge)
    judge_operations(judge)
    judge.finish()


main()
