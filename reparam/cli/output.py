"""What a command prints: text for people or a JSON document for programs, and a progress bar on stderr."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable
from typing import Any

import typer

from reparam.errors import visible

_WIDTH = 24  # characters


def show(data: dict[str, Any], parts: Iterable[object], as_json: bool) -> None:
    """Print the data as JSON, or the parts with blank lines between them, to stdout."""
    if as_json:
        typer.echo(json.dumps(data, indent=2, allow_nan=False))
        return
    typer.echo(visible("\n\n".join(str(part) for part in parts)))


class ProgressBar:
    """A bar over a known number of steps, with the name of the current one. It is shown if stderr is a terminal.

    Calling it begins the next step.
    """

    def __init__(self, steps: int) -> None:
        self.steps = steps
        self.done = 0
        self.visible = sys.stderr.isatty()

    def __call__(self, step: str) -> None:
        if self.visible:
            full = round(_WIDTH * min(self.done / self.steps, 1))
            sys.stderr.write(f"\r\x1b[K[{'#' * full}{'.' * (_WIDTH - full)}] {visible(step, keep='')}")
            sys.stderr.flush()
        self.done += 1

    def __enter__(self) -> ProgressBar:
        return self

    def __exit__(self, *error: object) -> None:
        if self.visible:
            sys.stderr.write("\r\x1b[K")
            sys.stderr.flush()
