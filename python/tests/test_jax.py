# SPDX-License-Identifier: MIT
"""bnorm.jax against JAX's own arithmetic and gradients, and against bnorm for NumPy. Needs JAX and the package."""
import functools
import itertools
import unittest

import numpy as np

try:
    import jax
except ImportError:
    print("skipped: JAX is not installed; `pip install jax`, or `make engines ENGINES=jax` in bnorm's checkout")
    raise SystemExit(0)
import jax.numpy as jnp
from jax.test_util import check_grads

import bnorm
import bnorm.jax as bj

RNG = np.random.default_rng(1)
TYPES = [jnp.float32, jnp.bfloat16, jnp.float16]
TOLERANCE = {"float32": 2e-5, "bfloat16": 2e-2, "float16": 3e-3}
ACTS = {
    None: lambda v: v,
    "relu": jax.nn.relu,
    "relu6": jax.nn.relu6,
    ("clamp", -0.5, 0.75): lambda v: jnp.clip(v, -0.5, 0.75),
    ("leaky_relu", 0.1): lambda v: jax.nn.leaky_relu(v, 0.1),
    ("leaky_relu", -0.1): lambda v: jax.nn.leaky_relu(v, -0.1),
    "hard_swish": jax.nn.hard_swish,
    "sigmoid": jax.nn.sigmoid,
    "silu": jax.nn.silu,
    "tanh": jnp.tanh,
    "gelu": functools.partial(jax.nn.gelu, approximate=False),
    ("elu", 0.5): lambda v: jax.nn.elu(v, 0.5),
    "softplus": jax.nn.softplus,
    "mish": jax.nn.mish,
}


def data(*shape, dtype=np.float32):
    return (RNG.standard_normal(shape) * 2 + 1).astype(dtype)


def plain(x, mean, var, gamma, beta, eps, axis, residual, activation):
    """The formula, in float, as anyone would write it."""
    shape = [1] * x.ndim
    shape[axis] = -1
    mean, var, gamma, beta = (jnp.reshape(jnp.asarray(a), shape) for a in (mean, var, gamma, beta))
    v = (x.astype(jnp.float32) - mean) / jnp.sqrt(var + eps) * gamma + beta
    return ACTS[activation](v if residual is None else v + residual.astype(jnp.float32)).astype(x.dtype)


def plain_train(x, gamma, beta, residual, eps=1e-5, axis=-1, activation=None):
    others = tuple(i for i in range(x.ndim) if i != axis % x.ndim)
    mean, var = jnp.mean(x.astype(jnp.float32), others), jnp.var(x.astype(jnp.float32), others)
    return plain(x, mean, var, gamma, beta, eps, axis, residual, activation), mean, var


class Test(unittest.TestCase):

    def close(self, got, wanted, dtype=jnp.float32, factor=1.0):
        self.assertEqual(jax.tree.structure(got), jax.tree.structure(wanted))
        for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(wanted)):
            self.assertEqual((a.shape, a.dtype), (b.shape, b.dtype))
            tolerance = TOLERANCE[jnp.dtype(dtype).name] * factor
            np.testing.assert_allclose(np.asarray(a, np.float32), np.asarray(b, np.float32), tolerance, tolerance)

    def same(self, got, wanted):
        self.assertEqual(len(got), len(wanted))
        for a, b in zip(got, wanted):
            self.assertEqual(np.asarray(a).tobytes(), np.asarray(b).tobytes())

    def test_bits_of_numpy(self):
        for dtype, (shape, axis), activation, with_residual in itertools.product(
                TYPES, (((3, 5, 4, 6), 1), ((2, 40, 3, 50), -1)), ("relu", "silu", ("leaky_relu", -1)), (False, True)):
            with self.subTest(dtype=dtype, shape=shape, axis=axis, activation=activation, residual=with_residual):
                x, dy, residual = data(*shape, dtype=dtype), data(*shape, dtype=dtype), data(*shape, dtype=dtype)
                gamma, beta, mean, var = (data(shape[axis]) for _ in range(4))
                residual, var = residual if with_residual else None, var**2 + 1  # no results are denormal
                options = {"axis": axis, "activation": activation}

                y, saved = bnorm.batch_norm_train(x, gamma, beta, residual=residual, **options)
                grads = bnorm.batch_norm_backward(dy, x, saved, gamma, beta, want_dresidual=with_residual,
                                                  residual=residual if activation != "relu" else None,
                                                  y=y if activation == "relu" and with_residual else None, **options)
                operands = [a for a in (x, gamma, beta, residual) if a is not None]
                for jit in (jax.jit, lambda f: f):
                    out, back = jax.vjp(jit(lambda x, gamma, beta, residual=None: bj.batch_norm_train(
                        x, gamma, beta, residual=residual, **options)), *operands)
                    self.same(out, (y, saved.mean, saved.var))
                    self.same(back((jnp.asarray(dy), jnp.zeros_like(out[1]), jnp.zeros_like(out[2]))),
                              [g for g in grads if g is not None])

                y = bnorm.batch_norm(x, mean, var, gamma, beta, residual=residual, **options)
                grads = bnorm.batch_norm_backward(dy, x, None, gamma, beta, mean=mean, var=var, residual=residual,
                                                  want_dresidual=with_residual, **options)
                out, back = jax.vjp(lambda x, gamma, beta, residual=None: bj.batch_norm(
                    x, mean, var, gamma, beta, residual=residual, **options), *operands)
                self.same([out], [y])
                # Backward of ReLU after a residual is by y, which in 16 bits may have been rounded to 0.
                if activation != "relu" or not with_residual or dtype is jnp.float32:
                    self.same(back(jnp.asarray(dy)), [g for g in grads if g is not None])

    def test_gradients(self):
        # In 16 bits what is rounded to a bound of ReLU and the like has no branch of its own to compare.
        for dtype, axis, activation in itertools.chain(itertools.product(TYPES[:1], (1,), ACTS),
                                                       itertools.product(TYPES, (-1,), (None, "gelu"))):
            with self.subTest(dtype=dtype, axis=axis, activation=activation):
                x, residual, dy = (data(4, 5, 3, 6, dtype=dtype) for _ in range(3))
                gamma, beta, mean, var = (data(x.shape[axis]) for _ in range(4))
                var = var**2 + 1
                options = {"axis": axis, "activation": activation}
                # The mean and the variance are in the loss, too.
                dy = (jnp.asarray(dy), *(jnp.asarray(data(x.shape[axis]) * 0.1) for _ in range(2)))
                got, back = jax.vjp(lambda *a: bj.batch_norm_train(*a[:3], residual=a[3], **options), x, gamma, beta,
                                    residual)
                wanted, plain_back = jax.vjp(lambda *a: plain_train(*a, **options), x, gamma, beta, residual)
                self.close(got, wanted, dtype, 4)
                self.close(back(dy), plain_back(dy), dtype, 20)

                operands = (x, mean, var, gamma, beta, residual)
                got, back = jax.vjp(lambda *a: bj.batch_norm(*a[:5], residual=a[5], **options), *operands)
                wanted, plain_back = jax.vjp(lambda *a: plain(*a[:5], 1e-5, axis, a[5], activation), *operands)
                self.close(got, wanted, dtype, 4)
                self.close(back(dy[0]), plain_back(dy[0]), dtype, 20)

    def test_gradients_by_differences(self):
        x, residual = data(5, 3, 4), data(5, 3, 4)
        gamma, beta, mean, var = data(3), data(3), data(3), data(3)**2 + 1
        for activation in (None, "silu", "tanh"):
            options = {"axis": 1, "activation": activation}
            check_grads(lambda x, gamma, beta, r: bj.batch_norm_train(x, gamma, beta, residual=r, **options),
                        (x, gamma, beta, residual), order=1, modes=["rev"], atol=2e-2, rtol=2e-2, eps=1e-2)
            check_grads(lambda x, mean, var, gamma, beta: bj.batch_norm(x, mean, var, gamma, beta, **options),
                        (x, mean, var, gamma, beta), order=1, modes=["rev"], atol=2e-2, rtol=2e-2, eps=1e-2)

    def test_without_parameters(self):
        x, mean, var = data(6, 5), data(5), data(5)**2
        ones, zeros = np.ones(5, np.float32), np.zeros(5, np.float32)
        for gamma, beta in itertools.product((None, ones), (None, zeros)):
            self.same(bj.batch_norm_train(x, gamma, beta), bj.batch_norm_train(x, ones, zeros))
            self.same([bj.batch_norm(x, mean, var, gamma, beta)], [bj.batch_norm(x, mean, var, ones, zeros)])
        loss = lambda x, gamma: (bj.batch_norm_train(x, gamma)[0]**3).sum()
        self.close(jax.grad(loss)(x, None), jax.grad(lambda x: (plain_train(x, ones, zeros, None)[0]**3).sum())(x),
                   factor=20)

    def test_any_rank(self):
        for rank in range(1, 7):
            x = data(*[2 + i % 3 for i in range(rank)])
            for axis in range(-rank, rank):
                y, saved = bnorm.batch_norm_train(x, axis=axis)
                self.same(bj.batch_norm_train(x, axis=axis), (y, saved.mean, saved.var))

    def test_empty(self):
        for shape in ((0, 3, 4), (2, 3, 0)):
            y, mean, var = bj.batch_norm_train(jnp.zeros(shape), axis=1)
            self.assertEqual(y.shape, shape)
            self.same((mean, var), (np.zeros(3, np.float32), np.zeros(3, np.float32)))
            dgamma = jax.grad(lambda gamma: bj.batch_norm_train(jnp.zeros(shape), gamma, axis=1)[0].sum())(jnp.ones(3))
            self.same([dgamma], [np.zeros(3, np.float32)])

    def test_negative_variance(self):
        for eps in (1e-5, 2e-5, 1e-3, 1e-1):
            var = np.float32([-eps, np.nextafter(np.float32(-eps), np.float32(-1)), 1])
            exact = var.astype(np.float64) + eps < 0
            y, back = jax.vjp(lambda x: bj.batch_norm(x, np.zeros(3, np.float32), var, eps=eps), data(4, 3))
            self.assertTrue((np.isnan(y) == exact).all(), (eps, y))
            self.assertTrue((np.isnan(back(y)[0]) == exact).all())

    def test_transformations(self):
        x, gamma, beta = data(4, 6, 5), data(5), data(5)
        each = [bj.batch_norm_train(one, gamma, beta)[0] for one in x]
        f = lambda one: bj.batch_norm_train(one, gamma, beta)[0]
        self.same(jax.vmap(f)(x), each)
        self.same(jax.jit(jax.vmap(f))(x), each)
        self.same(jax.lax.map(f, x), each)
        loss = lambda one, gamma: (bj.batch_norm_train(one, gamma, beta, activation="silu")[0]**2).sum()
        wanted = [jax.grad(loss, (0, 1))(one, gamma) for one in x]
        self.same(jax.vmap(jax.grad(loss), (0, None))(x, gamma), [w[0] for w in wanted])
        # One gamma for all: the gradients are added up.
        self.close(jax.grad(lambda gamma: jax.vmap(loss, (0, None))(x, gamma).sum())(gamma), sum(w[1] for w in wanted))
        self.same(jax.grad(jax.checkpoint(loss), (0, 1))(x[0], gamma), wanted[0])

        def scanned(x, gamma):
            return jax.lax.scan(lambda carry, _: (bj.batch_norm_train(carry, gamma)[0] + carry, None), x, None, 3)[0].sum()

        def looped(x, gamma):
            for _ in range(3):
                x = plain_train(x, gamma, jnp.zeros(5), None)[0] + x
            return x.sum()

        self.close(jax.jit(jax.grad(scanned, 1))(x, gamma), jax.grad(looped, 1)(x, gamma), factor=50)
        self.assertEqual(jax.eval_shape(f, x[0]).shape, (6, 5))

    def test_running_statistics(self):
        """A step as in the documentation of the module: what is only tracked has no part in the gradient."""
        x, gamma, running = data(8, 5), data(5), jnp.zeros(5)

        @functools.partial(jax.value_and_grad, has_aux=True)
        def step(gamma, running):
            y, mean, _ = bj.batch_norm_train(x, gamma)
            return (y**2).sum(), running + 0.1 * (mean - running)

        (_, running), dgamma = jax.jit(step)(gamma, running)
        self.close(running, jnp.asarray(x.mean(0) * 0.1))
        self.close(dgamma, jax.grad(lambda g: (plain_train(x, g, jnp.zeros(5), None)[0]**2).sum())(gamma), factor=20)

    def test_threads(self):
        """Large arrays, which XLA's threads share, one and several at a time: often enough to meet helpers that come
        late, and a caller that has to wait for them."""
        xs, mean, var = [data(8, 64, 56, 56) for _ in range(3)], data(64), data(64)**2 + 1
        wanted = [bnorm.batch_norm(x, mean, var, axis=1, activation="relu") for x in xs]
        xs = [jnp.asarray(x) for x in xs]
        f = jax.jit(lambda *xs: [bj.batch_norm(x, mean, var, axis=1, activation="relu") for x in xs])
        for _ in range(50):
            self.same(f(xs[0]), wanted[:1])
            self.same(f(*xs), wanted)

    def test_errors(self):
        x, c, three = data(2, 3, 4), np.ones(4, np.float32), np.ones(3, np.float32)
        for error, says, call in [
                (TypeError, "int32, not of float32", lambda: bj.batch_norm(x.astype("i4"), c, c)),
                (ValueError, "axis 3", lambda: bj.batch_norm(x, c, c, axis=3)),
                (ValueError, "axis -4", lambda: bj.batch_norm_train(x, axis=-4)),
                (ValueError, "axis 0", lambda: bj.batch_norm_train(np.float32(1), axis=0)),
                (ValueError, r"mean has the shape \(3,\)", lambda: bj.batch_norm(x, three, c)),
                (ValueError, "gamma has the shape", lambda: bj.batch_norm_train(x, three)),
                (ValueError, "residual has not", lambda: bj.batch_norm_train(x, residual=x[:1])),
                (ValueError, "residual has not", lambda: bj.batch_norm_train(x, residual=x.astype("f2"))),
                (ValueError, "no channels", lambda: bj.batch_norm_train(np.zeros((2, 0), np.float32))),
                (ValueError, "eps is nan", lambda: bj.batch_norm_train(x, eps=float("nan"))),
                (ValueError, "eps is -1", lambda: bj.batch_norm(x, c, c, eps=-1)),
                (ValueError, "is no activation", lambda: bj.batch_norm_train(x, activation="swosh")),
                (Exception, "bound or slope", lambda: bj.batch_norm_train(x, activation=("clamp", 1, 0))),
                (TypeError, "forward-mode", lambda: jax.jvp(lambda x: bj.batch_norm_train(x)[0], (x,), (x,))),
                (ValueError, "cannot be differentiated", lambda: jax.grad(lambda x: jax.grad(
                    lambda x: (bj.batch_norm_train(x)[0]**2).sum())(x).sum())(x)),
                (Exception, "functions of bnorm.jax", lambda: jax.ffi.ffi_call("bnorm_train", jax.ShapeDtypeStruct(
                    (1,), np.float32))(x)),
        ]:
            with self.subTest(says=says), self.assertRaisesRegex(error, says):
                jax.block_until_ready(call())


if __name__ == "__main__":
    result = unittest.main(exit=False).result
    wrong = {getattr(test, "test_case", test).id() for test, _ in result.failures + result.errors}
    print(f"{result.testsRun - len(wrong)} passed, {len(wrong)} failed")
    raise SystemExit(len(wrong) != 0)
