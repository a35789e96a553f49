#!/usr/bin/env bash
# torch 2.13.0, torch.compile with freezing: torch.add(convolution, constant, alpha=3) loses its alpha.
#
# With torch._inductor.config.freezing, an addition or subtraction of a per-channel constant after a convolution moves
# into the convolution's bias. The pass moves the constant as it is: alpha is neither applied nor a reason to stop.
# The result is that of alpha=1, with no error. Without freezing, or with the product written out, it is right.
#
# Output seen (Python 3.11, Linux, CPU; needs a C++ compiler), as largest differences from eager:
#   torch 2.13.0
#   add, alpha=3: plain 0.000, freezing 1.536, freezing against alpha=1 0.000
#   sub, alpha=3: plain 0.000, freezing 1.536, freezing against alpha=1 0.000
#   y + 3 * k: freezing 0.000
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet torch==2.13.0 numpy==2.4.6
cat > "$work/check.py" <<'PY'
import torch
import torch._inductor.config as inductor
from torch import nn


class Net(nn.Module):
    def __init__(self, combine):
        super().__init__()
        self.combine = combine
        self.conv = nn.Conv2d(4, 4, 3)
        self.register_buffer("shift", torch.randn(4, 1, 1))

    def forward(self, x):
        return self.combine(self.conv(x), self.shift)


def run(combine, freezing):
    torch.manual_seed(0)
    torch._dynamo.reset()
    model = Net(combine).eval()
    x = torch.randn(1, 4, 8, 8)
    with torch.no_grad(), inductor.patch(freezing=freezing):
        return model, x, torch.compile(model)(x)


cases = {
    "add, alpha=3": (lambda y, k: torch.add(y, k, alpha=3), lambda y, k: y + k),
    "sub, alpha=3": (lambda y, k: torch.sub(y, k, alpha=3), lambda y, k: y - k),
}
print("torch", torch.__version__.split("+")[0])
same = True
for name, (combine, without_alpha) in cases.items():
    gaps = {}
    for freezing in (False, True):
        model, x, got = run(combine, freezing)
        gaps[freezing] = (got - model(x)).abs().max().item()
        lost = (got - without_alpha(model.conv(x), model.shift)).abs().max().item()
    same &= gaps[False] < 1e-4 and gaps[True] > 0.1 and lost < 1e-4
    print(f"{name}: plain {gaps[False]:.3f}, freezing {gaps[True]:.3f}, freezing against alpha=1 {lost:.3f}")
model, x, got = run(lambda y, k: y + 3 * k, True)
spelled = (got - model(x)).abs().max().item()
print(f"y + 3 * k: freezing {spelled:.3f}")
raise SystemExit(0 if same and spelled < 1e-4 else "the behaviour has changed")
PY
TORCHINDUCTOR_CACHE_DIR="$work/cache" "$work/venv/bin/python" "$work/check.py"
