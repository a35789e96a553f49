"""Back from a folded model to its training form."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor, nn

from reparam.deploy.artefact import origin_of
from reparam.deploy.checkpoint import fit, read_checkpoint
from reparam.errors import InputError
from reparam.rewrite.origin import Origin, digests, materialized


def undo(
    deployed: nn.Module | Path | str,
    original_state: Mapping[str, Tensor] | Path | str,
    *,
    model: nn.Module | None = None,
    check: bool = True,
) -> nn.Module:
    """The training form of a folded model: the model that `reparameterize` was given, with its weights.

    deployed: what `reparameterize` or `load` has returned; it is not changed. Or the path of an artefact.
    original_state: the `state_dict()` of the original, or the path of a checkpoint that holds it. The folded weights
        are sums that cannot be taken apart again.
    model: a fresh original. Needed for an artefact, and for a folded model that has been pickled: neither holds the
        code of the training form.
    check: refuse weights that are not the ones that were folded.

    Returns a new model in eval mode, on the device of `deployed` (for an artefact: of `model`). Raises InputError where
    the model was not folded by this package, and where the state is not that of the original.
    """
    origin = _origin(deployed)
    if model is not None:
        origin = origin.with_skeleton_of(model)
    if origin.skeleton is None:
        raise InputError(
            "undo: a file of a folded model does not hold the code of its training form; build a fresh original and "
            "give it as model="
        )
    placed = deployed if isinstance(deployed, nn.Module) else model
    device = next((tensor.device for tensor in placed.parameters()), None) if placed is not None else None
    restored = materialized(origin.skeleton, device or torch.device("cpu"))
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
            "undo: this model was not folded by reparam, or is a wrapper around one that was; give the folded model"
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
    restored_digests = digests(restored)
    differing = [key for key, digest in origin.digests.items() if restored_digests.get(key) != digest]
    if differing:
        raise InputError(
            f"undo: these are not the weights that were folded: {len(differing)} of {len(origin.digests)} tensors "
            f"differ, the first is {differing[0]}; give the state of the original, or pass check=False"
        )
