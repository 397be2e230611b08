"""Video-MME: 900 videos from 11 seconds to an hour, three questions each; here without subtitles."""

from __future__ import annotations

from pipelines.evaluate.benchmarks.layout.benchmark import Benchmark, Question, VideoSource
from pipelines.evaluate.benchmarks.layout.build import DIRECT, asked
from pipelines.evaluate.benchmarks.layout.columns import Kind, Record, columns
from pipelines.evaluate.metrics.base import Truth
from pipelines.evaluate.metrics.choice import Choice

TASK = (
    "Select the best answer to the following multiple-choice question based on the video and the subtitles. "
    "Respond with only the letter (A, B, C, or D) of the correct option."
)


def task(record: Record) -> str:
    """What to do, the question, and its options, which bring their letters with them."""
    return "\n".join((TASK, record.text("question"), *record.texts("options")))


def about_video(record: Record, videos: VideoSource, prompt: str) -> Question:
    """The question of a row with a prompt."""
    video, options = record.text("videoID"), record.texts("options")
    right = record.text("answer").strip()
    if right not in ("A", "B", "C", "D"):
        raise record.refused("answer", f"holds {right!r} instead of a letter from A to D")
    texts = tuple(option.removeprefix(f"{letter}. ") for letter, option in zip("ABCD", options, strict=False))
    truth = Truth(answers=(right,), options=texts, category=record.text("duration"), group=video)
    return asked(record, videos.frames(f"data/{video}.mp4"), prompt, truth, id=record.key("question_id"))


def _read(record: Record, videos: VideoSource) -> Question:
    return about_video(record, videos, f"{task(record)}\n\n{DIRECT}")


VIDEOMME = Benchmark(
    name="videomme",
    title="VideoMME w/o sub",
    repository="lmms-lab/Video-MME",
    configs=("videomme",),
    split="test",
    columns=columns(
        videoID=Kind.TEXT,
        question_id=Kind.KEY,
        duration=Kind.TEXT,
        question=Kind.TEXT,
        options=Kind.TEXTS,
        answer=Kind.TEXT,
    ),
    metric=Choice(),
    read_video=_read,
    max_new_tokens=16,
    prompt_source="lmms-eval's videomme",
)
