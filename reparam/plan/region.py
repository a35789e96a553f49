"""The cheapest way to compute the tensors of one region: everything that is linear in one anchor.

Tensors that an operation outside the region reads have to be computed; every other tensor is a choice. The search
compares two ways to compute a tensor: as one convolution of an earlier tensor that all paths to it pass through (a
dominator), or by the user's own operation on its operands, each of which is computed in its cheapest way. The user's
operations are always candidates, so no plan costs more than the original.
"""

from __future__ import annotations

import copy
import math
from collections import defaultdict
from collections.abc import Callable, Collection, Mapping, Sequence, Set
from dataclasses import dataclass, field
from functools import cached_property, partial
from itertools import combinations
from operator import itemgetter
from typing import Any

from reparam.algebra.affine import AffineConv, PendingBorder
from reparam.algebra.axis import Axis
from reparam.algebra.layer_form import finest
from reparam.algebra.views import View
from reparam.capture.graph import Node, Record
from reparam.capture.ops import KERNELS, REARRANGING, SIZE_ARGUMENTS
from reparam.errors import Refusal
from reparam.plan import cost
from reparam.plan.fold import Fold, Stretch, ViewedFold, last_kernel, stretches
from reparam.plan.shapes import extents
from reparam.plan.strides import CHANGES_LAYOUT, chooses_layout, may_change_layout
from reparam.plan.validity import accept_empty, fixes_channels, makes_contiguous, may_be_empty, may_slice_channels
from reparam.rules import Value
from reparam.rules.interpret import REACH, Interpretation, between

# Sets of shared tensors are compared exhaustively in regions of so few nodes, or where there are so few such tensors.
# Elsewhere so many tensors are tried one at a time, which keeps the search linear in the size of the region.
_SMALL_REGION = 12
_FEW_TENSORS = 4
_MOST_TRIALS = 32

_CHANNELS_VARY = (
    "nothing on the way fixes its number of channels, which may differ for another input",
    "taking all channels with `:`, and a layer that reads them, would fold",
)
_STEPS_NAME_CHANNELS = (
    "the operations that rearrange it are given its number of channels, or split it",
    "-1 in the place of the number would fold",
)
_EMPTY_CROP = (
    "at some sizes the crop before it is empty, and no convolution takes an empty image",
    "cropping the result would fold",
)
_GROWS = (
    "as fewer layers it would take more multiply-adds and more parameters",
    "the operations themselves are the smaller form",
)
_OVERWRITTEN = (
    "its tensor, or the one that it is computed from, is written to in place, or the caller may write to it",
    "`x = x + y` for `x += y`, and inplace=False, would fold",
)


@dataclass(frozen=True, eq=False)
class Unplaced:
    """A fold of `nodes`, the last one being its result, that is exact and cannot be written back."""

    nodes: tuple[Node, ...]
    refusal: Refusal


@dataclass(frozen=True, eq=False)
class RegionPlan:
    """How the tensors of a region are computed.

    chosen: the folds, as (base, sink), in order; price: of these and of the operations that stay; size: of the same, by
    `SizeCost`.
    """

    region: Region
    chosen: list[tuple[Node, Node]]
    price: cost.Price
    size: cost.Price

    def folds(self) -> list[Fold]:
        return self.region.folds(self.chosen)


@dataclass(eq=False)
class Region:
    """Everything that is linear in one anchor and is needed for `sinks`, which have to be computed.

    order: the position of every node of the record.
    layout_sensitive: the nodes whose memory layout has to stay (see `strides`).
    unplaced: by its result, a fold that would save something and cannot be written back.
    """

    record: Record
    order: Mapping[Node, int]
    walk: Interpretation
    sinks: Collection[Node]
    cost_model: cost.Cost
    layout_sensitive: Set[Node]

    def __post_init__(self) -> None:
        self.anchor = self.walk.anchor[next(iter(self.sinks))]
        self.nodes = between(self.anchor, self.sinks)
        self.prices = {node: cost.of_node(self.cost_model, node) for node in self.nodes}
        self.unplaced: dict[Node, Unplaced] = {}
        self._values: dict[tuple[Node, Node], AffineConv | View | None] = {}
        self._fold_prices: dict[tuple[Node, Node], cost.Price] = {}
        self._copies: dict[Node, frozenset[Node]] = {}
        self._starts: dict[Node, bool] = {}

    @property
    def before(self) -> cost.Price:
        """The price of the user's operations."""
        return cost.total(self.prices.values())

    @cached_property
    def size(self) -> cost.Price:
        """Their size, by `SizeCost`."""
        return self._priced_by(cost.SizeCost()).before

    # --- the search

    def best(self) -> RegionPlan:
        """The cheapest plan found that does not grow the region."""
        after, chosen = self.cheapest()
        if after >= self.before:
            return self._plan([], self.before)
        best = self._plan(chosen, after)
        if cost.grows(self.cost_model, self.size, best.size):
            best = self._plan(chosen, after, finest)  # a shuffle may hide groups
        return self.without_growth(best) if cost.grows(self.cost_model, self.size, best.size) else best

    def without_growth(self, refused: RegionPlan) -> RegionPlan:
        """The plan with the fewest multiply-adds, if it is cheaper than the user's operations; else these."""
        _, chosen = self._priced_by(cost.FlopsCost()).cheapest()
        lean = self._plan(chosen, self.total(chosen))
        pays = lean.price < self.before and not cost.grows(self.cost_model, self.size, lean.size)
        result = lean if pays else self._plan([], self.before)
        for base, node in refused.chosen:
            if (base, node) not in result.chosen:
                self.unplaced.setdefault(node, Unplaced(tuple(between(base, [node])), Refusal(*_GROWS)))
        return result

    def _plan(
        self, chosen: list[tuple[Node, Node]], price: cost.Price, form: Callable[[AffineConv], AffineConv] = lambda v: v
    ) -> RegionPlan:
        return RegionPlan(self, chosen, price, self._priced_by(cost.SizeCost()).total(chosen, form))

    def _priced_by(self, cost_model: cost.Cost) -> Region:
        """The same region with other prices."""
        region = copy.copy(self)
        region.cost_model, region._fold_prices = cost_model, {}
        region.prices = {node: cost.of_node(cost_model, node) for node in self.nodes}
        return region

    def total(
        self, chosen: Collection[tuple[Node, Node]], form: Callable[[AffineConv], AffineConv] = lambda v: v
    ) -> cost.Price:
        """The price of folds, and of the operations that stay beside them. form: changes the values before."""
        bases = {node: base for base, node in chosen}
        total, paid_steps = cost.FREE, defaultdict[Node, set[Node]](set)
        visited, pending = {self.anchor}, list(self.sinks)
        while pending:
            node = pending.pop()
            if node in visited:
                continue
            visited.add(node)
            if node in bases:
                base, value = bases[node], self.value(bases[node], node)
                assert value is not None
                value = form(value) if isinstance(value, AffineConv) else value
                total += self.price(base, node, value, paid_steps[base])
                paid_steps[base].update(self.steps(base, node))
                pending.append(base)
            else:
                total += self.prices[node]
                pending += (operand for operand in node.operands if operand in self.prices)
        return total

    def folds(self, chosen: Collection[tuple[Node, Node]]) -> list[Fold]:
        """The folds of a plan."""
        return [self._fold(base, node) for base, node in chosen]

    def cheapest(self) -> tuple[cost.Price, list[tuple[Node, Node]]]:
        """The cheapest plan, over the sets of tensors that are computed because several others are computed from them.

        None of those may pay by itself. A tensor on the only path to another is chosen by the search for that one. All
        sets are tried in small regions, which is exact. In large ones each tensor is added or removed once, in turn.
        """
        forks = [node for node in self.nodes if self._reader_count(node) + (node in self.sinks) > 1]
        shareable = [n for n in between(self.anchor, forks) if n not in self.sinks and self._is_tensor(n)]
        if len(self.nodes) <= _SMALL_REGION or len(shareable) <= _FEW_TENSORS:
            sets = [chosen for count in range(len(shareable) + 1) for chosen in combinations(shareable, count)]
            return min(map(self._plan_with, sets), key=itemgetter(0))
        extremes = [(shared, self._plan_with(shared)) for shared in ((), tuple(shareable))]
        shared, best = min(extremes, key=lambda candidate: candidate[1][0])
        for node in shareable[:_MOST_TRIALS]:
            other = tuple(n for n in shareable if (n in shared) != (n is node))
            plan = self._plan_with(other)
            if plan[0] < best[0]:
                shared, best = other, plan
        return best

    def _reader_count(self, node: Node) -> int:
        return len({reader for reader in node.readers if reader in self.prices})

    def _plan_with(self, shared: Collection[Node]) -> tuple[cost.Price, list[tuple[Node, Node]]]:
        """The price and the folds (base, sink) where each sink and each `shared` tensor is computed, in order.

        Each is computed in the cheapest way given the tensors that exist by then.
        """
        total, chosen = cost.FREE, dict[Node, Node | None]()
        existing, paid_steps = {self.anchor}, defaultdict[Node, set[Node]](set)
        for target in (node for node in self.nodes if node in self.sinks or node in shared):
            search = _Search(self, existing, paid_steps)
            for node in search.ancestors(target):
                search.price(self.anchor, node)  # in order, so that no recursion goes deep
            total += search.price(self.anchor, target)
            made = dict[Node, Node | None]()
            search.choose(self.anchor, target, made)
            for node, base in made.items():
                existing.add(node)
                if base is not None:
                    paid_steps[base].update(self.steps(base, node))
            chosen |= made
        return total, [(base, node) for node, base in chosen.items() if base is not None]

    def price(self, base: Node, node: Node, value: AffineConv | View, paid_steps: Collection[Node] = ()) -> cost.Price:
        """The price of computing `node` as `value` of `base`; `paid_steps` are computed for another fold anyway."""
        if isinstance(value, AffineConv):
            if (base, node) not in self._fold_prices:
                self._fold_prices[base, node] = cost.of_fold(self.cost_model, value)
            return self._fold_prices[base, node]
        steps = cost.total(self.prices[step] for step in self.steps(base, node) if step not in paid_steps)
        if not value.inside.pixelwise:
            return cost.of_fold(self.cost_model, value.inside) + steps
        place = self._place(base, node, value)
        assert place is not None
        pixels = math.prod(place.base.shape) // (self._channel_count(base, place.base) or value.inside.in_channels)
        read, written = pixels * value.inside.in_channels, pixels * value.inside.out_channels
        return cost.of_map(self.cost_model, value.inside, read, written) + steps

    def can_start(self, node: Node) -> bool:
        """Whether a convolution may start from the node."""
        if node not in self._starts:
            self._starts[node] = self._is_tensor(node) and not self._is_absorbed(node)
        return self._starts[node]

    def _is_tensor(self, node: Node) -> bool:
        """Whether the node is one tensor: not a tuple of parts, and no padding whose border is still being written."""
        value = self.walk.value(self.walk.base[node], node)
        padded = isinstance(value, PendingBorder) and not (node.overwritten or node.inplace)
        return padded or isinstance(value, (AffineConv, View))

    def _is_absorbed(self, node: Node) -> bool:
        """Whether computing `node` by itself never pays: its only reader scales and shifts it."""
        if node in self.sinks or len(node.readers) != 1 or node.readers[0] not in self.prices:
            return False
        is_view = isinstance(self.walk.value(self.walk.base[node], node), View)
        if is_view or node.op == "cat":  # it has no kernel that could take a scale
            return False
        value = self.value(node, node.readers[0])
        return isinstance(value, AffineConv) and value.pointwise

    # --- candidates: what can be one convolution, and be written back

    def value(self, base: Node, node: Node) -> AffineConv | View | None:
        """`node` as one convolution of `base`, perhaps among steps; None where it is none or cannot be written back."""
        if (base, node) not in self._values:
            try:
                self._values[base, node] = self._checked_value(base, node)
            except Refusal as refusal:
                self._values[base, node] = None
                self._note_unplaced(base, node, refusal)
        return self._values[base, node]

    def _checked_value(self, base: Node, node: Node) -> AffineConv | View | None:
        """The value, or None where no layer computes it. Raises Refusal where that layer cannot be written back."""
        value = self.walk.value(base, node)
        nodes = between(base, [node])
        if isinstance(value, View):
            place = self._place(base, node, value)
            if place is None:
                return None
            self._require_memory(base, node, nodes, place.nodes, value.inside.in_channels)
            known = self._has_known_length(base, 1 if value.inside.axes else len(base.shape) - 1)
            _require(fixes_channels(base, nodes, known, self.steps(base, node)), _CHANNELS_VARY)
            _require(self._steps_allow(base, node, value, place.nodes), _STEPS_NAME_CHANNELS)
            return value
        if not isinstance(value, AffineConv) or not (value.identity or self._deserves_kernel(value, nodes)):
            return None
        self._require_memory(base, node, nodes, (), value.in_channels)
        known = self._has_known_length(base, 1 if value.axes else len(base.shape) - 1)
        if value.identity:  # both tensors become one: neither may be overwritten later, nor be a part of the other
            _require(not self._written_later(base, node) and not self._is_returned(base, node), _OVERWRITTEN)
            _require(not any(map(may_slice_channels, nodes)) or fixes_channels(base, nodes, known), _CHANNELS_VARY)
            return value
        _require(fixes_channels(base, nodes, known), _CHANNELS_VARY)
        _require(not (may_be_empty(self.walk, base) and accept_empty(base, nodes)), _EMPTY_CROP)
        return value

    def _note_unplaced(self, base: Node, node: Node, refusal: Refusal) -> None:
        """Note the first refusal of a node, from its nearest base, where the fold would have saved something.

        The static cost decides that, so that a measured cost times no fold that cannot be made. An operation that only
        rearranges is refused with the operations before it.
        """
        if node in self.unplaced or node.op in REARRANGING:
            return
        nodes = between(base, [node])
        value = self.walk.value(base, node)
        inside, steps = (value.inside, self.steps(base, node)) if isinstance(value, View) else (value, ())
        assert isinstance(inside, AffineConv)
        before = cost.total(cost.of_node(cost.CPU, replaced) for replaced in nodes if replaced not in steps)
        if cost.of_fold(cost.CPU, inside) < before:
            self.unplaced[node] = Unplaced(tuple(nodes), refusal)

    def _require_memory(
        self, base: Node, node: Node, nodes: Sequence[Node], place: Sequence[Node], channels: int
    ) -> None:
        """Raise Refusal unless the fold reads unchanged memory, has known lengths, and keeps the layout code needs."""
        _require(not self._base_overwritten(base, node), _OVERWRITTEN)
        _require(not self._ends_in_copy(base, node), CHANGES_LAYOUT)
        extents(self.walk, base, nodes)
        if not self.layout_sensitive.isdisjoint(nodes):
            steps = self.steps(base, node)
            sensitive = node in self.layout_sensitive
            chosen = sensitive and any(inner not in steps and chooses_layout(inner) for inner in nodes)
            _require(not chosen and not may_change_layout(base, nodes, steps, place, channels), CHANGES_LAYOUT)

    def _written_later(self, base: Node, node: Node) -> bool:
        """Whether the memory of either is written to once both may exist, perhaps through a view."""
        writes = (*self.record.writes.get(base.storage, ()), *self.record.writes.get(node.storage, ()))
        return base.overwritten or node.overwritten or any(self.order[base] < self.order[write] for write in writes)

    def _is_returned(self, base: Node, node: Node) -> bool:
        """Whether the caller of the model gets the tensor in memory of its own, and so may write to it."""
        return node.storage != base.storage and any(output.storage == node.storage for output in self.record.outputs)

    def _base_overwritten(self, base: Node, node: Node) -> bool:
        """Whether the memory of `base` is written to before `node` is computed; a fold would read it too late."""
        writes = self.record.writes.get(base.storage, ())
        return any(self.order[base] < self.order[write] <= self.order[node] for write in writes)

    def _ends_in_copy(self, base: Node, node: Node) -> bool:
        """Whether the fold begins or ends with a copy into another layout, which a view outside may need."""
        if base not in self._copies:  # cached, since a thousand branches may read it
            self._copies[base] = frozenset(filter(makes_contiguous, base.readers))
        copies = self._copies[base] | ({node} if makes_contiguous(node) else set())
        return bool(copies) and not copies.intersection(between(base, [node])) <= set(self.steps(base, node))

    def _has_known_length(self, base: Node, dim: int) -> bool:
        """Whether dimension `dim` of the base has the same length at every size of the input, and holds no pixels."""
        node = self.walk.origin(base, _sets_its_sizes)
        value = self.walk.value(self.walk.base[node], node) if node in self.walk.dominator else None
        if isinstance(value, AffineConv) and node is not None:
            start = self.walk.base[node]
            if not any(inner.op in KERNELS for inner in between(start, [node])):
                return self._has_known_length(start, dim)
            # A linear layer leaves dimension 1 as it is, which may hold pixels.
            return dim == (1 if value.axes else len(base.shape) - 1)
        return not isinstance(value, View) or value.channel == dim

    def _deserves_kernel(self, value: AffineConv, nodes: Sequence[Node]) -> bool:
        """Whether a convolution may pay for the nodes: one of them has a kernel, or their value is a depthwise window.

        Two scales or batch norms take a fraction of the time of a depthwise 1x1 convolution. Channels in another order
        would be a dense kernel of zeros.
        """
        if any(node.op in KERNELS for node in nodes):
            return True
        return bool(value.axes) and value.groups == value.in_channels and not value.pointwise

    # --- steps: operations that rearrange or average pixels, which stay

    def steps(self, base: Node, node: Node) -> tuple[Node, ...]:
        """The nodes on every path between the two that rearrange or average pixels, and the copies after one."""
        path = [node]
        while path[-1] is not base:
            path.append(self.walk.dominator[path[-1]])
        steps: list[Node] = []
        count_before = 0
        for inner in path[-2::-1]:
            value = self.walk.value(base, inner)
            if isinstance(value, AffineConv):
                steps.clear()  # the pixels are back in their places
                count_before = 0
            count = value.steps if isinstance(value, View) else count_before
            is_copy = count > 0 and inner.op == "contiguous"
            steps += [inner] if count > count_before or is_copy else []
            count_before = count
        return tuple(steps)

    def _place(self, base: Node, node: Node, value: View) -> Stretch | None:
        """The stretch between steps in whose place the convolution is computed: the last possible one.

        A convolution that reads neighbours stays between the steps where it stood. A map that is repeated for several
        parts of each channel stands before these parts become pixels. If kernels follow the place, only the fold may
        read what is computed from there on.
        """
        nodes, steps = between(base, [node]), self.steps(base, node)
        kernel_stretches = [
            stretch for stretch in stretches(base, nodes, steps) if any(inner.op in KERNELS for inner in stretch.nodes)
        ]

        def read_by_fold_alone(inner: Node) -> bool:
            return inner not in self.sinks and set(inner.readers) <= set(nodes)

        for stretch in reversed(kernel_stretches):
            behind = nodes[nodes.index(stretch.nodes[-1]) : -1]
            if stretch is not kernel_stretches[-1] and not all(map(read_by_fold_alone, behind)):
                return None
            read = None if stretch.base is base else self.walk.value(base, stretch.base)
            intact = not isinstance(read, View) or read.whole
            steps_before = sum(nodes.index(step) < nodes.index(stretch.nodes[0]) for step in steps)
            if intact and (value.inside.pixelwise or steps_before == value.steps_before):
                return stretch
        return None

    def _steps_allow(self, base: Node, node: Node, value: View, place: Sequence[Node]) -> bool:
        """Whether no step depends on a number of channels that the fold changes.

        Steps before the `place` of the map then see as many channels as the base has, and steps behind it as many as
        the map gives. A step may be given another number.
        """
        nodes, steps = between(base, [node]), self.steps(base, node)
        if any(map(_is_split, map(partial(self.walk.value, base), nodes))):
            return False
        index = nodes.index(place[0])
        counts = [
            value.inside.in_channels if nodes.index(step) < index else value.inside.out_channels for step in steps
        ]
        return all(
            self._channel_count(base, step.operands[0]) in (None, count)
            for step, count in zip(steps, counts, strict=True)
            if step.op in SIZE_ARGUMENTS
        )

    def _channel_count(self, base: Node, node: Node) -> int | None:
        """The number of channels of a node; None for the base itself."""
        value = None if node is base else self.walk.value(base, node)
        inside = value.inside if isinstance(value, View) else value
        return inside.out_channels if isinstance(inside, AffineConv) else None

    # --- the result

    def _fold(self, base: Node, sink: Node) -> Fold:
        value = self.value(base, sink)
        assert value is not None
        nodes = tuple(between(base, [sink]))
        inside = value if isinstance(value, AffineConv) else value.inside
        spatial = inside is value or not inside.pixelwise
        base_size = inside.in_channels, [Axis().size_key for _ in inside.axes if spatial]
        values = {node: self.walk.value(base, node) for node in nodes}
        sizes = {base: base_size, **{node: _size_key(inner, spatial) for node, inner in values.items()}}
        lengths = extents(self.walk, base, nodes)
        if isinstance(value, AffineConv):
            sizes.update((node, None) for node, inner in values.items() if isinstance(inner, View))
            return Fold(base, sink, value, nodes, sizes, lengths)
        place = self._place(base, sink, value)
        assert place is not None
        result = self.walk.value(base, place.nodes[-1])
        result = result.as_anchor() if isinstance(result, View) else result
        axes = len(result.axes) if isinstance(result, AffineConv) else 0
        placed = inside.with_axes(axes) if inside.pixelwise else inside
        steps, kernel = self.steps(base, sink), last_kernel(place.nodes)
        return ViewedFold(base, sink, placed, nodes, sizes, lengths, steps, kernel=kernel)


def _require(condition: bool, refusal: tuple[str, str]) -> None:
    """Raise a Refusal of this reason and remedy unless the condition holds."""
    if not condition:
        raise Refusal(*refusal)


def _is_split(value: Value) -> bool:
    """Whether a rearranged tensor has been split: no step then reads one tensor."""
    return isinstance(value, tuple) and any(isinstance(part, View) for part in value)


def _size_key(value: Value, spatial: bool) -> Any:
    """A key that is equal for two values of one tensor with as many channels and, if `spatial`, as many pixels."""
    if isinstance(value, View):
        value = value.inside
    if not isinstance(value, AffineConv) or not (spatial or value.pixelwise):
        return None
    return value.out_channels, [axis.size_key for axis in value.axes if spatial]


def _sets_its_sizes(walk: Interpretation, node: Node) -> bool:
    """Whether the length of its dimensions follows from its value or its kernel."""
    return node in walk.dominator or node.op in KERNELS


# price, the dominator that the node is computed from, and whether one convolution computes it
_Choice = tuple[cost.Price, Node, bool]


@dataclass(eq=False)
class _Search:
    """The cheapest way to compute a node from the tensors that exist; `paid_steps`: steps behind these, by base."""

    region: Region
    existing: set[Node]
    paid_steps: Mapping[Node, Collection[Node]]
    _choices: dict[tuple[Node, Node], _Choice] = field(default_factory=dict)

    def ancestors(self, sink: Node) -> list[Node]:
        """Everything that the sink may be computed from and that does not exist, in order; the sink is the last."""
        missing, pending = set[Node](), [sink]
        while pending:
            node = pending.pop()
            if node is not self.region.anchor and node not in self.existing and node not in missing:
                missing.add(node)
                pending += [*node.operands, *self._bases(self.region.anchor, node)]
        return sorted(missing, key=self.region.order.__getitem__)

    def price(self, base: Node, node: Node) -> cost.Price:
        """The price of the cheapest way from `base`, a dominator of the node that exists."""
        return cost.FREE if node in self.existing or node is base else self._choice(base, node)[0]

    def choose(self, base: Node, node: Node, chosen: dict[Node, Node | None]) -> None:
        """Note how the node and everything it needs is computed: from which base by one convolution, or None as is."""
        if node in self.existing or node is base or node in chosen:
            return
        _, start, folded = self._choice(base, node)
        self.choose(base, start, chosen)
        if folded:
            chosen[node] = start
            return
        for operand in node.operands:
            self.choose(start, operand, chosen)
        chosen[node] = None

    def _choice(self, base: Node, node: Node) -> _Choice:
        if (base, node) not in self._choices:
            self._choices[base, node] = min(self._candidates(base, node), key=itemgetter(0))
        return self._choices[base, node]

    def _candidates(self, base: Node, node: Node) -> list[_Choice]:
        # Of equal prices the first is taken: the user's own operation, then the fold that replaces the most.
        own: list[_Choice] = []
        folds: list[_Choice] = []
        missing = [operand for operand in set(node.operands) if operand not in self.existing]
        for start in self._bases(base, node):
            start_price = self.price(base, start)
            own_price = self.region.prices[node] + cost.total([self.price(start, operand) for operand in missing])
            own.append((start_price + own_price, start, False))
            value = self.region.value(start, node)
            if value is not None:
                fold_price = self.region.price(start, node, value, self.paid_steps.get(start, ()))
                folds.append((start_price + fold_price, start, True))
        return own + folds[::-1]

    def _bases(self, base: Node, node: Node) -> list[Node]:
        """The dominators from the node (exclusive) back to `base` at which a convolution may start, nearest first."""
        bases: list[Node] = []
        start = node
        while start is not base and len(bases) < REACH:
            start = self.region.walk.dominator[start]
            if start is base or self.region.can_start(start):
                bases.append(start)
        return bases
