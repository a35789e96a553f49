"""The results of the zoo: one row per network, one line of JSON per row."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

CONVERTED = "converted"
REFUSED = "refused as a whole"
WRONG = "wrong"
CRASHED = "crashed"
LATE = "out of time"
BROKEN = "does not run by itself"

Row = dict[str, Any]


def read(file: Path) -> list[Row]:
    """The rows of a file, the last one of each network; a line that was cut off is skipped."""
    rows: dict[tuple[str, str], Row] = {}
    for line in file.read_text(encoding="utf-8").splitlines() if file.exists() else []:
        try:
            row = json.loads(line)
        except ValueError:
            continue
        rows[row["set"], row["model"]] = row
    return list(rows.values())


def append(file: Path, row: Row) -> None:
    with file.open("a", encoding="utf-8") as out:  # one write, so that a line is there as a whole
        out.write(json.dumps(row) + "\n")


def any_failed(rows: Sequence[Row]) -> bool:
    """Whether a conversion is wrong or crashed."""
    return any(row["outcome"] in (WRONG, CRASHED) for row in rows)
