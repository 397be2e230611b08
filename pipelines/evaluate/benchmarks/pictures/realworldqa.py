"""RealWorldQA: photographs from cars and daily life; most questions bring their options with them."""

from __future__ import annotations

import re

from pipelines.evaluate.benchmarks.layout.benchmark import Benchmark, Question
from pipelines.evaluate.benchmarks.layout.build import SHORT, about_picture
from pipelines.evaluate.benchmarks.layout.columns import Kind, Record, columns
from pipelines.evaluate.metrics.base import Truth
from pipelines.evaluate.metrics.exact import RealWorldMatch

_OPTION = re.compile(r"^([A-D])\. *(.+)$", re.MULTILINE)


def _read(record: Record) -> Question:
    question, answer = record.text("question"), record.text("answer").strip()
    listed = _OPTION.findall(question)
    in_order = [letter for letter, _ in listed] == list("ABCD"[: len(listed)])
    options = tuple(text.strip() for _, text in listed) if in_order else ()
    kind = "choice" if answer.upper() in ("A", "B", "C", "D") else "open"
    return about_picture(
        record, f"{question}\n{SHORT}", Truth(answers=(answer,), options=options, category=kind)
    )


REALWORLDQA = Benchmark(
    name="realworldqa",
    title="RealWorldQA",
    repository="lmms-lab/RealWorldQA",
    split="test",
    columns=columns(image=Kind.PICTURE, question=Kind.TEXT, answer=Kind.TEXT),
    metric=RealWorldMatch(),
    read=_read,
)
