"""The compare stage: a sweep's members in; a table, a plot and a page out.

Files of the artifact: ``table.md``, ``comparison.svg``, ``index.html`` and ``comparison.json``, which has
every number of the others and of each member.
"""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import Any

from rich.console import Console
from rich.table import Table

from pipelines.compare import text as words
from pipelines.compare.comparison import Comparison, compare
from pipelines.compare.members import read_member
from pipelines.compare.plot import draw
from pipelines.dag.context import StageContext
from pipelines.html.document import asset, document
from pipelines.html.layout import table
from pipelines.html.tags import Html, tag
from pipelines.storage.atomic import write_whole


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
        for variant, seed in context.settings["members"]
    ]
    found = compare(context.settings["sweep"], members)
    output = context.local_output
    write_whole(output / "table.md", words.markdown(found), durable=True)
    write_whole(output / "comparison.svg", draw(found) + "\n", durable=True)
    write_whole(output / "comparison.json", json.dumps(asdict(found), indent=1) + "\n", durable=True)
    write_whole(output / "index.html", page(found), durable=True)
    print_table(found)
    return {"headline": words.conclusion(found), "path": str(output / "index.html")}


def page(found: Comparison) -> str:
    """The comparison as one HTML document that needs no network."""
    header = tag(
        "header",
        tag("p", "Comparison", class_="kicker"),
        tag("h1", found.name),
        tag("p", words.conclusion(found), class_="subtitle"),
    )
    rows = [[_cell(cell) for cell in words.cells(row, found)] for row in found.rows]
    scores = table(words.heading(found), rows)
    section = tag("section", Html(draw(found)), scores, tag("p", words.explanation(found), class_="note"))
    return document(
        f"{found.name}: comparison", asset("pipelines.html", "report.css"), header, tag("main", section)
    )


def _cell(content: str) -> str:
    """Bold as Markdown marks it."""
    return tag("strong", content.strip("*")) if content.startswith("**") else content


def print_table(found: Comparison) -> None:
    """For the terminal: scores and differences."""
    shown = Table(title=found.name, title_justify="left", title_style="bold")
    kept = len(found.columns) + 2
    for number, name in enumerate(words.heading(found)[:kept]):
        shown.add_column(name, justify="left" if number == 0 else "right")
    for row in found.rows:
        shown.add_row(*(cell.strip("*") for cell in words.cells(row, found)[:kept]))
    console = Console(width=140)
    console.print(shown)
    console.print(words.conclusion(found), highlight=False)
