"""Random networks as programs: module classes with a readable forward that can be built, printed and saved.

A `Program` is text: it is compiled into a real module, so that a conversion traces, pickles and rewrites it as it does
a user's code. `script` prints it as a program of its own that shows one failure.
"""

from __future__ import annotations

import linecache
import re
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from types import ModuleType
from typing import Any

import torch
from torch import Tensor, nn

from reparam.nn import draw_constants, draw_statistics

HEADER = """import contextvars
import dataclasses
import functools
import math
import weakref

import numpy
import torch
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


def exists(value):
    return value is not None


def default(value, other):
    return value if exists(value) else other


class Note:
    said = None


NOTE, NOTES, STACK, KEPT = Note(), {}, [], weakref.WeakKeyDictionary()
TOLD = contextvars.ContextVar("told", default=None)


@functools.lru_cache
def larger(size, than):
    return size > than


@dataclasses.dataclass
class Sizes:
    last: int


def pixels(x):
    yield from x.shape[2:]


def at_most(size, most):
    try:
        if size > most:
            raise ValueError
    except ValueError:
        return False
    return True


def matched(size):
    match size:
        case 1 | 2 | 3:
            return False
        case _:
            return True


def remembered(size, known=[]):
    known.append(size)
    return known.pop()


class Optional(nn.Module):
    def __init__(self, inner):
        super().__init__()
        self.inner = inner

    def forward(self, x, mask=None, flag=True):
        return self.inner(x) if exists(mask) and flag else x


class HandingOn(nn.Module):
    def __init__(self, inner):
        super().__init__()
        self.inner = inner

    def forward(self, x, *args, **kwargs):
        if kwargs.get("n") or len(args) > 2:
            return x
        return self.inner(x, *args, **kwargs)
"""
_IMPORTS = HEADER.partition("\n\n\n")[0]
_HELPERS = re.findall(r"^(?:def |class )?(\w+)(?=[(:,]| =)", HEADER, re.MULTILINE)
_HELPERS += ["NOTES", "STACK", "KEPT"]
_COMPILED_HEADER = compile(HEADER, "<header>", "exec")

TO_ONE = -100  # in the place of what is added to a size: the size becomes 1
MODULE = "fuzzed_network"
_FILE = f"<{MODULE}>"


@dataclass(frozen=True)
class Block:
    """One module class: the lines of its constructor, the lines of its forward, and the expression that it returns."""

    name: str
    parameters: tuple[str, ...]
    init: tuple[str, ...]
    lines: tuple[str, ...]
    result: str

    def source(self) -> str:
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
    """A network: its classes, of which the last is the root, the shapes of its inputs, and the seed of its weights."""

    blocks: tuple[Block, ...]
    shapes: tuple[tuple[int, ...], ...]
    dtype: torch.dtype = torch.float64
    seed: int = 0

    @property
    def fixed_size(self) -> bool:
        """Whether it is converted with `fixed_size=True`, as one network in six is."""
        return self.seed // 7 % 6 == 0

    def used_blocks(self) -> tuple[Block, ...]:
        """The root and the classes that it needs."""
        needed = {self.blocks[-1].name}
        for block in reversed(self.blocks):
            if block.name in needed:
                needed |= {name for line in block.init for name in re.findall(r"\b(Block\d+)\(\)", line)}
        return tuple(block for block in self.blocks if block.name in needed)

    def source(self) -> str:
        """The source of the classes."""
        return "\n\n\n".join([HEADER, *(block.source() for block in self.used_blocks())]) + "\n"

    def script(self) -> str:
        """A program of its own that converts and verifies the network."""
        inputs = ", ".join(f"torch.randn({shape}, dtype={self.dtype})" for shape in self.shapes)
        classes = "\n\n\n".join(block.source() for block in self.used_blocks())
        fixed = ", fixed_size=True" if self.fixed_size else ""
        header = HEADER if any(re.search(rf"\b{name}\b", classes) for name in _HELPERS) else _IMPORTS
        return "\n\n\n".join(
            [
                header.rstrip(),
                classes,
                f"import reparam\n\ntorch.manual_seed({self.seed})\nmodel = Network().to({self.dtype}).eval()\n"
                f"reparam.nn.draw_statistics(reparam.nn.draw_constants(model, {self.seed}), {self.seed})\n"
                f"print(reparam.reparameterize(model, ({inputs},){fixed}).reparam_report)",
            ]
        )

    def build(self) -> tuple[nn.Module, tuple[Tensor, ...]]:
        """The network in eval mode with drawn weights and statistics, and its drawn inputs."""
        module = load_source(self.source())
        torch.manual_seed(self.seed)
        model = module.Network().to(self.dtype).eval()
        draw_statistics(draw_constants(model, self.seed), self.seed)
        return model, self.inputs()

    def inputs(self, batch: int = 0, sizes: Sequence[int] = (0, 0, 0)) -> tuple[Tensor, ...]:
        """Drawn inputs: those of the example, or with so many more images and so many more pixels along each axis.

        `TO_ONE` in the place of such a number: one image, or one pixel.
        """
        generator = torch.Generator().manual_seed(self.seed)
        return tuple(
            torch.randn(_enlarged(shape, batch, sizes), generator=generator, dtype=torch.float64).to(self.dtype)
            for shape in self.shapes
        )


def _enlarged(shape: tuple[int, ...], batch: int, sizes: Sequence[int]) -> tuple[int, ...]:
    spatial = shape[2:] if len(shape) > 2 else ()
    return (_longer(shape[0], batch), *shape[1:2], *map(_longer, spatial, sizes))


def _longer(size: int, more: int) -> int:
    return 1 if more == TO_ONE else max(size + more, 0)


def load_source(text: str) -> Any:
    """The source as an imported module, so that tracing, pickling and error messages find its code."""
    module = ModuleType(MODULE)
    module.__file__ = _FILE
    sys.modules[MODULE] = module
    linecache.cache[_FILE] = (len(text), None, text.splitlines(keepends=True), _FILE)
    exec(compile(text, _FILE, "exec"), vars(module))
    return module


def fresh_module() -> ModuleType:
    """A module that holds what every network may use."""
    module = ModuleType(MODULE)
    sys.modules[MODULE] = module
    exec(_COMPILED_HEADER, vars(module))
    return module
