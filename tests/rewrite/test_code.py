"""A module with a new forward: what it prints, keeps, copies and pickles."""

from __future__ import annotations

import copy
import math
import operator
import pickle
import traceback

import pytest
import torch
from torch import Tensor, fx, nn

from reparam.rewrite.code import forward_of, set_forward
from reparam.rewrite.program import Program, Reference, Step, function_name
from tests.helpers import conv, image

X = image(2, 4, 5, 6)


class Scaled(nn.Module):
    """The docstring of the user."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.scale = conv(4, 4, 1).double(), 2.0

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(x)

    def doubled(self, x: Tensor) -> Tensor:
        return 2 * self(x)


def code(scale: float = 3.0) -> Program:
    """`conv(x) * scale`, written out."""
    graph = fx.Graph()
    x = graph.placeholder("x")
    graph.output(graph.call_function(torch.mul, (graph.call_module("conv", (x,)), scale)))
    return Program.of(graph)


def rewritten() -> Scaled:
    module = Scaled()
    set_forward(module, code())
    return module


def test_the_text_of_a_forward() -> None:
    lines = [line.strip().partition(";")[0] for line in code().text.splitlines()]
    assert lines == ["def forward(self, x):", "conv = self.conv(x)", "mul = torch.mul(conv, 3.0)", "return mul"]
    assert [step.target for step in code().steps] == ["x", "conv", "torch.mul", "output"]


def test_annotations_of_the_user_are_not_written_out() -> None:
    graph = fx.Graph()
    x = graph.placeholder("x", type_expr=Scaled)
    graph.output(x)
    assert "Scaled" not in Program.of(graph).text


def test_a_rewritten_module_computes_the_new_forward() -> None:
    module, plain = rewritten(), Scaled()
    plain.load_state_dict(module.state_dict())
    assert torch.equal(module(X), plain(X) * 3)
    assert torch.equal(module.doubled(X), plain(X) * 6)  # methods call the new forward


def test_it_is_still_what_it_was() -> None:
    module = rewritten()
    assert isinstance(module, Scaled)
    assert type(module).__name__ == type(module).__qualname__ == "Scaled"
    assert type(module).__module__ == Scaled.__module__
    assert type(module).__doc__ == "The docstring of the user."
    assert module.scale == 2.0
    assert module.code == code().text
    assert forward_of(module) == code()


def test_a_class_inside_another_scope_keeps_its_full_name() -> None:
    class Local(Scaled):
        pass

    module = Local()
    set_forward(module, code())
    assert type(module).__qualname__ == Local.__qualname__ != Local.__name__


def test_other_instances_keep_their_forward() -> None:
    plain = Scaled()
    rewritten()
    assert type(plain) is Scaled
    assert forward_of(plain) is None


def test_equal_code_is_one_class_and_other_code_is_another() -> None:
    first, second, other = rewritten(), rewritten(), Scaled()
    set_forward(other, code(5.0))
    assert type(first) is type(second)
    assert type(first) is not type(other)


def test_a_second_rewrite_starts_from_the_class_of_the_user() -> None:
    module = rewritten()
    set_forward(module, code(5.0))
    assert type(module).__mro__[1] is Scaled
    assert forward_of(module) == code(5.0)


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda module: pickle.loads(pickle.dumps(module))])
def test_copies_have_the_new_forward_and_numbers_of_their_own(copied) -> None:  # type: ignore[no-untyped-def]
    module = rewritten()
    other = copied(module)
    assert torch.equal(other(X), module(X))
    assert forward_of(other) == forward_of(module)
    assert isinstance(other, Scaled)
    with torch.no_grad():
        other.conv.weight.zero_()
    assert module(X).abs().max() > 0


def test_a_pickle_holds_the_steps_and_no_code() -> None:
    data = pickle.dumps(rewritten())
    assert b"torch.mul" in data
    assert b"def forward" not in data
    assert b"_rewritten_code" not in data


def test_objects_that_are_no_data_are_called_by_a_name_of_their_own() -> None:
    graph = fx.Graph()
    x = graph.placeholder("x")
    graph.output(graph.call_function(copy.copy, (x,)))
    assert "_copy_0(x)" in Program.of(graph).text
    assert torch.equal(Program.of(graph).forward()(None, X), X)


def forward(*steps: Step) -> str:
    """The text of a forward of `x` with the given steps, which returns the last."""
    last = Step("output", "output", "output", (Reference(steps[-1].name),))
    return Program((Step("placeholder", "x", "x"), *steps, last)).text


@pytest.mark.parametrize("name", ["class", "a b", "1", "x; y", "x\ny", "ｘ", "", 'x"'])
def test_steps_and_methods_need_names(name: str) -> None:
    with pytest.raises(ValueError, match="no name"):
        forward(Step("call_function", name, "torch.relu", (Reference("x"),)))
    with pytest.raises(ValueError, match="no name"):
        forward(Step("call_function", "y", "torch.relu", (Reference(name),)))
    with pytest.raises(ValueError, match="no name"):
        forward(Step("call_method", "y", name, (Reference("x"),)))


def test_members_and_keywords_that_are_no_names_are_quoted() -> None:
    x = Reference("x")
    assert "getattr(self.blocks, 'class').conv(x)" in forward(Step("call_module", "y", "blocks.class.conv", (x,)))
    assert "getattr(self, '\\n\\'\"')(x)" in forward(Step("call_module", "y", "\n'\"", (x,)))
    assert "**{'a b': 1}" in forward(Step("call_module", "y", "conv", (x,), (("a b", 1),)))


def test_numbers_stand_beside_operators_as_they_are_meant() -> None:
    steps = (
        Step("placeholder", "x", "x"),
        Step("call_function", "pow_1", "operator.pow", (-2, Reference("x"))),
        Step("output", "output", "output", (Reference("pow_1"),)),
    )
    assert Program(steps).forward()(None, 2) == 4


def test_a_number_that_is_read_later_is_not_changed_in_place() -> None:
    steps = (
        Step("placeholder", "x", "x"),
        Step("call_function", "iadd", "operator.iadd", (Reference("x"), 1)),
        Step("call_function", "mul", "operator.mul", (Reference("x"), Reference("iadd"))),
        Step("output", "output", "output", (Reference("mul"),)),
    )
    assert Program(steps).forward()(None, 2) == 6


@pytest.mark.parametrize("name", ["torch", "math", "operator", "inf", "max", "slice", "getattr"])
def test_parameters_may_be_called_like_what_the_forward_needs(name: str) -> None:
    graph = fx.Graph()
    x, other = graph.placeholder("x"), graph.placeholder(name)
    y = graph.call_function(torch.add, (graph.call_function(max, (x, -float("inf"))), other))
    y = graph.call_function(torch.ones_like, (y,), {"dtype": torch.float64})
    graph.output(graph.call_function(operator.getitem, (y, slice(0, 1))))
    program = Program.of(graph)
    assert program.forward()(None, torch.tensor([1.0]), torch.tensor([2.0])).dtype == torch.float64


def test_a_traceback_shows_the_lines_of_the_new_forward() -> None:
    with pytest.raises(RuntimeError) as error:
        rewritten()(image(1, 3, 5, 6))
    assert "conv = self.conv(x)" in "".join(traceback.format_tb(error.value.__traceback__))


def test_functions_go_by_the_names_that_people_know() -> None:
    """torch's modules have other names for some types of Python, such as `torch.nn.functional.DType` for int."""
    assert [function_name(function) for function in (int, len, operator.add, math.ceil)] == [
        "int",
        "len",
        "operator.add",
        "math.ceil",
    ]
    assert function_name(torch.nn.functional.avg_pool2d) == "torch.nn.functional.avg_pool2d"
