# SPDX-License-Identifier: MIT
"""Keras 3's BatchNormalization by bnorm, on CPUs, for its backends JAX and PyTorch.

`BatchNormalization` has the arguments, the weights, the config and the results of keras.layers.BatchNormalization.
What bnorm does not do is left to that: masks, renorm, inputs that are not of float32, bfloat16 or float16, other
backends and devices.
"""
from __future__ import annotations

from typing import Any, Optional

import keras
from keras import ops

__all__ = ["BatchNormalization"]

_TYPES = ("float32", "bfloat16", "float16")
_Normalized = tuple[Any, Any, Any]  # y, and the batch's mean and variance, which in inference are None


def _by_jax(layer: Any, x: Any, training: bool, mean: Any, var: Any, gamma: Any, beta: Any) -> Optional[_Normalized]:
    import jax

    import bnorm.jax
    if jax.default_backend() != "cpu":
        return None
    options = {"eps": layer.epsilon, "axis": layer.axis}
    if training:
        return bnorm.jax.batch_norm_train(x, gamma, beta, **options)
    return bnorm.jax.batch_norm(x, mean, var, gamma, beta, **options), None, None


def _by_torch(layer: Any, x: Any, training: bool, mean: Any, var: Any, gamma: Any, beta: Any) -> Optional[_Normalized]:
    import torch

    import bnorm.torch
    x = x.movedim(layer.axis, 1) if x.dim() > 1 else x
    n = x.numel() // max(1, x.shape[1]) if x.dim() > 1 else 1
    # One value per channel PyTorch, and so bnorm.torch, refuses in training.
    if not x.is_cpu or n < 2:
        return None
    batch = (torch.zeros_like(mean), torch.ones_like(var)) if training else (mean, var)
    y = bnorm.torch.batch_norm(x, *batch, gamma, beta, training, 1.0, layer.epsilon).movedim(1, layer.axis)
    # PyTorch's variance is sum/(n - 1), Keras' sum/n.
    return (y, batch[0], batch[1] * ((n - 1) / n)) if training else (y, None, None)


_BACKENDS = {"jax": _by_jax, "torch": _by_torch}


@keras.saving.register_keras_serializable(package="bnorm")
class BatchNormalization(keras.layers.BatchNormalization):  # type: ignore[misc]

    def call(self, inputs: Any, training: Optional[bool] = None, mask: Any = None) -> Any:
        by_bnorm = _BACKENDS.get(keras.backend.backend())
        training = bool(training and self.trainable)
        result = None
        if by_bnorm and mask is None and not self.renorm and keras.backend.standardize_dtype(inputs.dtype) in _TYPES:
            parameters = (self.moving_mean, self.moving_variance, self.gamma, self.beta)
            mean, var, gamma, beta = (p if p is None else ops.cast(p, "float32") for p in parameters)
            result = by_bnorm(self, inputs, training, mean, var, gamma, beta)
        if result is None:
            return super().call(inputs, training=training, mask=mask)
        outputs, batch_mean, batch_var = result
        if training:
            self.moving_mean.assign(mean * self.momentum + batch_mean * (1.0 - self.momentum))
            self.moving_variance.assign(var * self.momentum + batch_var * (1.0 - self.momentum))
        return ops.cast(outputs, self.compute_dtype)
