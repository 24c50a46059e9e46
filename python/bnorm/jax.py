# SPDX-License-Identifier: MIT
"""Batch normalization by bnorm in JAX, on CPUs.

`batch_norm` is inference, `batch_norm_train` training, each with residual and activation in the same pass, under
jit, grad, vmap, scan and remat. Arrays are of float32, bfloat16 or float16, of any rank; `axis` is that of the
channels, the last one unless given. Parameters and statistics have one value per channel and become float32.

    y, mean, var = batch_norm_train(x, gamma, beta)
    running_mean += rate*(mean - running_mean)

Results have the bits of the functions for NumPy; denormals are zero, as everywhere in XLA. Threads are XLA's.
Gradients can be taken once, and backwards: there is no jvp, and none of a gradient. vmap goes through its axis one
by one. An array that is spread over devices is gathered first; under shard_map each device has its own statistics.
"""
from __future__ import annotations

import functools
import math
from typing import Any, NamedTuple, Optional

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, ShapeDtypeStruct
from jax.custom_derivatives import SymbolicZero
from jax.typing import ArrayLike

from . import Activation, _act, _ACTS, _native

__all__ = ["batch_norm", "batch_norm_train"]

for _name, _handler in _native.xla.items():
    _capsule = jax.ffi.pycapsule(_handler)  # type: ignore[no-untyped-call]
    jax.ffi.register_ffi_target("bnorm_" + _name, _capsule, platform="cpu")

_OPS = {"train": 1, "backward": 2, "apply": 3}  # enum bnorm_op
_TYPES = {"float32": 11, "bfloat16": 16, "float16": 10}  # XLA_FFI_DataType
# What a call can have, operands and then results, in the order of xla.c.
_BUFFERS = ("x", "dy", "residual", "y", "gamma", "beta", "mean", "var", "saved", "out", "new_saved", "gradients",
            "dresidual", "scratch")


class _How(NamedTuple):
    axis: int
    eps: float
    act: tuple[int, float, float]


def _call(op: str, how: _How, results: dict[str, Any], **operands: Optional[Array]) -> Any:
    """Calls a handler with the operands that are not None; they and the results are in the order of _BUFFERS."""
    given = {name: array for name, array in operands.items() if array is not None}
    x = given["x"]
    scratch = _native.xla_scratch(_OPS[op], _TYPES[x.dtype.name], how.axis, x.ndim,
                                  np.array(x.shape, np.int64).ctypes.data)
    results = {**results, "scratch": _array((scratch,), jnp.uint8)}
    there = sum(1 << _BUFFERS.index(name) for name in (*given, *results))
    call = jax.ffi.ffi_call("bnorm_" + op, list(results.values()), vmap_method="sequential")
    return call(*given.values(), options=np.array([there, how.axis, how.eps, *how.act]))


def _array(shape: tuple[int, ...], dtype: Any) -> ShapeDtypeStruct:
    return ShapeDtypeStruct(shape, dtype)  # type: ignore[no-untyped-call]


def _like(x: Array) -> ShapeDtypeStruct:
    return _array(x.shape, x.dtype)


def _floats(rows: int, x: Array, how: _How) -> ShapeDtypeStruct:
    return _array((rows, x.shape[how.axis]), jnp.float32)


def _values(*primals: Any) -> Any:
    """Without what symbolic_zeros says besides."""
    return [p if p is None else p.value for p in primals]


def _spread(values: Array, x: Array, how: _How) -> Array:
    shape = [1] * x.ndim
    shape[how.axis] = -1
    return values.reshape(shape)


def _gradients(how: _How, dy: Array, x: Array, residual: Optional[Array], y: Optional[Array], gamma: Optional[Array],
               beta: Optional[Array], has_residual: bool, **statistics: Array) -> Any:
    """dx, dresidual, dgamma and dbeta."""
    results = {"out": _like(x), "gradients": _floats(2, x, how)}
    if has_residual and how.act[0]:
        results["dresidual"] = _like(x)
    dx, gradients, *more = _call("backward", how, results, x=x, dy=dy, residual=residual, y=y, gamma=gamma, beta=beta,
                                 **statistics)
    dresidual = None if not has_residual else more[0] if how.act[0] else dy
    return dx, dresidual, gradients[0], gradients[1]


def _kept(how: _How, residual: Optional[Array], y: Array) -> tuple[Optional[Array], Optional[Array]]:
    """What tells backward the activation's argument: nothing, the residual, or y for those that can be told from it."""
    if residual is None or not how.act[0]:
        return None, None
    kind, a, _ = how.act
    return (None, y) if kind in (1, 2) or kind == 3 and a > 0 else (residual, None)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _train(how: _How, x: Array, residual: Optional[Array], gamma: Optional[Array], beta: Optional[Array]) -> Any:
    y, saved, _ = _call("train", how, {"out": _like(x), "new_saved": _floats(4, x, how)}, x=x, residual=residual,
                        gamma=gamma, beta=beta)
    return y, saved


def _train_forward(how: _How, *primals: Any) -> Any:
    x, residual, gamma, beta = _values(*primals)
    y, saved = _train(how, x, residual, gamma, beta)
    # An empty tuple is no array, but says that there was a residual.
    return (y, saved), (x, gamma, beta, saved, *_kept(how, residual, y), None if residual is None else ())


def _train_backward(how: _How, kept: Any, cotangents: Any) -> Any:
    x, gamma, beta, saved, residual, y, had_residual = kept
    dy, dsaved = cotangents
    if isinstance(dy, SymbolicZero):
        dy = jnp.zeros(x.shape, x.dtype)
    dx, dresidual, dgamma, dbeta = _gradients(how, dy, x, residual, y, gamma, beta, had_residual is not None,
                                              saved=saved)
    if not isinstance(dsaved, SymbolicZero):
        # Of the mean and the variance, where a loss is made of them; of the others there is no loss.
        n = math.prod(x.shape) // x.shape[how.axis]
        deviation = x.astype(jnp.float32) - _spread(saved[0], x, how)
        more = _spread(dsaved[0], x, how) + 2 * deviation * _spread(dsaved[3], x, how)
        dx = (dx + more / n).astype(x.dtype)
    return dx, dresidual, None if gamma is None else dgamma, None if beta is None else dbeta


_train.defvjp(_train_forward, _train_backward, symbolic_zeros=True)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _apply(how: _How, x: Array, residual: Optional[Array], mean: Array, var: Array, gamma: Optional[Array],
           beta: Optional[Array]) -> Any:
    return _call("apply", how, {"out": _like(x)}, x=x, residual=residual, gamma=gamma, beta=beta, mean=mean, var=var)[0]


def _apply_forward(how: _How, x: Array, residual: Optional[Array], mean: Array, var: Array, gamma: Optional[Array],
                   beta: Optional[Array]) -> Any:
    y = _apply(how, x, residual, mean, var, gamma, beta)
    return y, (x, mean, var, gamma, beta, *_kept(how, residual, y), None if residual is None else ())


def _apply_backward(how: _How, kept: Any, dy: Array) -> Any:
    x, mean, var, gamma, beta, residual, y, had_residual = kept
    dx, dresidual, dgamma, dbeta = _gradients(how, dy, x, residual, y, gamma, beta, had_residual is not None, mean=mean,
                                              var=var)
    scale = jax.lax.rsqrt(var + how.eps) * (1 if gamma is None else gamma)
    return (dx, dresidual, -scale * dbeta, -scale * dgamma * jax.lax.rsqrt(var + how.eps) / 2,
            None if gamma is None else dgamma, None if beta is None else dbeta)


_apply.defvjp(_apply_forward, _apply_backward)


def _checked(x: ArrayLike, residual: Optional[ArrayLike], axis: int, eps: float, activation: Activation,
             parameters: dict[str, Optional[ArrayLike]]) -> Any:
    x = jnp.asarray(x)
    if x.dtype.name not in _TYPES:
        raise TypeError(f"x is of {x.dtype.name}, not of float32, bfloat16 or float16: convert it with astype")
    if not -x.ndim <= axis < x.ndim:
        raise ValueError(f"axis {axis} is none of x, which has {x.ndim}")
    if not 0 <= eps < math.inf:
        raise ValueError(f"eps is {eps}: it has to be at least 0, and finite")
    if residual is not None:
        residual = jnp.asarray(residual)
        if residual.shape != x.shape or residual.dtype != x.dtype:
            raise ValueError("residual has not the shape and type of x")
    channels = x.shape[axis]
    if channels == 0:
        raise ValueError("x has no channels")
    arrays = []
    for name, values in parameters.items():
        if values is not None and jnp.shape(values) != (channels,):
            raise ValueError(f"{name} has the shape {jnp.shape(values)}, but has to have a value for each of {channels} "
                             "channels")
        arrays.append(None if values is None else jnp.asarray(values, jnp.float32))
    return _How(axis % x.ndim, float(eps), _ACTS.get(activation) or _act(activation)), x, residual, *arrays


def batch_norm(x: ArrayLike, mean: ArrayLike, var: ArrayLike, gamma: Optional[ArrayLike] = None,
               beta: Optional[ArrayLike] = None, *, eps: float = 1e-5, axis: int = -1,
               residual: Optional[ArrayLike] = None, activation: Activation = None) -> Array:
    """Inference: activation((x - mean)/sqrt(var + eps)*gamma + beta + residual).

    Activations are those of the package bnorm. Where var + eps is negative, the channel becomes NaN.
    """
    how, x, residual, mean, var, gamma, beta = _checked(x, residual, axis, eps, activation,
                                                        {"mean": mean, "var": var, "gamma": gamma, "beta": beta})
    # bnorm has an error for this, but XLA has none that depends on values.
    lowest = np.float32(-eps)
    if float(lowest) < -eps:
        lowest = np.nextafter(lowest, np.float32(0))
    result: Array = _apply(how, x, residual, mean, jnp.where(var < lowest, jnp.nan, var), gamma, beta)
    return result


def batch_norm_train(x: ArrayLike, gamma: Optional[ArrayLike] = None, beta: Optional[ArrayLike] = None, *,
                     eps: float = 1e-5, axis: int = -1, residual: Optional[ArrayLike] = None,
                     activation: Activation = None) -> tuple[Array, Array, Array]:
    """Training: batch_norm with the mean and the variance of x itself, and these: (y, mean, var).

    var is sum((x - mean)^2)/n, as Keras and Flax want it for the running variance; PyTorch's has n - 1 there.
    """
    y, saved = _train(*_checked(x, residual, axis, eps, activation, {"gamma": gamma, "beta": beta}))
    return y, saved[0], saved[3]
