"""Live captions: frames are pushed one by one, and each word must be said at its frame, or close to it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

from casa_core.engine.protocol import EngineProtocol
from casa_core.media.decode import decode_images
from casa_core.types import Image, Sample, Text
from pipelines.evaluate.benchmarks.base import (
    EvalSample,
    Prediction,
    Scoreboard,
    ScoreRow,
    Settings,
    SpokenFrame,
)
from pipelines.evaluate.metrics.scores import Estimate, EventCounts, EventScore, event_score

COLUMNS = ("precision", "recall", "F1")


class Live:
    """One stream a clip, exactly as an endpoint serves it: no frame is shown before its turn."""

    name = "live"

    def accepts(self, sample: Sample) -> bool:
        """Samples whose images lie inside the assistant's turn."""
        return any(isinstance(part, Image) and part.role == "assistant" for part in sample.parts)

    def batch_size(self, settings: Settings) -> int:
        """A clip is a unit of work of its own."""
        return 1

    def run(
        self, engine: EngineProtocol, held_out: Sequence[EvalSample], settings: Settings
    ) -> list[Prediction]:
        """Stream each clip through a session of its own."""
        return [_caption(engine, held) for held in held_out]

    def score(self, outcomes: Mapping[str, Sequence[Prediction]], settings: Settings) -> Scoreboard:
        """Word-event F1 of every model, beside a model that never speaks."""
        lines = []
        for model, clips in outcomes.items():
            score = event_score([_count(clip, settings.frame_tolerance) for clip in clips])
            lines.append(
                ScoreRow(name=model, key="f1" if model == "model" else f"{model}_f1", cells=_cells(score))
            )
        silent = event_score(
            [_count(clip, settings.frame_tolerance, silent=True) for clip in outcomes["model"]]
        )
        frames = [frame for clip in outcomes["model"] for frame in clip.frames]
        cut = sum(frame.truncated for frame in frames)
        return Scoreboard(
            benchmark=self.name,
            title="Live captions",
            measure=f"word-event F1 within ±{settings.frame_tolerance} frame",
            columns=COLUMNS,
            headline="F1",
            lines=(*lines, ScoreRow(name="silent", key="silent_f1", cells=_cells(silent))),
            notes=(
                f"{len(outcomes['model'])} held-out clips, {len(frames)} frames, {silent.true} words to say",
                f"{cut} frames ended by the token limit instead of the model's own stop",
            ),
        )


def live_frames(sample: Sample) -> list[tuple[Image, str]]:
    """The frames of a live sample, each with the words to be said before the next one."""
    frames: list[tuple[Image, str]] = []
    for part in sample.parts:
        if isinstance(part, Image) and part.role == "assistant":
            frames.append((part, ""))
        elif isinstance(part, Text) and part.role == "assistant" and frames:
            image, words = frames[-1]
            frames[-1] = (image, f"{words} {part.text}".strip())
    return frames


def _caption(engine: EngineProtocol, held: EvalSample) -> Prediction:
    blind = bool(engine.info["blind"])
    query = " ".join(p.text for p in held.sample.parts if isinstance(p, Text) and p.role == "user")
    frames = live_frames(held.sample)
    shown = replace(held.sample, parts=tuple(image for image, _ in frames))
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
        row=held.row,
        turn=0,
        sample_id=held.sample.sample_id,
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
    """Precision and recall come without an interval: the one that is claimed is F1's."""
    count = score.f1.count
    precision = Estimate(score.precision, score.precision, score.precision, count)
    recall = Estimate(score.recall, score.recall, score.recall, count)
    return {"precision": precision, "recall": recall, "F1": score.f1}
