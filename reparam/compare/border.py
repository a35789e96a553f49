"""How wrong the folds would be that are refused at the border.

A convolution that pads with zeros what a norm or a bias comes before is another function at the border only, so a fold
that overlooks it is right in the middle of every image and passes for right. What it would do at the border is known:
it reads there what the first operation makes of zeros.
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
from reparam.rules.interpret import Interpretation, between, step

_LARGEST = 32  # pixels per axis: with more of them the border is the same and costs no less


@dataclass(frozen=True, eq=False)
class Border:
    """A fold of `sink` from `base` that was refused at the border: `outer`, unpadded, after `inner`, padded for it.

    nodes: what it would have stood for, in order.
    """

    base: Node
    sink: Node
    inner: AffineConv
    outer: AffineConv
    nodes: tuple[Node, ...]

    def error(self, generator: torch.Generator) -> float:
        """max|fold - truth| / max|truth| of a drawn image of the recorded size, at most 32 pixels per axis."""
        batch, channels, *sizes = self.base.shape
        try:
            return self._error((1, channels, *(min(size, _LARGEST) for size in sizes)), generator)
        except (RuntimeError, ValueError):  # its code names a size, or needs a larger one
            return self._error((batch, channels, *sizes), generator)

    def _error(self, shape: tuple[int, ...], generator: torch.Generator) -> float:
        x = torch.randn(shape, generator=generator, dtype=torch.float64)
        known = {self.base: x.clone()}
        for node in self.nodes:
            evaluate(node, known)
        return relative_error(known[self.sink], self.outer(self.inner(x)))


def borders(found: Interpretation, live: Collection[Node]) -> dict[Node, Border]:
    """The live nodes that would fold if there were no border, as the folds that they would be."""
    refused = [node for node, why in found.refusals.items() if node in live and isinstance(why, BorderRefusal)]
    named = {node: _border(found, node) for node in refused}
    return {node: border for node, border in named.items() if border is not None}


def _border(found: Interpretation, node: Node) -> Border | None:
    """What the node would be of the nearest tensor of which it is refused at a border."""
    if len(node.operands) > 1:
        return None
    base = operand = node.operands[0]
    outer = found.value(operand, node)
    if not isinstance(outer, AffineConv) or outer.mapped or any(axis.copies for axis in outer.axes):
        return None
    if outer.stretched:
        return None  # there is no one way to overlook the zeros between its pixels, where `inner` has none
    while base in found.above:
        base = found.above[base]
        inner = found.value(base, operand)
        try:
            step(node, {operand: inner}, found.fixed)
        except BorderRefusal:
            inner = inner.inside if isinstance(inner, PendingBorder) else inner
            plain = isinstance(inner, AffineConv) and not inner.mapped and len(inner.axes) == len(outer.axes)
            return _naive(base, node, inner, outer) if plain else None
        except Refusal:
            continue
    return None


def _naive(base: Node, sink: Node, inner: AffineConv, outer: AffineConv) -> Border:
    """The fold for which the padding of `outer` holds what `inner` makes of zeros."""
    reach = tuple(axis.padded(own.lo, own.hi) for axis, own in zip(inner.axes, outer.axes, strict=True))
    unpadded = tuple(replace(axis, lo=0, hi=0) for axis in outer.axes)
    nodes = tuple(between(base, [sink]))
    return Border(base, sink, replace(inner, axes=reach), replace(outer, axes=unpadded), nodes)
