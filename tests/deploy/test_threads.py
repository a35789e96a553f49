"""Several threads convert, verify and load at once: every result is right, and the process is left as it was."""

from __future__ import annotations

import copy
import gc
import os
import random
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import reparam
from reparam.capture.float64 import Float64
from reparam.capture.process import ThreadTracer
from reparam.capture.questions import asked, names
from reparam.deploy.files import written
from tests.helpers import image, trained

THREADS = 8
TIMEOUT = 240  # seconds: a deadlock fails the test and does not hang it


class Net(nn.Module):
    """Two branches, and tensors of the default dtype."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.bn = nn.Conv2d(3, 4, 3, padding=1), nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4)

    def forward(self, x: Tensor) -> Tensor:
        return self.bn(self.a(x) + self.b(x)).relu() * torch.full((4, 1, 1), 0.5)


def in_threads(*works: Callable[[], Any]) -> list[Any]:
    """The results of all works, which begin at the same time. Fails where one raises or does not end."""
    results: dict[int, Any] = {}
    errors: list[BaseException] = []
    start = threading.Barrier(len(works))

    def run(place: int, work: Callable[[], Any]) -> None:
        try:
            start.wait(TIMEOUT)
            results[place] = work()
        except BaseException as error:  # noqa: BLE001 - it is raised again below
            errors.append(error)

    threads = [threading.Thread(target=run, args=pair, daemon=True) for pair in enumerate(works)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(TIMEOUT)
        assert not thread.is_alive(), "a thread waits for ever"
    if errors:
        raise errors[0]
    return [results[place] for place in range(len(works))]


def process_state() -> tuple[Any, ...]:
    mask = os.umask(0o77)
    os.umask(mask)
    functions = torch.is_grad_enabled, torch.is_inference_mode_enabled, nn.Module.__call__, nn.Module.__getattr__
    state = torch.get_default_dtype(), nn.Module.__setattr__, mask, gc.isenabled(), torch.get_num_threads()
    return *state, *functions, torch.random.get_rng_state().sum().item()


def test_load_verify_and_reparameterize_in_eight_threads(tmp_path: Path) -> None:
    x = image(1, 3, 9, 7, dtype=torch.float32)
    model = trained(Net(), x, dtype=torch.float32)
    deployed = reparam.reparameterize(model, x)
    reparam.save(deployed, tmp_path / "net.safetensors")
    expected, mistake = deployed(x), copy.deepcopy(model)
    mistake.a.weight.data *= 1.01
    fresh = Net().eval()
    before = process_state()

    def converts() -> bool:
        folded = reparam.reparameterize(model, x)
        return bool(folded.reparam_report.folds) and torch.equal(folded(x), expected)

    def loads() -> bool:
        loaded = reparam.load(tmp_path / "net.safetensors", fresh)
        return torch.equal(loaded(x), expected) and {p.dtype for p in loaded.parameters()} == {torch.float32}

    def verifies() -> bool:
        return reparam.verify(model, deployed, x).ok and not reparam.verify(model, mistake, x, variants=False).ok

    works = [converts, loads, verifies]
    for seed in range(3):
        order = random.Random(seed).choices(works, k=THREADS - 3) + works
        assert in_threads(*(lambda work=work: [work() for _ in range(3)] for work in order)) == [[True] * 3] * THREADS
        assert process_state() == before


@pytest.mark.parametrize("context", [Float64, lambda: asked(lambda question, truth: truth, names())])
def test_what_changes_the_process_puts_it_back(context: Callable[[], Any]) -> None:
    """The first thread that enters also leaves first: without the lock, the second would put back what it found."""
    before = process_state()
    inside, leave = threading.Event(), threading.Event()

    def first() -> None:
        with context():
            inside.set()
            leave.wait(0.5)  # with the lock nobody sets it, as the other thread waits

    def second() -> None:
        assert inside.wait(TIMEOUT)
        with context():
            leave.set()
            threading.Event().wait(0.2)

    in_threads(first, second)
    assert process_state() == before


def test_a_recording_does_not_hear_other_threads() -> None:
    heard: list[str] = []

    def asks() -> None:
        exec("import torch; torch.is_grad_enabled()", {"__name__": "user"})

    def note(question: str, truth: Any) -> Any:
        heard.append(question)
        return truth

    with asked(note, names()):
        in_threads(asks)
        assert heard == []
        asks()
    assert heard == ["torch.is_grad_enabled"]


def test_files_are_written_without_a_change_of_the_umask(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def umask(mask: int) -> int:
        raise AssertionError("another thread would create files without protection")

    monkeypatch.setattr(os, "umask", umask)
    with written([tmp_path / "a.bin"]) as (draft,):
        draft.write_text("")


def test_models_of_other_threads_run_while_one_is_traced() -> None:
    """fx replaces nn.Module.__call__ in the whole process while it traces."""
    other, x = nn.Sequential(nn.Conv2d(3, 4, 1), nn.ReLU()), image(1, 3, 4, 4, dtype=torch.float32)
    expected = other(x)
    results: list[Tensor] = []

    class Slow(nn.Module):
        def forward(self, y: Tensor) -> Tensor:
            results.extend(in_threads(lambda: other(x)))
            return y

    class Outer(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.slow = nn.Conv2d(3, 4, 1), Slow()

        def forward(self, y: Tensor) -> Tensor:
            return self.slow(self.conv(y))

    tracer = ThreadTracer()
    tracer.is_leaf_module = lambda module, name: not isinstance(module, Slow)  # type: ignore[method-assign]
    graph = tracer.trace(Outer())
    assert [torch.equal(result, expected) for result in results] == [True]
    assert [node.op for node in graph.nodes] == ["placeholder", "call_module", "output"]
