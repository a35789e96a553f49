"""Checkpoints, as training scripts leave them: the weights are found, renamed to the model's own names, and loaded.

Checkpoints are read as data: `.safetensors`, or torch's own format with `weights_only=True`. Neither can run code.
"""

from __future__ import annotations

import pickle
import re
import warnings
from collections import Counter
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from reparam.capture.process import PROCESS
from reparam.deploy.files import require_file, sha256, too_large
from reparam.errors import InputError, first_line, visible

# Where training scripts keep the weights. Averages come first: they are what the authors evaluate.
KEYS = (
    "ema", "model_ema", "ema_state_dict", "state_dict_ema", "params_ema",
    "model", "state_dict", "model_state_dict", "net", "params", "module",
)  # fmt: skip
_WRAPPERS = ("module", "_orig_mod")  # DataParallel and DistributedDataParallel, torch.compile
_COUNTER = "num_batches_tracked"  # old checkpoints lack it, and eval mode does not read it
_LISTED = 4  # names in a message
_DEEPEST = 8  # dicts within one another in which weights are searched


@dataclass(frozen=True)
class Checkpoint:
    """The weights in a file.

    state: the tensors by name.
    key: where in the file they are; "" at the top.
    others: the other keys that hold weights.
    sha256: of the file.
    """

    path: Path
    state: Mapping[str, Tensor]
    key: str
    others: tuple[str, ...]
    sha256: str

    def __str__(self) -> str:
        where = f" under {self.key!r}" if self.key else ""
        others = f" (others under {', '.join(map(repr, self.others))})" if self.others else ""
        return f"{self.path}: {len(self.state)} tensors{where}{others}"


@dataclass(frozen=True)
class Fit:
    """How the weights of a checkpoint fit a model.

    stripped: the prefixes that were removed from their names.
    missing: the model's tensors that the checkpoint lacks. unexpected: the checkpoint's tensors that the model lacks.
    left_out: the number of tensors outside the prefix of the model.
    """

    stripped: tuple[str, ...]
    missing: tuple[str, ...]
    unexpected: tuple[str, ...]
    left_out: int

    def __str__(self) -> str:
        parts = [f"stripped {', '.join(map(repr, self.stripped))}"] if self.stripped else []
        parts += [f"left out {self.left_out} tensors outside that prefix"] if self.left_out else []
        parts += [f"missing {_listed(self.missing)}"] if self.missing else []
        parts += [f"unexpected {_listed(self.unexpected)}"] if self.unexpected else []
        return "; ".join(parts) or "all names match"


def read_checkpoint(path: Path | str, key: str | None = None) -> Checkpoint:
    """The weights in a `.safetensors` file, or in one that `torch.save` has written.

    key: where in the file they are, such as "model" or "ema.module"; without it, the first of `KEYS` that holds any.

    Raises InputError for a file that is missing, damaged or of another kind, that runs code when it is read, that is
    too large or too deeply nested to be read, or whose tensors are sparse, nested, quantized or without values.
    """
    path = require_file(Path(path))
    content = _read_safetensors(path) if path.suffix == ".safetensors" else _read_pickle(path)
    state, place, others = _state_at(path, content, key) if key else _searched_state(path, content)
    weights = {name: value for name, value in state.items() if isinstance(value, Tensor)}
    _require_dense(path, weights)
    return Checkpoint(path, weights, place, others, sha256(path))


def fit(checkpoint: Checkpoint, model: nn.Module, *, prefix: str | None = None, partial: bool = False) -> Fit:
    """Load the weights into the model, in place, under its own names.

    "module." and "_orig_mod." are stripped from the checkpoint's names, and so is `prefix`: what stands before the
    model's own names where it was trained as a part of another. Without it, the prefix is the one under which most of
    the model's names are found.
    partial: allow missing and unexpected tensors.

    Raises InputError where shapes differ, and, unless `partial`, where tensors are missing or unexpected.
    """
    names = set(model.state_dict())
    state, stripped = _unwrapped(checkpoint.state, names)
    before = len(state)
    prefix = _prefix(checkpoint.path, state, names) if prefix is None else prefix
    if prefix:
        state = {name.removeprefix(prefix): value for name, value in state.items() if name.startswith(prefix)}
        stripped += (prefix,)
    _require_shapes(checkpoint.path, state, model)
    result = model.load_state_dict(state, strict=False)
    missing = tuple(name for name in result.missing_keys if not name.endswith(_COUNTER))
    fitted = Fit(stripped, missing, tuple(result.unexpected_keys), before - len(state))
    if (fitted.missing or fitted.unexpected) and not partial:
        raise InputError(
            f"{checkpoint.path} does not fit the model: {fitted}; name the model that was trained, with its arguments, "
            "choose other weights with --checkpoint-key, or use --partial if this is intended"
        )
    return fitted


# --- reading


def _read_safetensors(path: Path) -> Mapping[str, Any]:
    try:
        return load_file(path)
    except Exception as error:
        raise too_large(path, error) or InputError(
            f"{path} is damaged, or is not a .safetensors file{_guessed_kind(path)}: {first_line(error)}; copy it again"
        ) from error


def _read_pickle(path: Path) -> Any:
    try:
        with PROCESS, warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch warns of old formats, which nobody can change here
            return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise _needs_code(path, str(error)) from error
    except Exception as error:
        if "TorchScript" in str(error):
            raise InputError(
                f"{path} is a TorchScript program, no checkpoint; save the state_dict() of the model it was made from"
            ) from error
        raise too_large(path, error) or _damaged(path, error) from error


def _needs_code(path: Path, text: str) -> InputError:
    classes = re.findall(r"GLOBAL ([\w.]+)", text)
    if not classes:
        # torch also advises weights_only=False here, which would run the file.
        reason = re.search(r"WeightsUnpickler error: (.*)", text)
        return _damaged(path, ValueError((reason and reason[1].strip()) or "not a pickle of weights"))
    return InputError(
        f"{path} cannot be read as data: it asks for the code of {classes[0]}, and a file that runs code can do "
        "anything to this machine. If you trust its author, save only the weights where it was made, with "
        "torch.save(model.state_dict(), 'weights.pt') or safetensors.torch.save_file, and give that file"
    )


def _damaged(path: Path, error: Exception) -> InputError:
    return InputError(
        f"{path} is damaged, cut off, or not a checkpoint{_guessed_kind(path)} ({first_line(error)}); copy it again "
        "and compare its size"
    )


def _guessed_kind(path: Path) -> str:
    """What a file is by its first bytes, of the kinds that are often mistaken for checkpoints."""
    with path.open("rb") as file:
        head = file.read(64)
    if not head:
        return ": it is empty"
    if head.startswith(b"version https://git-lfs"):
        return ": it is a Git LFS pointer, run `git lfs pull`"
    if head.lstrip()[:1] == b"<":
        return ": it is a web page, the download went wrong"
    return ""


# --- finding the weights


def _is_state(content: Any) -> bool:
    """Whether this maps names to tensors, apart from some numbers and strings."""
    if not isinstance(content, Mapping) or not all(isinstance(key, str) for key in content):
        return False
    values = [value for value in content.values() if not isinstance(value, int | float | str | None)]
    return any(isinstance(value, Tensor) for value in values) and all(isinstance(value, Tensor) for value in values)


def _searched_state(path: Path, content: Any) -> tuple[Mapping[str, Any], str, tuple[str, ...]]:
    """The weights, their key, and the other keys that hold weights."""
    if _is_state(content):
        return content, "", ()
    states = dict(_states(path, content, "", {id(content)}))
    if not states:
        raise InputError(
            f"{path} holds no weights at the top or under {', '.join(KEYS)}: it is {_described(content)}; name their "
            "place with --checkpoint-key"
        )
    key, *others = states
    return states[key], key, tuple(others)


def _states(
    path: Path, content: Any, place: str, visited: set[int], depth: int = 0
) -> list[tuple[str, Mapping[str, Any]]]:
    """Every key of `KEYS`, or path of such keys, that holds weights.

    visited: the ids of dicts that have been searched: a dict may be in the file twice, or in itself.
    """
    states: list[tuple[str, Mapping[str, Any]]] = []
    if not isinstance(content, Mapping):
        return states
    if depth > _DEEPEST:
        raise InputError(
            f"{path} nests dicts more than {_DEEPEST} deep, under {place!r}, and weights are not searched there; name "
            "their place with --checkpoint-key"
        )
    for key in KEYS:
        inner: Any = content.get(key)
        here = f"{place}.{key}" if place else key
        if _is_state(inner):
            states.append((here, inner))
        elif id(inner) not in visited:
            visited.add(id(inner))
            states += _states(path, inner, here, visited, depth + 1)
    return states


def _state_at(path: Path, content: Any, key: str) -> tuple[Mapping[str, Any], str, tuple[str, ...]]:
    """The weights under a key. A dot separates nested keys, unless it is part of a key itself."""
    inner, rest = content, key
    while rest and isinstance(inner, Mapping):
        longest_first = sorted(map(str, inner), key=len, reverse=True)
        step = next((name for name in longest_first if rest == name or rest.startswith(f"{name}.")), None)
        if step is None:
            break
        inner, rest = inner[step], rest[len(step) + 1 :]
    if rest or not _is_state(inner):
        raise InputError(f"{path} holds no weights under {key!r}: it is {_described(content)}; name another key")
    return inner, key, ()


def _require_dense(path: Path, weights: Mapping[str, Tensor]) -> None:
    for name, value in weights.items():
        layout = str(value.layout).removeprefix("torch.").lstrip("_")
        kinds = {"nested": value.is_nested, "quantized": value.is_quantized, "meta": value.is_meta}
        kind = next((kind for kind, applies in kinds.items() if applies), layout)
        if kind != "strided":
            raise InputError(
                f"{path} holds a {kind} tensor, {visible(name, keep='')}, and only plain dense tensors are loaded; "
                "convert it where it was made, with .to_dense() or .dequantize(), and save the weights again"
            )


def _described(content: Any) -> str:
    if isinstance(content, Mapping):
        return f"a dict of {_listed(tuple(map(str, content)))}" if content else "an empty dict"
    return f"a {type(content).__name__}"


# --- renaming the weights


def _unwrapped(state: Mapping[str, Tensor], names: Collection[str]) -> tuple[dict[str, Tensor], tuple[str, ...]]:
    """The state without the wrappers' names that the model does not have, and what was stripped."""
    wrappers = [wrapper for wrapper in _WRAPPERS if not any(wrapper in name.split(".") for name in names)]
    stripped = tuple(f"{wrapper}." for wrapper in wrappers if any(_is_wrapped(wrapper, name) for name in state))
    result = dict(state)
    for wrapper in wrappers:
        result = {_without(wrapper, name): tensor for name, tensor in result.items()}
    return (result, stripped) if len(result) == len(state) else (dict(state), ())


def _is_wrapped(wrapper: str, name: str) -> bool:
    """A wrapper stands at the beginning; torch.compile may wrap any part."""
    return name.startswith(f"{wrapper}.") or (wrapper == "_orig_mod" and f".{wrapper}." in name)


def _without(wrapper: str, name: str) -> str:
    while _is_wrapped(wrapper, name):
        name = name.removeprefix(f"{wrapper}.")
        name = name.replace(f".{wrapper}.", ".") if wrapper == "_orig_mod" else name
    return name


def _prefix(path: Path, state: Collection[str], names: Collection[str]) -> str:
    """The prefix under which most of the model's names are found; "" if that is none, or if the model has no names."""
    if not names:
        return ""
    counts: Counter[str] = Counter()
    by_last_part: dict[str, list[str]] = {}
    for name in names:
        by_last_part.setdefault(name.rpartition(".")[2], []).append(name)
    for saved in state:
        for name in by_last_part.get(saved.rpartition(".")[2], ()):
            if saved == name or saved.endswith(f".{name}"):
                counts[saved[: len(saved) - len(name)]] += 1
    best = counts.most_common(2)
    if not best or counts[""] >= best[0][1]:
        return ""
    if len(best) == 2 and best[0][1] == best[1][1]:
        raise InputError(
            f"{path} holds the model's names under {best[0][0]!r} and under {best[1][0]!r}; choose one with "
            "--checkpoint-prefix"
        )
    return best[0][0]


def _require_shapes(path: Path, state: Mapping[str, Tensor], model: nn.Module) -> None:
    wanted = {name: value for name, value in model.state_dict().items() if isinstance(value, Tensor)}
    wrong = [name for name, value in state.items() if name in wanted and wanted[name].shape != value.shape]
    if wrong:
        first, shape = visible(wrong[0], keep=""), state[wrong[0]].shape
        more = f", and {len(wrong) - 1} more differ" if len(wrong) > 1 else ""
        raise InputError(
            f"{path} does not fit the model: {first} has shape {tuple(shape)} in the file and "
            f"{tuple(wanted[wrong[0]].shape)} in the model{more}; name the model that was trained, with its arguments "
            "(--arg num_classes=...)"
        )


def _listed(names: Collection[str]) -> str:
    first = ", ".join(visible(name, keep="") for name in list(names)[:_LISTED])
    return first + (f" and {len(names) - _LISTED} more" if len(names) > _LISTED else "")
