"""Example inputs, whatever form a user hands them in, and other inputs made in their likeness."""

from __future__ import annotations

import base64
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from reparam.capture.float64 import as_float64
from reparam.capture.tree import mapped, tensors
from reparam.errors import InputError


@dataclass(frozen=True)
class Inputs:
    """What a model is called with: `model(*args, **kwargs)`."""

    args: tuple[Any, ...] = ()
    kwargs: Mapping[str, Any] = field(default_factory=dict)

    @classmethod
    def of(cls, example_inputs: Any) -> Inputs:
        """A tensor is the only argument, a tuple or list the positional ones, a dict with string keys the keywords.

        Raises InputError for anything else, and where there is no tensor inside.
        """
        match example_inputs:
            case Inputs():
                inputs = example_inputs
            case Tensor():
                inputs = cls((example_inputs,))
            case tuple() | list():
                inputs = cls(tuple(example_inputs))
            case Mapping() if all(isinstance(key, str) for key in example_inputs):
                inputs = cls((), dict(example_inputs))
            case _:
                raise InputError(
                    f"example_inputs: a {type(example_inputs).__name__} cannot be handed to a model; give a tensor, a "
                    "tuple of positional arguments, or a dict of keyword arguments with string keys"
                )
        if not inputs.tensors():
            raise InputError(
                "example_inputs: there is no tensor inside; give at least one, of a size that will be used"
            )
        return inputs

    def call(self, model: Callable[..., Any]) -> Any:
        """`model(*args, **kwargs)` without gradients. The model is called as it is: nothing is put into eval mode."""
        with torch.no_grad():
            return model(*self.args, **self.kwargs)

    def tensors(self) -> list[tuple[str, Tensor]]:
        """Every tensor in the inputs with its path."""
        return tensors((*self.args, *self.kwargs.values()), "input")

    def map(self, change: Callable[[Tensor], Tensor]) -> Inputs:
        """The same inputs with `change` applied to every tensor."""
        return self._mapped(lambda leaf: change(leaf) if isinstance(leaf, Tensor) else leaf)

    def _mapped(self, change: Callable[[Any], Any]) -> Inputs:
        return Inputs(mapped(self.args, change), mapped(dict(self.kwargs), change))

    def as_float64(self) -> Inputs:
        """Floating tensors in float64 and complex ones in complex128, the rest as it is."""
        return Inputs(as_float64(self.args), as_float64(dict(self.kwargs)))

    def drawn(self, generator: torch.Generator) -> Inputs:
        """The same shapes and dtypes with floating and complex tensors drawn anew from a normal distribution.

        Each has the mean and deviation of the example it replaces; a constant (or non-finite) example says nothing of
        either, and N(0, 1) is drawn. Integer and bool tensors are kept: their values are indices, sizes and masks, and
        others may not be legal. `generator` is a CPU one, so that a seed means the same on every device.
        """
        return self.map(lambda tensor: _redrawn(tensor, generator))

    def resized(self, batch: int = 1, size: tuple[int, ...] = (32, 64)) -> dict[str, Inputs]:
        """Other legal-looking inputs by name: "batch" with that many more rows, "size" at another resolution.

        The batch is the leading axis of every tensor of rank 2 or more that shares its length with the first of them.
        A resolution is the axes after the first two of a floating tensor of rank 3, 4 or 5; they grow by `size`, whose
        last entry serves all further axes, so that a square becomes a non-square one; an empty one leaves them. New
        entries repeat old ones in order, so values stay legal. A variant that would change nothing is left out.
        """
        rows = _batch_length(self)
        variants = {
            "batch": self.map(lambda t: _longer(t, 0, batch) if rows and t.ndim > 1 and len(t) == rows else t),
            "size": self.map(lambda t: _larger(t, size)),
        }
        return {name: inputs for name, inputs in variants.items() if inputs.shapes() != self.shapes()}

    def shortened(self, rows: int) -> Inputs:
        """The same with the first `rows` of the batch (see `resized`), where there are more."""
        held = _batch_length(self)
        if held is None or held <= rows:
            return self
        return self.map(lambda t: t[:rows] if t.ndim > 1 and len(t) == held else t)

    def shapes(self) -> list[tuple[int, ...]]:
        """The shape of every tensor, in order."""
        return [tuple(tensor.shape) for _, tensor in self.tensors()]

    def __str__(self) -> str:
        """Sizes alone, as in `3x3x256x288, 3x10`: what a table row has room for."""
        return ", ".join("x".join(map(str, shape)) or "scalar" for shape in self.shapes())


def _redrawn(tensor: Tensor, generator: torch.Generator) -> Tensor:
    if not (tensor.is_floating_point() or tensor.is_complex()):
        return tensor
    wide = torch.complex128 if tensor.is_complex() else torch.float64
    mean, spread = _moments(tensor.detach().to(wide))
    noise = torch.randn(tensor.shape, generator=generator, dtype=wide)
    drawn = torch.empty_like(tensor.detach())  # keeps the memory format, which chooses kernels
    return drawn.copy_(noise * spread + mean)


def _moments(values: Tensor) -> tuple[Any, float]:
    """Mean and deviation, or 0 and 1 where the values say nothing of them."""
    # Compared, not by deviation: the deviation of a constant 0.1 is a rounding error, not zero.
    if values.numel() < 2 or bool((values == values.flatten()[0]).all()) or not bool(values.isfinite().all()):
        return 0.0, 1.0
    return values.mean().item(), values.std().item()


def _batch_length(inputs: Inputs) -> int | None:
    return next((len(tensor) for _, tensor in inputs.tensors() if tensor.ndim > 1), None)


def _larger(tensor: Tensor, size: tuple[int, ...]) -> Tensor:
    if not size or not tensor.is_floating_point() or tensor.ndim not in (3, 4, 5):
        return tensor
    for i, axis in enumerate(range(2, tensor.ndim)):
        tensor = _longer(tensor, axis, size[min(i, len(size) - 1)])
    return tensor


def _longer(tensor: Tensor, axis: int, more: int) -> Tensor:
    length = tensor.shape[axis]
    if not length:
        return tensor
    return tensor.index_select(axis, torch.arange(length + more, device=tensor.device) % length)


_STEP = (math.sqrt(5) - 1) / 2  # multiples of the golden ratio fill an interval evenly and never repeat

_SAMPLED = 2**16 + 1  # numbers, evenly, whose mean and deviation stand for all: odd, as the sizes of images are even

_INLINE = 4096  # numbers of an integer input, which are indices and masks and have to be the very ones


def likeness(inputs: Inputs) -> dict[str, Any] | None:
    """Plain arguments, and tensors by shape (floats) or by value (all else); None where there is more."""
    given = [*inputs.args, *inputs.kwargs.values()]
    noted = [_note(each) for each in given]
    if any(each is None for each in noted):
        return None
    return {
        "args": noted[: len(inputs.args)],
        "kwargs": dict(zip(inputs.kwargs, noted[len(inputs.args) :], strict=True)),
    }


def _note(value: Any) -> dict[str, Any] | None:
    if isinstance(value, bool | int | float | str | None):
        return {"value": value}
    if not isinstance(value, Tensor) or value.is_complex():
        return None
    about = {"shape": list(value.shape), "dtype": str(value.dtype).removeprefix("torch.")}
    if value.is_floating_point():
        wide = value.detach().flatten()[:: max(1, value.numel() // _SAMPLED)].double()
        spread = wide.std().item() if value.numel() > 1 else 0.0
        usable = math.isfinite(spread) and spread > 0
        return {**about, "mean": wide.mean().item() if usable else 0.0, "spread": spread if usable else 1.0}
    if value.numel() > _INLINE:
        return None
    data = value.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes() if value.numel() else b""
    return {**about, "data": base64.b64encode(data).decode()}


def drawn_alike(noted: Mapping[str, Any]) -> Inputs:
    """Inputs of that form; floats in float64."""
    return Inputs(tuple(map(_read, noted["args"])), {str(name): _read(each) for name, each in noted["kwargs"].items()})


def _read(noted: Mapping[str, Any]) -> Any:
    if "value" in noted:
        return noted["value"]
    shape = [int(size) for size in noted["shape"]]
    if "data" in noted:
        dtype = getattr(torch, str(noted["dtype"]))
        raw = bytearray(base64.b64decode(noted["data"]))
        return torch.frombuffer(raw, dtype=dtype).reshape(shape).clone() if raw else torch.empty(shape, dtype=dtype)
    steps = torch.arange(1, math.prod(shape) + 1, dtype=torch.float64) * _STEP
    even = (steps - steps.floor() - 0.5) * math.sqrt(12)  # mean 0, deviation 1
    return (even * noted["spread"] + noted["mean"]).reshape(shape)
