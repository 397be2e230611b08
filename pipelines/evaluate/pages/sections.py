"""Parts of an evaluation's page: the table of scores, and a section for each benchmark."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from casa_core.printable import printable
from pipelines.evaluate.facts import facts_of
from pipelines.evaluate.metrics.by_name import METRICS
from pipelines.evaluate.pages.browsing import answer, browser, embedded, numbered, question_row, verdict
from pipelines.evaluate.pages.strip import strip
from pipelines.evaluate.pages.thumbnails import Thumbnails
from pipelines.evaluate.results import BenchmarkResult, Score
from pipelines.html.layout import figure, fold, section, table, tile, tiles
from pipelines.html.tags import Html, join, tag
from pipelines.text_format import duration

KINDS = {
    "wrong": "Wrong",
    "partly": "Partly right",
    "right": "Right",
    "failed": "Failed",
    "empty": "Empty",
    "cut": "Cut at the token limit",
}
ORDERS = {"first": "Worst first", "last": "Best first", "index": "As in the benchmark"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Shown:
    """One benchmark, in one setting, on the page.

    Attributes:
        name: Its folder's: the benchmark's, and behind an ``@`` what sets the setting apart.
        samples: Rows of the result's ``samples.parquet``.
        pictures: Those of the questions that are shown with theirs.
        missing: Why others are missing; empty where none are.
    """

    name: str
    result: BenchmarkResult
    samples: Sequence[Mapping[str, Any]]
    pictures: Thumbnails
    missing: str = ""

    @property
    def anchor(self) -> str:
        """The id of its section."""
        return anchor_of(self.name)


def anchor_of(name: str) -> str:
    """The id of the section about a benchmark's folder."""
    return re.sub(r"[^\w-]", "-", f"benchmark-{name}")


def scores_section(shown: Sequence[Shown]) -> Html:
    """All headlines in one table, beside published ones of a model that can be chosen."""
    lead = (
        "Each headline with its 95 % bootstrap interval over what is independent. A question without an "
        "answer counts as wrong. In the drawings the dot is this model, the ticks are published scores."
    )
    published: dict[str, dict[str, str]] = {}
    for one in shown:
        for row in one.result.published:
            scores = published.setdefault(f"{row['model']} ({row['source']})", {})
            scores[one.anchor] = f"{row['score']:g}"
    head = ["benchmark", "score", "95 % interval", "unit", "questions", "failed", "empty", "cut"]
    rows = [_score_row(one.anchor, one.result) for one in shown]
    if published:
        head += ["published", "drawn"]
        first = next(iter(published.values()))
        for one, row in zip(shown, rows, strict=True):
            row.append(tag("span", first.get(one.anchor, ""), data_beside=one.anchor))
            row.append(strip(one.result, 260.0))
    return section("Scores", lead, _choice(published), table(head, rows, numeric=[1, 2, 4, 5, 6, 7, 8]))


def _choice(published: Mapping[str, Mapping[str, str]]) -> Html:
    if not published:
        return Html("")
    options = (tag("option", name) for name in published)
    label = tag("label", "Published scores of", tag("select", *options, id="beside"), class_="pick")
    return join([label, tag("div", embedded(published), id="published")])


def _score_row(anchor: str, one: BenchmarkResult) -> list[object]:
    failed = sum(one.failed.values())
    return [
        tag("a", one.title, href=f"#{anchor}"),
        tag("b", f"{one.score.value:.1f}"),
        interval(one.score),
        one.score.unit,
        f"{one.questions:,}",
        *(tag("span", f"{n:,}", class_="bad" if n else None) for n in (failed, one.empty, one.cut)),
    ]


def interval(score: Score) -> str:
    """``61.2 to 64.8``."""
    return f"{score.low:.1f} to {score.high:.1f}"


def benchmark_section(one: Shown) -> Html:
    """A benchmark: tiles, what failed, categories, published scores, facts, answers."""
    result, rows = one.result, len(one.samples)
    lead = f"{result.score.metric}, version {result.score.version}: {result.score.rule}.".replace("`", "")
    shown = f"{len(one.pictures):,} of {rows:,} rows have their pictures here: the worst, and some of all."
    return tag(
        "section",
        tag("h2", result.title),
        tag("p", lead, class_="lead"),
        _tiles(result, rows),
        _failures(result),
        _beside(result),
        _parts(result),
        _judge(result),
        _published(result),
        _facts(result),
        tag("h3", "Answers"),
        tag("p", f"{shown} {printable(one.missing)}", class_="note"),
        _answers(one),
        id=one.anchor,
    )


def _tiles(result: BenchmarkResult, rows: int) -> Html:
    score, speed = result.score, result.throughput
    rate = [f"{speed.asked / speed.seconds:.1f}", tag("i", "a second")] if speed.asked else ["none"]
    run = f"{speed.asked:,} in {duration(speed.seconds)}, all benchmarks; workers: {speed.workers}"
    most = result.data.get("most")
    asked = f"the first {most:,} only" if most is not None else "all of the split"
    none = f"; {unread:,} more rows are none" if (unread := rows - result.questions) else ""
    return tiles(
        tile(
            join([f"{score.value:.1f}", tag("i", score.unit)]),
            "score",
            f"95 %: {interval(score)}",
            style="big",
        ),
        tile(f"{result.questions:,}", "questions", asked + none),
        tile(f"{sum(result.failed.values()):,}", "failed", "counted as wrong"),
        tile(
            f"{result.empty:,} / {result.cut:,}", "empty / cut", "answers without a text / at the token limit"
        ),
        tile(join(rate), "asked in this run", f"{run}, {speed.device}"),
    )


def _failures(result: BenchmarkResult) -> Html:
    if not result.failed:
        return Html("")
    rows = [[f"{count:,}", printable(reason)] for reason, count in result.failed.items()]
    return join([tag("h3", "Without an answer"), table(["rows", "reason"], rows, numeric=[0])])


def _beside(result: BenchmarkResult) -> Html:
    if not result.beside:
        return Html("")
    rows = [
        [f"{one.metric}, version {one.version}", f"{one.value:.1f}", interval(one), one.unit, one.rule]
        for one in result.beside
    ]
    head = ["metric", "score", "95 % interval", "unit", "rule"]
    return join([tag("h3", "By other metrics"), table(head, rows, numeric=[1, 2])])


def _parts(result: BenchmarkResult) -> Html:
    parts = result.score.parts
    if not parts:
        return Html("")
    most = max(*parts.values(), METRICS[result.score.metric].scale if result.score.metric in METRICS else 0.0)
    rows = [
        [name, f"{value:.1f}", tag("div", tag("i", style=f"width:{100 * value / most:.1f}%"), class_="bar")]
        for name, value in parts.items()
    ]
    return join([tag("h3", "By category"), table(["category", result.score.unit, ""], rows, numeric=[1])])


def _judge(result: BenchmarkResult) -> Html:
    if not result.judge:
        return Html("")
    who = (
        f"{result.judge['model']}, against {result.judge['baseline']}, by {result.judge['wording']} wording."
    )
    rows = [[name.replace("_", " "), f"{count:,}"] for name, count in result.judge["counts"].items()]
    return join(
        [tag("h3", "The judge"), tag("p", who, class_="note"), table(["", "count"], rows, numeric=[1])]
    )


def _published(result: BenchmarkResult) -> Html:
    if not result.published:
        return Html("")
    own = result.score.value
    rows = [
        [
            one["model"],
            f"{one['score']:g}",
            f"{own - one['score']:+.1f}",
            one["source"],
            one["setting"],
            one["where"],
        ]
        for one in sorted(result.published, key=lambda one: -one["score"])
    ]
    head = ["model", "score", "ours minus it", "source", "setting", "where"]
    note = "The dot with its interval is this model; each tick is a published score."
    return join(
        [
            figure("Beside published scores", strip(result, 420.0), note=note),
            fold(f"All {len(rows)} published scores with their sources", table(head, rows, numeric=[1, 2])),
        ]
    )


def _facts(result: BenchmarkResult) -> Html:
    facts = facts_of(result) | {"date": result.date}
    rows = [[name, tag("code", printable(value))] for name, value in facts.items()]
    return fold("What the score depends on", tag("div", table(["fact", "value"], rows), class_="facts"))


def _answers(one: Shown) -> Html:
    unique, places = numbered(one.pictures)
    worst_first = sorted(one.samples, key=lambda row: (-1.0 if row["error"] else row["score"], row["index"]))
    rows = [_row(sample, places.get(sample["index"], ())) for sample in worst_first]
    return browser(rows, unique, answers=["answer"], value="score", kinds=KINDS, orders=ORDERS)


def _row(sample: Mapping[str, Any], pictures: Sequence[int]) -> dict[str, Any]:
    score, said = sample["score"], sample["answer"]
    kinds = ["failed" if sample["error"] else verdict(score)]
    kinds += ["empty"] if said is not None and not said.strip() else []
    kinds += ["cut"] if sample["finish_reason"] == "length" else []
    value = "none" if score is None else f"{score:.3g}"
    return question_row(sample, pictures) | {"answers": [answer(sample)], "kinds": kinds, "value": value}
