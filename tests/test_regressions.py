"""What real networks have brought to light, each as small as it gets."""

from __future__ import annotations

import copy
import pickle

import torch
from torch import Tensor, nn

import reparam
from helpers import norms_ran
from reparam.nn import draw_constants, draw_statistics


def converted(model: nn.Module, *inputs: Tensor) -> nn.Module:
    """The model with drawn numbers, converted and verified."""
    return reparam.reparameterize(draw_statistics(draw_constants(model)).eval(), inputs)


class _Cached(nn.Module):
    """Attention of old keeps the constants of its forward in a dict, by device."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(4, 4, 1)
        self.bn = nn.BatchNorm2d(4)
        self.offset = nn.Parameter(torch.randn(8, 1, 1))
        self.cache: dict[str, Tensor] = {}

    def forward(self, x: Tensor) -> Tensor:
        key = str(x.device)
        if key not in self.cache:
            self.cache[key] = self.offset[:4]
        y = self.bn(self.conv(x)) + x
        return y.relu() + self.cache[key]


def test_a_cache_in_a_dict_is_left_as_it_was() -> None:
    # timm efficientvit_m0, levit_128s: proxies of the trace stayed in it, and the model could not be copied.
    model = _Cached()
    folded = converted(model, torch.randn(2, 4, 8, 8))
    assert norms_ran(folded, torch.randn(2, 4, 8, 8)) == 0
    assert all(isinstance(kept, Tensor) for kept in (*model.cache.values(), *folded.cache.values()))
    copy.deepcopy(folded)


class _Keeps(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(4, 4, 1)
        self.bn = nn.BatchNorm2d(4)
        self.seen: dict[str, Tensor] = {}

    def forward(self, x: Tensor) -> Tensor:
        y = self.conv(x)
        self.seen["y"] = y
        return self.bn(y)


def test_what_a_forward_keeps_in_a_dict_stays_what_it_was() -> None:
    model = _Keeps()
    folded = converted(model, torch.randn(2, 4, 8, 8))
    x = torch.randn(2, 4, 8, 8)
    model(x), folded(x)
    torch.testing.assert_close(folded.seen["y"], model.seen["y"])


class _Defaulted(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(4, 4, 3, padding=1)
        self.bn = nn.BatchNorm2d(4)

    def forward(self, x: Tensor, scale: float | None = None, mask: Tensor | None = None) -> Tensor:
        return self.bn(self.conv(x)) + x


def test_a_rewritten_forward_keeps_its_defaults() -> None:
    # timm vit_tiny_patch16_dinov3_qkvb
    x = torch.randn(2, 4, 8, 8)
    folded = converted(_Defaulted(), x)
    assert norms_ran(folded, x) == 0
    torch.testing.assert_close(pickle.loads(pickle.dumps(folded))(x, mask=None), folded(x))
