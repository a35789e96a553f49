"""A folded model as two files: weights that are data (`.safetensors`), and beside them where they come from (`.json`).

Neither holds code to run and neither needs a deploy twin of the model's class: the structure is rebuilt on a fresh copy
of the training model (see `structure`), and the numbers are loaded into it. Hashes tie the two files together, the
outline of the model is compared before anything is built, and what the rebuilt model computes is compared with what the
saved one did (see `probe`), as code may change under the same names.
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
_CONSTANT = "constant:"  # the name of a tensor that is in no state begins with this in the file


@dataclass(frozen=True)
class Saved:
    """The two files of an artefact."""

    weights: Path
    provenance: Path

    @classmethod
    def at(cls, path: Path | str) -> Saved:
        """Both, from the path of either."""
        path = Path(path)
        if path.suffix not in (".safetensors", ".json"):
            raise InputError(f"{path}: an artefact is a .safetensors file with a .json beside it; name it so")
        return cls(path.with_suffix(".safetensors"), path.with_suffix(".json"))


def save(
    deployed: nn.Module,
    path: Path | str,
    *,
    source: Mapping[str, Any] | None = None,
    force: bool = False,
) -> Saved:
    """Write a folded model, as `reparameterize` has returned it, to `path` (.safetensors) and a .json beside it.

    source: how the original was named and where its weights come from, for people and programs to read.
    force: overwrite.

    Raises InputError where the model was not folded here, was changed since, needs code that is no data, or where the
    files cannot be written: then neither is.
    """
    saved = Saved.at(path)
    origin = vars(deployed).get("reparam_origin")
    if not isinstance(origin, Origin) or origin.skeleton is None:
        raise InputError(
            "save: this is not what reparameterize or load has returned, or it has been pickled since; fold the "
            "original, and save what comes out"
        )
    with written([saved.weights, saved.provenance], force) as (weights, provenance):
        structure = describe(origin.skeleton, deployed)
        state, tied = _distinct(deployed)
        held = {
            _CONSTANT + name: tensor.detach().contiguous() for name, tensor in constants(deployed, structure).items()
        }
        save_file(state | held, weights, {"format": "pt"})
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

    path: either of the two files. model: a fresh copy of the original, from the same code with the same arguments; its
    numbers do not matter, and it is left as it is. verify: compare a few numbers that it computes.

    Raises InputError where a file is missing, damaged or not the one that belongs to the other, where the model is not
    what was folded, or where it computes something else.
    """
    saved = Saved.at(path)
    data = read_provenance(saved.provenance)
    require_file(saved.weights)
    with _whole(saved.provenance):
        if sha256(saved.weights) != data["weights"]["sha256"]:
            raise InputError(
                f"{saved.weights} is damaged, or not the file that {saved.provenance.name} was written with (its "
                "sha256 differs); copy both files again"
            )
        state, held = _read(saved.weights)
        state |= {name: state[first] for name, first in data["weights"]["tied"].items()}
        folded = _applied(data, model, held)
        _fill(folded, state)
        if data["weights"].get("channels last"):
            folded = folded.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        if verify and data["probe"] is not None:
            require_probe(folded, data["probe"])
    return folded


def apply(provenance: Mapping[str, Any] | Path | str, model: nn.Module) -> nn.Module:
    """The folded structure on a copy of a fresh original, in eval mode, its new weights zero.

    It takes the artefact's weights by `load_state_dict`; `load` does both, and checks them. provenance: the .json file,
    or what is in it. Raises InputError as `load` does.
    """
    data = provenance if isinstance(provenance, Mapping) else read_provenance(Path(provenance))
    held: dict[str, Tensor] = {}
    if not isinstance(provenance, Mapping) and Saved.at(provenance).weights.exists():
        held = _read(Saved.at(provenance).weights)[1]
    with _whole(Path("the provenance") if isinstance(provenance, Mapping) else Path(provenance)):
        return _applied(data, model, held)


def origin_of(path: Path | str) -> Origin:
    """What an artefact knows of its original. Raises InputError where its .json is missing or damaged."""
    saved = Saved.at(path)
    with _whole(saved.provenance):
        return _origin(read_provenance(saved.provenance))


@contextmanager
def _whole(path: Path) -> Iterator[None]:
    """Whatever is not where it should be in a provenance says that the file is damaged."""
    try:
        yield
    except (KeyError, TypeError, ValueError, AttributeError, IndexError, OverflowError, RuntimeError) as error:
        raise InputError(f"{path} is damaged: {type(error).__name__}: {error}") from error


def read_provenance(path: Path) -> dict[str, Any]:
    """What is in the .json of an artefact. Raises InputError where it is none, or of another version."""
    require_file(path)
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
        found = (data["format"], data["version"])
        parts = [data[name] for name in ("weights", "original", "structure", "keys", "options")]
        complete = all(isinstance(part, dict | list) for part in parts)
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise InputError(f"{path} is damaged, or no provenance of an artefact ({error})") from error
    if found[0] != FORMAT or not complete:
        raise InputError(f"{path} is no provenance of an artefact")
    if found[1] != VERSION:
        raise InputError(
            f"{path} is of version {found[1]}, and this reparam reads {VERSION}; use the one that wrote it"
        )
    return dict(data)


def _applied(data: Mapping[str, Any], model: nn.Module, held: Mapping[str, Tensor]) -> nn.Module:
    require_outline(model, data["original"])
    folded = rebuild(model, data["structure"], held)
    vars(folded)["reparam_origin"] = _origin(data).with_skeleton_of(model)
    return folded


def _origin(data: Mapping[str, Any]) -> Origin:
    keys = {str(old): tuple(map(str, new)) for old, new in data["keys"].items()}
    return Origin(None, dict(data["original"]["sha256"]), keys, data["inputs"], dict(data["options"]))


def _fill(folded: nn.Module, state: Mapping[str, Tensor]) -> None:
    """The numbers into their places: every tensor one, every place one, in the shape and dtype that was saved."""
    places = {name: each for name, each in folded.state_dict(keep_vars=True).items() if isinstance(each, Tensor)}
    missing, more = sorted(places.keys() - state), sorted(state.keys() - places)
    wrong = [name for name in places.keys() & state.keys() if places[name].shape != state[name].shape]
    if missing or more or wrong:
        raise InputError(
            f"the artefact does not fit together: missing {missing}, unexpected {more}, other shapes {wrong}"
        )
    for name, place in places.items():
        place.data = state[name].to(place.device, copy=True)


def _distinct(model: nn.Module) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Every tensor of the state once, and by the other names of a shared one its first."""
    state: dict[str, Tensor] = {}
    tied: dict[str, str] = {}
    first: dict[int, str] = {}
    for name, tensor in model.state_dict(keep_vars=True).items():
        if not isinstance(tensor, Tensor):
            raise InputError(
                f"save: {name} in the state is a {type(tensor).__name__} and no tensor; export a .pt2 instead"
            )
        if id(tensor) in first:
            tied[name] = first[id(tensor)]
        else:
            first[id(tensor)] = name
            state[name] = tensor.detach().cpu().clone(memory_format=torch.contiguous_format)
    return state, tied


def _read(path: Path) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """The state, and the tensors that are in none."""
    try:
        with safe_open(path, framework="pt") as file:
            found = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - it is no mapping
    except (SafetensorError, OSError, ValueError) as error:
        raise InputError(f"{path} is damaged, or no .safetensors file: {error}") from error
    held = {name.removeprefix(_CONSTANT): each for name, each in found.items() if name.startswith(_CONSTANT)}
    return {name: each for name, each in found.items() if not name.startswith(_CONSTANT)}, held


def _channels_last(model: nn.Module) -> bool:
    """Whether its images are laid out channel by channel in memory; the file knows no order."""
    kernels = [each for each in model.parameters() if each.dim() == 4 and not each.is_contiguous()]
    return any(each.is_contiguous(memory_format=torch.channels_last) for each in kernels)


def _versions() -> dict[str, str]:
    return {"reparam": version("reparam"), "torch": torch.__version__, "python": platform.python_version()}
