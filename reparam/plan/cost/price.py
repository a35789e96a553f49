"""Prices of operations and folds, and the protocol of a cost model."""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple, Protocol, runtime_checkable

from reparam.algebra.affine import AffineConv
from reparam.capture.graph import Node
from reparam.plan.cost import work
from reparam.plan.cost.work import Work


class Price(NamedTuple):
    """Prices compare by `value`, in the unit of the chosen cost model. Ties are broken by `time`.

    time: microseconds, predicted by the static cost.
    """

    value: float = 0.0
    time: float = 0.0

    def __add__(self, other: Price) -> Price:  # type: ignore[override]
        return Price(self.value + other.value, self.time + other.time)

    def __sub__(self, other: Price) -> Price:
        return Price(self.value - other.value, self.time - other.time)


FREE = Price()


@runtime_checkable
class Cost(Protocol):
    """A cost model. Your own needs a name and a price; it is asked about the same work many times."""

    @property
    def name(self) -> str:
        """Its name in reports."""

    def price(self, work: Work) -> Price:
        """The price of one operation, never negative."""


def total(prices: Iterable[Price]) -> Price:
    """The sum of some prices."""
    return sum(prices, FREE)


def of_node(cost_model: Cost, node: Node) -> Price:
    """The price of an operation as the user's code runs it. Constants that are computed at every call are included."""
    return total(map(cost_model.price, work.of_node(node)))


def of_fold(cost_model: Cost, value: AffineConv) -> Price:
    """The price of the plain convolution that computes `value`; `FREE` for the anchor itself."""
    return total(map(cost_model.price, work.of_fold(value)))


def of_map(cost_model: Cost, value: AffineConv, read: int, written: int) -> Price:
    """The price of a map of channels that reads and writes so many elements."""
    return cost_model.price(work.of_map(value, read, written))


def of_copy(cost_model: Cost, elements: int) -> Price:
    """The price of copying so many elements."""
    return cost_model.price(Work("moved", elements, elements))


def of_view(cost_model: Cost) -> Price:
    """The price of a view, such as one part of a split."""
    return cost_model.price(work.VIEW)
