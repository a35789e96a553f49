"""The report as a file, in the form that the file's name asks for."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from reparam.compare.bench import Comparison
from reparam.deploy.files import require_writable, written
from reparam.errors import InputError
from reparam.report.report import Report

_FORMS: dict[str, Callable[[Report, Comparison | None], str]] = {
    ".html": Report.to_html,
    ".md": Report.to_markdown,
    ".json": Report.to_json,
}


def _form(path: Path) -> Callable[[Report, Comparison | None], str]:
    """What makes the text of a report of that name. Raises InputError, before any work is done, for an unknown form."""
    if path.suffix not in _FORMS:
        raise InputError(f"--report {path}: give it a name that ends in {', '.join(_FORMS)}")
    return _FORMS[path.suffix]


def writer(path: Path | None, force: bool) -> Callable[[Report, Comparison | None], list[str]]:
    """What writes the report and names the file. Raises InputError, before any work is done, for one that cannot be."""
    if path is None:
        return lambda report, latency: []
    text = _form(path)
    require_writable(path, force)

    def write(report: Report, latency: Comparison | None) -> list[str]:
        with written([path], force) as (draft,):
            draft.write_text(text(report, latency), encoding="utf-8")
        return [str(path)]

    return write
