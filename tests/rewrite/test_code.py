"""A module with a new forward: what it prints, keeps, copies and pickles."""

from __future__ import annotations

import copy
import pickle
import traceback

import pytest
import torch
from torch import Tensor, fx, nn

from reparam.rewrite.code import Code, code_of, set_forward
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


def code(scale: float = 3.0) -> Code:
    """`conv(x) * scale`, written out."""
    graph = fx.Graph()
    x = graph.placeholder("x")
    graph.output(graph.call_function(torch.mul, (graph.call_module("conv", (x,)), scale)))
    return Code.of(graph)


def rewritten() -> Scaled:
    module = Scaled()
    set_forward(module, code())
    return module


def test_code_is_the_text_of_a_forward_and_its_global_names() -> None:
    lines = [line.strip().partition(";")[0] for line in code().text.splitlines()]
    assert lines == ["def forward(self, x):", "conv = self.conv(x)", "mul = torch.mul(conv, 3.0)", "return mul"]
    assert code().modules == (("torch", "torch"),)
    assert code().objects == ()


def test_annotations_of_the_user_are_not_written_out() -> None:
    graph = fx.Graph()
    x = graph.placeholder("x", type_expr=Scaled)
    graph.output(x)
    assert "Scaled" not in Code.of(graph).text


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
    assert code_of(module) == code()


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
    assert code_of(plain) is None


def test_equal_code_is_one_class_and_other_code_is_another() -> None:
    first, second, other = rewritten(), rewritten(), Scaled()
    set_forward(other, code(5.0))
    assert type(first) is type(second)
    assert type(first) is not type(other)


def test_a_second_rewrite_starts_from_the_class_of_the_user() -> None:
    module = rewritten()
    set_forward(module, code(5.0))
    assert type(module).__mro__[1] is Scaled
    assert code_of(module) == code(5.0)


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda module: pickle.loads(pickle.dumps(module))])
def test_copies_have_the_new_forward_and_numbers_of_their_own(copied) -> None:  # type: ignore[no-untyped-def]
    module = rewritten()
    other = copied(module)
    assert torch.equal(other(X), module(X))
    assert code_of(other) == code_of(module)
    assert isinstance(other, Scaled)
    with torch.no_grad():
        other.conv.weight.zero_()
    assert module(X).abs().max() > 0


def test_a_pickle_holds_the_text_and_no_compiled_code() -> None:
    data = pickle.dumps(rewritten())
    assert b"def forward(self, x):" in data
    assert b"_rewritten_code" not in data


def test_an_object_that_cannot_be_hashed_gets_a_class_of_its_own() -> None:
    unhashable = Code("def forward(self, x):\n    return x * numbers[0]\n", (), (("numbers", [3.0]),))
    module, other = Scaled(), Scaled()
    set_forward(module, unhashable)
    set_forward(other, unhashable)
    assert torch.equal(module(X), 3 * X)
    assert type(module) is not type(other)
    assert torch.equal(pickle.loads(pickle.dumps(module))(X), 3 * X)


def test_a_traceback_shows_the_lines_of_the_new_forward() -> None:
    with pytest.raises(RuntimeError) as error:
        rewritten()(image(1, 3, 5, 6))
    assert "conv = self.conv(x)" in "".join(traceback.format_tb(error.value.__traceback__))
