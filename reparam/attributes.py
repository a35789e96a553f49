"""Attributes that code sets on modules whose code it is not: what that code does may depend on them, unseen."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from torch import nn


@contextmanager
def watching(note: Callable[[nn.Module, str], None]) -> Iterator[None]:
    """Within it `note` is called with each module of which an attribute is set, and the attribute's name."""
    setting = nn.Module.__setattr__

    def noted(module: nn.Module, name: str, value: Any) -> None:
        note(module, name)
        setting(module, name, value)

    nn.Module.__setattr__ = noted  # type: ignore[method-assign, assignment]
    try:
        yield
    finally:
        nn.Module.__setattr__ = setting  # type: ignore[method-assign]
