"""Video-MME with the subtitles that are on screen at the frames."""

from __future__ import annotations

from dataclasses import replace

from pipelines.evaluate.benchmarks.layout.benchmark import Question, VideoSource
from pipelines.evaluate.benchmarks.layout.columns import Record
from pipelines.evaluate.benchmarks.videos.files import subtitles_at
from pipelines.evaluate.benchmarks.videos.videomme import VIDEOMME, about_video, task


def _read(record: Record, videos: VideoSource) -> Question:
    name = record.text("videoID")
    times = [frame.timestamp or 0.0 for frame in videos.frames(f"data/{name}.mp4")]
    srt = videos.text(f"subtitle/{name}.srt")
    said = "No subtitles available" if srt is None else subtitles_at(srt, times)
    prompt = f"This video's subtitles are listed below: \n{said}\n{task(record)}\nThe best answer is:"
    return about_video(record, videos, prompt)


VIDEOMME_SUBTITLES = replace(
    VIDEOMME,
    name="videomme_subtitles",
    title="VideoMME w/ sub",
    read_video=_read,
    prompt_source="lmms-eval's videomme_w_subtitle",
)
