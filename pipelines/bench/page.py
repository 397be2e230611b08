"""The result of a run as one HTML page: tiles, the table, times over the run, and their distribution."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from pipelines.bench.figures import Figures
from pipelines.bench.observed import Observed
from pipelines.html.charts import legend, line, svg, text
from pipelines.html.document import asset, document
from pipelines.html.layout import figure, section, table, tile, tiles
from pipelines.html.scale import linear, log_ticks, logarithmic, ticks
from pipelines.html.tags import Html, tag
from pipelines.text_format import number

Points = Sequence[tuple[float, float]]
WIDTH, LEFT, RIGHT, TOP, HEIGHT = 960.0, 64.0, 20.0, 14.0, 240.0
STYLES = {"first token": "image", "whole answer": "video", "caption": "blind"}
LEAST_S = 1e-3


def render(title: str, facts: str, rows: Sequence[tuple[str, str]], found: Figures, seen: Observed) -> str:
    """The page.

    Args:
        facts: What was asked of which endpoint.
        rows: The table, as the terminal shows it.
    """
    timed = _times(seen)
    body = [
        tag(
            "header", tag("p", "load", class_="kicker"), tag("h1", title), tag("p", facts, class_="subtitle")
        ),
        tag("main", _summary(found), _charts(timed), _table(rows)),
    ]
    return document(title, asset("pipelines.html", "report.css"), *body)


def _summary(found: Figures) -> Html:
    return tiles(
        tile(_ms(found.first_token.p95), "to the first token, P95", f"P50 {_ms(found.first_token.p50)}"),
        tile(_ms(found.answer.p95), "whole answer, P95", f"P50 {_ms(found.answer.p50)}"),
        tile(
            f"{found.tokens_per_second:.1f}", "tokens per second", f"{found.answers_per_second:.2f} answers"
        ),
        tile(_share(found.attainment), "of live frames on time", f"{found.underruns} underruns"),
    )


def _charts(timed: dict[str, Points]) -> Html:
    drawn = {name: points for name, points in timed.items() if points}
    if not drawn:
        return section("Times", "Nothing was answered.")
    keys = legend([(STYLES[name], name) for name in drawn])
    return section(
        "Times",
        "Each counts from the planned time of its call or frame, whether or not the generator was late.",
        keys,
        figure("Over the run", _over_time(drawn), note="Seconds after the beginning; times on a log scale."),
        figure("Distribution", _distribution(drawn), note="Part of all that took no longer than this."),
    )


def _table(rows: Sequence[tuple[str, str]]) -> Html:
    return section(
        "All figures", "As the terminal shows them.", table(["figure", "value"], rows, numeric=[1])
    )


def _times(seen: Observed) -> dict[str, Points]:
    """Name → when it was planned, seconds after the beginning, and how long it took."""
    done = [one for one in seen.answers if one.fate == "answered"]
    frames = [one for view in seen.sessions for one in view.frames if one.fate == "answered"]
    return {
        "first token": [(one.planned - seen.began, one.first - one.planned) for one in done],
        "whole answer": [(one.planned - seen.began, one.ended - one.planned) for one in done],
        "caption": [(one.came - seen.began, one.ended - one.came) for one in frames],
    }


def _bounds(drawn: dict[str, Points]) -> tuple[float, float]:
    times = [max(seconds, LEAST_S) for points in drawn.values() for _, seconds in points]
    return min(times) * 0.9, max(times) * 1.1


def _over_time(drawn: dict[str, Points]) -> Html:
    low, high = _bounds(drawn)
    last = max(at for points in drawn.values() for at, _ in points)
    x, y = linear(0, last, LEFT, WIDTH - RIGHT), logarithmic(low, high, TOP + HEIGHT, TOP)
    parts: list[Any] = []
    for mark in log_ticks(low, high):
        parts.append(line(LEFT, y(mark), WIDTH - RIGHT, y(mark), "grid"))
        parts.append(text(LEFT - 8, y(mark) + 4, _ms(mark), anchor="end", class_="tick"))
    for mark in ticks(0, last, 8):
        parts.append(text(x(mark), TOP + HEIGHT + 18, number(mark), anchor="middle", class_="tick"))
    for name, points in drawn.items():
        dots = (tag("circle", cx=x(at), cy=y(seconds), r=2.2) for at, seconds in points)
        parts.append(tag("g", *dots, class_=f"fill-{STYLES[name]}", opacity=0.7))
    return svg(WIDTH, TOP + HEIGHT + 26, *parts, label="Times over the run")


def _distribution(drawn: dict[str, Points]) -> Html:
    low, high = _bounds(drawn)
    x, y = logarithmic(low, high, LEFT, WIDTH - RIGHT), linear(0, 1, TOP + HEIGHT, TOP)
    parts: list[Any] = []
    for share in (0.0, 0.25, 0.5, 0.75, 0.95):
        parts.append(line(LEFT, y(share), WIDTH - RIGHT, y(share), "axis" if share == 0 else "grid"))
        parts.append(text(LEFT - 8, y(share) + 4, f"{share:.0%}", anchor="end", class_="tick"))
    for mark in log_ticks(low, high):
        parts.append(text(x(mark), TOP + HEIGHT + 18, _ms(mark), anchor="middle", class_="tick"))
    for name, points in drawn.items():
        ordered = sorted(max(seconds, LEAST_S) for _, seconds in points)
        corners = " ".join(f"{x(s):.1f},{y((n + 1) / len(ordered)):.1f}" for n, s in enumerate(ordered))
        parts.append(tag("polyline", points=corners, class_=f"curve stroke-{STYLES[name]}"))
    return svg(WIDTH, TOP + HEIGHT + 26, *parts, label="Distribution of times")


def _ms(seconds: float) -> str:
    return "-" if seconds != seconds else f"{number(seconds * 1000)} ms"


def _share(part: float) -> str:
    return "-" if part != part else f"{part:.1%}"
