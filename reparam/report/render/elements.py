"""The parts that a page is put together from: sections, tables, lists, and how numbers are written in them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from reparam.report.outcome import percent
from reparam.report.render.markup import Markup, joined, tag


def section(name: str, title: str, *children: str) -> Markup:
    """A section with its heading; `name` is its id."""
    heading = tag("h2", title, id=f"{name}-title")
    return tag("section", heading, *children, id=name, aria_labelledby=f"{name}-title")


def table(label: str, headers: Sequence[str], rows: Iterable[Sequence[str]], numbers: Sequence[int] = ()) -> Markup:
    """A table that scrolls by itself, without empty columns; the columns `numbers` are aligned to the right."""
    cells = list(rows)
    columns = [i for i in range(len(headers)) if any(row[i] for row in cells)]
    kinds = dict.fromkeys(numbers, "number")
    head = tag("tr", *(tag("th", headers[i], scope="col", class_=kinds.get(i)) for i in columns))
    body = (tag("tr", *(tag("td", row[i], class_=kinds.get(i)) for i in columns)) for row in cells)
    return scrolled(label, tag("table", tag("thead", head), tag("tbody", *body)))


def scrolled(label: str, child: Markup) -> Markup:
    """An area that scrolls by itself, by the keyboard as well; `label` is for screen readers."""
    return tag("div", child, class_="scroll", tabindex=0, role="region", aria_label=label)


def searchable(name: str, label: str, content: Markup) -> Markup:
    """A table with a search field that hides the rows without a match; the field shows only where scripts run."""
    field = tag("input", type="search", id=f"{name}-search", placeholder="a module, an operation, a word …",
                autocomplete="off", spellcheck="false")  # fmt: skip
    matches = tag("output", for_=f"{name}-search", aria_live="polite")
    search = tag("p", tag("label", label, for_=f"{name}-search"), field, matches, class_="search", hidden=True)
    return tag("div", search, content, class_="searchable")


def code(text: str) -> Markup:
    """A name from the model."""
    return tag("code", text)


def note(*children: str) -> Markup:
    """A paragraph that explains what it stands above or below."""
    return tag("p", *children, class_="note")


def details(summary: str, *children: str) -> Markup:
    """Children that show once the summary is opened."""
    return tag("details", tag("summary", summary), *children)


def place_list(places: Sequence[str]) -> Markup:
    """The first of at least one place, and the others in `details`."""
    if len(places) == 1:
        return code(places[0])
    others = tag("ul", *(tag("li", code(place)) for place in places[1:]))
    return joined([code(places[0]), details(f"and {len(places) - 1} more", others)])


def plural(count: int, noun: str) -> str:
    """`1 layer`, `2 layers`."""
    return f"{count:,} {noun}" + ("" if count == 1 else "s")


def with_unit(number: float) -> str:
    """Three digits and a unit: 12, 3.46 k, 25.6 M."""
    for unit in ("", " k", " M", " G"):
        if number < 1000:
            return f"{number:.3g}{unit}" if unit else f"{number:g}"
        number /= 1000
    return f"{number:,.3g} T"


def change(before: float, after: float) -> str:
    """The change in percent, with its sign."""
    if not before:
        return "±0 %"
    share = after / before - 1
    return f"{'−' if share < 0 else '+'}{percent(abs(share))}" if abs(share) > 5e-5 else "±0 %"


def scientific(error: float) -> str:
    """An error with two digits, such as `2.5e-16`."""
    return f"{error:.1e}" if error else "0"
