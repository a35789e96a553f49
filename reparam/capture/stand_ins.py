"""Functions that stand in for others wherever code knows these by name: no torch function mode sees them called."""

from __future__ import annotations

import sys
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from reparam.capture.process import PROCESS


class Names:
    """The names by which files know functions: those of all files but torch's own, apart from `homes`.

    They are looked up once, and again where files were imported since.
    """

    def __init__(self, homes: Collection[str]) -> None:
        self._homes = homes
        self._searched: tuple[int, frozenset[int]] = (0, frozenset())
        self._places: list[tuple[dict[str, Any], str, Any]] = []

    @contextmanager
    def replaced(self, stand_ins: Mapping[Callable[..., Any], Callable[..., Any]]) -> Iterator[None]:
        """Within it the values of `stand_ins` stand in for its keys, in the whole process."""
        with PROCESS:
            search = len(sys.modules), frozenset(map(id, stand_ins))
            if search != self._searched:
                self._searched, self._places = search, list(self._search(search[1]))
            for scope, name, function in self._places:
                scope[name] = stand_ins[function]
            try:
                yield
            finally:
                for scope, name, function in self._places:
                    scope[name] = function

    def _search(self, ids: frozenset[int]) -> Iterator[tuple[dict[str, Any], str, Any]]:
        for home, module in list(sys.modules.items()):
            if home.startswith(("torch.", "reparam.")) and home not in self._homes:
                continue
            scope = getattr(module, "__dict__", None)  # other things than modules are there, too
            if isinstance(scope, dict) and not ids.isdisjoint(map(id, scope.values())):
                yield from ((scope, name, value) for name, value in list(scope.items()) if id(value) in ids)
