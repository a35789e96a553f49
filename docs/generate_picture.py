"""Draws docs/figures/block.svg, the block of README.md before and after folding, as the report draws it.

python docs/generate_picture.py
"""

from __future__ import annotations

import io
import re
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any

from reparam.report.render import diagram

README = Path(__file__).resolve().parent.parent / "README.md"
STYLE = Path(diagram.__file__).with_name("page.css")
TARGET = Path(__file__).with_name("figures") / "block.svg"


def drawing() -> str:
    """The picture, as SVG that needs nothing else."""
    fold = _example()["deployed"].reparam_report.folds[-1]
    svg = diagram.diagram(fold)
    svg = svg.replace("<svg ", '<svg xmlns="http://www.w3.org/2000/svg" ', 1)
    return svg.replace("</title>", f"</title>\n{_style()}\n", 1) + "\n"


def _example() -> dict[str, Any]:
    """The names that README.md's first Python block defines."""
    code = re.search(r"^```python\n(.*?)^```$", README.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)
    assert code is not None
    names: dict[str, Any] = {"__name__": "readme"}
    with redirect_stdout(io.StringIO()):
        exec(code[1], names)
    return names


def _style() -> str:
    """What the style of the report's page says about diagrams: the colours, light and dark, and the shapes."""
    css = STYLE.read_text(encoding="utf-8")
    colours = css[: css.index("* {")]
    shapes = [line for line in css.splitlines() if re.match(r"(svg|\.block|\.box|\.sign)\b", line)]
    return "<style>\n" + colours + "\n".join(shapes) + "\n</style>"


if __name__ == "__main__":
    TARGET.write_text(drawing(), encoding="utf-8")
