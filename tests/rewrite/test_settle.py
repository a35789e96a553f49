"""Plan and lowering in turn: the rounds end, and say why."""

from __future__ import annotations

from torch import Tensor, nn

from reparam.capture.inputs import Inputs
from reparam.capture.witness import witnessed
from reparam.errors import Refusal
from reparam.plan import cost
from reparam.plan.fold import Fusion
from reparam.plan.plan import Constraints
from reparam.rewrite.settle import FUSED, IN_THE_WAY, NO_FUSION_PAYS, Settled, settle
from tests.helpers import Block, bn, conv, image, seq, trained


def settled(model: nn.Module, shape: tuple[int, ...] = (1, 4, 5, 7), only: int | None = None) -> Settled:
    return settle(witnessed(trained(model), Inputs.of(image(*shape))), cost.CPU, (), only=only)


def _several(m: Block, x: Tensor) -> tuple[Tensor, ...]:
    return m.a(x).relu(), m.b(x).tanh(), m.c(x).sigmoid()


def test_a_plan_that_can_be_written_back_ends_after_one_round() -> None:
    result = settled(seq(conv(4, 4, 3), bn(4), nn.ReLU()))
    assert (result.rounds, result.why) == (1, NO_FUSION_PAYS)
    assert not result.edits.constraints
    assert [len(fold.nodes) for fold in result.plan.folds] == [2]


def test_a_fusion_comes_on_top() -> None:
    result = settled(Block(_several, a=conv(4, 4, 1), b=conv(4, 3, 1), c=conv(4, 5, 1)))
    assert (result.rounds, result.why) == (2, FUSED)
    assert [type(choice) for choice in result.choices] == [Fusion]


def test_choices_can_be_carried_out_in_part() -> None:
    model = Block(_several, a=seq(conv(4, 4, 1), bn(4)), b=seq(conv(4, 3, 1), bn(3)), c=seq(conv(4, 5, 1), bn(5)))
    whole = settled(model)
    for only in range(len(whole.choices) + 1):
        part = settled(model, only=only)
        assert len(part.choices) == min(only, len(whole.choices))
        assert not part.edits.constraints


class Looks(nn.Module):
    """Its code stands in the way of the fold that the plan would like best."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.norm = conv(4, 4, 3), bn(4)

    def forward(self, x: Tensor) -> Tensor:
        y = self.a(x)
        return self.norm(y) if x.shape[2] > 4 else y


def test_what_code_does_not_allow_becomes_a_constraint() -> None:
    result = settled(Looks())
    assert result.rounds > 1
    assert result.why in (NO_FUSION_PAYS, IN_THE_WAY)
    assert not result.plan.folds
    assert any(isinstance(refusal, Refusal) for refusal in result.plan.refusals.values())


def test_constraints_only_grow() -> None:
    recorded = witnessed(trained(Looks()), Inputs.of(image(1, 4, 5, 7)))
    first, second, *_ = (node for node in recorded.nodes if node.function is not None)
    one = Constraints(opaque={first: Refusal("a")})
    two = Constraints(barriers={second: Refusal("b")}, unfusable=frozenset({first}))
    assert not Constraints()
    both = one | two
    assert (both.opaque, both.barriers, both.unfusable) == (one.opaque, two.barriers, two.unfusable)
    assert both.refusals[first] is one.opaque[first]
