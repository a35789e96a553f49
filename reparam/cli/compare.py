"""The commands that compare two models: `verify` and `bench`."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

import typer
from torch import nn

from reparam.capture.inputs import Inputs
from reparam.cli import options
from reparam.cli.fold import STEPS, fold_model
from reparam.cli.output import ProgressBar, show
from reparam.cli.reports import report_writer
from reparam.compare.bench import benchmark
from reparam.compare.levels import FULL
from reparam.compare.verify import verify as verify_models
from reparam.deploy.artefact import load
from reparam.deploy.runtimes import SUFFIXES, exported_module, open_program
from reparam.errors import InputError
from reparam.report.as_data import comparison_data, verification_data
from reparam.report.report import Report

ARTEFACTS = (".safetensors", ".json")

Original = Annotated[
    str,
    typer.Argument(metavar="A", help="The original: package.module:factory, timm:NAME, torchvision:NAME or FILE.pt2."),
]
Candidate = Annotated[
    str,
    typer.Argument(metavar="B", help="The candidate: like A, FILE.onnx, or an artefact of A (FILE.safetensors)."),
]
OtherModel = Annotated[str | None, typer.Argument(metavar="B", help="What to time against A; its fold, if not given.")]
OtherArguments = Annotated[
    list[str] | None, typer.Option("--other-arg", metavar="KEY=VALUE", help="An argument of B's factory; repeatable.")
]
OtherCheckpoint = Annotated[Path | None, typer.Option(metavar="FILE", help="The weights of B.")]


def verify(
    original: Original,
    candidate: Candidate,
    arg: options.Arguments = None,
    other_arg: OtherArguments = None,
    checkpoint: options.CheckpointFile = None,
    other_checkpoint: OtherCheckpoint = None,
    checkpoint_key: options.CheckpointKey = None,
    checkpoint_prefix: options.CheckpointPrefix = None,
    partial: options.Partial = False,
    input_: options.Input = None,
    input_file: options.InputFile = None,
    fixed_size: options.FixedSize = False,
    device: options.Device = "cpu",
    dtype: options.Dtype = None,
    trust: options.Trust = False,
    json: options.Json = False,
) -> None:
    """Check that A and B are the same function. Exits with 2 if not."""
    spec = options.ModelSpec(original, arg, checkpoint, checkpoint_key, checkpoint_prefix, partial, device, dtype)
    with ProgressBar(2) as bar:
        bar("loading the models")
        truth, inputs, notes, data = _original(spec, input_, input_file, trust)
        other = options.ModelSpec(candidate, other_arg, other_checkpoint, device=device, dtype=dtype)
        other_model, other_notes = _candidate(other, spec, trust)
        bar("comparing them")
        verification = verify_models(truth, other_model, inputs, fixed_size=fixed_size)
    show({**data, "other": candidate, **verification_data(verification)}, [*notes, *other_notes, verification], json)
    verification.raise_if_failed()


def bench(
    model: Original,
    other: OtherModel = None,
    arg: options.Arguments = None,
    other_arg: OtherArguments = None,
    checkpoint: options.CheckpointFile = None,
    other_checkpoint: OtherCheckpoint = None,
    checkpoint_key: options.CheckpointKey = None,
    checkpoint_prefix: options.CheckpointPrefix = None,
    partial: options.Partial = False,
    input_: options.Input = None,
    input_file: options.InputFile = None,
    keep: options.Keep = None,
    cost: options.Cost = "static",
    prune: options.Prune = False,
    fixed_size: options.FixedSize = False,
    verify: options.Verify = FULL,
    rounds: Annotated[int, typer.Option(help="How often each model is timed.")] = 30,
    threads: Annotated[int | None, typer.Option(help="Threads for torch; its default, if not given.")] = None,
    check: Annotated[bool, typer.Option(help="Refuse to time models whose outputs differ.")] = True,
    device: options.Device = "cpu",
    dtype: options.Dtype = None,
    trust: options.Trust = False,
    report: options.ReportFile = None,
    force: options.Force = False,
    json: options.Json = False,
) -> None:
    """Time a model and its fold, or any two models, in turns."""
    if report is not None and other is not None:
        raise InputError(f"--report {report}: a report describes a conversion; leave out B to time A's fold")
    write = report_writer(report, force)
    conversion: Report | None = None
    spec = options.ModelSpec(model, arg, checkpoint, checkpoint_key, checkpoint_prefix, partial, device, dtype)
    with ProgressBar(STEPS + 2 + options.measuring_steps(cost)) as bar:
        bar("loading the model")
        truth, inputs, notes, data = _original(spec, input_, input_file, trust)
        if other is None:
            deployed, conversion = fold_model(
                truth, inputs, bar, keep=keep, cost=cost, prune=prune, fixed_size=fixed_size, verify=verify
            )
            models: dict[str, Callable[..., Any]] = {"original": truth, "folded": deployed}
        else:
            other_spec = options.ModelSpec(other, other_arg, other_checkpoint, device=device, dtype=dtype)
            other_model, other_notes = _candidate(other_spec, spec, trust)
            notes += other_notes
            models = {model: truth, other if other != model else f"{other} (B)": other_model}
        bar(f"timing {rounds} rounds")
        comparison = benchmark(models, inputs, rounds=rounds, threads=threads, check=check)
    files = [] if conversion is None else write(conversion, comparison)
    show({**data, **comparison_data(comparison)}, [*notes, comparison, *map("Written: {}".format, files)], json)


def _original(
    spec: options.ModelSpec, shapes: list[str] | None, file: Path | None, trusted: bool
) -> tuple[nn.Module, Inputs, list[str], dict[str, Any]]:
    """The original, its inputs, and what to print of it: notes for people, and data for programs."""
    suffix = Path(spec.model).suffix
    if suffix == ".onnx":
        raise InputError(f"{spec.model}: an ONNX file has no float64 truth; name the PyTorch model or a .pt2 as A")
    if suffix not in SUFFIXES:
        loaded = spec.load()
        return loaded.model, loaded.inputs(shapes, file), loaded.notes, loaded.data()
    if spec.checkpoint is not None or spec.arguments:
        raise InputError(f"{spec.model} has its weights inside; leave out --checkpoint and --arg")
    module = exported_module(Path(spec.model), trusted=trusted)
    if not shapes and file is None:
        raise InputError(f"{spec.model} does not name its inputs; give --input or --input-file")
    loaded = options.LoadedModel(spec, module, None, None)
    return module, loaded.inputs(shapes, file), [], {"model": spec.model}


def _candidate(
    spec: options.ModelSpec, original: options.ModelSpec, trust: bool
) -> tuple[Callable[..., Any], list[str]]:
    """The model or program to compare with the original, and notes on it for people."""
    suffix = Path(spec.model).suffix
    if suffix not in (*SUFFIXES, *ARTEFACTS):
        loaded = spec.load()
        return loaded.model, [f"B: {note}" for note in loaded.notes]
    if spec.checkpoint is not None or spec.arguments:
        raise InputError(f"{spec.model} has its weights inside; leave out --other-checkpoint and --other-arg")
    if suffix in SUFFIXES:
        return open_program(spec.model, trusted=trust), []
    if Path(original.model).suffix in SUFFIXES:
        raise InputError(
            f"{spec.model} is rebuilt from the code of A, which {original.model} does not hold; name A by its factory"
        )
    return load(spec.model, replace(original, checkpoint=None).load().model, trusted=trust), []
