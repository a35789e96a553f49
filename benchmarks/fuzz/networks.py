"""Random networks as programs: real modules with a readable forward, that can be built, printed and made smaller.

A network is written line by line, and each line is run as it is written: what torch does not accept is taken back, so
whatever geometry was drawn, the network runs. The operations are those that fold and those that do not, as they stand
in people's code.
"""

from __future__ import annotations

import linecache
import random
import re
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from types import ModuleType
from typing import Any

import torch
from torch import Tensor, nn

from reparam.nn import draw_constants, draw_statistics

HEADER = """import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.utils import parametrizations, parametrize, spectral_norm, weight_norm


def halved(module, args, result):
    return result * 0.5


def shifted(module, args):
    return (args[0] + 1,)


def looked_at(module, args, result):
    return None


class Doubled(nn.Module):
    def forward(self, weight):
        return 2 * weight
"""
_HEADER = compile(HEADER, "<header>", "exec")

MODULE = "fuzzed_network"
_FILE = f"<{MODULE}>"

# A tensor or channel count beyond these makes a network slow and shows nothing more.
_ELEMENTS = 3000
_CHANNELS = 12
_LARGEST = 1e4
_IDLE = 0.1  # of the networks compute what nobody reads


@dataclass(frozen=True)
class Block:
    """One module class: what its constructor and its forward say, line by line, and what it returns."""

    name: str
    parameters: tuple[str, ...]
    init: tuple[str, ...]
    lines: tuple[str, ...]
    result: str

    def text(self) -> str:
        body = ["super().__init__()", *self.init]
        forward = [*self.lines, f"return {self.result}"]
        return "\n".join(
            [
                f"class {self.name}(nn.Module):",
                "    def __init__(self):",
                *(f"        {line}" for line in body),
                "",
                f"    def forward(self, {', '.join(self.parameters)}):",
                *(f"        {line}" for line in forward),
            ]
        )


@dataclass(frozen=True)
class Program:
    """A network: its classes (the last is the root), the shapes of its inputs, its dtype and a seed.

    One in six is converted for images of its own size alone.
    """

    blocks: tuple[Block, ...]
    shapes: tuple[tuple[int, ...], ...]
    dtype: torch.dtype = torch.float64
    seed: int = 0

    @property
    def fixed(self) -> bool:
        return self.seed // 7 % 6 == 0

    def used(self) -> tuple[Block, ...]:
        """The root and the classes that it needs."""
        wanted = {self.blocks[-1].name}
        for block in reversed(self.blocks):
            if block.name in wanted:
                wanted |= {name for line in block.init for name in re.findall(r"\b(Block\d+)\(\)", line)}
        return tuple(block for block in self.blocks if block.name in wanted)

    def text(self) -> str:
        """The source of the classes."""
        return "\n\n\n".join([HEADER, *(block.text() for block in self.used())]) + "\n"

    def script(self) -> str:
        """A program of its own that converts and verifies the network."""
        inputs = ", ".join(f"torch.randn({shape}, dtype={self.dtype})" for shape in self.shapes)
        used = "\n\n\n".join(block.text() for block in self.used())
        fixed = ", fixed_size=True" if self.fixed else ""
        names = [name for name in ("halved", "shifted", "looked_at", "Doubled") if name in used]
        header = HEADER if names else HEADER.partition("\n\n\n")[0]
        return "\n\n\n".join(
            [
                header.rstrip(),
                used,
                f"import reparam\n\ntorch.manual_seed({self.seed})\nmodel = Network().to({self.dtype}).eval()\n"
                f"reparam.nn.draw_statistics(reparam.nn.draw_constants(model, {self.seed}), {self.seed})\n"
                f"print(reparam.reparameterize(model, ({inputs},){fixed}).reparam_report)",
            ]
        )

    def built(self) -> tuple[nn.Module, tuple[Tensor, ...]]:
        """The network with drawn numbers, in eval, and drawn inputs."""
        module = loaded(self.text())
        torch.manual_seed(self.seed)
        model = module.Network().to(self.dtype).eval()
        draw_statistics(draw_constants(model, self.seed), self.seed)
        return model, self.inputs()

    def inputs(self, batch: int = 0, sizes: Sequence[int] = (0, 0, 0)) -> tuple[Tensor, ...]:
        """Drawn inputs, by so many larger than the example."""
        generator = torch.Generator().manual_seed(self.seed)
        return tuple(
            torch.randn(_grown(shape, batch, sizes), generator=generator, dtype=torch.float64).to(self.dtype)
            for shape in self.shapes
        )


def _grown(shape: tuple[int, ...], batch: int, sizes: Sequence[int]) -> tuple[int, ...]:
    spatial = shape[2:] if len(shape) > 2 else ()
    return (
        max(shape[0] + batch, 0),
        *shape[1:2],
        *(max(size + more, 0) for size, more in zip(spatial, sizes, strict=False)),
    )


def loaded(text: str) -> Any:
    """The source as an imported module, so that tracing, pickling and error messages find its code."""
    module = ModuleType(MODULE)
    module.__file__ = _FILE
    sys.modules[MODULE] = module
    linecache.cache[_FILE] = (len(text), None, text.splitlines(keepends=True), _FILE)
    exec(compile(text, _FILE, "exec"), vars(module))
    return module


# --- making programs smaller


_VARIABLE = re.compile(r"\b(?:t\d+|x|y)\b")
_TARGETS = re.compile(r"^(t\d+(?:, t\d+)*) = ")
_OPTION = re.compile(r", \w+=(?:\([^()]*\)|[^,()]+)(?=[,)])")


def smaller(program: Program) -> Iterator[Program]:
    """Every program that is one step smaller; not all of them run."""
    for at, block in enumerate(program.blocks):
        if block in program.used():
            for less in _smaller_blocks(block):
                yield Program(
                    (*program.blocks[:at], less, *program.blocks[at + 1 :]), program.shapes, program.dtype, program.seed
                )
    for i, shape in enumerate(program.shapes):
        for axis, size in enumerate(shape):
            if size > 1:
                less_shape = (*shape[:axis], size - 1, *shape[axis + 1 :])
                shapes = (*program.shapes[:i], less_shape, *program.shapes[i + 1 :])
                yield Program(program.blocks, shapes, program.dtype, program.seed)


def _smaller_blocks(block: Block) -> Iterator[Block]:
    def edited(
        init: Sequence[str] = block.init, lines: Sequence[str] = block.lines, result: str = block.result
    ) -> Block:
        return Block(block.name, block.parameters, tuple(init), tuple(lines), result)

    for variable in dict.fromkeys(_VARIABLE.findall(block.result)):
        if variable != block.result:
            yield edited(result=variable)
    for at in range(len(block.lines)):
        yield from (edited(lines=lines, result=result) for lines, result in _without(block, at))
    for at in range(len(block.init)):
        yield edited(init=[*block.init[:at], *block.init[at + 1 :]])
    for at, line in enumerate(block.init):
        yield from (edited(init=[*block.init[:at], less, *block.init[at + 1 :]]) for less in _without_options(line))
    for at, line in enumerate(block.lines):
        yield from (edited(lines=[*block.lines[:at], less, *block.lines[at + 1 :]]) for less in _without_options(line))


def _without(block: Block, at: int) -> Iterator[tuple[list[str], str]]:
    """The forward without one line, whose targets are replaced by what it read."""
    line, before, after = block.lines[at], list(block.lines[:at]), list(block.lines[at + 1 :])
    match = _TARGETS.match(line)
    if match is None:
        yield [*before, *after], block.result
        return
    targets = match.group(1).split(", ")
    for source in dict.fromkeys(_VARIABLE.findall(line[match.end() :])):

        def replaced(text: str, source: str = source) -> str:
            return _VARIABLE.sub(lambda found: source if found.group() in targets else found.group(), text)

        yield [*before, *map(replaced, after)], replaced(block.result)


def _without_options(line: str) -> Iterator[str]:
    for match in _OPTION.finditer(line):
        yield line[: match.start()] + line[match.end() :]


# --- writing programs


class Unfit(Exception):
    """What was drawn does not go together; something else is drawn."""


@dataclass
class Session:
    """What the writers of all blocks of one network share."""

    draw: random.Random
    module: ModuleType
    blocks: list[Block] = field(default_factory=list)


class Writer:
    """One block being written. `values` are the tensors that its lines have computed so far."""

    def __init__(self, session: Session, inputs: dict[str, Tensor], depth: int = 0) -> None:
        self.session = session
        self.draw = session.draw
        self.depth = depth
        self.parameters = tuple(inputs)
        self.values = dict(inputs)
        self.init: list[str] = []
        self.lines: list[str] = []
        self.callables: list[tuple[str, tuple[int, ...]]] = []
        self.holder = nn.Module().eval()
        self.counter = 0

    # what operations write with

    def chance(self, probability: float) -> bool:
        return self.draw.random() < probability

    def _one(self, texts: Sequence[str]) -> str:
        return texts[0] if len(texts) == 1 else self.draw.choice(texts)

    def name(self, kind: str) -> str:
        self.counter += 1
        return f"{kind}{self.counter}"

    def setup(self, *lines: str) -> None:
        """A line of the constructor, or one of several."""
        line = self._one(lines)
        exec(line, vars(self.session.module), {"self": self.holder})
        self.holder.to(torch.float64).eval()
        self.init.append(line)

    def member(self, kind: str, constructor: str) -> str:
        """A module or tensor under a new name; how the forward spells it."""
        name = self.name(kind)
        self.setup(f"self.{name} = {constructor}")
        return f"self.{name}"

    def constant(self, shape: Sequence[int], positive: bool = False) -> str:
        """A parameter, a buffer or a plain tensor of drawn numbers."""
        number = f"torch.rand({tuple(shape)}) + 0.5" if positive else f"torch.randn({tuple(shape)})"
        if self.chance(0.5):
            return self.member("c", f"nn.Parameter({number})")
        name = self.name("c")
        self.setup(f'self.register_buffer("{name}", {number})')
        return f"self.{name}"

    def line(self, *texts: str) -> None:
        """A line of the forward, run at once, or one of several."""
        text = self._one(texts)
        scope = {**vars(self.session.module), **self.values, "self": self.holder}
        with torch.no_grad():
            exec(text, scope)
        match = _TARGETS.match(text)
        self.values.update({name: scope[name] for name in match.group(1).split(", ")} if match else {})
        self.lines.append(text)

    def let(self, *expressions: str) -> str:
        """A new variable, by an expression or one of several."""
        name = self.name("t")
        self.line(f"{name} = {self._one(expressions)}")
        return name

    def call(self, kind: str, constructor: str, x: str) -> str:
        """A module of its own, called once."""
        member = self.member(kind, constructor)
        self.callables.append((member, self.shape(x)))
        return self.let(f"{member}({x})")

    def shape(self, x: str) -> tuple[int, ...]:
        return tuple(self.values[x].shape)

    def any(self, fits: Callable[[Tensor], bool] = lambda value: True) -> str:
        """A variable, rather a late one."""
        fitting = [name for name, value in self.values.items() if fits(value)]
        if not fitting:
            raise Unfit
        return fitting[-1 - min(int(self.draw.expovariate(0.8)), len(fitting) - 1)]

    def map(self) -> str:
        """A feature map."""
        return self.any(lambda value: value.dim() >= 3)

    def like(self, x: str) -> str:
        """Another variable of the same shape."""
        others = [name for name, value in self.values.items() if value.shape == self.values[x].shape and name != x]
        if not others:
            raise Unfit
        return self.draw.choice(others)

    # the whole

    def attempt(self, operation: Callable[[Writer], Any]) -> bool:
        """Write an operation, or nothing where torch does not accept it."""
        written: tuple[list[Any], ...] = (self.init, self.lines, self.callables, self.session.blocks)
        values, marks = dict(self.values), [*map(len, written)]
        try:
            operation(self)
            new = [value for name, value in self.values.items() if name not in values]
            if not all(map(_moderate, new)):
                raise Unfit
        except (
            Unfit,
            RuntimeError,
            ValueError,
            TypeError,
            IndexError,
            AssertionError,
            NotImplementedError,
            AttributeError,
        ):
            self.values = values
            for made, mark in zip(written, marks, strict=True):
                del made[mark:]
            return False
        return True

    def write(self, operations: Sequence[Callable[[Writer], Any]], weights: Sequence[float], count: int) -> None:
        for _ in range(count):
            self.attempt(self.draw.choices(operations, weights)[0])

    def block(self, name: str, result: str) -> Block:
        return Block(name, self.parameters, tuple(self.init), tuple(self.lines), result)


def _moderate(value: Any) -> bool:
    if (
        not isinstance(value, Tensor)
        or not value.numel()
        or value.numel() > _ELEMENTS
        or not value.is_floating_point()
        or value.dim() > 5
    ):
        return False
    if value.dim() > 1 and value.shape[1] > _CHANNELS:
        return False
    return bool(value.isfinite().all()) and 1e-6 < value.abs().max().item() < _LARGEST


def fresh_module() -> ModuleType:
    """A module that holds what every network may use."""
    module = ModuleType(MODULE)
    sys.modules[MODULE] = module
    exec(_HEADER, vars(module))
    return module


def network(
    seed: int, operations: Sequence[Callable[[Writer], Any]], weights: Sequence[float], dtype: torch.dtype, length: int
) -> Program:
    """A random network of up to `length` operations."""
    torch.manual_seed(seed)
    draw = random.Random(seed)
    session = Session(draw, fresh_module())
    shapes = _input_shapes(draw)
    inputs = {name: torch.randn(shape, dtype=torch.float64) for name, shape in zip("xy", shapes, strict=False)}
    writer = Writer(session, inputs)
    writer.write(operations, weights, length)
    program = Program((*session.blocks, writer.block("Network", _result(writer))), shapes, dtype, seed)
    if draw.random() < _IDLE:
        return program
    return replace(program, blocks=tuple(map(_without_idle_lines, program.blocks)))


def _without_idle_lines(block: Block) -> Block:
    """A block without the lines whose results nobody reads, as people seldom leave them."""
    lines: list[str] = []
    wanted = set(_VARIABLE.findall(block.result))
    for line in reversed(block.lines):
        match = _TARGETS.match(line)
        if match is None or wanted.intersection(match.group(1).split(", ")) or line.count("self.kept"):
            lines.append(line)
            wanted.update(_VARIABLE.findall(line))
    return replace(block, lines=tuple(reversed(lines)))


def _input_shapes(draw: random.Random) -> tuple[tuple[int, ...], ...]:
    spatial = draw.choice([0, 1, 1, 2, 2, 2, 2, 2, 3])
    largest = {0: 1, 1: 12, 2: 9, 3: 5}[spatial]
    channels = draw.choice([1, 2, 3, 4, 4, 4, 6, 8])
    shape = (draw.choice([1, 2, 2, 3]), channels, *(draw.randint(1, largest) for _ in range(spatial)))
    return (shape, shape) if draw.random() < 0.15 else (shape,)


def _result(writer: Writer) -> str:
    names = [name for name in writer.values if name.startswith("t")] or list(writer.parameters)
    last = names[-1]
    form = writer.draw.random()
    if form < 0.7:
        return last
    others = writer.draw.sample(names, min(len(names), writer.draw.randint(1, 3)))
    if form < 0.9:
        return f"({', '.join(dict.fromkeys([last, *others]))},)"
    return "{" + ", ".join(f'"{name}": {name}' for name in dict.fromkeys([last, *others])) + "}"


def block_result(writer: Writer) -> tuple[str, int]:
    """What an inner block returns, and how many tensors that is."""
    names = [name for name in writer.values if name.startswith("t")]
    if not names:
        raise Unfit
    if len(names) > 1 and writer.chance(0.25):
        return f"{names[-1]}, {names[-2]}", 2
    return names[-1], 1
