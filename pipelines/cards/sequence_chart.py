"""Charts of packed sequences and samples: histograms, and meters of fill beside the best possible."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from pipelines.html.charts import line, svg, text
from pipelines.html.scale import linear, ticks
from pipelines.html.tags import Html, tag
from pipelines.text_format import number

WIDTH = 420.0
_LEFT, _RIGHT, _TOP, _BASE = 46.0, WIDTH - 10, 14.0, 110.0
_LABEL_WIDTH = 44.0
"""User units that a number under the axis needs."""
_WIDEST = 46.0
"""Largest width of a column, user units."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Counts:
    """Number of values between neighbouring edges.

    Attributes:
        edges: Ascending; one more than ``counts``.
        counts: The last bin includes its upper edge.
    """

    edges: tuple[float, ...]
    counts: tuple[int, ...]


def powers_of_two(values: Iterable[float]) -> Counts:
    """Counts of values from 0 up in bins [0, 1), [1, 2), [2, 4), …; leading empty bins are left out."""
    bins = [int(value).bit_length() for value in values]
    first, last = min(bins, default=0), max(bins, default=0)
    counts = [0] * (last - first + 1)
    for own in bins:
        counts[own - first] += 1
    edges = [0 if power == 0 else 1 << (power - 1) for power in range(first, last + 2)]
    return Counts(edges=tuple(map(float, edges)), counts=tuple(counts))


def log_histogram(found: Counts, *, style: str, unit: str, label: str) -> Html:
    """Columns of equal width, one per bin, with edges written below and counts at the left.

    Args:
        found: Bins that grow by a factor; their edges are written, not drawn to scale.
        style: Class of the colour.
        unit: Unit of the edges, written under the axis and in the hints.
        label: Text for screen readers.
    """
    count, total = len(found.counts), max(sum(found.counts), 1)
    pitch = min((_RIGHT - _LEFT) / max(count, 1), _WIDEST)
    ends = [_LEFT + index * pitch for index in range(count + 1)]
    tips = [
        f"{number(low)} to {number(high)} {unit}: {own:,} ({own / total:.1%})"
        for own, low, high in zip(found.counts, found.edges, found.edges[1:], strict=False)
    ]
    parts = _columns(found.counts, ends, tips, style)
    every = max(1, -(-int(_LABEL_WIDTH) // max(int(pitch), 1)))
    for index in range(0, count + 1, every):
        parts.append(
            text(ends[index], _BASE + 15, number(found.edges[index]), anchor="middle", class_="tick")
        )
    parts.append(text(_LEFT, _BASE + 31, unit, class_="tick"))
    return svg(WIDTH, _BASE + 36, *parts, label=label)


def fill_histogram(counts: Sequence[int], edges: Sequence[float], *, style: str, label: str) -> Html:
    """Columns of sequences by fill, from 0 to 100 %, with counts at the left.

    Args:
        counts: Number of sequences in each bin.
        edges: Edges of the bins, from 0 to 1; one more than ``counts``.
        style: Class of the colour.
        label: Text for screen readers.
    """
    x = linear(0, 1, _LEFT, _RIGHT)
    tips = [
        f"{own:,} sequences filled {low:.0%} to {high:.0%}"
        for own, low, high in zip(counts, edges, edges[1:], strict=False)
    ]
    parts = _columns(counts, [x(edge) for edge in edges], tips, style)
    for share in (0.0, 0.25, 0.5, 0.75, 1.0):
        parts.append(text(x(share), _BASE + 15, f"{share:.0%}", anchor="middle", class_="tick"))
    return svg(WIDTH, _BASE + 22, *parts, label=label)


def _columns(counts: Sequence[int], ends: Sequence[float], tips: Sequence[str], style: str) -> list[Html]:
    """Axis, grid with counts, and one column with a hint per non-empty bin between neighbouring ``ends``."""
    most = max([*counts, 1])
    y = linear(0, most, _BASE, _TOP)
    parts = [line(_LEFT, _BASE, _RIGHT, _BASE, "axis")]
    for mark in [mark for mark in ticks(0, most, 3) if mark > 0 and mark == int(mark)] or [float(most)]:
        parts.append(line(_LEFT, y(mark), _RIGHT, y(mark), "grid"))
        parts.append(text(_LEFT - 7, y(mark) + 4, number(mark), anchor="end", class_="tick"))
    for own, left, right, tip in zip(counts, ends, ends[1:], tips, strict=False):
        if own:
            bar = tag("rect", x=left + 0.75, y=y(own), width=max(right - left - 1.5, 0.5),
                      height=max(_BASE - y(own), 1.0), rx=1.5, class_=f"fill-{style}")  # fmt: skip
            parts.append(tag("g", bar, data_tip=tip, tabindex="0"))
    return parts


def meter(name: str, reached: float, best: float | None, tip: str, *, style: str) -> Html:
    """A share as a bar from 0 to 1, with a stroke at the best possible share, if that is known."""
    bar = tag("i", class_=f"level {style}", style=f"width:{_percent(reached)}")
    mark = "" if best is None else tag("b", class_="best", style=f"left:{_percent(best)}")
    return tag(
        "div",
        tag("label", name),
        tag("div", bar, mark, class_="track", data_tip=tip, tabindex="0"),
        tag(
            "span", f"{100 * reached:.1f} %", "" if best is None else tag("small", f"best {100 * best:.1f} %")
        ),
        class_="meter",
    )


def share_bar(asked: float | None, realised: float) -> Html:
    """A realised share as a bar from 0 to 1, with a stroke at the requested share, if there is one."""
    parts = [tag("i", class_="level model", style=f"width:{_percent(realised)}")]
    if asked is not None:
        parts.append(tag("b", class_="best", style=f"left:{_percent(asked)}"))
    return tag("div", *parts, class_="track small")


def _percent(share: float) -> str:
    return f"{100 * min(max(share, 0.0), 1.0):.2f}%"
