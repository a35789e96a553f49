"""From a checkpoint, as training scripts leave them, to the weights of one model, under its own names.

Checkpoints are read as data: `.safetensors`, or torch's own format with `weights_only=True`, so that none can run code.
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
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from reparam.deploy.files import require_file, sha256
from reparam.errors import InputError, first_line

# Where training scripts keep the weights, the best first: an average of the last steps is what its authors evaluate.
KEYS = (
    "ema", "model_ema", "ema_state_dict", "state_dict_ema", "params_ema",
    "model", "state_dict", "model_state_dict", "net", "params", "module",
)  # fmt: skip
_WRAPPERS = ("module", "_orig_mod")  # DataParallel and DistributedDataParallel, torch.compile
_COUNTER = "num_batches_tracked"  # old checkpoints lack it, and nothing in eval mode reads it
_SHOWN = 4


@dataclass(frozen=True)
class Checkpoint:
    """The weights in a file: `state` by name, `key` where they were found ("" at the top), and the file's digest."""

    path: Path
    state: Mapping[str, Tensor]
    key: str
    others: tuple[str, ...]
    sha256: str

    def __str__(self) -> str:
        where = f" under {self.key!r}" if self.key else ""
        passed = f" (also there: {', '.join(map(repr, self.others))})" if self.others else ""
        return f"{self.path}: {len(self.state)} tensors{where}{passed}"


@dataclass(frozen=True)
class Fit:
    """How the weights went into a model: what was stripped from their names, and what did not come together."""

    stripped: tuple[str, ...]
    missing: tuple[str, ...]
    unexpected: tuple[str, ...]
    left_out: int

    def __str__(self) -> str:
        parts = [f"stripped {', '.join(map(repr, self.stripped))}"] if self.stripped else []
        parts += [f"{self.left_out} tensors outside that prefix are not the model's"] if self.left_out else []
        parts += [f"missing {_some(self.missing)}"] if self.missing else []
        parts += [f"unexpected {_some(self.unexpected)}"] if self.unexpected else []
        return "; ".join(parts) or "every tensor has its place"


def read_checkpoint(path: Path | str, key: str | None = None) -> Checkpoint:
    """The weights in a `.safetensors` file, or in one written by `torch.save`.

    key: where in the file they are, such as "model" or "ema.module"; without it the first of `KEYS` that is there.

    Raises InputError for a file that is missing, damaged, of another kind, or that could only be read by running code.
    """
    path = require_file(Path(path))
    content = _safetensors(path) if path.suffix == ".safetensors" else _pickled(path)
    state, found, others = _at(path, content, key) if key else _searched(path, content)
    return Checkpoint(path, {name: each for name, each in state.items() if isinstance(each, Tensor)}, found, others,
                      sha256(path))  # fmt: skip


def fit(checkpoint: Checkpoint, model: nn.Module, *, prefix: str | None = None, partial: bool = False) -> Fit:
    """Load the weights into the model, in place, under the names that it has for them.

    "module." and "_orig_mod." are stripped, and so is the prefix of a wrapper whose part the model was (`prefix`, or
    the one under which most of the model's names are found).

    Raises InputError where tensors have other shapes, and, unless `partial`, where any are missing or unexpected.
    """
    names = set(model.state_dict())
    state, stripped = _unwrapped(checkpoint.state, names)
    before = len(state)
    prefix = _prefix(checkpoint.path, state, names) if prefix is None else prefix
    if prefix:
        state = {name.removeprefix(prefix): each for name, each in state.items() if name.startswith(prefix)}
        stripped += (prefix,)
    _require_shapes(checkpoint.path, state, model)
    result = model.load_state_dict(state, strict=False)
    missing = tuple(name for name in result.missing_keys if not name.endswith(_COUNTER))
    found = Fit(stripped, missing, tuple(result.unexpected_keys), before - len(state))
    if (found.missing or found.unexpected) and not partial:
        raise InputError(
            f"{checkpoint.path} does not fit the model: {found}; name the model that was trained, with its arguments, "
            "choose the weights with --checkpoint-key, or use --partial where this is meant"
        )
    return found


# --- reading


def _safetensors(path: Path) -> Mapping[str, Any]:
    try:
        return load_file(path)
    except (SafetensorError, OSError, ValueError) as error:
        raise InputError(
            f"{path} is damaged, or no .safetensors file{_looks_like(path)}: {first_line(error)}"
        ) from error


def _pickled(path: Path) -> Any:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # what torch thinks of old formats is nothing to mend here
            return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise _needs_code(path, str(error)) from error
    except Exception as error:
        if "TorchScript" in str(error):
            raise InputError(
                f"{path} is a TorchScript program, no checkpoint; save the state_dict() of the model it was made from"
            ) from error
        raise _damaged(path, error) from error


def _needs_code(path: Path, text: str) -> InputError:
    asked = re.findall(r"GLOBAL ([\w.]+)", text)
    if not asked:
        # What torch says besides is to try again with weights_only=False, which is the last thing to do here.
        told = re.search(r"WeightsUnpickler error: (.*)", text)
        return _damaged(path, ValueError((told and told[1].strip()) or "no pickle of weights"))
    return InputError(
        f"{path} cannot be read as data: it asks for the code of {asked[0]} to be run, and a file that runs code can "
        "do anything to this machine. If you trust whoever made it, save its weights alone where it was made, by "
        "torch.save(model.state_dict(), 'weights.pt') or safetensors.torch.save_file, and give that file"
    )


def _damaged(path: Path, error: Exception) -> InputError:
    return InputError(
        f"{path} is damaged, cut off, or no checkpoint{_looks_like(path)} ({first_line(error)}); copy it again and "
        "compare its size"
    )


def _looks_like(path: Path) -> str:
    """What the first bytes say of files that are taken for checkpoints."""
    with path.open("rb") as file:
        head = file.read(64)
    if not head:
        return ", it is empty"
    if head.startswith(b"version https://git-lfs"):
        return ", it is a pointer of Git LFS: run `git lfs pull`"
    if head.lstrip()[:1] == b"<":
        return ", it is a web page: the download went wrong"
    return ""


# --- finding the weights


def _is_state(content: Any) -> bool:
    """A mapping by name whose values are tensors, but for some numbers and strings beside them."""
    if not isinstance(content, Mapping) or not all(isinstance(key, str) for key in content):
        return False
    held = [value for value in content.values() if not isinstance(value, int | float | str | None)]
    return any(isinstance(value, Tensor) for value in held) and all(isinstance(value, Tensor) for value in held)


def _searched(path: Path, content: Any) -> tuple[Mapping[str, Any], str, tuple[str, ...]]:
    """The weights, where they were found, and where else there are some."""
    if _is_state(content):
        return content, "", ()
    found = dict(_states(content, ""))
    if not found:
        raise InputError(
            f"{path} holds no weights: it is {_described(content)}; a state_dict is looked for at the top and under "
            f"{', '.join(KEYS)}; name another place with --checkpoint-key"
        )
    key, *others = found
    return found[key], key, tuple(others)


def _states(content: Any, path: str) -> list[tuple[str, Mapping[str, Any]]]:
    """Every place of `KEYS`, be it inside another, that holds weights."""
    found: list[tuple[str, Mapping[str, Any]]] = []
    if isinstance(content, Mapping):
        for key in KEYS:
            inner: Any = content.get(key)
            here = f"{path}.{key}" if path else key
            if _is_state(inner):
                found.append((here, inner))
            else:
                found += _states(inner, here)
    return found


def _at(path: Path, content: Any, key: str) -> tuple[Mapping[str, Any], str, tuple[str, ...]]:
    """What stands under a key; points lead inside, where there is no key that has them in its name."""
    inner, rest = content, key
    while rest and isinstance(inner, Mapping):
        step = next((each for each in sorted(map(str, inner), key=len, reverse=True)
                     if rest == each or rest.startswith(f"{each}.")), None)  # fmt: skip
        if step is None:
            break
        inner, rest = inner[step], rest[len(step) + 1 :]
    if rest or not _is_state(inner):
        raise InputError(f"{path} holds no weights under {key!r}: it is {_described(content)}; choose another key")
    return inner, key, ()


def _described(content: Any) -> str:
    if isinstance(content, Mapping):
        return f"a dict of {_some(tuple(map(str, content)))}" if content else "an empty dict"
    return f"a {type(content).__name__}"


# --- naming them as the model does


def _unwrapped(state: Mapping[str, Tensor], names: Collection[str]) -> tuple[dict[str, Tensor], tuple[str, ...]]:
    """The state without the names that wrappers have put into it and the model does not know."""
    strange = [each for each in _WRAPPERS if not any(each in name.split(".") for name in names)]
    told = tuple(f"{each}." for each in strange if any(_within(each, name) for name in state))
    result = dict(state)
    for each in strange:
        result = {_without(each, name): tensor for name, tensor in result.items()}
    return (result, told) if len(result) == len(state) else (dict(state), ())


def _within(wrapper: str, name: str) -> bool:
    """At the beginning; torch.compile may wrap any part."""
    return name.startswith(f"{wrapper}.") or (wrapper == "_orig_mod" and f".{wrapper}." in name)


def _without(wrapper: str, name: str) -> str:
    while _within(wrapper, name):
        name = name.removeprefix(f"{wrapper}.")
        name = name.replace(f".{wrapper}.", ".") if wrapper == "_orig_mod" else name
    return name


def _prefix(path: Path, state: Collection[str], names: Collection[str]) -> str:
    """The prefix under which the model's names are found, "" where most are found as they are."""
    ends = {name: name.rpartition(".")[2] for name in names}
    if not names:
        return ""
    counted: Counter[str] = Counter()
    by_end: dict[str, list[str]] = {}
    for name, end in ends.items():
        by_end.setdefault(end, []).append(name)
    for given in state:
        for name in by_end.get(given.rpartition(".")[2], ()):
            if given == name or given.endswith(f".{name}"):
                counted[given[: len(given) - len(name)]] += 1
    best = counted.most_common(2)
    if not best or counted[""] >= best[0][1]:
        return ""
    if len(best) == 2 and best[0][1] == best[1][1]:
        raise InputError(
            f"{path}: the model's names are found under {best[0][0]!r} and under {best[1][0]!r}; say which with "
            "--checkpoint-prefix"
        )
    return best[0][0]


def _require_shapes(path: Path, state: Mapping[str, Tensor], model: nn.Module) -> None:
    wanted = {name: each for name, each in model.state_dict().items() if isinstance(each, Tensor)}
    wrong = [name for name, each in state.items() if name in wanted and wanted[name].shape != each.shape]
    if wrong:
        first = wrong[0]
        more = f" and {len(wrong) - 1} more" if len(wrong) > 1 else ""
        raise InputError(
            f"{path} does not fit the model: {first} has shape {tuple(state[first].shape)} there and "
            f"{tuple(wanted[first].shape)} in the model{more}; name the model that was trained, with its arguments "
            "(--arg num_classes=...)"
        )


def _some(names: Collection[str]) -> str:
    shown = ", ".join(list(names)[:_SHOWN])
    return shown + (f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else "")
