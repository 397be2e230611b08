"""Section on lineage: the graph of artifacts from raw files to the endpoint, with times and sizes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pipelines.html.graph import Node, draw
from pipelines.html.layout import figure, section, table
from pipelines.html.tags import Html, tag
from pipelines.report.sections.run_artifacts import Run, Stage
from pipelines.text_format import byte_size, duration


def lineage(run: Run) -> Html:
    """The graph of artifacts, then one line per stage and one per data card."""
    if not run.stages:
        return section("Lineage", "The report was made from no artifact at all.")
    lead = (
        "Each box is an artifact; its number is a fingerprint of the settings, the code and the inputs it "
        "was made from. Equal fingerprints mean equal making, on whatever machine. An artifact that is also "
        "read further on is drawn with its first line only."
    )
    graph = tag("div", draw(nodes(run), label="lineage of the run"), class_="scroll")
    drawing = figure("From raw files to the endpoint", graph)
    return section("Lineage", lead, drawing, _times(run), _data_cards(run))


def nodes(run: Run) -> list[Node]:
    """The run's artifacts, raw files before them and the endpoint after them; parents come first."""
    names = {stage.fingerprint: name for name, stage in run.stages.items()}
    found: list[Node] = []
    for name, stage in run.stages.items():
        parents = tuple(names[f] for f in stage.inputs.values() if f in names)
        if not parents:
            found.append(_raw(stage))
            parents = (found[-1].name,)
        took = duration(stage.seconds) if stage.seconds is not None else ""
        size = byte_size(stage.size)
        lines = (stage.fingerprint[:12], " · ".join(part for part in (took, size) if part))
        tip = f"{name}\nfingerprint {stage.fingerprint}\ncode version {stage.code_version or 'unknown'}"
        found.append(Node(name=name, lines=lines, style=stage.kind, parents=parents, tip=tip))
    if "train" in run.stages:
        endpoint = Node(name=run.model_name, lines=("endpoint",), style="endpoint", parents=("train",))
        found.append(endpoint)
    return found


def _raw(stage: Stage) -> Node:
    """Input of a stage without input artifacts: a generator's product, or files."""
    make = stage.settings.get("make")
    if isinstance(make, Mapping):
        lines: tuple[str, ...] = (str(make.get("generator", "generated")), "generator")
    else:
        lines = (str(stage.settings.get("path", "raw files")), "raw files")
    return Node(name=f"raw:{stage.name}", lines=lines, style="raw", parents=())


def _times(run: Run) -> Html:
    """One line per stage, with a bar at the time it ran."""
    begun = [stage.started for stage in run.stages.values() if stage.started]
    first = min(begun) if begun else None
    spans = {}
    for name, stage in run.stages.items():
        if first and stage.started and stage.seconds is not None:
            spans[name] = ((stage.started - first).total_seconds(), stage.seconds)
    total = max((start + took for start, took in spans.values()), default=0.0)
    rows = []
    for name, stage in run.stages.items():
        took = duration(stage.seconds) if stage.seconds is not None else "unknown"
        short = tag("code", stage.fingerprint[:12])
        when = _span(spans.get(name), total)
        rows.append([name, short, stage.code_version, byte_size(stage.size), took, when])
    head = ["stage", "fingerprint", "code", "size", "time", "when it ran"]
    return figure("Time and size of each stage", table(head, rows, numeric=[3, 4]), note=_overall(spans))


def _data_cards(run: Run) -> Html:
    """A link to each data card."""
    rows = [
        [tag("a", stage.name, href=stage.card), stage.summary.get("headline", "")]
        for stage in run.stages.values()
        if stage.card
    ]
    note = "Counts, histograms, filters, quarantine and sample pictures of each clean and pack artifact."
    return figure("Data cards", table(["card", "content"], rows), note=note) if rows else Html()


def _span(span: tuple[float, float] | None, total: float) -> Any:
    if span is None or total <= 0:
        return ""
    start, took = span
    style = f"margin-left:{100 * start / total:.1f}%;width:{max(100 * took / total, 0.8):.1f}%"
    return tag("div", tag("i", style=style), class_="span", data_tip=f"began {duration(start)} into the run")


def _overall(spans: Mapping[str, tuple[float, float]]) -> str:
    if not spans:
        return ""
    wall = max(start + took for start, took in spans.values())
    busy = sum(took for _, took in spans.values())
    return (
        f"{duration(busy)} of work; {duration(wall)} from the first stage's beginning to the last one's end."
    )
