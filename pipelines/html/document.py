"""The frame of every page: one HTML document with its style and script inside, which needs no network."""

from __future__ import annotations

from importlib import resources

from pipelines.html.tags import Html, tag


def document(title: str, style: str, *body: object) -> str:
    """One HTML document.

    Args:
        title: Title of the window.
        style: Style sheet.
        body: Content in order; plain strings are escaped.
    """
    head = tag(
        "head",
        tag("meta", charset="utf-8"),
        tag("meta", name="viewport", content="width=device-width, initial-scale=1"),
        tag("title", title),
        tag("style", Html(style)),
    )
    return f"<!doctype html>\n{tag('html', head, tag('body', *body), lang='en')}\n"


def script() -> Html:
    """The script for hints on hover and focus; the last element of a body."""
    return tag("script", Html(asset("pipelines.html", "report.js")))


def asset(package: str, name: str) -> str:
    """Text of a style sheet or script in the folder of ``package``."""
    return resources.files(package).joinpath(name).read_text(encoding="utf-8")
