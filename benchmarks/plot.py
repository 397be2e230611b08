"""Line charts as stand-alone SVG files on a white ground, for the pages in benchmarks/results."""

from __future__ import annotations

import html
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

COLOURS = ("#1b6ca8", "#c8553d", "#2e7d4f", "#7a4fa3", "#8a6d1a", "#555555", "#b3246b", "#0f8b8d")
WIDTH, HEIGHT, LEFT, RIGHT, TOP, BOTTOM = 520.0, 330.0, 74.0, 18.0, 46.0, 52.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Line:
    """A named line; its points in order."""

    label: str
    points: Sequence[tuple[float, float]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Panel:
    """One pair of axes, with its lines; the y axis is linear from 0, or logarithmic."""

    title: str
    x: str
    y: str
    lines: Sequence[Line]
    logarithmic: bool = False


def figure(panels: Sequence[Panel], *, caption: str) -> str:
    """Panels side by side over one legend, as an SVG document.

    Args:
        panels: Lines of the same label have the same colour in all.
        caption: Alternative text, for screen readers.

    Raises:
        ValueError: For more labels than there are colours.
    """
    labels = list(dict.fromkeys(line.label for panel in panels for line in panel.lines))
    if len(labels) > len(COLOURS):
        raise ValueError(f"{len(labels)} labels, and {len(COLOURS)} colours to tell them apart.")
    colours = dict(zip(labels, COLOURS, strict=False))
    width = WIDTH * len(panels)
    parts = [_panel(panel, WIDTH * number, colours) for number, panel in enumerate(panels)]
    step = width / len(labels)
    for number, label in enumerate(labels):
        x, y = step * number + 20, HEIGHT + 12
        parts.append(f'<path d="M{x:.0f} {y}h26" stroke="{colours[label]}" stroke-width="3"/>')
        parts.append(_text(x + 33, y + 4, label))
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width:.0f} {HEIGHT + 30:.0f}" '
        f'role="img" aria-label="{html.escape(caption, quote=True)}" '
        'font-family="system-ui, sans-serif" font-size="13" fill="#222">\n'
        '<rect width="100%" height="100%" fill="#fff"/>\n' + "\n".join(parts) + "\n</svg>\n"
    )


def _panel(panel: Panel, offset: float, colours: Mapping[str, str]) -> str:
    xs = [x for line in panel.lines for x, _ in line.points]
    ys = [y for line in panel.lines for _, y in line.points]
    left, right = offset + LEFT, offset + WIDTH - RIGHT
    top, bottom = TOP, HEIGHT - BOTTOM
    highest = max(xs)
    marks, low, high = _log_marks(min(ys), max(ys)) if panel.logarithmic else _marks(max(ys))
    warp = math.log if panel.logarithmic else float
    place_x = lambda x: left + (right - left) * x / highest  # noqa: E731
    place_y = lambda y: bottom - (bottom - top) * (warp(max(y, low)) - warp(low)) / (warp(high) - warp(low))  # noqa: E731
    parts = [_text(left, top - 22, panel.title, weight="600")]
    for mark in marks:
        y = place_y(mark)
        parts.append(f'<path d="M{left:.1f} {y:.1f}H{right:.1f}" stroke="#ddd"/>')
        parts.append(_text(left - 8, y + 4, _number(mark), anchor="end"))
    for mark in _marks(highest)[0]:
        if mark <= highest:
            parts.append(_text(place_x(mark), bottom + 18, _number(mark), anchor="middle"))
    parts.append(f'<path d="M{left:.1f} {bottom:.1f}H{right:.1f}" stroke="#444"/>')
    parts.append(_text((left + right) / 2, bottom + 40, panel.x, anchor="middle"))
    middle = (top + bottom) / 2
    parts.append(
        f'<g transform="translate({offset + 18:.0f} {middle:.0f}) rotate(-90)">'
        f"{_text(0, 0, panel.y, anchor='middle')}</g>"
    )
    for line in panel.lines:
        points = " ".join(f"{place_x(x):.1f},{place_y(y):.1f}" for x, y in line.points)
        stroke = f'stroke="{colours[line.label]}" stroke-width="2" fill="none"'
        name = f"<title>{html.escape(line.label)}</title>"
        parts.append(f'<polyline points="{points}" {stroke}>{name}</polyline>')
    return "\n".join(parts)


def _text(x: float, y: float, content: str, *, anchor: str = "start", weight: str = "400") -> str:
    return (
        f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}" font-weight="{weight}">'
        f"{html.escape(content)}</text>"
    )


def _marks(high: float) -> tuple[list[float], float, float]:
    """About five round marks from 0, and the axis' ends."""
    raw = (high or 1.0) / 5
    power = 10.0 ** math.floor(math.log10(raw))
    step = next(factor * power for factor in (1, 2, 5, 10) if factor * power >= raw * 0.999)
    count = math.ceil(high / step - 1e-9)
    return [step * number for number in range(count + 1)], 0.0, step * max(count, 1)


def _log_marks(low: float, high: float) -> tuple[list[float], float, float]:
    """1, 2 and 5 times powers of ten around ``low…high``, and the axis' ends."""
    powers = range(math.floor(math.log10(low)) - 1, math.ceil(math.log10(high)) + 1)
    marks = [factor * 10.0**power for power in powers for factor in (1, 2, 5)]
    start = max(mark for mark in marks if mark <= low)
    end = min(mark for mark in [*marks, marks[-1] * 2] if mark >= high * 0.999)
    return [mark for mark in marks if start <= mark <= end], start, max(end, start * 2)


def _number(value: float) -> str:
    return f"{value:,.0f}" if value >= 10 or value == int(value) else f"{value:.2g}"
