"""The proof that code does the same whichever way its branches on sizes go."""

from __future__ import annotations

from collections.abc import Collection

from torch import nn

from reparam.capture.graph import Call
from reparam.sizes import Scope
from reparam.trace import Trace


def follow(call: Call, opened: Collection[nn.Module]) -> None:
    """Trace the forward of a call along every way through its branches on sizes; each has to be what ran.

    Such code (a padding whose width depends on the size) cannot be rewritten, but what it calls can be exchanged.

    Raises Refusal where a way is another one, or there are too many.
    """
    ways: list[bool] = []
    exchanged = frozenset[Scope]()
    while True:
        exchanged = Trace(call, opened, ways=ways, exchanged=exchanged).exchanged
        while ways and not ways[-1]:
            ways.pop()
        if not ways:
            return
        ways[-1] = False
