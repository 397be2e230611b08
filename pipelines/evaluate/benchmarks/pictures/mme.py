"""MME: two yes-or-no questions about each picture, 14 categories."""

from __future__ import annotations

from pipelines.evaluate.benchmarks.layout.benchmark import Benchmark, Question
from pipelines.evaluate.benchmarks.layout.build import SHORT, about_picture
from pipelines.evaluate.benchmarks.layout.columns import Kind, Record, columns
from pipelines.evaluate.metrics.base import Truth
from pipelines.evaluate.metrics.mme import COGNITION, PERCEPTION, Mme, yes_or_no


def _read(record: Record) -> Question:
    answer, category = record.text("answer"), record.text("category")
    if yes_or_no(answer) == "other":
        raise record.refused("answer", f"holds {answer!r} instead of Yes or No")
    if category not in (*PERCEPTION, *COGNITION):
        raise record.refused("category", f"holds {category!r}, which is none of the 14 categories")
    truth = Truth(answers=(answer,), category=category, group=record.key("question_id"))
    return about_picture(record, f"{record.text('question').strip()}\n{SHORT}", truth)


MME = Benchmark(
    name="mme",
    title="MME",
    repository="lmms-lab/MME",
    split="test",
    columns=columns(
        question_id=Kind.KEY,
        image=Kind.PICTURE,
        question=Kind.TEXT,
        answer=Kind.TEXT,
        category=Kind.TEXT,
    ),
    metric=Mme(),
    read=_read,
)
