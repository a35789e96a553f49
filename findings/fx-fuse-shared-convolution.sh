#!/usr/bin/env bash
# torch 2.13.0, torch.fx.experimental.optimization.fuse: a convolution that is called twice is fused all the same.
#
# fuse() checks that the output of a convolution has one reader before it merges the BatchNorm behind it. It does not
# check that the convolution itself is called once. A convolution that two places call is then scaled for both, and a
# convolution with a norm behind each of its two calls is scaled twice. A forward hook on the convolution is lost as
# well: the hook ran between the convolution and the norm, and fuse() neither keeps it nor stops.
# The numbers are wrong, and nothing is raised. Two norms that read the same output are left alone, which is right.
#
# Output seen (Python 3.11, Linux, CPU), as largest differences from the original:
#   torch 2.13.0
#   Once                0.000
#   OneOutputTwoNorms   0.000
#   TwoCallsOneNorm     1.316
#   TwoCallsTwoNorms    2.209
#   Hooked              1.100
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet torch==2.13.0 numpy==2.4.6
cat > "$work/check.py" <<'PY'
import torch
from torch import nn
from torch.fx.experimental.optimization import fuse


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(4, 4, 3, padding=1)
        self.first, self.second = nn.BatchNorm2d(4), nn.BatchNorm2d(4)
        for norm in (self.first, self.second):
            with torch.no_grad():
                norm.running_mean.normal_()
                norm.running_var.uniform_(0.5, 2)
                norm.weight.uniform_(0.5, 2)
                norm.bias.normal_()


class Once(Net):
    def forward(self, x):
        return self.first(self.conv(x))


class OneOutputTwoNorms(Net):
    def forward(self, x):
        y = self.conv(x)
        return self.first(y) + self.second(y)


class TwoCallsOneNorm(Net):
    def forward(self, x):
        return self.conv(torch.relu(self.first(self.conv(x))))


class TwoCallsTwoNorms(Net):
    def forward(self, x):
        return self.second(self.conv(torch.relu(self.first(self.conv(x)))))


class Hooked(Once):
    def __init__(self):
        super().__init__()
        self.conv.register_forward_hook(lambda module, args, output: output * 2)


print("torch", torch.__version__.split("+")[0])
same = True
for build, wrong in ((Once, False), (OneOutputTwoNorms, False), (TwoCallsOneNorm, True), (TwoCallsTwoNorms, True),
                     (Hooked, True)):
    torch.manual_seed(0)
    model = build().eval()
    x = torch.randn(2, 4, 8, 8)
    with torch.no_grad():
        gap = (fuse(model)(x) - model(x)).abs().max().item()
    same &= (gap > 0.1) == wrong
    print(f"{build.__name__:20}{gap:.3f}")
raise SystemExit(0 if same else "the behaviour has changed")
PY
"$work/venv/bin/python" "$work/check.py"
