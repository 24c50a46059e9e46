# SPDX-License-Identifier: MIT
"""bnorm.keras against Keras' own layer, and by Keras' own tests of it, with the backend that $KERAS_BACKEND names:
jax, unless it says torch. Needs Keras, pytest for its tests, JAX or PyTorch, and the package."""
import contextlib
import io
import itertools
import os
import tempfile
import unittest
from unittest import mock

os.environ.setdefault("KERAS_BACKEND", "jax")

import numpy as np

try:
    import keras
except ImportError as error:
    print(f"skipped: {error}; `pip install keras pytest` and the backend, or `make engines ENGINES=keras` in bnorm's "
          "checkout")
    raise SystemExit(0)

import bnorm.keras as bk

BACKEND = keras.backend.backend()
TOLERANCE = {"float32": 1e-4, "mixed_bfloat16": 3e-2, "mixed_float16": 4e-3}


def data(*shape):
    return np.random.default_rng(sum(shape)).standard_normal(shape).astype(np.float32) * 2 + 1


def pair(shape, **options):
    """Keras' layer and bnorm's, built, with the same weights, which are not 0 and 1."""
    layers = keras.layers.BatchNormalization(**options), bk.BatchNormalization(**options)
    for layer in layers:
        layer.build(shape)
        layer.set_weights([data(*w.shape)**2 + 0.5 for w in layer.weights])
    return layers


def by_bnorm():
    """Fails where the layer leaves a call to Keras."""
    return mock.patch.object(keras.layers.BatchNormalization, "call", side_effect=AssertionError("left to Keras"))


class Test(unittest.TestCase):

    def close(self, got, wanted, tolerance=1e-4):
        got, wanted = (np.asarray(keras.ops.convert_to_numpy(keras.ops.cast(a, "float32"))) for a in (got, wanted))
        np.testing.assert_allclose(got, wanted, tolerance, tolerance)

    def test_layer(self):
        for dtype, (shape, axis), training, (center, scale) in itertools.product(
                TOLERANCE, (((8, 5), -1), ((4, 6, 7, 5), -1), ((4, 5, 6, 7), 1)), (True, False),
                ((True, True), (False, True), (True, False), (False, False))):
            with self.subTest(dtype=dtype, shape=shape, training=training, center=center, scale=scale):
                stock, ours = pair(shape, axis=axis, dtype=dtype, center=center, scale=scale, momentum=0.8)
                x = data(*shape)
                wanted = stock(x, training=training)
                with by_bnorm():
                    got = ours(x, training=training)
                self.assertEqual(keras.backend.standardize_dtype(got.dtype), keras.backend.standardize_dtype(wanted.dtype))
                self.close(got, wanted, TOLERANCE[dtype])
                for a, b in zip(ours.weights, stock.weights):
                    self.assertEqual(a.name, b.name)
                    self.close(a, b, TOLERANCE[dtype])
                self.assertEqual({**ours.get_config(), "name": ""}, {**stock.get_config(), "name": ""})

    def test_frozen(self):
        stock, ours = pair((4, 5))
        stock.trainable = ours.trainable = False
        self.close(ours(data(4, 5), training=True), stock(data(4, 5), training=True))
        for a, b in zip(ours.weights, stock.weights):
            self.close(a, b, 0)

    def test_left_to_keras(self):
        for shape, options, call in [((4, 5), {"renorm": True}, {}), ((4, 6, 5), {}, {"mask": np.ones((4, 6), bool)}),
                                     ((4, 5), {"dtype": "float64"}, {}), ((1, 5), {}, {}), ((0, 5), {}, {})]:
            with self.subTest(shape=shape, options=options):
                stock, ours = pair(shape, **options)
                self.close(ours(data(*shape), training=True, **call), stock(data(*shape), training=True, **call))

    def model(self, layer):
        keras.utils.set_random_seed(1)
        return keras.Sequential([
            keras.layers.Input((8, 8, 3)), keras.layers.Conv2D(6, 3, use_bias=False), layer(momentum=0.9),
            keras.layers.ReLU(), keras.layers.GlobalAveragePooling2D(), keras.layers.Dense(3)])

    def test_fit_and_save(self):
        x, y = data(32, 8, 8, 3), np.arange(32) % 3
        models = [self.model(layer) for layer in (keras.layers.BatchNormalization, bk.BatchNormalization)]
        losses = []
        for model in models:
            model.compile("sgd", keras.losses.SparseCategoricalCrossentropy(from_logits=True))
            losses.append(model.fit(x, y, batch_size=8, epochs=3, shuffle=False, verbose=0).history["loss"])
        np.testing.assert_allclose(*losses, 1e-3)
        self.assertLess(losses[0][-1], losses[0][0])
        self.close(models[1].predict(x, verbose=0), models[0].predict(x, verbose=0), 1e-3)
        with tempfile.TemporaryDirectory() as folder:
            models[1].save(folder + "/model.keras")
            again = keras.saving.load_model(folder + "/model.keras")
            self.assertIs(type(again.layers[1]), bk.BatchNormalization)
            self.close(again.predict(x, verbose=0), models[1].predict(x, verbose=0), 0)
            # Weights go from one to the other.
            models[1].save_weights(folder + "/w.weights.h5")
            models[0].load_weights(folder + "/w.weights.h5")
            self.close(models[0].predict(x, verbose=0), models[1].predict(x, verbose=0), 1e-3)

    def test_tests_of_keras(self):
        """Keras' own file of tests, which its package has, with bnorm's layer in place of Keras'."""
        import keras.src.layers
        from keras.src.layers.normalization import batch_normalization_test
        with mock.patch.object(keras.src.layers, "BatchNormalization", bk.BatchNormalization):
            suite = unittest.defaultTestLoader.loadTestsFromModule(batch_normalization_test)
            result = unittest.TestResult()
            with contextlib.redirect_stdout(io.StringIO()):  # bars of progress
                suite.run(result)
        for _, trace in result.failures + result.errors:
            print(trace)
        self.assertTrue(result.wasSuccessful())
        self.assertGreater(result.testsRun - len(result.skipped), 20)
        print(f"Keras' own tests: {result.testsRun - len(result.skipped)} passed, {len(result.skipped)} skipped")


if __name__ == "__main__":
    print(f"Keras {keras.__version__} on {BACKEND}")
    result = unittest.main(exit=False).result
    wrong = {getattr(test, "test_case", test).id() for test, _ in result.failures + result.errors}
    print(f"{result.testsRun - len(wrong)} passed, {len(wrong)} failed")
    raise SystemExit(len(wrong) != 0)
