"""Options that several commands share, and the model, weights and inputs that they name."""

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
from reparam.cli.source import DTYPES, arguments, built, drawn_input, read_input, usual_input
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
        "--checkpoint", "-c", metavar="FILE", help="The weights: .safetensors, or .pt/.pth, read as data alone."
    ),
]
CheckpointKey = Annotated[
    str | None,
    typer.Option(metavar="KEY", help="Where the weights are in the checkpoint, such as model or ema.module."),
]
CheckpointPrefix = Annotated[
    str | None, typer.Option(metavar="PREFIX", help="What stands before the model's own names, such as student.")
]
Partial = Annotated[bool, typer.Option("--partial", help="Go on where tensors are missing or unexpected.")]
Input = Annotated[
    list[str] | None,
    typer.Option(
        "--input",
        "-i",
        metavar="SHAPE[:DTYPE]",
        help="A drawn input, such as 1x3x224x224 or 1x128:int64; repeatable; NAME=SHAPE for a keyword.",
    ),
]
InputFile = Annotated[
    Path | None, typer.Option(metavar="FILE", help="Real data instead: .npy, or .pt with a tensor, tuple or dict.")
]
Keep = Annotated[
    list[str] | None,
    typer.Option(metavar="NAME", help="A module, or pattern of names, whose output must stay; repeatable."),
]
Cost = Annotated[
    str,
    typer.Option(
        metavar="COST",
        help="What a plan is judged by: static, measured, params, flops, or a FILE.json of benchmarks.calibrate.",
    ),
]
Verify = Annotated[
    str,
    typer.Option(
        metavar="WHAT", help="What is checked: full (each fold, and the whole model), folds (each fold alone) or none."
    ),
]
Prune = Annotated[bool, typer.Option("--prune", help="Remove dead weight, such as auxiliary heads.")]
FixedSize = Annotated[bool, typer.Option("--fixed-size", help="Every image will be as large as the input.")]
Device = Annotated[str, typer.Option(metavar="DEVICE", help="Where to compute: cpu, cuda, cuda:1.")]
Dtype = Annotated[str | None, typer.Option(metavar="DTYPE", help=f"Convert the model first: {', '.join(_FLOATING)}.")]
ReportFile = Annotated[
    Path | None, typer.Option("--report", metavar="FILE", help="The report as well: .html, .md or .json.")
]
Stages = Annotated[
    bool, typer.Option("--stages", help="What record, values, plan, edits and result were, stage by stage.")
]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON document, for programs.")]
Force = Annotated[bool, typer.Option("--force", help="Overwrite files that exist.")]


def judged(cost: str) -> str | StaticCost:
    """What `--cost` says: a name, or the constants in a file."""
    return StaticCost.load(cost) if cost.endswith(".json") else cost


def rounds(cost: str) -> int:
    """The steps that it takes to measure a cost."""
    return MeasuredCost().rounds if cost == "measured" else 0


@dataclass(frozen=True)
class Named:
    """A model as the command line names it."""

    model: str
    arguments: list[str] | None = None
    checkpoint: Path | None = None
    key: str | None = None
    prefix: str | None = None
    partial: bool = False
    device: str = "cpu"
    dtype: str | None = None

    def load(self) -> Loaded:
        """The model in eval mode, with its weights, where and as what it is asked for."""
        device, dtype = _device(self.device), _dtype(self.dtype)
        checkpoint = None if self.checkpoint is None else read_checkpoint(self.checkpoint, self.key)
        model = built(self.model, arguments(self.arguments or []))
        fitted = None
        if checkpoint is not None:
            fitted = fit(checkpoint, model, prefix=self.prefix, partial=self.partial)
        return Loaded(self, model.to(device, dtype), checkpoint, fitted)


@dataclass(frozen=True)
class Loaded:
    """A model, and where its weights come from."""

    named: Named
    model: nn.Module
    checkpoint: Checkpoint | None
    fit: Fit | None

    @property
    def notes(self) -> list[str]:
        """What was taken, for people."""
        if self.checkpoint is None:
            return ["No --checkpoint: the weights are those that the factory makes."]
        return [f"Weights: {self.checkpoint}; {self.fit}."]

    def data(self) -> dict[str, Any]:
        """The same for programs."""
        found: dict[str, Any] = {"model": self.named.model, "arguments": arguments(self.named.arguments or [])}
        if self.checkpoint is not None and self.fit is not None:
            found["checkpoint"] = {
                "file": str(self.checkpoint.path),
                "sha256": self.checkpoint.sha256,
                "key": self.checkpoint.key,
                "stripped": list(self.fit.stripped),
                "missing": list(self.fit.missing),
                "unexpected": list(self.fit.unexpected),
            }
        return found

    def inputs(self, shapes: list[str] | None, file: Path | None) -> Inputs:
        """What the user gives, or the size that the model is made for, or one that it accepts; where the model is."""
        if shapes and file:
            raise InputError("--input and --input-file are two ways to say the same; give one of them")
        like = next((each for each in self.model.parameters() if each.is_floating_point()), torch.empty(0))
        if file is not None:
            given: Any = read_input(file)
        elif shapes:
            given = _given(shapes)
        else:
            given = usual_input(self.named.model, self.model)
        inputs = guessed_inputs(copied(self.model)) if given is None else Inputs.of(given)
        floats = any(":" in each for each in shapes or ())  # a dtype that was asked for stays
        return inputs.map(lambda t: t.to(like.device, like.dtype if t.is_floating_point() and not floats else t.dtype))


_LEVELS: dict[str, levels.Verify] = {levels.FULL: "full", levels.FOLDS: "folds", levels.NONE: False}


def verified(name: str) -> levels.Verify:
    """What `--verify` asks for."""
    if name not in _LEVELS:
        raise InputError(f"--verify {name}: choose one of {', '.join(_LEVELS)}")
    return _LEVELS[name]


def _given(shapes: list[str]) -> Inputs:
    args, kwargs = [], {}
    for seed, text in enumerate(shapes):
        name, equals, shape = text.rpartition("=")
        if equals and not name.isidentifier():
            raise InputError(f"input {text!r}: {name!r} is no name of an argument; write NAME=1x3x224x224")
        drawn = drawn_input(shape, seed)
        if equals:
            kwargs[name] = drawn
        else:
            args.append(drawn)
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
            f"--device {name} cannot be used here: {first_line(error)}; `reparam doctor` says what can"
        ) from error
    return device
