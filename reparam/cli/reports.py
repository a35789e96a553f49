"""The report as a file, in the form that the file's name asks for."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

from reparam.data import report_data
from reparam.errors import InputError
from reparam.report import Report

Writer = Callable[[Report, Path], object]


def _json(report: Report, path: Path) -> None:
    path.write_text(json.dumps(report_data(report), indent=1, allow_nan=False) + "\n", encoding="utf-8")


def _markdown(report: Report, path: Path) -> None:
    path.write_text(f"# Folded by reparam\n\n```text\n{report}\n```\n", encoding="utf-8")


_WRITERS: dict[str, Writer] = {".json": _json, ".md": _markdown}


def written_report(path: Path | None) -> Writer:
    """What writes a report of that name. Raises InputError, before any work is done, for an unknown form."""
    suffix = ".json" if path is None else path.suffix
    if suffix not in _WRITERS:
        raise InputError(f"--report {path}: give it a name that ends in {' or '.join(_WRITERS)}")
    return _WRITERS[suffix]
