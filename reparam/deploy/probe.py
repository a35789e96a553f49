"""A few numbers that a model computes, noted so that another copy of it can be held against them.

The input is not stored: every number of it follows from a formula, on any machine and in any version. Both runs are in
float64, where the same function of the same weights agrees to about 1e-15.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from reparam.capture.float64 import Float64, double
from reparam.capture.inputs import Inputs, drawn_alike
from reparam.compare.isolated import ModelFailure, run
from reparam.compare.verification import EXACT
from reparam.compare.verify import NOISE, rerounded
from reparam.errors import InputError

_SAMPLES = 64  # of every output
_SEED = 0


def probe(model: nn.Module, noted: Mapping[str, Any]) -> dict[str, Any] | None:
    """What to note of a model on inputs that are (see `likeness`); None where it does not run, or not steadily."""
    given = drawn_alike(noted)
    try:
        truth = _outputs(double(model), given)
        shaken = _outputs(rerounded(double(model), torch.Generator().manual_seed(0)), given)
    except ModelFailure:
        return None
    slack = max((_distance(truth[name], shaken.get(name)) for name in truth), default=0.0)
    outputs = {name: {"shape": list(tensor.shape), "size": _size(tensor), "samples": _samples(tensor)}
               for name, tensor in truth.items()}  # fmt: skip
    bound = max(EXACT, 10 * NOISE * slack) if math.isfinite(slack) else None
    return {"inputs": dict(noted), "outputs": outputs, "bound": bound} if outputs and bound is not None else None


def require_probe(model: nn.Module, noted: Mapping[str, Any]) -> None:
    """Raises InputError where the model computes other numbers than those that were noted."""
    try:
        found = _outputs(double(model), drawn_alike(noted["inputs"]))
    except ModelFailure as failure:
        raise InputError(f"the model was rebuilt and does not run: {failure}; its code is not what it was") from failure
    for name, expected in noted["outputs"].items():
        tensor = found.get(name)
        if tensor is None or list(tensor.shape) != expected["shape"]:
            shape = None if tensor is None else tuple(tensor.shape)
            raise InputError(
                f"the model was rebuilt and returns another {name}, of shape {shape}; its code has changed"
            )
        size = expected["size"] or 1.0
        pairs = zip(_samples(tensor), expected["samples"], strict=True)
        error = max((abs(ours - theirs) / size for ours, theirs in pairs), default=0.0)
        if not error <= noted["bound"]:
            raise InputError(
                f"the model was rebuilt and computes something else: {name} is off by {error:.2g} of its largest, "
                f"bound {noted['bound']:.2g}; the code of its layers is not what it was when the artefact was made"
            )


def _outputs(model: nn.Module, inputs: Inputs) -> dict[str, Tensor]:
    """The floating tensors that a model in float64 returns."""
    device = next((tensor.device for tensor in (*model.parameters(), *model.buffers())), torch.device("cpu"))
    leaves = run(model, inputs.map(lambda tensor: tensor.to(device)), _SEED, Float64())
    return {name: each.detach().cpu() for name, each in leaves.items()
            if isinstance(each, Tensor) and each.is_floating_point()}  # fmt: skip


def _samples(tensor: Tensor) -> list[float]:
    """Some of its numbers, evenly spread; what is not finite counts as a huge one."""
    flat = tensor.double().flatten()
    if not flat.numel():
        return []
    places = torch.linspace(0, flat.numel() - 1, min(_SAMPLES, flat.numel()), dtype=torch.float64).round().long()
    return [float(each) for each in flat[places].nan_to_num(nan=1e30, posinf=1e30, neginf=-1e30)]


def _size(tensor: Tensor) -> float:
    return float(tensor.double().nan_to_num(posinf=0, neginf=0).abs().max()) if tensor.numel() else 0.0


def _distance(truth: Tensor, other: Tensor | None) -> float:
    if other is None or other.shape != truth.shape:
        return float("inf")
    size = _size(truth) or 1.0
    pairs = zip(_samples(truth), _samples(other), strict=True)
    return max((abs(ours - theirs) / size for ours, theirs in pairs), default=0.0)
