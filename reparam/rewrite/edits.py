"""What is edited to carry a plan: modules that are exchanged, normalisations, and code (see `prepare`)."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, field

from torch import nn

from reparam.algebra.affine import AffineConv
from reparam.capture.graph import Call, Node
from reparam.errors import Refusal
from reparam.plan.fold import Fold
from reparam.plan.plan import Constraints
from reparam.plan.shapes import same_size_origin
from reparam.rewrite.trace import Trace


@dataclass(frozen=True, eq=False)
class Piece:
    """Part of a fold inside one call: one convolution of `base`, or (value None) `base` itself, instead of `nodes`."""

    call: Call
    nodes: tuple[Node, ...]
    base: Node
    sink: Node
    fold: Fold
    value: AffineConv | None

    def same_size_end(self, node: Node) -> Node | None:
        """The end of the piece that is as large as one of its nodes, whatever the size of the input, if one is."""
        if self.fold.steps:
            return next((end for end in (self.sink, self.base) if self._alike(node, end)), None)
        end = self.fold.same_size_end(node)
        return end if end is None else self.base if end is self.fold.base else self.sink

    def _alike(self, node: Node, end: Node) -> bool:
        known = self.fold.extents.lengths
        return same_size_origin(node) is same_size_origin(end) or (node in known and known[node] == known.get(end))


@dataclass(frozen=True, eq=False)
class Swap:
    """`module` gives way to a plain convolution, or (value None) to nn.Identity."""

    module: nn.Module
    fold: Fold
    value: AffineConv | None


@dataclass(eq=False)
class Rewrite:
    """New code for one module; `trace` is of its first call."""

    trace: Trace
    pieces: list[Piece]


@dataclass(eq=False)
class Edits:
    """All edits of a plan, ready to be made; or why they cannot be (see `Constraints`).

    opaque: operations that cannot be edited away, and why.
    barriers: tensors that code hands from one inner call to another and through which no fold can be led, and why.
    unfusable: sinks of folds that cannot be fused with others.
    removed: the operations that the edits take away.
    pinned: the modules that keep their place and are called as before.
    """

    swaps: list[Swap] = field(default_factory=list)
    unscaled: list[nn.Module] = field(default_factory=list)
    rewrites: list[Rewrite] = field(default_factory=list)
    opaque: dict[Node, Refusal] = field(default_factory=dict)
    barriers: dict[Node, Refusal] = field(default_factory=dict)
    unfusable: set[Node] = field(default_factory=set)
    removed: Collection[Node] = ()
    pinned: Collection[nn.Module] = ()

    @property
    def constraints(self) -> Constraints:
        """What the next plan has to respect; none where this one can be carried out."""
        return Constraints(self.opaque, self.barriers, frozenset(self.unfusable))
