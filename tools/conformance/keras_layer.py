# SPDX-License-Identifier: MIT
"""A case on a BatchNormalization layer of Keras 3 or tf-keras."""
import numpy as np
import tensorflow as tf

import cases
from cases import Case

RENORM_NOTE = ('averages standard deviations, sqrt(variance + eps), in pairs of their own: bnorm_forward_train with '
               'rate 0, then bnorm_running_update')


def assign(variable, value):
    if variable is not None and value is not None:
        variable.assign(value.reshape(variable.shape))


def tf_variable(variable):
    """TensorFlow's variable in one of Keras 3."""
    return variable if isinstance(variable, tf.Variable) else variable.value


def flat(array):
    return np.asarray(array).reshape(-1)


def run(layer_class, case, data, dtype, **options):
    axis = list(case.axis) if isinstance(case.axis, tuple) else case.axis
    if case.renorm:
        limits = zip(('rmin', 'rmax', 'dmax'), case.renorm)
        options |= {'renorm': True, 'renorm_momentum': case.renorm_momentum,
                    'renorm_clipping': {name: limit for name, limit in limits if limit is not None}}
    if case.groups:
        options['virtual_batch_size'] = case.shape[0]//case.groups
    layer = layer_class(axis=axis, momentum=case.momentum, epsilon=case.eps, center=case.center, scale=case.scale,
                        dtype=np.dtype(dtype).name, **options)
    layer.build(case.shape)
    mean, var = data.mean.astype(dtype), data.var.astype(dtype)
    for name, value in (('gamma', data.gamma), ('beta', data.beta), ('moving_mean', mean), ('moving_variance', var)):
        assign(getattr(layer, name), value)
    if case.renorm:
        for name, value in (('renorm_mean', mean), ('renorm_stddev', np.sqrt(var)), ('moving_stddev', np.sqrt(var))):
            assign(getattr(layer, name), value)
    layer.trainable = case.mode != 'frozen'
    mask = {} if data.weights is None else {'mask': tf.constant(data.weights != 0)}
    names = [name for name in ('gamma', 'beta') if getattr(layer, name) is not None]
    parameters = [tf_variable(getattr(layer, name)) for name in names]
    means, variances = [], []
    for step, values in enumerate(data.x, 1):
        x = tf.constant(values, dtype)
        with tf.GradientTape() as tape:
            if step == len(data.x):
                tape.watch([x] + parameters)
            # A frozen layer keeps its statistics although it is told to train.
            y = layer(x, training=case.mode != 'infer', **mask)
        means.append(flat(layer.moving_mean))
        variances.append(flat(layer.moving_variance))
    gradients = tape.gradient(y, [x] + parameters, output_gradients=tf.constant(data.dy, dtype))
    results = {'y': y.numpy(), 'dx': gradients[0].numpy(), 'running_mean': np.array(means),
               'running_var': np.array(variances)}
    return results | {'d' + name: flat(gradient) for name, gradient in zip(names, gradients[1:])}


def renorm_cases():
    """Batch renormalization without limits, with wide ones, with some that are met, and with those of the start.
    Keras makes a float32 of eps here."""
    limits = [(None, None, None), (0.5, 2, 1), (0.9, 1.1, 0.1), (1, 1, 0)]
    found = [Case(shape, eps=float(np.float32(eps)), renorm=limit, momentum=0.99, renorm_momentum=0.9, kind=kind,
                  steps=cases.STEPS)
             for shape in ((16, 5), (3, 5, 6, 4), (8, 40, 33)) for limit in limits
             for eps, kind in ((1e-3, 'normal'), (1e-5, 'normal'), (1e-3, 'offset'), (1e-3, 'spread'))]
    found += [Case((3, 4, 5, 6), 1, renorm=limit, steps=cases.STEPS) for limit in limits]
    found += [Case((3, 5, 6, 4), renorm=limits[1], mode=mode) for mode in ('infer', 'frozen')]
    return found + cases.small([((4, 3), -1)], ['train'], renorm=limits[1]) + \
        cases.small([((2, 3, 3), 1)], ['train'], renorm=limits[2], momentum=0.99)
