"""Reports as files: the suffix chooses the format."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from reparam.compare.bench import Comparison
from reparam.deploy.files import require_writable, written
from reparam.errors import InputError
from reparam.report.report import Report

_FORMATS: dict[str, Callable[[Report, Comparison | None], str]] = {
    ".html": Report.to_html,
    ".md": Report.to_markdown,
    ".json": Report.to_json,
}


def _formatter(path: Path) -> Callable[[Report, Comparison | None], str]:
    """The function that formats a report for that suffix. Raises InputError for an unknown one."""
    if path.suffix not in _FORMATS:
        raise InputError(f"--report {path}: give it a name that ends in {', '.join(_FORMATS)}")
    return _FORMATS[path.suffix]


def report_writer(path: Path | None, force: bool) -> Callable[[Report, Comparison | None], list[str]]:
    """A function that writes a report and returns the path in a list, which is empty if `path` is None.

    Raises InputError where the report cannot be written, before any work is done.
    """
    if path is None:
        return lambda report, latency: []
    text = _formatter(path)
    require_writable(path, force)

    def write(report: Report, latency: Comparison | None) -> list[str]:
        with written([path], force) as (draft,):
            draft.write_text(text(report, latency), encoding="utf-8")
        return [str(path)]

    return write
