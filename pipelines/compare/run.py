"""The compare stage: a table, a plot and a page about a sweep's members.

Files of the artifact: ``table.md``, ``comparison.svg``, ``index.html`` and ``comparison.json``, which has
every number of the others and of each member.
"""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import Any

from rich.console import Console
from rich.table import Table

from pipelines.compare import text
from pipelines.compare.comparison import Comparison, compare
from pipelines.compare.members import read_member
from pipelines.compare.plot import draw
from pipelines.dag.context import StageContext
from pipelines.dag.settings import read_settings, stage_settings
from pipelines.html.document import asset, document
from pipelines.html.layout import table
from pipelines.html.tags import Html, tag
from pipelines.storage.atomic import write_whole


@stage_settings
class CompareSettings:
    """Settings of the stage.

    Attributes:
        sweep: Name of the sweep's recipe.
        members: Variant and seed of each member; its artifacts are the inputs ``train-VARIANT-SEED`` and
            ``evaluate-VARIANT-SEED``.
    """

    sweep: str
    members: tuple[tuple[str, int], ...]


def run_stage(context: StageContext) -> dict[str, Any]:
    """Compare the members and write the artifact's files.

    Returns:
        The conclusion as ``headline``, and the ``path`` of the page.

    Raises:
        StoreError: If a file of a member's artifacts is missing.
    """
    settings = read_settings(CompareSettings, context.settings)
    members = [
        read_member(
            variant,
            seed,
            context.inputs[f"train-{variant}-{seed}"],
            context.inputs[f"evaluate-{variant}-{seed}"],
        )
        for variant, seed in settings.members
    ]
    found = compare(settings.sweep, members)
    output = context.output
    write_whole(output / "table.md", text.markdown(found))
    write_whole(output / "comparison.svg", draw(found) + "\n")
    write_whole(output / "comparison.json", json.dumps(asdict(found), indent=1) + "\n")
    write_whole(output / "index.html", page(found))
    print_table(found)
    return {"headline": text.conclusion(found), "path": str(output / "index.html")}


def page(found: Comparison) -> str:
    """The comparison as one HTML document that needs no network."""
    header = tag(
        "header",
        tag("p", "Comparison", class_="kicker"),
        tag("h1", found.name),
        tag("p", text.conclusion(found), class_="subtitle"),
    )
    rows = [[_cell(cell) for cell in text.cells(row, found)] for row in found.rows]
    scores = table(text.heading(found), rows)
    section = tag("section", Html(draw(found)), scores, tag("p", text.explanation(found), class_="note"))
    return document(
        f"{found.name}: comparison", asset("pipelines.html", "report.css"), header, tag("main", section)
    )


def _cell(content: str) -> str:
    """A cell whose Markdown bold is a tag."""
    return tag("strong", content.strip("*")) if content.startswith("**") else content


def print_table(found: Comparison) -> None:
    """Print scores and differences as a table on the terminal."""
    shown = Table(title=found.name, title_justify="left", title_style="bold")
    kept = len(found.columns) + 2
    for number, name in enumerate(text.heading(found)[:kept]):
        shown.add_column(name, justify="left" if number == 0 else "right")
    for row in found.rows:
        shown.add_row(*(cell.strip("*") for cell in text.cells(row, found)[:kept]))
    console = Console(width=140)
    console.print(shown)
    console.print(text.conclusion(found), highlight=False)
