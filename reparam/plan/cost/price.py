"""What a plan is judged by: the price of each operation that runs, and sums of them."""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple, Protocol, runtime_checkable

from reparam.algebra.affine import AffineConv
from reparam.capture.graph import Node
from reparam.plan.cost import work
from reparam.plan.cost.work import Work


class Price(NamedTuple):
    """Two prices compare by `judged`, in the unit of the cost that was chosen, and where that is equal by `time`.

    time: microseconds, predicted by the static cost.
    """

    judged: float = 0.0
    time: float = 0.0

    def __add__(self, other: Price) -> Price:  # type: ignore[override]
        return Price(self.judged + other.judged, self.time + other.time)

    def __sub__(self, other: Price) -> Price:
        return Price(self.judged - other.judged, self.time - other.time)


FREE = Price()


@runtime_checkable
class Cost(Protocol):
    """What a plan is judged by. One of your own needs these two; it is asked for the same work again and again."""

    @property
    def name(self) -> str:
        """What reports call it."""

    def price(self, work: Work) -> Price:
        """The price of one operation, never negative."""


def total(prices: Iterable[Price]) -> Price:
    """Their sum."""
    return sum(prices, FREE)


def of_node(judge: Cost, node: Node) -> Price:
    """An operation as the user's code runs it, with what it takes to compute its constants again at every call."""
    return total(map(judge.price, work.of_node(node)))


def of_fold(judge: Cost, value: AffineConv) -> Price:
    """The plain convolution that a value would be emitted as; nothing for the anchor itself."""
    return total(map(judge.price, work.of_fold(value)))


def of_map(judge: Cost, value: AffineConv, read: int, written: int) -> Price:
    """A map of channels where it stands, so many elements read and written."""
    return judge.price(work.of_map(value, read, written))


def of_copy(judge: Cost, elements: int) -> Price:
    """An operation that reads so many elements and writes them elsewhere."""
    return judge.price(Work("moved", elements, elements))


def of_view(judge: Cost) -> Price:
    """An operation that looks at a tensor in another way and moves nothing, such as one part of a split."""
    return judge.price(work.VIEW)
