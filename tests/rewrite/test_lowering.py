"""Lowering: the smallest edits that carry a plan, or the constraints on the next one."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.helpers import Block, bn, conv, image, seq, summed
from tests.networks import same, snapshot
from tests.rewrite.lowered import Lowered, lowered

X = image(2, 4, 9, 7)


def swapped(result: Lowered) -> dict[str, bool]:
    """The modules that are exchanged, by name, and whether each becomes a convolution."""
    names = {module: name for name, module in result.model.named_modules()}
    return {names[swap.module]: swap.value is not None for swap in result.edits.swaps}


def rewritten(result: Lowered) -> dict[str, list[list[str]]]:
    """The modules that get a new forward, by name, and the operations of each piece in it."""
    names = {module: name for name, module in result.model.named_modules()}
    return {
        names[rewrite.code.module]: [[node.op for node in piece.nodes] for piece in rewrite.pieces]
        for rewrite in result.edits.rewrites
    }


def reasons(result: Lowered) -> set[str]:
    return {refusal.reason for refusal in result.edits.constraints.refusals.values()}


def test_a_chain_of_modules_is_exchanged_where_it_stands() -> None:
    result = lowered(seq(seq(conv(4, 4, 3), bn()), nn.ReLU(), seq(bn(), nn.ReLU())), X)
    assert swapped(result) == {"0.0": True, "0.1": False}
    assert not rewritten(result)
    assert not result.edits.constraints


def test_a_chain_across_modules_rewrites_nothing() -> None:
    result = lowered(seq(seq(conv(4, 4, 3), nn.Identity()), seq(nn.Identity(), bn(), nn.ReLU())), X)
    assert swapped(result) == {"0.0": True, "1.1": False}
    assert not rewritten(result)


def test_branches_rewrite_the_smallest_module_around_them() -> None:
    result = lowered(seq(nn.ReLU(), seq(summed(conv(4, 4, 3, padding=1), conv(4, 4, 1)), nn.ReLU())), X)
    assert rewritten(result) == {"1.0": [["conv2d", "conv2d", "add", "add"]]}
    assert not swapped(result)
    assert not result.edits.constraints


def test_a_module_that_is_nothing_but_a_fold_is_exchanged_as_a_whole() -> None:
    kernels = {name: nn.Parameter(torch.randn(4, 4, taps, taps)) for name, taps in (("a", 3), ("b", 1))}
    block = Block(lambda m, x: F.conv2d(x, m.a, padding=1) + F.conv2d(x, m.b), **kernels)
    result = lowered(seq(block, nn.ReLU()), X)
    assert swapped(result) == {"0": True}
    assert not rewritten(result)


def test_an_operation_in_code_is_dropped_from_its_own_small_module() -> None:
    scaled = Block(lambda m, x: (x * m.gain).relu(), gain=nn.Parameter(torch.rand(4, 1, 1)))
    result = lowered(seq(conv(4, 4, 3), scaled), X)
    assert swapped(result) == {"0": True}
    assert rewritten(result) == {"1": [["mul"]]}
    (piece,) = result.edits.rewrites[0].pieces
    assert piece.value is None  # its base stands in its place


def test_the_norm_in_front_of_a_linear_layer_loses_its_weights() -> None:
    result = lowered(seq(nn.LayerNorm(7), nn.Linear(7, 5)), X)
    assert swapped(result) == {"1": True}
    assert result.edits.unscaled == [result.model[0]]
    assert "affine_part" in {node.op for node in result.edits.removed}


def test_every_call_of_a_block_is_edited_once() -> None:
    block = summed(seq(conv(4, 4, 3, padding=1), bn()), conv(4, 4, 1))
    result = lowered(Block(lambda m, x: m.block(m.block(x)), block=block), X)
    assert len(result.plan.folds) == 2
    assert list(rewritten(result)) == ["block"]
    assert len(result.edits.rewrites) == 1


def test_fused_convolutions_are_pieces_of_one_forward() -> None:
    result = lowered(Block(lambda m, x: (m.a(x).relu(), m.b(x).tanh()), a=conv(4, 4, 1), b=conv(4, 3, 1)), X)
    assert rewritten(result) == {"": [["conv2d"], ["conv2d"]]}
    assert not swapped(result)


def test_what_is_removed_is_what_the_folds_replace() -> None:
    result = lowered(seq(conv(4, 4, 3), bn(), nn.ReLU()), X)
    (fold,) = result.plan.folds
    assert {node for node in result.edits.removed if node.function is not None} == set(fold.nodes)


def test_nothing_is_edited_yet() -> None:
    model = summed(seq(conv(4, 4, 3, padding=1), bn()), conv(4, 4, 1))
    result = lowered(model, X)
    before = snapshot(model)
    again = lowered(model, X)
    assert rewritten(result) == rewritten(again) != {}
    assert [entry[1:] for entry in before["modules"]] == [entry[1:] for entry in snapshot(model)["modules"]]
    assert same(before["hooks"], snapshot(model)["hooks"])


# --- constraints


def test_a_pinned_module_is_a_constraint_with_its_reason() -> None:
    model = seq(conv(4, 4, 3), bn(), nn.ReLU())
    result = lowered(model, X, pinned=[model[1]])
    assert reasons(result) == {"1 is pinned by a hook or `keep=`"}


def test_a_hooked_module_is_pinned_without_being_named() -> None:
    model = seq(conv(4, 4, 3), bn(), nn.ReLU())
    model[1].register_forward_hook(lambda *_: None)
    assert model[1] in lowered(model, X).edits.pinned


class Decides(nn.Module):
    """Whether there is a norm behind the convolution depends on the values of the input."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = conv(4, 4, 3), bn()

    def forward(self, x: Tensor) -> Tensor:
        y = self.conv(x)
        return self.norm(y) if x.sum() < 1e9 else y


def test_code_that_no_trace_can_follow_is_a_constraint() -> None:
    result = lowered(Decides(), X)
    assert result.plan.folds
    assert result.edits.constraints
    assert any("something else in another run" in reason for reason in reasons(result)), reasons(result)


def test_a_refused_fusion_costs_no_fold() -> None:
    def forward(m: Any, x: Tensor) -> tuple[Tensor, Tensor]:
        y = m.a(x).relu()
        return (y, m.b(x).tanh()) if x.sum() < 1e9 else (y, y)

    result = lowered(Block(forward, a=seq(conv(4, 4, 1), bn()), b=seq(conv(4, 3, 1), bn(3))), X)
    assert result.edits.constraints.unfusable
    assert not result.edits.constraints.opaque
    assert not result.edits.constraints.barriers
