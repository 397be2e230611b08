"""OVO-Bench: twelve tasks, asked at times of a video that is shown up to then; every task counts the same.

Questions about the past (EPM, ASI, HLD) and the present (STU, OJR, ATR, ACR, OCR, FPD) are multiple choice.
Those of the forward tasks are asked again and again as the video goes on: how often something was done so far
(REC), whether a step is being carried out (SSR), whether enough was seen for an answer (CRR).
"""

from __future__ import annotations

from pipelines.evaluate.benchmarks.layout.benchmark import Benchmark, Question, VideoSource
from pipelines.evaluate.benchmarks.layout.build import asked
from pipelines.evaluate.benchmarks.layout.columns import Kind, Record, columns
from pipelines.evaluate.benchmarks.streams.ovobench_rows import FORWARD, unroll
from pipelines.evaluate.metrics.base import Truth
from pipelines.evaluate.metrics.ovobench import OvoBench


def _read(record: Record, videos: VideoSource) -> Question:
    task, video = record.text("task"), record.text("video")
    options = () if task in FORWARD else record.texts("options")
    right = "ABCDEFGH"[record.index("answer", len(options))] if options else record.text("answer")
    truth = Truth(answers=(right,), options=options, category=task, group=video)
    shown = videos.frames(f"src_videos/{video.removeprefix('src_videos/')}", until=record.number("realtime"))
    return asked(record, shown, record.text("prompt"), truth, id=record.key("id"))


OVOBENCH = Benchmark(
    name="ovobench",
    title="OVO-Bench",
    repository="JoeLeelyf/OVO-Bench",
    split="test",
    columns=columns(
        id=Kind.KEY,
        task=Kind.TEXT,
        video=Kind.TEXT,
        realtime=Kind.NUMBER,
        prompt=Kind.TEXT,
        answer=Kind.INDEX,
    ),
    metric=OvoBench(),
    read_video=_read,
    max_new_tokens=16,
    prompt_source="OVO-Bench's utils/OVOBench.py, without its indentation",
    files=("ovo_bench_new.json",),
    unroll=unroll,
)
