"""Python between the layers: what was recorded holds for other inputs, or is refused."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import reparam
from tests.capture.residual import SIZES, Layer, PassesOn, Residual, fold_at
from tests.helpers import EXACT, convs_ran, distance, image, norms_ran, report_of, trained


class OnSizes(nn.Module):
    """Another layer, and another number of them, for other sizes."""

    def __init__(self) -> None:
        super().__init__()
        self.small, self.large, self.last = Residual(), Residual(), Residual()

    def forward(self, x: Tensor) -> Tensor:
        x = self.large(x) if x.shape[2] * x.shape[3] > 100 else self.small(x)
        for _ in range(x.shape[0]):
            x = self.last(x)
        return x if x.shape[-1] % 2 else F.pad(x, (0, 1))


def test_control_flow_on_sizes() -> None:
    result = fold_at(OnSizes(), sizes=((2, 4, 9, 7), (1, 4, 8, 6), (3, 4, 12, 5)))
    assert [norms_ran(each, image(1, 4, 3, 3)) for each in result.children()] == [0, 2, 0]  # one was never run
    model = trained(OnSizes(), image(2, 4, 9, 7))
    result = reparam.reparameterize(model, image(2, 4, 9, 7))
    assert distance(model, result, image(2, 4, 16, 17)) < EXACT  # it still takes the other branch


class Gated(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.left, self.right = Layer(), Layer()

    def forward(self, x: Tensor, *others: Tensor, scale: float = 1.0, gate: Tensor | None = None) -> Tensor:
        y = self.left(x) + self.right(x)
        for other in others:
            y = y + other
        return (y * scale).relu() if gate is None else (y * scale).relu() * gate


@pytest.mark.parametrize("more", [{}, {"scale": 0.5}, {"gate": None}])
def test_arguments_that_are_passed_on(more: dict[str, Any]) -> None:
    class Network(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body = PassesOn(PassesOn(Gated()), Gated())

        def forward(self, x: Tensor, y: Tensor) -> Any:
            return self.body(x, y, **more)

    result = fold_at(Network(), given=lambda x: (x, x.cos()))
    assert convs_ran(result, image(1, 4, 8, 8), image(1, 4, 8, 8)) == 2


class Modes(nn.Module):
    """Literal arguments of its parent decide what it does."""

    def __init__(self) -> None:
        super().__init__()
        self.layer, self.other, self.up = Layer(), Layer(taps=1), Layer()

    def forward(self, x: Tensor, mode: str, times: int, flag: bool, scale: float, none: Tensor | None) -> Tensor:
        y = self.layer(x)
        if mode == "both":
            y = y + self.other(x)
        for _ in range(times):
            y = y * scale
        if flag and none is None:
            y = y + x
        return self.up(y.relu())


class Parent(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.modes = Modes()

    def forward(self, x: Tensor) -> Any:
        y = self.modes(x, "both", 2, True, scale=0.5, none=None)
        return self.modes(y.sin(), "both", 2, True, scale=0.5, none=None)


def test_literal_arguments() -> None:
    result = fold_at(Parent())
    assert convs_ran(result, image(1, 4, 8, 8)) == 4


class TwoWays(Parent):
    def forward(self, x: Tensor) -> Any:
        y = self.modes(x, "both", 2, True, scale=0.5, none=None)
        return self.modes(y.sin(), "one", 1, False, scale=0.25, none=None)


def test_literal_arguments_that_differ_between_calls() -> None:
    result = fold_at(TwoWays())  # each layer folds by itself, and no code is rewritten
    assert convs_ran(result, image(1, 4, 8, 8)) == 5


class SizeHandedOn(Parent):
    def forward(self, x: Tensor) -> Any:
        return self.modes(x, "both", x.shape[0], True, scale=0.5, none=None)


def test_a_size_as_an_argument_is_no_literal() -> None:
    fold_at(SizeHandedOn())  # at another batch there are other products


class Looks(nn.Module):
    """The input decides what stands between a convolution and its batch norm, and which norm that is."""

    def __init__(self, decide: Callable[[Tensor], Any]) -> None:
        super().__init__()
        self.decide = decide
        self.conv = nn.Conv2d(4, 4, 3, padding=1)
        self.norms = nn.ModuleList(nn.BatchNorm2d(4) for _ in range(2))
        self.block = Residual()

    def forward(self, x: Tensor) -> Any:
        y = self.conv(x)
        y = self.norms[0](y) if self.decide(x) else self.norms[1](y).sin()
        return self.block(y * 1.5)


def by_height(x: Tensor) -> bool:
    return x.shape[2] > 8


def by_batch(x: Tensor) -> bool:
    return len(x) == 2


def by_value(x: Tensor) -> bool:
    return x.numel() == 504 and x.amax().item() > 0


def by_truth(x: Tensor) -> bool:
    return bool((x.amax() > 4.0).any())


@pytest.mark.parametrize(
    ("decide", "expressions"),
    [
        (by_height, ["input_0.shape[2] > 8"]),
        (by_batch, ["input_0.shape[0]"]),
        (by_value, ["((input_0.shape[0] * input_0.shape[1]) * input_0.shape[2]) * input_0.shape[3]) == 504"]),
        (by_truth, ["bool(any)"]),
    ],
)
def test_no_fold_relies_on_the_way_that_was_recorded(decide: Callable[[Tensor], Any], expressions: list[str]) -> None:
    model = Looks(decide)
    result = fold_at(model, norms=1, sizes=(*SIZES, (2, 4, 6, 21)))  # in the block alone
    for scale in (0.1, 100.0):
        assert distance(model, result, scale * image(2, 4, 9, 7)) < EXACT
    report = report_of(result)
    for expression in expressions:
        (line,) = [line for line in report.decisions if line.expression.endswith(expression)]
        assert (line.where, line.settled) == ("the model itself", "a run took the other way")
        assert expression in str(report)


def test_a_model_without_control_flow_reports_none() -> None:
    report = report_of(fold_at(nn.Sequential(Residual(), nn.Flatten(2))))
    assert report.decisions == ()
    assert "another way" not in str(report)


class _Masked(nn.Module):
    """Uses another kernel, made of weights alone, if a mask is given."""

    def __init__(self) -> None:
        super().__init__()
        self.dense, self.point = nn.Conv2d(4, 4, 3, padding=1), nn.Conv2d(4, 4, 1)
        self.kernel = nn.Parameter(torch.randn(4, 4, 1, 1))

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        kernel = self.kernel
        if mask is not None:
            kernel = kernel * 2
        return torch.relu(self.dense(x) + self.point(x) + F.conv2d(x, kernel))


def test_an_argument_that_was_not_given_is_refused_later() -> None:
    x = torch.randn(2, 4, 7, 9, dtype=torch.float64)
    model = trained(_Masked(), x)
    folded = reparam.reparameterize(model, x)
    assert convs_ran(folded, x) == 1
    assert distance(model, folded, x) < EXACT
    with pytest.raises(AssertionError, match="other arguments"):
        folded(x, torch.ones(1))


class _Masking(nn.Module):
    """Passes an optional mask on."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = _Masked()

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        return self.inner(x, mask)


def test_an_optional_argument_of_an_inner_module_is_refused_later() -> None:
    x = torch.randn(2, 4, 7, 9, dtype=torch.float64)
    model = trained(_Masking(), x)
    folded = reparam.reparameterize(model, x)
    assert convs_ran(folded, x) == 1
    assert distance(model, folded, x) < EXACT
    with pytest.raises(AssertionError, match="inner was converted for calls with other arguments"):
        folded(x, torch.ones(1))
    folded = reparam.reparameterize(model, (x, torch.ones(1)))
    assert distance(model, folded, x, torch.ones(1)) < EXACT
