"""Random numbers like those of a trained model, for an untrained one.

A fresh batch norm is almost the identity, and a fresh `IdentityBasedConv1x1` is the identity: a wrong fold of them may
not show. With random numbers it does. Call both functions before you compare two forms of an untrained model:

    draw_constants(model)
    draw_statistics(model, inputs=(images,))
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from typing import Any, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.parameter import is_lazy
from torch.overrides import TorchFunctionMode

Model = TypeVar("Model", bound=nn.Module)
_FLIPPED = 0.1  # the share of negative gammas


def draw_statistics(model: Model, seed: int = 0, inputs: tuple[Any, ...] = ()) -> Model:
    """Draws the statistics and parameters of every batch norm in `model`, in place, and returns the model.

    A batch norm is any module with tensors `running_mean` and `running_var`, or any batch norm of torch without them;
    gamma and beta are its `weight` and `bias`, if they have the same length. Nothing else is changed.

    - gamma: uniform in 0.5 .. 1.2, one in ten negative; beta: normal, deviation 0.3
    - without `inputs`, running_mean: normal, deviation 0.3; running_var: uniform in 0.5 .. 1.5
    - with `inputs`, the arguments of one forward, the statistics fit what each norm receives there: its mean, off by
      0.3 deviations, and its variance times 0.5 .. 1.5. Activations then keep their scale at any depth, also in half
      precision. Without inputs, the gain of the weights accumulates: in a deep network with many branches per block
      (timm's mobileone_s0: 4e13) it overflows in float16, though not in float32.

    The same seed gives the same numbers, up to rounding, on any device and in any dtype. The forward runs in eval mode,
    without gradients; afterwards each module has its own mode again.

    Raises ValueError for a lazy norm that has not received an input yet.
    """
    generator = torch.Generator().manual_seed(seed)
    norms = {name: module for name, module in model.named_modules() if _is_batch_norm(module)}
    with torch.no_grad():
        for name, norm in norms.items():
            _draw_norm(name, norm, generator)
        if inputs:
            _measure(model, [norm for norm in norms.values() if _tracks(norm)], inputs)
    return model


def draw_constants(model: Model, seed: int = 0) -> Model:
    """Adds small normal numbers to every parameter whose elements are all equal, in place, and returns the model.

    Such parameters are untrained: the zero weight of `IdentityBasedConv1x1`, zero biases, layer scales of 1e-5, the
    ones of a norm. The deviation is 0.1, for a weight with inputs (two dimensions or more) 0.1 / sqrt(inputs per
    output). Parameters with different elements do not change; a single number counts as equal. The same seed gives the
    same numbers, up to rounding, on any device and in any floating dtype.
    """
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.is_floating_point() and _is_constant(parameter):
                fan_in = parameter[0].numel() if parameter.ndim > 1 else 1
                parameter.add_(_normal(parameter, generator).to(parameter) * 0.1 / fan_in**0.5)
    return model


def _is_constant(parameter: Tensor) -> bool:
    return parameter.numel() > 0 and bool((parameter == parameter.flatten()[0]).all())


def _running(module: nn.Module) -> list[Tensor]:
    tensors = (getattr(module, name, None) for name in ("running_mean", "running_var"))
    return [tensor for tensor in tensors if isinstance(tensor, Tensor)]


def _tracks(module: nn.Module) -> bool:
    return len(_running(module)) == 2


def _is_batch_norm(module: nn.Module) -> bool:
    return _tracks(module) or isinstance(module, nn.modules.batchnorm._BatchNorm)


def _draw_norm(name: str, norm: nn.Module, generator: torch.Generator) -> None:
    tensors = [getattr(norm, key, None) for key in ("running_mean", "running_var", "weight", "bias")]
    if any(isinstance(tensor, Tensor) and is_lazy(tensor) for tensor in tensors):
        raise ValueError(
            f"draw_statistics: {name or 'the model'} ({type(norm).__name__}) does not know its number of channels "
            f"before its first input; run the model once first"
        )
    draws: list[Callable[[Tensor, torch.Generator], Tensor]] = [_mean, _variance, _gamma, _beta]
    present = [(tensor, draw) for tensor, draw in zip(tensors, draws, strict=True) if isinstance(tensor, Tensor)]
    for tensor, draw in present:
        if tensor.shape == present[0][0].shape:
            tensor.copy_(draw(tensor, generator))


def _measure(model: nn.Module, norms: list[nn.Module], inputs: tuple[Any, ...]) -> None:
    """Scales drawn statistics, which fit an input of mean 0 and variance 1, to the input that each norm receives."""

    reshaping: dict[int, nn.Module] = {}

    def fit_input(norm: nn.Module, arguments: tuple[Any, ...]) -> None:
        x, (running_mean, _) = arguments[0], _running(norm)
        if x.ndim > 1 and x.shape[1] == len(running_mean):
            fit(norm, x)
        else:  # a subclass that calls torch's norm on another shape
            reshaping[id(running_mean)] = norm

    def fit(norm: nn.Module, x: Tensor) -> None:
        x = x.detach().float()
        axes = [axis for axis in range(x.ndim) if axis != 1]
        mean, variance = x.mean(axes), x.var(axes, correction=0)
        # A channel that is constant (dead, or a single pixel) has no scale.
        variance = torch.where(variance > 1e-8, variance, torch.ones_like(variance))
        running_mean, running_var = _running(norm)
        running_mean.copy_(mean + running_mean * variance.sqrt())
        running_var.copy_(variance * running_var)

    def fit_call(x: Tensor, running_mean: Tensor | None) -> None:
        if id(running_mean) in reshaping:
            fit(reshaping[id(running_mean)], x)

    modes = [(module, module.training) for module in model.modules()]
    with ExitStack() as undo, _BatchNormCalls(fit_call):
        for norm in norms:
            handle = norm.register_forward_pre_hook(fit_input)
            undo.callback(handle.remove)
        for module, training in modes:
            undo.callback(setattr, module, "training", training)
            module.training = False
        model(*inputs)


class _BatchNormCalls(TorchFunctionMode):
    """Within it `note` is called with the input and the running mean of each call of `F.batch_norm`, before it runs."""

    def __init__(self, note: Callable[[Tensor, Tensor | None], None]) -> None:
        super().__init__()
        self.note = note

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is F.batch_norm:
            self.note(args[0], args[1])
        return func(*args, **(kwargs or {}))


def _normal(like: Tensor, generator: torch.Generator) -> Tensor:
    # In float64 on the CPU, so that the numbers do not depend on the dtype and the device.
    return torch.randn(like.shape, generator=generator, dtype=torch.float64)


def _uniform(like: Tensor, generator: torch.Generator) -> Tensor:
    return torch.rand(like.shape, generator=generator, dtype=torch.float64)


def _mean(like: Tensor, generator: torch.Generator) -> Tensor:
    return 0.3 * _normal(like, generator)


def _variance(like: Tensor, generator: torch.Generator) -> Tensor:
    return 0.5 + _uniform(like, generator)


def _gamma(like: Tensor, generator: torch.Generator) -> Tensor:
    sign = torch.where(_uniform(like, generator) < _FLIPPED, -1.0, 1.0)
    return sign * (0.5 + 0.7 * _uniform(like, generator))


def _beta(like: Tensor, generator: torch.Generator) -> Tensor:
    return 0.3 * _normal(like, generator)
