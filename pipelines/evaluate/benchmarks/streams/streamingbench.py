"""StreamingBench, real-time visual understanding: 500 videos, five multiple-choice questions each, asked at a
time of the video; the minute before it is shown.

Its other parts need sound, answers to earlier questions, or output at a moment of the model's own choice.
"""

from __future__ import annotations

import re

from pipelines.evaluate.benchmarks.layout.benchmark import Benchmark, Question, VideoSource
from pipelines.evaluate.benchmarks.layout.build import asked, lettered
from pipelines.evaluate.benchmarks.layout.columns import Kind, Record, columns
from pipelines.evaluate.metrics.base import Truth
from pipelines.evaluate.metrics.choice import Choice

CONTEXT_S = 60.0
TASK = (
    "You are an advanced video question-answering AI assistant. You have been provided with some frames from "
    "the video and a multiple-choice question related to the video. Your task is to carefully analyze the "
    "video and provide the best answer to question, choosing from the four options provided. Respond with "
    "only the letter (A, B, C, or D) of the correct option."
)


def _read(record: Record, videos: VideoSource) -> Question:
    name, options, right = record.text("question_id"), record.listed("options"), record.text("answer").strip()
    sample, asked_at = re.search(r"_(sample_\d+)_\d+$", name), record.clock("time_stamp")
    if not sample:
        raise record.refused("question_id", f"holds {name!r}, which names no video")
    if len(options) != 4 or right not in ("A", "B", "C", "D"):
        raise record.refused("answer", f"holds {right!r}, and there are {len(options)} options instead of 4")
    texts = tuple(one.removeprefix(f"{at}.").strip() for at, one in zip("ABCD", options, strict=True))
    shown = videos.frames(f"data/real/{sample[1]}/video.mp4", max(0.0, asked_at - CONTEXT_S), asked_at)
    prompt = (
        f"{TASK}\n\nQuestion: {record.text('question')}\n\nOptions:\n{lettered(texts)}\n\nThe best option is:"
    )
    truth = Truth(answers=(right,), options=texts, category=record.text("task_type"), group=sample[1])
    return asked(record, shown, prompt, truth, id=name)


STREAMINGBENCH = Benchmark(
    name="streamingbench",
    title="StreamingBench, real-time",
    repository="mjuicem/StreamingBench",
    configs=("Real_Time_Visual_Understanding",),
    split="test",
    columns=columns(
        question_id=Kind.TEXT,
        task_type=Kind.TEXT,
        question=Kind.TEXT,
        time_stamp=Kind.TEXT,
        answer=Kind.TEXT,
        options=Kind.TEXT,
    ),
    metric=Choice(),
    read_video=_read,
    max_new_tokens=16,
    prompt_source="StreamingBench's src/benchmark/StreamingBench.py",
    files=("StreamingBench/{config}.csv",),
)
