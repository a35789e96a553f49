"""A few numbers that a model computes, noted in an artefact, so that a rebuilt copy can be compared with them.

The input is not stored: a formula gives the same numbers on any machine and in any version. Both runs are in float64,
where the same function of the same weights agrees to about 1e-15.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from reparam.capture.float64 import Float64, double
from reparam.capture.inputs import Inputs
from reparam.compare.bounds import Bounds
from reparam.compare.error import relative_error
from reparam.compare.isolated import ModelFailure, run
from reparam.compare.weights import rerounded
from reparam.errors import InputError

_SAMPLES = 64  # of each output
_SEED = 0
_MAX_NUMBERS = 1 << 26  # of all inputs together: half a gigabyte in float64


def probe(model: nn.Module, outline: Mapping[str, Any]) -> dict[str, Any] | None:
    """The inputs, the outputs and the bound to note. outline: of the inputs (see `Inputs.outline`).

    None where the model does not run, has infinite noise or too large inputs.
    """
    if _numbers(outline) > _MAX_NUMBERS:
        return None
    inputs = Inputs.from_outline(outline)
    try:
        outputs = _outputs(double(model), inputs)
        reweighted = _outputs(rerounded(double(model), torch.Generator().manual_seed(0)), inputs)
    except ModelFailure:
        return None
    noted = {name: _note(tensor) for name, tensor in outputs.items()}
    noise = max((_error(note, reweighted.get(name)) for name, note in noted.items()), default=math.inf)
    if not math.isfinite(noise):
        return None
    return {"inputs": dict(outline), "outputs": noted, "bound": Bounds.rebuilt(noise)}


def require_probe(model: nn.Module, noted: Mapping[str, Any]) -> None:
    """Raises InputError where the model does not compute the numbers that `probe` has noted."""
    if _numbers(noted["inputs"]) > _MAX_NUMBERS:
        raise InputError("the artefact notes an input that is too large to run; load it with verify=False")
    try:
        outputs = _outputs(double(model), Inputs.from_outline(noted["inputs"]))
    except ModelFailure as failure:
        raise InputError(f"the model was rebuilt and does not run: {failure}; its code has changed") from failure
    for name, note in noted["outputs"].items():
        tensor = outputs.get(name)
        if tensor is None or list(tensor.shape) != note["shape"]:
            now = "gone" if tensor is None else f"of shape {tuple(tensor.shape)}"
            raise InputError(
                f"the model was rebuilt and its output has another form: {name} was of shape {tuple(note['shape'])} "
                f"and is {now}; its code has changed"
            )
        error = _error(note, tensor)
        if not error <= noted["bound"]:
            raise InputError(
                f"the model was rebuilt and computes something else: {name} is off by {error:.2g} of its largest, "
                f"bound {noted['bound']:.2g}; the code of its layers has changed since the artefact was made"
            )


def _numbers(outline: Mapping[str, Any]) -> int:
    """How many numbers the inputs of an outline hold."""
    shapes = [about.get("shape", ()) for about in (*outline["args"], *outline["kwargs"].values())]
    return sum(math.prod(map(int, shape)) for shape in shapes)


def _outputs(model: nn.Module, inputs: Inputs) -> dict[str, Tensor]:
    """The floating tensors that a model in float64 returns, by path."""
    device = next((tensor.device for tensor in (*model.parameters(), *model.buffers())), torch.device("cpu"))
    leaves = run(model, inputs.map(lambda tensor: tensor.to(device)), _SEED, Float64())
    return {
        path: leaf.detach().cpu()
        for path, leaf in leaves.items()
        if isinstance(leaf, Tensor) and leaf.is_floating_point()
    }


def _note(tensor: Tensor) -> dict[str, Any]:
    """What JSON holds of an output: its shape, its largest finite magnitude, and some of its numbers."""
    largest = float(tensor.double().nan_to_num(posinf=0, neginf=0).abs().max()) if tensor.numel() else 0.0
    return {"shape": list(tensor.shape), "size": largest, "samples": _samples(tensor).tolist()}


def _samples(tensor: Tensor) -> Tensor:
    """Some of its numbers, evenly spread. JSON has no NaN and no infinity: they become a huge number."""
    flat = tensor.double().flatten()
    places = torch.linspace(0, max(flat.numel() - 1, 0), min(_SAMPLES, flat.numel()), dtype=torch.float64)
    return flat[places.round().long()].nan_to_num(nan=1e30, posinf=1e30, neginf=-1e30)


def _error(note: Mapping[str, Any], tensor: Tensor | None) -> float:
    """The error of an output, relative to the largest number of the one that was noted; inf for another shape."""
    if tensor is None or list(tensor.shape) != note["shape"]:
        return math.inf
    return relative_error(torch.tensor(note["samples"], dtype=torch.float64), _samples(tensor), note["size"] or 1.0)
