"""How wrong a naive fold would be where the border forbids folding.

A norm or bias in front of a zero-padded convolution folds into it everywhere but at the border. A naive fold overlooks
that: it is right in the middle of every image, and at the border it reads what the first operation makes of zeros,
instead of zeros. That is a convolution too, so its error can be measured.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, replace

import torch

from reparam.algebra.affine import AffineConv, PendingBorder
from reparam.capture.evaluate import evaluate
from reparam.capture.graph import Node
from reparam.compare.error import relative_error
from reparam.errors import BorderRefusal, Refusal
from reparam.rules.interpret import Interpretation, apply_rule, between

_LARGEST = 32  # pixels per axis: more of them cost more and show the same border


@dataclass(frozen=True, eq=False)
class Border:
    """A naive fold of `sink` from `base`, which was refused at the border.

    inner: the first operation, with the padding of the second one added.
    outer: the second operation, without padding.
    nodes: the operations that the fold would replace, in order.
    """

    base: Node
    sink: Node
    inner: AffineConv
    outer: AffineConv
    nodes: tuple[Node, ...]

    def error(self, generator: torch.Generator) -> float:
        """The relative error of the fold on a drawn image of the recorded size, at most 32 pixels per axis."""
        batch, channels, *sizes = self.base.shape
        try:
            return self._error((1, channels, *(min(size, _LARGEST) for size in sizes)), generator)
        except (RuntimeError, ValueError):  # the code names a size, or needs a larger one
            return self._error((batch, channels, *sizes), generator)

    def _error(self, shape: tuple[int, ...], generator: torch.Generator) -> float:
        x = torch.randn(shape, generator=generator, dtype=torch.float64)
        known = {self.base: x.clone()}
        for node in self.nodes:
            evaluate(node, known)
        return relative_error(known[self.sink], self.outer(self.inner(x)))


def borders(interpretation: Interpretation, live: Collection[Node]) -> dict[Node, Border]:
    """The naive folds of the live nodes that are refused at the border."""
    refusals = interpretation.refusals.items()
    refused = [node for node, refusal in refusals if node in live and isinstance(refusal, BorderRefusal)]
    naive = {node: _border(interpretation, node) for node in refused}
    return {node: border for node, border in naive.items() if border is not None}


def _border(interpretation: Interpretation, node: Node) -> Border | None:
    """The naive fold of a node from the nearest base for which the border is what refuses it."""
    if len(node.operands) > 1:
        return None
    base = operand = node.operands[0]
    outer = interpretation.value(operand, node)
    if not isinstance(outer, AffineConv) or outer.bias_per_pixel or any(axis.copies_pixels for axis in outer.axes):
        return None
    if outer.is_transposed:
        return None  # the zeros between its pixels can be overlooked in several ways
    while base in interpretation.dominator:
        base = interpretation.dominator[base]
        inner = interpretation.value(base, operand)
        try:
            apply_rule(node, {operand: inner}, interpretation.fixed_size)
        except BorderRefusal:
            inner = inner.inside if isinstance(inner, PendingBorder) else inner
            plain = isinstance(inner, AffineConv) and not inner.bias_per_pixel and len(inner.axes) == len(outer.axes)
            return _naive(base, node, inner, outer) if plain else None
        except Refusal:
            continue
    return None


def _naive(base: Node, sink: Node, inner: AffineConv, outer: AffineConv) -> Border:
    """The fold whose border reads what `inner` makes of zeros."""
    padded = tuple(axis.padded(own.lo, own.hi) for axis, own in zip(inner.axes, outer.axes, strict=True))
    unpadded = tuple(replace(axis, lo=0, hi=0) for axis in outer.axes)
    nodes = tuple(between(base, [sink]))
    return Border(base, sink, replace(inner, axes=padded), replace(outer, axes=unpadded), nodes)
