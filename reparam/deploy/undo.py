"""The way back from a folded model to the form that it was trained in."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor, nn

from reparam.deploy.artefact import origin_of
from reparam.deploy.checkpoint import fit, read_checkpoint
from reparam.errors import InputError
from reparam.rewrite.origin import Origin, digests, filled


def undo(
    deployed: nn.Module | Path | str,
    original_state: Mapping[str, Tensor] | Path | str,
    *,
    model: nn.Module | None = None,
    check: bool = True,
) -> nn.Module:
    """The training form of a folded model: what `reparameterize` was given, with the state that it had.

    deployed: what `reparameterize` or `load` has returned, which is left as it is; or a file of an artefact.
    original_state: the `state_dict()` of the original, or the checkpoint that holds it (see `read_checkpoint`); the
        numbers in the folded weights cannot be taken apart again.
    model: a fresh original, for an artefact, and for a folded model that has been pickled and does not know the code of
        its training form any more.
    check: refuse a state that is not the one that was folded.

    Returns a new model in eval mode, on the device of `deployed` (of `model`, for an artefact); call .train() on it to
    train on. Raises InputError where the model was not folded, or the state is not that of the original.
    """
    origin = _origin(deployed)
    if model is not None:
        origin = origin.with_skeleton_of(model)
    if origin.skeleton is None:
        raise InputError(
            "undo: a folded model in a file does not carry the code of its training form; build the original anew and "
            "give it as model="
        )
    placed = deployed if isinstance(deployed, nn.Module) else model
    device = next((tensor.device for tensor in placed.parameters()), None) if placed is not None else None
    restored = filled(origin.skeleton, device or torch.device("cpu"))
    _load(restored, original_state)
    if check:
        _require_same(restored, origin)
    return restored.eval()


def _origin(deployed: nn.Module | Path | str) -> Origin:
    if isinstance(deployed, Path | str):
        return origin_of(deployed)
    origin = vars(deployed).get("reparam_origin")
    if not isinstance(origin, Origin):
        raise InputError(
            "undo: this model has not been folded by reparam, or is a wrapper around one that has; give that"
        )
    return origin


def _load(restored: nn.Module, state: Mapping[str, Tensor] | Path | str) -> None:
    if isinstance(state, Path | str):
        fit(read_checkpoint(state), restored)
        return
    try:
        restored.load_state_dict(state)
    except RuntimeError as error:
        lines = " ".join(line.strip() for line in str(error).splitlines()[1:])
        raise InputError(f"undo: the state is not that of the original: {lines[:300]}") from error


def _require_same(restored: nn.Module, origin: Origin) -> None:
    found = digests(restored)
    other = [key for key, mark in origin.digests.items() if found.get(key) != mark]
    if other:
        raise InputError(
            f"undo: these are not the weights that were folded: {len(other)} of {len(origin.digests)} tensors differ, "
            f"the first is {other[0]}; give the state of the original, or say check=False"
        )
