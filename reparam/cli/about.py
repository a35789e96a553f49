"""Commands about the tool itself: `ops`, `doctor` and `demo`."""

from __future__ import annotations

import importlib
import os
import platform
import sys
from importlib.metadata import PackageNotFoundError, version
from typing import Annotated, Any

import torch
import typer
from tabulate import tabulate

from reparam.capture.inputs import Inputs
from reparam.cli import options
from reparam.cli.fold import STEPS, fold_model
from reparam.cli.output import ProgressBar, show
from reparam.cli.reports import report_writer
from reparam.compare.bench import benchmark
from reparam.errors import first_line
from reparam.nn import demo_network, draw_constants, draw_statistics
from reparam.report.as_data import comparison_data, report_data
from reparam.rules import RULES
from reparam.version import __version__

_PACKAGES = {
    "torch": "", "numpy": "", "safetensors": "", "timm": "zoo", "torchvision": "zoo",
    "onnx": "onnx", "onnxscript": "onnx", "onnxruntime": "onnx",
    "huggingface_hub": "hub", "pytorch_lightning": "lightning",
}  # fmt: skip


def ops(
    word: Annotated[str | None, typer.Argument(metavar="[WORD]", help="List only operations with this word.")] = None,
    json: options.Json = False,
) -> None:
    """List the operations that fold. docs/ops.md has the reasons for refusals."""
    rules = {rule.name: rule for rule in RULES.values()}
    rows = [
        {"operation": ", ".join(rule.keys), "meaning": rule.meaning}
        for rule in rules.values()
        if not word or word.lower() in f"{', '.join(rule.keys)} {rule.meaning}".lower()
    ]
    table = tabulate([list(row.values()) for row in rows], headers=("torch names", "what it is"))
    show({"operations": rows}, [table if rows else f"No operation that folds has {word!r} in its name."], json)


def doctor(json: options.Json = False) -> None:
    """Show versions, missing extras, and what this machine can do."""
    packages = [{"package": name, **_state(name, extra)} for name, extra in _PACKAGES.items()]
    machine = _machine()
    rows = [(package["package"], package["version"], package["state"]) for package in packages]
    parts = [
        tabulate(list(machine.items()), tablefmt="plain", disable_numparse=True),
        tabulate(rows, headers=("package", "version", "state"), disable_numparse=True),
    ]
    show({"machine": machine, "packages": packages}, parts, json)


def demo(report: options.ReportFile = None, force: options.Force = False, json: options.Json = False) -> None:
    """Fold a small multi-branch network, verify it, and time both."""
    write = report_writer(report, force)
    torch.manual_seed(0)
    images = torch.randn(1, 3, 96, 96)
    # Random statistics stand for training: default ones would hide mistakes.
    model = draw_statistics(draw_constants(demo_network()), inputs=(images,)).eval()
    with ProgressBar(STEPS + 1) as bar:
        deployed, conversion = fold_model(model, Inputs.of(images), bar, keep=None)
        bar("timing both")
        comparison = benchmark({"original": model, "folded": deployed}, images)
    files = write(conversion, comparison)
    show(
        {"report": report_data(conversion), "benchmark": comparison_data(comparison)},
        [conversion, comparison, *map("Written: {}".format, files)],
        json,
    )


def _state(name: str, extra: str) -> dict[str, str]:
    """The version of a package, and whether it can be imported."""
    try:
        number = version(name)
    except PackageNotFoundError:
        remedy = f"pip install 'reparam[{extra}]'" if extra else f"pip install {name}"
        return {"version": "", "state": f"not installed: {remedy}"}
    try:
        importlib.import_module(name)
    except Exception as error:  # noqa: BLE001 - a broken package may raise anything
        return {"version": number, "state": f"cannot be imported: {first_line(error)}"}
    return {"version": number, "state": "ok"}


def _machine() -> dict[str, Any]:
    cuda = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    return {
        "reparam": __version__,
        "python": platform.python_version(),
        "system": f"{platform.system()} {platform.machine()}",
        "processors": os.cpu_count() or 1,
        "torch threads": torch.get_num_threads(),
        "vector instructions": torch.backends.cpu.get_cpu_capability(),
        "oneDNN": "yes" if torch.backends.mkldnn.is_available() else "no",
        "cuda": ", ".join(cuda) or "none",
        "devices": ", ".join(["cpu", *(f"cuda:{i}" for i in range(len(cuda)))]),
        "executable": sys.executable,
    }
