"""OCRBench: a thousand questions that need reading, ten kinds of them."""

from __future__ import annotations

from pipelines.evaluate.benchmarks.layout.benchmark import Benchmark, Question
from pipelines.evaluate.benchmarks.layout.build import about_picture
from pipelines.evaluate.benchmarks.layout.columns import Kind, Record, columns
from pipelines.evaluate.metrics.base import Truth
from pipelines.evaluate.metrics.ocrbench import CATEGORIES, FORMULAS, OcrBench


def _read(record: Record) -> Question:
    kind = record.text("question_type")
    if kind not in CATEGORIES:
        raise record.refused("question_type", f"holds {kind!r}, which is none of {', '.join(CATEGORIES)}")
    truth = Truth(
        answers=record.texts("answer"),
        category=FORMULAS if record.text("dataset") == "HME100k" else kind,
    )
    return about_picture(record, f"{record.text('question')}\nPlease directly answer the question.", truth)


OCRBENCH = Benchmark(
    name="ocrbench",
    title="OCRBench",
    repository="echo840/OCRBench",
    split="test",
    columns=columns(
        dataset=Kind.TEXT,
        question=Kind.TEXT,
        question_type=Kind.TEXT,
        answer=Kind.TEXTS,
        image=Kind.PICTURE,
    ),
    metric=OcrBench(),
    read=_read,
)
