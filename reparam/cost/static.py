"""A roofline per device: what an operation takes at most of arithmetic and of memory, and a price per launch."""

from __future__ import annotations

from dataclasses import dataclass

from reparam.cost.price import Price
from reparam.cost.work import Work


@dataclass(frozen=True)
class StaticCost:
    """`max(multiply-adds / rate, bytes / bandwidth) + launch`, in microseconds. Plans depend on the ratios only.

    Rates are multiply-adds per microsecond, by the class of a convolution (see `Work.kind`); bandwidth is bytes per
    microsecond; launch is what any operation takes that computes something, view what one takes that does not;
    element is the bytes of one number.
    """

    device: str = "cpu"
    dense: float = 40_000.0
    depthwise: float = 8_000.0
    bandwidth: float = 10_000.0
    launch: float = 6.0
    view: float = 1.0
    element: float = 4.0

    @property
    def name(self) -> str:
        return f"static ({self.device})"

    def time(self, work: Work) -> float:
        """Microseconds."""
        if work.kind == "view":
            return self.view
        moved = (work.read + work.written + work.weights) * self.element / self.bandwidth
        if not work.macs:
            return moved + self.launch
        rate = self.depthwise if work.kind == "depthwise" else self.dense
        return max(work.macs / rate, moved) + self.launch

    def price(self, work: Work) -> Price:
        time = self.time(work)
        return Price(time, time)


CPU = StaticCost()
CUDA = StaticCost("cuda")
