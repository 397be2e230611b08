"""Drawings of the data cards: logarithmic histograms, and fill beside the best possible."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from pipelines.html.charts import line, svg, text
from pipelines.html.scale import linear, ticks
from pipelines.html.tags import Html, tag
from pipelines.text_format import number

WIDTH = 420.0
_LEFT, _TOP, _HEIGHT = 46.0, 14.0, 96.0
_LABEL_WIDTH = 44.0
"""User units that a number under the axis needs."""
_WIDEST = 46.0
"""User units of a bin at most: one full bin is a column, not a wall."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Counts:
    """How many values fall between neighbouring edges.

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
    """Columns of equal width, one a bin, with edges written below and counts at the left.

    Args:
        found: Bins that grow by a factor; their edges are written, not drawn to scale.
        style: Colour's class.
        unit: Of the edges, written under the axis and in the hints.
        label: What a screen reader says.
    """
    count = len(found.counts)
    right = WIDTH - 10
    pitch = min((right - _LEFT) / max(count, 1), _WIDEST)
    most = max([*found.counts, 1])
    y = linear(0, most, _TOP + _HEIGHT, _TOP)
    base = _TOP + _HEIGHT
    parts = [line(_LEFT, base, right, base, "axis")]
    for mark in _count_marks(most):
        parts.append(line(_LEFT, y(mark), right, y(mark), "grid"))
        parts.append(text(_LEFT - 7, y(mark) + 4, number(mark), anchor="end", class_="tick"))
    total = max(sum(found.counts), 1)
    for index, own in enumerate(found.counts):
        low, high = found.edges[index], found.edges[index + 1]
        if own:
            tip = f"{number(low)} to {number(high)} {unit}: {own:,} ({own / total:.1%})"
            bar = tag("rect", x=_LEFT + index * pitch + 0.75, y=y(own), width=max(pitch - 1.5, 0.5),
                      height=max(base - y(own), 1.0), rx=1.5, class_=f"fill-{style}")  # fmt: skip
            parts.append(tag("g", bar, data_tip=tip, tabindex="0"))
    every = max(1, -(-int(_LABEL_WIDTH) // max(int(pitch), 1)))
    for index in range(0, count + 1, every):
        parts.append(
            text(_LEFT + index * pitch, base + 15, number(found.edges[index]), anchor="middle", class_="tick")
        )
    parts.append(text(_LEFT, base + 31, unit, class_="tick"))
    return svg(WIDTH, base + 36, *parts, label=label)


def meter(name: str, reached: float, best: float | None, tip: str, *, style: str) -> Html:
    """A share as a bar from 0 to 1, with a stroke where the best possible lies, if that is known."""
    bar = tag("i", class_=f"level {style}", style=f"width:{_percent(reached)}")
    mark = "" if best is None else tag("b", class_="best", style=f"left:{_percent(best)}")
    said = f"{100 * reached:.1f} %"
    return tag(
        "div",
        tag("label", name),
        tag("div", bar, mark, class_="track", data_tip=tip, tabindex="0"),
        tag("span", said, "" if best is None else tag("small", f"best {100 * best:.1f} %")),
        class_="meter",
    )


def share_bar(asked: float | None, realised: float) -> Html:
    """A realised share as a bar from 0 to 1, with a stroke at the share that was asked for, if one was."""
    parts = [tag("i", class_="level model", style=f"width:{_percent(realised)}")]
    if asked is not None:
        parts.append(tag("b", class_="best", style=f"left:{_percent(asked)}"))
    return tag("div", *parts, class_="track small")


def fill_histogram(counts: Sequence[int], edges: Sequence[float], *, style: str, label: str) -> Html:
    """Sequences by fill, from 0 to 100 %, with the largest count written at the left."""
    right, most = WIDTH - 10, max([*counts, 1])
    x = linear(0, 1, _LEFT, right)
    y = linear(0, most, _TOP + _HEIGHT, _TOP)
    base = _TOP + _HEIGHT
    parts = [line(_LEFT, base, right, base, "axis")]
    for mark in _count_marks(most):
        parts.append(line(_LEFT, y(mark), right, y(mark), "grid"))
        parts.append(text(_LEFT - 7, y(mark) + 4, number(mark), anchor="end", class_="tick"))
    for own, low, high in zip(counts, edges, edges[1:], strict=False):
        if own:
            bar = tag("rect", x=x(low) + 0.75, y=y(own), width=max(x(high) - x(low) - 1.5, 0.5),
                      height=max(base - y(own), 1.0), rx=1.5, class_=f"fill-{style}")  # fmt: skip
            tip = f"{own:,} sequences filled {low:.0%} to {high:.0%}"
            parts.append(tag("g", bar, data_tip=tip, tabindex="0"))
    for share in (0.0, 0.25, 0.5, 0.75, 1.0):
        parts.append(text(x(share), base + 15, f"{share:.0%}", anchor="middle", class_="tick"))
    return svg(WIDTH, base + 22, *parts, label=label)


def _count_marks(most: int) -> list[float]:
    """Two or three round numbers up to ``most``, to be written beside an axis of counts."""
    return [mark for mark in ticks(0, most, 3) if mark > 0 and mark == int(mark)] or [float(most)]


def _percent(share: float) -> str:
    return f"{100 * min(max(share, 0.0), 1.0):.2f}%"
