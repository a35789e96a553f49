"""What the command line names: models (`package.module:factory`, `timm:NAME`, `torchvision:NAME`) and inputs."""

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

from reparam.deploy.files import require_file, too_large
from reparam.errors import InputError, ModelError, first_line

DTYPES = {
    name: getattr(torch, name)
    for name in ("float32", "float64", "float16", "bfloat16", "int64", "int32", "uint8", "bool")
}
_ZOOS = ("timm", "torchvision")
_FORMS = "package.module:factory, timm:NAME or torchvision:NAME"


def build_model(name: str, arguments: Mapping[str, Any] | None = None) -> nn.Module:
    """The model that a factory builds, in eval mode.

    name: `package.module:factory`, where the factory is a function, a class or a module that exists already, and the
        package is installed or in the current folder; `timm:NAME`; `torchvision:NAME`.
    arguments: keyword arguments of the factory.

    Raises InputError for a name that does not exist, ModelError where the factory fails.
    """
    source, colon, path = name.partition(":")
    if not colon or not source or not path:
        raise InputError(f"model {name!r}: name it as {_FORMS}{_checkpoint_hint(name)}")
    factory = _from_zoo(source, path) if source in _ZOOS else _from_module(source, path)
    if isinstance(factory, nn.Module):
        if arguments:
            raise InputError(f"{name} is a model already and takes no arguments; leave out --arg")
        return factory.eval()
    try:
        model = factory(**(arguments or {}))
    except Exception as error:
        raise ModelError(
            f"{name} fails with {type(error).__name__}: {error}; its arguments are {_signature(factory)}"
        ) from error
    if not isinstance(model, nn.Module):
        raise InputError(f"{name} returns a {type(model).__name__}; name a function that returns a torch.nn.Module")
    return model.eval()


def parse_arguments(pairs: Sequence[str]) -> dict[str, Any]:
    """`key=value` pairs as keyword arguments. A value is a Python literal, `true` or `false`, or else text."""
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


def _signature(factory: Callable[..., Any]) -> str:
    try:
        return str(inspect.signature(factory))
    except (TypeError, ValueError):
        return "(...)"


def _checkpoint_hint(name: str) -> str:
    if Path(name).suffix in (".pt", ".pth", ".ckpt", ".safetensors"):
        return f"; {name} holds only weights: name the model, and give this as --checkpoint {name}"
    return ""


def _from_module(module: str, path: str) -> Any:
    with _current_folder_first():
        value: Any = _imported(module)
    for attribute in path.split("."):
        if attribute not in dir(value):
            public = [name for name in dir(value) if not name.startswith("_")]
            raise InputError(f"{module} has no {path}{_suggestion(attribute, public)}")
        value = getattr(value, attribute)
    if not callable(value):
        raise InputError(f"{module}:{path} is a {type(value).__name__}; name a function or class that builds the model")
    return value


def _from_zoo(zoo: str, name: str) -> Any:
    library = _imported_extra(zoo, "zoo")
    models = library.models if zoo == "torchvision" else library
    names = models.list_models()
    if name.partition(".")[0] not in names:
        raise InputError(f"{zoo} has no model {name}{_suggestion(name, names)}")
    if zoo == "torchvision":
        parameters = inspect.signature(models.get_model_builder(name)).parameters
        none = {key: None for key in ("weights", "weights_backbone") if key in parameters}  # download nothing
        return lambda **kwargs: models.get_model(name, **{**none, **kwargs})
    return lambda **kwargs: models.create_model(name, **kwargs)


def _imported_extra(name: str, extra: str) -> ModuleType:
    """A library of an extra. Raises InputError, which says how to install it, where it cannot be imported."""
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        raise InputError(f"{error.name} is not installed; install it with: pip install 'reparam[{extra}]'") from error
    except Exception as error:
        raise InputError(f"{name} is installed and cannot be imported: {first_line(error)}") from error


def _imported(module: str) -> ModuleType:
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        if error.name and (module == error.name or module.startswith(f"{error.name}.")):
            raise InputError(
                f"there is no module {error.name}; run this from the folder that holds it, or install it ({_FORMS})"
            ) from error
        raise InputError(f"{module} imports {error.name}, which is not installed; install it") from error
    except Exception as error:
        raise InputError(f"{module} cannot be imported: {type(error).__name__}: {first_line(error)}") from error


@contextlib.contextmanager
def _current_folder_first() -> Iterator[None]:
    """Imports look into the current folder first, as with `python -m`."""
    here = str(Path.cwd())
    sys.path.insert(0, here)
    try:
        yield
    finally:
        with contextlib.suppress(ValueError):
            sys.path.remove(here)


def _suggestion(name: str, names: Sequence[str]) -> str:
    matches = difflib.get_close_matches(name, names, n=3)
    return f"; did you mean {' or '.join(matches)}?" if matches else ""


# --- inputs


def random_input(text: str, seed: int = 0) -> Tensor:
    """A tensor of the shape `1x3x224x224`, or `1x3x224x224:dtype`: floats from N(0, 1), integers 0 or 1."""
    shape, _, dtype = text.partition(":")
    sizes = shape.split("x")
    if not all(size.isdigit() and int(size) for size in sizes):
        raise InputError(f"input {text!r}: write a shape as 1x3x224x224, or with a dtype as 1x3x224x224:float16")
    if dtype and dtype not in DTYPES:
        raise InputError(f"input {text!r}: choose a dtype from {', '.join(DTYPES)}")
    torch_dtype = DTYPES[dtype or "float32"]
    generator = torch.Generator().manual_seed(seed)
    values = torch.randn([int(size) for size in sizes], generator=generator)
    return values.to(torch_dtype) if torch_dtype.is_floating_point else (values > 0).to(torch_dtype)


def read_input(path: Path) -> Any:
    """The input in a file: a `.npy` as a tensor; a `.pt` as it is, a tensor or a tuple or dict of tensors."""
    require_file(path)
    try:
        if path.suffix == ".npy":
            return torch.from_numpy(np.load(path, allow_pickle=False))
        return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        raise too_large(path, error) or InputError(
            f"{path} cannot be read as input: {first_line(error)}; give a .npy, or a .pt that holds tensors"
        ) from error


def default_input(name: str, model: nn.Module) -> Tensor | None:
    """An image of the size that a model of a zoo is made for; None for other models."""
    zoo = name.partition(":")[0]
    size = (3, 224, 224) if zoo == "torchvision" else None
    if zoo == "timm":
        size = dict(getattr(model, "pretrained_cfg", None) or {}).get("input_size", (3, 224, 224))
    return None if size is None else random_input("x".join(map(str, (1, *size))))
