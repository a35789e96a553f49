"""Commands that compare: `verify` and `bench`."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

import typer
from torch import nn

from reparam.capture.inputs import Inputs
from reparam.cli import options
from reparam.cli.fold import STEPS, folded
from reparam.cli.reports import writer
from reparam.cli.shown import Bar, show
from reparam.compare.bench import benchmark
from reparam.compare.levels import FULL
from reparam.compare.verify import verify as verify_models
from reparam.deploy.artefact import load
from reparam.deploy.files import require_file
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
    str, typer.Argument(metavar="B", help="Another of these, FILE.onnx, or an artefact of A: FILE.safetensors.")
]
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
    json: options.Json = False,
) -> None:
    """Are A and B the same function, whoever converted B? Ends with code 2 where they are not."""
    named = options.Named(original, arg, checkpoint, checkpoint_key, checkpoint_prefix, partial, device, dtype)
    with Bar(2) as bar:
        bar("loading the models")
        truth, inputs, notes, data = _original(named, input_, input_file)
        other = options.Named(candidate, other_arg, other_checkpoint, device=device, dtype=dtype)
        found, more = _candidate(other, named)
        bar("comparing them")
        outcome = verify_models(truth, found, inputs, fixed_size=fixed_size)
    show({**data, "other": candidate, **verification_data(outcome)}, [*notes, *more, outcome], json)
    outcome.raise_if_failed()


def bench(
    model: Original,
    other: Annotated[str | None, typer.Argument(metavar="B", help="What to time beside it; else its fold.")] = None,
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
    rounds: Annotated[int, typer.Option(help="How often each is timed, in turns.")] = 30,
    threads: Annotated[int | None, typer.Option(help="Threads of torch; as many as it takes by itself, else.")] = None,
    check: Annotated[bool, typer.Option(help="Refuse to time models whose outputs differ.")] = True,
    device: options.Device = "cpu",
    dtype: options.Dtype = None,
    report: options.ReportFile = None,
    force: options.Force = False,
    json: options.Json = False,
) -> None:
    """Time a model and its fold, or any two models, in turns."""
    if report is not None and other is not None:
        raise InputError(f"--report {report}: a report is of a conversion; leave out B, and A's fold is timed")
    write = writer(report, force)
    conversion: Report | None = None
    named = options.Named(model, arg, checkpoint, checkpoint_key, checkpoint_prefix, partial, device, dtype)
    with Bar(STEPS + 2 + options.rounds(cost)) as bar:
        bar("loading the model")
        truth, inputs, notes, data = _original(named, input_, input_file)
        if other is None:
            deployed, conversion = folded(truth, inputs, bar, keep=keep, cost=cost, prune=prune, fixed_size=fixed_size,
                                          verify=verify)  # fmt: skip
            models: dict[str, Callable[..., Any]] = {"original": truth, "folded": deployed}
        else:
            b = options.Named(other, other_arg, other_checkpoint, device=device, dtype=dtype)
            found, more = _candidate(b, named)
            notes += more
            models = {model: truth, other if other != model else f"{other} (B)": found}
        bar(f"timing {rounds} rounds")
        outcome = benchmark(models, inputs, rounds=rounds, threads=threads, check=check)
    done = [] if conversion is None else write(conversion, outcome)
    show({**data, **comparison_data(outcome)}, [*notes, outcome, *map("Written: {}".format, done)], json)


def _original(
    named: options.Named, shapes: list[str] | None, file: Path | None
) -> tuple[nn.Module, Inputs, list[str], dict[str, Any]]:
    """The module that says what is true, its inputs, and what to say of it."""
    suffix = Path(named.model).suffix
    if suffix == ".onnx":
        raise InputError(f"{named.model}: an ONNX file has no float64 truth; name the PyTorch model, or a .pt2, first")
    if suffix not in SUFFIXES:
        loaded = named.load()
        return loaded.model, loaded.inputs(shapes, file), loaded.notes, loaded.data()
    if named.checkpoint is not None or named.arguments:
        raise InputError(f"{named.model} has its weights inside; leave out --checkpoint and --arg")
    module = exported_module(require_file(Path(named.model)))
    if not shapes and file is None:
        raise InputError(f"{named.model} does not say what it takes; give --input or --input-file")
    loaded = options.Loaded(named, module, None, None)
    return module, loaded.inputs(shapes, file), [], {"model": named.model}


def _candidate(named: options.Named, original: options.Named) -> tuple[Callable[..., Any], list[str]]:
    """Whatever can be called like the original."""
    suffix = Path(named.model).suffix
    if suffix not in (*SUFFIXES, *ARTEFACTS):
        loaded = named.load()
        return loaded.model, [f"B: {note}" for note in loaded.notes]
    if named.checkpoint is not None or named.arguments:
        raise InputError(f"{named.model} has its weights inside; leave out --other-checkpoint and --other-arg")
    if suffix in SUFFIXES:
        return open_program(named.model), []
    if Path(original.model).suffix in SUFFIXES:
        raise InputError(
            f"{named.model} is rebuilt on a fresh copy of A, which {original.model} cannot give; name its code"
        )
    return load(named.model, replace(original, checkpoint=None).load().model), []
