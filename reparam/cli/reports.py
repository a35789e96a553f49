"""The report as a file, in the form that the file's name asks for."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from reparam.errors import InputError
from reparam.report import Report

_FORMS: dict[str, Callable[[Report], str]] = {
    ".html": Report.to_html,
    ".md": Report.to_markdown,
    ".json": Report.to_json,
}


def form(path: Path) -> Callable[[Report], str]:
    """What makes the text of a report of that name. Raises InputError, before any work is done, for an unknown form."""
    if path.suffix not in _FORMS:
        raise InputError(f"--report {path}: give it a name that ends in {', '.join(_FORMS)}")
    return _FORMS[path.suffix]
