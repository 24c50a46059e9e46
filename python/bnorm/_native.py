# SPDX-License-Identifier: MIT
"""The library, and what its functions take (glue.c)."""
from __future__ import annotations

import ctypes
import os
from typing import Any

_lib = ctypes.PyDLL(os.path.join(os.path.dirname(__file__), "_bnorm.so"))


def _function(name: str, arguments: Any = (ctypes.py_object,), result: Any = ctypes.c_int) -> Any:
    function = getattr(_lib, "bnormpy_" + name)
    function.argtypes, function.restype = arguments, result
    return function


apply = _function("apply")
train = _function("train")
backward = _function("backward")
moments = _function("moments")
fold = _function("fold")
collect = _function("collect")
finish = _function("finish")
affine = _function("affine")
finish_grad = _function("finish_grad")
apply_grad = _function("apply_grad")
partial_size = _function("partial_size", (ctypes.c_size_t, ctypes.c_size_t), ctypes.c_size_t)
version = _function("version", (), ctypes.c_char_p)
isa = _function("isa", (), ctypes.c_char_p)
xla_scratch = _function("xla_scratch", (ctypes.c_int, ctypes.c_int, ctypes.c_int, ctypes.c_size_t, ctypes.c_void_p),
                        ctypes.c_size_t)
xla = {name: getattr(_lib, "bnormpy_xla_" + name) for name in ("apply", "train", "backward")}
use_gomp = _function("use_gomp", (ctypes.c_void_p, ctypes.c_void_p), None)

# What the functions of tensors return where one of them has strides that bnorm cannot do with.
COPY = 100
