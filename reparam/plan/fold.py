"""A fold: one convolution, and the operations that it stands for."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from reparam.algebra.affine import AffineConv
from reparam.capture.graph import Node
from reparam.plan import cost
from reparam.plan.shapes import Extents


@dataclass(frozen=True, eq=False)
class Wide:
    """One convolution in the place of several of one tensor: `value` computes the channels of all `sinks`, in order.

    widths: how many each of them has.
    views: how long dimensions are, and what has to be shown of the views that code takes of the sinks: they look at
        parts of a wider tensor now.
    """

    value: AffineConv
    sinks: tuple[Node, ...]
    widths: tuple[int, ...]
    views: Extents = field(default_factory=Extents)

    @property
    def channel(self) -> int:
        """The dimension that is split."""
        return 1 if self.value.axes else -1

    def part(self, whole: Tensor, sink: Node) -> Tensor:
        """What one of the sinks is, of what `value` has computed."""
        index = self.sinks.index(sink)
        return whole.narrow(self.channel, sum(self.widths[:index]), self.widths[index])


@dataclass(frozen=True, eq=False)
class Fold:
    """`value` computes `sink` from `base`; `nodes` are what it stands for, in order, `sink` last.

    steps: those of the nodes that go on being computed, on another tensor: they rearrange or average pixels.
    sizes: what says how large base and nodes are, whatever the size of the base (see `_size`).
    place: the kernel among steps that the folded convolution takes the place of; None where there are no steps.
    advance: a scale and shift that the value includes besides: it follows a sum or concatenation of the sink.
    extents: how long the dimensions of base and nodes are, and what has to be shown of the reshapes on the way.
    given: what was put into these tensors in advance, so that the operations of this fold have become nothing.
    wide: the convolution that computes it beside others; None where `value` is one of its own.
    """

    base: Node
    sink: Node
    value: AffineConv
    nodes: tuple[Node, ...]
    steps: tuple[Node, ...] = ()
    sizes: Mapping[Node, Any] = field(default_factory=dict)
    place: Node | None = None
    advance: AffineConv | None = None
    given: Mapping[Node, AffineConv] = field(default_factory=dict)
    extents: Extents = field(default_factory=Extents)
    wide: Wide | None = None

    @property
    def reshapes(self) -> Collection[Node]:
        """The nodes whose sizes, however code comes by them, have to be shown to be theirs for every input."""
        return self.extents.shown

    @property
    def proven(self) -> tuple[Node, ...]:
        """The nodes that have to follow one another for every input: its own, and the joins of what is `given`."""
        found, waiting = dict.fromkeys(self.nodes), [self.base] if self.given else []
        while waiting:
            node = waiting.pop()
            found[node] = None
            waiting += () if node in self.given else node.operands
        return tuple(found)

    def as_large(self, node: Node) -> Node | None:
        """The end of the fold that is as large as one of its nodes, whatever the size of the base, if one is."""
        size = None if self.steps else self.sizes.get(node)
        return next((end for end in (self.sink, self.base) if size is not None and self.sizes.get(end) == size), None)

    def stretches(self) -> list[tuple[Node, tuple[Node, ...]]]:
        """See the function of this name."""
        return stretches(self.base, self.nodes, self.steps)

    def takes_output_size(self, nodes: Sequence[Node], value: AffineConv | None) -> bool:
        """Whether what `nodes` become may be told its output size at every call, if they hold a transposed convolution.

        `value` stands for them: it has to be one as well, with outputs of that very size.
        """
        if not any(node.name.startswith("conv_transpose") for node in nodes):
            return True
        return value is not None and value.stretched and self.as_large(nodes[-1]) is self.sink


def last_kernel(nodes: Sequence[Node]) -> Node:
    """The last of the nodes that is a convolution, a linear layer or a product with a constant."""
    return next(each for each in reversed(nodes) if each.op in cost.KERNELS)


def stretches(base: Node, nodes: Sequence[Node], steps: Collection[Node]) -> list[tuple[Node, tuple[Node, ...]]]:
    """What stands between the steps, one of which every path leads through: the tensor read, and its operations."""
    found: list[tuple[Node, tuple[Node, ...]]] = []
    start, own = base, list[Node]()
    for node in nodes:
        if node not in steps:
            own.append(node)
        if own and (node in steps or node is nodes[-1]):
            found.append((start, tuple(own)))
        if node in steps:
            start, own = node, []
    return found
