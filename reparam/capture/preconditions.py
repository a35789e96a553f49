"""What has to be true of a model before anything is done with it."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn

from reparam.capture.compiled import is_compiled
from reparam.errors import InputError, ModelError, TrainModeError


def require_eval(model: nn.Module, role: str) -> None:
    """Raise TrainModeError, which names the submodules, where any part of `model` is in train mode.

    role: what the message calls the model, such as "the candidate".
    """
    training = [
        name or "the model itself" for name, module in model.named_modules() if getattr(module, "training", False)
    ]
    if training:
        names = ", ".join(training[:5]) + (f" and {len(training) - 5} more" if len(training) > 5 else "")
        raise TrainModeError(
            f"{role}: in train mode: {names}; what it computes then is not what is deployed; call .eval() on it first"
        )


_STATISTICS = ("running_mean", "running_var")
_DTYPES = (torch.float64, torch.float32, torch.bfloat16, torch.float16)


def require_usable(model: object) -> None:
    """Raise InputError, TrainModeError or ModelError for what cannot be converted, before anything is copied or run."""
    if not isinstance(model, nn.Module):
        kind = type(model).__name__
        raise InputError(f"model: a {kind} is not a torch.nn.Module; give the model itself, not its weights")
    require_eval(model, "the model")
    for path, module in model.named_modules():
        _require_unwrapped(path, module)
    tensors = [*model.named_parameters(), *model.named_buffers()]
    for name, tensor in tensors:
        _require_plain(name, tensor)
        if tensor.is_quantized or (tensor.is_floating_point() and tensor.dtype not in _DTYPES):
            raise ModelError(
                f"{name} is {tensor.dtype}, which cannot be folded exactly; convert before quantisation, from "
                "float64, float32, bfloat16 or float16 weights"
            )
        if tensor.is_meta:
            raise ModelError(f"{name} is on the meta device and has no values; load the weights first")
    sums = [tensor.detach().sum(dtype=torch.float32) for _, tensor in tensors if tensor.is_floating_point()]
    if sums and not bool(torch.stack([total.cpu() for total in sums]).isfinite().all()):
        _require_finite(tensors)  # finite numbers may have a sum that is not


def _require_plain(name: str, tensor: torch.Tensor) -> None:
    """Raise ModelError for a tensor of a class that computes in another way: quantised, sharded or faked."""
    kind = type(tensor)
    if kind.__torch_dispatch__ is not torch.Tensor.__torch_dispatch__:
        raise ModelError(
            f"{name} is held in a {kind.__name__}, whose numbers cannot be folded exactly; fold before the model is "
            "quantised or sharded"
        )


def _require_unwrapped(path: str, module: nn.Module) -> None:
    """Raise ModelError for a wrapper that runs something else than the modules inside it."""
    where = path or "the model"
    own = f"model.{path}." if path else "model."
    if isinstance(module, nn.parallel.DistributedDataParallel):
        raise ModelError(f"{where} is wrapped in DistributedDataParallel; give {own}module, and wrap what comes out")
    if "_orig_mod" in module._modules:
        raise ModelError(f"{where} is compiled by torch.compile; give {own}_orig_mod, and compile what comes out")
    if is_compiled(module):
        raise ModelError(f"{where} is compiled in place; convert it before its .compile() is called")


def _require_finite(tensors: Sequence[tuple[str, torch.Tensor]]) -> None:
    """Raise ModelError for a NaN, and for an infinity in what training makes; other buffers may be masks."""
    for name, tensor in tensors:
        is_trained = isinstance(tensor, nn.Parameter) or name.rpartition(".")[2] in _STATISTICS
        wrong = ~tensor.isfinite() if is_trained else tensor.isnan()
        if bool(wrong.any()):
            raise ModelError(f"{name} holds values that are not finite; the checkpoint is damaged or training diverged")
