#!/usr/bin/env bash
# torch 2.13.0, torch.compile with freezing: a per-channel scale after a transposed convolution goes to the wrong axis.
#
# The weight of ConvTranspose2d is (in, out / groups, height, width). With torch._inductor.config.freezing, the pass
# that merges a BatchNorm, or a multiplication by a (C, 1, 1) constant, into the convolution before it scales the first
# axis, as for Conv2d. That axis holds the input channels here.
#   - in == out: the shapes fit, so the numbers are wrong and nothing is raised, with groups too.
#   - a transposed convolution to one channel: the merged bias has the wrong length, and the compiler raises.
#   - depthwise (groups == in == out) is right, because both axes mean the same there.
# Ordinary convolutions are right. So are transposed ones with in != out and more than one output channel: they are left
# alone. A test that uses unequal channels, or that keeps a norm's initial statistics, passes.
#
# Output seen (Python 3.11, Linux, CPU; needs a C++ compiler):
#   torch 2.13.0
#   Conv2d 8 -> 8, norm                     right   0.0
#   ConvTranspose2d 8 -> 4, norm            right   0.0
#   ConvTranspose2d depthwise, norm         right   0.0
#   ConvTranspose2d 8 -> 8, norm            wrong   1.403
#   ConvTranspose2d 8 -> 8, 2 groups, norm  wrong   0.776
#   ConvTranspose2d 8 -> 8, scale           wrong   0.803
#   ConvTranspose2d 8 -> 1, norm            raises  BackendCompilerFailed
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet torch==2.13.0 numpy==2.4.6
cat > "$work/check.py" <<'PY'
import torch
import torch._inductor.config as inductor
from torch import nn


class Scale(nn.Module):
    def __init__(self, channels):
        super().__init__()
        self.register_buffer("scale", torch.rand(channels, 1, 1) + 0.5)

    def forward(self, x):
        return x * self.scale


def norm(channels):
    layer = nn.BatchNorm2d(channels)
    with torch.no_grad():
        layer.running_mean.normal_()
        layer.running_var.uniform_(0.5, 2)
        layer.weight.uniform_(0.5, 2)
        layer.bias.normal_()
    return layer


def gap(build):
    """The largest difference from eager, or the name of the error."""
    torch.manual_seed(0)
    torch._dynamo.reset()
    model = build().eval()
    x = torch.randn(2, 8, 8, 8)
    with torch.no_grad(), inductor.patch(freezing=True):
        want = model(x)
        try:
            got = torch.compile(model)(x)
        except Exception as error:
            return type(error).__name__
    return round((got - want).abs().max().item(), 3)


cases = {
    "Conv2d 8 -> 8, norm": (lambda: nn.Sequential(nn.Conv2d(8, 8, 3), norm(8)), "right"),
    "ConvTranspose2d 8 -> 4, norm": (lambda: nn.Sequential(nn.ConvTranspose2d(8, 4, 3), norm(4)), "right"),
    "ConvTranspose2d depthwise, norm": (lambda: nn.Sequential(nn.ConvTranspose2d(8, 8, 3, groups=8), norm(8)), "right"),
    "ConvTranspose2d 8 -> 8, norm": (lambda: nn.Sequential(nn.ConvTranspose2d(8, 8, 3), norm(8)), "wrong"),
    "ConvTranspose2d 8 -> 8, 2 groups, norm": (
        lambda: nn.Sequential(nn.ConvTranspose2d(8, 8, 3, groups=2), norm(8)), "wrong"),
    "ConvTranspose2d 8 -> 8, scale": (lambda: nn.Sequential(nn.ConvTranspose2d(8, 8, 3), Scale(8)), "wrong"),
    "ConvTranspose2d 8 -> 1, norm": (lambda: nn.Sequential(nn.ConvTranspose2d(8, 1, 3), norm(1)), "raises"),
}
print("torch", torch.__version__.split("+")[0])
same = True
for name, (build, expected) in cases.items():
    result = gap(build)
    actual = "raises" if isinstance(result, str) else "wrong" if result > 0.1 else "right"
    same &= actual == expected
    print(f"{name:40}{actual:8}{result}")
raise SystemExit(0 if same else "the behaviour has changed")
PY
TORCHINDUCTOR_CACHE_DIR="$work/cache" "$work/venv/bin/python" "$work/check.py"
