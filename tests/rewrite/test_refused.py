"""Folds that would be equal as numbers and cannot be written back: each has its reason, and what it says would help."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import reparam
from reparam.plan.cost import CPU, Cost, Price, Work
from reparam.report.report import Report
from tests.helpers import Block, distance, image, trained

_LAST = torch.channels_last


def viewed(m: Block, x: Tensor) -> Tensor:
    return m.norm(m.conv(x).contiguous(memory_format=_LAST)).permute(0, 2, 3, 1).view(-1)


def reshaped(m: Block, x: Tensor) -> Tensor:
    return m.norm(m.conv(x).contiguous(memory_format=_LAST)).permute(0, 2, 3, 1).reshape(-1)


def written(m: Block, x: Tensor) -> Tensor:
    x = x.relu()
    y = m.conv(x)
    x += 1
    return m.norm(y) * x


def not_written(m: Block, x: Tensor) -> Tensor:
    x = x.relu()
    y = m.conv(x)
    return m.norm(y) * (x + 1)


def averaged(m: Block, x: Tensor) -> Tensor:
    """Of as many channels as come in."""
    x = x.relu()
    return F.avg_pool2d(x, 3, 1, 1) * 2 - x


REASONS = [(viewed, reshaped, "takes a view of it"), (written, not_written, "is written to in place")]


def _converted(forward: Callable[..., Tensor], cost: Cost | str = "static") -> tuple[float, Report]:
    model = Block(forward, conv=nn.Conv2d(3, 3, 3, padding=1), norm=nn.BatchNorm2d(3))
    x = image(2, 3, 7, 9)
    folded = reparam.reparameterize(trained(model, x), x, cost=cost)
    report = folded.reparam_report
    assert isinstance(report, Report)
    return distance(model, folded, x), report


@pytest.mark.parametrize(("refused", "helped", "reason"), REASONS)
def test_a_fold_that_cannot_be_written_back_says_why(
    refused: Callable[..., Tensor], helped: Callable[..., Tensor], reason: str
) -> None:
    error, report = _converted(refused)
    assert (error, report.folds) == (0, ())
    (line,) = [line for line in report.refusals if line.operation == "batch_norm"]
    assert line.where == "norm"
    assert reason in line.reason
    error, report = _converted(helped)
    assert error < 1e-12
    assert len(report.folds) == 1
    assert not any(reason in line.reason for line in report.refusals)


def test_a_layer_with_as_many_channels_as_its_input_has_is_refused() -> None:
    error, report = _converted(averaged)
    assert (error, report.folds) == (0, ())
    (line,) = report.refusals
    assert "fixes its number of channels" in line.reason


class _Asked:
    """A cost that remembers what it was asked for."""

    name = "asked"

    def __init__(self) -> None:
        self.layers = 0

    def price(self, work: Work) -> Price:
        self.layers += work.weights > 0
        return CPU.price(work)


def test_refused_folds_are_not_priced() -> None:
    asked = _Asked()
    _, report = _converted(averaged, asked)
    assert "fixes its number of channels" in report.refusals[-1].reason
    assert not asked.layers
    _converted(not_written, asked)
    assert asked.layers


def _reasons(model: nn.Module, x: Tensor) -> list[tuple[str, str]]:
    report = reparam.reparameterize(model.eval(), x).reparam_report
    assert isinstance(report, Report)
    return [(line.where, line.operation) for line in report.refusals]


def _layers() -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Sequential(nn.Conv2d(4, 4, 1)))


@pytest.mark.parametrize("compiled", [torch.jit.script, lambda m: torch.jit.trace(m, image(1, 3, 5, 5))])
def test_torchscript_is_named(compiled: Callable[[nn.Module], nn.Module]) -> None:
    script = compiled(_layers().double().eval())
    x = image(2, 3, 7, 9)
    assert _reasons(script, x) == [("the model itself", "TorchScript")]
    assert _reasons(nn.Sequential(nn.Identity(), nn.ModuleDict({"a": script})["a"]), x) == [("1", "TorchScript")]
    assert _reasons(_layers().double(), x) == []


@torch.jit.script
def doubled(x: Tensor) -> Tensor:
    return x * 2


def test_a_tensor_of_unknown_origin_is_named() -> None:
    model = nn.Sequential(nn.Conv2d(3, 3, 1), Block(lambda m, x: doubled(x)), nn.BatchNorm2d(3)).double()
    assert ("2", "unknown") in _reasons(model, image(2, 3, 7, 9))


@pytest.mark.parametrize("between", [[], [nn.ZeroPad2d(1)]])
def test_a_refused_reader_is_the_reason_and_not_the_price(between: list[nn.Module]) -> None:
    model = nn.Sequential(nn.BatchNorm2d(3), *between, nn.ConvTranspose2d(3, 4, 2, stride=2))
    x = image(2, 3, 5, 7)
    report = reparam.reparameterize(trained(model, x), x).reparam_report
    assert isinstance(report, Report)
    refused, norm = report.refusals
    assert norm.operation == "batch_norm"
    assert norm.reason == f"conv_transpose2d cannot take it: {refused.reason}"
    assert norm.remedy == refused.remedy
