"""The walk: where every node stands in the tree of dominators, and what it is of each tensor behind it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from reparam.algebra.affine import AffineConv
from reparam.algebra.lazy import cache_scope
from reparam.algebra.views import View
from reparam.capture.evaluate import evaluate
from reparam.capture.graph import Node, Record
from reparam.capture.inputs import Inputs
from reparam.capture.runs import record
from reparam.errors import Refusal
from reparam.rules.interpret import REACH, Interpretation, apply_rule, between
from tests.helpers import EXACT, Block, bn, conv, image, seq, trained

X = image(2, 4, 9, 7)


def recorded(model: nn.Module | Callable[[Any, Tensor], Any], **members: Any) -> Record:
    model = model if isinstance(model, nn.Module) else Block(model, **members)
    return record(trained(model), Inputs.of(X))


def operations(found: Record) -> list[Node]:
    """The input, and what is computed of it, in order."""
    return [node for node in found.nodes if not node.constant]


def walked(found: Record, **options: Any) -> Interpretation:
    return Interpretation(found.nodes, found.opaque, **options)


# --- the tree of dominators


def test_a_chain_starts_from_the_last_nonlinear_operation() -> None:
    found = recorded(seq(conv(4, 4, 3), bn(), nn.ReLU(), conv(4, 4, 1), bn()))
    x, first, norm, relu, second, last = operations(found)
    walk = walked(found)
    assert walk.anchor == {first: x, norm: x, second: relu, last: relu}
    assert walk.base == walk.anchor
    assert walk.dominator == {first: x, norm: first, second: relu, last: second}


def test_a_sum_of_branches_is_dominated_by_what_they_start_from() -> None:
    found = recorded(lambda m, x: m.a(x) + m.b(m.c(x)), a=conv(4, 4, 1), b=conv(4, 4, 1), c=conv(4, 4, 1))
    x, a, c, b, total = operations(found)
    walk = walked(found)
    assert walk.dominator == {a: x, c: x, b: c, total: x}
    ordered = {(base, node): walk.dominates(base, node) for base in (x, a, c, b, total) for node in (b, total)}
    assert [key for key, holds in ordered.items() if holds] == [(x, b), (x, total), (c, b), (b, b), (total, total)]


def test_what_starts_from_two_tensors_is_an_anchor() -> None:
    found = recorded(lambda m, x: m.norm(x.relu() + x.tanh()), norm=bn())
    x, relu, tanh, total, norm = operations(found)
    walk = walked(found)
    assert walk.anchor == {norm: total}
    assert "different tensors" in walk.refusals[total].reason
    assert {relu, tanh, x}.isdisjoint(walk.refusals)  # they have no rule: nothing to explain


def test_opaque_nodes_are_values_of_nothing() -> None:
    found = recorded(seq(conv(4, 4, 3), bn(), bn()))
    x, first, norm, last = operations(found)
    walk = Interpretation(found.nodes, {norm})
    assert walk.anchor == {first: x, last: norm}
    assert walk.dominator == {first: x, last: norm}


def test_barriers_are_values_that_no_value_passes() -> None:
    found = recorded(seq(conv(4, 4, 3), bn(), bn()))
    x, first, norm, last = operations(found)
    walk = walked(found, barriers={norm})
    assert walk.anchor == {first: x, norm: x, last: norm}


@pytest.mark.parametrize("scales", [3, 3 * REACH])
def test_a_value_reaches_a_limited_number_of_dominators_back(scales: int) -> None:
    """Behind a bias and some scales, a padded convolution can start anywhere but in front of the bias."""

    def forward(m: Any, x: Tensor) -> Tensor:
        y = m.first(x)
        for _ in range(scales):
            y = y * 2.0
        return m.last(y)

    found = recorded(forward, first=conv(4, 4, 1, bias=True), last=conv(4, 4, 3, padding=1))
    x, *nodes = operations(found)
    walk = walked(found)
    assert {walk.base[node] for node in nodes[:-1]} == {x}
    assert walk.base[nodes[-1]] is (nodes[0] if scales < REACH else nodes[-1 - REACH])


def test_the_refusal_at_the_farthest_tensor_is_kept() -> None:
    """From the input, the border of the first convolution is in the way; from that, the shift of the norm."""
    layers = {"first": conv(4, 4, 3, padding=1), "norm": bn(), "last": conv(4, 4, 3, padding=1)}
    found = recorded(lambda m, x: m.last(m.norm(m.first(x))), **layers)
    x, first, norm, last = operations(found)
    walk = walked(found)
    assert walk.base[last] is norm
    reasons = []
    for base in (x, first):
        with pytest.raises(Refusal) as refused:
            apply_rule(last, {norm: walk.value(base, norm)})
        reasons.append(refused.value.reason)
    assert reasons[0] != reasons[1]
    assert walk.refusals[last].reason == reasons[0]


# --- values


def _branches(m: Any, x: Tensor) -> Tensor:
    y = m.a(x)
    return F.avg_pool2d(m.norm(y + m.b(x)[:, :, 1:-1, 1:-1]), 2) * 3


def test_a_value_computes_the_node_from_any_dominator() -> None:
    found = recorded(_branches, a=conv(4, 6, 3, bias=True), b=conv(4, 6, 1), norm=bn(6))
    walk = walked(found)
    x, *nodes = operations(found)
    memo = {x: X}
    pairs = [(base, node) for base in (x, *nodes) for node in nodes if base is not node and walk.dominates(base, node)]
    assert len(pairs) > len(nodes)
    for base, node in pairs:
        truth, start = evaluate(node, memo), evaluate(base, memo)
        value = walk.value(base, node)
        assert isinstance(value, AffineConv)
        with cache_scope():
            assert (value(start) - truth).abs().max() <= EXACT * truth.abs().max(), (base, node)


def test_a_node_without_a_value_of_a_base_is_none_there() -> None:
    found = recorded(lambda m, x: m.b(m.a(x)), a=conv(4, 4, 1, bias=True), b=conv(4, 4, 3, padding=1))
    x, first, second = operations(found)
    walk = walked(found)
    assert walk.value(x, second) is None
    assert isinstance(walk.value(first, second), AffineConv)


def test_a_join_behind_views_stands_behind_them() -> None:
    def forward(m: Any, x: Tensor) -> Tensor:
        tokens = x.flatten(2).transpose(1, 2)
        return m.a(tokens) + m.b(tokens)

    found = recorded(forward, a=nn.Linear(4, 5), b=nn.Linear(4, 5))
    walk = walked(found)
    x, *_, total = operations(found)
    value = walk.value(x, total)
    assert isinstance(value, View)
    assert walk.anchor[total] is x


def test_a_law_never_writes_into_a_parameter() -> None:
    model = trained(seq(conv(4, 4, 3), bn()))
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    found = record(model, Inputs.of(X))
    x, *nodes = operations(found)
    walk = walked(found)
    for node in nodes:
        value = walk.value(x, node)
        assert isinstance(value, AffineConv)
        with cache_scope():
            value.kernel().zero_()
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


# --- rules at nodes


def test_a_write_over_an_anchor_is_refused() -> None:
    found = recorded(lambda m, x: x.relu().mul_(2))
    *_, product = operations(found)
    with pytest.raises(Refusal, match="it overwrites its input"):
        apply_rule(product, {})
    assert "overwrites its input" in walked(found).refusals[product].reason


def test_a_change_of_dtype_is_refused() -> None:
    found = recorded(lambda m, x: x.relu() * 2.0)
    *_, product = operations(found)
    assert isinstance(apply_rule(product, {}), AffineConv)
    with pytest.raises(Refusal, match=r"changes the dtype to torch\.float32"):
        apply_rule(replace(product, dtype=torch.float32), {})


def test_an_operand_that_is_no_value_makes_none() -> None:
    found = recorded(seq(conv(4, 4, 3), bn()))
    _, first, norm = operations(found)
    assert apply_rule(norm, {first: None}) is None


# --- paths


def test_between_lists_what_lies_on_the_paths_in_an_order_that_can_run() -> None:
    found = recorded(lambda m, x: (m.c(m.a(x)) + m.b(x), x.tanh()), a=conv(4, 4, 1), b=conv(4, 4, 1), c=conv(4, 4, 1))
    x, a, c, b, total, tanh = operations(found)
    assert between(a, [c]) == [c]
    for sinks, nodes in (([total], {a, c, b, total}), ([tanh, c], {tanh, a, c}), ([x], set())):
        ordered = between(x, sinks)
        assert set(ordered) == nodes
        assert len(ordered) == len(nodes)
        assert all(ordered.index(o) < i for i, node in enumerate(ordered) for o in node.operands if o is not x)


def test_origins_are_found_once() -> None:
    """Of fifty residual blocks, each asked for its origin, every node is looked at about once."""
    found = recorded(seq(*(Block(lambda m, x: x + m.norm(x).relu(), norm=bn()) for _ in range(50))))
    walk, asked = walked(found), []

    def ends(walk: Interpretation, node: Node) -> bool:
        asked.append(node)
        return not node.operands

    x, *nodes = operations(found)
    assert {walk.origin(node, ends) for node in nodes} == {x}
    assert len(asked) <= 2 * len(nodes)
