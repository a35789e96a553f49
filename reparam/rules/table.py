"""The table of rules: what every linear operation means in terms of the laws of `AffineConv`.

A rule is one function with the signature of the torch function it speaks for. It unpacks, refuses in plain words, and
says what the operation is. It sees no graph, no other rule and no border. Modules have no rules of their own: a module
is what it calls, so `nn.BatchNorm2d`, `nn.SyncBatchNorm` and `F.batch_norm` are one entry, as are `x + y`,
`x.add_(y)` and `torch.add(x, y)`.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias, TypeVar

import torch
from torch import Tensor, nn

from reparam.algebra.affine import AffineConv, Constant, Number, PendingBorder
from reparam.algebra.index_map import Rearranged
from reparam.algebra.lazy import Lazy
from reparam.algebra.views import View
from reparam.errors import Refusal


@dataclass(frozen=True)
class Stack:
    """Tensors of one shape stacked along a new dimension `dim`: it waits for the sum over that dimension."""

    items: tuple[AffineConv, ...]
    dim: int


# What a rule is handed: an AffineConv, PendingBorder, Stack or Constant where torch had a tensor, all else as torch had it.
Value: TypeAlias = Any
Result: TypeAlias = AffineConv | PendingBorder | Stack | View | Rearranged | tuple[AffineConv | Rearranged, ...]
RuleFunction: TypeAlias = Callable[..., Result]
Function = TypeVar("Function", bound=RuleFunction)


@dataclass(frozen=True)
class Case:
    """An example of a rule: a module, and the tensor it reads: channels, spatial axes, smallest legal length.

    fixed: the smallest length is the only legal one.
    """

    module: nn.Module
    channels: int = 4
    spatial: int = 2
    smallest: int = 1
    channels_last: bool = False
    fixed: bool = False

    def input(self, batch: int, sizes: Sequence[int], generator: torch.Generator) -> Tensor:
        """A drawn float64 tensor of `sizes` per spatial axis, as far as these are legal."""
        sizes = [self.smallest if self.fixed else max(size, self.smallest) for size in sizes[: self.spatial]]
        shape = (batch, *sizes, self.channels) if self.channels_last else (batch, self.channels, *sizes)
        return torch.randn(shape, generator=generator, dtype=torch.float64)


@dataclass(frozen=True)
class Rule:
    """One operation: its name in reports, what it is, and examples that fold or must be refused for a reason."""

    name: str
    apply: RuleFunction
    signature: inspect.Signature
    keys: tuple[str, ...]
    folds: Callable[[], list[Case]]
    keeps: Callable[[], list[tuple[Case, str]]]

    @property
    def meaning(self) -> str:
        """What the operation is, in one sentence."""
        return inspect.cleandoc(self.apply.__doc__ or "").partition("\n")[0]

    def __call__(self, *args: Value, **kwargs: Value) -> Result:
        try:
            bound = self.signature.bind(*args, **kwargs)
        except TypeError as error:
            raise Refusal(f"it is called in a way that has no rule ({error})") from None
        return self.apply(*bound.args, **bound.kwargs)


RULES: dict[str, Rule] = {}


def rule(
    *keys: str, folds: Callable[[], list[Case]], keeps: Callable[[], list[tuple[Case, str]]]
) -> Callable[[Function], Function]:
    """Register a rule under the names of the torch operations it speaks for, with its examples."""

    def register(function: Function) -> Function:
        entry = Rule(function.__name__, function, inspect.signature(function), keys, folds, keeps)
        for key in keys:
            if RULES.setdefault(key, entry) is not entry:
                raise ValueError(f"two rules for {key}")
        return function

    return register


# --- what rules ask of their arguments


def affine(x: Value) -> AffineConv:
    """The argument as a convolution, or a refusal."""
    if isinstance(x, AffineConv):
        return x
    if isinstance(x, PendingBorder):
        return x.resolve()
    raise Refusal("it reads something that is not a feature map")


def constant(x: Value, role: str) -> Constant:
    """The argument as a constant, or a refusal that names its role."""
    if isinstance(x, Constant):
        return x
    raise Refusal(f"its {role} is computed from the input", f"a {role} computed from parameters alone would fold")


def optional_constant(x: Value, role: str) -> Constant | None:
    """The same for an argument that may be None."""
    return None if x is None else constant(x, role)


def as_ints(value: Value, count: int) -> list[int]:
    """An int or a sequence of `count` ints (or of one), as torch spells geometry."""
    values: list[int] = list(value) if isinstance(value, (tuple, list)) else [value]
    return values * count if len(values) == 1 else values


def same_layout(x: AffineConv, y: AffineConv) -> tuple[AffineConv, AffineConv]:
    """Both in one layout: the anchor itself has none of its own and takes that of the other."""
    if x.identity:
        return x.with_layout(len(y.axes)), y
    return x, y.with_layout(len(x.axes))


def channels_at(x: AffineConv, dim: int) -> AffineConv:
    """The same value with its channels on dimension `dim`, if a layer can read them there."""
    rank = len(x.anchor.shape)
    if dim == rank - 1:
        return x.with_layout(0)
    if dim == 1 and rank <= 5:
        return x.with_layout(rank - 2)
    raise Refusal(f"it reads dimension {dim} of {rank} as channels, where no layer reads them")


def layout_for_constant(x: AffineConv, value: Value) -> AffineConv:
    """x; the anchor itself, which has no layout of its own, with channels where a constant has them."""
    if not x.identity or not isinstance(value, Constant):
        return x
    rank = len(x.anchor.shape)
    long = [rank - len(value.shape) + i for i, size in enumerate(value.shape) if size != 1]
    return channels_at(x, long[0]) if long in ([1], [rank - 1]) else x


def per_channel(value: Value, x: AffineConv) -> Number:
    """A number or constant that broadcasts over `x` as one value per channel: (out_channels,) or (1,), float64."""
    if isinstance(value, (bool, int, float)):
        return Lazy.of(torch.tensor([float(value)], dtype=torch.float64))
    if isinstance(value, PendingBorder):
        raise value.refusal
    given = constant(value, "factor or summand")
    position = len(given.shape) - 1 - len(x.axes)
    others = [size for i, size in enumerate(given.shape) if i != position]
    size = given.shape[position] if position >= 0 else 1
    if len(given.shape) > len(x.anchor.shape) or any(other != 1 for other in others) or size not in (1, x.out_channels):
        raise Refusal(
            f"a constant of shape {given.shape} does not hold one value per channel of {x.out_channels}",
            "a scalar, or one value per channel, would fold",
        )
    return Lazy(lambda: given.value().to(torch.float64).flatten())


def dimension(dim: int, x: AffineConv) -> int:
    """Dimension `dim` of x, counted from the front."""
    return dim % len(x.anchor.shape)


def channel_dimension(x: AffineConv) -> int:
    """The dimension that holds the channels of x."""
    return 1 if x.axes else len(x.anchor.shape) - 1


class Op(nn.Module):
    """A module that calls a function: what an example in functional or method form is written with."""

    def __init__(self, function: Callable[..., Any], *modules: nn.Module, **tensors: Tensor) -> None:
        super().__init__()
        self.function = function
        self.inner = nn.ModuleList(modules)
        for name, tensor in tensors.items():
            self.register_buffer(name, tensor)

    def forward(self, x: Tensor) -> Any:
        return self.function(self, x)
