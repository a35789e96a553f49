"""The random network of a seed."""

from __future__ import annotations

import random
from dataclasses import replace

import torch

# They fill the table of operations. Another order would draw other networks from the same seeds.
import benchmarks.fuzz.decisions
import benchmarks.fuzz.layers
import benchmarks.fuzz.spellings
import benchmarks.fuzz.structure  # noqa: F401
from benchmarks.fuzz.networks import Block, Program, fresh_module
from benchmarks.fuzz.operations import OPERATIONS, WEIGHTS
from benchmarks.fuzz.writer import ASSIGNED, VARIABLE, Draft, Writer

_LENGTHS = (1, 2, 3, 4, 6, 8, 10, 14)
_DTYPES = [torch.float64] * 18 + [torch.float32, torch.bfloat16]
_IDLE = 0.1  # the share of networks that keep lines whose results are not used


def draw_network(seed: int) -> Program:
    """The network of a seed; the seed decides about its length and dtype, too."""
    length = _LENGTHS[seed % len(_LENGTHS)]
    dtype = _DTYPES[seed // len(_LENGTHS) % len(_DTYPES)]
    torch.manual_seed(seed)
    rng = random.Random(seed)
    draft = Draft(rng, fresh_module())
    shapes = _input_shapes(rng)
    inputs = {name: torch.randn(shape, dtype=torch.float64) for name, shape in zip("xy", shapes, strict=False)}
    writer = Writer(draft, inputs)
    writer.write(OPERATIONS, WEIGHTS, length)
    program = Program((*draft.blocks, writer.block("Network", _result(writer))), shapes, dtype, seed)
    if rng.random() < _IDLE:
        return program
    return replace(program, blocks=tuple(map(_without_idle_lines, program.blocks)))


def _without_idle_lines(block: Block) -> Block:
    """A block without the lines whose results are not used: people seldom leave them."""
    lines: list[str] = []
    needed = set(VARIABLE.findall(block.result))
    for line in reversed(block.lines):
        match = ASSIGNED.match(line)
        if match is None or needed.intersection(match.group(1).split(", ")) or "self.kept" in line:
            lines.append(line)
            needed.update(VARIABLE.findall(line))
    return replace(block, lines=tuple(reversed(lines)))


def _input_shapes(rng: random.Random) -> tuple[tuple[int, ...], ...]:
    spatial = rng.choice([0, 1, 1, 2, 2, 2, 2, 2, 3])
    largest = {0: 1, 1: 12, 2: 9, 3: 5}[spatial]
    channels = rng.choice([1, 2, 3, 4, 4, 4, 6, 8])
    shape = (rng.choice([1, 2, 2, 3]), channels, *(rng.randint(1, largest) for _ in range(spatial)))
    return (shape, shape) if rng.random() < 0.15 else (shape,)


def _result(writer: Writer) -> str:
    """What the root returns: a tensor, a tuple or a dict."""
    names = [name for name in writer.values if name.startswith("t")] or list(writer.parameters)
    last = names[-1]
    form = writer.rng.random()
    if form < 0.7:
        return last
    others = writer.rng.sample(names, min(len(names), writer.rng.randint(1, 3)))
    if form < 0.9:
        return f"({', '.join(dict.fromkeys([last, *others]))},)"
    return "{" + ", ".join(f'"{name}": {name}' for name in dict.fromkeys([last, *others])) + "}"
