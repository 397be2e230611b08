"""AI2D: multiple-choice questions about diagrams from school books."""

from __future__ import annotations

from string import ascii_uppercase

from pipelines.evaluate.benchmarks.layout.benchmark import Benchmark, Question
from pipelines.evaluate.benchmarks.layout.build import about_picture, lettered
from pipelines.evaluate.benchmarks.layout.columns import Kind, Record, columns
from pipelines.evaluate.metrics.base import Truth
from pipelines.evaluate.metrics.choice import Ai2dMatch, Choice


def _read(record: Record) -> Question:
    question, options = record.text("question"), record.texts("options")
    if question.strip()[-1] not in "?.":
        question += "?"
    right = ascii_uppercase[record.index("answer", len(options))]
    prompt = f"Question: {question}\nChoices:\n{lettered(options)}\nAnswer with the letter."
    return about_picture(record, prompt, Truth(answers=(right,), options=options))


AI2D = Benchmark(
    name="ai2d",
    title="AI2D",
    repository="lmms-lab/ai2d",
    split="test",
    columns=columns(question=Kind.TEXT, options=Kind.TEXTS, answer=Kind.INDEX, image=Kind.PICTURE),
    metric=Choice(),
    beside=(Ai2dMatch(),),
    read=_read,
)
