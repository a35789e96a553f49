"""A folded model as two files: its weights (`.safetensors`), and beside them their provenance (`.json`).

The provenance describes the folded structure. `load` rebuilds it on a fresh copy of the training model (see
`structure`) and loads the weights into it, so the model needs no second class for deployment. Three checks protect the
user: a hash ties the two files together, the outline of the fresh model must match before anything is built, and the
rebuilt model must compute what the saved one did (see `probe`), because code may change under the same names.
"""

from __future__ import annotations

import json
import platform
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from reparam.deploy.files import require_file, sha256, written
from reparam.deploy.probe import probe, require_probe
from reparam.deploy.structure import constants, describe, outline, rebuild, require_outline
from reparam.errors import InputError
from reparam.report.as_data import report_data
from reparam.report.report import Report
from reparam.rewrite.origin import Origin

FORMAT = "reparam artefact"
VERSION = 1
_CONSTANT = "constant:"  # prefix in the file of tensors that the state_dict lacks


@dataclass(frozen=True)
class Saved:
    """The two files of an artefact."""

    weights: Path
    provenance: Path

    @classmethod
    def at(cls, path: Path | str) -> Saved:
        """Both, from the path of either. Raises InputError for another suffix."""
        path = Path(path)
        if path.suffix not in (".safetensors", ".json"):
            raise InputError(f"{path}: an artefact is a .safetensors file with a .json beside it; name one of them")
        return cls(path.with_suffix(".safetensors"), path.with_suffix(".json"))


def save(
    deployed: nn.Module,
    path: Path | str,
    *,
    source: Mapping[str, Any] | None = None,
    force: bool = False,
) -> Saved:
    """Write a folded model to a .safetensors file and its provenance to a .json beside it.

    deployed: what `reparameterize` or `load` has returned.
    path: of either file.
    source: what to note of the original, such as its name and its checkpoint. It must fit into JSON.
    force: overwrite.

    Raises InputError where the model was not folded by this package, was changed since, or runs code that a file must
    not hold; and where the files cannot be written. Then neither is.
    """
    saved = Saved.at(path)
    origin = vars(deployed).get("reparam_origin")
    if not isinstance(origin, Origin) or origin.skeleton is None:
        raise InputError(
            "save: this is not a model that reparameterize or load has returned, or it has been pickled since; fold "
            "the original and save the result"
        )
    with written([saved.weights, saved.provenance], force) as (weights, provenance):
        structure = describe(origin.skeleton, deployed)
        state, tied = _state_and_ties(deployed)
        extra = {
            _CONSTANT + name: tensor.detach().contiguous() for name, tensor in constants(deployed, structure).items()
        }
        save_file(state | extra, weights, {"format": "pt"})
        report = vars(deployed).get("reparam_report")
        data = {
            "format": FORMAT,
            "version": VERSION,
            "made with": _versions(),
            "source": dict(source or {}),
            "inputs": origin.inputs,
            "options": dict(origin.options),
            "weights": {
                "file": saved.weights.name,
                "sha256": sha256(weights),
                "tied": tied,
                "channels last": _channels_last(deployed),
            },
            "keys": {old: list(new) for old, new in origin.keys.items()},
            "original": {**outline(origin.skeleton), "sha256": dict(origin.digests)},
            "structure": structure,
            "probe": None if origin.inputs is None else probe(deployed, origin.inputs),
            "report": report_data(report) if isinstance(report, Report) else None,
        }
        provenance.write_text(json.dumps(data, indent=1, allow_nan=False) + "\n", encoding="utf-8")
    return saved


def load(path: Path | str, model: nn.Module, *, verify: bool = True) -> nn.Module:
    """The folded model of an artefact, in eval mode, on the device of `model`.

    path: of either file.
    model: a fresh original, made by the same code with the same arguments. Its weights do not matter, and it is not
        changed.
    verify: compare some of the numbers that the result computes with those of the saved model.

    Raises InputError where a file is missing, damaged, or does not belong to the other, where `model` has another
    structure than the original, and where the result computes something else.
    """
    saved = Saved.at(path)
    data = read_provenance(saved.provenance)
    require_file(saved.weights)
    with _damage_explained(saved.provenance):
        if sha256(saved.weights) != data["weights"]["sha256"]:
            raise InputError(
                f"{saved.weights} is damaged, or was not written together with {saved.provenance.name}: its sha256 "
                "differs; copy both files again"
            )
        state, extra = _read(saved.weights)
        state |= {name: state[first] for name, first in data["weights"]["tied"].items()}
        folded = _applied(data, model, extra)
        _set_weights(folded, state)
        if data["weights"].get("channels last"):
            folded = folded.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        if verify and data["probe"] is not None:
            require_probe(folded, data["probe"])
    return folded


def apply(provenance: Mapping[str, Any] | Path | str, model: nn.Module) -> nn.Module:
    """The folded structure on a copy of `model`, in eval mode, with zeros for its new weights.

    The artefact's weights go into it with `load_state_dict`. `load` does both, with all checks.

    provenance: the .json file or its content. model: a fresh original, as for `load`.

    Raises InputError as `load` does.
    """
    data = provenance if isinstance(provenance, Mapping) else read_provenance(Path(provenance))
    extra: dict[str, Tensor] = {}
    if not isinstance(provenance, Mapping) and Saved.at(provenance).weights.exists():
        extra = _read(Saved.at(provenance).weights)[1]
    with _damage_explained(Path("the provenance") if isinstance(provenance, Mapping) else Path(provenance)):
        return _applied(data, model, extra)


def origin_of(path: Path | str) -> Origin:
    """What an artefact notes about its original. Raises InputError where its .json is missing or damaged."""
    saved = Saved.at(path)
    with _damage_explained(saved.provenance):
        return _origin(read_provenance(saved.provenance))


@contextmanager
def _damage_explained(path: Path) -> Iterator[None]:
    """Anything missing or of another type in a provenance is an InputError: the file is damaged."""
    try:
        yield
    except (KeyError, TypeError, ValueError, AttributeError, IndexError, OverflowError, RuntimeError) as error:
        raise InputError(f"{path} is damaged: {type(error).__name__}: {error}") from error


def read_provenance(path: Path) -> dict[str, Any]:
    """The content of an artefact's .json. Raises InputError for another kind of file, and for another version."""
    require_file(path)
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
        kind, number = data["format"], data["version"]
        parts = [data[name] for name in ("weights", "original", "structure", "keys", "options")]
        complete = all(isinstance(part, dict | list) for part in parts)
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise InputError(f"{path} is damaged, or is not the provenance of an artefact ({error})") from error
    if kind != FORMAT or not complete:
        raise InputError(f"{path} is not the provenance of an artefact; name the .json that `save` has written")
    if number != VERSION:
        raise InputError(
            f"{path} is of version {number}, and this reparam reads version {VERSION}; use the reparam that wrote it"
        )
    return dict(data)


def _applied(data: Mapping[str, Any], model: nn.Module, extra: Mapping[str, Tensor]) -> nn.Module:
    require_outline(model, data["original"])
    folded = rebuild(model, data["structure"], extra)
    vars(folded)["reparam_origin"] = _origin(data).with_skeleton_of(model)
    return folded


def _origin(data: Mapping[str, Any]) -> Origin:
    keys = {str(old): tuple(map(str, new)) for old, new in data["keys"].items()}
    return Origin(None, dict(data["original"]["sha256"]), keys, data["inputs"], dict(data["options"]))


def _set_weights(folded: nn.Module, state: Mapping[str, Tensor]) -> None:
    """Give each tensor of the model its saved value, in the saved dtype; names and shapes must match."""
    targets = {name: value for name, value in folded.state_dict(keep_vars=True).items() if isinstance(value, Tensor)}
    missing, unexpected = sorted(targets.keys() - state), sorted(state.keys() - targets)
    wrong = [name for name in targets.keys() & state.keys() if targets[name].shape != state[name].shape]
    if missing or unexpected or wrong:
        raise InputError(
            f"the two files of the artefact do not fit together: missing {missing}, unexpected {unexpected}, other "
            f"shapes {wrong}; copy both files again"
        )
    for name, target in targets.items():
        target.data = state[name].to(target.device, copy=True)


def _state_and_ties(model: nn.Module) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Each tensor of the state under its first name, and that name by every other name of a tied tensor."""
    state: dict[str, Tensor] = {}
    tied: dict[str, str] = {}
    first: dict[int, str] = {}
    for name, tensor in model.state_dict(keep_vars=True).items():
        if not isinstance(tensor, Tensor):
            raise InputError(
                f"save: {name} in the state_dict is a {type(tensor).__name__} and no tensor; export a .pt2 instead"
            )
        if id(tensor) in first:
            tied[name] = first[id(tensor)]
        else:
            first[id(tensor)] = name
            state[name] = tensor.detach().cpu().clone(memory_format=torch.contiguous_format)
    return state, tied


def _read(path: Path) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """The state, and the tensors that the state_dict lacks."""
    try:
        with safe_open(path, framework="pt") as file:
            content = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - it is no mapping
    except (SafetensorError, OSError, ValueError) as error:
        raise InputError(f"{path} is damaged, or is not a .safetensors file: {error}; copy it again") from error
    state = {name: tensor for name, tensor in content.items() if not name.startswith(_CONSTANT)}
    return state, {name.removeprefix(_CONSTANT): content[name] for name in content.keys() - state.keys()}


def _channels_last(model: nn.Module) -> bool:
    """Whether the kernels are in that memory format, which a .safetensors file does not store."""
    kernels = [weight for weight in model.parameters() if weight.dim() == 4 and not weight.is_contiguous()]
    return any(kernel.is_contiguous(memory_format=torch.channels_last) for kernel in kernels)


def _versions() -> dict[str, str]:
    return {"reparam": version("reparam"), "torch": torch.__version__, "python": platform.python_version()}
