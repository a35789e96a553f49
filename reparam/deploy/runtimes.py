"""Exported programs as callables: `.pt2` in torch's own runtime, `.onnx` in onnxruntime."""

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
    """A file loaded into its runtime; called like the model that it was exported from, on tensors of any device.

    What it returns is that model's output for `.pt2`, and for `.onnx` its tensors in a row (one alone as it is).
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
        raise InputError(f"{path} is no exported program; give a file {' or '.join(SUFFIXES)}")
    return Program(path, _onnx(path) if path.suffix == ".onnx" else exported_module(path))


def exported_module(path: Path) -> nn.Module:
    """The module in a `.pt2` file, in eval mode as far as modules say so."""
    try:
        module = torch.export.load(path).module()
    except Exception as error:
        raise InputError(f"{path} is damaged, or no program of torch.export: {first_line(error)}") from error
    for each in module.modules():
        each.training = False  # its mode is in its code; .eval() raises
    return module


def runtime(name: str) -> Any:
    """A package of the extra `onnx`; raises InputError where it is not installed."""
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise InputError(f"{name} is not installed; install it with: pip install 'reparam[onnx]'") from error


def _onnx(path: Path) -> _Session:
    onnxruntime = runtime("onnxruntime")
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3  # errors alone: its warnings are about its own optimiser
    options.intra_op_num_threads = torch.get_num_threads()
    try:
        session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    except Exception as error:
        raise InputError(f"{path} is damaged, or no ONNX model that this runtime takes: {first_line(error)}") from error
    return _Session(session)


class _Session:
    """An onnxruntime session on tensors."""

    def __init__(self, session: Any) -> None:
        self.session = session
        self.names = [each.name for each in session.get_inputs()]

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        given = self._named(args, kwargs)
        found = self.session.run(None, {name: _array(tensor) for name, tensor in given.items()})
        results = tuple(torch.from_numpy(each) for each in found)
        return results[0] if len(results) == 1 else results

    def _named(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> dict[str, Tensor]:
        """The tensors by the program's names: keywords by their own, the others in order."""
        named = {name: each for name, each in kwargs.items() if name in self.names and isinstance(each, Tensor)}
        rest = [name for name in self.names if name not in named]
        others = [each for name, each in kwargs.items() if name not in named]
        flat = [tensor for _, tensor in tensors((*args, *others))]
        if len(flat) != len(rest):
            raise ValueError(f"it takes {len(self.names)} tensors ({', '.join(self.names)})")
        return named | dict(zip(rest, flat, strict=True))


def _array(tensor: Tensor) -> Any:
    if tensor.dtype == torch.bfloat16:
        raise ValueError("numpy has no bfloat16, and so no way to hand it over")
    return tensor.detach().cpu().contiguous().numpy()
