"""Every code block of README.md and docs/*.md runs, and prints what the document says it prints.

- `python` blocks run in order, those of one document in one namespace.
- `bash` lines and `console` lines after `$ ` that begin with `reparam ` run as commands; others are left alone.
- A `text` block under `<!-- output -->` is what the block before it prints, up to white space; `...` stands for
  anything.
- Under `<!-- fails -->` every command of a `console` block must fail; what it says on stderr counts as printed.
- Under `<!-- output: measured -->`, and in a `console` block, a number with a decimal point or an exponent stands for
  any other, and so does a rule of dashes: times and errors differ between machines, words and counts do not.

All blocks of a document run in one empty folder, so that one may write a file that the next one reads.
"""

from __future__ import annotations

import contextlib
import doctest
import io
import re
import runpy
import shlex
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from unittest import mock

import pytest

from reparam.rules import RULES
from tests.console import Commands, commands

ROOT = Path(__file__).resolve().parents[2]
README = ROOT / "README.md"
DOCUMENTS = [file for file in (README, *sorted((ROOT / "docs").glob("*.md"))) if file.exists()]

BLOCK = re.compile(
    r"(?:^<!-- (?P<marker>[^\n]*) -->\n+)?^```(?P<language>\w+)\n(?P<text>.*?)^```$", re.MULTILINE | re.DOTALL
)
MEASURED = re.compile(r"[+-]?\d+(\.\d+(e[+-]?\d+)?|e[+-]?\d+)|-{2,}")
LOOSELY = doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE


@dataclass(frozen=True)
class CodeBlock:
    language: str
    marker: str
    text: str
    line: int  # of its first line in the document, from 0


def blocks(document: Path) -> list[CodeBlock]:
    text = document.read_text(encoding="utf-8")
    return [
        CodeBlock(match["language"], match["marker"] or "", match["text"], text.count("\n", 0, match.start("text")))
        for match in BLOCK.finditer(text)
    ]


def run_python(block: CodeBlock, document: Path, module: ModuleType) -> str:
    """What the block prints. Line numbers of a traceback are those of the document."""
    source = "\n" * block.line + block.text
    with contextlib.redirect_stdout(io.StringIO()) as printed:
        exec(compile(source, str(document), "exec"), vars(module))
    return printed.getvalue()


def run_command(server: Commands, line: str, fails: bool = False) -> str:
    """What `reparam ...` prints on the files of this checkout; where it must fail, on stderr too."""
    done = server.run(*shlex.split(line)[1:])
    assert bool(done.code) == fails, f"{line}\n{done.err}"
    assert fails or not done.err, f"{line} warns:\n{done.err}"
    return done.out + done.err


def run_console(server: Commands, block: CodeBlock, where: str) -> None:
    """Every `$ reparam ...` of the block, against the lines below it."""
    for session in re.split(r"^\$ ", block.text, flags=re.MULTILINE)[1:]:
        line, _, expected = session.partition("\n")
        if line.startswith("reparam "):
            printed = run_command(server, line, fails=block.marker == "fails")
            if expected.strip():
                compare_output(printed, expected, where, measured=True)


def compare_output(printed: str, expected: str, where: str, measured: bool) -> None:
    if measured:
        printed, expected = (MEASURED.sub("#", text) for text in (printed, expected))
    alike = doctest.OutputChecker().check_output(expected.strip() + "\n", printed.strip() + "\n", LOOSELY)
    assert alike, f"{where} says\n{expected}\nbut what is printed is\n{printed}"


def run(server: Commands, document: Path, module: ModuleType) -> None:
    """Every block of the document, in order, against what it says."""
    printed = ""
    for block in blocks(document):
        where = f"{document.name}:{block.line + 1}"
        if block.language == "python":
            printed = run_python(block, document, module)
        elif block.language == "bash":
            printed = "".join(
                run_command(server, line) for line in block.text.splitlines() if line.startswith("reparam ")
            )
        elif block.language == "console":
            run_console(server, block, where)
        elif block.marker.startswith("output"):
            compare_output(printed, block.text, where, measured=block.marker == "output: measured")


@pytest.fixture(scope="module")
def server() -> Iterator[Commands]:
    with commands() as serving:
        yield serving


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda file: file.name)
def test_code_blocks_print_what_the_document_says(
    server: Commands, document: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    module = ModuleType("document")
    monkeypatch.setitem(sys.modules, module.__name__, module)  # where pickle and dataclasses look for its classes
    monkeypatch.setattr(sys, "path", [*sys.path])
    monkeypatch.setitem(sys.modules, "mynet", module)
    monkeypatch.delitem(sys.modules, "mynet")  # a document writes its own; other tests have theirs, before and after
    with mock.patch.dict(RULES):  # a document may add a rule; the other tests do not know it
        run(server, document, module)


@pytest.mark.skipif(not README.exists(), reason="there is no README yet")
def test_the_readme_shows_an_example() -> None:
    assert any(block.language == "python" for block in blocks(README))


def test_the_reference_of_the_command_line_is_current() -> None:
    generator = runpy.run_path(str(ROOT / "docs" / "generate_cli.py"))
    assert (ROOT / "docs" / "cli.md").read_text(encoding="utf-8") == generator["document"]()


def test_a_wrong_output_fails(tmp_path: Path) -> None:
    document = tmp_path / "wrong.md"
    document.write_text("```python\nprint(1 + 1, 0.25)\n```\n\n<!-- output: measured -->\n```text\n3 0.5\n```\n")
    code, output = blocks(document)
    printed = run_python(code, document, ModuleType("document"))
    compare_output(printed, "2 1.5e-3", "here", measured=True)
    compare_output(printed, "2 ...", "here", measured=False)
    with pytest.raises(AssertionError, match="what is printed"):
        compare_output(printed, output.text, "here", measured=True)
    with pytest.raises(AssertionError, match="what is printed"):
        compare_output(printed, "2 0.5", "here", measured=False)
