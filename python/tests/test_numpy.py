# SPDX-License-Identifier: MIT
"""bnorm for NumPy against formulas in float64. Needs NumPy and the package; ml_dtypes for bfloat16."""
import doctest
import itertools
import math
import os
import threading
import unittest
import warnings

import numpy as np

import bnorm

try:
    import ml_dtypes
    BFLOAT16 = [np.dtype(ml_dtypes.bfloat16)]
except ImportError:
    BFLOAT16 = []

RNG = np.random.default_rng(1)
TYPES = [np.dtype(np.float32), np.dtype(np.float16)] + BFLOAT16
# Of a value that is rounded once.
ULP = {"float32": 2.0**-22, "float16": 2.0**-10, "bfloat16": 2.0**-7}

ERF = np.vectorize(math.erf)
ACTS = {
    None: lambda v: v,
    "relu": lambda v: np.maximum(v, 0),
    "relu6": lambda v: np.clip(v, 0, 6),
    ("clamp", -0.5, 0.75): lambda v: np.clip(v, -0.5, 0.75),
    ("leaky_relu", 0.1): lambda v: np.where(v > 0, v, 0.1 * v),
    "hard_swish": lambda v: v * np.clip(v + 3, 0, 6) / 6,
    "sigmoid": lambda v: 1 / (1 + np.exp(-v)),
    "silu": lambda v: v / (1 + np.exp(-v)),
    "tanh": np.tanh,
    "gelu": lambda v: v / 2 * (1 + ERF(v / math.sqrt(2))),
    "elu": lambda v: np.where(v > 0, v, np.expm1(np.minimum(v, 0))),
    ("elu", 0.5): lambda v: np.where(v > 0, v, 0.5 * np.expm1(np.minimum(v, 0))),
    "softplus": lambda v: np.log1p(np.exp(v)),
    "mish": lambda v: v * np.tanh(np.log1p(np.exp(v))),
}


def data(*shape, dtype=np.float32):
    return (RNG.standard_normal(shape) * 2 + 1).astype(dtype)


def along(values, ndim, axis):
    """Per-channel values so that they broadcast."""
    shape = [1] * ndim
    shape[axis] = -1
    return np.asarray(values, np.float64).reshape(shape)


def reference(x, axis, mean, var, gamma, beta, eps, residual, activation):
    x = x.astype(np.float64)
    mean, var, gamma, beta = (along(a, x.ndim, axis) for a in (mean, var, gamma, beta))
    v = (x - mean) / np.sqrt(var + eps) * gamma + beta
    if residual is not None:
        v = v + residual.astype(np.float64)
    return ACTS[activation](v)


def statistics(x, axis):
    others = tuple(i for i in range(x.ndim) if i != axis % x.ndim)
    x = x.astype(np.float64)
    return x.mean(others), x.var(others), x.size // x.shape[axis]


def views(array):
    """The same values with other strides, each with what says which."""
    yield "C", array
    yield "Fortran", np.asfortranarray(array)
    wide = np.zeros([n * 2 + 3 for n in array.shape], array.dtype)
    cut = wide[tuple(slice(1, 1 + n) for n in array.shape)]
    cut[...] = array
    yield "cut", cut
    step = np.zeros_like(wide)[tuple(slice(2, 2 + 2 * n, 2) for n in array.shape)]
    step[...] = array
    yield "every other", step
    yield "backwards", array[::-1].copy()[::-1]
    order = list(range(array.ndim))[::-1]
    order[0], order[-1] = order[-1], order[0]
    yield "transposed", np.ascontiguousarray(array.transpose(order)).transpose(np.argsort(order))


class Test(unittest.TestCase):

    def close(self, got, wanted, dtype, factor=1.0):
        got = np.asarray(got).astype(np.float64)
        self.assertEqual(got.shape, np.shape(wanted))
        error = np.abs(got - wanted) / np.maximum(1, np.abs(wanted))
        self.assertLessEqual(error.max(initial=0), ULP[np.dtype(dtype).name] * factor)

    def test_documentation(self):
        failed, run = doctest.testmod(bnorm)
        self.assertEqual(failed, 0)
        self.assertGreater(run, 0)

    def test_inference(self):
        for dtype, activation, axis in itertools.product(TYPES, ACTS, (1, -1)):
            with self.subTest(dtype=dtype, activation=activation, axis=axis):
                x, residual = data(3, 5, 4, 6, dtype=dtype), data(3, 5, 4, 6, dtype=dtype)
                c = x.shape[axis]
                mean, var, gamma, beta = data(c), data(c)**2, data(c), data(c)
                for r in (None, residual):
                    y = bnorm.batch_norm(x, mean, var, gamma, beta, axis=axis, residual=r, activation=activation)
                    self.assertEqual(y.dtype, x.dtype)
                    self.close(y, reference(x, axis, mean, var, gamma, beta, 1e-5, r, activation), dtype, 4)

    def test_train(self):
        for dtype, activation in itertools.product(TYPES, ACTS):
            with self.subTest(dtype=dtype, activation=activation):
                x, residual = data(4, 7, 5, dtype=dtype), data(4, 7, 5, dtype=dtype)
                gamma, beta, rm, rv = data(7), data(7), data(7), data(7)**2
                mean, var, n = statistics(x, 1)
                old = rm.copy(), rv.copy()
                y, saved = bnorm.batch_norm_train(x, gamma, beta, axis=1, running_mean=rm, running_var=rv, rate=0.25,
                                                  residual=residual, activation=activation)
                self.close(y, reference(x, 1, mean, var, gamma, beta, 1e-5, residual, activation), dtype, 4)
                self.close(saved.mean, mean, np.float32)
                self.close(saved.var, var, np.float32)
                self.close(saved.invstd, 1 / np.sqrt(var + 1e-5), np.float32)
                self.close(rm, old[0] + 0.25 * (mean - old[0]), np.float32)
                self.close(rv, old[1] + 0.25 * (var * n / (n - 1) - old[1]), np.float32)
        x, rv = data(6, 3), np.zeros(3, np.float32)
        bnorm.batch_norm_train(x, running_var=rv, rate=1, sample_variance=False)
        self.close(rv, statistics(x, -1)[1], np.float32)

    def loss_gradient(self, function, value, h=1e-3):
        """Of sum(function(value)*weights), by differences."""
        gradient = np.zeros(value.shape)
        for i in np.ndindex(value.shape):
            old = value[i]
            value[i] = old + h
            above = function()
            value[i] = old - h
            gradient[i] = (above - function()) / (2 * h)
            value[i] = old
        return gradient

    def test_backward(self):
        for activation, frozen, with_residual in itertools.product(ACTS, (False, True), (False, True)):
            with self.subTest(activation=activation, frozen=frozen, residual=with_residual):
                x, dy, gamma, beta = data(4, 3, 5), data(4, 3, 5), data(3), data(3)
                residual = data(4, 3, 5) if with_residual else None
                mean, var = data(3), data(3)**2
                arrays = [a if a is None else a.astype(np.float64) for a in (x, gamma, beta, residual)]

                def loss():
                    m, v = (mean, var) if frozen else statistics(arrays[0], 1)[:2]
                    return np.sum(dy * reference(arrays[0], 1, m, v, arrays[1], arrays[2], 1e-3, arrays[3], activation))

                if frozen:
                    given = {"mean": mean, "var": var, "saved": None}
                else:
                    given = {"saved": bnorm.batch_norm_train(x, gamma, beta, eps=1e-3, axis=1, residual=residual,
                                                             activation=activation)[1]}
                got = bnorm.batch_norm_backward(dy, x, gamma=gamma, beta=beta, eps=1e-3, axis=1, residual=residual,
                                                activation=activation, want_dresidual=with_residual, **given)
                wanted = [a if a is None else self.loss_gradient(loss, a, 1e-5) for a in arrays]
                for one, other in zip(got, wanted):
                    if other is not None:
                        np.testing.assert_allclose(one, other, rtol=1e-3, atol=1e-3)

    def test_backward_by_y(self):
        x, dy, gamma, beta, residual = data(4, 3, 5), data(4, 3, 5), data(3), data(3), data(4, 3, 5)
        y, saved = bnorm.batch_norm_train(x, gamma, beta, axis=1, residual=residual, activation="relu")
        one = bnorm.batch_norm_backward(dy, x, saved, gamma, beta, axis=1, activation="relu", residual=residual,
                                        want_dresidual=True)
        other = bnorm.batch_norm_backward(dy, x, saved, gamma, beta, axis=1, activation="relu", y=y,
                                          want_dresidual=True)
        for a, b in zip(one, other):
            np.testing.assert_array_equal(a, b)

    def test_strides(self):
        x, dy, residual, gamma, beta = data(3, 4, 5, 6), data(3, 4, 5, 6), data(3, 4, 5, 6), data(4), data(4)
        y, saved = bnorm.batch_norm_train(x, gamma, beta, axis=1, residual=residual, activation="relu")
        grads = bnorm.batch_norm_backward(dy, x, saved, gamma, beta, axis=1, y=y, activation="relu",
                                          want_dresidual=True)
        for (what, a), (_, b), (_, d) in itertools.chain(
                zip(views(x), views(residual), views(dy)),
                (((f"{i}, {j}, C", p), ("", q), ("", dy))
                 for (i, p), (j, q) in itertools.product(views(x), views(residual)))):
            with self.subTest(strides=what):
                for _, out in [("", None), *views(np.zeros_like(x))]:
                    again, s = bnorm.batch_norm_train(a, gamma, beta, axis=1, residual=b, activation="relu", out=out)
                    np.testing.assert_allclose(again, y, rtol=1e-5, atol=1e-5)
                    got = bnorm.batch_norm_backward(d, a, s, gamma, beta, axis=1, y=again, activation="relu",
                                                    want_dresidual=True, dx=out if out is not again else None)
                    for one, other in zip(got, grads):
                        np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-4)
                    if out is not None:
                        break
                mean, var = bnorm.moments(a, axis=1)
                np.testing.assert_allclose(mean, saved.mean, rtol=1e-6)
                np.testing.assert_allclose(var, saved.var, rtol=1e-6)

    def test_outputs_with_strides(self):
        x, mean, var = data(3, 4, 5), data(4), data(4)**2
        y = bnorm.batch_norm(x, mean, var, axis=1)
        for what, out in views(np.zeros_like(x)):
            with self.subTest(strides=what):
                self.assertIs(bnorm.batch_norm(x, mean, var, axis=1, out=out), out)
                np.testing.assert_array_equal(out, y)
        wide = np.full((3, 8, 5), 7, np.float32)
        bnorm.batch_norm(x, mean, var, axis=1, out=wide[:, 2:6])
        np.testing.assert_array_equal(wide[:, 2:6], y)
        self.assertTrue((wide[:, :2] == 7).all() and (wide[:, 6:] == 7).all())

    def test_in_place(self):
        for what, x in views(data(3, 4, 5)):
            with self.subTest(strides=what):
                y = bnorm.batch_norm(x, np.zeros(4, np.float32), np.ones(4, np.float32), axis=1)
                bnorm.batch_norm(x, np.zeros(4, np.float32), np.ones(4, np.float32), axis=1, out=x)
                np.testing.assert_array_equal(x, y)

    def test_expanded_gradient(self):
        x, gamma = data(3, 4, 5), data(4)
        saved = bnorm.batch_norm_train(x, axis=1)[1]
        for few in (data(3, 4, 1), data(1, 4, 5), data(1, 4, 1), data(1, 1, 1), data(3, 1, 5)):
            dy = np.broadcast_to(few, x.shape)
            one = bnorm.batch_norm_backward(dy, x, saved, gamma, axis=1)
            other = bnorm.batch_norm_backward(dy.copy(), x, saved, gamma, axis=1)
            for a, b in zip(one[:3], other[:3]):
                np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)

    def test_any_rank(self):
        for rank in range(1, 7):
            x = data(*[2 + i % 3 for i in range(rank)])
            for axis in range(-rank, rank):
                mean, var, _ = statistics(x, axis)
                c = x.shape[axis]
                y, _ = bnorm.batch_norm_train(x, axis=axis)
                self.close(y, reference(x, axis, mean, var, np.ones(c), np.zeros(c), 1e-5, None, None), np.float32, 4)

    def test_empty(self):
        for shape in ((0, 3, 4), (2, 3, 0)):
            y, saved = bnorm.batch_norm_train(np.zeros(shape, np.float32), axis=1)
            self.assertEqual(y.shape, shape)
            self.assertTrue((saved.statistics == 0).all())
            got = bnorm.batch_norm_backward(y, y, saved, axis=1)
            self.assertTrue((got.dgamma == 0).all() and (got.dbeta == 0).all())

    def test_threads(self):
        x, dy, gamma, beta = data(8, 32, 40, 40), data(8, 32, 40, 40), data(32), data(32)
        results = []
        for threads in (1, 2, 3, 8):
            y, saved = bnorm.batch_norm_train(x, gamma, beta, axis=1, activation="silu", threads=threads)
            grads = bnorm.batch_norm_backward(dy, x, saved, gamma, beta, axis=1, activation="silu", threads=threads)
            results.append([y, saved.statistics, *grads[:3]])
        for other in results[1:]:
            for a, b in zip(results[0], other):
                self.assertEqual(a.tobytes(), b.tobytes())

        def many():
            for _ in range(10):
                got.append(bnorm.batch_norm_train(x, gamma, beta, axis=1, activation="silu", threads=2)[0])

        got = []
        callers = [threading.Thread(target=many) for _ in range(4)]
        for caller in callers:
            caller.start()
        for caller in callers:
            caller.join()
        self.assertEqual(len(got), 40)
        for y in got:
            self.assertEqual(y.tobytes(), results[0][0].tobytes())
        self.assertEqual(os.environ.get("BNORM_ISA", bnorm.isa()), bnorm.isa())

    @unittest.skipIf("BNORM_TEST_NO_FORK" in os.environ, "said so")
    def test_fork(self):
        x = data(8, 32, 40, 40)
        y = bnorm.batch_norm_train(x, axis=1, threads=2)[0]
        child = os.fork()
        if child == 0:
            same = bnorm.batch_norm_train(x, axis=1, threads=2)[0].tobytes() == y.tobytes()
            os._exit(0 if same else 1)
        self.assertEqual(os.waitpid(child, 0)[1], 0)

    def test_default_threads(self):
        x = data(64, 64)
        bnorm.set_threads(2)
        try:
            bnorm.batch_norm_train(x)
        finally:
            bnorm.set_threads(1)
        self.assertRaises(ValueError, bnorm.set_threads, 0)

    def test_fold(self):
        mean, var, gamma, beta = data(9), data(9)**2, data(9), data(9)
        scale, shift = bnorm.fold(mean, var, gamma, beta, eps=1e-3)
        wanted = gamma.astype(np.float64) / np.sqrt(var.astype(np.float64) + 1e-3)
        self.close(scale, wanted, np.float32)
        self.close(shift, beta - mean * wanted, np.float32, 4)
        self.close(bnorm.fold([1, 2], [4, 9], eps=0)[0], [1 / 2, 1 / 3], np.float32)
        with self.assertRaisesRegex(ValueError, "variance"):
            bnorm.fold(mean, -1 - var)

    def test_errors(self):
        x, one, c = data(2, 3, 4), np.ones(3, np.float32), np.ones(4, np.float32)
        read_only = x.copy()
        read_only.flags.writeable = False
        saved = bnorm.batch_norm_train(x, axis=1)[1]
        for error, says, call in [
                (TypeError, "float32, float16 or bfloat16", lambda: bnorm.batch_norm(x.astype(float), c, c)),
                (TypeError, "float32, float16 or bfloat16", lambda: bnorm.batch_norm(x.astype("i4"), c, c)),
                (TypeError, "no NumPy array", lambda: bnorm.batch_norm([[1.0]], one, one, out=x)),
                (TypeError, "mean is no NumPy array", lambda: bnorm.batch_norm(x, 3.0, c)),
                (ValueError, "mean has to be", lambda: bnorm.batch_norm(x, one, c)),
                (ValueError, "var has to be", lambda: bnorm.batch_norm(x, c, c.astype(float))),
                (ValueError, "gamma has to be", lambda: bnorm.batch_norm(x, c, c, np.ones(8, np.float32)[::2])),
                (TypeError, "mean is None", lambda: bnorm.batch_norm(x, None, c)),
                (TypeError, "var is None", lambda: bnorm.fold(c, None)),
                (ValueError, "axis 3", lambda: bnorm.batch_norm(x, c, c, axis=3)),
                (ValueError, "none of x", lambda: bnorm.batch_norm(x, c, c, axis=2**32)),
                (ValueError, "axis 3", lambda: bnorm.batch_norm_train(x, axis=3)),
                (TypeError, "no NumPy array", lambda: bnorm.moments([[1.0]])),
                (ValueError, "read-only", lambda: bnorm.batch_norm(x, c, c, out=read_only)),
                (ValueError, "out has not the shape", lambda: bnorm.batch_norm(x, c, c, out=x[:1])),
                (ValueError, "residual has not the shape", lambda: bnorm.batch_norm(x, c, c, residual=c)),
                (ValueError, "other order", lambda: bnorm.batch_norm(x.astype(">f4"), c, c)),
                (ValueError, "'swosh' is no activation", lambda: bnorm.batch_norm(x, c, c, activation="swosh")),
                (ValueError, "is no activation", lambda: bnorm.batch_norm(x, c, c, activation=("clamp", 1))),
                (ValueError, "bound or slope", lambda: bnorm.batch_norm(x, c, c, activation=("clamp", 1, 0))),
                (ValueError, "Epsilon", lambda: bnorm.batch_norm_train(x, eps=-1)),
                (ValueError, "give saved", lambda: bnorm.batch_norm_backward(x, x)),
                (ValueError, "saved has to be", lambda: bnorm.batch_norm_backward(x, x, saved, axis=2)),
        ]:
            with self.subTest(says=says), self.assertRaisesRegex(error, says):
                call()

    def test_any_arguments(self):
        """One or two arguments of a right call replaced by others, most of them wrong: it succeeds, if they are right,
        or an exception says why not and nothing has been written."""
        rng = np.random.default_rng(2)
        shape, axis = (3, 4, 5), 1
        wide = np.zeros((5, 8, 9), np.float32)
        arrays = {
            "x": data(*shape), "out": np.zeros(shape, np.float32), "cut": wide[1:4, 2:6, 2:7], "mean": data(4),
            "gamma": data(4), "var": data(4)**2, "wide": wide, "stepped": np.zeros((6, 4, 10), np.float32)[::2, :, ::2],
            "half": data(*shape, dtype=np.float16), "double": data(*shape).astype(float), "doubles": data(4).astype(float), "plane": data(3, 4),
            "ints": np.zeros(shape, np.int8),
            "swapped": data(*shape).astype(">f4"), "backwards": data(*shape)[::-1, :, ::-1], "empty": np.zeros((0, 4, 5), "f4"),
            "long": data(9), "matrix": data(4, 4), "scalar": np.float32(1) * np.ones(()), "complex": np.zeros(shape, "c8"),
            "strings": np.array([["a"]]), "objects": np.array([None, 1]), "channelless": np.zeros((3, 0, 5), np.float32),
            "unaligned": np.frombuffer(bytearray(61), np.uint8)[1:61].view(np.float32),
            "running": data(4), "running too": data(4), "nan": np.full(4, np.nan, np.float32), "negative": -data(4)**2 - 1, "flat": data(60)}
        arrays["read-only"] = data(*shape)
        arrays["read-only"].flags.writeable = False
        arrays["shared"] = np.broadcast_to(data(1, 4, 1), shape)
        arrays["overlap"] = arrays["flat"][1:].reshape(1, 1, 59)
        arrays["half of it"] = np.lib.stride_tricks.as_strided(wide, shape, (4, 4, 4))
        arrays["huge"] = np.broadcast_to(np.float32(1), (2**20, 2**20, 2**15))
        arrays["high"] = np.zeros((1,) * 32, np.float32)
        others = [None, 1, -1, 2.5, "relu", ("clamp", 1, 0), ("clamp", math.nan, 1), ("leaky_relu", 1e300), (), [], {}, 2**40,
                  2**70, -2**33, math.nan, math.inf, -1.0, b"", object(), float, True, [[1.0]], memoryview(b"1234")]
        saved = bnorm.batch_norm_train(arrays["x"], axis=axis)[1]
        calls = [(bnorm.batch_norm, {"x": "x", "mean": "mean", "var": "var", "gamma": "gamma", "beta": "mean",
                                     "residual": "x", "out": "out"}, {"eps": 1e-5, "activation": "relu"}),
                 (bnorm.batch_norm_train, {"x": "x", "gamma": "gamma", "beta": "mean", "residual": "x", "out": "out",
                                           "running_mean": "running", "running_var": "running too"},
                  {"eps": 1e-5, "activation": "silu", "rate": 0.1, "sample_variance": True}),
                 (bnorm.batch_norm_backward, {"dy": "x", "x": "x", "gamma": "gamma", "beta": "mean", "residual": "x",
                                              "dx": "out", "mean": "mean", "var": "var", "y": None},
                  {"saved": saved, "eps": 1e-5, "activation": "relu", "want_dresidual": True}),
                 (bnorm.moments, {"x": "x"}, {}),
                 (bnorm.fold, {"mean": "mean", "var": "var", "gamma": "gamma", "beta": "mean"}, {"eps": 1e-5})]
        counts = {True: 0, False: 0}
        for i in range(6000):
            function, tensors, options = calls[i % len(calls)]
            if function is not bnorm.fold:
                options = {**options, "axis": axis, "threads": 1}
            given = {**{key: arrays.get(name) for key, name in tensors.items()}, **options}
            for key in rng.choice(list(given), rng.integers(1, 3)):
                # Most often of the right kind.
                pool = list(arrays.values()) if (key in tensors) == (rng.random() < 0.9) else others
                given[key] = pool[rng.integers(len(pool))]
            before = {name: a.tobytes() for name, a in arrays.items() if name not in ("huge", "objects")}
            written = []
            try:
                with warnings.catch_warnings():
                    warnings.simplefilter("ignore")  # as of complex numbers that become real
                    function(**given)
                written = [given.get(key) for key in ("out", "dx", "running_mean", "running_var")]
            except (TypeError, ValueError, OverflowError, AttributeError, MemoryError) as error:
                self.assertTrue(str(error))
            counts[bool(written)] += 1
            if written and function is not bnorm.fold:
                x = given["x"]
                for key in tensors.keys() & {"mean", "var", "gamma", "beta", "running_mean", "running_var"}:
                    self.assertTrue(given[key] is None or (given[key].dtype, given[key].size) ==
                                    (np.float32, x.shape[given["axis"]]), (function, given, key))
                for key in tensors.keys() & {"out", "residual", "dy", "dx", "y"}:
                    self.assertTrue(given[key] is None or (given[key].dtype, given[key].shape) == (x.dtype, x.shape),
                                    (function, given, key))
                for key in ("out", "dx", "running_mean", "running_var"):
                    self.assertTrue(given.get(key) is None or given[key].flags.writeable, (function, given, key))
            for name, was in before.items():
                if not any(isinstance(a, np.ndarray) and np.may_share_memory(a, arrays[name]) for a in written):
                    self.assertEqual(arrays[name].tobytes(), was, (function, given, name))
        self.assertGreater(min(counts.values()), 500, counts)

    def test_nothing_is_kept_alive(self):
        import gc
        import sys
        x, c = data(2, 3, 4), np.ones(4, np.float32)
        before = sys.getrefcount(x), sys.getrefcount(c)
        for _ in range(100):
            bnorm.batch_norm(x, c, c, activation="relu")
            try:
                bnorm.batch_norm(x, c, c, out=x[:1])
            except ValueError:
                pass
        gc.collect()
        self.assertEqual((sys.getrefcount(x), sys.getrefcount(c)), before)


if __name__ == "__main__":
    result = unittest.main(exit=False).result
    wrong = {getattr(test, "test_case", test).id() for test, _ in result.failures + result.errors}
    print(f"{result.testsRun - len(wrong)} passed, {len(wrong)} failed")
    raise SystemExit(len(wrong) != 0)
