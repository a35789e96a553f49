#!/usr/bin/env bash
# torchao 0.18.0, prepare_pt2e: the norm is folded although something else reads the convolution's output or weight.
#
# prepare_pt2e folds a BatchNorm into the convolution before it, before any quantiser has a say. A quantiser that marks
# nothing shows it: the prepared model has no observer and should equal the exported one. It does not where
#   - the output of the convolution is read by the norm and by an addition: relu(norm(y) + y),
#   - the output is read by two norms: both are folded, one after the other,
#   - a second convolution shares the weight: it is scaled as well.
# The numbers are wrong, and nothing is raised. The first two are single calls: counting the calls of the convolution
# does not find them.
# A weight that is computed (weight_norm) and a transposed convolution with groups raise. An in-place operation between
# the two is respected.
#
# Output seen (Python 3.11, Linux, CPU, torch 2.13.0), as largest differences from the original:
#   torchao 0.18.0
#   Once                right   0.000
#   InPlaceBetween      right   0.000
#   NormAndAddition     wrong   3.412
#   TwoNorms            wrong   6.338
#   SharedWeight        wrong   0.698
#   WeightNorm          raises  ValueError
#   GroupedTransposed   raises  RuntimeError
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet torch==2.13.0 torchao==0.18.0 numpy==2.4.6
cat > "$work/check.py" <<'PY'
from importlib.metadata import version

import torch
from torch import nn
from torch.nn.utils.parametrizations import weight_norm
from torchao.quantization.pt2e.quantize_pt2e import prepare_pt2e
from torchao.quantization.pt2e.quantizer import Quantizer


class MarksNothing(Quantizer):
    def annotate(self, model):
        return model

    def validate(self, model):
        pass


class Once(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(4, 4, 3, padding=1)
        self.other = nn.Conv2d(4, 4, 3, padding=1)
        self.first, self.second = nn.BatchNorm2d(4), nn.BatchNorm2d(4)
        for norm in (self.first, self.second):
            with torch.no_grad():
                norm.running_mean.normal_()
                norm.running_var.uniform_(0.5, 2)
                norm.weight.uniform_(0.5, 2)
                norm.bias.normal_()

    def forward(self, x):
        return self.first(self.conv(x))


class InPlaceBetween(Once):
    def forward(self, x):
        return self.first(self.conv(x).mul_(2.0))


class NormAndAddition(Once):
    def forward(self, x):
        y = self.conv(x)
        return torch.relu(self.first(y) + y)


class TwoNorms(Once):
    def forward(self, x):
        y = self.conv(x)
        return self.first(y) + self.second(y)


class SharedWeight(Once):
    def __init__(self):
        super().__init__()
        self.other.weight = self.conv.weight

    def forward(self, x):
        return self.first(self.conv(x)) + self.other(x)


class WeightNorm(Once):
    def __init__(self):
        super().__init__()
        self.conv = weight_norm(self.conv)


class GroupedTransposed(Once):
    def __init__(self):
        super().__init__()
        self.conv = nn.ConvTranspose2d(4, 4, 3, groups=2)


print("torchao", version("torchao"))
same = True
for build, expected in ((Once, "right"), (InPlaceBetween, "right"), (NormAndAddition, "wrong"), (TwoNorms, "wrong"),
                        (SharedWeight, "wrong"), (WeightNorm, "raises"), (GroupedTransposed, "raises")):
    torch.manual_seed(0)
    model = build().eval()
    x = torch.randn(2, 4, 8, 8)
    with torch.no_grad():
        want = model(x)
        exported = torch.export.export(model, (x,)).module()
        try:
            gap = (prepare_pt2e(exported, MarksNothing())(x) - want).abs().max().item()
            actual, shown = "wrong" if gap > 0.1 else "right", f"{gap:.3f}"
        except Exception as error:
            actual, shown = "raises", type(error).__name__
    same &= actual == expected
    print(f"{build.__name__:20}{actual:8}{shown}")
raise SystemExit(0 if same else "the behaviour has changed")
PY
"$work/venv/bin/python" -W ignore "$work/check.py" 2> "$work/err" || { cat "$work/err" >&2; exit 1; }
