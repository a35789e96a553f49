"""A new forward reads what has been assigned, and names what is there, also where code hands tensors on."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import reparam
from reparam.errors import VerificationError
from reparam.rewrite.index import StepIndex
from reparam.rewrite.program import Program, Reference, Step
from reparam.rewrite.unused import UnusedModules
from tests.helpers import EXACT, Block, converted, convs_ran, distance, image, same_conv, trained

HANDED_ON: dict[str, Callable[[nn.Module, Tensor], Tensor]] = {
    "itself": lambda m, y: y,
    "F.dropout": lambda m, y: F.dropout(y, 0.3, m.training),
    "nn.Dropout": lambda m, y: m.drop(y),
    "contiguous": lambda m, y: y.contiguous(),
    "to": lambda m, y: y.to(y.dtype),
    "double": lambda m, y: y.double(),
    "type_as": lambda m, y: y.type_as(y),
    "times 1": lambda m, y: y * 1,
    "plus 0": lambda m, y: y + 0,
}
X = image(2, 4, 7, 5)


HandsOn = Callable[[nn.Module, Tensor], Tensor]


def network(function: Callable[[nn.Module, Tensor, HandsOn, HandsOn], Tensor], first: str, second: str) -> nn.Module:
    def forward(m: nn.Module, x: Tensor) -> Tensor:
        return function(m, m.p(x) + m.q(x), HANDED_ON[first], HANDED_ON[second])

    layers = {name: same_conv(4, 4, taps) for name, taps in (("p", 3), ("q", 1), ("a", 3), ("b", 1))}
    return trained(Block(forward, drop=nn.Dropout(0.3), **layers), X)


def _one_is_convolved(m: nn.Module, y: Tensor, first: HandsOn, second: HandsOn) -> Tensor:
    return torch.relu(m.a(first(m, y)) + second(m, y))


def _both_are_convolved(m: nn.Module, y: Tensor, first: HandsOn, second: HandsOn) -> Tensor:
    return torch.relu(m.a(first(m, y)) + m.b(second(m, y))) * y.mean()


@pytest.mark.parametrize("function", [_one_is_convolved, _both_are_convolved])
@pytest.mark.parametrize("first", HANDED_ON)
def test_a_tensor_that_is_handed_on_behind_a_fold(function: Callable[..., Tensor], first: str) -> None:
    for second in HANDED_ON:
        model = network(function, first, second)
        folded = reparam.reparameterize(model, X, verify=False)
        assert convs_ran(folded, X) == 2, second
        for x in (X, image(1, 4, 1, 2)):
            assert distance(model, folded, x) < EXACT, second


# --- the check


def _program(*steps: Step) -> Program:
    return Program((Step("placeholder", "x", "x"), *steps, Step("output", "output", "output", (Reference("y"),))))


@pytest.mark.parametrize(
    ("step", "fault"),
    [
        (Step("call_module", "y", "conv", (Reference("x"),)), ""),
        (Step("call_module", "y", "seq.0", (Reference("x"),)), ""),
        (Step("get_attr", "y", "conv.weight"), ""),
        (Step("call_module", "y", "conv", (Reference("z"),)), "y reads z before it is assigned"),
        (Step("call_function", "y", "torch.add", (Reference("x"), [Reference("y")])), "y reads y before"),
        (Step("call_module", "y", "convs", (Reference("x"),)), r"y uses self.convs, which is not there"),
        (Step("call_module", "y", "seq.1", (Reference("x"),)), r"y uses self.seq.1, which is not there"),
        (Step("get_attr", "y", "conv.bias"), r"y uses self.conv.bias, which is not there"),
    ],
)
def test_a_wrong_program_says_what_is_wrong(step: Step, fault: str) -> None:
    module = nn.Module()
    module.conv = nn.Conv2d(4, 4, 1, bias=False)
    module.seq = nn.Sequential(nn.ReLU())
    assert _program(step).fault(module).startswith(fault)
    assert bool(_program(step).fault(module)) == bool(fault)


def _read_too_early(monkeypatch: pytest.MonkeyPatch) -> None:
    def add_call(self: StepIndex, name: str, start: torch.fx.Node, nodes: object) -> torch.fx.Node:
        with self.code.graph.inserting_before(start):
            return self.code.graph.call_module(name, (start,))

    monkeypatch.setattr(StepIndex, "add_call", add_call)


def _drop_too_much(monkeypatch: pytest.MonkeyPatch) -> None:
    drop = UnusedModules.drop

    def dropped(self: UnusedModules, trace: object, names: set[str], idle: set[str]) -> None:
        drop(self, trace, {name for name in names if not name.startswith("conv")}, {"conv"})  # type: ignore[arg-type]

    monkeypatch.setattr(UnusedModules, "drop", dropped)


@pytest.mark.parametrize(
    ("mistake", "said"), [(_read_too_early, "before it is assigned"), (_drop_too_much, "is not there")]
)
def test_a_wrong_forward_is_no_result(
    mistake: Callable[[pytest.MonkeyPatch], None], said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    mistake(monkeypatch)
    with pytest.raises(VerificationError, match=f"the new forward of the model itself is wrong: .*{said}"):
        converted(network(_one_is_convolved, "itself", "itself"), X, verify=False)


def test_operators_that_torch_wraps_pickle() -> None:
    """Torch wraps some operators, such as `**`, in functions that have no place of their own."""

    def forward(m: Any, x: Tensor) -> Tensor:
        return m.norm(m.a(x) + m.b(x)) ** 2 + 2**x - x // 2 - 3 % (x.abs() + 1)

    layers = {"a": nn.Conv2d(4, 4, 3, padding=1), "b": nn.Conv2d(4, 4, 1), "norm": nn.BatchNorm2d(4)}
    model, x = trained(Block(forward, **layers)), image(1, 4, 5, 7)
    folded = reparam.reparameterize(model, x)
    assert "** 2" in folded.code
    assert distance(model, folded, image(2, 4, 3, 4)) < EXACT


def test_a_forward_that_is_written_out_elsewhere_is_called_no_more() -> None:
    """A second conversion writes out a forward that the first one has made."""
    inner = Block(lambda m, x: torch.cat([m.norm(m.a(x)), m.b(-m.a(x))], 1))
    inner.a, inner.b, inner.norm = nn.Conv1d(4, 4, 1), nn.Conv1d(4, 4, 3, padding=1, groups=4), nn.BatchNorm1d(4)
    model = Block(lambda m, x: m.last(m.inner(torch.tanh(x)).split([4, 4], 1)[0]), inner=inner, last=nn.Conv1d(4, 4, 1))
    x = image(2, 4, 9)
    folded = reparam.reparameterize(trained(model, x), x)
    assert distance(folded, reparam.reparameterize(folded, x), image(1, 4, 6)) < EXACT


def test_a_block_that_is_written_out_loses_a_weight_and_still_holds_a_module_that_is_called() -> None:
    """The forward around the one that writes it out calls neither."""
    inner = Block(lambda m, x: (y := m.head(x), m.conv(y) + m.shift), head=nn.PReLU(), conv=nn.Conv2d(4, 4, 1))
    inner.register_buffer("shift", torch.randn(4, 1, 1))

    def middle(m: Any, x: Tensor) -> tuple[Tensor, Tensor]:
        y, z = m.inner(x)
        return y - z * 0.7, y

    model = Block(lambda m, x: m.act(m.middle(x)[0])[:, :], middle=Block(middle, inner=inner), act=nn.PReLU())
    folded = reparam.reparameterize(trained(model, X), X, verify=False)
    assert "shift" not in dict(folded.named_buffers())
    assert folded.reparam_report.after.elementwise == 0
    assert distance(model, folded, image(1, 4, 4, 9)) < EXACT
