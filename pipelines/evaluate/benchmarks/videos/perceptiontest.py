"""Perception Test: memory, physics and semantics in staged videos; three options each, validation split."""

from __future__ import annotations

from string import ascii_uppercase

from pipelines.evaluate.benchmarks.layout.benchmark import Benchmark, Question, VideoSource
from pipelines.evaluate.benchmarks.layout.build import DIRECT, asked, lettered
from pipelines.evaluate.benchmarks.layout.columns import Kind, Record, columns
from pipelines.evaluate.metrics.base import Truth
from pipelines.evaluate.metrics.choice import Choice


def _read(record: Record, videos: VideoSource) -> Question:
    options, video = record.texts("options"), record.text("video_name")
    right = ascii_uppercase[record.index("answer_id", len(options))]
    prompt = f"{record.text('question')}\n{lettered(options)}\n{DIRECT}"
    truth = Truth(answers=(right,), options=options, category=record.text("area"), group=video)
    return asked(record, videos.frames(f"videos/{video}.mp4"), prompt, truth)


PERCEPTIONTEST = Benchmark(
    name="perceptiontest",
    title="PerceptionTest",
    repository="lmms-lab/PerceptionTest_Val",
    configs=("mc_question_val",),
    split="validation",
    columns=columns(
        video_name=Kind.TEXT, question=Kind.TEXT, options=Kind.TEXTS, answer_id=Kind.INDEX, area=Kind.TEXT
    ),
    metric=Choice(),
    read_video=_read,
    max_new_tokens=16,
    prompt_source="lmms-eval's perceptiontest_val_mc",
)
