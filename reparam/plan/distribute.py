"""Distribution: a scale and shift behind a join is distributed over the sides of the join.

    scale * (a + b) + shift = (scale * a + shift) + scale * b

Each side of a concatenation takes the scale and shift of its own channels. No convolution reaches across a join, since
its sides start from different tensors. But where a kernel that nobody else reads computes each side, the kernels take
the scale and shift, and the batch norm behind the join disappears. Where one side cannot take its share, nothing
changes.
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
    """The fold of the scale and shift behind a join, and those of its sides, which take it. All are made or none."""

    join: JoinFold
    sides: tuple[SideFold, ...]

    @property
    def folds(self) -> tuple[Fold, ...]:
        return (*self.sides, self.join)


def distributions(
    record: Record, walk: Interpretation, folds: Mapping[Node, Fold], live: set[Node]
) -> Iterator[Distribution]:
    """Every scale and shift that the sides of a join can take.

    Requires the folds planned so far, by sink. Leaves them as they are. Raises nothing.
    """
    distributor = _Distributor(record, walk, folds, live)
    for node in record.nodes:
        if node in live and node not in distributor.folded and not node.constant:
            distribution = distributor.distribute_over(node)
            if distribution is not None:
                yield distribution


class _Distributor:
    def __init__(self, record: Record, walk: Interpretation, folds: Mapping[Node, Fold], live: Set[Node]) -> None:
        self.live = live
        self.walk = walk
        self.folds = folds
        self.folded = {node for fold in folds.values() for node in fold.nodes}
        self.demanded = {*record.outputs, *record.barriers}
        self.readers = record.readers()
        self.by_base = {fold.base: fold for fold in folds.values()}

    def distribute_over(self, join: Node) -> Distribution | None:
        """The scale and shift behind `join`, distributed over its sides; None if there is none or a side refuses it."""
        fold = self._scale_behind(join)
        sides = None if fold is None else self._side_folds(join, fold.value)
        if fold is None or sides is None:
            return None
        identity = AffineConv.of(Anchor(join, join.shape), len(fold.value.axes))
        shares = {side.sink: side.share for side in sides}
        return Distribution(
            JoinFold(join, fold.sink, identity, fold.nodes, fold.sizes, fold.extents, shares=shares), tuple(sides)
        )

    def _scale_behind(self, join: Node) -> Fold | None:
        """The fold of the scale and shift that is the only reader of `join`."""
        if join.op not in _JOINS or not self._read_once(join):
            return None
        fold = self.by_base.get(join)
        nodes = fold.nodes if fold is not None else tuple(self._scale_chain(join))
        exclusive = all(self._live_readers(node) <= set(nodes) for node in nodes[:-1])
        if not nodes or not exclusive or not self.walk.dominates(join, nodes[-1]):
            return None
        value = self.walk.value(join, nodes[-1])
        if not _is_scale(value) or any(node.inplace for node in nodes):
            return None
        sizes = dict.fromkeys((join, *nodes), (value.in_channels, [Axis().size_key for _ in value.axes]))
        return replace(fold, value=value) if fold is not None else Fold(join, nodes[-1], value, nodes, sizes)

    def _scale_chain(self, join: Node) -> Iterator[Node]:
        """The operations behind `join`, one after another, that only scale and shift."""
        node = join
        while self._read_once(node) and (node is join or node not in self.walk.barriers):
            (reader,) = self._live_readers(node)
            if reader in self.folded or reader not in self.walk.dominator or not self.walk.dominates(join, reader):
                return
            if reader.inplace or not _is_scale(self.walk.value(join, reader)):
                return
            yield reader
            node = reader

    def _read_once(self, node: Node) -> bool:
        """Whether a single operation reads the node, once."""
        readers = self._live_readers(node)
        inputs = [operand for reader in readers for operand in reader.inputs]
        return len(readers) == 1 and inputs.count(node) == 1 and node not in self.demanded

    def _live_readers(self, node: Node) -> set[Node]:
        return {reader for reader in node.readers if reader in self.live}

    def _side_folds(self, join: Node, scale: AffineConv) -> list[SideFold] | None:
        """The folds that compute the sides of a join with their shares of the scale; None if one cannot take it."""
        folds: list[SideFold] = []
        for side, share in self._shares(join, scale):
            side_folds = self._folds_of_side(join, side, share)
            if side_folds is None:
                return None
            folds += side_folds
        return folds or None

    def _folds_of_side(self, join: Node, side: Node, share: AffineConv) -> list[SideFold] | None:
        """The folds that compute one side with its share. A side that is a join itself shares it among its sides."""
        if not self._read_once(side) or side.dtype != join.dtype:
            return None
        fold = self.folds.get(side) or self._unfolded_kernel(side)
        if fold is not None and fold.value.identity and self._read_once(fold.base):  # a dropout, a check
            fold = self.folds.get(fold.base) or self._unfolded_kernel(fold.base)
        if fold is not None:
            return self._with_share(fold, share)
        return self._side_folds(side, share) if side.op in _JOINS and side not in self.folded else None

    def _shares(self, join: Node, scale: AffineConv) -> list[tuple[Node, AffineConv]]:
        """Each side of a join with its share of the scale; empty where a side cannot take one."""
        arguments = _arguments(join)
        is_cat = join.op == "cat"
        sides: Sequence[Any] = (
            arguments.get("tensors", ()) if is_cat else [arguments.get(x) for x in ("input", "other")]
        )
        if not arguments or not all(isinstance(side, Node) and not side.constant for side in sides):
            return []
        if not is_cat:
            if not all(side.shape == join.shape for side in sides):
                return []
            return [(side, _share(scale, side, 0, scale.out_channels, shifted=side is sides[0])) for side in sides]
        channel = 1 if scale.axes else len(join.shape) - 1
        if arguments["dim"] % len(join.shape) != channel:
            return []
        stops = list(accumulate(side.shape[channel] for side in sides))
        starts = [0, *stops]
        return [
            (side, _share(scale, side, start, stop)) for side, start, stop in zip(sides, starts, stops, strict=False)
        ]

    def _unfolded_kernel(self, side: Node) -> Fold | None:
        """A convolution that the plan leaves as it is, as a fold of itself."""
        if side.op not in KERNELS or side not in self.walk.dominator or side in self.folded:
            return None
        base = side.operands[0]
        value = self.walk.value(base, side)
        return Fold(base, side, value, (side,)) if isinstance(value, AffineConv) else None

    def _with_share(self, fold: Fold, share: AffineConv) -> list[SideFold] | None:
        """The fold with its share of the scale; None where anything else reads its kernels, even another call of them.

        Its batch norm may have other readers: the fold is then written beside it.
        """
        kernels = [node for node in fold.nodes if node.op in KERNELS]
        readers = {reader for leaf in model_tensors(kernels) for reader in self.readers[id(leaf)]} & self.live
        shared = any(not used_only_by(reader, fold.nodes) for reader in readers)
        if not kernels or shared or fold.steps or len(fold.value.axes) != len(share.axes):
            return None
        value = fold.value.scale_shift(_flat(share.kernel), share.bias)
        return [SideFold(fold.base, fold.sink, value, fold.nodes, fold.sizes, fold.extents, share=share)]


def _is_scale(value: Value) -> TypeGuard[AffineConv]:
    """Whether it is a scale and shift, and not the identity."""
    return isinstance(value, AffineConv) and value.pointwise and not value.identity


def _arguments(join: Node) -> Mapping[str, Any]:
    """The arguments of the join, by the parameter names of its rule; empty for a call that the rule does not cover."""
    try:
        bound = RULES[join.op].signature.bind(*join.args, **join.kwargs)
    except TypeError:
        return {}
    bound.apply_defaults()
    return bound.arguments


def _share(scale: AffineConv, side: Node, start: int, stop: int, shifted: bool = True) -> AffineConv:
    """The channels from `start` to `stop` of a scale and shift, as a scale and shift of `side`."""
    factor = _flat(scale.kernel, slice(start, stop))
    bias = scale.bias
    shift = _flat(bias, slice(start, stop)) if bias is not None and shifted else None
    return AffineConv.of(Anchor(side, side.shape), len(scale.axes)).scale_shift(factor, shift)


def _flat(number: Number, part: slice = slice(None)) -> Number:
    return Lazy(lambda: number().flatten()[part])
