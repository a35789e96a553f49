"""Where a folded model comes from: what it was, and what became of each of its tensors."""

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
    """What a model was before it was folded; `reparam_origin` of every folded model.

    skeleton: the original without the numbers of its parameters and persistent buffers. It is not pickled: a deployed
        file must load where the training code is not; None then.
    digests: by key of the original's state, the digest of the tensor.
    keys: by key of the original's state, the keys of the folded one's that it went into; none for what is not needed.
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
        """The same with a model of the original's class to go back to."""
        return replace(self, skeleton=skeleton(model).eval())


def skeleton(model: nn.Module) -> nn.Module:
    """A copy without the numbers that are in its state: these are on the meta device. The rest is as it was."""
    memo: dict[int, Any] = {}
    for tensor in _state(model).values():
        if type(tensor) is nn.Parameter:
            memo[id(tensor)] = nn.Parameter(torch.empty_like(tensor, device="meta"), tensor.requires_grad)
        elif type(tensor) is Tensor:
            memo[id(tensor)] = torch.empty_like(tensor, device="meta")
    return _unmarked(copied(model, memo))


def filled(skeleton: nn.Module, device: torch.device) -> nn.Module:
    """A copy of a skeleton whose state is there again, of zeros; every tensor is on the device."""
    memo: dict[int, Any] = {}
    for tensor in _state(skeleton).values():
        if tensor.is_meta:
            zeros = torch.zeros_like(tensor, device=device)
            memo[id(tensor)] = nn.Parameter(zeros, tensor.requires_grad) if type(tensor) is nn.Parameter else zeros
    return copied(skeleton, memo).to(device)


def digests(model: nn.Module) -> dict[str, str]:
    """A digest of shape, dtype and bytes of every tensor in the model's state."""
    return {key: digest(tensor) for key, tensor in _state(model).items()}


def digest(tensor: Tensor) -> str:
    """That of one tensor, wherever it is and however its memory is laid out."""
    held = tensor.detach().cpu()
    held = (held if held.layout == torch.strided else held.to_dense()).resolve_conj().resolve_neg().contiguous()
    mark = hashlib.sha256(f"{held.dtype} {tuple(held.shape)} ".encode())
    if held.numel():
        mark.update(held.flatten().view(torch.uint8).numpy().data)
    return mark.hexdigest()


def named(model: nn.Module) -> dict[int, list[str]]:
    """The keys of every tensor in the model's state, by its identity."""
    names: dict[int, list[str]] = {}
    for key, tensor in _state(model).items():
        names.setdefault(id(tensor), []).append(key)
    return names


def key_map(
    before: Mapping[int, list[str]], folded: nn.Module, made: Iterable[tuple[str, Iterable[Tensor]]]
) -> dict[str, tuple[str, ...]]:
    """Old key to new keys.

    before: `named` of the model before it was edited; made: for every new module its path and the tensors it is of.
    """
    after = _state(folded)
    found: dict[str, dict[str, None]] = {key: {} for keys in before.values() for key in keys}
    for key, tensor in after.items():
        for old in before.get(id(tensor), ()):
            found[old][key] = None
    made = list(made)
    new: dict[str, list[str]] = {path: [] for path, _ in made}
    for key in (key for key, tensor in after.items() if id(tensor) not in before):
        for path in enclosing(key):
            if path in new:
                new[path].append(key)
    for path, tensors in made:
        for tensor in tensors:
            for old in before.get(id(tensor), ()):
                found[old].update(dict.fromkeys(new[path]))
    return {key: tuple(keys) for key, keys in found.items()}


def enclosing(key: str) -> Iterator[str]:
    """The paths of the modules around a tensor or a module, the model's own, which is empty, last."""
    while key:
        key = key.rpartition(".")[0]
        yield key


def _state(model: nn.Module) -> dict[str, Tensor]:
    """The tensors themselves, by key; by path where a `state_dict` of the user's own does not give them."""
    try:
        held: Mapping[str, Any] = model.state_dict(keep_vars=True)
    except Exception:  # noqa: BLE001 - an override may want other arguments, or raise anything
        every = (*model.named_parameters(remove_duplicate=False), *model.named_buffers(remove_duplicate=False))
        return dict(every)
    return {key: each for key, each in held.items() if isinstance(each, Tensor)}


def _unmarked(model: nn.Module) -> nn.Module:
    """Without what an earlier conversion has noted on it."""
    for name in ("reparam_report", "reparam_origin"):
        vars(model).pop(name, None)
    return model
