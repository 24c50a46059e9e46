# SPDX-License-Identifier: MIT
"""Batch normalization of NumPy arrays by bnorm, on CPUs, with the same bits on every instruction set.

Arrays are of float32, float16, or bfloat16 (of the package ml_dtypes), of any rank and with any strides;
where bnorm cannot do with these, arrays are copied first. `axis` is that of the channels, the last one unless
given: 1 for data as PyTorch has it. Parameters and statistics are dense arrays of float32, one per channel.

`activation` is what is computed behind the batch norm, in the same pass: None, "relu", "relu6", "hard_swish",
"sigmoid", "silu", "tanh", "gelu", "softplus", "mish", ("clamp", low, high), ("leaky_relu", slope) or
("elu", a). `residual` is an array that is added before it.

`threads` is how many work on a call, 1 unless set_threads said otherwise; results do not depend on it, and
small arrays are left to one.
"""
from __future__ import annotations

from typing import Any, NamedTuple, Optional, Sequence, Union

import numpy as np

from . import _native

__all__ = ["Gradients", "Saved", "batch_norm", "batch_norm_backward", "batch_norm_train", "fold", "isa", "moments",
           "set_threads"]
__version__: str = _native.version().decode()

Array = np.ndarray[Any, Any]
Activation = Union[None, str, tuple[Any, ...]]

_ACTS: dict[Any, tuple[int, float, float]] = {
    None: (0, 0.0, 0.0), "relu": (1, 0.0, 0.0), "relu6": (2, 0.0, 6.0), "hard_swish": (4, 0.0, 0.0),
    "sigmoid": (5, 0.0, 0.0), "silu": (6, 0.0, 0.0), "tanh": (7, 0.0, 0.0), "gelu": (8, 0.0, 0.0),
    "elu": (9, 1.0, 0.0), "softplus": (10, 0.0, 0.0), "mish": (11, 0.0, 0.0)}
_PARAMETERS = {"clamp": (2, 2), "leaky_relu": (3, 1), "elu": (9, 1)}

_threads = 1
# Names that are looked up once.
_apply, _train, _backward = _native.apply, _native.train, _native.backward
_empty, _empty_like, _float32 = np.empty, np.empty_like, np.float32


def set_threads(threads: int) -> None:
    """How many threads work on a call that does not say it."""
    global _threads
    if threads < 1:
        raise ValueError("threads has to be at least 1")
    _threads = threads


def isa() -> str:
    """The kernel set in use: "avx512", "avx2", "neon" or "scalar". The environment's BNORM_ISA names another."""
    name: str = _native.isa().decode()
    return name


def _act(activation: Activation) -> tuple[int, float, float]:
    if isinstance(activation, tuple) and activation:
        kind, count = _PARAMETERS.get(activation[0], (0, 0))
        if count and len(activation) == count + 1:
            return (kind, float(activation[1]), float(activation[2]) if count == 2 else 0.0)
    raise ValueError(f"{activation!r} is no activation: say one of {', '.join(repr(a) for a in _ACTS)}, ('clamp', "
                     "low, high), ('leaky_relu', slope) or ('elu', a)")


def _per_channel(rows: int, x: Array, axis: int) -> Array:
    try:
        return _empty((rows, x.shape[axis]), _float32)
    except AttributeError:
        raise TypeError("x is no NumPy array: convert it with numpy.asarray") from None
    except IndexError:
        raise ValueError(f"axis {axis} is none of x, which has {x.ndim}") from None


def _floats(array: Optional[Array]) -> Optional[Array]:
    return None if array is None else np.ascontiguousarray(array, np.float32)


def _with_copies(function: Any, how: Sequence[Any], tensors: list[Optional[Array]], written: Sequence[int],
                 rest: Sequence[Any]) -> None:
    """Calls function with copies, in C's order, of the tensors; those that are written are copied back."""
    dense = [t if t is None or t.flags.c_contiguous else _empty(t.shape, t.dtype) if i in written
             else t.copy("C") for i, t in enumerate(tensors)]
    status = function((*how, *dense, *rest))
    if status >= _native.COPY:
        raise ValueError("bnorm cannot express the strides of these arrays: make them contiguous")
    for i in written:
        mine, theirs = dense[i], tensors[i]
        if theirs is not None and mine is not None and mine is not theirs:
            theirs[...] = mine


def batch_norm(x: Array, mean: Array, var: Array, gamma: Optional[Array] = None, beta: Optional[Array] = None, *,
               eps: float = 1e-5, axis: int = -1, residual: Optional[Array] = None, activation: Activation = None,
               out: Optional[Array] = None, threads: Optional[int] = None) -> Array:
    """Inference: activation((x - mean)/sqrt(var + eps)*gamma + beta + residual).

    out may be x or residual. Returns out, or a new array of x's type and order.

    >>> import numpy as np
    >>> x = np.array([[5, 10, -1], [3, 20, 5]], np.float32)
    >>> batch_norm(x, np.float32([4, 15, 2]), np.float32([4, 25, 9]), eps=0)
    array([[ 0.5, -1. , -1. ],
           [-0.5,  1. ,  1. ]], dtype=float32)
    """
    if out is None:
        out = _empty_like(x)
    kind, a, b = _ACTS.get(activation) or _act(activation)
    how = (axis, _threads if threads is None else threads, None)
    rest = (mean, var, gamma, beta, eps, kind, a, b)
    if _apply((*how, x, out, residual, *rest)):
        _with_copies(_apply, how, [x, out, residual], (1,), rest)
    return out


class Saved:
    """What batch_norm_train keeps for batch_norm_backward: statistics of the batch."""

    __slots__ = ("statistics",)

    def __init__(self, statistics: Array) -> None:
        self.statistics = statistics  # (4, C): mean, what is left of it, invstd, var

    @property
    def mean(self) -> Array:
        result: Array = self.statistics[0]
        return result

    @property
    def invstd(self) -> Array:
        """1/sqrt(var + eps)"""
        result: Array = self.statistics[2]
        return result

    @property
    def var(self) -> Array:
        """The population variance, that is the mean of squared deviations."""
        result: Array = self.statistics[3]
        return result


class Gradients(NamedTuple):
    dx: Array
    dgamma: Array
    dbeta: Array
    dresidual: Optional[Array]


def batch_norm_train(x: Array, gamma: Optional[Array] = None, beta: Optional[Array] = None, *, eps: float = 1e-5,
                     axis: int = -1, running_mean: Optional[Array] = None, running_var: Optional[Array] = None,
                     rate: float = 0.1, sample_variance: bool = True, residual: Optional[Array] = None,
                     activation: Activation = None, out: Optional[Array] = None,
                     threads: Optional[int] = None) -> tuple[Array, Saved]:
    """Training: batch_norm with the mean and the variance of x itself; and what backward needs of them.

    Running statistics are updated in place, running += rate*(batch - running): rate is PyTorch's momentum, and 1 -
    that of Keras. The variance that goes there is sum/(n - 1), as in PyTorch, or sum/n, as in Keras, where
    sample_variance is False. out may be x or residual, but backward needs x as it was.
    """
    if out is None:
        out = _empty_like(x)
    kind, a, b = _ACTS.get(activation) or _act(activation)
    saved = _per_channel(4, x, axis)
    rest = (gamma, beta, running_mean, running_var, saved, eps, rate, sample_variance,
            kind, a, b)
    how = (axis, _threads if threads is None else threads, None)
    if _train((*how, x, out, residual, *rest)):
        _with_copies(_train, how, [x, out, residual], (1,), rest)
    return out, Saved(saved)


def batch_norm_backward(dy: Array, x: Array, saved: Optional[Saved] = None, gamma: Optional[Array] = None,
                        beta: Optional[Array] = None, *, eps: float = 1e-5, axis: int = -1,
                        mean: Optional[Array] = None, var: Optional[Array] = None,
                        residual: Optional[Array] = None, activation: Activation = None, y: Optional[Array] = None,
                        dx: Optional[Array] = None, want_dresidual: bool = False,
                        threads: Optional[int] = None) -> Gradients:
    """Gradients of a loss by x, gamma, beta and, if wanted, residual, from that by y, dy.

    x is what batch_norm_train got, saved what it returned; parameters, activation and residual are those of that
    call. Instead of residual, y will do, what it returned, for "relu", "clamp" and "leaky_relu". Where statistics
    were constants (batch_norm, frozen layers), give mean and var, as they were there, instead of saved. dy may have
    strides of 0, as numpy.broadcast_to makes them. dx may be dy or x.
    """
    if dx is None:
        dx = _empty_like(x)
    if saved is None and (mean is None or var is None):
        raise ValueError("give saved, what batch_norm_train returned, or mean and var, if these were constants")
    kind, a, b = _ACTS.get(activation) or _act(activation)
    gradients = _per_channel(2, x, axis)
    dresidual = _empty_like(x) if want_dresidual else None
    rest = (gamma, beta, mean, var, None if saved is None else saved.statistics, gradients, eps, kind, a, b)
    how = (axis, _threads if threads is None else threads, None)
    if _backward((*how, x, dy, dx, residual, y, dresidual, *rest)):
        _with_copies(_backward, how, [x, dy, dx, residual, y, dresidual], (2, 5), rest)
    return Gradients(dx, gradients[0], gradients[1], dresidual)


def moments(x: Array, *, axis: int = -1, threads: Optional[int] = None) -> tuple[Array, Array]:
    """Mean and population variance of each channel."""
    result = _per_channel(2, x, axis)
    how = (axis, _threads if threads is None else threads, None)
    if _native.moments((*how, x, result)):
        _with_copies(_native.moments, how, [x], (), (result,))
    return result[0], result[1]


def fold(mean: Array, var: Array, gamma: Optional[Array] = None, beta: Optional[Array] = None, *,
         eps: float = 1e-5) -> tuple[Array, Array]:
    """(scale, shift) such that x*scale + shift is the batch norm of x with these statistics."""
    mean = np.ascontiguousarray(mean, np.float32)
    result = _empty((2, mean.size), np.float32)
    _native.fold((0, 1, None, mean.size, _floats(gamma), _floats(beta), mean, _floats(var), eps, result))
    return result[0], result[1]
