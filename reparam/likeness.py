"""The form of inputs as plain data, from which others in their likeness can be drawn, the same ones anywhere.

The numbers of floating tensors are not noted: every one follows from a formula, in any version and on any machine.
"""

from __future__ import annotations

import base64
import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from reparam.inputs import Inputs

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
