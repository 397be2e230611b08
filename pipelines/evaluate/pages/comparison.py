"""The page about two evaluations: differences, facts that differ, questions whose score changed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from casa_core.errors import CasaError
from casa_core.printable import printable
from pipelines.evaluate.comparison import Compared
from pipelines.evaluate.pages import thumbnails
from pipelines.evaluate.pages.browsing import answer, browser, numbered, question_row
from pipelines.evaluate.pages.evaluation import page
from pipelines.evaluate.pages.sections import anchor_of
from pipelines.evaluate.pages.thumbnails import SHOWN, Thumbnails
from pipelines.html.layout import fold, section, table
from pipelines.html.tags import Html, tag

ORDERS = {"first": "Largest loss first", "last": "Largest gain first", "index": "As in the benchmark"}
HEAD = ("benchmark", "A", "B", "A - B", "95 % interval", "unit", "p", "test", "A better", "A worse")


def render(found: Sequence[Compared], names: tuple[str, str], pictures: int = SHOWN) -> str:
    """The page as one HTML document that needs no network.

    Args:
        found: At least one comparison.
        names: Both models', A and B.
        pictures: Changed questions of each benchmark that are shown with their pictures.
    """
    links = (tag("a", one.first.result.title, href=f"#{anchor_of(one.first.folder.name)}") for one in found)
    header = tag(
        "header",
        tag("p", "Comparison", class_="kicker"),
        tag("h1", f"{names[0]} and {names[1]}"),
        tag("p", f"A is {names[0]}, B is {names[1]}, both on the same questions.", class_="subtitle"),
        tag("nav", *links, aria_label="Benchmarks"),
    )
    lead = (
        "Differences with the paired bootstrap's 95 % interval. The p-value is two-sided: how often equal "
        "models differ at least as much. Better and worse count what is independent: a question, or all "
        "questions about one video."
    )
    scores = section(
        "Differences", lead, table(HEAD, [cells(one) for one in found], numeric=[1, 2, 3, 4, 6, 8, 9])
    )
    sections = [_section(one, names, pictures) for one in found]
    return page(f"{names[0]} and {names[1]}: comparison", header, tag("main", scores, *sections))


def cells(one: Compared) -> list[str]:
    """A row under ``HEAD``."""
    first, second = one.scores
    paired = one.comparison
    return [
        one.first.result.title,
        f"{first.value:.1f}",
        f"{second.value:.1f}",
        f"{paired.difference.value:+.1f}",
        f"{paired.difference.low:+.1f} to {paired.difference.high:+.1f}",
        first.unit,
        f"{paired.p_value:.4f}" if paired.p_value >= 1e-4 else "< 0.0001",
        paired.test,
        f"{paired.better:,}",
        f"{paired.worse:,}",
    ]


def _section(one: Compared, names: tuple[str, str], count: int) -> Html:
    result = one.first.result
    facts = [[name, *(tag("code", printable(value)) for value in pair)] for name, pair in one.facts.items()]
    wanted = thumbnails.spread([one.first.samples[at]["index"] for at in one.changed], count)
    pictures, missing = _pictures(one, wanted)
    note = f"The score of {len(one.changed):,} of {result.questions:,} questions differs; {len(pictures):,} "
    return tag(
        "section",
        tag("h2", result.title),
        fold(
            f"Facts that differ: {len(facts)}",
            tag("div", table(["fact", "A", "B"], facts), class_="facts"),
        ),
        tag("h3", "Questions whose score changed"),
        tag("p", f"{note}have their pictures here. {printable(missing)}", class_="note"),
        _changed(one, names, pictures),
        id=anchor_of(one.first.folder.name),
    )


def _pictures(one: Compared, wanted: Sequence[int]) -> tuple[Thumbnails, str]:
    """Pictures of some questions, and why some are missing."""
    known: Thumbnails = {}
    for side in (one.first, one.second):
        known |= thumbnails.kept(side.folder, side.result.data["digest"])
    reason = ""
    if missing := [index for index in wanted if index not in known]:
        try:
            known |= thumbnails.read(thumbnails.tables_of(one.first.result), missing)
        except CasaError as error:
            reason = " ".join(str(part) for part in error.args[:2])
    return {index: known[index] for index in wanted if known.get(index)}, reason


def _changed(one: Compared, names: tuple[str, str], pictures: Thumbnails) -> Html:
    unique, places = numbered(pictures)
    rows = [_row(one, at, places) for at in one.changed]
    return browser(
        rows,
        unique,
        answers=[f"A: {names[0]}", f"B: {names[1]}"],
        value="A - B",
        kinds={"worse": "A worse", "better": "A better", "failed": "Failed in one"},
        orders=ORDERS,
    )


def _row(one: Compared, at: int, places: Mapping[int, Sequence[int]]) -> dict[str, Any]:
    pair = one.first.samples[at], one.second.samples[at]
    gain = pair[0]["score"] - pair[1]["score"]
    kinds = ["better" if gain > 0 else "worse", *(["failed"] if any(row["error"] for row in pair) else [])]
    said = [answer(row, f"score {row['score']:.3g}") for row in pair]
    shown = question_row(pair[0], places.get(pair[0]["index"], ()))
    return shown | {"answers": said, "kinds": kinds, "value": f"{gain:+.3g}"}
