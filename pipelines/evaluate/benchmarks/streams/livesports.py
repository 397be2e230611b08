"""LiveSports-3K-CC: live commentary of 1,500 sports events of some 20 seconds, compared by a judge.

The query is LiveCC's own: the title, and the commentary before the event.
"""

from __future__ import annotations

from casa_core.types import Sample, Text
from pipelines.evaluate.benchmarks.layout.benchmark import Benchmark, Question, VideoSource
from pipelines.evaluate.benchmarks.layout.columns import Kind, Record, columns
from pipelines.evaluate.metrics.base import Truth
from pipelines.evaluate.metrics.win_rate import WinRate

TASK = (
    "You are an expert video commentator providing real-time, insightful, and engaging commentary on visual "
    "content.\n"
)


def query(title: str, before: str) -> str:
    """What a commentator is asked; ``title`` and ``before`` may be empty."""
    text = TASK
    if title:
        text += f'This is a video titled "{title}".\n'
    if before:
        text += f"Here is previous commentary of the video:\n\n{before}\n\n"
        text += "Please continue to comment the video."
    return text


def _read(record: Record, videos: VideoSource) -> Question:
    video, begin, end = record.text("video_id"), record.number("begin"), record.number("end")
    if end <= begin:
        raise record.refused("end", f"holds {end:g}, which is not after {begin:g}, where the event begins")
    name = f"{video}_{record.key('event_id')}"
    asked = query(record.values.get("event_title") or "", record.values.get("preasr_text") or "")
    frames = videos.live(record.text("video"), begin, end)
    parts = (Text(role="user", text=asked), *frames)
    truth = Truth(answers=(record.text("event_asr_text"),), category=record.text("class"), group=video)
    return Question(id=name, sample=Sample(source=record.benchmark, sample_id=name, parts=parts), truth=truth)


LIVESPORTS = Benchmark(
    name="livesports",
    title="LiveSports-3K-CC",
    repository="stdKonjac/LiveSports-3K",
    configs=("LiveSports_3K_CC",),
    split="test",
    columns=columns(
        video_id=Kind.TEXT,
        event_id=Kind.KEY,
        begin=Kind.NUMBER,
        end=Kind.NUMBER,
        video=Kind.TEXT,
        **{"class": Kind.TEXT},
        event_asr_text=Kind.TEXT,
    ),
    metric=WinRate(),
    read_video=_read,
    max_new_tokens=16,  # of each frame
    prompt_source="LiveCC's evaluation/livesports3kcc",
    files=("*CC*test*.csv", "*CC*/test-*.parquet"),
    live=True,
)
