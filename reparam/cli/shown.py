"""What a command prints: text for people or one JSON document for programs; a bar on stderr while it works."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable
from typing import Any

import typer

_WIDTH = 24


def show(data: dict[str, Any], parts: Iterable[object], as_json: bool) -> None:
    """The one or the other, on stdout."""
    if as_json:
        typer.echo(json.dumps(data, indent=2, allow_nan=False))
        return
    typer.echo("\n\n".join(str(part) for part in parts))


class Bar:
    """A bar over a known number of steps, each with its name, on stderr where that is a terminal."""

    def __init__(self, steps: int) -> None:
        self.steps = steps
        self.done = 0
        self.shown = sys.stderr.isatty()

    def __call__(self, step: str) -> None:
        """The next step begins."""
        if self.shown:
            full = round(_WIDTH * min(self.done / self.steps, 1))
            sys.stderr.write(f"\r\x1b[K[{'#' * full}{'.' * (_WIDTH - full)}] {step}")
            sys.stderr.flush()
        self.done += 1

    def __enter__(self) -> Bar:
        return self

    def __exit__(self, *error: object) -> None:
        if self.shown:
            sys.stderr.write("\r\x1b[K")
            sys.stderr.flush()
