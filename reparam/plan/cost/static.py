"""The static cost: a roofline per type of device, of arithmetic, memory traffic and launches.

The constants of a CPU were fitted by `benchmarks.calibrate` on one core of a server with AVX-512 that ran torch's
float32 kernels, and rounded. The time that Python takes to call a module was added to `launch` and `view`. The
constants of a GPU are not measured: they come from the data sheet of a data centre card (1.5 TB/s, matrix units at a
third of their peak) and from the time that Python takes to launch a kernel. Plans depend on ratios of constants only.
`docs/costs.md` says how to fit them to your machine.
"""

from __future__ import annotations

import dataclasses
import json
import math
from dataclasses import dataclass
from pathlib import Path

from reparam.errors import InputError
from reparam.plan.cost.price import Price
from reparam.plan.cost.work import Work


@dataclass(frozen=True)
class StaticCost:
    """Microseconds by `max(multiply-adds / rate, activations / bandwidth) + weights / packing + launch`.

    dense, pointwise, large, depthwise: multiply-adds per microsecond of convolutions of several pixels, of one pixel
        (and of linear layers and products), of windows of 25 pixels and more, and of one input channel per group.
    grouped: multiply-adds per microsecond of other grouped convolutions, for each input channel of a group; at most
        `dense` in total.
    pool: additions per microsecond of average pools.
    bandwidth: bytes per microsecond of activations; streaming: of activations of grouped and depthwise convolutions,
        which reuse little of what they load; packing: of weights, which a CPU packs at every call.
    launch: microseconds to launch an operation; layer: a convolution or linear layer; view: a view.
    element: bytes of a number.
    """

    device: str = "cpu"
    dense: float = 55_000.0
    pointwise: float = 80_000.0
    large: float = 35_000.0
    grouped: float = 4_000.0
    depthwise: float = 25_000.0
    pool: float = 1_000.0
    bandwidth: float = 30_000.0
    streaming: float = 5_500.0
    packing: float = 5_000.0
    launch: float = 4.0
    layer: float = 15.0
    view: float = 1.0
    element: float = 4.0

    @property
    def name(self) -> str:
        return f"static ({self.device})"

    def time(self, work: Work) -> float:
        """The predicted microseconds."""
        if work.kind == "view":
            return self.view
        moved = (work.read + work.written) * self.element
        if work.kind in ("moved", "pool"):
            return max(work.macs / self.pool, moved / self.bandwidth) + self.launch
        packed = work.weights * self.element / self.packing
        bandwidth = self.streaming if work.kind in ("grouped", "depthwise") else self.bandwidth
        return max(work.macs / self._rate(work), moved / bandwidth) + packed + self.layer

    def _rate(self, work: Work) -> float:
        if work.kind == "grouped":
            return min(self.dense, self.grouped * work.inner)
        rate: float = getattr(self, work.kind)
        return rate

    def price(self, work: Work) -> Price:
        time = self.time(work)
        return Price(time, time)

    def save(self, path: str | Path) -> None:
        """Write the constants as JSON, which `load` and `--cost FILE.json` read."""
        Path(path).write_text(json.dumps(dataclasses.asdict(self), indent=2) + "\n", encoding="utf-8")

    @staticmethod
    def load(path: str | Path) -> StaticCost:
        """Read a file of constants that `save` or `python -m benchmarks.calibrate --save` has written.

        Raises InputError for a file that cannot be read, that lacks a constant or has others, or where one is not above
        zero.
        """
        try:
            constants = json.loads(Path(path).read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise InputError(f"{path}: the constants of a cost cannot be read: {error}") from error
        names = {field.name for field in dataclasses.fields(StaticCost)}
        if not isinstance(constants, dict) or constants.keys() != names:
            wrong = sorted(constants.keys() ^ names) if isinstance(constants, dict) else type(constants).__name__
            raise InputError(
                f"{path}: not the constants of a cost ({wrong}); python -m benchmarks.calibrate --save writes them"
            )
        device = constants.pop("device")
        unusable = [key for key, value in constants.items() if not _positive(value)]
        if not isinstance(device, str) or unusable:
            raise InputError(f"{path}: {', '.join(unusable) or 'device'}: constants are numbers above zero")
        return StaticCost(device, **constants)


def _positive(value: object) -> bool:
    return type(value) in (int, float) and 0 < value < math.inf  # type: ignore[operator]


CPU = StaticCost()
CUDA = StaticCost(
    "cuda",
    dense=20e6,
    pointwise=15e6,
    large=15e6,
    grouped=0.3e6,
    depthwise=1.5e6,
    pool=0.5e6,
    bandwidth=1.2e6,
    streaming=1.0e6,
    packing=1.2e6,
    launch=6.0,
    layer=10.0,
    view=2.0,
)
DEVICES = {"cpu": CPU, "cuda": CUDA}
