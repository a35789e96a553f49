"""The edits that carry a plan: exchanged modules, norms that lose their weights, rewritten forwards."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass

from torch import nn

from reparam.algebra.affine import AffineConv
from reparam.capture.graph import Call, Node
from reparam.plan.fold import Fold
from reparam.plan.plan import Constraints
from reparam.plan.shapes import same_size_origin
from reparam.rewrite.call_graph import CallGraph
from reparam.rewrite.chains import Part


@dataclass(frozen=True, eq=False)
class Piece:
    """Operations of a part inside one call, and what replaces them.

    value: the convolution of `base` that computes `sink`, the last of `nodes`; None where `base` itself replaces it.
    """

    call: Call
    nodes: tuple[Node, ...]
    base: Node
    sink: Node
    part: Part
    value: AffineConv | None

    @property
    def fold(self) -> Fold:
        """The fold of the plan."""
        return self.part.planned

    def same_size_end(self, node: Node) -> Node | None:
        """The end of the piece that has the size of one of its nodes for every input, if one has."""
        if self.fold.steps:
            return next((end for end in (self.sink, self.base) if self._same_size(node, end)), None)
        end = self.fold.same_size_end(node)
        return end if end is None else self.base if end is self.fold.base else self.sink

    def _same_size(self, node: Node, end: Node) -> bool:
        lengths = self.fold.extents.lengths
        same_origin = same_size_origin(node) is same_size_origin(end)
        return same_origin or (node in lengths and lengths[node] == lengths.get(end))


@dataclass(frozen=True, eq=False)
class Swap:
    """A plain convolution, or nn.Identity (value None), takes the place of `module`."""

    module: nn.Module
    fold: Fold
    value: AffineConv | None


@dataclass(frozen=True, eq=False)
class Rewrite:
    """A new forward for one module, made from the `code` of its first call by editing the pieces in it."""

    code: CallGraph
    pieces: Sequence[Piece]


@dataclass(frozen=True, eq=False)
class Edits:
    """All edits of a plan, none of them made yet.

    unscaled: the modules of norms that lose their weight and bias.
    guards: forwards that check their flags, and are called as before.
    removed: the operations that the edits take away.
    pinned: the modules that keep their place and are called as before.
    constraints: what the next plan has to respect. Empty where all edits can be made.
    """

    swaps: Sequence[Swap]
    unscaled: Sequence[nn.Module]
    rewrites: Sequence[Rewrite]
    guards: Sequence[CallGraph]
    removed: Collection[Node]
    pinned: Collection[nn.Module]
    constraints: Constraints
