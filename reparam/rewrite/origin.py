"""Provenance: what a folded model was before, and what became of each of its tensors."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from reparam.capture.snapshot import copied


@dataclass(frozen=True, eq=False)
class Origin:
    """What a model was before it was folded: the attribute `reparam_origin` of every folded model.

    skeleton: the original without the numbers of its parameters and persistent buffers. It is not pickled, since a
        deployed file has to load without the training code: None after loading.
    digests: by key of the original's state, the digest of the tensor.
    keys: by key of the original's state, the keys of the folded state that it went into; none if it is not needed.
    inputs: the `outline` of the example inputs, if they have one. options: how the conversion was called.
    """

    skeleton: nn.Module | None
    digests: Mapping[str, str]
    keys: Mapping[str, tuple[str, ...]]
    inputs: Mapping[str, Any] | None
    options: Mapping[str, Any]

    def __deepcopy__(self, memo: dict[int, Any]) -> Origin:
        return self

    def __reduce__(self) -> Any:
        return Origin, (
            None,
            dict(self.digests),
            dict(self.keys),
            self.inputs and dict(self.inputs),
            dict(self.options),
        )

    def with_skeleton_of(self, model: nn.Module) -> Origin:
        """The same, with the skeleton of a model of the original's class."""
        return replace(self, skeleton=skeleton(model).eval())


def skeleton(model: nn.Module) -> nn.Module:
    """A copy whose parameters and persistent buffers are on the meta device; everything else is copied."""
    memo: dict[int, Any] = {}
    for tensor in _state(model).values():
        if type(tensor) is nn.Parameter:
            memo[id(tensor)] = nn.Parameter(torch.empty_like(tensor, device="meta"), tensor.requires_grad)
        elif type(tensor) is Tensor:
            memo[id(tensor)] = torch.empty_like(tensor, device="meta")
    return _without_results(copied(model, memo))


def materialized(skeleton: nn.Module, device: torch.device) -> nn.Module:
    """A copy of a skeleton with zeros in the place of meta tensors. All tensors are on the device."""
    memo: dict[int, Any] = {}
    for tensor in _state(skeleton).values():
        if tensor.is_meta:
            zeros = torch.zeros_like(tensor, device=device)
            memo[id(tensor)] = nn.Parameter(zeros, tensor.requires_grad) if type(tensor) is nn.Parameter else zeros
    return copied(skeleton, memo).to(device)


def digests(model: nn.Module) -> dict[str, str]:
    """A digest of every tensor in the model's state."""
    return {key: digest(tensor) for key, tensor in _state(model).items()}


def digest(tensor: Tensor) -> str:
    """The SHA-256 of dtype, shape and values, in hex. Device and strides make no difference."""
    plain = tensor.detach().cpu()
    plain = (plain if plain.layout == torch.strided else plain.to_dense()).resolve_conj().resolve_neg().contiguous()
    sha256 = hashlib.sha256(f"{plain.dtype} {tuple(plain.shape)} ".encode())
    if plain.numel():
        sha256.update(plain.flatten().view(torch.uint8).numpy().data)
    return sha256.hexdigest()


def keys_by_tensor(model: nn.Module) -> dict[int, list[str]]:
    """The keys of every tensor in the model's state, by the tensor's id."""
    keys: dict[int, list[str]] = {}
    for key, tensor in _state(model).items():
        keys.setdefault(id(tensor), []).append(key)
    return keys


def key_map(
    before: Mapping[int, list[str]], folded: nn.Module, layers: Iterable[tuple[str, Iterable[Tensor]]]
) -> dict[str, tuple[str, ...]]:
    """For each key of the original's state, the keys of the folded state that it went into.

    before: `keys_by_tensor` of the model before it was edited.
    layers: for each new layer or weight its path, and the tensors of the original that it is computed from.
    """
    after = _state(folded)
    new_keys: dict[str, dict[str, None]] = {key: {} for keys in before.values() for key in keys}
    for key, tensor in after.items():
        for old in before.get(id(tensor), ()):
            new_keys[old][key] = None
    layers = list(layers)
    layer_keys: dict[str, list[str]] = {path: [] for path, _ in layers}
    for key in (key for key, tensor in after.items() if id(tensor) not in before):
        for path in (key, *paths_around(key)):
            if path in layer_keys:
                layer_keys[path].append(key)
    for path, tensors in layers:
        for tensor in tensors:
            for old in before.get(id(tensor), ()):
                new_keys[old].update(dict.fromkeys(layer_keys[path]))
    return {key: tuple(keys) for key, keys in new_keys.items()}


def paths_around(key: str) -> Iterator[str]:
    """The paths of the modules around a tensor or a module, innermost first; the last one, the model's, is empty."""
    while key:
        key = key.rpartition(".")[0]
        yield key


def _state(model: nn.Module) -> dict[str, Tensor]:
    """The tensors of the model's state by key; by path where the model's own `state_dict` fails."""
    try:
        state: Mapping[str, Any] = model.state_dict(keep_vars=True)
    except Exception:  # noqa: BLE001 - an override may take other arguments, or raise anything
        return {
            **dict(model.named_parameters(remove_duplicate=False)),
            **dict(model.named_buffers(remove_duplicate=False)),
        }
    return {key: value for key, value in state.items() if isinstance(value, Tensor)}


def _without_results(model: nn.Module) -> nn.Module:
    """The model without the attributes of an earlier conversion."""
    for name in ("reparam_report", "reparam_origin"):
        vars(model).pop(name, None)
    return model
