"""Random networks convert exactly, a planted bug is found and made small, and what was found once stays found."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils import spectral_norm, weight_norm

import reparam
from benchmarks.fuzz import check as fuzz
from reparam.algebra.affine import AffineConv
from reparam.rules import RULES
from tests.helpers import EXACT, Block, distance, image, ran, trained

# --- networks that a conversion once got wrong


def written_input(m: nn.Module, x: Tensor) -> Tensor:
    x += m.c
    return m.second(m.first(x)).relu()


def kept_on_the_module(m: nn.Module, x: Tensor) -> Tensor:
    y = m.first(x)
    m.kept = y  # type: ignore[assignment]
    return m.second(y).relu()


def literal(m: nn.Module, x: Tensor) -> Tensor:
    y = x.index_select(1, torch.tensor([2, 0, 3, 1]))
    return (m.first(y) + m.second(y)).relu()


def unpacked(m: nn.Module, x: Tensor) -> Tensor:
    a, b = x.chunk(2, 1)
    both = torch.cat([b, a], 1)
    return (m.first(both) + m.second(both)).relu()


def unread(m: nn.Module, x: Tensor) -> Tensor:
    y = m.first(x)
    y += m.second(x)
    y.transpose(1, 2)
    return y * 2


def overwritten_between(m: nn.Module, x: Tensor) -> Tensor:
    y = m.first(x)
    x[..., 0] = x[..., -1]
    return m.second(y).relu()


def overwritten_through_a_view(m: nn.Module, x: Tensor) -> Tensor:
    y = m.first(x)
    x.view(-1).add_(1)
    return m.second(y).relu()


def size_of_what_is_gone(m: nn.Module, x: Tensor) -> Tensor:
    y = m.narrow(x)
    return m.wide(y).relu() * y.shape[1]


def strided(m: nn.Module, x: Tensor) -> Tensor:
    y = m.narrow(x)
    return m.wide(y[:, :, ::2]).relu() * y.shape[2]


def asserted(m: nn.Module, x: Tensor) -> Tensor:
    y = m.narrow(x)
    assert y.shape[1] == 3
    return m.wide(y).relu()


def rows_as_channels(m: nn.Module, x: Tensor) -> Tensor:
    y = m.mix(x.mean(3).transpose(1, 2))  # as many rows as the next layer reads channels
    return m.rows(y).relu()


def split_beside(m: nn.Module, x: Tensor) -> Tensor:
    y = m.wide(m.narrow(x))
    a, b = y.split([4, 4], 1)
    return torch.cat([m.wide_norm(y).relu(), m.eight(torch.cat([b, a], 1)).relu()])


def scaled_twice(m: nn.Module, x: Tensor) -> Tensor:
    return ((m.norm(x / m.scale)) * 2).relu()


class Shifted(nn.Module):
    """It writes into what it is given, and returns it twice; in the second place nobody reads it."""

    def __init__(self, function: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.function = function
        self.c = nn.Parameter(torch.randn(4, 1, 1))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        x += self.c
        return 1 * x, self.function(x)


@pytest.mark.parametrize("function", [lambda x: x, lambda x: x.contiguous(), lambda x: x.to(x.dtype)])
def test_what_code_returns_in_vain_is_not_written_twice(function: Callable[[Tensor], Tensor]) -> None:
    model = trained(Block(lambda m, x: m.bn(m.shift(m.conv(x))[0]).relu(), conv=nn.Conv2d(4, 4, 3),
                          shift=Shifted(function), bn=nn.BatchNorm2d(4)))  # fmt: skip
    assert distance(model, reparam.reparameterize(model, image(2, 4, 7, 9)), image(3, 4, 6, 5)) < EXACT


def block(function: Callable[[Any, Tensor], Any]) -> nn.Module:
    return trained(Block(function, first=nn.Conv2d(4, 4, 1), second=nn.Conv2d(4, 4, 3), c=torch.randn(4, 1, 1)))


def summed(function: Callable[[Any, Tensor], Any]) -> nn.Module:
    return trained(Block(function, first=nn.Conv2d(4, 4, 1), second=nn.Conv2d(4, 4, 3, padding=1)))


@pytest.mark.parametrize(
    "function", [written_input, kept_on_the_module, overwritten_between, overwritten_through_a_view]
)
def test_what_a_forward_does_besides_returning_stays(function: Callable[[Any, Tensor], Any]) -> None:
    model = block(function)
    folded = reparam.reparameterize(model, image(2, 4, 7, 9))
    given, seen = image(2, 4, 6, 5), image(2, 4, 6, 5)
    with torch.no_grad():
        torch.testing.assert_close(folded(seen), model(given), rtol=0, atol=EXACT)
    assert torch.equal(given, seen)
    if function is kept_on_the_module:
        torch.testing.assert_close(folded.kept, model.kept)


def written_where_it_is_a_view(m: nn.Module, x: Tensor) -> Tensor:
    x[..., ::2].flatten(2).mul_(0.5)
    y = m.first(x)
    return y - 2 * y


def written_between_branches(m: nn.Module, x: Tensor) -> Tensor:
    y = m.first(x)
    x[..., ::2].reshape(len(x), -1).mul_(0.5)
    return y + m.second(x)


@pytest.mark.parametrize("function", [written_where_it_is_a_view, written_between_branches])
def test_a_write_into_a_copy_is_one_into_its_original_where_that_is_a_view(
    function: Callable[[Any, Tensor], Any],
) -> None:
    model = summed(function)
    folded = reparam.reparameterize(model, image(2, 4, 7, 9))
    for shape in ((2, 4, 7, 9), (2, 4, 1, 6), (1, 4, 1, 1)):  # of one row the strided slice can be seen flat
        given, seen = image(*shape), image(*shape)
        with torch.no_grad():
            torch.testing.assert_close(folded(seen), model(given), rtol=0, atol=EXACT)
        assert torch.equal(given, seen)


@pytest.mark.parametrize("function", [literal, unpacked, unread])
def test_what_is_written_beside_a_fold_stays(function: Callable[[Any, Tensor], Any]) -> None:
    model = summed(function)
    folded = reparam.reparameterize(model, image(2, 4, 7, 9))
    assert distance(model, folded, image(3, 4, 6, 5)) < EXACT
    assert ran(folded, image(3, 4, 6, 5))["convolution"] == 1
    assert distance(model, copy.deepcopy(folded), image(1, 4, 3, 3)) < EXACT


@pytest.mark.parametrize(
    "function", [size_of_what_is_gone, strided, asserted, scaled_twice, rows_as_channels, split_beside]
)
def test_code_that_looks_at_sizes_sees_the_same(function: Callable[[Any, Tensor], Any]) -> None:
    members = {"narrow": nn.Conv2d(4, 3, 1), "wide": nn.Conv2d(3, 8, 1), "norm": nn.BatchNorm2d(4)}
    more = {
        "mix": nn.Linear(4, 8),
        "rows": nn.Conv1d(8, 8, 1),
        "wide_norm": nn.BatchNorm2d(8),
        "eight": nn.Conv2d(8, 8, 1),
    }
    model = trained(Block(function, scale=torch.rand(4, 1, 1) + 0.5, **members, **more))
    assert distance(model, reparam.reparameterize(model, image(2, 4, 8, 9)), image(3, 4, 8, 5)) < EXACT


class TwoArguments(nn.Module):
    """A block that does not read its second argument."""

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        return x * 0.5


def test_a_call_with_more_arguments_is_no_call_of_a_layer() -> None:
    model = trained(Block(lambda m, x: m.conv(m.block(x, x)).relu(), block=TwoArguments(), conv=nn.Conv2d(4, 6, 3)))
    assert distance(model, reparam.reparameterize(model, image(2, 4, 8, 9)), image(3, 4, 7, 5)) < EXACT


def test_a_fold_that_fits_one_batch_alone_is_checked_with_it() -> None:
    model = trained(Block(lambda m, x: x.view(3, 4, 5, 6).relu()), dtype=torch.float32)
    assert (
        distance(
            model,
            reparam.reparameterize(model, image(3, 4, 5, 6, dtype=torch.float32)),
            image(3, 4, 5, 6, dtype=torch.float32),
        )
        == 0
    )


@pytest.mark.parametrize("others", [{}, {"conv": nn.Conv2d(4, 4, 1)}])
def test_what_has_no_weight_gets_none_of_another_dtype(others: dict[str, nn.Module]) -> None:
    model = Block(lambda m, x: torch.stack([x, x.index_select(1, torch.arange(4))]).mean(0).relu(), **others).eval()
    folded = reparam.reparameterize(model, image(2, 4, 5, 3))
    assert distance(model, folded, image(1, 4, 3, 3)) < EXACT


@pytest.mark.parametrize("computed", [weight_norm, spectral_norm])
def test_a_computed_weight_goes_with_the_hook_that_computes_it(computed: Callable[[nn.Module], nn.Module]) -> None:
    model = trained(nn.Sequential(computed(nn.Conv2d(4, 4, 3, padding=1, padding_mode="replicate")), nn.ReLU()))
    folded = reparam.reparameterize(model, image(2, 4, 7, 9))
    assert distance(model, folded, image(3, 4, 6, 5)) < EXACT


# --- what depends on the order of memory, on sizes and on torch itself


def scaled_rows(m: nn.Module, x: Tensor) -> Tensor:
    y = (x.transpose(2, 3) * m.scale + m.shift) * m.scale + 1
    return y.transpose(2, 3).view(-1)


def viewed_behind_a_layer(m: nn.Module, x: Tensor) -> Tensor:
    y = m.mix(x.transpose(2, 3)).view(len(x), 4, -1)
    return m.last(y.transpose(1, 2))


def viewed_between_layers(m: nn.Module, x: Tensor) -> Tensor:
    return m.last(m.last(x.permute(0, 2, 3, 1)).view(-1, 4))


def pooled_and_viewed(m: nn.Module, x: Tensor) -> Tensor:
    y = m.mix(x)
    a, b = m.pool(m.mix_again(y)), m.mix(y)
    a.view(-1).add_(1)
    return torch.cat([a.flatten(), b.flatten()])


def viewed_in_rows(m: nn.Module, x: Tensor) -> Tensor:
    return m.last(m.mix(x).permute(0, 2, 3, 1)).view(-1)


def put_in_order(m: nn.Module, x: Tensor) -> Tensor:
    return m.mix(x.permute(0, 3, 1, 2).contiguous().permute(0, 2, 3, 1)).contiguous().view(-1)


_ORDERED = [scaled_rows, viewed_behind_a_layer, viewed_between_layers, viewed_in_rows, put_in_order]
_FORMATS = [torch.contiguous_format, torch.channels_last]


@pytest.mark.parametrize(
    ("function", "memory_format"),
    [(pooled_and_viewed, torch.contiguous_format), *((each, form) for each in _ORDERED for form in _FORMATS)],
)
def test_code_that_takes_views_finds_the_same_order_of_memory(
    function: Callable[[Any, Tensor], Any], memory_format: torch.memory_format
) -> None:
    members = {"mix": nn.Conv2d(4, 4, 1), "mix_again": nn.Conv2d(4, 4, 1, bias=False), "last": nn.Linear(4, 4)}
    numbers = {"scale": torch.rand(4, 1, 1) + 0.5, "shift": torch.randn(4, 1, 1)}
    model = trained(Block(function, pool=nn.AvgPool2d(3, 2, 1), **members, **numbers))
    model = model.to(memory_format=memory_format)
    folded = reparam.reparameterize(model, image(2, 4, 6, 5))
    for shape in ((2, 4, 6, 5), (1, 4, 7, 3), (3, 4, 2, 2)):
        assert distance(model, folded, image(*shape)) < EXACT


@pytest.mark.parametrize("channels", [1, 4])
@pytest.mark.parametrize("last", [False, True])
def test_new_weights_lie_in_one_order_of_memory_alone(channels: int, last: bool) -> None:
    conv, after = nn.Conv2d(channels, 4, 1), nn.Conv2d(4, 4, (1, 3))
    form = torch.channels_last if last else torch.contiguous_format
    model = trained(nn.Sequential(conv, after, nn.ReLU())).to(memory_format=form)
    weight = reparam.reparameterize(model, image(2, channels, 5, 9))[0].weight
    assert weight.shape == (4, channels, 1, 3)
    assert weight.stride() == torch.empty_like(weight, memory_format=form).stride()
    model = trained(nn.Sequential(nn.Conv1d(4, 4, 1), nn.AvgPool1d(3, 2, 1)))
    assert reparam.reparameterize(model, image(2, 4, 9))[0].weight.is_contiguous()


def left_of_nothing(m: nn.Module, x: Tensor) -> Tensor:
    return m.second(m.first(F.pad(x[:, :, : x.shape[2] // 2], [1, 1, 1, 1])))


def test_what_is_left_of_a_small_image_may_be_nothing() -> None:
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
def test_one_pixel_is_repeated_along_a_constant(function: Callable[[Any, Tensor], Any]) -> None:
    model = trained(Block(function, c=torch.rand(3, 1, 1) + 0.5, conv=nn.Conv2d(3, 2, 1)))
    folded = reparam.reparameterize(model, image(2, 1, 3, 5))
    for height in (1, 3):
        assert distance(model, folded, image(2, 1, height, 5)) < EXACT


# --- random networks


def test_random_networks_convert_exactly() -> None:
    said: list[str] = []
    tally = fuzz.run(range(150), said.append)
    assert not tally.failures, "\n".join(said)
    assert tally.folds > 100
    assert tally.removed > 150
    assert not tally.questioned["right"], "a fold was refused that is right"
    assert sum(tally.rejected.values()) < 5


def forgotten_eps(monkeypatch: pytest.MonkeyPatch) -> None:
    """Batch norm folds with another eps than it has."""
    rule = RULES["batch_norm"]

    def wrong(*args: Any, eps: float = 1e-5, **kwargs: Any) -> Any:
        return rule.apply(*args[:7], **kwargs)

    monkeypatch.setitem(RULES, "batch_norm", replace(rule, apply=wrong))


def lenient_padding(monkeypatch: pytest.MonkeyPatch) -> None:
    """Padding folds whatever comes before it."""
    monkeypatch.setattr(AffineConv, "pad", fuzz.naive_pad)


@pytest.mark.parametrize("bug", [forgotten_eps, lenient_padding])
def test_a_planted_bug_is_found_and_made_small(
    bug: Callable[[pytest.MonkeyPatch], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    bug(monkeypatch)
    programs = map(fuzz.drawn, range(4, 804, 8))  # of middle length
    found = next((program, failure) for program in programs if (failure := fuzz.check(program).failure))
    small = fuzz.shrunk(*found)
    assert fuzz.check(small).failure
    assert sum(len(block.lines) for block in small.used()) <= 4
    assert "reparameterize" in small.script()


def test_a_shrunk_network_is_a_program_of_its_own() -> None:
    exec(compile(fuzz.drawn(7).script(), "<script>", "exec"), {})
