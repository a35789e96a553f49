"""Example inputs in any form that users give them in, and other inputs like them: redrawn, resized, described."""

from __future__ import annotations

import base64
import itertools
import math
from collections.abc import Callable, Iterator, Mapping
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

        Raises InputError for anything else, and where no tensor is inside.
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
                    f"example_inputs: a {type(example_inputs).__name__} is no set of arguments; give a tensor, a "
                    "tuple of positional arguments, or a dict of keyword arguments with string keys"
                )
        if not inputs.tensors():
            raise InputError(
                "example_inputs: there is no tensor inside; give at least one, of a size that the model will be used at"
            )
        return inputs

    def call(self, model: Callable[..., Any]) -> Any:
        """`model(*args, **kwargs)` without gradients. The model stays in the mode that it is in."""
        with torch.no_grad():
            return model(*self.args, **self.kwargs)

    def tensors(self) -> list[tuple[str, Tensor]]:
        """Every tensor in the inputs with its path, such as `input[0]`."""
        return tensors((*self.args, *self.kwargs.values()), "input")

    def map(self, change: Callable[[Tensor], Tensor]) -> Inputs:
        """The same inputs with `change` applied to every tensor."""
        return self._mapped(lambda leaf: change(leaf) if isinstance(leaf, Tensor) else leaf)

    def _mapped(self, change: Callable[[Any], Any]) -> Inputs:
        return Inputs(mapped(self.args, change), mapped(dict(self.kwargs), change))

    def as_float64(self) -> Inputs:
        """Floating tensors in float64, complex ones in complex128, everything else as it is."""
        return Inputs(as_float64(self.args), as_float64(dict(self.kwargs)))

    def drawn(self, generator: torch.Generator) -> Inputs:
        """The same shapes and dtypes, with floating and complex tensors drawn from a normal distribution.

        Each has the mean and deviation of the example that it replaces, or 0 and 1 where that is constant or not
        finite. Integer, bool and sparse tensors are kept: they are indices, sizes, masks and graphs, and other values
        may not be legal.
        generator: on the CPU, so that a seed means the same on every device.
        """
        return self.map(lambda tensor: _drawn_like(tensor, generator))

    def resized(self, batch: int = 1, size: tuple[int, ...] = (32, 64)) -> dict[str, Inputs]:
        """Larger inputs that a model probably takes: "batch" has `batch` more rows, "size" more pixels.

        The batch is dimension 0 of every tensor of rank 2 or more in which it is as long as in the first of them.
        The pixels are the dimensions after the first two of a floating tensor of rank 3, 4 or 5. They grow by `size`,
        whose last item is for all further dimensions; a square becomes a rectangle. () leaves them as they are.
        New entries repeat old ones in order, so values stay legal. A variant that changes nothing is left out.
        """
        length = _batch_length(self)
        variants = {
            "batch": self.map(lambda t: _longer(t, 0, batch) if length and t.ndim > 1 and len(t) == length else t),
            "size": self.map(lambda t: _larger(t, size)),
        }
        return {name: inputs for name, inputs in variants.items() if inputs.shapes() != self.shapes()}

    def cut(self, rows: int | None = None, length: int | None = None, pixels: tuple[int, ...] = ()) -> Inputs:
        """The same inputs with so many rows, such a length and so many pixels, where they are given.

        Rows and pixels are those of `resized`; the length is dimension 1 of every tensor in which it is as long as in
        the first. Entries are left out at the end, or repeated in order.
        """
        batch = _batch_length(self)
        lengths = [t.shape[1] for _, t in self.tensors() if t.ndim > 1]

        def changed(tensor: Tensor) -> Tensor:
            if tensor.ndim < 2:
                return tensor
            if rows is not None and len(tensor) == batch:
                tensor = _longer(tensor, 0, rows - len(tensor))
            if length is not None and tensor.shape[1] == lengths[0]:
                tensor = _longer(tensor, 1, length - tensor.shape[1])
            if pixels and tensor.is_floating_point() and tensor.ndim in (3, 4, 5):
                for i, axis in enumerate(range(2, tensor.ndim)):
                    tensor = _longer(tensor, axis, pixels[min(i, len(pixels) - 1)] - tensor.shape[axis])
            return tensor

        return self.map(changed)

    def smaller(self, rows: int | None = None) -> Iterator[Inputs]:
        """The same inputs with fewer pixels, and so many rows if given; the smallest first, odd ones among them."""
        own = next((shape[2:] for shape in self.shapes() if 3 <= len(shape) <= 5), ())
        for pixels in _SMALL:
            smaller = tuple(min(pixels[min(i, 1)], length) for i, length in enumerate(own))
            if smaller != own:
                yield self.cut(rows, pixels=smaller)

    def with_length(self, index: int, dim: int, length: int) -> Inputs:
        """The same, but for one dimension of one tensor; entries are left out at the end, or repeated in order.

        index: of the tensor in `tensors()`.
        """
        places = itertools.count()

        def changed(tensor: Tensor) -> Tensor:
            return _longer(tensor, dim, length - tensor.shape[dim]) if next(places) == index else tensor

        return self.map(changed)

    def shortened(self, rows: int) -> Inputs:
        """The first `rows` of the batch (see `resized`), or all where there are no more."""
        length = _batch_length(self)
        if length is None or length <= rows:
            return self
        return self.map(lambda t: t[:rows] if t.ndim > 1 and len(t) == length else t)

    def shapes(self) -> list[tuple[int, ...]]:
        """The shape of every tensor, in order."""
        return [tuple(tensor.shape) for _, tensor in self.tensors()]

    def outline(self) -> dict[str, Any] | None:
        """The inputs as data for JSON, from which `from_outline` makes others like them.

        Plain arguments and integer tensors by value, floating tensors by shape, mean and deviation. None where there is
        anything else, or an integer tensor too large to write out.
        """
        described = [_described(value) for value in (*self.args, *self.kwargs.values())]
        if any(description is None for description in described):
            return None
        count = len(self.args)
        return {"args": described[:count], "kwargs": dict(zip(self.kwargs, described[count:], strict=True))}

    @classmethod
    def from_outline(cls, outline: Mapping[str, Any]) -> Inputs:
        """Inputs like those that `outline` has described, the same at every call; floats in float64."""
        kwargs = {str(name): _from_description(value) for name, value in outline["kwargs"].items()}
        return cls(tuple(map(_from_description, outline["args"])), kwargs)

    def __str__(self) -> str:
        """Sizes alone, such as `3x3x256x288, 3x10`."""
        return ", ".join("x".join(map(str, shape)) or "scalar" for shape in self.shapes())


def _drawn_like(tensor: Tensor, generator: torch.Generator) -> Tensor:
    if not (tensor.is_floating_point() or tensor.is_complex()) or tensor.layout != torch.strided:
        return tensor
    wide = torch.complex128 if tensor.is_complex() else torch.float64
    mean, spread = _moments(tensor.detach().to(wide))
    noise = torch.randn(tensor.shape, generator=generator, dtype=wide)
    drawn = torch.empty_like(tensor.detach())  # of the same memory format
    return drawn.copy_(noise * spread + mean)


def _moments(values: Tensor) -> tuple[Any, float]:
    """Mean and deviation; 0 and 1 where the values are constant or not finite."""
    # The deviation of a constant 0.1 is a rounding error, not zero, so the values are compared.
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
    if not length or tensor.layout != torch.strided:
        return tensor
    return tensor.index_select(axis, torch.arange(length + more, device=tensor.device) % length)


# Pixels of smaller images. Many models want multiples of their stride.
_SMALL = ((1, 1), (5, 7), (17, 13), (33, 47), (64, 96), (96, 128), (128, 192))
_GOLDEN = (math.sqrt(5) - 1) / 2  # its multiples, modulo 1, fill the interval evenly and never repeat
_SAMPLED = 2**16 + 1  # numbers of a float input that give its mean and deviation; odd, as the sizes of images are even
_LARGEST_INLINE = 4096  # numbers of an integer input that is written out: indices and masks need their exact values


def _described(value: Any) -> dict[str, Any] | None:
    if isinstance(value, bool | int | float | str | None):
        return {"value": value}
    if not isinstance(value, Tensor) or value.is_complex() or value.layout != torch.strided:
        return None
    about = {"shape": list(value.shape), "dtype": str(value.dtype).removeprefix("torch.")}
    if value.is_floating_point():
        sample = value.detach().flatten()[:: max(1, value.numel() // _SAMPLED)].double()
        spread = sample.std().item() if value.numel() > 1 else 0.0
        usable = math.isfinite(spread) and spread > 0
        return {**about, "mean": sample.mean().item() if usable else 0.0, "spread": spread if usable else 1.0}
    if value.numel() > _LARGEST_INLINE:
        return None
    data = value.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes() if value.numel() else b""
    return {**about, "data": base64.b64encode(data).decode()}


def _from_description(description: Mapping[str, Any]) -> Any:
    if "value" in description:
        return description["value"]
    shape = [int(size) for size in description["shape"]]
    if "data" in description:
        dtype = getattr(torch, str(description["dtype"]))
        raw = bytearray(base64.b64decode(description["data"]))
        return torch.frombuffer(raw, dtype=dtype).reshape(shape).clone() if raw else torch.empty(shape, dtype=dtype)
    multiples = torch.arange(1, math.prod(shape) + 1, dtype=torch.float64) * _GOLDEN
    uniform = (multiples - multiples.floor() - 0.5) * math.sqrt(12)  # mean 0, deviation 1
    return (uniform * description["spread"] + description["mean"]).reshape(shape)
