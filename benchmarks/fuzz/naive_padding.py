"""Refusals of the padding law, put to the test: a fold that ignores the law has to be wrong."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from typing import Any
from unittest.mock import patch

import torch

from benchmarks.fuzz.networks import Program
from reparam.algebra.affine import AffineConv, Number
from reparam.capture.graph import Node
from reparam.capture.inputs import Inputs
from reparam.capture.runs import record
from reparam.compare.bounds import EXACT
from reparam.compare.folds import fold_error
from reparam.errors import BorderRefusal
from reparam.plan.fold import Fold
from reparam.plan.plan import plan
from reparam.rules.interpret import Interpretation, between

RIGHT = "right"
"""The verdict on a fold that was refused although it is exact."""


def naive_pad(self: AffineConv, pads: Sequence[tuple[int, int]], value: Number | None = None) -> AffineConv:
    """The padding law without its conditions, as tools have it that fold every pair of layers."""
    axes = tuple(axis.padded(*p) for axis, p in zip(self.axes, pads, strict=True))
    return replace(self, axes=axes, identity=False, mean=False)


def naive_verdicts(program: Program) -> Counter[str]:
    """For each operation that the padding law refuses: whether the fold that ignores the law is wrong."""
    model, inputs = program.build()
    recorded = record(model, Inputs.of(inputs))
    exact = Interpretation(recorded.nodes, recorded.barriers)
    refused = {node for node, refusal in exact.refusals.items() if isinstance(refusal, BorderRefusal)}
    if not refused:
        return Counter()
    verdicts: Counter[str] = Counter()
    with patch.object(AffineConv, "pad", naive_pad):
        folds = plan(recorded).folds
        naive = Interpretation(recorded.nodes, recorded.barriers)
        for node in refused:
            covering = [fold for fold in folds if node in fold.nodes and _is_refused(exact, fold.base, fold.sink)]
            verdicts[_verdict([_ending_at(node, fold, naive) for fold in covering])] += 1
    return verdicts


def _ending_at(node: Node, fold: Fold, naive: Interpretation) -> Fold:
    """The part of the fold up to the refused operation: what comes after it may crop the wrong border."""
    value = naive.value(fold.base, node)
    if not isinstance(value, AffineConv):
        return fold
    return Fold(fold.base, node, value, tuple(between(fold.base, [node])))


def _is_refused(exact: Interpretation, base: Node, sink: Node) -> bool:
    try:
        return not exact.dominates(base, sink) or exact.value(base, sink) is None
    except KeyError:
        return True


def _verdict(folds: Sequence[Any]) -> str:
    if not folds:
        return "does not pay, or is refused for another reason"
    generator = torch.Generator().manual_seed(0)
    errors = []
    for fold in folds:
        try:
            errors.append(fold_error(fold, generator))
        except (RuntimeError, ValueError):
            errors.append(float("inf"))  # the result has another size
    return "wrong" if max(errors) > EXACT else RIGHT
