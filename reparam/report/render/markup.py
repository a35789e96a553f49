"""HTML that is safe by construction: `tag` escapes every text that is not `Markup` already.

Names of modules and reasons come from other people's code. This is their only way into a page, and it escapes them.
"""

from __future__ import annotations

from collections.abc import Iterable
from html import escape

from reparam.errors import visible

_VOID = ("meta", "link", "br", "input")  # elements that have no closing tag


class Markup(str):
    """Text that is HTML already."""

    __slots__ = ()


def tag(name: str, /, *children: str, **attributes: str | float | bool | None) -> Markup:
    """`<name attributes>children</name>`, with every child escaped that is not `Markup`.

    Underscores in the name of an attribute become hyphens; one at its end is dropped, so that `class_` works. True
    writes the name alone, None and False leave the attribute out.
    """
    head = "".join(map(_html_attribute, attributes, attributes.values()))
    return Markup(f"<{name}{head}>" if name in _VOID else f"<{name}{head}>{joined(children)}</{name}>")


def joined(children: Iterable[str]) -> Markup:
    """The children one after another."""
    return Markup("".join(child if isinstance(child, Markup) else escaped(child) for child in children))


def escaped(text: str) -> Markup:
    """The text for use between tags or in an attribute, without invisible characters."""
    return Markup(escape(visible(text), quote=True))


def _html_attribute(key: str, value: str | float | bool | None) -> str:
    name = key.rstrip("_").replace("_", "-")
    if value is None or value is False:
        return ""
    if value is True:
        return f" {name}"
    return f' {name}="{escaped(f"{value:g}" if isinstance(value, float) else str(value))}"'
