"""Weights that a layer computes at every call, by a parametrization or by the hooks of `weight_norm` and
`spectral_norm`; and the layer with a plain parameter in their place.

torch's own `remove_parametrizations` is not used: it edits a class that all copies of a layer share.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.utils import remove_spectral_norm, remove_weight_norm
from torch.nn.utils.parametrize import ParametrizationList, is_parametrized

from reparam.capture.float64 import Float64, double
from reparam.capture.graph import Call, Record, is_torch_layer
from reparam.capture.snapshot import WEIGHT_HOOKS
from reparam.rewrite.code import forward_of, set_forward

_REMOVERS = dict(zip(WEIGHT_HOOKS, (remove_weight_norm, remove_spectral_norm), strict=True))
_PARTS = ("_g", "_v", "_orig", "_u")  # the ends of the names of what the hooks compute a weight from


def weight_hooks(module: nn.Module) -> list[str]:
    """The names of the weights that hooks compute."""
    hooks = module._forward_pre_hooks.values()
    return [vars(hook)["name"] for hook in hooks if type(hook).__module__ in WEIGHT_HOOKS]


def computed_weights(module: nn.Module) -> list[str]:
    """The names of the weights that a module computes at every call."""
    return [*_parametrizations(module), *weight_hooks(module)]


def _parametrizations(module: nn.Module) -> Mapping[str, nn.Module]:
    """What computes each parametrized weight."""
    made = module._modules["parametrizations"] if is_parametrized(module) else None
    return made._modules if made is not None else {}  # type: ignore[return-value]


@dataclass(frozen=True, eq=False)
class Source:
    """Where a weight comes from: the module that computes it (None for a hook's), or the hook and what it reads."""

    module: nn.Module
    name: str

    @classmethod
    def of(cls, module: nn.Module, name: str) -> Source:
        """The source of a weight of a module, which outlives `make_plain`."""
        made = _parametrizations(module).get(name)
        if made is not None:
            return cls(made, "")
        parts = nn.Module()
        for end in _PARTS:
            for registry in ("_parameters", "_buffers"):
                tensor = vars(module)[registry].get(name + end)
                if tensor is not None:
                    vars(parts)[registry][name + end] = tensor
        hooks = module._forward_pre_hooks.values()
        parts.register_forward_pre_hook(next(hook for hook in hooks if vars(hook).get("name") == name))
        return cls(parts.eval(), name)

    def tensors(self) -> list[Tensor]:
        """The tensors of the model that the weight is computed from."""
        return [*self.module.parameters(), *self.module.buffers()]

    @torch.no_grad()
    def value(self) -> Tensor:
        """The weight in float64."""
        module = double(self.module)
        with Float64():
            if not self.name:
                return module()  # type: ignore[no-any-return]
            (hook,) = module._forward_pre_hooks.values()
            hook(module, ())
        value: Tensor = getattr(module, self.name)
        return value


def make_plain(module: nn.Module, weights: Mapping[str, nn.Parameter | None]) -> None:
    """Let a module hold these parameters in the place of the weights that it computes. Copies of it do not change.

    weights: None for a weight that nobody needs.
    """
    for hook in list(module._forward_pre_hooks.values()):
        if type(hook).__module__ in WEIGHT_HOOKS:
            _REMOVERS[type(hook).__module__](module, vars(hook)["name"])
    if is_parametrized(module):
        forward, kind = forward_of(module), getattr(type(module), "_rewritten_from", type(module))
        del module._modules["parametrizations"]
        module.__class__ = kind.__bases__[0]
        if forward is not None:
            set_forward(module, forward)
    for key, load_hook in list(module._load_state_dict_pre_hooks.items()):
        if getattr(load_hook, "hook", load_hook).__module__.startswith("torch.nn.utils."):
            del module._load_state_dict_pre_hooks[key]  # it reads the keys of old checkpoints, and does not pickle
    for name, parameter in weights.items():
        if parameter is not None:
            setattr(module, name, parameter)  # a recurrent layer notes it
        elif is_torch_layer(module):
            module.register_parameter(name, None)  # like a missing bias: its repr asks for it


def is_used_apart(module: nn.Module, record: Record) -> bool:
    """Whether code reads, or replaces, what the weights of a module are computed from, besides that which does so."""
    inner = set(module.modules())
    if any(call.lent and call.module in inner for call in record.calls):
        return True
    readers = record.readers()
    tensors = [tensor for name in computed_weights(module) for tensor in Source.of(module, name).tensors()]
    nodes = (node for tensor in tensors for node in readers.get(id(tensor), ()))
    return not all(any(_computes(call, module) for call in node.call.stack()) if node.call else False for node in nodes)


def _computes(call: Call, module: nn.Module) -> bool:
    return call.module is module or isinstance(call.module, ParametrizationList)
