"""A graph of artifacts as SVG: a box for each, its inputs to the left. Colours are classes, as in charts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from pipelines.html.charts import svg, text
from pipelines.html.tags import Html, join, tag

BOX_WIDTH, BOX_HEIGHT, GAP_X, GAP_Y, MARGIN = 158.0, 64.0, 46.0, 22.0, 8.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Node:
    """A box of the graph: an artifact, raw files before the first one, or the endpoint after the last.

    Attributes:
        lines: Below its name; of one of style ``raw`` the first stands in the name's place.
        style: Last part of its CSS class, ``box-STYLE``.
        parents: Names of the boxes to its left.
        tip: Shown by the report on hover and focus.
    """

    name: str
    lines: tuple[str, ...]
    style: str
    parents: tuple[str, ...]
    tip: str = ""


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


def draw(found: Sequence[Node], *, label: str, style: str = "") -> Html:
    """The graph, as wide as its longest path; parents come first.

    Args:
        label: For screen readers.
        style: CSS of its classes: it is a document of its own. Without it the page has them.
    """
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
    boxes = [_box(node, *corner[node.name], document=bool(style)) for node in found]
    if not style:
        return svg(width, height, *edges, *boxes, label=label, class_="chart graph")
    ground = [tag("style", Html(style)), tag("rect", width="100%", height="100%", class_="ground")]
    return svg(width, height, *ground, *edges, *boxes, label=label, xmlns="http://www.w3.org/2000/svg")


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


def _box(node: Node, x: float, y: float, *, document: bool) -> Html:
    title = node.lines[0] if node.style == "raw" else node.name
    rest = node.lines[1:] if node.style == "raw" else node.lines
    words = [text(x + 12, y + 24, _clip(title, 20), class_="boxtitle")]
    words += [text(x + 12, y + 41 + 15 * i, _clip(word, 24), class_="boxline") for i, word in enumerate(rest)]
    shape = tag("rect", x=x, y=y, width=BOX_WIDTH, height=BOX_HEIGHT, rx=9, class_=f"box box-{node.style}")
    if document:  # where no script shows the tip, the reader's program does
        return tag("g", tag("title", node.tip), shape, join(words))
    return tag("g", shape, join(words), data_tip=node.tip or None, tabindex="0" if node.tip else None)


def _clip(word: str, length: int) -> str:
    return word if len(word) <= length else f"…{word[1 - length :]}"
