"""Code whose sizes are those of the example: a fold holds for all that the original takes, or is none."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import reparam
from reparam.nn import draw_constants
from tests.helpers import (
    EXACT,
    Block,
    between,
    bn,
    conv,
    converted,
    convs_ran,
    distance,
    image,
    norms_ran,
    trained,
)

Function = Callable[[Tensor], Tensor]


def test_an_index_into_a_dimension_that_grows() -> None:
    """Pixels were moved to the channels; a constant index picks four of them, of five or of fifty."""

    def forward(m: nn.Module, x: Tensor) -> Tensor:
        return m.conv(torch.index_select(m.block(x.relu()), 1, m.index))

    block = Block(lambda m, x: x.view(x.shape[0], 2, -1).transpose(1, 2))
    model = trained(Block(forward, block=block, index=torch.tensor([2, 6, 1, 5]), conv=nn.Conv1d(4, 3, 2)))
    folded = reparam.reparameterize(model, image(1, 8, 5), verify=False)
    for length in (5, 9, 4, 2):
        assert distance(model, folded, image(2, 8, length)) < EXACT


def agree(model: nn.Module, folded: nn.Module, *sizes: tuple[int, ...]) -> int:
    """How many of the sizes the model takes; at all of these the folded one has to compute the same."""
    taken = 0
    for size in sizes:
        try:
            model(image(*size))
        except RuntimeError:
            continue
        assert distance(model, folded, image(*size)) < EXACT, size
        taken += 1
    return taken


# --- channels stay whole for the example, and others are taken for them at other sizes

IMAGES = [(3, 4, 3, 4), (6, 4, 3, 4), (3, 4, 6, 4), (6, 4, 3, 2), (1, 4, 3, 12), (2, 4, 9, 5), (12, 4, 1, 3)]
MIXING: dict[str, Function] = {
    "the batch": lambda x: x.view(3, 4, -1),
    "pixels": lambda x: x.view(-1, 4, 12),
    "all sizes": lambda x: x.reshape(3, 4, 12),
    "the batch, elsewhere": lambda x: x.reshape(3, 4, 4 * x.shape[0]),
    "pixels for the batch": lambda x: x.reshape(x.shape[2], 4, -1),
    "the batch for channels": lambda x: x.reshape(-1, x.shape[0] + 1, x.shape[2] * x.shape[3]),
    "width for channels": lambda x: x.reshape(-1, x.shape[3], 12),
    "one row after the other": lambda x: x.flatten(2).view(-1, 4, 12),
    "like another": lambda x: x.view_as(torch.zeros(3, 4, 12)),
    "a rounded width": lambda x: x.reshape(-1, 4, x.shape[2] // 3 * 12),
    "a shape": lambda x: x.view([3, 4, *x.shape[2:]]).flatten(2),
    "a literal size behind a shape": lambda x: x.view(x.shape).view(3, 4, -1),
}


@pytest.mark.parametrize("name", MIXING)
@pytest.mark.parametrize("kind", [nn.BatchNorm2d, nn.Conv2d])
def test_views_with_sizes_of_the_example_are_kept(name: str, kind: type[nn.Module]) -> None:
    first = kind(4) if kind is nn.BatchNorm2d else kind(4, 4, 1)
    model = trained(between(MIXING[name], first, nn.Conv1d(4, 5, 1)))
    folded = reparam.reparameterize(model, image(*IMAGES[0]), verify=False)
    assert agree(model, folded, *IMAGES) > 1


def test_a_refusal_says_what_would_fold() -> None:
    model = trained(between(MIXING["the batch"], nn.BatchNorm2d(4), nn.Conv1d(4, 5, 1)))
    report = reparam.reparameterize(model, image(*IMAGES[0])).reparam_report
    (refusal,) = (each for each in report.refusals if "not proven" in each.reason)
    assert "x.shape" in refusal.remedy


@pytest.mark.parametrize("pixels", [(1, 1), (1, 2), (2, 2)])
def test_an_image_of_one_pixel_says_nothing_about_larger_ones(pixels: tuple[int, int]) -> None:
    """Pixels are flattened together with the channels, then split into rows as long as there are channels."""
    functions: list[Function] = [
        lambda x: x.flatten(1).view(-1, 4, 1),
        lambda x: x.view(-1, 4, 1),
        lambda x: x.view(x.size(0), -1).view(-1, 4, 1),
        lambda x: F.interpolate(x, x.shape[2:]).view(-1, 4, 1),
        lambda x: F.adaptive_avg_pool2d(x, x.shape[2]).view(-1, 4, 1),
        lambda x: F.adaptive_avg_pool2d(x, x.shape[2:]).view(-1, 4, 1),
    ]
    for function in functions:
        model = trained(between(function, nn.BatchNorm2d(4), nn.Conv1d(4, 5, 1)))
        folded = reparam.reparameterize(model, image(2, 4, 1, 1), verify=False)
        assert agree(model, folded, (2, 4, 1, 1), (2, 4, *pixels)) == 2


def test_as_many_tokens_as_channels() -> None:
    model = trained(
        Block(lambda m, x: m.second(m.first(x).view(-1, x.shape[1])), first=nn.Linear(4, 4), second=nn.Linear(4, 3))
    )
    folded = reparam.reparameterize(model, image(2, 4, 4), verify=False)
    assert agree(model, folded, (2, 4, 4), (3, 4, 4), (4, 2, 4)) == 2


# --- sizes that are written out, and channels are whole all the same

PROVEN: dict[str, tuple[Function, Callable[[], nn.Module]]] = {
    "all but the batch": (lambda x: x.view(-1, 4, x.shape[2] * x.shape[3]), lambda: nn.Conv1d(4, 5, 1)),
    "the batch": (lambda x: x.view(3, 4, x.shape[2] * x.shape[3]), lambda: nn.Conv1d(4, 5, 1)),
    "the rest": (lambda x: x.reshape(x.shape[0], 4, -1), lambda: nn.Conv1d(4, 5, 1)),
    "from a copy's size": (lambda x: x.detach().reshape(len(x), x.size(1), -1), lambda: nn.Conv1d(4, 5, 1)),
    "rows of channels": (lambda x: x.permute(0, 2, 3, 1).reshape(-1, 4), lambda: nn.Linear(4, 5)),
    "windows": (lambda x: x.permute(0, 2, 3, 1).reshape(-1, 3, 2, 4).flatten(1, 2), lambda: nn.Linear(4, 5)),
    "a mean": (lambda x: x.mean((2, 3)).view(-1, 4), lambda: nn.Linear(4, 5)),
    "a kept mean": (lambda x: x.mean((2, 3), keepdim=True).view(-1, 4), lambda: nn.Linear(4, 5)),
    "a pool": (lambda x: F.adaptive_avg_pool2d(x, 1).view(-1, 4), lambda: nn.Linear(4, 5)),
    "a pool and the rest": (lambda x: F.adaptive_avg_pool2d(x, 1).view(x.size(0), -1), lambda: nn.Linear(4, 5)),
    "a pool of one batch": (lambda x: F.adaptive_avg_pool2d(x, (1, 1)).view(3, -1), lambda: nn.Linear(4, 5)),
    "pixels as they were": (lambda x: x.flatten(2).view(x.shape), lambda: nn.Conv2d(4, 5, 1)),
    "tokens to pixels": (
        lambda x: x.flatten(2).transpose(1, 2).transpose(1, 2).reshape(x.shape[0], 4, x.shape[2], x.shape[3]),
        lambda: nn.Conv2d(4, 5, 1),
    ),
}


@pytest.mark.parametrize("name", PROVEN)
def test_a_norm_passes_views_that_keep_channels_whole_at_every_size(name: str) -> None:
    function, second = PROVEN[name]
    model = trained(between(function, nn.BatchNorm2d(4), second()))
    folded = reparam.reparameterize(model, image(*IMAGES[0]), verify=False)
    assert norms_ran(folded, image(*IMAGES[0])) == 0, folded.reparam_report
    assert agree(model, folded, *IMAGES) >= 1


def test_the_channels_of_an_input_are_those_that_its_convolution_takes() -> None:
    """Code reads the sizes of the input; the convolution tells that it has as many channels as the norm."""

    def forward(m: nn.Module, x: Tensor) -> Tensor:
        b, c, h, w = x.shape
        y = m.norm((x + m.conv(x)).flatten(2).transpose(1, 2))
        return m.head(y.view(b, h, w, c))

    layers = {"conv": nn.Conv2d(6, 6, 3, padding=1), "norm": nn.LayerNorm(6), "head": nn.Linear(6, 4)}
    model = trained(Block(forward, **layers))
    folded = reparam.reparameterize(model, image(2, 6, 4, 5))
    assert not folded.norm.elementwise_affine, folded.reparam_report
    assert agree(model, folded, (2, 6, 4, 5), (1, 6, 7, 3)) == 2


def test_the_channels_of_a_sum_are_those_of_a_scale_in_it() -> None:
    """Tokens are put back into the image, whose sizes were read from a sum (SwiftFormer)."""

    def forward(m: nn.Module, x: Tensor) -> Tensor:
        x = x + m.before * m.conv(x.relu())
        b, c, h, w = x.shape
        y = m.linear(x.permute(0, 2, 3, 1).reshape(b, h * w, c).relu())
        return x + m.behind * y.reshape(b, h, w, c).permute(0, 3, 1, 2)

    scales = {name: nn.Parameter(torch.rand(6, 1, 1) + 0.5) for name in ("before", "behind")}
    model = trained(Block(forward, conv=nn.Conv2d(6, 6, 1), linear=nn.Linear(6, 6), **scales))
    folded = reparam.reparameterize(model, image(2, 6, 4, 5))
    assert folded.reparam_report.after.elementwise == folded.reparam_report.before.elementwise - 2
    assert agree(model, folded, (2, 6, 4, 5), (1, 6, 7, 3)) == 2


def test_a_table_repeated_for_each_image_has_another_batch_at_other_batches() -> None:
    """The positions are repeated for each image, so the sum has the batch of the input (XCiT)."""

    def forward(m: nn.Module, x: Tensor) -> Tensor:
        y = x + m.positions.repeat(x.shape[0], 1, 1, 1)
        return m.second(m.first(x).relu().mul(m.gamma).reshape(y.shape[0], 4, -1))

    layers = {"first": nn.Conv2d(4, 4, 1), "second": nn.Conv1d(4, 3, 1)}
    scales = {"gamma": torch.rand(4, 1, 1) + 0.5, "positions": torch.rand(1, 4, 3, 4)}
    model = trained(Block(forward, **layers, **scales))
    folded = reparam.reparameterize(model, image(3, 4, 3, 4), verify=False)
    assert agree(model, folded, (3, 4, 3, 4), (6, 4, 3, 4), (1, 4, 3, 4)) == 3


def test_tokens_put_back_into_the_image_that_they_came_from() -> None:
    """Tokens are put into the image and back, by sizes that were read before (XCiT)."""

    class Local(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second = (nn.Conv2d(6, 6, 3, padding=1, groups=6) for _ in range(2))

        def forward(self, x: Tensor, h: int, w: int) -> Tensor:
            b, n, c = x.shape
            x = self.second(self.first(x.permute(0, 2, 1).reshape(b, c, h, w)).relu())
            return x.reshape(b, c, n).permute(0, 2, 1)

    def forward(m: nn.Module, x: Tensor) -> Tensor:
        y = m.norm(x.flatten(2).transpose(1, 2))
        return y + m.gamma * m.local(y, x.shape[2], x.shape[3])

    model = trained(Block(forward, norm=nn.LayerNorm(6), local=Local(), gamma=nn.Parameter(torch.rand(6))))
    folded = reparam.reparameterize(model, image(2, 6, 4, 5))
    assert folded.reparam_report.after.elementwise == folded.reparam_report.before.elementwise - 1
    assert agree(model, folded, (2, 6, 4, 5), (1, 6, 7, 3)) == 2


@pytest.mark.parametrize("literal", [False, True])
def test_a_view_back_behind_a_concatenation(literal: bool) -> None:
    """A scale between two reshapes folds into the concatenated layers if the reshapes undo each other at every size."""

    def forward(m: nn.Module, x: Tensor) -> Tensor:
        y = torch.cat([m.first(x), m.second(x.relu())], 1)
        z = m.scale(y.flatten(2))
        return (z.reshape(-1, 6, 4, 5) if literal else z.reshape(y.shape)).relu()

    layers = {"first": nn.Conv2d(4, 3, 1), "second": nn.Conv2d(4, 3, 1), "scale": nn.Conv1d(6, 6, 1, groups=6)}
    model = trained(Block(forward, **layers))
    folded = reparam.reparameterize(model, image(2, 4, 4, 5), verify=False)
    assert convs_ran(folded, image(2, 4, 4, 5)) == 2 + literal
    assert agree(model, folded, (2, 4, 4, 5), (1, 4, 8, 5), (2, 4, 5, 4), (1, 4, 8, 10)) == 4


class Windows(nn.Module):
    """Windows of tokens, by a number of the module and a size of the input (Swin)."""

    def __init__(self) -> None:
        super().__init__()
        self.norm, self.head, self.side = nn.LayerNorm(6), nn.Linear(6, 4), 2

    def forward(self, x: Tensor) -> Tensor:
        b, count, c = x.shape
        y = self.norm(x).view(b, self.side * 2, count // (self.side * 2), c)
        b, h, w, c = y.shape
        y = y.view(b, h // self.side, self.side, w // self.side, self.side, c).permute(0, 1, 3, 2, 4, 5)
        return self.head(y.contiguous().view(-1, self.side, self.side, c).view(-1, self.side * self.side, c))


def test_the_scale_of_a_norm_passes_into_windows() -> None:
    model = trained(Windows())
    folded = reparam.reparameterize(model, image(2, 16, 6))
    assert not folded.norm.elementwise_affine, folded.reparam_report
    assert agree(model, folded, (2, 16, 6), (3, 24, 6), (2, 8, 6)) == 3


# --- a dimension of one entry is dropped, and stays where it has more

SQUEEZED: dict[str, tuple[tuple[int, ...], Function]] = {
    "the width": ((2, 4, 5, 1), lambda x: x.squeeze(-1).transpose(1, 2)),
    "the height": ((2, 4, 1, 5), lambda x: x.squeeze(2).transpose(1, 2)),
    "both": ((2, 4, 1, 1), lambda x: x.squeeze(-1).squeeze(-1)),
}


@pytest.mark.parametrize("name", SQUEEZED)
@pytest.mark.parametrize("kind", [nn.BatchNorm2d, nn.Conv2d])
def test_squeeze_drops_nothing_at_larger_sizes(name: str, kind: type[nn.Module]) -> None:
    size, function = SQUEEZED[name]
    model = trained(between(function, kind(4) if kind is nn.BatchNorm2d else kind(4, 4, 1), nn.Linear(4, 4)))
    folded = reparam.reparameterize(model, image(*size), verify=False)
    assert agree(model, folded, size, (2, 4, 5, 4), (2, 4, 4, 4), (2, 4, 1, 4), (2, 4, 4, 1)) > 3


@pytest.mark.parametrize("first", [nn.Sequential(), nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Tanh())])
def test_squeeze_behind_a_global_pool_folds(first: nn.Module) -> None:
    def forward(m: nn.Module, x: Tensor) -> Tensor:
        return m.linear(m.pool(m.bn(m.first(x))).squeeze(-1).squeeze(-1))

    members = {"first": first, "bn": nn.BatchNorm2d(4), "pool": nn.AdaptiveAvgPool2d(1), "linear": nn.Linear(4, 3)}
    model = trained(Block(forward, **members))
    folded = reparam.reparameterize(model, image(2, 4, 5, 6), verify=False)
    assert norms_ran(folded, image(2, 4, 5, 6)) == 0
    assert agree(model, folded, (2, 4, 5, 4), (1, 4, 1, 1), (3, 4, 2, 7)) == 3


def test_a_height_of_one_is_no_number_of_channels() -> None:
    """Behind `select` dimension 1 is the height, which happens to be the 1 that a view is given."""

    def forward(m: nn.Module, x: Tensor) -> Tensor:
        y = m.conv(x).relu().select(1, 0).unsqueeze(1)
        return m.linear(y.view(y.shape[0], 1, -1).transpose(1, 2))

    model = trained(Block(forward, conv=nn.Conv2d(3, 4, 4), linear=nn.Linear(1, 1)))
    folded = reparam.reparameterize(model, image(1, 3, 4, 5), verify=False)
    assert agree(model, folded, (1, 3, 4, 5), (2, 3, 7, 7), (1, 3, 5, 4)) == 3


class _SizeAsChannels(nn.Module):
    """Reads as channels a part of a dimension that is a size of the input."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv3d(1, 1, 3)

    def forward(self, x: Tensor) -> Tensor:
        result: Tensor = self.conv(x.transpose(1, -1)[:, :1])
        return result


def test_channels_cut_from_a_size_of_the_input() -> None:
    model = draw_constants(_SizeAsChannels()).double().eval()
    folded = reparam.reparameterize(model, torch.randn(1, 3, 3, 3, 1, dtype=torch.float64))
    x = torch.randn(2, 3, 3, 3, 4, dtype=torch.float64)
    assert torch.allclose(folded(x), model(x), rtol=0, atol=1e-12)


def test_a_sum_behind_a_transpose_broadcasts_a_single_pixel() -> None:
    def forward(m: nn.Module, x: Tensor) -> Tensor:
        y = x.transpose(1, -1)
        return m.conv(y * 0.5 + y + m.shift)

    model = trained(Block(forward, shift=torch.randn(1, 2, 1, 1), conv=nn.Conv2d(2, 2, 1)))
    folded = reparam.reparameterize(model, image(1, 1, 2, 2))
    for size in [(2, 2), (1, 1), (5, 1), (3, 2)]:
        assert distance(model, folded, image(3, 1, *size)) < EXACT


def test_a_scale_in_front_of_a_crop_broadcasts_a_single_pixel() -> None:
    def forward(m: nn.Module, x: Tensor) -> Tensor:
        return m.conv(x.transpose(1, -1) * m.scale)[:, :, :, :2]

    model = trained(Block(forward, scale=torch.rand(2, 1, 1) + 0.5, conv=nn.Conv2d(2, 2, 1)))
    folded = reparam.reparameterize(model, image(1, 1, 2, 2))
    for size in [(2, 2), (1, 1), (5, 1), (3, 2)]:
        assert distance(model, folded, image(3, 1, *size)) < EXACT


def test_squeeze_of_a_size_that_is_one_in_the_example() -> None:
    def forward(m: nn.Module, x: Tensor) -> Tensor:
        n, c, h, w = m.conv(x).shape
        return m.conv(x).reshape(n * c // 2, 2, h, w)[:, 1].reshape(n, c // 2, h, w).squeeze(-1)[:, :, :]

    model = trained(Block(forward, conv=nn.Conv2d(2, 4, 2)))
    folded = reparam.reparameterize(model, image(1, 2, 4, 2))
    for size in [(4, 2), (3, 2), (5, 6)]:
        assert distance(model, folded, image(3, 2, *size)) < EXACT


def test_a_scale_per_row_broadcasts_a_single_row() -> None:
    def forward(m: nn.Module, x: Tensor) -> Tensor:
        return m.conv(m.scale * m.linear(x.permute(0, 2, 3, 1).relu()))

    scale = nn.Parameter(torch.tensor([0.5, 2.0]).view(1, 2, 1, 1))
    model = trained(Block(forward, linear=nn.Linear(6, 6), scale=scale, conv=nn.Conv2d(2, 2, 3, padding=1)))
    folded = reparam.reparameterize(model, image(1, 6, 2, 2))
    for size in [(2, 2), (1, 1), (1, 5), (2, 7)]:
        assert distance(model, folded, image(1, 6, *size)) < EXACT


@pytest.mark.parametrize("written", ["index_select", "getitem"])
def test_an_index_of_every_row_picks_a_part_of_more_rows(written: str) -> None:
    def forward(m: nn.Module, x: Tensor) -> Tensor:
        rows = x.transpose(1, 2)
        return m.conv(rows.index_select(1, m.index) if written == "index_select" else rows[:, m.index])

    model = trained(Block(forward, index=torch.tensor([0, 1]), conv=nn.Conv1d(2, 1, 3, padding=2)))
    folded = reparam.reparameterize(model, image(1, 4, 2), verify=False)
    for length in (2, 5, 3):
        assert distance(model, folded, image(2, 4, length)) < EXACT


def test_a_model_of_one_batch_is_checked_at_that_batch() -> None:
    model = trained(Block(lambda m, x: x.view(3, 4, 5, 6).relu()), dtype=torch.float32)
    assert (
        distance(
            model,
            reparam.reparameterize(model, image(3, 4, 5, 6, dtype=torch.float32)),
            image(3, 4, 5, 6, dtype=torch.float32),
        )
        == 0
    )


def left_of_nothing(m: nn.Module, x: Tensor) -> Tensor:
    return m.second(m.first(F.pad(x[:, :, : x.shape[2] // 2], [1, 1, 1, 1])))


def test_a_crop_may_leave_an_empty_image() -> None:
    model = trained(Block(left_of_nothing, first=nn.Conv2d(4, 4, 1), second=nn.Conv2d(4, 4, 1)))
    for example in (image(2, 4, 1, 3), image(2, 4, 6, 3)):
        folded = reparam.reparameterize(model, example)
        for height in (1, 2, 5):
            assert distance(model, folded, image(2, 4, height, 3)) < EXACT


def scaled_pixels(m: nn.Module, x: Tensor) -> Tensor:
    return x.permute(0, 2, 3, 1) / m.c * (m.c * 2 + 1)


def scaled_pixels_read(m: nn.Module, x: Tensor) -> Tensor:
    return m.conv(x.permute(0, 2, 3, 1) / m.c)


@pytest.mark.parametrize("function", [scaled_pixels, scaled_pixels_read])
def test_a_constant_broadcasts_a_single_pixel(function: Callable[[Any, Tensor], Any]) -> None:
    model = trained(Block(function, c=torch.rand(3, 1, 1) + 0.5, conv=nn.Conv2d(3, 2, 1)))
    folded = reparam.reparameterize(model, image(2, 1, 3, 5))
    for height in (1, 3):
        assert distance(model, folded, image(2, 1, height, 5)) < EXACT


def test_a_cache_by_size_is_not_baked_in() -> None:
    """Keeps a constant for each size of the input."""

    class Cached(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.bn, self.cache = conv(4, 4, 3, padding=1), bn(), {}

        def forward(self, x: Tensor) -> Tensor:
            key = tuple(x.shape[2:])
            if key not in self.cache:
                self.cache[key] = torch.arange(key[0] * key[1], dtype=x.dtype).view(1, 1, *key)
            return F.relu(self.bn(self.conv(x))) + self.cache[key]

    model = trained(Cached())
    folded = converted(model, image(2, 4, 9, 7))
    for size in ((9, 7), (5, 6)):
        assert distance(model, folded, image(1, 4, *size)) < EXACT
