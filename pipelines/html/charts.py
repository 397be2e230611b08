"""SVG charts: grouped bars, loss curves, legends. Colours are classes of ``report.css``: light, dark, print.

Coordinates are SVG user units, y downwards. ``data-tip`` texts are shown by ``report.js`` on hover and focus.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass

from pipelines.html.scale import Scale, linear, log_ticks, logarithmic, ticks
from pipelines.html.tags import Html, join, tag
from pipelines.text_format import number


@dataclass(frozen=True, slots=True, kw_only=True)
class Bar:
    """A bar of a grouped chart: a share, its interval (``low == high``: none), colour class and hint."""

    value: float
    low: float
    high: float
    style: str
    tip: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Series:
    """Points over a common x axis, drawn as faint dots, and their moving mean, drawn as a line."""

    label: str
    style: str
    points: Sequence[tuple[float, float]]
    smooth: Sequence[tuple[float, float]]
    dots: bool = True


def svg(
    width: float, height: float, *children: object, label: str, class_: str = "chart", **extra: object
) -> Html:
    """An SVG element that scales with its container; ``label`` is for screen readers."""
    box = f"0 0 {width:g} {height:g}"
    return tag("svg", *children, viewBox=box, role="img", aria_label=label, class_=class_, **extra)


def text(x: float, y: float, content: object, *, anchor: str = "start", class_: str = "") -> Html:
    """One line of text at a point."""
    return tag("text", content, x=x, y=y, text_anchor=anchor, class_=class_ or None)


def line(x1: float, y1: float, x2: float, y2: float, class_: str) -> Html:
    """A straight line."""
    return tag("line", x1=x1, y1=y1, x2=x2, y2=y2, class_=class_)


def grouped_bars(groups: Sequence[tuple[str, Sequence[Bar]]], *, label: str, emphasised: str) -> Html:
    """Percentages as bars in labelled groups, each with its confidence interval as a whisker.

    The width of the drawing follows the number of bars, so that bars look alike in every chart.
    """
    bar, gap, left, top, height = 34.0, 30.0, 44.0, 26.0, 190.0
    most = max(len(bars) for _, bars in groups)
    pitch = most * bar + gap
    width = left + len(groups) * pitch + 4
    y = linear(0, 1, top + height, top)
    parts: list[Html] = []
    for share in (0.0, 0.25, 0.5, 0.75, 1.0):
        parts.append(line(left, y(share), width, y(share), "axis" if share == 0 else "grid"))
        parts.append(text(left - 8, y(share) + 4, f"{share:.0%}", anchor="end", class_="tick"))
    for index, (name, bars) in enumerate(groups):
        start = left + index * pitch + gap / 2 + (most - len(bars)) * bar / 2
        parts += [_bar(item, start + i * bar, bar - 6, y) for i, item in enumerate(bars)]
        style = "group strong" if name == emphasised else "group"
        parts.append(
            text(start + len(bars) * bar / 2 - 3, top + height + 20, name, anchor="middle", class_=style)
        )
    # As wide as drawn and no wider: two bars must not fill a page.
    return svg(width, top + height + 30, *parts, label=label, style=f"max-width:{width:.0f}px")


def _bar(item: Bar, x: float, width: float, y: Scale) -> Html:
    base, end = y(0.0), y(item.value)
    middle, cap = x + width / 2, 4.0
    parts = [
        tag("rect", x=x, y=end, width=width, height=max(base - end, 1.0), rx=2, class_=f"fill-{item.style}"),
    ]
    top = end
    if item.high > item.low:
        top = y(item.high)
        parts.append(line(middle, y(item.low), middle, top, "whisker"))
        parts += [line(middle - cap, y(v), middle + cap, y(v), "whisker") for v in (item.low, item.high)]
    parts.append(text(middle, top - 6, f"{100 * item.value:.0f}", anchor="middle", class_="value"))
    return tag("g", *parts, data_tip=item.tip, tabindex="0")


def loss_chart(series: Sequence[Series], rate: Sequence[tuple[float, float]], *, label: str) -> Html:
    """Loss over steps on a logarithmic axis, and under it the learning rate over the same steps.

    Raises:
        ValueError: If no loss is positive.
    """
    width, left, right, top, height, strip = 960.0, 54.0, 20.0, 14.0, 260.0, 56.0
    values = [value for one in series for _, value in one.points if value > 0]
    steps = [step for one in series for step, _ in one.points]
    if not values:
        raise ValueError("A loss curve needs at least one positive loss.")
    low, high = min(values) * 0.9, max(values) * 1.1
    x = linear(min(steps), max(steps), left, width - right)
    y = logarithmic(low, high, top + height, top)
    parts = [line(left, top + height, width - right, top + height, "axis")]
    for mark in log_ticks(low, high):
        parts.append(line(left, y(mark), width - right, y(mark), "grid"))
        parts.append(text(left - 8, y(mark) + 4, number(mark), anchor="end", class_="tick"))
    for one in series:
        if one.dots:
            dots = (tag("circle", cx=x(a), cy=y(b), r=1.7) for a, b in one.points)
            parts.append(tag("g", *dots, class_=f"dots fill-{one.style}"))
    parts += [_polyline([(x(a), y(b)) for a, b in one.smooth], f"curve stroke-{one.style}") for one in series]
    base = top + height + 30 + strip
    parts += _rate_strip(rate, x, base, strip, left, width - right)
    parts += [
        text(x(s), base + 18, number(s), anchor="middle", class_="tick")
        for s in ticks(min(steps), max(steps), 8)
    ]
    parts.append(line(left, top, left, base, "cursor"))
    hover = {
        "x": [left, width - right, min(steps), max(steps)],
        "series": [{"label": one.label, "points": _thin(one.smooth)} for one in series]
        + [{"label": "learning rate", "points": _thin(rate)}],
    }
    return svg(width, base + 26, *parts, label=label, class_="chart hover", data_hover=json.dumps(hover))


def share_chart(series: Sequence[Series], steps: tuple[float, float], *, label: str) -> Html:
    """Percentages over steps, on an axis from 0 to 100; ``points`` are shares of 1, joined by lines.

    Args:
        steps: The first and the last step of the axis.
    """
    width, left, right, top, height = 960.0, 54.0, 20.0, 14.0, 180.0
    x, y = linear(*steps, left, width - right), linear(0, 1, top + height, top)
    parts: list[Html] = []
    for mark in (0.0, 0.25, 0.5, 0.75, 1.0):
        parts.append(line(left, y(mark), width - right, y(mark), "grid" if mark else "axis"))
        parts.append(text(left - 8, y(mark) + 4, f"{100 * mark:.0f} %", anchor="end", class_="tick"))
    for one in series:
        dots = (
            tag("circle", cx=x(a), cy=y(b), r=3, data_tip=f"{one.label}, step {a:g}\n{100 * b:.1f} %")
            for a, b in one.points
        )
        parts.append(_polyline([(x(a), y(b)) for a, b in one.points], f"curve stroke-{one.style}"))
        parts.append(tag("g", *dots, class_=f"fill-{one.style}"))
    parts += [
        text(x(s), top + height + 18, number(s), anchor="middle", class_="tick") for s in ticks(*steps, 8)
    ]
    return svg(width, top + height + 26, *parts, label=label)


def _rate_strip(
    rate: Sequence[tuple[float, float]], x: Scale, base: float, height: float, left: float, right: float
) -> list[Html]:
    peak = max((value for _, value in rate), default=0.0)
    if peak <= 0:
        return []
    y = linear(0, peak, base, base - height)
    corners = [(x(step), y(value)) for step, value in rate]
    area = [(corners[0][0], base), *corners, (corners[-1][0], base)]
    return [
        tag("polygon", points=_points(area), class_="area-rate"),
        _polyline(corners, "curve stroke-rate"),
        line(left, base, right, base, "axis"),
        text(left - 8, y(peak) + 8, number(peak), anchor="end", class_="tick"),
        text(right, y(peak) - 6, "learning rate", anchor="end", class_="tick"),
    ]


def moving_mean(points: Sequence[tuple[float, float]], window: int) -> list[tuple[float, float]]:
    """The centred mean of up to ``window`` neighbours of each point; narrower at both ends."""
    half = window // 2
    smooth = []
    for index, (step, _) in enumerate(points):
        near = [value for _, value in points[max(0, index - half) : index + half + 1]]
        smooth.append((step, sum(near) / len(near)))
    return smooth


def _polyline(points: Sequence[tuple[float, float]], class_: str) -> Html:
    return tag("polyline", points=_points(points), class_=class_)


def _points(points: Sequence[tuple[float, float]]) -> str:
    return " ".join(f"{x:.1f},{y:.1f}" for x, y in points)


def _thin(points: Sequence[tuple[float, float]], at_most: int = 400) -> list[tuple[float, float]]:
    """Every n-th point, with four significant digits: more cannot be distinguished on hover."""
    every = max(1, len(points) // at_most)
    return [(step, float(f"{value:.4g}")) for step, value in points[::every]]


def legend(entries: Sequence[tuple[str, str]]) -> Html:
    """Coloured keys: ``(style, label)``."""
    keys = (tag("span", tag("i", class_=f"key {style}"), label) for style, label in entries)
    return tag("p", join(keys), class_="legend")
