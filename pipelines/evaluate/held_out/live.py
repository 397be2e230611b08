"""Live captions: frames are shown one by one; each word must be generated at its frame, or close to it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

from casa_core.engine.requests import TOKENS_PER_FRAME
from casa_core.types import Image, Sample, Text
from pipelines.data.store.rows import is_stream
from pipelines.evaluate.benchmarks.layout.benchmark import Question
from pipelines.evaluate.held_out.board import BenchmarkSettings, Prediction, Scoreboard, ScoreRow, SpokenFrame
from pipelines.evaluate.kept.answers import Caption
from pipelines.evaluate.metrics.base import Truth
from pipelines.evaluate.metrics.captions import EventCounts, EventScore, event_score
from pipelines.evaluate.metrics.intervals import Estimate, constants

COLUMNS = ("precision", "recall", "F1")


class Live:
    """A stream per clip, as an endpoint serves it: the model sees no frame before its time."""

    name = "live"

    def accepts(self, sample: Sample) -> bool:
        """Samples whose images lie inside the assistant's turn."""
        return is_stream(sample)

    def questions(self, sample: Sample, meta: Mapping[str, Any]) -> Iterator[Question]:
        """The clip without its words."""
        words = " ".join(text for _, text in live_frames(sample) if text)
        shown = tuple(part for part in sample.parts if isinstance(part, Image) or part.role == "user")
        truth = Truth(answers=(words,), category=self.name)
        yield Question(id=sample.sample_id, sample=replace(sample, parts=shown), truth=truth)

    def max_new_tokens(self, settings: BenchmarkSettings) -> int:
        """What a session has by default."""
        return TOKENS_PER_FRAME

    def judged(self, prediction: Prediction, sample: Sample, captions: Sequence[Caption]) -> Prediction:
        """With its frames, each with the words due."""
        frames = tuple(
            SpokenFrame(timestamp=one.timestamp, truth=due, spoken=one.text, truncated=one.truncated)
            for one, (_, due) in zip(captions, live_frames(sample), strict=True)
        )
        return replace(prediction, frames=frames)

    def score(
        self, predictions: Mapping[str, Sequence[Prediction]], settings: BenchmarkSettings
    ) -> Scoreboard:
        """Word-event F1 of every model, beside a baseline that generates nothing."""
        lines = []
        for model, own in predictions.items():
            score = event_score([_count(clip, settings.frame_tolerance) for clip in own])
            lines.append(
                ScoreRow(name=model, key="f1" if model == "model" else f"{model}_f1", cells=_cells(score))
            )
        clips = predictions["model"]
        silent = event_score([_count(clip, settings.frame_tolerance, silent=True) for clip in clips])
        frames = [frame for clip in clips for frame in clip.frames]
        cut = sum(frame.truncated for frame in frames)
        return Scoreboard(
            benchmark=self.name,
            title="Live captions",
            measure=f"word-event F1 within ±{settings.frame_tolerance} frame",
            columns=COLUMNS,
            headline="F1",
            lines=(*lines, ScoreRow(name="silent", key="silent_f1", cells=_cells(silent))),
            notes=(
                f"{len(clips)} held-out clips, {len(frames)} frames, {silent.true} words to say",
                f"{cut} frames ended by the token limit instead of the model's own stop",
            ),
        ).compared("F1")


def live_frames(sample: Sample) -> list[tuple[Image, str]]:
    """The frames of a live sample, each with the words due before the next one."""
    frames: list[tuple[Image, str]] = []
    for part in sample.parts:
        if isinstance(part, Image) and part.role == "assistant":
            frames.append((part, ""))
        elif isinstance(part, Text) and part.role == "assistant" and frames:
            image, words = frames[-1]
            frames[-1] = (image, f"{words} {part.text}".strip())
    return frames


def _count(clip: Prediction, tolerance: int, *, silent: bool = False) -> EventCounts:
    spoken = ["" if silent else frame.spoken for frame in clip.frames]
    return EventCounts.of_clip(spoken, [frame.truth for frame in clip.frames], tolerance)


def _cells(score: EventScore) -> dict[str, Estimate]:
    """Precision and recall have no interval: F1's is the one that is claimed."""
    plain = constants([("precision", score.precision), ("recall", score.recall)], score.f1.count)
    return {**plain, "F1": score.f1}
