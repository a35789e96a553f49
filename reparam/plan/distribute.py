"""Distribution: the sides of a join take in advance the scale and shift that stands behind it.

    scale * (a + b) + shift = (scale * a + shift) + scale * b

Of a concatenation each side takes the scale and shift of its own channels. No convolution reaches across a join, since
its sides start from different tensors. But where every side is computed by a kernel that nobody else reads, those
kernels take the scale and shift, and nothing is left of the batch norm behind the join. Where one side cannot take its
share, all stays as it is.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence, Set
from dataclasses import dataclass, replace
from itertools import accumulate
from typing import Any, TypeGuard

from reparam.algebra.affine import AffineConv, Anchor, Number
from reparam.algebra.axis import Axis
from reparam.algebra.lazy import Lazy
from reparam.capture.graph import Node, Record, model_tensors, used_only_by
from reparam.capture.ops import KERNELS, SUMS
from reparam.plan.fold import Fold, JoinFold, SideFold
from reparam.rules import RULES, Value
from reparam.rules.interpret import Interpretation

_JOINS = (*SUMS, "cat")


@dataclass(frozen=True)
class Distribution:
    """The fold of what stood behind a join, and those of the sides that have taken their shares: all or none."""

    join: JoinFold
    sides: tuple[SideFold, ...]

    @property
    def folds(self) -> tuple[Fold, ...]:
        return (*self.sides, self.join)


def distributions(
    record: Record, walk: Interpretation, folds: Mapping[Node, Fold], live: set[Node]
) -> Iterator[Distribution]:
    """Every scale and shift behind a join whose sides can all take their share; `folds` are those planned, by sink."""
    distributor = _Distributor(record, walk, folds, live)
    for node in record.nodes:
        if node in live and node not in distributor.inside and not node.constant:
            distribution = distributor.over(node)
            if distribution is not None:
                yield distribution


class _Distributor:
    def __init__(self, record: Record, walk: Interpretation, folds: Mapping[Node, Fold], live: Set[Node]) -> None:
        self.live = live
        self.walk = walk
        self.folds = folds
        self.inside = {node for fold in folds.values() for node in fold.nodes}
        self.fixed = {*record.outputs, *record.barriers}
        self.readers = record.readers()
        self.by_base = {fold.base: fold for fold in folds.values()}

    def over(self, join: Node) -> Distribution | None:
        """What stands behind `join`, distributed over its sides; None where nothing does or a side cannot take it."""
        fold = self._behind(join)
        sides = None if fold is None else self._sides(join, fold.value)
        if fold is None or sides is None:
            return None
        nothing = AffineConv.of(Anchor(join, join.shape), len(fold.value.axes))
        shares = {side.sink: side.share for side in sides}
        return Distribution(
            JoinFold(join, fold.sink, nothing, fold.nodes, fold.sizes, fold.extents, shares=shares), tuple(sides)
        )

    def _behind(self, join: Node) -> Fold | None:
        """The fold of the scale and shift that alone reads `join`."""
        if join.op not in _JOINS or not self._read_once(join):
            return None
        fold = self.by_base.get(join)
        nodes = fold.nodes if fold is not None else tuple(self._chain(join))
        within = all(self._readers(node) <= set(nodes) for node in nodes[:-1])
        if not nodes or not within or not self.walk.dominates(join, nodes[-1]):
            return None
        value = self.walk.value(join, nodes[-1])
        if not _scales(value) or any(node.inplace for node in nodes):
            return None
        sizes = dict.fromkeys((join, *nodes), (value.in_channels, [Axis().size_key for _ in value.axes]))
        return replace(fold, value=value) if fold is not None else Fold(join, nodes[-1], value, nodes, sizes)

    def _chain(self, join: Node) -> Iterator[Node]:
        """The operations, one after the other, that only scale and shift what `join` computes."""
        node = join
        while self._read_once(node) and (node is join or node not in self.walk.barriers):
            (reader,) = self._readers(node)
            if reader in self.inside or reader not in self.walk.dominator or not self.walk.dominates(join, reader):
                return
            if reader.inplace or not _scales(self.walk.value(join, reader)):
                return
            yield reader
            node = reader

    def _read_once(self, node: Node) -> bool:
        """Whether one operation, once, is all that reads it."""
        inputs = [operand for reader in self._readers(node) for operand in reader.inputs]
        return len(self._readers(node)) == 1 and inputs.count(node) == 1 and node not in self.fixed

    def _readers(self, node: Node) -> set[Node]:
        """The operations that read it and that an output depends on."""
        return {reader for reader in node.readers if reader in self.live}

    def _sides(self, join: Node, scale: AffineConv) -> list[SideFold] | None:
        """The folds that compute the sides of a join, each with its share of the scale; None if one cannot take it."""
        folds: list[SideFold] = []
        for side, share in self._shares(join, scale):
            taken = self._taken(join, side, share)
            if taken is None:
                return None
            folds += taken
        return folds or None

    def _taken(self, join: Node, side: Node, share: AffineConv) -> list[SideFold] | None:
        """The folds that compute one side with its share; those of a join in turn where it is one itself."""
        if not self._read_once(side) or side.dtype != join.dtype:
            return None
        fold = self.folds.get(side) or self._kernel(side)
        if fold is not None and fold.value.identity and self._read_once(fold.base):  # a dropout, a check
            fold = self.folds.get(fold.base) or self._kernel(fold.base)
        if fold is not None:
            return self._with_share(fold, share)
        return self._sides(side, share) if side.op in _JOINS and side not in self.inside else None

    def _shares(self, join: Node, scale: AffineConv) -> list[tuple[Node, AffineConv]]:
        """Each side of a join with its share of the scale; empty where the join has sides that cannot take any."""
        arguments = _arguments(join)
        joined = join.op == "cat"
        sides: Sequence[Any] = (
            arguments.get("tensors", ()) if joined else [arguments.get(x) for x in ("input", "other")]
        )
        if not arguments or not all(isinstance(side, Node) and not side.constant for side in sides):
            return []
        if not joined:
            if not all(side.shape == join.shape for side in sides):
                return []
            return [(side, _share(scale, side, 0, scale.out_channels, shifted=side is sides[0])) for side in sides]
        channel = 1 if scale.axes else len(join.shape) - 1
        if arguments["dim"] % len(join.shape) != channel:
            return []
        stops = list(accumulate(side.shape[channel] for side in sides))
        starts = [0, *stops]
        return [(side, _share(scale, side, a, b)) for side, a, b in zip(sides, starts, stops, strict=False)]

    def _kernel(self, side: Node) -> Fold | None:
        """A convolution that stays as it is in the plan, as a fold of itself."""
        if side.op not in KERNELS or side not in self.walk.dominator or side in self.inside:
            return None
        base = side.operands[0]
        value = self.walk.value(base, side)
        return Fold(base, side, value, (side,)) if isinstance(value, AffineConv) else None

    def _with_share(self, fold: Fold, share: AffineConv) -> list[SideFold] | None:
        """The fold with its share; its kernels must be read by nobody else, not even by another call of them.

        The batch norm of a fold may be: then the fold is written beside it.
        """
        kernels = [node for node in fold.nodes if node.op in KERNELS]
        readers = {reader for leaf in model_tensors(kernels) for reader in self.readers[id(leaf)]} & self.live
        shared = any(not used_only_by(reader, fold.nodes) for reader in readers)
        if not kernels or shared or fold.steps or len(fold.value.axes) != len(share.axes):
            return None
        value = fold.value.scale_shift(_flat(share.kernel), share.bias)
        return [SideFold(fold.base, fold.sink, value, fold.nodes, fold.sizes, fold.extents, share=share)]


def _scales(value: Value) -> TypeGuard[AffineConv]:
    """Whether it is a scale and shift, and not nothing."""
    return isinstance(value, AffineConv) and value.pointwise and not value.identity


def _arguments(join: Node) -> Mapping[str, Any]:
    """What the join is called with, by the names that its rule gives it; nothing for a call that has no rule."""
    try:
        bound = RULES[join.op].signature.bind(*join.args, **join.kwargs)
    except TypeError:
        return {}
    bound.apply_defaults()
    return bound.arguments


def _share(scale: AffineConv, side: Node, start: int, stop: int, shifted: bool = True) -> AffineConv:
    """The channels from `start` to `stop` of a scale and shift, as one of `side`."""
    factor = _flat(scale.kernel, slice(start, stop))
    bias = scale.bias
    shift = _flat(bias, slice(start, stop)) if bias is not None and shifted else None
    return AffineConv.of(Anchor(side, side.shape), len(scale.axes)).scale_shift(factor, shift)


def _flat(number: Number, part: slice = slice(None)) -> Number:
    return Lazy(lambda: number().flatten()[part])
