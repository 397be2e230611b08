"""The compare stage: a sweep's members in; a table, a plot and a page out.

Files of the artifact: ``table.md``, ``comparison.svg``, ``index.html`` and ``comparison.json``, which has
every number of the others and of each member.
"""

from __future__ import annotations

import json
from dataclasses import asdict
from importlib import resources
from typing import Any

from rich.console import Console
from rich.table import Table

from pipelines.compare import words
from pipelines.compare.comparison import Comparison, compare
from pipelines.compare.members import read_member
from pipelines.compare.plot import draw
from pipelines.dag.artifact import write_atomically
from pipelines.dag.context import StageContext
from pipelines.report.html import Html, tag


def run_stage(context: StageContext) -> dict[str, Any]:
    """Compare.

    Returns:
        The conclusion, and where the page is.
    """
    members = [
        read_member(
            variant,
            seed,
            context.local_input(f"train-{variant}-{seed}"),
            context.local_input(f"evaluate-{variant}-{seed}"),
        )
        for variant, seed in context.what["members"]
    ]
    found = compare(context.what["sweep"], members)
    output = context.local_output
    write_atomically(output / "table.md", words.markdown(found))
    write_atomically(output / "comparison.svg", draw(found) + "\n")
    write_atomically(output / "comparison.json", json.dumps(asdict(found), indent=1) + "\n")
    write_atomically(output / "index.html", page(found))
    print_table(found)
    return {"headline": words.conclusion(found), "path": str(output / "index.html")}


def page(found: Comparison) -> str:
    """The comparison as one HTML document that needs no network."""
    style = resources.files("pipelines.report").joinpath("report.css").read_text(encoding="utf-8")
    head = tag(
        "head",
        tag("meta", charset="utf-8"),
        tag("meta", name="viewport", content="width=device-width, initial-scale=1"),
        tag("title", f"{found.name}: comparison"),
        tag("style", Html(style)),
    )
    header = tag(
        "header",
        tag("p", "Comparison", class_="kicker"),
        tag("h1", found.name),
        tag("p", words.conclusion(found), class_="subtitle"),
    )
    titles = tag("tr", *(tag("th", name) for name in words.heading(found)))
    rows = [tag("tr", *map(_cell, words.cells(row, found))) for row in found.rows]
    table = tag("div", tag("table", tag("thead", titles), tag("tbody", *rows)), class_="scroll")
    section = tag("section", Html(draw(found)), table, tag("p", words.explanation(found), class_="note"))
    return f"<!doctype html>\n{tag('html', head, tag('body', header, tag('main', section)), lang='en')}\n"


def _cell(content: str) -> Html:
    """Bold as Markdown marks it."""
    if content.startswith("**"):
        return tag("td", tag("strong", content.strip("*")))
    return tag("td", content)


def print_table(found: Comparison) -> None:
    """For the terminal: scores and differences."""
    table = Table(title=found.name, title_justify="left", title_style="bold")
    kept = len(found.columns) + 2
    for number, name in enumerate(words.heading(found)[:kept]):
        table.add_column(name, justify="left" if number == 0 else "right")
    for row in found.rows:
        table.add_row(*(cell.strip("*") for cell in words.cells(row, found)[:kept]))
    console = Console(width=140)
    console.print(table)
    console.print(words.conclusion(found), highlight=False)
