"""Code that does what neither a record nor a trace shows: what depends on it is refused."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, is_grad_enabled, nn
from torch.func import functional_call
from torch.nn.utils import parametrize
from torch.utils.checkpoint import checkpoint

import reparam
from helpers import EXACT, Block, distance, image, trained

Forward = Callable[[nn.Module, Tensor], Tensor]
SIZES = [(2, 4, 5, 6), (1, 4, 3, 3), (2, 4, 7, 9)]


def equal(model: nn.Module) -> int:
    """How many folds are made, all of them exact at every size."""
    folded = reparam.reparameterize(model, image(*SIZES[0]), verify=False)
    for size in SIZES:
        assert distance(model, folded, image(*size)) < EXACT, size
    return len(folded.reparam_report.folds)


# --- tensors in the place of a module's own, for one call


class _Own(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(4, 4, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        return F.conv2d(x, self.weight)


class _Scaled(_Own):
    def forward(self, x: Tensor) -> Tensor:
        return x * self.weight


def _parametrized() -> nn.Module:
    conv = nn.Conv2d(4, 4, 1)
    parametrize.register_parametrization(conv, "weight", _Scaled())
    return conv


def _by_hand(m: nn.Module, x: Tensor) -> Tensor:
    weight = m.conv.weight
    del m.conv.weight
    m.conv.weight = weight * 2
    y = m.conv(x)
    del m.conv.weight
    m.conv.weight = weight
    return m.bn(y)


LENT: dict[str, Forward] = {
    "to a layer": lambda m, x: m.bn(functional_call(m.conv, {"weight": m.conv.weight * 2}, (x,))),
    "to a norm": lambda m, x: m.conv(functional_call(m.bn, {"weight": m.bn.weight * 2}, (x,))),
    "to a layer inside": lambda m, x: functional_call(m.both, {"0.weight": m.conv.weight * 2}, (x,)),
    "to code": lambda m, x: m.bn(functional_call(m.own, {"weight": m.own.weight * 2}, (x,))),
    "to a parametrization": lambda m, x: m.bn(
        functional_call(m.made, {"parametrizations.weight.0.weight": m.own.weight * 3}, (x,))
    ),
    "before code that is rewritten": lambda m, x: m.bn(
        functional_call(m.conv, {"weight": m.conv.weight * 2}, (x,)) + m.other(x)
    ),
    "by hand": _by_hand,
}


@pytest.mark.parametrize("name", LENT)
def test_what_is_lent_to_a_module_for_a_call_is_no_weight_of_its_own(name: str) -> None:
    conv, bn = nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4)
    members = {"conv": conv, "bn": bn, "both": nn.Sequential(conv, bn), "other": nn.Conv2d(4, 4, 1)}
    assert equal(trained(Block(LENT[name], own=_Own(), made=_parametrized(), **members))) == 0


def test_a_module_that_is_lent_its_own_weights_folds() -> None:
    def forward(m: nn.Module, x: Tensor) -> Tensor:
        return m.bn(functional_call(m.conv, dict(m.conv.named_parameters()), (x,)))

    assert equal(trained(Block(forward, conv=nn.Conv2d(4, 4, 1), bn=nn.BatchNorm2d(4)))) == 1


# --- exceptions that are caught


def _another_way(m: nn.Module, x: Tensor) -> Tensor:
    y = m.conv(x)
    try:
        m.large(y)
        y = m.bn(y)
    except RuntimeError:
        pass
    return y


def _in_a_helper(m: nn.Module, x: Tensor) -> Tensor:
    def normed(y: Tensor) -> Tensor:
        try:
            return m.bn(F.max_pool2d(y, 5))
        except (ValueError, RuntimeError):
            return y

    return normed(m.conv(x))


def _by_a_size(m: nn.Module, x: Tensor) -> Tensor:
    y = m.conv(x)
    height = y.shape[2]
    try:
        y = y * (1 / (height - 3) / (1 / (height - 3)))
    except ZeroDivisionError:
        return y
    return m.bn(y)


def _suppressed(m: nn.Module, x: Tensor) -> Tensor:
    y = m.conv(x)
    with suppress(RuntimeError):
        m.large(y)
        y = m.bn(y)
    return y


@pytest.mark.parametrize("forward", [_another_way, _in_a_helper, _by_a_size, _suppressed])
def test_code_that_goes_on_after_an_exception_goes_other_ways_at_other_sizes(forward: Forward) -> None:
    members = {"conv": nn.Conv2d(4, 4, 1), "bn": nn.BatchNorm2d(4), "large": nn.Conv2d(4, 4, 4)}
    assert equal(trained(Block(forward, **members))) == 0


def test_what_does_not_depend_on_the_exception_folds() -> None:
    def forward(m: nn.Module, x: Tensor) -> Tensor:
        try:
            return m.block(x)
        except RuntimeError:
            return x

    block = nn.Sequential(nn.Conv2d(4, 4, 4), nn.BatchNorm2d(4))
    assert equal(trained(Block(forward, block=block))) == 1


def test_exceptions_that_no_size_raises_are_none_of_its_ways() -> None:
    def forward(m: nn.Module, x: Tensor) -> Tensor:
        try:
            y = m.conv(x)
        except TypeError:
            y = m.conv(x, None)
        try:
            y = y * 1
        except (AttributeError, TypeError):
            y = y + 1
        try:
            with torch.no_grad():
                return m.bn(sum([each * 1 for each in (y,)]))
        finally:
            m.eval()

    assert equal(trained(Block(forward, conv=nn.Conv2d(4, 4, 1), bn=nn.BatchNorm2d(4)))) == 1


# --- code that asks whether gradients are recorded


def _everywhere(model: nn.Module) -> int:
    """How many folds are made, all of them exact with gradients, without, and in inference mode."""
    folded = reparam.reparameterize(model, image(*SIZES[0]), verify=False)
    for mode in (torch.no_grad(), torch.enable_grad(), torch.inference_mode()):
        for size in SIZES:
            with mode:
                x = image(*size).requires_grad_(torch.is_grad_enabled())
                error = (model(x) - folded(x)).abs().max().item()
            assert error < EXACT, (size, mode)
    return len(folded.reparam_report.folds)


def _at_hand(m: nn.Module, x: Tensor) -> Tensor:
    y = m.conv(x)
    return y if is_grad_enabled() else m.bn(y)


def _in_a_step(m: nn.Module, x: Tensor) -> Tensor:
    y = m.conv(x)
    return y.cos() + m.other(x) if torch.is_grad_enabled() else m.bn(y) + m.other(x)


def _unless_recorded(bias: Tensor) -> Tensor | None:
    return None if (bias * 2).requires_grad else bias


ASKED: dict[str, Forward] = {
    "torch": lambda m, x: m.bn(m.conv(x).cos() if torch.is_grad_enabled() else m.conv(x)),
    "torch, by a name of its own": _at_hand,
    "torch, around code that is rewritten": _in_a_step,
    "inference mode": lambda m, x: m.bn(m.conv(x)) if not torch.is_inference_mode_enabled() else m.conv(x),
    "requires_grad": lambda m, x: m.bn(m.conv(x)) if not m.conv(x).requires_grad else m.conv(x),
    "requires_grad of the input": lambda m, x: m.bn(m.conv(x)) if not x.requires_grad else m.conv(x),
    "requires_grad of a weight worked out": lambda m, x: m.bn(
        F.conv2d(x, 2 * m.conv.weight, _unless_recorded(m.conv.bias))
    ),
    "requires_grad of a weight": lambda m, x: m.bn(m.conv(x)) if m.conv.weight.requires_grad else m.bn(x),
    "grad_fn": lambda m, x: m.bn(m.conv(x)) if m.conv(x).grad_fn is None else m.conv(x),
    "is_leaf": lambda m, x: m.bn(m.conv(x)) if m.conv(x).is_leaf else m.conv(x),
    "is_inference": lambda m, x: m.conv(x) if x.is_inference() else m.bn(m.conv(x)),
}


@pytest.mark.parametrize("name", ASKED)
def test_what_asks_whether_gradients_are_recorded_may_go_another_way_with_them(name: str) -> None:
    members = {"conv": nn.Conv2d(4, 4, 1), "bn": nn.BatchNorm2d(4), "other": nn.Conv2d(4, 4, 1)}
    model = trained(Block(ASKED[name], **members))
    assert _everywhere(model) == 0
    report = reparam.reparameterize(model, image(*SIZES[0])).reparam_report
    assert any("whether gradients are recorded" in line.reason for line in report.refusals)
    assert any("whether gradients are recorded" in look.what for look in report.baked)


def _with_attention(m: nn.Module, x: Tensor) -> Tensor:
    tokens = m.bn(m.conv(x)).flatten(2).transpose(1, 2)
    tokens = m.layer(tokens + m.attention(tokens, tokens, tokens)[0])
    return F.scaled_dot_product_attention(tokens, tokens, tokens)


BESIDE: dict[str, Forward] = {
    "torch's own code": _with_attention,
    "a checkpoint": lambda m, x: checkpoint(lambda y: m.bn(m.conv(y)), x, use_reentrant=False),
    "no gradients in a part": torch.no_grad()(lambda m, x: m.bn(m.conv(x))),
    "code beside": lambda m, x: m.both(x.cos() if torch.is_grad_enabled() else x),
}


@pytest.mark.parametrize("name", BESIDE)
def test_what_is_the_same_with_gradients_folds(name: str) -> None:
    conv, bn = nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4)
    members = {"both": nn.Sequential(conv, bn)} if name == "code beside" else {"conv": conv, "bn": bn}
    attention = nn.MultiheadAttention(4, 2, batch_first=True)
    layer = nn.TransformerEncoderLayer(4, 2, 8, batch_first=True)
    assert _everywhere(trained(Block(BESIDE[name], attention=attention, layer=layer, **members))) == 1


def test_what_stands_in_for_the_functions_of_torch_is_gone_afterwards() -> None:
    asks = torch.is_grad_enabled, torch.is_inference_mode_enabled, is_grad_enabled
    _everywhere(trained(Block(_at_hand, conv=nn.Conv2d(4, 4, 1), bn=nn.BatchNorm2d(4))))
    with pytest.raises(reparam.ModelError):
        reparam.reparameterize(Block(lambda m, x: m.missing).eval(), image(1, 4, 3, 3))
    assert (torch.is_grad_enabled, torch.is_inference_mode_enabled, is_grad_enabled) == asks


# --- modules that say what another one is to do


class _Says(nn.Module):
    """Whether an image is high; with others, in what it returns beside a tensor."""

    def __init__(self, beside: bool) -> None:
        super().__init__()
        self.beside = beside

    def forward(self, x: Tensor) -> bool | tuple[Tensor, bool]:
        high = x.shape[2] > 4
        return (x, high) if self.beside else high


@pytest.mark.parametrize("beside", [False, True])
def test_a_module_may_say_yes_or_no_by_the_size(beside: bool) -> None:
    def forward(m: nn.Module, x: Tensor) -> Tensor:
        said = m.says(x)
        y = m.conv(x)
        return m.bn(y) if (said[1] if beside else said) else y

    model = Block(forward, conv=nn.Conv2d(4, 4, 1), bn=nn.BatchNorm2d(4), says=_Says(beside))
    assert equal(trained(model)) == 0
