"""A simulation over numbers of nodes as one SVG: time of the stages, load of training's resources, cost."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from pipelines.cost.simulate.simulation import Simulation, efficiency
from pipelines.html.charts import line, svg, text
from pipelines.html.scale import Scale, linear, logarithmic, ticks
from pipelines.html.tags import Html, tag
from pipelines.text_format import number

PANEL, GAP, LEFT, TOP, HEIGHT = 300.0, 160.0, 60.0, 50.0, 240.0
COLOURS = "abcdefg"
STYLE = """
text { font: 12px system-ui, sans-serif; fill: #222 } .title { font-weight: 600; font-size: 13px }
.small { font-size: 11px; fill: #666 } .grid { stroke: #ddd } .axis { stroke: #888 } .ground { fill: #fff }
polyline { fill: none; stroke-width: 2 }
.a { stroke: #1b6ca8 } .b { stroke: #c8553d } .c { stroke: #2e7d4f } .d { stroke: #7a4fa3 }
.e { stroke: #8a6d1a } .f { stroke: #555 } .g { stroke: #b3246b }
@media (prefers-color-scheme: dark) {
  text { fill: #ddd } .small { fill: #999 } .grid { stroke: #333 } .ground { fill: #16181c }
  .a { stroke: #6cb4ee } .b { stroke: #ee8b74 } .c { stroke: #6cc591 } .d { stroke: #b793dd }
  .e { stroke: #d0b255 } .f { stroke: #aaa } .g { stroke: #e878a8 }
}
"""
_TIMES = {
    **{1.0: "1 s", 10.0: "10 s", 60.0: "1 min", 600.0: "10 min", 3600.0: "1 h", 36_000.0: "10 h"},
    **{86_400.0 * days: f"{days} days" for days in (3, 30, 300)},
}
"""Marks on an axis of seconds."""
_LABEL = 14.0
"""Height of a line of text."""


def draw(found: Sequence[Simulation], name: str) -> str:
    """The SVG document, with colours for light and dark pages.

    Args:
        found: The run on each number of nodes, ascending.
        name: The recipe's.
    """
    nodes = [one.machines.nodes for one in found]
    stages = {stage.name: [one.stage(stage.name).expected_s for one in found] for stage in found[0].stages}
    loads = [one.stage("train").loads for one in found]
    resources: dict[str, list[float]] = {
        resource: [one.get(resource, 0.0) for one in loads] for own in loads for resource in own
    }
    return svg(
        LEFT + 3 * (PANEL + GAP),
        TOP + HEIGHT + 44,
        tag("style", Html(STYLE)),
        tag("rect", width="100%", height="100%", class_="ground"),
        _times(0, "Time of each stage", nodes, stages),
        _times(1, "Training: time that each resource alone would take", nodes, resources),
        _cost(2, nodes, found),
        label=f"{name}: time, load and cost over {', '.join(map(str, nodes))} nodes",
        xmlns="http://www.w3.org/2000/svg",
    )


def _times(panel: int, title: str, nodes: Sequence[int], lines: Mapping[str, Sequence[float]]) -> Html:
    """Named lines over a logarithmic axis of seconds, each with its name at its end, no two in one place."""
    every = [value for values in lines.values() for value in values if value > 0]
    low, high = min(every) / 1.5, max(every) * 1.5
    x, y = _across(nodes, panel), logarithmic(low, high, TOP + HEIGHT, TOP)
    parts = _frame(panel, title, nodes, {y(mark): text for mark, text in _TIMES.items() if low < mark < high})
    lowest = 0.0
    for name in sorted(lines, key=lambda name: -lines[name][-1]):
        points = [(x(count), y(value)) for count, value in zip(nodes, lines[name], strict=True) if value > 0]
        if not points:
            continue
        parts.append(_line(points, COLOURS[list(lines).index(name) % len(COLOURS)]))
        end, height = points[-1]
        lowest = max(height + 4, lowest + _LABEL)
        parts.append(text(end + 12, lowest if end > x(nodes[-1]) - 1 else height - 6, name, class_="small"))
    return tag("g", *parts)


def _cost(panel: int, nodes: Sequence[int], found: Sequence[Simulation]) -> Html:
    """Cost from 0, with the efficiency at each point."""
    high = max(one.cost for one in found) * 1.2 or 1.0
    x, y = _across(nodes, panel), linear(0, high, TOP + HEIGHT, TOP)
    parts = _frame(panel, "Cost, USD, and efficiency", nodes, {y(m): number(m) for m in ticks(0, high)})
    points = [(x(one.machines.nodes), y(one.cost)) for one in found]
    labels = (f"{efficiency(found[0], one):.0%}" for one in found)
    named = (
        text(a, b - 10, label, anchor="middle", class_="small")
        for (a, b), label in zip(points, labels, strict=True)
    )
    return tag("g", *parts, _line(points, "a"), *named)


def _frame(panel: int, title: str, nodes: Sequence[int], marks: Mapping[float, str]) -> list[Html]:
    """Title, axes and their marks: height → text."""
    left, bottom = _left(panel), TOP + HEIGHT
    x = _across(nodes, panel)
    parts = [text(left, TOP - 20, title, class_="title"), line(left, bottom, left + PANEL, bottom, "axis")]
    for height, shown in marks.items():
        parts.append(line(left, height, left + PANEL, height, "grid"))
        parts.append(text(left - 6, height + 4, shown, anchor="end", class_="small"))
    parts += [text(x(count), bottom + 16, count, anchor="middle", class_="small") for count in nodes]
    return [*parts, text(left + PANEL / 2, bottom + 34, "nodes", anchor="middle", class_="small")]


def _line(points: Sequence[tuple[float, float]], colour: str) -> Html:
    return tag("polyline", points=" ".join(f"{x:.1f},{y:.1f}" for x, y in points), class_=colour)


def _left(panel: int) -> float:
    return LEFT + panel * (PANEL + GAP)


def _across(nodes: Sequence[int], panel: int) -> Scale:
    return logarithmic(nodes[0], nodes[-1], _left(panel) + 8, _left(panel) + PANEL - 8)
