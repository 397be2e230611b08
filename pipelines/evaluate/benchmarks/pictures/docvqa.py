"""DocVQA: questions about scanned documents, scored on the validation split."""

from __future__ import annotations

from pipelines.evaluate.benchmarks.layout.benchmark import Benchmark, Question
from pipelines.evaluate.benchmarks.layout.build import SHORT, about_picture
from pipelines.evaluate.benchmarks.layout.columns import Kind, Record, columns
from pipelines.evaluate.metrics.anls import Anls, AnlsStar
from pipelines.evaluate.metrics.base import Truth


def _read(record: Record) -> Question:
    truth = Truth(answers=record.texts("answers"), group=record.key("docId"))
    prompt = f"{record.text('question')}\n{SHORT}"
    return about_picture(record, prompt, truth, id=record.key("questionId"))


DOCVQA = Benchmark(
    name="docvqa",
    title="DocVQA",
    repository="lmms-lab/DocVQA",
    configs=("DocVQA",),
    split="validation",
    columns=columns(
        questionId=Kind.KEY, question=Kind.TEXT, image=Kind.PICTURE, docId=Kind.KEY, answers=Kind.TEXTS
    ),
    metric=AnlsStar(),
    beside=(Anls(),),
    read=_read,
)
