"""The commands that convert: `fold`, and `explain`, which writes nothing."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from torch import nn

from reparam.capture.inputs import Inputs
from reparam.cli import options
from reparam.cli.output import ProgressBar, show
from reparam.cli.reports import report_writer
from reparam.compare.levels import FULL, NONE
from reparam.convert import reparameterize
from reparam.deploy.artefact import save
from reparam.deploy.files import require_writable
from reparam.deploy.pair import Saved
from reparam.errors import InputError
from reparam.report.as_data import report_data
from reparam.report.report import Report

STEPS = 5  # that `reparameterize` reports


def fold_model(
    model: nn.Module,
    inputs: Inputs,
    bar: ProgressBar,
    *,
    keep: list[str] | None,
    cost: str = "static",
    prune: bool = False,
    fixed_size: bool = False,
    verify: str = FULL,
    inplace: bool = False,
) -> tuple[nn.Module, Report]:
    """The folded model and the report of its conversion."""
    deployed = reparameterize(
        model, inputs, keep=keep or (), cost=options.cost_model(cost), prune=prune, fixed_size=fixed_size,
        verify=options.verify_value(verify), progress=bar, inplace=inplace,
    )  # fmt: skip
    report = deployed.reparam_report
    assert isinstance(report, Report)
    return deployed, report


def fold(
    model: options.Model,
    output: Annotated[
        Path,
        typer.Option(
            "--output",
            "-o",
            metavar="FILE.safetensors",
            help="Where to write the weights; the provenance goes into a .json beside them.",
            show_default=False,
        ),
    ],
    arg: options.Arguments = None,
    checkpoint: options.CheckpointFile = None,
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
    device: options.Device = "cpu",
    dtype: options.Dtype = None,
    report: options.ReportFile = None,
    force: options.Force = False,
    json: options.Json = False,
) -> None:
    """Fold a model, verify it and write it. Read it with `reparam.load(FILE, model)`."""
    files = Saved.at(output)
    for path in (files.weights, files.provenance):
        require_writable(path, force)
        if report is not None and report.resolve() == path.resolve():
            raise InputError(f"--report {report}: --output {output} writes that file; give the report another name")
    write = report_writer(report, force)
    spec = options.ModelSpec(model, arg, checkpoint, checkpoint_key, checkpoint_prefix, partial, device, dtype)
    with ProgressBar(STEPS + 2 + options.measuring_steps(cost)) as bar:
        bar("loading the model")
        loaded = spec.load()
        inputs = loaded.inputs(input_, input_file)
        deployed, conversion = fold_model(
            loaded.model, inputs, bar, keep=keep, cost=cost, prune=prune, fixed_size=fixed_size, verify=verify
        )
        bar("writing")
        save(deployed, output, source=loaded.data(), force=force)
        names = [str(files.weights), str(files.provenance), *write(conversion, None)]
    data = {**loaded.data(), "inputs": str(inputs), "files": names, "report": report_data(conversion)}
    show(data, [*loaded.notes, f"Inputs: {inputs}.", conversion, f"Written: {', '.join(names)}"], json)


def explain(
    model: options.Model,
    arg: options.Arguments = None,
    checkpoint: options.CheckpointFile = None,
    checkpoint_key: options.CheckpointKey = None,
    checkpoint_prefix: options.CheckpointPrefix = None,
    partial: options.Partial = False,
    input_: options.Input = None,
    input_file: options.InputFile = None,
    keep: options.Keep = None,
    cost: options.Cost = "static",
    prune: options.Prune = False,
    fixed_size: options.FixedSize = False,
    verify: options.Verify = NONE,
    device: options.Device = "cpu",
    dtype: options.Dtype = None,
    stages: options.Stages = False,
    json: options.Json = False,
) -> None:
    """Show what folds, what does not, and why. Writes nothing."""
    spec = options.ModelSpec(model, arg, checkpoint, checkpoint_key, checkpoint_prefix, partial, device, dtype)
    with ProgressBar(STEPS + 1 + options.measuring_steps(cost)) as bar:
        bar("loading the model")
        loaded = spec.load()
        inputs = loaded.inputs(input_, input_file)
        _, report = fold_model(
            loaded.model, inputs, bar, keep=keep, cost=cost, prune=prune, fixed_size=fixed_size, verify=verify
        )
    data = {**loaded.data(), "inputs": str(inputs), "report": report_data(report)}
    show(data, [*loaded.notes, f"Inputs: {inputs}.", *(report.stages if stages else (report,))], json)
