"""How long the dimensions of a fold's tensors are for every input, and what its reshapes have to be given.

Two cases. Where a reshape cuts the channel dimension apart or turns pixels into channels, every length follows exactly
from those of the base. Where all steps keep the channel dimension intact, pixels may be anywhere: only the channels
have to be known, and the other lengths may stay unknown.
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

_ONE = Length.constant(1)
_DIMENSION_LOST = (
    "its channels may have been pixels: the tensor that it starts from has lost a dimension",
    "a slice that keeps the dimension (`x[:, :1]`), or a sum with keepdim=True, would fold",
)


@dataclass(frozen=True)
class IntactChannels:
    """A reshape that keeps the channel dimension: the number of entries before, in and after it.

    position: where the reshape's arguments give the number of channels.
    checked: a later reader of the channels accepts no other number of them.
    """

    before: Length
    channels: Length
    after: Length
    position: int
    checked: bool


@dataclass(frozen=True)
class Extents:
    """The lengths of a fold's tensors, and what has to be proven of the sizes that its reshapes are given.

    required: for each such node its whole shape, or that it keeps the channels.
    """

    lengths: Mapping[Node, Lengths] = field(default_factory=dict)
    required: Mapping[Node, Lengths | IntactChannels] = field(default_factory=dict)


def extents(walk: Interpretation, base: Node, nodes: Sequence[Node]) -> Extents:
    """The extents of `base` and of the `nodes` behind it. Raises Refusal where they are unknown."""
    values: dict[Node, Value] = {node: walk.value(base, node) for node in nodes}
    views = [value for value in values.values() if isinstance(value, View)]
    reshapes = [node for node in nodes if node.op in SIZED_RESHAPES]
    squeezes = [node for node in nodes if node.op == "squeeze"]
    view_ends = any(isinstance(values.get(n.operands[0]), View) and not isinstance(values[n], View) for n in nodes)
    start = _base_value(walk, base, values.values())
    if reshapes and start.axes and _lost_dimension(walk, base):
        raise Refusal(*_DIMENSION_LOST)
    if view_ends or not all(view.whole for view in views):
        result = _exact_extents(start, base, nodes, values, reshapes)
    elif views and (reshapes or squeezes):
        result = _IntactFlow(start, base, nodes, values).extents()
    else:
        result = Extents()
    for node in squeezes:
        _require_single_entry(node, base, result.lengths)
    return result


def same_size_origin(node: Node) -> Node:
    """The first tensor on the way to this one that has the same size for every input."""
    while (before := same_size_input(node)) is not None:
        node = before
    return node


def same_size_input(node: Node) -> Node | None:
    """The tensor that this one is computed from, if both have the same size for every input."""
    same_size = node.op in SHAPE_PRESERVING and len(node.operands) == 1
    return node.operands[0] if same_size else None


def _require_single_entry(squeeze: Node, base: Node, lengths: Mapping[Node, Lengths]) -> None:
    """Raise Refusal unless the squeezed dimension has one entry for every input; otherwise torch keeps it."""
    operand = squeeze.operands[0]
    arguments = RULES["squeeze"].signature.bind(*squeeze.args, **squeeze.kwargs).arguments
    dim = arguments["dim"] % len(operand.shape)
    length = dict(enumerate(lengths.get(operand, ()))).get(dim)
    pooled = _pooled_dimensions(base)
    single = [base_length for base_dim, base_length in enumerate(lengths.get(base, ())) if base_dim in pooled]
    if length not in (_ONE, *single):
        raise Refusal("it drops a dimension at some sizes and none at others", "a reshape would fold")


def _lost_dimension(walk: Interpretation, node: Node) -> bool:
    """Whether the operation that gave `node` its shape reads a tensor of more dimensions, so channels may be pixels.

    A reshape keeps all entries, and its own lengths are proven.
    """
    source = walk.origin(node, _sets_shape)
    assert source is not None
    return source.op not in RESHAPES and any(len(operand.shape) > len(source.shape) for operand in source.operands)


def _sets_shape(_: Interpretation, node: Node) -> bool:
    """Whether none of its operands has its shape."""
    return all(operand.shape != node.shape for operand in node.operands)


def _pooled_dimensions(node: Node) -> Collection[int]:
    """The dimensions that an adaptive pooling module of torch has made 1 for every input."""
    pool = same_size_origin(node)
    if pool.op not in ADAPTIVE_POOLS:
        return []
    return [dim for dim in range(2, len(pool.shape)) if pool.shape[dim] == 1 and _output_size_is_one(pool, dim)]


def _output_size_is_one(pool: Node, dim: int) -> bool:
    """Whether a module of torch calls the pool with output size 1, so the size is no function of the input."""
    given = pool.args[1] if len(pool.args) > 1 else pool.kwargs.get("output_size")
    size = given[dim - 2] if isinstance(given, (tuple, list)) else given
    return size == 1 and pool.call is not None and type(pool.call.module).__module__.startswith("torch.nn.")


def _base_value(walk: Interpretation, base: Node, values: Iterable[Value]) -> AffineConv:
    """The base as a value, with its channels on the dimension where the fold reads them."""
    anchor = anchor_value(base, walk.fixed_size)
    for value in values:
        inside = value.inside if isinstance(value, View) else value
        if isinstance(inside, AffineConv) and not (inside is value and inside.identity):
            return AffineConv.of(anchor.anchor, len(inside.axes))
    return anchor


def _exact_extents(
    start: AffineConv, base: Node, nodes: Iterable[Node], values: Mapping[Node, Value], reshapes: Iterable[Node]
) -> Extents:
    """Each length in terms of those of the base: channels are cut apart, or pixels become channels."""
    lengths = {base: lengths_of(start)}
    for node in nodes:
        value, before = values[node], values.get(node.operands[0])
        moved = None
        if isinstance(before, View) and before.moves is not None:
            result = apply_rule_to_view(node, before)
            if isinstance(result, Rearranged):
                moved = Rearranged(before.inside, (*before.moves, *result.moves))
        if moved is None and isinstance(value, View) and value.moves is not None:
            moved = Rearranged(value.inside, value.moves)
        if moved is not None:
            lengths[node] = IndexMap.of(moved.input, moved.moves).lengths(lengths_of(moved.input))
        elif isinstance(value, AffineConv):
            lengths[node] = lengths[base] if value.identity else lengths_of(value)
    return Extents(lengths, {node: lengths.get(node, ()) for node in reshapes})


@dataclass(eq=False)
class _IntactFlow:
    """Where channels stay intact: lengths flow from node to node, and a length that nothing determines is unknown."""

    start: AffineConv
    base: Node
    nodes: Sequence[Node]
    values: Mapping[Node, Value]
    lengths: dict[Node, Lengths] = field(default_factory=dict)
    required: dict[Node, Lengths | IntactChannels] = field(default_factory=dict)

    def extents(self) -> Extents:
        self.lengths[self.base] = lengths_of(self.start)
        for node in self.nodes:
            value = self.values[node]
            if isinstance(value, AffineConv):
                self.lengths[node] = self.lengths[self.base] if value.identity else lengths_of(value)
                if node.op in SIZED_RESHAPES:
                    self.required[node] = self.lengths[node]
            elif isinstance(value, View):
                self.lengths[node] = self._view_lengths(node, value)
        return Extents(self.lengths, self.required)

    def _view_lengths(self, node: Node, value: View) -> Lengths:
        """The lengths of a rearranged tensor, from those of its operand."""
        operand = node.operands[0]
        source = self.values.get(operand, self.start)
        if operand not in self.lengths or len(node.operands) > 1 or not isinstance(source, (AffineConv, View)):
            return self._unknown_lengths(node, value)
        lengths = self.lengths[operand]
        channel = source.channel if isinstance(source, View) else channel_dimension(source)
        result = apply_rule_to_view(node, source) if isinstance(source, View) else value
        moves = result.moves if isinstance(result, (Rearranged, View)) else None
        assert channel is not None
        if isinstance(result, AffineConv) and result.pixelwise:
            return lengths if result.identity else _with_length(lengths, channel, Length.constant(value.shape[channel]))
        if moves is None:
            return self._resized_lengths(node, value, lengths)
        shape = tuple(operand.shape)
        for move in moves:
            lengths, shape, channel = self._after_move(node, move, lengths, shape, channel)
        return lengths

    def _resized_lengths(self, node: Node, value: View, before: Lengths) -> Lengths:
        """The lengths behind an operation that averages pixels or reads their neighbours."""
        name = node.op
        if name == "mean":
            arguments = RULES[name].signature.bind(*node.args, **node.kwargs).arguments
            dims = {dim % len(before) for dim in as_ints(arguments["dim"], 1)}
            lengths = [_ONE if dim in dims else length for dim, length in enumerate(before)]
            keepdim = arguments.get("keepdim")
            return tuple(length for dim, length in enumerate(lengths) if keepdim or dim not in dims)
        if name in ADAPTIVE_POOLS and set(value.shape[2:]) == {1}:
            self.required[node] = ones = (_ONE,) * len(value.shape[2:])
            return (*before[:1], Length.constant(value.shape[1]), *ones)
        return self._unknown_lengths(node, value, before[:1] if name in BATCH_PRESERVING else ())

    def _unknown_lengths(self, node: Node, value: View, batch: Lengths = ()) -> Lengths:
        """Only the channels are known, and the batch where it is given."""
        sizes = enumerate(value.shape)
        lengths = tuple(Length.constant(size) if dim == value.channel else _unknown(node, dim) for dim, size in sizes)
        return (*batch, *lengths[1:]) if batch and value.channel else lengths

    def _after_move(
        self, node: Node, move: Move, lengths: Lengths, shape: tuple[int, ...], channel: int
    ) -> tuple[Lengths, tuple[int, ...], int]:
        """The lengths, the recorded shape and the channel dimension after a move."""
        moved_shape, moved_channel = track_channel(shape, channel, [move])
        assert moved_channel is not None
        match move:
            case Permute(order):
                moved = tuple(lengths[dim] for dim in order)
            case Select(dim):
                moved = (*lengths[:dim], *lengths[dim + 1 :])
            case Reshape(_, start, stop):
                made = self._after_reshape(node, move, lengths, channel, moved_channel)
                moved = (*lengths[:start], *made, *lengths[stop:])
        return moved, moved_shape, moved_channel

    def _after_reshape(self, node: Node, move: Reshape, before: Lengths, channel: int, moved_channel: int) -> Lengths:
        """The dimensions that a reshape makes of those that it reads."""
        start, stop, count = move.start, move.stop, len(move.lengths)
        if not start <= channel < stop:
            return _split(node, start, count, math.prod(before[start:stop], start=_ONE))
        front = math.prod(before[start:channel], start=_ONE)
        back = math.prod(before[channel + 1 : stop], start=_ONE)
        if node.op not in SIZED_RESHAPES:
            return (front * before[channel] * back,)  # flatten
        position = moved_channel - start
        checked = before[channel] == Length.constant(move.lengths[position]) and self._readers_check_channels(node)
        self.required[node] = IntactChannels(front, before[channel], back, position, checked)
        outer = _split(node, start, position, front)
        inner = _split(node, moved_channel + 1, start + count - moved_channel - 1, back)
        return (*outer, before[channel], *inner)

    def _readers_check_channels(self, node: Node) -> bool:
        """Whether some reader of the channels accepts no other number of them."""
        for reader in node.readers:
            if reader not in self.values or not isinstance(self.values[reader], View):
                continue
            name = reader.op
            if name in CHANNEL_COUNTING or (name not in RESHAPES and self._readers_check_channels(reader)):
                return True
        return False


def _split(node: Node, first: int, count: int, entries: Length) -> Lengths:
    """`count` dimensions of a node, from `first` on, that have so many entries together."""
    if count == 1:
        return (entries,)
    return (_ONE,) * count if entries == _ONE else tuple(_unknown(node, first + i) for i in range(count))


def _with_length(lengths: Lengths, dim: int, length: Length) -> Lengths:
    return (*lengths[:dim], length, *lengths[dim + 1 :])


def _unknown(node: Node, dim: int) -> Length:
    """The length of a dimension that nothing determines."""
    return Length(Fraction(1), ((node, dim),))
