"""What ``casa prepare`` prints at its end: where the data lies, how full it is, what was left out."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from rich.console import Console
from rich.table import Table

from pipelines.cli.show.format import nearby, print_json_line
from pipelines.dag.plan import PlannedStage
from pipelines.text_format import number

CARD = "card.json"
_KINDS = {"image": "with pictures", "video": "with a video"}


def show_prepared(
    stages: Sequence[PlannedStage], manifests: Mapping[str, Mapping[str, Any]], *, as_json: bool
) -> None:
    """Print the pack artifact's card in short, and where everything lies."""
    found = collect(stages)
    if as_json:
        digests = {name: manifest["content_digest"] for name, manifest in manifests.items()}
        print_json_line({"event": "result", **found, "digests": digests})
        return
    console = Console(markup=False, highlight=False)
    card = found["pack"]
    console.print()
    console.print(_fill(card))
    console.print(_sources(card, found["clean"]))
    for line in [*_videos(card), *_left_out(card, found["clean"])]:
        console.print(line)
    for name, folder in found["artifacts"].items():
        console.print(f"{name}: {nearby(folder)}", soft_wrap=True)
    console.print("data cards: casa data card STAGE", soft_wrap=True)


def collect(stages: Sequence[PlannedStage]) -> dict[str, Any]:
    """The cards of the prepared artifacts, and where these lie, as plain JSON."""
    packs = [stage for stage in stages if stage.spec.kind == "pack"]
    cleans = [stage for stage in stages if stage.spec.kind == "clean"]
    shown = [*cleans, *packs]
    cards = {stage.name: _card(stage) for stage in shown}
    return {
        "pack": cards[packs[0].name],
        "clean": {cards[stage.name]["source"]: cards[stage.name] for stage in cleans},
        "artifacts": {stage.name: str(stage.folder) for stage in shown},
    }


def _card(stage: PlannedStage) -> dict[str, Any]:
    return json.loads((stage.folder / CARD).read_text(encoding="utf-8"))


def _table(title: str, names: Sequence[str]) -> Table:
    """A table whose first column names its rows."""
    table = Table("", box=None, header_style="bold", title=title, title_justify="left")
    for name in names:
        table.add_column(name, justify="right", no_wrap=True)
    return table


def _fill(card: Mapping[str, Any]) -> Table:
    table = _table("Sequences", ("count", "at best", "above", "text full", "images full"))
    for kind, own in card["by_kind"].items():
        if not own["sequences"]:
            continue
        above = own["sequences"] / max(own["lower_bound"], 1) - 1
        fill = own["fill"]
        table.add_row(
            _KINDS.get(kind, kind),
            f"{own['sequences']:,}",
            f"{own['lower_bound']:,}",
            f"{above:.2%}",
            f"{fill['text']:.1%}",
            f"{fill['image']:.1%}",
        )
    return table


def _sources(card: Mapping[str, Any], clean: Mapping[str, Mapping[str, Any]]) -> Table:
    """Where the samples come from, with the shares asked for beside those reached."""
    from pipelines.cards.pack import shares

    rows = shares(card)
    wanted = any(row.asked is not None for row in rows)
    names = ("records", "samples", "text tok.", "image tok.", *(("asked",) if wanted else ()), "share")
    table = _table("Sources", names)
    for row in rows:
        own = card["sources"][row.source]
        asked = ("" if row.asked is None else f"{row.asked:.2%}",) if wanted else ()
        table.add_row(
            row.source,
            number(clean[row.source]["splits"]["train"]["records"]),
            *(number(own[name]) for name in ("samples", "text_tokens", "image_tokens")),
            *asked,
            f"{row.realised:.2%}",
        )
    return table


def _videos(card: Mapping[str, Any]) -> list[str]:
    """What was done to fit videos to their budget, one line per source of which something was."""
    from pipelines.cards.pack import VIDEO_COLUMNS, video_cells

    lines = []
    for source, cells in video_cells(card).items():
        done = [f"{name} {cell}" for name, cell in zip(VIDEO_COLUMNS, cells, strict=True) if cell != "0"]
        if len(done) > 1:
            lines.append(f"{source}: {', '.join(done)}")
    return lines


def _left_out(card: Mapping[str, Any], clean: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """What filters removed, and what each stage set aside, one line each."""
    filters = card.get("filters") or {}
    counts = {name: own["count"] if isinstance(own, Mapping) else own for name, own in filters.items()}
    lines = [f"filtered: {_counted(counts)}"]
    for source, own in clean.items():
        lines.append(f"quarantined by clean, {source}: {_counted(own['quarantine'])}")
    return [*lines, f"quarantined by pack: {_counted(card['quarantine'])}"]


def _counted(counts: Mapping[str, int]) -> str:
    """``12 (empty_file 2, truncated_image 10)``"""
    listed = ", ".join(f"{name} {count:,}" for name, count in counts.items())
    total = sum(counts.values())
    return f"{total:,} ({listed})" if listed else "0"
