"""A network as a user would write it, and what a conversion must not change about it."""

from __future__ import annotations

import copy
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from reparam.nn import DiverseBranchBlock, RepVGGBlock
from tests.helpers import image, trained

X = image(2, 3, 17, 22)


class Network(nn.Module):
    """A classifier with methods and attributes of its own; some blocks have to be rewritten, some need not."""

    def __init__(self, channels: int = 4) -> None:
        super().__init__()
        self.num_features = channels
        self.config = {"name": "network", "channels": [3, channels]}
        self.stem = nn.Sequential(nn.Conv2d(3, channels, 3, 2, 1, bias=False), nn.BatchNorm2d(channels), nn.ReLU())
        self.blocks = nn.ModuleList([RepVGGBlock(channels, channels), DiverseBranchBlock(channels, channels, 3)])
        self.norm = nn.BatchNorm2d(channels)
        self.head = nn.Linear(channels, 5)

    def forward_features(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        for block in self.blocks:
            x = block(x)
        return F.relu(self.norm(F.relu(x)))

    def forward(self, x: Tensor, scale: Tensor | None = None) -> Tensor:
        features = self.forward_features(x).mean((2, 3))
        return self.head(features if scale is None else features * scale)

    def predict(self, x: Tensor) -> Tensor:
        return self(x).argmax(1)


def network(dtype: torch.dtype = torch.float64) -> Network:
    model = trained(Network(), dtype=dtype)
    assert isinstance(model, Network)
    return model


def snapshot(model: nn.Module) -> dict[str, Any]:
    """Everything about a model that a conversion might change."""
    return {
        "tensors": {name: (id(t), t._version, t.clone()) for name, t in model.state_dict(keep_vars=True).items()},
        "modules": [(name, id(m), type(m), m.training, sorted(vars(m))) for name, m in model.named_modules()],
        "hooks": [(len(m._forward_hooks), len(m._forward_pre_hooks)) for m in model.modules()],
        "grads": [p.requires_grad for p in model.parameters()],
        "output": _output(model),
    }


def _output(model: nn.Module) -> Tensor | None:
    """What a copy of it computes now."""
    try:
        with torch.no_grad():
            return copy.deepcopy(model)(X.to(next(model.parameters()).dtype))
    except (RuntimeError, ValueError, TypeError, NotImplementedError):
        return None


def same(before: Any, after: Any) -> bool:
    """Whether two snapshots are alike, bit for bit."""
    if isinstance(before, Tensor):
        return before.is_meta or torch.equal(before.double().nan_to_num(7), after.double().nan_to_num(7))
    if isinstance(before, dict):
        return before.keys() == after.keys() and all(same(before[key], after[key]) for key in before)
    if isinstance(before, (list, tuple)):
        return len(before) == len(after) and all(map(same, before, after))
    return bool(before == after)
