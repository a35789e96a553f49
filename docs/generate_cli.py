"""Writes docs/cli.md, the reference of the command line, from the output of `--help`.

python docs/generate_cli.py
"""

from __future__ import annotations

from pathlib import Path

import typer
from typer.testing import CliRunner

from reparam.cli import app

TARGET = Path(__file__).with_name("cli.md")
WIDTH = "80"

HEAD = """\
# The command line

What each command prints with `--help`. [On the command line](deploy.md#on-the-command-line) shows how the commands work
together, how to name models and weights, and what the exit codes mean. This page is written by
`python docs/generate_cli.py`.
"""


def document() -> str:
    """The text of docs/cli.md."""
    names = [command.name or command.callback.__name__ for command in app.registered_commands if command.callback]
    return HEAD + _section("reparam") + "".join(_section(f"reparam {name}", name) for name in names)


def _section(title: str, *arguments: str) -> str:
    printed = CliRunner().invoke(app, [*arguments, "--help"], prog_name="reparam", env={"COLUMNS": WIDTH})
    if printed.exit_code:
        raise typer.Exit(printed.exit_code) from printed.exception
    return f"\n## {title}\n\n```text\n{printed.output.strip()}\n```\n"


if __name__ == "__main__":
    TARGET.write_text(document(), encoding="utf-8")
