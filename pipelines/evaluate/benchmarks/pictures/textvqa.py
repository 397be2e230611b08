"""TextVQA: questions about text in photographs, ten annotators' answers each; the validation split."""

from __future__ import annotations

from pipelines.evaluate.benchmarks.layout.benchmark import Benchmark, Question
from pipelines.evaluate.benchmarks.layout.build import SHORT, about_picture
from pipelines.evaluate.benchmarks.layout.columns import Kind, Record, columns
from pipelines.evaluate.metrics.base import Truth
from pipelines.evaluate.metrics.vqa_accuracy import VqaAccuracy

ANNOTATORS = 10


def _read(record: Record) -> Question:
    answers = record.texts("answers", some_empty=True)  # an annotator may have given none
    if len(answers) != ANNOTATORS:
        raise record.refused("answers", f"holds {len(answers)} answers instead of {ANNOTATORS}")
    truth = Truth(answers=answers, group=record.key("image_id"))
    prompt = f"{record.text('question')}\n{SHORT}"
    return about_picture(record, prompt, truth, id=record.key("question_id"))


TEXTVQA = Benchmark(
    name="textvqa",
    title="TextVQA",
    repository="lmms-lab/textvqa",
    split="validation",
    columns=columns(
        image_id=Kind.KEY,
        question_id=Kind.KEY,
        question=Kind.TEXT,
        image=Kind.PICTURE,
        answers=Kind.TEXTS,
    ),
    metric=VqaAccuracy(),
    read=_read,
)
