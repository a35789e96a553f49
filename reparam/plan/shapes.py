"""How long the dimensions of what a fold computes are, for every input; and what has to be shown of its reshapes.

Where rearranged pixels become channels, or channels pixels, each length on the way counts. Where channels stay whole,
pixels may lie anywhere: nothing but that has to hold for every input, and lengths that cannot be told are unknowns.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from fractions import Fraction

from reparam.algebra.affine import AffineConv
from reparam.algebra.index_map import IndexMap, Length, Move, Permute, Rearranged, Reshape, Select, lengths_of
from reparam.algebra.views import View, track_channel
from reparam.capture.graph import Node
from reparam.capture.ops import (
    ADAPTIVE_POOLS,
    BATCH_PRESERVING,
    CHANNEL_COUNTING,
    RESHAPES,
    SHAPE_PRESERVING,
    SIZED_RESHAPES,
)
from reparam.errors import Refusal
from reparam.rules import RULES, Value
from reparam.rules.interpret import Interpretation, anchor_value, apply_rule_to_view
from reparam.rules.table import as_ints, channel_dimension

Lengths = tuple[Length, ...]

_REDUCED = (
    "its channels may have been pixels: the tensor that it starts from has lost a dimension",
    "pick with a slice (`x[:, :1]`), or sum with keepdim=True",
)


@dataclass(frozen=True)
class Whole:
    """A reshape that leaves channels whole: so many entries before, in and behind the dimension that holds them.

    at: the place of that dimension among the sizes that the reshape is given.
    counted: whatever reads the channels afterwards takes as many of them and no others.
    """

    before: Length
    channels: Length
    after: Length
    at: int
    counted: bool


@dataclass(frozen=True)
class Extents:
    """The lengths of nodes, and what the sizes that each reshape among them is given are to be shown to be."""

    lengths: Mapping[Node, Lengths] = field(default_factory=dict)
    shown: Mapping[Node, Lengths | Whole] = field(default_factory=dict)


def extents(found: Interpretation, base: Node, nodes: Sequence[Node]) -> Extents:
    """Those of `base` and of `nodes` behind it. Raises Refusal where they cannot be told."""
    values: dict[Node, Value] = {node: found.value(base, node) for node in nodes}
    views = [value for value in values.values() if isinstance(value, View)]
    named = [node for node in nodes if node.op in SIZED_RESHAPES]
    squeezed = [node for node in nodes if node.op == "squeeze"]
    ended = (n for n in nodes if isinstance(values.get(n.operands[0]), View) and not isinstance(values[n], View))
    start = _start(found, base, values.values())
    if named and start.axes and _reduced(found, base):
        raise Refusal(*_REDUCED)
    if not all(view.whole for view in views) or any(True for _ in ended):
        told = _apart(start, base, nodes, values, named)
    else:
        told = _Followed(start, base, nodes, values).extents() if views and (named or squeezed) else Extents()
    for node in squeezed:
        _require_one(node, base, told.lengths)
    return told


def _require_one(node: Node, base: Node, lengths: Mapping[Node, Lengths]) -> None:
    """Raise Refusal unless the dimension that a node drops has one entry for every input: else it drops none."""
    before = node.operands[0]
    given = RULES["squeeze"].signature.bind(*node.args, **node.kwargs).arguments
    dim = given["dim"] % len(before.shape)
    told = dict(enumerate(lengths.get(before, ()))).get(dim)
    single = {Length.constant(1), *(length for dim, length in enumerate(lengths.get(base, ())) if dim in _pooled(base))}
    if told not in single:
        raise Refusal("it drops a dimension at some sizes and none at others", "a reshape would fold")


def _reduced(walk: Interpretation, node: Node) -> bool:
    """Whether it, or the tensor of its shape that it is computed of, has fewer dimensions than what that was made of.

    Dimension 1 is then perhaps what has been pixels; a reshape keeps all entries, and its own lengths are shown.
    """
    first = walk.origin(node, _shaped)
    assert first is not None
    reshaped = first.op in RESHAPES
    return not reshaped and any(len(operand.shape) > len(first.shape) for operand in first.operands)


def _shaped(_: Interpretation, node: Node) -> bool:
    """Whether nothing that it is computed from has its shape."""
    return all(operand.shape != node.shape for operand in node.operands)


def _pooled(node: Node) -> Collection[int]:
    """The dimensions that are 1 for every input, as a pooling module of torch has made them."""
    whole = as_large(node)
    pools = whole.op in ADAPTIVE_POOLS
    return [dim for dim in range(2, len(whole.shape)) if pools and whole.shape[dim] == 1 and _fixed(whole, dim)]


def _fixed(node: Node, dim: int) -> bool:
    """Whether it is told a literal for the length of a dimension, by a module that hands it the same at every size."""
    given = node.args[1] if len(node.args) > 1 else node.kwargs.get("output_size")
    size = given[dim - 2] if isinstance(given, (tuple, list)) else given
    return size == 1 and node.call is not None and type(node.call.module).__module__.startswith("torch.nn.")


def _start(found: Interpretation, base: Node, values: Iterable[Value]) -> AffineConv:
    """The base, with its channels where they are read."""
    for value in values:
        inside = value.inside if isinstance(value, View) else value
        if isinstance(inside, AffineConv) and not (inside is value and inside.identity):
            return AffineConv.of(anchor_value(base, found.fixed_size).anchor, len(inside.axes))
    return anchor_value(base, found.fixed_size)


def _apart(
    start: AffineConv, base: Node, nodes: Iterable[Node], values: Mapping[Node, Value], named: Iterable[Node]
) -> Extents:
    """Where channels are cut apart, or pixels moved to them: each length follows from those of the base."""
    known = {base: lengths_of(start)}
    for node in nodes:
        value, before = values[node], values.get(node.operands[0])
        made = None
        if isinstance(before, View) and before.moves is not None:
            result = apply_rule_to_view(node, before)
            made = Rearranged(before.inside, (*before.moves, *result.moves)) if isinstance(result, Rearranged) else None
        if made is None and isinstance(value, View) and value.moves is not None:
            made = Rearranged(value.inside, value.moves)
        if made is not None:
            known[node] = IndexMap.of(made.input, made.moves).lengths(lengths_of(made.input))
        elif isinstance(value, AffineConv):
            known[node] = known[base] if value.identity else lengths_of(value)
    return Extents(known, {node: known.get(node, ()) for node in named})


def as_large(node: Node) -> Node:
    """The first tensor on the way to this one that is as large for every input."""
    while (before := alike_before(node)) is not None:
        node = before
    return node


def alike_before(node: Node) -> Node | None:
    """The tensor that this one is computed of, if it is as large for every input."""
    alike = node.op in SHAPE_PRESERVING and len(node.operands) == 1
    return node.operands[0] if alike else None


@dataclass(eq=False)
class _Followed:
    """Where channels stay whole: lengths are followed from node to node, and those that nothing tells are unknowns."""

    start: AffineConv
    base: Node
    nodes: Sequence[Node]
    values: Mapping[Node, Value]
    known: dict[Node, Lengths] = field(default_factory=dict)
    shown: dict[Node, Lengths | Whole] = field(default_factory=dict)

    def extents(self) -> Extents:
        self.known[self.base] = lengths_of(self.start)
        for node in self.nodes:
            value = self.values[node]
            if isinstance(value, AffineConv):
                self.known[node] = self.known[self.base] if value.identity else lengths_of(value)
                if node.op in SIZED_RESHAPES:
                    self.shown[node] = self.known[node]
            elif isinstance(value, View):
                self.known[node] = self._behind(node, value)
        return Extents(self.known, self.shown)

    def _behind(self, node: Node, value: View) -> Lengths:
        """The lengths of a rearranged tensor, from those of the one that was read."""
        operand = node.operands[0]
        was = self.values.get(operand, self.start)
        if operand not in self.known or len(node.operands) > 1 or not isinstance(was, (AffineConv, View)):
            return self._unknown(node, value)
        before = self.known[operand]
        channel = was.channel if isinstance(was, View) else channel_dimension(was)
        result = apply_rule_to_view(node, was) if isinstance(was, View) else value
        moves = result.moves if isinstance(result, (Rearranged, View)) else None
        assert channel is not None
        if isinstance(result, AffineConv) and result.pixelwise:
            return before if result.identity else _put(before, channel, Length.constant(value.shape[channel]))
        if moves is None:
            return self._resized(node, value, before)
        shape = tuple(operand.shape)
        for move in moves:
            before, shape, channel = self._moved(node, move, before, shape, channel)
        return before

    def _resized(self, node: Node, value: View, before: Lengths) -> Lengths:
        """The lengths after what averages pixels, or reads their neighbours."""
        name = node.op
        if name == "mean":
            given = RULES[name].signature.bind(*node.args, **node.kwargs).arguments
            dims = {dim % len(before) for dim in as_ints(given["dim"], 1)}
            kept = [Length.constant(1) if dim in dims else length for dim, length in enumerate(before)]
            return tuple(length for dim, length in enumerate(kept) if given.get("keepdim") or dim not in dims)
        if name in ADAPTIVE_POOLS and set(value.shape[2:]) == {1}:
            self.shown[node] = ones = (Length.constant(1),) * len(value.shape[2:])
            return (*before[:1], Length.constant(value.shape[1]), *ones)
        return self._unknown(node, value, before[:1] if name in BATCH_PRESERVING else ())

    def _unknown(self, node: Node, value: View, batch: Lengths = ()) -> Lengths:
        """Nothing but how many channels there are, and the batch, if it is known."""
        sizes = enumerate(value.shape)
        fresh = tuple(Length.constant(size) if dim == value.channel else _new(node, dim) for dim, size in sizes)
        return (*batch, *fresh[1:]) if batch and value.channel else fresh

    def _moved(
        self, node: Node, move: Move, before: Lengths, shape: tuple[int, ...], channel: int
    ) -> tuple[Lengths, tuple[int, ...], int]:
        """The lengths, the recorded shape and the dimension of the channels after a move."""
        after, at = track_channel(shape, channel, [move])
        assert at is not None
        match move:
            case Permute(order):
                made = tuple(before[dim] for dim in order)
            case Select(dim):
                made = (*before[:dim], *before[dim + 1 :])
            case Reshape(_, start, stop):
                made = (*before[:start], *self._reshaped(node, move, before, channel, at), *before[stop:])
        return made, after, at

    def _reshaped(self, node: Node, move: Reshape, before: Lengths, channel: int, at: int) -> Lengths:
        """What a reshape makes of the dimensions that it reads."""
        start, stop, count = move.start, move.stop, len(move.lengths)
        if not start <= channel < stop:
            return _parts(node, start, count, math.prod(before[start:stop], start=Length.constant(1)))
        front = math.prod(before[start:channel], start=Length.constant(1))
        behind = math.prod(before[channel + 1 : stop], start=Length.constant(1))
        if node.op not in SIZED_RESHAPES:
            return (front * before[channel] * behind,)  # flattened
        counted = before[channel] == Length.constant(move.lengths[at - start]) and self._counted(node)
        self.shown[node] = Whole(front, before[channel], behind, at - start, counted)
        ahead = _parts(node, start, at - start, front)
        return (*ahead, before[channel], *_parts(node, at + 1, start + count - at - 1, behind))

    def _counted(self, node: Node) -> bool:
        """Whether something reads the channels, as they are seen here, that takes no other number of them."""
        for reader in node.readers:
            if reader not in self.values or not isinstance(self.values[reader], View):
                continue
            name = reader.op
            if name in CHANNEL_COUNTING or (name not in RESHAPES and self._counted(reader)):
                return True
        return False


def _parts(node: Node, first: int, count: int, whole: Length) -> Lengths:
    """So many dimensions of a node, from `first` on, that have so many entries together."""
    known = (whole,) if count == 1 else (Length.constant(1),) * count if whole == Length.constant(1) else ()
    return known or tuple(_new(node, first + i) for i in range(count))


def _put(lengths: Lengths, dim: int, length: Length) -> Lengths:
    return (*lengths[:dim], length, *lengths[dim + 1 :])


def _new(node: Node, dim: int) -> Length:
    """A length that nothing is known of."""
    return Length(Fraction(1), ((node, dim),))
