"""Questions put together: what is shown, the prompt behind it, and the options of a multiple choice."""

from __future__ import annotations

from collections.abc import Sequence
from string import ascii_uppercase

from casa_core.types import Image, Sample, Text
from pipelines.evaluate.benchmarks.layout.benchmark import Question
from pipelines.evaluate.benchmarks.layout.columns import Record
from pipelines.evaluate.metrics.base import Truth

SHORT = "Answer the question using a single word or phrase."
DIRECT = "Answer with the option's letter from the given choices directly."


def about_picture(
    record: Record, prompt: str, truth: Truth, *, id: str | None = None, column: str = "image"
) -> Question:
    """A question about the picture of a row; its id is the row's where none is given."""
    return asked(record, (Image(role="user", data=record.picture(column)),), prompt, truth, id=id)


def asked(
    record: Record, shown: Sequence[Image], prompt: str, truth: Truth, *, id: str | None = None
) -> Question:
    """A question in one user turn: pictures or frames first, then the prompt."""
    name = id or record.name
    parts = (*shown, Text(role="user", text=prompt))
    sample = Sample(source=record.benchmark, sample_id=name, parts=parts)
    return Question(id=name, sample=sample, truth=truth)


def short_answer(record: Record, *answers: str, category: str = "", group: str = "") -> Question:
    """A picture's question as it stands, with a request for a single word or phrase."""
    truth = Truth(answers=answers, category=category, group=group)
    return about_picture(record, f"{record.text('question')}\n{SHORT}", truth)


def lettered(options: Sequence[str], form: str = "{letter}. {text}") -> str:
    """Options with their letters, a line each: ``A. red``."""
    lines = (
        form.format(letter=letter, text=text) for letter, text in zip(ascii_uppercase, options, strict=False)
    )
    return "\n".join(lines)


def letter_of(record: Record, column: str, options: Sequence[str]) -> str:
    """The letter of the option whose text a row's column holds.

    Raises:
        DataError: Where it is not the text of exactly one option.
    """
    text = record.text(column)
    if options.count(text) != 1:
        raise record.refused(column, f"holds {text!r}, which is not one of the options {', '.join(options)}")
    return ascii_uppercase[options.index(text)]
