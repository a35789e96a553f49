"""The command `export`: a folded model as a program for another runtime."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from reparam.cli import options
from reparam.cli.fold import STEPS, fold_model
from reparam.cli.output import ProgressBar, show
from reparam.compare.levels import FULL
from reparam.deploy.export import export as export_model
from reparam.deploy.export import require_exportable
from reparam.report.as_data import report_data, verification_data


def export(
    model: options.Model,
    output: Annotated[
        Path,
        typer.Option(
            "--output", "-o", metavar="FILE", help="FILE.pt2 (torch.export) or FILE.onnx.", show_default=False
        ),
    ],
    arg: options.Arguments = None,
    checkpoint: options.CheckpointFile = None,
    checkpoint_key: options.CheckpointKey = None,
    checkpoint_prefix: options.CheckpointPrefix = None,
    partial: options.Partial = False,
    input_: options.Input = None,
    input_file: options.InputFile = None,
    fold: Annotated[bool, typer.Option("--fold/--no-fold", help="Fold the model first.")] = True,
    keep: options.Keep = None,
    cost: options.Cost = "static",
    prune: options.Prune = False,
    fixed_size: options.FixedSize = False,
    verify: options.Verify = FULL,
    device: options.Device = "cpu",
    dtype: options.Dtype = None,
    force: options.Force = False,
    json: options.Json = False,
) -> None:
    """Fold a model and write it as .pt2 or .onnx. The file is loaded and verified."""
    require_exportable(output, force)
    spec = options.ModelSpec(model, arg, checkpoint, checkpoint_key, checkpoint_prefix, partial, device, dtype)
    with ProgressBar(STEPS + 3 + options.measuring_steps(cost)) as bar:
        bar("loading the model")
        loaded = spec.load()
        inputs = loaded.inputs(input_, input_file)
        deployed, report = loaded.model, None
        if fold:
            deployed, report = fold_model(
                loaded.model, inputs, bar, keep=keep, cost=cost, prune=prune, fixed_size=fixed_size, verify=verify
            )
        exported = export_model(deployed, output, inputs, original=loaded.model, fixed_size=fixed_size, force=force,
                            progress=bar)  # fmt: skip
    data = {
        **loaded.data(),
        "inputs": str(inputs),
        "file": str(exported.path),
        "takes": exported.takes,
        "why": exported.why,
        "verification": verification_data(exported.verification),
        "report": None if report is None else report_data(report),
    }
    parts = [*loaded.notes, f"Inputs: {inputs}.", *([] if report is None else [report]), f"Written: {exported}"]
    show(data, parts, json)
