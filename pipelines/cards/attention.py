"""Attention charts: average weights by kind of token, shares by layer, heat maps over a picture.

Coordinates are SVG user units, y downwards. Colours of kinds are classes of ``inspection.css``.

Shape suffixes: R × C rows and columns of image tokens, 4 colour channels with opacity.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

from casa_core.analysis.attention_stats import AttentionTable, KindMean, Kinds
from casa_core.analysis.maps import ImageMap
from pipelines.html.charts import line, svg, text
from pipelines.html.pictures import picture
from pipelines.html.scale import Scale, linear, log_ticks, logarithmic
from pipelines.html.tags import Html, tag
from pipelines.text_format import number

LABELS = {
    "delimiter": "image delimiters",
    "image": "image tokens",
    "text": "other text",
    "itself": "the token itself",
}
_TOP, _LEFT, _RIGHT, _WIDTH, _HEIGHT = 24.0, 62.0, 20.0, 960.0, 300.0
_LABELLED = 0.09
"""Smallest share that has room for its number."""


def kinds_of(kinds: Kinds) -> Iterator[tuple[str, KindMean]]:
    """The kinds that some query attends to, in the order of the paper's Figure 7."""
    for name in LABELS:
        mean: KindMean = getattr(kinds, name)
        if mean.per_token is not None:
            yield name, mean


def kinds_chart(table: AttentionTable) -> Html:
    """Average weight per token of each kind on a logarithmic axis, image tokens by group (Figure 7)."""
    columns = _columns(table)
    weights = [weight for _, points in columns for _, weight in points if weight > 0]
    low, high = _decades([*weights, table.even])
    y = logarithmic(low, high, _TOP + _HEIGHT, _TOP)
    parts = [line(_LEFT, _TOP + _HEIGHT, _WIDTH - _RIGHT, _TOP + _HEIGHT, "axis")]
    marks = log_ticks(low, high)
    if len(marks) > 12:
        marks = [mark for mark in marks if math.log10(mark) == round(math.log10(mark))]
    for mark in marks:
        parts.append(line(_LEFT, y(mark), _WIDTH - _RIGHT, y(mark), "grid"))
        parts.append(text(_LEFT - 10, y(mark) + 4, number(mark), anchor="end", class_="tick"))
    parts.append(line(_LEFT, y(table.even), _WIDTH - _RIGHT, y(table.even), "even"))
    for (name, points), (start, end) in zip(columns, _spans(columns), strict=True):
        parts += _column(name, points, linear(-0.5, len(points) - 0.5, start, end), y)
        label = LABELS[name]
        if len(points) > 1:
            label = f"{label}: {number(table.whole.image.per_token or 0.0)} on average"
        parts.append(
            text((start + end) / 2, _TOP + _HEIGHT + 22, label, anchor="middle", class_=f"ink-{name}")
        )
    return svg(
        _WIDTH,
        _TOP + _HEIGHT + 34,
        *parts,
        label="Average attention weight by kind of token",
        class_="chart kinds",
    )


# A kind, and its points: label and weight.
_Column = tuple[str, list[tuple[str, float]]]


def _columns(table: AttentionTable) -> list[_Column]:
    found: list[_Column] = []
    for name, mean in kinds_of(table.whole):
        assert mean.per_token is not None, "kinds_of leaves the others out"
        points = [(LABELS[name], mean.per_token)]
        if name == "image":
            groups = [group.per_token for group in table.whole.image_groups]
            first = [table.group * n for n in range(len(groups))]
            points = [
                (
                    f"image tokens {start} to {start + table.group - 1}"
                    if table.group > 1
                    else f"image token {start}",
                    weight,
                )
                for start, weight in zip(first, groups, strict=True)
                if weight is not None
            ]
        found.append((name, points))
    return found


def _spans(columns: Sequence[_Column]) -> list[tuple[float, float]]:
    """Left and right end of each kind: image groups share what the fixed widths of single points leave."""
    single = 120.0
    total, singles = _WIDTH - _RIGHT - _LEFT, sum(len(points) == 1 for _, points in columns)
    if singles == len(columns):
        widths = [total / len(columns)] * len(columns)
    else:
        widths = [single if len(points) == 1 else total - singles * single for _, points in columns]
    ends = [_LEFT + sum(widths[: n + 1]) for n in range(len(widths))]
    return [(end - width, end) for end, width in zip(ends, widths, strict=True)]


def _column(name: str, points: Sequence[tuple[str, float]], x: Scale, y: Scale) -> Iterator[Html]:
    """One kind: a labelled dot, or a line through many."""
    floor = _TOP + _HEIGHT
    if len(points) > 1:
        corners = " ".join(f"{x(n):.1f},{y(weight):.1f}" for n, (_, weight) in enumerate(points))
        yield tag("polyline", points=corners, class_=f"curve stroke-{name}")
    for n, (what, weight) in enumerate(points):
        alone = len(points) == 1
        dot = tag("circle", cx=x(n), cy=y(weight), r=6 if alone else 3.2, class_=f"fill-{name}")
        parts = [line(x(n), floor, x(n), y(weight), f"stem stroke-{name}"), dot]
        if alone:
            parts.append(text(x(n), y(weight) - 12, number(weight), anchor="middle", class_="value"))
        yield tag("g", *parts, data_tip=f"{what}: {weight:.3g} per token", tabindex="0")


def _decades(weights: Sequence[float]) -> tuple[float, float]:
    """Whole powers of ten around all weights, with room for a label above."""
    low = 10.0 ** math.floor(math.log10(min(weights)) - 0.05)
    high = 10.0 ** math.ceil(math.log10(max(weights) * 1.5))
    return low, high


def share_rows(table: AttentionTable) -> Html:
    """Bars of how a text token's attention is divided among the kinds: over all fused layers, and in each."""
    rows = [
        ("all layers", table.whole),
        *((f"layer {layer}", kinds) for layer, kinds in table.layers.items()),
    ]
    drawn = []
    for number_, (label, kinds) in enumerate(rows):
        shares = [(name, mean.share) for name, mean in kinds_of(kinds)]
        bars = [
            tag(
                "span",
                f"{share:.0%}" if share >= _LABELLED else "",
                class_=f"kind back-{name}",
                style=f"flex-grow:{share:.5f}",
                data_tip=f"{label}, {LABELS[name]}: {share:.1%}",
                tabindex="0",
            )
            for name, share in shares
        ]
        style = "sharerow strong" if number_ == 0 else "sharerow"
        drawn.append(tag("div", tag("span", label), tag("div", *bars, class_="shares"), class_=style))
    return tag("div", *drawn)


def kinds_legend(table: AttentionTable) -> Html:
    """Legend of the kinds' colours."""
    keys = [
        tag("span", tag("i", class_=f"key back-{name}"), LABELS[name]) for name, _ in kinds_of(table.whole)
    ]
    return tag("p", *keys, class_="legend")


# Stops of the heat scale: red, green, blue.
_HEAT = np.array([(72, 30, 160), (200, 45, 120), (250, 130, 40), (255, 240, 140)], dtype=np.float64)


def heat(weights_RC: ImageMap, *, alt: str) -> Html:
    """Transparent picture of one pixel per image token, to be laid over an image; hottest at the maximum."""
    top = weights_RC.max()
    return picture(_heat_colors(weights_RC / top if top > 0 else weights_RC), alt=alt, class_="heat")


def heat_legend() -> Html:
    """Legend of the heat scale."""
    strip = picture(_heat_colors(np.linspace(0, 1, 64)[None]), alt="from none to most", class_="strip-heat")
    return tag("p", "none ", strip, " most, for each word by itself", class_="legend")


def _heat_colors(level_RC: NDArray[np.float64]) -> NDArray[np.uint8]:
    """Levels from 0 to 1 → (R, C, 4)."""
    stops = np.linspace(0, 1, len(_HEAT))
    channels = [np.interp(level_RC, stops, _HEAT[:, channel]) for channel in range(3)]
    opacity = 225 * level_RC**0.8
    return np.stack([*channels, opacity], axis=-1).round().astype(np.uint8)
