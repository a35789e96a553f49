"""A fold: one convolution, and the operations that it stands for.

There are five kinds, by the search that makes them and by what is left to compute:

    Fold            one convolution of the base tensor            region.py
    ViewedFold      the same among views that stay                region.py
    SideFold        a side of a join, with its share of a scale   distribute.py
    JoinFold        a scale behind a join: nothing is left of it  distribute.py
    HorizontalFold  some channels of a convolution of several     horizontal.py

Each kind computes what it stands for (`apply`), prices itself (`price`, `macs`) and says what it has become
(`describe`), so no reader has to know which kind it holds.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, ClassVar

from torch import Tensor

from reparam.algebra.affine import AffineConv
from reparam.algebra.describe import describe
from reparam.algebra.kernels import pad_in_mode
from reparam.algebra.layer_form import layer_form
from reparam.capture.evaluate import evaluate
from reparam.capture.graph import Node
from reparam.capture.ops import KERNELS
from reparam.plan import cost
from reparam.plan.shapes import Extents

_LISTED = 12  # modules that a description names


@dataclass(frozen=True, eq=False)
class Fold:
    """One convolution `value` computes `sink` from `base`.

    nodes: the operations that it stands for, in order, `sink` last.
    sizes: how large base and nodes are, whatever the size of the base, in a form that compares (see `region._size`).
    extents: how long the dimensions of base and nodes are, and what has to be proven of the reshapes on the way.
    steps: those of the nodes that are computed as before.
    """

    made_by: ClassVar[str] = "region"

    base: Node
    sink: Node
    value: AffineConv
    nodes: tuple[Node, ...]
    sizes: Mapping[Node, Any] = field(default_factory=dict)
    extents: Extents = field(default_factory=Extents)
    steps: tuple[Node, ...] = ()

    @property
    def place(self) -> Node:
        """The node in whose place the convolution is computed."""
        return self.sink

    @property
    def shared(self) -> tuple[Fusion, ...]:
        """The convolutions that compute other folds as well."""
        return ()

    @property
    def beyond(self) -> tuple[str, ...]:
        """What it computes beyond its nodes, in words."""
        return ()

    @property
    def reshapes(self) -> Collection[Node]:
        """The nodes whose sizes, however code comes by them, have to be shown to be theirs for every input."""
        return self.extents.shown

    @property
    def proven(self) -> tuple[Node, ...]:
        """The nodes that have to follow one another for every input."""
        return self.nodes

    @property
    def resizable(self) -> bool:
        """Whether it takes tensors of other sizes than the recorded one."""
        return bool(self.value.axes) and not self.reshapes and not self.value.anchor.fixed

    @property
    def inputs(self) -> tuple[Node, ...]:
        """The tensors from which `apply` and `original` compute the sink."""
        return (self.base,)

    def apply(self, given: Mapping[Node, Tensor]) -> Tensor:
        """What the fold computes from its inputs, in float64."""
        return _emitted(self.value, given[self.base])

    def original(self, given: Mapping[Node, Tensor]) -> Tensor:
        """What the operations compute from the same inputs."""
        known = {self.base: given[self.base].clone()}  # operations in place write to it
        for node in self.nodes:
            evaluate(node, known)
        return known[self.sink]

    def price(self, judge: cost.Cost) -> cost.Price:
        """What it costs where it stands, without its steps and what it shares with others."""
        return cost.of_fold(judge, self.value)

    @property
    def macs(self) -> int:
        """Multiply-adds at the recorded size."""
        return cost.macs_of_fold(self.value)

    def describe(self) -> str:
        """What it has become, such as `Conv2d 64->64 3x3 s1 p1`."""
        return describe(self.value)

    def as_large(self, node: Node) -> Node | None:
        """The end of the fold that is as large as one of its nodes, whatever the size of the base, if one is."""
        size = self.sizes.get(node)
        return next((end for end in (self.sink, self.base) if size is not None and self.sizes.get(end) == size), None)

    def takes_output_size(self, nodes: Sequence[Node], value: AffineConv | None) -> bool:
        """Whether what `nodes` become may be told its output size at every call, if they hold a transposed convolution.

        `value` stands for them: it has to be one as well, with outputs of that very size.
        """
        if not any(node.name.startswith("conv_transpose") for node in nodes):
            return True
        return value is not None and value.is_transposed and self.as_large(nodes[-1]) is self.sink


@dataclass(frozen=True, eq=False)
class ViewedFold(Fold):
    """A convolution among operations that rearrange or average pixels, its `steps`, which are computed as before.

    kernel: the operation among the steps in whose place the convolution is computed.
    """

    kernel: Node = field(kw_only=True)

    @property
    def place(self) -> Node:
        return self.kernel

    @property
    def resizable(self) -> bool:
        return False

    def apply(self, given: Mapping[Node, Tensor]) -> Tensor:
        x = given[self.base]
        for node in self.nodes:
            if node in self.steps:
                x = evaluate(node, {node.operands[0]: x})
            elif node is self.kernel:
                x = _emitted(self.value, x)
        return x

    def price(self, judge: cost.Cost) -> cost.Price:
        if not self.value.pixelwise or self.value.identity:
            return super().price(judge)
        return cost.of_map(
            judge, self.value, self._pixels * self.value.in_channels, self._pixels * self.value.out_channels
        )

    @property
    def macs(self) -> int:
        if not self.value.pixelwise:
            return super().macs
        return self._pixels * self.value.out_channels * (self.value.in_channels // self.value.groups)

    @property
    def _pixels(self) -> int:
        """How many pixels there are where the convolution stands."""
        return math.prod(self.kernel.shape) // int(self.sizes[self.kernel][0])

    def as_large(self, node: Node) -> Node | None:
        return None

    def stretches(self) -> list[tuple[Node, tuple[Node, ...]]]:
        """See the function of this name."""
        return stretches(self.base, self.nodes, self.steps)


@dataclass(frozen=True, eq=False)
class SideFold(Fold):
    """A convolution on one side of a join. It includes `share`, its part of the scale and shift behind the join."""

    made_by: ClassVar[str] = "distribute"

    share: AffineConv = field(kw_only=True)

    @property
    def beyond(self) -> tuple[str, ...]:
        return ("share of a norm",)

    def original(self, given: Mapping[Node, Tensor]) -> Tensor:
        return self.share(super().original(given))


@dataclass(frozen=True, eq=False)
class JoinFold(Fold):
    """A scale and shift of a join. Nothing is left of it, as the sides have taken their `shares`."""

    made_by: ClassVar[str] = "distribute"

    shares: Mapping[Node, AffineConv] = field(kw_only=True)

    @property
    def proven(self) -> tuple[Node, ...]:
        """Its own nodes, and the joins between them and the sides."""
        found, waiting = dict.fromkeys(self.nodes), [self.base]
        while waiting:
            node = waiting.pop()
            found[node] = None
            waiting += () if node in self.shares else node.operands
        return tuple(found)

    @property
    def resizable(self) -> bool:
        return False

    @property
    def inputs(self) -> tuple[Node, ...]:
        return tuple(self.shares)

    def apply(self, given: Mapping[Node, Tensor]) -> Tensor:
        joined: Tensor = evaluate(self.base, {side: self.shares[side](x) for side, x in given.items()})
        return joined

    def original(self, given: Mapping[Node, Tensor]) -> Tensor:
        scaled: Tensor = evaluate(self.sink, {side: x.clone() for side, x in given.items()})
        return scaled


@dataclass(frozen=True, eq=False)
class HorizontalFold(Fold):
    """Some channels of `fusion`, one convolution that computes several folds of one tensor."""

    made_by: ClassVar[str] = "horizontal"

    fusion: Fusion = field(kw_only=True)

    @property
    def shared(self) -> tuple[Fusion, ...]:
        return (self.fusion,)

    def apply(self, given: Mapping[Node, Tensor]) -> Tensor:
        return self.fusion.part(_emitted(self.fusion.value, given[self.base]), self.sink)

    def price(self, judge: cost.Cost) -> cost.Price:
        return cost.of_view(judge)

    def describe(self) -> str:
        return self.fusion.describe(self.sink)


@dataclass(frozen=True, eq=False)
class Fusion:
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

    @cached_property
    def places(self) -> tuple[str, ...]:
        """The modules that computed the sinks. There may be a thousand of them."""
        return tuple(sink.path for sink in self.sinks)

    def part(self, whole: Tensor, sink: Node) -> Tensor:
        """What one of the sinks is, of what `value` has computed."""
        start, stop = self._channels(sink)
        return whole.narrow(self.channel, start, stop - start)

    def price(self, judge: cost.Cost) -> cost.Price:
        """What it costs for all its folds together: the convolution and the split."""
        return cost.of_fold(judge, self.value) + cost.of_view(judge)

    def describe(self, sink: Node) -> str:
        """The convolution, the channels of one of the sinks, and what else it computes."""
        index = self.sinks.index(sink)
        start, stop = self._channels(sink)
        others = [*self.places[:index], *self.places[index + 1 :]]
        more = f" and {len(others) - _LISTED} more" if len(others) > _LISTED else ""
        return f"{describe(self.value)}, channels {start}-{stop - 1}, merged with {', '.join(others[:_LISTED])}{more}"

    def _channels(self, sink: Node) -> tuple[int, int]:
        index = self.sinks.index(sink)
        start = sum(self.widths[:index])
        return start, start + self.widths[index]


def _emitted(value: AffineConv, x: Tensor) -> Tensor:
    """What the layers compute as which a value is written back."""
    frames, value = layer_form(value)
    for mode, sides in frames:
        x = pad_in_mode(x, sides, mode)
    return value(x)


def last_kernel(nodes: Sequence[Node]) -> Node:
    """The last of the nodes that is a convolution, a linear layer or a product with a constant."""
    return next(node for node in reversed(nodes) if node.op in KERNELS)


def stretches(base: Node, nodes: Sequence[Node], steps: Collection[Node]) -> list[tuple[Node, tuple[Node, ...]]]:
    """What stands between the steps, one of which every path leads through: the tensor read, and its operations."""
    parts: list[tuple[Node, tuple[Node, ...]]] = []
    start, own = base, list[Node]()
    for node in nodes:
        if node not in steps:
            own.append(node)
        if own and (node in steps or node is nodes[-1]):
            parts.append((start, tuple(own)))
        if node in steps:
            start, own = node, []
    return parts
