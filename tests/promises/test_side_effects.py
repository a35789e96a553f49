"""What a forward does besides returning stays: writes, stored tensors, hooks, random numbers."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import reparam
from tests.helpers import (
    EXACT,
    Block,
    bn,
    conv,
    converted,
    convs_ran,
    distance,
    image,
    norms_ran,
    seq,
    trained,
    trained_and_converted,
)


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


def test_a_tensor_stored_in_a_dict_stays() -> None:
    model = _Keeps()
    folded = trained_and_converted(model, torch.randn(2, 4, 8, 8))
    x = torch.randn(2, 4, 8, 8)
    model(x), folded(x)
    torch.testing.assert_close(folded.seen["y"], model.seen["y"])


def _multiplied(x: Tensor) -> Tensor:
    x.mul_(2)
    return x


def _clamped(x: Tensor) -> Tensor:
    F.relu(x, inplace=True)
    return x


def _added(x: Tensor) -> Tensor:
    x.add_(x)
    torch.sigmoid_(x)
    return x


def _known_twice(x: Tensor) -> Tensor:
    other = x
    x += 1
    return other


def _assigned(x: Tensor) -> Tensor:
    x[:, :1] = 1.0
    x.mul_(2).sub_(1)
    return x


class _Writes(nn.Module):
    """In-place operations as statements."""

    def __init__(self, write: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.write = write
        self.first, self.second = nn.Conv2d(4, 4, 3, padding=1), nn.Conv2d(4, 4, 1)
        self.bn = nn.BatchNorm2d(4)

    def forward(self, x: Tensor) -> Tensor:
        y = self.bn(self.first(x) + self.second(x))
        return self.write(y).sin()


@pytest.mark.parametrize("write", [_multiplied, _clamped, _added, _known_twice, _assigned])
def test_in_place_operations_as_statements(write: Callable[[Tensor], Tensor]) -> None:
    x = torch.randn(2, 4, 8, 8)
    model = _Writes(write)
    folded = trained_and_converted(model, x)
    assert (convs_ran(folded, x), norms_ran(folded, x)) == (1, 0)
    other = torch.randn(1, 4, 5, 7)
    torch.testing.assert_close(folded(other), model(other))


def _through_a_view(x: Tensor) -> Tensor:
    view = x.flatten(2)
    x.mul_(2)
    return x + view.mean(2)[..., None, None]


def _through_itself(x: Tensor) -> Tensor:
    same = x.contiguous()
    same.mul_(2)
    return x + same


def _into_another(x: Tensor) -> Tensor:
    whole = torch.zeros_like(x)
    torch.add(x, 1, out=whole)
    return x + whole


@pytest.mark.parametrize("write", [_through_a_view, _through_itself, _into_another])
def test_in_place_operations_seen_through_an_alias(write: Callable[[Tensor], Tensor]) -> None:
    x = torch.randn(2, 4, 8, 8)
    model = _Writes(write)
    folded = trained_and_converted(model, x)
    other = torch.randn(1, 4, 5, 7)
    with torch.no_grad():
        torch.testing.assert_close(folded(other), model(other))


class _WrittenConstant(nn.Module):
    """A kernel that is made by writing into it."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(4, 4, 3, padding=1)
        self.scale = nn.Parameter(torch.randn(4, 1, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        kernel = self.conv.weight * 1
        kernel.mul_(self.scale)
        for i in range(kernel.shape[0]):
            kernel[i, i, 1, 1].add_(1)
        return F.conv2d(x, kernel, self.conv.bias, padding=1).relu() + x.mean((2, 3), True) * kernel.sum()


def test_a_kernel_that_is_made_by_writing_into_it() -> None:
    x = torch.randn(2, 4, 8, 8)
    model = _WrittenConstant()
    folded = trained_and_converted(model, x)
    torch.testing.assert_close(folded(x), model(x))


def test_a_hooked_output_is_the_end_of_a_fold() -> None:
    # transformers pp_lcnet_v3: hooks that collect feature maps looked at the stem, and its batch norm was left.
    model = nn.Sequential(
        nn.Sequential(nn.Conv2d(3, 4, 3, stride=2), nn.BatchNorm2d(4)),
        nn.BatchNorm2d(4),
        nn.Conv2d(4, 4, 1),
    )
    x = torch.randn(2, 3, 9, 7)
    seen: list[Tensor] = []
    model[0].register_forward_hook(lambda module, args, result: seen.append(result))
    folded = trained_and_converted(model, x)
    assert norms_ran(folded, x) == 0
    assert convs_ran(folded, x) == 2  # what is looked at exists
    seen.clear()
    model(x), folded(x)
    torch.testing.assert_close(seen[1], seen[0])


def test_a_hooked_module_keeps_its_attributes() -> None:
    # A swap would remove the attribute `weight` of a block that computes its kernel.
    model = nn.Sequential(reparam.nn.IdentityBasedConv1x1(4), nn.ReLU())
    model[0].register_forward_hook(lambda module, args, result: None)
    folded = trained_and_converted(model, torch.randn(2, 4, 5, 5))
    assert folded[0].weight.shape == (4, 4, 1, 1)


class _AskedAlone(nn.Module):
    """Reads the size of an unread tensor, behind a write to the output of a convolution."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Conv1d(4, 4, 1), nn.Conv1d(4, 4, 1)
        self.bn = nn.BatchNorm1d(4)

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        y = self.first(x)
        y.neg_()
        part = y[:, :, 1::2]
        nothing = y - y
        rows = nothing.mean((2,)).size(0)
        return self.second(nothing) / rows, self.bn(nothing), part


def test_a_write_in_front_of_a_size_question_does_not_reach_the_input() -> None:
    model = _AskedAlone()
    folded = trained_and_converted(model, torch.randn(1, 4, 3))
    x = torch.randn(1, 4, 4)
    before = x.clone()
    for ours, theirs in zip(folded(x), model(x), strict=True):
        torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-5)
    assert torch.equal(x, before)


class _DoublesAPart(nn.Module):
    """Writes to what it is given through a view of it."""

    def forward(self, x: Tensor) -> Tensor:
        x[:, :1] *= 2
        return x


class _HandsOnACopy(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.inner = _DoublesAPart()

    def forward(self, x: Tensor) -> Tensor:
        return self.inner(0 + x)


def test_a_copy_that_is_written_to_through_a_view_stays_a_copy() -> None:
    x = torch.randn(1, 1, 3, 3)
    before = x.clone()
    model = _HandsOnACopy().eval()
    folded = reparam.reparameterize(model, x, verify=False)
    torch.testing.assert_close(folded(x), model(before.clone()))
    assert torch.equal(x, before)


@pytest.mark.parametrize("tap", [nn.Identity(), nn.Dropout(0.3)], ids=["identity", "dropout"])
def test_a_kept_or_hooked_identity_is_still_called(tap: nn.Module) -> None:
    def forward(m: nn.Module, x: Tensor) -> Tensor:
        return m.first(m.tap(x)) + m.second(x)

    layers = {"first": nn.Conv2d(4, 4, 1), "tap": tap, "second": nn.Conv2d(4, 4, 3, padding=1)}
    model, x = trained(Block(forward, **layers)), image(1, 4, 5, 7)
    seen: list[Tensor] = []

    def watch(module: nn.Module, args: object, result: Tensor) -> None:
        seen.append(result)

    kept = reparam.reparameterize(model, x, keep=["tap"])
    kept.tap.register_forward_hook(watch)
    model.tap.register_forward_hook(watch)
    hooked = reparam.reparameterize(model, x)
    for folded in (kept, hooked):
        seen.clear()
        assert convs_ran(folded, x) == 1
        assert len(seen) == 1
        assert torch.equal(seen[0], x)


@pytest.mark.parametrize(
    "forward",
    [
        lambda m, x: (m.conv(x), x.clone()),
        lambda m, x: (lambda y: (y, y * 1))(m.norm(m.conv(x))),
        lambda m, x: (lambda y: (y, y.clone()))(m.norm(m.conv(x))),
        lambda m, x: (lambda y: (y, y.clone()))(x + 0),
        lambda m, x: (lambda y: (m.conv(y), y.clone()[:, :2], y + 0))(x.relu()),
    ],
)
def test_outputs_do_not_share_memory_that_was_separate(forward: Callable[[nn.Module, Tensor], Tensor]) -> None:
    model = trained(Block(forward, conv=nn.Conv2d(4, 4, 1), norm=nn.BatchNorm2d(4)))
    x = image(2, 4, 5, 7)
    folded, truth = reparam.reparameterize(model, x), model(x.clone())
    results = folded(x)
    for i, result in enumerate(results):  # what the caller does to one of them, the others do not see
        torch.testing.assert_close(result, truth[i])
        result.fill_(torch.nan)
    assert x.isfinite().all()


@pytest.mark.parametrize(
    "sized",
    [
        lambda y: y.permute(0, 1, 2).reshape(y.shape[0], -1),
        lambda y: y.permute(0, 1, 2).reshape_as(y),
        lambda y: y.permute(0, 1, 2).reshape(y.contiguous().shape[0], -1),
    ],
)
def test_a_size_question_repeats_no_write(sized: Callable[[Tensor], Tensor]) -> None:
    model = trained(
        Block(lambda m, x: sized(m.second(m.first(x)).mul_(2)), first=nn.Linear(4, 2), second=nn.Linear(2, 4))
    )
    folded = reparam.reparameterize(model, image(3, 5, 4), verify=False)
    for x in (image(3, 5, 4), image(2, 3, 4)):
        assert distance(model, folded, x) < EXACT


def written_input(m: nn.Module, x: Tensor) -> Tensor:
    x += m.c
    return m.second(m.first(x)).relu()


def kept_on_the_module(m: nn.Module, x: Tensor) -> Tensor:
    y = m.first(x)
    m.kept = y  # type: ignore[assignment]
    return m.second(y).relu()


def overwritten_between(m: nn.Module, x: Tensor) -> Tensor:
    y = m.first(x)
    x[..., 0] = x[..., -1]
    return m.second(y).relu()


def input_overwritten_through_a_view(m: nn.Module, x: Tensor) -> Tensor:
    y = m.first(x)
    x.view(-1).add_(1)
    return m.second(y).relu()


class Shifted(nn.Module):
    """Writes into its input and returns it twice; the second output is not read."""

    def __init__(self, function: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.function = function
        self.c = nn.Parameter(torch.randn(4, 1, 1))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        x += self.c
        return 1 * x, self.function(x)


@pytest.mark.parametrize("function", [lambda x: x, lambda x: x.contiguous(), lambda x: x.to(x.dtype)])
def test_an_unread_output_repeats_no_write(function: Callable[[Tensor], Tensor]) -> None:
    model = trained(Block(lambda m, x: m.bn(m.shift(m.conv(x))[0]).relu(), conv=nn.Conv2d(4, 4, 3),
                          shift=Shifted(function), bn=nn.BatchNorm2d(4)))  # fmt: skip
    assert distance(model, reparam.reparameterize(model, image(2, 4, 7, 9)), image(3, 4, 6, 5)) < EXACT


def pair(function: Callable[[Any, Tensor], Any]) -> nn.Module:
    return trained(Block(function, first=nn.Conv2d(4, 4, 1), second=nn.Conv2d(4, 4, 3), c=torch.randn(4, 1, 1)))


@pytest.mark.parametrize(
    "function", [written_input, kept_on_the_module, overwritten_between, input_overwritten_through_a_view]
)
def test_writes_and_stored_tensors_stay(function: Callable[[Any, Tensor], Any]) -> None:
    model = pair(function)
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
def test_a_reshape_may_be_a_view_at_other_sizes_so_a_write_behind_it_reaches_its_input(
    function: Callable[[Any, Tensor], Any],
) -> None:
    model = trained(Block(function, first=nn.Conv2d(4, 4, 1), second=nn.Conv2d(4, 4, 3, padding=1)))
    folded = reparam.reparameterize(model, image(2, 4, 7, 9))
    for shape in ((2, 4, 7, 9), (2, 4, 1, 6), (1, 4, 1, 1)):  # of one row the strided_slice slice can be seen flat
        given, seen = image(*shape), image(*shape)
        with torch.no_grad():
            torch.testing.assert_close(folded(seen), model(given), rtol=0, atol=EXACT)
        assert torch.equal(given, seen)


@pytest.mark.parametrize("register", ["forward", "pre"])
def test_a_hook_sees_the_same_tensors(register: str) -> None:
    """A hook is behaviour: the tensors that it sees stay, and everything else folds."""
    model = trained(seq(conv(4, 4, 3, padding=1), bn(), nn.ReLU(), conv(4, 4, 3), bn()))
    seen: list[Tensor] = []
    if register == "forward":
        model[0].register_forward_hook(lambda module, args, result: seen.append(result.clone()))
    else:
        model[1].register_forward_pre_hook(lambda module, args: seen.append(args[0].clone()))
    x = image(2, 4, 9, 7)
    folded = converted(model, x)
    seen.clear()
    assert distance(model, folded, x) < EXACT
    assert len(seen) == 2
    assert torch.equal(*seen)
    assert norms_ran(folded, x) == 1


def test_a_hook_that_changes_the_result_still_does() -> None:
    model = trained(seq(conv(4, 4, 3, padding=1), bn(), nn.ReLU()))
    model[0].register_forward_hook(lambda module, args, result: result * 2)
    x = image(2, 4, 9, 7)
    assert distance(model, converted(model, x), x) < EXACT


def test_drawn_noise_is_no_constant() -> None:
    """A tensor that the forward draws is no constant."""
    model = trained(
        Block(lambda m, x: m.bn(m.conv(x)) + torch.randn(4, 1, 1, dtype=x.dtype), conv=conv(4, 4, 3), bn=bn())
    )
    x = image(2, 4, 9, 7)
    folded = converted(model, x)
    assert not torch.equal(folded(x), folded(x))
    torch.manual_seed(1)
    truth = model(x)
    torch.manual_seed(1)
    assert (folded(x) - truth).abs().max() < EXACT * truth.abs().max()


def test_a_buffer_that_the_forward_changes_is_not_folded() -> None:
    def forward(m: nn.Module, x: Tensor) -> Tensor:
        m.count += 1
        return m.bn(m.conv(x)) * m.count

    model = trained(Block(forward, conv=conv(4, 4, 3), bn=bn(), count=torch.zeros(1)))
    x = image(2, 4, 9, 7)
    folded = converted(model, x, verify=False)
    assert model.count == 0
    for _ in range(3):
        assert distance(model, folded, x) < EXACT


def test_an_attribute_that_the_forward_replaces_is_not_folded() -> None:
    def forward(m: nn.Module, x: Tensor) -> Tensor:
        m.running = m.running * 0.5 + 1
        return m.bn(m.conv(x)) * m.running

    model = trained(Block(forward, conv=conv(4, 4, 3), bn=bn(), running=torch.zeros(1)))
    x = image(2, 4, 9, 7)
    folded = converted(model, x, verify=False)
    for _ in range(3):
        assert distance(model, folded, x) < EXACT
