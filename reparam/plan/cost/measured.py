"""Prices that are times, measured on the device at hand for the operations that a plan asks about."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from statistics import median

from reparam.errors import InputError
from reparam.plan.cost.price import Cost, Price
from reparam.plan.cost.sample import Sample
from reparam.plan.cost.static import CPU, StaticCost
from reparam.plan.cost.timing import Setting, Stopwatch, timed
from reparam.plan.cost.work import Work


@dataclass(frozen=True)
class TimedCost:
    """Prices by measured times (microseconds, by the key of a sample).

    An operation without a measured time costs what `static` predicts, times `scale`: the median ratio of measured to
    predicted times.
    """

    name: str
    times: Mapping[str, float]
    scale: float
    static: StaticCost

    def price(self, work: Work) -> Price:
        predicted = self.static.time(work)
        measured = self.times.get(work.sample().key) if work.sample is not None else None
        return Price(self.scale * predicted if measured is None else measured, predicted)


@dataclass(frozen=True)
class MeasuredCost:
    """Times the distinct operations and candidate folds of a plan on the model's device, at the size of its inputs.

    They take turns, `rounds` times, within about `seconds`. The ones predicted to take longest come first; the rest is
    predicted. An object remembers its times (`known`), so a second conversion with it times only what is new.
    stopwatch: measures a call. Raises InputError for `seconds` or `rounds` that are not above zero.
    """

    seconds: float = 30.0
    rounds: int = 9
    stopwatch: Stopwatch = field(default_factory=Stopwatch)
    known: dict[str, dict[str, float]] = field(default_factory=dict, compare=False, repr=False)
    name: str = "measured"

    def __post_init__(self) -> None:
        if not self.seconds > 0 or self.rounds < 1:
            raise InputError(f"seconds={self.seconds}, rounds={self.rounds}: both must be above zero")

    def timed(
        self, make_plan: Callable[[Cost], object], setting: Setting, static: StaticCost, say: Callable[[str], object]
    ) -> TimedCost:
        """The cost model for one model. `make_plan` plans it by a given cost, and so asks for every price it needs."""
        recorder = _SampleRecorder(static)
        make_plan(recorder)
        known = self.known.setdefault(str(setting), {})
        longest = sorted(recorder.samples, key=lambda key: recorder.predicted[key], reverse=True)
        missing = {key: recorder.samples[key] for key in longest if key not in known}
        known |= timed(missing, setting, self.seconds, self.rounds, self.stopwatch, say)
        ratios = [known[key] / recorder.predicted[key] for key in recorder.samples if key in known]
        return TimedCost(f"measured ({setting})", known, median(ratios) if ratios else 1.0, static)


@dataclass(frozen=True)
class _SampleRecorder:
    """A static cost that remembers the work it was asked about. Views are left out: they take next to no time."""

    static: StaticCost = CPU
    name: str = "recorder"
    samples: dict[str, Sample] = field(default_factory=dict)
    predicted: dict[str, float] = field(default_factory=dict)

    def price(self, work: Work) -> Price:
        if work.sample is not None and work.kind != "view":
            sample = work.sample()
            self.samples[sample.key] = sample
            self.predicted[sample.key] = self.static.time(work)
        return self.static.price(work)
