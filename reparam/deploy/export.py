"""A model as a program for another runtime: `.pt2` by torch.export, `.onnx` by torch.onnx.

The file is loaded again in its runtime and compared with the float64 truth of the original. It gets its name only after
that. Three exports are tried in turn, until one can be made and passes at other input shapes too: for every batch and
size, for every batch, for the example's shapes only. The result says which one it is, and why not an earlier one.
"""

from __future__ import annotations

import contextlib
import inspect
import io
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram

from reparam.capture.inputs import Inputs
from reparam.capture.preconditions import require_eval
from reparam.capture.process import exclusive
from reparam.capture.snapshot import copied
from reparam.capture.tree import mapped
from reparam.compare.verification import Verification
from reparam.compare.verify import verify
from reparam.deploy.files import require_writable, written
from reparam.deploy.runtimes import SUFFIXES, onnx_package, open_program
from reparam.errors import InputError, ModelError, ReparamError, VerificationError, first_line

ANY_SIZE, ANY_BATCH, ONE_SHAPE = "every batch and size", "every batch", "the example's shapes only"
_ONNX_LIMIT = 2 << 30  # bytes of one file; torch writes a larger model in several


@dataclass(frozen=True)
class Exported:
    """A program that has been written.

    takes: the inputs that it takes: `ANY_SIZE`, `ANY_BATCH` or `ONE_SHAPE`.
    why: why it does not take more; "" if it takes all.
    verification: the file compared with the original.
    """

    path: Path
    takes: str
    why: str
    verification: Verification

    def __str__(self) -> str:
        why = f" ({self.why})" if self.why else ""
        return f"{self.path} takes {self.takes}{why}; {self.verification.summary}"


def require_exportable(path: Path, force: bool = False) -> None:
    """Raises InputError where no program can be written to `path`, or where its runtime is not installed."""
    if path.suffix not in SUFFIXES:
        raise InputError(f"{path}: name the file .pt2 (torch.export) or .onnx")
    require_writable(path, force)
    if path.suffix == ".onnx":
        for name in ("onnx", "onnxscript", "onnxruntime"):
            onnx_package(name)


@exclusive
def export(
    model: nn.Module,
    path: Path | str,
    example_inputs: Any,
    *,
    original: nn.Module | None = None,
    fixed_size: bool = False,
    force: bool = False,
    progress: Callable[[str], object] = lambda _: None,
) -> Exported:
    """Write `model` to a `.pt2` or `.onnx` file, and compare the file with the original.

    example_inputs: a tensor, a tuple or a dict, as for `reparameterize`.
    original: the model whose float64 output is the truth; `model` itself, if not given.
    fixed_size: every image will be as large as the example.
    force: overwrite.
    progress: called with the name of each step.

    Neither model is changed. Raises InputError where the file cannot be written or the extra `onnx` is missing,
    ModelError where torch cannot export the model, and VerificationError where the file computes something else. Then
    nothing has been written.
    """
    path = Path(path)
    require_exportable(path, force)
    require_eval(model, "the model")
    truth = model if original is None else original
    inputs = Inputs.of(example_inputs)
    if path.suffix == ".onnx" and any(tensor.dtype == torch.bfloat16 for _, tensor in inputs.tensors()):
        raise InputError(f"{path}: onnxruntime takes no bfloat16 inputs; export the model in float32 or float16")
    why = ""
    with written([path], force) as (draft,):
        for takes in (ANY_SIZE, ANY_BATCH, ONE_SHAPE)[fixed_size:]:
            progress(f"exporting for {takes}")
            try:
                _write(_traced(model, inputs, takes), draft)
                progress(f"verifying {path.name}")
                outcome = verify(truth, open_program(draft, trusted=True), inputs, variants=takes != ONE_SHAPE,
                                 fixed_size=takes == ANY_BATCH).raise_if_failed()  # fmt: skip
            except (ModelError, VerificationError) as error:
                if takes == ONE_SHAPE:
                    raise _renamed(error, draft, path) from error
                why = why or f"for {takes}: {first_line(error)[:300]}"
                continue
            return Exported(path, takes, why, outcome)
    raise AssertionError("the last export either returns or raises")


def _renamed(error: ReparamError, draft: Path, path: Path) -> ReparamError:
    return type(error)(str(error).replace(str(draft), str(path)))


def _traced(model: nn.Module, inputs: Inputs, takes: str) -> ExportedProgram:
    """The model as a program. A batch of one becomes two first, because torch fixes an axis of length one."""
    rows = next((len(tensor) for _, tensor in inputs.tensors() if tensor.ndim > 1), 0)
    traced = inputs.resized(size=()).get("batch", inputs) if rows == 1 and takes != ONE_SHAPE else inputs
    rows = next((len(tensor) for _, tensor in traced.tensors() if tensor.ndim > 1), 0)
    free_axes = _free_axes(rows, takes)
    try:
        bound = inspect.signature(model.forward).bind(*traced.args, **traced.kwargs).arguments
        shapes = None if takes == ONE_SHAPE else {name: mapped(value, free_axes) for name, value in bound.items()}
        with _quiet(), torch.no_grad():
            return torch.export.export(
                copied(model), traced.args, dict(traced.kwargs), dynamic_shapes=shapes, strict=False
            )
    except Exception as error:
        raise ModelError(f"torch.export cannot trace the model: {type(error).__name__}: {first_line(error)}") from error


def _free_axes(rows: int, takes: str) -> Callable[[Any], dict[int, Any] | None]:
    """The axes of an argument that may have any length: the batch, and the spatial axes of images."""

    def free_axes(value: Any) -> dict[int, Any] | None:
        if not isinstance(value, Tensor):
            return None
        axes = [0] if value.ndim > 1 and len(value) == rows else []
        if takes == ANY_SIZE and value.is_floating_point() and value.ndim in (3, 4, 5):
            axes += range(2, value.ndim)
        return dict.fromkeys(axes, Dim.AUTO)

    return free_axes


def _write(program: ExportedProgram, draft: Path) -> None:
    draft.unlink(missing_ok=True)
    with _quiet():
        if draft.suffix == ".pt2":
            torch.export.save(program, draft)
            return
        try:
            exported = torch.onnx.export(program, dynamo=True, verbose=False)
        except Exception as error:
            raise ModelError(
                f"torch.onnx cannot translate the model: {type(error).__name__}: {first_line(error)}"
            ) from error
        assert exported is not None
        exported.save(draft)
    if list(draft.parent.iterdir()) != [draft]:
        raise InputError(
            f"{draft.name} would be larger than {_ONNX_LIMIT >> 30} GB, the limit of one ONNX file; export a .pt2"
        )


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Hides what exporters print and warn of: it is about themselves, and the file is compared afterwards."""
    with (
        warnings.catch_warnings(),
        contextlib.redirect_stdout(io.StringIO()),
        contextlib.redirect_stderr(io.StringIO()),
    ):
        warnings.simplefilter("ignore")
        yield
