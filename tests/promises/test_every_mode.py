"""With gradients, without, and in inference mode: code that asks which of these it is may compute something else."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, is_grad_enabled, nn
from torch.utils.checkpoint import checkpoint

import reparam
from tests.helpers import EXACT, Block, Forward, image, trained

SIZES = [(2, 4, 5, 6), (1, 4, 3, 3), (2, 4, 7, 9)]


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
def test_code_that_asks_whether_gradients_are_recorded_is_kept(name: str) -> None:
    members = {"conv": nn.Conv2d(4, 4, 1), "bn": nn.BatchNorm2d(4), "other": nn.Conv2d(4, 4, 1)}
    model = trained(Block(ASKED[name], **members))
    assert _everywhere(model) == 0
    report = reparam.reparameterize(model, image(*SIZES[0])).reparam_report
    assert any("something else" in line.reason or "is otherwise" in line.reason for line in report.refusals)
    assert any("grad" in line.expression or "is_" in line.expression for line in report.decisions)


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
def test_code_that_computes_the_same_in_every_mode_folds(name: str) -> None:
    conv, bn = nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4)
    members = {"both": nn.Sequential(conv, bn)} if name == "code beside" else {"conv": conv, "bn": bn}
    attention = nn.MultiheadAttention(4, 2, batch_first=True)
    layer = nn.TransformerEncoderLayer(4, 2, 8, batch_first=True)
    assert _everywhere(trained(Block(BESIDE[name], attention=attention, layer=layer, **members))) == 1


def test_patched_functions_of_torch_are_restored() -> None:
    asks = torch.is_grad_enabled, torch.is_inference_mode_enabled, is_grad_enabled
    _everywhere(trained(Block(_at_hand, conv=nn.Conv2d(4, 4, 1), bn=nn.BatchNorm2d(4))))
    with pytest.raises(reparam.ModelError):
        reparam.reparameterize(Block(lambda m, x: m.missing).eval(), image(1, 4, 3, 3))
    assert (torch.is_grad_enabled, torch.is_inference_mode_enabled, is_grad_enabled) == asks
