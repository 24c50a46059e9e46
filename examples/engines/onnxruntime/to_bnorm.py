# SPDX-License-Identifier: MIT
"""to_bnorm.py MODEL.onnx OUT.onnx: gives a model's batch norms, and ReLUs after them, to bnorm's operator."""
import sys

import onnx


def to_bnorm(model):
    """Changes the model, of opset 14 or newer, in place; returns how many batch norms it found."""
    readers = {}
    for node in model.graph.node:
        for name in node.input:
            readers.setdefault(name, []).append(node)
    outputs = {value.name for value in model.graph.output}
    norms = [n for n in model.graph.node if n.op_type == "BatchNormalization" and n.domain in {"", "ai.onnx"}]
    for node in norms:
        node.domain = "bnorm"
        after = readers.get(node.output[0], [])
        if len(after) == 1 and after[0].op_type == "Relu" and node.output[0] not in outputs:
            node.output[0] = after[0].output[0]
            node.attribute.append(onnx.helper.make_attribute("relu", 1))
            model.graph.node.remove(after[0])
    if norms:
        model.opset_import.append(onnx.helper.make_opsetid("bnorm", 1))
    return len(norms)


if __name__ == "__main__":
    if len(sys.argv) != 3:
        sys.exit(__doc__)
    loaded = onnx.load(sys.argv[1])
    print("batch norms changed:", to_bnorm(loaded))
    onnx.save(loaded, sys.argv[2])
