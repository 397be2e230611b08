"""Section on packing: fill of both budgets, lower bound on sequences, shares of the sources."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pipelines.cards.pack import BUDGETS, KINDS, MEASURES, fill_histograms
from pipelines.html.layout import figure, section, table, tile, tiles
from pipelines.html.tags import Html, tag
from pipelines.report.sections.run_artifacts import Run
from pipelines.text_format import number


def packing(run: Run) -> Html:
    """Fill of packed sequences; one sentence for a run without any."""
    stage = run.get("pack")
    card = stage.json("card.json") if stage else None
    if not card:
        return section("Packing", "This run packed no sequences.")
    lead = (
        "Samples share sequences under two budgets, text tokens and image tokens; a video has a sequence "
        "of its own. No packing could beat the lower bound: tokens divided by budget, the larger of the two."
    )
    return section("Packing", lead, _tiles(card), _kinds(card), _shares(card), fill_histograms(card))


def _tiles(card: Mapping[str, Any]) -> Html:
    over = card["sequences"] / max(card["lower_bound"], 1) - 1
    return tiles(
        tile(
            number(card["sequences"]),
            "sequences",
            f"{over:.1%} above the lower bound of {card['lower_bound']}",
        ),
        *(
            tile(
                f"{100 * card['fill'][name]:.1f} %",
                f"of the {name} budget",
                f"{number(card[f'{name}_tokens'])} tokens",
            )
            for name in BUDGETS
        ),
    )


def _kinds(card: Mapping[str, Any]) -> Html:
    """Table of sequences with packed pictures and with single videos."""
    rows = [
        [
            KINDS.get(kind, kind),
            number(entry["sequences"]),
            number(entry["lower_bound"]),
            *(f"{100 * entry['fill'][budget]:.1f} %" for budget in BUDGETS),
        ]
        for kind, entry in card["by_kind"].items()
        if entry["sequences"]
    ]
    head = ["sequences of", "count", "lower bound", "text budget filled", "image budget filled"]
    return figure("Pictures and videos", table(head, rows, numeric=[1, 2, 3, 4]))


def _shares(card: Mapping[str, Any]) -> Html:
    """One bar per measure, split by source."""
    sources = card["sources"]
    bars = []
    for measure in MEASURES:
        total = sum(entry[measure] for entry in sources.values())
        if total == 0:
            continue
        parts = [
            tag(
                "span",
                f"{name} {entry[measure] / total:.0%}" if entry[measure] > 0.08 * total else "",
                style=f"flex-grow:{entry[measure]}",
                class_=f"share share-{index % 6}",
                data_tip=f"{name}: {number(entry[measure])} {measure.replace('_', ' ')}",
                tabindex="0",
            )
            for index, (name, entry) in enumerate(sources.items())
            if entry[measure]
        ]
        bars.append(
            tag(
                "div",
                tag("label", measure.replace("_", " ")),
                tag("div", *parts, class_="shares"),
                class_="sharerow",
            )
        )
    return figure("Shares by source", *bars)
