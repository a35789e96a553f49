"""The options that commands share, and loading the model, weights and inputs that they name."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from torch import nn

from reparam.capture.example_inputs import guessed_inputs
from reparam.capture.inputs import Inputs
from reparam.capture.snapshot import copied
from reparam.cli.source import DTYPES, build_model, default_input, parse_arguments, random_input, read_input
from reparam.compare import levels
from reparam.deploy.checkpoint import Checkpoint, Fit, fit, read_checkpoint
from reparam.errors import InputError, first_line
from reparam.plan.cost import MeasuredCost, StaticCost

_FLOATING = tuple(name for name, dtype in DTYPES.items() if dtype.is_floating_point)

Model = Annotated[
    str,
    typer.Argument(metavar="MODEL", help="package.module:factory, timm:NAME or torchvision:NAME.", show_default=False),
]
Arguments = Annotated[
    list[str] | None, typer.Option("--arg", "-a", metavar="KEY=VALUE", help="An argument of the factory; repeatable.")
]
CheckpointFile = Annotated[
    Path | None,
    typer.Option(
        "--checkpoint", "-c", metavar="FILE", help="The weights: .safetensors, .pt or .pth. No code in them is run."
    ),
]
CheckpointKey = Annotated[
    str | None,
    typer.Option(metavar="KEY", help="Where the weights are in the checkpoint, such as model or ema.module."),
]
CheckpointPrefix = Annotated[
    str | None,
    typer.Option(metavar="PREFIX", help="The prefix of the model's names in the checkpoint, such as student."),
]
Partial = Annotated[bool, typer.Option("--partial", help="Allow missing and unexpected tensors.")]
Input = Annotated[
    list[str] | None,
    typer.Option(
        "--input",
        "-i",
        metavar="SHAPE[:DTYPE]",
        help="A random input, such as 1x3x224x224 or 1x128:int64; repeatable. NAME=SHAPE for a keyword.",
    ),
]
InputFile = Annotated[
    Path | None,
    typer.Option(metavar="FILE", help="Real inputs instead: a .npy, or a .pt with a tensor, tuple or dict."),
]
Keep = Annotated[
    list[str] | None,
    typer.Option(metavar="NAME", help="A module name or pattern. Its output is kept; repeatable."),
]
Cost = Annotated[
    str,
    typer.Option(
        metavar="COST",
        help="The cost model: static, measured, params, flops, or a FILE.json from benchmarks.calibrate.",
    ),
]
Verify = Annotated[
    str,
    typer.Option(
        metavar="WHAT", help="What to verify: full (each fold and the whole model), folds (each fold) or none."
    ),
]
Prune = Annotated[bool, typer.Option("--prune", help="Remove dead weight, such as auxiliary heads.")]
FixedSize = Annotated[bool, typer.Option("--fixed-size", help="Promise that every image is as large as the input.")]
Device = Annotated[str, typer.Option(metavar="DEVICE", help="Where to run: cpu, cuda or cuda:1.")]
Dtype = Annotated[str | None, typer.Option(metavar="DTYPE", help=f"Convert the model first: {', '.join(_FLOATING)}.")]
ReportFile = Annotated[
    Path | None, typer.Option("--report", metavar="FILE", help="Write a report: .html, .md or .json.")
]
Stages = Annotated[
    bool, typer.Option("--stages", help="Print what each stage made of the model: record, values, plan, edits, result.")
]
Trust = Annotated[
    bool,
    typer.Option("--trust", help="Open files that can run code (.pt2, artefacts of format 1); you trust their author."),
]
Json = Annotated[bool, typer.Option("--json", help="Print a JSON document, for programs.")]
Force = Annotated[bool, typer.Option("--force", help="Overwrite existing files.")]


def cost_model(cost: str) -> str | StaticCost:
    """The value of `--cost`: the name of a cost model, or the static one with the constants in a file."""
    return StaticCost.load(cost) if cost.endswith(".json") else cost


def measuring_steps(cost: str) -> int:
    """The number of progress steps that measuring takes."""
    return MeasuredCost().rounds if cost == "measured" else 0


@dataclass(frozen=True)
class ModelSpec:
    """A model, its weights, device and dtype as the command line names them."""

    model: str
    arguments: list[str] | None = None
    checkpoint: Path | None = None
    key: str | None = None
    prefix: str | None = None
    partial: bool = False
    device: str = "cpu"
    dtype: str | None = None

    def load(self) -> LoadedModel:
        """Build the model in eval mode, load its weights, and move it to the device and dtype."""
        device, dtype = _device(self.device), _dtype(self.dtype)
        checkpoint = None if self.checkpoint is None else read_checkpoint(self.checkpoint, self.key)
        model = build_model(self.model, parse_arguments(self.arguments or []))
        fitted = None
        if checkpoint is not None:
            fitted = fit(checkpoint, model, prefix=self.prefix, partial=self.partial)
        return LoadedModel(self, model.to(device, dtype), checkpoint, fitted)


@dataclass(frozen=True)
class LoadedModel:
    """A model, and how its weights were loaded."""

    spec: ModelSpec
    model: nn.Module
    checkpoint: Checkpoint | None
    fit: Fit | None

    @property
    def notes(self) -> list[str]:
        """Where the weights come from, for people."""
        if self.checkpoint is None:
            return ["No --checkpoint: the weights are the ones that the factory sets."]
        return [f"Weights: {self.checkpoint}; {self.fit}."]

    def data(self) -> dict[str, Any]:
        """The same for programs."""
        data: dict[str, Any] = {"model": self.spec.model, "arguments": parse_arguments(self.spec.arguments or [])}
        if self.checkpoint is not None and self.fit is not None:
            data["checkpoint"] = {
                "file": str(self.checkpoint.path),
                "sha256": self.checkpoint.sha256,
                "key": self.checkpoint.key,
                "stripped": list(self.fit.stripped),
                "missing": list(self.fit.missing),
                "unexpected": list(self.fit.unexpected),
            }
        return data

    def inputs(self, shapes: list[str] | None, file: Path | None) -> Inputs:
        """The example inputs on the model's device: the given ones, else of the usual size, else of a guessed one."""
        if shapes and file:
            raise InputError("--input and --input-file exclude each other; give one of them")
        weight = next((p for p in self.model.parameters() if p.is_floating_point()), torch.empty(0))
        if file is not None:
            example: Any = read_input(file)
        elif shapes:
            example = _random_inputs(shapes)
        else:
            example = default_input(self.spec.model, self.model)
        inputs = guessed_inputs(copied(self.model)) if example is None else Inputs.of(example)
        has_dtypes = any(":" in shape for shape in shapes or ())  # a dtype in --input stays as it is

        def moved(tensor: torch.Tensor) -> torch.Tensor:
            follows = tensor.is_floating_point() and not has_dtypes
            return tensor.to(weight.device, weight.dtype if follows else tensor.dtype)

        return inputs.map(moved)


_LEVELS: dict[str, levels.Verify] = {levels.FULL: "full", levels.FOLDS: "folds", levels.NONE: False}


def verify_value(name: str) -> levels.Verify:
    """The value of `verify=` for that of `--verify`."""
    if name not in _LEVELS:
        raise InputError(f"--verify {name}: choose one of {', '.join(_LEVELS)}")
    return _LEVELS[name]


def _random_inputs(shapes: list[str]) -> Inputs:
    args, kwargs = [], {}
    for seed, text in enumerate(shapes):
        name, equals, shape = text.rpartition("=")
        if equals and not name.isidentifier():
            raise InputError(f"input {text!r}: {name!r} is no argument name; write NAME=1x3x224x224")
        tensor = random_input(shape, seed)
        if equals:
            kwargs[name] = tensor
        else:
            args.append(tensor)
    return Inputs(tuple(args), kwargs)


def _dtype(name: str | None) -> torch.dtype | None:
    if name is not None and name not in _FLOATING:
        raise InputError(f"--dtype {name}: choose one of {', '.join(_FLOATING)}")
    return None if name is None else DTYPES[name]


def _device(name: str) -> torch.device:
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except Exception as error:
        raise InputError(
            f"--device {name} cannot be used here: {first_line(error)}; `reparam doctor` lists the devices"
        ) from error
    return device
