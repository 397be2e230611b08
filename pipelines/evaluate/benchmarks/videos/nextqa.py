"""NExT-QA: why, how and when things happen in everyday videos; five options each, the test split."""

from __future__ import annotations

from pipelines.evaluate.benchmarks.layout.benchmark import Benchmark, Question, VideoSource
from pipelines.evaluate.benchmarks.layout.build import asked, lettered
from pipelines.evaluate.benchmarks.layout.columns import Column, Kind, Record, columns
from pipelines.evaluate.metrics.base import Truth
from pipelines.evaluate.metrics.choice import Choice

OPTIONS = ("a0", "a1", "a2", "a3", "a4")


def _read(record: Record, videos: VideoSource) -> Question:
    options = tuple(record.text(column).strip() for column in OPTIONS)
    video = record.key("video")
    truth = Truth(
        answers=("ABCDE"[record.index("answer", len(options))],),
        options=options,
        category=record.text("type"),
        group=video,
    )
    prompt = f"{record.text('question').strip()}\n{lettered(options)}"
    return asked(record, videos.frames(f"NExTVideo/{video}.mp4"), prompt, truth)


NEXTQA = Benchmark(
    name="nextqa",
    title="NExT-QA",
    repository="lmms-lab/NExTQA",
    configs=("MC",),
    split="test",
    columns=(
        *columns(video=Kind.KEY, question=Kind.TEXT, answer=Kind.INDEX, type=Kind.TEXT),
        *(Column(name, Kind.TEXT) for name in OPTIONS),
    ),
    metric=Choice(),
    read_video=_read,
    max_new_tokens=16,
    prompt_source="lmms-eval's nextqa_mc_test",
)
