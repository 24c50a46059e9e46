# SPDX-License-Identifier: MIT
"""test.py LIBRARY: bnorm's operator in ONNX Runtime, by ONNX's own node tests and against ONNX Runtime's operator."""
import sys
import unittest
import warnings

import numpy as np
import onnx
import onnxruntime as ort
from onnx import TensorProto, helper
from onnx.backend.test.case.node import collect_testcases
from onnx.backend.test.runner import Runner
from to_bnorm import to_bnorm

PARAMETERS = ["scale", "B", "mean", "var"]


def run(model, inputs, threads=1, converted=True, optimize=True):
    """The model's outputs; converted: by bnorm's operator, else as it is; optimize: casts may be dropped."""
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = 4  # exceptions say the same
    if not optimize:
        options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    if converted:
        model = onnx.ModelProto.FromString(model.SerializeToString())
        assert to_bnorm(model) > 0
        options.register_custom_ops_library(LIBRARY)
    session = ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return session.run(None, inputs)


def model_of(nodes, outputs, element=TensorProto.FLOAT):
    info = [helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in ["x", *PARAMETERS]]
    out = [helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in outputs]
    return helper.make_model(helper.make_graph(nodes, "g", info, out), opset_imports=[helper.make_opsetid("", 15)])


def inputs_of(*shape):
    random = np.random.default_rng(1)
    c = shape[1]
    inputs = {"x": random.normal(2, 3, shape), "scale": random.uniform(0.5, 2, c), "B": random.normal(0, 1, c),
              "mean": random.normal(2, 1, c), "var": random.uniform(0.5, 9, c)}
    return {name: value.astype(np.float32) for name, value in inputs.items()}


def norm(*outputs, x="x", **attributes):
    return helper.make_node("BatchNormalization", [x, *PARAMETERS], list(outputs), **attributes)


class Test(unittest.TestCase):

    def test_onnx_node_tests(self):
        with warnings.catch_warnings(action="ignore"):  # of other operators' cases, which are collected as well
            cases = [c for c in collect_testcases("BatchNormalization") if c.name.startswith("test_batchnorm")]
        self.assertEqual(len(cases), 4)
        for case in cases:
            names = [value.name for value in case.model.graph.input]
            for inputs, wanted in case.data_sets:
                with self.subTest(case.name):
                    got = run(case.model, dict(zip(names, inputs)))
                    Runner.assert_similar_outputs(wanted, got, case.rtol, case.atol)

    def test_inference_and_relu(self):
        for shape in [(2, 5), (2, 5, 7), (3, 5, 4, 6), (2, 3, 4, 5, 6), (0, 5, 3)]:
            for nodes in [norm("y", epsilon=1e-3)], [norm("v"), helper.make_node("Relu", ["v"], ["y"])]:
                model, inputs = model_of(nodes, ["y"]), inputs_of(*shape)
                with self.subTest(shape=shape, nodes=len(nodes)):
                    wanted = run(model, inputs, converted=False)[0]
                    np.testing.assert_allclose(run(model, inputs)[0], wanted, rtol=2e-6, atol=2e-6)

    def test_a_relu_that_is_not_alone_stays(self):
        nodes = [norm("v"), helper.make_node("Relu", ["v"], ["r"]), helper.make_node("Add", ["v", "r"], ["y"])]
        model, inputs = model_of(nodes, ["y"]), inputs_of(2, 3, 4)
        wanted = run(model, inputs, converted=False)[0]
        np.testing.assert_allclose(run(model, inputs)[0], wanted, rtol=2e-6, atol=4e-6)

    def test_types_of_16_bits(self):
        for element, bits in [(TensorProto.FLOAT16, 11), (TensorProto.BFLOAT16, 8)]:
            nodes = [helper.make_node("Cast", ["x"], ["x16"], to=element), norm("y16", x="x16"),
                     helper.make_node("Cast", ["y16"], ["y"], to=TensorProto.FLOAT)]
            rounded = [nodes[0], helper.make_node("Cast", ["x16"], ["x32"], to=TensorProto.FLOAT), norm("y", x="x32")]
            inputs = inputs_of(2, 5, 7)
            with self.subTest(bits=bits):
                wanted = run(model_of(rounded, ["y"]), inputs, optimize=False)[0]
                got = run(model_of(nodes, ["y"]), inputs, optimize=False)[0]
                np.testing.assert_allclose(got, wanted, rtol=2.0**-bits, atol=0)
                self.assertFalse(np.array_equal(got, wanted))

    def test_training(self):
        inputs = inputs_of(3, 5, 4, 6)
        x = inputs["x"].astype(np.float64)
        mean, var = x.mean((0, 2, 3)), x.var((0, 2, 3))
        at = (slice(None), None, None)
        y = (x - mean[at]) / np.sqrt(var[at] + 1e-5) * inputs["scale"][at] + inputs["B"][at]
        wanted = [y, inputs["mean"] * 0.7 + mean * 0.3, inputs["var"] * 0.7 + var * 0.3]
        for outputs in ["y"], ["y", "m"], ["y", "m", "v"]:
            model = model_of([norm(*outputs, training_mode=1, momentum=0.7)], outputs)
            for got, want in zip(run(model, inputs), wanted):
                np.testing.assert_allclose(got, want, rtol=2e-6, atol=2e-6)

    def test_threads_give_the_same_bits(self):
        inputs = inputs_of(8, 32, 56, 56)
        for outputs, training in (["y"], 0), (["y", "m", "v"], 1):
            model = model_of([norm(*outputs, training_mode=training)], outputs)
            for one, four in zip(run(model, inputs), run(model, inputs, threads=4)):
                self.assertEqual(one.tobytes(), four.tobytes())

    def test_errors_are_said(self):
        model, inputs = model_of([norm("y")], ["y"]), inputs_of(2, 5, 7)
        with self.assertRaisesRegex(Exception, "as many values as x has channels"):
            run(model, {**inputs, "mean": inputs["mean"][:4]})
        with self.assertRaisesRegex(Exception, "variance"):
            run(model, {**inputs, "var": -inputs["var"]})


if __name__ == "__main__":
    if len(sys.argv) < 2:
        sys.exit(__doc__)
    LIBRARY = sys.argv.pop(1)
    unittest.main()
