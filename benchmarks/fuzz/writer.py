"""Writes the classes of a random network line by line.

Each line runs as soon as it is written, and a line that torch rejects is removed: every network runs, whatever geometry
was drawn.
"""

from __future__ import annotations

import random
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from types import ModuleType
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.fuzz.networks import Block

# Larger tensors and channel counts make a network slow and show nothing more.
_MOST_ELEMENTS = 3000
_MOST_CHANNELS = 12
_SMALLEST, _LARGEST = 1e-6, 1e4  # of max|y|

VARIABLE = re.compile(r"\b(?:t\d+|x|y)\b")
"""A variable of a forward."""
ASSIGNED = re.compile(r"^(t\d+(?:, t\d+)*) = ")
"""The variables that a line assigns."""


class NotApplicable(Exception):
    """The drawn operation does not apply to the drawn tensors; the writer goes on with another one."""


@dataclass
class Draft:
    """What the writers of all blocks of one network share: the random numbers, the compiled classes, their sources."""

    rng: random.Random
    module: ModuleType
    blocks: list[Block] = field(default_factory=list)


class Writer:
    """A block that is being written.

    values: the tensors that its lines have computed so far, by variable; instance: a module that the lines of the
    constructor have run on; callables: its modules, and the shape that each was called with.
    """

    def __init__(self, draft: Draft, inputs: dict[str, Tensor], depth: int = 0) -> None:
        self.draft = draft
        self.rng = draft.rng
        self.depth = depth
        self.parameters = tuple(inputs)
        self.values = dict(inputs)
        self.init: list[str] = []
        self.lines: list[str] = []
        self.callables: list[tuple[str, tuple[int, ...]]] = []
        self.instance = nn.Module().eval()
        self.counter = 0

    # What operations write with.

    def chance(self, probability: float) -> bool:
        return self.rng.random() < probability

    def _choose(self, texts: Sequence[str]) -> str:
        return texts[0] if len(texts) == 1 else self.rng.choice(texts)

    def name(self, kind: str) -> str:
        self.counter += 1
        return f"{kind}{self.counter}"

    def setup(self, *lines: str) -> None:
        """Write a line of the constructor and run it; of several, one is drawn."""
        line = self._choose(lines)
        exec(line, vars(self.draft.module), {"self": self.instance})
        self.instance.to(torch.float64).eval()
        self.init.append(line)

    def member(self, kind: str, constructor: str) -> str:
        """Set a module or tensor under a new name; returns how the forward spells it."""
        name = self.name(kind)
        self.setup(f"self.{name} = {constructor}")
        return f"self.{name}"

    def constant(self, shape: Sequence[int], positive: bool = False) -> str:
        """A parameter or a buffer of drawn numbers; returns how the forward spells it."""
        number = f"torch.rand({tuple(shape)}) + 0.5" if positive else f"torch.randn({tuple(shape)})"
        if self.chance(0.5):
            return self.member("c", f"nn.Parameter({number})")
        name = self.name("c")
        self.setup(f'self.register_buffer("{name}", {number})')
        return f"self.{name}"

    def line(self, *texts: str) -> None:
        """Write a line of the forward and run it; of several, one is drawn."""
        text = self._choose(texts)
        scope = {**vars(self.draft.module), **self.values, "self": self.instance}
        with torch.no_grad():
            exec(text, scope)
        match = ASSIGNED.match(text)
        self.values.update({name: scope[name] for name in match.group(1).split(", ")} if match else {})
        self.lines.append(text)

    def let(self, *expressions: str) -> str:
        """Assign an expression to a new variable and return its name; of several expressions, one is drawn."""
        name = self.name("t")
        self.line(f"{name} = {self._choose(expressions)}")
        return name

    def call(self, kind: str, constructor: str, x: str) -> str:
        """Set a module and call it on x; returns the variable of the result."""
        member = self.member(kind, constructor)
        self.callables.append((member, self.shape(x)))
        return self.let(f"{member}({x})")

    def shape(self, x: str) -> tuple[int, ...]:
        return tuple(self.values[x].shape)

    def pick(self, applies: Callable[[Tensor], bool] = lambda value: True) -> str:
        """A variable whose tensor fits, more often a late one."""
        candidates = [name for name, value in self.values.items() if applies(value)]
        if not candidates:
            raise NotApplicable
        return candidates[-1 - min(int(self.rng.expovariate(0.8)), len(candidates) - 1)]

    def pick_map(self) -> str:
        """A variable that holds a feature map."""
        return self.pick(lambda value: value.dim() >= 3)

    def pick_like(self, x: str) -> str:
        """Another variable of the same shape."""
        others = [name for name, value in self.values.items() if value.shape == self.values[x].shape and name != x]
        if not others:
            raise NotApplicable
        return self.rng.choice(others)

    # The whole block.

    def attempt(self, operation: Callable[[Writer], Any]) -> bool:
        """Write an operation; where torch rejects it, take back what it wrote and return False."""
        lists: tuple[list[Any], ...] = (self.init, self.lines, self.callables, self.draft.blocks)
        values, lengths = dict(self.values), [*map(len, lists)]
        try:
            operation(self)
            new = [value for name, value in self.values.items() if name not in values]
            if not all(map(_moderate, new)):
                raise NotApplicable
        except (
            NotApplicable,
            RuntimeError,
            ValueError,
            TypeError,
            IndexError,
            AssertionError,
            NotImplementedError,
            AttributeError,
        ):
            self.values = values
            for written, length in zip(lists, lengths, strict=True):
                del written[length:]
            return False
        return True

    def write(self, operations: Sequence[Callable[[Writer], Any]], weights: Sequence[float], count: int) -> None:
        for _ in range(count):
            self.attempt(self.rng.choices(operations, weights)[0])

    def result(self) -> tuple[str, int]:
        """What an inner block returns, and how many tensors that is."""
        names = [name for name in self.values if name.startswith("t")]
        if not names:
            raise NotApplicable
        if len(names) > 1 and self.chance(0.25):
            return f"{names[-1]}, {names[-2]}", 2
        return names[-1], 1

    def block(self, name: str, result: str) -> Block:
        return Block(name, self.parameters, tuple(self.init), tuple(self.lines), result)


def _moderate(value: Any) -> bool:
    if (
        not isinstance(value, Tensor)
        or not value.numel()
        or value.numel() > _MOST_ELEMENTS
        or not value.is_floating_point()
        or value.dim() > 5
    ):
        return False
    if value.dim() > 1 and value.shape[1] > _MOST_CHANNELS:
        return False
    return bool(value.isfinite().all()) and _SMALLEST < value.abs().max().item() < _LARGEST
