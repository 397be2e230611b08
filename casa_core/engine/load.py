"""What an engine has done, and how much of its time the live streams take."""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field, fields

from casa_core.engine.events import Failed, FrameDropped, FrameRefused, Outcome
from casa_core.engine.requests import CaptionEvent, GenerationResult

WINDOW_S = 10.0
"""Seconds over which shares of time are measured."""


@dataclass(slots=True)
class TimeShare:
    """Seconds spent on something in the last ``WINDOW_S`` seconds."""

    _spent: deque[tuple[float, float]] = field(default_factory=deque)
    _total: float = 0.0
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def add(self, seconds: float) -> None:
        """Count seconds that end now; callable from any thread."""
        with self._lock:
            self._spent.append((time.monotonic(), seconds))
            self._total += seconds
        self._forget()

    @property
    def share(self) -> float:
        """The part of the window that was spent on it."""
        self._forget()
        return self._total / WINDOW_S

    @property
    def count(self) -> int:
        """How often something was counted in the window."""
        self._forget()
        return len(self._spent)

    def _forget(self) -> None:
        until = time.monotonic() - WINDOW_S
        with self._lock:
            while self._spent and self._spent[0][0] < until:
                self._total -= self._spent.popleft()[1]
            if not self._spent:
                self._total = 0.0  # without what rounding left


@dataclass(frozen=True, slots=True, kw_only=True)
class LoadSnapshot:
    """An engine at one moment: what it holds, and its counts since it started.

    Attributes:
        slots, slots_used: Sequences that can have a KV cache at a time, and those that have one.
        answers, answers_waiting: Answers asked for and not finished; those of them without a slot.
        streams: Live streams that are open.
        frames_waiting: Frames of all streams that have not been read.
        kv_tokens: Tokens in the text KV of all used slots.
        kv_capacity: Tokens that the slots may hold: each the context, a stream's its bounds.
        image_tokens: Image tokens in the windows of all used slots.
        live_share, images_share: Part of the last seconds that streams, and the images' tower, took.
        steps, step_s, tokens, cached_tokens: As in :class:`Load`.
    """

    slots: int
    slots_used: int = 0
    answers: int = 0
    answers_waiting: int = 0
    streams: int = 0
    frames_waiting: int = 0
    kv_tokens: int = 0
    kv_capacity: int = 0
    image_tokens: int = 0
    live_share: float = 0.0
    images_share: float = 0.0
    steps: int = 0
    step_s: float = 0.0
    tokens: int = 0
    cached_tokens: int = 0

    @property
    def counts(self) -> LoadSnapshot:
        """Its counts alone: what is left of an engine that has ended."""
        return LoadSnapshot(
            slots=0,
            steps=self.steps,
            step_s=self.step_s,
            tokens=self.tokens,
            cached_tokens=self.cached_tokens,
        )


def together(loads: Sequence[LoadSnapshot]) -> LoadSnapshot:
    """What several engines hold together; the shares of time are the busiest's."""
    names = [one.name for one in fields(LoadSnapshot)]
    columns = {name: [getattr(load, name) for load in loads] for name in names}
    return LoadSnapshot(
        **{name: (max if name.endswith("_share") else sum)(column) for name, column in columns.items()}
    )


@dataclass(slots=True)
class Load:
    """Counts since the engine started, and the time that live streams took lately.

    Attributes:
        steps, step_s: Steps, and seconds spent in them.
        tokens: Tokens chosen.
        answers, captions, failed: Answers finished, captions finished, and both ended by an error.
        late_frames: Captions that came after their deadline.
        dropped_frames, refused_frames: Frames that were replaced by newer ones, or could not be decoded.
        cached_tokens: Prompt tokens that were not read again.
        live, embedding: The time that streams took of the steps, and images of the tower.
        finished: The time that answers took, from their submission to their end.
    """

    steps: int = 0
    step_s: float = 0.0
    tokens: int = 0
    answers: int = 0
    captions: int = 0
    failed: int = 0
    late_frames: int = 0
    dropped_frames: int = 0
    refused_frames: int = 0
    cached_tokens: int = 0
    live: TimeShare = field(default_factory=TimeShare)
    embedding: TimeShare = field(default_factory=TimeShare)
    finished: TimeShare = field(default_factory=TimeShare)

    def stepped(self, seconds: float) -> None:
        """Count a step."""
        self.steps += 1
        self.step_s += seconds

    def count(self, outcome: Outcome) -> None:
        """Count an outcome."""
        self.answers += isinstance(outcome, GenerationResult)
        self.failed += isinstance(outcome, Failed)
        self.dropped_frames += isinstance(outcome, FrameDropped)
        self.refused_frames += isinstance(outcome, FrameRefused)
        if isinstance(outcome, CaptionEvent):
            self.captions += 1
            self.late_frames += outcome.late_s > 0
        if isinstance(outcome, GenerationResult):
            self.cached_tokens += outcome.cached_tokens

    def share_with(self, streams: int) -> float:
        """Share of its time that live streams would take with one more than the present ``streams``."""
        busiest = max(self.live.share, self.embedding.share)
        return busiest * (streams + 1) / max(streams, 1)

    def retry_after_s(self, waiting: int) -> float:
        """Seconds until about as many answers as now wait will have ended, 1 to 60."""
        rate = self.finished.count / WINDOW_S
        return min(max(waiting / rate if rate else WINDOW_S, 1.0), 60.0)
