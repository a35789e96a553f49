"""What operations take on the device at hand: timed where a plan asks for their price."""

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
    """Prices by times that were taken (microseconds, by the key of a sample).

    What was not timed is priced by `then`, times `scale`: by so much the others took longer than `then` has predicted.
    """

    name: str
    times: Mapping[str, float]
    scale: float
    then: StaticCost

    def price(self, work: Work) -> Price:
        predicted = self.then.time(work)
        measured = self.times.get(work.sample().key) if work.sample is not None else None
        return Price(self.scale * predicted if measured is None else measured, predicted)


@dataclass(frozen=True)
class MeasuredCost:
    """Times the distinct operations and candidate folds of a plan where the model is, at the size of its inputs.

    They take turns, `rounds` times, within about `seconds`; those that are predicted to take longest come first, and
    what is not reached is predicted. One object remembers what it has timed (`known`), so a second conversion with it
    asks for the rest alone. stopwatch: what the time is taken by.
    Raises InputError for times or rounds that are not above zero.
    """

    seconds: float = 30.0
    rounds: int = 9
    stopwatch: Stopwatch = field(default_factory=Stopwatch)
    known: dict[str, dict[str, float]] = field(default_factory=dict, compare=False, repr=False)
    name: str = "measured"

    def __post_init__(self) -> None:
        if not self.seconds > 0 or self.rounds < 1:
            raise InputError(f"seconds={self.seconds}, rounds={self.rounds}: give more than zero of both")

    def timed(
        self, planned: Callable[[Cost], object], setting: Setting, then: StaticCost, say: Callable[[str], object]
    ) -> TimedCost:
        """The cost for one model; `planned` makes its plan, and so asks for all prices that matter."""
        asked = _Asked(then)
        planned(asked)
        known = self.known.setdefault(str(setting), {})
        longest = sorted(asked.samples, key=lambda key: asked.predicted[key], reverse=True)
        missing = {key: asked.samples[key] for key in longest if key not in known}
        known |= timed(missing, setting, self.seconds, self.rounds, self.stopwatch, say)
        ratios = [known[key] / asked.predicted[key] for key in asked.samples if key in known]
        return TimedCost(f"measured ({setting})", known, median(ratios) if ratios else 1.0, then)


@dataclass(frozen=True)
class _Asked:
    """Predicts, and remembers what it was asked for: views apart, which take no time worth measuring."""

    then: StaticCost = CPU
    name: str = "asked"
    samples: dict[str, Sample] = field(default_factory=dict)
    predicted: dict[str, float] = field(default_factory=dict)

    def price(self, work: Work) -> Price:
        if work.sample is not None and work.kind != "view":
            sample = work.sample()
            self.samples[sample.key] = sample
            self.predicted[sample.key] = self.then.time(work)
        return self.then.price(work)
