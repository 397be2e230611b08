"""Section of example answers: held-out pictures with question, answer and truth, right and wrong ones."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from io import BytesIO
from typing import Any

import pyarrow.parquet as pq

from casa_core.media.decode import decode_image
from pipelines.data.store.readers import CleanReader
from pipelines.evaluate import HELD_OUT
from pipelines.html.layout import section
from pipelines.html.pictures import picture
from pipelines.html.tags import Html, tag
from pipelines.report.sections.run_artifacts import Run

SIDE = 160
"""Longest side of an embedded picture, pixels."""


def gallery(run: Run) -> Html:
    """Example answers; one sentence for a run without questions about pictures."""
    stage = run.get("evaluate")
    path = stage.folder / "results.parquet" if stage else None
    answers = pq.read_table(BytesIO(path.read_bytes())).to_pylist() if path and path.is_file() else []
    questions = [row for row in answers if row["correct"] is not None and row["model"] == "model"]
    if not questions:
        return section("Gallery", "This run answered no questions about pictures.")
    blind = {_key(row): row["answer"] for row in answers if row["model"] == "blind"}
    right = [row for row in questions if row["correct"]]
    wrong = [row for row in questions if not row["correct"]]
    shown_wrong = spread(wrong, run.gallery // 2)
    shown_right = spread(right, run.gallery - len(shown_wrong))
    lead = (
        f"{len(right)} of {len(questions)} held-out answers are right. Shown are {len(shown_right)} right "
        f"and {len(shown_wrong)} wrong ones, spread evenly over question types and rows, not picked by hand."
    )
    body = [tag("h3", "Wrong"), _cards(run, shown_wrong, blind)] if shown_wrong else []
    body += [tag("h3", "Right"), _cards(run, shown_right, blind)] if shown_right else []
    return section("Gallery", lead, *body)


def spread(rows: Sequence[dict[str, Any]], count: int) -> list[dict[str, Any]]:
    """``count`` rows that alternate between question types, evenly spaced within each."""
    by_type: dict[str, list[dict[str, Any]]] = defaultdict(list)
    for row in rows:
        by_type[row["question_type"]].append(row)
    share = -(-count // max(len(by_type), 1))
    spaced = [_evenly(by_type[name], share) for name in sorted(by_type)]
    taken: list[dict[str, Any]] = []
    for position in range(share):
        taken += [group[position] for group in spaced if position < len(group)]
    return taken[:count]


def _evenly(rows: Sequence[Any], count: int) -> list[Any]:
    if len(rows) <= count:
        return list(rows)
    return [rows[index * len(rows) // count] for index in range(count)]


def _key(row: dict[str, Any]) -> tuple[Any, ...]:
    return row["source"], row["row"], row["turn"]


def _cards(run: Run, rows: Sequence[dict[str, Any]], blind: dict[tuple[Any, ...], str]) -> Html:
    readers: dict[str, CleanReader] = {}
    cards = []
    for row in rows:
        stage = run.get(f"clean-{row['source']}")
        if stage and row["source"] not in readers:
            readers[row["source"]] = CleanReader(stage.folder, HELD_OUT)
        images = list(_images(readers[row["source"]], row)) if stage else []
        cards.append(_card(row, images, blind.get(_key(row))))
    return tag("div", *cards, class_="gallery")


def _images(reader: CleanReader, row: dict[str, Any]) -> Iterator[Html]:
    for index, media in enumerate(reader.without_bytes(row["row"])["media"]):
        if media["kind"] == "image":
            yield picture(
                decode_image(reader.media(row["row"], index)),
                alt="the picture asked about",
                side=SIDE,
                loading="lazy",
            )


def _card(row: dict[str, Any], images: Sequence[Html], blind: str | None) -> Html:
    verdict = "right" if row["correct"] else "wrong"
    lines = [
        tag("p", row["question"], class_="question"),
        tag(
            "p",
            tag("span", "✓ " if row["correct"] else "✗ ", class_="mark"),
            row["answer"],
            class_=f"answer {verdict}",
        ),
    ]
    if not row["correct"]:
        lines.append(tag("p", f"truth: {row['truth']}", class_="truth"))
    if blind is not None:
        lines.append(tag("p", f"blind twin: {blind}", class_="truth"))
    where = f"{row['source']} · row {row['row']} · {row['question_type']}"
    return tag("article", *images, tag("div", *lines, tag("small", where)), class_=f"card {verdict}")
