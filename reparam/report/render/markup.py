"""Text that is markup, and text that is not: everything in a page that `tag` has not made is escaped by it.

Names of modules and reasons come from other people's code. There is one way into a page for them, and it escapes.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Iterable
from html import escape

_UNSEEN = ("Cc", "Cf", "Cs", "Co", "Cn")  # control, direction, half of a pair: nothing that a name needs
_EMPTY = ("meta", "link", "br", "input")


class Markup(str):
    """Text that has been escaped already."""

    __slots__ = ()


def tag(name: str, /, *children: str, **attributes: str | float | bool | None) -> Markup:
    """`<name attributes>children</name>`; what is no `Markup` is escaped.

    An attribute is written with hyphens for underscores (one at the end is dropped, for Python's own words); True
    writes its name alone, None and False leave it out.
    """
    head = "".join(map(_attribute, attributes, attributes.values()))
    return Markup(f"<{name}{head}>" if name in _EMPTY else f"<{name}{head}>{joined(children)}</{name}>")


def joined(children: Iterable[str]) -> Markup:
    """One after another."""
    return Markup("".join(child if isinstance(child, Markup) else escaped(child) for child in children))


def escaped(text: str) -> Markup:
    """The text, for any place between tags or in an attribute; what cannot be seen becomes a replacement character."""
    return Markup(escape("".join("\ufffd" if _unseen(sign) else sign for sign in text), quote=True))


def _unseen(sign: str) -> bool:
    return sign not in "\n\t" and unicodedata.category(sign) in _UNSEEN


def _attribute(key: str, value: str | float | bool | None) -> str:
    name = key.rstrip("_").replace("_", "-")
    if value is None or value is False:
        return ""
    if value is True:
        return f" {name}"
    return f' {name}="{escaped(f"{value:g}" if isinstance(value, float) else str(value))}"'
