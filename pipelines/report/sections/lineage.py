"""Section on lineage: the graph of artifacts from raw files to the endpoint, with times and sizes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pipelines.html.charts import svg, text
from pipelines.html.layout import figure, section, table
from pipelines.html.tags import Html, join, tag
from pipelines.report.sections.run_artifacts import Run, Stage
from pipelines.text_format import byte_size, duration

BOX_WIDTH, BOX_HEIGHT, GAP_X, GAP_Y, MARGIN = 158.0, 64.0, 46.0, 22.0, 8.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Node:
    """A box of the graph: an artifact, raw files before the first one, or the endpoint after the last."""

    name: str
    lines: tuple[str, ...]
    style: str
    parents: tuple[str, ...]
    tip: str = ""


def lineage(run: Run) -> Html:
    """The graph of artifacts, then one line per stage and one per data card."""
    if not run.stages:
        return section("Lineage", "The report was made from no artifact at all.")
    lead = (
        "Each box is an artifact; its number is a fingerprint of the settings, the code and the inputs it "
        "was made from. Equal fingerprints mean equal making, on whatever machine. An artifact that is also "
        "read further on is drawn with its first line only."
    )
    graph = tag("div", _draw(nodes(run)), class_="scroll")
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


def columns(found: Sequence[Node]) -> dict[str, int]:
    """Each node's column: one right of its rightmost parent."""
    at: dict[str, int] = {}
    for node in found:  # parents come first
        at[node.name] = 1 + max((at[parent] for parent in node.parents), default=-1)
    return at


def direct_edges(found: Sequence[Node]) -> list[tuple[str, Node]]:
    """Edges that no longer path implies, so that data that reaches training through packing is drawn once."""
    above: dict[str, set[str]] = {}
    for node in found:  # parents come first
        above[node.name] = set(node.parents).union(*(above[parent] for parent in node.parents))
    return [
        (parent, node)
        for node in found
        for parent in node.parents
        if not any(parent in above[other] for other in node.parents)
    ]


def _draw(found: Sequence[Node]) -> Html:
    column = columns(found)
    members: dict[int, list[Node]] = {}
    for node in found:
        members.setdefault(column[node.name], []).append(node)
    tallest = max(len(nodes) for nodes in members.values())
    height = 2 * MARGIN + tallest * (BOX_HEIGHT + GAP_Y) - GAP_Y
    width = 2 * MARGIN + len(members) * (BOX_WIDTH + GAP_X) - GAP_X
    corner: dict[str, tuple[float, float]] = {}
    for index in sorted(members):
        ordered = sorted(members[index], key=lambda node: _mean_height(node, corner))
        used = len(ordered) * (BOX_HEIGHT + GAP_Y) - GAP_Y
        for row, node in enumerate(ordered):
            top = (height - used) / 2 + row * (BOX_HEIGHT + GAP_Y)
            corner[node.name] = (MARGIN + index * (BOX_WIDTH + GAP_X), top)
    edges = [_edge(corner[parent], corner[node.name]) for parent, node in direct_edges(found)]
    boxes = [_box(node, *corner[node.name]) for node in found]
    return svg(width, height, *edges, *boxes, label="lineage of the run", class_="chart graph")


def _mean_height(node: Node, corner: Mapping[str, tuple[float, float]]) -> float:
    """Mean height of a node's parents: sorting boxes by it lets few edges cross."""
    heights = [corner[parent][1] for parent in node.parents]
    return sum(heights) / len(heights) if heights else 0.0


def _edge(start: tuple[float, float], end: tuple[float, float]) -> Html:
    x1, y1 = start[0] + BOX_WIDTH, start[1] + BOX_HEIGHT / 2
    x2, y2 = end[0], end[1] + BOX_HEIGHT / 2
    bend = GAP_X * 0.6
    path = f"M{x1:.1f},{y1:.1f} C{x1 + bend:.1f},{y1:.1f} {x2 - bend:.1f},{y2:.1f} {x2:.1f},{y2:.1f}"
    return tag("path", d=path, class_="edge")


def _box(node: Node, x: float, y: float) -> Html:
    title = node.lines[0] if node.style == "raw" else node.name
    rest = node.lines[1:] if node.style == "raw" else node.lines
    words = [text(x + 12, y + 24, _clip(title, 20), class_="boxtitle")]
    words += [text(x + 12, y + 41 + 15 * i, _clip(word, 24), class_="boxline") for i, word in enumerate(rest)]
    shape = tag("rect", x=x, y=y, width=BOX_WIDTH, height=BOX_HEIGHT, rx=9, class_=f"box box-{node.style}")
    return tag("g", shape, join(words), data_tip=node.tip or None, tabindex="0" if node.tip else None)


def _clip(word: str, length: int) -> str:
    return word if len(word) <= length else f"…{word[1 - length :]}"


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
