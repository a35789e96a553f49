"""A model by its name: `package.module:factory`, `timm:NAME`, `torchvision:NAME`, and inputs by their shape."""

from __future__ import annotations

import ast
import contextlib
import difflib
import importlib
import inspect
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from reparam.deploy.files import require_file
from reparam.errors import InputError, ModelError, first_line

DTYPES = {
    name: getattr(torch, name)
    for name in ("float32", "float64", "float16", "bfloat16", "int64", "int32", "uint8", "bool")
}
_ZOOS = ("timm", "torchvision")
_FORMS = "package.module:factory, timm:NAME or torchvision:NAME"


def built(name: str, arguments: Mapping[str, Any] | None = None) -> nn.Module:
    """The model that a factory makes, in eval mode.

    name: `package.module:factory`, found from the current folder as well, where the factory may be a function, a class
        or a module that is already built; `timm:NAME`; `torchvision:NAME`.
    arguments: keyword arguments of the factory.

    Raises InputError for a name that leads nowhere, ModelError where the factory fails.
    """
    origin, colon, what = name.partition(":")
    if not colon or not origin or not what:
        raise InputError(f"model {name!r}: name it as {_FORMS}{_hint(name)}")
    made = _from_zoo(origin, what) if origin in _ZOOS else _from_module(origin, what)
    if isinstance(made, nn.Module):
        if arguments:
            raise InputError(f"{name} is built already and takes no arguments; leave out --arg")
        return made.eval()
    try:
        model = made(**(arguments or {}))
    except Exception as error:
        raise ModelError(f"{name} fails with {type(error).__name__}: {error}; see its arguments: {_signature(made)}"
                         ) from error  # fmt: skip
    if not isinstance(model, nn.Module):
        raise InputError(f"{name} returns a {type(model).__name__} and no torch.nn.Module; name what makes the model")
    return model.eval()


def arguments(pairs: Sequence[str]) -> dict[str, Any]:
    """`key=value` pairs as keyword arguments; values are Python literals, `true` and `false`, or else text."""
    result: dict[str, Any] = {}
    for pair in pairs:
        key, equals, value = pair.partition("=")
        if not equals or not key.isidentifier():
            raise InputError(f"argument {pair!r}: write it as key=value, such as num_classes=10")
        result[key] = _value(value)
    return result


def _value(text: str) -> Any:
    if text in ("true", "false"):
        return text == "true"
    with contextlib.suppress(ValueError, SyntaxError):
        return ast.literal_eval(text)
    return text


def _signature(made: Callable[..., Any]) -> str:
    try:
        return str(inspect.signature(made))
    except (TypeError, ValueError):
        return "(...)"


def _hint(name: str) -> str:
    if Path(name).suffix in (".pt", ".pth", ".ckpt", ".safetensors"):
        return f"; {name} holds weights, which need a model around them: give it as --checkpoint {name}"
    return ""


def _from_module(origin: str, what: str) -> Any:
    with _found_from_here():
        found: Any = _imported(origin)
    for step in what.split("."):
        names = [each for each in dir(found) if not each.startswith("_")]
        if step not in dir(found):
            raise InputError(f"{origin} has no {what}{_close(step, names)}")
        found = getattr(found, step)
    if not callable(found):
        raise InputError(f"{origin}:{what} is a {type(found).__name__}; name a function or class that makes the model")
    return found


def _from_zoo(zoo: str, what: str) -> Any:
    library = imported_extra(zoo, "zoo")
    models = library.models if zoo == "torchvision" else library
    names = models.list_models()
    if what.partition(".")[0] not in names:
        raise InputError(f"{zoo} has no model {what}{_close(what, names)}")
    if zoo == "torchvision":
        offered = inspect.signature(models.get_model_builder(what)).parameters
        none = {name: None for name in ("weights", "weights_backbone") if name in offered}  # nothing is downloaded
        return lambda **kwargs: models.get_model(what, **{**none, **kwargs})
    return lambda **kwargs: models.create_model(what, **kwargs)


def imported_extra(name: str, extra: str) -> ModuleType:
    """A library of an extra; raises InputError, which says how to install it, where it cannot be imported."""
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        raise InputError(f"{error.name} is not installed; install it with: pip install 'reparam[{extra}]'") from error
    except Exception as error:
        raise InputError(f"{name} is installed and cannot be imported: {first_line(error)}") from error


def _imported(origin: str) -> ModuleType:
    try:
        return importlib.import_module(origin)
    except ModuleNotFoundError as error:
        if error.name and (origin == error.name or origin.startswith(f"{error.name}.")):
            raise InputError(
                f"there is no module {error.name}; run this from the folder it is in, or install it ({_FORMS})"
            ) from error
        raise InputError(f"{origin} imports {error.name}, which is not installed") from error
    except Exception as error:
        raise InputError(f"{origin} cannot be imported: {type(error).__name__}: {first_line(error)}") from error


@contextlib.contextmanager
def _found_from_here() -> Iterator[None]:
    """The current folder is where modules are looked for first, as `python -m` does."""
    here = str(Path.cwd())
    sys.path.insert(0, here)
    try:
        yield
    finally:
        with contextlib.suppress(ValueError):
            sys.path.remove(here)


def _close(name: str, names: Sequence[str]) -> str:
    found = difflib.get_close_matches(name, names, n=3)
    return f"; did you mean {' or '.join(found)}?" if found else ""


# --- inputs


def drawn_input(text: str, seed: int = 0) -> Tensor:
    """A tensor from `1x3x224x224` or `1x3x224x224:dtype`: floats from N(0, 1), integers 0 or 1."""
    shape, _, dtype = text.partition(":")
    sizes = shape.split("x")
    if not all(size.isdigit() and int(size) for size in sizes):
        raise InputError(f"input {text!r}: write its shape as 1x3x224x224, with a dtype as 1x3x224x224:float16")
    if dtype and dtype not in DTYPES:
        raise InputError(f"input {text!r}: the dtype is one of {', '.join(DTYPES)}")
    kind = DTYPES[dtype or "float32"]
    generator = torch.Generator().manual_seed(seed)
    drawn = torch.randn([int(size) for size in sizes], generator=generator)
    return drawn.to(kind) if kind.is_floating_point else (drawn > 0).to(kind)


def read_input(path: Path) -> Any:
    """What a `.npy` file holds as a tensor, or what a `.pt` file holds: a tensor, or a tuple or dict of them."""
    require_file(path)
    try:
        if path.suffix == ".npy":
            return torch.from_numpy(np.load(path, allow_pickle=False))
        return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        raise InputError(
            f"{path} cannot be read as input: {first_line(error)}; give a .npy, or a .pt of tensors"
        ) from error


def usual_input(name: str, model: nn.Module) -> Tensor | None:
    """The size that a model of a zoo is made for; None where nobody knows."""
    zoo = name.partition(":")[0]
    size = (3, 224, 224) if zoo == "torchvision" else None
    if zoo == "timm":
        size = dict(getattr(model, "pretrained_cfg", None) or {}).get("input_size", (3, 224, 224))
    return None if size is None else drawn_input("x".join(map(str, (1, *size))))
