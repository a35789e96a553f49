"""The cheapest way to compute the tensors of one region: everything that is linear in one anchor.

The tensors that are read by something outside have to exist; every other one is a choice. For each of them the search
weighs: one convolution from an earlier tensor that all paths to it pass through (a dominator), or the user's own
operation on its own inputs, each computed in the cheapest way in turn. The user's operations are always among the
candidates, so no plan costs more than what came in.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from itertools import combinations
from operator import itemgetter
from typing import Any

from reparam.algebra.affine import AffineConv, PendingBorder
from reparam.algebra.axis import Axis
from reparam.algebra.views import View
from reparam.capture.graph import Node, Record
from reparam.capture.ops import KERNELS, REARRANGING, SIZE_ARGUMENTS
from reparam.errors import Refusal
from reparam.plan import cost
from reparam.plan.fold import Fold, ViewedFold, last_kernel, stretches
from reparam.plan.shapes import extents
from reparam.plan.strides import ORDER, asked_for, reordered
from reparam.plan.validity import _copies, _fixes_channels, _picks, _takes_nothing, _vanishes
from reparam.rules import Value
from reparam.rules.interpret import REACH, Interpretation, between

_SMALL = 12  # nodes of a region of which every set of tensors is tried
_FEW = 4  # or so many tensors that several others could be computed from
_TRIES = 32  # tensors that are tried one by one elsewhere, so that the search stays linear in the size of a region

_CHANNELS = (
    "nothing on the way fixes its number of channels: for another input it could be another one",
    "take all channels with `:`, and let a layer read them",
)
_UNMOVED = ("the operations that rearrange it name its number of channels, or take it apart", "write -1 for the number")
_VANISHING = (
    "at some sizes the crop in front leaves nothing, which is padded here, and which no convolution takes",
    "crop what comes out",
)
_WRITTEN = (
    "its tensor, or the one that it is computed from, is written to in place, or may be by who calls the model",
    "write `x = x + y` for `x += y`, and `inplace=False`",
)


@dataclass(frozen=True, eq=False)
class Unplaced:
    """A fold of the nodes, the last one being its result, that is exact and cannot be written back."""

    nodes: tuple[Node, ...]
    refusal: Refusal


@dataclass(eq=False)
class Region:
    """Everything that is linear in one anchor and is needed for `sinks`; `relied`: see `relied_on`."""

    record: Record
    order: Mapping[Node, int]
    found: Interpretation
    sinks: Collection[Node]
    judge: cost.Cost
    relied: Collection[Node]

    def __post_init__(self) -> None:
        self.anchor = self.found.anchor[next(iter(self.sinks))]
        self.nodes = between(self.anchor, self.sinks)
        self.prices = {node: cost.of_node(self.judge, node) for node in self.nodes}
        self.values: dict[tuple[Node, Node], AffineConv | View | None] = {}
        self.whole: dict[tuple[Node, Node], cost.Price] = {}
        self.copies: dict[Node, frozenset[Node]] = {}
        self.starting: dict[Node, bool] = {}
        self.unplaced: dict[Node, Unplaced] = {}

    def best(self) -> tuple[list[Fold], cost.Price, cost.Price]:
        """The folds of the cheapest plan found, the cost of the user's operations, and that of the plan."""
        before = cost.total(self.prices.values())
        total, chosen = self._cheapest()
        if total >= before:
            return [], before, before
        return [self._fold(base, node) for base, node in chosen], before, total

    def _cheapest(self) -> tuple[cost.Price, list[tuple[Node, Node]]]:
        """Over the sets of tensors that are computed for the sake of several others, though none alone would pay.

        Whatever only one path leads through is decided by the search itself. All sets are tried where the region is
        small or the sets are few, which is exact; elsewhere tensors are added and taken away one by one, once each.
        """
        forks = [node for node in self.nodes if self._readers(node) + (node in self.sinks) > 1]
        useful = [n for n in between(self.anchor, forks) if n not in self.sinks and self.tensor(n)]
        if len(self.nodes) <= _SMALL or len(useful) <= _FEW:
            sets = [chosen for count in range(len(useful) + 1) for chosen in combinations(useful, count)]
            return min(map(self._with, sets), key=itemgetter(0))
        chosen, best = min(((each, self._with(each)) for each in ((), tuple(useful))), key=lambda pair: pair[1][0])
        for node in useful[:_TRIES]:
            other = tuple(n for n in useful if (n in chosen) != (n is node))
            tried = self._with(other)
            if tried[0] < best[0]:
                chosen, best = other, tried
        return best

    def _readers(self, node: Node) -> int:
        return len({reader for reader in node.readers if reader in self.prices})

    def _with(self, wanted: Collection[Node]) -> tuple[cost.Price, list[tuple[Node, Node]]]:
        """Each sink and each of the tensors `wanted`, in turn, in the cheapest way given what exists by then."""
        total, chosen = cost.FREE, dict[Node, Node | None]()
        there, paid = {self.anchor}, defaultdict[Node, set[Node]](set)
        for sink in (node for node in self.nodes if node in self.sinks or node in wanted):
            search = _Search(self, there, paid)
            for node in search.needed(sink):
                search.price(self.anchor, node)  # in order, so that no search goes deep
            total += search.price(self.anchor, sink)
            made = dict[Node, Node | None]()
            search.settle(self.anchor, sink, made)
            for node, base in made.items():
                there.add(node)
                if base is not None:
                    paid[base].update(self.steps(base, node))
            chosen |= made
        return total, [(base, node) for node, base in chosen.items() if base is not None]

    def value(self, base: Node, node: Node) -> AffineConv | View | None:
        """`node` as one convolution of `base`, possibly behind steps, if it is one that can be written back."""
        if (base, node) not in self.values:
            try:
                self.values[base, node] = self._value(base, node)
            except Refusal as refusal:
                self.values[base, node] = None
                self._refuse(base, node, refusal)
        return self.values[base, node]

    def _value(self, base: Node, node: Node) -> AffineConv | View | None:
        """Raises Refusal where there is a layer that could take it all, and it cannot be written back."""
        value = self.found.value(base, node)
        nodes = between(base, [node])
        if isinstance(value, View):
            place = self._place(base, node, value)
            if place is None:
                return None
            self._require_order(base, node, nodes, place[1], value.inside.in_channels)
            counted = self._counted(base, 1 if value.inside.axes else len(base.shape) - 1)
            _require(_fixes_channels(base, nodes, counted, self.steps(base, node)), _CHANNELS)
            _require(self._movable(base, node, value, place[1]), _UNMOVED)
            return value
        if not isinstance(value, AffineConv) or not (value.identity or self._pays(value, nodes)):
            return None
        self._require_order(base, node, nodes, (), value.in_channels)
        counted = self._counted(base, 1 if value.axes else len(base.shape) - 1)
        if value.identity:  # two tensors of equal value, unless one is overwritten later or is a part of the other
            _require(not self._written_later(base, node) and not self._handed_out(base, node), _WRITTEN)
            _require(not any(map(_picks, nodes)) or _fixes_channels(base, nodes, counted), _CHANNELS)
            return value
        _require(_fixes_channels(base, nodes, counted), _CHANNELS)
        _require(not (_vanishes(self.found, base) and _takes_nothing(base, nodes)), _VANISHING)
        return value

    def _refuse(self, base: Node, node: Node, refusal: Refusal) -> None:
        """Keep the first refusal of a node, that from the nearest base, where the fold would have saved something.

        That is told by the static cost: no other need look at what cannot be. What only moves numbers is kept for what
        comes before it.
        """
        if node in self.unplaced or node.op in REARRANGING:
            return
        nodes = between(base, [node])
        value = self.found.value(base, node)
        inside, steps = (value.inside, self.steps(base, node)) if isinstance(value, View) else (value, ())
        assert isinstance(inside, AffineConv)
        own = cost.total(cost.of_node(cost.CPU, each) for each in nodes if each not in steps)
        if cost.of_fold(cost.CPU, inside) < own:
            self.unplaced[node] = Unplaced(tuple(nodes), refusal)

    def _require_order(
        self, base: Node, node: Node, nodes: Sequence[Node], place: Sequence[Node], channels: int
    ) -> None:
        """What is written meanwhile, how long the dimensions are, and in which order of memory code finds them."""
        _require(not self._overwritten(base, node), _WRITTEN)
        _require(not self._relaid(base, node), ORDER)
        extents(self.found, base, nodes)
        if any(each in self.relied for each in nodes):
            steps = self.steps(base, node)
            asked = (each for each in nodes if node in self.relied and each not in steps and asked_for(each))
            _require(not any(asked) and not reordered(base, nodes, steps, place, channels), ORDER)

    def _written_later(self, base: Node, node: Node) -> bool:
        """Whether the memory of either is written to once both may exist, be it through a view."""
        writes = (*self.record.writes.get(base.storage, ()), *self.record.writes.get(node.storage, ()))
        return base.overwritten or node.overwritten or any(self.order[base] < self.order[write] for write in writes)

    def _handed_out(self, base: Node, node: Node) -> bool:
        """Whether the caller of the model gets the tensor, and memory of its own with it, to which it may write."""
        return node.storage != base.storage and any(output.storage == node.storage for output in self.record.outputs)

    def _overwritten(self, base: Node, node: Node) -> bool:
        """Whether the memory of `base` is written to before `node` is computed, where a fold may want to read it."""
        writes = self.record.writes.get(base.storage, ())
        return any(self.order[base] < self.order[write] <= self.order[node] for write in writes)

    def _relaid(self, base: Node, node: Node) -> bool:
        """Whether an end of the fold is a copy into another order of memory, which a view outside may rely on."""
        if base not in self.copies:  # once: a thousand branches may read it
            self.copies[base] = frozenset(filter(_copies, base.readers))
        copies = self.copies[base] | ({node} if _copies(node) else set())
        return bool(copies) and not copies.intersection(between(base, [node])) <= set(self.steps(base, node))

    def _counted(self, base: Node, dim: int) -> bool:
        """Whether dimension `dim` is as long at every size of the input, and not one of pixels moved there."""
        node = self.found.origin(base, _sets_its_sizes)
        value = self.found.value(self.found.base[node], node) if node in self.found.dominator else None
        if isinstance(value, AffineConv) and node is not None:
            start = self.found.base[node]
            if not any(each.op in KERNELS for each in between(start, [node])):
                return self._counted(start, dim)
            # A linear layer leaves dimension 1 as it is, which may be of pixels.
            return dim == (1 if value.axes else len(base.shape) - 1)
        return not isinstance(value, View) or value.channel == dim

    def _pays(self, value: AffineConv, nodes: Sequence[Node]) -> bool:
        """Whatever has a kernel pays; of operations without one, what a depthwise convolution of many taps can do.

        Scales and shifts are none: two of them, or two batch norms, take a fraction of the time of a depthwise 1x1
        convolution. Channels in another order would be a dense kernel of zeros.
        """
        if any(each.op in KERNELS for each in nodes):
            return True
        return bool(value.axes) and value.groups == value.in_channels and not value.pointwise

    def _movable(self, base: Node, node: Node, value: View, place: Sequence[Node]) -> bool:
        """Whether the steps go with a map that stands at its `place` among them.

        Those before that place then see as many channels as the base has, and those behind it as many as the map
        gives, which is another number than some of them may name.
        """
        if any(map(_in_parts, map(partial(self.found.value, base), between(base, [node])))):
            return False
        nodes, steps = between(base, [node]), self.steps(base, node)
        at = nodes.index(place[0])
        seen = [value.inside.in_channels if nodes.index(step) < at else value.inside.out_channels for step in steps]
        return all(
            self._channels(base, step.operands[0]) in (None, count)
            for step, count in zip(steps, seen, strict=True)
            if step.op in SIZE_ARGUMENTS
        )

    def _place(self, base: Node, node: Node, value: View) -> tuple[Node, tuple[Node, ...]] | None:
        """What a map behind steps takes the place of, and the tensor that it reads there: the last place that can be.

        What reads neighbours stands between the very steps where it stood; what is there several times for each channel
        that there will be, before these become pixels. Where it stands before other kernels, nobody else reads those.
        """
        nodes, steps = between(base, [node]), self.steps(base, node)
        found = [
            (start, own) for start, own in stretches(base, nodes, steps) if any(each.op in KERNELS for each in own)
        ]

        def within(each: Node) -> bool:
            return each not in self.sinks and set(each.readers) <= set(nodes)

        for start, own in reversed(found):
            if own is not found[-1][1] and not all(map(within, nodes[nodes.index(own[-1]) : -1])):
                return None
            here = None if start is base else self.found.value(base, start)
            whole = not isinstance(here, View) or here.whole
            before = sum(nodes.index(step) < nodes.index(own[0]) for step in steps)
            if whole and (value.inside.pixelwise or before == value.steps_before):
                return start, own
        return None

    def _channels(self, base: Node, node: Node) -> int | None:
        """How many channels the node has, None for the base itself."""
        value = None if node is base else self.found.value(base, node)
        inside = value.inside if isinstance(value, View) else value
        return inside.out_channels if isinstance(inside, AffineConv) else None

    def steps(self, base: Node, node: Node) -> tuple[Node, ...]:
        """The nodes that all between the two passes through and that rearrange or average pixels; copies behind one."""
        way = [node]
        while way[-1] is not base:
            way.append(self.found.dominator[way[-1]])
        found: list[Node] = []
        before = 0
        for each in way[-2::-1]:
            value = self.found.value(base, each)
            if isinstance(value, AffineConv):
                found.clear()  # what was rearranged is a convolution again
                before = 0
            count = value.steps if isinstance(value, View) else before
            copies = count > 0 and each.op == "contiguous"
            found += [each] if count > before or copies else []
            before = count
        return tuple(found)

    def tensor(self, node: Node) -> bool:
        """Whether the node is a tensor by itself, not parts of one, nor one whose border is being written."""
        value = self.found.value(self.found.base[node], node)
        padded = isinstance(value, PendingBorder) and not (node.overwritten or node.inplace)
        return padded or isinstance(value, (AffineConv, View))

    def starts(self, node: Node) -> bool:
        """Whether a convolution may start from it: asked again and again, and found out once."""
        if node not in self.starting:
            self.starting[node] = self.tensor(node) and not self.absorbed(node)
        return self.starting[node]

    def absorbed(self, node: Node) -> bool:
        """Whether it is pointless to let `node` exist: its only reader scales and shifts it."""
        if node in self.sinks or len(node.readers) != 1 or node.readers[0] not in self.prices:
            return False
        behind = isinstance(self.found.value(self.found.base[node], node), View)
        if behind or node.op == "cat":  # it has no kernel that could take a scale
            return False
        value = self.value(node, node.readers[0])
        return isinstance(value, AffineConv) and value.pointwise

    def price(self, base: Node, node: Node, value: AffineConv | View, paid: Collection[Node] = ()) -> cost.Price:
        """What `value` costs instead of everything between the two; `paid` steps are computed anyway."""
        if isinstance(value, AffineConv):
            if (base, node) not in self.whole:
                self.whole[base, node] = cost.of_fold(self.judge, value)
            return self.whole[base, node]
        steps = cost.total(self.prices[step] for step in self.steps(base, node) if step not in paid)
        if not value.inside.pixelwise:
            return cost.of_fold(self.judge, value.inside) + steps
        place = self._place(base, node, value)
        assert place is not None
        start = place[0]
        pixels = math.prod(start.shape) // (self._channels(base, start) or value.inside.in_channels)
        read, written = pixels * value.inside.in_channels, pixels * value.inside.out_channels
        return cost.of_map(self.judge, value.inside, read, written) + steps

    def _fold(self, base: Node, sink: Node) -> Fold:
        value = self.value(base, sink)
        assert value is not None
        nodes = tuple(between(base, [sink]))
        inside = value if isinstance(value, AffineConv) else value.inside
        space = inside is value or not inside.pixelwise
        start = inside.in_channels, [Axis().size_key for _ in inside.axes if space]
        values = {node: self.found.value(base, node) for node in nodes}
        sizes = {base: start, **{node: _size(each, space) for node, each in values.items()}}
        told = extents(self.found, base, nodes)
        if isinstance(value, AffineConv):
            sizes.update((node, None) for node, each in values.items() if isinstance(each, View))
            return Fold(base, sink, value, nodes, sizes, told)
        place = self._place(base, sink, value)
        assert place is not None
        here = self.found.value(base, place[1][-1])
        read = here.as_anchor() if isinstance(here, View) else here
        spatial = len(read.axes) if isinstance(read, AffineConv) else 0
        placed = inside.with_axes(spatial) if inside.pixelwise else inside
        steps, kernel = self.steps(base, sink), last_kernel(place[1])
        return ViewedFold(base, sink, placed, nodes, sizes, told, steps, kernel=kernel)


def _require(fine: bool, otherwise: tuple[str, str]) -> None:
    if not fine:
        raise Refusal(*otherwise)


def _in_parts(value: Value) -> bool:
    """Whether it is several rearranged tensors: what takes them apart is no step of one."""
    return isinstance(value, tuple) and any(isinstance(part, View) for part in value)


def _size(value: Value, space: bool) -> Any:
    """What is equal for two values of one tensor if they have equally many channels and, in space, pixels."""
    if isinstance(value, View):
        value = value.inside
    if not isinstance(value, AffineConv) or not (space or value.pixelwise):
        return None
    return value.out_channels, [axis.size_key for axis in value.axes if space]


def _sets_its_sizes(walk: Interpretation, node: Node) -> bool:
    """Whether its value or its kernel says how long its dimensions are."""
    return node in walk.dominator or node.op in KERNELS


_Choice = tuple[cost.Price, Node, bool]


@dataclass(eq=False)
class _Search:
    """The cheapest way to let a node exist, when `there` exist already; `paid` are the steps behind them, by base."""

    region: Region
    there: set[Node]
    paid: Mapping[Node, Collection[Node]] = field(default_factory=dict)
    memo: dict[tuple[Node, Node], _Choice] = field(default_factory=dict)

    def needed(self, sink: Node) -> list[Node]:
        """Whatever the sink may be computed from that is not there yet, in order, itself the last."""
        found, waiting = set[Node](), [sink]
        while waiting:
            node = waiting.pop()
            if node is not self.region.anchor and node not in self.there and node not in found:
                found.add(node)
                waiting += [*node.operands, *self._starts(self.region.anchor, node)]
        return sorted(found, key=self.region.order.__getitem__)

    def price(self, base: Node, node: Node) -> cost.Price:
        return cost.FREE if node in self.there or node is base else self._choice(base, node)[0]

    def _choice(self, base: Node, node: Node) -> _Choice:
        """(price, the dominator it is computed from, whether by one convolution) from `base` on."""
        if (base, node) not in self.memo:
            self.memo[base, node] = min(self._choices(base, node), key=itemgetter(0))
        return self.memo[base, node]

    def _choices(self, base: Node, node: Node) -> list[_Choice]:
        # On equal cost the first is taken: the user's own operation, then a fold that stands for as much as it can.
        kept: list[_Choice] = []
        folded: list[_Choice] = []
        missing = [operand for operand in set(node.operands) if operand not in self.there]
        for start in self._starts(base, node):
            reached = self.price(base, start)
            own = self.region.prices[node] + cost.total([self.price(start, operand) for operand in missing])
            kept.append((reached + own, start, False))
            value = self.region.value(start, node)
            if value is not None:
                price = self.region.price(start, node, value, self.paid.get(start, ()))
                folded.append((reached + price, start, True))
        return kept + folded[::-1]

    def _starts(self, base: Node, node: Node) -> list[Node]:
        """The dominators of `node` from the nearest to `base` at which a convolution may start."""
        starts: list[Node] = []
        start = node
        while start is not base and len(starts) < REACH:
            start = self.region.found.dominator[start]
            if start is base or self.region.starts(start):
                starts.append(start)
        return starts

    def settle(self, base: Node, node: Node, chosen: dict[Node, Node | None]) -> None:
        """Note how `node` and all that it takes are computed: from which base by one convolution, or (None) as is."""
        if node in self.there or node is base or node in chosen:
            return
        _, start, folded = self._choice(base, node)
        self.settle(base, start, chosen)
        if folded:
            chosen[node] = start
            return
        for operand in node.operands:
            self.settle(start, operand, chosen)
        chosen[node] = None
