"""How wrong a fold would be that overlooks the border: the report says it in numbers."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import reparam
from reparam.nn import RepVGGBlock
from tests.helpers import Block, image, trained


def ones(padding: Any, bias: bool = False, stride: int = 1, size: int = 3) -> nn.Conv2d:
    """Sums a window of one channel."""
    conv = nn.Conv2d(1, 1, size, stride=stride, padding=padding, bias=bias).double()
    nn.init.ones_(conv.weight)
    if conv.bias is not None:
        nn.init.ones_(conv.bias)
    return conv


def always(value: float) -> nn.BatchNorm2d:
    """A norm whose output is one number everywhere."""
    norm = nn.BatchNorm2d(1).double()
    nn.init.zeros_(norm.weight)
    nn.init.constant_(norm.bias, value)
    return norm


def in_eval(*parts: nn.Module) -> nn.Module:
    return nn.Sequential(*parts).eval()


def bias_alone() -> nn.Conv2d:
    """A convolution whose output is one everywhere."""
    conv = nn.Conv2d(3, 1, 1).double()
    assert conv.bias is not None
    nn.init.zeros_(conv.weight)
    nn.init.ones_(conv.bias)
    return conv


# What the error has to be, by counting the pixels of a window that are padding: (9 - 4) / 9 in a corner, and so on.
BY_HAND: dict[str, tuple[Callable[[], nn.Module], float]] = {
    "a corner lacks five of nine": (lambda: in_eval(always(1.0), ones(1)), 5 / 9),
    "whatever the bias": (lambda: in_eval(always(-3.0), ones(1)), 5 / 9),
    "a bias behind it": (lambda: in_eval(always(1.0), ones(1, bias=True)), 5 / 10),
    "one row in front": (lambda: in_eval(always(1.0), ones((1, 0))), 3 / 9),
    "a pad of its own": (lambda: in_eval(always(1.0), nn.ZeroPad2d(1), ones(0)), 5 / 9),
    "a window of two": (lambda: in_eval(always(2.0), ones(1, size=2)), 3 / 4),
    "a stride that meets one corner": (lambda: in_eval(always(1.0), ones(1, stride=2)), 5 / 9),
    "a bias of a convolution": (lambda: in_eval(bias_alone(), ones(1)), 5 / 9),
}


def naive_error(model: nn.Module, x: Tensor, **options: Any) -> float | None:
    report = reparam.reparameterize(model, x, **options).reparam_report
    errors = [r.naive_error for r in report.refusals if "border" in r.reason]
    assert errors
    return max((error for error in errors if error is not None), default=None)


@pytest.mark.parametrize("name", BY_HAND)
def test_the_error_equals_a_direct_count(name: str) -> None:
    make, expected = BY_HAND[name]
    channels = 3 if "convolution" in name else 1
    for size in ((6, 8), (70, 41)):
        assert naive_error(make(), image(2, channels, *size)) == pytest.approx(expected, rel=1e-12)


def test_padding_with_a_number_of_its_own() -> None:
    """The border should hold 0.5 and holds zeros: five of the nine pixels in a corner."""
    model = in_eval(nn.ConstantPad2d(1, 0.5), ones(0))
    x = torch.randn(1, 1, 6, 8, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    assert naive_error(model, image(2, 1, 6, 8)) == pytest.approx(2.5 / model(x).abs().max().item(), rel=1e-12)


def test_a_window_reaches_across_the_padding() -> None:
    """Two 3x3 convolutions padded by one are no 5x5 convolution padded by two."""
    model = trained(nn.Sequential(nn.Conv2d(2, 3, 3, padding=1, bias=False), nn.Conv2d(3, 2, 3, padding=1, bias=False)))
    found = naive_error(model, image(1, 2, 9, 12))
    x = image(1, 2, 9, 12, seed=5)
    with torch.no_grad():
        wide = nn.Sequential(*copy.deepcopy(model))
        wide[0].padding, wide[1].padding = (2, 2), (0, 0)
        expected = ((wide(x) - model(x)).abs().max() / model(x).abs().max()).item()
    assert found == pytest.approx(expected, rel=0.5)  # of another image
    assert found > 0.01


def test_the_error_is_printed() -> None:
    text = str(reparam.reparameterize(in_eval(always(1.0), ones(1)), image(1, 1, 9, 7)).reparam_report)
    assert "a naive fold would be wrong by 56 % at the border" in text


@pytest.mark.parametrize("behind", [[], [nn.BatchNorm2d(1).double()], [nn.ReLU()]])
@pytest.mark.parametrize("pad", [[nn.ZeroPad2d(1), ones(0)], [ones(1)]])
def test_a_norm_that_stays_names_the_error(pad: list[nn.Module], behind: list[nn.Module]) -> None:
    """The same where the convolution folds with the operations behind it."""
    report = reparam.reparameterize(in_eval(nn.ReLU(), always(1.0), *pad, *behind), image(1, 1, 9, 7)).reparam_report
    (norm,) = [r for r in report.refusals if r.operation == "batch_norm"]
    assert norm.where == "1"
    assert norm.reason.startswith("conv2d cannot take it: the padding holds another value")
    assert norm.remedy
    assert norm.naive_error == pytest.approx(5 / 9, rel=1e-12)


def test_the_worst_of_several_is_printed() -> None:
    model = in_eval(always(1.0), ones((1, 0)), nn.ReLU(), always(1.0), ones(1))
    text = str(reparam.reparameterize(model, image(1, 1, 9, 7)).reparam_report)
    assert "56 %" in text
    assert "33 %" not in text


def test_nothing_is_measured_without_verification() -> None:
    assert naive_error(in_eval(always(1.0), ones(1)), image(1, 1, 9, 7), verify=False) is None


def test_code_that_needs_a_large_image_is_measured_on_one() -> None:
    """The crop removes rows before the padding."""
    model = Block(lambda m, x: m.conv(x[:, :, 34:]), conv=ones(1)).eval()
    found = naive_error(model, image(2, 1, 40, 36))
    assert found is not None
    assert 0.01 < found < 1


@pytest.mark.parametrize("model", [RepVGGBlock(2, 2), nn.Sequential(nn.BatchNorm2d(2), nn.Conv2d(2, 2, 1))])
def test_a_fold_has_no_border_error(model: nn.Module) -> None:
    report = reparam.reparameterize(trained(model), image(1, 2, 9, 7)).reparam_report
    assert all(refusal.naive_error is None for refusal in report.refusals)


def test_a_linear_layer_behind_padding_has_no_border_error() -> None:
    # It reads the last dimension, and the padding is of pixels: no kernel could take it, naive or not.
    model = trained(nn.Sequential(nn.BatchNorm2d(4), nn.ZeroPad2d((1, 1, 1, 0)), nn.Linear(7, 4)))
    report = reparam.reparameterize(model, image(2, 4, 3, 5)).reparam_report
    assert all(line.naive_error is None for line in report.refusals if line.operation == "linear")


@pytest.mark.parametrize("number", [0.0, 1.5])
def test_a_transposed_convolution_behind_padding_has_no_border_error(number: float) -> None:
    """It reads the positions between the padded pixels, which the operation in front does not have."""
    model = trained(
        nn.Sequential(nn.Conv2d(3, 2, 1), nn.ConstantPad2d(1, number), nn.ConvTranspose2d(2, 2, 2, stride=2))
    )
    assert [line.naive_error for line in reparam.reparameterize(model, image(3, 3, 1, 2)).reparam_report.refusals] == [
        None
    ]
