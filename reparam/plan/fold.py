"""Folds: one convolution, and the operations that it replaces.

There are five classes. They differ in the search that makes them and in what is computed afterwards:

    Fold            one convolution of the base tensor                 region.py
    ViewedFold      the same, among views that stay                    region.py
    SideFold        a side of a join, with its share of a scale        distribute.py
    JoinFold        a scale behind a join, which the sides have taken  distribute.py
    HorizontalFold  some channels of one wider convolution             horizontal.py

Each class computes its result (`apply`), prices itself (`price`, `macs`) and says what it has become (`describe`), so
callers treat all of them alike.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, ClassVar, NamedTuple

from torch import Tensor

from reparam.algebra.affine import AffineConv
from reparam.algebra.describe import describe
from reparam.algebra.kernels import pad_in_mode
from reparam.algebra.layer_form import layer_form
from reparam.capture.evaluate import evaluate
from reparam.capture.graph import Node
from reparam.capture.ops import KERNELS, TRANSPOSED_CONVOLUTIONS
from reparam.plan import cost
from reparam.plan.shapes import Extents

_MOST_LISTED = 12  # modules in a description


@dataclass(frozen=True, eq=False)
class Fold:
    """One convolution, `value`, computes `sink` from `base`.

    nodes: the operations that it replaces, in order; the last one is `sink`.
    sizes: of the base and the nodes, a key each; equal keys mean equal sizes for every size of the base.
    extents: the lengths of their dimensions, and what has to be proven of the reshapes among them.
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
        """The node whose place the convolution takes."""
        return self.sink

    @property
    def shared(self) -> tuple[Fusion, ...]:
        """The fusions that compute this fold and others."""
        return ()

    @property
    def beyond(self) -> tuple[str, ...]:
        """What it computes besides its nodes, in words."""
        return ()

    @property
    def reshapes(self) -> Collection[Node]:
        """The nodes that are given sizes, which have to be proven right for every input."""
        return self.extents.required

    @property
    def path(self) -> tuple[Node, ...]:
        """The nodes that code has to compute one after another, for every input."""
        return self.nodes

    @property
    def resizable(self) -> bool:
        """Whether it accepts inputs of other sizes than the recorded one."""
        return bool(self.value.axes) and not self.reshapes and not self.value.anchor.fixed

    @property
    def inputs(self) -> tuple[Node, ...]:
        """The tensors from which `apply` and `original` compute the sink."""
        return (self.base,)

    def apply(self, given: Mapping[Node, Tensor]) -> Tensor:
        """The sink as the fold computes it from its inputs, in float64."""
        return _run_layers(self.value, given[self.base])

    def original(self, given: Mapping[Node, Tensor]) -> Tensor:
        """The sink as the user's operations compute it from the same inputs."""
        tensors = {self.base: given[self.base].clone()}  # in-place operations write to it
        for node in self.nodes:
            evaluate(node, tensors)
        return tensors[self.sink]

    def price(self, cost_model: cost.Cost) -> cost.Price:
        """The price of its convolution; steps, and fusions that it shares with others, are not included."""
        return cost.of_fold(cost_model, self.value)

    @property
    def macs(self) -> int:
        """Multiply-adds at the recorded size."""
        return cost.macs_of_fold(self.value)

    def describe(self) -> str:
        """The layer that it has become, such as `Conv2d 64->64 3x3 s1 p1`."""
        return describe(self.value)

    def same_size_end(self, node: Node) -> Node | None:
        """The end of the fold that has the size of one of its nodes for every size of the base, if one has."""
        size = self.sizes.get(node)
        return next((end for end in (self.sink, self.base) if size is not None and self.sizes.get(end) == size), None)

    def takes_output_size(self, nodes: Sequence[Node], value: AffineConv | None) -> bool:
        """Whether the layer in the place of `nodes` accepts an output size that their module is called with.

        A transposed convolution may be called so. `value`, which replaces the nodes, then has to be transposed as well,
        and compute a tensor of that size.
        """
        if not any(node.op in TRANSPOSED_CONVOLUTIONS for node in nodes):
            return True
        return value is not None and value.is_transposed and self.same_size_end(nodes[-1]) is self.sink


@dataclass(frozen=True, eq=False)
class ViewedFold(Fold):
    """A convolution among its `steps`: operations that rearrange or average pixels and are computed as before.

    kernel: the operation whose place the convolution takes.
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
                x = _run_layers(self.value, x)
        return x

    def price(self, cost_model: cost.Cost) -> cost.Price:
        if not self.value.pixelwise or self.value.identity:
            return super().price(cost_model)
        return cost.of_map(
            cost_model, self.value, self._pixels * self.value.in_channels, self._pixels * self.value.out_channels
        )

    @property
    def macs(self) -> int:
        if not self.value.pixelwise:
            return super().macs
        return self._pixels * self.value.out_channels * (self.value.in_channels // self.value.groups)

    @property
    def _pixels(self) -> int:
        """The number of pixels that the convolution computes."""
        return math.prod(self.kernel.shape) // int(self.sizes[self.kernel][0])

    def same_size_end(self, node: Node) -> Node | None:
        return None

    def stretches(self) -> list[Stretch]:
        """The stretches between its steps."""
        return stretches(self.base, self.nodes, self.steps)


@dataclass(frozen=True, eq=False)
class SideFold(Fold):
    """A convolution on one side of a join. It includes `share`, a part of the scale and shift behind the join."""

    made_by: ClassVar[str] = "distribute"

    share: AffineConv = field(kw_only=True)

    @property
    def beyond(self) -> tuple[str, ...]:
        return ("share of a norm",)

    def original(self, given: Mapping[Node, Tensor]) -> Tensor:
        return self.share(super().original(given))


@dataclass(frozen=True, eq=False)
class JoinFold(Fold):
    """A scale and shift behind a join. It computes nothing: the sides have taken their `shares`."""

    made_by: ClassVar[str] = "distribute"

    shares: Mapping[Node, AffineConv] = field(kw_only=True)

    @property
    def path(self) -> tuple[Node, ...]:
        """Its own nodes, and the joins between them and the sides."""
        path, pending = dict.fromkeys(self.nodes), [self.base]
        while pending:
            node = pending.pop()
            path[node] = None
            pending += () if node in self.shares else node.operands
        return tuple(path)

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
    """Some channels of a `fusion`: one convolution that computes several folds of one tensor."""

    made_by: ClassVar[str] = "horizontal"

    fusion: Fusion = field(kw_only=True)

    @property
    def shared(self) -> tuple[Fusion, ...]:
        return (self.fusion,)

    def apply(self, given: Mapping[Node, Tensor]) -> Tensor:
        return self.fusion.part(_run_layers(self.fusion.value, given[self.base]), self.sink)

    def price(self, cost_model: cost.Cost) -> cost.Price:
        return cost.of_view(cost_model)

    def describe(self) -> str:
        return self.fusion.describe(self.sink)


@dataclass(frozen=True, eq=False)
class Fusion:
    """One convolution in the place of several that read one tensor.

    value: computes the channels of all `sinks`, in order; widths: the number of channels of each.
    views: the lengths of dimensions, and what has to be proven of the views that code takes of the sinks. After the
        fusion these are views of a wider tensor.
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
        """The modules that computed the sinks. There may be a thousand, so they are cached."""
        return tuple(sink.path for sink in self.sinks)

    def part(self, result: Tensor, sink: Node) -> Tensor:
        """The channels of one sink, of the result of `value`."""
        start, stop = self._channels(sink)
        return result.narrow(self.channel, start, stop - start)

    def price(self, cost_model: cost.Cost) -> cost.Price:
        """The price of all its folds together: the convolution and the split."""
        return cost.of_fold(cost_model, self.value) + cost.of_view(cost_model)

    def describe(self, sink: Node) -> str:
        """The convolution, the channels of one sink, and the modules that it is fused with."""
        index = self.sinks.index(sink)
        start, stop = self._channels(sink)
        others = [*self.places[:index], *self.places[index + 1 :]]
        more = f" and {len(others) - _MOST_LISTED} more" if len(others) > _MOST_LISTED else ""
        return (
            f"{describe(self.value)}, channels {start}-{stop - 1}, fused with {', '.join(others[:_MOST_LISTED])}{more}"
        )

    def _channels(self, sink: Node) -> tuple[int, int]:
        index = self.sinks.index(sink)
        start = sum(self.widths[:index])
        return start, start + self.widths[index]


class Stretch(NamedTuple):
    """Operations between two steps of a fold, and the tensor that they read."""

    base: Node
    nodes: tuple[Node, ...]


def stretches(base: Node, nodes: Sequence[Node], steps: Collection[Node]) -> list[Stretch]:
    """The operations between the steps, in order; every path leads through every step."""
    result: list[Stretch] = []
    start, between = base, list[Node]()
    for node in nodes:
        if node not in steps:
            between.append(node)
        if between and (node in steps or node is nodes[-1]):
            result.append(Stretch(start, tuple(between)))
        if node in steps:
            start, between = node, []
    return result


def _run_layers(value: AffineConv, x: Tensor) -> Tensor:
    """Compute a value as its layers will: the paddings beside it first."""
    paddings, value = layer_form(value)
    for mode, sides in paddings:
        x = pad_in_mode(x, sides, mode)
    return value(x)


def last_kernel(nodes: Sequence[Node]) -> Node:
    """The last node that is a convolution, a linear layer or a product with a constant."""
    return next(node for node in reversed(nodes) if node.op in KERNELS)
