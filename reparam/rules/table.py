"""The table of rules: what each linear operation means in terms of the laws of `AffineConv`.

A rule is one function with the signature of the torch function that it stands for. It unpacks its arguments, refuses
what would not be exact, and says what the operation is. Modules have no rules of their own: a module is what it calls,
so `nn.BatchNorm2d`, `nn.SyncBatchNorm` and `F.batch_norm` are one entry, as are `x + y`, `x.add_(y)` and
`torch.add(x, y)`.
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
    """Tensors stacked along a new dimension `dim`. Only a sum or mean over that dimension makes a value of it."""

    items: tuple[AffineConv, ...]
    dim: int


# What a rule receives: an AffineConv, PendingBorder, Stack or Constant in the place of each tensor, all else unchanged.
Value: TypeAlias = Any
Result: TypeAlias = AffineConv | PendingBorder | Stack | View | Rearranged | tuple[AffineConv | Rearranged, ...]
RuleFunction: TypeAlias = Callable[..., Result]
Function = TypeVar("Function", bound=RuleFunction)


@dataclass(frozen=True)
class Case:
    """An example of a rule: a module, and the input it takes.

    smallest: the smallest length of each spatial axis that it takes; fixed: the only one.
    """

    module: nn.Module
    channels: int = 4
    spatial: int = 2
    smallest: int = 1
    channels_last: bool = False
    fixed: bool = False

    def input(self, batch: int, sizes: Sequence[int], generator: torch.Generator) -> Tensor:
        """A random float64 tensor with these lengths of the spatial axes, where the module takes them."""
        sizes = [self.smallest if self.fixed else max(size, self.smallest) for size in sizes[: self.spatial]]
        shape = (batch, *sizes, self.channels) if self.channels_last else (batch, self.channels, *sizes)
        return torch.randn(shape, generator=generator, dtype=torch.float64)


@dataclass(frozen=True)
class Rule:
    """One operation: its rule `apply`, and examples.

    name: in reports and docs.
    keys: the torch functions that it stands for, by the names of `capture.ops`.
    folds: modules that must become one value of their input, exactly.
    keeps: modules that must be refused, with a part of the reason.
    """

    name: str
    apply: RuleFunction
    signature: inspect.Signature
    keys: tuple[str, ...]
    folds: Callable[[], list[Case]]
    keeps: Callable[[], list[tuple[Case, str]]]

    @property
    def meaning(self) -> str:
        """What the operation is, in one sentence: the first line of the rule's docstring."""
        return inspect.cleandoc(self.apply.__doc__ or "").partition("\n")[0]

    def __call__(self, *args: Value, **kwargs: Value) -> Result:
        try:
            bound = self.signature.bind(*args, **kwargs)
        except TypeError as error:
            raise Refusal(f"no rule covers this way of calling it ({error})") from None
        return self.apply(*bound.args, **bound.kwargs)


RULES: dict[str, Rule] = {}


def rule(
    *keys: str, folds: Callable[[], list[Case]], keeps: Callable[[], list[tuple[Case, str]]]
) -> Callable[[Function], Function]:
    """Register a rule under the names of the torch functions that it stands for, with its examples (see `Rule`).

    Raises ValueError if a name has a rule already.
    """

    def register(function: Function) -> Function:
        entry = Rule(function.__name__, function, inspect.signature(function), keys, folds, keeps)
        for key in keys:
            if RULES.setdefault(key, entry) is not entry:
                raise ValueError(f"two rules for {key}")
        return function

    return register


# --- arguments of rules


def affine(x: Value) -> AffineConv:
    """The argument as a convolution. Raises Refusal if it is none."""
    if isinstance(x, AffineConv):
        return x
    if isinstance(x, PendingBorder):
        return x.resolve()
    raise Refusal("it reads something that is not a feature map")


def constant(x: Value, role: str) -> Constant:
    """The argument as a constant. Raises Refusal, which names its role, if it depends on the input."""
    if isinstance(x, Constant):
        return x
    raise Refusal(f"its {role} is computed from the input", f"a {role} computed from parameters alone would fold")


def optional_constant(x: Value, role: str) -> Constant | None:
    """`constant` for an argument that may be None."""
    return None if x is None else constant(x, role)


def as_ints(value: Value, count: int) -> list[int]:
    """`count` ints, given as an int, as a sequence of `count`, or as a sequence of one."""
    values: list[int] = list(value) if isinstance(value, (tuple, list)) else [value]
    return values * count if len(values) == 1 else values


def same_layout(x: AffineConv, y: AffineConv) -> tuple[AffineConv, AffineConv]:
    """Both in one layout: the anchor can be read in either, and takes that of the other."""
    if x.identity:
        return x.with_layout(len(y.axes)), y
    return x, y.with_layout(len(x.axes))


def channels_at(x: AffineConv, dim: int) -> AffineConv:
    """The same value with its channels on dimension `dim`. Raises Refusal if no layer reads them there."""
    rank = len(x.anchor.shape)
    if dim == rank - 1:
        return x.with_layout(0)
    if dim == 1 and rank <= 5:
        return x.with_layout(rank - 2)
    raise Refusal(f"it reads dimension {dim} of {rank} as channels, where no layer reads them")


def layout_for_constant(x: AffineConv, value: Value) -> AffineConv:
    """x; if it is the anchor, which can be read in either layout, with channels where the constant has entries."""
    if not x.identity or not isinstance(value, Constant):
        return x
    rank = len(x.anchor.shape)
    dims = [rank - len(value.shape) + i for i, size in enumerate(value.shape) if size != 1]
    return channels_at(x, dims[0]) if dims in ([1], [rank - 1]) else x


def per_channel(value: Value, x: AffineConv) -> Number:
    """A number or constant that broadcasts over `x` as one value per channel, float64: (out_channels,) or (1,).

    Raises Refusal if it holds anything else.
    """
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
            f"its constant of shape {given.shape} does not hold one value per channel ({x.out_channels} channels)",
            "a scalar, or one value per channel, would fold",
        )
    return Lazy(lambda: given.value().to(torch.float64).flatten())


def dimension(dim: int, x: AffineConv) -> int:
    """`dim`, counted from the front if it is negative."""
    return dim % len(x.anchor.shape)


def channel_dimension(x: AffineConv) -> int:
    """The dimension that holds the channels of x."""
    return 1 if x.axes else len(x.anchor.shape) - 1


class Op(nn.Module):
    """A module that calls `function(self, x)`: for examples of functions and methods.

    `modules` are at hand as `self.inner`, `tensors` as buffers.
    """

    def __init__(self, function: Callable[..., Any], *modules: nn.Module, **tensors: Tensor) -> None:
        super().__init__()
        self.function = function
        self.inner = nn.ModuleList(modules)
        for name, tensor in tensors.items():
            self.register_buffer(name, tensor)

    def forward(self, x: Tensor) -> Any:
        return self.function(self, x)
