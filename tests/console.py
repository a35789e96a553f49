"""The command line as a test uses it: in this process or in one of its own, with what it printed and how it ended."""

from __future__ import annotations

import contextlib
import io
import json
import os
import subprocess
import sys
import tempfile
import traceback
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

import pytest

from reparam.cli import main

ROOT = Path(__file__).resolve().parents[1]

# What a user has in the folder where the command is run. The statistics are drawn: a fresh norm proves nothing.
NETWORK = """
import torch
from torch import nn

from reparam.nn import RepVGGBlock, draw_constants, draw_statistics


class Net(nn.Module):
    def __init__(self, width=8, classes=4):
        super().__init__()
        self.stem = RepVGGBlock(3, width, stride=2)
        self.body = nn.Sequential(RepVGGBlock(width, width), RepVGGBlock(width, width, groups=2))
        self.head = nn.Linear(width, classes)

    def forward(self, x):
        return self.head(self.body(self.stem(x)).mean((2, 3)))


def make(width=8, seed=0, classes=4):
    torch.manual_seed(seed)
    return draw_statistics(draw_constants(Net(width, classes)), seed=seed)


def fails():
    raise RuntimeError("no data set here")


def number():
    return 3


text = "not a model"
"""


@dataclass(frozen=True)
class Ended:
    """How a command ended and what it printed."""

    code: int
    out: str
    err: str

    def data(self) -> Any:
        """The one JSON document on stdout."""
        return json.loads(self.out)


def run(*arguments: str) -> Ended:
    """`reparam ARGUMENTS`. An exception that would be a traceback goes through."""
    out, err = io.StringIO(), io.StringIO()
    with (
        contextlib.redirect_stdout(out),
        contextlib.redirect_stderr(err),
        pytest.raises(SystemExit) as end,
    ):
        main(list(arguments))
    return Ended(int(end.value.code or 0), out.getvalue(), err.getvalue())


def refused(*arguments: str, code: int = 1) -> str:
    """What a command says that must fail: one line on stderr, nothing on stdout."""
    ended = run(*arguments)
    assert ended.code == code, ended
    assert not ended.out
    assert ended.err.startswith("reparam: ")
    assert ended.err.count("\n") == 1, ended.err
    return ended.err


class Commands:
    """Runs `reparam ARGUMENTS` in processes of their own, each forked off one that has imported torch already.

    A new process would do the same, and take two seconds more for its imports.
    """

    def __init__(self) -> None:
        self.server = subprocess.Popen(
            [sys.executable, "-c", "from tests.console import serve; serve()"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, "PYTHONPATH": str(ROOT)},
        )

    def run(self, *arguments: str) -> Ended:
        """The command in the current folder."""
        assert self.server.stdin is not None
        assert self.server.stdout is not None
        print(json.dumps([str(Path.cwd()), arguments]), file=self.server.stdin, flush=True)
        return Ended(**json.loads(self.server.stdout.readline()))


@contextlib.contextmanager
def commands() -> Iterator[Commands]:
    """A server of commands, which ends with the context."""
    serving = Commands()
    try:
        yield serving
    finally:
        serving.server.communicate()


def serve() -> None:
    """Answers every line on stdin, a folder and arguments, with how the command ended there."""
    for line in sys.stdin:
        folder, arguments = json.loads(line)
        with contextlib.ExitStack() as stack:
            out, err = (stack.enter_context(tempfile.TemporaryFile("w+")) for _ in range(2))
            child = os.fork()
            if child == 0:
                _become(folder, arguments, out.fileno(), err.fileno())
            _, status = os.waitpid(child, 0)
            ended = {"code": os.waitstatus_to_exitcode(status)}
            for name, stream in (("out", out), ("err", err)):
                stream.seek(0)
                ended[name] = stream.read()
        print(json.dumps(ended), flush=True)


def _become(folder: str, arguments: list[str], out: int, err: int) -> NoReturn:
    """Turns this process into `python -m reparam ARGUMENTS`."""
    os.dup2(out, 1)
    os.dup2(err, 2)
    os.close(0)
    code = 1
    try:
        os.chdir(folder)
        sys.path.insert(0, folder)
        main(arguments)
    except SystemExit as end:
        code = int(end.code or 0)
    except BaseException:  # noqa: BLE001 - a new process would print it, too
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
