"""Section on the quarantine: the records that stages set aside, with source and reason."""

from __future__ import annotations

from collections import Counter
from dataclasses import asdict
from typing import Any

from pipelines.data.store.quarantine import QUARANTINE, read_quarantine
from pipelines.html.layout import fold, section, table
from pipelines.html.tags import Html, tag
from pipelines.report.sections.run_artifacts import Run

AT_MOST = 200
COLUMNS = ("stage", "source", "file", "row", "sample_id", "reason", "detail")


def quarantine(run: Run) -> Html:
    """Quarantined records by source and reason; one sentence where there are none."""
    stages = run.of_kind("clean")
    if not stages:
        return section("Quarantine", "This run cleaned no data.")
    rows = _rows(run)
    if not rows:
        names = ", ".join(stage.name.removeprefix("clean-") for stage in stages)
        return section("Quarantine", f"No record of {names} had to be set aside.")
    counts = Counter((row["source"], row["reason"]) for row in rows)
    lead = (
        f"{len(rows)} records could not be used. They are left out of training and evaluation, and listed, "
        "so that nothing disappears in silence."
    )
    totals = table(
        ["source", "reason", "records"], [[*key, n] for key, n in counts.most_common()], numeric=[2]
    )
    shown = [
        [tag("code", row[c]) if c in ("file", "sample_id") else row[c] for c in COLUMNS]
        for row in rows[:AT_MOST]
    ]
    listing = table(COLUMNS, shown, numeric=[3])
    rest = tag("p", f"The first {AT_MOST} are shown.", class_="note") if len(rows) > AT_MOST else ""
    if len(rows) <= 20:
        return section("Quarantine", lead, listing)
    return section("Quarantine", lead, totals, fold("Each record", listing, rest))


def _rows(run: Run) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = []
    for stage in run.stages.values():
        path = stage.folder / QUARANTINE
        if path.is_file():
            rows += [{"stage": stage.name, **asdict(entry)} for entry in read_quarantine(path)]
    return rows
