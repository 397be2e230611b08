"""What ``casa inspect`` prints: for people as tables, for scripts as JSON."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from casa_core.analysis.attention_stats import AttentionTable
from casa_core.analysis.inspection import InspectedSample
from casa_core.printable import printable
from pipelines.cards.attention import LABELS, kinds_of
from pipelines.cards.inspection import MASKED, Inspection


def inspection_as_json(inspection: Inspection, page: Path) -> dict[str, Any]:
    """What ``casa inspect`` found, as plain JSON."""
    reasons = {"attention": inspection.no_maps, "masking": inspection.no_masking}
    return {
        "checkpoint": dict(inspection.facts),
        "conversations": [
            {
                "name": one.name,
                "question": one.question,
                "answer": one.answer,
                "masked": [asdict(answer) for answer in one.masked],
            }
            for one in inspection.inspected
        ],
        "attention": None if inspection.table is None else asdict(inspection.table),
        "not_possible": {name: f"{why.what} {why.why}" for name, why in reasons.items() if why is not None},
        "page": str(page.absolute()),
    }


def show_inspection(inspection: Inspection, page: Path) -> None:
    """Print what ``casa inspect`` found: the model, each conversation, and how text divides its attention."""
    console = Console()
    sheet = Table(box=None, show_header=False)
    sheet.add_column(style="bold", no_wrap=True)
    sheet.add_column(overflow="fold")
    for name, value in inspection.facts.items():
        sheet.add_row(name, value)
    console.print(inspection.headline, highlight=False)
    console.print(sheet)
    for one in inspection.inspected:
        _print_conversation(console, one)
    if inspection.table is not None:
        _print_attention(console, inspection.table)
    reasons = {str(why.what): why.why for why in (inspection.no_maps, inspection.no_masking) if why}
    for what, why in reasons.items():
        console.print(f"[yellow]not possible[/]  {what} {why}", highlight=False)
    # Never wrapped, so that a terminal can open it and a person can copy it.
    console.print(f"page: {page}", soft_wrap=True, highlight=False)


def _print_conversation(console: Console, one: InspectedSample) -> None:
    pictures = "" if len(one.pictures) == 1 else f", {len(one.pictures)} frames"
    tokens = sum(one.sequence.image_tokens)
    console.print(Text(f"\n{one.name}{pictures}, {tokens} image tokens", style="dim"))
    console.print(
        Text.assemble(
            (printable(one.question) or "(no question)", ""),
            "  ",
            (printable(one.answer) or "(nothing)", "bold"),
        )
    )
    if not one.masked:
        return
    sheet = Table(box=None, header_style="bold")
    for column in ("no token attends to", "then it says", "log-likelihood"):
        sheet.add_column(column, justify="right" if column == "log-likelihood" else "left")
    for answer in one.masked:
        sheet.add_row(
            MASKED[answer.what], Text(printable(answer.text) or "(nothing)"), f"{answer.log_likelihood:.4f}"
        )
    console.print(sheet)


def _print_attention(console: Console, means: AttentionTable) -> None:
    console.print(
        f"\nAttention of {means.queries} text tokens in {len(means.layers)} fused layers", highlight=False
    )
    sheet = Table(box=None, header_style="bold")
    for column in ("to", "share", "one token", "beside even"):
        sheet.add_column(column, justify="left" if column == "to" else "right")
    for name, mean in kinds_of(means.whole):
        assert mean.per_token is not None, "kinds_of leaves the others out"
        sheet.add_row(
            LABELS[name],
            f"{mean.share:.1%}",
            f"{mean.per_token:.2g}",
            f"{mean.per_token / means.even:.2g}-fold",
        )
    console.print(sheet)
