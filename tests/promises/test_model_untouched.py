"""The model that is converted stays as it was: its tensors, its attributes, its hooks, the state of torch."""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn

import reparam
from tests.helpers import (
    bn,
    conv,
    converted,
    image,
    norms_ran,
    seq,
    trained,
    trained_and_converted,
)
from tests.networks import Network, X, network, same, snapshot


class _Cached(nn.Module):
    """Attention that caches the constants of its forward in a dict, by device."""

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


def test_a_cache_in_a_dict_holds_plain_tensors() -> None:
    # timm efficientvit_m0, levit_128s: proxies of the trace stayed in it, and the model could not be copied.
    model = _Cached()
    folded = trained_and_converted(model, torch.randn(2, 4, 8, 8))
    assert norms_ran(folded, torch.randn(2, 4, 8, 8)) == 0
    assert all(isinstance(kept, Tensor) for kept in (*model.cache.values(), *folded.cache.values()))
    copy.deepcopy(folded)


def test_the_state_of_the_random_numbers_is_untouched() -> None:
    model = trained(seq(conv(4, 4, 3), bn(), nn.Dropout(0.5)))
    x = image(2, 4, 9, 7)
    before = torch.get_rng_state()
    converted(model, x)
    assert torch.equal(torch.get_rng_state(), before)


def test_the_original_is_untouched() -> None:
    model = network()
    model.stem.register_forward_hook(lambda *_: None)
    before = snapshot(model)
    reparam.reparameterize(model, X)
    assert same(before, snapshot(model))


def test_a_traced_original_is_untouched() -> None:
    """Without example inputs the model is traced and run on guesses: on a copy."""

    class Stores(Network):
        def forward(self, x: Tensor) -> Tensor:  # type: ignore[override]
            self.last = x
            return super().forward(x)

    model = trained(Stores())
    before = snapshot(model)
    reparam.reparameterize(model)
    assert same(before, snapshot(model))
