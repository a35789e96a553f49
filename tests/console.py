"""The command line as a test uses it: run in this process, with what it printed and how it ended."""

from __future__ import annotations

import contextlib
import io
import json
from dataclasses import dataclass
from typing import Any

import pytest

from reparam.cli import main

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
