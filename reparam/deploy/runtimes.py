"""Exported programs as callables: a `.pt2` runs in torch, an `.onnx` in onnxruntime."""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from reparam.capture.tree import tensors
from reparam.deploy.files import require_file
from reparam.errors import InputError, first_line

SUFFIXES = (".pt2", ".onnx")


class Program:
    """A file loaded into its runtime. It is called like the model that it was exported from.

    A `.pt2` returns what that model does; an `.onnx` returns its tensors in a tuple, or the only one by itself.
    """

    def __init__(self, path: Path, run: Any) -> None:
        self.path = path
        self._run = run

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self._run(*args, **kwargs)


def open_program(path: Path | str) -> Program:
    """The program in a `.pt2` or `.onnx` file.

    Raises InputError where the file is missing, damaged or of another kind, or its runtime is not installed.
    """
    path = require_file(Path(path))
    if path.suffix not in SUFFIXES:
        raise InputError(f"{path} is no exported program; name a {' or '.join(SUFFIXES)} file")
    return Program(path, _onnx_session(path) if path.suffix == ".onnx" else exported_module(path))


def exported_module(path: Path) -> nn.Module:
    """The module in a `.pt2` file, marked as in eval mode. Raises InputError where the file is damaged."""
    try:
        module = torch.export.load(path).module()
    except Exception as error:
        raise InputError(f"{path} is damaged, or is not a program of torch.export: {first_line(error)}") from error
    for submodule in module.modules():
        submodule.training = False  # the code has only one mode, and .eval() raises
    return module


def onnx_package(name: str) -> Any:
    """A package of the extra `onnx`. Raises InputError where it is not installed."""
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise InputError(f"{name} is not installed; install it with: pip install 'reparam[onnx]'") from error


def _onnx_session(path: Path) -> _Session:
    onnxruntime = onnx_package("onnxruntime")
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3  # errors only: its warnings are about its own optimiser
    options.intra_op_num_threads = torch.get_num_threads()
    try:
        session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    except Exception as error:
        raise InputError(f"{path} is damaged, or is no ONNX model for onnxruntime: {first_line(error)}") from error
    return _Session(session)


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
