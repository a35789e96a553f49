"""A batch norm behind a sum or a concatenation of different tensors, taken in advance by what goes into it."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

import reparam
from reparam.capture.inputs import Inputs
from reparam.capture.runs import record
from reparam.plan.fold import JoinFold, SideFold
from reparam.plan.plan import plan
from tests.helpers import EXACT, Block, distance, image, norms_ran, ran, trained


def _cat(m: nn.Module, x: Tensor) -> Tensor:
    return m.norm(torch.cat([m.a(x.relu()), m.b(x.sigmoid())], 1)).relu_()


def _sum(m: nn.Module, x: Tensor) -> Tensor:
    return m.norm(torch.add(m.a(x.relu()), m.b(x.sigmoid()), alpha=-0.5))


def _named_sum(m: nn.Module, x: Tensor) -> Tensor:
    return m.norm(torch.add(input=m.a(x.relu()), other=m.b(x.sigmoid()), alpha=-0.5))


def _half_named_sum(m: nn.Module, x: Tensor) -> Tensor:
    return m.norm(torch.sub(m.a(x.relu()), other=m.b(x.sigmoid())))


def _named_cat(m: nn.Module, x: Tensor) -> Tensor:
    return m.norm(torch.cat(tensors=[m.a(x.relu()), m.b(x.sigmoid())], dim=-3)).relu_()


def _nested(m: nn.Module, x: Tensor) -> Tensor:
    y = m.a(x.relu())
    y -= m.drop(m.b(x.sigmoid()))
    return m.norm(y + m.c(x.tanh())) * 0.25


def _folded_side(m: nn.Module, x: Tensor) -> Tensor:
    y = x.relu()
    return m.norm(m.norm_a(m.a(y)) + m.b(y) + m.c(x.tanh()))


def _two_heads(m: nn.Module, x: Tensor) -> Tensor:
    return (m.head(x[:, :, 0].relu()) + m.other(x[:, :, 1].tanh())) / 2


def _also_read_for_nothing(m: nn.Module, x: Tensor) -> Tensor:
    y, z = m.a(x.relu()), m.b(x.sigmoid())
    torch.stack([y, z]).sum(0)
    return m.norm(y + z)


def _norm_of_two(m: nn.Module, x: Tensor) -> Tensor:
    return m.norm(m.norm(m.a(x.relu())) + m.b(x.tanh()))


def _several_behind(m: nn.Module, x: Tensor) -> Tensor:
    y = m.second(m.norm(m.a(x.relu()) + m.b(x.tanh())) * 0.25 + 1)
    return y.mul_(2)


def _conv(out: int = 4, kernel: int = 1) -> nn.Conv2d:
    return nn.Conv2d(4, out, kernel, padding=kernel // 2)


TAKEN: dict[str, tuple[Callable[[], nn.Module], int]] = {
    "a result that nobody needs": (
        lambda: Block(_also_read_for_nothing, a=_conv(4, 3), b=_conv(), norm=nn.BatchNorm2d(4)),
        2,
    ),
    "a norm that is also one of a side": (
        lambda: Block(_norm_of_two, a=_conv(4, 3), b=_conv(), norm=nn.BatchNorm2d(4)),
        2,
    ),
    "cat": (lambda: Block(_cat, a=_conv(4, 3), b=_conv(6), norm=nn.BatchNorm2d(10)), 2),
    "sum": (lambda: Block(_sum, a=_conv(4, 3), b=_conv(), norm=nn.BatchNorm2d(4)), 2),
    "cat by names": (lambda: Block(_named_cat, a=_conv(4, 3), b=_conv(6), norm=nn.BatchNorm2d(10)), 2),
    "sum by names": (lambda: Block(_named_sum, a=_conv(4, 3), b=_conv(), norm=nn.BatchNorm2d(4)), 2),
    "difference by a name": (lambda: Block(_half_named_sum, a=_conv(4, 3), b=_conv(), norm=nn.BatchNorm2d(4)), 2),
    "nested": (
        lambda: Block(_nested, a=_conv(4, 3), b=_conv(), c=_conv(4, 3), drop=nn.Dropout(0.5), norm=nn.BatchNorm2d(4)),
        3,
    ),
    "several": (
        lambda: Block(_several_behind, a=_conv(4, 3), b=_conv(), norm=nn.BatchNorm2d(4), second=nn.BatchNorm2d(4)),
        2,
    ),
    "folded side": (
        lambda: Block(
            _folded_side, a=_conv(4, 3), norm_a=nn.BatchNorm2d(4), b=_conv(), c=_conv(), norm=nn.BatchNorm2d(4)
        ),
        2,
    ),
}


@pytest.mark.parametrize("name", TAKEN)
def test_every_operand_takes_its_part_of_the_norm(name: str) -> None:
    make, convs = TAKEN[name]
    model, x = trained(make()), image(2, 4, 7, 9)
    folded = reparam.reparameterize(model, x)
    counted = ran(folded, x)
    assert norms_ran(folded, x) == 0
    assert counted["convolution"] == convs
    assert counted["mul"] == 0
    for size in [(1, 1), (2, 3), (8, 5)]:
        assert distance(model, folded, image(3, 4, *size)) < EXACT
    assert not reparam.reparameterize(folded, x).reparam_report.folds


def test_the_average_of_two_heads_on_different_tokens() -> None:
    model, x = trained(Block(_two_heads, head=nn.Linear(5, 3), other=nn.Linear(5, 3))), image(4, 5, 2)
    folded = reparam.reparameterize(model, x)
    assert ran(folded, x)["div"] == 0
    assert distance(model, folded, image(3, 5, 2)) < EXACT


def _also_read(m: nn.Module, x: Tensor) -> tuple[Tensor, Tensor]:
    y = m.b(x.sigmoid())
    return m.norm(m.a(x.relu()) + y), y


def _join_read(m: nn.Module, x: Tensor) -> Tensor:
    y = m.a(x.relu()) + m.b(x.sigmoid())
    return y + m.norm(y).relu()


def _called_twice(m: nn.Module, x: Tensor) -> tuple[Tensor, Tensor]:
    return m.norm(m.a(x.relu()) + m.b(x.sigmoid())), m.a(x.tanh())


def _same_twice(m: nn.Module, x: Tensor) -> Tensor:
    y = m.a(x.relu())
    return m.norm(torch.cat([y, y.abs(), y], 1))


def _not_a_kernel(m: nn.Module, x: Tensor) -> Tensor:
    return m.norm(m.a(x.relu()) + m.b(x).sigmoid())


def _beside_its_own_source(m: nn.Module, x: Tensor) -> Tensor:
    first, second = x.split([1, 3], 1)
    return m.norm(torch.stack([torch.cat([second, first], 1), x]).mean(0)).relu()


def _read_on_the_way(m: nn.Module, x: Tensor) -> Tensor:
    y = m.norm(m.a(x.relu()) + m.b(x.sigmoid()))
    return y + y + m.pool(m.scale(y)) + m.other(y)


def _along_rows(m: nn.Module, x: Tensor) -> Tensor:
    return m.norm(torch.cat([m.a(x.relu()), m.b(x.sigmoid())], 2))


KEPT = {
    "a side is an output": lambda: Block(_also_read, a=_conv(), b=_conv(), norm=nn.BatchNorm2d(4)),
    "the sum is read elsewhere": lambda: Block(_join_read, a=_conv(), b=_conv(), norm=nn.BatchNorm2d(4)),
    "a kernel is used elsewhere": lambda: Block(_called_twice, a=_conv(), b=_conv(), norm=nn.BatchNorm2d(4)),
    "a side comes twice": lambda: Block(_same_twice, a=_conv(), norm=nn.BatchNorm2d(12)),
    "a side is an activation": lambda: Block(_not_a_kernel, a=_conv(), b=_conv(), norm=nn.BatchNorm2d(4)),
    "the sum goes on beside its source": lambda: Block(_beside_its_own_source, norm=nn.BatchNorm2d(4)),
    "pixels are joined": lambda: Block(_along_rows, a=_conv(), b=_conv(), norm=nn.BatchNorm2d(4)),
}


@pytest.mark.parametrize("name", KEPT)
def test_the_norm_stays_where_one_operand_cannot_take_its_part(name: str) -> None:
    model, x = trained(KEPT[name]()), image(2, 4, 7, 9)
    folded = reparam.reparameterize(model, x)
    assert norms_ran(folded, x) == 1
    assert distance(model, folded, x) < EXACT


def test_tensors_that_are_read_elsewhere_keep_their_values() -> None:
    model, x = trained(TAKEN["sum"][0]()), image(2, 4, 7, 9)
    assert norms_ran(reparam.reparameterize(model, x, keep=["b"]), x) == 1
    assert norms_ran(reparam.reparameterize(model, x), x) == 0


def test_a_norm_is_distributed_to_all_operands_or_to_none() -> None:
    recorded = record(trained(TAKEN["nested"][0]()), Inputs.of(image(2, 4, 7, 9)))
    whole = plan(recorded).folds
    for only in range(len(whole) + 1):
        part = plan(recorded, only=only).folds
        kinds = {type(fold) for fold in part}
        assert (JoinFold in kinds) == (SideFold in kinds) == (only == len(whole))


def test_a_tensor_that_is_read_on_the_way_is_not_changed() -> None:
    model = Block(
        _read_on_the_way,
        a=_conv(),
        b=_conv(),
        norm=nn.BatchNorm2d(4),
        scale=nn.Conv2d(4, 4, 1, groups=4, padding_mode="circular"),
        pool=nn.AvgPool2d(3, 1, 1),
        other=nn.BatchNorm2d(4),
    )
    model, x = trained(model), image(2, 4, 7, 9)
    assert distance(model, reparam.reparameterize(model, x, verify=False), x) < EXACT


def _normed_where_large(m: nn.Module, x: Tensor) -> Tensor:
    joined = m.a(x.relu()) + m.b(x.sigmoid())
    return m.norm(joined) if joined.shape[-1] > 3 else joined


def _summed_where_large(m: nn.Module, x: Tensor) -> Tensor:
    side = m.a(x.relu())
    return m.norm(side + m.b(x.sigmoid()) if side.shape[-1] > 3 else side)


@pytest.mark.parametrize("forward", [_normed_where_large, _summed_where_large])
def test_a_branch_that_only_some_sizes_take_gets_no_part(forward: Callable[..., Tensor]) -> None:
    layers = {"a": nn.Conv2d(3, 4, 1), "b": nn.Conv2d(3, 4, 3, padding=1), "norm": nn.BatchNorm2d(4)}
    model = trained(Block(forward, **layers))
    folded = reparam.reparameterize(model, image(2, 3, 5, 4))
    for size in [(5, 4), (2, 3), (1, 1)]:
        assert distance(model, folded, image(3, 3, *size)) < EXACT
