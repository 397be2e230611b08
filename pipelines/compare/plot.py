"""A comparison as one SVG: one panel per column, one row per variant; dots are seeds, bars are intervals."""

from __future__ import annotations

from pipelines.compare.comparison import Comparison, Row
from pipelines.html.charts import line, text
from pipelines.html.scale import linear
from pipelines.html.tags import Html, tag

NAMES, PANEL, GAP, TOP, PITCH = 150.0, 190.0, 44.0, 44.0, 30.0
STYLE = """
text { font: 13px system-ui, sans-serif; fill: #222 } .title { font-weight: 600 }
.small { font-size: 11px; fill: #666 } .grid { stroke: #ddd } .chance { stroke: #b35; stroke-dasharray: 3 3 }
.interval { stroke: #1b6ca8; stroke-width: 2 } .seed { fill: #1b6ca8; fill-opacity: .35 }
.mean { fill: #1b6ca8 } .ground { fill: #fff }
@media (prefers-color-scheme: dark) {
  text { fill: #ddd } .small { fill: #999 } .grid { stroke: #333 } .ground { fill: #16181c }
  .interval { stroke: #6cb4ee } .seed, .mean { fill: #6cb4ee } .chance { stroke: #e78 }
}
"""


def draw(found: Comparison) -> str:
    """The SVG document, with colours for light and dark pages."""
    height = TOP + PITCH * len(found.rows) + 34
    width = NAMES + (PANEL + GAP) * len(found.columns)
    parts = [tag("style", Html(STYLE)), tag("rect", width="100%", height="100%", class_="ground")]
    for index, row in enumerate(found.rows):
        parts.append(text(NAMES - 12, _y(index) + 4, row.variant, anchor="end"))
    for index, column in enumerate(found.columns):
        parts += _panel(found, column, NAMES + index * (PANEL + GAP))
    legend = "dot: one seed · diamond: mean · bar: its 95 % interval · dashed: guessing"
    parts.append(text(NAMES, height - 6, legend, class_="small"))
    label = f"Scores of {len(found.rows)} variants in {', '.join(found.columns)}"
    return tag(
        "svg",
        *parts,
        xmlns="http://www.w3.org/2000/svg",
        viewBox=f"0 0 {width:g} {height:g}",
        role="img",
        aria_label=label,
    )


def _y(index: int) -> float:
    return TOP + PITCH * (index + 0.5)


def _panel(found: Comparison, column: str, left: float) -> list[Html]:
    x = linear(0, 1, left, left + PANEL)
    bottom = TOP + PITCH * len(found.rows)
    parts = [text(left, TOP - 26, column, class_="title")]
    for mark in (0.0, 0.25, 0.5, 0.75, 1.0):
        parts.append(line(x(mark), TOP - 6, x(mark), bottom, "grid"))
        parts.append(text(x(mark), TOP - 10, f"{mark:.0%}", anchor="middle", class_="small"))
    if column in found.chance:
        chance = x(found.chance[column])
        parts.append(line(chance, TOP - 6, chance, bottom, "chance"))
    for index, row in enumerate(found.rows):
        parts += _marks(row, column, _y(index), left)
    return parts


def _marks(row: Row, column: str, y: float, left: float) -> list[Html]:
    x = linear(0, 1, left, left + PANEL)
    interval = row.scores[column]
    parts = []
    if interval.values > 1:
        low, high = (min(max(end, 0.0), 1.0) for end in (interval.low, interval.high))
        parts.append(line(x(low), y, x(high), y, "interval"))
    for member in row.members:
        parts.append(tag("circle", cx=x(member.scores[column]), cy=y, r=4, class_="seed"))
    middle = x(interval.mean)
    diamond = f"M{middle - 5:.1f} {y:.1f}l5 -6l5 6l-5 6z"
    return [*parts, tag("path", d=diamond, class_="mean")]
