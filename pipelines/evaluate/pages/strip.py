"""A score on its axis: ours with its interval above, published scores as ticks below."""

from __future__ import annotations

from pipelines.evaluate.results import BenchmarkResult
from pipelines.html.charts import line, svg, text
from pipelines.html.scale import linear, ticks
from pipelines.html.tags import Html, tag
from pipelines.text_format import number

MARGIN, OURS, AXIS = 14.0, 12.0, 40.0
"""Free space at both ends, and heights of our score and of the axis, SVG units."""


def strip(result: BenchmarkResult, width: float) -> Html:
    """The drawing; what each tick is appears on hover, and stands in the table of published scores."""
    score = result.score
    values = [score.low, score.high, score.value, *(one["score"] for one in result.published)]
    pad = (max(values) - min(values)) * 0.04 or 1.0
    low, high = min(values) - pad, max(values) + pad
    x = linear(low, high, MARGIN, width - MARGIN)
    parts = [line(MARGIN, AXIS, width - MARGIN, AXIS, "axis")]
    for mark in ticks(low, high, max(4, int(width // 110))):
        parts.append(line(x(mark), AXIS, x(mark), AXIS + 5, "axis"))
        parts.append(text(x(mark), AXIS + 19, number(mark), anchor="middle", class_="tick"))
    for one in result.published:
        at = x(one["score"])
        tip = f"{one['model']}: {one['score']:g} ({one['source']})"
        parts.append(tag("g", line(at, AXIS - 16, at, AXIS, "published"), data_tip=tip))
    parts += [line(x(score.low), OURS, x(score.high), OURS, "ours")]
    parts += [line(x(end), OURS - 5, x(end), OURS + 5, "ours") for end in (score.low, score.high)]
    own = f"{score.value:.1f} {score.unit}, 95 % interval {score.low:.1f} to {score.high:.1f}"
    parts.append(tag("circle", cx=x(score.value), cy=OURS, r=5, class_="fill-model", data_tip=own))
    label = f"{result.title}: {own}, and {len(result.published)} published scores"
    return svg(width, AXIS + 24, *parts, label=label, style=f"max-width:{width:.0f}px")
