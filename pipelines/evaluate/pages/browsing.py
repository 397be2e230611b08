"""A table of answers to leaf through: filtered, ordered and paged by ``browse.js`` from rows in the page."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from string import ascii_uppercase
from typing import Any

from casa_core.printable import printable
from pipelines.evaluate.pages.thumbnails import Thumbnails
from pipelines.html.tags import Html, tag

LONGEST = 1000
"""Characters of a text that are shown; all of it is in the samples."""

Row = dict[str, Any]
"""What ``browse.js`` draws: ``at``, ``id``, ``category``, ``prompt``, ``truths``, ``answers`` (``text``,
``note``, ``kind``), ``kinds``, ``value``, ``pictures`` (positions in the list of pictures)."""


def question_row(sample: Mapping[str, Any], pictures: Sequence[int]) -> Row:
    """What a row shows of the question."""
    return {
        "at": sample["index"],
        "id": _short(sample["question_id"] or ""),
        "category": sample["category"] or "",
        "prompt": _short(sample["prompt"] or ""),
        "truths": [_short(truth) for truth in _truths(sample)],
        "pictures": list(pictures),
    }


def answer(sample: Mapping[str, Any], note: str = "") -> Row:
    """What a row shows of an answer."""
    score, error = sample["score"], sample["error"]
    notes = [note, "ended by the token limit" if sample["finish_reason"] == "length" else ""]
    notes.append("" if error or (sample["answer"] or "").strip() else "empty")
    return {
        "text": _short(error or sample["answer"] or ""),
        "note": " · ".join(filter(None, notes)),
        "kind": "failed" if error else verdict(score),
    }


def verdict(score: float) -> str:
    """``right``, ``partly`` or ``wrong``."""
    return "right" if score >= 1 else "partly" if score > 0 else "wrong"


def browser(
    rows: Sequence[Row],
    pictures: Sequence[str],
    *,
    answers: Sequence[str],
    value: str,
    kinds: Mapping[str, str],
    orders: Mapping[str, str],
) -> Html:
    """The table with its controls.

    Args:
        rows: In the order in which they are shown at first.
        pictures: Data URIs that the rows' numbers mean.
        answers: Heading of each column of answers.
        value: Heading of the last column.
        kinds: Kind → what the filter calls it.
        orders: ``first``, ``last`` and ``index`` → what the choice of an order calls them.
    """
    counts = Counter(kind for row in rows for kind in row["kinds"])
    categories = Counter(row["category"] for row in rows)
    pick_kind = [("", f"All ({len(rows):,})"), *((k, f"{v} ({counts[k]:,})") for k, v in kinds.items())]
    named = [(category, f"{category} ({categories[category]:,})") for category in sorted(categories)]
    controls = [_choice("Answers", "kind", pick_kind)]
    if set(categories) != {""}:
        controls.append(_choice("Category", "category", [("*", f"All ({len(categories)})"), *named]))
    controls.append(_choice("Order", "order", list(orders.items())))
    controls.append(tag("label", "Text", tag("input", type="search", name="text", placeholder="search")))
    head = ["picture", "question", "right answer", *answers, value]
    content = {"rows": rows, "pictures": pictures, "head": head}
    return tag(
        "div",
        tag("form", *controls, class_="tools"),
        tag("p", tag("output", aria_live="polite"), *_buttons(), class_="pager"),
        tag("table", tag("thead", tag("tr", *(tag("th", one, scope="col") for one in head))), tag("tbody")),
        tag("noscript", tag("p", "The table needs JavaScript; samples.parquet holds the same rows.")),
        tag("p", *_buttons(), class_="pager"),
        embedded(content),
        class_="browser sheet",
    )


def embedded(content: Any) -> Html:
    """Data for a script: JSON in which no character can end the element."""
    text = json.dumps(content, ensure_ascii=False, separators=(",", ":"))
    for character in "<>&\u2028\u2029":
        text = text.replace(character, f"\\u{ord(character):04x}")
    return tag("script", Html(text), type="application/json")


def numbered(thumbnails: Thumbnails) -> tuple[list[str], dict[int, list[int]]]:
    """Each picture once, and index of a question → numbers of its pictures."""
    numbers: dict[str, int] = {}
    places = {
        index: [numbers.setdefault(one, len(numbers)) for one in pictures]
        for index, pictures in thumbnails.items()
    }
    return list(numbers), places


def _choice(label: str, name: str, options: Sequence[tuple[str, str]]) -> Html:
    return tag("label", label, tag("select", *(tag("option", t, value=v) for v, t in options), name=name))


def _buttons() -> tuple[Html, Html]:
    return tag("button", "Previous", type="button", data_step="-1"), tag(
        "button", "Next", type="button", data_step="1"
    )


def _short(text: str) -> str:
    shown = printable(text)
    if len(shown) <= LONGEST:
        return shown
    return f"{shown[: LONGEST * 2 // 3]} […] {shown[-LONGEST // 3 :]}"


def _truths(sample: Mapping[str, Any]) -> list[str]:
    """Each answer that counts as right, once; a letter with its option."""
    options = dict(zip(ascii_uppercase, sample["options"] or (), strict=False))
    truths = dict.fromkeys(sample["truths"] or ())
    return [f"{truth}. {options[truth]}" if truth in options else truth for truth in truths]
