"""Exported programs as callables: a `.pt2` runs in torch, an `.onnx` in onnxruntime."""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from reparam.capture.tree import tensors
from reparam.deploy.files import require_file, too_large
from reparam.errors import InputError, first_line

SUFFIXES = (".pt2", ".onnx")
_CHECKING_RUNTIME = (1, 24, 1)  # the first onnxruntime that refuses external data outside the model's folder


class Program:
    """A file loaded into its runtime. It is called like the model that it was exported from.

    A `.pt2` returns what that model does; an `.onnx` returns its tensors in a tuple, or the only one by itself.
    """

    def __init__(self, path: Path, run: Any) -> None:
        self.path = path
        self._run = run

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self._run(*args, **kwargs)


def open_program(path: Path | str, *, trusted: bool = False) -> Program:
    """The program in a `.pt2` or `.onnx` file.

    trusted: open a file that can run code: a `.pt2`, or an `.onnx` where onnxruntime does not check it.

    Raises InputError where the file is missing, damaged or of another kind, where it can run code and is not trusted,
    and where its runtime is not installed.
    """
    path = require_file(Path(path))
    if path.suffix not in SUFFIXES:
        raise InputError(f"{path} is no exported program; name a {' or '.join(SUFFIXES)} file")
    return Program(path, (_onnx_session if path.suffix == ".onnx" else exported_module)(path, trusted=trusted))


def exported_module(path: Path, *, trusted: bool) -> nn.Module:
    """The module in a `.pt2` file, marked as in eval mode.

    Raises InputError where the file is missing, damaged or not trusted.
    """
    require_file(path)
    if not trusted:
        raise InputError(
            f"{path} is not opened: torch.export.load unpickles parts of a .pt2, and so the file can run any code on "
            "this machine. If you trust whoever made it, as you would run their Python, use --trust (trusted=True)"
        )
    try:
        module = torch.export.load(path).module()
    except Exception as error:
        raise too_large(path, error) or InputError(
            f"{path} is damaged, or is not a program of torch.export: {first_line(error)}"
        ) from error
    for submodule in module.modules():
        submodule.training = False  # the code has only one mode, and .eval() raises
    return module


def onnx_package(name: str) -> Any:
    """A package of the extra `onnx`. Raises InputError where it is not installed."""
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise InputError(f"{name} is not installed; install it with: pip install 'reparam[onnx]'") from error


def _onnx_session(path: Path, *, trusted: bool) -> _Session:
    onnxruntime = onnx_package("onnxruntime")
    if not trusted and _version(onnxruntime.__version__) < _CHECKING_RUNTIME:
        raise InputError(
            f"{path} is not opened: it can name any file of this machine as its weights, which onnxruntime "
            f"{onnxruntime.__version__} would read. Install onnxruntime {'.'.join(map(str, _CHECKING_RUNTIME))} or "
            "newer, which checks that; or, if you trust whoever made it, use --trust (trusted=True)"
        )
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3  # errors only: its warnings are about its own optimiser
    options.intra_op_num_threads = torch.get_num_threads()
    try:
        session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    except Exception as error:
        raise too_large(path, error) or InputError(
            f"{path} is damaged, or is no ONNX model for onnxruntime: {first_line(error)}"
        ) from error
    return _Session(session)


def _version(text: str) -> tuple[int, ...]:
    return tuple(int(part) for part in text.split(".")[:3] if part.isdigit())


class _Session:
    """An onnxruntime session that takes and returns torch tensors."""

    def __init__(self, session: Any) -> None:
        self.session = session
        self.names = [argument.name for argument in session.get_inputs()]

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        arguments = self._named(args, kwargs)
        arrays = self.session.run(None, {name: _array(tensor) for name, tensor in arguments.items()})
        outputs = tuple(torch.from_numpy(array) for array in arrays)
        return outputs[0] if len(outputs) == 1 else outputs

    def _named(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> dict[str, Tensor]:
        """The tensors by the program's names for them: keyword arguments by name, all others in order."""
        named = {name: value for name, value in kwargs.items() if name in self.names and isinstance(value, Tensor)}
        names = [name for name in self.names if name not in named]
        others = [value for name, value in kwargs.items() if name not in named]
        flat = [tensor for _, tensor in tensors((*args, *others))]
        if len(flat) != len(names):
            raise ValueError(f"it takes {len(self.names)} tensors ({', '.join(self.names)})")
        return named | dict(zip(names, flat, strict=True))


def _array(tensor: Tensor) -> Any:
    if tensor.dtype == torch.bfloat16:
        raise ValueError("numpy has no bfloat16, so it cannot be passed to onnxruntime")
    return tensor.detach().cpu().contiguous().numpy()
