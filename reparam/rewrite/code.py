"""A module with a new forward.

The instance keeps its attributes and methods. Its class becomes a subclass with the same name and one method, so
`isinstance` holds. It pickles and deep-copies by the program of that method, whose text its attribute `code` shows.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable
from functools import cache
from typing import Any, Protocol, cast

from torch import nn


class Forward(Hashable, Protocol):
    """What a module can be given as its forward: a `Program`, or the text of an old file."""

    @property
    def text(self) -> str: ...

    def forward(self) -> Callable[..., Any]: ...


def set_forward(module: nn.Module, code: Forward) -> None:
    """Give one instance a new forward."""
    base = getattr(type(module), "_rewritten_from", type(module))
    module.__class__ = _subclass(cast(Hashable, base), code)


def forward_of(module: nn.Module) -> Forward | None:
    """The forward that `set_forward` gave an instance; None if it has that of its class."""
    code: Forward | None = getattr(type(module), "_rewritten_code", None)
    return code


@cache
def _subclass(base: type[nn.Module], code: Forward) -> type[nn.Module]:
    def reduce_ex(self: nn.Module, protocol: Any) -> Any:
        return _new_instance, (base, code), self.__dict__

    members = {
        "forward": code.forward(),
        "code": code.text,
        "_rewritten_code": code,
        "_rewritten_from": base,
        "__reduce_ex__": reduce_ex,
        "__module__": base.__module__,
        "__qualname__": base.__qualname__,
        "__doc__": base.__doc__,
    }
    subclass: type[nn.Module] = type(base.__name__, (base,), members)
    return subclass


def _new_instance(base: type[nn.Module], code: Forward) -> nn.Module:
    subclass = _subclass(cast(Hashable, base), code)
    module: nn.Module = subclass.__new__(subclass)
    return module
