#!/usr/bin/env bash
# openvino 2026.4.1: an average pool with ceil_mode and padding that counts divides by another number at the far border.
#
# With ceil_mode the last window may reach past the padded input. PyTorch and ONNX Runtime divide by the part of the
# window that lies on input or padding. OpenVINO divides by the whole window: with a
# 3 x 3 window of which 2 columns remain, the result is 6/9 of the right one. Only the last row and column differ.
# count_include_pad=0 and sizes at which the windows fit are equal. The same happens to a torch model on its way
# through openvino.convert_model.
#
# Output seen (Python 3.11, Linux, CPU, onnx 1.23.2, onnxruntime 1.32.0), as largest differences from a loop in numpy:
#   openvino 2026.4.1
#   size 6, count_include_pad=1: onnxruntime 0.000, openvino 0.193, openvino without the last row and column 0.000
#     openvino / loop at the right border: [0.667 0.667 0.667 0.444]
#   size 6, count_include_pad=0: onnxruntime 0.000, openvino 0.000, openvino without the last row and column 0.000
#   size 7, count_include_pad=1: onnxruntime 0.000, openvino 0.000, openvino without the last row and column 0.000
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet numpy==2.4.6 onnx==1.23.2 onnxruntime==1.32.0 openvino==2026.4.1
cat > "$work/check.py" <<'PY'
import numpy as np
import onnxruntime
import openvino
from onnx import TensorProto, checker, helper

KERNEL, STRIDE, PAD = 3, 2, 1


def build(size, count):
    node = helper.make_node("AveragePool", ["x"], ["y"], kernel_shape=[KERNEL] * 2, strides=[STRIDE] * 2,
                            pads=[PAD] * 4, ceil_mode=1, count_include_pad=count)
    value = helper.make_tensor_value_info
    graph = helper.make_graph([node], "pool", [value("x", TensorProto.FLOAT, [1, 2, size, size])],
                              [value("y", TensorProto.FLOAT, ["n", "c", "h", "w"])])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 19)], ir_version=9)
    checker.check_model(model)
    return model.SerializeToString()


def loop(x, count):
    """Divides by the part of each window inside the padded input, or inside the input if padding does not count."""
    size = x.shape[2]
    out = -(-(size + 2 * PAD - KERNEL) // STRIDE) + 1
    y = np.zeros((*x.shape[:2], out, out), "float32")
    low, high = (-PAD, size + PAD) if count else (0, size)
    for i, j in np.ndindex(out, out):
        area, part = 1, [slice(None), slice(None)]
        for start in (i * STRIDE - PAD, j * STRIDE - PAD):
            area *= min(start + KERNEL, high) - max(start, low)
            part.append(slice(max(start, 0), min(start + KERNEL, size)))
        y[:, :, i, j] = x[tuple(part)].sum((2, 3)) / area
    return y


print("openvino", openvino.__version__.split("-")[0])
core = openvino.Core()
same = True
for size, count in ((6, 1), (6, 0), (7, 1)):
    x = np.random.default_rng(0).normal(size=(1, 2, size, size)).astype("float32")
    data, want = build(size, count), loop(x, count)
    (ort,) = onnxruntime.InferenceSession(data, providers=["CPUExecutionProvider"]).run(None, {"x": x})
    model = core.compile_model(core.read_model(data), "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    ov = model(x)[0]
    gaps = [float(np.abs(got - want).max()) for got in (ort, ov)]
    inner = float(np.abs(ov - want)[:, :, :-1, :-1].max())
    wrong = (size, count) == (6, 1)
    same &= gaps[0] < 1e-5 and (gaps[1] > 0.05) == wrong and inner < 1e-5
    print(f"size {size}, count_include_pad={count}: onnxruntime {gaps[0]:.3f}, openvino {gaps[1]:.3f}, "
          f"openvino without the last row and column {inner:.3f}")
    if wrong:
        print("  openvino / loop at the right border:", np.round(ov / want, 3)[0, 0, :, -1])
raise SystemExit(0 if same else "the behaviour has changed")
PY
"$work/venv/bin/python" "$work/check.py"
