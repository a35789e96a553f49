"""Forwards of format 1, which were text and are executed: a file that holds them must come from people you trust."""

from __future__ import annotations

import builtins
import math
import operator
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch

from reparam.errors import InputError

_HOMES: dict[str, Any] = {"": builtins, "math": math, "operator": operator}
_OBJECTS = {
    "torch": torch,
    "math": math,
    "operator": operator,
    "inf": math.inf,
    "nan": math.nan,
    "device": torch.device,
}


@dataclass(frozen=True)
class OldForward:
    """The text of a forward. objects: what its names stand for, each a name of Python's own library."""

    text: str
    objects: tuple[tuple[str, str], ...]

    @staticmethod
    def of(data: Mapping[str, Any]) -> OldForward:
        """From the `code` in a file."""
        return OldForward(str(data["text"]), tuple(dict(data["objects"]).items()))

    def forward(self) -> Callable[..., Any]:
        """The function that the text defines."""
        scope: dict[str, Any] = {"__builtins__": builtins, **_OBJECTS}
        for name, key in self.objects:
            home, _, own = key.rpartition(".")
            scope[name] = _OBJECTS.get(key) or getattr(_HOMES[home], own)
        try:
            exec(compile(self.text, "<forward of format 1>", "exec"), scope)
        except SyntaxError as error:
            raise InputError(f"a forward in the artefact is damaged: {error}; copy both files again") from error
        function: Callable[..., Any] = scope["forward"]
        return function
