"""InfographicVQA: questions about infographics, scored on the validation split."""

from __future__ import annotations

from pipelines.evaluate.benchmarks.layout.benchmark import Benchmark, Question
from pipelines.evaluate.benchmarks.layout.build import SHORT, about_picture
from pipelines.evaluate.benchmarks.layout.columns import Kind, Record, columns
from pipelines.evaluate.metrics.anls import Anls, AnlsStar
from pipelines.evaluate.metrics.base import Truth


def _read(record: Record) -> Question:
    prompt = f"{record.text('question')}\n{SHORT}"
    truth = Truth(answers=record.texts("answers"))
    return about_picture(record, prompt, truth, id=record.key("questionId"))


INFOVQA = Benchmark(
    name="infovqa",
    title="InfoVQA",
    repository="lmms-lab/DocVQA",
    configs=("InfographicVQA",),
    split="validation",
    columns=columns(questionId=Kind.KEY, question=Kind.TEXT, answers=Kind.TEXTS, image=Kind.PICTURE),
    metric=AnlsStar(),
    beside=(Anls(),),
    read=_read,
)
