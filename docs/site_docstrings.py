"""Shows the lines `name: what it is` of a docstring as a list. An extension of griffe (see mkdocs.yml)."""

from __future__ import annotations

import re
from typing import Any

import griffe

# A line that begins with one or several names and a colon; what belongs to it is indented.
NAMED = re.compile(r"^(\w+(?:, \w+)*): (?=\S)", re.MULTILINE)


class Named(griffe.Extension):
    """Parameters of functions and attributes of classes; no other word before a colon is one."""

    def on_function(self, *, func: griffe.Function, **_: Any) -> None:
        _listed(func, {parameter.name for parameter in func.parameters})

    def on_class(self, *, cls: griffe.Class, **_: Any) -> None:
        _listed(cls, {*cls.members, *(parameter.name for parameter in cls.parameters)})


def _listed(documented: griffe.Object, names: set[str]) -> None:
    if documented.docstring is not None:
        documented.docstring.value = NAMED.sub(lambda found: _item(found, names), documented.docstring.value)


def _item(found: re.Match[str], names: set[str]) -> str:
    here = found[1].split(", ")
    return f"- {', '.join(f'`{name}`' for name in here)}: " if names.issuperset(here) else found[0]
