"""HTML elements with escaping: plain strings become text, and only `tag` makes markup."""

from __future__ import annotations

import html
from collections.abc import Iterable
from typing import Any


class Html(str):
    """A string that is markup; every other string is escaped when joined to one."""

    __slots__ = ()


VOID = frozenset({"br", "hr", "img", "input", "meta"})
"""Elements without a closing tag."""


def escape(content: Any) -> Html:
    """``content`` as markup: `Html` unchanged, ``None`` as nothing, anything else as escaped text."""
    if isinstance(content, Html):
        return content
    return Html("" if content is None else html.escape(str(content), quote=True))


def join(parts: Iterable[Any], separator: str = "") -> Html:
    """Concatenate, escaping what is not markup."""
    return Html(escape(separator).join(escape(part) for part in parts))


def tag(name: str, /, *children: Any, **attributes: Any) -> Html:
    """One element: ``tag("p", "1 < 2", class_="note")`` → ``<p class="note">1 &lt; 2</p>``.

    Attribute names lose a trailing underscore and turn the others into hyphens (``class_``, ``data_tip``,
    ``stroke_width``); values of ``None`` and ``False`` are left out, ``True`` gives the bare name.
    """
    written = []
    for key, value in attributes.items():
        if value is None or value is False:
            continue
        key = key.removesuffix("_").replace("_", "-")
        written.append(f" {key}" if value is True else f' {key}="{escape(_shorten(value))}"')
    opening = f"<{name}{''.join(written)}>"
    return Html(opening if name in VOID else f"{opening}{join(children)}</{name}>")


def _shorten(value: Any) -> Any:
    """Coordinates to a hundredth of a unit: finer is invisible and makes the file half as large again."""
    return f"{value:.2f}".rstrip("0").rstrip(".") if isinstance(value, float) else value
