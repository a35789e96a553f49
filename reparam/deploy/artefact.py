"""A folded model as two files: its weights (`.safetensors`), and beside them their provenance (`.json`).

The provenance describes the folded structure. `load` rebuilds it on a fresh copy of the training model (see
`structure`) and loads the weights into it, so the model needs no second class for deployment. Three checks protect the
user: a hash ties the two files together, the outline of the fresh model must match before anything is built, and the
rebuilt model must compute what the saved one did (see `probe`), because code may change under the same names.

Both files are data: nothing in them is executed. Files of format 1 held text that is, and load only where that is
asked for.
"""

from __future__ import annotations

import json
import platform
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from reparam.capture.process import exclusive
from reparam.deploy.files import require_writable, sha256
from reparam.deploy.old_format import OldForward
from reparam.deploy.pair import Saved, opened, parsed, read_json_bytes, replaced, retries
from reparam.deploy.probe import probe, require_probe
from reparam.deploy.structure import constants, describe, outline, rebuild, require_outline
from reparam.deploy.weights_file import WeightsFile
from reparam.errors import InputError
from reparam.report.as_data import report_data
from reparam.report.report import Report
from reparam.rewrite.origin import Origin
from reparam.version import __version__

FORMAT = "reparam artefact"
VERSION = 2
_OLD_VERSION = 1  # its forwards are text, which is executed
_CONSTANT = "constant:"  # prefix in the file of tensors that the state_dict lacks


@exclusive
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
    require_writable(saved.weights, force)
    require_writable(saved.provenance, force)
    structure = describe(origin.skeleton, deployed)
    state, tied = _state_and_ties(deployed)
    extra = {_CONSTANT + name: tensor.detach().contiguous() for name, tensor in constants(deployed, structure).items()}
    report = vars(deployed).get("reparam_report")
    data: dict[str, Any] = {
        "format": FORMAT,
        "version": VERSION,
        "made with": _versions(),
        "source": dict(source or {}),
        "inputs": origin.inputs,
        "options": dict(origin.options),
        "weights": {"file": saved.weights.name, "tied": tied, "channels last": _channels_last(deployed)},
        "keys": {old: list(new) for old, new in origin.keys.items()},
        "original": {**outline(origin.skeleton), "sha256": dict(origin.digests)},
        "structure": structure,
        "probe": None if origin.inputs is None else probe(deployed, origin.inputs),
        "report": report_data(report) if isinstance(report, Report) else None,
    }
    with replaced(saved, force) as (weights, provenance):
        save_file(state | extra, weights, {"format": "pt"})
        data["weights"]["sha256"] = sha256(weights)
        provenance.write_text(json.dumps(data, indent=1, allow_nan=False) + "\n", encoding="utf-8")
    return saved


@exclusive
def load(path: Path | str, model: nn.Module, *, verify: bool = True, trusted: bool = False) -> nn.Module:
    """The folded model of an artefact, in eval mode, on the device of `model`.

    Nothing in the files is executed, so they may come from strangers; what they describe is built and, with `verify`,
    run on `model`.

    path: of either file.
    model: a fresh original, made by the same code with the same arguments. Its weights do not matter, and it is not
        changed.
    verify: compare some of the numbers that the result computes with those of the saved model.
    trusted: load a file of format 1, too. It holds Python code, which is executed: set this only if you trust whoever
        made the file.

    Raises InputError where a file is missing, damaged, or does not belong to the other, where `model` has another
    structure than the original, and where the result computes something else.
    """
    saved = Saved.at(path)
    with _damage_explained(saved.provenance):
        data, types, tensors = _read(saved, trusted)
        state = {name: tensor for name, tensor in tensors.items() if not name.startswith(_CONSTANT)}
        tied = {str(name): str(first) for name, first in data["weights"]["tied"].items()}
        state |= {name: state[first] for name, first in tied.items()}
        types |= {name: types[first] for name, first in tied.items()}
        folded = _applied(data, model, _constants(tensors), types)
        _set_weights(folded, state)
        if data["weights"].get("channels last"):
            folded = folded.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        if verify and data["probe"] is not None:
            require_probe(folded, data["probe"])
    return folded


@exclusive
def apply(provenance: Mapping[str, Any] | Path | str, model: nn.Module, *, trusted: bool = False) -> nn.Module:
    """The folded structure on a copy of `model`, in eval mode, with zeros for its new weights.

    The artefact's weights go into it with `load_state_dict`. `load` does both, with all checks.

    provenance: the .json file or its content. model: a fresh original, as for `load`. trusted: as for `load`.

    Raises InputError as `load` does.
    """
    if isinstance(provenance, Mapping):
        with _damage_explained(Path("the provenance")):
            return _applied(_checked(provenance, "the provenance", trusted), model, {}, None)
    saved = Saved.at(provenance)
    with _damage_explained(saved.provenance):
        if not saved.weights.exists():
            return _applied(_provenance(read_json_bytes(saved.provenance), saved.provenance, trusted), model, {}, None)
        data, types, tensors = _read(saved, trusted)
        types |= {str(name): types[str(first)] for name, first in data["weights"]["tied"].items()}
        return _applied(data, model, _constants(tensors), types)


def origin_of(path: Path | str) -> Origin:
    """What an artefact notes about its original. Raises InputError where its .json is missing or damaged."""
    saved = Saved.at(path)
    with _damage_explained(saved.provenance):
        return _origin(_provenance(read_json_bytes(saved.provenance), saved.provenance, trusted=True))


@contextmanager
def _damage_explained(path: Path) -> Iterator[None]:
    """Anything missing, of another type or too large in a provenance is an InputError: the file is damaged."""
    try:
        yield
    except (
        KeyError,
        TypeError,
        ValueError,
        AttributeError,
        IndexError,
        OverflowError,
        RuntimeError,
        MemoryError,
        AssertionError,
    ) as error:
        raise InputError(f"{path} is damaged: {type(error).__name__}: {str(error)[:300]}") from error


def _read(saved: Saved, trusted: bool) -> tuple[dict[str, Any], dict[str, str], dict[str, Tensor]]:
    """The provenance, the dtype and shape of each tensor in the weights, and the tensors, from one save.

    Reads again where the two do not belong together: on a file system without locks, a save may be under way.
    """
    for again in retries():
        with opened(saved) as (contents, file):
            candidates = [_provenance(content, saved.provenance, trusted) for content in contents]
            weights = WeightsFile(file, str(saved.weights))
            tensors, digest = weights.read()
        for data in candidates:
            if data["weights"]["sha256"] == digest:
                return data, {name: entry.type_text for name, entry in weights.entries.items()}, tensors
        if not again:
            break
    raise InputError(
        f"{saved.weights} is damaged, or was not written together with {saved.provenance.name}: its sha256 differs; "
        "copy both files again"
    )


def _constants(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors that the state_dict lacks."""
    return {name.removeprefix(_CONSTANT): tensor for name, tensor in tensors.items() if name.startswith(_CONSTANT)}


def _provenance(content: bytes, path: Path, trusted: bool) -> dict[str, Any]:
    """The content of an artefact's .json. Raises InputError for another kind of file, and for another version."""
    try:
        data = parsed(content)
    except (ValueError, RecursionError, MemoryError) as error:
        raise InputError(f"{path} is damaged, or is not the provenance of an artefact ({error})") from error
    return _checked(data, str(path), trusted)


def _checked(data: Any, path: str, trusted: bool) -> dict[str, Any]:
    if not isinstance(data, Mapping) or data.get("format") != FORMAT:
        raise InputError(f"{path} is not the provenance of an artefact; name the .json that `save` has written")
    number = data.get("version")
    if number == _OLD_VERSION and type(number) is int and not trusted:
        raise InputError(
            f"{path} is of format 1, which holds Python code that loading executes; load it only if you trust whoever "
            "made it, with trusted=True (--trust), or fold the original again and save it with this version"
        )
    if number not in (_OLD_VERSION, VERSION) or type(number) is not int:
        raise InputError(
            f"{path} is of version {number}, and this reparam reads version {VERSION}; use the reparam that wrote it"
        )
    if not all(
        isinstance(data.get(name), dict | list) for name in ("weights", "original", "structure", "keys", "options")
    ):
        raise InputError(f"{path} is damaged, or is not the provenance of an artefact: a part is missing")
    return dict(data)


def _applied(
    data: Mapping[str, Any], model: nn.Module, extra: Mapping[str, Tensor], types: Mapping[str, str] | None
) -> nn.Module:
    require_outline(model, data["original"])
    old = OldForward.of if data["version"] == _OLD_VERSION else None
    folded = rebuild(model, data["structure"], extra, types, old)
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
        target.data = state[name].to(target.device)


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


def _channels_last(model: nn.Module) -> bool:
    """Whether the kernels are in that memory format, which a .safetensors file does not store."""
    kernels = [weight for weight in model.parameters() if weight.dim() == 4 and not weight.is_contiguous()]
    return any(kernel.is_contiguous(memory_format=torch.channels_last) for kernel in kernels)


def _versions() -> dict[str, str]:
    return {"reparam": __version__, "torch": torch.__version__, "python": platform.python_version()}
