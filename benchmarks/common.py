"""What every benchmark script shares: its options, how a spread is shown, and its file of results."""

from __future__ import annotations

import argparse
import json
import os
import platform
import shlex
import sys
from collections.abc import Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

from benchmarks.zoo.models import QUICK, ZOO
from reparam.compare.bench import Spread


def shown(spread: Spread, digits: int = 2) -> str:
    """A median with its quartiles: one number of a shared machine says little."""
    return f"{spread.median:.{digits}f} [{spread.low:.{digits}f} .. {spread.high:.{digits}f}]"


def parser(description: str, rounds: int, batch: int = 1) -> argparse.ArgumentParser:
    """The options of every script; `rounds` and `batch` are the defaults of `--rounds` and `--batch`."""
    options = argparse.ArgumentParser(description=description)
    options.add_argument("--models", nargs="+", metavar="NAME", help=f"timm models (default: {' '.join(ZOO)})")
    options.add_argument("--quick", action="store_true", help=f"few rounds on {' '.join(QUICK)}, within a minute")
    options.add_argument("--rounds", type=int, default=rounds, help="measurements of each kind (default: %(default)s)")
    # One: threads that wait for one whose core is taken are a hundred times slower, and that is no result.
    options.add_argument("--threads", type=int, default=1, help="threads of torch (default: %(default)s)")
    options.add_argument("--batch", type=int, default=batch, help="images in a batch (default: %(default)s)")
    options.add_argument("--json", type=Path, metavar="FILE", help="write the numbers there, too")
    return options


def chosen_models(options: argparse.Namespace) -> list[str]:
    return list(options.models or (QUICK if options.quick else ZOO))


_TOLD = ("torch", "timm", "onnxruntime")


def _version(package: str) -> str:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return ""


def write_json(file: Path, options: argparse.Namespace, results: Sequence[dict[str, Any]]) -> None:
    """Writes the results with what they depend on, whole or not at all: an interrupted run leaves the old file."""
    content = {
        "command": shlex.join(["python", "benchmarks/" + Path(sys.argv[0]).name, *sys.argv[1:]]),
        "python": platform.python_version(),
        "versions": ", ".join(f"{name} {version}" for name in _TOLD if (version := _version(name))),
        "machine": f"a CPU ({platform.machine()}, {torch.backends.cpu.get_cpu_capability()}, {os.cpu_count()} cores)",
        "threads": options.threads,
        "batch": options.batch,
        "results": list(results),
    }
    unfinished = file.with_name(f"{file.name}.unfinished")
    unfinished.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
    unfinished.replace(file)
