"""One symbolic trace for modules that hold the same, and for no others."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from reparam.capture.inputs import Inputs
from reparam.capture.recorder import record
from reparam.capture.snapshot import copied
from reparam.rewrite import trace as trace_module
from reparam.rewrite.proofs import Proofs
from reparam.rewrite.trace import Trace


class Gained(nn.Module):
    def __init__(self, **held: Any) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 3, 3, padding=1)
        self.gain = nn.Parameter(torch.rand(3, 1, 1))
        self.register_buffer("count", torch.tensor(held.pop("count", 2.0)))
        vars(self).update(held)

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.conv(x) * self.gain + x)


class Factor(Gained):
    factor: float

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(x) * self.factor  # type: ignore[no-any-return]


class Given(Gained):
    function: Callable[[Tensor], Tensor]

    def forward(self, x: Tensor) -> Tensor:
        return self.function(self.conv(x))


class Counted(Gained):
    def forward(self, x: Tensor) -> Tensor:
        count = self._buffers["count"]
        assert count is not None
        return self.conv(x) * count.item()  # type: ignore[no-any-return]


class Shared(Gained):
    other: nn.Module

    def forward(self, x: Tensor) -> Tensor:
        return self.other(self.conv(x))  # type: ignore[no-any-return]


class Tried(Gained):
    """Asks an argument for what the trace knows of it: its rank."""

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(x) if x.dim() == 4 else self.conv(x) + 1  # type: ignore[no-any-return]


def traces(monkeypatch: pytest.MonkeyPatch, *blocks: nn.Module) -> tuple[list[Trace], int]:
    """The traces of blocks that run one after another, and how many of them were made by tracing."""
    made = []
    trace = trace_module._traced

    def counted(steps: Trace) -> Any:
        made.append(steps)
        return trace(steps)

    monkeypatch.setattr(trace_module, "_traced", counted)
    run = record(nn.Sequential(*blocks).eval(), Inputs.of(torch.randn(2, 3, 7, 5)))
    proofs = Proofs(run)
    found = [proofs.trace(call, frozenset({call.module})) for call in run.calls if call.module in blocks]
    return found, len(made)


def test_equal_blocks_share_a_trace(monkeypatch: pytest.MonkeyPatch) -> None:
    blocks = [Gained() for _ in range(3)]
    found, made = traces(monkeypatch, *blocks)
    assert made == 1
    assert len({id(trace.graph) for trace in found}) == 3  # each is edited on its own
    assert len({str(trace.graph) for trace in found}) == 1
    for block, trace in zip(blocks, found, strict=True):
        own = set(trace.call.nodes()) | {trace.call.args[0]}
        assert trace.module is block
        assert set(trace.at) <= own
        assert [call.module for call in trace.inner.values()] == [block.conv]


@pytest.mark.parametrize(
    "blocks",
    [
        lambda: (Factor(factor=2.0), Factor(factor=3.0)),
        lambda: (Factor(factor=2.0), Factor(factor=2)),
        lambda: (Given(function=F.relu), Given(function=F.silu)),
        lambda: (Given(function=partial(F.leaky_relu)), Given(function=partial(F.leaky_relu))),
        lambda: (Counted(count=2.0), Counted(count=3.0)),
        lambda: (Counted(), Counted()),
        lambda: (Gained(), Factor(factor=2.0)),
        lambda: (Gained(), Gained(note=[1])),
        lambda: (Gained(note={"a": 1}), Gained(note={"b": 1})),
        lambda: (Gained(note={1}), Gained(note={2})),
    ],
)
def test_unequal_blocks_are_traced_anew(
    monkeypatch: pytest.MonkeyPatch, blocks: Callable[[], tuple[nn.Module, nn.Module]]
) -> None:
    assert traces(monkeypatch, *blocks())[1] == 2


def test_blocks_that_share_modules_are_traced_anew(monkeypatch: pytest.MonkeyPatch) -> None:
    first, second = Shared(), Shared()
    first.other, second.other = first.conv, nn.Conv2d(3, 3, 3, padding=1)
    assert traces(monkeypatch, first, second)[1] == 2


def test_a_hooked_block_is_traced_anew(monkeypatch: pytest.MonkeyPatch) -> None:
    first, second = Gained(), Gained()
    second.conv.register_forward_hook(lambda module, args, result: None)
    assert traces(monkeypatch, first, second)[1] == 2


def test_a_trace_is_shared_among_inputs_of_one_rank(monkeypatch: pytest.MonkeyPatch) -> None:
    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.batched, self.single = Tried(), Tried()

        def forward(self, x: Tensor) -> Tensor:
            return self.batched(x)[0] + self.single(x[0])  # type: ignore[no-any-return]

    run = record(Model().eval(), Inputs.of(torch.randn(2, 3, 7, 5)))
    proofs = Proofs(run)
    batched, single = (proofs.trace(c, frozenset({c.module})) for c in run.calls if isinstance(c.module, Tried))
    assert len(single.graph.nodes) == len(batched.graph.nodes) + 1


def test_copied_registries_belong_to_one_module_each() -> None:
    model = nn.Sequential(nn.ReLU(), nn.ReLU())
    twin = copied(model)
    calls = []
    twin[0].register_forward_hook(lambda module, args, result: calls.append(module))
    x = torch.randn(2)
    model(x)
    assert not calls
    twin(x)
    assert calls == [twin[0]]


def test_a_registry_that_two_modules_share_is_shared_in_the_copy() -> None:
    model = nn.Sequential(nn.ReLU(), nn.ReLU())
    model[1]._forward_hooks = model[0]._forward_hooks
    twin = copied(model)
    assert twin[1]._forward_hooks is twin[0]._forward_hooks
    assert twin[0]._forward_hooks is not model[0]._forward_hooks
