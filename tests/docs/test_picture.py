"""The picture of README.md shows what its example folds."""

from __future__ import annotations

import runpy
from pathlib import Path
from xml.etree import ElementTree

ROOT = Path(__file__).resolve().parents[2]


def test_the_picture_of_the_block_is_current() -> None:
    generator = runpy.run_path(str(ROOT / "docs" / "generate_picture.py"))
    text = generator["drawing"]()
    assert (ROOT / "docs" / "figures" / "block.svg").read_text(encoding="utf-8") == text, (
        "run `python docs/generate_picture.py`"
    )
    ElementTree.fromstring(text)  # well-formed
