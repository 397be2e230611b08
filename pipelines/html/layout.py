"""Layout elements: sections, tiles, tables, figures, folds."""

from __future__ import annotations

from collections.abc import Sequence

from pipelines.html.tags import Html, join, tag


def anchor(title: str) -> str:
    """The id of the section with that title."""
    return title.lower().replace(" ", "-")


def section(title: str, lead: object, *body: object) -> Html:
    """A titled part of the page; ``lead`` states what it shows."""
    return tag("section", tag("h2", title), tag("p", lead, class_="lead"), *body, id=anchor(title))


def tile(value: object, label: object, note: object = "", *, style: str = "") -> Html:
    """A large number with its label, and a note below."""
    return tag(
        "div",
        tag("b", value),
        tag("span", label),
        tag("small", note) if note else "",
        class_=f"tile {style}".strip(),
    )


def tiles(*items: Html) -> Html:
    """Tiles in a row that wraps."""
    return tag("div", *items, class_="tiles")


def table(head: Sequence[object], rows: Sequence[Sequence[object]], *, numeric: Sequence[int] = ()) -> Html:
    """A table; columns in ``numeric`` are right-aligned."""

    def cells(name: str, row: Sequence[object]) -> Html:
        return join(tag(name, cell, class_="number" if i in numeric else None) for i, cell in enumerate(row))

    body = tag("tbody", *(tag("tr", cells("td", row)) for row in rows))
    return tag("div", tag("table", tag("thead", tag("tr", cells("th", head))), body), class_="scroll sheet")


def figure(title: object, *body: object, note: object = "") -> Html:
    """A drawing with its title above and a remark below."""
    caption = tag("figcaption", title)
    return tag("figure", caption, *body, tag("p", note, class_="note") if note else "")


def fold(title: object, *body: object) -> Html:
    """Details that open on demand."""
    return tag("details", tag("summary", title), *body)
