#!/usr/bin/env bash
# onnxslim 0.1.98: a product along the width is merged into the convolution as if it ran along the channels.
#
# ONNX broadcasts from the last axis. After a convolution with output (N, C, H, W), a constant of shape (C,) or
# (1, 1, 1, C) scales the columns, which is valid where W == C. onnxslim merges it into the weight of the convolution
# as C scales of the channels, and the same after ConvTranspose and for 1-D convolutions. The numbers are wrong, and
# nothing is raised. (C, 1, 1), the scale of the channels, is merged and right. Additions are right for every shape.
#
# Output seen (Python 3.11, Linux, CPU, onnx 1.23.2, onnxruntime 1.32.0), as largest differences from the original:
#   onnxslim 0.1.98
#   Conv Mul (4, 1, 1): 0.000, left ['Conv']
#   Conv Add (4,): 0.000, left ['Conv', 'Add']
#   Conv Mul (4,): 8.458, left ['Conv']
#   Conv Mul (1, 1, 1, 4): 3.712, left ['Conv']
#   ConvTranspose Mul (4,): 7.081, left ['ConvTranspose']
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet numpy==2.4.6 onnx==1.23.2 onnxruntime==1.32.0 onnxslim==0.1.98
cat > "$work/check.py" <<'PY'
from importlib.metadata import version

import numpy as np
import onnxruntime
import onnxslim
from onnx import TensorProto, checker, helper, numpy_helper

random = np.random.default_rng(0)


def build(convolution, operation, shape):
    arrays = {"w": random.normal(size=(4, 4, 3, 3)), "b": random.normal(size=4), "k": random.uniform(0.5, 2, shape)}
    value = helper.make_tensor_value_info
    graph = helper.make_graph(
        [helper.make_node(convolution, ["x", "w", "b"], ["y"], pads=[1] * 4),
         helper.make_node(operation, ["y", "k"], ["z"])],
        "scale", [value("x", TensorProto.FLOAT, [1, 4, 4, 4])], [value("z", TensorProto.FLOAT, [1, 4, 4, 4])],
        [numpy_helper.from_array(array.astype("float32"), name) for name, array in arrays.items()])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    checker.check_model(model, full_check=True)
    return model


def run(model, x):
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return session.run(None, {"x": x})[0]


print("onnxslim", version("onnxslim"))
same = True
for convolution, operation, shape, wrong in (
        ("Conv", "Mul", (4, 1, 1), False), ("Conv", "Add", (4,), False),
        ("Conv", "Mul", (4,), True), ("Conv", "Mul", (1, 1, 1, 4), True), ("ConvTranspose", "Mul", (4,), True)):
    model = build(convolution, operation, shape)
    x = random.normal(size=(1, 4, 4, 4)).astype("float32")
    want = run(model, x)
    slim = onnxslim.slim(model)
    gap = float(np.abs(run(slim, x) - want).max())
    nodes = [node.op_type for node in slim.graph.node]
    same &= (gap > 0.1) == wrong
    print(f"{convolution} {operation} {shape}: {gap:.3f}, left {nodes}")
raise SystemExit(0 if same else "the behaviour has changed")
PY
"$work/venv/bin/python" "$work/check.py"
