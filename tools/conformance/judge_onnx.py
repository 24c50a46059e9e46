# SPDX-License-Identifier: MIT
"""ONNX's operator BatchNormalization, by ONNX Runtime and by ONNX's reference evaluator."""
import dataclasses

import numpy as np
import onnx
import onnxruntime
from onnx import TensorProto, helper
from onnx.reference import ReferenceEvaluator

import cases
from exact import Rules
from judge import Judge

MOMENTA = (0.9, 0.99, 0.1, 0.0, 1.0)
MODES = ('train', 'infer')
INPUTS = ('x', 'scale', 'bias', 'mean', 'var')


def model(case, dtype, opset):
    """Opset 14 brought training_mode; before, a node trains where it has all five outputs."""
    element = TensorProto.DOUBLE if dtype == np.float64 else TensorProto.FLOAT
    attributes = {'epsilon': case.eps, 'momentum': case.momentum}
    outputs = ['y']
    if case.mode == 'train':
        outputs += ['new_mean', 'new_var'] + (['saved_mean', 'saved_var'] if opset < 14 else [])
    if opset >= 14:
        attributes['training_mode'] = int(case.mode == 'train')
    node = helper.make_node('BatchNormalization', INPUTS, outputs, **attributes)
    graph = helper.make_graph([node], 'batch_norm',
                              [helper.make_tensor_value_info(name, element, None) for name in INPUTS],
                              [helper.make_tensor_value_info(name, element, None) for name in outputs[:3]])
    return helper.make_model(graph, opset_imports=[helper.make_opsetid('', opset)], ir_version=8)


def run(evaluator, case, data, dtype, opset):
    state = [data.mean.astype(dtype), data.var.astype(dtype)]
    scale = np.ones_like(data.mean) if data.gamma is None else data.gamma
    bias = np.zeros_like(data.mean) if data.beta is None else data.beta
    evaluate = evaluator(model(case, dtype, opset))
    means, variances = [], []
    for x in data.x:
        y, *new = evaluate(dict(zip(INPUTS, [x.astype(dtype), scale.astype(dtype), bias.astype(dtype)] + state)))
        state = new[:2] or state
        means.append(state[0])
        variances.append(state[1])
    return {'y': y, 'running_mean': np.array(means), 'running_var': np.array(variances)}


def runtime(proto):
    session = onnxruntime.InferenceSession(proto.SerializeToString(), providers=['CPUExecutionProvider'])
    return lambda feed: session.run(None, feed)


def reference(proto):
    evaluator = ReferenceEvaluator(proto)
    return lambda feed: evaluator.run(None, feed)


def as_stored(found):
    """The attributes epsilon and momentum are float32 in the file, and the reference evaluator makes a float32 of
    1 - momentum too: with a momentum for which both are exact nothing is lost in float64."""
    def both_exact(momentum):
        return float(np.float32(momentum)) if momentum >= 0.5 else 1 - float(np.float32(1 - momentum))

    return [dataclasses.replace(case, eps=float(np.float32(case.eps)), momentum=both_exact(case.momentum))
            for case in found]


def note_of_opset_9(row):
    """The reference evaluator's opset 9 mixes the batch into inference: not what the operator says."""
    case = cases.Case((4, 3, 5), 1, mode='infer', center=False, scale=False)
    data = cases.generate(case)
    x = data.x[0].astype(np.float64)
    mean, var = (case.momentum*running + (1 - case.momentum)*batch
                 for running, batch in ((data.mean, x.mean((0, 2))), (data.var, x.var((0, 2)))))
    mixed = (x - mean[:, np.newaxis])/np.sqrt(var + case.eps)[:, np.newaxis]
    if np.allclose(run(reference, case, data, np.float64, 9)['y'], mixed, rtol=1e-6, atol=1e-6):
        row.facts['note'] += ('; opset 9 to 13, inference: normalises with momentum\\*running + (1 - momentum)\\*batch '
                              'statistics, unlike ONNX Runtime and bnorm')


def main():
    judge = Judge()
    default_eps = onnx.defs.get_schema('BatchNormalization', 15).attributes['epsilon'].default_value.f
    for name, version, evaluator, other_opsets in (
            ('ONNX Runtime', onnxruntime.__version__, runtime, {9: MODES, 14: MODES}),
            ('ONNX reference', onnx.__version__, reference, {14: MODES})):
        def at(opset, evaluator=evaluator):
            return lambda case, data, dtype: run(evaluator, case, data, dtype, opset)

        row = judge.row(f'{name}, opset 15', version, Rules('onnx'), default_eps=round(default_eps, 9))
        row.measure(at(15), shape=(4, 2, 3, 5), axis=1, one=(1, 2, 1, 1))
        row.measure_clamp(at(15), shape=(4, 2, 3, 5), axis=1)
        if evaluator is reference:
            note_of_opset_9(row)
        everything = as_stored(cases.everything(lambda shape, axis: axis % len(shape) == 1, MOMENTA, MODES))
        row.check_all(everything, at(15))
        row.check_all(as_stored(cases.small([((4, 3), 1), ((2, 3, 2, 2), 1)], MODES, eps=1e-5)), at(15))
        row.check_all(as_stored(cases.small([((1, 3, 1, 1), 1)], ['train'], eps=1e-5)), at(15))
        row.done()
        for opset, modes in other_opsets.items():
            row = judge.row(f'{name}, opset {opset}', version, Rules('onnx'), default_eps=round(default_eps, 9))
            row.measure(at(opset), shape=(4, 2, 3, 5), axis=1, one=(1, 2, 1, 1))
            row.check_all([case for case in everything if case.mode in modes][::3], at(opset))
            row.done()
    judge.finish()


main()
