"""Images of one size: zero padding makes a map of biases, and sizes that agree are enough for a sum."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

import reparam
from reparam.algebra.affine import AffineConv, Anchor, Constant, PendingBorder
from reparam.algebra.lazy import Lazy
from reparam.errors import Refusal
from tests.helpers import EXACT, Block, distance, image, norms_ran, ran, trained

SIZE = (7, 10)
CHANNELS = 4

# --- the laws, drawn


def integers(*shape: int) -> Tensor:
    return torch.randint(-3, 4, shape).double()


@st.composite
def steps(draw: st.DrawFn) -> tuple[Callable[[AffineConv], object], Callable[[Tensor], Tensor]]:
    """One operation as a law, and on a tensor; channels stay as many."""
    torch.manual_seed(draw(st.integers(0, 2**16)))
    kind = draw(st.sampled_from(["conv", "conv", "scale", "pad", "crop", "residual", "take"]))
    if kind == "conv":
        taps, stride = draw(st.sampled_from([1, 2, 3])), draw(st.sampled_from([1, 1, 2]))
        kernel, bias, pad = integers(CHANNELS, 2, taps, taps), integers(CHANNELS), draw(st.integers(0, 2))
        outer = AffineConv.conv(
            Constant(tuple(kernel.shape), Lazy.of(kernel)), Constant((CHANNELS,), Lazy.of(bias)), [stride] * 2, groups=2
        )
        return (
            lambda v: resolve(v.pad([(pad, pad)] * 2)).then(outer),
            lambda x: F.conv2d(x, kernel, bias, stride, pad, groups=2),
        )
    if kind == "scale":
        scale, shift = integers(CHANNELS), integers(CHANNELS)
        column = [1, -1, 1, 1]
        return (
            lambda v: v.scale_shift(Lazy.of(scale), Lazy.of(shift)),
            lambda x: x * scale.view(column) + shift.view(column),
        )
    if kind == "pad":
        lo, hi = draw(st.integers(-1, 2)), draw(st.integers(-1, 2))
        value = float(draw(st.sampled_from([0, 0, 2])))
        given_value = Lazy.of(torch.tensor([value], dtype=torch.float64)) if value else None
        return (
            lambda v: resolve(v.pad([(0, 0), (lo, hi)], given_value)),
            lambda x: F.pad(x, [lo, hi, 0, 0], value=value),
        )
    if kind == "crop":
        return lambda v: v.slice(0, 1, 1, 2), lambda x: x[:, :, 1:-1:2]
    if kind == "residual":
        kernel = integers(CHANNELS, 1, 3, 3)
        outer = AffineConv.conv(Constant(tuple(kernel.shape), Lazy.of(kernel)), groups=CHANNELS)
        return (
            lambda v: v + resolve(v.pad([(1, 1)] * 2)).then(outer),
            lambda x: x + F.conv2d(x, kernel, padding=1, groups=CHANNELS),
        )
    rows = draw(st.permutations(range(CHANNELS)))
    return lambda v: v.take(rows), lambda x: x[:, list(rows)]


def resolve(value: AffineConv | PendingBorder) -> AffineConv:
    return value.resolve() if isinstance(value, PendingBorder) else value


@given(st.lists(steps(), min_size=1, max_size=5))
def test_chains_of_laws_at_a_fixed_size(
    chain: list[tuple[Callable[[AffineConv], AffineConv], Callable[[Tensor], Tensor]]],
) -> None:
    value, x = AffineConv.of(Anchor("x", (2, CHANNELS, *SIZE), fixed=True), 2), integers(2, CHANNELS, *SIZE)
    y = x
    for law, direct in chain:
        try:
            y = direct(y)
            value = law(value)
        except (Refusal, RuntimeError):  # too small by now, or a window that reaches what padding hides
            return
        if 0 in y.shape:
            return
        assert value.shape() == tuple(y.shape)
        assert torch.equal(value(x), y)


# --- whole models


def _merged(m: nn.Module, x: Tensor) -> Tensor:
    return m.norm(torch.cat([m.a(x), m.b(m.first(x))], 1))


FOLDED: dict[str, Callable[[], nn.Module]] = {
    "norm before a padded convolution": lambda: nn.Sequential(
        nn.BatchNorm2d(4), nn.Conv2d(4, 4, 3, padding=1, stride=2)
    ),
    "norm, convolution, norm, padded pool": lambda: nn.Sequential(
        nn.BatchNorm2d(4), nn.Conv2d(4, 4, 3, padding=1, stride=2), nn.BatchNorm2d(4), nn.AvgPool2d(3, 1, 1)
    ),
    "biased 1x1 before a depthwise 5x5": lambda: nn.Sequential(
        nn.BatchNorm2d(4), nn.Conv2d(4, 4, 1, groups=4), nn.Conv2d(4, 4, 5, padding=2, groups=4, stride=2)
    ),
    "branches": lambda: Block(
        _merged,
        a=nn.Conv2d(4, 4, 3, padding=1),
        first=nn.BatchNorm2d(4),
        b=nn.Conv2d(4, 4, 3, padding=1),
        norm=nn.BatchNorm2d(8),
    ),
}


@pytest.mark.parametrize("name", FOLDED)
@pytest.mark.parametrize("size", [(9, 7), (8, 5), (1, 2)])
def test_a_bias_in_front_of_zero_padding_becomes_a_map(name: str, size: tuple[int, int]) -> None:
    model, x = trained(FOLDED[name]()), image(2, 4, *size)
    folded = reparam.reparameterize(model, x, fixed_size=True)
    assert norms_ran(folded, x) == 0
    assert ran(folded, x)["convolution"] == 1
    assert distance(model, folded, image(5, 4, *size)) < EXACT
    assert distance(model, pickle.loads(pickle.dumps(copy.deepcopy(folded))), x) < EXACT
    assert not reparam.reparameterize(folded, x, fixed_size=True).reparam_report.folds
    with pytest.raises(ValueError, match="fixed_size=True"):
        folded(image(1, 4, size[0] + 2, size[1] + 2))


def _two_alignments(m: nn.Module, x: Tensor) -> Tensor:
    return m.a(x) + m.b(x)


def test_alignments_that_agree_at_this_size_add_up() -> None:
    model = trained(
        Block(
            _two_alignments,
            a=nn.Conv2d(4, 4, 2, stride=2, padding=1),
            b=nn.Conv2d(4, 4, 3, stride=2, padding=1),
        )
    )
    x = image(2, 4, 9, 7)
    assert ran(reparam.reparameterize(model, x), x)["convolution"] == 2
    folded = reparam.reparameterize(model, x, fixed_size=True)
    assert ran(folded, x)["convolution"] == 1
    assert distance(model, folded, x) < EXACT


def test_a_map_of_biases_that_does_not_pay_is_not_made() -> None:
    """The map has as many pixels as the input, so adding it costs as much as the norm."""
    model, x = trained(nn.Sequential(nn.BatchNorm2d(4), nn.Conv2d(4, 8, 3, padding=1))), image(2, 4, 9, 7)
    assert not reparam.reparameterize(model, x, fixed_size=True).reparam_report.folds


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_other_dtypes(dtype: torch.dtype) -> None:
    model, x = trained(FOLDED["branches"](), dtype=dtype), image(2, 4, 9, 7, dtype=dtype)
    folded = reparam.reparameterize(model, x, fixed_size=True)
    assert {parameter.dtype for parameter in folded.parameters()} == {dtype}
    assert norms_ran(folded, x) == 0


def _filled(m: nn.Module, x: Tensor) -> Tensor:
    y = F.pad(m.a(x), [1, 1, 1, 1])
    y[:, :, :1] = 0.5
    return m.b(y)


def test_a_border_that_is_written_to_is_kept() -> None:
    model = trained(Block(_filled, a=nn.BatchNorm2d(4), b=nn.Conv2d(4, 4, 3, stride=2)))
    x = image(2, 4, 9, 7)
    folded = reparam.reparameterize(model, x, fixed_size=True)
    assert norms_ran(folded, x) == 1
    assert distance(model, folded, x) < EXACT


def _sum_of_two(m: nn.Module, x: Tensor) -> Tensor:
    y = x.permute(1, 2, 0)
    return m.a(y) + m.b(y)


AMONG_PIXELS: dict[str, Callable[[], nn.Module]] = {
    "two convolutions behind a permutation": lambda: Block(
        lambda m, x: m.b(m.a(m.up(x).permute([1, 2, 0]))),
        up=nn.ConvTranspose1d(4, 4, 1),
        a=nn.Conv1d(12, 4, 1),
        b=nn.Conv1d(4, 4, 3, padding=1, stride=2),
    ),
    "a map of channels before it": lambda: Block(
        lambda m, x: m.conv(m.norm(x).permute(2, 1, 0)),
        norm=nn.BatchNorm1d(4),
        conv=nn.Conv1d(4, 4, 3, padding=1, stride=2),
    ),
    "a linear layer before it": lambda: Block(
        lambda m, x: m.conv(m.linear(x.transpose(1, 2)).permute(1, 2, 0)),
        linear=nn.Linear(4, 4),
        conv=nn.Conv1d(4, 4, 3, padding=1, stride=2),
    ),
    "a stride that hides it at some batches": lambda: Block(
        lambda m, x: m.b(m.norm(torch.relu(x.permute(1, 2, 0)[:, :, ::2]))),
        norm=nn.BatchNorm1d(12),
        b=nn.Conv1d(12, 4, 3, padding=1, stride=2),
    ),
    "alignments that agree at some batches": lambda: Block(
        _sum_of_two, a=nn.Conv1d(12, 4, 2, stride=2, padding=1), b=nn.Conv1d(12, 4, 3, stride=2, padding=1)
    ),
}


@pytest.mark.parametrize("batch", [1, 2, 3, 5])
@pytest.mark.parametrize("name", AMONG_PIXELS)
def test_a_batch_that_is_viewed_as_pixels_is_not_fixed(name: str, batch: int) -> None:
    """The batch may differ, so a map of biases would fit one batch alone."""
    model = trained(AMONG_PIXELS[name]())
    folded = reparam.reparameterize(model, image(batch, 4, 12), fixed_size=True)
    for other in range(1, 8):
        x = image(other, 4, 12)
        try:
            model(x)
        except RuntimeError:  # its two sides agree at some batches only
            continue
        assert distance(model, folded, x) < EXACT


def test_a_model_of_one_batch_folds_at_its_size() -> None:
    model = trained(Block(lambda m, x: m.body(x.view(2, 4, 9, 7)), body=FOLDED["branches"]()), image(2, 4, 9, 7))
    folded = reparam.reparameterize(model, image(2, 4, 9, 7), fixed_size=True)
    assert norms_ran(folded, image(2, 4, 9, 7)) == 0
    assert distance(model, folded, image(2, 4, 9, 7, seed=1)) < EXACT


def test_a_model_that_takes_only_multiples_of_a_batch() -> None:
    """Clips of four frames: the images of the batch are among the pixels."""
    model = trained(
        Block(
            lambda m, x: m.conv(m.norm(torch.relu(x.view(-1, 4, 12).permute(2, 1, 0)))),
            norm=nn.BatchNorm1d(4),
            conv=nn.Conv1d(4, 4, 3, padding=1, stride=2),
        ),
        image(4, 12),
    )
    folded = reparam.reparameterize(model, image(4, 12), fixed_size=True)
    for count in (4, 8, 12):
        assert distance(model, folded, image(count, 12)) < EXACT
