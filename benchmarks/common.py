"""What the benchmarks share: options, fresh processes, and how results are shown and written."""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import platform
import re
import shlex
import sys
from collections.abc import Callable, Sequence
from contextlib import suppress
from importlib import metadata
from pathlib import Path
from typing import Any, TypeVar

import torch
from tabulate import tabulate
from torch import Tensor, nn

from reparam.compare.bench import Spread

T = TypeVar("T")


# Options.


def options(description: str, quick: str) -> argparse.ArgumentParser:
    """The options that all benchmarks have; `quick` says what --quick does."""
    parser = argparse.ArgumentParser(
        shlex.join(_program()), description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--quick", action="store_true", help=f"{quick}, within a minute")
    return parser


def timing_options(description: str, quick: str) -> argparse.ArgumentParser:
    """The options of benchmarks that run in this process and write numbers."""
    parser = options(description, quick)
    # With more threads on a busy machine, one thread that has no core slows all others down a hundredfold.
    parser.add_argument("--threads", type=int, default=1, help="threads of torch (default: %(default)s)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the numbers there, too")
    return parser


def model_options(
    description: str, rounds: int, models: Sequence[str], quick: Sequence[str]
) -> argparse.ArgumentParser:
    """The options of benchmarks that time models; `rounds` and `models` are the defaults, `quick` those of --quick."""
    parser = timing_options(description, f"few rounds on {' '.join(quick)}")
    parser.add_argument("--models", nargs="+", metavar="NAME", help=f"(default: {' '.join(models)})")
    parser.add_argument("--rounds", type=int, default=rounds, help="measurements of each kind (default: %(default)s)")
    return parser


# Running.


def in_fresh_process(function: Callable[..., T], *arguments: Any) -> T:
    """The function's result, computed by a new Python: nothing that ran before is in its memory."""
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        return pool.apply(function, arguments)


def forward(model: nn.Module, x: Tensor) -> None:
    with torch.no_grad():
        model(x)


# Showing and writing.


def shown(spread: Spread, digits: int = 2) -> str:
    """The median and the quartiles: on a shared machine a single number says little."""
    return f"{spread.median:.{digits}f} [{spread.low:.{digits}f} .. {spread.high:.{digits}f}]"


def printed_table(headers: Sequence[str], rows: Sequence[Sequence[str]], left: int = 1) -> str:
    """A table for a terminal; all columns but the first `left` are aligned to the right."""
    aligned = ["left"] * left + ["right"] * (len(headers) - left)
    return tabulate(rows, headers=headers, colalign=aligned if rows else None, disable_numparse=True)


def markdown_table(headers: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    return tabulate(rows, headers=headers, tablefmt="github", disable_numparse=True)


def general(reason: str) -> str:
    """The reason of a refusal without the numbers and names of one network, so that reasons can be counted."""
    reason = re.sub(r"\(.*?\)", "(...)", reason)
    reason = re.sub(r"(?<=the forward of )(the model itself|\S+)( \(\.\.\.\))?|(?<=parameters of )\S+", "M", reason)
    reason = re.sub(r"(for every input.*?\b(stops|goes on with|calls)|does not reach|, where)\b.*", r"\1 ...", reason)
    return re.sub(r"-?\d+(\.\d+)?(e[+-]?\d+)?", "N", reason)


def versions(*packages: str) -> str:
    """The packages that are installed, with their versions."""
    installed = []
    for package in packages:
        with suppress(metadata.PackageNotFoundError):
            installed.append(f"{package} {metadata.version(package)}")
    return ", ".join(installed)


def _program() -> list[str]:
    """The command that started this process, without its options."""
    spec = sys.modules["__main__"].__spec__
    return ["python", sys.argv[0]] if spec is None else ["python", "-m", spec.name.removesuffix(".__main__")]


def write_json(file: Path, given: argparse.Namespace, results: Sequence[dict[str, Any]]) -> None:
    """Writes the results with the command, the machine and the versions that they depend on."""
    content = {
        "command": shlex.join([*_program(), *sys.argv[1:]]),
        "python": platform.python_version(),
        "versions": versions("torch", "timm", "onnxruntime"),
        "machine": f"a CPU ({platform.machine()}, {torch.backends.cpu.get_cpu_capability()}, {os.cpu_count()} cores)",
        **{name: value for name, value in vars(given).items() if name in ("threads", "batch")},
        "results": list(results),
    }
    write_whole(file, json.dumps(content, indent=2) + "\n")


def write_whole(file: Path, text: str) -> None:
    """Writes a file whole or not at all: an interrupted run leaves the old one."""
    unfinished = file.with_name(f"{file.name}.unfinished")
    unfinished.write_text(text, encoding="utf-8")
    unfinished.replace(file)
