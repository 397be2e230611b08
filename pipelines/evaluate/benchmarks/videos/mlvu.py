"""MLVU: seven tasks about videos from minutes to hours, the dev set; every task counts the same.

The questions list their options themselves.
"""

from __future__ import annotations

from pipelines.evaluate.benchmarks.layout.benchmark import Benchmark, Question, VideoSource
from pipelines.evaluate.benchmarks.layout.build import asked, letter_of
from pipelines.evaluate.benchmarks.layout.columns import Kind, Record, columns
from pipelines.evaluate.metrics.base import Truth
from pipelines.evaluate.metrics.choice import ChoiceByCategory


def _read(record: Record, videos: VideoSource) -> Question:
    options, video, answer = record.texts("candidates"), record.text("video_name"), record.text("answer")
    is_letter = answer not in options and answer in "ABCDEFGH"[: len(options)]
    right = answer if is_letter else letter_of(record, "answer", options)
    truth = Truth(answers=(right,), options=options, category=record.text("task_type"), group=video)
    prompt = f"{record.text('question')}\nOnly give the best option.\nBest option: ("
    return asked(record, videos.frames(video), prompt, truth)


MLVU = Benchmark(
    name="mlvu",
    title="MLVU",
    repository="sy1998/MLVU_dev",
    split="test",
    columns=columns(
        video_name=Kind.TEXT,
        question=Kind.TEXT,
        candidates=Kind.TEXTS,
        answer=Kind.TEXT,
        task_type=Kind.TEXT,
    ),
    metric=ChoiceByCategory(),
    read_video=_read,
    max_new_tokens=16,
    prompt_source="lmms-eval's mlvu_dev",
)
