#!/usr/bin/env bash
# onnxsim 0.8.1: a Pad that is merged into a pool can make a model that ONNX Runtime does not load.
#
# ONNX Runtime wants the padding of a pool to be smaller than its window; a Pad node before the pool may have any
# width. onnxsim adds the two up without that check. Pad by 2 followed by a pool with a 3 x 3 window and
# padding 1 becomes a pool with padding 3. simplify() returns, onnx's checker passes the result, and the session
# raises when it loads. Where the sum stays below the window, the merge is right.
#
# Output seen (Python 3.11, Linux, CPU, onnx 1.23.2, onnxruntime 1.32.0):
#   onnxsim 0.8.1
#   Pad 1, pool 1: simplify says True, ['AveragePool'], pads [[2, 2, 2, 2]]: off by 0.000
#   Pad 2, pool 1: simplify says True, ['AveragePool'], pads [[3, 3, 3, 3]]: Fail at loading
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet numpy==2.4.6 onnx==1.23.2 onnxruntime==1.32.0 onnxsim==0.8.1
cat > "$work/check.py" <<'PY'
from importlib.metadata import version

import numpy as np
import onnxruntime
import onnxsim
from onnx import TensorProto, checker, helper, numpy_helper

onnxruntime.set_default_logger_severity(4)


def build(before, own):
    value = helper.make_tensor_value_info
    graph = helper.make_graph(
        [helper.make_node("Pad", ["x", "pads", "zero"], ["y"]),
         helper.make_node("AveragePool", ["y"], ["z"], kernel_shape=[3, 3], pads=[own] * 4, count_include_pad=1)],
        "pool", [value("x", TensorProto.FLOAT, [1, 4, 6, 6])], [value("z", TensorProto.FLOAT, ["n", "c", "h", "w"])],
        [numpy_helper.from_array(np.array([0, 0, before, before] * 2, "int64"), "pads"),
         numpy_helper.from_array(np.float32(0), "zero")])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    checker.check_model(model, full_check=True)
    return model


def run(model, x):
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return session.run(None, {"x": x})[0]


print("onnxsim", version("onnxsim"))
x = np.random.default_rng(0).normal(size=(1, 4, 6, 6)).astype("float32")
same = True
for before, own, loads in ((1, 1, True), (2, 1, False)):
    model = build(before, own)
    want = run(model, x)
    simple, passed = onnxsim.simplify(model)
    checker.check_model(simple, full_check=True)
    nodes = [node.op_type for node in simple.graph.node]
    pads = [list(a.ints) for a in simple.graph.node[-1].attribute if a.name == "pads"]
    try:
        shown = f"off by {np.abs(run(simple, x) - want).max():.3f}"
        same &= loads
    except Exception as error:
        shown = f"{type(error).__name__} at loading"
        same &= not loads
    print(f"Pad {before}, pool {own}: simplify says {passed}, {nodes}, pads {pads}: {shown}")
raise SystemExit(0 if same else "the behaviour has changed")
PY
"$work/venv/bin/python" "$work/check.py" 2> "$work/err" || { cat "$work/err" >&2; exit 1; }
