"""The frame of every page: one HTML document with style and script inside, and nothing from anywhere else."""

from __future__ import annotations

from importlib import resources

from pipelines.html.tags import Html, tag


def document(title: str, style: str, *body: object) -> str:
    """A page.

    Args:
        title: Of the window.
        style: Its style sheet.
        body: What it shows, in order.
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
    """What pages do on hover and focus; the last of a body."""
    return tag("script", Html(asset("pipelines.html", "report.js")))


def asset(package: str, name: str) -> str:
    """A style sheet or script that lies in the folder of ``package``."""
    return resources.files(package).joinpath(name).read_text(encoding="utf-8")
