"""Turns, refusals and the form of the result; never the times themselves."""

from __future__ import annotations

import functools
import pickle
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from reparam.capture.float64 import double
from reparam.compare import bench
from reparam.compare.bench import Comparison, Spread, Timing, benchmark
from reparam.errors import InputError, TrainModeError, VerificationError

X = torch.randn(2, 3, 5, 7, generator=torch.Generator().manual_seed(0))


class Counting:
    """Notes its own name at every call."""

    def __init__(self, name: str, calls: list[str]) -> None:
        self.name, self.calls = name, calls

    def __call__(self, x: Tensor) -> Tensor:
        self.calls.append(self.name)
        return x


def net() -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.BatchNorm2d(4)).eval()


def fused(model: nn.Sequential) -> nn.Module:
    return torch.nn.utils.fuse_conv_bn_eval(model[0], model[1]).eval()


def test_models_take_turns(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bench, "SAMPLE", 1e-9)  # one call a sample, however fast
    calls: list[str] = []
    models = {name: Counting(name, calls) for name in "abc"}
    found = benchmark(models, X, rounds=4, warmup=1, check=False)
    assert "".join(calls[:6]) == "aabbcc"
    turns = ["".join(calls[i : i + 6]) for i in range(6, len(calls), 6)]
    assert len(turns) == 4
    assert all(sorted(turn) == list("aabbcc") for turn in turns)
    assert len({*turns}) > 1, "whoever comes first finds what the last one has left, round after round"
    assert all(turn[::2] == turn[1::2] for turn in turns), "a call that does not count, then the one that does"
    assert [timing.repeats for timing in found.timings] == [1, 1, 1]


def test_fast_calls_are_repeated_within_a_sample() -> None:
    calls: list[str] = []
    found = benchmark({"a": Counting("a", calls)}, X, rounds=2, warmup=19, check=False)
    assert found.timings[0].repeats > 10  # a call takes microseconds, a sample 10 ms, however long one is held up
    assert len(calls) == 20 + 2 * (1 + found.timings[0].repeats)


def test_gradients_are_off_and_arguments_arrive() -> None:
    seen: set[bool] = set()

    def model(x: Tensor, *, scale: float) -> Tensor:
        seen.add(torch.is_inference_mode_enabled())
        return x * scale

    benchmark({"a": model}, {"x": X, "scale": 2.0}, rounds=1, warmup=0, check=False)
    assert seen == {True}


def test_equal_models_are_compared() -> None:
    model = net()
    found = benchmark({"branches": model, "folded": fused(model), "function": lambda x: model(x)}, X, rounds=3)
    assert [timing.name for timing in found.timings] == ["branches", "folded", "function"]
    assert all(len(timing.wall_samples) == len(timing.cpu_samples) == 3 for timing in found.timings)
    assert all(seconds > 0 for timing in found.timings for seconds in timing.wall_samples)
    assert found.checked
    assert (found.inputs, found.device) == ("2x3x5x7", "cpu")


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
@pytest.mark.parametrize("as_function", [False, True])
def test_a_wrong_model_is_not_timed(dtype: torch.dtype, as_function: bool) -> None:
    model = net().to(dtype)
    wrong = fused(model)
    wrong.bias.data[0] += 0.5
    entry: Any = (lambda x: wrong(x)) if as_function else wrong
    with pytest.raises(VerificationError, match=r"^wrong:"):
        benchmark({"right": model, "wrong": entry}, X.to(dtype), rounds=1)
    assert not benchmark({"right": model, "wrong": entry}, X.to(dtype), rounds=1, check=False).checked


@functools.cache
def ramp(length: int) -> Tensor:
    return torch.linspace(0.1, 0.7, length)


class Ramp(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x * ramp(x.shape[-1])


def test_a_comparison_leaves_no_tables_of_float64() -> None:
    benchmark({"a": Ramp().eval(), "b": Ramp().eval()}, torch.randn(2, 3), rounds=1, warmup=0)
    assert ramp(3).dtype == torch.float32


def test_another_runtime_may_round_more_than_a_conversion() -> None:
    model = nn.Sequential(*(nn.Conv2d(16, 16, 3, padding=1) for _ in range(12))).eval()
    reference = double(model)

    def rougher(x: Tensor) -> Tensor:
        """Six times as far from the truth as the model is."""
        truth = reference(x.double())
        return (truth + 6 * (model(x).double() - truth)).float()

    class Rougher(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return rougher(x)

    x = torch.randn(1, 16, 9, 11, generator=torch.Generator().manual_seed(0))
    with pytest.raises(VerificationError, match=r"^eager:"):
        benchmark({"model": model, "eager": Rougher().eval()}, x, rounds=1)
    assert benchmark({"model": model, "elsewhere": rougher}, x, rounds=1).checked


@pytest.mark.parametrize(
    "other",
    [lambda x: x[:, :2], lambda x: (x,), lambda x: {"y": x}, lambda x: x * float("nan"), lambda x: x * 1.0001, abs],
)
def test_a_different_output_is_refused(other: Any) -> None:
    with pytest.raises(VerificationError, match=r"^b:"):
        benchmark({"a": nn.Identity().eval(), "b": other}, X, rounds=1)


def test_without_a_module_there_is_no_truth_to_check_against() -> None:
    with pytest.raises(InputError, match="check=False"):
        benchmark({"a": abs, "b": abs}, X, rounds=1)


def test_train_mode_is_refused() -> None:
    model = net()
    model[1].train()
    with pytest.raises(TrainModeError, match=r"^b: in train mode: 1;"):
        benchmark({"a": net(), "b": model}, X, rounds=1, check=False)


@pytest.mark.parametrize("wrong", [{"rounds": 0}, {"warmup": -1}, {"models": {}}, {"threads": 0}])
def test_unusable_arguments_are_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(InputError, match="give"):
        benchmark(**{"models": {"a": net()}, "example_inputs": X} | wrong)


def test_threads_hold_for_the_call_alone() -> None:
    before, seen = torch.get_num_threads(), set()

    def model(x: Tensor) -> Tensor:
        seen.add(torch.get_num_threads())
        return x

    assert benchmark({"a": model}, X, rounds=1, threads=1, check=False).threads == 1
    assert seen == {1}
    assert torch.get_num_threads() == before

    def fails(x: Tensor) -> Tensor:
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        benchmark({"a": fails}, X, threads=1, check=False)
    assert torch.get_num_threads() == before


def comparison() -> Comparison:
    """The second is twice as fast in every round, although rounds differ by a factor of 100."""
    slow, fast = (1.0, 100.0, 10.0), (0.5, 50.0, 5.0)
    return Comparison(
        (Timing("slow", 1, slow, slow), Timing("fast", 2, fast, fast)), "1x3x8x8", "cpu", threads=1, checked=True
    )


def test_the_ratio_is_formed_round_by_round() -> None:
    assert comparison().ratio("fast") == Spread(0.5, 0.5, 0.5)
    assert comparison().ratio("slow") == Spread(1.0, 1.0, 1.0)
    with pytest.raises(KeyError):
        comparison().ratio("other")


def test_spread_is_median_and_quartiles() -> None:
    spread = Spread.of([5.0, 1.0, 2.0, 3.0, 4.0])
    assert spread == Spread(3.0, 2.0, 4.0)
    assert spread.iqr == 2.0


def test_the_result_prints_and_pickles() -> None:
    text = str(comparison())
    assert "0.500" in text
    assert "3 interleaved rounds" in text
    assert "1 thread," in text
    assert "checked equal" in text
    assert pickle.loads(pickle.dumps(comparison())) == comparison()
