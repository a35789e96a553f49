"""Costs: what they count, that no plan costs more than the original, and how times are taken (by a clock in tests)."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

import reparam
from benchmarks import calibrate
from reparam.capture.inputs import Inputs
from reparam.capture.runs import record
from reparam.errors import InputError
from reparam.plan import cost
from reparam.plan.cost import CPU, CUDA, Cost, MeasuredCost, ParamsCost, Price, StaticCost, TimedCost, Work
from reparam.plan.cost.sample import Sample, Shaped
from reparam.plan.cost.timing import Setting, Stopwatch, timed
from reparam.plan.cost.work import of_fold, of_node
from reparam.plan.liveness import alive
from reparam.plan.plan import plan
from reparam.report.report import Report
from reparam.rules.interpret import Interpretation
from tests.helpers import Block, Launches, image, trained
from tests.plan.test_plan import CHANNELS, STEPS, Network, Step


def works(module: nn.Module, x: Tensor) -> list[Work]:
    """What the last operation of a module runs."""
    return list(of_node(record(module.eval(), Inputs.of(x)).nodes[-1]))


def report_by(model: nn.Module, x: Tensor, judge: Any = "static", **options: Any) -> Report:
    report = reparam.reparameterize(model, x, cost=judge, verify=False, **options).reparam_report
    assert isinstance(report, Report)
    return report


# --- what runs

X = torch.zeros(2, 8, 6, 5)
KINDS: dict[str, tuple[nn.Module, str, int, int]] = {
    "dense": (nn.Conv2d(8, 4, 3), "dense", 2 * 4 * 4 * 3 * 8 * 9, 8 * 4 * 9 + 4),
    "pointwise": (nn.Conv2d(8, 4, 1, bias=False), "pointwise", 2 * 4 * 6 * 5 * 8, 32),
    "large": (nn.Conv2d(8, 4, 5, padding=2), "large", 2 * 4 * 6 * 5 * 8 * 25, 8 * 4 * 25 + 4),
    "grouped": (nn.Conv2d(8, 4, 3, groups=2), "grouped", 2 * 4 * 4 * 3 * 4 * 9, 4 * 4 * 9 + 4),
    "depthwise": (nn.Conv2d(8, 8, 3, groups=8), "depthwise", 2 * 8 * 4 * 3 * 9, 80),
    "transposed": (nn.ConvTranspose2d(8, 4, 3, stride=2), "dense", 2 * 8 * 6 * 5 * 4 * 9, 8 * 4 * 9 + 4),
    "linear": (nn.Sequential(nn.Linear(5, 7)), "pointwise", 2 * 8 * 6 * 5 * 7, 42),
    "norm": (nn.BatchNorm2d(8), "moved", 0, 32),
    "pool": (nn.AvgPool2d(3, 1), "pool", 2 * 8 * 4 * 3 * 9, 0),
    "view": (nn.Flatten(), "view", 0, 0),
    "product": (Block(lambda m, x: x @ x.transpose(2, 3)), "pointwise", 2 * 8 * 6 * 6 * 5, 0),
}


@pytest.mark.parametrize("name", KINDS)
def test_the_work_of_an_operation(name: str) -> None:
    module, kind, macs, stored = KINDS[name]
    (work,) = works(module, X)
    assert (work.kind, work.macs, work.stored) == (kind, macs, stored)


@pytest.mark.parametrize("name", [name for name in KINDS if name not in ("norm", "pool", "view", "product")])
def test_a_fold_of_one_layer_is_that_layer(name: str) -> None:
    recorded = record(KINDS[name][0].eval(), Inputs.of(X))
    planned = plan(recorded)
    assert not planned.folds  # it is what it was
    (node,) = [node for node in recorded.nodes if node.function is not None]
    value = Interpretation(recorded.nodes, set(), (), set()).value(recorded.nodes[0], node)
    assert list(of_fold(value)) == list(of_node(node))
    ours, theirs = (next(iter(each)).sample for each in (of_fold(value), of_node(node)))
    assert ours is not None
    assert theirs is not None
    assert ours().key == theirs().key  # timed once


def test_a_parameter_of_two_operations_is_stored_by_neither() -> None:
    shared = nn.Conv2d(8, 8, 1)
    recorded = record(Block(lambda m, x: m.conv(m.conv(x)), conv=shared).eval(), Inputs.of(X))
    assert [work.stored for node in recorded.nodes[1:] for work in of_node(node)] == [0, 0]


# --- constants


def test_every_constant_changes_some_time() -> None:
    every = [work for module, *_ in KINDS.values() for work in works(module, X)]
    for name in ("dense", "pointwise", "large", "grouped", "depthwise", "pool", "bandwidth", "streaming", "packing"):
        slower: StaticCost = replace(CPU, **{name: getattr(CPU, name) / 1e6})
        assert any(slower.time(work) > CPU.time(work) for work in every), name
    for name in ("launch", "layer", "view"):
        dearer: StaticCost = replace(CPU, **{name: getattr(CPU, name) + 1})
        assert any(dearer.time(work) == CPU.time(work) + 1 for work in every), name


def test_constants_are_the_same_after_saving(tmp_path: Path) -> None:
    mine = replace(CUDA, device="mine", dense=123.5)
    mine.save(tmp_path / "mine.json")
    assert StaticCost.load(tmp_path / "mine.json") == mine


def test_calibration_finds_the_constants_that_made_the_times() -> None:
    """A few times that a busy machine has spoilt do not change it."""
    truth = replace(CPU, dense=9_000.0, pointwise=20_000.0, bandwidth=4_000.0, launch=2.0, layer=30.0, pool=300.0)
    every = list(calibrate.cases(((16, 14), (64, 56), (256, 14))))
    times = {case: truth.time(case.work) * (5 if i % 11 == 0 else 1) for i, case in enumerate(every)}
    found = calibrate.fitted(CPU, times)
    assert calibrate.typical_error(CPU, times) > 1.5
    assert calibrate.typical_error(found, times) < 1.05
    assert calibrate.rounded(replace(CPU, dense=12_345.0)).dense == 12_000.0


WRONG: dict[str, Callable[[dict[str, Any]], Any]] = {
    "no file": lambda data: None,
    "no JSON": lambda data: "{",
    "a list": lambda data: [1],
    "one missing": lambda data: {key: value for key, value in data.items() if key != "dense"},
    "one too many": lambda data: {**data, "more": 1},
    "zero": lambda data: {**data, "dense": 0},
    "a text": lambda data: {**data, "dense": "fast"},
    "true": lambda data: {**data, "dense": True},
    "not a number": lambda data: {**data, "dense": float("nan")},
    "a device that is none": lambda data: {**data, "device": 3},
}


@pytest.mark.parametrize("wrong", WRONG)
def test_a_file_with_wrong_constants_is_refused(wrong: str, tmp_path: Path) -> None:
    CPU.save(tmp_path / "mine.json")
    data = WRONG[wrong](json.loads((tmp_path / "mine.json").read_text()))
    if data is None:
        (tmp_path / "mine.json").unlink()
    else:
        (tmp_path / "mine.json").write_text(data if isinstance(data, str) else json.dumps(data))
    with pytest.raises(InputError, match=r"mine\.json"):
        StaticCost.load(tmp_path / "mine.json")


def test_an_object_that_is_no_cost_is_refused() -> None:
    with pytest.raises(InputError, match="no `name` and `price`"):
        report_by(nn.Conv2d(8, 8, 1).eval(), X, 3)
    with pytest.raises(InputError, match=r"'speed'.*'static'"):
        report_by(nn.Conv2d(8, 8, 1).eval(), X, "speed")
    with pytest.raises(InputError, match="above zero"):
        MeasuredCost(seconds=0)


# --- plans


class Ticking:
    """A clock by which each call of a sample takes as long as its name says."""

    def __init__(self, lasts: Callable[[str], float]) -> None:
        self.now, self.lasts, self.ran = 0.0, lasts, list[str]()

    def __call__(self) -> float:
        return self.now

    def stopwatch(self) -> Stopwatch:
        return Stopwatch(self)

    @staticmethod
    def watching(monkeypatch: pytest.MonkeyPatch, lasts: Callable[[str], float]) -> Ticking:
        ticking = Ticking(lasts)

        def call(sample: Sample, tensor: Callable[[Shaped], Tensor]) -> Callable[[], None]:
            def run() -> None:
                ticking.ran.append(sample.key)
                ticking.now += ticking.lasts(sample.key)

            return run

        monkeypatch.setattr(Sample, "call", call)
        return ticking


def fixed_time(key: str) -> float:
    """A time between one and a hundred microseconds, for each key another one, the same on every machine."""
    number = sum((i + 1) * ord(sign) for i, sign in enumerate(key)) % 9973
    return 1e-6 * (1 + number / 100)


def running(model: nn.Module, x: Tensor) -> Iterator[Work]:
    """Everything that runs, counted from a recording of the model alone."""
    recorded = record(model, Inputs.of(x))
    live = alive(recorded)
    for node in recorded.nodes:
        if node in live and node.function is not None and not node.constant:
            yield from of_node(node)


JUDGES: dict[str, Callable[[], Any]] = {
    "static": lambda: "static",
    "gpu": lambda: CUDA,
    "params": lambda: "params",
    "flops": lambda: "flops",
    "measured": lambda: MeasuredCost(seconds=1e6, rounds=1),
}


@pytest.mark.parametrize("name", JUDGES)
@settings(max_examples=40, deadline=None)
@given(st.lists(STEPS, min_size=1, max_size=9), st.lists(st.integers(0, 8), max_size=3), st.sampled_from([3, 17, 64]))
def test_no_network_costs_more_than_before(name: str, steps: list[Step], sinks: list[int], size: int) -> None:
    model, x = trained(Network(steps, sinks)), image(1, CHANNELS, size, size + 2)
    with pytest.MonkeyPatch.context() as patched:
        ticking = Ticking.watching(patched, fixed_time)
        judge = JUDGES[name]()
        if isinstance(judge, MeasuredCost):
            judge = replace(judge, stopwatch=ticking.stopwatch())
        deployed = reparam.reparameterize(model, x, cost=judge, verify=False)
    if name == "params":
        before, after = (float(sum(t.numel() for t in m.state_dict().values() if t.dim())) for m in (model, deployed))
    elif name == "measured":
        times = [sum(fixed_time(w.sample().key) for w in running(m, x) if w.kind != "view") for m in (model, deployed)]  # type: ignore[misc]
        before, after = times
    elif name == "flops":
        before, after = (float(sum(w.macs for w in running(m, x) if w.weights)) for m in (model, deployed))
    else:
        roofline = CUDA if name == "gpu" else CPU
        before, after = (sum(map(roofline.time, running(m, x))) for m in (model, deployed))
    assert after <= before * (1 + 1e-9)


def narrow_chain(narrow: int, bias: bool = False) -> nn.Module:
    """A narrowing 1x1 convolution and a widening one."""
    layers = nn.Sequential(nn.Conv2d(64, narrow, 1, bias=bias), nn.Conv2d(narrow, 64, 1, bias=bias))
    return trained(layers, dtype=torch.float32)


@pytest.mark.parametrize("judge", ["static", "params", "flops"])
def test_a_narrow_chain_stays_where_it_is_cheaper(judge: str) -> None:
    x = image(1, 64, 112, 112, dtype=torch.float32)
    assert report_by(narrow_chain(4), x, judge).after.convs == 2
    assert report_by(narrow_chain(60), x, judge).after.convs == 1


def of_chain(whole: float, key: str) -> float:
    return whole if "(64, 64, 1, 1)" in key else 2e-6


def test_a_narrow_chain_stays_where_it_is_measured_to_be_faster(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = {2: 5e-6, 1: 3e-6}  # seconds of one layer instead of both, by the layers that come out
    for layers, seconds in whole.items():
        ticking = Ticking.watching(monkeypatch, partial(of_chain, seconds))
        judge = MeasuredCost(stopwatch=ticking.stopwatch())
        assert report_by(narrow_chain(4), image(1, 64, 9, 7, dtype=torch.float32), judge).after.convs == layers


def test_ties_are_broken_by_the_static_cost() -> None:
    """A norm behind a convolution with a bias: folding saves an operation and no multiply-adds."""
    model = trained(nn.Sequential(nn.Conv2d(8, 8, 3), nn.BatchNorm2d(8)))
    assert report_by(model, image(1, 8, 9, 7), "flops").after.norms == 0


def test_a_shift_behind_a_sum_is_distributed_only_where_it_costs_no_parameters() -> None:
    """One number for all channels would become a bias per channel of one operand."""

    def forward(m: Any, x: Tensor) -> Tensor:
        return F.relu(m.a(F.relu(x)) + m.b(F.tanh(x)) + 0.5)

    def model() -> nn.Module:
        return trained(Block(forward, a=nn.Conv2d(8, 8, 3, bias=False), b=nn.Conv2d(8, 8, 3, bias=False)))

    x = image(1, 8, 9, 7)
    assert report_by(model(), x, "static").after.elementwise == 1
    assert report_by(model(), x, "params").after.elementwise == 2


def test_a_custom_cost() -> None:
    assert isinstance(Launches(), Cost)
    report = report_by(narrow_chain(4), image(1, 64, 112, 112, dtype=torch.float32), Launches())
    assert (report.after.convs, report.cost, report.predicted) == (1, "launches", None)


# --- times


def sample(name: str) -> Sample:
    return Sample(torch.relu, (name,))


def test_samples_take_turns(monkeypatch: pytest.MonkeyPatch) -> None:
    ticking = Ticking.watching(monkeypatch, lambda key: 2e-3 if "a" in key.removeprefix("relu") else 4e-3)
    samples = {name: sample(name) for name in ("a", "b")}
    said: list[str] = []
    found = timed(samples, Setting(torch.device("cpu")), 10.0, 3, ticking.stopwatch(), said.append)
    assert found == pytest.approx({"a": 2e3, "b": 4e3})
    first, second = samples["a"].key, samples["b"].key
    assert ticking.ran == [first] * 3 + [second] * 3 + [first, second] * 3
    assert said == [f"timing 2 of 2 candidates, round {turn} of 3" for turn in (1, 2, 3)]


def test_short_calls_are_repeated_within_a_sample(monkeypatch: pytest.MonkeyPatch) -> None:
    ticking = Ticking.watching(monkeypatch, lambda key: 1e-4)
    timed({"a": sample("a")}, Setting(torch.device("cpu")), 10.0, 2, ticking.stopwatch())
    assert len(ticking.ran) == 3 + 2 * 10


def test_measuring_stops_at_its_time_limit_and_predicts_the_rest(monkeypatch: pytest.MonkeyPatch) -> None:
    ticking = Ticking.watching(monkeypatch, lambda key: 1.0)
    samples = {name: sample(name) for name in "abcdefgh"}
    found = timed(samples, Setting(torch.device("cpu")), 10.0, 99, ticking.stopwatch())
    assert list(found) == ["a", "b"]  # three calls each, until half of the time is over
    assert ticking.now <= 11.0
    work = works(nn.Conv2d(8, 8, 3), X)[0]
    assert TimedCost("", {}, 3.0, CPU).price(work) == Price(3 * CPU.time(work), CPU.time(work))


def test_candidates_that_cannot_be_called_are_left_out() -> None:
    samples = {"no": sample("a"), "yes": Sample(torch.relu, (Shaped((2, 3)),))}
    assert list(timed(samples, Setting(torch.device("cpu")), 1.0, 1, Stopwatch())) == ["yes"]


def test_times_are_remembered(monkeypatch: pytest.MonkeyPatch) -> None:
    ticking = Ticking.watching(monkeypatch, fixed_time)
    judge = MeasuredCost(stopwatch=ticking.stopwatch(), rounds=2)
    model, x = reparam.nn.draw_statistics(reparam.nn.RepVGGBlock(8, 8)).eval(), torch.randn(1, 8, 9, 7)
    first = report_by(model, x, judge)
    ran = len(ticking.ran)
    assert ran > 0
    again = report_by(model, x, judge)
    assert len(ticking.ran) == ran
    assert again.measured == first.measured
    report_by(model.double(), x.double(), judge)
    assert len(ticking.ran) > ran  # another dtype takes another time


def test_every_sample_of_a_network_can_be_called() -> None:
    """On the shapes, and with the arguments, that the model itself uses."""
    model = reparam.nn.demo_network().eval()
    x = torch.randn(1, 3, 33, 32)
    setting = Setting.of(model, Inputs.of(x))
    for work in running(model, x):
        if work.sample is not None:
            result = work.sample().call(setting.tensor)()
            if isinstance(result, Tensor) and work.kind != "view":  # a write returns nothing
                assert result.numel() == work.written


def test_samples_run_in_the_models_dtype_and_format() -> None:
    model = nn.Conv2d(3, 8, 3).to(memory_format=torch.channels_last).half()
    setting = Setting.of(model, Inputs.of(X))
    assert (setting.device.type, setting.dtype, setting.channels_last) == ("cpu", torch.float16, True)
    assert setting.tensor(Shaped((2, 3, 4, 5))).is_contiguous(memory_format=torch.channels_last)
    assert setting.tensor(Shaped((4,), torch.long)).dtype == torch.long
    assert not Setting.of(nn.Conv2d(3, 8, 3), Inputs.of(X)).channels_last
    assert Setting.of(nn.ReLU(), Inputs.of(X.double())).dtype == torch.float64


# --- reports


def test_the_report_says_what_each_fold_takes(monkeypatch: pytest.MonkeyPatch) -> None:
    ticking = Ticking.watching(monkeypatch, lambda key: 40e-6 if key.startswith("conv") else 10e-6)
    model = trained(nn.Sequential(nn.Conv2d(8, 8, 3), nn.BatchNorm2d(8), nn.ReLU()), dtype=torch.float32)
    x = image(1, 8, 9, 7, dtype=torch.float32)
    report = report_by(model, x, MeasuredCost(stopwatch=ticking.stopwatch()))
    (fold,) = report.folds
    assert fold.measured is not None
    assert fold.predicted is not None
    assert report.predicted is not None
    assert (fold.measured.before, fold.measured.after) == pytest.approx((50.0, 40.0))
    assert report.measured == fold.measured
    assert report.worth.startswith("Measured: what was folded takes 20 % less time. Predicted: the network takes ")
    saved = fold.predicted.before - fold.predicted.after
    assert report.predicted.before - report.predicted.after == pytest.approx(saved)
    conv, norm, relu = (CPU.time(work) for work in running(model, x))
    assert (report.predicted.before, report.predicted.after) == pytest.approx((conv + norm + relu, conv + relu))
    for text in (str(report), report.to_html(), report.to_markdown()):
        assert "Measured: what was folded takes 20 % less time" in text
        assert "50 -> 40" in text or "50 -&gt; 40" in text or "50 -> 40".replace(">", "\\>") in text
    data = json.loads(report.to_json())
    assert data["worth"] == report.worth
    assert data["measured"] == pytest.approx({"before": 50.0, "after": 40.0})
    assert data["folds"][0]["predicted"]["before"] == pytest.approx(conv + norm)


def test_a_fold_that_is_not_faster_is_reported() -> None:
    plain = trained(nn.Sequential(nn.Conv2d(8, 8, 3), nn.ReLU()))
    assert report_by(plain, image(1, 8, 9, 7)).worth == "Nothing was folded: the network takes as long as before."
    large = nn.Sequential(nn.Conv2d(8, 256, 3), nn.ReLU(), nn.Conv2d(256, 256, 3, bias=False), nn.ReLU())
    little = trained(nn.Sequential(large, nn.Conv2d(256, 8, 1), nn.BatchNorm2d(8)), dtype=torch.float32)
    report = report_by(little, image(1, 8, 33, 32, dtype=torch.float32))
    assert report.folds
    assert "less time: do not expect it to be faster." in report.worth


def test_a_fold_with_more_parameters_is_reported() -> None:
    report = report_by(narrow_chain(4), image(1, 64, 3, 3, dtype=torch.float32), Launches())
    assert report.after.convs == 1
    assert "It holds 700 % more parameters than before." in report.worth


def test_sums_of_prices() -> None:
    assert cost.total([Price(1, 2), Price(3, 4)]) == Price(4, 6) == Price(5, 9) - Price(1, 3)
    assert Price(1, 9) < Price(2, 0) < Price(2, 1)
    assert ParamsCost().price(cost.VIEW) == Price(0, CPU.view)
