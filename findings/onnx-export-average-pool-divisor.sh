#!/usr/bin/env bash
# torch 2.13.0, torch.onnx.export(dynamo=True): AvgPool2d(divisor_override=...) is exported without the divisor.
#
# ONNX's AveragePool divides by the number of elements in the window and has no attribute for another divisor. The
# exporter could multiply afterwards, or refuse. It drops the argument: the model passes the checker, runs, and returns
# the ordinary mean. divisor_override=1 (a sum) is off by the size of the window.
#
# Output seen (Python 3.11, Linux, CPU, onnx 1.23.2, onnxscript 0.7.2, onnxruntime 1.32.0):
#   torch 2.13.0
#   divisor_override=None: ['AveragePool'], off by 0.000, 0.000 from the ordinary mean
#   divisor_override=1: ['AveragePool'], off by 3.532, 0.000 from the ordinary mean
#   divisor_override=5: ['AveragePool'], off by 0.235, 0.000 from the ordinary mean
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet torch==2.13.0 numpy==2.4.6 onnx==1.23.2 onnxscript==0.7.2 onnxruntime==1.32.0
cat > "$work/check.py" <<'PY'
import numpy as np
import onnx
import onnxruntime
import torch
from torch import nn


def run(model, x):
    proto = torch.onnx.export(model, (x,), dynamo=True, verbose=False).model_proto
    onnx.checker.check_model(proto, full_check=True)
    session = onnxruntime.InferenceSession(proto.SerializeToString(), providers=["CPUExecutionProvider"])
    (got,) = session.run(None, {session.get_inputs()[0].name: x.numpy()})
    return got, sorted(node.op_type for node in proto.graph.node)


torch.manual_seed(0)
x = torch.randn(1, 4, 6, 6)
print("torch", torch.__version__.split("+")[0])
same = True
for divisor in (None, 1, 5):
    model = nn.AvgPool2d(2, divisor_override=divisor).eval()
    got, nodes = run(model, x)
    gap = np.abs(got - model(x).numpy()).max()
    mean = np.abs(got - nn.AvgPool2d(2)(x).numpy()).max()
    same &= mean < 1e-5 and (gap > 0.1) == (divisor is not None)
    print(f"divisor_override={divisor}: {nodes}, off by {gap:.3f}, {mean:.3f} from the ordinary mean")
raise SystemExit(0 if same else "the behaviour has changed")
PY
"$work/venv/bin/python" -W ignore "$work/check.py"
