"""The pictures that scripts draw are current."""

from __future__ import annotations

import runpy
from pathlib import Path
from xml.etree import ElementTree

import pytest

DOCS = Path(__file__).resolve().parents[2] / "docs"


@pytest.mark.parametrize("script", ["generate_architecture.py", "generate_picture.py"])
def test_a_picture_is_what_its_script_draws(script: str) -> None:
    generator = runpy.run_path(str(DOCS / script))
    text = generator["drawing"]()
    ElementTree.fromstring(text)  # well-formed
    assert generator["TARGET"].read_text(encoding="utf-8") == text, f"run `python docs/{script}`"
