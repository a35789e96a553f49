"""A scale and shift behind a sum or a concatenation of several tensors, taken in advance by each of them.

    scale * (a + b) + shift = (scale * a + shift) + scale * b

and of a concatenation each part takes its own channels. No convolution reaches across such a join, as its sides start
from different tensors; but where every side comes out of a kernel that nobody else reads, these kernels take the scale
and the shift, and the batch norm behind the join is nothing any more. A side that cannot take its part keeps the whole
as it is.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Set
from dataclasses import dataclass, replace
from typing import Any, TypeGuard

from reparam.algebra.affine import AffineConv, Anchor, Lazy, Number
from reparam.algebra.axis import Axis
from reparam.capture.graph import Node, Record, leaves_of, served
from reparam.plan.cost import KERNELS
from reparam.plan.fold import Fold
from reparam.rules import RULES, Value
from reparam.rules.interpret import Interpretation

_SUMS = ("add", "sub")


@dataclass(frozen=True)
class Spread:
    """`gone` computes nothing any more, as the folds `ahead` have taken their parts."""

    gone: Fold
    ahead: tuple[Fold, ...]

    @property
    def folds(self) -> tuple[Fold, ...]:
        return (*self.ahead, self.gone)


def spreads(record: Record, found: Interpretation, folds: Mapping[Node, Fold], live: set[Node]) -> Iterator[Spread]:
    """Every scale and shift behind a join whose sides can all take their part; `folds` are those planned, by sink."""
    spreader = _Spreader(record, found, folds, live)
    for node in record.nodes:
        if node in live and node not in spreader.inside and not node.constant:
            spread = spreader.over(node)
            if spread is not None:
                yield spread


class _Kept(Exception):
    """A side that cannot take its part."""


class _Spreader:
    def __init__(self, record: Record, found: Interpretation, folds: Mapping[Node, Fold], live: Set[Node]) -> None:
        self.live = live
        self.found = found
        self.folds = folds
        self.inside = {node for fold in folds.values() for node in fold.nodes}
        self.fixed = {*record.outputs, *record.walls}
        self.readers = record.readers()
        self.based = {fold.base: fold for fold in folds.values()}

    def over(self, join: Node) -> Spread | None:
        """What is behind `join`, spread over its sides; None where there is nothing, or a side cannot take it."""
        behind = self._behind(join)
        if behind is None:
            return None
        whole, map_ = behind
        try:
            ahead = tuple(self._sides(join, map_))
        except _Kept:
            return None
        given = {fold.sink: fold.advance for fold in ahead if fold.advance is not None}
        nothing = AffineConv.of(Anchor(join, join.shape), len(map_.axes))
        return Spread(replace(whole, value=nothing, given=given), ahead)

    def _behind(self, join: Node) -> tuple[Fold, AffineConv] | None:
        """The scale and shift that alone reads `join`, and the fold of the operations that it is made of."""
        if join.op not in (*_SUMS, "cat") or not self._alone(join):
            return None
        fold = self.based.get(join)
        nodes = fold.nodes if fold is not None else tuple(self._chain(join))
        within = all(self._readers(node) <= set(nodes) for node in nodes[:-1])
        if not nodes or not within or not self.found.dominates(join, nodes[-1]):
            return None
        value = self.found.value(join, nodes[-1])
        if not _scales(value) or any(node.inplace for node in nodes):
            return None
        sizes = dict.fromkeys((join, *nodes), (value.in_channels, [Axis().sizing for _ in value.axes]))
        return fold or Fold(join, nodes[-1], value, nodes, (), sizes), value

    def _chain(self, join: Node) -> Iterator[Node]:
        """The operations, one after the other, that do nothing but scale and shift what `join` makes."""
        node = join
        while self._alone(node) and (node is join or node not in self.found.stops):
            (reader,) = self._readers(node)
            if reader in self.inside or reader not in self.found.above or not self.found.dominates(join, reader):
                return
            if reader.inplace or not _scales(self.found.value(join, reader)):
                return
            yield reader
            node = reader

    def _alone(self, node: Node) -> bool:
        """Whether one operation, once, is all that reads it."""
        inputs = [operand for reader in self._readers(node) for operand in reader.inputs]
        return len(self._readers(node)) == 1 and inputs.count(node) == 1 and node not in self.fixed

    def _readers(self, node: Node) -> set[Node]:
        """The operations that read it and that an output depends on."""
        return {reader for reader in node.readers if reader in self.live}

    def _sides(self, join: Node, map_: AffineConv) -> Iterator[Fold]:
        """The folds that compute the sides of a join, each with its part of a scale and shift."""
        for side, part in self._parts(join, map_):
            if not self._alone(side) or side.dtype != join.dtype:
                raise _Kept
            fold = self.folds.get(side) or self._kernel(side)
            if fold is not None and fold.value.identity and self._alone(fold.base):  # a dropout, a check
                fold = self.folds.get(fold.base) or self._kernel(fold.base)
            if fold is not None:
                yield self._advanced(fold, part)
            elif side.op in (*_SUMS, "cat") and side not in self.inside:
                yield from self._sides(side, part)
            else:
                raise _Kept

    def _parts(self, join: Node, map_: AffineConv) -> Iterator[tuple[Node, AffineConv]]:
        """Each side of a join with its part of the map."""
        given = _arguments(join)
        joined = join.op == "cat"
        sides = given["tensors"] if joined else [given["input"], given["other"]]
        if not all(isinstance(side, Node) and not side.constant for side in sides):
            raise _Kept
        if joined:
            channel = 1 if map_.axes else len(join.shape) - 1
            if given["dim"] % len(join.shape) != channel:
                raise _Kept
            start = 0
            for side in sides:
                stop = start + side.shape[channel]
                yield side, _part(map_, side, start, stop)
                start = stop
        else:
            if not all(side.shape == join.shape for side in sides):
                raise _Kept
            for i, side in enumerate(sides):
                yield side, _part(map_, side, 0, map_.out_channels, shifted=i == 0)

    def _kernel(self, side: Node) -> Fold | None:
        """A convolution that stays as it is in the plan, as a fold of itself."""
        if side.op not in KERNELS or side not in self.found.above or side in self.inside:
            return None
        base = side.operands[0]
        value = self.found.value(base, side)
        return Fold(base, side, value, (side,), (), {}) if isinstance(value, AffineConv) else None

    def _advanced(self, fold: Fold, part: AffineConv) -> Fold:
        """The fold with its part; its kernels must be read by nobody else, not even by another call of them.

        The batch norm of a fold may be: then the fold is written beside it.
        """
        kernels = [node for node in fold.nodes if node.op in KERNELS]
        readers = {reader for leaf in leaves_of(kernels) for reader in self.readers[id(leaf)]} & self.live
        shared = any(not served(reader, fold.nodes) for reader in readers)
        if not kernels or shared or fold.steps or len(fold.value.axes) != len(part.axes):
            raise _Kept
        return replace(fold, value=fold.value.scale_shift(_flat(part.kernel), part.bias), advance=part)


def _scales(value: Value) -> TypeGuard[AffineConv]:
    """Whether it is a scale and shift, and not nothing."""
    return isinstance(value, AffineConv) and value.pointwise and not value.identity


def _arguments(join: Node) -> Mapping[str, Any]:
    """What the join is called with, by the names that its rule gives it."""
    try:
        bound = RULES[join.op].signature.bind(*join.args, **join.kwargs)
    except TypeError:  # a call that has no rule
        raise _Kept from None
    bound.apply_defaults()
    return bound.arguments


def _part(map_: AffineConv, side: Node, start: int, stop: int, shifted: bool = True) -> AffineConv:
    """The channels from `start` to `stop` of a scale and shift, as one of `side`."""
    scale = _flat(map_.kernel, slice(start, stop))
    bias = map_.bias
    shift = _flat(bias, slice(start, stop)) if bias is not None and shifted else None
    return AffineConv.of(Anchor(side, side.shape), len(map_.axes)).scale_shift(scale, shift)


def _flat(number: Number, part: slice = slice(None)) -> Number:
    return Lazy(lambda: number().flatten()[part])
