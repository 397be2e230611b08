"""GQA: questions generated from scene graphs of photographs; the balanced test-dev split.

Questions and pictures are two tables, joined on ``imageId``.
"""

from __future__ import annotations

from pipelines.evaluate.benchmarks.layout.benchmark import Benchmark, Lookup, Question
from pipelines.evaluate.benchmarks.layout.build import SHORT, about_picture
from pipelines.evaluate.benchmarks.layout.columns import Kind, Record, columns
from pipelines.evaluate.metrics.base import Truth
from pipelines.evaluate.metrics.exact import GqaMatch


def _read(record: Record) -> Question:
    truth = Truth(answers=(record.text("answer"),), group=record.key("imageId"))
    return about_picture(record, f"{record.text('question')}\n{SHORT}", truth, id=record.key("id"))


GQA = Benchmark(
    name="gqa",
    title="GQA",
    repository="lmms-lab/GQA",
    configs=("testdev_balanced_instructions",),
    split="testdev",
    columns=columns(id=Kind.KEY, imageId=Kind.KEY, question=Kind.TEXT, answer=Kind.TEXT),
    metric=GqaMatch(),
    read=_read,
    lookup=Lookup(config="testdev_balanced_images", key="imageId"),
)
