"""Example inputs in every form, and others drawn and resized in their likeness."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from reparam.capture.inputs import Inputs
from reparam.errors import InputError


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_a_tensor_a_sequence_and_a_dict() -> None:
    x, y = torch.randn(2, 3), torch.randn(2)
    assert Inputs.of(x) == Inputs((x,))
    assert Inputs.of((x, 3, y)).args == (x, 3, y)
    assert Inputs.of([x, y]).args == (x, y)
    assert Inputs.of({"x": x, "flag": True}).kwargs == {"x": x, "flag": True}
    assert Inputs.of(Inputs.of(x)) == Inputs((x,))


@pytest.mark.parametrize("wrong", [3, "x", None, {1: torch.ones(1)}, torch.Size([1, 3])])
def test_other_forms_are_refused_with_what_to_give(wrong: Any) -> None:
    with pytest.raises(InputError, match="give"):
        Inputs.of(wrong)


@pytest.mark.parametrize("empty", [(), {}, (3, "x"), {"x": [None]}])
def test_inputs_without_a_tensor_are_refused(empty: Any) -> None:
    with pytest.raises(InputError, match="no tensor"):
        Inputs.of(empty)


def test_call_hands_arguments_over_without_gradients() -> None:
    class Model(nn.Module):
        def forward(self, x: Tensor, *, times: Tensor) -> tuple[Tensor, bool]:
            return x * times, torch.is_grad_enabled()

    inputs = Inputs((torch.ones(2, requires_grad=True),), {"times": torch.full((2,), 3.0)})
    product, gradients = inputs.call(Model())
    assert torch.equal(product, torch.full((2,), 3.0))
    assert not product.requires_grad
    assert not gradients


def test_drawn_keeps_shape_dtype_and_what_is_not_floating() -> None:
    index, mask = torch.arange(6).reshape(2, 3), torch.tensor([True, False])
    args = (torch.randn(2, 3).bfloat16(), {"index": index, "mask": mask, "n": 5}, torch.randn(4, dtype=torch.complex64))
    found = Inputs.of(args).drawn(generator()).args
    assert found[0].dtype == torch.bfloat16
    assert found[0].shape == (2, 3)
    assert not torch.equal(found[0], args[0])
    assert found[1]["index"] is index
    assert found[1]["mask"] is mask
    assert found[1]["n"] == 5
    assert found[2].dtype == torch.complex64
    assert not torch.equal(found[2], args[2])


@given(mean=st.floats(-100, 100), spread=st.floats(0.01, 100))
def test_drawn_has_the_mean_and_spread_of_the_example(mean: float, spread: float) -> None:
    example = torch.randn(64, 64, generator=generator(1), dtype=torch.float64) * spread + mean
    (found,) = Inputs.of(example).drawn(generator()).args
    assert abs(found.mean() - mean) < 0.1 * spread  # 0.1 is 6 standard errors of the mean of 4096 values
    assert 0.9 < found.std() / spread < 1.1


@pytest.mark.parametrize("value", [0.0, 1.0, 0.1, float("nan"), float("inf")])
def test_a_constant_example_has_no_spread(value: float) -> None:
    (found,) = Inputs.of(torch.full((40, 50), value)).drawn(generator()).args
    assert abs(found.mean()) < 0.15
    assert 0.9 < found.std() < 1.1


def test_drawn_is_repeatable_and_differs_by_seed() -> None:
    inputs = Inputs.of(torch.randn(3, 4))
    first, again, other = (inputs.drawn(generator(seed)).args[0] for seed in (0, 0, 1))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_drawn_leaves_the_example_alone_and_keeps_its_layout() -> None:
    x = torch.randn(2, 3, 4, 5).to(memory_format=torch.channels_last)
    before = x.clone()
    inputs = Inputs.of(x)
    assert inputs.drawn(generator()).args[0].is_contiguous(memory_format=torch.channels_last)
    assert torch.equal(x, before)


@pytest.mark.parametrize(
    ("shape", "batch", "size"),
    [
        ((2, 3, 32, 32), (3, 3, 32, 32), (2, 3, 64, 96)),
        ((2, 3, 17), (3, 3, 17), (2, 3, 49)),
        ((1, 3, 4, 8, 8), (2, 3, 4, 8, 8), (1, 3, 36, 72, 72)),
        ((2, 7), (3, 7), None),
        ((7,), None, None),
    ],
)
def test_resized_grows_the_sizes_of_each_rank(
    shape: tuple[int, ...], batch: tuple[int, ...] | None, size: tuple[int, ...] | None
) -> None:
    found = {name: inputs.shapes()[0] for name, inputs in Inputs.of(torch.randn(shape)).resized().items()}
    assert found == {name: grown for name, grown in (("batch", batch), ("size", size)) if grown}


def test_resized_grows_all_tensors_of_one_batch_together() -> None:
    image, tokens, table, scale = (
        torch.randn(2, 3, 8, 8),
        torch.arange(10).reshape(2, 5),
        torch.randn(9, 4),
        torch.ones(2),
    )
    variants = Inputs.of({"image": image, "tokens": tokens, "table": table, "scale": scale}).resized()
    assert variants["batch"].shapes() == [(3, 3, 8, 8), (3, 5), (9, 4), (2,)]
    assert variants["size"].shapes() == [(2, 3, 40, 72), (2, 5), (9, 4), (2,)]
    assert torch.equal(variants["batch"].kwargs["tokens"], tokens[[0, 1, 0]])  # only values that were there


def test_resized_turns_a_square_into_another_shape() -> None:
    height, width = Inputs.of(torch.randn(1, 3, 32, 32)).resized()["size"].shapes()[0][2:]
    assert height != width


def test_as_float64_and_text() -> None:
    inputs = Inputs.of((torch.randn(3, 3, 5, 7).half(), torch.arange(2), torch.tensor(1.0)))
    assert [t.dtype for _, t in inputs.as_float64().tensors()] == [torch.float64, torch.int64, torch.float64]
    assert str(inputs) == "3x3x5x7, 2, scalar"
