# SPDX-License-Identifier: MIT
"""Batch normalization by bnorm in PyTorch, on CPUs.

`convert(model)` makes a model use it: every batch norm, with the ReLU, ReLU6, Hardswish or SiLU behind it, and
with the addition between the two where there is one. Parameters, names and state_dict stay as they are.

`BatchNorm1d`, `BatchNorm2d` and `BatchNorm3d` are those of torch.nn; `BatchNormReLU` and `BatchNormAddReLU` have
the activation, and the addition, in the same pass, for 2 to 5 axes; `BatchNormAct` has any activation of bnorm.
`SyncBatchNorm` has the statistics of the batches of all processes of torch.distributed, by gloo.

Tensors are of float32, bfloat16 or float16 on the CPU, with any strides (channels_last as it is), parameters of
float32. What is not, and what torch.compile, torch.jit.trace or torch.func see, is left to PyTorch's own batch
norm. Threads are PyTorch's. Gradients can be taken once.
"""
from __future__ import annotations

import ctypes
import math
import re
from typing import Any, Optional

import torch
import torch.distributed as dist
import torch.fx
import torch.nn.functional as F
from torch import Tensor, nn

from . import Activation, _act, _native
from . import _ACTS

__all__ = ["BatchNorm1d", "BatchNorm2d", "BatchNorm3d", "BatchNormAct", "BatchNormAddReLU", "BatchNormReLU",
           "SyncBatchNorm", "batch_norm", "convert"]

_TYPES = {torch.float32: 0, torch.bfloat16: 1, torch.float16: 2}


def _share_threads() -> None:
    """Has bnorm run on the threads of the OpenMP that PyTorch has loaded, which else would stand in the way."""
    try:
        with open("/proc/self/maps", encoding="utf-8") as maps:
            found = re.search(r"/\S*/libgomp[^/\s]*", maps.read())
        if found:
            gomp = ctypes.CDLL(found[0])
            _native.use_gomp(ctypes.cast(gomp.GOMP_parallel, ctypes.c_void_p),
                             ctypes.cast(gomp.omp_get_thread_num, ctypes.c_void_p))
    except (OSError, AttributeError):
        pass  # bnorm has threads of its own


_share_threads()


def _how(x: Tensor) -> tuple[Any, ...]:
    """What calls begin with: the channels' axis, the number of threads, and what x is."""
    return (1, torch.get_num_threads(), (_TYPES[x.dtype], x.shape))


def _memory(t: Optional[Tensor]) -> Any:
    return None if t is None else (t.data_ptr(), t.stride())


def _address(t: Optional[Tensor]) -> Any:
    return None if t is None else t.data_ptr()


def _form(x: Tensor) -> torch.memory_format:
    last = torch.channels_last if x.dim() == 4 else torch.channels_last_3d
    return last if x.dim() in (4, 5) and x.is_contiguous(memory_format=last) else torch.contiguous_format


def _call(function: Any, how: tuple[Any, ...], tensors: list[Optional[Tensor]], written: tuple[int, ...],
          rest: tuple[Any, ...]) -> None:
    if not function((*how, *map(_memory, tensors), *rest)):
        return
    # Strides that bnorm cannot do with: all tensors get those of the first, if it is dense.
    assert tensors[0] is not None
    form = _form(tensors[0])
    dense = [t if t is None else torch.empty(t.shape, dtype=t.dtype, memory_format=form) if i in written
             else t.contiguous(memory_format=form) for i, t in enumerate(tensors)]
    function((*how, *map(_memory, dense), *rest))
    for i in written:
        if tensors[i] is not None:
            tensors[i].copy_(dense[i])  # type: ignore[union-attr, arg-type]


def _forward(x: Tensor, residual: Optional[Tensor], weight: Optional[Tensor], bias: Optional[Tensor],
             mean: Optional[Tensor], var: Optional[Tensor], training: bool, rate: float, eps: float,
             act: tuple[int, float, float]) -> tuple[Tensor, Optional[Tensor]]:
    """y, and in training what backward needs of the statistics."""
    y = torch.empty_like(x)
    if not training:
        _call(_native.apply, _how(x), [x, y, residual], (1,),
              (_address(mean), _address(var), _address(weight), _address(bias), eps, *act))
        return y, None
    saved = torch.empty(4, x.shape[1])
    _call(_native.train, _how(x), [x, y, residual], (1,),
          (_address(weight), _address(bias), _address(mean), _address(var), saved.data_ptr(), eps, rate, True, *act))
    if mean is not None and var is not None:
        torch._C._increment_version((mean, var))
    return y, saved


def _tells(act: tuple[int, float, float], residual: Optional[Tensor]) -> bool:
    """Whether backward reads the activation's branch off y: that of ReLU, clamp, and leaky ReLU if it rises. Without
    a residual the argument is computed again."""
    return residual is not None and (act[0] in (1, 2) or act[0] == 3 and act[1] > 0)


def _refuse_twice() -> None:
    # torch.autograd.function.once_differentiable says the same, in 15 us.
    if torch.is_grad_enabled():
        raise RuntimeError("bnorm has no gradients of gradients: use torch.nn's batch norm, or float64, for create_graph")


class _Function(torch.autograd.Function):
    """batch_norm of tensors that bnorm can do with."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, residual: Optional[Tensor], weight: Optional[Tensor], bias: Optional[Tensor],
                mean: Optional[Tensor], var: Optional[Tensor], training: bool, rate: float, eps: float,
                act: tuple[int, float, float]) -> Tensor:
        y, saved = _forward(x, residual, weight, bias, mean, var, training, rate, eps, act)
        if training:
            mean = var = None
        by_y = _tells(act, residual)
        keep = residual if residual is not None and act[0] and not by_y else None
        ctx.save_for_backward(x, weight, bias, mean, var, saved, keep, y if by_y else None)
        ctx.eps, ctx.act = eps, act
        return y

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> tuple[Any, ...]:
        _refuse_twice()
        x, weight, bias, mean, var, saved, residual, y = ctx.saved_tensors
        wants_x, wants_residual = ctx.needs_input_grad[:2]
        dx = torch.empty_like(x) if wants_x else None
        dresidual = torch.empty_like(x) if wants_residual and ctx.act[0] else None
        gradients = torch.empty(2, x.shape[1])
        how = _how(x)
        _call(_native.backward, how, [x, dy, dx, residual, y, dresidual], (2, 5),
              (_address(weight), _address(bias), _address(mean), _address(var), _address(saved), gradients.data_ptr(),
               ctx.eps, *ctx.act))
        if wants_residual and not ctx.act[0]:
            dresidual = dy
        return (dx, dresidual, gradients[0] if weight is not None else None,
                gradients[1] if bias is not None else None, None, None, None, None, None, None)


class _SyncFunction(torch.autograd.Function):
    """Training with the statistics of the batches of all processes, which are numbered through in their order."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, residual: Optional[Tensor], weight: Optional[Tensor], bias: Optional[Tensor],
                mean: Optional[Tensor], var: Optional[Tensor], rate: float, eps: float,
                act: tuple[int, float, float], group: Any) -> Tensor:
        n, c = x.shape[:2]
        x = _images(x)
        if residual is not None:
            if residual.shape != x.shape or residual.dtype is not x.dtype:
                raise ValueError("SyncBatchNorm: residual has not the shape and type of x")
            residual = residual.contiguous(memory_format=_form(x))
        how = _how(x)
        sizes = torch.tensor([n, x[0, 0].numel() if n else 0])
        all_sizes = [torch.empty_like(sizes) for _ in range(dist.get_world_size(group))]
        dist.all_gather(all_sizes, sizes, group)
        counts = torch.stack(all_sizes)[:, 0].double()
        hw = int(torch.stack(all_sizes)[:, 1].max())
        first = int(counts[:dist.get_rank(group)].sum())
        if int(counts.sum()) * hw == 1:
            raise ValueError("Expected more than 1 value per channel when training")

        piece = (counts, hw, first, c, group)
        batch = _exchange(piece, how, [x, None, None, None], (None, None, None, 0, 0.0, 0.0))
        saved, coefficients, y = torch.empty(4, c), torch.empty(3, c), torch.empty_like(x)
        _native.finish((*how, *batch, _address(weight), _address(bias), _address(mean), _address(var),
                        saved.data_ptr(), eps, rate, True, coefficients.data_ptr()))
        if mean is not None and var is not None:
            torch._C._increment_version((mean, var))
        if n:
            _call(_native.affine, how, [x, y, residual], (1,), (coefficients.data_ptr(), *act))
        by_y = _tells(act, residual)
        keep = residual if residual is not None and act[0] and not by_y else None
        ctx.save_for_backward(x, weight, bias, saved, keep, y if by_y else None)
        ctx.piece, ctx.act = piece, act
        return y

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> tuple[Any, ...]:
        _refuse_twice()
        x, weight, bias, saved, residual, y = ctx.saved_tensors
        wants_residual = ctx.needs_input_grad[1]
        how = _how(x)
        dy = dy.contiguous(memory_format=_form(x))
        known = (_address(weight), _address(bias), saved.data_ptr())
        batch = _exchange(ctx.piece, how, [x, dy, residual, y], (*known, *ctx.act))
        gradients, coefficients = torch.empty(2, x.shape[1]), torch.empty(5, x.shape[1])
        _native.finish_grad((*how, *batch, _address(weight), saved.data_ptr(), gradients.data_ptr(),
                             coefficients.data_ptr()))
        dx = torch.empty_like(x)
        dresidual = torch.empty_like(x) if wants_residual and ctx.act[0] else None
        if x.shape[0]:
            _call(_native.apply_grad, how, [x, dy, dx, residual, y, dresidual], (2, 5),
                  (*known, coefficients.data_ptr(), *ctx.act))
        if wants_residual and not ctx.act[0]:
            dresidual = dy
        # DistributedDataParallel takes the mean over processes of what here is the sum already.
        gradients /= len(ctx.piece[0])
        return (dx, dresidual, gradients[0] if weight is not None else None,
                gradients[1] if bias is not None else None, None, None, None, None, None, None)


def _images(x: Tensor) -> Tensor:
    """x with strides that leave its images whole."""
    return x.contiguous(memory_format=_form(x))


def _exchange(piece: Any, how: tuple[Any, ...], tensors: list[Optional[Tensor]], known: tuple[Any, ...]) -> Any:
    """Reduces this process' part of the batch and gets all others': what _native.finish begins with."""
    counts, hw, first, c, group = piece
    slot = torch.zeros(_native.partial_size(c, int(counts.max())), dtype=torch.float64)
    x = tensors[0]
    if x is not None and x.shape[0]:
        if _native.collect((*how, *map(_memory, tensors), first, slot.numpy(), *known)):
            raise RuntimeError("bnorm does not see the images of this tensor as such; please report it")
    slots = torch.empty(len(counts) * slot.numel(), dtype=torch.float64)
    dist.all_gather(list(slots.chunk(len(counts))), slot, group)
    whole = torch.empty(_native.partial_size(c, int(counts.sum())), dtype=torch.float64)
    return (c, hw, counts.numpy(), slots.numpy(), whole.numpy())


def _is_watched() -> bool:
    """Whether torch.compile, torch.jit.trace or torch.func has to see all that is done."""
    return torch.compiler.is_compiling() or torch._C._get_tracing_state() is not None \
        or torch._C._functorch.peek_interpreter_stack() is not None


def _is_for_bnorm(x: Tensor, *parameters: Optional[Tensor]) -> bool:
    if type(x) is not Tensor or not x.is_cpu or x.dtype not in _TYPES or x.layout is not torch.strided \
            or x.dim() < 2 or not x.numel() or _is_watched():
        return False
    for t in parameters:
        if t is not None and (t.dtype is not torch.float32 or not t.is_cpu or t.shape != x.shape[1:2]
                              or not t.is_contiguous()):
            return False
    return True


_PLAIN = {0: lambda v: v, 1: F.relu, 5: torch.sigmoid, 6: F.silu, 7: torch.tanh, 8: F.gelu, 10: F.softplus, 11: F.mish,
          4: F.hardswish}


def _by_torch(x: Tensor, mean: Optional[Tensor], var: Optional[Tensor], weight: Optional[Tensor],
              bias: Optional[Tensor], training: bool, momentum: float, eps: float, act: tuple[int, float, float],
              residual: Optional[Tensor]) -> Tensor:
    y = F.batch_norm(x, mean, var, weight, bias, training, momentum, eps)
    if residual is not None:
        y = y + residual
    kind, a, b = act
    if kind == 2:
        return y.clamp(a, b)
    if kind == 3:
        return F.leaky_relu(y, a)
    if kind == 9:
        return F.elu(y, a)
    result: Tensor = _PLAIN[kind](y)
    return result


def batch_norm(x: Tensor, running_mean: Optional[Tensor], running_var: Optional[Tensor],
               weight: Optional[Tensor] = None, bias: Optional[Tensor] = None, training: bool = False,
               momentum: float = 0.1, eps: float = 1e-5, *, activation: Activation = None,
               residual: Optional[Tensor] = None) -> Tensor:
    """torch.nn.functional.batch_norm, then activation(... + residual); activations as in the package bnorm."""
    act = _ACTS.get(activation) or _act(activation)
    if residual is not None and (residual.shape != x.shape or residual.dtype is not x.dtype):
        return _by_torch(x, running_mean, running_var, weight, bias, training, momentum, eps, act, residual)
    # What numbers and None mean at the edges PyTorch says, and changes.
    if not _is_for_bnorm(x, running_mean, running_var, weight, bias) or not 0.0 < eps < math.inf \
            or not -math.inf < momentum < math.inf or (running_mean is None) is not (running_var is None):
        return _by_torch(x, running_mean, running_var, weight, bias, training, momentum, eps, act, residual)
    if training and x.numel() == x.shape[1]:
        raise ValueError(f"Expected more than 1 value per channel when training, got input size {x.size()}")
    try:
        if torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in (x, residual, weight, bias)):
            result: Tensor = _Function.apply(x, residual, weight, bias, running_mean, running_var, training, momentum,
                                             eps, act)
            return result
        return _forward(x, residual, weight, bias, running_mean, running_var, training, momentum, eps, act)[0]
    except ValueError:
        # A variance that is negative is an error to bnorm; PyTorch makes NaN of its channel.
        if training or running_var is None or not bool((running_var < -eps).any()):
            raise
        return _by_torch(x, running_mean, running_var, weight, bias, training, momentum, eps, act, residual)


# --------------------------------------------------------------------------------------------------
# Modules


def _count(steps: Tensor) -> None:
    """steps += 1, in 1 us for PyTorch's 8."""
    if type(steps) is not Tensor or steps.dtype is not torch.int64 or not steps.is_cpu or _is_watched():
        steps.add_(1)
        return
    ctypes.c_int64.from_address(steps.data_ptr()).value += 1
    torch._C._increment_version((steps,))


class _Base(nn.modules.batchnorm._BatchNorm):
    activation: Activation = None

    def _member(self, members: dict[str, Optional[Tensor]], name: str) -> Optional[Tensor]:
        # Module's own look-up takes 1 us each; a parametrization has put itself in the way.
        return members[name] if name in members else getattr(self, name)

    def _next_rate(self) -> float:
        """Counts a step of training; the weight of its statistics."""
        steps = self._member(self._buffers, "num_batches_tracked")
        if self.training and self.track_running_stats and steps is not None:
            _count(steps)
            if self.momentum is None:
                return 1.0 / float(steps)
        return 0.0 if self.momentum is None else self.momentum

    def _forward(self, x: Tensor, residual: Optional[Tensor] = None) -> Tensor:
        self._check_input_dim(x)  # type: ignore[no-untyped-call]
        parameters, buffers = self._parameters, self._buffers
        rate = self._next_rate()
        mean, var = self._member(buffers, "running_mean"), self._member(buffers, "running_var")
        training = self.training or (mean is None and var is None)
        if self.training and not self.track_running_stats:
            mean = var = None
        return batch_norm(x, mean, var, self._member(parameters, "weight"), self._member(parameters, "bias"), training,
                          rate, self.eps, activation=self.activation, residual=residual)

    def forward(self, x: Tensor) -> Tensor:
        return self._forward(x)


class BatchNorm1d(_Base, nn.BatchNorm1d):
    """torch.nn.BatchNorm1d by bnorm."""


class BatchNorm2d(_Base, nn.BatchNorm2d):
    """torch.nn.BatchNorm2d by bnorm."""


class BatchNorm3d(_Base, nn.BatchNorm3d):
    """torch.nn.BatchNorm3d by bnorm."""


class BatchNormAct(_Base):
    """activation(batch norm of x), for 2 to 5 axes; arguments besides `activation` are those of BatchNorm2d."""

    def __init__(self, num_features: int, *args: Any, activation: Activation = "relu", **kwargs: Any) -> None:
        super().__init__(num_features, *args, **kwargs)
        if activation not in _ACTS:
            _act(activation)
        self.activation = activation

    def _check_input_dim(self, input: Tensor) -> None:
        if not 2 <= input.dim() <= 5:
            raise ValueError(f"expected 2 to 5 axes, got {input.dim()}")

    def extra_repr(self) -> str:
        stock: str = super().extra_repr()  # type: ignore[no-untyped-call]
        return f"{stock}, activation={self.activation!r}"


class BatchNormReLU(BatchNormAct):
    """relu(batch norm of x)"""


class BatchNormAddReLU(BatchNormAct):
    """relu(batch norm of x + residual)"""

    def forward(self, x: Tensor, residual: Tensor) -> Tensor:  # type: ignore[override]
        return self._forward(x, residual)


class SyncBatchNorm(BatchNormAct):
    """Batch norm whose statistics in training are those of the batches of all processes of a group of
    torch.distributed, by gloo, for 2 to 5 axes: to the bits of one process with these batches one behind the other.
    All processes have to call it, and backward, equally often; their batches may differ in size. Gradients of
    weight and bias are the whole batch's divided by the number of processes, as DistributedDataParallel takes it."""

    def __init__(self, num_features: int, *args: Any, activation: Activation = None, process_group: Any = None,
                 **kwargs: Any) -> None:
        super().__init__(num_features, *args, activation=activation, **kwargs)
        self.process_group = process_group

    def forward(self, x: Tensor, residual: Optional[Tensor] = None) -> Tensor:
        group = self.process_group
        if not self.training or not dist.is_initialized() or dist.get_world_size(group) == 1:
            return self._forward(x, residual)
        self._check_input_dim(x)
        if x.device.type != "cpu" or x.dtype not in _TYPES:
            raise ValueError(f"SyncBatchNorm is for tensors on the CPU, of float32, bfloat16 or float16, not {x.dtype} "
                             f"on {x.device}")
        rate = self._next_rate()
        mean = var = None
        if self.track_running_stats and self.num_batches_tracked is not None:
            mean, var = self.running_mean, self.running_var
        act = _ACTS.get(self.activation) or _act(self.activation)
        result: Tensor = _SyncFunction.apply(x, residual, self.weight, self.bias, mean, var, rate, self.eps, act, group)
        return result


# --------------------------------------------------------------------------------------------------
# Models

_CLASSES: dict[type, type] = {nn.BatchNorm1d: BatchNorm1d, nn.BatchNorm2d: BatchNorm2d, nn.BatchNorm3d: BatchNorm3d}

_MODULE_ACTS = {nn.ReLU: "relu", nn.ReLU6: "relu6", nn.Hardswish: "hard_swish", nn.SiLU: "silu"}
_FUNCTION_ACTS = {F.relu: "relu", torch.relu: "relu", torch.relu_: "relu", F.relu_: "relu", F.relu6: "relu6",
                  F.hardswish: "hard_swish", F.silu: "silu"}
_METHOD_ACTS = {"relu": "relu", "relu_": "relu"}
_ADDS = (torch.add, "add", "add_")


def _activation_of(node: torch.fx.Node, modules: dict[str, nn.Module]) -> Optional[str]:
    if node.op == "call_module":
        return _MODULE_ACTS.get(type(modules[str(node.target)]))
    if node.op == "call_function":
        return _FUNCTION_ACTS.get(node.target)  # type: ignore[arg-type]
    if node.op == "call_method":
        return _METHOD_ACTS.get(str(node.target))
    return None


def _is_add(node: torch.fx.Node) -> bool:
    import operator
    adds = (*_ADDS, operator.add, operator.iadd)
    return node.op in ("call_function", "call_method") and node.target in adds and len(node.args) == 2 \
        and not node.kwargs and all(isinstance(a, torch.fx.Node) for a in node.args)


def _traced(model: nn.Module) -> Optional[torch.fx.GraphModule]:
    """The model as a graph, if it has one that does not depend on whether it is in training."""
    modes = {name: module.training for name, module in model.named_modules()}
    try:
        codes = []
        for mode in (True, False):
            model.train(mode)
            codes.append(torch.fx.symbolic_trace(model))
        same = codes[0].code == codes[1].code and not any(
            "training" in node.kwargs for node in codes[0].graph.nodes)
        return codes[0] if same else None
    except Exception:  # what is in a model's code, and so what tracing it raises, is anyone's
        return None
    finally:
        for name, module in model.named_modules():
            module.training = modes[name]


def _fuse(traced: torch.fx.GraphModule) -> int:
    """Puts activations and additions into the batch norms before them; how many it did."""
    modules = dict(traced.named_modules())
    calls: dict[str, int] = {}
    for node in traced.graph.nodes:
        if node.op == "call_module":
            calls[node.target] = calls.get(node.target, 0) + 1
    fused = 0
    for bn in list(traced.graph.nodes):
        if bn.op != "call_module" or type(modules[bn.target]) not in _CLASSES or calls[bn.target] != 1 \
                or len(bn.users) != 1 or len(bn.args) != 1:
            continue
        user = next(iter(bn.users))
        module = modules[bn.target]
        activation = _activation_of(user, modules)
        if activation and user.args and user.args[0] is bn:
            module.__class__ = BatchNormReLU if activation == "relu" else BatchNormAct
            module.activation = activation
            user.replace_all_uses_with(bn)
            traced.graph.erase_node(user)
            fused += 1
        elif _is_add(user) and len(user.users) == 1 and user.args[0] is not user.args[1]:
            last = next(iter(user.users))
            if _activation_of(last, modules) != "relu":
                continue
            other = user.args[1] if user.args[0] is bn else user.args[0]
            module.__class__ = BatchNormAddReLU
            module.activation = "relu"
            with traced.graph.inserting_before(last):
                both = traced.graph.call_module(bn.target, (bn.args[0], other))
            last.replace_all_uses_with(both)
            for node in (last, user, bn):
                traced.graph.erase_node(node)
            fused += 1
    return fused


def convert(model: nn.Module, *, fuse: bool = True) -> nn.Module:
    """Has a model's batch norms computed by bnorm, those before a ReLU (ReLU6, Hardswish, SiLU), or before an
    addition and a ReLU, together with these.

    The modules become others in place: parameters, buffers, hooks, names and state_dict stay. For what fuse does
    the model's forward becomes a graph (torch.fx), which is returned; where it cannot be traced, or does other
    things in training than in evaluation, and with fuse=False, the model itself is returned, its batch norms alone
    replaced. Batch norms of other classes stay."""
    result = model
    if fuse:
        traced = _traced(model)
        if traced is not None and _fuse(traced):
            traced.graph.lint()
            traced.recompile()
            traced.train(model.training)
            modes = dict(model.named_modules())
            for name, module in traced.named_modules():
                if name in modes:
                    module.training = modes[name].training
            result = traced
    for module in result.modules():
        if type(module) in _CLASSES:
            module.__class__ = _CLASSES[type(module)]
    return result
