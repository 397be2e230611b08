"""ChartQA: questions about charts, half written by people and half generated."""

from __future__ import annotations

from pipelines.evaluate.benchmarks.layout.benchmark import Benchmark, Question
from pipelines.evaluate.benchmarks.layout.build import short_answer
from pipelines.evaluate.benchmarks.layout.columns import Kind, Record, columns
from pipelines.evaluate.metrics.relaxed import RelaxedAccuracy


def _read(record: Record) -> Question:
    kind = "human" if record.text("type") == "human_test" else "augmented"
    return short_answer(record, record.text("answer"), category=kind)


CHARTQA = Benchmark(
    name="chartqa",
    title="ChartQA",
    repository="lmms-lab/ChartQA",
    split="test",
    columns=columns(type=Kind.TEXT, question=Kind.TEXT, answer=Kind.TEXT, image=Kind.PICTURE),
    metric=RelaxedAccuracy(),
    read=_read,
)
