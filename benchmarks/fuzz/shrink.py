"""Makes a failing network small."""

from __future__ import annotations

import re
import time
from collections.abc import Iterator
from dataclasses import replace

from benchmarks.fuzz.check import Failure, check
from benchmarks.fuzz.networks import Block, Program
from benchmarks.fuzz.writer import ASSIGNED, VARIABLE

_SECONDS = 60.0
_OPTION = re.compile(r", \w+=(?:\([^()]*\)|[^,()]+)(?=[,)])")


def shrink(program: Program, failure: Failure, seconds: float = _SECONDS) -> Program:
    """The smallest network that fails in the same way, as far as the search gets in the given time."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        for candidate in _candidates(program):
            outcome = check(candidate)
            if outcome.failure is not None and outcome.failure.kind == failure.kind:
                program = candidate
                break
            if time.monotonic() > deadline:
                return program
        else:
            return program
    return program


def _candidates(program: Program) -> Iterator[Program]:
    """Every program that is one step smaller; some of them do not run."""
    for i, block in enumerate(program.blocks):
        if block in program.used_blocks():
            for smaller in _smaller_blocks(block):
                yield replace(program, blocks=(*program.blocks[:i], smaller, *program.blocks[i + 1 :]))
    for i, shape in enumerate(program.shapes):
        for axis, size in enumerate(shape):
            if size > 1:
                smaller_shape = (*shape[:axis], size - 1, *shape[axis + 1 :])
                yield replace(program, shapes=(*program.shapes[:i], smaller_shape, *program.shapes[i + 1 :]))


def _smaller_blocks(block: Block) -> Iterator[Block]:
    for variable in dict.fromkeys(VARIABLE.findall(block.result)):
        if variable != block.result:
            yield replace(block, result=variable)
    for i in range(len(block.lines)):
        yield from _without_line(block, i)
    for i in range(len(block.init)):
        yield replace(block, init=(*block.init[:i], *block.init[i + 1 :]))
    for i, line in enumerate(block.init):
        for shorter in _without_options(line):
            yield replace(block, init=(*block.init[:i], shorter, *block.init[i + 1 :]))
    for i, line in enumerate(block.lines):
        for shorter in _without_options(line):
            yield replace(block, lines=(*block.lines[:i], shorter, *block.lines[i + 1 :]))


def _without_line(block: Block, i: int) -> Iterator[Block]:
    """The block without one line of its forward; what the line assigned is replaced by what it read."""
    line, before, after = block.lines[i], block.lines[:i], block.lines[i + 1 :]
    match = ASSIGNED.match(line)
    if match is None:
        yield replace(block, lines=(*before, *after))
        return
    targets = match.group(1).split(", ")
    for source in dict.fromkeys(VARIABLE.findall(line[match.end() :])):

        def substituted(text: str, source: str = source) -> str:
            return VARIABLE.sub(lambda variable: source if variable.group() in targets else variable.group(), text)

        yield replace(block, lines=(*before, *map(substituted, after)), result=substituted(block.result))


def _without_options(line: str) -> Iterator[str]:
    for match in _OPTION.finditer(line):
        yield line[: match.start()] + line[match.end() :]
