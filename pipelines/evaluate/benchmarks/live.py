"""Live captions: frames are pushed one by one; each word must be generated at its frame, or close to it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

from casa_core.engine.protocol import EngineProtocol
from casa_core.media.decode import decode_images
from casa_core.types import Image, Sample, Text
from pipelines.data.store.rows import is_stream
from pipelines.evaluate.benchmarks.base import (
    BenchmarkSettings,
    EvalSample,
    Prediction,
    Scoreboard,
    ScoreRow,
    SpokenFrame,
)
from pipelines.evaluate.metrics.captions import EventCounts, EventScore, event_score
from pipelines.evaluate.metrics.intervals import Estimate, constants

COLUMNS = ("precision", "recall", "F1")


class Live:
    """One session per clip, as an endpoint serves it: the model sees no frame before its time."""

    name = "live"

    def accepts(self, sample: Sample) -> bool:
        """Samples whose images lie inside the assistant's turn."""
        return is_stream(sample)

    def batch_size(self, settings: BenchmarkSettings) -> int:
        """One clip."""
        return 1

    def run(
        self, engine: EngineProtocol, samples: Sequence[EvalSample], settings: BenchmarkSettings
    ) -> list[Prediction]:
        """Stream each clip through a session of its own."""
        return [_caption(engine, sample) for sample in samples]

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
        )


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


def _caption(engine: EngineProtocol, own: EvalSample) -> Prediction:
    blind = bool(engine.info["blind"])
    query = " ".join(p.text for p in own.sample.parts if isinstance(p, Text) and p.role == "user")
    frames = live_frames(own.sample)
    shown = replace(own.sample, parts=tuple(image for image, _ in frames))
    pictures = [None] * len(frames) if blind else decode_images(shown)
    session = engine.open_session(query)
    spoken = []
    try:
        for (image, truth), picture in zip(frames, pictures, strict=True):
            assert image.timestamp is not None, "a live frame has a time"
            event = session.push_frame(picture, image.timestamp)
            spoken.append(
                SpokenFrame(
                    timestamp=image.timestamp,
                    truth=truth,
                    spoken=event.text.strip(),
                    truncated=event.truncated,
                    latency_s=event.latency_s,
                )
            )
    finally:
        session.close()
    return Prediction(
        row=own.row,
        turn=0,
        sample_id=own.sample.sample_id,
        question_type="live",
        question=query,
        truth=" ".join(f.truth for f in spoken if f.truth),
        answer=" ".join(f.spoken for f in spoken if f.spoken),
        correct=None,
        frames=tuple(spoken),
    )


def _count(clip: Prediction, tolerance: int, *, silent: bool = False) -> EventCounts:
    spoken = ["" if silent else frame.spoken for frame in clip.frames]
    return EventCounts.of_clip(spoken, [frame.truth for frame in clip.frames], tolerance)


def _cells(score: EventScore) -> dict[str, Estimate]:
    """Precision and recall have no interval: F1's is the one that is claimed."""
    plain = constants([("precision", score.precision), ("recall", score.recall)], score.f1.count)
    return {**plain, "F1": score.f1}
